//! The wrapped key of one recipient, as text. Specification: PROTOCOL#wrapped-key.
//!
//! Invariant: it is valid base64 of [`WRAPPED_BYTES`] bytes, so the server passes its text on without decoding it.

use crate::crypto::public::{KEY_ID_BYTES, KeyId, WRAPPED_BYTES};
use crate::encoding::{Text, base64, text};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::borrow::Cow;

/// The id of a recipient's key and the message key wrapped for it, as 352 characters of base64. The server reads only
/// the id. Stored inline: a message to a thousand users has a thousand of them.
#[derive(Clone, PartialEq, Eq)]
pub struct WrappedKey([u8; WrappedKey::DIGITS]);

const _: () = assert!(WRAPPED_BYTES.is_multiple_of(3), "its base64 has no padding");

text!(WrappedKey);

impl Text for WrappedKey {
    /// Accepts exactly what the base64 decoder would turn into [`WRAPPED_BYTES`] bytes, without decoding: a broadcast
    /// has a thousand wrapped keys. Their length is a multiple of three, so there is no padding and each digit has six
    /// bits.
    fn read(text: &str) -> Option<WrappedKey> {
        let digits: &[u8; Self::DIGITS] = text.as_bytes().try_into().ok()?;
        let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() | (*byte == b'+') | (*byte == b'/');
        // Without an early exit the compiler checks many digits at once.
        digits.iter().fold(true, |all, byte| all & is_digit(byte)).then_some(WrappedKey(*digits))
    }

    fn write(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl WrappedKey {
    /// Digits of base64: 352.
    pub const DIGITS: usize = WRAPPED_BYTES / 3 * 4;

    /// The base64 of a wrapped key.
    pub fn new(wrapped: &[u8; WRAPPED_BYTES]) -> WrappedKey {
        WrappedKey(base64(wrapped).as_bytes().try_into().expect("352 digits"))
    }

    /// The id of the session or mailbox key that it is wrapped for, as the sender claims. PROTOCOL#key-id.
    pub fn id(&self) -> KeyId {
        let bytes: [u8; KEY_ID_BYTES + 1] = self.decoded(12);
        *bytes.first_chunk().expect("an id")
    }

    /// The id and the block that the recipient unwraps.
    pub fn bytes(&self) -> [u8; WRAPPED_BYTES] {
        self.decoded(Self::DIGITS)
    }

    fn decoded<const N: usize>(&self, digits: usize) -> [u8; N] {
        let mut bytes = [0; N];
        BASE64_STANDARD.decode_slice(&self.0[..digits], &mut bytes).expect("it was checked");
        bytes
    }

    /// Its base64, 352 characters.
    pub fn digits(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::random;

    /// PROTOCOL#base64, PROTOCOL#key-id.
    #[test]
    fn wrapped_key_is_read_exactly_when_the_decoder_accepts_it() {
        let decoded =
            |text: &str| BASE64_STANDARD.decode(text).is_ok_and(|bytes| bytes.len() == WRAPPED_BYTES);
        let bytes: [u8; WRAPPED_BYTES] = random();
        let good = WrappedKey::new(&bytes);
        assert!(good.bytes() == bytes && good.id() == bytes[..8]);
        let is_taken = |text: &str| WrappedKey::read(text).is_some_and(|key| key.digits() == text.as_bytes());
        assert!(is_taken(str::from_utf8(good.digits()).expect("ASCII")));
        for at in [0, 1, 170, 348, 349, 350, 351] {
            for byte in 0..=127u8 {
                let mut text = good.digits().to_vec();
                text[at] = byte;
                let text = String::from_utf8(text).expect("ASCII");
                assert_eq!(is_taken(&text), decoded(&text), "{byte} at {at}");
            }
        }
        for count in [0, 1, 85, 256, 262, 263, 265, 266, 267] {
            let text = BASE64_STANDARD.encode(vec![7; count]);
            assert!(!is_taken(&text), "{count} bytes");
        }
        assert!(!is_taken(&format!("é{}", str::from_utf8(&good.digits()[2..]).expect("ASCII"))));
    }
}
