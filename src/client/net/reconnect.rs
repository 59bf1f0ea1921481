//! Reconnects after a broken connection: decides whether and when to try, and resumes the session with its token or
//! logs in again.
//!
//! Invariant: the password is not kept, only the token and the key that represents the password for this server; both
//! are wiped on drop. A changed server key ends the attempts at once, a second refused login too. Specification:
//! PROTOCOL#resuming.

use super::connect::{Connection, MAX_RETRY_AFTER, reconnect, refusal};
use super::inbox::Inbox;
use super::login::Credentials;
use crate::auth::{self, PasswordKey};
use crate::client::error::StartError;
use crate::client::options::Options;
use crate::client::queue::Queue;
use crate::client::session::{Event, NewKey};
use crate::crypto::keys::SessionKey;
use crate::crypto::secret::{Key, random};
use crate::protocol::{ClientMessage, ErrorCode, ResumeRequest, ServerMessage, VERSION};
use crate::sync::lock;
use crate::wire::liveness::Clocks;
use std::io::ErrorKind;
use std::sync::Mutex;
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
/// A resumed connection that lasted this long was useful: the next attempt is immediate.
const USEFUL: Duration = Duration::from_secs(1);
/// The same after a login, which costs both sides an RSA key: a server that accepts us and closes is retried slowly.
const USEFUL_LOGIN: Duration = Duration::from_secs(15);

/// How the connection was restored.
pub enum Reconnected {
    /// The session continues: the server has received this number of its frames.
    Resumed(u64),
    /// A new session has begun, with this key.
    LoggedIn(Box<NewKey>),
}

/// What the user does meanwhile, reported by other threads.
pub struct User {
    /// When the user last pressed a key, or a line of input arrived.
    pub key: Mutex<Instant>,
    /// The key of a changed password, until the next attempt uses it.
    pub password_key: Mutex<Option<PasswordKey>>,
}

/// Everything that a reconnection needs.
pub struct Reconnector {
    options: Options,
    credentials: Credentials,
    token: Key,
    /// Attempts since the last useful connection.
    attempts: u32,
    /// The current connection counts as useful if it lasts this long.
    useful: Duration,
}

impl Reconnector {
    /// For the session after a login; `options` pin the key of its server.
    pub fn new(options: &Options, credentials: Credentials, token: Key) -> Reconnector {
        Reconnector { options: options.clone(), credentials, token, attempts: 0, useful: Duration::ZERO }
    }

    /// Replaces the token of the session.
    pub fn set_token(&mut self, token: Key) {
        self.token = token;
    }

    /// Tries until the session is resumed or replaced. The connection that was `lost` had lasted for `lasted`. `inbox`
    /// gets the time of each attempt; the end of `queue` ends the attempts.
    ///
    /// # Errors
    /// Why no further attempt is made; `None` if the link has ended.
    pub fn restore(
        &mut self,
        (lost, lasted): (Instant, Duration),
        user: &User,
        queue: &Queue,
        inbox: &Inbox,
    ) -> Result<(Connection, Reconnected), Option<String>> {
        if lasted >= self.useful {
            self.attempts = 0;
        }
        let (mut was_refused, mut asked, mut why) = (false, Duration::ZERO, None);
        loop {
            let key = || *lock(&user.key);
            let (now, wall) = (Instant::now(), SystemTime::now());
            let idle = now.saturating_duration_since(lost.max(key()));
            let mut pause = Pause::new(self.attempts, idle, asked, now, wall);
            if !inbox.tell(Event::Retry(pause.then, why)) {
                return Err(None);
            }
            while let Some(left) = pause.left(key(), Instant::now(), SystemTime::now()) {
                if queue.is_over_by(Instant::now() + left) {
                    return Err(None);
                }
            }
            // A key may have shortened the pause.
            if !inbox.tell(Event::Retry(Instant::now(), None)) || queue.is_over_by(Instant::now()) {
                return Err(None);
            }
            self.attempts += 1;
            if let Some(key) = lock(&user.password_key).take() {
                self.credentials.password_key = key;
            }
            let error = match self.again(inbox.read()) {
                Ok(again) => return Ok(again),
                Err((error, wait)) => {
                    asked = wait;
                    error
                }
            };
            why = match Outcome::of(&error) {
                Outcome::Final => return Err(Some(error.to_string())),
                Outcome::LoginRefused if was_refused => return Err(Some(error.to_string())),
                Outcome::LoginRefused => {
                    was_refused = true;
                    None
                }
                Outcome::Refused => Some(error.to_string()),
                Outcome::Unreachable => None,
            };
        }
    }

