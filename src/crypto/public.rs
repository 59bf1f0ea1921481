//! Public keys and what can be done with them: verify and encrypt.
//!
//! Invariant: an identity key only verifies, a session key only encrypts, and both are RSA-2048
//! with exponent 65,537 in canonical DER. This is all of RSA that the server can name.

use super::{CryptoError, Fields, label};
use crate::crypto::primitives::sha256;
use crate::encoding::{Fixed, Text, base64, text};
use crate::name::Username;
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use rsa::pkcs8::{DecodePublicKey, EncodePublicKey};
use rsa::traits::PublicKeyParts;
use rsa::{BoxedUint, Oaep, Pss, PublicKey};
use sha2::Sha256;
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Bits of every RSA modulus.
pub const RSA_BITS: usize = 2048;
/// Bytes of a signature or of one OAEP block: 256.
pub const RSA_BYTES: usize = RSA_BITS / 8;
/// Bytes of a [`ShortFingerprint`].
pub const KEY_ID_BYTES: usize = 8;
/// Bytes of a wrapped key as it is sent: the short fingerprint of the recipient's key, then one OAEP block.
pub const WRAPPED_BYTES: usize = KEY_ID_BYTES + RSA_BYTES;
/// The most bytes that one OAEP block holds, RFC 8017 section 7.1.1: 190, five keys and a rest.
pub const OAEP_BYTES: usize = RSA_BYTES - 2 * 32 - 2;
/// The most bytes of a DER-encoded public key that are looked at: RSA-2048 has 294, and nothing is parsed that cannot be
/// one.
const MAX_SPKI: usize = 512;
/// Salt bytes of PSS: as many as the hash, RFC 8017 section 9.1.
pub(super) const PSS_SALT: usize = 32;
/// A session key is renewed after this time at the latest: one that is stolen opens the messages of a day.
pub const SESSION_KEY_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// An hour, in milliseconds.
const HOUR: u64 = 3_600_000;
/// Clocks may differ by this much before a certificate counts as stale or from the future: a wrong summer time is one hour.
const CERTIFICATE_SLACK: Duration = Duration::from_secs(2 * 3600);

/// A PSS signature, 256 bytes.
pub type Signature = [u8; RSA_BYTES];

/// SHA-256 of a DER-encoded `SubjectPublicKeyInfo`; shown as `SHA256:` and unpadded base64. PROTOCOL#fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Of a DER-encoded public key, whose form is not checked here.
    pub fn of(spki: &[u8]) -> Fingerprint {
        Fingerprint(sha256(spki))
    }

    /// The first eight bytes.
    pub fn short(&self) -> ShortFingerprint {
        let (id, _) = self.0.split_first_chunk().expect("32 bytes have eight");
        ShortFingerprint(*id)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SHA256:{}", BASE64_STANDARD_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = CryptoError;

    fn from_str(text: &str) -> Result<Self, CryptoError> {
        let digits = text.strip_prefix("SHA256:").ok_or(CryptoError::BadKey)?;
        let bytes =
            BASE64_STANDARD_NO_PAD.decode(digits.trim_end_matches('=')).map_err(|_| CryptoError::BadKey)?;
        bytes.try_into().map(Fingerprint).map_err(|_| CryptoError::BadKey)
    }
}

text!(Fingerprint);

impl Text for Fingerprint {
    fn read(text: &str) -> Option<Fingerprint> {
        Fixed::read(text).map(|Fixed(bytes)| Fingerprint(bytes))
    }

    fn write(&self) -> Cow<'_, str> {
        base64(&self.0).into()
    }
}

/// Names a session key where the server has to tell which one a sender used: a routing hint, never a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortFingerprint(pub [u8; KEY_ID_BYTES]);

impl ShortFingerprint {
    /// The same as a number, for callers that compare it often.
    pub fn number(self) -> u64 {
        u64::from_be_bytes(self.0)
    }
}

/// A parsed key beside its DER form and fingerprint.
#[derive(Clone)]
struct Public {
    key: PublicKey,
    fingerprint: Fingerprint,
}

