//! What the server keeps on disk: accounts, locked names, the security log, the certificate.
//!
//! Invariant: nothing here knows connections or sessions (`tests/tidy.rs` reads the imports). A start and `--check` read
//! the data folder by the same code; a check makes, changes and locks nothing, so it may run beside a server.
//! Format: README#server-files.

pub mod accounts;
pub mod audit;
pub(super) mod certificates;
mod journal;
pub mod lockout;

use crate::crypto::secret::Key;
use crate::disk;
use crate::records::{self, Records, Writers};
use accounts::Accounts;
use audit::Audit;
use certificates::Certificates;
use lockout::Lockout;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;

/// The folders in the data folder.
pub(super) const FOLDERS: [&str; 3] = ["certs", "keys", "logs"];
/// The longest `salt.secret` that is read, in bytes: it has 32, and perhaps a line end.
const MAX_SECRET: usize = 4096;

/// How the data folder is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// To serve, or to change it: makes what is missing and repairs what can be.
    Start,
    /// To say what a start would find and do: only reads.
    Check,
}

/// A part of the data folder, and what its reader should know, as sentences. `None` if it was only checked.
pub type Opened<T> = io::Result<(Option<T>, Vec<String>)>;

/// All that the server keeps.
pub struct Store {
    /// With them the data folder's lock.
    pub accounts: Accounts,
    /// Makes the salts of names that do not exist, 32 bytes.
    pub salt_secret: Key,
    /// The security log.
    pub audit: Audit,
    /// Failed logins, by name and by address.
    pub lockout: Lockout,
    /// The server's TLS certificate and key. `None` with `--no-tls`.
    pub certificates: Option<Certificates>,
}

/// What the opening of a data folder has found.
pub struct Findings {
    mode: Mode,
    /// Sentences, in a check with the problems among them.
    pub lines: Vec<String>,
    /// Whether a server can start; in a start an error says that it cannot.
    pub is_sound: bool,
}

impl Findings {
    /// None yet.
    pub fn new(mode: Mode) -> Findings {
        Findings { mode, lines: Vec::new(), is_sound: true }
    }

