//! An operator who holds the mail of an absent user, against the user's real client. It can withhold the newest mail
//! unnoticed, and nothing else.

use crate::support::{
    Client, Folder, Operator, Person, Raw, Server, files, header, private_to, shown_mailbox, times, until,
};
use secure_messenger::crypto::envelope::Sealed;
use secure_messenger::crypto::public::SessionPublicKey;
use secure_messenger::protocol::{EncryptedMessage, Kept, Mail, ServerMessage, WrappedKey};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

/// Bob, who has left, and alice, who is online.
struct Scene {
    server: Server,
    operator: Operator,
    home: Arc<Folder>,
    alice: Raw,
    from: Person,
    /// Bob's mailbox key.
    key: SessionPublicKey,
}

impl Scene {
    fn new() -> Scene {
        let server = Server::with(&["--no-tls"]);
        let operator = Operator::before(&server);
        let (mut alice, from) = server.present("alice");
        let home = Arc::new(Folder::new());
        leaves(&server, operator.client(&home, "bob").ready());
        let bob = Person::new("bob");
        let mut shown = None;
        until("bob is absent", || {
            shown = shown_mailbox(&mut alice, &bob);
            shown.is_some()
        });
        let key = shown.and_then(|shown| SessionPublicKey::parse(&shown.mailbox_key.0).ok()).expect("a key");
        Scene { server, operator, home, alice, from, key }
    }

    /// Alice has sent bob messages 1 to `count`.
    fn with_mail(count: u64) -> Scene {
        let mut scene = Scene::new();
        for number in 1..=count {
            let letter = scene.from.mail_for("bob", &scene.key, number, &format!("number {number}"));
            assert_eq!(scene.alice.outcome(&letter), "kept");
        }
        scene
    }

    fn bob(&self) -> Client {
        self.operator.client(&self.home, "bob")
    }

    /// Changes every answer to a request for mail.
    fn change(&self, change: impl Fn(Mail) -> Mail + Send + 'static) {
        self.operator.messages(move |message| match message {
            ServerMessage::Mail(mail) => vec![ServerMessage::Mail(change(mail))],
            message => vec![message],
        });
    }

    /// The files of bob's mail on the server.
    fn waiting(&self) -> Vec<PathBuf> {
        let files = files(&self.server.data("mail").join("bob"));
        files.into_iter().filter(|path| !path.ends_with("key")).collect()
    }

    /// The files of bob's mail, with their content.
    fn backup(&self) -> Vec<(PathBuf, Vec<u8>)> {
        self.waiting().into_iter().map(|path| (path.clone(), fs::read(path).expect("a file"))).collect()
    }

    /// Restores a backup: the server reads its folder only when it starts.
    fn restore(self, backup: &[(PathBuf, Vec<u8>)]) -> Scene {
        let Scene { server, operator, .. } = self;
        let home = server.kill();
        backup.iter().for_each(|(path, bytes)| fs::write(path, bytes).expect("written"));
        let server = Server::within(home, &["--no-tls"]);
        operator.gate.lead_to(&server);
        Scene { server, operator, ..self }
    }
}

/// Ends bob's client once the server has its mailbox key.
fn leaves(server: &Server, bob: Client) -> Vec<String> {
    let key = server.data("mail").join("bob").join("key");
    until("bob has a mailbox", || key.exists());
    bob.leaves()
}

fn copy(message: &EncryptedMessage) -> Box<EncryptedMessage> {
    Box::new(EncryptedMessage { envelope: message.envelope.clone(), key: message.key.clone() })
}

/// How many lines end with a text.
fn endings(lines: &[String], text: &str) -> usize {
    lines.iter().filter(|line| line.ends_with(text)).count()
}

/// PROTOCOL#mail-records, PROTOCOL#mail-refusals.
#[test]
fn mail_replayed_within_a_login_is_shown_once() {
    let scene = Scene::with_mail(2);
    scene.operator.messages(|message| match message {
        ServerMessage::Mail(Mail { mut mail, more, other, until }) => {
            let again: Vec<Kept> = mail
                .iter()
                .map(|kept| Kept { number: kept.number + 1000, message: copy(&kept.message) })
                .collect();
            // Also as a live message.
            let live = mail.first().map(|kept| ServerMessage::EncryptedMessage(copy(&kept.message)));
            mail.extend(again);
            [ServerMessage::Mail(Mail { mail, more, other, until })].into_iter().chain(live).collect()
        }
        message => vec![message],
    });
    let mut bob = scene.bob();
    bob.expect("<alice -> bob> number 2");
    until("it is confirmed", || scene.waiting().is_empty());
    let lines = leaves(&scene.server, bob);
    assert_eq!((endings(&lines, "> number 1"), endings(&lines, "> number 2")), (1, 1), "{lines:#?}");
}

