//! Files of JSON records, one a line: accounts, locks, known servers and users, ignored users, the kept history.
//!
//! Invariant: nothing that was not understood is erased. A record counts with or without its line end; a byte order
//! mark, blanks, blank lines and CRLF are harmless; what a torn write has left behind the last record is set aside in
//! a file of its own; any other damage is an error with file, line and remedy. An append that fails is taken back as far as
//! the disk allows, and none is ever glued to a line that has lost its end. Specification: README#records.

use crate::clock;
use crate::disk;
use miniserde::{Deserialize, json};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// What the records of a file are like.
#[derive(Debug)]
pub struct Format {
    /// The longest line, in bytes.
    pub longest: usize,
    /// What a person learns of a damaged line, behind its number.
    pub damaged: &'static str,
}

/// Of most files: real records have about 300 bytes.
const PLAIN: Format = Format {
    longest: 4096,
    damaged: "is damaged: restore the file from a copy, or remove that line and what it stands for",
};
/// Stands in the names of the files that hold what was set aside.
const SET_ASIDE: &str = ".set-aside-";
/// U+FEFF in UTF-8: editors put it at the beginning of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The processes that may write to a file while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// This process alone, by a lock that the caller holds: another file under this name is an error.
    One,
    /// Other processes too, each under a lock for every append; a replaced file is opened again.
    Many,
}

/// A file of records, open for appending.
pub struct Records {
    path: PathBuf,
    file: File,
    writers: Writers,
    format: &'static Format,
    repaired: Option<String>,
}

/// What a file was found to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Bytes up to the last record, with the blanks behind it.
    good: u64,
    /// Bytes in all.
    length: u64,
    /// The last record lacks its line end.
    open: bool,
}

impl Found {
    /// What opening this file for writing would do to it; `None` if nothing.
    pub fn plan(&self, path: &Path) -> Option<String> {
        let (path, rest) = (path.display(), self.length - self.good);
        match (rest, self.open) {
            (0, false) => None,
            (0, true) => Some(format!("{path}: a start adds the line end that the last record lacks")),
            _ => Some(format!(
                "{path}: {rest} bytes behind the last record are not understood: a start sets them aside"
            )),
        }
    }
}

/// The record in a line, if it is a `T`.
pub fn parse<T: Deserialize>(line: &[u8]) -> Option<T> {
    json::from_str(std::str::from_utf8(line).ok()?).ok()
}

/// Reads a file without changing anything, also while another process appends to it: `each` gets every record,
/// without blanks around it, and says whether it understands it.
///
/// # Errors
/// With file, line and remedy in the text if `each` does not understand a line that is not a torn write's rest; with
/// the path if the file is missing, is a link, or the disk fails.
pub fn read(path: &Path, each: impl FnMut(&[u8]) -> bool) -> io::Result<Found> {
    scan(&disk::open(path)?, path, &PLAIN, 0, each)
}

/// Reads from byte `from` on. A line that is too long comes in pieces, of which the first is not understood.
fn scan(
    file: &File,
    path: &Path,
    format: &Format,
    from: u64,
    mut each: impl FnMut(&[u8]) -> bool,
) -> io::Result<Found> {
    let length = file.metadata().map_err(disk::at(path))?.len();
    let mut handle = file;
    handle.seek(SeekFrom::Start(from)).map_err(disk::at(path))?;
    // What another process appends meanwhile is left out: it may be half of it.
    let mut reader = BufReader::new(handle.take(length.saturating_sub(from)));
    // Some hold password keys.
    let mut line = Zeroizing::new(Vec::with_capacity(format.longest.min(4096)));
    let (mut at, mut number, mut rest) = (from, 1, None);
    let mut found = Found { good: from, length, open: false };
    loop {
        line.clear();
        let count =
            (&mut reader).take(format.longest as u64).read_until(b'\n', &mut line).map_err(disk::at(path))?;
        if count == 0 {
            return Ok(found);
        }
        let is_whole = line.ends_with(b"\n");
        // Some file systems leave zeros behind the last record after a crash.
        let zeros = line.iter().rev().take_while(|&&byte| byte == 0).count();
        let body = &line[..count - zeros];
        let text = body.trim_ascii();
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text).trim_ascii();
        match rest {
            _ if text.is_empty() => found.open &= !is_whole,
            None if each(text) => found.open = !is_whole,
            // A record that was not written to its end.
            None if !is_whole && !text.ends_with(b"}") && !is_utf16(&line) => rest = Some(number),
            _ => return Err(damaged(path, format, rest.unwrap_or(number), &line)),
        }
        if rest.is_none() {
            found.good = at + body.len() as u64;
        }
        if zeros > 0 {
            rest = rest.or(Some(number));
        }
        at += count as u64;
        number += u64::from(is_whole);
    }
}

