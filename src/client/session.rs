//! The client's state after login: events in, effects out. It has no network and no clock, and touches the disk only
//! through [`store`](super::store).
//!
//! Invariant: each part owns its state, and a method sees only the parts that it gets; nothing depends on the front
//! end. This file handles what concerns several parts, and `commands` handles typed lines.

mod account;
mod commands;
mod connection;
mod contacts;
mod cx;
mod end;
mod event;
pub mod files;
mod incoming;
mod leaving;
mod mailbox;
mod notices;
mod outgoing;
mod presence;
mod received;
mod record;
mod replay;
mod seal_key;
mod status;
mod talk;

use super::audience::Audience;
use super::store::history::{History, Message};
use super::store::mailbox::MailboxFile;
use super::store::trust::{Ignored, TrustStore};
use super::text::shortened;
use crate::crypto::envelope::Kind;
use crate::crypto::keys::{IdentityKey, SessionKey};
use crate::crypto::public::{Fingerprint, SessionPublicKey};
use crate::name::Username;
use crate::protocol::{
    ClientMessage, DecodeError, ErrorCode, Failure, Keys, Presence, ServerMessage, UserKeys,
};
use account::{Account, PasswordChange};
use connection::Connection;
use contacts::{Contacts, Learned};
use cx::Cx;
use files::Files;
use incoming::Incoming;
use leaving::Leaving;
use mailbox::Mailbox;
use outgoing::{Missed, Outbox, Outcome, Outgoing};
use presence::OnlineUsers;
use record::Record;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use talk::Talk;
use zeroize::Zeroizing;

pub use connection::last_word;
pub use event::{Action, Display, Effect, Event, Exit, NewKey, NotText};
pub use leaving::FAREWELL;
pub use talk::Destination;

/// The notice of a changed password.
const PASSWORD_CHANGED: &str = "your password is changed, here and on the server; copies of your key file on \
    other machines still have the old password: copy the file again";

/// See the module.
pub struct Session {
    cx: Cx,
    contacts: Contacts,
    outbox: Outbox,
    incoming: Incoming,
    mailbox: Mailbox,
    online: OnlineUsers,
    talk: Talk,
    record: Record,
    files: Files,
    connection: Connection,
    leaving: Leaving,
}

impl Session {
    /// A session after a login.
    pub fn new(
        me: Username,
        identity: impl Into<Arc<IdentityKey>>,
        key: SessionKey,
        (known, ignored): (TrustStore, Ignored),
        now: Instant,
    ) -> Session {
        Session {
            cx: Cx::new(me, Account::new(identity.into(), key, now), ignored, now),
            contacts: Contacts::new(known),
            outbox: Outbox::default(),
            incoming: Incoming::default(),
            mailbox: Mailbox::default(),
            online: OnlineUsers::default(),
            talk: Talk::default(),
            record: Record::default(),
            files: Files::new(now),
            connection: Connection::default(),
            leaving: Leaving::default(),
        }
    }

    /// Sets the server's key, which each broadcast names. PROTOCOL#broadcast-server.
    pub fn with_server_key(mut self, server: Option<Fingerprint>) -> Session {
        self.cx.account.server = server;
        self
    }

    /// Notes that the session key of a login was certified at `created`, and that the server has accepted certificates
    /// up to `newest` before; both in milliseconds since 1970.
    pub fn certified(mut self, created: u64, newest: u64) -> Session {
        self.certify(created, newest);
        self
    }

    /// Takes the history file, and the messages of `earlier` sessions that were read from it; shows the `notices` of
    /// the start. `now_ms` is in milliseconds since 1970.
    pub fn keep(&mut self, kept: History, earlier: VecDeque<Message>, notices: Vec<String>, now_ms: u64) {
        self.cx.now = now_ms;
        notices.into_iter().for_each(|text| self.cx.problem(text));
        self.contacts.tick(&mut self.cx);
        if let Some(text) = kept.notice() {
            self.cx.notice(text);
        }
        self.record = Record::new(kept, earlier, &self.cx.me);
    }

    /// Takes the mailbox file after it was loaded; without a usable one, the session has no mailbox keys.
    pub fn with_mailbox(mut self, mailbox: MailboxFile) -> Session {
        self.cx.account.mailbox = Some(mailbox).filter(MailboxFile::is_usable);
        self
    }

