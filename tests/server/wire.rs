//! Attackers on the wire: one alters bytes below TLS, another records them and later gets the disks and passwords of
//! both ends.

use crate::support::{self, Client, Folder, Gate, Heard, PASSWORD, Server, Unit, Way, hex, name, until};
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use rsa::traits::PublicKeyParts;
use rsa::{BoxedUint, PublicKey, pkcs8::DecodePublicKey};
use secure_messenger::crypto::envelope::Sealed;
use secure_messenger::crypto::keys::{IdentityKey, SessionKey};
use secure_messenger::crypto::primitives::sha256;
use secure_messenger::crypto::secret::Password;
use secure_messenger::crypto::{Fields, key_file, label};
use secure_messenger::protocol::{ClientMessage, EncryptedMessage, ServerMessage};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Which byte of a record's ciphertext is altered.
#[derive(Clone, Copy)]
enum Place {
    First,
    Middle,
    /// In the tag.
    Last,
}

/// Alters one bit of the next record of application data in this direction, and then sets the result to true.
fn alter(gate: &Gate, way: Way, place: Place, bit: usize) -> Arc<AtomicBool> {
    const HEAD: usize = 5;
    const APPLICATION_DATA: u8 = 23;
    let altered = Arc::<AtomicBool>::default();
    let is_done = altered.clone();
    gate.hook(way, move |mut record| {
        if record[0] == APPLICATION_DATA && !is_done.load(Ordering::SeqCst) {
            let body = &mut record[HEAD..];
            let last = body.len() - 1;
            let at = match place {
                Place::First => 0,
                Place::Middle => last / 2,
                Place::Last => last,
            };
            body[at] ^= 1 << (bit % 8);
            is_done.store(true, Ordering::SeqCst);
        }
        record
    });
    altered
}

/// PROTOCOL#transport, PROTOCOL#sent-again.
#[test]
fn flipped_bit_below_tls_reconnects_and_delivers_once() {
    let server = Server::start();
    let gate = Gate::of(&server, Unit::Records);
    let mut alice = gate.client(Arc::new(Folder::new()), "alice", &["--register"]).ready();
    let mut bob = server.client("bob").ready();
    alice.expect("* bob is online");
    let mut said = Vec::new();
    for way in [Way::Up, Way::Down] {
        for place in [Place::First, Place::Middle, Place::Last] {
            let text = format!("{} of six", said.len());
            let altered = alter(&gate, way, place, said.len());
            let (from, to) = if way == Way::Up { (&mut alice, &mut bob) } else { (&mut bob, &mut alice) };
            from.say(&format!("/msg {} {text}", to.name));
            said.push(format!("<{} -> {}> {text}", from.name, to.name));
            let line = said.last().expect("just said");
            // Only alice's connection passes the gate, so bob notices nothing.
            alice.expect("! connection lost: ");
            let back = alice.expect("* back online after ");
            assert!(!back.contains("in a new session"), "{back}");
            for one in [&mut alice, &mut bob] {
                if !one.output.seen.contains(line) {
                    one.expect(line);
                }
            }
            assert!(altered.load(Ordering::SeqCst));
        }
    }
    until("each resumption is logged", || server.log().matches("event=resumed user=alice").count() == 6);
    assert!(!server.log().contains("event=logout"), "{}", server.log());
    for one in [alice, bob] {
        let is_alice = one.name == "alice";
        let (status, lines) = one.finish();
        let heard: Vec<_> = lines.iter().filter(|line| line.starts_with('<')).collect();
        assert!(status == 0 && heard.into_iter().eq(&said), "{lines:#?}");
        let problems: Vec<_> = lines.iter().filter(|line| line.starts_with("! ")).collect();
        assert_eq!(problems.len(), if is_alice { 6 } else { 0 }, "{problems:#?}");
        assert!(problems.iter().all(|line| line.contains("connection lost: ")), "{problems:#?}");
    }
}

// ---- recorded traffic

