//! Paths as users type them, and as terminals insert a dropped file.
//!
//! Invariant: [`quick_completions`] offers only texts that can be typed, and [`typed_path`] turns each back into
//! exactly its path, whatever bytes the names have. Specification: MANUAL#typed-path.

use super::text::{is_harmful, sanitise};
use crate::disk;
use crate::sync::spawn;
use std::ffi::OsString;
use std::fs::{self, FileType};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// The most files of a folder that are read for completions.
const MAX_LISTED: usize = 10_000;
/// A user who presses Tab waits this long: a folder may be on a machine that does not respond.
const PATIENCE: Duration = Duration::from_millis(500);
/// Blanks around a path, which are ignored.
const BLANKS: [char; 4] = [' ', '\t', '\r', '\n'];

/// The path that a user typed, by the rules of MANUAL#typed-path. If no such file exists, but one with exactly the
/// typed name, with or without the blanks around it, that file is meant.
///
/// # Errors
/// Why the text names no file of this machine.
pub fn typed_path(typed: &str) -> Result<PathBuf, String> {
    let meant = meant_path(typed);
    let literal = [typed, typed.trim_matches(BLANKS)].map(|text| at_home(text.as_bytes()));
    let is_there = meant.as_ref().is_ok_and(|path| path.exists());
    literal.into_iter().filter(|path| !is_there && path.exists()).map(Ok).next().unwrap_or(meant)
}

/// The path by the rules alone, without reading the disk.
///
/// # Errors
/// As [`typed_path`].
pub fn meant_path(typed: &str) -> Result<PathBuf, String> {
    let Read { mut bytes, end, problem } = read(typed);
    bytes.truncate(end);
    problem.map_or_else(|| Ok(at_home(&bytes)), Err)
}

/// The path, with the home folder in place of a leading `~`.
fn at_home(path: &[u8]) -> PathBuf {
    let as_path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
    let below = path.strip_prefix(b"~/").or((path == b"~").then_some(b""));
    let home = below.and_then(|below| Some(disk::under_home("").ok()?.join(as_path(below))));
    home.unwrap_or_else(|| as_path(path))
}

/// The result of reading a text.
struct Read {
    bytes: Vec<u8>,
    /// Where the trailing blanks begin.
    end: usize,
    /// Why it names no file of this machine; `None` if it does.
    problem: Option<String>,
}

/// Reads a text by the rules. MANUAL#typed-path.
fn read(typed: &str) -> Read {
    let mut rest = typed.trim_start_matches(BLANKS);
    if let Some(read) = url(rest.trim_end_matches(BLANKS)) {
        return read;
    }
    let (mut bytes, mut end, mut quote) = (Vec::new(), 0, None);
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match (quote, c) {
            (None, '$') if rest.starts_with('\'') => {
                rest = &rest[1..];
                quote = Some('$');
            }
            (None, '\'' | '"') => quote = Some(c),
            (Some('\'' | '$'), '\'') | (Some('"'), '"') => quote = None,
            (None | Some('$'), '\\') => rest = escape(rest, quote.is_some(), &mut bytes),
            (Some('"'), '\\') if rest.starts_with(['"', '\\', '$', '`']) => {
                bytes.push(rest.as_bytes()[0]);
                rest = &rest[1..];
            }
            _ => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
        // Quoted and escaped blanks count.
        if quote.is_some() || !BLANKS.contains(&c) {
            end = bytes.len();
        }
    }
    let unquoted = std::str::from_utf8(&bytes[..end]).ok().filter(|_| quote.is_none());
    if let Some(read) = unquoted.and_then(url) {
        return read;
    }
    let problem = quote.map(|quote| {
        let quote = if quote == '$' { '\'' } else { quote };
        format!("a quotation mark is not closed: add {quote} at the end, or write \\{quote} where it belongs to the name")
    });
    Read { bytes, end, problem }
}

