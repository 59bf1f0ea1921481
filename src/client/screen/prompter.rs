//! Questions on the normal screen, one line each, and passwords that are typed unseen there and on the full one.
//!
//! Invariant: nothing of a password is shown, and its text is wiped; every question can be backed out of; when the
//! last one is answered, the terminal is as it was (README#the-screen).

use crate::client::terminal::editor::{Editor, Outcome};
use crate::client::terminal::input::Key;
use crate::client::terminal::inputs::{Inputs, Taker};
use crate::client::terminal::{enter, restore, rewrite, size, write};
use crate::client::text::{fitting, width, wrap};
use crate::crypto::secret::Password;
use std::io;
use zeroize::Zeroizing;

/// The answers so far to the questions of a change of the password: the old password, then the new one, then that once more.
#[derive(Default)]
pub struct Asking {
    /// The answer being typed.
    pub typed: Unseen,
    /// The old password.
    pub old: Option<Password>,
    /// The new one, until it was typed again.
    pub new: Option<Password>,
}

/// The longest password, in bytes: longer than any; reserved at once, for a buffer that grows
/// leaves copies behind.
const MAX_PASSWORD: usize = 1024;

/// A password being typed.
pub struct Unseen(Zeroizing<String>);

impl Default for Unseen {
    fn default() -> Unseen {
        Unseen(Zeroizing::new(String::with_capacity(MAX_PASSWORD)))
    }
}

impl Unseen {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Does what the key says; the password at Enter, else `None`.
    pub fn key(&mut self, key: Key) -> Option<Password> {
        match key {
            // With Alt where somebody has just pressed Escape, which takes nothing back.
            Key::Char(c) | Key::Alt(c) => self.push(c),
            Key::Paste(text) => Zeroizing::new(text).chars().for_each(|c| self.push(c)),
            Key::Backspace | Key::Ctrl('h') => drop(self.0.pop()),
            Key::Ctrl('u') => self.0.clear(),
            Key::Enter => return Some(Password::new(std::mem::take(&mut *std::mem::take(self).0))),
            _ => {}
        }
        None
    }

    fn push(&mut self, c: char) {
        if !c.is_control() && self.0.len() + c.len_utf8() <= MAX_PASSWORD {
            self.0.push(c);
        }
    }
}

/// Questions on the normal screen, one line each. The terminal is raw throughout, so what is
/// typed between two questions waits for the second, unseen; but Ctrl-C ends the program then, which may be connecting.
pub struct Prompter<'a> {
    inputs: &'a mut Inputs,
}

impl<'a> Prompter<'a> {
    /// Begins; what is typed ahead is left for the screen.
    ///
    /// # Errors
    /// If there is no terminal, or its modes cannot be set.
    pub fn open(inputs: &'a mut Inputs) -> io::Result<Prompter<'a>> {
        enter(false)?;
        Ok(Prompter { inputs })
    }

    /// A line of text (or several) to the person; it must be sanitised already.
    ///
    /// # Errors
    /// If the terminal cannot be written to.
    pub fn println(&mut self, text: &str) -> io::Result<()> {
        let columns = usize::from(size().columns);
        let rows = text.lines().flat_map(|line| wrap(line, columns));
        write(&rows.map(|row| row + "\r\n").collect::<String>())
    }

    /// Asks for a line, which may be empty; `None` if the person backed out with Esc, Ctrl-C or Ctrl-D.
    ///
    /// # Errors
    /// `UnexpectedEof` if the input has ended; or if the terminal cannot be written to.
    pub fn line(&mut self, label: &str) -> io::Result<Option<String>> {
        self.inputs.taken_by(Taker::Question);
        let mut editor = Editor::default();
        let answer = loop {
            let columns = usize::from(size().columns);
            // Whatever the question, there is room for an answer.
            let label = fitting(label, columns.saturating_sub(16));
            let (shown, at) = editor.visible(columns.saturating_sub(width(label) + 1));
            let before = fitting(shown, at);
            rewrite(&format!("{label}{shown}"), &format!("{label}{before}"))?;
            match self.key(editor.is_empty())? {
                None => break None,
                Some(key) => {
                    if let Outcome::Submitted(line) = editor.key(&key) {
                        break Some(line);
                    }
                }
            }
        };
        self.inputs.taken_by(Taker::Nobody);
        write("\r\n")?;
        Ok(answer)
    }

    /// Asks for a password and shows nothing of it; `None` if the person backed out.
    ///
    /// # Errors
    /// As [`line`](Self::line).
    pub fn password(&mut self, label: &str) -> io::Result<Option<Password>> {
        self.inputs.taken_by(Taker::Question);
        write(label)?;
        let mut typed = Unseen::default();
        let answer = loop {
            let Some(key) = self.key(typed.is_empty())? else { break None };
            let password = typed.key(key);
            if password.is_some() {
                break password;
            }
        };
        self.inputs.taken_by(Taker::Nobody);
        write("\r\n")?;
        Ok(answer)
    }

    /// The next key; `None` for those that back out.
    fn key(&mut self, nothing_typed: bool) -> io::Result<Option<Key>> {
        match self.inputs.key() {
            Some(Key::Escape | Key::AltEnter | Key::Ctrl('c')) => Ok(None),
            // Escape, and soon after it what the next question is for.
            Some(Key::Alt(c)) => {
                self.inputs.give_back(Key::Char(c));
                Ok(None)
            }
            Some(Key::Ctrl('d')) if nothing_typed => Ok(None),
            Some(key) => Ok(Some(key)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Drop for Prompter<'_> {
    fn drop(&mut self) {
        restore();
    }
}
