//! Private keys. The identity key signs, and derives the keys of its owner's sealed files; a session key decrypts.
//!
//! Invariant: neither key does the other's work, neither has `Clone`, and both are wiped on drop (by `rsa` and aws-lc,
//! which blind all private operations). The server never names this file.
//!
//! Session keys are aws-lc's, which TLS links already: a client unwraps a key for every message and for every five
//! chunks of a file, and `rsa` takes four times as long.

use super::primitives::{self, sha256};
use super::public::{
    Fingerprint, IdentityPublicKey, MailboxCertificate, PSS_SALT, RSA_BITS, RSA_BYTES, SessionCertificate,
    SessionPublicKey, Signature,
};
use super::secret::Key;
use super::{CryptoError, Fields, label};
use crate::encoding::{Bytes, Fixed};
use crate::name::Username;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey};
use rsa::{PrivateKey, Pss};
use sha2::Sha256;
use std::fmt;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// The long-lived key that a user is known by. PROTOCOL#identity-key.
pub struct IdentityKey {
    key: PrivateKey,
    public: IdentityPublicKey,
}

impl IdentityKey {
    /// Generates a key, FIPS 186-5; 60 to 300 ms.
    pub fn generate() -> IdentityKey {
        let key = PrivateKey::new(&mut rand::rng(), RSA_BITS).expect("2048 bits are a valid size");
        Self::new(key).expect("a new key has the right size")
    }

    fn new(key: PrivateKey) -> Result<IdentityKey, CryptoError> {
        let spki = key.to_public_key().to_public_key_der().map_err(|_| CryptoError::BadKey)?;
        Ok(IdentityKey { public: IdentityPublicKey::parse(spki.as_bytes())?, key })
    }

    /// Parses PKCS#8, RFC 5208. PROTOCOL#key-file-form.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] unless it is a valid RSA-2048 key, encoded as by [`IdentityKey::to_pkcs8`].
    pub fn from_pkcs8(der: &[u8]) -> Result<IdentityKey, CryptoError> {
        let key = Self::new(PrivateKey::from_pkcs8_der(der).map_err(|_| CryptoError::BadKey)?)?;
        // One key, one encoding: the keys of sealed files derive from it.
        if key.to_pkcs8().ct_eq(der).into() { Ok(key) } else { Err(CryptoError::BadKey) }
    }

    /// PKCS#8 in DER (RFC 5208), about 1.2 KB; for the key file and the keys of sealed files only.
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        self.key.to_pkcs8_der().expect("an RSA key has a DER form").to_bytes()
    }

    /// The public half.
    pub fn public(&self) -> &IdentityPublicKey {
        &self.public
    }

    /// `RSASSA-PSS[self](message)`, RFC 8017 section 8.1, for [`IdentityPublicKey::verify`]; about 2 ms.
    pub fn sign(&self, message: &[u8]) -> Signature {
        self.key
            .sign_with_rng(&mut rand::rng(), Pss::<Sha256>::new_blinded_with_salt(PSS_SALT), &sha256(message))
            .expect("a 2048-bit key signs a SHA-256 hash")
            .try_into()
            .expect("a signature of the modulus's length")
    }

    /// Certifies a session key of `owner` made at `created` (milliseconds since 1970).
    pub fn certify(&self, owner: &Username, session: &SessionKey, created: u64) -> SessionCertificate {
        let session_key = Bytes(session.public().spki());
        let signature = self.sign(&SessionCertificate::signed_bytes(owner, &session_key.0, created));
        SessionCertificate { session_key, created, certificate: Fixed(signature) }
    }

    /// Certifies a mailbox key of `owner` made at `created` (milliseconds since 1970).
    pub fn certify_mailbox(
        &self,
        owner: &Username,
        mailbox: &SessionKey,
        created: u64,
    ) -> MailboxCertificate {
        let mailbox_key = Bytes(mailbox.public().spki());
        let signature = self.sign(&MailboxCertificate::signed_bytes(owner, &mailbox_key.0, created));
        MailboxCertificate { mailbox_key, created, certificate: Fixed(signature) }
    }

    /// The key of the history that `owner` keeps of `server` (`host:port`): `HMAC[PKCS#8](Fields("… history key",
    /// owner, server))`. The password is not an input: a new one leaves the history readable, and the history gives a
    /// thief nothing to test passwords against. PROTOCOL#history-key.
    pub fn history_key(&self, owner: &Username, server: &str) -> Key {
        self.file_key(label::HISTORY_KEY, owner, server)
    }

    /// The key of the mailbox file, derived like [`IdentityKey::history_key`] under its own label.
    /// PROTOCOL#mailbox-file-key.
    pub fn mailbox_file_key(&self, owner: &Username, server: &str) -> Key {
        self.file_key(label::MAILBOX_FILE_KEY, owner, server)
    }

    fn file_key(&self, label: &str, owner: &Username, server: &str) -> Key {
        let fields = Fields::new(label).text(owner.as_str()).text(server);
        primitives::derive(&self.to_pkcs8(), &fields.finish())
    }
}

/// The key of one login, which stays in memory, or of one absence: a mailbox key. It only decrypts.
/// PROTOCOL#session-key.
pub struct SessionKey {
    key: OaepPrivateDecryptingKey,
    public: SessionPublicKey,
}

impl SessionKey {
    /// Generates a key, FIPS 186-5; about 0.1 s.
    pub fn generate() -> SessionKey {
        Self::new(new_decrypting_key()).expect("a new key has the right size")
    }

