//! The line being typed.
//!
//! Invariant: only a message may have line breaks; a half-typed line survives recalling, searching, discarding and the
//! sending of another line; and nothing in a paste is a key. `Line` limits the text itself. The keys are those of
//! readline's emacs mode.

use super::input::Key;
use super::line::{Line, in_word, one_line_end};
use crate::client::text::{clusters, fitting, folded, width};
use std::collections::{BTreeMap, VecDeque};
use std::mem::take;

pub use super::line::MAX_LINE;

/// The most submitted lines that Up restores: more than a user steps through.
const MAX_HISTORY: usize = 200;

/// The effect of a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The key has no meaning here.
    Ignored,
    /// The text or the cursor may have changed.
    Edited,
    /// Enter: the whole text, which may be empty.
    Submitted(String),
}

/// A search backwards through the history.
#[derive(Default)]
struct Search {
    word: Line,
    /// The number of steps back to the match.
    found: Option<usize>,
}

/// The candidates for the text from `start` to the cursor.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// Bytes from the beginning of the text.
    pub start: usize,
    /// The most likely first.
    pub candidates: Vec<String>,
}

/// The candidates that Tab cycles through: the one at `at` is between `completion.start` and the cursor.
struct Cycle {
    completion: Completion,
    at: usize,
}

/// A [line](self) with a history.
#[derive(Default)]
pub struct Editor {
    line: Line,
    /// Whether a text may have several lines; otherwise line ends become spaces.
    lines: bool,
    /// The last cut text, for Ctrl-Y.
    cut: String,
    history: VecDeque<String>,
    /// The number of steps back in the history; 0 is the line being typed.
    back: usize,
    /// The half-typed line and edited history lines, by their number of steps back, until a line is submitted.
    edited: BTreeMap<usize, Line>,
    search: Option<Search>,
    cycle: Option<Cycle>,
    /// Whether the user was asked to confirm a paste.
    asked: bool,
    /// Line breaks at the end of a paste, which are kept if more is pasted directly behind them.
    breaks: String,
}

impl Editor {
    /// An editor for messages of several lines; the default one takes a single line, the answer to a question.
    pub fn for_messages() -> Editor {
        Editor { lines: true, ..Editor::default() }
    }

    /// The text typed so far.
    pub fn text(&self) -> &str {
        &self.line.text
    }

    /// Whether nothing could be lost: no text, and no search in progress.
    pub fn is_empty(&self) -> bool {
        self.line.text.is_empty() && self.search.is_none()
    }

    /// Moves the line being typed to an editor without one.
    pub fn hand_over(&mut self, to: &mut Editor) {
        if to.is_empty() && to.back == 0 && self.back == 0 {
            std::mem::swap(&mut self.line, &mut to.line);
        }
    }

    /// The part around the cursor that fits, with line breaks one column wide, and the cursor's column in it, which
    /// is below `columns`.
    pub fn visible(&self, columns: usize) -> (&str, usize) {
        let found = self.search.as_ref().and_then(|search| self.at(search.found?));
        let (text, cursor) = found.map_or((self.text(), self.line.cursor), |line| (line, line.len()));
        let before = width(&text[..cursor]);
        // Scroll by half a line, so that the text does not shift with every letter.
        let step = columns.div_ceil(2).max(1);
        let skip = (before + 1).saturating_sub(columns).div_ceil(step) * step;
        let (mut start, mut column) = (0, 0);
        for cluster in clusters(text) {
            if column >= skip.min(before) {
                break;
            }
            start += cluster.len();
            column += width(cluster);
        }
        (fitting(&text[start..], columns), before.saturating_sub(column))
    }

    /// The prompt during a search; `None` without one.
    pub fn label(&self) -> Option<String> {
        let Search { word, found } = self.search.as_ref()?;
        let nothing = found.is_none() && !word.text.is_empty();
        let state = if nothing { "not found" } else { "search" };
        Some(format!("({state}) {}: ", word.text.replace('\n', "⏎")))
    }

