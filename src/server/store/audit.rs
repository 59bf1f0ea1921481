//! The security log: `logs/security.log`, one line an event, in a form that fail2ban can read.
//!
//! Invariant: a line has only words of this program, valid names and numeric addresses, so no user can write a line of
//! their own. No caller of [`Audit::log`] waits for the disk: one thread writes, and lines that a full queue or disk
//! does not take are counted. If the log was renamed or removed, perhaps with its folder, the next line makes it again.
//! An event that any user can cause is written a limited number of times a minute and then only counted, so that no
//! user can hide what others do. Format: OPERATING#security-log.

use crate::clock;
use crate::disk;
use crate::name::Username;
use crate::server::rates::{Counter, origin};
use crate::server::threads::service;
use crate::sync::lock;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The log is rotated at this size, in bytes: 60 MiB with the rotated ones, some hundred thousand events.
const MAX_SIZE: u64 = 10 * 1024 * 1024;
/// The number of rotated logs; `security.log.1` is the newest.
const KEPT: u32 = 5;
/// The most lines that wait for the disk: at about 100 bytes each, less than half a megabyte.
const QUEUE: usize = 4096;

/// Lines are counted over this time; a limit that acts is logged once in it.
pub const INTERVAL: Duration = Duration::from_secs(60);
/// The most lines of one event from one address (IPv6: one /64) in an interval: more than the 50 failures that lock an
/// address, as many as the registrations of a minute.
const MAX_LINES: u32 = 120;

/// See the module.
pub struct Audit {
    queue: SyncSender<Item>,
    /// Lines that were not written.
    lost: Arc<AtomicU64>,
    lines: Mutex<Counter<Key>>,
    limits: Mutex<Counter<Key>>,
}

/// An event and the address that it comes from.
type Key = (&'static str, Option<IpAddr>);

enum Item {
    /// A line, and the number of lost lines that it reports.
    Line(String, u64),
    /// Answered when everything before it is on disk.
    Barrier(SyncSender<()>),
}

impl Audit {
    /// Opens the log in `folder`, and starts its thread.
    ///
    /// # Errors
    /// With the path in the text if the file cannot be opened; or if no thread is available.
    pub fn open(folder: &Path) -> io::Result<Audit> {
        let path = folder.join("security.log");
        let file = open(&path)?;
        let (queue, items) = sync_channel(QUEUE);
        let lost = Arc::<AtomicU64>::default();
        let mut log = Log { path, file, lost: lost.clone(), failed: false };
        service("audit", move || log.run(&items))?;
        Ok(Audit::new(queue, lost))
    }

    fn new(queue: SyncSender<Item>, lost: Arc<AtomicU64>) -> Audit {
        let lines = Mutex::new(Counter::new(MAX_LINES, INTERVAL));
        Audit { queue, lost, lines, limits: Mutex::new(Counter::new(1, INTERVAL)) }
    }

    /// Logs an event, unless this address had too many of it in the last minute. `event` and `detail` are this
    /// program's own words.
    pub fn log(&self, event: &'static str, user: Option<&Username>, address: Option<IpAddr>, detail: &str) {
        let (mut lines, mut key) = (lock(&self.lines), (event, address.map(origin)));
        if !lines.has_room(&key) {
            // Too many addresses: further ones count as one.
            key.1 = None;
        }
        let (count, more) = lines.count(key, Instant::now());
        drop(lines);
        if count <= MAX_LINES.into() {
            self.write(event, user, address, more, detail);
        }
    }

    /// Logs that a limit acts, once a minute for all addresses together.
    pub fn limit(&self, event: &'static str, user: Option<&Username>, address: Option<IpAddr>, detail: &str) {
        let (count, more) = lock(&self.limits).count((event, None), Instant::now());
        if count == 1 {
            self.write(event, user, address, more, detail);
        }
    }

    /// Logs that standard output cannot be written, once a minute.
    pub fn output_failed(&self, error: &io::Error) {
        self.limit("output_failed", None, None, &error.to_string());
    }

    /// Logs how many lines were left out in minutes that are over. Called once a minute.
    pub fn sum_up(&self) {
        let now = Instant::now();
        for counter in [&self.lines, &self.limits] {
            let left_out = lock(counter).forget_expired(now);
            for ((event, address), more) in left_out {
                self.write(event, None, address, more, "");
            }
        }
    }

    fn write(
        &self,
        event: &'static str,
        user: Option<&Username>,
        address: Option<IpAddr>,
        more: u64,
        detail: &str,
    ) {
        let user = user.map_or("-", Username::as_str);
        let address = address.map_or("-".to_string(), |address| address.to_canonical().to_string());
        let mut line = format!("{} event={event} user={user} addr={address}", clock::utc(clock::now_ms()));
        let lost = self.lost.swap(0, Ordering::Relaxed);
        for (word, count) in [("lost_before", lost), ("more", more)] {
            if count > 0 {
                line += &format!(" {word}={count}");
            }
        }
        if !detail.is_empty() {
            line += &format!(" {}", detail.replace(|c: char| c.is_control(), "?"));
        }
        line.push('\n');
        if self.queue.try_send(Item::Line(line, lost)).is_err() {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        }
    }

    /// Whether lines were lost and no later line has reported them; waits as [`Audit::flush`] does.
    pub fn loses(&self) -> bool {
        self.flush();
        self.lost.load(Ordering::Relaxed) > 0
    }

    /// Waits until all lines are on disk, for a second at most.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.queue.try_send(Item::Barrier(done)).is_ok() {
            // A disk that hangs must not prevent the exit.
            let _ = wait.recv_timeout(Duration::from_secs(1));
        }
    }
}

