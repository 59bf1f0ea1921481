//! The work of the real server per CPU second, with thousands of real TLS sessions from one process: memory and logins,
//! logins beside a thousand others, broadcasts, private messages, clients that stop reading, many accounts. Medians.
//! The operating system reports the server's CPU seconds, so that a machine of two cores, one of which runs the load,
//! gives the same figures as a larger one.
//!
//! `cargo bench --bench server [-- [idle] [logins] [fanout] [pairs] [stall] [store] [--runs N] [--members N]]`

mod crowd;
mod measure;
#[path = "../support/mod.rs"]
mod support;

use crowd::{Crowd, Found, Pace, Plan, name};
use measure::{cpu, median, memory, percentile};
use secure_messenger::protocol::ServerMessage;
use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use support::{Folder, Person, Raw, Server};

/// Limits so high that they do not influence the results.
const ARGUMENTS: [&str; 10] = [
    "--clients",
    "10500",
    "--per-address",
    "20000",
    "--waiting",
    "1000",
    "--rate",
    "100000000",
    "--registrations",
    "1000000",
];
/// The duration of each measurement.
const LENGTH: Duration = Duration::from_secs(4);
/// The warm-up before each measurement.
const WARM: Duration = Duration::from_secs(1);

/// The argument that makes this program log in [`CROWD`] clients at once; the port follows.
const LOG_IN: &str = "--log-in";
/// The number of clients that connect or log in beside the measured login.
const CROWD: usize = 1000;
/// The number of concurrent logins among them; with more, none would complete in ten seconds.
const AT_ONCE: usize = 250;

fn main() {
    rlimit::increase_nofile_limit(u64::MAX).expect("a limit");
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [flag, port] = &words[..]
        && flag == LOG_IN
    {
        return log_in_at_once(port.parse().expect("a port"));
    }
    let number = |flag: &str| {
        let at = words.iter().position(|word| word == flag)?;
        Some(words[at + 1].parse().expect("a number"))
    };
    let sizes = Sizes { runs: number("--runs").unwrap_or(5), members: number("--members") };
    let benches: [(&str, Bench); 6] = [
        ("idle", idle),
        ("logins", logins),
        ("fanout", fanout),
        ("pairs", pairs),
        ("stall", stall),
        ("store", store),
    ];
    let wanted = |name: &str| {
        words.iter().any(|word| word == name)
            || !benches.iter().any(|(name, _)| words.iter().any(|word| word == name))
    };
    for (name, bench) in benches {
        if wanted(name) {
            bench(&sizes);
        }
    }
}

type Bench = fn(&Sizes);

/// The extent of a benchmark.
struct Sizes {
    runs: usize,
    /// Replaces the usual numbers of members.
    members: Option<usize>,
}

impl Sizes {
    fn of<const N: usize>(&self, usual: [usize; N]) -> Vec<usize> {
        self.members.map_or(usual.to_vec(), |members| vec![members])
    }
}

/// A data folder with this number of accounts, all with the same key and password.
fn accounts(count: usize) -> Arc<Folder> {
    let server = Server::with(&ARGUMENTS);
    let first = Person::new(&name(0));
    server.raw().register_quickly(&first);
    let (users, keys) = (server.data("users.json"), server.data("keys"));
    let home = server.kill();
    let record = fs::read_to_string(&users).expect("an account");
    let all: String = (0..count).map(|number| record.replace(first.name.as_str(), &name(number))).collect();
    fs::write(users, all).expect("written");
    let key = |number| keys.join(format!("{}.pem", name(number)));
    for number in 1..count {
        // File systems allow only some ten thousand hard links to a file.
        fs::hard_link(key(number - number % 1000), key(number))
            .or_else(|_| fs::copy(key(0), key(number)).map(drop))
            .expect("written");
    }
    home
}

/// A server on these accounts, and its process id.
fn begin(home: Arc<Folder>) -> (Server, u32) {
    let server = Server::within(home, &ARGUMENTS);
    let pid = server.child.id();
    (server, pid)
}

