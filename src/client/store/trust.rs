//! This machine's memory of others: servers by key, users by identity key and newest certificate, and ignored users.
//!
//! Invariant: only an explicit decision of the user replaces a remembered key, and a damaged file stops the start
//! instead of making everyone a stranger again. Format: MANUAL#client-files.

use super::{Record, Store};
use crate::clock;
use crate::crypto::public::{Fingerprint, is_far_ahead};
use crate::name::Username;
use miniserde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How well a user's key is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// Seen for the first time since this client started; never compared.
    New,
    /// Remembered from before; never compared.
    Known,
    /// The safety number was compared.
    Verified,
}

impl Trust {
    /// The mark beside a name.
    pub fn mark(self) -> &'static str {
        match self {
            Trust::New | Trust::Known => "?",
            Trust::Verified => "✓",
        }
    }
}

/// A line of `known_servers`.
#[derive(Serialize, Deserialize)]
struct Server {
    /// `host:port`.
    server: String,
    fingerprint: Fingerprint,
}

impl Record for Server {
    fn key(&self) -> String {
        self.server.clone()
    }
}

/// A line of `known_users`.
#[derive(Serialize, Deserialize)]
struct User {
    server: String,
    name: Username,
    identity: Fingerprint,
    verified: bool,
    /// Whether the user decided for this key.
    decided: bool,
}

impl Record for User {
    /// The folded name: an honest server has no two names that differ only in letter case.
    fn key(&self) -> String {
        self.name.folded()
    }

    /// A key without a decision replaces nothing, in case two clients with one folder have seen different keys.
    fn replaces(&self, _former: &User) -> bool {
        self.decided
    }
}

/// A line of `ignored`.
#[derive(Serialize, Deserialize)]
struct IgnoredUser {
    server: String,
    name: Username,
    ignored: bool,
}

impl Record for IgnoredUser {
    /// The folded name, so that another letter case does not evade it.
    fn key(&self) -> String {
        self.name.folded()
    }
}

/// A line of `known_certificates`: the newest session or mailbox certificate of one user.
#[derive(Serialize, Deserialize)]
struct Certificate {
    server: String,
    name: Username,
    identity: Fingerprint,
    created: u64,
    key: Fingerprint,
    /// Missing in the records of earlier versions, which are session certificates.
    mailbox: Option<bool>,
}

impl Certificate {
    fn is_mailbox(&self) -> bool {
        self.mailbox == Some(true)
    }

    /// Whether it is still remembered, to refuse an older one.
    fn is_kept(&self, now_ms: u64) -> bool {
        let kept = if self.is_mailbox() { MAILBOX_KEPT } else { SESSION_KEPT };
        self.created.saturating_add(kept) >= now_ms
    }
}

impl Record for Certificate {
    fn key(&self) -> String {
        certificate_key(&self.server, &self.name, self.identity, self.is_mailbox())
    }

    /// The newer one counts; of two equally new ones, the first that this client has seen. One far ahead of the clock
    /// is kept, in case the clock is wrong, but any other replaces it.
    fn replaces(&self, former: &Certificate) -> bool {
        let now = clock::now_ms();
        let age = |record: &Certificate| (!is_far_ahead(record.created, now), record.created);
        age(self) > age(former)
    }
}

/// Unambiguous, because neither name nor fingerprint contains a blank.
fn certificate_key(server: &str, name: &Username, identity: Fingerprint, is_mailbox: bool) -> String {
    format!("{server} {} {identity} {is_mailbox}", name.as_str())
}

/// The keys of servers, by `host:port`.
pub struct KnownServers(Store<Server>);

impl KnownServers {
    /// Reads `known_servers` in the data folder.
    ///
    /// # Errors
    /// With file, line and remedy in the text.
    pub fn open(folder: &Path) -> io::Result<KnownServers> {
        Store::open(&folder.join("known_servers"), |_| true).map(KnownServers)
    }

    /// The remembered key of `host:port`; `None` for a new server.
    pub fn get(&self, server: &str) -> Option<Fingerprint> {
        self.0.get(server).map(|record| record.fingerprint)
    }

