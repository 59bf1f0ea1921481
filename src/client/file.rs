//! Files on this disk: offered files and received files.
//!
//! Invariant: a name from another user becomes one plain name directly in its folder; no existing file is overwritten
//! and no link followed; a file gets its name only when its hash is right. Specification: PROTOCOL#received-files.

use super::text::is_harmful;
use crate::crypto::chunk::CHUNK;
use crate::crypto::secret::random;
use crate::disk;
use crate::encoding::hex;
use crate::name::Username;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// The longest name of a received file, in bytes: with a user's name, a number and `.part`, it stays below the usual
/// limit of 255.
const MAX_NAME: usize = 180;
/// The most files of one name, because free numbers are tried one after the other.
const MAX_NUMBER: u32 = 10_000;
/// The most files of a folder that are searched for parts, so that a large folder delays no list.
const MAX_PARTS: usize = 1000;
/// `df` takes milliseconds, unless the file system is on a machine that does not respond.
const DF_PATIENCE: Duration = Duration::from_secs(5);
/// How often to check whether it has ended.
const DF_STEP: Duration = Duration::from_millis(5);
/// The most bytes of its output that are read: two lines with a path.
const MAX_DF: u64 = 16 * 1024;

/// Makes another user's file name harmless: the last part of a path, without control, direction or wildcard characters,
/// leading dots or the name of a device, never empty, at most 180 bytes, and never like that of a [`Part`].
/// PROTOCOL#plain-name.
pub fn safe_name(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let forbidden = |c: char| is_harmful(c) || matches!(c, ':' | '*' | '?' | '"' | '<' | '>' | '|');
    let clean = last.replace(forbidden, "_");
    let outer = |c: char| c == '.' || c.is_whitespace();
    let clean = clean.trim_matches(outer);
    // Cut first, because the shorter name may be a special one. Two bytes remain for what is added then.
    let (stem, extension) = split(clean);
    let mut end = stem.len().min(MAX_NAME - 2 - extension.len());
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    let short = format!("{}{extension}", &stem[..end]);
    let (stem, extension) = split(short.trim_end_matches(outer));
    let extension = if extension.eq_ignore_ascii_case(".part") { ".part_" } else { extension };
    match stem {
        "" => format!("file{extension}"),
        device if is_device(device) => format!("_{device}{extension}"),
        stem => format!("{stem}{extension}"),
    }
}

/// A name's stem, and its extension with the dot if that is short.
fn split(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(at) if at > 0 && name.len() - at <= 16 => name.split_at(at),
        _ => (name, ""),
    }
}

/// Whether some systems treat a name as a device, whatever its extension.
fn is_device(stem: &str) -> bool {
    let first = stem.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let numbered = |kind| first.strip_prefix(kind).is_some_and(|n| matches!(n.as_bytes(), [b'0'..=b'9']));
    matches!(first.as_str(), "CON" | "PRN" | "AUX" | "NUL") || numbered("COM") || numbered("LPT")
}

/// A file that is offered.
pub struct Source {
    file: File,
    /// The last part of its path, which the recipient sees.
    pub name: String,
    /// Its size in bytes when it was opened.
    pub size: u64,
    modified: Option<SystemTime>,
}

impl Source {
    /// Opens a regular file.
    ///
    /// # Errors
    /// A text for the user, without the path, if it is not a regular file or cannot be read.
    pub fn open(path: &Path) -> Result<Source, String> {
        let explain = |error: io::Error| match error.kind() {
            ErrorKind::NotFound => "there is no such file".to_string(),
            ErrorKind::PermissionDenied => "you have no permission to read it".to_string(),
            _ => error.to_string(),
        };
        // Non-blocking: the other end of a pipe may never be opened.
        let file =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(explain)?;
        let facts = file.metadata().map_err(explain)?;
        if facts.is_dir() {
            return Err("it is a folder: pack it into one file first".into());
        }
        if !facts.is_file() {
            return Err("it is not a regular file".into());
        }
        // Files of /proc have length 0, and content.
        if facts.len() == 0 && file.read_at(&mut [0], 0).is_ok_and(|count| count > 0) {
            return Err("it is not a regular file".into());
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Source { file, name, size: facts.len(), modified: facts.modified().ok() })
    }

    /// The SHA-256 of the whole file. `go_on` gets the number of bytes read, and may stop it.
    ///
    /// # Errors
    /// Errors of the disk; `Interrupted` when `go_on` returns false.
    pub fn hash(&self, go_on: impl FnMut(u64) -> bool) -> io::Result<[u8; 32]> {
        let mut hasher = Sha256::new();
        take_in(&mut hasher, &self.file, self.size, go_on).map_err(shortened)?;
        Ok(hasher.finalize().into())
    }

