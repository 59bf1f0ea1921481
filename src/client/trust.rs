//! What this machine remembers of others: servers by key, people by identity key and newest certificate, who is ignored.
//!
//! Invariant: a remembered key is replaced only by an explicit decision of the person at the keyboard, and a
//! damaged file stops the start instead of making everyone a stranger again. All files are [`records`]:
//! JSON records, one a line; a later line for the same name supersedes. Format: README#client-files.

use crate::clock;
use crate::crypto::public::{Fingerprint, is_far_ahead};
use crate::disk;
use crate::encoding::Fixed;
use crate::name::Username;
use crate::records::{self, Records, Writers};
use miniserde::{Deserialize, Serialize, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How well a person's key is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// Seen for the first time since this client was started, never compared.
    New,
    /// Remembered from before, never compared.
    Known,
    /// The safety number was compared.
    Verified,
}

impl Trust {
    /// What stands beside a name.
    pub fn mark(self) -> &'static str {
        match self {
            Trust::New | Trust::Known => "?",
            Trust::Verified => "✓",
        }
    }
}

#[derive(Serialize, Deserialize)]
struct ServerRecord {
    server: String,
    fingerprint: Fixed<32>,
}

#[derive(Serialize, Deserialize)]
struct UserRecord {
    server: String,
    name: Username,
    identity: Fixed<32>,
    verified: bool,
    /// Somebody decided for this key: it replaces another. What was only seen first does not, in
    /// case two clients with one folder have seen different keys.
    decided: bool,
}

/// Opens a file of `T`s, which another client may have open as well.
fn open<T: Deserialize>(path: &Path, mut each: impl FnMut(T)) -> io::Result<Records> {
    Records::open(path, Writers::Many, |line| records::parse(line).map(&mut each).is_some())
}

fn line(record: &impl Serialize) -> Vec<u8> {
    (json::to_string(record) + "\n").into_bytes()
}

#[derive(Serialize, Deserialize)]
struct IgnoredRecord {
    server: String,
    name: Username,
    ignored: bool,
}

/// The people on one server from whom nothing is shown.
pub struct Ignored {
    records: Records,
    server: String,
    /// By folded name: letter case does not help to get around it.
    names: BTreeMap<String, Username>,
}

impl Ignored {
    /// Reads `ignored`; `server` is `host:port`.
    ///
    /// # Errors
    /// With file, line and remedy in the text.
    pub fn open(path: &Path, server: String) -> io::Result<Ignored> {
        let mut names = BTreeMap::new();
        let records = open(path, |record: IgnoredRecord| {
            if record.server == server {
                let folded = record.name.folded();
                if record.ignored {
                    names.insert(folded, record.name)
                } else {
                    names.remove(&folded)
                };
            }
        })?;
        Ok(Ignored { records, server, names })
    }

    /// See [`Records::repaired`].
    pub fn repaired(&self) -> Option<&str> {
        self.records.repaired()
    }

    /// Whether this person is ignored.
    pub fn contains(&self, name: &Username) -> bool {
        !self.names.is_empty() && self.names.contains_key(&name.folded())
    }

    /// All of them.
    pub fn names(&self) -> impl Iterator<Item = &Username> {
        self.names.values()
    }

    /// Ignores this person from now on, or no longer.
    ///
    /// # Errors
    /// The disk's; nothing has changed then.
    pub fn set(&mut self, name: &Username, ignored: bool) -> io::Result<()> {
        let record = IgnoredRecord { server: self.server.clone(), name: name.clone(), ignored };
        self.records.append(&line(&record), false)?;
        let folded = name.folded();
        if ignored {
            self.names.insert(folded, name.clone())
        } else {
            self.names.remove(&folded)
        };
        Ok(())
    }
}

/// More of a set-aside file than this, in bytes, is not looked at: a record has about 300.
const MAX_TORN: usize = 64 * 1024;

/// The torn records that were set aside of a file, each with its own file: without blanks, up to the first hole, and in
/// lower case, as names differ in more than that.
struct Torn(Vec<(PathBuf, String)>);

impl Torn {
    fn of(path: &Path) -> Torn {
        let head = |aside: PathBuf| {
            // A file that cannot be read may hold any record.
            let bytes = disk::read(&aside, MAX_TORN).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
            let text = text.chars().filter(|c| !c.is_whitespace() && *c != '\u{feff}');
            // Zeros stand where nothing was written, U+FFFD for a character that was cut.
            (aside, text.take_while(|c| !['\0', '\u{fffd}'].contains(c)).collect())
        };
        Torn(records::asides(path).into_iter().map(head).collect())
    }

