//! Clients that send garbage, lies, too much, too slowly or nothing at all, against a running server: each gets a clear
//! error or a closed connection, and two users who chat meanwhile notice nothing.

use crate::support::{
    self, Client, Pair, Person, Raw, Server, home_with, interrupt, mailbox_key, name, newcomer,
    shown_mailbox, until, with_field, without_field,
};
use secure_messenger::clock;
use secure_messenger::crypto::envelope::Word;
use secure_messenger::crypto::key_file::{self, Login};
use secure_messenger::crypto::keys::{IdentityKey, SessionKey};
use secure_messenger::crypto::public::RSA_BYTES;
use secure_messenger::crypto::secret::Password;
use secure_messenger::encoding::{Bytes, Fixed};
use secure_messenger::protocol::{
    ClientMessage, EncryptedSend, Grant, KeysRequest, MAX_CIPHERTEXT, MAX_KEY_NAMES, MAX_LINE,
    MAX_LINE_BEFORE_LOGIN, MAX_TARGETS, MailDone, MailRequest, MailboxCertificate, Scope, Sent,
    ServerMessage, SessionCertificate, WrappedKey,
};
use secure_messenger::wire::tls::{Reader, Received};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Public keys that must be refused, DER in base64, made with
/// `openssl genpkey ARGUMENTS | openssl pkey -pubout -outform DER | base64 -w0`.
const BAD_KEYS: [(&str, &str); 6] = [
    (
        "-algorithm RSA -pkeyopt rsa_keygen_bits:1024",
        "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDxM3RDB29CU4w0wDpIFuwg4iFF2iFEt1L+93VhTUcpAHxCWsccs8awsFkMrS5KOCXgXCVBv3M9CUEDhzyZ1L0KSDX8O8+HDzJcQrcgpvPdPSx6aZ61JJvmnJpAbl1yzvONZUoNqH5r//YJ/DWlEyvOiRw4oLIfsR1hHDRjG9VwIwIDAQAB",
    ),
    (
        "-algorithm RSA -pkeyopt rsa_keygen_bits:4096",
        "MIICIjANBgkqhkiG9w0BAQEFAAOCAg8AMIICCgKCAgEAswRTh+X6Nx6nqbrjaXvnDHgNSfv4ADsoxuKFpL03D9GokHrMW6w7W5mgzTT/3/iUsPuX1JLPz7P/zEshgfjdLI+qetxjznIJIRgrvIAQEcISxqIuhbDDWM1pJgs6qK065TMK6ikD7UyR6q21B4a2Gl1YZ89F7GegHBBoyBu3rd+RzM6yReASJHYqvQS5VhCYsXfE2Q1s8DcDlywuGUCYaFi7LpBZVwfecQYesX7UmmWN+t1qd+38bfAS6s4Vr+knkWJlm7o6ei2TkmBJofWbsGHutlj6f5BnW1YgJqoQbQQaLWyXdkQeJiKIiAwv1b29xZw2OicwrDmjxigNyQC3MUMFVVKivKUv5By2ZxFAYuvFMkVZjTlj0CNwa9K3ch1HoNNvNooCIxiw4+PwiA5nYAuWdqSClGo6tCAENhTObuW2SPDgRkRZYl/2LFpeODHtHrtxf3EQmy3ejR/WQU8LEQ/lZJiPrABUGP8fngTDbc2mJKDASQvjBiJKJicX9ctbLhZWWfFQG+kiWw5owvkthiPmSzHgkVNu9xNseEs4ebNjeP0WflNs1VApPoIwgFJjD2PMyZELvNq8sY6NlxufLMo46mOv/mfadJbBHpGcQF72M/GZW6Xp9ZZ8D23xP2/0/BFS+xKua3gQuNklHxsRFrTj5X1K8rLbpnrRN9XeI3sCAwEAAQ==",
    ),
    (
        "-algorithm RSA -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_keygen_pubexp:3",
        "MIIBIDANBgkqhkiG9w0BAQEFAAOCAQ0AMIIBCAKCAQEAnnPPFBTh9ktALDsduCLtAYc5TywccPp4YEytcpY3FlfX6p6abGIHY3ybRBqJat/3r3HtN03rsdcaQUgRcyyCrRywLioBKcgNsUej/6zKymJsW9oZLVhAJIA18d6SEZW0mO9C0QxN23+Fs65Pt5PUwusIiou4VKRSJ1WGljvLAM3awm3H4TW0yrSrdX6cxuXkFuh1oHNz8l7Tk2uex/6kuvOMfb6ZpnxchpX/46Q6Of6g3IVP2wH1IaS+cK5vrmO/5V0A1oKW2W8zG7p/o5jISTmeNNfcrGGwBqSWb9ACWF8pPGW5I/e3aDSuTqSX76W4pqmQnexMrWzId7Z4J6VQPQIBAw==",
    ),
    (
        "-algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048",
        "MIIBIDALBgkqhkiG9w0BAQoDggEPADCCAQoCggEBALVMZRb037ywtfstHloVEyYUNBIV83tcC4jmVqj9jCzkH2Q3EMkJ3unsUPx3DwFAjBI2gfXfULFzGFL3OjX1vd5/4K/XW5XXe9YBSjH3YeAuVwCJrqebmZw5beAhbngsWCf4lFYOEDGh6yx2XFAi2Yy2jYzxUMJU05Y8O3ttaWQttJQsyKlgP8hEL/5kn61BlFfq2mc2VdTK4t8YWW+BOi0mf9m4RSV6cbHZu//c0GgVOexPguCIANl/I0T70TxU7/VBsxUJnFNOSLCx96Yj8UVCgUI9mp7dqRUr1ZrLHP315zUvyc7QeGJpUyb+p3YQrA6O5L6+wbhO8FD8Oux1oDMCAwEAAQ==",
    ),
    (
        "-algorithm EC -pkeyopt ec_paramgen_curve:P-256",
        "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEapqk/jlC8yBb3i8vLP53kqEPfl8IpvkfYBHPmeD5bskB1WGDP+4KyTlBtBSHc6bZYliGKxAkuBsXE4+Mzc44MQ==",
    ),
    ("-algorithm ED25519", "MCowBQYDK2VwAyEAMO0VMEyUu42Pp2YjJ4Fj77c9nBExv17Iv0YVE8ot+jY="),
];

/// A server whose standard error is watched for panics, and two users who chat on it.
struct Scene {
    server: Server,
    pair: Pair,
}

/// Creates an account and a home folder with its key, and starts the real client there. All scenes share the keys and
/// password keys, because making them takes long.
fn witness(server: &Server, name: &str) -> Client {
    static MADE: Mutex<BTreeMap<String, (String, Vec<u8>)>> = Mutex::new(BTreeMap::new());
    let (key, registration) = {
        let mut made = MADE.lock().expect("whole");
        let make = || {
            let person = Person::new(name);
            let password = Password::new(support::PASSWORD.into());
            let key = key_file::seal(&person.identity, &person.name, &password);
            let ClientMessage::Register(request) = person.registration() else { panic!("no registration") };
            let login = Login { salt: request.salt, rounds: request.rounds };
            let key = key_file::with_logins(key.as_bytes(), &[login]).expect("a key file");
            (key, ClientMessage::Register(request).encode())
        };
        made.entry(name.into()).or_insert_with(make).clone()
    };
    let mut raw = server.raw();
    raw.bytes(&registration);
    assert!(matches!(raw.answer(), Some(ServerMessage::Registered)));
    server.client_in(&home_with(&self::name(name), &key), name, &[])
}

