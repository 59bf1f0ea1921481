//! Bytes that must not outlive their use.
//!
//! Invariant: a secret is wiped when dropped, compared in constant time, never cloned by accident,
//! and says nothing in `Debug`. Reading it takes the word `expose`, which is easy to search for.

use crate::encoding::{Bytes, Text, base64, text};
use rand::TryRng;
use std::borrow::Cow;
use std::fmt;
use subtle::ConstantTimeEq;
use unicode_normalization::UnicodeNormalization;
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

/// A password, UTF-8, prepared so that every keyboard types the same one. PROTOCOL#password.
pub struct Password {
    prepared: Zeroizing<String>,
    /// What older programs made of the same keys, each different from the others.
    others: Vec<Zeroizing<String>>,
}

/// The fewest characters of a password (checked by the client, which alone ever sees one): PBKDF2 helps little with fewer.
/// PROTOCOL#password.
const MIN_PASSWORD: usize = 6;

impl Password {
    /// Takes the text over, as it was typed.
    pub fn new(text: String) -> Password {
        let typed = Zeroizing::new(text);
        let prepared = collected(&typed, typed.chars().map(plain_space).nfc());
        let decomposed = collected(&typed, typed.nfd());
        let mut others = vec![typed, decomposed];
        others.dedup();
        others.retain(|other| *other != prepared);
        Password { prepared, others }
    }

    /// The password, then what older programs would have made of the same keys: accounts were registered with that, too.
    /// PROTOCOL#password-forms.
    pub fn forms(&self) -> impl Iterator<Item = Password> {
        let texts = [&self.prepared].into_iter().chain(&self.others);
        texts.map(|text| Password { prepared: text.clone(), others: Vec::new() })
    }

    /// The UTF-8 bytes, for the key derivation.
    pub fn expose(&self) -> &[u8] {
        self.prepared.as_bytes()
    }

    /// At least 6 characters.
    pub fn is_long_enough(&self) -> bool {
        self.prepared.chars().count() >= MIN_PASSWORD
    }
}

/// The space that every keyboard has, for those that a few have beside it (Unicode's category Zs).
fn plain_space(c: char) -> char {
    let is_space = c.is_whitespace() && !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}');
    if is_space { ' ' } else { c }
}

/// The characters that were made of `text`.
fn collected(text: &str, characters: impl Iterator<Item = char>) -> Zeroizing<String> {
    // No normal form is longer than three times the text: a string that grows leaves copies behind.
    let mut made = Zeroizing::new(String::with_capacity(3 * text.len()));
    made.extend(characters);
    made
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

    /// PROTOCOL#password, PROTOCOL#password-forms.
    #[test]
    fn password_is_the_same_from_every_keyboard() {
        let forms = |text: &str| -> Vec<String> {
            let forms = Password::new(text.into());
            forms.forms().map(|form| String::from_utf8(form.expose().into()).expect("UTF-8")).collect()
        };
        let (composed, decomposed) = ("Gr\u{fc}\u{df}e 1", "Gru\u{308}\u{df}e 1");
        assert_eq!(forms("plain text"), ["plain text"]);
        assert_eq!(forms(composed), [composed, decomposed]);
        assert_eq!(forms(decomposed), [composed, decomposed]);
        for space in ['\u{a0}', '\u{1680}', '\u{2007}', '\u{202f}', '\u{205f}', '\u{3000}'] {
            let typed = decomposed.replace(' ', &space.to_string());
            assert_eq!(forms(&typed), [composed, &*typed]);
        }
        // These are no spaces to Unicode.
        for other in ["\t", "\u{85}", "\u{2028}", "\u{200b}", "\u{feff}"] {
            assert_eq!(forms(other), [other]);
        }
        // Neither compatibility nor case: these are different characters to who types them.
        assert_eq!(forms("\u{fb01}\u{ff21}"), ["\u{fb01}\u{ff21}"]);
        let mixed = "\u{fc}u\u{308}\u{a0}";
        assert_eq!(forms(mixed), ["\u{fc}\u{fc} ", mixed, "u\u{308}u\u{308}\u{a0}"]);
        assert_eq!(Password::new(composed.into()), Password::new(decomposed.into()));
        assert!(!Password::new("u\u{308}u\u{308}u\u{308}".into()).is_long_enough());
        // The longest that the forms of a text can become.
        for longest in ["\u{1d160}", "\u{390}", "\u{f1b}"] {
            let many = Password::new(longest.repeat(100));
            assert!(many.prepared.capacity() <= 3 * longest.len() * 100);
        }
    }
}
