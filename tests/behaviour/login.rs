//! Adversaries of the login: a man in the middle, a thief of `users.json`, an enumerator of names, a guesser of
//! passwords, a replayer. Also what the real client reports when a login fails.

use crate::support::{
    self, Client, Folder, PASSWORD, Person, Raw, Server, newcomer, refused, run_client, until,
};
use miniserde::json;
use secure_messenger::auth::PasswordKey;
use secure_messenger::clock;
use secure_messenger::crypto::keys::{IdentityKey, SessionKey};
use secure_messenger::crypto::primitives;
use secure_messenger::crypto::secret::{Key, Password, random};
use secure_messenger::crypto::{Fields, label};
use secure_messenger::encoding::{Bytes, Fixed};
use secure_messenger::protocol::{Challenge, ClientMessage, LoginRequest, ServerMessage, VERSION};
use secure_messenger::wire::certificate;
use secure_messenger::wire::tls::{self, Channel, Reader, Received};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// A man in the middle, who terminates the client's TLS with a certificate of their own and relays every line
/// unchanged. Serves `count` connections.
fn man_in_the_middle(server: &Server, count: usize) -> (u16, Arc<Folder>) {
    let folder = Arc::new(Folder::new());
    certificate::prepare(&folder.0, clock::now_ms()).expect("a certificate");
    let acceptor = server.tls.then(|| tls::acceptor(&folder.0).expect("an acceptor").0);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let (server_port, tls) = (server.port, server.tls);
    thread::spawn(move || {
        for socket in listener.incoming().take(count) {
            let (socket, acceptor) = (Arc::new(socket.expect("accepted")), acceptor.clone());
            thread::spawn(move || {
                let end = Instant::now() + support::DEADLINE;
                let Ok(client) = Channel::accept(acceptor, socket, end) else {
                    return;
                };
                let upstream = TcpStream::connect(("127.0.0.1", server_port)).expect("the server accepts");
                let upstream = Raw::over(upstream, tls);
                assert_eq!(client.exporter() == upstream.channel.exporter(), !tls, "two channels");
                let (client, upstream) = (Arc::new(client), upstream.channel.clone());
                let (back, forth) = (client.clone(), upstream.clone());
                thread::spawn(move || relay(&upstream, &back));
                relay(&client, &forth);
            });
        }
    });
    (port, folder)
}

fn pass_on(bytes: &[u8], to: &Channel) {
    let mut wire = Vec::new();
    if to.encrypt(bytes, &mut wire).is_ok() {
        let _ = to.send_by(&wire, Instant::now() + support::DEADLINE);
    }
}

fn relay(from: &Channel, to: &Channel) {
    let (mut reader, mut plain) = (Reader::default(), Vec::new());
    while let Ok(Received::Some | Received::Silence) =
        from.receive(&mut reader, &mut plain, Duration::from_secs(5))
    {
        pass_on(&plain, to);
        plain.clear();
    }
    pass_on(&plain, to);
    to.close();
}

/// PROTOCOL#login-proof, PROTOCOL#exporter.
#[test]
fn man_in_the_middle_completes_no_login_at_first_contact() {
    let server = Server::start();
    let (port, _folder) = man_in_the_middle(&server, 3);
    let (mut direct, alice) = newcomer(&server, "alice");
    // The relay works: a registration passes through it, and a login up to its last step.
    let through = || Raw::over(TcpStream::connect(("127.0.0.1", port)).expect("connected"), true);
    let mut raw = through();
    let bob = Person::new("bob");
    raw.register(&bob);
    let failure = refused(raw.log_in(&bob));
    assert_eq!(failure.code, "login_failed");
    let mut raw = through();
    assert_eq!(refused(raw.log_in(&alice)).code, "login_failed");
    // The real client accepts the relay's certificate at first contact, and its login fails, too.
    let home = server.client("carol").ready().home.clone();
    Client::within(home, port, "carol", true, &[]).ends(1, "login failed");
    // It ended no session, and without the man in the middle the same users log in.
    assert!(direct.is_usable());
    server.raw().logs_in(&bob);
}

/// PROTOCOL#exporter.
#[test]
fn relay_of_a_login_passes_only_without_tls() {
    let server = Server::with(&["--no-tls"]);
    let (port, _folder) = man_in_the_middle(&server, 1);
    let (_direct, alice) = newcomer(&server, "alice");
    let mut raw = Raw::over(TcpStream::connect(("127.0.0.1", port)).expect("connected"), false);
    raw.logs_in(&alice);
}

