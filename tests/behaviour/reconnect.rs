//! Broken connections as clients see them: real clients in plain mode behind a [`Gate`] that cuts. Within the grace
//! period nothing is lost or repeated in either direction, and other users notice nothing. Later, the client logs in
//! again and reports exactly what may not have arrived. `tests/hostile/server.rs` plays lying servers.

use crate::support::{
    self, Client, Folder, Gate, MIB, NEW, PASSWORD, Person, Raw, Server, exchange, gated, interrupt, noise,
    until,
};
use secure_messenger::crypto::key_file;
use secure_messenger::crypto::keys::SessionKey;
use secure_messenger::crypto::primitives::sha256;
use secure_messenger::crypto::secret::Password;
use secure_messenger::protocol::ServerMessage;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const LOST: &str = "! connection lost: ";
const NEW_SESSION: &str = "in a new session: the old one has ended";
const UNCONFIRMED: &str = "the connection was lost before the server confirmed it: ";

/// Two clients, each behind its own gate.
struct Two {
    gates: [Gate; 2],
    alice: Client,
    bob: Client,
}

impl Two {
    fn on(server: &Server) -> Two {
        let (gates, alice, bob) = gated(server);
        Two { gates, alice, bob }
    }

    /// Each receives what the other sends.
    fn talk(&mut self, text: &str) {
        exchange(&mut self.alice, &mut self.bob, text);
        exchange(&mut self.bob, &mut self.alice, text);
    }

    /// Kills the server and starts another one on the same data, which the same gates lead to.
    fn restart(&mut self, server: Server) -> Server {
        self.gates.iter().for_each(Gate::shut);
        let server = Server::within(server.kill(), &[]);
        self.gates.iter().for_each(|gate| gate.lead_to(&server));
        server
    }

    /// Waits until both have logged in again and see each other.
    fn are_back(&mut self) {
        for one in [&mut self.alice, &mut self.bob] {
            one.expect(NEW_SESSION);
            if one.expect(" online: ").starts_with("* 1 ") {
                one.expect(" is online");
            }
        }
    }
}

/// Cuts, and waits until the client is back in the same session.
fn cut(gate: &Gate, client: &mut Client) {
    gate.cut();
    client.expect(LOST);
    let back = client.expect("* back online after ");
    assert!(!back.contains(NEW_SESSION), "{back}");
}

/// The lines that contain `part`.
fn holding<'a>(lines: &'a [String], part: &str) -> Vec<&'a String> {
    lines.iter().filter(|line| line.contains(part)).collect()
}

fn presence(lines: &[String]) -> Vec<&String> {
    let of =
        |line: &&String| ["is online", "has left", "logged in again"].iter().any(|part| line.contains(part));
    lines.iter().filter(of).collect()
}

// ---- within the grace period

/// PROTOCOL#outlives, PROTOCOL#sent-again.
#[test]
fn repeated_cuts_lose_repeat_and_reveal_nothing() {
    let server = Server::start();
    let Two { gates, mut alice, mut bob } = Two::on(&server);
    let mut carol = server.client("carol").ready();
    alice.expect("* carol is online");
    bob.expect("* carol is online");
    const ROUNDS: usize = 8;
    for round in 0..ROUNDS {
        for n in 0..10 {
            alice.say(&format!("/msg bob private {round}.{n}"));
            bob.say(&format!("/msg alice private {round}.{n}"));
            alice.say(&format!("public {round}.{n}"));
            // Cut while both sides send.
            if n == round {
                gates[round % 2].cut();
            }
        }
        let whose = [&mut alice, &mut bob];
        whose.into_iter().nth(round % 2).expect("one of two").expect("* back online after ");
    }
    for one in [&mut alice, &mut bob, &mut carol] {
        one.expect(&format!("<alice> public {}.9", ROUNDS - 1));
    }
    for one in [&mut alice, &mut bob] {
        for (from, to) in [("alice", "bob"), ("bob", "alice")] {
            let last = format!("<{from} -> {to}> private {}.9", ROUNDS - 1);
            if !one.output.seen.contains(&last) {
                one.expect(&last);
            }
        }
    }
    carol.ask("/users", "* 3 online");
    let all = |mark: &str| -> Vec<String> {
        let numbers = (0..ROUNDS).flat_map(|round| (0..10).map(move |n| format!("{round}.{n}")));
        numbers.map(|number| format!("{mark} {number}")).collect()
    };
    let outputs = [&alice, &bob, &carol].map(|one| one.output.seen.clone());
    for (n, lines) in outputs.iter().enumerate() {
        assert!(holding(lines, "<alice> public").into_iter().eq(&all("<alice> public")), "{lines:#?}");
        for mark in ["<alice -> bob> private", "<bob -> alice> private"] {
            let expected = if n < 2 { all(mark) } else { Vec::new() };
            assert!(holding(lines, mark).into_iter().eq(&expected), "{lines:#?}");
        }
        // Alice and bob were online before carol.
        let noticed = presence(lines);
        assert!(noticed.iter().all(|line| line.starts_with("* carol is") || line.starts_with("* bob is")));
        assert!(noticed.len() <= 2, "{noticed:#?}");
        assert!(holding(lines, "missing").is_empty() && holding(lines, "refused").is_empty(), "{lines:#?}");
    }
    for one in [alice, bob, carol] {
        one.leaves();
    }
}

