//! What others have sent: checked in the specification's order, then shown.
//!
//! Invariant: nothing of an envelope is shown, counted or answered before its signature by a known key was
//! checked; each envelope is shown once; where it belongs is what its sender signed. No
//! answer to the server depends on what decryption yields. Specification: PROTOCOL#receiving.

use super::Session;
use super::peers::{MAX_INBOX, MAX_INBOX_OF_ONE};
use super::replay::{Between, Order, between};
use crate::client::audience::Audience;
use crate::client::entry::{Entry, Place, Source};
use crate::client::text::{mentions, sanitise_lines};
use crate::crypto::envelope::{Header, Kind, Scope};
use crate::crypto::keys::SessionKey;
use crate::name::Username;
use crate::protocol::EncryptedMessage;
use zeroize::Zeroizing;

/// A sender's clock that differs by more, in milliseconds, is told: no clock that is set by itself does.
const MAX_SKEW_MS: u64 = 5 * 60 * 1000;
/// More missing messages than this are not counted: at the server's rate they would take a day.
const MAX_MISSING: u64 = 10_000_000;
/// Times that a partner who opens and leaves a room is reported: what is typed there depends on it.
const MAX_ROOM_NOTICES: u32 = 4;

impl Session {
    /// Takes an envelope from the server.
    pub(super) fn receive(&mut self, message: EncryptedMessage) {
        let header = &message.envelope.header;
        let (from, named, claimed) = (header.from.clone(), header.identity, claimed(header));
        if from == *self.me() || !self.peers.admits(&from) {
            return self.tell_refused(&from, "its sender is invalid");
        }
        let peer = self.peers.get(&from);
        let known = peer.identity.as_ref().is_some_and(|key| key.fingerprint() == named);
        if known && peer.inbox.is_empty() {
            return self.open(&from, &message);
        }
        // A stranger, a changed key, or a forgery: the server's word on the key decides which.
        if self.unread >= MAX_INBOX || peer.inbox.len() >= MAX_INBOX_OF_ONE {
            return self.refuse(&from, claimed, "too many messages are waiting for a key");
        }
        self.unread += 1;
        let peer = self.peers.get(&from);
        peer.inbox.push_back(message);
        if peer.changed.is_none() {
            self.ask_for_keys([from]);
        }
    }

    /// Reads what has waited for the key of `name`, which is here now.
    pub(super) fn read_inbox(&mut self, name: &Username) {
        if self.peers.has_changed(name) {
            return;
        }
        for message in std::mem::take(&mut self.peers.get(name).inbox) {
            self.unread -= 1;
            self.open(name, &message);
        }
    }

    /// The keys of `name` cannot be had: what waits for them is not believed.
    pub(super) fn drop_inbox(&mut self, name: &Username) {
        for message in std::mem::take(&mut self.peers.get(name).inbox) {
            self.unread -= 1;
            self.refuse(name, claimed(&message.envelope.header), "there is no key to verify it");
        }
    }

    /// What is refused is reported as that, and not as missing later. PROTOCOL#no-answer, PROTOCOL#check-sequence.
    fn refuse(&mut self, from: &Username, (place, sequence): (Between, u64), why: &str) {
        let peer = self.peers.get(from);
        let waiting = peer.inbox.iter().rev().map(|message| claimed(&message.envelope.header));
        let waiting = waiting.into_iter().find(|(of, _)| *of == place).map(|(_, sequence)| sequence);
        peer.replay.refuse(place, sequence, waiting);
        self.tell_refused(from, why);
    }

    fn tell_refused(&mut self, from: &Username, why: &str) {
        self.problem_about(from, why, format!("refused a message that claims to come from {from}: {why}"));
    }

    /// PROTOCOL#check-identity.
    fn open(&mut self, from: &Username, message: &EncryptedMessage) {
        let shown = match self.checked(from, message) {
            Ok((header, gap, text, id)) => self.take_in(&header, (gap, id), text),
            Err(why) => Err(why),
        };
        if let Err(why) = shown {
            self.refuse(from, claimed(&message.envelope.header), &why);
        }
    }

    /// All checks, cheapest first: signature, recipient, order, then RSA and AES.
    /// PROTOCOL#checks, PROTOCOL#check-recipient.
    fn checked(
        &mut self,
        from: &Username,
        message: &EncryptedMessage,
    ) -> Result<(Header, u64, Zeroizing<String>, [u8; 32]), String> {
        let Some(peer) = self.peers.find(from) else { return Err("the sender is unknown".into()) };
        let Some(identity) = &peer.identity else { return Err("the sender's key is unknown".into()) };
        let verified = message.envelope.verify(identity).map_err(|error| error.to_string())?;
        let header = verified.header().clone();
        match (&header.recipient, header.recipient_key) {
            (Some(name), Some(key)) if name == self.me() && self.keys.holds(key) => {}
            (Some(_), _) => return Err("it is for another user, or for an earlier session of yours".into()),
            // PROTOCOL#broadcast-server.
            (None, key) if key == self.server => {}
            (None, _) => return Err("it is for another server".into()),
        }
        let gap = match peer.replay.order(&header, self.now) {
            Order::Next => 0,
            Order::Gap(missing) => missing,
            Order::Replayed => {
                return Err("it is a duplicate, or it arrived out of order".into());
            }
        };
        // PROTOCOL#key-id.
        let id = message.key.id();
        let is_meant = |key: &&SessionKey| {
            let is_signed = header.recipient.is_none() || header.recipient_key == Some(key.fingerprint());
            is_signed && key.fingerprint().key_id() == id
        };
        let opened = self.keys.all().find(is_meant).map(|key| verified.open(key, &message.key.bytes()));
        let mut text = match opened {
            Some(Ok(text)) => text,
            _ => return Err("it cannot be decrypted".into()),
        };
        let text = String::from_utf8(std::mem::take(&mut *text)).map_err(|_| "it is not text".to_string())?;
        let text = Zeroizing::new(text);
        if matches!(header.kind, Kind::RoomOpened | Kind::RoomLeft) && !text.is_empty() {
            return Err("its fields contradict each other".into());
        }
        let id = verified.id();
        self.peers.get(from).replay.record(&header, self.now);
        Ok((header, gap, text, id))
    }

