//! Tries the property of this name in properties/crypto.rs.
#![no_main]

use fuzz::crypto::KEYS as TARGET;

include!("../target.rs");
