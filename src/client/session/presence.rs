//! The online users.
//!
//! Invariant: only the first complete list of a session counts; after it, the server cannot add a user without a
//! notice. Specification: PROTOCOL#messages.

use super::cx::{Cx, MAX_NAMED};
use crate::client::entry::{Place, Source};
use crate::name::Username;
use crate::protocol::Presence;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The most online users that are remembered: 20 times the number that a server is made for, and some 20 MB.
const MAX_ONLINE: usize = 200_000;

/// The notice of a change waits this long for the rest of it: a server that withholds the rest hides nobody for longer.
const REST_OF_A_CHANGE: Duration = Duration::from_secs(1);

/// Users that came online or left since the last report, each once.
#[derive(Default)]
struct Changes {
    joined: BTreeSet<Username>,
    left: BTreeSet<Username>,
    /// Users who left and came back.
    again: BTreeSet<Username>,
    /// The time of the last line, if more lines of its change follow.
    incomplete: Option<Instant>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.joined.is_empty() && self.left.is_empty() && self.again.is_empty()
    }

    fn join(&mut self, name: Username) {
        if self.left.remove(&name) {
            self.again.insert(name)
        } else {
            self.joined.insert(name)
        };
    }

    fn leave(&mut self, name: Username) {
        // A user whose arrival was not reported needs no report.
        if !self.joined.remove(&name) {
            self.again.remove(&name);
            self.left.insert(name);
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct OnlineUsers {
    /// The online users, including this one.
    names: BTreeSet<Username>,
    /// Changes that were not reported yet.
    changes: Changes,
    /// Whether the first list has arrived.
    is_complete: bool,
    /// Whether the first list is still arriving.
    is_partial: bool,
}

impl OnlineUsers {
    /// The number of online users, with this one.
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// Whether `name` is online.
    pub fn contains(&self, name: &Username) -> bool {
        self.names.contains(name)
    }

    /// Whether `name` is offline, and an online name differs from it only in letter case.
    pub fn has_twin(&self, name: &Username) -> bool {
        let is_twin = |other: &Username| other.as_str().eq_ignore_ascii_case(name.as_str());
        !self.contains(name) && self.names.iter().any(is_twin)
    }

    /// Whether the first list of the session has arrived.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// The other online users.
    pub fn others<'a>(&'a self, me: &'a Username) -> impl Iterator<Item = &'a Username> {
        self.names.iter().filter(move |name| *name != me)
    }

    /// Handles arrivals and departures; returns the users that have left, and whether this ends the first list.
    /// PROTOCOL#presence-lists.
    pub fn take(&mut self, cx: &mut Cx, presence: Presence) -> (Vec<Username>, bool) {
        let mut left = Vec::new();
        if presence.full && (self.is_complete || self.is_partial) {
            // A second list could add users without a notice.
            cx.out_of_place();
            return (left, false);
        }
        if presence.full {
            self.names.clear();
            self.is_partial = true;
        }
        for name in presence.left {
            if self.names.remove(&name) && name != cx.me {
                self.changes.leave(name.clone());
                left.push(name);
            }
        }
        for name in presence.joined {
            if self.names.len() >= MAX_ONLINE && !self.names.contains(&name) {
                cx.server_problem(format!(
                    "the server lists more than {MAX_ONLINE} users; the rest are ignored"
                ));
                break;
            }
            if self.names.insert(name.clone()) && name != cx.me {
                self.changes.join(name);
            }
        }
        if !self.is_complete {
            self.changes = Changes::default();
        }
        let ends_list = self.is_partial && !presence.more;
        if ends_list {
            (self.is_partial, self.is_complete) = (false, true);
        }
        self.changes.incomplete = presence.more.then_some(cx.instant);
        (left, ends_list)
    }

    /// Reports arrivals and departures, unless a change is incomplete or too many were reported; in any case if
    /// `at_once`, so that the user sees all recipients before something is sent. PROTOCOL#notices.
    pub fn report(&mut self, cx: &mut Cx, at_once: bool) {
        let waits = self.changes.incomplete.is_some_and(|since| cx.instant - since < REST_OF_A_CHANGE);
        if self.changes.is_empty() || waits && !at_once {
            return;
        }
        let shown = |names: &BTreeSet<Username>| -> Vec<Username> {
            names.iter().filter(|name| !cx.ignored.contains(name)).cloned().collect()
        };
        let [again, joined, left] =
            [&self.changes.again, &self.changes.joined, &self.changes.left].map(shown);
        let lines =
            [&again, &joined, &left].map(|names| if names.len() > MAX_NAMED { 1 } else { names.len() });
        if !cx.takes_presence(lines.iter().sum()) && !at_once {
            return;
        }
        self.changes = Changes::default();
        self.tell(cx, &again, "has logged in again", "have logged in again");
        self.tell(cx, &joined, "is online", "have come online");
        self.tell(cx, &left, "has left", "have left");
    }

    fn tell(&self, cx: &mut Cx, names: &[Username], one: &str, many: &str) {
        if names.len() > MAX_NAMED {
            let text = format!("{} users {many}; {} are online now", names.len(), self.count());
            return cx.show(Source::Notice, Place::Everyone, text);
        }
        for name in names {
            cx.notice_about(name, format!("{name} {one}"));
        }
    }
}
