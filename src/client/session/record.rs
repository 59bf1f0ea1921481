//! What was said, as far back as `/history` goes.
//!
//! Invariant: bounded in messages and in bytes, whoever says how much.

use crate::client::entry::Entry;
use crate::client::history::MAX_HISTORY;
use std::collections::VecDeque;

/// Text of all messages together, in bytes: 1,000 of the usual length have a tenth of it, the longest 48 KiB each.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// The latest messages, the oldest first. README#commands.
#[derive(Default)]
pub struct Record {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Record {
    /// Adds one; the oldest go where there is no room.
    pub fn push(&mut self, entry: Entry) {
        self.bytes += entry.text.len();
        self.entries.push_back(entry);
        while (self.entries.len() > MAX_HISTORY || self.bytes > MAX_BYTES)
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= oldest.text.len();
        }
    }

    /// All of them.
    pub fn entries(&self) -> &VecDeque<Entry> {
        &self.entries
    }
}

impl From<VecDeque<Entry>> for Record {
    fn from(entries: VecDeque<Entry>) -> Record {
        let mut record = Record::default();
        entries.into_iter().for_each(|entry| record.push(entry));
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::entry::{Place, Source};

    #[test]
    fn record_is_bounded_in_messages_and_bytes() {
        let said = |text: String| Entry::new(0, Source::Notice, Place::Everyone, text);
        let mut record = Record::from(VecDeque::from(vec![said("first".into()); 2 * MAX_HISTORY]));
        assert_eq!((record.entries.len(), record.bytes), (MAX_HISTORY, 5 * MAX_HISTORY));
        for n in 0..MAX_HISTORY {
            record.push(said(format!("{n:05} {}", "x".repeat(40_000))));
            assert!(record.entries.len() <= MAX_HISTORY && record.bytes <= MAX_BYTES);
        }
        assert!(record.entries.len() > 200);
        assert_eq!(record.bytes, record.entries.iter().map(|entry| entry.text.len()).sum::<usize>());
        assert!(record.entries.back().is_some_and(|last| last.text.starts_with("00999")));
    }
}
