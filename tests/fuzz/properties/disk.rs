//! Files that are read back: accounts, the client's records, the history, the mailbox file, certificates.
//!
//! All files are in the system's temporary folder: `TMPDIR=/dev/shm` keeps them off the disk.

use super::{Choices, Property, no_examples};
use secure_messenger::client::audience::Audience;
use secure_messenger::client::options::{self, Options, Request};
use secure_messenger::client::store::history::{History, Message};
use secure_messenger::client::store::mailbox::{MailboxFile, Taken};
use secure_messenger::client::store::trust::{Ignored, KnownServers, Trust, TrustStore};
use secure_messenger::clock;
use secure_messenger::crypto::keys::{IdentityKey, NewMailboxKey};
use secure_messenger::crypto::public::Fingerprint;
use secure_messenger::name::Username;
use secure_messenger::records::asides;
use secure_messenger::server::limits::LOCKOUT;
use secure_messenger::server::store::accounts::{self, Accounts};
use secure_messenger::server::store::lockout::{self, Lockout};
use secure_messenger::wire::certificate;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

pub const USERS: Property = Property { name: "users", holds: users, examples: no_examples };
pub const RECORDS: Property = Property { name: "records", holds: records, examples: some_records };
pub const HISTORY: Property = Property { name: "history", holds: history, examples: no_examples };
pub const MAILBOX: Property = Property { name: "mailbox", holds: mailbox, examples: no_examples };
pub const CERTIFICATES: Property =
    Property { name: "certificates", holds: certificates, examples: some_certificates };

