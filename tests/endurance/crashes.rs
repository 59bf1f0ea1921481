//! A server that is killed at any moment, and a disk that is full: everything that was confirmed survives and works,
//! nothing is half done, and no files pile up.
//!
//! `CRASHES` sets the number of kills, `CRASHES_SEED` their moments, which also depend on the machine.

use crate::support::{self, Client, Folder, Output, PASSWORD, Person, Raw, Server, quick_key, until};
use secure_messenger::crypto::key_file;
use secure_messenger::crypto::secret::Password;
use secure_messenger::protocol::{ClientMessage, ServerMessage};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The clients that run meanwhile.
const PEOPLE: usize = 4;
const PLENTY: [&str; 2] = ["--registrations", "1000000"];
const NEW: &str = "tr0ub4dor and three";

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// The seed, which is printed; [`roll`] makes numbers from it.
fn seed() -> u64 {
    let clock = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64;
    let seed = number("CRASHES_SEED", clock);
    println!("CRASHES_SEED={seed}");
    seed
}

/// A number below `n`.
fn roll(state: &mut u64, n: u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % n
}

/// What is known of an account.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Known {
    /// Requested, never confirmed.
    Maybe,
    /// Confirmed, with this password.
    Has(&'static str),
    /// Confirmed, and one of the two opens it.
    Either,
}

type Accounts = Mutex<BTreeMap<String, Known>>;

