//! A connection before it has a session: handshake, registration, login, change of password, resumption.
//!
//! Invariants: everything here ends by one deadline and accepts a few short lines. Only a client that has proven its
//! identity gets a session. A failed resumption takes the same steps and gets the same answer whatever the reason,
//! unless the client proves that another client of the same user has replaced it. A resumption changes nothing before
//! its proof and its count are verified.

use super::connection_limits::Ticket;
use super::limits;
use super::rates::{Bucket, origin};
use super::registry::replaced;
use super::session::io::Link;
use super::session::outbox::{Attached, Outbox};
use super::session::{OWN_TOKENS, Session};
use super::shared::Shared;
use super::store::accounts::Seen;
use crate::auth::{self, Authenticated, PendingLogin, PendingResume};
use crate::clock;
use crate::crypto::public::Fingerprint;
use crate::crypto::secret::Key;
use crate::name::Username;
use crate::protocol::{
    ClientMessage, DecodeError, ErrorCode, Failure, LoginRequest, MAX_LINE, MAX_LINE_BEFORE_LOGIN,
    PasswordChange, Received as Position, Register, ResumeRequest, ServerMessage,
};
use crate::sync::lock;
use crate::wire::frame::Lines;
use crate::wire::tls::{Channel, Reader, Received};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A session and the connection that serves it. However its thread ends, even by a panic, the connection leaves the
/// session, which then waits for another one.
pub(super) struct Served {
    pub(super) shared: Arc<Shared>,
    pub(super) session: Arc<Session>,
    pub(super) link: Arc<Link>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.session.outbox.detach(&self.link);
    }
}

/// Time for the final error, and for bytes in flight from the client: a slow round trip.
const FINAL_ERROR: Duration = Duration::from_secs(1);

/// The most bytes that are read from the client in this time: a line of the longest length.
const IN_FLIGHT: usize = MAX_LINE;

/// A connection, with the bytes that have arrived on it.
pub(super) struct Connection {
    pub(super) link: Arc<Link>,
    pub(super) reader: Reader,
    pub(super) lines: Lines,
}

impl Connection {
    /// As [`Channel::receive`].
    pub(super) fn receive(&mut self, wait: Duration) -> io::Result<Received> {
        self.link.channel.receive(&mut self.reader, self.lines.buffer(), wait)
    }

    /// Discards what the client sends, because the kernel drops the final error when a socket with unread bytes is
    /// closed: while the farewell `is_being_sent`, at most [`limits::FAREWELL`], and then for [`FINAL_ERROR`] or
    /// [`IN_FLIGHT`] bytes more.
    pub(super) fn linger(&mut self, is_being_sent: impl Fn() -> bool) {
        let begun = Instant::now();
        let mut end = begun + FINAL_ERROR;
        let (mut sink, mut left) = (Vec::new(), IN_FLIGHT);
        loop {
            let now = Instant::now();
            if now < begun + limits::FAREWELL && is_being_sent() {
                (end, left) = (now + FINAL_ERROR, IN_FLIGHT);
            }
            if end <= now {
                return;
            }
            match self.link.channel.receive(&mut self.reader, &mut sink, limits::NOTICE.min(end - now)) {
                Ok(Received::Some) if sink.len() < left => left -= sink.len(),
                Ok(Received::Silence) => {}
                _ => return,
            }
            sink.clear();
        }
    }
}

/// A connection that has no session yet.
pub(super) struct Login<'a> {
    shared: &'a Arc<Shared>,
    pub(super) connection: Connection,
    /// The server's key at the handshake: `None` without TLS.
    pub(super) server_key: Option<Fingerprint>,
    deadline: Instant,
    /// Lines that the client may still send before it has a session.
    lines_left: u32,
}

/// Why a login ends without a session: the final message, or `None` if the connection has failed.
pub(super) struct Refusal(Option<Box<ServerMessage>>);

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Refusal(None)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Refusal(Some(ServerMessage::Error(failure).into()))
    }
}

