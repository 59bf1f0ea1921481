//! The sessions by name, and the changes that [`presence`](super::presence) has not reported yet.
//!
//! Invariant: a name has at most one session, and there are no more sessions than the limit. A session begins and ends under
//! the lock of the changes: a name's former session has ended, and its lost messages are reported, before anybody finds the
//! new one.

use super::session::Session;
use super::session::outbox::{Condition, FlushList};
use crate::name::Username;
use crate::protocol::ServerMessage;
use crate::sync::lock;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

/// The sessions by name, and the changes that were not reported yet.
#[derive(Default)]
pub struct Registry {
    sessions: RwLock<HashMap<Username, Arc<Session>>>,
    changes: Mutex<Changes>,
    changed: Condvar,
}

/// What has changed.
#[derive(Default)]
pub struct Changes {
    /// New sessions, which have no list of online users yet.
    pub newcomers: Vec<Arc<Session>>,
    /// Users who have joined or left.
    pub names: BTreeSet<Username>,
    /// Users whose session has ended, even if another one has begun.
    pub ended: BTreeSet<Username>,
}

/// There are as many sessions as the limit allows.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// The sessions under one read lock. A lock and a reference count for each of a thousand recipients took a tenth of a
/// broadcast's time.
pub struct Sessions<'a>(RwLockReadGuard<'a, HashMap<Username, Arc<Session>>>);

impl Sessions<'_> {
    /// As [`Registry::get`].
    pub fn get(&self, name: &Username) -> Option<&Session> {
        self.0.get(name).map(Arc::as_ref)
    }
}

impl Registry {
    /// Adds a session. A former one of its name ends with `farewell`. Returns where the former one's client was, unless
    /// it had ended before. PROTOCOL#replaced.
    ///
    /// # Errors
    /// [`Full`] if there are `limit` sessions of other names. PROTOCOL#full.
    pub fn insert(
        &self,
        session: &Arc<Session>,
        limit: usize,
        farewell: &ServerMessage,
    ) -> Result<Option<IpAddr>, Full> {
        let mut list = FlushList::default();
        // Both at once, or a new session could receive changes before its first list.
        let mut changes = lock(&self.changes);
        let mut sessions = self.write();
        let former = sessions.get(&session.name).cloned();
        if former.is_none() && sessions.len() >= limit {
            return Err(Full);
        }
        // Before anybody finds the new session: a client that resumes the former one learns of it, and lost messages are
        // reported.
        let ended = former.as_ref().and_then(|former| {
            session.supersede(former);
            let ended = former.outbox.close(Condition::Always, Some(farewell), &mut list)?;
            ended.report_lost(&former.name, &mut list);
            Some(ended.address)
        });
        sessions.insert(session.name.clone(), session.clone());
        drop(sessions);
        if former.is_some() {
            changes.ended.insert(session.name.clone());
        }
        changes.names.insert(session.name.clone());
        changes.newcomers.push(session.clone());
        self.changed.notify_one();
        drop(changes);
        list.flush();
        Ok(ended)
    }

    /// Ends a session, with `last` as its last line, if the condition holds: its outbox is closed, then lost messages are
    /// reported, then other users see it leave. Returns where its client was; `None` if it had ended before. The caller
    /// flushes the list. PROTOCOL#ends-at-once, PROTOCOL#lost.
    pub fn end(
        &self,
        session: &Arc<Session>,
        condition: Condition<'_>,
        last: Option<&ServerMessage>,
        list: &mut FlushList,
    ) -> Option<IpAddr> {
        // Held until it is removed, so that no newer session takes its place before.
        let mut changes = lock(&self.changes);
        let ended = session.outbox.close(condition, last, list)?;
        ended.report_lost(&session.name, list);
        self.write().remove(&session.name);
        changes.names.insert(session.name.clone());
        changes.ended.insert(session.name.clone());
        self.changed.notify_one();
        Some(ended.address)
    }

    /// The session of exactly this name; `None` if the user is not online.
    pub fn get(&self, name: &Username) -> Option<Arc<Session>> {
        self.read().get(name).cloned()
    }

