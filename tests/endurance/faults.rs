//! Twenty real clients chat while every connection breaks again and again, in any way and at any byte. Each message
//! arrives exactly once and in order, or its sender's client reports that it may not have arrived.
//!
//! `FAULTS_SEED` chooses the faults (their moments also depend on the machine), `FAULTS` sets their number.

use crate::support::{Client, Folder, Server};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const PEOPLE: usize = 20;
/// After this number of faults, all clients wait until they have heard from each other.
const BATCH: usize = 20;

/// Random numbers that a seed reproduces.
#[derive(Clone)]
struct Dice(Arc<AtomicU64>);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(Arc::new(AtomicU64::new(seed)))
    }

    /// A number below `n`.
    fn roll(&self, n: u64) -> u64 {
        // SplitMix64: every state is a good one.
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// One client's bad network. A fault on it lasts for one connection, or for a time.
#[derive(Clone)]
struct Wire {
    dice: Dice,
    /// Bytes that may still pass up and down, before the connection is cut.
    left: Arc<[AtomicI64; 2]>,
    /// Nothing passes before this moment.
    stalled: Arc<Mutex<Instant>>,
    now: Arc<Mutex<Connections>>,
}

#[derive(Default)]
struct Connections {
    /// The sockets to the client and to the server.
    live: Vec<[TcpStream; 2]>,
    /// The server's sockets of connections that the client has lost and the server has not.
    standing: Vec<TcpStream>,
}

impl Wire {
    /// A network without faults, and its port.
    fn before(server: &Server, dice: &Dice) -> (u16, Wire) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (port, target) = (listener.local_addr().expect("bound").port(), server.port);
        let left = Arc::new([AtomicI64::new(i64::MAX), AtomicI64::new(i64::MAX)]);
        let stalled = Arc::new(Mutex::new(Instant::now()));
        let wire = Wire { dice: dice.clone(), left, stalled, now: Arc::default() };
        let shared = wire.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { return };
                let twin = |socket: &TcpStream| {
                    socket.set_nodelay(true).expect("a socket");
                    socket.try_clone().expect("a second handle")
                };
                shared.now.lock().expect("whole").live = vec![[twin(&client), twin(&server)]];
                for (way, from, to) in [(0, twin(&client), twin(&server)), (1, server, client)] {
                    let wire = shared.clone();
                    thread::spawn(move || wire.pass(way, from, to));
                }
            }
        });
        (port, wire)
    }

    fn pass(&self, way: usize, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 4096];
        loop {
            // Every other time, the bytes are split anywhere.
            let most = 1 + self.dice.roll(if self.dice.roll(2) == 0 { 64 } else { 4096 }) as usize;
            let Ok(count @ 1..) = from.read(&mut buffer[..most]) else { break };
            let wait = self.stalled.lock().expect("whole").saturating_duration_since(Instant::now());
            thread::park_timeout(wait);
            let left = self.left[way].fetch_sub(count as i64, Ordering::SeqCst);
            let allowed = left.clamp(0, count as i64) as usize;
            if to.write_all(&buffer[..allowed]).is_err() || allowed < count {
                break;
            }
        }
        let standing = &self.now.lock().expect("whole").standing;
        let stands = |socket: &TcpStream| standing.iter().any(|other| same(other, socket));
        if stands(&from) || stands(&to) {
            return;
        }
        for socket in [from, to] {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Causes a fault.
    fn fault(&self) {
        let mut now = self.now.lock().expect("whole");
        match self.dice.roll(6) {
            0 | 1 => {
                for socket in now.live.drain(..).flatten() {
                    let _ = socket.shutdown(Shutdown::Both);
                }
            }
            // The server notices it at the next connection.
            2 => {
                for [client, server] in std::mem::take(&mut now.live) {
                    now.standing = vec![server];
                    let _ = client.shutdown(Shutdown::Both);
                }
            }
            3 | 4 => {
                let (way, bytes) = (self.dice.roll(2) as usize, self.dice.roll(6000));
                self.left[way].store(bytes as i64, Ordering::SeqCst);
                // The next connection works, unless another fault happens.
                drop(now);
                let me = self.clone();
                thread::spawn(move || {
                    thread::park_timeout(Duration::from_millis(50 + me.dice.roll(400)));
                    me.heal();
                });
            }
            _ => {
                let delay = Duration::from_millis(self.dice.roll(400));
                *self.stalled.lock().expect("whole") = Instant::now() + delay;
            }
        }
    }

    fn heal(&self) {
        let cut = self.left.iter().map(|left| left.swap(i64::MAX, Ordering::SeqCst) <= 0);
        if cut.fold(false, |one, other| one | other) {
            // Bytes are missing here: nothing may follow them.
            for socket in self.now.lock().expect("whole").live.drain(..).flatten() {
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }
}

/// Whether these are handles of one connection.
fn same(one: &TcpStream, other: &TcpStream) -> bool {
    let ends = |socket: &TcpStream| (socket.local_addr().ok(), socket.peer_addr().ok());
    ends(one).0.is_some() && ends(one) == ends(other)
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// PROTOCOL#frames, PROTOCOL#sent-again, PROTOCOL#no-session.
#[test]
fn faults_deliver_once_in_order_or_notify_the_sender() {
    let clock = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64;
    let (seed, faults) = (number("FAULTS_SEED", clock), number("FAULTS", 60) as usize);
    println!("FAULTS_SEED={seed} FAULTS={faults}");
    let dice = Dice::new(seed);
    // This test is not about queues of clients that are away.
    let server = Server::with(&["--outbox", "65536", "--registrations", "1000"]);
    let wires: Vec<(u16, Wire)> = (0..PEOPLE).map(|_| Wire::before(&server, &dice)).collect();
    let names: Vec<String> = (0..PEOPLE).map(|n| format!("p{n}")).collect();
    let mut people: Vec<Client> = Vec::new();
    for (name, (port, _)) in names.iter().zip(&wires) {
        people.push(Client::within(Arc::new(Folder::new()), *port, name, true, &["--register"]).ready());
    }
    for (n, person) in people.iter_mut().enumerate() {
        for later in &names[n + 1..] {
            let came = format!("* {later} is online");
            if !person.output.seen.contains(&came) {
                person.expect(&came);
            }
        }
    }
    // The messages sent: sender, recipient or none, numbers from 0.
    let mut said: BTreeMap<(usize, Option<usize>), u64> = BTreeMap::new();
    let mut say = |people: &mut [Client], from: usize, to: Option<usize>| {
        let count = said.entry((from, to)).or_default();
        match to {
            Some(to) => people[from].say(&format!("/msg p{to} n{count}")),
            None => people[from].say(&format!("n{count}")),
        }
        *count += 1;
        *count - 1
    };
    let mut done = 0;
    while done < faults {
        for _ in 0..BATCH.min(faults - done) {
            let from = dice.roll(PEOPLE as u64) as usize;
            let to = (from + 1 + dice.roll(PEOPLE as u64 - 1) as usize) % PEOPLE;
            say(&mut people, from, None);
            say(&mut people, from, Some(to));
            wires[dice.roll(PEOPLE as u64) as usize].1.fault();
            // Spread the faults over different moments.
            thread::park_timeout(Duration::from_millis(dice.roll(60)));
            done += 1;
        }
        let read: Vec<usize> = people.iter().map(|person| person.output.seen.len()).collect();
        let last: Vec<u64> = (0..PEOPLE).map(|from| say(&mut people, from, None)).collect();
        for to in 0..PEOPLE {
            for (from, n) in last.iter().enumerate() {
                let line = format!("<p{from}> n{n}");
                while people[to].output.seen[read[to]..].iter().all(|seen| *seen != line) {
                    assert!(people[to].output.next().is_some(), "p{to} has ended");
                }
            }
        }
    }
    for (_, wire) in &wires {
        wire.heal();
    }
    let outputs: Vec<Vec<String>> = people.iter().map(|person| person.output.seen.clone()).collect();
    drop(people);
    let (mut messages, mut told_of) = (0, 0);
    for (&(from, to), &count) in &said {
        let mark = to.map_or(format!("<p{from}> n"), |to| format!("<p{from} -> p{to}> n"));
        let numbers = |lines: &[String]| -> Vec<u64> {
            let of = lines.iter().filter_map(|line| line.strip_prefix(&mark));
            of.map(|rest| rest.parse().expect("a number")).collect()
        };
        let problems: BTreeSet<u64> = outputs[from]
            .iter()
            .filter(|line| line.starts_with("! "))
            .filter_map(|line| line.split("\"n").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        let recipients = match to {
            Some(to) => vec![from, to],
            None => (0..PEOPLE).collect(),
        };
        for one in recipients {
            let seen = numbers(&outputs[one]);
            assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "{mark} at p{one}: {seen:?}");
            let missing: Vec<u64> =
                (0..count).filter(|n| !seen.contains(n) && !problems.contains(n)).collect();
            assert!(missing.is_empty(), "{mark} at p{one}: {missing:?} of {count}; seed {seed}");
            messages += seen.len();
        }
        told_of += problems.len();
    }
    let count = |part: &str| outputs.iter().flatten().filter(|line| line.contains(part)).count();
    println!(
        "{faults} faults, {} connections lost, {} new sessions, {messages} messages shown, {told_of} told as lost",
        count("; trying again"),
        count("in a new session")
    );
    // The grace period never ends here, so nobody joins or leaves.
    assert_eq!((count("in a new session"), count(" has left")), (0, 0));
}
