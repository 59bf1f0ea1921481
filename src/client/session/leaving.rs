//! Leaving: from the user's request until nothing is left to wait for.
//!
//! Invariant: every wait has a deadline, and unacknowledged messages are reported.

use super::connection::NOTICEABLE;
use super::cx::Cx;
use std::time::{Duration, Instant};

/// At the end, the client waits this long for each further answer: enough to drop a silent connection (35 s), for the
/// server to end a session without one (60 s), and for a new connection to report the outcome.
pub const FAREWELL: Duration = Duration::from_secs(120);
/// At the end of the input, the client waits this long for files and for answers to offers, because users have to
/// decide.
const FAREWELL_OF_FILES: Duration = Duration::from_secs(600);

/// The next step of the exit.
pub enum Step {
    /// Nothing is left to wait for.
    Leave,
    /// It has taken too long.
    GiveUp,
    /// It takes so long that the user should see the reason.
    Tell,
}

/// See the module.
#[derive(Default)]
pub struct Leaving {
    since: Option<Instant>,
    /// Whether to wait for files in progress.
    is_patient: bool,
}

impl Leaving {
    /// Notes that the user wants to leave, after the acknowledgement of sent messages.
    pub fn begin(&mut self, cx: &Cx) {
        self.since = self.since.or(Some(cx.instant));
    }

    /// Notes the end of the input: files in progress are awaited too.
    pub fn end_of_input(&mut self, cx: &Cx) {
        self.is_patient = self.since.is_none();
        self.begin(cx);
    }

    /// When the user asked to leave; `None` before that.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// The next step, if any. `is_settled`: the server owes nothing; `is_idle`: no file is in progress. The event
    /// before this one was at `before`, the last progress at `moved`.
    pub fn step(
        &self,
        cx: &Cx,
        before: Instant,
        (is_settled, is_idle): (bool, bool),
        moved: Instant,
    ) -> Option<Step> {
        let since = self.since?;
        // A stalled file ends automatically, but a copy of it, or the answer to an offer, may take long.
        let patience = if is_settled { FAREWELL_OF_FILES } else { FAREWELL };
        if is_settled && (is_idle || !self.is_patient) {
            Some(Step::Leave)
        } else if cx.instant.duration_since(since.max(moved)) >= patience {
            Some(Step::GiveUp)
        } else {
            (before < since + NOTICEABLE && cx.instant >= since + NOTICEABLE).then_some(Step::Tell)
        }
    }
}
