//! Files as editors, crashes, backups and log rotation leave them, and full disks: real programs read the files, refuse
//! them or set them aside, and erase nothing.

use crate::support::{
    self, DATA, Folder, Output, Person, Server, block, check, has, limit_files, make_fifo, newcomer, other,
    refused_start, run, run_server, server_command, signal, until, user,
};
use secure_messenger::client::store::trust::{Ignored, KnownServers, Trust, TrustStore};
use secure_messenger::crypto::keys::IdentityKey;
use secure_messenger::crypto::public::Fingerprint;
use secure_messenger::records::asides;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// The reason why a start on this data folder is refused. Checks that `--check` reports the same, and that neither
/// changes `path`.
fn refusal(home: &Folder, path: &Path) -> String {
    let content = || (fs::read_link(path).ok(), fs::read(path).ok());
    let before = content();
    assert!(before != (None, None), "there");
    let (status, checked) = check(home);
    assert_eq!(status, 1, "{checked}");
    let reason = refused_start(home, &[]);
    assert!(checked.contains(&format!("problem: {reason}\n")), "{checked} is not {reason}");
    assert!(content() == before, "untouched");
    reason
}

fn utf16(text: &str, mark: bool) -> Vec<u8> {
    let units = mark.then_some(0xfeff).into_iter().chain(text.encode_utf16());
    units.flat_map(u16::to_le_bytes).collect()
}

/// Harmless changes that editors make.
fn edited(text: &str) -> Vec<String> {
    let (first, last) = (text.lines().next().expect("a line"), text.lines().last().expect("a line"));
    vec![
        text.trim_end().into(),
        format!("\u{feff}{text}"),
        text.replace('\n', "\r\n"),
        format!("\n\n{}\n \n", text.replace('\n', "\n\t\n")),
        text.replace('\n', "   \n"),
        format!("{first}\n{text}{last}"),
        format!("\u{feff}{}\r\n   ", text.trim_end().replace('\n', "\r\n")),
    ]
}

/// A data folder with the accounts of alice and bob; the path and the text of its `users.json`.
fn two_accounts() -> (Arc<Folder>, PathBuf, String) {
    let server = Server::start();
    newcomer(&server, "alice");
    newcomer(&server, "bob");
    let home = server.kill();
    let path = home.path("data/users.json");
    let text = fs::read_to_string(&path).expect("there");
    (home, path, text)
}

/// OPERATING#records.
#[test]
fn accounts_load_however_an_editor_saved_them() {
    let (mut home, path, text) = two_accounts();
    for edited in edited(&text) {
        fs::write(&path, &edited).expect("written");
        let (status, checked) = check(&home);
        assert!(status == 0 && checked.contains("2 accounts"), "{edited:?}: {checked}");
        assert_eq!(fs::read_to_string(&path).expect("there"), edited);
        let server = Server::within(home, &[]);
        let (_, carol) = newcomer(&server, "carol");
        for person in [&Person::new("alice"), &Person::new("bob"), &carol] {
            server.raw().logs_in(person);
        }
        home = server.kill();
        assert!(fs::read_to_string(&path).expect("there").starts_with(&edited), "nothing is erased");
        assert_eq!(user(&home, &["remove", "carol"]).0, 0);
    }
    assert!(asides(&path).is_empty());
}

/// OPERATING#records.
#[test]
fn accounts_that_cannot_be_read_stop_the_start() {
    let (home, path, text) = two_accounts();
    let first = text.lines().next().expect("alice").to_string() + "\n";
    for (bytes, words) in [
        (utf16(&text, true), "(this looks like UTF-16: save the file as UTF-8)"),
        (utf16(&text, false), "(this looks like UTF-16: save"),
        (utf16(first.trim_end(), false), "(this looks like UTF-16: save"),
        (utf16(&first.replace('\n', " "), false), "(this looks like UTF-16: save"),
        (text.replacen("\"bob\"", "\"b b\"", 1).into_bytes(), "line 2 is damaged: restore"),
        // A typing error in the last line is not a torn write.
        (
            text.trim_end().replacen("{\"name\":\"bob\"", "{\"name:\"bob\"", 1).into_bytes(),
            "line 2 is damaged",
        ),
        (format!("{first}\0\0\0\0\n{text}").into_bytes(), "line 2 is damaged"),
        (format!("{first}{}{text}", "\0".repeat(10_000)).into_bytes(), "line 2 is damaged"),
        (format!("{first}{}", "x".repeat(10_000)).into_bytes(), "line 2 is damaged"),
        (format!("{first}{{\"name\":\"bob\"\n{text}").into_bytes(), "line 2 is damaged"),
        (text.replace('\n', "\r").into_bytes(), "line 1 is damaged"),
        (text.replacen("salt", "tlas", 1).into_bytes(), "line 1 is damaged"),
        (text.replacen('\n', "\n\n#\n", 1).into_bytes(), "line 3 is damaged"),
        (format!("{text}{}\n", "x".repeat(10_000)).into_bytes(), "line 3 is damaged"),
        (format!("\0\0\0\0\n{text}").into_bytes(), "line 1 is damaged"),
    ] {
        fs::write(&path, &bytes).expect("written");
        let reason = refusal(&home, &path);
        assert!(reason.contains("users.json: ") && reason.contains(words), "{words}: {reason}");
    }
}

