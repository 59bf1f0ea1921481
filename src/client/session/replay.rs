//! The accepted numbers of one sender: each once, with a count of missing ones.
//!
//! Invariant: no envelope is accepted twice, even if there were more conversations than are remembered. The exception
//! is an envelope that is sent again in a forgotten conversation: its id shows whether it is known. A false date never
//! blocks a correctly dated message. Specification: PROTOCOL#check-sequence, PROTOCOL#sequence.

use crate::crypto::envelope::Header;
use crate::crypto::public::Fingerprint;
use std::collections::VecDeque;
use std::ops::Range;

/// The most conversations of one sender: each login begins some, and a hostile sender begins many.
const MAX_CONVERSATIONS: usize = 64;

/// The sender's session key, and the key that a message is for; `None` in a broadcast.
pub type Between = (Fingerprint, Option<Fingerprint>);

/// The conversation that a header belongs to.
pub fn between(header: &Header) -> Between {
    (header.session, header.recipient.as_ref().and(header.recipient_key))
}

struct Conversation {
    between: Between,
    sequence: u64,
    /// The time of its latest message, by the sender's clock.
    time: u64,
    /// The latest time that was not ahead of the reader's clock; `None` if all were.
    right: Option<u64>,
}

/// The relation of a sequence number to those before it.
#[derive(Debug, PartialEq, Eq)]
pub enum Order {
    /// Nothing is missing.
    Next,
    /// This number of messages before it is missing: they neither arrived nor were refused.
    Gap(u64),
    /// Not higher than a number already accepted.
    Replayed,
}

/// The conversations of one sender.
#[derive(Default)]
pub struct Replay {
    /// The most recently used one first.
    conversations: VecDeque<Conversation>,
    /// The latest time of forgotten conversations; no new message is that old.
    forgotten: Option<u64>,
    /// The latest time of conversations that were dated in the future when they were forgotten. It does not block
    /// correctly dated messages.
    ahead: Option<u64>,
    /// Consecutive numbers that were refused where the next one was due: they were reported already, so they are not
    /// missing.
    refused: Option<(Between, Range<u64>)>,
}

impl Replay {
    /// The order of `header`, at `now` by the reader's clock; both in milliseconds since 1970.
    pub fn order(&self, header: &Header, now: u64) -> Order {
        let place = between(header);
        // A resent message may be old; its id shows whether it was shown before.
        if !self.is_known(place) && header.again.is_none() && self.is_forgotten(header.time, now) {
            return Order::Replayed;
        }
        let expected = self.next(place).unwrap_or(header.sequence).max(1);
        match header.sequence {
            sequence if sequence < expected || sequence == u64::MAX => Order::Replayed,
            sequence => match sequence - expected - self.refused_of(place, expected..sequence) {
                0 => Order::Next,
                missing => Order::Gap(missing),
            },
        }
    }

    /// The next expected number in a conversation; `None` if any number is valid, because broadcasts may have begun
    /// before this client's login.
    fn next(&self, place: Between) -> Option<u64> {
        let known = self.conversations.iter().find(|conversation| conversation.between == place);
        // The highest number is never accepted.
        known.map(|conversation| conversation.sequence + 1).or(place.1.map(|_| 1))
    }

    /// Continues a conversation after this number, which is on disk, if it is not known here: the disk forgets none.
    pub fn resume(&mut self, place: Between, sequence: impl FnOnce() -> u64, now: u64) {
        if !self.is_known(place) {
            self.use_first(Conversation { between: place, sequence: sequence(), time: 0, right: None }, now);
        }
    }

    fn is_known(&self, place: Between) -> bool {
        self.conversations.iter().any(|conversation| conversation.between == place)
    }

    fn is_forgotten(&self, time: u64, now: u64) -> bool {
        let ahead = self.ahead.filter(|ahead| time > now || *ahead <= now);
        self.forgotten.max(ahead).is_some_and(|forgotten| time <= forgotten)
    }

    /// The number of `missing` ones that were refused.
    fn refused_of(&self, place: Between, missing: Range<u64>) -> u64 {
        match &self.refused {
            Some((of, numbers)) if *of == place && numbers.start == missing.start => {
                numbers.end.min(missing.end) - numbers.start
            }
            _ => 0,
        }
    }

