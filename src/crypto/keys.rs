//! Private keys. The identity key signs, and gives the key of its owner's kept history; the session key only
//! decrypts.
//!
//! Invariant: neither key can do the other's work, neither is cloned, and both are wiped on
//! drop (by `rsa` and aws-lc, whose private operations are all blinded). The server never names this file.
//!
//! Session keys decrypt with aws-lc, which TLS brings along: a key is unwrapped for every message and every
//! five chunks of a file, and `rsa` takes five times as long for it.

use super::primitives::{self, sha256};
use super::public::{
    Fingerprint, IdentityPublicKey, PSS_SALT, RSA_BITS, RSA_BYTES, SessionCertificate, SessionPublicKey,
    Signature,
};
use super::secret::Key;
use super::{CryptoError, Fields, label};
use crate::name::Username;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey};
use rsa::{PrivateKey, Pss};
use sha2::Sha256;
use std::fmt;
use zeroize::Zeroizing;

/// RSA-2048, FIPS 186-5; 60 to 300 ms.
fn generate() -> PrivateKey {
    PrivateKey::new(&mut rand::rng(), RSA_BITS).expect("2048 bits are a valid size")
}

fn spki(key: &PrivateKey) -> Vec<u8> {
    key.to_public_key().to_public_key_der().expect("an RSA key has a DER form").into_vec()
}

/// The long-lived key that a person is known by. PROTOCOL#identity-key.
pub struct IdentityKey {
    key: PrivateKey,
    public: IdentityPublicKey,
}

impl IdentityKey {
    /// Makes a new one; 60 to 300 ms.
    pub fn generate() -> IdentityKey {
        Self::from_rsa(generate()).expect("a fresh key has the right size")
    }

    fn from_rsa(key: PrivateKey) -> Result<IdentityKey, CryptoError> {
        let public = IdentityPublicKey::parse(&spki(&key))?;
        Ok(IdentityKey { key, public })
    }

    /// Parses PKCS#8, RFC 5208.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] unless it is a valid RSA-2048 key.
    pub fn from_pkcs8(der: &[u8]) -> Result<IdentityKey, CryptoError> {
        Self::from_rsa(PrivateKey::from_pkcs8_der(der).map_err(|_| CryptoError::BadKey)?)
    }

    /// PKCS#8 in DER, about 1.2 KB; for the key file and [`IdentityKey::history_key`] only.
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        let document = self.key.to_pkcs8_der().expect("an RSA key has a DER form");
        Zeroizing::new(document.as_bytes().to_vec())
    }

    /// The public half.
    pub fn public(&self) -> &IdentityPublicKey {
        &self.public
    }

    /// `RSASSA-PSS[self](message)`, see [`IdentityPublicKey::verify`]; about 2 ms.
    pub fn sign(&self, message: &[u8]) -> Signature {
        self.key
            .sign_with_rng(&mut rand::rng(), Pss::<Sha256>::new_blinded_with_salt(PSS_SALT), &sha256(message))
            .expect("a 2048-bit key signs a SHA-256 hash")
            .try_into()
            .expect("a signature of the modulus's length")
    }

    /// Certifies a session key of `owner` made at `created` (milliseconds since 1970).
    pub fn certify(&self, owner: &Username, session: &SessionKey, created: u64) -> SessionCertificate {
        let key = session.public().clone();
        let signature = self.sign(&SessionCertificate::signed_bytes(owner, &key.spki(), created));
        SessionCertificate { key, created, signature }
    }

    /// `HMAC[PKCS#8](Fields("… history key", owner, server))`, which seals what `owner` keeps of `server`
    /// (`host:port`). From this key and not from the password itself: the private key rests only under
    /// the password, so a new password costs the history nothing, and nothing more to guess the password at
    /// lies on the disk. PROTOCOL#history-key.
    pub fn history_key(&self, owner: &Username, server: &str) -> Key {
        let fields =
            Fields::new(label::HISTORY_KEY).bytes(owner.as_str().as_bytes()).bytes(server.as_bytes());
        primitives::derive(&self.to_pkcs8(), &fields.finish())
    }
}

/// The key of one login, in memory alone. It only decrypts. PROTOCOL#session-key.
pub struct SessionKey {
    key: OaepPrivateDecryptingKey,
    public: SessionPublicKey,
}

impl SessionKey {
    /// Makes a new one; 60 to 300 ms.
    pub fn generate() -> SessionKey {
        Self::from_rsa(&generate()).expect("a fresh key has the right size")
    }

    fn from_rsa(key: &PrivateKey) -> Result<SessionKey, CryptoError> {
        let public = SessionPublicKey::parse(&spki(key))?;
        let document = key.to_pkcs8_der().map_err(|_| CryptoError::BadKey)?;
        let key = PrivateDecryptingKey::from_pkcs8(document.as_bytes()).map_err(|_| CryptoError::BadKey)?;
        let key = OaepPrivateDecryptingKey::new(key).map_err(|_| CryptoError::BadKey)?;
        Ok(SessionKey { key, public })
    }

    /// Parses PKCS#8. The messenger never stores a session key; test vectors do.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] unless it is a valid RSA-2048 key.
    pub fn from_pkcs8(der: &[u8]) -> Result<SessionKey, CryptoError> {
        Self::from_rsa(&PrivateKey::from_pkcs8_der(der).map_err(|_| CryptoError::BadKey)?)
    }

    /// The public half.
    pub fn public(&self) -> &SessionPublicKey {
        &self.public
    }

    /// What the session is named by: the fingerprint of the public half.
    pub fn fingerprint(&self) -> Fingerprint {
        self.public.fingerprint()
    }

    /// Reverses [`SessionPublicKey::wrap`]: at most [`OAEP_BYTES`](super::public::OAEP_BYTES) bytes; about 0.4 ms.
    ///
    /// # Errors
    /// [`CryptoError::BadCiphertext`] for another key, another label or altered bytes alike.
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
