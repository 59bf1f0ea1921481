//! The security log: `logs/security.log`, one line an event, made for fail2ban.
//!
//! Invariant: a line holds only words of this program, valid names and numeric addresses, so no user can
//! write a line of their own; nobody waits for the disk (a thread writes; what a full queue or a full disk does not take is
//! counted); a log that was renamed or removed is made again for the next line; what anyone can cause again and again is written so often a minute and then only
//! counted, so nobody can drown what others do. Format: README#security-log.

use crate::clock;
use crate::disk;
use crate::name::Username;
use crate::server::rates::origin;
use crate::sync::lock;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The log is rotated at this size, in bytes: with those that are kept, 60 MiB, some hundred thousand events.
const MAX_SIZE: u64 = 10 * 1024 * 1024;
/// Rotated logs that are kept: `security.log.1` is the newest.
const KEPT: u32 = 5;
/// Lines that wait for the disk: at about 100 bytes each, less than half a megabyte.
const QUEUE: usize = 4096;

/// Lines are counted over this time: limits that act are told once in it.
pub const INTERVAL: Duration = Duration::from_secs(60);
/// Lines of one event from one address (IPv6: one /64) in an interval: more than the 50 failures that lock an
/// address, as many as the registrations of a minute.
const MAX_LINES: u32 = 120;
/// Events and addresses whose lines are counted, some megabytes; beyond that, addresses count as one.
const MAX_KEYS: usize = 20_000;

/// Where events go.
pub struct Audit {
    queue: SyncSender<Item>,
    /// Lines that were not written.
    lost: Arc<AtomicU64>,
    recent: Mutex<Recent>,
}