    /// The file of one that may be of a record that begins with these members.
    fn may_be_of(&self, members: &[(&str, &str)]) -> Option<&Path> {
        self.0.iter().find(|(_, torn)| may_be_of(torn, members)).map(|(aside, _)| aside.as_path())
    }
}

/// Whether a torn record may have begun with these members: it may unless it has another value in one of them.
fn may_be_of(mut torn: &str, members: &[(&str, &str)]) -> bool {
    let mut before = '{';
    for (name, value) in members {
        let Some(rest) = torn.strip_prefix(&format!("{before}\"{name}\":\"")) else { return true };
        let value = json::to_string(*value).to_ascii_lowercase();
        let Some(behind) = rest.strip_prefix(&value[1..]) else { return value[1..].starts_with(rest) };
        (torn, before) = (behind, ',');
    }
    true
}

/// The keys of servers, by `host:port`.
pub struct KnownServers {
    records: Records,
    known: HashMap<String, Fingerprint>,
    torn: Torn,
}

impl KnownServers {
    /// Reads `known_servers`.
    ///
    /// # Errors
    /// With file, line and remedy in the text.
    pub fn open(path: &Path) -> io::Result<KnownServers> {
        let mut known = HashMap::new();
        let records = open(path, |record: ServerRecord| {
            known.insert(record.server, Fingerprint(record.fingerprint.0));
        })?;
        Ok(KnownServers { records, known, torn: Torn::of(path) })
    }

    /// See [`Records::repaired`].
    pub fn repaired(&self) -> Option<&str> {
        self.records.repaired()
    }

    /// The remembered key of `host:port`; `None` for a server that is seen for the first time.
    pub fn get(&self, server: &str) -> Option<Fingerprint> {
        self.known.get(server).copied()
    }

    /// The file with a torn record that may be of `host:port`, which has no other; `None` if there is no doubt.
    pub fn doubt(&self, server: &str) -> Option<&Path> {
        let torn = self.torn.may_be_of(&[("server", server)]);
        torn.filter(|_| !self.known.contains_key(server))
    }

    /// Remembers a key that the person has decided for; it is on disk when this returns.
    ///
    /// # Errors
    /// The disk's.
    pub fn remember(&mut self, server: &str, fingerprint: Fingerprint) -> io::Result<()> {
        if self.get(server) != Some(fingerprint) {
            let record = ServerRecord { server: server.into(), fingerprint: Fixed(fingerprint.0) };
            self.records.append(&line(&record), true)?;
            self.known.insert(server.into(), fingerprint);
        }
        Ok(())
    }
}

/// The identity keys of the people on one server.
pub struct KnownUsers {
    records: Records,
    server: String,
    known: HashMap<Username, (Fingerprint, Trust)>,
    /// By folded name.
    spellings: HashMap<String, Username>,
    torn: Torn,
}

impl KnownUsers {
    /// Reads `known_users`; `server` is `host:port`.
    ///
    /// # Errors
    /// With file, line and remedy in the text.
    pub fn open(path: &Path, server: String) -> io::Result<KnownUsers> {
        let mut known = HashMap::new();
        let records = open(path, |record: UserRecord| {
            if record.server == server && (record.decided || !known.contains_key(&record.name)) {
                let trust = if record.verified { Trust::Verified } else { Trust::Known };
                known.insert(record.name, (Fingerprint(record.identity.0), trust));
            }
        })?;
        let spellings = known.keys().map(|name: &Username| (name.folded(), name.clone())).collect();
        Ok(KnownUsers { records, server, known, spellings, torn: Torn::of(path) })
    }

    /// See [`Records::repaired`].
    pub fn repaired(&self) -> Option<&str> {
        self.records.repaired()
    }

    /// The remembered key, and how well it is known; `None` for a stranger.
    pub fn get(&self, name: &Username) -> Option<(Fingerprint, Trust)> {
        self.known.get(name).copied()
    }

    /// How many people are remembered on this server.
    pub fn count(&self) -> usize {
        self.known.len()
    }

    /// The known name that differs from `name` in letter case alone, else `None`: a server that keeps its
    /// own rules has no two such names.
    pub fn other_spelling(&self, name: &Username) -> Option<&Username> {
        let spelling = self.spellings.get(&name.folded())?;
        (spelling != name).then_some(spelling)
    }

