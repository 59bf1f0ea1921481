//! What users see, with real programs over TLS: chat, files, mail, history, the full screen, reconnection, login and
//! passwords.

mod absence;
mod chat;
mod files;
mod history;
mod login;
mod mail;
mod password;
mod reconnect;
mod rooms;
#[path = "../support/mod.rs"]
mod support;
mod terminal;