/// All readings of some bytes: themselves, and what they contain in base64 or in hexadecimal.
fn readings(bytes: &[u8]) -> Vec<Vec<u8>> {
    let text: Vec<u8> = bytes.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let mut all = vec![bytes.to_vec()];
    for run in text.split(|byte| !byte.is_ascii_alphanumeric() && !b"+/".contains(byte)) {
        all.extend(BASE64_STANDARD_NO_PAD.decode(&run[..run.len() / 4 * 4]));
    }
    for run in text.split(|byte| !byte.is_ascii_hexdigit()) {
        let digit = |byte: u8| (byte as char).to_digit(16).expect("split so") as u8;
        all.push(run.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect());
    }
    all
}

/// Whether the bytes contain one of the two primes of an RSA-2048 modulus. Every form of the private key has one, and
/// one reveals the whole key.
fn hold_a_prime(bytes: &[u8], modulus: &BoxedUint) -> bool {
    let divides = |window: &[u8]| {
        let prime = BoxedUint::from_be_slice_vartime(window).to_nz();
        let rest = Option::from(prime).map(|prime| modulus.rem_vartime(&prime));
        rest.is_some_and(|rest: BoxedUint| rest.is_zero().into())
    };
    // The first and last bits of a prime of 1,024 bits are set.
    let could = |window: &&[u8]| window[0] >= 0x80 && window[127] & 1 == 1;
    readings(bytes).iter().any(|bytes| bytes.windows(128).filter(could).any(divides))
}

fn modulus(spki: &[u8]) -> BoxedUint {
    PublicKey::from_public_key_der(spki).expect("a key").n().as_ref().clone()
}

/// What a thief of a user's disk and password has.
struct Stolen {
    files: Vec<Vec<u8>>,
    identity: IdentityKey,
    /// The private identity key, used as a session key.
    opener: SessionKey,
}

impl Stolen {
    fn from(person: &Client) -> Stolen {
        let name = name(&person.name);
        let path = person.data(&format!("keys/{name}_private.key"));
        let text = fs::read(path).expect("a key file");
        let identity = key_file::open(&text, &name, &Password::new(PASSWORD.into())).expect("opens");
        let opener = SessionKey::from_pkcs8(&identity.to_pkcs8()).expect("an RSA key");
        let files = support::files(&person.home.0);
        let files = files.iter().map(|path| fs::read(path).expect("readable")).collect();
        Stolen { files, identity, opener }
    }
}

