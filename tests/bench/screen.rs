//! A flood of messages on the full screen: the time from a key to its character, the client's CPU time, memory and
//! output, with a real server, real senders and the real client on a terminal of 80 by 24. Also the cost of one frame.
//!
//! `cargo bench --bench screen`
//!
//! The client runs on the terminal of script(1), between two pipes, so the time of a key includes both pipes. Server
//! and senders share the machine with the client, and a message costs its sender more CPU time than its reader.

mod measure;
#[path = "../support/mod.rs"]
mod support;

use measure::{cpu, median, memory, percentile};
use secure_messenger::client::audience::Audience;
use secure_messenger::client::entry::{Entry, Place, Source};
use secure_messenger::client::screen::view::{self, Status};
use secure_messenger::client::terminal::editor::Editor;
use secure_messenger::client::terminal::frame::{Frame, Size};
use std::collections::VecDeque;
use std::fs;
use std::hint::black_box;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use support::{Client, DEADLINE, Folder, Gate, PASSWORD, Server};

const RUNS: usize = 5;
/// The number of messages that arrive as they are sent.
const LIVE: usize = 500;
/// The number of messages that are held back and then arrive at once.
const HELD: usize = 1500;
/// One, because more senders would compete with the client for its core.
const SENDERS: usize = 1;
/// The deadline of the benchmark, which usually takes a quarter of this time.
const PATIENCE: Duration = Duration::from_secs(200);
/// The time between two keys, about that of a key held down.
const PACE: Duration = Duration::from_millis(25);
/// The keys: Canadian syllabics, one column each, which occur nowhere else.
const KEYS: std::ops::Range<u32> = 0x1401..0x1641;
/// The number of keys before the line is cleared, so that it fits the screen.
const LINE: usize = 60;
/// Every frame begins with this sequence, which hides the cursor.
const FRAME: &str = "\x1b[?25l";

fn main() {
    println!("{} messages to a full screen of 80 by 24", RUNS * (LIVE + HELD));
    flood();
    frames();
}

/// The real client on a terminal.
struct Screen {
    script: Child,
    keys: ChildStdin,
    pieces: Receiver<(Instant, Vec<u8>)>,
    /// Everything that was written to the terminal, and its length at each point in time.
    log: Vec<u8>,
    grown: Vec<(usize, Instant)>,
    client: u32,
    typed: usize,
    begun: Instant,
    _home: Folder,
}

impl Screen {
    fn log_in(port: u16, name: &str) -> Screen {
        let home = Folder::new();
        let client = format!(
            "stty cols 80 rows 24; exec {} --host 127.0.0.1 --port {port} --accept-new \
            --user {name} --register --password-file {}",
            env!("CARGO_BIN_EXE_client"),
            home.password_file(PASSWORD).display(),
        );
        let mut script = Command::new("script")
            .args(["-qfc", &client, "/dev/null"])
            .env("HOME", &home.0)
            .env("SHELL", "/bin/sh")
            .env("TERM", "xterm-256color")
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script(1) of util-linux is the terminal of this bench");
        let (sender, pieces) = channel();
        let mut output = script.stdout.take().expect("piped");
        thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                if sender.send((Instant::now(), buffer[..length].to_vec())).is_err() {
                    return;
                }
            }
        });
        let keys = script.stdin.take().expect("piped");
        let (log, grown, begun) = (Vec::new(), Vec::new(), Instant::now());
        let mut screen = Screen { script, keys, pieces, log, grown, client: 0, typed: 0, begun, _home: home };
        screen.until(" online: ", 0);
        let shell = screen.script.id();
        let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).expect("Linux");
        screen.client = children.trim().parse().expect("the client alone");
        screen
    }

    /// Reads the output until this moment.
    fn read_until(&mut self, end: Instant) {
        while self.read(end) {}
    }

    /// Reads one piece of output; false if none arrived in time.
    fn read(&mut self, end: Instant) -> bool {
        match self.pieces.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok((time, piece)) => {
                self.log.extend(piece);
                self.grown.push((self.log.len(), time));
                true
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => panic!("the client has ended: {}", self.last()),
        }
    }

    /// The time at which `text` was written after the first `from` bytes; `None` if it was not.
    fn has(&self, text: &str, from: usize) -> Option<Instant> {
        let at = self.log[from..].windows(text.len()).position(|part| part == text.as_bytes())?;
        let whole = from + at + text.len();
        Some(self.grown[self.grown.partition_point(|(length, _)| *length < whole)].1)
    }

    /// Waits until `text` is written after the first `from` bytes, and returns the time.
    fn until(&mut self, text: &str, mut from: usize) -> Instant {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(time) = self.has(text, from) {
                return time;
            }
            from = from.max((self.log.len() + 1).saturating_sub(text.len()));
            assert!(self.read(end), "{text:?} was never shown: {}", self.last());
        }
    }

    fn last(&self) -> String {
        let start = self.log.len().saturating_sub(2000);
        String::from_utf8_lossy(&self.log[start..]).escape_debug().to_string()
    }

    fn write(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).and_then(|()| self.keys.flush()).expect("the terminal is there");
    }

    /// Types one character at the usual pace; the milliseconds until it appears.
    fn key(&mut self) -> f64 {
        let number = KEYS.start + (self.typed as u32) % KEYS.len() as u32;
        let c = char::from_u32(number).expect("a letter").to_string();
        assert!(self.begun.elapsed() < PATIENCE, "the machine is too slow or too busy");
        let (start, from) = (Instant::now(), self.log.len());
        self.write(&c);
        let seen = self.until(&c, from);
        self.typed += 1;
        self.read_until(start + PACE);
        if self.typed.is_multiple_of(LINE) {
            self.write("\x15");
            self.read_until(Instant::now() + PACE);
        }
        (seen - start).as_secs_f64() * 1e3
    }

    fn count(&self, from: usize, text: &str) -> usize {
        self.log[from..].windows(text.len()).filter(|part| *part == text.as_bytes()).count()
    }

    fn exit(mut self) {
        self.write("\x15/exit\r");
        support::until("the client leaves", || {
            self.script.try_wait().expect("a child").is_some_and(|status| status.success())
        });
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The end of script(1) closes the terminal, which ends the client.
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}

