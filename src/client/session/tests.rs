//! Tests of complete sessions: two sessions and a server between them, without threads or sockets.

mod outgoing;

use super::*;
use crate::client::audience::{Audience, Partners};
use crate::client::entry::{Entry, Place, SendState, Source};
use crate::client::store::trust::Trust;
use crate::client::transfer::{Job, Step};
use crate::crypto::envelope::{Envelope, Header, Kind, MAX_TEXT, Scope, Sealed, Word};
use crate::crypto::public::{IdentityPublicKey, WRAPPED_BYTES};
use crate::crypto::secret::{Key, random};
use crate::encoding::{Fixed, base64};
use crate::protocol::{
    EncryptedMessage, EncryptedSend, ErrorCode, Failure, Keys, Lost, MailboxCertificate, Presence, Sent,
    SessionCertificate, UserKeys, WrappedKey,
};
use miniserde::json;
use std::collections::HashMap;

const NOW: u64 = 1_800_000_000_000;

/// Two or more sessions, and the server between them.
struct Net {
    sessions: Vec<Session>,
    identities: Vec<Vec<u8>>,
    keys: Vec<SessionCertificate>,
    /// Messages from each session that the server has not read yet.
    said: Vec<VecDeque<ClientMessage>>,
    shown: Vec<Vec<Entry>>,
    wants_key: Vec<bool>,
    /// Users without a session.
    away: Vec<usize>,
    /// The mailbox keys of users who have one.
    mailboxes: HashMap<usize, (SessionKey, MailboxCertificate)>,
    /// The messages that the server keeps, with their recipients.
    mail: Vec<(Username, EncryptedMessage)>,
    now: Instant,
    folder: std::path::PathBuf,
}

const NAMES: [&str; 4] = ["alice", "bob", "carol", "dave"];

/// The server's answer to a new session key.
fn granted(newest: u64) -> crate::protocol::Session {
    crate::protocol::Session { token: Key::random(), expires: NOW, newest }
}

/// A login that begins a new session.
fn new_login() -> Event {
    let key = NewKey { key: SessionKey::generate(), created: NOW + 1, newest: NOW };
    Event::LoggedIn(Box::new(key), Duration::ZERO)
}

fn name(n: usize) -> Username {
    NAMES[n].parse().expect("name")
}

impl Net {
    fn new() -> Net {
        Net::with_records("", 2)
    }

    /// `count` users who start with the same `known_users` file.
    fn with_records(records: &str, count: usize) -> Net {
        let id: String = random::<8>().iter().map(|b| format!("{b:02x}")).collect();
        let folder = std::env::temp_dir().join(format!("session-{id}"));
        std::fs::create_dir(&folder).expect("a folder");
        std::fs::write(folder.join("known_users"), records).expect("file");
        let now = Instant::now();
        let person = |n: usize| {
            let (identity, key) = (IdentityKey::generate(), SessionKey::generate());
            let fields = identity.certify(&name(n), &key, NOW);
            let trust = TrustStore::open(&folder, &format!("server-{n}")).expect("files");
            let ignored = Ignored::open(&folder, &format!("server-{n}")).expect("a file");
            let spki = identity.public().spki();
            let session = Session::new(name(n), identity, key, (trust, ignored), now);
            (session.certified(NOW, 0), spki, fields)
        };
        let mut net = Net {
            sessions: Vec::new(),
            identities: Vec::new(),
            keys: Vec::new(),
            said: (0..count).map(|_| VecDeque::new()).collect(),
            shown: vec![Vec::new(); count],
            wants_key: vec![false; count],
            away: Vec::new(),
            mailboxes: HashMap::new(),
            mail: Vec::new(),
            now,
            folder: folder.clone(),
        };
        for (session, identity, key) in (0..count).map(person) {
            net.sessions.push(session);
            net.identities.push(identity);
            net.keys.push(key);
        }
        // Otherwise, a message that is sealed again would be marked.
        net.sessions.iter_mut().for_each(|session| session.incoming.began = Some(NOW - 3_600_000));
        for n in 0..count {
            net.list(n, (0..count).map(name).collect());
        }
        net
    }

    fn event(&mut self, n: usize, event: Event) {
        for effect in self.sessions[n].handle(event, NOW, self.now) {
            match effect {
                Effect::Do(Action::Send(message)) => self.said[n].push_back(message),
                Effect::Show(Display::Entry(entry)) => self.shown[n].push(entry),
                Effect::Do(Action::MakeSessionKey) => self.wants_key[n] = true,
                Effect::Do(_) | Effect::Show(_) | Effect::Quit(_) => {}
            }
        }
    }

    fn server(&mut self, n: usize, message: ServerMessage) {
        self.event(n, Event::Server(message));
    }

    /// The server sends `n` the first list of online users.
    fn list(&mut self, n: usize, joined: Vec<Username>) {
        self.server(
            n,
            ServerMessage::Presence(Presence { more: false, full: true, joined, left: Vec::new() }),
        );
    }

    /// The next message from `n` to the server, which must be an `encrypted_send`.
    fn next_send(&mut self, n: usize) -> Box<EncryptedSend> {
        match self.said[n].pop_front() {
            Some(ClientMessage::EncryptedSend(send)) => send,
            _ => panic!("nothing was sent"),
        }
    }

    /// How the first client ends by this event, if it does.
    fn exit(&mut self, event: Event) -> Option<Exit> {
        match self.sessions[0].handle(event, NOW, self.now).pop() {
            Some(Effect::Quit(exit)) => Some(exit),
            _ => None,
        }
    }

    /// The lines of progress that this event shows to the first client.
    fn progress(&mut self, event: Event) -> Vec<String> {
        let text =
            |effect| if let Effect::Show(Display::Progress(text)) = effect { Some(text) } else { None };
        self.sessions[0].handle(event, NOW, self.now).into_iter().filter_map(text).collect()
    }

    fn type_in(&mut self, n: usize, line: &str) {
        self.event(n, Event::Line(line.into()));
    }

    /// The server reads one message of `n`; false if there is none.
    fn step(&mut self, n: usize) -> bool {
        let Some(message) = self.said[n].pop_front() else { return false };
        match message {
            ClientMessage::KeysRequest(request) => {
                let (known, unknown) = request.names.into_iter().partition(|who| self.find(who).is_some());
                let keys = Vec::into_iter(known).map(|who: Username| {
                    let n = self.find(&who).expect("known");
                    let is_away = self.away.contains(&n);
                    let session = if is_away { None } else { Some(&self.keys[n]) };
                    let keys = UserKeys::new(who, self.identities[n].clone(), session);
                    match self.mailboxes.get(&n).filter(|_| is_away) {
                        Some((_, mailbox)) => keys.with_mailbox(mailbox),
                        None => keys,
                    }
                });
                let keys = Keys { keys: keys.collect(), unknown };
                self.server(n, ServerMessage::Keys(keys));
            }
            ClientMessage::EncryptedSend(send) => {
                let mut sent = Sent { id: send.routing.id, ..Sent::default() };
                let header = &send.envelope.header;
                let can_wait = header.kind == Kind::Message && header.recipient.is_some();
                for to in &send.routing.targets {
                    let other = self.find(to).expect("known");
                    let key = send.routing.keys.get(to).expect("wrapped");
                    let is_away = self.away.contains(&other);
                    let current = match self.mailboxes.get(&other).filter(|_| can_wait) {
                        _ if !is_away => Fingerprint::of(&self.keys[other].session_key.0).key_id(),
                        Some((_, mailbox)) => mailbox.key_id(),
                        None => {
                            sent.offline.push(to.clone());
                            continue;
                        }
                    };
                    let message = EncryptedMessage { envelope: send.envelope.clone(), key: key.clone() };
                    if key.id() != current {
                        sent.stale.push(to.clone());
                    } else if is_away {
                        sent.kept.push(to.clone());
                        self.mail.push((to.clone(), message));
                    } else {
                        sent.delivered.push(to.clone());
                        self.server(other, ServerMessage::EncryptedMessage(Box::new(message)));
                    }
                }
                self.server(n, ServerMessage::Sent(sent));
            }
            ClientMessage::Renew(fields) => {
                let newest = std::mem::replace(&mut self.keys[n], *fields).created;
                self.server(n, ServerMessage::Session(granted(newest)));
            }
            _ => {}
        }
        true
    }

    fn settle(&mut self) {
        while (0..self.sessions.len()).any(|n| self.step(n)) {}
    }

    fn find(&self, who: &Username) -> Option<usize> {
        (0..self.sessions.len()).find(|n| name(*n) == *who)
    }

    fn renew(&mut self, n: usize) {
        self.event(n, Event::NewKey(Box::new(SessionKey::generate())));
        while self.step(n) {}
    }

