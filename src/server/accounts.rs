//! The accounts: `users.json` and `keys/NAME.pem`.
//!
//! Invariant: `users.json` is only appended to, one JSON record a line, and rewritten only at the start; a
//! registration is answered after its key file and then its record are on disk, a new password or a removal
//! after its record is. A last line without its end is a torn write and is dropped; any other damage stops
//! the start. No lock is held across a write. Who holds an [`Accounts`] holds the folder's lock: no other
//! process changes it. Once a login was accepted, no password change that was begun before it takes effect.
//! Format: README#server-files.

use super::journal::Journal;
use crate::auth::{Account, NewPassword};
use crate::clock;
use crate::crypto::public::{Fingerprint, IdentityPublicKey};
use crate::crypto::secret::Key;
use crate::disk;
use crate::encoding::Fixed;
use crate::name::Username;
use miniserde::{Deserialize, Serialize, json};
use std::collections::HashMap;
use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use zeroize::Zeroizing;

/// The longest key file that is read, in bytes: a real one has 451.
const MAX_KEY_FILE: usize = 4096;
/// So many superseded lines, and a quarter of all accounts, are worth a rewrite at the start: fewer are read in no time.
const MANY_SUPERSEDED: usize = 100;
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

/// All accounts, by folded name. `None` marks a registration or removal under way.
pub struct Accounts {
    keys: PathBuf,
    by_name: RwLock<ByName>,
    journal: Journal,
    /// Locked for as long as this is open, against a second process.
    _lock: File,
    /// Makes the salts of names that do not exist.
    secret: Key,
}

/// What was found at the start and is worth telling.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Notices {
    /// Bytes of a torn last line that were dropped.
    pub torn: u64,
    /// Superseded lines that a rewrite has dropped, or why it could not be.
    pub dropped: Option<Result<usize, String>>,
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

impl Accounts {
    /// Locks `folder` against other processes, removes what a crash has left there, and reads `users.json`.
    ///
    /// # Errors
    /// With the file, the line and the remedy in the text.
    pub fn open(folder: &Path) -> io::Result<(Accounts, Notices)> {
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
        let is_key =
            |name: &str| name.strip_suffix(".pem").is_some_and(|name| name.parse::<Username>().is_ok());
        disk::remove_temporary(&keys, is_key)?;
        let file = disk::append(&path)?;
        let former = former(&path);
        let (by_name, good, lines) = load(&path)?;
        let torn = file.metadata()?.len() - good;
        if torn > 0 {
            file.set_len(good).map_err(disk::at(&path))?;
        }
        // A line that was never confirmed counts from now on: it must not vanish with the power.
        file.sync_all().map_err(disk::at(&path))?;
        disk::sync_parent(&path)?;
        let superseded = lines - by_name.len();
        let many = superseded >= MANY_SUPERSEDED.max(by_name.len() / 4);
        let (journal, dropped) = match many.then(|| rewrite(&path, &former, &by_name)) {
            None => (Journal::new(file, good), None),
            Some(Ok((new, length))) => {
                // Or what is confirmed from now on could be in a file that a power failure takes away.
                disk::sync_parent(&path)?;
                (Journal::new(new, length), Some(Ok(superseded)))
            }
            // A full disk is no reason to serve nobody.
            Some(Err(error)) => (Journal::new(file, good), Some(Err(error.to_string()))),
        };
        let accounts = Accounts {
            keys,
            by_name: RwLock::new(by_name),
            journal,
            _lock: lock,
            secret: fake_salt_secret(&folder.join("salt.secret"))?,
        };
        Ok((accounts, Notices { torn, dropped }))
    }

    /// The account of exactly this name, letter case included; `None` also while it is being made or removed.
    pub fn get(&self, name: &Username) -> Option<Arc<Account>> {
        self.see(name).map(|seen| seen.account)
    }

    /// The same, for a challenge: what [`admit`](Self::admit) or [`change`](Self::change) will compare. `None` as for
    /// [`get`](Self::get).
    pub fn see(&self, name: &Username) -> Option<Seen> {
        let accounts = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        let entry = accounts.get(&name.folded())?.as_ref().filter(|entry| entry.account.name == *name)?;
        Some(Seen { account: entry.account.clone(), logins: entry.logins })
    }

