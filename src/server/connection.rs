//! One connection, from the accepted socket to its end.
//!
//! Invariant: [`admit`] runs on a short-lived thread with a large stack and gives a [`Client`] only to who
//! has logged in; [`Client::run`] then holds one small thread, which blocks on the socket
//! outside every lock. Whatever ends a connection, `Drop` gives back its turn to read from its session
//! ([`grace`]), which waits for another connection unless it has ended.

use super::connection_limits::Ticket;
use super::frames::Frame;
use super::grace::{self, Inbound, Turn};
use super::guest::{Entry, Guest, Resumption, linger, not_a_message};
use super::limits;
use super::outbox::{Buffers, Link, Outbox};
use super::partial_frame::PartialFrame;
use super::registry::Place;
use super::session::Session;
use super::{Shared, delivery, metrics};
use crate::auth::{self, Authenticated};
use crate::clock;
use crate::crypto::public::Fingerprint;
use crate::protocol::timing::{SERVER_ASK, SERVER_DROP};
use crate::protocol::{
    ClientMessage, DecodeError, ErrorCode, Grant, MAX_LINE, MAX_PACKET, Packet, Received as Position,
    ServerMessage, SessionKeyFields,
};
use crate::wire::frame::{self, Lines};
use crate::wire::liveness::{Liveness, Next, Patience};
use crate::wire::tls::{Reader, Received};
use crate::wire::window::{Control, FalseAck};
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// Handshake, and login or resumption. `None` if nothing came of it; the other side has been told why.
pub fn admit(
    shared: &Arc<Shared>,
    socket: Arc<TcpStream>,
    address: IpAddr,
    ticket: Ticket,
) -> Option<Client> {
    let mut guest = Guest::welcome(shared, socket, address)?;
    match guest.log_in() {
        Ok(Entry::Login(login, place)) => Some(Client::new(guest, &login, place, ticket)),
        Ok(Entry::Resumed(resumption)) => Client::resumed(guest, resumption, ticket),
        Err(refusal) => {
            guest.show_out(refusal);
            None
        }
    }
}

/// How long a client may be silent. A client owes nothing that the server waits for, and after a sleep of this machine
/// thousands of clients answer at once: they get the usual time. PROTOCOL#life.
const PATIENCE: Patience = Patience {
    owed: SERVER_ASK,
    idle: SERVER_ASK,
    answer: SERVER_DROP.saturating_sub(SERVER_ASK),
    awake: SERVER_DROP.saturating_sub(SERVER_ASK),
    report: SERVER_DROP,
    tick: SERVER_ASK,
};
/// Packets with a shorter body than this, in bytes, are counted, too: those of files are larger, but for the last.
const SMALL_PACKET: usize = 32 * 1024;

/// What a line costs of a client's rate: one, and more if it is long or asks for much. A grant of many
/// packets costs less: it stands for them. PROTOCOL#packet-cost.
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
    partial: PartialFrame,
}

