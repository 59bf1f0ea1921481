//! Tests of a session that fetches mail: the server and the sender are the test.

use super::super::event::{Action, Display, Effect, Event};
use super::super::{NewKey, Session};
use super::*;
use crate::client::options::{self, Request};
use crate::client::store::trust::{Ignored, TrustStore};
use crate::crypto::envelope::{Header, Kind, Scope, Sealed, Word};
use crate::crypto::keys::{IdentityKey, SessionKey};
use crate::crypto::secret::random;
use crate::disk;
use crate::encoding::{Fixed, hex};
use crate::protocol::{
    EncryptedMessage, ErrorCode, Failure, Keys, KeysRequest, MailboxCertificate, Presence, ServerMessage,
    UserKeys, WrappedKey,
};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

const NOW: u64 = 1_800_000_000_000;
const DAY: u64 = 24 * 3_600_000;

/// Keys of the reader and of two senders, because generating RSA keys takes long.
static IDENTITIES: LazyLock<Vec<Arc<IdentityKey>>> =
    LazyLock::new(|| (0..3).map(|_| Arc::new(IdentityKey::generate())).collect());
/// The key of each sender's session.
static SESSIONS: LazyLock<Vec<SessionKey>> =
    LazyLock::new(|| (0..3).map(|_| SessionKey::generate()).collect());

fn name(n: usize) -> Username {
    ["alice", "bob", "carol"][n].parse().expect("name")
}

/// alice's data folder, removed on drop.
struct Home(PathBuf);

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Home {
    fn new() -> Home {
        let folder = std::env::temp_dir().join(format!("mail-{}", hex(&random::<8>())));
        disk::private_folders(&folder, &["mailbox"]).expect("folders");
        Home(folder)
    }

    fn file(&self) -> MailboxFile {
        let words = ["--data-dir".into(), self.0.clone().into_os_string()];
        let Ok(Request::Run(options)) = options::parse(words) else { panic!("options") };
        let mut file = MailboxFile::new(&options, &name(0), &IDENTITIES[0]);
        file.load(&mut Vec::new()).expect("read");
        file
    }

    /// A mailbox file with one key, of this age in days.
    fn with_key(age: u64) -> Home {
        let home = Home::new();
        home.file().add(NewMailboxKey::generate(), NOW - age * DAY).expect("added");
        home
    }
}

/// A message of a day ago from one user to the reader.
fn sealed(
    from: usize,
    sequence: u64,
    text: &str,
    key: &SessionKey,
    change: impl FnOnce(&mut Header),
) -> Box<EncryptedMessage> {
    let identity = &IDENTITIES[from];
    let mut header = Header {
        kind: Kind::Message,
        scope: Scope::Private,
        recipient: Some(name(0)),
        recipient_key: Some(key.fingerprint()),
        from: name(from),
        identity: identity.public().fingerprint(),
        session: SESSIONS[from].fingerprint(),
        sequence,
        time: NOW - DAY,
        again: None,
    };
    change(&mut header);
    let sealed = Sealed::seal(header, identity, text.as_bytes());
    let key = WrappedKey::new(&sealed.wrap_for(key.public()));
    Box::new(EncryptedMessage { envelope: sealed.envelope, key })
}

/// A logged-in reader, and what the session has done.
struct Reader {
    session: Session,
    said: VecDeque<ClientMessage>,
    /// Lines of messages that were shown as mail, then all other lines.
    mail: Vec<String>,
    lines: Vec<String>,
    holds: bool,
    wants_key: bool,
    now: Instant,
    /// The sender whose keys the server shows for each sender.
    known_as: [usize; 3],
}