    /// Reports a time that is off.
    fn tell_skew(&mut self, header: &Header) {
        let (from, off) = (&header.from, header.time.abs_diff(self.now));
        if off > MAX_SKEW_MS {
            // A delayed message has an old date, never a future one.
            let (direction, delayed) = match header.time < self.now {
                true => ("behind", ", or the message was delayed"),
                false => ("ahead of", ""),
            };
            let text = format!(
                "a message from {from} is dated {} {direction} this machine's clock: one of the clocks is wrong{delayed}",
                span(off)
            );
            self.problem_about(from, direction, text);
        }
    }

    fn tell_gap(&mut self, from: &Username, missing: u64) {
        let total = &mut self.peers.get(from).missing;
        let in_total = if *total > 0 { " in total" } else { "" };
        *total = total.saturating_add(missing);
        let (messages, are) = if *total == 1 { ("message", "is") } else { ("messages", "are") };
        let count = if *total > MAX_MISSING { format!("more than {MAX_MISSING}") } else { total.to_string() };
        self.problem_about(
            from,
            "missing",
            format!("{count} {messages} from {from} {are} missing{in_total}"),
        );
    }

    /// PROTOCOL#check-text.
    fn take_in(
        &mut self,
        header: &Header,
        (gap, id): (u64, [u8; 32]),
        mut text: Zeroizing<String>,
    ) -> Result<(), String> {
        let from = header.from.clone();
        let later = matches!(header.kind, Kind::Later(_)) || matches!(header.scope, Scope::Later(_));
        let about_files =
            matches!(header.kind, Kind::FileAccept | Kind::FileReject | Kind::FileCancel | Kind::FileDone);
        if (later || !about_files) && self.ignored.contains(&from) {
            return Ok(());
        }
        if gap > 0 {
            self.tell_gap(&from, gap);
        }
        // PROTOCOL#check-again.
        if !self.peers.is_new(&from, id) {
            return Ok(());
        }
        self.tell_skew(header);
        if header.kind == Kind::Message && self.may_be_repeated(header) {
            text.push_str(" (sent again)");
        }
        // PROTOCOL#later-versions.
        if later {
            self.tell_later(format!("{from} has sent something that this version does not know"));
            return Ok(());
        }
        match header.kind {
            Kind::RoomOpened if self.has_room(&from) => {
                self.notice_in_room(&from, format!("{from} has joined the room"));
            }
            Kind::RoomOpened => {
                let text = format!("{from} has opened a private room with you: /room {from} joins it");
                self.tell_about(&from, "room", MAX_ROOM_NOTICES, (Source::Notice, Place::Here, text));
                self.alert(&from, Place::With(from.clone()));
            }
            Kind::RoomLeft => self.notice_in_room(&from, format!("{from} has left the room")),
            Kind::Message => {
                let to = Audience::new(header.scope, header.recipient.clone());
                let to = to.ok_or("its fields contradict each other")?;
                self.received(Source::User { from, to }, sanitise_lines(&text));
            }
            _ => return self.file_word(header, &text),
        }
        Ok(())
    }

    /// Whether a message that was sealed before may have been shown by an earlier run, or so long ago that it is forgotten.
    fn may_be_repeated(&self, header: &Header) -> bool {
        let has_forgotten = self.peers.find(&header.from).is_none_or(|peer| peer.has_forgotten);
        let was_here = self.began.is_some_and(|began| began.saturating_add(MAX_SKEW_MS) < header.time);
        header.again.is_some() && (has_forgotten || !was_here)
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

    /// A room ends with the session of either of the two.
    pub(super) fn tell_room_closed(&mut self, with: &Username) {
        let text = format!(
            "the room with {with} is closed: what you type here is sent as private messages; /room {with} opens it again"
        );
        self.notice_in_room(with, text);
    }

    fn notice_in_room(&mut self, with: &Username, text: String) {
        let notice = (Source::Notice, Place::With(with.clone()), text);
        self.tell_about(with, "room", MAX_ROOM_NOTICES, notice);
    }
}

fn claimed(header: &Header) -> (Between, u64) {
    (between(header), header.sequence)
}

/// Milliseconds as people say them.
fn span(ms: u64) -> String {
    match ms / 60_000 {
        minutes @ 0..120 => format!("{minutes} minutes"),
        minutes @ 120..2880 => format!("{} hours", minutes / 60),
        minutes @ 2880..1_440_000 => format!("{} days", minutes / 1440),
        _ => "more than 1000 days".into(),
    }
}
