//! The accounts: `users.json` and `keys/NAME.pem`.
//!
//! Invariant: `users.json` is only appended to, one JSON record a line, and rewritten only at the start; a
//! registration is answered after its key file and then its record are on disk, a new password or a removal
//! after its record is. A key file without a record keeps its name for that key, so that no damage to
//! `users.json` gives a name to somebody else. No lock is held across a write. Who holds an [`Accounts`] holds the
//! folder's lock: no other process changes it. Once a login was accepted, no password change that was begun before
//! it takes effect.
//! Format: README#server-files.

use super::journal::Journal;
use crate::auth::{Account, NewPassword};
use crate::clock;
use crate::crypto::public::{Fingerprint, IdentityPublicKey};
use crate::crypto::secret::Key;
use crate::disk;
use crate::encoding::Fixed;
use crate::name::Username;
use crate::records::{self, Found, Records, Writers};
use miniserde::{Deserialize, Serialize, json};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use zeroize::Zeroizing;

/// The longest key file that is read, in bytes: a real one has 451.
const MAX_KEY_FILE: usize = 4096;
/// So many superseded lines, and a quarter of all accounts, are worth a rewrite at the start: fewer are read in no time.
const MANY_SUPERSEDED: usize = 100;
/// This number of names is listed, and no more, when key files belong to no account.
const MANY_NAMES: usize = 20;
/// Files of the data folder that are replaced whole, of which a crash may leave the half of the next one.
const REPLACED: [&str; 3] = ["users.json", "locks.json", "salt.secret"];

#[derive(Serialize, Deserialize)]
struct Record {
    name: Username,
    salt: Fixed<32>,
    rounds: u32,
    password_key: Key,
    identity: Fixed<32>,
}

impl Record {
    /// One line, with its end.
    fn line(account: &Account) -> Zeroizing<String> {
        let record = Record {
            name: account.name.clone(),
            salt: Fixed(account.salt),
            rounds: account.rounds,
            password_key: account.password_key.duplicate(),
            identity: Fixed(account.identity.0),
        };
        Zeroizing::new(json::to_string(&record) + "\n")
    }
}

/// The record that an account is no more. The name can be registered again.
#[derive(Serialize, Deserialize)]
struct Removed {
    name: Username,
    /// Always true.
    removed: bool,
}

