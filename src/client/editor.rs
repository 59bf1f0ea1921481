//! The line being typed.
//!
//! Invariant: the text is bounded and holds nothing [`is_harmful`]; the cursor stands on a
//! character's boundary. A letter with its marks or a joined emoji is passed and removed as one.
//! The keys are those of readline's emacs mode.

use super::input::Key;
use super::text::{clusters, fitting, is_harmful, width};
use std::collections::VecDeque;

/// The longest line, in bytes: far below the longest message, so what can be typed can be sent.
pub const MAX_LINE: usize = 16 * 1024;
/// Submitted lines that Up brings back: more than anybody steps through.
const MAX_HISTORY: usize = 200;

/// What a key did.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The key means nothing here.
    Ignored,
    /// The text or the cursor may have changed.
    Edited,
    /// Enter: the whole line, which may be empty. The editor is empty again.
    Submitted(String),
}

/// One line of text with a cursor and a history.
#[derive(Default)]
pub struct Editor {
    text: String,
    /// In bytes.
    cursor: usize,
    /// What was cut last, for Ctrl-Y.
    cut: String,
    history: VecDeque<String>,
    /// How many steps back in the history the text comes from; 0 is the line being typed.
    back: usize,
    /// The line that was being typed when stepping back began.
    draft: String,
}

impl Editor {
    /// What is typed so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Replaces the line; the cursor goes to its end.
    pub fn set(&mut self, text: &str) {
        self.clear();
        self.insert(text);
    }

    /// Empties the line; the history stays.
    pub fn clear(&mut self) {
        self.text.clear();
        self.cursor = 0;
        self.back = 0;
    }

    /// The part around the cursor that fits, and the column of the cursor in it (below `columns`).
    pub fn visible(&self, columns: usize) -> (String, usize) {
        let before = width(&self.text[..self.cursor]);
        // Scrolls by half the line, so that typing does not shift the text with every letter.
        let step = columns.div_ceil(2).max(1);
        let skip = (before + 1).saturating_sub(columns).div_ceil(step) * step;
        let (mut start, mut column) = (0, 0);
        for cluster in clusters(&self.text) {
            if column >= skip.min(before) {
                break;
            }
            start += cluster.len();
            column += width(cluster);
        }
        let shown = fitting(&self.text[start..], columns).to_owned();
        (shown, before.saturating_sub(column))
    }

    /// Does what the key says.
    pub fn key(&mut self, key: &Key) -> Outcome {
        match key {
            Key::Char(c) => self.insert(c.encode_utf8(&mut [0; 4])),
            Key::Paste(text) => self.insert(&text.replace("\r\n", "\n").replace(['\r', '\n', '\t'], " ")),
            Key::Left | Key::Ctrl('b') => self.cursor = self.left(),
            Key::Right | Key::Ctrl('f') => self.cursor = self.right(),
            Key::Home | Key::Ctrl('a') => self.cursor = 0,
            Key::End | Key::Ctrl('e') => self.cursor = self.text.len(),
            Key::WordLeft | Key::Alt('b') => self.cursor = self.word_left(in_word),
            Key::WordRight | Key::Alt('f') => self.cursor = self.word_right(),
            Key::Backspace | Key::Ctrl('h') => drop(self.remove_to(self.left())),
            Key::Delete | Key::Ctrl('d') => drop(self.remove_to(self.right())),
            Key::Ctrl('k') => self.cut_to(self.text.len()),
            Key::Ctrl('u') => self.cut_to(0),
            Key::Ctrl('w') => self.cut_to(self.word_left(|c| !c.is_whitespace())),
            Key::Alt('\x7f') => self.cut_to(self.word_left(in_word)),
            Key::Alt('d') => self.cut_to(self.word_right()),
            Key::Ctrl('y') => self.insert(&self.cut.clone()),
            Key::Up | Key::Ctrl('p') => self.recall(self.back + 1),
            Key::Down | Key::Ctrl('n') => self.recall(self.back.saturating_sub(1)),
            Key::Enter => return Outcome::Submitted(self.submit()),
            _ => return Outcome::Ignored,
        }
        Outcome::Edited
    }

    /// As much as there is room for.
    fn insert(&mut self, text: &str) {
        for c in text.chars().filter(|&c| !is_harmful(c)) {
            if self.text.len() + c.len_utf8() > MAX_LINE {
                break;
            }
            self.text.insert(self.cursor, c);
            self.cursor += c.len_utf8();
        }
    }

    fn left(&self) -> usize {
        let last = clusters(&self.text[..self.cursor]).last();
        self.cursor - last.map_or(0, str::len)
    }

    fn right(&self) -> usize {
        let next = clusters(&self.text[self.cursor..]).next();
        self.cursor + next.map_or(0, str::len)
    }

    fn word_left(&self, in_word: fn(char) -> bool) -> usize {
        let before = self.text[..self.cursor].trim_end_matches(|c| !in_word(c));
        before.trim_end_matches(in_word).len()
    }

    fn word_right(&self) -> usize {
        let after = self.text[self.cursor..].trim_start_matches(|c| !in_word(c));
        self.text.len() - after.trim_start_matches(in_word).len()
    }