impl Client {
    fn new(guest: Guest<'_>, login: &Authenticated, place: Place<'_>, ticket: Ticket) -> Client {
        let Guest { shared, channel, server_key, reader, lines, .. } = guest;
        ticket.logged_in();
        let link = Link::new(channel, ticket);
        let outbox = Arc::new(Outbox::new(link.clone(), shared.limits.outbox, shared.quotas.clone()));
        let (session, announcement) = Session::new(login, outbox, clock::now_ms());
        let hello = ServerMessage::Session(announcement).encode();
        session.outbox.control(|control| control.first = Some(hello));
        let session = Arc::new(session);
        if let Some(former) = shared.registry.add(&session, place) {
            // PROTOCOL#replaced.
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
        let turn = Turn::first(shared, &session, Inbound::new(shared.limits.rate));
        Client::of(shared, turn, link, server_key, reader, lines)
    }

    /// `None` if the session has ended since, or another resumption was later.
    fn resumed(guest: Guest<'_>, resumption: Resumption, ticket: Ticket) -> Option<Client> {
        let Guest { shared, channel, server_key, reader, lines, address, .. } = guest;
        let Resumption { mut turn, claim, received } = resumption;
        ticket.logged_in();
        let link = Link::new(channel, ticket);
        let position = Position { received: turn.inbound().received.position() };
        let hello = ServerMessage::Resumed(position).encode();
        let goes_on = turn.session().outbox.attach(link.clone(), claim, received, hello);
        goes_on.then(|| {
            shared.audit.log("resumed", Some(&turn.session().name), Some(address), "");
            Client::of(shared, turn, link, server_key, reader, lines)
        })
    }

    fn of(
        shared: &Arc<Shared>,
        turn: Turn,
        link: Arc<Link>,
        server_key: Option<Fingerprint>,
        reader: Reader,
        mut lines: Lines,
    ) -> Client {
        // The key may have changed since the handshake.
        if server_key != shared.server_key() {
            turn.session().outbox.detach(&link);
        }
        lines.log_in(MAX_LINE);
        let partial = PartialFrame::new(&shared.quotas);
        let (shared, session) = (shared.clone(), turn.session().clone());
        Client { shared, session, turn, link, reader, lines, partial }
    }

    /// Serves the client until its connection ends. PROTOCOL#life.
    pub fn run(mut self: Box<Self>) {
        let mut liveness = Liveness::new(PATIENCE, Instant::now(), SystemTime::now());
        loop {
            // What a session that has ended still sends is not waited for.
            if !self.take_lines() || !self.session.outbox.serves(&self.link) {
                let (outbox, link) = (&self.session.outbox, &self.link);
                return linger(&link.channel, &mut self.reader, || outbox.says_farewell(link));
            }
            let (bytes, is_new) = self.lines.unfinished();
            if !self.partial.update(bytes, is_new, Instant::now()) {
                return;
            }
            let wait = match liveness.next(Instant::now(), SystemTime::now()) {
                Next::Wait(wait) => wait,
                Next::Ask => {
                    self.control(|control| control.ping = true);
                    continue;
                }
                Next::Drop => return,
            };
            match self.link.channel.receive(&mut self.reader, self.lines.buffer(), wait) {
                Ok(Received::Some) => liveness.heard(Instant::now()),
                Ok(Received::Silence) => {}
                Ok(Received::End) | Err(_) => return,
            }
            if self.link.channel.wants_to_send() {
                self.session.outbox.flush(&mut Buffers::default());
            }
        }
    }

    fn answer(&self, message: &ServerMessage) {
        self.session.outbox.send(Frame::message(message));
    }

    fn control(&self, change: impl FnOnce(&mut Control)) {
        self.session.outbox.control(change);
    }

    /// Handles all whole lines and packets; false if the connection ends. What is not handled is not counted, and comes
    /// again when the session is resumed.
    // Its place on the stack is not kept while the client says nothing: with it, a thread that waits has a page more.
    #[inline(never)]
    fn take_lines(&mut self) -> bool {
        loop {
            // PROTOCOL#ack-when.
            if let Some(received) = self.turn.inbound().received.due(false) {
                self.control(|control| control.ack = Some(received));
            }
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
                        Err(_) => Some(ServerMessage::error(
                            ErrorCode::Malformed,
                            "not a packet: it needs the length of a name, the name and 16 bytes of a transfer",
                        )),
                    };
                    self.turn.inbound().received.count(1, length);
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
                self.turn.inbound().received.count(1, length);
            }
            match request {
                Ok(ClientMessage::Logout) => {
                    grace::end(&self.shared, &self.session, None);
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

    /// The client has broken the protocol: its session ends with the connection. PROTOCOL#ends-at-once.
    fn end(&self, code: ErrorCode, text: &str) -> bool {
        grace::dismiss(&self.shared, &self.session, code, text);
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
    /// session has ended, or gone to another connection. PROTOCOL#rate.
    fn slow_down(&mut self, cost: f64) -> bool {
        let mut told = false;
        while let Err(wait) = self.turn.inbound().bucket.take(cost) {
            if !std::mem::replace(&mut told, true) {
                metrics::SLOWED.add();
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
                let news = self.turn.inbound().received.due(true);
                return self.control(|control| {
                    control.ack = news.or(control.ack);
                    control.pongs = control.pongs.saturating_add(1);
                });
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

    /// PROTOCOL#renew.
    fn renew(&self, fields: &SessionKeyFields) -> ServerMessage {
        let now = clock::now_ms();
        let bad = |text: &str| ServerMessage::error(ErrorCode::BadKey, text);
        let certificate = match auth::offered(&fields.session_key, fields.created, &fields.certificate, now) {
            Ok(certificate) => certificate,
            Err(error) => return bad(&error.to_string()),
        };
        if certificate.verify(&self.session.name, &self.session.identity(), now).is_err() {
            return bad("the session key is not certified by your identity key");
        }
        match self.session.renew(&certificate, now) {
            Some(announcement) => ServerMessage::Session(announcement),
            None => bad("the session key is older than the one in use"),
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
    use super::super::guest::tests::guest;
    use super::super::outbox::tests::link;
    use super::super::rates::Bucket;
    use super::super::session::tests::session;
    use super::super::tests::shared;
    use super::*;
    use crate::encoding::Fixed;
    use crate::name::Username;
    use crate::protocol::{KeysRequest, Received as Taken};
    use std::io::Read;
    use std::time::Duration;

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
        assert!(session.outbox.attach(link.clone(), claim, 0, Vec::new()));
        let mut turn = Turn::first(shared, &session, Inbound::new(1));
        turn.inbound().bucket = Bucket::new(1e-9, 4.0);
        (Client::of(shared, turn, link, None, Reader::default(), Lines::new(MAX_LINE)), far)
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

    /// PROTOCOL#rate, PROTOCOL#packet-cost.
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

    /// PROTOCOL#packet-cost, PROTOCOL#not-granted.
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
        assert_eq!(alice.turn.inbound().received.position(), 5, "each of them was taken in");
    }

    /// PROTOCOL#ack, PROTOCOL#ack-true.
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
        assert_eq!(alice.turn.inbound().received.position(), 0, "no ack is counted");
        assert!(alice.session.outbox.is_open());
        alice.lines.buffer().extend(ack(41));
        assert!(!alice.take_lines() && !alice.session.outbox.is_open());
    }

    /// PROTOCOL#frames, PROTOCOL#life.
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

    /// PROTOCOL#taken-over.
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
            assert_eq!(turn.inbound().received.position(), 0);
            assert!(bob.session.has_granted(&turn.session().name, TRANSFER), "nothing has used it up");
            // The next one is left alone by what the former one's thread does at its end.
            let (link, _far) = link();
            assert!(turn.session().outbox.attach(link.clone(), claim, 0, Vec::new()));
            assert!(turn.session().outbox.serves(&link));
        }
    }

    /// PROTOCOL#soon.
    #[test]
    fn who_says_nothing_more_still_hears_what_was_to_go_out_with_something_else() {
        let (shared, _folder) = shared(HOUR);
        let (alice, far) = client(&shared, "alice");
        shared.flusher.send_soon(
            &alice.session.outbox,
            Frame::message(&ServerMessage::error(ErrorCode::Malformed, "")),
        );
        far.shutdown(std::net::Shutdown::Write).expect("ended");
        Box::new(alice).run();
        assert!(matches!(heard(&far), ServerMessage::Error(_)));
    }

    /// PROTOCOL#full.
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
        drop((reserved, guest.place(&name("bob"))));
        assert!(has_place("carol"));
        let (bob, _far) = client(&shared, "bob");
        assert!(!has_place("carol") && has_place("bob"));
        let (session, link) = (bob.session.clone(), bob.link.clone());
        drop(bob);
        assert!(session.outbox.is_open() && !session.outbox.serves(&link));
        assert!(has_place("bob") && has_place("alice"));
        assert!(session.outbox.is_open() && shared.registry.count() == 2, "they need no place of another");
        // Who is about to take over from a session has its place, even if that ends meanwhile.
        let taken_over = guest.place(&name("bob"));
        assert!(!has_place("carol") && !session.outbox.is_open() && has_place("bob"));
        drop(taken_over);
        assert!(has_place("carol"));
        assert!(!session.outbox.is_open() && shared.registry.count() == 1);
    }

    /// PROTOCOL#logout, PROTOCOL#line-length.
    #[test]
    fn a_logout_and_a_line_without_end_end_the_session_and_nothing_behind_them_is_handled() {
        for bytes in [ClientMessage::Logout.encode(), vec![b'x'; MAX_LINE + 1]] {
            let (shared, _folder) = shared(HOUR);
            let (mut alice, far) = client(&shared, "alice");
            let is_logout = bytes.len() < MAX_LINE;
            alice.lines.buffer().extend(bytes);
            alice.lines.buffer().extend_from_slice(b"\n{}\n");
            assert!(!alice.take_lines() && !alice.session.outbox.is_open());
            // Others see it at once, however long the connection takes to end.
            assert!(shared.registry.get(&alice.session.name).is_none());
            drop(alice);
            if !is_logout {
                assert!(matches!(heard(&far), ServerMessage::Error(error) if error.code == "line_too_long"));
            }
            let mut rest = Vec::new();
            assert!((&far).read_to_end(&mut rest).is_ok() && rest.is_empty(), "and the connection");
        }
    }
}
