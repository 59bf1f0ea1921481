//! The speed of a file from one client to another through the server, with three real programs over TLS on this
//! machine: wall time, CPU seconds and memory of each, median of five; and the cost of each stage alone.
//!
//! `cargo bench --bench files [-- MIB]`

mod measure;
#[path = "../support/mod.rs"]
mod support;

use measure::{cpu, median, memory};
use secure_messenger::crypto::chunk::{CHUNK, GROUP, Plan};
use secure_messenger::crypto::keys::SessionKey;
use secure_messenger::crypto::primitives::eax_seal;
use secure_messenger::crypto::secret::{Key, random};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use support::{Client, Folder, Gate, Server, Shape};

const RUNS: usize = 5;
const MIB: usize = 1024 * 1024;

fn main() {
    // cargo adds `--bench`.
    let size = std::env::args().skip(1).find_map(|word| word.parse::<usize>().ok()).unwrap_or(256) * MIB;
    let folder = Folder::new();
    let path = folder.path("file.bin");
    make_file(&path, size);
    println!("{} MiB, client to client, median of {RUNS}", size / MIB);
    stages(&path, size);
    end_to_end(&path, size);
    high_latency(&path, size);
    let small = folder.path("small.bin");
    make_file(&small, 4 * MIB);
    low_bandwidth(&small, 4 * MIB);
}

/// A file of random bytes.
fn make_file(path: &Path, size: usize) {
    let mut file = File::create(path).expect("a file");
    for _ in 0..size / MIB {
        let (seed, mut block) = (random::<32>(), vec![0; MIB]);
        eax_seal(&Key::new(seed), &[0; 12], 0, b"", &mut block);
        file.write_all(&block).expect("written");
    }
    file.sync_all().expect("on disk");
}

fn end_to_end(path: &Path, size: usize) {
    let server = Server::start();
    let mut alice = server.client("alice").ready();
    let mut bob = server.client("bob").ready();
    alice.expect("bob is online");
    let pids = [server.child.id(), alice.child.id(), bob.child.id()];
    let (mut offers, mut rates, mut cpus) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let start = Instant::now();
        offer(&mut alice, &mut bob, path);
        offers.push(start.elapsed().as_secs_f64());
        let before = pids.map(cpu);
        let start = Instant::now();
        bob.say("/acceptfile");
        let arrived = bob.expect("is complete: ");
        rates.push(size as f64 / 1e6 / start.elapsed().as_secs_f64());
        cpus.push([0, 1, 2].map(|n| cpu(pids[n]) - before[n]));
        for (client, line) in [(&mut alice, None), (&mut bob, Some(arrived))] {
            let line = line.unwrap_or_else(|| client.expect("a copy is kept: "));
            fs::remove_file(line.split(": ").last().expect("a path")).expect("the file is there");
        }
    }
    let quiet = chat(&mut alice, &mut bob, |count, _| count < 100);
    offer(&mut alice, &mut bob, path);
    bob.say("/acceptfile");
    let arrived = bob.output.seen.len();
    let busy = chat(&mut alice, &mut bob, |_, seen| {
        !seen[arrived..].iter().any(|line| line.contains("is complete: "))
    });
    println!("\nend to end");
    println!("  from /acceptfile to complete file:  {:.0} MB/s", median(rates));
    println!("  reading and hashing for the offer:  {:.2} s", median(offers));
    println!("  a message, alone:            median {:.1} ms, most {:.1} ms", quiet.0, quiet.1);
    println!("  a message, beside the file:  median {:.1} ms, most {:.1} ms", busy.0, busy.1);
    for (n, name) in ["server", "sender", "recipient"].iter().enumerate() {
        let seconds = median(cpus.iter().map(|one| one[n]).collect());
        println!("  {name:<9}  {seconds:.2} s CPU, {:.0} MiB at most", memory(pids[n], "VmHWM"));
    }
}

/// Alice and bob, each behind a relay that shapes both directions alike.
fn behind(shapes: [Shape; 2], server: &Server) -> ([Gate; 2], Client, Client) {
    let gates = shapes.map(|shape| {
        let gate = Gate::before(server);
        gate.shape(shape, shape);
        gate
    });
    let client = |gate: &Gate, name| gate.client(Arc::new(Folder::new()), name, &["--register"]).ready();
    let (mut alice, bob) = (client(&gates[0], "alice"), client(&gates[1], "bob"));
    alice.expect("bob is online");
    (gates, alice, bob)
}

fn offer(alice: &mut Client, bob: &mut Client, path: &Path) {
    alice.say(&format!("/sendfile bob {}", path.display()));
    bob.expect("offers you a file");
}