#[test]
fn text_typed_while_disconnected_arrives_in_order_later() {
    let server = Server::start();
    let Two { gates: [gate, _other], mut alice, mut bob } = Two::on(&server);
    gate.shut();
    alice.expect(LOST);
    for n in 0..50 {
        alice.say(&format!("/msg bob number {n}"));
    }
    // A user to whom messages are queued can still send.
    bob.ask("/msg alice while you were away", "<bob -> alice> while you were away");
    gate.lead_to(&server);
    alice.expect("* back online after ");
    let expected: Vec<String> = (0..50).map(|n| format!("<alice -> bob> number {n}")).collect();
    for one in [&mut alice, &mut bob] {
        one.expect("number 49");
        assert!(holding(&one.output.seen, "> number ").into_iter().eq(&expected));
    }
    assert_eq!(holding(&alice.output.seen, "while you were away").len(), 1);
    let (status, lines) = alice.finish();
    assert!(status == 0 && lines.iter().filter(|line| line.starts_with('!')).count() == 1, "{lines:#?}");
    bob.leaves();
}

#[test]
fn files_in_both_directions_survive_cuts_and_arrive_complete() {
    let server = Server::start();
    let Two { gates: [gate, _other], mut alice, mut bob } = Two::on(&server);
    let make = |owner: &Client| {
        let bytes = noise(6 * MIB + 77);
        fs::write(owner.home.path("big.bin"), &bytes).expect("written");
        sha256(&bytes)
    };
    let hashes = [make(&alice), make(&bob)];
    alice.say("/sendfile bob big.bin");
    bob.expect("* alice offers you a file: ");
    bob.say("/sendfile alice big.bin");
    alice.expect("* bob offers you a file: ");
    bob.say("/acceptfile");
    alice.say("/acceptfile");
    for _ in 0..4 {
        // Hold alice's connection while she sends, so that data is in flight when it is cut.
        let before = gate.passed();
        gate.hold_after(MIB as u64);
        until("another mebibyte was sent", || gate.passed() >= before + MIB as u64);
        gate.cut();
        gate.open();
        alice.expect(LOST);
        alice.expect("* back online after ");
    }
    for (one, other, hash) in [(&mut bob, "alice", &hashes[0]), (&mut alice, "bob", &hashes[1])] {
        let whole = format!("* \"big.bin\" (6.2 MB) from {other} is complete: ");
        if !one.output.seen.iter().any(|line| line.starts_with(&whole)) {
            one.expect(&whole);
        }
        let path = one.data("files/received").join(format!("{other}~big.bin"));
        assert!(sha256(&fs::read(path).expect("it is there")) == *hash);
    }
    for one in [alice, bob] {
        let (status, lines) = one.finish();
        assert!(status == 0 && holding(&lines, "interrupted").is_empty(), "{lines:#?}");
    }
}

/// PROTOCOL#deadlines.
#[test]
fn deadline_holds_for_a_program_that_is_stopped_often() {
    let server = Server::start();
    let mut alice = server.raw();
    let pid = server.child.id();
    let told = thread::spawn(move || alice.error());
    let start = Instant::now();
    while !told.is_finished() {
        assert!(start.elapsed() < Duration::from_secs(25), "each stop restarted the wait");
        interrupt(pid);
        thread::park_timeout(Duration::from_secs(1));
    }
    assert_eq!(told.join().expect("an answer"), "timed_out");
}

