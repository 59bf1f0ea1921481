//! The accounts: `users.json` and `keys/NAME.pem`.
//!
//! Invariant: the server only appends to `users.json`, one JSON record a line, and rewrites it only at a start. It
//! answers a registration when the key file and then the record are on disk, a new password or a removal when the
//! record is. A key file without a record keeps its name for that key, so that damage to `users.json` gives no name to
//! another user. The map of accounts is not locked during a write. An [`Accounts`] holds the folder's lock: no other
//! process changes the folder. After an accepted login, no password change that began before it takes effect. Format:
//! OPERATING#server-files.

use super::files::{self, Notices};
use crate::auth::{Account, NewPassword};
use crate::clock;
use crate::crypto::public::{Fingerprint, IdentityPublicKey};
use crate::disk;
use crate::name::Username;
use crate::records::{self, Records, Writers};
use crate::server::rates::Bucket;
use crate::sync::lock;
use miniserde::{Deserialize, Serialize, json};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use zeroize::Zeroizing;

/// The longest key file that is read, in bytes: a real one has 451.
const MAX_KEY_FILE: usize = 4096;
/// A start rewrites `users.json` with this number of superseded lines, if there is one for every fourth account: fewer
/// cost little time.
const MANY_SUPERSEDED: usize = 100;
/// The most names in the notice about key files that belong to no account: the line stays readable.
const MANY_NAMES: usize = 20;
/// Files that are replaced as a whole: a crash may leave a temporary file.
const REPLACED: [&str; 3] = ["users.json", "locks.json", "salt.secret"];

/// The record of an account: a line with its end.
fn record(account: &Account) -> Zeroizing<String> {
    Zeroizing::new(json::to_string(account) + "\n")
}

/// The record of a removal. The name can be registered again.
#[derive(Serialize, Deserialize)]
struct Removed {
    name: Username,
    /// Always true.
    removed: bool,
}

/// See the module.
pub struct Accounts {
    keys: PathBuf,
    by_name: Mutex<ByName>,
    /// Held across a write.
    records: Mutex<Records>,
    /// Locked while this is open, against a second process.
    _lock: File,
}

/// An account, as it was when a challenge was made for it.
pub struct Seen {
    /// The account; a password change replaces the `Arc`.
    pub account: Arc<Account>,
    logins: u64,
}

struct Entry {
    account: Arc<Account>,
    /// The number of logins since the start.
    logins: u64,
    /// See [`Accounts::take_certificate`].
    newest: u64,
    /// See [`Accounts::rate`].
    rate: Option<Arc<Mutex<Bucket>>>,
    /// A new password is being written.
    changing: bool,
}

impl Entry {
    fn new(account: Account) -> Entry {
        Entry { account: Arc::new(account), logins: 0, newest: 0, rate: None, changing: false }
    }

    /// Whether the password is still the one of the challenge, and no change is in progress.
    fn is_as(&self, seen: &Seen) -> bool {
        !self.changing && Arc::ptr_eq(&self.account, &seen.account)
    }
}

/// By folded name.
type ByName = HashMap<String, Place>;

