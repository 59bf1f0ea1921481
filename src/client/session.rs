//! The client's state after login: events in, effects out, no network and no clock of its own; of the disk only what it
//! remembers ([`trust`](super::trust), [`history`](super::history)).
//!
//! Invariant: one owner of all state; the same events give the same effects whatever front end shows
//! them. Rooms below it: `commands` (what is typed), `presence`, `peers` (keys of others), `own_keys`, `outgoing` (with what
//! became of it), [`incoming`], [`files`], `connection` (lost, had again,
//! the end).

mod commands;
mod connection;
pub mod files;
pub mod incoming;
mod notices;
mod outgoing;
mod own_keys;
mod peers;
mod presence;
mod record;
mod replay;

use super::account::NewKey;
use super::entry::{Entry, Place, Source};
use super::history::History;
use super::password::ChangeError;
use super::transfer::{Job, Step};
use super::trust::{Ignored, KnownCertificates, KnownUsers};
use crate::crypto::keys::{IdentityKey, SessionKey};
use crate::crypto::public::Fingerprint;
use crate::name::Username;
use crate::protocol::{ClientMessage, DecodeError, ErrorCode, Failure, ServerMessage};
use files::{Files, shortened};
use notices::Notices;
use outgoing::Outbox;
use own_keys::OwnKeys;
use peers::Peers;
use presence::Changes;
use record::Record;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use connection::Line;
pub use connection::{FAREWELL, seconds};

/// Messages under way beyond which no further line is taken: a round trip's worth, and few to tell of if they fail.
const MAX_UNSETTLED: usize = 64;
/// Where the old password still is.
const PASSWORD_CHANGED: &str = "your password is changed, here and on the server; copies of your key file on \
    other machines still have the old password: copy the file again";
/// More people than this coming or going at once are told as a number: names would fill the screen.
const MAX_NAMED: usize = 5;

/// What happens to a session.
pub enum Event {
    /// A line was typed.
    Line(String),
    /// The person goes to the conversation with somebody, or with everyone.
    Switch(Option<Username>),
    /// The message of this number, which has failed, is to be sent again.
    Again(u64),
    /// The server said something.
    Server(ServerMessage),
    /// The server said something that is no message.
    Unreadable(DecodeError),
    /// The server has been silent since then, and does not answer a `ping`; `None` when it is heard again.
    Silent(Option<Instant>),
    /// The connection broke: why. It is being had again.
    Lost(String),
    /// The next attempt is made then; why the one before was refused, if somebody was reached and said so.
    Retry(Instant, Option<String>),
    /// The session goes on over a new connection, after this time.
    Resumed(Duration),
    /// The former session is over, and a new one has begun with this key, after this time.
    LoggedIn(Box<NewKey>, Duration),
    /// The connection has ended for good.
    Closed(String),
    /// No more lines will be typed.
    EndOfInput,
    /// A new session key was made, as [`Effect::MakeSessionKey`] asked.
    NewKey(Box<SessionKey>),
    /// A file's thread has come one step further.
    Transfer(u32, Step),
    /// What became of [`Effect::ChangePassword`].
    PasswordChanged(Result<(), ChangeError>),
    /// Time has passed.
    Tick,
}

/// What the front end has to do.
pub enum Effect {
    /// To the server.
    Send(ClientMessage),
    /// What is sent from now on belongs to the new session.
    Begin,
    /// A new entry, or what has become of the own message with the same number.
    Show(Entry),
    /// This person is talking to the one at the keyboard, here.
    Alert(Username, Place),
    /// What is typed goes there now.
    Enter(Option<Username>),
    /// The conversation is over.
    Leave(Username),
    /// The person goes to the view with this number, from 1.
    View(usize),
    /// The mouse is taken, or left to the terminal.
    Mouse,
    /// The view that is shown is emptied.
    Clear,
    /// Nothing that was said stays on the screen, in no view.
    Forget,
    /// It takes up to 300 ms, so not here; [`Event::NewKey`] brings it.
    MakeSessionKey,
    /// The person wants a new password: from this file, or to be asked for.
    ChangePassword(Option<String>),
    /// Something is to be done for the transfer of this number.
    Transfer(u32, Job),
    /// What the full screen shows elsewhere: how far a file is, that the server is silent, what is waited for at the end.
    Progress(String),
    /// The end, with the exit status.
    Quit(u8),
}

