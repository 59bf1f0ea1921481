//! Twenty real clients chat while their connections break again and again, in different ways and at any byte. Each
//! message arrives exactly once and in order, or the sender's client reports that it may not have arrived.
//!
//! `FAULTS` sets the number of faults; `FAULTS_SEED` chooses them, but their moments also depend on the machine.

use super::letters::{Letters, ROOMY, User, waiting};
use crate::support::{Client, Dice, Folder, Gate, Server, Way, number, until};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::{self, Scope};
use std::time::Duration;

const PEOPLE: usize = 20;
/// After this number of faults, the test waits until all clients have heard from each other.
const BATCH: usize = 20;

/// Disturbs the connection of one client, once or for some time.
fn fault<'scope>(gate: &'scope Gate, dice: &'scope Dice, scope: &'scope Scope<'scope, '_>) {
    match dice.below(6) {
        0 | 1 => gate.cut(),
        2 => gate.lose_clients(),
        3 | 4 => {
            let way = if dice.below(2) == 0 { Way::Up } else { Way::Down };
            gate.cut_after(way, dice.below(6000));
            scope.spawn(|| {
                thread::park_timeout(Duration::from_millis(50 + dice.below(400)));
                gate.heal();
            });
        }
        _ => gate.stall(Duration::from_millis(dice.below(400))),
    }
}

/// PROTOCOL#frames, PROTOCOL#sent-again, PROTOCOL#no-session.
#[test]
fn faults_deliver_once_in_order_or_notify_the_sender() {
    let (dice, faults) = (Dice::named("FAULTS_SEED"), number("FAULTS", 60) as usize);
    // Large outboxes, so that disconnected clients lose no messages.
    let server = Server::with(&["--outbox", "65536", "--registrations", "1000"]);
    let gates: Vec<Gate> = (0..PEOPLE).map(|_| Gate::before(&server)).collect();
    gates.iter().for_each(|gate| gate.split(&dice));
    let names: Vec<String> = (0..PEOPLE).map(|n| format!("p{n}")).collect();
    let mut people: Vec<Client> = Vec::new();
    for (name, gate) in names.iter().zip(&gates) {
        people.push(gate.client(Arc::new(Folder::new()), name, &["--register"]).ready());
    }
    for (n, person) in people.iter_mut().enumerate() {
        for later in &names[n + 1..] {
            let came = format!("* {later} is online");
            if !person.output.seen.contains(&came) {
                person.expect(&came);
            }
        }
    }
    // The messages sent: sender, recipients (none for everyone), numbers from 0.
    let mut said: BTreeMap<(usize, BTreeSet<String>), u64> = BTreeMap::new();
    let mut say = |people: &mut [Client], from: usize, to: &[usize]| {
        let to: BTreeSet<String> = to.iter().map(|n| names[*n].clone()).collect();
        let list = to.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        let count = said.entry((from, to)).or_default();
        match list.as_str() {
            "" => people[from].say(&format!("n{count}")),
            list => people[from].say(&format!("/msg {list} n{count}")),
        }
        *count += 1;
        *count - 1
    };
    let mut done = 0;
    thread::scope(|scope| {
        while done < faults {
            for _ in 0..BATCH.min(faults - done) {
                let from = dice.below(PEOPLE as u64) as usize;
                let to = (from + 1 + dice.below(PEOPLE as u64 - 1) as usize) % PEOPLE;
                let third = (0..PEOPLE).find(|third| *third != from && *third != to).expect("others");
                say(&mut people, from, &[]);
                say(&mut people, from, &[to]);
                say(&mut people, from, &[to, third]);
                fault(&gates[dice.below(PEOPLE as u64) as usize], &dice, scope);
                // Spread the faults over different stages of a message.
                thread::park_timeout(Duration::from_millis(dice.below(60)));
                done += 1;
            }
            let read: Vec<usize> = people.iter().map(|person| person.output.seen.len()).collect();
            let last: Vec<u64> = (0..PEOPLE).map(|from| say(&mut people, from, &[])).collect();
            for to in 0..PEOPLE {
                for (from, n) in last.iter().enumerate() {
                    let line = format!("<p{from}> n{n}");
                    while people[to].output.seen[read[to]..].iter().all(|seen| *seen != line) {
                        assert!(people[to].output.next().is_some(), "p{to} has ended");
                    }
                }
            }
        }
    });
    gates.iter().for_each(Gate::heal);
    let outputs: Vec<Vec<String>> = people.iter().map(|person| person.output.seen.clone()).collect();
    drop(people);
    let (mut messages, mut reported) = (0, 0);
    for ((from, to), &count) in &said {
        let from = *from;
        let list = to.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let mark = if to.is_empty() { format!("<p{from}> n") } else { format!("<p{from} -> {list}> n") };
        let numbers = |lines: &[String]| -> Vec<u64> {
            let of = lines.iter().filter_map(|line| line.strip_prefix(&mark));
            of.map(|rest| rest.parse().expect("a number")).collect()
        };
        let problems: BTreeSet<u64> = outputs[from]
            .iter()
            .filter(|line| line.starts_with("! "))
            .filter_map(|line| line.split("\"n").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        let is_meant = |n: &usize| to.is_empty() || *n == from || to.contains(&names[*n]);
        let recipients: Vec<usize> = (0..PEOPLE).filter(is_meant).collect();
        for one in recipients {
            let seen = numbers(&outputs[one]);
            assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "{mark} at p{one}: {seen:?}");
            let missing: Vec<u64> =
                (0..count).filter(|n| !seen.contains(n) && !problems.contains(n)).collect();
            assert!(missing.is_empty(), "{mark} at p{one}: {missing:?} of {count}");
            messages += seen.len();
        }
        reported += problems.len();
    }
    let count = |part: &str| outputs.iter().flatten().filter(|line| line.contains(part)).count();
    println!(
        "{faults} faults, {} connections lost, {} new sessions, {messages} messages shown, {reported} reported as lost",
        count("; trying again"),
        count("in a new session")
    );
    // Every client reconnects within the grace period, so nobody joins or leaves.
    assert_eq!((count("in a new session"), count(" has left")), (0, 0));
}