    /// The lines of settled entries.
    fn lines(&self, n: usize) -> Vec<String> {
        let told = |entry: &&Entry| {
            !matches!(entry.source, Source::Notice | Source::SafetyNumber)
                && !matches!(entry.sending, Some((_, SendState::InFlight)))
        };
        self.shown[n].iter().filter(told).map(Entry::line).collect()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// PROTOCOL#stale, PROTOCOL#sequence.
#[test]
fn messages_that_meet_a_renewed_key_arrive_once_and_in_order() {
    let mut net = Net::new();
    net.type_in(0, "/msg bob one");
    net.settle();
    net.renew(1);
    for line in ["/msg bob two", "three", "/msg bob four", "five"] {
        net.type_in(0, line);
    }
    // The user types more between the first and the later answers.
    net.step(0);
    net.type_in(0, "/msg bob six");
    net.step(0);
    net.type_in(0, "seven");
    net.settle();
    let received = net.lines(1);
    let texts: Vec<&str> = received.iter().filter_map(|line| line.rsplit("> ").next()).collect();
    assert_eq!(texts, ["one", "two", "three", "four", "five", "six", "seven"], "{received:#?}");
    assert!(!received.iter().any(|line| line.starts_with('!')), "{received:#?}");
    assert!(net.sessions[0].is_settled());
}

/// PROTOCOL#stale.
#[test]
fn stale_key_that_stays_is_abandoned_and_reported() {
    let mut net = Net::new();
    net.type_in(0, "/msg bob one");
    // The server repeatedly shows one key and demands another.
    let mut sealed = 0;
    for _ in 0..20 {
        if let Some(ClientMessage::EncryptedSend(send)) = net.said[0].front() {
            sealed += 1;
            let (id, stale) = (send.routing.id, send.routing.targets.clone());
            net.said[0].pop_front();
            let sent = Sent { id, stale, ..Sent::default() };
            net.server(0, ServerMessage::Sent(sent));
        } else if !net.step(0) {
            break;
        }
    }
    assert!(net.sessions[0].is_settled());
    assert!(net.lines(0)[0].starts_with("! the server did not accept it for bob"), "{:?}", net.lines(0));
    assert_eq!(sealed, 1, "nothing is sealed again for the same key");
}

/// PROTOCOL#message-id, PROTOCOL#check-again.
#[test]
fn text_reported_delivered_and_stale_is_shown_once() {
    let mut net = Net::new();
    net.type_in(0, "/msg bob one");
    for _ in 0..3 {
        while matches!(net.said[0].front(), Some(ClientMessage::KeysRequest(_))) {
            net.step(0);
        }
        let send = net.next_send(0);
        let (id, stale) = (send.routing.id, send.routing.targets.clone());
        let key = send.routing.keys.get(&name(1)).expect("wrapped").clone();
        let message = EncryptedMessage { envelope: send.envelope, key };
        net.server(1, ServerMessage::EncryptedMessage(Box::new(message)));
        // Show the sender another key each time.
        net.renew(1);
        let sent = Sent { id, stale, ..Sent::default() };
        net.server(0, ServerMessage::Sent(sent));
    }
    net.settle();
    assert_eq!(net.lines(1), ["<alice -> bob> one"]);
}

/// PROTOCOL#check-again.
#[test]
fn message_with_an_unknown_id_is_marked_unless_it_is_new() {
    let mut net = Net::new();
    let mut again = |began: u64, id: u8, sequence: u64| {
        net.sessions[0].incoming.began = Some(began);
        let change = |header: &mut Header| header.again = Some(Fixed([id; 32]));
        net.bob_sends_changed(Kind::Message, Scope::Private, sequence, (NOW, &b"one"[..]), change);
        net.lines(0).pop()
    };
    assert_eq!(again(NOW, 1, 1).as_deref(), Some("<bob -> alice> one (sent again)"));
    assert_eq!(again(NOW - 5 * 60_000 - 1, 2, 2).as_deref(), Some("<bob -> alice> one"));
    net.sessions[0].incoming.forget_some(&name(1));
    let mut again = |id: u8, sequence: u64| {
        let change = |header: &mut Header| header.again = Some(Fixed([id; 32]));
        net.bob_sends_changed(Kind::Message, Scope::Private, sequence, (NOW, &b"two"[..]), change);
        net.lines(0).len()
    };
    assert_eq!((again(1, 3), again(2, 4)), (2, 2), "these were shown");
    assert_eq!(again(3, 5), 3);
    assert!(net.lines(0)[2].ends_with("two (sent again)"));
}

/// PROTOCOL#life.
#[test]
fn owed_time_restarts_at_each_answer_and_ends_no_session() {
    let mut net = Net::new();
    let now = net.now;
    assert_eq!(net.sessions[0].owed(), None);
    net.type_in(0, "/msg bob one");
    assert_eq!(net.sessions[0].owed(), Some(now));
    let quits = |net: &mut Net, event| {
        let quits = |effect: &Effect| matches!(effect, Effect::Quit(_));
        net.sessions[0].handle(event, NOW, net.now).iter().any(quits)
    };
    for _ in 0..100 {
        net.now += Duration::from_secs(600);
        assert!(!quits(&mut net, Event::Tick));
    }
    assert_eq!(net.sessions[0].owed(), Some(now));
    // The server has sent bob's keys, and still owes the answer to the message.
    net.step(0);
    assert_eq!(net.sessions[0].owed(), Some(net.now));
    net.settle();
    assert_eq!(net.sessions[0].owed(), None);
    // The server also owes the list of online users.
    net.event(0, new_login());
    net.now += Duration::from_secs(600);
    assert!(!quits(&mut net, Event::Tick));
    assert!(net.sessions[0].owed().is_some_and(|since| since < net.now));
}

#[test]
fn status_shows_silence_until_an_answer_or_a_loss() {
    let mut net = Net::new();
    net.type_in(0, "/msg bob one");
    let since = net.now;
    net.now += Duration::from_secs(12);
    assert_eq!(net.progress(Event::Silent(Some(since))), ["no answer from the server for 12 seconds"]);
    assert_eq!(net.sessions[0].connection(), "no answer for 12 s, 1 pending");
    net.now += Duration::from_secs(1);
    net.event(0, Event::Tick);
    assert_eq!(net.sessions[0].connection(), "no answer for 13 s, 1 pending");
    assert_eq!(net.progress(Event::Silent(None)), ["the server answers again"]);
    assert_eq!(net.sessions[0].connection(), "online, 1 pending");
    net.event(0, Event::Silent(Some(since)));
    net.event(0, Event::Lost("no answer".into()));
    assert!(net.sessions[0].connection().starts_with("CONNECTION LOST"));
}

#[test]
fn exit_waits_for_sent_messages_even_without_a_connection() {
    let mut net = Net::new();
    net.type_in(0, "/msg bob one");
    net.step(0);
    net.event(0, Event::Lost("gone".into()));
    assert_eq!(net.exit(Event::Line("/quit".into())), None);
    net.now += Duration::from_secs(119);
    assert_eq!(net.exit(Event::Tick), None);
    net.now += Duration::from_secs(1);
    let last = "1 message of yours was not acknowledged and may not have arrived: \"one\"";
    assert_eq!(net.exit(Event::Tick), Some(Exit { status: 1, warnings: vec![last.into()], waits: false }));
    // Without anything to wait for, the client leaves at once.
    let mut net = Net::new();
    net.event(0, Event::Lost("gone".into()));
    assert_eq!(net.exit(Event::Line("/exit".into())).map(|exit| exit.status), Some(0));
}

/// PROTOCOL#ack-when.
#[test]
fn exit_waits_for_the_key_of_a_message_that_has_arrived() {
    let mut net = Net::new();
    net.type_in(1, "/msg alice hello");
    while net.step(1) {}
    assert!(net.lines(0).is_empty(), "the key is requested");
    assert_eq!(net.exit(Event::Line("/exit".into())), None);
    net.settle();
    assert_eq!(net.lines(0), ["<bob -> alice> hello"]);
    // A message under a changed key does not delay the exit.
    let mut net = Net::with_swapped_bob();
    net.bob_sends(Kind::Message, Scope::Private, 1, NOW, b"unread");
    assert!(net.exit(Event::Line("/exit".into())).is_some());
}

#[test]
fn ended_session_releases_everything_and_reports_no_more() {
    let mut net = Net::new();
    net.bob_sends(Kind::FileOffer, Scope::Private, 1, NOW, &offer(1));
    net.type_in(0, "/acceptfile");
    let error = Failure::new(ErrorCode::SignedInElsewhere, "gone");
    let effects = net.sessions[0].handle(Event::Server(ServerMessage::Error(error)), NOW, net.now);
    let stops =
        |effect: &Effect| matches!(effect, Effect::Do(Action::Transfer(1, Job::Stop { discard: false })));
    assert!(effects.iter().any(stops));
    let Some(Effect::Quit(exit)) = effects.last() else { panic!("it has not ended") };
    assert_eq!((exit.status, exit.waits), (1, false));
    assert!(net.sessions[0].progress().next().is_none() && net.sessions[0].files.is_idle());
    net.now += Duration::from_secs(48 * 3600);
    for event in [Event::Tick, Event::Closed("gone".into()), Event::Line("hi".into()), Event::LeaveNow] {
        assert!(net.sessions[0].handle(event, NOW, net.now).is_empty());
    }
}

/// A line after a refused `/room` or `/view` was meant for that conversation only.
#[test]
fn line_after_a_refused_change_of_conversation_goes_nowhere() {
    for refused in [
        "/view bob2",
        "/view bob,",
        "/view 7",
        "/view",
        "/room me!",
        "/room alice",
        "/rooom bob",
        "/VIEW nobody",
        " /room bob",
        "\u{2215}room bob",
        "/v\u{456}ew bob",
    ] {
        let mut net = Net::new();
        let is_refused = refused != "/view";
        net.type_in(0, refused);
        net.type_in(0, "a secret");
        net.settle();
        assert_eq!(
            net.count("\"a secret\" was not sent: you are talking to nobody"),
            usize::from(is_refused)
        );
        assert_eq!(net.lines(1).iter().any(|line| line.contains("a secret")), !is_refused, "{refused}");
        for (back, partner) in
            [("/view bob", Some(name(1).into())), ("/leave", None), ("/room bob", Some(name(1).into()))]
        {
            net.type_in(0, refused);
            net.type_in(0, back);
            assert_eq!(net.sessions[0].partners(), partner.as_ref());
            net.type_in(0, back);
            net.type_in(0, "another line");
            net.settle();
            let said = net.lines(0).iter().filter(|line| line.contains("another line")).count();
            assert_eq!(said, 1, "{refused}, {back}");
            net.shown[0].clear();
        }
    }
    // A line that is not text may have been such a command.
    for (line, is_sent) in [("/room b\u{fffd}la", false), ("caf\u{fffd}", true)] {
        let mut net = Net::new();
        net.event(0, Event::NotText(NotText { problem: "not UTF-8".into(), approximation: line.into() }));
        net.type_in(0, "a secret");
        net.settle();
        assert_eq!(net.lines(1).iter().any(|line| line.contains("a secret")), is_sent, "{line}");
    }
    // Another refused command does not change where lines go.
    let mut net = Net::new();
    net.type_in(0, "/hlep");
    net.type_in(0, "/msg bob");
    net.type_in(0, "hello");
    net.settle();
    assert!(net.lines(1).iter().any(|line| line.contains("hello")));
}

#[test]
fn message_typed_without_a_connection_is_reported_as_not_sent() {
    let lost = || {
        let mut net = Net::new();
        net.type_in(0, "/msg bob one");
        net.step(0);
        net.event(0, Event::Lost("gone".into()));
        net.now += Duration::from_secs(1);
        net.type_in(0, "/msg bob two");
        net
    };
    assert_eq!(
        lost().exit(Event::LeaveNow).expect("an end").warnings,
        [
            "1 message of yours was not acknowledged and may not have arrived: \"one\"",
            "1 message of yours was not sent: \"two\""
        ]
    );
    let mut net = lost();
    net.event(0, new_login());
    let maybe = "! the connection was lost before the server confirmed it: \"one\" may not have arrived";
    for line in [maybe, "! there was no connection: \"two\" was not sent"] {
        assert!(net.lines(0).iter().any(|shown| shown == line), "{:#?}", net.lines(0));
    }
}

#[test]
fn exit_reports_once_why_it_waits() {
    let mut net = Net::new();
    let mut said = |after: u64, event| -> Vec<String> {
        net.now += Duration::from_millis(after);
        net.progress(event)
    };
    for text in ["/msg bob one", "/msg bob two", "/quit"] {
        assert!(said(0, Event::Line(text.into())).is_empty());
    }
    assert!(said(499, Event::Tick).is_empty(), "most ends are faster");
    let words = "leaving: 2 messages are not acknowledged yet; Ctrl-C leaves now";
    assert_eq!(said(1, Event::Tick), [words]);
    assert!(said(1000, Event::Tick).is_empty());
    assert_eq!(net.sessions[0].leaving().as_deref(), Some(words));
}

/// PROTOCOL#session-key.
#[test]
fn session_key_renews_daily_and_former_opens_for_a_minute() {
    let mut net = Net::new();
    net.event(1, Event::Tick);
    assert!(!net.wants_key[1]);
    net.now += Duration::from_secs(23 * 3600);
    net.event(1, Event::Tick);
    assert!(net.wants_key[1], "a new key is due after 23 hours");
    net.type_in(0, "/msg bob one");
    net.step(0);
    net.type_in(1, "/msg alice zero");
    // Sealed for the former key, delivered after the renewal.
    let former = net.sessions[1].cx.account.current().fingerprint();
    let send = net.next_send(0);
    net.renew(1);
    assert!(
        net.sessions[1].cx.account.session_keys().any(|key| key.fingerprint() == former)
            && net.sessions[1].cx.account.current().fingerprint() != former
    );
    let key = send.routing.keys.get(&send.routing.targets[0]).expect("wrapped").clone();
    let message = EncryptedMessage { envelope: send.envelope.clone(), key };
    net.server(1, ServerMessage::EncryptedMessage(Box::new(message)));
    net.settle();
    assert!(net.lines(1).iter().any(|line| line == "<alice -> bob> one"), "{:?}", net.lines(1));
    net.now += Duration::from_secs(61);
    net.event(1, Event::Tick);
    assert!(
        !net.sessions[1].cx.account.session_keys().any(|key| key.fingerprint() == former),
        "the former key is gone"
    );
}

impl Net {
    /// The server reports to alice that bob has left and returned.
    fn bob_returns(&mut self) {
        self.bob_leaves();
        self.bob_joins();
    }

    fn bob_leaves(&mut self) {
        self.change(&[], &[1]);
    }

    fn bob_joins(&mut self) {
        self.change(&[1], &[]);
    }

    /// The server reports to alice who has joined and left.
    fn change(&mut self, joined: &[usize], left: &[usize]) {
        let [joined, left] = [joined, left].map(|who| who.iter().map(|n| name(*n)).collect());
        let presence = Presence { more: false, full: false, joined, left };
        self.server(0, ServerMessage::Presence(presence));
    }

    /// Alice has met the true bob; then the server has swapped his keys, and her next message was refused.
    fn with_swapped_bob() -> Net {
        let mut net = Net::new();
        net.type_in(0, "/msg bob one");
        net.settle();
        net.bob_returns();
        net.swap_bob();
        net.type_in(0, "/msg bob two");
        net.settle();
        net
    }

    /// Makes the server show its own keys for bob.
    fn swap_bob(&mut self) {
        let (identity, key) = (IdentityKey::generate(), SessionKey::generate());
        self.keys[1] = identity.certify(&name(1), &key, NOW);
        self.identities[1] = identity.public().spki();
    }
}

#[test]
fn key_swapped_between_comparison_and_decision_is_refused() {
    let mut net = Net::with_swapped_bob();
    net.type_in(0, "/verify bob");
    let warnings = |net: &Net| net.lines(0).iter().filter(|line| line.contains("HAS CHANGED")).count();
    let before = warnings(&net);
    assert!(before >= 1, "{:?}", net.lines(0));
    // After the comparison, the server shows yet another key.
    net.swap_bob();
    net.type_in(0, "/verify bob yes");
    net.settle();
    assert!(warnings(&net) > before + 1, "the second change is reported too: {:?}", net.lines(0));
    net.type_in(0, "/trust bob");
    assert!(net.lines(0).last().is_some_and(|line| line.contains("compare again")), "{:?}", net.lines(0));
    net.type_in(0, "/msg bob three");
    net.settle();
    assert!(!net.lines(0).iter().any(|line| line.contains("> three")), "{:?}", net.lines(0));
    // The refusal has shown the number of the current key, so the decision now applies to that key.
    net.type_in(0, "/trust bob");
    assert!(!net.sessions[0].contacts.has_changed(&name(1)));
}

#[test]
fn refused_message_fails_and_later_ones_are_sent() {
    let mut net = Net::new();
    net.type_in(0, "/msg bob one");
    net.step(0);
    net.type_in(0, "/msg bob two");
    for _ in ["one", "two"] {
        let send = net.next_send(0);
        let failure = Failure { id: Some(send.routing.id), ..Failure::new(ErrorCode::Malformed, "no") };
        net.server(0, ServerMessage::Error(failure));
    }
    let failed = |entry: &&Entry| matches!(entry.sending, Some((_, SendState::Failed(_))));
    assert_eq!(net.shown[0].iter().filter(failed).count(), 2, "{:#?}", net.shown[0]);
    assert!(net.count("the server refused your message: no") > 0);
    assert!(net.sessions[0].is_settled());
    // No message is in flight, so a renewed key is used at once.
    net.renew(1);
    net.type_in(0, "/msg bob three");
    net.settle();
    assert!(net.lines(1).last().is_some_and(|line| line.ends_with("> three")), "{:?}", net.lines(1));
}

#[test]
fn broadcast_that_only_some_received_is_reported_so() {
    let mut net = Net::with_records("", 3);
    net.type_in(0, "hello");
    net.step(0);
    let send = net.next_send(0);
    let sent =
        Sent { id: send.routing.id, delivered: vec![name(1)], stale: vec![name(2)], ..Sent::default() };
    net.server(0, ServerMessage::Sent(sent));
    net.event(0, new_login());
    assert_eq!(net.count("some users may not have received"), 1, "{:#?}", net.shown[0]);
}

#[test]
fn message_is_pending_then_taken_or_failed_and_resent_once() {
    let mut net = Net::new();
    let states = |net: &mut Net| -> Vec<(u64, SendState)> {
        net.shown[0].drain(..).filter_map(|entry| entry.sending).collect()
    };
    net.type_in(0, "/msg bob one");
    assert_eq!(states(&mut net), [(1, SendState::InFlight)]);
    net.settle();
    assert_eq!(states(&mut net), [(1, SendState::Taken)]);
    // Bob is offline when the server reads the next message.
    net.type_in(0, "/msg bob two");
    let send = net.next_send(0);
    let sent = Sent { id: send.routing.id, offline: send.routing.targets, ..Sent::default() };
    net.server(0, ServerMessage::Sent(sent));
    let why = SendState::Failed("bob is offline: your message was not delivered".into());
    let last = net.shown[0].iter().next_back().expect("it failed");
    assert_eq!(last.line(), "! bob is offline: your message was not delivered (\"two\")");
    assert_eq!(states(&mut net), [(2, SendState::InFlight), (2, why)]);
    net.event(0, Event::Resend(2));
    net.settle();
    assert_eq!(states(&mut net), [(2, SendState::InFlight), (2, SendState::Taken)]);
    // The number of the withheld message is missing, which is reported.
    let gap = "! 1 message from alice is missing";
    assert_eq!(net.lines(1), ["<alice -> bob> one", gap, "<alice -> bob> two"]);
    net.event(0, Event::Resend(2));
    assert!(net.lines(0)[0].contains("no longer available"), "{:?}", net.lines(0));
}

impl Net {
    /// The server reports to `n` that a message may not have arrived.
    fn lose(&mut self, n: usize, id: u64, who: &str) {
        let name = who.parse().expect("name");
        self.server(n, ServerMessage::Lost(Lost { id, name }));
    }

    /// The numbers and reasons of messages of `n` that have failed since the last call.
    fn failed(&mut self, n: usize) -> Vec<(u64, String)> {
        let failed = |entry: Entry| match entry.sending {
            Some((number, SendState::Failed(why))) => Some((number, why)),
            _ => None,
        };
        self.shown[n].drain(..).filter_map(failed).collect()
    }
}

/// PROTOCOL#lost.
#[test]
fn lost_message_fails_without_another_key() {
    let mut net = Net::new();
    ["/msg bob one", "to everyone", "/msg bob two"].iter().for_each(|line| net.type_in(0, line));
    net.settle();
    assert_eq!(net.failed(0), []);
    net.lose(0, 3, "bob");
    net.settle();
    let why = |text: &str| format!("\"{text}\" may not have arrived: bob's session ended first");
    assert_eq!(net.shown[0][0].line(), format!("! {}", why("two")));
    assert_eq!(net.failed(0), [(3, why("two"))]);
    net.event(0, Event::Resend(3));
    net.settle();
    assert_eq!(net.lines(1).last().expect("it came again"), "<alice -> bob> two");
    // `lost` may overtake the answer.
    net.type_in(0, "/msg bob three");
    net.lose(0, 5, "bob");
    assert_eq!(net.failed(0), []);
    net.settle();
    assert_eq!(net.failed(0), [(4, why("three"))]);
}

#[test]
fn history_shows_a_lost_message_once_in_its_last_state() {
    let mut net = Net::new();
    ["/msg bob one", "/msg bob two"].iter().for_each(|line| net.type_in(0, line));
    net.settle();
    let history = |net: &mut Net| {
        net.shown[0].clear();
        net.type_in(0, "/history");
        net.lines(0)
    };
    let (one, two) = ("* <alice -> bob> one", "* <alice -> bob> two");
    let lost = format!("{one} (may not have arrived)");
    net.lose(0, 1, "bob");
    net.settle();
    assert_eq!(history(&mut net), [&lost, two]);
    net.event(0, Event::Resend(1));
    net.settle();
    assert_eq!(history(&mut net), [one, two]);
    // A loss after the second delivery is the loss of the same message.
    net.lose(0, 3, "bob");
    net.settle();
    assert_eq!(history(&mut net), [&lost, two]);
}

/// PROTOCOL#lost.
#[test]
fn lost_of_an_unknown_message_is_reported_once() {
    let mut net = Net::new();
    let send = |net: &mut Net, count: u64| {
        (0..count).for_each(|n| net.type_in(0, &format!("/msg bob {n}")));
        net.settle();
        net.shown[0].clear();
    };
    send(&mut net, 1);
    // A repetition, another recipient, and an unknown message.
    net.lose(0, 1, "bob");
    net.settle();
    assert_eq!(net.failed(0).len(), 1);
    for (id, name) in [(1, "bob"), (1, "carol"), (99, "bob")] {
        net.lose(0, id, name);
    }
    let notice =
        |name: &str| format!("! some messages to {name} may not have arrived: their session ended first");
    assert_eq!(net.lines(0), [notice("bob"), notice("carol")]);
    // The client remembers 256 delivered messages for 5 minutes.
    for _ in 0..257 {
        send(&mut net, 1);
    }
    net.lose(0, 2, "bob");
    assert_eq!(net.failed(0), []);
    net.now += Duration::from_secs(299);
    net.lose(0, 3, "bob");
    net.settle();
    assert_eq!(net.failed(0).len(), 1);
    net.now += Duration::from_secs(1);
    net.lose(0, 258, "bob");
    assert_eq!(net.failed(0), []);
}

#[test]
fn history_lists_each_message_with_its_time() {
    let mut net = Net::new();
    net.type_in(0, "/msg bob hello");
    net.settle();
    net.shown[0].clear();
    let line = Event::Line("/history".into());
    let told: Vec<_> = net.sessions[0]
        .handle(line, NOW + 3_600_000, net.now)
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Show(Display::Entry(entry)) => Some((entry.time - NOW, entry.text)),
            _ => None,
        })
        .collect();
    let head = "the last message of this session".to_string();
    assert_eq!(told, [(3_600_000, head), (0, "<alice -> bob> hello".into())]);
}

