//! Tries the property of this name in properties/wire.rs.
#![no_main]

use fuzz::wire::MESSAGES as TARGET;

include!("../target.rs");