/// Reads the escape after a backslash and returns the rest: `x` and two hexadecimal digits, or three octal digits,
/// are a byte; in `$'…'` there are line breaks and tabs, too; any other character is itself.
fn escape<'a>(rest: &'a str, dollar: bool, bytes: &mut Vec<u8>) -> &'a str {
    let number = |digits: Option<&str>, radix| {
        let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        u8::from_str_radix(digits, radix).ok()
    };
    let hexadecimal = rest.strip_prefix('x').and_then(|rest| number(rest.get(..2), 16));
    if let Some(byte) = hexadecimal.or_else(|| number(rest.get(..3), 8)) {
        bytes.push(byte);
        return &rest[3..];
    }
    let Some(c) = rest.chars().next() else {
        bytes.push(b'\\');
        return rest;
    };
    let meant = match c {
        'n' if dollar => '\n',
        't' if dollar => '\t',
        c => c,
    };
    bytes.extend_from_slice(meant.encode_utf8(&mut [0; 4]).as_bytes());
    &rest[c.len_utf8()..]
}

/// The path of a `file:` URL.
fn url(text: &str) -> Option<Read> {
    let mut path = text.get(5..).filter(|_| text[..5].eq_ignore_ascii_case("file:"))?;
    let mut problem = None;
    if let Some(rest) = path.strip_prefix("//") {
        let host = &rest[..rest.find('/').unwrap_or(rest.len())];
        path = &rest[host.len()..];
        if path.is_empty() {
            problem = Some("this address names no file: use file:///PATH".to_string());
        } else if !is_this_machine(host) {
            let host = sanitise(host);
            problem = Some(format!(
                "this file is on another machine, {host}: use file:///PATH for a file on this machine"
            ));
        }
    } else if !path.starts_with('/') {
        return None;
    }
    let (mut bytes, mut rest) = (Vec::new(), path.as_bytes());
    while let [first, tail @ ..] = rest {
        let digits =
            tail.get(..2).filter(|digits| *first == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    Some(Read { end: bytes.len(), bytes, problem })
}

/// Whether the host of a URL is this machine.
fn is_this_machine(host: &str) -> bool {
    let own = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    ["", "localhost", own.trim()].iter().any(|name| host.eq_ignore_ascii_case(name))
}

/// The text to type for these bytes.
fn written(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    let byte = |text: &mut String, byte: &u8| text.push_str(&format!("\\x{byte:02X}"));
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' | '\'' | '"' => text.extend(['\\', c]),
                c if is_harmful(c) => {
                    c.encode_utf8(&mut [0; 4]).bytes().for_each(|one| byte(&mut text, &one))
                }
                c => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|one| byte(&mut text, one));
    }
    if text.ends_with(' ') {
        text.insert(text.len() - 1, '\\');
    }
    if text.starts_with(char::is_whitespace) {
        text.insert(0, '\\');
    } else if text == "~" || text.starts_with("~/") || url(&text).is_some() {
        text.insert_str(0, "./");
    }
    text
}

/// The result of `completions` within half a second, otherwise nothing.
pub fn quick_completions(typed: &str) -> Vec<String> {
    let typed = typed.to_string();
    within(PATIENCE, move || completions(&typed)).unwrap_or_default()
}

/// The result of `work` on its own thread; `None` if it takes longer than `patience`.
fn within<T: Send + 'static>(patience: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = sync_channel(1);
    spawn("path", move || _ = done.send(work())).ok()?;
    result.recv_timeout(patience).ok()
}

/// The sorted completions of a path that is being typed. Folders end with a `/`; hidden files need a typed dot. Empty
/// if the folder cannot be read.
fn completions(typed: &str) -> Vec<String> {
    if typed == "~" {
        return vec!["~/".into()];
    }
    let begun_by = |path: &[u8]| {
        let (home, path) = path.strip_prefix(b"~/").map_or(("", path), |below| ("~/", below));
        let slash = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (folder, begun) = path.split_at(slash);
        let place = [home.as_bytes(), folder].concat();
        let place = if place.is_empty() { PathBuf::from(".") } else { at_home(&place) };
        let entries = fs::read_dir(place).into_iter().flatten().flatten().take(MAX_LISTED);
        let mut names: Vec<Vec<u8>> = entries
            .filter(|entry| {
                let name = entry.file_name();
                name.as_bytes().starts_with(begun) && !(name.as_bytes().starts_with(b".") && begun.is_empty())
            })
            .map(|entry| {
                // Look up only the targets of links: a look-up for each file is slow in a folder on another machine.
                let is_folder = |kind: FileType| kind.is_dir() || kind.is_symlink() && entry.path().is_dir();
                let end: &[u8] = if entry.file_type().is_ok_and(is_folder) { b"/" } else { b"" };
                [folder, entry.file_name().as_bytes(), end].concat()
            })
            .collect();
        names.sort();
        names.iter().map(|name| format!("{home}{}", written(name))).collect::<Vec<_>>()
    };
    // An open quotation mark may still be closed, but the folders of another machine are not here.
    let Read { bytes, problem, .. } = read(typed);
    if problem.is_some() && url(typed.trim_matches(BLANKS)).is_some() {
        return Vec::new();
    }
    let meant = begun_by(&bytes);
    if meant.is_empty() { begun_by(typed.as_bytes()) } else { meant }
}

