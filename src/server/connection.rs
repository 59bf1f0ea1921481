//! One logged-in connection, to its end.
//!
//! Invariants: [`admit`] runs on a short-lived thread with a large stack and returns a [`Client`] only for a client
//! that has logged in or resumed its session; [`Client::run`] then holds one small thread, which blocks on the socket
//! outside every lock. Each frame is counted and handled under the session's `inbound`, while its link serves the
//! session, and nothing waits there. However the thread ends, its link leaves the session, which waits for another one.

use super::connection_limits::Ticket;
use super::limits::{self, PACKET_PATIENCE};
use super::login::{Connection, Login, Served, not_a_message};
use super::mail;
use super::partial_frame::PartialFrame;
use super::quotas;
use super::routing;
use super::session::frames::Frame;
use super::session::outbox::{Buffers, Condition, Inbound, Queued};
use super::shared::Shared;
use crate::auth;
use crate::clock;
use crate::encoding::Fixed;
use crate::protocol::timing::{SERVER_ASK, SERVER_DROP};
use crate::protocol::{
    ClientMessage, Control, DecodeError, ErrorCode, Failure, Grant, MAX_KEY_NAMES, MAX_LINE, MAX_PACKET,
    Packet, Refused, ServerMessage, SessionCertificate,
};
use crate::sync::lock;
use crate::wire::frame;
use crate::wire::liveness::{Liveness, Next, Patience};
use crate::wire::tls::Received;
use crate::wire::window::FalseAck;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

/// Handshake, and login or resumption. `None` if one of them fails; the client of a failed login gets the reason.
pub fn admit(shared: &Arc<Shared>, ticket: Ticket) -> Option<Client> {
    let mut login = Login::handshake(shared, ticket)?;
    match login.run() {
        Ok(served) => {
            // The key may have changed since the handshake: the client has to connect again.
            if login.server_key != shared.server_key() {
                served.session.outbox.detach(&served.link);
            }
            Some(Client::new(served, login.connection))
        }
        Err(refusal) => {
            login.refuse(refusal);
            None
        }
    }
}

/// How long a client may be silent. It always gets the usual time: the server expects no answers, and after a sleep of
/// this machine thousands of clients answer at once. PROTOCOL#life.
const PATIENCE: Patience = Patience {
    owed: SERVER_ASK,
    idle: SERVER_ASK,
    answer: SERVER_DROP.saturating_sub(SERVER_ASK),
    awake: SERVER_DROP.saturating_sub(SERVER_ASK),
    report: SERVER_DROP,
    tick: SERVER_ASK,
};
/// Packets with a shorter body than this, in bytes, count against the rate. Packets of files are longer, except for
/// the last.
const SMALL_PACKET: usize = 32 * 1024;

/// The cost of a line of this length, counted against its account's rate. PROTOCOL#rate.
fn cost(length: usize) -> f64 {
    1.0 + length as f64 / 16_384.0
}

/// The cost of a line's contents, beside its length: each 32 requested names cost one more. A grant costs less the more
/// packets it grants, so that a file costs little. PROTOCOL#rate, PROTOCOL#packet-cost.
fn extra_cost(message: &Result<ClientMessage, DecodeError>) -> f64 {
    match message {
        Ok(ClientMessage::Grant(Grant { count: count @ 1.., .. })) => 0.9 / f64::from(*count) - 0.9,
        Ok(ClientMessage::KeysRequest(request)) => request.names.len().min(MAX_KEY_NAMES) as f64 / 32.0,
        _ => 0.0,
    }
}

/// A connection that has a session.
pub struct Client {
    served: Served,
    connection: Connection,
    partial: PartialFrame,
}

impl Client {
    fn new(served: Served, mut connection: Connection) -> Client {
        connection.lines.log_in(MAX_LINE);
        let partial = PartialFrame::new(&served.shared.quotas);
        Client { served, connection, partial }
    }

