//! Password changes: the server and the key file change together, only the owner can do it, and after any
//! interruption the account opens with a password that the owner knows.

use crate::support::{
    self, Client, Folder, Gate, NEW, PASSWORD, Person, Raw, Server, newcomer, refused, refused_start, until,
    user,
};
use secure_messenger::auth::PasswordKey;
use secure_messenger::crypto::key_file::{self, Login};
use secure_messenger::crypto::keys::IdentityKey;
use secure_messenger::crypto::secret::{Key, Password, random};
use secure_messenger::encoding::Fixed;
use secure_messenger::protocol::{Challenge, ClientMessage, PasswordChange, ServerMessage, VERSION};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;

fn password(text: &str) -> Password {
    Password::new(text.into())
}

#[test]
fn password_file_may_begin_with_a_byte_order_mark() {
    let server = Server::start();
    let home = Arc::new(Folder::new());
    let file = home.password_file(&format!("\u{feff}{PASSWORD}"));
    let alice = server.client("alice").ready();
    let again = ["--password-file", file.to_str().expect("UTF-8")];
    server.client_in(&alice.home, "alice", &again).ready().leaves();
}

// ---- raw requests of an attacker

/// A change to [`NEW`], signed by `signer`.
fn change(
    raw: &Raw,
    challenge: &Challenge,
    old: &str,
    person: &Person,
    signer: &IdentityKey,
) -> ClientMessage {
    let (key, exporter) = (PasswordKey::new(&password(NEW)), raw.channel.exporter());
    let change = key.replace(&person.name, challenge, exporter, &password(old), signer);
    ClientMessage::PasswordChange(Box::new(change.expect("acceptable rounds")))
}

/// The code of the refusal; `None` if the password is changed.
fn try_change(server: &Server, person: &Person, old: &str, signer: &IdentityKey) -> Option<String> {
    let mut raw = server.raw();
    let challenge = raw.challenged(person);
    let message = change(&raw, &challenge, old, person, signer);
    outcome(&mut raw, &message)
}

fn outcome(raw: &mut Raw, message: &ClientMessage) -> Option<String> {
    raw.say(message);
    match raw.answer() {
        Some(ServerMessage::PasswordChanged) => {
            assert!(raw.is_closed());
            None
        }
        Some(ServerMessage::Error(failure)) => Some(failure.code),
        _ => panic!("neither changed nor refused"),
    }
}

fn answer(raw: &Raw, challenge: &Challenge, person: &Person, text: &str) -> ClientMessage {
    ClientMessage::ChallengeResponse(Box::new(raw.response(person, challenge, text)))
}

/// PROTOCOL#response.
#[test]
fn response_for_another_purpose_or_channel_changes_no_password() {
    let server = Server::start();
    let (_online, alice) = newcomer(&server, "alice");
    // The last key has the bytes that end the fields of a login.
    let fingerprint = PasswordKey { login: Login::random(), key: Key::new(alice.session.fingerprint().0) };
    let keys = [support::quick_key(NEW), support::quick_key(NEW), fingerprint];
    let replace = |key: usize, challenge: &Challenge, exporter: &[u8], old: &str| {
        let change = keys[key].replace(&alice.name, challenge, exporter, &password(old), &alice.identity);
        change.expect("acceptable rounds")
    };
    let other = server.raw();
    // The thief has only the identity key and one response of the owner.
    type Owners<'a> = &'a dyn Fn(&Raw, &Challenge) -> Fixed<32>;
    let recorded = |challenge: &Challenge| Challenge {
        version: VERSION,
        nonce: Fixed(random()),
        salt: challenge.salt,
        rounds: challenge.rounds,
    };
    let owners: [Owners<'_>; 4] = [
        &|raw, challenge| replace(0, &recorded(challenge), raw.channel.exporter(), PASSWORD).response,
        &|raw, challenge| raw.response(&alice, challenge, PASSWORD).response,
        &|raw, challenge| replace(1, challenge, raw.channel.exporter(), PASSWORD).response,
        &|_, challenge| replace(0, challenge, other.channel.exporter(), PASSWORD).response,
    ];
    let attempt = |key: usize, response: Owners<'_>| {
        let mut raw = server.raw();
        let challenge = raw.challenged(&alice);
        let mut forged = replace(key, &challenge, raw.channel.exporter(), "not known");
        forged.response = response(&raw, &challenge);
        let outcome = outcome(&mut raw, &ClientMessage::PasswordChange(Box::new(forged)));
        assert_eq!(outcome.as_deref(), Some("login_failed"));
    };
    for response in owners {
        attempt(0, response);
    }
    assert!(server.opens(&alice, PASSWORD));
    attempt(2, owners[1]);
    let mut raw = server.raw();
    let challenge = raw.challenged(&alice);
    let mut forged = raw.response(&alice, &challenge, "not known");
    forged.response = replace(0, &challenge, raw.channel.exporter(), PASSWORD).response;
    raw.say(&ClientMessage::ChallengeResponse(Box::new(forged)));
    assert!(!matches!(raw.answer(), Some(ServerMessage::Session(_))), "it admits nobody");
    assert!(server.opens(&alice, PASSWORD));
}

