//! Bytes that must not outlive their use.
//!
//! Invariant: a secret is wiped when dropped, compared in constant time, never cloned by accident,
//! and says nothing in `Debug`. Reading it takes the word `expose`, which is easy to search for.

use crate::encoding::{Bytes, Text, base64, text};
use rand::TryRng;
use std::borrow::Cow;
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// `N` secret bytes.
pub struct Secret<const N: usize>([u8; N]);

/// A 256-bit key.
pub type Key = Secret<32>;

impl<const N: usize> Secret<N> {
    /// Takes the bytes over.
    pub fn new(bytes: [u8; N]) -> Self {
        Secret(bytes)
    }

    /// Fresh from the operating system's random source.
    pub fn random() -> Self {
        Secret(random())
    }

    /// A copy of the bytes; `None` if there are not `N` of them.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Secret)
    }

    /// The bytes, for a primitive or the wire.
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }

    /// A second copy, which is wiped like the first.
    pub fn duplicate(&self) -> Self {
        Secret(self.0)
    }
}

text!(Secret<N>, const N);

impl<const N: usize> Text for Secret<N> {
    fn read(text: &str) -> Option<Self> {
        Secret::from_slice(&Zeroizing::new(Bytes::read(text)?.0))
    }

    fn write(&self) -> Cow<'_, str> {
        base64(&self.0).into()
    }
}

impl<const N: usize> PartialEq for Secret<N> {
    /// In constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A password as it was typed, UTF-8.
pub struct Password(Zeroizing<String>);

/// The fewest characters of a password (checked by the client, which alone ever sees one): PBKDF2 helps little with fewer.
/// PROTOCOL#password.
const MIN_PASSWORD: usize = 6;

impl Password {
    /// Takes the text over.
    pub fn new(text: String) -> Password {
        Password(Zeroizing::new(text))
    }

    /// The UTF-8 bytes, for the key derivation.
    pub fn expose(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// At least 6 characters.
    pub fn is_long_enough(&self) -> bool {
        self.0.chars().count() >= MIN_PASSWORD
    }
}

impl PartialEq for Password {
    /// In constant time for equal lengths.
    fn eq(&self, other: &Self) -> bool {
        self.expose().ct_eq(other.expose()).into()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// `N` bytes of the operating system's random source.
///
/// # Panics
/// If the operating system has no randomness to give: nothing safe can be done without.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rngs::SysRng.try_fill_bytes(&mut bytes).expect("the operating system's random source works");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_holds_no_secret() {
        assert_eq!(format!("{:?}", Key::new([7; 32])), "Secret(..)");
        assert_eq!(format!("{:?}", Password::new("hunter22".into())), "Password(..)");
    }

    #[test]
    fn secrets_compare_by_content() {
        assert_eq!(Key::new([1; 32]), Key::new([1; 32]));
        assert_ne!(Key::random(), Key::random());
        assert!(Key::from_slice(&[0; 31]).is_none());
        assert!(!Password::new("fünf5".into()).is_long_enough());
    }
}
