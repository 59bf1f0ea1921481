//! Delivers envelopes, relays packets, answers with keys.
//!
//! Invariant: an envelope is delivered only under its sender's own name, to each target once, and with that target's
//! own wrapped key alone; the answer accounts for every target. The server checks where an envelope goes, never what it
//! says: it has no key for that.

use super::quotas;
use super::session::Session;
use super::session::frames::{Frame, Part};
use super::session::outbox::{FlushList, Queued, Receipt};
use super::shared::Shared;
use crate::name::Username;
use crate::protocol::{
    self, EncryptedSend, Envelope, ErrorCode, Failure, Grant, Keys, KeysRequest, MAX_CIPHERTEXT,
    MAX_KEY_NAMES, MAX_TARGETS, Packet, Refused, Routing, Scope, Sent, ServerMessage, UserKeys, WrappedKey,
};
use crate::wire::frame;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Recipients that are looked up, and queued for, under one lock: logins wait for it, some microseconds.
const TOGETHER: usize = 16;

/// Delivers one envelope; the answer is `sent`, or an `error` with the request's `id`. PROTOCOL#outcome.
pub fn deliver(shared: &Shared, sender: &Session, mut send: EncryptedSend) -> ServerMessage {
    let id = send.routing.id;
    if let Err((code, text)) = check(sender, &mut send) {
        return ServerMessage::Error(Failure { id: Some(id), ..Failure::new(code, text) });
    }
    let EncryptedSend { routing: Routing { targets, keys, .. }, envelope } = send;
    let head: Part = protocol::shared_part(&envelope).into();
    // Broadcasts, file messages and room notices have no receipt.
    let has_receipt = envelope.is_direct_message();
    let mut sent = Sent { id, ..Sent::default() };
    let (is_alone, mut list) = (targets.len() == 1, FlushList::default());
    let mut queue = |(target, key, found): (Username, &WrappedKey, Option<(&Session, bool)>)| {
        let names = match found {
            // The server would keep the message, but it is not sealed for the recipient's mailbox key.
            None if has_receipt && shared.store.mail.key(&target).is_some() => &mut sent.stale,
            None => &mut sent.offline,
            Some((_, false)) => &mut sent.stale,
            // PROTOCOL#own-key-only.
            Some((session, true)) => {
                let frame = Frame::envelope(head.clone()).by(sender.sender);
                let receipt = has_receipt.then(|| Receipt { sender: Arc::downgrade(&sender.outbox), id });
                match session.outbox.deliver(frame, Some((key, receipt)), &mut list) {
                    Queued::Yes => &mut sent.delivered,
                    Queued::Full => {
                        quotas::count(&shared.quotas.busy);
                        &mut sent.busy
                    }
                    // The session has just ended, perhaps for a new login: the sender asks for the keys again.
                    Queued::Gone => &mut sent.stale,
                }
            }
        };
        names.push(target);
    };
    let mut targets = targets.into_iter().zip(keys.values()).peekable();
    while targets.peek().is_some() {
        let online = shared.registry.read();
        // The session of each, and whether the key is wrapped for its session key. Look all of them up first, so that
        // the cache misses overlap.
        let found = targets.by_ref().take(TOGETHER).map(|(target, key)| {
            let session = online.get(&target);
            (target, key, session.map(|session| (&**session, session.uses_key(key.id()))))
        });
        found.collect::<Vec<_>>().into_iter().for_each(&mut queue);
    }
    // The flusher sends a broadcast, so that its sender continues at once.
    if is_alone {
        list.flush()
    } else {
        shared.flusher.add(list)
    }
    ServerMessage::Sent(sent)
}

/// Checks an envelope's sender, size and targets, and sorts the targets by name, like `keys`, so that one pass compares
/// both. PROTOCOL#own-name, PROTOCOL#routing.
pub fn check(sender: &Session, send: &mut EncryptedSend) -> Result<(), (ErrorCode, &'static str)> {
    let EncryptedSend { routing: Routing { targets, keys, .. }, envelope: Envelope { header, body } } = send;
    if header.from != sender.name {
        return Err((ErrorCode::WrongSender, "from is not the name you are logged in with"));
    }
    if body.ciphertext.0.len() > MAX_CIPHERTEXT {
        return Err((ErrorCode::Malformed, "the ciphertext has more than 34,048 bytes"));
    }
    let bad = |text| Err((ErrorCode::BadTargets, text));
    match (header.scope, &header.recipient) {
        _ if targets.is_empty() => return bad("there are no targets"),
        _ if targets.len() > MAX_TARGETS => {
            return bad("there are more than 1,024 targets: send it several times");
        }
        (Scope::Broadcast, None) => {}
        (Scope::Broadcast, Some(_)) => return bad("a broadcast has a recipient"),
        (Scope::Private | Scope::Room, Some(name)) if *targets == [name.clone()] => {}
        (Scope::Private | Scope::Room, _) => {
            return bad("a private or room envelope has one target, its recipient");
        }
        (Scope::Later(_), _) => return bad("the scope is neither broadcast nor private nor room"),
    }
    targets.sort_unstable();
    let is_sorted = targets.is_sorted_by(|one, next| one < next);
    if is_sorted && targets.iter().eq(keys.names()) {
        return Ok(());
    }
    bad("targets and keys must name the same users, each once")
}

