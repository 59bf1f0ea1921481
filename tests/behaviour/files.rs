//! Files between real clients through a real server: what arrives and where, what resumes after an interruption, and
//! what both sides report when a transfer fails. A [`Gate`] holds a transfer where a test needs it, so that no test
//! depends on the speed of the machine.

use crate::support::{
    self, Bare, Client, Folder, Gate, MIB, Person, Server, Shape, hex, make_fifo, noise, until,
};
use secure_messenger::client::session::{Action, Effect, Event};
use secure_messenger::client::transfer::Step;
use secure_messenger::crypto::chunk::CHUNK;
use secure_messenger::protocol::{ClientMessage, Keys, Sent, ServerMessage};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// More bytes than may be in flight at once (7.6 MiB), and not a whole number of chunks.
const BIG: usize = 8 * MIB + 123;

// ---- files

/// A new file in a user's home folder, in which the client runs.
fn make(owner: &Client, name: &str, length: usize) -> Vec<u8> {
    let bytes = noise(length);
    fs::write(owner.home.path(name), &bytes).expect("written");
    bytes
}

/// The names in `received` or `sent`.
fn names(owner: &Client, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(owner.data("files").join(folder)).expect("a folder");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("entry").file_name().into_string();
    let mut names: Vec<String> = entries.map(|entry| name(entry).expect("UTF-8")).collect();
    names.sort();
    names
}

fn holds(owner: &Client, path: &str, bytes: &[u8]) -> bool {
    fs::read(owner.data("files").join(path)).expect("the file is there") == bytes
}

/// The one file that is arriving, if there is one.
fn part(recipient: &Client) -> Option<(PathBuf, fs::Metadata)> {
    let name = names(recipient, "received").into_iter().find(|name| name.ends_with(".part"))?;
    let path = recipient.data("files/received").join(name);
    let facts = fs::metadata(&path).ok()?;
    Some((path, facts))
}

// ---- people

/// Alice is behind a relay.
fn gated(server: &Server) -> (Gate, Client, Client) {
    let gate = Gate::before(server);
    let mut alice = gate.client(Arc::new(Folder::new()), "alice", &["--register"]).ready();
    let bob = server.client("bob").ready();
    alice.expect("* bob is online");
    (gate, alice, bob)
}

/// Offers a file from the home folder of `from`, and returns the line that `to` sees.
fn offer(from: &mut Client, to: &mut Client, path: &str) -> String {
    from.ask(&format!("/sendfile {} {path}", to.name), &format!(" is offered to {}", to.name));
    to.expect(&format!("* {} offers you a file: ", from.name))
}

/// Accepts the last offer and waits until the file is complete.
fn take(from: &mut Client, to: &mut Client) -> String {
    to.say("/acceptfile");
    let line = to.expect(" is complete: ");
    from.expect("* a copy is kept: ");
    line
}

/// Checks that neither client has an open transfer, and that both still chat.
fn is_quiet(one: &mut Client, other: &mut Client) {
    let talks = |from: &mut Client, to: &mut Client| {
        from.ask("/files", "* no files are offered or in progress");
        from.ask(&format!("/msg {} are you there?", to.name), "are you there?");
        to.expect("are you there?");
    };
    talks(one, other);
    talks(other, one);
}

/// Alice, behind a gate, has sent half of a big file to bob.
struct Middle {
    server: Server,
    gate: Gate,
    alice: Client,
    bob: Client,
    bytes: Vec<u8>,
}

impl Middle {
    fn reach() -> Middle {
        // A killed client leaves soon.
        let server = Server::with(&["--grace", "1"]);
        let (gate, mut alice, mut bob) = gated(&server);
        let bytes = make(&alice, "big.bin", BIG);
        offer(&mut alice, &mut bob, "big.bin");
        gate.hold_after(4 * MIB as u64);
        bob.ask("/acceptfile", "* receiving \"big.bin\" (8.3 MB) from alice");
        alice.expect("* sending \"big.bin\" (8.3 MB) to bob");
        until("half has arrived", || part(&bob).is_some_and(|(_, facts)| facts.len() >= 3 * MIB as u64));
        Middle { server, gate, alice, bob, bytes }
    }
}

/// Offers the big file again; the transfer must resume with exactly the part that was received.
fn resumes(gate: &Gate, alice: &mut Client, bob: &mut Client, bytes: &[u8]) {
    offer(alice, bob, "big.bin");
    let (_, facts) = part(bob).expect("the received part is kept");
    let there = facts.len() - facts.len() % CHUNK as u64;
    assert!(there >= 3 * MIB as u64, "{there}");
    let percent = format!("resuming at {} %", there * 100 / BIG as u64);
    let before = gate.passed();
    bob.say("/acceptfile");
    let line = bob.expect("resuming at");
    assert!(
        line.starts_with("* receiving \"big.bin\" (8.3 MB) from alice") && line.ends_with(&percent),
        "{line}"
    );
    let line = alice.expect("resuming at");
    assert!(line.starts_with("* sending \"big.bin\" (8.3 MB) to bob") && line.ends_with(&percent), "{line}");
    bob.expect("* \"big.bin\" (8.3 MB) from alice is complete: ");
    alice.expect("* a copy is kept: ");
    let sent = gate.passed() - before;
    // Keys, tags and TLS add less than 2 %.
    assert!(sent <= (BIG as u64 - there) * 102 / 100, "{sent} bytes were sent, {there} were there");
    assert_eq!(names(bob, "received"), ["alice~big.bin"]);
    assert!(holds(bob, "received/alice~big.bin", bytes) && holds(alice, "sent/bob~big.bin", bytes));
    let whole = fs::metadata(bob.data("files/received/alice~big.bin")).expect("the file");
    assert_eq!(whole.ino(), facts.ino(), "the same part is continued");
}

