//! The server's operator as adversary, against the real client in plain mode. In the [`Stage`] tests, the test is the
//! whole server and invents every byte. In the [`Operator`] tests, it is between real clients and a real server, and
//! drops, repeats, reorders and redirects what passes. Also users who send hostile texts, and servers whose key has
//! changed.

use crate::support::{
    Bare, Client, DATA, DEADLINE, EVERYONE, Folder, Gate, Operator, Output, PASSWORD, Person, Raw, Server,
    To, assert_harmless, delivery, header, home_with, mailbox_key, memory_of, message, name, newcomer,
    present, private_to, run_client, sealed, send_to, times,
};
use secure_messenger::auth;
use secure_messenger::client::session::{Action, Display, Effect, Event};
use secure_messenger::clock;
use secure_messenger::crypto::envelope::{Body, Envelope, Header, Kind, Scope, Sealed, Word};
use secure_messenger::crypto::key_file::{self, Login};
use secure_messenger::crypto::keys::{IdentityKey, SessionKey};
use secure_messenger::crypto::primitives::{PBKDF2_MIN_ROUNDS, eax_seal, hmac, sha256};
use secure_messenger::crypto::public::{Fingerprint, SessionPublicKey, WRAPPED_BYTES};
use secure_messenger::crypto::secret::{Key, Password, random};
use secure_messenger::crypto::{Fields, label};
use secure_messenger::encoding::{Bytes, Fixed, Text};
use secure_messenger::name::Username;
use secure_messenger::protocol::{
    Challenge, ClientMessage, EncryptedSend, ErrorCode, Failure, Keys, KeysRequest, MAX_CIPHERTEXT, MAX_LINE,
    Presence, Received, ResumeChallenge, Sent, ServerMessage, Session as SessionGrant, UserKeys, VERSION,
    WrappedKey,
};
use secure_messenger::wire::certificate;
use secure_messenger::wire::tls::{Channel, Unverified};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

// ---- people

/// Three pairs of keys for all tests, because making them takes long: alice's, bob's, and one for all other names.
fn person(who: &str) -> Person {
    type Pair = (Arc<IdentityKey>, Arc<SessionKey>);
    static KEYS: [OnceLock<Pair>; 3] = [const { OnceLock::new() }; 3];
    let slot = match who {
        "alice" => 0,
        "bob" => 1,
        _ => 2,
    };
    let (identity, session) =
        KEYS[slot].get_or_init(|| (Arc::new(IdentityKey::generate()), Arc::new(SessionKey::generate())));
    Person { name: name(who), identity: identity.clone(), session: session.clone() }
}

/// An envelope made by hand, so that its author has the key and can lie about the commitment and the padding. It
/// follows PROTOCOL.md, "Envelope", and uses none of the client's code.
fn handmade(
    from: &Person,
    header: &Header,
    padded: &[u8],
    lie: Option<[u8; 32]>,
) -> (Envelope, Key, [u8; 32]) {
    let key = Key::random();
    let commitment = lie.unwrap_or_else(|| hmac(&key, label::KEY_COMMITMENT.as_bytes()));
    let encoded = encoded(header, &commitment);
    let nonce = random();
    let mut ciphertext = padded.to_vec();
    let tag = eax_seal(&key, &nonce, 0, &encoded, &mut ciphertext);
    let mut body = Body {
        commitment: Fixed(commitment),
        nonce: Fixed(nonce),
        ciphertext: Bytes(ciphertext),
        tag: Fixed(tag),
        signature: Fixed([0; 256]),
    };
    body.signature = Fixed(from.identity.sign(&signed(&encoded, &body)));
    (Envelope { header: header.clone(), body }, key, sha256(&encoded))
}

/// PROTOCOL.md, "header".
fn encoded(header: &Header, commitment: &[u8; 32]) -> Vec<u8> {
    let to = header.recipient.as_ref().map_or("", Username::as_str);
    let to_key: &[u8] = header.recipient_key.as_ref().map_or(&[], |key| &key.0);
    Fields::new(label::ENVELOPE_HEADER)
        .bytes(header.kind.as_str().as_bytes())
        .bytes(header.scope.as_str().as_bytes())
        .bytes(to.as_bytes())
        .bytes(to_key)
        .bytes(header.from.as_str().as_bytes())
        .bytes(&header.identity.0)
        .bytes(&header.session.0)
        .number(header.sequence)
        .number(header.time)
        .bytes(header.again.as_ref().map_or(&[][..], |id| &id.0))
        .bytes(commitment)
        .finish()
}

/// PROTOCOL.md, "signature".
fn signed(header: &[u8], body: &Body) -> Vec<u8> {
    let hash = sha256(&[&body.ciphertext.0[..], &body.tag.0].concat());
    Fields::new(label::ENVELOPE_SIGNATURE).bytes(header).bytes(&body.nonce.0).bytes(&hash).finish()
}

/// The message key of a handmade envelope, wrapped for a session key: key id, then ciphertext.
fn wrap(session: &SessionPublicKey, key: &Key, oaep_label: [u8; 32]) -> [u8; WRAPPED_BYTES] {
    let (id, block) = (session.fingerprint().key_id(), session.wrap(key.expose(), oaep_label));
    [&id[..], &block].concat().try_into().expect("8 and 256 bytes")
}

/// Length, text, and zeros up to 256 bytes.
fn padded(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).expect("short").to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes.resize(256, 0);
    bytes
}

// ---- the test as the whole server

/// The salt and rounds that bob's client chose for his account.
const BOBS: Login = Login { salt: Fixed([7; 32]), rounds: PBKDF2_MIN_ROUNDS + 1 };

/// A hostile server. Its victim is bob.
struct Stage {
    listener: TcpListener,
    home: Arc<Folder>,
}

impl Stage {
    /// Bob's key file exists, and lists [`BOBS`].
    fn new() -> Stage {
        let stage = Stage::without_logins();
        stage.list(&[BOBS]);
        stage
    }

    fn key_file(&self) -> PathBuf {
        self.home.path(DATA).join("keys/bob_private.key")
    }

    /// Replaces the list of logins in the key file.
    fn list(&self, logins: &[Login]) {
        let text = std::fs::read(self.key_file()).expect("there");
        let text = key_file::with_logins(&text, logins).expect("a key file");
        std::fs::write(self.key_file(), text).expect("written");
    }

    fn logins(&self) -> Vec<Login> {
        key_file::logins(&std::fs::read(self.key_file()).expect("there")).expect("a key file")
    }

    /// Bob's key file is that of an older client, without a list of logins.
    fn without_logins() -> Stage {
        static KEY_FILE: OnceLock<String> = OnceLock::new();
        let bob = person("bob");
        let text = KEY_FILE
            .get_or_init(|| key_file::seal(&bob.identity, &bob.name, &Password::new(PASSWORD.into())));
        let home = home_with(&bob.name, text);
        Stage { listener: TcpListener::bind("127.0.0.1:0").expect("a port"), home }
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().expect("bound").port()
    }

    /// Starts bob's client in a home, and accepts its connection. It requests no mail.
    fn start(&self, home: &Arc<Folder>, arguments: &[&str]) -> (Client, Line) {
        let arguments = [arguments, &["--no-mail"]].concat();
        (Client::within(home.clone(), self.port(), "bob", false, &arguments), self.next())
    }

    fn open(&self) -> (Client, Line) {
        self.start(&self.home, &[])
    }

    /// The next connection of bob's client.
    fn next(&self) -> Line {
        Line::new(self.listener.accept().expect("the client connects").0)
    }

    /// The next connection, which must resume the session: the caller sends the answer.
    fn resuming(&self) -> Line {
        let line = self.next();
        assert!(matches!(line.hear(), Some(ClientMessage::ResumeRequest(_))));
        let nonce = Fixed(random());
        line.say(&ServerMessage::ResumeChallenge(ResumeChallenge { version: VERSION, nonce }));
        assert!(matches!(line.hear(), Some(ClientMessage::Resume(_))));
        line
    }

    /// Bob's client, which sees these users online, and its session key.
    fn logged_in(others: &[&Person]) -> (Stage, Client, Line, SessionPublicKey) {
        let stage = Stage::new();
        let (client, line) = stage.log_in(others);
        let session = line.bob().clone();
        (stage, client, line, session)
    }

    /// Starts and logs in bob's client, which sees these users online.
    fn log_in(&self, others: &[&Person]) -> (Client, Line) {
        let (client, mut line) = self.open();
        line.admit(BOBS);
        for other in others {
            line.show(other.shown());
        }
        line.say(&present(others.iter().map(|other| other.name.as_str()).chain(["bob"])));
        (client.ready(), line)
    }
}

/// The server's end of a connection. It answers `keys_request` automatically from its directory.
struct Line {
    socket: Arc<Mutex<TcpStream>>,
    heard: Receiver<ClientMessage>,
    directory: Arc<Mutex<HashMap<String, UserKeys>>>,
    /// The client's session key, once it has logged in.
    session: Option<SessionPublicKey>,
}

impl Line {
    fn new(socket: TcpStream) -> Line {
        let reader = BufReader::new(socket.try_clone().expect("a second handle"));
        let socket = Arc::new(Mutex::new(socket));
        let directory = Arc::new(Mutex::new(HashMap::<String, UserKeys>::new()));
        let (sender, heard) = channel();
        let (writer, known) = (socket.clone(), directory.clone());
        thread::spawn(move || {
            for line in reader.split(b'\n').map_while(Result::ok) {
                let message = ClientMessage::decode(&line).expect("the client speaks the protocol");
                if let ClientMessage::KeysRequest(KeysRequest { names }) = &message {
                    let known = known.lock().expect("whole");
                    let unknown = names.iter().filter(|name| !known.contains_key(name.as_str()));
                    let unknown = unknown.cloned().collect();
                    let keys =
                        names.iter().filter_map(|name| known.get(name.as_str()).map(duplicate)).collect();
                    let answer = ServerMessage::Keys(Keys { keys, unknown });
                    let _ = writer.lock().expect("whole").write_all(&answer.encode());
                } else if sender.send(message).is_err() {
                    return;
                }
            }
        });
        Line { socket, heard, directory, session: None }
    }

    fn bytes(&self, bytes: &[u8]) {
        // A client may have closed the connection; tests look at what it sent.
        let _ = self.socket.lock().expect("whole").write_all(bytes);
    }

    fn say(&self, message: &ServerMessage) {
        self.bytes(&message.encode());
    }

    fn close(&self) {
        let _ = self.socket.lock().expect("whole").shutdown(Shutdown::Both);
    }

    /// The client's next message, without `keys_request`; `None` when it has closed the connection.
    fn hear(&self) -> Option<ClientMessage> {
        match self.heard.recv_timeout(DEADLINE) {
            // Acknowledgements come at any time.
            Ok(ClientMessage::Ack(_)) => self.hear(),
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the client sent nothing"),
        }
    }

    /// The client's next `encrypted_send`.
    fn hear_send(&self) -> EncryptedSend {
        match self.hear() {
            Some(ClientMessage::EncryptedSend(send)) => *send,
            Some(_) => panic!("the client sent something else"),
            None => panic!("the client is gone"),
        }
    }

    /// Whether the client closes the connection without sending a further envelope.
    fn hears_no_more_sends(&self) -> bool {
        std::iter::from_fn(|| self.hear()).all(|message| !matches!(message, ClientMessage::EncryptedSend(_)))
    }

    /// A challenge with bob's salt.
    fn challenge(rounds: u32) -> ServerMessage {
        Line::asking(Login { rounds, ..BOBS })
    }

    fn asking(login: Login) -> ServerMessage {
        let (nonce, Login { salt, rounds }) = (Fixed(random()), login);
        ServerMessage::Challenge(Challenge { version: VERSION, nonce, salt, rounds })
    }

    /// Answers a `login_request` with a challenge that bob's client accepts, and waits for its response.
    fn respond(&self) {
        self.ask(BOBS);
        assert!(matches!(self.hear(), Some(ClientMessage::ChallengeResponse(_))));
    }

    /// Waits for a `login_request`, and answers it with a challenge.
    fn ask(&self, login: Login) {
        assert!(matches!(self.hear(), Some(ClientMessage::LoginRequest(_))));
        self.say(&Line::asking(login));
    }

    /// Logs the client in.
    fn admit(&mut self, login: Login) {
        self.ask(login);
        let Some(ClientMessage::ChallengeResponse(response)) = self.hear() else { panic!("no response") };
        self.session = Some(SessionPublicKey::parse(&response.session_key.0).expect("a key"));
        self.say(&granted());
    }

    /// The victim's session key.
    fn bob(&self) -> &SessionPublicKey {
        self.session.as_ref().expect("logged in")
    }

    /// Answers requests for this user's keys from now on.
    fn show(&self, keys: UserKeys) {
        self.directory.lock().expect("whole").insert(keys.name.to_string(), keys);
    }

    fn presence(&self, joined: &[&str], left: &[&str]) {
        let names = |list: &[&str]| list.iter().map(|text| name(text)).collect();
        self.say(&ServerMessage::Presence(Presence {
            more: false,
            full: false,
            joined: names(joined),
            left: names(left),
        }));
    }

    fn delivered(&self, send: &EncryptedSend) {
        let delivered = send.routing.targets.clone();
        self.sent(send.routing.id, delivered, vec![]);
    }

    fn kept(&self, send: &EncryptedSend) {
        let (id, kept) = (send.routing.id, send.routing.targets.clone());
        self.say(&ServerMessage::Sent(Sent { id, kept, ..Sent::default() }));
    }

    fn sent(&self, id: u64, delivered: Vec<Username>, stale: Vec<Username>) {
        self.say(&ServerMessage::Sent(Sent { id, delivered, stale, ..Sent::default() }));
    }

    /// The targets of a message. Exactly these names must have keys.
    fn targets(send: &EncryptedSend) -> Vec<&str> {
        let targets: Vec<&str> = send.routing.targets.iter().map(Username::as_str).collect();
        let keys: Vec<&str> = send.routing.keys.names().map(Username::as_str).collect();
        assert_eq!(targets, keys, "exactly the targets have keys");
        targets
    }
}

fn granted() -> ServerMessage {
    granted_with(Key::random(), 0)
}

fn granted_with(token: Key, newest: u64) -> ServerMessage {
    ServerMessage::Session(SessionGrant { token, expires: clock::now_ms() + 86_400_000, newest })
}

fn failure(code: ErrorCode, message: &str, retry_after: Option<u64>) -> ServerMessage {
    let (code, message) = (code.as_str().into(), message.into());
    ServerMessage::Error(Failure { code, message, id: None, retry_after, newest: None })
}

fn duplicate(keys: &UserKeys) -> UserKeys {
    UserKeys {
        name: keys.name.clone(),
        identity: keys.identity.clone(),
        session_key: keys.session_key.clone(),
        mailbox_key: keys.mailbox_key.clone(),
        created: keys.created,
        certificate: keys.certificate,
    }
}