/// Why the session is over for good, if the server has ended it: there is nothing to come back to.
pub fn last_word(failure: &Failure) -> Option<&'static str> {
    if failure.is(ErrorCode::SignedInElsewhere) {
        Some("you have logged in elsewhere")
    } else if failure.is(ErrorCode::AccountRemoved) {
        Some("the operator of the server has removed this account")
    } else {
        None
    }
}

/// See the module.
pub struct Session {
    me: Username,
    /// When this run of the client began, milliseconds since 1970; `None` before the first event.
    began: Option<u64>,
    /// Milliseconds since 1970, as of the event under way.
    pub(super) now: u64,
    /// The monotonic clock, as of the same event.
    pub(super) instant: Instant,
    pub(super) identity: Arc<IdentityKey>,
    /// The server's key: `None` without TLS.
    server: Option<Fingerprint>,
    pub(super) keys: OwnKeys,
    pub(super) peers: Peers,
    pub(super) outbox: Outbox,
    pub(super) files: Files,
    /// Envelopes that wait for keys.
    pub(super) unread: usize,
    pub(super) effects: Vec<Effect>,
    online: BTreeSet<Username>,
    /// Users that came online or left and are not reported yet.
    changes: Changes,
    notices: Notices,
    /// The list of online users is complete.
    ready: bool,
    /// The list is still arriving.
    partial: bool,
    /// Whom one is talking to; `None` is everyone.
    partner: Option<Username>,
    /// Online users who were told of a room with them.
    rooms: BTreeSet<Username>,
    history: Record,
    /// Where they are kept.
    kept: Option<History>,
    pub(super) ignored: Ignored,
    /// The terminal does not ring.
    quiet: bool,
    /// Safety numbers that wait for a key.
    verifying: BTreeSet<Username>,
    /// Since when the server owes an answer, and has given none.
    owed: Option<Instant>,
    /// When a file last came further.
    pub(super) moved: Instant,
    /// People whose keys are to be asked for: one request at a time, or the answers would be
    /// more than the server lets wait for one client.
    to_ask: VecDeque<Username>,
    /// The request under way.
    asking: Option<BTreeSet<Username>>,
    line: Line,
    /// What an attempt to come back was refused for last, since the connection broke.
    refused: Option<String>,
    ending: Option<Instant>,
    /// Files under way are waited for at the end.
    patient: bool,
    /// The password is being changed.
    changing: bool,
    /// The last attempt at that has failed.
    unchanged: bool,
    /// A session ended before the server had acknowledged all messages.
    gave_up: bool,
}

impl Session {
    /// Begins after a login.
    pub fn new(
        me: Username,
        identity: impl Into<Arc<IdentityKey>>,
        key: SessionKey,
        (known, certificates, ignored): (KnownUsers, KnownCertificates, Ignored),
        now: Instant,
    ) -> Session {
        Session {
            me,
            began: None,
            now: 0,
            instant: now,
            identity: identity.into(),
            server: None,
            keys: OwnKeys::new(key, now),
            peers: Peers::new(known, certificates),
            outbox: Outbox::default(),
            files: Files::default(),
            unread: 0,
            effects: Vec::new(),
            online: BTreeSet::new(),
            changes: Changes::default(),
            notices: Notices::default(),
            ready: false,
            partial: false,
            partner: None,
            rooms: BTreeSet::new(),
            history: Record::default(),
            kept: None,
            ignored,
            quiet: false,
            verifying: BTreeSet::new(),
            owed: None,
            moved: now,
            to_ask: VecDeque::new(),
            asking: None,
            line: Line::Online,
            refused: None,
            ending: None,
            patient: false,
            changing: false,
            unchanged: false,
            gave_up: false,
        }
    }

