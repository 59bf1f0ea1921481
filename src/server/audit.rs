//! The security log: `logs/security.log`, one line an event, made for fail2ban.
//!
//! Invariant: a line holds only words of this program, valid names and numeric addresses, so no user can
//! write a line of their own; nobody waits for the disk (a thread writes, a full queue is
//! counted). Format: README, "Security log".

use crate::clock;
use crate::disk;
use crate::name::Username;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// The log is rotated at this size, in bytes.
const MAX_SIZE: u64 = 10 * 1024 * 1024;
/// Rotated logs that are kept: `security.log.1` is the newest.
const KEPT: u32 = 5;
/// Lines that wait for the disk.
const QUEUE: usize = 4096;

/// Where events go.
pub struct Audit {
    queue: SyncSender<Item>,
    lost: AtomicU64,
}

enum Item {
    Line(String),
    /// Answered when everything before it is on disk.
    Barrier(SyncSender<()>),
}

impl Audit {
    /// Opens the log in `folder` and starts its thread.
    ///
    /// # Errors
    /// With the path in the text.
    pub fn open(folder: &Path) -> io::Result<Audit> {
        let path = folder.join("security.log");
        let file = disk::append(&path)?;
        let (queue, items) = sync_channel(QUEUE);
        std::thread::Builder::new().name("audit".into()).spawn(move || write(&items, file, &path))?;
        Ok(Audit { queue, lost: AtomicU64::new(0) })
    }

    /// Logs one event. `event` and `detail` are this program's own words.
    pub fn log(&self, event: &'static str, user: Option<&Username>, address: Option<IpAddr>, detail: &str) {
        let user = user.map_or("-", Username::as_str);
        let address = address.map_or("-".to_string(), |address| address.to_canonical().to_string());
        let mut line = format!("{} event={event} user={user} addr={address}", clock::utc(clock::now_ms()));
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            line += &format!(" lost_before={lost}");
        }
        if !detail.is_empty() {
            line += &format!(" {}", detail.replace(|c: char| c.is_control(), "?"));
        }
        line.push('\n');
        if self.queue.try_send(Item::Line(line)).is_err() {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        }
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

fn write(items: &Receiver<Item>, mut file: File, path: &Path) {
    let mut size = file.metadata().map_or(0, |data| data.len());
    // A full disk must not stop the server: what cannot be written is dropped.
    for item in items {
        match item {
            Item::Line(line) => {
                if size + line.len() as u64 > MAX_SIZE {
                    rotate(path);
                    size = 0;
                    if let Ok(new) = disk::append(path) {
                        file = new;
                    }
                }
                if file.write_all(line.as_bytes()).is_ok() {
                    size += line.len() as u64;
                }
            }
            Item::Barrier(done) => {
                let _ = file.sync_all();
                let _ = done.send(());
            }
        }
    }
}

fn rotate(path: &Path) {
    let numbered = |n: u32| PathBuf::from(format!("{}.{n}", path.display()));
    for n in (1..KEPT).rev() {
        let _ = fs::rename(numbered(n), numbered(n + 1));
    }
    let _ = fs::rename(path, numbered(1));
}
