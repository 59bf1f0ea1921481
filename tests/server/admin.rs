//! The operator's tools: `--check`, the status line, `server user` (also when it is killed at any moment), the log
//! under attack, and the manual's systemd unit and fail2ban filter.

use crate::support::{
    self, DEADLINE, Folder, NEW, PASSWORD, Person, Raw, Server, block, check, exchange, has, make_fifo,
    newcomer, other, refused_start, repository, run, run_server, server_command, signal, until, user,
};
use secure_messenger::clock;
use secure_messenger::protocol::{ClientMessage, ServerMessage};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

/// Every file and folder with everything that could change.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("readable") {
        let path = entry.expect("entry").path();
        let data = fs::symlink_metadata(&path).expect("there");
        let bytes = if data.is_file() { fs::read(&path).expect("readable") } else { Vec::new() };
        if data.is_dir() {
            found.extend(snapshot(&path));
        }
        found.insert(path, (data.mode(), data.mtime(), data.mtime_nsec(), bytes));
    }
    found
}

// ---- check

#[test]
fn check_reports_beside_a_running_server_and_changes_nothing() {
    let home = Folder::new();
    let (status, out) = check(&home);
    assert_eq!(status, 0, "{out}");
    assert!(out.contains("it does not exist: a start creates it") && !home.path("data").exists(), "{out}");
    // A disconnected user leaves soon.
    let server = Server::with(&["--grace", "1"]);
    newcomer(&server, "alice");
    newcomer(&server, "bob");
    // The server writes the log after it answers.
    until("all of it is logged", || server.log().matches("event=logout").count() == 2);
    let before = snapshot(&server.data(""));
    let (status, out) = check(&server.home);
    assert_eq!(status, 0, "{out}");
    for part in ["a server is using it", "2 accounts", "0 locked names", &server.fingerprint()] {
        assert!(out.contains(part), "{part:?}: {out}");
    }
    assert!(!out.contains("WARNING") && !out.contains("problem"), "{out}");
    assert_eq!(snapshot(&server.data("")), before);
    let home = server.kill();
    let before = snapshot(&home.path("data"));
    let (status, out) = check(&home);
    assert!(status == 0 && !out.contains("a server is using"), "{out}");
    assert_eq!(snapshot(&home.path("data")), before);
}

#[test]
fn check_finds_damaged_files_and_agrees_with_a_start() {
    let server = Server::start();
    newcomer(&server, "alice");
    newcomer(&server, "bob");
    let home = server.kill();
    let path = |name: &str| home.path("data").join(name);
    let foreign = Server::start().kill();
    let checked = || {
        let (status, out) = check(&home);
        assert_eq!(status == 0, !out.contains("problem: "), "{out}");
        (status, out)
    };
    let foreign_key = fs::read(foreign.path("data/certs/server.key")).expect("made");
    for (name, bytes, status, words) in [
        ("users.json", &b"rubbish\n"[..], 1, &["users.json: line 1 ", "restore"][..]),
        ("users.json", b"half a li", 0, &["WARNING", "9 bytes", "a start sets them aside"]),
        ("salt.secret", b"short", 1, &["salt.secret", "restore it"]),
        ("certs/server.crt", b"rubbish", 1, &["server.crt"]),
        ("certs/server.key", b"rubbish", 1, &["server.key"]),
        ("certs/server.key", &foreign_key, 1, &["certs", "key"]),
        ("keys/bob.pem", b"rubbish", 0, &["WARNING", "bob.pem", "restore it"]),
        ("locks.json", b"rubbish", 0, &["WARNING", "locks.json: 7 bytes", "sets them aside"]),
    ] {
        let kept = fs::read(path(name)).ok();
        fs::write(path(name), bytes).expect("written");
        fs::set_permissions(path(name), fs::Permissions::from_mode(0o600)).expect("mode");
        let (found, out) = checked();
        assert_eq!(found, status, "{name}: {out}");
        let told = out.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(told, "{name}: {words:?} is not in {out}");
        assert_eq!(fs::read(path(name)).expect("kept"), bytes);
        // A start agrees with it: it serves a folder that the check accepts, and refuses one that it does not.
        if status == 0 {
            drop(Server::within(home.clone(), &[]));
        } else {
            refused_start(&home, &[]);
        }
        match kept {
            Some(kept) => fs::write(path(name), kept).expect("written"),
            None => fs::remove_file(path(name)).expect("removed"),
        }
    }
    // A certificate without its key, and a key without its certificate.
    let key = fs::read(path("certs/server.key")).expect("there");
    fs::remove_file(path("certs/server.key")).expect("removed");
    let (status, out) = checked();
    assert!(status == 1 && out.contains("the certificate's key is missing"), "{out}");
    assert_eq!(run_server(&home, &["--check", "--no-tls"]).0, 0, "TLS is not asked for");
    fs::write(path("certs/server.key"), key).expect("written");
    fs::remove_file(path("certs/server.crt")).expect("removed");
    let (status, out) = checked();
    assert!(status == 0 && out.contains("a start creates one for certs/server.key"), "{out}");
    assert!(out.contains("server.key: other users have access to this file: a start closes it"), "{out}");
    // A folder with other content, which other users can enter.
    let other = Folder::new();
    fs::create_dir(other.path("data")).expect("folder");
    fs::write(other.path("data/letter.txt"), "somebody's").expect("written");
    fs::set_permissions(other.path("data"), fs::Permissions::from_mode(0o755)).expect("mode");
    let (status, out) = check(&other);
    assert!(status == 1 && out.contains("chmod 700"), "{out}");
}

