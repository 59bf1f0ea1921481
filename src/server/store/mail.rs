//! Messages for absent users: `mail/NAME/`, a folder for each user who has a mailbox key.
//!
//! Each message is a file of its own, and so is the certificate of the mailbox key. A file is complete and synced
//! before it gets its name, and a message is never changed, so a crash leaves no part of one, and a damaged file costs
//! one message. The name of a file contains what the index needs: a start reads no message.
//!
//! Invariants: a message stays until its recipient has confirmed it, its days are over, or an account is removed. A
//! file that cannot be read is set aside and reported, never erased. A mailbox's lock is held while the server checks
//! that the user is absent and the key is in use, and writes a message; no other lock is held during disk access. A
//! thread takes it while it holds no lock. `boxes` and `usage` are leaves. Format: OPERATING#server-mail.
//! Specification: PROTOCOL#keeping.

use super::audit::Audit;
use super::files::Notices;
use crate::clock;
use crate::crypto::public::is_mailbox_valid_at;
use crate::disk;
use crate::encoding::hex;
use crate::name::Username;
use crate::protocol::{
    self, EncryptedMessage, Kept, KeyId, MAX_MAIL, MAX_MAIL_BYTES, MailboxCertificate, ServerMessage,
};
use crate::records;
use crate::server::limits::{DAY, MailLimits};
use crate::sync::lock;
use miniserde::json;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The folder in the data folder.
const FOLDER: &str = "mail";
/// The file of a mailbox key's certificate, in its user's folder.
const KEY: &str = "key";
/// The numbers of all messages are lower: 12 digits.
const MAX_NUMBER: u64 = 1_000_000_000_000;
/// The longest file that is read, in bytes: the longest message has 47,000.
const MAX_FILE: usize = 64 * 1024;

/// See the module.
pub struct Mail {
    folder: PathBuf,
    /// The limits, as the operator has set them.
    pub limits: MailLimits,
    /// By recipient.
    boxes: Mutex<HashMap<Username, Place>>,
    /// The number of messages from each sender, and their bytes.
    usage: Mutex<HashMap<Username, (usize, u64)>>,
    audit: Arc<Audit>,
}

/// The result of [`Mail::keep`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The message is on disk.
    Kept,
    /// The recipient has a session or another mailbox key, or the sender's session has ended.
    Stale,
    /// A limit is reached.
    Full,
}

/// A mailbox key's certificate, with the key's id.
type Key = (KeyId, Arc<MailboxCertificate>);

#[derive(Clone, Default)]
struct Place {
    /// Changes under the lock of the mailbox.
    key: Option<Key>,
    mailbox: Arc<Mutex<Mailbox>>,
}

#[derive(Default)]
struct Mailbox {
    /// In the order of their numbers.
    messages: Vec<Message>,
    /// The highest number so far.
    last: u64,
}

/// A message on disk.
struct Message {
    number: u64,
    /// Milliseconds since 1970.
    arrived: u64,
    /// The mailbox key that it is sealed for.
    key: KeyId,
    from: Username,
    bytes: u64,
    /// The beginning of its signature, by which a message that is sent again is noticed; `None` after a restart.
    mark: Option<[u8; 8]>,
}

impl Message {
    fn file(&self) -> String {
        format!("{:012}-{}-{}-{}", self.number, self.arrived, hex(&self.key), self.from.as_str())
    }

    /// `None` if no message's file has this name.
    fn parse(file: &str, bytes: u64) -> Option<Message> {
        let mut parts = file.splitn(4, '-');
        let (number, arrived) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let key = u64::from_str_radix(parts.next()?, 16).ok()?.to_be_bytes();
        let message = Message { number, arrived, key, from: parts.next()?.parse().ok()?, bytes, mark: None };
        (message.file() == file && number < MAX_NUMBER).then_some(message)
    }

    /// Reads the message, which waits in the folder of its recipient `to`.
    fn read(&self, folder: &Path, to: &Username) -> io::Result<Box<EncryptedMessage>> {
        let path = folder.join(self.file());
        let bytes = disk::read(&path, MAX_FILE)?;
        if let Ok(ServerMessage::EncryptedMessage(message)) = ServerMessage::decode(bytes.trim_ascii_end())
            && message.envelope.header.from == self.from
            && message.envelope.header.recipient.as_ref() == Some(to)
            && message.key.id() == self.key
        {
            return Ok(message);
        }
        Err(disk::error(&path, "not the message that was kept"))
    }
}

/// The users' folders, and the messages in each, in order.
fn load(folder: &Path) -> io::Result<Vec<(Username, PathBuf, Vec<Message>)>> {
    if !disk::is_there(folder)? {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(disk::at(folder))?.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_str().filter(|_| path.is_dir()).and_then(|name| name.parse().ok());
        let Some(name) = name else { continue };
        let files = fs::read_dir(&path).map_err(disk::at(&path))?.flatten();
        let message = |file: fs::DirEntry| {
            Message::parse(file.file_name().to_str()?, file.metadata().map_or(0, |data| data.len()))
        };
        let mut messages: Vec<_> = files.filter_map(message).collect();
        messages.sort_by_key(|message| message.number);
        found.push((name, path, messages));
    }
    Ok(found)
}

