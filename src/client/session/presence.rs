//! Who is on-line.
//!
//! Invariant: the server tells the whole list once in a session, and changes after that; it cannot slip anybody in
//! without a word. Specification: README#messages.

use super::{MAX_NAMED, Session};
use crate::client::entry::{Place, Source};
use crate::name::Username;
use crate::protocol::Presence;
use std::collections::BTreeSet;

/// People on-line that are kept in mind; a server that names more is not believed: it would fill the memory.
const MAX_ONLINE: usize = 200_000;

impl Session {
    /// How many are on-line, oneself included.
    pub fn online(&self) -> usize {
        self.online.len()
    }

    /// Takes in who has come and gone, and tells it.
    pub(super) fn presence(&mut self, presence: Presence) {
        if presence.full && (self.ready || self.partial) {
            // It could slip somebody in without a word.
            return self.problem("the server sent something out of place".into());
        }
        if presence.full {
            self.online.clear();
            self.partial = true;
        }
        let was_ready = self.ready;
        let listing = self.partial;
        let (mut joined, mut left) = (Vec::new(), Vec::new());
        for name in presence.left {
            if self.online.remove(&name) && name != self.me {
                self.peers.left(&name);
                self.rooms.remove(&name);
                self.files_of_left(&name);
                left.push(name);
            }
        }
        for name in presence.joined {
            if self.online.len() < MAX_ONLINE && self.online.insert(name.clone()) && name != self.me {
                joined.push(name);
            }
        }
        if self.partial && !presence.more {
            self.partial = false;
            self.ready = true;
        }
        let gone: BTreeSet<Username> = left.iter().cloned().collect();
        let anew: BTreeSet<Username> = joined.iter().filter(|name| gone.contains(name)).cloned().collect();
        let told = |name: &Username| !anew.contains(name) && !self.ignored.contains(name);
        joined.retain(told);
        left.retain(told);
        let anew: Vec<Username> = anew.into_iter().filter(|name| !self.ignored.contains(name)).collect();
        if !listing && was_ready {
            self.tell_people(&anew, "has logged in anew", "have logged in anew");
            self.tell_people(&joined, "is on-line", "are on-line now");
            self.tell_people(&left, "has left", "have left");
        } else if self.ready && !was_ready {
            self.tell_users();
        }
    }

    pub(super) fn is_online(&self, name: &Username) -> bool {
        self.online.contains(name)
    }

    /// Everyone on-line but oneself.
    pub(super) fn others(&self) -> impl Iterator<Item = &Username> {
        self.online.iter().filter(|name| **name != self.me)
    }

    /// Everyone whose key is known or who is on-line, these first; not oneself.
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
        self.notice(format!("{} on-line: {}{rest}", self.online.len().max(1), people.join(", ")));
    }

    fn tell_people(&mut self, names: &[Username], one: &str, many: &str) {
        if names.len() > MAX_NAMED {
            let text = format!("{} people {many}", names.len());
            return self.show(Source::Notice, Place::Everyone, text);
        }
        for name in names {
            self.notice_about(name, format!("{name} {one}"));
        }
    }
}
