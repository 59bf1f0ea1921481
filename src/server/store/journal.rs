//! A file of records for many threads: lines that arrive together share one write and one fsync.
//!
//! Invariant: after `Ok` the line is on disk. After an error the file has nothing of it, unless a failing disk does not let
//! the file be shortened either: then a whole line stays and counts at the next start; a partial line is set aside before
//! the next one. No lock is held across a write.

use crate::records::Records;
use crate::sync::lock;
use std::io;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use zeroize::Zeroizing;

/// See the module.
pub struct Journal {
    state: Mutex<JournalState>,
    done: Condvar,
}

/// The result of a batch, with the text of an error for each of its threads.
type Outcome = Arc<OnceLock<Result<(), String>>>;

struct JournalState {
    /// The batch that is being collected; it contains password keys.
    waiting: Zeroizing<String>,
    outcome: Outcome,
    /// `None` while a thread writes.
    records: Option<Records>,
}

impl Journal {
    /// Appends to `records`.
    pub fn new(records: Records) -> Journal {
        let (waiting, outcome) = (Zeroizing::default(), Outcome::default());
        Journal {
            state: Mutex::new(JournalState { waiting, outcome, records: Some(records) }),
            done: Condvar::new(),
        }
    }

    /// Returns when `line` is on disk. A thread that finds no other writing writes for all.
    ///
    /// # Errors
    /// As [`Records::append`].
    pub fn append(&self, line: &str) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.waiting.push_str(line);
        let mine = state.outcome.clone();
        loop {
            if let Some(outcome) = mine.get() {
                return outcome.clone().map_err(io::Error::other);
            }
            let Some(mut records) = state.records.take() else {
                state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let (bytes, outcome) = (std::mem::take(&mut state.waiting), std::mem::take(&mut state.outcome));
            drop(state);
            let written = records.append(bytes.as_bytes(), true);
            state = lock(&self.state);
            state.records = Some(records);
            let _ = outcome.set(written.map_err(|error| error.to_string()));
            self.done.notify_all();
        }
    }
}