/// A temporary folder, removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("properties-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a folder");
        Folder(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).expect("written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Checks that an error names the file and the line, and that the file is unchanged.
fn refused(error: &io::Error, path: &Path, bytes: &[u8]) {
    let text = error.to_string();
    assert!(text.contains("is damaged") && text.contains(": line "), "{text}");
    assert!(text.contains(path.to_str().expect("UTF-8")), "{text}");
    assert!(fs::read(path).expect("there") == bytes, "untouched");
}

/// Checks that no content is lost: it is in the file, to which a line end may have been added, or set aside.
fn nothing_is_lost(path: &Path, bytes: &[u8]) {
    let aside: Vec<u8> = asides(path).iter().flat_map(|aside| fs::read(aside).expect("there")).collect();
    let mut now = fs::read(path).expect("there");
    if now.len() + aside.len() > bytes.len() {
        assert_eq!(now.pop(), Some(b'\n'));
    }
    assert!([now, aside].concat() == bytes);
}

/// A users file is either accepted with all its lines, except for a torn last line, which is set aside; or refused and
/// left unchanged. Every reader comes to the same result.
fn users(data: &[u8]) {
    let mut choices = Choices(data);
    let folder = Folder::new();
    fs::create_dir(folder.0.join("keys")).expect("a folder");
    folder.write("salt.secret", &[1; 32]);
    let (mut bytes, mut expected) = (Vec::new(), Some(BTreeMap::new()));
    let damaged = choices.below(2) == 1;
    while !choices.is_empty() {
        let name = choices.pick(&["alice", "Alice", "bob", "carol-2"]);
        let rounds = choices.byte();
        let mut line = match choices.below(4) {
            0 => format!("{{\"name\":\"{name}\",\"removed\":true}}\n").into_bytes(),
            _ => format!(
                "{{\"name\":\"{name}\",\"salt\":\"{KEY}\",\"rounds\":{rounds},\
                \"password_key\":\"{KEY}\",\"identity\":\"{KEY}\"}}\n"
            )
            .into_bytes(),
        };
        if let Some(accounts) = &mut expected {
            match line.ends_with(b"true}\n") {
                true => drop(accounts.remove(&name.to_lowercase())),
                false => drop(accounts.insert(name.to_lowercase(), (name.to_owned(), u32::from(rounds)))),
            }
        }
        match choices.below(8) {
            0 if damaged => choices.edit(&mut line),
            1 if damaged => line = choices.text().into_bytes(),
            _ => {
                bytes.extend(line);
                continue;
            }
        }
        // The test does not predict the meaning of this line.
        expected = None;
        bytes.extend(line);
    }
    let path = folder.write("users.json", &bytes);
    let check = || {
        let mut notices = Vec::new();
        accounts::check(&folder.0, &mut notices).map(|()| notices)
    };
    let (found, mut notices) = (check().map(|notices| (listed(&folder), notices)), Vec::new());
    match Accounts::open(&folder.0, &mut notices) {
        Err(error) => {
            refused(&error, &path, &bytes);
            assert!(found.is_err() && expected.is_none());
        }
        Ok(accounts) => {
            let (found, checked) = found.expect("the same");
            assert!(checked.contains(&format!("{} accounts", accounts.count())), "{checked:?}");
            // A missing key file is only a warning of the check.
            let planned = checked.iter().filter(|line| !line.contains(".pem: "));
            assert_eq!((accounts.count(), notices.len()), (found.len(), planned.count() - 1));
            let is_repaired =
                checked.iter().any(|line| line.contains("users.json: ") && line.starts_with("WARNING"));
            assert!(expected.is_none_or(|expected| expected.into_values().eq(found.iter().cloned())));
            for (name, rounds) in &found {
                let account = accounts.get(&name.parse().expect("a name"));
                assert_eq!(account.map(|account| account.rounds), Some(*rounds));
            }
            drop(accounts);
            let again = check().expect("the same again");
            assert!(
                listed(&folder) == found && !again.iter().any(|line| line.contains("a start")),
                "{again:?}"
            );
            match checked.iter().any(|notice| notice.contains("rewrites")) {
                true => {
                    assert!(is_repaired || fs::read(path.with_extension("json.old")).expect("there") == bytes)
                }
                false => nothing_is_lost(&path, &bytes),
            }
        }
    }
}

/// 32 bytes in base64.
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Name and rounds of each account, as `server user list` reads them.
fn listed(folder: &Folder) -> Vec<(String, u32)> {
    let accounts = accounts::list(&folder.0).expect("it was read before");
    let mut all: Vec<_> = accounts.iter().map(|account| (account.name.to_string(), account.rounds)).collect();
    all.sort_by_key(|(name, _)| name.to_lowercase());
    all
}

/// A record file is either read, or refused and left unchanged; records added later are found again. Whatever the file
/// of locks contains, no lock is longer than a new one.
fn records(bytes: &[u8]) {
    let folder = Folder::new();
    let bob = name("bob");
    let open = || TrustStore::open(&folder.0, "a:1");
    let path = folder.write("known_users", bytes);
    match open() {
        Err(error) => refused(&error, &path, bytes),
        Ok(mut users) => {
            nothing_is_lost(&path, bytes);
            users.remember(&bob, Fingerprint([9; 32]), Trust::Verified).expect("stored");
            let again = open().expect("its own record");
            assert_eq!(again.get(&bob), Some((Fingerprint([9; 32]), Trust::Verified)));
        }
    }
    fs::remove_file(&path).expect("there");
    let path = folder.write("known_certificates", bytes);
    match open() {
        Err(error) => refused(&error, &path, bytes),
        Ok(mut known) => {
            nothing_is_lost(&path, bytes);
            let (now, key) = (clock::now_ms(), Fingerprint([9; 32]));
            let is_new = known.admit(&bob, key, (false, now, key), now);
            drop(known);
            let again = open().expect("its own record").newest(&bob, key, false, now);
            let is_newest = again.is_some_and(|(created, _)| created >= now);
            assert!(is_newest && (!is_new || again == Some((now, key))));
        }
    }
    let open = || KnownServers::open(&folder.0);
    let path = folder.write("known_servers", bytes);
    match open() {
        Err(error) => refused(&error, &path, bytes),
        Ok(mut servers) => {
            nothing_is_lost(&path, bytes);
            servers.remember("a:1", Fingerprint([9; 32])).expect("stored");
            let again = open().expect("its own record");
            assert_eq!(again.get("a:1"), Some(Fingerprint([9; 32])));
        }
    }
    let open = || Ignored::open(&folder.0, "a:1");
    let path = folder.write("ignored", bytes);
    match open() {
        Err(error) => refused(&error, &path, bytes),
        Ok(mut ignored) => {
            nothing_is_lost(&path, bytes);
            let others = ignored.names().filter(|name| name.folded() != "bob").count();
            ignored.set(&bob, true).expect("stored");
            let again = open().expect("its own record");
            assert!(again.contains(&bob) && again.names().count() == others + 1);
        }
    }
    let path = folder.write("locks.json", bytes);
    let locked = match lockout::list(&folder.0) {
        Err(error) => return refused(&error, &path, bytes),
        Ok(locked) => locked,
    };
    assert!(locked.values().all(|left| *left <= LOCKOUT));
    let check = || {
        let mut notices = Vec::new();
        lockout::check(&folder.0, &mut notices).expect("not refused now either");
        notices.join("\n")
    };
    let is_understood = !check().contains(" lines cannot be read");
    Lockout::open(&folder.0, &mut Vec::new()).expect("not refused now either");
    assert!(!check().contains("cannot be read"));
    let shortened = lockout::list(&folder.0).expect("its own");
    assert!(shortened.keys().all(|name| locked.contains_key(name)));
    // Zeros behind the last line and a torn end are set aside in one file, then the rest in another. Blanks are not
    // content.
    let plain =
        |bytes: &[u8]| bytes.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect::<Vec<_>>();
    let lines = plain(&bytes[..bytes.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1)]);
    let parts: Vec<_> = asides(&path).iter().map(|aside| plain(&fs::read(aside).expect("there"))).collect();
    let ends = || parts.iter().map(Vec::as_slice).chain([&[][..]]);
    let holds = |part: &Vec<u8>| ends().any(|end| [part, end].concat().starts_with(&lines));
    assert!(is_understood || parts.iter().any(holds));
}