/// The certificate in a user's folder, if there is one.
fn certificate(folder: &Path) -> io::Result<Option<MailboxCertificate>> {
    let path = folder.join(KEY);
    if !disk::is_there(&path)? {
        return Ok(None);
    }
    let certificate = records::parse(&disk::read(&path, MAX_FILE)?);
    certificate.map(Some).ok_or_else(|| disk::error(&path, "not the certificate of a mailbox key"))
}

/// Moves a file that cannot be read to a new name. Returns a sentence for the operator.
fn set_aside(path: &Path, error: &io::Error) -> String {
    let aside = records::copy_aside(path).and_then(|aside| fs::remove_file(path).map(|()| aside));
    match aside {
        Ok(aside) => format!("{error}: it is set aside in {}", aside.display()),
        Err(failure) => format!("{error}; it cannot be set aside: {failure}"),
    }
}

/// Reports the messages that wait, and the files that cannot be read.
///
/// # Errors
/// As [`Mail::open`].
pub fn check(folder: &Path, notices: &mut Notices) -> io::Result<()> {
    let (mut count, mut bytes) = (0, 0);
    for (name, folder, messages) in load(&folder.join(FOLDER))? {
        count += messages.len();
        bytes += messages.iter().map(|message| message.bytes).sum::<u64>();
        let unreadable = messages.iter().filter_map(|message| message.read(&folder, &name).err());
        let unreadable = unreadable.chain(certificate(&folder).err());
        notices.extend(unreadable.map(|error| format!("WARNING: {error}: it is set aside when it is used")));
    }
    if count > 0 {
        notices.push(format!("{count} messages wait for absent users ({} KiB)", bytes / 1024));
    }
    Ok(())
}

impl Mail {
    /// Reads the names of the files in the data folder `folder`, and removes the remains of a crash.
    ///
    /// # Errors
    /// The disk's, with the path in the text.
    pub fn open(folder: &Path, audit: Arc<Audit>, notices: &mut Notices) -> io::Result<Mail> {
        let (limits, boxes, usage) = Default::default();
        let mail = Mail { folder: folder.join(FOLDER), limits, boxes, usage, audit };
        for (name, folder, messages) in load(&mail.folder)? {
            disk::remove_temporary(&folder, |file| file == KEY || Message::parse(file, 0).is_some())?;
            let key = certificate(&folder).unwrap_or_else(|error| {
                notices.push(set_aside(&folder.join(KEY), &error));
                None
            });
            messages.iter().for_each(|message| mail.count(message));
            let last = messages.last().map_or(0, |message| message.number);
            let key = key.map(|certificate| (certificate.key_id(), Arc::new(certificate)));
            let place = Place { key, mailbox: Arc::new(Mutex::new(Mailbox { messages, last })) };
            lock(&mail.boxes).insert(name, place);
        }
        Ok(mail)
    }

    /// The number of messages that wait, and their bytes.
    pub fn counts(&self) -> (usize, u64) {
        let usage = lock(&self.usage);
        usage.values().fold((0, 0), |(count, bytes), of| (count + of.0, bytes + of.1))
    }

    fn count(&self, message: &Message) {
        let mut usage = lock(&self.usage);
        let (count, bytes) = usage.entry(message.from.clone()).or_default();
        (*count, *bytes) = (*count + 1, *bytes + message.bytes);
    }

    fn uncount(&self, message: &Message) {
        if let Some((count, bytes)) = lock(&self.usage).get_mut(&message.from) {
            (*count, *bytes) = (*count - 1, *bytes - message.bytes);
        }
    }

    /// The valid mailbox key of this user; `None` if there is none, or the server keeps no messages.
    pub fn key(&self, name: &Username) -> Option<Key> {
        let key = lock(&self.boxes).get(name)?.key.clone()?;
        (self.limits.bytes > 0 && is_mailbox_valid_at(key.1.created, clock::now_ms())).then_some(key)
    }

    /// The `created` of this user's newest mailbox key, in milliseconds since 1970; 0 if there is none.
    pub fn newest(&self, name: &Username) -> u64 {
        lock(&self.boxes).get(name).and_then(|place| place.key.as_ref()).map_or(0, |key| key.1.created)
    }