/// The state of a name.
enum Place {
    /// A registration or removal in progress.
    Busy,
    /// A key file with this spelling and without a record: only its key can be registered.
    Kept(Username),
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
    /// Locks the data folder `folder` against other processes, and reads its accounts. Removes the remains of a crash,
    /// and rewrites `users.json` if it has many superseded lines.
    ///
    /// # Errors
    /// With the file, the line and the remedy in the text.
    pub fn open(folder: &Path, notices: &mut Notices) -> io::Result<Accounts> {
        let (path, keys) = (folder.join("users.json"), folder.join("keys"));
        let lock = lock_folder(folder)?;
        disk::remove_temporary(folder, |name| REPLACED.contains(&name))?;
        disk::remove_temporary(&keys, |name| key_name(name).is_some())?;
        let mut content = Content::default();
        let opened = Records::open(&path, Writers::One, notices, |line| content.take(line));
        let mut records = opened.map_err(|error| with_former(&path, error))?;
        // A line that was never confirmed counts from now on: a power failure must not remove it.
        records.sync()?;
        disk::sync_parent(&path)?;
        let (removed, kept) = content.unused_key_files(&keys)?;
        // A crash cut these removals short. While their records stand, the next start finds them again.
        let moved = removed.iter().map(|name| move_key_aside(&keys, name)).fold(Ok(()), Result::and);
        let moved = moved.and_then(|()| File::open(&keys)?.sync_all().map_err(disk::at(&keys)));
        if let Some(superseded) = content.superseded() {
            let lines = content.entries().map(|entry| record(&entry.account));
            // A full disk must not keep the server from its start.
            notices.push(match moved.and_then(|()| records.rewrite(lines, |_| keep_former(&path))) {
                Ok(()) => format!(
                    "users.json: rewritten without {superseded} superseded lines; users.json.old is the previous file"
                ),
                Err(error) => format!("the accounts cannot be rewritten: {error}"),
            });
            // Otherwise a power failure could restore the former file, without the records confirmed from now on.
            disk::sync_parent(&path)?;
        }
        notices.extend(kept_notice(&kept));
        content.by_name.extend(kept.into_iter().map(|name| (name.folded(), Place::Kept(name))));
        let (by_name, records) = (Mutex::new(content.by_name), Mutex::new(records));
        Ok(Accounts { keys, by_name, records, _lock: lock })
    }

    /// The account of exactly this name, letter case included; `None` also while it is being created or removed.
    pub fn get(&self, name: &Username) -> Option<Arc<Account>> {
        self.see(name).map(|seen| seen.account)
    }

    /// As [`get`](Self::get), for a challenge: [`admit`](Self::admit) and [`change`](Self::change) compare the account
    /// with it later.
    pub fn see(&self, name: &Username) -> Option<Seen> {
        let accounts = lock(&self.by_name);
        let entry = accounts.get(&name.folded())?.entry().filter(|entry| entry.account.name == *name)?;
        Some(Seen { account: entry.account.clone(), logins: entry.logins })
    }

    /// Counts a login that was verified against `seen`. Returns false if the password has changed since. After true, no
    /// change that began before takes effect, so the client may forget that change's password. PROTOCOL#login-race.
    pub fn admit(&self, seen: &Seen) -> bool {
        self.update(seen, |entry| entry.is_as(seen), |entry| entry.logins += 1)
    }

    /// Notes the `created` of a session certificate that is taken for this account, and returns the highest one before
    /// it since the start: 0 if there was none. Both are in milliseconds since 1970. A restart forgets them: a client
    /// remembers its own, and the time of a certificate is at most 2 hours ahead. PROTOCOL#newest.
    pub fn take_certificate(&self, name: &Username, created: u64) -> u64 {
        let mut accounts = lock(&self.by_name);
        let Some(Place::Account(entry)) = accounts.get_mut(&name.folded()) else { return 0 };
        let newest = entry.newest.max(created);
        std::mem::replace(&mut entry.newest, newest)
    }

    /// The rate of all sessions of this account since the start, `new` at first: otherwise a client that logs in again
    /// and again would have a full bucket each time. PROTOCOL#rate.
    pub fn rate(&self, name: &Username, new: Arc<Mutex<Bucket>>) -> Arc<Mutex<Bucket>> {
        match lock(&self.by_name).get_mut(&name.folded()) {
            Some(Place::Account(entry)) => entry.rate.get_or_insert(new).clone(),
            _ => new,
        }
    }