impl Public {
    /// PROTOCOL#der.
    fn parse(spki: &[u8]) -> Result<Public, CryptoError> {
        if spki.len() > MAX_SPKI {
            return Err(CryptoError::BadKey);
        }
        let key = PublicKey::from_public_key_der(spki).map_err(|_| CryptoError::BadKey)?;
        // One key, one encoding: otherwise one key could have two fingerprints.
        let canonical = key.to_public_key_der().map_err(|_| CryptoError::BadKey)?;
        let e = key.e() == &BoxedUint::from(65_537u64);
        if !e || key.n().bit_width_vartime() as usize != RSA_BITS || canonical.as_bytes() != spki {
            return Err(CryptoError::BadKey);
        }
        Ok(Public { fingerprint: Fingerprint::of(spki), key })
    }

    fn spki(&self) -> Vec<u8> {
        self.key.to_public_key_der().expect("an RSA key has a DER form").into_vec()
    }
}

/// The key that a person is known by. It only verifies.
#[derive(Clone)]
pub struct IdentityPublicKey(Public);

impl IdentityPublicKey {
    /// Parses a DER `SubjectPublicKeyInfo`, RFC 8017 appendix A.1.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] unless it is RSA-2048 with e = 65,537 in canonical DER.
    pub fn parse(spki: &[u8]) -> Result<Self, CryptoError> {
        Public::parse(spki).map(IdentityPublicKey)
    }

    /// Parses the PEM form (RFC 7468), as the server keeps it.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`], as for [`IdentityPublicKey::parse`].
    pub fn parse_pem(pem: &str) -> Result<Self, CryptoError> {
        let key = PublicKey::from_public_key_pem(pem).map_err(|_| CryptoError::BadKey)?;
        Self::parse(key.to_public_key_der().map_err(|_| CryptoError::BadKey)?.as_bytes())
    }

    /// The PEM form.
    pub fn to_pem(&self) -> String {
        let ending = rsa::pkcs8::LineEnding::LF;
        self.0.key.to_public_key_pem(ending).expect("an RSA key has a PEM form")
    }

    /// The DER form, 294 bytes.
    pub fn spki(&self) -> Vec<u8> {
        self.0.spki()
    }

    /// What the key is remembered by.
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.fingerprint
    }

    /// Checks `RSASSA-PSS[self](message)` with SHA-256, MGF1-SHA-256 and 32 salt bytes, RFC 8017 section 8.1.
    /// PROTOCOL#primitives.
    ///
    /// # Errors
    /// [`CryptoError::BadSignature`] if the signature is not this key's over `message`.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), CryptoError> {
        self.0
            .key
            .verify(Pss::<Sha256>::new_with_salt(PSS_SALT), &sha256(message), signature)
            .map_err(|_| CryptoError::BadSignature)
    }
}

/// The key of one login of one person. It only encrypts.
#[derive(Clone)]
pub struct SessionPublicKey(Public);

impl SessionPublicKey {
    /// As [`IdentityPublicKey::parse`].
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] unless it is RSA-2048 with e = 65,537 in canonical DER.
    pub fn parse(spki: &[u8]) -> Result<Self, CryptoError> {
        Public::parse(spki).map(SessionPublicKey)
    }

    /// The DER form, 294 bytes.
    pub fn spki(&self) -> Vec<u8> {
        self.0.spki()
    }

    /// What the session is named by.
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.fingerprint
    }

    /// `RSAES-OAEP[self](keys)` with SHA-256, MGF1-SHA-256 and a label, RFC 8017 section 7.1.
    /// PROTOCOL#primitives.
    ///
    /// # Panics
    /// For more than [`OAEP_BYTES`].
    pub fn wrap(&self, keys: &[u8], oaep_label: [u8; 32]) -> [u8; RSA_BYTES] {
        let padding = Oaep::<Sha256>::new_with_label(oaep_label);
        let block = self.0.key.encrypt(&mut rand::rng(), padding, keys);
        block.expect("the keys fit one block").try_into().expect("a block of the modulus's length")
    }
}

impl fmt::Debug for IdentityPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityPublicKey({})", self.fingerprint())
    }
}

impl fmt::Debug for SessionPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionPublicKey({})", self.fingerprint())
    }
}

