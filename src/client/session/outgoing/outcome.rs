//! The outcome of sent messages, as the server reports it, and the report to the user.
//!
//! Invariant: for every recipient, a message ends as delivered or is reported as not delivered. Only a message that
//! meets a stale session key is sent again automatically; a failed one waits for the user. Specification:
//! PROTOCOL#outcome.

use super::{Delivered, Failed, Missed, Outbox, Outcome, Outgoing, own_entry};
use crate::client::audience::Audience;
use crate::client::entry::SendState;
use crate::client::session::contacts::Contacts;
use crate::client::session::cx::{Cx, MAX_NAMED};
use crate::client::session::event::Display;
use crate::client::session::presence::OnlineUsers;
use crate::client::text::quoted;
use crate::crypto::envelope::Kind;
use crate::name::Username;
use crate::protocol::{Lost, Sent};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A message that meets a stale key this often is abandoned: an honest server does not do that. PROTOCOL#stale.
const MAX_TRIES: u32 = 3;
/// The number of failed messages that can be sent again: more than a user goes back to.
const MAX_FAILED: usize = 64;
/// Private and room messages that are kept after their delivery, in case the server reports them as lost.
const MAX_DELIVERED: usize = 256;
/// The time for which they are kept: the grace period of a session, and some minutes more.
const KEEP_DELIVERED: Duration = Duration::from_secs(5 * 60);

impl Outbox {
    /// The next outcome that concerns another part; `None` if there are no more.
    pub fn next_outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// Handles the server's answer to a request. PROTOCOL#outcome, PROTOCOL#stale.
    pub fn sent(&mut self, cx: &mut Cx, contacts: &mut Contacts, answer: &Sent) {
        let Some((number, names)) = self.flights.remove(&answer.id) else {
            return cx.server_problem("the server answered a request that was not made");
        };
        let [delivered, stale, busy] = [&answer.delivered, &answer.stale, &answer.busy]
            .map(|names| names.iter().collect::<BTreeSet<_>>());
        for name in &names {
            let recipient = self.recipient(name);
            recipient.in_flight = recipient.in_flight.saturating_sub(1);
            if delivered.contains(name) {
                self.settle(number, name, None);
            } else if stale.contains(name) && self.may_retry(number, name) {
                contacts.forget_session(name);
                let recipient = self.recipient(name);
                recipient.stale = recipient.flying.take().or(recipient.stale);
                recipient.backlog.insert(number);
            } else if busy.contains(name) {
                self.settle(number, name, Some(Missed::Busy));
            } else {
                contacts.forget_session(name);
                let missed = if stale.contains(name) { Missed::Failed } else { Missed::Offline };
                self.settle(number, name, Some(missed));
            }
        }
        self.pump(cx, contacts, names);
        self.finish(cx, contacts, number);
        if self.lost.remove(&answer.id)
            && let Some(name) = answer.delivered.first()
        {
            self.lost(cx, contacts, &Lost { id: answer.id, name: name.clone() });
        }
    }

    /// Handles that the recipient's session ended before it acknowledged a message. PROTOCOL#lost.
    pub fn lost(&mut self, cx: &mut Cx, contacts: &Contacts, lost: &Lost) {
        if self.flights.contains_key(&lost.id) {
            // The session ended so soon that this message overtook the answer.
            self.lost.insert(lost.id);
            return;
        }
        let is_it = |one: &Delivered| one.message.request == lost.id && one.message.is_for(&lost.name);
        let known = self.delivered.iter().position(is_it);
        let Some(Delivered { number, message, .. }) = known.and_then(|at| self.delivered.remove(at)) else {
            let text = "some messages to {} may not have arrived: their session ended first";
            return cx.problem_about(&lost.name, "lost", text.replace("{}", lost.name.as_str()));
        };
        let text = quoted(&message.text);
        let why = format!("{text} may not have arrived: {}'s session ended first", lost.name);
        self.unsent(cx, contacts, number, message, why);
    }

    /// Forgets delivered messages when their time is over.
    pub fn tick(&mut self, cx: &Cx) {
        let is_over = |one: &Delivered| cx.instant.duration_since(one.since) >= KEEP_DELIVERED;
        while self.delivered.front().is_some_and(is_over) {
            self.delivered.pop_front();
        }
    }

    fn may_retry(&mut self, number: u64, name: &Username) -> bool {
        let Some(message) = self.messages.get_mut(&number) else {
            return false;
        };
        let tries = message.tries.entry(name.clone()).or_default();
        *tries += 1;
        *tries <= MAX_TRIES
    }

    /// Handles a refused request: `why` is the server's sanitised reason.
    pub fn refused(&mut self, cx: &mut Cx, contacts: &mut Contacts, id: u64, why: &str) {
        let Some((number, names)) = self.flights.remove(&id) else {
            return;
        };
        self.lost.remove(&id);
        cx.problem(format!("the server refused your message: {why}"));
        for name in &names {
            let recipient = self.recipient(name);
            recipient.in_flight = recipient.in_flight.saturating_sub(1);
            self.settle(number, name, Some(Missed::Failed));
        }
        self.pump(cx, contacts, names);
        self.finish(cx, contacts, number);
    }

    /// Fails the whole backlog of `name`.
    pub fn give_up(&mut self, cx: &mut Cx, contacts: &Contacts, name: &Username, why: Missed) {
        let Some(recipient) = self.recipients.get_mut(name) else { return };
        for number in std::mem::take(&mut recipient.backlog) {
            self.settle(number, name, Some(why));
            self.finish(cx, contacts, number);
        }
    }

