//! The connection to the server as the user sees it: online, silent, lost, back.
//!
//! Invariant: `owed` says in every state since when the server owes an answer.
//! Specification: MANUAL#when-the-connection-breaks.

use super::cx::Cx;
use super::event::Display;
use crate::client::text::seconds;
use crate::protocol::{ErrorCode, Failure};
use std::time::{Duration, Instant};

/// A delay that a user notices.
pub const NOTICEABLE: Duration = Duration::from_millis(500);

/// The state of the connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// The connection works, as far as this client knows.
    #[default]
    Online,
    /// The server has been silent since then.
    Silent(Instant),
    /// The connection broke at `since`; the next attempt is at `then`, if that is known.
    Lost { since: Instant, then: Option<Instant> },
}

/// See the module.
#[derive(Default)]
pub struct Connection {
    line: Line,
    /// The reason why the last attempt to reconnect was refused.
    refused: Option<String>,
    /// Since when the server owes an answer.
    owed: Option<Instant>,
}

impl Connection {
    /// Notes that the server is silent, or answers again.
    pub fn silent(&mut self, cx: &mut Cx, since: Option<Instant>) {
        self.line = since.map_or(Line::Online, Line::Silent);
        cx.display(Display::Progress(match since {
            Some(since) => {
                format!("no answer from the server for {}", seconds(cx.instant.duration_since(since)))
            }
            None => "the server answers again".into(),
        }));
    }

    /// Notes that the connection broke.
    pub fn lost(&mut self, cx: &mut Cx, why: &str) {
        (self.line, self.refused) = (Line::Lost { since: cx.instant, then: None }, None);
        cx.problem(format!("connection lost: {why}; trying again"));
    }

    /// Notes that the next attempt is at `then`. Reports the reason of the last refusal once, however often it repeats.
    pub fn retrying(&mut self, cx: &mut Cx, then: Instant, refused: Option<String>) {
        self.line = Line::Lost { since: self.lost_since().unwrap_or(cx.instant), then: Some(then) };
        if let Some(why) = refused.filter(|why| self.refused.as_ref() != Some(why)) {
            cx.problem(format!("not back online yet: {why}"));
            self.refused = Some(why);
        }
    }

    /// Notes that the client has reconnected, after the time `after`; `how` completes the notice.
    pub fn restored(&mut self, cx: &mut Cx, after: Duration, how: &str) {
        (self.line, self.owed) = (Line::Online, None);
        cx.notice(format!("back online after {}{how}", seconds(after)));
    }

    /// Whether the connection works, as far as this client knows.
    pub fn is_responsive(&self) -> bool {
        self.line == Line::Online
    }

    /// When the connection was lost, if there is none now: nothing has left this machine since then.
    pub fn lost_since(&self) -> Option<Instant> {
        match self.line {
            Line::Lost { since, .. } => Some(since),
            Line::Online | Line::Silent(_) => None,
        }
    }

    /// Since when the server owes an answer, if it does. Each answer restarts the time.
    pub fn owed(&self) -> Option<Instant> {
        self.owed
    }

    /// Notes that the server has answered.
    pub fn answered(&mut self) {
        self.owed = None;
    }

    /// Notes whether the server owes an answer now.
    pub fn owes(&mut self, cx: &Cx, is_due: bool) {
        self.owed = if is_due { self.owed.or(Some(cx.instant)) } else { None };
    }

    /// The state of the connection in a few words, with the number of `unsettled` messages while the server does not
    /// answer.
    pub fn describe(&self, cx: &Cx, unsettled: usize) -> String {
        let since = |then: Instant| cx.instant.saturating_duration_since(then);
        let waits = !self.is_responsive() || self.owed.is_some_and(|owed| since(owed) >= NOTICEABLE);
        let pending = match unsettled {
            count if count > 0 && waits => format!(", {count} pending"),
            _ => String::new(),
        };
        match self.line {
            Line::Online => format!("online{pending}"),
            Line::Silent(then) => format!("no answer for {} s{pending}", since(then).as_secs()),
            Line::Lost { then, .. } => {
                let left = then.map_or(Duration::ZERO, |then| then.saturating_duration_since(cx.instant));
                match left.as_millis().div_ceil(1000) {
                    0 | 1 => format!("CONNECTION LOST, trying again{pending}"),
                    left => format!("CONNECTION LOST, trying again in {left} s{pending}"),
                }
            }
        }
    }
}

/// The reason why the session has ended for good, if the server has ended it.
pub fn last_word(failure: &Failure) -> Option<&'static str> {
    if failure.is(ErrorCode::SignedInElsewhere) {
        Some("you have logged in elsewhere")
    } else if failure.is(ErrorCode::AccountRemoved) {
        Some("the operator of the server has removed this account")
    } else {
        None
    }
}