#[test]
fn unsendable_message_is_kept_for_another_try() {
    let mut net = Net::new();
    net.bob_leaves();
    net.type_in(0, "is anybody there?");
    assert_eq!(net.lines(0), ["! nobody else is online: your message was not sent (\"is anybody there?\")"]);
    for n in 0..64 {
        net.type_in(0, &format!("{n}"));
    }
    let at_hand: Vec<u64> = (0..200).filter(|number| net.sessions[0].can_resend(*number)).collect();
    assert_eq!(at_hand.len(), 64, "a bounded number of them");
    net.bob_joins();
    net.event(0, Event::Resend(at_hand[63]));
    net.settle();
    assert_eq!(net.lines(1), ["<alice> 63"]);
}

#[test]
fn text_goes_to_the_shown_view_and_a_switch_notifies_nobody() {
    let mut net = Net::new();
    for event in [
        Event::Switch(Some(name(1).into())),
        Event::Line("private".into()),
        Event::Line("/room bob".into()),
        Event::Line("room".into()),
        Event::Switch(None),
        Event::Line("public".into()),
        Event::Switch(Some(name(1).into())),
        Event::Line("/room bob".into()),
        Event::Line("room again".into()),
        Event::Line("/leave".into()),
        Event::Line("/leave".into()),
        Event::Line("public again".into()),
    ] {
        net.event(0, event);
        net.settle();
    }
    let said = |entry: &Entry| match &entry.source {
        Source::User { to: Audience::Everyone, .. } => format!("everyone: {}", entry.text),
        Source::User { to: Audience::Private(_), .. } => format!("private: {}", entry.text),
        Source::User { to: Audience::Room(_), .. } => format!("room: {}", entry.text),
        _ => entry.text.clone(),
    };
    assert_eq!(
        net.shown[1].iter().skip(1).map(said).collect::<Vec<_>>(),
        [
            "private: private",
            "alice has opened a private room with you: /room alice joins it",
            "room: room",
            "everyone: public",
            "room: room again",
            "alice has left the room",
            "everyone: public again",
        ]
    );
}

#[test]
fn refused_room_does_not_make_later_text_public() {
    let mut net = Net::with_swapped_bob();
    assert!(net.sessions[0].contacts.has_changed(&name(1)));
    net.shown.iter_mut().for_each(Vec::clear);
    net.said.iter_mut().for_each(VecDeque::clear);
    for line in ["/room bob", "a secret"] {
        net.type_in(0, line);
    }
    let sent = |message: &ClientMessage| matches!(message, ClientMessage::EncryptedSend(_));
    assert!(!net.said[0].iter().any(sent));
    let refused = "! the key of bob has changed: your message was not sent (\"a secret\")".to_string();
    assert!(net.lines(0).contains(&refused), "{:?}", net.lines(0));
    assert!(net.shown[0].iter().all(|entry| entry.trust.is_none()), "no mark of the former key");
    // No room is open, because the partner was not notified.
    assert!(
        !net.sessions[0].has_room(&name(1).into()) && net.sessions[0].partners() == Some(&name(1).into())
    );
}

