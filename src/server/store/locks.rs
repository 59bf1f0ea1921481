//! `locks.json`: which names are locked, so that a restart unlocks nobody.
//!
//! Invariant: one JSON record a line, a later one for a name supersedes; the file is bounded, and a line that
//! is not understood stands for nothing, and is kept in a file of its own when the file is rewritten. A lock read from
//! it lasts no longer than a new one, whatever the clock says now or said when it was written.

use crate::clock;
use crate::disk;
use crate::name::Username;
use crate::records::{self, Records, Writers};
use crate::server::limits::LOCKOUT;
use crate::sync::lock;
use miniserde::{Deserialize, Serialize, json};
use std::collections::HashMap;
use std::io;
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
    records: Mutex<Records>,
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

/// What a file holds.
#[derive(Default)]
pub struct Held {
    /// The folded names that are locked, and for how much longer: at most [`LOCKOUT`].
    pub locked: HashMap<String, Duration>,
    /// Lines that are not understood.
    pub unread: usize,
    /// What a start would repair, as a sentence.
    pub repair: Option<String>,
}

impl Held {
    /// Takes any line; none is refused: a damaged lock is no reason to serve nobody.
    fn take(&mut self, line: &[u8], now: u64) -> bool {
        match records::parse::<Lock>(line) {
            None => self.unread += 1,
            Some(held) => {
                let left = Duration::from_millis(held.until.saturating_sub(now)).min(LOCKOUT);
                match left.is_zero() {
                    true => self.locked.remove(&held.name),
                    false => self.locked.insert(held.name, left),
                };
            }
        }
        true
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join("locks.json")
}

/// What the file in `folder` holds, without changing anything: a missing one locks nobody.
///
/// # Errors
/// The disk's, with the path in the text.
pub fn survey(folder: &Path) -> io::Result<Held> {
    let (path, now, mut held) = (path(folder), clock::now_ms(), Held::default());
    if disk::is_there(&path)? {
        held.repair = records::read(&path, |line| held.take(line, now))?.plan(&path);
    }
    Ok(held)
}

impl Locks {
    /// Reads the file in the server's data folder, and shortens it. Also returns what it holds, and what is worth
    /// knowing, as sentences.
    ///
    /// # Errors
    /// The disk's, with the path in the text.
    pub fn open(folder: &Path) -> io::Result<(Locks, Held, Vec<String>)> {
        let (path, now, mut held) = (path(folder), clock::now_ms(), Held::default());
        let records = Records::open(&path, Writers::Many, |line| held.take(line, now))?;
        let mut notices: Vec<String> = records.repaired().map(String::from).into_iter().collect();
        let locks = Locks { path, records: Mutex::new(records) };
        if locks.length()? > 0 {
            let mut records = lock(&locks.records);
            notices.extend(locks.shorten(&mut records).unwrap_or_else(|error| {
                // A full disk is no reason to serve nobody.
                Some(format!("locks.json: not shortened: {error}"))
            }));
        }
        Ok((locks, held, notices))
    }

    fn length(&self) -> io::Result<u64> {
        lock(&self.records).length()
    }

    /// Writes down that a name is locked from now on, for [`LOCKOUT`]; does not wait for the disk.
    ///
    /// # Errors
    /// The disk's, with the path in the text.
    pub fn lock(&self, name: &Username) -> io::Result<()> {
        self.append(&Lock::line(name.folded(), LOCKOUT), false)
    }

    /// Writes down that it is not locked any more; returns when that is on disk.
    ///
    /// # Errors
    /// The disk's, with the path in the text.
    pub fn unlock(&self, name: &Username) -> io::Result<()> {
        self.append(&Lock::line(name.folded(), Duration::ZERO), true)
    }

    fn append(&self, line: &str, durable: bool) -> io::Result<()> {
        let mut records = lock(&self.records);
        records.append(line.as_bytes(), durable)?;
        if records.length()? > MAX_SIZE {
            // The line is written. If the file cannot be shortened now, the next one tries again.
            let _ = self.shorten(&mut records);
        }
        Ok(())
    }