/// The log file, which its thread owns.
struct Log {
    path: PathBuf,
    file: File,
    lost: Arc<AtomicU64>,
    /// The last line could not be written, and this was reported on standard error.
    failed: bool,
}

impl Log {
    fn run(&mut self, items: &Receiver<Item>) {
        for item in items {
            match item {
                Item::Line(line, reported) => {
                    let written = self.write(&line);
                    if let Err(error) = &written {
                        self.lost.fetch_add(1 + reported, Ordering::Relaxed);
                        if !self.failed {
                            let _ = writeln!(
                                io::stderr(),
                                "server: {error}: events are lost until it can be written"
                            );
                        }
                    }
                    self.failed = written.is_err();
                }
                Item::Barrier(done) => {
                    let _ = self.file.sync_all();
                    let _ = done.send(());
                }
            }
        }
    }

    /// Appends a line, after a rotation if the log is full. An error has the path in its text.
    fn write(&mut self, line: &str) -> io::Result<()> {
        if !disk::is_at(&self.file, &self.path) {
            self.file = open(&self.path)?;
        }
        let size = |file: &File| file.metadata().map(|data| data.len()).map_err(disk::at(&self.path));
        // Another program may have shortened it.
        let mut length = size(&self.file)?;
        if length + line.len() as u64 > MAX_SIZE {
            rotate(&self.path);
            self.file = open(&self.path)?;
            length = size(&self.file)?;
        }
        let written = self.file.write_all(line.as_bytes());
        if written.is_err() {
            // A partial line would run into the next one.
            let _ = self.file.set_len(length);
        }
        written.map_err(disk::at(&self.path))
    }
}

/// Opens the log for appending, after a line end: a crash or an editor may have left a partial line. Makes the log's
/// folder again if it is missing, but not the data folder, which may just be moved.
fn open(path: &Path) -> io::Result<File> {
    let folder = path.parent().unwrap_or(path);
    if folder.parent().is_some_and(Path::is_dir) {
        disk::make_folder(folder)?;
    }
    let mut file = disk::append(path)?;
    if !disk::ends_line(&file).map_err(disk::at(path))? {
        file.write_all(b"\n").map_err(disk::at(path))?;
    }
    Ok(file)
}

fn rotate(path: &Path) {
    let numbered = |n: u32| PathBuf::from(format!("{}.{n}", path.display()));
    for n in (1..KEPT).rev() {
        let _ = fs::rename(numbered(n), numbered(n + 1));
    }
    let _ = fs::rename(path, numbered(1));
}

#[cfg(test)]
mod tests {
    use super::super::accounts::tests::Folder;
    use super::*;
    use crate::server::limits::MAX_REMEMBERED;