    /// For several look-ups. No session begins or ends while it exists, so drop it soon.
    pub fn look(&self) -> Sessions<'_> {
        Sessions(self.read())
    }

    /// All sessions for which this is true.
    pub fn all(&self, is_wanted: impl Fn(&Session) -> bool) -> Vec<Arc<Session>> {
        self.read().values().filter(|session| is_wanted(session)).cloned().collect()
    }

    /// The session that has been without a connection for longest, and since when.
    pub fn longest_detached(&self) -> Option<(Instant, Arc<Session>)> {
        let sessions = self.read();
        let detached = sessions.values().filter_map(|session| Some((session.outbox.detached()?, session)));
        detached.min_by_key(|(since, _)| *since).map(|(since, session)| (since, session.clone()))
    }

    /// Waits for changes. Before `due`, returns new sessions only; after it all changes, and all sessions.
    pub fn wait(&self, due: Instant) -> (Changes, Vec<Arc<Session>>) {
        let mut changes = lock(&self.changes);
        while changes.names.is_empty() {
            changes = self.changed.wait(changes).unwrap_or_else(PoisonError::into_inner);
        }
        if Instant::now() >= due {
            return (std::mem::take(&mut *changes), self.all(|_| true));
        }
        (Changes { newcomers: std::mem::take(&mut changes.newcomers), ..Changes::default() }, Vec::new())
    }

    /// Closes the connections of all sessions; their clients can resume them.
    pub fn disconnect(&self) {
        self.all(|_| true).iter().for_each(|session| session.outbox.disconnect());
    }

    /// The number of sessions.
    pub fn count(&self) -> usize {
        self.read().len()
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<Username, Arc<Session>>> {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Username, Arc<Session>>> {
        self.sessions.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::session::frames::Frame;
    use super::super::session::outbox::{Queued, Receipt};
    use super::super::session::tests::session;
    use super::*;
    use crate::protocol::{Lost, WrappedKey};
    use std::io::Read;
    use std::net::TcpStream;
    use std::time::Duration;

    const NO_FAREWELL: ServerMessage = ServerMessage::Pong;

    /// PROTOCOL#full, PROTOCOL#replaced.
    #[test]
    fn full_registry_accepts_only_a_replacement() {
        let registry = Registry::default();
        let [alice, bob, carol, again] = ["alice", "bob", "carol", "bob"].map(session);
        let remove = |(session, _): &(Arc<Session>, TcpStream)| {
            let mut list = FlushList::default();
            let ended = registry.end(session, Condition::Always, Some(&ServerMessage::Pong), &mut list);
            list.flush();
            ended.is_some()
        };
        assert_eq!(registry.insert(&alice.0, 2, &NO_FAREWELL), Ok(None));
        assert_eq!(registry.insert(&bob.0, 2, &NO_FAREWELL), Ok(None));
        assert_eq!(registry.insert(&carol.0, 2, &NO_FAREWELL), Err(Full));
        assert!(matches!(registry.insert(&again.0, 2, &NO_FAREWELL), Ok(Some(_))));
        assert!(!bob.0.outbox.is_open() && registry.count() == 2);
        assert!(registry.get(&bob.0.name).is_some_and(|now| Arc::ptr_eq(&now, &again.0)));
        assert!(!remove(&bob), "the end of the former session is not that of its user");
        assert!(remove(&again) && !remove(&again));
        assert_eq!(registry.insert(&carol.0, 2, &NO_FAREWELL), Ok(None));
    }

    /// PROTOCOL#presence, PROTOCOL#presence-rate.
    #[test]
    fn only_new_sessions_are_reported_before_a_change_is_due() {
        let (registry, [alice, bob]) = (Registry::default(), ["alice", "bob"].map(session));
        let far = Instant::now() + Duration::from_secs(3600);
        let reported = |due| {
            let (changes, sessions) = registry.wait(due);
            (changes.newcomers.len(), changes.names.len(), changes.ended.len(), sessions.len())
        };
        assert_eq!(registry.insert(&alice.0, 9, &NO_FAREWELL), Ok(None));
        assert_eq!([reported(far), reported(far)], [(1, 0, 0, 0), (0, 0, 0, 0)]);
        assert_eq!(registry.insert(&bob.0, 9, &NO_FAREWELL), Ok(None));
        let mut list = FlushList::default();
        assert!(registry.end(&alice.0, Condition::Always, None, &mut list).is_some());
        assert_eq!(reported(Instant::now()), (1, 2, 1, 1));
    }

    /// PROTOCOL#lost.
    #[test]
    fn lost_messages_are_reported_before_the_new_session_is_found() {
        let registry = Registry::default();
        let [alice, bob, again] = ["alice", "bob", "bob"].map(session);
        [&alice, &bob].iter().for_each(|one| _ = registry.insert(&one.0, 9, &NO_FAREWELL));
        let key = WrappedKey::new(&[1; 264]);
        let mut list = FlushList::default();
        let mut deliver = |id| {
            let receipt = Receipt { sender: Arc::downgrade(&alice.0.outbox), id };
            bob.0.outbox.deliver(Frame::envelope((*b"{}\n").into()), Some((&key, Some(receipt))), &mut list)
        };
        assert_eq!(deliver(7), Queued::Yes);
        assert!(registry.insert(&again.0, 9, &NO_FAREWELL).is_ok());
        assert_eq!(deliver(8), Queued::Gone);
        let line = ServerMessage::Lost(Lost { id: 7, name: bob.0.name.clone() }).encode();
        let mut got = vec![0; line.len()];
        alice.1.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        (&alice.1).read_exact(&mut got).expect("it is told");
        assert_eq!(got, line);
        // Only once, however the former session then ends.
        assert!(bob.0.outbox.close(Condition::Always, None, &mut FlushList::default()).is_none());
    }
}
