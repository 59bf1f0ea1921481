//! The documents and the code agree: house rules, test vectors, and a client written from the specification alone.

mod interop;
#[path = "../support/mod.rs"]
mod support;
mod tidy;
mod vectors;