    /// Takes a new password; returns when it is on disk. Returns false, and changes nothing, if the password has
    /// changed or a login was accepted since the account was `seen`.
    ///
    /// # Errors
    /// The disk's; the old password stays valid then.
    pub fn change(&self, seen: &Seen, new: NewPassword) -> io::Result<bool> {
        let account = Arc::new(new.into_account());
        let is_untouched = |entry: &Entry| entry.is_as(seen) && entry.logins == seen.logins;
        if !self.update(seen, is_untouched, |entry| entry.changing = true) {
            return Ok(false);
        }
        let stored = self.append(&record(&account));
        let settle = |entry: &mut Entry| {
            entry.changing = false;
            if stored.is_ok() {
                entry.account = account;
            }
        };
        self.update(seen, |_| true, settle);
        stored.map(|()| true)
    }

    /// Changes the entry of `seen` if it `fits`.
    fn update(&self, seen: &Seen, fits: impl Fn(&Entry) -> bool, change: impl FnOnce(&mut Entry)) -> bool {
        match lock(&self.by_name).get_mut(&seen.account.name.folded()) {
            Some(Place::Account(entry)) if fits(entry) => {
                change(entry);
                true
            }
            _ => false,
        }
    }

    /// The number of accounts.
    pub fn count(&self) -> usize {
        lock(&self.by_name).values().filter_map(Place::entry).count()
    }

    /// The identity key of an account, read from `keys/`.
    ///
    /// # Errors
    /// With the path in the text if the file is missing, damaged, or not the key that the account was made with.
    pub fn identity(&self, account: &Account) -> io::Result<IdentityPublicKey> {
        identity_in(&self.keys, account)
    }

    /// Creates an account; returns when it is on disk. Returns false if another account or key file has its name,
    /// perhaps in another letter case. PROTOCOL#confirmed, PROTOCOL#name-case, OPERATING#key-keeps-name.
    ///
    /// # Errors
    /// The disk's; no file stays behind then.
    pub fn register(&self, account: Account, identity: &IdentityPublicKey) -> io::Result<bool> {
        let folded = account.name.folded();
        let former = {
            let mut accounts = lock(&self.by_name);
            match accounts.get(&folded) {
                None => {}
                Some(Place::Kept(name)) if *name == account.name => {}
                Some(_) => return Ok(false),
            }
            accounts.insert(folded.clone(), Place::Busy)
        };
        let path = key_path(&self.keys, &account.name);
        // A key file that cannot be read, even a broken link, keeps the name too.
        let is_kept = former.is_some() && disk::is_there(&path).unwrap_or(true);
        let is_free = !is_kept || self.identity(&account).is_ok();
        let mut stored = Ok(is_free);
        if is_free {
            let key = disk::replace(&path, identity.to_pem().as_bytes());
            stored = key.and_then(|()| self.append(&record(&account))).map(|()| true);
        }
        let place = match stored {
            Ok(true) => Some(Place::Account(Entry::new(account))),
            _ => former,
        };
        if place.is_none() {
            // Before the name is free again: afterwards it could be the next account's file.
            let _ = fs::remove_file(&path);
        }
        self.settle(folded, place);
        stored
    }

    /// Removes an account; returns its identity's fingerprint when that is on disk, or `None` if there was only a key
    /// file that kept the name. No login succeeds during the call; afterwards the name is free. The key file stays as
    /// `NAME.pem.removed-TIME`. Calls `removed`, which ends the session, before the name is free, so that it ends no
    /// session of a later account. A login that was verified before checks its account again after it enters the
    /// registry, so no session of a removed account stays.
    ///
    /// # Errors
    /// If nothing has exactly this name, a password change is in progress, or the disk fails; the account stays then.
    pub fn remove(&self, name: &Username, removed: impl FnOnce()) -> io::Result<Option<Fingerprint>> {
        let folded = name.folded();
        let former = match lock(&self.by_name).get_mut(&folded) {
            Some(Place::Account(entry)) if entry.account.name == *name && entry.changing => {
                return Err(io::Error::other("its password is being changed at this moment: try again"));
            }
            // A registration in progress has no name yet.
            Some(place) if place.name() == Some(name) => std::mem::replace(place, Place::Busy),
            _ => {
                let text = format!("no account has exactly this name: {name} (`user list` shows them)");
                return Err(io::Error::other(text));
            }
        };
        let identity = former.entry().map(|entry| entry.account.identity);
        let line = json::to_string(&Removed { name: name.clone(), removed: true }) + "\n";
        let stored = self.append(&line);
        if stored.is_ok() {
            // While the name is still taken: afterwards it could be the next account's file.
            let _ = move_key_aside(&self.keys, name);
            removed();
        }
        self.settle(folded, if stored.is_ok() { None } else { Some(former) });
        stored.map(|()| identity)
    }

