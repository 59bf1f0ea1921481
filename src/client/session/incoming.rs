//! What others have sent: checked in the specification's order, then shown.
//!
//! Invariant: nothing of an envelope is shown, counted or answered before its signature by a known key was
//! checked; each envelope is shown once; where it belongs is what its sender signed. No
//! answer to the server depends on what decryption yields. Specification: README#receiving.

use super::Session;
use super::peers::{MAX_INBOX, MAX_INBOX_OF_ONE};
use super::wire_form::typed;
use crate::client::entry::{Entry, Place, Source};
use crate::client::text::{mentions, sanitise_lines};
use crate::crypto::envelope::{Envelope, Header, Kind, Scope};
use crate::crypto::keys::SessionKey;
use crate::crypto::public::Fingerprint;
use crate::name::Username;
use crate::protocol::EncryptedMessage;
use std::collections::VecDeque;
use zeroize::Zeroizing;

/// A sender's clock that differs by more, in milliseconds, is told: no clock that is set by itself does.
const MAX_SKEW_MS: u64 = 5 * 60 * 1000;
/// Conversations of one sender that are remembered: each login of theirs begins some, and a hostile one begins many.
const MAX_CONVERSATIONS: usize = 64;

/// The conversations of one sender, the latest first.
#[derive(Default)]
pub struct Conversations {
    last: VecDeque<Conversation>,
    /// Of conversations that are no longer remembered: nothing new is that old.
    forgotten: Option<u64>,
}

struct Conversation {
    /// The sender's session, and the own session it is for (none for broadcasts).
    between: (Fingerprint, Option<Fingerprint>),
    sequence: u64,
    /// The latest of its messages, by the sender's clock.
    time: u64,
}

fn between(header: &Header) -> (Fingerprint, Option<Fingerprint>) {
    (header.session, header.scope.recipient().map(|recipient| recipient.session))
}

/// How a sequence number stands to those before it.
#[derive(Debug, PartialEq, Eq)]
enum Order {
    Next,
    /// So many before it have not arrived.
    Gap(u64),
    /// Not higher than one already shown.
    Replayed,
}

impl Conversations {
    /// README#check-sequence, README#sequence.
    fn order(&self, header: &Header) -> Order {
        let known = self.last.iter().find(|conversation| conversation.between == between(header));
        let expected = match known {
            Some(conversation) => conversation.sequence + 1,
            None if self.forgotten.is_some_and(|time| header.time <= time) => return Order::Replayed,
            // A private conversation begins at 1; a broadcast may have begun before we came.
            None if header.scope.recipient().is_some() => 1,
            None => header.sequence,
        };
        match header.sequence {
            sequence if sequence < expected || sequence == u64::MAX => Order::Replayed,
            sequence if sequence == expected => Order::Next,
            sequence => Order::Gap(sequence - expected),
        }
    }

    fn record(&mut self, header: &Header) {
        let former = self.last.iter().position(|conversation| conversation.between == between(header));
        let former = former.and_then(|at| self.last.remove(at)).map_or(0, |conversation| conversation.time);
        let (sequence, time) = (header.sequence, header.time.max(former));
        self.last.push_front(Conversation { between: between(header), sequence, time });
        if self.last.len() > MAX_CONVERSATIONS
            && let Some(oldest) = self.last.pop_back()
        {
            self.forgotten = self.forgotten.max(Some(oldest.time));
        }
    }
}

impl Session {
    /// Takes an envelope from the server.
    pub(super) fn receive(&mut self, message: EncryptedMessage) {
        let from = message.envelope.from.clone();
        if from == *self.me() || !self.peers.admits(&from) {
            return self.refuse(&from, "the server cannot have it from there");
        }
        let Some(envelope) = typed(message) else {
            return self.refuse(&from, "its fields contradict each other");
        };
        let named = envelope.body.header.identity;
        let peer = self.peers.get(&from);
        let known = peer.identity.as_ref().is_some_and(|key| key.fingerprint() == named);
        if known && peer.inbox.is_empty() {
            return self.open(&from, envelope);
        }
        // A stranger, a changed key, or a forgery: the server's word on the key decides which.
        if self.unread >= MAX_INBOX || peer.inbox.len() >= MAX_INBOX_OF_ONE {
            return self.refuse(&from, "too many wait for a key already");
        }
        self.unread += 1;
        let peer = self.peers.get(&from);
        peer.inbox.push_back(envelope);
        if peer.changed.is_none() {
            self.ask_for_keys([from]);
        }
    }

