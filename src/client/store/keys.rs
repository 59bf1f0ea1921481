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

use crate::client::error::{ChangeError, StartError};
use crate::client::options::Options;
use crate::crypto::key_file::{self, KeyFileError, Login, MAX_LOGINS};
use crate::crypto::keys::IdentityKey;
use crate::crypto::secret::Password;
use crate::disk;
use crate::name::Username;
use miniserde::{Deserialize, json};
use std::cmp::Reverse;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Follows the path of a file that had no list of logins and has one now.
const ADOPTED: &str = "now records how this server asks for your password; the client accepts nothing else";
const NOT_ADOPTED: &str = "WARNING: your key file cannot be written, so it does not record how this server asks for \
    your password, and a false server could ask for a weaker hash of it";

/// The paths of the key file of `name` and of its successor. If the key file is a link, it is followed: a change
/// replaces the file, not the link.
fn paths(options: &Options, name: &Username) -> (PathBuf, PathBuf) {
    let path = options.key_path(name);
    let path = fs::canonicalize(&path).unwrap_or(path);
    let new = successor(&path);
    (path, new)
}

fn successor(path: &Path) -> PathBuf {
    path.with_extension("key.new")
}

/// The folder, locked against other clients until it is dropped.
fn lock(path: &Path) -> io::Result<File> {
    let folder = File::open(path.parent().unwrap_or(Path::new(".")))?;
    if disk::try_lock(&folder)? {
        return Ok(folder);
    }
    let text = format!("{}: another client is using this key file: try again", path.display());
    Err(io::Error::new(io::ErrorKind::WouldBlock, text))
}

/// The member that only a successor has.
#[derive(Deserialize)]
struct Successor {
    /// `host:port`, as in `known_servers`.
    server: Option<String>,
}

