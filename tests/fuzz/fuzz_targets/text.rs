//! Tries the property of this name in properties/client.rs.
#![no_main]

use fuzz::client::TEXT as TARGET;

include!("../target.rs");
