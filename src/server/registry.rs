//! The sessions by name, and the changes that [`presence`](super::presence) has not reported yet.
//!
//! Invariant: a name has at most one session, and there are no more sessions than the limit. A session begins and ends
//! under the lock of the changes, and is logged there, so the log has logins and logouts in their order. The former
//! session of a name has ended, and its lost messages are reported, before the new one can be found. An account has at
//! most one farewell at a time, because ended sessions do not count against the limit of sessions.

use super::session::Session;
use super::session::outbox::{Condition, FlushList, Outbox};
use super::store::audit::Audit;
use crate::name::Username;
use crate::protocol::{ErrorCode, Failure, ServerMessage};
use crate::sync::lock;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::Instant;

type ByName = HashMap<Username, Arc<Session>>;

/// See the module.
pub struct Registry {
    sessions: RwLock<ByName>,
    changes: Mutex<Changes>,
    /// The session of each name that ended last.
    farewells: Mutex<HashMap<Username, Weak<Outbox>>>,
    changed: Condvar,
    audit: Arc<Audit>,
}

/// Changes that were not reported yet.
#[derive(Default)]
pub struct Changes {
    /// New sessions, which have no list of online users yet.
    pub newcomers: Vec<Arc<Session>>,
    /// Users who have joined or left.
    pub names: BTreeSet<Username>,
    /// Users whose session has ended, even if another one has begun.
    pub ended: BTreeSet<Username>,
}

/// The end of a session that another login has replaced. PROTOCOL#replaced, PROTOCOL#elsewhere.
pub fn replaced() -> Failure {
    Failure::new(ErrorCode::SignedInElsewhere, "you have logged in from elsewhere")
}

impl Registry {
    /// No sessions. Logins and logouts are logged in `audit`.
    pub fn new(audit: Arc<Audit>) -> Registry {
        let (sessions, changes, farewells, changed) = Default::default();
        Registry { sessions, changes, farewells, changed, audit }
    }

    /// Adds a session. A former one of its name ends. False, and nothing changes, if there are `limit` sessions of
    /// other names. PROTOCOL#replaced, PROTOCOL#full.
    pub fn insert(&self, session: &Arc<Session>, limit: usize) -> bool {
        let mut list = FlushList::default();
        // Held until the session is in `sessions` too, or it could receive changes before its first list.
        let mut changes = lock(&self.changes);
        match self.get(&session.name) {
            // Before the new session can be found, so that a client that resumes the former one learns of the
            // replacement. Copy the tokens after the end, when the former client can no longer receive another one.
            Some(former) => {
                let farewell = ServerMessage::Error(replaced());
                self.leave(&mut changes, &former, Condition::Always, Some(&farewell), &mut list);
                session.supersede(&former);
            }
            None if self.count() >= limit => return false,
            None => {}
        }
        self.write().insert(session.name.clone(), session.clone());
        changes.names.insert(session.name.clone());
        changes.newcomers.push(session.clone());
        self.audit.log("login", Some(&session.name), Some(session.outbox.address()), "");
        self.changed.notify_one();
        drop(changes);
        list.flush();
        true
    }

    /// Ends a session if the condition holds: other users see it leave at once, and its client still gets everything
    /// that is queued for it, and `last`. False if the session does not end. PROTOCOL#ends-at-once.
    pub fn end(
        &self,
        session: &Arc<Session>,
        condition: Condition<'_>,
        last: Option<&ServerMessage>,
    ) -> bool {
        let mut list = FlushList::default();
        // Hold the lock until the session is removed, so that no newer session takes its place before.
        let mut changes = lock(&self.changes);
        let has_left = self.leave(&mut changes, session, condition, last, &mut list);
        if has_left {
            self.write().remove(&session.name);
            self.changed.notify_one();
        }
        drop(changes);
        list.flush();
        has_left
    }

    /// Closes the session's outbox if the condition holds; the caller then removes or replaces the session.
    fn leave(
        &self,
        changes: &mut Changes,
        session: &Arc<Session>,
        condition: Condition<'_>,
        last: Option<&ServerMessage>,
        list: &mut FlushList,
    ) -> bool {
        let Some(address) = session.outbox.close(&session.name, condition, last, list) else { return false };
        changes.names.insert(session.name.clone());
        changes.ended.insert(session.name.clone());
        let former = lock(&self.farewells).insert(session.name.clone(), Arc::downgrade(&session.outbox));
        if let Some(former) = former.and_then(|former| former.upgrade()) {
            former.end_farewell();
        }
        self.audit.log("logout", Some(&session.name), Some(address), "");
        true
    }

    /// Forgets the farewells that are over.
    pub fn sweep(&self) {
        lock(&self.farewells).retain(|_, outbox| outbox.strong_count() > 0);
    }

    /// The session of exactly this name; `None` if the user is not online.
    pub fn get(&self, name: &Username) -> Option<Arc<Session>> {
        self.read().get(name).cloned()
    }

    /// As [`Registry::get`], but waits for a login or logout in progress.
    pub fn settled(&self, name: &Username) -> Option<Arc<Session>> {
        let _changes = lock(&self.changes);
        self.get(name)
    }

