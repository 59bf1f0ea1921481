//! Tries the property of this name in properties/disk.rs.
#![no_main]

use fuzz::disk::USERS as TARGET;

include!("../target.rs");