/// A room whose other member is bob.
fn room_of_bob(session: &SessionPublicKey) -> To {
    (Scope::Room, Some((name("bob"), session.fingerprint())))
}

const REFUSED: &str = "! refused a message that claims to come from ";

// ---- envelopes: altered, forged, repeated, moved

/// PROTOCOL#checks, PROTOCOL#check-fields, PROTOCOL#check-signature, PROTOCOL#check-open, PROTOCOL#no-answer.
#[test]
fn message_with_any_altered_field_is_not_shown() {
    let (alice, mallory) = (person("alice"), person("mallory"));
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&alice, &mallory]);
    line.say(&message(&alice, private_to("bob", &session), 1, "first", &session));
    assert_eq!(bob.output.next().expect("a line"), "<alice -> bob> first");
    let sealed = Sealed::seal(header(&alice, private_to("bob", &session), 2), &alice.identity, b"genuine");
    let wrapped = sealed.wrap_for(&session);
    let public = Sealed::seal(header(&alice, EVERYONE, 1), &alice.identity, b"public");
    let public_wrapped = public.wrap_for(&session);

    type Change = fn(&mut Envelope);
    let changes: [(&str, Change); 17] = [
        ("the sender", |e| e.header.from = name("mallory")),
        ("the kind", |e| e.header.kind = Kind::RoomOpened),
        ("an unknown kind", |e| e.header.kind = Kind::FileOffer),
        ("private to room", |e| e.header.scope = Scope::Room),
        ("an unknown scope", |e| e.header.scope = Scope::Later(Word::new("everyone").expect("short"))),
        ("private to public", |e| {
            (e.header.scope, e.header.recipient, e.header.recipient_key) = (Scope::Broadcast, None, None);
        }),
        ("public, yet with a recipient", |e| e.header.scope = Scope::Broadcast),
        ("private to nobody", |e| (e.header.recipient, e.header.recipient_key) = (None, None)),
        ("the recipient", |e| e.header.recipient = Some(name("carol"))),
        ("the recipient's key", |e| e.header.recipient_key = Some(Fingerprint([7; 32]))),
        ("the sender's session", |e| e.header.session.0[0] ^= 1),
        ("the number", |e| e.header.sequence += 1),
        ("the time", |e| e.header.time -= 1),
        ("the commitment", |e| e.body.commitment.0[31] ^= 1),
        ("the nonce", |e| e.body.nonce.0[0] ^= 1),
        ("the tag", |e| e.body.tag.0[15] ^= 1),
        ("the signature", |e| e.body.signature.0[255] ^= 1),
    ];
    // The same reason is shown once and then counted, so a message of mallory follows each of them.
    let mut altered = 0;
    let mut refuses = |bob: &mut Client, what: &str, envelope, key| {
        altered += 1;
        line.say(&delivery(envelope, key));
        line.say(&message(&mallory, EVERYONE, altered, &format!("that was {what}"), &session));
        loop {
            let shown = bob.output.next().expect("a line");
            if shown == format!("<mallory> that was {what}") {
                return;
            }
            assert!(shown.starts_with(REFUSED), "{what}: {shown}");
        }
    };
    for (what, change) in changes {
        let mut envelope = sealed.envelope.clone();
        change(&mut envelope);
        refuses(&mut bob, what, envelope, wrapped);
    }
    let mut ciphertexts = [sealed.envelope.clone(), sealed.envelope.clone(), sealed.envelope.clone()];
    ciphertexts[0].body.ciphertext.0[0] ^= 1;
    ciphertexts[1].body.ciphertext.0.pop();
    ciphertexts[2].body.ciphertext.0.clear();
    let mut identity = sealed.envelope.clone();
    identity.header.identity = mallory.identity.public().fingerprint();
    let mut private = public.envelope.clone();
    (private.header.scope, private.header.recipient) = (Scope::Private, Some(name("bob")));
    private.header.recipient_key = Some(session.fingerprint());
    let (mut key, mut key_id) = (wrapped, wrapped);
    (key[100], key_id[0]) = (key[100] ^ 1, key_id[0] ^ 1);
    let mut other_id = wrapped;
    other_id[..8].copy_from_slice(&mallory.session.fingerprint().key_id());
    let [one, two, three] = ciphertexts;
    for (what, envelope, key) in [
        ("the ciphertext", one, wrapped),
        ("a shorter ciphertext", two, wrapped),
        ("no ciphertext", three, wrapped),
        ("the identity", identity, wrapped),
        ("public to private", private, public_wrapped),
        ("the wrapped key", sealed.envelope.clone(), key),
        ("the id of the key", sealed.envelope.clone(), key_id),
        ("the id of another's key", sealed.envelope.clone(), other_id),
        ("the key of another message", sealed.envelope.clone(), public_wrapped),
        (
            "a key wrapped for somebody else",
            sealed.envelope.clone(),
            sealed.wrap_for(mallory.session.public()),
        ),
    ] {
        refuses(&mut bob, what, envelope, key);
    }
    // None of these used up a number or harmed the genuine ones.
    line.say(&delivery(sealed.envelope.clone(), wrapped));
    assert_eq!(bob.output.next().expect("a line"), "<alice -> bob> genuine");
    line.say(&delivery(public.envelope.clone(), public_wrapped));
    assert_eq!(bob.output.next().expect("a line"), "<alice> public");
    let (status, lines) = bob.finish();
    assert_eq!(status, 0);
    assert_eq!(lines.iter().filter(|line| line.contains("genuine")).count(), 1, "{lines:#?}");
    assert_eq!(times(&lines, REFUSED), altered, "{lines:#?}");
    // Bob's client reports none of them to alice or the server.
    let said = std::iter::from_fn(|| line.hear()).filter(|said| !matches!(said, ClientMessage::Logout));
    assert_eq!(said.count(), 0);
}

/// PROTOCOL#check-identity, PROTOCOL#check-signature, PROTOCOL#check-recipient.
#[test]
fn message_forged_in_another_s_name_is_not_shown() {
    let (alice, mallory) = (person("alice"), person("mallory"));
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&alice, &mallory]);
    line.say(&message(&alice, EVERYONE, 1, "it is me", &session));
    bob.expect("<alice> it is me");
    // With the forger's own keys, which the header names.
    let mut forged = header(&mallory, private_to("bob", &session), 1);
    forged.from = name("alice");
    line.say(&sealed(&mallory, forged.clone(), b"forged", &session));
    assert!(bob.output.next().expect("a line").starts_with(REFUSED));
    // With alice's fingerprints, signed by the forger.
    (forged.identity, forged.session) = (alice.identity.public().fingerprint(), alice.session.fingerprint());
    line.say(&sealed(&mallory, forged, b"forged", &session));
    assert!(bob.output.next().expect("a line").starts_with(REFUSED));
    // A message from alice to mallory, who relays it to bob with the key wrapped for bob.
    let to_mallory = header(&alice, private_to("mallory", mallory.session.public()), 1);
    let (envelope, key, oaep_label) = handmade(&alice, &to_mallory, &padded("I love you"), None);
    line.say(&delivery(envelope, wrap(&session, &key, oaep_label)));
    let refused = bob.output.next().expect("a line");
    assert!(refused.starts_with(REFUSED) && refused.contains("for another user"), "{refused}");
    let (_, lines) = bob.finish();
    assert!(!lines.iter().any(|line| line.contains("forged") || line.contains("love")), "{lines:#?}");
}

/// Otherwise the recipient could answer with a quotation, and tell mallory a text of alice's. PROTOCOL#wrapped-key.
#[test]
fn ciphertext_of_another_user_under_own_name_is_refused() {
    let (alice, mallory) = (person("alice"), person("mallory"));
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&alice, &mallory]);
    let to_bob = private_to("bob", &session);
    let stolen = Sealed::seal(header(&alice, to_bob.clone(), 1), &alice.identity, b"I love you");
    let wrapped = stolen.wrap_for(&session);
    let body = &stolen.envelope.body;
    // Mallory signs alice's ciphertext and commitment with a header of her own.
    let header = header(&mallory, to_bob, 1);
    let encoded = encoded(&header, &body.commitment.0);
    let signature = Fixed(mallory.identity.sign(&signed(&encoded, body)));
    let envelope = Envelope { header, body: Body { signature, ..body.clone() } };
    envelope.verify(mallory.identity.public()).expect("correctly signed");
    line.say(&delivery(envelope, wrapped));
    let refused = bob.output.next().expect("a line");
    assert!(refused.starts_with(REFUSED) && refused.contains("cannot be decrypted"), "{refused}");
    line.say(&delivery(stolen.envelope.clone(), wrapped));
    assert_eq!(bob.output.next().expect("a line"), "<alice -> bob> I love you");
    bob.leaves();
}

#[test]
fn message_forged_in_the_reader_s_own_name_is_not_shown() {
    let mallory = person("mallory");
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&mallory]);
    // The server shows a key of its own as the reader's key.
    let impostor = mallory.called("bob");
    line.show(impostor.shown());
    line.say(&message(&impostor, EVERYONE, 1, "I owe mallory money", &session));
    let shown = bob.output.next().expect("a line");
    assert!(shown.starts_with("! "), "{shown}");
    line.say(&message(&mallory, EVERYONE, 1, "still here", &session));
    bob.expect("<mallory> still here");
    let (_, lines) = bob.finish();
    assert!(!lines.iter().any(|line| line.contains("I owe")), "{lines:#?}");
}

/// PROTOCOL#broadcast-server, PROTOCOL#check-recipient.
#[test]
fn broadcast_of_another_server_is_refused() {
    let alice = person("alice");
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&alice]);
    // A reader on the other server knows the message key and wraps it for bob; this server delivers it.
    let elsewhere = Header { recipient_key: Some(Fingerprint([7; 32])), ..header(&alice, EVERYONE, 1) };
    let sealed = Sealed::seal(elsewhere, &alice.identity, b"said elsewhere");
    line.say(&delivery(sealed.envelope.clone(), sealed.wrap_for(&session)));
    let refused = bob.output.next().expect("a line");
    assert!(refused.starts_with(REFUSED) && refused.contains("another server"), "{refused}");
    let mut stripped = sealed.envelope.clone();
    stripped.header.recipient_key = None;
    line.say(&delivery(stripped, sealed.wrap_for(&session)));
    let refused = bob.output.next().expect("a line");
    assert!(refused.starts_with(REFUSED) && refused.contains("signature"), "{refused}");
    line.say(&message(&alice, EVERYONE, 1, "said here", &session));
    assert_eq!(bob.output.next().expect("a line"), "<alice> said here");
    bob.leaves();
}

/// PROTOCOL#check-open, PROTOCOL#commitment, PROTOCOL#padding.
#[test]
fn commitment_to_another_key_is_refused() {
    let mallory = person("mallory");
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&mallory]);
    let to_all = |sequence| header(&mallory, EVERYONE, sequence);
    let wrap = |(envelope, key, oaep_label): (Envelope, Key, [u8; 32])| {
        delivery(envelope, wrap(&session, &key, oaep_label))
    };
    // The same handmade envelope without the lie is shown: only the lie is refused.
    line.say(&wrap(handmade(&mallory, &to_all(1), &padded("honest"), None)));
    assert_eq!(bob.output.next().expect("a line"), "<mallory> honest");
    line.say(&wrap(handmade(&mallory, &to_all(2), &padded("two-faced"), Some([5; 32]))));
    assert!(bob.output.next().expect("a line").starts_with(REFUSED));
    // Invalid padding.
    let mut long = padded("hidden");
    long.resize(512, 0);
    let mut dirty = padded("hidden");
    dirty[255] = 1;
    let mut beyond = padded("hidden");
    beyond[..4].copy_from_slice(&u32::MAX.to_be_bytes());
    for bad in [&long[..], &dirty, &beyond, b"", b"\0\0"] {
        line.say(&wrap(handmade(&mallory, &to_all(2), bad, None)));
    }
    line.say(&wrap(handmade(&mallory, &to_all(2), &padded("honest again"), None)));
    assert_eq!(bob.output.next().expect("a line"), "<mallory> honest again");
    let (_, lines) = bob.finish();
    assert!(!lines.iter().any(|line| line.contains("two-faced") || line.contains("hidden")), "{lines:#?}");
    assert_eq!(times(&lines, REFUSED), 6, "{lines:#?}");
}

/// PROTOCOL#check-text, PROTOCOL#times.
#[test]
fn delayed_message_is_reported_as_such() {
    let alice = person("alice");
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&alice]);
    for (sequence, minutes, word) in [(1u64, -7i64, "behind"), (2, 9, "ahead of"), (3, -4, ""), (4, 4, "")] {
        let mut header = header(&alice, EVERYONE, sequence);
        header.time = header.time.saturating_add_signed(minutes * 60_000 + minutes.signum() * 1000);
        line.say(&sealed(&alice, header, b"what time is it?", &session));
        if !word.is_empty() {
            let told = bob.output.next().expect("a line");
            let expected =
                format!("from alice is dated {} minutes {word} this machine's clock", minutes.abs());
            assert!(told.starts_with("! ") && told.contains(&expected), "{told}");
        }
        assert_eq!(bob.output.next().expect("a line"), "<alice> what time is it?");
    }
    bob.leaves();
}

/// PROTOCOL#check-sequence, PROTOCOL#sequence.
#[test]
fn extreme_sequence_numbers_do_not_harm_the_client() {
    let alice = person("alice");
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&alice]);
    let numbered = |sequence| sealed(&alice, header(&alice, EVERYONE, sequence), b"number", &session);
    line.say(&numbered(1));
    bob.expect("<alice> number");
    line.say(&numbered(u64::MAX));
    assert!(bob.output.next().expect("a line").starts_with(REFUSED));
    line.say(&numbered(u64::MAX - 1));
    let gap = bob.output.next().expect("a line");
    assert_eq!(gap, "! more than 10000000 messages from alice are missing");
    bob.expect("<alice> number");
    line.say(&numbered(0));
    line.say(&numbered(u64::MAX - 1));
    line.say(&numbered(u64::MAX));
    line.presence(&["carol"], &[]);
    bob.expect("* carol is online");
    let (status, lines) = bob.finish();
    assert_eq!((status, times(&lines, REFUSED)), (0, 4), "{lines:#?}");
}

/// PROTOCOL#check-recipient.
#[test]
fn message_for_another_name_or_session_is_refused() {
    let mallory = person("mallory");
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&mallory]);
    // Each is correctly signed, with the message key wrapped for bob's own session.
    for scope in [
        private_to("carol", &session),
        (Scope::Room, Some((name("carol"), session.fingerprint()))),
        private_to("Bob", &session),
        private_to("bob", mallory.session.public()),
        (Scope::Room, Some((name("bob"), Fingerprint([7; 32])))),
    ] {
        line.say(&message(&mallory, scope.clone(), 1, "not for you", &session));
    }
    line.say(&message(&mallory, private_to("bob", &session), 1, "for you", &session));
    bob.expect("<mallory -> bob> for you");
    let (_, lines) = bob.finish();
    assert!(!lines.iter().any(|line| line.contains("not for you")), "{lines:#?}");
    assert_eq!(
        times(&lines, "! refused a message that claims to come from mallory: it is for another user"),
        5
    );
}

