//! One connection, from the accepted socket to its end.
//!
//! Invariant: [`admit`] runs on a short-lived thread with a large stack and gives a [`Client`] only to who
//! has logged in; [`Client::run`] then holds one small thread, which blocks on the socket
//! outside every lock. Whatever ends a connection, `Drop` gives back its turn to read from its session
//! ([`grace`]), which waits for another connection unless it has ended.

use super::accounts::Seen;
use super::frames::{FalseAck, Frame};
use super::grace::{self, Inbound, Turn};
use super::limits::{self, Ticket};
use super::outbox::{Buffers, Link, Outbox};
use super::resume::Resumption;
use super::session::Session;
use super::{Shared, delivery, status};
use crate::auth::{self, AuthError, Authenticated, PendingLogin};
use crate::clock;
use crate::crypto::public::{SessionCertificate, SessionPublicKey};
use crate::name::Username;
use crate::protocol::{
    ClientMessage, DecodeError, ErrorCode, Failure, Grant, LoginRequest, MAX_LINE, MAX_LINE_BEFORE_LOGIN,
    MAX_PACKET, Packet, PasswordChange, Register, ServerMessage, SessionKeyFields, VERSION,
};
use crate::wire::frame::{self, Lines};
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
    reader: Reader,
    lines: Lines,
    deadline: Instant,
    /// The first line has come.
    begun: bool,
    /// Lines that may still come before the login is complete.
    patience: u32,
}