impl Scene {
    fn open(arguments: &[&str]) -> Scene {
        Scene::after("true", arguments)
    }

    /// The same, with a server that is started after `preparation` in a shell.
    fn after(preparation: &str, arguments: &[&str]) -> Scene {
        let home = Arc::new(support::Folder::new());
        let preparation = format!("{preparation}; exec 2>{}", home.path("errors").display());
        let server = Server::after(&preparation, home, arguments);
        let pair = Pair::of(witness(&server, "alice"), witness(&server, "bob"));
        Scene { server, pair }
    }

    fn exchange(&mut self) {
        self.pair.exchange();
    }

    /// Checks that the two users noticed nothing, and that no thread of the server has panicked.
    fn close(mut self) {
        self.pair.close();
        let gone = self.server.child.try_wait().expect("its state");
        assert!(gone.is_none(), "the server has ended: {gone:?}");
        let home = self.server.kill();
        assert_eq!(std::fs::read_to_string(home.path("errors")).expect("there"), "", "the server complained");
    }

    /// Sends one line on a new connection, and returns the code of the error. The server must then close it.
    fn refusal(&self, line: &[u8]) -> String {
        let mut raw = self.server.raw();
        raw.bytes(line);
        if !line.ends_with(b"\n") {
            raw.bytes(b"\n");
        }
        let code = raw.error();
        assert!(raw.is_closed(), "{}", String::from_utf8_lossy(line));
        code
    }

    /// The server's threads and descriptors.
    fn held(&self) -> (usize, usize) {
        let folder = format!("/proc/{}", self.server.child.id());
        let count = |name: &str| std::fs::read_dir(format!("{folder}/{name}")).map_or(0, Iterator::count);
        (count("task"), count("fd"))
    }
}

fn register(name: &str) -> Vec<u8> {
    Person::new(name).registration().encode()
}

fn login_request(person: &Person) -> Vec<u8> {
    person.login_request().encode()
}

fn false_response(person: &Person) -> Vec<u8> {
    person.false_response().encode()
}

/// A `renew` with an invalid certificate.
fn false_renewal(session_key: &[u8]) -> Vec<u8> {
    let (session_key, certificate) = (Bytes(session_key.to_vec()), Fixed([0; RSA_BYTES]));
    ClientMessage::Renew(Box::new(SessionCertificate { session_key, created: 1, certificate })).encode()
}

/// An envelope that only the server accepts.
fn letter(from: &Person, targets: &[&str]) -> EncryptedSend {
    support::letter(from, targets, 7, 256)
}

fn send(letter: EncryptedSend) -> ClientMessage {
    ClientMessage::EncryptedSend(Box::new(letter))
}

fn sent(raw: &mut Raw) -> Sent {
    match raw.answer() {
        Some(ServerMessage::Sent(sent)) => sent,
        Some(ServerMessage::Error(failure)) => panic!("{}: {}", failure.code, failure.message),
        _ => panic!("not the answer to a message"),
    }
}

/// Lines that get the same error code before and after a login.
fn rubbish() -> Vec<(Vec<u8>, &'static str)> {
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        (text(""), "malformed"),
        (text("hello"), "malformed"),
        (text("{"), "malformed"),
        (text("[]"), "malformed"),
        (text("null"), "malformed"),
        (text("{}"), "malformed"),
        (text("\"ping\""), "malformed"),
        (text("{\"type\":3}"), "malformed"),
        (text("{\"type\":null}"), "malformed"),
        (text("{\"type\":[\"ping\"]}"), "malformed"),
        (text("{\"type\":\"ping\"}{}"), "malformed"),
        (text("{\"type\":\"ping\""), "malformed"),
        (text("GET / HTTP/1.1\r"), "malformed"),
        (b"{\"type\":\"ping\",\"x\":\"\xff\"}".to_vec(), "malformed"),
        (b"\xc0\xaf".to_vec(), "malformed"),
        (b"{\"type\":\"ping\"}\0".to_vec(), "malformed"),
        (text("{\"type\":\"\"}"), "unknown_type"),
        (text("{\"type\":\"PING\"}"), "unknown_type"),
        (text("{\"type\":\"shutdown\"}"), "unknown_type"),
        (text("{\"type\":\"registered\"}"), "unknown_type"),
        (text("{\"type\":\"x\",\"type\":\"pong\"}"), "unknown_type"),
        ("[".repeat(16_000).into_bytes(), "malformed"),
        ("{\"a\":".repeat(3_000).into_bytes(), "malformed"),
        (format!("{{\"type\":\"ping\",\"x\":{}{}}}", "[".repeat(50), "]".repeat(50)).into(), "malformed"),
    ]
}

/// PROTOCOL#not-a-message, PROTOCOL#closing-errors, PROTOCOL#version, PROTOCOL#rounds, PROTOCOL#name-form,
/// PROTOCOL#base64.
#[test]
fn malformed_line_before_login_gets_a_code_and_is_closed() {
    let mut scene = Scene::open(&[]);
    for (line, code) in rubbish() {
        assert_eq!(scene.refusal(&line), code, "{}", String::from_utf8_lossy(&line));
    }
    scene.exchange();
    let mallory = Person::new("mallory");
    let (register, ask) = (register("mallory"), login_request(&mallory));
    for line in [
        without_field(&register, "salt"),
        without_field(&register, "username"),
        without_field(&register, "version"),
        without_field(&ask, "public_key"),
        with_field(&register, "rounds", "\"600000\""),
        with_field(&register, "rounds", "-600000"),
        with_field(&register, "rounds", "600000.5"),
        with_field(&register, "rounds", "1e999"),
        with_field(&register, "rounds", "4294967296"),
        with_field(&register, "rounds", &"9".repeat(5_000)),
        with_field(&register, "rounds", "null"),
        with_field(&register, "salt", "\"@@@@\""),
        with_field(&register, "salt", "\"AAAA\""),
        with_field(&register, "salt", &format!("\"{}\"", "_".repeat(43))),
        with_field(&register, "password_key", &format!("\"{}\"", "A".repeat(43))),
        with_field(&register, "password_key", &format!("\"{}\"", "A".repeat(88))),
        with_field(&register, "public_key", "\"not base64\""),
        with_field(&register, "public_key", "[1,2,3]"),
        with_field(&ask, "version", "18446744073709551617"),
        with_field(&ask, "public_key", "{}"),
    ] {
        assert_eq!(scene.refusal(line.as_bytes()), "malformed", "{line}");
    }
    scene.exchange();
    for name in [
        "",
        ".",
        "..",
        "../../etc/passwd",
        "a/b",
        "a b",
        "_a",
        "-a",
        "a\\n",
        "a\\u0000",
        "a\\u001b[2J",
        "\u{e9}",
        "a\\u202eb",
        &"x".repeat(33),
        &"x".repeat(10_000),
    ] {
        for line in [&register, &ask] {
            let line = with_field(line, "username", &format!("\"{name}\""));
            assert_eq!(scene.refusal(line.as_bytes()), "malformed", "{line}");
        }
    }
    for (line, code) in [
        (with_field(&register, "rounds", "99999"), "bad_rounds"),
        (with_field(&register, "rounds", "4294967295"), "bad_rounds"),
        (with_field(&register, "version", "2"), "unsupported_version"),
        (with_field(&ask, "version", "0"), "unsupported_version"),
    ] {
        assert_eq!(scene.refusal(line.as_bytes()), code, "{line}");
    }
    let users = std::fs::read_to_string(scene.server.data("users.json")).expect("read");
    assert!(users.lines().count() == 2 && !users.contains("mallory"), "{users}");
    scene.close();
}