    /// Replaces a user's mailbox key by one whose certificate was verified; returns when it is on disk. False, and
    /// nothing changes, if it is not newer, or the request is not `is_current`. PROTOCOL#mailbox-key.
    ///
    /// # Errors
    /// The disk's, with the path in the text; the former key stays then.
    pub fn set(
        &self,
        name: &Username,
        new: &MailboxCertificate,
        is_current: impl FnOnce() -> bool,
    ) -> io::Result<bool> {
        let mailbox = lock(&self.boxes).entry(name.clone()).or_default().mailbox.clone();
        let _mailbox = lock(&mailbox);
        let former = self.place(name).and_then(|place| place.key);
        // A client whose connection broke before the answer sends the same key again.
        if former.is_some_and(|former| *former.1 == *new) {
            return Ok(true);
        }
        if new.created <= self.newest(name) || !is_current() {
            return Ok(false);
        }
        let folder = self.folder.join(name.as_str());
        let line = json::to_string(new) + "\n";
        let written = disk::make_folder(&folder);
        let written = written.and_then(|()| disk::replace(&folder.join(KEY), line.as_bytes()));
        written.inspect_err(|error| self.failed(name, error))?;
        let key = Some((new.key_id(), Arc::new(new.clone())));
        if let Some(place) = lock(&self.boxes).get_mut(name) {
            place.key = key;
        }
        Ok(true)
    }

    /// Keeps a private or room message for its recipient, if the caller `may` still do so; returns when it is on disk.
    /// The same message again is kept once: a client sends it again if its connection broke before the answer.
    /// PROTOCOL#keeping.
    ///
    /// # Errors
    /// The disk's, with the path in the text. The message may have been kept nevertheless.
    pub fn keep(
        &self,
        to: &Username,
        message: Box<EncryptedMessage>,
        may: impl FnOnce() -> bool,
    ) -> io::Result<Outcome> {
        let (from, key) = (message.envelope.header.from.clone(), message.key.id());
        let mark = message.envelope.body.signature.0.first_chunk().copied();
        let line = ServerMessage::EncryptedMessage(message).encode();
        let Some(place) = self.place(to) else { return Ok(Outcome::Stale) };
        let mut mailbox = lock(&place.mailbox);
        if mailbox.messages.iter().any(|one| one.from == from && one.mark == mark) {
            return Ok(Outcome::Kept);
        }
        if self.key(to).is_none_or(|current| current.0 != key) || !may() {
            return Ok(Outcome::Stale);
        }
        let (number, arrived, bytes) = (mailbox.last + 1, clock::now_ms(), line.len() as u64);
        let new = Message { number, arrived, key, from, bytes, mark };
        if !self.reserve(&mailbox.messages, &new) {
            return Ok(Outcome::Full);
        }
        let path = self.folder.join(to.as_str()).join(new.file());
        disk::replace(&path, &line).inspect_err(|error| {
            let _ = fs::remove_file(&path);
            self.uncount(&new);
            self.failed(to, error);
        })?;
        mailbox.last = number;
        mailbox.messages.push(new);
        Ok(Outcome::Kept)
    }

    /// Counts a new message, if the limits allow it beside the messages in its mailbox. PROTOCOL#mail-limits.
    fn reserve(&self, messages: &[Message], new: &Message) -> bool {
        self.count(new);
        let limits = &self.limits;
        let own = messages.iter().filter(|one| one.from == new.from).map(|one| one.bytes).sum::<u64>();
        let all = messages.iter().map(|one| one.bytes).sum::<u64>() + new.bytes;
        let from_sender = lock(&self.usage).get(&new.from).map_or(0, |usage| usage.1);
        let has_room = messages.len() < limits.messages
            && all <= limits.bytes
            && own + new.bytes <= limits.bytes / 8
            && from_sender <= limits.sender
            && self.counts().1 <= limits.total;
        if !has_room {
            self.uncount(new);
        }
        has_room
    }

    /// The oldest messages for this user with numbers above `after` that are sealed for these keys. Sets unreadable
    /// files aside. PROTOCOL#fetching.
    pub fn fetch(&self, name: &Username, keys: &[KeyId], after: u64) -> protocol::Mail {
        let mut mail = protocol::Mail { mail: Vec::new(), more: false, other: 0, until: 0 };
        let Some(place) = self.place(name) else { return mail };
        let (folder, mut bytes) = (self.folder.join(name.as_str()), 0);
        lock(&place.mailbox).messages.retain(|one| {
            let is_full = mail.mail.len() == MAX_MAIL || bytes + one.bytes > MAX_MAIL_BYTES as u64;
            if !keys.contains(&one.key) {
                mail.other += 1;
                mail.until = mail.until.max(one.arrived.saturating_add(self.limits.days * DAY));
            } else if one.number > after && (mail.more || is_full) {
                mail.more = true;
            } else if one.number > after {
                match one.read(&folder, name) {
                    Ok(message) => mail.mail.push(Kept { number: one.number, message }),
                    Err(error) => {
                        let done = set_aside(&folder.join(one.file()), &error);
                        self.audit.log("damaged_mail", Some(name), None, &done);
                        self.uncount(one);
                        return false;
                    }
                }
                bytes += one.bytes;
            }
            true
        });
        mail
    }

