//! The server alone: its operator, its disk, its wire, sessions that resume, and too many clients at once.

mod admin;
mod mail;
mod operation;
mod overload;
mod resume;
mod scanners;
mod storage;
#[path = "../support/mod.rs"]
mod support;
mod wire;