fn some_records() -> Vec<Vec<u8>> {
    let user = |name: &str, verified: bool, decided: bool| {
        format!(
            "{{\"server\":\"a:1\",\"name\":\"{name}\",\"identity\":\"{KEY}\",\
            \"verified\":{verified},\"decided\":{decided}}}\n"
        )
    };
    let texts = [
        user("bob", false, false) + &user("Bob", true, true) + &user("bob", true, false),
        format!(
            "{{\"server\":\"a:1\",\"fingerprint\":\"{KEY}\"}}\n{{\"server\":\"\",\"fingerprint\":\"{KEY}\"}}\n"
        ),
        "{\"server\":\"a:1\",\"name\":\"Bob\",\"ignored\":true}\n\
        {\"server\":\"a:1\",\"name\":\"bob\",\"ignored\":false}\n"
            .into(),
        "{\"name\":\"bob\",\"until\":18446744073709551615}\n\n{\"name\":\"\",\"until\":0}\n".into(),
        // A record that is valid in every file.
        format!(
            "{{\"server\":\"a:1\",\"name\":\"bob\",\"identity\":\"{KEY}\",\"fingerprint\":\"{KEY}\",\
            \"verified\":true,\"decided\":true,\"ignored\":true,\"until\":1}}\n"
        ),
        format!("{}\n", "x".repeat(4095)),
        format!("\u{feff}\r\n{}\0\0\0", user("bob", true, true).replace('\n', " \r\n \n")),
        user("bob", true, true).trim_end().into(),
    ];
    texts.map(String::into_bytes).to_vec()
}

static IDENTITY: LazyLock<IdentityKey> = LazyLock::new(IdentityKey::generate);