    /// The set-aside file whose torn record may be that of `host:port`; `None` without doubt, or with a known key.
    pub fn doubt(&self, server: &str) -> Option<PathBuf> {
        if self.get(server).is_some() { None } else { self.0.doubt(&[("server", server)]) }
    }

    /// Remembers a key that the user has decided for; it is on disk when this returns.
    ///
    /// # Errors
    /// The disk's.
    pub fn remember(&mut self, server: &str, fingerprint: Fingerprint) -> io::Result<()> {
        match self.get(server) == Some(fingerprint) {
            true => Ok(()),
            false => self.0.put(Server { server: server.into(), fingerprint }, true),
        }
    }
}

/// Users of one server whose messages are not shown.
pub struct Ignored {
    server: String,
    users: Store<IgnoredUser>,
}

impl Ignored {
    /// Reads `ignored` in the data folder; `server` is `host:port`.
    ///
    /// # Errors
    /// With file, line and remedy in the text.
    pub fn open(folder: &Path, server: &str) -> io::Result<Ignored> {
        let (server, own) = (server.to_string(), server.to_string());
        let users = Store::open(&folder.join("ignored"), move |user: &IgnoredUser| user.server == own)?;
        Ok(Ignored { server, users })
    }

    /// Reads what other clients with this folder have written meanwhile.
    ///
    /// # Errors
    /// As [`Ignored::open`].
    pub fn refresh(&mut self) -> io::Result<()> {
        self.users.refresh().map(drop)
    }

    /// Whether this user is ignored.
    pub fn contains(&self, name: &Username) -> bool {
        self.users.get(&name.folded()).is_some_and(|user| user.ignored)
    }

    /// All ignored users.
    pub fn names(&self) -> impl Iterator<Item = &Username> {
        self.users.newest.values().filter(|user| user.ignored).map(|user| &user.name)
    }

    /// Sets whether this user is ignored.
    ///
    /// # Errors
    /// The disk's; nothing has then changed.
    pub fn set(&mut self, name: &Username, ignored: bool) -> io::Result<()> {
        self.users.put(IgnoredUser { server: self.server.clone(), name: name.clone(), ignored }, false)
    }

    /// Reports of repairs since the last call, as sentences.
    pub fn notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.users.notices)
    }
}

const DAY: u64 = 24 * 3_600_000;
/// Session certificates older than this, in milliseconds, are forgotten. After 26 hours they are invalid; the rest is
/// for a clock that was wrong for some time.
const SESSION_KEPT: u64 = 7 * DAY;
/// The same for mailbox certificates, which are valid for 30 days.
const MAILBOX_KEPT: u64 = 37 * DAY;
/// The shortest time between two writes of the file, which rewrite all of it.
const CERTIFICATES_WRITTEN: Duration = Duration::from_secs(60);

/// Whether it is a mailbox certificate, its time in milliseconds since 1970, and the fingerprint of its key.
type Made = (bool, u64, Fingerprint);

/// The memory of the users of one server: their identity keys, and the newest session and mailbox certificate of each,
/// because an older one may belong to a stolen key. PROTOCOL#newest-certificate.
pub struct TrustStore {
    server: String,
    users: Store<User>,
    /// Users seen for the first time since the start.
    new: HashSet<Username>,
    certificates: Store<Certificate>,
    /// Whether a certificate is not in the file yet.
    changed: bool,
    written: Option<Instant>,
    /// Reports of repairs of `known_servers`.
    notices: Vec<String>,
}

impl TrustStore {
    /// Reads the files of the data folder `folder`; `server` is `host:port`.
    ///
    /// # Errors
    /// With file, line and remedy in the text, also for `known_servers`.
    pub fn open(folder: &Path, server: &str) -> io::Result<TrustStore> {
        let (certificates, now_ms) = (folder.join("known_certificates"), clock::now_ms());
        let own = server.to_string();
        Ok(TrustStore {
            notices: KnownServers::open(folder)?.0.notices,
            users: Store::open(&folder.join("known_users"), move |user: &User| user.server == own)?,
            certificates: Store::open(&certificates, move |made: &Certificate| made.is_kept(now_ms))?,
            server: server.into(),
            new: HashSet::new(),
            changed: false,
            written: None,
        })
    }