/// PROTOCOL#not-a-message, PROTOCOL#keys_request, PROTOCOL#error, PROTOCOL#pong.
#[test]
fn malformed_line_after_login_gets_a_code_and_stays_open() {
    let mut scene = Scene::open(&[]);
    let (mut raw, mallory) = newcomer(&scene.server, "mallory");
    for (line, code) in rubbish() {
        raw.bytes(&line);
        raw.bytes(b"\n");
        assert_eq!(raw.error(), code, "{}", String::from_utf8_lossy(&line));
        assert!(raw.is_usable());
    }
    scene.exchange();
    let letter = send(letter(&mallory, &["nobody"])).encode();
    for line in [
        without_field(&letter, "id"),
        without_field(&letter, "keys"),
        without_field(&letter, "nonce"),
        with_field(&letter, "id", "-1"),
        with_field(&letter, "id", "18446744073709551616"),
        with_field(&letter, "targets", "\"mallory\""),
        with_field(&letter, "targets", "[1]"),
        with_field(&letter, "targets", "[\"../mallory\"]"),
        with_field(&letter, "keys", "[]"),
        with_field(&letter, "keys", "{\"nobody\":\"AAAA\"}"),
        with_field(&letter, "keys", "{\"nobody\":3}"),
        with_field(&letter, "kind", &format!("\"{}\"", "k".repeat(33))),
        with_field(&letter, "scope", &format!("\"{}\"", "s".repeat(33))),
        with_field(&letter, "from", "\"mallory \""),
        with_field(&letter, "nonce", "\"AAAA\""),
        with_field(&letter, "tag", "\"!\""),
        with_field(&letter, "sequence", "1.5"),
        with_field(&letter, "recipient", "5"),
        "{\"type\":\"keys_request\",\"names\":[\"a/b\"]}\n".into(),
        "{\"type\":\"keys_request\",\"names\":{}}\n".into(),
        "{\"type\":\"renew\"}\n".into(),
    ] {
        raw.bytes(line.as_bytes());
        assert_eq!(raw.error(), "malformed", "{line}");
        assert!(raw.is_usable(), "{line}");
    }
    let names = vec![mallory.name.clone(); MAX_KEY_NAMES + 1];
    raw.say(&ClientMessage::KeysRequest(KeysRequest { names }));
    assert_eq!(raw.error(), "bad_targets");
    // The first of two `type` members counts, and unknown members are ignored.
    raw.bytes(b"{\"type\":\"ping\",\"type\":\"nonsense\",\"more\":[{}]}\n");
    assert!(matches!(raw.answer(), Some(ServerMessage::Pong)));
    raw.bytes(&letter);
    assert_eq!(sent(&mut raw).offline.len(), 1);
    scene.close();
}

/// PROTOCOL#line-length.
#[test]
fn line_limit_is_16_kib_before_a_login_and_1_mib_after() {
    let mut scene = Scene::open(&[]);
    let ping = |length: usize| {
        let mut line = b"{\"type\":\"ping\"}".to_vec();
        line.resize(length, b' ');
        line
    };
    let mut raw = scene.server.raw();
    raw.bytes(&ping(MAX_LINE_BEFORE_LOGIN));
    raw.bytes(b"\n");
    assert!(matches!(raw.answer(), Some(ServerMessage::Pong)));
    // The error does not wait for the end of the line.
    raw.bytes(&ping(MAX_LINE_BEFORE_LOGIN + 1));
    assert_eq!(raw.error(), "line_too_long");
    assert!(raw.is_closed());
    assert_eq!(scene.refusal(&ping(MAX_LINE_BEFORE_LOGIN * 4)), "line_too_long");
    scene.exchange();
    let (mut raw, _) = newcomer(&scene.server, "mallory");
    raw.bytes(&ping(MAX_LINE));
    raw.bytes(b"\n");
    assert!(matches!(raw.answer(), Some(ServerMessage::Pong)));
    raw.bytes(&ping(MAX_LINE + 1));
    assert_eq!(raw.error(), "line_too_long");
    assert!(raw.is_closed());
    scene.close();
}

/// PROTOCOL#der.
#[test]
fn key_other_than_rsa_2048_is_refused_in_every_message() {
    let mut scene = Scene::open(&[]);
    let (mut raw, mallory) = newcomer(&scene.server, "mallory");
    let good = mallory.identity.public().spki();
    let encoded = |der: &[u8]| {
        let line = String::from_utf8(false_renewal(der)).expect("UTF-8");
        let start = line.find("session_key\":\"").expect("field") + 14;
        line[start..].split('"').next().expect("value").to_string()
    };
    let mut bad: Vec<(String, String)> = BAD_KEYS.map(|(how, key)| (how.into(), key.into())).into();
    let mut change = |what: &str, der: &[u8]| bad.push((what.into(), encoded(der)));
    change("empty", b"");
    change("garbage", &[0x30; 294]);
    change("cut off", &good[..293]);
    change("a byte too much", &[&good[..], b"\0"].concat());
    change("PEM", mallory.identity.public().to_pem().as_bytes());
    change("long", &[0x30; 8000]);
    let mut even = good.clone();
    even[good.len() - 6] &= 0xfe;
    let (register, response, renewal) = (register("eve"), false_response(&mallory), false_renewal(&good));
    for (n, (what, key)) in bad.iter().enumerate() {
        let key = format!("\"{key}\"");
        let line = with_field(&register, "public_key", &key);
        assert_eq!(scene.refusal(line.as_bytes()), "bad_key", "register: {what}");
        for name in ["mallory", "nobody"] {
            let line = with_field(&login_request(&Person::new(name)), "public_key", &key);
            assert_eq!(scene.refusal(line.as_bytes()), "bad_key", "login_request: {what}");
        }
        // A new name each time, because five failures lock one.
        let mut guest = scene.server.raw();
        guest.challenged(&Person::new(&format!("nobody{n}")));
        guest.bytes(with_field(&response, "session_key", &key).as_bytes());
        assert_eq!(guest.error(), "bad_key", "challenge_response: {what}");
        assert!(guest.is_closed());
        raw.bytes(with_field(&renewal, "session_key", &key).as_bytes());
        assert_eq!(raw.error(), "bad_key", "renew: {what}");
        assert!(raw.is_usable());
    }
    // With a valid key, the same response fails for its other faults.
    let mut guest = scene.server.raw();
    guest.challenged(&Person::new("nobody"));
    guest.bytes(&response);
    assert_eq!(guest.error(), "login_failed");
    scene.exchange();
    // An even modulus has the right size. Nobody can use it, and it must not harm the server.
    let mut guest = scene.server.raw();
    guest.bytes(with_field(&register, "public_key", &format!("\"{}\"", encoded(&even))).as_bytes());
    assert!(guest.answer().is_some());
    scene.close();
}

