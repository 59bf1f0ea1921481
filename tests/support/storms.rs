//! What too many and too busy clients do to a server, for the test that nobody else is harmed and the bench of how much
//! slower it makes the others. A storm lasts until it is told to stop, and goes through at least once.

use super::{Output, Person, Raw};
use secure_messenger::protocol::{ClientMessage, ServerMessage};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// What a storm makes the witnesses' server be started with.
pub const ARGUMENTS: [&str; 8] =
    ["--registrations", "100000", "--waiting", "64", "--clients", "120", "--per-address", "2000"];
/// Logins at once, half-open handshakes.
const LOGINS: usize = 200;
const HALF_OPEN: usize = 500;

type Storm = fn(u16, &AtomicBool);

/// All storms that need no other server than that.
pub const STORMS: [(&str, Storm); 8] = [
    ("hundreds of logins at once", logins),
    ("more logged in than --clients", crowd),
    ("half-open handshakes", half_open),
    ("one that sends as fast as it can", flood),
    ("one that asks and never reads", deaf),
    ("TLS records of one byte", crumbs),
    ("TLS key updates", key_updates),
    ("TLS 1.2 renegotiations", renegotiations),
];

/// Again and again until it is to stop.
fn again(stop: &AtomicBool, mut what: impl FnMut()) {
    loop {
        what();
        if stop.load(Ordering::SeqCst) {
            return;
        }
    }
}

fn reach(port: u16) -> Raw {
    Raw::reach(port).expect("a handshake")
}

/// A person of that name, logged in; of those before, if there is one.
fn someone(port: u16, name: &str) -> Raw {
    let (mut raw, person) = (reach(port), Person::new(name));
    raw.register_quickly(&person);
    assert!(matches!(raw.log_in_quickly(&person), Some(ServerMessage::Session(_))), "{name} is in");
    raw
}

/// All of them are let in.
pub fn logins(port: u16, stop: &AtomicBool) {
    // More than may wait would push each other out.
    const AT_ONCE: usize = 50;
    again(stop, || {
        thread::scope(|scope| {
            for n in 0..AT_ONCE {
                scope.spawn(move || {
                    for m in 0..LOGINS / AT_ONCE {
                        drop(someone(port, &format!("login{n}-{m}")));
                    }
                });
            }
        });
    });
}

/// Those who are too many are told so.
pub fn crowd(port: u16, stop: &AtomicBool) {
    let mut people = Vec::new();
    let mut full = 0;
    for n in 0.. {
        let (mut raw, person) = (reach(port), Person::new(&format!("crowd{n}")));
        raw.register_quickly(&person);
        match raw.log_in_quickly(&person) {
            Some(ServerMessage::Session(_)) => people.push(raw),
            Some(ServerMessage::Error(failure)) => {
                assert_eq!(failure.code, "server_full");
                full += 1;
            }
            _ => panic!("neither let in nor refused"),
        }
        if full >= 20 && (stop.load(Ordering::SeqCst) || full >= 200) {
            break;
        }
    }
    // Their sessions would stand for a minute.
    for mut raw in people {
        raw.bytes(&ClientMessage::Logout.encode());
    }
}

/// Each begins a handshake and says no more.
pub fn half_open(port: u16, stop: &AtomicBool) {
    again(stop, || {
        let mut sockets: Vec<TcpStream> =
            (0..HALF_OPEN).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("accepted")).collect();
        for socket in &mut sockets {
            // The head of a record with a ClientHello of 512 bytes. It may have been pushed out already.
            let _ = socket.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]);
        }
        // The first of them is.
        assert!(!matches!(sockets[0].read(&mut [0; 64]), Ok(1..)));
    });
}

/// Each request is answered, at last as slowly as the rate says.
pub fn flood(port: u16, stop: &AtomicBool) {
    // More than may come at once.
    const AT_ONCE: usize = 450;
    let mut raw = someone(port, "flood");
    again(stop, || {
        raw.bytes(&b"{\"type\":\"keys_request\",\"names\":[\"flood\"]}\n".repeat(AT_ONCE));
        for _ in 0..AT_ONCE {
            assert!(matches!(raw.answer(), Some(ServerMessage::Keys(_))));
        }
        raw.acknowledge();
    });
    raw.bytes(&ClientMessage::Logout.encode());
}

/// Nobody takes its answers; when they are too much to keep, it is left, and comes again.
pub fn deaf(port: u16, stop: &AtomicBool) {
    let request = b"{\"type\":\"keys_request\",\"names\":[\"alice\",\"bob\",\"deaf\"]}\n".repeat(50);
    let mut raw = someone(port, "deaf");
    again(stop, || {
        if !raw.bytes(&request) {
            raw = someone(port, "deaf");
        }
    });
    raw.bytes(&ClientMessage::Logout.encode());
}

/// Every byte of what it says is a record of its own.
pub fn crumbs(port: u16, stop: &AtomicBool) {
    let mut raw = someone(port, "crumbs");
    again(stop, || {
        for _ in 0..50 {
            for byte in ClientMessage::Ping.encode() {
                assert!(raw.bytes(&[byte]));
            }
        }
        for _ in 0..50 {
            assert!(matches!(raw.answer(), Some(ServerMessage::Pong)));
        }
    });
    raw.bytes(&ClientMessage::Logout.encode());
}

/// New keys for a connection, again and again, as `openssl s_client` has them made; it asks the server for new ones, too.
pub fn key_updates(port: u16, stop: &AtomicBool) {
    // Who is not logged in may say 32 lines, so that it is a new connection each time.
    again(stop, || {
        let (mut child, mut input, mut output, mut errors) = openssl(port, "-tls1_3");
        // More than 32 without a word in between, and the server's TLS library gives it up.
        for _ in 0..30 {
            // One command a read.
            input.write_all(b"K\n").expect("it reads");
            errors.expect("KEYUPDATE");
        }
        input.write_all(b"{\"type\":\"ping\"}\n").expect("it reads");
        output.expect("\"pong\"");
        child.kill().expect("it runs");
        child.wait().expect("it ends");
    });
}

/// New handshakes on a connection that has one: TLS 1.2 would allow it, the server does not.
pub fn renegotiations(port: u16, stop: &AtomicBool) {
    again(stop, || {
        let (mut child, mut input, _output, mut errors) = openssl(port, "-tls1_2");
        input.write_all(b"R\n").expect("it reads");
        errors.expect("RENEGOTIATING");
        errors.expect("no renegotiation");
        child.wait().expect("it ends");
    });
}

/// `openssl s_client` after its handshake: the process, where its commands go, what it says, and what it complains of.
fn openssl(port: u16, version: &str) -> (Child, ChildStdin, Output, Output) {
    let mut child = Command::new("openssl")
        .args(["s_client", version, "-connect", &format!("127.0.0.1:{port}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is there");
    let input = child.stdin.take().expect("piped");
    let mut output = Output::of(child.stdout.take().expect("piped"));
    let errors = Output::of(child.stderr.take().expect("piped"));
    output.expect("Verify return code");
    (child, input, output, errors)
}