/// Why an account could not be made.
#[derive(Debug)]
pub enum RegisterError {
    /// Somebody has it, perhaps in another letter case.
    NameTaken,
    /// The disk fails.
    Io(io::Error),
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RegisterError::NameTaken => f.write_str("this name is taken: choose another"),
            RegisterError::Io(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for RegisterError {}

/// All accounts.
pub struct Accounts {
    keys: PathBuf,
    by_name: RwLock<ByName>,
    journal: Journal,
    /// Locked for as long as this is open, against a second process.
    _lock: File,
    /// Makes the salts of names that do not exist.
    secret: Key,
}

/// An account as it stood when a challenge was made for it.
pub struct Seen {
    /// What a password is checked against; a change puts another one in its place.
    pub account: Arc<Account>,
    logins: u64,
}

struct Entry {
    account: Arc<Account>,
    /// Since the start.
    logins: u64,
    /// A new password is on its way to the disk.
    changing: bool,
}

impl Entry {
    fn new(account: Account) -> Entry {
        Entry { account: Arc::new(account), logins: 0, changing: false }
    }

    /// Whether the password is what it was when the challenge was made, and stays so for now.
    fn is_as(&self, seen: &Seen) -> bool {
        !self.changing && Arc::ptr_eq(&self.account, &seen.account)
    }
}

/// By folded name.
type ByName = HashMap<String, Place>;

/// What has a name.
enum Place {
    /// A registration or removal in progress.
    Busy,
    /// A key file under this spelling, which has no record: only its key can be registered.
    Kept(Box<Username>),
    Account(Entry),
}

impl Place {
    fn entry(&self) -> Option<&Entry> {
        match self {
            Place::Account(entry) => Some(entry),
            _ => None,
        }
    }

    /// The exact name of an account or a key file.
    fn name(&self) -> Option<&Username> {
        match self {
            Place::Busy => None,
            Place::Kept(name) => Some(name),
            Place::Account(entry) => Some(&entry.account.name),
        }
    }
}

impl Accounts {
    /// Locks `folder` against other processes, removes what a crash has left there, and reads `users.json`. Also
    /// returns what was repaired or is worth knowing, as sentences.
    ///
    /// # Errors
    /// With the file, the line and the remedy in the text.
    pub fn open(folder: &Path) -> io::Result<(Accounts, Vec<String>)> {
        let lock_path = folder.join("lock");
        let lock = disk::append(&lock_path)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                let text = "another server uses this folder, or `server user` does: stop it, or name another \
                            with --data-dir";
                disk::at(folder)(io::Error::other(text))
            }
            TryLockError::Error(error) => disk::at(&lock_path)(error),
        })?;
        let (path, keys) = (folder.join("users.json"), folder.join("keys"));
        disk::remove_temporary(folder, |name| REPLACED.contains(&name))?;
        disk::remove_temporary(&keys, |name| key_name(name).is_some())?;
        let mut loaded = Loaded::default();
        let opened = Records::open(&path, Writers::One, |line| loaded.take(line));
        let mut records = opened.map_err(|error| with_way_back(&path, error))?;
        let mut notices: Vec<String> = records.repaired().map(String::from).into_iter().collect();
        // A line that was never confirmed counts from now on: it must not vanish with the power.
        records.sync()?;
        disk::sync_parent(&path)?;
        let (removed, kept) = loaded.key_files(&keys)?;
        // These removals were cut off by a crash. As long as their records stand, the next start finds them again.
        let moved = removed
            .iter()
            .map(|name| move_key_aside(&keys, name))
            .fold(Ok(()), Result::and)
            .and_then(|()| File::open(&keys)?.sync_all().map_err(disk::at(&keys)));
        let superseded = loaded.superseded();
        if loaded.is_worth_a_rewrite() {
            let lines =
                loaded.by_name.values().filter_map(Place::entry).map(|entry| Record::line(&entry.account));
            let keep_former = |_: &File| keep_former(&path);
            // A full disk is no reason to serve nobody.
            notices.push(match moved.and_then(|()| records.rewrite(lines, keep_former)) {
                Ok(()) => format!(
                    "users.json: rewritten without {superseded} superseded lines; users.json.old is the file of before"
                ),
                Err(error) => format!("users.json: not rewritten: {error}"),
            });
            // Or what is confirmed from now on could be in a file that a power failure takes away.
            disk::sync_parent(&path)?;
        }
        notices.extend(kept_notice(&kept));
        loaded.by_name.extend(kept.into_iter().map(|name| (name.folded(), Place::Kept(Box::new(name)))));
        let accounts = Accounts {
            keys,
            by_name: RwLock::new(loaded.by_name),
            journal: Journal::new(records),
            _lock: lock,
            secret: fake_salt_secret(&folder.join("salt.secret"))?,
        };
        Ok((accounts, notices))
    }

    /// The account of exactly this name, letter case included; `None` also while it is being made or removed.
    pub fn get(&self, name: &Username) -> Option<Arc<Account>> {
        self.see(name).map(|seen| seen.account)
    }

    /// The same, for a challenge: what [`admit`](Self::admit) or [`change`](Self::change) will compare. `None` as for
    /// [`get`](Self::get).
    pub fn see(&self, name: &Username) -> Option<Seen> {
        let accounts = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        let entry = accounts.get(&name.folded())?.entry().filter(|entry| entry.account.name == *name)?;
        Some(Seen { account: entry.account.clone(), logins: entry.logins })
    }

    /// A login was verified against `seen`: false if the password has changed since. If true, no change
    /// that was begun before takes effect any more, so the client may forget the password of one.
    /// PROTOCOL#login-race.
    pub fn admit(&self, seen: &Seen) -> bool {
        self.update(seen, |entry| entry.is_as(seen), |entry| entry.logins += 1)
    }

    /// Takes a new password; returns when it is on disk. False, and nothing, if the account is no longer as
    /// it was `seen`, or somebody has logged in since.
    ///
    /// # Errors
    /// The disk's; the old password holds then.
    pub fn change(&self, seen: &Seen, new: NewPassword) -> io::Result<bool> {
        let account = Arc::new(new.into_account());
        let untouched = |entry: &Entry| entry.is_as(seen) && entry.logins == seen.logins;
        if !self.update(seen, untouched, |entry| entry.changing = true) {
            return Ok(false);
        }
        let stored = self.journal.append(&Record::line(&account));
        self.update(
            seen,
            |_| true,
            |entry| {
                entry.changing = false;
                if stored.is_ok() {
                    entry.account = account;
                }
            },
        );
        stored.map(|()| true)
    }

    /// Changes the entry of `seen` if it `fits`.
    fn update(&self, seen: &Seen, fits: impl Fn(&Entry) -> bool, change: impl FnOnce(&mut Entry)) -> bool {
        let mut accounts = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        match accounts.get_mut(&seen.account.name.folded()) {
            Some(Place::Account(entry)) if fits(entry) => {
                change(entry);
                true
            }
            _ => false,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        let accounts = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        accounts.values().filter(|place| place.entry().is_some()).count()
    }

    /// The secret behind the salts of unknown names, 32 bytes.
    pub fn secret(&self) -> &Key {
        &self.secret
    }

    /// The identity key of an account, as it stands in `keys/`.
    ///
    /// # Errors
    /// With the path in the text if the file is missing, damaged, or not the key that the account was made with.
    pub fn identity(&self, account: &Account) -> io::Result<IdentityPublicKey> {
        identity_in(&self.keys, account)
    }

    /// Makes an account; returns when it is on disk. PROTOCOL#confirmed, PROTOCOL#name-case, README#key-keeps-name.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing is left behind then.
    pub fn register(&self, account: Account, identity: &IdentityPublicKey) -> Result<(), RegisterError> {
        let folded = account.name.folded();
        let kept = {
            let mut accounts = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
            match accounts.get(&folded) {
                None => {}
                Some(Place::Kept(name)) if **name == account.name => {}
                Some(_) => return Err(RegisterError::NameTaken),
            }
            accounts.insert(folded.clone(), Place::Busy)
        };
        let path = key_path(&self.keys, &account.name);
        // A key file that cannot be read, be it a link to nowhere, keeps the name too.
        let is_kept = kept.is_some() && disk::is_there(&path).unwrap_or(true);
        let is_taken = is_kept && self.identity(&account).is_err();
        let stored = match is_taken {
            true => Err(RegisterError::NameTaken),
            false => disk::replace(&path, identity.to_pem().as_bytes())
                .and_then(|()| self.journal.append(&Record::line(&account)))
                .map_err(RegisterError::Io),
        };
        if stored.is_err() && kept.is_none() {
            // Before the name is free again, or the next one's file would go.
            let _ = std::fs::remove_file(&path);
        }
        let mut accounts = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        match (&stored, kept) {
            (Ok(()), _) => accounts.insert(folded, Place::Account(Entry::new(account))),
            (Err(_), Some(kept)) => accounts.insert(folded, kept),
            (Err(_), None) => accounts.remove(&folded),
        };
        stored
    }

    /// Takes an account away; returns its identity's fingerprint when that is on disk, or `None` if there was only a
    /// key file that kept the name. From the call on nobody logs in to it; when it returns, the name is free. The key
    /// file stays, as `NAME.pem.removed-TIME`.
    ///
    /// # Errors
    /// If nothing has exactly this name, its password is being changed at this moment, or of the disk; the account
    /// stays then.
    pub fn remove(&self, name: &Username) -> io::Result<Option<Fingerprint>> {
        let folded = name.folded();
        let former = {
            let mut accounts = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
            // A registration in progress is not an account yet: it comes after this.
            let place = accounts.get_mut(&folded).filter(|place| place.name() == Some(name));
            match place {
                Some(Place::Account(entry)) if entry.changing => {
                    return Err(io::Error::other("its password is being changed at this moment: try again"));
                }
                Some(place) => std::mem::replace(place, Place::Busy),
                None => {
                    let text = format!("no account has exactly this name: {name} (`user list` shows them)");
                    return Err(io::Error::other(text));
                }
            }
        };
        let identity = former.entry().map(|entry| entry.account.identity);
        let line = json::to_string(&Removed { name: name.clone(), removed: true }) + "\n";
        let stored = self.journal.append(&line);
        if stored.is_ok() {
            // While the name is still taken, or it could be the next one's file.
            let _ = move_key_aside(&self.keys, name);
        }
        let mut accounts = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        match stored {
            Ok(()) => accounts.remove(&folded),
            Err(_) => accounts.insert(folded, former),
        };
        stored.map(|()| identity)
    }
}