    fn new(key: PrivateDecryptingKey) -> Result<SessionKey, CryptoError> {
        let spki: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| CryptoError::BadKey)?;
        let public = SessionPublicKey::parse(spki.as_ref())?;
        let key = OaepPrivateDecryptingKey::new(key).map_err(|_| CryptoError::BadKey)?;
        Ok(SessionKey { key, public })
    }

    /// Parses PKCS#8, RFC 5208. Only mailbox keys are stored.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] unless it is a valid RSA-2048 key.
    pub fn from_pkcs8(der: &[u8]) -> Result<SessionKey, CryptoError> {
        Self::new(PrivateDecryptingKey::from_pkcs8(der).map_err(|_| CryptoError::BadKey)?)
    }

    /// The public half.
    pub fn public(&self) -> &SessionPublicKey {
        &self.public
    }

    /// The fingerprint of the public half.
    pub fn fingerprint(&self) -> Fingerprint {
        self.public.fingerprint()
    }

    /// Reverses [`SessionPublicKey::wrap`], RFC 8017 section 7.1; about 0.4 ms. The result has at most
    /// [`OAEP_BYTES`](super::public::OAEP_BYTES) bytes.
    ///
    /// # Errors
    /// [`CryptoError::BadCiphertext`], whether key, label or bytes are wrong.
    pub fn unwrap(
        &self,
        block: &[u8; RSA_BYTES],
        oaep_label: [u8; 32],
    ) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let mut keys = Zeroizing::new([0; RSA_BYTES]);
        let opened = self.key.decrypt(&OAEP_SHA256_MGF1SHA256, block, keys.as_mut(), Some(&oaep_label));
        opened.map(|keys| Zeroizing::new(keys.to_vec())).map_err(|_| CryptoError::BadCiphertext)
    }
}

fn new_decrypting_key() -> PrivateDecryptingKey {
    PrivateDecryptingKey::generate(KeySize::Rsa2048).expect("aws-lc has memory and randomness")
}

/// A new mailbox key. Its owner stores it before anything is sealed for it. PROTOCOL#mailbox-key.
pub struct NewMailboxKey {
    key: SessionKey,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl NewMailboxKey {
    /// Generates a key, FIPS 186-5; about 0.1 s.
    pub fn generate() -> NewMailboxKey {
        let key = new_decrypting_key();
        // aws-lc wipes its copy.
        let der: Pkcs8V1Der<'_> = key.as_der().expect("an RSA key has a DER form");
        let pkcs8 = Zeroizing::new(der.as_ref().to_vec());
        NewMailboxKey { key: SessionKey::new(key).expect("a new key has the right size"), pkcs8 }
    }

    /// The key, for [`IdentityKey::certify_mailbox`].
    pub fn key(&self) -> &SessionKey {
        &self.key
    }

    /// The key, and its PKCS#8 in DER (RFC 5208), about 1.2 KB, for the mailbox file only.
    pub fn into_parts(self) -> (SessionKey, Zeroizing<Vec<u8>>) {
        (self.key, self.pkcs8)
    }
}

impl fmt::Debug for NewMailboxKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewMailboxKey({})", self.key.fingerprint())
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey({})", self.public.fingerprint())
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionKey({})", self.fingerprint())
    }
}

#[cfg(test)]
mod tests {
    use super::super::secret::tests::{assert_lacks, assert_wiped_on_drop};
    use super::*;

    assert_lacks!(IdentityKey: Clone);
    assert_lacks!(IdentityKey: fmt::Display);
    assert_lacks!(SessionKey: Clone);
    assert_lacks!(SessionKey: fmt::Display);
    assert_lacks!(NewMailboxKey: Clone);
    assert_lacks!(NewMailboxKey: fmt::Display);

    /// PROTOCOL#key-file-form.
    #[test]
    fn identity_key_has_one_encoding() {
        let der = IdentityKey::generate().to_pkcs8();
        assert!(IdentityKey::from_pkcs8(&der).is_ok());
        let mut attributes = [&der[..], &[0xa0, 0]].concat();
        attributes[3] += 2;
        assert_eq!(IdentityKey::from_pkcs8(&attributes).err(), Some(CryptoError::BadKey));
        // The last number is the inverse of one prime modulo the other, which follows from the rest.
        let mut inverse = der.to_vec();
        *inverse.last_mut().expect("a number") ^= 1;
        assert_eq!(IdentityKey::from_pkcs8(&inverse).err(), Some(CryptoError::BadKey));
    }

    /// PROTOCOL#identity-key, PROTOCOL#session-key.
    #[test]
    fn debug_output_of_keys_shows_only_fingerprints() {
        let (identity, session) = (IdentityKey::generate(), SessionKey::generate());
        assert_eq!(format!("{identity:?}"), format!("IdentityKey({})", identity.public().fingerprint()));
        assert_eq!(format!("{session:?}"), format!("SessionKey({})", session.fingerprint()));
        let mailbox = NewMailboxKey::generate();
        assert_eq!(format!("{mailbox:?}"), format!("NewMailboxKey({})", mailbox.key().fingerprint()));
        assert_wiped_on_drop(&mailbox.pkcs8);
        // aws-lc wipes the session key.
        assert_wiped_on_drop(&identity.key);
        assert_wiped_on_drop(&identity.to_pkcs8());
    }
}