    /// All sessions, locked, for several look-ups: a lock and a reference count for each of a thousand recipients took
    /// a tenth of a broadcast's time. No session begins or ends until the guard is dropped.
    pub fn read(&self) -> RwLockReadGuard<'_, ByName> {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// All sessions.
    pub fn all(&self) -> Vec<Arc<Session>> {
        self.read().values().cloned().collect()
    }

    /// The session that has been without a connection for longest, and since when.
    pub fn longest_detached(&self) -> Option<(Instant, Arc<Session>)> {
        let sessions = self.read();
        let detached = sessions.values().filter_map(|session| Some((session.outbox.detached()?, session)));
        detached.min_by_key(|(since, _)| *since).map(|(since, session)| (since, session.clone()))
    }

    /// Waits for changes. Before `due`, returns only the new sessions, perhaps none; later all changes, and all
    /// sessions.
    pub fn wait(&self, due: Instant) -> (Changes, Vec<Arc<Session>>) {
        let mut changes = lock(&self.changes);
        while changes.names.is_empty() {
            changes = self.changed.wait(changes).unwrap_or_else(PoisonError::into_inner);
        }
        if Instant::now() >= due {
            return (std::mem::take(&mut *changes), self.all());
        }
        (Changes { newcomers: std::mem::take(&mut changes.newcomers), ..Changes::default() }, Vec::new())
    }

    /// The number of sessions.
    pub fn count(&self) -> usize {
        self.read().len()
    }

    fn write(&self) -> RwLockWriteGuard<'_, ByName> {
        self.sessions.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::session::frames::Frame;
    use super::super::session::outbox::tests::{attach, hold, link};
    use super::super::session::outbox::{Attached, Queued, Receipt};
    use super::super::session::tests::session;
    use super::super::shared::tests::{HOUR, shared};
    use super::*;
    use crate::crypto::keys::SessionKey;
    use crate::crypto::public::{RSA_BYTES, SessionCertificate};
    use crate::encoding::{Bytes, Fixed};
    use crate::protocol::{Lost, WrappedKey};
    use std::io::Read;
    use std::net::TcpStream;
    use std::time::Duration;

    impl Registry {
        /// No session begins or ends until this is dropped.
        pub fn hold(&self) -> impl Sized {
            lock(&self.changes)
        }

        /// No user is found until this is dropped.
        pub fn hold_sessions(&self) -> impl Sized {
            self.write()
        }
    }

    /// PROTOCOL#full, PROTOCOL#replaced.
    #[test]
    fn full_registry_accepts_only_a_replacement() {
        let (shared, _folder) = shared(HOUR);
        let registry = &shared.registry;
        let [alice, bob, carol, again] = ["alice", "bob", "carol", "bob"].map(session);
        let remove = |(session, _): &(Arc<Session>, TcpStream)| {
            registry.end(session, Condition::Always, Some(&ServerMessage::Pong))
        };
        assert!(registry.insert(&alice.0, 2));
        assert!(registry.insert(&bob.0, 2));
        assert!(!registry.insert(&carol.0, 2));
        assert!(registry.insert(&again.0, 2));
        assert!(!bob.0.outbox.is_open() && registry.count() == 2);
        assert!(registry.get(&bob.0.name).is_some_and(|now| Arc::ptr_eq(&now, &again.0)));
        assert!(!remove(&bob), "the end of a replaced session does not take its user offline");
        assert!(remove(&again) && !remove(&again));
        assert!(registry.insert(&carol.0, 2));
    }

