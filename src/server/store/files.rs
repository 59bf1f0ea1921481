//! Common rules for the files of the data folder: which are private, and how files of records are read.
//! Format: OPERATING#server-files.

use crate::disk;
use crate::records;
use std::io;
use std::path::Path;

/// Notices for the operator about the data folder, one sentence each.
pub type Notices = Vec<String>;

/// The beginnings of the names of files that no other user may read: copies and temporary files included.
const PRIVATE: [&str; 4] = ["server.key", "salt.secret", "users.json", "locks.json"];

/// Whether only the server may read a file of this name.
pub fn is_private(name: &str) -> bool {
    PRIVATE.iter().any(|begin| name.starts_with(begin))
}

/// Reads a file of records, as [`records::read`], and changes nothing. A missing file has none.
pub fn read_records(path: &Path, notices: &mut Notices, each: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    if disk::existing(path)?.is_some() {
        let plan = records::read(path, each)?.plan(path);
        notices.extend(plan.map(|plan| format!("WARNING: {plan}")));
    }
    Ok(())
}