    /// Reads what other clients with this folder have written meanwhile. Returns whether a remembered key may have
    /// changed.
    ///
    /// # Errors
    /// As [`TrustStore::open`].
    pub fn refresh(&mut self) -> io::Result<bool> {
        self.users.refresh()
    }

    /// Reports of repairs of the files since the last call, as sentences.
    pub fn notices(&mut self) -> Vec<String> {
        self.notices.append(&mut self.users.notices);
        self.notices.append(&mut self.certificates.notices);
        std::mem::take(&mut self.notices)
    }

    /// The remembered key, and how well it is known; `None` for a stranger.
    pub fn get(&self, name: &Username) -> Option<(Fingerprint, Trust)> {
        let user = self.users.get(&name.folded()).filter(|user| user.name == *name)?;
        let trust = match user.verified {
            true => Trust::Verified,
            false if !user.decided && self.new.contains(name) => Trust::New,
            false => Trust::Known,
        };
        Some((user.identity, trust))
    }

    /// The remembered users of this server.
    pub fn names(&self) -> impl Iterator<Item = &Username> {
        self.users.newest.values().map(|user| &user.name)
    }

    /// The number of remembered users of this server.
    pub fn count(&self) -> usize {
        self.users.newest.len()
    }

    /// The known name that differs from `name` only in letter case, else `None`.
    pub fn other_spelling(&self, name: &Username) -> Option<&Username> {
        self.users.get(&name.folded()).map(|user| &user.name).filter(|spelling| *spelling != name)
    }

    /// The set-aside file whose torn record may be that of this user; `None` without doubt, or with a known key.
    pub fn doubt(&self, name: &Username) -> Option<PathBuf> {
        let members = [("server", self.server.as_str()), ("name", name.as_str())];
        if self.get(name).is_some() { None } else { self.users.doubt(&members) }
    }

    /// Whether no key is remembered for this user, in any letter case, and no torn record may be theirs.
    pub fn is_new(&self, name: &Username) -> bool {
        self.users.get(&name.folded()).is_none() && self.doubt(name).is_none()
    }

    /// Remembers a key: [`Trust::New`] if it was seen for the first time, otherwise as the user has decided. A decision
    /// is on disk when this returns. A key seen for the first time is not valid if another client with this folder has
    /// written another one meanwhile: [`get`](TrustStore::get) returns the valid one.
    ///
    /// # Errors
    /// The disk's; nothing has then changed.
    pub fn remember(&mut self, name: &Username, identity: Fingerprint, trust: Trust) -> io::Result<()> {
        let (decided, verified) = (trust != Trust::New, trust == Trust::Verified);
        let server = self.server.clone();
        self.users.put(User { server, name: name.clone(), identity, verified, decided }, decided)?;
        if !decided {
            self.new.insert(name.clone());
        }
        Ok(())
    }

    /// The newest remembered certificate of a user, for the session or the mailbox; one over two hours ahead of
    /// `now_ms` (milliseconds since 1970) counts as forgotten.
    pub fn newest(
        &self,
        name: &Username,
        identity: Fingerprint,
        is_mailbox: bool,
        now_ms: u64,
    ) -> Option<(u64, Fingerprint)> {
        let newest = self.certificates.get(&certificate_key(&self.server, name, identity, is_mailbox));
        newest
            .map(|newest| (newest.created, newest.key))
            .filter(|(created, _)| !is_far_ahead(*created, now_ms))
    }

