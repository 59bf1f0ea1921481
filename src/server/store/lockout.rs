//! Counts of failed logins, and `locks.json`, which keeps a name locked across a restart.
//!
//! Invariant: a name is counted the same whether or not the account exists. Memory and file are bounded, and no storm
//! of names makes the server forget a lock. The file has one JSON record a line; a later record replaces earlier ones
//! for the same name. A start rewrites it, and keeps a copy if it has lines that cannot be read. A lock from the file
//! lasts no longer than a new one, whatever the clock says now or said when it was written. PROTOCOL#lockout.

use super::files::{self, Notices};
use crate::clock;
use crate::disk;
use crate::name::Username;
use crate::records::{self, Records, Writers};
use crate::server::limits::{LOCKOUT, MAX_FAILURES, MAX_FAILURES_PER_ADDRESS};
use crate::server::rates::{Counter, origin};
use crate::sync::lock;
use miniserde::{Deserialize, Serialize, json};
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The file in the data folder.
const FILE: &str = "locks.json";
/// Bytes beyond which the file is rewritten with at most [`MAX_KEPT`] locks: anyone can cause lines, and those of the
/// last 15 minutes are all that count.
const MAX_SIZE: u64 = 1024 * 1024;
/// The most locks that a rewrite keeps, so that the file is well below [`MAX_SIZE`] after it.
const MAX_KEPT: usize = 5000;

/// See the module.
pub struct Lockout {
    counts: Mutex<Counts>,
    path: PathBuf,
    records: Mutex<Records>,
}

struct Counts {
    /// By folded name.
    names: Counter<String>,
    addresses: Counter<IpAddr>,
}

impl Counts {
    fn check(&self, folded: &String, origin: &IpAddr, now: Instant) -> Result<(), Duration> {
        self.names.wait(folded, now).or_else(|| self.addresses.wait(origin, now)).map_or(Ok(()), Err)
    }
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

/// The content of a file.
#[derive(Default)]
struct Content {
    /// By folded name: how long it is still locked, at most [`LOCKOUT`].
    locked: HashMap<String, Duration>,
    /// The number of lines that cannot be read.
    damaged: usize,
}

impl Content {
    /// Takes a line, as [`records::read`] passes it. Counts a damaged one, which comes empty, and ignores it: it must
    /// not prevent the start.
    fn take(&mut self, line: &[u8]) -> bool {
        let Some(record) = records::parse::<Lock>(line) else {
            self.damaged += usize::from(line.is_empty());
            return line.is_empty();
        };
        let left = Duration::from_millis(record.until.saturating_sub(clock::now_ms())).min(LOCKOUT);
        match left.is_zero() {
            true => self.locked.remove(&record.name),
            false => self.locked.insert(record.name, left),
        };
        true
    }
}

/// Reads the file and changes nothing.
fn read(path: &Path, notices: &mut Notices) -> io::Result<Content> {
    let mut content = Content::default();
    files::read_records(path, notices, |line| content.take(line))?;
    Ok(content)
}

/// The locks in the data folder `folder`, by folded name, and how long each still lasts; a missing file has none.
///
/// # Errors
/// The disk's, with the path in the text.
pub fn list(folder: &Path) -> io::Result<HashMap<String, Duration>> {
    read(&folder.join(FILE), &mut Notices::new()).map(|content| content.locked)
}

/// Reports what [`Lockout::open`] would find and do.
///
/// # Errors
/// As [`Lockout::open`].
pub fn check(folder: &Path, notices: &mut Notices) -> io::Result<()> {
    let content = read(&folder.join(FILE), notices)?;
    notices.push(format!("{} locked names", content.locked.len()));
    if content.damaged > 0 {
        let damaged = content.damaged;
        notices.push(format!("WARNING: {FILE}: {damaged} lines cannot be read: a start sets them aside"));
    }
    Ok(())
}

impl Lockout {
    /// Reads the file in the data folder `folder`, and rewrites it without superseded lines.
    ///
    /// # Errors
    /// The disk's, with the path in the text.
    pub fn open(folder: &Path, notices: &mut Notices) -> io::Result<Lockout> {
        let (path, mut content) = (folder.join(FILE), Content::default());
        let mut records = Records::open(&path, Writers::Many, notices, |line| content.take(line))?;
        let (mut names, now) = (Counter::new(MAX_FAILURES, LOCKOUT), Instant::now());
        for (name, left) in &content.locked {
            if names.has_room(name) {
                names.hold(name.clone(), now + *left);
            }
        }
        if records.length()? > 0 {
            // A full disk must not prevent the start.
            let shortened = shorten(&path, &mut records, content);
            let failed = |error| Some(format!("the locks cannot be rewritten: {error}"));
            notices.extend(shortened.unwrap_or_else(failed));
        }
        let addresses = Counter::new(MAX_FAILURES_PER_ADDRESS, LOCKOUT);
        let (counts, records) = (Mutex::new(Counts { names, addresses }), Mutex::new(records));
        Ok(Lockout { counts, path, records })
    }

