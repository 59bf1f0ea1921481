//! What this person sends: sealed, wrapped for each recipient, sent, and followed until the server has said
//! what became of it.
//!
//! Invariant: messages to one person leave in the order in which they were typed; every recipient
//! of every message ends as delivered or is told as not; nothing is sealed for a key that was
//! not certified. What meets a stale session key is sent again by itself. Specification:
//! README#sending.

use super::wire_form::wire_form;
use super::{Effect, MAX_NAMED, Session};
use crate::client::entry::{Entry, SendState, Source};
use crate::client::text::{sanitise, sanitise_lines};
use crate::crypto::envelope::{Header, Kind, MAX_TEXT, Recipient, Scope, Sealed};
use crate::crypto::public::SessionPublicKey;
use crate::name::Username;
use crate::protocol::{ClientMessage, EncryptedSend, MAX_TARGETS, Routing, Sent, WrappedKey};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use zeroize::Zeroizing;

/// A message that meets a stale key this often is given up: somebody plays with us. README#stale.
const MAX_TRIES: u32 = 3;
/// Messages that failed and can be sent again, the latest: more than a person goes back to.
const MAX_FAILED: usize = 64;
/// Fewer recipients than this are not worth a second thread.
const SPREAD_FROM: usize = 16;

/// Who a typed line is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// All who are on-line but oneself.
    Everyone,
    /// This person, outside a room.
    Private(Username),
    /// This person, in the room of the two.
    Room(Username),
}

/// Why somebody did not get a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Missed {
    Offline,
    NoAccount,
    NoKey,
    KeyChanged,
    /// So much waits for them already that the server did not take it.
    Busy,
    /// The server refused it, or named a stale key again and again.
    Failed,
}

/// One message on its way.
struct Outgoing {
    kind: Kind,
    audience: Audience,
    /// A word about a file may hold its key.
    text: Zeroizing<String>,
    /// When it was typed, milliseconds since 1970.
    time: u64,
    /// The number of the transfer that it is about.
    transfer: Option<u32>,
    /// A broadcast is sealed once; a private message for the session it goes to.
    sealed: Option<Arc<Sealed>>,
    waiting: BTreeSet<Username>,
    delivered: usize,
    missed: BTreeMap<Username, Missed>,
    tries: HashMap<Username, u32>,
    shown: bool,
}

/// All messages on their way.
#[derive(Default)]
pub struct Outbox {
    messages: BTreeMap<u64, Outgoing>,
    failed: BTreeMap<u64, (Audience, Zeroizing<String>)>,
    /// Requests without an answer: the message, and whom it was for.
    flights: BTreeMap<u64, (u64, Vec<Username>)>,
    next_message: u64,
    next_request: u64,
    /// The last number of the broadcast conversation.
    broadcasts: u64,
}

impl Outbox {
    /// Messages that are not settled yet.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether everything is settled.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether the server owes an answer.
    pub fn in_flight(&self) -> bool {
        !self.flights.is_empty()
    }

    /// What the person at the keyboard said and nobody has acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.messages.values().filter(|message| message.kind == Kind::Message).count()
    }

    /// What has failed cannot be sent again.
    pub fn forget_failed(&mut self) {
        self.failed.clear();
    }

    /// A new session: nothing is under way any more. What was.
    fn restart(&mut self) -> BTreeMap<u64, Outgoing> {
        self.flights.clear();
        self.broadcasts = 0;
        std::mem::take(&mut self.messages)
    }

    /// A new session key begins new conversations.
    pub fn restart_numbers(&mut self) {
        self.broadcasts = 0;
    }
}

impl Session {
    /// Sends something to an audience.
    pub(super) fn send(&mut self, kind: Kind, audience: Audience, text: String) {
        self.send_about(kind, audience, Zeroizing::new(text), None);
    }