    /// Returns when the line is on disk.
    fn append(&self, line: &str) -> io::Result<()> {
        lock(&self.records).append(line.as_bytes(), true).map(drop)
    }

    /// Replaces a [`Place::Busy`].
    fn settle(&self, folded: String, place: Option<Place>) {
        let mut accounts = lock(&self.by_name);
        match place {
            Some(place) => accounts.insert(folded, place),
            None => accounts.remove(&folded),
        };
    }
}

fn lock_folder(folder: &Path) -> io::Result<File> {
    let path = folder.join("lock");
    let file = disk::append(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let text = "another server is using this folder, or `server user` is: stop it, or choose another folder \
                        with --data-dir";
            Err(disk::error(folder, text))
        }
        Err(TryLockError::Error(error)) => Err(disk::at(&path)(error)),
    }
}

fn key_path(keys: &Path, name: &Username) -> PathBuf {
    keys.join(format!("{}.pem", name.as_str()))
}

/// The name of the account whose key file this is.
fn key_name(file: &str) -> Option<Username> {
    file.strip_suffix(".pem")?.parse().ok()
}

/// Renames the key file of a removed account. If that fails now, the next start does it.
fn move_key_aside(keys: &Path, name: &Username) -> io::Result<()> {
    let path = key_path(keys, name);
    let time = clock::utc(clock::now_ms()).replace(['-', ':'], "");
    fs::rename(&path, path.with_extension(format!("pem.removed-{time}"))).map_err(disk::at(&path))
}

fn identity_in(keys: &Path, account: &Account) -> io::Result<IdentityPublicKey> {
    let path = key_path(keys, &account.name);
    let bytes = disk::read(&path, MAX_KEY_FILE)?;
    // An editor may have added spaces and blank lines, which a strict parser refuses.
    let lines = disk::text(&bytes).into_iter().flat_map(str::lines).map(str::trim);
    let pem = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
    let key = IdentityPublicKey::parse_pem(&pem).ok();
    key.filter(|key| key.fingerprint() == account.identity).ok_or_else(|| {
        disk::error(&path, "not the key this account was created with: restore it from a copy")
    })
}

/// The content of `users.json`, up to the last line that was read.
#[derive(Default)]
struct Content {
    by_name: ByName,
    /// Names whose last record is a removal, folded.
    removed: HashSet<String>,
    lines: usize,
}