    /// Checks that neither `name` nor `address` is locked.
    ///
    /// # Errors
    /// How long one of them still is.
    pub fn locked(&self, name: &Username, address: IpAddr) -> Result<(), Duration> {
        lock(&self.counts).check(&name.folded(), &origin(address), Instant::now())
    }

    /// Counts an attempt before it is checked, so that a thousand at once are not a thousand guesses. Returns whether
    /// it locks the name. [`Lockout::forgive`] takes the attempt back if it succeeds.
    ///
    /// # Errors
    /// How long to wait, if name or address is locked. The attempt is not counted then: it may be the owner's.
    pub fn count(&self, name: &Username, address: IpAddr) -> Result<bool, Duration> {
        let (mut counts, now) = (lock(&self.counts), Instant::now());
        let (folded, origin) = (name.folded(), origin(address));
        counts.check(&folded, &origin, now)?;
        counts.addresses.count_failure(origin, now);
        Ok(counts.names.count_failure(folded, now))
    }

    /// Takes back an attempt that succeeded: the name's count starts again.
    pub fn forgive(&self, name: &Username, address: IpAddr) {
        let mut counts = lock(&self.counts);
        counts.names.forget(&name.folded());
        counts.addresses.uncount(&origin(address));
    }

    /// Records that a name is locked from now on, so that a restart does not unlock it. Does not wait for the disk.
    ///
    /// # Errors
    /// The disk's, with the path in the text.
    pub fn remember(&self, name: &Username) -> io::Result<()> {
        self.append(&Lock::line(name.folded(), LOCKOUT), false)
    }

    /// Unlocks the name; returns when that is on disk.
    ///
    /// # Errors
    /// The disk's, with the path in the text; the name stays locked then.
    pub fn unlock(&self, name: &Username) -> io::Result<()> {
        self.append(&Lock::line(name.folded(), Duration::ZERO), true)?;
        lock(&self.counts).names.forget(&name.folded());
        Ok(())
    }

    fn append(&self, line: &str, durable: bool) -> io::Result<()> {
        let mut records = lock(&self.records);
        records.append(line.as_bytes(), durable)?;
        if records.length()? > MAX_SIZE {
            // The line is written. If the file cannot be shortened now, the next append tries again.
            let content = read(&self.path, &mut Notices::new());
            let _ = content.and_then(|content| shorten(&self.path, &mut records, content));
        }
        Ok(())
    }
}

/// Rewrites the file with its locks alone, at most the newest [`MAX_KEPT`]. Returns a notice if lines were damaged.
fn shorten(path: &Path, records: &mut Records, content: Content) -> io::Result<Option<String>> {
    let mut newest: Vec<_> = content.locked.into_iter().collect();
    newest.sort_by_key(|(_, left)| std::cmp::Reverse(*left));
    newest.truncate(MAX_KEPT);
    let notice = match content.damaged {
        0 => None,
        damaged => {
            let copy = records::copy_aside(path)?;
            let copy = copy.display();
            Some(format!("{FILE}: {damaged} lines could not be read; the previous file is {copy}"))
        }
    };
    // Write the remaining time: a lock written when the clock was wrong would last for years.
    records.rewrite(newest.into_iter().map(|(name, left)| Lock::line(name, left)), |_| Ok(()))?;
    disk::sync_parent(path)?;
    Ok(notice)
}

#[cfg(test)]
mod tests {
    use super::super::accounts::tests::Folder;
    use super::*;
    use crate::server::limits::MAX_REMEMBERED;
    use std::io::Write;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const MINUTE: Duration = Duration::from_secs(60);

    fn name(name: &str) -> Username {
        name.parse().expect("name")
    }

    fn record(name: &str, until: u64) -> String {
        json::to_string(&Lock { name: name.into(), until }) + "\n"
    }

    fn append(path: &Path, bytes: &[u8]) {
        disk::append(path).and_then(|mut file| file.write_all(bytes)).expect("written");
    }

    fn open(folder: &Folder) -> io::Result<(Lockout, Notices)> {
        let mut notices = Notices::new();
        Lockout::open(&folder.0, &mut notices).map(|lockout| (lockout, notices))
    }

    fn lockout() -> (Lockout, Folder) {
        let folder = Folder::new();
        (open(&folder).expect("no file yet").0, folder)
    }