/// PROTOCOL#routing, PROTOCOL#own-name, PROTOCOL#name-case, PROTOCOL#encrypted_send.
#[test]
fn envelope_with_wrong_routing_goes_nowhere() {
    let mut scene = Scene::open(&[]);
    let (mut raw, mallory) = newcomer(&scene.server, "mallory");
    let (mut carol, _) = newcomer(&scene.server, "carol");
    let both = || letter(&mallory, &["carol", "bob"]);
    let mut bad: Vec<(&str, EncryptedSend, &str)> = Vec::new();
    let mut add = |what, mut letter: EncryptedSend, code, change: &dyn Fn(&mut EncryptedSend)| {
        change(&mut letter);
        bad.push((what, letter, code));
    };
    add("another's name", both(), "wrong_sender", &|l| l.envelope.header.from = name("alice"));
    add("capitals", both(), "wrong_sender", &|l| l.envelope.header.from = name("Mallory"));
    add("nobody", letter(&mallory, &[]), "bad_targets", &|_| ());
    add("twice", both(), "bad_targets", &|l| l.routing.targets.push(name("carol")));
    add("no key", both(), "bad_targets", &|l| {
        l.routing.keys = letter(&mallory, &["carol"]).routing.keys;
    });
    add("a key for nobody", both(), "bad_targets", &|l| {
        l.routing.keys = letter(&mallory, &["carol", "bob", "alice"]).routing.keys;
    });
    add("private to two", both(), "bad_targets", &|l| {
        l.envelope.header.scope = Scope::Private;
        l.envelope.header.recipient = Some(name("carol"));
    });
    let one = || letter(&mallory, &["carol"]);
    add("private to another", one(), "bad_targets", &|l| {
        l.envelope.header.scope = Scope::Room;
        l.envelope.header.recipient = Some(name("bob"));
    });
    add("private to nobody", one(), "bad_targets", &|l| l.envelope.header.scope = Scope::Private);
    add("a broadcast to one", one(), "bad_targets", &|l| l.envelope.header.recipient = Some(name("carol")));
    add("unheard-of scope", one(), "bad_targets", &|l| {
        l.envelope.header.scope = Scope::Later(Word::new("all").expect("short"))
    });
    add("too much text", one(), "malformed", &|l| {
        l.envelope.body.ciphertext = Bytes(vec![0; MAX_CIPHERTEXT + 1])
    });
    let names: Vec<String> = (0..10_000).map(|n| format!("carol{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    add("ten thousand", both(), "bad_targets", &|l| {
        l.routing.targets = names.iter().map(|n| name(n)).collect();
    });
    let one_more = letter(&mallory, &names[..=MAX_TARGETS]);
    add("one too many", one_more, "bad_targets", &|_| ());
    for (what, letter, code) in bad {
        raw.say(&send(letter));
        let failure = raw.failure();
        assert_eq!((failure.code.as_str(), failure.id), (code, Some(7)), "{what}");
        assert!(raw.is_usable(), "{what}");
    }
    scene.exchange();
    assert!(carol.is_usable(), "none of these lines has reached carol");
    raw.say(&send(letter(&mallory, &names[..MAX_TARGETS])));
    assert_eq!(sent(&mut raw).offline.len(), MAX_TARGETS);
    // Ten thousand targets with their keys exceed the limit of a line.
    raw.bytes(&send(letter(&mallory, &names)).encode());
    assert_eq!(raw.error(), "line_too_long");
    assert!(raw.is_closed());
    scene.close();
}

/// PROTOCOL#own-key-only, PROTOCOL#outcome, PROTOCOL#sent, PROTOCOL#encrypted_message.
#[test]
fn recipient_gets_its_own_key_and_sender_each_outcome_once() {
    let mut scene = Scene::open(&["--grace", "1"]);
    let (mut raw, mallory) = newcomer(&scene.server, "mallory");
    let mut members: Vec<(Raw, Person)> =
        ["carol", "dave", "erin"].map(|name| newcomer(&scene.server, name)).into();
    let (gone, _) = newcomer(&scene.server, "frank");
    drop(gone);
    scene.server.logs("event=logout user=frank ");
    let targets = ["carol", "dave", "erin", "frank", "nobody", "alice", "mallory"];
    let envelope = letter(&mallory, &targets);
    let keys: Vec<String> = {
        let line = String::from_utf8(send(letter(&mallory, &targets)).encode()).expect("UTF-8");
        let of = |name: &&str| {
            let from = line.find("\"keys\":").expect("keys");
            let from = from + line[from..].find(&format!("\"{name}\":")).expect("key") + name.len() + 4;
            line[from..from + WrappedKey::DIGITS].to_string()
        };
        targets.iter().map(of).collect()
    };
    assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
    raw.say(&send(envelope));
    // The sender is a target here, too, and gets both lines in either order.
    let (mut own, mut answer) = (None, None);
    while own.is_none() || answer.is_none() {
        let line = raw.line().expect("a line");
        match ServerMessage::decode(line.as_bytes()).expect("a message") {
            ServerMessage::Sent(sent) => answer = Some(sent),
            ServerMessage::EncryptedMessage(_) => own = Some(line),
            ServerMessage::Presence(_) | ServerMessage::Ping => {}
            _ => panic!("unexpected: {line}"),
        }
    }
    let answer = answer.expect("an answer");
    let names = |list: &[secure_messenger::name::Username]| -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    };
    assert_eq!(answer.id, 7);
    assert_eq!(names(&answer.delivered), ["carol", "dave", "erin", "mallory"]);
    assert_eq!(names(&answer.offline), ["frank", "nobody"]);
    assert_eq!(names(&answer.stale), ["alice"]);
    let mut received = vec![(6, own.expect("a copy"))];
    for (n, (member, _)) in members.iter_mut().enumerate() {
        loop {
            let line = member.line().expect("a line");
            if line.contains("\"encrypted_message\"") {
                received.push((n, line));
                break;
            }
        }
    }
    for (own, line) in received {
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(line.contains(key.as_str()), n == own, "{line}");
        }
        for word in ["\"keys\"", "\"targets\"", "\"sessions\"", "carol", "frank"] {
            assert!(!line.contains(word), "{word}: {line}");
        }
        assert!(line.contains("\"from\":\"mallory\""));
    }
    for (member, _) in &mut members {
        assert!(member.is_usable(), "one copy each");
    }
    scene.exchange();
    scene.close();
}

