//! The handshake that takes up a session on a new connection (README#resuming).
//!
//! Invariant: whatever is wrong - no such session, token, channel, count - takes the same steps and gets the same answer, unless
//! who asks proves to be a client that another one of the same person has replaced; and until the proof and the count are right nothing of the session or its connection has changed.

use super::grace::Turn;
use super::guest::{Guest, Refusal, Resumption, check_version, refuse};
use super::limits;
use super::session::{OWN_TOKENS, Session};
use crate::auth::PendingResume;
use crate::clock;
use crate::crypto::secret::Key;
use crate::protocol::{ClientMessage, ErrorCode, ResumeRequest, ServerMessage};
use std::sync::Arc;

impl Guest<'_> {
    /// From the request to `resumed`. README#resume-rules.
    pub(super) fn resume(&mut self, request: ResumeRequest) -> Result<Resumption, Refusal> {
        check_version(request.version)?;
        let (pending, challenge) = PendingResume::new(request.username);
        self.say(&ServerMessage::ResumeChallenge(challenge))?;
        let ClientMessage::Resume(answer) = self.next()? else {
            return Err(refuse(ErrorCode::NotLoggedIn, "answer the challenge first"));
        };
        // Only now: the session may have ended or begun while the client thought.
        let session = self.shared.registry.get(pending.name());
        // Made for everyone, or names that are not there would take longer.
        let nobody = std::array::from_fn(|_| Key::random());
        let tokens = session.as_deref().map_or(nobody, |session| session.tokens(clock::now_ms()));
        // A token cannot be guessed, so a failure is not counted against anybody.
        let which = pending.verify(&answer, self.channel.exporter(), &tokens).ok();
        // README#elsewhere.
        if which.is_some_and(|which| which >= OWN_TOKENS) {
            // Without this word it would log in, and throw off the client that came after it.
            return Err(refuse(ErrorCode::SignedInElsewhere, "you have logged in from elsewhere"));
        }
        let proven = which.is_some();
        let claimed = |session: Arc<Session>| Some((session.outbox.claim(answer.received)?, session));
        let Some((claim, session)) = session.filter(|_| proven).and_then(claimed) else {
            // README#no-session.
            return Err(refuse(ErrorCode::NoSession, "there is no such session to resume: log in"));
        };
        let Some(mut turn) = Turn::next(self.shared, &session, limits::RESUME_PATIENCE) else {
            return Err(refuse(ErrorCode::TimedOut, "the former connection is still busy: try again"));
        };
        turn.inbound().address = self.address;
        self.say(&ServerMessage::Resumed(turn.inbound().position()))?;
        Ok(Resumption { turn, claim, received: answer.received })
    }
}