    /// Rewrites the file: it then holds nothing else, and at most 5,000 of them.
    fn shorten(&self, records: &mut Records) -> io::Result<Option<String>> {
        let (now, mut held) = (clock::now_ms(), Held::default());
        records::read(&self.path, |line| held.take(line, now))?;
        let mut newest: Vec<_> = held.locked.into_iter().collect();
        newest.sort_by_key(|(_, left)| std::cmp::Reverse(*left));
        newest.truncate(MAX_KEPT);
        let notice = match held.unread {
            0 => None,
            lines => Some((lines, records::copy_aside(&self.path)?)),
        };
        // With the time that is left, or one written when the clock was wrong would come back for years.
        let lines = newest.into_iter().map(|(name, left)| Lock::line(name, left));
        records.rewrite(lines, |_| Ok(()))?;
        disk::sync_parent(&self.path)?;
        Ok(notice.map(|(lines, aside)| {
            format!(
                "locks.json: {lines} lines were not understood; the file of before is {}",
                aside.display()
            )
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::accounts::tests::Folder;
    use super::*;
    use std::io::Write;

    fn record(name: &str, until: u64) -> String {
        json::to_string(&Lock { name: name.into(), until }) + "\n"
    }

    fn name(name: &str) -> Username {
        name.parse().expect("name")
    }

    fn append(path: &Path, bytes: &[u8]) {
        disk::append(path).and_then(|mut file| file.write_all(bytes)).expect("written");
    }

    #[test]
    fn a_lock_outlives_a_restart_and_ends_when_it_would_have() {
        let folder = Folder::new();
        let (locks, held, notices) = Locks::open(&folder.0).expect("none");
        assert!(held.locked.is_empty() && notices.is_empty());
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
        append(&locks.path, lines.concat().as_bytes());
        append(&locks.path, b"\xff\xfe");
        let before = std::fs::read(&locks.path).expect("readable");
        for unread in [2, 0] {
            let held = survey(&folder.0).expect("readable");
            assert_eq!(held.unread, unread);
            let mut names: Vec<&str> = held.locked.keys().map(String::as_str).collect();
            names.sort_unstable();
            assert_eq!(names, ["alice", "carol", "years"]);
            for (name, most) in [("alice", LOCKOUT), ("carol", 2 * minute), ("years", LOCKOUT)] {
                let left = held.locked[name];
                assert!(left <= most && left > most - minute, "{name}: {left:?}");
            }
            let (_, held, notices) = Locks::open(&folder.0).expect("shortened");
            assert_eq!(held.locked.len(), 3);
            assert_eq!(notices.iter().any(|notice| notice.contains("2 lines")), unread > 0, "{notices:?}");
        }
        // Nothing is erased that was not understood.
        let aside = records::asides(&locks.path);
        assert!(std::fs::read(&aside[0]).expect("kept").starts_with(&before));
        let text = std::fs::read_to_string(&locks.path).expect("readable");
        assert_eq!(text.lines().count(), 3, "{text}");
        let held = survey(&folder.0).expect("readable");
        // What cannot be written takes nothing from those who read.
        let blocked = folder.0.join("locks.json.tmp/x");
        std::fs::create_dir_all(&blocked).expect("a folder");
        let (_, blocked, notices) = Locks::open(&folder.0).expect("readable");
        assert!(blocked.locked.len() == 3 && notices[0].contains("not shortened"), "{notices:?}");
        assert!(held.locked.values().all(|left| *left <= LOCKOUT), "nothing comes back for years: {text}");
        // A file that cannot be read is no file that locks nobody.
        assert!(survey(&locks.path).is_err(), "no folder");
        std::fs::remove_file(&locks.path).and_then(|()| std::fs::create_dir(&locks.path)).expect("a folder");
        assert!(survey(&folder.0).is_err() && Locks::open(&folder.0).is_err());
        assert!(locks.lock(&name("alice")).is_err());
    }

    #[test]
    fn a_file_that_is_too_long_is_shortened_to_the_newest_locks() {
        let folder = Folder::new();
        let soon = clock::now_ms() + 60_000;
        let (locks, ..) = Locks::open(&folder.0).expect("none");
        let lines: Vec<String> = (0..6000).map(|n| record(&format!("name{n}"), soon + n * 100)).collect();
        append(&locks.path, lines.concat().as_bytes());
        locks.lock(&name("alice")).expect("written");
        let locked = || survey(&folder.0).expect("readable").locked;
        assert_eq!(locked().len(), 6001, "not too long yet");
        let length = || std::fs::metadata(&locks.path).expect("there").len();
        let line = Lock::line("bob".into(), LOCKOUT);
        let filler = " ".repeat((1024 * 1024 - length()) as usize - line.len() - 1) + "\n";
        append(&locks.path, filler.as_bytes());
        locks.lock(&name("bob")).expect("written");
        assert_eq!(length(), 1024 * 1024, "just as long as it may be");
        locks.lock(&name("carol")).expect("written");
        let text = std::fs::read_to_string(&locks.path).expect("readable");
        assert_eq!(text.lines().count(), 5000);
        let locked = locked();
        for (name, there) in
            [("alice", true), ("bob", true), ("carol", true), ("name5999", true), ("name0", false)]
        {
            assert_eq!(locked.contains_key(name), there, "{name}");
        }
    }

    #[test]
    fn line_is_written_although_the_file_cannot_be_shortened() {
        let folder = Folder::new();
        let (locks, ..) = Locks::open(&folder.0).expect("none");
        locks.lock(&name("alice")).expect("written");
        // More than was ever read of it at once.
        for _ in 0..3 {
            append(&locks.path, (" ".repeat(MAX_SIZE as usize) + "\n").as_bytes());
        }
        std::fs::create_dir_all(folder.0.join("locks.json.tmp/x")).expect("in its way");
        locks.lock(&name("bob")).expect("written");
        locks.unlock(&name("alice")).expect("written");
        assert!(survey(&folder.0).expect("readable").locked.keys().eq(["bob"]));
    }
}
