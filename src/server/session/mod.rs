//! One login of a user: its keys for other users, and the outbox for their messages.
//!
//! A session outlives its connections; its [`Outbox`] exchanges frames with the client. Every lock here is held for a
//! few instructions; [`outbox`] states their order.

pub mod flush;
pub mod frames;
pub mod io;
pub mod outbox;

use crate::auth::Authenticated;
use crate::crypto::public::{
    Fingerprint, IdentityPublicKey, KeyId, SESSION_KEY_LIFETIME, SessionCertificate,
};
use crate::crypto::secret::Key;
use crate::name::Username;
use crate::protocol::{self, MAX_GRANTED, UserKeys};
use crate::sync::lock;
use frames::{Frame, Sender};
use outbox::{Buffers, Outbox, Queued};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Remembered tokens of replaced sessions: two for each of two, enough for a user who moves between three machines.
const SUPERSEDED: usize = 4;
/// The number of tokens that [`Session::tokens`] returns: constant, so that an answer's time reveals nothing.
const TOKENS: usize = OWN_TOKENS + SUPERSEDED;
/// The number of them that resume the session, the first ones: the latest token, and the one before it.
pub const OWN_TOKENS: usize = 2;

/// A logged-in user. Only an [`Authenticated`] makes one.
pub struct Session {
    /// The name, in the account's letter case.
    pub name: Username,
    /// Identifies its frames in other sessions' outboxes.
    pub sender: Sender,
    /// Exchanges frames with the client.
    pub outbox: Arc<Outbox>,
    /// The identity key, DER.
    identity: Vec<u8>,
    current: Mutex<Current>,
    /// The [`KeyId`] of the session key in use, as a number. Changes together with `current`, under its lock.
    key_id: AtomicU64,
    /// Tokens of the sessions that this one has replaced, the latest first: a client that resumes one learns of the
    /// replacement.
    superseded: Mutex<[Key; SUPERSEDED]>,
    /// The number of packets that a sender may send to this client, by sender and transfer. None is 0, so there are at
    /// most [`MAX_GRANTED`] entries.
    granted: Mutex<HashMap<(Username, [u8; 16]), u32>>,
}

/// The values that a renewal replaces.
struct Current {
    certificate: SessionCertificate,
    token: Key,
    /// Milliseconds since 1970.
    expires: u64,
    /// The end of the certificate, as an [`Instant`] of when it was accepted: setting the clock ends no session.
    certified_until: Instant,
    /// The former token, in case the answer to the renewal was lost, and when it expires.
    former: (Key, u64),
}

impl Current {
    fn new(certificate: &SessionCertificate, now_ms: u64, former: (Key, u64)) -> Current {
        Current {
            certificate: certificate.clone(),
            token: Key::random(),
            expires: now_ms + SESSION_KEY_LIFETIME.as_millis() as u64,
            certified_until: Instant::now() + certificate.time_left(now_ms),
            former,
        }
    }

    /// See [`Session::tokens`].
    fn tokens(&self, now_ms: u64) -> [Key; 2] {
        let (former, until) = &self.former;
        [(&self.token, self.expires), (former, *until)]
            .map(|(token, expires)| if now_ms < expires { token.duplicate() } else { Key::random() })
    }
}

fn key_number(certificate: &SessionCertificate) -> u64 {
    u64::from_be_bytes(Fingerprint::of(&certificate.session_key.0).key_id())
}

impl Session {
    /// A session that begins at `now_ms`, in milliseconds since 1970.
    pub fn new(login: &Authenticated, now_ms: u64, outbox: Outbox) -> Session {
        Session {
            name: login.name().clone(),
            sender: Sender::of(login.name()),
            outbox: Arc::new(outbox),
            identity: login.identity().spki(),
            current: Mutex::new(Current::new(login.certificate(), now_ms, (Key::random(), 0))),
            key_id: AtomicU64::new(key_number(login.certificate())),
            superseded: Mutex::new(std::array::from_fn(|_| Key::random())),
            granted: Mutex::default(),
        }
    }

    /// The message to the client after a login or a renewal. `newest` is the time of the newest certificate before the
    /// one in use, in milliseconds since 1970.
    pub fn announcement(&self, newest: u64) -> protocol::Session {
        let current = lock(&self.current);
        protocol::Session { token: current.token.duplicate(), expires: current.expires, newest }
    }

    /// Accepts a new session key whose certificate was verified. False if it is older than the one in use: a thief of
    /// the session, without the identity key, has only older ones. `now_ms` is in milliseconds since 1970.
    pub fn renew(&self, certificate: &SessionCertificate, now_ms: u64) -> bool {
        let mut current = lock(&self.current);
        if certificate.created < current.certificate.created {
            return false;
        }
        let former = (current.token.duplicate(), current.expires);
        *current = Current::new(certificate, now_ms, former);
        self.key_id.store(key_number(certificate), Ordering::Release);
        true
    }