/// OPERATING#records.
#[test]
fn accounts_overwritten_in_place_get_no_more_records() {
    let (home, path, text) = two_accounts();
    let server = Server::within(home, &[]);
    newcomer(&server, "carol");
    let whole = fs::read_to_string(&path).expect("there");
    // The same file with other content, as `cp` and some editors write it.
    fs::write(&path, &text).expect("written");
    let dave = Person::new("dave");
    let mut raw = server.raw();
    raw.say(&dave.registration());
    assert!(raw.error().contains("server"), "nothing is confirmed");
    until("the log says why", || {
        let told = "users.json: another program changed it while it was in use: put it back as it was";
        server.log().lines().any(|line| line.contains("event=storage_failed ") && line.contains(told))
    });
    assert_eq!(fs::read_to_string(&path).expect("there"), text);
    fs::write(&path, &whole).expect("put back");
    newcomer(&server, "erin");
    let _home = server.kill();
    assert!(fs::read_to_string(&path).expect("there").starts_with(&whole));
}

/// OPERATING#records.
#[test]
fn locks_hold_despite_unreadable_lines() {
    let mut home = used_folder();
    let path = home.path("data/locks.json");
    let until = std::time::SystemTime::now() + std::time::Duration::from_secs(600);
    let until = until.duration_since(std::time::UNIX_EPOCH).expect("a time").as_millis();
    let lock = |name: &str| format!("{{\"name\":\"{name}\",\"until\":{until}}}\n").into_bytes();
    let (alice, bob) = (lock("alice"), lock("bob"));
    let hole = vec![0; 10_000];
    // The bytes, whether damage is reported, and whether bob is still locked.
    for (bytes, damaged, bob_too) in [
        ([&alice[..], &hole, b"\n", &bob].concat(), true, true),
        ([&alice[..], b"{\"na", &hole, b"me\n", &bob].concat(), true, true),
        ([&alice[..], &hole, &bob].concat(), true, false),
        ([&alice[..], &bob, &hole].concat(), false, true),
        ([&alice[..], &bob, b"{\"name\":\"\xc3"].concat(), false, true),
        ([&alice[..], &vec![b'x'; 1024 * 1024], b"\n", &bob].concat(), true, true),
        ([&alice[..], b"{\"name\":\"a\0\"}\n", &bob].concat(), true, true),
        (
            [
                &alice[..],
                &String::from_utf8_lossy(&[&bob[..], &bob].concat()).replace('\n', "\r").into_bytes(),
            ]
            .concat(),
            true,
            false,
        ),
    ] {
        fs::write(&path, &bytes).expect("written");
        let locked = format!("{} locked names\n", 1 + usize::from(bob_too));
        let told = match damaged {
            true => "WARNING: locks.json: 1 lines cannot be read: a start sets them aside",
            false => "bytes after the last record cannot be read: a start sets them aside",
        };
        let (status, checked) = check(&home);
        assert!(status == 0 && checked.contains(&locked) && checked.contains(told), "{checked}");
        assert_eq!(fs::read(&path).expect("there"), bytes, "nothing has changed");
        let count = asides(&path).len();
        home = Server::within(home, &[]).kill();
        assert_eq!(asides(&path).len(), count + 1);
        let (_, checked) = check(&home);
        assert!(checked.contains(&locked) && !checked.contains("cannot be read"), "{checked}");
    }
}

/// A data folder that a server has used.
fn used_folder() -> Arc<Folder> {
    Server::start().kill()
}

/// OPERATING#records.
#[test]
fn torn_end_of_accounts_is_set_aside_each_time() {
    let (mut home, path, text) = two_accounts();
    let rests = ["{\"name\":\"carol\",\"sa", "{\"na\0\0\0\0", &"\0".repeat(9000), "\0", "\0\0\n"];
    for rest in rests {
        fs::write(&path, format!("{text}{rest}")).expect("written");
        let (status, checked) = check(&home);
        let plan =
            format!("{} bytes after the last record cannot be read: a start sets them aside", rest.len());
        assert!(status == 0 && checked.contains(&plan), "{checked}");
        let server = Server::within(home, &[]);
        server.told("set aside in ");
        server.logs("event=storage_notice ");
        home = server.kill();
        assert_eq!(fs::read_to_string(&path).expect("there"), text);
    }
    let kept: Vec<_> = asides(&path).iter().map(|aside| fs::read_to_string(aside).expect("kept")).collect();
    assert!(kept.len() == rests.len() && rests.iter().all(|rest| kept.iter().any(|kept| kept == rest)));
    // Complete except for its line end, with zeros behind it.
    fs::write(&path, format!("{}\0\0\0\0", text.trim_end())).expect("written");
    let server = Server::within(home, &[]);
    server.told("(2 accounts)");
    assert_eq!(fs::read_to_string(&path).expect("there"), text);
    // The next record follows the last complete one.
    server.raw().logs_in(&Person::new("alice"));
    newcomer(&server, "carol");
    Server::within(server.kill(), &[]).told("(3 accounts)");
}