/// PROTOCOL#keys_answer.
#[test]
fn each_requested_name_is_answered_once_with_keys_or_unknown() {
    let server = Server::with(&["--grace", "1"]);
    let (mut raw, mallory) = newcomer(&server, "mallory");
    for name in ["frank", "lost"] {
        drop(newcomer(&server, name));
        server.logs(&format!("event=logout user={name} "));
    }
    std::fs::remove_file(server.data("keys/lost.pem")).expect("removed");
    let asked = ["frank", "nobody", "mallory", "MALLORY", "lost", "frank", "nobody"];
    let answer = raw.keys(&asked);
    let mut known: Vec<_> =
        answer.keys.iter().map(|keys| (keys.name.to_string(), keys.session_key.is_some())).collect();
    known.sort();
    assert_eq!(known, [("frank".into(), false), ("mallory".into(), true)]);
    let mut unknown: Vec<_> = answer.unknown.iter().map(ToString::to_string).collect();
    unknown.sort();
    assert_eq!(unknown, ["MALLORY", "lost", "nobody"]);
    let of_mallory = answer.keys.iter().find(|keys| keys.name == mallory.name).expect("known");
    assert!(of_mallory.identity.0 == mallory.identity.public().spki());
    assert!(of_mallory.session_key.as_ref().is_some_and(|key| key.0 == mallory.session.public().spki()));
}

/// PROTOCOL#connection-order, PROTOCOL#deadlines.
#[test]
fn steps_out_of_order_are_refused() {
    let mut scene = Scene::open(&[]);
    let (mut raw, mallory) = newcomer(&scene.server, "mallory");
    let ask = login_request(&mallory);
    let renew = false_renewal(&mallory.session.public().spki());
    let keys = b"{\"type\":\"keys_request\",\"names\":[\"alice\"]}\n".to_vec();
    let message = send(letter(&mallory, &["alice"])).encode();
    for line in [&renew, &keys, &message] {
        assert_eq!(scene.refusal(line), "not_logged_in");
    }
    assert_eq!(scene.refusal(&false_response(&mallory)), "no_challenge");
    for line in [&ask, &register("eve"), &renew, &keys, &message] {
        let mut guest = scene.server.raw();
        guest.challenged(&mallory);
        guest.bytes(line);
        assert_eq!(guest.error(), "not_logged_in");
        assert!(guest.is_closed());
    }
    scene.exchange();
    for line in [&ask, &register("eve"), &false_response(&mallory)] {
        raw.bytes(line);
        assert_eq!(raw.error(), "already_logged_in");
        assert!(raw.is_usable());
    }
    let users = std::fs::read_to_string(scene.server.data("users.json")).expect("read");
    assert!(!users.contains("\"eve\""), "{users}");
    // A connection before login may not send lines for ever.
    let mut guest = scene.server.raw();
    guest.bytes(&ClientMessage::Ping.encode().repeat(100));
    let mut pongs = 0;
    let last = loop {
        match guest.answer() {
            Some(ServerMessage::Pong) => pongs += 1,
            Some(ServerMessage::Error(failure)) => break failure.code,
            _ => panic!("closed without an error"),
        }
    };
    assert_eq!((last.as_str(), pongs), ("too_many_requests", 32));
    assert!(guest.is_closed());
    scene.close();
}

/// Sends a byte a second until the other side closes, and returns the time that this took.
fn trickle(mut socket: TcpStream, bytes: &[u8]) -> Duration {
    let start = Instant::now();
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a time-out");
    let mut bytes = bytes.iter();
    let mut sink = [0; 1024];
    loop {
        match socket.read(&mut sink) {
            Ok(1..) => continue,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => return start.elapsed(),
        }
        if let Some(byte) = bytes.next()
            && socket.write_all(&[*byte]).is_err()
        {
            return start.elapsed();
        }
        assert!(start.elapsed() < support::DEADLINE, "never closed");
    }
}

/// PROTOCOL#deadlines.
#[test]
fn login_deadline_holds_while_signals_interrupt_reads() {
    let server = Server::start();
    let (mut silent, (ended, end)) = (server.raw(), channel());
    thread::spawn(move || ended.send(silent.error()));
    // The signals come faster than the deadline: a read that restarts its wait after each would never end.
    loop {
        interrupt(server.child.id());
        match end.recv_timeout(Duration::from_secs(3)) {
            Ok(code) => break assert_eq!(code, "timed_out"),
            Err(error) => assert_eq!(error, RecvTimeoutError::Timeout, "it never ended"),
        }
    }
}

/// PROTOCOL#deadlines.
#[test]
fn slow_or_silent_handshake_is_closed_after_ten_seconds() {
    let mut scene = Scene::open(&[]);
    let silent = scene.server.socket();
    let slow_handshake = scene.server.socket();
    let quiet_guest = scene.server.raw();
    let slow_guest = scene.server.raw();
    // A client that has sent its first line has more time.
    let mut begun = scene.server.raw();
    assert!(begun.is_usable());
    let started = Instant::now();
    let said_little = |raw: Raw, line: &'static [u8]| {
        let (mut reader, mut plain, mut line) = (Reader::default(), Vec::new(), line.iter());
        loop {
            match raw.channel.receive(&mut reader, &mut plain, Duration::from_secs(1)) {
                Ok(Received::Some) => continue,
                Ok(Received::Silence) => {}
                Ok(Received::End) | Err(_) => break,
            }
            let mut wire = Vec::new();
            if let Some(byte) = line.next() {
                raw.channel.encrypt(&[*byte], &mut wire).expect("TLS");
                let _ = raw.channel.send_by(&wire, Instant::now() + support::DEADLINE);
            }
            assert!(started.elapsed() < support::DEADLINE, "never closed");
        }
        let text = String::from_utf8(plain).expect("UTF-8");
        assert!(text.contains("\"timed_out\""), "{text:?}");
        started.elapsed()
    };
    // The header of a TLS record of 512 bytes.
    let hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &[0; 100]].concat();
    let times: Vec<Duration> = thread::scope(|scope| {
        let threads = [
            scope.spawn(|| trickle(silent, b"")),
            scope.spawn(|| trickle(slow_handshake, &hello)),
            scope.spawn(|| said_little(quiet_guest, b"")),
            scope.spawn(|| said_little(slow_guest, b"{\"type\":\"login_request\",\"version\":1")),
        ];
        scene.exchange();
        threads.map(|t| t.join().expect("its peer")).into()
    });
    for time in times {
        assert!((8..25).contains(&time.as_secs()), "ended after {} s", time.as_secs());
    }
    assert!(begun.is_usable());
    scene.close();
}