impl Reader {
    fn new(home: &Home) -> Reader {
        let trust = TrustStore::open(&home.0, "server").expect("files");
        let ignored = Ignored::open(&home.0, "server").expect("a file");
        let now = Instant::now();
        let session =
            Session::new(name(0), IDENTITIES[0].clone(), SessionKey::generate(), (trust, ignored), now);
        let (said, mail, lines) = (VecDeque::new(), Vec::new(), Vec::new());
        let session = session.certified(NOW, 0).with_mailbox(home.file());
        let mut reader =
            Reader { session, said, mail, lines, holds: false, wants_key: false, now, known_as: [0, 1, 2] };
        let joined = vec![name(0)];
        let presence = Presence { more: false, full: true, joined, left: Vec::new() };
        reader.server(ServerMessage::Presence(presence));
        reader
    }

    fn event(&mut self, event: Event) {
        for effect in self.session.handle(event, NOW, self.now) {
            match effect {
                Effect::Do(Action::Send(message)) => self.said.push_back(message),
                Effect::Do(Action::Hold(holds)) => self.holds = holds,
                Effect::Do(Action::MakeMailboxKey) => self.wants_key = true,
                Effect::Show(Display::Mail(entries)) => {
                    assert!(
                        entries.iter().all(|entry| entry.time <= NOW),
                        "a later time is shown as the present"
                    );
                    self.mail.extend(entries.iter().map(|entry| entry.line()));
                }
                Effect::Show(Display::Entry(entry)) => self.lines.push(entry.line()),
                Effect::Do(_) | Effect::Show(_) | Effect::Quit(_) => {}
            }
        }
    }

    fn server(&mut self, message: ServerMessage) {
        self.event(Event::Server(message));
    }

    /// The keys of the request for mail, and its `after`.
    fn asks(&mut self) -> Option<(usize, u64)> {
        let at = self.said.iter().position(|said| matches!(said, ClientMessage::MailRequest(_)))?;
        match self.said.remove(at) {
            Some(ClientMessage::MailRequest(request)) => Some((request.keys.len(), request.after)),
            _ => None,
        }
    }

    /// The numbers that were confirmed.
    fn confirms(&mut self) -> Vec<u64> {
        let (done, rest): (VecDeque<_>, _) =
            self.said.drain(..).partition(|said| matches!(said, ClientMessage::MailDone(_)));
        self.said = rest;
        let numbers = done.into_iter().flat_map(|said| match said {
            ClientMessage::MailDone(done) => done.numbers,
            _ => Vec::new(),
        });
        numbers.collect()
    }

    /// The certificate that was sent.
    fn uploads(&mut self) -> Option<Box<MailboxCertificate>> {
        let at = self.said.iter().position(|said| matches!(said, ClientMessage::Mailbox(_)))?;
        match self.said.remove(at) {
            Some(ClientMessage::Mailbox(certificate)) => Some(certificate),
            _ => None,
        }
    }

    /// The fingerprints of the keys in the file.
    fn keys(&self) -> Vec<Fingerprint> {
        let file = self.session.cx.account.mailbox.as_ref().expect("a file");
        file.keys().map(|mailbox| mailbox.key.fingerprint()).collect()
    }

    /// A message from this sender that is sealed for the first mailbox key.
    fn message(&self, from: usize, sequence: u64, text: &str) -> Box<EncryptedMessage> {
        self.changed(from, sequence, text, |_| ())
    }

    fn changed(
        &self,
        from: usize,
        sequence: u64,
        text: &str,
        change: impl FnOnce(&mut Header),
    ) -> Box<EncryptedMessage> {
        let file = self.session.cx.account.mailbox.as_ref().expect("a file");
        let key = &file.keys().next().expect("a key").key;
        sealed(from, sequence, text, key, change)
    }

    /// The server answers with mail, and then with the keys that are requested.
    fn gets(&mut self, mail: Vec<(u64, Box<EncryptedMessage>)>, more: bool) {
        self.gets_besides(mail, more, 0);
    }

    fn gets_besides(&mut self, mail: Vec<(u64, Box<EncryptedMessage>)>, more: bool, other: u64) {
        let mail = mail.into_iter().map(|(number, message)| Kept { number, message }).collect();
        self.server(ServerMessage::Mail(Mail { mail, more, other, until: NOW + DAY }));
        self.answer_keys();
    }