#[test]
fn check_finds_files_of_a_wrong_type_that_stop_a_start() {
    let server = Server::start();
    newcomer(&server, "alice");
    let mut home = server.kill();
    let in_the_way = |path: &Path, kind: &str| match kind {
        "folder" => fs::create_dir_all(path.join("x")).expect("made"),
        "file" => fs::write(path, "").expect("written"),
        "fifo" => make_fifo(path),
        "socket" => drop(UnixListener::bind(path).expect("bound")),
        "device" => std::os::unix::fs::symlink("/dev/zero", path).expect("linked"),
        _ => std::os::unix::fs::symlink("nowhere", path).expect("linked"),
    };
    let (stops, serves) = (true, false);
    for (name, kind, stops_start) in [
        ("lock", "folder", stops),
        ("lock", "link", stops),
        ("users.json", "folder", stops),
        ("locks.json", "link", stops),
        ("salt.secret", "folder", stops),
        ("logs/security.log", "folder", stops),
        ("logs/security.log", "link", stops),
        ("certs/server.key", "folder", stops),
        ("keys", "file", stops),
        ("certs", "file", stops),
        ("logs", "file", stops),
        ("lock", "fifo", stops),
        ("users.json", "fifo", stops),
        ("locks.json", "fifo", stops),
        ("salt.secret", "fifo", stops),
        ("logs/security.log", "fifo", stops),
        ("certs/server.key", "fifo", stops),
        ("certs/server.crt", "fifo", stops),
        ("users.json", "socket", stops),
        ("logs/security.log", "socket", stops),
        ("salt.secret", "device", stops),
        ("certs/server.crt", "device", stops),
        ("keys/alice.pem", "fifo", serves),
        ("users.json.tmp", "folder", serves),
        ("locks.json.tmp", "folder", serves),
        ("keys/bob.pem.tmp", "folder", serves),
    ] {
        let (path, aside) = (home.path("data").join(name), home.path("aside"));
        let is_there = fs::rename(&path, &aside).is_ok();
        in_the_way(&path, kind);
        let (status, out) = check(&home);
        assert_eq!((status == 1, out.contains("problem: ")), (stops_start, stops_start), "{name}: {out}");
        if stops_start {
            let reason = refused_start(&home, &[]);
            assert!(out.contains(&format!("problem: {reason}\n")), "{out} is not {reason}");
        } else {
            home = Server::within(home, &[]).kill();
        }
        let path = home.path("data").join(name);
        if kind == "folder" { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.expect("removed");
        assert!(!is_there || fs::rename(&aside, &path).is_ok());
    }
}

#[test]
fn wrong_operator_commands_are_one_line_and_status_2() {
    let home = Folder::new();
    for words in [
        &["user"][..],
        &["user", "lits"],
        &["user", "list", "alice"],
        &["user", "remove"],
        &["user", "remove", "a/b"],
        &["user", "remove", "alice", "bob"],
        &["user", "list", "--port", "1"],
        &["--check=yes"],
    ] {
        let (status, out, errors) = run_server(&home, words);
        assert_eq!((status, out.as_str(), errors.lines().count()), (2, "", 1), "{words:?}: {errors}");
    }
    let (status, errors) = user(&home, &["list"]);
    assert!(status == 1 && errors.contains("users.json"), "{errors}");
    assert!(!home.path("data").exists());
}

// ---- status

/// The number of a field in a status line.
fn field(line: &str, name: &str) -> u64 {
    let word = line.split(' ').find_map(|word| word.strip_prefix(&format!("{name}=")));
    word.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{name} is not in {line}"))
}

#[test]
fn status_appears_on_request_in_output_and_log() {
    let mut server = Server::with(&["--per-address", "12"]);
    let (_alice, _) = newcomer(&server, "alice");
    let _guest = server.raw();
    let mut sockets: Vec<_> = (0..300).map(|_| server.socket()).collect();
    for socket in &mut sockets[20..] {
        assert!(!matches!(socket.read(&mut [0; 64]), Ok(1..)), "refused");
    }
    server.signal("-USR1");
    let line = server.output.expect("status: ");
    assert_eq!(field(&line, "sessions"), 1, "{line}");
    assert_eq!(field(&line, "accounts"), 1, "{line}");
    assert_eq!(field(&line, "connections"), field(&line, "waiting") + 1, "{line}");
    assert!(field(&line, "waiting") < 12, "{line}");
    assert!((1_000..200_000).contains(&field(&line, "memory_kib")), "{line}");
    assert!(field(&line, "refused") >= 200 && field(&line, "uptime") < 600, "{line}");
    until("it is logged", || server.log().contains(&format!("event=status user=- addr=- {}", &line[8..])));
    // The manual lists exactly these fields.
    let manual = repository("src/server/OPERATING.md");
    let (_, example) = manual.split_once("\nstatus: ").expect("an example");
    // It is folded there.
    let example = example.split("\n```").next().expect("a block").replace("\n  ", " ");
    let names = |line: &str| -> Vec<String> {
        line.split(' ').map(|word| word.split('=').next().unwrap_or_default().into()).collect()
    };
    assert_eq!(names(&example), names(&line[8..]));
    assert!(names(&example).iter().all(|name| manual.contains(&format!("`{name}`"))));
    // Hundreds of refusals, one line.
    assert_eq!(server.log().matches("event=refused").count(), 1, "{}", server.log());
}

#[test]
fn unread_output_delays_neither_clients_nor_the_exit() {
    let home = Arc::new(Folder::new());
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    let mut filling = theirs.try_clone().expect("a second handle");
    let mut command = server_command(&home, &["--host", "127.0.0.1", "--port", "0"]);
    let mut child = command.stdout(OwnedFd::from(theirs)).spawn().expect("it starts");
    let mut greeting = String::new();
    while !greeting.contains("listening on ") || !greeting.ends_with('\n') {
        let mut buffer = [0; 1024];
        let count = ours.read(&mut buffer).expect("a greeting");
        greeting += std::str::from_utf8(&buffer[..count]).expect("UTF-8");
    }
    filling.set_nonblocking(true).expect("a socket");
    while filling.write(&[b'x'; 4096]).is_ok() {}
    while filling.write(b"x").is_ok() {}
    filling.set_nonblocking(false).expect("a socket");
    let log = home.path("data/logs/security.log");
    signal(child.id(), "-USR1");
    until("it is asked", || fs::read_to_string(&log).is_ok_and(|log| log.contains("event=status")));
    let port = greeting.trim_end().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let socket = std::net::TcpStream::connect(("127.0.0.1", port)).expect("connected");
    assert!(Raw::over(socket, true).is_usable());
    let started = Instant::now();
    signal(child.id(), "-TERM");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(fs::read_to_string(&log).expect("there").trim_end().ends_with("event=stopped user=- addr=-"));
}

// ---- the log under attack

/// PROTOCOL#lockout, PROTOCOL#registration-limit.
#[test]
fn guesses_are_logged_until_the_lock_and_then_once_a_minute() {
    let server = Server::with(&["--registrations", "2"]);
    newcomer(&server, "alice");
    let alice = Person::new("alice");
    let answers: Vec<String> = (0..60).map(|_| server.fail(&alice).code).collect();
    assert!(answers[..5].iter().all(|code| code == "login_failed"), "{answers:?}");
    assert!(answers[5..].iter().all(|code| code == "locked"), "{answers:?}");
    let mut raw = server.raw();
    raw.register(&Person::new("bob"));
    for n in 0..20 {
        let mut raw = server.raw();
        raw.say(&Person::new(&format!("c{n}")).registration());
        assert_eq!(raw.error(), "too_many_requests");
    }
    // Clients that never send TLS get no more lines either.
    for _ in 0..30 {
        let mut socket = server.socket();
        let _ = socket.write_all(b"GET / HTTP/1.0\r\n\r\n");
        let _ = socket.read_to_end(&mut Vec::new());
    }
    server.logs("event=handshake_failed");
    let log = server.log();
    let lines = |event: &str| log.matches(&format!("event={event} ")).count();
    assert_eq!((lines("login_failed"), lines("locked")), (5, 1), "{log}");
    assert_eq!(lines("login_while_locked"), 1, "{log}");
    assert_eq!(lines("too_many_registrations"), 1, "{log}");
    assert_eq!(lines("handshake_failed"), 1, "{log}");
}

// ---- accounts

/// PROTOCOL#ends-at-once.
#[test]
fn removed_user_is_disconnected_and_a_successor_is_a_stranger() {
    let server = Server::start();
    let (mut alice, mut bob) = server.alice_and_bob();
    exchange(&mut alice, &mut bob, "hello");
    let (status, list) = user(&server.home, &["list"]);
    let line = list.lines().find(|line| line.starts_with("alice ")).expect("listed");
    let fingerprint = &line[6..];
    assert!(status == 0 && list.lines().count() == 2 && fingerprint.starts_with("SHA256:"), "{list}");
    let pem = fs::read(server.data("keys/alice.pem")).expect("a key");
    let (status, out) = user(&server.home, &["remove", "alice"]);
    assert!(status == 0 && out.contains(fingerprint) && out.contains("session has ended"), "{out}");
    // This is its last line: it does not reconnect and then report a wrong password.
    alice.expect("! the operator of the server has removed this account: this session is over");
    assert_eq!(alice.output.all().len(), alice.output.seen.len());
    assert_eq!(alice.status(), Some(1));
    assert!(!alice.has_seen("connection lost"), "{:#?}", alice.output.seen);
    bob.expect("alice");
    server.logs(&format!("event=removed user=alice addr=- {fingerprint}\n"));
    assert!(!user(&server.home, &["list"]).1.contains("alice"));
    // The old public key is set aside; the old key and password open nothing.
    let aside = support::files(&server.data("keys"));
    let aside: Vec<_> = aside.iter().filter(|path| path.to_string_lossy().contains("alice")).collect();
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert!(aside[0].to_string_lossy().contains("/alice.pem.removed-20"), "{aside:?}");
    assert_eq!(fs::read(aside[0]).expect("kept"), pem);
    server.client_in(&alice.home, "alice", &[]).ends(1, "your account is not on this server");
    // Another key under the name, without a restart: bob is warned, and nothing is sent or shown.
    let mut other = server.client("alice").ready();
    other.say("/msg bob it is me");
    bob.expect("key");
    bob.ask("/msg alice secret", "! ");
    assert!(!bob.has_seen("it is me"), "{:#?}", bob.output.seen);
    drop((alice, other, bob));
    // The same holds after a restart.
    let server = Server::within(server.kill(), &[]);
    server.told("(2 accounts)");
    let now = user(&server.home, &["list"]).1;
    assert!(now.contains("alice SHA256:") && !now.contains(fingerprint), "{now}");
}

/// The answer of a running server over its socket, as `server user` asks it.
fn ask_server(server: &Server, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(server.data("admin.sock")).expect("connected");
    stream.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// The number of sessions that a server reports.
fn sessions(server: &mut Server) -> u64 {
    server.signal("-USR1");
    let line = server.output.expect("status: ");
    field(&line, "sessions")
}

/// A new account, and a connection with the right response to its challenge, which is not sent yet.
fn about_to_log_in(server: &Server, person: &Person) -> (Raw, ClientMessage) {
    let mut raw = server.raw();
    raw.register_quickly(person);
    let challenge = raw.challenged(person);
    let response = raw.respond_quickly(person, &challenge);
    (raw, response)
}

/// PROTOCOL#login-race.
#[test]
fn login_is_refused_if_its_account_changes_before_the_end() {
    fn remove(server: &Server, _: &Person) {
        assert!(ask_server(server, b"remove alice\n").starts_with("ok alice "));
    }
    fn register_again(server: &Server, alice: &Person) {
        remove(server, alice);
        // A new account with the same name, key and password.
        server.raw().register_quickly(alice);
    }
    fn change_password(server: &Server, alice: &Person) {
        let changed = server.raw().change_password(alice, PASSWORD, NEW);
        assert!(matches!(changed, Some(ServerMessage::PasswordChanged)));
    }
    for change in [remove, register_again, change_password] {
        let (mut server, alice) = (Server::start(), Person::new("alice"));
        let (mut raw, response) = about_to_log_in(&server, &alice);
        change(&server, &alice);
        raw.say(&response);
        assert_eq!(raw.error(), "login_failed");
        assert!(raw.is_closed());
        assert_eq!(sessions(&mut server), 0);
    }
}

/// PROTOCOL#login-race.
#[test]
fn login_during_a_removal_leaves_no_session() {
    let mut server = Server::start();
    for n in 0..20 {
        // Another name each time, because failed logins lock one.
        let person = Person::new(&format!("alice-{n}"));
        let (mut raw, response) = about_to_log_in(&server, &person);
        let together = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                together.wait();
                raw.say(&response);
                match raw.answer() {
                    Some(ServerMessage::Session(_)) => assert_eq!(raw.error(), "account_removed"),
                    Some(ServerMessage::Error(failure)) => assert_eq!(failure.code, "login_failed"),
                    _ => panic!("neither accepted nor refused"),
                }
                assert!(raw.is_closed());
            });
            together.wait();
            assert!(ask_server(&server, format!("remove {}\n", person.name).as_bytes()).starts_with("ok "));
        });
    }
    assert_eq!(sessions(&mut server), 0);
}