    /// The file with a torn record that may be of this person, who has no other; `None` if there is no doubt.
    pub fn doubt(&self, name: &Username) -> Option<&Path> {
        let members = [("server", self.server.as_str()), ("name", name.as_str())];
        self.torn.may_be_of(&members).filter(|_| !self.known.contains_key(name))
    }

    /// Remembers a key that was seen for the first time.
    ///
    /// # Errors
    /// The disk's; nothing has changed then.
    pub fn remember(&mut self, name: &Username, key: Fingerprint) -> io::Result<()> {
        self.store(name, key, Trust::New, false)
    }

    /// Remembers a decision of the person at the keyboard; it is on disk when this returns.
    ///
    /// # Errors
    /// The disk's; nothing has changed then.
    pub fn decide(&mut self, name: &Username, key: Fingerprint, trust: Trust) -> io::Result<()> {
        self.store(name, key, trust, true)
    }

    fn store(&mut self, name: &Username, key: Fingerprint, trust: Trust, decided: bool) -> io::Result<()> {
        let (server, verified) = (self.server.clone(), trust == Trust::Verified);
        let record = UserRecord { server, name: name.clone(), identity: Fixed(key.0), verified, decided };
        self.records.append(&line(&record), decided)?;
        self.known.insert(name.clone(), (key, trust));
        self.spellings.insert(name.folded(), name.clone());
        Ok(())
    }
}

/// The newest session certificate of one user.
#[derive(Serialize, Deserialize)]
struct CertificateRecord {
    server: String,
    name: Username,
    identity: Fixed<32>,
    created: u64,
    key: Fixed<32>,
}

/// A certificate is valid for 26 hours: one that is older than this, in milliseconds, is no reason to refuse another.
const CERTIFICATE_KEPT: u64 = 7 * 24 * 3_600_000;
/// The file is written at most this often.
const CERTIFICATES_WRITTEN: Duration = Duration::from_secs(60);

/// When a session certificate was made, in milliseconds since 1970, and for which key.
type Made = (u64, Fingerprint);

/// The newest session certificate of each user: an older one may be of a key that was stolen. PROTOCOL#newest-certificate.
pub struct KnownCertificates {
    path: PathBuf,
    server: String,
    /// By server, name and identity key.
    newest: HashMap<(String, Username, Fingerprint), Made>,
    repaired: Option<String>,
    /// Something is not in the file yet.
    changed: bool,
    written: Option<Instant>,
}

impl KnownCertificates {
    /// Reads `known_certificates`; `server` is `host:port`.
    ///
    /// # Errors
    /// With file, line and remedy in the text.
    pub fn open(path: &Path, server: String) -> io::Result<KnownCertificates> {
        let (path, newest) = (path.to_path_buf(), HashMap::new());
        let mut known =
            KnownCertificates { path, server, newest, repaired: None, changed: false, written: None };
        known.repaired = known.read(clock::now_ms())?;
        Ok(known)
    }

    /// See [`Records::repaired`].
    pub fn repaired(&self) -> Option<&str> {
        self.repaired.as_deref()
    }

    /// The newest certificate that is remembered of a user; one that is over two hours ahead of `now_ms` (milliseconds since
    /// 1970) counts as forgotten.
    pub fn newest(&self, name: &Username, identity: Fingerprint, now_ms: u64) -> Option<Made> {
        let newest = self.newest.get(&(self.server.clone(), name.clone(), identity)).copied();
        newest.filter(|(created, _)| !is_far_ahead(*created, now_ms))
    }

    /// Takes in a certificate. False, and nothing changes, if a newer one is remembered, or another one that is as new.
    /// `now_ms` as for [`newest`](KnownCertificates::newest).
    pub fn admit(&mut self, name: &Username, identity: Fingerprint, made: Made, now_ms: u64) -> bool {
        let newest = self.newest(name, identity, now_ms);
        let is_newer = newest.is_none_or(|(created, _)| made.0 > created);
        if is_newer {
            self.newest.insert((self.server.clone(), name.clone(), identity), made);
            self.changed = true;
        }
        is_newer || newest == Some(made)
    }

    /// Writes the file if there is something new, at most once a minute. `now_ms` as for
    /// [`newest`](KnownCertificates::newest).
    ///
    /// # Errors
    /// With the path in the text; it is tried again a minute later.
    pub fn write_in_time(&mut self, now_ms: u64, now: Instant) -> io::Result<()> {
        let is_due = |written| now.duration_since(written) >= CERTIFICATES_WRITTEN;
        if self.changed && self.written.is_none_or(is_due) {
            self.written = Some(now);
            self.write(now_ms)?;
        }
        Ok(())
    }

