//! How a session is had again when its connection broke: by its token, or else by a new login.
//!
//! Invariant: the password is not kept, only what stands for it towards this one server, and the token; both are
//! wiped at the end. A server whose key has changed, and a login that is refused, are final: nothing is tried that a person
//! has not allowed. Specification: README#resuming.

use super::account::Credentials;
use super::connect::{Connection, StartError, connect, refusal};
use super::options::Options;
use crate::auth::{self, PasswordKey};
use crate::crypto::keys::SessionKey;
use crate::crypto::secret::{Key, random};
use crate::protocol::{ClientMessage, ErrorCode, ResumeRequest, ServerMessage, VERSION};
use crate::wire::tls::ChannelError;
use std::time::Duration;

/// The first pause but one, in milliseconds; each further one is twice as long.
const FIRST_PAUSE: u64 = 1000;
/// The longest pause, in milliseconds: a server that is back is found within half a minute.
pub const LONGEST_PAUSE: u64 = 30_000;

/// How a connection was had again.
pub enum Again {
    /// The session goes on: the server has taken in so many frames of it.
    Resumed(u64),
    /// It is over, and a new one has begun, with this key.
    LoggedIn(Box<SessionKey>),
}

/// All that it takes to come back.
pub struct Way {
    options: Options,
    credentials: Credentials,
    token: Key,
}

impl Way {
    /// After a login.
    pub fn new(options: &Options, credentials: Credentials, token: Key) -> Way {
        Way { options: options.clone(), credentials, token }
    }

    /// The session has another token by now.
    pub fn set_token(&mut self, token: Key) {
        self.token = token;
    }

    /// The password is another one by now.
    pub fn set_password_key(&mut self, key: PasswordKey) {
        self.credentials.password_key = key;
    }

    /// One attempt. `received` frames of the session were taken in, since its login.
    ///
    /// # Errors
    /// [`StartError`]: nobody is reached, the connection breaks, or the server refuses; see [`is_final`].
    pub fn again(&mut self, received: u64) -> Result<(Connection, Again), StartError> {
        let mut connection = self.connect()?;
        if let Some(theirs) = self.resume(&mut connection, received)? {
            return Ok((connection, Again::Resumed(theirs)));
        }
        // That session is over; should the answer to this login be lost, it is not the one to ask for.
        self.token = Key::random();
        let (mut connection, key) = (self.connect()?, SessionKey::generate());
        self.token = self.credentials.log_in(&mut connection, &key)?;
        Ok((connection, Again::LoggedIn(Box::new(key))))
    }

    fn connect(&self) -> Result<Connection, StartError> {
        connect(&self.options, |_| false)
    }

    /// What the server has taken in of the session; `None` if there is no such session any more.
    fn resume(&self, connection: &mut Connection, received: u64) -> Result<Option<u64>, StartError> {
        let name = &self.credentials.name;
        let request = ResumeRequest { version: VERSION, username: name.clone() };
        let challenge = match connection.ask(&ClientMessage::ResumeRequest(request))? {
            ServerMessage::ResumeChallenge(challenge) if challenge.version == VERSION => challenge,
            ServerMessage::Error(failure) => return Err(refusal(&failure, name)),
            _ => return Err(StartError::OutOfPlace),
        };
        let exporter = connection.channel.exporter().to_vec();
        let answer = auth::resume(name, &challenge, &exporter, &self.token, received);
        match connection.ask(&ClientMessage::Resume(answer))? {
            ServerMessage::Resumed(theirs) => Ok(Some(theirs.received)),
            ServerMessage::Error(failure) if failure.is(ErrorCode::NoSession) => Ok(None),
            ServerMessage::Error(failure) => Err(refusal(&failure, name)),
            _ => Err(StartError::OutOfPlace),
        }
    }
}

/// Whether another attempt is of no use, or not for a program to decide. A refused login is that the second time: the
/// password may be changing at this moment.
pub fn is_final(error: &StartError) -> bool {
    matches!(
        error,
        StartError::Elsewhere
            | StartError::ServerChanged { .. }
            | StartError::UnknownServer(..)
            | StartError::Auth(_)
            | StartError::Disk(_)
    )
}

/// Whether somebody was there and refused: worth telling, unlike one more time that nobody is reached. A refused login
/// is told when it is final.
pub fn is_refused(error: &StartError) -> bool {
    let is_channel = matches!(error, StartError::Channel(ChannelError::Io(_)));
    !is_channel && !matches!(error, StartError::Login | StartError::Unreachable(..) | StartError::Lost(_))
}

/// How long to wait before an attempt, from 0: at first hardly, then twice as long each time. Who lost the connection at the
/// same moment does not come back at the same moment.
pub fn pause(attempt: u32) -> Duration {
    let jitter = u64::from(u16::from_be_bytes(random()));
    let base = match attempt {
        0 => 100,
        n => FIRST_PAUSE.saturating_mul(1 << (n - 1).min(10)).min(LONGEST_PAUSE),
    };
    // Between three and five quarters of it.
    Duration::from_millis(base * 3 / 4 + base * jitter / (2 * u64::from(u16::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_half_a_minute_and_differ() {
        for _ in 0..100 {
            let pauses: Vec<u128> = (0..40).map(|attempt| pause(attempt).as_millis()).collect();
            assert!((75..=125).contains(&pauses[0]) && (750..=1250).contains(&pauses[1]), "{pauses:?}");
            assert!((3000..=5000).contains(&pauses[3]), "{pauses:?}");
            assert!(pauses[7..].iter().all(|pause| (22_500..=37_500).contains(pause)), "{pauses:?}");
        }
        let some: std::collections::BTreeSet<Duration> = (0..100).map(|_| pause(9)).collect();
        assert!(some.len() > 50);
    }
}