    /// PROTOCOL#lockout.
    #[test]
    fn five_failures_lock_a_name_and_a_success_forgives() {
        let (lockout, _folder) = lockout();
        let (alice, upper) = (name("alice"), name("ALICE"));
        for _ in 0..4 {
            assert_eq!(lockout.count(&alice, HERE), Ok(false));
        }
        lockout.forgive(&alice, HERE);
        for _ in 0..4 {
            assert_eq!(lockout.count(&upper, HERE), Ok(false));
        }
        assert_eq!(lockout.locked(&alice, HERE), Ok(()));
        assert_eq!(lockout.count(&alice, HERE), Ok(true));
        assert!(lockout.count(&alice, HERE).is_err(), "a locked name is not counted further");
        let left = lockout.locked(&upper, HERE).expect_err("locked");
        assert!(left <= LOCKOUT && left > LOCKOUT - MINUTE);
        assert_eq!(lockout.locked(&name("bob"), HERE), Ok(()));
    }

    /// PROTOCOL#lockout.
    #[test]
    fn address_that_guesses_at_many_names_is_locked() {
        let (lockout, _folder) = lockout();
        for n in 0..MAX_FAILURES_PER_ADDRESS {
            assert!(lockout.count(&name(&format!("name{n}")), HERE).is_ok());
        }
        let fresh = name("fresh");
        assert!(lockout.locked(&fresh, HERE).is_err());
        assert!(lockout.locked(&fresh, IpAddr::from([10, 0, 0, 2])).is_ok());
    }

    /// PROTOCOL#lockout.
    #[test]
    fn locked_name_does_not_count_for_the_address() {
        let (lockout, _folder) = lockout();
        for _ in 0..2 * MAX_FAILURES_PER_ADDRESS {
            let _ = lockout.count(&name("alice"), HERE);
        }
        assert!(lockout.locked(&name("alice"), HERE).is_err());
        assert_eq!(lockout.locked(&name("bob"), HERE), Ok(()));
    }

    #[test]
    fn lockout_limits_are_the_ones_specified() {
        let specification = include_str!("../../protocol/PROTOCOL.md");
        let specification = specification.split_whitespace().collect::<Vec<_>>().join(" ");
        let minutes = LOCKOUT.as_secs() / 60;
        let promise = format!(
            "There is a count for each name (in any letter case, existing or not) and one for each address. A count \
             begins with its first failure and ends {minutes} minutes later. - When it reaches {MAX_FAILURES} for a \
             name, or {MAX_FAILURES_PER_ADDRESS} for an address, the answer to `login_request` and to the response is \
             `locked` with `retry_after` seconds, for {minutes} minutes from then."
        );
        assert!(specification.contains(&promise), "{promise}");
    }

    #[test]
    fn storm_of_names_evicts_no_lock_and_no_failure() {
        let (lockout, _folder) = lockout();
        (0..MAX_FAILURES).for_each(|_| assert!(lockout.count(&name("alice"), HERE).is_ok()));
        (1..MAX_FAILURES).for_each(|_| assert_eq!(lockout.count(&name("bob"), HERE), Ok(false)));
        for n in 0..MAX_REMEMBERED as u32 + 100 {
            let address = IpAddr::from((n + 1).to_be_bytes());
            assert_eq!(lockout.count(&name(&format!("name{n}")), address), Ok(false));
        }
        assert!(lockout.locked(&name("alice"), HERE).is_err());
        assert_eq!(lockout.count(&name("bob"), HERE), Ok(true));
    }

    #[test]
    fn success_takes_back_its_own_attempt_and_no_other() {
        let (lockout, _folder) = lockout();
        let name = |n: u32| name(&format!("name{n}"));
        for n in 1..MAX_FAILURES_PER_ADDRESS {
            assert_eq!(lockout.count(&name(n), HERE), Ok(false));
        }
        for _ in 0..10 {
            assert_eq!(lockout.count(&name(0), HERE), Ok(false), "the last one before the lock");
            assert!(lockout.locked(&name(0), HERE).is_err());
            lockout.forgive(&name(0), HERE);
            assert_eq!(lockout.locked(&name(0), HERE), Ok(()));
        }
    }

    #[test]
    fn operator_unlocks_a_name_and_a_restart_does_not() {
        let (lockout, folder) = lockout();
        let alice = name("Alice");
        append(&lockout.path, record("alice", clock::now_ms() + 100_000).as_bytes());
        let (lockout, _) = open(&folder).expect("readable");
        let left = lockout.locked(&alice, HERE).expect_err("locked");
        assert!(left <= Duration::from_secs(100) && left > Duration::from_secs(40), "{left:?}");
        lockout.unlock(&alice).expect("written");
        assert_eq!(lockout.locked(&alice, HERE), Ok(()));
        for _ in 0..4 {
            assert_eq!(lockout.count(&alice, HERE), Ok(false));
        }
        lockout.unlock(&alice).expect("written");
        assert_eq!(lockout.count(&alice, HERE), Ok(false), "its count begins again");
        assert_eq!(open(&folder).expect("readable").0.locked(&alice, HERE), Ok(()));
    }

