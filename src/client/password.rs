//! The key file, and the new file that replaces it when the password changes.
//!
//! Invariant: at every moment, at least one of `NAME_private.key` and `NAME_private.key.new` opens with the password
//! that the server expects. The new file is on disk before the server gets the request. After the answer, one of the
//! two is removed. If the outcome is unknown, both stay, and the next login decides: once the server has accepted a
//! login, no earlier change can succeed. A lock on the folder keeps two clients from changing a password at once.
//! Specification: PROTOCOL#changing-the-password.
//!
//! Invariant: each of the two files lists the salt and rounds that the server asks for while it expects that file's
//! password, and the client answers no other challenge: PROTOCOL#known-logins.

use super::account;
use super::connect::{StartError, connect, refusal};
use super::options::Options;
use crate::auth::PasswordKey;
use crate::crypto::key_file::{self, KeyFileError, Login, MAX_LOGINS};
use crate::crypto::keys::IdentityKey;
use crate::crypto::secret::Password;
use crate::disk;
use crate::name::Username;
use crate::protocol::{Challenge, ClientMessage, ErrorCode, ServerMessage};
use miniserde::{Deserialize, json};
use std::cmp::Reverse;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Follows the path of a file that had no list of logins.
const ADOPTED: &str =
    "did not record how this server asks for your password: now it does, and the client accepts nothing else";
const NOT_ADOPTED: &str = "WARNING: your key file cannot be written, so it does not record how this server asks for \
    your password, and a false server could ask for a weaker hash of it";

/// Why the password is not changed, or may not be changed. `Display` says what to do.
#[derive(Debug)]
pub enum ChangeError {
    /// The old password does not open the key file.
    WrongPassword,
    /// Another client is changing it, or an earlier change was interrupted.
    Unsettled,
    /// The change was refused: nothing has changed.
    Refused(StartError),
    /// The server may have changed it.
    Unclear(StartError),
    /// The change is still in progress.
    Unfinished,
    /// The server has changed it, but the disk failed.
    NotReplaced(io::Error),
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LOG_IN: &str = "log in with the new password, or with the old one if that fails";
        match self {
            ChangeError::WrongPassword => {
                f.write_str("your password was not changed: the old password is wrong")
            }
            ChangeError::Unsettled => {
                write!(f, "an earlier change of your password is not complete: leave and {LOG_IN}")
            }
            ChangeError::Refused(error) => write!(f, "your password was not changed: {error}"),
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

/// The paths of the key file of `name` and of its successor. If the key file is a link, it is followed: a change
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
        Err(TryLockError::WouldBlock) => {
            let text = format!("{}: another client is using this key file: try again", path.display());
            Err(io::Error::new(io::ErrorKind::WouldBlock, text))
        }
        _ => Ok(folder),
    }
}

/// The additional member of a successor.
#[derive(Deserialize)]
struct Successor {
    /// `host:port`, as in `known_servers`.
    server: Option<String>,
}

/// Whether the file at `new` was made for the server of `options`, or does not name its server.
fn is_for(options: &Options, new: &Path) -> bool {
    let Ok(bytes) = disk::read_private(new, key_file::MAX_FILE) else { return false };
    let successor = disk::text(&bytes).and_then(|text| json::from_str::<Successor>(text).ok());
    // No server ever got the request for an incomplete file.
    successor.is_none_or(|successor| successor.server.is_none_or(|server| server == options.server()))
}

/// A key, and the form of the password that opened its file.
type Key = (IdentityKey, Password);

/// Opens a key file with the form of the password that fits; the server knows the same form. Also returns its logins;
/// `None` if the password is wrong. PROTOCOL#password-forms.
fn open_file(
    path: &Path,
    name: &Username,
    password: &Password,
) -> Result<(Vec<Login>, Option<Key>), StartError> {
    let text = disk::read_private(path, key_file::MAX_FILE).map_err(StartError::Disk)?;
    let logins = key_file::logins(&text).map_err(StartError::KeyFile)?;
    for form in password.forms() {
        match key_file::open(&text, name, &form) {
            Ok(identity) => return Ok((logins, Some((identity, form)))),
            Err(KeyFileError::WrongPassword) => {}
            Err(error) => return Err(StartError::KeyFile(error)),
        }
    }
    Ok((logins, None))
}

/// The key file or its successor.
struct Version {
    path: PathBuf,
    /// Whether the password opens it.
    opens: bool,
    /// Empty if it has no list.
    logins: Vec<Login>,
    undo: Option<Undo>,
}

/// How to undo a change of a file.
enum Undo {
    Remove,
    /// Write this text, which has these logins.
    Restore(Zeroizing<Vec<u8>>, Vec<Login>),
}

