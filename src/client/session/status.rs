//! The state of a session that a front end reads.
//!
//! Invariant: nothing here changes the session.

use super::Session;
use super::account::PasswordChange;
use super::files::Progress;
use super::talk::Destination;
use crate::client::audience::Partners;
use crate::client::entry::Entry;
use crate::name::Username;
use std::time::Instant;

/// The most messages in flight; beyond it, typed lines wait. Enough for a round trip, and few to report if they fail.
const MAX_UNSETTLED: usize = 64;

impl Session {
    /// The reason why the exit waits; `None` if the user has not asked to leave.
    pub fn leaving(&self) -> Option<String> {
        let waits = match self.outbox.unacknowledged().count() {
            _ if !self.is_leaving() => return None,
            0 if !self.files.is_idle() && self.is_settled() => "a file is not complete yet".into(),
            0 => "the server has not answered yet".into(),
            1 => "1 message is not acknowledged yet".into(),
            count => format!("{count} messages are not acknowledged yet"),
        };
        Some(format!("leaving: {waits}; Ctrl-C leaves now"))
    }

    /// Whether the user has asked to leave.
    pub fn is_leaving(&self) -> bool {
        self.leaving.since().is_some()
    }

    /// Whether the session can take a typed line now.
    pub fn takes_lines(&self) -> bool {
        self.online.is_complete() && !self.is_leaving() && self.outbox.len() < MAX_UNSETTLED
    }

    /// Whether nothing is in progress except files and mail: all messages and lists are settled, and no received
    /// message waits for a key that was requested.
    pub fn is_settled(&self) -> bool {
        self.outbox.is_empty()
            && self.contacts.is_settled()
            && !self.incoming.waits_for(|name| self.contacts.is_asked(name))
            && !self.files.is_listing()
            && self.cx.account.password != PasswordChange::Running
    }

    /// Since when the server owes an answer, or the list of online users, if it does. Each answer restarts the time.
    pub fn owed(&self) -> Option<Instant> {
        self.connection.owed()
    }

    /// Whether the connection works, as far as this client knows.
    pub fn is_responsive(&self) -> bool {
        self.connection.is_responsive()
    }

    /// The state of the connection in a few words, with the number of unsettled messages while the server does not
    /// answer.
    pub fn connection(&self) -> String {
        self.connection.describe(&self.cx, self.outbox.len())
    }

    /// The user's own name.
    pub fn me(&self) -> &Username {
        &self.cx.me
    }

    /// Where a typed line goes.
    pub fn destination(&self) -> &Destination {
        self.talk.destination()
    }

    /// The users that the conversation is with; `None` if it is with everyone or nobody.
    pub fn partners(&self) -> Option<&Partners> {
        self.talk.partners()
    }

    /// Whether there is a room with `partners`.
    pub fn has_room(&self, partners: &Partners) -> bool {
        self.talk.has_room(partners)
    }

    /// How well the least known key of `partners` is known, as a word.
    pub fn trust_word(&self, partners: &Partners) -> &'static str {
        let least = partners.names().iter().min_by_key(|name| self.contacts.certainty(name));
        least.map_or("", |name| self.contacts.trust_word(name))
    }

    /// The partners, each with a mark of how well their key is known: "bob✓, carol?".
    pub fn marked(&self, partners: &Partners) -> String {
        let marked = |name: &Username| format!("{name}{}", self.contacts.trust_mark(name));
        partners.names().iter().map(marked).collect::<Vec<_>>().join(", ")
    }

    /// The number of online users, with this one.
    pub fn online(&self) -> usize {
        self.online.count()
    }

    /// All other users who are online or whose key is known, the online ones first.
    pub fn people(&self) -> impl Iterator<Item = &Username> {
        let absent = |name: &&Username| !self.online.contains(name) && **name != self.cx.me;
        self.online.others(&self.cx.me).chain(self.contacts.names().filter(absent))
    }

    /// Whether the failed message of this number can still be sent again.
    pub fn can_resend(&self, number: u64) -> bool {
        self.outbox.can_resend(number)
    }

    /// The messages that `/history` finds, the oldest first, without those of users who are ignored now.
    pub fn history(&self) -> impl Iterator<Item = &Entry> {
        self.record.messages(&self.cx.ignored)
    }

    /// The progress of every file.
    pub fn progress(&self) -> impl Iterator<Item = Progress> {
        self.files.progress(self.cx.instant)
    }
}