// ---- keys

/// PROTOCOL#check-identity, PROTOCOL#ask-keys.
#[test]
fn swapped_identity_key_stops_messages_until_it_is_trusted() {
    let (alice, carol, mallory) = (person("alice"), person("carol"), person("mallory"));
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&alice, &carol]);
    line.say(&message(&alice, EVERYONE, 1, "the real one", &session));
    bob.expect("<alice> the real one");
    // Another key under alice's name, properly certified, after she has logged in again.
    let swapped = mallory.called("alice");
    line.show(swapped.shown());
    line.presence(&[], &["alice"]);
    line.presence(&["alice"], &[]);
    bob.expect("* alice is online");
    bob.ask("/msg alice secret one", "! THE IDENTITY KEY OF alice HAS CHANGED");
    bob.expect("! the key of alice has changed: your message was not sent");
    line.say(&message(&swapped, private_to("bob", &session), 1, "held one", &session));
    line.say(&message(&swapped, EVERYONE, 1, "held two", &session));
    bob.ask("/msg alice secret two", "! THE IDENTITY KEY OF alice HAS CHANGED");
    bob.ask("/room alice", "! THE IDENTITY KEY OF alice HAS CHANGED");
    bob.say("/users");
    assert!(bob.expect(" online: ").contains("alice (KEY CHANGED)"));
    bob.ask("/verify alice yes", "! THE IDENTITY KEY OF alice HAS CHANGED");
    // The room is refused, but messages for her go to nobody else.
    bob.ask("secret three", " has changed: your message was not sent");
    bob.ask("/leave", "* conversation with alice closed; you are talking to everyone");
    // A broadcast goes only to the other users.
    bob.say("hello everyone");
    let send = line.hear_send();
    assert_eq!(Line::targets(&send), ["carol"]);
    line.delivered(&send);
    bob.expect("<bob> hello everyone");
    assert!(!bob.output.seen.iter().any(|line| line.contains("held")), "{:#?}", bob.output.seen);
    // The user decides.
    bob.ask("/trust alice", "* the new key of alice is accepted");
    bob.expect("<alice -> bob> held one");
    bob.expect("<alice> held two");
    bob.say("/msg alice now it goes");
    let send = line.hear_send();
    assert_eq!(Line::targets(&send), ["alice"]);
    line.delivered(&send);
    bob.expect("<bob -> alice> now it goes");
    bob.leaves();
    assert!(line.hears_no_more_sends());
}

#[test]
fn swapped_identity_key_is_noticed_after_a_restart() {
    let (alice, mallory) = (person("alice"), person("mallory"));
    let (stage, mut bob, line, session) = Stage::logged_in(&[&alice]);
    line.say(&message(&alice, EVERYONE, 1, "the real one", &session));
    bob.expect("<alice> the real one");
    bob.leaves();
    let swapped = mallory.called("alice");
    let (mut bob, line) = stage.log_in(&[&swapped]);
    let session = line.bob().clone();
    line.say(&message(&swapped, EVERYONE, 1, "it is me, alice", &session));
    bob.expect("! THE IDENTITY KEY OF alice HAS CHANGED");
    bob.ask("hello?", "! ");
    let (_, lines) = bob.finish();
    assert!(!lines.iter().any(|line| line.contains("it is me") || line.starts_with('<')), "{lines:#?}");
    assert!(line.hears_no_more_sends());
}

#[test]
fn broadcast_to_a_changed_key_alone_reports_the_key() {
    let (alice, mallory) = (person("alice"), person("mallory"));
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&alice]);
    line.say(&message(&alice, EVERYONE, 1, "the real one", &session));
    bob.expect("<alice> the real one");
    let swapped = mallory.called("alice");
    line.show(swapped.shown());
    line.say(&message(&swapped, EVERYONE, 1, "it is me", &session));
    bob.expect("! THE IDENTITY KEY OF alice HAS CHANGED");
    bob.say("hello?");
    let told = bob.output.next().expect("a line");
    assert!(told.starts_with("! ") && told.contains("key") && !told.contains("nobody else"), "{told}");
    bob.leaves();
}

/// PROTOCOL#session-certificate, PROTOCOL#ask-keys.
#[test]
fn session_key_without_a_valid_certificate_gets_no_message() {
    let (alice, mallory) = (person("alice"), person("mallory"));
    let stage = Stage::new();
    let (mut bob, line) = stage.log_in(&[&alice, &mallory]);
    let now = clock::now_ms();
    let hour = 3_600_000;
    let by = |identity: &IdentityKey, owner: &str, session: &SessionKey, created| {
        identity.certify(&name(owner), session, created)
    };
    let mut altered = by(&alice.identity, "alice", &alice.session, now);
    altered.created += 1;
    let mut moved = by(&alice.identity, "alice", &alice.session, now);
    moved.session_key = Bytes(mallory.session.public().spki());
    for (what, certificate) in [
        ("certified by another", by(&mallory.identity, "alice", &mallory.session, now)),
        ("somebody else's certificate", by(&mallory.identity, "mallory", &mallory.session, now)),
        ("made for another name", by(&alice.identity, "alicia", &alice.session, now)),
        ("expired", by(&alice.identity, "alice", &alice.session, now - 27 * hour)),
        ("from the future", by(&alice.identity, "alice", &alice.session, now + 3 * hour)),
        ("from the beginning of time", by(&alice.identity, "alice", &alice.session, 0)),
        ("from the end of time", by(&alice.identity, "alice", &alice.session, u64::MAX)),
        ("a date altered", altered),
        ("a certificate moved to another key", moved),
    ] {
        line.show(alice.shown_with(Some(&certificate)));
        bob.say("/msg alice secret");
        let told = bob.expect("! alice has no usable key");
        assert!(told.contains("your message was not delivered (\""), "{what}: {told}");
    }
    for bad in [Bytes(vec![]), Bytes(vec![0x30; 600]), Bytes(b"not a key".to_vec())] {
        let mut keys = alice.shown();
        keys.session_key = Some(bad.clone());
        line.show(keys);
        bob.ask("/msg alice secret", "! alice has no usable key");
        let mut keys = alice.shown();
        keys.identity = bad;
        line.show(keys);
        bob.ask("/msg alice secret", "! alice has no usable key");
    }
    // Without a session key she is offline; with the right one she gets the message.
    line.show(alice.shown_with(None));
    bob.ask("/msg alice secret", "! alice is offline: your message was not delivered");
    line.show(alice.shown());
    bob.say("/msg alice secret");
    let send = line.hear_send();
    assert_eq!(Line::targets(&send), ["alice"]);
    line.delivered(&send);
    bob.expect("<bob -> alice> secret");
    let (status, lines) = bob.finish();
    assert_eq!((status, times(&lines, "! the keys of alice cannot be used: ")), (0, 15), "{lines:#?}");
    assert!(line.hears_no_more_sends());
}

/// PROTOCOL#newest-certificate.
#[test]
fn yesterdays_certificate_gets_no_message_after_a_newer_one() {
    let (alice, now) = (person("alice"), clock::now_ms());
    // The first session key was stolen.
    let (stolen, renewed) = (alice.session.clone(), person("carol").session);
    let certified = |key: &SessionKey, created| {
        alice.shown_with(Some(&alice.identity.certify(&alice.name, key, created)))
    };
    let yesterday = || certified(&stolen, now - 20 * 3_600_000);
    let gets = |bob: &mut Client, line: &Line, key: &SessionKey| {
        bob.say("/msg alice hello");
        let send = line.hear_send();
        let id = send.routing.keys.get(&alice.name).map(WrappedKey::id);
        assert_eq!(id, Some(key.fingerprint().key_id()));
        send
    };
    let stage = Stage::new();
    let (mut bob, line) = stage.log_in(&[&alice]);
    line.show(yesterday());
    let send = gets(&mut bob, &line, &stolen);
    // She has renewed it.
    line.show(certified(&renewed, now));
    line.sent(send.routing.id, vec![], vec![alice.name.clone()]);
    let again = line.hear_send();
    assert_eq!(again.routing.keys.get(&alice.name).map(WrappedKey::id), Some(renewed.fingerprint().key_id()));
    line.delivered(&again);
    bob.expect("<bob -> alice> hello");
    let refuses = |bob: &mut Client, line: &Line, what: &str| {
        for old in [yesterday(), certified(&stolen, now), certified(&renewed, now - 1)] {
            line.show(old);
            // A new login, real or invented, makes the client ask for the keys.
            line.presence(&["alice"], &["alice"]);
            bob.expect("* alice has logged in again");
            bob.say("/msg alice secret");
            let told = bob.expect("! alice has no usable key");
            assert!(told.contains("your message was not delivered"), "{what}: {told}");
        }
        assert_eq!(times(&bob.output.seen, "! alice's clock may have been set back"), 1, "{what}");
        line.show(certified(&renewed, now));
        line.presence(&["alice"], &["alice"]);
        bob.expect("* alice has logged in again");
        let send = gets(bob, line, &renewed);
        line.delivered(&send);
        bob.expect("<bob -> alice> hello");
    };
    refuses(&mut bob, &line, "after a renewal");
    bob.leaves();
    assert!(line.hears_no_more_sends());
    // The memory survives a restart of the client.
    let (mut bob, line) = stage.log_in(&[&alice]);
    refuses(&mut bob, &line, "after a restart");
    let newer = certified(&stolen, now + 1);
    line.show(newer);
    line.presence(&["alice"], &["alice"]);
    bob.expect("* alice has logged in again");
    line.delivered(&gets(&mut bob, &line, &stolen));
    bob.leaves();
    assert!(line.hears_no_more_sends());
}

/// PROTOCOL#mailbox-certificate, PROTOCOL#mail-sender, PROTOCOL#ask-keys.
#[test]
fn mailbox_key_without_a_valid_certificate_gets_no_message() {
    let (alice, mallory) = (person("alice"), person("mallory"));
    let stage = Stage::new();
    let (mut bob, line) = stage.log_in(&[&mallory]);
    let (now, hour) = (clock::now_ms(), 3_600_000);
    let by = |from: &Person, owner: &str, created| {
        alice.shown_absent(from.identity.certify_mailbox(&name(owner), mailbox_key(), created))
    };
    let mut altered = by(&alice, "alice", now);
    altered.created = Some(now + 1);
    let mut moved = by(&alice, "alice", now);
    moved.mailbox_key = Some(Bytes(mallory.session.public().spki()));
    let session = alice.shown();
    let as_mailbox =
        UserKeys { mailbox_key: session.session_key, session_key: None, ..alice.shown_with(None) };
    let as_mailbox = UserKeys { created: session.created, certificate: session.certificate, ..as_mailbox };
    let mut as_session = by(&alice, "alice", now);
    as_session.session_key = as_session.mailbox_key.take();
    let mut both = by(&alice, "alice", now);
    both.session_key = alice.shown().session_key;
    let mut both_as_session = alice.shown();
    both_as_session.mailbox_key = by(&alice, "alice", now).mailbox_key;
    let mut junk = by(&alice, "alice", now);
    junk.mailbox_key = Some(Bytes(vec![0x30; 600]));
    for (what, keys) in [
        ("certified by another", by(&mallory, "alice", now)),
        ("made for another name", by(&alice, "alicia", now)),
        ("expired", by(&alice, "alice", now - 30 * 24 * hour - 60_000)),
        ("from the future", by(&alice, "alice", now + 3 * hour)),
        ("from the end of time", by(&alice, "alice", u64::MAX)),
        ("a date altered", altered),
        ("a certificate moved to another key", moved),
        ("a session certificate as that of a mailbox", as_mailbox),
        ("a mailbox certificate as that of a session", as_session),
        ("both keys, the certificate of the mailbox", both),
        ("both keys, the certificate of the session", both_as_session),
        ("no key", junk),
    ] {
        line.show(keys);
        bob.say("/msg alice secret");
        let told = bob.expect("! alice has no usable key");
        assert!(told.contains("your message was not delivered (\""), "{what}: {told}");
    }
    // With the right one she gets the message.
    line.show(by(&alice, "alice", now - 29 * 24 * hour));
    bob.say("/msg alice secret");
    let send = line.hear_send();
    assert_eq!(
        send.routing.keys.get(&alice.name).map(WrappedKey::id),
        Some(mailbox_key().fingerprint().key_id())
    );
    line.kept(&send);
    bob.expect("* kept for alice until they log in (\"secret\")");
    let (status, lines) = bob.finish();
    assert_eq!((status, times(&lines, "! the keys of alice cannot be used: ")), (0, 12), "{lines:#?}");
    assert!(line.hears_no_more_sends());
}

/// PROTOCOL#mail-sender, PROTOCOL#newest-certificate.
#[test]
fn older_mailbox_key_gets_no_message_after_a_newer_one() {
    let (alice, now, day) = (person("alice"), clock::now_ms(), 24 * 3_600_000);
    let certified = |key: &SessionKey, created| {
        alice.shown_absent(alice.identity.certify_mailbox(&alice.name, key, created))
    };
    let (former, newer) = (mailbox_key(), person("carol").session);
    let stage = Stage::new();
    let (mut bob, line) = stage.log_in(&[]);
    // Session certificates do not count: she may have renewed since she has uploaded the mailbox key.
    for keys in [certified(former, now - 20 * day), alice.shown(), certified(&newer, now - 10 * day)] {
        let is_absent = keys.mailbox_key.is_some();
        line.show(keys);
        line.presence(&["alice"], &["alice"]);
        bob.expect("* alice ");
        bob.say("/msg alice hello");
        let send = line.hear_send();
        if is_absent {
            line.kept(&send)
        } else {
            line.delivered(&send)
        }
        bob.expect("<bob -> alice> hello");
    }
    let refuses = |bob: &mut Client, line: &Line, what: &str| {
        for keys in [certified(former, now - 20 * day), certified(former, now - 10 * day)] {
            line.show(keys);
            line.presence(&["alice"], &["alice"]);
            bob.expect("* alice ");
            bob.say("/msg alice secret");
            let told = bob.expect("! alice has no usable key");
            assert!(told.contains("your message was not delivered"), "{what}: {told}");
        }
        assert_eq!(times(&bob.output.seen, "! alice's clock may have been set back"), 1, "{what}");
    };
    refuses(&mut bob, &line, "in this session");
    bob.leaves();
    assert!(line.hears_no_more_sends());
    // The memory survives a restart of the client.
    let (mut bob, line) = stage.log_in(&[]);
    refuses(&mut bob, &line, "after a restart");
    line.show(certified(&newer, now - 10 * day));
    bob.say("/msg alice hello");
    line.kept(&line.hear_send());
    bob.expect("* kept for alice until they log in (\"hello\")");
    bob.leaves();
    assert!(line.hears_no_more_sends());
}