    /// One attempt. `received` is the number of frames received in the session. Errors contain the time that the server
    /// asks to wait.
    fn again(&mut self, received: u64) -> Result<(Connection, Reconnected), (StartError, Duration)> {
        let resumed =
            self.on_connection(|reconnector, connection| reconnector.resume(connection, received))?;
        if let (connection, Some(theirs)) = resumed {
            self.useful = USEFUL;
            return Ok((connection, Reconnected::Resumed(theirs)));
        }
        // The session has ended. If the answer to the following login is lost, the client must not ask for it again.
        self.token = Key::random();
        // Before connecting, because it takes up to a second.
        let key = SessionKey::generate();
        let log_in =
            |one: &Reconnector, connection: &mut _| one.credentials.log_in(connection, key, &one.options);
        let (connection, (key, token)) = self.on_connection(log_in)?;
        (self.token, self.useful) = (token, USEFUL_LOGIN);
        Ok((connection, Reconnected::LoggedIn(Box::new(key))))
    }

    /// Sends a request on a new connection.
    fn on_connection<T>(
        &self,
        ask: impl FnOnce(&Reconnector, &mut Connection) -> Result<T, StartError>,
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

/// The meaning of a failed attempt.
enum Outcome {
    /// Another attempt is useless, or the user must decide.
    Final,
    /// The server refuses the login, or this client refuses the challenge. Final the second time, because the password
    /// may be changing at this moment.
    LoginRefused,
    /// A server refused for another reason, which is reported.
    Refused,
    /// No server was reached, or the connection broke.
    Unreachable,
}

impl Outcome {
    fn of(error: &StartError) -> Outcome {
        match error {
            StartError::Elsewhere
            | StartError::ServerChanged { .. }
            | StartError::UnknownServer(..)
            | StartError::Auth(_) => Outcome::Final,
            StartError::Login | StartError::UnknownLogin(_) => Outcome::LoginRefused,
            StartError::Channel(error)
                if ![ErrorKind::Unsupported, ErrorKind::InvalidData].contains(&error.kind()) =>
            {
                Outcome::Unreachable
            }
            StartError::Unreachable(..) | StartError::Lost(_) => Outcome::Unreachable,
            _ => Outcome::Refused,
        }
    }
}

/// A pause before an attempt. A key press or a sleep of this machine ends it, but not the time that the server asks
/// for.
struct Pause {
    begun: Instant,
    /// When it ends.
    then: Instant,
    /// The earliest end.
    earliest: Instant,
    woken: bool,
    clocks: Clocks,
}

impl Pause {
    /// How often the pause checks for a key press.
    const LOOK: Duration = Duration::from_millis(250);

    /// Begins `now`, before attempt number `attempt` (the first is 0). `idle` is the time without a connection and
    /// without a key press, `asked` the time that the server asks to wait.
    fn new(attempt: u32, idle: Duration, asked: Duration, now: Instant, wall: SystemTime) -> Pause {
        let length =
            jittered(base(attempt, idle)).max(asked + jittered(if asked.is_zero() { 0 } else { PAUSES[0] }));
        let (then, earliest) = (now + length, now + length.min(SHORTEST.max(asked)));
        let mut clocks = Clocks::new(now, wall);
        clocks.expect(Pause::LOOK);
        Pause { begun: now, then, earliest, woken: false, clocks }
    }

    /// The time left; `None` if the pause is over. `key` is the moment of the last key press.
    fn left(&mut self, key: Instant, now: Instant, wall: SystemTime) -> Option<Duration> {
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