/// OPERATING#key-keeps-name.
#[test]
fn name_stays_with_its_key_when_its_record_is_lost() {
    let (mut home, path, text) = two_accounts();
    let alice = Person::new("alice");
    let other = Person { identity: Arc::new(IdentityKey::generate()), ..Person::new("alice") };
    let register = |server: &Server, person: &Person| match server.raw().try_register(person) {
        None => "registered".to_string(),
        Some(failure) => failure.code,
    };
    let torn = format!("{}{}", text.lines().last().expect("bob"), "\n{\"name\":\"alice\",\"sal");
    for lost in ["", "\n", "\0\0\0\0\0\0", &torn] {
        fs::write(&path, lost).expect("written");
        let (status, checked) = check(&home);
        assert!(
            status == 0 && checked.contains("only their keys can register their names: alice"),
            "{checked}"
        );
        let server = Server::within(home, &[]);
        server.told("key files belong to no account");
        for name in ["alice", "Alice"] {
            assert_eq!(register(&server, &other.called(name)), "name_taken", "{lost:?}");
        }
        assert_eq!(register(&server, &alice), "registered");
        server.raw().logs_in(&alice);
        home = server.kill();
    }
    // The operator frees the name.
    fs::write(&path, "").expect("written");
    let server = Server::within(home, &[]);
    let (status, out) = user(&server.home, &["remove", "alice"]);
    assert!(status == 0 && out.contains("alice is removed"), "{out}");
    assert_eq!(register(&server, &other), "registered");
    // A removed account does not keep its name, even if a crash has left its key file.
    assert_eq!(user(&server.home, &["remove", "alice"]).0, 0);
    let home = server.kill();
    fs::write(home.path("data/keys/alice.pem"), other.identity.public().to_pem()).expect("written");
    let server = Server::within(home, &[]);
    assert!(server.is_silent_about("alice"), "{:#?}", server.greeting);
    assert_eq!(register(&server, &alice), "registered");
}

#[test]
fn key_file_of_an_account_loads_however_it_was_saved() {
    let server = Server::start();
    let (mut raw, _) = newcomer(&server, "alice");
    let path = server.data("keys/alice.pem");
    let pem = fs::read_to_string(&path).expect("there");
    for edited in edited(&pem).iter().filter(|edited| edited.matches("BEGIN").count() == 1) {
        fs::write(&path, edited).expect("written");
        let (_, checked) = check(&server.home);
        assert!(!checked.contains("alice.pem: not the key"), "{edited:?}: {checked}");
    }
    assert!(raw.is_usable());
}

// ---- the client's files

/// The files of alice, who has verified bob and ignores eve.
fn knowing(server: &Server) -> Arc<Folder> {
    let _bob = server.client("bob").ready();
    let _eve = server.client("eve").ready();
    let mut alice = server.client("alice").ready();
    alice.ask("/verify bob", "safety number with bob");
    alice.ask("/verify bob yes", "verified");
    alice.ask("/ignore eve", "eve");
    let home = alice.home.clone();
    alice.leaves();
    home
}

fn folder(home: &Folder, name: &str) -> PathBuf {
    home.path(DATA).join(name)
}

/// OPERATING#records.
#[test]
fn client_records_load_however_they_were_saved() {
    let server = Server::start();
    let home = knowing(&server);
    let host = format!("127.0.0.1:{}", server.port);
    let names = ["known_users", "known_servers", "ignored"];
    let texts = names.map(|name| fs::read_to_string(folder(&home, name)).expect("there"));
    let edits = texts.clone().map(|text| edited(&text));
    for n in 0..edits[0].len() {
        for (name, edited) in names.iter().zip(&edits) {
            fs::write(folder(&home, name), &edited[n]).expect("written");
        }
        let lines = server.client_in(&home, "alice", &[]).ready().leaves();
        assert!(!lines.iter().any(|line| line.contains("set aside")), "{lines:#?}");
        let bob = "bob".parse().expect("name");
        let known = TrustStore::open(&folder(&home, ""), &host).expect("whole");
        assert!(matches!(known.get(&bob), Some((_, Trust::Verified))), "{:?}", edits[0][n]);
        let servers = KnownServers::open(&folder(&home, "")).expect("whole");
        assert!(servers.get(&host).is_some(), "{:?}", edits[1][n]);
        let ignored = Ignored::open(&folder(&home, ""), &host).expect("whole");
        assert!(ignored.contains(&"eve".parse().expect("name")), "{:?}", edits[2][n]);
        for (name, edited) in names.iter().zip(&edits) {
            assert!(fs::read_to_string(folder(&home, name)).expect("there").starts_with(&edited[n]));
        }
    }
    for (name, text) in names.iter().zip(&texts) {
        for (bytes, words) in [
            (utf16(text, true), "(this looks like UTF-16: save"),
            (format!("garbage\n{text}").into_bytes(), "line 1 is damaged: restore"),
            (format!("{text}{}", "x".repeat(9000)).into_bytes(), "is damaged: restore"),
            (
                format!("{}x\"}}", text.trim_end().trim_end_matches("\"}")).replace("\":", ":").into_bytes(),
                "is damaged",
            ),
        ] {
            fs::write(folder(&home, name), &bytes).expect("written");
            let lines = server.client_in(&home, "alice", &[]).ends(1, words);
            assert!(lines.concat().contains(&format!("/{name}: line ")), "{lines:#?}");
            assert!(fs::read(folder(&home, name)).expect("there") == bytes, "untouched");
        }
        fs::write(folder(&home, name), text).expect("written");
    }
}

/// OPERATING#records.
#[test]
fn torn_end_of_client_records_is_set_aside_and_reported() {
    let server = Server::start();
    let home = knowing(&server);
    for name in ["known_users", "known_servers", "ignored"] {
        let path = folder(&home, name);
        let text = fs::read_to_string(&path).expect("there");
        for rest in ["{\"server\":\"127.0", "\0\0\0\0"] {
            fs::write(&path, format!("{text}{rest}")).expect("written");
            let told = format!("! {}: {} bytes after the last record", path.display(), rest.len());
            server.client_in(&home, "alice", &[]).ends(0, &told);
            assert!(fs::read_to_string(&path).expect("there").starts_with(&text));
            let is_kept = |aside: &PathBuf| fs::read_to_string(aside).expect("there") == rest;
            assert!(asides(&path).iter().any(is_kept), "{name}: {rest:?}");
        }
    }
}

