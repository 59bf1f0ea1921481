//! Tries the property of this name in properties/crypto.rs.
#![no_main]

use fuzz::crypto::CHUNKS as TARGET;

include!("../target.rs");
