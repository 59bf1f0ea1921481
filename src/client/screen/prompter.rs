//! Questions on the normal screen, one line each.
//!
//! Invariant: every question can be backed out of; when the last one is answered, the terminal is as it was
//! (MANUAL#the-screen).

use super::password_dialog::{PasswordDialog, Questions, Step};
use crate::client::terminal::editor::{Editor, Outcome};
use crate::client::terminal::input::Key;
use crate::client::terminal::inputs::{Inputs, Taker};
use crate::client::terminal::{enter, restore, rewrite, size, write};
use crate::client::text::{fitting, width, wrap};
use crate::crypto::secret::Password;
use std::io;

/// See the module. The terminal is raw throughout, so nothing that is typed is shown but the answer to a question. Keys
/// typed before the first question, or while the client is [`busy`](Self::busy), are dropped.
pub struct Prompter<'a> {
    inputs: &'a mut Inputs,
}

impl<'a> Prompter<'a> {
    /// Takes the terminal.
    ///
    /// # Errors
    /// If there is no terminal, or its modes cannot be set.
    pub fn open(inputs: &'a mut Inputs) -> io::Result<Prompter<'a>> {
        enter(false)?;
        Ok(Prompter { inputs })
    }

    /// Prints sanitised text of one or more lines.
    ///
    /// # Errors
    /// If the terminal cannot be written to.
    pub fn println(&mut self, text: &str) -> io::Result<()> {
        let columns = usize::from(size().columns);
        let rows = text.lines().flat_map(|line| wrap(line, columns));
        write(&rows.map(|row| row + "\r\n").collect::<String>())
    }

    /// Drops what is typed until the next question, which the user has not seen yet. Ctrl-C ends the client.
    pub fn busy(&mut self) {
        self.inputs.taken_by(Taker::Nobody);
    }

    /// Asks for a line, which may be empty; `None` if the user backed out with Esc, Ctrl-C or Ctrl-D.
    ///
    /// # Errors
    /// `UnexpectedEof` if the input has ended; or if the terminal cannot be written to.
    pub fn line(&mut self, label: &str) -> io::Result<Option<String>> {
        self.inputs.taken_by(Taker::Question);
        let mut editor = Editor::default();
        let answer = loop {
            let columns = usize::from(size().columns);
            // A long question leaves room for an answer.
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
        write("\r\n")?;
        Ok(answer)
    }

    /// Asks these questions, shows no answer, and returns the last one; `None` if the user backed out.
    ///
    /// # Errors
    /// As [`line`](Self::line).
    pub fn password(&mut self, questions: Questions) -> io::Result<Option<Password>> {
        self.inputs.taken_by(Taker::Question);
        let mut dialog = PasswordDialog::new(questions);
        write(dialog.label())?;
        loop {
            let key = self.inputs.key().ok_or(io::ErrorKind::UnexpectedEof)?;
            match dialog.key(key) {
                Step::Typed => {}
                Step::Asked(problem) => {
                    write("\r\n")?;
                    self.println(&problem.unwrap_or_default())?;
                    write(dialog.label())?;
                }
                Step::Left | Step::Done => break,
            }
        }
        write("\r\n")?;
        Ok(dialog.answers().and_then(|mut answers| answers.pop()))
    }

    /// The next key; `None` if it backs out.
    fn key(&mut self, nothing_typed: bool) -> io::Result<Option<Key>> {
        match self.inputs.key() {
            Some(Key::Escape | Key::AltEnter | Key::Ctrl('c')) => Ok(None),
            // Escape, and soon after it an answer to the next question.
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
