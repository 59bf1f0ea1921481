//! What a logged-in client asks for: deliver an envelope, pass a packet on, tell keys.
//!
//! Invariant: an envelope goes on only under its sender's own name, to each target once, with that
//! target's own wrapped key and nobody else's; every target is accounted for in the answer.
//! The server checks where it goes, never what it says: it has no key for that.

use super::frames::{Frame, Part};
use super::limits::PACKET_PATIENCE;
use super::outbox::{Pass, Queued};
use super::receipts::Receipt;
use super::session::{Admission, Session};
use super::{Shared, metrics};
use crate::encoding::{Bytes, Fixed};
use crate::name::Username;
use crate::protocol::{
    self, EncryptedSend, Envelope, ErrorCode, Failure, Grant, Keys, KeysRequest, MAX_CIPHERTEXT,
    MAX_KEY_NAMES, MAX_TARGETS, Packet, PersonKeys, Refused, Routing, Scope, Sent, ServerMessage, WrappedKey,
};
use crate::wire::frame;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Recipients that are looked up together, and queued for: some microseconds, for which nobody can log in.
const TOGETHER: usize = 16;

/// Delivers one envelope; the answer is `sent`, or an `error` with the request's `id`. PROTOCOL#outcome.
pub fn deliver(shared: &Shared, sender: &Session, mut send: EncryptedSend) -> ServerMessage {
    let id = send.routing.id;
    if let Err((code, text)) = check(sender, &send).and_then(|()| check_routing(&mut send.routing)) {
        let (code, message) = (code.as_str().into(), text.into());
        return ServerMessage::Error(Failure { code, message, id: Some(id), retry_after: None });
    }
    let EncryptedSend { routing: Routing { targets, keys, .. }, envelope } = send;
    let head: Part = protocol::shared_part(&envelope).into();
    // Broadcasts, words about files and notices of rooms have no receipt.
    let has_receipt = envelope.is_direct_message();
    let mut sent =
        Sent { id, delivered: Vec::new(), offline: Vec::new(), stale: Vec::new(), busy: Vec::new() };
    let mut queue = |found: Found<'_>, (target, key): Route<'_>, pass: Option<&mut Pass>| {
        let list = match found {
            Found::Offline => &mut sent.offline,
            Found::Stale => &mut sent.stale,
            // PROTOCOL#own-key-only.
            Found::Online(session) => {
                let frame = Frame::envelope(head.clone(), has_receipt).by(sender.sender);
                let receipt = has_receipt.then(|| Receipt::new(Arc::downgrade(&sender.outbox), id));
                match session.outbox.deliver(frame, Some(key), receipt, pass) {
                    Queued::Yes => &mut sent.delivered,
                    Queued::Full => {
                        metrics::BUSY.add();
                        &mut sent.busy
                    }
                    Queued::Gone => &mut sent.offline,
                }
            }
        };
        list.push(target);
    };
    let (alone, mut pass) = (targets.len() == 1, Pass::default());
    let mut routes = targets.into_iter().zip(keys.values()).peekable();
    if alone && let Some(only) = routes.next() {
        let session = shared.registry.get(&only.0);
        queue(Found::new(session.as_deref(), &only), only, None);
    }
    while routes.peek().is_some() {
        let online = shared.registry.look();
        // All before the first is queued for: the processor then waits for their memory at once, not for one after the other.
        let found =
            routes.by_ref().take(TOGETHER).map(|route| (Found::new(online.get(&route.0), &route), route));
        let some: Vec<_> = found.collect();
        some.into_iter().for_each(|(found, route)| queue(found, route, Some(&mut pass)));
    }
    shared.flusher.add(pass);
    ServerMessage::Sent(sent)
}

/// For whom, and under which wrapped key.
type Route<'a> = (Username, &'a WrappedKey);

/// Where an envelope can go.
enum Found<'a> {
    Online(&'a Session),
    /// On-line with another session key.
    Stale,
    Offline,
}

impl Found<'_> {
    fn new<'a>(session: Option<&'a Session>, (_, key): &Route<'_>) -> Found<'a> {
        match session {
            None => Found::Offline,
            Some(session) if !session.uses_key(key.id()) => Found::Stale,
            Some(session) => Found::Online(session),
        }
    }
}

