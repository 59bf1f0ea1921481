//! Messages for absent users, from a scripted client over TLS: kept on disk, delivered at the next login, once.

use crate::support::{
    self, Folder, Person, Raw, Server, check, files, holds, limit_files, mailbox_key, newcomer, private_to,
    send_to, shown_mailbox, traces, until, user,
};
use secure_messenger::clock;
use secure_messenger::crypto::envelope::{Header, Kind, Sealed, Word};
use secure_messenger::crypto::keys::SessionKey;
use secure_messenger::protocol::{ClientMessage, ServerMessage, WrappedKey};
use std::fs;
use std::sync::Arc;

/// PROTOCOL#mailbox, PROTOCOL#mailbox_set, PROTOCOL#mail_request, PROTOCOL#mail, PROTOCOL#mail_done,
/// PROTOCOL#mailbox-key, PROTOCOL#keeping, PROTOCOL#fetching.
#[test]
fn message_for_an_absent_user_arrives_after_a_restart_once() {
    let server = Server::start();
    let (mut raw, carol) = newcomer(&server, "carol");
    let (mut alice, from) = server.present("alice");
    let mailbox = carol.mailbox(clock::now_ms());
    assert_eq!(raw.set_mailbox(&mailbox), "mailbox_set");
    assert_eq!(raw.set_mailbox(&mailbox), "mailbox_set", "the same again");
    assert!(shown_mailbox(&mut alice, &carol).is_none(), "she is online");
    raw.leaves();
    let shown = shown_mailbox(&mut alice, &carol).expect("she is absent");
    let key = shown.verify(&carol.name, carol.identity.public(), clock::now_ms()).expect("certified");
    assert_eq!(key.fingerprint(), mailbox_key().fingerprint());
    for number in 1..=3 {
        let text = format!("attack at dawn, number {number}");
        assert_eq!(alice.outcome(&from.mail_for("carol", &key, number, &text)), "kept");
    }
    drop(alice);
    let home = server.kill();
    for file in files(&home.path("data")) {
        let bytes = fs::read(&file).expect("a file");
        let trace = traces(b"attack at dawn").into_iter().find(|trace| holds(&bytes, trace));
        assert!(trace.is_none(), "{}", file.display());
    }
    let server = Server::within(home, &[]);
    let mut raw = server.raw();
    raw.logs_in(&carol);
    let mail = raw.fetch();
    let texts: Vec<_> = mail.mail.iter().map(|kept| from.text_in(&kept.message)).collect();
    assert_eq!(texts, [1, 2, 3].map(|number| format!("attack at dawn, number {number}")));
    assert!(!mail.more && (mail.other, mail.until) == (0, 0));
    // Nothing is deleted before it is confirmed.
    assert_eq!(raw.fetch().mail.len(), 3);
    raw.confirm(&mail.mail[..1]);
    assert_eq!(raw.fetch().mail.len(), 2);
    raw.confirm(&mail.mail);
    assert_eq!(raw.fetch().mail.len(), 0);
    drop(raw);
    let server = Server::within(server.kill(), &[]);
    let mut raw = server.raw();
    raw.logs_in(&carol);
    assert_eq!(raw.fetch().mail.len(), 0);
}

