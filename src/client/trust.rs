//! What this machine remembers of others: servers by key, people by identity key, who is ignored.
//!
//! Invariant: a remembered key is replaced only by an explicit decision of the person at the keyboard, and a
//! damaged file stops the start instead of making everyone a stranger again. All files are [`records`]:
//! JSON records, one a line; a later line for the same name supersedes. Format: README#client-files.

use crate::crypto::public::Fingerprint;
use crate::disk;
use crate::encoding::Fixed;
use crate::name::Username;
use crate::records::{self, Records, Writers};
use miniserde::{Deserialize, Serialize, json};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::random;

    #[test]
    fn decisions_outlive_the_program_per_server_and_a_damaged_file_is_an_error() {
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