/// The results of one phase.
struct Part {
    keys: Vec<f64>,
    messages: f64,
    seconds: f64,
    cpu: f64,
    /// KiB written.
    bytes: f64,
    frames: f64,
    bells: f64,
}

/// Types until `work` returns the time of its end.
fn watch(screen: &mut Screen, messages: usize, mut work: impl FnMut(&mut Screen) -> Option<Instant>) -> Part {
    let (start, from, spent) = (Instant::now(), screen.log.len(), cpu(screen.client));
    let mut keys = Vec::new();
    let end = loop {
        match work(screen) {
            Some(end) => break end,
            None => keys.push(screen.key()),
        }
    };
    Part {
        messages: messages as f64,
        seconds: (end - start).as_secs_f64(),
        cpu: cpu(screen.client) - spent,
        bytes: (screen.log.len() - from) as f64 / 1024.0,
        frames: screen.count(from, FRAME) as f64,
        bells: screen.count(from, "\x07") as f64,
        keys,
    }
}

fn flood() {
    // Limits so high that they do not influence the result.
    let server = Server::with(&["--rate", "1000000", "--outbox", "65536"]);
    let gate = Gate::before(&server);
    let mut screen = Screen::log_in(gate.port, "alice");
    let mut senders: Vec<Client> = (0..SENDERS)
        .map(|n| {
            // A lower priority, because senders on other machines would not slow the client.
            let (home, name) = (Arc::new(Folder::new()), format!("sender{n}"));
            Client::after("renice -n 19 $$ >/dev/null", home, server.port, &name, &["--register"]).ready()
        })
        .collect();
    for sender in &mut senders {
        sender.say("/room alice");
        sender.expect("you are in a private room");
    }
    // Wait until the view shows a new message.
    let from = screen.log.len();
    senders[0].say("hello");
    screen.until("2 sender0", from);
    screen.write("\u{1b}2");
    screen.until("private with ", from);
    let [mut quiet, mut live, mut held] = [const { Vec::new() }; 3];
    let mut memories = vec![(0, memories_of(screen.client))];
    for run in 0..RUNS {
        let end = Instant::now() + 100 * PACE;
        quiet.push(watch(&mut screen, 0, |_| (Instant::now() >= end).then_some(end)));
        let mark = format!("live {run} is over");
        live.push(thread::scope(|scope| {
            let from = screen.log.len();
            let work = scope.spawn(|| say(&mut senders, LIVE, &mark));
            watch(&mut screen, LIVE, |screen| work.is_finished().then(|| screen.until(&mark, from)))
        }));
        gate.hold_answers(true);
        let mark = format!("held {run} is over");
        say(&mut senders, HELD, &mark);
        gate.hold_answers(false);
        let from = screen.log.len();
        held.push(watch(&mut screen, HELD, |screen| screen.has(&mark, from)));
        memories.push(((run + 1) * (LIVE + HELD), memories_of(screen.client)));
    }
    screen.exit();
    println!("  {:<44} {:>8} {:>8} {:>8}", "", "quiet", "live", "at once");
    let row = |name: &str, digits: usize, value: &dyn Fn(&[Part]) -> f64| {
        let [quiet, live, held] = [&quiet, &live, &held].map(|parts| value(parts));
        println!("  {name:<44} {quiet:>8.digits$} {live:>8.digits$} {held:>8.digits$}");
    };
    let median_of = |value: fn(&Part) -> f64| {
        move |parts: &[Part]| median(parts.iter().map(|part| value(part) / part.seconds).collect())
    };
    let keys = |percent: usize| {
        move |parts: &[Part]| percentile(parts.iter().flat_map(|part| part.keys.clone()).collect(), percent)
    };
    row("messages a second", 0, &median_of(|part| part.messages));
    row("keys typed", 0, &|parts| parts.iter().map(|part| part.keys.len() as f64).sum());
    row("from a key to its character, ms: median", 1, &keys(50));
    row("  99th percentile", 1, &keys(99));
    row("  maximum", 1, &keys(100));
    row("frames a second", 1, &median_of(|part| part.frames));
    row("  besides one for each key", 1, &median_of(|part| part.frames - part.keys.len() as f64));
    row("KiB written a second", 0, &median_of(|part| part.bytes));
    row("bells a second", 0, &median_of(|part| part.bells));
    row("CPU seconds of the client a second", 3, &median_of(|part| part.cpu));
    row("  for 1,000 messages", 2, &|parts| {
        // The CPU time of the quiet phase is not for messages.
        median(
            parts
                .iter()
                .map(|part| part.cpu * part.messages.min(1.0) / part.messages.max(1.0) * 1e3)
                .collect(),
        )
    });
    for (messages, (most, now)) in memories {
        println!("  memory after {messages:>6} messages: {now:.1} MiB, at most {most:.1}");
    }
}