/// The median of `value` over all results.
fn median_of<T>(all: &[T], value: impl Fn(&T) -> f64) -> f64 {
    median(all.iter().map(value).collect())
}

fn idle(sizes: &Sizes) {
    let runs = sizes.runs;
    println!("idle: clients that log in as fast as they can, and then say nothing; medians of {runs}");
    println!(
        "  {:>8} {:>9} {:>9} {:>14} {:>9} {:>9} {:>11}",
        "clients", "KiB each", "logins/s", "logins/CPU s", "p50 ms", "p99 ms", "CPU idle, %"
    );
    for count in sizes.of([1000, 10_000]) {
        let home = accounts(count);
        let found: Vec<[f64; 6]> = (0..runs)
            .map(|_| {
                let (server, pid) = begin(home.clone());
                let before = memory(pid, "VmRSS");
                let start = Instant::now();
                let (crowd, times) = Crowd::log_in(server.port, 0..count);
                let (seconds, used) = (start.elapsed().as_secs_f64(), cpu(pid));
                // Let the work of the last logins end first.
                thread::sleep(Duration::from_secs(3));
                let (held, since) = (memory(pid, "VmRSS"), cpu(pid));
                thread::sleep(Duration::from_secs(5));
                let idle = (cpu(pid) - since) / 5.0 * 100.0;
                assert_eq!(crowd.closed.load(std::sync::atomic::Ordering::Relaxed), 0, "all stay");
                let count = count as f64;
                let [p50, p99] = [50, 99].map(|percent| percentile(times.clone(), percent));
                [(held - before) * 1024.0 / count, count / seconds, count / used, p50, p99, idle]
            })
            .collect();
        let [kib, rate, each, p50, p99, idle] = std::array::from_fn(|n| median_of(&found, |one| one[n]));
        println!("  {count:>8} {kib:>9.1} {rate:>9.0} {each:>14.0} {p50:>9.1} {p99:>9.1} {idle:>11.1}");
    }
}

/// Logs in as `number` on a new connection, and closes it; the milliseconds.
fn log_in(port: u16, number: usize) -> f64 {
    let (person, start) = (Person::new(&name(number)), Instant::now());
    let mut raw = Raw::reach(port).expect("the server accepts");
    match raw.log_in_quickly(&person) {
        Some(ServerMessage::Session(_)) => {}
        Some(ServerMessage::Error(failure)) => panic!("{}: {}", failure.code, failure.message),
        _ => panic!("neither logged in nor refused"),
    }
    start.elapsed().as_secs_f64() * 1e3
}

fn log_in_at_once(port: u16) {
    for number in 1..=CROWD {
        Raw::reach(port).expect("the server accepts").register_quickly(&Person::new(&name(number)));
    }
    println!();
    let all = |first| {
        (first..=CROWD).step_by(AT_ONCE).for_each(|number| {
            log_in(port, number);
        });
    };
    thread::scope(|scope| (1..=AT_ONCE).for_each(|first| drop(scope.spawn(move || all(first)))));
}

/// Logins one at a time: alone, beside silent connections, and beside many other logins. The others run in a process of
/// lower priority, so that only the server delays the measured one.
fn logins(sizes: &Sizes) {
    let runs = sizes.runs;
    println!("logins: one after the other, beside {CROWD} others; medians of {runs}");
    println!("  {:<28} {:>9} {:>9}", "", "p50 ms", "p99 ms");
    let mut found = [const { Vec::new() }; 3];
    let mut gone = Vec::new();
    for _ in 0..runs {
        let server = Server::within(accounts(1), &ARGUMENTS);
        let port = server.port;
        found[0].push((0..100).map(|_| log_in(port, 0)).collect::<Vec<_>>());
        let start = Instant::now();
        let silent: Vec<_> = (0..CROWD).map(|_| server.socket()).collect();
        found[1].push((0..100).map(|_| log_in(port, 0)).collect());
        for mut socket in silent {
            // Some were evicted.
            let _ = socket.read(&mut [0]);
        }
        gone.push(start.elapsed().as_secs_f64());
        let me = std::env::current_exe().expect("it runs");
        let mut crowd = Command::new("nice");
        crowd.args(["-n", "19"]).arg(me).args([LOG_IN, &port.to_string()]);
        let mut crowd = crowd.stdout(Stdio::piped()).spawn().expect("nice is there");
        let _ = crowd.stdout.as_mut().expect("piped").read(&mut [0]);
        let mut times = Vec::new();
        while crowd.try_wait().expect("it runs").is_none() {
            times.push(log_in(port, 0));
        }
        found[2].push(times);
    }
    for (title, times) in ["quiet", "beside silent connections", "beside logins at once"].iter().zip(&found) {
        let [p50, p99] = [50, 99].map(|percent| median_of(times, |times| percentile(times.clone(), percent)));
        println!("  {title:<28} {p50:>9.1} {p99:>9.1}");
    }
    println!("  the silent ones are gone after {:.1} s", median(gone));
}

