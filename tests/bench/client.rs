//! The work of the client: the time from a typed broadcast to its envelope, from a received message to its entry on the
//! screen, and from the start of a real client to the end of its login. Medians.
//!
//! `cargo bench --bench client [-- --runs N]`

mod measure;
#[path = "../support/mod.rs"]
mod support;

use measure::{cpu, median};
use secure_messenger::client::session::{Action, Effect, Event, Session};
use secure_messenger::clock;
use secure_messenger::crypto::envelope::{Header, Kind, Scope, Sealed};
use secure_messenger::crypto::keys::{IdentityKey, SessionKey};
use secure_messenger::crypto::public::SessionPublicKey;
use secure_messenger::encoding::Bytes;
use secure_messenger::name::Username;
use secure_messenger::protocol::{
    ClientMessage, EncryptedMessage, Keys, Presence, Sent, ServerMessage, UserKeys, WrappedKey,
};
use std::process::{Command, Stdio};
use std::time::Instant;
use support::{Folder, PASSWORD, Person, Server, memory};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runs = words.iter().position(|word| word == "--runs");
    let runs = runs.map_or(5, |at| words[at + 1].parse().expect("a number"));
    println!("medians of {runs}");
    for recipients in [1, 50, 1000] {
        let (wall, used) = seal(recipients, runs);
        println!("  a line to {recipients:>4}, typed to ready: {wall:>6.1} ms, {used:>6.1} ms CPU");
    }
    println!("  a message, received to shown:     {:>6.1} ms", open(runs));
    let (first, again) = start(runs);
    println!("  start, register, log in, leave:   {first:>6.0} ms");
    println!("  start, log in, leave:             {again:>6.0} ms");
}

/// The session of the user `me`, who has the keys of all other users.
struct Scene {
    session: Session,
    public: SessionPublicKey,
    _folder: Folder,
}

impl Scene {
    fn new(people: &[Person]) -> Scene {
        let folder = Folder::new();
        let me = "me".parse().expect("a name");
        let (identity, key) = (IdentityKey::generate(), SessionKey::generate());
        let public = key.public().clone();
        let session = Session::new(me, identity, key, memory(&folder), Instant::now());
        let mut scene = Scene { session, public, _folder: folder };
        let joined = people.iter().map(|person| person.name.clone()).collect();
        scene.hear(ServerMessage::Presence(Presence { more: false, full: true, joined, left: Vec::new() }));
        scene
    }

    fn hear(&mut self, message: ServerMessage) -> Vec<Effect> {
        self.take(Event::Server(message))
    }

    fn take(&mut self, event: Event) -> Vec<Effect> {
        self.session.handle(event, clock::now_ms(), Instant::now())
    }

    /// Answers the session's requests as a server would, until there are none left.
    fn settle(&mut self, effects: Vec<Effect>, people: &[Person]) {
        let mut asked: Vec<Effect> = effects;
        while let Some(effect) = asked.pop() {
            let answer = match effect {
                Effect::Do(Action::Send(ClientMessage::KeysRequest(request))) => {
                    let of = |name: &Username| people.iter().find(|person| person.name == *name).map(keys_of);
                    let keys = request.names.iter().filter_map(of).collect();
                    ServerMessage::Keys(Keys { keys, unknown: Vec::new() })
                }
                Effect::Do(Action::Send(ClientMessage::EncryptedSend(send))) => {
                    let (id, delivered) = (send.routing.id, send.routing.targets);
                    ServerMessage::Sent(Sent { id, delivered, ..Sent::default() })
                }
                _ => continue,
            };
            asked.extend(self.hear(answer));
        }
    }
}

fn keys_of(person: &Person) -> UserKeys {
    let certificate = person.identity.certify(&person.name, &person.session, clock::now_ms());
    let fields = certificate.clone();
    UserKeys {
        name: person.name.clone(),
        identity: Bytes(person.identity.public().spki()),
        session_key: Some(fields.session_key),
        mailbox_key: None,
        created: Some(fields.created),
        certificate: Some(fields.certificate),
    }
}