#[test]
fn room_whose_partner_was_not_notified_can_be_reopened() {
    let mut net = Net::new();
    net.bob_leaves();
    net.type_in(0, "/room bob");
    net.step(0);
    let send = net.next_send(0);
    let sent = Sent { id: send.routing.id, offline: send.routing.targets, ..Sent::default() };
    net.server(0, ServerMessage::Sent(sent));
    net.bob_joins();
    net.type_in(0, "/room bob");
    net.settle();
    assert!(net.shown[1].iter().any(|entry| entry.text.contains("has opened a private room")));
}

#[test]
fn nothing_overtakes_an_unanswered_message() {
    let mut net = Net::new();
    net.type_in(0, "/msg bob zero");
    net.settle();
    net.type_in(0, "/msg bob one");
    // The server holds the message; meanwhile bob returns with a new session key.
    let held = net.said[0].pop_front().expect("one is in flight");
    net.renew(1);
    net.bob_returns();
    net.type_in(0, "/msg bob two");
    net.settle();
    net.said[0].push_front(held);
    net.settle();
    let received = net.lines(1);
    assert_eq!(received, ["zero", "one", "two"].map(|text| format!("<alice -> bob> {text}")));
}

#[test]
fn renewal_is_due_without_a_tick() {
    let mut net = Net::new();
    net.now += Duration::from_secs(23 * 3600);
    net.server(1, ServerMessage::Pong);
    assert!(net.wants_key[1], "a new key is due, whatever happens meanwhile");
    net.wants_key[1] = false;
    net.now += Duration::from_secs(599);
    net.server(1, ServerMessage::Pong);
    assert!(!net.wants_key[1]);
    net.now += Duration::from_secs(2);
    net.server(1, ServerMessage::Pong);
    assert!(net.wants_key[1], "an attempt that was never confirmed is made again");
}

#[test]
fn repeated_presence_list_is_reported_and_adds_nobody() {
    let mut net = Net::new();
    net.list(0, vec![name(0), name(1), "phantom".parse().expect("name")]);
    assert!(net.lines(0)[0].contains("unexpected message"), "{:?}", net.lines(0));
    assert_eq!(net.sessions[0].online(), 2);
}

impl Net {
    fn failure(text: String) -> ServerMessage {
        ServerMessage::Error(Failure { code: "odd".into(), ..Failure::new(ErrorCode::Malformed, text) })
    }

    /// Delivers a message of bob's with this header to alice.
    fn bob_sends(&mut self, kind: Kind, scope: Scope, sequence: u64, time: u64, text: &[u8]) {
        self.bob_sends_changed(kind, scope, sequence, (time, text), |_| ());
    }

    fn bob_sends_changed(
        &mut self,
        kind: Kind,
        scope: Scope,
        sequence: u64,
        (time, text): (u64, &[u8]),
        change: impl FnOnce(&mut Header),
    ) {
        let session = self.sessions[0].cx.account.current();
        let to_one = scope != Scope::Broadcast;
        let bob = &self.sessions[1];
        let mut header = Header {
            kind,
            scope,
            recipient: to_one.then(|| name(0)),
            recipient_key: to_one.then(|| session.fingerprint()),
            from: name(1),
            identity: bob.cx.account.identity.public().fingerprint(),
            session: bob.cx.account.current().fingerprint(),
            sequence,
            time,
            again: None,
        };
        change(&mut header);
        let sealed = Sealed::seal(header, &bob.cx.account.identity, text);
        let key = WrappedKey::new(&sealed.wrap_for(session.public()));
        let message = EncryptedMessage { envelope: sealed.envelope, key };
        self.server(0, ServerMessage::EncryptedMessage(Box::new(message)));
        self.settle();
    }

    fn minutes_pass(&mut self, minutes: u64) {
        for _ in 0..minutes {
            self.now += Duration::from_secs(60);
            self.event(0, Event::Tick);
        }
    }

    fn count(&self, part: &str) -> usize {
        self.shown[0].iter().filter(|entry| entry.line().contains(part)).count()
    }
}

/// PROTOCOL#notices.
#[test]
fn expired_certificate_is_reported_once_then_counted() {
    let mut net = Net::new();
    // A day and a half ago.
    net.keys[1] =
        net.sessions[1].cx.account.identity.certify(&name(1), &SessionKey::generate(), NOW - 130_000_000);
    for n in 0..20 {
        net.type_in(0, &format!("hello {n}"));
        net.settle();
    }
    let (unusable, missed) = ("the keys of bob cannot be used", "bob did not receive");
    assert_eq!((net.count(unusable), net.count(missed)), (1, 1), "{:#?}", net.lines(0));
    net.minutes_pass(1);
    assert_eq!((net.count(unusable), net.count(missed)), (2, 2));
    assert_eq!(net.count("\"hello 19\" (19 more times)"), 1, "{:#?}", net.lines(0));
    net.minutes_pass(10);
    assert_eq!((net.count(unusable), net.count(missed)), (2, 2), "nothing happened meanwhile");
    // An ignored user causes no notices.
    net.shown[0].clear();
    net.type_in(0, "/ignore BOB");
    net.type_in(0, "hello again");
    net.settle();
    assert_eq!((net.count(unusable), net.count(missed)), (0, 0), "{:#?}", net.lines(0));
    assert_eq!(net.count("nobody received your message"), 1);
}

/// PROTOCOL#notices.
#[test]
fn flood_from_the_server_shows_few_lines() {
    let mut net = Net::new();
    net.shown[0].clear();
    let names = |n: u64, kind: &str| -> Vec<Username> {
        // Include names that differ only in letter case.
        let letters = format!("{n:010b}").replace('0', "a").replace('1', "A");
        vec![format!("{kind}-{letters}").parse().expect("a name")]
    };
    for n in 0..1000 {
        net.server(0, Net::failure(format!("problem {n} {}", "x".repeat(9000))));
        net.event(0, Event::Unreadable(DecodeError::Malformed));
        net.server(0, ServerMessage::Registered);
        net.server(0, ServerMessage::Keys(Keys { keys: vec![], unknown: names(n, "odd") }));
        let sent = Sent { id: n, ..Sent::default() };
        net.server(0, ServerMessage::Sent(sent));
        net.server(0, ServerMessage::Session(granted(0)));
        for (joined, left) in [(names(n, "some"), vec![]), (vec![], names(n, "some"))] {
            net.server(0, ServerMessage::Presence(Presence { more: false, full: false, joined, left }));
        }
    }
    let lines: Vec<String> = net.shown[0].iter().map(Entry::line).collect();
    assert!(lines.len() <= 10 + 60, "{} lines", lines.len());
    assert!(lines.iter().all(|line| line.len() < 1000), "{lines:#?}");
    net.minutes_pass(1);
    assert!(net.count("(999 more times)") > 0 && net.count("more problems with the server") == 1);
    assert!(net.shown[0].len() <= 2 * (10 + 60), "{:#?}", net.lines(0));
}

/// PROTOCOL#notices.
#[test]
fn counted_notices_are_shown_at_the_end() {
    let mut net = Net::new();
    for _ in 0..3 {
        net.event(0, Event::Unreadable(DecodeError::Malformed));
    }
    assert_eq!(net.count("invalid message"), 1);
    net.type_in(0, "/exit");
    assert_eq!(net.count("(2 more times)"), 1, "{:#?}", net.lines(0));
}

/// PROTOCOL#later-versions.
#[test]
fn envelopes_of_later_versions_are_counted_and_reported_once() {
    let mut net = Net::new();
    let word = |text: &str| Word::new(text).expect("short");
    let scopes = [
        (Kind::Later(word("poll")), Scope::Private),
        (Kind::Later(word("poll")), Scope::Room),
        (Kind::Message, Scope::Later(word("channel"))),
        (Kind::Later(word(&"x".repeat(32))), Scope::Later(word(""))),
    ];
    net.bob_sends(Kind::Message, Scope::Private, 1, NOW, b"one");
    for (sequence, (kind, scope)) in (2..).zip(scopes) {
        net.bob_sends(kind, scope, sequence, NOW, b"what this is, nobody here knows");
    }
    for sequence in 1..4 {
        net.bob_sends(Kind::Later(word("poll")), Scope::Broadcast, sequence, NOW, b"");
        net.event(0, Event::Unreadable(DecodeError::UnknownType));
    }
    net.bob_sends(Kind::Message, Scope::Private, 6, NOW, b"two");
    net.bob_sends(Kind::Message, Scope::Broadcast, 4, NOW, b"three");
    net.minutes_pass(9);
    assert_eq!(net.lines(0), ["<bob -> alice> one", "<bob -> alice> two", "<bob> three"]);
    assert_eq!(net.count("this version does not know"), 1);
}

/// PROTOCOL#check-sequence.
#[test]
fn refused_message_is_not_also_missing() {
    let mut net = Net::new();
    net.bob_sends(Kind::Message, Scope::Private, 1, NOW, b"one");
    net.bob_sends(Kind::Message, Scope::Private, 2, NOW, &[0xff]);
    net.bob_sends(Kind::RoomOpened, Scope::Private, 3, NOW, b"");
    net.bob_sends(Kind::Message, Scope::Private, 4, NOW, b"four");
    assert_eq!((net.count("refused a message"), net.count("missing")), (2, 0), "{:#?}", net.lines(0));
    net.bob_sends(Kind::Message, Scope::Private, 6, NOW, b"six");
    assert_eq!(net.count("! 1 message from bob is missing"), 1, "{:#?}", net.lines(0));
    net.bob_sends(Kind::Message, Scope::Private, u64::MAX - 1, NOW, b"last");
    net.minutes_pass(1);
    let missing = "! more than 10000000 messages from bob are missing in total (once more)";
    assert_eq!(net.count(missing), 1, "{:#?}", net.lines(0));
    for time in [0, u64::MAX] {
        net.bob_sends(Kind::Message, Scope::Broadcast, 1 + time % 2, time, b"odd");
    }
    assert_eq!(net.count("more than 1000 days behind") + net.count("more than 1000 days ahead"), 2);
}

/// PROTOCOL#check-sequence.
#[test]
fn message_refused_without_a_key_is_not_also_missing() {
    let mut net = Net::new();
    let expired = NOW - 130_000_000;
    net.keys[1] = net.sessions[1].cx.account.identity.certify(&name(1), &SessionKey::generate(), expired);
    for sequence in 1..4 {
        net.bob_sends(Kind::Message, Scope::Private, sequence, NOW, b"unread");
    }
    assert_eq!(net.count("there is no key to verify it"), 1, "{:#?}", net.lines(0));
    net.keys[1] = net.sessions[1].cx.account.identity.certify(&name(1), &SessionKey::generate(), NOW);
    net.bob_sends(Kind::Message, Scope::Private, 4, NOW, b"four");
    assert_eq!((net.count("<bob -> alice> four"), net.count("missing")), (1, 0), "{:#?}", net.lines(0));
}

/// An envelope of a user whose key nobody knows.
fn sample_from(from: &str) -> ServerMessage {
    let mut envelope = Envelope::sample();
    envelope.header.from = from.parse().expect("name");
    let message = EncryptedMessage { envelope, key: WrappedKey::new(&[0; WRAPPED_BYTES]) };
    ServerMessage::EncryptedMessage(Box::new(message))
}

/// The records of this number of verified users.
fn verified(count: usize) -> String {
    let key = base64(&[7; 32]);
    let record = |n: usize| {
        let subject = format!("\"server\":\"server-0\",\"name\":\"u{n:03}\",\"identity\":\"{key}\"");
        format!("{{{subject},\"verified\":true,\"decided\":true}}\n")
    };
    (0..count).map(record).collect()
}

#[test]
fn users_whom_a_server_invents_are_limited() {
    let mut net = Net::new();
    let contacts = &mut net.sessions[0].contacts;
    let invented: Vec<Username> = (0..50_100).map(|n| format!("u{n}").parse().expect("name")).collect();
    let admitted = invented.iter().filter(|name| contacts.admits(name)).count();
    assert!((49_900..=50_000).contains(&admitted), "{admitted}");
    assert!(contacts.admits(&invented[0]) && !contacts.admits(&invented[50_099]));
}