// ---- received files

/// PROTOCOL#asked-for, PROTOCOL#whole-file.
#[test]
fn file_of_any_size_arrives_complete() {
    let server = Server::start();
    let (mut alice, mut bob) = server.alice_and_bob();
    let sizes = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, 5 * CHUNK + 1, 5_000_000, 64 * MIB + 1];
    for size in sizes {
        let name = format!("{size}.bin");
        let bytes = make(&alice, &name, size);
        offer(&mut alice, &mut bob, &name);
        let (received, sent) = (format!("received/alice~{name}"), format!("sent/bob~{name}"));
        let line = take(&mut alice, &mut bob);
        assert!(line.ends_with(&format!("/files/{received}")), "{line}");
        assert!(holds(&bob, &received, &bytes), "the received file of {size} bytes");
        assert!(holds(&alice, &sent, &bytes), "the kept copy of {size} bytes");
        for path in [bob.data("files").join(received), alice.data("files").join(sent)] {
            assert_eq!(fs::metadata(path).expect("the file").mode() & 0o777, 0o600, "{size}");
        }
    }
    for (owner, folder) in [(&bob, "received"), (&alice, "sent")] {
        assert_eq!(names(owner, folder).len(), sizes.len(), "exactly these: {:?}", names(owner, folder));
    }
    assert!(names(&alice, "received").is_empty() && names(&bob, "sent").is_empty());
    // No machine sends the last one within the 0.1 s that may pass without a progress line.
    let last = format!("{}.bin", sizes[sizes.len() - 1]);
    for (owner, label) in [(&alice, format!("* {last} → bob: ")), (&bob, format!("* {last} ← alice: "))] {
        let told = owner.output.seen.iter().filter_map(|line| line.strip_prefix(&label)?.split_once(" %, "));
        let tenths: Vec<u32> = told.map(|(percent, _)| percent.parse().expect("a number")).collect();
        assert!(!tenths.is_empty(), "there are progress lines");
        assert!(tenths.is_sorted_by(|one, next| one < next), "one line for each tenth: {tenths:?}");
        assert!(tenths.iter().all(|percent| percent % 10 == 0 && *percent <= 100), "{tenths:?}");
    }
    is_quiet(&mut alice, &mut bob);
}

#[test]
fn files_both_ways_and_messages_do_not_disturb_each_other() {
    let server = Server::start();
    let (gate, mut alice, mut bob) = gated(&server);
    let mut contents = Vec::new();
    for name in ["one.bin", "two.bin"] {
        contents.push((true, name, make(&alice, name, 12 * MIB)));
        offer(&mut alice, &mut bob, name);
        contents.push((false, name, make(&bob, name, 12 * MIB + 1)));
        offer(&mut bob, &mut alice, name);
    }
    // Her files have the numbers 1 and 3 on both sides, his 2 and 4. They stay in progress because the gate holds her
    // connection again and again: her messages come after the 4 MiB that are granted to her at once.
    gate.hold_after(MIB as u64);
    for number in [1, 3] {
        bob.ask(&format!("/acceptfile {number}"), "* receiving ");
        alice.expect("* sending ");
    }
    for number in [2, 4] {
        // She accepts before the gate lets more than that pass.
        alice.ask(&format!("/acceptfile {number}"), "* receiving ");
        gate.hold_after(5 * MIB as u64);
        bob.expect("* sending ");
    }
    bob.say("/msg alice said by bob meanwhile");
    alice.expect("<bob -> alice> said by bob meanwhile");
    alice.say("/msg bob said by alice meanwhile");
    gate.open();
    bob.expect("<alice -> bob> said by alice meanwhile");
    let early = bob.output.seen.iter().find(|line| line.contains("is complete"));
    assert_eq!(early, None, "messages overtook the files");
    for client in [&mut alice, &mut bob] {
        // Two files and two copies complete, in any order.
        let done = |line: &&String| line.contains(" is complete: ") || line.contains("a copy is kept: ");
        while client.output.seen.iter().filter(done).count() < 4 {
            client.output.next().expect("a line");
        }
    }
    for (hers, name, bytes) in &contents {
        let (from, to) = if *hers { (&alice, &bob) } else { (&bob, &alice) };
        assert!(holds(to, &format!("received/{}~{name}", from.name), bytes), "{name} from {}", from.name);
        assert!(holds(from, &format!("sent/{}~{name}", to.name), bytes), "{name} to {}", to.name);
    }
    assert_eq!(names(&alice, "received"), ["bob~one.bin", "bob~two.bin"]);
    assert_eq!(names(&bob, "received"), ["alice~one.bin", "alice~two.bin"]);
}

/// PROTOCOL#never-over.
#[test]
fn no_file_takes_the_place_of_another_or_follows_a_link() {
    let server = Server::start();
    let (mut alice, mut bob) = server.alice_and_bob();
    let received = bob.data("files/received");
    fs::write(bob.home.path("treasure"), "mine").expect("written");
    symlink(bob.home.path("treasure"), received.join("alice~letter.txt")).expect("a link");
    symlink(bob.home.path("nowhere"), received.join("alice~letter_1.txt")).expect("a link");
    fs::write(received.join("alice~letter_2.txt"), "mine, too").expect("written");
    let mut versions = Vec::new();
    for number in 3..5 {
        versions.push((number, make(&alice, "letter.txt", 1000)));
        offer(&mut alice, &mut bob, "letter.txt");
        take(&mut alice, &mut bob);
    }
    // The same file again gets another name, too.
    offer(&mut alice, &mut bob, "letter.txt");
    take(&mut alice, &mut bob);
    versions.push((5, versions[1].1.clone()));
    for (number, bytes) in &versions {
        assert!(holds(&bob, &format!("received/alice~letter_{number}.txt"), bytes), "{number}");
    }
    assert_eq!(fs::read(bob.home.path("treasure")).expect("read"), b"mine");
    assert!(holds(&bob, "received/alice~letter.txt", b"mine"), "the link is unchanged");
    assert!(holds(&bob, "received/alice~letter_2.txt", b"mine, too"));
    assert!(!bob.home.path("nowhere").exists());
    assert_eq!(names(&bob, "received").len(), 6);
    assert_eq!(names(&alice, "sent"), ["bob~letter.txt", "bob~letter_1.txt", "bob~letter_2.txt"]);
    assert!(holds(&alice, "sent/bob~letter.txt", &versions[0].1));
}