    fn answer_keys(&mut self) {
        while let Some(at) = self.said.iter().position(|said| matches!(said, ClientMessage::KeysRequest(_))) {
            let Some(ClientMessage::KeysRequest(KeysRequest { names })) = self.said.remove(at) else {
                return;
            };
            let person = |who: Username| {
                let n = (0..3).find(|n| name(*n) == who).expect("known");
                let (identity, key) = (&IDENTITIES[self.known_as[n]], &SESSIONS[n]);
                let certificate = identity.certify(&who, key, NOW);
                UserKeys::new(who, identity.public().spki(), Some(&certificate))
            };
            let keys = names.into_iter().map(person).collect();
            self.server(ServerMessage::Keys(Keys { keys, unknown: Vec::new() }));
        }
    }

    fn seconds_pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.event(Event::Tick);
    }

    /// The next key is made, and the server takes it.
    fn renews(&mut self) {
        assert!(std::mem::take(&mut self.wants_key));
        self.event(Event::NewMailboxKey(Box::new(NewMailboxKey::generate())));
        assert!(self.uploads().is_some());
        self.server(ServerMessage::MailboxSet);
    }
}

fn copy(message: &EncryptedMessage) -> Box<EncryptedMessage> {
    Box::new(EncryptedMessage { envelope: message.envelope.clone(), key: message.key.clone() })
}

fn refusal(code: ErrorCode, newest: Option<u64>) -> ServerMessage {
    ServerMessage::Error(Failure { newest, ..Failure::new(code, "refused") })
}

/// PROTOCOL#mailbox-file-limits.
#[test]
fn full_mailbox_file_is_reported_and_its_latest_key_serves_again() {
    let home = Home::with_key(9);
    let mut file = home.file();
    (1..16).for_each(|n| file.add(NewMailboxKey::generate(), NOW - 9 * DAY + n).expect("added"));
    drop(file);
    let mut reader = Reader::new(&home);
    assert_eq!(reader.asks(), Some((16, 0)));
    reader.gets(Vec::new(), false);
    assert!(reader.lines.iter().any(|line| line.contains("has 16 keys")), "{:#?}", reader.lines);
    let latest = *reader.keys().last().expect("a key");
    let offered = reader.uploads().expect("a certificate");
    assert!(!reader.wants_key && Fingerprint::of(&offered.mailbox_key.0) == latest);
}

/// PROTOCOL#mail-order, PROTOCOL#mail-records.
#[test]
fn mail_is_fetched_in_batches_and_shown_together_in_order() {
    let home = Home::with_key(1);
    let mut reader = Reader::new(&home);
    assert_eq!((reader.asks(), reader.holds), (Some((1, 0)), true));
    let (one, two, three) =
        (reader.message(1, 1, "one"), reader.message(2, 1, "two"), reader.message(1, 2, "three"));
    reader.gets(vec![(4, one), (7, two)], true);
    assert_eq!((reader.asks(), reader.mail.len(), reader.confirms()), (Some((1, 7)), 0, vec![]));
    reader.gets(vec![(9, three)], false);
    assert_eq!(reader.mail, ["<bob -> alice> one", "<carol -> alice> two", "<bob -> alice> three"]);
    assert!(!reader.holds && reader.confirms().is_empty(), "confirmed only when it is on the screen");
    reader.event(Event::MailShown);
    // The answer to another request shows that the server has deleted them.
    assert_eq!((reader.confirms(), reader.asks(), reader.asks()), (vec![4, 7, 9], Some((1, 9)), None));
}

/// PROTOCOL#mail-records.
#[test]
fn mail_is_marked_after_a_crash_and_dropped_once_shown() {
    let home = Home::with_key(1);
    let mut reader = Reader::new(&home);
    let message = reader.message(1, 1, "one");
    reader.gets(vec![(4, copy(&message))], false);
    assert_eq!(reader.mail, ["<bob -> alice> one"]);
    drop(reader);
    // It may have been shown, or not.
    let mut reader = Reader::new(&home);
    reader.gets(vec![(4, copy(&message))], false);
    assert_eq!(reader.mail, ["<bob -> alice> one (perhaps shown before)"]);
    reader.event(Event::MailShown);
    assert_eq!(reader.confirms(), [4]);
    drop(reader);
    let mut reader = Reader::new(&home);
    reader.gets(vec![(4, message)], false);
    assert_eq!((reader.mail.len(), reader.confirms()), (0, vec![4]));
    assert!(!reader.lines.iter().any(|line| line.starts_with('!')), "{:#?}", reader.lines);
}