#[test]
fn key_of_a_stranger_beyond_the_limit_is_refused() {
    for (count, is_room) in [(49_999, true), (50_000, false)] {
        let mut net = Net::with_records(&verified(count), 2);
        net.type_in(0, "/msg bob one");
        net.settle();
        assert_eq!(net.lines(1).len(), usize::from(is_room), "{:#?}", net.shown[0]);
        assert_eq!(net.count("already remembers as many users as it can") == 0, is_room);
    }
}

/// PROTOCOL#ask-keys.
#[test]
fn key_that_cannot_be_saved_is_not_used() {
    let mut net = Net::new();
    std::fs::remove_file(net.folder.join("known_users")).expect("a file");
    std::fs::create_dir(net.folder.join("known_users")).expect("a folder");
    net.type_in(0, "/msg bob one");
    net.settle();
    assert!(net.count("the keys of bob cannot be used: the key cannot be saved") > 0, "{:#?}", net.shown[0]);
    assert!(net.lines(1).is_empty());
}

/// PROTOCOL#room-notices.
#[test]
fn notice_of_a_room_with_text_is_refused() {
    let mut net = Net::new();
    net.bob_sends(Kind::RoomOpened, Scope::Room, 1, NOW, b"x");
    assert_eq!(net.count("its fields contradict each other"), 1, "{:#?}", net.shown[0]);
}

#[test]
fn envelopes_that_wait_for_keys_are_limited() {
    let mut net = Net::new();
    let mut arrive = |from: &str, refused: &str| {
        net.server(0, sample_from(from));
        net.count(refused)
    };
    let full = "too many messages are waiting for a key";
    for sender in 0..16 {
        (0..64).for_each(|_| assert_eq!(arrive(&format!("eve-{sender}"), full), usize::from(sender > 0)));
        assert_eq!(arrive("eve-0", full), 1, "of one sender");
    }
    assert_eq!(arrive("late", full), 2, "of all senders");
    assert_eq!(arrive("alice", "its sender is invalid"), 1);
}

/// PROTOCOL#check-identity.
#[test]
fn refused_envelopes_leave_room_for_others_to_wait() {
    let mut net = Net::new();
    for sender in 0..17 {
        (0..64).for_each(|_| net.server(0, sample_from(&format!("eve-{sender}"))));
        net.settle();
    }
    assert_eq!(net.count("too many messages are waiting for a key"), 0);
}

/// PROTOCOL#check-identity.
#[test]
fn new_session_asks_again_for_awaited_keys() {
    let mut net = Net::new();
    net.server(0, sample_from("eve"));
    let asks = |net: &mut Net| {
        let is_for_eve = |said: &ClientMessage| match said {
            ClientMessage::KeysRequest(request) => request.names.iter().any(|name| name.as_str() == "eve"),
            _ => false,
        };
        std::mem::take(&mut net.said[0]).iter().any(is_for_eve)
    };
    assert!(asks(&mut net));
    net.event(0, new_login());
    assert!(asks(&mut net));
}

/// PROTOCOL#sequence.
#[test]
fn numbers_begin_again_with_a_new_session_key() {
    let mut net = Net::new();
    net.type_in(0, "/msg bob zero");
    net.settle();
    let send = |net: &mut Net, line: &str| {
        net.type_in(0, line);
        let Some(ClientMessage::EncryptedSend(send)) = net.said[0].back() else {
            panic!("{line} was not sent")
        };
        let sequence = send.envelope.header.sequence;
        net.settle();
        sequence
    };
    assert_eq!(["/msg bob one", "to all", "to all"].map(|line| send(&mut net, line)), [2, 1, 2]);
    net.renew(0);
    assert_eq!(["/msg bob two", "to all"].map(|line| send(&mut net, line)), [1, 1]);
}

/// PROTOCOL#newest.
#[test]
fn own_certificates_are_remembered_for_the_next_login() {
    let mut net = Net::new();
    net.renew(0);
    let created = net.keys[0].created;
    let owner = net.sessions[0].cx.account.fingerprint();
    net.type_in(0, "/exit");
    net.settle();
    net.event(0, Event::Tick);
    let files = TrustStore::open(&net.folder, "server-0").expect("files");
    assert_eq!(files.newest(&name(0), owner, false, NOW).map(|(created, _)| created), Some(created));
}

/// PROTOCOL#presence-lists.
#[test]
fn presence_change_in_several_lines_is_one_notice() {
    let mut net = Net::new();
    let names = |range: std::ops::Range<u32>| -> Vec<Username> {
        range.map(|n| format!("user-{n}").parse().expect("a name")).collect()
    };
    let change = |more, joined| Presence { more, full: false, joined, left: vec![] };
    net.server(0, ServerMessage::Presence(change(true, names(0..4096))));
    assert_eq!(net.count("is online") + net.count("come online"), 0);
    net.server(0, ServerMessage::Presence(change(false, names(4096..4097))));
    assert_eq!(net.count("* 4097 users have come online; 4099 are online now"), 1, "{:?}", net.shown[0]);
    // An incomplete change is reported before the user sends anything, so it hides nobody.
    net.server(0, ServerMessage::Presence(change(true, names(5000..5001))));
    net.type_in(0, "/help");
    assert_eq!(net.count("user-5000 is online"), 1);
    net.server(0, ServerMessage::Presence(change(true, names(5001..5002))));
    net.now += Duration::from_secs(1);
    net.event(0, Event::Tick);
    assert_eq!(net.count("user-5001 is online"), 1);
    net.server(0, ServerMessage::Presence(change(true, names(5002..5003))));
    net.event(0, Event::Resend(1));
    assert_eq!(net.count("user-5002 is online"), 1);
}

/// PROTOCOL#newest.
#[test]
fn login_that_is_not_the_newest_is_renewed_at_once() {
    let hour = 3_600_000;
    for (newest, next) in [
        (NOW - 1, None),
        (NOW + 1, Some(NOW + 2)),
        (NOW + hour, Some(NOW + hour + 1)),
        (NOW + 3 * hour, Some(NOW)),
        (u64::MAX, Some(NOW)),
    ] {
        let mut net = Net::new();
        let key = NewKey { key: SessionKey::generate(), created: NOW + 1, newest };
        net.event(0, Event::LoggedIn(Box::new(key), Duration::ZERO));
        assert_eq!(net.wants_key[0], next.is_some(), "{newest}");
        let Some(next) = next else { continue };
        net.event(0, Event::NewKey(Box::new(SessionKey::generate())));
        let Some(ClientMessage::Renew(fields)) = net.said[0].pop_back() else { panic!("not renewed") };
        assert_eq!(fields.created, next);
        // Another machine was faster, so do not repeat it at once.
        net.server(0, ServerMessage::Session(granted(newest.max(next))));
        for (seconds, is_due) in [(0, false), (599, false), (1, true)] {
            net.wants_key[0] = false;
            net.now += Duration::from_secs(seconds);
            net.event(0, Event::Tick);
            assert_eq!(net.wants_key[0], is_due, "{newest} after {seconds} s");
        }
    }
}

/// PROTOCOL#newest.
#[test]
fn refused_renewal_reports_the_newest_certificate() {
    let mut net = Net::new();
    let mut renewed = |newest: Option<u64>| {
        net.event(0, Event::NewKey(Box::new(SessionKey::generate())));
        let Some(ClientMessage::Renew(fields)) = net.said[0].pop_back() else { panic!("not renewed") };
        let failure = Failure { newest, ..Failure::new(ErrorCode::BadKey, "too old") };
        net.server(0, ServerMessage::Error(failure));
        fields.created
    };
    assert_eq!([renewed(Some(NOW + 9)), renewed(None), renewed(None)], [NOW + 1, NOW + 10, NOW + 11]);
}

/// PROTOCOL#session-certificate.
#[test]
fn expired_session_key_is_requested_again() {
    let mut net = Net::new();
    net.type_in(0, "/msg bob one");
    net.settle();
    let last = NOW + 26 * 3_600_000;
    for (now, is_asked) in [(last, false), (last + 1, true)] {
        let effects = net.sessions[0].handle(Event::Line("/msg bob two".into()), now, net.now);
        let asks =
            |effect: &Effect| matches!(effect, Effect::Do(Action::Send(ClientMessage::KeysRequest(_))));
        let sends =
            |effect: &Effect| matches!(effect, Effect::Do(Action::Send(ClientMessage::EncryptedSend(_))));
        assert_eq!((effects.iter().any(asks), effects.iter().any(sends)), (is_asked, !is_asked));
    }
}

/// PROTOCOL#newest-certificate.
#[test]
fn user_with_an_old_certificate_is_still_read() {
    let mut net = Net::new();
    net.type_in(0, "/msg bob one");
    net.settle();
    let old = net.sessions[1].cx.account.identity.certify(&name(1), &SessionKey::generate(), NOW - 1);
    net.keys[1] = old.clone();
    net.bob_returns();
    net.type_in(0, "/msg bob two");
    net.settle();
    net.bob_sends(Kind::Message, Scope::Private, 1, NOW, b"three");
    let lines = net.lines(0);
    assert_eq!(net.count("! bob's clock may have been set back"), 1, "{lines:#?}");
    assert_eq!(net.count("bob has no usable key: your message was not delivered"), 1);
    assert_eq!(lines.last().map(String::as_str), Some("<bob -> alice> three"));
    assert!(!net.lines(1).iter().any(|line| line.contains("two")), "{:#?}", net.lines(1));
}

/// PROTOCOL#renew.
#[test]
fn unrequested_session_changes_nothing() {
    let mut net = Net::new();
    net.type_in(0, "/msg bob one");
    net.settle();
    net.server(0, ServerMessage::Session(granted(0)));
    assert_eq!(net.count("unexpected message from the server"), 1);
    net.type_in(0, "/msg bob two");
    net.settle();
    assert_eq!(net.lines(1), ["<alice -> bob> one", "<alice -> bob> two"]);
}

#[test]
fn verify_yes_needs_a_number_that_was_shown() {
    let mut net = Net::new();
    net.type_in(0, "/msg bob one");
    net.settle();
    net.type_in(0, "/verify bob yes");
    assert_eq!(
        (net.count("you have not seen the safety number"), net.count("safety number with bob (")),
        (1, 1)
    );
    assert_eq!(net.sessions[0].contacts.trust(&name(1)), Some(Trust::New));
    net.type_in(0, "/verify bob yes");
    assert_eq!(net.count("* bob is verified"), 1, "it is shown now");
    // Another key has another number.
    net.bob_returns();
    net.swap_bob();
    net.type_in(0, "/msg bob two");
    net.settle();
    net.type_in(0, "/trust bob");
    net.type_in(0, "/trust bob");
    net.settle();
    net.type_in(0, "/verify bob yes");
    assert_eq!(net.sessions[0].contacts.trust(&name(1)), Some(Trust::Verified), "{:#?}", net.shown[0]);
}

#[test]
fn number_of_a_key_replaced_elsewhere_verifies_nothing() {
    let mut net = Net::new();
    net.type_in(0, "/verify bob");
    net.settle();
    // Another client of this folder accepts bob's next key, which has another number.
    net.swap_bob();
    let mut other = TrustStore::open(&net.folder, "server-0").expect("files");
    other.remember(&name(1), Fingerprint::of(&net.identities[1]), Trust::Known).expect("stored");
    net.event(0, Event::Tick);
    net.settle();
    net.type_in(0, "/verify bob yes");
    assert_eq!(net.count("compare again"), 1, "{:#?}", net.shown[0]);
    assert_eq!(net.sessions[0].contacts.trust(&name(1)), Some(Trust::Known));
    net.type_in(0, "/verify bob yes");
    assert_eq!(net.sessions[0].contacts.trust(&name(1)), Some(Trust::Verified));
}

