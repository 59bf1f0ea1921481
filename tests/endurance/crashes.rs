//! A server that is killed at any moment, and a full disk: everything that the server confirmed survives, nothing is
//! half done, and no temporary files are left.
//!
//! `CRASHES` sets the number of kills; `CRASHES_SEED` chooses their moments, which also depend on the machine.

use crate::support::{
    self, DATA, Dice, Folder, NEW, PASSWORD, Person, Raw, Server, check, exchange, has, limit_files,
    mailbox_key, name, number, quick_key, server_command,
};
use secure_messenger::crypto::key_file;
use secure_messenger::crypto::secret::Password;
use secure_messenger::protocol::{ClientMessage, Kept, Mail, MailDone, ServerMessage};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The number of clients that use the server until it is killed.
const PEOPLE: usize = 4;
/// Options of a server that refuses no registration.
const PLENTY: [&str; 2] = ["--registrations", "1000000"];

/// The state of an account that a client has observed.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Known {
    /// Requested, never confirmed.
    Maybe,
    /// Confirmed, with this password.
    Has(&'static str),
    /// Confirmed; the password is the old or the new one.
    Either,
}

type Accounts = Mutex<BTreeMap<String, Known>>;

/// Creates accounts, logs in and changes passwords until the server is gone.
fn use_server(port: u16, who: &str, accounts: &Accounts) {
    for n in 0.. {
        let person = Person::new(&format!("{who}-{n}"));
        let name = person.name.to_string();
        let know = |what| accounts.lock().expect("whole").insert(name.clone(), what);
        let Some(mut raw) = Raw::reach(port) else { return };
        know(Known::Maybe);
        let request = quick_key(PASSWORD).register(&person.name, person.identity.public());
        raw.bytes(&ClientMessage::Register(request).encode());
        let Some(ServerMessage::Registered) = raw.answer() else { return };
        know(Known::Has(PASSWORD));
        let Some(ServerMessage::Session(_)) = raw.log_in(&person) else { return };
        raw.bytes(&ClientMessage::Ping.encode());
        let Some(mut other) = Raw::reach(port) else { return };
        know(Known::Either);
        let Some(ServerMessage::PasswordChanged) = other.change_password(&person, PASSWORD, NEW) else {
            return;
        };
        know(Known::Has(NEW));
    }
}

/// Asserts that `server --check` finds no problem and no damage.
fn assert_sound(home: &Folder) {
    let (status, text) = check(home);
    assert_eq!(status, 0, "{text}");
    let bad = |line: &&str| line.contains("problem") || line.contains("WARNING");
    assert_eq!(text.lines().find(bad), None, "{text}");
}