/// OPERATING#records.
#[test]
fn pinned_server_stays_known_and_a_torn_pin_is_not_replaced() {
    let server = Server::start();
    let home = knowing(&server);
    let (path, host) = (folder(&home, "known_servers"), format!("127.0.0.1:{}", server.port));
    let text = fs::read_to_string(&path).expect("there");
    fs::remove_file(&path).expect("removed");
    KnownServers::open(&folder(&home, ""))
        .and_then(|mut known| known.remember(&host, Fingerprint([7; 32])))
        .expect("another");
    let other = fs::read_to_string(&path).expect("there");
    // A complete record of another server, without its line end.
    for saved in edited(&other) {
        fs::write(&path, saved).expect("written");
        server.client_in(&home, "alice", &[]).ends(1, "HAS CHANGED");
    }
    // Half of the record, or zeros in its place, still count as a lost record, also at the next start.
    for torn in [&text[..text.len() - 20], "\0".repeat(text.len()).as_str()] {
        asides(&path).iter().for_each(|aside| fs::remove_file(aside).expect("removed"));
        fs::write(&path, torn).expect("written");
        for _ in 0..2 {
            let lines = server.client_in(&home, "alice", &[]).ends(1, "--accept-new does not apply");
            let aside = asides(&path).pop().expect("set aside");
            assert!(lines.concat().contains(&format!("remove {}", aside.display())), "{lines:#?}");
        }
    }
    server.client_in(&home, "alice", &["--fingerprint", &server.fingerprint()]).leaves();
    server.client_in(&home, "alice", &[]).leaves();
}

/// OPERATING#records.
#[test]
fn user_with_a_zeroed_record_must_be_trusted_again() {
    let server = Server::start();
    let mut bob = server.client("bob").ready();
    let mut alice = server.client("alice").ready();
    alice.ask("/verify bob", "safety number with bob");
    alice.ask("/verify bob yes", "verified");
    let home = alice.home.clone();
    alice.leaves();
    let path = folder(&home, "known_users");
    let text = fs::read_to_string(&path).expect("there");
    fs::write(&path, "\0".repeat(text.len())).expect("written");
    let mut alice = server.client_in(&home, "alice", &[]).ready();
    alice.say("/msg bob not yet");
    let told = alice.expect("THE IDENTITY KEY OF bob MAY HAVE CHANGED");
    let aside = asides(&path).pop().expect("set aside");
    assert!(told.contains(&format!("remove {}", aside.display())), "{told}");
    alice.ask("/trust bob", "bob");
    alice.say("/msg bob now");
    assert!(!bob.expect(" now").contains("not yet"));
    alice.leaves();
    // Without the set-aside file, unknown users are new.
    fs::remove_file(&aside).expect("removed");
    let mut carol = server.client("carol").ready();
    let mut alice = server.client_in(&home, "alice", &[]).ready();
    alice.say("/msg carol hello");
    carol.expect("hello");
}

#[test]
fn fifo_instead_of_a_client_record_is_refused() {
    let server = Server::start();
    let home = knowing(&server);
    for name in ["known_users", "known_servers", "ignored"] {
        let path = folder(&home, name);
        fs::rename(&path, home.path("kept")).expect("moved");
        make_fifo(&path);
        server.client_in(&home, "alice", &[]).ends(1, "a FIFO, a socket or a device: remove it");
        fs::rename(home.path("kept"), &path).expect("moved back");
    }
}

#[test]
fn private_key_file_opens_however_it_was_saved() {
    let server = Server::start();
    let home = knowing(&server);
    let path = folder(&home, "keys/alice_private.key");
    let text = fs::read_to_string(&path).expect("there");
    for saved in
        [text.trim_end().to_string(), format!("\u{feff}\r\n{text}\r\n"), text.replace(',', " ,\r\n  ")]
    {
        fs::write(&path, saved).expect("written");
        server.client_in(&home, "alice", &[]).leaves();
    }
    for bad in [utf16(&text, true), Vec::new(), vec![0; 300], text.as_bytes()[..100].to_vec()] {
        fs::write(&path, &bad).expect("written");
        for register in [&["--register"][..], &[]] {
            server.client_in(&home, "alice", register).ends(1, "the key file is damaged");
            assert!(fs::read(&path).expect("there") == bad, "untouched");
        }
    }
}

// ---- private files

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("changed");
}

#[test]
fn private_file_readable_by_others_is_fixed_and_reported() {
    let server = Server::start();
    newcomer(&server, "alice");
    let home = server.kill();
    let names = ["users.json", "salt.secret", "certs/server.key"];
    for wide in [0o644, 0o640, 0o666] {
        names.iter().for_each(|name| set_mode(&home.path("data").join(name), wide));
        let (_, checked) = check(&home);
        assert_eq!(
            checked.matches("other users have access to this file: a start closes it").count(),
            3,
            "{checked}"
        );
        let server = Server::within(home.clone(), &[]);
        for name in names {
            let path = server.data(name);
            let told = "other users had access to this file; now only its owner has";
            server.told(&format!("{}: {told}", path.display()));
            assert_eq!(mode(&path), 0o600);
        }
    }
    // A file elsewhere, behind a link, is not changed.
    let (key, elsewhere) = (home.path("data/certs/server.key"), home.path("server.key"));
    fs::rename(&key, &elsewhere).expect("moved");
    symlink(&elsewhere, &key).expect("linked");
    set_mode(&elsewhere, 0o644);
    let reason = refusal(&home, &elsewhere);
    assert!(reason.contains("server.key: other users can read this private file: chmod 600 it"), "{reason}");
    assert_eq!(mode(&elsewhere), 0o644);
    set_mode(&elsewhere, 0o600);
    drop(Server::within(home, &[]));
    // The client's files.
    let server = Server::start();
    let home = knowing(&server);
    let key = folder(&home, "keys/alice_private.key");
    set_mode(&key, 0o644);
    let told = format!("! {}: other users had access to this file; now only its owner has", key.display());
    server.client_in(&home, "alice", &[]).ends(0, &told);
    assert_eq!(mode(&key), 0o600);
    let elsewhere = home.path("alice.key");
    fs::rename(&key, &elsewhere).expect("moved");
    symlink(&elsewhere, &key).expect("linked");
    set_mode(&elsewhere, 0o644);
    server.client_in(&home, "alice", &[]).ends(1, "other users can read this private file");
}

