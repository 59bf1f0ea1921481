//! How long a message of two people who chat takes, typed to shown, while others do all they can to be too much for the
//! server: median and 99 of 100, quiet and in each storm. Real clients over TLS, all on this machine, so that the storms
//! take from the two what they need of it themselves: their CPU seconds stand beside the server's.
//!
//! `cargo bench --bench storms [-- MESSAGES]`

#[path = "../common/mod.rs"]
mod common;
mod measure;
#[path = "../common/storms.rs"]
mod storms;

use common::{Client, Server};
use measure::{cpu, median, memory, percentile};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

fn main() {
    // cargo adds `--bench`.
    let count = std::env::args().skip(1).find_map(|word| word.parse::<usize>().ok()).unwrap_or(200);
    println!("{count} messages each, typed to shown: median, 99 of 100; the server");
    let quiet = run("quiet", |_, _| {}, count, None);
    for (name, storm) in storms::STORMS {
        run(name, storm, count, Some(quiet));
    }
}

/// The time that 99 of 100 messages did not exceed, in milliseconds.
fn run(name: &str, storm: fn(u16, &AtomicBool), count: usize, quiet: Option<f64>) -> f64 {
    let server = Server::with(&storms::ARGUMENTS);
    let mut alice = server.client("alice").ready();
    let mut bob = server.client("bob").ready();
    alice.expect("bob is on-line");
    chat(&mut alice, &mut bob, 20);
    let (stop, port, pid) = (AtomicBool::new(false), server.port, server.child.id());
    let before = [pid, std::process::id()].map(cpu);
    let times = thread::scope(|scope| {
        scope.spawn(|| storm(port, &stop));
        let times = chat(&mut alice, &mut bob, count);
        stop.store(true, Ordering::SeqCst);
        times
    });
    let rare = percentile(times.clone(), 99);
    let factor = quiet.map_or(String::new(), |quiet| format!(", {:.1} times the quiet one", rare / quiet));
    let [seconds, own] = [cpu(pid) - before[0], cpu(std::process::id()) - before[1]];
    let most = memory(pid, "VmHWM");
    let middle = median(times);
    println!(
        "  {name:<34} {middle:>6.1} ms {rare:>6.1} ms{factor}; {seconds:.1} s CPU (storm {own:.1}), {most:.0} MiB at most"
    );
    rare
}

/// Milliseconds of each message from one to the other.
fn chat(from: &mut Client, to: &mut Client, count: usize) -> Vec<f64> {
    let one = |n| {
        let text = format!("number {n} after {}", from.output.seen.len());
        let start = Instant::now();
        from.say(&format!("/msg {} {text}", to.name));
        to.expect(&text);
        let time = start.elapsed().as_secs_f64() * 1e3;
        from.expect(&text);
        time
    };
    (0..count).map(one).collect()
}
