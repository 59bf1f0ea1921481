//! The user's messages: sealed, wrapped for each recipient, sent. `outcome` handles the server's answers.
//!
//! A message has one copy for each recipient. The copies of a broadcast share one envelope; each copy of a private or
//! room message is sealed for its recipient's session, or for the mailbox of an absent one.
//!
//! Invariant: messages to one user are sent in the order in which they were typed; nothing is sealed for a key without
//! a valid certificate. Specification: PROTOCOL#sending, PROTOCOL#room-copies.

mod outcome;

use super::contacts::{Contact, Contacts};
use super::cx::Cx;
use super::event::Display;
use super::presence::OnlineUsers;
use super::seal_key::SealKey;
use crate::client::audience::Audience;
use crate::client::entry::{Entry, SendState, Source};
use crate::client::text::{all_quoted, sanitise_lines};
use crate::crypto::envelope::{Header, Kind, MAX_TEXT, Sealed};
use crate::crypto::public::Fingerprint;
use crate::crypto::secret::random;
use crate::encoding::Fixed;
use crate::name::Username;
use crate::protocol::{ByName, ClientMessage, EncryptedSend, MAX_TARGETS, Routing, WrappedKey};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;
use zeroize::Zeroizing;

/// Fewer recipients than this are not worth a second thread.
const SPREAD_FROM: usize = 16;

/// Why a user did not get a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Missed {
    /// No session, and no mailbox that can keep it.
    Offline,
    /// No account.
    NoAccount,
    /// No usable key.
    NoKey,
    /// Their key needs a decision.
    KeyChanged,
    /// Too much waits for their client on the server.
    Busy,
    /// Too much waits in their mailbox.
    MailboxFull,
    /// The server's answer contradicts the key that was used.
    Contradicted,
    /// Their session ended before it acknowledged the message.
    Lost,
    /// The user's session ended before the server answered.
    Unconfirmed,
    /// The server refused the message, or called each key stale.
    Failed,
}

impl Missed {
    /// The reason why `name` did not get it, as text.
    pub fn because(self, contacts: &Contacts, name: &Username) -> String {
        match self {
            Missed::Offline => format!("{name} is offline"),
            Missed::NoAccount => format!("there is no account named {name}"),
            Missed::NoKey => format!("{name} has no usable key"),
            Missed::KeyChanged => contacts.doubt(name),
            Missed::Busy => format!("{name}'s connection is too slow at the moment"),
            Missed::MailboxFull => format!("{name}'s mailbox is full"),
            Missed::Contradicted => {
                format!("the server's answer contradicts the key of {name} that was used")
            }
            Missed::Lost => format!("{name}'s session ended first"),
            Missed::Unconfirmed => format!("the connection was lost before {name} got it"),
            Missed::Failed => format!("the server did not accept it for {name}"),
        }
    }
}

/// An outcome that concerns another part.
pub enum Outcome {
    /// The partner was notified of the room.
    Opened(Username),
    /// The partner could not be notified of the room.
    NotOpened(Username),
    /// The outcome of a message about a transfer.
    FileMessage {
        /// The transfer's number.
        transfer: u32,
        /// The kind of the message.
        kind: Kind,
        /// The reason why it was not delivered; `None` if it was.
        missed: Option<String>,
    },
}

/// One message, until it is settled; a private, room or failed one for some time longer.
pub struct Outgoing {
    kind: Kind,
    audience: Audience,
    /// A message about a file may contain its key.
    text: Zeroizing<String>,
    /// When it was typed, milliseconds since 1970.
    time: u64,
    /// The ids by recipient (one without a recipient in a broadcast), kept because the message may be sealed again.
    /// PROTOCOL#message-id.
    ids: BTreeMap<Option<Username>, Fixed<32>>,
    /// The number of its transfer.
    transfer: Option<u32>,
    /// The envelope of a broadcast.
    sealed: Option<Arc<Sealed>>,
    copies: BTreeMap<Username, Copy>,
    /// The number of copies without an outcome.
    waiting: usize,
    /// The number of delivered and kept copies.
    delivered: usize,
    /// Whether it was shown as accepted.
    shown: bool,
    /// The time of the first request.
    requested: Option<Instant>,
    /// When all outcomes were known.
    settled: Option<Instant>,
}

