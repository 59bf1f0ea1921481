//! The accounts: `users.json` and `keys/NAME.pem`.
//!
//! Invariant: `users.json` is only appended to, one JSON record a line, and rewritten only at the start; a
//! registration is answered after its key file and then its record are on disk, a new password after its
//! record is. Simultaneous ones share one fsync. A last line without its end is a torn write and is
//! dropped; any other damage stops the start. No lock is held across a write. Once a login was accepted,
//! no password change that was begun before it takes effect. Format: README, "Server files".

use super::lock;
use crate::auth::{Account, NewPassword};
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
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, RwLock};
use zeroize::Zeroizing;

/// The longest key file that is read, in bytes: a real one has 451.
const MAX_KEY_FILE: usize = 4096;
/// So many superseded lines, and a quarter of all accounts, are worth a rewrite at the start.
const MANY_SUPERSEDED: usize = 100;

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

/// Why an account could not be made.
#[derive(Debug)]
pub enum RegisterError {
    /// Somebody has it, perhaps in another letter case.
    NameTaken,
    /// The disk.
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

/// All accounts, by folded name. `None` marks a registration under way.
pub struct Accounts {
    keys: PathBuf,
    by_name: RwLock<ByName>,
    journal: Journal,
    /// The file of before a rewrite, which stays locked: a second server may have opened it just then.
    _former: Option<File>,
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
    /// Reads `users.json` of `folder`, and locks it against a second server.
    ///
    /// # Errors
    /// With the file, the line and the remedy in the text.
    pub fn open(folder: &Path) -> io::Result<(Accounts, Notices)> {
        let path = folder.join("users.json");
        let file = disk::append(&path)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => disk::at(&path)(io::Error::other("another server uses this folder")),
            TryLockError::Error(error) => disk::at(&path)(error),
        })?;
        let former = path.with_extension("json.old");
        let (by_name, good, lines) = load(&path).map_err(|error| match former.exists() {
            true => {
                io::Error::other(format!("{error} ({} is from before the last rewrite)", former.display()))
            }
            false => error,
        })?;
        let torn = file.metadata()?.len() - good;
        if torn > 0 {
            file.set_len(good).map_err(disk::at(&path))?;
        }
        // A line that was never confirmed counts from now on: it must not vanish with the power.
        file.sync_all().map_err(disk::at(&path))?;
        disk::sync_parent(&path)?;
        let superseded = lines - by_name.len();
        let many = superseded >= MANY_SUPERSEDED.max(by_name.len() / 4);
        let (journal, _former, dropped) = match many.then(|| rewrite(&path, &former, &by_name)) {
            None => (Journal::new(file, good), None, None),
            Some(Ok((new, length))) => {
                // Or what is confirmed from now on could be in a file that a power failure takes away.
                disk::sync_parent(&path)?;
                (Journal::new(new, length), Some(file), Some(Ok(superseded)))
            }
            // A full disk is no reason to serve nobody.
            Some(Err(error)) => (Journal::new(file, good), None, Some(Err(error.to_string()))),
        };
        let accounts = Accounts {
            keys: folder.join("keys"),
            by_name: RwLock::new(by_name),
            journal,
            _former,
            secret: fake_salt_secret(&folder.join("salt.secret"))?,
        };
        Ok((accounts, Notices { torn, dropped }))
    }

    /// The account of exactly this name.
    pub fn get(&self, name: &Username) -> Option<Arc<Account>> {
        self.see(name).map(|seen| seen.account)
    }

    /// The same, for a challenge: what [`admit`](Self::admit) or [`change`](Self::change) will compare.
    pub fn see(&self, name: &Username) -> Option<Seen> {
        let accounts = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        let entry = accounts.get(&name.folded())?.as_ref().filter(|entry| entry.account.name == *name)?;
        Some(Seen { account: entry.account.clone(), logins: entry.logins })
    }

    /// A login was verified against `seen`: false if the password has changed since. If true, no change
    /// that was begun before takes effect any more, so the client may forget the password of one.
    pub fn admit(&self, seen: &Seen) -> bool {
        self.update(seen, |entry| entry.is_as(seen), |entry| entry.logins += 1)
    }

    /// Takes a new password; returns when it is on disk. False, and nothing, if the account is no longer as
    /// it was `seen`, or somebody has logged in since.
    ///
    /// # Errors
    /// Of the disk; the old password holds then.
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

    /// How many there are.
    pub fn count(&self) -> usize {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The secret behind the salts of unknown names.
    pub fn secret(&self) -> &Key {
        &self.secret
    }

    /// The identity key of an account, as it stands in `keys/`.
    ///
    /// # Errors
    /// If the file is missing, damaged, or not the key that the account was made with.
    pub fn identity(&self, account: &Account) -> io::Result<IdentityPublicKey> {
        let path = self.key_path(&account.name);
        let bytes = disk::read(&path, MAX_KEY_FILE)?;
        let key = std::str::from_utf8(&bytes).ok().and_then(|pem| IdentityPublicKey::parse_pem(pem).ok());
        key.filter(|key| key.fingerprint() == account.identity).ok_or_else(|| {
            disk::at(&path)(io::Error::other(
                "not the key this account was made with: restore it from a copy",
            ))
        })
    }

    fn key_path(&self, name: &Username) -> PathBuf {
        self.keys.join(format!("{name}.pem"))
    }

    /// Makes an account; returns when it is on disk.
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
        let path = self.key_path(&account.name);
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
}