    /// The question to the user; `None` without one.
    pub fn question(&self) -> Option<String> {
        let paste = self.line.pastes.last().filter(|_| self.asked)?;
        let lines = 1 + self.text()[paste.clone()].matches('\n').count();
        Some(format!("{lines} lines pasted: Enter sends them as one message, Esc removes them"))
    }

    /// The further candidates for Tab; `None` without any.
    pub fn candidates(&self) -> Option<String> {
        let Cycle { completion: Completion { candidates, .. }, at } = self.cycle.as_ref()?;
        let others = candidates.iter().cycle().skip(at + 1).take(candidates.len() - 1);
        Some(others.map(|text| text.trim_end()).collect::<Vec<_>>().join("  "))
    }

    /// Completes the text before the cursor. A repeated call takes the next or former candidate without calling `find`
    /// again. False if there is no candidate.
    pub fn complete(&mut self, backwards: bool, find: impl FnOnce(&str) -> Completion) -> bool {
        self.end_search();
        self.asked = false;
        let next = match self.cycle.take() {
            Some(Cycle { completion, at }) => {
                let count = completion.candidates.len();
                let step = if backwards { count - 1 } else { 1 };
                Cycle { at: (at + step) % count, completion }
            }
            None => {
                let completion = find(&self.line.text[..self.line.cursor]);
                let last = completion.candidates.len().saturating_sub(1);
                Cycle { at: if backwards { last } else { 0 }, completion }
            }
        };
        let Some(text) = next.completion.candidates.get(next.at) else { return false };
        self.line.remove_to(next.completion.start);
        self.line.insert(text);
        // A single candidate is accepted at once: the next Tab completes what follows.
        self.cycle = (next.completion.candidates.len() > 1).then_some(next);
        true
    }

    /// Handles a key.
    pub fn key(&mut self, key: &Key) -> Outcome {
        self.cycle = None;
        let (asked, mut pasted) = (take(&mut self.asked), take(&mut self.breaks));
        if self.search_key(key) {
            return Outcome::Edited;
        }
        let line = &mut self.line;
        match key {
            Key::Char(c) => line.insert(c.encode_utf8(&mut [0; 4])),
            Key::Paste(text) => {
                pasted.push_str(&one_line_end(text));
                // The end of the last line does not begin another.
                let text = pasted.trim_end_matches('\n');
                if self.lines {
                    line.put(text)
                } else {
                    line.put(&text.replace('\n', " "))
                }
                let end = text.len();
                self.breaks = pasted.split_off(end);
            }
            Key::AltEnter if self.lines => line.insert("\n"),
            Key::Left | Key::Ctrl('b') => line.cursor = line.left(),
            Key::Right | Key::Ctrl('f') => line.cursor = line.right(),
            Key::Home | Key::Ctrl('a') => line.cursor = 0,
            Key::End | Key::Ctrl('e') => line.cursor = line.text.len(),
            Key::WordLeft | Key::Alt('b') => line.cursor = line.word_left(in_word),
            Key::WordRight | Key::Alt('f') => line.cursor = line.word_right(),
            Key::Backspace | Key::Ctrl('h') => drop(line.remove_to(line.left())),
            Key::Delete | Key::Ctrl('d') => drop(line.remove_to(line.right())),
            Key::Ctrl('t') => line.transpose(),
            Key::Ctrl('k') => self.cut_to(self.line.text.len()),
            Key::Ctrl('u') => self.cut_to(0),
            Key::Ctrl('w') => self.cut_to(self.line.word_left(|c| !c.is_whitespace())),
            Key::Alt('\x7f') => self.cut_to(self.line.word_left(in_word)),
            Key::Alt('d') => self.cut_to(self.line.word_right()),
            Key::Ctrl('y') => line.put(&self.cut),
            Key::Up | Key::Ctrl('p') => self.recall(self.back + 1),
            Key::Down | Key::Ctrl('n') => self.recall(self.back.saturating_sub(1)),
            Key::Ctrl('r') if self.lines => self.search = Some(Search::default()),
            // The line is hidden, but not lost: Up restores it.
            Key::Ctrl('c') => drop(self.submit()),
            Key::Escape if asked => {
                if let Some(paste) = self.line.pastes.last().cloned() {
                    self.line.cursor = paste.end;
                    self.cut_to(paste.start);
                }
            }
            Key::Enter if !asked && !self.line.pastes.is_empty() => {
                // Otherwise Enter was the end of a line in the paste.
                (self.asked, self.breaks) = (true, pasted + "\n");
            }
            Key::Enter => return Outcome::Submitted(self.submit()),
            _ => return Outcome::Ignored,
        }
        Outcome::Edited
    }