fn options_in(folder: &Path) -> Options {
    let words = ["--keep-history", "--data-dir", folder.to_str().expect("UTF-8")];
    match options::parse(words.into_iter().map(Into::into)) {
        Ok(Request::Run(options)) => *options,
        _ => panic!("options"),
    }
}

fn name(text: &str) -> Username {
    text.parse().expect("name")
}

fn history_in(folder: &Path) -> History {
    History::new(&options_in(folder), &name("alice"), &IDENTITY)
}

/// The name and bytes of the only file in a folder.
fn only_file(folder: &Path) -> (String, Vec<u8>) {
    let mut files = fs::read_dir(folder).expect("a folder");
    let path = files.next().expect("one").expect("an entry").path();
    let name = path.file_name().expect("named").to_str().expect("UTF-8").to_owned();
    (name, fs::read(path).expect("there"))
}

/// The messages of the history file.
fn kept() -> VecDeque<Message> {
    let texts = ["one", "two\nlines, @alice", "", "é"];
    let from = name("bob");
    let said = (1..).zip(texts).map(|(time, text)| (time, text.to_string(), from.clone()));
    said.map(|(time, text, from)| Message { time, from, to: Audience::Everyone, text }).collect()
}

/// The name and bytes of a history file.
static FILE: LazyLock<(String, Vec<u8>)> = LazyLock::new(|| {
    let folder = Folder::new();
    fs::create_dir(folder.0.join("history")).expect("a folder");
    let mut history = history_in(&folder.0);
    history.load(&mut Vec::new()).expect("nothing is there");
    for message in kept() {
        history.append(message, [].into_iter()).expect("appended");
    }
    only_file(&folder.0.join("history"))
});

/// Alters, moves, repeats, removes and adds lines.
fn alter(bytes: &[u8], mut choices: Choices) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    while !choices.is_empty() {
        let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(Into::into).collect();
        let count = lines.len().max(1);
        let (kind, one, other) = (choices.below(6), choices.below(count), choices.below(count));
        match kind {
            0 if !lines.is_empty() => lines.swap(one, other),
            1 if !lines.is_empty() => drop(lines.remove(one)),
            // Limited, because a line without its end continues in the next one.
            2 if (1..1 << 14).contains(&bytes.len()) => lines.insert(one, lines[other].clone()),
            3 => lines.push(choices.text().into_bytes()),
            _ => lines.get_mut(one).into_iter().for_each(|line| choices.edit(line)),
        }
        bytes = lines.concat();
    }
    bytes
}

/// From an altered history, the client reads the first entries, or none, and leaves the file unchanged.
/// PROTOCOL#history-chain, PROTOCOL#history-record, PROTOCOL#history-damage.
fn history(data: &[u8]) {
    let ((name, bytes), entries) = (&*FILE, kept());
    let bytes = alter(bytes, Choices(data));
    let folder = Folder::new();
    fs::create_dir(folder.0.join("history")).expect("a folder");
    let path = folder.write(&format!("history/{name}"), &bytes);
    let mut history = history_in(&folder.0);
    match history.load(&mut Vec::new()) {
        Err(error) => {
            refused_history(&error, &path, &bytes);
            assert!(!history.is_kept());
        }
        Ok(found) => {
            assert!(found.len() <= entries.len() && entries.iter().zip(&found).all(|(a, b)| a == b));
            nothing_is_lost(&path, &bytes);
            // The next message continues the chain.
            history.append(entries[0].clone(), [].into_iter()).expect("appended");
            drop(history);
            let again = history_in(&folder.0).load(&mut Vec::new()).expect("its own record");
            assert_eq!((again.len(), again.back()), (found.len() + 1, entries.front()));
        }
    }
}

fn refused_history(error: &io::Error, path: &Path, bytes: &[u8]) {
    refused(error, path, bytes);
    assert!(error.to_string().contains("/history forget"), "{error}");
}