    /// Takes in what the file holds. What was repaired in it.
    fn read(&mut self, now_ms: u64) -> io::Result<Option<String>> {
        let records = open(&self.path, |record: CertificateRecord| {
            let owner = (record.server, record.name, Fingerprint(record.identity.0));
            if is_kept(record.created, now_ms) {
                let made = (record.created, Fingerprint(record.key.0));
                let newest = self.newest.entry(owner).or_insert(made);
                // Of two that are as new, the one that was seen here first. One that is far ahead of the clock is kept, in
                // case the clock is wrong, but gives way to any other.
                let is_newer =
                    (!is_far_ahead(made.0, now_ms), made.0) > (!is_far_ahead(newest.0, now_ms), newest.0);
                *newest = if is_newer { made } else { *newest };
            }
        })?;
        Ok(records.repaired().map(String::from))
    }

    /// Replaces the file, with one record for each user. Another client may have written there since; while it does, this one
    /// waits for its next minute.
    fn write(&mut self, now_ms: u64) -> io::Result<()> {
        let folder =
            File::open(self.path.parent().unwrap_or(Path::new("."))).map_err(disk::at(&self.path))?;
        match folder.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(disk::at(&self.path)(error)),
            Ok(()) => {}
        }
        self.read(now_ms)?;
        self.newest.retain(|_, (created, _)| is_kept(*created, now_ms));
        let lines = self.newest.iter().flat_map(|((server, name, identity), (created, key))| {
            let (server, name, created) = (server.clone(), name.clone(), *created);
            line(&CertificateRecord { server, name, identity: Fixed(identity.0), created, key: Fixed(key.0) })
        });
        disk::replace(&self.path, &lines.collect::<Vec<_>>())?;
        self.changed = false;
        Ok(())
    }
}

fn is_kept(created: u64, now_ms: u64) -> bool {
    created.saturating_add(CERTIFICATE_KEPT) >= now_ms
}

