//! The user's own account: the identity key, the session keys and their renewal within a day, and a new password.
//!
//! Invariant: a key that others may still use opens their messages; a minute after its replacement, only a transfer in
//! progress still holds it.
//! Specification: PROTOCOL#keys.

use crate::client::store::mailbox::MailboxFile;
use crate::crypto::keys::{IdentityKey, SessionKey};
use crate::crypto::public::{Fingerprint, SESSION_KEY_LIFETIME, SessionCertificate};
use crate::name::Username;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A former session key opens messages for this time after its renewal.
const FORMER_KEY_KEPT: Duration = Duration::from_secs(60);
/// A session key is renewed after this time, an hour before it expires, which leaves time for several attempts.
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
    /// The identity key, which signs.
    pub identity: Arc<IdentityKey>,
    /// The server's key; `None` without TLS. PROTOCOL#broadcast-server.
    pub server: Option<Fingerprint>,
    current: Arc<SessionKey>,
    /// When the next session key is due.
    due: Instant,
    /// A session key that the server has not confirmed yet.
    announced: Option<Arc<SessionKey>>,
    /// Replaced keys that still decrypt, and the time of each replacement.
    former: Vec<(Arc<SessionKey>, Instant)>,
    /// The highest `created` of the own certificates, of other machines too, in milliseconds since 1970.
    newest: u64,
    /// The file of the mailbox keys; `None` if it is not usable, for example because another client has it.
    pub mailbox: Option<MailboxFile>,
    /// The last change of the password.
    pub password: PasswordChange,
}

impl Account {
    /// The keys after a login with this session key.
    pub fn new(identity: Arc<IdentityKey>, current: SessionKey, now: Instant) -> Account {
        Account {
            identity,
            server: None,
            current: Arc::new(current),
            due: now + RENEW_AFTER,
            announced: None,
            former: Vec::new(),
            newest: 0,
            mailbox: None,
            password: PasswordChange::None,
        }
    }

    /// The session key that others encrypt for. It stays in memory as long as a clone of this reference.
    pub fn current(&self) -> Arc<SessionKey> {
        self.current.clone()
    }

    /// Every session key that still decrypts.
    pub fn session_keys(&self) -> impl Iterator<Item = &SessionKey> {
        let others = self.announced.iter().chain(self.former.iter().map(|(key, _)| key));
        std::iter::once(&self.current).chain(others).map(Arc::as_ref)
    }

    /// The mailbox key with this fingerprint.
    pub fn mailbox_key(&self, fingerprint: Fingerprint) -> Option<&SessionKey> {
        let mut keys = self.mailbox.iter().flat_map(MailboxFile::keys);
        keys.find(|mailbox| mailbox.key.fingerprint() == fingerprint).map(|mailbox| &mailbox.key)
    }

    /// The fingerprint of the identity key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.identity.public().fingerprint()
    }

    /// Handles a refused certificate: the server has accepted one made at `newest`, in milliseconds since 1970.
    pub fn learn(&mut self, newest: u64) {
        self.newest = self.newest.max(newest);
    }

    /// Sets the key of a new session; the replaced keys become former ones.
    pub fn restart(&mut self, current: SessionKey, now: Instant) {
        let replaced = std::mem::replace(&mut self.current, Arc::new(current));
        let replaced = [Some(replaced), self.announced.take()].into_iter().flatten();
        self.former.extend(replaced.map(|key| (key, now)));
        self.due = now + RENEW_AFTER;
    }

    /// Forgets former keys. Returns whether a new session key is due.
    pub fn tick(&mut self, now: Instant) -> bool {
        self.former.retain(|(_, replaced)| now.duration_since(*replaced) < FORMER_KEY_KEPT);
        let is_due = now >= self.due;
        if is_due {
            // The next attempt, unless this one is confirmed.
            self.due = now + RENEW_AGAIN;
        }
        is_due
    }

    /// Notes that the current key was certified at `created`, and that the server has accepted certificates up to
    /// `newest` before; both in milliseconds since 1970. Other users refuse a key that is not the newest, so another
    /// one is made at once. PROTOCOL#newest.
    pub fn certified(&mut self, (created, newest): (u64, u64), (now_ms, now): (u64, Instant)) {
        // Certificates of earlier logins of this run count too, unless the clock was set back since.
        let known = self.newest;
        let is_ahead = SessionCertificate::next_created(known, now_ms) <= known;
        let newest = if is_ahead { newest } else { newest.max(known) };
        if created <= newest {
            self.due = now;
        }
        self.newest = created.max(newest);
    }

    /// Certifies a new session key for `me`. The key opens messages from now on, because the server may show it to
    /// others before its confirmation arrives; after that, it is the current one.
    pub fn announce(
        &mut self,
        me: &Username,
        key: SessionKey,
        (now_ms, now): (u64, Instant),
    ) -> SessionCertificate {
        let created = SessionCertificate::next_created(self.newest, now_ms);
        self.newest = self.newest.max(created);
        let certificate = self.identity.certify(me, &key, created);
        // The server may have shown an earlier key without confirming it.
        let former = self.announced.replace(Arc::new(key));
        self.former.extend(former.map(|key| (key, now)));
        certificate
    }

    /// Handles the answer to a `renew`; the server had accepted certificates up to `newest` before. False without a
    /// request. PROTOCOL#renew.
    pub fn renewed(&mut self, newest: u64, now: Instant) -> bool {
        let Some(new) = self.announced.take() else { return false };
        self.former.push((std::mem::replace(&mut self.current, new), now));
        self.due = now + RENEW_AFTER;
        if newest >= self.newest {
            // Another machine has just logged in, or the server is dishonest.
            (self.newest, self.due) = (newest, now + RENEW_AGAIN);
        }
        true
    }
}