    /// A login was verified against `seen`: false if the password has changed since. If true, no change
    /// that was begun before takes effect any more, so the client may forget the password of one.
    /// README#login-race.
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
        let entry = accounts.get_mut(&seen.account.name.folded()).and_then(Option::as_mut);
        entry.filter(|entry| fits(entry)).map(change).is_some()
    }

    /// How many there are, those included that are being made or removed.
    pub fn count(&self) -> usize {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).len()
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
        identity(&self.keys, account)
    }

    /// Makes an account; returns when it is on disk. README#confirmed, README#name-case.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing is left behind then.
    pub fn register(&self, account: Account, identity: &IdentityPublicKey) -> Result<(), RegisterError> {
        let folded = account.name.folded();
        {
            let mut accounts = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
            if accounts.contains_key(&folded) {
                return Err(RegisterError::NameTaken);
            }
            accounts.insert(folded.clone(), None);
        }
        let path = key_path(&self.keys, &account.name);
        // One left by a crash before its record was written belongs to nobody.
        let stored = disk::replace(&path, identity.to_pem().as_bytes())
            .and_then(|()| self.journal.append(&Record::line(&account)));
        if stored.is_err() {
            // Before the name is free again, or the next one's file would go.
            let _ = std::fs::remove_file(&path);
        }
        let mut accounts = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        match stored {
            Ok(()) => accounts.insert(folded, Some(Entry::new(account))),
            Err(_) => accounts.remove(&folded),
        };
        stored.map_err(RegisterError::Io)
    }

    /// Takes an account away; returns its identity's fingerprint when that is on disk. From the call on nobody
    /// logs in to it; when it returns, the name is free. The key file stays, as `NAME.pem.removed-TIME`.
    ///
    /// # Errors
    /// If there is no account of exactly this name, its password is being changed at this moment, or of the
    /// disk; the account stays then.
    pub fn remove(&self, name: &Username) -> io::Result<Fingerprint> {
        let folded = name.folded();
        let entry = {
            let mut accounts = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
            let place = accounts.get_mut(&folded);
            // A registration under way is not an account yet: it comes after this.
            match place.filter(|place| place.as_ref().is_some_and(|entry| entry.account.name == *name)) {
                Some(Some(entry)) if entry.changing => {
                    return Err(io::Error::other("its password is being changed at this moment: try again"));
                }
                Some(place) => place.take(),
                None => {
                    let text = format!("no account has exactly this name: {name} (`user list` shows them)");
                    return Err(io::Error::other(text));
                }
            }
        };
        let identity = entry.as_ref().map(|entry| entry.account.identity).expect("filtered above");
        let line = json::to_string(&Removed { name: name.clone(), removed: true }) + "\n";
        let stored = self.journal.append(&line);
        if stored.is_ok() {
            let path = key_path(&self.keys, name);
            let time = clock::utc(clock::now_ms()).replace(['-', ':'], "");
            // While the name is still taken, or it could be the next one's file. If it cannot be moved, the
            // next one's replaces it.
            let _ = std::fs::rename(&path, path.with_extension(format!("pem.removed-{time}")));
        }
        let mut accounts = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        match stored {
            Ok(()) => accounts.remove(&folded),
            Err(_) => accounts.insert(folded, entry),
        };
        stored.map(|()| identity)
    }
}

fn key_path(keys: &Path, name: &Username) -> PathBuf {
    keys.join(format!("{}.pem", name.as_str()))
}

fn identity(keys: &Path, account: &Account) -> io::Result<IdentityPublicKey> {
    let path = key_path(keys, &account.name);
    let bytes = disk::read(&path, MAX_KEY_FILE)?;
    let key = std::str::from_utf8(&bytes).ok().and_then(|pem| IdentityPublicKey::parse_pem(pem).ok());
    key.filter(|key| key.fingerprint() == account.identity).ok_or_else(|| {
        disk::at(&path)(io::Error::other("not the key this account was made with: restore it from a copy"))
    })
}

type ByName = HashMap<String, Option<Entry>>;

/// Reads all records; also returns the bytes and the number of whole lines.
fn load(path: &Path) -> io::Result<(ByName, u64, usize)> {
    let (mut accounts, mut lines) = (HashMap::new(), 0);
    let good = disk::read_lines(path, |line| {
        lines += 1;
        if let Ok(record) = json::from_str::<Record>(line) {
            let account = Account {
                name: record.name,
                salt: record.salt.0,
                rounds: record.rounds,
                password_key: record.password_key,
                identity: Fingerprint(record.identity.0),
            };
            accounts.insert(account.name.folded(), Some(Entry::new(account)));
            return true;
        }
        match json::from_str::<Removed>(line) {
            Ok(Removed { name, removed: true }) => {
                accounts.remove(&name.folded());
                true
            }
            _ => false,
        }
    });
    let former = former(path);
    let way_back = |error: io::Error| match former.exists() {
        true => io::Error::other(format!(
            "{error}; or put {} in its place, the file of before the last rewrite: accounts made since are \
             missing then, those removed since are back",
            former.display()
        )),
        false => error,
    };
    Ok((accounts, good.map_err(way_back)?, lines))
}