    #[test]
    fn lock_survives_a_restart_and_ends_on_time() {
        let folder = Folder::new();
        let (locks, notices) = open(&folder).expect("none");
        assert!(list(&folder.0).expect("readable").is_empty() && notices.is_empty());
        for one in ["Alice", "bob", "carol"] {
            locks.remember(&name(one)).expect("written");
        }
        locks.unlock(&name("BOB")).expect("written");
        // Locks from a wrong clock, an expired lock, and the remains of a crash.
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
            let locked = list(&folder.0).expect("readable");
            let mut checked = Notices::new();
            check(&folder.0, &mut checked).expect("readable");
            let checked = checked.join("\n");
            assert!(checked.contains("3 locked names"), "{checked}");
            assert_eq!(checked.contains("2 lines cannot be read"), unread > 0, "{checked}");
            let mut names: Vec<&str> = locked.keys().map(String::as_str).collect();
            names.sort_unstable();
            assert_eq!(names, ["alice", "carol", "years"]);
            for (name, most) in [("alice", LOCKOUT), ("carol", 2 * MINUTE), ("years", LOCKOUT)] {
                let left = locked[name];
                assert!(left <= most && left > most - MINUTE, "{name}: {left:?}");
            }
            let (_, notices) = open(&folder).expect("shortened");
            assert_eq!(list(&folder.0).expect("readable").len(), 3);
            assert_eq!(notices.iter().any(|notice| notice.contains("2 lines")), unread > 0, "{notices:?}");
        }
        // The copy has the unreadable lines.
        let aside = records::asides(&locks.path);
        assert!(std::fs::read(&aside[0]).expect("kept").starts_with(&before));
        let text = std::fs::read_to_string(&locks.path).expect("readable");
        assert_eq!(text.lines().count(), 3, "{text}");
        let locked = list(&folder.0).expect("readable");
        // If the file cannot be rewritten, the same names are locked.
        let blocked = folder.0.join("locks.json.tmp/x");
        std::fs::create_dir_all(&blocked).expect("a folder");
        let (blocked, notices) = open(&folder).expect("readable");
        assert!(
            blocked.locked(&name("carol"), HERE).is_err() && notices[0].contains("cannot be rewritten"),
            "{notices:?}"
        );
        assert!(locked.values().all(|left| *left <= LOCKOUT), "nothing comes back for years: {text}");
        // An unreadable file is an error, not a file without locks.
        assert!(list(&locks.path).is_err(), "no folder");
        std::fs::remove_file(&locks.path).and_then(|()| std::fs::create_dir(&locks.path)).expect("a folder");
        assert!(list(&folder.0).is_err() && open(&folder).is_err());
        assert!(locks.remember(&name("alice")).is_err());
    }

    #[test]
    fn file_that_is_too_long_keeps_the_newest_locks() {
        let folder = Folder::new();
        let soon = clock::now_ms() + 60_000;
        let (locks, _) = open(&folder).expect("none");
        let lines: Vec<String> = (0..6000).map(|n| record(&format!("name{n}"), soon + n * 100)).collect();
        append(&locks.path, lines.concat().as_bytes());
        locks.remember(&name("alice")).expect("written");
        let locked = || list(&folder.0).expect("readable");
        assert_eq!(locked().len(), 6001, "not too long yet");
        let length = || std::fs::metadata(&locks.path).expect("there").len();
        let line = Lock::line("bob".into(), LOCKOUT);
        let filler = " ".repeat((1024 * 1024 - length()) as usize - line.len() - 1) + "\n";
        append(&locks.path, filler.as_bytes());
        locks.remember(&name("bob")).expect("written");
        assert_eq!(length(), 1024 * 1024, "just as long as it may be");
        locks.remember(&name("carol")).expect("written");
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
    fn line_is_written_when_the_file_cannot_be_shortened() {
        let folder = Folder::new();
        let (locks, _) = open(&folder).expect("none");
        locks.remember(&name("alice")).expect("written");
        // More than one read.
        for _ in 0..3 {
            append(&locks.path, (" ".repeat(MAX_SIZE as usize) + "\n").as_bytes());
        }
        std::fs::create_dir_all(folder.0.join("locks.json.tmp/x")).expect("in its way");
        locks.remember(&name("bob")).expect("written");
        locks.unlock(&name("alice")).expect("written");
        assert!(list(&folder.0).expect("readable").keys().eq(["bob"]));
    }
}