/// PROTOCOL#mail-records, PROTOCOL#id-memory.
#[test]
fn known_id_of_another_sender_hides_no_mail() {
    let home = Home::with_key(1);
    let mut reader = Reader::new(&home);
    let carols = reader.message(2, 1, "two");
    let id = carols.envelope.verify(IDENTITIES[2].public()).expect("signed").id();
    let bobs = reader.changed(1, 1, "one", |header| header.again = Some(Fixed(id)));
    reader.gets(vec![(1, bobs)], false);
    reader.event(Event::MailShown);
    drop(reader);
    let mut reader = Reader::new(&home);
    reader.gets(vec![(2, carols)], false);
    assert_eq!(reader.mail, ["<carol -> alice> two"]);
}

/// PROTOCOL#mail-records.
#[test]
fn numbers_continue_from_the_records_of_an_earlier_run() {
    let home = Home::with_key(1);
    let mut reader = Reader::new(&home);
    let messages: Vec<_> = (1..=5).map(|n| reader.message(1, n, &n.to_string())).collect();
    reader.gets(vec![(1, copy(&messages[0])), (2, copy(&messages[1]))], false);
    reader.event(Event::MailShown);
    drop(reader);
    let mut reader = Reader::new(&home);
    reader.gets(vec![(3, copy(&messages[2]))], false);
    assert!(!reader.lines.iter().any(|line| line.contains("missing")), "{:#?}", reader.lines);
    drop(reader);
    // Number 4 is withheld.
    let mut reader = Reader::new(&home);
    reader.gets(vec![(5, copy(&messages[4]))], false);
    assert!(reader.lines.iter().any(|line| line == "! 1 message from bob is missing"), "{:#?}", reader.lines);
}

/// PROTOCOL#mail-records, PROTOCOL#check-sequence.
#[test]
fn mail_of_many_logins_with_odd_times_is_no_replay() {
    let home = Home::with_key(1);
    let mut reader = Reader::new(&home);
    for n in 1..=100u64 {
        let message = reader.changed(1, 1, "x", |header| {
            (header.session, header.time) = (Fingerprint([n as u8; 32]), NOW + 50_000 - n * 1000);
        });
        reader.gets(vec![(n, message)], n < 100);
    }
    assert_eq!(reader.mail.len(), 100, "{:#?}", reader.lines);
}

/// PROTOCOL#mail-erasing.
#[test]
fn key_is_erased_when_a_later_one_is_set_and_its_mail_is_shown() {
    let home = Home::with_key(1);
    let mut reader = Reader::new(&home);
    let (former, message) = (reader.keys(), reader.message(1, 1, "one"));
    reader.gets(vec![(4, message)], false);
    reader.renews();
    assert_eq!(reader.keys().len(), 2, "the message is not on the screen yet");
    reader.event(Event::MailShown);
    assert_eq!(
        (reader.keys().len(), reader.confirms()),
        (2, vec![4]),
        "the server may not have deleted it yet"
    );
    reader.gets(vec![], false);
    assert_eq!(reader.keys().len(), 1);
    assert_ne!(reader.keys(), former);
    drop(reader);
    assert_eq!(home.file().keys().count(), 1);
}

/// PROTOCOL#mail-erasing.
#[test]
fn key_stays_while_the_server_has_more_and_goes_after_60_days() {
    for (age, left) in [(59, 2), (61, 1)] {
        let home = Home::with_key(age);
        let mut reader = Reader::new(&home);
        assert_eq!(reader.keys().len(), 1, "an attempt to fetch comes first");
        // An answer that never ends.
        let message = reader.message(1, 1, "one");
        reader.gets(vec![(1, message)], true);
        reader.seconds_pass(11);
        reader.event(Event::MailShown);
        reader.renews();
        assert_eq!(reader.keys().len(), left, "{age}");
    }
}