/// What was written in the last interval, by event and address.
#[derive(Default)]
struct Recent(HashMap<(&'static str, Option<IpAddr>), Lines>);

struct Lines {
    since: Instant,
    written: u32,
    /// Not written.
    more: u64,
}

impl Recent {
    /// Counts an event. `None` if there were `max` lines of it already, else how many were left out before.
    fn count(&mut self, event: &'static str, address: Option<IpAddr>, max: u32, now: Instant) -> Option<u64> {
        let mut key = (event, address.map(origin));
        if self.0.len() >= MAX_KEYS && !self.0.contains_key(&key) {
            key.1 = None;
        }
        let lines = self.0.entry(key).or_insert(Lines { since: now, written: 0, more: 0 });
        if now.duration_since(lines.since) >= INTERVAL {
            let more = lines.more;
            *lines = Lines { since: now, written: 1, more: 0 };
            return Some(more);
        }
        if lines.written >= max {
            lines.more += 1;
            return None;
        }
        lines.written += 1;
        Some(0)
    }

    /// Forgets intervals that are over; what was left out in them.
    fn finish(&mut self, now: Instant) -> Vec<(&'static str, Option<IpAddr>, u64)> {
        let over = self.0.extract_if(|_, lines| now.duration_since(lines.since) >= INTERVAL);
        let left_out = over.filter(|(_, lines)| lines.more > 0);
        left_out.map(|((event, address), lines)| (event, address, lines.more)).collect()
    }
}

enum Item {
    /// A line, and how many it tells as lost.
    Line(String, u64),
    /// Answered when everything before it is on disk.
    Barrier(SyncSender<()>),
}

impl Audit {
    /// Opens the log in `folder` and starts its thread.
    ///
    /// # Errors
    /// With the path in the text if the file cannot be opened; or if no thread can be had.
    pub fn open(folder: &Path) -> io::Result<Audit> {
        let path = folder.join("security.log");
        let file = open(&path)?;
        let (queue, items) = sync_channel(QUEUE);
        let lost = Arc::<AtomicU64>::default();
        let mut log = Log { path, file, lost: lost.clone(), failed: false };
        std::thread::Builder::new().name("audit".into()).spawn(move || log.run(&items))?;
        Ok(Audit { queue, lost, recent: Mutex::default() })
    }

    /// Logs one event, if not too many of it came from this address in the last minute. `event` and `detail`
    /// are this program's own words.
    pub fn log(&self, event: &'static str, user: Option<&Username>, address: Option<IpAddr>, detail: &str) {
        if let Some(more) = lock(&self.recent).count(event, address, MAX_LINES, Instant::now()) {
            self.write(event, user, address, more, detail);
        }
    }

    /// Logs that a limit acts, once a minute, whoever has met it.
    pub fn limit(&self, event: &'static str, user: Option<&Username>, address: Option<IpAddr>, detail: &str) {
        if let Some(more) = lock(&self.recent).count(event, None, 1, Instant::now()) {
            self.write(event, user, address, more, detail);
        }
    }

    /// Logs that standard output cannot be written, once a minute.
    pub fn output_failed(&self, error: &io::Error) {
        self.limit("output_failed", None, None, &error.to_string());
    }

    /// Logs how much was left out in minutes that are over; to be called once a minute.
    pub fn sum_up(&self) {
        let left_out = lock(&self.recent).finish(Instant::now());
        for (event, address, more) in left_out {
            self.write(event, None, address, more, "");
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

    /// Whether what was logged last could not be written; waits for it as [`Audit::flush`] does.
    pub fn loses(&self) -> bool {
        self.flush();
        self.lost.load(Ordering::Relaxed) > 0
    }

    /// Waits until all that was logged is on disk.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.queue.try_send(Item::Barrier(done)).is_ok() {
            // A disk that hangs must not keep the server from ending.
            let _ = wait.recv_timeout(Duration::from_secs(1));
        }
    }
}

/// The file, in its thread.
struct Log {
    path: PathBuf,
    file: File,
    lost: Arc<AtomicU64>,
    /// The last line could not be written, and standard error has said so.
    failed: bool,
}

impl Log {
    fn run(&mut self, items: &Receiver<Item>) {
        for item in items {
            match item {
                Item::Line(line, told) => {
                    let written = self.write(&line);
                    if let Err(error) = &written {
                        self.lost.fetch_add(1 + told, Ordering::Relaxed);
                        if !self.failed {
                            let path = self.path.display();
                            let _ = writeln!(
                                io::stderr(),
                                "server: {path}: {error}: events are lost until it can be written"
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

    fn write(&mut self, line: &str) -> io::Result<()> {
        if !disk::is_at(&self.file, &self.path) {
            self.file = open(&self.path)?;
        }
        // Another program may have made it shorter.
        let mut size = self.file.metadata()?.len();
        if size + line.len() as u64 > MAX_SIZE {
            rotate(&self.path);
            self.file = open(&self.path)?;
            size = self.file.metadata()?.len();
        }
        let written = self.file.write_all(line.as_bytes());
        if written.is_err() {
            // Half a line would spoil the next one.
            let _ = self.file.set_len(size);
        }
        written
    }
}

/// Opens the log for appending, behind a line end: a crash or an editor may have left half a line.
fn open(path: &Path) -> io::Result<File> {
    let mut file = disk::append(path)?;
    if !disk::ends_line(&file)? {
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

    fn here(n: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, n]))
    }

    #[test]
    fn one_address_cannot_drown_another_and_what_was_left_out_is_counted() {
        let (mut recent, start) = (Recent::default(), Instant::now());
        let written =
            (0..1000).filter(|_| recent.count("login", here(1), MAX_LINES, start).is_some()).count();
        assert_eq!(written, MAX_LINES as usize);
        assert_eq!(recent.count("login", here(2), MAX_LINES, start), Some(0));
        assert_eq!(recent.count("login_failed", here(1), MAX_LINES, start), Some(0));
        let left_out = 1000 - u64::from(MAX_LINES);
        assert!(recent.finish(start + INTERVAL / 2).is_empty(), "the minute is not over");
        // The next line tells, or the sum if none comes.
        let mut other = Recent::default();
        std::mem::swap(&mut other.0, &mut recent.0);
        assert_eq!(other.finish(start + INTERVAL), [("login", here(1), left_out)]);
        assert!(other.0.is_empty());
        for n in [left_out + 2, 0] {
            for _ in 0..u64::from(MAX_LINES) + n {
                recent.count("login", here(1), MAX_LINES, start);
            }
        }
        assert_eq!(recent.count("login", here(1), MAX_LINES, start + INTERVAL), Some(left_out + 2 + 120));
    }

    #[test]
    fn a_limit_is_one_line_a_minute_and_addresses_are_remembered_in_bounded_memory() {
        let (mut recent, start) = (Recent::default(), Instant::now());
        for n in 0..2 * MAX_KEYS as u32 {
            recent.count("login_failed", Some(IpAddr::from(n.to_be_bytes())), MAX_LINES, start);
            recent.count("refused", None, 1, start);
        }
        assert!(recent.0.len() <= MAX_KEYS + 2, "{}", recent.0.len());
        let left_out = recent.finish(start + INTERVAL);
        assert!(left_out.contains(&("refused", None, 2 * MAX_KEYS as u64 - 1)), "{left_out:?}");
    }

    /// The lines of the log.
    fn lines(folder: &Folder) -> Vec<String> {
        let text = fs::read_to_string(folder.0.join("security.log")).expect("a log");
        text.lines().map(String::from).collect()
    }

    #[test]
    fn a_log_that_is_long_enough_is_put_aside_and_five_of_them_are_kept() {
        let folder = Folder::new();
        let path = |name: &str| folder.0.join(name);
        let audit = Audit::open(&folder.0).expect("a log");
        audit.log("login", None, None, "");
        audit.flush();
        let length = fs::metadata(path("security.log")).expect("a log").len();
        drop(audit);
        for n in 1..=5 {
            fs::write(path(&format!("security.log.{n}")), n.to_string()).expect("written");
        }
        // As if one line more would be just as much as there may be, behind the line end that is added.
        disk::append(&path("security.log"))
            .and_then(|log| log.set_len(MAX_SIZE - length - 1))
            .expect("longer");
        let audit = Audit::open(&folder.0).expect("a log");
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
        // And again, by what was written since.
        for _ in 0..3 {
            audit.log("login", None, None, &"x".repeat(MAX_SIZE as usize * 2 / 5));
            audit.flush();
        }
        assert_eq!(fs::metadata(path("security.log.2")).expect("put aside").len(), MAX_SIZE);
    }

    #[test]
    fn what_was_left_out_or_lost_is_told_in_a_line_of_its_own_or_the_next() {
        let folder = Folder::new();
        let audit = Audit::open(&folder.0).expect("a log");
        let over = Instant::now() - INTERVAL;
        for _ in 0..3 {
            lock(&audit.recent).count("refused", None, 1, over);
        }
        audit.sum_up();
        audit.sum_up();
        audit.lost.store(5, Ordering::Relaxed);
        audit.log("login", None, here(1), "why\n");
        audit.log("login", None, here(1), "");
        audit.flush();
        let told: Vec<_> = lines(&folder).iter().map(|line| line[21..].to_string()).collect();
        assert_eq!(
            told,
            [
                "event=refused user=- addr=- more=2",
                "event=login user=- addr=10.0.0.1 lost_before=5 why?",
                "event=login user=- addr=10.0.0.1",
            ]
        );
    }

    #[test]
    fn log_that_cannot_be_made_again_loses_lines() {
        let folder = Folder::new();
        let audit = Audit::open(&folder.0).expect("a log");
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
    fn what_finds_the_disk_behind_is_counted_and_nobody_waits() {
        let (queue, items) = sync_channel(1);
        let audit = Audit { queue, lost: Arc::default(), recent: Mutex::default() };
        (0..4).for_each(|_| audit.log("login", None, None, ""));
        assert!(items.recv().is_ok() && items.try_recv().is_err());
        audit.log("login", None, None, "");
        assert!(matches!(items.recv(), Ok(Item::Line(line, 3)) if line.ends_with(" lost_before=3\n")));
    }
}
