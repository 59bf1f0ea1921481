//! Long runs with random choices: killed servers, broken connections, random bytes. Each run prints its seed.

mod absence;
mod crashes;
mod faults;
mod letters;
mod random;
#[path = "../support/mod.rs"]
mod support;