// ---- offers

/// PROTOCOL#asked-for.
#[test]
fn nothing_is_sent_or_written_before_the_recipient_accepts() {
    let server = Server::start();
    let (gate, mut alice, mut bob) = gated(&server);
    make(&alice, "big.bin", BIG);
    let before = gate.passed();
    let line = offer(&mut alice, &mut bob, "big.bin");
    assert_eq!(
        line,
        "* alice offers you a file: \"big.bin\" (8.3 MB); /acceptfile 1 accepts it, /rejectfile 1 declines it"
    );
    alice.say("/msg bob what do you think?");
    bob.expect("<alice -> bob> what do you think?");
    bob.say("/msg alice I do not know");
    alice.expect("<bob -> alice> I do not know");
    assert!(gate.passed() - before < CHUNK as u64, "not one chunk was sent");
    assert!(names(&bob, "received").is_empty() && names(&alice, "sent").is_empty());
    // Carol sees nothing of it.
    let carol = server.client("carol").ready();
    bob.ask("/rejectfile", "* you have declined \"big.bin\" (8.3 MB) from alice");
    alice.expect("* bob has declined \"big.bin\" (8.3 MB)");
    is_quiet(&mut alice, &mut bob);
    assert!(gate.passed() - before < CHUNK as u64, "nothing is sent afterwards");
    assert!(names(&bob, "received").is_empty() && names(&alice, "sent").is_empty());
    let (_, lines) = carol.finish();
    assert!(!lines.iter().any(|line| line.contains("big.bin")), "{lines:#?}");
}

/// PROTOCOL#file_reject, PROTOCOL#file_cancel.
#[test]
fn cancel_withdraws_or_declines_an_offer() {
    let server = Server::start();
    let (mut alice, mut bob) = server.alice_and_bob();
    make(&alice, "a.bin", 3 * CHUNK);
    offer(&mut alice, &mut bob, "a.bin");
    alice.ask("/cancel", "* you have cancelled \"a.bin\" (196.6 kB) to bob");
    bob.expect("! alice has withdrawn \"a.bin\" (196.6 kB)");
    bob.ask("/acceptfile 1", "! there is no offer number 1");
    offer(&mut alice, &mut bob, "a.bin");
    bob.ask("/cancel 2", "* you have declined \"a.bin\" (196.6 kB) from alice");
    alice.expect("* bob has declined \"a.bin\" (196.6 kB)");
    is_quiet(&mut alice, &mut bob);
    assert!(names(&bob, "received").is_empty() && names(&alice, "sent").is_empty());
}

#[test]
fn numbers_distinguish_several_offers() {
    let server = Server::start();
    let (mut alice, mut bob) = server.alice_and_bob();
    let files: Vec<_> = ["a.txt", "b.txt", "c.txt"].map(|name| (name, make(&alice, name, 1000))).into();
    for command in ["/acceptfile", "/rejectfile"] {
        bob.ask(command, "! nobody has offered you a file");
    }
    for (number, (name, _)) in (1..).zip(&files) {
        let line = offer(&mut alice, &mut bob, name);
        assert!(line.contains(&format!("\"{name}\" (1.0 kB); /acceptfile {number} accepts it")), "{line}");
    }
    bob.ask("/files", "* #1 \"a.txt\" (1.0 kB) from alice: is offered: /acceptfile 1 or /rejectfile 1");
    bob.expect("* #3 \"c.txt\" (1.0 kB) from alice");
    alice.ask("/files", "* #2 \"b.txt\" (1.0 kB) to bob: waits for bob; /cancel 2 withdraws it");
    for (command, answer) in [
        ("/acceptfile 4", "! there is no offer number 4: /files lists them"),
        ("/rejectfile 0", "! there is no offer number 0: /files lists them"),
        ("/cancel 99", "! there is no file number 99: /files lists them"),
        ("/acceptfile first", "! usage: /acceptfile [#]"),
        ("/acceptfile 4294967296", "! usage: /acceptfile [#]"),
        ("/acceptfile -1", "! usage: /acceptfile [#]"),
    ] {
        bob.ask(command, answer);
    }
    assert!(names(&bob, "received").is_empty(), "nothing was accepted by mistake");
    // With several offers, a number is needed.
    for command in ["acceptfile", "rejectfile"] {
        bob.say(&format!("/{command}"));
        bob.expect(&format!("! several files were offered: type /{command} NUMBER, /files lists them"));
        bob.expect("* still offered: #1");
    }
    alice.ask("/cancel", "! several files are in progress: /cancel NUMBER ends one");
    bob.say("/acceptfile 3");
    bob.expect("* still offered: #1 \"a.txt\" (1.0 kB) from alice, #2 \"b.txt\" (1.0 kB) from alice");
    bob.expect("* \"c.txt\" (1.0 kB) from alice is complete: ");
    bob.ask("/acceptfile #1", "* still offered: #2 \"b.txt\" (1.0 kB) from alice");
    bob.expect("* \"a.txt\" (1.0 kB) from alice is complete: ");
    alice.ask("/acceptfile 2", "! there is no offer number 2");
    // A single offer needs no number.
    bob.say("/rejectfile");
    alice.expect("* bob has declined \"b.txt\" (1.0 kB)");
    assert_eq!(names(&bob, "received"), ["alice~a.txt", "alice~c.txt"]);
    for name in [0, 2] {
        assert!(holds(&bob, &format!("received/alice~{}", files[name].0), &files[name].1));
    }
}