impl Content {
    /// Takes a line; false if it is not a record.
    fn take(&mut self, line: &[u8]) -> bool {
        if let Some(account) = records::parse::<Account>(line) {
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

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.by_name.values().filter_map(Place::entry)
    }

    /// The number of superseded lines, if they are worth a rewrite.
    fn superseded(&self) -> Option<usize> {
        let superseded = self.lines - self.by_name.len();
        (superseded >= MANY_SUPERSEDED.max(self.by_name.len() / 4)).then_some(superseded)
    }

    /// The names of key files without an account: first those of removed accounts, then the rest.
    fn unused_key_files(&self, keys: &Path) -> io::Result<(Vec<Username>, Vec<Username>)> {
        let mut names = Vec::new();
        if disk::is_there(keys)? {
            for entry in fs::read_dir(keys).map_err(disk::at(keys))? {
                let file = entry.map_err(disk::at(keys))?.file_name();
                let name = file.to_str().and_then(key_name);
                names.extend(name.filter(|name| !self.by_name.contains_key(&name.folded())));
            }
        }
        names.sort();
        Ok(names.into_iter().partition(|name| self.removed.contains(&name.folded())))
    }
}

/// The accounts of the data folder `folder`, by name; read without a lock, also beside a running server. A missing
/// `users.json` has none.
///
/// # Errors
/// As [`Accounts::open`].
pub fn list(folder: &Path) -> io::Result<Vec<Arc<Account>>> {
    read(folder, &mut Notices::new()).map(|(_, accounts)| accounts)
}

/// Reports what [`Accounts::open`] would find and do.
///
/// # Errors
/// As [`Accounts::open`].
pub fn check(folder: &Path, notices: &mut Notices) -> io::Result<()> {
    disk::existing(&folder.join("lock"))?;
    let (content, accounts) = read(folder, notices)?;
    notices.push(format!("{} accounts", accounts.len()));
    if let Some(superseded) = content.superseded() {
        notices.push(format!("users.json: a start rewrites it without {superseded} superseded lines"));
    }
    let keys = folder.join("keys");
    notices.extend(kept_notice(&content.unused_key_files(&keys)?.1));
    // A server starts without these keys, and answers no request for one.
    let damaged = accounts.iter().filter_map(|account| identity_in(&keys, account).err());
    notices.extend(damaged.map(|error| format!("WARNING: {error}")));
    Ok(())
}

/// Reads `users.json` and changes nothing. Returns its content, and the accounts sorted by name.
fn read(folder: &Path, notices: &mut Notices) -> io::Result<(Content, Vec<Arc<Account>>)> {
    let (path, mut content) = (folder.join("users.json"), Content::default());
    files::read_records(&path, notices, |line| content.take(line))
        .map_err(|error| with_former(&path, error))?;
    let mut accounts: Vec<_> = content.entries().map(|entry| entry.account.clone()).collect();
    accounts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((content, accounts))
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

fn former(path: &Path) -> PathBuf {
    path.with_extension("json.old")
}

/// Keeps the file that is about to be replaced under a second name, in place of the previous backup.
fn keep_former(path: &Path) -> io::Result<()> {
    let former = former(path);
    // Ignore the error: there may be no such file; if there is, the link fails too.
    let _ = fs::remove_file(&former);
    fs::hard_link(path, &former).map_err(disk::at(&former))
}

/// Names the file before the last rewrite as another remedy, if it exists.
fn with_former(path: &Path, error: io::Error) -> io::Error {
    let former = former(path);
    if !former.exists() {
        return error;
    }
    io::Error::other(format!(
        "{error}; or put {} in its place, the file before the last rewrite: accounts created since then will be \
         missing, and accounts removed since then will be back",
        former.display()
    ))
}

#[cfg(test)]
pub(in crate::server) mod tests {
    use super::*;
    use crate::crypto::keys::IdentityKey;
    use crate::crypto::secret::{Key, random};
    use crate::encoding::Fixed;

    /// A data folder, removed on drop.
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

    fn open(folder: &Folder) -> io::Result<(Accounts, Notices)> {
        let mut notices = Notices::new();
        Accounts::open(&folder.0, &mut notices).map(|accounts| (accounts, notices))
    }

    fn account(name: &str, identity: &IdentityPublicKey) -> Account {
        Account {
            name: name.parse().expect("name"),
            salt: Fixed([1; 32]),
            rounds: 600_000,
            password_key: Key::new([2; 32]),
            identity: identity.fingerprint(),
        }
    }

    #[test]
    fn concurrent_registrations_survive_a_restart() {
        let folder = Folder::new();
        let key = IdentityKey::generate();
        let (accounts, _) = open(&folder).expect("open");
        std::thread::scope(|scope| {
            for n in 0..8 {
                let (accounts, key) = (&accounts, &key);
                scope.spawn(move || {
                    for m in 0..10 {
                        let new = account(&format!("user{n}-{m}"), key.public());
                        assert!(accounts.register(new, key.public()).expect("written"));
                    }
                });
            }
        });
        drop(accounts);
        let (accounts, notices) = open(&folder).expect("open");
        assert_eq!((accounts.count(), notices), (80, Vec::new()));
        let one = accounts.get(&"user7-9".parse().expect("name")).expect("there");
        assert_eq!(accounts.identity(&one).expect("key").fingerprint(), key.public().fingerprint());
    }

    /// PROTOCOL#name-case, PROTOCOL#registration-limit.
    #[test]
    fn name_is_taken_in_every_letter_case() {
        let folder = Folder::new();
        let key = IdentityKey::generate();
        let (accounts, _) = open(&folder).expect("open");
        assert!(accounts.register(account("Alice", key.public()), key.public()).expect("written"));
        let again = accounts.register(account("aLICE", key.public()), key.public());
        assert!(matches!(again, Ok(false)));
        assert!(accounts.get(&"alice".parse().expect("name")).is_none());
        assert!(open(&folder).is_err(), "a second server on the same folder");
    }

    #[test]
    fn torn_last_line_is_set_aside_and_other_damage_stops_the_start() {
        let folder = Folder::new();
        let path = folder.0.join("users.json");
        let key = IdentityKey::generate();
        for name in ["alice", "bob"] {
            let (accounts, _) = open(&folder).expect("open");
            assert!(accounts.register(account(name, key.public()), key.public()).expect("written"));
        }
        let whole = std::fs::read(&path).expect("read");
        std::fs::write(&path, &whole[..whole.len() - 2]).expect("write");
        let (accounts, notices) = open(&folder).expect("open");
        assert!(accounts.count() == 1 && notices[0].contains("set aside"), "{notices:?}");
        drop(accounts);
        let mut damaged = whole.clone();
        damaged[5] = b'#';
        std::fs::write(&path, &damaged).expect("write");
        let error = open(&folder).err().expect("damage").to_string();
        assert!(error.contains("users.json") && error.contains("line 1"), "{error}");
        assert_eq!(std::fs::read(&path).expect("read"), damaged);
    }

    /// PROTOCOL#keys_answer.
    #[test]
    fn key_file_of_another_key_is_never_given_out() {
        let folder = Folder::new();
        let (key, other) = (IdentityKey::generate(), IdentityKey::generate());
        let (accounts, _) = open(&folder).expect("open");
        assert!(accounts.register(account("alice", key.public()), key.public()).expect("written"));
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

    /// PROTOCOL#login-race.
    #[test]
    fn no_login_is_accepted_while_a_new_password_is_stored() {
        let (folder, key) = (Folder::new(), IdentityKey::generate());
        let (accounts, _) = open(&folder).expect("open");
        assert!(accounts.register(account("alice", key.public()), key.public()).expect("written"));
        let seen = accounts.see(&"alice".parse().expect("name")).expect("there");
        assert!(accounts.update(&seen, |_| true, |entry| entry.changing = true) && !accounts.admit(&seen));
        assert!(accounts.update(&seen, |_| true, |entry| entry.changing = false) && accounts.admit(&seen));
    }

    #[test]
    fn session_of_a_removed_account_ends_before_its_name_is_free() {
        let (folder, key) = (Folder::new(), IdentityKey::generate());
        let (accounts, _) = open(&folder).expect("open");
        let register = || accounts.register(account("alice", key.public()), key.public()).expect("written");
        assert!(register());
        let mut taken = Vec::new();
        let name = "alice".parse().expect("name");
        accounts.remove(&name, || taken.push((accounts.get(&name).is_some(), register()))).expect("removed");
        assert_eq!((taken, register()), (vec![(false, false)], true));
    }

    #[test]
    fn torn_removal_is_complete_or_not_made() {
        let folder = Folder::new();
        let path = folder.0.join("users.json");
        let key = IdentityKey::generate();
        let (accounts, _) = open(&folder).expect("open");
        assert!(accounts.register(account("alice", key.public()), key.public()).expect("written"));
        let before = std::fs::metadata(&path).expect("there").len() as usize;
        let name = "alice".parse().expect("name");
        assert_eq!(accounts.remove(&name, || ()).expect("removed"), Some(key.public().fingerprint()));
        assert!(accounts.see(&name).is_none() && accounts.remove(&name, || ()).is_err());
        // A new password that is being written does not bring an account back.
        assert!(accounts.register(account("bob", key.public()), key.public()).expect("written"));
        let bob = accounts.see(&"bob".parse().expect("name")).expect("there");
        assert!(accounts.update(&bob, |_| true, |entry| entry.changing = true));
        let error = accounts.remove(&bob.account.name, || ()).expect_err("changing").to_string();
        assert!(error.contains("try again"), "{error}");
        assert!(accounts.update(&bob, |_| true, |entry| entry.changing = false));
        accounts.remove(&bob.account.name, || ()).expect("removed");
        drop(accounts);
        let text = std::fs::read_to_string(&path).expect("read");
        let whole = text.split_inclusive('\n').take(2).collect::<String>().into_bytes();
        for length in before..=whole.len() {
            std::fs::write(&path, &whole[..length]).expect("write");
            let (accounts, notices) = open(&folder).expect("open");
            // A record without its line end counts too.
            let is_whole = length >= whole.len() - 1;
            assert_eq!(accounts.count(), usize::from(!is_whole), "{length}");
            let torn = notices.iter().any(|notice| notice.contains("set aside"));
            assert_eq!(torn, length > before && !is_whole);
        }
    }

    /// OPERATING#key-keeps-name.
    #[test]
    fn key_file_behind_a_broken_link_keeps_its_name() {
        let folder = Folder::new();
        let path = folder.0.join("keys/alice.pem");
        std::os::unix::fs::symlink(folder.0.join("nowhere"), &path).expect("linked");
        let key = IdentityKey::generate();
        let (accounts, _) = open(&folder).expect("open");
        let taken = accounts.register(account("alice", key.public()), key.public());
        assert!(matches!(taken, Ok(false)) && path.is_symlink());
        // Without the link, the name is free.
        std::fs::remove_file(&path).expect("removed");
        assert!(accounts.register(account("alice", key.public()), key.public()).expect("written"));
    }

    #[test]
    fn concurrent_removals_and_registrations_survive_a_restart() {
        let folder = Folder::new();
        let keys = [IdentityKey::generate(), IdentityKey::generate()];
        let name: Username = "alice".parse().expect("name");
        let (accounts, _) = open(&folder).expect("open");
        std::thread::scope(|scope| {
            for key in &keys {
                let (accounts, name) = (&accounts, &name);
                scope.spawn(move || {
                    for _ in 0..40 {
                        let _ = accounts.register(account("alice", key.public()), key.public());
                        let seen = accounts.get(name);
                        if let Some(seen) = seen.filter(|seen| seen.identity == key.public().fingerprint()) {
                            // The account is complete, or was removed meanwhile.
                            let whole = accounts.identity(&seen).is_ok();
                            assert!(whole || accounts.get(name).is_none_or(|now| !Arc::ptr_eq(&now, &seen)));
                        }
                        let _ = accounts.remove(name, || ());
                    }
                });
            }
        });
        let _ = accounts.register(account("alice", keys[0].public()), keys[0].public());
        let last = accounts.get(&name).map(|account| account.identity);
        drop(accounts);
        let (accounts, _) = open(&folder).expect("open");
        let found = accounts.get(&name).expect("registered last");
        assert_eq!(Some(found.identity), last);
        assert!(accounts.identity(&found).is_ok());
    }
}