    /// Notes a refused envelope that claims this conversation and number; `waiting` is the last number there that still
    /// waits for a key. It counts only where the next number is due: a forgery must not excuse messages that are
    /// withheld later.
    pub fn refuse(&mut self, place: Between, sequence: u64, waiting: Option<u64>) {
        let next = waiting.and_then(|number| number.checked_add(1)).or(self.next(place));
        match &mut self.refused {
            _ if sequence == u64::MAX => {}
            Some((of, numbers)) if *of == place && numbers.end == sequence => numbers.end += 1,
            _ if next == Some(sequence) => self.refused = Some((place, sequence..sequence + 1)),
            _ => {}
        }
    }

    /// Notes that `header` was accepted, at `now` by the reader's clock.
    pub fn record(&mut self, header: &Header, now: u64) {
        let place = between(header);
        let former = self.conversations.iter().position(|conversation| conversation.between == place);
        let former = former.and_then(|at| self.conversations.remove(at));
        let (time, right) = former.map_or((0, None), |conversation| (conversation.time, conversation.right));
        let written = if header.again.is_some() { now } else { header.time };
        let (time, right) = (time.max(written), right.max((written <= now).then_some(written)));
        // Keep refused numbers after it: they may have been refused while it waited for a key.
        self.refused.take_if(|(of, numbers)| *of == place && numbers.start <= header.sequence);
        self.use_first(Conversation { between: place, sequence: header.sequence, time, right }, now);
    }

    fn use_first(&mut self, conversation: Conversation, now: u64) {
        self.conversations.push_front(conversation);
        if self.conversations.len() > MAX_CONVERSATIONS {
            self.forget(now);
        }
    }