/// PROTOCOL#password-proof.
#[test]
fn proof_for_another_password_or_channel_changes_nothing() {
    let server = Server::start();
    let (_online, alice) = newcomer(&server, "alice");
    let keys = [support::quick_key(NEW), support::quick_key(NEW)];
    let replace = |key: usize, challenge: &Challenge, exporter: &[u8], signer: &IdentityKey| {
        let change = keys[key].replace(&alice.name, challenge, exporter, &password(PASSWORD), signer);
        change.expect("acceptable rounds")
    };
    let (other, thief) = (server.raw(), IdentityKey::generate());
    // The thief has only the password and one proof of the owner.
    type Owners<'a> = &'a dyn Fn(&Raw, &Challenge) -> Fixed<256>;
    let owners: [Owners<'_>; 3] = [
        &|raw, challenge| raw.response(&alice, challenge, PASSWORD).proof,
        &|raw, challenge| replace(1, challenge, raw.channel.exporter(), &alice.identity).proof,
        &|_, challenge| replace(0, challenge, other.channel.exporter(), &alice.identity).proof,
    ];
    for proof in owners {
        let mut raw = server.raw();
        let challenge = raw.challenged(&alice);
        let mut forged = replace(0, &challenge, raw.channel.exporter(), &thief);
        forged.proof = proof(&raw, &challenge);
        let outcome = outcome(&mut raw, &ClientMessage::PasswordChange(Box::new(forged)));
        assert_eq!(outcome.as_deref(), Some("login_failed"));
    }
    assert!(server.opens(&alice, PASSWORD));
}

/// PROTOCOL#password_changed.
#[test]
fn change_is_on_disk_before_the_answer_and_ends_no_session() {
    let server = Server::start();
    let (mut online, alice) = newcomer(&server, "alice");
    assert_eq!(try_change(&server, &alice, PASSWORD, &alice.identity), None);
    assert!(online.is_usable());
    let line = "event=password_changed user=alice addr=127.0.0.1\n";
    until("it is logged", || server.log().matches(line).count() == 1);
    let server = Server::within(server.kill(), &[]);
    assert!(!server.opens(&alice, PASSWORD) && server.opens(&alice, NEW));
    assert_eq!(try_change(&server, &alice, NEW, &alice.identity), None);
    let server = Server::within(server.kill(), &[]);
    assert!(server.opens(&alice, NEW));
}

