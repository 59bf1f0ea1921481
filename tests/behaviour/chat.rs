//! Chat with real programs: registration, broadcasts, private messages, rooms, mentions, exit codes.

use crate::support::{Bare, Client, Person, Server, name, present};
use secure_messenger::client::session::{Action, Effect};
use secure_messenger::clock;
use secure_messenger::name::Username;
use secure_messenger::protocol::{
    ClientMessage, EncryptedSend, Keys, KeysRequest, MAX_KEY_NAMES, MAX_TARGETS, Scope, Sent, ServerMessage,
};
use std::collections::BTreeSet;

/// PROTOCOL#broadcast.
#[test]
fn users_chat_with_everyone_and_in_private() {
    let server = Server::start();
    let (mut alice, mut bob) = server.alice_and_bob();
    alice.say("hello everyone");
    assert_eq!(alice.expect("hello everyone"), "<alice> hello everyone");
    assert_eq!(bob.expect("hello everyone"), "<alice> hello everyone");
    bob.say("/msg alice just for you");
    assert_eq!(bob.expect("just for you"), "<bob -> alice> just for you");
    assert_eq!(alice.expect("just for you"), "<bob -> alice> just for you");
    alice.leaves();
    bob.expect("* alice has left");
    bob.leaves();
}

#[test]
fn lines_begin_with_their_times_on_request() {
    let server = Server::start();
    let mut alice = Client::start(&server, "alice", &["--register", "--times"]).ready();
    let begin = clock::utc(clock::now_ms());
    alice.ask("/help exit", "/exit");
    let lines = alice.leaves();
    for line in &lines {
        let (time, rest) = line.split_once(' ').expect("a time");
        assert!(time.len() == begin.len() && time.ends_with('Z') && "*!<".contains(&rest[..1]), "{line}");
    }
    let answer = lines.iter().find(|line| line.contains("/exit")).expect("an answer");
    assert!(begin.as_str() <= &answer[..begin.len()], "{answer} before {begin}");
}

#[test]
fn line_that_looks_like_a_command_is_sent_to_nobody() {
    let server = Server::start();
    let mut bob = server.client("bob").ready();
    let mut alice = server.client("alice");
    // A byte order mark at the start is not part of the first line.
    alice.say("\u{feff}/msg bob with a mark");
    let mut alice = alice.ready();
    alice.expect("<alice -> bob> with a mark");
    let before = [
        "\u{feff}",
        "\u{feff}\u{feff}",
        "\u{200b}\u{feff}",
        "\u{200b}",
        "\u{fffd}",
        "\u{a0}",
        "\u{ad}",
        "\u{1b}[0m",
        "x\u{8}",
        "x\r",
        "\u{301}",
        "\u{200d}",
        "\u{1b}(B\u{1b}[m",
        "\u{1b}>",
        "\u{1b}[8mA\u{1b}[0m",
        "\u{1b}[30mA\u{1b}[m",
    ];
    for line in before.map(|before| format!("{before}/msg bob secret")) {
        alice.ask(&line, "or type // to send ");
    }
    for slash in ["\u{ff0f}", "\u{2215}", "\u{2571}", "\u{338}", " \u{29f8}"] {
        alice.ask(&format!("{slash}msg bob secret"), "! this looks like a command");
    }
    for name in ["b\u{200b}ob", "bob\u{ad}", "bo\u{301}b"] {
        alice.ask(&format!("/msg {name} secret"), "is not a valid name");
    }
    for nothing in ["\u{feff}", "\u{200b} ", "\u{3000}"] {
        alice.say(nothing);
    }
    for line in ["\0/msg bob secret", "sec\0ret"] {
        alice.ask(line, "has a zero byte: it was not sent");
    }
    alice.say("the end");
    bob.expect("<alice> the end");
    let heard: Vec<_> = bob.output.seen.iter().filter(|line| line.starts_with('<')).collect();
    assert_eq!(heard, ["<alice -> bob> with a mark", "<alice> the end"]);
}

#[test]
fn input_after_two_byte_order_marks_is_not_a_command() {
    let server = Server::start();
    let mut bob = server.client("bob").ready();
    let mut alice = server.client("alice");
    alice.say("\u{feff}\u{feff}/msg bob secret");
    let mut alice = alice.ready();
    alice.expect("! a command must begin with /");
    alice.say("the end");
    bob.expect("<alice> the end");
    assert!(bob.output.seen.iter().all(|line| !line.contains("secret")), "{:?}", bob.output.seen);
}

#[test]
fn answers_come_in_the_order_of_the_lines() {
    let server = Server::start();
    let _bob = server.client("bob").ready();
    let mut alice = server.client("alice").ready();
    for n in 0..8 {
        alice.say(&format!("word {n}"));
        alice.say(&format!("\u{200b}/msg bob {n}"));
        alice.say(&"x".repeat(50_000));
    }
    let (_, lines) = alice.finish();
    let answers: Vec<&str> = lines
        .iter()
        .filter_map(|line| match line {
            line if line.starts_with("<alice> word") => Some("said"),
            line if line.starts_with("! a command must begin") => Some("refused"),
            line if line.starts_with("! the message is too long") => Some("too long"),
            _ => None,
        })
        .collect();
    assert_eq!(answers, ["said", "refused", "too long"].repeat(8), "{lines:#?}");
}

