//! What the server's operator sees and does: commands, `--check`, the status and the end on a signal.

pub mod admin;
pub mod check;
pub mod status;
