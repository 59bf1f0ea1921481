//! Tries the property of this name in properties/disk.rs.
#![no_main]

use fuzz::disk::RECORDS as TARGET;

include!("../target.rs");
