//! The key file, and the one that takes its place when the password changes.
//!
//! Invariant: at every moment at least one of `NAME_private.key` and `NAME_private.key.new` opens with the
//! password that the server wants. The new one is on disk before the server is asked; the server makes the
//! change or does not; then one of the two goes. If it is not known which, both stay, and the next login
//! finds out: the server decides, and a login that it has accepted outdates every change begun before.
//! A lock on the folder keeps two clients from doing this at once. Specification: PROTOCOL#changing-the-password.

use super::account;
use super::connect::{StartError, connect, refusal};
use super::options::Options;
use crate::auth::PasswordKey;
use crate::crypto::key_file::{self, KeyFileError};
use crate::crypto::keys::IdentityKey;
use crate::crypto::secret::Password;
use crate::disk;
use crate::name::Username;
use crate::protocol::{ClientMessage, ErrorCode, ServerMessage};
use miniserde::{Deserialize, json};
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why the password is not changed, or may not be. `Display` says what to do.
#[derive(Debug)]
pub enum ChangeError {
    /// The old password does not open the key file.
    WrongPassword,
    /// Another client changes it, or an earlier change has broken off.
    Unsettled,
    /// Nothing has changed.
    Refused(StartError),
    /// The server may have changed it.
    Unclear(StartError),
    /// It is still under way.
    Unfinished,
    /// The server has changed it; the disk fails.
    NotReplaced(io::Error),
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LOG_IN: &str = "log in with the new password, or else with the old one";
        match self {
            ChangeError::WrongPassword => {
                f.write_str("your password is not changed: the old one is wrong, it does not open your key")
            }
            ChangeError::Unsettled => {
                write!(f, "an earlier change of your password is not complete: leave and {LOG_IN}")
            }
            ChangeError::Refused(error) => write!(f, "your password is not changed: {error}"),
            ChangeError::Unclear(error) => {
                write!(f, "it is not known whether your password was changed: {error}; leave and {LOG_IN}")
            }
            ChangeError::Unfinished => {
                write!(f, "it is not known whether your password was changed: next time, {LOG_IN}")
            }
            ChangeError::NotReplaced(error) => write!(
                f,
                "your password is changed, but the key file cannot be replaced: {error}; log in with the new one"
            ),
        }
    }
}

impl std::error::Error for ChangeError {}

/// The key file of `name`, and its successor. A link to the file, as some keep in their home, is followed: a change
/// replaces the file, not the link.
fn paths(options: &Options, name: &Username) -> (PathBuf, PathBuf) {
    let path = options.key_path(name);
    let path = fs::canonicalize(&path).unwrap_or(path);
    let new = path.with_extension("key.new");
    (path, new)
}

/// The folder, locked against other clients until it is dropped.
fn lock(path: &Path) -> io::Result<File> {
    let folder = File::open(path.parent().unwrap_or(Path::new(".")))?;
    match folder.try_lock() {
        Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::Unsupported => Err(error),
        Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
        _ => Ok(folder),
    }
}

/// What a successor says beside what makes it a key file.
#[derive(Deserialize)]
struct Successor {
    /// `host:port`, as in `known_servers`.
    server: Option<String>,
}

/// Whether the file at `new` was made for the server of `options`, as far as it says.
fn is_for(options: &Options, new: &Path) -> bool {
    let Ok(bytes) = disk::read_private(new, key_file::MAX_FILE) else { return false };
    let successor = disk::text(&bytes).and_then(|text| json::from_str::<Successor>(text).ok());
    // One that was never written whole was never announced to any server.
    successor.is_none_or(|successor| successor.server.is_none_or(|server| server == options.server()))
}

/// Opens a key file with the form of the password that fits it; the server knows the account by the same form.
/// PROTOCOL#password-forms.
fn open_file(
    path: &Path,
    name: &Username,
    password: &Password,
) -> Result<(IdentityKey, Password), StartError> {
    let text = disk::read_private(path, key_file::MAX_FILE).map_err(StartError::Disk)?;
    for form in password.forms() {
        match key_file::open(&text, name, &form) {
            Ok(identity) => return Ok((identity, form)),
            Err(KeyFileError::WrongPassword) => {}
            Err(error) => return Err(StartError::KeyFile(error)),
        }
    }
    Err(StartError::KeyFile(KeyFileError::WrongPassword))
}

/// What the password has opened.
pub struct Opened {
    /// Out of the file that the password has opened.
    pub identity: Arc<IdentityKey>,
    /// There are two files, and this client may decide between them.
    choice: Option<Choice>,
}

struct Choice {
    path: PathBuf,
    new: PathBuf,
    by_new: bool,
    _lock: File,
}