/// OPERATING#records.
#[test]
fn linked_file_stops_the_start_and_the_link_stays() {
    let (home, users, _) = two_accounts();
    let elsewhere = home.path("elsewhere");
    for name in ["users.json", "locks.json", "logs/security.log"] {
        let path = home.path("data").join(name);
        fs::rename(&path, &elsewhere).expect("moved");
        symlink(&elsewhere, &path).expect("linked");
        let reason = refusal(&home, &path);
        assert!(reason.contains(&format!("{name}: this is a symbolic link: put the file")), "{reason}");
        fs::rename(&elsewhere, &path).expect("moved back");
    }
    let files = ["certs/server.key", "certs/server.crt", "salt.secret"];
    let kept = |path: &Path| format!("{}.kept", path.display());
    // One of them, or certificate and key, are links to a disk that is not mounted.
    for names in [&files[..1], &files[1..2], &files[2..], &files[..2]] {
        let paths: Vec<PathBuf> = names.iter().map(|name| home.path("data").join(name)).collect();
        for path in &paths {
            fs::rename(path, kept(path)).expect("moved");
            symlink(home.path("nowhere"), path).expect("linked");
        }
        for path in &paths {
            let reason = refusal(&home, path);
            assert!(reason.contains("No such file") && path.is_symlink(), "{reason}");
        }
        for path in &paths {
            fs::rename(kept(path), path).expect("moved back");
        }
    }
    assert!(!home.path("nowhere").exists() && users.is_file());
    drop(Server::within(home, &[]));
}

/// OPERATING#records.
#[test]
fn failed_append_on_a_full_disk_is_undone() {
    let (home, path, text) = two_accounts();
    let server = Server::within(home, &[]);
    let pid = server.child.id();
    // The next record has room for its first 100 bytes.
    if !limit_files(pid, &format!("{}:unlimited", text.len() + 100)) {
        return;
    }
    let mut raw = server.raw();
    raw.say(&Person::new("carol").registration());
    assert_eq!(raw.error(), "server_error");
    assert_eq!(fs::read_to_string(&path).expect("there"), text);
    assert!(!server.data("keys/carol.pem").exists(), "the name is free");
    assert!(limit_files(pid, "unlimited"));
    newcomer(&server, "carol");
    let home = server.kill();
    let (status, checked) = check(&home);
    assert!(status == 0 && checked.contains("3 accounts") && !checked.contains("WARNING"), "{checked}");
    assert!(asides(&path).is_empty());
}

fn give(path: &Path, user: u32) -> std::io::Result<()> {
    chown(path, Some(user), None)
}

#[test]
fn folder_of_another_user_stops_the_start() {
    let home = used_folder();
    let program = home.path("server");
    // Modes do not limit root, so another user runs a copy of the program.
    let folders = ["", "certs", "keys", "logs"].map(|name| home.path("data").join(name));
    let all = || support::files(&folders[0]).into_iter().chain(folders.iter().cloned());
    if fs::copy(env!("CARGO_BIN_EXE_server"), &program).is_err()
        || all().any(|path| give(&path, 12345).is_err())
    {
        println!("skipped: only root can give a folder away");
        return;
    }
    set_mode(&home.0, 0o755);
    for path in &folders {
        give(path, 0).expect("given");
        set_mode(path, 0o777);
        let told = format!("{}: this folder belongs to user 0: ", path.display()).replace("data/:", "data:");
        for (words, begin) in [(&["--check"][..], "problem: "), (&["--host", "127.0.0.1"], "server: ")] {
            let mut command = Command::new(&program);
            let command = command.uid(12345).args(["--port", "0", "--data-dir"]).arg(home.path("data"));
            let (status, output, errors) = run(command.args(words));
            let text = output + &errors;
            assert!(text.lines().any(|line| line.starts_with(&format!("{begin}{told}"))), "{told}: {text}");
            assert_eq!(status, 1);
        }
        set_mode(path, 0o700);
        give(path, 12345).expect("given back");
    }
}

// ---- certificates

/// Runs OpenSSL, which must succeed.
fn openssl(arguments: &str) {
    let (is_done, text) = support::openssl(arguments);
    assert!(is_done, "{arguments}: {text}");
}