/// PROTOCOL#mail-sender.
#[test]
fn answer_that_contradicts_the_key_shows_no_success() {
    let (alice, carol) = (person("alice"), person("carol"));
    let stage = Stage::new();
    let (mut bob, line) = stage.log_in(&[&alice]);
    line.show(carol.shown_absent(carol.mailbox(clock::now_ms())));
    bob.say("/msg alice one");
    line.kept(&line.hear_send());
    let why = |text: &str, who: &str| {
        format!(
            "! \"{text}\" may not have arrived: the server's answer contradicts the key of {who} that was used"
        )
    };
    assert_eq!(bob.expect("may not have arrived"), why("one", "alice"));
    bob.say("/msg carol two");
    line.delivered(&line.hear_send());
    assert_eq!(bob.expect("may not have arrived"), why("two", "carol"));
    // In a room, the copy of the other member still counts.
    bob.say("/msg alice,carol three");
    let (one, two) = (line.hear_send(), line.hear_send());
    line.delivered(&one);
    line.delivered(&two);
    bob.expect("<bob -> alice, carol> three");
    let partly =
        "! delivered to 1 of 2: the server's answer contradicts the key of carol that was used (\"three\")";
    assert_eq!(bob.expect("delivered to"), partly);
    // A broadcast is never kept.
    bob.say("four");
    line.kept(&line.hear_send());
    bob.expect("! nobody received your message (\"four\")");
    let (_, lines) = bob.finish();
    assert!(!lines.iter().any(|line| line.contains("kept for") || line.starts_with("<bob> ")), "{lines:#?}");
    assert!(line.hears_no_more_sends());
}

/// PROTOCOL#newest, PROTOCOL#renew.
#[test]
fn invented_newest_costs_one_renewal() {
    let now = clock::now_ms();
    for (newest, is_followed) in [(now + 3_600_000, true), (now + 9_000_000, false), (u64::MAX, false)] {
        let stage = Stage::new();
        let (bob, line) = stage.open();
        line.respond();
        let grant = || granted_with(Key::random(), newest);
        line.say(&grant());
        line.say(&present(["bob"]));
        let bob = bob.ready();
        let Some(ClientMessage::Renew(renewal)) = line.hear() else { panic!("it renews at once") };
        assert_eq!(renewal.created == newest.saturating_add(1), is_followed);
        assert!((now..=now + 7_200_000).contains(&renewal.created), "{}", renewal.created);
        line.say(&grant());
        bob.leaves();
        assert!(matches!(line.hear(), Some(ClientMessage::Logout)), "no second renewal for the same value");
    }
}

/// PROTOCOL#ask-keys.
#[test]
fn unrequested_keys_change_nothing() {
    let (alice, mallory) = (person("alice"), person("mallory"));
    let stage = Stage::new();
    let (mut bob, line) = stage.log_in(&[&alice]);
    let swapped = mallory.called("alice");
    line.say(&ServerMessage::Keys(Keys { keys: vec![swapped.shown(), mallory.shown()], unknown: vec![] }));
    bob.expect("! the server sent keys that were not requested");
    let known = std::fs::read_to_string(bob.data("known_users")).unwrap_or_default();
    assert!(!known.contains("alice") && !known.contains("mallory"), "{known}");
    bob.say("/msg alice secret");
    let send = line.hear_send();
    let wanted = alice.session.fingerprint().key_id();
    assert_eq!(
        send.routing.keys.get(&name("alice")).map(WrappedKey::id),
        Some(wanted),
        "sealed for the requested key"
    );
    line.delivered(&send);
    bob.expect("<bob -> alice> secret");
    bob.leaves();
}

/// PROTOCOL#name-case.
#[test]
fn name_that_differs_only_in_letter_case_is_refused() {
    let (alice, mallory) = (person("alice"), person("mallory"));
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&alice]);
    line.say(&message(&alice, EVERYONE, 1, "the real one", &session));
    bob.expect("<alice> the real one");
    let double = mallory.called("Alice");
    line.show(double.shown());
    line.presence(&["Alice"], &[]);
    bob.expect("* Alice is online");
    line.say(&message(&double, private_to("bob", &session), 1, "it is me", &session));
    let told = bob.output.next().expect("a line");
    assert!(told.starts_with("! the keys of Alice cannot be used: alice is already known"), "{told}");
    assert!(bob.output.next().expect("a line").starts_with(REFUSED));
    bob.ask("/msg Alice secret", "! Alice has no usable key: your message was not delivered");
    assert!(!std::fs::read_to_string(bob.data("known_users")).expect("read").contains("Alice"));
    let (_, lines) = bob.finish();
    assert!(!lines.iter().any(|line| line.contains("it is me")), "{lines:#?}");
    assert!(line.hears_no_more_sends());
}

#[test]
fn answer_about_one_user_reveals_nothing_about_another() {
    let (alice, mallory) = (person("alice"), person("mallory"));
    let mut bare = Bare::new(&person("bob"), &[&alice, &mallory]);
    bare.line("/msg alice hello");
    let keys = vec![mallory.shown(), alice.shown()];
    bare.hear(ServerMessage::Keys(Keys { keys, unknown: vec![] }));
    let known_users = bare.folder.path("known_users");
    let remembered = || std::fs::read_to_string(&known_users).expect("read");
    assert!(!remembered().contains("mallory"), "{}", remembered());
    bare.hear(ServerMessage::Keys(Keys { keys: vec![alice.shown()], unknown: vec![] }));
    assert!(remembered().contains("\"alice\""), "{}", remembered());
}

// ---- rooms

/// PROTOCOL#check-fields, PROTOCOL#check-text.
#[test]
fn room_is_opened_and_left_only_by_messages_of_that_room() {
    let mallory = person("mallory");
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&mallory]);
    let say = |kind, scope, sequence| {
        let header = Header { kind, ..header(&mallory, scope, sequence) };
        line.say(&sealed(&mallory, header, b"", &session));
    };
    for kind in [Kind::RoomOpened, Kind::RoomLeft] {
        for scope in [EVERYONE, private_to("bob", &session)] {
            say(kind, scope.clone(), 1);
        }
    }
    assert!(bob.output.next().expect("a line").starts_with(REFUSED));
    say(Kind::RoomOpened, room_of_bob(&session), 1);
    assert!(bob.output.next().expect("a line").starts_with("* mallory has opened a private room with you"));
    say(Kind::RoomLeft, room_of_bob(&session), 2);
    assert_eq!(bob.output.next().expect("a line"), "* mallory has left the room");
    let (status, lines) = bob.finish();
    assert_eq!((status, times(&lines, REFUSED)), (0, 4), "{lines:#?}");
}

#[test]
fn room_text_is_never_broadcast_after_the_partner_leaves() {
    let (alice, carol) = (person("alice"), person("carol"));
    let stage = Stage::new();
    let (mut bob, line) = stage.log_in(&[&alice, &carol]);
    let refused = |bob: &mut Client, what: &str| {
        bob.ask(what, "! alice is offline: your message was not delivered");
    };
    // The room cannot be opened: the partner has no session.
    line.show(alice.shown_with(None));
    bob.say("/room alice");
    bob.expect(
        "! alice is offline: no room is open; what you type here is sent to alice alone if they come online",
    );
    refused(&mut bob, "secret one");
    refused(&mut bob, "secret two");
    bob.ask("/leave", "* conversation with alice closed; you are talking to everyone");
    // The partner leaves while the room is open.
    line.show(alice.shown());
    bob.say("/room alice");
    let send = line.hear_send();
    assert_eq!((Line::targets(&send), send.envelope.header.scope), (vec!["alice"], Scope::Room));
    line.delivered(&send);
    bob.expect("* you are in a private room with alice");
    line.show(alice.shown_with(None));
    line.presence(&[], &["alice"]);
    bob.expect("* alice has left");
    refused(&mut bob, "secret three");
    // Only /leave returns to everyone.
    bob.ask("/leave", "* conversation with alice closed; you are talking to everyone");
    bob.say("hello everyone");
    let send = line.hear_send();
    assert_eq!((Line::targets(&send), send.envelope.header.scope), (vec!["carol"], Scope::Broadcast));
    line.delivered(&send);
    bob.expect("<bob> hello everyone");
    bob.leaves();
    assert!(line.hears_no_more_sends());
}

/// The list of members that precedes a room message, and the text.
fn listed(names: &[&str], text: &str) -> Vec<u8> {
    let mut bytes = vec![names.len() as u8];
    for name in names {
        bytes.push(name.len() as u8);
        bytes.extend_from_slice(name.as_bytes());
    }
    [&bytes, text.as_bytes()].concat()
}

/// PROTOCOL#check-members.
#[test]
fn wrong_list_of_members_is_refused() {
    let mallory = person("mallory");
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&mallory]);
    let say = |plaintext: &[u8], sequence: u64| {
        let header = header(&mallory, room_of_bob(&session), sequence);
        line.say(&sealed(&mallory, header, plaintext, &session));
    };
    let many: Vec<String> = (0..31).map(|n| format!("a{n:02}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).chain(["bob", "mallory"]).collect();
    let mut endless = listed(&["bob", "mallory"], "hidden");
    endless[0] = 255;
    let wrong = [
        listed(&["alice", "mallory"], "hidden"),
        listed(&["alice", "bob"], "hidden"),
        listed(&["bob"], "hidden"),
        listed(&["mallory"], "hidden"),
        listed(&[], "hidden"),
        listed(&["mallory", "bob"], "hidden"),
        listed(&["bob", "bob", "mallory"], "hidden"),
        listed(&["Bob", "bob", "mallory"], "hidden"),
        listed(&["Carol", "bob", "carol", "mallory"], "hidden"),
        listed(&["Mallory", "bob", "mallory"], "hidden"),
        listed(&["Bob", "mallory"], "hidden"),
        listed(&["bob", "mallory", "x y"], "hidden"),
        listed(&["", "bob", "mallory"], "hidden"),
        listed(&["bob", "mallory", &"x".repeat(33)], "hidden"),
        listed(&many, "hidden"),
        endless,
        b"hidden".to_vec(),
        Vec::new(),
    ];
    for plaintext in &wrong {
        say(plaintext, 1);
    }
    say(&listed(&many[1..], "from the largest room"), 1);
    let shown = bob.expect("from the largest room");
    assert!(
        shown.starts_with("<mallory -> a01, a02, ") && shown.ends_with(", a30, bob> from the largest room")
    );
    let (_, lines) = bob.finish();
    assert!(!lines.iter().any(|line| line.contains("hidden")), "{lines:#?}");
    let refused = "! refused a message that claims to come from mallory: its list of members is invalid";
    assert_eq!(times(&lines, refused), wrong.len() as u64, "{lines:#?}");
}

/// PROTOCOL#members, PROTOCOL#check-signature.
#[test]
fn message_of_one_room_is_never_shown_in_another() {
    let (alice, mallory) = (person("alice"), person("mallory"));
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&alice, &mallory]);
    let seal = |from: &Person, to, names: &[&str], sequence| {
        Sealed::seal(header(from, to, sequence), &from.identity, &listed(names, "a text"))
    };
    let say = |sealed: &Sealed, envelope: Envelope| line.say(&delivery(envelope, sealed.wrap_for(&session)));
    // Each list is a room of its own.
    for (names, sequence) in
        [(&["alice", "bob"][..], 1), (&["alice", "bob", "carol"], 2), (&["alice", "bob", "dave"], 3)]
    {
        let sealed = seal(&alice, room_of_bob(&session), names, sequence);
        say(&sealed, sealed.envelope.clone());
        let others: Vec<&str> = names.iter().copied().filter(|name| *name != "alice").collect();
        assert_eq!(bob.output.next().expect("a line"), format!("<alice -> {}> a text", others.join(", ")));
    }
    // The server moves it out of its room, or gives it to another room's sender.
    let sealed = seal(&alice, room_of_bob(&session), &["alice", "bob", "carol"], 4);
    let mut moved = sealed.envelope.clone();
    moved.header.scope = Scope::Private;
    say(&sealed, moved);
    let mut moved = sealed.envelope.clone();
    (moved.header.from, moved.header.identity) = (name("mallory"), mallory.identity.public().fingerprint());
    say(&sealed, moved);
    // A text of mallory's own that looks like a list is only a text.
    let sealed = seal(&mallory, private_to("bob", &session), &["alice", "bob"], 1);
    say(&sealed, sealed.envelope.clone());
    bob.expect("<mallory -> bob> ");
    let (_, lines) = bob.finish();
    assert_eq!(times(&lines, REFUSED), 2, "{lines:#?}");
    assert_eq!(lines.iter().filter(|line| line.starts_with("<alice") && line.contains("a text")).count(), 3);
}

// ---- answers

/// PROTOCOL#stale.
#[test]
fn session_key_that_stays_stale_is_abandoned() {
    let alice = person("alice");
    let stage = Stage::new();
    let (mut bob, line) = stage.log_in(&[&alice]);
    bob.say("/msg alice hello");
    let answering = thread::spawn(move || {
        let mut tries = 0;
        while let Some(message) = line.hear() {
            if let ClientMessage::EncryptedSend(send) = message {
                tries += 1;
                line.sent(send.routing.id, vec![], vec![name("alice")]);
            }
        }
        tries
    });
    let told = bob.expect("your message was not delivered");
    assert!(told.starts_with("! "), "{told}");
    let (status, lines) = bob.finish();
    assert_eq!(status, 0, "{lines:#?}");
    assert_eq!(answering.join().expect("no panic"), 1, "it is sealed once for one key");
}

/// PROTOCOL#message-id, PROTOCOL#stale.
#[test]
fn server_that_delivers_and_answers_stale_shows_a_text_once() {
    let server = Server::with(&["--no-tls"]);
    let operator = Operator::before(&server);
    let mut alice = operator.client(&Arc::new(Folder::new()), "alice").ready();
    let mut bob = server.client("bob").ready();
    alice.expect("* bob is online");
    operator.messages(|message| match message {
        ServerMessage::Sent(sent) => {
            vec![ServerMessage::Sent(Sent { stale: sent.delivered, delivered: vec![], ..sent })]
        }
        other => vec![other],
    });
    alice.ask("/msg bob only once", "your message was not delivered");
    bob.expect("<alice -> bob> only once");
    alice.leaves();
    let (_, lines) = bob.finish();
    assert_eq!(times(&lines, "only once"), 1, "{lines:#?}");
}