/// Asserts that every line of `users.json` is complete and that no temporary file is left.
fn assert_tidy(data: &Path) {
    let users = fs::read_to_string(data.join("users.json")).expect("there");
    assert!(users.is_empty() || users.ends_with('\n'));
    assert!(users.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{users}");
    let left =
        support::files(data).into_iter().filter(|path| path.extension().is_some_and(|end| end == "tmp"));
    assert_eq!(left.count(), 0);
}

/// PROTOCOL#confirmed.
#[test]
fn killed_server_keeps_everything_it_confirmed() {
    let dice = Dice::named("CRASHES_SEED");
    let crashes = number("CRASHES", 20);
    let mut home = Arc::new(Folder::new());
    let (mut confirmed, mut unsure) = (0, 0);
    // The password of every account so far.
    let mut all: BTreeMap<String, &'static str> = BTreeMap::new();
    for crash in 0..crashes {
        let server = Server::within(home, &PLENTY);
        assert_tidy(&server.home.path("data"));
        let (port, accounts) = (server.port, Accounts::default());
        home = thread::scope(|scope| {
            for n in 0..PEOPLE {
                let (name, accounts) = (format!("p{crash}-{n}"), &accounts);
                scope.spawn(move || use_server(port, &name, accounts));
            }
            thread::park_timeout(Duration::from_millis(dice.below(800)));
            server.kill()
        });
        assert_sound(&home);
        let server = Server::within(home, &PLENTY);
        assert_tidy(&server.home.path("data"));
        for (name, known) in accounts.into_inner().expect("whole") {
            let person = Person::new(&name);
            let password = match known {
                Known::Has(password) => {
                    assert!(server.opens(&person, password), "{name}: {known:?}");
                    confirmed += 1;
                    password
                }
                Known::Either => {
                    unsure += 1;
                    let old = server.opens(&person, PASSWORD);
                    assert!(old || server.opens(&person, NEW), "{name}: neither password");
                    if old { PASSWORD } else { NEW }
                }
                Known::Maybe => {
                    // Either the account exists with this password, or its name is free.
                    unsure += 1;
                    server.raw().register_quickly(&person);
                    assert!(server.opens(&person, PASSWORD), "{name} is half created");
                    PASSWORD
                }
            };
            all.insert(name, password);
        }
        home = server.kill();
    }
    let server = Server::within(home, &PLENTY);
    for (name, password) in all.iter().step_by(1 + all.len() / 100) {
        assert!(server.opens(&Person::new(name), password), "{name}, after later crashes");
    }
    let accounts = format!("({} accounts)", all.len());
    server.told(&accounts);
    println!("killed {crashes} times: {confirmed} confirmed, {unsure} in progress, {} accounts", all.len());
}

/// Starts a server on `home`, and kills it `wait` after its data folder reaches a state.
fn kill_when(home: &Folder, is_reached: impl Fn(&Path) -> bool, wait: Duration) {
    let data = home.path("data");
    let mut command = server_command(home, &["--host", "127.0.0.1", "--port", "0"]);
    let mut child = command.stdout(Stdio::null()).spawn().expect("the server starts");
    let end = Instant::now() + support::DEADLINE;
    // Poll without a pause, because the state is short-lived.
    while !is_reached(&data) {
        assert!(Instant::now() < end, "the folder never reached the state");
    }
    thread::park_timeout(wait);
    child.kill().expect("it runs");
    child.wait().expect("it ends");
}

#[test]
fn start_succeeds_after_a_kill_at_any_point_of_the_first() {
    let dice = Dice::named("CRASHES_SEED");
    let in_certs = |data: &Path| std::fs::read_dir(data.join("certs")).map_or(0, Iterator::count);
    let mut reached = BTreeMap::new();
    for round in 0..number("CRASHES", 20) {
        let home = Arc::new(Folder::new());
        let wait = Duration::from_micros(dice.below(1_000));
        kill_when(&home, |data| data.exists() && in_certs(data) as u64 >= round % 3, wait);
        *reached.entry(in_certs(&home.path("data"))).or_insert(0) += 1;
        let server = Server::within(home, &[]);
        assert_tidy(&server.home.path("data"));
        assert!(server.raw().is_usable());
        assert_sound(&server.home);
    }
    println!("number of files in certs at the kill, and how often: {reached:?}");
}

#[test]
fn kill_during_log_rotation_keeps_all_logs_and_at_most_five() {
    let dice = Dice::named("CRASHES_SEED");
    let home = Arc::new(Folder::new());
    drop(Server::within(home.clone(), &[]));
    let logs = home.path("data/logs");
    let line = "2026-01-31T08:05:09Z event=login_failed user=alice addr=203.0.113.7\n";
    let (mut rotated, mut during) = (0, 0);
    for round in 0..number("CRASHES", 20) {
        let log = logs.join("security.log");
        // Fill the log so that the entry of the start rotates it.
        let mark = format!("round {round}\n");
        let filler = line.repeat((10 * 1024 * 1024 - mark.len()) / line.len());
        let bytes = mark.clone() + &filler;
        fs::write(&log, &bytes).expect("written");
        fs::set_permissions(&log, fs::Permissions::from_mode(0o600)).expect("ours");
        let wait = Duration::from_micros(if dice.below(2) == 0 { 0 } else { dice.below(200) });
        let is_changed = |_: &Path| fs::metadata(&log).map_or(0, |facts| facts.len()) != bytes.len() as u64;
        kill_when(&home, is_changed, wait);
        during += usize::from(!log.exists());
        let server = Server::within(home.clone(), &[]);
        let files = support::files(&logs);
        assert!(files.len() <= 6, "{files:?}");
        // The lines of before the kill are in the newest file or in one of the two previous ones.
        let begins = |name: &str| {
            let file = fs::File::open(logs.join(name)).ok()?;
            BufReader::new(file).lines().next()?.ok()
        };
        let found = ["security.log", "security.log.1", "security.log.2"].map(begins);
        assert!(found.contains(&Some(mark.trim_end().into())), "{found:?}");
        rotated += usize::from(found[0] != Some(mark.trim_end().into()));
        drop(server);
    }
    println!("rotated {rotated} times, killed {during} times during a rotation");
}

#[test]
fn full_disk_refuses_only_accounts_until_there_is_room() {
    let home = Arc::new(Folder::new());
    drop(Server::within(home.clone(), &PLENTY));
    // A limit on the size of files simulates the full disk; a soft limit can be lifted. Without the trap, SIGXFSZ would
    // kill the server.
    let full = "trap '' XFSZ; ulimit -S -f 16";
    let server = Server::after(full, home, &PLENTY);
    let limit = fs::read_to_string(format!("/proc/{}/limits", server.child.id())).unwrap_or_default();
    if !limit.contains("Max file size") || !has("prlimit") {
        return;
    }
    let (mut alice, mut bob) = server.alice_and_bob();
    let register = |server: &Server, name: &str| server.raw().try_register(&Person::new(name));
    let (mut made, mut refused) = (0, 0);
    while refused < 5 {
        match register(&server, &format!("n{made}x{refused}")) {
            None => made += 1,
            Some(failure) => {
                assert_eq!(failure.code, "server_error");
                assert!(failure.message.contains("cannot store accounts"), "{}", failure.message);
                refused += 1;
            }
        }
        assert!(made < 100, "the disk never becomes full");
        let text = format!("{made} and {refused}");
        exchange(&mut alice, &mut bob, &text);
        exchange(&mut bob, &mut alice, &text);
    }
    // The client reports the error.
    let lines = server.client("carol").ends(1, "the server cannot store accounts now");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    // After `server_error`, the account may exist, so the client keeps its key and uses it for the next attempt.
    let dave = |home: &Arc<Folder>| server.client_in(home, "dave", &["--register"]).finish();
    let home = Arc::new(Folder::new());
    assert_eq!(dave(&home).0, 1);
    let key = home.path(DATA).join("keys/dave_private.key");
    let its_key = || {
        let text = std::fs::read(&key).expect("it is kept");
        let identity = key_file::open(&text, &name("dave"), &Password::new(PASSWORD.into()));
        identity.expect("opens").public().fingerprint()
    };
    let kept = its_key();
    assert!(limit_files(server.child.id(), "unlimited"));
    for n in 0..5 {
        assert!(register(&server, &format!("later{n}")).is_none(), "there is room");
    }
    assert!(server.opens(&Person::new("later0"), PASSWORD));
    assert_eq!((dave(&home).0, its_key()), (0, kept));
    server.logs("event=storage_failed");
    drop((alice, bob));
    // After a restart, exactly these accounts exist.
    let home = server.kill();
    assert_sound(&home);
    let server = Server::within(home, &PLENTY);
    assert_tidy(&server.home.path("data"));
    let accounts = format!("({} accounts)", 2 + made + 5 + 1);
    server.told(&accounts);
    assert!(server.opens(&Person::new("n0x0"), PASSWORD) && server.opens(&Person::new("later4"), PASSWORD));
}

/// Sends numbered messages to carol until the server is gone. Returns the first number that was not confirmed.
fn write_to_carol(port: u16, from: &Person, first: u64) -> u64 {
    let Some(mut raw) = Raw::reach(port) else { return first };
    let Some(ServerMessage::Session(_)) = raw.log_in_quickly(from) else { return first };
    for number in first.. {
        raw.bytes(&from.mail_for("carol", mailbox_key().public(), number, "text").encode());
        match raw.answer() {
            Some(ServerMessage::Sent(sent)) => assert_eq!(sent.kept.len(), 1, "there is room"),
            _ => return number,
        }
    }
    unreachable!("the server is killed")
}

/// The messages that carol has received.
struct Arrived {
    senders: [Person; 3],
    /// The last number of each sender.
    last: [u64; 3],
    /// Sent, but not confirmed: each may or may not arrive.
    unsure: BTreeSet<(usize, u64)>,
    /// Fetched, but the server was killed before it confirmed the deletion: each may arrive again.
    unsettled: BTreeSet<(usize, u64)>,
}

impl Arrived {
    /// Takes a batch. Asserts that no confirmed message is missing, and that no deleted one arrives again.
    fn take(&mut self, mail: &Mail) -> Vec<(usize, u64)> {
        let place = |kept: &Kept| {
            let header = &kept.message.envelope.header;
            let sender = self.senders.iter().position(|person| person.name == header.from);
            (sender.expect("a sender"), header.sequence)
        };
        let batch: Vec<_> = mail.mail.iter().map(place).collect();
        for (sender, number) in &batch {
            if self.unsettled.contains(&(*sender, *number)) {
                continue;
            }
            let last = std::mem::replace(&mut self.last[*sender], *number);
            assert!(*number > last, "{number} came twice");
            let missing = (last + 1..*number).find(|missing| !self.unsure.contains(&(*sender, *missing)));
            assert_eq!(missing, None, "it is lost");
        }
        batch
    }
}

/// PROTOCOL#keeping, PROTOCOL#mail_done.
#[test]
fn killed_server_loses_no_kept_message_and_repeats_none() {
    let limits = ["--mail", "1000000", "--mail-sender", "1000000", "--mail-messages", "1000000"];
    let arguments = [&PLENTY[..], &limits].concat();
    let (dice, crashes) = (Dice::named("CRASHES_SEED"), number("CRASHES", 20));
    let mut server = Server::within(Arc::new(Folder::new()), &arguments);
    let carol = server.absent("carol");
    let senders = ["alice", "bob", "dave"].map(Person::new);
    senders.iter().for_each(|person| server.raw().register_quickly(person));
    let (unsure, unsettled) = (BTreeSet::new(), BTreeSet::new());
    let mut arrived = Arrived { senders, last: [0; 3], unsure, unsettled };
    let mut next = [1; 3];
    for crash in 1..=crashes {
        let port = server.port;
        let home;
        (home, next) = thread::scope(|scope| {
            let writers = [0, 1, 2].map(|n| {
                let (person, first) = (&arrived.senders[n], next[n]);
                scope.spawn(move || write_to_carol(port, person, first))
            });
            thread::park_timeout(Duration::from_millis(dice.below(600)));
            (server.kill(), writers.map(|writer| writer.join().expect("whole")))
        });
        for (n, number) in next.iter_mut().enumerate() {
            arrived.unsure.insert((n, *number));
            *number += 1;
        }
        assert_sound(&home);
        server = Server::within(home, &arguments);
        assert_tidy(&server.home.path("data"));
        let mut raw = server.returns(&carol);
        // Some batches before the next crash, all of them after the last one.
        let batches = if crash == crashes { u64::MAX } else { dice.below(20) };
        for n in 0..batches {
            let mail = raw.fetch();
            let batch = arrived.take(&mail);
            if n == 10 {
                let numbers = mail.mail.iter().map(|kept| kept.number).collect();
                raw.say(&ClientMessage::MailDone(MailDone { numbers }));
                server = Server::within(server.kill(), &arguments);
                raw = server.returns(&carol);
                arrived.unsettled.extend(batch);
                continue;
            }
            raw.confirm(&mail.mail);
            raw.acknowledge();
            if !mail.more {
                break;
            }
        }
        raw.leaves();
    }
    for (n, number) in next.iter().enumerate() {
        let missing = (arrived.last[n] + 1..*number).find(|missing| !arrived.unsure.contains(&(n, *missing)));
        assert_eq!(missing, None, "it is lost");
    }
    println!("killed {crashes} times: {:?} arrived, {} unsure", arrived.last, arrived.unsure.len());
}