    /// Fills the buffer from byte `at` of the file.
    ///
    /// # Errors
    /// Errors of the disk; a file that has become shorter is one.
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, at).map_err(shortened)
    }

    /// Whether the file was written to since it was opened.
    fn has_changed(&self) -> bool {
        let facts = self.file.metadata();
        !facts.is_ok_and(|facts| facts.len() == self.size && facts.modified().ok() == self.modified)
    }

    /// Keeps a copy as `{person}~{name}`, by reference if the file system supports it (copy_file_range). Returns its
    /// path.
    ///
    /// # Errors
    /// With the path in the text.
    pub fn copy(&self, folder: &Path, person: &Username) -> io::Result<PathBuf> {
        if self.has_changed() {
            return Err(io::Error::other("the file has changed since it was offered"));
        }
        sweep(folder);
        // A unique name, because another copy may be in progress.
        let made = || {
            let part = part_path(folder, person, &random());
            let copy = disk::create_new(&part)?;
            claim(&copy, &part).map_err(disk::at(&part)).map(|()| (part, copy))
        };
        // Retry if a sweep has removed it before it was locked. Ten failures in a row have another cause.
        let (part, mut copy) = (1..10).find_map(|_| made().ok()).map_or_else(made, Ok)?;
        let copied = (|| {
            let mut from = &self.file;
            from.rewind()?;
            io::copy(&mut from, &mut copy).map(drop)
        })();
        let placed = copied.map_err(disk::at(&part)).and_then(|()| place(&part, folder, person, &self.name));
        if placed.is_err() {
            let _ = fs::remove_file(&part);
        }
        placed
    }
}

/// Removes partial copies that a crash or an exit has left, if they are not locked. A failure is ignored: the next
/// sweep tries again.
fn sweep(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()).filter(|path| part_of(path).is_some()) {
        let Ok(part) = part_options().open(&path) else { continue };
        // The lock is held until the file is removed.
        if part.try_lock().is_ok() && claim(&part, &path).is_ok() {
            let _ = fs::remove_file(&path);
        }
    }
}

fn shortened(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::UnexpectedEof => io::Error::other("the file has been shortened"),
        _ => error,
    }
}

/// Hashes the first `size` bytes of a file. `go_on` gets the number of bytes read, and may stop it.
fn take_in(
    hasher: &mut Sha256,
    file: &File,
    size: u64,
    mut go_on: impl FnMut(u64) -> bool,
) -> io::Result<()> {
    let (mut buffer, mut at) = (vec![0; 4 * CHUNK], 0);
    while at < size {
        let length = usize::try_from(size - at).map_or(buffer.len(), |rest| rest.min(buffer.len()));
        file.read_exact_at(&mut buffer[..length], at)?;
        hasher.update(&buffer[..length]);
        at += length as u64;
        if !go_on(at) {
            return Err(ErrorKind::Interrupted.into());
        }
    }
    Ok(())
}

/// A file that is being received: `{person}_{SHA-256}.part` until it is complete, so that it is found when the same
/// user offers the same file again. No complete file has such a name.
pub struct Part {
    file: File,
    path: PathBuf,
    hasher: Sha256,
}

fn part_path(folder: &Path, person: &Username, sha256: &[u8; 32]) -> PathBuf {
    folder.join(format!("{}_{}.part", person.as_str(), hex(sha256)))
}

/// The person and the hash of the part at a path; `None` if the path is not that of a part.
fn part_of(path: &Path) -> Option<(Username, [u8; 32])> {
    let (person, hash) = path.file_name()?.to_str()?.strip_suffix(".part")?.rsplit_once('_')?;
    let byte = |at: usize| u8::from_str_radix(hash.get(at..at + 2)?, 16).ok();
    let bytes: Vec<u8> = (0..hash.len()).step_by(2).map(byte).collect::<Option<_>>()?;
    let (person, sha256) = (person.parse().ok()?, bytes.try_into().ok()?);
    (part_path(path.parent()?, &person, &sha256) == path).then_some((person, sha256))
}

/// A part of a file, whether or not it is still being sent.
pub struct LeftPart {
    /// The user that offered the file.
    pub sender: Username,
    /// The hash of the whole file.
    pub sha256: [u8; 32],
    /// The number of bytes received.
    pub bytes: u64,
}

