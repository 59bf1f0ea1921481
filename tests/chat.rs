//! Two people and the programs they run: registration, broadcast, private messages, rooms, mentions, exit codes.

mod common;

use common::{Client, Server};

#[test]
fn people_talk_to_everyone_and_in_private() {
    let server = Server::start();
    let mut alice = server.client("alice").ready();
    let mut bob = server.client("bob").ready();
    alice.expect("* bob is on-line");
    alice.say("hello everyone");
    assert_eq!(alice.expect("hello everyone"), "<alice> hello everyone");
    assert_eq!(bob.expect("hello everyone"), "<alice> hello everyone");
    bob.say("/msg alice just for you");
    assert_eq!(bob.expect("just for you"), "<bob -> alice> just for you");
    assert_eq!(alice.expect("just for you"), "<bob -> alice> just for you");
    let (status, lines) = alice.finish();
    assert_eq!(status, 0, "{lines:#?}");
    bob.expect("* alice has left");
    assert_eq!(bob.finish().0, 0);
}

#[test]
fn a_message_reaches_a_client_that_has_logged_in_again_with_a_new_session_key() {
    let server = Server::start();
    let mut alice = server.client("alice").ready();
    let mut bob = server.client("bob").ready();
    alice.expect("* bob is on-line");
    alice.say("/msg bob one");
    alice.expect("<alice -> bob> one");
    let home = bob.home.clone();
    // A full login takes over; the older client is told and leaves.
    let mut second = Client::within(home, server.port, "bob", true, &[]).ready();
    bob.expect("! you have logged in from elsewhere");
    assert_eq!(bob.finish().0, 1);
    alice.say("/msg bob two");
    alice.expect("<alice -> bob> two");
    second.expect("<alice -> bob> two");
    alice.say("three");
    second.expect("<alice> three");
}

#[test]
fn nothing_is_shown_from_who_is_ignored_until_they_are_not() {
    let server = Server::start();
    let mut alice = server.client("alice").ready();
    let mut bob = server.client("bob").ready();
    alice.expect("* bob is on-line");
    bob.say("/ignore ALICE");
    bob.expect("* nothing from alice is shown any more");
    alice.say("one");
    alice.expect("<alice> one");
    alice.say("/msg bob two");
    alice.expect("<alice -> bob> two");
    alice.say("/room bob");
    alice.expect("* you are in a private room with bob");
    alice.say("/leave");
    // It holds in the next session, too.
    let (_, lines) = {
        let home = bob.home.clone();
        let ended = bob.finish();
        bob = Client::within(home, server.port, "bob", true, &[]).ready();
        ended
    };
    let hidden = |line: &String| line.contains("one") || line.contains("two") || line.contains("room");
    assert!(!lines.iter().any(hidden), "{lines:#?}");
    alice.expect("* bob is on-line");
    alice.say("three");
    alice.expect("<alice> three");
    // Its answer comes after what waits for bob.
    bob.say("/msg alice ping");
    bob.expect("<bob -> alice> ping");
    bob.say("/ignore");
    bob.expect("* ignored: alice");
    bob.say("/unignore carol");
    bob.expect("* carol is not ignored");
    bob.say("/unignore Alice");
    bob.expect("* what alice says from now on is shown again");
    alice.say("four");
    bob.expect("<alice> four");
    bob.say("/history OUR");
    bob.expect("* the last message with \"OUR\" of this session");
    let (_, lines) = bob.finish();
    assert!(!lines.iter().any(|line| line.contains("three")), "{lines:#?}");
}