/// PROTOCOL#mail-owner.
#[test]
fn mailbox_key_is_on_disk_before_it_is_sent() {
    let home = Home::with_key(1);
    let mut reader = Reader::new(&home);
    assert!(!reader.wants_key);
    reader.gets(vec![], false);
    assert!(std::mem::take(&mut reader.wants_key));
    reader.event(Event::NewMailboxKey(Box::new(NewMailboxKey::generate())));
    let certificate = reader.uploads().expect("sent");
    let key = certificate.verify(&name(0), IDENTITIES[0].public(), NOW).expect("certified");
    let keys = reader.keys();
    assert!(certificate.created >= NOW && keys.last() == Some(&key.fingerprint()));
    assert_eq!(keys.len(), 2, "the former one stays until the server has the new one");
    drop(reader);
    let file = home.file();
    assert!(file.keys().map(|mailbox| mailbox.key.fingerprint()).eq(keys));
}

/// PROTOCOL#mail-owner.
#[test]
fn refused_mailbox_key_is_certified_above_the_newest() {
    let home = Home::new();
    let mut reader = Reader::new(&home);
    assert_eq!((reader.asks(), reader.holds), (Some((0, 0)), false));
    reader.gets(vec![], false);
    reader.event(Event::NewMailboxKey(Box::new(NewMailboxKey::generate())));
    let first = reader.uploads().expect("sent");
    reader.server(refusal(ErrorCode::BadMailbox, Some(NOW + 5000)));
    let second = reader.uploads().expect("sent again");
    assert_eq!(second.created, NOW + 5001);
    assert!(second.mailbox_key == first.mailbox_key);
    reader.server(refusal(ErrorCode::BadMailbox, Some(NOW + 6000)));
    assert!(reader.uploads().is_some());
    reader.server(refusal(ErrorCode::BadMailbox, Some(NOW + 7000)));
    assert!(reader.uploads().is_none(), "no endless loop");
    assert!(reader.lines.iter().any(|line| line.starts_with("! the server has refused your mailbox key")));
    assert_eq!(reader.keys().len(), 1, "it may be the server's fault");
}

/// PROTOCOL#mail-owner, PROTOCOL#mail-order.
#[test]
fn error_of_the_server_ends_the_wait_and_keeps_the_keys() {
    let home = Home::with_key(1);
    let mut reader = Reader::new(&home);
    reader.server(refusal(ErrorCode::Malformed, None));
    assert!(!reader.holds && !reader.session.mailbox.is_asking());
    reader.event(Event::NewMailboxKey(Box::new(NewMailboxKey::generate())));
    reader.server(refusal(ErrorCode::ServerError, None));
    assert_eq!((reader.keys().len(), reader.session.mailbox.is_asking()), (2, false));
    assert!(reader.lines.iter().any(|line| line == "! the server says: refused"), "{:#?}", reader.lines);
}

/// PROTOCOL#mail-erasing.
#[test]
fn server_without_mail_leaves_no_keys_and_no_reports() {
    let home = Home::with_key(1);
    let mut reader = Reader::new(&home);
    reader.gets(vec![], false);
    reader.event(Event::NewMailboxKey(Box::new(NewMailboxKey::generate())));
    reader.server(refusal(ErrorCode::NoMail, None));
    assert!(reader.keys().is_empty());
    assert!(!reader.lines.iter().any(|line| line.starts_with('!')), "{:#?}", reader.lines);
}