/// Users who stay and write.
const STAYING: usize = 3;
/// Users who log in and leave again and again.
const COMING: usize = 4;

/// PROTOCOL#keeping, PROTOCOL#lost, PROTOCOL#stale, PROTOCOL#mail-order.
#[test]
fn faults_lose_no_message_to_users_who_come_and_go() {
    let (dice, faults) = (Dice::named("FAULTS_SEED"), number("FAULTS", 60));
    let server = Server::with(&[&ROOMY[..], &["--outbox", "65536", "--registrations", "1000"]].concat());
    let gates = [(); STAYING + COMING].map(|()| Gate::before(&server));
    let names: Vec<String> = (0..gates.len()).map(|n| format!("p{n}")).collect();
    let mut users: Vec<User> = names.iter().map(|name| User::new(name)).collect();
    for (user, gate) in users.iter_mut().zip(&gates) {
        user.log_in(gate);
        let key = server.data("mail").join(&user.name).join("key");
        until("the server has a mailbox key", || key.exists());
    }
    gates.iter().for_each(|gate| gate.split(&dice));
    let mut letters = Letters::default();
    thread::scope(|scope| {
        for _ in 0..faults {
            let from = dice.below(STAYING as u64) as usize;
            let other = |not: usize| loop {
                let one = dice.below(names.len() as u64) as usize;
                if one != from && one != not {
                    return one;
                }
            };
            let one = other(from);
            let two = other(one);
            letters.say(&mut users[from], &[&names[one]]);
            letters.say(&mut users[from], &[&names[one], &names[two]]);
            let coming = STAYING + dice.below(COMING as u64) as usize;
            let user = &mut users[coming];
            // A login that a fault breaks ends the client.
            user.poll();
            match &mut user.client {
                None => user.start(&gates[coming]),
                Some(client) if dice.below(3) == 0 => client.end(),
                Some(_) => {}
            }
            fault(&gates[dice.below(gates.len() as u64) as usize], &dice, scope);
            thread::park_timeout(Duration::from_millis(dice.below(200)));
        }
    });
    gates.iter().for_each(Gate::heal);
    let (staying, coming) = users.split_at_mut(STAYING);
    for (user, gate) in coming.iter_mut().zip(&gates[STAYING..]) {
        // Some have left already, or have failed to log in.
        user.leave();
        user.log_in(gate);
        user.leave();
    }
    staying.iter_mut().for_each(User::leave);
    for (user, gate) in users.iter_mut().zip(&gates) {
        user.log_in(gate);
        until("nothing waits", || waiting(&server, &user.name).is_empty());
        user.leave();
    }
    let all: Vec<&User> = users.iter().collect();
    let (kept, delivered, marks) = letters.check(&all, |_, _| false);
    println!(
        "{faults} faults, {} messages, {kept} kept, {delivered} delivered, {marks} marks",
        letters.len()
    );
}
