//! The client's state after login: events in, effects out, no I/O and no clock of its own.
//!
//! Invariant: one owner of all state; the same events give the same effects whatever front end shows
//! them. Rooms below it: [`commands`] (what is typed), [`peers`] (keys of others), [`outgoing`],
//! [`incoming`], [`files`], [`wire_form`] (envelopes to and from messages).

pub mod commands;
pub mod files;
pub mod incoming;
pub mod outgoing;
pub mod peers;
pub mod wire_form;

use super::entry::{Entry, Place, Source};
use super::history::{History, MAX_HISTORY};
use super::password::ChangeError;
use super::text::{mentions, sanitise};
use super::transfer::{Job, Step};
use super::trust::{Ignored, KnownUsers, Trust};
use crate::crypto::keys::{IdentityKey, SessionKey};
use crate::crypto::public::{Fingerprint, SESSION_KEY_LIFETIME};
use crate::name::Username;
use crate::protocol::{
    ClientMessage, DecodeError, ErrorCode, Failure, Keys, KeysRequest, MAX_KEY_NAMES, PersonKeys, Presence,
    ServerMessage, SessionKeyFields,
};
use files::Files;
use outgoing::{Missed, Outbox};
use peers::{Learned, Peers};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// People on-line that are kept in mind; a server that names more is not believed.
const MAX_ONLINE: usize = 200_000;
/// Messages under way beyond which no further line is taken.
const MAX_UNSETTLED: usize = 64;
/// A former session key still opens what was under way when it was renewed.
const FORMER_KEY_KEPT: Duration = Duration::from_secs(60);
/// A new session key is made an hour before the old one's day is over.
const RENEW_AFTER: Duration = SESSION_KEY_LIFETIME.saturating_sub(Duration::from_secs(3600));
/// A renewal that failed is tried again after this time.
const RENEW_AGAIN: Duration = Duration::from_secs(600);
/// A server that owes answers and gives none for this long is given up.
const ANSWER: Duration = Duration::from_secs(90);
/// A delay that a person notices.
const NOTICEABLE: Duration = Duration::from_millis(500);
/// At the end, the next answer is waited for this long.
const FAREWELL: Duration = Duration::from_secs(30);
/// At the end of the input, files and the answers to offers are waited for this long.
const FAREWELL_OF_FILES: Duration = Duration::from_secs(600);
/// Where the old password still is.
const PASSWORD_CHANGED: &str = "your password is changed, here and on this server; a copy of your key file \
    on another machine still has the old one: copy it anew";
/// More people than this coming or going at once are told as a number.
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
    /// The connection broke: why. It is being had again.
    Lost(String),
    /// The next attempt is made then.
    Retry(Instant),
    /// The session goes on over a new connection, after this time.
    Resumed(Duration),
    /// The former session is over, and a new one has begun with this key, after this time.
    LoggedIn(Box<SessionKey>, Duration),
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
    Clear,
    MakeSessionKey,
    /// The person wants a new password: from this file, or to be asked for.
    ChangePassword(Option<String>),
    /// Something is to be done for the transfer of this number.
    Transfer(u32, Job),
    /// How far a file is, where no bar shows it.
    Progress(String),
    /// The end, with the exit status.
    Quit(u8),
}

/// The own session keys: the current one, one that the server has not confirmed yet, and
/// former ones for what is still under way.
pub struct OwnKeys {
    current: Arc<SessionKey>,
    /// When the current one was made, or a renewal was last tried.
    made: Instant,
    announced: Option<Arc<SessionKey>>,
    former: Vec<(Arc<SessionKey>, Instant)>,
}

impl OwnKeys {
    fn new(current: SessionKey, now: Instant) -> OwnKeys {
        OwnKeys { current: Arc::new(current), made: now, announced: None, former: Vec::new() }
    }

    /// What others are told to encrypt to. Who holds it on keeps it alive.
    pub fn current(&self) -> Arc<SessionKey> {
        self.current.clone()
    }

    /// Every key that still decrypts.
    pub fn all(&self) -> impl Iterator<Item = &SessionKey> {
        let others = self.announced.iter().chain(self.former.iter().map(|(key, _)| key));
        std::iter::once(&self.current).chain(others).map(Arc::as_ref)
    }