/// Creates an account, logs in and changes the password, again and again until the server is gone.
fn live(port: u16, who: &str, accounts: &Accounts) {
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

fn opens(server: &Server, person: &Person, password: &str) -> bool {
    matches!(server.raw().log_in_with(person, password), Some(ServerMessage::Session(_)))
}

/// `server --check` finds nothing that would stop a start, nor any damage.
fn is_sound(home: &Folder) {
    let data = home.path("data");
    let mut child = Command::new(env!("CARGO_BIN_EXE_server"))
        .args(["--check", "--data-dir"])
        .arg(&data)
        .env("HOME", &home.0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the server starts");
    let lines = Output::of(child.stdout.take().expect("piped")).all();
    assert!(child.wait().expect("it ends").success(), "{lines:#?}");
    let bad = |line: &&String| line.contains("problem") || line.contains("WARNING");
    assert_eq!(lines.iter().find(bad), None, "{lines:#?}");
}

/// Every line of `users.json` is complete, and no temporary file is left.
fn is_tidy(data: &Path) {
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
    let mut state = seed();
    let crashes = number("CRASHES", 20);
    let mut home = Arc::new(Folder::new());
    let (mut confirmed, mut unsure) = (0, 0);
    // Everything that was ever confirmed.
    let mut all: BTreeMap<String, &'static str> = BTreeMap::new();
    for crash in 0..crashes {
        let server = Server::within(home, &PLENTY);
        is_tidy(&server.home.path("data"));
        let (port, accounts) = (server.port, Accounts::default());
        home = thread::scope(|scope| {
            for n in 0..PEOPLE {
                let (name, accounts) = (format!("p{crash}-{n}"), &accounts);
                scope.spawn(move || live(port, &name, accounts));
            }
            thread::park_timeout(Duration::from_millis(roll(&mut state, 800)));
            server.kill()
        });
        is_sound(&home);
        let server = Server::within(home, &PLENTY);
        is_tidy(&server.home.path("data"));
        for (name, known) in accounts.into_inner().expect("whole") {
            let person = Person::new(&name);
            let password = match known {
                Known::Has(password) => {
                    assert!(opens(&server, &person, password), "{name}: {known:?}");
                    confirmed += 1;
                    password
                }
                Known::Either => {
                    unsure += 1;
                    let old = opens(&server, &person, PASSWORD);
                    assert!(old || opens(&server, &person, NEW), "{name}: neither password");
                    if old { PASSWORD } else { NEW }
                }
                Known::Maybe => {
                    // The account exists, or its name is free.
                    unsure += 1;
                    let key = quick_key(PASSWORD);
                    let request = key.register(&person.name, person.identity.public());
                    let mut raw = server.raw();
                    raw.say(&ClientMessage::Register(request));
                    match raw.answer() {
                        Some(ServerMessage::Registered) => {}
                        Some(ServerMessage::Error(failure)) => assert_eq!(failure.code, "name_taken"),
                        _ => panic!("no answer"),
                    }
                    assert!(opens(&server, &person, PASSWORD), "{name} is half created");
                    PASSWORD
                }
            };
            all.insert(name, password);
        }
        home = server.kill();
    }
    let server = Server::within(home, &PLENTY);
    for (name, password) in all.iter().step_by(1 + all.len() / 100) {
        assert!(opens(&server, &Person::new(name), password), "{name}, later");
    }
    let accounts = format!("({} accounts)", all.len());
    assert!(server.greeting.iter().any(|line| line.contains(&accounts)), "{accounts} {:#?}", server.greeting);
    println!("killed {crashes} times: {confirmed} confirmed, {unsure} under way, {} accounts", all.len());
}

/// Starts a server on `home` and kills it this long after its folder is in this state.
fn killed_when(home: &Folder, so: impl Fn(&Path) -> bool, wait: Duration) {
    let data = home.path("data");
    let mut child = Command::new(env!("CARGO_BIN_EXE_server"))
        .args(["--host", "127.0.0.1", "--port", "0", "--data-dir"])
        .arg(&data)
        .env("HOME", &home.0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("the server starts");
    let end = Instant::now() + support::DEADLINE;
    // Polled without a pause: the moment to hit is short.
    while !so(&data) {
        assert!(Instant::now() < end, "this state never occurred");
    }
    thread::park_timeout(wait);
    child.kill().expect("it runs");
    child.wait().expect("it ends");
}

#[test]
fn start_succeeds_after_a_kill_at_any_point_of_the_first() {
    let mut state = seed();
    let in_certs = |data: &Path| std::fs::read_dir(data.join("certs")).map_or(0, Iterator::count);
    let mut reached = BTreeMap::new();
    for round in 0..number("CRASHES", 20) {
        let home = Arc::new(Folder::new());
        let wait = Duration::from_micros(roll(&mut state, 1_000));
        killed_when(&home, |data| data.exists() && in_certs(data) as u64 >= round % 3, wait);
        *reached.entry(in_certs(&home.path("data"))).or_insert(0) += 1;
        let server = Server::within(home, &[]);
        is_tidy(&server.home.path("data"));
        assert!(server.raw().is_usable());
        is_sound(&server.home);
    }
    println!("files in certs when it was killed, how often: {reached:?}");
}

#[test]
fn kill_during_log_rotation_keeps_all_logs_and_at_most_five() {
    let mut state = seed();
    let home = Arc::new(Folder::new());
    drop(Server::within(home.clone(), &[]));
    let logs = home.path("data/logs");
    let line = "2026-01-31T08:05:09Z event=login_failed user=alice addr=203.0.113.7\n";
    let (mut rotated, mut amid) = (0, 0);
    for round in 0..number("CRASHES", 20) {
        let log = logs.join("security.log");
        // The log is full when the start is logged.
        let mark = format!("round {round}\n");
        let filler = line.repeat((10 * 1024 * 1024 - mark.len()) / line.len());
        let bytes = mark.clone() + &filler;
        fs::write(&log, &bytes).expect("written");
        fs::set_permissions(&log, fs::Permissions::from_mode(0o600)).expect("ours");
        let wait = Duration::from_micros(if roll(&mut state, 2) == 0 { 0 } else { roll(&mut state, 200) });
        let is_changed = |_: &Path| fs::metadata(&log).map_or(0, |facts| facts.len()) != bytes.len() as u64;
        killed_when(&home, is_changed, wait);
        amid += usize::from(!log.exists());
        let server = Server::within(home.clone(), &[]);
        let files = support::files(&logs);
        assert!(files.len() <= 6, "{files:?}");
        // The former lines are in the newest file or in one of the two before it.
        let begins = |name: &str| {
            let file = fs::File::open(logs.join(name)).ok()?;
            BufReader::new(file).lines().next()?.ok()
        };
        let found = ["security.log", "security.log.1", "security.log.2"].map(begins);
        assert!(found.contains(&Some(mark.trim_end().into())), "{found:?}");
        rotated += usize::from(found[0] != Some(mark.trim_end().into()));
        drop(server);
    }
    println!("rotated {rotated} times, {amid} times killed in the middle of it");
}

#[test]
fn full_disk_refuses_only_accounts_until_there_is_room() {
    let home = Arc::new(Folder::new());
    drop(Server::within(home.clone(), &PLENTY));
    // A soft limit on the size of files, so that it can be lifted. Without the trap, the signal would kill the server.
    let full = "trap '' XFSZ; ulimit -S -f 16";
    let server = Server::after(full, home, &PLENTY);
    let limit = fs::read_to_string(format!("/proc/{}/limits", server.child.id())).unwrap_or_default();
    let lifts = Command::new("prlimit").arg("--version").stdout(Stdio::null()).status();
    if !limit.contains("Max file size") || !lifts.is_ok_and(|status| status.success()) {
        println!("skipped: the limit of a file's size can not be lifted here (needs Linux and prlimit)");
        return;
    }
    let mut alice = server.client("alice").ready();
    let mut bob = server.client("bob").ready();
    alice.expect("* bob is online");
    let register = |server: &Server, name: &str| {
        let person = Person::new(name);
        let mut raw = server.raw();
        raw.say(&ClientMessage::Register(
            quick_key(PASSWORD).register(&person.name, person.identity.public()),
        ));
        match raw.answer() {
            Some(ServerMessage::Registered) => None,
            Some(ServerMessage::Error(failure)) => Some((failure.code, failure.message)),
            _ => panic!("no answer"),
        }
    };
    let (mut made, mut refused) = (0, 0);
    while refused < 5 {
        match register(&server, &format!("n{made}x{refused}")) {
            None => made += 1,
            Some((code, message)) => {
                assert_eq!(code, "server_error");
                assert!(message.contains("cannot store accounts"), "{message}");
                refused += 1;
            }
        }
        assert!(made < 100, "it is never full");
        let text = format!("{made} and {refused}");
        for (from, to) in [(0, 1), (1, 0)] {
            let pair = [&mut alice, &mut bob];
            let name = pair[to].name.clone();
            pair[from].say(&format!("/msg {name} {text}"));
            let line = format!("<{} -> {name}> {text}", pair[from].name);
            pair.into_iter().for_each(|one| drop(one.expect(&line)));
        }
    }
    // The client reports it.
    let (status, lines) = Client::start(&server, "carol", &["--register"]).finish();
    assert_eq!(status, 1);
    assert!(lines.len() == 1 && lines[0].contains("the server cannot store accounts now"), "{lines:#?}");
    // The server cannot know whether the account exists, so the client keeps its only key and tries again with it.
    let dave = |home: &Arc<Folder>| {
        Client::within(home.clone(), server.port, "dave", true, &["--register"]).finish()
    };
    let home = Arc::new(Folder::new());
    assert_eq!(dave(&home).0, 1);
    let key = home.path(".secure_messenger_client/keys/dave_private.key");
    let its_key = || {
        let text = std::fs::read(&key).expect("it is kept");
        let password = Password::new(PASSWORD.into());
        let identity = key_file::open(&text, &"dave".parse().expect("name"), &password);
        identity.expect("opens").public().fingerprint()
    };
    let kept = its_key();
    let pid = server.child.id().to_string();
    let lifted = Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited"]).status();
    assert!(lifted.expect("it is there").success());
    for n in 0..5 {
        assert_eq!(register(&server, &format!("later{n}")), None, "there is room");
    }
    assert!(opens(&server, &Person::new("later0"), PASSWORD));
    assert_eq!((dave(&home).0, its_key()), (0, kept));
    until("what failed is logged", || server.log().contains("event=storage_failed"));
    drop((alice, bob));
    // After a restart, exactly these accounts exist.
    let home = server.kill();
    is_sound(&home);
    let server = Server::within(home, &PLENTY);
    is_tidy(&server.home.path("data"));
    let accounts = format!("({} accounts)", 2 + made + 5 + 1);
    assert!(server.greeting.iter().any(|line| line.contains(&accounts)), "{accounts} {:#?}", server.greeting);
    assert!(
        opens(&server, &Person::new("n0x0"), PASSWORD) && opens(&server, &Person::new("later4"), PASSWORD)
    );
}