/// The absolute path, for users.
pub fn whole(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.into()).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::random;
    use crate::encoding::hex;

    fn folder() -> PathBuf {
        let name = hex(&random::<8>());
        let path = std::env::temp_dir().join(format!("path-{name}"));
        fs::create_dir(&path).expect("a folder");
        path
    }

    /// MANUAL#typed-path.
    #[test]
    fn dropped_file_is_read_as_terminals_quote_it() {
        let home = disk::under_home("").expect("a home");
        for (typed, bytes) in [
            ("/a/b.txt", &b"/a/b.txt"[..]),
            (" /a b.txt \r\n", b"/a b.txt"),
            ("'/a b.txt' ", b"/a b.txt"),
            ("'/it'\\''s'", b"/it's"),
            ("\"/a \\\"b\\\" $c.txt\"\n", b"/a \"b\" $c.txt"),
            ("/a\\ b\\(1\\)\\'s.txt ", b"/a b(1)'s.txt"),
            ("/a\\  ", b"/a "),
            ("'/a ' ", b"/a "),
            ("'/caf'$'\\351''.txt'", b"/caf\xe9.txt"),
            ("/caf\\xE9\\xa0", b"/caf\xe9\xa0"),
            ("/x\\\\y\\", b"/x\\y\\"),
            ("/a$b$'\\n\\t'", b"/a$b\n\t"),
            ("file:///tmp/a%20b%E9%zz%", b"/tmp/a b\xe9%zz%"),
            ("FILE://LocalHost/tmp/a b\r\n", b"/tmp/a b"),
            ("file:/tmp/%C3%A9 ", b"/tmp/\xc3\xa9"),
            ("file:////tmp/a", b"//tmp/a"),
            ("'file:///tmp/a%20b'", b"/tmp/a b"),
            ("file:a", b"file:a"),
            ("", b""),
        ] {
            assert_eq!(meant_path(typed).expect(typed).as_os_str().as_bytes(), bytes, "{typed:?}");
        }
        for typed in ["~/a b", " ~/a\\ b ", "'~/a b'", "\"~/a b\""] {
            assert_eq!(meant_path(typed), Ok(home.join("a b")), "{typed:?}");
        }
        assert_eq!(meant_path("~"), Ok(home));
        assert_eq!(meant_path("~bob/a"), Ok(PathBuf::from("~bob/a")));
    }

    /// MANUAL#typed-path.
    #[test]
    fn path_of_another_machine_or_half_quoted_is_refused() {
        for (typed, reason) in [
            ("file://elsewhere/tmp/a", "on another machine, elsewhere"),
            ("FILE://Elsewhere/etc/passwd", "on another machine"),
            ("'file://elsewhere/tmp/a b'", "on another machine"),
            ("file\\://elsewhere/a", "on another machine"),
            ("file://localhost.evil/tmp/a", "on another machine"),
            ("file://local%68ost/tmp/a", "on another machine"),
            ("file://me@localhost/tmp/a", "on another machine"),
            ("file://", "names no file"),
            ("file://localhost", "names no file"),
            ("it's", "a quotation mark is not closed: add '"),
            ("\"/tmp/a", "not closed: add \""),
            ("'/tmp/a", "not closed"),
            ("$'/tmp/a", "not closed: add '"),
            ("/tmp/a'b c'd'", "not closed"),
            ("'/tmp/a\\'", ""),
        ] {
            let meant = typed_path(typed);
            assert_eq!(meant.is_err(), !reason.is_empty(), "{typed:?}: {meant:?}");
            assert!(meant.err().unwrap_or_default().contains(reason), "{typed:?}");
        }
        assert!(completions("file://elsewhere/").is_empty());
        let own = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        assert_eq!(meant_path(&format!("file://{}/tmp/a", own.trim())), Ok(PathBuf::from("/tmp/a")));
    }

    /// MANUAL#typed-path.
    #[test]
    fn completed_path_names_exactly_the_file_it_came_from() {
        let folder = folder();
        let names: [&[u8]; 16] = [
            b"plain.txt",
            b"two  words",
            b" first",
            b"last ",
            b"last  ",
            b"it's",
            b"\"quoted\"",
            b"back\\slash",
            b"back\\",
            b"caf\xe9",
            b"caf\xc3\xa9",
            b"\xff\xfe",
            b"two\nlines",
            b"\xe2\x80\xaegnp",
            b"$'x'",
            b"\\x41",
        ];
        for name in names {
            fs::write(folder.join(OsString::from_vec(name.to_vec())), name).expect("written");
        }
        fs::create_dir(folder.join("~")).expect("a folder");
        fs::write(folder.join(".hidden"), b"").expect("written");
        let base = format!("{}/", folder.display());
        let found = completions(&base);
        assert_eq!(found.len(), names.len() + 1, "{found:?}");
        for text in found.iter().filter(|text| !text.ends_with('/')) {
            assert!(!text.contains(is_harmful), "{text:?}");
            let path = typed_path(text).expect("a path");
            let name = path.file_name().expect("a name").as_bytes();
            assert_eq!(fs::read(&path).expect("the file"), name, "{text:?}");
            assert!(completions(text).contains(text), "{text:?}");
        }
        assert_eq!(completions(&format!("{base}.")), [format!("{base}.hidden")]);
        assert_eq!(completions(&format!("'{base}two  w")), [format!("{base}two  words")]);
        assert_eq!(completions(&format!("file://{base}pl")), [format!("{base}plain.txt")]);
        assert_eq!(completions("~"), ["~/"]);
        assert!(completions(&format!("{base}none/")).is_empty());
        fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn completion_ends_without_a_folder_that_does_not_respond() {
        let (_open, never) = sync_channel::<()>(1);
        assert_eq!(within(Duration::from_millis(1), move || never.recv()), None);
        assert_eq!(within(Duration::from_secs(60), || 1), Some(1));
        let folder = folder();
        std::os::unix::fs::symlink("/", folder.join("a")).expect("a link");
        std::os::unix::fs::symlink("none", folder.join("b")).expect("a link");
        let base = folder.display();
        assert_eq!(completions(&format!("{base}/")), [format!("{base}/a/"), format!("{base}/b")]);
        fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn any_bytes_can_be_written_and_read_again() {
        const SIGNS: &[u8] = b" \t\n\\'\"$x~/%41:e\x1b\xe9\xc2\xa0\xff";
        for _ in 0..2000 {
            let random: [u8; 12] = random();
            let path: Vec<u8> = random[1..1 + usize::from(random[0]) % 11 + 1]
                .iter()
                .map(|byte| SIGNS[usize::from(*byte) % SIGNS.len()])
                .collect();
            let text = written(&path);
            let Read { bytes, end, problem } = read(&text);
            let bytes = bytes[..end].strip_prefix(b"./").unwrap_or(&bytes[..end]);
            assert!(problem.is_none() && bytes == path && !text.contains(is_harmful), "{path:?} as {text:?}");
        }
    }

    #[test]
    fn name_of_an_existing_file_is_used_unchanged() {
        let folder = folder();
        let base = folder.display();
        for name in ["a\\b", "'c'"] {
            fs::write(folder.join(name), b"").expect("written");
            assert_eq!(typed_path(&format!("{base}/{name}")), Ok(folder.join(name)));
        }
        fs::write(folder.join("ab"), b"").expect("written");
        assert_eq!(typed_path(&format!("{base}/a\\b")), Ok(folder.join("ab")), "the rules come first");
        for name in ["it's", "last ", "last  ", "it's "] {
            fs::write(folder.join(name), b"").expect("written");
            assert_eq!(typed_path(&format!("{base}/{name}")), Ok(folder.join(name)));
        }
        assert_eq!(typed_path(&format!("{base}/ab ")), Ok(folder.join("ab")), "the rules come first");
        assert_eq!(written(b"~"), "./~");
        assert_eq!(written(b"~/x "), "./~/x\\ ");
        assert_eq!(written(b"file:/x"), "./file:/x");
        fs::remove_dir_all(folder).expect("removed");
    }
}
