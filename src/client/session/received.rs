//! Envelopes from other users that have passed all checks: shown, or passed to the part that handles their kind.
//!
//! Invariant: a message goes to the view that its sender signed.

use super::Session;
use super::event::Display;
use super::incoming::{Arrived, Received};
use crate::client::entry::{Entry, Place, Source};
use crate::client::text::{mentions, sanitise_lines};
use crate::crypto::envelope::Kind;
use crate::name::Username;
use crate::protocol::EncryptedMessage;

impl Session {
    /// Handles an envelope from the server.
    pub(super) fn receive(&mut self, message: EncryptedMessage) {
        match self.incoming.arrive(&mut self.cx, &mut self.contacts, message) {
            Arrived::Ready(message) => self.open(&message),
            Arrived::Waits(from) if !self.contacts.has_changed(&from) => self.contacts.ask_for([from]),
            Arrived::Waits(_) | Arrived::Refused => {}
        }
    }

    /// Opens the envelopes that have waited for the key of `name`, which has arrived.
    pub(super) fn read_inbox(&mut self, name: &Username) {
        if !self.contacts.has_changed(name) {
            self.incoming.take_inbox(name).iter().for_each(|message| self.open(message));
        }
    }

    fn open(&mut self, message: &EncryptedMessage) {
        match self.incoming.open(&mut self.cx, &self.contacts, &self.online, message) {
            // PROTOCOL#mail-refusals.
            Some(received) if received.is_mail => self.mailbox.keep(None, received),
            Some(received) => {
                if let Err(why) = self.deliver(&received) {
                    self.incoming.refuse(&mut self.cx, &received.header, &why);
                }
            }
            None => {}
        }
    }

    /// Passes an envelope to the part that handles its kind.
    fn deliver(&mut self, received: &Received) -> Result<(), String> {
        let Received { header, text, .. } = received;
        let (cx, from) = (&mut self.cx, &header.from);
        match header.kind {
            Kind::RoomOpened => self.talk.partner_opened(cx, from),
            Kind::RoomLeft => self.talk.partner_left(cx, from),
            Kind::Message => {
                let entry = self.entry(received, self.cx.now);
                self.alert(&entry);
                self.cx.display(Display::Entry(entry));
            }
            Kind::FileOffer => {
                self.files.offered(cx, from, text)?;
                self.talk.alert(cx, from, Place::Here);
            }
            Kind::FileAccept => {
                if let Some(awaited) = self.files.accepted(cx, from, text)? {
                    match self.session_key(from).filter(|key| key.fingerprint() == awaited) {
                        Some(key) => self.files.keys(&mut self.cx, from, Some(&key)),
                        None => self.contacts.ask_for([from.clone()]),
                    }
                }
            }
            _ => self.files.closed(cx, header, text)?,
        }
        Ok(())
    }

    /// The entry that shows another user's message, with this time.
    fn entry(&self, Received { header, to, text, .. }: &Received, time: u64) -> Entry {
        let (me, text) = (&self.cx.me, sanitise_lines(text));
        let source = Source::User { from: header.from.clone(), to: to.clone() };
        let (place, mention) = (source.place(me), !mentions(&text, me.as_str()).is_empty());
        Entry { mention, trust: self.contacts.trust(&header.from), ..Entry::new(time, source, place, text) }
    }

    /// Shows messages that waited while the user was away, with their senders' times.
    pub(super) fn show_mail(&mut self, mail: &[Received]) {
        let entry = |received: &Received| self.entry(received, received.header.time.min(self.cx.now));
        let entries: Vec<Entry> = mail.iter().map(entry).collect();
        if let Some(last) = entries.last() {
            self.alert(last);
            self.cx.display(Display::Mail(entries));
        }
    }

    fn alert(&mut self, entry: &Entry) {
        if let Some(from) = entry.source.from()
            && (entry.mention || entry.place != Place::Everyone)
        {
            self.talk.alert(&mut self.cx, from, entry.place.clone());
        }
    }
}
