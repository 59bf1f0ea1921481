//! A file of records for many threads: lines that arrive together share one write and one fsync.
//!
//! Invariant: after `Ok` the line is on disk. After an error the file has nothing of it, unless a failing disk does not let
//! the file be shortened either: then a complete line stays and counts at the next start; a partial line is set aside
//! before the next one.

use crate::records::Records;
use crate::sync::lock;
use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use zeroize::Zeroizing;

/// See the module.
pub struct Journal {
    /// The batch that is being collected.
    batch: Mutex<Batch>,
    /// Held across a write, and locked before `batch`.
    records: Mutex<Records>,
}

#[derive(Default)]
struct Batch {
    /// Some contain password keys.
    lines: Zeroizing<String>,
    /// Set when they are written; with an error's text for each of their threads.
    written: Arc<OnceLock<Result<(), String>>>,
}

impl Journal {
    /// Appends to `records`.
    pub fn new(records: Records) -> Journal {
        Journal { batch: Mutex::default(), records: Mutex::new(records) }
    }

    /// Returns when `line` is on disk. While a thread writes, the others collect the next batch; one of them writes it.
    ///
    /// # Errors
    /// As [`Records::append`].
    pub fn append(&self, line: &str) -> io::Result<()> {
        let written = {
            let mut batch = lock(&self.batch);
            batch.lines.push_str(line);
            batch.written.clone()
        };
        let mut records = lock(&self.records);
        let written = written.get_or_init(|| {
            let batch = std::mem::take(&mut *lock(&self.batch));
            records.append(batch.lines.as_bytes(), true).map_err(|error| error.to_string())
        });
        written.clone().map_err(io::Error::other)
    }
}
