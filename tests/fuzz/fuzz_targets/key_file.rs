//! Tries the property of this name in properties/crypto.rs.
#![no_main]

use fuzz::crypto::KEY_FILE as TARGET;

include!("../target.rs");
