#![forbid(unsafe_code)]
pub mod arguments;
pub mod auth;
pub mod client;
pub mod clock;
pub mod crypto;
pub mod disk;
pub mod encoding;
pub mod name;
pub mod protocol;
pub mod server;
pub mod wire;