#[test]
fn search_finds_both_normal_forms_in_any_case() {
    let mut net = Net::new();
    for text in ["Café one", "cafe\u{301} two", "CAFÉ three", "cafe four"] {
        net.type_in(0, &format!("/msg bob {text}"));
        net.settle();
    }
    for wanted in ["café", "CAFE\u{301}", "cAFÉ"] {
        net.shown[0].clear();
        net.type_in(0, &format!("/history {wanted}"));
        let found: Vec<&str> =
            net.shown[0][1..].iter().filter_map(|entry| entry.text.rsplit(' ').next()).collect();
        assert_eq!(found, ["one", "two", "three"], "{wanted}");
        assert!(net.shown[0][1..].iter().all(|entry| entry.source == Source::Recalled));
    }
}

#[test]
fn failed_messages_remain_available_until_resent() {
    let mut net = Net::new();
    net.bob_leaves();
    for text in ["one", "two"] {
        net.type_in(0, text);
    }
    assert!(net.sessions[0].can_resend(1) && net.sessions[0].can_resend(2) && !net.sessions[0].can_resend(3));
    let failed = |net: &mut Net| net.failed(0).iter().map(|(number, _)| *number).collect::<Vec<_>>();
    assert_eq!(failed(&mut net), [1, 2]);
    net.event(0, Event::Resend(1));
    assert_eq!(failed(&mut net), [1], "it has failed once more");
    assert!(net.sessions[0].can_resend(1));
    net.bob_joins();
    net.event(0, Event::Resend(1));
    net.settle();
    assert!(!net.sessions[0].can_resend(1) && net.sessions[0].can_resend(2));
}

#[test]
fn room_that_ends_with_a_session_is_reported() {
    let mut net = Net::new();
    let (closed, opened) = ("* the room with bob is closed", "you are in a private room with bob");
    net.type_in(0, "/room bob");
    net.settle();
    net.bob_returns();
    assert_eq!((net.count(opened), net.count(closed)), (1, 1), "{:#?}", net.shown[0]);
    let in_view =
        |entry: &Entry| entry.line().starts_with(closed) && entry.place == Place::With(name(1).into());
    assert!(net.shown[0].iter().any(in_view));
    assert!(!net.sessions[0].has_room(&name(1).into()));
    net.bob_returns();
    assert_eq!(net.count(closed), 1, "it was closed already");
    net.type_in(0, "/room bob");
    net.settle();
    net.event(0, new_login());
    assert_eq!((net.count(opened), net.count(closed)), (2, 2), "{:#?}", net.shown[0]);
}

/// OPERATING#records.
#[test]
fn damaged_record_is_not_called_a_changed_key() {
    let mut net = Net::with_records("{\"server\":\"server-0\",\"name\":\"bob\",\"iden", 2);
    for line in ["/msg bob one", "/msg bob two", "hello", "/trust bob", "/trust bob", "/msg bob three"] {
        net.type_in(0, line);
        net.settle();
    }
    for line in [
        "! the record of bob's key is damaged: your message was not sent (\"one\")",
        "! the record of bob's key is damaged: your message was not sent (\"two\")",
        "* the key of bob is accepted",
        "* the key of bob has not changed: there is nothing to accept",
    ] {
        assert_eq!(net.count(line), 1, "{line}: {:#?}", net.shown[0]);
    }
    assert_eq!(net.lines(1), ["<alice -> bob> three"]);
    assert_eq!(net.count("has changed") + net.count("the new key"), 0, "{:#?}", net.shown[0]);
}

/// MANUAL#one-folder.
#[test]
fn decision_of_another_client_of_the_folder_counts() {
    let mut net = Net::new();
    net.type_in(0, "/msg bob one");
    net.settle();
    let key = net.sessions[0].contacts.find(&name(1)).and_then(|bob| bob.identity.as_ref());
    let key = key.expect("a key").fingerprint();
    let mut other = TrustStore::open(&net.folder, "server-0").expect("files");
    other.remember(&name(1), Fingerprint([1; 32]), Trust::Verified).expect("stored");
    net.event(0, Event::Tick);
    let bob = net.sessions[0].contacts.find(&name(1)).expect("bob");
    assert!(
        bob.identity.is_none() && bob.key.is_none(),
        "nothing is read or sealed until the keys are known"
    );
    net.settle();
    net.type_in(0, "/msg bob two");
    net.settle();
    assert_eq!(net.count("THE IDENTITY KEY OF bob HAS CHANGED"), 2, "{:#?}", net.shown[0]);
    other.remember(&name(1), key, Trust::Verified).expect("stored");
    net.event(0, Event::Tick);
    net.settle();
    net.type_in(0, "/msg bob three");
    net.settle();
    assert_eq!(net.lines(1), ["<alice -> bob> one", "<alice -> bob> three"]);
    assert_eq!(net.sessions[0].contacts.trust(&name(1)), Some(Trust::Verified));
    let mut other = Ignored::open(&net.folder, "server-0").expect("a file");
    other.set(&name(1), true).expect("stored");
    net.event(0, Event::Tick);
    net.type_in(1, "/msg alice four");
    net.settle();
    assert_eq!(net.count("four"), 0);
}

#[test]
fn exit_waits_for_the_answer_to_files() {
    let mut net = Net::new();
    net.type_in(0, "/files");
    let mut quits = |event: Event| {
        let effects = net.sessions[0].handle(event, NOW, net.now);
        effects.iter().any(|effect| matches!(effect, Effect::Quit(_)))
    };
    assert!(!quits(Event::Line("/exit".into())));
    assert!(quits(Event::Transfer(0, Step::Parts(Vec::new()))));
}

#[test]
fn files_lists_a_confirmed_file_as_complete() {
    let mut net = Net::new();
    let mut step = |n: usize, line: &str, step: Step| {
        net.type_in(n, line);
        net.event(n, Event::Transfer(1, step));
        net.settle();
    };
    step(0, "/sendfile bob a.txt", Step::Hashed { name: "a.txt".into(), size: 1, sha256: [0; 32] });
    step(1, "/acceptfile", Step::Found { start: 1 });
    step(1, "", Step::Received("a.txt".into()));
    assert_eq!(net.count("* bob has received \"a.txt\" (1 B)"), 1, "{:#?}", net.shown[0]);
    net.type_in(0, "/files");
    net.event(0, Event::Transfer(0, Step::Parts(Vec::new())));
    assert_eq!(net.count("* #1 \"a.txt\" (1 B) to bob: complete, a copy is being made"), 1);
}

fn offer(id: u8) -> Vec<u8> {
    let offer = files::messages::Offer {
        transfer: Fixed([id; 16]),
        key: Key::random(),
        name: "a.txt".into(),
        size: 1,
        sha256: Fixed([0; 32]),
        chunks: 1,
    };
    json::to_string(&offer).into_bytes()
}

#[test]
fn answer_without_a_number_is_about_the_first_offer() {
    let mut net = Net::new();
    net.bob_sends(Kind::FileOffer, Scope::Private, 1, NOW, &offer(1));
    let closing = files::messages::Closing { transfer: Fixed([1; 16]), reason: Some("cancelled".into()) };
    net.bob_sends(Kind::FileCancel, Scope::Private, 2, NOW, json::to_string(&closing).as_bytes());
    net.bob_sends(Kind::FileOffer, Scope::Private, 3, NOW, &offer(2));
    assert_eq!((net.count("has withdrawn"), net.count("offers you a file")), (1, 2), "{:#?}", net.shown[0]);
    let is_answered = |net: &mut Net| {
        net.type_in(0, "/rejectfile");
        net.count("you have declined") == 1
    };
    assert!(!is_answered(&mut net));
    assert_eq!((net.count("type /rejectfile NUMBER"), net.count("still offered: #2")), (1, 1));
    assert!(is_answered(&mut net), "the user has just read which one");
}

#[test]
fn offers_that_end_together_are_one_line() {
    let mut net = Net::new();
    for id in 1..=6 {
        net.bob_sends(Kind::FileOffer, Scope::Private, id.into(), NOW, &offer(id));
    }
    assert_eq!(net.count("offers you a file"), 6);
    net.bob_leaves();
    let ended = "* bob has left: 6 files are no longer offered";
    assert_eq!((net.count(ended), net.count("no longer offered")), (1, 1), "{:#?}", net.shown[0]);
}

/// PROTOCOL#notices.
#[test]
fn offer_of_an_ignored_user_ends_silently() {
    for leaves in [false, true] {
        let mut net = Net::new();
        net.bob_sends(Kind::FileOffer, Scope::Private, 1, NOW, &offer(1));
        net.type_in(0, "/ignore BOB");
        net.shown[0].clear();
        if leaves {
            net.bob_leaves();
        } else {
            let closing =
                files::messages::Closing { transfer: Fixed([1; 16]), reason: Some("cancelled".into()) };
            net.bob_sends(Kind::FileCancel, Scope::Private, 2, NOW, json::to_string(&closing).as_bytes());
        }
        net.minutes_pass(61);
        assert!(net.shown[0].is_empty(), "{:#?}", net.shown[0]);
        net.type_in(0, "/acceptfile 1");
        assert_eq!(net.count("there is no offer number 1"), 1);
    }
}

/// PROTOCOL#notices.
#[test]
fn notices_about_one_user_leave_room_for_others() {
    let mut net = Net::new();
    net.shown[0].clear();
    let mallory: Username = "mallory".parse().expect("name");
    for minute in 0..3 {
        for topic in 0..100 {
            let text = format!("mallory did {topic}");
            net.sessions[0].cx.problem_about(&mallory, &topic.to_string(), text);
        }
        net.sessions[0].cx.problem_about(&name(1), &minute.to_string(), format!("bob did {minute}"));
        net.event(0, Event::Tick);
        assert_eq!(net.count(&format!("! bob did {minute}")), 1, "{:#?}", net.shown[0]);
        assert!(net.count("! mallory did") <= 10 * (minute + 1), "{:#?}", net.shown[0]);
        net.minutes_pass(1);
    }
    assert!(net.count("more notices about users were not shown") > 0);
}

/// A room of three, which alice has opened; the fourth user is online.
fn group() -> Net {
    let mut net = Net::with_records("", 4);
    net.type_in(0, "/room Carol bob BOB alice");
    net
}

impl Net {
    /// The states that were shown of the own messages of `n`.
    fn states(&mut self, n: usize) -> Vec<SendState> {
        self.shown[n].drain(..).filter_map(|entry| Some(entry.sending?.1)).collect()
    }
}

/// PROTOCOL#members, PROTOCOL#typed-members.
#[test]
fn room_is_one_view_for_all_members_and_nobody_else() {
    let mut net = group();
    net.type_in(0, "from alice");
    net.type_in(1, "/room carol ALICE");
    net.type_in(1, "from bob");
    net.type_in(2, "/msg bob,alice from carol");
    net.settle();
    let lines = [
        "<alice -> bob, carol> from alice",
        "<bob -> alice, carol> from bob",
        "<carol -> alice, bob> from carol",
    ];
    for n in 0..3 {
        let mut seen = net.lines(n);
        seen.sort();
        assert_eq!(seen, lines);
        let mut others: Vec<Username> = (0..3).filter(|other| *other != n).map(name).collect();
        others.sort();
        let place = Place::With(Partners::new(others).expect("two"));
        let texts = net.shown[n].iter().filter(|entry| entry.source.from().is_some());
        assert!(texts.clone().count() >= 3 && texts.clone().all(|entry| entry.place == place));
    }
    assert!(net.shown[3].iter().all(|entry| entry.source == Source::Notice), "{:#?}", net.shown[3]);
    // The same names in another order lead back to the same view.
    net.type_in(1, "/leave");
    net.type_in(1, "/room alice carol");
    assert_eq!(net.sessions[1].partners(), Some(&Partners::new([name(0), name(2)]).expect("two")));
}

