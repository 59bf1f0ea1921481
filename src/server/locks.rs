//! `locks.json`: which names are locked, so that a restart unlocks nobody.
//!
//! Invariant: one JSON record a line, a later one for a name supersedes; the file is bounded, and a line that
//! cannot be read, as a crash may leave one, stands for nothing. A lock read from it lasts no longer than a
//! new one, whatever the clock says now or said when it was written.

use super::limits::LOCKOUT;
use super::lock;
use crate::clock;
use crate::disk;
use crate::name::Username;
use miniserde::{Deserialize, Serialize, json};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// The file is shortened beyond this size, in bytes, to so many locks: anyone can make lines, and only those
/// of the last minutes are worth keeping.
const MAX_SIZE: u64 = 1024 * 1024;
/// See [`MAX_SIZE`].
const MAX_KEPT: usize = 5000;

/// See the module.
pub struct Locks {
    path: PathBuf,
    /// Or what is appended while the file is shortened would go with the old one.
    writing: Mutex<()>,
}

#[derive(Serialize, Deserialize)]
struct Lock {
    /// Folded.
    name: String,
    /// Milliseconds since 1970; 0 unlocks.
    until: u64,
}

impl Lock {
    fn line(name: String, left: Duration) -> String {
        let until = if left.is_zero() { 0 } else { clock::now_ms() + left.as_millis() as u64 };
        json::to_string(&Lock { name, until }) + "\n"
    }
}

impl Locks {
    /// In the server's data folder; touches nothing.
    pub fn new(folder: &Path) -> Locks {
        Locks { path: folder.join("locks.json"), writing: Mutex::default() }
    }

    /// Writes down that a name is locked from now on, for [`LOCKOUT`]; does not wait for the disk.
    ///
    /// # Errors
    /// The disk's, with the path in the text.
    pub fn lock(&self, name: &Username) -> io::Result<()> {
        self.append(&Lock::line(name.folded(), LOCKOUT)).map(drop)
    }

    /// Writes down that it is not locked any more; returns when that is on disk.
    ///
    /// # Errors
    /// The disk's, with the path in the text.
    pub fn unlock(&self, name: &Username) -> io::Result<()> {
        let file = self.append(&Lock::line(name.folded(), Duration::ZERO))?;
        file.sync_all().map_err(disk::at(&self.path))
    }

    fn append(&self, line: &str) -> io::Result<File> {
        let writing = lock(&self.writing);
        let mut file = disk::append(&self.path)?;
        let length = file.metadata().map_err(disk::at(&self.path))?.len();
        if let Err(error) = file.write_all(line.as_bytes()) {
            // Half a line would spoil the next one.
            let _ = file.set_len(length);
            return Err(disk::at(&self.path)(error));
        }
        let long = length + line.len() as u64 > MAX_SIZE;
        drop(writing);
        if long {
            self.shorten()?;
        }
        Ok(file)
    }