/// What a folder's files say of its accounts, read without a lock and without changing anything.
pub struct Survey {
    /// By name.
    pub accounts: Vec<Arc<Account>>,
    /// Bytes behind the last whole line of `users.json`.
    pub torn: u64,
    keys: PathBuf,
}

impl Survey {
    /// Also beside a running server. A missing `users.json` has no accounts.
    ///
    /// # Errors
    /// As [`Accounts::open`]'s.
    pub fn of(folder: &Path) -> io::Result<Survey> {
        let (path, keys) = (folder.join("users.json"), folder.join("keys"));
        if !path.exists() {
            return Ok(Survey { accounts: Vec::new(), torn: 0, keys });
        }
        // Before it is read: what a server appends meanwhile is not torn.
        let length = std::fs::metadata(&path).map_err(disk::at(&path))?.len();
        let (by_name, good, _) = load(&path)?;
        let mut accounts: Vec<_> = by_name.into_values().flatten().map(|entry| entry.account).collect();
        accounts.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Survey { accounts, torn: length.saturating_sub(good), keys })
    }

    /// See [`Accounts::identity`].
    ///
    /// # Errors
    /// The same.
    pub fn identity(&self, account: &Account) -> io::Result<IdentityPublicKey> {
        identity(&self.keys, account)
    }
}

fn former(path: &Path) -> PathBuf {
    path.with_extension("json.old")
}

/// Writes one line for each account into a new file; the former one stays as
/// `former`. The new file, open for appending, and its length; the caller waits for the folder.
fn rewrite(path: &Path, former: &Path, accounts: &ByName) -> io::Result<(File, u64)> {
    let temporary = path.with_extension("json.tmp");
    let remove = |stale: &Path| match std::fs::remove_file(stale) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(disk::at(stale)(error)),
        _ => Ok(()),
    };
    remove(&temporary)?;
    let file = disk::append(&temporary)?;
    let mut writer = BufWriter::new(&file);
    for entry in accounts.values().flatten() {
        writer.write_all(Record::line(&entry.account).as_bytes()).map_err(disk::at(&temporary))?;
    }
    writer.flush().and_then(|()| file.sync_all()).map_err(disk::at(&temporary))?;
    drop(writer);
    let length = file.metadata().map_err(disk::at(&temporary))?.len();
    // The former backup goes only now. A second name first: at no moment is there none.
    remove(former)?;
    std::fs::hard_link(path, former).map_err(disk::at(former))?;
    std::fs::rename(&temporary, path).map_err(disk::at(path))?;
    Ok((file, length))
}

fn fake_salt_secret(path: &Path) -> io::Result<Key> {
    if !path.exists() {
        disk::replace(path, Key::random().expose())?;
    }
    read_secret(path)
}

/// Reads `salt.secret`, 32 bytes.
///
/// # Errors
/// With the path and the remedy in the text if it is missing or has another length.
pub fn read_secret(path: &Path) -> io::Result<Key> {
    Key::from_slice(&Zeroizing::new(disk::read(path, 32)?)).ok_or_else(|| {
        disk::at(path)(io::Error::other(
            "not 32 bytes: restore it from a copy, or remove it to make a new one",
        ))
    })
}

#[cfg(test)]
pub(super) mod tests {
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
        assert_eq!((accounts.count(), notices.torn), (80, 0));
        let one = accounts.get(&"user7-9".parse().expect("name")).expect("there");
        assert_eq!(accounts.identity(&one).expect("key").fingerprint(), key.public().fingerprint());
    }

    /// README#name-case, README#registration-limit.
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
    fn a_torn_last_line_is_dropped_and_other_damage_stops_the_start() {
        let folder = Folder::new();
        let path = folder.0.join("users.json");
        let key = IdentityKey::generate();
        for name in ["alice", "bob"] {
            let (accounts, _) = Accounts::open(&folder.0).expect("open");
            accounts.register(account(name, key.public()), key.public()).expect("registered");
        }
        let whole = std::fs::read(&path).expect("read");
        std::fs::write(&path, &whole[..whole.len() - 1]).expect("write");
        let (accounts, notices) = Accounts::open(&folder.0).expect("open");
        assert!(accounts.count() == 1 && notices.torn > 0);
        drop(accounts);
        let mut damaged = whole.clone();
        damaged[5] = b'#';
        std::fs::write(&path, &damaged).expect("write");
        let error = Accounts::open(&folder.0).err().expect("damage").to_string();
        assert!(error.contains("users.json") && error.contains("line 1"), "{error}");
        assert_eq!(std::fs::read(&path).expect("read"), damaged);
    }

    /// README#keys_answer.
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
        assert_eq!(accounts.remove(&name).expect("removed"), key.public().fingerprint());
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
            assert_eq!(accounts.count(), usize::from(length < whole.len()), "{length}");
            assert_eq!(notices.torn > 0, length > before && length < whole.len());
        }
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