/// PROTOCOL#password-proof, PROTOCOL#password_change.
#[test]
fn session_password_or_key_alone_changes_no_password() {
    let server = Server::start();
    let (mut online, alice) = newcomer(&server, "alice");
    let before = fs::read(server.data("users.json")).expect("there");
    let thief = IdentityKey::generate();
    // A session gets no challenge, and the challenge of another connection is useless.
    let mut other = server.raw();
    let foreign = other.challenged(&alice);
    let message = change(&other, &foreign, PASSWORD, &alice, &alice.identity);
    assert_eq!(outcome(&mut online, &message).as_deref(), Some("already_logged_in"));
    assert!(online.is_usable());
    // The password without the key, the key without the password, an unknown account.
    let refused = Some("login_failed".to_string());
    assert_eq!(try_change(&server, &alice, PASSWORD, &thief), refused);
    assert_eq!(try_change(&server, &alice, "wrong horse battery", &alice.identity), refused);
    let own = Person { name: alice.name.clone(), identity: Arc::new(thief), session: alice.session.clone() };
    assert_eq!(try_change(&server, &own, PASSWORD, &own.identity), refused);
    assert_eq!(try_change(&server, &Person::new("nobody"), PASSWORD, &alice.identity), refused);
    assert_eq!(try_change(&server, &Person::new("ALICE"), PASSWORD, &alice.identity), refused);
    // A member is altered on the way.
    let alter: [fn(&mut PasswordChange); 3] = [
        |change| change.salt.0[0] ^= 1,
        |change| change.rounds += 1,
        |change| change.password_key = Key::new([7; 32]),
    ];
    until("the former lock is over", || server.opens(&alice, PASSWORD));
    for alter in alter {
        let mut raw = server.raw();
        let challenge = raw.challenged(&alice);
        let mut message = change(&raw, &challenge, PASSWORD, &alice, &alice.identity);
        if let ClientMessage::PasswordChange(change) = &mut message {
            alter(change);
        }
        assert_eq!(outcome(&mut raw, &message), refused);
    }
    let mut raw = server.raw();
    let cheap = raw.challenged(&alice);
    let mut message = change(&raw, &cheap, PASSWORD, &alice, &alice.identity);
    if let ClientMessage::PasswordChange(change) = &mut message {
        change.rounds = 99_999;
    }
    assert_eq!(outcome(&mut raw, &message).as_deref(), Some("bad_rounds"));
    assert_eq!(fs::read(server.data("users.json")).expect("there"), before);
    assert!(server.opens(&alice, PASSWORD));
}

/// PROTOCOL#password-proof, PROTOCOL#lockout.
#[test]
fn guesses_at_the_old_password_lock_the_name_like_failed_logins() {
    let server = Server::start();
    let (mut online, alice) = newcomer(&server, "alice");
    for name in ["alice", "nobody"] {
        for _ in 0..5 {
            let code = try_change(&server, &Person::new(name), "wrong horse battery", &alice.identity);
            assert_eq!(code.as_deref(), Some("login_failed"));
        }
        assert_eq!(refused(server.raw().challenge(&Person::new(name))).code, "locked");
    }
    assert!(online.is_usable());
    until("it is logged", || server.log().matches("event=locked ").count() == 2);
    let log = server.log();
    assert_eq!(log.matches("event=password_change_failed user=alice addr=127.0.0.1\n").count(), 5, "{log}");
}

/// PROTOCOL#lockout.
#[test]
fn change_clears_earlier_failures() {
    let server = Server::start();
    let (_online, alice) = newcomer(&server, "alice");
    let guesses = || {
        for _ in 0..4 {
            let code = try_change(&server, &alice, "wrong horse battery", &alice.identity);
            assert_eq!(code.as_deref(), Some("login_failed"));
        }
    };
    guesses();
    assert_eq!(try_change(&server, &alice, PASSWORD, &alice.identity), None);
    guesses();
}

/// PROTOCOL#registration-limit.
#[test]
fn changed_passwords_count_like_new_accounts() {
    let server = Server::with(&["--registrations", "2"]);
    let (_online, alice) = newcomer(&server, "alice");
    assert_eq!(try_change(&server, &alice, PASSWORD, &alice.identity), None);
    let code = try_change(&server, &alice, NEW, &alice.identity);
    assert_eq!(code.as_deref(), Some("too_many_requests"));
    assert!(server.opens(&alice, NEW));
}

/// PROTOCOL#challenge-once.
#[test]
fn challenge_accepts_one_change_on_its_own_connection() {
    let server = Server::start();
    let (_, alice) = newcomer(&server, "alice");
    let mut raw = server.raw();
    let first = raw.challenged(&alice);
    let good = change(&raw, &first, PASSWORD, &alice, &alice.identity);
    let bad = change(&raw, &first, "wrong horse battery", &alice, &alice.identity);
    raw.bytes(&[bad.encode(), good.encode()].concat());
    assert_eq!(raw.error(), "login_failed");
    assert!(raw.is_closed());
    let mut other = server.raw();
    assert_eq!(outcome(&mut other, &good).as_deref(), Some("no_challenge"));
    let mut other = server.raw();
    other.challenged(&alice);
    assert_eq!(outcome(&mut other, &good).as_deref(), Some("login_failed"));
    assert!(server.opens(&alice, PASSWORD));
}

