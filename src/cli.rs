//! Command lines (`--flag`, `--flag VALUE` and `--flag=VALUE`) and options files, which have one flag a line.

use crate::disk;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The largest options file, in bytes; every flag with a long value fits in some KiB.
const MAX_FILE: usize = 64 * 1024;
/// With one of these flags the file is not read, so that an error in it does not hide the help.
const HELP: [&str; 4] = ["--help", "-h", "--version", "-V"];

/// The words that are not parsed yet. Those of the options file come first, so the command line overrides them.
#[derive(Default)]
pub struct Arguments {
    /// Each with its place (file and line), with which an error about it begins.
    sources: VecDeque<(String, Vec<OsString>)>,
    place: String,
    words: std::vec::IntoIter<OsString>,
    /// The value of a `--flag=VALUE` whose flag was returned last.
    inline: Option<String>,
}

impl Arguments {
    /// Takes the words after the program's name.
    pub fn new(words: impl IntoIterator<Item = OsString>) -> Arguments {
        let sources = [(String::new(), words.into_iter().collect())].into();
        Arguments { sources, ..Arguments::default() }
    }

    /// Takes the options file of the data folder too, if it exists. `default` is the data folder's name below `$HOME`.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn with_file(words: impl IntoIterator<Item = OsString>, default: &str) -> Result<Arguments, String> {
        let words: Vec<OsString> = words.into_iter().collect();
        let is_help = words.iter().any(|word| HELP.iter().any(|help| word == help));
        let folder = folder(&words).or_else(|| disk::under_home(default).ok()).filter(|_| !is_help);
        let lines = folder.map_or(Ok(Vec::new()), |folder| lines(&folder.join(disk::OPTIONS)))?;
        let sources = lines.into_iter().chain([(String::new(), words)]).collect();
        Ok(Arguments { sources, ..Arguments::default() })
    }

    /// An error about the flag that was returned last, with the line of the file that has it.
    pub fn at(&self, error: &str) -> String {
        format!("{}{error}", self.place)
    }

    /// The next flag; `None` after the last.
    ///
    /// # Errors
    /// If the word is not a flag in UTF-8, or the flag before it has a value and takes none.
    pub fn flag(&mut self) -> Result<Option<String>, String> {
        if let Some(value) = self.inline.take() {
            return Err(format!("unexpected value: {value}"));
        }
        let word = loop {
            if let Some(word) = self.words.next() {
                break word;
            }
            let Some((place, words)) = self.sources.pop_front() else { return Ok(None) };
            (self.place, self.words) = (place, words.into_iter());
        };
        let mut word = word.into_string().map_err(|_| "an option is not UTF-8")?;
        if !word.starts_with('-') {
            return Err(format!("unexpected argument: {word}"));
        }
        if let Some(at) = word.find('=') {
            self.inline = Some(word.split_off(at).split_off(1));
        }
        let is_for_file =
            !matches!(word.as_str(), "--data-dir" | "--check") && !HELP.contains(&word.as_str());
        if !self.place.is_empty() && !is_for_file {
            return Err(format!("{word} belongs on the command line"));
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

    /// The port after `flag`, which was returned last.
    ///
    /// # Errors
    /// If it is missing or no port.
    pub fn port(&mut self, flag: &str) -> Result<u16, String> {
        let word: String = self.value(flag)?;
        word.parse().map_err(|_| format!("{flag} takes a number from 0 to {}, not {word}", u16::MAX))
    }
}

/// The data folder that the command line names last.
fn folder(words: &[OsString]) -> Option<PathBuf> {
    let value = |at: usize| match words[at].to_str()? {
        "--data-dir" => words.get(at + 1).map(PathBuf::from),
        word => word.strip_prefix("--data-dir=").map(PathBuf::from),
    };
    (0..words.len()).rev().find_map(value)
}

/// The lines of an options file, each with its place; none if the file does not exist. Empty lines and lines that begin
/// with `#` are skipped.
fn lines(path: &Path) -> Result<Vec<(String, Vec<OsString>)>, String> {
    let bytes = match disk::read(path, MAX_FILE) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|error| error.to_string())?,
    };
    let text = disk::text(&bytes).ok_or_else(|| format!("{}: save the file as UTF-8", path.display()))?;
    let numbered = text.lines().map(str::trim).enumerate();
    let options = numbered.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    Ok(options.map(|(at, line)| (format!("{}, line {}: ", path.display(), at + 1), words(line))).collect())
}

/// A flag and its value: the rest of the line.
fn words(line: &str) -> Vec<OsString> {
    match line.split_once(char::is_whitespace) {
        Some((flag, value)) if !flag.contains('=') => vec![flag.into(), value.trim_start().into()],
        _ => vec![line.into()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::Folder;

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

    /// The flags and values of a command line with this options file, and the first error.
    fn parsed(file: &[u8], line: &str) -> (Vec<String>, Option<String>) {
        let folder = Folder::new();
        std::fs::write(folder.join("options"), file).expect("written");
        let line = format!("--data-dir {} {line}", folder.display());
        let mut arguments = match Arguments::with_file(line.split_whitespace().map(OsString::from), "none") {
            Ok(arguments) => arguments,
            Err(error) => return (Vec::new(), Some(error)),
        };
        let mut found = Vec::new();
        let error = loop {
            match arguments.flag() {
                Ok(Some(flag)) if flag == "--plain" => found.push(flag),
                Ok(Some(flag)) => match arguments.value::<String>(&flag) {
                    Ok(value) if flag != "--data-dir" => found.push(format!("{flag} {value}")),
                    Ok(_) => {}
                    Err(error) => break Some(arguments.at(&error)),
                },
                Ok(None) => break None,
                Err(error) => break Some(arguments.at(&error)),
            }
        };
        (found, error)
    }

    #[test]
    fn options_of_the_file_come_before_the_command_line() {
        let file = "\u{feff}# mine\r\n\r\n  --host example.org  \r\n--user=a b\r\n--plain\r\n--file ~/My Files/x\0\0";
        let (found, error) = parsed(file.as_bytes(), "--host ::1");
        assert_eq!(error, None);
        assert_eq!(
            found,
            ["--host example.org", "--user=a b", "--plain", "--file ~/My Files/x", "--host ::1"]
                .map(|option| option.replacen('=', " ", 1))
        );
        assert_eq!(parsed(b"", "--port 1").0, ["--port 1"]);
    }

    #[test]
    fn error_in_the_file_names_its_line() {
        for (file, expected) in [
            ("\n\n--port", "options, line 3: --port needs a value"),
            ("# x\nport 7", "options, line 2: unexpected argument: port"),
            ("--plain yes", "options, line 1: unexpected argument: yes"),
            ("--data-dir /tmp", "options, line 1: --data-dir belongs on the command line"),
            ("--help", "options, line 1: --help belongs on the command line"),
        ] {
            let error = parsed(file.as_bytes(), "").1.unwrap_or_default();
            assert!(error.ends_with(expected), "{file}: {error}");
        }
        for file in [&b"\xff\xfe-\0"[..], &[b'#'; MAX_FILE + 1]] {
            assert!(parsed(file, "").1.is_some(), "not UTF-8, or too long");
        }
        assert_eq!(parsed(b"--port", "--version x"), (vec!["--version x".into()], None), "no file is read");
        // An error on the command line names no line.
        assert_eq!(parsed(b"--plain", "--port").1.as_deref(), Some("--port needs a value"));
    }

    #[test]
    fn missing_or_wrong_value_and_bare_word_are_refused() {
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