fn taken(id: u8) -> Taken {
    let (key, session) = (Fingerprint([1; 32]), Fingerprint([2; 32]));
    Taken { key, from: name("bob"), session, sequence: id.into(), id: [id; 32] }
}

/// The mailbox file of alice, which must load, and which of its four records were read.
fn mailbox_in(folder: &Path) -> (MailboxFile, [bool; 4]) {
    let mut mailbox = MailboxFile::new(&options_in(folder), &name("alice"), &IDENTITY);
    mailbox.load(&mut Vec::new()).expect("loads");
    assert!(mailbox.is_usable());
    let has_key = mailbox.keys().any(|key| key.created == 1);
    let [one, two] = [1, 2].map(|id| mailbox.recorded(&name("bob"), &[id; 32]));
    let found = [has_key, one.is_some(), two.is_some(), one == Some(true)];
    (mailbox, found)
}

/// The name and bytes of a mailbox file.
static MAILBOX_FILE: LazyLock<(String, Vec<u8>)> = LazyLock::new(|| {
    let folder = Folder::new();
    fs::create_dir(folder.0.join("mailbox")).expect("a folder");
    let (mut mailbox, found) = mailbox_in(&folder.0);
    mailbox.add(NewMailboxKey::generate(), 1).expect("added");
    mailbox.take(&[taken(1), taken(2)]).and_then(|()| mailbox.shown(&[[1; 32]])).expect("recorded");
    drop(mailbox);
    assert!(found == [false; 4] && mailbox_in(&folder.0).1 == [true; 4]);
    only_file(&folder.0.join("mailbox"))
});

/// From an altered mailbox file, the client reads the first records, or sets all of it aside; nothing is lost, and the
/// next record is found again.
/// PROTOCOL#mailbox-file-form, PROTOCOL#mailbox-file-record, PROTOCOL#mailbox-file-damage.
fn mailbox(data: &[u8]) {
    let (name, bytes) = &*MAILBOX_FILE;
    let bytes = alter(bytes, Choices(data));
    let folder = Folder::new();
    fs::create_dir(folder.0.join("mailbox")).expect("a folder");
    let path = folder.write(&format!("mailbox/{name}"), &bytes);
    let (mut mailbox, found) = mailbox_in(&folder.0);
    assert!(found.is_sorted_by(|one, next| one >= next), "{found:?}");
    nothing_is_lost(&path, &bytes);
    mailbox.take(&[taken(3)]).expect("recorded");
    drop(mailbox);
    let (mailbox, again) = mailbox_in(&folder.0);
    assert!(again == found && mailbox.recorded(&taken(3).from, &[3; 32]).is_some());
}

/// A certificate file is either a certificate with a known end, or an error that names the path.
/// PROTOCOL#server-key.
fn certificates(bytes: &[u8]) {
    // As DER, in which form the client gets it from TLS.
    if let Some(facts) = certificate::facts(bytes) {
        assert!(facts.not_after < 1 << 48, "year 9999 at the latest");
        for now in [0, facts.not_after, u64::MAX] {
            let is_valid = now > 0 || facts.not_before > 0;
            assert_eq!(certificate::notice(&facts, now).is_some(), is_valid);
        }
    }
    let folder = Folder::new();
    let path = folder.write("server.crt", bytes);
    if let Err(error) = certificate::read_facts(&path) {
        assert!(error.to_string().starts_with(path.to_str().expect("UTF-8")), "{error}");
    }
}

fn some_certificates() -> Vec<Vec<u8>> {
    let folder = Folder::new();
    certificate::prepare(&folder.0, 1_700_000_000_000).expect("made");
    let pem = fs::read_to_string(folder.0.join("server.crt")).expect("there");
    let lines = pem.lines().filter(|line| !line.starts_with("-----")).collect::<String>();
    let der = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, lines).expect("PEM");
    vec![pem.into_bytes(), der]
}
