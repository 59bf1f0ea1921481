//! What this person sends: sealed, wrapped for each recipient, sent. What became of it is taken in by `outcome`.
//!
//! Invariant: messages to one person leave in the order in which they were typed; nothing is sealed for a key that was
//! not certified. Specification: PROTOCOL#sending.

mod outcome;

use super::{Effect, Session};
use crate::client::audience::Audience;
use crate::client::entry::{Entry, SendState, Source};
use crate::client::text::sanitise_lines;
use crate::crypto::envelope::{Header, Kind, MAX_TEXT, Scope, Sealed};
use crate::crypto::public::{Fingerprint, SessionPublicKey};
use crate::encoding::Fixed;
use crate::name::Username;
use crate::protocol::{ByName, ClientMessage, EncryptedSend, MAX_TARGETS, Routing, WrappedKey};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;
use zeroize::Zeroizing;

pub(super) use outcome::Missed;

/// Fewer recipients than this are not worth a second thread.
const SPREAD_FROM: usize = 16;

/// One message on its way.
struct Outgoing {
    kind: Kind,
    audience: Audience,
    /// A word about a file may hold its key.
    text: Zeroizing<String>,
    /// When it was typed, milliseconds since 1970.
    time: u64,
    /// The message's id, once it was sealed: it may be sealed again. PROTOCOL#message-id.
    id: Option<Fixed<32>>,
    /// The number of the transfer that it is about.
    transfer: Option<u32>,
    /// A broadcast is sealed once; a private message for each session that it goes to.
    sealed: Option<Arc<Sealed>>,
    waiting: BTreeSet<Username>,
    delivered: usize,
    missed: BTreeMap<Username, Missed>,
    tries: HashMap<Username, u32>,
    shown: bool,
    /// The latest request that it went out with.
    request: u64,
}

/// A message that can be sent again.
pub(super) struct Failed {
    audience: Audience,
    text: Zeroizing<String>,
    time: u64,
    id: Option<Fixed<32>>,
}

/// A private or room message that the server has answered as delivered, then.
struct Delivered {
    number: u64,
    message: Outgoing,
    since: Instant,
}

/// All messages on their way.
#[derive(Default)]
pub struct Outbox {
    messages: BTreeMap<u64, Outgoing>,
    /// The latest that failed, which can be sent again.
    pub(super) failed: BTreeMap<u64, Failed>,
    /// Requests without an answer: the message, and whom it was for.
    flights: BTreeMap<u64, (u64, Vec<Username>)>,
    /// The latest that were delivered: the server may still report that they are lost.
    delivered: VecDeque<Delivered>,
    /// Requests in flight that were reported as lost.
    lost: BTreeSet<u64>,
    pub(super) next_message: u64,
    next_request: u64,
    /// The last number of the broadcast conversation.
    broadcasts: u64,
}

impl Outgoing {
    /// Written at `time`; with the id of one that is sent again.
    fn new(
        kind: Kind,
        audience: Audience,
        text: Zeroizing<String>,
        (time, id): (u64, Option<Fixed<32>>),
        transfer: Option<u32>,
    ) -> Outgoing {
        Outgoing {
            kind,
            audience,
            text,
            time,
            id,
            transfer,
            sealed: None,
            waiting: BTreeSet::new(),
            delivered: 0,
            missed: BTreeMap::new(),
            tries: HashMap::new(),
            shown: false,
            request: 0,
        }
    }
}

impl Outbox {
    /// Whether the server has called the key stale that `number` was sealed with for `name`.
    fn was_stale(&self, number: u64, name: &Username) -> bool {
        self.messages.get(&number).is_some_and(|message| message.tries.contains_key(name))
    }

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
    pub fn unacknowledged(&self) -> impl Iterator<Item = &str> + Clone {
        let messages = self.messages.values().filter(|message| message.kind == Kind::Message);
        messages.map(|message| message.text.as_str())
    }

    /// What has failed cannot be sent again.
    pub fn forget_failed(&mut self) {
        self.failed.clear();
        self.delivered.clear();
    }

    /// A new session: nothing is under way any more. What was.
    fn restart(&mut self) -> BTreeMap<u64, Outgoing> {
        self.flights.clear();
        self.delivered.clear();
        self.lost.clear();
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
        let message = Outgoing::new(kind, audience, text, (self.now, None), transfer);
        self.dispatch(message);
    }

