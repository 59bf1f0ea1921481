//! Files of JSON records, one a line: accounts, locks, known servers and users, ignored users, the kept history.
//!
//! Invariant: nothing that was not understood is erased. A record counts with or without its line end; a byte order
//! mark, blanks, blank lines and CRLF are harmless; what a torn write has left behind the last record is set aside in
//! a file of its own; any other damage is an error with file, line and remedy. An append that fails is taken back as far as
//! the disk allows, and none is ever glued to a line that has lost its end. A file that this process alone may write gets
//! nothing more after another program has changed it. Specification: README#records.

use crate::clock;
use crate::disk;
use miniserde::{Deserialize, json};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
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
    /// Of a file that only this process may write.
    known: Option<Known>,
}

/// A file as this process left it.
struct Known {
    length: u64,
    modified: SystemTime,
    content: Sha256,
}

impl Known {
    fn of(mut file: &File) -> io::Result<Known> {
        let (data, mut content) = (file.metadata()?, Sha256::new());
        file.rewind()?;
        let mut piece = Zeroizing::new(vec![0; 64 * 1024]);
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(Known { length: data.len(), modified: data.modified()?, content }),
                count => content.update(&piece[..count]),
            }
        }
    }

    /// Whether the file is still the same. With another time, the content decides: `touch` changes nothing, and some
    /// file systems round the time later.
    fn is_as(&mut self, file: &File) -> io::Result<bool> {
        let data = file.metadata()?;
        if data.len() != self.length || data.modified()? == self.modified {
            return Ok(data.len() == self.length);
        }
        let now = Known::of(file)?;
        let is_same = now.content.finalize() == self.content.clone().finalize();
        if is_same {
            self.modified = now.modified;
        }
        Ok(is_same)
    }
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
/// without blanks around it, and says whether it understands it. For each damaged line it gets nothing, and says whether
/// that is to be tolerated.
///
/// # Errors
/// With file, line and remedy in the text if `each` does not understand a line that is not a torn write's rest, and does
/// not tolerate it; with the path if the file is missing, is a link, or the disk fails.
pub fn read(path: &Path, each: impl FnMut(&[u8]) -> bool) -> io::Result<Found> {
    scan(&disk::open(path)?, path, &PLAIN, 0, each)
}

/// Reads from byte `from` on. A line that is too long comes in pieces.
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
    let (mut at, mut number) = (from, 1);
    // The line in which a torn write's rest seems to begin; the last one that was damaged, which may have more pieces.
    let (mut rest, mut last_damaged) = (None, 0);
    let mut found = Found { good: from, length, open: false };
    loop {
        line.clear();
        let count =
            (&mut reader).take(format.longest as u64).read_until(b'\n', &mut line).map_err(disk::at(path))?;
        if count == 0 {
            return Ok(found);
        }
        let is_whole = line.ends_with(b"\n");
        // Some file systems leave zeros after a crash, where data was not written yet.
        let is_blank = |byte: &u8| *byte == 0 || byte.is_ascii_whitespace();
        let end = line.iter().rposition(|byte| !is_blank(byte)).map_or(0, |last| last + 1);
        let zeros = line[end..].iter().position(|&byte| byte == 0).map(|first| end + first);
        let text = line[..end].trim_ascii_start();
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text).trim_ascii_start();
        let is_open = !is_whole || zeros.is_some();
        if text.is_empty() {
            found.open &= is_open;
        } else {
            // Something follows, so no torn write has left it.
            let mut is_damaged = rest.take();
            let is_new = last_damaged != number && is_damaged != Some(number);
            if is_new && each(text) {
                found.open = is_open;
            } else if is_new && !is_whole && !text.ends_with(b"}") && !is_utf16(&line) {
                // A record that was not written to its end.
                rest = Some(number);
            } else {
                is_damaged = is_damaged.or(Some(number));
                found.open = is_open;
            }
            if let Some(number) = is_damaged.filter(|number| last_damaged != *number) {
                if !each(b"") {
                    return Err(damaged(path, format, number, &line));
                }
                last_damaged = number;
            }
        }
        if rest.is_none() {
            found.good = at + zeros.unwrap_or(count) as u64;
            rest = zeros.map(|_| number);
        }
        at += count as u64;
        number += u64::from(is_whole);
    }
}

