//! Files that only their owner can read, and that a crash cannot leave half-written.
//!
//! Invariant: folders have mode 0700, files 0600. The program writes through no symbolic link. A replaced file is
//! entirely the old or entirely the new one.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// Added to the name of a file while it is being written.
const TEMPORARY: &str = ".tmp";
/// The pause between two attempts of [`lock`].
const LOCK_STEP: Duration = Duration::from_millis(20);
/// The options file of a data folder, which its owner may write before the first start.
pub const OPTIONS: &str = "options";

/// `$HOME` joined with `folder`.
///
/// # Errors
/// If `HOME` is not set.
pub fn under_home(folder: &str) -> io::Result<PathBuf> {
    match std::env::var_os("HOME") {
        Some(home) if !home.is_empty() => Ok(Path::new(&home).join(folder)),
        _ => Err(io::Error::other("HOME is not set: set it, or name a folder with --data-dir")),
    }
}

/// The text of an error without the system's error number, which does not help people.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let number = text.split_once(" (os error ");
    match number.and_then(|(before, after)| Some((before, after.split_once(')')?.1))) {
        Some((before, after)) => format!("{before}{after}"),
        None => text,
    }
}

/// Puts the path in front of an error's text.
pub fn at(path: &Path) -> impl FnOnce(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{}: {}", path.display(), reason(&error)))
}

/// An error with the path in front of its text.
pub fn error(path: &Path, text: impl Into<String>) -> io::Error {
    at(path)(io::Error::other(text.into()))
}

/// Creates `root`, its parents and its `folders`, only for their owner. An existing root that other users can enter is
/// made private if it is empty or belongs to this program; otherwise it is an error.
///
/// # Errors
/// With the path in the text, also if other users can enter a root that does not belong to this program.
pub fn private_folders(root: &Path, folders: &[&str]) -> io::Result<()> {
    make_folder(root)?;
    check_root(root, folders)?;
    for folder in [""].iter().chain(folders) {
        let path = root.join(folder);
        make_folder(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(at(&path))?;
    }
    Ok(())
}

/// Creates a folder and its parents, only for their owner, and syncs their names. An existing folder is not changed.
///
/// # Errors
/// With the path in the text.
pub fn make_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), make_folder)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made.map_err(at(path))?,
    }
    // Without this, a power cut could remove the folder with its files. A parent that is not readable cannot be synced.
    let _ = sync_parent(path);
    Ok(())
}

/// Whether [`private_folders`] would succeed on an existing `root`, if the folders are ours. Changes nothing.
///
/// # Errors
/// As [`private_folders`].
pub fn check_folders(root: &Path, folders: &[&str]) -> io::Result<()> {
    check_root(root, folders)?;
    for path in folders.iter().map(|folder| root.join(folder)) {
        // On an existing path this changes nothing, and fails unless it is a folder.
        if is_there(&path)? {
            make_folder(&path)?;
        }
    }
    Ok(())
}

/// Whether an existing `root` is private or belongs to this program: it contains all of our `folders`, or only these
/// and an options file.
///
/// # Errors
/// With the path in the text if it is neither.
fn check_root(root: &Path, folders: &[&str]) -> io::Result<()> {
    let is_ours = |entry: io::Result<fs::DirEntry>| {
        let is_ours = |name| folders.iter().chain([&OPTIONS]).any(|ours| name == *ours);
        entry.is_ok_and(|entry| is_ours(entry.file_name()))
    };
    let is_private = fs::metadata(root).map_err(at(root))?.permissions().mode() & 0o077 == 0;
    if is_private
        || folders.iter().all(|folder| root.join(folder).is_dir())
        || fs::read_dir(root).map_err(at(root))?.all(is_ours)
    {
        return Ok(());
    }
    Err(error(
        root,
        "other users can enter this folder, and it contains other files: choose another folder, or chmod 700 it",
    ))
}

/// Removes the temporary files in `folder` of files that `is_ours` names. Only a crash during [`replace`] or
/// [`place_new`] leaves one, whose content was never confirmed or is in the file already.
///
/// # Errors
/// With the path in the text.
pub fn remove_temporary(folder: &Path, is_ours: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let entry = entry.map_err(at(folder))?;
        let (path, is_folder) = (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let name = path.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_suffix(TEMPORARY));
        if name.is_some_and(&is_ours) && !is_folder {
            fs::remove_file(&path).map_err(at(&path))?;
        }
    }
    Ok(())
}