    /// Reads what has waited for the key of `name`, which is here now.
    pub(super) fn read_inbox(&mut self, name: &Username) {
        if self.peers.has_changed(name) {
            return;
        }
        for envelope in std::mem::take(&mut self.peers.get(name).inbox) {
            self.unread -= 1;
            self.open(name, envelope);
        }
    }

    /// The keys of `name` cannot be had: what waits for them is not believed.
    pub(super) fn drop_inbox(&mut self, name: &Username) {
        let dropped = std::mem::take(&mut self.peers.get(name).inbox).len();
        self.unread -= dropped;
        for _ in 0..dropped {
            self.refuse(name, "there is no key to check it with");
        }
    }

    /// README#no-answer.
    fn refuse(&mut self, from: &Username, why: &str) {
        if self.ignored.contains(from) {
            return;
        }
        self.problem(format!("refused a message that claims to come from {from}: {why}"));
    }

    /// README#check-identity.
    fn open(&mut self, from: &Username, envelope: Envelope) {
        let shown = match self.checked(from, &envelope) {
            Ok((header, gap, text)) => self.take_in(&header, gap, &text),
            Err(why) => Err(why),
        };
        if let Err(why) = shown {
            self.refuse(from, &why);
        }
    }

    /// All checks, cheapest first: signature, recipient, order, then RSA and AES.
    /// README#checks, README#check-recipient.
    fn checked(
        &mut self,
        from: &Username,
        envelope: &Envelope,
    ) -> Result<(Header, u64, Zeroizing<String>), String> {
        let Some(peer) = self.peers.find(from) else { return Err("nobody knows them".into()) };
        let Some(identity) = &peer.identity else { return Err("their key is not known".into()) };
        let verified = envelope.verify(identity).map_err(|error| error.to_string())?;
        let header = verified.header().clone();
        if let Some(recipient) = header.scope.recipient()
            && (recipient.name != *self.me() || !self.keys.holds(recipient.session))
        {
            return Err("it is for somebody else, or for an earlier session of yours".into());
        }
        let gap = match peer.conversations.order(&header) {
            Order::Next => 0,
            Order::Gap(missing) => missing,
            Order::Replayed => {
                return Err("it is a repetition, or it arrived after later ones".into());
            }
        };
        let wanted = header.scope.recipient().map(|recipient| recipient.session);
        let candidates =
            self.keys.all().filter(|key| wanted.is_none_or(|wanted| key.fingerprint() == wanted));
        let opened = candidates.map(|key: &SessionKey| verified.open(key)).find(Result::is_ok);
        let mut text = match opened {
            Some(Ok(text)) => text,
            _ => return Err("it cannot be decrypted".into()),
        };
        let text = String::from_utf8(std::mem::take(&mut *text)).map_err(|_| "it is not text".to_string())?;
        let text = Zeroizing::new(text);
        if matches!(header.kind, Kind::RoomOpened | Kind::RoomLeft) && !text.is_empty() {
            return Err("its fields contradict each other".into());
        }
        self.peers.get(from).conversations.record(&header);
        Ok((header, gap, text))
    }

    /// Tells a time that is off: once for a clock that is wrong, again for whatever is held back longer.
    fn tell_skew(&mut self, header: &Header) {
        let from = &header.sender;
        let skew = i64::try_from(i128::from(header.time) - i128::from(self.now)).unwrap_or(i64::MAX);
        let told = &mut self.peers.get(from).skew_told;
        if skew.abs_diff(0) <= MAX_SKEW_MS {
            *told = 0;
        } else if skew.abs_diff(*told) > MAX_SKEW_MS {
            *told = skew;
            let direction = if skew < 0 { "behind" } else { "ahead of" };
            let minutes = skew.abs_diff(0) / 60_000;
            self.problem(format!(
                "the next message from {from} is {minutes} minutes {direction} this machine's clock: a clock is \
                 wrong, or it was held back"
            ));
        }
    }

