//! Messages for absent users, with real programs: they wait on the server, and arrive once at the next login.

use crate::support::{Client, Folder, Gate, Server, files, holds, traces, until};
use std::sync::Arc;

/// The lines of messages from other users in a room or in private.
fn messages(lines: &[String]) -> Vec<&str> {
    lines.iter().map(String::as_str).filter(|line| line.starts_with('<') && line.contains(" -> ")).collect()
}

/// Files with messages that wait on the server.
fn waiting(server: &Server) -> Vec<std::path::PathBuf> {
    files(&server.data("mail")).into_iter().filter(|path| !path.ends_with("key")).collect()
}

/// Lets `client` end, and waits until the server has noticed; it has a mailbox then.
fn leaves(server: &Server, client: Client) -> Arc<Folder> {
    let (home, key) = (client.home.clone(), server.data("mail").join(&client.name).join("key"));
    until("the server has a mailbox key", || key.exists());
    client.leaves();
    home
}

/// PROTOCOL#keeping, PROTOCOL#mail-order, PROTOCOL#mail-records, MANUAL#absent-users.
#[test]
fn room_and_private_messages_wait_for_one_who_left() {
    let server = Server::start();
    let gate = Gate::before(&server);
    let start = |name: &str| gate.client(Arc::new(Folder::new()), name, &["--register"]).ready();
    let [mut alice, mut bob, carol, dave] = ["alice", "bob", "carol", "dave"].map(start);
    alice.expect("* dave is online");
    bob.expect("* dave is online");
    alice.ask("/msg bob,carol hello", "<alice -> bob, carol> hello");
    let home = leaves(&server, carol);
    alice.expect("* carol has left");
    bob.expect("* carol has left");
    for n in 1..=20 {
        alice.ask(&format!("/msg bob,carol number {n}"), "kept for carol until they log in");
    }
    bob.expect("number 20");
    bob.ask("/msg carol,alice from bob", "kept for carol until they log in");
    alice.ask("/msg carol a secret", "kept for carol until they log in");
    // No text and no list of members is on the server's disk.
    assert_eq!(waiting(&server).len(), 22);
    let disk: Vec<Vec<u8>> =
        files(&server.data("")).iter().filter_map(|path| std::fs::read(path).ok()).collect();
    for secret in ["a secret", "number 7", "alice,bob", "bob, carol"] {
        let traces = traces(secret.as_bytes());
        assert!(!disk.iter().any(|bytes| traces.iter().any(|trace| holds(bytes, trace))), "{secret}");
    }
    let (alice_home, bob_home) = (alice.home.clone(), bob.home.clone());
    alice.leaves();
    bob.leaves();
    // A crash of the server loses no message.
    gate.shut();
    let server = Server::within(server.kill(), &[]);
    gate.lead_to(&server);
    let mut carol = gate.client(home.clone(), "carol", &[]);
    carol.expect("* 22 messages arrived while you were away, ");
    carol.expect("<alice -> carol> a secret");
    let mut expected: Vec<String> = (1..=20).map(|n| format!("<alice -> bob, carol> number {n}")).collect();
    expected.extend(["<bob -> alice, carol> from bob".into(), "<alice -> carol> a secret".into()]);
    assert_eq!(messages(&carol.output.seen), expected);
    until("the server has deleted what was shown", || waiting(&server).is_empty());
    leaves(&server, carol);
    let carol = gate.client(home, "carol", &[]).ready();
    let (_, lines) = carol.finish();
    assert!(messages(&lines).is_empty() && !lines.iter().any(|line| line.contains("away")), "{lines:#?}");
    let lines = dave.finish().1;
    assert!(messages(&lines).is_empty(), "{lines:#?}");
    drop((alice_home, bob_home));
}

/// PROTOCOL#mail-records.
#[test]
fn mail_shown_before_a_kill_repeats_only_with_a_mark() {
    let server = Server::start();
    let (mut alice, bob) = server.alice_and_bob();
    let home = leaves(&server, bob);
    alice.expect("* bob has left");
    alice.ask("/msg bob one", "kept for bob");
    // The kill may come before the confirmation reaches the server.
    let mut bob = server.client_in(&home, "bob", &[]);
    bob.expect("<alice -> bob> one");
    drop(bob);
    alice.expect("* bob is online");
    alice.leaves();
    let mut bob = server.client_in(&home, "bob", &[]).ready();
    bob.ask("/msg bob x", "that is your own name");
    bob.end();
    let lines = bob.output.all();
    let again = messages(&lines);
    assert!(again.is_empty() || again == ["<alice -> bob> one (perhaps shown before)"], "{lines:#?}");
}

/// PROTOCOL#mail-owner.
#[test]
fn option_no_mail_makes_no_mailbox_key() {
    let server = Server::start();
    let mut alice = server.client("alice").ready();
    let carol = Client::start(&server, "carol", &["--register", "--no-mail"]).ready();
    alice.expect("* carol is online");
    carol.leaves();
    alice.expect("* carol has left");
    alice.ask("/msg carol one", "! carol is offline: your message was not delivered");
    assert!(!server.data("mail").join("carol").join("key").exists());
}

/// PROTOCOL#mail-erasing.
#[test]
fn new_login_replaces_the_mailbox_key_and_erases_the_former() {
    let server = Server::start();
    let (_alice, bob) = server.alice_and_bob();
    let key = server.data("mail").join("bob").join("key");
    let home = leaves(&server, bob);
    let (first, size) = (std::fs::read(&key).expect("a key"), || {
        let files = files(&home.path(".secure_messenger_client").join("mailbox"));
        files
            .iter()
            .filter(|path| !path.ends_with("CACHEDIR.TAG"))
            .map(|path| std::fs::metadata(path).expect("there").len())
            .sum::<u64>()
    });
    let one = size();
    let bob = server.client_in(&home, "bob", &[]).ready();
    until("the key is replaced", || std::fs::read(&key).is_ok_and(|now| now != first));
    until("the former key is erased", || size() == one);
    bob.leaves();
}

/// PROTOCOL#mail-order.
#[test]
fn plain_mode_without_input_prints_mail_and_ends() {
    let server = Server::start();
    let (mut alice, bob) = server.alice_and_bob();
    let home = leaves(&server, bob);
    alice.expect("* bob has left");
    alice.ask("/msg bob one", "kept for bob");
    let lines = server.client_in(&home, "bob", &[]).leaves();
    assert_eq!(messages(&lines), ["<alice -> bob> one"]);
    until("it is confirmed", || waiting(&server).is_empty());
}