/// PROTOCOL#password-race, PROTOCOL#login-race.
#[test]
fn crossing_change_and_login_accept_only_the_first() {
    let server = Server::start();
    let (_, alice) = newcomer(&server, "alice");
    // The client of this change may have ended, and its new key file may be gone.
    let mut late = server.raw();
    let begun = late.challenged(&alice);
    let late_change = change(&late, &begun, PASSWORD, &alice, &alice.identity);
    assert!(server.opens(&alice, PASSWORD));
    assert_eq!(outcome(&mut late, &late_change).as_deref(), Some("login_failed"));
    assert!(server.opens(&alice, PASSWORD));
    let mut late = server.raw();
    let begun = late.challenged(&alice);
    let late_login = answer(&late, &begun, &alice, PASSWORD);
    assert_eq!(try_change(&server, &alice, PASSWORD, &alice.identity), None);
    late.say(&late_login);
    assert_eq!(late.error(), "login_failed");
    assert!(server.opens(&alice, NEW));
}

// ---- real clients

/// A user's folder and the files in it.
struct Home(Arc<Folder>);

impl Home {
    /// Creates the account alice with [`PASSWORD`].
    fn new(server: &Server) -> Home {
        let client = server.client("alice").ready();
        let home = client.home.clone();
        client.leaves();
        Home(home)
    }

    fn client(&self, port: u16, text: &str) -> Client {
        self.client_with(port, text, &[])
    }

    fn client_with(&self, port: u16, text: &str, arguments: &[&str]) -> Client {
        let path = self.0.password_file(text);
        let arguments = [&["--password-file", path.to_str().expect("UTF-8")], arguments].concat();
        Client::within(self.0.clone(), port, "alice", true, &arguments)
    }

    /// Changes the password in a session of its own.
    fn change(&self, port: u16, old: &str, new: &str) {
        let mut client = self.client(port, old).ready();
        client.ask(&self.command(new), "* your password is changed");
        client.leaves();
    }

    /// Whether alice can log in with this password.
    fn logs_in(&self, port: u16, text: &str) -> bool {
        let (status, lines) = self.client(port, text).finish();
        assert_eq!(status == 0, lines.iter().any(|line| line.starts_with("* logged in as")), "{lines:#?}");
        status == 0
    }

    fn key(&self) -> PathBuf {
        self.0.path(".secure_messenger_client/keys/alice_private.key")
    }

    fn successor(&self) -> PathBuf {
        self.0.path(".secure_messenger_client/keys/alice_private.key.new")
    }

    /// The command that changes the password to `text`.
    fn command(&self, text: &str) -> String {
        format!("/passwd {}", self.0.password_file(text).display())
    }

    /// The key under another password, as a change writes it beside the key file.
    fn sealed(&self, old: &str, new: &str) -> String {
        let name = "alice".parse().expect("name");
        let text = fs::read(self.key()).expect("there");
        let identity = key_file::open(&text, &name, &password(old)).expect("opens");
        let sealed = key_file::seal(&identity, &name, &password(new));
        key_file::with_logins(sealed.as_bytes(), &[Login::random()]).expect("a key file")
    }

    fn logins(&self) -> Vec<Login> {
        key_file::logins(&fs::read(self.key()).expect("there")).expect("a list")
    }
}

/// PROTOCOL#password-file.
#[test]
fn only_the_new_password_opens_key_file_and_account() {
    let server = Server::start();
    let home = Home::new(&server);
    let before = fs::read(home.key()).expect("there");
    let mut client = home.client(server.port, PASSWORD).ready();
    client.ask(&home.command(NEW), "* your password is changed");
    // The session continues.
    client.ask("/users", "* 1 online: alice (you)");
    client.leaves();
    assert!(fs::read(home.key()).expect("there") != before && !home.successor().exists());
    assert!(!home.logs_in(server.port, PASSWORD) && home.logs_in(server.port, NEW));
    // Change it back; the end of the input waits for the answer.
    let mut client = home.client(server.port, NEW).ready();
    client.say(&home.command(PASSWORD));
    let (status, lines) = client.finish();
    assert!(status == 0 && lines.iter().any(|line| line.contains("password is changed")), "{lines:#?}");
    assert!(home.logs_in(server.port, PASSWORD) && !home.logs_in(server.port, NEW));
    assert_eq!(home.logins().len(), 1);
    // The old key file does not help.
    let logins = home.logins();
    let old = home.sealed(PASSWORD, "hunter2-old");
    fs::write(home.key(), key_file::with_logins(old.as_bytes(), &logins).expect("a key file"))
        .expect("written");
    assert!(!home.logs_in(server.port, "hunter2-old"));
}

