//! One line of the conversation, as every front end shows it.
//!
//! Invariant: names are valid and texts are already sanitised (see [`super::text`]); where an
//! entry belongs was decided from what its sender signed and nothing else.

use super::audience::Audience;
use super::text::quoted;
use super::trust::Trust;
use crate::name::Username;
use std::cell::Cell;

/// The view in which something is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The conversation of all online users.
    Everyone,
    /// The conversation with one person.
    With(Username),
    /// With everyone, and in the conversation with this person if there is one: who comes and goes.
    About(Username),
    /// Where the person at the keyboard is.
    Here,
}

/// What became of an own message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendState {
    /// The server has not said yet what became of it.
    UnderWay,
    /// By the server, for at least one recipient.
    Taken,
    /// Nobody got it, and why.
    Failed(String),
}

/// Where an entry comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A message.
    User {
        /// Its author.
        from: Username,
        /// Its recipients.
        to: Audience,
    },
    /// The program tells something: who came, answers to commands.
    Notice,
    /// Something that was said before, as a line, with the time of then.
    Recalled,
    /// Something is wrong, and what to do.
    Problem,
    /// The digits to compare.
    SafetyNumber,
    /// A line across the screen: another day, or where reading stopped.
    Rule,
}

impl Source {
    /// Who says it; `None` if no person does.
    pub fn from(&self) -> Option<&Username> {
        match self {
            Source::User { from, .. } => Some(from),
            Source::Notice | Source::Recalled | Source::Problem | Source::SafetyNumber | Source::Rule => None,
        }
    }

    /// Where a message belongs that `me` has sent or received; anything else is shown to `me` at once.
    pub fn place(&self, me: &Username) -> Place {
        match self {
            Source::User { from, to } => match to.recipient() {
                Some(to) => Place::With(if from == me { to } else { from }.clone()),
                None => Place::Everyone,
            },
            _ => Place::Here,
        }
    }
}

/// One entry of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When it was shown here, milliseconds since 1970.
    pub time: u64,
    /// Whose word it is: the view frames it by this and nothing else.
    pub source: Source,
    /// Where it is shown.
    pub place: Place,
    /// Sanitised; line breaks only in what somebody has said.
    pub text: String,
    /// Whether the reader is mentioned in it (by somebody else).
    pub mention: bool,
    /// How well the other person's key was known when this was checked, or sent; `None` if no key was.
    pub trust: Option<Trust>,
    /// The number of an own message, and what has become of it; `None` for anything else.
    pub sending: Option<(u64, SendState)>,
    /// The columns that it was last wrapped for, and the rows that it took: so that scrolling up through
    /// much costs little.
    pub wrapped: Cell<(usize, usize)>,
}

impl Entry {
    /// `text` is sanitised, `time` in milliseconds since 1970.
    pub fn new(time: u64, source: Source, place: Place, text: String) -> Entry {
        let wrapped = Cell::default();
        Entry { time, source, place, text, mention: false, trust: None, sending: None, wrapped }
    }

    /// The entry as one line of text, as the line filter prints it: a message that failed is a problem, whose reason names
    /// it or is followed by its beginning.
    pub fn line(&self) -> String {
        if let Some((_, SendState::Failed(why))) = &self.sending {
            let text = quoted(&self.text);
            return if why.contains(&text) { format!("! {why}") } else { format!("! {why} ({text})") };
        }
        let text = self.text.replace('\n', "⏎");
        match &self.source {
            Source::User { from, to } => match to.recipient() {
                Some(to) => format!("<{from} -> {to}> {text}"),
                None => format!("<{from}> {text}"),
            },
            Source::Notice | Source::Recalled | Source::SafetyNumber | Source::Rule => format!("* {text}"),
            Source::Problem => format!("! {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_a_line_it_is_one_line() {
        let entry = Entry::new(0, Source::Notice, Place::Here, "one\n* two\n".into());
        assert_eq!(entry.line(), "* one⏎* two⏎");
    }
}