/// PROTOCOL#mail-refusals.
#[test]
fn mail_under_a_changed_key_waits_without_delaying_others() {
    let home = Home::with_key(1);
    let mut reader = Reader::new(&home);
    let (bobs, carols) = (reader.message(1, 1, "one"), reader.message(2, 1, "two"));
    // bob is known by another key than the one that the server shows now, with which he has signed.
    reader.known_as[1] = 2;
    let early =
        reader.changed(1, 1, "early", |header| header.identity = IDENTITIES[2].public().fingerprint());
    reader.gets(vec![(1, early)], true);
    reader.known_as[1] = 1;
    reader.gets(vec![(2, copy(&bobs)), (3, copy(&carols))], false);
    assert_eq!(reader.mail, ["<carol -> alice> two"]);
    reader.event(Event::MailShown);
    reader.gets(vec![], false);
    reader.renews();
    assert_eq!((reader.confirms(), reader.keys().len()), (vec![1, 3], 2), "the key stays");
    assert!(reader.lines.iter().any(|line| line.contains("messages from bob wait until you decide")));
    while reader.asks().is_some() {}
    reader.event(Event::Line("/verify bob".into()));
    reader.event(Event::Line("/trust bob".into()));
    assert_eq!(reader.asks(), Some((2, 0)));
    reader.mail.clear();
    reader.gets(vec![(2, bobs)], false);
    assert_eq!(reader.mail, ["<bob -> alice> one"]);
    reader.event(Event::MailShown);
    assert_eq!((reader.confirms(), reader.keys().len()), (vec![2], 2));
    reader.gets(vec![], false);
    assert_eq!(reader.keys().len(), 1);
}

/// PROTOCOL#mail-refusals.
#[test]
fn only_a_message_to_this_user_for_a_mailbox_key_is_mail() {
    let home = Home::with_key(1);
    let mut reader = Reader::new(&home);
    let session_key = reader.session.cx.account.current().fingerprint();
    let others = Fingerprint([1; 32]);
    // Equal problems with one sender are counted.
    let mut refuse = |number: u64, from: usize, change: &dyn Fn(&mut Header), why: &str| {
        let message = reader.changed(from, number, "x", |header| change(header));
        reader.lines.clear();
        reader.gets(vec![(number, message)], true);
        assert!(reader.lines.iter().any(|line| line.ends_with(why)), "{why}: {:#?}", reader.lines);
        // It fails for good, so it does not wait any longer.
        assert_eq!((reader.mail.len(), reader.confirms()), (0, vec![number]));
    };
    let why = "only messages can wait in a mailbox";
    refuse(1, 1, &|header| (header.kind, header.scope) = (Kind::RoomOpened, Scope::Room), why);
    refuse(2, 2, &|header| header.kind = Kind::FileOffer, why);
    let why = "it is for another user, or for an earlier session of yours";
    refuse(3, 1, &|header| header.recipient = Some(name(2)), why);
    refuse(4, 2, &|header| header.recipient_key = Some(others), why);
    let why = "it cannot be decrypted";
    refuse(5, 1, &|header| header.recipient_key = Some(session_key), why);
    refuse(6, 2, &as_broadcast, why);
}

fn as_broadcast(header: &mut Header) {
    (header.scope, header.recipient, header.recipient_key) = (Scope::Broadcast, None, None);
}

/// PROTOCOL#mail-refusals.
#[test]
fn envelope_of_a_session_in_a_mail_is_confirmed_and_not_shown() {
    let home = Home::with_key(1);
    let mut reader = Reader::new(&home);
    let kinds: [fn(&mut Header); 3] = [|_| {}, |header| header.kind = Kind::FileOffer, as_broadcast];
    for (number, change) in (1..).zip(kinds) {
        let message = sealed(1, number, "{}", &reader.session.cx.account.current(), change);
        reader.gets(vec![(number, message)], true);
        assert_eq!((reader.mail.len(), reader.confirms()), (0, vec![number]));
    }
    assert!(reader.lines.iter().any(|line| line.ends_with("it was not sealed for a mailbox")));
}

