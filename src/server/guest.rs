//! One who is not logged in: registration, login, a new password; [`resume`](super::resume) has the rest.
//!
//! Invariant: everything comes before one deadline and in few short lines; who gets an `Entry` has proven to be somebody.

use super::grace::Turn;
use super::rates::origin;
use super::registry::Place;
use super::store::accounts::{RegisterError, Seen};
use super::{Shared, limits, lock};
use crate::auth::{self, AuthError, Authenticated, PendingLogin};
use crate::clock;
use crate::crypto::public::Fingerprint;
use crate::name::Username;
use crate::protocol::{
    ClientMessage, DecodeError, ErrorCode, Failure, LoginRequest, MAX_LINE_BEFORE_LOGIN, PasswordChange,
    Register, ServerMessage,
};
use crate::wire::frame::Lines;
use crate::wire::tls::{Channel, Reader, Received};
use std::io;
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A connection that is not logged in.
pub(super) struct Guest<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) address: IpAddr,
    pub(super) channel: Channel,
    /// Of the handshake: `None` without TLS.
    pub(super) server_key: Option<Fingerprint>,
    pub(super) reader: Reader,
    pub(super) lines: Lines,
    deadline: Instant,
    /// The first line has come.
    begun: bool,
    /// Lines that may still come before the login is complete.
    patience: u32,
}

/// A connection that ends has this long for its last words, and the other side's: a round trip, and no more.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Bytes that are read from the other side meanwhile: what was in flight.
const LAST_BYTES: usize = 1024 * 1024;

/// Closing a socket with unread bytes makes the kernel throw the last answer away: what still
/// comes is read while it `is_sent`, for at most [`limits::FAREWELL`], and for a moment and [`LAST_BYTES`] more.
pub(super) fn linger(channel: &Channel, reader: &mut Reader, is_sent: impl Fn() -> bool) {
    let begun = Instant::now();
    let mut end = begun + LAST_WORD;
    let (mut sink, mut left) = (Vec::new(), LAST_BYTES);
    loop {
        let now = Instant::now();
        if now < begun + limits::FAREWELL && is_sent() {
            (end, left) = (now + LAST_WORD, LAST_BYTES);
        }
        if end <= now {
            return;
        }
        match channel.receive(reader, &mut sink, limits::NOTICE.min(end - now)) {
            Ok(Received::Some) if sink.len() < left => left -= sink.len(),
            Ok(Received::Silence) => {}
            _ => return,
        }
        sink.clear();
    }
}

/// Why a guest is shown out.
pub(super) enum Refusal {
    /// The connection is of no more use; nothing can be said.
    Gone,
    /// The last thing that is said.
    Say(ServerMessage),
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Refusal::Gone
    }
}

/// PROTOCOL#closing-errors.
pub(super) fn refuse(code: ErrorCode, text: &str) -> Refusal {
    Refusal::Say(ServerMessage::error(code, text))
}

/// PROTOCOL#not-a-message, PROTOCOL#version.
pub(super) fn not_a_message(error: DecodeError) -> ServerMessage {
    let code = match error {
        DecodeError::Malformed => ErrorCode::Malformed,
        DecodeError::UnknownType => ErrorCode::UnknownType,
        DecodeError::OtherVersion(_) => ErrorCode::UnsupportedVersion,
    };
    ServerMessage::error(code, error.to_string())
}

/// A session that was taken from its former connection.
pub struct Resumption {
    /// The right to handle the session's frames from now on.
    pub turn: Turn,
    /// See [`Outbox::claim`](super::outbox::Outbox::claim).
    pub claim: u64,
    /// Frames that the client has taken in, since the login.
    pub received: u64,
}

/// How a guest became a client.
pub(super) enum Entry<'a> {
    Login(Box<Authenticated>, Place<'a>),
    Resumed(Resumption),
}