/// PROTOCOL#outcome.
#[test]
fn peer_that_does_not_read_is_busy_and_others_miss_nothing() {
    let mut scene = Scene::open(&[]);
    let (mut sloth, _) = newcomer(&scene.server, "sloth");
    let (mut keen, _) = newcomer(&scene.server, "keen");
    let (mut raw, mallory) = newcomer(&scene.server, "mallory");
    let next = |raw: &mut Raw| match raw.answer() {
        Some(ServerMessage::EncryptedMessage(message)) => message.envelope.header.sequence,
        _ => panic!("not a message"),
    };
    let (mut taken, mut refused) = (Vec::new(), 0);
    let mut number = 0;
    // As fast as a reading client can follow.
    while refused < 30 {
        number += 1;
        let mut flood = letter(&mallory, &["sloth", "keen"]);
        flood.envelope.header.sequence = number;
        flood.envelope.body.ciphertext = Bytes(vec![9; 32 * 1024]);
        raw.say(&send(flood));
        let Sent { delivered, offline, stale, busy, .. } = sent(&mut raw);
        assert!(offline.is_empty() && stale.is_empty());
        let names: Vec<&str> = delivered.iter().chain(&busy).map(|name| name.as_str()).collect();
        assert_eq!(names, ["keen", "sloth"]);
        if busy.is_empty() {
            taken.push(number);
        } else {
            refused += 1;
        }
        assert_eq!(next(&mut keen), number);
        keen.acknowledge();
        if number % 30 == 0 {
            scene.exchange();
        }
        assert!(number < 1000, "the queue never fills");
    }
    // When it reads, it gets exactly the envelopes that were reported as delivered.
    assert!(!taken.is_empty());
    for number in taken {
        assert_eq!(next(&mut sloth), number);
    }
    assert!(sloth.is_usable() && keen.is_usable());
    scene.close();
}

/// PROTOCOL#shares.
#[test]
fn flood_leaves_room_for_messages_of_others() {
    let server = Server::with(&["--rate", "100000"]);
    let (mut carol, carols) = newcomer(&server, "carol");
    let floods: [(Scope, usize, usize, bool); 5] = [
        (Scope::Private, 1, MAX_CIPHERTEXT, false),
        (Scope::Broadcast, 1, MAX_CIPHERTEXT, false),
        (Scope::Private, 1, 0, false),
        (Scope::Private, 3, MAX_CIPHERTEXT, false),
        (Scope::Later(Word::new("grants").expect("short")), 1, 0, true),
    ];
    for (n, (scope, senders, size, grants)) in floods.into_iter().enumerate() {
        let bob = format!("bob{n}");
        let (raw, bobs) = newcomer(&server, &bob);
        // Bob's connection is cut, and his session waits.
        drop(raw);
        for sender in 0..senders {
            let (mut eve, eves) = newcomer(&server, &format!("eve{n}-{sender}"));
            let mut is_busy = || {
                if grants {
                    let grant = |count: u32| {
                        ClientMessage::Grant(Grant {
                            peer: bobs.name.clone(),
                            transfer: Fixed([7; 16]),
                            count,
                        })
                    };
                    [grant(1), grant(0), ClientMessage::Ping].iter().for_each(|message| eve.say(message));
                    let refused = matches!(eve.answer(), Some(ServerMessage::Refused(_)));
                    return refused && matches!(eve.answer(), Some(ServerMessage::Pong));
                }
                let mut flood = letter(&eves, &[&bob]);
                flood.envelope.body.ciphertext = Bytes(vec![5; size]);
                flood.envelope.header.scope = scope;
                flood.envelope.header.recipient = (scope == Scope::Private).then(|| bobs.name.clone());
                eve.say(&send(flood));
                !sent(&mut eve).busy.is_empty()
            };
            assert!((0..10_000).any(|_| is_busy()), "the queue never fills");
        }
        carol.say(&send(letter(&carols, &[&bob])));
        assert_eq!(sent(&mut carol).delivered.len(), 1, "{senders} times {scope} of {size} bytes");
    }
}

/// PROTOCOL#ends-at-once.
#[test]
fn peer_that_asks_and_never_reads_is_closed() {
    // A high rate, so that answers pile up and not requests.
    let mut scene = Scene::open(&["--rate", "2000"]);
    let (mut raw, mallory) = newcomer(&scene.server, "mallory");
    let names = vec![mallory.name.clone()];
    let request = ClientMessage::KeysRequest(KeysRequest { names }).encode();
    for n in 0..8000 {
        if !raw.bytes(&request) {
            break;
        }
        if n % 400 == 0 {
            scene.exchange();
        }
    }
    scene.server.logs("event=logout user=mallory ");
    scene.close();
}

#[test]
fn connection_floods_evict_only_the_oldest_strangers() {
    let mut scene = Scene::open(&["--waiting", "64", "--per-address", "400"]);
    let sockets: Vec<TcpStream> = (0..40).map(|_| scene.server.socket()).collect();
    thread::scope(|scope| {
        for socket in sockets {
            scope.spawn(|| assert!(Raw::over(socket, true).is_usable()));
        }
    });
    scene.exchange();
    let mut sockets: Vec<TcpStream> = (0..300).map(|_| scene.server.socket()).collect();
    for socket in &mut sockets[..200] {
        // The server closes these at once, long before ten seconds.
        assert!(!matches!(socket.read(&mut [0; 64]), Ok(1..)));
    }
    scene.exchange();
    let newest = sockets.last().expect("one");
    newest.set_nonblocking(true).expect("socket");
    let waiting = newest.peek(&mut [0; 1]).err().map(|error| error.kind());
    assert_eq!(waiting, Some(std::io::ErrorKind::WouldBlock));
    // With all places taken by unfinished logins, a new client can still log in.
    newcomer(&scene.server, "carol");
    drop(sockets);
    scene.close();
}

#[test]
fn address_has_no_more_connections_than_its_limit() {
    let mut scene = Scene::open(&["--per-address", "12"]);
    let mut sockets: Vec<TcpStream> = (0..60).map(|_| scene.server.socket()).collect();
    for socket in &mut sockets[20..] {
        assert!(!matches!(socket.read(&mut [0; 64]), Ok(1..)));
    }
    let refused = "event=refused user=- addr=- too many connections";
    scene.server.logs(refused);
    scene.exchange();
    // Other clients are accepted meanwhile.
    let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let other = other.expect("socket");
    let from: std::net::SocketAddr = "127.0.0.9:0".parse().expect("address");
    other.bind(&from.into()).expect("a loopback address");
    let to: std::net::SocketAddr = ([127, 0, 0, 1], scene.server.port).into();
    other.connect(&to.into()).expect("connected");
    assert!(Raw::over(other.into(), true).is_usable());
    drop(sockets);
    scene.close();
}

#[test]
fn server_with_few_descriptors_never_runs_out() {
    let mut scene = Scene::after("ulimit -n 100", &["--per-address", "1000"]);
    let sockets: Vec<TcpStream> = (0..300).map(|_| scene.server.socket()).collect();
    scene.exchange();
    newcomer(&scene.server, "carol");
    drop(sockets);
    newcomer(&scene.server, "dave");
    let log = scene.server.log();
    assert!(!log.contains("event=accept_failed") && !log.contains("event=storage_failed"), "{log}");
    scene.close();
}