    /// Sends something to an audience, perhaps about a transfer.
    pub(super) fn send_about(
        &mut self,
        kind: Kind,
        audience: Audience,
        text: Zeroizing<String>,
        transfer: Option<u32>,
    ) {
        self.outbox.next_message += 1;
        let number = self.outbox.next_message;
        let mut message = Outgoing {
            kind,
            audience,
            text,
            time: self.now,
            transfer,
            sealed: None,
            waiting: BTreeSet::new(),
            delivered: 0,
            missed: BTreeMap::new(),
            tries: HashMap::new(),
            shown: false,
        };
        if message.text.len() > MAX_TEXT {
            return self.unsent(
                number,
                message,
                format!("too long: a message has at most {} KiB", MAX_TEXT / 1024),
            );
        }
        message.waiting = match &message.audience {
            Audience::Everyone => {
                let others = self.others();
                others
                    .filter(|name| self.peers.admits(name) && !self.peers.has_changed(name))
                    .cloned()
                    .collect()
            }
            Audience::Private(name) | Audience::Room(name) => BTreeSet::from([name.clone()]),
        };
        if message.waiting.is_empty() {
            let nobody =
                if self.others().next().is_none() { "nobody else" } else { "nobody with a trusted key" };
            return self.unsent(number, message, format!("{nobody} is on-line: your message was not sent"));
        }
        if let Audience::Private(name) | Audience::Room(name) = &message.audience
            && self.peers.has_changed(name)
        {
            let name = name.clone();
            match transfer {
                Some(number) => {
                    self.word_settled(number, kind, Some(format!("the key of {name} has changed")));
                }
                None if kind == Kind::RoomLeft => {}
                None => {
                    self.unsent(number, message, "your message was not sent".into());
                    self.reconsider(&name);
                }
            }
            return;
        }
        if message.audience == Audience::Everyone {
            self.outbox.broadcasts += 1;
            let header = self.header(kind, Scope::Broadcast, self.outbox.broadcasts);
            message.sealed = Some(Arc::new(Sealed::seal(header, &self.identity, message.text.as_bytes())));
        }
        let names = message.waiting.clone();
        for name in &names {
            self.peers.get(name).backlog.insert(number);
        }
        if kind == Kind::Message {
            let entry = self.own_entry(number, &message, SendState::UnderWay);
            self.effects.push(Effect::Show(entry));
        }
        self.outbox.messages.insert(number, message);
        self.pump(names);
    }

    /// An own message, as it is shown.
    fn own_entry(&self, number: u64, message: &Outgoing, state: SendState) -> Entry {
        let from = self.me().clone();
        let (source, to) = match &message.audience {
            Audience::Everyone => (Source::Broadcast { from }, None),
            Audience::Private(to) => (Source::Private { from, to: to.clone() }, Some(to)),
            Audience::Room(to) => (Source::Room { from, to: to.clone() }, Some(to)),
        };
        let trust = to.and_then(|to| self.peers.trust(to));
        let place = source.place(self.me());
        let entry = Entry::new(message.time, source, place, sanitise_lines(&message.text));
        Entry { trust, sending: Some((number, state)), ..entry }
    }

    /// Nobody gets this message.
    fn unsent(&mut self, number: u64, message: Outgoing, why: String) {
        if message.kind != Kind::Message {
            return self.problem(why);
        }
        let entry = self.own_entry(number, &message, SendState::Failed(why));
        self.effects.push(Effect::Show(entry));
        self.outbox.failed.insert(number, (message.audience, message.text));
        if self.outbox.failed.len() > MAX_FAILED {
            self.outbox.failed.pop_first();
        }
    }

    /// The session that these were sent in is over: whoever may not have got one is told.
    pub(super) fn give_up_all(&mut self) {
        for (number, message) in self.outbox.restart() {
            let maybe = "the connection was lost before the server took it";
            if message.kind != Kind::Message {
                // A room or a file: both have ended with the session.
                continue;
            }
            self.gave_up = true;
            if message.delivered > 0 {
                self.problem(format!("{maybe}: not all may have got {}", quoted(&message.text)));
            } else {
                // The line filter prints the reason alone: it has to say which.
                let why = format!("{maybe}: {} may not have arrived", quoted(&message.text));
                self.unsent(number, message, why);
            }
        }
    }

    /// Sends what has failed as a new message.
    pub(super) fn send_again(&mut self, number: u64) {
        match self.outbox.failed.remove(&number) {
            Some((audience, text)) => self.send_about(Kind::Message, audience, text, None),
            None => self.problem("that message is no longer at hand: type it again".into()),
        }
    }

    fn header(&self, kind: Kind, scope: Scope, sequence: u64) -> Header {
        Header {
            kind,
            scope,
            sender: self.me().clone(),
            identity: self.identity.public().fingerprint(),
            session: self.keys.current().fingerprint(),
            sequence,
            time: self.now,
        }
    }

