//! Sessions that outlive their connections: wherever a connection is cut, every frame arrives once and in order, in
//! both directions, and only a client with the session's token can resume it. Real servers, and raw clients that keep
//! and count frames as PROTOCOL.md, "Resuming", requires.

use crate::support::{self, DEADLINE, Dice, Gate, Heard, Person, Raw, Server, Way, name, until};
use secure_messenger::auth;
use secure_messenger::clock;
use secure_messenger::crypto::keys::SessionKey;
use secure_messenger::crypto::secret::Key;
use secure_messenger::encoding::Fixed;
use secure_messenger::name::Username;
use secure_messenger::protocol::{
    ClientMessage, Grant, KeysRequest, Kind, MAX_LINE, Packet, Received, Resume, ResumeChallenge,
    ResumeRequest, Scope, Sent, ServerMessage, Session, VERSION,
};
use secure_messenger::wire::frame;
use socket2::SockRef;
use std::collections::VecDeque;
use std::io::Read;
use std::net::TcpStream;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// A client's half of a session.
struct Peer<'a> {
    server: &'a Server,
    raw: Raw,
    gate: Gate,
    person: Person,
    token: Key,
    /// Frames received, and the number that was acknowledged to the server.
    received: u64,
    told: u64,
    acks: bool,
    /// Frames sent that the server has not acknowledged, and the number before them.
    kept: VecDeque<Vec<u8>>,
    before: u64,
    resumed: usize,
}

/// A connection, and the relay before the server.
fn connect(server: &Server) -> (Raw, Gate) {
    let gate = Gate::before(server);
    gate.limit_kernel();
    let socket = TcpStream::connect(("127.0.0.1", gate.port)).expect("connected");
    // Otherwise the kernel enlarges its buffer, and still accepts data long after the test has stopped reading.
    SockRef::from(&socket).set_recv_buffer_size(64 * 1024).expect("a socket");
    (Raw::over(socket, server.tls), gate)
}

/// The token of a session, which must expire after 24 hours.
fn lasting_a_day(session: Session) -> Key {
    let left = session.expires.saturating_sub(clock::now_ms());
    assert!((86_340_000..=86_400_000).contains(&left), "{left} ms");
    session.token
}