    fn dispatch(&mut self, mut message: Outgoing) {
        self.outbox.next_message += 1;
        let number = self.outbox.next_message;
        let (kind, transfer) = (message.kind, message.transfer);
        if message.text.len() > MAX_TEXT {
            return self.unsent(
                number,
                message,
                format!("the message is too long: the limit is {} KiB", MAX_TEXT / 1024),
            );
        }
        message.waiting = match message.audience.recipient() {
            None => {
                let others = self.others();
                others
                    .filter(|name| self.peers.admits(name) && !self.peers.has_changed(name))
                    .cloned()
                    .collect()
            }
            Some(name) => BTreeSet::from([name.clone()]),
        };
        if message.waiting.is_empty() {
            let nobody =
                if self.others().next().is_none() { "nobody else" } else { "nobody with a trusted key" };
            return self.unsent(number, message, format!("{nobody} is online: your message was not sent"));
        }
        if let Some(name) = message.audience.recipient()
            && self.peers.has_changed(name)
        {
            let name = name.clone();
            let doubt = self.doubt(&name);
            match transfer {
                Some(number) => self.word_settled(number, kind, Some(doubt)),
                None if kind == Kind::RoomLeft => {}
                None => {
                    self.unsent(number, message, format!("{doubt}: your message was not sent"));
                    self.reconsider(&name);
                }
            }
            return;
        }
        if message.audience == Audience::Everyone {
            self.outbox.broadcasts += 1;
            let written = (message.time, message.id);
            let header = self.header(kind, Scope::Broadcast, None, self.outbox.broadcasts, written);
            let sealed = Sealed::seal(header, &self.identity, message.text.as_bytes());
            message.id = Some(Fixed(sealed.id()));
            message.sealed = Some(Arc::new(sealed));
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
        let (source, to) =
            (Source::User { from, to: message.audience.clone() }, message.audience.recipient());
        // What was known of a former key says nothing of the present one.
        let trust = to.filter(|to| !self.peers.has_changed(to)).and_then(|to| self.peers.trust(to));
        let place = source.place(self.me());
        let entry = Entry::new(message.time, source, place, sanitise_lines(&message.text));
        Entry { trust, sending: Some((number, state)), ..entry }
    }

    fn header(
        &self,
        kind: Kind,
        scope: Scope,
        to: Option<(Username, Fingerprint)>,
        sequence: u64,
        (time, again): (u64, Option<Fixed<32>>),
    ) -> Header {
        let (recipient, recipient_key) =
            to.map_or((None, self.server), |(name, key)| (Some(name), Some(key)));
        Header {
            kind,
            scope,
            recipient,
            recipient_key,
            from: self.me().clone(),
            identity: self.identity.public().fingerprint(),
            session: self.keys.current().fingerprint(),
            sequence,
            time,
            again,
        }
    }

    /// Sends the backlogs of those whose keys are here, and asks for the keys of the others. PROTOCOL#broadcast.
    pub(super) fn pump(&mut self, names: impl IntoIterator<Item = Username>) {
        let mut batches: BTreeMap<u64, Vec<Username>> = BTreeMap::new();
        let (mut keyless, mut changed, mut same) = (Vec::new(), Vec::new(), Vec::new());
        for name in names {
            self.peers.expire(&name, self.now);
            let peer = self.peers.get(&name);
            if peer.backlog.is_empty() {
                continue;
            }
            if peer.is_ready() {
                // PROTOCOL#stale.
                let is_stale = peer.session.as_ref().map(SessionPublicKey::fingerprint) == peer.stale;
                for number in std::mem::take(&mut peer.backlog) {
                    if is_stale && self.outbox.was_stale(number, &name) {
                        same.push((number, name.clone()));
                    } else {
                        batches.entry(number).or_default().push(name.clone());
                    }
                }
            } else if peer.changed.is_some() {
                changed.push(name);
            } else if peer.session.is_none() {
                keyless.push(name);
            }
        }
        changed.iter().for_each(|name| self.give_up(name, Missed::KeyChanged));
        same.iter().for_each(|(number, name)| self.give_up_stale(*number, name));
        for (number, names) in batches {
            for part in names.chunks(MAX_TARGETS) {
                self.transmit(number, part);
            }
        }
        self.ask_for_keys(keyless);
    }

    /// Sends message `number` to people whose session keys are here.
    fn transmit(&mut self, number: u64, names: &[Username]) {
        let Some(message) = self.outbox.messages.get_mut(&number) else {
            return;
        };
        message.request = self.outbox.next_request + 1;
        let (kind, scope) = (message.kind, message.audience.scope());
        let sealed = match (&message.sealed, message.audience.recipient().cloned()) {
            (Some(sealed), _) => sealed.clone(),
            (None, Some(name)) => {
                let (text, written) = (message.text.clone(), (message.time, message.id));
                let peer = self.peers.get(&name);
                let Some(session) = peer.session.as_ref().map(SessionPublicKey::fingerprint) else {
                    return;
                };
                let sequence = peer.next_sequence(session);
                let header = self.header(kind, scope, Some((name, session)), sequence, written);
                let sealed = Sealed::seal(header, &self.identity, text.as_bytes());
                if let Some(message) = self.outbox.messages.get_mut(&number) {
                    message.id = Some(Fixed(sealed.id()));
                }
                Arc::new(sealed)
            }
            (None, None) => return,
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
        let routing = Routing { id, targets: names.to_vec(), keys: wrap(&sealed, &recipients) };
        self.outbox.flights.insert(id, (number, names.to_vec()));
        let send = EncryptedSend { routing, envelope: sealed.envelope.clone() };
        self.effects.push(Effect::Send(ClientMessage::EncryptedSend(Box::new(send))));
    }
}

/// One wrapped key for each recipient, spread over the cores.
fn wrap(sealed: &Sealed, recipients: &[(&Username, SessionPublicKey)]) -> ByName<WrappedKey> {
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
