//! What keys do on the full screen: lines, those that wait for the session, and the question for a new password.
//!
//! Invariant: a line goes where the screen said when it was typed; what is typed as a password is never a line, and
//! never shown (README#the-screen).

use super::{Front, notice};
use crate::client::command::{self, Command, View, is_exit};
use crate::client::completion::complete;
use crate::client::editor::{MAX_LINE, Outcome};
use crate::client::error::StartError;
use crate::client::input::{Key, Keys, Pastes};
use crate::client::path;
use crate::client::prompter::Unseen;
use crate::client::session::Event;
use crate::client::terminal;
use crate::client::text::all_quoted;
use crate::crypto::secret::Password;
use crate::name::Username;
use crate::protocol::ClientMessage;
use std::io;
use std::time::{Duration, Instant};

/// Lines typed ahead of the server: a person sees long before that nothing goes out.
const MAX_AHEAD: usize = 100;
/// After Escape, a digit within this time is Alt and the digit: for keyboards without Alt.
const DIGIT_WAIT: Duration = Duration::from_secs(1);
/// Rows that one step of the mouse wheel scrolls.
const WHEEL: usize = 3;

/// What was answered so far: the old password, then the new one, then that once more.
#[derive(Default)]
pub struct Asking {
    pub typed: Unseen,
    pub old: Option<Password>,
    pub new: Option<Password>,
}

impl Front {
    fn scroll(&mut self, change: impl FnOnce(usize) -> usize) {
        let view = self.conversations.current_mut();
        view.scroll = change(view.scroll);
    }

    /// Does what the keys of one read say; the exit status if one was the last.
    pub fn keys(&mut self, keys: Keys) -> io::Result<Option<u8>> {
        // Answers that were typed ahead are no paste, and are not shown.
        let is_question = || {
            let typed = keys.iter().map_while(|key| if let Key::Char(c) = key { Some(*c) } else { None });
            let line: String = self.conversations.current().editor.text().chars().chain(typed).collect();
            matches!(command::parse(&line), Ok(Command::Password(None)))
        };
        let asks = self.asking.is_some() || !self.pastes.go_on() && is_question();
        let mut keys = if asks { keys } else { self.pastes.join(keys) };
        for key in keys.drain(..) {
            if let Some(status) = self.key(key)? {
                return Ok(Some(status));
            }
        }
        Ok(None)
    }

    /// Does what a key says; the exit status if it was the last.
    pub fn key(&mut self, key: Key) -> io::Result<Option<u8>> {
        let escaped = self.escaped.take().is_some_and(|escaped| escaped.elapsed() < DIGIT_WAIT);
        self.escaped = (key == Key::Escape).then(Instant::now);
        let page = usize::from(terminal::size().rows).saturating_sub(3).max(1);
        match key {
            Key::FocusIn => self.conversations.away = false,
            Key::FocusOut => self.conversations.away = true,
            Key::Ctrl('l') => self.painter.redraw(),
            Key::Ctrl('z') => self.suspend(),
            Key::Position(row, column) if terminal::has_measured(row, column) => {
                let entries = self.conversations.all().iter().flat_map(|view| &view.entries);
                entries.for_each(|entry| entry.wrapped.set((0, 0)));
                self.painter.redraw();
            }
            Key::PageUp => self.scroll(|rows| rows.saturating_add(page)),
            Key::PageDown => self.scroll(|rows| rows.saturating_sub(page)),
            Key::WheelUp => self.scroll(|rows| rows.saturating_add(WHEEL)),
            Key::WheelDown => self.scroll(|rows| rows.saturating_sub(WHEEL)),
            key if self.asking.is_some() => return self.answer(key),
            Key::Alt(digit @ '1'..='9') => return self.switch(digit as usize - '1' as usize),
            Key::Char(digit @ '1'..='9') if escaped => return self.switch(digit as usize - '1' as usize),
            Key::AltLeft | Key::AltRight => {
                let (at, count) = (self.conversations.index(), self.conversations.all().len());
                return self.switch((at + if key == Key::AltLeft { count - 1 } else { 1 }) % count);
            }
            Key::Alt('r') if self.is_prompt() => {
                match self.conversations.take_failed(|number| self.session.is_at_hand(number)) {
                    Some(number) => return self.handle(Event::Again(number)),
                    None => self.painter.bell(),
                }
            }
            key => return self.edit(key),
        }
        Ok(None)
    }

