//! A file of lines that many append to at once: those that arrive together share one write and one fsync.
//!
//! Invariant: who was told `Ok` has their line on disk; who was told of an error has nothing in the file, not
//! even half a line; no lock is held across a write.

use super::lock;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use zeroize::Zeroizing;

/// See the module.
pub struct Journal {
    file: File,
    state: Mutex<JournalState>,
    done: Condvar,
}

/// What became of a batch; the text of an error is for all who share it.
type Outcome = Arc<OnceLock<Result<(), String>>>;

struct JournalState {
    /// The batch that is being collected; password keys are in it.
    waiting: Zeroizing<String>,
    outcome: Outcome,
    /// Somebody writes.
    busy: bool,
    /// Bytes of whole lines in the file.
    length: u64,
    /// There may be half a line behind them.
    torn: bool,
}

impl Journal {
    /// A file open for appending that ends after `length` bytes of whole lines.
    pub fn new(file: File, length: u64) -> Journal {
        let (waiting, outcome) = (Zeroizing::default(), Outcome::default());
        let state = JournalState { waiting, outcome, busy: false, length, torn: false };
        Journal { file, state: Mutex::new(state), done: Condvar::new() }
    }

    /// Returns when `line` is on disk. The first to find nobody writing writes for all.
    ///
    /// # Errors
    /// Of the disk; the file then ends as it did before.
    pub fn append(&self, line: &str) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.waiting.push_str(line);
        let mine = state.outcome.clone();
        loop {
            if let Some(outcome) = mine.get() {
                return outcome.clone().map_err(io::Error::other);
            }
            if state.busy {
                state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (bytes, outcome) = (std::mem::take(&mut state.waiting), std::mem::take(&mut state.outcome));
            let (length, torn) = (state.length, state.torn);
            state.busy = true;
            drop(state);
            let written = self.write(bytes.as_bytes(), length, torn);
            state = lock(&self.state);
            (state.busy, state.torn) = (false, written.is_err());
            if written.is_ok() {
                state.length += bytes.len() as u64;
            }
            let _ = outcome.set(written.map_err(|error| error.to_string()));
            self.done.notify_all();
        }
    }

    /// Half a line in the middle of the file would be damage: before anything else is written,
    /// the file ends with its last whole line.
    fn write(&self, bytes: &[u8], length: u64, torn: bool) -> io::Result<()> {
        if torn {
            self.file.set_len(length)?;
        }
        let written = (&self.file).write_all(bytes).and_then(|()| self.file.sync_data());
        if written.is_err() {
            let _ = self.file.set_len(length).and_then(|()| self.file.sync_all());
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::super::accounts::tests::Folder;
    use super::*;
    use crate::disk;

    #[test]
    fn half_a_line_that_a_full_disk_has_left_goes_before_the_next_one_comes_and_no_whole_line_with_it() {
        let folder = Folder::new();
        let path = folder.0.join("lines");
        let add = |text: &str| disk::append(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        add("zero\n").expect("written");
        let journal = Journal::new(disk::append(&path).expect("there"), 5);
        for line in ["one\n", "two\n"] {
            journal.append(line).expect("written");
        }
        add("hal").expect("written");
        lock(&journal.state).torn = true;
        for line in ["three\n", "four\n"] {
            journal.append(line).expect("written");
        }
        let text = std::fs::read_to_string(&path).expect("readable");
        assert_eq!(text, "zero\none\ntwo\nthree\nfour\n");
    }
}