impl<'a> Peer<'a> {
    fn new(server: &'a Server, name: &str) -> Peer<'a> {
        let ((mut raw, gate), person) = (connect(server), Person::new(name));
        raw.register(&person);
        let token = lasting_a_day(raw.logs_in(&person));
        let (kept, before) = (VecDeque::new(), 0);
        let mut peer = Peer {
            server,
            raw,
            gate,
            person,
            token,
            received: 0,
            told: 0,
            acks: true,
            kept,
            before,
            resumed: 0,
        };
        // Wait for the first list of online users.
        peer.hear_message(|message| matches!(message, ServerMessage::Presence(presence) if !presence.more));
        peer
    }

    fn name(&self) -> Username {
        self.person.name.clone()
    }

    fn frame(&mut self, frame: Vec<u8>) {
        self.raw.bytes(&frame);
        self.kept.push_back(frame);
    }

    fn say(&mut self, message: &ClientMessage) {
        if message.is_counted() {
            return self.frame(message.encode());
        }
        self.raw.bytes(&message.encode());
    }

    fn ack(&mut self) {
        self.told = self.received;
        self.say(&ClientMessage::Ack(Received { received: self.received }));
    }

    fn acknowledged(&mut self, received: u64) {
        let count = received.checked_sub(self.before).expect("never falls") as usize;
        assert!(count <= self.kept.len(), "more than was sent");
        self.kept.drain(..count);
        self.before = received;
    }

    /// The next frame on this connection; `None` when it has ended.
    fn next(&mut self) -> Option<Heard> {
        loop {
            let heard = self.raw.next()?;
            match &heard {
                Heard::Message(ServerMessage::Ack(ack)) => self.acknowledged(ack.received),
                Heard::Message(ServerMessage::Ping) => {
                    self.ack();
                    self.say(&ClientMessage::Pong);
                }
                Heard::Message(ServerMessage::Pong) => return Some(heard),
                _ => {
                    self.received += 1;
                    if self.acks && self.received - self.told >= 32 {
                        self.ack();
                    }
                    return Some(heard);
                }
            }
        }
    }

    /// The next frame on this or any later connection.
    fn hear(&mut self) -> Heard {
        loop {
            match self.next() {
                Some(heard) => return heard,
                None => self.resume(),
            }
        }
    }

    fn hear_message(&mut self, fits: impl Fn(&ServerMessage) -> bool) -> ServerMessage {
        loop {
            if let Heard::Message(message) = self.hear()
                && fits(&message)
            {
                return message;
            }
        }
    }

    /// Waits until this user is online.
    fn meets(&mut self, name: &Username) {
        self.hear_message(
            |message| matches!(message, ServerMessage::Presence(news) if news.joined.contains(name)),
        );
    }

    fn sent(&mut self) -> Sent {
        match self.hear_message(|message| matches!(message, ServerMessage::Sent(_))) {
            ServerMessage::Sent(sent) => sent,
            _ => unreachable!(),
        }
    }

    /// The number of the next envelope.
    fn letter(&mut self) -> u64 {
        match self.hear_message(|message| matches!(message, ServerMessage::EncryptedMessage(_))) {
            ServerMessage::EncryptedMessage(message) => message.envelope.header.sequence,
            _ => unreachable!(),
        }
    }

    /// Waits until the server has handled everything sent so far, and returns what arrives meanwhile.
    fn settle(&mut self) -> Vec<Heard> {
        let mut all = Vec::new();
        self.say(&ClientMessage::Ping);
        loop {
            match self.next() {
                Some(Heard::Message(ServerMessage::Pong)) => return all,
                Some(heard) => all.push(heard),
                None => {
                    // A ping is not resent after a resumption.
                    self.resume();
                    self.say(&ClientMessage::Ping);
                }
            }
        }
    }

    /// Resumes the session, with as many attempts as needed.
    fn resume(&mut self) {
        while !self.attempt(u64::MAX, u64::MAX) {}
    }

    /// One attempt on a connection that is cut after this number of bytes each way. False if that was too early.
    fn attempt(&mut self, up: u64, down: u64) -> bool {
        (self.raw, self.gate) = connect(self.server);
        self.gate.cut_after(Way::Up, up);
        self.gate.cut_after(Way::Down, down);
        let challenge = match challenge(&mut self.raw, &self.person.name) {
            Some(challenge) => challenge,
            None => return false,
        };
        let exporter = self.raw.channel.exporter().to_vec();
        let proof = auth::resume(&self.person.name, &challenge, &exporter, &self.token, self.received);
        self.raw.bytes(&ClientMessage::Resume(proof).encode());
        match self.raw.hear() {
            None => false,
            Some(ServerMessage::Resumed(position)) => {
                self.acknowledged(position.received);
                self.told = self.received;
                self.resumed += 1;
                for frame in &self.kept {
                    self.raw.bytes(frame);
                }
                true
            }
            Some(ServerMessage::Error(failure)) => panic!("{}: {}", failure.code, failure.message),
            Some(_) => panic!("something else came first"),
        }
    }

    /// Closes the connection without a message.
    fn hang_up(&mut self) {
        self.raw.channel.close();
    }
}

fn challenge(raw: &mut Raw, name: &Username) -> Option<ResumeChallenge> {
    let request = ResumeRequest { version: VERSION, username: name.clone() };
    raw.bytes(&ClientMessage::ResumeRequest(request).encode());
    match raw.hear() {
        Some(ServerMessage::ResumeChallenge(challenge)) => Some(challenge),
        None => None,
        _ => panic!("no challenge"),
    }
}

/// The code that answers an attempt to resume, whose connection is then closed; `None` if it was accepted.
fn refusal(server: &Server, name: &Username, received: u64, token: &Key) -> Option<String> {
    let mut raw = server.raw();
    let challenge = challenge(&mut raw, name).expect("a challenge for every name");
    let proof = auth::resume(name, &challenge, raw.channel.exporter(), token, received);
    answer(raw, proof)
}

fn answer(mut raw: Raw, proof: Resume) -> Option<String> {
    raw.say(&ClientMessage::Resume(proof));
    match raw.hear() {
        Some(ServerMessage::Resumed(_)) => None,
        Some(ServerMessage::Error(failure)) => {
            assert!(raw.is_closed());
            Some(failure.code)
        }
        _ => panic!("no answer"),
    }
}

const NO_SESSION: &str = "no_session";

/// An envelope that only the server accepts: private for one target, a broadcast for several.
fn letter(from: &Person, targets: &[&str], number: u64, size: usize) -> ClientMessage {
    let mut letter = support::letter(from, targets, number, size);
    if let [one] = targets {
        let header = &mut letter.envelope.header;
        (header.scope, header.recipient) = (Scope::Private, Some(name(one)));
    }
    ClientMessage::EncryptedSend(Box::new(letter))
}

const TRANSFER: [u8; 16] = [9; 16];

fn packet(peer: &str, number: u64, size: usize) -> Vec<u8> {
    let payload = [&number.to_be_bytes()[..], &vec![0; size]].concat();
    let address = Packet::address(&name(peer), &TRANSFER);
    [&frame::packet_head(&address, &payload), &payload[..]].concat()
}

fn grant(peer: &str, count: u32) -> ClientMessage {
    ClientMessage::Grant(Grant { peer: name(peer), transfer: Fixed(TRANSFER), count })
}

/// Counts the envelopes and packets that bob receives; each kind must arrive in order.
struct Tally {
    letters: u64,
    packets: u64,
}

impl Tally {
    fn take(&mut self, heard: Heard) {
        match heard {
            Heard::Message(ServerMessage::EncryptedMessage(message)) => {
                self.letters += 1;
                assert_eq!(message.envelope.header.sequence, self.letters);
            }
            Heard::Packet(_, _, payload) => {
                self.packets += 1;
                assert_eq!(payload[..8], self.packets.to_be_bytes());
            }
            Heard::Message(ServerMessage::Refused(_)) => panic!("refused"),
            Heard::Message(_) => {}
        }
    }
}

/// PROTOCOL#frames, PROTOCOL#sent-again.
#[test]
fn two_hundred_cuts_lose_repeat_and_reorder_nothing() {
    let dice = Dice::named("CUTS_SEED");
    let server = Server::with(&["--rate", "100000"]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let mut tally = Tally { letters: 0, packets: 0 };
    let (mut letters, mut packets) = (0, 0);
    for round in 0..200 {
        // Either client loses its connection at any byte of either direction, sometimes also while it resumes.
        let (way, bytes) = ([Way::Up, Way::Down][dice.below(2) as usize], dice.below(6000));
        let victim = if dice.below(2) == 0 { &mut alice } else { &mut bob };
        if dice.below(3) == 0 {
            victim.hang_up();
            let early = dice.below(1500);
            let _ = if way == Way::Up {
                victim.attempt(early, u64::MAX)
            } else {
                victim.attempt(u64::MAX, early)
            };
        } else {
            victim.gate.cut_after(way, bytes);
        }
        let count = 1 + dice.below(3);
        bob.say(&grant("alice", count as u32));
        bob.settle().into_iter().for_each(|heard| tally.take(heard));
        alice.hear_message(|message| matches!(message, ServerMessage::Grant(_)));
        for _ in 0..count {
            letters += 1;
            packets += 1;
            let targets: &[&str] = if dice.below(2) == 0 { &["bob"] } else { &["bob", "alice"] };
            let size = dice.below(3000) as usize;
            let letter = letter(&alice.person, targets, letters, size);
            alice.say(&letter);
            let packet = packet("bob", packets, dice.below(5000) as usize);
            alice.frame(packet);
        }
        for id in letters - count + 1..=letters {
            let sent = alice.sent();
            assert_eq!((sent.id, sent.delivered.contains(&bob.name())), (id, true), "round {round}");
        }
        alice.settle();
        while (tally.letters, tally.packets) != (letters, packets) {
            tally.take(bob.hear());
        }
        bob.settle().into_iter().for_each(|heard| tally.take(heard));
        assert_eq!((tally.letters, tally.packets), (letters, packets), "round {round}");
    }
    let resumed = alice.resumed + bob.resumed;
    println!("{resumed} resumptions, {letters} envelopes, {packets} packets");
    assert!(resumed >= 100, "{resumed}");
    let log = server.log();
    assert!(!log.contains("event=logout"), "{log}");
}

/// PROTOCOL#frames, PROTOCOL#sent-again.
#[test]
fn line_or_packet_cut_at_any_byte_is_received_once() {
    let server = Server::with(&["--no-tls", "--rate", "100000"]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let mut tally = Tally { letters: 0, packets: 0 };
    let length = letter(&alice.person, &["bob"], 1, 10).encode().len() as u64;
    let both = 2 * length + packet("bob", 1, 300).len() as u64 + 2;
    let mut number = 0;
    for way in [Way::Up, Way::Down] {
        for at in (0..both).step_by(47).chain(length - 2..length + 8) {
            bob.say(&grant("alice", 1));
            bob.settle().into_iter().for_each(|heard| tally.take(heard));
            alice.hear_message(|message| matches!(message, ServerMessage::Grant(_)));
            // Cut what alice sends, or what bob receives.
            [&alice.gate, &bob.gate][way as usize].cut_after(way, at);
            for part in 0..2 {
                let letter = letter(&alice.person, &["bob"], 2 * number + part + 1, 10);
                alice.say(&letter);
                if part == 0 {
                    alice.frame(packet("bob", number + 1, 300));
                }
            }
            number += 1;
            alice.settle();
            while (tally.letters, tally.packets) != (2 * number, number) {
                tally.take(bob.hear());
            }
            [&alice.gate, &bob.gate].iter().for_each(|gate| gate.heal());
        }
    }
    assert!(alice.resumed > 50 && bob.resumed > 50, "{} {}", alice.resumed, bob.resumed);
}

/// PROTOCOL#taken-over.
#[test]
fn session_resumes_while_its_former_connection_is_open() {
    let server = Server::with(&["--rate", "4"]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let (mut sent, mut next) = (0, 0);
    for busy in [false, true] {
        // Keep the server busy with many seconds' worth of requests.
        for _ in 0..if busy { 40 } else { 3 } {
            sent += 1;
            let letter = letter(&alice.person, &["bob"], sent, 10);
            alice.say(&letter);
        }
        while next < if busy { 20 } else { 3 } {
            next += 1;
            assert_eq!(bob.letter(), next);
        }
        let (raw, gate) = connect(&server);
        let (mut former, _held) =
            (std::mem::replace(&mut alice.raw, raw), std::mem::replace(&mut alice.gate, gate));
        let started = Instant::now();
        assert!(alice.attempt(u64::MAX, u64::MAX));
        assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
        while former.next().is_some() {}
    }
    while next < sent {
        next += 1;
        assert_eq!(bob.letter(), next);
    }
    bob.settle();
    assert!(!server.log().contains("event=logout"));
}

/// PROTOCOL#kept, PROTOCOL#taken-over.
#[test]
fn unread_frames_arrive_complete_on_the_next_connection() {
    let server = Server::with(&["--rate", "100000", "--outbox", "16384"]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    bob.ack();
    bob.settle();
    let mut taken = Vec::new();
    for number in 1.. {
        let letter = letter(&alice.person, &["bob"], number, 32 * 1024);
        alice.say(&letter);
        match alice.sent().busy.is_empty() {
            true => taken.push(number),
            false => break,
        }
        assert!(number < 1000);
    }
    // A writer waits on the former connection, and must not send another frame.
    bob.resume();
    for number in taken {
        assert_eq!(bob.letter(), number);
    }
    bob.settle();
    assert_eq!(bob.resumed, 1, "the end of the former connection does not end this one");
    let letter = letter(&alice.person, &["bob"], 1, 10);
    alice.say(&letter);
    assert!(alice.sent().busy.is_empty());
}

/// PROTOCOL#resume-proof, PROTOCOL#resume-rules, PROTOCOL#no-session.
#[test]
fn resume_needs_the_session_s_token_channel_and_valid_count() {
    let server = Server::start();
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    alice.settle();
    bob.ack();
    bob.settle();
    let no = Some(NO_SESSION.to_string());
    let (name, received) = (bob.name(), bob.received);
    assert_eq!(refusal(&server, &name, received, &Key::random()), no, "a wrong token");
    assert_eq!(refusal(&server, &name, received, &alice.token), no, "another's token");
    assert_eq!(refusal(&server, &self::name("Bob"), received, &bob.token), no, "another name");
    assert_eq!(refusal(&server, &self::name("nobody"), 0, &Key::random()), no, "nobody's");
    assert_eq!(refusal(&server, &name, received + 1, &bob.token), no, "more than was sent");
    assert_eq!(refusal(&server, &name, u64::MAX, &bob.token), no, "far more than was sent");
    assert_eq!(refusal(&server, &name, 0, &bob.token), no, "what was acknowledged already");
    // A proof for one challenge and channel, sent on another.
    let (mut one, mut other) = (server.raw(), server.raw());
    let first = challenge(&mut one, &name).expect("a challenge");
    let second = challenge(&mut other, &name).expect("a challenge");
    let proof =
        |raw: &Raw, challenge| auth::resume(&name, challenge, raw.channel.exporter(), &bob.token, received);
    let (replayed, relayed) = (proof(&one, &first), proof(&one, &second));
    assert_eq!(answer(other, relayed), no, "another channel");
    let mut other = server.raw();
    challenge(&mut other, &name).expect("a challenge");
    assert_eq!(answer(other, replayed), no, "another challenge");
    // A count that the proof does not cover, and that is possible: bob has not acknowledged this letter.
    let mut unproven = proof(&one, &first);
    alice.say(&letter(&alice.person, &["bob"], 1, 10));
    assert_eq!(bob.letter(), 1);
    unproven.received = bob.received;
    assert_eq!(answer(one, unproven), no, "another count");
    // Out of order, and after another message.
    let mut raw = server.raw();
    raw.say(&ClientMessage::Resume(Resume { received: 0, proof: Fixed([0; 32]) }));
    assert_eq!(raw.error(), "no_challenge");
    let mut raw = server.raw();
    challenge(&mut raw, &name).expect("a challenge");
    raw.say(&ClientMessage::KeysRequest(KeysRequest { names: vec![name.clone()] }));
    assert_eq!(raw.error(), "not_logged_in");
    // Neither user noticed any of this.
    alice.say(&letter(&alice.person, &["bob"], 2, 10));
    assert_eq!(bob.letter(), 2);
    bob.settle();
    assert_eq!((alice.resumed, bob.resumed), (0, 0));
    assert_eq!(refusal(&server, &name, bob.received, &bob.token), None);
    // A token cannot be guessed, so failed attempts lock nobody.
    assert!(!server.log().contains("locked"));
}

/// PROTOCOL#latest-token, PROTOCOL#session, PROTOCOL#renew.
#[test]
fn renewal_brings_a_new_token_and_the_former_works_once() {
    let server = Server::start();
    let mut alice = Peer::new(&server, "alice");
    let first = alice.token.duplicate();
    let renew = |alice: &mut Peer<'_>| {
        let key = SessionKey::generate();
        let certificate = alice.person.identity.certify(&alice.person.name, &key, clock::now_ms());
        alice.say(&ClientMessage::Renew(Box::new(certificate)));
        match alice.hear_message(|message| matches!(message, ServerMessage::Session(_))) {
            ServerMessage::Session(session) => lasting_a_day(session),
            _ => unreachable!(),
        }
    };
    let second = renew(&mut alice);
    alice.resume();
    alice.token = second;
    alice.resume();
    alice.token = renew(&mut alice);
    alice.settle();
    let refused = refusal(&server, &alice.name(), alice.received, &first);
    assert_eq!(refused, Some(NO_SESSION.into()), "the one before the former");
    alice.resume();
    alice.settle();
}

/// PROTOCOL#ends-at-once, PROTOCOL#elsewhere, PROTOCOL#no-session, PROTOCOL#logout.
#[test]
fn ended_session_is_not_resumed() {
    let server = Server::with(&["--grace", "1"]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let mut carol = Peer::new(&server, "carol");
    let no = Some(NO_SESSION.to_string());
    // Ended by a logout.
    alice.say(&ClientMessage::Logout);
    while alice.next().is_some() {}
    assert_eq!(refusal(&server, &alice.name(), alice.received, &alice.token), no);
    // Ended by another login, whose session it cannot disturb. The code says so; otherwise it would log in and replace
    // that session.
    bob.hang_up();
    let mut second = server.raw();
    let new = lasting_a_day(second.logs_in(&bob.person));
    let elsewhere = Some("signed_in_elsewhere".to_string());
    assert_eq!(refusal(&server, &bob.name(), bob.received, &bob.token), elsewhere);
    assert!(second.is_usable());
    assert_eq!(refusal(&server, &bob.name(), bob.received + 1000, &new), no);
    // Ended by the grace period.
    carol.hang_up();
    server.logs("event=logout user=carol ");
    assert_eq!(refusal(&server, &carol.name(), carol.received, &carol.token), no);
    assert!(second.is_usable());
    let log = server.log();
    let ended = log.lines().filter(|line| line.contains("event=logout")).count();
    assert_eq!(ended, 3, "{log}");
}

/// The ids of the `lost` that `peer` gets for `name` before it gets that `name` has left.
fn lost_before_leaving(peer: &mut Peer<'_>, name: &Username) -> Vec<u64> {
    let mut ids = Vec::new();
    loop {
        match peer.hear_message(|m| matches!(m, ServerMessage::Lost(_) | ServerMessage::Presence(_))) {
            ServerMessage::Lost(lost) => {
                assert_eq!(lost.name, *name);
                ids.push(lost.id);
            }
            ServerMessage::Presence(presence) if presence.left.contains(name) => return ids,
            _ => {}
        }
    }
}

/// PROTOCOL#lost.
#[test]
fn unacknowledged_messages_are_lost_however_a_session_ends() {
    let server = Server::with(&["--grace", "1"]);
    let mut alice = Peer::new(&server, "alice");
    let carol = Peer::new(&server, "carol");
    type End = (&'static str, fn(&Server, &mut Peer<'_>), &'static [u64]);
    let ends: [End; 5] = [
        ("grace", |_, bob| bob.hang_up(), &[3, 4, 6]),
        ("login", |server, bob| _ = server.raw().logs_in(&bob.person), &[3, 4, 6]),
        ("logout", |_, bob| bob.say(&ClientMessage::Logout), &[3, 4, 6]),
        ("false_ack", |_, bob| bob.say(&ClientMessage::Ack(Received { received: 1 << 40 })), &[3, 4, 6]),
        (
            "farewell",
            |_, bob| {
                (3..=8).for_each(|_| _ = bob.letter());
                bob.ack();
                bob.say(&ClientMessage::Logout);
            },
            &[],
        ),
    ];
    for (base, (how, end, expected)) in (0..).step_by(8).zip(ends) {
        let mut bob = Peer::new(&server, how);
        bob.acks = false;
        let name = bob.name();
        alice.meets(&name);
        let mut kinds: Vec<_> = (1..=8).map(|n| letter(&alice.person, &[how], base + n, 100)).collect();
        kinds[4] = letter(&alice.person, &[how, "carol"], base + 5, 100);
        for (at, kind, scope) in [
            (5, Kind::Message, Scope::Room),
            (6, Kind::FileOffer, Scope::Private),
            (7, Kind::RoomLeft, Scope::Room),
        ] {
            let ClientMessage::EncryptedSend(send) = &mut kinds[at] else { unreachable!() };
            (send.envelope.header.kind, send.envelope.header.scope) = (kind, scope);
        }
        for message in &kinds[..2] {
            alice.say(message);
        }
        while bob.letter() != base + 2 {}
        bob.ack();
        bob.settle();
        for message in &kinds[2..] {
            alice.say(message);
        }
        for n in 1..=8 {
            let sent = alice.sent();
            assert!(sent.id == base + n && sent.delivered.contains(&name), "{how}");
        }
        end(&server, &mut bob);
        let lost: Vec<_> = lost_before_leaving(&mut alice, &name).iter().map(|id| id - base).collect();
        assert_eq!(lost, expected, "{how}");
        let late = |heard: &Heard| matches!(heard, Heard::Message(ServerMessage::Lost(_)));
        assert!(!alice.settle().iter().any(late), "{how}");
    }
    drop(carol);
}

/// PROTOCOL#lost.
#[test]
fn lost_is_only_for_the_session_that_sent_the_message() {
    let server = Server::with(&["--grace", "1"]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let name = bob.name();
    alice.meets(&name);
    alice.say(&letter(&alice.person, &["bob"], 1, 100));
    assert_eq!(alice.sent().delivered.len(), 1);
    // A resumption is the same session, a login is not.
    alice.hang_up();
    alice.resume();
    alice.say(&letter(&alice.person, &["bob"], 2, 100));
    assert_eq!(alice.sent().delivered.len(), 1);
    let mut again = server.raw();
    again.logs_in(&alice.person);
    // Wait for the list first: a client is notified of a departure only if it has seen the user.
    while !matches!(again.hear(), Some(ServerMessage::Presence(list)) if list.joined.contains(&name)) {}
    again.say(&letter(&alice.person, &["bob"], 1, 100));
    assert!(matches!(again.answer(), Some(ServerMessage::Sent(_))));
    bob.say(&ClientMessage::Logout);
    let mut ids = Vec::new();
    loop {
        match again.hear().expect("it is connected") {
            ServerMessage::Lost(lost) => ids.push(lost.id),
            ServerMessage::Presence(presence) if presence.left.contains(&name) => break,
            _ => {}
        }
    }
    assert_eq!(ids, [1]);
}

/// PROTOCOL#outlives, PROTOCOL#presence.
#[test]
fn disconnected_user_stays_online_until_the_session_ends() {
    let server = Server::with(&["--grace", "2"]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let shown = |alice: &mut Peer<'_>| {
        alice.say(&ClientMessage::KeysRequest(KeysRequest { names: vec![name("bob")] }));
        match alice.hear_message(|message| matches!(message, ServerMessage::Keys(_))) {
            ServerMessage::Keys(keys) => keys.keys[0].session_key.is_some(),
            _ => unreachable!(),
        }
    };
    alice.meets(&bob.name());
    bob.hang_up();
    assert!(shown(&mut alice));
    let word = letter(&alice.person, &["bob"], 1, 10);
    alice.say(&word);
    assert_eq!(alice.sent().delivered.len(), 1);
    assert_eq!(bob.letter(), 1);
    assert_eq!(bob.resumed, 1);
    // A third user joins, so that both get a line that would report bob, too.
    let carol = Peer::new(&server, "carol");
    for peer in [&mut alice, &mut bob] {
        let news = peer.hear_message(|message| matches!(message, ServerMessage::Presence(_)));
        let ServerMessage::Presence(news) = news else { unreachable!() };
        assert!(!news.full && news.left.is_empty() && news.joined == [carol.name()]);
    }
    bob.hang_up();
    let gone = Instant::now();
    let news = alice.hear_message(|message| matches!(message, ServerMessage::Presence(_)));
    let ServerMessage::Presence(news) = news else { unreachable!() };
    assert!(news.joined.is_empty() && news.left == [bob.name()]);
    assert!(gone.elapsed() >= Duration::from_millis(1900), "{:?}", gone.elapsed());
    assert!(!shown(&mut alice));
    let word = letter(&alice.person, &["bob"], 2, 10);
    alice.say(&word);
    assert_eq!(alice.sent().offline.len(), 1);
}

/// PROTOCOL#outlives, PROTOCOL#kept-limit.
#[test]
fn frames_for_a_disconnected_user_wait_within_limits() {
    let server = Server::with(&["--outbox", "384", "--rate", "100000"]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let flood = |alice: &mut Peer<'_>| {
        (1..)
            .find(|number| {
                let letter = letter(&alice.person, &["bob"], *number, 8 * 1024);
                alice.say(&letter);
                !alice.sent().busy.is_empty()
            })
            .expect("a bound")
    };
    for _ in 0..2 {
        bob.ack();
        bob.settle();
        bob.hang_up();
        // Alice's half of 384 KiB has room for this number of envelopes of 12 KiB.
        let refused = flood(&mut alice);
        assert!((14..=20).contains(&refused), "{refused}");
        for number in 1..refused {
            assert_eq!(bob.letter(), number);
        }
        bob.settle();
    }
    // The same holds for a connected client that acknowledges once and never again.
    bob.ack();
    bob.settle();
    bob.acks = false;
    let refused = flood(&mut alice);
    assert!((14..=20).contains(&refused), "{refused}");
    for number in 1..refused {
        assert_eq!(bob.letter(), number);
    }
    let word = letter(&alice.person, &["bob"], 1, 10);
    alice.say(&word);
    assert_eq!(alice.sent().busy.len(), 1);
    bob.ack();
    bob.settle();
    alice.say(&word);
    assert_eq!(alice.sent().busy.len(), 0);
}

/// PROTOCOL#kept-limit.
#[test]
fn client_that_never_acknowledges_is_busy_and_misses_nothing() {
    let server = Server::with(&["--outbox", "384", "--rate", "100000"]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    bob.acks = false;
    let early = bob.received;
    let mut taken = 0;
    loop {
        let letter = letter(&alice.person, &["bob"], taken + 1, 8 * 1024);
        alice.say(&letter);
        if !alice.sent().busy.is_empty() {
            break;
        }
        taken += 1;
        assert_eq!(bob.letter(), taken);
    }
    assert!((13..20).contains(&taken), "{taken}");
    bob.settle();
    assert_eq!(bob.resumed, 0, "the connection was not closed");
    // Everything is kept.
    bob.received = early;
    bob.resume();
    for number in 1..=taken {
        assert_eq!(bob.letter(), number);
    }
    bob.ack();
    bob.settle();
    let letter = letter(&alice.person, &["bob"], 1, 10);
    alice.say(&letter);
    assert!(alice.sent().busy.is_empty());
}

/// Checks that the server ends the connection with this error, and the session with it.
fn has_ended(mut peer: Peer<'_>, code: &str) {
    assert_eq!(peer.raw.error(), code);
    assert!(peer.raw.is_closed());
    let refused = refusal(peer.server, &peer.name(), peer.received, &peer.token);
    assert_eq!(refused, Some(NO_SESSION.into()));
    peer.server.logs(&format!("event=logout user={} ", peer.name()));
}

/// PROTOCOL#ack-true, PROTOCOL#ends-at-once, PROTOCOL#ack.
#[test]
fn ack_that_exceeds_sent_frames_or_falls_ends_the_session() {
    let server = Server::start();
    for (name, wrong) in [("alice", 1i64), ("bob", -1)] {
        let mut peer = Peer::new(&server, name);
        peer.settle();
        peer.ack();
        let received = peer.received.wrapping_add_signed(wrong);
        peer.raw.say(&ClientMessage::Ack(Received { received }));
        has_ended(peer, "malformed");
    }
}

/// PROTOCOL#ends-at-once.
#[test]
fn overlong_line_or_packet_ends_the_session_at_once() {
    let server = Server::start();
    for (name, long) in [("alice", vec![b' '; MAX_LINE + 1]), ("bob", vec![0, 0xff, 0xff, 0xff, 0xff])] {
        let mut peer = Peer::new(&server, name);
        peer.settle();
        peer.raw.bytes(&long);
        has_ended(peer, "line_too_long");
    }
}

/// PROTOCOL#ack-when, PROTOCOL#frames.
#[test]
fn server_acks_32_frames_or_128_kib_and_before_a_pong() {
    let server = Server::with(&["--rate", "100000"]);
    let mut raw = Peer::new(&server, "alice").raw;
    // A line that is not a message is a frame, too, and is answered.
    let mut answers_before_ack = |lines: &[u8], acknowledged: u64| {
        raw.bytes(lines);
        let mut answers = 0;
        loop {
            match raw.hear() {
                Some(ServerMessage::Error(_)) => answers += 1,
                Some(ServerMessage::Ack(ack)) => {
                    assert_eq!(ack.received, acknowledged);
                    return answers;
                }
                Some(ServerMessage::Presence(_)) => {}
                _ => panic!("something else"),
            }
        }
    };
    let long = [&vec![b'x'; 70_000][..], b"\n"].concat();
    assert_eq!(answers_before_ack(&b"x\n".repeat(32), 32), 32);
    assert_eq!(answers_before_ack(&long.repeat(2), 34), 2);
    let ping = ClientMessage::Ping.encode();
    assert_eq!(answers_before_ack(&[b"x\n", &ping[..]].concat(), 35), 1);
    assert!(matches!(raw.hear(), Some(ServerMessage::Pong)));
    raw.bytes(&ping);
    assert!(matches!(raw.hear(), Some(ServerMessage::Pong)), "nothing new");
}

/// The server's descriptors.
fn descriptors(server: &Server) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", server.child.id())).map_or(0, Iterator::count)
}

/// PROTOCOL#slow-client.
#[test]
fn client_that_reads_nothing_for_30_s_is_closed_and_resumes() {
    let server = Server::with(&["--rate", "100000", "--outbox", "2048"]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    bob.ack();
    bob.settle();
    let (before, begun) = (descriptors(&server), Instant::now());
    let mut taken = 0;
    // More than the kernel buffers: a writer thread of the server waits.
    loop {
        let letter = letter(&alice.person, &["bob"], taken + 1, 32 * 1024);
        alice.say(&letter);
        if !alice.sent().busy.is_empty() {
            break;
        }
        taken += 1;
    }
    until("the connection is closed", || descriptors(&server) < before);
    assert!(begun.elapsed().as_secs() >= 30, "{:?}", begun.elapsed());
    for number in 1..=taken {
        assert_eq!(bob.letter(), number);
    }
    assert!(bob.resumed == 1 && !server.log().contains("event=logout"), "{}", server.log());
}

/// PROTOCOL#life.
#[test]
fn silent_client_is_pinged_after_30_s_and_closed_after_90_s() {
    let server = Server::start();
    // Measured from before both logins: on a busy machine, they take seconds.
    let silent = Instant::now();
    let (mut raw, mut dead) = (Peer::new(&server, "alice").raw, Peer::new(&server, "bob").raw);
    loop {
        match raw.hear() {
            Some(ServerMessage::Ping) => break,
            Some(ServerMessage::Presence(_)) => {}
            _ => panic!("not asked"),
        }
    }
    assert!((29..50).contains(&silent.elapsed().as_secs()), "{:?}", silent.elapsed());
    raw.say(&ClientMessage::Pong);
    assert!(raw.is_usable());
    // The other client does not answer. It is closed after more than the usual deadline of these tests.
    while !matches!(dead.hear(), Some(ServerMessage::Ping)) {}
    dead.socket.set_read_timeout(Some(2 * DEADLINE)).expect("a socket");
    assert!((&*dead.socket).read_to_end(&mut Vec::new()).is_ok());
    assert!(silent.elapsed().as_secs() >= 89, "{:?}", silent.elapsed());
}

/// PROTOCOL#kept-limit, PROTOCOL#granted-limit.
#[test]
fn unacknowledged_packets_count_against_the_grant_limit() {
    let server = Server::with(&["--rate", "100000"]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    bob.ack();
    bob.acks = false;
    let refused = |bob: &mut Peer<'_>, count| {
        bob.say(&grant("alice", count));
        bob.settle().iter().any(|heard| matches!(heard, Heard::Message(ServerMessage::Refused(_))))
    };
    assert!(!refused(&mut bob, 128));
    (1..=128).for_each(|number| alice.frame(packet("bob", number, 10)));
    let mut tally = Tally { letters: 0, packets: 0 };
    while tally.packets < 128 {
        tally.take(bob.hear());
    }
    // All except the 32 that need no acknowledgement yet.
    assert!(refused(&mut bob, 33) && !refused(&mut bob, 32));
    bob.ack();
    assert!(refused(&mut bob, 97) && !refused(&mut bob, 96));
}

/// PROTOCOL#taken-over.
#[test]
fn concurrent_resumptions_leave_one_and_repeat_no_frame() {
    let server = Server::with(&["--rate", "100000"]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let mut number = 0;
    for _ in 0..10 {
        let raws: Vec<Raw> = (0..6).map(|_| server.raw()).collect();
        let (kept, next) = (Mutex::new(Vec::new()), alice.before + alice.kept.len() as u64);
        let (person, token, received) = (&alice.person, &alice.token, alice.received);
        thread::scope(|scope| {
            for mut raw in raws {
                let kept = &kept;
                scope.spawn(move || {
                    let challenge = challenge(&mut raw, &person.name).expect("a challenge");
                    let exporter = raw.channel.exporter().to_vec();
                    raw.say(&ClientMessage::Resume(auth::resume(
                        &person.name,
                        &challenge,
                        &exporter,
                        token,
                        received,
                    )));
                    // An overtaken attempt gets no answer or `timed_out`.
                    match raw.hear() {
                        Some(ServerMessage::Resumed(position)) => {
                            if position.received == next {
                                raw.bytes(&letter(person, &["bob"], number + 1, 10).encode());
                            }
                            kept.lock().expect("whole").push(raw);
                        }
                        None => {}
                        Some(ServerMessage::Error(failure)) => assert_eq!(failure.code, "timed_out"),
                        Some(_) => panic!("no answer"),
                    }
                });
            }
        });
        // Several attempts have sent the same next frame. The server has received it once or not at all.
        number += 1;
        let word = letter(&alice.person, &["bob"], number, 10).encode();
        alice.kept.push_back(word);
        alice.resume();
        alice.settle();
        assert_eq!(bob.letter(), number);
        bob.settle();
    }
    let letter = letter(&alice.person, &["bob"], number + 1, 10);
    alice.say(&letter);
    assert_eq!(bob.letter(), number + 1);
}