#[test]
fn false_delivery_reports_claim_no_more_than_they_say() {
    let (alice, carol) = (person("alice"), person("carol"));
    let stage = Stage::new();
    let (mut bob, line) = stage.log_in(&[&alice, &carol]);
    line.sent(99, vec![name("alice")], vec![]);
    bob.expect("! the server answered a request that was not made");
    // The answer names a user who was no target, and not the target.
    bob.say("/msg alice one");
    let send = line.hear_send();
    line.sent(send.routing.id, vec![name("zed")], vec![]);
    bob.expect("! alice is offline: your message was not delivered");
    // A repeated answer counts once.
    line.sent(send.routing.id, vec![name("alice")], vec![]);
    // The answer omits one of two targets.
    bob.say("two");
    let send = line.hear_send();
    assert_eq!(Line::targets(&send), ["alice", "carol"]);
    line.sent(send.routing.id, vec![name("alice"), name("alice")], vec![]);
    bob.expect("<bob> two");
    bob.expect("! carol is offline: carol did not receive \"two\"");
    // A name is in both lists.
    bob.say("/msg alice three");
    let send = line.hear_send();
    line.sent(send.routing.id, vec![name("alice")], vec![name("alice")]);
    bob.expect("<bob -> alice> three");
    let (status, lines) = bob.finish();
    assert_eq!(status, 0);
    assert!(!lines.iter().any(|line| line.contains("> one")), "{lines:#?}");
    assert_eq!(times(&lines, "! the server answered a request that was not made"), 2);
    assert!(line.hears_no_more_sends());
}

#[test]
fn unanswered_message_delays_the_exit_by_120_s_at_most() {
    let (bob, alice) = (person("bob"), person("alice"));
    let mut bare = Bare::new(&bob, &[&alice]);
    bare.line("/msg alice hello");
    let effects = bare.hear(ServerMessage::Keys(Keys { keys: vec![alice.shown()], unknown: vec![] }));
    let is_send =
        |effect: &Effect| matches!(effect, Effect::Do(Action::Send(ClientMessage::EncryptedSend(_))));
    assert!(effects.iter().any(is_send), "the message is in flight");
    let status = |effects: &[Effect]| {
        effects
            .iter()
            .find_map(|effect| if let Effect::Quit(exit) = effect { Some(exit.status) } else { None })
    };
    assert_eq!(status(&bare.take(Event::EndOfInput)), None, "the client waits for sent messages");
    assert_eq!(status(&bare.wait(119)), None);
    let effects = bare.wait(1);
    let is_reported = effects.iter().any(|effect| match effect {
        Effect::Show(Display::Entry(entry)) => entry.text.contains("not acknowledged"),
        _ => false,
    });
    assert!(is_reported && status(&effects) == Some(1));
}

/// PROTOCOL#two-clocks.
#[test]
fn clock_that_differs_too_much_ends_the_login() {
    let hour = 3_600_000;
    for (hours, said) in [
        (-3, "your clock is 3 hours ahead of the server's"),
        (25, "your clock is 25 hours behind the server's"),
        (1, ""),
    ] {
        let stage = Stage::new();
        let (bob, line) = stage.open();
        line.respond();
        let expires = clock::now_ms().saturating_add_signed((24 + hours) * hour);
        line.say(&ServerMessage::Session(SessionGrant { token: Key::random(), expires, newest: 0 }));
        if said.is_empty() {
            line.say(&present(["bob"]));
            bob.ready();
        } else {
            bob.ends(1, said);
        }
    }
}

/// PROTOCOL#renew, PROTOCOL#latest-token.
#[test]
fn unrequested_session_message_does_not_replace_the_token() {
    let stage = Stage::new();
    let (bob, line) = stage.open();
    line.respond();
    let token = Key::random();
    line.say(&granted_with(token.duplicate(), 0));
    line.say(&present(["bob"]));
    let mut bob = bob.ready();
    line.say(&granted());
    bob.expect("! unexpected message from the server");
    line.close();
    let line = stage.next();
    assert!(matches!(line.hear(), Some(ClientMessage::ResumeRequest(_))));
    let challenge = ResumeChallenge { version: VERSION, nonce: Fixed(random()) };
    let nonce = Fixed(challenge.nonce.0);
    line.say(&ServerMessage::ResumeChallenge(challenge));
    let Some(ClientMessage::Resume(answer)) = line.hear() else { panic!("no answer") };
    let challenge = ResumeChallenge { version: VERSION, nonce };
    let expected = auth::resume(&name("bob"), &challenge, &[], &token, answer.received);
    assert!(answer.proof.0 == expected.proof.0, "proven with the token of the login");
}

/// PROTOCOL#notices.
#[test]
fn expired_certificate_warns_once_not_at_each_broadcast() {
    let (alice, carol) = (person("alice"), person("carol"));
    let stage = Stage::new();
    let (mut bob, line) = stage.log_in(&[&alice, &carol]);
    let expired = alice.identity.certify(&alice.name, &alice.session, clock::now_ms() - 27 * 3_600_000);
    line.show(alice.shown_with(Some(&expired)));
    let broadcast = |bob: &mut Client, text: &str| {
        bob.say(text);
        let send = line.hear_send();
        assert_eq!(Line::targets(&send), ["carol"]);
        line.delivered(&send);
        bob.expect(&format!("<bob> {text}"));
    };
    for n in 0..5 {
        broadcast(&mut bob, &format!("hello {n}"));
    }
    bob.say("/ignore alice");
    for n in 5..10 {
        broadcast(&mut bob, &format!("hello {n}"));
    }
    let (status, lines) = bob.finish();
    assert_eq!(status, 0);
    assert_eq!(times(&lines, "alice did not receive"), 5, "{lines:#?}");
    for notice in ["! the keys of alice cannot be used", "alice did not receive"] {
        assert_eq!(lines.iter().filter(|line| line.contains(notice)).count(), 2, "{lines:#?}");
    }
}

/// PROTOCOL#notices.
#[test]
fn hostile_server_cannot_flood_the_screen() {
    let alice = person("alice");
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&alice]);
    for n in 0..2000 {
        let (code, message) = ("odd".into(), format!("problem number {n}"));
        line.say(&ServerMessage::Error(Failure { code, message, id: None, retry_after: None, newest: None }));
        line.bytes(b"not JSON\n");
        line.presence(&[&format!("user-{n}")], &[]);
        line.presence(&[], &[&format!("user-{n}")]);
        line.bytes(b"{\"type\":\"poll\"}\n");
    }
    line.say(&message(&alice, EVERYONE, 1, "undisturbed", &session));
    bob.expect("<alice> undisturbed");
    let lines = bob.output.seen.len();
    assert!(lines <= 10 + 60 + 5, "{lines} lines: {:#?}", bob.output.seen);
    let (status, lines) = bob.finish();
    assert_eq!(status, 0);
    assert_eq!(times(&lines, "an invalid message"), 2000);
    assert!(
        lines.iter().any(|line| line.contains("more problems with the server were not shown")),
        "{lines:#?}"
    );
    assert_eq!(times(&lines, "this version does not know"), 1);
    assert_harmless(&lines);
}

/// PROTOCOL#later-versions.
#[test]
fn later_kinds_and_scopes_are_counted_but_not_shown() {
    let alice = person("alice");
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&alice]);
    let word = |text: &str| Word::new(text).expect("short");
    let bob_alone = || Some((name("bob"), session.fingerprint()));
    let later = |kind, scope, sequence| {
        let header = Header { kind, ..header(&alice, scope, sequence) };
        line.say(&sealed(&alice, header, b"for later versions", &session));
    };
    line.say(&message(&alice, private_to("bob", &session), 1, "one", &session));
    later(Kind::Later(word("poll")), (Scope::Private, bob_alone()), 2);
    later(Kind::Message, (Scope::Later(word("channel")), bob_alone()), 3);
    later(Kind::Later(word("poll")), (Scope::Later(word("channel")), None), 1);
    line.say(&message(&alice, private_to("bob", &session), 4, "four", &session));
    bob.expect("<alice -> bob> four");
    line.say(&message(&alice, EVERYONE, 2, "two", &session));
    bob.expect("<alice> two");
    let (status, lines) = bob.finish();
    let shown: Vec<_> = lines.iter().filter(|line| !line.starts_with("* ")).collect();
    assert_eq!(shown, ["<alice -> bob> one", "<alice -> bob> four", "<alice> two"]);
    assert_eq!(status, 0);
    assert_eq!(times(&lines, "* alice has sent something that this version does not know"), 1);
}

#[test]
fn client_pauses_as_long_as_any_error_requests() {
    for code in [ErrorCode::ServerFull, ErrorCode::TooManyRequests, ErrorCode::LoginFailed] {
        let stage = Stage::new();
        let (bob, line) = stage.log_in(&[]);
        line.close();
        let line = stage.resuming();
        line.say(&failure(code, "later", Some(3)));
        let refused = Instant::now();
        stage.resuming().say(&ServerMessage::Resumed(Received { received: 0 }));
        assert!(refused.elapsed() >= Duration::from_secs(3), "{code:?}: {:?}", refused.elapsed());
        drop(bob);
    }
}

// ---- unread output

impl Stage {
    /// Bob's client, logged in, whose output nobody reads; and the path of the pipe for its output.
    fn stuck(&self, alice: &Person) -> (Client, Line, PathBuf) {
        let port = self.port();
        // The shell holds both ends, so the pipe stays open although nobody reads.
        let client = Client::after(
            "mkfifo out; exec 3<>out >out",
            self.home.clone(),
            port,
            "bob",
            &["--no-tls", "--no-mail"],
        );
        let mut line = self.next();
        line.admit(BOBS);
        line.show(alice.shown());
        line.say(&present(["bob", alice.name.as_str()]));
        (client, line, self.home.path("out"))
    }

    /// Many long messages from alice.
    fn flood(line: &Line, alice: &Person) {
        let session = line.bob();
        for n in 1..=FLOOD {
            let text = format!("number {n} {}", "x".repeat(30_000));
            line.say(&message(alice, private_to("bob", session), n, &text, session));
        }
    }
}

/// 2 MB: more than the pipe and the queue before it hold.
const FLOOD: u64 = 70;

#[test]
fn unread_output_loses_no_line_and_delays_no_pong() {
    let (stage, alice) = (Stage::new(), person("alice"));
    let (client, line, out) = stage.stuck(&alice);
    Stage::flood(&line, &alice);
    for _ in 0..3 {
        line.say(&ServerMessage::Ping);
        assert!(matches!(line.hear(), Some(ClientMessage::Pong)));
    }
    let mut output = Output::of(std::fs::File::open(out).expect("the pipe"));
    output.expect(&format!("> number {FLOOD} "));
    let numbers = output.seen.iter().filter_map(|line| line.strip_prefix("<alice -> bob> number "));
    let numbers: Vec<_> = numbers.filter_map(|line| line.split(' ').next()?.parse::<u64>().ok()).collect();
    assert!(numbers.iter().copied().eq(1..=FLOOD), "{numbers:?}");
    drop(client);
}

#[test]
fn first_sigterm_logs_out_even_when_nobody_reads() {
    let (stage, alice) = (Stage::new(), person("alice"));
    let (mut client, line, _out) = stage.stuck(&alice);
    Stage::flood(&line, &alice);
    line.say(&ServerMessage::Ping);
    assert!(matches!(line.hear(), Some(ClientMessage::Pong)));
    client.signal("-TERM");
    assert!(matches!(line.hear(), Some(ClientMessage::Logout)));
    assert_eq!(client.child.wait().expect("it ends").code(), Some(1));
}

// ---- lines that are not messages

/// PROTOCOL#ping.
#[test]
fn nonsense_from_the_server_is_reported_and_harmless() {
    let alice = person("alice");
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&alice]);
    let deep = format!("{{\"type\":\"ping\",\"x\":{}{}}}\n", "[".repeat(9000), "]".repeat(9000));
    let crowded = format!(
        "{{\"type\":\"presence\",\"more\":false,\"full\":false,\"left\":[],\"joined\":[{}\"a\"]}}\n",
        "3,".repeat(300_000)
    );
    for nonsense in [
        &b"not JSON\n"[..],
        b"\n",
        b"{}\n",
        b"[]\n",
        b"{\"type\":\"error\"}\n",
        b"{\"type\":\"sent\",\"id\":-1,\"delivered\":[],\"offline\":[],\"stale\":[]}\n",
        b"{\"type\":\"sent\",\"id\":1e99,\"delivered\":[],\"offline\":[],\"stale\":[]}\n",
        b"{\"type\":\"ping\xff\"}\n",
        b"\0\0\0\0\x02\xff\n",
        b"\x15\x03\x03\x00\x02\x02\x28\n",
        b"{\"type\":\"presence\",\"more\":false,\"full\":false,\"joined\":[\"a\\u001b[2Jb\"],\"left\":[]}\n",
        b"{\"type\":\"presence\",\"more\":false,\"full\":false,\"joined\":[\"../../etc/passwd\"],\"left\":[]}\n",
        b"{\"type\":\"presence\",\"more\":false,\"full\":false,\"joined\":[\"alice\\n<alice> hi\"],\"left\":[]}\n",
        b"{\"type\":\"presence\",\"more\":false,\"full\":false,\"joined\":[\"al\xd1\x96ce\"],\"left\":[]}\n",
        b"{\"type\":\"encrypted_message\",\"from\":\"alice\"}\n",
        deep.as_bytes(),
        crowded.as_bytes(),
    ] {
        line.bytes(nonsense);
    }
    let told = bob.output.next().expect("a line");
    assert!(told.starts_with("! the server sent an invalid message: "), "{told}");
    for out_of_place in [ServerMessage::Registered, Line::challenge(1), granted()] {
        line.say(&out_of_place);
    }
    assert_eq!(bob.output.next().expect("a line"), "! unexpected message from the server");
    line.say(&ServerMessage::Pong);
    line.say(&ServerMessage::Ping);
    assert!(matches!(line.hear(), Some(ClientMessage::Pong)));
    line.say(&message(&alice, EVERYONE, 1, "undisturbed", &session));
    assert_eq!(bob.output.next().expect("a line"), "<alice> undisturbed");
    let (status, lines) = bob.finish();
    assert_eq!(status, 0);
    assert_eq!(times(&lines, "! the server sent an invalid message: "), 17, "{lines:#?}");
    assert_eq!(times(&lines, "! unexpected message from the server"), 3, "{lines:#?}");
    assert_harmless(&lines);
}

