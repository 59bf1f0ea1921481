//! Envelopes from other users: checked in the specification's order before anything of them is shown.
//!
//! Invariant: nothing of an envelope but its claimed sender is shown before its signature by a known key is verified;
//! no run shows a message twice without a mark. All failures of a decryption look alike, to the user and to the server.
//! Specification: PROTOCOL#receiving.

use super::contacts::Contacts;
use super::cx::Cx;
use super::presence::OnlineUsers;
use super::replay::{Between, Order, Replay, between};
use crate::client::audience::Audience;
use crate::crypto::envelope::{Header, Kind, MAX_TEXT, Scope};
use crate::crypto::keys::SessionKey;
use crate::name::Username;
use crate::protocol::EncryptedMessage;
use std::collections::{HashMap, VecDeque};
use zeroize::Zeroizing;

/// The most envelopes that wait for their senders' keys. They are unchecked, and take 35 MB at most.
const MAX_INBOX: usize = 1024;
/// The most envelopes of one sender that wait, which leaves room for others.
const MAX_INBOX_OF_ONE: usize = 64;
/// The most message ids that are kept for one sender: more than a user reads in an hour.
const MAX_IDS_OF_ONE: usize = 1024;
/// The most ids that are kept for all senders: 2 MiB.
const MAX_IDS: usize = 65_536;
/// A time that differs from this machine's clock by more, in milliseconds, is reported: a synchronised clock never
/// does.
const MAX_SKEW_MS: u64 = 5 * 60 * 1000;
/// The count of missing messages stops here: at the server's rate, this number takes a day.
const MAX_MISSING: u64 = 10_000_000;

/// The state of the envelopes from one user.
#[derive(Default)]
struct Sender {
    /// Envelopes that wait for the sender's key.
    inbox: VecDeque<EncryptedMessage>,
    /// The sequence numbers that were accepted.
    replay: Replay,
    /// The ids of the latest messages, the oldest first.
    ids: VecDeque<[u8; 32]>,
    /// Whether older ids were dropped.
    has_forgotten: bool,
    /// The total number of messages that did not arrive.
    missing: u64,
}

/// An envelope that has passed all checks.
pub struct Received {
    /// The signed header.
    pub header: Header,
    /// All recipients.
    pub to: Audience,
    /// The decrypted text; in a message about a file, it may contain a key.
    pub text: Zeroizing<String>,
    /// The message's id.
    pub id: [u8; 32],
    /// Whether it was sealed for a mailbox key.
    pub is_mail: bool,
}

/// The result of an envelope's arrival.
pub enum Arrived {
    /// Its sender's key is known: it can be opened.
    Ready(Box<EncryptedMessage>),
    /// It waits for the keys of its sender.
    Waits(Username),
    /// It was refused, and the user was notified.
    Refused,
}

/// See the module.
#[derive(Default)]
pub struct Incoming {
    senders: HashMap<Username, Sender>,
    /// The number of envelopes that wait for keys.
    unread: usize,
    /// The number of message ids of all senders.
    ids: usize,
    /// When this run of the client began, milliseconds since 1970; `None` before the first event.
    pub(super) began: Option<u64>,
}

impl Incoming {
    /// Notes when this run of the client began.
    pub fn tick(&mut self, cx: &Cx) {
        self.began.get_or_insert(cx.now);
    }

    fn sender(&mut self, name: &Username) -> &mut Sender {
        self.senders.entry(name.clone()).or_default()
    }

    /// Handles an envelope from the server.
    pub fn arrive(&mut self, cx: &mut Cx, contacts: &mut Contacts, message: EncryptedMessage) -> Arrived {
        let header = &message.envelope.header;
        let (from, named) = (header.from.clone(), header.identity);
        if from == cx.me || !contacts.admits(&from) {
            tell_refused(cx, &from, "its sender is invalid");
            return Arrived::Refused;
        }
        let identity = contacts.find(&from).and_then(|contact| contact.identity.as_ref());
        let is_known = identity.is_some_and(|key| key.fingerprint() == named);
        let waiting = self.sender(&from).inbox.len();
        if is_known && waiting == 0 {
            return Arrived::Ready(Box::new(message));
        }
        // From a stranger, under a changed key, or forged: the key that the server shows decides.
        if self.unread >= MAX_INBOX || waiting >= MAX_INBOX_OF_ONE {
            self.refuse(cx, header, "too many messages are waiting for a key");
            return Arrived::Refused;
        }
        self.unread += 1;
        self.sender(&from).inbox.push_back(message);
        Arrived::Waits(from)
    }

