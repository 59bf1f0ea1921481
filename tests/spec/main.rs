//! The documents and the code agree: house rules, test vectors, symbolic models, and a client written from the
//! specification alone.

mod differential;
mod interop;
mod limits;
mod matrix;
mod models;
mod pictures;
#[path = "../support/mod.rs"]
mod support;
mod tidy;
mod vectors;
mod vectors_in_text;
mod wycheproof;