#[test]
fn commands_without_a_server_act_directly_or_refuse() {
    let server = Server::start();
    newcomer(&server, "alice");
    newcomer(&server, "bob");
    let alice = Person::new("alice");
    let lock = |server: &Server| {
        (0..5).for_each(|_| _ = server.fail(&alice));
        assert_eq!(server.fail(&alice).code, "locked");
    };
    lock(&server);
    until("it is written", || server.data("locks.json").exists());
    let home = server.kill();
    let list = user(&home, &["list"]).1;
    assert!(
        list.lines().any(|line| line.starts_with("alice ") && line.contains("locked for 15 min")),
        "{list}"
    );
    for name in ["carol", "BOB"] {
        let (status, errors) = user(&home, &["remove", name]);
        assert!(status == 1 && errors.contains("no account has exactly this name"), "{errors}");
    }
    assert_eq!(user(&home, &["unlock", "ALICE"]).0, 0, "as in a lock, letter case does not count");
    assert_eq!(user(&home, &["remove", "bob"]).0, 0);
    let log = fs::read_to_string(home.path("data/logs/security.log")).expect("a log");
    assert!(log.contains("event=unlocked user=ALICE ") && log.contains("event=removed user=bob "), "{log}");
    let server = Server::within(home, &[]);
    server.raw().logs_in(&alice);
    newcomer(&server, "Bob");
    // The same through the running server.
    lock(&server);
    assert_eq!(user(&server.home, &["unlock", "alice"]).0, 0);
    server.raw().logs_in(&alice);
    let server = Server::within(server.kill(), &[]);
    server.raw().logs_in(&alice);
    // The command refuses a folder that belongs to another user: as root it would leave its own files there.
    let home = server.kill();
    if std::os::unix::fs::chown(home.path("data/users.json"), Some(12345), None).is_ok() {
        let (status, errors) = user(&home, &["remove", "alice"]);
        assert!(status == 1 && errors.contains("user 12345"), "{errors}");
        assert!(user(&home, &["list"]).1.contains("alice"));
    }
}