    /// The session is on the server of this key. PROTOCOL#broadcast-server.
    pub fn on(mut self, server: Option<Fingerprint>) -> Session {
        self.server = server;
        self
    }

    /// Takes over the file of the history, and the messages of `earlier` sessions that were read from it; shows `notices`
    /// of the start. `now_ms` is in milliseconds since 1970.
    pub fn keep(&mut self, kept: History, earlier: VecDeque<Entry>, notices: Vec<String>, now_ms: u64) {
        self.now = now_ms;
        notices.into_iter().for_each(|text| self.problem(text));
        if let Some(text) = kept.notice() {
            self.notice(text.into());
        }
        (self.history, self.kept) = (earlier.into(), Some(kept));
    }

    /// The messages that `/history` finds, the oldest first, without those of people who are ignored now.
    pub fn history(&self) -> impl Iterator<Item = &Entry> {
        let ignored = |entry: &&Entry| entry.source.from().is_some_and(|from| self.ignored.contains(from));
        self.history.entries().iter().filter(move |entry| !ignored(entry))
    }

    /// What is to be said when the person leaves at once: what may be lost by that. Empty if nothing is.
    pub fn last_words(&self) -> String {
        let texts = [self.unsettled(), self.unfinished_files(), self.unclear_password()];
        texts.into_iter().flatten().collect::<Vec<_>>().join("\n")
    }

    /// Takes one event. `now_ms` is the wall clock, milliseconds since 1970, `now` the monotonic one.
    pub fn handle(&mut self, event: Event, now_ms: u64, now: Instant) -> Vec<Effect> {
        let before = std::mem::replace(&mut self.instant, now);
        self.now = now_ms;
        self.began.get_or_insert(now_ms);
        self.tell_counted(false);
        self.forget_delivered();
        self.tell_changes(matches!(event, Event::Line(_)));
        match event {
            Event::Line(line) => self.line(&line, now),
            Event::Switch(partner) => self.go_to(partner),
            Event::Again(number) => self.send_again(number),
            Event::Server(message) => self.server(message, now),
            // PROTOCOL#later-versions.
            Event::Unreadable(DecodeError::UnknownType) => {
                self.tell_later("the server sent a message that this version does not know".into());
            }
            Event::Unreadable(error) => {
                self.server_problem(format!("the server sent an invalid message: {error}"));
            }
            Event::Silent(since) => self.silent(since),
            Event::Lost(why) => self.connection_lost(&why),
            Event::Retry(then, refused) => self.retrying(then, refused),
            Event::Resumed(after) => self.resumed(after),
            Event::LoggedIn(key, after) => self.logged_in(*key, after, now),
            Event::Closed(why) => {
                self.problem(format!("connection lost: {why}"));
                self.tell_unsettled();
                self.effects.push(Effect::Quit(1));
            }
            Event::EndOfInput => {
                self.patient = self.ending.is_none();
                self.ending = self.ending.or(Some(now));
            }
            Event::NewKey(key) => self.announce(*key, now),
            Event::Transfer(number, step) => self.step(number, step),
            Event::PasswordChanged(outcome) => {
                (self.changing, self.unchanged) = (false, outcome.is_err());
                match outcome {
                    Ok(()) => self.notice(PASSWORD_CHANGED.into()),
                    Err(error) => self.problem(error.to_string()),
                }
            }
            Event::Tick => {}
        }
        // With every event, or a busy room would stop the clock.
        self.keys_tick(now);
        self.files_tick();
        self.ask();
        self.owed = if self.owes_answers() { self.owed.or(Some(now)) } else { None };
        self.leave_if_done(before, now);
        if let Err(error) = self.peers.certificates.write_in_time(now_ms, now) {
            self.problem_about_some(
                "certificates",
                format!("after a restart, outdated keys of other users may be accepted: {error}"),
            );
        }
        self.tell_last();
        std::mem::take(&mut self.effects)
    }

    /// Whether a typed line can be taken now.
    pub fn takes_lines(&self) -> bool {
        self.ready && self.ending.is_none() && self.outbox.len() < MAX_UNSETTLED
    }