    /// The part; `None` if it was only checked. An error ends a start, and is one of the problems that a check finds.
    pub fn take<T>(&mut self, opened: Opened<T>) -> io::Result<Option<T>> {
        match opened {
            Ok((part, lines)) => {
                self.lines.extend(lines);
                Ok(part)
            }
            Err(error) if self.mode == Mode::Check => {
                self.is_sound = false;
                self.lines.push(format!("problem: {error}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Store {
    /// Opens the data folder `folder`, with a certificate if the server uses `tls`; `None` after a check.
    ///
    /// # Errors
    /// In a start: with file, reason and remedy in the text.
    pub fn open(folder: &Path, tls: bool, findings: &mut Findings) -> io::Result<Option<Store>> {
        let mode = findings.mode;
        findings.lines.extend(lost(folder, tls, mode));
        findings.take(private(folder, mode))?;
        let accounts = findings.take(Accounts::open(folder, mode))?;
        let salt_secret = findings.take(salt_secret(&folder.join("salt.secret"), mode))?;
        let audit = findings.take(Audit::open(&folder.join("logs"), mode))?;
        let lockout = findings.take(Lockout::open(folder, mode))?;
        for notice in &findings.lines {
            audit.iter().for_each(|audit| audit.log("storage_notice", None, None, notice));
        }
        let certificates = match tls {
            true => findings.take(Certificates::open(&folder.join("certs"), mode))?,
            false => None,
        };
        let parts = accounts.zip(salt_secret).zip(audit.zip(lockout));
        Ok(parts.map(|((accounts, salt_secret), (audit, lockout))| Store {
            accounts,
            salt_secret,
            audit,
            lockout,
            certificates,
        }))
    }
}

/// Whether this file of the data folder holds what no other user may read.
fn is_private(name: &str) -> bool {
    ["server.key", "salt.secret", "users.json", "locks.json"].iter().any(|begin| name.starts_with(begin))
}

/// Closes the folders, and private files in them, to other users. Leaves other files as they are; a check reports them, too.
fn private(folder: &Path, mode: Mode) -> Opened<()> {
    let folders = [""].iter().chain(&FOLDERS).map(|name| folder.join(name));
    if mode == Mode::Start {
        disk::private_folders(folder, &FOLDERS)?;
        return Ok((Some(()), folders.flat_map(|path| disk::close_to_others(&path, is_private)).collect()));
    }
    disk::check_folders(folder, &FOLDERS)?;
    let warning = |path: std::path::PathBuf| {
        let ours = path.file_name().and_then(OsStr::to_str).is_some_and(is_private);
        let remedy = if ours { "a start takes them away" } else { "chmod 600" };
        format!("WARNING: {}: others have rights to it: {remedy}", path.display())
    };
    Ok((None, folders.flat_map(|path| disk::open_to_others(&path, |_| true)).map(warning).collect()))
}

/// Reads a file of records; a start opens it and repairs its end. In a check a missing file has no records.
fn load(
    path: &Path,
    writers: Writers,
    mode: Mode,
    each: impl FnMut(&[u8]) -> bool,
) -> io::Result<(Option<Records>, Vec<String>)> {
    if mode == Mode::Start {
        let records = Records::open(path, writers, each)?;
        let repaired = records.repaired().map(String::from).into_iter().collect();
        return Ok((Some(records), repaired));
    }
    if disk::existing(path)?.is_none() {
        return Ok((None, Vec::new()));
    }
    let plan = records::read(path, each)?.plan(path);
    Ok((None, plan.map(|plan| format!("WARNING: {plan}")).into_iter().collect()))
}

/// Warns of what is missing beside existing accounts, and would otherwise be made again in silence.
fn lost(folder: &Path, tls: bool, mode: Mode) -> Vec<String> {
    let is_missing = |name: &&str| disk::is_there(&folder.join(name)).is_ok_and(|is_there| !is_there);
    let has_accounts = fs::metadata(folder.join("users.json")).is_ok_and(|data| data.len() > 0)
        || fs::read_dir(folder.join("keys")).is_ok_and(|mut keys| keys.next().is_some());
    let made = if mode == Mode::Start { "a new one is made" } else { "a start makes a new one" };
    // A certificate without its key stops a start.
    let salt = &["salt.secret"][..];
    let pair = if tls { &["certs/server.key", "certs/server.crt"][..] } else { &[] };
    let secrets = [
        (salt, "anyone who has asked for names before can tell now which of them do not exist"),
        (pair, "every client has to accept the new fingerprint"),
    ];
    let lost =
        secrets.iter().filter(|(files, _)| has_accounts && !files.is_empty() && files.iter().all(is_missing));
    let warning = |(files, change): &(&[&str], &str)| {
        let path = folder.join(files[0]);
        format!(
            "WARNING: {} is missing beside existing accounts: {made}, and {change}; if you have a copy, stop the server, \
             put the copy in its place and start again",
            path.display()
        )
    };
    lost.map(warning).collect()
}

/// Reads `salt.secret`, 32 bytes; an editor may have put a line end behind them.
fn salt_secret(path: &Path, mode: Mode) -> Opened<Key> {
    if !disk::is_there(path)? {
        match mode {
            Mode::Start => disk::replace(path, Key::random().expose())?,
            Mode::Check => return Ok((None, Vec::new())),
        }
    }
    let bytes = disk::read_private(path, MAX_SECRET)?;
    let secret = bytes.strip_suffix(b"\n").filter(|rest| rest.len() == 32).unwrap_or(&bytes);
    let wrong = "not 32 bytes: restore it from a copy, or remove it to make a new one";
    let key = Key::from_slice(secret).ok_or_else(|| disk::at(path)(io::Error::other(wrong)))?;
    Ok((Some(key), Vec::new()))
}