#[test]
fn unreachable_running_server_is_never_bypassed() {
    let server = Server::start();
    newcomer(&server, "alice");
    let before = fs::read(server.data("users.json")).expect("there");
    fs::remove_file(server.data("admin.sock")).expect("removed");
    let (status, errors) = user(&server.home, &["remove", "alice"]);
    assert!(status == 1 && errors.contains("another server is using this folder"), "{errors}");
    // An empty or partial answer of a server is not a success.
    for half in [&b""[..], b"ok it is do"] {
        let _ = fs::remove_file(server.data("admin.sock"));
        let listener = UnixListener::bind(server.data("admin.sock")).expect("bound");
        let answering = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("asked");
            // Read first: closing a socket with unread bytes would reset it.
            let asked = stream.read(&mut [0; 64]).expect("a request");
            stream.write_all(half).map(|()| asked)
        });
        let (status, errors) = user(&server.home, &["remove", "alice"]);
        assert!(status == 1 && errors.contains("the change may or may not have been made"), "{errors}");
        assert!(matches!(answering.join(), Ok(Ok(13))), "remove alice and a line's end");
    }
    assert_eq!(fs::read(server.data("users.json")).expect("there"), before);
}

#[test]
fn malformed_or_partial_socket_request_changes_nothing() {
    let server = Server::start();
    newcomer(&server, "alice");
    for bytes in
        [&b"remove alice"[..], b"", b"\n", b"remove\n", b"remove \n", b"remove ../x\n", b"list\n", b"\xff\n"]
    {
        let answer = ask_server(&server, bytes);
        assert!(answer.is_empty() || answer.starts_with("error "), "{bytes:?}: {answer}");
    }
    assert!(ask_server(&server, &vec![b'x'; 100_000]).is_empty());
    assert!(user(&server.home, &["list"]).1.contains("alice"));
    assert!(ask_server(&server, b"remove alice\n").starts_with("ok alice "));
    assert_eq!(user(&server.home, &["list"]).1, "");
}