#[test]
fn unusable_certificate_is_refused_with_a_remedy() {
    if !has("openssl") {
        return;
    }
    let home = used_folder();
    let path = |name: &str| home.path(name).to_str().expect("UTF-8").to_string();
    let (key, certificate) = (home.path("data/certs/server.key"), home.path("data/certs/server.crt"));
    let make = |name: &str, algorithm: &str| {
        let (key, out) = (path(&format!("{name}.key")), path(&format!("{name}.crt")));
        openssl(&format!(
            "req -x509 -nodes -days 90 -subj /CN={name} -keyout {key} -out {out} -newkey {algorithm}"
        ));
        let read = |path: &str| fs::read(path).expect("made");
        (read(&key), read(&out))
    };
    let ec = "ec -pkeyopt ec_paramgen_curve:P-256";
    let (own_key, own) = make("own", ec);
    let (_, authority) = make("authority", ec);
    let (small_key, small) = make("small", "rsa:1024");
    let (k1_key, k1) = make("k1", "ec -pkeyopt ec_paramgen_curve:secp256k1");
    let [key_path, own_path] = [path("own.key"), path("own.crt")];
    for (command, made) in [
        (format!("pkey -in {key_path} -aes256 -passout pass:x"), "sealed.key"),
        (format!("ec -in {key_path} -aes256 -passout pass:x"), "older.key"),
        (format!("x509 -in {own_path} -outform DER"), "own.der"),
        (format!("req -new -key {key_path} -subj /CN=own"), "own.csr"),
        (format!("x509 -req -in {} -signkey {key_path}", path("own.csr")), "v1.crt"),
        (format!("pkey -in {key_path} -pubout"), "own.pub"),
        (format!("x509 -in {own_path} -trustout"), "own.trusted"),
        (format!("crl2pkcs7 -nocrl -certfile {own_path}"), "own.p7b"),
        (format!("pkcs12 -export -passout pass:x -inkey {key_path} -in {own_path}"), "own.p12"),
    ] {
        openssl(&format!("{command} -out {}", path(made)));
    }
    let read = |name: &str| fs::read(home.path(name)).expect("made");
    let damaged =
        |pem: &[u8]| String::from_utf8_lossy(pem).replacen("-----\nMI", "-----\nM!", 1).into_bytes();
    let cut = |pem: &[u8]| pem[..pem.len() - 60].to_vec();
    let text = String::from_utf8(own.clone()).expect("PEM");
    let put = |(new_key, new): (&[u8], &[u8])| {
        fs::write(&key, new_key).and_then(|()| fs::write(&certificate, new)).expect("written");
        set_mode(&key, 0o600);
        set_mode(&certificate, 0o600);
    };
    for (new_key, new, words) in [
        (read("sealed.key"), own.clone(), "server.key: no private key in this file: it is encrypted"),
        (read("older.key"), own.clone(), "server.key: no private key in this file: it is encrypted"),
        (own_key.clone(), [&authority[..], &own].concat(), "server.crt: the server's own certificate"),
        (own_key.clone(), authority, "server.key is not the key of the certificate in server.crt"),
        (small_key, small, "RSA with 2048 bits or more"),
        (k1_key, k1, "ECDSA on P-256"),
        (own_key.clone(), utf16(&text, true), "server.crt: this looks like UTF-16"),
        (own_key.clone(), read("own.der"), "server.crt: this is DER"),
        (own_key.clone(), Vec::new(), "no certificate in this file"),
        (Vec::new(), own.clone(), "no private key in this file"),
        (own_key.clone(), b"\n".to_vec(), "server.crt: no certificate in this file: it is empty: restore"),
        (own_key.clone(), b"rubbish".to_vec(), "server.crt: no certificate in this file: it is not PEM"),
        (
            own_key.clone(),
            damaged(&own),
            "server.crt: no certificate in this file: it is damaged or cut off: copy",
        ),
        (own_key.clone(), cut(&own), "server.crt: no certificate in this file: it is damaged or cut off"),
        (damaged(&own_key), own.clone(), "server.key: no private key in this file: it is damaged or cut off"),
        (cut(&own_key), own.clone(), "server.key: no private key in this file: it is damaged or cut off"),
        (own_key.clone(), read("v1.crt"), "server.crt: this certificate is not of X.509 version 3"),
        (own_key.clone(), read("own.csr"), "server.crt: no certificate in this file: it is a request: have"),
        (
            own_key.clone(),
            own_key.clone(),
            "server.crt: no certificate in this file: it belongs in the other file",
        ),
        (read("own.pub"), own.clone(), "server.key: no private key in this file: it is a public key: put"),
        (own.clone(), own.clone(), "server.key: no private key in this file: it belongs in the other file"),
        (
            own_key.clone(),
            read("own.trusted"),
            "server.crt: no certificate in this file: it is in a format that only OpenSSL reads",
        ),
        (own_key.clone(), read("own.p7b"), "server.crt: no certificate in this file: it is PKCS#7: convert"),
        (own_key.clone(), read("own.p12"), "server.crt: this is PKCS#12: extract"),
        (read("own.p12"), own.clone(), "server.key: this is PKCS#12: extract"),
        (
            [&read("authority.key")[..], &own_key].concat(),
            own.clone(),
            "of several keys in server.key, the first counts",
        ),
    ] {
        put((&new_key, &new));
        let reason = refusal(&home, &certificate);
        assert!(reason.contains(words), "{words}: {reason}");
    }
    let mark = "\u{feff}".as_bytes();
    put((&[mark, &own_key].concat(), &[mark, text.replace('\n', "\r\n").as_bytes()].concat()));
    drop(Server::within(home.clone(), &[]));
}

// ---- the log

/// The number of reloads (SIGHUP) in the log of a running server.
fn reloads(server: &Server) -> usize {
    server.log().matches("event=reloaded ").count()
}

