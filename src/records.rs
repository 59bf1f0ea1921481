//! Files of JSON records, one per line: accounts, locks, known servers and users, ignored users, the kept history.
//!
//! Invariant: only [`erase`] erases what cannot be read. A record counts with or without its line end; a byte order
//! mark, blanks, blank lines and CRLF are harmless. A torn write after the last record is set aside in another file;
//! any other damage is an error with file, line and remedy. A failed append is undone as far as the disk allows, and
//! the next append never continues a partial line. Specification: OPERATING#records.

use crate::clock;
use crate::disk;
use miniserde::{Deserialize, json};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use zeroize::Zeroizing;

/// The records of one kind of file.
#[derive(Debug)]
pub struct Format {
    /// The longest line, in bytes.
    pub longest: usize,
    /// The error for a damaged line, after its number.
    pub damaged: &'static str,
}

/// The format of most files: real records have about 300 bytes.
const PLAIN: Format = Format {
    longest: 4096,
    damaged: "is damaged: restore the file from a copy, or remove the line, which loses its record",
};
/// The longest wait for another process's lock: a write takes milliseconds, but a stopped process never releases it.
const PATIENCE: Duration = Duration::from_secs(1);
/// Part of the names of the files that hold what was set aside.
const SET_ASIDE: &str = ".set-aside-";
/// U+FEFF in UTF-8: editors put it at the beginning of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The processes that may write to a file while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// Only this process, which holds a lock: after a change by another program, every write is an error.
    One,
    /// Other processes too, each with a lock for every append. A replaced file is opened again.
    Many,
}

/// A file of records, open for appending.
pub struct Records {
    path: PathBuf,
    file: File,
    writers: Writers,
    format: &'static Format,
    /// The longest wait for the next lock: none after a failed one, as the caller may have many records to write.
    patience: Duration,
    /// Bytes that were read, up to the end of a line.
    read: u64,
    /// The file as this process left it, if it is the only writer.
    known: Option<Known>,
}

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

    /// Whether `file` is unchanged. If only the time differs, the content decides: `touch` changes nothing, and some
    /// file systems round the time later.
    fn matches(&mut self, file: &File) -> io::Result<bool> {
        let data = file.metadata()?;
        if data.len() != self.length || data.modified()? == self.modified {
            return Ok(data.len() == self.length);
        }
        let now = Known::of(file)?;
        let is_same = now.content.clone().finalize() == self.content.clone().finalize();
        if is_same {
            *self = now;
        }
        Ok(is_same)
    }
}

/// The result of scanning a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Bytes up to the last record, with the blanks behind it.
    good: u64,
    /// Bytes in all.
    length: u64,
    /// The last line of `good` lacks its line end.
    open: bool,
}

impl Found {
    /// The repair that a start would do, as a sentence; `None` if the file is in order.
    pub fn plan(&self, path: &Path) -> Option<String> {
        let (path, rest) = (path.display(), self.length - self.good);
        match (rest, self.open) {
            (0, false) => None,
            (0, true) => Some(format!("{path}: a start adds the missing line end")),
            _ => Some(format!(
                "{path}: {rest} bytes after the last record cannot be read: a start sets them aside"
            )),
        }
    }
}

/// The record in a line, if it is a `T`.
pub fn parse<T: Deserialize>(line: &[u8]) -> Option<T> {
    json::from_str(std::str::from_utf8(line).ok()?).ok()
}

/// Reads a file without changing it; another process may append meanwhile. `each` gets every record, without blanks
/// around it, and returns whether it is valid. For each damaged line it gets an empty slice, and returns whether to
/// ignore it.
///
/// # Errors
/// With file, line and remedy in the text for a damaged line that `each` does not ignore; with the path if the file is
/// missing or a link, or the disk fails.
pub fn read(path: &Path, each: impl FnMut(&[u8]) -> bool) -> io::Result<Found> {
    scan(&disk::open(path)?, &PLAIN, 0, each).map_err(disk::at(path))
}

