//! User names: parsed once, valid from then on.
//!
//! Invariant: a [`Username`] has 1 to 32 ASCII letters, digits, `_` or `-` and begins with a letter or digit. It is
//! safe in a path, a log line, a terminal and a signed field. Letter case is kept, but no two accounts differ in case
//! alone (PROTOCOL#names). A name that reads like a word of the interface is shown with `@` before it, so that no user
//! can pose as the program.

use crate::encoding::{Text, text};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// The longest name, in bytes: fits a status line beside a room's name.
pub const MAX_NAME: usize = 32;

/// Words that the interface shows in the place of names. PROTOCOL#reserved-names.
const WORDS: [&str; 8] = ["all", "everyone", "me", "operator", "private", "room", "server", "you"];

/// A text of at most 32 bytes, stored inline: a message to a thousand users contains each name three times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Word {
    /// Zeros follow the text, so that words compare as their texts do.
    bytes: [u8; MAX_NAME],
    length: u8,
}

impl Word {
    /// `None` if `text` has more than 32 bytes.
    pub fn new(text: &str) -> Option<Word> {
        let mut bytes = [0; MAX_NAME];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(Word { bytes, length: text.len() as u8 })
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..usize::from(self.length)]).expect("it was made from a text")
    }
}

/// A valid user name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Username(Word);

/// The error for a text that is not a user name.
const INVALID_NAME: &str =
    "a name is 1 to 32 letters (a-z, A-Z), digits, _ or -, and begins with a letter or digit";

impl Username {
    /// The name as it was registered: 1 to 32 bytes of ASCII.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether the name reads like a word of the interface: in any letter case, without `_` and `-`, without digits at
    /// its ends, or with characters that look alike. In a short word `i` does not count as `l`, so `ali` is a name; a
    /// capital `I` beside small letters does.
    pub fn is_reserved(&self) -> bool {
        let has = |kind: fn(&u8) -> bool| self.as_str().bytes().any(|byte| kind(&byte));
        let may_be_short = !has(|&b| b == b'i') && (has(u8::is_ascii_lowercase) || !has(|&b| b == b'I'));
        let plain = self.folded().replace(['_', '-'], "");
        let bare = plain.trim_matches(|c: char| c.is_ascii_digit());
        let shown = [&plain, bare].map(look);
        WORDS.iter().any(|word| (word.len() > 3 || may_be_short) && shown.contains(&look(word)))
    }

    /// The name in lower case, for uniqueness and lockout. PROTOCOL#name-case.
    pub fn folded(&self) -> String {
        self.as_str().to_ascii_lowercase()
    }
}

/// A form that is equal for lower-case texts that look alike.
fn look(text: &str) -> String {
    let alike = |c| match c {
        '0' => 'o',
        '1' | 'i' => 'l',
        '3' => 'e',
        '4' => 'a',
        '5' => 's',
        '7' => 't',
        other => other,
    };
    text.chars().map(alike).collect::<String>().replace("rn", "m").replace("vv", "w")
}

impl FromStr for Username {
    type Err = &'static str;

    /// PROTOCOL#name-form.
    fn from_str(text: &str) -> Result<Self, &'static str> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let starts_well = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        let word = Word::new(text).filter(|_| starts_well && text.bytes().all(allowed));
        word.map(Username).ok_or(INVALID_NAME)
    }
}

text!(Username);

impl Text for Username {
    fn read(text: &str) -> Option<Username> {
        text.parse().ok()
    }

    fn write(&self) -> Cow<'_, str> {
        self.as_str().into()
    }
}

/// For display. A path or a signed field takes [`Username::as_str`].
impl fmt::Display for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_reserved() { f.pad(&format!("@{}", self.as_str())) } else { f.pad(self.as_str()) }
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

    /// PROTOCOL#reserved-names.
    #[test]
    fn word_of_the_interface_is_recognised_in_every_disguise() {
        let name = |text: &str| text.parse::<Username>().expect("valid");
        for word in WORDS {
            let upper = word.to_uppercase();
            for text in [word, &upper, &format!("{word}2"), &format!("1{word}"), &format!("{word}_-")] {
                assert!(name(text).is_reserved(), "{text}");
                assert_eq!(name(text).to_string(), format!("@{text}"));
            }
        }
        for text in [
            "every-one",
            "Ever1-Y0ne",
            "EVERY0NE",
            "y0u",
            "serv3r",
            "5erver",
            "aIl",
            "AIl_2",
            "a1l",
            "al1",
            "rnE",
            "pr1vate",
        ] {
            assert_eq!(name(text).is_reserved(), text != "Ever1-Y0ne", "{text}");
        }
        for text in
            ["ali", "Ali_1", "ALI", "AI1", "mel", "rob", "eve", "may", "alice", "Bob2", "allan", "youssef"]
        {
            assert!(!name(text).is_reserved(), "{text}");
        }
        for text in ["roomy", "emma", "serverless", "1", "a", "0-0", "member7"] {
            assert!(!name(text).is_reserved(), "{text}");
            assert_eq!(format!("{:>12}", name(text)), format!("{text:>12}"));
        }
    }

    /// PROTOCOL#name-form.
    #[test]
    fn name_that_could_leave_a_folder_or_line_is_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "a\n", "-rf", "_x", "é", "a\u{202e}b", "a.b", "a@b"] {
            assert_eq!(bad.parse::<Username>(), Err(INVALID_NAME), "{bad:?}");
        }
        assert!("x".repeat(MAX_NAME + 1).parse::<Username>().is_err());
        assert!(INVALID_NAME.contains(&format!("1 to {MAX_NAME} letters")));
        for good in ["a", "Alice", "bob-2", "0_0", &"x".repeat(32)] {
            assert_eq!(good.parse::<Username>().expect("valid").as_str(), good);
        }
    }
}