/// A login with this session key by a thief who has only the identity key, or only the password. The owner made the
/// other half, a response or a proof, for this exporter and their own session key, and for another nonce if it
/// `is_old`.
fn relayed(
    server: &Server,
    alice: &Person,
    has_password: bool,
    exporter: &[u8],
    key: &SessionKey,
    is_old: bool,
) -> Option<ServerMessage> {
    let mut raw = server.raw();
    let challenge = raw.challenged(alice);
    let nonce = if is_old { Fixed(random()) } else { challenge.nonce };
    let answered = Challenge { version: VERSION, nonce, salt: challenge.salt, rounds: challenge.rounds };
    let certified = |key: &SessionKey| alice.identity.certify(&alice.name, key, clock::now_ms());
    let known = PasswordKey::derive(&Password::new(PASSWORD.into()), &challenge).expect("acceptable rounds");
    let session = (&*alice.session, certified(&alice.session));
    let owners = known.log_in(&alice.name, &answered, exporter, &alice.identity, session);
    let session = (key, certified(key));
    let (unknown, stranger) = (support::quick_key("the thief does not know it"), IdentityKey::generate());
    let half = if has_password { (&known, &stranger) } else { (&unknown, &*alice.identity) };
    let mut forged = half.0.log_in(&alice.name, &challenge, raw.channel.exporter(), half.1, session);
    if has_password {
        forged.proof = owners.proof;
    } else {
        forged.response = owners.response;
    }
    raw.say(&ClientMessage::ChallengeResponse(Box::new(forged)));
    raw.answer()
}

/// PROTOCOL#response.
#[test]
fn response_of_another_channel_or_session_key_opens_nothing() {
    relayed_half_opens_nothing(false);
}

/// PROTOCOL#login-proof.
#[test]
fn proof_of_another_channel_or_session_key_opens_nothing() {
    relayed_half_opens_nothing(true);
}

fn relayed_half_opens_nothing(has_password: bool) {
    // Another key that the owner has certified: a thief of the password has stolen it with its certificate.
    let own = SessionKey::generate();
    // The owner logs in on the thief's server, which relays the nonce and salt of the real one.
    let server = Server::start();
    let (_raw, alice) = newcomer(&server, "alice");
    let other = server.raw();
    for key in [&own, &alice.session] {
        let answer = relayed(&server, &alice, has_password, other.channel.exporter(), key, false);
        assert_eq!(refused(answer).code, "login_failed");
    }
    // Without TLS, all channels have the same exporter, and the thief is in the middle.
    let server = Server::with(&["--no-tls"]);
    let (_raw, alice) = newcomer(&server, "alice");
    for (key, is_old) in [(&own, false), (&*alice.session, true)] {
        assert_eq!(refused(relayed(&server, &alice, has_password, &[], key, is_old)).code, "login_failed");
    }
    // With all of it, the thief takes part in the owner's login, and cannot read its messages.
    let answer = relayed(&server, &alice, has_password, &[], &alice.session, false);
    assert!(matches!(answer, Some(ServerMessage::Session(_))));
}

#[derive(miniserde::Deserialize)]
struct Stolen {
    password_key: Key,
}

/// PROTOCOL#login-failed.
#[test]
fn thief_of_users_json_cannot_log_in() {
    let server = Server::start();
    let (_raw, alice) = newcomer(&server, "alice");
    let text = std::fs::read_to_string(server.data("users.json")).expect("the thief reads it");
    let stolen: Stolen = json::from_str(text.trim_end()).expect("one record");
    let own_key = IdentityKey::generate();
    // The thief offers the owner's public key or one of their own, and signs with either.
    let attempt = |offered: &IdentityKey, signing: &IdentityKey| {
        let mut raw = server.raw();
        let public_key = Bytes(offered.public().spki());
        let username = alice.name.clone();
        raw.say(&ClientMessage::LoginRequest(LoginRequest { version: VERSION, username, public_key }));
        let Some(ServerMessage::Challenge(challenge)) = raw.answer() else { panic!("no challenge") };
        let certificate = signing.certify(&alice.name, &alice.session, clock::now_ms());
        let (exporter, session) = (raw.channel.exporter(), (&*alice.session, certificate));
        let key = PasswordKey::new(&Password::new("the thief does not know it".into()));
        let mut response = key.log_in(&alice.name, &challenge, exporter, signing, session);
        let answered = Fields::new(label::LOGIN_RESPONSE)
            .bytes(alice.name.as_str().as_bytes())
            .bytes(&challenge.nonce.0)
            .bytes(exporter)
            .bytes(&alice.session.fingerprint().0);
        response.response = Fixed(primitives::hmac(&stolen.password_key, &answered.finish()));
        raw.say(&ClientMessage::ChallengeResponse(Box::new(response)));
        raw.answer()
    };
    assert_eq!(refused(attempt(&alice.identity, &own_key)).code, "login_failed");
    assert_eq!(refused(attempt(&own_key, &own_key)).code, "login_failed");
    assert_eq!(refused(attempt(&own_key, &alice.identity)).code, "login_failed");
    // The stolen record is real: together with the identity key it opens the account.
    assert!(matches!(attempt(&alice.identity, &alice.identity), Some(ServerMessage::Session(_))));
}