    fn cut_to(&mut self, other: usize) {
        if other != self.line.cursor {
            self.cut = self.line.remove_to(other);
        }
    }

    /// The text this number of steps back, with its edits.
    fn at(&self, back: usize) -> Option<&str> {
        if back == self.back {
            return Some(self.text());
        }
        let typed = || self.history.get(back.checked_sub(1)?);
        self.edited.get(&back).map(|line| &line.text).or_else(typed).map(String::as_str)
    }

    /// Goes this number of steps back; beyond the oldest, nothing happens.
    fn recall(&mut self, back: usize) {
        let Some(text) = self.at(back).filter(|_| back != self.back) else { return };
        let new = Line { text: text.into(), cursor: text.len(), pastes: Vec::new() };
        let new = self.edited.remove(&back).unwrap_or(new);
        self.edited.insert(self.back, std::mem::replace(&mut self.line, new));
        self.back = back;
    }

    /// Handles a key in a search; false if the key is for the line that was found.
    fn search_key(&mut self, key: &Key) -> bool {
        let Some(Search { word, found }) = &mut self.search else { return false };
        let from = match key {
            Key::Ctrl('r') => found.map_or(1, |found| found + 1),
            Key::Char(c) => {
                word.insert(c.encode_utf8(&mut [0; 4]));
                found.unwrap_or(1)
            }
            Key::Paste(text) => {
                word.insert(&one_line_end(text));
                found.unwrap_or(1)
            }
            Key::Backspace | Key::Ctrl('h') => {
                word.remove_to(word.left());
                1
            }
            Key::Ctrl('g' | 'c') => {
                self.search = None;
                return true;
            }
            // Without a match, Enter sends nothing.
            Key::Enter if found.is_none() => {
                self.search = None;
                return true;
            }
            _ => {
                self.end_search();
                return *key == Key::Escape;
            }
        };
        let (word, former) = (folded(&word.text), found.filter(|_| *key == Key::Ctrl('r')));
        let mut older = (from..=self.history.len()).filter(|back| {
            let text = self.at(*back).unwrap_or_default();
            folded(text).contains(&word)
        });
        let next = older.next().or(former);
        if let Some(search) = &mut self.search {
            search.found = next.filter(|_| !word.is_empty() || *key == Key::Ctrl('r'));
        }
        true
    }

    /// Ends the search and edits the match.
    fn end_search(&mut self) {
        if let Some(Search { found: Some(back), .. }) = self.search.take() {
            self.recall(back);
        }
    }