impl Version {
    /// Changes the logins on disk. The caller holds the lock.
    fn edit(&mut self, change: impl FnOnce(&mut Vec<Login>)) -> io::Result<()> {
        let damaged = |error: KeyFileError| disk::at(&self.path)(io::Error::other(error));
        let text = disk::read_private(&self.path, key_file::MAX_FILE)?;
        let former = key_file::logins(&text).map_err(damaged)?;
        let mut logins = former.clone();
        change(&mut logins);
        let edited = key_file::with_logins(&text, &logins).map_err(damaged)?;
        disk::replace(&self.path, edited.as_bytes())?;
        (self.logins, self.undo) = (logins, Some(Undo::Restore(text, former)));
        Ok(())
    }
}

/// Moves or adds a login to the front. The last one is the least recently used, and is dropped first.
fn put_first(logins: &mut Vec<Login>, login: Login) {
    logins.retain(|other| *other != login);
    logins.insert(0, login);
    logins.truncate(MAX_LOGINS);
}

/// An opened key file.
pub struct Opened {
    /// The identity key in it.
    pub identity: Arc<IdentityKey>,
    path: PathBuf,
    /// The key file and its successor, as far as they exist.
    versions: Vec<Version>,
    /// Whether this client may decide between the two.
    decides: bool,
    lock: Option<File>,
}