/// PROTOCOL#mail-records.
#[test]
fn mail_replayed_in_a_later_login_is_confirmed_and_not_shown() {
    let scene = Scene::with_mail(2);
    // The key stays, because its successor is never confirmed.
    scene.operator.messages(|message| match message {
        ServerMessage::MailboxSet => vec![],
        message => vec![message],
    });
    let backup = scene.backup();
    let mut bob = scene.bob();
    bob.expect("<alice -> bob> number 2");
    until("it is confirmed", || scene.waiting().is_empty());
    bob.leaves();
    let scene = scene.restore(&backup);
    let bob = scene.bob();
    until("it is confirmed again", || scene.waiting().is_empty());
    let lines = bob.leaves();
    assert!(!lines.iter().any(|line| line.contains("number ")), "{lines:#?}");
}

/// PROTOCOL#mail-erasing, PROTOCOL#mail-refusals.
#[test]
fn old_mail_restored_after_its_key_is_gone_opens_nowhere() {
    let scene = Scene::with_mail(1);
    let backup = scene.backup();
    let mut bob = scene.bob();
    bob.expect("<alice -> bob> number 1");
    until("it is confirmed", || scene.waiting().is_empty());
    leaves(&scene.server, bob);
    let scene = scene.restore(&backup);
    let mut bob = scene.bob();
    bob.expect("* 1 message waits for the machine that you used before, until ");
    let lines = bob.leaves();
    assert!(!lines.iter().any(|line| line.contains("number 1")), "{lines:#?}");
    assert_eq!(scene.waiting().len(), 1, "it is not confirmed");
}

/// PROTOCOL#mail-records.
#[test]
fn withheld_and_reordered_mail_is_noticed() {
    let scene = Scene::with_mail(3);
    scene.change(|Mail { mail, more, other, until }| {
        let mail = mail.into_iter().filter(|kept| kept.message.envelope.header.sequence != 2).collect();
        Mail { mail, more, other, until }
    });
    let mut bob = scene.bob();
    bob.expect("<alice -> bob> number 3");
    let lines = bob.leaves();
    assert_eq!(times(&lines, "! 1 message from alice is missing"), 1, "{lines:#?}");
    let scene = Scene::with_mail(2);
    scene.change(|Mail { mut mail, more, other, until }| {
        mail.reverse();
        (1..).zip(&mut mail).for_each(|(number, kept)| kept.number = number);
        Mail { mail, more, other, until }
    });
    let mut bob = scene.bob();
    bob.expect("<alice -> bob> number 2");
    let lines = bob.leaves();
    assert_eq!(endings(&lines, "> number 1"), 0, "{lines:#?}");
    assert_eq!(times(&lines, "alice: it is a duplicate, or it arrived out of order"), 1, "{lines:#?}");
}

/// PROTOCOL#mail-refusals.
#[test]
fn altered_or_foreign_mail_is_refused_and_stops_no_other() {
    let mut scene = Scene::with_mail(1);
    let (path, bytes) = scene.backup().remove(0);
    let letter = scene.from.mail_for("bob", &scene.key, 2, "the last");
    assert_eq!(scene.alice.outcome(&letter), "kept");
    // The number is the first part of a file's name.
    let numbered = |number: &str| {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        path.with_file_name(format!("{number}{}", &name[number.len()..]))
    };
    let text = String::from_utf8(bytes.clone()).expect("JSON");
    let at = text.find("\"ciphertext\":\"").expect("a ciphertext") + 20;
    let mut altered = bytes.clone();
    altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
    let planted =
        [(numbered("000000000003"), altered), (numbered("000000000004"), bytes[..bytes.len() / 2].to_vec())];
    // Wrapped for bob's key, but addressed to another user.
    let foreign = header(&scene.from, private_to("carol", &scene.key), 3);
    let foreign = Sealed::seal(foreign, &scene.from.identity, b"for carol");
    let key = WrappedKey::new(&foreign.wrap_for(&scene.key));
    let foreign = EncryptedMessage { envelope: foreign.envelope, key };
    let scene = scene.restore(&planted);
    scene.change(move |Mail { mut mail, more, other, until }| {
        let after = mail.last().map_or(0, |last| last.number);
        mail.push(Kept { number: after + 1, message: copy(&foreign) });
        Mail { mail, more, other, until }
    });
    let mut bob = scene.bob();
    bob.expect("<alice -> bob> the last");
    let lines = bob.leaves();
    assert_eq!((endings(&lines, "> number 1"), endings(&lines, "> the last")), (1, 1), "{lines:#?}");
    for why in ["the signature is wrong", "it is for another user"] {
        let refused = format!("! refused a message that claims to come from alice: {why}");
        assert_eq!(times(&lines, &refused), 1, "{lines:#?}");
    }
    assert!(!lines.iter().any(|line| line.contains("for carol")), "{lines:#?}");
}

/// PROTOCOL#mail-order, PROTOCOL#mail-erasing.
#[test]
fn endless_mail_ends_after_its_messages_and_holds_nothing_up() {
    let scene = Scene::with_mail(1);
    scene.change(|mail| Mail { more: true, ..mail });
    let mut bob = scene.bob();
    // The second answer claims that there is more, and has none.
    bob.expect("! the server sent mail in a wrong order");
    bob.expect("<alice -> bob> number 1");
    let lines = bob.leaves();
    assert_eq!(endings(&lines, "> number 1"), 1, "{lines:#?}");
}