    /// Adds the line to the history and restores the half-typed line.
    fn submit(&mut self) -> String {
        let draft = self.edited.remove(&0).unwrap_or_default();
        let text = std::mem::replace(&mut self.line, draft).text;
        self.edited.clear();
        self.back = 0;
        if !text.is_empty() && self.history.front() != Some(&text) {
            self.history.push_front(text.clone());
            self.history.truncate(MAX_HISTORY);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(text: &str) -> Editor {
        with_history(&[], text)
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
    fn emoji_are_never_split() {
        use Key::{Alt, Backspace, Ctrl, Delete, Home, Left, Right, WordLeft, WordRight};
        for emoji in ["🇩🇪", "👨‍👩‍👧‍👦", "👩🏽‍❤️‍💋‍👨🏽", "👍🏽", "#️⃣", "1️⃣", "-\u{301}", "🏳️‍🌈"]
        {
            let two = format!("{emoji}{emoji}");
            for (keys, left) in [
                (&[Backspace][..], format!("{emoji}|")),
                (&[Left, Backspace], format!("|{emoji}")),
                (&[Home, Right, Delete], format!("{emoji}|")),
                (&[Left, Left, Delete], format!("|{emoji}")),
                (&[Ctrl('t')], format!("{two}|")),
                (&[Ctrl('w')], "|".into()),
                (&[Home, Alt('d')], "|".into()),
            ] {
                assert_eq!(after(&two, keys), left, "{keys:?}");
            }
            let between = format!("a {emoji} b");
            for keys in
                [&[WordLeft][..], &[WordLeft, WordLeft], &[Home, WordRight], &[Home, WordRight, WordRight]]
            {
                let text = after(&between, keys);
                assert!(text.contains(emoji), "{text:?}");
            }
            // The same at the edge of a line that is longer than the screen.
            let long = typed(&emoji.repeat(40));
            for columns in 4..40 {
                let (shown, _) = long.visible(columns);
                assert_eq!(shown.replace(emoji, ""), "", "{columns}");
            }
        }
    }

    #[test]
    fn transposing_swaps_whole_characters() {
        use Key::{Ctrl, Home, Left};
        assert_eq!(after("abc", &[Ctrl('t')]), "acb|");
        assert_eq!(after("abc", &[Left, Ctrl('t')]), "acb|");
        assert_eq!(after("abc", &[Left, Left, Ctrl('t')]), "ba|c");
        assert_eq!(after("ae\u{301}👨‍👩‍👧", &[Ctrl('t')]), "a👨‍👩‍👧e\u{301}|");
        assert_eq!(after("ab", &[Home, Ctrl('t')]), "|ab");
        assert_eq!(after("a", &[Ctrl('t')]), "a|");
        assert_eq!(after("", &[Ctrl('t')]), "|");
    }

    fn paste(editor: &mut Editor, text: &str) {
        assert_eq!(editor.key(&Key::Paste(text.into())), Outcome::Edited);
    }

    #[test]
    fn answer_to_a_question_is_one_line_without_controls() {
        let mut editor = Editor::default();
        paste(&mut editor, "a\r\nb\nc\td\u{1b}[A\u{202e}\r");
        assert_eq!(editor.key(&Key::AltEnter), Outcome::Ignored);
        assert_eq!(editor.key(&Key::Ctrl('r')), Outcome::Ignored);
        assert_eq!(editor.key(&Key::Enter), Outcome::Submitted("a b c d[A".into()));
        let mut full = typed(&"é".repeat(MAX_LINE));
        assert_eq!(full.text().len(), MAX_LINE);
        full.key(&Key::Char('x'));
        assert_eq!(full.text().len(), MAX_LINE);
    }

    #[test]
    fn line_breaks_between_the_pieces_of_a_paste_stay() {
        let mut editor = Editor::for_messages();
        for piece in ["one\ntwo\n", "/exit\r\n", "\n", ""] {
            paste(&mut editor, piece);
        }
        assert_eq!(editor.key(&Key::Enter), Outcome::Edited, "a question, or a line end");
        paste(&mut editor, "three\n\n");
        assert_eq!(editor.text(), "one\ntwo\n/exit\n\n\nthree");
        // Text typed behind it belongs to its last line, even if more is pasted afterwards.
        editor.key(&Key::Char('x'));
        paste(&mut editor, "y");
        assert!(editor.text().ends_with("\nthreexy"), "{:?}", editor.text());
        assert_eq!(editor.key(&Key::Enter), Outcome::Edited);
        assert!(editor.question().is_some_and(|question| question.starts_with("6 lines pasted")));
        editor.key(&Key::Escape);
        assert_eq!(editor.text(), "xy");
    }

    #[test]
    fn message_may_have_several_lines() {
        let mut editor = typed("one");
        editor.key(&Key::AltEnter);
        editor.key(&Key::Char('2'));
        assert_eq!(editor.visible(9), ("one\n2", 5));
        editor.key(&Key::Left);
        editor.key(&Key::Left);
        assert_eq!(editor.visible(9), ("one\n2", 3), "a line break is one character");
        assert_eq!(editor.key(&Key::Enter), Outcome::Submitted("one\n2".into()), "typed, so no question");
    }

    #[test]
    fn pasted_lines_need_a_second_enter_and_escape_removes_them() {
        let mut editor = typed("<>");
        editor.key(&Key::Left);
        paste(&mut editor, "a\r\nb\rc\n");
        editor.key(&Key::Char('.'));
        assert_eq!(editor.text(), "<a\nb\nc.>");
        assert_eq!(editor.question(), None);
        assert_eq!(editor.key(&Key::Enter), Outcome::Edited);
        assert!(editor.question().is_some_and(|text| text.starts_with("3 lines pasted: ")));
        // Any other key continues the line; Enter then asks again.
        editor.key(&Key::Home);
        editor.key(&Key::Char('x'));
        assert_eq!(editor.question(), None);
        assert_eq!(editor.key(&Key::Enter), Outcome::Edited);
        assert_eq!(editor.key(&Key::Escape), Outcome::Edited);
        assert_eq!(editor.text(), "x<.>");
        assert_eq!(editor.key(&Key::Escape), Outcome::Ignored);
        // A cut paste is not lost; after Ctrl-Y, Enter asks about it.
        editor.key(&Key::Ctrl('y'));
        assert_eq!(editor.key(&Key::Enter), Outcome::Edited);
        assert_eq!(editor.key(&Key::Enter), Outcome::Submitted("x<a\nb\nc.>".into()));
        // Also after it was put away and restored.
        paste(&mut editor, "d\ne");
        editor.key(&Key::Up);
        editor.key(&Key::Down);
        assert_eq!(editor.key(&Key::Enter), Outcome::Edited);
        assert_eq!(editor.key(&Key::Enter), Outcome::Submitted("d\ne".into()));
        // A paste with one line, or reduced to one, needs no question.
        paste(&mut editor, "one\n");
        assert_eq!(editor.key(&Key::Enter), Outcome::Submitted("one".into()));
        paste(&mut editor, "a\nb");
        for key in [Key::Backspace, Key::Backspace] {
            editor.key(&key);
        }
        assert_eq!(editor.key(&Key::Enter), Outcome::Submitted("a".into()));
    }

    /// An editor with a history, the last of it the newest, and a half-typed line.
    fn with_history(lines: &[&str], half: &str) -> Editor {
        let mut editor = Editor::for_messages();
        for line in lines {
            line.chars().for_each(|c| drop(editor.key(&Key::Char(c))));
            editor.key(&Key::Enter);
        }
        half.chars().for_each(|c| drop(editor.key(&Key::Char(c))));
        editor
    }

    /// The label and the visible text after these keys.
    fn seen(editor: &mut Editor, keys: &[Key]) -> String {
        keys.iter().for_each(|key| drop(editor.key(key)));
        editor.label().unwrap_or_default() + editor.visible(80).0
    }

    #[test]
    fn search_goes_back_through_the_history() {
        use Key::{Backspace, Char, Ctrl, Enter, Escape, Left};
        let lines = ["make tea", "/msg bob hi", "Make coffee", "other"];
        let mut editor = with_history(&lines, "half");
        let start = [Ctrl('r'), Char('m'), Char('A')];
        assert_eq!(seen(&mut editor, &[Ctrl('r')]), "(search) : half");
        assert_eq!(seen(&mut editor, &start[1..]), "(search) mA: Make coffee");
        assert_eq!(seen(&mut editor, &[Ctrl('r')]), "(search) mA: make tea");
        assert_eq!(seen(&mut editor, &[Ctrl('r')]), "(search) mA: make tea", "the oldest");
        assert_eq!(seen(&mut editor, &[Backspace]), "(search) m: Make coffee");
        assert_eq!(seen(&mut editor, &[Char('z')]), "(not found) mz: half");
        // Nothing was found: Enter sends nothing.
        assert_eq!(seen(&mut editor, &[Enter]), "half");
        // After the search is abandoned, the half-typed line is back; also after another line was edited or sent.
        for key in ['g', 'c'] {
            assert_eq!(seen(&mut editor, &[&start[..], &[Ctrl(key)]].concat()), "half");
        }
        assert_eq!(seen(&mut editor, &[&start[..], &[Escape, Char('!')]].concat()), "Make coffee!");
        assert_eq!(seen(&mut editor, &[Key::Down, Key::Down]), "half");
        assert_eq!(seen(&mut editor, &[Ctrl('r'), Char('t'), Char('e'), Left, Char('.')]), "make te.a");
        assert_eq!(editor.key(&Enter), Outcome::Submitted("make te.a".into()));
        assert_eq!(editor.text(), "half");
        seen(&mut editor, &[Ctrl('r'), Key::Paste("bob".into())]);
        assert_eq!(editor.key(&Enter), Outcome::Submitted("/msg bob hi".into()));
        assert_eq!(seen(&mut editor, &[]), "half");
        // An empty line during a search does not leave the client.
        let mut editor = with_history(&lines, "");
        editor.key(&Ctrl('r'));
        assert!(!editor.is_empty());
    }

    #[test]
    fn unsent_line_can_be_restored() {
        use Key::{Char, Ctrl, Down, Up};
        let mut editor = with_history(&["first", "second"], "half");
        // Discarded.
        assert_eq!(seen(&mut editor, &[Ctrl('c')]), "");
        assert_eq!(seen(&mut editor, &[Up]), "half");
        // Edited in the history, and left there.
        assert_eq!(seen(&mut editor, &[Up, Char('!'), Up, Down]), "second!");
        // Another line is sent.
        let mut editor = with_history(&["first"], "half");
        editor.key(&Up);
        assert_eq!(editor.key(&Key::Enter), Outcome::Submitted("first".into()));
        assert_eq!(editor.text(), "half");
    }

    #[test]
    fn tab_cycles_through_candidates_and_any_other_key_accepts() {
        let find = |candidates: &'static [&str]| {
            move |before: &str| Completion {
                start: before.rfind(' ').map_or(0, |space| space + 1),
                candidates: candidates.iter().map(|text| (*text).into()).collect(),
            }
        };
        let mut editor = typed("to al!");
        editor.key(&Key::Left);
        let three = find(&["alice ", "Al ", "alan "]);
        let unasked = |_: &str| panic!("candidates are found once");
        assert!(editor.complete(false, three));
        assert_eq!(editor.text(), "to alice !");
        assert_eq!(editor.candidates().as_deref(), Some("Al  alan"));
        assert!(editor.complete(false, unasked));
        assert_eq!(editor.text(), "to Al !");
        assert!(editor.complete(true, unasked) && editor.complete(true, unasked));
        assert_eq!(editor.text(), "to alan !");
        editor.key(&Key::Char('x'));
        assert_eq!((editor.text(), editor.candidates()), ("to alan x!", None));
        assert!(!editor.complete(false, find(&[])));
        assert!(editor.complete(true, three));
        assert_eq!(editor.text(), "to alan alan !");
        // A single candidate needs no cycling.
        let mut editor = typed("b");
        assert!(editor.complete(false, find(&["bob: "])) && !editor.complete(false, find(&[])));
        assert_eq!(editor.text(), "bob: ");
    }

    #[test]
    fn up_and_down_recall_submitted_lines() {
        let mut editor = typed("first");
        assert_eq!(editor.key(&Key::Enter), Outcome::Submitted("first".into()));
        assert!(editor.is_empty());
        paste(&mut editor, "second");
        editor.key(&Key::Enter);
        paste(&mut editor, "half");
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
            paste(&mut editor, &n.to_string());
            editor.key(&Key::Enter);
        }
        assert_eq!(editor.history.len(), MAX_HISTORY);
    }

    #[test]
    fn cursor_is_always_visible() {
        let mut editor = typed("a 日本語 👨‍👩‍👧‍👦 and some more of it, e\u{301} ☺️ …");
        loop {
            for columns in 0..40 {
                let (shown, column) = editor.visible(columns);
                assert!(width(shown) <= columns, "{columns}: {shown:?}");
                assert!(column < columns.max(1), "{columns}: {column}");
            }
            if editor.line.cursor == 0 {
                break;
            }
            editor.key(&Key::Left);
        }
        assert_eq!(editor.visible(5), ("a 日", 0));
        assert_eq!(typed("hello").visible(6), ("hello", 5));
        assert_eq!(typed("hello").visible(5), ("lo", 2));
    }
}