#[test]
fn end_of_input_while_disconnected_waits_for_sent_text_only() {
    let server = Server::start();
    let Two { gates, mut alice, mut bob } = Two::on(&server);
    gates.iter().for_each(Gate::shut);
    for one in [&mut alice, &mut bob] {
        one.expect(LOST);
    }
    // Bob has sent nothing.
    let (status, lines) = bob.finish();
    assert_eq!(status, 0, "{lines:#?}");
    alice.say("/msg bob hello");
    alice.end();
    alice.expect("* leaving: 1 message is not acknowledged yet; Ctrl-C leaves now");
    alice.signal("-TERM");
    let (status, lines) = alice.finish();
    assert!(status == 1 && holding(&lines, "! ended by SIGTERM").len() == 1, "{lines:#?}");
    let told = "! 1 message of yours was not sent: \"hello\"";
    assert_eq!(holding(&lines, told).len(), 1, "{lines:#?}");
}

#[test]
fn end_of_input_while_disconnected_succeeds_after_a_resume() {
    let server = Server::start();
    let Two { gates: [gate, _other], mut alice, mut bob } = Two::on(&server);
    gate.shut();
    alice.expect(LOST);
    alice.say("/msg bob hello");
    alice.end();
    gate.lead_to(&server);
    assert_eq!(bob.expect("hello"), "<alice -> bob> hello");
    let (status, lines) = alice.finish();
    assert!(status == 0 && lines.contains(&"<alice -> bob> hello".into()), "{lines:#?}");
}

// ---- silence, in real time

/// Sends five messages each way while the relay holds its directions.
fn silence(two: &mut Two, up: bool, down: bool) {
    if up {
        two.gates[0].hold_after(0);
    }
    two.gates[0].hold_answers(down);
    for n in 0..5 {
        two.alice.say(&format!("/msg bob number {n}"));
        two.bob.say(&format!("/msg alice number {n}"));
    }
}

fn speak_again(two: &mut Two) {
    two.gates[0].open();
    two.gates[0].hold_answers(false);
}

/// Checks that all five messages arrived, once and in order, or that the sender's client reported the missing ones.
fn arrived_or_told(from: &str, to: &Client, sender: &Client) {
    let mark = format!("<{from} -> {}> number ", to.name);
    let came = |lines: &[String]| -> Vec<usize> {
        lines.iter().filter_map(|line| line.strip_prefix(&mark)?.parse().ok()).collect()
    };
    let (arrived, told) = (came(&to.output.seen), holding(&sender.output.seen, "may not have arrived"));
    assert!(arrived.is_sorted() && arrived.len() <= 5, "{arrived:?}");
    for n in 0..5 {
        let is_told = told.iter().any(|line| line.contains(&format!("\"number {n}\"")));
        assert!(arrived.contains(&n) || is_told, "{n} of {from}: {arrived:?} {told:#?}");
    }
    assert_eq!(arrived, (0..5).filter(|n| arrived.contains(n)).collect::<Vec<_>>(), "each once");
}

/// PROTOCOL#life.
#[test]
fn silence_is_reported_within_15_s_and_loses_nothing() {
    let server = Server::start();
    let mut two = Two::on(&server);
    let start = Instant::now();
    silence(&mut two, true, true);
    two.alice.expect("* no answer from the server for ");
    // Only a lower bound, because the machine may be slow: unit tests check the exact limit.
    assert!(start.elapsed() >= Duration::from_secs(10));
    two.alice.expect(&format!("{LOST}no answer for "));
    speak_again(&mut two);
    let back = two.alice.expect("* back online after ");
    assert!(!back.contains(NEW_SESSION), "{back}");
    for (one, other) in [(&mut two.alice, "bob"), (&mut two.bob, "alice")] {
        let last = format!("<{other} -> {}> number 4", one.name);
        if !one.output.seen.contains(&last) {
            one.expect(&last);
        }
    }
    two.talk("after");
    for (from, to) in [("alice", &two.bob), ("bob", &two.alice)] {
        let mark = format!("<{from} -> {}> number ", to.name);
        let expected: Vec<String> = (0..5).map(|n| format!("{mark}{n}")).collect();
        assert!(holding(&to.output.seen, &mark).into_iter().eq(&expected), "{:#?}", to.output.seen);
    }
    two.alice.leaves();
}