    /// Whether a line would be taken now.
    fn is_prompt(&self) -> bool {
        !self.over && self.ahead.is_empty() && self.session.takes_lines()
    }

    /// Goes to another view, unless lines wait: what is typed must go where the screen says.
    fn switch(&mut self, to: usize) -> io::Result<Option<u8>> {
        match self.conversations.all().get(to) {
            Some(view) if self.ahead.is_empty() || self.over => {
                let with = view.with.clone();
                self.handle(Event::Switch(with))
            }
            _ => {
                self.painter.bell();
                Ok(None)
            }
        }
    }

    /// Takes a key that is meant for the line.
    fn edit(&mut self, key: Key) -> io::Result<Option<u8>> {
        let waiting = self.ahead.len();
        let view = self.conversations.current_mut();
        let is_cut =
            matches!(&key, Key::Paste(text) if view.editor.text().len() + text.trim_end().len() > MAX_LINE);
        match key {
            Key::Ctrl('c' | 'd') if view.editor.is_empty() => return self.enter("/exit".into()),
            // The line stays where it is.
            Key::Enter if waiting >= MAX_AHEAD && !is_exit(view.editor.text()) => self.painter.bell(),
            Key::Tab | Key::BackTab => {
                let people = self.session.people().map(Username::as_str);
                let find = |before: &str| complete(before, people, path::completions);
                if !view.editor.complete(key == Key::BackTab, find) {
                    self.painter.bell();
                }
            }
            // On an empty line there is nothing to edit: it was Escape, and soon after it the first letter of another line.
            Key::Alt(c) if c.is_ascii_alphabetic() && view.editor.is_empty() => return self.after_escape(c),
            key => match view.editor.key(&key) {
                Outcome::Submitted(line) => {
                    view.scroll = 0;
                    self.pastes = Pastes::default();
                    // At once, whatever waits: what is typed next must never become a message.
                    if !self.over && matches!(command::parse(&line), Ok(Command::Password(None))) {
                        self.asking = Some(Asking::default());
                        return Ok(None);
                    }
                    return self.enter(line);
                }
                Outcome::Ignored if key == Key::Escape => view.scroll = 0,
                Outcome::Ignored => {
                    if let Key::Alt(c) = key {
                        return self.after_escape(c);
                    }
                }
                Outcome::Edited if is_cut => {
                    self.show(notice("a line has at most 32 KiB: the end of the paste was cut off".into()));
                }
                Outcome::Edited => {}
            },
        }
        Ok(None)
    }

    /// Esc and then a character, which a slow line or a fast person has put together: a slash must not be lost, or a
    /// command becomes a message.
    fn after_escape(&mut self, c: char) -> io::Result<Option<u8>> {
        let end = self.edit(Key::Escape)?;
        if end.is_some() { Ok(end) } else { self.edit(Key::Char(c)) }
    }