    /// Remembers a certificate. False, without a change, if a newer one is remembered, or another one of the same time.
    /// `now_ms` as for [`newest`](TrustStore::newest).
    pub fn admit(&mut self, name: &Username, identity: Fingerprint, made: Made, now_ms: u64) -> bool {
        let (is_mailbox, created, key) = made;
        let newest = self.newest(name, identity, is_mailbox, now_ms);
        let is_newer = newest.is_none_or(|(newest, _)| created > newest);
        if is_newer {
            let (server, name, mailbox) = (self.server.clone(), name.clone(), Some(is_mailbox));
            self.certificates.insert(Certificate { server, name, identity, created, key, mailbox });
            self.changed = true;
        }
        is_newer || newest == Some((created, key))
    }

    /// Writes the certificates if there are new ones, at most once a minute. `now_ms` as for
    /// [`newest`](TrustStore::newest).
    ///
    /// # Errors
    /// With the path in the text; the next attempt is a minute later.
    pub fn write_in_time(&mut self, now_ms: u64, now: Instant) -> io::Result<()> {
        let is_due = |written| now.duration_since(written) >= CERTIFICATES_WRITTEN;
        if self.changed && self.written.is_none_or(is_due) {
            self.written = Some(now);
            self.write(now_ms)?;
        }
        Ok(())
    }

    /// Writes new certificates at once, because the session is over.
    pub fn close(&mut self, now_ms: u64) {
        if self.changed {
            let _ = self.write(now_ms);
        }
    }

    fn write(&mut self, now_ms: u64) -> io::Result<()> {
        self.certificates.rewrite(|made| made.is_kept(now_ms))?;
        self.changed = false;
        Ok(())
    }
}

impl Drop for TrustStore {
    fn drop(&mut self) {
        self.close(clock::now_ms());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::random;
    use crate::records;
    use std::fs;

    /// A data folder, removed on drop.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Folder {
            let path = std::env::temp_dir().join(format!("trust-{}", u64::from_be_bytes(random())));
            fs::create_dir(&path).expect("a folder");
            Folder(path)
        }

