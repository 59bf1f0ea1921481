//! The time from a typed message to its display while other clients overload the server: median and 99th percentile,
//! without and with each storm. Real clients over TLS, all on this machine. The storm runs at the lowest priority, as
//! if on another machine, so that only the server causes a delay.
//!
//! `cargo bench --bench storms [-- MESSAGES]`

mod measure;
#[path = "../support/mod.rs"]
mod support;

use measure::{cpu, median, memory, percentile};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;
use support::{Client, Server, storms};

/// The argument that makes this program run a storm; its number and the server's port follow.
const STORM: &str = "--storm";

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let [_, flag, number, port] = &words[..]
        && flag == STORM
    {
        return run_storm(number.parse().expect("a storm"), port.parse().expect("a port"));
    }
    // cargo adds `--bench`.
    let count = std::env::args().skip(1).find_map(|word| word.parse::<usize>().ok()).unwrap_or(200);
    println!("{count} messages each, typed to shown: median, 99th percentile; the server");
    let quiet = run("quiet", None, count, None);
    for (number, (name, _)) in storms::STORMS.iter().enumerate() {
        run(name, Some(number), count, Some(quiet));
    }
}

/// Runs the storm until the input ends.
fn run_storm(number: usize, port: u16) {
    let stop = AtomicBool::new(false);
    let (_, storm) = storms::STORMS[number];
    thread::scope(|scope| {
        scope.spawn(|| storm(port, &stop));
        let _ = std::io::stdin().read(&mut [0]);
        stop.store(true, Ordering::SeqCst);
    });
}

/// Starts a storm in a process of the lowest priority.
fn start_storm(number: usize, port: u16) -> Child {
    let me = std::env::current_exe().expect("it runs");
    let mut command = Command::new("nice");
    command.args(["-n", "19"]).arg(me).args([STORM, &number.to_string(), &port.to_string()]);
    command.stdin(Stdio::piped()).spawn().expect("nice starts")
}

/// Measures one storm, prints the result, and returns the 99th percentile in milliseconds.
fn run(name: &str, storm: Option<usize>, count: usize, quiet: Option<f64>) -> f64 {
    let server = Server::with(&storms::ARGUMENTS);
    let mut alice = server.client("alice").ready();
    let mut bob = server.client("bob").ready();
    alice.expect("bob is online");
    chat(&mut alice, &mut bob, 20);
    let pid = server.child.id();
    let before = cpu(pid);
    let process = storm.map(|number| start_storm(number, server.port));
    let times = chat(&mut alice, &mut bob, count);
    let (seconds, most) = (cpu(pid) - before, memory(pid, "VmHWM"));
    let mut own = 0.0;
    if let Some(mut process) = process {
        own = cpu(process.id());
        drop(process.stdin.take());
        assert!(process.wait().expect("it runs").success(), "the storm fails");
    }
    let rare = percentile(times.clone(), 99);
    let factor = quiet.map_or(String::new(), |quiet| format!(", {:.1} times the quiet one", rare / quiet));
    let middle = median(times);
    println!(
        "  {name:<34} {middle:>6.1} ms {rare:>6.1} ms{factor}; \
         {seconds:.1} s CPU (storm {own:.1}), {most:.0} MiB at most"
    );
    rare
}

/// Sends `count` messages one at a time, and returns the milliseconds of each.
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