/// Reads a file line by line, from byte `from` on. A line that is too long comes in pieces.
fn scan(
    mut file: &File,
    format: &Format,
    from: u64,
    mut each: impl FnMut(&[u8]) -> bool,
) -> io::Result<Found> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(from))?;
    // Stop at the current length: another process may be appending half a record.
    let mut reader = BufReader::new(file.take(length.saturating_sub(from)));
    // Some lines contain password keys.
    let mut line = Zeroizing::new(Vec::with_capacity(format.longest.min(4096)));
    let (mut at, mut number) = (from, 1);
    // The line in which a torn write seems to begin, and the last damaged line, which may have more pieces.
    let (mut rest, mut reported) = (None, 0);
    let mut found = Found { good: from, length, open: false };
    loop {
        line.clear();
        let count = (&mut reader).take(format.longest as u64).read_until(b'\n', &mut line)?;
        if count == 0 {
            return Ok(found);
        }
        let is_whole = line.ends_with(b"\n");
        let (text, kept) = content(&line);
        if !text.is_empty() {
            // A torn write that anything follows is damage.
            let mut damaged = rest.take();
            if reported != number && damaged != Some(number) && !each(text) {
                let is_torn = !is_whole && !text.ends_with(b"}") && !is_utf16(&line);
                rest = is_torn.then_some(number);
                damaged = damaged.or((!is_torn).then_some(number));
            }
            if let Some(number) = damaged.filter(|number| *number != reported) {
                if !each(b"") {
                    return Err(damage(format, number, &line));
                }
                reported = number;
            }
        }
        if rest.is_none() {
            found.good = at + kept as u64;
            found.open = line[..kept].last().map_or(found.open, |last| *last != b'\n');
            rest = (kept < count).then_some(number);
        }
        at += count as u64;
        number += u64::from(is_whole);
    }
}

/// The text of a line without blanks around it, and the number of bytes before the zeros behind it. Some file systems
/// leave zeros after a crash.
fn content(line: &[u8]) -> (&[u8], usize) {
    let is_blank = |byte: &u8| *byte == 0 || byte.is_ascii_whitespace();
    let end = line.iter().rposition(|byte| !is_blank(byte)).map_or(0, |last| last + 1);
    let zeros = line[end..].iter().position(|&byte| byte == 0);
    let text = line[..end].trim_ascii_start();
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text).trim_ascii_start();
    (text, zeros.map_or(line.len(), |first| end + first))
}

fn damage(format: &Format, number: u64, line: &[u8]) -> io::Error {
    let hint = match line {
        _ if is_utf16(line) => " (this looks like UTF-16: save the file as UTF-8)",
        _ if line.trim_ascii().contains(&b'\r') => " (its line ends are CR alone: save the file with LF)",
        _ => "",
    };
    io::Error::other(format!("line {number} {}{hint}", format.damaged))
}

/// Whether a line has a byte order mark of UTF-16, or a zero beside each letter.
fn is_utf16(line: &[u8]) -> bool {
    match line {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => true,
        [0, one, 0, other, ..] | [one, 0, other, 0, ..] => *one != 0 && *other != 0,
        _ => false,
    }
}

/// Copies `file`, which is at `path`, from byte `from` on into a new file, which is on disk when this returns its path.
fn set_aside(mut file: &File, path: &Path, from: u64) -> io::Result<PathBuf> {
    let (aside, mut copy) = create_aside(path)?;
    let copied = file.seek(SeekFrom::Start(from)).and_then(|_| io::copy(&mut file, &mut copy));
    let copied = copied.and_then(|_| copy.sync_all()).map_err(disk::at(&aside));
    copied.and_then(|()| disk::sync_parent(&aside)).inspect_err(|_| _ = std::fs::remove_file(&aside))?;
    Ok(aside)
}

/// Creates a new file beside `path`. Overwrites none, so there may be several from the same second.
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

