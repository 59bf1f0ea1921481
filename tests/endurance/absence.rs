//! Messages for absent users, with real clients that are killed at any moment, or at each step of a login.
//!
//! `CRASHES` sets the number of kills; `CRASHES_SEED` chooses their moments, which also depend on the machine.

use super::letters::{Letters, ROOMY, User, waiting};
use crate::support::{
    DATA, DEADLINE, Dice, Folder, Gate, PASSWORD, Server, Unit, Way, holds, make_fifo, number, until,
};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// After the kill of a recipient's client, at most this number of messages may be missing: see [`Round::last`].
const UNPRINTED: usize = 3;

/// The most messages of a round. More than 192 KiB of mail, at 1.6 KiB each, may be overtaken by live messages:
/// PROTOCOL#mail-order.
const MOST: usize = 30;

/// What happened in one round, to the messages that were typed in it.
#[derive(Default)]
struct Round {
    /// The numbers from here on.
    first: usize,
    /// The server was killed. Its queues are not on disk, and it has forgotten which senders to notify of a loss, so
    /// delivered messages may be lost.
    killed_server: bool,
    /// Users who left, if the sender's client was killed: it cannot be notified of messages that their sessions lost.
    left: BTreeSet<String>,
    /// The last message that bob's client printed before it was killed. The client acknowledges a message milliseconds
    /// before it prints it, so the delivered messages directly after this one may be lost. Later ones were not
    /// acknowledged, and arrive again.
    last: Option<usize>,
}

impl Round {
    fn excuses(&self, name: &str, number: usize) -> bool {
        let is_next = |last: usize| name == "bob" && (last + 1..=last + UNPRINTED).contains(&number);
        self.killed_server || self.left.contains(name) || self.last.is_some_and(is_next)
    }
}

/// Alice, who writes; bob and carol, who come and go; dave, who gets nothing.
struct Stage {
    gate: Gate,
    users: [User; 4],
    letters: Letters,
}

impl Stage {
    /// Lets alice write until a message has arrived or waits on the server, and so all earlier ones too. Restarts
    /// clients that ended because the server was killed during their login.
    fn settle(&mut self, has_killed_server: bool) {
        let (end, names) = (Instant::now() + DEADLINE, ["bob", "carol"]);
        loop {
            let number = self.letters.say(&mut self.users[0], &names);
            let retry = Instant::now() + Duration::from_secs(3);
            while Instant::now() < retry {
                for user in &mut self.users {
                    if !user.poll() {
                        assert!(has_killed_server, "{} has ended: {:#?}", user.name, user.runs.last());
                        user.start(&self.gate);
                    }
                }
                let text = format!("(\"n{number}\")");
                let is_safe = |user: &User| {
                    let reports = self.users[0].lines().filter(|line| line.ends_with(&text));
                    let mut kept = reports.filter_map(|line| line.split("kept for ").nth(1));
                    kept.any(|names| names.contains(&user.name))
                        || user.shown().iter().any(|shown| shown.1 == number)
                };
                if self.users[1..3].iter().all(is_safe) {
                    return;
                }
                thread::park_timeout(Duration::from_millis(10));
            }
            assert!(Instant::now() < end, "alice's messages do not arrive");
            // A typed line makes a client reconnect without delay.
            for user in &mut self.users[1..] {
                let line = format!("/msg {} x", user.name);
                user.client.iter_mut().for_each(|client| _ = client.try_say(&line));
            }
        }
    }
}

/// Lets a user fetch all mail: then nothing waits on the server, and the mailbox file has one key.
fn fetch_everything(server: &Server, gate: &Gate, user: &mut User) {
    user.log_in(gate);
    until("nothing waits", || waiting(server, &user.name).is_empty());
    until("the former keys are erased", || user.records() == 1);
    user.leave();
    assert_eq!((waiting(server, &user.name).len(), user.records()), (0, 1));
}