/// Opens the key file of `name`, or the one that a change has left beside it, with the form of the password that
/// has opened it; `None` if there is none. PROTOCOL#password-files.
///
/// # Errors
/// [`StartError::KeyFile`], [`StartError::Disk`], of the first file that is there.
pub fn open(
    options: &Options,
    name: &Username,
    password: &Password,
) -> Result<Option<(Opened, Password)>, StartError> {
    let (path, new) = paths(options, name);
    // Without the lock nothing is decided now: another client is at it. Nor is it here if another server
    // was asked for the change.
    let lock = if new.exists() { lock(&path).ok().filter(|_| is_for(options, &new)) } else { None };
    let mut failure = None;
    for by_new in [false, true] {
        // Through the link: a file behind one is not closed to others by this program, and is refused if it is open.
        let file = if by_new { &new } else { &options.key_path(name) };
        match open_file(file, name, password) {
            Ok((identity, form)) => {
                let choice = lock.map(|_lock| Choice { path, new, by_new, _lock });
                return Ok(Some((Opened { identity: Arc::new(identity), choice }, form)));
            }
            Err(StartError::Disk(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(None), Err)
}

impl Opened {
    /// A key whose file has no successor.
    pub fn alone(identity: IdentityKey) -> Opened {
        Opened { identity: Arc::new(identity), choice: None }
    }

    /// The server has let this password in: the file that it opened is the key file, the other one goes. What
    /// fails here is done at the next login.
    pub fn settle(&self) {
        if let Some(Choice { path, new, by_new, .. }) = &self.choice {
            let settled = if *by_new { fs::rename(new, path) } else { fs::remove_file(new) };
            let _ = settled.and_then(|()| disk::sync_parent(path));
        }
    }
}

/// Changes the password of `name`, of the key file and on the server together; up to a second, and as long as
/// the server takes. On a connection of its own: the session goes on meanwhile, and after. `keep` gets what stands for
/// the new password, as soon as the server expects that. PROTOCOL#password-file.
///
/// # Errors
/// [`ChangeError`]; in any case the account can be used with the old or the new password.
pub fn change(
    options: &Options,
    name: &Username,
    old: &Password,
    new: &Password,
    keep: impl FnOnce(PasswordKey),
) -> Result<(), ChangeError> {
    use ChangeError::{NotReplaced, Refused, Unclear};
    let disk_error = |error| Refused(StartError::Disk(error));
    if !new.is_long_enough() {
        return Err(Refused(StartError::ShortPassword));
    }
    let (path, new_path) = paths(options, name);
    let _lock = lock(&path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => ChangeError::Unsettled,
        _ => disk_error(error),
    })?;
    if new_path.exists() {
        return Err(ChangeError::Unsettled);
    }
    let opened = open_file(&options.key_path(name), name, old).map_err(|error| match error {
        StartError::KeyFile(KeyFileError::WrongPassword) => ChangeError::WrongPassword,
        other => Refused(other),
    });
    let (identity, form) = opened?;
    // The same password again keeps its form: while two files are there, the form must not decide between them.
    let (old, new) = (&form, if old == new { &form } else { new });
    let sealed = key_file::seal(&identity, name, new);
    let sealed = format!("{{\"server\":{},{}", json::to_string(&options.server()), &sealed[1..]);
    let key = PasswordKey::new(new);
    let mut connection = connect(options, |_| false).map_err(Refused)?;
    let challenge = account::challenge(&mut connection, name, &identity).map_err(Refused)?;
    let exporter = connection.channel.exporter().to_vec();
    let request = key.replace(name, &challenge, &exporter, old, &identity);
    let request = request.map_err(|error| Refused(StartError::Auth(error)))?;
    disk::write_new(&new_path, sealed.as_bytes()).map_err(disk_error)?;
    match connection.ask(&ClientMessage::PasswordChange(Box::new(request))) {
        Ok(ServerMessage::PasswordChanged) => {
            // Whatever the disk does: the server expects it from now on.
            keep(key);
            let replaced = fs::rename(&new_path, &path).map_err(disk::at(&path));
            replaced.and_then(|()| disk::sync_parent(&path)).map_err(NotReplaced)
        }
        // A server whose disk has failed cannot be sure itself.
        Ok(ServerMessage::Error(failure)) if !failure.is(ErrorCode::ServerError) => {
            let _ = fs::remove_file(&new_path);
            Err(Refused(refusal(&failure, name)))
        }
        Ok(ServerMessage::Error(failure)) => Err(Unclear(refusal(&failure, name))),
        Ok(_) => Err(Unclear(StartError::OutOfPlace)),
        Err(error) => Err(Unclear(error)),
    }
}