#[test]
fn new_password_replaces_a_linked_key_file_and_not_its_link() {
    let server = Server::start();
    let home = Home::new(&server);
    let kept = home.0.path("kept.key");
    fs::rename(home.key(), &kept).and_then(|()| symlink(&kept, home.key())).expect("linked");
    home.change(server.port, PASSWORD, NEW);
    assert_eq!(fs::read_link(home.key()).expect("still a link"), kept);
    assert!(home.logs_in(server.port, NEW) && !home.logs_in(server.port, PASSWORD));
}

/// PROTOCOL#password, PROTOCOL#password-forms.
#[test]
fn password_opens_an_account_in_either_normal_form() {
    let (composed, decomposed) = ("Gr\u{fc}\u{df}e an alle", "Gru\u{308}\u{df}e\u{a0}an alle");
    for (first, second) in [(composed, decomposed), (decomposed, composed)] {
        let server = Server::start();
        let home = Home(Arc::new(Folder::new()));
        home.client_with(server.port, first, &["--register"]).ready().leaves();
        assert!(home.logs_in(server.port, second) && home.logs_in(server.port, first));
        // A wrong password is one guess at most. Here it is none, because it does not open the key file.
        assert!(!home.logs_in(server.port, "Gr\u{fb}\u{df}e an alle"));
        // A program that knows no other forms opens the file with the prepared password.
        let text = fs::read(home.key()).expect("there");
        key_file::open(&text, &"alice".parse().expect("name"), &password(composed)).expect("opens");
        assert!(!server.log().contains("login_failed"), "{}", server.log());
    }
}

/// PROTOCOL#password-forms.
#[test]
fn account_of_an_older_client_opens_with_either_form() {
    let (composed, decomposed) = ("Gr\u{fc}\u{df}e an alle", "Gru\u{308}\u{df}e an alle");
    let server = Server::start();
    let as_typed = || password(decomposed).forms().nth(1).expect("another form");
    let home = Home(Arc::new(Folder::new()));
    let alice = Person::new("alice");
    let mut raw = server.raw();
    let key = PasswordKey::new(&as_typed());
    raw.say(&ClientMessage::Register(key.register(&alice.name, alice.identity.public())));
    assert!(matches!(raw.answer(), Some(ServerMessage::Registered)));
    fs::create_dir_all(home.key().parent().expect("a folder")).expect("made");
    let file = key_file::seal(&alice.identity, &alice.name, &as_typed());
    secure_messenger::disk::write_new(&home.key(), file.as_bytes()).expect("written");
    assert!(home.logs_in(server.port, decomposed) && home.logs_in(server.port, composed));
    // A registration finds the existing account.
    home.client_with(server.port, composed, &["--register"]).ready().leaves();
    // A change to the same password keeps its form; a new password has the new form.
    let forms = [(composed, decomposed), ("N\u{e9}o 123", "Ne\u{301}o\u{a0}123")];
    for (at, (composed, decomposed)) in forms.into_iter().enumerate() {
        home.change(server.port, forms[0].0, decomposed);
        let text = fs::read(home.key()).expect("there");
        let form = if at == 0 { as_typed() } else { password(composed) };
        key_file::open(&text, &alice.name, &form).expect("opens");
        assert!(home.logs_in(server.port, decomposed) && home.logs_in(server.port, composed));
    }
    assert!(!server.log().contains("login_failed"), "{}", server.log());
}

/// PROTOCOL#password, PROTOCOL#password-file.
#[test]
fn wrong_password_change_is_reported_and_changes_nothing() {
    let server = Server::start();
    let home = Home::new(&server);
    let before = fs::read(home.key()).expect("there");
    let mut client = home.client(server.port, PASSWORD).ready();
    client.ask("/passwd", "! your password was not changed: name a file");
    client.ask("/passwd /no/such file", "! your password was not changed: /no/such file: ");
    client.ask(&home.command("short"), "at least 6 characters");
    let old = home.0.password_file(PASSWORD);
    fs::write(&old, "not the old password").expect("written");
    client.ask(&home.command(NEW), "! your password was not changed: the old password is wrong");
    fs::write(&old, PASSWORD).expect("written");
    fs::write(home.successor(), "of another client").expect("written");
    client.ask(&home.command(NEW), "! an earlier change of your password is not complete");
    fs::remove_file(home.successor()).expect("there");
    let folder = fs::File::open(home.key().parent().expect("a folder")).expect("opens");
    folder.try_lock().expect("free");
    client.ask(&home.command(NEW), "another client is using this key file: try again");
    drop(folder);
    for _ in 0..5 {
        let nobody = Person::new("alice");
        let code = try_change(&server, &nobody, "wrong horse battery", &nobody.identity);
        assert_eq!(code.as_deref(), Some("login_failed"));
    }
    client.ask(&home.command(NEW), "! your password was not changed: too many failed logins");
    let (status, lines) = client.finish();
    assert!(status == 1 && lines.iter().all(|line| !line.contains("is changed")), "{lines:#?}");
    assert!(fs::read(home.key()).expect("there") == before && !home.successor().exists());
}