    /// Deletes messages that the recipient has confirmed. PROTOCOL#mail_done.
    pub fn done(&self, name: &Username, numbers: &[u64]) {
        let numbers: HashSet<_> = numbers.iter().collect();
        if let Some(place) = self.place(name) {
            self.delete(name, &place, |one| numbers.contains(&one.number));
        }
    }

    /// Deletes the messages whose days are over at `now_ms`, in milliseconds since 1970. PROTOCOL#mail-limits.
    pub fn expire(&self, now_ms: u64) {
        let all = lock(&self.boxes).clone();
        let is_over = |one: &Message| now_ms.saturating_sub(one.arrived) > self.limits.days * DAY;
        all.iter().for_each(|(name, place)| _ = self.delete(name, place, is_over));
    }

    /// Deletes the mailbox of a user whose account is being removed and whose session has ended, and all messages from
    /// the user. Returns the number of these messages.
    pub fn remove(&self, name: &Username) -> usize {
        let former = lock(&self.boxes).remove(name);
        let own = former.map_or(0, |place| self.delete(name, &place, |_| true));
        let folder = self.folder.join(name.as_str());
        if folder.exists() {
            let _ = fs::remove_dir_all(&folder).inspect_err(|error| self.failed(name, error));
        }
        let others = lock(&self.boxes).clone();
        let from = others.iter().map(|(other, place)| self.delete(other, place, |one| one.from == *name));
        own + from.sum::<usize>()
    }

    /// Deletes the messages of a mailbox that are `over`, and returns their number. A file that cannot be deleted is
    /// delivered again after a restart.
    fn delete(&self, name: &Username, place: &Place, over: impl Fn(&Message) -> bool) -> usize {
        let (folder, mut mailbox) = (self.folder.join(name.as_str()), lock(&place.mailbox));
        let before = mailbox.messages.len();
        mailbox.messages.retain(|one| {
            if over(one) {
                let _ =
                    fs::remove_file(folder.join(one.file())).inspect_err(|error| self.failed(name, error));
                self.uncount(one);
            }
            !over(one)
        });
        if mailbox.messages.len() < before {
            // Otherwise a power failure could bring them back after their key is gone.
            let _ = disk::sync_parent(&folder.join(KEY)).inspect_err(|error| self.failed(name, error));
        }
        before - mailbox.messages.len()
    }

    fn place(&self, name: &Username) -> Option<Place> {
        lock(&self.boxes).get(name).cloned()
    }

