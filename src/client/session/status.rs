//! What a front end reads of a session.
//!
//! Invariant: nothing here changes anything.

use super::account::PasswordChange;
use super::files::Progress;
use super::{Exit, Session};
use crate::client::entry::Entry;
use crate::name::Username;
use std::time::Instant;

/// Messages under way beyond which no further line is taken: a round trip's worth, and few to tell of if they fail.
const MAX_UNSETTLED: usize = 64;

impl Session {
    /// The end if the user does not wait: what may be lost by that.
    pub fn leave_now(&self) -> Exit {
        let warnings = self.unsettled();
        Exit { status: u8::from(!warnings.is_empty()), warnings, waits: false }
    }

    /// What is waited for before the end; `None` if the user has not asked to leave.
    pub fn leaving(&self) -> Option<String> {
        let waits = match self.outbox.unacknowledged().count() {
            _ if !self.is_leaving() => return None,
            0 if self.is_settled() => "a file is not complete yet".into(),
            0 => "the server has not answered yet".into(),
            1 => "1 message is not acknowledged yet".into(),
            count => format!("{count} messages are not acknowledged yet"),
        };
        Some(format!("leaving: {waits}; Ctrl-C leaves now"))
    }

    /// Whether the user has asked to leave.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_begun()
    }

    /// Whether a typed line can be taken now.
    pub fn takes_lines(&self) -> bool {
        self.online.is_complete() && !self.is_leaving() && self.outbox.len() < MAX_UNSETTLED
    }

    /// Whether all that was asked of the server has been answered.
    pub fn is_settled(&self) -> bool {
        self.outbox.is_empty()
            && self.contacts.is_settled()
            && self.cx.account.password != PasswordChange::Running
    }

    /// Since when the server owes an answer, or the list of online users, if it does. Each answer begins it again.
    pub fn owed(&self) -> Option<Instant> {
        self.connection.owed()
    }

    /// Whether the server is heard, as far as anybody knows.
    pub fn is_heard(&self) -> bool {
        self.connection.is_heard()
    }

    /// The connection in a few words, with the messages that the server has not taken yet, if it lets one wait for them.
    pub fn connection(&self) -> String {
        self.connection.describe(&self.cx, self.outbox.len())
    }

    /// The own name.
    pub fn me(&self) -> &Username {
        &self.cx.me
    }

    /// Whom the user is talking to; `None` is everyone.
    pub fn partner(&self) -> Option<&Username> {
        self.talk.partner()
    }

    /// Whether there is a room with `name`.
    pub fn has_room(&self, name: &Username) -> bool {
        self.talk.has_room(name)
    }

    /// How well the key of `name` is known, in a word.
    pub fn trust_word(&self, name: &Username) -> &'static str {
        self.contacts.trust_word(name)
    }

    /// The same as a mark beside the name.
    pub fn trust_mark(&self, name: &Username) -> &'static str {
        self.contacts.trust_mark(name)
    }

    /// The number of online users, with this one.
    pub fn online(&self) -> usize {
        self.online.count()
    }

    /// Everyone whose key is known or who is online, these first; not oneself.
    pub fn people(&self) -> impl Iterator<Item = &Username> {
        let known = |name: &&Username| !self.online.contains(name) && self.contacts.trust(name).is_some();
        self.online.others(&self.cx.me).chain(self.contacts.names().filter(known))
    }

    /// Whether the failed message of this number can still be sent again.
    pub fn is_at_hand(&self, number: u64) -> bool {
        self.outbox.is_at_hand(number)
    }

    /// The messages that `/history` finds, the oldest first, without those of users who are ignored now.
    pub fn history(&self) -> impl Iterator<Item = &Entry> {
        self.record.messages(&self.cx.ignored)
    }

    /// How far every file under way is.
    pub fn progress(&self) -> impl Iterator<Item = Progress> {
        self.files.progress(self.cx.instant)
    }
}
