//! The key that messages to one user are sealed for.
//!
//! Invariant: a user has one at most, and each was certified by its owner.

use crate::crypto::public::{
    IdentityPublicKey, MailboxCertificate, SessionCertificate, SessionPublicKey, is_mailbox_valid_at,
    is_valid_at,
};
use crate::protocol::UserKeys;

/// The certified key that messages to a user are sealed for: the session key, or the mailbox key of an absent user.
/// PROTOCOL#mail-sender.
#[derive(Clone)]
pub struct SealKey {
    /// The key itself.
    pub key: SessionPublicKey,
    /// Whether it is a mailbox key: only messages that can wait are sealed for it.
    pub is_mailbox: bool,
    /// The time of its certificate, in milliseconds since 1970.
    pub created: u64,
}

impl SealKey {
    /// The key that the server shows for a user; `None` if it shows none, or none with a certificate.
    ///
    /// # Errors
    /// For the user, if it shows two keys, or the certificate or the key is invalid.
    pub fn shown(
        keys: &UserKeys,
        identity: &IdentityPublicKey,
        now_ms: u64,
    ) -> Result<Option<SealKey>, String> {
        let (bytes, is_mailbox) = match (&keys.session_key, &keys.mailbox_key) {
            (Some(_), Some(_)) => return Err("the server shows a session key and a mailbox key".into()),
            (Some(key), None) => (key.clone(), false),
            (None, Some(key)) => (key.clone(), true),
            (None, None) => return Ok(None),
        };
        let (Some(created), Some(certificate)) = (keys.created, keys.certificate) else { return Ok(None) };
        let (what, key) = if is_mailbox {
            let mailbox = MailboxCertificate { mailbox_key: bytes, created, certificate };
            ("mailbox", mailbox.verify(&keys.name, identity, now_ms))
        } else {
            let session = SessionCertificate { session_key: bytes, created, certificate };
            ("session", session.verify(&keys.name, identity, now_ms))
        };
        match key {
            Ok(key) => Ok(Some(SealKey { key, is_mailbox, created })),
            Err(error) => Err(format!("the {what} key that the server shows is invalid: {error}")),
        }
    }

    /// Whether its certificate is valid at `now_ms`, in milliseconds since 1970.
    pub fn is_valid_at(&self, now_ms: u64) -> bool {
        let is_valid = if self.is_mailbox { is_mailbox_valid_at } else { is_valid_at };
        is_valid(self.created, now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::keys::SessionKey;

    /// PROTOCOL#session-certificate, PROTOCOL#mailbox-certificate.
    #[test]
    fn key_is_valid_as_long_as_certificates_of_its_kind() {
        let (created, hour) = (1_000_000_000_000, 3_600_000);
        let key = SessionKey::generate().public().clone();
        for (is_mailbox, hours) in [(false, 26), (true, 30 * 24)] {
            let key = SealKey { key: key.clone(), is_mailbox, created };
            let at = |now| key.is_valid_at(now);
            assert!(at(created) && at(created - 2 * hour) && at(created + hours * hour), "{is_mailbox}");
            assert!(!at(created - 2 * hour - 1) && !at(created + hours * hour + 1), "{is_mailbox}");
        }
    }
}