/// PROTOCOL#harmless.
#[test]
fn server_texts_stay_one_harmless_line() {
    let stage = Stage::new();
    let (mut bob, line) = stage.log_in(&[]);
    let mean = "x\n<alice> I owe you\r\u{1b}[2J\u{1b}]0;t\u{7}\u{9b}31m\u{202e}evil\u{2066}\u{0}";
    let failure = |code: &str, id| {
        let (code, message) = (code.into(), mean.into());
        ServerMessage::Error(Failure {
            code,
            message,
            id,
            retry_after: Some(u64::MAX),
            newest: Some(u64::MAX),
        })
    };
    line.say(&failure("server_error", None));
    line.say(&failure("\u{1b}[2J\n", None));
    line.say(&failure("bad_targets", Some(7)));
    line.presence(&["alice"], &[]);
    bob.expect("* alice is online");
    bob.say("/msg alice hello");
    // The server's answer omits the name.
    bob.expect("! there is no account named alice: your message was not delivered");
    line.show(person("alice").shown());
    bob.say("/msg alice hello again");
    let send = line.hear_send();
    line.say(&failure(ErrorCode::BadTargets.as_str(), Some(send.routing.id)));
    bob.expect("! the server refused your message: ");
    line.say(&failure(ErrorCode::SignedInElsewhere.as_str(), None));
    assert!(bob.expect("elsewhere").starts_with("! "));
    let (status, lines) = bob.finish();
    assert_eq!(status, 1);
    assert_harmless(&lines);
}

#[test]
fn crowd_that_joins_and_leaves_is_reported_as_a_number() {
    let stage = Stage::new();
    let (mut bob, line) = stage.log_in(&[]);
    let crowd: Vec<Username> = (0..4000).map(|n| name(&format!("user-{n}"))).collect();
    let presence = |joined: &[Username], left: &[Username], full, more| {
        let (joined, left) = (joined.to_vec(), left.to_vec());
        ServerMessage::Presence(Presence { more, full, joined, left })
    };
    line.say(&presence(&crowd, &[], false, false));
    bob.expect("* 4000 users have come online; 4001 are online now");
    line.say(&presence(&crowd, &[], false, false));
    line.say(&presence(&[], &crowd, false, false));
    bob.expect("* 4000 users have left; 1 are online now");
    for n in 0..60 {
        let names: Vec<Username> = (0..4000).map(|m| name(&format!("u{n}-{m}"))).collect();
        line.say(&presence(&names, &[], false, false));
    }
    // The list of online users is cut, too.
    bob.say("/users");
    let told = bob.expect(" online: ");
    assert!(told.len() < 20_000, "{} bytes", told.len());
    bob.leaves();
}

/// PROTOCOL#line-length.
#[test]
fn endless_line_ends_the_connection() {
    let stage = Stage::new();
    let (mut bob, line) = stage.log_in(&[]);
    line.bytes(&vec![b'x'; MAX_LINE + 100_000]);
    bob.expect("! connection lost: it sent an overlong line");
    assert_eq!(bob.finish().0, 1);
}

#[test]
fn invented_senders_cannot_fill_the_memory() {
    let mallory = person("mallory");
    let (_stage, mut bob, line, session) = Stage::logged_in(&[&mallory]);
    line.say(&message(&mallory, EVERYONE, 1, "the first", &session));
    bob.expect("<mallory> the first");
    let sealed = Sealed::seal(header(&mallory, EVERYONE, 1), &mallory.identity, b"");
    let wrapped = sealed.wrap_for(&session);
    let mut envelope = sealed.envelope.clone();
    envelope.body.ciphertext = Bytes(vec![0; MAX_CIPHERTEXT]);
    // The server shows no key of any of them, so each message waits for one.
    for n in 0..2500 {
        envelope.header.from = name(&format!("stranger-{n}"));
        line.say(&delivery(envelope.clone(), wrapped));
    }
    line.say(&message(&mallory, EVERYONE, 2, "the last", &session));
    bob.expect("<mallory> the last");
    let peak = memory_of(bob.child.id(), "VmHWM:") / 1024;
    assert!(peak < 60_000, "{peak} kB for 80 MB of messages from nobody");
}

#[test]
fn server_cannot_make_a_client_remember_endless_users() {
    let (bob, mallory) = (person("bob"), person("mallory"));
    let mut bare = Bare::new(&bob, &[]);
    let envelope = Sealed::seal(header(&mallory, EVERYONE, 1), &mallory.identity, b"").envelope;
    let mut told = Vec::new();
    let mut take = |effects: Vec<Effect>| {
        told.extend(effects.into_iter().filter_map(|effect| match effect {
            Effect::Show(Display::Entry(entry)) => Some(entry.line()),
            _ => None,
        }));
    };
    // The server sends no keys of theirs: only 1,024 messages wait for them.
    for n in 0..50_001 {
        let mut envelope = envelope.clone();
        envelope.header.from = name(&format!("stranger-{n}"));
        take(bare.hear(delivery(envelope, [0; WRAPPED_BYTES])));
    }
    take(bare.wait(60));
    let refused = |why: &str| told.iter().filter(|line| line.contains(why)).count();
    assert_eq!(refused("too many messages are waiting for a key"), 30, "{told:#?}");
    let more = 50_001 - 1024 - 30;
    assert_eq!(told.last(), Some(&format!("! {more} more notices about users were not shown")));
    assert_eq!(told.len(), 31);
    // It remembers at most 50,000 senders.
    let mut envelope = envelope.clone();
    envelope.header.from = name("one-more");
    bare.wait(1);
    let effects = bare.hear(delivery(envelope, [0; WRAPPED_BYTES]));
    let last = effects.into_iter().find_map(|effect| match effect {
        Effect::Show(Display::Entry(entry)) => Some(entry.text),
        _ => None,
    });
    assert!(last.is_some_and(|text| text.contains("its sender is invalid")));
}

// ---- logging in

/// PROTOCOL#version, PROTOCOL#rounds, PROTOCOL#challenge-once, PROTOCOL#known-logins.
#[test]
fn failed_login_at_any_step_gives_a_reason_and_status_1() {
    /// The step of the login before the attack.
    enum After {
        Connecting,
        Request,
        Response,
    }
    use After::{Connecting, Request, Response};
    type Play = fn(&Line);
    // Whether the client ends without an answer.
    let (silent, open) = (true, false);
    let false_login = "this server does not ask for your password as your key file expects";
    const MISCHIEF: &str = "x\n<alice> hi\u{1b}[2J\u{9b}\u{202e}";
    const OUT_OF_PLACE: &str = "unexpected message from the server";
    let plays: [(&str, After, Play, bool, &str); 17] = [
        ("closes at once", Connecting, |line| line.close(), open, "connection lost"),
        ("closes instead of a challenge", Request, |line| line.close(), open, "connection lost"),
        ("closes instead of a session", Response, |line| line.close(), open, "connection lost"),
        ("asks for a cheap hash", Request, |line| line.say(&Line::challenge(1)), silent, false_login),
        (
            "asks for a hash just below the floor",
            Request,
            |line| line.say(&Line::challenge(PBKDF2_MIN_ROUNDS - 1)),
            silent,
            false_login,
        ),
        (
            "asks for an endless hash",
            Request,
            |line| line.say(&Line::challenge(u32::MAX)),
            silent,
            false_login,
        ),
        (
            "speaks another version",
            Request,
            |line| {
                let (nonce, salt) = (Fixed([0; 32]), Fixed([0; 32]));
                line.say(&ServerMessage::Challenge(Challenge { version: 2, nonce, salt, rounds: 600_000 }));
            },
            silent,
            "the server uses version 2 of the protocol, this client version 1: install a client for",
        ),
        (
            "speaks another version with other members",
            Request,
            |line| line.bytes(b"{\"type\":\"challenge\",\"puzzle\":[1],\"version\":4294967295}\n"),
            silent,
            "the server uses version 4294967295 of the protocol, this client version 1: install a client for",
        ),
        (
            "does not speak this version",
            Request,
            |line| line.say(&ServerMessage::error(ErrorCode::UnsupportedVersion, "no")),
            open,
            "the server uses another version of the protocol, this client version 1: install a client for",
        ),
        ("grants a session without a proof", Request, |line| line.say(&granted()), silent, OUT_OF_PLACE),
        (
            "delivers before the login",
            Request,
            |line| {
                let alice = person("alice");
                line.say(&message(&alice, EVERYONE, 1, "too early", alice.session.public()));
            },
            silent,
            OUT_OF_PLACE,
        ),
        ("challenges twice", Response, |line| line.say(&Line::challenge(BOBS.rounds)), open, OUT_OF_PLACE),
        (
            "speaks no JSON",
            Request,
            |line| line.bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            open,
            OUT_OF_PLACE,
        ),
        (
            "never ends its line",
            Request,
            |line| line.bytes(&vec![b' '; MAX_LINE + 100_000]),
            open,
            OUT_OF_PLACE,
        ),
        (
            "answers with mischief",
            Request,
            |line| line.say(&failure(ErrorCode::ServerFull, MISCHIEF, Some(u64::MAX))),
            open,
            "the server says: ",
        ),
        (
            "locks for ever",
            Response,
            |line| line.say(&failure(ErrorCode::Locked, "locked", Some(u64::MAX))),
            open,
            "too many failed logins as bob",
        ),
        (
            "refuses",
            Response,
            |line| line.say(&ServerMessage::error(ErrorCode::LoginFailed, "no")),
            open,
            "login failed: the name or the password is wrong",
        ),
    ];
    let stage = Stage::new();
    for (what, after, play, is_silent, reason) in plays {
        let (bob, line) = stage.open();
        match after {
            Connecting => {}
            Request => assert!(matches!(line.hear(), Some(ClientMessage::LoginRequest(_)))),
            Response => line.respond(),
        }
        play(&line);
        assert!(!is_silent || line.hear().is_none(), "{what}: nothing is answered");
        let (status, lines) = bob.finish();
        assert_eq!(status, 1, "{what}: {lines:#?}");
        assert_eq!(lines.len(), 1, "{what}: {lines:#?}");
        assert!(lines[0].starts_with("! ") && lines[0].contains(reason), "{what}: {lines:#?}");
        assert_harmless(&lines);
    }
}

/// Challenges of a server that attacks all passwords with one dictionary: a common salt, a cheap hash, a slow hash.
const FALSE: [Login; 3] = [
    Login { salt: Fixed([8; 32]), rounds: BOBS.rounds },
    Login { rounds: PBKDF2_MIN_ROUNDS, ..BOBS },
    Login { rounds: 10_000_000, ..BOBS },
];
const UNEXPECTED: &str =
    "this server does not ask for your password as your key file expects, so nothing was sent";

/// Ends the client after its login: before that, it may still change its key file.
fn ends_after_login(mut client: Client) {
    client.expect("* logged in as bob");
}

/// PROTOCOL#known-logins.
#[test]
fn server_with_another_salt_or_fewer_rounds_gets_no_response() {
    let stage = Stage::new();
    let before = std::fs::read(stage.key_file()).expect("there");
    for login in FALSE {
        let (bob, line) = stage.open();
        line.ask(login);
        assert!(line.hear().is_none(), "nothing is answered");
        let lines = bob.ends(1, UNEXPECTED);
        let path = stage.key_file().display().to_string();
        assert!(lines.concat().contains(&format!("copy the key file from there to {path}")), "{lines:?}");
    }
    let (mut bob, _line) = stage.log_in(&[]);
    for login in FALSE {
        bob.say(&format!("/passwd {}", stage.home.password_file("another one").display()));
        let line = stage.next();
        line.ask(login);
        assert!(line.hear().is_none(), "nothing is answered");
        bob.expect(&format!("! your password was not changed: {UNEXPECTED}"));
    }
    assert!(std::fs::read(stage.key_file()).expect("there") == before);
    assert!(!stage.key_file().with_extension("key.new").exists());
}

/// PROTOCOL#known-logins.
#[test]
fn key_file_without_logins_accepts_one_login_and_keeps_it() {
    let stage = Stage::without_logins();
    for rounds in [PBKDF2_MIN_ROUNDS - 1, 10_000_001] {
        let (bob, line) = stage.open();
        line.ask(Login { rounds, ..BOBS });
        assert!(line.hear().is_none(), "nothing is answered");
        let _lines = bob.ends(1, "the server asks for something unsafe");
    }
    // A refused login does not add the list.
    let (bob, line) = stage.open();
    line.ask(FALSE[0]);
    assert!(matches!(line.hear(), Some(ClientMessage::ChallengeResponse(_))));
    line.say(&ServerMessage::error(ErrorCode::LoginFailed, "no"));
    assert!(bob.finish().0 == 1 && stage.logins().is_empty());
    // If the file cannot be written, the client warns, and the next login tries again.
    let folder = std::fs::File::open(stage.key_file().parent().expect("a folder")).expect("opens");
    folder.try_lock().expect("free");
    let (mut bob, mut line) = stage.open();
    line.admit(BOBS);
    bob.expect("! WARNING: your key file cannot be written");
    drop((bob, folder));
    assert!(stage.logins().is_empty());
    let (mut bob, mut line) = stage.open();
    line.admit(BOBS);
    let path = stage.key_file().display().to_string();
    bob.expect(&format!("! {path} now records how this server asks for your password"));
    assert_eq!(stage.logins(), [BOBS]);
    drop(bob);
    let (bob, line) = stage.open();
    line.ask(FALSE[1]);
    assert!(line.hear().is_none(), "nothing is answered");
    assert_eq!(bob.finish().0, 1);
}

/// PROTOCOL#known-logins.
#[test]
fn damaged_list_of_logins_stops_the_client_before_connecting() {
    let stage = Stage::new();
    let text = std::fs::read_to_string(stage.key_file()).expect("there");
    let start = text.find("\"logins\":").expect("the list");
    let list = &text[start..=start + text[start..].find(']').expect("its end")];
    let login = &list["\"logins\":[".len()..list.len() - 1];
    let other = |n: u8| login.replace(&Text::write(&BOBS.salt).into_owned(), &Text::write(&Fixed([n; 32])));
    let nine = (20..29).map(other).collect::<Vec<_>>().join(",");
    let twice = login.replace("100001", "600000");
    let damaged: [&str; 16] = [
        "null",
        "[]",
        "{}",
        "\"\"",
        "[null]",
        "[[]]",
        &"[".repeat(4000),
        &format!("[{nine}]"),
        &format!("[{login},{login}]"),
        &format!("[{login},{twice}]"),
        &format!("[{}]", login.replace("100001", "99999")),
        &format!("[{}]", login.replace("100001", "10000001")),
        &format!("[{}]", login.replace("100001", "1e5")),
        &format!("[{}]", login.replace("100001", "\"100001\"")),
        &format!("[{}]", login.replace("BwcH", "Bwc")),
        &format!("[{}]", login.replace("\"salt\"", "\"salz\"")),
    ];
    for damaged in damaged {
        let edited = text.replace(list, &format!("\"logins\":{damaged}"));
        std::fs::write(stage.key_file(), &edited).expect("written");
        let port = stage.port();
        for arguments in [&[][..], &["--register"]] {
            let (status, lines) = Client::within(stage.home.clone(), port, "bob", false, arguments).finish();
            assert!(status == 1 && lines.len() == 1, "{damaged}: {lines:?}");
            let said = ["the member \"logins\" of the key file is damaged", "the key file is damaged"];
            assert!(lines[0].contains(said[usize::from(damaged.len() == 4000)]), "{damaged}: {lines:?}");
        }
        assert_eq!(std::fs::read_to_string(stage.key_file()).expect("there"), edited);
    }
    // The client did not connect.
    stage.listener.set_nonblocking(true).expect("set");
    assert!(stage.listener.accept().is_err());
}