/// The lines of a failed login, with the values that differ between logins blanked out.
fn shape(server: &Server, person: &Person) -> Vec<String> {
    let mut raw = server.raw();
    raw.say(&person.login_request());
    let first = raw.line().expect("a challenge");
    assert!(first.contains("\"challenge\""), "{first}");
    raw.say(&person.false_response());
    let blank = |field: &str, line: &str| {
        let line = format!("{line}\n");
        support::with_field(line.as_bytes(), field, "\"\"")
    };
    vec![
        blank("nonce", &blank("salt", &first)),
        first.len().to_string(),
        raw.line().expect("a refusal"),
        raw.line().unwrap_or("closed".into()),
    ]
}

/// PROTOCOL#unknown-name, PROTOCOL#login-failed.
#[test]
fn unknown_and_known_names_look_alike() {
    let server = Server::start();
    let (_raw, alice) = newcomer(&server, "alice");
    let nobody = Person::new("nobody");
    let known = shape(&server, &alice);
    assert_eq!(known, shape(&server, &nobody));
    assert!(known[2].contains("\"login_failed\""), "{known:#?}");
    let salt = |server: &Server, person: &Person| server.raw().challenged(person).salt;
    let (of_alice, of_nobody) = (salt(&server, &alice), salt(&server, &nobody));
    assert!(of_alice != of_nobody);
    assert!(of_alice == salt(&server, &alice) && of_nobody == salt(&server, &nobody));
    let server = Server::within(server.kill(), &[]);
    assert!(of_alice == salt(&server, &alice), "after a restart");
    assert!(of_nobody == salt(&server, &nobody), "after a restart");
    // Nonces never repeat.
    let nonce = || server.raw().challenged(&nobody).nonce;
    assert!(nonce() != nonce());
}

#[test]
fn salts_in_other_letter_case_do_not_reveal_a_name() {
    let server = Server::start();
    newcomer(&server, "alice");
    let salt = |name: &str| server.raw().challenged(&Person::new(name)).salt;
    let same = |lower: &str, upper: &str| salt(lower) == salt(upper);
    assert_eq!(same("alice", "ALICE"), same("nobody", "NOBODY"));
    assert_eq!(same("ALICE", "Alice"), same("NOBODY", "Nobody"));
}

/// PROTOCOL#lockout.
#[test]
fn five_failures_lock_a_name_whether_or_not_it_exists() {
    let server = Server::start();
    let (mut online, alice) = newcomer(&server, "alice");
    let mut words = Vec::new();
    for name in ["alice", "nobody"] {
        let upper = name.to_uppercase();
        for spelling in [name, &upper, name, &upper, name] {
            assert_eq!(server.fail(&Person::new(spelling)).code, "login_failed");
        }
        for spelling in [name, &upper] {
            let failure = server.fail(&Person::new(spelling));
            assert_eq!(failure.code, "locked");
            let wait = failure.retry_after.expect("how long");
            assert!((800..=901).contains(&wait), "{wait} s");
            words.push(failure.message);
        }
    }
    assert!(words.iter().all(|word| *word == words[0]), "{words:#?}");
    // The right password does not help, no other name is locked, and sessions continue.
    assert_eq!(refused(server.raw().log_in(&alice)).code, "locked");
    newcomer(&server, "bob");
    assert!(online.is_usable());
    until("the locks are logged", || server.log().matches("event=locked ").count() >= 2);
    let log = server.log();
    for event in ["event=locked user=alice addr=127.0.0.1", "event=locked user=nobody addr=127.0.0.1"] {
        assert_eq!(log.matches(event).count(), 1, "{log}");
    }
    // A restart does not unlock the name.
    let server = Server::within(server.kill(), &[]);
    for name in ["alice", "NOBODY"] {
        let failure = server.fail(&Person::new(name));
        assert_eq!(failure.code, "locked", "{name}");
        assert!((700..=901).contains(&failure.retry_after.expect("how long")));
    }
    newcomer(&server, "carol");
}

