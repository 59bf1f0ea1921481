//! One connection, from the accepted socket to its end.
//!
//! Invariant: [`admit`] runs on a short-lived thread with a large stack and gives a [`Client`] only to who
//! has logged in; [`Client::run`] then holds one small thread, which blocks on the socket
//! outside every lock. Whatever ends a connection, `Drop` gives back its turn to read from its session
//! ([`grace`]), which waits for another connection unless it has ended.

use super::accounts::Seen;
use super::doors::Ticket;
use super::frames::{FalseAck, Frame};
use super::grace::{self, Inbound, Turn};
use super::limits;
use super::outbox::{Buffers, Link, Outbox};
use super::registry::Place;
use super::resume::Resumption;
use super::session::Session;
use super::unfinished::Unfinished;
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
enum Entry<'a> {
    Login(Box<Authenticated>, Place<'a>),
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
        Ok(Entry::Login(login, place)) => Some(Client::new(guest, &login, place, ticket)),
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

impl<'a> Guest<'a> {
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
    fn log_in(&mut self) -> Result<Entry<'a>, Refusal> {
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

    fn challenge(&mut self, request: LoginRequest) -> Result<(Authenticated, Place<'a>), Refusal> {
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
            Ok(login) => {
                self.shared.lockout.forgive(&name, self.address);
                let Some(place) = self.place(login.name()) else {
                    self.shared.audit.limit("server_full", Some(&name), Some(self.address), "");
                    return Err(refuse(ErrorCode::ServerFull, "the server is full: try again later"));
                };
                self.audit("login", &name);
                Ok((login, place))
            }
            Err(error) => Err(self.failed("login_failed", &name, locks, error)),
        }
    }

    /// One without a connection gives up its place. README#full.
    fn place(&self, name: &Username) -> Option<Place<'a>> {
        let shared = self.shared;
        loop {
            let place = shared.registry.place(name, shared.limits.clients);
            if place.is_some() || !shared.grace.end_first(shared) {
                return place;
            }
        }
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
    unfinished: Unfinished,
}

