//! Overload by too many or too busy clients. A test checks that other clients are not harmed; a bench measures how much
//! slower they become. A storm runs until it is stopped, and completes at least one round.

use super::{Output, Person, Raw};
use secure_messenger::protocol::{ClientMessage, ServerMessage};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// The server's arguments for all storms.
pub const ARGUMENTS: [&str; 8] =
    ["--registrations", "100000", "--waiting", "64", "--clients", "120", "--per-address", "2000"];
/// The number of logins, and of half-open handshakes, in one round.
const LOGINS: usize = 200;
const HALF_OPEN: usize = 500;

type Storm = fn(u16, &AtomicBool);

/// All storms that work with a server started with [`ARGUMENTS`].
pub const STORMS: [(&str, Storm); 8] = [
    ("hundreds of logins at once", logins),
    ("more logged in than --clients", crowd),
    ("half-open handshakes", half_open),
    ("a client that sends as fast as it can", flood),
    ("a client that asks and never reads", deaf),
    ("TLS records of one byte", crumbs),
    ("TLS key updates", key_updates),
    ("TLS 1.2 renegotiations", renegotiations),
];

/// Repeats `what` until it is stopped.
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

/// A client logged in under that name; the account may exist already.
fn someone(port: u16, name: &str) -> Raw {
    let (mut raw, person) = (reach(port), Person::new(name));
    raw.register_quickly(&person);
    assert!(matches!(raw.log_in_quickly(&person), Some(ServerMessage::Session(_))), "{name} is in");
    raw
}

/// Many logins at once; the server admits all of them.
pub fn logins(port: u16, stop: &AtomicBool) {
    // Below `--waiting`: more would evict each other.
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

/// More clients than `--clients`: the server answers `server_full`.
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
            _ => panic!("neither admitted nor refused"),
        }
        if full >= 20 && (stop.load(Ordering::SeqCst) || full >= 200) {
            break;
        }
    }
    // Otherwise the server would keep their sessions for a minute.
    for mut raw in people {
        raw.bytes(&ClientMessage::Logout.encode());
    }
}

/// Each connection begins a handshake and sends nothing further.
pub fn half_open(port: u16, stop: &AtomicBool) {
    again(stop, || {
        let mut sockets: Vec<TcpStream> =
            (0..HALF_OPEN).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("accepted")).collect();
        for socket in &mut sockets {
            // The head of a record with a ClientHello of 512 bytes. The server may have evicted the connection already.
            let _ = socket.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]);
        }
        // The server has evicted the first one.
        assert!(!matches!(sockets[0].read(&mut [0; 64]), Ok(1..)));
    });
}

/// Each request is answered, at the rate limit once the burst is used up.
pub fn flood(port: u16, stop: &AtomicBool) {
    // More than the allowed burst.
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

/// The client never reads its answers. The server disconnects it when they exceed the limit, and it logs in again.
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

/// The client sends each byte in its own TLS record.
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

/// Many TLS key updates of both sides, requested by `openssl s_client`.
pub fn key_updates(port: u16, stop: &AtomicBool) {
    // A new connection each round, because a client that is not logged in may send only 32 lines.
    again(stop, || {
        let (mut child, mut input, mut output, mut errors) = openssl(port, "-tls1_3");
        // The server's TLS library closes the connection after 32 updates without data in between.
        for _ in 0..30 {
            // openssl executes one command per read.
            input.write_all(b"K\n").expect("it reads");
            errors.expect("KEYUPDATE");
        }
        input.write_all(b"{\"type\":\"ping\"}\n").expect("it reads");
        output.expect("\"pong\"");
        child.kill().expect("it runs");
        child.wait().expect("it ends");
    });
}

/// Renegotiations, which TLS 1.2 allows and the server refuses.
pub fn renegotiations(port: u16, stop: &AtomicBool) {
    again(stop, || {
        let (mut child, mut input, _output, mut errors) = openssl(port, "-tls1_2");
        input.write_all(b"R\n").expect("it reads");
        errors.expect("RENEGOTIATING");
        errors.expect("no renegotiation");
        child.wait().expect("it ends");
    });
}

/// Runs `openssl s_client` until its handshake is done; the process, its input, its output and its errors.
fn openssl(port: u16, version: &str) -> (Child, ChildStdin, Output, Output) {
    let mut child = Command::new("openssl")
        .args(["s_client", version, "-connect", &format!("127.0.0.1:{port}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl starts");
    let input = child.stdin.take().expect("piped");
    let mut output = Output::of(child.stdout.take().expect("piped"));
    let errors = Output::of(child.stderr.take().expect("piped"));
    output.expect("Verify return code");
    (child, input, output, errors)
}