/// Logs in with a certificate of this `created`, and returns the `newest` of the answer.
fn log_in_at(raw: &mut Raw, person: &Person, created: u64) -> u64 {
    let challenge = raw.challenged(person);
    let mut response = raw.response(person, &challenge, PASSWORD);
    let certificate = person.identity.certify(&person.name, &person.session, created);
    (response.created, response.certificate) = (created, certificate.certificate);
    raw.say(&ClientMessage::ChallengeResponse(Box::new(response)));
    match raw.answer() {
        Some(ServerMessage::Session(session)) => session.newest,
        _ => panic!("not logged in"),
    }
}

/// Replaces the session key by a new one with a certificate of this `created`, and returns the answer.
fn renew_at(raw: &mut Raw, person: &Person, created: u64) -> Option<ServerMessage> {
    let certificate = person.identity.certify(&person.name, &SessionKey::generate(), created);
    raw.say(&ClientMessage::Renew(Box::new(certificate)));
    raw.answer()
}

/// In milliseconds.
const HOUR: u64 = 3_600_000;

/// PROTOCOL#newest.
#[test]
fn only_the_owner_learns_of_its_newest_certificate() {
    let server = Server::start();
    let (alice, now) = (Person::new("alice"), clock::now_ms());
    let mut raw = server.raw();
    raw.register(&alice);
    assert_eq!(log_in_at(&mut raw, &alice, now - HOUR), 0);
    assert_eq!(log_in_at(&mut server.raw(), &alice, now - HOUR - 1), now - HOUR);
    let mut raw = server.raw();
    assert_eq!(log_in_at(&mut raw, &alice, now - HOUR), now - HOUR);
    match renew_at(&mut raw, &alice, now + HOUR) {
        Some(ServerMessage::Session(session)) => assert_eq!(session.newest, now - HOUR),
        _ => panic!("not renewed"),
    }
    for created in [now + HOUR - 1, now - 3 * HOUR, now + 3 * HOUR] {
        let failure = refused(renew_at(&mut raw, &alice, created));
        assert_eq!((failure.code.as_str(), failure.newest), ("bad_key", Some(now + HOUR)));
    }
    raw.say(&ClientMessage::Logout);
    assert!(raw.is_closed());
    let mut raw = server.raw();
    raw.say(&alice.login_request());
    let challenge = raw.line().expect("a challenge");
    assert!(challenge.contains("\"nonce\"") && !challenge.contains("newest"), "{challenge}");
    assert_eq!(log_in_at(&mut server.raw(), &alice, now), now + HOUR);
    let bob = Person::new("bob");
    let mut raw = server.raw();
    raw.register(&bob);
    assert_eq!(log_in_at(&mut raw, &bob, now), 0);
}

/// The `created` that the server shows of `name` to `raw`.
fn shown_created(raw: &mut Raw, name: &str) -> u64 {
    raw.acknowledge();
    raw.keys(&[name]).keys[0].created.expect("online")
}

/// PROTOCOL#newest.
#[test]
fn owner_whose_clock_was_ahead_still_gets_messages() {
    let server = Server::start();
    let (mut carol, _) = newcomer(&server, "carol");
    let mut bob = server.client("bob").ready();
    let (alice, mut raw) = (Person::new("alice"), server.raw());
    raw.register(&alice);
    let ahead = clock::now_ms() + HOUR;
    log_in_at(&mut raw, &alice, ahead);
    let hears = |raw: &mut Raw| matches!(raw.answer(), Some(ServerMessage::EncryptedMessage(_)));
    bob.expect("* alice is online");
    bob.say("/msg alice one");
    assert!(hears(&mut raw));
    raw.acknowledge();
    bob.expect("<bob -> alice> one");
    // The clock is corrected.
    let home = alice.home();
    let mut client = server.client_in(&home, "alice", &[]).ready();
    until("it is renewed", || shown_created(&mut carol, "alice") == ahead + 1);
    bob.say("/msg alice two");
    client.expect("<bob -> alice> two");
    // Another machine's clock is behind.
    let mut raw = server.raw();
    let newest = log_in_at(&mut raw, &alice, clock::now_ms() - HOUR);
    assert_eq!(newest, ahead + 1);
    assert!(matches!(renew_at(&mut raw, &alice, newest + 1), Some(ServerMessage::Session(_))));
    bob.say("/msg alice three");
    assert!(hears(&mut raw));
    bob.expect("<bob -> alice> three");
    let (_, lines) = bob.finish();
    assert!(!lines.iter().any(|line| line.contains("set back")), "{lines:#?}");
}