/// The files of `folder` that `is_private` names and that other users have rights to; links do not count.
pub fn open_to_others(folder: &Path, is_private: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let is_open = |entry: &fs::DirEntry| {
        entry.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o077 != 0)
            && entry.file_name().to_str().is_some_and(&is_private)
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.filter(is_open).map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Removes other users' rights to those files, if the files are ours. Returns a sentence for each.
pub fn close_to_others(folder: &Path, is_private: impl Fn(&str) -> bool) -> Vec<String> {
    let mut paths = open_to_others(folder, is_private);
    paths.retain(|path| fs::set_permissions(path, fs::Permissions::from_mode(0o600)).is_ok());
    let closed = "other users had access to this file; now only its owner has";
    paths.iter().map(|path| format!("{}: {closed}", path.display())).collect()
}

/// Whether `path` names anything, even a broken link.
///
/// # Errors
/// With the path in the text if that is unknown.
pub fn is_there(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(at(path)(error)),
    }
}

/// Creates a new file; an existing file or link is an error.
///
/// # Errors
/// With the path in the text.
pub fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(at(path))
}

/// Opens a file for reading and appending, and creates it if it is missing. A link is an error.
///
/// # Errors
/// With the path in the text.
pub fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    open_with(options.read(true).append(true).create(true).mode(0o600), libc::O_NOFOLLOW, path)
}

/// As [`append`], with a lock until the file is closed; waits up to `patience` for another process that holds it.
///
/// # Errors
/// With the path in the text; [`io::ErrorKind::WouldBlock`] if another process has the file.
pub fn lock(path: &Path, patience: Duration) -> io::Result<File> {
    let end = Instant::now() + patience;
    loop {
        let file = append(path)?;
        // The previous holder may have replaced or removed the file before it released the lock.
        if try_lock(&file).map_err(at(path))? && is_at(&file, path) {
            return Ok(file);
        }
        if Instant::now() >= end {
            return Err(at(path)(io::Error::new(
                io::ErrorKind::WouldBlock,
                "another program is using this file: try again, or leave that program",
            )));
        }
        thread::sleep(LOCK_STEP);
    }
}

/// Locks an open file or folder; false if another process holds the lock. Succeeds on a file system without locks.
///
/// # Errors
/// The disk's.
pub fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::Unsupported => Err(error),
        _ => Ok(true),
    }
}

/// As [`append`] for an existing file; `None` if it is missing.
///
/// # Errors
/// With the path in the text.
pub fn existing(path: &Path) -> io::Result<Option<File>> {
    match is_there(path)? {
        true => open_with(OpenOptions::new().read(true).append(true), libc::O_NOFOLLOW, path).map(Some),
        false => Ok(None),
    }
}

/// Opens a file for reading. A link is an error.
///
/// # Errors
/// With the path in the text.
pub fn open(path: &Path) -> io::Result<File> {
    open_with(OpenOptions::new().read(true), libc::O_NOFOLLOW, path)
}

fn open_with(options: &mut OpenOptions, flags: i32, path: &Path) -> io::Result<File> {
    // Opening one of these could block forever.
    if fs::metadata(path).is_ok_and(|data| !data.is_file() && !data.is_dir()) {
        let text = "this is a FIFO, a socket or a device: remove it, or put a file in its place";
        return Err(error(path, text));
    }
    match options.custom_flags(flags | libc::O_NONBLOCK).open(path) {
        Err(failure) if failure.raw_os_error() == Some(libc::ELOOP) => {
            Err(error(path, "this is a symbolic link: put the file itself in its place"))
        }
        opened => opened.map_err(at(path)),
    }
}

/// Reads a whole file of at most `limit` bytes.
///
/// # Errors
/// With the path in the text; a longer file is an error.
pub fn read(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = open_with(OpenOptions::new().read(true), 0, path)?;
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(at(path))?;
    if bytes.len() > limit {
        return Err(error(path, format!("longer than {limit} bytes")));
    }
    Ok(bytes)
}

