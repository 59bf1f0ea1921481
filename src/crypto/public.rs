//! Public keys: an identity key verifies, a session key wraps other keys.
//!
//! Invariant: neither can do the other's work, and both are RSA-2048 with exponent 65,537 in canonical DER. The server
//! can name no other RSA. Specification: PROTOCOL#keys.

use super::{CryptoError, Fields, label};
use crate::crypto::primitives::sha256;
use crate::encoding::{Bytes, Fixed, Text, base64, text};
use crate::name::Username;
use miniserde::{Deserialize, Serialize};
use rsa::pkcs8::{DecodePublicKey, EncodePublicKey, LineEnding};
use rsa::traits::PublicKeyParts;
use rsa::{BoxedUint, Oaep, Pss};
use sha2::Sha256;
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

/// Bits of every RSA modulus.
pub const RSA_BITS: usize = 2048;
/// Bytes of a signature or an OAEP block: 256.
pub const RSA_BYTES: usize = RSA_BITS / 8;
/// Bytes of a [`KeyId`].
pub const KEY_ID_BYTES: usize = 8;
/// Bytes of a wrapped key as it is sent: the id of the recipient's key, then one OAEP block.
pub const WRAPPED_BYTES: usize = KEY_ID_BYTES + RSA_BYTES;
/// The most bytes that one OAEP block contains, RFC 8017 section 7.1.1: 190, enough for five keys.
pub const OAEP_BYTES: usize = RSA_BYTES - 2 * 32 - 2;
/// The longest DER that is parsed as a public key, in bytes; RSA-2048 has 294.
const MAX_SPKI: usize = 512;
/// Salt bytes of PSS: as many as the hash has, RFC 8017 section 9.1.
pub(super) const PSS_SALT: usize = 32;
/// A session key is renewed after this time at the latest: a stolen one opens the messages of one day.
pub const SESSION_KEY_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Clocks may differ by this much, in milliseconds, before a certificate counts as stale or from the future: a wrong
/// summer time is one hour.
const SLACK: u64 = 2 * 3_600_000;
/// How long a session certificate is valid, in milliseconds.
const VALID: u64 = SESSION_KEY_LIFETIME.as_millis() as u64 + SLACK;
/// How long a mailbox certificate is valid, in milliseconds: 30 days, the longest absence in which mail is kept.
const MAILBOX_VALID: u64 = 30 * 24 * 3_600_000;

/// A PSS signature, 256 bytes.
pub type Signature = [u8; RSA_BYTES];
/// The first 8 bytes of a session key's [`Fingerprint`]. It tells which key a sender used and proves nothing.
/// PROTOCOL#key-id.
pub type KeyId = [u8; KEY_ID_BYTES];

/// SHA-256 of a DER-encoded `SubjectPublicKeyInfo`; shown as `SHA256:` and unpadded base64. PROTOCOL#fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a DER-encoded public key; the DER is not checked.
    pub fn of(spki: &[u8]) -> Fingerprint {
        Fingerprint(sha256(spki))
    }

    /// The first eight bytes: a session key's id on the wire.
    pub fn key_id(&self) -> KeyId {
        *self.0.first_chunk().expect("32 bytes contain eight")
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SHA256:{}", self.write().trim_end_matches('='))
    }
}

impl FromStr for Fingerprint {
    type Err = CryptoError;