/// PROTOCOL#newest.
#[test]
fn owner_remembers_its_certificate_when_the_server_does_not() {
    let alice = Person::new("alice");
    let home = alice.home();
    let mut folder = Arc::new(Folder::new());
    for observer in ["carol", "dave"] {
        // A restarted server at the same address remembers no login.
        let server = Server::within(folder.clone(), &[]);
        let is_first = observer == "carol";
        if is_first {
            server.raw().register(&alice);
        }
        let (mut raw, _) = newcomer(&server, observer);
        let path = home.path(".secure_messenger_client/known_certificates");
        if !is_first {
            let known = std::fs::read_to_string(&path).expect("remembered");
            let ahead = clock::now_ms() + HOUR;
            let (_, created) = known.split_once("\"created\":").expect("a record");
            let former = created.split(',').next().expect("a number");
            let (_, port) = known.split_once("127.0.0.1:").expect("a server");
            let port = port.split('"').next().expect("a port");
            let known = known.replace(port, &server.port.to_string());
            std::fs::write(&path, known.replace(former, &ahead.to_string())).expect("written");
            let client = server.client_in(&home, "alice", &[]).ready();
            assert_eq!(shown_created(&mut raw, "alice"), ahead + 1, "with its login");
            drop(client);
        } else {
            let client = server.client_in(&home, "alice", &[]).ready();
            assert_eq!(client.finish().0, 0);
        }
        folder = server.kill();
    }
}

/// PROTOCOL#login-failed, PROTOCOL#session-certificate, PROTOCOL#lockout, PROTOCOL#two-clocks.
#[test]
fn wrong_clock_is_not_a_guess_and_reported_in_days() {
    let server = Server::start();
    let (_raw, alice) = newcomer(&server, "alice");
    for (person, password) in
        [(&alice, PASSWORD), (&alice, "wrong horse battery"), (&Person::new("nobody"), PASSWORD)]
    {
        for (hours, said) in [
            (48, "your clock is 2 days ahead of the server's"),
            (3, "your clock is 3 hours ahead of the server's"),
            (-48, "your clock is 2 days behind the server's"),
            (-3, "your clock is 3 hours behind the server's"),
        ] {
            let created = clock::now_ms().saturating_add_signed(hours * HOUR as i64);
            let mut raw = server.raw();
            let challenge = raw.challenged(person);
            let mut response = raw.response(person, &challenge, password);
            response.created = created;
            response.certificate =
                person.identity.certify(&person.name, &person.session, created).certificate;
            raw.say(&ClientMessage::ChallengeResponse(Box::new(response)));
            let failure = raw.failure();
            assert!(failure.code == "bad_key" && failure.message.starts_with(said), "{}", failure.message);
            assert!(failure.newest.is_none() && raw.is_closed());
        }
    }
    server.raw().logs_in(&alice);
    until("it is logged", || server.log().matches("event=login user=alice").count() == 2);
    let log = server.log();
    assert!(!log.contains("login_failed") && !log.contains("locked"), "{log}");
    assert_eq!(log.matches("event=login_refused user=alice addr=127.0.0.1").count(), 1, "{log}");
}

/// PROTOCOL#lockout.
#[test]
fn malformed_response_is_not_a_guess() {
    let server = Server::start();
    let (_raw, alice) = newcomer(&server, "alice");
    for _ in 0..6 {
        let mut raw = server.raw();
        let challenge = raw.challenged(&alice);
        let mut response = raw.response(&alice, &challenge, PASSWORD);
        response.session_key = Bytes(vec![0; 294]);
        raw.say(&ClientMessage::ChallengeResponse(Box::new(response)));
        assert_eq!(raw.error(), "bad_key");
        let mut raw = server.raw();
        let challenge = raw.challenged(&alice);
        let new = PasswordKey::new(&Password::new("another".into()));
        let old = Password::new(PASSWORD.into());
        let exporter = raw.channel.exporter().to_vec();
        let mut change =
            new.replace(&alice.name, &challenge, &exporter, &old, &alice.identity).expect("rounds");
        change.rounds = 1;
        raw.say(&ClientMessage::PasswordChange(Box::new(change)));
        assert_eq!(raw.error(), "bad_rounds");
    }
    server.raw().logs_in(&alice);
    until("it is logged", || server.log().matches("event=login user=alice").count() == 2);
    let log = server.log();
    assert!(!log.contains("_failed") && !log.contains("locked"), "{log}");
}

