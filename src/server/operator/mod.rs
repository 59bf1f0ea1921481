//! The tools of the server's operator: `server user`, `--check`, the status and the signals.

pub mod admin;
pub mod check;
pub mod status;