/// The parts among the first thousand files of a folder.
pub fn left_parts(folder: &Path) -> Vec<LeftPart> {
    let part = |entry: fs::DirEntry| {
        let (sender, sha256) = part_of(&entry.path())?;
        let facts = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some(LeftPart { sender, sha256, bytes: facts.len() })
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().take(MAX_PARTS);
    entries.filter_map(part).collect()
}

/// The free bytes on the disk of a folder, from POSIX `df`; `None` without it, or if it takes more than 5 s. A quota
/// allows fewer, compression more. No safe call returns this number without another crate.
pub fn free_space(folder: &Path) -> Option<u64> {
    let text = output(Command::new("df").arg("-Pk").arg(folder), DF_PATIENCE)?;
    // Other fields may contain blanks: the free space precedes the only one with a per cent sign.
    let words: Vec<&str> = text.lines().last()?.split_whitespace().collect();
    let used = words.iter().rposition(|word| word.ends_with('%'))?;
    words[..used].last()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The output of a program that ends within `patience`, otherwise `None`. Its output has to fit into a pipe.
fn output(program: &mut Command, patience: Duration) -> Option<String> {
    let program = program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let (mut running, end) = (program.spawn().ok()?, Instant::now() + patience);
    while running.try_wait().ok()?.is_none() {
        if Instant::now() >= end {
            // Not waited for: a program that waits for a disk ends only when the disk responds.
            let _ = running.kill();
            return None;
        }
        thread::sleep(DF_STEP);
    }
    let mut text = String::new();
    running.stdout?.take(MAX_DF).read_to_string(&mut text).ok()?;
    Some(text)
}

fn part_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

/// Locks a part, so that no two transfers write it, and checks that it does not have its final name already.
fn claim(file: &File, path: &Path) -> io::Result<()> {
    if !disk::try_lock(file)? {
        return Err(io::Error::new(ErrorKind::WouldBlock, "it is already arriving"));
    }
    let facts = file.metadata()?;
    if !facts.is_file() || facts.nlink() != 1 || fs::symlink_metadata(path)?.ino() != facts.ino() {
        return Err(io::Error::other("it is not a partial file: remove it"));
    }
    Ok(())
}

impl Part {
    /// Creates the part, or opens the existing one.
    ///
    /// # Errors
    /// With the path in the text; `WouldBlock` if it is being written.
    pub fn open(folder: &Path, sender: &Username, sha256: &[u8; 32]) -> io::Result<Part> {
        let path = part_path(folder, sender, sha256);
        let file = part_options().create(true).truncate(false).open(&path).map_err(disk::at(&path))?;
        claim(&file, &path).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => error,
            _ => disk::at(&path)(error),
        })?;
        Ok(Part { file, path, hasher: Sha256::new() })
    }

    /// Hashes the complete chunks that exist of a file of `size` bytes, and removes the bytes after them. Returns the
    /// length of the chunks. `go_on` may stop it. PROTOCOL#go-on.
    ///
    /// # Errors
    /// With the path in the text; `Interrupted` when `go_on` returns false.
    pub fn take_up(&mut self, size: u64, go_on: impl Fn() -> bool) -> io::Result<u64> {
        let length = self.file.metadata()?.len();
        let have = match length {
            length if length == size => size,
            length if length > size => 0,
            length => length - length % CHUNK as u64,
        };
        self.file.set_len(have).map_err(disk::at(&self.path))?;
        take_in(&mut self.hasher, &self.file, have, |_| go_on()).map_err(disk::at(&self.path))?;
        self.file.seek(SeekFrom::Start(have)).map_err(disk::at(&self.path))?;
        Ok(have)
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// With the path in the text.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(disk::at(&self.path))
    }

    /// Whether the written bytes have this hash. PROTOCOL#whole-file.
    pub fn is_right(&self, sha256: &[u8; 32]) -> bool {
        self.hasher.clone().finalize().as_slice() == sha256
    }

    /// Waits until everything is on disk.
    ///
    /// # Errors
    /// With the path in the text.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all().map_err(disk::at(&self.path))
    }

    /// Gives the complete file its name, and returns its path.
    ///
    /// # Errors
    /// With the path in the text.
    pub fn finish(self, folder: &Path, sender: &Username, name: &str) -> io::Result<PathBuf> {
        place(&self.path, folder, sender, name)
    }

    /// Removes the part.
    pub fn discard(self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Moves a part to the first free name of `{person}~{name}`, `{person}~{name}_1`, …. No user's name contains `~`.
/// PROTOCOL#never-over.
fn place(part: &Path, folder: &Path, person: &Username, name: &str) -> io::Result<PathBuf> {
    let name = safe_name(name);
    let (stem, extension) = split(&name);
    for number in 0..MAX_NUMBER {
        let number = if number == 0 { String::new() } else { format!("_{number}") };
        let path = folder.join(format!("{}~{stem}{number}{extension}", person.as_str()));
        match disk::rename_new(part, &path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            placed => placed.map_err(disk::at(&path))?,
        }
        disk::sync_parent(&path)?;
        return Ok(path);
    }
    Err(disk::error(part, "there are 10,000 files with this name already"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::primitives::sha256;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Folder {
            let name = hex(&random::<8>());
            let path = std::env::temp_dir().join(format!("file-{name}"));
            fs::create_dir(&path).expect("folder");
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn hostile_names_become_plain_ones() {
        for (name, safe) in [
            ("photo.jpg", "photo.jpg"),
            ("../../.bashrc", "bashrc"),
            ("/etc/passwd", "passwd"),
            ("C:\\windows\\win.ini", "win.ini"),
            ("a\u{1b}[2Jb\n.txt", "a_[2Jb_.txt"),
            ("gpj\u{202e}exe.", "gpj_exe"),
            ("...", "file"),
            ("", "file"),
            ("..", "file"),
            ("dir/", "file"),
            (" . .hidden", "hidden"),
            ("CON", "_CON"),
            ("nul.txt", "_nul.txt"),
            ("com1.tar.gz", "_com1.tar.gz"),
            ("console.log", "console.log"),
            ("a:b*c?.txt", "a_b_c_.txt"),
            ("日本語 файл.pdf", "日本語 файл.pdf"),
            (".tar.gz", "tar.gz"),
            ("x.part", "x.part_"),
            ("x.PaRt", "x.part_"),
        ] {
            assert_eq!(safe_name(name), safe, "{name:?}");
        }
        for long in ["x".repeat(5000), "é".repeat(3000) + ".jpeg", ".".repeat(400), "a.".repeat(400)] {
            let safe = safe_name(&long);
            assert!(safe.len() <= MAX_NAME && !safe.is_empty(), "{safe}");
            assert_eq!(Path::new(&safe).components().count(), 1);
        }
        assert!(safe_name(&("é".repeat(3000) + ".jpeg")).ends_with("é.jpeg"));
    }

    #[test]
    fn cut_name_is_still_a_safe_name() {
        for length in MAX_NAME - 20..=MAX_NAME {
            for end in [".part is not the end", ".", " ", ". .", "\u{3000}"] {
                let safe = safe_name(&("x".repeat(length) + end + &"y".repeat(50)));
                assert!(!safe.ends_with(".part") && safe.len() <= MAX_NAME, "{safe}");
                assert!(!safe.ends_with(|c: char| c == '.' || c.is_whitespace()), "{safe}");
            }
        }
        let device = safe_name(&format!("COM1.{}", "y".repeat(MAX_NAME)));
        assert!(device.starts_with("_COM1.") && device.len() <= MAX_NAME, "{device}");
        assert!(safe_name(&format!("CON{}x", " ".repeat(MAX_NAME))) == "_CON");
    }

    #[test]
    fn part_resumes_in_whole_chunks_and_appears_only_complete() {
        let folder = Folder::new();
        let (alice, whole) = ("alice".parse().expect("name"), vec![9; 2 * CHUNK + 5]);
        let hash = sha256(&whole);
        let open = || {
            let mut part = Part::open(&folder.0, &alice, &hash).expect("opens");
            let have = part.take_up(whole.len() as u64, || true).expect("read");
            (part, have)
        };
        let (mut part, have) = open();
        assert_eq!(have, 0);
        part.write(&whole[..CHUNK + 7]).expect("written");
        drop(part);
        let (mut part, have) = open();
        assert_eq!(have, CHUNK as u64);
        part.write(&whole[CHUNK..]).expect("written");
        fs::write(folder.0.join("alice~x.txt"), b"mine").expect("written");
        std::os::unix::fs::symlink("/nowhere", folder.0.join("alice~x_1.txt")).expect("link");
        assert!(part.is_right(&hash));
        let path = part.finish(&folder.0, &alice, "../x.txt").expect("placed");
        assert_eq!(path, folder.0.join("alice~x_2.txt"));
        assert_eq!(fs::read(&path).expect("read"), whole);
        assert_eq!(fs::read(folder.0.join("alice~x.txt")).expect("read"), b"mine");
        assert_eq!(fs::read_dir(&folder.0).expect("folder").count(), 3, "no part is left");
        let (mut part, _) = open();
        part.write(b"other").expect("written");
        assert!(!part.is_right(&hash));
        let second = Part::open(&folder.0, &alice, &hash);
        assert!(second.is_err_and(|why| why.to_string().contains("already arriving")));
        part.discard();
        assert_eq!(fs::read_dir(&folder.0).expect("folder").count(), 3, "a wrong file gets no name");
    }

    /// PROTOCOL#never-over.
    #[test]
    fn received_file_s_name_begins_with_its_sender() {
        let folder = Folder::new();
        for (sender, name, expected) in [("bob", "x_y", "bob~x_y"), ("bob_x", "y", "bob_x~y")] {
            let sender = sender.parse().expect("name");
            let part = Part::open(&folder.0, &sender, &[0; 32]).expect("opens");
            let path = part.finish(&folder.0, &sender, name).expect("placed");
            assert_eq!(path, folder.0.join(expected));
        }
    }

    #[test]
    fn program_that_does_not_end_has_no_output() {
        assert_eq!(output(Command::new("sleep").arg("60"), Duration::from_millis(1)), None);
        assert_eq!(output(Command::new("echo").arg("1"), Duration::from_secs(60)), Some("1\n".into()));
    }

    #[test]
    fn part_that_is_a_link_or_longer_than_the_file_is_not_used() {
        let folder = Folder::new();
        let bob: Username = "bob".parse().expect("name");
        let path = folder.0.join(format!("bob_{}.part", "00".repeat(32)));
        fs::write(folder.0.join("treasure"), b"whole").expect("written");
        std::os::unix::fs::symlink(folder.0.join("treasure"), &path).expect("link");
        assert!(Part::open(&folder.0, &bob, &[0; 32]).is_err(), "a link");
        assert_eq!(fs::read(folder.0.join("treasure")).expect("read"), b"whole");
        fs::remove_file(&path).expect("removed");
        fs::write(&path, vec![1; CHUNK * 3]).expect("written");
        let open = || Part::open(&folder.0, &bob, &[0; 32]);
        assert_eq!(open().expect("opens").take_up(CHUNK as u64, || true).expect("read"), 0);
        fs::hard_link(&path, folder.0.join("bob_arrived")).expect("link");
        assert!(open().is_err(), "a complete file");
    }

    #[test]
    fn concurrent_copies_do_not_disturb_each_other() {
        let folder = Folder::new();
        fs::write(folder.0.join("file"), b"content").expect("written");
        let (into, bob) = (folder.0.join("sent"), "bob".parse().expect("name"));
        fs::create_dir(&into).expect("folder");
        let (into, bob) = (&into, &bob);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let path = folder.0.join("file");
                scope.spawn(move || {
                    for _ in 0..100 {
                        Source::open(&path).expect("a file").copy(into, bob).expect("copied");
                    }
                });
            }
        });
        let copies: Vec<_> =
            fs::read_dir(into).expect("folder").map(|entry| entry.expect("entry").path()).collect();
        assert_eq!(copies.len(), 400);
        assert!(copies.iter().all(|path| fs::read(path).expect("read") == b"content"));
    }

    #[test]
    fn only_plain_files_are_offered() {
        let folder = Folder::new();
        assert!(Source::open(&folder.0).is_err_and(|why| why.contains("folder")));
        assert!(Source::open(Path::new("/dev/null")).is_err_and(|why| why.contains("regular file")));
        assert!(Source::open(Path::new("/proc/self/status")).is_err_and(|why| why.contains("regular file")));
        assert!(Source::open(&folder.0.join("none")).is_err_and(|why| why.contains("no such file")));
        fs::write(folder.0.join("file"), b"content").expect("written");
        let source = Source::open(&folder.0.join("file")).expect("a plain file");
        assert_eq!(source.hash(|_| true).expect("read"), sha256(b"content"));
        assert_eq!(source.hash(|_| false).expect_err("stopped").kind(), ErrorKind::Interrupted);
        let bob = "bob".parse().expect("name");
        let copy = source.copy(&folder.0, &bob).expect("copied");
        assert_eq!(fs::read(copy).expect("read"), b"content");
        // The next copy removes a partial one, but not one in progress, nor a file that is not a copy.
        let [cut, held] = ["00", "01"].map(|byte| folder.0.join(format!("bob_{}.part", byte.repeat(32))));
        fs::write(folder.0.join("mine.part"), b"mine").expect("written");
        fs::write(&cut, b"con").expect("written");
        let being_made = disk::create_new(&held).expect("made");
        being_made.try_lock().expect("free");
        source.copy(&folder.0, &bob).expect("copied");
        assert!(
            !cut.exists()
                && held.exists()
                && ["file", "mine.part"].iter().all(|name| folder.0.join(name).exists())
        );
        fs::write(folder.0.join("file"), b"short").expect("written");
        assert!(source.has_changed() && source.copy(&folder.0, &bob).is_err());
        assert!(source.hash(|_| true).is_err());
    }
}
