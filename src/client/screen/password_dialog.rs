//! Passwords that are typed unseen, one after another: for a login, a new account and a change.
//!
//! Invariant: nothing of a password is shown, its text is wiped, and every question can be backed out of
//! (MANUAL#the-screen).

use crate::client::error::StartError;
use crate::client::terminal::input::Key;
use crate::crypto::secret::Password;
use std::mem::{replace, take};
use zeroize::Zeroizing;

/// The longest password, in bytes: longer than any in use. Reserved at once, because a growing buffer leaves copies.
const MAX_PASSWORD: usize = 1024;

/// Labels of questions, in order. The one before [`REPEAT`] asks for a new password, all others for an existing one.
pub type Questions = &'static [&'static str];

const REPEAT: &str = "repeat password: ";
/// For a login.
pub const LOG_IN: Questions = &["password: "];
/// For a new account.
pub const REGISTER: Questions = &["new password (hidden, at least 6 characters): ", REPEAT];
/// For a new account with an existing key file.
pub const REGISTER_KEY: Questions = &["password of this key (hidden): "];
/// For a change.
pub const CHANGE: Questions = &["old password (hidden): ", "new password (hidden): ", REPEAT];

/// The effect of a key.
pub enum Step {
    /// The answer may have changed.
    Typed,
    /// The next question, or the same again for this reason.
    Asked(Option<String>),
    /// The user has backed out.
    Left,
    /// Every question is answered.
    Done,
}

/// See the module.
pub struct PasswordDialog {
    questions: Questions,
    answers: Vec<Password>,
    typed: Zeroizing<String>,
}

impl PasswordDialog {
    /// Starts with the first question.
    pub fn new(questions: Questions) -> PasswordDialog {
        PasswordDialog { questions, answers: Vec::with_capacity(questions.len()), typed: empty() }
    }

    /// The label of the present question.
    pub fn label(&self) -> &'static str {
        self.questions.get(self.answers.len()).copied().unwrap_or_default()
    }

    /// The answers, if they are complete.
    pub fn answers(self) -> Option<Vec<Password>> {
        (self.answers.len() == self.questions.len()).then_some(self.answers)
    }

    /// Handles a key.
    pub fn key(&mut self, key: Key) -> Step {
        match key {
            Key::Ctrl('c') => return Step::Left,
            // Not within an answer: on a slow line, an arrow key can begin with what looks like Escape.
            Key::Escape | Key::AltEnter | Key::Ctrl('d') if self.typed.is_empty() => return Step::Left,
            // With Alt right after an Escape that cancelled nothing.
            Key::Char(c) | Key::Alt(c) => self.push(c),
            Key::Paste(text) => Zeroizing::new(text).chars().for_each(|c| self.push(c)),
            Key::Backspace | Key::Ctrl('h') => drop(self.typed.pop()),
            Key::Ctrl('u') => self.typed.clear(),
            Key::Enter => return self.enter(),
            _ => {}
        }
        Step::Typed
    }

    fn push(&mut self, c: char) {
        if !c.is_control() && self.typed.len() + c.len_utf8() <= MAX_PASSWORD {
            self.typed.push(c);
        }
    }

    fn enter(&mut self) -> Step {
        let password = Password::new(take(&mut *replace(&mut self.typed, empty())));
        let is_repeat = |at: usize| self.questions.get(at) == Some(&REPEAT);
        if is_repeat(self.answers.len() + 1) && !password.is_long_enough() {
            return Step::Asked(Some(StartError::ShortPassword.to_string()));
        }
        if is_repeat(self.answers.len()) && self.answers.last() != Some(&password) {
            self.answers.pop();
            return Step::Asked(Some("the two passwords do not match: type the new one again".into()));
        }
        self.answers.push(password);
        if self.answers.len() < self.questions.len() { Step::Asked(None) } else { Step::Done }
    }
}

fn empty() -> Zeroizing<String> {
    Zeroizing::new(String::with_capacity(MAX_PASSWORD))
}
