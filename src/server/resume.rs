//! The handshake that takes up a session on a new connection (PROTOCOL#resuming).
//!
//! Invariant: whatever is wrong - no such session, token, channel, count - takes the same steps and gets the same answer, unless
//! who asks proves to be a client that another one of the same person has replaced; and until the proof and the count are right nothing of the session or its connection has changed.

use super::grace::Turn;
use super::guest::{Guest, Refusal, Resumption, refuse};
use super::limits;
use super::session::{OWN_TOKENS, Session};
use crate::auth::PendingResume;
use crate::clock;
use crate::crypto::secret::Key;
use crate::protocol::{ClientMessage, ErrorCode, ResumeRequest, ServerMessage};
use std::sync::Arc;

impl Guest<'_> {
    /// From the request to `resumed`. PROTOCOL#resume-rules.
    pub(super) fn resume(&mut self, request: ResumeRequest) -> Result<Resumption, Refusal> {
        let (pending, challenge) = PendingResume::new(request.username);
        self.say(&ServerMessage::ResumeChallenge(challenge))?;
        let ClientMessage::Resume(answer) = self.next()? else {
            return Err(refuse(ErrorCode::NotLoggedIn, "answer the challenge first"));
        };
        let (turn, claim) = loop {
            // Only now: the session may have ended or begun while the client thought.
            let session = self.shared.registry.get(pending.name());
            // Made for everyone, or names that are not there would take longer.
            let nobody = std::array::from_fn(|_| Key::random());
            let tokens = session.as_deref().map_or(nobody, |session| session.tokens(clock::now_ms()));
            // A token cannot be guessed, so a failure is not counted against anybody.
            let which = pending.verify(&answer, self.channel.exporter(), &tokens).ok();
            // PROTOCOL#elsewhere.
            if which.is_some_and(|which| which >= OWN_TOKENS) {
                // Without this word it would log in, and throw off the client that came after it.
                return Err(refuse(ErrorCode::SignedInElsewhere, "you have logged in from elsewhere"));
            }
            let proven = which.is_some();
            let claimed = |session: Arc<Session>| Some((session.outbox.claim(answer.received)?, session));
            let Some((claim, session)) = session.filter(|_| proven).and_then(claimed) else {
                // PROTOCOL#no-session.
                return Err(refuse(ErrorCode::NoSession, "there is no such session to resume: log in"));
            };
            if let Some(turn) = Turn::next(self.shared, &session, limits::RESUME_PATIENCE) {
                break (turn, claim);
            }
            if session.outbox.is_open() {
                return Err(refuse(ErrorCode::TimedOut, "the former connection is still busy: try again"));
            }
            // It has ended meanwhile: the answer is what holds now.
        };
        Ok(Resumption { turn, claim, received: answer.received })
    }
}

#[cfg(test)]
mod tests {
    use super::super::grace::{self, Inbound};
    use super::super::guest::tests::guest;
    use super::super::registry::Place;
    use super::super::session::tests::session;
    use super::super::tests::shared;
    use super::*;
    use crate::auth;
    use crate::protocol::VERSION;
    use std::io::{BufRead, BufReader, Write};
    use std::time::Duration;

    /// PROTOCOL#taken-over, PROTOCOL#elsewhere.
    #[test]
    fn resumption_is_refused_at_once_when_its_session_ends() {
        for (takes_over, code) in [(false, "no_session"), (true, "signed_in_elsewhere")] {
            let (shared, _folder) = shared(Duration::from_secs(3600));
            let (alice, _) = session("alice");
            shared.registry.add(&alice, Place::default());
            // The thread of the former connection is busy, and stays so.
            let _turn = Turn::first(&shared, &alice, Inbound::new(100));
            let [token, ..] = alice.tokens(0);
            let (mut guest, far) = guest(&shared);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut line = String::new();
                    BufReader::new(&far).read_line(&mut line).expect("a challenge");
                    let Ok(ServerMessage::ResumeChallenge(challenge)) =
                        ServerMessage::decode(line.trim().as_bytes())
                    else {
                        panic!("{line}")
                    };
                    let answer = auth::resume(&alice.name, &challenge, b"", &token, 0);
                    (&far).write_all(&ClientMessage::Resume(answer).encode()).expect("sent");
                    if takes_over {
                        shared.registry.add(&session("alice").0, Place::default());
                    }
                    grace::end(&shared, &alice, None);
                });
                let request = ResumeRequest { version: VERSION, username: alice.name.clone() };
                let Err(Refusal::Say(ServerMessage::Error(failure))) = guest.resume(request) else {
                    panic!("it was let in")
                };
                assert_eq!(failure.code, code);
            });
        }
    }
}