#[test]
fn eight_files_arrive_at_once_and_the_same_one_only_once() {
    let server = Server::start();
    let (gate, mut alice, mut bob) = gated(&server);
    for number in 1..10 {
        make(&alice, &format!("{number}.bin"), CHUNK);
        offer(&mut alice, &mut bob, &format!("{number}.bin"));
    }
    offer(&mut alice, &mut bob, "1.bin");
    gate.hold_after(0);
    let accept = |bob: &mut Client, number, answer: &str| {
        bob.ask(&format!("/acceptfile {number}"), answer);
    };
    accept(&mut bob, 1, "* receiving \"1.bin\"");
    accept(&mut bob, 10, "! \"1.bin\" (65.5 kB) is already arriving");
    for number in 2..9 {
        accept(&mut bob, number, &format!("* receiving \"{number}.bin\""));
    }
    accept(&mut bob, 9, "! 8 files are already arriving");
    gate.open();
    for _ in 1..9 {
        bob.expect(" is complete: ");
    }
    accept(&mut bob, 9, "* \"9.bin\" (65.5 kB) from alice is complete: ");
    accept(&mut bob, 10, "* \"1.bin\" (65.5 kB) from alice is complete: ");
    assert_eq!(names(&bob, "received").len(), 10);
    assert!(names(&bob, "received").contains(&"alice~1_1.bin".into()));
}

#[test]
fn unusable_file_is_refused_with_the_reason() {
    let server = Server::start();
    let (mut alice, bob) = server.alice_and_bob();
    let carol = server.client("carol").ready();
    alice.expect("* carol is online");
    carol.leaves();
    alice.expect("* carol has left");
    make(&alice, "here.txt", 10);
    fs::create_dir(alice.home.path("folder")).expect("a folder");
    make_fifo(&alice.home.path("fifo"));
    for (words, answer) in [
        ("bob missing.txt", "/missing.txt: there is no such file"),
        ("bob folder/missing.txt", "there is no such file"),
        ("bob ~nobody/here.txt", "there is no such file"),
        ("bob here.txt/", "! "),
        ("bob folder", "/folder: it is a folder"),
        ("bob .", "it is a folder"),
        ("bob ~", "it is a folder"),
        ("bob fifo", "/fifo: it is not a regular file"),
        ("bob /dev/zero", "! zero → bob: /dev/zero: it is not a regular file"),
        ("carol here.txt", "! carol is offline"),
        ("nobody here.txt", "! nobody is offline"),
        ("alice here.txt", "! that is your own name"),
        ("bob", "! usage: /sendfile NAME PATH"),
        ("no/body here.txt", "is not a valid name"),
    ] {
        alice.say(&format!("/sendfile {words}"));
        let line = alice.expect("! ");
        assert!(line.contains(answer), "{words}: {line}");
    }
    alice.ask("/files", "* no files are offered or in progress");
    alice.leaves();
    let lines = bob.leaves();
    assert!(!lines.iter().any(|line| line.contains("file")), "bob sees none of it: {lines:#?}");
}

#[test]
fn path_may_have_spaces_quotes_a_tilde_or_be_relative() {
    let server = Server::start();
    let (mut alice, mut bob) = server.alice_and_bob();
    fs::create_dir(alice.home.path("my folder")).expect("a folder");
    let bytes = make(&alice, "my folder/two  words.txt", 100);
    symlink("two  words.txt", alice.home.path("my folder/link.txt")).expect("a link");
    let whole = alice.home.path("my folder/two  words.txt").display().to_string();
    let paths = [
        ("my folder/two  words.txt", "two  words"),
        ("~/my folder/two  words.txt", "two  words_1"),
        ("./my folder/../my folder/two  words.txt", "two  words_2"),
        ("\"my folder/two  words.txt\"", "two  words_3"),
        ("'~/my folder/two  words.txt'", "two  words_4"),
        (&whole, "two  words_5"),
        ("~/my folder/link.txt", "link"),
    ];
    for (path, stem) in paths {
        offer(&mut alice, &mut bob, path);
        take(&mut alice, &mut bob);
        assert!(holds(&bob, &format!("received/alice~{stem}.txt"), &bytes), "{path}");
        assert!(holds(&alice, &format!("sent/bob~{stem}.txt"), &bytes), "{path}");
    }
}

/// MANUAL#typed-path.
#[test]
fn dropped_path_and_unusual_file_name_are_sent() {
    let server = Server::start();
    let (mut alice, mut bob) = server.alice_and_bob();
    fs::create_dir(alice.home.path("a (b)")).expect("a folder");
    let bytes = noise(100);
    let names: [&[u8]; 3] = [b"it's me.txt", b"caf\xe9.txt", b"last "];
    for name in names {
        fs::write(alice.home.path("a (b)").join(OsStr::from_bytes(name)), &bytes).expect("written");
    }
    let base = alice.home.0.display().to_string();
    for (path, arrives) in [
        (format!("'{base}/a (b)/it'\\''s me.txt' "), "it's me.txt"),
        (format!("{base}/a\\ \\(b\\)/it\\'s\\ me.txt"), "it's me_1.txt"),
        (format!("\"{base}/a (b)/it's me.txt\""), "it's me_2.txt"),
        (format!("file://{base}/a%20(b)/it%27s%20me.txt\r"), "it's me_3.txt"),
        ("~/a (b)/it's me.txt".into(), "it's me_4.txt"),
        ("a (b)/caf\\xE9.txt".into(), "caf\u{fffd}.txt"),
        ("'a (b)/caf'$'\\351''.txt'".into(), "caf\u{fffd}_1.txt"),
        ("a (b)/last\\ ".into(), "last"),
    ] {
        offer(&mut alice, &mut bob, &path);
        take(&mut alice, &mut bob);
        assert!(holds(&bob, &format!("received/alice~{arrives}"), &bytes), "{path}");
    }
}

