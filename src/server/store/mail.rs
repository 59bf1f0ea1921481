//! Messages for absent users: `mail/NAME/`, a folder for each user who has a mailbox key.
//!
//! Each message is a file of its own, and so is the certificate of the mailbox key. A file is complete and synced
//! before it gets its name, and is never changed, so a crash leaves no part of a message, and a damaged file costs one
//! message. The name of a file contains what the index needs: a start reads no message.
//!
//! Invariants: a message stays until its recipient has confirmed it, its days are over, or an account is removed. A file
//! that cannot be read is set aside and reported, never erased. A mailbox's lock makes one step of "is the user absent",
//! "is this the key in use" and the write of a message: it alone is held across the disk, and a thread takes it while it
//! holds no other lock. `boxes` and `usage` are leaves. Format: README#server-mail. Specification: PROTOCOL#keeping.

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
use crate::server::limits::MailLimits;
use crate::sync::lock;
use miniserde::json;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The folder in the data folder.
const FOLDER: &str = "mail";
/// The file of a mailbox key's certificate, in its user's folder.
const KEY: &str = "key";
/// The longest file that is read, in bytes: the longest message has 47,000.
const MAX_FILE: usize = 64 * 1024;

/// See the module.
pub struct Mail {
    folder: PathBuf,
    /// The limits, as the operator has set them.
    pub limits: MailLimits,
    boxes: Mutex<HashMap<Username, Place>>,
    usage: Mutex<Usage>,
    audit: Arc<Audit>,
}

/// The result of [`Mail::keep`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The message is on disk.
    Kept,
    /// The recipient has a session, or another mailbox key.
    Stale,
    /// A limit is reached.
    Full,
}

#[derive(Clone, Default)]
struct Place {
    /// The mailbox key, and when it was made, in milliseconds since 1970. Changes under the lock of the mailbox.
    key: Option<(KeyId, u64)>,
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
    /// The beginning of its signature. A restart forgets it.
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
        (message.file() == file).then_some(message)
    }

    /// Reads the message, which waits in the folder of its recipient `to`.
    fn read(&self, folder: &Path, to: &Username) -> io::Result<Box<EncryptedMessage>> {
        let path = folder.join(self.file());
        let bytes = disk::read(&path, MAX_FILE)?;
        if let Some(line) = bytes.strip_suffix(b"\n")
            && let Ok(ServerMessage::EncryptedMessage(message)) = ServerMessage::decode(line)
            && message.envelope.header.from == self.from
            && message.envelope.header.recipient.as_ref() == Some(to)
            && message.key.id() == self.key
        {
            return Ok(message);
        }
        Err(disk::error(&path, "not the message that was kept"))
    }
}

/// What all mailboxes together hold.
#[derive(Default)]
struct Usage {
    messages: usize,
    bytes: u64,
    by_sender: HashMap<Username, u64>,
}

impl Usage {
    fn add(&mut self, from: &Username, bytes: u64) {
        self.messages += 1;
        self.bytes += bytes;
        *self.by_sender.entry(from.clone()).or_default() += bytes;
    }

    fn subtract(&mut self, message: &Message) {
        self.messages -= 1;
        self.bytes -= message.bytes;
        if let Some(bytes) = self.by_sender.get_mut(&message.from) {
            *bytes -= message.bytes;
            if *bytes == 0 {
                self.by_sender.remove(&message.from);
            }
        }
    }
}