#[test]
fn bytes_that_are_not_tls_end_the_connection_at_once() {
    let mut scene = Scene::open(&[]);
    let started = Instant::now();
    let line = ClientMessage::Ping.encode();
    for bytes in [
        &b"GET / HTTP/1.0\r\n\r\n"[..],
        &line,
        &[0; 70_000],
        &[0xff; 5],
        &[22, 3, 1, 255, 255, 1, 2, 3],
        &[22, 3, 1, 0, 4, 2, 0, 0, 0],
        &[23, 3, 3, 0, 3, 1, 2, 3],
        &[21, 3, 3, 0, 2, 2, 40],
    ] {
        let mut socket = scene.server.socket();
        let _ = socket.write_all(bytes);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        assert!(answer.len() < 64 && !text.contains("type"), "nothing in the clear: {text}");
    }
    // The same inside an established TLS connection.
    let (raw, _) = newcomer(&scene.server, "mallory");
    let forged = b"\x17\x03\x03\x00\x20 not what the keys would make of it";
    raw.channel.send_by(forged, Instant::now() + support::DEADLINE).expect("sent");
    let mut raw = raw;
    assert!(raw.is_closed());
    assert!(started.elapsed() < Duration::from_secs(9), "not merely timed out");
    scene.exchange();
    scene.close();
}

#[test]
fn connections_cut_at_any_point_leave_nothing_behind() {
    let mut scene = Scene::open(&["--grace", "1"]);
    let (raw, mallory) = newcomer(&scene.server, "mallory");
    let message = send(letter(&mallory, &["mallory"])).encode();
    let ask = login_request(&mallory);
    drop(raw);
    scene.server.logs("event=logout user=mallory ");
    let mut before = scene.held();
    // Wait for idle threads to end.
    until("the server is at rest", || {
        let former = std::mem::replace(&mut before, scene.held());
        before == former && before.0 <= 12
    });
    for hard in [false, true] {
        let cut = |socket: &TcpStream| {
            if hard {
                let linger = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
                linger.expect("socket");
            }
        };
        for bytes in [&b""[..], b"\x16\x03\x01\x02\x00\x01", &[22, 3, 1, 0, 4, 1, 0, 0, 9]] {
            let mut socket = scene.server.socket();
            cut(&socket);
            socket.write_all(bytes).expect("sent");
        }
        for stage in 0..8 {
            let socket = scene.server.socket();
            let keep = socket.try_clone().expect("socket");
            cut(&keep);
            let mut raw = Raw::over(socket, true);
            match stage {
                0 => {}
                1 => drop(raw.bytes(&ask[..20])),
                2 => drop(raw.bytes(&ask)),
                3 => {
                    raw.bytes(&ask);
                    raw.answer();
                    raw.bytes(&ask[..30]);
                }
                _ => {
                    raw.logs_in(&mallory);
                    match stage {
                        4 => {}
                        5 => drop(raw.bytes(&message[..message.len() / 2])),
                        6 => drop(raw.bytes(&message)),
                        _ => drop((0..50).all(|_| raw.bytes(&message))),
                    }
                }
            }
            if !hard && stage % 2 == 1 {
                let _ = keep.shutdown(Shutdown::Write);
            }
        }
        scene.exchange();
    }
    until("no thread and no descriptor is left over", || {
        let (threads, descriptors) = scene.held();
        threads <= before.0 && descriptors <= before.1
    });
    let mut again = scene.server.raw();
    again.logs_in(&mallory);
    scene.close();
}

/// PROTOCOL#replaced.
#[test]
fn replaced_session_sends_nothing_more() {
    let scene = Scene::open(&[]);
    let (mut carol, carols) = newcomer(&scene.server, "carol");
    let mallory = Person::new("mallory");
    let (_, descriptors) = scene.held();
    let (mut older, _) = newcomer(&scene.server, "mallory");
    let mut newer = scene.server.raw();
    newer.logs_in(&mallory);
    assert_eq!(older.error(), "signed_in_elsewhere");
    // The older client still sends, on a socket that the server reads for a moment.
    older.bytes(&send(letter(&mallory, &["carol"])).encode());
    drop(older);
    until("the server has closed it", || scene.held().1 <= descriptors + 1);
    assert!(carol.is_usable(), "nothing came before the answer");
    newer.say(&send(letter(&mallory, &["carol"])));
    assert_eq!(sent(&mut newer).delivered.len(), 1);
    assert!(matches!(carol.answer(), Some(ServerMessage::EncryptedMessage(_))));
    // Its end did not remove the newer session.
    carol.say(&send(letter(&carols, &["mallory"])));
    assert_eq!(sent(&mut carol).delivered.len(), 1);
    scene.close();
}

/// PROTOCOL#replaced.
#[test]
fn replaced_client_that_stays_holds_no_resources() {
    let scene = Scene::open(&["--clients", "8", "--waiting", "8"]);
    let (first, mallory) = newcomer(&scene.server, "mallory");
    let log_in = || {
        let mut raw = scene.server.raw();
        raw.logs_in(&mallory);
        raw
    };
    let (mut older, (_, descriptors)) = (vec![first], scene.held());
    // No input prolongs a replaced connection, not even valid lines.
    for bytes in [&b" "[..], &b"{\"type\":\"ack\",\"received\":0}\n".repeat(1000)] {
        older.push(log_in());
        let [.., replaced, _] = &mut older[..] else { unreachable!() };
        assert_eq!(replaced.error(), "signed_in_elsewhere");
        replaced.bytes(bytes);
        until("the server has closed it", || scene.held().1 <= descriptors);
    }
    // Silent replaced connections give way to new ones.
    (0..30).for_each(|_| older.push(log_in()));
    newcomer(&scene.server, "carol");
    drop(older);
    scene.close();
}

/// PROTOCOL#registration-limit.
#[test]
fn registrations_of_an_address_are_limited_per_minute() {
    let server = Server::with(&["--registrations", "3"]);
    let request = register("somebody");
    let line = |name: &str| with_field(&request, "username", &format!("\"{name}\""));
    let mut raw = server.raw();
    for name in ["carol", "dave", "carol"] {
        raw.bytes(line(name).as_bytes());
        // A registration of a taken name counts like one of a free name.
        assert!(matches!(raw.answer(), Some(ServerMessage::Registered | ServerMessage::Error(_))));
    }
    raw.bytes(line("erin").as_bytes());
    let failure = raw.failure();
    assert_eq!(failure.code, "too_many_requests");
    assert!(failure.retry_after.is_some_and(|wait| (1..=61).contains(&wait)), "{:?}", failure.retry_after);
    assert!(raw.is_closed());
    // Another connection from the same address does not help, and no account is left behind.
    let mut raw = server.raw();
    raw.bytes(line("frank").as_bytes());
    assert_eq!(raw.error(), "too_many_requests");
    let users = std::fs::read_to_string(server.data("users.json")).expect("read");
    assert_eq!(users.lines().count(), 2, "{users}");
    assert!(!server.data("keys/erin.pem").exists());
}

/// PROTOCOL#rate.
#[test]
fn client_that_sends_too_fast_is_throttled_and_loses_nothing() {
    let server = Server::with(&["--rate", "20"]);
    let (mut raw, _) = newcomer(&server, "mallory");
    let started = Instant::now();
    // The burst limit is four seconds' worth; the rest is throttled.
    raw.bytes(&ClientMessage::Ping.encode().repeat(100));
    for _ in 0..100 {
        assert!(matches!(raw.answer(), Some(ServerMessage::Pong)));
    }
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
}