/// PROTOCOL#outcome, PROTOCOL#keeping.
#[test]
fn only_a_direct_message_for_the_key_in_use_is_kept() {
    let server = Server::start();
    let carol = server.absent("carol");
    let (mut alice, from) = server.present("alice");
    let (dave, _) = server.present("dave");
    dave.leaves();
    let (mut erin, erin_herself) = server.present("erin");
    assert_eq!(erin.set_mailbox(&erin_herself.mailbox(clock::now_ms())), "mailbox_set");
    let (session, mailbox) = (carol.session.public(), mailbox_key().public());
    let other = SessionKey::generate();
    for (to, key, outcome) in [
        ("carol", mailbox, "kept"),
        ("carol", session, "stale"),
        ("carol", other.public(), "stale"),
        ("dave", session, "offline"),
        ("dave", mailbox, "offline"),
        ("erin", session, "delivered"),
        ("erin", mailbox, "stale"),
        ("nobody", mailbox, "offline"),
    ] {
        assert_eq!(alice.outcome(&from.mail_for(to, key, 7, "text")), outcome, "{to}");
    }
    assert!(alice.keys(&["dave"]).keys[0].mailbox_key.is_none());
    // File messages, unknown kinds, broadcasts and invalid envelopes are not kept.
    let envelope = |change: &dyn Fn(&mut Header)| {
        let mut header = support::header(&from, private_to("carol", mailbox), 1);
        change(&mut header);
        let sealed = Sealed::seal(header, &from.identity, b"");
        send_to("carol", 1, sealed.envelope.clone(), sealed.wrap_for(mailbox))
    };
    for kind in [Kind::FileOffer, Kind::FileCancel] {
        assert_eq!(alice.outcome(&envelope(&|header| header.kind = kind)), "offline");
    }
    let later = Kind::Later(Word::new("poke").expect("short"));
    assert_eq!(alice.outcome(&envelope(&|header| header.kind = later)), "offline");
    let mut broadcast = support::letter(&from, &["carol"], 1, 256);
    let mut id = mailbox.fingerprint().0.to_vec();
    id.resize(264, 1);
    let key = WrappedKey::new(&id.try_into().expect("264 bytes"));
    broadcast.routing.keys = [(carol.name.clone(), key)].into_iter().collect();
    assert_eq!(alice.outcome(&ClientMessage::EncryptedSend(Box::new(broadcast))), "offline");
    assert_eq!(alice.outcome(&envelope(&|header| header.from = carol.name.clone())), "wrong_sender");
    let mut raw = server.returns(&carol);
    assert_eq!(alice.outcome(&from.mail_for("carol", mailbox, 8, "text")), "stale", "she is online");
    let mail = raw.fetch();
    assert_eq!(mail.mail.len(), 1);
    raw.confirm(&mail.mail);
    // The former key keeps nothing from the moment that the next one is confirmed.
    let next = carol.identity.certify_mailbox(&carol.name, &other, clock::now_ms() + 1000);
    assert_eq!(raw.set_mailbox(&next), "mailbox_set");
    raw.leaves();
    assert_eq!(alice.outcome(&from.mail_for("carol", mailbox, 9, "text")), "stale");
    assert_eq!(alice.outcome(&from.mail_for("carol", other.public(), 10, "text")), "kept");
    let mut raw = server.returns(&carol);
    let mail = raw.fetch();
    assert!(mail.mail.is_empty() && mail.other == 1 && mail.until > clock::now_ms());
    assert_eq!(raw.fetch_for(&[other.fingerprint()]).mail.len(), 1);
}

/// PROTOCOL#lost, PROTOCOL#keeping.
#[test]
fn lost_message_can_be_kept_as_soon_as_it_is_reported() {
    let server = Server::start();
    let (mut raw, carol) = server.present("carol");
    assert_eq!(raw.set_mailbox(&carol.mailbox(clock::now_ms())), "mailbox_set");
    let (mut alice, from) = server.present("alice");
    assert_eq!(alice.outcome(&from.mail_for("carol", carol.session.public(), 5, "text")), "delivered");
    // Her client leaves before it acknowledges the message.
    raw.leaves();
    loop {
        match alice.answer() {
            Some(ServerMessage::Lost(lost)) => {
                break assert_eq!((lost.id, lost.name), (5, carol.name.clone()));
            }
            Some(_) => {}
            None => panic!("nothing is reported"),
        }
    }
    assert!(shown_mailbox(&mut alice, &carol).is_some());
    assert_eq!(alice.outcome(&from.mail_for("carol", mailbox_key().public(), 6, "text")), "kept");
    assert_eq!(server.returns(&carol).fetch().mail.len(), 1);
}

/// PROTOCOL#mail-limits, PROTOCOL#mailbox-key.
#[test]
fn server_without_mail_takes_no_key_and_hands_out_what_waits() {
    let server = Server::start();
    let carol = server.absent("carol");
    let (mut alice, from) = server.present("alice");
    let letter = |number| from.mail_for("carol", mailbox_key().public(), number, "text");
    assert_eq!(alice.outcome(&letter(1)), "kept");
    drop(alice);
    let server = Server::within(server.kill(), &["--mail", "0"]);
    let mut alice = server.returns(&from);
    assert_eq!(alice.outcome(&letter(2)), "offline");
    assert!(alice.keys(&["carol"]).keys[0].mailbox_key.is_none());
    let mut raw = server.returns(&carol);
    assert_eq!(raw.set_mailbox(&carol.mailbox(clock::now_ms() + 1000)), "no_mail");
    let mail = raw.fetch();
    assert_eq!(mail.mail.len(), 1);
    raw.confirm(&mail.mail);
    assert_eq!(raw.fetch().mail.len(), 0);
}

