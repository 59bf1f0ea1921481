//! Reconnects after a broken connection: resumes the session with its token, or logs in again.
//!
//! Invariant: the password is not kept, only the token and the key that represents the password for this server; both
//! are wiped on drop. A changed server key and a refused login are final: the client tries nothing that its user has
//! not allowed. Specification: PROTOCOL#resuming.

use super::connect::{Connection, MAX_RETRY_AFTER, reconnect, refusal};
use super::login::Credentials;
use crate::auth::{self, PasswordKey};
use crate::client::error::StartError;
use crate::client::options::Options;
use crate::client::session::NewKey;
use crate::crypto::keys::SessionKey;
use crate::crypto::secret::{Key, random};
use crate::protocol::{ClientMessage, ErrorCode, ResumeRequest, ServerMessage, VERSION};
use crate::wire::liveness::Clocks;
use std::io::ErrorKind;
use std::time::{Duration, Instant, SystemTime};

/// The limit of one attempt, from the name's address to the last answer; a login after it has the same limit again.
const ATTEMPT: Duration = Duration::from_secs(10);
/// Pauses before the first attempts, in milliseconds; the last one is repeated.
const PAUSES: [u64; 6] = [100, 1000, 2000, 4000, 8000, 15_000];
/// The pause, in milliseconds, after [`ABSENT`] without a connection and without a key press: nobody waits.
const SLOW_PAUSE: u64 = 60_000;
/// See [`SLOW_PAUSE`].
const ABSENT: Duration = Duration::from_secs(600);
/// Key presses shorten no pause below this, so that typing does not flood the server with attempts.
const SHORTEST: Duration = Duration::from_secs(1);

/// How the connection was restored.
pub enum Again {
    /// The session continues: the server has received this number of its frames.
    Resumed(u64),
    /// A new session has begun, with this key.
    LoggedIn(Box<NewKey>),
}

/// Everything that a reconnection needs.
pub struct Way {
    options: Options,
    credentials: Credentials,
    token: Key,
}

impl Way {
    /// After a login; `options` pin the key of its server.
    pub fn new(options: &Options, credentials: Credentials, token: Key) -> Way {
        Way { options: options.clone(), credentials, token }
    }

    /// Replaces the token of the session.
    pub fn set_token(&mut self, token: Key) {
        self.token = token;
    }

    /// Replaces the key of the password.
    pub fn set_password_key(&mut self, key: PasswordKey) {
        self.credentials.password_key = key;
    }

    /// One attempt. `received` is the number of frames received in the session.
    ///
    /// # Errors
    /// [`StartError`]: no server is reached, the connection breaks, or the server refuses; see [`is_final`]. Also the
    /// time that the server asks to wait.
    pub fn again(&mut self, received: u64) -> Result<(Connection, Again), (StartError, Duration)> {
        let resumed = self.on_connection(|way, connection| way.resume(connection, received))?;
        if let (connection, Some(theirs)) = resumed {
            return Ok((connection, Again::Resumed(theirs)));
        }
        // The session has ended. If the answer to the following login is lost, the client must not ask for it again.
        self.token = Key::random();
        // Before connecting, because it takes up to a second.
        let key = SessionKey::generate();
        let log_in = |way: &Way, connection: &mut _| way.credentials.log_in(connection, key, &way.options);
        let (connection, (key, token)) = self.on_connection(log_in)?;
        self.token = token;
        Ok((connection, Again::LoggedIn(Box::new(key))))
    }

    /// Sends a request on a new connection.
    fn on_connection<T>(
        &self,
        ask: impl FnOnce(&Way, &mut Connection) -> Result<T, StartError>,
    ) -> Result<(Connection, T), (StartError, Duration)> {
        let connected = reconnect(&self.options, Instant::now() + ATTEMPT);
        let mut connection = connected.map_err(|error| (error, Duration::ZERO))?;
        match ask(self, &mut connection) {
            Ok(answer) => Ok((connection, answer)),
            Err(error) => {
                let wait = match error {
                    StartError::Locked(_, seconds) => seconds,
                    // The user must set the clock; and other users would be notified of each login.
                    StartError::Clock(_) => 60,
                    _ => connection.retry_after.unwrap_or_default().min(MAX_RETRY_AFTER),
                };
                Err((error, Duration::from_secs(wait)))
            }
        }
    }