impl Drop for KnownCertificates {
    fn drop(&mut self) {
        // The end of a session does not wait for its minute.
        if self.changed {
            let _ = self.write(clock::now_ms());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::random;

    #[test]
    fn decisions_persist_per_server_and_damage_is_an_error() {
        let name: String = random::<8>().iter().map(|b| format!("{b:02x}")).collect();
        let path = std::env::temp_dir().join(format!("known-{name}"));
        let bob: Username = "bob".parse().expect("name");
        let (one, two) = (Fingerprint([1; 32]), Fingerprint([2; 32]));
        let open = |server: &str| KnownUsers::open(&path, server.into());
        let mut users = open("a:1").expect("open");
        users.remember(&bob, one).expect("stored");
        users.remember(&bob, two).expect("stored");
        assert_eq!(open("a:1").expect("open").get(&bob), Some((one, Trust::Known)), "a second first sight");
        users.decide(&bob, two, Trust::Verified).expect("stored");
        assert_eq!(open("a:1").expect("open").get(&bob), Some((two, Trust::Verified)));
        assert_eq!(open("a:2").expect("open").get(&bob), None);
        let whole = std::fs::read_to_string(&path).expect("read");
        std::fs::write(&path, whole.clone() + "{\"server\":\"a:1\",\"na").expect("write");
        assert_eq!(open("a:1").expect("a torn line").get(&bob), Some((two, Trust::Verified)));
        assert_eq!(std::fs::read_to_string(&path).expect("read"), whole);
        // Without its line end the last record counts, and what comes next is a line of its own.
        std::fs::write(&path, whole.trim_end()).expect("write");
        open("a:1").expect("open").remember(&"carol".parse().expect("name"), one).expect("stored");
        assert_eq!(open("a:1").expect("open").get(&bob), Some((two, Trust::Verified)));
        std::fs::write(&path, whole.replacen("identity", "idenity", 1)).expect("write");
        let error = open("a:1").err().expect("damage").to_string();
        assert!(error.contains("line 1 is damaged"), "{error}");
        for file in records::asides(&path).iter().chain([&path]) {
            std::fs::remove_file(file).expect("clean up");
        }
    }

    /// A folder for `known_certificates`.
    fn folder() -> PathBuf {
        let name: String = random::<8>().iter().map(|b| format!("{b:02x}")).collect();
        let folder = std::env::temp_dir().join(format!("certificates-{name}"));
        std::fs::create_dir(&folder).expect("a folder");
        folder
    }

    /// PROTOCOL#newest-certificate.
    #[test]
    fn older_certificate_is_refused_also_after_a_restart() {
        let (folder, now) = (folder(), clock::now_ms());
        let open = |server: &str| {
            KnownCertificates::open(&folder.join("known_certificates"), server.into()).expect("a file")
        };
        let [bob, carol]: [Username; 2] = ["bob", "carol"].map(|name| name.parse().expect("name"));
        let (identity, one, two) = (Fingerprint([0; 32]), Fingerprint([1; 32]), Fingerprint([2; 32]));
        let mut known = open("a:1");
        assert!(known.admit(&bob, identity, (now - 9, one), now));
        assert!(known.admit(&bob, identity, (now, two), now));
        for _ in 0..2 {
            for (made, is_taken) in [((now - 9, one), false), ((now, one), false), ((now, two), true)] {
                assert_eq!(known.admit(&bob, identity, made, now), is_taken, "{made:?}");
            }
            drop(known);
            known = open("a:1");
        }
        // Of other users, other identity keys and other servers nothing is known.
        assert!(known.admit(&carol, identity, (now - 9, one), now));
        assert!(known.admit(&bob, Fingerprint([9; 32]), (now - 9, one), now));
        assert!(open("a:2").admit(&bob, identity, (now - 9, one), now));
        drop(known);
        assert_eq!(open("a:1").newest(&bob, identity, now), Some((now, two)));
        std::fs::remove_dir_all(folder).expect("clean up");
    }

    /// PROTOCOL#newest-certificate.
    #[test]
    fn certificate_far_ahead_of_the_clock_counts_as_forgotten() {
        let (folder, now, slack) = (folder(), clock::now_ms(), 2 * 3_600_000);
        let path = folder.join("known_certificates");
        let open = || KnownCertificates::open(&path, "a:1".into()).expect("a file");
        let bob: Username = "bob".parse().expect("name");
        let (identity, one, two) = (Fingerprint([0; 32]), Fingerprint([1; 32]), Fingerprint([2; 32]));
        let mut known = open();
        assert!(known.admit(&bob, identity, (now + slack, one), now));
        assert!(!known.admit(&bob, identity, (now, two), now), "as far as clocks may differ");
        assert!(known.admit(&bob, identity, (now, two), now - 1), "the own clock was set back");
        assert!(!known.admit(&bob, identity, (now - 1, one), now));
        // It does not come back from the file either.
        assert!(known.admit(&bob, identity, (now + 2 * slack, one), now + slack));
        known.write(now + slack).expect("written");
        drop(known);
        assert!(open().admit(&bob, identity, (now, two), now));
        std::fs::remove_dir_all(folder).expect("clean up");
    }

    /// PROTOCOL#newest-certificate.
    #[test]
    fn wrong_clock_erases_no_certificate() {
        let (folder, now, day) = (folder(), clock::now_ms(), 24 * 3_600_000);
        let path = folder.join("known_certificates");
        let open = || KnownCertificates::open(&path, "a:1".into()).expect("a file");
        let bob: Username = "bob".parse().expect("name");
        let (identity, one, two) = (Fingerprint([0; 32]), Fingerprint([1; 32]), Fingerprint([2; 32]));
        let mut known = open();
        assert!(known.admit(&bob, identity, (now, one), now));
        known.write(now - day).expect("written");
        assert!(!open().admit(&bob, identity, (now - 1, two), now));
        std::fs::remove_dir_all(folder).expect("clean up");
    }

    /// PROTOCOL#newest-certificate.
    #[test]
    fn certificates_are_written_once_a_minute_and_stay_few() {
        let (folder, now, start) = (folder(), clock::now_ms(), Instant::now());
        let path = folder.join("known_certificates");
        let open = || KnownCertificates::open(&path, "a:1".into()).expect("a file");
        let lines = || std::fs::read_to_string(&path).expect("there").lines().count();
        let [bob, carol]: [Username; 2] = ["bob", "carol"].map(|name| name.parse().expect("name"));
        let (identity, key) = (Fingerprint([0; 32]), Fingerprint([1; 32]));
        let (mut known, mut other) = (open(), open());
        for second in 0..200 {
            assert!(known.admit(&bob, identity, (now + second, key), now));
            known.write_in_time(now, start + Duration::from_secs(second)).expect("written");
            let newest = open().newest(&bob, identity, now).map(|(created, _)| created);
            assert_eq!((newest, lines()), (Some(now + second / 60 * 60), 1));
        }
        // What two clients have seen is there, and of each user the newest.
        assert!(
            other.admit(&bob, identity, (now, key), now) && other.admit(&carol, identity, (now, key), now)
        );
        drop((known, other));
        assert_eq!(open().newest(&bob, identity, now), Some((now + 199, key)));
        assert_eq!((open().newest(&carol, identity, now), lines()), (Some((now, key)), 2));
        // What is too old to refuse anything goes.
        let (mut known, later) = (open(), now + CERTIFICATE_KEPT + 200);
        assert!(known.admit(&carol, identity, (later, key), later));
        known.write(later).expect("written");
        assert_eq!((lines(), known.newest.len()), (1, 1));
        std::fs::remove_dir_all(folder).expect("clean up");
    }

    /// README#records.
    #[test]
    fn user_whose_record_was_torn_is_not_seen_for_the_first_time() {
        for (torn, doubtful, others) in [
            ("{\"server\":\"a:1\",\"name\":\"bob\",\"iden", "bob Bob", "bo bobby carol"),
            ("{\"server\": \"a:1\", \"name\": \"bo\0\0", "bo bob bobby", "b carol"),
            ("{\"server\":\"a:1", "bob carol", ""),
            ("{\"server\":\"a:2\",\"name\":\"bob\",\"iden", "", "bob"),
            // A record that the disk did not keep may have been of anyone.
            ("\0\0", "bob carol", ""),
            ("\0\0\0:1\",\"name\":\"bob\",\"iden", "bob carol", ""),
            ("{\"server\":\"a:1\",\0\0\0\0\"bob\",\"iden", "bob carol", ""),
            ("{\"name\":\"bob\",\"server\":\"a:1\",\"iden", "bob carol", ""),
        ] {
            let name: String = random::<8>().iter().map(|b| format!("{b:02x}")).collect();
            let path = std::env::temp_dir().join(format!("known-users-{name}"));
            std::fs::write(&path, torn).expect("written");
            let mut users = KnownUsers::open(&path, "a:1".into()).expect("set aside");
            for (names, expected) in [(doubtful, true), (others, false)] {
                for name in names.split_whitespace().map(|name| name.parse().expect("name")) {
                    assert_eq!(users.doubt(&name).is_some(), expected, "{torn}: {name}");
                    users.decide(&name, Fingerprint([1; 32]), Trust::Known).expect("stored");
                    assert!(users.doubt(&name).is_none());
                }
            }
            for file in records::asides(&path).iter().chain([&path]) {
                std::fs::remove_file(file).expect("clean up");
            }
        }
    }

    #[test]
    fn server_whose_record_was_torn_is_not_seen_for_the_first_time() {
        let name: String = random::<8>().iter().map(|b| format!("{b:02x}")).collect();
        let path = std::env::temp_dir().join(format!("known-servers-{name}"));
        std::fs::write(&path, "{\"server\":\"a:1\",\"finge").expect("written");
        for _ in 0..2 {
            let servers = KnownServers::open(&path).expect("set aside");
            assert!(servers.doubt("a:1").is_some() && servers.doubt("a:12").is_none());
        }
        let mut servers = KnownServers::open(&path).expect("open");
        servers.remember("a:1", Fingerprint([1; 32])).expect("stored");
        assert!(servers.doubt("a:1").is_none());
        // A record that was cut within the name may be of any that begins so.
        std::fs::write(&path, "{\"server\":\"b:1").expect("written");
        let servers = KnownServers::open(&path).expect("set aside");
        assert!(servers.doubt("b:1").is_some() && servers.doubt("b:12").is_some());
        assert!(servers.doubt("c:1").is_none());
        // Zeros behind a record may have been of any server but the one that has it.
        let aside = records::asides(&path).pop().expect("set aside");
        std::fs::write(&aside, [0; 90]).expect("written");
        let servers = KnownServers::open(&path).expect("open");
        assert_eq!(servers.doubt("c:1"), Some(aside.as_path()));
        std::fs::remove_file(&aside).expect("removed");
        for file in records::asides(&path).iter().chain([&path]) {
            std::fs::remove_file(file).expect("clean up");
        }
    }
}