fn damaged(path: &Path, format: &Format, number: u64, line: &[u8]) -> io::Error {
    let hint = if is_utf16(line) { " (this looks like UTF-16: save the file as UTF-8)" } else { "" };
    io::Error::other(format!("{}: line {number} {}{hint}", path.display(), format.damaged))
}

/// With a byte order mark, or a zero beside each letter.
fn is_utf16(line: &[u8]) -> bool {
    match line {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => true,
        [0, one, 0, other, ..] | [one, 0, other, 0, ..] => *one != 0 && *other != 0,
        _ => false,
    }
}

/// Makes a file beside `path` for what is set aside of it now; no earlier one is overwritten.
fn create_aside(path: &Path) -> io::Result<(PathBuf, File)> {
    let time = clock::utc(clock::now_ms()).replace(['-', ':'], "");
    let mut n = 1;
    loop {
        let mut name = path.as_os_str().to_os_string();
        name.push(format!("{SET_ASIDE}{time}"));
        if n > 1 {
            name.push(format!("-{n}"));
        }
        match disk::create_new(Path::new(&name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => n += 1,
            made => return made.map(|file| (name.into(), file)),
        }
    }
}

/// Copies the bytes of `file`, which is at `path`, from byte `from` on into a file of their own, whose path it
/// returns; they are on disk then.
///
/// # Errors
/// With the path in the text.
fn set_aside(mut file: &File, path: &Path, from: u64) -> io::Result<PathBuf> {
    let (aside, mut copy) = create_aside(path)?;
    let copied = file.seek(SeekFrom::Start(from)).and_then(|_| io::copy(&mut file, &mut copy));
    let copied = copied.and_then(|_| copy.sync_all()).map_err(disk::at(&aside));
    match copied.and_then(|()| disk::sync_parent(&aside)) {
        Ok(()) => Ok(aside),
        Err(error) => {
            let _ = std::fs::remove_file(&aside);
            Err(error)
        }
    }
}

/// Copies a whole file that is about to be rewritten into one of its own, whose path it returns.
///
/// # Errors
/// With the path in the text.
pub fn copy_aside(path: &Path) -> io::Result<PathBuf> {
    set_aside(&File::open(path).map_err(disk::at(path))?, path, 0)
}

/// The files with what was ever set aside of `path`.
pub fn asides(path: &Path) -> Vec<PathBuf> {
    let begin = format!("{}{SET_ASIDE}", path.file_name().unwrap_or_default().to_string_lossy());
    let entries = path.parent().and_then(|folder| folder.read_dir().ok());
    let ours = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&begin));
    ours.map(|entry| entry.path()).collect()
}

impl Records {
    /// Opens the file at `path`, which is made if need be, reads it as [`read`] does, and repairs its end.
    ///
    /// # Errors
    /// As [`read`]; nothing has changed then.
    pub fn open(path: &Path, writers: Writers, each: impl FnMut(&[u8]) -> bool) -> io::Result<Records> {
        Records::of(disk::append(path)?, path, writers, &PLAIN, each)
    }