fn key_path(keys: &Path, name: &Username) -> PathBuf {
    keys.join(format!("{}.pem", name.as_str()))
}

/// Whose key file has this name.
fn key_name(file: &str) -> Option<Username> {
    file.strip_suffix(".pem")?.parse().ok()
}

/// The key of a removed account. If it cannot be moved now, the next start does it.
fn move_key_aside(keys: &Path, name: &Username) -> io::Result<()> {
    let path = key_path(keys, name);
    let time = clock::utc(clock::now_ms()).replace(['-', ':'], "");
    std::fs::rename(&path, path.with_extension(format!("pem.removed-{time}"))).map_err(disk::at(&path))
}

fn kept_notice(names: &[Username]) -> Option<String> {
    let first: Vec<&str> = names.iter().take(MANY_NAMES).map(Username::as_str).collect();
    let dots = if names.len() > MANY_NAMES { ", …" } else { "" };
    (!names.is_empty()).then(|| {
        format!(
            "keys: {} key files belong to no account, and only their keys can register their names: {}{dots} \
             (`server user remove NAME` frees a name)",
            names.len(),
            first.join(", ")
        )
    })
}

/// [`Accounts::identity`] of an account of the server's data folder, read without a lock.
///
/// # Errors
/// The same.
pub fn identity(folder: &Path, account: &Account) -> io::Result<IdentityPublicKey> {
    identity_in(&folder.join("keys"), account)
}