impl Client {
    fn new(guest: Guest<'_>, login: &Authenticated, place: Place<'_>, ticket: Ticket) -> Client {
        let Guest { shared, channel, reader, lines, address, .. } = guest;
        ticket.logged_in();
        let link = Link::new(channel, ticket);
        let outbox = Arc::new(Outbox::new(link.clone(), shared.limits.outbox));
        let (session, announcement) = Session::new(login, outbox, clock::now_ms());
        // Queued first: the session is the first thing that its client hears.
        session.outbox.send(Frame::aside(&ServerMessage::Session(announcement)));
        let session = Arc::new(session);
        if let Some(former) = shared.registry.add(&session, place) {
            // README#replaced.
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
        let (shared, session, unfinished) = (shared.clone(), turn.session().clone(), Unfinished::default());
        Client { shared, session, turn, link, reader, lines, unfinished }
    }

    /// Serves the client until its connection ends. README#life.
    pub fn run(mut self: Box<Self>) {
        let mut heard = Instant::now();
        loop {
            // What a session that has ended still sends is not waited for.
            if !self.take_lines() || !self.session.outbox.serves(&self.link) {
                return linger(&self.link.channel, &mut self.reader);
            }
            let (bytes, anew) = self.lines.unfinished();
            if !self.unfinished.is_bearable(bytes, anew, Instant::now()) {
                return;
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
                    self.session.outbox.end(None);
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
        self.session.outbox.end(Some(Frame::aside(&ServerMessage::error(code, text))));
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
            ClientMessage::EncryptedSend(send) => {
                let outcome = delivery::deliver(&self.shared, &self.session, *send);
                return self.shared.flusher.send_soon(&self.session.outbox, Frame::message(&outcome));
            }
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
        match certificate.map(|certificate| self.session.renew(&certificate, now)) {
            Ok(Some(announcement)) => ServerMessage::Session(announcement),
            Ok(None) => {
                ServerMessage::error(ErrorCode::BadKey, "the session key is older than the one in use")
            }
            Err(error) => ServerMessage::error(ErrorCode::BadKey, error.to_string()),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Who says nothing more may still hear: what was to go out with something else goes now.
        self.session.outbox.flush(&mut Buffers::default());
        // Before the turn is given back: its next holder finds no link but its own.
        self.session.outbox.detach(&self.link);
    }
}

#[cfg(test)]
mod tests {
    use super::super::outbox::tests::link;
    use super::super::rates::Bucket;
    use super::super::session::tests::session;
    use super::super::tests::shared;
    use super::*;
    use crate::encoding::Fixed;
    use crate::protocol::{KeysRequest, Received as Taken};
    use std::io::Read;
    use std::net::TcpListener;

    const HOUR: Duration = Duration::from_secs(3600);
    const TRANSFER: [u8; 16] = [9; 16];

    fn name(name: &str) -> Username {
        name.parse().expect("name")
    }

    /// One who is logged in, and the other end of the connection. The bucket is full and stays as it is.
    fn client(shared: &Arc<Shared>, name: &str) -> (Client, TcpStream) {
        let (session, _) = session(name);
        assert!(shared.registry.add(&session, Place::default()).is_none());
        let (link, far) = link();
        far.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        let claim = session.outbox.claim(0).expect("nothing was sent");
        assert!(session.outbox.attach(link.clone(), claim, 0));
        let mut turn = Turn::first(shared, &session, Inbound::new(1, [127, 0, 0, 1].into()));
        turn.inbound().bucket = Bucket::new(1e-9, 4.0);
        (Client::of(shared, turn, link, Reader::default(), Lines::new(MAX_LINE)), far)
    }

    /// Two ends of a connection.
    fn socket() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        (listener.accept().expect("accepted").0, far)
    }

    /// One who is not logged in, and the other end of the connection.
    fn guest(shared: &Arc<Shared>) -> (Guest<'_>, TcpStream) {
        let (near, far) = socket();
        let guest = Guest {
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

    fn is_refilled(client: &mut Client) {
        client.turn.inbound().bucket = Bucket::new(1e-9, 4.0);
    }

    /// Whether what a client asked for has cost so much, give or take a thousandth.
    fn has_cost(client: &mut Client, cost: f64) -> bool {
        let bucket = &mut client.turn.inbound().bucket;
        let has = bucket.take(4.0 - cost - 0.001).is_ok() && bucket.take(0.002).is_err();
        is_refilled(client);
        has
    }

    fn packet(peer: &str, body: usize) -> Vec<u8> {
        let address = Packet::address(&name(peer), &TRANSFER);
        let payload = vec![0; body - address.len()];
        [frame::packet_head(&address, &payload), payload].concat()
    }

    /// The next line.
    fn heard(mut far: &TcpStream) -> ServerMessage {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            far.read_exact(&mut byte).expect("it is told");
            line.extend(byte);
        }
        line.pop();
        ServerMessage::decode(&line).unwrap_or_else(|_| panic!("not a message"))
    }

    /// README#rate, README#packet-cost.
    #[test]
    fn a_line_costs_by_what_it_asks_for() {
        let thousandths = |message: Result<ClientMessage, DecodeError>, length: usize| {
            (cost(&message, length) * 1000.0).round() as u64
        };
        let grant = |count: u32| {
            Ok(ClientMessage::Grant(Grant { peer: name("bob"), transfer: Fixed(TRANSFER), count }))
        };
        let ask =
            |count: usize| Ok(ClientMessage::KeysRequest(KeysRequest { names: vec![name("bob"); count] }));
        assert_eq!(thousandths(Ok(ClientMessage::Ping), 0), 1000);
        assert_eq!(thousandths(Err(DecodeError::Malformed), 16_384), 2000);
        assert_eq!((thousandths(ask(32), 0), thousandths(ask(64), 8192)), (2000, 3500));
        assert_eq!((thousandths(grant(1), 100), thousandths(grant(9), 100)), (1000, 200));
        assert_eq!(thousandths(grant(0), 16_384), 2000, "taken back");
    }

    /// README#packet-cost, README#not-granted.
    #[test]
    fn a_small_packet_costs_a_tenth_a_large_one_nothing_and_a_refused_one_a_request() {
        let (shared, _folder) = shared(HOUR);
        let ((mut alice, far), (bob, _bob)) = (client(&shared, "alice"), client(&shared, "bob"));
        assert!(bob.session.grant(&alice.session.name, TRANSFER, 2));
        for (peer, body, cost) in [
            ("bob", SMALL_PACKET - 1, 0.1),
            ("bob", SMALL_PACKET, 0.0),
            ("bob", SMALL_PACKET, 1.0),
            ("carol", SMALL_PACKET - 1, 1.1),
        ] {
            alice.lines.buffer().extend(packet(peer, body));
            assert!(alice.take_lines() && has_cost(&mut alice, cost), "{body} bytes to {peer}");
        }
        assert_eq!(SMALL_PACKET, 32 * 1024);
        for peer in ["bob", "carol"] {
            assert!(matches!(heard(&far), ServerMessage::Refused(refused) if refused.peer == name(peer)));
        }
        // A packet of nobody is answered like any line that is no message.
        alice.lines.buffer().extend(frame::packet_head(b"", b""));
        assert!(alice.take_lines() && has_cost(&mut alice, 1.1));
        assert!(matches!(heard(&far), ServerMessage::Error(_)));
        assert_eq!(alice.turn.inbound().position().received, 5, "each of them was taken in");
    }

    /// README#ack, README#ack-true.
    #[test]
    fn an_ack_that_was_due_costs_nothing_and_a_false_one_ends_the_session() {
        let (shared, _folder) = shared(HOUR);
        let (mut alice, _far) = client(&shared, "alice");
        let ack = |received: u64| ClientMessage::Ack(Taken { received }).encode();
        (0..40).for_each(|_| alice.session.outbox.send(Frame::line(*b"x\n")));
        alice.lines.buffer().extend(ack(32));
        assert!(alice.take_lines() && has_cost(&mut alice, 0.0));
        let early = ack(33);
        alice.lines.buffer().extend(&early);
        let cost = 1.0 + (early.len() - 1) as f64 / 16_384.0;
        assert!(alice.take_lines() && has_cost(&mut alice, cost));
        assert_eq!(alice.turn.inbound().position().received, 0, "no ack is counted");
        assert!(alice.session.outbox.is_open());
        alice.lines.buffer().extend(ack(41));
        assert!(!alice.take_lines() && !alice.session.outbox.is_open());
    }

    /// README#frames, README#life.
    #[test]
    fn what_speaks_of_the_connection_is_answered_and_not_counted() {
        let (shared, _folder) = shared(HOUR);
        let (mut alice, far) = client(&shared, "alice");
        for message in [ClientMessage::Ping, ClientMessage::Pong, ClientMessage::Ping] {
            alice.lines.buffer().extend(message.encode());
        }
        assert!(alice.take_lines());
        assert!(matches!(heard(&far), ServerMessage::Pong) && matches!(heard(&far), ServerMessage::Pong));
        is_refilled(&mut alice);
        alice.lines.buffer().extend_from_slice(b"{}\n");
        alice.lines.buffer().extend(ClientMessage::Ping.encode());
        assert!(alice.take_lines());
        assert!(matches!(heard(&far), ServerMessage::Error(_)));
        // What is new is told before the answer.
        assert!(matches!(heard(&far), ServerMessage::Ack(Taken { received: 1 })));
        assert!(matches!(heard(&far), ServerMessage::Pong));
    }

    /// README#taken-over.
    #[test]
    fn of_a_connection_that_another_has_taken_over_nothing_more_is_handled_or_counted() {
        let line = KeysRequest { names: vec![name("bob")] };
        for bytes in [ClientMessage::KeysRequest(line).encode(), packet("bob", 100), b"{}\n".to_vec()] {
            let (shared, _folder) = shared(HOUR);
            let ((mut alice, _far), (bob, _bob)) = (client(&shared, "alice"), client(&shared, "bob"));
            assert!(bob.session.grant(&alice.session.name, TRANSFER, 1));
            alice.lines.buffer().extend(&bytes);
            let claim = alice.session.outbox.claim(0).expect("nothing was sent");
            assert!(!alice.take_lines());
            let mut turn = {
                let session = alice.session.clone();
                drop(alice);
                Turn::next(&shared, &session, HOUR).expect("its turn is given back")
            };
            assert_eq!(turn.inbound().position().received, 0);
            assert!(bob.session.has_granted(&turn.session().name, TRANSFER), "nothing has used it up");
            // The next one is left alone by what the former one's thread does at its end.
            let (link, _far) = link();
            assert!(turn.session().outbox.attach(link.clone(), claim, 0));
            assert!(turn.session().outbox.serves(&link));
        }
    }

    /// README#soon.
    #[test]
    fn who_says_nothing_more_still_hears_what_was_to_go_out_with_something_else() {
        let (shared, _folder) = shared(HOUR);
        let (alice, far) = client(&shared, "alice");
        shared.flusher.send_soon(&alice.session.outbox, Frame::message(&ServerMessage::Pong));
        far.shutdown(std::net::Shutdown::Write).expect("ended");
        Box::new(alice).run();
        assert!(matches!(heard(&far), ServerMessage::Pong));
    }

    /// README#full.
    #[test]
    fn a_full_server_has_a_place_for_who_is_there_and_for_another_only_at_the_cost_of_who_is_away() {
        let (mut shared, _folder) = shared(HOUR);
        Arc::get_mut(&mut shared).expect("nobody else has it yet").limits.clients = 2;
        let (guest, _far) = guest(&shared);
        let (_alice, _far) = client(&shared, "alice");
        let has_place = |of: &str| guest.place(&name(of)).is_some();
        assert!(has_place("bob"));
        let reserved = guest.place(&name("bob"));
        assert!(!has_place("carol") && has_place("alice"), "of two who come at once, one has it");
        drop(reserved);
        assert!(has_place("carol"));
        let (bob, _far) = client(&shared, "bob");
        assert!(!has_place("carol") && has_place("bob"));
        let (session, link) = (bob.session.clone(), bob.link.clone());
        drop(bob);
        assert!(session.outbox.is_open() && !session.outbox.serves(&link));
        assert!(has_place("bob") && has_place("alice"));
        assert!(session.outbox.is_open() && shared.registry.count() == 2, "they need no place of another");
        assert!(has_place("carol"));
        assert!(!session.outbox.is_open() && shared.registry.count() == 1);
    }

    /// README#lockout, README#registration-limit.
    #[test]
    fn who_waits_for_as_long_as_was_said_has_waited_long_enough() {
        let (shared, _folder) = shared(HOUR);
        let (guest, _far) = guest(&shared);
        let said = |refusal: Refusal| match refusal {
            Refusal::Say(ServerMessage::Error(Failure { retry_after: Some(seconds), .. })) => seconds,
            _ => panic!("no time is told"),
        };
        for (left, seconds) in [(1, 1), (999, 1), (1500, 2), (899_999, 900)] {
            assert_eq!(said(guest.locked(&name("alice"), Duration::from_millis(left))), seconds);
        }
        let refused = loop {
            if let Err(refusal) = guest.count_record() {
                break said(refusal);
            }
        };
        let left = shared.registrations.take(guest.address).expect_err("too many");
        assert!(
            Duration::from_secs(refused) >= left
                && left + Duration::from_secs(60) > Duration::from_secs(refused)
        );
    }

    /// README#logout, README#line-length.
    #[test]
    fn a_logout_and_a_line_without_end_end_the_session_and_nothing_behind_them_is_handled() {
        for bytes in [ClientMessage::Logout.encode(), vec![b'x'; MAX_LINE + 1]] {
            let (shared, _folder) = shared(HOUR);
            let (mut alice, far) = client(&shared, "alice");
            let is_logout = bytes.len() < MAX_LINE;
            alice.lines.buffer().extend(bytes);
            alice.lines.buffer().extend_from_slice(b"\n{}\n");
            assert!(!alice.take_lines() && !alice.session.outbox.is_open());
            let session = alice.session.clone();
            drop(alice);
            assert!(shared.registry.get(&session.name).is_none());
            if !is_logout {
                assert!(matches!(heard(&far), ServerMessage::Error(error) if error.code == "line_too_long"));
            }
            let mut rest = Vec::new();
            assert!((&far).read_to_end(&mut rest).is_ok() && rest.is_empty(), "and the connection");
        }
    }
}