    /// The same, of a file that is open for appending already, with records of another format.
    ///
    /// # Errors
    /// The same.
    pub fn of(
        file: File,
        path: &Path,
        writers: Writers,
        format: &'static Format,
        each: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<Records> {
        let mut records = Records { path: path.to_path_buf(), file, writers, format, repaired: None };
        records.repaired = records.locked(|file| {
            let found = scan(file, path, format, 0, each)?;
            records.repair(&found)
        })?;
        Ok(records)
    }

    /// What was repaired when the file was opened, as a sentence.
    pub fn repaired(&self) -> Option<&str> {
        self.repaired.as_deref()
    }

    fn locked<T>(&self, act: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        if self.writers == Writers::One {
            return act(&self.file);
        }
        self.file.lock().map_err(disk::at(&self.path))?;
        let done = act(&self.file);
        self.file.unlock().map_err(disk::at(&self.path))?;
        done
    }

    /// Lets the file end with the line end of its last record.
    fn repair(&self, found: &Found) -> io::Result<Option<String>> {
        let (path, rest, mut file) = (self.path.display(), found.length - found.good, &self.file);
        let mut done = None;
        if rest > 0 {
            let aside = set_aside(file, &self.path, found.good)?;
            file.set_len(found.good).map_err(disk::at(&self.path))?;
            let aside = aside.display();
            done = Some(format!(
                "{path}: {rest} bytes behind the last record were not understood, and are set aside in {aside}"
            ));
        }
        if found.open {
            file.write_all(b"\n").map_err(disk::at(&self.path))?;
            done =
                done.or_else(|| Some(format!("{path}: the line end that the last record lacked is added")));
        }
        Ok(done)
    }

    /// Sees to it that what is appended now follows a line end, in the file that has the name: an editor may have
    /// changed or replaced it, or a full disk may have left half a line.
    fn ready(&self) -> io::Result<()> {
        if disk::ends_line(&self.file)? {
            return Ok(());
        }
        let length = self.file.metadata()?.len();
        let mut last = vec![0; length.min(self.format.longest as u64) as usize];
        let begin = length - last.len() as u64;
        self.file.read_exact_at(&mut last, begin)?;
        let line = begin + last.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at as u64 + 1);
        let each = |line: &[u8]| parse::<json::Object>(line).is_some();
        let found = scan(&self.file, &self.path, self.format, line, each);
        let found =
            found.map_err(|_| io::Error::other("its last line is damaged: repair it, and start again"))?;
        self.repair(&found).map(drop)
    }

    /// Appends lines, each with its end; waits until they are on disk if they are to be `durable`.
    ///
    /// # Errors
    /// The disk's, with the path in the text, or that another program has put another file in the place of one that
    /// only this process may write: the file then ends as it did before.
    pub fn append(&mut self, lines: &[u8], durable: bool) -> io::Result<()> {
        if !disk::is_at(&self.file, &self.path) {
            if self.writers == Writers::One {
                let text = "it was replaced or removed while it was in use: put it back, or start again";
                return Err(disk::at(&self.path)(io::Error::other(text)));
            }
            self.file = disk::append(&self.path)?;
        }
        let written = self.locked(|mut file| {
            self.ready()?;
            let length = file.metadata()?.len();
            let written =
                file.write_all(lines).and_then(|()| if durable { file.sync_data() } else { Ok(()) });
            if written.is_err() {
                // If this fails too, the half line is set aside before the next one.
                let _ = file.set_len(length).and_then(|()| file.sync_all());
            }
            written
        });
        written.map_err(disk::at(&self.path))
    }

    /// Waits until all of the file is on disk.
    ///
    /// # Errors
    /// With the path in the text.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all().map_err(disk::at(&self.path))
    }

    /// The file's length in bytes.
    ///
    /// # Errors
    /// With the path in the text.
    pub fn length(&self) -> io::Result<u64> {
        self.file.metadata().map(|data| data.len()).map_err(disk::at(&self.path))
    }

    /// Puts a file of these lines in the place of this one; `before` gets the new file before it has the name. The
    /// caller waits for the folder.
    ///
    /// # Errors
    /// With the path in the text; the former file then stands untouched.
    pub fn rewrite<L: AsRef<[u8]>>(
        &mut self,
        lines: impl IntoIterator<Item = L>,
        before: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        let write =
            |writer: &mut dyn Write| lines.into_iter().try_for_each(|line| writer.write_all(line.as_ref()));
        self.file = disk::replace_with(&self.path, write, before)?;
        Ok(())
    }

    /// Empties the file, and removes what was ever set aside of it.
    ///
    /// # Errors
    /// With the path in the text.
    pub fn erase(&self) -> io::Result<()> {
        erase(&self.file, &self.path)
    }
}