/// PROTOCOL#room-copies.
#[test]
fn each_member_gets_a_copy_with_its_own_id_and_sequence() {
    let mut net = group();
    net.type_in(0, "/msg bob before");
    net.settle();
    net.type_in(0, "one");
    let mut copies = Vec::new();
    while !net.said[0].is_empty() {
        if let Some(ClientMessage::EncryptedSend(send)) = net.said[0].front() {
            copies.push((send.routing.targets.clone(), send.envelope.clone()));
        }
        net.step(0);
    }
    assert_eq!(copies.iter().map(|(targets, _)| targets).collect::<Vec<_>>(), [&[name(1)], &[name(2)]]);
    let headers: Vec<&Header> = copies.iter().map(|(_, envelope)| &envelope.header).collect();
    assert_eq!(headers.iter().map(|header| header.sequence).collect::<Vec<_>>(), [2, 1]);
    assert!(
        headers[0].recipient_key != headers[1].recipient_key && headers.iter().all(|one| one.again.is_none())
    );
    assert!(copies[0].1.body.commitment != copies[1].1.body.commitment, "no common key");
    let ids = [1, 2].map(|n| net.sessions[n].incoming.last_id(&name(0)));
    assert!(ids[0].is_some() && ids[0] != ids[1]);
}

/// PROTOCOL#room-copies.
#[test]
fn room_copies_differ_in_time_within_a_second() {
    let mut net = group();
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..4 {
        net.type_in(0, "one");
        while !net.said[0].is_empty() {
            if let Some(ClientMessage::EncryptedSend(send)) = net.said[0].front() {
                let header = &send.envelope.header;
                times[usize::from(header.recipient == Some(name(2)))].push(header.time);
            }
            net.step(0);
        }
    }
    assert!(times.iter().flatten().all(|time| (NOW - 999..=NOW).contains(time)), "{times:?}");
    assert_ne!(times[0], times[1], "four pairs are equal once in 10^12 runs");
}

/// PROTOCOL#room-copies.
#[test]
fn resending_reaches_only_members_who_missed_it() {
    let mut net = group();
    net.type_in(0, "zero");
    net.settle();
    assert_eq!(net.states(0), [SendState::InFlight, SendState::Taken]);
    net.away = vec![2];
    net.type_in(0, "one");
    net.settle();
    let partly = SendState::Partly("1 of 2: carol is offline".into());
    assert_eq!(net.states(0), [SendState::InFlight, partly.clone()]);
    assert!(net.sessions[0].can_resend(2) && !net.sessions[0].can_resend(1));
    net.event(0, Event::Resend(2));
    net.settle();
    assert_eq!(net.states(0), [SendState::InFlight, partly]);
    net.away.clear();
    net.event(0, Event::Resend(2));
    net.settle();
    assert_eq!(net.states(0), [SendState::InFlight, SendState::Taken]);
    assert!(!net.sessions[0].can_resend(2));
    let line = "<alice -> bob, carol> one";
    let times = |n: usize| net.lines(n).iter().filter(|shown| *shown == line).count();
    assert_eq!((times(1), times(2)), (1, 1));
    assert_eq!(net.sessions[0].history().filter(|entry| entry.text == "one").count(), 1);
    // A message that no member got has failed.
    net.away = vec![1, 2];
    net.type_in(0, "two");
    net.settle();
    let why = "bob is offline; carol is offline: your message was not delivered";
    assert_eq!(net.states(0)[1], SendState::Failed(why.into()));
    assert!(net.sessions[0].history().all(|entry| entry.text != "two"));
}

/// PROTOCOL#room-copies, PROTOCOL#lost.
#[test]
fn lost_copies_are_reported_by_name_one_after_the_other() {
    let mut net = group();
    net.type_in(0, "one");
    net.settle();
    net.states(0);
    net.lose(0, 2, "carol");
    net.settle();
    assert_eq!(net.states(0), [SendState::Partly("1 of 2: carol's session ended first".into())]);
    net.lose(0, 2, "bob");
    assert_eq!(net.count("some messages to bob may not have arrived"), 1, "that request was carol's copy");
    net.shown[0].clear();
    net.lose(0, 1, "bob");
    net.settle();
    let why = "\"one\" may not have arrived: bob's session ended first; carol's session ended first";
    assert_eq!(net.states(0), [SendState::Failed(why.into())]);
    net.event(0, Event::Resend(1));
    net.settle();
    assert_eq!(net.states(0), [SendState::InFlight, SendState::Taken]);
    // Both had received it: their clients show it once.
    assert_eq!([1, 2].map(|n| net.lines(n).len()), [1, 1]);
}

/// PROTOCOL#room-copies, PROTOCOL#stale.
#[test]
fn changed_key_excludes_only_its_member_from_a_room() {
    let mut net = group();
    net.type_in(0, "one");
    net.settle();
    net.renew(2);
    net.swap_bob();
    net.bob_returns();
    net.type_in(0, "two");
    net.settle();
    let partly = || SendState::Partly("1 of 2: the key of bob has changed".into());
    assert_eq!(net.states(0).last(), Some(&partly()));
    assert_eq!(net.lines(2), ["<alice -> bob, carol> one", "<alice -> bob, carol> two"]);
    // The change is known before the next message is typed.
    net.type_in(0, "three");
    assert!(net.count("THE IDENTITY KEY OF bob HAS CHANGED") == 1);
    net.settle();
    assert_eq!(net.states(0).last(), Some(&partly()));
    assert_eq!(net.lines(1), ["<alice -> bob, carol> one"]);
    assert_eq!(net.sessions[0].marked(&Partners::new([name(1), name(2)]).expect("two")), "bob!, carol?");
    assert_eq!(net.sessions[0].trust_word(&Partners::new([name(1), name(2)]).expect("two")), "KEY CHANGED");
}

/// PROTOCOL#open-room.
#[test]
fn members_and_trust_are_shown_before_anything_is_sent() {
    let mut net = group();
    assert_eq!(net.count("* the room of bob (new), carol (new) and you is open"), 1);
    net.type_in(0, "one");
    net.settle();
    net.type_in(2, "/ignore alice");
    // Carol goes to the view that the message has opened, which opens the room.
    let with = Partners::new([name(0), name(1)]).expect("two");
    let opened = |net: &Net| {
        let text = "the room of alice (not verified; ignored, but reads this), bob (new) and you is open";
        net.shown[2].iter().filter(|entry| entry.text.starts_with(text)).count()
    };
    assert_eq!(opened(&net), 0);
    net.event(2, Event::Switch(Some(with.clone())));
    assert_eq!(opened(&net), 1);
    net.event(2, Event::Switch(None));
    net.event(2, Event::Switch(Some(with)));
    assert_eq!(opened(&net), 1, "it is open");
    net.type_in(2, "/room");
    assert!(net.shown[2].last().is_some_and(|entry| entry.text.contains("alice (not verified; ignored")));
    // A message opens the room that it names.
    net.type_in(3, "/msg bob,carol hello");
    let sent = |message: &ClientMessage| matches!(message, ClientMessage::EncryptedSend(_));
    assert!(net.shown[3].iter().any(|entry| entry.text.starts_with("the room of bob (new), carol (new)")));
    assert!(!net.said[3].iter().any(sent), "the keys come first");
    // Without an open room, a typed line goes to nobody.
    net.sessions[0].talk.close(&Partners::new([name(1), name(2)]).expect("two"));
    net.type_in(0, "a secret");
    assert_eq!(net.count("\"a secret\" was not sent"), 1);
}

/// PROTOCOL#room-notices.
#[test]
fn larger_room_notifies_nobody_and_outlives_sessions() {
    let mut net = group();
    net.type_in(0, "/leave");
    net.type_in(0, "/room bob carol");
    net.settle();
    assert!(net.shown[1].iter().all(|entry| !entry.text.contains("room")), "{:#?}", net.shown[1]);
    net.bob_returns();
    net.event(0, new_login());
    net.list(0, (0..4).map(name).collect());
    net.type_in(0, "one");
    net.settle();
    assert_eq!(net.lines(1), ["<alice -> bob, carol> one"]);
    assert_eq!(net.count("the room with"), 0);
}

/// PROTOCOL#typed-members.
#[test]
fn typed_members_are_folded_and_limited() {
    let mut net = Net::new();
    let many = |count: usize| (0..count).map(|n| format!(" m{n}")).collect::<String>();
    net.type_in(0, &format!("/room{} M0 ALICE", many(31)));
    assert_eq!(net.sessions[0].partners().map(|with| with.names().len()), Some(31));
    for (line, why) in [
        (format!("/room{}", many(32)), "! a room has at most 32 members, you included"),
        (format!("/room{}", many(9000)), "! a room has at most 32 members, you included"),
        ("/room alice ALICE".into(), "! that is your own name"),
    ] {
        net.shown[0].clear();
        net.type_in(0, &line);
        assert_eq!(net.lines(0), [why]);
        net.type_in(0, "a secret");
        assert_eq!(net.count("\"a secret\" was not sent"), 1);
    }
    net.type_in(0, "/room Alice BOB bob");
    net.settle();
    assert!(net.sessions[0].has_room(&name(1).into()), "the room of two");
    assert!(net.shown[1].iter().any(|entry| entry.text.contains("has opened a private room")));
}

/// PROTOCOL#check-members.
#[test]
fn member_list_with_a_twin_of_a_known_name_is_refused() {
    let mut net = Net::new();
    net.change(&[2], &[]);
    let mut say = |names: [&str; 3], sequence: u64| {
        let to = Audience::Room(Partners::new(names.map(|name| name.parse().expect("name"))).expect("some"));
        let plaintext = to.plaintext(&name(1), "hello");
        net.bob_sends(Kind::Message, Scope::Room, sequence, NOW, &plaintext);
        net.lines(0).pop().unwrap_or_default()
    };
    let refused = "Carol in its list of members differs from a known name only in letter case";
    assert!(say(["alice", "Carol", "dave"], 1).ends_with(refused));
    assert_eq!(say(["alice", "carol", "dave"], 1), "<bob -> alice, carol, dave> hello");
    // So does an offline user whose key is remembered.
    let keys = UserKeys::new(name(2), net.identities[1].clone(), None);
    net.sessions[0].take_keys(&keys);
    net.change(&[], &[2]);
    let to = Audience::Room(
        Partners::new(["Carol", "alice"].map(|name| name.parse().expect("name"))).expect("some"),
    );
    net.shown[0].clear();
    net.bob_sends(Kind::Message, Scope::Room, 2, NOW, &to.plaintext(&name(1), "again"));
    assert!(net.lines(0).iter().all(|line| !line.contains("again")), "{:#?}", net.lines(0));
}

/// PROTOCOL#check-text.
#[test]
fn room_text_longer_than_the_limit_is_refused() {
    let mut net = Net::new();
    let to = Audience::Room(name(0).into());
    for (length, shown) in [(MAX_TEXT + 1, false), (MAX_TEXT, true)] {
        net.shown[0].clear();
        net.bob_sends(Kind::Message, Scope::Room, 1, NOW, &to.plaintext(&name(1), &"x".repeat(length)));
        assert_eq!(net.shown[0].iter().any(|entry| entry.text.starts_with('x')), shown);
    }
}

impl Net {
    /// `count` users, of whom `away` are absent and have mailboxes.
    fn with_absent(count: usize, away: &[usize]) -> Net {
        let mut net = Net::with_records("", count);
        for n in away {
            net.leaves(*n);
        }
        net
    }

    /// `n` leaves a new mailbox key and ends their session.
    fn leaves(&mut self, n: usize) {
        let created = NOW + self.mailboxes.get(&n).map_or(0, |(_, former)| former.created - NOW + 1);
        let key = SessionKey::generate();
        let certificate = self.sessions[n].cx.account.identity.certify_mailbox(&name(n), &key, created);
        self.mailboxes.insert(n, (key, certificate));
        self.ends_session(n);
    }

    /// `n` ends their session.
    fn ends_session(&mut self, n: usize) {
        self.away.push(n);
        self.change(&[], &[n]);
    }

    /// `n` logs in again, with a new session key.
    fn returns(&mut self, n: usize) {
        self.away.retain(|away| *away != n);
        self.event(n, Event::NewKey(Box::new(SessionKey::generate())));
        while self.step(n) {}
        self.change(&[n], &[]);
    }