#[test]
fn error_names_the_whole_path_that_was_tried() {
    let server = Server::start();
    let (mut alice, _bob) = server.alice_and_bob();
    let base = alice.home.0.display().to_string();
    let deep = "long-name/".repeat(30);
    for (typed, tried, why) in [
        ("none.txt", "none.txt", "there is no such file"),
        ("'a b'/\\(c\\)", "a b/(c)", "there is no such file"),
        ("~", "", "it is a folder: pack it into one file first"),
        (&format!("{deep}x"), &format!("{deep}x"), "there is no such file"),
    ] {
        alice.say(&format!("/sendfile bob {typed}"));
        let line = alice.expect("! ");
        assert!(line.ends_with(&format!("{base}/{tried}: {why}")), "{line}");
    }
}

#[test]
fn low_disk_space_is_a_warning_and_no_refusal() {
    let server = Server::start();
    let mut alice = server.client("alice").ready();
    let home = Arc::new(Folder::new());
    // A fake `df` that reports 1 KiB of free space.
    let df = home.path("df");
    let says = "#!/bin/sh\n\
                echo 'a disk 1024-blocks Used Available Capacity Mounted on'\n\
                echo 'a disk 9 8 1 90% /a b'\n";
    fs::write(&df, says).expect("written");
    fs::set_permissions(&df, fs::Permissions::from_mode(0o755)).expect("allowed");
    let preparation = format!("PATH={}:$PATH", home.0.display());
    let mut bob = Client::after(&preparation, home, server.port, "bob", &["--register"]).ready();
    alice.expect("* bob is online");
    for (size, warns) in [(1024, false), (1025, true)] {
        let bytes = make(&alice, "file.bin", size);
        offer(&mut alice, &mut bob, "file.bin");
        let seen = bob.output.seen.len();
        take(&mut alice, &mut bob);
        let warning =
            "! \"file.bin\" (1.0 kB) may not fit: it needs 1.0 kB, and the disk has 1.0 kB free; /cancel";
        let warned = bob.output.seen[seen..].iter().any(|line| line.starts_with(warning));
        assert_eq!(warned, warns, "{size}");
        assert!(names(&bob, "received").iter().any(|name| holds(&bob, &format!("received/{name}"), &bytes)));
    }
}

/// PROTOCOL#go-on.
#[test]
fn files_command_lists_partial_files() {
    let Middle { server, gate, mut alice, bob, bytes } = Middle::reach();
    let home = bob.home.clone();
    drop(bob);
    alice.expect("! bob has left: \"big.bin\" (8.3 MB) was interrupted; offer it again to resume");
    gate.open();
    alice.ask("/files", "* no files are offered or in progress");
    alice.expect("* \"big.bin\" (8.3 MB) to bob was interrupted: offer it again to resume");
    let mut bob = server.client_in(&home, "bob", &[]).ready();
    alice.expect("* bob is online");
    bob.say("/files");
    let line = bob.expect("* a file from alice was interrupted after ");
    assert!(line.ends_with(" MB: it resumes when alice offers it again"), "{line}");
    resumes(&gate, &mut alice, &mut bob, &bytes);
    for client in [&mut alice, &mut bob] {
        client.ask("/files", "* no files are offered or in progress");
        client.say("/files");
        let next = client.output.next().expect("an answer");
        assert!(next.contains("* no files are offered or in progress"), "{next}");
    }
}

// ---- cancelled transfers

/// PROTOCOL#file_cancel.
#[test]
fn transfer_cancelled_by_its_sender_leaves_nothing() {
    let Middle { server: _server, gate, mut alice, mut bob, bytes } = Middle::reach();
    alice.ask("/cancel", "* you have cancelled \"big.bin\" (8.3 MB) to bob");
    gate.open();
    bob.expect("! alice has cancelled \"big.bin\" (8.3 MB)");
    leaves_nothing(&mut alice, &mut bob, &bytes);
}

/// PROTOCOL#file_cancel.
#[test]
fn transfer_cancelled_by_its_recipient_leaves_nothing() {
    let Middle { server: _server, gate, mut alice, mut bob, bytes } = Middle::reach();
    bob.ask("/cancel", "* you have cancelled \"big.bin\" (8.3 MB) from alice");
    alice.expect("! bob has cancelled \"big.bin\" (8.3 MB)");
    // Packets in flight still arrive, and are dropped.
    gate.open();
    leaves_nothing(&mut alice, &mut bob, &bytes);
}

#[test]
fn transfer_cancelled_while_its_part_is_hashed_leaves_nothing() {
    let server = Server::start();
    let (mut alice, mut bob) = server.alice_and_bob();
    // A sparse file takes no space but time to hash. Everything except its last chunk is there already.
    let size = 256 * MIB;
    let zeros = |path: PathBuf, size: usize| {
        File::create_new(path).and_then(|file| file.set_len(size as u64)).expect("a file of zeros");
    };
    zeros(alice.home.path("zeros.bin"), size);
    let mut hasher = Sha256::new();
    (0..size / MIB).for_each(|_| hasher.update([0; MIB]));
    let part = format!("alice_{}.part", hex(&hasher.finalize()));
    zeros(bob.data("files/received").join(part), size - CHUNK);
    offer(&mut alice, &mut bob, "zeros.bin");
    bob.ask("/acceptfile\n/cancel", "* you have cancelled \"zeros.bin\" (268.4 MB) from alice");
    alice.expect("! bob has cancelled \"zeros.bin\" (268.4 MB)");
    until("the part is removed", || names(&bob, "received").is_empty());
    is_quiet(&mut alice, &mut bob);
}

