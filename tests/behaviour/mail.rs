//! Messages for absent users, from a real client: what is kept, what the sender sees, and what the mailbox key opens.

use crate::support::{Client, Raw, Server, mailbox_key, times};
use secure_messenger::clock;
use secure_messenger::crypto::public::IdentityPublicKey;
use secure_messenger::protocol::{Kept, ServerMessage};

/// The texts of mail from alice.
fn texts(raw: &mut Raw, mail: &[Kept]) -> Vec<String> {
    let alice = raw.keys(&["alice"]).keys.remove(0).identity;
    let alice = IdentityPublicKey::parse(&alice.0).expect("a key");
    let text = |kept: &Kept| {
        let verified = kept.message.envelope.verify(&alice).expect("signed by alice");
        let text = verified.open(mailbox_key(), &kept.message.key.bytes()).expect("sealed for the mailbox");
        String::from_utf8(text.to_vec()).expect("UTF-8")
    };
    mail.iter().map(text).collect()
}

/// MANUAL#absent-users, PROTOCOL#mail-sender, PROTOCOL#keeping.
#[test]
fn private_messages_wait_in_order_for_an_absent_user() {
    let server = Server::start();
    let carol = server.absent("carol");
    let mut alice = server.client("alice").ready();
    alice.ask("/msg CAROL one", "! there is no account named CAROL");
    alice.ask("/msg carol one", "<alice -> carol> one");
    assert_eq!(alice.expect("until"), "* kept for carol until they log in (\"one\")");
    alice.ask(
        "/room carol",
        "! carol is offline: no room is open; what you type here is kept for carol until",
    );
    alice.ask("two", "* kept for carol until they log in (\"two\")");
    alice.ask("/sendfile carol nothing", "! carol is offline: files can be sent only to online users");
    alice.ask("/history 2", "* the last 2 messages of this session");
    alice.expect("<alice -> carol> one");
    alice.expect("<alice -> carol> two");
    // While she is online, her session gets them. When she is absent again, the mailbox continues with its next number.
    let mut raw = server.returns(&carol);
    alice.expect("* carol is online");
    alice.ask("three", "<alice -> carol> three");
    assert!(matches!(raw.answer(), Some(ServerMessage::EncryptedMessage(_))));
    raw.acknowledge();
    raw.leaves();
    alice.expect("* carol has left");
    alice.say("four");
    let lines = alice.leaves();
    assert_eq!(times(&lines, "* kept for carol until they log in"), 3, "{lines:#?}");
    let mut raw = server.returns(&carol);
    let mail = raw.fetch().mail;
    assert_eq!(texts(&mut raw, &mail), ["one", "two", "four"]);
    let numbers = mail.iter().map(|kept| kept.message.envelope.header.sequence).collect::<Vec<_>>();
    assert_eq!(numbers, [1, 2, 3]);
}

/// MANUAL#absent-users, PROTOCOL#room-copies, PROTOCOL#mail-sender.
#[test]
fn room_accounts_for_present_absent_and_unreachable_members() {
    let server = Server::start();
    let carol = server.absent("carol");
    let (dave, _) = server.present("dave");
    dave.leaves();
    let mut bob = server.client("bob").ready();
    let mut alice = server.client("alice").ready();
    alice.ask("/msg dave hello", "! dave is offline: your message was not delivered (\"hello\")");
    alice.ask("/room carol bob", "* the room of bob (new), carol (new) and you is open");
    alice.ask("one", "<alice -> bob, carol> one");
    assert_eq!(alice.expect("until"), "* kept for carol until they log in (\"one\")");
    alice.ask("/msg bob,carol,dave two", "<alice -> bob, carol, dave> two");
    let partly = "! delivered to 1 of 3: dave is offline; kept for carol until they log in (\"two\")";
    assert_eq!(alice.expect("delivered to"), partly);
    alice.say("/leave");
    alice.ask("to all", "<alice> to all");
    for line in ["<alice -> bob, carol> one", "<alice -> bob, carol, dave> two", "<alice> to all"] {
        assert_eq!(bob.expect("<alice"), line);
    }
    let mut raw = server.returns(&carol);
    let mail = raw.fetch().mail;
    let listed = |names: &[&str], text: &str| {
        let list: String =
            names.iter().map(|name| format!("{}{name}", char::from(name.len() as u8))).collect();
        format!("{}{list}{text}", char::from(names.len() as u8))
    };
    let expected =
        [listed(&["alice", "bob", "carol"], "one"), listed(&["alice", "bob", "carol", "dave"], "two")];
    assert_eq!(texts(&mut raw, &mail), expected);
}

/// MANUAL#absent-users, PROTOCOL#lost, PROTOCOL#message-id.
#[test]
fn lost_messages_are_kept_without_a_command() {
    let server = Server::start();
    let (mut raw, carol) = server.present("carol");
    assert_eq!(raw.set_mailbox(&carol.mailbox(clock::now_ms())), "mailbox_set");
    let mut alice = server.client("alice").ready();
    for text in ["one", "two", "three"] {
        alice.ask(&format!("/msg carol {text}"), &format!("<alice -> carol> {text}"));
    }
    // Her client has acknowledged none of them.
    raw.leaves();
    for text in ["one", "two", "three"] {
        alice.expect(&format!("* kept for carol until they log in (\"{text}\")"));
    }
    let lines = alice.leaves();
    assert_eq!((times(&lines, "<alice -> carol>"), times(&lines, "! ")), (3, 0), "{lines:#?}");
    let mut raw = server.returns(&carol);
    let mail = raw.fetch().mail;
    assert_eq!(texts(&mut raw, &mail), ["one", "two", "three"]);
    assert!(mail.iter().all(|kept| kept.message.envelope.header.again.is_some()));
}

/// PROTOCOL#mail-limits, PROTOCOL#mail-sender.
#[test]
fn full_mailbox_is_reported_as_such() {
    let server = Server::with(&["--mail", "64"]);
    let _carol = server.absent("carol");
    let mut alice: Client = server.client("alice").ready();
    alice.say(&format!("/msg carol {}", "x".repeat(20_000)));
    alice.expect("! carol's mailbox is full: your message was not delivered (\"xxxx");
    alice.ask("/msg carol short", "* kept for carol until they log in (\"short\")");
}

/// MANUAL#absent-users.
#[test]
fn users_all_names_known_absent_users_after_a_restart() {
    let server = Server::start();
    let _carol = server.absent("carol");
    let (dave, _) = server.present("dave");
    let mut alice = server.client("alice").ready();
    alice.ask("/msg dave one", "<alice -> dave> one");
    alice.ask("/msg carol one", "* kept for carol");
    dave.leaves();
    let home = alice.home.clone();
    alice.leaves();
    let mut alice = server.client_in(&home, "alice", &[]).ready();
    alice.ask("/users all", "* 1 online: alice (you)");
    let absent = alice.expect("absent: ");
    assert_eq!(absent, "* 2 absent: carol (not verified, messages wait), dave (not verified, no mailbox)");
    alice.ask("/view carol", "* you are talking to carol alone");
    alice.ask("two", "* kept for carol until they log in (\"two\")");
}
