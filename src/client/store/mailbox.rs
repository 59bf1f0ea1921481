//! The mailbox file: the private halves of this machine's mailbox keys, and records of the mail for them.
//!
//! Invariant: the file is sealed (see `sealed`). A key is on disk before anything can be sealed for it, and a message
//! is recorded there before it is shown. A key is erased only on request, with its records. A damaged file is set aside
//! and stops no login. Format: PROTOCOL#mailbox-file.

use super::sealed::{Kind, Sealed, longest_line};
use crate::client::options::Options;
use crate::crypto::keys::{IdentityKey, NewMailboxKey, SessionKey};
use crate::crypto::label;
use crate::crypto::public::Fingerprint;
use crate::disk;
use crate::name::Username;
use crate::records::{self, Format};
use std::collections::BTreeMap;
use std::io;
use zeroize::Zeroizing;

/// The most keys: each absence adds one, and the next login removes it when its mail is settled.
/// PROTOCOL#mailbox-file-limits.
pub const MAX_KEYS: usize = 16;
/// The most recorded messages, at 1 KiB each: by default, a server keeps 1,000 for a user.
/// PROTOCOL#mailbox-file-limits.
const MAX_MESSAGES: usize = 20_000;
/// The longest record, in bytes: a key has about 1,230.
const LONGEST: usize = 2048;

/// The first byte of a record. PROTOCOL#mailbox-file-record.
const KEY: u8 = 1;
const TAKEN: u8 = 2;
const SHOWN: u8 = 3;

const KIND: Kind = Kind {
    folder: "mailbox",
    label: label::MAILBOX_FILE,
    longest: LONGEST,
    records: (MAX_KEYS + 2 * MAX_MESSAGES) as u64,
    format: Format { longest: longest_line(LONGEST), damaged: "is damaged, or belongs to another key" },
};

const ELSEWHERE: &str =
    "another client is using your mailbox: this one neither fetches mail nor makes a mailbox key";

/// A mailbox key of this machine.
pub struct MailboxKey {
    /// The key, which opens the mail of one absence.
    pub key: SessionKey,
    /// When it was made, in milliseconds since 1970.
    pub created: u64,
    pkcs8: Zeroizing<Vec<u8>>,
}

/// The record of one message, made before it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The mailbox key that it was sealed for.
    pub key: Fingerprint,
    /// Its sender.
    pub from: Username,
    /// The sender's session.
    pub session: Fingerprint,
    /// Its number in the conversation.
    pub sequence: u64,
    /// The message id.
    pub id: [u8; 32],
}

impl MailboxKey {
    fn record(&self) -> Zeroizing<Vec<u8>> {
        let parts = [&[KEY][..], &self.created.to_be_bytes(), &self.pkcs8];
        Zeroizing::new(parts.concat())
    }
}

impl Taken {
    fn record(&self) -> Zeroizing<Vec<u8>> {
        let (number, name) = (self.sequence.to_be_bytes(), self.from.as_str().as_bytes());
        Zeroizing::new([&[TAKEN][..], &self.key.0, &self.session.0, &number, &self.id, name].concat())
    }