/// After `/cancel`: nothing is left, and the next transfer starts from the beginning.
fn leaves_nothing(alice: &mut Client, bob: &mut Client, bytes: &[u8]) {
    until("the part is removed", || names(bob, "received").is_empty());
    assert!(names(alice, "sent").is_empty());
    is_quiet(alice, bob);
    offer(alice, bob, "big.bin");
    bob.say("/acceptfile");
    let line = bob.expect("* receiving \"big.bin\"");
    assert!(!line.contains("resuming"), "{line}");
    bob.expect(" is complete: ");
    alice.expect("* a copy is kept: ");
    assert_eq!(names(bob, "received"), ["alice~big.bin"]);
    assert!(holds(bob, "received/alice~big.bin", bytes));
}

/// PROTOCOL#offer-life.
#[test]
fn departure_ends_offers_and_notifies_the_peer() {
    let server = Server::start();
    let (mut alice, mut bob) = server.alice_and_bob();
    let mut carol = server.client("carol").ready();
    bob.expect("* carol is online");
    make(&alice, "a.txt", 1000);
    make(&bob, "b.txt", 2000);
    offer(&mut alice, &mut bob, "a.txt");
    offer(&mut bob, &mut carol, "b.txt");
    bob.say("/exit");
    // Nobody answered his own offer, which counts; hers does not.
    let lines = bob.ends(1, "");
    assert_eq!(lines.last().expect("a line"), "! not complete: \"b.txt\" (2.0 kB); offer it again to resume");
    alice.expect("* bob has left: \"a.txt\" (1.0 kB) is no longer offered");
    carol.expect("* bob has left: \"b.txt\" (2.0 kB) is no longer offered");
    is_quiet(&mut alice, &mut carol);
    carol.ask("/acceptfile", "! nobody has offered you a file");
}

// ---- slow and long lines

/// PROTOCOL#asked-for.
#[test]
fn file_on_a_slow_line_leaves_its_buffer_to_messages() {
    const RATE: u64 = 1_000_000;
    let server = Server::start();
    let ([near, far], mut alice, mut bob) = support::gated(&server);
    for (client, name) in [(&alice, "there.bin"), (&bob, "back.bin")] {
        make(client, name, 3 * MIB);
    }
    let (slow, fast) = (Shape::slow(RATE), Shape::default());
    for (shapes, gate, from_client) in
        [((slow, fast), &near, true), ((fast, slow), &far, false), ((slow, slow), &far, false)]
    {
        gate.shape(shapes.0, shapes.1);
        offer(&mut alice, &mut bob, "there.bin");
        offer(&mut bob, &mut alice, "back.bin");
        bob.say("/acceptfile");
        alice.say("/acceptfile");
        for client in [&mut alice, &mut bob] {
            let mut missing = vec![" is complete: ", "* a copy is kept: "];
            while !missing.is_empty() {
                let line = client.output.next().expect("it resumes");
                missing.retain(|part| !line.contains(part));
            }
        }
        let (there, back) = gate.most_held();
        let held = if from_client { there } else { back };
        // Two files: at most half a second of the line's rate, plus whole chunks.
        assert!(held as u64 <= RATE / 2 + 4 * CHUNK as u64, "{there}, {back} bytes were held");
        gate.shape(fast, fast);
    }
    is_quiet(&mut alice, &mut bob);
}

#[test]
fn file_arrives_over_a_line_that_changes_and_jitters() {
    let server = Server::start();
    let ([near, far], mut alice, mut bob) = support::gated(&server);
    let bytes = make(&alice, "big.bin", BIG);
    let jittery = Shape { jitter: Duration::from_millis(40), ..Shape::long(20) };
    let slow = Shape { rate: 2_000_000, ..jittery };
    [&near, &far].iter().for_each(|gate| gate.shape(jittery, jittery));
    offer(&mut alice, &mut bob, "big.bin");
    bob.say("/acceptfile");
    for (part, shape) in [(1, slow), (3, jittery), (5, slow), (7, jittery)] {
        until("more of the file was sent", || near.passed() >= part * BIG as u64 / 8);
        [&near, &far].iter().for_each(|gate| gate.shape(shape, shape));
    }
    bob.expect(" is complete: ");
    alice.expect("* a copy is kept: ");
    assert!(holds(&bob, "received/alice~big.bin", &bytes));
    is_quiet(&mut alice, &mut bob);
}

// ---- resumed transfers

/// PROTOCOL#go-on.
#[test]
fn transfer_resumes_after_its_sender_was_killed() {
    let Middle { server, gate, alice, mut bob, bytes } = Middle::reach();
    let home = alice.home.clone();
    drop(alice);
    drop(gate);
    bob.expect("! alice has left: \"big.bin\" (8.3 MB) was interrupted; it resumes when offered again");
    assert!(names(&bob, "received").iter().all(|name| name.ends_with(".part")));
    let gate = Gate::before(&server);
    let mut alice = gate.client(home, "alice", &[]).ready();
    bob.expect("* alice is online");
    resumes(&gate, &mut alice, &mut bob, &bytes);
}

#[test]
fn transfer_resumes_after_its_sender_has_logged_in_again() {
    let Middle { server, gate, alice, mut bob, bytes } = Middle::reach();
    // A login that replaces a session notifies nobody: other users still see one alice.
    let new_gate = Gate::before(&server);
    let mut newer = new_gate.client(alice.home.clone(), "alice", &[]).ready();
    let lines = alice.ends(1, "");
    let last = lines.last().expect("a line");
    assert_eq!(last, "! not complete: \"big.bin\" (8.3 MB); offer it again to resume");
    gate.open();
    resumes(&new_gate, &mut newer, &mut bob, &bytes);
}