/// PROTOCOL#life.
#[test]
#[ignore = "takes 11 minutes: cargo test --test behaviour reconnect -- --ignored"]
fn silence_of_any_length_and_direction_ends_no_client() {
    let cases = [
        (20, true, true, "60"),
        (105, true, true, "60"),
        (105, true, false, "60"),
        (105, false, true, "60"),
        (105, true, true, "300"),
        (600, true, true, "60"),
        (600, true, true, "3600"),
    ];
    thread::scope(|scope| {
        for (seconds, up, down, grace) in cases {
            scope.spawn(move || {
                let server = Server::with(&["--grace", grace]);
                let mut two = Two::on(&server);
                silence(&mut two, up, down);
                let end = Instant::now() + Duration::from_secs(seconds);
                while Instant::now() < end {
                    thread::park_timeout(end.saturating_duration_since(Instant::now()));
                }
                speak_again(&mut two);
                if seconds > 90 {
                    two.alice.expect("* back online after ");
                }
                // A new session gets a new list of online users.
                until("both talk", || {
                    two.alice.say("/msg bob are you there?");
                    let line = two.alice.expect("are you there?");
                    line == "<alice -> bob> are you there?"
                });
                two.bob.expect("are you there?");
                exchange(&mut two.bob, &mut two.alice, "after");
                exchange(&mut two.alice, &mut two.bob, "after");
                arrived_or_told("alice", &two.bob, &two.alice);
                if seconds < 90 || grace != "60" {
                    arrived_or_told("bob", &two.alice, &two.bob);
                }
            });
        }
    });
}

// ---- after the grace period

/// Checks that exactly `lost` is reported as messages that may not have arrived.
fn told_as_lost(lines: &[String], lost: &[&str]) {
    let told = holding(lines, UNCONFIRMED);
    assert_eq!(told.len(), lost.len(), "{lines:#?}");
    assert!(
        told.iter().zip(lost).all(|(line, text)| line.starts_with('!') && line.contains(text)),
        "{told:#?}"
    );
}

#[test]
fn client_logs_in_after_the_grace_period_and_reports_unsent() {
    let server = Server::with(&["--grace", "1"]);
    let mut two = Two::on(&server);
    two.talk("before");
    two.gates[0].shut();
    two.alice.expect(LOST);
    two.alice.say("one");
    two.alice.say("two");
    two.bob.expect("* alice has left");
    two.gates[0].lead_to(&server);
    two.alice.expect(NEW_SESSION);
    two.bob.expect("* alice is online");
    two.talk("after");
    let lines = two.alice.output.seen.clone();
    told_as_lost(&lines, &[]);
    for text in ["one", "two"] {
        assert!(lines.contains(&format!("! there was no connection: \"{text}\" was not sent")), "{lines:#?}");
    }
    let (_, lines) = two.bob.finish();
    assert!(!lines.iter().any(|line| line.ends_with("> one") || line.ends_with("> two")), "{lines:#?}");
    assert_eq!(two.alice.finish().0, 1, "two messages were never acknowledged");
}

/// PROTOCOL#no-session.
#[test]
fn server_crash_reports_unacknowledged_text_and_resends_none() {
    let server = Server::start();
    let mut two = Two::on(&server);
    two.talk("before");
    // The server has accepted and delivered the message; alice gets no answer.
    two.gates[0].hold_answers(true);
    two.alice.say("/msg bob taken");
    two.bob.expect("<alice -> bob> taken");
    let server = two.restart(server);
    two.alice.expect(LOST);
    two.gates[0].hold_answers(false);
    two.are_back();
    two.talk("after");
    told_as_lost(&two.alice.output.seen, &["taken"]);
    told_as_lost(&two.bob.output.seen, &[]);
    let (status, lines) = two.bob.finish();
    assert_eq!((status, holding(&lines, "<alice -> bob> taken").len()), (0, 1), "{lines:#?}");
    let (status, lines) = two.alice.finish();
    assert_eq!(status, 1, "one message was never acknowledged");
    let shown = lines.iter().filter(|line| *line == "<alice -> bob> taken").count();
    assert_eq!(shown, 0, "a message reported as failed is not shown as sent: {lines:#?}");
    drop(server);
}

