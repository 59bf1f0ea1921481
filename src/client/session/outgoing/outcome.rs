//! What became of what was sent, as the server says it, and who is told.
//!
//! Invariant: every recipient of every message ends as delivered or is told as not; what meets a stale session key is
//! sent again by itself, and nothing else is: what has failed waits for the person. Specification: PROTOCOL#outcome.

use super::{Delivered, Failed, Outgoing};
use crate::client::audience::Audience;
use crate::client::entry::SendState;
use crate::client::session::{Effect, MAX_NAMED, Session};
use crate::client::text::quoted;
use crate::crypto::envelope::Kind;
use crate::name::Username;
use crate::protocol::{Lost, Sent};
use std::collections::BTreeSet;
use std::time::Duration;

/// A message that meets a stale key this often is given up: somebody plays with us. PROTOCOL#stale.
const MAX_TRIES: u32 = 3;
/// Messages that failed and can be sent again, the latest: more than a person goes back to.
const MAX_FAILED: usize = 64;
/// Private and room messages that are kept after their delivery, in case the server reports them as lost.
const MAX_DELIVERED: usize = 256;
/// The same in time: the grace period of a session, and some minutes more.
const KEEP_DELIVERED: Duration = Duration::from_secs(5 * 60);

/// Why somebody did not get a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Missed {
    Offline,
    NoAccount,
    NoKey,
    KeyChanged,
    /// So much waits for them already that the server did not take it.
    Busy,
    /// The server refused it, or named a stale key again and again.
    Failed,
}

