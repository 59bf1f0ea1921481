//! The keys of the full screen: lines, those that wait for the session, and the dialog for a new password.
//!
//! Invariant: a line goes where the screen said when it was typed; a password is never sent as a line, and never shown
//! (MANUAL#the-screen).

use super::Screen;
use super::password_dialog::{CHANGE, PasswordDialog, Step};
use crate::client::command::{self, Command, is_exit};
use crate::client::completion::complete;
use crate::client::session::{Destination, Event, Exit};
use crate::client::terminal;
use crate::client::terminal::editor::{MAX_LINE, Outcome};
use crate::client::terminal::full_screen::has_measured;
use crate::client::terminal::input::{Key, Keys, Pastes};
use crate::client::{compose, path};
use crate::name::Username;
use std::io;
use std::time::{Duration, Instant};

/// The most lines typed ahead of the server: the user sees long before that none is sent.
const MAX_AHEAD: usize = 100;
/// After Escape that had no other effect, a digit within this time is Alt and the digit: for keyboards without Alt.
const DIGIT_WAIT: Duration = Duration::from_secs(1);
/// Rows that one step of the mouse wheel scrolls.
const WHEEL: usize = 3;

impl Screen {
    fn scroll(&mut self, change: impl FnOnce(usize) -> usize) {
        let view = self.views.conversations.current_mut();
        view.scroll = change(view.scroll);
    }

    /// Handles the keys of one read; returns how the client ends, if it does.
    pub fn keys(&mut self, keys: Keys) -> Option<Exit> {
        // Answers typed ahead are not a paste, and not shown.
        let is_question = || {
            let typed = keys.iter().map_while(|key| if let Key::Char(c) = key { Some(*c) } else { None });
            let line: String =
                self.views.conversations.current().editor.text().chars().chain(typed).collect();
            matches!(command::parse(&line), Ok(Command::Password(None)))
        };
        let asks = self.views.asking.is_some() || !self.pastes.may_continue() && is_question();
        let mut keys = if asks { keys } else { self.pastes.join(keys) };
        keys.drain(..).find_map(|key| self.key(key))
    }

    /// Handles a key.
    fn key(&mut self, key: Key) -> Option<Exit> {
        let escaped = self.escaped.take().is_some_and(|escaped| escaped.elapsed() < DIGIT_WAIT);
        let view = self.views.conversations.current();
        let is_idle = self.views.asking.is_none() && view.scroll == 0 && view.editor.is_empty();
        self.escaped = (key == Key::Escape && is_idle).then(Instant::now);
        let page = usize::from(terminal::size().rows).saturating_sub(3).max(1);
        match key {
            Key::Ctrl('c' | 'd') if self.over.is_some() => return self.enter("/exit".into()),
            Key::FocusIn => self.views.conversations.away = false,
            Key::FocusOut => self.views.conversations.away = true,
            Key::Ctrl('l') => self.views.screen.want(|wanted| wanted.redraw = true),
            Key::Ctrl('z') => self.views.suspend(),
            Key::Position(row, column) if has_measured(row, column) => {
                let entries = self.views.conversations.all().iter().flat_map(|view| &view.entries);
                entries.for_each(|entry| entry.wrapped.set((0, 0)));
                self.views.screen.want(|wanted| wanted.redraw = true);
            }
            Key::PageUp => self.scroll(|rows| rows.saturating_add(page)),
            Key::PageDown => self.scroll(|rows| rows.saturating_sub(page)),
            Key::WheelUp => self.scroll(|rows| rows.saturating_add(WHEEL)),
            Key::WheelDown => self.scroll(|rows| rows.saturating_sub(WHEEL)),
            key if self.views.asking.is_some() => return self.answer(key),
            Key::Alt(digit @ '1'..='9') => return self.switch(digit as usize - '1' as usize),
            Key::Char(digit @ '1'..='9') if escaped => return self.switch(digit as usize - '1' as usize),
            Key::AltLeft | Key::AltRight => {
                let (at, count) = (self.views.conversations.index(), self.views.conversations.all().len());
                return self.switch((at + if key == Key::AltLeft { count - 1 } else { 1 }) % count);
            }
            Key::Alt('r') => {
                let takes = self.is_prompt();
                let can_resend = |number| takes && self.session.can_resend(number);
                match self.views.conversations.take_failed(can_resend) {
                    Some(number) => return self.drive(Event::Resend(number)),
                    None => self.views.bell(),
                }
            }
            key => return self.edit(key),
        }
        None
    }

    /// Whether the session would take a line now.
    fn is_prompt(&self) -> bool {
        self.over.is_none() && self.lines.is_empty() && self.session.takes_lines()
    }

    /// Goes to another view, unless lines wait: what is typed must go where the screen says.
    fn switch(&mut self, to: usize) -> Option<Exit> {
        match self.views.conversations.all().get(to) {
            Some(view) if self.lines.is_empty() || self.over.is_some() => {
                let with = view.with.clone();
                self.drive(Event::Switch(with))
            }
            _ => {
                self.views.bell();
                None
            }
        }
    }