        fn open(&self, server: &str) -> io::Result<TrustStore> {
            TrustStore::open(&self.0, server)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// PROTOCOL#newest-certificate.
    #[test]
    fn certificate_ahead_of_the_clock_is_replaced_by_any_other() {
        let at = |created| Certificate {
            server: "a:1".into(),
            name: "bob".parse().expect("name"),
            identity: Fingerprint([1; 32]),
            created,
            key: Fingerprint([2; 32]),
            mailbox: None,
        };
        let now = clock::now_ms();
        let (former, newer, ahead) = (at(now - 1), at(now), at(now + 3 * 3_600_000));
        assert!(newer.replaces(&former) && !former.replaces(&newer) && !newer.replaces(&at(now)));
        assert!(former.replaces(&ahead) && !ahead.replaces(&former));
    }

    #[test]
    fn decisions_persist_per_server_and_damage_is_an_error() {
        let folder = Folder::new();
        let path = folder.0.join("known_users");
        let bob: Username = "bob".parse().expect("name");
        let (one, two) = (Fingerprint([1; 32]), Fingerprint([2; 32]));
        let open = |server: &str| folder.open(server);
        let mut users = open("a:1").expect("open");
        users.remember(&bob, one, Trust::New).expect("stored");
        assert_eq!(users.get(&bob), Some((one, Trust::New)));
        users.remember(&bob, two, Trust::New).expect("stored");
        assert_eq!(open("a:1").expect("open").get(&bob), Some((one, Trust::Known)), "a second first sight");
        users.remember(&bob, two, Trust::Verified).expect("stored");
        assert_eq!(open("a:1").expect("open").get(&bob), Some((two, Trust::Verified)));
        assert_eq!(open("a:2").expect("open").get(&bob), None);
        let whole = fs::read_to_string(&path).expect("read");
        fs::write(&path, whole.clone() + "{\"server\":\"a:1\",\"na").expect("write");
        assert_eq!(open("a:1").expect("a torn line").get(&bob), Some((two, Trust::Verified)));
        assert_eq!(fs::read_to_string(&path).expect("read"), whole);
        // The last record counts without its line end, and the next record gets its own line.
        fs::write(&path, whole.trim_end()).expect("write");
        open("a:1")
            .expect("open")
            .remember(&"carol".parse().expect("name"), one, Trust::New)
            .expect("stored");
        assert_eq!(open("a:1").expect("open").get(&bob), Some((two, Trust::Verified)));
        fs::write(&path, whole.replacen("identity", "idenity", 1)).expect("write");
        let error = open("a:1").err().expect("damage").to_string();
        assert!(error.contains("line 1 is damaged"), "{error}");
    }

    /// PROTOCOL#newest-certificate.
    #[test]
    fn older_certificate_is_refused_even_after_a_restart() {
        let (folder, now) = (Folder::new(), clock::now_ms());
        let open = |server: &str| folder.open(server).expect("files");
        let [bob, carol]: [Username; 2] = ["bob", "carol"].map(|name| name.parse().expect("name"));
        let (identity, one, two) = (Fingerprint([0; 32]), Fingerprint([1; 32]), Fingerprint([2; 32]));
        let mut known = open("a:1");
        assert!(known.admit(&bob, identity, (false, now - 9, one), now));
        assert!(known.admit(&bob, identity, (false, now, two), now));
        for _ in 0..2 {
            for (made, is_taken) in [((now - 9, one), false), ((now, one), false), ((now, two), true)] {
                assert_eq!(known.admit(&bob, identity, (false, made.0, made.1), now), is_taken, "{made:?}");
            }
            drop(known);
            known = open("a:1");
        }
        // Nothing is known about other users, other identity keys and other servers.
        assert!(known.admit(&carol, identity, (false, now - 9, one), now));
        assert!(known.admit(&bob, Fingerprint([9; 32]), (false, now - 9, one), now));
        assert!(open("a:2").admit(&bob, identity, (false, now - 9, one), now));
        drop(known);
        assert_eq!(open("a:1").newest(&bob, identity, false, now), Some((now, two)));
    }

    /// PROTOCOL#newest-certificate.
    #[test]
    fn certificate_far_ahead_of_the_clock_counts_as_forgotten() {
        let (folder, now, slack) = (Folder::new(), clock::now_ms(), 2 * 3_600_000);
        let open = || folder.open("a:1").expect("files");
        let bob: Username = "bob".parse().expect("name");
        let (identity, one, two) = (Fingerprint([0; 32]), Fingerprint([1; 32]), Fingerprint([2; 32]));
        let mut known = open();
        assert!(known.admit(&bob, identity, (false, now + slack, one), now));
        assert!(!known.admit(&bob, identity, (false, now, two), now), "as far as clocks may differ");
        assert!(known.admit(&bob, identity, (false, now, two), now - 1), "this machine's clock was set back");
        assert!(!known.admit(&bob, identity, (false, now - 1, one), now));
        // The file does not restore it either.
        assert!(known.admit(&bob, identity, (false, now + 2 * slack, one), now + slack));
        known.write(now + slack).expect("written");
        drop(known);
        assert!(open().admit(&bob, identity, (false, now, two), now));
    }

    /// PROTOCOL#newest-certificate.
    #[test]
    fn wrong_clock_erases_no_certificate() {
        let (folder, now, day) = (Folder::new(), clock::now_ms(), 24 * 3_600_000);
        let open = || folder.open("a:1").expect("files");
        let bob: Username = "bob".parse().expect("name");
        let (identity, one, two) = (Fingerprint([0; 32]), Fingerprint([1; 32]), Fingerprint([2; 32]));
        let mut known = open();
        assert!(known.admit(&bob, identity, (false, now, one), now));
        known.write(now - day).expect("written");
        assert!(!open().admit(&bob, identity, (false, now - 1, two), now));
    }

    /// PROTOCOL#newest-certificate.
    #[test]
    fn certificates_are_written_once_a_minute_and_stay_few() {
        let (folder, now, start) = (Folder::new(), clock::now_ms(), Instant::now());
        let path = folder.0.join("known_certificates");
        let open = || folder.open("a:1").expect("files");
        let lines = || fs::read_to_string(&path).expect("there").lines().count();
        let [bob, carol]: [Username; 2] = ["bob", "carol"].map(|name| name.parse().expect("name"));
        let (identity, key) = (Fingerprint([0; 32]), Fingerprint([1; 32]));
        let (mut known, mut other) = (open(), open());
        for second in 0..200 {
            assert!(known.admit(&bob, identity, (false, now + second, key), now));
            known.write_in_time(now, start + Duration::from_secs(second)).expect("written");
            let newest = open().newest(&bob, identity, false, now).map(|(created, _)| created);
            assert_eq!((newest, lines()), (Some(now + second / 60 * 60), 1));
        }
        // The file has what both clients have seen: the newest for each user.
        assert!(
            other.admit(&bob, identity, (false, now, key), now)
                && other.admit(&carol, identity, (false, now, key), now)
        );
        drop((known, other));
        assert_eq!(open().newest(&bob, identity, false, now), Some((now + 199, key)));
        assert_eq!((open().newest(&carol, identity, false, now), lines()), (Some((now, key)), 2));
        // A certificate that is too old to refuse another one is removed.
        let (mut known, later) = (open(), now + SESSION_KEPT + 200);
        assert!(known.admit(&carol, identity, (false, later, key), later));
        known.write(later).expect("written");
        assert_eq!((lines(), known.certificates.newest.len()), (1, 1));
    }

    /// PROTOCOL#mail-sender, PROTOCOL#newest-certificate.
    #[test]
    fn mailbox_certificates_are_remembered_apart_and_longer() {
        let (folder, now) = (Folder::new(), clock::now_ms());
        let path = folder.0.join("known_certificates");
        let open = || folder.open("a:1").expect("files");
        let bob: Username = "bob".parse().expect("name");
        let (identity, one, two) = (Fingerprint([0; 32]), Fingerprint([1; 32]), Fingerprint([2; 32]));
        assert!(open().admit(&bob, identity, (false, now, one), now));
        // The record of an earlier version, without a kind.
        let record = fs::read_to_string(&path).expect("there").replace(",\"mailbox\":false", "");
        assert!(record.contains("bob") && !record.contains("mailbox"), "{record}");
        fs::write(&path, record).expect("written");
        let mut known = open();
        assert!(!known.admit(&bob, identity, (false, now - 1, two), now), "a session certificate");
        assert!(known.admit(&bob, identity, (true, now - 31 * DAY, two), now - 31 * DAY));
        assert!(known.admit(&bob, identity, (true, now - 30 * DAY, one), now - 30 * DAY));
        known.write(now).expect("written");
        drop(known);
        // The newer one is still valid, so an older one is, too.
        let mut known = open();
        assert!(!known.admit(&bob, identity, (true, now - 31 * DAY, two), now));
        assert_eq!(known.newest(&bob, identity, false, now), Some((now, one)));
        known.write(now + 8 * DAY).expect("written");
        assert!(known.certificates.newest.is_empty(), "both are too old to refuse another one");
    }

    /// OPERATING#records.
    #[test]
    fn user_with_a_torn_record_is_not_treated_as_new() {
        for (torn, doubtful, others) in [
            ("{\"server\":\"a:1\",\"name\":\"bob\",\"iden", "bob Bob", "bo bobby carol"),
            ("{\"server\": \"a:1\", \"name\": \"bo\0\0", "bo bob bobby", "b carol"),
            ("{\"server\":\"a:1", "bob carol", ""),
            ("{\"server\":\"a:2\",\"name\":\"bob\",\"iden", "", "bob"),
            // A record of zeros may have belonged to any user.
            ("\0\0", "bob carol", ""),
            ("\0\0\0:1\",\"name\":\"bob\",\"iden", "bob carol", ""),
            ("{\"server\":\"a:1\",\0\0\0\0\"bob\",\"iden", "bob carol", ""),
            ("{\"name\":\"bob\",\"server\":\"a:1\",\"iden", "bob carol", ""),
        ] {
            let folder = Folder::new();
            fs::write(folder.0.join("known_users"), torn).expect("written");
            let mut users = folder.open("a:1").expect("set aside");
            for (names, expected) in [(doubtful, true), (others, false)] {
                for name in names.split_whitespace().map(|name| name.parse().expect("name")) {
                    assert_eq!(users.doubt(&name).is_some(), expected, "{torn}: {name}");
                    users.remember(&name, Fingerprint([1; 32]), Trust::Known).expect("stored");
                    assert!(users.doubt(&name).is_none());
                }
            }
        }
    }

    #[test]
    fn server_with_a_torn_record_is_not_treated_as_new() {
        let folder = Folder::new();
        let path = folder.0.join("known_servers");
        let open = || KnownServers::open(&folder.0);
        fs::write(&path, "{\"server\":\"a:1\",\"finge").expect("written");
        for _ in 0..2 {
            let servers = open().expect("set aside");
            assert!(servers.doubt("a:1").is_some() && servers.doubt("a:12").is_none());
        }
        let mut servers = open().expect("open");
        servers.remember("a:1", Fingerprint([1; 32])).expect("stored");
        assert!(servers.doubt("a:1").is_none());
        // A record cut within the name may belong to any name with this beginning.
        fs::write(&path, "{\"server\":\"b:1").expect("written");
        let servers = open().expect("set aside");
        assert!(servers.doubt("b:1").is_some() && servers.doubt("b:12").is_some());
        assert!(servers.doubt("c:1").is_none());
        // Zeros after a record may have belonged to any server except the one of that record.
        let aside = records::asides(&path).pop().expect("set aside");
        fs::write(&aside, [0; 90]).expect("written");
        let servers = open().expect("open");
        assert_eq!(servers.doubt("c:1"), Some(aside.clone()));
        fs::remove_file(&aside).expect("removed");
    }

    /// MANUAL#one-folder.
    #[test]
    fn key_that_another_client_remembers_is_not_new() {
        let folder = Folder::new();
        let [bob, upper, carol] = ["bob", "BOB", "carol"].map(|name| name.parse::<Username>().expect("name"));
        let (one, two) = (Fingerprint([1; 32]), Fingerprint([2; 32]));
        let (mut here, mut there) = (folder.open("a:1").expect("open"), folder.open("a:1").expect("open"));
        folder.open("a:2").expect("open").remember(&bob, two, Trust::Known).expect("stored");
        there.remember(&bob, one, Trust::Verified).expect("stored");
        for name in [&bob, &upper] {
            here.remember(name, two, Trust::New).expect("stored");
        }
        assert_eq!((here.get(&bob), here.get(&upper)), (Some((one, Trust::Verified)), None));
        // A file that an editor has replaced is read again, a partial record once it is complete.
        let (path, copy) = (folder.0.join("known_users"), folder.0.join("copy"));
        here.remember(&carol, two, Trust::New).expect("stored");
        let text = fs::read_to_string(&path).expect("there");
        assert_eq!(text.lines().count(), 3, "{text}");
        let [before, line] = [0, 2].map(|n| text.lines().nth(n).expect("a line").replace("a:2", "a:1"));
        fs::write(&copy, format!("{before}\n")).and_then(|()| fs::rename(&copy, &path)).expect("saved");
        assert!(here.refresh().expect("read"));
        assert_eq!(here.get(&bob), Some((two, Trust::Known)));
        let (half, rest) = line.split_at(50);
        fs::write(&path, format!("{before}\n{half}")).expect("written");
        there.refresh().expect("read");
        assert!(there.get(&carol).is_none());
        fs::write(&path, format!("{before}\n{half}{rest}\n")).expect("written");
        there.refresh().expect("read");
        assert_eq!(there.get(&carol), Some((two, Trust::Known)));
        fs::write(&path, format!("{before}\n{half}{rest}\n{half}\n")).expect("written");
        let error = there.refresh().expect_err("damage").to_string();
        assert!(error.contains("known_users: line 3 is damaged"), "{error}");
        there.remember(&upper, one, Trust::New).expect_err("damage");
        fs::remove_file(&path).expect("removed");
        there.refresh().expect("nothing new");
        assert!(!path.exists());
    }

    #[test]
    fn name_is_ignored_in_any_letter_case_until_unignored() {
        let folder = Folder::new();
        let [bob, upper, carol] = ["bob", "BOB", "carol"].map(|name| name.parse().expect("name"));
        let open = |server: &str| Ignored::open(&folder.0, server).expect("a file");
        let mut ignored = open("a:1");
        ignored.set(&bob, true).and_then(|()| ignored.set(&carol, true)).expect("stored");
        ignored.set(&carol, false).expect("stored");
        for ignored in [&ignored, &open("a:1")] {
            assert!(ignored.contains(&upper) && !ignored.contains(&carol));
            assert_eq!(ignored.names().collect::<Vec<_>>(), [&bob]);
        }
        assert!(!open("a:2").contains(&bob));
    }

    /// OPERATING#records.
    #[test]
    fn record_goes_where_the_path_leads_when_the_file_was_replaced() {
        let folder = Folder::new();
        let [bob, carol] = ["bob", "carol"].map(|name| name.parse::<Username>().expect("name"));
        let (path, key) = (folder.0.join("known_users"), Fingerprint([1; 32]));
        let (mut one, mut other) = (folder.open("a:1").expect("open"), folder.open("a:1").expect("open"));
        one.remember(&bob, key, Trust::Known).expect("stored");
        // The file as an editor saves it.
        fs::copy(&path, folder.0.join("copy"))
            .and_then(|_| fs::rename(folder.0.join("copy"), &path))
            .expect("saved");
        other.remember(&carol, key, Trust::Known).expect("stored");
        one.remember(&carol, key, Trust::Verified).expect("stored");
        assert_eq!(fs::read_to_string(&path).expect("there").lines().count(), 3);
    }

    /// OPERATING#records.
    #[test]
    fn record_torn_while_the_client_runs_is_reported_and_in_doubt() {
        let folder = Folder::new();
        let [bob, carol, dave] = ["bob", "carol", "dave"].map(|name| name.parse().expect("name"));
        let key = Fingerprint([1; 32]);
        let mut trust = folder.open("a:1").expect("open");
        trust.remember(&carol, key, Trust::New).expect("stored");
        assert!(trust.doubt(&bob).is_none() && trust.notices().is_empty());
        // The file as a killed client leaves it.
        let torn = "{\"server\":\"a:1\",\"name\":\"bob\",\"iden";
        let path = folder.0.join("known_users");
        fs::write(&path, fs::read_to_string(&path).expect("there") + torn).expect("written");
        trust.remember(&dave, key, Trust::New).expect("stored");
        let aside = records::asides(&path).pop().expect("set aside");
        assert_eq!(fs::read_to_string(&aside).expect("there"), torn);
        assert_eq!((trust.doubt(&bob), trust.doubt(&carol)), (Some(aside), None));
        assert!(trust.notices().concat().contains("are set aside in") && trust.notices().is_empty());
    }

    /// OPERATING#records.
    #[test]
    fn file_that_another_program_keeps_locked_is_an_error() {
        let folder = Folder::new();
        let (bob, key) = ("bob".parse().expect("name"), Fingerprint([1; 32]));
        let mut trust = folder.open("a:1").expect("open");
        let stopped = fs::File::open(folder.0.join("known_users")).expect("there");
        stopped.lock().expect("locked");
        let error = trust.remember(&bob, key, Trust::Known).expect_err("locked").to_string();
        assert!(error.contains("another program is using this file"), "{error}");
        assert!(trust.get(&bob).is_none() && folder.open("a:1").is_err());
        let begun = Instant::now();
        for n in 0..64 {
            let name = format!("user{n}").parse().expect("name");
            trust.remember(&name, key, Trust::New).expect_err("locked");
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "one wait was enough");
        drop(stopped);
        trust.remember(&bob, key, Trust::Known).expect("stored");
    }
}