#[test]
fn view_changes_the_addressee_and_notifies_nobody() {
    let server = Server::start();
    let mut bob = server.client("bob").ready();
    let mut alice = server.client("alice").ready();
    alice.ask("/view BOB", "* you are talking to bob alone");
    alice.ask("psst", "<alice -> bob> psst");
    alice.ask("/view", "* you are talking to everyone");
    alice.say("hello all");
    bob.expect("<alice> hello all");
    assert!(bob.output.seen.iter().all(|line| !line.contains("room")), "{:?}", bob.output.seen);
    for (line, answer) in
        [("/view 2", "views have no numbers"), ("/view carol", "no user named carol"), ("/mouse", "no mouse")]
    {
        alice.ask(line, answer);
    }
}

/// PROTOCOL#stale.
#[test]
fn message_reaches_a_client_with_a_new_session_key() {
    let server = Server::start();
    let (mut alice, mut bob) = server.alice_and_bob();
    alice.ask("/msg bob one", "<alice -> bob> one");
    let home = bob.home.clone();
    // A login replaces the older session; the older client reports that and ends.
    let mut second = server.client_in(&home, "bob", &[]).ready();
    bob.expect("! you have logged in elsewhere");
    assert_eq!(bob.finish().0, 1);
    alice.ask("/msg bob two", "<alice -> bob> two");
    second.expect("<alice -> bob> two");
    alice.say("three");
    second.expect("<alice> three");
}

#[test]
fn messages_of_an_ignored_user_are_hidden_until_unignored() {
    let server = Server::start();
    let (mut alice, mut bob) = server.alice_and_bob();
    alice.say("zero");
    bob.expect("<alice> zero");
    bob.ask("/ignore ALICE", "* messages from alice are no longer shown");
    alice.ask("one", "<alice> one");
    alice.ask("/msg bob two", "<alice -> bob> two");
    alice.ask("/room bob", "* you are in a private room with bob");
    alice.say("/leave");
    // Messages from before are not shown either.
    bob.ask("/history", "* no messages yet in this session");
    // The next session still ignores her.
    let home = bob.home.clone();
    let (_, lines) = bob.finish();
    let mut bob = server.client_in(&home, "bob", &[]).ready();
    let hidden = |line: &String| line.contains("one") || line.contains("two") || line.contains("room");
    assert!(!lines.iter().any(hidden), "{lines:#?}");
    alice.expect("* bob is online");
    alice.ask("three", "<alice> three");
    // The answer arrives after everything that waits for bob.
    bob.ask("/msg alice ping", "<bob -> alice> ping");
    bob.ask("/ignore", "* ignored users: alice");
    bob.ask("/unignore carol", "* carol is not ignored");
    bob.ask("/unignore Alice", "* new messages from alice are shown again");
    alice.say("four");
    bob.expect("<alice> four");
    bob.ask("/history OUR", "* the last message with \"OUR\" of this session");
    let (_, lines) = bob.finish();
    assert!(!lines.iter().any(|line| line.contains("three")), "{lines:#?}");
}

/// PROTOCOL#broadcast, PROTOCOL#ask-keys, PROTOCOL#sequence.
#[test]
fn broadcast_to_over_1024_users_is_split_with_one_envelope() {
    let alice = Person::new("alice");
    let mut bare = Bare::new(&alice, &[]);
    let others: BTreeSet<Username> = (0..MAX_TARGETS + 76).map(|n| name(&format!("user-{n}"))).collect();
    let names = others.iter().map(Username::as_str).chain(["alice"]);
    let mut effects = bare.hear(present(names));
    effects.extend(bare.line("hello, all of you"));
    let (mut asked, mut sends) = (BTreeSet::new(), Vec::<EncryptedSend>::new());
    loop {
        let mut request = None;
        for effect in effects {
            match effect {
                Effect::Do(Action::Send(ClientMessage::KeysRequest(KeysRequest { names }))) => {
                    assert!(request.is_none(), "one at a time");
                    assert!(names.len() <= MAX_KEY_NAMES && !names.iter().any(|name| asked.contains(name)));
                    asked.extend(names.iter().cloned());
                    request = Some(names);
                }
                Effect::Do(Action::Send(ClientMessage::EncryptedSend(send))) => sends.push(*send),
                _ => {}
            }
        }
        let Some(names) = request else { break };
        let keys = names.iter().map(|name| alice.called(name.as_str()).shown()).collect();
        effects = bare.hear(ServerMessage::Keys(Keys { keys, unknown: vec![] }));
    }
    // Keys arrive 64 at a time, and each batch gets the message at once; the next message goes to all of them.
    let everyone = |sends: &[EncryptedSend]| {
        let targets = sends.iter().flat_map(|send| &send.routing.targets);
        let once = targets.clone().count() == others.len();
        assert!(once && targets.cloned().collect::<BTreeSet<_>>() == others);
        let first = &sends[0].envelope;
        for EncryptedSend { envelope, .. } in sends {
            assert!(envelope.header.scope == Scope::Broadcast && envelope == first);
        }
        first.header.sequence
    };
    assert_eq!(everyone(&sends), 1);
    for EncryptedSend { routing, .. } in sends {
        let (id, delivered) = (routing.id, routing.targets);
        let sent = Sent { id, delivered, ..Sent::default() };
        bare.hear(ServerMessage::Sent(sent));
    }
    let sends: Vec<EncryptedSend> = bare
        .line("hello again")
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Do(Action::Send(ClientMessage::EncryptedSend(send))) => Some(*send),
            _ => None,
        })
        .collect();
    assert_eq!(everyone(&sends), 2);
    let lengths: Vec<usize> = sends.iter().map(|send| send.routing.targets.len()).collect();
    assert_eq!(lengths, [MAX_TARGETS, 76]);
    assert_ne!(sends[0].routing.id, sends[1].routing.id);
}
