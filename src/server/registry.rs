//! Who is on-line, and who is told about it.
//!
//! Invariant: a name has at most one session; presence is told by one thread, at most every 200 ms,
//! in lines that are made once for everyone. A newcomer gets the whole list once, then changes:
//! ten thousand logins cause changes in the order of seconds, not of logins squared.

use super::limits::PRESENCE_INTERVAL;
use super::lock;
use super::outbox::{Flusher, Part};
use super::session::Session;
use crate::name::Username;
use crate::protocol::{MAX_PRESENCE_NAMES, Presence, ServerMessage};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::Instant;

/// The sessions by name, and the changes nobody was told of yet.
#[derive(Default)]
pub struct Registry {
    sessions: RwLock<HashMap<Username, Arc<Session>>>,
    changes: Mutex<Changes>,
    changed: Condvar,
}

#[derive(Default)]
struct Changes {
    newcomers: Vec<Arc<Session>>,
    names: BTreeSet<Username>,
    /// Whose session has ended, whether or not another one has begun.
    ended: BTreeSet<Username>,
}

impl Registry {
    /// Adds a session and returns the one it replaces.
    pub fn add(&self, session: &Arc<Session>) -> Option<Arc<Session>> {
        // Both at once, or a newcomer could hear of changes before the whole list.
        let mut changes = lock(&self.changes);
        let former = self.write().insert(session.name.clone(), session.clone());
        changes.newcomers.push(session.clone());
        if former.is_some() {
            changes.ended.insert(session.name.clone());
        }
        changes.names.insert(session.name.clone());
        self.changed.notify_one();
        former
    }

    /// Removes this session, unless a newer one has replaced it. True if it was there.
    pub fn remove(&self, session: &Arc<Session>) -> bool {
        let mut sessions = self.write();
        let mine = sessions.get(&session.name).is_some_and(|current| Arc::ptr_eq(current, session));
        if mine {
            sessions.remove(&session.name);
            drop(sessions);
            let mut changes = lock(&self.changes);
            changes.names.insert(session.name.clone());
            changes.ended.insert(session.name.clone());
            self.changed.notify_one();
        }
        mine
    }

    /// The session of a name.
    pub fn get(&self, name: &Username) -> Option<Arc<Session>> {
        self.read().get(name).cloned()
    }

    /// How many are on-line.
    pub fn count(&self) -> usize {
        self.read().len()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<Username, Arc<Session>>> {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<Username, Arc<Session>>> {
        self.sessions.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The presence thread.
    pub fn tell_presence(&self, flusher: &Flusher) -> ! {
        let mut told: BTreeSet<Username> = BTreeSet::new();
        loop {
            let mut changes = lock(&self.changes);
            while changes.names.is_empty() {
                changes = self.changed.wait(changes).unwrap_or_else(PoisonError::into_inner);
            }
            let started = Instant::now();
            let sessions: Vec<Arc<Session>> = self.read().values().cloned().collect();
            let taken = std::mem::take(&mut *changes);
            drop(changes);
            self.tell(sessions, &taken, &mut told, flusher);
            std::thread::sleep(PRESENCE_INTERVAL.saturating_sub(started.elapsed()));
        }
    }

    fn tell(
        &self,
        sessions: Vec<Arc<Session>>,
        changes: &Changes,
        told: &mut BTreeSet<Username>,
        flusher: &Flusher,
    ) {
        let (mut joined, mut left) = (Vec::new(), Vec::new());
        for name in &changes.names {
            let online = self.get(name).is_some();
            // Who has logged in anew stands in both lists: what was agreed with the former session is void.
            let known = told.contains(name);
            if known && (!online || changes.ended.contains(name)) {
                told.remove(name);
                left.push(name.clone());
            }
            if online && told.insert(name.clone()) {
                joined.push(name.clone());
            }
        }
        let news = encode(false, joined, left);
        let newcomers: HashSet<_> = changes.newcomers.iter().map(Arc::as_ptr).collect();
        for session in sessions {
            if !newcomers.contains(&Arc::as_ptr(&session)) {
                news.iter().for_each(|line| {
                    session.outbox.queue([line.clone()], flusher);
                });
            }
        }
        if !changes.newcomers.is_empty() {
            let all = encode(true, told.iter().cloned().collect(), Vec::new());
            for newcomer in &changes.newcomers {
                all.iter().for_each(|line| {
                    newcomer.outbox.queue([line.clone()], flusher);
                });
            }
        }
    }
}

/// Presence lines of bounded length; none if there is nothing to tell.
fn encode(full: bool, joined: Vec<Username>, left: Vec<Username>) -> Vec<Part> {
    let mut lines = Vec::new();
    let (mut joined, mut left) = (joined.chunks(MAX_PRESENCE_NAMES), left.chunks(MAX_PRESENCE_NAMES));
    let mut first = full;
    loop {
        let (some, gone) = (joined.next(), left.next());
        if some.is_none() && gone.is_none() && !(first && lines.is_empty()) {
            return lines;
        }
        let names = |chunk: Option<&[Username]>| chunk.unwrap_or_default().to_vec();
        let more = joined.len() > 0 || left.len() > 0;
        let presence = Presence { more, full: first, joined: names(some), left: names(gone) };
        lines.push(Part::Shared(ServerMessage::Presence(presence).encode().into()));
        first = false;
    }
}