    /// Whether one of them has this fingerprint.
    pub fn holds(&self, fingerprint: Fingerprint) -> bool {
        self.all().any(|key| key.fingerprint() == fingerprint)
    }

    /// The server has confirmed the announced key. False if there is none.
    fn confirm(&mut self, now: Instant) -> bool {
        let Some(new) = self.announced.take() else { return false };
        self.former.push((std::mem::replace(&mut self.current, new), now));
        self.made = now;
        true
    }

    fn forget_former(&mut self, now: Instant) {
        self.former.retain(|(_, replaced)| now.duration_since(*replaced) < FORMER_KEY_KEPT);
    }
}

/// See the module.
pub struct Session {
    me: Username,
    /// Milliseconds since 1970, as of the event under way.
    pub(super) now: u64,
    /// The monotonic clock, as of the same event.
    pub(super) instant: Instant,
    pub(super) identity: Arc<IdentityKey>,
    pub(super) keys: OwnKeys,
    pub(super) peers: Peers,
    pub(super) outbox: Outbox,
    pub(super) files: Files,
    /// Envelopes that wait for keys.
    pub(super) unread: usize,
    pub(super) effects: Vec<Effect>,
    online: BTreeSet<Username>,
    /// The list of who is on-line has arrived.
    ready: bool,
    /// The list is still arriving.
    partial: bool,
    /// Whom one is talking to; `None` is everyone.
    partner: Option<Username>,
    /// Who was told of a room with them, and is on-line since.
    rooms: BTreeSet<Username>,
    history: VecDeque<Entry>,
    /// Where they are kept.
    kept: Option<History>,
    pub(super) ignored: Ignored,
    /// The terminal does not ring.
    quiet: bool,
    /// Safety numbers that wait for a key.
    verifying: BTreeSet<Username>,
    started: Instant,
    /// When the server last answered something, or was first asked after that.
    answered: Instant,
    /// When a file last came further.
    pub(super) moved: Instant,
    /// People whose keys are to be asked for: one request at a time, or the answers would be
    /// more than the server lets wait for one client.
    to_ask: VecDeque<Username>,
    /// The request under way.
    asking: Option<BTreeSet<Username>>,
    /// The connection is lost, and the next attempt is made then, if that is known.
    lost: Option<Option<Instant>>,
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

fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0 => "a moment".into(),
        1 => "1 second".into(),
        seconds @ 2..120 => format!("{seconds} seconds"),
        seconds => format!("{} minutes", seconds / 60),
    }
}

impl Session {
    /// Begins after a login.
    pub fn new(
        me: Username,
        identity: impl Into<Arc<IdentityKey>>,
        key: SessionKey,
        (known, ignored): (KnownUsers, Ignored),
        now: Instant,
    ) -> Session {
        Session {
            me,
            now: 0,
            instant: now,
            identity: identity.into(),
            keys: OwnKeys::new(key, now),
            peers: Peers::new(known),
            outbox: Outbox::default(),
            files: Files::default(),
            unread: 0,
            effects: Vec::new(),
            online: BTreeSet::new(),
            ready: false,
            partial: false,
            partner: None,
            rooms: BTreeSet::new(),
            history: VecDeque::new(),
            kept: None,
            ignored,
            quiet: false,
            verifying: BTreeSet::new(),
            started: now,
            answered: now,
            moved: now,
            to_ask: VecDeque::new(),
            asking: None,
            lost: None,
            ending: None,
            patient: false,
            changing: false,
            unchanged: false,
            gave_up: false,
        }
    }

    /// Takes over the file of the history, and the messages of `earlier` sessions that were read from it.
    pub fn keep(&mut self, kept: History, earlier: VecDeque<Entry>, now_ms: u64) {
        self.now = now_ms;
        if let Some(text) = kept.notice() {
            self.notice(text.into());
        }
        (self.history, self.kept) = (earlier, Some(kept));
    }