    /// Reverses [`Taken::record`], without its first byte.
    fn of(rest: &[u8]) -> Option<Taken> {
        let (key, rest) = rest.split_first_chunk()?;
        let (session, rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let (id, name) = rest.split_first_chunk()?;
        Some(Taken {
            key: Fingerprint(*key),
            from: std::str::from_utf8(name).ok()?.parse().ok()?,
            session: Fingerprint(*session),
            sequence: u64::from_be_bytes(*sequence),
            id: *id,
        })
    }
}

fn shown_record(id: &[u8; 32]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new([&[SHOWN], &id[..]].concat())
}

/// The content of the file.
#[derive(Default)]
struct Content {
    keys: Vec<MailboxKey>,
    /// By message id, with whether the message was shown.
    messages: BTreeMap<[u8; 32], (Taken, bool)>,
}

impl Content {
    /// Adds the content of a record; `None` if it is invalid. PROTOCOL#mailbox-file-record.
    fn add(&mut self, record: &[u8]) -> Option<()> {
        let (kind, rest) = record.split_first()?;
        match *kind {
            KEY if self.keys.len() < MAX_KEYS => {
                let (created, pkcs8) = rest.split_first_chunk()?;
                self.keys.push(MailboxKey {
                    key: SessionKey::from_pkcs8(pkcs8).ok()?,
                    created: u64::from_be_bytes(*created),
                    pkcs8: Zeroizing::new(pkcs8.into()),
                });
            }
            TAKEN if self.messages.len() < MAX_MESSAGES => {
                let taken = Taken::of(rest)?;
                self.messages.insert(taken.id, (taken, false));
            }
            SHOWN => self.messages.get_mut(rest)?.1 = true,
            _ => return None,
        }
        Some(())
    }
}

/// The mailbox file of one account on one server.
pub struct MailboxFile {
    file: Sealed,
    wanted: bool,
    is_elsewhere: bool,
    content: Content,
}

impl MailboxFile {
    /// The file of this account on the server of `options`. Reads nothing yet. PROTOCOL#mailbox-file-form.
    pub fn new(options: &Options, owner: &Username, identity: &IdentityKey) -> MailboxFile {
        let key = identity.mailbox_file_key(owner, &options.server());
        MailboxFile {
            file: Sealed::new(&KIND, options, owner, key),
            wanted: options.mail,
            is_elsewhere: false,
            content: Content::default(),
        }
    }

    /// Whether new keys are made: not with `--no-mail`.
    pub fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Whether this client holds the lock, and the file ends as this client knows it.
    pub fn is_usable(&self) -> bool {
        self.file.is_open()
    }

    /// The notice at the start, if another client uses the file. PROTOCOL#mailbox-file-lock.
    pub fn notice(&self) -> Option<&'static str> {
        self.is_elsewhere.then_some(ELSEWHERE)
    }

    /// Locks the file and reads it; with `--no-mail`, only if it exists. Waits 2 s for an older client that the login
    /// has ended. If another client uses the file, it is not [usable](MailboxFile::is_usable). Reports a repair in
    /// `notices`, and a damaged file, which is set aside. PROTOCOL#mailbox-file-damage.
    ///
    /// # Errors
    /// The disk's, with the path; the file is then unchanged and not usable.
    pub fn load(&mut self, notices: &mut Vec<String>) -> io::Result<()> {
        if !self.wanted && !disk::is_there(self.file.path())? {
            return Ok(());
        }
        let Some(lock) = self.file.lock()? else {
            self.is_elsewhere = true;
            return Ok(());
        };
        self.file.remove_temporary()?;
        let file = lock.try_clone().map_err(disk::at(self.file.path()))?;
        let read = self.file.read(file, notices, |record| self.content.add(record).is_some());
        let Err(error) = read else { return Ok(()) };
        self.content = Content::default();
        let aside = records::copy_aside(self.file.path())?;
        lock.set_len(0).and_then(|()| lock.sync_all()).map_err(disk::at(self.file.path()))?;
        notices.push(format!(
            "{error}; the file is set aside in {}, and mail for its keys cannot be read on this machine: restore \
                the file from a copy, or remove the one set aside",
            aside.display()
        ));
        self.file.read(lock, notices, |_| false)
    }