    /// Handles one event. `now_ms` is the wall clock, milliseconds since 1970, `now` the monotonic one.
    pub fn handle(&mut self, event: Event, now_ms: u64, now: Instant) -> Vec<Effect> {
        if self.cx.is_over() {
            return self.handle_after_the_end(event);
        }
        let before = std::mem::replace(&mut self.cx.instant, now);
        self.cx.now = now_ms;
        let cx = &mut self.cx;
        cx.tell_counted(false);
        self.incoming.tick(cx);
        self.outbox.tick(cx);
        self.mailbox.begin(cx);
        self.online.report(cx, matches!(event, Event::Line(_) | Event::Resend(_)));
        match event {
            Event::Line(line) => self.line(&line),
            Event::Switch(partners) => self.go_to(partners),
            Event::Resend(number) => {
                self.outbox.send_again(cx, &mut self.contacts, &self.online, number);
            }
            Event::Server(message) => self.server(message),
            // PROTOCOL#later-versions.
            Event::Unreadable(DecodeError::UnknownType) => {
                cx.tell_later("the server sent a message that this version does not know");
            }
            Event::Unreadable(error) => {
                cx.server_problem(format!("the server sent an invalid message: {error}"));
            }
            Event::Silent(since) => self.connection.silent(cx, since),
            Event::Lost(why) => self.connection.lost(cx, &why),
            Event::Retry(then, refused) => self.connection.retrying(cx, then, refused),
            Event::Resumed(after) => self.connection.restored(cx, after, ""),
            Event::LoggedIn(key, after) => self.logged_in(*key, after),
            Event::Closed(why) => {
                cx.problem(format!("connection lost: {why}"));
                self.give_up();
            }
            Event::NotText(line) => self.not_text(line),
            Event::EndOfInput => self.leaving.end_of_input(cx),
            Event::LeaveNow => self.leave_now(),
            Event::NewKey(key) => {
                let fingerprint = key.fingerprint();
                let certificate = cx.account.announce(&cx.me, *key, (now_ms, now));
                self.contacts.remember_own(cx, certificate.created, fingerprint);
                cx.send(ClientMessage::Renew(Box::new(certificate)));
            }
            Event::NewMailboxKey(key) => self.mailbox.made(cx, *key),
            Event::MailShown => self.mailbox.shown(cx),
            Event::Transfer(number, step) => self.files.step(cx, number, step),
            Event::PasswordChanged(Ok(())) => {
                cx.account.password = PasswordChange::None;
                cx.notice(PASSWORD_CHANGED);
            }
            Event::PasswordChanged(Err(error)) => {
                cx.account.password = PasswordChange::Failed;
                cx.problem(error.to_string());
            }
            Event::Tick => {}
        }
        // With every event, because a busy room may leave no time for ticks.
        if self.cx.account.tick(now) {
            self.cx.act(Action::MakeSessionKey);
        }
        self.files.tick(&mut self.cx);
        self.settle();
        let cx = &mut self.cx;
        let mail = self.mailbox.advance(cx, &mut self.contacts, &mut self.incoming, &self.online);
        self.show_mail(&mail);
        self.tell_absent();
        self.contacts.ask(&mut self.cx);
        let is_due = !self.online.is_complete()
            || self.contacts.is_asking()
            || self.outbox.in_flight()
            || self.mailbox.is_asking();
        self.connection.owes(&self.cx, is_due);
        self.contacts.tick(&mut self.cx);
        self.record.take_said(&mut self.cx);
        self.leave_if_done(before);
        if self.cx.is_over() {
            self.close();
        }
        self.cx.take_effects()
    }

    /// Passes outcomes of sending and messages of files on to other parts, until none are left.
    fn settle(&mut self) {
        loop {
            let cx = &mut self.cx;
            match self.outbox.next_outcome() {
                Some(Outcome::Opened(name)) => self.talk.opened(cx, &name, self.contacts.trust(&name)),
                Some(Outcome::NotOpened(name)) => {
                    self.talk.close(&name.into());
                }
                Some(Outcome::FileMessage { transfer, kind, missed }) => {
                    self.files.settled(cx, transfer, kind, missed);
                }
                None => match self.files.next_message() {
                    Some(message) => self.dispatch(message),
                    None => return,
                },
            }
        }
    }

    fn send(&mut self, kind: Kind, audience: Audience, text: String) {
        self.dispatch(Outgoing::new(kind, audience, Zeroizing::new(text), self.cx.now));
    }

    fn dispatch(&mut self, message: Outgoing) {
        self.outbox.send(&mut self.cx, &mut self.contacts, &self.online, message);
    }

    // ---- messages from the server

    fn server(&mut self, message: ServerMessage) {
        let cx = &mut self.cx;
        match message {
            ServerMessage::Session(session) => {
                if cx.account.renewed(session.newest, cx.instant) {
                    self.outbox.restart_numbers();
                } else {
                    cx.out_of_place();
                }
            }
            ServerMessage::Presence(presence) => self.presence(presence),
            ServerMessage::Keys(keys) => self.keys(&keys),
            ServerMessage::EncryptedMessage(message) => self.receive(*message),
            ServerMessage::Sent(sent) => {
                self.connection.answered();
                self.outbox.sent(cx, &mut self.contacts, &sent);
            }
            ServerMessage::Lost(lost) => self.outbox.lost(cx, &mut self.contacts, &lost),
            ServerMessage::Mail(mail) => {
                self.connection.answered();
                self.mailbox.answered(cx, mail);
            }
            ServerMessage::MailboxSet => {
                self.connection.answered();
                self.mailbox.set(cx);
            }
            ServerMessage::Error(failure) => self.failure(&failure),
            // The first five never come in a session; the link and the transfers handle the others.
            ServerMessage::Registered
            | ServerMessage::PasswordChanged
            | ServerMessage::Challenge(_)
            | ServerMessage::ResumeChallenge(_)
            | ServerMessage::Resumed(_)
            | ServerMessage::Ack(_)
            | ServerMessage::Ping
            | ServerMessage::Pong
            | ServerMessage::Grant(_)
            | ServerMessage::Refused(_) => cx.out_of_place(),
        }
    }

