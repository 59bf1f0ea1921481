//! Command lines: `--flag`, `--flag VALUE` and `--flag=VALUE`, with errors of one line.

use std::ffi::OsString;
use std::fmt::Display;
use std::str::FromStr;

/// The words of a command line that are not parsed yet.
pub struct Arguments {
    words: std::vec::IntoIter<OsString>,
    /// The value of a `--flag=VALUE` whose flag was returned last.
    inline: Option<String>,
}

impl Arguments {
    /// From the words after the program's name.
    pub fn new(words: impl IntoIterator<Item = OsString>) -> Arguments {
        Arguments { words: words.into_iter().collect::<Vec<_>>().into_iter(), inline: None }
    }

    /// The next flag; `None` at the end of the command line.
    ///
    /// # Errors
    /// If the word is not UTF-8 or not a flag, or the flag before takes no value and has one.
    pub fn flag(&mut self) -> Result<Option<String>, String> {
        if let Some(value) = self.inline.take() {
            return Err(format!("unexpected value: {value}"));
        }
        let Some(word) = self.words.next() else {
            return Ok(None);
        };
        let word = word.into_string().map_err(|_| "an option that is not UTF-8".to_string())?;
        if !word.starts_with('-') {
            return Err(format!("unexpected argument: {word}"));
        }
        Ok(Some(match word.split_once('=') {
            Some((flag, value)) => {
                self.inline = Some(value.to_string());
                flag.to_string()
            }
            None => word,
        }))
    }

    /// The value of `flag`, which was returned last.
    ///
    /// # Errors
    /// If it is missing or not a `T`.
    pub fn value<T: FromStr<Err: Display>>(&mut self, flag: &str) -> Result<T, String> {
        let value = match self.inline.take() {
            Some(value) => value,
            None => match self.words.next().map(OsString::into_string) {
                Some(Ok(value)) => value,
                Some(Err(_)) => return Err(format!("{flag} needs a value in UTF-8")),
                None => return Err(format!("{flag} needs a value")),
            },
        };
        value.parse().map_err(|error| format!("{flag} does not take this value: {value} ({error})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Arguments {
        Arguments::new(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn flags_take_values_in_both_forms() {
        let mut args = arguments("--port 7 --port=8 --plain");
        for expected in [7u16, 8] {
            assert_eq!(args.flag(), Ok(Some("--port".into())));
            assert_eq!(args.value("--port"), Ok(expected));
        }
        assert_eq!(args.flag(), Ok(Some("--plain".into())));
        assert_eq!(args.flag(), Ok(None));
    }

    #[test]
    fn wrong_command_line_is_refused_in_one_line() {
        assert!(arguments("word").flag().is_err());
        let mut args = arguments("--plain=yes");
        assert_eq!(args.flag(), Ok(Some("--plain".into())));
        assert!(args.flag().is_err());
        for line in ["--port", "--port x", "--port 70000", "--port=-1"] {
            let mut args = arguments(line);
            assert!(args.flag().is_ok() && args.value::<u16>("--port").is_err(), "{line}");
        }
    }
}