    /// The tokens that resume the session ([`OWN_TOKENS`]; one that has expired by `now_ms`, in milliseconds since
    /// 1970, is replaced by random bytes), then those of the sessions that it has replaced. PROTOCOL#latest-token.
    pub fn tokens(&self, now_ms: u64) -> [Key; TOKENS] {
        let [current, former] = lock(&self.current).tokens(now_ms);
        let [a, b, c, d] = lock(&self.superseded).each_ref().map(Key::duplicate);
        [current, former, a, b, c, d]
    }

    /// Remembers that this session has replaced `former`.
    pub fn supersede(&self, former: &Session) {
        let [a, b, ..] = lock(&former.superseded).each_ref().map(Key::duplicate);
        let current = lock(&former.current);
        *lock(&self.superseded) = [current.token.duplicate(), current.former.0.duplicate(), a, b];
    }

    /// Whether other users still accept the certificate of its session key.
    pub fn is_certified(&self, now: Instant) -> bool {
        now < lock(&self.current).certified_until
    }

    /// The identity key.
    pub fn identity(&self) -> IdentityPublicKey {
        IdentityPublicKey::parse(&self.identity).expect("it is the encoding of one")
    }

    /// Whether `key_id` is that of the session key in use. Takes no lock, because a broadcast asks a thousand sessions.
    pub fn uses_key(&self, key_id: KeyId) -> bool {
        self.key_id.load(Ordering::Acquire) == u64::from_be_bytes(key_id)
    }

    /// Lets `sender` send this number of further packets. False, and nothing changes, if more than [`MAX_GRANTED`]
    /// would be granted or waiting for this client. PROTOCOL#grants, PROTOCOL#granted-limit.
    pub fn grant(&self, sender: &Username, transfer: [u8; 16], count: u32) -> bool {
        let mut granted = lock(&self.granted);
        let total = granted.values().sum::<u32>().saturating_add(self.outbox.packets());
        let fits = count > 0 && count <= MAX_GRANTED.saturating_sub(total);
        if fits {
            *granted.entry((sender.clone(), transfer)).or_default() += count;
        }
        fits
    }

    /// Revokes the grant of `sender` for this transfer.
    pub fn revoke(&self, sender: &Username, transfer: [u8; 16]) {
        lock(&self.granted).remove(&(sender.clone(), transfer));
    }

    /// Queues a packet, and uses one of those granted to `sender`. Both change under one lock, so that
    /// [`Session::grant`] counts the packet once.
    pub fn admit(&self, sender: &Username, transfer: [u8; 16], packet: impl FnOnce() -> Frame) -> Queued {
        let mut granted = lock(&self.granted);
        let place = (sender.clone(), transfer);
        let Some(left) = granted.get_mut(&place) else { return Queued::Gone };
        let queued = self.outbox.put_packet(packet);
        if queued != Queued::Yes {
            return queued;
        }
        *left -= 1;
        if *left == 0 {
            granted.remove(&place);
        }
        drop(granted);
        self.outbox.flush(&mut Buffers::default());
        Queued::Yes
    }