    /// The folded names that are locked, and for how much longer: at most [`LOCKOUT`].
    ///
    /// # Errors
    /// The disk's, with the path in the text. A missing file locks nobody, a damaged line is left out.
    pub fn read(&self) -> io::Result<HashMap<String, Duration>> {
        let mut text = Vec::new();
        match File::open(&self.path) {
            Ok(file) => file.take(2 * MAX_SIZE).read_to_end(&mut text).map_err(disk::at(&self.path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(disk::at(&self.path)(error)),
        };
        let (now, mut locked) = (clock::now_ms(), HashMap::new());
        for line in String::from_utf8_lossy(&text).lines() {
            let Ok(held) = json::from_str::<Lock>(line) else { continue };
            let left = Duration::from_millis(held.until.saturating_sub(now)).min(LOCKOUT);
            match left.is_zero() {
                true => locked.remove(&held.name),
                false => locked.insert(held.name, left),
            };
        }
        Ok(locked)
    }

    /// Rewrites the file: it then holds nothing else, and at most 5,000 of them.
    ///
    /// # Errors
    /// As [`Locks::read`]; the file then stands as before.
    pub fn shorten(&self) -> io::Result<()> {
        let _writing = lock(&self.writing);
        if !self.path.exists() {
            return Ok(());
        }
        let mut newest: Vec<_> = self.read()?.into_iter().collect();
        newest.sort_by_key(|(_, left)| std::cmp::Reverse(*left));
        newest.truncate(MAX_KEPT);
        // With the time that is left, or one written when the clock was wrong would come back for years.
        let lines: String = newest.into_iter().map(|(name, left)| Lock::line(name, left)).collect();
        disk::replace(&self.path, lines.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::super::accounts::tests::Folder;
    use super::*;

    fn record(name: &str, until: u64) -> String {
        json::to_string(&Lock { name: name.into(), until }) + "\n"
    }

    fn name(name: &str) -> Username {
        name.parse().expect("name")
    }

    #[test]
    fn a_lock_outlives_a_restart_and_ends_when_it_would_have() {
        let folder = Folder::new();
        let locks = Locks::new(&folder.0);
        locks.shorten().expect("none");
        assert!(!locks.path.exists());
        let minute = Duration::from_secs(60);
        for one in ["Alice", "bob", "carol"] {
            locks.lock(&name(one)).expect("written");
        }
        locks.unlock(&name("BOB")).expect("written");
        // What a clock that was wrong has written, what is over, and what a crash has left.
        let now = clock::now_ms();
        let lines = [
            record("years", now + 1_000_000_000_000),
            record("over", now - 1),
            record("carol", now + 2 * 60_000),
            "{\"name\":\"dave\",\"until\"\n".into(),
        ];
        disk::append(&locks.path)
            .and_then(|mut file| file.write_all(lines.concat().as_bytes()))
            .expect("written");
        disk::append(&locks.path).and_then(|mut file| file.write_all(b"\xff\xfe")).expect("written");
        for shortened in [false, true] {
            if shortened {
                locks.shorten().expect("written");
            }
            let locked = locks.read().expect("readable");
            let mut names: Vec<&str> = locked.keys().map(String::as_str).collect();
            names.sort_unstable();
            assert_eq!(names, ["alice", "carol", "years"]);
            for (name, most) in [("alice", LOCKOUT), ("carol", 2 * minute), ("years", LOCKOUT)] {
                let left = locked[name];
                assert!(left <= most && left > most - minute, "{name}: {left:?}");
            }
        }
        let text = std::fs::read_to_string(&locks.path).expect("readable");
        assert_eq!(text.lines().count(), 3, "{text}");
        let locked = locks.read().expect("readable");
        // What cannot be written takes nothing from those who read.
        let blocked = folder.0.join("locks.json.tmp/x");
        std::fs::create_dir_all(&blocked).expect("a folder");
        assert!(locks.shorten().is_err() && locks.read().is_ok_and(|read| read.len() == 3));
        assert!(locked.values().all(|left| *left <= LOCKOUT), "nothing comes back for years: {text}");
        // A file that cannot be read is no file that locks nobody.
        assert!(Locks::new(&locks.path).read().is_err(), "no folder");
        std::fs::remove_file(&locks.path).and_then(|()| std::fs::create_dir(&locks.path)).expect("a folder");
        assert!(locks.read().is_err() && locks.shorten().is_err() && locks.lock(&name("alice")).is_err());
    }

    #[test]
    fn a_file_that_is_too_long_is_shortened_to_the_newest_locks() {
        let folder = Folder::new();
        let locks = Locks::new(&folder.0);
        let soon = clock::now_ms() + 60_000;
        let lines: Vec<String> = (0..6000).map(|n| record(&format!("name{n}"), soon + n * 100)).collect();
        std::fs::write(&locks.path, lines.concat()).expect("written");
        locks.lock(&name("alice")).expect("written");
        assert_eq!(locks.read().expect("readable").len(), 6001, "not too long yet");
        let rest = (1024 * 1024 - std::fs::metadata(&locks.path).expect("there").len()) as usize;
        let line = Lock::line("bob".into(), LOCKOUT);
        let filler = " ".repeat(rest - line.len() - 1) + "\n";
        disk::append(&locks.path).and_then(|mut file| file.write_all(filler.as_bytes())).expect("written");
        locks.lock(&name("bob")).expect("written");
        assert_eq!(
            std::fs::metadata(&locks.path).expect("there").len(),
            1024 * 1024,
            "just as long as it may be"
        );
        locks.lock(&name("carol")).expect("written");
        let text = std::fs::read_to_string(&locks.path).expect("readable");
        assert_eq!(text.lines().count(), 5000);
        let locked = locks.read().expect("readable");
        for (name, there) in
            [("alice", true), ("bob", true), ("carol", true), ("name5999", true), ("name0", false)]
        {
            assert_eq!(locked.contains_key(name), there, "{name}");
        }
    }
}