/// See [`Records::erase`]: of a file that need not be understood.
///
/// # Errors
/// The same.
pub fn erase(file: &File, path: &Path) -> io::Result<()> {
    for aside in asides(path) {
        std::fs::remove_file(&aside).map_err(disk::at(&aside))?;
    }
    file.set_len(0).and_then(|()| file.sync_all()).map_err(disk::at(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::random;
    use std::fs;

    /// Removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Folder {
            let folder = std::env::temp_dir().join(format!("records-{}", u64::from_be_bytes(random())));
            fs::create_dir(&folder).expect("a folder");
            Folder(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn open(path: &Path, writers: Writers) -> io::Result<(Records, Vec<String>)> {
        let mut lines = Vec::new();
        let records = Records::open(path, writers, |line| {
            let is_record = parse::<json::Object>(line).is_some();
            lines.extend(is_record.then(|| String::from_utf8_lossy(line).into_owned()));
            is_record
        });
        records.map(|records| (records, lines))
    }

    /// README#records.
    #[test]
    fn every_record_counts_and_its_line_end_is_added() {
        let folder = Folder::new();
        let path = folder.0.join("records");
        for (text, repaired) in [
            ("{\"a\":1}\n{\"b\":2}\n", "{\"a\":1}\n{\"b\":2}\n"),
            ("{\"a\":1}\n{\"b\":2}", "{\"a\":1}\n{\"b\":2}\n"),
            ("\u{feff}\r\n {\"a\":1} \r\n\n{\"b\":2}\n\n", "\u{feff}\r\n {\"a\":1} \r\n\n{\"b\":2}\n\n"),
            ("{\"a\":1}\n{\"b\":2}  ", "{\"a\":1}\n{\"b\":2}  \n"),
            ("{\"a\":1}\n{\"b\":2}\n{\"c\":", "{\"a\":1}\n{\"b\":2}\n"),
            ("{\"a\":1}\n{\"b\":2}\n\0\0\0\0", "{\"a\":1}\n{\"b\":2}\n"),
            ("{\"a\":1}\n{\"b\":2}\0\0\0\0", "{\"a\":1}\n{\"b\":2}\n"),
        ] {
            fs::write(&path, text).expect("written");
            let (_, lines) = open(&path, Writers::Many).expect("understood");
            assert_eq!(lines, ["{\"a\":1}", "{\"b\":2}"], "{text:?}");
            assert_eq!(fs::read_to_string(&path).expect("there"), repaired, "{text:?}");
        }
        assert_eq!(asides(&path).len(), 3);
    }

    /// README#records.
    #[test]
    fn damage_is_an_error_and_leaves_the_file_alone() {
        let folder = Folder::new();
        let path = folder.0.join("records");
        let utf16: Vec<u8> = "{\"a\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for bytes in [
            &b"{\"a\":1}\n{\"b\":\n{\"c\":3}\n"[..],
            b"{\"a\":1}\n{\"b\":\n",
            b"{\"a\":1}\n{\"b\":}",
            b"{\"a\":1}\n\0\0\n{\"c\":3}\n",
            b"{\"a\":1}\0\0\n{\"c\":3}\n",
            &utf16,
            &[&utf16[..], b" \0"].concat(),
            &[b"{\"a\":1}\n", &vec![0; PLAIN.longest][..], b"{\"c\":3}\n"].concat(),
            &[b"\xff\xfe", &utf16[..]].concat(),
            &vec![b'x'; 2 * PLAIN.longest],
        ] {
            fs::write(&path, bytes).expect("written");
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]);
            let error = open(&path, Writers::Many).map(drop).expect_err(&text).to_string();
            assert!(error.contains("line ") && error.contains("is damaged"), "{text:?}: {error}");
            assert_eq!(fs::read(&path).expect("there"), bytes);
        }
        assert!(asides(&path).is_empty());
    }

    /// README#records.
    #[test]
    fn replaced_file_is_an_error_for_its_only_writer() {
        let folder = Folder::new();
        let path = folder.0.join("records");
        for (writers, text) in [(Writers::One, "new\n"), (Writers::Many, "{\"a\":1}\n{\"b\":2}\n")] {
            fs::write(&path, "").expect("written");
            let (mut records, _) = open(&path, writers).expect("understood");
            fs::remove_file(&path).expect("there");
            fs::write(&path, if writers == Writers::One { "new\n" } else { "{\"a\":1}" }).expect("written");
            let appended = records.append(b"{\"b\":2}\n", true);
            assert_eq!(appended.is_ok(), writers == Writers::Many);
            assert_eq!(fs::read_to_string(&path).expect("there"), text);
        }
    }
}
