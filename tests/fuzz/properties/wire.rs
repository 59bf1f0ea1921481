//! Frames, messages, packets.

use super::{Choices, Property, no_examples};
use secure_messenger::crypto::public::Fingerprint;
use secure_messenger::crypto::secret::Key;
use secure_messenger::encoding::{Bytes, Fixed};
use secure_messenger::protocol::{
    Body, ClientMessage, EncryptedMessage, EncryptedSend, Envelope, Failure, Grant, Header, KEY_BEGINS,
    KEY_ENDS, Kept, Keys, KeysRequest, Kind, Lost, Mail, MailDone, MailRequest, Packet, Presence, Received,
    Register, Resume, Routing, Scope, Sent, ServerMessage, Session, UserKeys, WrappedKey, shared_part,
};
use secure_messenger::wire::frame::{Frame, LineTooLong, Lines, packet_head};

pub const FRAMES: Property = Property { name: "frames", holds: frames, examples: no_examples };
pub const MESSAGES: Property = Property { name: "messages", holds: messages, examples: some_messages };
pub const PACKETS: Property = Property { name: "packets", holds: packets, examples: some_packets };

/// An owned line or packet.
#[derive(Debug, PartialEq)]
enum Owned {
    Line(Vec<u8>),
    Packet(Vec<u8>),
}