/// Records how many further packets `recipient` accepts from a peer, and passes the grant on to the peer. A count of 0
/// revokes. The answer is `refused`; `None` if the grant was passed on or revoked. PROTOCOL#grants,
/// PROTOCOL#not-granted.
pub fn grant(shared: &Shared, recipient: &Session, grant: Grant) -> Option<ServerMessage> {
    let Grant { peer, transfer, count } = grant;
    if count == 0 {
        recipient.revoke(&peer, transfer.0);
        return None;
    }
    let sender = shared.registry.get(&peer);
    // Recorded first: the packets may arrive before this returns.
    if let Some(sender) = sender.filter(|_| recipient.grant(&peer, transfer.0, count)) {
        let line = ServerMessage::Grant(Grant { peer: recipient.name.clone(), transfer, count });
        let frame = Frame::message(&line).by(recipient.sender);
        let mut list = FlushList::default();
        if sender.outbox.deliver(frame, None, &mut list) == Queued::Yes {
            list.flush();
            return None;
        }
        recipient.revoke(&peer, transfer.0);
    }
    Some(ServerMessage::Refused(Refused { peer, transfer }))
}

/// Queues a packet for its recipient, if the recipient has granted it. If there is no room and it `is_late`, revokes
/// the grant. PROTOCOL#packet-order.
pub fn relay(shared: &Shared, sender: &Session, packet: &Packet<'_>, is_late: bool) -> Queued {
    let Packet { peer, transfer, payload } = packet;
    let Some(recipient) = shared.registry.get(peer) else { return Queued::Gone };
    let frame =
        || Frame::packet(frame::packet_head(&Packet::address(&sender.name, transfer), payload), payload);
    let queued = recipient.admit(&sender.name, *transfer, frame);
    if queued == Queued::Full && is_late {
        recipient.revoke(&sender.name, *transfer);
        return Queued::Gone;
    }
    queued
}