/// Current and maximum memory.
fn memories_of(pid: u32) -> (f64, f64) {
    (memory(pid, "VmHWM"), memory(pid, "VmRSS"))
}

/// All senders send their share of this number of messages; when the server has accepted them, the first sends `mark`.
fn say(senders: &mut [Client], count: usize, mark: &str) {
    thread::scope(|scope| {
        for sender in senders.iter_mut() {
            scope.spawn(|| {
                let text = |n| format!("{n} of {count}, and what one could say at about this length");
                let share = count / SENDERS;
                (0..share).for_each(|n| sender.say(&text(n)));
                sender.expect(&text(share - 1));
                let refused = sender.output.seen.iter().find(|line| line.starts_with('!'));
                assert_eq!(refused, None, "the server accepts everything");
            });
        }
    });
    senders[0].say(mark);
    senders[0].expect(mark);
}

/// The cost of a frame with a full scrollback: at its lower end, and at its upper end after a change of size, when
/// everything is wrapped again.
fn frames() {
    let pattern = "a word 日本語のテキスト naïve e\u{301}té 👨‍👩‍👧‍👦 @alice averyveryverylongone ";
    println!("\na frame alone, ms, median of {RUNS}");
    // A full scrollback; fewer messages if they have the maximum length, to limit the memory.
    for (count, kib) in [(2000, 1), (200, 32)] {
        let text = pattern.repeat(kib * 1024 / pattern.len());
        for (columns, rows) in [(80, 24), (300, 100)] {
            let entries: VecDeque<Entry> = (0..count)
                .map(|_| {
                    let from = "sender".parse().expect("a name");
                    Entry {
                        mention: true,
                        ..Entry::new(
                            0,
                            Source::User { from, to: Audience::Everyone },
                            Place::Everyone,
                            text.clone(),
                        )
                    }
                })
                .collect();
            let time = |scroll: usize, rounds: usize| {
                let runs = (0..RUNS).map(|_| {
                    let start = Instant::now();
                    for _ in 0..rounds {
                        entries.iter().for_each(|entry| {
                            if scroll > 0 {
                                entry.wrapped.set((0, 0))
                            }
                        });
                        black_box(draw(&entries, scroll, Size { columns, rows }));
                    }
                    start.elapsed().as_secs_f64() * 1e3 / rounds as f64
                });
                median(runs.collect())
            };
            let newest = time(0, 20);
            let oldest = time(usize::MAX, 1);
            println!(
                "  {count} messages of {kib} KiB, {columns} by {rows}: newest {newest:.2}, \
                 oldest at a new size {oldest:.0}"
            );
        }
    }
}

fn draw(entries: &VecDeque<Entry>, scroll: usize, size: Size) -> Frame {
    let screen = view::Screen {
        entries,
        progress: &[],
        status: &Status { prompt: "> ".into(), ..Status::default() },
        editor: &Editor::for_messages(),
        scroll,
        newer: 0,
        unseen: 0,
        me: "alice",
        clock: &|_| "14:05".into(),
    };
    view::draw(&screen, size)
}
