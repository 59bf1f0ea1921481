//! Command lines: `--flag`, `--flag VALUE` and `--flag=VALUE`. An error is one line.

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
    /// Takes the words after the program's name.
    pub fn new(words: impl IntoIterator<Item = OsString>) -> Arguments {
        Arguments { words: words.into_iter().collect::<Vec<_>>().into_iter(), inline: None }
    }

    /// The next flag; `None` at the end of the command line.
    ///
    /// # Errors
    /// If the word is not a flag in UTF-8, or the flag before it has a value and takes none.
    pub fn flag(&mut self) -> Result<Option<String>, String> {
        if let Some(value) = self.inline.take() {
            return Err(format!("unexpected value: {value}"));
        }
        let Some(word) = self.words.next() else { return Ok(None) };
        let mut word = word.into_string().map_err(|_| "an option is not UTF-8")?;
        if !word.starts_with('-') {
            return Err(format!("unexpected argument: {word}"));
        }
        if let Some(at) = word.find('=') {
            self.inline = Some(word.split_off(at).split_off(1));
        }
        Ok(Some(word))
    }

    /// The value of `flag`, which was returned last.
    ///
    /// # Errors
    /// If it is missing or not a `T`.
    pub fn value<T: FromStr<Err: Display>>(&mut self, flag: &str) -> Result<T, String> {
        let word = self.inline.take().map(OsString::from).or_else(|| self.words.next());
        let value = word.ok_or_else(|| format!("{flag} needs a value"))?;
        let value = value.into_string().map_err(|_| format!("the value of {flag} is not UTF-8"))?;
        value.parse().map_err(|error| format!("invalid value for {flag}: {value} ({error})"))
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
