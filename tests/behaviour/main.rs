//! What users see: chat, files, history, the full screen, reconnection, login and passwords, with real programs over TLS.

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
