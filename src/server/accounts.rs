//! The accounts: `users.json` and `keys/NAME.pem`.
//!
//! Invariant: `users.json` is only appended to, one JSON record a line, and a registration is
//! answered after its key file and then its record are on disk. Simultaneous registrations
//! share one fsync. A last line without its end is a torn write and is dropped; any other
//! damage stops the start. No lock is held across a write. Format: README, "Server files".

use super::lock;
use crate::auth::Account;
use crate::crypto::public::{Fingerprint, IdentityPublicKey};
use crate::crypto::secret::Key;
use crate::disk;
use crate::encoding::Fixed;
use crate::name::Username;
use miniserde::{Deserialize, Serialize, json};
use std::collections::HashMap;
use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, RwLock};

/// The longest key file that is read, in bytes: a real one has 451.
const MAX_KEY_FILE: usize = 4096;

#[derive(Serialize, Deserialize)]
struct Record {
    name: Username,
    salt: Fixed<32>,
    rounds: u32,
    password_key: Key,
    identity: Fixed<32>,
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
    by_name: RwLock<HashMap<String, Option<Arc<Account>>>>,
    journal: Journal,
    /// Makes the salts of names that do not exist.
    secret: Key,
}

/// What was found at the start and is worth telling.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Notices {
    /// Bytes of a torn last line that were dropped.
    pub torn: u64,
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
        let (by_name, good) = load(&path)?;
        let torn = file.metadata()?.len() - good;
        if torn > 0 {
            file.set_len(good).and_then(|()| file.sync_all()).map_err(disk::at(&path))?;
        }
        disk::sync_parent(&path)?;
        let accounts = Accounts {
            keys: folder.join("keys"),
            by_name: RwLock::new(by_name),
            journal: Journal::new(file, good),
            secret: fake_salt_secret(&folder.join("salt.secret"))?,
        };
        Ok((accounts, Notices { torn }))
    }

    /// The account of exactly this name.
    pub fn get(&self, name: &Username) -> Option<Arc<Account>> {
        let accounts = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        let account = accounts.get(&name.folded())?.clone();
        account.filter(|account| account.name == *name)
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
        let stored = disk::replace(&path, identity.to_pem().as_bytes()).and_then(|()| {
            let record = Record {
                name: account.name.clone(),
                salt: Fixed(account.salt),
                rounds: account.rounds,
                password_key: account.password_key.duplicate(),
                identity: Fixed(account.identity.0),
            };
            self.journal.append(&(json::to_string(&record) + "\n"))
        });
        if stored.is_err() {
            // Before the name is free again, or the next one's file would go.
            let _ = std::fs::remove_file(&path);
        }
        let mut accounts = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        match stored {
            Ok(()) => accounts.insert(folded, Some(Arc::new(account))),
            Err(_) => accounts.remove(&folded),
        };
        stored.map_err(RegisterError::Io)
    }
}

type ByName = HashMap<String, Option<Arc<Account>>>;

/// Reads all records; also returns the bytes of whole lines.
fn load(path: &Path) -> io::Result<(ByName, u64)> {
    let mut accounts = HashMap::new();
    let good = disk::read_records(path, |record: Record| {
        let account = Account {
            name: record.name,
            salt: record.salt.0,
            rounds: record.rounds,
            password_key: record.password_key,
            identity: Fingerprint(record.identity.0),
        };
        accounts.insert(account.name.folded(), Some(Arc::new(account)));
    })?;
    Ok((accounts, good))
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
            let _ = self.file.set_len(length);
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
