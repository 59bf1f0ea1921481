//! Secrets: keys and passwords.
//!
//! Invariant: a secret is wiped on drop and compared in constant time. It has no `Clone` and no `Display`, and `Debug`
//! does not show it. Only `expose` returns its bytes, which is easy to search for.

use crate::encoding::{Bytes, Text, base64, text};
use rand::TryRng;
use std::borrow::Cow;
use std::fmt;
use subtle::ConstantTimeEq;
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

/// A 256-bit key.
pub struct Key(Zeroizing<[u8; 32]>);

impl Key {
    /// Takes ownership of the bytes.
    pub fn new(bytes: [u8; 32]) -> Key {
        Key(Zeroizing::new(bytes))
    }

    /// A new key from the operating system's random source.
    pub fn random() -> Key {
        Key::new(random())
    }

    /// Copies the bytes; `None` unless there are 32 of them.
    pub fn from_slice(bytes: &[u8]) -> Option<Key> {
        bytes.try_into().ok().map(Key::new)
    }

    /// The bytes, for a primitive or the wire.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// A second copy, which is wiped like the first.
    pub fn duplicate(&self) -> Key {
        Key(self.0.clone())
    }
}

text!(Key);

impl Text for Key {
    fn read(text: &str) -> Option<Key> {
        Key::from_slice(&Zeroizing::new(Bytes::read(text)?.0))
    }

    fn write(&self) -> Cow<'_, str> {
        base64(self.expose()).into()
    }
}

impl PartialEq for Key {
    /// In constant time.
    fn eq(&self, other: &Self) -> bool {
        self.expose().ct_eq(other.expose()).into()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The fewest characters of a password: PBKDF2 cannot protect a shorter one. PROTOCOL#password.
const MIN_PASSWORD: usize = 6;

/// A password in UTF-8, prepared so that all keyboards produce the same bytes (RFC 8265 OpaqueString).
/// PROTOCOL#password.
pub struct Password {
    prepared: Zeroizing<String>,
    /// The bytes that older clients used for the same keystrokes, without duplicates.
    others: Vec<Zeroizing<String>>,
}

impl Password {
    /// Takes over the text as typed.
    pub fn new(text: String) -> Password {
        let typed = Zeroizing::new(text);
        let prepared = collected(&typed, typed.chars().map(plain_space).nfc());
        let decomposed = collected(&typed, typed.nfd());
        let mut others = vec![typed, decomposed];
        others.dedup();
        others.retain(|other| *other != prepared);
        Password { prepared, others }
    }

    /// The prepared password, then the forms that older clients used: an account may have been registered with one of
    /// them. PROTOCOL#password-forms.
    pub fn forms(&self) -> impl Iterator<Item = Password> {
        let texts = [&self.prepared].into_iter().chain(&self.others);
        texts.map(|text| Password { prepared: text.clone(), others: Vec::new() })
    }

    /// The prepared UTF-8 bytes, for PBKDF2.
    pub fn expose(&self) -> &[u8] {
        self.prepared.as_bytes()
    }

    /// Whether it has at least 6 characters (code points).
    pub fn is_long_enough(&self) -> bool {
        self.prepared.chars().count() >= MIN_PASSWORD
    }
}

/// Replaces the spaces of Unicode's category Zs, which some keyboards send, by U+0020.
fn plain_space(c: char) -> char {
    match c {
        '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}' => ' ',
        other => other,
    }
}

/// A normal form of `text`.
fn collected(text: &str, characters: impl Iterator<Item = char>) -> Zeroizing<String> {
    // No form exceeds three times the text. A string that grew would leave copies in memory.
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

/// `N` bytes from the operating system's random source.
///
/// # Panics
/// If that source fails: nothing safe can be done without it.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rngs::SysRng.try_fill_bytes(&mut bytes).expect("the operating system's random source works");
    bytes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use zeroize::ZeroizeOnDrop;

    /// Does not compile if the type implements the trait.
    macro_rules! assert_lacks {
        ($type:ty: $trait:path) => {
            const _: fn() = || {
                trait Check<A> {
                    fn check() {}
                }
                impl<T> Check<()> for T {}
                struct Has;
                impl<T: $trait> Check<Has> for T {}
                let _ = <$type as Check<_>>::check;
            };
        };
    }
    pub(crate) use assert_lacks;

    assert_lacks!(Key: Clone);
    assert_lacks!(Key: fmt::Display);
    assert_lacks!(Password: Clone);
    assert_lacks!(Password: fmt::Display);

    pub(crate) fn assert_wiped_on_drop(_: &impl ZeroizeOnDrop) {}

    #[test]
    fn secrets_are_wiped_on_drop() {
        assert_wiped_on_drop(&Key::random().0);
        let password = Password::new("u\u{308}u\u{308}u\u{308}".into());
        assert_wiped_on_drop(&password.prepared);
        password.others.iter().for_each(assert_wiped_on_drop);
    }

    #[test]
    fn debug_output_contains_no_secret() {
        assert_eq!(format!("{:?}", Key::new([7; 32])), "Key(..)");
        assert_eq!(format!("{:?}", Password::new("hunter22".into())), "Password(..)");
    }

    #[test]
    fn secrets_compare_by_content() {
        assert_eq!(Key::new([1; 32]), Key::new([1; 32]));
        assert_ne!(Key::random(), Key::random());
        assert!(Key::from_slice(&[0; 31]).is_none());
        assert_eq!(Password::new("hunter22".into()), Password::new("hunter22".into()));
        assert_ne!(Password::new("hunter22".into()), Password::new("hunter23".into()));
        assert!(!Password::new("fünf5".into()).is_long_enough());
    }

    /// PROTOCOL#password, PROTOCOL#password-forms.
    #[test]
    fn password_is_the_same_from_all_keyboards() {
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
        // Unicode does not count these as spaces.
        for other in ["\t", "\u{85}", "\u{2028}", "\u{200b}", "\u{feff}"] {
            assert_eq!(forms(other), [other]);
        }
        // Compatibility forms and case stay: these are different characters to a user.
        assert_eq!(forms("\u{fb01}\u{ff21}"), ["\u{fb01}\u{ff21}"]);
        let mixed = "\u{fc}u\u{308}\u{a0}";
        assert_eq!(forms(mixed), ["\u{fc}\u{fc} ", mixed, "u\u{308}u\u{308}\u{a0}"]);
        assert_eq!(Password::new(composed.into()), Password::new(decomposed.into()));
        assert!(!Password::new("u\u{308}u\u{308}u\u{308}".into()).is_long_enough());
        // The characters whose forms grow most.
        for longest in ["\u{1d160}", "\u{390}", "\u{f1b}"] {
            let many = Password::new(longest.repeat(100));
            assert!(many.prepared.capacity() <= 3 * longest.len() * 100);
        }
    }
}