#[test]
fn kill_of_either_side_leaves_an_account_complete_or_gone() {
    let mut home = Arc::new(Folder::new());
    for round in 0..10u64 {
        let server = Server::within(home, &[]);
        let name = format!("alice{round}");
        let (_, alice) = newcomer(&server, &name);
        let mut command = server_command(&server.home, &["user", "remove", &name]);
        let mut command = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        // Kill at another moment in each round.
        thread::park_timeout(Duration::from_micros(round * 700));
        if round % 2 == 0 {
            let _ = command.kill();
            let _ = command.wait();
            home = server.kill();
        } else {
            home = server.kill();
            let _ = command.wait();
        }
        assert_eq!(check(&home).0, 0);
        let server = Server::within(home, &[]);
        let list = user(&server.home, &["list"]).1;
        let mut raw = server.raw();
        if list.contains(&format!("{name} ")) {
            raw.logs_in(&alice);
        } else {
            raw.register(&alice);
            raw.logs_in(&alice);
        }
        home = server.kill();
    }
}

#[test]
fn start_removes_the_temporary_files_of_crashes() {
    let server = Server::start();
    newcomer(&server, "alice");
    let home = server.kill();
    let left =
        ["users.json.tmp", "locks.json.tmp", "salt.secret.tmp", "keys/bob.pem.tmp", "keys/carol.pem.tmp"];
    for name in left {
        fs::write(home.path("data").join(name), "half").expect("written");
    }
    let server = Server::within(home, &[]);
    for name in left {
        assert!(!server.data(name).exists(), "{name}");
    }
    assert_eq!(user(&server.home, &["list"]).1.lines().count(), 1);
}

