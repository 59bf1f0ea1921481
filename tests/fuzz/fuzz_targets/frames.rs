//! Tries the property of this name in properties/wire.rs.
#![no_main]

use fuzz::wire::FRAMES as TARGET;

include!("../target.rs");