/// PROTOCOL#keeping, PROTOCOL#mail-records, PROTOCOL#mail-erasing, PROTOCOL#lost.
#[test]
fn killed_programs_lose_no_kept_message_and_repeat_none() {
    let (dice, rounds) = (Dice::named("CRASHES_SEED"), number("CRASHES", 20).div_ceil(2));
    let mut server = Server::with(&ROOMY);
    let users = ["alice", "bob", "carol", "dave"].map(User::new);
    let mut stage = Stage { gate: Gate::before(&server), users, letters: Letters::default() };
    stage.users.iter_mut().for_each(|user| user.start(&stage.gate));
    for user in &mut stage.users {
        user.log_in(&stage.gate);
        let key = server.data("mail").join(&user.name).join("key");
        until("the server has a mailbox key", || key.exists());
    }
    let (mut all, mut kills) = (Vec::new(), [0; 3]);
    for turn in 0..rounds {
        let mut round = Round { first: stage.letters.len(), ..Round::default() };
        let victim = (turn % 3) as usize;
        let Stage { gate, users, letters } = &mut stage;
        let [alice, bob, carol, _] = users;
        for user in [&mut *bob, carol] {
            if user.client.is_none() {
                user.start(gate);
            } else if dice.below(2) == 0 {
                user.leave();
                round.left.insert(user.name.clone());
            }
        }
        // Kill at any moment, or soon after a step of bob's login.
        let step = ["", "* logged in as", "while you were away"][dice.below(3) as usize];
        let latest =
            Instant::now() + Duration::from_millis(if step.is_empty() { dice.below(1500) } else { 2500 });
        for _ in 0..=dice.below(8) {
            letters.say(alice, &["bob"]);
        }
        if victim == 2 && bob.client.is_none() {
            bob.start(gate);
        }
        loop {
            if letters.len() < round.first + MOST {
                letters.say(alice, if dice.below(2) == 0 { &["bob"] } else { &["bob", "carol"] });
            }
            thread::park_timeout(Duration::from_millis(dice.below(50)));
            bob.poll();
            let is_reached = bob.client.iter().any(|client| client.has_seen(step));
            if Instant::now() >= latest || (is_reached && !step.is_empty()) {
                break;
            }
        }
        thread::park_timeout(Duration::from_millis(dice.below(40)));
        kills[victim] += 1;
        match victim {
            0 => {
                gate.shut();
                server = Server::within(server.kill(), &ROOMY);
                gate.lead_to(&server);
                round.killed_server = true;
            }
            1 => {
                alice.kill();
                alice.start(gate);
            }
            _ => {
                bob.kill();
                let printed = bob.shown().into_iter().map(|(_, number, _)| number).max().unwrap_or(0);
                round.last = Some(printed.max(round.first.saturating_sub(1)));
                bob.start(gate);
            }
        }
        if victim != 1 {
            round.left.clear();
        }
        stage.settle(victim == 0);
        all.push(round);
    }
    // All log in once more. Alice leaves last, so that she is notified of losses.
    let Stage { gate, users: [alice, bob, carol, dave], letters } = &mut stage;
    for user in [&mut *bob, carol] {
        user.log_in(gate);
    }
    for user in [&mut *bob, carol] {
        user.leave();
    }
    alice.leave();
    for user in [&mut *bob, carol] {
        fetch_everything(&server, gate, user);
    }
    dave.leave();
    let excused = |name: &str, number: usize| {
        let round = all.iter().rev().find(|round| round.first <= number);
        round.is_some_and(|round| round.excuses(name, number))
    };
    let (kept, delivered, marks) = letters.check(&[alice, bob, carol, dave], excused);
    println!(
        "{kills:?} kills of the server, alice and bob: {} messages, {kept} kept, {delivered} delivered, {marks} marks",
        letters.len()
    );
}

/// Bob is absent, and messages wait for him.
struct Absence {
    server: Server,
    /// Alice's connection, and bob's.
    gates: [Gate; 2],
    alice: User,
    bob: User,
    letters: Letters,
}

impl Absence {
    fn begin() -> Absence {
        let server = Server::with(&[&ROOMY[..], &["--no-tls"]].concat());
        let gates = [Gate::before(&server), Gate::of(&server, Unit::Frames)];
        let (alice, bob) = (User::new("alice"), User::new("bob"));
        let mut absence = Absence { server, gates, alice, bob, letters: Letters::default() };
        absence.alice.log_in(&absence.gates[0]);
        absence.visit();
        (0..3).for_each(|_| absence.write_kept());
        absence
    }

    fn key(&self) -> Vec<u8> {
        std::fs::read(self.server.data("mail/bob/key")).unwrap_or_default()
    }