    fn from_str(text: &str) -> Result<Self, CryptoError> {
        let digits = text.strip_prefix("SHA256:").ok_or(CryptoError::BadKey)?.trim_end_matches('=');
        Fingerprint::read(&format!("{digits}=")).ok_or(CryptoError::BadKey)
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

/// The purpose of an [`IdentityPublicKey`]: to verify signatures.
#[derive(Clone, Debug)]
pub enum Verify {}

/// The purpose of a [`SessionPublicKey`]: to wrap keys.
#[derive(Clone, Debug)]
pub enum Wrap {}

/// The key that a user is known by. It only verifies.
pub type IdentityPublicKey = PublicKey<Verify>;

/// The key of one login of one user, or of one absence: a mailbox key. It only encrypts.
pub type SessionPublicKey = PublicKey<Wrap>;

/// An RSA-2048 key with exponent 65,537 and one purpose.
#[derive(Clone, Debug)]
pub struct PublicKey<Purpose> {
    key: rsa::PublicKey,
    fingerprint: Fingerprint,
    purpose: PhantomData<Purpose>,
}

impl<Purpose> PublicKey<Purpose> {
    /// Parses a DER `SubjectPublicKeyInfo`, RFC 8017 appendix A.1. PROTOCOL#der.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] unless it is RSA-2048 with e = 65,537 in canonical DER.
    pub fn parse(spki: &[u8]) -> Result<Self, CryptoError> {
        if spki.len() > MAX_SPKI {
            return Err(CryptoError::BadKey);
        }
        let key = rsa::PublicKey::from_public_key_der(spki).map_err(|_| CryptoError::BadKey)?;
        let is_valid =
            key.e() == &BoxedUint::from(65_537u64) && key.n().bit_width_vartime() as usize == RSA_BITS;
        let key = PublicKey { key, fingerprint: Fingerprint::of(spki), purpose: PhantomData };
        // One key, one encoding: otherwise one key could have two fingerprints.
        if is_valid && key.spki() == spki { Ok(key) } else { Err(CryptoError::BadKey) }
    }

    /// The DER form, 294 bytes.
    pub fn spki(&self) -> Vec<u8> {
        self.key.to_public_key_der().expect("an RSA key has a DER form").into_vec()
    }

    /// SHA-256 of the DER form.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

impl IdentityPublicKey {
    /// Parses the PEM form (RFC 7468), in which the server stores it.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`], as for [`PublicKey::parse`].
    pub fn parse_pem(pem: &str) -> Result<Self, CryptoError> {
        let key = rsa::PublicKey::from_public_key_pem(pem).map_err(|_| CryptoError::BadKey)?;
        Self::parse(key.to_public_key_der().map_err(|_| CryptoError::BadKey)?.as_bytes())
    }

    /// The PEM form, RFC 7468.
    pub fn to_pem(&self) -> String {
        self.key.to_public_key_pem(LineEnding::LF).expect("an RSA key has a PEM form")
    }

    /// Checks `RSASSA-PSS[self](message)` with SHA-256, MGF1-SHA-256 and 32 salt bytes, RFC 8017 section 8.1.
    /// PROTOCOL#primitives.
    ///
    /// # Errors
    /// [`CryptoError::BadSignature`] if the signature is not this key's over `message`.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), CryptoError> {
        let padding = Pss::<Sha256>::new_with_salt(PSS_SALT);
        self.key.verify(padding, &sha256(message), signature).map_err(|_| CryptoError::BadSignature)
    }
}

impl SessionPublicKey {
    /// `RSAES-OAEP[self](keys)` with SHA-256, MGF1-SHA-256 and a label, RFC 8017 section 7.1.
    /// PROTOCOL#primitives.
    ///
    /// # Panics
    /// If `keys` has more than [`OAEP_BYTES`] bytes.
    pub fn wrap(&self, keys: &[u8], oaep_label: [u8; 32]) -> [u8; RSA_BYTES] {
        let padding = Oaep::<Sha256>::new_with_label(oaep_label);
        let block = self.key.encrypt(&mut rand::rng(), padding, keys);
        block.expect("the keys fit one block").try_into().expect("a block of the modulus's length")
    }
}

/// A session key with its owner's signature, as it is sent: `PSS[identity](label, username, session key, created)`.
#[derive(Clone, Serialize, Deserialize)]
pub struct SessionCertificate {
    /// The session key, DER `SubjectPublicKeyInfo`, 294 bytes.
    pub session_key: Bytes,
    /// When the key was made, by its owner's clock in milliseconds since 1970.
    pub created: u64,
    /// The identity key's signature over label, owner, session key and `created` (PROTOCOL#keys).
    pub certificate: Fixed<RSA_BYTES>,
}

impl SessionCertificate {
    /// The bytes that the identity key signs. PROTOCOL#session-certificate.
    pub(super) fn signed_bytes(owner: &Username, spki: &[u8], created: u64) -> Vec<u8> {
        certified_bytes(label::SESSION_CERTIFICATE, owner, spki, created)
    }

    /// The certified key. Checks that `identity` made this for `owner`, and that `now` (milliseconds since 1970) is at
    /// most two hours before or 26 hours after `created`.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`]; [`CryptoError::BadSignature`]; [`CryptoError::StaleCertificate`] outside that time.
    pub fn verify(
        &self,
        owner: &Username,
        identity: &IdentityPublicKey,
        now: u64,
    ) -> Result<SessionPublicKey, CryptoError> {
        let bytes = Self::signed_bytes(owner, &self.session_key.0, self.created);
        let is_valid = is_valid_at(self.created, now);
        certified_key(&self.session_key, identity, (&bytes, &self.certificate), is_valid)
    }

    /// The `created` of its owner's next certificate: above the `newest` that others have accepted, or they would
    /// refuse it, unless that is over two hours ahead of the owner's clock. All in milliseconds since 1970.
    /// PROTOCOL#newest.
    pub fn next_created(newest: u64, now: u64) -> u64 {
        let next = newest.saturating_add(1).max(now);
        if is_far_ahead(next, now) { now } else { next }
    }

    /// The remaining time of a certificate at `now`, both in milliseconds since 1970.
    pub fn time_left(&self, now: u64) -> Duration {
        Duration::from_millis(self.created.saturating_add(VALID).saturating_sub(now))
    }
}

/// A mailbox key with its owner's signature, as it is sent and stored: `PSS[identity](label, username, mailbox key,
/// created)`. Under a label of its own, so that no session certificate serves as one, nor the reverse.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailboxCertificate {
    /// The mailbox key, DER `SubjectPublicKeyInfo`, 294 bytes.
    pub mailbox_key: Bytes,
    /// When the key was made, by its owner's clock in milliseconds since 1970.
    pub created: u64,
    /// The identity key's signature over label, owner, mailbox key and `created`.
    pub certificate: Fixed<RSA_BYTES>,
}

impl MailboxCertificate {
    /// The bytes that the identity key signs. PROTOCOL#mailbox-certificate.
    pub(super) fn signed_bytes(owner: &Username, spki: &[u8], created: u64) -> Vec<u8> {
        certified_bytes(label::MAILBOX_CERTIFICATE, owner, spki, created)
    }