/// One recipient's copy of a message.
#[derive(Default)]
struct Copy {
    /// The latest request that contained it; 0 before the first.
    request: u64,
    /// How often the server called its key stale, or reported it as lost.
    tries: u32,
    /// Whether it was sealed for a mailbox key: if it was accepted, it is kept.
    for_mailbox: bool,
    /// Whether it was delivered and then lost. The recipient may have it.
    was_lost: bool,
    /// `None` while it waits.
    outcome: Option<Result<(), Missed>>,
}

/// The messages to one user.
#[derive(Default)]
struct Recipient {
    /// The key of the unanswered requests. Nothing is sent for another key before all are answered; otherwise
    /// messages would overtake each other.
    key_in_flight: Option<Fingerprint>,
    /// The key that the server last called stale, or whose session has ended.
    stale: Option<Fingerprint>,
    /// Unanswered `encrypted_send`s with this user as a target.
    in_flight: usize,
    /// The numbers of the messages to this user that wait, in order.
    backlog: BTreeSet<u64>,
    /// The last sequence numbers of the private conversations with the latest session and the latest mailbox, and the
    /// keys that they belong to; `None` before the first. A user can be absent twice with one mailbox key.
    sequences: [Option<(Fingerprint, u64)>; 2],
}

impl Recipient {
    /// The next number of the private conversation with this key, from 1. PROTOCOL#sequence.
    fn next_sequence(&mut self, SealKey { key, is_mailbox, .. }: &SealKey) -> u64 {
        let (sequence, key) = (&mut self.sequences[usize::from(*is_mailbox)], key.fingerprint());
        let last = sequence.filter(|(former, _)| *former == key).map_or(0, |(_, last)| last);
        *sequence = Some((key, last + 1));
        last + 1
    }
}

/// All messages that are not settled, and the latest settled ones.
#[derive(Default)]
pub struct Outbox {
    /// By number, as typed. The settled ones have failed and can be sent again, or the server may still report that
    /// they are lost.
    messages: BTreeMap<u64, Outgoing>,
    recipients: HashMap<Username, Recipient>,
    /// Requests without an answer: the message, and its recipients.
    flights: BTreeMap<u64, (u64, Vec<Username>)>,
    /// Requests in flight that were reported as lost.
    lost: BTreeSet<u64>,
    next_message: u64,
    next_request: u64,
    /// The last number of the broadcast conversation.
    broadcasts: u64,
    /// Outcomes that were not passed on yet.
    outcomes: VecDeque<Outcome>,
    /// A session ended before the server had acknowledged all messages.
    gave_up: bool,
}

impl Outgoing {
    /// A message written at `time`, in milliseconds since 1970.
    pub fn new(kind: Kind, audience: Audience, text: Zeroizing<String>, time: u64) -> Outgoing {
        Outgoing {
            kind,
            audience,
            text,
            time,
            ids: BTreeMap::new(),
            transfer: None,
            sealed: None,
            copies: BTreeMap::new(),
            waiting: 0,
            delivered: 0,
            shown: false,
            requested: None,
            settled: None,
        }
    }

    /// Whether it may have left this machine, if there was no connection since `lost`.
    fn may_have_left(&self, lost: Option<Instant>) -> bool {
        self.requested.is_some_and(|requested| lost.is_none_or(|lost| requested <= lost))
    }

    /// Whether it is settled and a recipient missed it; a broadcast, if nobody got it.
    fn has_failed(&self) -> bool {
        self.settled.is_some() && self.delivered < self.audience.recipients().len().max(1)
    }

    /// Whether it can wait for an absent user. PROTOCOL#keeping.
    fn can_wait(&self) -> bool {
        self.kind == Kind::Message && self.audience != Audience::Everyone
    }

    /// Notes the outcome of a copy. A copy that was lost once may have arrived, so a later failure counts as a loss.
    fn settle(&mut self, name: &Username, outcome: Result<(), Missed>) {
        let Some(copy) = self.copies.get_mut(name) else { return };
        let outcome = outcome.map_err(|why| if copy.was_lost { Missed::Lost } else { why });
        let former = copy.outcome.replace(outcome);
        self.waiting -= usize::from(former.is_none());
        self.delivered -= usize::from(former == Some(Ok(())));
        self.delivered += usize::from(outcome.is_ok());
    }

