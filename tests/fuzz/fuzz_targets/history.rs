//! Tries the property of this name in properties/disk.rs.
#![no_main]

use fuzz::disk::HISTORY as TARGET;

include!("../target.rs");