/// 50 ms each way for each of the two: a round trip of 200 ms from end to end.
fn high_latency(path: &Path, size: usize) {
    let server = Server::start();
    let (_gates, mut alice, mut bob) = behind([Shape::long(50); 2], &server);
    let mut rates = Vec::new();
    for _ in 0..RUNS {
        offer(&mut alice, &mut bob, path);
        let start = Instant::now();
        bob.say("/acceptfile");
        let arrived = bob.expect("is complete: ");
        rates.push(size as f64 / 1e6 / start.elapsed().as_secs_f64());
        alice.expect("a copy is kept: ");
        fs::remove_file(arrived.split(": ").last().expect("a path")).expect("the file is there");
    }
    println!("\nwith a round trip of 200 ms: {:.1} MB/s", median(rates));
}

/// 250 kB/s behind 4 MB of buffer, on the sender's and on the recipient's side. A message of the sender shares the
/// connection with the file.
fn low_bandwidth(path: &Path, size: usize) {
    println!("\nthrough 250 kB/s behind 4 MB of buffer");
    let shape = Shape::slow(250_000);
    for (whose, shapes) in [("sender", [shape, Shape::default()]), ("recipient", [Shape::default(), shape])] {
        let server = Server::start();
        let (_gates, mut alice, mut bob) = behind(shapes, &server);
        let quiet = chat(&mut bob, &mut alice, |count, _| count < 20);
        offer(&mut alice, &mut bob, path);
        let (start, seen) = (Instant::now(), alice.output.seen.len());
        bob.say("/acceptfile");
        let busy = chat(&mut bob, &mut alice, |_, all| {
            !all[seen..].iter().any(|line| line.contains("has received"))
        });
        let rate = size as f64 / 1e3 / start.elapsed().as_secs_f64();
        println!(
            "  the {whose}'s: {rate:.0} kB/s; a message {:.0} ms, at most {:.0}; alone {:.0} ms",
            busy.0, busy.1, quiet.0
        );
    }
}

/// Messages to alice, one at a time: milliseconds from typed to shown, median and maximum.
fn chat(alice: &mut Client, bob: &mut Client, more: impl Fn(usize, &[String]) -> bool) -> (f64, f64) {
    let mut times = Vec::new();
    while more(times.len(), &bob.output.seen) {
        let text = format!("message {} of {}", times.len(), alice.output.seen.len());
        let start = Instant::now();
        bob.say(&format!("/msg {} {text}", alice.name));
        alice.expect(&text);
        times.push(start.elapsed().as_secs_f64() * 1e3);
        bob.expect(&text);
    }
    let most = times.iter().copied().fold(0.0, f64::max);
    (median(times), most)
}

/// The cost of each stage on an idle core, in seconds for the whole file.
fn stages(path: &Path, size: usize) {
    let file = File::open(path).expect("the file");
    let session = SessionKey::generate();
    let plan = Plan { id: [1; 16], key: Key::random(), size: size as u64, start: 0 };
    let group = GROUP as usize * CHUNK;
    let mut data = vec![0; group];
    file.read_exact_at(&mut data, 0).expect("read");
    // Measured for a part of the file, and scaled to all of it.
    let time = |rounds: usize, work: &mut dyn FnMut()| {
        let runs = (0..RUNS).map(|_| {
            let start = Instant::now();
            (0..rounds).for_each(|_| work());
            start.elapsed().as_secs_f64() / rounds as f64 * (size as f64 / group as f64)
        });
        median(runs.collect())
    };
    println!("\nstages alone (seconds of one idle core)");
    let mut whole = Vec::new();
    let tell = |name: &str, seconds: f64| println!("  {name:<28} {seconds:.2}");
    tell(
        "read",
        time(1, &mut || {
            whole.clear();
            File::open(path).and_then(|mut file| file.read_to_end(&mut whole)).expect("read");
        }) * group as f64
            / size as f64,
    );
    tell(
        "SHA-256, at each side",
        time(20, &mut || {
            let mut hasher = Sha256::new();
            hasher.update(&data);
            black_box(hasher.finalize());
        }),
    );
    let block = session.public().wrap(&[7; 160], [0; 32]);
    let wrap = time(20, &mut || {
        black_box(session.public().wrap(&[7; 160], [0; 32]));
    });
    let unwrap = time(20, &mut || drop(black_box(session.unwrap(&block, [0; 32]))));
    let seal = time(10, &mut || drop(black_box(plan.seal_group(0, session.public(), &data))));
    let sealed = plan.seal_group(0, session.public(), &data);
    let open = time(10, &mut || drop(black_box(plan.open_group(0, &sealed, &session))));
    tell("RSA-OAEP, sender", wrap);
    tell("AES-EAX and HMAC, sender", seal - wrap);
    tell("RSA-OAEP, recipient", unwrap);
    tell("AES-EAX and HMAC, recipient", open - unwrap);
    let path = path.with_extension("copy");
    let mut out = File::create(&path).expect("a file");
    tell("write", time(20, &mut || out.write_all(&data).expect("written")));
    fs::remove_file(&path).expect("removed");
}
