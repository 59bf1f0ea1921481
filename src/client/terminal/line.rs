//! A text with a cursor.
//!
//! Invariant: the text is bounded and contains nothing [`is_harmful`] except line breaks; the cursor is on a character
//! boundary; a letter with its marks or a joined emoji is passed and removed as one. Pasted text stays marked as
//! pasted, wherever it moves.

use crate::client::text::{clusters, is_harmful};
use crate::crypto::envelope::MAX_TEXT;
use std::ops::Range;

/// The longest line, in bytes: the longest message, so that every typed line can be sent.
pub const MAX_LINE: usize = MAX_TEXT;

/// A text with a cursor.
#[derive(Default)]
pub struct Line {
    /// At most [`MAX_LINE`] bytes.
    pub text: String,
    /// The cursor, in bytes.
    pub cursor: usize,
    /// The ranges of pastes of several lines, the newest last.
    pub pastes: Vec<Range<usize>>,
}

impl Line {
    /// Inserts as much as fits.
    pub fn insert(&mut self, text: &str) {
        let mut new = String::new();
        for c in text.chars().filter(|&c| c == '\n' || !is_harmful(c)) {
            if self.text.len() + new.len() + c.len_utf8() > MAX_LINE {
                break;
            }
            new.push(c);
        }
        let (start, added) = (self.cursor, new.len());
        self.text.insert_str(start, &new);
        self.cursor += added;
        for paste in &mut self.pastes {
            // Text typed at the edge of a paste does not belong to it.
            paste.start += if start <= paste.start { added } else { 0 };
            paste.end += if start < paste.end { added } else { 0 };
        }
    }

    /// Inserts text that was not typed: several lines need a confirmation before they are sent.
    pub fn put(&mut self, text: &str) {
        // A paste directly behind another one continues it.
        let before = self.pastes.pop_if(|paste| paste.end == self.cursor);
        let start = before.map_or(self.cursor, |paste| paste.start);
        self.insert(text);
        self.pastes.push(start..self.cursor);
        self.forget_pastes();
    }

    /// Forgets pastes that have only one line left.
    fn forget_pastes(&mut self) {
        self.pastes.retain(|paste| self.text[paste.clone()].contains('\n'));
    }

    /// Removes the text between the cursor and another place, and returns it.
    pub fn remove_to(&mut self, other: usize) -> String {
        let range = self.cursor.min(other)..self.cursor.max(other);
        let moved = |at: usize| at - (at.min(range.end) - at.min(range.start));
        for paste in &mut self.pastes {
            *paste = moved(paste.start)..moved(paste.end);
        }
        self.cursor = range.start;
        let removed = self.text.drain(range).collect();
        self.forget_pastes();
        removed
    }

    /// Swaps the characters on both sides of the cursor, or the last two, and moves behind them.
    pub fn transpose(&mut self) {
        let at_end = self.cursor == self.text.len();
        let middle = if at_end { self.left() } else { self.cursor };
        let (first, second) = self.text.split_at(middle);
        let first = clusters(first).last().unwrap_or_default();
        let second = clusters(second).next().unwrap_or_default();
        if !first.is_empty() {
            let swapped = format!("{second}{first}");
            self.cursor = middle + second.len();
            self.remove_to(middle - first.len());
            self.insert(&swapped);
        }
    }

    /// The place one character back.
    pub fn left(&self) -> usize {
        let last = clusters(&self.text[..self.cursor]).last();
        self.cursor - last.map_or(0, str::len)
    }

    /// The place one character forward.
    pub fn right(&self) -> usize {
        let next = clusters(&self.text[self.cursor..]).next();
        self.cursor + next.map_or(0, str::len)
    }

    /// The beginning of the word before the cursor.
    pub fn word_left(&self, in_word: fn(char) -> bool) -> usize {
        let mut before: Vec<&str> = clusters(&self.text[..self.cursor]).collect();
        for inside in [false, true] {
            while before.pop_if(|cluster| cluster.starts_with(in_word) == inside).is_some() {}
        }
        before.iter().map(|cluster| cluster.len()).sum()
    }

    /// The end of the word behind the cursor.
    pub fn word_right(&self) -> usize {
        let mut after = clusters(&self.text[self.cursor..]).peekable();
        let mut at = self.cursor;
        for inside in [false, true] {
            while let Some(cluster) = after.next_if(|cluster| cluster.starts_with(in_word) == inside) {
                at += cluster.len();
            }
        }
        at
    }
}

/// Pasted text with one kind of line break, and spaces for tabs.
pub fn one_line_end(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n").replace('\t', " ")
}

/// Whether a character belongs to a word: all do, except white space and ASCII punctuation.
pub fn in_word(c: char) -> bool {
    !c.is_whitespace() && !c.is_ascii_punctuation()
}
