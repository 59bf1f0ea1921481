//! One entry of a conversation, as every front end shows it.
//!
//! Invariant: names are valid and texts are already sanitised (see [`super::text`]); only what the sender signed
//! decides where an entry belongs.

use super::audience::{Audience, Partners};
use super::store::trust::Trust;
use super::text::quoted;
use crate::clock::date_minute;
use crate::name::Username;
use std::cell::Cell;

/// The view in which something is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The conversation of all online users.
    Everyone,
    /// The conversation with these users.
    With(Partners),
    /// The conversation of everyone, and those with this user: for joins and departures.
    About(Username),
    /// The view that is on the screen now.
    Here,
}

/// The state of an own message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendState {
    /// The server has not answered yet.
    InFlight,
    /// The server has accepted it for all recipients; a broadcast, for at least one.
    Taken,
    /// The server has accepted it for all recipients, and keeps it for these, who are absent. MANUAL#absent-users.
    Kept(String),
    /// The server has accepted it for some members of the room only: how many, and why not for others.
    Partly(String),
    /// Nobody received it, for this reason.
    Failed(String),
}

impl SendState {
    /// Why some or all recipients did not receive it; `None` if all did, or may still.
    pub fn problem(&self) -> Option<&str> {
        match self {
            SendState::InFlight | SendState::Taken | SendState::Kept(_) => None,
            SendState::Partly(why) | SendState::Failed(why) => Some(why),
        }
    }
}

/// The source of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A message.
    User {
        /// Its author.
        from: Username,
        /// Its recipients.
        to: Audience,
    },
    /// A notice of the client: joins, answers to commands.
    Notice,
    /// A message from the history, as one line, with its original time.
    Recalled,
    /// A problem, and what to do.
    Problem,
    /// The digits of a safety number.
    SafetyNumber,
    /// A rule across the screen: a new day, or where reading stopped.
    Rule,
}

impl Source {
    /// The author; `None` if it is not a message.
    pub fn from(&self) -> Option<&Username> {
        match self {
            Source::User { from, .. } => Some(from),
            Source::Notice | Source::Recalled | Source::Problem | Source::SafetyNumber | Source::Rule => None,
        }
    }

    /// The view of a message that `me` has sent or received; anything else belongs to the view that is shown.
    pub fn place(&self, me: &Username) -> Place {
        match self {
            Source::User { from, to } => to.partners(from, me).map_or(Place::Everyone, Place::With),
            _ => Place::Here,
        }
    }
}

/// One entry of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When it was first shown here, in milliseconds since 1970.
    pub time: u64,
    /// Its source, which alone decides how the view frames it.
    pub source: Source,
    /// The view to show it in.
    pub place: Place,
    /// Sanitised; only messages have line breaks.
    pub text: String,
    /// Whether another user mentions the reader in it.
    pub mention: bool,
    /// The trust in the partner's key when this was checked or sent; `None` without a key.
    pub trust: Option<Trust>,
    /// The number and the state of an own message; `None` for anything else.
    pub sending: Option<(u64, SendState)>,
    /// Whether it was shown before as accepted, so that only its state has changed.
    pub is_update: bool,
    /// The columns that it was last wrapped for, and the rows that it took: a cache that makes scrolling cheap.
    pub wrapped: Cell<(usize, usize)>,
}

impl Entry {
    /// A new entry. `text` is sanitised, `time` is in milliseconds since 1970.
    pub fn new(time: u64, source: Source, place: Place, text: String) -> Entry {
        let wrapped = Cell::default();
        let (mention, trust, sending, is_update) = (false, None, None, false);
        Entry { time, source, place, text, mention, trust, sending, is_update, wrapped }
    }

    /// The number of an own message.
    pub fn number(&self) -> Option<u64> {
        self.sending.as_ref().map(|(number, _)| *number)
    }

    /// The entry as one line of text, as plain mode prints it. A failed message is a problem, whose reason quotes the
    /// beginning of the message.
    pub fn line(&self) -> String {
        if let Some((_, SendState::Failed(why))) = &self.sending {
            let text = quoted(&self.text);
            return if why.contains(&text) { format!("! {why}") } else { format!("! {why} ({text})") };
        }
        self.whole()
    }

    /// The entry as one line with its whole text, whatever its state.
    pub fn whole(&self) -> String {
        let text = self.text.replace('\n', "⏎");
        match &self.source {
            Source::User { from, to } => match to.partners(from, from) {
                Some(to) => format!("<{from} -> {to}> {text}"),
                None => format!("<{from}> {text}"),
            },
            Source::Notice | Source::Recalled | Source::SafetyNumber | Source::Rule => format!("* {text}"),
            Source::Problem => format!("! {text}"),
        }
    }
}

/// A sentence about the number of messages that waited while the user was away.
pub fn away(count: usize) -> String {
    let messages = if count == 1 { "message" } else { "messages" };
    format!("{count} {messages} arrived while you were away")
}

/// As [`away`], with the times of the first and the last of `entries`.
pub fn away_with_times(entries: &[Entry]) -> String {
    let times = entries.iter().map(|entry| entry.time);
    let [first, last] =
        [times.clone().min(), times.max()].map(|time| time.map_or(String::new(), date_minute));
    let away = away(entries.len());
    if first == last { format!("{away}, at {first}") } else { format!("{away}, from {first} to {last}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_as_a_line_is_one_line() {
        let entry = Entry::new(0, Source::Notice, Place::Here, "one\n* two\n".into());
        assert_eq!(entry.line(), "* one⏎* two⏎");
    }
}
