//! The own account: the identity key, the session keys and their renewal within a day, and a change of the password.
//!
//! Invariant: a key that others may have been told still opens what they sealed for it; one that was replaced a minute
//! ago is gone, and with it what it could open. Specification: PROTOCOL#keys.

use crate::crypto::keys::{IdentityKey, SessionKey};
use crate::crypto::public::{Fingerprint, SESSION_KEY_LIFETIME, SessionCertificate};
use crate::name::Username;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For this time, a former session key opens messages that were sealed before its renewal.
const FORMER_KEY_KEPT: Duration = Duration::from_secs(60);
/// A session key is renewed after this time, an hour before it expires: there is time for several attempts.
const RENEW_AFTER: Duration = SESSION_KEY_LIFETIME.saturating_sub(Duration::from_secs(3600));
/// A failed renewal is repeated after this time: five more attempts before the key expires.
const RENEW_AGAIN: Duration = Duration::from_secs(600);

/// The last change of the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PasswordChange {
    /// There was none, or it succeeded.
    None,
    /// It is in progress.
    Running,
    /// It failed.
    Failed,
}

/// The user's own keys.
pub struct Account {
    /// Signs.
    pub identity: Arc<IdentityKey>,
    /// The server's key; `None` without TLS. PROTOCOL#broadcast-server.
    pub server: Option<Fingerprint>,
    current: Arc<SessionKey>,
    /// When a new one is to be made.
    due: Instant,
    /// One that the server has not confirmed yet.
    announced: Option<Arc<SessionKey>>,
    /// Replaced keys that still decrypt, and when each was replaced.
    former: Vec<(Arc<SessionKey>, Instant)>,
    /// The highest `created` of the own certificates, of other machines too, in milliseconds since 1970.
    newest: u64,
    /// The last change of the password.
    pub password: PasswordChange,
}

impl Account {
    /// With the session key of a login.
    pub fn new(identity: Arc<IdentityKey>, current: SessionKey, now: Instant) -> Account {
        Account {
            identity,
            server: None,
            current: Arc::new(current),
            due: now + RENEW_AFTER,
            announced: None,
            former: Vec::new(),
            newest: 0,
            password: PasswordChange::None,
        }
    }

    /// The session key that others are told to encrypt to. Who holds it on keeps it alive.
    pub fn current(&self) -> Arc<SessionKey> {
        self.current.clone()
    }

    /// Every session key that still decrypts.
    pub fn session_keys(&self) -> impl Iterator<Item = &SessionKey> {
        let others = self.announced.iter().chain(self.former.iter().map(|(key, _)| key));
        std::iter::once(&self.current).chain(others).map(Arc::as_ref)
    }

    /// Whether one of them has this fingerprint.
    pub fn holds(&self, fingerprint: Fingerprint) -> bool {
        self.session_keys().any(|key| key.fingerprint() == fingerprint)
    }

    /// The fingerprint of the identity key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.identity.public().fingerprint()
    }

    /// The server has refused a certificate: it has taken one of `newest`, in milliseconds since 1970.
    pub fn learn(&mut self, newest: u64) {
        self.newest = self.newest.max(newest);
    }

    /// A new session has begun with a key of its own; what it replaces counts as former.
    pub fn restart(&mut self, current: SessionKey, now: Instant) {
        let replaced = std::mem::replace(&mut self.current, Arc::new(current));
        let replaced = [Some(replaced), self.announced.take()].into_iter().flatten();
        self.former.extend(replaced.map(|key| (key, now)));
        self.due = now + RENEW_AFTER;
    }

    /// Forgets former keys; whether a new one is to be made.
    pub fn tick(&mut self, now: Instant) -> bool {
        self.former.retain(|(_, replaced)| now.duration_since(*replaced) < FORMER_KEY_KEPT);
        let is_due = now >= self.due;
        if is_due {
            // Unless it is confirmed.
            self.due = now + RENEW_AGAIN;
        }
        is_due
    }

    /// The current key was certified at `created`; the server has taken certificates up to `newest` before, both in
    /// milliseconds since 1970. Others refuse it if it is not the newest: then another one is made at once. PROTOCOL#newest.
    pub fn certified(&mut self, (created, newest): (u64, u64), (now_ms, now): (u64, Instant)) {
        // What a former login in this run was certified at, unless the clock was set back since.
        let known = self.newest;
        let is_ahead = SessionCertificate::next_created(known, now_ms) <= known;
        let newest = if is_ahead { newest } else { newest.max(known) };
        if created <= newest {
            self.due = now;
        }
        self.newest = created.max(newest);
    }

    /// The certificate of a new session key, for `me`. The key opens messages from here on, because the server may tell it
    /// to others before its confirmation is here; it is the current one after that.
    pub fn announce(
        &mut self,
        me: &Username,
        key: SessionKey,
        (now_ms, now): (u64, Instant),
    ) -> SessionCertificate {
        let created = SessionCertificate::next_created(self.newest, now_ms);
        self.newest = self.newest.max(created);
        let certificate = self.identity.certify(me, &key, created);
        // The server may have shown an earlier one that it did not confirm.
        let former = self.announced.replace(Arc::new(key));
        self.former.extend(former.map(|key| (key, now)));
        certificate
    }

    /// The server has answered a `renew`; it had taken certificates up to `newest` before. False if it was not asked.
    /// PROTOCOL#renew.
    pub fn renewed(&mut self, newest: u64, now: Instant) -> bool {
        let Some(new) = self.announced.take() else { return false };
        self.former.push((std::mem::replace(&mut self.current, new), now));
        self.due = now + RENEW_AFTER;
        if newest >= self.newest {
            // Another machine has logged in at this moment, or the server is not honest.
            (self.newest, self.due) = (newest, now + RENEW_AGAIN);
        }
        true
    }
}
