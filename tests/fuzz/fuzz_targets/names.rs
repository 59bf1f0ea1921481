//! Tries the property of this name in properties/client.rs.
#![no_main]

use fuzz::client::NAMES as TARGET;

include!("../target.rs");