#[test]
fn wrong_clock_locks_nobody_longer_than_fifteen_minutes() {
    let home = Server::start().kill();
    let path = home.path("data/locks.json");
    // A lock written when the clock was ten years ahead, and one of an hour ago, as after a clock was set forward.
    let (far, past) = (clock::now_ms() + 10 * 365 * 24 * 3_600_000, clock::now_ms() - 3_600_000);
    let text =
        format!("{{\"name\":\"alice\",\"until\":{far}}}\n{{\"name\":\"bob\",\"until\":{past}}}\n{{\"na");
    fs::write(&path, text).expect("written");
    let server = Server::within(home, &[]);
    assert_eq!(server.fail(&Person::new("alice")).code, "locked");
    assert_eq!(server.fail(&Person::new("bob")).code, "login_failed");
    // At a later start, the lock counts from that start, not from the wrong clock.
    let text = fs::read_to_string(&path).expect("there");
    let until =
        text.trim_end().strip_prefix("{\"name\":\"alice\",\"until\":").and_then(|t| t.strip_suffix('}'));
    let until: u64 = until.and_then(|t| t.parse().ok()).unwrap_or_else(|| panic!("{text}"));
    assert!(until <= clock::now_ms() + 15 * 60_000, "{text}");
}

// ---- the manual's unit and filter

