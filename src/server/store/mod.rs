//! What the server keeps on disk: accounts, locked names, the security log, the certificate.
//!
//! Invariant: nothing here knows connections or sessions (`tests/tidy.rs` reads the imports).

pub mod accounts;
pub(super) mod audit;
pub(super) mod certificates;
mod journal;
pub mod lockout;
pub mod locks;

use crate::disk;
use std::path::Path;

/// What the data folder holds besides files.
pub(super) const FOLDERS: [&str; 3] = ["certs", "keys", "logs"];

/// Whether this file of the data folder holds what no other user may read.
pub(super) fn is_private(name: &str) -> bool {
    ["server.key", "salt.secret", "users.json", "locks.json"].iter().any(|begin| name.starts_with(begin))
}

/// Closes private files to others; one sentence for each.
pub(super) fn close_private(folder: &Path) -> Vec<String> {
    ["", "certs"].iter().flat_map(|name| disk::close_to_others(&folder.join(name), is_private)).collect()
}
