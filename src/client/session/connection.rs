//! The session and its connection: lost and had again, and the end.
//!
//! Invariant: nobody leaves without being told what was not acknowledged; a new session repeats nothing of the former
//! one by itself. Specification: README#when-the-connection-breaks.

use super::presence::Changes;
use super::{Effect, Session};
use crate::client::account::NewKey;
use crate::client::password::ChangeError;
use crate::client::text::all_quoted;
use crate::protocol::ClientMessage;
use std::time::{Duration, Instant};

/// A delay that a person notices.
const NOTICEABLE: Duration = Duration::from_millis(500);
/// At the end, the client waits this long for each further answer: within this time a silent connection is dropped (35 s), the server
/// ends a session that has none (60 s), and another connection reports what became of it.
pub const FAREWELL: Duration = Duration::from_secs(120);
/// At the end of the input, files and the answers to offers are waited for this long: a person has to decide.
const FAREWELL_OF_FILES: Duration = Duration::from_secs(600);

/// What the connection is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// As far as anybody knows.
    Online,
    /// Nothing has been heard since then.
    Silent(Instant),
    /// It broke; the next attempt is made then, if that is known.
    Lost(Option<Instant>),
}

impl Session {
    /// The server is silent, or is heard again.
    pub(super) fn silent(&mut self, since: Option<Instant>) {
        self.line = since.map_or(Line::Online, Line::Silent);
        self.effects.push(Effect::Progress(match since {
            Some(since) => {
                format!("no answer from the server for {}", seconds(self.instant.duration_since(since)))
            }
            None => "the server answers again".into(),
        }));
    }

    /// The connection broke.
    pub(super) fn connection_lost(&mut self, why: &str) {
        (self.line, self.refused) = (Line::Lost(None), None);
        self.problem(format!("connection lost: {why}; trying again"));
    }

    /// Another attempt is made then. What the one before was refused for is told once, however often that happens.
    pub(super) fn retrying(&mut self, then: Instant, refused: Option<String>) {
        self.line = Line::Lost(Some(then));
        if refused.is_some() && refused != self.refused {
            self.problem(format!("not back online yet: {}", refused.as_deref().unwrap_or_default()));
            self.refused = refused;
        }
    }

    /// The session goes on.
    pub(super) fn resumed(&mut self, after: Duration) {
        (self.line, self.owed) = (Line::Online, None);
        self.notice(format!("back online after {}", seconds(after)));
    }

    /// The server knows nothing of the former session any more: what was sent in it and not acknowledged is told, and
    /// nothing is sent again by itself.
    pub(super) fn logged_in(&mut self, new: NewKey, after: Duration, now: Instant) {
        self.effects.push(Effect::Begin);
        (self.line, self.owed) = (Line::Online, None);
        self.keys.restart(new.key, now);
        self.certified_key(new.created, new.newest);
        let text = "back online after {}, in a new session: the old one has ended";
        self.notice(text.replace("{}", &seconds(after)));
        self.interrupt_files(|_| true, "your old session has ended");
        self.give_up_all();
        let rooms = std::mem::take(&mut self.rooms);
        rooms.iter().for_each(|with| self.tell_room_closed(with));
        (self.ready, self.partial) = (false, false);
        self.online.clear();
        self.changes = Changes::default();
        self.to_ask.clear();
        self.asking = None;
        let waiting = self.peers.restart();
        let verifying = self.verifying.clone();
        self.ask_for_keys(waiting.into_iter().chain(verifying));
    }

    /// The person wants to leave: what was sent is waited for.
    pub(super) fn exit(&mut self, now: Instant) {
        self.ending = self.ending.or(Some(now));
    }

    /// What is waited for before the end; `None` if the person has not asked to leave.
    pub fn leaving(&self) -> Option<String> {
        self.ending?;
        let waits = match self.outbox.unacknowledged().count() {
            0 if self.is_settled() => "a file is not complete yet".into(),
            0 => "the server has not answered yet".into(),
            1 => "1 message is not acknowledged yet".into(),
            count => format!("{count} messages are not acknowledged yet"),
        };
        Some(format!("leaving: {waits}; Ctrl-C leaves now"))
    }

    /// Leaves when nothing is left to wait for, or when that takes too long. The event before this one was at `before`.
    pub(super) fn leave_if_done(&mut self, before: Instant, now: Instant) {
        let Some(since) = self.ending else { return };
        let answered = self.owed.unwrap_or(since);
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
        } else if before < since + NOTICEABLE && now >= since + NOTICEABLE {
            self.effects.extend(self.leaving().map(Effect::Progress));
        }
    }

    /// Whether the person has asked to leave.
    pub fn is_leaving(&self) -> bool {
        self.ending.is_some()
    }

    /// Whether the server is heard, as far as anybody knows.
    pub fn is_heard(&self) -> bool {
        self.line == Line::Online
    }

    pub(super) fn tell_unsettled(&mut self) {
        let texts = [self.unsettled(), self.unfinished_files(), self.unclear_password()];
        texts.into_iter().flatten().for_each(|text| self.problem(text));
    }

    /// What is to be said of a change of the password that has not ended; `None` if there is none.
    pub fn unclear_password(&self) -> Option<String> {
        self.changing.then(|| ChangeError::Unfinished.to_string())
    }

    /// How the connection is, in a few words: with the messages that the server has not taken yet, if it lets one
    /// wait for them.
    pub fn connection(&self) -> String {
        let since = |then: Instant| self.instant.saturating_duration_since(then);
        let waits = !self.is_heard() || self.owed.is_some_and(|owed| since(owed) >= NOTICEABLE);
        let pending = match self.outbox.len() {
            count if count > 0 && waits => format!(", {count} pending"),
            _ => String::new(),
        };
        match self.line {
            Line::Online => format!("online{pending}"),
            Line::Silent(then) => format!("no answer for {} s{pending}", since(then).as_secs()),
            Line::Lost(then) => {
                let left = then.map_or(Duration::ZERO, |then| then.saturating_duration_since(self.instant));
                match left.as_millis().div_ceil(1000) {
                    0 | 1 => format!("CONNECTION LOST, trying again{pending}"),
                    left => format!("CONNECTION LOST, trying again in {left} s{pending}"),
                }
            }
        }
    }

    /// The report of messages that the server has not acknowledged, with the beginning of each; `None` without any.
    pub fn unsettled(&self) -> Option<String> {
        let texts = self.outbox.unacknowledged();
        let what = match texts.clone().count() {
            0 => return None,
            1 => "1 message of yours was".into(),
            count => format!("{count} messages of yours were"),
        };
        Some(format!("{what} not acknowledged and may not have arrived: {}", all_quoted(texts)))
    }
}

/// A time in words.
pub fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0 => "a moment".into(),
        1 => "1 second".into(),
        seconds @ 2..120 => format!("{seconds} seconds"),
        seconds => format!("{} minutes", seconds / 60),
    }
}