    /// README#check-text.
    fn take_in(&mut self, header: &Header, gap: u64, text: &str) -> Result<(), String> {
        let from = header.sender.clone();
        let unasked =
            matches!(header.kind, Kind::Message | Kind::RoomOpened | Kind::RoomLeft | Kind::FileOffer);
        if unasked && self.ignored.contains(&from) {
            return Ok(());
        }
        if gap > 0 {
            let (messages, are) = if gap == 1 { ("message", "is") } else { ("messages", "are") };
            self.problem(format!("{gap} {messages} from {from} {are} missing"));
        }
        self.tell_skew(header);
        let to = self.me().clone();
        match header.kind {
            Kind::RoomOpened if self.has_room(&from) => {
                self.notice_in_room(&from, format!("{from} has joined the room"));
            }
            Kind::RoomOpened => {
                self.notice(format!("{from} has opened a private room with you: /room {from} joins it"));
                self.alert(&from, Place::With(from.clone()));
            }
            Kind::RoomLeft => self.notice_in_room(&from, format!("{from} has left the room")),
            Kind::Message => {
                let source = match header.scope {
                    Scope::Broadcast => Source::Broadcast { from },
                    Scope::Private(_) => Source::Private { from, to },
                    Scope::Room(_) => Source::Room { from, to },
                };
                self.received(source, sanitise_lines(text));
            }
            _ => return self.file_word(header, text),
        }
        Ok(())
    }

    /// Shows what somebody else has said. `text` is sanitised.
    fn received(&mut self, source: Source, text: String) {
        let Some(from) = source.from().cloned() else { return };
        let place = source.place(&self.me);
        let mention = !mentions(&text, self.me.as_str()).is_empty();
        if mention || place != Place::Everyone {
            self.alert(&from, place.clone());
        }
        let trust = self.peers.trust(&from);
        self.said(Entry { mention, trust, ..Entry::new(self.now, source, place, text) });
    }

    fn notice_in_room(&mut self, with: &Username, text: String) {
        self.show(Source::Notice, Place::With(with.clone()), text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::envelope::Recipient;

    fn header(session: u8, to: Option<u8>, sequence: u64) -> Header {
        let recipient = |n| Recipient { name: "bob".parse().expect("name"), session: Fingerprint([n; 32]) };
        Header {
            kind: Kind::Message,
            scope: to.map_or(Scope::Broadcast, |n| Scope::Private(recipient(n))),
            sender: "alice".parse().expect("name"),
            identity: Fingerprint([9; 32]),
            session: Fingerprint([session; 32]),
            sequence,
            time: 0,
        }
    }

    /// README#check-sequence, README#sequence.
    #[test]
    fn every_number_is_taken_once_and_gaps_are_counted() {
        let mut seen = Conversations::default();
        let mut take = |header: Header| {
            let order = seen.order(&header);
            if order != Order::Replayed {
                seen.record(&header);
            }
            order
        };
        assert_eq!(take(header(1, None, 7)), Order::Next);
        assert_eq!(take(header(1, None, 7)), Order::Replayed);
        assert_eq!(take(header(1, None, 8)), Order::Next);
        assert_eq!(take(header(1, None, 11)), Order::Gap(2));
        assert_eq!(take(header(1, None, 10)), Order::Replayed);
        assert_eq!(take(header(1, Some(1), 2)), Order::Gap(1), "a private conversation begins at 1");
        assert_eq!(take(header(1, Some(2), 1)), Order::Next, "a new session of the recipient begins anew");
        assert_eq!(take(header(2, None, 1)), Order::Next, "a new session of the sender begins anew");
        assert_eq!(take(header(2, None, u64::MAX)), Order::Replayed, "nothing could follow it");
    }

    /// README#check-sequence.
    #[test]
    fn a_sender_with_many_sessions_costs_little_and_opens_no_way_to_replay() {
        let mut seen = Conversations::default();
        for session in 0..200 {
            let fresh = Header { time: 1000 + u64::from(session), ..header(session, None, 1) };
            assert_eq!(seen.order(&fresh), Order::Next);
            seen.record(&fresh);
        }
        assert_eq!(seen.last.len(), MAX_CONVERSATIONS);
        for session in 0..200 {
            let again = Header { time: 1000 + u64::from(session), ..header(session, None, 1) };
            assert_eq!(seen.order(&again), Order::Replayed, "{session}");
        }
    }
}
