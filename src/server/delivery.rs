//! What a logged-in client asks for: deliver an envelope, pass a packet on, tell keys.
//!
//! Invariant: an envelope goes on only under its sender's own name, to each target once, with that
//! target's own wrapped key and nobody else's; every target is accounted for in the answer.
//! The server checks where it goes, never what it says: it has no key for that.

use super::frames::{Frame, Part};
use super::limits::PACKET_PATIENCE;
use super::outbox::Queued;
use super::session::Session;
use super::{Shared, status};
use crate::encoding::{Bytes, Fixed};
use crate::name::Username;
use crate::protocol::{
    self, EncryptedSend, ErrorCode, Failure, Grant, Keys, KeysRequest, MAX_CIPHERTEXT, MAX_KEY_NAMES,
    MAX_TARGETS, Packet, PersonKeys, Refused, Sent, ServerMessage,
};
use crate::wire::frame;
use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

/// Delivers one envelope and says what became of it.
pub fn deliver(shared: &Shared, sender: &Session, send: &EncryptedSend) -> ServerMessage {
    let id = send.routing.id;
    if let Err((code, text)) = check(sender, send) {
        let (code, message) = (code.as_str().into(), text.into());
        return ServerMessage::Error(Failure { code, message, id: Some(id), retry_after: None });
    }
    let head: Part = protocol::shared_part(&send.envelope).into();
    let mut sent =
        Sent { id, delivered: Vec::new(), offline: Vec::new(), stale: Vec::new(), busy: Vec::new() };
    let alone = send.routing.targets.len() == 1;
    for target in &send.routing.targets {
        let (key, key_name) = match routing_of(send, target) {
            Some(routing) => routing,
            None => continue, // check() has seen to it
        };
        let Some(session) = shared.registry.get(target) else {
            sent.offline.push(target.clone());
            continue;
        };
        if !session.uses_key(key_name) {
            sent.stale.push(target.clone());
            continue;
        }
        let line = Frame::envelope(head.clone(), protocol::own_part(key));
        let flusher = (!alone).then_some(&shared.flusher);
        let list = match session.outbox.deliver(line, flusher) {
            Queued::Yes => &mut sent.delivered,
            Queued::Full => {
                status::BUSY.add();
                &mut sent.busy
            }
            Queued::Gone => &mut sent.offline,
        };
        list.push(target.clone());
    }
    ServerMessage::Sent(sent)
}

/// The longest kind, in bytes: the server passes on kinds that it does not know.
const MAX_KIND: usize = 32;

type WrappedKey = crate::encoding::Fixed<{ crate::crypto::public::RSA_BYTES }>;

fn routing_of<'a>(send: &'a EncryptedSend, target: &Username) -> Option<(&'a WrappedKey, &'a String)> {
    let (keys, sessions) = (&send.routing.keys, &send.routing.sessions);
    Some((keys.get(target.as_str())?, sessions.get(target.as_str())?))
}

fn check(sender: &Session, send: &EncryptedSend) -> Result<(), (ErrorCode, &'static str)> {
    let bad = |text| Err((ErrorCode::BadTargets, text));
    let (routing, envelope) = (&send.routing, &send.envelope);
    if envelope.from != sender.name {
        return Err((ErrorCode::WrongSender, "from is not the name you are logged in with"));
    }
    if envelope.ciphertext.0.len() > MAX_CIPHERTEXT || envelope.kind.len() > MAX_KIND {
        return Err((ErrorCode::Malformed, "the ciphertext or the kind is too long"));
    }
    if routing.targets.is_empty() || routing.targets.len() > MAX_TARGETS {
        return bad("1 to 1024 targets a message");
    }
    let distinct: HashSet<&Username> = routing.targets.iter().collect();
    if distinct.len() != routing.targets.len() {
        return bad("a target is listed twice");
    }
    if routing.targets.iter().any(|target| routing_of(send, target).is_none()) {
        return bad("a target has no wrapped key or no session");
    }
    // A name that no session can have would be stale for ever.
    let hex =
        |name: &String| name.len() == 16 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !routing.sessions.values().all(hex) {
        return bad("a session is not 16 lower-case hexadecimal digits");
    }
    if routing.keys.len() != distinct.len() || routing.sessions.len() != distinct.len() {
        return bad("a wrapped key or session is for nobody among the targets");
    }
    match (envelope.scope.as_str(), &envelope.recipient) {
        ("broadcast", None) => Ok(()),
        ("private" | "room", Some(name)) if routing.targets == [name.clone()] => Ok(()),
        _ => bad("the scope does not fit the targets"),
    }
}

/// Passes on that `recipient` takes so many packets more from somebody; what to answer, if anything.
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
        if sender.outbox.deliver(Frame::message(&line), None) == Queued::Yes {
            return None;
        }
        recipient.revoke(&peer, transfer.0);
    }
    Some(ServerMessage::Refused(Refused { peer, transfer }))
}

/// The sender's connection was taken over before its packet was: it is neither passed on nor refused.
#[derive(Debug)]
pub struct Interrupted;

/// Passes a packet on to who has granted it; what to answer, if anything. Under memory pressure this
/// waits, and so slows its sender alone, as long as its connection `is_served`.
///
/// # Errors
/// [`Interrupted`].
pub fn relay(
    shared: &Shared,
    sender: &Session,
    packet: Packet<'_>,
    is_served: impl Fn() -> bool,
) -> Result<Option<ServerMessage>, Interrupted> {
    let Packet { peer, transfer, payload } = packet;
    let refused =
        || Ok(Some(ServerMessage::Refused(Refused { peer: peer.clone(), transfer: Fixed(transfer) })));
    let granted = shared.registry.get(&peer).filter(|peer| peer.has_granted(&sender.name, transfer));
    let Some(recipient) = granted else { return refused() };
    let patience = Instant::now() + PACKET_PATIENCE;
    while !recipient.outbox.has_room() {
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
    let head = frame::packet_head(&Packet::address(&sender.name, &transfer), payload);
    // Only its one sender uses a grant up, but meanwhile it may have been taken back.
    let taken =
        recipient.take_grant(&sender.name, transfer) && recipient.outbox.relay(Frame::packet(head, payload));
    if taken { Ok(None) } else { refused() }
}

/// The keys of those who have an account; of those on-line, the session's too.
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