type Bad = (ErrorCode, &'static str);

/// PROTOCOL#own-name.
fn check(sender: &Session, send: &EncryptedSend) -> Result<(), Bad> {
    let (routing, Envelope { header, body }) = (&send.routing, &send.envelope);
    if header.from != sender.name {
        return Err((ErrorCode::WrongSender, "from is not the name you are logged in with"));
    }
    if body.ciphertext.0.len() > MAX_CIPHERTEXT {
        return Err((ErrorCode::Malformed, "the ciphertext has more than 33,024 bytes"));
    }
    let bad = |text| Err((ErrorCode::BadTargets, text));
    match (header.scope, &header.recipient) {
        _ if routing.targets.is_empty() => bad("there are no targets"),
        _ if routing.targets.len() > MAX_TARGETS => {
            bad("there are more than 1,024 targets: send it several times")
        }
        (Scope::Broadcast, None) => Ok(()),
        (Scope::Broadcast, Some(_)) => bad("a broadcast has a recipient"),
        (Scope::Private | Scope::Room, Some(name)) if routing.targets == [name.clone()] => Ok(()),
        (Scope::Private | Scope::Room, _) => {
            bad("a private or room envelope has not its recipient as its one target")
        }
        (Scope::Later(_), _) => bad("the scope is neither broadcast nor private nor room"),
    }
}

/// Puts the targets into the order of names, that of `keys`, so that both are gone through once.
/// PROTOCOL#routing.
fn check_routing(routing: &mut Routing) -> Result<(), Bad> {
    let Routing { targets, keys, .. } = routing;
    targets.sort_unstable();
    let is_sorted = targets.is_sorted_by(|one, next| one < next);
    if !is_sorted || !targets.iter().eq(keys.names()) {
        let text = "targets and keys do not name the same users, each once";
        return Err((ErrorCode::BadTargets, text));
    }
    Ok(())
}

/// Passes on that `recipient` takes so many packets more from somebody. The answer is `refused`; `None` if the grant was
/// passed on, or taken back. PROTOCOL#not-granted.
pub fn grant(shared: &Shared, recipient: &Session, grant: Grant) -> Option<ServerMessage> {
    let Grant { peer, transfer, count } = grant;
    if count == 0 {
        recipient.revoke(&peer, transfer.0);
        return None;
    }
    let sender = shared.registry.get(&peer);
    // Recorded first: the packets may come before this returns.
    if let Some(sender) = sender.filter(|_| recipient.grant(&peer, transfer.0, count)) {
        let line = ServerMessage::Grant(Grant { peer: recipient.name.clone(), transfer, count });
        let frame = Frame::message(&line).by(recipient.sender);
        if sender.outbox.deliver(frame, None, None, None) == Queued::Yes {
            return None;
        }
        recipient.revoke(&peer, transfer.0);
    }
    Some(ServerMessage::Refused(Refused { peer, transfer }))
}

/// The sender's connection was taken over before its packet was: it is neither passed on nor refused.
#[derive(Debug)]
pub struct Interrupted;

/// Passes a packet on to who has granted it. The answer is `refused`; `None` if it was queued. Under memory pressure this
/// waits up to [`PACKET_PATIENCE`], and so slows its sender alone, as long as its connection `is_served`.
/// PROTOCOL#packet-order.
///
/// # Errors
/// [`Interrupted`] if it no longer is.
pub fn relay(
    shared: &Shared,
    sender: &Session,
    packet: Packet<'_>,
    is_served: impl Fn() -> bool,
) -> Result<Option<ServerMessage>, Interrupted> {
    let Packet { peer, transfer, payload } = packet;
    let refused =
        || Ok(Some(ServerMessage::Refused(Refused { peer: peer.clone(), transfer: Fixed(transfer) })));
    let Some(recipient) = shared.registry.get(&peer) else { return refused() };
    let head = frame::packet_head(&Packet::address(&sender.name, &transfer), payload);
    let (mut packet, patience) = (Frame::packet(head, payload), Instant::now() + PACKET_PATIENCE);
    loop {
        packet = match recipient.admit(&sender.name, transfer, packet) {
            Admission::NotGranted => return refused(),
            Admission::Queued => return Ok(None),
            Admission::Full(packet) => packet,
        };
        if !is_served() {
            return Err(Interrupted);
        }
        if Instant::now() > patience {
            // The rest of them does not wait again.
            recipient.revoke(&sender.name, transfer);
            return refused();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The keys of those who have an account; of those on-line, the session's too. For more than [`MAX_KEY_NAMES`] names,
/// `bad_targets`.
pub fn keys(shared: &Shared, request: &KeysRequest) -> ServerMessage {
    if request.names.len() > MAX_KEY_NAMES {
        return ServerMessage::error(ErrorCode::BadTargets, "at most 64 names a request");
    }
    let mut answer = Keys { keys: Vec::new(), unknown: Vec::new() };
    // A name asked for twice is answered once.
    for name in request.names.iter().collect::<BTreeSet<_>>() {
        if let Some(session) = shared.registry.get(name) {
            answer.keys.push(session.keys());
            continue;
        }
        let stored = shared.accounts.get(name).map(|account| shared.accounts.identity(&account));
        match stored {
            Some(Ok(identity)) => answer.keys.push(PersonKeys {
                name: name.clone(),
                identity: Bytes(identity.spki()),
                session_key: None,
                created: None,
                certificate: None,
            }),
            Some(Err(error)) => {
                shared.audit.log("damaged_key", Some(name), None, &error.to_string());
                answer.unknown.push(name.clone());
            }
            None => answer.unknown.push(name.clone()),
        }
    }
    ServerMessage::Keys(answer)
}

#[cfg(test)]
mod tests {
    use super::super::frames::tests::under_pressure;
    use super::super::outbox::tests::link;
    use super::super::registry::Place;
    use super::super::session::tests::session;
    use super::super::tests::shared;
    use super::*;
    use crate::crypto::public::{Fingerprint, RSA_BYTES, WRAPPED_BYTES};
    use crate::protocol::{Body, Header, Kind, MAX_GRANTED};
    use std::io::Read;
    use std::net::TcpStream;

    const HOUR: Duration = Duration::from_secs(3600);
    const TRANSFER: [u8; 16] = [9; 16];

    fn name(name: &str) -> Username {
        name.parse().expect("name")
    }

    /// One who is on-line, and the other end of the connection.
    fn member(shared: &Shared, name: &str) -> (Arc<Session>, TcpStream) {
        let (session, far) = session(name);
        assert!(shared.registry.add(&session, Place::default()).is_none());
        (session, far)
    }

    /// Whether these bytes come next.
    fn comes(mut far: &TcpStream, bytes: &[u8]) -> bool {
        far.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        let mut got = vec![0; bytes.len()];
        far.read_exact(&mut got).is_ok() && got == bytes
    }

    /// A broadcast for the session keys that members have.
    fn letter(from: &str, targets: &[&str]) -> EncryptedSend {
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

    /// Without a connection, and with as much waiting as there may be.
    fn fill(session: &Arc<Session>) {
        assert!(session.outbox.claim(0).is_some());
        session.outbox.send(Frame::line(vec![b'x'; 1024 * 1024]));
    }

    /// PROTOCOL#routing, PROTOCOL#own-name.
    #[test]
    fn an_envelope_is_taken_as_long_as_it_may_be_and_not_a_byte_longer() {
        let (alice, _far) = session("alice");
        let taken = |ciphertext: usize| {
            let mut letter = letter("alice", &["bob"]);
            letter.envelope.body.ciphertext.0 = vec![0; ciphertext];
            check(&alice, &letter).map_err(|(code, _)| code)
        };
        assert_eq!((taken(MAX_CIPHERTEXT), taken(0)), (Ok(()), Ok(())));
        assert_eq!(taken(MAX_CIPHERTEXT + 1), Err(ErrorCode::Malformed));
    }

    /// PROTOCOL#outcome.
    #[test]
    fn each_target_is_told_in_the_one_list_that_fits() {
        let (shared, _folder) = shared(HOUR);
        let members = ["bob", "busy", "gone", "stale"].map(|name| member(&shared, name));
        let [(_, far), (busy, _), (gone, _), _] = &members;
        fill(busy);
        // The session has ended, and its thread has not seen it yet.
        gone.outbox.end(None);
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
            ["bob", "gone nobody", "stale", "busy"]
        );
        members[0].0.outbox.flush(&mut super::super::outbox::Buffers::default());
        assert!(sent.id == 7 && comes(far, &line));
    }

    /// PROTOCOL#grants, PROTOCOL#not-granted.
    #[test]
    fn a_grant_is_passed_on_or_refused_and_then_it_grants_nothing() {
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
        let told = Grant { peer: name("alice"), transfer: Fixed(TRANSFER), count: 3 };
        assert!(comes(&far, &ServerMessage::Grant(told).encode()), "and nothing of what was refused");
        // Who takes it back is not answered, whoever it was for.
        assert!(ask("bob", 0).is_none() && !alice.has_granted(&bob.name, TRANSFER));
        assert!(ask("nobody", 0).is_none());
        fill(&bob);
        assert!(is_refused(ask("bob", 1), "bob") && !alice.has_granted(&bob.name, TRANSFER));
    }

    /// PROTOCOL#not-granted, PROTOCOL#packet.
    #[test]
    fn a_packet_that_is_granted_goes_on_under_its_sender_s_name_and_any_other_is_refused() {
        let (shared, _folder) = shared(HOUR);
        let ((alice, far), (bob, _)) = (member(&shared, "alice"), member(&shared, "bob"));
        let send = |peer: &str, transfer: [u8; 16]| {
            let packet = Packet { peer: name(peer), transfer, payload: b"piece" };
            match relay(&shared, &bob, packet, || true) {
                Ok(None) => "passed on",
                Ok(Some(ServerMessage::Refused(refused)))
                    if refused.peer == name(peer) && refused.transfer == Fixed(transfer) =>
                {
                    "refused"
                }
                _ => "neither",
            }
        };
        assert_eq!((send("alice", TRANSFER), send("nobody", TRANSFER)), ("refused", "refused"));
        assert!(alice.grant(&bob.name, TRANSFER, 2) && alice.grant(&name("carol"), [8; 16], 1));
        assert_eq!((send("alice", [8; 16]), send("alice", TRANSFER)), ("refused", "passed on"));
        let address = Packet::address(&bob.name, &TRANSFER);
        assert!(comes(&far, &[&frame::packet_head(&address, b"piece")[..], b"piece"].concat()));
        assert_eq!((send("alice", TRANSFER), send("alice", TRANSFER)), ("passed on", "refused"));
        // Granted, but the session has ended.
        assert!(alice.grant(&bob.name, TRANSFER, 1));
        alice.outbox.end(None);
        assert_eq!(send("alice", TRANSFER), "refused");
    }

    /// PROTOCOL#packet-order.
    #[test]
    fn a_packet_for_which_there_is_no_room_waits_and_goes_on_as_soon_as_there_is() {
        let (shared, _folder) = shared(HOUR);
        let ((alice, _), (bob, _)) = (member(&shared, "alice"), member(&shared, "bob"));
        let (link, far) = link();
        let claim = alice.outbox.claim(0).expect("nothing was sent");
        assert!(alice.grant(&bob.name, TRANSFER, 7));
        let payload = [b'x'; 60 * 1024];
        let send = |is_served: &dyn Fn() -> bool| {
            let packet = Packet { peer: alice.name.clone(), transfer: TRANSFER, payload: &payload };
            relay(&shared, &bob, packet, is_served)
        };
        let pressure = std::cell::Cell::new(Some(under_pressure(alice.outbox.quotas(), 0)));
        for _ in 0..5 {
            assert!(matches!(send(&|| false), Ok(None)), "each may have some");
        }
        assert!(send(&|| false).is_err(), "its sender's connection was taken over");
        // There is room while the sender is waiting.
        let asked = std::cell::Cell::new(0);
        let passed_on = send(&|| {
            asked.set(asked.get() + 1);
            asked.get() < 3 || pressure.take().is_some()
        });
        assert!(matches!(passed_on, Ok(None)) && asked.get() == 3);
        assert!(alice.outbox.attach(link, claim, 0, Vec::new()));
        let packet = [&frame::packet_head(&Packet::address(&bob.name, &TRANSFER), &payload)[..], &payload];
        assert!(comes(&far, &packet.concat().repeat(6)));
        assert!(alice.take_grant(&bob.name, TRANSFER) && !alice.take_grant(&bob.name, TRANSFER));
    }

    /// PROTOCOL#keys_request.
    #[test]
    fn as_many_names_may_be_asked_for_as_the_readme_says() {
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
