//! One person's login on this server: what others may ask for, and where their messages go.

use super::lock;
use super::outbox::Outbox;
use crate::auth::Authenticated;
use crate::crypto::public::{SESSION_KEY_LIFETIME, SessionCertificate};
use crate::crypto::secret::Key;
use crate::encoding::Bytes;
use crate::name::Username;
use crate::protocol::{self, PersonKeys, SessionKeyFields};
use std::sync::{Arc, Mutex};

/// A logged-in person. Made from an [`Authenticated`] alone.
pub struct Session {
    pub name: Username,
    pub outbox: Arc<Outbox>,
    /// The identity key, DER.
    identity: Vec<u8>,
    current: Mutex<Current>,
}

/// What a renewal replaces.
struct Current {
    /// The session key's short fingerprint.
    key_name: String,
    certificate: SessionKeyFields,
    token: Key,
    /// Milliseconds since 1970.
    expires: u64,
}

impl Current {
    fn new(certificate: &SessionCertificate, now_ms: u64) -> Current {
        Current {
            key_name: certificate.key.fingerprint().short(),
            certificate: SessionKeyFields::new(certificate),
            token: Key::random(),
            expires: now_ms + SESSION_KEY_LIFETIME.as_millis() as u64,
        }
    }

    fn announcement(&self) -> protocol::Session {
        protocol::Session { token: self.token.duplicate(), expires: self.expires }
    }
}

impl Session {
    /// The session, and what its client is told.
    pub fn new(login: &Authenticated, outbox: Arc<Outbox>, now_ms: u64) -> (Session, protocol::Session) {
        let current = Current::new(login.certificate(), now_ms);
        let announcement = current.announcement();
        let session = Session {
            name: login.name().clone(),
            outbox,
            identity: login.identity().spki(),
            current: Mutex::new(current),
        };
        (session, announcement)
    }

    /// Takes a new session key, whose certificate was verified.
    pub fn renew(&self, certificate: &SessionCertificate, now_ms: u64) -> protocol::Session {
        let new = Current::new(certificate, now_ms);
        let announcement = new.announcement();
        *lock(&self.current) = new;
        announcement
    }

    /// Whether `key_name` names the session key in use.
    pub fn uses_key(&self, key_name: &str) -> bool {
        lock(&self.current).key_name == key_name
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