    /// Users whose envelopes wait for their keys.
    pub fn waiting(&self) -> Vec<Username> {
        let waiting = self.senders.iter().filter(|(_, sender)| !sender.inbox.is_empty());
        waiting.map(|(name, _)| name.clone()).collect()
    }

    /// Whether envelopes wait for a key that `is_asked`.
    pub fn waits_for(&self, is_asked: impl Fn(&Username) -> bool) -> bool {
        let mut senders = self.senders.iter();
        self.unread > 0 && senders.any(|(name, sender)| !sender.inbox.is_empty() && is_asked(name))
    }

    /// Takes the envelopes that waited for the key of `name`, in order.
    pub fn take_inbox(&mut self, name: &Username) -> VecDeque<EncryptedMessage> {
        let inbox = self.senders.get_mut(name).map(|sender| std::mem::take(&mut sender.inbox));
        let inbox = inbox.unwrap_or_default();
        self.unread -= inbox.len();
        inbox
    }

    /// Refuses the envelopes that waited for the keys of `name`, who has no usable ones.
    pub fn drop_inbox(&mut self, cx: &mut Cx, name: &Username) {
        for message in self.take_inbox(name) {
            self.refuse(cx, &message.envelope.header, "there is no key to verify it");
        }
    }

    /// Refuses an envelope; its number does not count as missing later. PROTOCOL#no-answer, PROTOCOL#check-sequence.
    pub fn refuse(&mut self, cx: &mut Cx, header: &Header, why: &str) {
        let (place, sequence) = claimed(header);
        let sender = self.sender(&header.from);
        let mut waiting = sender.inbox.iter().rev().map(|message| claimed(&message.envelope.header));
        let waiting = waiting.find(|(of, _)| *of == place).map(|(_, sequence)| sequence);
        sender.replay.refuse(place, sequence, waiting);
        tell_refused(cx, &header.from, why);
    }

    /// Opens an envelope; `None` if it is never shown. PROTOCOL#check-identity.
    pub fn open(
        &mut self,
        cx: &mut Cx,
        contacts: &Contacts,
        online: &OnlineUsers,
        message: &EncryptedMessage,
    ) -> Option<Received> {
        let header = &message.envelope.header;
        match self.checked(cx, (contacts, online), message) {
            Ok(Some((received, gap))) => self.take_in(cx, received, gap),
            Ok(None) => None,
            Err(why) => {
                self.refuse(cx, header, &why);
                None
            }
        }
    }