    fn failed(&self, name: &Username, error: &io::Error) {
        self.audit.log("storage_failed", Some(name), None, &error.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::super::accounts::tests::Folder;
    use super::*;
    use crate::crypto::public::{Fingerprint, RSA_BYTES, WRAPPED_BYTES};
    use crate::encoding::{Bytes, Fixed};
    use crate::protocol::{Body, Envelope, Header, Kind, Scope, WrappedKey};
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    fn name(name: &str) -> Username {
        name.parse().expect("a name")
    }

    fn open(folder: &Folder) -> Mail {
        open_with(folder, &mut Notices::new())
    }

    fn open_with(folder: &Folder, notices: &mut Notices) -> Mail {
        let audit = Arc::new(Audit::open(&folder.0.join("logs")).expect("a log"));
        Mail::open(&folder.0, audit, notices).expect("a folder")
    }

    /// Sets a key in the current session. Returns whether it was accepted.
    fn set(mail: &Mail, user: &str, new: &MailboxCertificate) -> bool {
        mail.set(&name(user), new, || true).expect("a disk")
    }

    /// The id of carol's mailbox key.
    fn id(mail: &Mail) -> Option<KeyId> {
        mail.key(&name("carol")).map(|key| key.0)
    }

    fn log(mail: &Mail, folder: &Folder) -> String {
        mail.audit.flush();
        fs::read_to_string(folder.0.join("logs/security.log")).expect("a log")
    }

    /// A certificate that nobody verifies.
    fn key(byte: u8, created: u64) -> MailboxCertificate {
        MailboxCertificate {
            mailbox_key: Bytes(vec![byte; 294]),
            created,
            certificate: Fixed([7; RSA_BYTES]),
        }
    }

    /// A mailbox for carol with the key `key(1, …)`.
    fn with_box(folder: &Folder) -> (Mail, KeyId) {
        let (mail, new) = (open(folder), key(1, clock::now_ms()));
        assert!(set(&mail, "carol", &new));
        (mail, new.key_id())
    }

    fn message(from: &str, to: &str, key: KeyId, mark: u8) -> Box<EncryptedMessage> {
        sized(from, to, key, mark, 256)
    }

    /// A message with a ciphertext of `size` bytes.
    fn sized(from: &str, to: &str, key: KeyId, mark: u8, size: usize) -> Box<EncryptedMessage> {
        let mut wrapped = [mark; WRAPPED_BYTES];
        wrapped[..8].copy_from_slice(&key);
        let header = Header {
            kind: Kind::Message,
            scope: Scope::Private,
            recipient: Some(name(to)),
            recipient_key: Some(Fingerprint([1; 32])),
            from: name(from),
            identity: Fingerprint([2; 32]),
            session: Fingerprint([3; 32]),
            sequence: mark.into(),
            time: 1,
            again: None,
        };
        let body = Body {
            commitment: Fixed([4; 32]),
            nonce: Fixed([5; 12]),
            ciphertext: Bytes(vec![6; size]),
            tag: Fixed([7; 16]),
            signature: Fixed([mark; RSA_BYTES]),
        };
        Box::new(EncryptedMessage { envelope: Envelope { header, body }, key: WrappedKey::new(&wrapped) })
    }

    /// Keeps a message for carol.
    fn keep(mail: &Mail, from: &str, key: KeyId, mark: u8) -> Outcome {
        mail.keep(&name("carol"), message(from, "carol", key, mark), || true).expect("a disk")
    }

    /// The sequence numbers of the messages that wait for carol under this key.
    fn waiting(mail: &Mail, key: KeyId) -> Vec<u64> {
        let fetched = mail.fetch(&name("carol"), &[key], 0);
        fetched.mail.iter().map(|kept| kept.message.envelope.header.sequence).collect()
    }

    /// The files in carol's folder whose names contain `part`.
    fn files(folder: &Folder, part: &str) -> Vec<PathBuf> {
        let all =
            fs::read_dir(folder.0.join("mail/carol")).expect("a folder").flatten().map(|entry| entry.path());
        let mut found: Vec<_> = all.filter(|path| path.display().to_string().contains(part)).collect();
        found.sort();
        found
    }

    /// PROTOCOL#keeping, PROTOCOL#fetching, PROTOCOL#mail_done.
    #[test]
    fn kept_messages_wait_in_order_until_they_are_done() {
        let folder = Folder::new();
        let (mail, key) = with_box(&folder);
        for (from, mark) in [("alice", 1), ("bob", 2), ("alice", 3)] {
            assert_eq!(keep(&mail, from, key, mark), Outcome::Kept);
        }
        assert_eq!((waiting(&mail, key), waiting(&mail, [0; 8])), (vec![1, 2, 3], vec![]));
        let (count, bytes) = mail.counts();
        let mail = open(&folder);
        assert_eq!((mail.counts(), id(&mail)), ((count, bytes), Some(key)));
        assert_eq!((waiting(&mail, key), count), (vec![1, 2, 3], 3));
        let numbers: Vec<_> =
            mail.fetch(&name("carol"), &[key], 0).mail.iter().map(|kept| kept.number).collect();
        // Another user's request deletes nothing.
        mail.done(&name("mallory"), &numbers);
        mail.done(&name("carol"), &[numbers[1], 99]);
        assert_eq!(waiting(&mail, key), [1, 3]);
        mail.done(&name("carol"), &numbers);
        assert_eq!((waiting(&mail, key), mail.counts()), (vec![], (0, 0)));
        assert_eq!((keep(&mail, "alice", key, 4), waiting(&open(&folder), key)), (Outcome::Kept, vec![4]));
    }

    /// PROTOCOL#fetching.
    #[test]
    fn mail_comes_in_batches_and_counts_messages_for_other_keys() {
        let folder = Folder::new();
        let (mail, first) = with_box(&folder);
        assert_eq!(keep(&mail, "alice", first, 200), Outcome::Kept);
        let second = key(2, clock::now_ms() + 1);
        assert!(set(&mail, "carol", &second));
        let second = second.key_id();
        (0..18).for_each(|mark| assert_eq!(keep(&mail, "alice", second, mark), Outcome::Kept));
        let fetch = |keys: &[KeyId]| mail.fetch(&name("carol"), keys, 0);
        let batch = fetch(&[second]);
        assert_eq!((batch.mail.len(), batch.more, batch.other), (MAX_MAIL, true, 1));
        let now = clock::now_ms();
        let month = 30 * 24 * 3_600_000;
        assert!((now + month - 60_000..=now + month).contains(&batch.until));
        let numbers: Vec<_> = batch.mail.iter().map(|kept| kept.number).collect();
        // A client continues without confirming messages that it cannot show yet.
        let next = mail.fetch(&name("carol"), &[second], numbers[15]);
        assert_eq!((next.mail.len(), next.more, next.other), (2, false, 1));
        assert_eq!(mail.fetch(&name("carol"), &[second, first], next.mail[1].number).mail.len(), 0);
        mail.done(&name("carol"), &numbers);
        let rest = fetch(&[second, first]);
        assert_eq!((rest.mail.len(), rest.more, rest.other, rest.until), (3, false, 0, 0));
        // A batch has a limit in bytes, too.
        let numbers: Vec<_> = rest.mail.iter().map(|kept| kept.number).collect();
        mail.done(&name("carol"), &numbers);
        for (from, mark) in [("alice", 1), ("alice", 2), ("bob", 3), ("bob", 4)] {
            let kept = mail.keep(&name("carol"), sized(from, "carol", second, mark, 30_000), || true);
            assert_eq!(kept.expect("a disk"), Outcome::Kept);
        }
        let batch = fetch(&[second]);
        assert_eq!((batch.mail.len(), batch.more), (3, true));
        assert!(ServerMessage::Mail(batch).encode().len() < MAX_MAIL_BYTES + 1024);
    }

    /// PROTOCOL#keeping.
    #[test]
    fn message_sent_again_after_a_break_is_kept_once() {
        let folder = Folder::new();
        let (mail, key) = with_box(&folder);
        for mark in [1, 2, 1, 2] {
            assert_eq!(keep(&mail, "alice", key, mark), Outcome::Kept);
        }
        assert_eq!(keep(&mail, "bob", key, 1), Outcome::Kept, "another sender's is another message");
        assert_eq!(waiting(&mail, key), [1, 2, 1]);
    }

    /// PROTOCOL#keeping.
    #[test]
    fn message_for_another_key_or_an_online_user_is_stale() {
        let folder = Folder::new();
        let (mail, key) = with_box(&folder);
        assert_eq!(keep(&mail, "alice", [0; 8], 1), Outcome::Stale);
        let online = mail.keep(&name("carol"), message("alice", "carol", key, 1), || false).expect("a disk");
        let nobody = mail.keep(&name("nobody"), message("alice", "nobody", key, 1), || true).expect("a disk");
        assert_eq!((online, nobody, mail.counts()), (Outcome::Stale, Outcome::Stale, (0, 0)));
        let newer = self::key(2, clock::now_ms() + 1);
        assert!(set(&mail, "carol", &newer));
        assert_eq!(keep(&mail, "alice", key, 1), Outcome::Stale, "the recipient erases a replaced key");
    }

    /// PROTOCOL#keeping.
    #[test]
    fn fetch_waits_for_a_message_that_is_being_kept() {
        let folder = Folder::new();
        let (mail, key) = with_box(&folder);
        let (inside, reached) = channel();
        let (release, released) = channel::<()>();
        let (fetched, result) = channel();
        let mail = &mail;
        thread::scope(|scope| {
            scope.spawn(move || {
                let is_absent = || {
                    inside.send(()).expect("the test waits");
                    released.recv().is_ok()
                };
                mail.keep(&name("carol"), message("alice", "carol", key, 1), is_absent)
            });
            reached.recv().expect("it begins");
            scope.spawn(move || fetched.send(waiting(mail, key)));
            let early = result.recv_timeout(Duration::from_millis(50));
            release.send(()).expect("it waits");
            assert!(early.is_err() && result.recv().expect("an answer") == [1]);
        });
    }

    /// PROTOCOL#mailbox-key.
    #[test]
    fn only_a_newer_key_of_the_current_session_replaces_one() {
        let folder = Folder::new();
        let (mail, carol, now) = (open(&folder), name("carol"), clock::now_ms());
        let late = |new: &MailboxCertificate| mail.set(&carol, new, || false).expect("a disk");
        assert!(!late(&key(1, now)) && mail.key(&carol).is_none());
        assert!(set(&mail, "carol", &key(1, now)));
        assert!(set(&mail, "carol", &key(1, now)), "the same again");
        for other in [key(2, now), key(2, now - 1), key(1, now - 1)] {
            assert!(!set(&mail, "carol", &other));
        }
        assert!(!late(&key(2, now + 1)), "of a session that has ended");
        let current = |mail: &Mail| mail.key(&carol).map(|key| MailboxCertificate::clone(&key.1));
        assert!(current(&mail) == Some(key(1, now)));
        let mail = open(&folder);
        assert!(!set(&mail, "carol", &key(2, now)) && mail.newest(&carol) == now, "after a restart, too");
        assert!(set(&mail, "carol", &key(2, now + 1)) && current(&open(&folder)) == Some(key(2, now + 1)));
    }

    /// PROTOCOL#mailbox-certificate.
    #[test]
    fn expired_mailbox_key_is_not_shown_and_keeps_nothing() {
        let folder = Folder::new();
        let (mail, carol, month) = (open(&folder), name("carol"), 30 * 24 * 3_600_000);
        let old = key(1, clock::now_ms() - month - 1000);
        assert!(set(&mail, "carol", &old));
        assert!(mail.key(&carol).is_none());
        assert_eq!(keep(&mail, "alice", old.key_id(), 1), Outcome::Stale);
    }

    /// PROTOCOL#mail-limits.
    #[test]
    fn mailbox_is_full_at_each_limit_and_never_evicts() {
        let bytes =
            ServerMessage::EncryptedMessage(message("alice", "carol", [0; 8], 1)).encode().len() as u64;
        let usual = MailLimits::default();
        let all = (usual.bytes, usual.sender, usual.total, usual.messages, usual.days);
        assert_eq!(all, (1 << 20, 4 << 20, 1 << 30, 1000, 30));
        // An eighth for each sender fills a mailbox with eight of them.
        let folder = Folder::new();
        let (mut mail, key) = with_box(&folder);
        mail.limits.bytes = 16 * bytes;
        for (n, from) in ["user0", "user1", "user2", "user3", "user4", "user5", "user6", "user7", "user8"]
            .iter()
            .enumerate()
        {
            let outcomes = [1, 2, 3].map(|mark| keep(&mail, from, key, mark));
            let one = if n < 8 { Outcome::Kept } else { Outcome::Full };
            assert_eq!(outcomes, [one, one, Outcome::Full], "{from}");
        }
        // How many messages alice, then dora, can keep for carol, and alice for bobby.
        for (limits, most) in [
            (MailLimits { messages: 3, ..usual.clone() }, [3, 0, 3]),
            (MailLimits { bytes: 16 * bytes, ..usual.clone() }, [2, 2, 2]),
            (MailLimits { bytes: 8 * bytes - 1, ..usual.clone() }, [0, 0, 0]),
            (MailLimits { sender: 3 * bytes, ..usual.clone() }, [3, 3, 0]),
            (MailLimits { total: 5 * bytes, ..usual.clone() }, [5, 0, 0]),
            (MailLimits { bytes: 0, ..usual.clone() }, [0, 0, 0]),
        ] {
            let folder = Folder::new();
            let (mut mail, key) = with_box(&folder);
            let bobs = self::key(3, clock::now_ms());
            assert!(set(&mail, "bobby", &bobs));
            mail.limits = limits.clone();
            let count = |from: &str, to: &str, key: KeyId| {
                let kept =
                    |mark| mail.keep(&name(to), message(from, to, key, mark), || true).expect("a disk");
                // Names of one length, so that all messages have one size.
                (0..8).take_while(|mark| kept(*mark) == Outcome::Kept).count()
            };
            let kept = [
                count("alice", "carol", key),
                count("doras", "carol", key),
                count("alice", "bobby", bobs.key_id()),
            ];
            assert_eq!(kept, most, "{limits:?}");
            // The limits hold after a restart, too.
            let (waits, after) = (waiting(&mail, key), open(&folder));
            assert_eq!((waiting(&after, key), mail.counts()), (waits, after.counts()));
        }
    }

    /// PROTOCOL#mail-limits.
    #[test]
    fn message_is_deleted_when_its_days_are_over_and_not_before() {
        let folder = Folder::new();
        let (mail, key) = with_box(&folder);
        assert_eq!(
            (keep(&mail, "alice", key, 1), keep(&mail, "bob", key, 2)),
            (Outcome::Kept, Outcome::Kept)
        );
        let month = 30 * 24 * 3_600_000;
        mail.expire(clock::now_ms() + month - 60_000);
        assert_eq!(waiting(&mail, key), [1, 2]);
        mail.expire(clock::now_ms() + month + 60_000);
        assert_eq!((waiting(&mail, key), mail.counts()), (vec![], (0, 0)));
        assert_eq!((files(&folder, "alice").len(), files(&folder, "key").len()), (0, 1));
    }

    /// PROTOCOL#fetching, OPERATING#server-mail.
    #[test]
    fn unreadable_message_is_set_aside_and_others_arrive() {
        let folder = Folder::new();
        let (mail, key) = with_box(&folder);
        let bobs = self::key(3, clock::now_ms());
        assert!(set(&mail, "bob", &bobs));
        assert_eq!(
            mail.keep(&name("bob"), message("alice", "bob", key, 9), || true).expect("a disk"),
            Outcome::Stale
        );
        (1..=6).for_each(|mark| assert_eq!(keep(&mail, "alice", key, mark), Outcome::Kept));
        let paths = files(&folder, "alice");
        let whole = fs::read(&paths[0]).expect("a file");
        let text = String::from_utf8(whole.clone()).expect("text");
        // Torn, empty, of another sender, of another recipient, for another key; the last one is as it was.
        fs::write(&paths[0], &whole[..whole.len() / 2]).expect("a disk");
        fs::write(&paths[1], "").expect("a disk");
        fs::write(&paths[2], text.replace("\"alice\"", "\"mallory\"")).expect("a disk");
        fs::write(&paths[3], text.replace("\"carol\"", "\"bob\"")).expect("a disk");
        let other = ServerMessage::EncryptedMessage(message("alice", "carol", [9; 8], 1)).encode();
        fs::write(&paths[4], other).expect("a disk");
        // Files that are no messages are ignored, whatever their numbers.
        let max = u64::MAX;
        for file in ["note".to_string(), format!("{max}-{max}-{max:x}-alice"), "7-1-0-alice".into()] {
            fs::write(folder.0.join("mail/carol").join(file), "not a message").expect("a disk");
        }
        let mut notices = Notices::new();
        check(&folder.0, &mut notices).expect("readable");
        let warnings = notices.iter().filter(|notice| notice.starts_with("WARNING: ")).count();
        assert!(
            warnings == 5 && notices.last().expect("a count").starts_with("6 messages wait"),
            "{notices:#?}"
        );
        assert_eq!((waiting(&mail, key), mail.counts().0), (vec![6], 1));
        assert_eq!((files(&folder, ".set-aside-").len(), files(&folder, "note").len()), (5, 1));
        assert!(fs::read(&files(&folder, ".set-aside-")[0]).expect("kept") == whole[..whole.len() / 2]);
        assert_eq!(log(&mail, &folder).matches("event=damaged_mail user=carol").count(), 5);
        // A restored file is delivered again, which the recipient's client notices. Any arrival time is valid.
        fs::write(&paths[0], &whole).expect("a disk");
        let late = format!("{:012}-{max}-{}-alice", 999_999_999_998u64, hex(&[0; 8]));
        fs::write(folder.0.join("mail/carol").join(late), &whole).expect("a disk");
        let mail = open(&folder);
        assert_eq!((waiting(&mail, key), mail.fetch(&name("carol"), &[key], 0).until), (vec![1, 6], max));
        mail.expire(clock::now_ms());
        assert_eq!(keep(&mail, "alice", key, 7), Outcome::Kept);
    }

    /// OPERATING#server-mail.
    #[test]
    fn remains_of_a_crash_and_a_damaged_key_do_not_stop_a_start() {
        let folder = Folder::new();
        let (mail, key) = with_box(&folder);
        assert_eq!(keep(&mail, "alice", key, 1), Outcome::Kept);
        let at = |file: &str| folder.0.join("mail/carol").join(file);
        let message = files(&folder, "alice").remove(0);
        fs::write(disk::temporary(&message), "half").expect("a disk");
        fs::write(at("key.tmp"), "half").expect("a disk");
        let whole = fs::read(at("key")).expect("a key");
        fs::write(at("key"), &whole[..100]).expect("a disk");
        let mut notices = Notices::new();
        let mail = open_with(&folder, &mut notices);
        assert!(notices.len() == 1 && notices[0].contains("key.set-aside-"), "{notices:?}");
        assert_eq!((files(&folder, ".tmp").len(), id(&mail)), (0, None));
        assert_eq!(waiting(&mail, key), [1], "its owner still has the key");
        assert!(set(&mail, "carol", &self::key(2, clock::now_ms())) && id(&open(&folder)).is_some());
        assert_eq!(files(&folder, "key.set-aside-").len(), 1);
    }

    /// PROTOCOL#keeping.
    #[test]
    fn failing_disk_keeps_nothing_and_counts_nothing() {
        let folder = Folder::new();
        let (mail, key) = with_box(&folder);
        let (mine, moved) = (folder.0.join("mail/carol"), folder.0.join("moved"));
        fs::rename(&mine, &moved).expect("a disk");
        fs::write(&mine, "in the way").expect("a disk");
        assert!(mail.keep(&name("carol"), message("alice", "carol", key, 1), || true).is_err());
        assert!(mail.set(&name("carol"), &self::key(2, clock::now_ms() + 1), || true).is_err());
        assert_eq!((mail.counts(), id(&mail)), ((0, 0), Some(key)));
        assert!(log(&mail, &folder).contains("event=storage_failed user=carol"));
        fs::remove_file(&mine).and_then(|()| fs::rename(&moved, &mine)).expect("a disk");
        assert_eq!((keep(&mail, "alice", key, 1), waiting(&mail, key)), (Outcome::Kept, vec![1]));
    }

    /// OPERATING#server-mail.
    #[test]
    fn removed_account_leaves_no_mail_to_or_from_it() {
        let folder = Folder::new();
        let (mail, key) = with_box(&folder);
        let alices = self::key(3, clock::now_ms());
        assert!(set(&mail, "alice", &alices));
        let to_alice = message("bob", "alice", alices.key_id(), 1);
        assert_eq!(mail.keep(&name("alice"), to_alice, || true).expect("a disk"), Outcome::Kept);
        for (from, mark) in [("alice", 1), ("bob", 2), ("alice", 3)] {
            assert_eq!(keep(&mail, from, key, mark), Outcome::Kept);
        }
        assert_eq!(mail.remove(&name("alice")), 3);
        assert_eq!((waiting(&mail, key), mail.counts().0), (vec![2], 1));
        assert!(mail.key(&name("alice")).is_none() && !folder.0.join("mail/alice").exists());
        assert_eq!((mail.remove(&name("alice")), open(&folder).counts()), (0, mail.counts()));
    }
}
