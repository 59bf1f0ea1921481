//! One function for each primitive, `NAME[key](message)`, with its source.
//!
//! Invariant: this file only fixes parameters; libraries compute.

use super::CryptoError;
use super::secret::{Key, Password};
use aes::Aes256;
use aes_gcm::aead::AeadInOut;
use eax::Eax;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// PBKDF2 rounds of new accounts and key files, about 0.1 s: OWASP's recommendation for PBKDF2-HMAC-SHA256.
pub const PBKDF2_ROUNDS: u32 = 600_000;
/// The fewest rounds that either side accepts: a hostile server could ask for a cheap hash. PROTOCOL#rounds.
pub const PBKDF2_MIN_ROUNDS: u32 = 100_000;
/// The most rounds that either side accepts, some seconds: a hostile server could stall a client. PROTOCOL#rounds.
pub const PBKDF2_MAX_ROUNDS: u32 = 10_000_000;

/// An authentication tag of EAX or GCM: 128 bits, untruncated.
pub type Tag = [u8; 16];

/// `SHA-256(message)`, FIPS 180-4 section 6.2.
pub fn sha256(message: &[u8]) -> [u8; 32] {
    Sha256::digest(message).into()
}

/// `HMAC-SHA256[key](message)`, RFC 2104.
pub fn hmac(key: &Key, message: &[u8]) -> [u8; 32] {
    keyed(key.expose(), message).finalize().into_bytes().into()
}

/// Whether `mac` is `HMAC-SHA256[key](message)`, in constant time; false unless `mac` has 32 bytes.
pub fn hmac_matches(key: &Key, message: &[u8], mac: &[u8]) -> bool {
    keyed(key.expose(), message).verify_slice(mac).is_ok()
}

/// `HMAC-SHA256[secret](message)` as a key; the secret may have any length.
pub fn derive(secret: &[u8], message: &[u8]) -> Key {
    let key: Zeroizing<[u8; 32]> = Zeroizing::new(keyed(secret, message).finalize().into_bytes().into());
    Key::new(*key)
}

fn keyed(key: &[u8], message: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac
}

/// `PBKDF2-HMAC-SHA256(password, salt, rounds)`, 256 bits, RFC 8018 section 5.2.
pub fn pbkdf2(password: &Password, salt: &[u8], rounds: u32) -> Key {
    let mut key = Zeroizing::new([0; 32]);
    pbkdf2::pbkdf2_hmac::<Sha256>(password.expose(), salt, rounds, key.as_mut());
    Key::new(*key)
}

/// The 128-bit EAX nonce: 96 random bits, then a 32-bit big-endian counter. The counter is 0 for a message and the
/// index of a chunk.
fn eax_nonce(nonce: &[u8; 12], counter: u32) -> [u8; 16] {
    [&nonce[..], &counter.to_be_bytes()].concat().try_into().expect("12 and 4 bytes")
}

/// `AES-256-EAX[key](nonce ‖ counter, header, text)` in place (Bellare, Rogaway, Wagner 2004).
/// PROTOCOL#primitives.
pub fn eax_seal(key: &Key, nonce: &[u8; 12], counter: u32, header: &[u8], text: &mut [u8]) -> Tag {
    Eax::<Aes256>::new(key.expose().into())
        .encrypt_inout_detached(&eax_nonce(nonce, counter).into(), header, text.into())
        .expect("EAX has no length limit below 2^64")
        .into()
}

/// Reverses [`eax_seal`] in place.
///
/// # Errors
/// [`CryptoError::BadCiphertext`] if anything differs; `text` then stays encrypted.
pub fn eax_open(
    key: &Key,
    nonce: &[u8; 12],
    counter: u32,
    header: &[u8],
    text: &mut [u8],
    tag: &Tag,
) -> Result<(), CryptoError> {
    Eax::<Aes256>::new(key.expose().into())
        .decrypt_inout_detached(&eax_nonce(nonce, counter).into(), header, text.into(), tag.into())
        .map_err(|_| CryptoError::BadCiphertext)
}

/// `AES-256-GCM[key](nonce, header, text)` in place, NIST SP 800-38D; for files on disk.
pub fn gcm_seal(key: &Key, nonce: &[u8; 12], header: &[u8], text: &mut [u8]) -> Tag {
    aes_gcm::Aes256Gcm::new(key.expose().into())
        .encrypt_inout_detached(nonce.into(), header, text.into())
        .expect("files on disk are far below GCM's 64 GiB")
        .into()
}

/// Reverses [`gcm_seal`] in place.
///
/// # Errors
/// [`CryptoError::BadCiphertext`] if anything differs; `text` then stays encrypted.
pub fn gcm_open(
    key: &Key,
    nonce: &[u8; 12],
    header: &[u8],
    text: &mut [u8],
    tag: &Tag,
) -> Result<(), CryptoError> {
    aes_gcm::Aes256Gcm::new(key.expose().into())
        .decrypt_inout_detached(nonce.into(), header, text.into(), tag.into())
        .map_err(|_| CryptoError::BadCiphertext)
}