/// PROTOCOL#known-logins.
#[test]
fn registration_is_in_the_key_file_before_it_is_sent() {
    let stage = Stage::new();
    let register = |home: &Arc<Folder>| {
        let (client, line) = stage.start(home, &["--register"]);
        let Some(ClientMessage::Register(request)) = line.hear() else { panic!("no registration") };
        (client, line, Login { salt: request.salt, rounds: request.rounds })
    };
    let logins = |home: &Arc<Folder>| {
        let text = std::fs::read(home.path(DATA).join("keys/bob_private.key"));
        text.ok().map(|text| key_file::logins(&text).expect("a list"))
    };
    let empty = Arc::new(Folder::new());
    for (home, before) in [(&stage.home, Some(vec![BOBS])), (&empty, None)] {
        let with = |login| before.iter().flatten().copied().chain([login]).collect::<Vec<_>>();
        // A refused registration leaves the list as it was.
        let (client, line, login) = register(home);
        assert_eq!(logins(home), Some(with(login)));
        line.say(&ServerMessage::error(ErrorCode::RegistrationClosed, "no"));
        assert!(client.finish().0 == 1 && logins(home) == before);
        // Without an answer, the account may exist.
        let (client, line, login) = register(home);
        line.close();
        assert!(client.finish().0 == 1 && logins(home) == Some(with(login)));
        let (client, mut line) = stage.start(home, &[]);
        line.admit(login);
        ends_after_login(client);
        let used = logins(home).expect("a list");
        assert!(used[0] == login && used.len() == with(login).len());
        // After a registration, the client still refuses a challenge that it did not choose.
        let (client, line, login) = register(home);
        line.say(&ServerMessage::Registered);
        line.ask(FALSE[0]);
        assert!(line.hear().is_none(), "nothing is answered");
        let (status, lines) = client.finish();
        assert!(
            status == 1 && lines.concat().contains(&format!("but the login failed: {UNEXPECTED}")),
            "{lines:?}"
        );
        assert!(logins(home).is_some_and(|logins| logins.contains(&login)));
    }
}

/// PROTOCOL#logins.
#[test]
fn failed_registration_leaves_a_file_without_list_as_it_is() {
    let stage = Stage::without_logins();
    let (client, line) = stage.start(&stage.home, &["--register"]);
    assert!(matches!(line.hear(), Some(ClientMessage::Register(_))));
    line.close();
    assert!(client.finish().0 == 1 && stage.logins().is_empty());
    let (client, mut line) = stage.open();
    line.admit(BOBS);
    ends_after_login(client);
    assert_eq!(stage.logins(), [BOBS]);
}

/// PROTOCOL#password-file, PROTOCOL#password-files.
#[test]
fn interrupted_passwd_logs_in_with_the_password_in_force() {
    const OTHER: Login = Login { salt: Fixed([9; 32]), rounds: 600_000 };
    let new = "another one";
    // Also a change to the same password: both files open, and only their lists differ.
    for (new, is_changed) in [(new, false), (new, true), (PASSWORD, false), (PASSWORD, true)] {
        let stage = Stage::new();
        stage.list(&[BOBS, OTHER]);
        let successor = stage.key_file().with_extension("key.new");
        let before = std::fs::read(stage.key_file()).expect("there");
        let (mut bob, line) = stage.log_in(&[]);
        bob.say(&format!("/passwd {}", stage.home.password_file(new).display()));
        let change = stage.next();
        change.ask(BOBS);
        let Some(ClientMessage::PasswordChange(request)) = change.hear() else { panic!("no change") };
        let chosen = Login { salt: request.salt, rounds: request.rounds };
        let after = std::fs::read(&successor).expect("on disk before the server needs it");
        assert_eq!(key_file::logins(&after).ok(), Some(vec![chosen, OTHER]));
        assert!(std::fs::read(stage.key_file()).expect("there") == before);
        let _ = bob.child.kill();
        bob.child.wait().expect("it ends");
        drop((line, change));
        let (expected, outdated) = if is_changed { (chosen, BOBS) } else { (BOBS, chosen) };
        let log_in = |password: &str| {
            let path = stage.home.password_file(password).display().to_string();
            stage.start(&stage.home, &["--password-file", &path])
        };
        // The other password is not tried, and the client names the right one; a false server gets no response.
        if new != PASSWORD {
            let (client, line) = log_in(if is_changed { PASSWORD } else { new });
            line.ask(expected);
            assert!(line.hear().is_none(), "nothing is answered");
            let lines = client.finish().1.concat();
            assert!(lines.contains("the server expects the other of the two passwords"), "{lines}");
        }
        let right = if is_changed { new } else { PASSWORD };
        let (client, line) = log_in(right);
        line.ask(FALSE[0]);
        assert!(line.hear().is_none() && client.finish().0 == 1 && successor.exists());
        let (client, mut line) = log_in(right);
        line.admit(expected);
        ends_after_login(client);
        assert!(!successor.exists());
        let text = std::fs::read(stage.key_file()).expect("there");
        assert!(text == if is_changed { after } else { before });
        let logins = key_file::logins(&text).expect("a list");
        assert!(logins == [expected, OTHER] && !logins.contains(&outdated));
    }
}

#[test]
fn ended_connection_is_reported_with_undelivered_messages() {
    let alice = person("alice");
    let stage = Stage::new();
    let (mut bob, line) = stage.log_in(&[&alice]);
    bob.say("/msg alice hello");
    let _ = line.hear_send();
    line.close();
    bob.end();
    bob.expect("* leaving: 1 message is not acknowledged yet");
    bob.signal("-TERM");
    let (status, lines) = bob.finish();
    assert_eq!(status, 1);
    let told = |part: &str| lines.iter().any(|line| line.starts_with("! ") && line.contains(part));
    assert!(told("connection lost") && told("1 message of yours was not acknowledged"), "{lines:#?}");
}

// ---- resumed and lost sessions

/// The client reports once why it ended, with status 1.
fn ended_with(bob: Client, part: &str) {
    let (status, lines) = bob.finish();
    let told = lines.iter().filter(|line| line.starts_with("! ") && line.contains(part)).count();
    assert_eq!((status, told), (1, 1), "{lines:#?}");
    assert_harmless(&lines);
}

/// PROTOCOL#ack-true.
#[test]
fn server_that_acknowledges_unsent_frames_is_dropped() {
    for count in [1, 1000, u64::MAX] {
        let stage = Stage::new();
        let (mut bob, line) = stage.log_in(&[]);
        line.close();
        let line = stage.resuming();
        line.say(&ServerMessage::Resumed(Received { received: count }));
        bob.expect("it sent an invalid acknowledgement");
        ended_with(bob, "it sent an invalid acknowledgement");
        let (mut bob, line) = stage.log_in(&[]);
        line.say(&ServerMessage::Ack(Received { received: count }));
        bob.expect("it acknowledged frames that were never sent");
        ended_with(bob, "it acknowledged frames that were never sent");
    }
}

/// PROTOCOL#ack-true.
#[test]
fn server_that_lowers_its_acknowledgement_is_dropped() {
    let alice = person("alice");
    for resumes in [false, true] {
        let stage = Stage::new();
        let (mut bob, mut line) = stage.log_in(&[&alice]);
        bob.say("/msg alice hello");
        let send = line.hear_send();
        // The `keys_request` and the message.
        line.say(&ServerMessage::Ack(Received { received: 2 }));
        line.delivered(&send);
        bob.expect("<bob -> alice> hello");
        if resumes {
            line.close();
            line = stage.resuming();
            line.say(&ServerMessage::Resumed(Received { received: 1 }));
            bob.expect("it sent an invalid acknowledgement");
        } else {
            line.say(&ServerMessage::Ack(Received { received: 1 }));
            bob.expect("it acknowledged frames that were never sent");
        }
        assert_eq!(bob.finish().0, 1);
    }
}

#[test]
fn message_sent_twice_after_resuming_is_shown_once() {
    let alice = person("alice");
    let stage = Stage::new();
    let (mut bob, mut line) = stage.log_in(&[&alice]);
    let session = SessionPublicKey::parse(&line.bob().spki()).expect("a key");
    let text = |n: u64| message(&alice, private_to("bob", &session), n, &format!("number {n}"), &session);
    let mut sent: Vec<ServerMessage> = Vec::new();
    for n in 1..=3 {
        let letter = text(n);
        line.say(&letter);
        sent.push(letter);
        bob.expect(&format!("<alice -> bob> number {n}"));
        line.close();
        line = stage.resuming();
        line.say(&ServerMessage::Resumed(Received { received: 0 }));
        bob.expect("* back online");
        sent.iter().for_each(|letter| line.say(letter));
    }
    line.say(&text(4));
    bob.expect("<alice -> bob> number 4");
    line.close();
    // No message is in flight any more, so the end of input waits for nothing.
    let (_, lines) = bob.finish();
    for n in 1..=4 {
        let shown = lines.iter().filter(|line| line.ends_with(&format!("> number {n}"))).count();
        assert_eq!(shown, 1, "{lines:#?}");
    }
    assert_eq!(times(&lines, REFUSED), 6, "{lines:#?}");
    assert_harmless(&lines);
}

/// PROTOCOL#kept, PROTOCOL#sent-again.
#[test]
fn only_frames_the_server_did_not_receive_are_resent() {
    let alice = person("alice");
    for taken in [0, 1, 2] {
        let stage = Stage::new();
        let (mut bob, line) = stage.log_in(&[&alice]);
        bob.say("/msg alice hello");
        let send = line.hear_send();
        line.close();
        let line = stage.resuming();
        line.show(alice.shown());
        line.say(&ServerMessage::Resumed(Received { received: taken }));
        if taken < 2 {
            let again = line.hear_send();
            assert_eq!(again.routing.id, send.routing.id);
            assert_eq!(again.envelope.body.nonce.0, send.envelope.body.nonce.0, "the same envelope");
        }
        line.delivered(&send);
        bob.expect("<bob -> alice> hello");
        bob.end();
        assert!(line.hears_no_more_sends());
        bob.leaves();
    }
}

#[test]
fn false_login_after_no_session_is_refused_with_a_reason() {
    let no_session = || ServerMessage::error(ErrorCode::NoSession, "no such session");
    let falsehoods = [
        (ServerMessage::error(ErrorCode::LoginFailed, "no"), "login failed"),
        // A challenge with other rounds than those of the key file.
        (Line::challenge(1), "this server does not ask for your password as your key file expects"),
    ];
    for (falsehood, part) in falsehoods {
        let stage = Stage::new();
        let (mut bob, line) = stage.log_in(&[]);
        line.close();
        // The client tries twice, because the password might be changing at this moment.
        for _ in 0..2 {
            stage.resuming().say(&no_session());
            let line = stage.next();
            assert!(matches!(line.hear(), Some(ClientMessage::LoginRequest(_))));
            line.say(&falsehood);
        }
        // Wait before the end of input, which would end the client anyway.
        bob.expect(part);
        ended_with(bob, part);
    }
}

#[test]
fn unexpected_answer_to_a_resumption_opens_no_session() {
    let alice = person("alice");
    let stage = Stage::new();
    let (mut bob, line) = stage.log_in(&[&alice]);
    line.close();
    // Two unexpected messages that claim a session, then the right one.
    stage.resuming().say(&granted());
    stage.resuming().say(&ServerMessage::Registered);
    let line = stage.resuming();
    line.say(&ServerMessage::Resumed(Received { received: 0 }));
    bob.expect("* back online");
    line.presence(&["carol"], &[]);
    bob.expect("* carol is online");
    bob.end();
    let (status, lines) = bob.finish();
    assert_eq!(status, 0, "{lines:#?}");
    assert_eq!(lines.iter().filter(|line| line.contains("* back online")).count(), 1);
}

// ---- between real clients and a real server

fn copy(message: &ServerMessage) -> ServerMessage {
    let line = message.encode();
    ServerMessage::decode(&line[..line.len() - 1]).expect("decodes")
}

/// PROTOCOL#check-sequence.
#[test]
fn withheld_repeated_and_reordered_messages_are_noticed() {
    let server = Server::with(&["--no-tls"]);
    let operator = Operator::before(&server);
    let mut alice = server.client("alice").ready();
    let mut bob = operator.client(&Arc::new(Folder::new()), "bob").ready();
    alice.expect("* bob is online");
    // The first of six messages arrives twice, the second and third never, the fifth before the fourth.
    let (mut count, mut held) = (0, None);
    operator.messages(move |message| {
        if !matches!(message, ServerMessage::EncryptedMessage(_)) {
            return vec![message];
        }
        count += 1;
        match count {
            1 => vec![copy(&message), message],
            2 | 3 => vec![],
            4 => {
                held = Some(message);
                vec![]
            }
            5 => std::iter::once(message).chain(held.take()).collect(),
            _ => vec![message],
        }
    });
    for text in ["one", "two", "three", "four", "five", "six"] {
        alice.ask(&format!("/msg bob {text}"), &format!("<alice -> bob> {text}"));
    }
    bob.expect("<alice -> bob> six");
    let (_, lines) = bob.finish();
    let heard: Vec<&str> = lines.iter().map(String::as_str).filter(|line| !line.starts_with("* ")).collect();
    let repeated =
        "! refused a message that claims to come from alice: it is a duplicate, or it arrived out of order";
    assert_eq!(
        heard,
        [
            "<alice -> bob> one",
            repeated,
            "! 3 messages from alice are missing",
            "<alice -> bob> five",
            "<alice -> bob> six",
            &format!("{repeated} (once more)"),
        ]
    );
}

/// Alice, who has a direct connection, and bob and carol, each behind the operator.
struct Trio {
    _server: Server,
    to_bob: Operator,
    to_carol: Operator,
    /// Copies of the envelopes that pass to bob.
    caught: Receiver<ServerMessage>,
    alice: Client,
    bob: Client,
    carol: Client,
}

impl Trio {
    fn new() -> Trio {
        let server = Server::with(&["--no-tls"]);
        let (to_bob, to_carol) = (Operator::before(&server), Operator::before(&server));
        let mut alice = server.client("alice").ready();
        let bob = to_bob.client(&Arc::new(Folder::new()), "bob").ready();
        let carol = to_carol.client(&Arc::new(Folder::new()), "carol").ready();
        alice.meets("bob");
        alice.meets("carol");
        let (sender, caught) = channel();
        to_bob.messages(move |message| {
            if matches!(message, ServerMessage::EncryptedMessage(_)) {
                let _ = sender.send(copy(&message));
            }
            vec![message]
        });
        Trio { _server: server, to_bob, to_carol, caught, alice, bob, carol }
    }
}