/// PROTOCOL#password-files.
#[test]
fn change_cut_before_the_server_has_it_keeps_the_old_password() {
    let server = Server::start();
    let home = Home::new(&server);
    let key = fs::read(home.key()).expect("there");
    fs::write(home.successor(), home.sealed(PASSWORD, NEW)).expect("written");
    // Trying the other password loses nothing.
    assert!(!home.logs_in(server.port, NEW) && home.successor().exists());
    assert!(home.logs_in(server.port, PASSWORD) && !home.successor().exists());
    assert_eq!(fs::read(home.key()).expect("there"), key);
    assert!(!home.logs_in(server.port, NEW));
    // A torn new file, or one that another client is writing, does not prevent a login.
    fs::write(home.successor(), "{\"version\":1,\"kd").expect("written");
    assert!(home.logs_in(server.port, PASSWORD));
    fs::write(home.successor(), home.sealed(PASSWORD, NEW)).expect("written");
    let folder = fs::File::open(home.key().parent().expect("a folder")).expect("opens");
    folder.try_lock().expect("free");
    assert!(home.logs_in(server.port, PASSWORD) && home.successor().exists());
    drop(folder);
    // A login on another server does not decide about a change on this one.
    let sealed = format!("{{\"server\":\"elsewhere:1315\",{}", &home.sealed(PASSWORD, NEW)[1..]);
    fs::write(home.successor(), sealed).expect("written");
    assert!(home.logs_in(server.port, PASSWORD) && home.successor().exists());
}

/// PROTOCOL#password-files.
#[test]
fn change_cut_after_the_server_has_it_keeps_the_new_password() {
    let server = Server::start();
    let home = Home::new(&server);
    let old = fs::read(home.key()).expect("there");
    home.change(server.port, PASSWORD, NEW);
    let new = fs::read(home.key()).expect("there");
    let crashed = || {
        fs::write(home.successor(), &new).expect("written");
        fs::write(home.key(), &old).expect("written");
    };
    crashed();
    assert!(!home.logs_in(server.port, PASSWORD) && home.successor().exists());
    assert!(home.logs_in(server.port, NEW) && !home.successor().exists());
    assert_eq!(fs::read(home.key()).expect("there"), new);
    // The new file alone is a key, too: a registration creates no other one.
    for arguments in [&[][..], &["--register"]] {
        crashed();
        fs::remove_file(home.key()).expect("there");
        home.client_with(server.port, NEW, arguments).leaves();
        assert!(fs::read(home.key()).expect("there") == new && !home.successor().exists());
    }
}