/// The results of a plan, and the server's CPU seconds meanwhile.
fn measure(crowd: &Crowd, pid: u32, plan: &Arc<Plan>, length: Duration) -> (Found, f64) {
    let before = cpu(pid);
    let found = crowd.carry_out(&plan.again(length));
    assert_eq!(
        (found.wrong, found.lost - found.busy.min(found.lost)),
        (0, 0),
        "each message once and in order, or its sender is notified"
    );
    (found, cpu(pid) - before)
}

/// Runs a plan several times, the first time without counting it, and prints a row.
fn row(title: &str, crowd: &Crowd, pid: u32, plan: &Arc<Plan>, runs: usize) {
    measure(crowd, pid, plan, WARM);
    let all: Vec<(Found, f64)> = (0..runs).map(|_| measure(crowd, pid, plan, LENGTH)).collect();
    let rate = median_of(&all, |(found, _)| found.heard as f64 / found.seconds);
    let each = median_of(&all, |(found, used)| found.heard as f64 / used);
    let [p50, p99, most] =
        [500, 990, 1000].map(|share| median_of(&all, |(found, _)| found.times.permille(share)));
    let bytes = median_of(&all, |(found, _)| found.bytes as f64 / found.heard as f64);
    println!(
        "  {title:<34} {rate:>9.0} {each:>12.0} {:>8.0} {p50:>8.2} {p99:>8.1} {most:>8.1} {bytes:>6.0}",
        each * bytes / 1e6
    );
}

fn head(title: &str, runs: usize) {
    println!("{title}; medians of {runs}");
    println!(
        "  {:<34} {:>9} {:>12} {:>8} {:>8} {:>8} {:>8} {:>6}",
        "", "heard/s", "heard/CPU s", "MB/CPU s", "p50 ms", "p99 ms", "most ms", "bytes"
    );
}

fn fanout(sizes: &Sizes) {
    let runs = sizes.runs;
    head("fanout: 16 of the members talk to all, 256-byte texts", runs);
    let home = accounts(1000);
    for members in sizes.of([50, 200, 1000]) {
        let (server, pid) = begin(home.clone());
        let (crowd, _) = Crowd::log_in(server.port, 0..members);
        let mut paces = vec![("at full speed", Pace::Window(4)), ("40 a second", Pace::Rate(40.0))];
        if members == 200 {
            paces.push(("250 a second", Pace::Rate(250.0)));
        }
        for (title, pace) in paces {
            let plan = Plan::broadcast(members, members, 16, pace, LENGTH);
            row(&format!("{members} members, {title}"), &crowd, pid, &plan, runs);
        }
    }
}

fn pairs(sizes: &Sizes) {
    let runs = sizes.runs;
    head("pairs: private messages, 256-byte texts", runs);
    let home = accounts(100);
    for (title, members, pace) in [
        ("1 pair, taking turns", 2, Pace::Replies),
        ("50 pairs, taking turns", 100, Pace::Replies),
        ("50 pairs, 16 in flight each", 100, Pace::Window(16)),
    ] {
        let (server, pid) = begin(home.clone());
        let (crowd, _) = Crowd::log_in(server.port, 0..members);
        row(title, &crowd, pid, &Plan::pairs(members, pace, LENGTH), runs);
    }
}