    /// The frames that the server has received in the session; `None` if the session has ended.
    fn resume(&self, connection: &mut Connection, received: u64) -> Result<Option<u64>, StartError> {
        let name = &self.credentials.name;
        let request = ResumeRequest { version: VERSION, username: name.clone() };
        let challenge = match connection.ask(&ClientMessage::ResumeRequest(request))? {
            ServerMessage::ResumeChallenge(challenge) => challenge,
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

/// Whether another attempt is useless, or for the user to decide. A refused login is final the second time, because the
/// password may be changing at this moment.
pub fn is_final(error: &StartError) -> bool {
    matches!(
        error,
        StartError::Elsewhere
            | StartError::ServerChanged { .. }
            | StartError::UnknownServer(..)
            | StartError::Auth(_)
    )
}

/// Whether the server refuses the login, or this client refuses the challenge.
pub fn is_login_refused(error: &StartError) -> bool {
    matches!(error, StartError::Login | StartError::UnknownLogin(_))
}

/// Whether a server refused, which is worth a report, unlike another failure to reach one. A refused login is reported
/// when it is final.
pub fn is_refused(error: &StartError) -> bool {
    match error {
        StartError::Channel(error) => {
            [ErrorKind::Unsupported, ErrorKind::InvalidData].contains(&error.kind())
        }
        StartError::Unreachable(..) | StartError::Lost(_) => false,
        error => !is_login_refused(error),
    }
}

/// A pause before an attempt. A key press or a sleep of this machine ends it, but not the time that the server asks
/// for.
pub struct Pause {
    begun: Instant,
    /// When it ends.
    pub then: Instant,
    /// The earliest end.
    earliest: Instant,
    woken: bool,
    clocks: Clocks,
}

impl Pause {
    /// How often the pause checks for a key press.
    pub const LOOK: Duration = Duration::from_millis(250);

    /// Begins `now`, before attempt number `attempt`, from 0. `idle` is the time without a connection and without a
    /// key press, `asked` the time that the server asks to wait.
    pub fn new(attempt: u32, idle: Duration, asked: Duration, now: Instant, wall: SystemTime) -> Pause {
        let length =
            jittered(base(attempt, idle)).max(asked + jittered(if asked.is_zero() { 0 } else { PAUSES[0] }));
        let (then, earliest) = (now + length, now + length.min(SHORTEST.max(asked)));
        let mut clocks = Clocks::new(now, wall);
        clocks.expect(Pause::LOOK);
        Pause { begun: now, then, earliest, woken: false, clocks }
    }

    /// The time left; `None` if the pause is over. `key` is the moment of the last key press.
    pub fn left(&mut self, key: Instant, now: Instant, wall: SystemTime) -> Option<Duration> {
        self.woken |= self.clocks.slept(now, wall) || key > self.begun;
        let end = if self.woken { self.earliest } else { self.then };
        (now < end).then(|| (end - now).min(Pause::LOOK))
    }
}

/// The pause in milliseconds.
fn base(attempt: u32, idle: Duration) -> u64 {
    if idle >= ABSENT { SLOW_PAUSE } else { PAUSES[PAUSES.len().min(attempt as usize + 1) - 1] }
}

/// Between three and five quarters of the pause, so that clients that lost the connection together do not return
/// together.
fn jittered(base: u64) -> Duration {
    let jitter = u64::from(u16::from_be_bytes(random()));
    Duration::from_millis(base * 3 / 4 + base * jitter / (2 * u64::from(u16::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(attempt: u32, idle: u64, asked: u64) -> (Pause, Instant) {
        let (now, wall) = (Instant::now(), SystemTime::now());
        (Pause::new(attempt, Duration::from_secs(idle), Duration::from_secs(asked), now, wall), now)
    }

    #[test]
    fn pauses_grow_to_15_s_then_to_a_minute_and_differ() {
        for _ in 0..100 {
            let length = |attempt, idle| {
                let (pause, now) = pause(attempt, idle, 0);
                (pause.then - now).as_millis()
            };
            let usual = [100, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000];
            for (attempt, usual) in (0..).zip(usual) {
                assert!((usual * 3 / 4..=usual * 5 / 4).contains(&length(attempt, 599)));
            }
            assert!((45_000..=75_000).contains(&length(99, 600)));
        }
        let some: std::collections::BTreeSet<Instant> = (0..100).map(|_| pause(9, 0, 0).0.then).collect();
        assert!(some.len() > 50);
    }

    #[test]
    fn key_or_sleep_ends_a_pause_after_a_second() {
        let second = Duration::from_secs(1);
        for sleeps in [false, true] {
            let (mut pause, now) = pause(5, 0, 0);
            let wall = SystemTime::now();
            assert_eq!(pause.left(now, now, wall), Some(Pause::LOOK));
            let (key, wall) = if sleeps { (now, wall + 60 * second) } else { (now + second / 8, wall) };
            assert_eq!(pause.left(key, now + second / 4, wall), Some(Pause::LOOK));
            assert_eq!(pause.left(now, now + second, wall + second), None);
        }
        let (mut pause, now) = pause(5, 0, 0);
        assert!(pause.left(now, now + second, SystemTime::now() + second).is_some());
        assert!(pause.left(now, pause.then, SystemTime::now()).is_none());
    }

    #[test]
    fn pause_lasts_as_long_as_the_server_asks() {
        let (mut pause, now) = pause(0, 0, 30);
        let (asked, wall) = (Duration::from_secs(30), SystemTime::now());
        assert!((asked..asked + Duration::from_millis(126)).contains(&(pause.then - now)));
        assert!(pause.left(now + asked / 2, now + asked - Duration::from_millis(1), wall).is_some());
        assert!(pause.left(now + asked / 2, now + asked, wall).is_none());
    }
}