    /// Makes all checks: signature, recipient, order, then RSA and AES. Returns the number of missing messages before
    /// it, too; `None` for mail that was shown before, `Err` with the reason of a refusal. PROTOCOL#checks,
    /// PROTOCOL#check-recipient, PROTOCOL#mail-refusals.
    fn checked(
        &mut self,
        cx: &Cx,
        (contacts, online): (&Contacts, &OnlineUsers),
        message: &EncryptedMessage,
    ) -> Result<Option<(Received, u64)>, String> {
        let from = &message.envelope.header.from;
        let identity = contacts.find(from).and_then(|contact| contact.identity.as_ref());
        let Some(identity) = identity else { return Err("the sender's key is unknown".into()) };
        let verified = message.envelope.verify(identity).map_err(|error| error.to_string())?;
        let header = verified.header().clone();
        // PROTOCOL#key-id.
        let is_meant = |key: &&SessionKey| key.fingerprint().key_id() == message.key.id();
        let mut keys = cx.account.session_keys();
        let mine = header.recipient_key.filter(|_| header.recipient.as_ref() == Some(&cx.me));
        let mailbox_key = mine.and_then(|signed| cx.account.mailbox_key(signed));
        let mailbox = cx.account.mailbox.as_ref().filter(|_| mailbox_key.is_some());
        let key = match &header.recipient {
            Some(_) => {
                let key = mailbox_key.or_else(|| keys.find(|key| Some(key.fingerprint()) == mine));
                Some(key.ok_or("it is for another user, or for an earlier session of yours")?)
            }
            // PROTOCOL#broadcast-server.
            None if header.recipient_key == cx.account.server => keys.find(is_meant),
            None => return Err("it is for another server".into()),
        };
        let id = verified.id();
        let recorded = mailbox.and_then(|mailbox| mailbox.recorded(from, &id));
        if recorded == Some(true) {
            return Ok(None);
        }
        let is_plain = header.kind == Kind::Message && !matches!(header.scope, Scope::Later(_));
        if mailbox.is_some() && !is_plain {
            return Err("only messages can wait in a mailbox".into());
        }
        let replay = &mut self.sender(from).replay;
        let place = between(&header);
        if let Some((mailbox, (session, Some(key)))) = mailbox.zip(Some(place)) {
            replay.resume(place, || mailbox.sequence(key, from, session).unwrap_or(0), cx.now);
        }
        let gap = match replay.order(&header, cx.now) {
            _ if recorded.is_some() => 0,
            Order::Next => 0,
            Order::Gap(missing) => missing,
            Order::Replayed => {
                return Err("it is a duplicate, or it arrived out of order".into());
            }
        };
        let opened = key.filter(is_meant).map(|key| verified.open(key, &message.key.bytes()));
        let mut text = match opened {
            Some(Ok(text)) => text,
            _ => return Err("it cannot be decrypted".into()),
        };
        let to = Audience::take(&header, &mut text).ok_or("its list of members is invalid")?;
        let is_twin = |name: &&Username| contacts.other_spelling(name).is_some() || online.has_twin(name);
        if let Some(name) = to.recipients().iter().filter(|name| **name != cx.me).find(is_twin) {
            return Err(format!(
                "{name} in its list of members differs from a known name only in letter case"
            ));
        }
        let text = String::from_utf8(std::mem::take(&mut *text)).map_err(|_| "it is not text".to_string())?;
        let mut text = Zeroizing::new(text);
        let is_notice = matches!(header.kind, Kind::RoomOpened | Kind::RoomLeft);
        if text.len() > if is_notice { 0 } else { MAX_TEXT } {
            return Err("its fields contradict each other".into());
        }
        if recorded.is_some() {
            // An earlier run has recorded it as taken, and may have shown it.
            text.push_str(" (perhaps shown before)");
        } else {
            replay.record(&header, cx.now);
        }
        Ok(Some((Received { header, to, text, id, is_mail: mailbox.is_some() }, gap)))
    }

    /// Accepts an envelope that has passed the checks; reports missing numbers before it, and a wrong time. `None` if
    /// it is not shown. PROTOCOL#check-text.
    fn take_in(&mut self, cx: &mut Cx, mut received: Received, gap: u64) -> Option<Received> {
        let header = &received.header;
        let later = matches!(header.kind, Kind::Later(_)) || matches!(header.scope, Scope::Later(_));
        let about_files =
            matches!(header.kind, Kind::FileAccept | Kind::FileReject | Kind::FileCancel | Kind::FileDone);
        if (later || !about_files) && cx.ignored.contains(&header.from) {
            return None;
        }
        if gap > 0 {
            self.tell_gap(cx, &header.from, gap);
        }
        // PROTOCOL#check-again.
        if !self.is_new(&header.from, received.id) {
            return None;
        }
        // Mail may be as old as the absence.
        if !received.is_mail {
            tell_skew(cx, header);
        }
        if header.kind == Kind::Message && self.may_be_repeated(header) {
            received.text.push_str(" (sent again)");
        }
        // PROTOCOL#later-versions.
        if later {
            cx.tell_later(&format!("{} has sent something that this version does not know", header.from));
            return None;
        }
        Some(received)
    }

    /// Remembers the id of a message of `name`; false if it was remembered already. PROTOCOL#id-memory.
    fn is_new(&mut self, name: &Username, id: [u8; 32]) -> bool {
        let sender = self.sender(name);
        if sender.ids.contains(&id) {
            return false;
        }
        sender.ids.push_back(id);
        let is_long = sender.ids.len() > MAX_IDS_OF_ONE;
        self.ids += 1;
        if is_long || self.ids > MAX_IDS {
            let fullest = self.senders.values_mut().max_by_key(|sender| sender.ids.len());
            if let Some(sender) = fullest {
                (sender.has_forgotten, _) = (true, sender.ids.pop_front());
                self.ids -= 1;
            }
        }
        true
    }