fn damaged(path: &Path, format: &Format, number: u64, line: &[u8]) -> io::Error {
    let hint = match line {
        _ if is_utf16(line) => " (this looks like UTF-16: save the file as UTF-8)",
        _ if line.trim_ascii().contains(&b'\r') => " (its line ends are CR alone: save the file with LF)",
        _ => "",
    };
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
        let path_buf = path.to_path_buf();
        let mut records = Records { path: path_buf, file, writers, format, repaired: None, known: None };
        records.repaired = records.locked(|file| {
            let found = scan(file, path, format, 0, each)?;
            records.repair(&found)
        })?;
        records.know()?;
        Ok(records)
    }

    /// What was repaired when the file was opened, as a sentence.
    pub fn repaired(&self) -> Option<&str> {
        self.repaired.as_deref()
    }

    /// Remembers the file as it is now, if nobody else may change it.
    fn know(&mut self) -> io::Result<()> {
        let known = (self.writers == Writers::One).then(|| Known::of(&self.file)).transpose();
        self.known = known.map_err(disk::at(&self.path))?;
        Ok(())
    }

    /// Refuses to write to a file that another program has changed: what it holds is not what this process believes.
    fn check_unchanged(&mut self) -> io::Result<()> {
        let Some(known) = &mut self.known else { return Ok(()) };
        let told = match disk::is_at(&self.file, &self.path) {
            true if known.is_as(&self.file).map_err(disk::at(&self.path))? => return Ok(()),
            true => "another program changed it while it was in use: put it back as it was, or start again",
            false => "it was replaced or removed while it was in use: put it back, or start again",
        };
        Err(disk::at(&self.path)(io::Error::other(told)))
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
    /// True if something had to be repaired.
    fn ready(&self) -> io::Result<bool> {
        if disk::ends_line(&self.file)? {
            return Ok(false);
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
        self.repair(&found).map(|_| true)
    }

    /// Appends lines, each with its end; waits until they are on disk if they are to be `durable`.
    ///
    /// # Errors
    /// The disk's, with the path in the text, or that another program has changed or replaced a file that only this
    /// process may write: the file then ends as it did before.
    pub fn append(&mut self, lines: &[u8], durable: bool) -> io::Result<()> {
        self.check_unchanged()?;
        if self.writers == Writers::Many && !disk::is_at(&self.file, &self.path) {
            self.file = disk::append(&self.path)?;
        }
        let written = self.locked(|mut file| {
            let is_repaired = self.ready()?;
            let length = file.metadata()?.len();
            let written =
                file.write_all(lines).and_then(|()| if durable { file.sync_data() } else { Ok(()) });
            if written.is_err() {
                // If this fails too, the half line is set aside before the next one.
                let _ = file.set_len(length).and_then(|()| file.sync_all());
            }
            written.map(|()| is_repaired)
        });
        match (&written, &mut self.known) {
            (Ok(false), Some(known)) => {
                known.content.update(lines);
                known.length += lines.len() as u64;
                known.modified = self.file.metadata()?.modified()?;
            }
            _ => {
                let known = self.know();
                written.as_ref().map_or(Ok(()), |_| known)?;
            }
        }
        written.map(drop).map_err(disk::at(&self.path))
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
        self.check_unchanged()?;
        let write =
            |writer: &mut dyn Write| lines.into_iter().try_for_each(|line| writer.write_all(line.as_ref()));
        self.file = disk::replace_with(&self.path, write, before)?;
        self.know()
    }

    /// Empties the file, and removes what was ever set aside of it.
    ///
    /// # Errors
    /// With the path in the text.
    pub fn erase(&mut self) -> io::Result<()> {
        erase(&self.file, &self.path)?;
        self.know()
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

    /// A new path for a file, and its folder.
    fn place() -> (PathBuf, PathBuf) {
        let name: String = random::<8>().iter().map(|b| format!("{b:02x}")).collect();
        let folder = std::env::temp_dir().join(format!("records-{name}"));
        disk::private_folders(&folder, &[]).expect("folder");
        (folder.join("lines"), folder)
    }

    #[test]
    fn half_a_line_of_a_full_disk_is_set_aside_before_the_next() {
        let (path, folder) = place();
        let mut records = Records::open(&path, Writers::One, |_| true).expect("new");
        assert_eq!(records.repaired(), None);
        for n in 0..3 {
            records.append(format!("{{\"n\":{n}}}\n").as_bytes(), true).expect("written");
            if n == 1 {
                // It could not be taken back.
                (&records.file).write_all(b"{\"n\":").and_then(|()| records.know()).expect("written");
            }
        }
        let text = std::fs::read_to_string(&path).expect("readable");
        assert_eq!(text, (0..3).map(|n| format!("{{\"n\":{n}}}\n")).collect::<String>());
        assert_eq!(std::fs::read_to_string(&asides(&path)[0]).expect("kept"), "{\"n\":");
        std::fs::remove_dir_all(folder).expect("clean up");
    }

    /// README#records.
    #[test]
    fn file_that_another_program_changed_in_place_gets_no_line() {
        let (path, folder) = place();
        let mut records = Records::open(&path, Writers::One, |_| true).expect("new");
        let text = "{\"n\":0}\n{\"n\":1}\n";
        records.append(text.as_bytes(), true).expect("written");
        let earlier = SystemTime::UNIX_EPOCH;
        for changed in
            ["{\"n\":0}\n", "{\"n\":0}\n{\"n\":2}\n", "", &format!("{text}{text}"), &format!("{text}{{")]
        {
            std::fs::write(&path, changed).expect("written");
            File::options()
                .append(true)
                .open(&path)
                .and_then(|file| file.set_modified(earlier))
                .expect("a time");
            let error = records.append(b"{\"n\":3}\n", true).expect_err(changed).to_string();
            assert!(error.contains("another program changed it"), "{changed}: {error}");
            records.rewrite(["{}\n"], |_| Ok(())).expect_err(changed);
            assert_eq!(std::fs::read_to_string(&path).expect("there"), changed);
        }
        // Put back as it was, under whatever time.
        std::fs::write(&path, text).expect("written");
        records.append(b"{\"n\":3}\n", true).expect("the same");
        records.rewrite(["{}\n"], |_| Ok(())).expect("the same");
        records.append(b"{\"n\":4}\n", true).expect("its own");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "{}\n{\"n\":4}\n");
        // Of several writers, each takes the file as it is.
        let mut records = Records::open(&path, Writers::Many, |_| true).expect("there");
        std::fs::write(&path, "{}").expect("written");
        records.append(b"{\"n\":5}\n", true).expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "{}\n{\"n\":5}\n");
        std::fs::remove_dir_all(folder).expect("clean up");
    }
}