    /// Waits again for the outcome of a delivered copy.
    fn reopen(&mut self, name: &Username) {
        let outcome = self.copies.get_mut(name).and_then(|copy| copy.outcome.take());
        self.delivered -= usize::from(outcome == Some(Ok(())));
        self.waiting += usize::from(outcome.is_some());
        self.settled = None;
    }

    /// The recipients for whom it is kept until they log in: those whose accepted copies were sealed for a mailbox key.
    fn kept(&self) -> Vec<&str> {
        let kept = self.copies.iter().filter(|(_, copy)| copy.for_mailbox && copy.outcome == Some(Ok(())));
        kept.map(|(name, _)| name.as_str()).collect()
    }

    /// The recipients that did not get it, and why.
    fn missed(&self) -> impl Iterator<Item = (&Username, Missed)> {
        self.copies.iter().filter_map(|(name, copy)| Some((name, copy.outcome?.err()?)))
    }

    /// A message about the transfer with this number.
    pub fn about(self, transfer: u32) -> Outgoing {
        Outgoing { transfer: Some(transfer), ..self }
    }
}

impl Outbox {
    /// Messages that are not settled yet.
    fn pending(&self) -> impl Iterator<Item = &Outgoing> {
        self.messages.values().filter(|message| message.settled.is_none())
    }

    /// The number of messages that are not settled yet.
    pub fn len(&self) -> usize {
        self.pending().count()
    }

    /// Whether everything is settled.
    pub fn is_empty(&self) -> bool {
        self.pending().next().is_none()
    }

    /// Whether the server owes an answer.
    pub fn in_flight(&self) -> bool {
        !self.flights.is_empty()
    }

    /// Whether the failed message of this number can still be sent again.
    pub fn can_resend(&self, number: u64) -> bool {
        self.messages.get(&number).is_some_and(Outgoing::has_failed)
    }

    /// Whether a session ended before the server had acknowledged all messages.
    pub fn has_given_up(&self) -> bool {
        self.gave_up
    }

    /// The user's messages that are not settled yet.
    pub fn unacknowledged(&self) -> impl Iterator<Item = &Outgoing> {
        self.pending().filter(|message| message.kind == Kind::Message)
    }

    /// The reports of the user's messages that are not settled yet, with the beginning of each. There is no connection
    /// since `lost`, if that is known.
    pub fn unsettled(&self, lost: Option<Instant>) -> impl Iterator<Item = String> {
        let (left, held): (Vec<_>, Vec<_>) =
            self.unacknowledged().partition(|message| message.may_have_left(lost));
        let reports = [(left, "not acknowledged and may not have arrived"), (held, "not sent")];
        reports.into_iter().filter(|(messages, _)| !messages.is_empty()).map(|(messages, fate)| {
            let texts = all_quoted(messages.iter().map(|message| message.text.as_str()));
            match messages.len() {
                1 => format!("1 message of yours was {fate}: {texts}"),
                count => format!("{count} messages of yours were {fate}: {texts}"),
            }
        })
    }

    /// Forgets settled messages, which then cannot be sent again.
    pub fn forget_settled(&mut self) {
        self.messages.retain(|_, message| message.settled.is_none());
    }

    /// Begins new conversations, for a new session key.
    pub fn restart_numbers(&mut self) {
        self.broadcasts = 0;
        self.recipients.values_mut().for_each(|recipient| recipient.sequences = [None; 2]);
    }

    fn recipient(&mut self, name: &Username) -> &mut Recipient {
        self.recipients.entry(name.clone()).or_default()
    }

    /// Sends a new message, or reports why it cannot be sent.
    pub fn send(&mut self, cx: &mut Cx, contacts: &mut Contacts, online: &OnlineUsers, message: Outgoing) {
        self.next_message += 1;
        self.send_as(cx, contacts, online, (self.next_message, message));
    }

