//! The state that all threads of the server share, and the sweep that ends sessions.

use super::connection_limits::ConnectionLimits;
use super::limits::{Limits, SWEEP};
use super::quotas::Quotas;
use super::rates::Counter;
use super::registry::Registry;
use super::session::Session;
use super::session::flush::Flusher;
use super::session::outbox::Condition;
use super::store::Store;
use super::store::certificates::Certificates;
use crate::crypto::public::Fingerprint;
use crate::protocol::{ErrorCode, ServerMessage};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The interval of [`Limits::registrations`].
const MINUTE: Duration = Duration::from_secs(60);

/// The state that all threads share.
pub struct Shared {
    /// The limits, as the operator has set them.
    pub limits: Limits,
    /// With `--closed`: no new accounts.
    pub closed: bool,
    /// Everything on disk.
    pub store: Store,
    /// The sessions.
    pub registry: Registry,
    /// Sends frames that broadcasts and presence have queued.
    pub flusher: Flusher,
    /// The quotas that all sessions share.
    pub quotas: Arc<Quotas>,
    /// New accounts and changed passwords, by address.
    pub registrations: Mutex<Counter<IpAddr>>,
    /// The open connections.
    pub connections: Arc<ConnectionLimits>,
}

impl Shared {
    /// A server without sessions.
    pub fn new(limits: Limits, closed: bool, mut store: Store) -> Shared {
        store.mail.limits = limits.mail.clone();
        Shared {
            closed,
            registry: Registry::new(store.audit.clone()),
            store,
            flusher: Flusher::default(),
            quotas: Arc::default(),
            registrations: Mutex::new(Counter::new(limits.registrations, MINUTE)),
            connections: Arc::new(ConnectionLimits::new(&limits)),
            limits,
        }
    }

    /// The fingerprint of the server's key: `None` without TLS.
    pub fn server_key(&self) -> Option<Fingerprint> {
        self.store.certificates.as_ref().map(Certificates::key)
    }

    /// Closes all connections once after the key has changed: clients of the former key would refuse the broadcasts of
    /// clients of the new one. PROTOCOL#broadcast-server.
    pub fn end_connections_of_another_key(&self) {
        if self.store.certificates.as_ref().is_some_and(Certificates::take_new_key) {
            self.registry.all().iter().for_each(|session| session.outbox.disconnect());
        }
    }

    /// Ends a session, and tells its client why.
    pub fn dismiss(&self, session: &Arc<Session>, code: ErrorCode, text: &str) {
        self.registry.end(session, Condition::Always, Some(&ServerMessage::error(code, text)));
    }

    /// Ends the session that has been without a connection for longest, to make room for another. False if every
    /// session has one.
    pub fn end_longest_detached(&self) -> bool {
        let mut detached = std::iter::from_fn(|| self.registry.longest_detached());
        // Try the next one if a client has just resumed its session.
        detached.any(|(since, session)| self.registry.end(&session, Condition::DetachedSince(since), None))
    }

    /// The sweep thread.
    pub fn run_sweep(&self) -> ! {
        loop {
            std::thread::sleep(SWEEP);
            self.sweep(Instant::now());
        }
    }