/// The users' folders.
fn folders(folder: &Path) -> io::Result<Vec<(Username, PathBuf)>> {
    let mut found = Vec::new();
    if disk::is_there(folder)? {
        for entry in fs::read_dir(folder).map_err(disk::at(folder))? {
            let path = entry.map_err(disk::at(folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            found.extend(name.filter(|_| path.is_dir()).map(|name| (name, path)));
        }
    }
    Ok(found)
}

/// The messages in a user's folder, in order.
fn messages(folder: &Path) -> io::Result<Vec<Message>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(disk::at(folder))? {
        let entry = entry.map_err(disk::at(folder))?;
        let bytes = entry.metadata().map_or(0, |data| data.len());
        found.extend(entry.file_name().to_str().and_then(|name| Message::parse(name, bytes)));
    }
    found.sort_by_key(|message| message.number);
    Ok(found)
}

/// The certificate in a user's folder, if there is one.
fn certificate(folder: &Path) -> io::Result<Option<MailboxCertificate>> {
    let path = folder.join(KEY);
    if !disk::is_there(&path)? {
        return Ok(None);
    }
    let certificate = records::parse(disk::read(&path, MAX_FILE)?.trim_ascii());
    certificate.map(Some).ok_or_else(|| disk::error(&path, "not the certificate of a mailbox key"))
}

/// Reports what [`Mail::open`] would find, and which files cannot be read.
///
/// # Errors
/// As [`Mail::open`].
pub fn check(folder: &Path, notices: &mut Notices) -> io::Result<()> {
    let (mut count, mut bytes) = (0, 0);
    for (name, folder) in folders(&folder.join(FOLDER))? {
        let messages = messages(&folder)?;
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
    /// Reads the names of the files in the data folder `folder`. Removes the remains of a crash, and renames the folders
    /// of users who have no account.
    ///
    /// # Errors
    /// The disk's, with the path in the text.
    pub fn open(
        folder: &Path,
        has_account: impl Fn(&Username) -> bool,
        audit: Arc<Audit>,
        notices: &mut Notices,
    ) -> io::Result<Mail> {
        let folder = folder.join(FOLDER);
        let (mut boxes, mut usage) = (HashMap::new(), Usage::default());
        for (name, folder) in folders(&folder)? {
            if !has_account(&name) {
                let aside = records::move_aside(&folder)?;
                notices.push(format!(
                    "{}: mail of a user without an account; you may delete it",
                    aside.display()
                ));
                continue;
            }
            disk::remove_temporary(&folder, |file| file == KEY || Message::parse(file, 0).is_some())?;
            let key = certificate(&folder).or_else(|error| {
                let aside = records::move_aside(&folder.join(KEY))?;
                notices.push(format!("{error}: it is set aside in {}", aside.display()));
                Ok::<_, io::Error>(None)
            })?;
            let messages = messages(&folder)?;
            messages.iter().for_each(|message| usage.add(&message.from, message.bytes));
            let last = messages.last().map_or(0, |message| message.number);
            let key = key.map(|certificate| (certificate.key_id(), certificate.created));
            boxes.insert(name, Place { key, mailbox: Arc::new(Mutex::new(Mailbox { messages, last })) });
        }
        let (boxes, usage) = (Mutex::new(boxes), Mutex::new(usage));
        Ok(Mail { folder, limits: MailLimits::default(), boxes, usage, audit })
    }

    /// The number of messages that wait, and their bytes.
    pub fn counts(&self) -> (usize, u64) {
        let usage = lock(&self.usage);
        (usage.messages, usage.bytes)
    }

    /// The id of the key that messages for this user are kept for while the user is absent. `None` if there is none.
    pub fn key(&self, name: &Username) -> Option<KeyId> {
        let (key, created) = lock(&self.boxes).get(name)?.key?;
        (self.limits.bytes > 0 && is_mailbox_valid_at(created, clock::now_ms())).then_some(key)
    }

    /// The `created` of this user's newest mailbox key, in milliseconds since 1970; 0 if there is none.
    pub fn newest(&self, name: &Username) -> u64 {
        lock(&self.boxes).get(name).and_then(|place| place.key).map_or(0, |(_, created)| created)
    }

    /// The certificate of [`Mail::key`].
    pub fn certificate(&self, name: &Username) -> Option<MailboxCertificate> {
        self.key(name)?;
        let folder = self.folder.join(name.as_str());
        certificate(&folder).unwrap_or_else(|_| {
            // Again with the lock: the file may just be replaced.
            let place = self.place(name)?;
            let _mailbox = lock(&place.mailbox);
            certificate(&folder).unwrap_or_else(|error| {
                self.set_aside(name, &folder.join(KEY), &error);
                lock(&self.boxes).entry(name.clone()).and_modify(|place| place.key = None);
                None
            })
        })
    }

    /// Replaces a user's mailbox key by one whose certificate was verified, if the request `is_current`. Returns when it
    /// is on disk. PROTOCOL#mailbox-key.
    ///
    /// # Errors
    /// The disk's, with the path in the text; the former key stays then. The inner error is the `created` of the former
    /// key, if this one is not newer.
    pub fn set(
        &self,
        name: &Username,
        certificate: &MailboxCertificate,
        is_current: impl FnOnce() -> bool,
    ) -> io::Result<Result<(), u64>> {
        let place = lock(&self.boxes).entry(name.clone()).or_default().clone();
        let _mailbox = lock(&place.mailbox);
        let new = (certificate.key_id(), certificate.created);
        let former = lock(&self.boxes).get(name).and_then(|place| place.key);
        // A client whose connection broke before the answer sends the same key again.
        if former == Some(new) {
            return Ok(Ok(()));
        }
        let newest = former.map_or(0, |(_, created)| created);
        if certificate.created <= newest || !is_current() {
            return Ok(Err(newest));
        }
        let folder = self.folder.join(name.as_str());
        let written = disk::make_folder(&folder).and_then(|()| {
            disk::replace(&folder.join(KEY), (json::to_string(certificate) + "\n").as_bytes())
        });
        written.inspect_err(|error| self.failed(name, error))?;
        lock(&self.boxes).entry(name.clone()).and_modify(|place| place.key = Some(new));
        Ok(Ok(()))
    }

    /// Keeps a private or room message for its recipient, if the recipient `is_absent`. Returns when it is on disk. The
    /// same message again is kept once: a client sends it again if its connection broke before the answer.
    /// PROTOCOL#keeping, PROTOCOL#mail-limits.
    ///
    /// # Errors
    /// The disk's, with the path in the text. The message may have been kept nevertheless.
    pub fn keep(
        &self,
        message: Box<EncryptedMessage>,
        is_absent: impl FnOnce() -> bool,
    ) -> io::Result<Outcome> {
        let (header, key) = (&message.envelope.header, message.key.id());
        let (Some(to), from) = (header.recipient.clone(), header.from.clone()) else {
            return Ok(Outcome::Stale);
        };
        let Some(place) = self.place(&to) else { return Ok(Outcome::Stale) };
        let mark = message.envelope.body.signature.0.first_chunk().copied();
        let line = ServerMessage::EncryptedMessage(message).encode();
        let mut mailbox = lock(&place.mailbox);
        if mailbox.messages.iter().any(|one| one.from == from && one.mark == mark) {
            return Ok(Outcome::Kept);
        }
        if self.key(&to) != Some(key) || !is_absent() {
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
            lock(&self.usage).subtract(&new);
            self.failed(&to, error);
        })?;
        mailbox.last = number;
        mailbox.messages.push(new);
        Ok(Outcome::Kept)
    }

    /// Adds a message to the usage, if the limits allow that.
    fn reserve(&self, messages: &[Message], new: &Message) -> bool {
        let MailLimits { bytes, sender, total, messages: most, .. } = self.limits;
        let sum = |messages: &mut dyn Iterator<Item = &Message>| messages.map(|one| one.bytes).sum::<u64>();
        let all = sum(&mut messages.iter()) + new.bytes;
        let own = sum(&mut messages.iter().filter(|one| one.from == new.from)) + new.bytes;
        let mut usage = lock(&self.usage);
        if usage.bytes + new.bytes > total {
            self.audit.limit("mail_full", None, None, &format!("bytes={}", usage.bytes));
            return false;
        }
        let everywhere = usage.by_sender.get(&new.from).copied().unwrap_or(0) + new.bytes;
        let fits = messages.len() < most && all <= bytes && own <= bytes / 8 && everywhere <= sender;
        if fits {
            usage.add(&new.from, new.bytes);
        }
        fits
    }

    /// The oldest messages of this user that wait for these keys. PROTOCOL#fetching.
    pub fn fetch(&self, name: &Username, keys: &[KeyId]) -> protocol::Mail {
        let mut mail = protocol::Mail { mail: Vec::new(), more: false, other: 0, until: None };
        let Some(place) = self.place(name) else { return mail };
        let (folder, mut bytes) = (self.folder.join(name.as_str()), 0);
        lock(&place.mailbox).messages.retain(|one| {
            let is_full = mail.mail.len() == MAX_MAIL || bytes + one.bytes > MAX_MAIL_BYTES as u64;
            if !keys.contains(&one.key) {
                mail.other += 1;
                mail.until = mail.until.max(Some(one.arrived + self.limits.time.as_millis() as u64));
            } else if mail.more || is_full {
                mail.more = true;
            } else {
                match one.read(&folder, name) {
                    Ok(message) => mail.mail.push(Kept { number: one.number, message }),
                    Err(error) => {
                        self.set_aside(name, &folder.join(one.file()), &error);
                        lock(&self.usage).subtract(one);
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
        let is_over =
            |one: &Message| u128::from(now_ms.saturating_sub(one.arrived)) > self.limits.time.as_millis();
        let deleted: usize = self.all().iter().map(|(name, place)| self.delete(name, place, is_over)).sum();
        if deleted > 0 {
            self.audit.log("mail_expired", None, None, &format!("count={deleted}"));
        }
    }

    /// Deletes the mailbox of a user whose account is removed, and all messages from the user. Returns how many messages
    /// these were. The user has no session.
    ///
    /// # Errors
    /// The disk's, with the path in the text.
    pub fn remove(&self, name: &Username) -> io::Result<usize> {
        let mut removed = 0;
        let former = lock(&self.boxes).remove(name);
        if let Some(former) = former {
            let mut mailbox = lock(&former.mailbox);
            removed = mailbox.messages.len();
            mailbox.messages.drain(..).for_each(|one| lock(&self.usage).subtract(&one));
            let folder = self.folder.join(name.as_str());
            if disk::is_there(&folder)? {
                fs::remove_dir_all(&folder).map_err(disk::at(&folder))?;
            }
        }
        let all = self.all();
        let from = all.iter().map(|(other, place)| self.delete(other, place, |one| one.from == *name));
        Ok(removed + from.sum::<usize>())
    }

    /// Deletes some messages of a mailbox, and returns how many.
    fn delete(&self, name: &Username, place: &Place, is_over: impl Fn(&Message) -> bool) -> usize {
        let (folder, mut mailbox) = (self.folder.join(name.as_str()), lock(&place.mailbox));
        let before = mailbox.messages.len();
        mailbox.messages.retain(|one| {
            if !is_over(one) {
                return true;
            }
            if let Err(error) = fs::remove_file(folder.join(one.file()))
                && error.kind() != ErrorKind::NotFound
            {
                self.failed(name, &disk::at(&folder)(error));
                return true;
            }
            lock(&self.usage).subtract(one);
            false
        });
        let deleted = before - mailbox.messages.len();
        if deleted > 0 {
            // Otherwise a power failure could bring them back after their key is gone.
            let _ = disk::sync_parent(&folder.join(KEY)).inspect_err(|error| self.failed(name, error));
        }
        deleted
    }

    fn place(&self, name: &Username) -> Option<Place> {
        lock(&self.boxes).get(name).cloned()
    }

    fn all(&self) -> Vec<(Username, Place)> {
        lock(&self.boxes).iter().map(|(name, place)| (name.clone(), place.clone())).collect()
    }

    fn set_aside(&self, name: &Username, path: &Path, error: &io::Error) {
        let aside = records::move_aside(path);
        let aside =
            aside.map_or_else(|error| error.to_string(), |aside| format!("set aside in {}", aside.display()));
        self.audit.log("damaged_mail", Some(name), None, &format!("{error}: {aside}"));
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

    fn open_as(folder: &Folder, has_account: fn(&Username) -> bool) -> (Mail, Notices) {
        let audit = Arc::new(Audit::open(&folder.0.join("logs")).expect("a log"));
        let mut notices = Notices::new();
        let mail = Mail::open(&folder.0, has_account, audit, &mut notices).expect("a folder");
        (mail, notices)
    }

    fn open(folder: &Folder) -> Mail {
        open_as(folder, |_| true).0
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
        assert_eq!(mail.set(&name("carol"), &new, || true).expect("a disk"), Ok(()));
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
        mail.keep(message(from, "carol", key, mark), || true).expect("a disk")
    }

    /// The sequence numbers of the messages that wait for carol under this key.
    fn waiting(mail: &Mail, key: KeyId) -> Vec<u64> {
        let fetched = mail.fetch(&name("carol"), &[key]);
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
        assert_eq!((mail.counts(), mail.key(&name("carol"))), ((count, bytes), Some(key)));
        assert_eq!((waiting(&mail, key), count), (vec![1, 2, 3], 3));
        let numbers: Vec<_> =
            mail.fetch(&name("carol"), &[key]).mail.iter().map(|kept| kept.number).collect();
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
        assert_eq!(mail.set(&name("carol"), &second, || true).expect("a disk"), Ok(()));
        let second = second.key_id();
        (0..18).for_each(|mark| assert_eq!(keep(&mail, "alice", second, mark), Outcome::Kept));
        let fetch = |keys: &[KeyId]| mail.fetch(&name("carol"), keys);
        let batch = fetch(&[second]);
        assert_eq!((batch.mail.len(), batch.more, batch.other), (MAX_MAIL, true, 1));
        let (until, now) = (batch.until.expect("a time"), clock::now_ms());
        let month = 30 * 24 * 3_600_000;
        assert!((now + month - 60_000..=now + month).contains(&until));
        let numbers: Vec<_> = batch.mail.iter().map(|kept| kept.number).collect();
        mail.done(&name("carol"), &numbers);
        let rest = fetch(&[second, first]);
        assert_eq!((rest.mail.len(), rest.more, rest.other, rest.until), (3, false, 0, None));
        // A batch has a limit in bytes, too.
        let numbers: Vec<_> = rest.mail.iter().map(|kept| kept.number).collect();
        mail.done(&name("carol"), &numbers);
        for (from, mark) in [("alice", 1), ("alice", 2), ("bob", 3), ("bob", 4)] {
            let kept = mail.keep(sized(from, "carol", second, mark, 30_000), || true);
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
        let online = mail.keep(message("alice", "carol", key, 1), || false).expect("a disk");
        let nobody = mail.keep(message("alice", "nobody", key, 1), || true).expect("a disk");
        assert_eq!((online, nobody, mail.counts()), (Outcome::Stale, Outcome::Stale, (0, 0)));
        let newer = self::key(2, clock::now_ms() + 1);
        assert_eq!(mail.set(&name("carol"), &newer, || true).expect("a disk"), Ok(()));
        assert_eq!(keep(&mail, "alice", key, 1), Outcome::Stale, "its owner erases this key");
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
                mail.keep(message("alice", "carol", key, 1), is_absent)
            });
            reached.recv().expect("it begins");
            scope.spawn(move || fetched.send(waiting(mail, key)));
            assert!(result.recv_timeout(Duration::from_millis(50)).is_err(), "too early");
            release.send(()).expect("it waits");
            assert_eq!(result.recv().expect("an answer"), [1]);
        });
    }

    /// PROTOCOL#mailbox-key.
    #[test]
    fn only_a_newer_key_of_the_current_session_replaces_one() {
        let folder = Folder::new();
        let (mail, carol, now) = (open(&folder), name("carol"), clock::now_ms());
        let set = |mail: &Mail, new: &MailboxCertificate, is_current: bool| {
            mail.set(&carol, new, || is_current).expect("a disk")
        };
        assert_eq!((set(&mail, &key(1, now), false), mail.key(&carol)), (Err(0), None));
        assert_eq!(set(&mail, &key(1, now), true), Ok(()));
        assert_eq!(set(&mail, &key(1, now), true), Ok(()), "the same again");
        for other in [key(2, now), key(2, now - 1), key(1, now - 1)] {
            assert_eq!(set(&mail, &other, true), Err(now));
        }
        assert_eq!(set(&mail, &key(2, now + 1), false), Err(now), "of a session that has ended");
        assert!(mail.certificate(&carol) == Some(key(1, now)));
        let mail = open(&folder);
        assert_eq!(
            (set(&mail, &key(2, now), true), mail.newest(&carol)),
            (Err(now), now),
            "after a restart, too"
        );
        assert_eq!(set(&mail, &key(2, now + 1), true), Ok(()));
        assert!(mail.certificate(&carol) == Some(key(2, now + 1)));
    }

    /// PROTOCOL#mailbox-certificate.
    #[test]
    fn expired_mailbox_key_is_not_shown_and_keeps_nothing() {
        let folder = Folder::new();
        let (mail, carol, month) = (open(&folder), name("carol"), 30 * 24 * 3_600_000);
        let old = key(1, clock::now_ms() - month - 1000);
        assert_eq!(mail.set(&carol, &old, || true).expect("a disk"), Ok(()));
        assert!(mail.key(&carol).is_none() && mail.certificate(&carol).is_none());
        assert_eq!(keep(&mail, "alice", old.key_id(), 1), Outcome::Stale);
    }

    /// PROTOCOL#mail-limits.
    #[test]
    fn mailbox_is_full_at_each_limit_and_never_evicts() {
        let bytes =
            ServerMessage::EncryptedMessage(message("alice", "carol", [0; 8], 1)).encode().len() as u64;
        let usual = MailLimits::default();
        let month = Duration::from_secs(30 * 24 * 3600);
        let all = (usual.bytes, usual.sender, usual.total, usual.messages, usual.time);
        assert_eq!(all, (1 << 20, 4 << 20, 1 << 30, 1000, month));
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
            assert_eq!(mail.set(&name("bobby"), &bobs, || true).expect("a disk"), Ok(()));
            mail.limits = limits.clone();
            let count = |from: &str, to: &str, key: KeyId| {
                let kept = |mark| mail.keep(message(from, to, key, mark), || true).expect("a disk");
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
            let full = limits.total < usual.total;
            assert_eq!(log(&mail, &folder).contains("event=mail_full"), full);
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
        assert!(log(&mail, &folder).contains("event=mail_expired user=- addr=- count=2"));
        assert_eq!((files(&folder, "alice").len(), files(&folder, "key").len()), (0, 1));
    }

    /// PROTOCOL#fetching, README#server-mail.
    #[test]
    fn unreadable_message_is_set_aside_and_others_arrive() {
        let folder = Folder::new();
        let (mail, key) = with_box(&folder);
        let bobs = self::key(3, clock::now_ms());
        assert_eq!(mail.set(&name("bob"), &bobs, || true).expect("a disk"), Ok(()));
        assert_eq!(mail.keep(message("alice", "bob", key, 9), || true).expect("a disk"), Outcome::Stale);
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
        fs::write(folder.0.join("mail/carol/note"), "not a message").expect("a disk");
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
        // A restored old file is an old message again: its recipient's client notices.
        fs::write(&paths[0], &whole).expect("a disk");
        assert_eq!(waiting(&open(&folder), key), [1, 6]);
    }

    /// README#server-mail.
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
        let (mail, notices) = open_as(&folder, |_| true);
        assert!(notices.len() == 1 && notices[0].contains("key.set-aside-"), "{notices:?}");
        assert_eq!((files(&folder, ".tmp").len(), mail.key(&name("carol"))), (0, None));
        assert_eq!(waiting(&mail, key), [1], "its owner still has the key");
        // A key that is damaged while the server runs is set aside when somebody asks for it.
        let new = self::key(2, clock::now_ms());
        assert_eq!(mail.set(&name("carol"), &new, || true).expect("a disk"), Ok(()));
        assert!(mail.certificate(&name("carol")) == Some(new));
        fs::write(at("key"), "{}").expect("a disk");
        assert!(mail.certificate(&name("carol")).is_none() && mail.key(&name("carol")).is_none());
        assert!(log(&mail, &folder).contains("event=damaged_mail user=carol"));
        assert_eq!(files(&folder, "key.set-aside-").len(), 2);
    }

    /// PROTOCOL#keeping.
    #[test]
    fn failing_disk_keeps_nothing_and_counts_nothing() {
        let folder = Folder::new();
        let (mail, key) = with_box(&folder);
        let (mine, moved) = (folder.0.join("mail/carol"), folder.0.join("moved"));
        fs::rename(&mine, &moved).expect("a disk");
        fs::write(&mine, "in the way").expect("a disk");
        assert!(mail.keep(message("alice", "carol", key, 1), || true).is_err());
        assert!(mail.set(&name("carol"), &self::key(2, clock::now_ms() + 1), || true).is_err());
        assert_eq!((mail.counts(), mail.key(&name("carol"))), ((0, 0), Some(key)));
        assert!(log(&mail, &folder).contains("event=storage_failed user=carol"));
        fs::remove_file(&mine).and_then(|()| fs::rename(&moved, &mine)).expect("a disk");
        assert_eq!((keep(&mail, "alice", key, 1), waiting(&mail, key)), (Outcome::Kept, vec![1]));
    }

    /// README#server-mail.
    #[test]
    fn removed_account_leaves_no_mail_to_or_from_it() {
        let folder = Folder::new();
        let (mail, key) = with_box(&folder);
        let alices = self::key(3, clock::now_ms());
        assert_eq!(mail.set(&name("alice"), &alices, || true).expect("a disk"), Ok(()));
        let to_alice = message("bob", "alice", alices.key_id(), 1);
        assert_eq!(mail.keep(to_alice, || true).expect("a disk"), Outcome::Kept);
        for (from, mark) in [("alice", 1), ("bob", 2), ("alice", 3)] {
            assert_eq!(keep(&mail, from, key, mark), Outcome::Kept);
        }
        assert_eq!(mail.remove(&name("alice")).expect("a disk"), 3);
        assert_eq!((waiting(&mail, key), mail.counts().0, mail.key(&name("alice"))), (vec![2], 1, None));
        assert!(!folder.0.join("mail/alice").exists());
        assert_eq!(mail.remove(&name("alice")).expect("a disk"), 0);
        // A crash came before: the next start renames the folder of a user who has no account.
        let (mail, notices) = open_as(&folder, |name| name.as_str() != "carol");
        assert!(mail.counts().0 == 0 && notices[0].contains("mail/carol.set-aside-"), "{notices:?}");
        assert_eq!(open(&folder).counts().0, 0, "it is not the next account's");
    }
}