    #[test]
    fn log_has_all_logins_and_logouts_in_order() {
        let (shared, folder) = shared(HOUR);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..20).for_each(|_| assert!(shared.registry.insert(&session("alice").0, 9)));
                });
            }
        });
        shared.store.audit.flush();
        let log = std::fs::read_to_string(folder.0.join("logs/security.log")).expect("a log");
        let events = log.split_whitespace().filter(|word| word.starts_with("event=log"));
        let events: Vec<&str> = events.collect();
        assert_eq!(events.len(), 80 + 79);
        assert!(events.windows(2).all(|two| two[0] != two[1]), "{events:?}");
    }

    /// PROTOCOL#presence, PROTOCOL#presence-rate.
    #[test]
    fn only_new_sessions_are_reported_before_a_change_is_due() {
        let ((shared, _folder), [alice, bob]) = (shared(HOUR), ["alice", "bob"].map(session));
        let registry = &shared.registry;
        let far = Instant::now() + Duration::from_secs(3600);
        let reported = |due| {
            let (changes, sessions) = registry.wait(due);
            (changes.newcomers.len(), changes.names.len(), changes.ended.len(), sessions.len())
        };
        assert!(registry.insert(&alice.0, 9));
        assert_eq!([reported(far), reported(far)], [(1, 0, 0, 0), (0, 0, 0, 0)]);
        assert!(registry.insert(&bob.0, 9));
        assert!(registry.end(&alice.0, Condition::Always, None));
        assert_eq!(reported(Instant::now()), (1, 2, 1, 1));
    }

    /// PROTOCOL#lost, PROTOCOL#elsewhere.
    #[test]
    fn reports_of_lost_messages_delay_no_other_user() {
        let (shared, _folder) = shared(HOUR);
        let registry = &shared.registry;
        let [alice, bob, again] = ["alice", "bob", "bob"].map(session);
        [&alice, &bob].iter().for_each(|one| _ = registry.insert(&one.0, 9));
        let (key, receipt) =
            (WrappedKey::new(&[1; 264]), Receipt { sender: Arc::downgrade(&alice.0.outbox), id: 7 });
        let frame = Frame::envelope((*b"{}\n").into());
        let queued = bob.0.outbox.deliver(frame, Some((&key, Some(receipt))), &mut FlushList::default());
        assert_eq!(queued, Queued::Yes);
        std::thread::scope(|scope| {
            let held = hold(&alice.0.outbox);
            scope.spawn(|| registry.insert(&again.0, 9));
            while bob.0.outbox.is_open() {
                std::thread::yield_now();
            }
            let is_found = registry.sessions.try_read().is_ok();
            // A client that resumes the former session now must learn of the new one.
            let settled = scope.spawn(|| registry.settled(&bob.0.name));
            (0..100).for_each(|_| std::thread::yield_now());
            drop(held);
            let settled = settled.join().expect("whole").expect("online");
            assert!(is_found && Arc::ptr_eq(&settled, &again.0));
        });
    }

    /// PROTOCOL#ends-at-once.
    #[test]
    fn account_has_one_farewell_at_a_time() {
        let (shared, _folder) = shared(HOUR);
        let sessions = [(); 3].map(|()| {
            let ((session, _), (link, far)) = (session("alice"), link());
            assert_eq!(attach(&session.outbox, &link, 0), Attached::Yes);
            // Its client does not read.
            session.outbox.keep_writing();
            (session, link, far)
        });
        let leaving = || sessions.each_ref().map(|(session, link, _)| session.outbox.says_farewell(link));
        sessions[..2].iter().for_each(|(session, ..)| assert!(shared.registry.insert(session, 9)));
        assert_eq!(leaving(), [true, false, false]);
        assert!(shared.registry.insert(&sessions[2].0, 9));
        assert_eq!(leaving(), [false, true, false]);
        // However the session ends.
        assert!(shared.registry.end(&sessions[2].0, Condition::Always, None));
        assert_eq!(leaving(), [false, false, true]);
        drop((sessions, shared.registry.wait(Instant::now())));
        shared.registry.sweep();
        assert!(lock(&shared.registry.farewells).is_empty());
    }

    /// PROTOCOL#elsewhere, PROTOCOL#latest-token.
    #[test]
    fn token_renewed_while_its_session_is_replaced_is_remembered() {
        let (shared, _folder) = shared(HOUR);
        let [former, new] = ["alice", "alice"].map(session);
        assert!(shared.registry.insert(&former.0, 9));
        let session_key = Bytes(SessionKey::generate().public().spki());
        let certificate = SessionCertificate { session_key, created: 1, certificate: Fixed([0; RSA_BYTES]) };
        std::thread::scope(|scope| {
            let held = hold(&former.0.outbox);
            scope.spawn(|| assert!(shared.registry.insert(&new.0, 9)));
            while shared.registry.changes.try_lock().is_ok() {
                std::thread::yield_now();
            }
            (0..100).for_each(|_| std::thread::yield_now());
            assert!(former.0.renew(&certificate, 1));
            drop(held);
        });
        let ([renewed, ..], [.., superseded, _, _, _]) = (former.0.tokens(1), new.0.tokens(1));
        assert!(superseded == renewed);
    }

    /// PROTOCOL#lost.
    #[test]
    fn lost_messages_are_reported_before_the_new_session_is_found() {
        let (shared, _folder) = shared(HOUR);
        let registry = &shared.registry;
        let [alice, bob, again] = ["alice", "bob", "bob"].map(session);
        [&alice, &bob].iter().for_each(|one| _ = registry.insert(&one.0, 9));
        let key = WrappedKey::new(&[1; 264]);
        let mut list = FlushList::default();
        let mut deliver = |id| {
            let receipt = Receipt { sender: Arc::downgrade(&alice.0.outbox), id };
            bob.0.outbox.deliver(Frame::envelope((*b"{}\n").into()), Some((&key, Some(receipt))), &mut list)
        };
        assert_eq!(deliver(7), Queued::Yes);
        assert!(registry.insert(&again.0, 9));
        assert_eq!(deliver(8), Queued::Gone);
        let line = ServerMessage::Lost(Lost { id: 7, name: bob.0.name.clone() }).encode();
        let mut got = vec![0; line.len()];
        alice.1.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        (&alice.1).read_exact(&mut got).expect("a line");
        assert_eq!(got, line);
        // Only once, however the former session ends.
        assert!(
            bob.0.outbox.close(&bob.0.name, Condition::Always, None, &mut FlushList::default()).is_none()
        );
    }
}
