//! The tools of the server's operator: commands, `--check`, the status and the end on a signal.

pub mod admin;
pub mod check;
pub mod status;