#[test]
fn restarted_server_is_found_again_each_time() {
    let mut server = Server::start();
    let mut two = Two::on(&server);
    for round in 0..5 {
        server = two.restart(server);
        two.are_back();
        two.talk(&format!("round {round}"));
    }
    for one in [two.alice, two.bob] {
        let (status, lines) = one.finish();
        assert_eq!((status, holding(&lines, NEW_SESSION).len()), (0, 5), "{lines:#?}");
    }
}

// ---- final ends

/// PROTOCOL#elsewhere.
#[test]
fn client_replaced_by_another_login_does_not_reconnect() {
    let server = Server::start();
    let Two { gates: [gate, _other], mut alice, mut bob } = Two::on(&server);
    cut(&gate, &mut alice);
    let mut second = server.client_in(&alice.home, "alice", &[]).ready();
    let told = alice.expect("you have logged in elsewhere: this session is over");
    assert!(told.starts_with("! "), "{told}");
    let (status, lines) = alice.finish();
    assert_eq!(status, 1);
    assert_eq!(
        holding(&lines, "! you have logged in elsewhere: this session is over").len(),
        1,
        "{lines:#?}"
    );
    bob.expect("* alice has logged in again");
    exchange(&mut bob, &mut second, "who is it");
    second.leaves();
    let logins = |log: String| log.matches("event=login user=alice").count();
    assert_eq!(logins(server.log()), 2);
}

/// PROTOCOL#elsewhere.
#[test]
fn replaced_client_ends_without_disconnecting_the_newer_one() {
    let server = Server::start();
    let Two { gates: [gate, _other], mut alice, mut bob } = Two::on(&server);
    gate.shut();
    alice.expect(LOST);
    // Two logins, one after the other.
    let another = || server.client_in(&alice.home, "alice", &[]).ready();
    let mut second = another();
    bob.expect("* alice has logged in again");
    let mut third = another();
    bob.expect("* alice has logged in again");
    second.expect("! you have logged in elsewhere");
    assert_eq!(second.finish().0, 1);
    gate.lead_to(&server);
    alice.expect("you have logged in elsewhere: this session is over");
    assert_eq!(alice.finish().0, 1);
    exchange(&mut bob, &mut third, "who is it");
    third.leaves();
    assert_eq!(server.log().matches("event=login user=alice").count(), 3);
}

#[test]
fn changed_server_key_on_reconnect_is_refused_for_good() {
    let (server, other) = (Server::start(), Server::start());
    let Two { gates: [gate, _other], mut alice, bob: _bob } = Two::on(&server);
    gate.shut();
    alice.expect(LOST);
    gate.lead_to(&other);
    let line = alice.expect("HAS CHANGED");
    assert!(line.starts_with("! ") && line.contains("THE KEY OF THE SERVER AT 127.0.0.1:"), "{line}");
    // The client stays disconnected although the right server is back.
    gate.lead_to(&server);
    let (status, lines) = alice.finish();
    assert_eq!((status, holding(&lines, "back online").len()), (1, 0), "{lines:#?}");
    let log = other.log();
    assert!(!log.contains("user=alice"), "{log}");
}

#[test]
fn reconnect_trusts_the_key_of_the_session_and_no_file() {
    let (server, other) = (Server::start(), Server::start());
    let Two { gates, mut alice, mut bob } = Two::on(&server);
    gates.iter().for_each(Gate::shut);
    alice.expect(LOST);
    bob.expect(LOST);
    std::fs::write(bob.data("known_servers"), "damage\n").expect("written");
    gates[1].lead_to(&server);
    bob.expect("back online");
    std::fs::remove_file(alice.data("known_servers")).expect("removed");
    gates[0].lead_to(&other);
    alice.expect("HAS CHANGED");
    assert_eq!(alice.finish().0, 1);
    assert!(!other.log().contains("user=alice"));
}