/// PROTOCOL#session-key, PROTOCOL#identity-key, PROTOCOL#wrapped-key, PROTOCOL#chunk-keys.
#[test]
fn recorded_traffic_stays_secret_if_disks_and_passwords_leak() {
    let server = Server::with(&["--no-tls"]);
    let gates = [(); 2].map(|()| Gate::of(&server, Unit::Frames));
    let records = gates.each_ref().map(|gate| [gate.record(Way::Up), gate.record(Way::Down)]);
    let start = |n: usize, name| gates[n].client(Arc::new(Folder::new()), name, &["--register"]).ready();
    let mut people = [start(0, "alice"), start(1, "bob")];
    people[0].meets("bob");
    people[1].meets("alice");
    // Send a message of every kind. It is shown, so the recipient's session key has opened it.
    for (from, to) in [(0, 1), (1, 0)] {
        let (name, other) = (people[from].name.clone(), people[to].name.clone());
        for (command, mark) in [("", ""), ("/msg", " -> "), ("/room", " -> ")] {
            let text = format!("a word of {name}'s behind {command:?}");
            let to_one = format!("<{name} -> {other}> {text}");
            match command {
                "" => people[from].say(&text),
                "/msg" => people[from].say(&format!("/msg {other} {text}")),
                _ => {
                    people[from].say(&format!("/room {other}"));
                    people[from].expect("* you are in a private room");
                    people[from].say(&text);
                }
            }
            people[to].expect(if mark.is_empty() { &text } else { &to_one });
        }
    }
    let file = people[0].home.path("plan.txt");
    fs::write(&file, vec![b'p'; 70_000]).expect("written");
    people[0].say(&format!("/sendfile bob {}", file.display()));
    people[1].expect("plan.txt");
    people[1].say("/acceptfile");
    people[1].expect("alice~plan.txt");
    let mut stolen = Vec::new();
    for mut one in people {
        one.end();
        one.output.all();
        assert_eq!(one.status(), Some(0));
        stolen.push(Stolen::from(&one));
    }
    let (mut envelopes, mut blocks) = (0, 0);
    for ([_, down], reader) in records.iter().zip(["alice", "bob"]) {
        for frame in down.lock().expect("whole").iter() {
            match Heard::parse(frame) {
                Heard::Message(ServerMessage::EncryptedMessage(message)) => {
                    let sender = &stolen[usize::from(reader == "alice")].identity;
                    for thief in &stolen {
                        opens_only_what_was_made_for_it(&message, sender, &thief.opener);
                    }
                    envelopes += 1;
                }
                Heard::Packet(_, transfer, payload) if payload[..4] == [0; 4] => {
                    let fields = Fields::new(label::CHUNK_KEYS).bytes(&transfer).number(0).finish();
                    let oaep_label = sha256(&fields);
                    let block = payload[64..320].try_into().expect("256 bytes");
                    for thief in &stolen {
                        assert!(thief.opener.unwrap(block, oaep_label).is_err());
                        let own = thief.opener.public().wrap(&[7; 64], oaep_label);
                        assert!(thief.opener.unwrap(&own, oaep_label).is_ok());
                    }
                    blocks += 1;
                }
                _ => {}
            }
        }
    }
    // For each user: a broadcast, a private message, the opening of a room and a message in it; and three file notices.
    assert!(envelopes >= 11 && blocks == 1, "{envelopes} {blocks}");
    // The disks do not contain the keys that open them.
    for ([up, _], thief) in records.iter().zip(&stolen) {
        let frames = up.lock().expect("whole");
        let lines = frames.iter().filter_map(|frame| frame.strip_suffix(b"\n").filter(|line| line[0] != 0));
        let responses = lines.filter_map(|line| match ClientMessage::decode(line).expect("a message") {
            ClientMessage::ChallengeResponse(response) => Some(modulus(&response.session_key.0)),
            _ => None,
        });
        let sessions: Vec<_> = responses.collect();
        assert!(sessions.len() == 1 && thief.files.len() >= 3);
        for file in &thief.files {
            assert!(!hold_a_prime(file, &sessions[0]));
        }
        // The search finds the identity key in any form, once the password has opened its file.
        let (key, own) = (thief.identity.to_pkcs8(), modulus(&thief.identity.public().spki()));
        let text = format!("{{\"key\":\"{}\"}}", BASE64_STANDARD_NO_PAD.encode(&*key));
        let digits = hex(&key);
        for form in [&key[..], text.as_bytes(), digits.as_bytes()] {
            assert!(hold_a_prime(form, &own));
        }
        assert!(!thief.files.iter().any(|file| hold_a_prime(file, &own)), "the password is needed");
    }
}

/// The recorded envelope does not open with `key`, even if its key id is replaced; an envelope for `key` with the same
/// header does.
fn opens_only_what_was_made_for_it(message: &EncryptedMessage, sender: &IdentityKey, key: &SessionKey) {
    let verified = message.envelope.verify(sender.public()).expect("it is the sender's");
    let mut recorded = message.key.bytes();
    assert!(verified.open(key, &recorded).is_err(), "{:?} opens", verified.header());
    recorded[..8].copy_from_slice(&key.fingerprint().key_id());
    assert!(verified.open(key, &recorded).is_err(), "{:?} opens", verified.header());
    let sealed = Sealed::seal(verified.header().clone(), sender, b"for the thief");
    let wrapped = sealed.wrap_for(key.public());
    let own = sealed.envelope.verify(sender.public()).expect("signed so");
    let opened = own.open(key, &wrapped).expect("it is for this key");
    assert_eq!(&**opened, b"for the thief");
}
