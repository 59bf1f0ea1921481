//! Adversaries: clients against the server, a server against clients, and either against the transfer of files.

mod clients;
mod files;
mod mail;
mod server;
#[path = "../support/mod.rs"]
mod support;
