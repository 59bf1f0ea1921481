//! One line of the conversation, as every front end shows it.
//!
//! Invariant: names are valid and texts are already sanitised (see [`super::text`]); where an
//! entry belongs was decided from what its sender signed and nothing else.

use crate::name::Username;
use std::cell::Cell;

/// Where an entry comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// From one person to everyone on-line.
    Broadcast { from: Username },
    /// From one person to another, outside a room.
    Private { from: Username, to: Username },
    /// From one person to another, in the room of the two.
    Room { from: Username, to: Username },
    /// The program tells something: who came, answers to commands.
    Notice,
    /// Something is wrong, and what to do.
    Problem,
    /// A line across the screen: another day, or where reading stopped.
    Rule,
}

impl Source {
    /// Who says it, if a person does.
    pub fn from(&self) -> Option<&Username> {
        match self {
            Source::Broadcast { from } | Source::Private { from, .. } | Source::Room { from, .. } => {
                Some(from)
            }
            Source::Notice | Source::Problem | Source::Rule => None,
        }
    }
}

/// One entry of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When it was shown here, milliseconds since 1970.
    pub time: u64,
    pub source: Source,
    /// Sanitised; line breaks only in what somebody has said.
    pub text: String,
    /// Whether the reader is mentioned in it (by somebody else).
    pub mention: bool,
    /// The columns that it was last wrapped for, and the rows that it took: so that scrolling up through
    /// much costs little.
    pub wrapped: Cell<(usize, usize)>,
}

impl Entry {
    /// `text` is sanitised.
    pub fn new(time: u64, source: Source, text: String, mention: bool) -> Entry {
        Entry { time, source, text, mention, wrapped: Cell::default() }
    }

    /// The entry as one line of text, as the line filter prints it.
    pub fn line(&self) -> String {
        let text = self.text.replace('\n', "⏎");
        match &self.source {
            Source::Broadcast { from } => format!("<{from}> {text}"),
            Source::Private { from, to } | Source::Room { from, to } => {
                format!("<{from} -> {to}> {text}")
            }
            Source::Notice | Source::Rule => format!("* {text}"),
            Source::Problem => format!("! {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_a_line_it_is_one_line() {
        let entry = Entry::new(0, Source::Notice, "one\n* two\n".into(), false);
        assert_eq!(entry.line(), "* one⏎* two⏎");
    }
}