/// PROTOCOL#password-file, PROTOCOL#password-files.
#[test]
fn kill_during_a_change_leaves_one_working_password() {
    let mut server = Server::start();
    // Without a mailbox, nothing but the change is sent after the login.
    let client = Client::start(&server, "alice", &["--register", "--no-mail"]).ready();
    let home = Home(client.home.clone());
    client.leaves();
    let gate = Gate::before(&server);
    let log_in = |text| home.client_with(gate.port, text, &["--no-mail"]).ready();
    // Measure what a change sends before its last line: only that line is held.
    let mut client = log_in(PASSWORD);
    let before = gate.passed();
    client.ask(&home.command(NEW), "* your password is changed");
    let whole = gate.passed() - before;
    client.leaves();
    let (mut raw, alice) = (server.raw(), Person::new("alice"));
    let any = raw.challenged(&alice);
    let line = change(&raw, &any, "any", &alice, &alice.identity).encode().len() as u64;
    // The margin of 100 bytes is for the TLS record; the request for the challenge is longer.
    let beginning = whole - line - 100;
    let (mut now, mut next) = (NEW, PASSWORD);
    for round in 0..6 {
        let mut client = log_in(now);
        let key = fs::read(home.key()).expect("there");
        let held = round < 2;
        if held {
            gate.hold_after(beginning);
        }
        client.say(&home.command(next));
        if held {
            until("the new file is on disk, and the line is held", || home.successor().exists());
        } else {
            let changed = || home.successor().exists() || fs::read(home.key()).expect("there") != key;
            until("the change is in progress", || round > 3 || changed());
        }
        if round % 2 == 0 {
            let _ = client.child.kill();
            client.child.wait().expect("it ends");
        } else {
            let port = server.port.to_string();
            server = Server::within(server.kill(), &["--port", &port]);
            gate.open();
            let lines = client.finish().1;
            assert!(lines.iter().any(|line| line.contains("password")), "{lines:#?}");
        }
        gate.open();
        let opens = |text: &&str| home.logs_in(gate.port, text);
        let opening: Vec<&str> = [now, next].into_iter().filter(opens).collect();
        assert_eq!(opening.len(), 1, "round {round}: {opening:?}");
        assert!(!home.successor().exists() && opens(&opening[0]) && home.logins().len() == 1);
        if opening[0] == next {
            (now, next) = (next, now);
        }
    }
}

// ---- the key file's list of logins

const UNEXPECTED: &str =
    "this server does not ask for your password as your key file expects, so nothing was sent";

/// The output of a client that refused the challenge.
fn refusal(client: Client) -> String {
    client.ends(1, "").concat()
}

/// PROTOCOL#known-logins.
#[test]
fn copied_key_file_logs_in_until_the_password_changes_elsewhere() {
    let server = Server::start();
    let (home, other) = (Home::new(&server), Home(Arc::new(Folder::new())));
    fs::create_dir_all(other.key().parent().expect("a folder")).expect("made");
    fs::copy(home.key(), other.key()).expect("copied");
    let text = fs::read(other.key()).expect("there");
    assert!(other.logs_in(server.port, PASSWORD) && fs::read(other.key()).expect("there") == text);
    home.change(server.port, PASSWORD, NEW);
    let said = refusal(other.client(server.port, PASSWORD));
    let path = other.key().display().to_string();
    assert!(said.contains(UNEXPECTED) && said.contains("the password was changed elsewhere"), "{said}");
    assert!(said.contains(&format!("copy the key file from there to {path}")), "{said}");
    assert!(!server.log().contains("login_failed"), "it is not a guess");
    fs::copy(home.key(), other.key()).expect("copied");
    assert!(other.logs_in(server.port, NEW));
}

/// PROTOCOL#known-logins, PROTOCOL#logins.
#[test]
fn one_key_file_keeps_the_logins_of_several_servers() {
    let servers = [Server::start(), Server::start()];
    let home = Home::new(&servers[0]);
    let first = home.logins();
    let register = |server: &Server| home.client_with(server.port, PASSWORD, &["--register"]);
    assert_eq!(register(&servers[1]).finish().0, 0);
    assert!(home.logins().len() == 2 && home.logins()[1] == first[0], "the last used is the first");
    for server in [0, 1, 0] {
        assert!(home.logs_in(servers[server].port, PASSWORD) && home.logins().len() == 2);
    }
    assert_eq!(home.logins()[0], first[0]);
    // A change on one server, and back, leaves the entry of the other.
    for (old, new) in [(PASSWORD, NEW), (NEW, PASSWORD)] {
        home.change(servers[0].port, old, new);
    }
    assert!(home.logs_in(servers[1].port, PASSWORD) && home.logs_in(servers[0].port, PASSWORD));
    // Of eight accounts, these two are the least recently used.
    let mut logins = [[(); 6].map(|()| Login::random()).to_vec(), home.logins()].concat();
    let list = |logins: &[Login]| {
        let text = fs::read(home.key()).expect("there");
        fs::write(home.key(), key_file::with_logins(&text, logins).expect("a list")).expect("written");
    };
    list(&logins);
    assert!(home.logs_in(servers[1].port, PASSWORD));
    logins.rotate_right(1);
    assert_eq!(home.logins(), logins);
    // A refused registration (the name is taken there) takes no place in the list.
    let third = Server::start();
    newcomer(&third, "ALICE");
    let said = refusal(register(&third));
    assert!(said.contains("your account is not on this server") && home.logins() == logins, "{said}");
    // A ninth entry replaces the least recently used one.
    let fourth = Server::start();
    assert_eq!(register(&fourth).finish().0, 0);
    assert!(home.logins().len() == 8 && home.logins()[1..] == logins[..7]);
    assert!(home.logs_in(servers[1].port, PASSWORD));
    let said = refusal(home.client(servers[0].port, PASSWORD));
    assert!(said.contains(UNEXPECTED), "{said}");
}