/// The memory of all TCP sockets of the machine, in KiB.
fn kernel() -> f64 {
    let text = fs::read_to_string("/proc/net/sockstat").expect("Linux");
    let line = text.lines().find(|line| line.starts_with("TCP:")).expect("TCP");
    line.rsplit(' ').next().and_then(|pages| pages.parse::<f64>().ok()).expect("pages") * 4.0
}

fn stall(sizes: &Sizes) {
    let runs = sizes.runs;
    println!("stall: some stop reading while 4 members talk to all, 100 a second; medians of {runs}");
    println!(
        "  {:<20} {:>11} {:>9} {:>9} {:>9} {:>15} {:>7}",
        "", "heard/s", "quiet", "p99 ms", "quiet", "KiB a stalled", "closed"
    );
    for (members, stalled) in [(60, 20), (200, 50)] {
        let home = accounts(members);
        let found: Vec<[f64; 6]> = (0..runs)
            .map(|_| {
                let (server, pid) = begin(home.clone());
                let (crowd, _) = Crowd::log_in(server.port, 0..members);
                // Members that will stop reading do not count as recipients.
                let whole = Plan::broadcast(members, members - stalled, 4, Pace::Rate(100.0), LENGTH);
                crowd.carry_out(&whole.again(WARM));
                let before = crowd.carry_out(&whole.again(LENGTH));
                let memory_before = memory(pid, "VmRSS") * 1024.0 + kernel();
                crowd.deafen(members - stalled..members);
                let after = crowd.carry_out(&whole.again(LENGTH * 3));
                let grown = memory(pid, "VmRSS") * 1024.0 + kernel() - memory_before;
                let rate = |found: &Found| found.heard as f64 / found.seconds;
                assert_eq!((before.lost, after.lost, after.wrong), (0, 0, 0));
                [
                    rate(&after),
                    rate(&before),
                    after.times.permille(990),
                    before.times.permille(990),
                    grown / stalled as f64,
                    crowd.closed.load(std::sync::atomic::Ordering::Relaxed) as f64,
                ]
            })
            .collect();
        let [after, before, p99, quiet, kib, closed] =
            std::array::from_fn(|n| median_of(&found, |one| one[n]));
        println!(
            "  {:<20} {after:>11.0} {before:>9.0} {p99:>9.1} {quiet:>9.1} {kib:>15.0} {closed:>7.0}",
            format!("{stalled} of {members}")
        );
    }
}

fn store(sizes: &Sizes) {
    let runs = sizes.runs;
    println!("store: accounts on disk; medians of {runs}");
    println!(
        "  {:>9} {:>9} {:>16} {:>10} {:>11}",
        "accounts", "start s", "registration ms", "login ms", "memory MiB"
    );
    for count in sizes.of([1000, 100_000]) {
        let home = accounts(count);
        let found: Vec<[f64; 4]> = (0..runs)
            .map(|run| {
                let start = Instant::now();
                let (server, pid) = begin(home.clone());
                let seconds = start.elapsed().as_secs_f64();
                let [mut registrations, mut logins] = [Vec::new(), Vec::new()];
                for n in 0..100 {
                    let person = Person::new(&format!("new{run}_{n}"));
                    let (mut raw, start) = (server.raw(), Instant::now());
                    raw.register_quickly(&person);
                    registrations.push(start.elapsed().as_secs_f64() * 1e3);
                    let start = Instant::now();
                    assert!(matches!(raw.log_in_quickly(&person), Some(ServerMessage::Session(_))));
                    logins.push(start.elapsed().as_secs_f64() * 1e3);
                }
                [seconds, median(registrations), median(logins), memory(pid, "VmRSS")]
            })
            .collect();
        let [start, registration, login, held] = std::array::from_fn(|n| median_of(&found, |one| one[n]));
        println!("  {count:>9} {start:>9.2} {registration:>16.2} {login:>10.2} {held:>11.1}");
    }
}