/// A connection that ends has this long for its last words, and the other side's: a round trip, and no more.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Closing a socket with unread bytes makes the kernel throw the last answer away: what still
/// comes is read for a moment.
fn linger(channel: &Channel, reader: &mut Reader) {
    let end = Instant::now() + LAST_WORD;
    let (mut sink, mut left) = (Vec::new(), 1024 * 1024usize);
    while let Some(wait) = end.checked_duration_since(Instant::now()) {
        match channel.receive(reader, &mut sink, wait) {
            Ok(Received::Some) if sink.len() < left => left -= sink.len(),
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

/// README#closing-errors.
pub(super) fn refuse(code: ErrorCode, text: &str) -> Refusal {
    Refusal::Say(ServerMessage::error(code, text))
}

/// README#not-a-message.
fn not_a_message(error: DecodeError) -> ServerMessage {
    let code = match error {
        DecodeError::Malformed => ErrorCode::Malformed,
        DecodeError::UnknownType => ErrorCode::UnknownType,
    };
    ServerMessage::error(code, error.to_string())
}

/// How a guest became a client.
enum Entry {
    Login(Box<Authenticated>),
    Resumed(Resumption),
}

/// Handshake, and login or resumption. `None` if nothing came of it; the other side has been told why.
pub fn admit(
    shared: &Arc<Shared>,
    socket: Arc<TcpStream>,
    address: IpAddr,
    ticket: Ticket,
) -> Option<Client> {
    let deadline = Instant::now() + limits::FIRST_LINE;
    let mut lines = Lines::new(MAX_LINE_BEFORE_LOGIN);
    let acceptor = shared.certificates.as_ref().map(|certificates| certificates.current(shared));
    let Ok(channel) = Channel::accept(acceptor, socket, deadline, lines.buffer()) else {
        shared.audit.limit("handshake_failed", None, Some(address), "");
        return None;
    };
    let (reader, patience) = (Reader::default(), limits::LINES_BEFORE_LOGIN);
    let mut guest = Guest { shared, address, channel, reader, lines, deadline, begun: false, patience };
    match guest.log_in() {
        Ok(Entry::Login(login)) => Some(Client::new(guest, &login, ticket)),
        Ok(Entry::Resumed(resumption)) => Client::resumed(guest, resumption, ticket),
        Err(refusal) => {
            if let Refusal::Say(message) = refusal {
                // Time for the last word, also when time is what ran out.
                guest.deadline = Instant::now() + LAST_WORD;
                let _ = guest.say(&message);
            }
            let mut wire = Vec::new();
            guest.channel.encrypt_end(&mut wire);
            let _ = guest.channel.send_now(&wire);
            guest.channel.finish();
            linger(&guest.channel, &mut guest.reader);
            None
        }
    }
}

impl Guest<'_> {
    pub(super) fn say(&self, message: &ServerMessage) -> io::Result<()> {
        let mut wire = Vec::new();
        self.channel.encrypt(&message.encode(), &mut wire)?;
        self.channel.send_by(&wire, self.deadline)
    }

    /// The next message, within the deadline. README#deadlines.
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

    /// Registrations, then a login or a resumption, which succeeds or fails. README#connection-order.
    fn log_in(&mut self) -> Result<Entry, Refusal> {
        loop {
            match self.next()? {
                ClientMessage::Register(request) => self.register(request)?,
                ClientMessage::LoginRequest(request) => {
                    return self.challenge(request).map(|login| Entry::Login(Box::new(login)));
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

    /// README#registration-limit.
    fn register(&mut self, request: Register) -> Result<(), Refusal> {
        check_version(request.version)?;
        if self.shared.closed {
            return Err(refuse(ErrorCode::RegistrationClosed, "this server makes no new accounts"));
        }
        self.count_record()?;
        let name = request.username.clone();
        let (account, identity) = auth::accept_registration(request).map_err(auth_error)?;
        // On disk first: README#confirmed.
        match self.shared.accounts.register(account, &identity) {
            Ok(()) => {
                self.audit("registered", &name);
                Ok(self.say(&ServerMessage::Registered)?)
            }
            Err(error @ super::accounts::RegisterError::NameTaken) => {
                self.audit("name_taken", &name);
                Ok(self.say(&ServerMessage::error(ErrorCode::NameTaken, error.to_string()))?)
            }
            Err(super::accounts::RegisterError::Io(error)) => Err(self.not_stored(&name, &error)),
        }
    }

    /// What makes `users.json` grow is counted by address.
    fn count_record(&self) -> Result<(), Refusal> {
        self.shared.registrations.take(self.address).map_err(|wait| {
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

    fn challenge(&mut self, request: LoginRequest) -> Result<Authenticated, Refusal> {
        check_version(request.version)?;
        self.refuse_locked(&request.username)?;
        let seen = self.shared.accounts.see(&request.username);
        let (account, secret) = (seen.as_ref().map(|seen| &*seen.account), self.shared.accounts.secret());
        let (pending, challenge) = PendingLogin::new(request, account, secret).map_err(auth_error)?;
        self.say(&ServerMessage::Challenge(challenge))?;
        let response = match self.next()? {
            ClientMessage::ChallengeResponse(response) => response,
            ClientMessage::PasswordChange(change) => {
                return Err(self.change_password(pending, seen.as_ref(), *change));
            }
            _ => return Err(refuse(ErrorCode::NotLoggedIn, "answer the challenge first")),
        };
        let name = pending.name().clone();
        let locks = self.count_attempt(&name)?;
        let verified = pending.verify(*response, self.channel.exporter(), clock::now_ms());
        let is_current = || seen.is_some_and(|seen| self.shared.accounts.admit(&seen));
        match verified.and_then(|login| is_current().then_some(login).ok_or(AuthError::Denied)) {
            Ok(login) if !self.has_place(login.name()) => {
                self.shared.lockout.forgive(&name, self.address);
                self.shared.audit.limit("server_full", Some(&name), Some(self.address), "");
                Err(refuse(ErrorCode::ServerFull, "the server is full: try again later"))
            }
            Ok(login) => {
                self.shared.lockout.forgive(&name, self.address);
                self.audit("login", &name);
                Ok(login)
            }
            Err(error) => Err(self.failed("login_failed", &name, locks, error)),
        }
    }

    /// Who takes over a session of their own needs no new place; one without a connection gives up its place.
    /// README#full.
    fn has_place(&self, name: &Username) -> bool {
        let registry = &self.shared.registry;
        registry.count() < self.shared.limits.clients
            || registry.get(name).is_some()
            || self.shared.grace.end_first(self.shared)
    }

    /// The last word on a request for a new password. README#password-race.
    fn change_password(&self, pending: PendingLogin, seen: Option<&Seen>, change: PasswordChange) -> Refusal {
        let name = pending.name().clone();
        let changed = self.count_attempt(&name).and_then(|locks| {
            let failed = |error| self.failed("password_change_failed", &name, locks, error);
            let new = pending.verify_change(change, self.channel.exporter()).map_err(failed)?;
            self.shared.lockout.forgive(&name, self.address);
            self.count_record()?;
            let stored = seen.map_or(Ok(false), |seen| self.shared.accounts.change(seen, new));
            match stored.map_err(|error| self.not_stored(&name, &error))? {
                true => Ok(()),
                false => Err(self.failed("password_change_failed", &name, false, AuthError::Denied)),
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

    /// Counted before anything is checked: parallel guesses are guesses too. True if it is the one that
    /// locks the name. README#lockout.
    fn count_attempt(&self, name: &Username) -> Result<bool, Refusal> {
        self.shared.lockout.count(name, self.address).map_err(|left| self.locked(name, left))
    }

    fn failed(&self, event: &'static str, name: &Username, locks: bool, error: AuthError) -> Refusal {
        self.audit(event, name);
        if locks {
            self.audit("locked", name);
            self.shared.remember_lock(name);
        }
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

/// README#version.
pub(super) fn check_version(version: u32) -> Result<(), Refusal> {
    if version == VERSION {
        return Ok(());
    }
    Err(refuse(ErrorCode::UnsupportedVersion, "this server speaks version 1 of the protocol"))
}

fn auth_error(error: AuthError) -> Refusal {
    let code = match error {
        AuthError::BadRounds => ErrorCode::BadRounds,
        AuthError::BadKey | AuthError::Clock => ErrorCode::BadKey,
        AuthError::Denied | AuthError::Expired => ErrorCode::LoginFailed,
    };
    refuse(code, &error.to_string())
}

/// Packets with a shorter body than this, in bytes, are counted, too: those of files are larger, but for the last.
const SMALL_PACKET: usize = 32 * 1024;

/// What a line costs of a client's rate: one, and more if it is long or asks for much. A grant of many
/// packets costs less: it stands for them. README#packet-cost.
fn cost(message: &Result<ClientMessage, DecodeError>, length: usize) -> f64 {
    if let Ok(ClientMessage::Grant(Grant { count: count @ 1.., .. })) = message {
        return 0.1 + 0.9 / f64::from(*count);
    }
    let names = match message {
        Ok(ClientMessage::KeysRequest(request)) => request.names.len(),
        _ => 0,
    };
    1.0 + length as f64 / 16_384.0 + names as f64 / 32.0
}

/// A connection that is logged in.
pub struct Client {
    shared: Arc<Shared>,
    session: Arc<Session>,
    turn: Turn,
    link: Arc<Link>,
    reader: Reader,
    lines: Lines,
}

impl Client {
    fn new(guest: Guest<'_>, login: &Authenticated, ticket: Ticket) -> Client {
        let Guest { shared, channel, reader, lines, address, .. } = guest;
        ticket.logged_in();
        let link = Link::new(channel, ticket);
        let outbox = Arc::new(Outbox::new(link.clone(), shared.limits.outbox));
        let (session, announcement) = Session::new(login, outbox, clock::now_ms());
        // Queued first: the session is the first thing that its client hears.
        session.outbox.send(Frame::aside(&ServerMessage::Session(announcement)));
        let session = Arc::new(session);
        if let Some(former) = shared.registry.add(&session) {
            // README#replaced.
            session.supersede(&former);
            grace::dismiss(
                shared,
                &former,
                ErrorCode::SignedInElsewhere,
                "you have logged in from elsewhere",
            );
        }
        // The account may have been removed since the login was verified.
        let identity = login.identity().fingerprint();
        if shared.accounts.get(login.name()).is_none_or(|account| account.identity != identity) {
            grace::dismiss(shared, &session, ErrorCode::AccountRemoved, "this account was removed just now");
        }
        let turn = Turn::first(shared, &session, Inbound::new(shared.limits.rate, address));
        Client::of(shared, turn, link, reader, lines)
    }

    /// `None` if the session has ended since, or another resumption was later.
    fn resumed(guest: Guest<'_>, resumption: Resumption, ticket: Ticket) -> Option<Client> {
        let Guest { shared, channel, reader, lines, address, .. } = guest;
        let Resumption { turn, claim, received } = resumption;
        ticket.logged_in();
        let link = Link::new(channel, ticket);
        let goes_on = turn.session().outbox.attach(link.clone(), claim, received);
        goes_on.then(|| {
            shared.audit.log("resumed", Some(&turn.session().name), Some(address), "");
            Client::of(shared, turn, link, reader, lines)
        })
    }

    fn of(shared: &Arc<Shared>, turn: Turn, link: Arc<Link>, reader: Reader, mut lines: Lines) -> Client {
        lines.log_in(MAX_LINE);
        Client { shared: shared.clone(), session: turn.session().clone(), turn, link, reader, lines }
    }

    /// Serves the client until its connection ends. README#life.
    pub fn run(mut self: Box<Self>) {
        let mut heard = Instant::now();
        loop {
            if !self.take_lines() {
                return linger(&self.link.channel, &mut self.reader);
            }
            match self.link.channel.receive(&mut self.reader, self.lines.buffer(), limits::PING_AFTER) {
                Ok(Received::Some) => heard = Instant::now(),
                Ok(Received::Silence) if heard.elapsed() < limits::DEAD_AFTER => {
                    self.answer(&ServerMessage::Ping)
                }
                Ok(Received::Silence | Received::End) | Err(_) => return,
            }
            if self.link.channel.wants_to_send() {
                self.session.outbox.flush(&mut Buffers::default());
            }
        }
    }

    fn answer(&self, message: &ServerMessage) {
        self.session.outbox.send(Frame::message(message));
    }

    /// Tells the client how much was taken in, if that is due. README#ack-when.
    fn acknowledge(&mut self, early: bool) {
        if let Some(position) = self.turn.inbound().ack(early) {
            self.answer(&ServerMessage::Ack(position));
        }
    }

    /// Handles all whole lines and packets; false if the connection ends. What is not handled is not counted, and comes
    /// again when the session is resumed.
    // Its place on the stack is not kept while the client says nothing: with it, a thread that waits has a page more.
    #[inline(never)]
    fn take_lines(&mut self) -> bool {
        loop {
            self.acknowledge(false);
            let (length, cost, request) = match self.lines.next_frame(MAX_PACKET) {
                Ok(None) => return true,
                Ok(Some(frame::Frame::Line(line))) => {
                    let message = ClientMessage::decode(line);
                    (line.len(), cost(&message, line.len()), message)
                }
                Ok(Some(frame::Frame::Packet(body))) => {
                    let is_served = || self.session.outbox.serves(&self.link);
                    if !is_served() {
                        return false;
                    }
                    // Large packets cost nothing: their recipient decides how fast they come.
                    let (length, cost) = (body.len(), if body.len() < SMALL_PACKET { 0.1 } else { 0.0 });
                    let refused = match Packet::decode(body) {
                        Ok(packet) => match delivery::relay(&self.shared, &self.session, packet, is_served) {
                            Ok(refused) => refused,
                            Err(delivery::Interrupted) => return false,
                        },
                        Err(error) => Some(not_a_message(error)),
                    };
                    self.turn.inbound().count(length);
                    self.refuse(refused);
                    if !self.slow_down(cost) {
                        return false;
                    }
                    continue;
                }
                Err(_) => {
                    return self.end(ErrorCode::LineTooLong, "a line has at most 1 MiB, a packet 66 KiB");
                }
            };
            if let Ok(ClientMessage::Ack(ack)) = request {
                // At once: it makes room. One that was due costs nothing, like what it acknowledges.
                match self.session.outbox.acknowledge(&self.link, ack.received) {
                    Ok(was_due) if was_due || self.slow_down(cost) => continue,
                    Ok(_) => return false,
                    Err(FalseAck) => {
                        return self.end(
                            ErrorCode::Malformed,
                            "an ack of what was not sent, or of less than before",
                        );
                    }
                }
            }
            // A session that another login has taken over, or another connection, takes nothing more from this one.
            if !self.slow_down(cost) {
                return false;
            }
            if request.as_ref().map_or(true, ClientMessage::is_counted) {
                self.turn.inbound().count(length);
            }
            match request {
                Ok(ClientMessage::Logout) => {
                    self.session.outbox.end();
                    return false;
                }
                Ok(ClientMessage::Grant(grant)) => {
                    let refused = delivery::grant(&self.shared, &self.session, grant);
                    self.refuse(refused);
                }
                Ok(message) => self.handle(message),
                Err(error) => self.answer(&not_a_message(error)),
            }
        }
    }

    /// The client has broken the protocol: its session ends with the connection. README#ends-at-once.
    fn end(&self, code: ErrorCode, text: &str) -> bool {
        self.session.outbox.send(Frame::aside(&ServerMessage::error(code, text)));
        self.session.outbox.end();
        false
    }

    /// What is refused costs as much as any request.
    fn refuse(&mut self, refused: Option<ServerMessage>) {
        if let Some(refused) = refused {
            self.answer(&refused);
            self.slow_down(1.0);
        }
    }

    /// Who sends faster than allowed is read more slowly: nothing is lost, TCP slows them down. False if meanwhile the
    /// session has ended, or gone to another connection. README#rate.
    fn slow_down(&mut self, cost: f64) -> bool {
        let mut told = false;
        while let Err(wait) = self.turn.inbound().bucket.take(cost) {
            if !std::mem::replace(&mut told, true) {
                status::SLOWED.add();
            }
            if !self.session.outbox.serves(&self.link) {
                return false;
            }
            std::thread::sleep(wait.min(limits::NOTICE));
        }
        self.session.outbox.serves(&self.link)
    }

    fn handle(&mut self, message: ClientMessage) {
        let answer = match message {
            ClientMessage::EncryptedSend(send) => delivery::deliver(&self.shared, &self.session, *send),
            ClientMessage::KeysRequest(request) => delivery::keys(&self.shared, &request),
            ClientMessage::Renew(fields) => self.renew(&fields),
            ClientMessage::Ping => {
                self.acknowledge(true);
                ServerMessage::Pong
            }
            ClientMessage::Ack(_) | ClientMessage::Pong | ClientMessage::Logout | ClientMessage::Grant(_) => {
                return;
            }
            ClientMessage::Register(_)
            | ClientMessage::LoginRequest(_)
            | ClientMessage::ChallengeResponse(_)
            | ClientMessage::PasswordChange(_)
            | ClientMessage::ResumeRequest(_)
            | ClientMessage::Resume(_) => {
                ServerMessage::error(ErrorCode::AlreadyLoggedIn, "you are logged in already")
            }
        };
        self.answer(&answer);
    }

    /// README#renew.
    fn renew(&self, fields: &SessionKeyFields) -> ServerMessage {
        let now = clock::now_ms();
        let certificate = SessionPublicKey::parse(&fields.session_key.0).and_then(|key| {
            let signature = fields.certificate.0;
            let certificate = SessionCertificate { key, created: fields.created, signature };
            certificate.verify(&self.session.name, &self.session.identity(), now).map(|()| certificate)
        });
        match certificate {
            Ok(certificate) => ServerMessage::Session(self.session.renew(&certificate, now)),
            Err(error) => ServerMessage::error(ErrorCode::BadKey, error.to_string()),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Before the turn is given back: its next holder finds no link but its own.
        self.session.outbox.detach(&self.link);
    }
}