    /// The keys, in the order in which they were added.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &MailboxKey> {
        self.content.keys.iter()
    }

    /// Adds a key made at `created` (milliseconds since 1970), which is on disk when this returns.
    /// PROTOCOL#mailbox-file-form.
    ///
    /// # Errors
    /// With the path: the disk's, or the file has 16 keys.
    pub fn add(&mut self, new: NewMailboxKey, created: u64) -> io::Result<()> {
        if self.content.keys.len() >= MAX_KEYS {
            return Err(disk::error(
                self.file.path(),
                "it has 16 mailbox keys, the most: mail for them waits for your decision on its senders' changed keys",
            ));
        }
        let (key, pkcs8) = new.into_parts();
        let key = MailboxKey { key, created, pkcs8 };
        self.file.append([key.record()], true)?;
        self.content.keys.push(key);
        Ok(())
    }

    /// Erases the keys that `keep` does not name, with their records: rewrites the file without them, and wipes them
    /// from memory. PROTOCOL#mailbox-file-erasing.
    ///
    /// # Errors
    /// The disk's, with the path. The file is then as before, or not usable.
    pub fn retain(&mut self, keep: impl Fn(&MailboxKey) -> bool) -> io::Result<()> {
        let kept: Vec<_> = self.keys().filter(|key| keep(key)).map(|key| key.key.fingerprint()).collect();
        if kept.len() == self.content.keys.len() {
            return Ok(());
        }
        let Content { keys, messages } = &self.content;
        let keys = keys.iter().filter(|key| kept.contains(&key.key.fingerprint())).map(MailboxKey::record);
        let messages = || messages.values().filter(|(taken, _)| kept.contains(&taken.key));
        let shown = messages().filter(|(_, is_shown)| *is_shown).map(|(taken, _)| shown_record(&taken.id));
        self.file.rewrite(keys.chain(messages().map(|(taken, _)| taken.record())).chain(shown))?;
        self.content.keys.retain(|key| kept.contains(&key.key.fingerprint()));
        self.content.messages.retain(|_, (taken, _)| kept.contains(&taken.key));
        // A power failure could bring the former file back.
        disk::sync_parent(self.file.path()).inspect_err(|_| self.file.close())
    }

    /// Records messages, which are on disk when this returns. Messages that are recorded already stay as they are.
    /// PROTOCOL#mailbox-file-record.
    ///
    /// # Errors
    /// With the path: the disk's, or 20,000 messages are recorded. None is recorded then.
    pub fn take(&mut self, taken: &[Taken]) -> io::Result<()> {
        let new = taken.iter().filter(|taken| !self.is_taken(&taken.id));
        let new: BTreeMap<_, _> = new.map(|taken| (taken.id, (taken.clone(), false))).collect();
        if self.content.messages.len() + new.len() > MAX_MESSAGES {
            return Err(disk::error(
                self.file.path(),
                "20000 messages are recorded, the most: log in again, which erases settled keys and their records",
            ));
        }
        self.file.append(new.values().map(|(taken, _)| taken.record()), true)?;
        self.content.messages.extend(new);
        Ok(())
    }

    /// Records that messages were shown. A crash of the machine may lose this: they are shown again then, with a mark.
    ///
    /// # Errors
    /// The disk's, with the path.
    pub fn shown(&mut self, ids: &[[u8; 32]]) -> io::Result<()> {
        let new: Vec<_> = ids.iter().filter(|id| self.is_taken(id) && !self.is_shown(id)).collect();
        self.file.append(new.iter().map(|id| shown_record(id)), false)?;
        for id in new {
            self.content.messages.get_mut(id).into_iter().for_each(|(_, is_shown)| *is_shown = true);
        }
        Ok(())
    }

    /// Whether a message of `from` is recorded as shown (true) or as taken only (false). `None` for any other.
    pub fn recorded(&self, from: &Username, id: &[u8; 32]) -> Option<bool> {
        let recorded = self.content.messages.get(id).filter(|(taken, _)| taken.from == *from);
        recorded.map(|(_, is_shown)| *is_shown)
    }

    /// Whether a message was recorded by [`MailboxFile::take`].
    fn is_taken(&self, id: &[u8; 32]) -> bool {
        self.content.messages.contains_key(id)
    }

    /// Whether a message was recorded by [`MailboxFile::shown`].
    fn is_shown(&self, id: &[u8; 32]) -> bool {
        self.content.messages.get(id).is_some_and(|(_, is_shown)| *is_shown)
    }

    /// The highest recorded number of the messages that `from` sealed for mailbox key `key` in `session`.
    pub fn sequence(&self, key: Fingerprint, from: &Username, session: Fingerprint) -> Option<u64> {
        let all = self.content.messages.values().map(|(taken, _)| taken);
        let all = all.filter(|taken| (taken.key, &taken.from, taken.session) == (key, from, session));
        all.map(|taken| taken.sequence).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::random;
    use crate::encoding::hex;
    use std::fs::{self, File};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::time::Duration;

    static IDENTITY: LazyLock<IdentityKey> = LazyLock::new(IdentityKey::generate);

    fn name(text: &str) -> Username {
        text.parse().expect("name")
    }

    /// A data folder, removed on drop.
    struct Home(PathBuf);

    impl Home {
        fn new() -> Home {
            let path = std::env::temp_dir().join(format!("mailbox-{}", hex(&random::<8>())));
            disk::private_folders(&path, &["mailbox"]).expect("folder");
            Home(path)
        }

        fn mailbox_of(&self, owner: &str, identity: &IdentityKey, words: &[&str]) -> MailboxFile {
            let data = self.0.to_str().expect("UTF-8");
            let options = Options::of(&[&["--data-dir", data], words].concat());
            MailboxFile::new(&options, &name(owner), identity)
        }

        fn loaded(&self) -> (MailboxFile, Vec<String>) {
            let (mut mailbox, mut notices) = (self.mailbox_of("alice", &IDENTITY, &[]), Vec::new());
            mailbox.load(&mut notices).expect("loads");
            (mailbox, notices)
        }

        /// Alice's mailbox, which must be in order.
        fn mailbox(&self) -> MailboxFile {
            let (mailbox, notices) = self.loaded();
            assert!(mailbox.is_usable() && notices.is_empty(), "{notices:?}");
            mailbox
        }

        fn path(&self) -> PathBuf {
            self.0.join("mailbox/alice_1ab68e0d91a2553b")
        }

        fn lines(&self) -> Vec<String> {
            let text = fs::read_to_string(self.path()).expect("text");
            text.lines().map(|line| format!("{line}\n")).collect()
        }

        /// A mailbox with these numbers of keys, and messages for the last key of which the first was shown.
        fn filled(&self, keys: u64, messages: u8) -> MailboxFile {
            let mut mailbox = self.mailbox();
            (1..=keys).for_each(|created| add(&mut mailbox, created));
            let key = fingerprints(&mailbox).pop().expect("a key");
            let taken: Vec<_> = (1..=messages).map(|id| message(key, id)).collect();
            mailbox.take(&taken).expect("recorded");
            mailbox.shown(&[[1; 32]]).expect("recorded");
            mailbox
        }
    }

    impl Drop for Home {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn add(mailbox: &mut MailboxFile, created: u64) {
        mailbox.add(NewMailboxKey::generate(), created).expect("added");
    }

    fn fingerprints(mailbox: &MailboxFile) -> Vec<Fingerprint> {
        mailbox.keys().map(|key| key.key.fingerprint()).collect()
    }

    fn message(key: Fingerprint, id: u8) -> Taken {
        Taken { key, from: name("Bob"), session: Fingerprint([9; 32]), sequence: id.into(), id: [id; 32] }
    }

    /// PROTOCOL#mailbox-file-form, PROTOCOL#mailbox-file-key, PROTOCOL#mailbox-file-record.
    #[test]
    fn mailbox_reloads_unchanged_and_is_encrypted() {
        let home = Home::new();
        let mailbox = home.filled(2, 3);
        let keys = fingerprints(&mailbox);
        drop(mailbox);
        let mailbox = home.mailbox();
        assert_eq!(fingerprints(&mailbox), keys);
        assert_eq!(mailbox.keys().map(|key| key.created).collect::<Vec<_>>(), [1, 2]);
        for key in mailbox.keys() {
            let block = key.key.public().wrap(b"message key", [1; 32]);
            assert_eq!(**key.key.unwrap(&block, [1; 32]).expect("its own"), *b"message key");
        }
        for (id, taken, shown) in [(1, true, true), (2, true, false), (3, true, false), (4, false, false)] {
            assert_eq!((mailbox.is_taken(&[id; 32]), mailbox.is_shown(&[id; 32])), (taken, shown), "{id}");
        }
        let (bob, session) = (name("Bob"), Fingerprint([9; 32]));
        assert_eq!(mailbox.sequence(keys[1], &bob, session), Some(3));
        assert_eq!(mailbox.sequence(keys[0], &bob, session), None);
        assert_eq!(mailbox.sequence(keys[1], &name("bob"), session), None);
        assert_eq!(mailbox.sequence(keys[1], &bob, keys[1]), None);
        assert_eq!(fs::metadata(home.path()).expect("there").permissions().mode() & 0o777, 0o600);
        let file = fs::read(home.path()).expect("there");
        for clear in [&b"alice"[..], &mailbox.content.keys[0].pkcs8[..32], &[9; 32]] {
            assert!(!file.windows(clear.len()).any(|bytes| bytes == clear), "{clear:?}");
        }
    }

    #[test]
    fn repeated_or_unknown_message_adds_no_record() {
        let home = Home::new();
        let mut mailbox = home.filled(1, 2);
        let (key, before) = (fingerprints(&mailbox)[0], home.lines());
        mailbox.take(&[message(key, 1), message(key, 2)]).expect("known");
        mailbox.shown(&[[1; 32], [7; 32]]).expect("known");
        assert_eq!(home.lines(), before);
        mailbox.take(&[message(key, 3), message(key, 3)]).expect("new");
        assert_eq!(home.lines().len(), before.len() + 1);
        assert!(mailbox.is_shown(&[1; 32]) && !mailbox.is_taken(&[7; 32]));
    }

    impl Home {
        /// Replaces the file by these lines. It must be set aside as it is, and a new one must work.
        fn set_aside(&self, lines: &[String]) -> String {
            for aside in records::asides(&self.path()) {
                fs::remove_file(aside).expect("removed");
            }
            fs::write(self.path(), lines.concat()).expect("written");
            let (mut mailbox, notices) = self.loaded();
            assert!(
                mailbox.is_usable() && mailbox.keys().next().is_none() && mailbox.content.messages.is_empty()
            );
            let [aside] = &records::asides(&self.path())[..] else { panic!("one file") };
            assert_eq!(fs::read_to_string(aside).expect("there"), lines.concat());
            mailbox.take(&[message(Fingerprint([1; 32]), 1)]).expect("recorded");
            drop(mailbox);
            assert!(self.mailbox().is_taken(&[1; 32]));
            let [notice] = &notices[..] else { panic!("{notices:?}") };
            assert!(notice.contains("remove the one set aside"), "{notice}");
            assert!(notice.contains(aside.to_str().expect("UTF-8")), "{notice}");
            notice.clone()
        }
    }

    /// PROTOCOL#mailbox-file-damage, PROTOCOL#mailbox-file-form.
    #[test]
    fn file_with_an_altered_record_is_set_aside_unchanged() {
        let home = Home::new();
        drop(home.filled(1, 2));
        let lines = home.lines();
        // Changes that editors make are harmless.
        let edited: Vec<_> = lines.iter().map(|line| line.replace('\n', " \r\n")).collect();
        fs::write(home.path(), format!("\u{feff}\r\n{}", edited.concat())).expect("written");
        assert_eq!(home.mailbox().content.messages.len(), 2);
        for (wanted, refused) in
            [(&[1, 0, 2, 3][..], 1), (&[0, 2, 1, 3], 2), (&[0, 1, 3], 3), (&[1], 1), (&[0, 0], 2)]
        {
            let moved: Vec<_> = wanted.iter().map(|&n: &usize| lines[n].clone()).collect();
            let notice = home.set_aside(&moved);
            assert!(notice.contains(&format!("line {refused} is damaged")), "{wanted:?}: {notice}");
        }
        for field in ["nonce", "data", "tag"] {
            let mut altered = lines.clone();
            let at = altered[1].find(&format!("\"{field}\":\"")).expect("there") + field.len() + 4;
            let other = if altered[1].as_bytes()[at] == b'A' { "B" } else { "A" };
            altered[1].replace_range(at..=at, other);
            assert!(home.set_aside(&altered).contains("line 2 is damaged"), "{field}");
        }
        let longer = [lines[0].clone(), "x".repeat(KIND.format.longest + 1)];
        assert!(home.set_aside(&longer).contains("line 2 is damaged"));
    }

    /// PROTOCOL#mailbox-file-form, PROTOCOL#mailbox-file-key.
    #[test]
    fn mailbox_opens_only_with_its_key_account_and_server() {
        let home = Home::new();
        drop(home.filled(1, 1));
        let (before, other) = (fs::read(home.path()).expect("there"), IdentityKey::generate());
        for (owner, identity, words) in [
            ("alice", &other, &[][..]),
            ("bob", &*IDENTITY, &[]),
            ("alice", &*IDENTITY, &["--port", "1316"]),
            ("alice", &*IDENTITY, &["--host", "127.0.0.1"]),
        ] {
            let (mut mailbox, mut notices) = (home.mailbox_of(owner, identity, words), Vec::new());
            fs::write(mailbox.file.path(), &before).expect("written");
            mailbox.load(&mut notices).expect("loads");
            assert!(mailbox.is_usable() && mailbox.keys().next().is_none());
            assert!(notices.concat().contains("line 1 is damaged, or belongs to another key"), "{notices:?}");
            let [aside] = &records::asides(mailbox.file.path())[..] else { panic!("one file") };
            assert_eq!(fs::read(aside).expect("there"), before);
            fs::remove_file(aside).expect("removed");
        }
    }

    /// PROTOCOL#mailbox-file-damage.
    #[test]
    fn line_torn_at_any_byte_loses_nothing_before_it() {
        let home = Home::new();
        drop(home.filled(1, 1));
        let whole = home.lines();
        let (last, before) = whole.split_last().expect("lines");
        for cut in 1..last.len() {
            fs::write(home.path(), before.concat() + &last[..cut]).expect("written");
            let (mut mailbox, notices) = home.loaded();
            let is_whole = cut == last.len() - 1;
            assert_eq!((mailbox.keys().count(), mailbox.is_shown(&[1; 32])), (1, is_whole), "{cut}");
            assert!(mailbox.is_taken(&[1; 32]) && notices.len() == 1, "{cut}");
            for aside in records::asides(&home.path()) {
                assert_eq!(fs::read_to_string(&aside).expect("there"), last[..cut]);
                fs::remove_file(aside).expect("removed");
            }
            mailbox.shown(&[[1; 32]]).expect("recorded");
            drop(mailbox);
            assert!(home.mailbox().is_shown(&[1; 32]), "{cut}");
        }
    }

    /// PROTOCOL#mailbox-file-record, PROTOCOL#mailbox-file-damage.
    #[test]
    fn invalid_record_under_a_valid_seal_sets_the_file_aside() {
        let taken = message(Fingerprint([1; 32]), 1).record();
        let a_name_is_missing = &taken[..taken.len() - "Bob".len()];
        for record in
            [&[][..], &[4], &[KEY, 1, 2], &[KEY; 100], a_name_is_missing, &[SHOWN; 33], &[SHOWN; 32]]
        {
            let home = Home::new();
            home.mailbox().file.append([record], true).expect("appended");
            let notice = home.set_aside(&home.lines());
            assert!(notice.contains("line 1 is damaged"), "{record:?}: {notice}");
        }
    }

    /// PROTOCOL#mailbox-file-erasing.
    #[test]
    fn erased_key_and_its_records_are_in_no_file() {
        let home = Home::new();
        let mut mailbox = home.filled(2, 2);
        let old = message(fingerprints(&mailbox)[0], 7);
        mailbox.take(&[old]).expect("recorded");
        let (lines, pkcs8) = (home.lines(), mailbox.content.keys[0].pkcs8.clone());
        fs::write(disk::temporary(&home.path()), lines.concat()).expect("of a crash");
        drop(mailbox);
        let mut mailbox = home.mailbox();
        assert!(!disk::temporary(&home.path()).exists());
        mailbox.retain(|_| true).expect("nothing to do");
        assert_eq!(home.lines(), lines);
        mailbox.retain(|key| key.created == 2).expect("erased");
        for mailbox in [&mailbox, &{
            drop(disk::lock(&home.path(), Duration::ZERO).expect_err("locked"));
            let mut other = home.mailbox_of("alice", &IDENTITY, &[]);
            other
                .file
                .read(File::open(home.path()).expect("opens"), &mut Vec::new(), |record| {
                    other.content.add(record).is_some()
                })
                .expect("whole");
            other
        }] {
            assert_eq!(mailbox.keys().map(|key| key.created).collect::<Vec<_>>(), [2]);
            assert!(mailbox.is_shown(&[1; 32]) && mailbox.is_taken(&[2; 32]) && !mailbox.is_taken(&[7; 32]));
        }
        let files: Vec<_> = fs::read_dir(home.path().parent().expect("a folder")).expect("there").collect();
        assert_eq!(files.len(), 1);
        let text = fs::read(home.path()).expect("there");
        let is_there = |bytes: &[u8]| text.windows(bytes.len()).any(|window| window == bytes);
        assert!(!is_there(&pkcs8[..64]) && lines.iter().all(|line| !is_there(line.as_bytes())));
        assert_eq!(home.lines().len(), 4);
        add(&mut mailbox, 3);
        drop(mailbox);
        assert_eq!(home.mailbox().keys().map(|key| key.created).collect::<Vec<_>>(), [2, 3]);
    }

    /// PROTOCOL#mailbox-file-lock.
    #[test]
    fn mailbox_is_used_by_one_client_even_while_replaced() {
        let home = Home::new();
        let mut first = home.filled(2, 1);
        assert_eq!(first.notice(), None);
        let (mut second, notices) = home.loaded();
        assert!(!second.is_usable() && second.notice() == Some(ELSEWHERE) && notices.is_empty());
        second.add(NewMailboxKey::generate(), 3).expect_err("not ours");
        second.take(&[message(Fingerprint([1; 32]), 5)]).expect_err("not ours");
        assert!(second.keys().next().is_none() && !second.is_taken(&[5; 32]));
        let former = disk::append(&home.path()).expect("opens");
        first.retain(|key| key.created == 2).expect("rewritten");
        assert!(!disk::is_at(&former, &home.path()));
        disk::lock(&home.path(), Duration::ZERO).expect_err("locked");
        drop(first);
        assert_eq!(home.mailbox().keys().count(), 1);
    }

    /// PROTOCOL#mailbox-file-limits.
    #[test]
    fn full_mailbox_refuses_and_erases_nothing() {
        let home = Home::new();
        let mut mailbox = home.filled(1, 1);
        let (key, record) = (fingerprints(&mailbox)[0], mailbox.content.keys[0].record());
        for _ in 1..MAX_KEYS {
            mailbox.file.append([&*record], false).expect("appended");
            mailbox.content.add(&record).expect("fits");
        }
        let error = mailbox.add(NewMailboxKey::generate(), 2).expect_err("full").to_string();
        assert!(error.contains("it has 16 mailbox keys"), "{error}");
        let many: Vec<_> = (2..=MAX_MESSAGES)
            .map(|n| {
                let mut id = [0; 32];
                id[..8].copy_from_slice(&n.to_be_bytes());
                Taken { id, ..message(key, 0) }
            })
            .collect();
        mailbox.take(&many).expect("fits");
        let error = mailbox.take(&[message(key, 9)]).expect_err("full").to_string();
        assert!(error.contains("20000 messages are recorded"), "{error}");
        mailbox.take(&many[..1]).expect("known");
        mailbox.shown(&many.iter().map(|taken| taken.id).collect::<Vec<_>>()).expect("fits");
        drop(mailbox);
        let mut mailbox = home.mailbox();
        assert_eq!((mailbox.keys().count(), mailbox.content.messages.len()), (MAX_KEYS, MAX_MESSAGES));
        assert!(mailbox.content.messages.values().all(|(_, is_shown)| *is_shown));
        // An endless file is not read to its end.
        mailbox.file.append([shown_record(&[1; 32])], false).expect("appended");
        mailbox.file.append([&*record], false).expect("appended");
        drop(mailbox);
        let (mailbox, notices) = home.loaded();
        assert!(mailbox.keys().next().is_none() && notices.concat().contains("is damaged"), "{notices:?}");
    }

    /// PROTOCOL#mailbox-file-damage.
    #[test]
    fn failed_write_leaves_the_mailbox_as_it_was() {
        let home = Home::new();
        let mut mailbox = home.filled(2, 1);
        let (lines, key) = (home.lines(), fingerprints(&mailbox)[0]);
        let file = File::open(home.path()).expect("opens");
        mailbox.file.read(file, &mut Vec::new(), |_| true).expect("whole");
        fs::create_dir(disk::temporary(&home.path())).expect("in the way");
        let errors = [
            mailbox.add(NewMailboxKey::generate(), 3),
            mailbox.take(&[message(key, 5)]),
            mailbox.shown(&[[1; 32]]).and_then(|()| mailbox.take(&[message(key, 6)])),
            mailbox.retain(|key| key.created == 2),
        ];
        for error in errors {
            let error = error.expect_err("no space").to_string();
            assert!(error.starts_with(home.path().to_str().expect("UTF-8")), "{error}");
        }
        assert!(mailbox.is_usable() && mailbox.keys().count() == 2 && !mailbox.is_taken(&[5; 32]));
        assert_eq!(home.lines(), lines);
        fs::remove_dir(disk::temporary(&home.path())).expect("removed");
        mailbox.retain(|key| key.created == 2).expect("rewritten");
        mailbox.take(&[message(key, 5)]).expect("recorded");
        // A write that cannot be undone.
        let torn = |()| {
            let mut file = disk::append(&home.path()).expect("opens");
            io::Write::write_all(&mut file, b"{\"nonce\":").expect("written");
            shown_record(&[5; 32])
        };
        mailbox.file.append([()].into_iter().map(torn), false).expect_err("changed");
        assert!(!mailbox.is_usable());
        mailbox.take(&[message(key, 8)]).expect_err("not usable");
    }

    #[test]
    fn no_mail_option_uses_only_an_existing_mailbox() {
        let home = Home::new();
        let load = || {
            let mut mailbox = home.mailbox_of("alice", &IDENTITY, &["--no-mail"]);
            mailbox.load(&mut Vec::new()).expect("loads");
            assert!(!mailbox.is_wanted() && mailbox.notice().is_none());
            (mailbox.is_usable(), mailbox.keys().count())
        };
        assert_eq!(load(), (false, 0));
        assert!(!home.path().exists());
        drop(home.filled(1, 1));
        assert_eq!(load(), (true, 1));
    }

    #[test]
    fn mailbox_file_that_is_a_link_is_refused() {
        let home = Home::new();
        fs::write(home.0.join("treasure"), "whole").expect("written");
        std::os::unix::fs::symlink(home.0.join("treasure"), home.path()).expect("link");
        let mut mailbox = home.mailbox_of("alice", &IDENTITY, &[]);
        mailbox.load(&mut Vec::new()).expect_err("a link");
        assert!(!mailbox.is_usable() && mailbox.notice().is_none());
        assert_eq!(fs::read(home.0.join("treasure")).expect("there"), b"whole");
    }
}