#[test]
fn password_changed_elsewhere_ends_the_client_with_the_reason() {
    let server = Server::start();
    let mut two = Two::on(&server);
    let mut person = Person::new("alice");
    let file = fs::read(two.alice.data("keys/alice_private.key")).expect("a key file");
    let identity = key_file::open(&file, &person.name, &Password::new(PASSWORD.into()));
    person.identity = Arc::new(identity.expect("it opens"));
    person.session = Arc::new(SessionKey::generate());
    let changed = server.raw().change_password(&person, PASSWORD, NEW);
    assert!(matches!(changed, Some(ServerMessage::PasswordChanged)));
    // The session continues, also over another connection.
    cut(&two.gates[0], &mut two.alice);
    two.talk("as ever");
    let server = two.restart(server);
    let line = two.alice.expect("this server does not ask for your password");
    assert!(line.starts_with("! ") && line.contains("the password was changed elsewhere"), "{line}");
    let (status, lines) = two.alice.finish();
    assert_eq!(status, 1, "{lines:#?}");
    // The challenge shows that the kept password key is useless, so the client does not waste an attempt.
    assert_eq!(server.log().matches("event=login_failed").count(), 0);
}

#[test]
fn client_logs_in_again_with_the_password_it_has_changed() {
    let server = Server::start();
    let mut two = Two::on(&server);
    let path = two.alice.home.password_file(NEW);
    two.alice.ask(&format!("/passwd {}", path.display()), "* your password is changed");
    let server = two.restart(server);
    two.are_back();
    two.talk("after");
    assert_eq!(server.log().matches("event=login_failed").count(), 0);
    two.alice.leaves();
}

#[test]
fn two_disconnected_clients_reconnect_together() {
    let server = Server::start();
    let mut two = Two::on(&server);
    thread::scope(|scope| {
        let [one, other] = &two.gates;
        scope.spawn(|| cut(one, &mut two.alice));
        scope.spawn(|| cut(other, &mut two.bob));
    });
    two.talk("both back");
}

/// PROTOCOL#full.
#[test]
fn reconnect_to_a_full_server_succeeds_once_there_is_room() {
    let server = Server::with(&["--clients", "2"]);
    let Two { gates, mut alice, bob } = Two::on(&server);
    gates[0].shut();
    alice.expect(LOST);
    // A new login takes the place of a session without a connection.
    let carol = server.client("carol").ready();
    gates[0].lead_to(&server);
    alice.expect("! not back online yet: the server says: the server is full");
    bob.leaves();
    alice.expect(NEW_SESSION);
    assert_eq!(holding(&alice.output.seen, "not back online yet").len(), 1, "reported once");
    for one in [alice, carol] {
        one.finish();
    }
}

#[test]
fn killed_plain_mode_client_leaves_at_once() {
    let server = Server::with(&["--grace", "3600"]);
    let (mut alice, home) = (server.client("alice").ready(), Arc::new(Folder::new()));
    let bob = || server.client_in(&home, "bob", &["--register"]).ready();
    for sign in ["-TERM", "-INT", "-HUP"] {
        // A client keeps ignoring signals that were ignored at its start: these tests may run under nohup.
        if support::is_ignored(sign) {
            continue;
        }
        let mut bob = bob();
        alice.expect("* bob is online");
        bob.signal(sign);
        bob.expect(&format!("! ended by SIG{}", &sign[1..]));
        assert_eq!(bob.status(), Some(1), "{sign}");
        alice.expect("* bob has left");
    }
    // It ends even if nobody reads its output.
    let mut bob = bob();
    alice.expect("* bob is online");
    bob.output = support::Output::of(std::io::empty());
    for _ in 0..2 {
        alice.ask("/msg bob word", "<alice -> bob> word");
    }
    alice.expect("* bob has left");
}

/// PROTOCOL#lost.
#[test]
fn sender_learns_which_messages_a_killed_client_has_not_shown() {
    let server = Server::with(&["--grace", "1"]);
    let (mut alice, mut bob) = server.alice_and_bob();
    bob.signal("-STOP");
    let texts = ["first", "second", "third"];
    for text in texts {
        alice.ask(&format!("/msg bob {text}"), &format!("<alice -> bob> {text}"));
    }
    bob.child.kill().expect("it is there");
    alice.expect("* bob has left");
    let (status, lines) = alice.finish();
    let why = |text| format!("! \"{text}\" may not have arrived: bob's session ended first");
    let told: Vec<_> = lines.iter().filter(|line| line.starts_with('!')).collect();
    assert!(status == 0 && told == texts.map(why).iter().collect::<Vec<_>>(), "{lines:#?}");
}