fn identity_in(keys: &Path, account: &Account) -> io::Result<IdentityPublicKey> {
    let path = key_path(keys, &account.name);
    let bytes = disk::read(&path, MAX_KEY_FILE)?;
    // Without the blanks and blank lines that an editor may have left, which a strict parser refuses.
    let lines =
        disk::text(&bytes).into_iter().flat_map(str::lines).map(str::trim).filter(|line| !line.is_empty());
    let key = IdentityPublicKey::parse_pem(&lines.collect::<Vec<_>>().join("\n")).ok();
    key.filter(|key| key.fingerprint() == account.identity).ok_or_else(|| {
        disk::at(&path)(io::Error::other("not the key this account was made with: restore it from a copy"))
    })
}

/// What was read from `users.json`.
#[derive(Default)]
struct Loaded {
    by_name: ByName,
    /// Names whose last record is a removal, folded.
    removed: HashSet<String>,
    lines: usize,
}

impl Loaded {
    /// Takes one record; false if it is none.
    fn take(&mut self, line: &[u8]) -> bool {
        if let Some(record) = records::parse::<Record>(line) {
            let account = Account {
                name: record.name,
                salt: record.salt.0,
                rounds: record.rounds,
                password_key: record.password_key,
                identity: Fingerprint(record.identity.0),
            };
            let folded = account.name.folded();
            self.removed.remove(&folded);
            self.by_name.insert(folded, Place::Account(Entry::new(account)));
        } else if let Some(Removed { name, removed: true }) = records::parse(line) {
            self.by_name.remove(&name.folded());
            self.removed.insert(name.folded());
        } else {
            return false;
        }
        self.lines += 1;
        true
    }

    fn superseded(&self) -> usize {
        self.lines - self.by_name.len()
    }

    fn is_worth_a_rewrite(&self) -> bool {
        self.superseded() >= MANY_SUPERSEDED.max(self.by_name.len() / 4)
    }