/// PROTOCOL#known-logins.
#[test]
fn lost_or_restored_account_is_registered_again_with_its_key() {
    let server = Server::start();
    let home = Home::new(&server);
    let records = fs::read(server.data("users.json")).expect("there");
    home.change(server.port, PASSWORD, NEW);
    // Restore a backup from before the change.
    let folder = server.kill();
    fs::write(folder.path("data/users.json"), records).expect("written");
    let server = Server::within(folder, &[]);
    let register = |server: &Server| home.client_with(server.port, NEW, &["--register"]);
    let said = refusal(home.client(server.port, NEW));
    assert!(said.contains("ask the operator to remove the account, then create it again"), "{said}");
    assert!(refusal(register(&server)).contains("your account is not on this server"));
    let key = |home: &Home| {
        key_file::open(&fs::read(home.key()).expect("there"), &"alice".parse().expect("name"), &password(NEW))
    };
    let before = key(&home).expect("opens").public().fingerprint();
    let folder = server.kill();
    assert_eq!(user(&folder, &["remove", "alice"]).0, 0);
    let server = Server::within(folder, &[]);
    let said = refusal(home.client(server.port, NEW));
    assert!(said.contains("If you have no account on this server, create it"), "{said}");
    assert_eq!(register(&server).finish().0, 0);
    assert!(home.logs_in(server.port, NEW) && home.logins().len() == 2);
    assert!(key(&home).expect("opens").public().fingerprint() == before, "nobody sees another key");
}

// ---- the server's users.json

#[test]
fn start_removes_superseded_records_and_keeps_the_old_file() {
    let server = Server::start();
    let (_, alice) = newcomer(&server, "alice");
    let (_, bob) = newcomer(&server, "bob");
    assert_eq!(try_change(&server, &alice, PASSWORD, &alice.identity), None);
    let home = server.kill();
    let (path, former) = (home.path("data/users.json"), home.path("data/users.json.old"));
    let text = fs::read_to_string(&path).expect("there");
    assert_eq!(text.lines().count(), 3);
    // A few superseded lines do not cause a rewrite.
    let server = Server::within(home, &[]);
    assert!(server.is_silent_about("rewritten"));
    let home = server.kill();
    assert!(fs::read_to_string(&path).expect("there") == text && !former.exists());
    let first = text.lines().next().expect("alice's first");
    let many = format!("{}{text}", format!("{first}\n").repeat(99));
    fs::write(&path, &many).expect("written");
    // A crash during a rewrite may leave such a file.
    fs::write(home.path("data/users.json.tmp"), "half").expect("written");
    let server = Server::within(home, &[]);
    server.told("rewritten without 100 superseded lines");
    assert_eq!(fs::read_to_string(&former).expect("kept"), many);
    assert_eq!(fs::read_to_string(&path).expect("there").lines().count(), 2);
    assert!(!server.data("users.json.tmp").exists());
    assert!(server.opens(&alice, NEW) && !server.opens(&alice, PASSWORD) && server.opens(&bob, PASSWORD));
    // Later records go to the new file, which no second server can open.
    newcomer(&server, "carol");
    assert_eq!(try_change(&server, &bob, PASSWORD, &bob.identity), None);
    let words = refused_start(&server.home, &[]);
    assert!(words.contains("another server is using this folder"), "{words}");
    let server = Server::within(server.kill(), &[]);
    server.told("(3 accounts)");
    assert!(server.is_silent_about("rewritten"));
    assert!(server.opens(&alice, NEW) && server.opens(&bob, NEW));
    assert!(server.opens(&Person::new("carol"), PASSWORD));
    // The report of damage names the remedy.
    let home = server.kill();
    fs::write(&path, "damaged\n").expect("written");
    let words = refused_start(&home, &[]);
    assert!(words.contains("line 1") && words.contains("users.json.old"), "{words}");
}