/// PROTOCOL#go-on.
#[test]
fn part_from_one_sender_is_not_resumed_by_another() {
    let Middle { server, gate: _gate, alice, mut bob, bytes } = Middle::reach();
    drop(alice);
    let mut carol = server.client("carol").ready();
    bob.expect("* carol is online");
    let (path, before) = part(&bob).expect("alice's part");
    fs::write(carol.home.path("big.bin"), &bytes).expect("written");
    offer(&mut carol, &mut bob, "big.bin");
    bob.say("/acceptfile");
    let line = bob.expect("* receiving \"big.bin\" (8.3 MB) from carol");
    assert!(!line.contains("resuming"), "{line}");
    bob.expect(" is complete: ");
    carol.expect("* a copy is kept: ");
    assert!(holds(&bob, "received/carol~big.bin", &bytes));
    let after = fs::metadata(path).expect("alice's part is where it was");
    assert_eq!((after.ino(), after.len()), (before.ino(), before.len()));
    assert_eq!(names(&bob, "received").len(), 2);
}

#[test]
fn transfer_resumes_after_its_recipient_was_killed() {
    let Middle { server, gate, mut alice, bob, bytes } = Middle::reach();
    let home = bob.home.clone();
    drop(bob);
    alice.expect("! bob has left: \"big.bin\" (8.3 MB) was interrupted; offer it again to resume");
    gate.open();
    let mut bob = server.client_in(&home, "bob", &[]).ready();
    alice.expect("* bob is online");
    assert!(names(&bob, "received").iter().all(|name| name.ends_with(".part")));
    is_quiet(&mut alice, &mut bob);
    resumes(&gate, &mut alice, &mut bob, &bytes);
}

#[test]
fn transfer_resumes_after_the_server_was_killed() {
    let Middle { server, gate, mut alice, bob, bytes } = Middle::reach();
    let data = server.kill();
    let home = bob.home.clone();
    drop(bob);
    let server = Server::within(data, &[]);
    gate.lead_to(&server);
    gate.open();
    alice.expect("in a new session");
    let told = alice.expect("was interrupted");
    assert!(told.ends_with("\"big.bin\" (8.3 MB) was interrupted; offer it again to resume"), "{told}");
    let mut bob = server.client_in(&home, "bob", &[]).ready();
    alice.expect("* bob is online");
    resumes(&gate, &mut alice, &mut bob, &bytes);
}

/// PROTOCOL#whole-file.
#[test]
fn tampered_part_is_refused_at_the_end_and_restarted() {
    let Middle { server, gate, mut alice, bob, bytes } = Middle::reach();
    let home = bob.home.clone();
    let (path, _) = part(&bob).expect("a part");
    drop(bob);
    alice.expect("! bob has left");
    gate.open();
    let mut file = File::options().write(true).open(&path).expect("the part");
    file.write_all(&[!bytes[0], !bytes[1]]).expect("written");
    let mut bob = server.client_in(&home, "bob", &[]).ready();
    alice.expect("* bob is online");
    offer(&mut alice, &mut bob, "big.bin");
    bob.ask("/acceptfile", "resuming at");
    let refusal = bob.expect("! big.bin ← alice: ");
    let told = alice.expect("! \"big.bin\" (8.3 MB) failed on bob's side: ");
    for line in [refusal, told] {
        // There is no part to resume from.
        assert!(line.contains("it is not the file that was offered") && !line.contains("resume"), "{line}");
    }
    leaves_nothing(&mut alice, &mut bob, &bytes);
}

// ---- failures

/// PROTOCOL#whole-file.
#[test]
fn file_changed_after_its_offer_never_arrives_as_another() {
    let server = Server::start();
    let (mut alice, mut bob) = server.alice_and_bob();
    let path = alice.home.path("a.bin");
    let open = || File::options().write(true).open(&path).expect("the file");
    // The file becomes shorter: its end cannot be sent.
    make(&alice, "a.bin", MIB);
    offer(&mut alice, &mut bob, "a.bin");
    open().set_len(MIB as u64 / 2).expect("shorter");
    bob.say("/acceptfile");
    alice.expect("! a.bin → bob: the file has been shortened");
    bob.expect("! \"a.bin\" (1.0 MB) failed on alice's side: the file has been shortened");
    // The content changes, the length does not.
    make(&alice, "a.bin", MIB);
    offer(&mut alice, &mut bob, "a.bin");
    let mut file = open();
    file.seek(SeekFrom::Start(MIB as u64 / 2)).expect("the middle");
    file.write_all(b"something else").expect("written");
    bob.ask("/acceptfile", "! a.bin ← alice: it is not the file that was offered");
    alice.expect("! \"a.bin\" (1.0 MB) failed on bob's side: it is not the file that was offered");
    let finals = |bob: &Client| names(bob, "received").iter().filter(|name| !name.ends_with(".part")).count();
    assert_eq!(finals(&bob), 0, "{:?}", names(&bob, "received"));
    assert!(names(&alice, "sent").is_empty());
    // The file becomes longer: exactly the offered bytes are sent.
    let bytes = make(&alice, "a.bin", MIB);
    offer(&mut alice, &mut bob, "a.bin");
    File::options().append(true).open(&path).and_then(|mut file| file.write_all(b"more")).expect("longer");
    bob.ask("/acceptfile", "* \"a.bin\" (1.0 MB) from alice is complete: ");
    alice.expect("* no copy is kept: the file has changed since it was offered");
    assert!(holds(&bob, "received/alice~a.bin", &bytes));
    assert!(names(&alice, "sent").is_empty());
    // The file is replaced by another one: the offered file is still open.
    let bytes = make(&alice, "b.bin", MIB);
    offer(&mut alice, &mut bob, "b.bin");
    fs::remove_file(alice.home.path("b.bin")).expect("removed");
    make(&alice, "b.bin", MIB);
    take(&mut alice, &mut bob);
    assert!(holds(&bob, "received/alice~b.bin", &bytes) && holds(&alice, "sent/bob~b.bin", &bytes));
    is_quiet(&mut alice, &mut bob);
}