/// As [`read`], for a file that holds a secret.
///
/// # Errors
/// As [`read`]; also if all users have rights to the file and [`close_to_others`] cannot close it, because it belongs
/// to another user or is behind a link.
pub fn read_private(path: &Path, limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let data = fs::metadata(path).map_err(at(path))?;
    let me = fs::metadata("/proc/self").map(|me| me.uid());
    let is_ours = me.is_ok_and(|me| me == 0 || me == data.uid()) && !path.is_symlink();
    if data.permissions().mode() & 0o007 != 0 && !is_ours {
        return Err(error(path, "other users can read this private file: chmod 600 it"));
    }
    read(path, limit).map(Zeroizing::new)
}

/// The text of a small file that may have been edited by hand: without a byte order mark, and without zeros that a
/// crash has left at the end. `None` if it is not UTF-8.
pub fn text(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?.trim_end_matches('\0');
    Some(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Writes a new file and waits until it is on disk. A failure leaves no file behind.
///
/// # Errors
/// With the path in the text; an existing file is an error.
pub fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = create_new(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).map_err(at(path));
    written.and_then(|()| sync_parent(path)).inspect_err(|_| _ = fs::remove_file(path))
}

/// Gives a file another name, which must be free. On a disk without hard links, the file replaces an empty one that
/// reserves the name.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if the name is taken; after any other error it is still free.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        Err(_) => {
            create_new(to)?;
            fs::rename(from, to).inspect_err(|_| _ = fs::remove_file(to))
        }
    }
}

/// As [`replace`], but an existing file is an error. No other thread or program may do the same with this path.
///
/// # Errors
/// With the path in the text.
pub fn place_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = |_: &File, temporary: &Path| rename_new(temporary, path).map_err(at(path));
    write_temporary(path, |file| file.write_all(bytes), name)?;
    sync_parent(path)
}

/// Replaces a file in one step: temporary file, fsync, rename, fsync of the folder.
///
/// # Errors
/// With the path in the text; the old file is unchanged then.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_with(path, |file| file.write_all(bytes), |_| Ok(()))?;
    sync_parent(path)
}

/// The file that [`replace`] writes first. A crash may leave it.
pub fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(TEMPORARY);
    name.into()
}

/// As [`replace`], with the bytes that `write` writes. Calls `before` with the new file before it gets the name. The
/// caller syncs the folder. Returns the new file, open for reading and appending.
///
/// # Errors
/// With the path in the text; the old file is unchanged then, and no temporary file stays.
pub fn replace_with(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    before: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<File> {
    write_temporary(path, write, |file, temporary| {
        before(file)?;
        fs::rename(temporary, path).map_err(at(path))
    })
}

fn write_temporary(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    name: impl FnOnce(&File, &Path) -> io::Result<()>,
) -> io::Result<File> {
    let temporary = &*temporary(path);
    // A crash may have left a temporary file.
    let _ = fs::remove_file(temporary);
    let mut options = OpenOptions::new();
    let file = options.read(true).append(true).create_new(true).mode(0o600).open(temporary);
    let replaced = file.map_err(at(temporary)).and_then(|file| {
        let mut writer = BufWriter::new(&file);
        let written = write(&mut writer).and_then(|()| writer.flush()).and_then(|()| file.sync_all());
        written.map_err(at(temporary))?;
        drop(writer);
        name(&file, temporary)?;
        Ok(file)
    });
    replaced.inspect_err(|_| _ = fs::remove_file(temporary))
}

/// Whether `path` still names the open `file`: another program may have renamed, replaced or removed it.
pub fn is_at(file: &File, path: &Path) -> bool {
    let (ours, named) = (file.metadata(), fs::symlink_metadata(path));
    ours.is_ok_and(|ours| named.is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())))
}

/// Whether a file is empty, or its last line has its end.
///
/// # Errors
/// The disk's.
pub fn ends_line(file: &File) -> io::Result<bool> {
    begins_line(file, file.metadata()?.len())
}

/// Whether a line begins at byte `at` of a file, or could begin there.
///
/// # Errors
/// The disk's; a shorter file is one.
pub fn begins_line(file: &File, at: u64) -> io::Result<bool> {
    let mut last = [b'\n'];
    if let Some(at) = at.checked_sub(1) {
        file.read_exact_at(&mut last, at)?;
    }
    Ok(last == [b'\n'])
}

