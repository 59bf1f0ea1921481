//! One person's login on this server: what others may ask for, and where their messages go.
//!
//! It outlives connections: what goes to the client is the [`Outbox`]'s, what comes from it belongs to whoever
//! holds the turn ([`grace`](super::grace)), and nothing here belongs to a connection. Every lock is held for a few
//! instructions; `granted` is taken before the outbox's, no others are held together.

use super::grace::Slot;
use super::lock;
use super::outbox::Outbox;
use crate::auth::Authenticated;
use crate::crypto::public::{IdentityPublicKey, SESSION_KEY_LIFETIME, SessionCertificate, ShortFingerprint};
use crate::crypto::secret::Key;
use crate::encoding::Bytes;
use crate::name::Username;
use crate::protocol::{self, MAX_GRANTED, PersonKeys, SessionKeyFields};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Tokens of sessions that were taken over and can still be told so, two for each: enough for a person who moves between
/// three machines.
const SUPERSEDED: usize = 4;
/// How many [`Session::tokens`] gives: always the same, so that an answer's time tells nothing.
const TOKENS: usize = OWN_TOKENS + SUPERSEDED;
/// So many of them, the first ones, resume the session: the latest, and the one before it.
pub const OWN_TOKENS: usize = 2;

/// A logged-in person. Made from an [`Authenticated`] alone.
pub struct Session {
    /// In the letter case of the account.
    pub name: Username,
    /// What goes to the client.
    pub outbox: Arc<Outbox>,
    /// Where the right to read from the client is while there is no connection.
    pub slot: Slot,
    /// The identity key, DER.
    identity: Vec<u8>,
    current: Mutex<Current>,
    /// Tokens of the sessions that this one has taken over from, the latest first: who comes back with one is told so.
    superseded: Mutex<[Key; SUPERSEDED]>,
    /// How many packets others may send to this client, by sender and transfer: none is 0, so that there are
    /// at most [`MAX_GRANTED`].
    granted: Mutex<HashMap<(Username, [u8; 16]), u32>>,
}

/// What a renewal replaces.
struct Current {
    key_name: ShortFingerprint,
    certificate: SessionKeyFields,
    token: Key,
    /// Milliseconds since 1970.
    expires: u64,
    /// The token before this one, in case the answer to the renewal was lost, and its end.
    former: (Key, u64),
}

impl Current {
    fn new(certificate: &SessionCertificate, now_ms: u64, former: (Key, u64)) -> Current {
        Current {
            key_name: certificate.key.fingerprint().short(),
            certificate: SessionKeyFields::new(certificate),
            token: Key::random(),
            expires: now_ms + SESSION_KEY_LIFETIME.as_millis() as u64,
            former,
        }
    }

    /// See [`Session::tokens`].
    fn tokens(&self, now_ms: u64) -> [Key; 2] {
        let (former, until) = &self.former;
        [(&self.token, self.expires), (former, *until)]
            .map(|(token, expires)| if now_ms < expires { token.duplicate() } else { Key::random() })
    }

    fn announcement(&self) -> protocol::Session {
        protocol::Session { token: self.token.duplicate(), expires: self.expires }
    }
}

impl Session {
    /// The session, and what its client is told. `now_ms` is in milliseconds since 1970.
    pub fn new(login: &Authenticated, outbox: Arc<Outbox>, now_ms: u64) -> (Session, protocol::Session) {
        let current = Current::new(login.certificate(), now_ms, (Key::random(), 0));
        let announcement = current.announcement();
        let session = Session {
            name: login.name().clone(),
            outbox,
            slot: Slot::default(),
            identity: login.identity().spki(),
            current: Mutex::new(current),
            superseded: Mutex::new(std::array::from_fn(|_| Key::random())),
            granted: Mutex::default(),
        };
        (session, announcement)
    }

    /// Takes a new session key, whose certificate was verified; what its client is told. `now_ms` is in milliseconds
    /// since 1970.
    pub fn renew(&self, certificate: &SessionCertificate, now_ms: u64) -> protocol::Session {
        let mut current = lock(&self.current);
        let former = (current.token.duplicate(), current.expires);
        *current = Current::new(certificate, now_ms, former);
        current.announcement()
    }