    /// The names of key files that have no account: of those that were removed, and of the others.
    fn key_files(&self, keys: &Path) -> io::Result<(Vec<Username>, Vec<Username>)> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(keys).map_err(disk::at(keys))? {
            let file = entry.map_err(disk::at(keys))?.file_name();
            let name = file.to_str().and_then(key_name);
            names.extend(name.filter(|name| !self.by_name.contains_key(&name.folded())));
        }
        names.sort();
        Ok(names.into_iter().partition(|name| self.removed.contains(&name.folded())))
    }
}

/// With an older copy as another remedy, if there is one.
fn with_way_back(path: &Path, error: io::Error) -> io::Error {
    let former = former(path);
    match former.exists() {
        true => io::Error::other(format!(
            "{error}; or put {} in its place, the file of before the last rewrite: accounts made since are \
             missing then, those removed since are back",
            former.display()
        )),
        false => error,
    }
}

/// What a folder's files say of its accounts, read without a lock and without changing anything.
pub struct Survey {
    /// By name.
    pub accounts: Vec<Arc<Account>>,
    /// What a start would repair in `users.json`, as a sentence.
    pub repair: Option<String>,
    /// What else a start would do or say, as sentences.
    pub notices: Vec<String>,
}

impl Survey {
    /// Also beside a running server. A missing `users.json` has no accounts.
    ///
    /// # Errors
    /// As [`Accounts::open`]'s.
    pub fn of(folder: &Path) -> io::Result<Survey> {
        let (path, mut loaded) = (folder.join("users.json"), Loaded::default());
        let found = match disk::is_there(&path)? {
            true => Some(
                records::read(&path, |line| loaded.take(line))
                    .map_err(|error| with_way_back(&path, error))?,
            ),
            false => None,
        };
        let repair = found.and_then(|found: Found| found.plan(&path));
        let mut notices = Vec::new();
        if loaded.is_worth_a_rewrite() {
            notices.push(format!(
                "users.json: a start rewrites it without {} superseded lines",
                loaded.superseded()
            ));
        }
        let keys = folder.join("keys");
        if disk::is_there(&keys)? {
            notices.extend(kept_notice(&loaded.key_files(&keys)?.1));
        }
        let entries = loaded.by_name.values().filter_map(Place::entry);
        let mut accounts: Vec<_> = entries.map(|entry| entry.account.clone()).collect();
        accounts.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Survey { accounts, repair, notices })
    }
}

fn former(path: &Path) -> PathBuf {
    path.with_extension("json.old")
}

/// The file that is about to be replaced stays under a second name, which the one of before loses only now.
fn keep_former(path: &Path) -> io::Result<()> {
    let former = former(path);
    match std::fs::remove_file(&former) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk::at(&former)(error)),
        _ => {}
    }
    std::fs::hard_link(path, &former).map_err(disk::at(&former))
}

fn fake_salt_secret(path: &Path) -> io::Result<Key> {
    if !disk::is_there(path)? {
        disk::replace(path, Key::random().expose())?;
    }
    read_secret(path)
}

/// Reads `salt.secret`, 32 bytes; an editor may have put a line end behind them.
///
/// # Errors
/// With the path and the remedy in the text if it is missing or has another length.
pub fn read_secret(path: &Path) -> io::Result<Key> {
    let bytes = disk::read_private(path, MAX_KEY_FILE)?;
    let secret = bytes.strip_suffix(b"\n").filter(|rest| rest.len() == 32).unwrap_or(&bytes);
    Key::from_slice(secret).ok_or_else(|| {
        disk::at(path)(io::Error::other(
            "not 32 bytes: restore it from a copy, or remove it to make a new one",
        ))
    })
}

#[cfg(test)]
pub(in crate::server) mod tests {
    use super::*;
    use crate::crypto::keys::IdentityKey;
    use crate::crypto::secret::random;

    /// A data folder, removed at the end.
    pub struct Folder(pub PathBuf);

