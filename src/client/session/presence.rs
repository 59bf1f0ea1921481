//! The online users.
//!
//! Invariant: the server tells the whole list once in a session, and changes after that; it cannot slip anybody in
//! without a word. Specification: PROTOCOL#messages.

use super::{MAX_NAMED, Session};
use crate::client::entry::{Place, Source};
use crate::name::Username;
use crate::protocol::Presence;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The most online users that are remembered. A server that names more could fill the memory.
const MAX_ONLINE: usize = 200_000;

/// The rest of a change follows at once; a server that withholds it hides nobody by that.
const REST_OF_A_CHANGE: Duration = Duration::from_secs(1);

/// Users that came online or left since the last report, each once.
#[derive(Default)]
pub struct Changes {
    joined: BTreeSet<Username>,
    left: BTreeSet<Username>,
    /// Left and came back.
    again: BTreeSet<Username>,
    /// When the last line came, if it was not the last one of its change.
    incomplete: Option<Instant>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.joined.is_empty() && self.left.is_empty() && self.again.is_empty()
    }

    fn has_joined(&mut self, name: Username) {
        if self.left.remove(&name) {
            self.again.insert(name)
        } else {
            self.joined.insert(name)
        };
    }

    fn has_left(&mut self, name: Username) {
        // Nobody was told that they had come.
        if !self.joined.remove(&name) {
            self.again.remove(&name);
            self.left.insert(name);
        }
    }
}

impl Session {
    /// The number of online users, with this one.
    pub fn online(&self) -> usize {
        self.online.len()
    }

    /// Takes in who has come and gone, and tells it. PROTOCOL#presence-lists.
    pub(super) fn presence(&mut self, presence: Presence) {
        if presence.full && (self.ready || self.partial) {
            // It could slip somebody in without a word.
            return self.out_of_place();
        }
        if presence.full {
            self.online.clear();
            self.partial = true;
        }
        let mut left_rooms = Vec::new();
        for name in presence.left {
            if self.online.remove(&name) && name != self.me {
                self.peers.left(&name);
                left_rooms.extend(self.rooms.take(&name));
                self.files_of_left(&name);
                self.changes.has_left(name);
            }
        }
        for name in presence.joined {
            if self.online.len() >= MAX_ONLINE && !self.online.contains(&name) {
                self.server_problem(format!(
                    "the server lists more than {MAX_ONLINE} users; the rest are ignored"
                ));
                break;
            }
            if self.online.insert(name.clone()) && name != self.me {
                self.changes.has_joined(name);
            }
        }
        if !self.ready {
            self.changes = Changes::default();
        }
        if self.partial && !presence.more {
            (self.partial, self.ready) = (false, true);
            self.tell_users();
        }
        self.changes.incomplete = presence.more.then_some(self.instant);
        self.tell_changes(false);
        left_rooms.iter().for_each(|name| self.tell_room_closed(name));
    }

    /// Tells who has come and gone, unless the rest of a change is still to come or too much was told; before something is sent,
    /// in any case. PROTOCOL#notices.
    pub(super) fn tell_changes(&mut self, at_once: bool) {
        let waits = self.changes.incomplete.is_some_and(|since| self.instant - since < REST_OF_A_CHANGE);
        if self.changes.is_empty() || waits && !at_once {
            return;
        }
        let shown = |names: &BTreeSet<Username>| -> Vec<Username> {
            names.iter().filter(|name| !self.ignored.contains(name)).cloned().collect()
        };
        let [again, joined, left] =
            [&self.changes.again, &self.changes.joined, &self.changes.left].map(shown);
        let lines =
            [&again, &joined, &left].map(|names| if names.len() > MAX_NAMED { 1 } else { names.len() });
        if !self.notices.presence.take(lines.iter().sum()) && !at_once {
            return;
        }
        self.changes = Changes::default();
        self.tell_people(&again, "has logged in again", "have logged in again");
        self.tell_people(&joined, "is online", "have come online");
        self.tell_people(&left, "has left", "have left");
    }

    pub(super) fn is_online(&self, name: &Username) -> bool {
        self.online.contains(name)
    }

    /// The other online users.
    pub(super) fn others(&self) -> impl Iterator<Item = &Username> {
        self.online.iter().filter(|name| **name != self.me)
    }

    /// Everyone whose key is known or who is online, these first; not oneself.
    pub fn people(&self) -> impl Iterator<Item = &Username> {
        let known = |name: &&Username| !self.is_online(name) && self.peers.trust(name).is_some();
        self.others().chain(self.peers.names().filter(known))
    }

    pub(super) fn tell_users(&mut self) {
        let mut people = vec![format!("{} (you)", self.me)];
        let others: Vec<Username> = self.others().take(200).cloned().collect();
        people.extend(others.iter().map(|name| format!("{name} ({})", self.trust_word(name))));
        let rest = self.online.len().saturating_sub(people.len());
        let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        self.notice(format!("{} online: {}{rest}", self.online.len().max(1), people.join(", ")));
    }

    fn tell_people(&mut self, names: &[Username], one: &str, many: &str) {
        if names.len() > MAX_NAMED {
            let text = format!("{} users {many}; {} are online now", names.len(), self.online.len());
            return self.show(Source::Notice, Place::Everyone, text);
        }
        for name in names {
            self.notice_about(name, format!("{name} {one}"));
        }
    }
}