type ByName = HashMap<String, Option<Entry>>;

/// Reads all records; also returns the bytes and the number of whole lines.
fn load(path: &Path) -> io::Result<(ByName, u64, usize)> {
    let (mut accounts, mut lines) = (HashMap::new(), 0);
    let good = disk::read_records(path, |record: Record| {
        let account = Account {
            name: record.name,
            salt: record.salt.0,
            rounds: record.rounds,
            password_key: record.password_key,
            identity: Fingerprint(record.identity.0),
        };
        accounts.insert(account.name.folded(), Some(Entry::new(account)));
        lines += 1;
    })?;
    Ok((accounts, good, lines))
}

/// Writes one line for each account into a new file, locked before it has the name; the former one stays as
/// `former`. The new file, open for appending, and its length; the caller waits for the folder.
fn rewrite(path: &Path, former: &Path, accounts: &ByName) -> io::Result<(File, u64)> {
    let temporary = path.with_extension("json.tmp");
    let remove = |stale: &Path| match std::fs::remove_file(stale) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(disk::at(stale)(error)),
        _ => Ok(()),
    };
    remove(&temporary)?;
    let file = disk::append(&temporary)?;
    file.try_lock()?;
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
    Key::from_slice(&disk::read(path, 32)?).ok_or_else(|| {
        disk::at(path)(io::Error::other(
            "not 32 bytes: restore it from a copy, or remove it to make a new one",
        ))
    })
}

/// Appends lines to a file; those that arrive together share one write and one fsync.
struct Journal {
    file: File,
    state: Mutex<JournalState>,
    done: Condvar,
}

/// What became of a batch; the text of an error is for all who share it.
type Outcome = Arc<OnceLock<Result<(), String>>>;

struct JournalState {
    /// The batch that is being collected.
    waiting: String,
    outcome: Outcome,
    /// Somebody writes.
    busy: bool,
    /// Bytes of whole lines in the file.
    length: u64,
    /// There may be half a line behind them.
    torn: bool,
}

impl Journal {
    fn new(file: File, length: u64) -> Journal {
        let (waiting, outcome) = (String::new(), Outcome::default());
        let state = JournalState { waiting, outcome, busy: false, length, torn: false };
        Journal { file, state: Mutex::new(state), done: Condvar::new() }
    }

    /// Returns when `line` is on disk. The first to find nobody writing writes for all.
    fn append(&self, line: &str) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.waiting += line;
        let mine = state.outcome.clone();
        loop {
            if let Some(outcome) = mine.get() {
                return outcome.clone().map_err(io::Error::other);
            }
            if state.busy {
                state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (bytes, outcome) = (std::mem::take(&mut state.waiting), std::mem::take(&mut state.outcome));
            let (length, torn) = (state.length, state.torn);
            state.busy = true;
            drop(state);
            let written = self.write(bytes.as_bytes(), length, torn);
            state = lock(&self.state);
            (state.busy, state.torn) = (false, written.is_err());
            if written.is_ok() {
                state.length += bytes.len() as u64;
            }
            let _ = outcome.set(written.map_err(|error| error.to_string()));
            self.done.notify_all();
        }
    }

    /// Half a line in the middle of the file would be damage: before anything else is written,
    /// the file ends with its last whole line.
    fn write(&self, bytes: &[u8], length: u64, torn: bool) -> io::Result<()> {
        if torn {
            self.file.set_len(length)?;
        }
        let written = (&self.file).write_all(bytes).and_then(|()| self.file.sync_data());
        if written.is_err() {
            let _ = self.file.set_len(length).and_then(|()| self.file.sync_all());
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::keys::IdentityKey;
    use crate::crypto::secret::random;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Folder {
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
}
