//! User names: parsed once, valid ever after.
//!
//! Invariant: a [`Username`] is 1 to 32 ASCII letters, digits, `_` or `-` and begins with a
//! letter or digit, so it is safe in a path, a log line, a terminal and a signed field.
//! Letter case is kept, but two accounts never differ in case alone (README#names).

use std::fmt;
use std::str::FromStr;

/// The longest name, in bytes: fits a status line beside a room's name.
pub const MAX_NAME: usize = 32;

/// A valid user name. It is its own memory: a message to a thousand people names each of them three times.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Username {
    /// Zeros after its end, so that names compare like their texts.
    bytes: [u8; MAX_NAME],
    length: u8,
}

/// Why a text is not a user name.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidName;

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a name is 1 to {MAX_NAME} letters (a-z, A-Z), digits, _ or -, and begins with a letter or digit"
        )
    }
}

impl std::error::Error for InvalidName {}

impl Username {
    /// The name as it was registered: 1 to 32 bytes of ASCII.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..usize::from(self.length)]).expect("a name is ASCII")
    }

    /// The name in lower case, under which names are compared for uniqueness and lockout. README#name-case.
    pub fn folded(&self) -> String {
        self.as_str().to_ascii_lowercase()
    }
}

impl FromStr for Username {
    type Err = InvalidName;

    /// README#name-form.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let starts_well = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        if starts_well && text.len() <= MAX_NAME && text.bytes().all(allowed) {
            let mut bytes = [0; MAX_NAME];
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            Ok(Username { bytes, length: text.len() as u8 })
        } else {
            Err(InvalidName)
        }
    }
}

impl fmt::Display for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// README#name-form.
    #[test]
    fn names_that_could_leave_a_folder_or_a_line_are_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "a\n", "-rf", "_x", "é", "a\u{202e}b", "a.b", "a@b"] {
            assert_eq!(bad.parse::<Username>(), Err(InvalidName), "{bad:?}");
        }
        assert!("x".repeat(33).parse::<Username>().is_err());
        for good in ["a", "Alice", "bob-2", "0_0", &"x".repeat(32)] {
            assert_eq!(good.parse::<Username>().expect("valid").as_str(), good);
        }
    }
}