    /// Whether all that was asked of the server has been answered.
    pub fn is_settled(&self) -> bool {
        self.outbox.is_empty() && self.verifying.is_empty() && !self.changing
    }

    /// Since when the server owes an answer, or the list of online users, if it does. Each answer begins it again.
    pub fn owed(&self) -> Option<Instant> {
        self.owed
    }

    fn owes_answers(&self) -> bool {
        !self.ready || self.asking.is_some() || self.outbox.in_flight()
    }

    /// The own name.
    pub fn me(&self) -> &Username {
        &self.me
    }

    /// Whom one is talking to; `None` is everyone.
    pub fn partner(&self) -> Option<&Username> {
        self.partner.as_ref()
    }

    /// Whether the failed message of this number can still be sent again.
    pub fn is_at_hand(&self, number: u64) -> bool {
        self.outbox.failed.contains_key(&number)
    }

    /// Whether there is a room with `name`.
    pub fn has_room(&self, name: &Username) -> bool {
        self.rooms.contains(name)
    }

    /// Tells something to the person at the keyboard.
    pub(super) fn notice(&mut self, text: String) {
        self.show(Source::Notice, Place::Here, text);
    }

    /// Tells something about `name`.
    pub(super) fn notice_about(&mut self, name: &Username, text: String) {
        self.show(Source::Notice, Place::About(name.clone()), text);
    }

    pub(super) fn problem(&mut self, text: String) {
        self.show(Source::Problem, Place::Here, text);
    }

    pub(super) fn show(&mut self, source: Source, place: Place, text: String) {
        self.effects.push(Effect::Show(Entry::new(self.now, source, place, text)));
    }

    pub(super) fn alert(&mut self, from: &Username, place: Place) {
        if !self.quiet {
            self.effects.push(Effect::Alert(from.clone(), place));
        }
    }

    /// Shows a message and keeps it for `/history`.
    pub(super) fn said(&mut self, entry: Entry) {
        self.history.push(entry.clone());
        self.effects.push(Effect::Show(entry));
        if let Some(Err(error)) = self.kept.as_mut().map(|kept| kept.append(self.history.entries())) {
            self.problem(format!("{error}; new messages are no longer kept; earlier ones stay readable"));
        }
    }

    // ---- what the server says

    fn server(&mut self, message: ServerMessage, now: Instant) {
        match message {
            ServerMessage::Session(session) => self.renewed(session.newest, now),
            ServerMessage::Presence(presence) => self.presence(presence),
            ServerMessage::Keys(keys) => self.take_keys(&keys),
            ServerMessage::EncryptedMessage(message) => self.receive(*message),
            ServerMessage::Sent(sent) => {
                self.owed = None;
                self.sent(&sent);
            }
            ServerMessage::Lost(lost) => self.lost(&lost),
            ServerMessage::Error(failure) => self.failure(&failure),
            // The last five are for the link, and for the threads of transfers.
            ServerMessage::Registered
            | ServerMessage::PasswordChanged
            | ServerMessage::Challenge(_)
            | ServerMessage::ResumeChallenge(_)
            | ServerMessage::Resumed(_)
            | ServerMessage::Ack(_)
            | ServerMessage::Ping
            | ServerMessage::Pong
            | ServerMessage::Grant(_)
            | ServerMessage::Refused(_) => self.out_of_place(),
        }
    }

    fn out_of_place(&mut self) {
        self.server_problem("unexpected message from the server".into());
    }

    fn failure(&mut self, failure: &Failure) {
        let text = shortened(&failure.message);
        if failure.is(ErrorCode::BadKey) {
            self.keys.learn(failure.newest.unwrap_or(0));
        }
        if let Some(over) = last_word(failure) {
            self.problem(format!("{over}: this session is over"));
            self.tell_unsettled();
            self.effects.push(Effect::Quit(1));
        } else if let Some(id) = failure.id {
            self.owed = None;
            self.refused(id, &text);
        } else {
            self.server_problem(format!("the server says: {text}"));
        }
    }
}

#[cfg(test)]
mod tests;
