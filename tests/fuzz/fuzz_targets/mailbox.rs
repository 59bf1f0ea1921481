//! Tries the property of this name in properties/disk.rs.
#![no_main]

use fuzz::disk::MAILBOX as TARGET;

include!("../target.rs");