    /// Ends the sessions that have been detached for too long, whose certificate other users no longer accept, or for
    /// which too much waits. Forgets farewells that are over. PROTOCOL#outlives, PROTOCOL#certificate-ends.
    pub fn sweep(&self, now: Instant) {
        self.registry.sweep();
        for session in self.registry.all() {
            let is_late = |since: &Instant| now.saturating_duration_since(*since) >= self.limits.grace;
            if !session.is_certified(now) {
                let text = "the certificate of your session key has expired: a new login is needed";
                self.dismiss(&session, ErrorCode::CertificateExpired, text);
            } else if session.outbox.is_full() {
                self.registry.end(&session, Condition::Always, None);
            } else if let Some(since) = session.outbox.detached().filter(is_late) {
                self.registry.end(&session, Condition::DetachedSince(since), None);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::session::frames::{Frame, Receipt};
    use super::super::session::outbox::tests::{attach, link, link_from, next};
    use super::super::session::outbox::{Attached, FlushList, Queued};
    use super::super::session::tests::session;
    use super::super::store::accounts::tests::Folder;
    use super::*;
    use crate::protocol::{Lost, WrappedKey};
    use std::net::TcpStream;

    pub const HOUR: Duration = Duration::from_secs(3600);

    /// The state of a server without a listener, and its data folder.
    pub fn shared(grace: Duration) -> (Arc<Shared>, Folder) {
        let folder = Folder::new();
        let limits = Limits { grace, ..Limits::for_machine(1024, 65_530) };
        let store = Store::open(&folder.0, false, &mut Vec::new()).expect("a new folder");
        (Arc::new(Shared::new(limits, false, store)), folder)
    }

    /// A session with a connection, and its other end.
    pub fn member(shared: &Shared, name: &str) -> (Arc<Session>, TcpStream) {
        let (session, far) = session(name);
        assert!(shared.registry.insert(&session, 100));
        (session, far)
    }

    /// A session without a connection.
    fn away(shared: &Shared, name: &str) -> Arc<Session> {
        let (session, _) = member(shared, name);
        session.outbox.disconnect();
        session
    }

    fn is_online(shared: &Shared, name: &str) -> bool {
        shared.registry.get(&name.parse().expect("name")).is_some()
    }

    fn logouts(shared: &Shared, folder: &Folder) -> usize {
        shared.store.audit.flush();
        let log = std::fs::read_to_string(folder.0.join("logs/security.log")).expect("a log");
        log.matches("event=logout").count()
    }

    /// PROTOCOL#full.
    #[test]
    fn only_the_longest_detached_session_makes_room() {
        let (shared, folder) = shared(HOUR);
        let (_served, _far) = member(&shared, "served");
        ["first", "second", "third"].iter().for_each(|name| _ = away(&shared, name));
        let there = || ["served", "first", "second", "third"].map(|name| is_online(&shared, name));
        assert!(shared.end_longest_detached());
        assert_eq!(there(), [true, false, true, true]);
        assert!(shared.end_longest_detached());
        assert_eq!(there(), [true, false, false, true]);
        assert!(shared.end_longest_detached() && !shared.end_longest_detached());
        assert_eq!((there(), logouts(&shared, &folder)), ([true, false, false, false], 3));
    }

    /// PROTOCOL#ends-at-once.
    #[test]
    fn dismissed_user_is_offline_at_once_and_reported_once() {
        let (shared, folder) = shared(HOUR);
        let (away, (served, _far)) = (away(&shared, "away"), member(&shared, "served"));
        for (session, name) in [(&away, "away"), (&served, "served")] {
            shared.dismiss(session, ErrorCode::AccountRemoved, "");
            assert!(!is_online(&shared, name) && !session.outbox.is_open());
            shared.registry.end(session, Condition::Always, None);
        }
        assert_eq!(logouts(&shared, &folder), 2);
    }

    /// PROTOCOL#certificate-ends.
    #[test]
    fn session_ends_with_its_certificate() {
        let (shared, folder) = shared(HOUR);
        let [(old, _old), (_new, _far)] = ["old", "new"].map(|name| member(&shared, name));
        let away = away(&shared, "away");
        shared.sweep(Instant::now());
        assert!(is_online(&shared, "old") && is_online(&shared, "away"));
        [&old, &away].iter().for_each(|session| session.expire());
        shared.sweep(Instant::now());
        assert!(!is_online(&shared, "old") && !is_online(&shared, "away") && is_online(&shared, "new"));
        assert!(!old.outbox.is_open() && logouts(&shared, &folder) == 2);
    }

    /// PROTOCOL#ends-at-once.
    #[test]
    fn sweep_ends_a_detached_session_that_overflows() {
        let (shared, folder) = shared(HOUR);
        let away = away(&shared, "away");
        // Its limit is a mebibyte.
        (0..5).for_each(|_| away.outbox.send(Frame::line(vec![b'x'; 1 << 20])));
        assert!(!away.outbox.is_open() && is_online(&shared, "away"));
        shared.sweep(Instant::now());
        assert!(!is_online(&shared, "away") && logouts(&shared, &folder) == 1);
    }

    /// PROTOCOL#lost.
    #[test]
    fn overflow_reports_lost_messages() {
        let (shared, _folder) = shared(HOUR);
        let ((alice, far), bob) = (member(&shared, "alice"), away(&shared, "bob"));
        let receipt = Receipt { sender: Arc::downgrade(&alice.outbox), id: 7 };
        let key = WrappedKey::new(&[1; 264]);
        let frame = Frame::envelope((*b"{}\n").into());
        let queued = bob.outbox.deliver(frame, Some((&key, Some(receipt))), &mut FlushList::default());
        assert_eq!(queued, Queued::Yes);
        (0..5).for_each(|_| bob.outbox.send(Frame::line(vec![b'x'; 1 << 20])));
        shared.sweep(Instant::now());
        let line = ServerMessage::Lost(Lost { id: 7, name: bob.name.clone() }).encode();
        assert_eq!(next(&far, line.len()).into_bytes(), line);
    }

    /// PROTOCOL#outlives.
    #[test]
    fn sweep_ends_a_detached_session_after_its_grace_period() {
        let (shared, _folder) = shared(HOUR);
        let (_served, _far) = member(&shared, "served");
        let away = away(&shared, "away");
        let since = away.outbox.detached().expect("it has no connection");
        shared.sweep(since + HOUR - Duration::from_millis(1));
        assert!(is_online(&shared, "away"));
        shared.sweep(since + HOUR);
        assert!(!is_online(&shared, "away") && is_online(&shared, "served"));
    }

    /// PROTOCOL#outlives, PROTOCOL#full.
    #[test]
    fn session_that_resumes_in_time_continues() {
        type End = fn(&Shared);
        let ends: [End; 2] =
            [|shared| shared.sweep(Instant::now()), |shared| _ = shared.end_longest_detached()];
        for end in ends {
            let (shared, _folder) = shared(Duration::ZERO);
            for n in 0..50 {
                let name = format!("away{n}");
                let away = away(&shared, &name);
                let (link, _far) = link();
                let held = shared.registry.hold();
                std::thread::scope(|scope| {
                    let ending = scope.spawn(|| end(&shared));
                    // Usually, that thread has noticed by now that the session has no connection.
                    (0..100).for_each(|_| std::thread::yield_now());
                    assert_eq!(attach(&away.outbox, &link, 0), Attached::Yes);
                    drop(held);
                    ending.join().expect("whole");
                });
                assert!(away.outbox.serves(&link) && is_online(&shared, &name));
            }
        }
    }

    /// PROTOCOL#outlives.
    #[test]
    fn logout_names_the_last_address_of_the_client() {
        let (shared, folder) = shared(HOUR);
        let away = away(&shared, "away");
        let (link, _far) = link_from([192, 0, 2, 7].into());
        assert!(matches!(attach(&away.outbox, &link, 0), Attached::Yes));
        away.outbox.disconnect();
        assert!(shared.registry.end(&away, Condition::Always, None) && logouts(&shared, &folder) == 1);
        let log = std::fs::read_to_string(folder.0.join("logs/security.log")).expect("a log");
        let line = log.lines().find(|line| line.contains("event=logout")).expect("its end");
        assert!(line.contains("192.0.2.7"), "{line}");
    }
}