impl<'a> Guest<'a> {
    /// The handshake. `None` if nothing came of it.
    pub(super) fn welcome(
        shared: &'a Arc<Shared>,
        socket: Arc<TcpStream>,
        address: IpAddr,
    ) -> Option<Guest<'a>> {
        let deadline = Instant::now() + limits::FIRST_LINE;
        let lines = Lines::new(MAX_LINE_BEFORE_LOGIN);
        let certificate =
            shared.certificates.as_ref().map(|certificates| certificates.current(&shared.audit));
        let (acceptor, server_key) = certificate.unzip();
        shared.end_connections_of_another_key();
        let Ok(channel) = Channel::accept(acceptor, socket, deadline) else {
            shared.audit.limit("handshake_failed", None, Some(address), "");
            return None;
        };
        let (reader, patience) = (Reader::default(), limits::LINES_BEFORE_LOGIN);
        Some(Guest { shared, address, channel, server_key, reader, lines, deadline, begun: false, patience })
    }

    /// Says why, and ends the connection.
    pub(super) fn show_out(mut self, refusal: Refusal) {
        if let Refusal::Say(message) = refusal {
            // Time for the last word, also when time is what ran out.
            self.deadline = Instant::now() + LAST_WORD;
            let _ = self.say(&message);
        }
        self.channel.end();
        linger(&self.channel, &mut self.reader, || false);
    }

    pub(super) fn say(&self, message: &ServerMessage) -> io::Result<()> {
        let mut wire = Vec::new();
        self.channel.encrypt(&message.encode(), &mut wire)?;
        self.channel.send_by(&wire, self.deadline)
    }

    /// The next message, within the deadline. PROTOCOL#deadlines.
    fn hear(&mut self) -> Result<ClientMessage, Refusal> {
        loop {
            let wait = self.deadline.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                self.shared.audit.limit("login_timed_out", None, Some(self.address), "");
                return Err(refuse(ErrorCode::TimedOut, "the login took too long"));
            }
            match self.lines.next_line() {
                Ok(Some(_)) if self.patience == 0 => {
                    return Err(refuse(ErrorCode::TooManyRequests, "too many lines before a login"));
                }
                Ok(Some(line)) => {
                    self.patience -= 1;
                    return ClientMessage::decode(line).map_err(|e| Refusal::Say(not_a_message(e)));
                }
                Ok(None) => {}
                Err(_) => {
                    return Err(refuse(ErrorCode::LineTooLong, "a line before login has at most 16 KiB"));
                }
            }
            if self.channel.receive(&mut self.reader, self.lines.buffer(), wait)? == Received::End {
                return Err(Refusal::Gone);
            }
        }
    }

    /// The next message that is part of a login.
    pub(super) fn next(&mut self) -> Result<ClientMessage, Refusal> {
        loop {
            let message = self.hear()?;
            if !self.begun {
                (self.begun, self.deadline) = (true, Instant::now() + limits::LOGIN);
            }
            match message {
                ClientMessage::Ping => self.say(&ServerMessage::Pong)?,
                ClientMessage::Pong => {}
                ClientMessage::Logout => return Err(Refusal::Gone),
                message => return Ok(message),
            }
        }
    }

    /// Registrations, then a login or a resumption, which succeeds or fails. PROTOCOL#connection-order.
    pub(super) fn log_in(&mut self) -> Result<Entry<'a>, Refusal> {
        loop {
            match self.next()? {
                ClientMessage::Register(request) => self.register(request)?,
                ClientMessage::LoginRequest(request) => {
                    let login = self.challenge(request);
                    return login.map(|(login, place)| Entry::Login(Box::new(login), place));
                }
                ClientMessage::ResumeRequest(request) => return self.resume(request).map(Entry::Resumed),
                ClientMessage::ChallengeResponse(_)
                | ClientMessage::PasswordChange(_)
                | ClientMessage::Resume(_) => {
                    let text = "ask for a challenge first: login_request, resume_request";
                    return Err(refuse(ErrorCode::NoChallenge, text));
                }
                _ => return Err(refuse(ErrorCode::NotLoggedIn, "log in first")),
            }
        }
    }

    fn audit(&self, event: &'static str, user: &Username) {
        self.shared.audit.log(event, Some(user), Some(self.address), "");
    }

    /// PROTOCOL#registration-limit.
    fn register(&mut self, request: Register) -> Result<(), Refusal> {
        if self.shared.closed {
            return Err(refuse(ErrorCode::RegistrationClosed, "this server makes no new accounts"));
        }
        let name = request.username.clone();
        if name.is_reserved() {
            // PROTOCOL#reserved-names.
            let text = format!("{} is a word of the messenger itself: choose another name", name.as_str());
            return Err(refuse(ErrorCode::NameReserved, &text));
        }
        self.count_record()?;
        let (account, identity) = auth::accept_registration(request).map_err(auth_error)?;
        // On disk first: PROTOCOL#confirmed.
        match self.shared.accounts.register(account, &identity) {
            Ok(()) => {
                self.audit("registered", &name);
                Ok(self.say(&ServerMessage::Registered)?)
            }
            Err(RegisterError::NameTaken) => {
                self.audit("name_taken", &name);
                let text = "this name is taken: choose another";
                Ok(self.say(&ServerMessage::error(ErrorCode::NameTaken, text))?)
            }
            Err(RegisterError::Io(error)) => Err(self.not_stored(&name, &error)),
        }
    }

    /// What makes `users.json` grow is counted by address.
    fn count_record(&self) -> Result<(), Refusal> {
        lock(&self.shared.registrations).take(origin(self.address), Instant::now()).map_err(|wait| {
            self.shared.audit.limit("too_many_registrations", None, Some(self.address), "");
            Refusal::Say(ServerMessage::Error(Failure {
                code: ErrorCode::TooManyRequests.as_str().into(),
                message: "too many new accounts and passwords from your address".into(),
                id: None,
                retry_after: Some(wait.as_secs() + 1),
            }))
        })
    }

    fn not_stored(&self, name: &Username, error: &io::Error) -> Refusal {
        self.shared.audit.log("storage_failed", Some(name), Some(self.address), &error.to_string());
        refuse(ErrorCode::ServerError, "the server cannot store accounts now: tell its operator")
    }

    fn challenge(&mut self, request: LoginRequest) -> Result<(Authenticated, Place<'a>), Refusal> {
        self.refuse_locked(&request.username)?;
        let seen = self.shared.accounts.see(&request.username);
        let (account, secret) = (seen.as_ref().map(|seen| &*seen.account), &self.shared.salt_secret);
        let (pending, challenge) = PendingLogin::new(request, account, secret).map_err(auth_error)?;
        self.say(&ServerMessage::Challenge(challenge))?;
        let response = match self.next()? {
            ClientMessage::ChallengeResponse(response) => response,
            ClientMessage::PasswordChange(change) => {
                return Err(self.change_password(pending, seen.as_ref(), *change));
            }
            _ => return Err(refuse(ErrorCode::NotLoggedIn, "answer the challenge first")),
        };
        let (name, now) = (pending.name().clone(), clock::now_ms());
        let offered = auth::offered(&response.session_key, response.created, &response.certificate, now);
        let certificate = offered.map_err(|error| self.no_guess(&name, error))?;
        let locks = self.count_attempt(&name)?;
        let verified = pending.verify(&response, certificate, self.channel.exporter(), now);
        let login = verified.map_err(|error| self.failed("login_failed", &name, locks, error))?;
        self.shared.lockout.forgive(&name, self.address);
        // PROTOCOL#login-race.
        if !seen.is_some_and(|seen| self.shared.accounts.admit(&seen)) {
            return Err(self.no_guess(&name, AuthError::Denied));
        }
        let Some(place) = self.place(login.name()) else {
            self.shared.audit.limit("server_full", Some(&name), Some(self.address), "");
            return Err(refuse(ErrorCode::ServerFull, "the server is full: try again later"));
        };
        self.audit("login", &name);
        Ok((login, place))
    }

    /// One without a connection gives up its place. PROTOCOL#full.
    pub(super) fn place(&self, name: &Username) -> Option<Place<'a>> {
        let shared = self.shared;
        loop {
            let place = shared.registry.place(name, shared.limits.clients);
            if place.is_some() || !shared.grace.end_first(shared) {
                return place;
            }
        }
    }

    /// The last word on a request for a new password. PROTOCOL#password-race.
    fn change_password(&self, pending: PendingLogin, seen: Option<&Seen>, change: PasswordChange) -> Refusal {
        let name = pending.name().clone();
        let rounds = auth::acceptable(change.rounds).map_err(|error| self.no_guess(&name, error));
        let changed = rounds.and_then(|_| self.count_attempt(&name)).and_then(|locks| {
            let failed = |error| self.failed("password_change_failed", &name, locks, error);
            let new = pending.verify_change(change, self.channel.exporter()).map_err(failed)?;
            self.shared.lockout.forgive(&name, self.address);
            self.count_record()?;
            let stored = seen.map_or(Ok(false), |seen| self.shared.accounts.change(seen, new));
            match stored.map_err(|error| self.not_stored(&name, &error))? {
                true => Ok(()),
                false => Err(self.no_guess(&name, AuthError::Denied)),
            }
        });
        match changed {
            Err(refusal) => refusal,
            Ok(()) => {
                self.audit("password_changed", &name);
                Refusal::Say(ServerMessage::PasswordChanged)
            }
        }
    }

    /// Counted before any proof is checked: parallel guesses are guesses too. True if it is the one that
    /// locks the name. PROTOCOL#lockout.
    fn count_attempt(&self, name: &Username) -> Result<bool, Refusal> {
        self.shared.lockout.count(name, self.address).map_err(|left| self.locked(name, left))
    }

    fn failed(&self, event: &'static str, name: &Username, locks: bool, error: AuthError) -> Refusal {
        self.audit(event, name);
        if locks {
            self.audit("locked", name);
            if let Err(error) = self.shared.lockout.remember(name) {
                self.shared.audit.log("storage_failed", Some(name), None, &error.to_string());
            }
        }
        auth_error(error)
    }

    /// A refusal for what the client alone is to blame for, or because the account has changed since the challenge: neither
    /// counted nor logged as a guess. PROTOCOL#lockout.
    fn no_guess(&self, name: &Username, error: AuthError) -> Refusal {
        self.shared.audit.limit("login_refused", Some(name), Some(self.address), "");
        auth_error(error)
    }

    fn refuse_locked(&self, name: &Username) -> Result<(), Refusal> {
        match self.shared.lockout.locked(name, self.address) {
            Some(left) => Err(self.locked(name, left)),
            None => Ok(()),
        }
    }

    fn locked(&self, name: &Username, left: Duration) -> Refusal {
        self.shared.audit.limit("login_while_locked", Some(name), Some(self.address), "");
        let message = "too many failed logins".to_string();
        let (code, retry_after) = (ErrorCode::Locked.as_str().into(), Some(left.as_secs() + 1));
        Refusal::Say(ServerMessage::Error(Failure { code, message, id: None, retry_after }))
    }
}