    /// Forgets the oldest conversation except the one just used; those dated in the future last.
    fn forget(&mut self, now: u64) {
        let others = self.conversations.iter().enumerate().skip(1);
        let oldest = others.min_by_key(|(_, conversation)| conversation.time).map(|(at, _)| at);
        if let Some(oldest) = oldest.and_then(|at| self.conversations.remove(at)) {
            let latest = if oldest.time > now { &mut self.ahead } else { &mut self.forgotten };
            *latest = (*latest).max(Some(oldest.time));
            self.forgotten = self.forgotten.max(oldest.right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::envelope::{Kind, Scope};
    use crate::encoding::Fixed;

    const NOW: u64 = 1_800_000_000_000;
    const DAY: u64 = 86_400_000;

    fn header(session: u8, to: Option<u8>, sequence: u64) -> Header {
        Header {
            kind: Kind::Message,
            scope: if to.is_some() { Scope::Private } else { Scope::Broadcast },
            recipient: to.map(|_| "bob".parse().expect("name")),
            recipient_key: to.map(|n| Fingerprint([n; 32])),
            from: "alice".parse().expect("name"),
            identity: Fingerprint([9; 32]),
            session: Fingerprint([session; 32]),
            sequence,
            time: 0,
            again: None,
        }
    }

    fn take(seen: &mut Replay, header: &Header, now: u64) -> Order {
        let order = seen.order(header, now);
        if order != Order::Replayed {
            seen.record(header, now);
        }
        order
    }

    /// PROTOCOL#check-sequence, PROTOCOL#sequence.
    #[test]
    fn each_number_is_accepted_once_and_gaps_are_counted() {
        let mut seen = Replay::default();
        let mut take = |header: Header| take(&mut seen, &header, NOW);
        assert_eq!(take(header(1, None, 0)), Order::Replayed, "numbers begin at 1");
        assert_eq!(take(header(1, None, 7)), Order::Next);
        assert_eq!(take(header(1, None, 7)), Order::Replayed);
        assert_eq!(take(header(1, None, 8)), Order::Next);
        assert_eq!(take(header(1, None, 11)), Order::Gap(2));
        assert_eq!(take(header(1, None, 10)), Order::Replayed);
        assert_eq!(take(header(1, Some(1), 2)), Order::Gap(1), "a private conversation begins at 1");
        assert_eq!(
            take(header(1, Some(2), 1)),
            Order::Next,
            "a new session of the recipient starts new numbers"
        );
        assert_eq!(take(header(2, None, 1)), Order::Next, "a new session of the sender starts new numbers");
        assert_eq!(take(header(2, None, u64::MAX)), Order::Replayed, "nothing could follow it");
        assert_eq!(take(header(2, None, u64::MAX - 1)), Order::Gap(u64::MAX - 3));
        assert_eq!(take(header(2, None, u64::MAX - 1)), Order::Replayed);
        assert_eq!(take(header(3, None, u64::MAX)), Order::Replayed);
    }

    /// PROTOCOL#check-again, PROTOCOL#check-sequence.
    #[test]
    fn old_resent_message_begins_a_conversation() {
        let mut seen = Replay::default();
        for session in 0..100 {
            let fresh = Header { time: 1000 + u64::from(session), ..header(session, None, 1) };
            assert_eq!(take(&mut seen, &fresh, NOW), Order::Next);
        }
        let old = Header { time: 1, ..header(200, None, 1) };
        assert_eq!(seen.order(&old, NOW), Order::Replayed);
        let again = Header { again: Some(Fixed([1; 32])), ..old };
        assert_eq!(take(&mut seen, &again, NOW), Order::Next);
        for session in 100..200 {
            let fresh = Header { time: 1000 + u64::from(session), ..header(session, None, 1) };
            assert_eq!(take(&mut seen, &fresh, NOW), Order::Next);
        }
        assert_eq!(
            take(&mut seen, &header(200, None, 2), NOW),
            Order::Next,
            "it is not the next to be forgotten"
        );
    }

    /// PROTOCOL#check-sequence.
    #[test]
    fn many_sessions_of_a_sender_are_bounded_and_not_replayed() {
        for to in [None, Some(1)] {
            let mut seen = Replay::default();
            let dated = |session: u8| Header { time: 1000 + u64::from(session), ..header(session, to, 1) };
            (0..200).for_each(|session| assert_eq!(take(&mut seen, &dated(session), NOW), Order::Next));
            assert_eq!(seen.conversations.len(), MAX_CONVERSATIONS);
            for session in 0..200 {
                assert_eq!(seen.order(&dated(session), NOW), Order::Replayed, "{session} to {to:?}");
            }
        }
    }

    /// PROTOCOL#check-sequence.
    #[test]
    fn future_date_blocks_no_correctly_dated_message() {
        for (ahead, count) in [(DAY, 1), (DAY, 100), (u64::MAX - NOW, 1), (u64::MAX - NOW, 100)] {
            let mut seen = Replay::default();
            let dated = |session: u8| Header {
                time: NOW + ahead - u64::from(100 - session),
                ..header(session, None, 1)
            };
            for session in 0..count {
                assert_eq!(take(&mut seen, &dated(session), NOW), Order::Next);
            }
            for session in 100..250 {
                let now = NOW + u64::from(session);
                let right = Header { time: now, ..header(session, None, 1) };
                assert_eq!(
                    take(&mut seen, &right, now),
                    Order::Next,
                    "{session} after {count} {ahead} ahead"
                );
                assert_eq!(seen.order(&right, now), Order::Replayed);
            }
            for session in 0..count {
                assert_eq!(seen.order(&dated(session), NOW + 250), Order::Replayed, "{session}");
            }
        }
        // A date that was in the future once counts like any other later.
        let mut seen = Replay { ahead: Some(NOW), ..Replay::default() };
        assert_eq!(take(&mut seen, &Header { time: NOW, ..header(1, None, 1) }, NOW + 1), Order::Replayed);
        assert_eq!(take(&mut seen, &Header { time: NOW + 1, ..header(1, None, 1) }, NOW + 1), Order::Next);
    }

    /// PROTOCOL#check-sequence.
    #[test]
    fn forgotten_date_stays_refused_after_a_future_one() {
        let mut seen = Replay::default();
        let first = Header { time: NOW - 1, ..header(0, None, 1) };
        assert_eq!(take(&mut seen, &first, NOW), Order::Next);
        for session in 0..100 {
            let ahead = Header { time: NOW + DAY + u64::from(session), ..header(session, None, 2) };
            assert_eq!(take(&mut seen, &ahead, NOW), Order::Next);
        }
        assert_eq!(seen.order(&first, NOW), Order::Replayed);
    }

    /// PROTOCOL#check-sequence.
    #[test]
    fn refused_number_is_not_also_missing() {
        let mut seen = Replay::default();
        let (all, private) = (between(&header(1, None, 1)), between(&header(1, Some(1), 1)));
        assert_eq!(take(&mut seen, &header(1, None, 5), NOW), Order::Next);
        seen.refuse(all, 6, None);
        seen.refuse(all, 7, None);
        assert_eq!(take(&mut seen, &header(1, None, 9), NOW), Order::Gap(1), "8 was not refused");
        seen.refuse(private, 1, None);
        assert_eq!(take(&mut seen, &header(1, Some(1), 2), NOW), Order::Next);
        seen.refuse(private, 3, None);
        assert_eq!(take(&mut seen, &header(1, Some(1), 3), NOW), Order::Next, "its number is not used up");
        // Forged in advance, or at the limits of the numbers, a refusal excuses nothing.
        for sequence in [0, 11, 12, u64::MAX - 1, u64::MAX] {
            seen.refuse(all, sequence, None);
        }
        assert_eq!(take(&mut seen, &header(1, None, 13), NOW), Order::Gap(3));
        seen.refuse(private, 4, None);
        seen.refuse(private, 99, None);
        assert_eq!(take(&mut seen, &header(1, Some(1), 5), NOW), Order::Next, "the forgery has no effect");
        // In another conversation, nothing was refused.
        seen.refuse(private, 6, None);
        assert_eq!(take(&mut seen, &header(2, Some(1), 5), NOW), Order::Gap(4));
        assert_eq!(take(&mut seen, &header(2, Some(1), 7), NOW), Order::Gap(1));
        // The genuine message with a refused number may still arrive.
        seen.refuse(private, 7, None);
        assert_eq!(take(&mut seen, &header(1, Some(1), 7), NOW), Order::Next);
        seen.refuse(private, 8, None);
        assert_eq!(take(&mut seen, &header(1, Some(1), 9), NOW), Order::Next);
        // After numbers that wait for a key.
        seen.refuse(all, 16, Some(15));
        seen.refuse(all, 17, Some(u64::MAX));
        for sequence in [14, 15, 18] {
            assert_eq!(take(&mut seen, &header(1, None, sequence), NOW), Order::Next, "{sequence}");
        }
        // No number follows the highest.
        assert_eq!(take(&mut seen, &header(1, None, u64::MAX - 1), NOW), Order::Gap(u64::MAX - 20));
        seen.refuse(all, u64::MAX, None);
    }

    /// PROTOCOL#check-sequence.
    #[test]
    fn oldest_conversation_is_remembered_while_it_lasts() {
        let mut seen = Replay::default();
        for session in 0..MAX_CONVERSATIONS as u8 {
            take(&mut seen, &Header { time: NOW, ..header(session, None, 1) }, NOW);
        }
        let behind = |sequence| Header { time: NOW - DAY, ..header(100, None, sequence) };
        assert_eq!(take(&mut seen, &behind(1), NOW), Order::Next);
        assert_eq!(take(&mut seen, &behind(3), NOW), Order::Gap(1));
    }

    /// PROTOCOL#check-sequence.
    #[test]
    fn later_message_with_an_earlier_date_allows_no_replay() {
        let mut seen = Replay::default();
        let ahead = Header { time: NOW + DAY, ..header(100, None, 1) };
        assert_eq!(take(&mut seen, &ahead, NOW), Order::Next);
        assert_eq!(take(&mut seen, &Header { time: NOW, ..header(100, None, 2) }, NOW), Order::Next);
        for session in 0..MAX_CONVERSATIONS as u8 {
            take(&mut seen, &Header { time: NOW + 2 * DAY, ..header(session, None, 1) }, NOW);
        }
        assert_eq!(seen.order(&ahead, NOW), Order::Replayed);
    }
}