    /// Bob logs in, makes a mailbox key, and leaves.
    fn visit(&mut self) {
        self.bob.log_in(&self.gates[1]);
        until("the server has a mailbox key", || !self.key().is_empty());
        until("it is bob's only key", || self.bob.records() == 1);
        self.bob.leave();
        self.alice.client.as_mut().expect("here").expect("* bob has left");
    }

    /// Alice writes a message that is kept.
    fn write_kept(&mut self) {
        let number = self.letters.say(&mut self.alice, &["bob"]);
        let report = format!("* kept for bob until they log in (\"n{number}\")");
        assert_eq!(self.alice.client.as_mut().expect("here").expect(&format!("\"n{number}\"")), report);
    }

    /// Ends all sessions, so that bob is absent again. Alice writes one more message, and bob fetches everything.
    /// Returns what he has seen in all his runs.
    fn finish(mut self) -> Vec<(usize, bool)> {
        self.gates.iter().for_each(Gate::shut);
        let home = self.server.kill();
        self.server = Server::within(home, &[&ROOMY[..], &["--no-tls"]].concat());
        self.gates.iter().for_each(|gate| gate.lead_to(&self.server));
        self.alice.client.as_mut().expect("here").expect("in a new session");
        self.write_kept();
        fetch_everything(&self.server, &self.gates[1], &mut self.bob);
        self.alice.leave();
        self.letters.check(&[&self.alice, &self.bob], |_, _| false);
        self.bob.shown().into_iter().map(|(_, number, is_marked)| (number, is_marked)).collect()
    }
}

/// Kills bob's client at the first frame of this type in his second login. If it `passes`, nothing after it does;
/// otherwise it does not pass either.
fn kill_at(way: Way, frame: &str, passes: bool) -> Vec<(usize, bool)> {
    let mut absence = Absence::begin();
    let (key, is_over) = (absence.key(), Arc::new(AtomicBool::new(false)));
    for one in [Way::Up, Way::Down] {
        let (is_over, sign) = (is_over.clone(), format!("\"type\":\"{frame}\"").into_bytes());
        absence.gates[1].hook(one, move |unit| {
            let is_it = one == way && holds(&unit, &sign);
            let was_over =
                if is_it { is_over.swap(true, Ordering::SeqCst) } else { is_over.load(Ordering::SeqCst) };
            if was_over || (is_it && !passes) { Vec::new() } else { unit }
        });
    }
    absence.bob.start(&absence.gates[1]);
    until(frame, || is_over.load(Ordering::SeqCst));
    match (frame, passes) {
        ("mail_done", true) => {
            until("the server has deleted it", || waiting(&absence.server, "bob").is_empty())
        }
        ("mailbox", true) => until("the server has the key", || absence.key() != key),
        _ => {}
    }
    absence.bob.kill();
    for way in [Way::Up, Way::Down] {
        absence.gates[1].hook(way, |unit| unit);
    }
    absence.finish()
}

/// Four messages, each shown once and without a mark.
const ONCE: [(usize, bool); 4] = [(0, false), (1, false), (2, false), (3, false)];

/// PROTOCOL#fetching, PROTOCOL#mail-records.
#[test]
fn client_killed_before_or_after_its_mail_done_shows_once() {
    assert_eq!(kill_at(Way::Down, "mail", false), ONCE);
    assert_eq!(kill_at(Way::Up, "mail_done", false), ONCE);
    assert_eq!(kill_at(Way::Up, "mail_done", true), ONCE);
}

/// PROTOCOL#mail-owner, PROTOCOL#mail-erasing, PROTOCOL#mailbox-key.
#[test]
fn client_killed_while_it_replaces_its_key_loses_nothing() {
    for (way, frame, passes) in
        [(Way::Up, "mailbox", false), (Way::Up, "mailbox", true), (Way::Down, "mailbox_set", true)]
    {
        let seen = kill_at(way, frame, passes);
        assert!(seen.len() >= ONCE.len(), "{frame}: {seen:?}");
    }
}

