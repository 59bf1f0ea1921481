//! The server's data on disk: accounts, locked names, messages for absent users, the security log, the certificate.
//!
//! Invariant: nothing here knows connections or sessions (`tests/spec/tidy.rs` reads the imports). [`check`] makes,
//! changes and locks nothing, so it may run beside a server; it reads each file with the same code as a start. Format:
//! OPERATING#server-files.

pub mod accounts;
pub mod audit;
pub(super) mod certificates;
mod files;
pub mod lockout;
pub mod mail;

use crate::crypto::secret::Key;
use crate::disk;
use accounts::Accounts;
use audit::Audit;
use certificates::Certificates;
use files::{Notices, is_private};
use lockout::Lockout;
use mail::Mail;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folders in the data folder.
const FOLDERS: [&str; 3] = ["certs", "keys", "logs"];
/// The file of the secret behind the salts of unknown names.
const SALT_SECRET: &str = "salt.secret";
/// The longest [`SALT_SECRET`] that is read, in bytes: a valid one has 32, and perhaps a line end.
const MAX_SECRET: usize = 4096;

/// Everything that the server stores.
pub struct Store {
    /// The accounts, which hold the data folder's lock.
    pub accounts: Accounts,
    /// The secret behind the salts of names that do not exist, 32 bytes.
    pub salt_secret: Key,
    /// The security log.
    pub audit: Arc<Audit>,
    /// Failed logins, by name and by address.
    pub lockout: Lockout,
    /// Messages for absent users.
    pub mail: Mail,
    /// The server's TLS certificate and key. `None` with `--no-tls`.
    pub certificates: Option<Certificates>,
}

impl Store {
    /// Opens the data folder `folder`, with a certificate if the server uses `tls`. Makes what is missing, repairs what
    /// it can, and locks the folder against other processes. Logs the notices.
    ///
    /// # Errors
    /// With file, reason and remedy in the text; `notices` has what was found before.
    pub fn open(folder: &Path, tls: bool, notices: &mut Notices) -> io::Result<Store> {
        notices.extend(missing_secrets(folder, tls, "a new one was created"));
        check_owner(folder)?;
        disk::private_folders(folder, &FOLDERS)?;
        notices.extend(folders(folder).flat_map(|path| disk::close_to_others(&path, is_private)));
        let accounts = Accounts::open(folder, notices)?;
        let salt_secret = match salt_secret(folder)? {
            Some(secret) => secret,
            None => {
                let secret = Key::random();
                disk::place_new(&folder.join(SALT_SECRET), secret.expose())?;
                secret
            }
        };
        let audit = Arc::new(Audit::open(&folder.join("logs"))?);
        let lockout = Lockout::open(folder, notices)?;
        let mail = Mail::open(folder, audit.clone(), notices)?;
        for notice in notices.iter() {
            audit.log("storage_notice", None, None, notice);
        }
        let certificates = tls.then(|| Certificates::open(&folder.join("certs"), notices)).transpose()?;
        Ok(Store { accounts, salt_secret, audit, lockout, mail, certificates })
    }
}

/// Reports what [`Store::open`] would find and do. Returns the errors with which it would fail.
pub fn check(folder: &Path, tls: bool, notices: &mut Notices) -> Vec<io::Error> {
    notices.extend(missing_secrets(folder, tls, "a start creates a new one"));
    let parts = [
        check_folders(folder, notices),
        accounts::check(folder, notices),
        salt_secret(folder).map(drop),
        disk::existing(&folder.join("logs/security.log")).map(drop),
        lockout::check(folder, notices),
        mail::check(folder, notices),
        if tls { certificates::check(&folder.join("certs"), notices) } else { Ok(()) },
    ];
    parts.into_iter().filter_map(Result::err).collect()
}

/// The data folder and the folders in it.
fn folders(folder: &Path) -> impl Iterator<Item = PathBuf> {
    [folder.to_path_buf()].into_iter().chain(FOLDERS.map(|name| folder.join(name)))
}

/// Refuses folders of another user: their modes cannot be set.
fn check_owner(folder: &Path) -> io::Result<()> {
    let me = fs::metadata("/proc/self")?.uid();
    for path in folders(folder) {
        let owner = fs::metadata(&path).map_or(me, |data| data.uid());
        if me != owner && me != 0 {
            let text = format!("this folder belongs to user {owner}: run as that user, or chown it");
            return Err(disk::error(&path, text));
        }
    }
    Ok(())
}

/// Checks the folders' owner and kinds, and reports every file that other users have access to. A start closes the
/// private ones to them, and leaves the rest.
fn check_folders(folder: &Path, notices: &mut Notices) -> io::Result<()> {
    check_owner(folder)?;
    disk::check_folders(folder, &FOLDERS)?;
    for path in folders(folder).flat_map(|path| disk::open_to_others(&path, |_| true)) {
        let is_ours = path.file_name().and_then(OsStr::to_str).is_some_and(is_private);
        let remedy = if is_ours { "a start closes it" } else { "chmod 600" };
        notices.push(format!("WARNING: {}: other users have access to this file: {remedy}", path.display()));
    }
    Ok(())
}

/// Warns of secrets that are missing beside existing accounts: a start would otherwise replace them silently.
fn missing_secrets(folder: &Path, tls: bool, action: &str) -> Notices {
    let is_missing = |name: &str| matches!(disk::is_there(&folder.join(name)), Ok(false));
    let has_accounts = fs::metadata(folder.join("users.json")).is_ok_and(|data| data.len() > 0)
        || fs::read_dir(folder.join("keys")).is_ok_and(|mut keys| keys.next().is_some());
    let salts = "a client that requested names before can tell which of them do not exist";
    // One of the two without the other is no silent replacement: a certificate without its key stops a start.
    let has_no_pair = tls && is_missing("certs/server.key") && is_missing("certs/server.crt");
    let secrets = [
        (SALT_SECRET, is_missing(SALT_SECRET), salts),
        ("certs/server.key", has_no_pair, "every client has to accept the new fingerprint"),
    ];
    let missing = secrets.into_iter().filter(|(_, is_missing, _)| has_accounts && *is_missing);
    let warning = |(name, _, effect): (&str, bool, &str)| {
        let path = folder.join(name);
        format!(
            "WARNING: {} is missing beside existing accounts: {action}, and {effect}; if you have a copy, stop the \
             server, put the copy in its place and start again",
            path.display()
        )
    };
    missing.map(warning).collect()
}

/// The secret behind the salts of unknown names; `None` if there is none yet. An editor may have added a line end.
fn salt_secret(folder: &Path) -> io::Result<Option<Key>> {
    let path = folder.join(SALT_SECRET);
    if !disk::is_there(&path)? {
        return Ok(None);
    }
    let bytes = disk::read_private(&path, MAX_SECRET)?;
    let secret = bytes.strip_suffix(b"\n").filter(|rest| rest.len() == 32).unwrap_or(&bytes);
    let wrong = "not 32 bytes: restore it from a copy, or remove it to create a new one";
    Key::from_slice(secret).ok_or_else(|| disk::error(&path, wrong)).map(Some)
}