    /// The certified key. Checks that `identity` made this for `owner`, and that `now` (milliseconds since 1970) is at
    /// most two hours before or 30 days after `created`.
    ///
    /// # Errors
    /// As [`SessionCertificate::verify`].
    pub fn verify(
        &self,
        owner: &Username,
        identity: &IdentityPublicKey,
        now: u64,
    ) -> Result<SessionPublicKey, CryptoError> {
        let bytes = Self::signed_bytes(owner, &self.mailbox_key.0, self.created);
        let is_valid = is_mailbox_valid_at(self.created, now);
        certified_key(&self.mailbox_key, identity, (&bytes, &self.certificate), is_valid)
    }

    /// The [`KeyId`] of the mailbox key; the DER is not checked.
    pub fn key_id(&self) -> KeyId {
        Fingerprint::of(&self.mailbox_key.0).key_id()
    }
}

/// The key with this DER form, if `identity` has signed `bytes`, and the time `is_valid`.
fn certified_key(
    spki: &Bytes,
    identity: &IdentityPublicKey,
    (bytes, certificate): (&[u8], &Fixed<RSA_BYTES>),
    is_valid: bool,
) -> Result<SessionPublicKey, CryptoError> {
    let key = SessionPublicKey::parse(&spki.0)?;
    identity.verify(bytes, &certificate.0)?;
    if is_valid { Ok(key) } else { Err(CryptoError::StaleCertificate) }
}

fn certified_bytes(label: &str, owner: &Username, spki: &[u8], created: u64) -> Vec<u8> {
    Fields::new(label).text(owner.as_str()).bytes(spki).number(created).finish()
}

/// Whether a mailbox certificate of `created` is valid at `now`, both in milliseconds since 1970.
pub fn is_mailbox_valid_at(created: u64, now: u64) -> bool {
    !is_far_ahead(created, now) && now.saturating_sub(created) <= MAILBOX_VALID
}

/// Whether a time is over two hours ahead of the clock, so that one of the two is wrong; both in milliseconds since
/// 1970.
pub fn is_far_ahead(time: u64, now: u64) -> bool {
    time.saturating_sub(now) > SLACK
}

/// Whether a session certificate of `created` is valid at `now`, both in milliseconds since 1970.
pub fn is_valid_at(created: u64, now: u64) -> bool {
    !is_far_ahead(created, now) && now.saturating_sub(created) <= VALID
}

/// The 60-digit safety number of two users, who both compute the same one. PROTOCOL#safety-digits.
///
/// Each user's half is `SHA-256(Fields("… safety number", name, identity fingerprint))`: six groups of five digits,
/// each from five bytes as a big-endian number modulo 100,000. The smaller half comes first.
pub fn safety_number(one: (&Username, Fingerprint), other: (&Username, Fingerprint)) -> String {
    let half = |(name, fingerprint): (&Username, Fingerprint)| {
        let fields = Fields::new(label::SAFETY_NUMBER).text(name.as_str());
        let hash = sha256(&fields.bytes(&fingerprint.0).finish());
        let group = |five: &[u8]| five.iter().fold(0u64, |n, &b| n << 8 | u64::from(b)) % 100_000;
        let groups: Vec<String> = hash[..30].chunks(5).map(|five| format!("{:05}", group(five))).collect();
        groups.join(" ")
    };
    let mut halves = [half(one), half(other)];
    halves.sort();
    halves.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PROTOCOL#newest.
    #[test]
    fn next_certificate_is_newer_unless_that_is_far_ahead() {
        let (now, ahead) = (1_000_000_000, 2 * 3_600_000);
        let next = |newest| SessionCertificate::next_created(newest, now);
        assert_eq!([next(0), next(now - 1), next(now)], [now, now, now + 1]);
        assert_eq!([next(now + ahead - 1), next(now + ahead), next(u64::MAX)], [now + ahead, now, now]);
    }

    /// PROTOCOL#der.
    #[test]
    fn key_of_another_size_exponent_or_form_is_refused() {
        let spki = |bits: usize, exponent: u64| {
            let mut modulus = vec![0xff; bits.div_ceil(8)];
            modulus[0] >>= modulus.len() * 8 - bits;
            let modulus = BoxedUint::from_be_slice_vartime(&modulus);
            let key = rsa::PublicKey::new(modulus, BoxedUint::from(exponent)).expect("a key");
            key.to_public_key_der().expect("DER").into_vec()
        };
        let parse = |spki: &[u8]| SessionPublicKey::parse(spki).map(|key| key.spki());
        let good = spki(RSA_BITS, 65_537);
        assert_eq!(parse(&good), Ok(good.clone()));
        for (bits, exponent) in
            [(1024, 65_537), (2047, 65_537), (2049, 65_537), (3072, 65_537), (2048, 65_539)]
        {
            assert_eq!(parse(&spki(bits, exponent)), Err(CryptoError::BadKey), "{bits} bits, e = {exponent}");
        }
        assert_eq!(parse(&[&good[..], &[0]].concat()), Err(CryptoError::BadKey));
        assert_eq!(parse(&good[..good.len() - 1]), Err(CryptoError::BadKey));
        // The identifier of PSS, without the NULL, names the same key: it would get a second fingerprint.
        let pss = b"\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a";
        let mut other = [&good[..4], &pss[..], &good[19..]].concat();
        other[3] -= 2;
        assert!(rsa::PublicKey::from_public_key_der(&other).is_ok(), "the library accepts it");
        assert_eq!(parse(&other), Err(CryptoError::BadKey));
    }

    /// PROTOCOL#times.
    #[test]
    fn certificates_are_valid_exactly_as_long_as_specified() {
        let (hour, created) = (3_600_000, 1_800_000_000_000);
        for (is_valid, hours) in [(is_valid_at as fn(u64, u64) -> bool, 26), (is_mailbox_valid_at, 30 * 24)] {
            let (first, last) = (created - 2 * hour, created + hours * hour);
            assert_eq!([first, last].map(|now| is_valid(created, now)), [true; 2]);
            assert_eq!([0, first - 1, last + 1, u64::MAX].map(|now| is_valid(created, now)), [false; 4]);
        }
    }
}
