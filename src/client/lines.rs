//! The queue of lines that were typed, or read by plain mode, until the session takes them.
//!
//! Invariant: the session takes the lines in order. Plain mode reads ahead, to see the end of its input, but only a
//! limited number of lines, so a long script does not fill the memory.

use super::command::{Command, is_exit, parse};
use super::session::{Event, NotText, Session};
use super::text::{all_quoted, quoted};
use crate::crypto::envelope::MAX_TEXT;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, TryRecvError};

/// A line, or the reason why it is not text.
pub type Typed = Result<String, NotText>;

/// The most lines that plain mode reads ahead.
const AHEAD: usize = 256;

/// The waiting lines.
#[derive(Default)]
pub struct Lines {
    /// The source of more lines in plain mode.
    input: Option<Receiver<Typed>>,
    waiting: VecDeque<Typed>,
    /// The input has ended.
    have_ended: bool,
    /// The number of lines that the session has taken.
    taken: u64,
}

impl Lines {
    /// The lines of plain mode's input.
    pub fn of(input: Receiver<Typed>) -> Lines {
        Lines { input: Some(input), ..Lines::default() }
    }

    /// Adds a typed line.
    pub fn push(&mut self, line: String) {
        self.waiting.push_back(Ok(line));
    }

    /// The waiting lines, oldest first.
    pub fn waiting(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.waiting.iter().flatten().map(String::as_str)
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn look_ahead(&mut self) {
        let Some(input) = &self.input else { return };
        while !self.have_ended && self.waiting.len() < AHEAD {
            match input.try_recv() {
                Ok(line) => self.waiting.push_back(line),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.have_ended = true,
            }
        }
    }

    /// Whether the waiting lines are the last ones.
    pub fn end(&mut self) -> bool {
        self.look_ahead();
        self.have_ended || self.waiting().any(is_exit)
    }

    /// The next line, or the end of the input, if the session can take it.
    pub fn next(&mut self, session: &Session) -> Option<Event> {
        if session.takes_lines() { self.take(session.is_settled()) } else { None }
    }

    /// The next line. In plain mode, a line with an immediate answer waits for the answers to the lines before it,
    /// which it would overtake. At the end, the session itself waits for them.
    fn take(&mut self, is_settled: bool) -> Option<Event> {
        self.look_ahead();
        let overtakes = |line: &Typed| self.input.is_some() && !is_settled && !is_unanswered(line);
        match self.waiting.front() {
            None if self.have_ended => return Some(Event::EndOfInput),
            Some(line) if overtakes(line) => return None,
            _ => {}
        }
        let line = self.waiting.pop_front()?;
        self.taken += 1;
        Some(line.map_or_else(Event::NotText, Event::Line))
    }

    /// The report of lines that were never sent, if there are any.
    pub fn unsent(mut self) -> Option<String> {
        self.look_ahead();
        if self.input.is_some() {
            let next = self.waiting.pop_front().filter(|line| !line.as_deref().is_ok_and(is_exit))?;
            let line = next.map_or(String::new(), |line| format!(" ({})", quoted(&line)));
            return Some(format!(
                "line {} of the input{line} and any after it were not sent",
                self.taken + 1
            ));
        }
        let unsent: Vec<&str> = self.waiting().filter(|line| !is_exit(line)).collect();
        let what = match unsent.len() {
            0 => return None,
            1 => "1 line that you had typed was".into(),
            count => format!("{count} lines that you had typed were"),
        };
        Some(format!("{what} not sent: {}", all_quoted(unsent.into_iter())))
    }
}

/// Whether a line has no immediate answer: the server's answer follows, or none.
fn is_unanswered(line: &Typed) -> bool {
    let Ok(line) = line else { return false };
    line.len() <= MAX_TEXT && matches!(parse(line), Ok(Command::Say(_) | Command::Nothing | Command::Exit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn end_of_input_is_seen_behind_waiting_lines() {
        let (input, typed) = sync_channel(16);
        let mut lines = Lines::of(typed);
        let say = |line: &str| input.send(Ok(line.into())).expect("read");
        say("/msg bob one");
        say("two");
        assert!(lines.take(false).is_none(), "it waits for the answers to earlier lines");
        assert!(!lines.end());
        say("/exit");
        assert!(lines.end());
        for expected in ["/msg bob one", "two", "/exit"] {
            assert!(matches!(lines.take(true), Some(Event::Line(line)) if line == expected));
        }
        say("/msg bob three");
        drop(input);
        assert!(lines.end());
        let report = lines.unsent().expect("one was not sent");
        assert_eq!(report, "line 4 of the input (\"/msg bob three\") and any after it were not sent");
    }
}