#[test]
fn filter_finds_only_guessers() {
    let server = Server::start();
    let (_raw, _) = newcomer(&server, "alice");
    let guessed = Person::new("nobody");
    (0..8).for_each(|_| _ = server.fail(&guessed));
    server.logs("event=login_while_locked");
    let log = server.log();
    let filter = block("[Definition]");
    let regex = filter.lines().find_map(|line| line.strip_prefix("failregex = ")).expect("a regex");
    // Take the expression apart, so that only this form passes.
    let (events, rest) = regex
        .strip_prefix("^\\s*event=(?:")
        .and_then(|rest| rest.split_once(')'))
        .expect("anchored, then alternatives");
    assert_eq!(rest, " user=\\S+ addr=<ADDR>(?:\\s|$)");
    let events: Vec<&str> = events.split('|').collect();
    let caught = |line: &&str| {
        let mut words = line.split(' ').skip(1);
        let event = words.next().and_then(|word| word.strip_prefix("event=")).expect("an event");
        words.next().and_then(|word| word.strip_prefix("user=")).expect("a user");
        let address = words.next().and_then(|word| word.strip_prefix("addr=")).expect("an address");
        events.contains(&event) && address != "-"
    };
    // Five failures: attempts after the lock may be the owner's.
    assert_eq!(log.lines().filter(caught).count(), 5, "{log}");
    let folder = Folder::new();
    let path = folder.path("filter.conf");
    fs::write(&path, &filter).expect("written");
    let log_path = server.data("logs/security.log");
    if has("fail2ban-regex") {
        let (_, text, _) = run(other("fail2ban-regex").arg(log_path).arg(path));
        let total = log.lines().count();
        let expected = format!("Lines: {total} lines, 0 ignored, 5 matched, {} missed", total - 5);
        assert!(text.contains(&expected), "{text}");
    }
    assert!(block("[secure-messenger]").contains("filter = secure-messenger\n"));
}

#[test]
fn unit_is_valid_and_leaves_little_exposed() {
    let unit = block("[Unit]");
    assert!(unit.contains("SocketBindAllow=tcp:1315") && unit.contains("TasksMax=infinity"));
    let folder = Folder::new();
    let path = folder.path("secure-messenger.service");
    let program = env!("CARGO_BIN_EXE_server");
    fs::write(&path, unit.replace("/usr/local/bin/secure-messenger-server", program)).expect("written");
    if has("systemd-analyze") {
        let verified = run(other("systemd-analyze").arg("verify").arg(&path));
        assert_eq!(verified, (0, String::new(), String::new()));
        let (_, text, _) = run(other("systemd-analyze").args(["security", "--offline=true"]).arg(path));
        let level =
            text.rsplit("service: ").next().and_then(|rest| rest.split(' ').next()?.parse::<f32>().ok());
        assert!(level.is_some_and(|level| level <= 2.0), "{text}");
    }
}