#[test]
fn renamed_or_removed_log_is_recreated() {
    let server = Server::start();
    let (mut alice, _) = newcomer(&server, "alice");
    let (log, old) = (server.data("logs/security.log"), server.data("logs/old.log"));
    server.logs("event=login user=alice ");
    fs::rename(&log, &old).expect("renamed");
    let (mut bob, _) = newcomer(&server, "bob");
    until("it is there again", || log.exists() && server.log().contains("event=login user=bob "));
    assert!(!server.log().contains("alice") && !fs::read_to_string(&old).expect("there").contains("bob"));
    assert_eq!(mode(&log), 0o600);
    fs::remove_file(&log).expect("removed");
    newcomer(&server, "carol");
    until("it is there again", || log.exists() && server.log().contains("event=login user=carol "));
    // SIGHUP recreates it at once.
    fs::rename(&log, &old).expect("renamed");
    server.signal("-HUP");
    until("it is there again", || log.exists() && reloads(&server) == 1);
    // logrotate's `copytruncate` empties it in place.
    File::options().write(true).open(&log).and_then(|file| file.set_len(0)).expect("cut");
    newcomer(&server, "dave");
    server.logs("event=login user=dave ");
    assert!(server.log().starts_with("20"), "no hole");
    // Half a line does not spoil the next one.
    fs::write(&log, "2026-01-31T08:05:09Z ev").expect("written");
    fs::rename(&log, server.data("logs/half")).expect("renamed");
    fs::copy(server.data("logs/half"), &log).expect("copied");
    newcomer(&server, "eve");
    server.logs("event=login user=eve ");
    assert!(server.log().starts_with("2026-01-31T08:05:09Z ev\n20"), "{}", server.log());
    // Removed together with its folder.
    fs::remove_dir_all(server.data("logs")).expect("removed");
    newcomer(&server, "frank");
    until("it is there again", || log.exists() && server.log().contains("event=login user=frank "));
    assert_eq!((mode(&log), mode(&server.data("logs"))), (0o600, 0o700));
    assert!(alice.is_usable() && bob.is_usable());
}

#[test]
fn secret_that_is_missing_beside_accounts_is_reported() {
    let (home, _, _) = two_accounts();
    let path = |name: &str| home.path("data").join(name);
    let warnings = |text: &str| {
        let warning =
            |line: &&str| line.starts_with("WARNING: ") && line.contains("beside existing accounts");
        text.lines().filter(warning).map(String::from).collect::<Vec<_>>()
    };
    for (files, change) in [
        (&["salt.secret"][..], "which of them do not exist"),
        (&["certs/server.key", "certs/server.crt"], "accept the new fingerprint"),
    ] {
        files.iter().for_each(|name| fs::remove_file(path(name)).expect("removed"));
        let (status, checked) = check(&home);
        let server = Server::within(home.clone(), &[]);
        until("it is logged", || server.log().contains(change));
        let started = server.greeting.join("\n");
        drop(server);
        for (told, made) in [(checked, ", and"), (started, "a new one was created")] {
            let told = warnings(&told);
            let words = [&*path(files[0]).display().to_string(), change, made];
            assert!(
                status == 0 && told.len() == 1 && words.iter().all(|word| told[0].contains(word)),
                "{told:?}"
            );
        }
        assert!(warnings(&check(&home).1).is_empty());
    }
    // No warning without TLS, where no client sees the key, or without accounts, where nobody knows the former one.
    fs::remove_dir_all(path("certs")).expect("removed");
    assert!(warnings(&run_server(&home, &["--check", "--no-tls"]).1).is_empty());
    assert!(warnings(&Server::start().greeting.join("\n")).is_empty());
}