impl Session {
    /// The server has said what became of a request. PROTOCOL#outcome, PROTOCOL#stale.
    pub(in super::super) fn sent(&mut self, answer: &Sent) {
        let Some((number, names)) = self.outbox.flights.remove(&answer.id) else {
            return self.server_problem("the server answered a request that was not made".into());
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
                peer.stale = peer.flying.take().or(peer.stale);
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
        if self.outbox.lost.remove(&answer.id)
            && let Some(name) = answer.delivered.first()
        {
            self.lost(&Lost { id: answer.id, name: name.clone() });
        }
    }

    /// The recipient's session ended before it acknowledged a message. PROTOCOL#lost.
    pub(in super::super) fn lost(&mut self, lost: &Lost) {
        if self.outbox.flights.contains_key(&lost.id) {
            // The session ended so soon that this overtook the answer.
            self.outbox.lost.insert(lost.id);
            return;
        }
        let is_it = |one: &Delivered| one.message.request == lost.id && one.message.is_for(&lost.name);
        let known = self.outbox.delivered.iter().position(is_it);
        let Some(Delivered { number, message, .. }) = known.and_then(|at| self.outbox.delivered.remove(at))
        else {
            let text = "some messages to {} may not have arrived: their session ended first";
            return self.problem_about(&lost.name, "lost", text.replace("{}", lost.name.as_str()));
        };
        let text = quoted(&message.text);
        let why = format!("{text} may not have arrived: {}'s session ended first", lost.name);
        self.unsent(number, message, why);
    }

    /// Forgets delivered messages, in time.
    pub(in super::super) fn forget_delivered(&mut self) {
        let now = self.instant;
        let is_over = |one: &Delivered| now.duration_since(one.since) >= KEEP_DELIVERED;
        while self.outbox.delivered.front().is_some_and(is_over) {
            self.outbox.delivered.pop_front();
        }
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
    pub(in super::super) fn refused(&mut self, id: u64, why: &str) {
        let Some((number, names)) = self.outbox.flights.remove(&id) else {
            return;
        };
        self.outbox.lost.remove(&id);
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
    pub(in super::super) fn give_up(&mut self, name: &Username, why: Missed) {
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
        if message.kind == Kind::Message && message.audience != Audience::Everyone && message.delivered > 0 {
            if self.outbox.delivered.len() == MAX_DELIVERED {
                self.outbox.delivered.pop_front();
            }
            return self.outbox.delivered.push_back(Delivered { number, message, since: self.instant });
        }
        if let Some(number) = message.transfer {
            let missed = message.missed.iter().next().map(|(name, why)| self.because(name, *why));
            return self.word_settled(number, message.kind, missed);
        }
        let to_all = message.audience == Audience::Everyone;
        if to_all && message.delivered == 0 && message.missed.values().all(|why| *why == Missed::Offline) {
            let why = "nobody else is online any more: your message was not delivered";
            return self.unsent(number, message, why.into());
        }
        if let (false, Some((name, why))) = (to_all, message.missed.first_key_value()) {
            let because = self.because(name, *why);
            let text = match message.kind {
                Kind::RoomOpened => {
                    // Who was not told can be told another time.
                    self.rooms.remove(name);
                    format!(
                        "{because}: no room is open, and nobody receives what you type here; /leave returns to everyone"
                    )
                }
                _ => format!("{because}: your message was not delivered"),
            };
            return self.unsent(number, message, text);
        }
        let text = quoted(&message.text);
        for (name, why) in message.missed.iter().take(MAX_NAMED) {
            let why = self.because(name, *why);
            self.problem_about(name, &why, format!("{why}: {name} did not receive {text}"));
        }
        if message.missed.len() > MAX_NAMED {
            let rest = message.missed.len() - MAX_NAMED;
            self.problem_about_some("nor", format!("{rest} other users did not receive it either"));
        }
        if message.delivered == 0 {
            self.unsent(number, message, "nobody received your message".into());
        }
    }

    fn because(&self, name: &Username, why: Missed) -> String {
        match why {
            Missed::Offline => format!("{name} is offline"),
            Missed::NoAccount => format!("there is no account named {name}"),
            Missed::NoKey => format!("{name} has no usable key"),
            Missed::KeyChanged => self.doubt(name),
            Missed::Busy => format!("{name}'s connection is too slow at the moment"),
            Missed::Failed => format!("the server did not accept it for {name}"),
        }
    }

    /// Nobody gets this message.
    pub(super) fn unsent(&mut self, number: u64, message: Outgoing, why: String) {
        if message.kind != Kind::Message {
            return self.problem(why);
        }
        let entry = self.own_entry(number, &message, SendState::Failed(why));
        self.effects.push(Effect::Show(entry));
        let Outgoing { audience, text, time, id, .. } = message;
        self.outbox.failed.insert(number, Failed { audience, text, time, id });
        if self.outbox.failed.len() > MAX_FAILED {
            self.outbox.failed.pop_first();
        }
    }

    /// The session that these were sent in is over: whoever may not have got one is told.
    pub(in super::super) fn give_up_all(&mut self) {
        for (number, message) in self.outbox.restart() {
            let maybe = "the connection was lost before the server confirmed it";
            if message.kind != Kind::Message {
                // A room or a file: both have ended with the session.
                continue;
            }
            self.gave_up = true;
            if message.delivered > 0 {
                self.problem(format!("{maybe}: some users may not have received {}", quoted(&message.text)));
            } else {
                let why = format!("{maybe}: {} may not have arrived", quoted(&message.text));
                self.unsent(number, message, why);
            }
        }
    }

    /// The server calls the key stale for which it was sealed, and shows no other one.
    pub(super) fn give_up_stale(&mut self, number: u64, name: &Username) {
        self.settle(number, name, Some(Missed::Failed));
        self.finish(number);
    }

    /// Sends again what has failed, under its id: perhaps somebody has got it.
    pub(in super::super) fn send_again(&mut self, number: u64) {
        match self.outbox.failed.remove(&number) {
            Some(Failed { audience, text, time, id }) => {
                // What was never sealed is written now.
                let time = if id.is_some() { time } else { self.now };
                self.dispatch(Outgoing::new(Kind::Message, audience, text, (time, id), None));
            }
            None => self.problem("that message is no longer available: type it again".into()),
        }
    }
}

impl Outgoing {
    /// Whether `name` is its one recipient.
    fn is_for(&self, name: &Username) -> bool {
        self.audience.recipient() == Some(name)
    }
}