    pub(super) fn settle(&mut self, number: u64, name: &Username, missed: Option<Missed>) {
        let Some(message) = self.messages.get_mut(&number) else {
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

    /// Shows that a message is accepted once a recipient has got it, and reports the others when all outcomes are
    /// known.
    pub(super) fn finish(&mut self, cx: &mut Cx, contacts: &Contacts, number: u64) {
        let Some(message) = self.messages.get_mut(&number) else {
            return;
        };
        if message.delivered > 0 && !std::mem::replace(&mut message.shown, true) {
            match (message.kind, &message.audience) {
                (Kind::Message, _) => {
                    let entry = own_entry(cx, contacts, number, message, SendState::Taken);
                    cx.display(Display::Entry(entry));
                }
                (Kind::RoomOpened, Audience::Room(name)) => {
                    self.outcomes.push_back(Outcome::Opened(name.clone()));
                }
                _ => {}
            }
        }
        if message.waiting.is_empty()
            && let Some(message) = self.messages.remove(&number)
        {
            self.tell_missed(cx, contacts, number, message);
        }
    }

    fn tell_missed(&mut self, cx: &mut Cx, contacts: &Contacts, number: u64, message: Outgoing) {
        if message.kind == Kind::RoomLeft {
            return;
        }
        if message.kind == Kind::Message && message.audience != Audience::Everyone && message.delivered > 0 {
            if self.delivered.len() == MAX_DELIVERED {
                self.delivered.pop_front();
            }
            return self.delivered.push_back(Delivered { number, message, since: cx.instant });
        }
        if let Some(transfer) = message.transfer {
            let missed = message.missed.iter().next().map(|(name, why)| why.because(contacts, name));
            return self.outcomes.push_back(Outcome::FileMessage { transfer, kind: message.kind, missed });
        }
        let to_all = message.audience == Audience::Everyone;
        if to_all && message.delivered == 0 && message.missed.values().all(|why| *why == Missed::Offline) {
            let why = "nobody else is online any more: your message was not delivered";
            return self.unsent(cx, contacts, number, message, why.into());
        }
        if let (false, Some((name, why))) = (to_all, message.missed.first_key_value()) {
            let because = why.because(contacts, name);
            let text = match message.kind {
                Kind::RoomOpened => {
                    // The user can type `/room` again.
                    self.outcomes.push_back(Outcome::NotOpened(name.clone()));
                    format!(
                        "{because}: no room is open; what you type here is sent to {name} alone if they come online; /leave returns to everyone"
                    )
                }
                _ => format!("{because}: your message was not delivered"),
            };
            return self.unsent(cx, contacts, number, message, text);
        }
        let text = quoted(&message.text);
        for (name, why) in message.missed.iter().take(MAX_NAMED) {
            let why = why.because(contacts, name);
            cx.problem_about(name, &why, format!("{why}: {name} did not receive {text}"));
        }
        if message.missed.len() > MAX_NAMED {
            let rest = message.missed.len() - MAX_NAMED;
            cx.problem_about_some("nor", format!("{rest} other users did not receive it either"));
        }
        if message.delivered == 0 {
            self.unsent(cx, contacts, number, message, "nobody received your message".into());
        }
    }

    /// Fails a message that no recipient gets.
    pub(super) fn unsent(
        &mut self,
        cx: &mut Cx,
        contacts: &Contacts,
        number: u64,
        message: Outgoing,
        why: String,
    ) {
        if message.kind != Kind::Message {
            return cx.problem(why);
        }
        let entry = own_entry(cx, contacts, number, &message, SendState::Failed(why));
        cx.display(Display::Entry(entry));
        let Outgoing { audience, text, time, id, .. } = message;
        self.failed.insert(number, Failed { audience, text, time, id });
        if self.failed.len() > MAX_FAILED {
            self.failed.pop_first();
        }
    }

    /// Settles all messages in flight after the end of their session, and reports those that may not have arrived.
    /// There was no connection since `lost`, if that is known.
    pub fn restart(&mut self, cx: &mut Cx, contacts: &Contacts, lost: Option<Instant>) {
        self.flights.clear();
        self.delivered.clear();
        self.lost.clear();
        self.restart_numbers();
        for recipient in self.recipients.values_mut() {
            recipient.backlog.clear();
            (recipient.flying, recipient.in_flight) = (None, 0);
        }
        for (number, message) in std::mem::take(&mut self.messages) {
            let maybe = "the connection was lost before the server confirmed it";
            if message.kind != Kind::Message {
                // Rooms and transfers have ended with the session.
                continue;
            }
            self.gave_up = true;
            let text = quoted(&message.text);
            if message.delivered > 0 {
                cx.problem(format!("{maybe}: some users may not have received {text}"));
            } else if message.may_have_left(lost) {
                self.unsent(cx, contacts, number, message, format!("{maybe}: {text} may not have arrived"));
            } else {
                self.unsent(
                    cx,
                    contacts,
                    number,
                    message,
                    format!("there was no connection: {text} was not sent"),
                );
            }
        }
    }

    /// Sends a failed message again: with the same id, because a recipient may have got it, and with the same number,
    /// because it is the same message for the user.
    pub fn send_again(&mut self, cx: &mut Cx, contacts: &mut Contacts, online: &OnlineUsers, number: u64) {
        let Some(Failed { audience, text, time, id }) = self.failed.remove(&number) else {
            return cx.problem("that message is no longer available: type it again");
        };
        // A message that was never sealed gets the current time.
        let time = if id.is_some() { time } else { cx.now };
        let message = Outgoing { id, ..Outgoing::new(Kind::Message, audience, text, time) };
        self.send_as(cx, contacts, online, (number, message));
    }
}