    fn presence(&mut self, presence: Presence) {
        for name in &presence.joined {
            self.contacts.forget_key(name, |key| key.is_mailbox);
        }
        let (left, ends_list) = self.online.take(&mut self.cx, presence);
        for name in &left {
            self.contacts.forget_key(name, |key| !key.is_mailbox);
            self.files.left(&mut self.cx, name);
        }
        if ends_list {
            self.tell_users();
        }
        self.online.report(&mut self.cx, false);
        left.iter().for_each(|name| self.talk.close_and_tell(&mut self.cx, name));
    }

    fn failure(&mut self, failure: &Failure) {
        let text = shortened(&failure.message);
        if failure.is(ErrorCode::BadKey) {
            self.cx.account.learn(failure.newest.unwrap_or(0));
        }
        if let Some(over) = last_word(failure) {
            self.cx.problem(format!("{over}: this session is over"));
            self.give_up();
        } else if let Some(id) = failure.id {
            self.connection.answered();
            self.outbox.refused(&mut self.cx, &mut self.contacts, id, &text);
        } else if self.mailbox.refused(&mut self.cx, failure) {
            self.connection.answered();
        } else {
            self.cx.server_problem(format!("the server says: {text}"));
        }
    }

    // ---- keys of others

    /// Handles the answer to the keys request: it decides about every user in the request.
    fn keys(&mut self, keys: &Keys) {
        let Some(mut asked) = self.contacts.answered(keys) else {
            return self.cx.server_problem("the server sent keys that were not requested");
        };
        self.connection.answered();
        let mut here = Vec::new();
        for person in &keys.keys {
            if asked.remove(&person.name) {
                here.push(person.name.clone());
                self.take_keys(person);
            }
        }
        // All at once, so that a broadcast needs one request.
        self.outbox.send_backlogs(&mut self.cx, &mut self.contacts, here);
        for name in asked {
            self.no_keys(&name, Missed::NoAccount);
        }
    }

    fn take_keys(&mut self, person: &UserKeys) {
        let name = &person.name;
        let missed = match self.contacts.take(&mut self.cx, person) {
            Learned::Refused(_) => return self.no_keys(name, Missed::NoKey),
            Learned::Changed => Some(Missed::KeyChanged),
            Learned::Outdated => Some(Missed::NoKey),
            Learned::Known | Learned::Reverted => None,
        };
        let has_key = self.contacts.find(name).is_some_and(|contact| contact.key.is_some());
        if let Some(why) = missed.or(if has_key { None } else { Some(Missed::Offline) }) {
            self.outbox.give_up(&mut self.cx, &self.contacts, name, why);
        }
        let key = self.session_key(name);
        self.read_inbox(name);
        self.files.keys(&mut self.cx, name, key.as_ref());
        self.contacts.tell_awaited(&mut self.cx, name);
    }

    /// Handles that `name` has no usable keys.
    fn no_keys(&mut self, name: &Username, why: Missed) {
        self.outbox.give_up(&mut self.cx, &self.contacts, name, why);
        self.files.keys(&mut self.cx, name, None);
        self.incoming.drop_inbox(&mut self.cx, name);
        let why = why.because(&self.contacts, name);
        self.contacts.no_keys(&mut self.cx, name, why);
    }

    /// The session key of `name`; `None` if it is not known, or their identity key needs a decision.
    fn session_key(&self, name: &Username) -> Option<SessionPublicKey> {
        let contact = self.contacts.find(name).filter(|contact| !contact.has_changed());
        contact.and_then(|contact| contact.session_key().cloned())
    }

    // ---- a new session, and the end

    /// Begins a new session. The server no longer knows the former one: unacknowledged messages are reported, and
    /// nothing is sent again automatically.
    fn logged_in(&mut self, new: NewKey, after: Duration) {
        let cx = &mut self.cx;
        cx.act(Action::Begin);
        cx.account.restart(new.key, cx.instant);
        self.certify(new.created, new.newest);
        let cx = &mut self.cx;
        let lost = self.connection.lost_since();
        self.connection.restored(cx, after, ", in a new session: the old one has ended");
        self.files.interrupt(cx, |_| true, "your old session has ended");
        self.outbox.restart(cx, &self.contacts, lost);
        self.talk.close_all(cx);
        self.online = OnlineUsers::default();
        self.contacts.restart(self.incoming.waiting());
        let mail = self.mailbox.restart(&mut self.cx);
        self.show_mail(&mail);
        self.mailbox.begin(&mut self.cx);
    }

    fn certify(&mut self, created: u64, newest: u64) {
        let cx = &mut self.cx;
        cx.account.certified((created, newest), (cx.now, cx.instant));
        self.contacts.remember_own(cx, created, cx.account.current().fingerprint());
    }
}

#[cfg(test)]
mod tests;