    fn remove_to(&mut self, other: usize) -> String {
        let range = self.cursor.min(other)..self.cursor.max(other);
        self.cursor = range.start;
        self.text.drain(range).collect()
    }

    fn cut_to(&mut self, other: usize) {
        if other != self.cursor {
            self.cut = self.remove_to(other);
        }
    }

    fn recall(&mut self, back: usize) {
        if back == self.back {
            return;
        }
        if self.back == 0 {
            self.draft.clone_from(&self.text);
        }
        let line = match back {
            0 => self.draft.clone(),
            // Newest first; beyond the oldest, nothing happens.
            _ => match self.history.get(back - 1) {
                Some(line) => line.clone(),
                None => return,
            },
        };
        self.set(&line);
        self.back = back;
    }

    fn submit(&mut self) -> String {
        let line = std::mem::take(&mut self.text);
        self.clear();
        if !line.is_empty() && self.history.front() != Some(&line) {
            self.history.push_front(line.clone());
            self.history.truncate(MAX_HISTORY);
        }
        line
    }
}

/// Not only letters: marks and emoji belong to the word they stand in.
fn in_word(c: char) -> bool {
    !c.is_whitespace() && !c.is_ascii_punctuation()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(text: &str) -> Editor {
        let mut editor = Editor::default();
        editor.key(&Key::Paste(text.into()));
        editor
    }

    /// The text after these keys, with `|` at the cursor.
    fn after(text: &str, keys: &[Key]) -> String {
        let mut editor = typed(text);
        for key in keys {
            assert_eq!(editor.key(key), Outcome::Edited);
        }
        editor.key(&Key::Char('|'));
        editor.text().into()
    }

    #[test]
    fn keys_move_and_remove_whole_characters_and_words() {
        use Key::{Alt, Backspace, Ctrl, Delete, Home, Left, Right, WordLeft, WordRight};
        assert_eq!(after("ae\u{301}", &[Left]), "a|e\u{301}");
        assert_eq!(after("ae\u{301}", &[Backspace]), "a|");
        assert_eq!(after("👨‍👩‍👧x", &[Home, Right, Right]), "👨‍👩‍👧x|");
        assert_eq!(after("👨‍👩‍👧x", &[Home, Delete]), "|x");
        assert_eq!(after("x", &[Left, Left, Backspace]), "|x");
        assert_eq!(after("x", &[Right, Delete]), "x|");
        assert_eq!(after("one two-three", &[WordLeft]), "one two-|three");
        assert_eq!(after("one two", &[Home, WordRight]), "one| two");
        assert_eq!(after("one two-three ", &[Ctrl('w')]), "one |");
        assert_eq!(after("one two-three ", &[Alt('\x7f')]), "one two-|");
        assert_eq!(after("one two", &[Ctrl('a'), Alt('d')]), "| two");
        assert_eq!(after("one two", &[Alt('b'), Ctrl('k'), Ctrl('a'), Ctrl('y')]), "two|one ");
        assert_eq!(after("one two", &[Alt('b'), Ctrl('u'), Ctrl('e'), Ctrl('y')]), "twoone |");
    }

    #[test]
    fn a_paste_is_one_line_without_controls() {
        assert_eq!(typed("a\r\nb\nc\td\u{1b}[A\u{202e}").text(), "a b c d[A");
        let mut full = typed(&"é".repeat(MAX_LINE));
        assert_eq!(full.text().len(), MAX_LINE);
        full.key(&Key::Char('x'));
        assert_eq!(full.text().len(), MAX_LINE);
    }

    #[test]
    fn enter_submits_and_up_brings_back() {
        let mut editor = typed("first");
        assert_eq!(editor.key(&Key::Enter), Outcome::Submitted("first".into()));
        assert!(editor.is_empty());
        editor.set("second");
        editor.key(&Key::Enter);
        editor.set("half");
        let mut step = |key: Key| {
            editor.key(&key);
            editor.text().to_owned()
        };
        assert_eq!(step(Key::Up), "second");
        assert_eq!(step(Key::Up), "first");
        assert_eq!(step(Key::Up), "first");
        assert_eq!(step(Key::Down), "second");
        assert_eq!(step(Key::Down), "half");
        assert_eq!(step(Key::Down), "half");
        assert_eq!(editor.key(&Key::Tab), Outcome::Ignored);
        for n in 0..2 * MAX_HISTORY {
            editor.set(&n.to_string());
            editor.key(&Key::Enter);
        }
        assert_eq!(editor.history.len(), MAX_HISTORY);
    }

    #[test]
    fn the_cursor_is_always_in_sight() {
        let mut editor = typed("a 日本語 👨‍👩‍👧‍👦 and some more of it, e\u{301} ☺️ …");
        loop {
            for columns in 0..40 {
                let (shown, column) = editor.visible(columns);
                assert!(width(&shown) <= columns, "{columns}: {shown:?}");
                assert!(column < columns.max(1), "{columns}: {column}");
            }
            if editor.cursor == 0 {
                break;
            }
            editor.key(&Key::Left);
        }
        assert_eq!(editor.visible(5), ("a 日".into(), 0));
        assert_eq!(typed("hello").visible(6), ("hello".into(), 5));
        assert_eq!(typed("hello").visible(5), ("lo".into(), 2));
    }
}