/// A session key with its owner's signature: `PSS[identity](label, username, session key, created)`.
#[derive(Clone)]
pub struct SessionCertificate {
    /// The certified key.
    pub key: SessionPublicKey,
    /// When it was made, in milliseconds since 1970, by its owner's clock.
    pub created: u64,
    /// The identity key's, over label, owner, DER of the key and `created`.
    pub signature: Signature,
}

impl SessionCertificate {
    /// The bytes that the identity key signs. PROTOCOL#session-certificate.
    pub(super) fn signed_bytes(owner: &Username, spki: &[u8], created: u64) -> Vec<u8> {
        Fields::new(label::SESSION_CERTIFICATE)
            .bytes(owner.as_str().as_bytes())
            .bytes(spki)
            .number(created)
            .finish()
    }

    /// Checks that `identity` made this for `owner`, and that `now` (milliseconds since 1970) is at most two hours before or
    /// 26 hours after `created`.
    ///
    /// # Errors
    /// [`CryptoError::BadSignature`] before anything else; [`CryptoError::StaleCertificate`] outside that time.
    pub fn verify(
        &self,
        owner: &Username,
        identity: &IdentityPublicKey,
        now: u64,
    ) -> Result<(), CryptoError> {
        let bytes = Self::signed_bytes(owner, &self.key.spki(), self.created);
        identity.verify(&bytes, &self.signature)?;
        Skew::between(self.created, now).map_or(Ok(()), |_| Err(CryptoError::StaleCertificate))
    }

    /// The time left of it at `now`, both in milliseconds since 1970.
    pub fn time_left(&self, now: u64) -> Duration {
        let ends = self.created.saturating_add((SESSION_KEY_LIFETIME + CERTIFICATE_SLACK).as_millis() as u64);
        Duration::from_millis(ends.saturating_sub(now))
    }
}

/// How far one clock is from another, if it is too far. `Display`: "2 days ahead of".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skew {
    is_ahead: bool,
    hours: u64,
}

impl Skew {
    /// `None` where a certificate of `created` is valid at `now`, both in milliseconds since 1970.
    pub fn between(created: u64, now: u64) -> Option<Skew> {
        Skew::beyond(created, now, SESSION_KEY_LIFETIME + CERTIFICATE_SLACK)
    }

    /// `None` where each of two clocks takes the certificates that are made by the other one: they differ by two hours at most.
    pub fn of_clocks(own: u64, other: u64) -> Option<Skew> {
        Skew::beyond(own, other, CERTIFICATE_SLACK)
    }

    fn beyond(one: u64, other: u64, behind: Duration) -> Option<Skew> {
        let (is_ahead, off) = (one > other, one.abs_diff(other));
        let slack = if is_ahead { CERTIFICATE_SLACK } else { behind };
        (u128::from(off) > slack.as_millis())
            .then(|| Skew { is_ahead, hours: off.saturating_add(HOUR / 2) / HOUR })
    }
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hours {
            hours @ ..36 => write!(f, "{hours} hours")?,
            hours => write!(f, "{} days", (hours + 12) / 24)?,
        }
        f.write_str(if self.is_ahead { " ahead of" } else { " behind" })
    }
}

/// The 60-digit safety number of two people: the same whoever computes it. PROTOCOL#safety-digits.
///
/// Each person's half is `SHA-256(label, name, identity fingerprint)`: six groups of five
/// digits, each five bytes as a big-endian number modulo 100,000. The smaller half comes first.
pub fn safety_number(one: (&Username, Fingerprint), other: (&Username, Fingerprint)) -> String {
    let half = |(name, fingerprint): (&Username, Fingerprint)| {
        let fields = Fields::new(label::SAFETY_NUMBER).bytes(name.as_str().as_bytes());
        let hash = sha256(&fields.bytes(&fingerprint.0).finish());
        let group = |five: &[u8]| five.iter().fold(0u64, |n, &b| n << 8 | u64::from(b)) % 100_000;
        let groups: Vec<String> = hash[..30].chunks(5).map(|five| format!("{:05}", group(five))).collect();
        groups.join(" ")
    };
    let mut halves = [half(one), half(other)];
    halves.sort();
    halves.join(" ")
}