    /// Serves the client until its connection ends. PROTOCOL#life.
    pub fn run(&mut self) {
        let session_has_left = self.serve();
        let Served { session, link, .. } = &self.served;
        // A client that has shut down its sending side still receives: send what was deferred.
        session.outbox.flush(&mut Buffers::default());
        if session_has_left {
            self.connection.linger(|| session.outbox.says_farewell(link));
        }
    }

    /// True if the session has ended or has another connection; false if this connection has ended.
    fn serve(&mut self) -> bool {
        let mut liveness = Liveness::new(PATIENCE, Instant::now(), SystemTime::now());
        while self.take_frames() && self.served.serves() {
            let (bytes, is_new) = self.connection.lines.partial();
            if !self.partial.update(bytes, is_new, Instant::now()) {
                return false;
            }
            let wait = match liveness.next(Instant::now(), SystemTime::now()) {
                Next::Wait(wait) => wait,
                Next::Ask => {
                    self.served.control(|control| control.ping = true);
                    continue;
                }
                Next::Drop => return false,
            };
            match self.connection.receive(wait) {
                Ok(Received::Some) => liveness.heard(Instant::now()),
                Ok(Received::Silence) => {}
                Ok(Received::End) | Err(_) => return false,
            }
        }
        true
    }

    /// Handles all complete frames; false if the connection ends.
    // Out of line: otherwise each waiting thread would keep another page of stack.
    #[inline(never)]
    fn take_frames(&mut self) -> bool {
        loop {
            let is_served = match self.connection.lines.next_frame(MAX_PACKET) {
                Ok(None) => return true,
                Ok(Some(frame::Frame::Line(line))) => self.served.take_line(line),
                Ok(Some(frame::Frame::Packet(body))) => self.served.take_packet(body),
                Err(_) => {
                    self.served.dismiss(ErrorCode::LineTooLong, "a line has at most 1 MiB, a packet 66 KiB")
                }
            };
            if !is_served {
                return false;
            }
        }
    }
}

impl Served {
    fn serves(&self) -> bool {
        self.session.outbox.serves(&self.link)
    }

    fn control(&self, change: impl FnOnce(&mut Control)) {
        self.session.outbox.control(&self.link, change);
    }

    /// Ends the session, unless it has another connection by now. PROTOCOL#ends-at-once.
    fn end(&self, last: Option<&ServerMessage>) -> bool {
        self.shared.registry.end(&self.session, Condition::On(&self.link), last);
        false
    }

    /// The client has broken the protocol.
    fn dismiss(&self, code: ErrorCode, text: &str) -> bool {
        self.end(Some(&ServerMessage::error(code, text)))
    }

    fn answer(&self, message: &ServerMessage) {
        self.session.outbox.send(Frame::message(message));
    }

    /// Sends a refusal, if there is one: it costs one request.
    fn refuse(&self, inbound: &Inbound, refused: Option<ServerMessage>) {
        if let Some(refused) = refused {
            self.answer(&refused);
            lock(&inbound.bucket).charge(1.0);
        }
    }