    /// What the session can be resumed with, two of them, of which those that have expired by `now_ms` (milliseconds
    /// since 1970) fit nothing; and behind these those of the sessions that it has taken over from.
    /// README#latest-token.
    pub fn tokens(&self, now_ms: u64) -> [Key; TOKENS] {
        let [current, former] = lock(&self.current).tokens(now_ms);
        let [a, b, c, d] = lock(&self.superseded).each_ref().map(Key::duplicate);
        [current, former, a, b, c, d]
    }

    /// Remembers that this session has taken over from `former`.
    pub fn supersede(&self, former: &Session) {
        let [a, b, ..] = lock(&former.superseded).each_ref().map(Key::duplicate);
        let current = lock(&former.current);
        *lock(&self.superseded) = [current.token.duplicate(), current.former.0.duplicate(), a, b];
    }

    /// The identity key.
    pub fn identity(&self) -> IdentityPublicKey {
        IdentityPublicKey::parse(&self.identity).expect("it is the encoding of one")
    }

    /// Whether `key_name` names the session key in use.
    pub fn uses_key(&self, key_name: ShortFingerprint) -> bool {
        lock(&self.current).key_name == key_name
    }

    /// This client lets `sender` send so many packets more. False, and nothing, if there would be more than
    /// [`MAX_GRANTED`] that are granted, or wait for this client, in all. README#grants, README#granted-limit.
    pub fn grant(&self, sender: &Username, transfer: [u8; 16], count: u32) -> bool {
        let mut granted = lock(&self.granted);
        let total = granted.values().sum::<u32>().saturating_add(self.outbox.packets());
        let fits = count > 0 && count <= MAX_GRANTED.saturating_sub(total);
        if fits {
            *granted.entry((sender.clone(), transfer)).or_default() += count;
        }
        fits
    }

    /// Nothing more is granted to `sender` for this transfer.
    pub fn revoke(&self, sender: &Username, transfer: [u8; 16]) {
        lock(&self.granted).remove(&(sender.clone(), transfer));
    }

    /// Whether `sender` may send a packet.
    pub fn has_granted(&self, sender: &Username, transfer: [u8; 16]) -> bool {
        lock(&self.granted).contains_key(&(sender.clone(), transfer))
    }

    /// Uses up one packet of those granted to `sender`; false if there is none.
    pub fn take_grant(&self, sender: &Username, transfer: [u8; 16]) -> bool {
        let mut granted = lock(&self.granted);
        let place = (sender.clone(), transfer);
        let left = granted.get(&place).copied().unwrap_or(0);
        match left {
            0 => return false,
            1 => granted.remove(&place),
            more => granted.insert(place, more - 1),
        };
        true
    }

    /// What others are told when they ask for this person's keys.
    pub fn keys(&self) -> PersonKeys {
        let current = lock(&self.current);
        PersonKeys {
            name: self.name.clone(),
            identity: Bytes(self.identity.clone()),
            session_key: Some(current.certificate.session_key.clone()),
            created: Some(current.certificate.created),
            certificate: Some(current.certificate.certificate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::public::Fingerprint;
    use crate::encoding::Fixed;

    /// README#latest-token.
    #[test]
    fn a_token_and_the_one_before_it_are_good_until_their_own_time_is_over() {
        let certificate =
            SessionKeyFields { session_key: Bytes(Vec::new()), created: 0, certificate: Fixed([0; 256]) };
        let key = |byte| Key::new([byte; 32]);
        let current = Current {
            key_name: Fingerprint([0; 32]).short(),
            certificate,
            token: key(1),
            expires: 20,
            former: (key(2), 10),
        };
        let good = |now| {
            let [token, former] = current.tokens(now);
            (token == key(1), former == key(2))
        };
        assert_eq!(
            (good(9), good(10), good(19), good(20)),
            ((true, true), (true, false), (true, false), (false, false))
        );
    }
}