/// Copies a file that is about to be rewritten, and returns the path of the copy.
///
/// # Errors
/// With the path in the text.
pub fn copy_aside(path: &Path) -> io::Result<PathBuf> {
    set_aside(&disk::open(path)?, path, 0)
}

/// The files that contain what was set aside from `path`.
pub fn asides(path: &Path) -> Vec<PathBuf> {
    let begin = format!("{}{SET_ASIDE}", path.file_name().unwrap_or_default().to_string_lossy());
    let entries = path.parent().and_then(|folder| folder.read_dir().ok()).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&begin));
    ours.map(|entry| entry.path()).collect()
}

/// Empties a file, even an unreadable one, and removes everything that was set aside from it.
///
/// # Errors
/// With the path in the text.
pub fn erase(file: &File, path: &Path) -> io::Result<()> {
    for aside in asides(path) {
        std::fs::remove_file(&aside).map_err(disk::at(&aside))?;
    }
    file.set_len(0).and_then(|()| file.sync_all()).map_err(disk::at(path))
}

impl Records {
    /// Opens or creates the file at `path`, reads it as [`read`] does, repairs its end and reports that in `notices`.
    ///
    /// # Errors
    /// As [`read`], which changes nothing.
    pub fn open(
        path: &Path,
        writers: Writers,
        notices: &mut Vec<String>,
        each: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<Records> {
        Records::of(disk::append(path)?, path, writers, &PLAIN, notices, each)
    }

    /// As [`Records::open`], for a file that is open for appending and may have another format.
    ///
    /// # Errors
    /// As [`Records::open`].
    pub fn of(
        file: File,
        path: &Path,
        writers: Writers,
        format: &'static Format,
        notices: &mut Vec<String>,
        each: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<Records> {
        let mut records = Records {
            path: path.to_path_buf(),
            file,
            writers,
            format,
            patience: PATIENCE,
            read: 0,
            known: None,
        };
        records.locked(|records| {
            notices.extend(records.repair(each)?);
            records.read = records.file.metadata()?.len();
            records.know()
        })?;
        Ok(records)
    }

    /// Remembers the file as it is now, if this process is the only writer.
    fn know(&mut self) -> io::Result<()> {
        if self.writers == Writers::One {
            self.known = Some(Known::of(&self.file)?);
        }
        Ok(())
    }

    /// An only writer refuses to write to a file that another program has changed: it does not know the content.
    fn check_unchanged(&mut self) -> io::Result<()> {
        let Some(known) = &mut self.known else { return Ok(()) };
        let why = match disk::is_at(&self.file, &self.path) {
            true if known.matches(&self.file).map_err(disk::at(&self.path))? => return Ok(()),
            true => "another program changed it while it was in use: put it back as it was, or restart",
            false => "it was replaced or removed while it was in use: put it back, or restart",
        };
        Err(disk::error(&self.path, why))
    }

    /// Locks out other writers during `act`, if there may be any. A file that another program has replaced is opened
    /// again.
    ///
    /// # Errors
    /// With the path in the text, also if another program keeps the file locked.
    pub fn locked<T>(&mut self, act: impl FnOnce(&mut Records) -> io::Result<T>) -> io::Result<T> {
        if self.writers == Writers::Many {
            let file = disk::lock(&self.path, self.patience);
            self.patience = if file.is_ok() { PATIENCE } else { Duration::ZERO };
            self.switch_to(file?);
        }
        let done = act(self).map_err(disk::at(&self.path));
        if self.writers == Writers::Many {
            let _ = self.file.unlock();
        }
        done
    }

    /// Continues with `file`, which the path names; a replaced file is read from its beginning.
    fn switch_to(&mut self, file: File) {
        if !disk::is_at(&self.file, &self.path) {
            self.read = 0;
        }
        self.file = file;
    }

    /// Reads the records that other processes have appended since the file was last read, or all of them after any
    /// other change. `each` as for [`read`]. A partial record is read once it is complete. A missing file has no news.
    ///
    /// # Errors
    /// As [`read`].
    pub fn news(&mut self, each: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
        if !disk::is_at(&self.file, &self.path) {
            let Some(file) = disk::existing(&self.path)? else { return Ok(()) };
            self.switch_to(file);
        }
        self.read_on(each).map_err(disk::at(&self.path))
    }

    /// As [`Records::news`], for a caller that has the file [`locked`](Records::locked).
    ///
    /// # Errors
    /// As [`read`], without the path.
    pub fn read_on(&mut self, mut each: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
        if self.file.metadata()?.len() == self.read {
            return Ok(());
        }
        if !disk::begins_line(&self.file, self.read).unwrap_or(false) {
            self.read = 0;
        }
        let found = scan(&self.file, self.format, self.read, &mut each);
        // Only a scan from the beginning knows the number of a damaged line.
        self.read = found.or_else(|_| scan(&self.file, self.format, 0, each))?.good;
        Ok(())
    }

    /// Reads the file, and makes it end with the line end of its last record. Returns a sentence if that was necessary.
    ///
    /// # Errors
    /// As [`read`], without the path.
    pub fn repair(&self, each: impl FnMut(&[u8]) -> bool) -> io::Result<Option<String>> {
        let (mut file, path) = (&self.file, self.path.display());
        let found = scan(file, self.format, 0, each)?;
        let (rest, mut done) = (found.length - found.good, None);
        if rest > 0 {
            let aside = set_aside(file, &self.path, found.good)?;
            file.set_len(found.good)?;
            let aside = aside.display();
            done = Some(format!(
                "{path}: {rest} bytes after the last record could not be read, and are set aside in {aside}"
            ));
        }
        if found.open {
            file.write_all(b"\n")?;
            done = done.or_else(|| Some(format!("{path}: the missing line end was added")));
        }
        Ok(done)
    }

    /// Appends lines, each with its end; waits until they are on disk if they are to be `durable`. Returns a sentence
    /// if the file's end had to be repaired before.
    ///
    /// # Errors
    /// With the path in the text if the disk fails, or another program has changed a file that only this process may
    /// write. The file then ends as before.
    pub fn append(&mut self, lines: &[u8], durable: bool) -> io::Result<Option<String>> {
        self.check_unchanged()?;
        self.locked(|records| records.write(lines, durable))
    }

    /// As [`Records::append`], for a caller that has the file [`locked`](Records::locked).
    ///
    /// # Errors
    /// As [`Records::append`], without the path.
    pub fn write(&mut self, lines: &[u8], durable: bool) -> io::Result<Option<String>> {
        let mut repaired = None;
        // An editor may have changed the file, or a full disk may have left half a line.
        if !disk::ends_line(&self.file)? {
            let is_record = |line: &[u8]| line.is_empty() || parse::<json::Object>(line).is_some();
            repaired = self.repair(is_record)?;
            self.know()?;
        }
        let (mut file, length) = (&self.file, self.file.metadata()?.len());
        let written = file.write_all(lines).and_then(|()| if durable { file.sync_data() } else { Ok(()) });
        if written.is_err() {
            // If this fails too, the partial line is set aside before the next one.
            let _ = file.set_len(length).and_then(|()| file.sync_all());
            let _ = self.know();
        } else if let Some(known) = &mut self.known {
            known.content.update(lines);
            known.length += lines.len() as u64;
            known.modified = file.metadata()?.modified()?;
        }
        written.map(|()| repaired)
    }

    /// Waits until the whole file is on disk.
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

    /// Replaces the file by one of these lines. `before` gets the new file before it has the name. The caller syncs the
    /// folder.
    ///
    /// # Errors
    /// With the path in the text; the former file is unchanged then.
    pub fn rewrite<L: AsRef<[u8]>>(
        &mut self,
        lines: impl IntoIterator<Item = L>,
        before: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        self.check_unchanged()?;
        let write =
            |writer: &mut dyn Write| lines.into_iter().try_for_each(|line| writer.write_all(line.as_ref()));
        self.file = disk::replace_with(&self.path, write, before)?;
        self.know().map_err(disk::at(&self.path))
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, for a caller that has locked it.
    pub fn file(&self) -> &File {
        &self.file
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::Folder;
    use std::fs;

    fn open(path: &Path, writers: Writers) -> io::Result<(Records, Vec<String>)> {
        let mut lines = Vec::new();
        let records = Records::open(path, writers, &mut Vec::new(), |line| {
            let is_record = parse::<json::Object>(line).is_some();
            lines.extend(is_record.then(|| String::from_utf8_lossy(line).into_owned()));
            is_record
        });
        records.map(|records| (records, lines))
    }

    /// OPERATING#records.
    #[test]
    fn every_record_counts_and_its_line_end_is_added() {
        let folder = Folder::new();
        let path = folder.join("records");
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

    /// OPERATING#records.
    #[test]
    fn damage_is_an_error_and_leaves_the_file_alone() {
        let folder = Folder::new();
        let path = folder.join("records");
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

    /// OPERATING#records.
    #[test]
    fn replaced_file_is_an_error_for_its_only_writer() {
        let folder = Folder::new();
        let path = folder.join("records");
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

    #[test]
    fn partial_line_is_set_aside_before_the_next_append() {
        let folder = Folder::new();
        let path = folder.join("records");
        let mut notices = Vec::new();
        let mut records = Records::open(&path, Writers::One, &mut notices, |_| true).expect("new");
        assert!(notices.is_empty());
        for n in 0..3 {
            records.append(format!("{{\"n\":{n}}}\n").as_bytes(), true).expect("written");
            if n == 1 {
                // Simulate an append that could not be undone.
                (&records.file).write_all(b"{\"n\":").and_then(|()| records.know()).expect("written");
            }
        }
        let text = fs::read_to_string(&path).expect("readable");
        assert_eq!(text, (0..3).map(|n| format!("{{\"n\":{n}}}\n")).collect::<String>());
        assert_eq!(fs::read_to_string(&asides(&path)[0]).expect("kept"), "{\"n\":");
    }

    /// OPERATING#records.
    #[test]
    fn file_changed_in_place_gets_no_line_from_its_only_writer() {
        let folder = Folder::new();
        let path = folder.join("records");
        let mut records = Records::open(&path, Writers::One, &mut Vec::new(), |_| true).expect("new");
        let text = "{\"n\":0}\n{\"n\":1}\n";
        records.append(text.as_bytes(), true).expect("written");
        let earlier = SystemTime::UNIX_EPOCH;
        for changed in
            ["{\"n\":0}\n", "{\"n\":0}\n{\"n\":2}\n", "", &format!("{text}{text}"), &format!("{text}{{")]
        {
            fs::write(&path, changed).expect("written");
            File::options()
                .append(true)
                .open(&path)
                .and_then(|file| file.set_modified(earlier))
                .expect("a time");
            let error = records.append(b"{\"n\":3}\n", true).expect_err(changed).to_string();
            assert!(error.contains("another program changed it"), "{changed}: {error}");
            records.rewrite(["{}\n"], |_| Ok(())).expect_err(changed);
            assert_eq!(fs::read_to_string(&path).expect("there"), changed);
        }
        // Restored with the same content, but another time.
        fs::write(&path, text).expect("written");
        records.append(b"{\"n\":3}\n", true).expect("the same");
        records.rewrite(["{}\n"], |_| Ok(())).expect("the same");
        records.append(b"{\"n\":4}\n", true).expect("its own");
        assert_eq!(fs::read_to_string(&path).expect("there"), "{}\n{\"n\":4}\n");
        // One of several writers accepts the file as it is.
        let mut records = Records::open(&path, Writers::Many, &mut Vec::new(), |_| true).expect("there");
        fs::write(&path, "{}").expect("written");
        records.append(b"{\"n\":5}\n", true).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("there"), "{}\n{\"n\":5}\n");
    }
}