/// PROTOCOL#renew, PROTOCOL#session-certificate, PROTOCOL#two-clocks.
#[test]
fn renewal_needs_the_owner_s_valid_certificate() {
    let scene = Scene::open(&[]);
    let (mut raw, mallory) = newcomer(&scene.server, "mallory");
    let (stranger, new) = (IdentityKey::generate(), SessionKey::generate());
    let (now, hour) = (clock::now_ms(), 3_600_000);
    let certify =
        |identity: &IdentityKey, owner: &str, created| identity.certify(&name(owner), &new, created);
    let shown = |raw: &mut Raw| raw.keys(&["mallory"]).keys[0].session_key.clone().expect("online").0;
    let mut moved = mallory.identity.certify(&mallory.name, &mallory.session, now);
    moved.session_key = Bytes(new.public().spki());
    for (what, certificate) in [
        ("by another", certify(&stranger, "mallory", now)),
        ("for another name", certify(&mallory.identity, "alice", now)),
        ("expired", certify(&mallory.identity, "mallory", now - 27 * hour)),
        ("from the past", certify(&mallory.identity, "mallory", now - 3 * hour)),
        ("from the future", certify(&mallory.identity, "mallory", now + 3 * hour)),
        ("moved to another key", moved),
    ] {
        raw.say(&ClientMessage::Renew(Box::new(certificate)));
        assert_eq!(raw.error(), "bad_key", "{what}");
        assert!(shown(&mut raw) == mallory.session.public().spki(), "{what}: the former key stays");
    }
    let certificate = certify(&mallory.identity, "mallory", now);
    raw.say(&ClientMessage::Renew(Box::new(certificate)));
    assert!(matches!(raw.answer(), Some(ServerMessage::Session(_))));
    assert!(shown(&mut raw) == new.public().spki());
    scene.close();
}

// ---- messages for absent users

/// PROTOCOL#mailbox-key, PROTOCOL#mailbox-certificate.
#[test]
fn mailbox_key_needs_the_owner_s_own_new_certificate() {
    let server = Server::start();
    let (mut raw, carol) = server.present("carol");
    let now = clock::now_ms();
    let hour = 3_600_000;
    let session = carol.identity.certify(&carol.name, mailbox_key(), now);
    let of_session = MailboxCertificate {
        mailbox_key: session.session_key,
        created: now,
        certificate: session.certificate,
    };
    let good = carol.mailbox(now);
    let stranger = IdentityKey::generate();
    let refused = [
        ("a session certificate", of_session),
        ("another name", carol.identity.certify_mailbox(&name("bob"), mailbox_key(), now)),
        ("another identity", stranger.certify_mailbox(&carol.name, mailbox_key(), now)),
        ("another time", MailboxCertificate { created: now + 1, ..good.clone() }),
        (
            "another key",
            MailboxCertificate { mailbox_key: Bytes(carol.session.public().spki()), ..good.clone() },
        ),
        ("no key", MailboxCertificate { mailbox_key: Bytes(vec![1; 294]), ..good.clone() }),
        ("from the future", carol.mailbox(now + 3 * hour)),
        ("old", carol.mailbox(now - 3 * hour)),
    ];
    for (what, certificate) in &refused {
        assert_eq!(raw.set_mailbox(certificate), "bad_mailbox", "{what}");
    }
    assert!(!server.data("mail/carol/key").exists());
    assert_eq!(raw.set_mailbox(&good), "mailbox_set");
    for (what, certificate) in refused.iter().chain([&("older", carol.mailbox(now - 1))]) {
        raw.say(&ClientMessage::Mailbox(Box::new(certificate.clone())));
        let failure = raw.failure();
        assert_eq!((failure.code.as_str(), failure.newest), ("bad_mailbox", Some(now)), "{what}");
    }
    raw.leaves();
    let (mut alice, _) = server.present("alice");
    assert!(shown_mailbox(&mut alice, &carol).is_some_and(|shown| shown == good));
    // Before a login there is no mailbox.
    let mut guest = server.raw();
    assert_eq!(guest.set_mailbox(&good), "not_logged_in");
}

/// PROTOCOL#fetching, PROTOCOL#mail_done, PROTOCOL#mail_request.
#[test]
fn user_neither_reads_nor_deletes_another_user_s_mail() {
    let server = Server::start();
    let carol = server.absent("carol");
    let (mut alice, from) = server.present("alice");
    assert_eq!(alice.outcome(&from.mail_for("carol", mailbox_key().public(), 1, "text")), "kept");
    let (mut mallory, _) = server.present("mallory");
    let mail = mallory.fetch();
    assert!(mail.mail.is_empty() && !mail.more && mail.other == 0);
    let numbers = (0..100).chain([u64::MAX]).collect();
    mallory.say(&ClientMessage::MailDone(MailDone { numbers }));
    mallory.say(&ClientMessage::MailRequest(MailRequest {
        keys: vec![mailbox_key().fingerprint(); 65],
        after: 0,
    }));
    assert_eq!(mallory.error(), "malformed");
    assert!(mallory.is_usable());
    assert_eq!(server.returns(&carol).fetch().mail.len(), 1);
}

/// PROTOCOL#mail-limits.
#[test]
fn flood_of_mail_leaves_room_and_stays_within_its_limits() {
    let arguments = ["--mail", "384", "--mail-sender", "100", "--registrations", "100000"];
    let server = Server::with(&arguments);
    let names = ["carol", "dave", "erin"];
    let people = names.map(|name| server.absent(name));
    let ((mut mallory, flooder), (mut alice, from)) = (server.present("mallory"), server.present("alice"));
    let key = mailbox_key().public();
    let mut kept = [0u64; 3];
    for (n, to) in names.iter().enumerate() {
        let letter = |number| flooder.mail_for(to, key, number, &"x".repeat(3000));
        while mallory.outcome(&letter(kept[n] + 1)) == "kept" {
            kept[n] += 1;
        }
        assert_eq!(mallory.outcome(&letter(99)), "busy");
    }
    let bytes = |name: &str| {
        let files = support::files(&server.data("mail").join(name));
        let mail = files.iter().filter(|path| path.display().to_string().contains("mallory"));
        mail.map(|path| path.metadata().map_or(0, |data| data.len())).sum::<u64>()
    };
    let sizes = names.map(bytes);
    let one = sizes[0] / kept[0];
    assert!(sizes[0] <= 48 * 1024 && sizes[0] + one > 48 * 1024, "an eighth: {sizes:?}");
    assert!(sizes[2] < sizes[0] && sizes.iter().sum::<u64>() + one > 100 * 1024, "{sizes:?}");
    assert!(sizes.iter().sum::<u64>() <= 100 * 1024, "{sizes:?}");
    for (person, to) in people.iter().zip(names) {
        assert_eq!(alice.outcome(&from.mail_for(to, key, 1, "text")), "kept");
        let mail = server.returns(person).fetch();
        assert!(mail.more || mail.mail.iter().any(|kept| kept.message.envelope.header.from == from.name));
    }
}