    /// Sends a message to the recipients that have not got it.
    fn send_as(
        &mut self,
        cx: &mut Cx,
        contacts: &mut Contacts,
        online: &OnlineUsers,
        (number, mut message): (u64, Outgoing),
    ) {
        if message.text.len() > MAX_TEXT {
            let why = format!("the message is too long: the limit is {} KiB", MAX_TEXT / 1024);
            return self.unsent(cx, contacts, number, message, why);
        }
        let names: Vec<Username> = match &message.audience {
            Audience::Everyone => {
                let mut is_trusted = |name: &&Username| contacts.admits(name) && !contacts.has_changed(name);
                online.others(&cx.me).filter(|name| is_trusted(name)).cloned().collect()
            }
            direct => {
                let has_it = |name: &Username| {
                    message.copies.get(name).is_some_and(|copy| copy.outcome == Some(Ok(())))
                };
                direct.recipients().iter().filter(|name| !has_it(name)).cloned().collect()
            }
        };
        if names.is_empty() {
            let is_alone = online.others(&cx.me).next().is_none();
            let nobody = if is_alone { "nobody else" } else { "nobody with a trusted key" };
            let why = format!("{nobody} is online: your message was not sent");
            return self.unsent(cx, contacts, number, message, why);
        }
        if message.audience == Audience::Everyone {
            self.broadcasts += 1;
            let sealed = seal(cx, &mut message, None, self.broadcasts);
            message.sealed = Some(Arc::new(sealed));
        }
        message.waiting = names.len();
        for name in &names {
            message.copies.insert(name.clone(), Copy::default());
            self.recipient(name).backlog.insert(number);
        }
        let is_text = message.kind == Kind::Message;
        if is_text {
            let entry = own_entry(cx, contacts, number, &message, SendState::InFlight);
            cx.display(Display::Entry(entry));
        }
        let doubtful: Vec<Username> =
            names.iter().filter(|name| contacts.has_changed(name)).cloned().collect();
        self.messages.insert(number, message);
        self.send_backlogs(cx, contacts, names);
        doubtful.iter().filter(|_| is_text).for_each(|name| contacts.reconsider(cx, name));
    }