/// Whether the file at `new` was made for the server of `options`, or does not name its server.
fn is_for(options: &Options, new: &Path) -> bool {
    let Ok(bytes) = disk::read_private(new, key_file::MAX_FILE) else { return false };
    let successor = disk::text(&bytes).and_then(|text| json::from_str::<Successor>(text).ok());
    // An incomplete file is for any server: its change was never requested.
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
struct KeyFile {
    path: PathBuf,
    /// Whether the password opens it.
    opens: bool,
    /// Empty if it has no list.
    logins: Vec<Login>,
    /// The text before a change that may be taken back.
    former: Option<Zeroizing<Vec<u8>>>,
}

impl KeyFile {
    /// Changes the logins on disk. The caller holds the lock.
    fn edit(&mut self, change: impl FnOnce(&mut Vec<Login>)) -> io::Result<()> {
        let damaged = |error: KeyFileError| disk::at(&self.path)(io::Error::other(error));
        let text = disk::read_private(&self.path, key_file::MAX_FILE)?;
        let mut logins = key_file::logins(&text).map_err(damaged)?;
        change(&mut logins);
        let edited = key_file::with_logins(&text, &logins).map_err(damaged)?;
        disk::replace(&self.path, edited.as_bytes())?;
        (self.logins, self.former) = (logins, Some(text));
        Ok(())
    }
}

/// Moves or adds a login to the front. The last one is the least recently used, and is dropped first.
fn put_first(logins: &mut Vec<Login>, login: Login) {
    logins.retain(|other| *other != login);
    logins.insert(0, login);
    logins.truncate(MAX_LOGINS);
}

/// The key files of a user, and the identity key in them.
pub struct KeyFiles {
    /// The identity key that the password has opened.
    pub identity: Arc<IdentityKey>,
    path: PathBuf,
    /// The key file and its successor, as far as they exist.
    files: Vec<KeyFile>,
    /// Whether this client has just created the key file.
    is_new: bool,
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
) -> Result<Option<(KeyFiles, Password)>, StartError> {
    let (path, new) = paths(options, name);
    // This login decides only with the lock, which another client may hold, and only if the change was
    // for this server.
    let lock = if new.exists() { lock(&path).ok() } else { None };
    let decides = lock.is_some() && is_for(options, &new);
    let (mut files, mut opened, mut failure) = (Vec::new(), None::<Key>, None);
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
                files.push(KeyFile { path: path.clone(), opens, logins, former: None });
                failure = failure.or((!opens).then_some(StartError::KeyFile(KeyFileError::WrongPassword)));
                opened = opened.or(found);
            }
            Err(StartError::Disk(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let Some((identity, form)) = opened else { return failure.map_or(Ok(None), Err) };
    Ok(Some((KeyFiles { identity: Arc::new(identity), path, files, is_new: false, decides, lock }, form)))
}

/// Opens the key file with the `old` password, to change it. No other client can change a key file of the folder until
/// the result is dropped.
///
/// # Errors
/// [`ChangeError`], except [`ChangeError::Unclear`].
pub fn open_for_change(
    options: &Options,
    name: &Username,
    old: &Password,
) -> Result<(KeyFiles, Password), ChangeError> {
    let (path, new) = paths(options, name);
    let lock = lock(&path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock if new.exists() => ChangeError::Unsettled,
        _ => ChangeError::Refused(StartError::Disk(error)),
    })?;
    if new.exists() {
        return Err(ChangeError::Unsettled);
    }
    match open(options, name, old) {
        Ok(Some((files, form))) => Ok((KeyFiles { lock: Some(lock), ..files }, form)),
        Ok(None) => Err(ChangeError::Refused(StartError::NoKey(name.clone(), path))),
        Err(StartError::KeyFile(KeyFileError::WrongPassword)) => Err(ChangeError::WrongPassword),
        Err(error) => Err(ChangeError::Refused(error)),
    }
}

impl KeyFiles {
    /// Makes a new key, in a new key file that lists this login.
    ///
    /// # Errors
    /// [`StartError::Disk`], also if the file exists.
    pub fn make(
        path: &Path,
        name: &Username,
        password: &Password,
        login: Login,
    ) -> Result<KeyFiles, StartError> {
        let (identity, path) = (IdentityKey::generate(), path.to_path_buf());
        let text = key_file::seal(&identity, name, password);
        let text = key_file::with_logins(text.as_bytes(), &[login]).map_err(StartError::KeyFile)?;
        disk::write_new(&path, text.as_bytes()).map_err(StartError::Disk)?;
        let files = vec![KeyFile { path: path.clone(), opens: true, logins: vec![login], former: None }];
        Ok(KeyFiles { identity: Arc::new(identity), path, files, is_new: true, decides: false, lock: None })
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
    /// [`StartError::Disk`]: another client uses the folder, or the disk fails. The files are then unchanged.
    pub fn with(mut self, login: Login) -> Result<KeyFiles, StartError> {
        let add = |logins: &mut Vec<Login>| {
            logins.truncate(MAX_LOGINS - 1);
            logins.push(login);
        };
        self.lock().map_err(StartError::Disk)?;
        let mut listed = self.files.iter_mut().filter(|file| file.opens && !file.logins.is_empty());
        if let Err(error) = listed.try_for_each(|file| file.edit(add)) {
            self.take_back();
            return Err(StartError::Disk(error));
        }
        Ok(self)
    }

    /// Undoes [`KeyFiles::with`] or [`KeyFiles::make`] after the server has refused the account.
    pub fn take_back(&mut self) {
        if self.is_new {
            let _ = fs::remove_file(&self.path);
        }
        for file in &mut self.files {
            if let Some(text) = file.former.take() {
                let _ = disk::replace(&file.path, &text);
                file.logins = key_file::logins(&text).unwrap_or_default();
            }
        }
    }

    /// The index of the file for this login: one that lists it, otherwise one without a list. PROTOCOL#known-logins.
    ///
    /// # Errors
    /// [`StartError::OtherPassword`] if the password does not open that file; [`StartError::UnknownLogin`].
    pub fn place(&self, login: Login) -> Result<usize, StartError> {
        // Prefer a file that lists the login, then one that the password opens.
        let rank = |file: &KeyFile| match (file.logins.contains(&login), file.logins.is_empty()) {
            (true, _) => Some((2, file.opens)),
            (false, true) => Some((1, file.opens)),
            (false, false) => None,
        };
        let ranked = self.files.iter().enumerate().filter_map(|(at, file)| Some((rank(file)?, at)));
        match ranked.max_by_key(|(rank, at)| (*rank, Reverse(*at))) {
            Some(((_, true), at)) => Ok(at),
            Some(((_, false), _)) => Err(StartError::OtherPassword),
            None => Err(StartError::UnknownLogin(self.path.clone())),
        }
    }

    /// After an accepted login: makes the file for this password the key file, removes the other one, and moves the
    /// login to the front. The next login repeats what fails here. Returns a notice for the user.
    pub fn settle(mut self, login: Login) -> Option<String> {
        let at = self.place(login).ok()?;
        let (new, file) = (successor(&self.path), &mut self.files[at]);
        if self.decides {
            let settled = if file.path == new { fs::rename(&new, &self.path) } else { fs::remove_file(&new) };
            if settled.and_then(|()| disk::sync_parent(&self.path)).is_ok() {
                file.path.clone_from(&self.path);
            }
        }
        let had_list = !file.logins.is_empty();
        let stored = match file.logins.first() == Some(&login) {
            true => Ok(()),
            false => self.lock().and_then(|()| self.files[at].edit(|logins| put_first(logins, login))),
        };
        match (had_list, stored) {
            // The order of an existing list does not matter for its protection.
            (true, _) => None,
            (false, Ok(())) => Some(format!("{} {ADOPTED}", self.path.display())),
            (false, Err(error)) => Some(format!("{NOT_ADOPTED}: {error}")),
        }
    }

    /// Writes the successor with the text `sealed`, for the new password of the account on `server`: its login `new`
    /// replaces `old`. It is on disk when this returns.
    ///
    /// # Errors
    /// As [`KeyFiles::place`] for `old`; [`StartError::Disk`].
    pub fn write_successor(
        &self,
        server: &str,
        sealed: &str,
        old: Login,
        new: Login,
    ) -> Result<(), StartError> {
        let mut logins = self.files[self.place(old)?].logins.clone();
        logins.retain(|login| *login != old);
        put_first(&mut logins, new);
        let text = format!("{{\"server\":{},{}", json::to_string(server), &sealed[1..]);
        let text = key_file::with_logins(text.as_bytes(), &logins).map_err(StartError::KeyFile)?;
        disk::write_new(&successor(&self.path), text.as_bytes()).map_err(StartError::Disk)
    }

    /// Makes the successor the key file, after the server has accepted the new password.
    ///
    /// # Errors
    /// The disk's.
    pub fn take_successor(&self) -> io::Result<()> {
        let (path, new) = (&self.path, successor(&self.path));
        let replaced = fs::rename(&new, path).map_err(disk::at(path));
        // A crash may have left the former key under the former password.
        for path in [path, &new] {
            let _ = fs::remove_file(disk::temporary(path));
        }
        replaced.and_then(|()| disk::sync_parent(path))
    }

    /// Removes the successor, after the server has refused the new password.
    pub fn drop_successor(&self) {
        let _ = fs::remove_file(successor(&self.path));
    }
}