/// PROTOCOL#keeping, PROTOCOL#mailbox-key.
#[test]
fn full_disk_refuses_messages_until_there_is_room() {
    let server = Server::start();
    let carol = server.absent("carol");
    let ((mut alice, from), (mut dave, himself)) = (server.present("alice"), server.present("dave"));
    let letter = |number| from.mail_for("carol", mailbox_key().public(), number, "text");
    assert_eq!(alice.outcome(&letter(1)), "kept");
    // A limit on the size of files stands in for a full disk.
    if !limit_files(server.child.id(), "1000:") {
        return;
    }
    assert_eq!(alice.outcome(&letter(2)), "server_error");
    assert!(limit_files(server.child.id(), "500:"));
    assert_eq!(dave.set_mailbox(&himself.mailbox(clock::now_ms())), "server_error");
    assert!(limit_files(server.child.id(), "unlimited:"));
    assert_eq!(alice.outcome(&letter(3)), "kept");
    assert_eq!(dave.set_mailbox(&himself.mailbox(clock::now_ms())), "mailbox_set");
    server.logs("event=storage_failed user=carol");
    let server = Server::within(server.kill(), &[]);
    let numbers = |raw: &mut Raw| -> Vec<u64> {
        raw.fetch().mail.iter().map(|kept| kept.message.envelope.header.sequence).collect()
    };
    assert_eq!(numbers(&mut server.returns(&carol)), [1, 3]);
}

/// OPERATING#server-mail.
#[test]
fn removed_account_loses_the_mail_to_and_from_it() {
    let server = Server::start();
    let (carol, dave) = (server.absent("carol"), server.absent("dave"));
    let ((mut alice, from), (mut bob, other)) = (server.present("alice"), server.present("bob"));
    let key = mailbox_key().public();
    for to in ["carol", "dave"] {
        assert_eq!(alice.outcome(&from.mail_for(to, key, 1, "text")), "kept");
    }
    assert_eq!(bob.outcome(&other.mail_for("dave", key, 1, "text")), "kept");
    let remove = |home: &Folder, name: &str| user(home, &["remove", name]);
    let (status, said) = remove(&server.home, "alice");
    assert!(status == 0 && said.contains("; deleted messages to and from it: 2"), "{said}");
    assert_eq!(server.returns(&dave).fetch().mail.len(), 1);
    // Without a running server, too.
    let home = server.kill();
    let (status, said) = remove(&home, "dave");
    assert!(status == 0 && said.contains("; deleted messages to and from it: 1"), "{said}");
    assert!(!home.path("data/mail/dave").exists());
    let server = Server::within(home, &[]);
    assert_eq!(server.returns(&carol).fetch().mail.len(), 0);
    // The next account of the name has no mailbox before it uploads a key.
    let (raw, _) = server.present("dave");
    raw.leaves();
    let mut bob = server.returns(&other);
    assert_eq!(bob.outcome(&other.mail_for("dave", key, 2, "text")), "offline");
}

/// OPERATING#server-mail.
#[test]
fn check_and_status_report_what_waits_and_what_is_damaged() {
    let mut server = Server::start();
    let carol = server.absent("carol");
    let (mut alice, from) = server.present("alice");
    for number in 1..=3 {
        let letter = from.mail_for("carol", mailbox_key().public(), number, "text");
        assert_eq!(alice.outcome(&letter), "kept");
    }
    let mut paths = files(&server.data("mail/carol"));
    paths.retain(|path| path.display().to_string().ends_with("-alice"));
    paths.sort();
    let kib = paths.iter().map(|path| fs::metadata(path).expect("there").len()).sum::<u64>() / 1024;
    server.signal("-USR1");
    let line = server.output.expect("status: ");
    assert!(line.contains(&format!(" mail=3 mail_kib={kib} ")), "{line}");
    let (status, text) = check(&server.home);
    let waiting = format!("3 messages wait for absent users ({kib} KiB)");
    assert!(status == 0 && text.contains(&waiting) && !text.contains("WARNING"), "{text}");
    fs::write(&paths[0], "{\"type\":").expect("a disk");
    let (status, text) = check(&server.home);
    assert!(
        status == 0 && text.contains(&format!("WARNING: {}: not the message", paths[0].display())),
        "{text}"
    );
    let mut raw = server.returns(&carol);
    assert_eq!(raw.fetch().mail.len(), 2);
    server.logs("event=damaged_mail user=carol");
    until("it is set aside", || {
        files(&server.data("mail/carol"))
            .iter()
            .any(|path| path.display().to_string().contains(".set-aside-"))
    });
}

/// PROTOCOL#keeping.
#[test]
fn mail_for_absent_users_holds_no_descriptors() {
    let server = Server::with(&["--registrations", "100000"]);
    let (mut alice, from) = server.present("alice");
    let held = || fs::read_dir(format!("/proc/{}/fd", server.child.id())).map_or(0, Iterator::count);
    let people: Vec<Person> = (0..100).map(|n| server.absent(&format!("p{n}"))).collect();
    let before = held();
    for person in &people {
        let letter = from.mail_for(person.name.as_str(), mailbox_key().public(), 1, "text");
        assert_eq!(alice.outcome(&letter), "kept");
    }
    assert!(held() <= before + 2, "{} after {before}", held());
    let home: Arc<Folder> = server.home.clone();
    assert_eq!(files(&home.path("data/mail")).len(), 2 * people.len());
}