#[test]
fn login_clears_earlier_failures() {
    let server = Server::start();
    let (_raw, alice) = newcomer(&server, "alice");
    for _ in 0..2 {
        for _ in 0..4 {
            assert_eq!(server.fail(&alice).code, "login_failed");
        }
        server.raw().logs_in(&alice);
    }
}

/// PROTOCOL#lockout.
#[test]
fn guesses_at_the_same_time_are_all_counted() {
    let server = Server::start();
    let (_raw, alice) = newcomer(&server, "alice");
    // All get their challenge before the first one responds.
    let ready: Vec<Raw> = (0..20)
        .map(|_| {
            let mut raw = server.raw();
            raw.challenged(&alice);
            raw
        })
        .collect();
    let answers: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = ready
            .into_iter()
            .map(|mut raw| {
                let guess = alice.false_response();
                scope.spawn(move || {
                    raw.say(&guess);
                    raw.error()
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("an answer")).collect()
    });
    let count = |code: &str| answers.iter().filter(|answer| *answer == code).count();
    let (tried, locked) = (count("login_failed"), count("locked"));
    assert_eq!(tried + locked, 20, "{answers:?}");
    assert_eq!(tried, 5, "guesses that were compared");
}

/// PROTOCOL#challenge-once.
#[test]
fn challenge_accepts_one_response() {
    let server = Server::start();
    let (_raw, alice) = newcomer(&server, "alice");
    let mut raw = server.raw();
    let challenge = raw.challenged(&alice);
    let good = raw.response(&alice, &challenge, PASSWORD);
    let bad = raw.response(&alice, &challenge, "wrong horse battery");
    // Both arrive at once: the second is right, but too late.
    let mut lines = ClientMessage::ChallengeResponse(Box::new(bad)).encode();
    lines.extend(ClientMessage::ChallengeResponse(Box::new(good)).encode());
    raw.bytes(&lines);
    assert_eq!(raw.error(), "login_failed");
    assert!(raw.is_closed());
}

/// PROTOCOL#challenge-once.
#[test]
fn recorded_response_fails_on_another_connection() {
    for arguments in [&[][..], &["--no-tls"]] {
        let server = Server::with(arguments);
        let (_raw, alice) = newcomer(&server, "alice");
        let mut raw = server.raw();
        let challenge = raw.challenged(&alice);
        let good = raw.response(&alice, &challenge, PASSWORD);
        let line = ClientMessage::ChallengeResponse(Box::new(good)).encode();
        raw.bytes(&line);
        assert!(matches!(raw.answer(), Some(ServerMessage::Session(_))));
        let mut other = server.raw();
        other.bytes(&line);
        assert_eq!(other.error(), "no_challenge");
        let mut other = server.raw();
        other.challenged(&alice);
        other.bytes(&line);
        assert_eq!(other.error(), "login_failed");
        assert!(raw.is_usable(), "the owner is not disturbed");
    }
}

/// Runs the real client to its end.
fn run(server: &Server, home: &Folder, password: &str, arguments: &[&str]) -> (i32, Vec<String>) {
    run_client(home, server.port, password, &[&["--accept-new"], arguments].concat())
}

/// Runs the real client to its end: its status must be `status`, and a line must contain all `words`.
fn ends(server: &Server, home: &Folder, password: &str, arguments: &[&str], (status, words): (i32, &[&str])) {
    let (ended, lines) = run(server, home, password, arguments);
    let is_told = lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(ended == status && is_told, "{words:?}: {ended} {lines:#?}");
}

#[test]
fn login_errors_name_the_cause_and_the_remedy() {
    let server = Server::start();
    let home = Folder::new();
    let alice = &["--user", "alice"];
    let data = |path: &str| home.path(".secure_messenger_client").join(path);
    // There is no key yet.
    ends(&server, &home, PASSWORD, alice, (1, &["! ", "no key for alice", "alice_private.key"]));
    // A password that is too short creates nothing.
    let register = &["--user", "alice", "--register"];
    ends(&server, &home, "short", register, (1, &["! ", "at least 6 characters"]));
    assert!(!data("keys/alice_private.key").exists());
    // Six characters are enough, however many bytes they have.
    ends(&server, &home, "s\u{e9}same", register, (0, &["* logged in as alice"]));
    let key = std::fs::read(data("keys/alice_private.key")).expect("made");
    // The wrong password, at login and at registration, never touches the key.
    ends(&server, &home, PASSWORD, alice, (1, &["! ", "password is wrong"]));
    ends(&server, &home, PASSWORD, register, (1, &["! ", "nothing was overwritten"]));
    // A second registration with the same key and password only logs in.
    ends(&server, &home, "s\u{e9}same", register, (0, &["* logged in as alice"]));
    assert_eq!(std::fs::read(data("keys/alice_private.key")).expect("there"), key);
    // The name is taken, in any letter case, and a refused registration leaves no key behind.
    let elsewhere = Folder::new();
    for name in ["alice", "ALICE"] {
        ends(&server, &elsewhere, PASSWORD, &["--user", name, "--register"], (1, &["! ", "taken"]));
    }
    let left = support::files(&elsewhere.path(".secure_messenger_client/keys"));
    assert!(left.is_empty(), "{left:?}");
    // The key of another account of that name does not open this one, and is kept.
    let foreign = Server::start();
    assert_eq!(run(&foreign, &elsewhere, PASSWORD, register).0, 0);
    let path = elsewhere.path(".secure_messenger_client/keys/alice_private.key");
    let foreign_key = std::fs::read(&path).expect("made");
    ends(&server, &elsewhere, PASSWORD, alice, (1, &["! ", "your account is not on this server"]));
    ends(&server, &elsewhere, PASSWORD, register, (1, &["! ", "taken"]));
    assert_eq!(std::fs::read(&path).expect("kept"), foreign_key);
    // The lock reports its remaining time.
    until("the lock is reported", || {
        let failure = server.fail(&Person::new("alice"));
        failure.code == "locked"
    });
    ends(&server, &home, "s\u{e9}same", alice, (1, &["! ", "failed logins", "15 minutes"]));
}

#[test]
fn key_copied_into_a_new_folder_logs_in() {
    let server = Server::start();
    let home = Folder::new();
    assert_eq!(run(&server, &home, PASSWORD, &["--user", "alice", "--register"]).0, 0);
    // Another machine, prepared as the client advises: `mkdir -p`, then copy.
    let other = Folder::new();
    let keys = ".secure_messenger_client/keys";
    std::fs::create_dir_all(other.path(keys)).expect("folder");
    let name = "alice_private.key";
    std::fs::copy(home.path(keys).join(name), other.path(keys).join(name)).expect("copied");
    let (status, lines) = run(&server, &other, PASSWORD, &["--user", "alice"]);
    assert_eq!(status, 0, "{lines:#?}");
    for path in [keys, ".secure_messenger_client"] {
        let mode = std::fs::metadata(other.path(path)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{path}");
    }
}

#[test]
fn damaged_memory_of_users_is_reported_before_a_login() {
    let server = Server::start();
    let (mut alice, other) = (server.client("alice").ready(), Folder::new());
    let key = ".secure_messenger_client/keys/alice_private.key";
    std::fs::create_dir_all(other.path(key).parent().expect("a folder")).expect("folder");
    std::fs::copy(alice.home.path(key), other.path(key)).expect("copied");
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(other.path(".secure_messenger_client"), private).expect("closed");
    for file in ["known_users", "ignored"] {
        let path = other.path(".secure_messenger_client").join(file);
        std::fs::write(&path, "damaged\n").expect("written");
        let (status, lines) = run(&server, &other, PASSWORD, &["--user", "alice"]);
        assert!(status == 1 && lines.concat().contains("line 1 is damaged"), "{lines:#?}");
        std::fs::remove_file(&path).expect("removed");
    }
    assert_eq!(server.log().matches("event=login user=alice ").count(), 1);
    alice.ask("is anyone there?", "! nobody else is online");
}

/// PROTOCOL#mailbox-file-damage.
#[test]
fn damaged_mailbox_is_reported_and_stops_no_login() {
    let (server, home) = (Server::start(), Folder::new());
    let alice = &["--user", "alice", "--register"];
    assert_eq!(run(&server, &home, PASSWORD, alice).0, 0);
    let folder = home.path(".secure_messenger_client/mailbox");
    let find =
        |part: &str| support::files(&folder).into_iter().find(|path| path.to_string_lossy().contains(part));
    let path = find("alice_").expect("the mailbox");
    std::fs::write(&path, "{}\n").expect("written");
    let set_aside = "line 1 is damaged, or belongs to another key; the file is set aside in ";
    ends(&server, &home, PASSWORD, alice, (0, &["! ", set_aside, "restore the file from a copy"]));
    assert_eq!(std::fs::read(find(".set-aside-").expect("the damaged one")).expect("there"), b"{}\n");
    // The new file is in order.
    let (status, lines) = run(&server, &home, PASSWORD, alice);
    assert!(status == 0 && !lines.iter().any(|line| line.starts_with("! ")), "{lines:#?}");
    std::fs::remove_file(&path).and_then(|()| std::fs::create_dir(&path)).expect("in the way");
    let neither = "this client neither fetches mail nor makes a mailbox key";
    ends(&server, &home, PASSWORD, alice, (0, &["! ", "alice_", neither]));
}

/// PROTOCOL#mailbox-file-lock.
#[test]
fn client_without_the_lock_of_its_mailbox_reports_it() {
    let (server, home) = (Server::start(), Folder::new());
    let alice = &["--user", "alice", "--register"];
    assert_eq!(run(&server, &home, PASSWORD, alice).0, 0);
    let folder = home.path(".secure_messenger_client/mailbox");
    let path = support::files(&folder).into_iter().find(|path| !path.ends_with("CACHEDIR.TAG"));
    let other = std::fs::File::open(path.expect("the mailbox")).expect("opens");
    other.lock().expect("locks");
    ends(&server, &home, PASSWORD, alice, (0, &["! another client is using your mailbox"]));
}

#[test]
fn password_file_that_others_can_read_is_refused() {
    let server = Server::start();
    let home = Folder::new();
    let path = home.password_file(PASSWORD);
    for mode in [0o640, 0o604, 0o644] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
        // `password_file` leaves the mode of an existing file unchanged.
        ends(&server, &home, PASSWORD, &["--user", "alice", "--register"], (2, &["chmod 600"]));
    }
    assert!(!home.path(".secure_messenger_client").exists());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).expect("mode");
    assert_eq!(std::fs::read_to_string(server.data("users.json")).expect("read"), "");
}

