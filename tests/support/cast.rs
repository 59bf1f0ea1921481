//! Users: two in plain mode who chat while a test disturbs the server and must not notice it, and a bare session.

use super::{Client, Folder, Gate, Person, Server, memory};
use secure_messenger::client::session::{Effect, Event, Session};
use secure_messenger::clock;
use secure_messenger::crypto::keys::{IdentityKey, SessionKey};
use secure_messenger::protocol::{Presence, ServerMessage};
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Server {
    /// Alice and bob, logged in; each sees that the other is online. Alice logged in first.
    pub fn alice_and_bob(&self) -> (Client, Client) {
        let alice = self.client("alice").ready();
        acquainted(alice, self.client("bob").ready())
    }
}

/// Waits until two logged-in clients see each other online.
fn acquainted(mut one: Client, mut other: Client) -> (Client, Client) {
    one.meets(&other.name);
    other.meets(&one.name);
    (one, other)
}

impl Client {
    /// Waits until this user is online.
    pub fn meets(&mut self, name: &str) {
        if !self.has_seen(name) {
            self.expect(&format!("* {name} is online"));
        }
    }
}

/// Alice and bob, each behind a relay. Alice logged in first.
pub fn gated(server: &Server) -> ([Gate; 2], Client, Client) {
    let gates = [Gate::before(server), Gate::before(server)];
    let start = |gate: &Gate, name| gate.client(Arc::new(Folder::new()), name, &["--register"]).ready();
    let alice = start(&gates[0], "alice");
    let (alice, bob) = acquainted(alice, start(&gates[1], "bob"));
    (gates, alice, bob)
}

/// Sends a private message, and waits until both clients show it.
pub fn exchange(from: &mut Client, to: &mut Client, text: &str) {
    from.say(&format!("/msg {} {text}", to.name));
    let line = format!("<{} -> {}> {text}", from.name, to.name);
    assert_eq!(from.expect(&line), line);
    assert_eq!(to.expect(&line), line);
}

/// Two users who chat while a test disturbs the server.
pub struct Pair {
    pub alice: Client,
    pub bob: Client,
    said: usize,
}

impl Pair {
    pub fn on(server: &Server) -> Pair {
        Pair::of(server.client("alice"), server.client("bob"))
    }

    /// Clients that were just started.
    pub fn of(alice: Client, bob: Client) -> Pair {
        let (alice, bob) = acquainted(alice.ready(), bob.ready());
        let mut pair = Pair { alice, bob, said: 0 };
        pair.exchange();
        pair
    }

    /// Each sends the other the same numbered line.
    pub fn exchange(&mut self) {
        let text = format!("number {}", self.said);
        self.said += 1;
        exchange(&mut self.alice, &mut self.bob, &text);
        exchange(&mut self.bob, &mut self.alice, &text);
    }

    /// Checks that they noticed nothing: each line arrived once and in order, and there were no other reports.
    pub fn close(mut self) {
        self.exchange();
        let both = |n| [format!("<alice -> bob> number {n}"), format!("<bob -> alice> number {n}")];
        let expected: Vec<String> = (0..self.said).flat_map(both).collect();
        for client in [self.alice, self.bob] {
            let lines = farewell(client);
            let private: Vec<_> = lines.iter().filter(|line| line.contains(" -> ")).collect();
            assert!(private.iter().copied().eq(&expected), "{private:#?}");
            assert_eq!(lines.iter().find(|line| line.starts_with('!')), None, "{lines:#?}");
        }
    }
}

/// Ends a client, and checks its status and that its output is harmless.
pub fn farewell(client: Client) -> Vec<String> {
    let lines = client.leaves();
    assert_harmless(&lines);
    lines
}

/// Checks that each line has one of the client's prefixes and contains no control character or bidirectional override.
pub fn assert_harmless(lines: &[String]) {
    let harmful = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    for line in lines {
        assert!(!line.contains(harmful), "{line:?}");
        assert!(["* ", "! ", "<"].iter().any(|mark| line.starts_with(mark)), "unknown prefix: {line:?}");
    }
}

/// A client's session without clock or socket.
pub struct Bare {
    pub session: Session,
    pub folder: Folder,
    start: Instant,
    seconds: u64,
}

impl Bare {
    /// The session of `person`, with `others` online.
    pub fn new(person: &Person, others: &[&Person]) -> Bare {
        let (folder, start) = (Folder::new(), Instant::now());
        let identity = IdentityKey::from_pkcs8(&person.identity.to_pkcs8()).expect("a key");
        let (name, known) = (person.name.clone(), memory(&folder));
        let session = Session::new(name, identity, SessionKey::generate(), known, start);
        let mut bare = Bare { session, folder, start, seconds: 0 };
        if !others.is_empty() {
            bare.hear(present(others.iter().chain([&person]).map(|one| one.name.as_str())));
        }
        bare
    }

    pub fn take(&mut self, event: Event) -> Vec<Effect> {
        self.session.handle(event, clock::now_ms(), self.start + Duration::from_secs(self.seconds))
    }

    pub fn hear(&mut self, message: ServerMessage) -> Vec<Effect> {
        self.take(Event::Server(message))
    }

    pub fn line(&mut self, line: &str) -> Vec<Effect> {
        self.take(Event::Line(line.into()))
    }

    /// Advances the time.
    pub fn wait(&mut self, seconds: u64) -> Vec<Effect> {
        self.seconds += seconds;
        self.take(Event::Tick)
    }
}

/// The complete list of online users.
pub fn present<'a>(names: impl IntoIterator<Item = &'a str>) -> ServerMessage {
    let joined = names.into_iter().map(super::name).collect();
    ServerMessage::Presence(Presence { more: false, full: true, joined, left: vec![] })
}