/// PROTOCOL#mail-records.
#[test]
fn client_killed_between_record_and_show_marks_its_mail() {
    let mut absence = Absence::begin();
    // Nobody reads the output, and it is full, so nothing can be shown.
    let home = absence.bob.home.clone();
    let fifo = home.path("fifo");
    make_fifo(&fifo);
    let both = std::fs::OpenOptions::new().read(true).write(true).open(&fifo).expect("a pipe");
    fill(&fifo);
    let mut command = Command::new(env!("CARGO_BIN_EXE_client"));
    let port = absence.gates[1].port.to_string();
    command.args(["--no-tls", "--host", "127.0.0.1", "--port", &port, "--user", "bob", "--password-file"]);
    command.arg(home.password_file(PASSWORD)).env("HOME", &home.0).current_dir(&home.0);
    let mut child = command.stdin(Stdio::piped()).stdout(both).spawn().expect("the client starts");
    // Two keys, and a record for each message.
    until("messages and key are recorded", || absence.bob.records() == 2 + 3);
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    assert_eq!(waiting(&absence.server, "bob").len(), 3, "nothing is confirmed that was not shown");
    assert_eq!(absence.bob.records(), 5, "nothing is recorded as shown");
    absence.bob.runs.clear();
    let seen = absence.finish();
    assert_eq!(seen, [(0, true), (1, true), (2, true), (3, false)]);
}

/// Fills a pipe.
fn fill(fifo: &Path) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let mut pipe = options.write(true).custom_flags(libc::O_NONBLOCK).open(fifo).expect("a pipe");
    while pipe.write(b"\n").is_ok() {}
}

/// PROTOCOL#mailbox-file-lock, PROTOCOL#mail-records.
#[test]
fn two_racing_logins_show_each_message_once() {
    let mut absence = Absence::begin();
    // Neither registers, because that needs the key file's lock.
    let home = &absence.bob.home;
    let start = || Some(absence.gates[1].client(home.clone(), "bob", &[]));
    let mut racers = [(); 2].map(|()| User { home: home.clone(), client: start(), ..User::new("bob") });
    // The later login ends the earlier one.
    until("one of them has ended", || racers.iter_mut().any(|bob| !bob.poll()));
    racers.sort_by_key(|bob| bob.client.is_some());
    let [loser, mut winner] = racers;
    assert!(loser.lines().any(|line| line.contains("elsewhere")), "{:#?}", loser.runs);
    winner.leave();
    absence.bob.runs.extend(loser.runs.into_iter().chain(winner.runs));
    let seen = absence.finish();
    let numbers: BTreeSet<usize> = seen.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers.len(), 4, "{seen:?}");
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.expect("cp").success());
}

/// PROTOCOL#mail-refusals, PROTOCOL#mail-erasing.
#[test]
fn second_machine_fetches_its_own_key_s_mail_only() {
    let mut absence = Absence::begin();
    let other = Folder::new();
    copy(&absence.bob.home.path(DATA), &other.path(DATA));
    let mut second = User { home: Arc::new(other), ..User::new("bob") };
    // Both machines have the key. One login ends the other, perhaps between showing and confirming a message.
    absence.bob.start(&absence.gates[1]);
    second.start(&absence.gates[1]);
    until("one of them has ended", || !absence.bob.poll() || !second.poll());
    absence.bob.leave();
    second.leave();
    let numbers = |users: [&User; 2]| -> BTreeSet<usize> {
        users.iter().flat_map(|user| user.shown()).map(|(_, number, _)| number).collect()
    };
    for user in [&mut second, &mut absence.bob] {
        fetch_everything(&absence.server, &absence.gates[1], user);
    }
    assert_eq!(numbers([&absence.bob, &second]), (0..3).collect());
    for user in [&absence.bob, &second] {
        absence.letters.check(&[user], |_, _| true);
    }
    // The first machine's key is the current one. The second cannot read its mail, and leaves it there.
    absence.visit();
    absence.write_kept();
    let client = second.log_in(&absence.gates[1]);
    client.expect("* 1 message waits for the machine that you used before, until 2");
    second.leave();
    assert_eq!(waiting(&absence.server, "bob").len(), 1);
    assert!(!second.shown().iter().any(|(_, number, _)| *number == 3));
    let client = absence.bob.log_in(&absence.gates[1]);
    assert_eq!(client.expect("n3"), "<alice -> bob> n3");
    until("nothing waits", || waiting(&absence.server, "bob").is_empty());
}