    /// The texts that wait for `n`, each with its number in the conversation.
    fn mail_for(&self, n: usize) -> Vec<(u64, String)> {
        let (key, _) = &self.mailboxes[&n];
        let alice = IdentityPublicKey::parse(&self.identities[0]).expect("a key");
        let waiting = self.mail.iter().filter(|(to, message)| {
            *to == name(n) && message.envelope.header.recipient_key == Some(key.fingerprint())
        });
        let read = |(_, message): &(Username, EncryptedMessage)| {
            let verified = message.envelope.verify(&alice).expect("signed by alice");
            let text = verified.open(key, &message.key.bytes()).expect("sealed for the mailbox");
            let text = String::from_utf8_lossy(&text).into_owned();
            (message.envelope.header.sequence, text)
        };
        waiting.map(read).collect()
    }
}

fn kept(names: &str) -> SendState {
    SendState::Kept(format!("kept for {names} until they log in"))
}

fn numbered(texts: &[(u64, &str)]) -> Vec<(u64, String)> {
    texts.iter().map(|(number, text)| (*number, (*text).to_string())).collect()
}

/// PROTOCOL#mail-sender, PROTOCOL#sequence.
#[test]
fn numbers_of_a_mailbox_continue_after_a_session() {
    let mut net = Net::with_absent(2, &[1]);
    for text in ["one", "two"] {
        net.type_in(0, &format!("/msg bob {text}"));
    }
    net.settle();
    assert_eq!(net.states(0), [SendState::InFlight, SendState::InFlight, kept("bob"), kept("bob")]);
    net.returns(1);
    net.type_in(0, "/msg bob three");
    net.settle();
    assert_eq!(net.states(0), [SendState::InFlight, SendState::Taken]);
    assert_eq!(net.lines(1), ["<alice -> bob> three"]);
    // Absent again with the same mailbox key, because the client could not replace it.
    net.ends_session(1);
    net.type_in(0, "/msg bob four");
    net.settle();
    assert_eq!(net.mail_for(1), numbered(&[(1, "one"), (2, "two"), (3, "four")]));
    // A later mailbox key is another conversation.
    net.returns(1);
    net.leaves(1);
    net.type_in(0, "/msg bob five");
    net.settle();
    assert_eq!(net.mail_for(1), numbered(&[(1, "five")]));
    assert!(net.sessions[0].is_settled());
}

/// PROTOCOL#mail-sender, PROTOCOL#stale.
#[test]
fn mailbox_key_is_forgotten_when_its_owner_is_back() {
    let mut net = Net::with_absent(2, &[1]);
    net.type_in(0, "/msg bob one");
    net.settle();
    net.returns(1);
    net.type_in(0, "/msg bob two");
    assert!(matches!(net.said[0].front(), Some(ClientMessage::KeysRequest(_))), "the session key");
    net.settle();
    net.leaves(1);
    net.type_in(0, "/msg bob three");
    net.settle();
    // The key was replaced in a session that is not reported yet.
    let former = net.mail.len();
    net.away.clear();
    net.away.push(1);
    let key = SessionKey::generate();
    let certificate = net.sessions[1].cx.account.identity.certify_mailbox(&name(1), &key, NOW + 9);
    net.mailboxes.insert(1, (key, certificate));
    net.states(0);
    for text in ["four", "five"] {
        net.type_in(0, &format!("/msg bob {text}"));
    }
    net.settle();
    assert_eq!(net.mail_for(1), numbered(&[(1, "four"), (2, "five")]));
    assert_eq!(net.mail.len(), former + 2);
    assert_eq!(net.states(0)[2..], [kept("bob"), kept("bob")]);
}

/// PROTOCOL#mail-sender, PROTOCOL#keeping.
#[test]
fn only_messages_are_sealed_for_a_mailbox_key() {
    let mut net = Net::with_absent(3, &[1]);
    net.type_in(0, "/msg bob one");
    net.settle();
    // Presence does not show it yet.
    net.change(&[1], &[]);
    net.shown[0].clear();
    for line in ["to everyone", "/room bob"] {
        net.type_in(0, line);
        net.settle();
    }
    assert_eq!(net.count("! bob is offline: bob did not receive \"to everyone\""), 1);
    let room = "! bob is offline: no room is open; what you type here is kept for bob until they log in";
    assert_eq!(net.count(room), 1, "{:#?}", net.shown[0]);
    net.type_in(0, "two");
    net.settle();
    assert_eq!(net.mail_for(1), numbered(&[(1, "one"), (2, "two")]));
    let session = net.sessions[0].contacts.find(&name(1)).expect("known").session_key();
    assert!(session.is_none(), "files get no mailbox key");
}

/// PROTOCOL#room-copies, PROTOCOL#mail-sender.
#[test]
fn outcome_names_each_member_of_a_room() {
    let mut net = Net::with_absent(4, &[2]);
    net.type_in(0, "/room bob carol dave");
    net.type_in(0, "one");
    net.settle();
    assert_eq!(net.states(0)[1..], [kept("carol")]);
    assert_eq!(net.mail_for(2)[0].1, "\u{4}\u{5}alice\u{3}bob\u{5}carol\u{4}daveone");
    net.ends_session(3);
    net.type_in(0, "two");
    net.settle();
    let partly = "1 of 3: dave is offline; kept for carol until they log in";
    assert_eq!(net.states(0)[1..], [SendState::Partly(partly.into())]);
    // A repeated message goes only to members who missed it.
    net.leaves(3);
    net.event(0, Event::Resend(2));
    net.settle();
    assert_eq!(net.states(0)[1..], [kept("carol, dave")]);
    assert_eq!((net.mail_for(2).len(), net.mail_for(3).len(), net.lines(1).len()), (2, 1, 2));
    assert_eq!(net.sessions[0].history().filter(|entry| entry.text == "two").count(), 1);
}

/// PROTOCOL#mail-sender.
#[test]
fn answer_that_contradicts_the_key_is_never_shown_as_sent() {
    for is_away in [false, true] {
        let mut net = Net::with_absent(2, if is_away { &[1] } else { &[] });
        net.type_in(0, "/msg bob one");
        net.step(0);
        let send = net.next_send(0);
        let (id, names) = (send.routing.id, send.routing.targets);
        let sent = match is_away {
            true => Sent { id, delivered: names, ..Sent::default() },
            false => Sent { id, kept: names, ..Sent::default() },
        };
        net.server(0, ServerMessage::Sent(sent));
        net.settle();
        let why =
            "\"one\" may not have arrived: the server's answer contradicts the key of bob that was used";
        assert_eq!(net.states(0)[1..], [SendState::Failed(why.into())]);
        assert_eq!(net.sessions[0].history().count(), 0);
    }
}

/// PROTOCOL#outcome, PROTOCOL#mail-limits.
#[test]
fn busy_mailbox_is_reported_as_full() {
    let mut net = Net::with_absent(2, &[1]);
    net.type_in(0, "/msg bob one");
    net.step(0);
    let send = net.next_send(0);
    let sent = Sent { id: send.routing.id, busy: send.routing.targets, ..Sent::default() };
    net.server(0, ServerMessage::Sent(sent));
    let why = "bob's mailbox is full: your message was not delivered";
    assert_eq!(net.states(0)[1..], [SendState::Failed(why.into())]);
}

/// PROTOCOL#lost, PROTOCOL#message-id.
#[test]
fn lost_messages_go_to_the_mailbox_in_their_order() {
    let mut net = Net::new();
    for line in ["/msg bob one", "to everyone", "/msg bob two", "/msg bob three"] {
        net.type_in(0, line);
    }
    net.settle();
    // This one is in flight, and its answer will call the key stale.
    net.type_in(0, "/msg bob four");
    net.lose(0, 3, "bob");
    net.lose(0, 4, "bob");
    net.leaves(1);
    net.type_in(0, "/msg bob five");
    net.states(0);
    net.settle();
    let texts = [(1, "two"), (2, "three"), (3, "four"), (4, "five")];
    assert_eq!(net.mail_for(1), numbered(&texts));
    assert_eq!(net.states(0), [kept("bob"), kept("bob"), kept("bob"), kept("bob")]);
    let is_again = |(_, message): &(Username, EncryptedMessage)| message.envelope.header.again.is_some();
    assert_eq!(net.mail.iter().map(is_again).collect::<Vec<_>>(), [true, true, true, false]);
    let said: Vec<_> = net.sessions[0].history().map(|entry| entry.text.clone()).collect();
    assert_eq!(said, ["one", "to everyone", "two", "three", "four", "five"]);
    // A kept message is not lost with a session.
    net.lose(0, 9, "bob");
    assert_eq!((net.count("may not have arrived"), net.said[0].len()), (1, 0), "{:#?}", net.shown[0]);
}

/// PROTOCOL#lost.
#[test]
fn lost_message_of_a_user_who_is_back_is_shown_once() {
    let mut net = group();
    net.type_in(0, "one");
    net.settle();
    net.states(0);
    // Bob has seen it, and his client was killed before the acknowledgement.
    net.away.push(1);
    net.lose(0, 1, "bob");
    net.returns(1);
    net.settle();
    assert_eq!(net.states(0), [SendState::Taken]);
    assert_eq!([1, 2].map(|n| net.lines(n).len()), [1, 1]);
    assert!(net.shown[0].is_empty() && net.sessions[0].is_settled());
}

/// PROTOCOL#lost, PROTOCOL#stale.
#[test]
fn message_is_abandoned_after_four_losses() {
    let mut net = Net::new();
    net.type_in(0, "/msg bob one");
    net.settle();
    let mut sealed = 1;
    for id in 1..9 {
        net.lose(0, id, "bob");
        net.renew(1);
        net.settle();
        sealed += usize::from(net.failed(0).is_empty() && !net.sessions[0].can_resend(1));
    }
    assert_eq!(sealed, 4);
    assert!(net.sessions[0].can_resend(1), "the user can send it again");
    assert_eq!(net.lines(1), ["<alice -> bob> one"]);
}

/// MANUAL#absent-users, PROTOCOL#ask-keys.
#[test]
fn users_all_lists_absent_users_and_their_mailboxes() {
    let mut net = Net::with_records("", 4);
    net.type_in(0, "/users all");
    assert_eq!(net.count("* you know no absent users"), 1);
    net.type_in(0, "to everyone");
    net.settle();
    net.leaves(1);
    net.ends_session(2);
    net.type_in(0, "/users all");
    assert!(!net.sessions[0].is_settled() && net.count("absent: ") == 0, "the keys come first");
    net.settle();
    let list = "* 2 absent: bob (not verified, messages wait), carol (not verified, no mailbox)";
    assert_eq!((net.count("* 2 online: alice (you), dave (not verified)"), net.count(list)), (1, 1));
    assert!(net.sessions[0].is_settled());
    // The key of a mailbox stays known.
    net.type_in(0, "/users all");
    let Some(ClientMessage::KeysRequest(request)) = net.said[0].pop_front() else { panic!("no request") };
    assert_eq!(request.names, [name(2)]);
    // A new session asks again.
    net.event(0, new_login());
    net.settle();
    assert_eq!(net.count(list), 2);
}

/// MANUAL#absent-users, PROTOCOL#ask-keys.
#[test]
fn long_list_of_absent_users_costs_few_requests() {
    let mut net = Net::with_records(&verified(300), 2);
    net.type_in(0, "/users all");
    let mut asked = Vec::new();
    while let Some(message) = net.said[0].front() {
        let ClientMessage::KeysRequest(request) = message else { panic!("another message") };
        asked.push(request.names.len());
        assert_eq!(net.said[0].len(), 1, "one at a time");
        net.step(0);
    }
    assert_eq!(asked, [64; 4]);
    assert_eq!(net.count("* 300 absent: u000 (verified, no mailbox), u001"), 1);
    assert_eq!(net.count(" and 44 more"), 1);
    // Completion knows them all.
    assert_eq!(net.sessions[0].people().count(), 301);
}