/// PROTOCOL#mail-refusals.
#[test]
fn mail_that_arrives_live_is_mail_and_is_shown_once() {
    let home = Home::with_key(1);
    let mut reader = Reader::new(&home);
    let (one, notice) = (
        reader.message(1, 1, "one"),
        reader.changed(1, 2, "", |header| (header.kind, header.scope) = (Kind::RoomOpened, Scope::Room)),
    );
    reader.gets(vec![], false);
    for _ in 0..2 {
        reader.server(ServerMessage::EncryptedMessage(copy(&one)));
        reader.answer_keys();
        reader.event(Event::MailShown);
    }
    assert_eq!(reader.mail, ["<bob -> alice> one"]);
    reader.server(ServerMessage::EncryptedMessage(notice));
    assert!(reader.lines.iter().any(|line| line.ends_with("only messages can wait in a mailbox")));
    assert!(!reader.lines.iter().any(|line| line.contains("dated")), "its age is no problem");
    let later = Scope::Later(Word::new("sealed").expect("short"));
    reader.lines.clear();
    let message = reader.changed(2, 1, "x", |header| header.scope = later);
    reader.server(ServerMessage::EncryptedMessage(message));
    reader.answer_keys();
    assert!(reader.lines.iter().any(|line| line.ends_with("only messages can wait in a mailbox")));
}

/// PROTOCOL#mail-order.
#[test]
fn live_messages_wait_ten_seconds_for_a_silent_server() {
    let home = Home::with_key(1);
    let mut reader = Reader::new(&home);
    assert!(reader.holds);
    reader.seconds_pass(9);
    assert!(reader.holds && !reader.wants_key);
    reader.seconds_pass(1);
    assert!(!reader.holds && reader.wants_key, "the next key does not wait either");
}

/// PROTOCOL#mail-refusals.
#[test]
fn mail_for_another_machine_is_reported_once_with_its_end() {
    let home = Home::with_key(1);
    let mut reader = Reader::new(&home);
    let message = reader.message(1, 1, "one");
    reader.gets_besides(vec![(1, message)], true, 3);
    reader.gets_besides(vec![], false, 3);
    let until = clock::date_minute(NOW + DAY);
    let text = format!("* 3 messages wait for the machine that you used before, until {until}");
    assert_eq!(reader.lines.iter().filter(|line| **line == text).count(), 1, "{:#?}", reader.lines);
}

/// PROTOCOL#mail-records.
#[test]
fn new_session_fetches_again_and_confirms_no_old_numbers() {
    let home = Home::with_key(1);
    let mut reader = Reader::new(&home);
    let (one, two) = (reader.message(1, 1, "one"), reader.message(1, 2, "two"));
    reader.gets(vec![(1, copy(&one))], true);
    assert_eq!((reader.asks(), reader.asks()), (Some((1, 0)), Some((1, 1))));
    let key = NewKey { key: SessionKey::generate(), created: NOW + 1, newest: NOW };
    reader.event(Event::LoggedIn(Box::new(key), Duration::ZERO));
    assert_eq!(reader.mail, ["<bob -> alice> one"]);
    assert_eq!((reader.asks(), reader.holds), (Some((1, 0)), true));
    reader.event(Event::MailShown);
    assert!(reader.confirms().is_empty());
    reader.gets(vec![(1, one), (2, two)], false);
    assert_eq!(reader.mail, ["<bob -> alice> one", "<bob -> alice> two"]);
    reader.event(Event::MailShown);
    assert_eq!(reader.confirms(), [1, 2]);
}

/// PROTOCOL#fetching.
#[test]
fn mail_in_a_wrong_order_or_unasked_is_refused() {
    for numbers in [vec![2, 1], vec![1, 1], vec![0]] {
        let home = Home::with_key(1);
        let mut reader = Reader::new(&home);
        let mail = numbers.iter().map(|number| (*number, reader.message(1, *number + 1, "x"))).collect();
        reader.gets(mail, false);
        assert!(reader.lines.iter().any(|line| line.contains("mail in a wrong order")), "{numbers:?}");
        reader.renews();
        assert_eq!((reader.mail.len(), reader.keys().len()), (0, 2), "nothing is lost");
        reader.gets(vec![], false);
        assert!(reader.lines.iter().any(|line| line.contains("unexpected message")));
    }
}