/// A stream gives the same frames and the same result wherever it is cut; the frames together are the stream; the
/// buffer never exceeds the limit.
/// PROTOCOL#line, PROTOCOL#line-length, PROTOCOL#packet.
fn frames(data: &[u8]) {
    let mut choices = Choices(data);
    let limits = [choices.byte(), choices.byte(), choices.byte()].map(usize::from);
    let lines_first = choices.below(4);
    let mut cuts = Choices(choices.bytes(8));
    let stream = match choices.below(2) {
        0 => choices.0.to_vec(),
        _ => near_the_limits(&mut choices, limits),
    };
    let stream = &stream[..];
    let whole = read(&[stream], limits, lines_first);
    let (mut pieces, mut rest) = (Vec::new(), stream);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at((1 + cuts.below(256)).min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    assert_eq!(read(&pieces, limits, lines_first), whole);
    let (frames, left) = whole;
    let Ok(left) = left else { return };
    let again: Vec<u8> = frames
        .iter()
        .flat_map(|frame| match frame {
            Owned::Line(line) => [line, &b"\n"[..]].concat(),
            Owned::Packet(body) => [&packet_head(&[], body), &body[..]].concat(),
        })
        .collect();
    assert_eq!([again, left].concat(), stream);
}

/// Lines and packets with lengths around the limit.
fn near_the_limits(choices: &mut Choices<'_>, limits: [usize; 3]) -> Vec<u8> {
    let mut stream = Vec::new();
    while !choices.is_empty() {
        let length = (limits[choices.below(3)] + choices.below(3)).saturating_sub(choices.below(3));
        let body = vec![choices.byte(); length];
        match choices.below(3) {
            0 => stream.extend([&body[..], b"\n"].concat()),
            1 => stream.extend([packet_head(&[], &body), body].concat()),
            _ => stream.extend(choices.bytes(4)),
        }
    }
    stream
}

/// Reads all frames; the first ones are always lines, as before a login. Also returns the remaining bytes, or the error
/// for an overlong frame.
fn read(
    pieces: &[&[u8]],
    [limit_before, limit, packet_limit]: [usize; 3],
    lines_first: usize,
) -> (Vec<Owned>, Result<Vec<u8>, LineTooLong>) {
    let mut lines = Lines::new(if lines_first > 0 { limit_before } else { limit });
    let mut frames = Vec::new();
    for piece in pieces {
        lines.buffer().extend_from_slice(piece);
        loop {
            let next = if frames.len() < lines_first {
                lines.next_line().map(|line| line.map(Frame::Line))
            } else {
                lines.log_in(limit);
                lines.next_frame(packet_limit)
            };
            let frame = match next {
                Ok(Some(Frame::Line(line))) => Owned::Line(line.to_vec()),
                Ok(Some(Frame::Packet(body))) => Owned::Packet(body.to_vec()),
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            };
            match &frame {
                Owned::Line(line) if frames.len() < lines_first => assert!(line.len() <= limit_before),
                Owned::Line(line) => assert!(line.len() <= limit && !line.contains(&b'\n')),
                Owned::Packet(body) => assert!(body.len() <= packet_limit),
            }
            frames.push(frame);
        }
        assert!(lines.buffer().len() <= limit_before.max(limit).max(5 + packet_limit), "bounded");
    }
    let left = lines.buffer().clone();
    (frames, Ok(left))
}

/// A decoded message of either side is encoded as one line with the same meaning, and of limited length.
/// PROTOCOL#json, PROTOCOL#not-a-message, PROTOCOL#base64, PROTOCOL#commas.
fn messages(line: &[u8]) {
    if let Ok(message) = ClientMessage::decode(line) {
        let again = limited(line, message.encode());
        let second = ClientMessage::decode(&again[..again.len() - 1]).expect("what was encoded decodes");
        assert_eq!(text(&second.encode()), text(&again));
        if let ClientMessage::EncryptedSend(send) = message {
            delivered(line, send.envelope);
        }
    }
    if let Ok(message) = ServerMessage::decode(line) {
        let again = limited(line, message.encode());
        let second = ServerMessage::decode(&again[..again.len() - 1]).expect("what was encoded decodes");
        assert_eq!(text(&second.encode()), text(&again));
    }
}

/// Checks that the encoding of a decoded line is one line of limited length: escapes and absent members make it longer.
fn limited(line: &[u8], encoded: Vec<u8>) -> Vec<u8> {
    assert_eq!(encoded.iter().position(|byte| *byte == b'\n'), Some(encoded.len() - 1), "one line");
    assert!(encoded.len() <= 4 * line.len() + 128, "{} bytes of {}", encoded.len(), line.len());
    encoded
}

/// A client's envelope arrives unchanged through the server.
fn delivered(line: &[u8], envelope: Envelope) {
    let key = WrappedKey::new(&[7; 264]);
    let passed_on = [&shared_part(&envelope), KEY_BEGINS, key.digits(), KEY_ENDS].concat();
    assert!(passed_on.len() <= line.len() + key.digits().len() + 128);
    match ServerMessage::decode(&passed_on[..passed_on.len() - 1]) {
        Ok(ServerMessage::EncryptedMessage(message)) => {
            assert!(message.envelope == envelope && message.key == key);
        }
        _ => panic!("not an encrypted_message"),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("JSON is text")
}

/// A packet's body is its address and its payload, and no other body has an address.
/// PROTOCOL#packet, PROTOCOL#bad-packet.
fn packets(body: &[u8]) {
    if let Ok(Packet { peer, transfer, payload }) = Packet::decode(body) {
        assert_eq!([&Packet::address(&peer, &transfer), payload].concat(), body);
    }
}

fn some_packets() -> Vec<Vec<u8>> {
    let names = ["a", "alice-in_wonderland", "an-account-with-the-longest-name"];
    names
        .map(|name| [&Packet::address(&name.parse().expect("a name"), &[1; 16]), &b"payload"[..]].concat())
        .to_vec()
}

fn some_messages() -> Vec<Vec<u8>> {
    let alice = || "alice".parse().expect("name");
    let header = Header {
        kind: Kind::Message,
        scope: Scope::Private,
        recipient: Some(alice()),
        recipient_key: Some(Fingerprint([1; 32])),
        from: alice(),
        identity: Fingerprint([2; 32]),
        session: Fingerprint([3; 32]),
        sequence: 1,
        time: 2,
        again: None,
    };
    let body = Body {
        commitment: Fixed([4; 32]),
        nonce: Fixed([5; 12]),
        ciphertext: Bytes(vec![6; 9]),
        tag: Fixed([7; 16]),
        signature: Fixed([8; 256]),
    };
    let envelope = Envelope { header, body };
    let routing = Routing {
        id: 1,
        targets: vec![alice()],
        keys: [(alice(), WrappedKey::new(&[9; 264]))].into_iter().collect(),
    };
    let person = UserKeys {
        name: alice(),
        identity: Bytes(vec![1]),
        session_key: None,
        mailbox_key: Some(Bytes(vec![2])),
        created: Some(1),
        certificate: None,
    };
    let register = Register {
        version: 1,
        username: alice(),
        salt: Fixed([1; 32]),
        rounds: 600_000,
        password_key: Key::new([2; 32]),
        public_key: Bytes(vec![3; 7]),
    };
    let sent =
        Sent { id: 1, delivered: vec![alice()], busy: vec![alice()], kept: vec![alice()], ..Sent::default() };
    let kept = |number| {
        let message = EncryptedMessage { envelope: envelope.clone(), key: WrappedKey::new(&[9; 264]) };
        Kept { number, message: Box::new(message) }
    };
    let mail = Mail { mail: vec![kept(1), kept(2)], more: true, other: 3, until: 4 };
    let failure = Failure {
        code: "locked".into(),
        message: "\u{1}é\n".into(),
        id: None,
        retry_after: Some(3),
        newest: Some(4),
    };
    let client = [
        ClientMessage::Register(register),
        ClientMessage::Resume(Resume { received: 7, proof: Fixed([1; 32]) }),
        ClientMessage::KeysRequest(KeysRequest { names: vec![alice(), alice()] }),
        ClientMessage::Grant(Grant { peer: alice(), transfer: Fixed([1; 16]), count: 5 }),
        ClientMessage::EncryptedSend(Box::new(EncryptedSend { routing, envelope: envelope.clone() })),
        ClientMessage::MailRequest(MailRequest { keys: vec![Fingerprint([1; 32])], after: 7 }),
        ClientMessage::MailDone(MailDone { numbers: vec![1, 2] }),
        ClientMessage::Logout,
    ];
    let presence = Presence { more: false, full: true, joined: vec![alice()], left: vec![] };
    let server = [
        ServerMessage::Session(Session { token: Key::new([1; 32]), expires: 2, newest: 3 }),
        ServerMessage::Presence(presence),
        ServerMessage::Keys(Keys { keys: vec![person], unknown: vec![alice()] }),
        ServerMessage::EncryptedMessage(Box::new(EncryptedMessage {
            envelope,
            key: WrappedKey::new(&[9; 264]),
        })),
        ServerMessage::Sent(sent),
        ServerMessage::Lost(Lost { id: 1, name: alice() }),
        ServerMessage::Mail(mail),
        ServerMessage::Error(failure),
        ServerMessage::Ack(Received { received: 3 }),
    ];
    let line = |mut encoded: Vec<u8>| {
        encoded.pop();
        encoded
    };
    // Decoding and encoding these messages again changes nothing.
    let client = client.map(|message| line(message.encode()));
    assert!(
        client
            .iter()
            .all(|text| ClientMessage::decode(text).is_ok_and(|again| line(again.encode()) == *text))
    );
    let server = server.map(|message| line(message.encode()));
    assert!(
        server
            .iter()
            .all(|text| ServerMessage::decode(text).is_ok_and(|again| line(again.encode()) == *text))
    );
    [&client[..], &server[..]].concat()
}