/// PROTOCOL#closing-errors.
fn refuse(code: ErrorCode, text: &str) -> Refusal {
    Failure::new(code, text).into()
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

impl<'a> Login<'a> {
    /// The handshake. `None` if it fails.
    pub(super) fn handshake(shared: &'a Arc<Shared>, ticket: Ticket) -> Option<Login<'a>> {
        let deadline = Instant::now() + limits::FIRST_LINE;
        let certificate =
            shared.store.certificates.as_ref().map(|certificates| certificates.current(&shared.store.audit));
        let (acceptor, server_key) = certificate.unzip();
        shared.end_connections_of_another_key();
        let Ok(channel) = Channel::accept(acceptor, ticket.socket.clone(), deadline) else {
            shared.store.audit.limit("handshake_failed", None, Some(ticket.address), "");
            return None;
        };
        let (link, lines) = (Arc::new(Link { channel, ticket }), Lines::new(MAX_LINE_BEFORE_LOGIN));
        let connection = Connection { link, reader: Reader::default(), lines };
        Some(Login { shared, connection, server_key, deadline, lines_left: limits::LINES_BEFORE_LOGIN })
    }

    /// Sends the reason why there is no session, and ends the connection.
    pub(super) fn refuse(mut self, Refusal(message): Refusal) {
        if let Some(message) = message {
            // The deadline may have passed; that may be the reason.
            self.deadline = Instant::now() + FINAL_ERROR;
            let _ = self.send(&message);
        }
        self.connection.link.channel.end();
        self.connection.linger(|| false);
    }

    fn address(&self) -> IpAddr {
        self.connection.link.ticket.address
    }

    fn exporter(&self) -> &[u8] {
        self.connection.link.channel.exporter()
    }

    fn send(&self, message: &ServerMessage) -> io::Result<()> {
        let (channel, mut wire) = (&self.connection.link.channel, Vec::new());
        channel.encrypt(&message.encode(), &mut wire)?;
        channel.send_by(&wire, self.deadline)
    }

    /// The next message that is part of a login, within the deadline. PROTOCOL#deadlines.
    fn next(&mut self) -> Result<ClientMessage, Refusal> {
        loop {
            let wait = self.deadline.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                self.limit("login_timed_out", None);
                return Err(refuse(ErrorCode::TimedOut, "the login took too long"));
            }
            let decoded = match self.connection.lines.next_line() {
                Ok(Some(_)) if self.lines_left == 0 => {
                    return Err(refuse(ErrorCode::TooManyRequests, "too many lines before a login"));
                }
                Ok(line) => line.map(ClientMessage::decode),
                Err(_) => {
                    return Err(refuse(ErrorCode::LineTooLong, "a line before login has at most 16 KiB"));
                }
            };
            let Some(decoded) = decoded else {
                if self.connection.receive(wait)? == Received::End {
                    return Err(Refusal(None));
                }
                continue;
            };
            if self.lines_left == limits::LINES_BEFORE_LOGIN {
                self.deadline = Instant::now() + limits::LOGIN;
            }
            self.lines_left -= 1;
            match decoded.map_err(|error| Refusal(Some(not_a_message(error).into())))? {
                ClientMessage::Ping => self.send(&ServerMessage::Pong)?,
                ClientMessage::Pong => {}
                ClientMessage::Logout => return Err(Refusal(None)),
                message => return Ok(message),
            }
        }
    }

    /// Handles registrations, then one login or resumption. Returns the session that continues on this connection.
    /// PROTOCOL#connection-order.
    pub(super) fn run(&mut self) -> Result<Served, Refusal> {
        loop {
            match self.next()? {
                ClientMessage::Register(request) => self.register(request)?,
                ClientMessage::LoginRequest(request) => {
                    let login = self.challenge(request)?;
                    return self.log_in(&login);
                }
                ClientMessage::ResumeRequest(request) => return self.resume(request),
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

    fn serve(&self, session: Arc<Session>) -> Served {
        Served { shared: self.shared.clone(), session, link: self.connection.link.clone() }
    }

    /// A new session on this connection. If the server is full, the longest detached session makes room for it.
    fn log_in(&mut self, login: &Authenticated) -> Result<Served, Refusal> {
        let (shared, limits, name) = (self.shared, &self.shared.limits, login.name());
        let newest = shared.store.accounts.take_certificate(name, login.certificate().created);
        let rate = shared.store.accounts.rate(name, Bucket::of_account(limits.rate));
        let outbox = Outbox::new(limits.outbox, rate, shared.quotas.clone(), self.address());
        let served = self.serve(Arc::new(Session::new(login, clock::now_ms(), outbox)));
        let session = &served.session;
        while !shared.registry.insert(session, limits.clients) {
            if !shared.end_longest_detached() {
                self.limit("server_full", Some(name));
                return Err(refuse(ErrorCode::ServerFull, "the server is full: try again later"));
            }
        }
        // Made before `attach`, which holds `io`: the lock of the token comes before it.
        let hello = ServerMessage::Session(session.announcement(newest)).encode();
        let link = self.connection.link.clone();
        let attached = session.outbox.attach(link, 0, limits::RESUME_PATIENCE, |_| hello);
        // Another login may have replaced the session already, or the account was removed since the verification.
        let (mut ended, identity) = (replaced(), login.identity().fingerprint());
        if shared.store.accounts.get(name).is_none_or(|account| account.identity != identity) {
            let text = "this account was removed just now";
            shared.dismiss(session, ErrorCode::AccountRemoved, text);
            ended = Failure::new(ErrorCode::AccountRemoved, text);
        }
        if attached == Attached::Yes { Ok(served) } else { Err(ended.into()) }
    }

    /// Resumes a session on this connection. PROTOCOL#resume-rules.
    fn resume(&mut self, request: ResumeRequest) -> Result<Served, Refusal> {
        let (pending, challenge) = PendingResume::new(request.username);
        self.send(&ServerMessage::ResumeChallenge(challenge))?;
        let ClientMessage::Resume(answer) = self.next()? else {
            return Err(refuse(ErrorCode::NotLoggedIn, "answer the challenge first"));
        };
        loop {
            // Look up the session only now: it may have ended or begun since the challenge.
            let session = self.shared.registry.get(pending.name());
            // Made for known names too, so that timing does not reveal unknown ones.
            let nobody = std::array::from_fn(|_| Key::random());
            let tokens = session.as_deref().map_or(nobody, |session| session.tokens(clock::now_ms()));
            // A token cannot be guessed, so no failure is counted.
            let which = pending.verify(&answer, self.exporter(), &tokens);
            // PROTOCOL#elsewhere.
            if which.is_some_and(|which| which >= OWN_TOKENS) {
                // Otherwise this client would log in, and disconnect the client that has replaced it.
                return Err(replaced().into());
            }
            // PROTOCOL#no-session.
            let no_session = || refuse(ErrorCode::NoSession, "there is no such session to resume: log in");
            let session = session.filter(|_| which.is_some()).ok_or_else(no_session)?;
            let served = self.serve(session.clone());
            let hello = |received| ServerMessage::Resumed(Position { received }).encode();
            let link = self.connection.link.clone();
            match session.outbox.attach(link, answer.received, limits::RESUME_PATIENCE, hello) {
                Attached::Yes => {
                    self.audit("resumed", pending.name());
                    return Ok(served);
                }
                Attached::NoSession => {
                    let current = self.shared.registry.settled(pending.name());
                    if current.is_some_and(|current| Arc::ptr_eq(&current, &session)) {
                        return Err(no_session());
                    }
                    // The session has ended or was replaced in the meantime: answer as if the request came only now.
                }
                Attached::Busy => {
                    let text = "the previous connection is still busy: try again";
                    return Err(refuse(ErrorCode::TimedOut, text));
                }
                Attached::Overtaken => return Err(Refusal(None)),
            }
        }
    }

    fn audit(&self, event: &'static str, user: &Username) {
        self.shared.store.audit.log(event, Some(user), Some(self.address()), "");
    }

    fn limit(&self, event: &'static str, user: Option<&Username>) {
        self.shared.store.audit.limit(event, user, Some(self.address()), "");
    }

    /// PROTOCOL#registration-limit.
    fn register(&mut self, request: Register) -> Result<(), Refusal> {
        if self.shared.closed {
            return Err(refuse(ErrorCode::RegistrationClosed, "this server accepts no new accounts"));
        }
        let name = request.username.clone();
        if name.is_reserved() {
            // PROTOCOL#reserved-names.
            let text = format!("the name {} is reserved: choose another", name.as_str());
            return Err(refuse(ErrorCode::NameReserved, &text));
        }
        self.count_record()?;
        let (account, identity) = auth::accept_registration(request)?;
        // On disk first: PROTOCOL#confirmed.
        let stored = self.shared.store.accounts.register(account, &identity);
        let (event, answer) = match stored.map_err(|error| self.not_stored(&name, &error))? {
            true => ("registered", ServerMessage::Registered),
            false => {
                let text = "this name is taken: choose another";
                ("name_taken", ServerMessage::error(ErrorCode::NameTaken, text))
            }
        };
        self.audit(event, &name);
        Ok(self.send(&answer)?)
    }

    /// Counts a new record of `users.json` against the limit of the client's address.
    fn count_record(&self) -> Result<(), Refusal> {
        lock(&self.shared.registrations).take(origin(self.address()), Instant::now()).map_err(|wait| {
            self.limit("too_many_registrations", None);
            let text = "too many new accounts and passwords from your address";
            Failure::new(ErrorCode::TooManyRequests, text).after(wait).into()
        })
    }

    fn not_stored(&self, name: &Username, error: &io::Error) -> Refusal {
        self.shared.store.audit.log("storage_failed", Some(name), Some(self.address()), &error.to_string());
        refuse(ErrorCode::ServerError, "the server cannot store accounts now: tell its operator")
    }

    fn challenge(&mut self, request: LoginRequest) -> Result<Authenticated, Refusal> {
        let locked = self.shared.store.lockout.locked(&request.username, self.address());
        locked.map_err(|left| self.locked(&request.username, left))?;
        let seen = self.shared.store.accounts.see(&request.username);
        let (account, secret) =
            (seen.as_ref().map(|seen| seen.account.clone()), &self.shared.store.salt_secret);
        let (pending, challenge) = PendingLogin::new(request, account, secret)?;
        self.send(&ServerMessage::Challenge(challenge))?;
        let response = match self.next()? {
            ClientMessage::ChallengeResponse(response) => response,
            ClientMessage::PasswordChange(change) => {
                let changed = self.change_password(pending, seen.as_ref(), *change)?;
                return Err(Refusal(Some(changed.into())));
            }
            _ => return Err(refuse(ErrorCode::NotLoggedIn, "answer the challenge first")),
        };
        let (name, now) = (pending.name().clone(), clock::now_ms());
        let offered = auth::check_offered(&response.session_key, response.created, now);
        offered.map_err(|error| self.no_guess(&name, error))?;
        let verify = || pending.verify(&response, self.exporter(), now);
        let login = self.attempt("login_failed", &name, verify)?;
        // PROTOCOL#login-race.
        if !seen.is_some_and(|seen| self.shared.store.accounts.admit(&seen)) {
            return Err(self.no_guess(&name, auth::denied()));
        }
        Ok(login)
    }

    /// PROTOCOL#password-race.
    fn change_password(
        &self,
        pending: PendingLogin,
        seen: Option<&Seen>,
        change: PasswordChange,
    ) -> Result<ServerMessage, Refusal> {
        let name = pending.name().clone();
        auth::acceptable(change.rounds).map_err(|error| self.no_guess(&name, error))?;
        let verify = || pending.verify_change(change, self.exporter());
        let new = self.attempt("password_change_failed", &name, verify)?;
        self.count_record()?;
        let stored = seen.map_or(Ok(false), |seen| self.shared.store.accounts.change(seen, new));
        if !stored.map_err(|error| self.not_stored(&name, &error))? {
            return Err(self.no_guess(&name, auth::denied()));
        }
        self.audit("password_changed", &name);
        Ok(ServerMessage::PasswordChanged)
    }

    /// Counts an attempt before its proof is checked, so that parallel guesses count. Logs `event` for a failure.
    /// PROTOCOL#lockout.
    fn attempt<T>(
        &self,
        event: &'static str,
        name: &Username,
        verify: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Refusal> {
        let (lockout, audit) = (&self.shared.store.lockout, &self.shared.store.audit);
        let locks = lockout.count(name, self.address()).map_err(|left| self.locked(name, left))?;
        let verified = verify();
        if verified.is_ok() {
            lockout.forgive(name, self.address());
        } else {
            self.audit(event, name);
            if locks {
                self.audit("locked", name);
                if let Err(error) = lockout.remember(name) {
                    audit.log("storage_failed", Some(name), None, &error.to_string());
                }
            }
        }
        Ok(verified?)
    }

    /// A refusal that is neither counted nor logged as a guess: the client broke the protocol, or the account has
    /// changed since the challenge. PROTOCOL#lockout.
    fn no_guess(&self, name: &Username, failure: Failure) -> Refusal {
        self.limit("login_refused", Some(name));
        failure.into()
    }

    fn locked(&self, name: &Username, left: Duration) -> Refusal {
        self.limit("login_while_locked", Some(name));
        Failure::new(ErrorCode::Locked, "too many failed logins").after(left).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::session::outbox::Condition;
    use super::super::session::outbox::tests::{link, until};
    use super::super::session::tests::session;
    use super::super::shared::tests::{HOUR, shared};
    use super::*;
    use crate::auth::PasswordKey;
    use crate::crypto::key_file;
    use crate::crypto::keys::{IdentityKey, SessionKey};
    use crate::encoding::{Bytes, Fixed};
    use crate::protocol::VERSION;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A connection without a session, and its other end.
    fn connection(shared: &Arc<Shared>) -> (Login<'_>, TcpStream) {
        let (link, far) = link();
        let login = Login {
            server_key: None,
            shared,
            connection: Connection {
                link,
                reader: Reader::default(),
                lines: Lines::new(MAX_LINE_BEFORE_LOGIN),
            },
            deadline: Instant::now() + HOUR,
            lines_left: 1,
        };
        (login, far)
    }

    #[test]
    fn farewell_outlasts_a_client_that_keeps_sending() {
        let (shared, _folder) = shared(HOUR);
        let (mut login, mut far) = connection(&shared);
        let is_out = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| {
                // Far more than all buffers hold.
                let sent = (0..64).try_for_each(|_| far.write_all(&[b'x'; 1024 * 1024]));
                is_out.store(true, Ordering::Relaxed);
                sent
            });
            login.connection.linger(|| !is_out.load(Ordering::Relaxed));
            drop(login);
            sending.join().expect("whole").expect("all of it was read");
        });
    }

    #[test]
    fn refused_client_cannot_hold_its_thread() {
        for floods in [false, true] {
            let (shared, _folder) = shared(HOUR);
            let (mut login, mut far) = connection(&shared);
            std::thread::scope(|scope| {
                let flood = scope.spawn(|| {
                    let lines = vec![b'x'; 1024 * 1024];
                    (0..1024).take_while(|_| floods && far.write_all(&lines).is_ok()).count()
                });
                login.connection.linger(|| false);
                drop(login);
                // The kernel buffers some bytes beside the mebibyte that is read.
                let taken = flood.join().expect("whole");
                assert!(taken < 64, "{taken} MiB were read");
            });
        }
    }

    #[test]
    fn refusal_reaches_a_client_that_keeps_sending() {
        let (shared, _folder) = shared(HOUR);
        let (login, mut far) = connection(&shared);
        // No more than the kernel buffers, so that the write does not block.
        far.write_all(&[b'x'; 64 * 1024]).expect("sent");
        login.refuse(refuse(ErrorCode::LineTooLong, ""));
        assert!(matches!(far.take_error(), Ok(None)), "a reset can eat the refusal");
        let mut got = String::new();
        far.read_to_string(&mut got).expect("it is closed");
        assert!(got.contains("line_too_long"), "{got}");
    }

    /// PROTOCOL#deadlines.
    #[test]
    fn refusal_arrives_after_the_deadline() {
        let (shared, _folder) = shared(HOUR);
        let (mut login, mut far) = connection(&shared);
        login.deadline = Instant::now();
        login.refuse(refuse(ErrorCode::TimedOut, ""));
        let mut got = String::new();
        far.read_to_string(&mut got).expect("a farewell");
        assert!(got.contains("timed_out"), "{got}");
    }

    /// PROTOCOL#lockout, PROTOCOL#registration-limit.
    #[test]
    fn retry_after_is_long_enough() {
        let (shared, _folder) = shared(HOUR);
        let (login, _far) = connection(&shared);
        let retry_after = |refusal: Refusal| match *refusal.0.expect("a message") {
            ServerMessage::Error(Failure { retry_after: Some(seconds), .. }) => seconds,
            _ => panic!("no time to wait"),
        };
        for (left, seconds) in [(1, 1), (999, 1), (1500, 2), (899_999, 900)] {
            assert_eq!(
                retry_after(login.locked(&"alice".parse().expect("name"), Duration::from_millis(left))),
                seconds
            );
        }
        let refused = loop {
            if let Err(refusal) = login.count_record() {
                break retry_after(refusal);
            }
        };
        let left =
            lock(&shared.registrations).take(origin(login.address()), Instant::now()).expect_err("too many");
        assert!(
            Duration::from_secs(refused) >= left
                && left + Duration::from_secs(60) > Duration::from_secs(refused)
        );
    }

    /// PROTOCOL#lockout.
    #[test]
    fn lock_is_reported_before_the_key_and_allows_registration() {
        let (shared, _folder) = shared(HOUR);
        let (mut login, mut far) = connection(&shared);
        login.lines_left = 2;
        for n in 0..limits::MAX_FAILURES_PER_ADDRESS {
            let name = format!("name{n}").parse().expect("name");
            assert!(shared.store.lockout.count(&name, login.address()).is_ok());
        }
        let code = |refusal: Refusal| match *refusal.0.expect("a message") {
            ServerMessage::Error(failure) => failure.code,
            _ => panic!("another message"),
        };
        let no_key = || Bytes(Vec::new());
        for (version, expected) in [(VERSION + 1, "unsupported_version"), (VERSION, "locked")] {
            let username = "alice".parse().expect("name");
            let request = LoginRequest { version, username, public_key: no_key() };
            far.write_all(&ClientMessage::LoginRequest(request).encode()).expect("sent");
            assert_eq!(login.run().err().map(code), Some(expected.into()));
        }
        let request = Register {
            version: VERSION,
            username: "alice".parse().expect("name"),
            salt: Fixed([0; 32]),
            rounds: 600_000,
            password_key: Key::random(),
            public_key: no_key(),
        };
        // The lock does not stop a registration: its key is checked, and invalid.
        assert_eq!(login.register(request).err().map(code), Some("bad_key".into()));
    }

    /// Proof of a login to an account with this key, by a client that knows the password.
    fn verified(shared: &Shared, name: &str, identity: &IdentityKey) -> Authenticated {
        let (name, session): (Username, _) = (name.parse().expect("name"), SessionKey::generate());
        let key = PasswordKey { login: key_file::Login::random(), key: Key::random() };
        let (account, public) =
            auth::accept_registration(key.register(&name, identity.public())).expect("valid");
        assert!(shared.store.accounts.register(account, &public).expect("stored"));
        let public_key = Bytes(public.spki());
        let request = LoginRequest { version: VERSION, username: name.clone(), public_key };
        let account = shared.store.accounts.get(&name);
        let (pending, challenge) =
            PendingLogin::new(request, account, &shared.store.salt_secret).expect("a key");
        let now = clock::now_ms();
        let certificate = identity.certify(&name, &session, now);
        let response = key.log_in(&name, &challenge, b"", identity, (&session, certificate));
        pending.verify(&response, b"", now).expect("everything is valid")
    }

    /// PROTOCOL#rate.
    #[test]
    fn rate_of_an_account_outlasts_its_sessions() {
        let (shared, _folder) = shared(HOUR);
        let logins = ["alice", "bob"].map(|name| verified(&shared, name, &IdentityKey::generate()));
        let has_full_bucket = |login: &Authenticated| {
            let (mut connection, _far) = connection(&shared);
            let served = connection.log_in(login).ok().expect("logged in");
            let inbound = served.session.outbox.inbound();
            let mut bucket = lock(&inbound.bucket);
            let is_full = bucket.take(f64::from(shared.limits.rate) * 4.0).is_ok();
            // An hour's worth, so that a slow machine does not refill it.
            bucket.charge(f64::from(shared.limits.rate) * 3600.0);
            is_full
        };
        let [alice, bob] = &logins;
        assert_eq!([alice, bob, alice].map(has_full_bucket), [true, true, false]);
        // Also after a logout.
        let session = shared.registry.get(alice.name()).expect("online");
        assert!(shared.registry.end(&session, Condition::Always, None) && !has_full_bucket(alice));
    }

    /// PROTOCOL#login-race.
    #[test]
    fn account_removed_during_its_login_gets_no_session() {
        let (shared, _folder) = shared(HOUR);
        let keys = [IdentityKey::generate(), IdentityKey::generate()];
        for (name, is_made_again) in [("gone", false), ("another", true)] {
            let login = verified(&shared, name, &keys[0]);
            shared.store.accounts.remove(login.name(), || ()).expect("it was there");
            if is_made_again {
                verified(&shared, name, &keys[1]);
            }
            let (mut connection, far) = connection(&shared);
            assert!(connection.log_in(&login).is_ok_and(|served| !served.session.outbox.is_open()));
            assert!(shared.registry.get(login.name()).is_none());
            let last = BufReader::new(&far).lines().map_while(Result::ok).last().expect("a farewell");
            assert!(last.contains("account_removed"), "{last}");
        }
        let login = verified(&shared, "alice", &keys[0]);
        let (mut connection, _far) = connection(&shared);
        let served = connection.log_in(&login).ok().expect("nothing has changed");
        assert!(served.session.outbox.is_open() && shared.registry.get(login.name()).is_some());
        // A panic of its thread, even before the connection is attached, leaves a session that waits for another one.
        let outbox = Outbox::new(1024, Bucket::of_account(1), shared.quotas.clone(), connection.address());
        let new = connection.serve(Arc::new(Session::new(&login, 0, outbox)));
        for served in [served, new] {
            let session = served.session.clone();
            drop(served);
            assert!(session.outbox.is_open() && session.outbox.detached().is_some());
        }
    }

    /// PROTOCOL#taken-over, PROTOCOL#elsewhere.
    #[test]
    fn resumption_is_refused_at_once_when_its_session_ends() {
        for (takes_over, code) in [(false, "no_session"), (true, "signed_in_elsewhere")] {
            let (shared, _folder) = shared(HOUR);
            let (alice, _) = session("alice");
            assert!(shared.registry.insert(&alice, 100));
            // The thread of the previous connection stays busy.
            let _inbound = alice.outbox.inbound();
            let [token, ..] = alice.tokens(0);
            let (mut login, far) = connection(&shared);
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
                    until(|| alice.outbox.detached().is_some());
                    if takes_over {
                        let (other, _) = session("alice");
                        assert!(shared.registry.insert(&other, 100));
                    }
                    shared.registry.end(&alice, Condition::Always, None);
                });
                let request = ResumeRequest { version: VERSION, username: alice.name.clone() };
                let Err(Refusal(Some(message))) = login.resume(request) else { panic!("it was accepted") };
                let ServerMessage::Error(failure) = *message else { panic!("another message") };
                assert_eq!(failure.code, code);
            });
        }
    }
}