/// Drops all envelopes from now on.
fn withhold(operator: &Operator) {
    operator.messages(|message| {
        if matches!(message, ServerMessage::EncryptedMessage(_)) { vec![] } else { vec![message] }
    });
}

/// PROTOCOL#check-recipient, PROTOCOL#wrapped-key.
#[test]
fn envelope_redirected_to_a_third_user_is_refused() {
    let Trio { _server, to_carol, caught, mut alice, mut bob, mut carol, .. } = Trio::new();
    alice.say("/msg bob for bob alone");
    bob.expect("<alice -> bob> for bob alone");
    let private = caught.recv_timeout(DEADLINE).expect("it passed");
    to_carol.inject(&private);
    let refused = carol.expect(REFUSED);
    assert!(refused.contains("for another user"), "{refused}");
    // Carol gets bob's copy of a broadcast, like a recipient that the operator added.
    withhold(&to_carol);
    alice.say("for everyone whom alice has named");
    bob.expect("<alice> for everyone whom alice has named");
    to_carol.inject(&caught.recv_timeout(DEADLINE).expect("it passed"));
    let refused = carol.expect(REFUSED);
    assert!(refused.contains("cannot be decrypted"), "{refused}");
    // Carol has shown neither message.
    let (_, lines) = carol.finish();
    assert!(!lines.iter().any(|line| line.contains("bob alone") || line.contains("has named")), "{lines:#?}");
}

/// PROTOCOL#check-recipient, PROTOCOL#check-sequence, PROTOCOL#room-copies.
#[test]
fn copy_of_one_member_is_refused_by_another() {
    let Trio { _server, to_bob, to_carol, caught, mut alice, mut bob, mut carol } = Trio::new();
    // Carol's copy is withheld, and she gets bob's.
    withhold(&to_carol);
    alice.ask("/msg bob,carol one", "<alice -> bob, carol> one");
    bob.expect("<alice -> bob, carol> one");
    let of_bob = caught.recv_timeout(DEADLINE).expect("it passed");
    to_carol.inject(&of_bob);
    assert!(carol.expect(REFUSED).contains("for another user"));
    // Bob's own copy is accepted once.
    to_bob.inject(&of_bob);
    assert!(bob.expect(REFUSED).contains("a duplicate"));
    // The withheld copy is missing.
    to_carol.messages(|message| vec![message]);
    alice.ask("/msg bob,carol two", "<alice -> bob, carol> two");
    carol.expect("! 1 message from alice is missing");
    carol.expect("<alice -> bob, carol> two");
    let (_, lines) = carol.finish();
    assert!(!lines.iter().any(|line| line.ends_with("> one")), "{lines:#?}");
}

#[test]
fn new_key_after_server_data_loss_must_be_trusted_first() {
    let first = Server::with(&["--no-tls"]);
    let gate = Gate::before(&first);
    let (of_alice, of_bob) = (Arc::new(Folder::new()), Arc::new(Folder::new()));
    let start = |home: &Arc<Folder>, name| gate.client(home.clone(), name, &["--register"]).ready();
    let mut alice = start(&of_alice, "alice");
    let mut bob = start(&of_bob, "bob");
    bob.say("good morning");
    alice.expect("<bob> good morning");
    drop((alice, bob, first));
    // On a new server bob has a new key; alice still has her key, and remembers bob's former one.
    let second = Server::with(&["--no-tls"]);
    gate.lead_to(&second);
    let mut alice = start(&of_alice, "alice");
    let mut bob = start(&Arc::new(Folder::new()), "bob");
    alice.expect("* bob is online");
    bob.say("it is me, with a new key");
    alice.expect("! THE IDENTITY KEY OF bob HAS CHANGED");
    alice.ask("/msg bob are you bob?", "! THE IDENTITY KEY OF bob HAS CHANGED");
    assert!(!alice.output.seen.iter().any(|line| line.contains("it is me")), "{:#?}", alice.output.seen);
    alice.ask("/trust bob", "* the new key of bob is accepted");
    alice.expect("<bob> it is me, with a new key");
    alice.say("/msg bob welcome back");
    bob.expect("<alice -> bob> welcome back");
    let (_, lines) = bob.finish();
    assert!(!lines.iter().any(|line| line.contains("are you bob?")), "{lines:#?}");
}

// ---- other users

/// Sends one envelope to the one user `to`, whose keys are fetched.
fn send_raw(
    raw: &mut Raw,
    to: &str,
    seal: impl FnOnce(&SessionPublicKey) -> (Envelope, [u8; WRAPPED_BYTES]),
) {
    let key = raw.keys(&[to]).keys[0].session_key.clone().expect("online");
    let (envelope, wrapped) = seal(&SessionPublicKey::parse(&key.0).expect("a key"));
    raw.say(&send_to(to, 1, envelope, wrapped));
}

/// PROTOCOL#harmless.
#[test]
fn any_text_stays_one_line_under_its_author_s_name() {
    let server = Server::with(&["--no-tls"]);
    let mut bob = server.client("bob").ready();
    let (mut raw, mallory) = newcomer(&server, "mallory");
    bob.expect("* mallory is online");
    let long = "é".repeat(16 * 1024);
    let texts: [(&[u8], &str); 11] = [
        (b"hi\n<bob> I owe you money", "hi⏎<bob> I owe you money"),
        (b"hi\r\n* bob has left", "hi⏎* bob has left"),
        (b"hi\r! the server is gone", "hi\u{fffd}! the server is gone"),
        (b"\x1b[2J\x1b[1;1H\x1b]0;owned\x07", "\u{fffd}[2J\u{fffd}[1;1H\u{fffd}]0;owned\u{fffd}"),
        ("\u{9b}31m\u{85}\u{90}".as_bytes(), "\u{fffd}31m\u{fffd}\u{fffd}"),
        ("\u{202e}yenom\u{2066}x\u{200f}".as_bytes(), "\u{fffd}yenom\u{fffd}x\u{fffd}"),
        ("\u{2028}a\u{2029}b\u{feff}c\u{e0041}".as_bytes(), "\u{fffd}a\u{fffd}b\u{fffd}c\u{fffd}"),
        (b"\0\x08\x7f", "\u{fffd}\u{fffd}\u{fffd}"),
        (b"/exit", "/exit"),
        (b"", ""),
        (long.as_bytes(), &long),
    ];
    for (n, (text, shown)) in texts.iter().enumerate() {
        let sequence = n as u64 + 1;
        send_raw(&mut raw, "bob", |session| {
            let sealed = Sealed::seal(header(&mallory, EVERYONE, sequence), &mallory.identity, text);
            (sealed.envelope.clone(), sealed.wrap_for(session))
        });
        assert_eq!(bob.output.next().expect("a line"), format!("<mallory> {shown}"));
    }
    send_raw(&mut raw, "bob", |session| {
        let to_all = header(&mallory, EVERYONE, texts.len() as u64 + 1);
        let sealed = Sealed::seal(to_all, &mallory.identity, b"not \xff UTF-8");
        (sealed.envelope.clone(), sealed.wrap_for(session))
    });
    let refused = bob.output.next().expect("a line");
    assert!(refused.starts_with(REFUSED) && refused.contains("not text"), "{refused}");
    let (status, lines) = bob.finish();
    assert_eq!(status, 0);
    assert_harmless(&lines);
}

/// PROTOCOL#check-signature, PROTOCOL#check-recipient.
#[test]
fn user_cannot_sign_for_another_or_forward_private_text() {
    let server = Server::start();
    let mut bob = server.client("bob").ready();
    let (mut raw, mallory) = newcomer(&server, "mallory");
    bob.expect("* mallory is online");
    // The server refuses another sender's name.
    send_raw(&mut raw, "bob", |session| {
        let mut forged = header(&mallory, EVERYONE, 1);
        forged.from = name("bob");
        let sealed = Sealed::seal(forged, &mallory.identity, b"I am bob");
        (sealed.envelope.clone(), sealed.wrap_for(session))
    });
    assert_eq!(raw.error(), ErrorCode::WrongSender.as_str());
    // It also refuses a private message for carol with the target bob.
    let carol = person("carol");
    send_raw(&mut raw, "bob", |session| {
        let to_carol = header(&mallory, private_to("carol", carol.session.public()), 1);
        let (envelope, key, oaep_label) = handmade(&mallory, &to_carol, &padded("between us two"), None);
        (envelope, wrap(session, &key, oaep_label))
    });
    assert_eq!(raw.error(), ErrorCode::BadTargets.as_str());
    send_raw(&mut raw, "bob", |session| {
        let sealed =
            Sealed::seal(header(&mallory, private_to("bob", session), 1), &mallory.identity, b"honest");
        (sealed.envelope.clone(), sealed.wrap_for(session))
    });
    bob.expect("<mallory -> bob> honest");
    let (_, lines) = bob.finish();
    assert!(!lines.iter().any(|line| line.contains("I am bob") || line.contains("us two")), "{lines:#?}");
}

// ---- the server's identity

fn run(home: &Folder, port: u16, arguments: &[&str]) -> (i32, Vec<String>) {
    run_client(home, port, PASSWORD, &[&["--user", "alice", "--register"], arguments].concat())
}

/// PROTOCOL#server-key.
#[test]
fn changed_server_key_is_refused_with_the_remedy() {
    let (first, second) = (Server::start(), Server::start());
    let gate = Gate::before(&first);
    let home = Folder::new();
    let (status, lines) = run(&home, gate.port, &["--accept-new"]);
    assert_eq!(status, 0, "{lines:#?}");
    gate.lead_to(&second);
    let new = second.fingerprint();
    // Not even --accept-new accepts a changed key.
    for arguments in [&[][..], &["--accept-new"]] {
        let (status, lines) = run(&home, gate.port, arguments);
        assert_eq!((status, lines.len()), (1, 1), "{lines:#?}");
        assert!(lines[0].starts_with("! THE KEY OF THE SERVER AT 127.0.0.1:"), "{lines:#?}");
        assert!(lines[0].contains(&first.fingerprint()) && lines[0].contains(&new), "{lines:#?}");
        assert!(lines[0].ends_with(&format!("use --fingerprint {new}")), "{lines:#?}");
    }
    assert!(!second.log().contains("alice"), "nothing was sent to the wrong server");
    // The remedy works, and the key is remembered.
    let (status, lines) = run(&home, gate.port, &["--fingerprint", &new]);
    assert_eq!(status, 0, "{lines:#?}");
    let (status, lines) = run(&home, gate.port, &[]);
    assert_eq!(status, 0, "{lines:#?}");
}

#[test]
fn unknown_server_is_refused_without_its_fingerprint() {
    let server = Server::start();
    let home = Folder::new();
    let fingerprint = server.fingerprint();
    let (status, lines) = run(&home, server.port, &[]);
    assert_eq!((status, lines.len()), (1, 1), "{lines:#?}");
    assert!(
        lines[0].contains("is not known yet") && lines[0].contains(&format!("--fingerprint {fingerprint}"))
    );
    let wrong = Fingerprint([7; 32]).to_string();
    let (status, lines) = run(&home, server.port, &["--fingerprint", &wrong]);
    assert_eq!((status, lines.len()), (1, 1), "{lines:#?}");
    assert!(lines[0].contains(&wrong) && lines[0].contains(&fingerprint), "{lines:#?}");
    // A wrong --fingerprint stores nothing, and --accept-new does not override it.
    assert_eq!(run(&home, server.port, &["--accept-new", "--fingerprint", &wrong]).0, 1);
    assert_eq!(run(&home, server.port, &[]).0, 1);
    assert!(!server.log().contains("alice"), "nothing was sent to an unknown server");
    let (status, lines) = run(&home, server.port, &["--fingerprint", &fingerprint]);
    assert_eq!(status, 0, "{lines:#?}");
}

/// PROTOCOL#transport.
#[test]
fn tls_never_falls_back_and_each_mismatch_names_its_remedy() {
    let (bare, secure) = (Server::with(&["--no-tls"]), Server::start());
    let home = Folder::new();
    let (status, lines) = run(&home, bare.port, &["--accept-new"]);
    assert_eq!((status, lines.len()), (1, 1), "{lines:#?}");
    assert!(
        lines[0].starts_with("! the server does not speak TLS") && lines[0].contains("--no-tls"),
        "{lines:#?}"
    );
    let (status, lines) = run(&home, secure.port, &["--no-tls"]);
    assert_eq!((status, lines.len()), (1, 1), "{lines:#?}");
    assert!(lines[0].starts_with("! the server speaks TLS: leave out --no-tls"), "{lines:#?}");
    assert!(!bare.log().contains("alice") && !secure.log().contains("alice"), "no name crossed the wire");
    // With --no-tls on both sides, the client says so.
    let (status, lines) = run(&home, bare.port, &["--no-tls"]);
    assert_eq!(status, 0, "{lines:#?}");
    assert!(lines[0].contains("WITHOUT TLS"), "{lines:#?}");
}

/// PROTOCOL#server-key.
#[test]
fn channel_opens_only_for_the_given_fingerprint() {
    let server = Server::start();
    let shake = || {
        let socket = Arc::new(server.socket());
        Unverified::connect("localhost", socket, Instant::now() + DEADLINE).expect("handshake")
    };
    let seen = shake().fingerprint();
    assert_eq!(seen.to_string(), server.fingerprint());
    let mut other = seen;
    other.0[31] ^= 1;
    assert_eq!(shake().fingerprint(), seen);
    assert!(shake().trust(other).is_none() && shake().trust(seen).is_some());
}

/// PROTOCOL#server-key.
#[test]
fn server_without_its_certificate_s_key_gets_no_channel() {
    let (owner, thief) = (Folder::new(), Folder::new());
    for folder in [&owner, &thief] {
        certificate::prepare(&folder.0, clock::now_ms()).expect("a certificate");
    }
    let read = |path| std::fs::read(path).expect("read");
    let chain: Result<Vec<_>, _> = rustls_pemfile::certs(&mut &read(owner.path("server.crt"))[..]).collect();
    let key = rustls_pemfile::private_key(&mut &read(thief.path("server.key"))[..]).expect("PEM");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = provider.key_provider.load_private_key(key.expect("a key")).expect("a key");
    // The only way around the library's own check that certificate and key belong together.
    let stolen = rustls::sign::CertifiedKey::new(chain.expect("PEM"), key);
    let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(stolen));
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let config = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_no_client_auth()
            .with_cert_resolver(resolver.clone());
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let socket = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let end = Instant::now() + DEADLINE;
        let answer = thread::scope(|scope| {
            scope.spawn(|| {
                let (socket, _) = listener.accept().expect("accepted");
                let _ = Channel::accept(Some(Arc::new(config)), Arc::new(socket), end);
            });
            Unverified::connect("localhost", Arc::new(socket), end)
        });
        assert!(answer.is_err_and(|error| error.kind() == ErrorKind::InvalidData), "{version:?}");
    }
}
