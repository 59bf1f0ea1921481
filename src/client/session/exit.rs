//! The end of the client, from the wish to leave until nothing is left to wait for.
//!
//! Invariant: no wait is without an end; nobody leaves without being told what was not acknowledged.

use super::connection::NOTICEABLE;
use super::cx::Cx;
use std::time::{Duration, Instant};

/// At the end, the client waits this long for each further answer: within this time a silent connection is dropped (35 s), the server
/// ends a session that has none (60 s), and another connection reports what became of it.
pub const FAREWELL: Duration = Duration::from_secs(120);
/// At the end of the input, files and the answers to offers are waited for this long: a person has to decide.
const FAREWELL_OF_FILES: Duration = Duration::from_secs(600);

/// What to do about the end now.
pub enum Step {
    /// Nothing is left to wait for.
    Leave,
    /// It has taken too long.
    GiveUp,
    /// It takes so long that the user is to know what is waited for.
    Tell,
}

/// See the module.
#[derive(Default)]
pub struct Leaving {
    since: Option<Instant>,
    /// Files under way are waited for.
    is_patient: bool,
}

impl Leaving {
    /// The user wants to leave: what was sent is waited for.
    pub fn begin(&mut self, cx: &Cx) {
        self.since = self.since.or(Some(cx.instant));
    }

    /// No more lines come: files are waited for, too.
    pub fn end_of_input(&mut self, cx: &Cx) {
        self.is_patient = self.since.is_none();
        self.begin(cx);
    }

    /// Whether the user has asked to leave.
    pub fn is_begun(&self) -> bool {
        self.since.is_some()
    }

    /// What to do now, if anything: everything `is_settled`, no file is under way (`is_idle`), and something `moved` last
    /// then. The event before this one was at `before`.
    pub fn step(
        &self,
        cx: &Cx,
        before: Instant,
        (is_settled, is_idle): (bool, bool),
        moved: Instant,
    ) -> Option<Step> {
        let since = self.since?;
        // A file that stands still ends by itself; its copy, or an answer, may take long.
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