#[test]
fn full_disk_ends_only_the_transfer() {
    let server = Server::start();
    let mut alice = server.client("alice").ready();
    // Writes beyond 1 or 2 MiB (the shell chooses the block size) fail as on a full disk.
    let limit = "trap '' XFSZ; ulimit -f 2048";
    let home = Arc::new(Folder::new());
    let mut bob = Client::after(limit, home.clone(), server.port, "bob", &["--register"]).ready();
    alice.expect("* bob is online");
    make(&alice, "big.bin", BIG);
    let small = make(&alice, "small.bin", CHUNK + 1);
    offer(&mut alice, &mut bob, "big.bin");
    bob.say("/acceptfile");
    let line = bob.expect("! big.bin ← alice: ");
    assert!(line.contains("File too large"), "{line}");
    // The path is not revealed to the sender.
    let line = alice.expect("! \"big.bin\" (8.3 MB) failed on bob's side: ");
    assert!(line.ends_with(": the disk is full"), "{line}");
    assert!(names(&bob, "received").iter().all(|name| name.ends_with(".part")));
    is_quiet(&mut alice, &mut bob);
    offer(&mut alice, &mut bob, "small.bin");
    take(&mut alice, &mut bob);
    assert!(holds(&bob, "received/alice~small.bin", &small));
    // The sender's disk is full: only the copy is lost.
    make(&bob, "big.bin", MIB / 2);
    let grown = File::options().write(true).open(bob.home.path("big.bin")).expect("the file");
    grown.set_len(BIG as u64).expect("longer");
    offer(&mut bob, &mut alice, "big.bin");
    alice.ask("/acceptfile", "* \"big.bin\" (8.3 MB) from bob is complete: ");
    let line = bob.expect("* no copy is kept: ");
    assert!(line.contains("File too large"), "{line}");
    assert!(names(&bob, "sent").is_empty(), "{:?}", names(&bob, "sent"));
    is_quiet(&mut alice, &mut bob);
}

// ---- the exit

#[test]
fn end_of_input_waits_for_transfers_in_progress() {
    let Middle { server: _server, gate, mut alice, mut bob, bytes } = Middle::reach();
    let homes = (alice.home.clone(), bob.home.clone());
    let (sent, received) = (alice.data("files/sent/bob~big.bin"), bob.data("files/received/alice~big.bin"));
    alice.end();
    bob.end();
    gate.open();
    // One of them leaves first, which must not matter to the other.
    bob.ends(0, "* \"big.bin\" (8.3 MB) from alice is complete: ");
    alice.ends(0, "* a copy is kept: ");
    for path in [received, sent] {
        assert!(fs::read(&path).expect("the file is there") == bytes, "{}", path.display());
    }
    drop(homes);
}

#[test]
fn end_of_input_waits_for_the_answer_to_an_offer() {
    let server = Server::start();
    let (mut alice, mut bob) = server.alice_and_bob();
    let bytes = make(&alice, "a.bin", MIB);
    offer(&mut alice, &mut bob, "a.bin");
    alice.end();
    take(&mut alice, &mut bob);
    assert!(holds(&bob, "received/alice~a.bin", &bytes) && holds(&alice, "sent/bob~a.bin", &bytes));
    alice.leaves();
    // It does not wait for an offer that its own user has not answered.
    let mut carol = server.client("carol").ready();
    bob.expect("* carol is online");
    make(&bob, "b.bin", MIB);
    offer(&mut bob, &mut carol, "b.bin");
    carol.leaves();
    bob.expect("* carol has left: \"b.bin\" (1.0 MB) is no longer offered");
    bob.leaves();
}

#[test]
fn exit_reports_unfinished_files_without_waiting() {
    for sender_leaves in [true, false] {
        let Middle { server: _server, gate, alice, bob, .. } = Middle::reach();
        let (mut leaver, mut other) = if sender_leaves { (alice, bob) } else { (bob, alice) };
        leaver.say("/exit");
        let name = leaver.name.clone();
        let lines = leaver.ends(1, "");
        let last = lines.last().expect("a line");
        assert_eq!(last, "! not complete: \"big.bin\" (8.3 MB); offer it again to resume");
        gate.open();
        other.expect(&format!("! {name} has left: \"big.bin\" (8.3 MB) was interrupted; "));
        other.leaves();
    }
}

#[test]
fn offer_delays_the_end_of_input_by_ten_minutes_at_most() {
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let mut bare = Bare::new(&alice, &[&bob]);
    bare.line("/sendfile bob a.txt");
    bare.take(Event::Transfer(1, Step::Hashed { name: "a.txt".into(), size: 1, sha256: [1; 32] }));
    let effects = bare.hear(ServerMessage::Keys(Keys { keys: vec![bob.shown()], unknown: vec![] }));
    let id = effects.iter().find_map(|effect| match effect {
        Effect::Do(Action::Send(ClientMessage::EncryptedSend(send))) => Some(send.routing.id),
        _ => None,
    });
    let delivered = vec![bob.name];
    let sent = Sent { id: id.expect("an offer"), delivered, ..Sent::default() };
    bare.hear(ServerMessage::Sent(sent));
    let quits = |effects: Vec<Effect>| effects.iter().any(|effect| matches!(effect, Effect::Quit(_)));
    assert!(!quits(bare.take(Event::EndOfInput)));
    // Time passes in steps of one second.
    let waited = (1..=1000).find(|_| quits(bare.wait(1)));
    assert_eq!(waited, Some(600));
}