    /// Sends the backlogs of those whose keys are here, and asks for the keys of the others. README#broadcast.
    pub(super) fn pump(&mut self, names: impl IntoIterator<Item = Username>) {
        let mut batches: BTreeMap<u64, Vec<Username>> = BTreeMap::new();
        let (mut keyless, mut changed) = (Vec::new(), Vec::new());
        for name in names {
            let peer = self.peers.get(&name);
            if peer.backlog.is_empty() {
                continue;
            }
            if peer.is_ready() {
                for number in std::mem::take(&mut peer.backlog) {
                    batches.entry(number).or_default().push(name.clone());
                }
            } else if peer.changed.is_some() {
                changed.push(name);
            } else if peer.session.is_none() {
                keyless.push(name);
            }
        }
        changed.iter().for_each(|name| self.give_up(name, Missed::KeyChanged));
        for (number, names) in batches {
            for part in names.chunks(MAX_TARGETS) {
                self.transmit(number, part);
            }
        }
        self.ask_for_keys(keyless);
    }

    /// Sends message `number` to people whose session keys are here.
    fn transmit(&mut self, number: u64, names: &[Username]) {
        let Some(message) = self.outbox.messages.get(&number) else {
            return;
        };
        let (kind, audience) = (message.kind, message.audience.clone());
        let sealed = match (&message.sealed, audience) {
            (Some(sealed), _) => sealed.clone(),
            (None, Audience::Private(name) | Audience::Room(name)) => {
                let private = matches!(message.audience, Audience::Private(_));
                let text = message.text.clone();
                let peer = self.peers.get(&name);
                let Some(session) = peer.session.as_ref().map(SessionPublicKey::fingerprint) else {
                    return;
                };
                let sequence = peer.next_sequence(session);
                let recipient = Recipient { name, session };
                let scope = if private { Scope::Private(recipient) } else { Scope::Room(recipient) };
                Arc::new(Sealed::seal(self.header(kind, scope, sequence), &self.identity, text.as_bytes()))
            }
            (None, Audience::Everyone) => return,
        };
        let mut recipients: Vec<(&Username, SessionPublicKey)> = Vec::with_capacity(names.len());
        for name in names {
            let peer = self.peers.get(name);
            if let Some(session) = peer.session.clone() {
                peer.in_flight += 1;
                peer.flying = Some(session.fingerprint());
                recipients.push((name, session));
            }
        }
        self.outbox.next_request += 1;
        let id = self.outbox.next_request;
        let routing = Routing {
            id,
            targets: names.to_vec(),
            keys: wrap(&sealed, &recipients),
            sessions: recipients
                .iter()
                .map(|(name, key)| ((*name).clone(), key.fingerprint().short()))
                .collect(),
        };
        self.outbox.flights.insert(id, (number, names.to_vec()));
        let envelope = wire_form(&sealed.body);
        self.effects
            .push(Effect::Send(ClientMessage::EncryptedSend(Box::new(EncryptedSend { routing, envelope }))));
    }

    /// The server has said what became of a request. README#outcome, README#stale.
    pub(super) fn sent(&mut self, answer: &Sent) {
        let Some((number, names)) = self.outbox.flights.remove(&answer.id) else {
            return self.problem("the server answered something that was not asked".into());
        };
        let [delivered, stale, busy] = [&answer.delivered, &answer.stale, &answer.busy]
            .map(|names| names.iter().collect::<BTreeSet<_>>());
        for name in &names {
            let peer = self.peers.get(name);
            peer.in_flight = peer.in_flight.saturating_sub(1);
            if delivered.contains(name) {
                self.settle(number, name, None);
            } else if stale.contains(name) && self.may_retry(number, name) {
                let peer = self.peers.get(name);
                peer.session = None;
                peer.flying = None;
                peer.backlog.insert(number);
            } else if busy.contains(name) {
                self.settle(number, name, Some(Missed::Busy));
            } else {
                self.peers.get(name).session = None;
                let missed = if stale.contains(name) { Missed::Failed } else { Missed::Offline };
                self.settle(number, name, Some(missed));
            }
        }
        self.pump(names);
        self.finish(number);
    }

    fn may_retry(&mut self, number: u64, name: &Username) -> bool {
        let Some(message) = self.outbox.messages.get_mut(&number) else {
            return false;
        };
        let tries = message.tries.entry(name.clone()).or_default();
        *tries += 1;
        *tries <= MAX_TRIES
    }

    /// The server has refused a request: `why` is its own, sanitised sentence.
    pub(super) fn refused(&mut self, id: u64, why: &str) {
        let Some((number, names)) = self.outbox.flights.remove(&id) else {
            return;
        };
        self.problem(format!("the server refused your message: {why}"));
        for name in &names {
            let peer = self.peers.get(name);
            peer.in_flight = peer.in_flight.saturating_sub(1);
            self.settle(number, name, Some(Missed::Failed));
        }
        self.pump(names);
        self.finish(number);
    }