    fn tell_gap(&mut self, cx: &mut Cx, from: &Username, missing: u64) {
        let total = &mut self.sender(from).missing;
        let in_total = if *total > 0 { " in total" } else { "" };
        *total = total.saturating_add(missing);
        let (messages, are) = if *total == 1 { ("message", "is") } else { ("messages", "are") };
        let count = if *total > MAX_MISSING { format!("more than {MAX_MISSING}") } else { total.to_string() };
        let text = format!("{count} {messages} from {from} {are} missing{in_total}");
        cx.problem_about(from, "missing", text);
    }

    /// Whether a message that was sealed before may have been shown by an earlier run, or so long ago that its id is
    /// forgotten.
    fn may_be_repeated(&self, header: &Header) -> bool {
        let has_forgotten = self.senders.get(&header.from).is_none_or(|sender| sender.has_forgotten);
        let was_here = self.began.is_some_and(|began| began.saturating_add(MAX_SKEW_MS) < header.time);
        header.again.is_some() && (has_forgotten || !was_here)
    }
}

/// The conversation and the number that a header claims.
fn claimed(header: &Header) -> (Between, u64) {
    (between(header), header.sequence)
}

fn tell_refused(cx: &mut Cx, from: &Username, why: &str) {
    cx.problem_about(from, why, format!("refused a message that claims to come from {from}: {why}"));
}

/// Reports a time that is far from this machine's.
fn tell_skew(cx: &mut Cx, header: &Header) {
    let (from, off) = (&header.from, header.time.abs_diff(cx.now));
    if off > MAX_SKEW_MS {
        // A delayed message has an old date, never a future one.
        let (direction, delayed) = match header.time < cx.now {
            true => ("behind", ", or the message was delayed"),
            false => ("ahead of", ""),
        };
        let text = format!(
            "a message from {from} is dated {} {direction} this machine's clock: one of the clocks is wrong{delayed}",
            span(off)
        );
        cx.problem_about(from, direction, text);
    }
}

/// A duration in milliseconds, as text.
fn span(ms: u64) -> String {
    match ms / 60_000 {
        minutes @ 0..120 => format!("{minutes} minutes"),
        minutes @ 120..2880 => format!("{} hours", minutes / 60),
        minutes @ 2880..1_440_000 => format!("{} days", minutes / 1440),
        _ => "more than 1000 days".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Incoming {
        /// The id of the latest message of `name`.
        pub fn last_id(&mut self, name: &Username) -> Option<[u8; 32]> {
            self.sender(name).ids.back().copied()
        }

        /// Acts as if `name` had sent more messages than are remembered.
        pub fn forget_some(&mut self, name: &Username) {
            self.sender(name).has_forgotten = true;
        }
    }

    /// PROTOCOL#id-memory.
    #[test]
    fn ids_are_remembered_up_to_a_limit_per_user_and_in_total() {
        let mut incoming = Incoming::default();
        let name = |n: usize| format!("user{n}").parse::<Username>().expect("name");
        let id = |n: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            id
        };
        let all = |incoming: &mut Incoming, of: usize, count: usize| {
            (0..count).filter(|n| incoming.is_new(&name(of), id(*n))).count()
        };
        assert_eq!(all(&mut incoming, 0, MAX_IDS_OF_ONE), MAX_IDS_OF_ONE);
        assert_eq!(all(&mut incoming, 0, MAX_IDS_OF_ONE), 0);
        assert!(!incoming.sender(&name(0)).has_forgotten && incoming.is_new(&name(0), id(MAX_IDS_OF_ONE)));
        assert!(
            incoming.sender(&name(0)).has_forgotten && incoming.is_new(&name(0), id(0)),
            "the oldest is gone"
        );
        for other in 1..MAX_IDS / MAX_IDS_OF_ONE {
            assert_eq!(all(&mut incoming, other, MAX_IDS_OF_ONE), MAX_IDS_OF_ONE);
        }
        assert_eq!(incoming.ids, MAX_IDS);
        assert!(
            incoming.is_new(&name(99), id(0))
                && incoming.ids == MAX_IDS
                && !incoming.is_new(&name(99), id(0))
        );
    }
}