#[test]
fn unreachable_server_is_reported_with_a_remedy() {
    let server = Server::start();
    let home = Folder::new();
    run(&server, &home, PASSWORD, &["--user", "alice", "--register"]);
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port that was free")
        .port();
    ends(
        &server,
        &home,
        PASSWORD,
        &["--user", "alice", "--port", &port.to_string()],
        (1, &["! ", "cannot be reached", "--port"]),
    );
    ends(&server, &home, PASSWORD, &["--user", "alice", "--no-tls"], (1, &["! ", "--no-tls"]));
}

/// PROTOCOL#reserved-names.
#[test]
fn reserved_name_is_refused_and_an_old_one_marked() {
    let server = Server::start();
    for word in ["everyone", "You", "SERVER", "room", "all", "y0u", "server_2", "Private"] {
        let mut raw = server.raw();
        raw.say(&Person::new(word).registration());
        let failure = raw.failure();
        assert_eq!(failure.code, "name_reserved", "{word}");
        assert!(failure.message.contains(word), "{}", failure.message);
    }
    // An older server may have created this account.
    let (raw, mut old) = newcomer(&server, "servex");
    drop(raw);
    let home = server.kill();
    let path = |name: &str| home.path("data").join(name);
    let users = std::fs::read_to_string(path("users.json")).expect("accounts");
    std::fs::write(path("users.json"), users.replace("servex", "server")).expect("written");
    std::fs::rename(path("keys/servex.pem"), path("keys/server.pem")).expect("renamed");
    let server = Server::within(home, &[]);
    let mut bob = server.client("bob").ready();
    old.name = "server".parse().expect("a name");
    let mut raw = server.raw();
    raw.logs_in(&old);
    let line = bob.expect("server");
    assert!(line.contains("@server"), "{line}");
    bob.say("/users");
    let line = bob.expect("server");
    assert!(line.contains("@server"), "{line}");
}