    /// Takes a key of an answer to the question for passwords.
    fn answer(&mut self, key: Key) -> io::Result<Option<u8>> {
        let Some(asking) = &mut self.asking else { return Ok(None) };
        let leaves = match key {
            Key::Ctrl('c') => true,
            // Not in the middle: on a slow line, an arrow key can begin with what looks like Esc.
            Key::Escape | Key::AltEnter | Key::Ctrl('d') => asking.typed.is_empty(),
            _ => false,
        };
        if leaves {
            self.asking = None;
            self.show(notice("your password was not changed".into()));
            return Ok(None);
        }
        let Some(password) = asking.typed.key(key) else { return Ok(None) };
        let problem = match (&asking.old, &asking.new) {
            (None, _) => {
                asking.old = Some(password);
                return Ok(None);
            }
            (Some(_), None) if password.is_long_enough() => {
                asking.new = Some(password);
                return Ok(None);
            }
            (Some(_), None) => StartError::ShortPassword.to_string(),
            (Some(_), Some(new)) if *new == password => {
                let end = self.handle(Event::Line("/passwd".into()));
                self.asking = None;
                return end;
            }
            (Some(_), Some(_)) => {
                asking.new = None;
                "the two passwords do not match: type the new one again".into()
            }
        };
        self.show(notice(problem));
        Ok(None)
    }

    /// Takes a typed line: now if the session can, in turn otherwise. The first command to leave waits for what was typed and sent
    /// before it; the second does not.
    fn enter(&mut self, line: String) -> io::Result<Option<u8>> {
        if self.over {
            if is_exit(&line) {
                return Ok(Some(1));
            }
            self.show(notice("not sent: the session is over; Ctrl-C leaves".into()));
            return Ok(None);
        }
        if is_exit(&line) {
            if self.session.is_leaving() || self.ahead.iter().any(|line| is_exit(line)) {
                return Ok(Some(self.abandon()));
            }
            // The session takes this one at any time.
            if self.ahead.is_empty() {
                return self.handle(Event::Line(line));
            }
        }
        self.ahead.push_back(line);
        self.type_ahead()
    }

    /// Leaves without waiting: the exit status, and what nobody has acknowledged as the last word.
    pub fn abandon(&mut self) -> u8 {
        // Or one would seem to be there for a minute more.
        let _ = self.work.send(&ClientMessage::Logout);
        self.abandoned = true;
        self.problem = self.session.last_words();
        u8::from(!self.problem.is_empty())
    }

    /// Hands on the lines that wait, as far as the session takes them; the exit status if one was the last.
    pub fn type_ahead(&mut self) -> io::Result<Option<u8>> {
        while self.session.takes_lines()
            && let Some(line) = self.ahead.pop_front()
        {
            if let Some(status) = self.handle(Event::Line(line))? {
                return Ok(Some(status));
            }
        }
        Ok(None)
    }

    /// What is to be said of lines that never came to be sent, if there are any.
    pub fn unsent(&self) -> Option<String> {
        let lines = self.ahead.iter().filter(|line| !is_exit(line)).map(String::as_str);
        let what = match lines.clone().count() {
            0 => return None,
            1 => "1 line that you had typed was".into(),
            count => format!("{count} lines that you had typed were"),
        };
        Some(format!("{what} not sent: {}", all_quoted(lines)))
    }

    /// What stands before the line: what is asked for, or where the line will go.
    pub fn prompt(&self) -> String {
        match &self.asking {
            None => self.destination().map_or("> ".into(), |name| format!("{name}> ")),
            Some(Asking { old: None, .. }) => "old password (hidden): ".into(),
            Some(Asking { new: None, .. }) => "new password (hidden): ".into(),
            Some(_) => "repeat password: ".into(),
        }
    }

    /// Where the lines that wait lead: what is typed behind them goes there.
    fn destination(&self) -> Option<Username> {
        let leads = |line: &String| match command::parse(line) {
            Ok(Command::Room(Some(name))) => Some(Some(name)),
            Ok(Command::Leave | Command::View(View::Everyone)) => Some(None),
            Ok(Command::View(View::With(name))) => Some(Some(name)),
            Ok(Command::View(View::Number(number))) => {
                self.conversations.all().get(number.wrapping_sub(1)).map(|view| view.with.clone())
            }
            _ => None,
        };
        self.ahead.iter().rev().find_map(leads).unwrap_or_else(|| self.session.partner().cloned())
    }
}