    /// Nothing of the backlog of `name` can be sent.
    pub(super) fn give_up(&mut self, name: &Username, why: Missed) {
        let numbers = std::mem::take(&mut self.peers.get(name).backlog);
        for number in numbers {
            self.settle(number, name, Some(why));
            self.finish(number);
        }
    }

    fn settle(&mut self, number: u64, name: &Username, missed: Option<Missed>) {
        let Some(message) = self.outbox.messages.get_mut(&number) else {
            return;
        };
        message.waiting.remove(name);
        match missed {
            None => message.delivered += 1,
            Some(why) => {
                message.missed.insert(name.clone(), why);
            }
        }
    }

    /// Shows that a message is taken once somebody has got it, and tells who has not when all is known.
    fn finish(&mut self, number: u64) {
        let Some(message) = self.outbox.messages.get_mut(&number) else {
            return;
        };
        let first = message.delivered > 0 && !std::mem::replace(&mut message.shown, true);
        if let Some(message) = self.outbox.messages.get(&number).filter(|_| first) {
            match (message.kind, &message.audience) {
                (Kind::Message, _) => {
                    let entry = self.own_entry(number, message, SendState::Taken);
                    self.said(entry);
                }
                (Kind::RoomOpened, Audience::Room(name)) => self.entered(&name.clone()),
                _ => {}
            }
        }
        if self.outbox.messages.get(&number).is_some_and(|message| message.waiting.is_empty())
            && let Some(message) = self.outbox.messages.remove(&number)
        {
            self.tell_missed(number, message);
        }
    }

    fn tell_missed(&mut self, number: u64, message: Outgoing) {
        if message.kind == Kind::RoomLeft {
            return;
        }
        if let Some(number) = message.transfer {
            let missed = message.missed.iter().next().map(|(name, why)| because(name, *why));
            return self.word_settled(number, message.kind, missed);
        }
        let to_all = message.audience == Audience::Everyone;
        if to_all && message.delivered == 0 && message.missed.values().all(|why| *why == Missed::Offline) {
            let why = "nobody else is on-line any more: your message was not delivered";
            return self.unsent(number, message, why.into());
        }
        if let (false, Some((name, why))) = (to_all, message.missed.first_key_value()) {
            let because = because(name, *why);
            let text = match message.kind {
                Kind::RoomOpened => {
                    // Who was not told can be told another time.
                    self.rooms.remove(name);
                    format!("{because}: you are alone in the room; /leave returns to everyone")
                }
                _ => format!("{because}: your message was not delivered"),
            };
            return self.unsent(number, message, text);
        }
        let text = quoted(&message.text);
        for (name, why) in message.missed.iter().take(MAX_NAMED) {
            self.problem(format!("{}: {name} did not get {text}", because(name, *why)));
        }
        if message.missed.len() > MAX_NAMED {
            let rest = message.missed.len() - MAX_NAMED;
            self.problem(format!("nor did {rest} others"));
        }
        if message.delivered == 0 {
            self.unsent(number, message, "nobody got your message".into());
        }
    }
}

fn because(name: &Username, why: Missed) -> String {
    match why {
        Missed::Offline => format!("{name} is not on-line"),
        Missed::NoAccount => format!("there is no account named {name}"),
        Missed::NoKey => format!("no usable key of {name} is to be had"),
        Missed::KeyChanged => format!("the key of {name} has changed"),
        Missed::Busy => format!("the connection of {name} is too slow at the moment"),
        Missed::Failed => format!("the server did not take it for {name}"),
    }
}

/// The beginning of a text, to tell which one is meant.
fn quoted(text: &str) -> String {
    let text = sanitise(text);
    match text.char_indices().nth(20) {
        Some((end, _)) => format!("\"{}…\"", &text[..end]),
        None => format!("\"{text}\""),
    }
}