/// PROTOCOL#lost, PROTOCOL#ack-when.
#[test]
fn message_that_a_killed_client_has_shown_is_not_lost() {
    let server = Server::with(&["--grace", "1"]);
    let (mut alice, mut bob) = server.alice_and_bob();
    exchange(&mut alice, &mut bob, "see you at 8");
    // Bob's message follows his acknowledgement.
    exchange(&mut bob, &mut alice, "fine");
    bob.child.kill().expect("it is there");
    alice.expect("* bob has left");
    let (status, lines) = alice.finish();
    assert!(status == 0 && !lines.iter().any(|line| line.starts_with('!')), "{lines:#?}");
}

/// PROTOCOL#lost, PROTOCOL#ack-when.
#[test]
fn client_that_leaves_has_acknowledged_what_it_has_shown() {
    let server = Server::start();
    let mut alice = server.client("alice").ready();
    for (end, name) in [("/exit", "bob"), ("-TERM", "carol"), ("", "dave")] {
        let mut bob = server.client(name).ready();
        alice.expect(&format!("* {name} is online"));
        exchange(&mut alice, &mut bob, "hello");
        match end {
            "/exit" => bob.say(end),
            "" => bob.end(),
            sign => bob.signal(sign),
        }
        alice.expect(&format!("* {name} has left"));
    }
    let (status, lines) = alice.finish();
    assert!(status == 0 && !lines.iter().any(|line| line.starts_with('!')), "{lines:#?}");
}

#[test]
fn lines_read_and_not_sent_are_reported_after_a_signal() {
    let server = Server::start();
    let Two { gates, mut alice, .. } = Two::on(&server);
    gates[0].hold_after(0);
    gates[0].hold_answers(true);
    // A command waits until the line before it is settled; the first one waits for bob's key.
    (0..20).for_each(|n| alice.say(&format!("/msg bob q{n:02}")));
    alice.expect("* no answer from the server");
    alice.signal("-TERM");
    let (status, lines) = alice.finish();
    let told = "! 1 message of yours was not sent: \"q00\"";
    assert_eq!(holding(&lines, told).len(), 1, "{lines:#?}");
    let unsent = "! line 2 of the input (\"/msg bob q01\") and any after it were not sent";
    assert_eq!((status, lines.last().map(String::as_str)), (1, Some(unsent)), "{lines:#?}");
}

#[test]
fn signal_ignored_at_the_start_stays_ignored() {
    let server = Server::start();
    for (sign, name) in [("-HUP", "alice"), ("-INT", "bob")] {
        let (ignore, home) = (format!("trap '' {}", &sign[1..]), Arc::new(Folder::new()));
        let mut client = Client::after(&ignore, home, server.port, name, &["--register"]).ready();
        client.signal(sign);
        client.ask("still there", "nobody else is online");
        assert_eq!(client.finish().0, 0, "{sign}");
    }
}

#[test]
fn client_that_leaves_after_a_cut_is_offline_at_once() {
    let server = Server::with(&["--grace", "3600"]);
    let (mut alice, gate) = (server.client("alice").ready(), Gate::before(&server));
    let home = Arc::new(Folder::new());
    for _ in 0..4 {
        let mut bob = gate.client(home.clone(), "bob", &["--register"]).ready();
        alice.expect("* bob is online");
        cut(&gate, &mut bob);
        bob.leaves();
        alice.expect("* bob has left");
    }
}

#[test]
fn stopped_and_continued_program_keeps_its_connections() {
    let server = Server::start();
    let waiting: Vec<_> = (0..8).map(|_| server.socket()).collect();
    let mut alice = server.raw();
    for _ in 0..3 {
        interrupt(server.child.id());
        assert!(alice.is_usable());
    }
    for socket in waiting {
        assert!(Raw::over(socket, true).is_usable());
    }
    let gate = Gate::before(&server);
    gate.hold_answers(true);
    let mut bob = gate.client(Arc::new(Folder::new()), "bob", &["--register"]);
    until("it waits for the handshake's answer", || gate.passed() > 0);
    interrupt(bob.child.id());
    gate.hold_answers(false);
    bob = bob.ready();
    interrupt(bob.child.id());
    bob.ask("is anyone there?", "! nobody else is online");
    let (status, lines) = bob.finish();
    assert!(status == 0 && holding(&lines, LOST).is_empty(), "{lines:#?}");
}
