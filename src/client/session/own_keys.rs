//! The own session keys, and their renewal within a day.
//!
//! Invariant: a key that others may have been told still opens what they sealed for it; one that is a minute past
//! its replacement is gone, and with it what it could open. Specification: PROTOCOL#keys.

use super::{Effect, Session};
use crate::crypto::keys::SessionKey;
use crate::crypto::public::{Fingerprint, SESSION_KEY_LIFETIME, SessionCertificate};
use crate::protocol::ClientMessage;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A former session key still opens what was under way when it was renewed.
const FORMER_KEY_KEPT: Duration = Duration::from_secs(60);
/// A new session key is made an hour before the old one's day is over: time for some attempts.
const RENEW_AFTER: Duration = SESSION_KEY_LIFETIME.saturating_sub(Duration::from_secs(3600));
/// A renewal that failed is tried again after this time: five more attempts before the day is over.
const RENEW_AGAIN: Duration = Duration::from_secs(600);

/// The own session keys: the current one, one that the server has not confirmed yet, and
/// former ones for what is still under way.
pub struct OwnKeys {
    current: Arc<SessionKey>,
    /// When a new one is to be made.
    due: Instant,
    announced: Option<Arc<SessionKey>>,
    /// The highest `created` of the own certificates, of other machines too, in milliseconds since 1970.
    newest: u64,
    former: Vec<(Arc<SessionKey>, Instant)>,
}

impl OwnKeys {
    /// The key of a login.
    pub fn new(current: SessionKey, now: Instant) -> OwnKeys {
        let (current, due) = (Arc::new(current), now + RENEW_AFTER);
        OwnKeys { current, due, announced: None, newest: 0, former: Vec::new() }
    }

    /// What others are told to encrypt to. Who holds it on keeps it alive.
    pub fn current(&self) -> Arc<SessionKey> {
        self.current.clone()
    }

    /// Every key that still decrypts.
    pub fn all(&self) -> impl Iterator<Item = &SessionKey> {
        let others = self.announced.iter().chain(self.former.iter().map(|(key, _)| key));
        std::iter::once(&self.current).chain(others).map(Arc::as_ref)
    }

    /// Whether one of them has this fingerprint.
    pub fn holds(&self, fingerprint: Fingerprint) -> bool {
        self.all().any(|key| key.fingerprint() == fingerprint)
    }

    /// The server has confirmed the announced key. False if there is none.
    fn confirm(&mut self, now: Instant) -> bool {
        let Some(new) = self.announced.take() else { return false };
        self.former.push((std::mem::replace(&mut self.current, new), now));
        self.due = now + RENEW_AFTER;
        true
    }

    /// The server has refused a certificate: it has taken one of `newest`, in milliseconds since 1970.
    pub fn learn(&mut self, newest: u64) {
        self.newest = self.newest.max(newest);
    }

    fn forget_former(&mut self, now: Instant) {
        self.former.retain(|(_, replaced)| now.duration_since(*replaced) < FORMER_KEY_KEPT);
    }

    /// A new session has begun with a key of its own; what it replaces counts as former.
    pub fn restart(&mut self, current: SessionKey, now: Instant) {
        let former = std::mem::replace(self, OwnKeys::new(current, now));
        self.newest = former.newest;
        let replaced = [Some(former.current), former.announced].into_iter().flatten();
        self.former = replaced.map(|key| (key, now)).chain(former.former).collect();
    }
}

impl Session {
    /// Forgets former keys, and has a new one made in time.
    pub(super) fn keys_tick(&mut self, now: Instant) {
        self.keys.forget_former(now);
        if now >= self.keys.due {
            // Unless it is confirmed.
            self.keys.due = now + RENEW_AGAIN;
            self.effects.push(Effect::MakeSessionKey);
        }
    }

    /// The session key of a login was certified at `created`; the server has taken certificates up to `newest` before, both in
    /// milliseconds since 1970. Others refuse it if it is not the newest: then another one is made at once. PROTOCOL#newest.
    pub fn certified(mut self, created: u64, newest: u64) -> Session {
        self.certified_key(created, newest);
        self
    }

    pub(super) fn certified_key(&mut self, created: u64, newest: u64) {
        // What a former login in this run was certified at, unless the clock was set back since.
        let known = self.keys.newest;
        let is_ahead = SessionCertificate::next_created(known, self.now) <= known;
        let newest = if is_ahead { newest } else { newest.max(known) };
        if created <= newest {
            self.keys.due = self.instant;
        }
        self.keys.newest = created.max(newest);
        self.remember_own(created, self.keys.current.fingerprint());
    }

    /// For the next login, whose server may have forgotten it.
    fn remember_own(&mut self, created: u64, key: Fingerprint) {
        let identity = self.identity.public().fingerprint();
        self.peers.certificates.admit(&self.me, identity, (created, key), self.now.max(created));
    }

    /// Announces a new session key. It opens messages from here on, because the server may tell
    /// it to others before its confirmation is here; it is the current one after that.
    pub(super) fn announce(&mut self, key: SessionKey, now: Instant) {
        let created = SessionCertificate::next_created(self.keys.newest, self.now);
        self.keys.newest = self.keys.newest.max(created);
        self.remember_own(created, key.fingerprint());
        let certificate = self.identity.certify(&self.me, &key, created);
        self.effects.push(Effect::Send(ClientMessage::Renew(Box::new(certificate))));
        // One that was announced in vain may have reached somebody.
        let former = self.keys.announced.replace(Arc::new(key));
        self.keys.former.extend(former.map(|key| (key, now)));
    }

    /// The server has answered a `renew`; it had taken certificates up to `newest` before. PROTOCOL#renew.
    pub(super) fn renewed(&mut self, newest: u64, now: Instant) {
        if !self.keys.confirm(now) {
            return self.out_of_place();
        }
        if newest >= self.keys.newest {
            // Another machine logs in at this moment, or the server plays with us.
            (self.keys.newest, self.keys.due) = (newest, now + RENEW_AGAIN);
        }
        self.outbox.restart_numbers();
        self.peers.restart_numbers();
    }
}