    /// Waits until the account's rate allows a frame of this cost: a client that sends faster is throttled, and nothing
    /// is lost. `None` if the session has ended or has another link: then the frame is not counted, and the client
    /// resends it on that link. PROTOCOL#rate, PROTOCOL#taken-over.
    fn throttle(&self, cost: f64) -> Option<MutexGuard<'_, Inbound>> {
        let mut is_throttled = false;
        loop {
            let inbound = self.session.outbox.inbound();
            if !self.serves() {
                return None;
            }
            let taken = lock(&inbound.bucket).take(cost);
            let Err(wait) = taken else { return Some(inbound) };
            drop(inbound);
            if !std::mem::replace(&mut is_throttled, true) {
                quotas::count(&self.shared.quotas.slowed);
            }
            std::thread::sleep(wait.min(limits::NOTICE));
        }
    }

    /// PROTOCOL#ack-when.
    fn acknowledge(&self, inbound: &mut Inbound) {
        if let Some(received) = inbound.received.due(false) {
            self.control(|control| control.ack = Some(received));
        }
    }

    /// Handles a packet; false if the connection ends.
    fn take_packet(&self, body: &[u8]) -> bool {
        // Large packets cost nothing: the grants of their recipient limit them.
        let cost = if body.len() < SMALL_PACKET { 0.1 } else { 0.0 };
        let Some(mut inbound) = self.throttle(cost) else { return false };
        let until = Instant::now() + PACKET_PATIENCE;
        let refused = loop {
            let former = inbound.received;
            // Counted first, so that a frame whose handling panics is not sent again.
            inbound.received.count(1, body.len());
            let Ok(packet) = Packet::decode(body) else {
                let text =
                    "not a packet: it needs the length of a name, the name and a transfer id of 16 bytes";
                break Some(ServerMessage::error(ErrorCode::Malformed, text));
            };
            match routing::relay(&self.shared, &self.session, &packet, Instant::now() > until) {
                Queued::Yes => break None,
                Queued::Gone => {
                    let Packet { peer, transfer, .. } = packet;
                    break Some(ServerMessage::Refused(Refused { peer, transfer: Fixed(transfer) }));
                }
                Queued::Full => inbound.received = former,
            }
            drop(inbound);
            std::thread::sleep(Duration::from_millis(10));
            let Some(again) = self.throttle(0.0) else { return false };
            inbound = again;
        };
        self.refuse(&inbound, refused);
        self.acknowledge(&mut inbound);
        true
    }

    /// Handles a line; false if the connection ends.
    fn take_line(&self, line: &[u8]) -> bool {
        // Throttle before decoding: a decoded line can take ten times its length, for as long as it waits.
        if self.throttle(cost(line.len())).is_none() {
            return false;
        }
        let mut message = ClientMessage::decode(line);
        let mut extra = extra_cost(&message);
        if let Ok(ClientMessage::Ack(ack)) = &message {
            match self.session.outbox.acknowledge(&self.link, ack.received) {
                // A due `ack` costs no request.
                Ok(true) => extra = -1.0,
                Ok(false) => {}
                Err(FalseAck) => {
                    let text = "the ack exceeds the frames sent, or is lower than the last one";
                    return self.dismiss(ErrorCode::Malformed, text);
                }
            }
        }
        let answer = self.answer_early(&mut message);
        if let Some(ServerMessage::Mail(mail)) = &answer {
            extra += mail.mail.len() as f64;
        }
        let Some(mut inbound) = self.throttle(0.0) else { return false };
        lock(&inbound.bucket).charge(extra);
        // Counted first, as a packet is.
        if message.as_ref().map_or(true, ClientMessage::is_counted) {
            inbound.received.count(1, line.len());
        }
        if let Some(answer) = answer {
            self.answer(&answer);
        } else if let Ok(message) = message
            && !self.take_message(&mut inbound, message)
        {
            return false;
        }
        self.acknowledge(&mut inbound);
        true
    }

    /// The answer to a message that uses the disk, made without a lock. If another connection takes over meanwhile, the
    /// client sends the message again, so handling it twice changes nothing.
    fn answer_early(&self, message: &mut Result<ClientMessage, DecodeError>) -> Option<ServerMessage> {
        let Served { shared, session, .. } = self;
        match message {
            Err(error) => Some(not_a_message(*error)),
            Ok(ClientMessage::KeysRequest(request)) => Some(routing::keys(shared, request)),
            Ok(ClientMessage::EncryptedSend(send)) => mail::keep(shared, session, send),
            Ok(ClientMessage::Mailbox(certificate)) => Some(mail::set(shared, session, certificate)),
            Ok(ClientMessage::MailRequest(request)) => Some(mail::fetch(shared, session, request)),
            Ok(ClientMessage::MailDone(done)) => {
                shared.store.mail.done(&session.name, &done.numbers);
                None
            }
            Ok(_) => None,
        }
    }

    /// Handles a message that was not answered early; false if the connection ends.
    fn take_message(&self, inbound: &mut Inbound, message: ClientMessage) -> bool {
        match message {
            ClientMessage::Logout => return self.end(None),
            ClientMessage::Grant(grant) => {
                let refused = routing::grant(&self.shared, &self.session, grant);
                self.refuse(inbound, refused);
            }
            ClientMessage::EncryptedSend(send) => {
                let outcome = routing::deliver(&self.shared, &self.session, *send);
                self.shared.flusher.send_deferred(&self.session.outbox, Frame::message(&outcome));
            }
            ClientMessage::Renew(certificate) => self.answer(&self.renew(&certificate)),
            ClientMessage::Ping => {
                let news = inbound.received.due(true);
                self.control(|control| {
                    control.ack = news.or(control.ack);
                    control.pongs = control.pongs.saturating_add(1);
                });
            }
            // An `ack` and a `mail_done` were handled, and a `pong` was a sign of life.
            ClientMessage::Ack(_) | ClientMessage::MailDone(_) | ClientMessage::Pong => {}
            // The rest belongs to a login.
            _ => {
                self.answer(&ServerMessage::error(ErrorCode::AlreadyLoggedIn, "you are logged in already"));
            }
        }
        true
    }

    /// PROTOCOL#renew, PROTOCOL#newest.
    fn renew(&self, certificate: &SessionCertificate) -> ServerMessage {
        let (now, accounts, name) = (clock::now_ms(), &self.shared.store.accounts, &self.session.name);
        let bad = |text: &str| {
            let newest = Some(accounts.take_certificate(name, 0));
            ServerMessage::Error(Failure { newest, ..Failure::new(ErrorCode::BadKey, text) })
        };
        if let Err(failure) = auth::check_offered(&certificate.session_key, certificate.created, now) {
            return bad(&failure.message);
        }
        if certificate.verify(name, &self.session.identity(), now).is_err() {
            return bad("the session key is not certified by your identity key");
        }
        // A key older than the one in use changes nothing.
        let newest = accounts.take_certificate(name, certificate.created);
        if !self.session.renew(certificate, now) {
            return bad("the session key is older than the one in use");
        }
        ServerMessage::Session(self.session.announcement(newest))
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::{MAX_PARTIAL, SMALL_LINE};
    use super::super::rates::Bucket;
    use super::super::session::Session;
    use super::super::session::frames::tests::under_pressure;
    use super::super::session::outbox::Attached;
    use super::super::session::outbox::tests::{attach, link, until};
    use super::super::session::tests::{TRANSFER, name, session};
    use super::super::shared::tests::{HOUR, shared};
    use super::*;
    use crate::protocol::{KeysRequest, Received as Taken};
    use crate::wire::frame::Lines;
    use crate::wire::tls::Reader;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    /// A logged-in client, and the other end of its connection. The bucket is full and is never refilled.
    fn client(shared: &Arc<Shared>, name: &str) -> (Client, TcpStream) {
        let (session, _) = session(name);
        assert!(shared.registry.insert(&session, 100));
        let (link, far) = link();
        far.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        assert_eq!(attach(&session.outbox, &link, 0), Attached::Yes);
        let served = Served { shared: shared.clone(), session, link: link.clone() };
        let connection = Connection { link, reader: Reader::default(), lines: Lines::new(MAX_LINE) };
        let client = Client::new(served, connection);
        refill(&client);
        (client, far)
    }

    fn refill(client: &Client) {
        set_tokens(client, 4.0);
    }

    /// Gives the bucket this number of tokens. It is never refilled.
    fn set_tokens(client: &Client, tokens: f64) {
        let mut bucket = Bucket::new(1e-9, 4.0);
        bucket.charge(4.0 - tokens);
        *lock(&client.served.session.outbox.inbound().bucket) = bucket;
    }

    fn received(client: &Client) -> u64 {
        client.served.session.outbox.inbound().received.position()
    }

    /// Whether a client's requests have cost this much, within a thousandth. Fills the bucket again.
    fn has_cost(client: &Client, cost: f64) -> bool {
        let inbound = client.served.session.outbox.inbound();
        let mut bucket = lock(&inbound.bucket);
        let has = bucket.take(4.0 - cost - 0.001).is_ok() && bucket.take(0.002).is_err();
        *bucket = Bucket::new(1e-9, 4.0);
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
            far.read_exact(&mut byte).expect("a line");
            line.extend(byte);
        }
        line.pop();
        ServerMessage::decode(&line).unwrap_or_else(|_| panic!("not a message"))
    }

    /// PROTOCOL#rate, PROTOCOL#packet-cost.
    #[test]
    fn cost_of_a_line_depends_on_its_request() {
        let thousandths = |message: Result<ClientMessage, DecodeError>, length: usize| {
            ((cost(length) + extra_cost(&message)) * 1000.0).round() as u64
        };
        let grant = |count: u32| {
            Ok(ClientMessage::Grant(Grant { peer: name("bob"), transfer: Fixed(TRANSFER), count }))
        };
        let ask =
            |count: usize| Ok(ClientMessage::KeysRequest(KeysRequest { names: vec![name("bob"); count] }));
        assert_eq!(thousandths(Ok(ClientMessage::Ping), 0), 1000);
        assert_eq!(thousandths(Err(DecodeError::Malformed), 16_384), 2000);
        assert_eq!((thousandths(ask(32), 0), thousandths(ask(64), 8192)), (2000, 3500));
        assert_eq!(thousandths(ask(65), 0), 3000, "more are refused");
        assert_eq!((thousandths(grant(1), 0), thousandths(grant(9), 0)), (1000, 200));
        assert_eq!(thousandths(grant(9), 16_384), 1200, "the length costs the same");
        assert_eq!(thousandths(grant(0), 16_384), 2000, "a revocation");
    }

    /// PROTOCOL#packet-cost, PROTOCOL#not-granted.
    #[test]
    fn small_packet_costs_a_tenth_large_nothing_refused_a_request() {
        let (shared, _folder) = shared(HOUR);
        let ((mut alice, far), (bob, _bob)) = (client(&shared, "alice"), client(&shared, "bob"));
        assert!(bob.served.session.grant(&alice.served.session.name, TRANSFER, 2));
        for (peer, body, cost) in [
            ("bob", SMALL_PACKET - 1, 0.1),
            ("bob", SMALL_PACKET, 0.0),
            ("bob", SMALL_PACKET, 1.0),
            ("carol", SMALL_PACKET - 1, 1.1),
        ] {
            alice.connection.lines.buffer().extend(packet(peer, body));
            assert!(alice.take_frames() && has_cost(&alice, cost), "{body} bytes to {peer}");
        }
        assert_eq!(SMALL_PACKET, 32 * 1024);
        for peer in ["bob", "carol"] {
            let ServerMessage::Refused(refused) = heard(&far) else { panic!("not refused") };
            assert!(refused.peer == name(peer) && refused.transfer == Fixed(TRANSFER));
        }
        // A packet without a name is answered like a line that is not a message.
        alice.connection.lines.buffer().extend(frame::packet_head(b"", b""));
        assert!(alice.take_frames() && has_cost(&alice, 1.1));
        assert!(matches!(heard(&far), ServerMessage::Error(_)));
        assert_eq!(received(&alice), 5, "each was accepted");
    }

    /// PROTOCOL#ack, PROTOCOL#ack-true.
    #[test]
    fn due_ack_is_free_and_false_ack_ends_the_session() {
        let (shared, _folder) = shared(HOUR);
        let (mut alice, _far) = client(&shared, "alice");
        let ack = |received: u64| ClientMessage::Ack(Taken { received }).encode();
        (0..40).for_each(|_| alice.served.session.outbox.send(Frame::line(*b"x\n")));
        for (received, requests) in [(32, 0.0), (33, 1.0)] {
            let ack = ack(received);
            alice.connection.lines.buffer().extend(&ack);
            let cost = requests + (ack.len() - 1) as f64 / 16_384.0;
            assert!(alice.take_frames() && has_cost(&alice, cost), "{received}");
        }
        assert_eq!(received(&alice), 0, "no ack is counted");
        assert!(alice.served.session.outbox.is_open());
        alice.connection.lines.buffer().extend(ack(41));
        assert!(!alice.take_frames() && !alice.served.session.outbox.is_open());
    }

    /// PROTOCOL#rate.
    #[test]
    fn extra_cost_of_a_line_delays_only_later_ones() {
        let (shared, _folder) = shared(HOUR);
        let (mut alice, far) = client(&shared, "alice");
        let session = alice.served.session.clone();
        set_tokens(&alice, 1.5);
        let request = KeysRequest { names: vec![name("bob"); MAX_KEY_NAMES] };
        alice.connection.lines.buffer().extend(ClientMessage::KeysRequest(request).encode());
        std::thread::spawn(move || alice.take_frames());
        assert!(matches!(heard(&far), ServerMessage::Keys(_)), "its own names do not delay it");
        assert!(lock(&session.outbox.inbound().bucket).take(0.0).is_err(), "they delay the next line");
    }

    /// PROTOCOL#frames, PROTOCOL#life.
    #[test]
    fn connection_messages_are_answered_and_not_counted() {
        let (shared, _folder) = shared(HOUR);
        let (mut alice, far) = client(&shared, "alice");
        for message in [ClientMessage::Ping, ClientMessage::Pong, ClientMessage::Ping] {
            alice.connection.lines.buffer().extend(message.encode());
        }
        assert!(alice.take_frames());
        assert!(matches!(heard(&far), ServerMessage::Pong) && matches!(heard(&far), ServerMessage::Pong));
        refill(&alice);
        alice.connection.lines.buffer().extend_from_slice(b"{}\n");
        alice.connection.lines.buffer().extend(ClientMessage::Ping.encode());
        assert!(alice.take_frames());
        assert!(matches!(heard(&far), ServerMessage::Error(_)));
        // The `ack` precedes the answer.
        assert!(matches!(heard(&far), ServerMessage::Ack(Taken { received: 1 })));
        assert!(matches!(heard(&far), ServerMessage::Pong));
    }

    /// PROTOCOL#taken-over.
    #[test]
    fn replaced_connection_handles_and_counts_nothing_more() {
        let line = KeysRequest { names: vec![name("bob")] };
        let lines = [ClientMessage::KeysRequest(line).encode(), b"{}\n".to_vec(), vec![b'x'; MAX_LINE + 1]];
        for bytes in [&lines[..], &[packet("bob", 100)]].concat() {
            let (shared, _folder) = shared(HOUR);
            let ((mut alice, _far), (bob, _bob)) = (client(&shared, "alice"), client(&shared, "bob"));
            assert!(bob.served.session.grant(&alice.served.session.name, TRANSFER, 1));
            alice.connection.lines.buffer().extend(&bytes);
            let session = alice.served.session.clone();
            let (link, _far) = link();
            assert_eq!(attach(&session.outbox, &link, 0), Attached::Yes);
            assert!(!alice.take_frames());
            assert_eq!(received(&alice), 0);
            assert!(bob.served.session.has_granted(&session.name, TRANSFER), "the grant is unused");
            // The end of the former link's thread does not affect the next link.
            alice.run();
            drop(alice);
            assert!(session.outbox.serves(&link));
        }
    }

    /// Waits until a frame of this client is in progress: it has been charged to the bucket.
    fn until_charged(session: &Session) {
        until(|| {
            let inbound = session.outbox.inbound();
            let mut bucket = lock(&inbound.bucket);
            let is_full = bucket.take(4.0).is_ok();
            bucket.charge(if is_full { -4.0 } else { 0.0 });
            !is_full
        });
    }

    /// PROTOCOL#taken-over, PROTOCOL#packet-order.
    #[test]
    fn waiting_packet_is_handed_to_the_next_connection() {
        const BODY: usize = 60 * 1024;
        let (shared, _folder) = shared(HOUR);
        let ((mut alice, _far), (bob, _bob)) = (client(&shared, "alice"), client(&shared, "bob"));
        let (mine, recipient) = (alice.served.session.clone(), &bob.served.session);
        assert!(recipient.grant(&mine.name, TRANSFER, 6));
        recipient.outbox.disconnect();
        let _pressure = under_pressure(recipient.outbox.quotas(), 0);
        alice.connection.lines.buffer().extend(packet("bob", BODY).repeat(5));
        assert!(alice.take_frames() && received(&alice) == 5, "each session may have 256 KiB");
        alice.connection.lines.buffer().extend(packet("bob", SMALL_PACKET - 1));
        let (link, _far) = link();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| alice.take_frames());
            until_charged(&mine);
            assert_eq!(mine.outbox.attach(link.clone(), 0, HOUR, |_| Vec::new()), Attached::Yes);
            assert!(!waiting.join().expect("whole"));
        });
        assert_eq!(received(&alice), 5, "it is sent again");
        assert!(recipient.has_granted(&mine.name, TRANSFER));
    }

    /// PROTOCOL#taken-over.
    #[test]
    fn line_in_progress_is_handed_to_the_next_connection() {
        let (shared, _folder) = shared(HOUR);
        let (mut alice, _far) = client(&shared, "alice");
        let mine = alice.served.session.clone();
        let request = KeysRequest { names: vec![name("bob")] };
        alice.connection.lines.buffer().extend(ClientMessage::KeysRequest(request).encode());
        let (link, far) = link();
        std::thread::scope(|scope| {
            let held = shared.registry.hold_sessions();
            let looking = scope.spawn(|| alice.take_frames());
            until_charged(&mine);
            assert_eq!(attach(&mine.outbox, &link, 0), Attached::Yes);
            drop(held);
            assert!(!looking.join().expect("whole"));
        });
        assert_eq!(received(&alice), 0, "it is sent again");
        mine.outbox.send(Frame::message(&ServerMessage::Pong));
        assert!(matches!(heard(&far), ServerMessage::Pong), "nor is it answered");
    }

    /// PROTOCOL#packet-order, PROTOCOL#not-granted.
    #[test]
    fn packet_without_room_is_refused_after_five_seconds() {
        const BODY: usize = 60 * 1024;
        let (shared, _folder) = shared(HOUR);
        let ((mut alice, far), (bob, _bob)) = (client(&shared, "alice"), client(&shared, "bob"));
        let (mine, recipient) = (alice.served.session.clone(), bob.served.session.clone());
        assert!(recipient.grant(&mine.name, TRANSFER, 9));
        recipient.outbox.disconnect();
        let _pressure = under_pressure(recipient.outbox.quotas(), 0);
        alice.connection.lines.buffer().extend(packet("bob", BODY).repeat(6));
        let started = Instant::now();
        let waiting = std::thread::spawn(move || (alice.take_frames(), alice));
        let answer =
            std::iter::repeat_with(|| heard(&far)).find(|line| !matches!(line, ServerMessage::Ack(_)));
        assert!(matches!(answer, Some(ServerMessage::Refused(refused)) if refused.peer == name("bob")));
        assert!(started.elapsed() >= PACKET_PATIENCE);
        let (continues, alice) = waiting.join().expect("whole");
        assert!(continues && received(&alice) == 6 && has_cost(&alice, 1.0));
        assert!(!recipient.has_granted(&mine.name, TRANSFER), "the rest of the grant is revoked");
    }

    /// PROTOCOL#deferred.
    #[test]
    fn deferred_answer_is_sent_when_the_client_stops_sending() {
        let (shared, _folder) = shared(HOUR);
        let (mut alice, far) = client(&shared, "alice");
        shared.flusher.send_deferred(
            &alice.served.session.outbox,
            Frame::message(&ServerMessage::error(ErrorCode::Malformed, "")),
        );
        far.shutdown(std::net::Shutdown::Write).expect("ended");
        alice.run();
        assert!(matches!(heard(&far), ServerMessage::Error(_)));
    }

    #[test]
    fn panic_of_a_handler_leaves_a_session_that_can_be_resumed() {
        let (shared, _folder) = shared(HOUR);
        let (alice, _far) = client(&shared, "alice");
        let session = alice.served.session.clone();
        let thread = std::thread::spawn(move || {
            let _inbound = alice.served.session.outbox.inbound();
            panic!("a panic like that of a handler");
        });
        assert!(thread.join().is_err() && session.outbox.detached().is_some());
        let (link, _far) = link();
        assert_eq!(attach(&session.outbox, &link, 0), Attached::Yes);
    }

    /// PROTOCOL#partial-frames.
    #[test]
    fn partial_line_beyond_the_limit_closes_its_connection() {
        let (shared, _folder) = shared(HOUR);
        let (mut alice, far) = client(&shared, "alice");
        let session = alice.served.session.clone();
        let _others = shared.quotas.partial.take(MAX_PARTIAL);
        (&far).write_all(&[b'x'; SMALL_LINE + 1]).expect("sent");
        let (mut rest, serving) = (Vec::new(), std::thread::spawn(move || alice.run()));
        assert!((&far).read_to_end(&mut rest).is_ok() && rest.is_empty(), "closed before the first `ping`");
        serving.join().expect("whole");
        assert!(session.outbox.detached().is_some(), "the session waits for another connection");
    }

    #[test]
    fn farewell_reaches_a_client_that_keeps_sending() {
        let (shared, _folder) = shared(HOUR);
        let (mut alice, far) = client(&shared, "alice");
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| (&far).write_all(&vec![b'x'; MAX_LINE + 256 * 1024]));
            let serving = scope.spawn(move || alice.run());
            sending.join().expect("whole").expect("all of it is read");
            assert!(matches!(heard(&far), ServerMessage::Error(error) if error.code == "line_too_long"));
            serving.join().expect("whole");
            assert!(matches!(far.take_error(), Ok(None)), "a reset can eat the farewell");
        });
    }

    /// PROTOCOL#certificate-ends.
    #[test]
    fn expired_certificate_ends_session_and_connection() {
        let (shared, _folder) = shared(HOUR);
        let ((mut alice, far), (bob, _bob)) = (client(&shared, "alice"), client(&shared, "bob"));
        let is_there = |name: &str| shared.registry.get(&self::name(name)).is_some();
        alice.served.session.expire();
        shared.sweep(Instant::now());
        // Other users see it at once, and no client can resume it.
        assert!(!is_there("alice") && is_there("bob") && bob.served.session.outbox.is_open());
        alice.run();
        drop(alice);
        assert!(matches!(heard(&far), ServerMessage::Error(error) if error.code == "certificate_expired"));
        let mut rest = Vec::new();
        assert!((&far).read_to_end(&mut rest).is_ok() && rest.is_empty(), "and the connection");
        let (again, _again) = session("alice");
        assert!(shared.registry.insert(&again, 2), "for a new login");
    }

    /// PROTOCOL#logout, PROTOCOL#line-length.
    #[test]
    fn nothing_is_handled_after_a_logout_or_an_overlong_line() {
        for bytes in [ClientMessage::Logout.encode(), vec![b'x'; MAX_LINE + 1]] {
            let (shared, _folder) = shared(HOUR);
            let (mut alice, far) = client(&shared, "alice");
            let is_logout = bytes.len() < MAX_LINE;
            alice.connection.lines.buffer().extend(bytes);
            alice.connection.lines.buffer().extend_from_slice(b"\n{}\n");
            assert!(!alice.take_frames() && !alice.served.session.outbox.is_open());
            // Other users see it at once, however long the connection takes to end.
            assert!(shared.registry.get(&alice.served.session.name).is_none());
            drop(alice);
            if !is_logout {
                assert!(matches!(heard(&far), ServerMessage::Error(error) if error.code == "line_too_long"));
            }
            let mut rest = Vec::new();
            assert!((&far).read_to_end(&mut rest).is_ok() && rest.is_empty(), "and the connection");
        }
    }
}