/// Milliseconds of wall time and of CPU time from a typed line to its sealed message.
fn seal(recipients: usize, runs: usize) -> (f64, f64) {
    let people: Vec<Person> = (0..recipients).map(|n| Person::new(&format!("p{n}"))).collect();
    let mut scene = Scene::new(&people);
    // The first line makes the session request the keys.
    let effects = scene.take(Event::Line("hello".into()));
    scene.settle(effects, &people);
    // Enough lines for the resolution of the CPU clock.
    const LINES: usize = 20;
    let times = (0..runs).map(|_| {
        let (start, before) = (Instant::now(), cpu(std::process::id()));
        let mut effects = Vec::new();
        for n in 0..LINES {
            effects.extend(scene.take(Event::Line(format!("a line of about the usual length, number {n}"))));
            let sent = effects.iter().find(|effect| matches!(effect, Effect::Do(Action::Send(_))));
            let Some(Effect::Do(Action::Send(message))) = sent else { panic!("the message is not sent") };
            // Each recipient's wrapped key has 352 characters in base64.
            assert!(message.encode().len() > recipients * 352);
            scene.settle(std::mem::take(&mut effects), &people);
        }
        let count = LINES as f64 / 1e3;
        (start.elapsed().as_secs_f64() / count, (cpu(std::process::id()) - before) / count)
    });
    let (wall, used): (Vec<f64>, Vec<f64>) = times.unzip();
    (median(wall), median(used))
}

/// Milliseconds from a line of the server to the entry on the screen.
fn open(runs: usize) -> f64 {
    let alice = Person::new("alice");
    let people = [Person::new("alice")];
    let mut scene = Scene::new(&people);
    let effects = scene.take(Event::Line("hello".into()));
    scene.settle(effects, &people);
    let mine = scene.public.clone();
    let mut sequence = 0;
    let mut one = || {
        sequence += 1;
        let header = Header {
            kind: Kind::Message,
            scope: Scope::Broadcast,
            recipient: None,
            recipient_key: None,
            from: alice.name.clone(),
            identity: alice.identity.public().fingerprint(),
            session: alice.session.fingerprint(),
            sequence,
            time: clock::now_ms(),
            again: None,
        };
        let sealed = Sealed::seal(header, &alice.identity, b"an answer of about the usual length");
        let key = WrappedKey::new(&sealed.wrap_for(&mine));
        let message = EncryptedMessage { envelope: sealed.envelope, key };
        let line = ServerMessage::EncryptedMessage(Box::new(message)).encode();
        let start = Instant::now();
        let message = ServerMessage::decode(&line[..line.len() - 1]).expect("a message");
        let shown = scene.hear(message);
        assert!(shown.iter().any(|effect| matches!(effect, Effect::Show(_))), "the message is shown");
        start.elapsed().as_secs_f64() * 1e3
    };
    median((0..runs.max(5) * 20).map(|_| one()).collect())
}

/// Milliseconds of a real client that logs in and exits, with a new account and with an existing one.
fn start(runs: usize) -> (f64, f64) {
    let server = Server::with(&["--registrations", "10000"]);
    let homes: Vec<Folder> = (0..runs).map(|_| Folder::new()).collect();
    let run = |home: &Folder, name: &str, register: &[&str]| {
        let start = Instant::now();
        let status = Command::new(env!("CARGO_BIN_EXE_client"))
            .args(["--host", "127.0.0.1", "--accept-new", "--user", name, "--port", &server.port.to_string()])
            .args(register)
            .arg("--password-file")
            .arg(home.password_file(PASSWORD))
            .env("HOME", &home.0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        assert!(status.expect("it starts").success());
        start.elapsed().as_secs_f64() * 1e3
    };
    let name = |n: usize| format!("start{n}");
    let first = homes.iter().enumerate().map(|(n, home)| run(home, &name(n), &["--register"])).collect();
    let again = homes.iter().enumerate().map(|(n, home)| run(home, &name(n), &[])).collect();
    (median(first), median(again))
}