    impl Folder {
        pub fn new() -> Folder {
            let name: String = random::<8>().iter().map(|b| format!("{b:02x}")).collect();
            let path = std::env::temp_dir().join(format!("accounts-{name}"));
            disk::private_folders(&path, &["keys"]).expect("folder");
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn account(name: &str, identity: &IdentityPublicKey) -> Account {
        Account {
            name: name.parse().expect("name"),
            salt: [1; 32],
            rounds: 600_000,
            password_key: Key::new([2; 32]),
            identity: identity.fingerprint(),
        }
    }

    #[test]
    fn accounts_made_at_the_same_time_are_all_there_after_a_restart() {
        let folder = Folder::new();
        let key = IdentityKey::generate();
        let (accounts, _) = Accounts::open(&folder.0).expect("open");
        std::thread::scope(|scope| {
            for n in 0..8 {
                let (accounts, key) = (&accounts, &key);
                scope.spawn(move || {
                    for m in 0..10 {
                        let new = account(&format!("user{n}-{m}"), key.public());
                        accounts.register(new, key.public()).expect("registered");
                    }
                });
            }
        });
        drop(accounts);
        let (accounts, notices) = Accounts::open(&folder.0).expect("open");
        assert_eq!((accounts.count(), notices), (80, Vec::new()));
        let one = accounts.get(&"user7-9".parse().expect("name")).expect("there");
        assert_eq!(accounts.identity(&one).expect("key").fingerprint(), key.public().fingerprint());
    }

    /// PROTOCOL#name-case, PROTOCOL#registration-limit.
    #[test]
    fn a_name_is_taken_in_every_letter_case() {
        let folder = Folder::new();
        let key = IdentityKey::generate();
        let (accounts, _) = Accounts::open(&folder.0).expect("open");
        accounts.register(account("Alice", key.public()), key.public()).expect("registered");
        let again = accounts.register(account("aLICE", key.public()), key.public());
        assert!(matches!(again, Err(RegisterError::NameTaken)));
        assert!(accounts.get(&"alice".parse().expect("name")).is_none());
        assert!(Accounts::open(&folder.0).is_err(), "a second server on the same folder");
    }

    #[test]
    fn torn_last_line_is_set_aside_and_other_damage_stops_the_start() {
        let folder = Folder::new();
        let path = folder.0.join("users.json");
        let key = IdentityKey::generate();
        for name in ["alice", "bob"] {
            let (accounts, _) = Accounts::open(&folder.0).expect("open");
            accounts.register(account(name, key.public()), key.public()).expect("registered");
        }
        let whole = std::fs::read(&path).expect("read");
        std::fs::write(&path, &whole[..whole.len() - 2]).expect("write");
        let (accounts, notices) = Accounts::open(&folder.0).expect("open");
        assert!(accounts.count() == 1 && notices[0].contains("set aside"), "{notices:?}");
        drop(accounts);
        let mut damaged = whole.clone();
        damaged[5] = b'#';
        std::fs::write(&path, &damaged).expect("write");
        let error = Accounts::open(&folder.0).err().expect("damage").to_string();
        assert!(error.contains("users.json") && error.contains("line 1"), "{error}");
        assert_eq!(std::fs::read(&path).expect("read"), damaged);
    }

    /// PROTOCOL#keys_answer.
    #[test]
    fn a_key_file_that_is_not_the_account_s_is_never_told_as_its_key() {
        let folder = Folder::new();
        let (key, other) = (IdentityKey::generate(), IdentityKey::generate());
        let (accounts, _) = Accounts::open(&folder.0).expect("open");
        accounts.register(account("alice", key.public()), key.public()).expect("registered");
        let alice = accounts.get(&"alice".parse().expect("name")).expect("there");
        let path = folder.0.join("keys/alice.pem");
        for bad in [other.public().to_pem(), String::new(), "x".repeat(10_000)] {
            std::fs::write(&path, bad).expect("write");
            let error = accounts.identity(&alice).expect_err("another key").to_string();
            assert!(error.contains("alice.pem"), "{error}");
        }
        std::fs::write(&path, key.public().to_pem()).expect("write");
        assert!(accounts.identity(&alice).is_ok());
    }

    #[test]
    fn a_removal_is_done_or_not_wherever_its_line_is_torn() {
        let folder = Folder::new();
        let path = folder.0.join("users.json");
        let key = IdentityKey::generate();
        let (accounts, _) = Accounts::open(&folder.0).expect("open");
        accounts.register(account("alice", key.public()), key.public()).expect("registered");
        let before = std::fs::metadata(&path).expect("there").len() as usize;
        let name = "alice".parse().expect("name");
        assert_eq!(accounts.remove(&name).expect("removed"), Some(key.public().fingerprint()));
        assert!(accounts.see(&name).is_none() && accounts.remove(&name).is_err());
        // Nor does a new password that is on its way to the disk bring an account back.
        accounts.register(account("bob", key.public()), key.public()).expect("registered");
        let bob = accounts.see(&"bob".parse().expect("name")).expect("there");
        assert!(accounts.update(&bob, |_| true, |entry| entry.changing = true));
        let error = accounts.remove(&bob.account.name).expect_err("changing").to_string();
        assert!(error.contains("try again"), "{error}");
        assert!(accounts.update(&bob, |_| true, |entry| entry.changing = false));
        accounts.remove(&bob.account.name).expect("removed");
        drop(accounts);
        let text = std::fs::read_to_string(&path).expect("read");
        let whole = text.split_inclusive('\n').take(2).collect::<String>().into_bytes();
        for length in before..=whole.len() {
            std::fs::write(&path, &whole[..length]).expect("write");
            let (accounts, notices) = Accounts::open(&folder.0).expect("open");
            // Without its line end a record counts, too.
            let is_whole = length >= whole.len() - 1;
            assert_eq!(accounts.count(), usize::from(!is_whole), "{length}");
            let torn = notices.iter().any(|notice| notice.contains("set aside"));
            assert_eq!(torn, length > before && !is_whole);
        }
    }

    /// README#key-keeps-name.
    #[test]
    fn key_file_behind_a_broken_link_keeps_its_name() {
        let folder = Folder::new();
        let path = folder.0.join("keys/alice.pem");
        std::os::unix::fs::symlink(folder.0.join("nowhere"), &path).expect("linked");
        let key = IdentityKey::generate();
        let (accounts, _) = Accounts::open(&folder.0).expect("open");
        let taken = accounts.register(account("alice", key.public()), key.public());
        assert!(matches!(taken, Err(RegisterError::NameTaken)) && path.is_symlink());
        // Once it is gone, the name is free.
        std::fs::remove_file(&path).expect("removed");
        accounts.register(account("alice", key.public()), key.public()).expect("made");
    }

    #[test]
    fn removals_and_registrations_of_one_name_at_the_same_time_leave_what_a_restart_finds() {
        let folder = Folder::new();
        let keys = [IdentityKey::generate(), IdentityKey::generate()];
        let name: Username = "alice".parse().expect("name");
        let (accounts, _) = Accounts::open(&folder.0).expect("open");
        std::thread::scope(|scope| {
            for key in &keys {
                let (accounts, name) = (&accounts, &name);
                scope.spawn(move || {
                    for _ in 0..40 {
                        let _ = accounts.register(account("alice", key.public()), key.public());
                        let seen = accounts.get(name);
                        if let Some(seen) = seen.filter(|seen| seen.identity == key.public().fingerprint()) {
                            // It is there whole, or has gone meanwhile.
                            let whole = accounts.identity(&seen).is_ok();
                            assert!(whole || accounts.get(name).is_none_or(|now| !Arc::ptr_eq(&now, &seen)));
                        }
                        let _ = accounts.remove(name);
                    }
                });
            }
        });
        let _ = accounts.register(account("alice", keys[0].public()), keys[0].public());
        let last = accounts.get(&name).map(|account| account.identity);
        drop(accounts);
        let (accounts, _) = Accounts::open(&folder.0).expect("open");
        let found = accounts.get(&name).expect("registered last");
        assert_eq!(Some(found.identity), last);
        assert!(accounts.identity(&found).is_ok());
    }
}