fn auth_error(error: AuthError) -> Refusal {
    let code = match error {
        AuthError::BadRounds => ErrorCode::BadRounds,
        AuthError::BadKey | AuthError::Clock(_) => ErrorCode::BadKey,
        AuthError::Denied => ErrorCode::LoginFailed,
    };
    refuse(code, &error.to_string())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::shared;
    use super::*;
    use crate::crypto::secret::Key;
    use crate::encoding::{Bytes, Fixed};
    use crate::protocol::VERSION;
    use std::io::Write;
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicBool, Ordering};

    const HOUR: Duration = Duration::from_secs(3600);

    /// One who is not logged in, and the other end of the connection.
    pub fn guest(shared: &Arc<Shared>) -> (Guest<'_>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (near, _) = listener.accept().expect("accepted");
        let guest = Guest {
            server_key: None,
            shared,
            address: [127, 0, 0, 1].into(),
            channel: Channel::bare(Arc::new(near)).expect("a socket"),
            reader: Reader::default(),
            lines: Lines::new(MAX_LINE_BEFORE_LOGIN),
            deadline: Instant::now() + HOUR,
            begun: true,
            patience: 1,
        };
        (guest, far)
    }

    #[test]
    fn farewell_outlasts_a_client_that_keeps_sending() {
        let (shared, _folder) = shared(HOUR);
        let (mut guest, mut far) = guest(&shared);
        let is_out = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| {
                // Far more than any buffer holds.
                let sent = (0..64).try_for_each(|_| far.write_all(&[b'x'; 1024 * 1024]));
                is_out.store(true, Ordering::Relaxed);
                sent
            });
            linger(&guest.channel, &mut guest.reader, || !is_out.load(Ordering::Relaxed));
            drop(guest);
            sending.join().expect("whole").expect("all of it was read");
        });
    }

    #[test]
    fn refused_client_cannot_hold_its_thread() {
        for floods in [false, true] {
            let (shared, _folder) = shared(HOUR);
            let (mut guest, mut far) = guest(&shared);
            std::thread::scope(|scope| {
                let flood = scope.spawn(|| {
                    let lines = vec![b'x'; 1024 * 1024];
                    (0..1024).take_while(|_| floods && far.write_all(&lines).is_ok()).count()
                });
                linger(&guest.channel, &mut guest.reader, || false);
                drop(guest);
                // Beside the mebibyte that is read, the kernel holds some.
                let taken = flood.join().expect("whole");
                assert!(taken < 64, "{taken} MiB were read");
            });
        }
    }

    /// PROTOCOL#lockout, PROTOCOL#registration-limit.
    #[test]
    fn retry_after_is_long_enough() {
        let (shared, _folder) = shared(HOUR);
        let (guest, _far) = guest(&shared);
        let said = |refusal: Refusal| match refusal {
            Refusal::Say(ServerMessage::Error(Failure { retry_after: Some(seconds), .. })) => seconds,
            _ => panic!("no time is told"),
        };
        for (left, seconds) in [(1, 1), (999, 1), (1500, 2), (899_999, 900)] {
            assert_eq!(
                said(guest.locked(&"alice".parse().expect("name"), Duration::from_millis(left))),
                seconds
            );
        }
        let refused = loop {
            if let Err(refusal) = guest.count_record() {
                break said(refusal);
            }
        };
        let left =
            lock(&shared.registrations).take(origin(guest.address), Instant::now()).expect_err("too many");
        assert!(
            Duration::from_secs(refused) >= left
                && left + Duration::from_secs(60) > Duration::from_secs(refused)
        );
    }

    /// PROTOCOL#lockout.
    #[test]
    fn lock_is_reported_before_the_key_and_allows_registration() {
        let (shared, _folder) = shared(HOUR);
        let (mut guest, mut far) = guest(&shared);
        guest.patience = 2;
        for n in 0..limits::MAX_FAILURES_PER_ADDRESS {
            let name = format!("name{n}").parse().expect("name");
            assert!(shared.lockout.count(&name, guest.address).is_ok());
        }
        let code = |refusal: Refusal| match refusal {
            Refusal::Say(ServerMessage::Error(failure)) => failure.code,
            _ => panic!("not told"),
        };
        let no_key = || Bytes(Vec::new());
        for (version, told) in [(VERSION + 1, "unsupported_version"), (VERSION, "locked")] {
            let username = "alice".parse().expect("name");
            let request = LoginRequest { version, username, public_key: no_key() };
            far.write_all(&ClientMessage::LoginRequest(request).encode()).expect("sent");
            assert_eq!(guest.log_in().err().map(code), Some(told.into()));
        }
        let request = Register {
            version: VERSION,
            username: "alice".parse().expect("name"),
            salt: Fixed([0; 32]),
            rounds: 600_000,
            password_key: Key::random(),
            public_key: no_key(),
        };
        // It is looked at: there is no key in it.
        assert_eq!(guest.register(request).err().map(code), Some("bad_key".into()));
    }
}