    /// The answer to a request for this user's keys.
    pub fn keys(&self) -> UserKeys {
        UserKeys::new(self.name.clone(), self.identity.clone(), Some(&lock(&self.current).certificate))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::outbox::tests::{link, outbox_on};
    use super::*;
    use crate::crypto::keys::SessionKey;
    use crate::crypto::public::{Fingerprint, RSA_BYTES};
    use crate::encoding::{Bytes, Fixed};
    use std::net::TcpStream;
    use std::time::Duration;

    impl Session {
        /// Whether `sender` may send a packet.
        pub fn has_granted(&self, sender: &Username, transfer: [u8; 16]) -> bool {
            lock(&self.granted).contains_key(&(sender.clone(), transfer))
        }

        /// Uses up one granted packet, with an empty one.
        pub fn take_grant(&self, sender: &Username, transfer: [u8; 16]) -> bool {
            self.admit(sender, transfer, || Frame::packet(Vec::new(), b"")) == Queued::Yes
        }

        /// Makes its certificate expire.
        pub fn expire(&self) {
            lock(&self.current).certified_until = Instant::now();
        }
    }

    /// The id of a file transfer.
    pub const TRANSFER: [u8; 16] = [9; 16];

    pub fn name(name: &str) -> Username {
        name.parse().expect("name")
    }

    fn key(byte: u8) -> Key {
        Key::new([byte; 32])
    }

    /// The values of a renewal, with an unverified certificate.
    fn current(token: Key, expires: u64, former: (Key, u64)) -> Current {
        let certificate =
            SessionCertificate { session_key: Bytes(Vec::new()), created: 0, certificate: Fixed([0; 256]) };
        let certified_until = Instant::now() + SESSION_KEY_LIFETIME;
        Current { certificate, token, expires, certified_until, former }
    }

    /// A session without a login, and the other end of its connection.
    pub fn session(name: &str) -> (Arc<Session>, TcpStream) {
        let (link, far) = link();
        let outbox = outbox_on(link, 1024 * 1024);
        let session = Session {
            name: name.parse().expect("name"),
            sender: Sender::of(&name.parse().expect("name")),
            outbox,
            identity: Vec::new(),
            current: Mutex::new(current(Key::random(), u64::MAX, (Key::random(), u64::MAX))),
            key_id: AtomicU64::new(0),
            superseded: Mutex::new(std::array::from_fn(|_| Key::random())),
            granted: Mutex::default(),
        };
        (Arc::new(session), far)
    }

    /// PROTOCOL#latest-token.
    #[test]
    fn latest_two_tokens_are_valid_until_they_expire() {
        let current = current(key(1), 20, (key(2), 10));
        let good = |now| {
            let [token, former] = current.tokens(now);
            (token == key(1), former == key(2))
        };
        assert_eq!(
            (good(9), good(10), good(19), good(20)),
            ((true, true), (true, false), (true, false), (false, false))
        );
    }

    #[test]
    fn replacement_knows_the_tokens_of_two_former_sessions() {
        let sessions = [1, 3, 5, 7].map(|byte| {
            let (session, _) = session("alice");
            *lock(&session.current) = current(key(byte), 20, (key(byte + 1), 10));
            session
        });
        for two in sessions.windows(2) {
            two[1].supersede(&two[0]);
        }
        // Also after their expiry: a client that returns with one learns of the replacement.
        assert!(sessions[3].tokens(9) == [key(7), key(8), key(5), key(6), key(3), key(4)]);
        let late = sessions[3].tokens(20);
        assert!(late[2..] == [key(5), key(6), key(3), key(4)]);
        assert!(late[0] != key(7) && late[1] != key(8));
    }

    /// PROTOCOL#renew.
    #[test]
    fn renewal_never_returns_to_an_older_key() {
        let (session, _far) = session("alice");
        let certificate = |created| SessionCertificate {
            session_key: Bytes(SessionKey::generate().public().spki()),
            created,
            certificate: Fixed([0; RSA_BYTES]),
        };
        let now = certificate(2);
        for (certificate, is_taken) in
            [(&certificate(1), true), (&now, true), (&now, true), (&certificate(1), false)]
        {
            assert_eq!(session.renew(certificate, 0), is_taken);
        }
        assert!(session.uses_key(Fingerprint::of(&now.session_key.0).key_id()), "as before");
    }

    /// PROTOCOL#certificate-ends.
    #[test]
    fn session_is_certified_for_the_time_that_is_left() {
        let (session, _far) = session("alice");
        let (hour, minute) = (3_600_000, Duration::from_secs(60));
        for (created, left) in [(50 * hour, 26 * hour), (48 * hour, 24 * hour), (52 * hour, 28 * hour)] {
            let session_key = Bytes(SessionKey::generate().public().spki());
            let certificate = SessionCertificate { session_key, created, certificate: Fixed([0; RSA_BYTES]) };
            *lock(&session.current) = Current::new(&certificate, 50 * hour, (Key::random(), 0));
            let end = Instant::now() + Duration::from_millis(left);
            assert!(session.is_certified(end - minute) && !session.is_certified(end));
        }
    }

    #[test]
    fn only_the_session_key_in_use_has_its_id() {
        let (session, _far) = session("alice");
        assert!(session.uses_key(Fingerprint([0; 32]).key_id()));
        assert!(!session.uses_key(Fingerprint([1; 32]).key_id()));
    }

    #[test]
    fn packets_are_granted_per_sender_and_transfer_up_to_the_limit() {
        let (alice, _far) = session("alice");
        let [bob, carol]: [Username; 2] = ["bob", "carol"].map(|name| name.parse().expect("name"));
        let (one, other) = ([1; 16], [2; 16]);
        assert!(!alice.grant(&bob, one, 0) && !alice.grant(&bob, one, MAX_GRANTED + 1));
        assert!(
            !alice.has_granted(&bob, one) && !alice.take_grant(&bob, one),
            "a refused grant has no effect"
        );
        assert!(alice.grant(&bob, one, 2) && alice.grant(&bob, one, 1) && alice.has_granted(&bob, one));
        for (name, transfer) in [(&carol, one), (&bob, other)] {
            assert!(!alice.has_granted(name, transfer) && !alice.take_grant(name, transfer));
        }
        assert!(!alice.grant(&carol, one, MAX_GRANTED - 2), "of all together");
        assert!(alice.grant(&carol, one, MAX_GRANTED - 3) && !alice.grant(&carol, other, 1));
        // Each used packet makes room for another.
        for _ in 0..3 {
            assert!(alice.take_grant(&bob, one));
        }
        assert!(!alice.take_grant(&bob, one) && !alice.has_granted(&bob, one));
        assert!(!alice.grant(&bob, other, 4) && alice.grant(&bob, other, 3));
        // A waiting packet counts like a granted one.
        alice.outbox.disconnect();
        assert!(alice.take_grant(&bob, other));
        assert!(!alice.grant(&bob, other, 1));
        alice.revoke(&carol, one);
        assert!(!alice.take_grant(&carol, one) && alice.take_grant(&bob, other), "other grants stay");
    }
}