#[test]
fn hangup_reloads_the_certificate_and_ends_nothing() {
    let mut server = Server::start();
    let (mut alice, _) = newcomer(&server, "alice");
    let hang_up = |server: &Server| server.signal("-HUP");
    hang_up(&server);
    let line = server.output.expect("reloaded; certificate: SHA256:");
    let (path, key) = (server.data("certs/server.crt"), server.data("certs/server.key"));
    let good = fs::read(&path).expect("there");
    fs::write(&path, "rubbish").expect("written");
    for _ in 0..2 {
        hang_up(&server);
        let told = server.output.expect("WARNING: reloaded, but the new certificate cannot be used: ");
        assert!(
            told.contains("server.crt") && told.contains(line.rsplit("SHA256:").next().expect("one")),
            "{told}"
        );
    }
    newcomer(&server, "bob");
    fs::write(&path, &good).expect("written");
    if !has("openssl") {
        return;
    }
    let new = server.home.path("crt");
    let (key_path, out) = (key.display(), new.display());
    openssl(&format!("req -x509 -new -key {key_path} -subj /CN=example.org -days 90 -out {out}"));
    fs::copy(&new, &path).expect("copied");
    set_mode(&key, 0o644);
    hang_up(&server);
    let now = server.output.expect("reloaded; certificate: SHA256:");
    assert!(now != line && mode(&key) == 0o600, "{now}");
    for _ in 0..50 {
        hang_up(&server);
    }
    assert!(alice.is_usable());
    server.signal("-TERM");
    assert_eq!(server.child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn rotation_of_the_log_loses_no_event() {
    let rotation = block("/var/lib/secure-messenger/logs/security.log {");
    assert!(rotation.contains("systemctl reload secure-messenger"), "{rotation}");
    if !has("logrotate") {
        return;
    }
    for truncates in [false, true] {
        let server = Server::start();
        let (mut alice, _) = newcomer(&server, "alice");
        server.logs("event=login user=alice ");
        let log = server.data("logs/security.log");
        let reload = format!("kill -HUP {}", server.child.id());
        let rotation = rotation
            .replace("/var/lib/secure-messenger/logs/security.log", log.to_str().expect("UTF-8"))
            .replace("systemctl reload secure-messenger", if truncates { "true" } else { &reload })
            .replace("nocreate", if truncates { "copytruncate" } else { "nocreate" });
        let (config, state) = (server.home.path("logrotate.conf"), server.home.path("logrotate.state"));
        fs::write(&config, rotation).expect("written");
        set_mode(&config, 0o600);
        let (status, _, errors) = run(other("logrotate").arg("-f").arg("-s").arg(&state).arg(&config));
        assert_eq!((status, &*errors), (0, ""));
        newcomer(&server, "bob");
        until("it is logged", || log.exists() && server.log().contains("event=login user=bob "));
        let files = support::files(&server.data("logs"));
        assert!(files.len() == 2 && alice.is_usable(), "{files:?}");
        let old = files.iter().find(|path| **path != log).expect("the former one");
        let old = fs::read_to_string(old).expect("there");
        assert!(old.contains("event=login user=alice ") && !server.log().contains("user=alice "));
        assert!(server.log().starts_with("20") && (truncates || reloads(&server) == 1), "{}", server.log());
    }
}

#[test]
fn full_log_disk_is_reported_and_lost_events_are_counted() {
    let home = used_folder();
    let log = home.path("data/logs/security.log");
    // Files are limited to 32 KiB (the shell chooses the block size), and this one is longer.
    fs::write(&log, "2026-01-31T08:05:09Z event=started user=- addr=-\n".repeat(2000)).expect("written");
    let errors = home.path("errors");
    let full = format!("ulimit -S -f 32; exec 2>{}", errors.display());
    let server = Server::after(&full, home, &[]);
    if !has("prlimit") {
        return;
    }
    let (mut alice, _) = newcomer(&server, "alice");
    until("it is reported", || {
        let told = fs::read_to_string(&errors).expect("there");
        told.lines().count() == 1 && told.contains("security.log") && told.contains("events are lost until")
    });
    assert!(!server.log().contains("alice") && alice.is_usable());
    assert!(limit_files(server.child.id(), "unlimited"));
    newcomer(&server, "bob");
    until("what was lost is counted", || server.log().contains(" lost_before="));
    assert!(server.log().trim_end().lines().all(|line| line.contains(" event=")), "no half line");
}

#[test]
fn full_output_is_logged_and_ends_nothing() {
    let home = Arc::new(Folder::new());
    let full = || Stdio::from(File::options().write(true).open("/dev/full").expect("there"));
    let mut command = server_command(&home, &["--host", "127.0.0.1", "--port", "0"]);
    let mut child = command.stdout(full()).stderr(full()).spawn().expect("it starts");
    let log = || fs::read_to_string(home.path("data/logs/security.log")).unwrap_or_default();
    until("it has started", || log().contains("event=started ") && log().contains("event=output_failed "));
    signal(child.id(), "-USR1");
    until("it answers", || log().contains("event=status "));
    signal(child.id(), "-HUP");
    until("it answers", || log().contains("event=reloaded "));
    let (status, out) = user(&home, &["unlock", "alice"]);
    assert!(status == 0 && out.contains("alice is not locked"), "{out}");
    signal(child.id(), "-TERM");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    // Requested output that cannot be printed is a failure.
    for words in [&["--check"][..], &["--help"], &["--version"]] {
        let child = server_command(&home, words).stdout(full()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("it starts");
        let errors = Output::of(child.stderr.take().expect("piped")).all();
        assert_eq!(child.wait().expect("it ends").code(), Some(1), "{words:?}");
        assert!(errors.len() == 1 && errors[0].starts_with("server: "), "{errors:?}");
    }
}

#[test]
fn operator_reaches_a_server_in_a_deep_folder() {
    let deep = Folder::new();
    let home = Arc::new(Folder(deep.path(&"deep/".repeat(30))));
    fs::create_dir_all(&home.0).expect("folders");
    let server = Server::within(home, &[]);
    assert!(server.data("admin.sock").as_os_str().len() > 108);
    assert!(server.is_silent_about("WARNING"), "{:#?}", server.greeting);
    let (mut alice, _) = newcomer(&server, "alice");
    let (status, out) = check(&server.home);
    assert!(status == 0 && out.contains("a server is using it"), "{out}");
    let (status, out) = user(&server.home, &["remove", "alice"]);
    assert!(status == 0 && out.contains("its session has ended"), "{out}");
    assert!(alice.error() == "account_removed");
}

#[test]
fn replacing_a_file_in_use_loses_no_record() {
    let server = Server::start();
    let home = knowing(&server);
    let mut alice = server.client_in(&home, "alice", &[]).ready();
    let path = folder(&home, "ignored");
    let text = fs::read_to_string(&path).expect("there");
    // Remove the line end, in place and with a new file.
    for replaced in [false, true] {
        let copy = folder(&home, "copy");
        fs::write(if replaced { &copy } else { &path }, text.trim_end()).expect("written");
        if replaced {
            fs::rename(&copy, &path).expect("replaced");
        }
        let name = if replaced { "mallory" } else { "oscar" };
        alice.ask(&format!("/ignore {name}"), name);
        let saved = fs::read_to_string(&path).expect("there");
        assert!(saved.starts_with(&text) && saved.lines().count() == text.lines().count() + 1, "{saved}");
        assert!(saved.ends_with("}\n") && saved.contains(name), "{saved}");
    }
    alice.leaves();
    // A server whose file was replaced confirms no record, because a restart would not find it.
    let users = server.data("users.json");
    let mut copy = File::create(server.data("copy")).expect("made");
    copy.write_all(&fs::read(&users).expect("there")).expect("written");
    fs::rename(server.data("copy"), &users).expect("replaced");
    let mut raw = server.raw();
    raw.say(&Person::new("zoe").registration());
    assert_eq!(raw.error(), "server_error");
    server.logs("it was replaced or removed while it was in use");
}