    /// Handles a key for the line.
    fn edit(&mut self, key: Key) -> Option<Exit> {
        let waiting = self.lines.waiting().count();
        let view = self.views.conversations.current_mut();
        let is_cut =
            matches!(&key, Key::Paste(text) if view.editor.text().len() + text.trim_end().len() > MAX_LINE);
        match key {
            Key::Ctrl('c' | 'd') if view.editor.is_empty() => return self.enter("/exit".into()),
            // The line stays where it is.
            Key::Enter if waiting >= MAX_AHEAD && !is_exit(view.editor.text()) => self.views.bell(),
            Key::Tab | Key::BackTab => {
                let people = self.session.people().map(Username::as_str);
                let find = |before: &str| complete(before, people, path::quick_completions);
                if !view.editor.complete(key == Key::BackTab, find) {
                    self.views.bell();
                }
            }
            // On an empty line, it was Escape and soon after it the first letter of another line.
            Key::Alt(c) if c.is_ascii_alphabetic() && view.editor.is_empty() => return self.after_escape(c),
            key => match view.editor.key(&key) {
                Outcome::Submitted(line) => {
                    view.scroll = 0;
                    self.pastes = Pastes::default();
                    match command::parse(&line) {
                        // At once, even if lines wait: the next line is a password and must never become a message.
                        Ok(Command::Password(None)) if self.over.is_none() => {
                            self.views.asking = Some(PasswordDialog::new(CHANGE));
                        }
                        Ok(Command::Edit(start)) if self.over.is_none() => self.compose(start),
                        _ => return self.enter(line),
                    }
                }
                Outcome::Ignored if key == Key::Escape => view.scroll = 0,
                Outcome::Ignored => {
                    if let Key::Alt(c) = key {
                        return self.after_escape(c);
                    }
                }
                Outcome::Edited if is_cut => {
                    self.views.notice("a line has at most 32 KiB: the end of the paste was cut off".into());
                }
                Outcome::Edited => {}
            },
        }
        None
    }

    /// Gives the terminal to the user's editor. The session continues meanwhile.
    fn compose(&mut self, start: String) {
        let editor = match compose::editor() {
            _ if self.session.is_leaving() => return self.views.bell(),
            Ok(editor) => editor,
            Err(why) => return self.views.notice(why),
        };
        let (data, done) = (self.options.data_dir.clone(), self.composed.0.clone());
        let program = move |lent: io::Result<()>| {
            let lent = lent.map_err(|error| format!("the editor was not started: {error}"));
            done(lent.and_then(|()| compose::compose(&data, &editor, &start)));
        };
        self.views.screen.want(|wanted| wanted.program = Some(Box::new(program)));
    }

    /// Puts the text from the user's editor into the line: the user sees where it will go, and sends it.
    pub fn take_composed(&mut self) {
        let Ok(composed) = self.composed.1.try_recv() else { return };
        match composed {
            // Not as one paste, which the user would have to confirm.
            Ok(text) => text.split('\n').enumerate().for_each(|(number, line)| {
                let _ = (number > 0).then(|| self.edit(Key::AltEnter));
                self.edit(Key::Paste(line.into()));
            }),
            Err(why) => self.views.notice(format!("{why}; nothing was sent")),
        }
    }

    /// Handles Escape and then a character, which arrived together: a slash must not be lost, or a command becomes a
    /// message.
    fn after_escape(&mut self, c: char) -> Option<Exit> {
        self.edit(Key::Escape).or_else(|| self.edit(Key::Char(c)))
    }

    /// Handles a key for the password dialog.
    fn answer(&mut self, key: Key) -> Option<Exit> {
        let problem = match self.views.asking.as_mut()?.key(key) {
            Step::Typed => None,
            Step::Asked(problem) => problem,
            Step::Left => {
                self.views.asking = None;
                Some("your password was not changed".into())
            }
            Step::Done => {
                let exit = self.drive(Event::Line("/passwd".into()));
                self.views.asking = None;
                return exit;
            }
        };
        problem.into_iter().for_each(|problem| self.views.notice(problem));
        None
    }

    /// Handles a line: now if the session takes it, in turn otherwise. The first command to leave waits for the lines
    /// before it; the second does not.
    fn enter(&mut self, line: String) -> Option<Exit> {
        let leaves = is_exit(&line);
        if self.over.is_some() && !leaves {
            self.views.notice("not sent: the session is over; Ctrl-C leaves".into());
            return None;
        }
        // Nothing keeps unread messages after the end. MANUAL#leaving.
        if leaves
            && self.lines.is_empty()
            && !self.session.is_leaving()
            && let Some((with, count)) = self.views.conversations.unread()
        {
            let exit = self.drive(Event::Switch(Some(with)));
            let them = match count {
                1 => "is an unread message".into(),
                _ => format!("are {count} unread messages"),
            };
            let next = if self.views.conversations.unread().is_some() { "shows the next" } else { "leaves" };
            self.views.notice(format!("here {them}; /exit again {next}"));
            return exit;
        }
        if leaves && (self.over.is_some() || self.session.is_leaving() || self.lines.waiting().any(is_exit)) {
            return Some(self.leave_now());
        }
        // The session takes this one at any time.
        if leaves && self.lines.is_empty() {
            return self.drive(Event::Line(line));
        }
        self.lines.push(line);
        self.take_lines()
    }

    /// The prompt: the question for a password, or where the line will go.
    pub fn prompt(&self) -> String {
        let destination = || match self.destination() {
            Destination::Everyone => "> ".into(),
            Destination::With(with) => format!("{with}> "),
            Destination::Nowhere => "(nobody)> ".into(),
        };
        self.views.asking.as_ref().map_or_else(destination, |asking| asking.label().into())
    }

    /// Where the waiting lines lead: a line typed after them goes there.
    fn destination(&self) -> Destination {
        let view = |number: usize| {
            let view = self.views.conversations.all().get(number.wrapping_sub(1));
            view.map_or(Destination::Nowhere, |view| view.with.clone().into())
        };
        let leads = |line: &str| Destination::after(line, &command::parse(line), view);
        let last = self.lines.waiting().rev().find_map(leads);
        last.unwrap_or_else(|| self.session.destination().clone())
    }
}
