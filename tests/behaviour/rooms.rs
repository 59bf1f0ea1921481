//! Rooms of several users, with real programs: who gets what, and who missed it.

use crate::support::{Client, Server};

/// Logged-in clients that see each other online.
fn all<const N: usize>(server: &Server, names: [&str; N]) -> [Client; N] {
    let mut clients = names.map(|name| server.client(name).ready());
    for client in &mut clients {
        let me = client.name.clone();
        names.into_iter().filter(|name| *name != me).for_each(|name| {
            if !client.has_seen(&format!("{name} (")) {
                client.meets(name);
            }
        });
    }
    clients
}

/// MANUAL#rooms, PROTOCOL#members, PROTOCOL#open-room, PROTOCOL#room-copies.
#[test]
fn room_of_three_reaches_its_members_and_nobody_else() {
    let server = Server::start();
    let [mut alice, mut bob, mut carol, dave] = all(&server, ["alice", "bob", "carol", "dave"]);
    alice.ask("/room carol BOB", "* the room of bob (new), carol (new) and you is open; /leave closes it");
    alice.ask("hello both", "<alice -> bob, carol> hello both");
    bob.expect("<alice -> bob, carol> hello both");
    carol.expect("<alice -> bob, carol> hello both");
    // The others reply to the same room, in any order and letter case.
    bob.say("/room ALICE Carol");
    bob.ask("hi @carol", "<bob -> alice, carol> hi @carol");
    alice.expect("<bob -> alice, carol> hi @carol");
    carol.expect("<bob -> alice, carol> hi @carol");
    carol.ask("/msg alice,bob from me", "<carol -> alice, bob> from me");
    alice.expect("<carol -> alice, bob> from me");
    bob.expect("<carol -> alice, bob> from me");
    // An ignored member still reads it.
    alice.ask("/ignore carol", "* messages from carol are no longer shown");
    alice.ask(
        "/room",
        "* you are talking to bob (not verified), carol (not verified; ignored, but reads this)",
    );
    alice.ask("/unignore carol", "* new messages from carol are shown again");
    // One leaves.
    let home = carol.home.clone();
    carol.leaves();
    alice.expect("* carol has left");
    alice.ask("without her", "<alice -> bob, carol> without her");
    alice.expect("* kept for carol until they log in (\"without her\")");
    bob.expect("<alice -> bob, carol> without her");
    carol = server.client_in(&home, "carol", &[]);
    carol.expect("<alice -> bob, carol> without her");
    alice.expect("* carol is online");
    alice.ask("/history hello", "* the last message with \"hello\" of this session");
    alice.expect("<alice -> bob, carol> hello both");
    // Leaving is local: the next message arrives all the same.
    alice.ask("/leave", "* conversation with bob, carol closed; you are talking to everyone");
    bob.ask("still here", "<bob -> alice, carol> still here");
    alice.expect("<bob -> alice, carol> still here");
    carol.expect("<bob -> alice, carol> still here");
    alice.ask("to all", "<alice> to all");
    for (client, own) in [(alice, 4), (bob, 5), (carol, 1)] {
        let lines = client.leaves();
        assert!(lines.iter().filter(|line| line.contains(" -> ")).count() >= own, "{lines:#?}");
        assert!(lines.iter().all(|line| !line.starts_with("! ")), "{lines:#?}");
    }
    let lines = dave.leaves();
    let seen = |line: &&String| line.contains(" -> ") || line.contains("room") || line.contains("hello");
    assert_eq!(lines.iter().find(seen), None, "{lines:#?}");
}

/// PROTOCOL#history-record.
#[test]
fn kept_history_has_the_members_of_each_room() {
    let server = Server::start();
    let [alice, mut bob, mut carol] = all(&server, ["alice", "bob", "carol"]);
    let home = alice.home.clone();
    alice.leaves();
    let mut alice = server.client_in(&home, "alice", &["--keep-history"]).ready();
    alice.ask("/msg carol,bob one", "<alice -> bob, carol> one");
    bob.expect("<alice -> bob, carol> one");
    carol.ask("/msg bob,alice two", "<carol -> alice, bob> two");
    alice.expect("<carol -> alice, bob> two");
    alice.leaves();
    let mut alice = server.client_in(&home, "alice", &["--keep-history"]).ready();
    alice.ask("/history", "* the last 2 messages of this and earlier sessions");
    assert!(alice.expect("one").ends_with("<alice -> bob, carol> one"));
    assert!(alice.expect("two").ends_with("<carol -> alice, bob> two"));
}