/// The keys of each user that has an account: the identity key, and that of the session, else of the mailbox.
/// `bad_targets` for more than [`MAX_KEY_NAMES`] names.
pub fn keys(shared: &Shared, request: &KeysRequest) -> ServerMessage {
    if request.names.len() > MAX_KEY_NAMES {
        return ServerMessage::error(ErrorCode::BadTargets, "at most 64 names a request");
    }
    let mut answer = Keys { keys: Vec::new(), unknown: Vec::new() };
    // A name that is requested twice is answered once.
    for name in request.names.iter().collect::<BTreeSet<_>>() {
        if let Some(session) = shared.registry.get(name) {
            answer.keys.push(session.keys());
            continue;
        }
        let stored = shared.store.accounts.get(name).map(|account| shared.store.accounts.identity(&account));
        match stored {
            Some(Ok(identity)) => {
                let keys = UserKeys::new(name.clone(), identity.spki(), None);
                answer.keys.push(match shared.store.mail.key(name) {
                    Some((_, certificate)) => keys.with_mailbox(&certificate),
                    None => keys,
                });
            }
            Some(Err(error)) => {
                shared.store.audit.log("damaged_key", Some(name), None, &error.to_string());
                answer.unknown.push(name.clone());
            }
            None => answer.unknown.push(name.clone()),
        }
    }
    ServerMessage::Keys(answer)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::session::frames::tests::under_pressure;
    use super::super::session::outbox::tests::{attach, link};
    use super::super::session::outbox::{Attached, Condition};
    use super::super::session::tests::{TRANSFER, name, session};
    use super::super::shared::tests::{HOUR, member, shared};
    use super::*;
    use crate::crypto::public::{Fingerprint, RSA_BYTES, WRAPPED_BYTES};
    use crate::encoding::{Bytes, Fixed};
    use crate::protocol::{Body, Header, Kind, MAX_GRANTED};
    use std::io::Read;
    use std::net::TcpStream;
    use std::time::Duration;

    /// Whether these bytes come next.
    fn comes(mut far: &TcpStream, bytes: &[u8]) -> bool {
        far.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        let mut got = vec![0; bytes.len()];
        far.read_exact(&mut got).is_ok() && got == bytes
    }

    /// A broadcast for the session keys that members have.
    pub fn letter(from: &str, targets: &[&str]) -> EncryptedSend {
        let targets: Vec<_> = targets.iter().copied().map(name).collect();
        let key = WrappedKey::new(&[0; WRAPPED_BYTES]);
        EncryptedSend {
            routing: Routing {
                id: 7,
                keys: targets.iter().map(|name| (name.clone(), key.clone())).collect(),
                targets,
            },
            envelope: Envelope {
                header: Header {
                    kind: Kind::Message,
                    scope: Scope::Broadcast,
                    recipient: None,
                    recipient_key: None,
                    from: name(from),
                    identity: Fingerprint([0; 32]),
                    session: Fingerprint([0; 32]),
                    sequence: 1,
                    time: 1,
                    again: None,
                },
                body: Body {
                    commitment: Fixed([0; 32]),
                    nonce: Fixed([0; 12]),
                    ciphertext: Bytes(vec![5; 256]),
                    tag: Fixed([6; 16]),
                    signature: Fixed([7; RSA_BYTES]),
                },
            },
        }
    }

    /// Disconnects a session and fills its outbox.
    fn fill(session: &Arc<Session>) {
        session.outbox.disconnect();
        session.outbox.send(Frame::line(vec![b'x'; 1024 * 1024]));
    }

    /// PROTOCOL#routing, PROTOCOL#own-name.
    #[test]
    fn envelope_is_accepted_up_to_the_limit_and_no_byte_longer() {
        let (alice, _far) = session("alice");
        let taken = |ciphertext: usize| {
            let mut letter = letter("alice", &["bob"]);
            letter.envelope.body.ciphertext.0 = vec![0; ciphertext];
            check(&alice, &mut letter).map_err(|(code, _)| code)
        };
        assert_eq!((taken(MAX_CIPHERTEXT), taken(0)), (Ok(()), Ok(())));
        assert_eq!(taken(MAX_CIPHERTEXT + 1), Err(ErrorCode::Malformed));
    }

    /// PROTOCOL#outcome.
    #[test]
    fn each_target_is_reported_in_exactly_one_list() {
        let (shared, _folder) = shared(HOUR);
        let members = ["bob", "busy", "gone", "stale"].map(|name| member(&shared, name));
        let [(_, far), (busy, _), (gone, _), _] = &members;
        fill(busy);
        // The session has ended, and its thread has not noticed it yet.
        assert!(gone.outbox.close(&gone.name, Condition::Always, None, &mut FlushList::default()).is_some());
        let (alice, _) = session("alice");
        let all = ["nobody", "stale", "gone", "busy", "bob"];
        let mut letter = letter("alice", &all);
        let key = |one: &str| WrappedKey::new(&[u8::from(one == "stale"); WRAPPED_BYTES]);
        letter.routing.keys = all.iter().map(|one| (name(one), key(one))).collect();
        let line = [&protocol::shared_part(&letter.envelope)[..], b",\"key\":\""].concat();
        let ServerMessage::Sent(sent) = deliver(&shared, &alice, letter) else { panic!("not sent") };
        let list = |names: &[Username]| names.iter().map(Username::as_str).collect::<Vec<_>>().join(" ");
        assert_eq!(
            [&sent.delivered, &sent.offline, &sent.stale, &sent.busy].map(|names| list(names)),
            ["bob", "nobody", "gone stale", "busy"]
        );
        members[0].0.outbox.flush(&mut super::super::session::outbox::Buffers::default());
        assert!(sent.id == 7 && comes(far, &line));
    }

    /// PROTOCOL#grants, PROTOCOL#not-granted.
    #[test]
    fn refused_grant_is_not_passed_on_and_grants_nothing() {
        let (shared, _folder) = shared(HOUR);
        let ((alice, _), (bob, far)) = (member(&shared, "alice"), member(&shared, "bob"));
        let ask = |peer: &str, count: u32| {
            grant(&shared, &alice, Grant { peer: name(peer), transfer: Fixed(TRANSFER), count })
        };
        let is_refused = |answer: Option<ServerMessage>, of: &str| match answer {
            Some(ServerMessage::Refused(refused)) => {
                refused.peer == name(of) && refused.transfer == Fixed(TRANSFER)
            }
            _ => false,
        };
        assert!(is_refused(ask("nobody", 1), "nobody") && !alice.has_granted(&name("nobody"), TRANSFER));
        assert!(is_refused(ask("bob", MAX_GRANTED + 1), "bob") && !alice.has_granted(&bob.name, TRANSFER));
        assert!(ask("bob", 3).is_none() && alice.has_granted(&bob.name, TRANSFER));
        let passed_on = Grant { peer: name("alice"), transfer: Fixed(TRANSFER), count: 3 };
        assert!(comes(&far, &ServerMessage::Grant(passed_on).encode()), "and no refused grant");
        // A revocation gets no answer, whomever it names.
        assert!(ask("bob", 0).is_none() && !alice.has_granted(&bob.name, TRANSFER));
        assert!(ask("nobody", 0).is_none());
        fill(&bob);
        assert!(is_refused(ask("bob", 1), "bob") && !alice.has_granted(&bob.name, TRANSFER));
    }

    /// PROTOCOL#shares.
    #[test]
    fn flood_of_grants_leaves_room_for_other_users() {
        let (shared, _folder) = shared(HOUR);
        let [(alice, _), (bob, _), (sender, _)] =
            ["alice", "bob", "sender"].map(|name| member(&shared, name));
        sender.outbox.disconnect();
        let is_passed_on = |from: &Session| {
            let of_one = Grant { peer: sender.name.clone(), transfer: Fixed(TRANSFER), count: 1 };
            let refused = grant(&shared, from, of_one);
            from.revoke(&sender.name, TRANSFER);
            refused.is_none()
        };
        let flood = (0..100_000).take_while(|_| is_passed_on(&alice)).count();
        assert!(flood < 100_000 && is_passed_on(&bob), "after {flood} grants");
    }

    /// PROTOCOL#not-granted, PROTOCOL#packet.
    #[test]
    fn granted_packet_is_forwarded_and_any_other_is_refused() {
        let (shared, _folder) = shared(HOUR);
        let ((alice, far), (bob, _)) = (member(&shared, "alice"), member(&shared, "bob"));
        let send = |peer: &str, transfer: [u8; 16]| {
            relay(&shared, &bob, &Packet { peer: name(peer), transfer, payload: b"piece" }, false)
        };
        assert_eq!((send("alice", TRANSFER), send("nobody", TRANSFER)), (Queued::Gone, Queued::Gone));
        assert!(alice.grant(&bob.name, TRANSFER, 2) && alice.grant(&name("carol"), [8; 16], 1));
        assert_eq!((send("alice", [8; 16]), send("alice", TRANSFER)), (Queued::Gone, Queued::Yes));
        let address = Packet::address(&bob.name, &TRANSFER);
        assert!(comes(&far, &[&frame::packet_head(&address, b"piece")[..], b"piece"].concat()));
        assert_eq!((send("alice", TRANSFER), send("alice", TRANSFER)), (Queued::Yes, Queued::Gone));
        // Granted, but the session has ended.
        assert!(alice.grant(&bob.name, TRANSFER, 1));
        assert!(
            alice.outbox.close(&alice.name, Condition::Always, None, &mut FlushList::default()).is_some()
        );
        assert_eq!(send("alice", TRANSFER), Queued::Gone);
    }

    /// PROTOCOL#packet-order.
    #[test]
    fn packet_without_room_waits_until_there_is_some_or_it_is_late() {
        let (shared, _folder) = shared(HOUR);
        let ((alice, _), (bob, _)) = (member(&shared, "alice"), member(&shared, "bob"));
        let (link, far) = link();
        alice.outbox.disconnect();
        assert!(alice.grant(&bob.name, TRANSFER, 8));
        let payload = [b'x'; 60 * 1024];
        let packet = Packet { peer: alice.name.clone(), transfer: TRANSFER, payload: &payload };
        let relay = |is_late| relay(&shared, &bob, &packet, is_late);
        let pressure = under_pressure(alice.outbox.quotas(), 0);
        for _ in 0..5 {
            assert_eq!(relay(false), Queued::Yes, "each session may have 256 KiB");
        }
        for _ in 0..3 {
            assert_eq!(relay(false), Queued::Full);
        }
        drop(pressure);
        assert_eq!(relay(false), Queued::Yes);
        assert_eq!(attach(&alice.outbox, &link, 0), Attached::Yes);
        let packet = [&frame::packet_head(&Packet::address(&bob.name, &TRANSFER), &payload)[..], &payload];
        assert!(comes(&far, &packet.concat().repeat(6)));
        // A late packet revokes the rest of the grant.
        alice.outbox.disconnect();
        let _pressure = under_pressure(alice.outbox.quotas(), 0);
        assert_eq!(relay(true), Queued::Gone);
        assert!(!alice.has_granted(&bob.name, TRANSFER));
    }

    /// PROTOCOL#keys_request.
    #[test]
    fn keys_request_with_more_than_64_names_is_refused() {
        let (shared, _folder) = shared(HOUR);
        let asked = |count: usize| {
            let names = (0..count).map(|n| name(&format!("name{n}"))).collect();
            match keys(&shared, &KeysRequest { names }) {
                ServerMessage::Keys(answer) => answer.unknown.len(),
                _ => 0,
            }
        };
        assert_eq!((asked(1), asked(MAX_KEY_NAMES), asked(MAX_KEY_NAMES + 1)), (1, MAX_KEY_NAMES, 0));
    }
}