/// Waits until the entries of the folder that contains `path` are on disk.
///
/// # Errors
/// With the folder's path in the text.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(at(parent))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::crypto::secret::random;
    use crate::encoding::hex;
    use std::ops::Deref;
    use std::os::unix::fs::symlink;

    /// A new private folder; removed on drop.
    pub(crate) struct Folder(PathBuf);

    impl Folder {
        pub(crate) fn new() -> Folder {
            let path = std::env::temp_dir().join(format!("unit-test-{}", hex(&random::<8>())));
            private_folders(&path, &[]).expect("a folder");
            Folder(path)
        }
    }

    impl Deref for Folder {
        type Target = Path;

        fn deref(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn reason_is_the_text_without_the_number() {
        let error = io::Error::from_raw_os_error(2);
        let plain = reason(&error);
        assert!(!plain.contains("os error") && error.to_string().starts_with(&plain));
        let error = io::Error::other(format!("here: {error} (try again)"));
        assert_eq!(reason(&error), format!("here: {plain} (try again)"));
    }

    #[test]
    fn errors_name_the_path_and_no_number() {
        let error = at(Path::new("/none"))(io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(error.to_string(), "/none: No such file or directory");
    }

    #[test]
    fn foreign_files_are_neither_removed_nor_made_private() {
        let folder = Folder::new();
        fs::create_dir(folder.join("keys")).expect("folder");
        fs::set_permissions(&*folder, fs::Permissions::from_mode(0o755)).expect("open to all");
        check_root(&folder, &["keys", "logs"]).expect("made by hand, with a key copied into it");
        for name in ["notes.tmp", "ours.tmp", "ours", "keys/key.tmp"] {
            fs::write(folder.join(name), "").expect("written");
        }
        remove_temporary(&folder, |name| name == "ours").expect("removed");
        let is_there = |name: &str| folder.join(name).exists();
        assert!(
            is_there("notes.tmp") && is_there("ours") && is_there("keys/key.tmp") && !is_there("ours.tmp")
        );
        private_folders(&folder, &["keys", "logs"]).expect_err("others use it");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o755);
        fs::create_dir(folder.join("logs")).expect("folder");
        private_folders(&folder, &["keys", "logs"]).expect("all of ours");
        assert!(mode(&folder) == 0o700 && mode(&folder.join("keys")) == 0o700);
    }

    #[test]
    fn new_file_overwrites_nothing_and_follows_no_link() {
        let folder = Folder::new();
        let path = |name: &str| folder.join(name);
        write_new(&path("treasure"), b"whole").expect("a new file");
        place_new(&path("other"), b"whole").expect("a new file");
        assert_eq!(read(&path("other"), 100).expect("read"), b"whole");
        symlink(path("treasure"), path("link")).expect("link");
        symlink(path("nowhere"), path("dangling")).expect("link");
        for name in ["treasure", "link", "dangling"] {
            for error in [write_new(&path(name), b"other"), place_new(&path(name), b"other")] {
                assert_eq!(error.expect_err(name).kind(), io::ErrorKind::AlreadyExists, "{name}");
            }
        }
        for error in [append(&path("link")), open(&path("link")), open(&path("dangling"))] {
            let error = error.expect_err("a link").to_string();
            let told = "this is a symbolic link: put the file itself in its place";
            assert!(error.ends_with(told), "{error}");
        }
        for (name, there) in [("treasure", true), ("link", true), ("dangling", true), ("nowhere", false)] {
            assert_eq!(is_there(&path(name)).expect("known"), there, "{name}");
        }
        is_there(&path("treasure/inside")).expect_err("no folder");
        append(&path("dangling")).expect_err("a link to nowhere");
        // The link itself is replaced, even if the temporary file is a link too.
        symlink(path("treasure"), path("link.tmp")).expect("link");
        replace(&path("link"), b"new").expect("replaced");
        assert_eq!(read(&path("treasure"), 100).expect("read"), b"whole");
        assert_eq!(read(&path("link"), 100).expect("read"), b"new");
        assert!(!path("nowhere").exists() && !path("link.tmp").exists());
    }

    #[test]
    fn rename_that_fails_leaves_the_new_name_free() {
        let folder = Folder::new();
        // Without the file, hard link and rename both fail.
        rename_new(&folder.join("missing"), &folder.join("name")).expect_err("no file");
        assert!(!is_there(&folder.join("name")).expect("known"));
    }
}