    fn here(n: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, n]))
    }

    fn open(folder: &Folder) -> Audit {
        Audit::open(&folder.0).expect("a log")
    }

    /// Takes the lines from the queue.
    fn written(items: &Receiver<Item>) -> Vec<String> {
        let line = |item| match item {
            Item::Line(line, _) => line[21..].trim_end().to_string(),
            Item::Barrier(_) => String::new(),
        };
        items.try_iter().map(line).collect()
    }

    #[test]
    fn address_with_many_events_cannot_drown_another() {
        let (queue, items) = sync_channel(QUEUE);
        let audit = Audit::new(queue, Arc::default());
        (0..1000).for_each(|_| audit.log("login", None, here(1), ""));
        assert_eq!(written(&items).len(), MAX_LINES as usize);
        audit.log("login", None, here(2), "");
        audit.log("login_failed", None, here(1), "");
        let others = ["event=login user=- addr=10.0.0.2", "event=login_failed user=- addr=10.0.0.1"];
        assert_eq!(written(&items), others);
        audit.sum_up();
        assert!(written(&items).is_empty(), "the minute is not over");
        let left_out = lock(&audit.lines).forget_expired(Instant::now() + INTERVAL);
        assert_eq!(left_out, [(("login", here(1)), 1000 - u64::from(MAX_LINES))]);
    }

    #[test]
    fn limit_is_logged_once_a_minute_for_all_addresses() {
        let (queue, items) = sync_channel(QUEUE);
        let audit = Audit::new(queue, Arc::default());
        (0..100).for_each(|n| audit.limit("refused", None, here(n), ""));
        assert_eq!(written(&items), ["event=refused user=- addr=10.0.0.0"]);
        let left_out = lock(&audit.limits).forget_expired(Instant::now() + INTERVAL);
        assert_eq!(left_out, [(("refused", None), 99)]);
    }

    #[test]
    fn addresses_beyond_bounded_memory_count_as_one() {
        let (queue, items) = sync_channel(QUEUE);
        let audit = Audit::new(queue, Arc::default());
        let mut lines = 0;
        for n in 0..2 * MAX_REMEMBERED as u32 {
            audit.log("login_failed", None, Some(IpAddr::from(n.to_be_bytes())), "");
            lines += written(&items).len();
        }
        assert_eq!(lines, MAX_REMEMBERED + MAX_LINES as usize);
    }

    /// The lines of the log.
    fn lines(folder: &Folder) -> Vec<String> {
        let text = fs::read_to_string(folder.0.join("security.log")).expect("a log");
        text.lines().map(String::from).collect()
    }

    #[test]
    fn log_is_rotated_at_its_size_and_five_are_kept() {
        let folder = Folder::new();
        let path = |name: &str| folder.0.join(name);
        let audit = open(&folder);
        audit.log("login", None, None, "");
        audit.flush();
        let length = fs::metadata(path("security.log")).expect("a log").len();
        drop(audit);
        for n in 1..=5 {
            fs::write(path(&format!("security.log.{n}")), n.to_string()).expect("written");
        }
        // One more line reaches the limit exactly, behind the line end that is added.
        disk::append(&path("security.log"))
            .and_then(|log| log.set_len(MAX_SIZE - length - 1))
            .expect("longer");
        let audit = open(&folder);
        let log = || {
            audit.log("login", None, None, "");
            audit.flush();
            fs::metadata(path("security.log")).expect("a log").len()
        };
        assert_eq!((log(), log(), log()), (MAX_SIZE, length, 2 * length));
        assert_eq!(fs::metadata(path("security.log.1")).expect("put aside").len(), MAX_SIZE);
        let former = |n: u32| fs::read_to_string(path(&format!("security.log.{n}"))).expect("kept");
        assert_eq!([2, 3, 4, 5].map(former), ["1", "2", "3", "4"]);
        assert!(!path("security.log.6").exists() && !path("security.log.0").exists());
        // Again, with lines written since then.
        for _ in 0..3 {
            audit.log("login", None, None, &"x".repeat(MAX_SIZE as usize * 2 / 5));
            audit.flush();
        }
        assert_eq!(fs::metadata(path("security.log.2")).expect("put aside").len(), MAX_SIZE);
    }

    #[test]
    fn lines_left_out_or_lost_are_counted_in_a_later_line() {
        let folder = Folder::new();
        let audit = open(&folder);
        let over = Instant::now() - INTERVAL;
        for _ in 0..3 {
            lock(&audit.limits).count(("refused", None), over);
        }
        audit.sum_up();
        audit.sum_up();
        audit.lost.store(5, Ordering::Relaxed);
        audit.log("login", None, here(1), "why\n");
        audit.log("login", None, here(1), "");
        audit.flush();
        let logged: Vec<_> = lines(&folder).iter().map(|line| line[21..].to_string()).collect();
        assert_eq!(
            logged,
            [
                "event=refused user=- addr=- more=2",
                "event=login user=- addr=10.0.0.1 lost_before=5 why?",
                "event=login user=- addr=10.0.0.1",
            ]
        );
    }

    #[test]
    fn log_that_cannot_be_reopened_loses_lines() {
        let folder = Folder::new();
        let audit = open(&folder);
        let path = folder.0.join("security.log");
        for is_blocked in [false, true, false] {
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
            if is_blocked {
                fs::create_dir(&path).expect("in its way");
            }
            audit.log("reloaded", None, None, "");
            assert_eq!(audit.loses(), is_blocked);
        }
    }

    #[test]
    fn log_folder_is_restored_and_an_error_names_it_once() {
        let folder = Folder::new();
        let path = folder.0.join("logs/security.log");
        let file = super::open(&path).expect("made");
        let mut log = Log { path: path.clone(), file, lost: Arc::default(), failed: false };
        fs::remove_dir_all(folder.0.join("logs")).expect("removed");
        log.write("one\n").expect("made again");
        assert_eq!(fs::read_to_string(&path).expect("there"), "one\n");
        fs::remove_file(&path).and_then(|()| fs::create_dir(&path)).expect("in its way");
        let error = log.write("two\n").expect_err("a folder").to_string();
        assert_eq!(error.matches("security.log").count(), 1, "{error}");
        // A missing data folder may just have been moved.
        fs::remove_dir_all(&folder.0).expect("removed");
        log.write("three\n").expect_err("no data folder");
        assert!(!folder.0.exists());
        fs::create_dir(&folder.0).expect("for the end");
    }

    #[test]
    fn full_queue_counts_its_lines_and_blocks_no_caller() {
        let (queue, items) = sync_channel(1);
        let audit = Audit::new(queue, Arc::default());
        (0..4).for_each(|_| audit.log("login", None, None, ""));
        assert!(items.recv().is_ok() && items.try_recv().is_err());
        audit.log("login", None, None, "");
        assert!(matches!(items.recv(), Ok(Item::Line(line, 3)) if line.ends_with(" lost_before=3\n")));
    }
}