    /// The messages that `/history` finds, the oldest first, without those of people who are ignored now.
    pub fn history(&self) -> impl Iterator<Item = &Entry> {
        let ignored = |entry: &&Entry| entry.source.from().is_some_and(|from| self.ignored.contains(from));
        self.history.iter().filter(move |entry| !ignored(entry))
    }

    /// Takes one event. `now_ms` is the wall clock, `now` the monotonic one.
    pub fn handle(&mut self, event: Event, now_ms: u64, now: Instant) -> Vec<Effect> {
        (self.now, self.instant) = (now_ms, now);
        // Nobody can answer while the connection is lost; but the end does not wait for ever.
        if !self.waits_for_answers() || (self.lost.is_some() && self.ending.is_none()) {
            self.answered = now;
        }
        match event {
            Event::Line(line) => self.line(&line, now),
            Event::Switch(partner) => self.go_to(partner),
            Event::Again(number) => self.send_again(number),
            Event::Server(message) => self.server(message, now),
            Event::Unreadable(error) => {
                self.problem(format!("the server sent something unreadable: {error}"))
            }
            Event::Lost(why) => {
                self.lost = Some(None);
                self.problem(format!("the connection to the server is lost: {why}; trying again"));
            }
            Event::Retry(then) => self.lost = Some(Some(then)),
            Event::Resumed(after) => {
                self.lost = None;
                self.notice(format!("back on-line after {}", seconds(after)));
            }
            Event::LoggedIn(key, after) => self.logged_in(*key, after, now),
            Event::Closed(why) => {
                self.problem(format!("the connection to the server is lost: {why}"));
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
        self.tick(now);
        self.ask();
        self.leave_if_done(now);
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

    fn waits_for_answers(&self) -> bool {
        self.asking.is_some() || self.outbox.in_flight()
    }

    /// The own name.
    pub fn me(&self) -> &Username {
        &self.me
    }

    /// Whom one is talking to; `None` is everyone.
    pub fn partner(&self) -> Option<&Username> {
        self.partner.as_ref()
    }

    /// Whether there is a room with `name`.
    pub fn has_room(&self, name: &Username) -> bool {
        self.rooms.contains(name)
    }

    /// How many are on-line, oneself included.
    pub fn online(&self) -> usize {
        self.online.len()
    }

    /// How well the key of `name` is known, in a word.
    pub fn trust_word(&self, name: &Username) -> &'static str {
        match self.peers.trust(name) {
            _ if self.peers.has_changed(name) => "KEY CHANGED",
            Some(Trust::Verified) => "verified",
            Some(Trust::New) => "not verified",
            None => "new",
        }
    }

    /// The same as a mark beside the name.
    pub fn trust_mark(&self, name: &Username) -> &'static str {
        if self.peers.has_changed(name) { "!" } else { self.peers.trust(name).unwrap_or(Trust::New).mark() }
    }

    pub(super) fn is_online(&self, name: &Username) -> bool {
        self.online.contains(name)
    }

    /// Everyone on-line but oneself.
    pub(super) fn others(&self) -> impl Iterator<Item = &Username> {
        self.online.iter().filter(|name| **name != self.me)
    }

    /// Everyone whose key is known or who is on-line, these first; not oneself.
    pub fn people(&self) -> impl Iterator<Item = &Username> {
        let known = |name: &&Username| !self.is_online(name) && self.peers.trust(name).is_some();
        self.others().chain(self.peers.names().filter(known))
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

    /// Shows what somebody else has said. `text` is sanitised.
    pub(super) fn received(&mut self, source: Source, text: String) {
        let Some(from) = source.from().cloned() else { return };
        let place = source.place(&self.me);
        let mention = !mentions(&text, self.me.as_str()).is_empty();
        if mention || place != Place::Everyone {
            self.alert(&from, place.clone());
        }
        let trust = self.peers.trust(&from);
        self.said(Entry { mention, trust, ..Entry::new(self.now, source, place, text) });
    }

    /// Shows a message and keeps it for `/history`.
    pub(super) fn said(&mut self, entry: Entry) {
        if self.history.len() >= MAX_HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(entry.clone());
        self.effects.push(Effect::Show(entry));
        if let Some(Err(error)) = self.kept.as_mut().map(|kept| kept.append(&self.history)) {
            self.problem(format!("{error}; messages are no longer kept, those kept so far stay readable"));
        }
    }

    fn tick(&mut self, now: Instant) {
        self.keys.forget_former(now);
        self.files_tick();
        if now.duration_since(self.keys.made) >= RENEW_AFTER {
            // Unless it is confirmed, this is tried again in ten minutes.
            self.keys.made = now - (RENEW_AFTER - RENEW_AGAIN);
            self.effects.push(Effect::MakeSessionKey);
        }
        if !self.ready && now.duration_since(self.started) >= ANSWER {
            self.problem("the server does not say who is on-line".into());
            self.effects.push(Effect::Quit(1));
        }
        if self.waits_for_answers() && now.duration_since(self.answered) >= ANSWER {
            self.problem("the server does not answer".into());
            self.tell_unsettled();
            self.effects.push(Effect::Quit(1));
        }
    }

    /// Announces a new session key. It opens messages from here on, because the server may tell
    /// it to others before its confirmation is here; it is the current one after that.
    fn announce(&mut self, key: SessionKey, now: Instant) {
        let certificate = self.identity.certify(&self.me, &key, self.now);
        let fields = SessionKeyFields::new(&certificate);
        self.effects.push(Effect::Send(ClientMessage::Renew(Box::new(fields))));
        // One that was announced in vain may have reached somebody.
        let former = self.keys.announced.replace(Arc::new(key));
        self.keys.former.extend(former.map(|key| (key, now)));
    }

    fn renewed(&mut self, now: Instant) {
        if self.keys.confirm(now) {
            self.outbox.restart_numbers();
            self.peers.restart_numbers();
        }
    }

    /// The server knows nothing of the former session any more: what was sent in it and not acknowledged is told, and
    /// nothing is sent again by itself.
    fn logged_in(&mut self, key: SessionKey, after: Duration, now: Instant) {
        self.effects.push(Effect::Begin);
        (self.lost, self.answered) = (None, now);
        let former = std::mem::replace(&mut self.keys, OwnKeys::new(key, now));
        let earlier = former.former.into_iter();
        let keys = [Some(former.current), former.announced].into_iter().flatten();
        self.keys.former = keys.map(|key| (key, now)).chain(earlier).collect();
        let text = "back on-line after {}, in a new session: the server had ended the one before";
        self.notice(text.replace("{}", &seconds(after)));
        self.interrupt_files(|_| true, "your session is a new one");
        self.give_up_all();
        self.rooms.clear();
        (self.ready, self.partial, self.started) = (false, false, now);
        self.online.clear();
        self.to_ask.clear();
        self.asking = None;
        let waiting = self.peers.restart();
        let verifying = self.verifying.clone();
        self.ask_for_keys(waiting.into_iter().chain(verifying));
    }

    fn leave_if_done(&mut self, now: Instant) {
        let Some(since) = self.ending else { return };
        let answered = if self.waits_for_answers() { self.answered } else { since };
        // A file that stands still ends by itself; its copy, or an answer, may take long.
        let patience = if self.is_settled() { FAREWELL_OF_FILES } else { FAREWELL };
        if self.is_settled() && (self.files.is_idle() || !self.patient) {
            let unfinished = self.unfinished_files();
            let status = u8::from(unfinished.is_some() || self.unchanged || self.gave_up);
            unfinished.into_iter().for_each(|text| self.problem(text));
            self.effects.push(Effect::Send(ClientMessage::Logout));
            self.effects.push(Effect::Quit(status));
        } else if now.duration_since(since.max(self.moved).max(answered)) >= patience {
            self.tell_unsettled();
            self.effects.push(Effect::Quit(1));
        }
    }

    /// Whether there is no connection at the moment.
    pub fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// Leaves now, and tells what may be lost by it.
    pub(super) fn quit_unsettled(&mut self) {
        let unfinished = !self.is_settled() || self.unfinished_files().is_some();
        let status = u8::from(unfinished || self.unchanged || self.gave_up);
        self.tell_unsettled();
        self.effects.push(Effect::Quit(status));
    }

    fn tell_unsettled(&mut self) {
        let texts = [self.unsettled(), self.unfinished_files(), self.unclear_password()];
        texts.into_iter().flatten().for_each(|text| self.problem(text));
    }

    /// What is to be said of a change of the password that has not ended, if there is one.
    pub fn unclear_password(&self) -> Option<String> {
        self.changing.then(|| ChangeError::Unfinished.to_string())
    }

    /// How the connection is, in a few words: with the messages that the server has not taken yet, if it lets one
    /// wait for them.
    pub fn connection(&self) -> String {
        let waits = self.lost.is_some() || self.instant.duration_since(self.answered) >= NOTICEABLE;
        let under_way = match self.outbox.len() {
            count if count > 0 && waits => format!(", {count} under way"),
            _ => String::new(),
        };
        match self.lost {
            None => format!("on-line{under_way}"),
            Some(then) => {
                let left = then.map_or(Duration::ZERO, |then| then.saturating_duration_since(self.instant));
                match left.as_millis().div_ceil(1000) {
                    0 | 1 => format!("CONNECTION LOST, trying again{under_way}"),
                    left => format!("CONNECTION LOST, trying again in {left} s{under_way}"),
                }
            }
        }
    }

    /// What is to be said of messages that nobody has acknowledged, if there are any.
    pub fn unsettled(&self) -> Option<String> {
        match self.outbox.len() {
            0 => None,
            1 => Some("1 message of yours was not acknowledged and may not have arrived".into()),
            count => {
                Some(format!("{count} messages of yours were not acknowledged and may not have arrived"))
            }
        }
    }

    // ---- what the server says

    fn server(&mut self, message: ServerMessage, now: Instant) {
        match message {
            ServerMessage::Session(_) => self.renewed(now),
            ServerMessage::Presence(presence) => self.presence(presence),
            ServerMessage::Keys(keys) => self.take_keys(&keys, now),
            ServerMessage::EncryptedMessage(message) => self.receive(*message),
            ServerMessage::Sent(sent) => {
                self.answered = now;
                self.sent(&sent);
            }
            ServerMessage::Error(failure) => self.failure(&failure, now),
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
            | ServerMessage::Refused(_) => {
                self.problem("the server sent something out of place".into());
            }
        }
    }

    fn failure(&mut self, failure: &Failure, now: Instant) {
        let text = sanitise(&failure.message);
        if failure.code == ErrorCode::SignedInElsewhere.as_str() {
            self.problem("you have logged in from elsewhere: this client leaves".into());
            self.tell_unsettled();
            self.effects.push(Effect::Quit(1));
        } else if let Some(id) = failure.id {
            self.answered = now;
            self.refused(id, &text);
        } else {
            self.problem(format!("the server says: {text}"));
        }
    }

    fn presence(&mut self, presence: Presence) {
        if presence.full && (self.ready || self.partial) {
            // It could slip somebody in without a word.
            return self.problem("the server sent something out of place".into());
        }
        if presence.full {
            self.online.clear();
            self.partial = true;
        }
        let was_ready = self.ready;
        let listing = self.partial;
        let (mut joined, mut left) = (Vec::new(), Vec::new());
        for name in presence.left {
            if self.online.remove(&name) && name != self.me {
                self.peers.left(&name);
                self.rooms.remove(&name);
                self.files_of_left(&name);
                left.push(name);
            }
        }
        for name in presence.joined {
            if self.online.len() < MAX_ONLINE && self.online.insert(name.clone()) && name != self.me {
                joined.push(name);
            }
        }
        if self.partial && !presence.more {
            self.partial = false;
            self.ready = true;
        }
        let gone: BTreeSet<Username> = left.iter().cloned().collect();
        let anew: BTreeSet<Username> = joined.iter().filter(|name| gone.contains(name)).cloned().collect();
        let told = |name: &Username| !anew.contains(name) && !self.ignored.contains(name);
        joined.retain(told);
        left.retain(told);
        let anew: Vec<Username> = anew.into_iter().filter(|name| !self.ignored.contains(name)).collect();
        if !listing && was_ready {
            self.tell_people(&anew, "has logged in anew", "have logged in anew");
            self.tell_people(&joined, "is on-line", "are on-line now");
            self.tell_people(&left, "has left", "have left");
        } else if self.ready && !was_ready {
            self.tell_users();
        }
    }

    fn tell_people(&mut self, names: &[Username], one: &str, many: &str) {
        if names.len() > MAX_NAMED {
            let text = format!("{} people {many}", names.len());
            return self.show(Source::Notice, Place::Everyone, text);
        }
        for name in names {
            self.notice_about(name, format!("{name} {one}"));
        }
    }

    /// Asks for keys that are not on their way already.
    pub(super) fn ask_for_keys(&mut self, names: impl IntoIterator<Item = Username>) {
        for name in names {
            if !std::mem::replace(&mut self.peers.get(&name).asked, true) {
                self.to_ask.push_back(name);
            }
        }
    }

    /// Sends the next request for keys, if none is under way.
    fn ask(&mut self) {
        if self.asking.is_none() && !self.to_ask.is_empty() {
            let count = self.to_ask.len().min(MAX_KEY_NAMES);
            let names: BTreeSet<Username> = self.to_ask.drain(..count).collect();
            let request = KeysRequest { names: names.iter().cloned().collect() };
            self.effects.push(Effect::Send(ClientMessage::KeysRequest(request)));
            self.asking = Some(names);
        }
    }

    /// Takes the answer to the request under way: everyone who was asked for is settled by it.
    fn take_keys(&mut self, keys: &Keys, now: Instant) {
        let told = keys.keys.iter().map(|person| &person.name).chain(&keys.unknown);
        let told: BTreeSet<Username> = told.cloned().collect();
        // An answer is about exactly the names of the question.
        let Some(mut asked) = self.asking.take_if(|asked| *asked == told) else {
            return self.problem("the server sent keys that were not asked for".into());
        };
        self.answered = now;
        let mut here = Vec::new();
        for person in &keys.keys {
            if asked.remove(&person.name) {
                here.push(person.name.clone());
                self.take_person(person);
            }
        }
        // One envelope for all of them together.
        self.pump(here);
        for name in asked {
            self.no_keys(&name, Missed::NoAccount);
        }
    }

    fn take_person(&mut self, person: &PersonKeys) {
        let name = &person.name;
        let before = self.peers.fingerprint(name);
        match self.peers.learn(person, self.now) {
            Learned::Known => {}
            Learned::Reverted => self.notice(format!("the server shows the known key of {name} again")),
            Learned::Changed => {
                if self.peers.fingerprint(name) != before {
                    self.explain_changed(name);
                }
                self.give_up(name, Missed::KeyChanged);
            }
            Learned::Refused(why) => {
                self.problem(format!("the keys of {name} cannot be used: {why}"));
                return self.no_keys(name, Missed::NoKey);
            }
        }
        if self.peers.find(name).is_some_and(|peer| peer.session.is_none()) {
            self.give_up(name, Missed::Offline);
        }
        self.read_inbox(name);
        self.keys_for_files(name);
        if self.verifying.remove(name) {
            self.tell_safety_number(name);
        }
    }

    /// There are no keys of `name` to be had.
    fn no_keys(&mut self, name: &Username, why: Missed) {
        self.peers.get(name).asked = false;
        self.give_up(name, why);
        self.keys_for_files(name);
        self.drop_inbox(name);
        if self.verifying.remove(name) {
            self.problem(match why {
                Missed::NoAccount => format!("there is no account named {name}"),
                _ => format!("no key of {name} is to be had"),
            });
        }
    }

    /// Says again why nothing goes to `name`, and looks whether the key is still another.
    pub(super) fn reconsider(&mut self, name: &Username) {
        self.explain_changed(name);
        self.ask_for_keys([name.clone()]);
    }

    pub(super) fn explain_changed(&mut self, name: &Username) {
        self.problem(format!(
            "THE IDENTITY KEY OF {name} HAS CHANGED. Nothing is sent to {name} or shown from {name} until you decide. \
             Either {name} has a new key, or somebody is in between: ask {name} in person or by phone, compare \
             /verify {name}, then /trust {name}"
        ));
    }
}
