//! The outcome of sent messages, as the server reports it, and the report to the user.
//!
//! Invariant: for every recipient, a message ends as delivered or kept, or is reported as not delivered. Only a message
//! that meets a stale key or was lost with a session is sent again automatically; a failed one waits for the user.
//! Specification: PROTOCOL#outcome.

use super::{Copy, Missed, Outbox, Outcome, Outgoing, own_entry};
use crate::client::audience::Audience;
use crate::client::entry::SendState;
use crate::client::session::contacts::{Contact, Contacts};
use crate::client::session::cx::{Cx, MAX_NAMED};
use crate::client::session::event::Display;
use crate::client::session::presence::OnlineUsers;
use crate::client::text::quoted;
use crate::crypto::envelope::Kind;
use crate::name::Username;
use crate::protocol::{Lost, Sent};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A message whose key was stale, or that was lost, is sealed again this many times at most: an honest server needs
/// fewer. PROTOCOL#stale.
const MAX_TRIES: u32 = 3;
/// The number of failed messages that can be sent again: more than a user goes back to.
const MAX_FAILED: usize = 64;
/// The number of delivered private and room messages that are kept, in case the server reports them as lost. A client
/// acknowledges every 32nd frame, so they cover eight busy recipients.
const MAX_DELIVERED: usize = 256;
/// The time for which they are kept: the grace period of a session (60 s), and some minutes more.
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
        let [delivered, kept, stale, busy] = [&answer.delivered, &answer.kept, &answer.stale, &answer.busy]
            .map(|names| names.iter().collect::<BTreeSet<_>>());
        let is_lost = self.lost.remove(&answer.id);
        for name in &names {
            let recipient = self.recipient(name);
            recipient.in_flight = recipient.in_flight.saturating_sub(1);
            let Some(for_mailbox) = self.copy(number, name).map(|copy| copy.for_mailbox) else { continue };
            // PROTOCOL#mail-sender.
            let (accepted, contrary) = if for_mailbox { (&kept, &delivered) } else { (&delivered, &kept) };
            let outcome = match name {
                _ if accepted.contains(name) && is_lost => Err(Missed::Lost),
                _ if accepted.contains(name) => Ok(()),
                _ if stale.contains(name) => Err(Missed::Failed),
                _ if busy.contains(name) && for_mailbox => Err(Missed::MailboxFull),
                _ if busy.contains(name) => Err(Missed::Busy),
                _ if contrary.contains(name) => Err(Missed::Contradicted),
                _ => Err(Missed::Offline),
            };
            self.conclude(contacts, number, name, outcome);
        }
        self.send_backlogs(cx, contacts, names);
        self.finish(cx, contacts, number);
    }

    /// Handles that the recipient's session ended before it acknowledged a message: the message is sealed again for the
    /// recipient's next key. PROTOCOL#lost.
    pub fn lost(&mut self, cx: &mut Cx, contacts: &mut Contacts, lost: &Lost) {
        let overtook = self.flights.contains_key(&lost.id);
        let is_it = |message: &Outgoing| {
            let copy = message.copies.get(&lost.name).filter(|_| message.can_wait());
            let outcome = if overtook { None } else { Some(Ok(())) };
            copy.is_some_and(|copy| copy.request == lost.id && !copy.for_mailbox && copy.outcome == outcome)
        };
        let Some((&number, message)) = self.messages.iter_mut().find(|(_, message)| is_it(message)) else {
            let text = "some messages to {} may not have arrived: their session ended first";
            return cx.problem_about(&lost.name, "lost", text.replace("{}", lost.name.as_str()));
        };
        if overtook {
            // The answer to the request has not arrived yet, and handles the loss.
            self.lost.insert(lost.id);
            return;
        }
        message.reopen(&lost.name);
        self.conclude(contacts, number, &lost.name, Err(Missed::Lost));
        self.send_backlogs(cx, contacts, [lost.name.clone()]);
        self.finish(cx, contacts, number);
    }

    fn copy(&mut self, number: u64, name: &Username) -> Option<&mut Copy> {
        self.messages.get_mut(&number)?.copies.get_mut(name)
    }

    /// Notes an outcome. A copy whose key is out of use waits for the next one, a few times. PROTOCOL#stale.
    fn conclude(
        &mut self,
        contacts: &mut Contacts,
        number: u64,
        name: &Username,
        outcome: Result<(), Missed>,
    ) {
        if !matches!(outcome, Ok(()) | Err(Missed::Busy | Missed::MailboxFull)) {
            contacts.forget_key(name, |_| true);
        }
        if matches!(outcome, Err(Missed::Failed | Missed::Lost))
            && let Some(copy) = self.copy(number, name)
        {
            copy.was_lost |= outcome == Err(Missed::Lost);
            copy.tries += 1;
            if copy.tries <= MAX_TRIES {
                let recipient = self.recipient(name);
                recipient.stale = recipient.key_in_flight.take().or(recipient.stale);
                recipient.backlog.insert(number);
                return;
            }
        }
        self.settle(number, name, outcome);
    }

    /// Forgets messages that were delivered some time ago.
    pub fn tick(&mut self, cx: &Cx) {
        let is_over = |since| cx.instant.duration_since(since) >= KEEP_DELIVERED;
        self.messages.retain(|_, message| message.has_failed() || !message.settled.is_some_and(is_over));
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
            self.settle(number, name, Err(Missed::Failed));
        }
        self.send_backlogs(cx, contacts, names);
        self.finish(cx, contacts, number);
    }

    /// Fails the whole backlog of `name`.
    pub fn give_up(&mut self, cx: &mut Cx, contacts: &Contacts, name: &Username, why: Missed) {
        let Some(recipient) = self.recipients.get_mut(name) else { return };
        for number in std::mem::take(&mut recipient.backlog) {
            self.settle(number, name, Err(why));
            self.finish(cx, contacts, number);
        }
    }

    pub(super) fn settle(&mut self, number: u64, name: &Username, outcome: Result<(), Missed>) {
        if let Some(message) = self.messages.get_mut(&number) {
            message.settle(name, outcome);
        }
    }

    /// Shows that a broadcast is accepted once a recipient has got it, and reports a message when all outcomes are
    /// known.
    pub(super) fn finish(&mut self, cx: &mut Cx, contacts: &Contacts, number: u64) {
        let Some(message) = self.messages.get_mut(&number).filter(|message| message.settled.is_none()) else {
            return;
        };
        let is_over = message.waiting == 0;
        let is_first = message.delivered > 0 && !message.shown;
        if message.audience == Audience::Everyone && is_first {
            let entry = own_entry(cx, contacts, number, message, SendState::Taken);
            message.shown = true;
            cx.display(Display::Entry(entry));
        }
        if is_over && let Some(message) = self.messages.remove(&number) {
            self.report(cx, contacts, number, message);
        }
    }

    /// Reports the outcome of a message that is settled.
    fn report(&mut self, cx: &mut Cx, contacts: &Contacts, number: u64, message: Outgoing) {
        let kind = message.kind;
        let missed = message.missed().next().map(|(name, why)| (name.clone(), why.because(contacts, name)));
        if let Some(transfer) = message.transfer {
            let missed = missed.map(|(_, because)| because);
            return self.outcomes.push_back(Outcome::FileMessage { transfer, kind, missed });
        }
        match (kind, missed) {
            (Kind::Message, _) if message.audience == Audience::Everyone => {
                self.report_broadcast(cx, contacts, number, message);
            }
            (Kind::Message, _) => self.report_direct(cx, contacts, number, message),
            (Kind::RoomOpened, None) => {
                self.outcomes.extend(message.copies.into_keys().map(Outcome::Opened));
            }
            (Kind::RoomOpened, Some((name, because))) => {
                let waits = contacts.find(&name).is_some_and(Contact::has_mailbox);
                let then = if waits {
                    "is kept for {} until they log in"
                } else {
                    "is sent to {} alone if they come online"
                };
                let then = then.replace("{}", name.as_str());
                cx.problem(format!(
                    "{because}: no room is open; what you type here {then}; /leave returns to everyone"
                ));
                // The user can type `/room` again.
                self.outcomes.push_back(Outcome::NotOpened(name));
            }
            _ => {}
        }
    }

    /// Shows who got a private or room message, and keeps it: it may be sent again, or reported as lost.
    fn report_direct(&mut self, cx: &mut Cx, contacts: &Contacts, number: u64, message: Outgoing) {
        let (kept, count) = (message.kept(), message.copies.len());
        let delivered = message.delivered - kept.len();
        let waits = format!("kept for {} until they log in", kept.join(", "));
        let reasons = all_because(contacts, message.missed());
        let is_doubtful = |(_, why)| matches!(why, Missed::Lost | Missed::Contradicted);
        let state = match message.missed().next().map(|(_, why)| why) {
            None if kept.is_empty() => SendState::Taken,
            None => SendState::Kept(waits),
            Some(_) if message.delivered > 0 => {
                let waits = if kept.is_empty() { String::new() } else { format!("; {waits}") };
                SendState::Partly(format!("{delivered} of {count}: {reasons}{waits}"))
            }
            Some(_) if message.missed().any(is_doubtful) => {
                SendState::Failed(format!("{} may not have arrived: {reasons}", quoted(&message.text)))
            }
            Some(Missed::KeyChanged) if message.requested.is_none() => {
                SendState::Failed(format!("{reasons}: your message was not sent"))
            }
            Some(_) => SendState::Failed(format!("{reasons}: your message was not delivered")),
        };
        self.keep(cx, contacts, number, message, state);
    }

    fn report_broadcast(&mut self, cx: &mut Cx, contacts: &Contacts, number: u64, message: Outgoing) {
        if message.delivered == 0 && message.missed().all(|(_, why)| why == Missed::Offline) {
            let why = "nobody else is online any more: your message was not delivered";
            return self.unsent(cx, contacts, number, message, why.into());
        }
        let text = quoted(&message.text);
        for (name, why) in message.missed().take(MAX_NAMED) {
            let why = why.because(contacts, name);
            cx.problem_about(name, &why, format!("{why}: {name} did not receive {text}"));
        }
        if let Some(rest @ 1..) = message.missed().count().checked_sub(MAX_NAMED) {
            cx.problem_about_some("nor", format!("{rest} other users did not receive it either"));
        }
        if message.delivered == 0 {
            self.unsent(cx, contacts, number, message, "nobody received your message".into());
        }
    }

    /// Fails a message that no recipient got.
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
        self.keep(cx, contacts, number, message, SendState::Failed(why));
    }

    /// Shows the state of a settled message, and keeps the message for some time.
    fn keep(
        &mut self,
        cx: &mut Cx,
        contacts: &Contacts,
        number: u64,
        mut message: Outgoing,
        state: SendState,
    ) {
        let has_failed = matches!(state, SendState::Failed(_));
        let entry = own_entry(cx, contacts, number, &message, state);
        cx.display(Display::Entry(entry));
        message.shown |= !has_failed;
        (message.settled, message.sealed) = (Some(cx.instant), None);
        let has_failed = message.has_failed();
        self.messages.insert(number, message);
        let alike = |one: &&Outgoing| one.settled.is_some() && one.has_failed() == has_failed;
        let most = if has_failed { MAX_FAILED } else { MAX_DELIVERED };
        if self.messages.values().filter(alike).count() > most {
            let oldest = self.messages.iter().find(|(_, message)| alike(message)).map(|(number, _)| *number);
            oldest.and_then(|number| self.messages.remove(&number));
        }
    }

    /// Settles all messages in flight after the end of their session, and reports those that may not have arrived.
    /// There was no connection since `lost`, if that is known.
    pub fn restart(&mut self, cx: &mut Cx, contacts: &Contacts, lost: Option<Instant>) {
        self.flights.clear();
        self.lost.clear();
        self.restart_numbers();
        for recipient in self.recipients.values_mut() {
            recipient.backlog.clear();
            (recipient.key_in_flight, recipient.in_flight) = (None, 0);
        }
        // Rooms of two and transfers have ended with the session, and the server reports no loss in another one.
        let is_kept = |message: &Outgoing| match message.settled {
            Some(_) => message.has_failed(),
            None => message.kind == Kind::Message,
        };
        self.messages.retain(|_, message| is_kept(message));
        let all = std::mem::take(&mut self.messages).into_iter();
        let (settled, pending): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.partition(|(_, message)| message.settled.is_some());
        self.messages = settled;
        for (number, mut message) in pending {
            let maybe = "the connection was lost before the server confirmed it";
            self.gave_up = true;
            let text = quoted(&message.text);
            let is_open = |(name, copy): (&Username, &Copy)| copy.outcome.is_none().then(|| name.clone());
            for name in message.copies.iter().filter_map(is_open).collect::<Vec<_>>() {
                message.settle(&name, Err(Missed::Unconfirmed));
            }
            if message.delivered > 0 && message.audience == Audience::Everyone {
                cx.problem(format!("{maybe}: some users may not have received {text}"));
            } else if message.delivered > 0 {
                self.report(cx, contacts, number, message);
            } else if message.may_have_left(lost) {
                self.unsent(cx, contacts, number, message, format!("{maybe}: {text} may not have arrived"));
            } else {
                let why = format!("there was no connection: {text} was not sent");
                self.unsent(cx, contacts, number, message, why);
            }
        }
    }

    /// Sends a failed message again to the recipients that have not got it: with the same ids, because they may have
    /// got it, and with the same number, because it is the same message for the user.
    pub fn send_again(&mut self, cx: &mut Cx, contacts: &mut Contacts, online: &OnlineUsers, number: u64) {
        let known = if self.can_resend(number) { self.messages.remove(&number) } else { None };
        let Some(mut message) = known else {
            return cx.problem("that message is no longer available: type it again");
        };
        (message.settled, message.requested) = (None, None);
        if message.ids.is_empty() {
            // A message that was never sealed gets the current time.
            message.time = cx.now;
        }
        if message.audience == Audience::Everyone {
            message.copies.clear();
        }
        self.send_as(cx, contacts, online, (number, message));
    }
}

/// Why these users did not get a message, as text.
fn all_because<'a>(contacts: &Contacts, missed: impl Iterator<Item = (&'a Username, Missed)>) -> String {
    let mut reasons: Vec<String> = missed.map(|(name, why)| why.because(contacts, name)).collect();
    if let Some(rest @ 1..) = reasons.len().checked_sub(MAX_NAMED) {
        reasons.truncate(MAX_NAMED);
        reasons.push(format!("{rest} more missed it"));
    }
    reasons.join("; ")
}