/// One wrapped key for each recipient, spread over the cores.
fn wrap(sealed: &Sealed, recipients: &[(&Username, SessionPublicKey)]) -> BTreeMap<Username, WrappedKey> {
    let part = |some: &[(&Username, SessionPublicKey)]| -> Vec<(Username, WrappedKey)> {
        some.iter().map(|(name, key)| ((*name).clone(), WrappedKey::new(&sealed.wrap_for(key)))).collect()
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

#[cfg(test)]
mod tests {
    use super::super::Event;
    use super::*;
    use crate::client::entry::Entry;
    use crate::client::trust::{Ignored, KnownUsers};
    use crate::crypto::keys::{IdentityKey, SessionKey};
    use crate::crypto::secret::random;
    use crate::encoding::Bytes;
    use crate::protocol::{EncryptedMessage, Keys, PersonKeys, Presence, ServerMessage, SessionKeyFields};
    use std::collections::VecDeque;
    use std::time::{Duration, Instant};

    const NOW: u64 = 1_800_000_000_000;

    /// Two sessions and the server between them, without threads or sockets.
    struct Net {
        sessions: [Session; 2],
        identities: [Vec<u8>; 2],
        keys: [SessionKeyFields; 2],
        /// What each has said that the server has not read yet.
        said: [VecDeque<ClientMessage>; 2],
        shown: [Vec<Entry>; 2],
        wants_key: [bool; 2],
        now: Instant,
        file: std::path::PathBuf,
    }

    const NAMES: [&str; 2] = ["alice", "bob"];

    fn name(n: usize) -> Username {
        NAMES[n].parse().expect("name")
    }

    impl Net {
        fn new() -> Net {
            let id: String = random::<8>().iter().map(|b| format!("{b:02x}")).collect();
            let file = std::env::temp_dir().join(format!("outgoing-{id}"));
            let now = Instant::now();
            let person = |n: usize| {
                let (identity, key) = (IdentityKey::generate(), SessionKey::generate());
                let fields = SessionKeyFields::new(&identity.certify(&name(n), &key, NOW));
                let known = KnownUsers::open(&file, format!("server-{n}")).expect("file");
                let ignored = file.with_extension("ignored");
                let ignored = Ignored::open(&ignored, format!("server-{n}")).expect("file");
                let spki = identity.public().spki();
                (Session::new(name(n), identity, key, (known, ignored), now), spki, fields)
            };
            let ((a, identity_a, key_a), (b, identity_b, key_b)) = (person(0), person(1));
            let mut net = Net {
                sessions: [a, b],
                identities: [identity_a, identity_b],
                keys: [key_a, key_b],
                said: Default::default(),
                shown: Default::default(),
                wants_key: [false; 2],
                now,
                file,
            };
            for n in 0..2 {
                let joined = vec![name(0), name(1)];
                let presence = Presence { more: false, full: true, joined, left: Vec::new() };
                net.event(n, Event::Server(ServerMessage::Presence(presence)));
            }
            net
        }

        fn event(&mut self, n: usize, event: Event) {
            for effect in self.sessions[n].handle(event, NOW, self.now) {
                match effect {
                    Effect::Send(message) => self.said[n].push_back(message),
                    Effect::Show(entry) => self.shown[n].push(entry),
                    Effect::MakeSessionKey => self.wants_key[n] = true,
                    Effect::Alert(..)
                    | Effect::Begin
                    | Effect::Enter(_)
                    | Effect::Leave(_)
                    | Effect::Clear
                    | Effect::Forget
                    | Effect::ChangePassword(_)
                    | Effect::Transfer(..)
                    | Effect::Progress(_)
                    | Effect::Quit(_) => {}
                }
            }
        }

        fn type_in(&mut self, n: usize, line: &str) {
            self.event(n, Event::Line(line.into()));
        }

        /// The server reads one message of `n`; false if there is none.
        fn step(&mut self, n: usize) -> bool {
            let Some(message) = self.said[n].pop_front() else { return false };
            match message {
                ClientMessage::KeysRequest(request) => {
                    let keys = request.names.iter().map(|who| {
                        let n = usize::from(*who == name(1));
                        let fields = &self.keys[n];
                        PersonKeys {
                            name: who.clone(),
                            identity: Bytes(self.identities[n].clone()),
                            session_key: Some(fields.session_key.clone()),
                            created: Some(fields.created),
                            certificate: Some(fields.certificate),
                        }
                    });
                    let keys = Keys { keys: keys.collect(), unknown: Vec::new() };
                    self.event(n, Event::Server(ServerMessage::Keys(keys)));
                }
                ClientMessage::EncryptedSend(send) => {
                    let other = 1 - n;
                    let current = SessionPublicKey::parse(&self.keys[other].session_key.0).expect("key");
                    let fits =
                        send.routing.sessions[&send.routing.targets[0]] == current.fingerprint().short();
                    let targets = send.routing.targets.clone();
                    let (delivered, stale) = if fits { (targets, Vec::new()) } else { (Vec::new(), targets) };
                    if fits {
                        let key = send.routing.keys[&send.routing.targets[0]].clone();
                        let message = EncryptedMessage { envelope: send.envelope.clone(), key };
                        self.event(other, Event::Server(ServerMessage::EncryptedMessage(Box::new(message))));
                    }
                    let sent =
                        Sent { id: send.routing.id, delivered, offline: Vec::new(), stale, busy: Vec::new() };
                    self.event(n, Event::Server(ServerMessage::Sent(sent)));
                }
                ClientMessage::Renew(fields) => {
                    self.keys[n] = *fields;
                    let session = crate::protocol::Session {
                        token: crate::crypto::secret::Key::random(),
                        expires: NOW,
                    };
                    self.event(n, Event::Server(ServerMessage::Session(session)));
                }
                _ => {}
            }
            true
        }

        fn settle(&mut self) {
            while self.step(0) || self.step(1) {}
        }

        fn renew(&mut self, n: usize) {
            self.event(n, Event::NewKey(Box::new(SessionKey::generate())));
            while self.step(n) {}
        }

        /// What is settled.
        fn lines(&self, n: usize) -> Vec<String> {
            let told = |entry: &&Entry| {
                !matches!(entry.source, Source::Notice | Source::SafetyNumber)
                    && !matches!(entry.sending, Some((_, SendState::UnderWay)))
            };
            self.shown[n].iter().filter(told).map(Entry::line).collect()
        }
    }

    impl Drop for Net {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.file);
            let _ = std::fs::remove_file(self.file.with_extension("ignored"));
        }
    }

    /// README#stale, README#sequence.
    #[test]
    fn messages_that_meet_a_renewed_key_arrive_once_and_in_order() {
        let mut net = Net::new();
        net.type_in(0, "/msg bob one");
        net.settle();
        net.renew(1);
        for line in ["/msg bob two", "three", "/msg bob four", "five"] {
            net.type_in(0, line);
        }
        // The first answers arrive, and something more is typed before the others do.
        net.step(0);
        net.type_in(0, "/msg bob six");
        net.step(0);
        net.type_in(0, "seven");
        net.settle();
        let received = net.lines(1);
        let texts: Vec<&str> = received.iter().filter_map(|line| line.rsplit("> ").next()).collect();
        assert_eq!(texts, ["one", "two", "three", "four", "five", "six", "seven"], "{received:#?}");
        assert!(!received.iter().any(|line| line.starts_with('!')), "{received:#?}");
        assert!(net.sessions[0].is_settled());
    }

    #[test]
    fn a_key_that_stays_stale_is_given_up_and_told() {
        let mut net = Net::new();
        net.type_in(0, "/msg bob one");
        // The server shows one key and asks for another, again and again.
        for _ in 0..20 {
            if let Some(ClientMessage::EncryptedSend(send)) = net.said[0].front() {
                let (id, stale) = (send.routing.id, send.routing.targets.clone());
                net.said[0].pop_front();
                let sent = Sent { id, delivered: Vec::new(), offline: Vec::new(), stale, busy: Vec::new() };
                net.event(0, Event::Server(ServerMessage::Sent(sent)));
            } else if !net.step(0) {
                break;
            }
        }
        assert!(net.sessions[0].is_settled());
        assert!(net.lines(0)[0].starts_with("! the server did not take it for bob"), "{:?}", net.lines(0));
    }

    /// README#session-key.
    #[test]
    fn session_keys_are_renewed_within_a_day_and_the_former_one_opens_for_a_minute() {
        let mut net = Net::new();
        net.event(1, Event::Tick);
        assert!(!net.wants_key[1]);
        net.now += Duration::from_secs(23 * 3600);
        net.event(1, Event::Tick);
        assert!(net.wants_key[1], "a new key is due after 23 hours");
        net.type_in(0, "/msg bob one");
        net.step(0);
        net.type_in(1, "/msg alice zero");
        // Sealed for the former key, delivered after the renewal.
        let former = net.sessions[1].keys.current().fingerprint();
        let under_way = net.said[0].pop_front();
        net.renew(1);
        assert!(net.sessions[1].keys.holds(former) && net.sessions[1].keys.current().fingerprint() != former);
        let Some(ClientMessage::EncryptedSend(send)) = under_way else { panic!("a message was under way") };
        let key = send.routing.keys[&send.routing.targets[0]].clone();
        let message = EncryptedMessage { envelope: send.envelope.clone(), key };
        net.event(1, Event::Server(ServerMessage::EncryptedMessage(Box::new(message))));
        net.settle();
        assert!(net.lines(1).iter().any(|line| line == "<alice -> bob> one"), "{:?}", net.lines(1));
        net.now += Duration::from_secs(61);
        net.event(1, Event::Tick);
        assert!(!net.sessions[1].keys.holds(former), "the former key is gone");
    }

    impl Net {
        /// Bob goes and comes again, as the server tells alice.
        fn bob_returns(&mut self) {
            self.bob_leaves();
            self.bob_joins();
        }

        fn bob_leaves(&mut self) {
            let presence = Presence { more: false, full: false, joined: vec![], left: vec![name(1)] };
            self.event(0, Event::Server(ServerMessage::Presence(presence)));
        }

        fn bob_joins(&mut self) {
            let presence = Presence { more: false, full: false, joined: vec![name(1)], left: vec![] };
            self.event(0, Event::Server(ServerMessage::Presence(presence)));
        }

        /// Alice has met the true bob, and then, in vain, written to another one.
        fn with_swapped_bob() -> Net {
            let mut net = Net::new();
            net.type_in(0, "/msg bob one");
            net.settle();
            net.bob_returns();
            net.swap_bob();
            net.type_in(0, "/msg bob two");
            net.settle();
            net
        }

        /// The server shows keys of its own making for bob.
        fn swap_bob(&mut self) {
            let (identity, key) = (IdentityKey::generate(), SessionKey::generate());
            self.keys[1] = SessionKeyFields::new(&identity.certify(&name(1), &key, NOW));
            self.identities[1] = identity.public().spki();
        }
    }

    #[test]
    fn a_key_swapped_between_the_comparison_and_the_decision_is_not_accepted() {
        let mut net = Net::with_swapped_bob();
        net.type_in(0, "/verify bob");
        let warnings = |net: &Net| net.lines(0).iter().filter(|line| line.contains("HAS CHANGED")).count();
        let before = warnings(&net);
        assert!(before >= 1, "{:?}", net.lines(0));
        // The number was compared; now the server shows yet another key.
        net.swap_bob();
        net.type_in(0, "/verify bob yes");
        net.settle();
        assert!(warnings(&net) > before + 1, "the second change is told, too: {:?}", net.lines(0));
        net.type_in(0, "/trust bob");
        assert!(net.lines(0).last().is_some_and(|line| line.contains("compare again")), "{:?}", net.lines(0));
        net.type_in(0, "/msg bob three");
        net.settle();
        assert!(!net.lines(0).iter().any(|line| line.contains("> three")), "{:?}", net.lines(0));
        // The number of the present key was shown with the refusal: a decision now is about that one.
        net.type_in(0, "/trust bob");
        assert!(!net.sessions[0].peers.has_changed(&name(1)));
    }

    #[test]
    fn a_message_is_shown_at_once_then_as_taken_or_as_failed_and_can_be_sent_again_once() {
        let mut net = Net::new();
        let states = |net: &mut Net| -> Vec<(u64, SendState)> {
            net.shown[0].drain(..).filter_map(|entry| entry.sending).collect()
        };
        net.type_in(0, "/msg bob one");
        assert_eq!(states(&mut net), [(1, SendState::UnderWay)]);
        net.settle();
        assert_eq!(states(&mut net), [(1, SendState::Taken)]);
        // Bob is gone by the time the server reads the next one.
        net.type_in(0, "/msg bob two");
        let Some(ClientMessage::EncryptedSend(send)) = net.said[0].pop_front() else { panic!("it was sent") };
        let offline = send.routing.targets.clone();
        let sent = Sent { id: send.routing.id, delivered: vec![], offline, stale: vec![], busy: vec![] };
        net.event(0, Event::Server(ServerMessage::Sent(sent)));
        let why = SendState::Failed("bob is not on-line: your message was not delivered".into());
        assert_eq!(states(&mut net), [(2, SendState::UnderWay), (2, why)]);
        net.event(0, Event::Again(2));
        net.settle();
        assert_eq!(states(&mut net), [(3, SendState::UnderWay), (3, SendState::Taken)]);
        // The number of what the server withheld is missing, and told.
        let gap = "! 1 message from alice is missing";
        assert_eq!(net.lines(1), ["<alice -> bob> one", gap, "<alice -> bob> two"]);
        net.event(0, Event::Again(2));
        assert!(net.lines(0)[0].contains("no longer at hand"), "{:?}", net.lines(0));
    }

    #[test]
    fn what_cannot_be_sent_at_all_is_kept_for_another_try() {
        let mut net = Net::new();
        net.bob_leaves();
        net.type_in(0, "is anybody there?");
        assert_eq!(net.lines(0), ["! nobody else is on-line: your message was not sent"]);
        for n in 0..MAX_FAILED {
            net.type_in(0, &format!("{n}"));
        }
        assert_eq!(net.sessions[0].outbox.failed.len(), MAX_FAILED, "a bounded number of them");
        net.bob_joins();
        let last = net.sessions[0].outbox.next_message;
        net.event(0, Event::Again(last));
        net.settle();
        assert_eq!(net.lines(1), ["<alice> 63"]);
    }

    #[test]
    fn what_is_typed_goes_where_one_is_and_a_switch_tells_nobody() {
        let mut net = Net::new();
        for event in [
            Event::Switch(Some(name(1))),
            Event::Line("private".into()),
            Event::Line("/room bob".into()),
            Event::Line("room".into()),
            Event::Switch(None),
            Event::Line("public".into()),
            Event::Switch(Some(name(1))),
            Event::Line("/room bob".into()),
            Event::Line("room again".into()),
            Event::Line("/leave".into()),
            Event::Line("/leave".into()),
            Event::Line("public again".into()),
        ] {
            net.event(0, event);
            net.settle();
        }
        let said = |entry: &Entry| match &entry.source {
            Source::Broadcast { .. } => format!("everyone: {}", entry.text),
            Source::Private { .. } => format!("private: {}", entry.text),
            Source::Room { .. } => format!("room: {}", entry.text),
            _ => entry.text.clone(),
        };
        assert_eq!(
            net.shown[1].iter().skip(1).map(said).collect::<Vec<_>>(),
            [
                "private: private",
                "alice has opened a private room with you: /room alice joins it",
                "room: room",
                "everyone: public",
                "room: room again",
                "alice has left the room",
                "everyone: public again",
            ]
        );
    }

    #[test]
    fn a_room_that_is_refused_does_not_make_what_follows_public() {
        let mut net = Net::with_swapped_bob();
        assert!(net.sessions[0].peers.has_changed(&name(1)));
        net.shown = Default::default();
        net.said = Default::default();
        for line in ["/room bob", "a secret"] {
            net.type_in(0, line);
        }
        let sent = |message: &ClientMessage| matches!(message, ClientMessage::EncryptedSend(_));
        assert!(!net.said[0].iter().any(sent));
        assert!(net.lines(0).contains(&"! your message was not sent".to_string()), "{:?}", net.lines(0));
        // Nor is a room open that nobody was told of.
        assert!(!net.sessions[0].has_room(&name(1)) && net.sessions[0].partner() == Some(&name(1)));
    }

    #[test]
    fn a_room_whose_partner_was_not_told_can_be_opened_again() {
        let mut net = Net::new();
        net.bob_leaves();
        net.type_in(0, "/room bob");
        net.step(0);
        let Some(ClientMessage::EncryptedSend(send)) = net.said[0].pop_front() else {
            panic!("it was tried")
        };
        let offline = send.routing.targets.clone();
        let sent = Sent { id: send.routing.id, delivered: vec![], offline, stale: vec![], busy: vec![] };
        net.event(0, Event::Server(ServerMessage::Sent(sent)));
        net.bob_joins();
        net.type_in(0, "/room bob");
        net.settle();
        assert!(net.shown[1].iter().any(|entry| entry.text.contains("has opened a private room")));
    }

    #[test]
    fn nothing_overtakes_a_message_whose_fate_is_open() {
        let mut net = Net::new();
        net.type_in(0, "/msg bob zero");
        net.settle();
        net.type_in(0, "/msg bob one");
        // The server holds it back; bob has another session key, and alice hears of bob's return.
        let held = net.said[0].pop_front().expect("one is on its way");
        net.renew(1);
        net.bob_returns();
        net.type_in(0, "/msg bob two");
        net.settle();
        net.said[0].push_front(held);
        net.settle();
        let received = net.lines(1);
        assert_eq!(received, ["zero", "one", "two"].map(|text| format!("<alice -> bob> {text}")));
    }

    #[test]
    fn time_passes_in_a_busy_room_too() {
        let mut net = Net::new();
        net.now += Duration::from_secs(23 * 3600);
        net.event(1, Event::Server(ServerMessage::Pong));
        assert!(net.wants_key[1], "a new key is due, whatever happens meanwhile");
        net.wants_key[1] = false;
        net.now += Duration::from_secs(599);
        net.event(1, Event::Server(ServerMessage::Pong));
        assert!(!net.wants_key[1]);
        net.now += Duration::from_secs(2);
        net.event(1, Event::Server(ServerMessage::Pong));
        assert!(net.wants_key[1], "an attempt that was never confirmed is made again");
    }

    #[test]
    fn a_list_that_comes_again_slips_nobody_in() {
        let mut net = Net::new();
        let joined = vec![name(0), name(1), "phantom".parse().expect("name")];
        let presence = Presence { more: false, full: true, joined, left: Vec::new() };
        net.event(0, Event::Server(ServerMessage::Presence(presence)));
        assert!(net.lines(0)[0].contains("out of place"), "{:?}", net.lines(0));
        assert_eq!(net.sessions[0].online(), 2);
    }
}