/// Opens the key file of `name` or the successor that a change has left. Also returns the form of the password that
/// opened it; `None` if there is no key file. PROTOCOL#password-files.
///
/// # Errors
/// [`StartError::KeyFile`], [`StartError::Disk`], of the first existing file.
pub fn open(
    options: &Options,
    name: &Username,
    password: &Password,
) -> Result<Option<(Opened, Password)>, StartError> {
    let (path, new) = paths(options, name);
    // This login decides only with the lock, which another client may hold, and only if the change was
    // for this server.
    let lock = if new.exists() { lock(&path).ok() } else { None };
    let decides = lock.is_some() && is_for(options, &new);
    let (mut versions, mut opened, mut failure) = (Vec::new(), None::<Key>, None);
    // Read through the link: this program does not change the mode of a linked file, and refuses an open one.
    for (named, path) in [(&options.key_path(name), &path), (&new, &new)] {
        match open_file(named, name, password) {
            Ok((logins, found)) => {
                // Only files of the same key may replace each other.
                let is_same = |(first, _): &Key, (key, _): &Key| {
                    first.public().fingerprint() == key.public().fingerprint()
                };
                let fits = |found| opened.as_ref().is_none_or(|first| is_same(first, found));
                let opens = found.as_ref().is_some_and(fits);
                versions.push(Version { path: path.clone(), opens, logins, undo: None });
                failure = failure.or((!opens).then_some(StartError::KeyFile(KeyFileError::WrongPassword)));
                opened = opened.or(found);
            }
            Err(StartError::Disk(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let Some((identity, form)) = opened else { return failure.map_or(Ok(None), Err) };
    Ok(Some((Opened { identity: Arc::new(identity), path, versions, decides, lock }, form)))
}

impl Opened {
    /// A new key, whose file at `path` has this login.
    pub fn made(identity: IdentityKey, path: &Path, login: Login) -> Opened {
        let path = path.to_path_buf();
        let version =
            Version { path: path.clone(), opens: true, logins: vec![login], undo: Some(Undo::Remove) };
        Opened { identity: Arc::new(identity), path, versions: vec![version], decides: false, lock: None }
    }

    fn lock(&mut self) -> io::Result<()> {
        if self.lock.is_none() {
            self.lock = Some(lock(&self.path)?);
        }
        Ok(())
    }

    /// Adds a login that the server has not accepted yet at the end of the list of each opened file, on disk. In a
    /// full list of 8, it replaces the last one, so failed attempts cost at most one entry. A file without a list
    /// stays without one, because its account may already exist.
    ///
    /// # Errors
    /// [`StartError::Disk`]: another client uses the folder, or the disk fails. Nothing has changed then.
    pub fn with(mut self, login: Login) -> Result<Opened, StartError> {
        let add = |logins: &mut Vec<Login>| {
            logins.truncate(MAX_LOGINS - 1);
            logins.push(login);
        };
        self.lock().map_err(StartError::Disk)?;
        let added = self
            .versions
            .iter_mut()
            .filter(|version| version.opens && !version.logins.is_empty())
            .try_for_each(|version| version.edit(add));
        if let Err(error) = added {
            self.take_back();
            return Err(StartError::Disk(error));
        }
        Ok(self)
    }

    /// Undoes [`Opened::with`] or [`Opened::made`] after the server has refused the account.
    pub fn take_back(&mut self) {
        for version in &mut self.versions {
            match version.undo.take() {
                Some(Undo::Restore(text, logins)) => {
                    let _ = disk::replace(&version.path, &text);
                    version.logins = logins;
                }
                Some(Undo::Remove) => _ = fs::remove_file(&version.path),
                None => {}
            }
        }
    }

    /// The index of the file for this login: one that lists it, otherwise one without a list. PROTOCOL#known-logins.
    ///
    /// # Errors
    /// [`StartError::OtherPassword`] if the password does not open that file; [`StartError::UnknownLogin`].
    pub fn place(&self, login: Login) -> Result<usize, StartError> {
        // Prefer a file that lists the login, then one that the password opens.
        let rank = |version: &Version| match (version.logins.contains(&login), version.logins.is_empty()) {
            (true, _) => Some((2, version.opens)),
            (false, true) => Some((1, version.opens)),
            (false, false) => None,
        };
        let ranked = self.versions.iter().enumerate().filter_map(|(at, version)| Some((rank(version)?, at)));
        match ranked.max_by_key(|(rank, at)| (*rank, Reverse(*at))) {
            Some(((_, true), at)) => Ok(at),
            Some(((_, false), _)) => Err(StartError::OtherPassword),
            None => Err(StartError::UnknownLogin(self.path.clone())),
        }
    }

    /// The text of a key file for a new password, in which the new login replaces the one that the server asks for.
    fn successor(&self, challenge: &Challenge, text: &str, new: Login) -> Result<String, StartError> {
        let old = challenge.into();
        let mut logins = self.versions[self.place(old)?].logins.clone();
        logins.retain(|login| *login != old);
        put_first(&mut logins, new);
        key_file::with_logins(text.as_bytes(), &logins).map_err(StartError::KeyFile)
    }

    /// After an accepted login: makes the file for this password the key file, removes the other one, and moves the
    /// login to the front. The next login repeats what fails here. Returns a notice for the user.
    pub fn settle(mut self, login: Login) -> Option<String> {
        let at = self.place(login).ok()?;
        let version = &mut self.versions[at];
        if self.decides {
            let new = self.path.with_extension("key.new");
            let settled =
                if version.path == new { fs::rename(&new, &self.path) } else { fs::remove_file(&new) };
            if settled.and_then(|()| disk::sync_parent(&self.path)).is_ok() {
                version.path.clone_from(&self.path);
            }
        }
        let had_list = !version.logins.is_empty();
        let stored = match version.logins.first() == Some(&login) {
            true => Ok(()),
            false => self.lock().and_then(|()| self.versions[at].edit(|logins| put_first(logins, login))),
        };
        match (had_list, stored) {
            // The order of an existing list does not matter for its protection.
            (true, _) => None,
            (false, Ok(())) => Some(format!("{} {ADOPTED}", self.path.display())),
            (false, Err(error)) => Some(format!("{NOT_ADOPTED}: {error}")),
        }
    }
}

/// Changes the password of `name` in the key file and on the server. Takes up to a second, and the time of the server.
/// Uses its own connection, so the session continues. `keep` gets the key of the new password as soon as the server
/// expects it. PROTOCOL#password-file.
///
/// # Errors
/// [`ChangeError`]; the account always opens with the old or the new password.
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
        io::ErrorKind::WouldBlock if new_path.exists() => ChangeError::Unsettled,
        _ => disk_error(error),
    })?;
    if new_path.exists() {
        return Err(ChangeError::Unsettled);
    }
    let opened = open(options, name, old).map_err(|error| match error {
        StartError::KeyFile(KeyFileError::WrongPassword) => ChangeError::WrongPassword,
        other => Refused(other),
    });
    let no_key = || Refused(StartError::NoKey(name.clone(), path.clone()));
    let (opened, form) = opened?.ok_or_else(no_key)?;
    let identity = &opened.identity;
    // The same password keeps its form: while two files exist, the form must not decide between them.
    let (old, new) = (&form, if old == new { &form } else { new });
    let sealed = key_file::seal(identity, name, new);
    let sealed = format!("{{\"server\":{},{}", json::to_string(&options.server()), &sealed[1..]);
    let key = PasswordKey::new(new);
    let mut connection = connect(options, |_| false).map_err(Refused)?;
    let challenge = account::challenge(&mut connection, name, &opened).map_err(Refused)?;
    let sealed = opened.successor(&challenge, &sealed, key.login).map_err(Refused)?;
    let exporter = connection.channel.exporter().to_vec();
    let request = key.replace(name, &challenge, &exporter, old, identity);
    let request = request.map_err(|error| Refused(StartError::Auth(error)))?;
    disk::write_new(&new_path, sealed.as_bytes()).map_err(disk_error)?;
    match connection.ask(&ClientMessage::PasswordChange(Box::new(request))) {
        Ok(ServerMessage::PasswordChanged) => {
            // Before the disk can fail: the server expects the new password from now on.
            keep(key);
            let replaced = fs::rename(&new_path, &path).map_err(disk::at(&path));
            // A crash may have left the former key under the former password.
            for path in [&path, &new_path] {
                let _ = fs::remove_file(disk::temporary(path));
            }
            replaced.and_then(|()| disk::sync_parent(&path)).map_err(NotReplaced)
        }
        // After a disk failure, the server itself does not know.
        Ok(ServerMessage::Error(failure)) if !failure.is(ErrorCode::ServerError) => {
            let _ = fs::remove_file(&new_path);
            Err(Refused(refusal(&failure, name)))
        }
        Ok(ServerMessage::Error(failure)) => Err(Unclear(refusal(&failure, name))),
        Ok(_) => Err(Unclear(StartError::OutOfPlace)),
        Err(error) => Err(Unclear(error)),
    }
}