    /// Sends the backlogs of users whose keys have arrived, and requests the keys of the others. PROTOCOL#broadcast.
    pub fn send_backlogs(
        &mut self,
        cx: &mut Cx,
        contacts: &mut Contacts,
        names: impl IntoIterator<Item = Username>,
    ) {
        let mut batches: BTreeMap<u64, Vec<Username>> = BTreeMap::new();
        let (mut keyless, mut changed, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        for name in names {
            contacts.expire(&name, cx.now);
            let contact = contacts.get(&name);
            let recipient = self.recipients.entry(name.clone()).or_default();
            match &contact.key {
                _ if recipient.backlog.is_empty() => {}
                _ if contact.has_changed() => changed.push(name),
                None => keyless.push(name),
                // Wait for the answers to requests for the former key.
                Some(SealKey { key, .. })
                    if recipient.in_flight > 0 && recipient.key_in_flight != Some(key.fingerprint()) => {}
                Some(SealKey { key, is_mailbox, .. }) => {
                    let is_stale = recipient.stale == Some(key.fingerprint());
                    for number in std::mem::take(&mut recipient.backlog) {
                        let Some(message) = self.messages.get(&number) else { continue };
                        if *is_mailbox && !message.can_wait() {
                            failed.push((number, name.clone(), Missed::Offline));
                        } else if is_stale && message.copies.get(&name).is_some_and(|copy| copy.tries > 0) {
                            // The server calls the key stale, but shows no other one. PROTOCOL#stale.
                            failed.push((number, name.clone(), Missed::Failed));
                        } else {
                            batches.entry(number).or_default().push(name.clone());
                        }
                    }
                }
            }
        }
        changed.iter().for_each(|name| self.give_up(cx, contacts, name, Missed::KeyChanged));
        for (number, name, why) in &failed {
            self.settle(*number, name, Err(*why));
            self.finish(cx, contacts, *number);
        }
        for (number, names) in batches {
            let is_shared = self.messages.get(&number).is_some_and(|message| message.sealed.is_some());
            for part in names.chunks(if is_shared { MAX_TARGETS } else { 1 }) {
                self.transmit(cx, contacts, (number, part));
            }
        }
        contacts.ask_for(keyless);
    }

    /// Sends a message to users whose keys have arrived.
    fn transmit(&mut self, cx: &mut Cx, contacts: &Contacts, (number, names): (u64, &[Username])) {
        let Some(message) = self.messages.get_mut(&number) else { return };
        let key = |name| contacts.find(name).and_then(|contact: &Contact| contact.key.clone());
        let keys = names.iter().filter_map(|name| Some((name, key(name)?)));
        let keys: Vec<(&Username, SealKey)> = keys.collect();
        let sealed = match (&message.sealed, keys.first()) {
            (Some(sealed), _) => sealed.clone(),
            (None, Some((name, key))) => {
                let recipient = self.recipients.entry((*name).clone()).or_default();
                let sequence = recipient.next_sequence(key);
                let to = Some(((*name).clone(), key.key.fingerprint()));
                Arc::new(seal(cx, message, to, sequence))
            }
            (None, None) => return,
        };
        self.next_request += 1;
        let id = self.next_request;
        for (name, key) in &keys {
            let recipient = self.recipients.entry((*name).clone()).or_default();
            recipient.in_flight += 1;
            recipient.key_in_flight = Some(key.key.fingerprint());
            if let Some(copy) = message.copies.get_mut(*name) {
                (copy.request, copy.for_mailbox) = (id, key.is_mailbox);
            }
        }
        message.requested = message.requested.or(Some(cx.instant));
        let routing = Routing { id, targets: names.to_vec(), keys: wrap(&sealed, &keys) };
        self.flights.insert(id, (number, names.to_vec()));
        let send = EncryptedSend { routing, envelope: sealed.envelope.clone() };
        cx.send(ClientMessage::EncryptedSend(Box::new(send)));
    }
}

/// The entry that shows an own message in this state.
fn own_entry(cx: &Cx, contacts: &Contacts, number: u64, message: &Outgoing, state: SendState) -> Entry {
    let source = Source::User { from: cx.me.clone(), to: message.audience.clone() };
    // Trust in a former key does not apply to the current one.
    let trust = |to| contacts.trust(to).filter(|_| !contacts.has_changed(to));
    let trust = message.audience.recipients().iter().map(trust).min().flatten();
    let place = source.place(&cx.me);
    let entry = Entry::new(message.time, source, place, sanitise_lines(&message.text));
    Entry { trust, sending: Some((number, state)), is_update: message.shown, ..entry }
}

/// Seals a message for one recipient's key, or for everyone, and remembers the id.
fn seal(cx: &Cx, message: &mut Outgoing, to: Option<(Username, Fingerprint)>, sequence: u64) -> Sealed {
    let (recipient, recipient_key) =
        to.map_or((None, cx.account.server), |(name, key)| (Some(name), Some(key)));
    // A common time would show in the server's files which copies belong together. PROTOCOL#room-copies.
    let earlier = match message.audience.recipients() {
        [_, _, ..] => u64::from(u16::from_be_bytes(random())) % 1000,
        _ => 0,
    };
    let header = Header {
        kind: message.kind,
        scope: message.audience.scope(),
        recipient: recipient.clone(),
        recipient_key,
        from: cx.me.clone(),
        identity: cx.account.fingerprint(),
        session: cx.account.current().fingerprint(),
        sequence,
        time: message.time.saturating_sub(earlier),
        again: message.ids.get(&recipient).copied(),
    };
    let plaintext = match message.kind {
        Kind::Message => message.audience.plaintext(&cx.me, &message.text),
        _ => Zeroizing::new(message.text.as_bytes().to_vec()),
    };
    let sealed = Sealed::seal(header, &cx.account.identity, &plaintext);
    message.ids.insert(recipient, Fixed(sealed.id()));
    sealed
}

/// One wrapped key for each recipient, spread over the cores.
fn wrap(sealed: &Sealed, recipients: &[(&Username, SealKey)]) -> ByName<WrappedKey> {
    let part = |some: &[(&Username, SealKey)]| -> Vec<(Username, WrappedKey)> {
        let wrapped = |key: &SealKey| WrappedKey::new(&sealed.wrap_for(&key.key));
        some.iter().map(|(name, key)| ((*name).clone(), wrapped(key))).collect()
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if recipients.len() < SPREAD_FROM || cores == 1 {
        return part(recipients).into_iter().collect();
    }
    std::thread::scope(|scope| {
        let chunks = recipients.chunks(recipients.len().div_ceil(cores));
        let threads: Vec<_> = chunks.map(|chunk| scope.spawn(move || part(chunk))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("wrapping does not panic")).collect()
    })
}
