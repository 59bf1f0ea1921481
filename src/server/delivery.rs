//! What a logged-in client asks for: deliver an envelope, pass a packet on, tell keys.
//!
//! Invariant: an envelope goes on only under its sender's own name, to each target once, with that
//! target's own wrapped key and nobody else's; every target is accounted for in the answer.
//! The server checks where it goes, never what it says: it has no key for that.

use super::frames::{Frame, Part};
use super::limits::PACKET_PATIENCE;
use super::outbox::{Pass, Queued};
use super::session::Session;
use super::{Shared, status};
use crate::crypto::public::ShortFingerprint;
use crate::encoding::{Bytes, Fixed};
use crate::name::Username;
use crate::protocol::{
    self, EncryptedSend, ErrorCode, Failure, Grant, Keys, KeysRequest, MAX_CIPHERTEXT, MAX_KEY_NAMES,
    MAX_TARGETS, Packet, PersonKeys, Refused, Routing, Sent, ServerMessage, WrappedKey,
};
use crate::wire::frame;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Where one copy of an envelope goes.
struct Route {
    target: Username,
    key: WrappedKey,
    /// The session key that it is wrapped for.
    session: ShortFingerprint,
}

/// Delivers one envelope; the answer is `sent`, or an `error` with the request's `id`. README#outcome.
pub fn deliver(shared: &Shared, sender: &Session, send: EncryptedSend) -> ServerMessage {
    let (id, checked) = (send.routing.id, check(sender, &send));
    let EncryptedSend { routing, envelope } = send;
    let routes = match checked.and_then(|()| routes(routing)) {
        Ok(routes) => routes,
        Err((code, text)) => {
            let (code, message) = (code.as_str().into(), text.into());
            return ServerMessage::Error(Failure { code, message, id: Some(id), retry_after: None });
        }
    };
    let head: Part = protocol::shared_part(&envelope).into();
    let mut sent =
        Sent { id, delivered: Vec::new(), offline: Vec::new(), stale: Vec::new(), busy: Vec::new() };
    let (alone, mut pass) = (routes.len() == 1, Pass::default());
    for Route { target, key, session: key_name } in routes {
        let list = match shared.registry.get(&target) {
            None => &mut sent.offline,
            Some(session) if !session.uses_key(key_name) => &mut sent.stale,
            Some(session) => {
                // README#own-key-only.
                let line = Frame::envelope(head.clone(), key);
                match session.outbox.deliver(line, (!alone).then_some(&mut pass)) {
                    Queued::Yes => &mut sent.delivered,
                    Queued::Full => {
                        status::BUSY.add();
                        &mut sent.busy
                    }
                    Queued::Gone => &mut sent.offline,
                }
            }
        };
        list.push(target);
    }
    shared.flusher.add(pass);
    ServerMessage::Sent(sent)
}

/// The longest kind, in bytes: the server passes on kinds that it does not know; those of today have at most 11.
const MAX_KIND: usize = 32;

type Bad = (ErrorCode, &'static str);

/// README#own-name.
fn check(sender: &Session, send: &EncryptedSend) -> Result<(), Bad> {
    let (routing, envelope) = (&send.routing, &send.envelope);
    if envelope.from != sender.name {
        return Err((ErrorCode::WrongSender, "from is not the name you are logged in with"));
    }
    if envelope.ciphertext.0.len() > MAX_CIPHERTEXT || envelope.kind.len() > MAX_KIND {
        return Err((ErrorCode::Malformed, "the ciphertext or the kind is too long"));
    }
    match (envelope.scope.as_str(), &envelope.recipient) {
        ("broadcast", None) => Ok(()),
        ("private" | "room", Some(name)) if routing.targets == [name.clone()] => Ok(()),
        _ => Err((ErrorCode::BadTargets, "the scope does not fit the targets")),
    }
}

/// One for each target, in the order of names: that of `keys` and `sessions`, so that all three are gone through once.
/// README#routing.
fn routes(routing: Routing) -> Result<Vec<Route>, Bad> {
    let bad = |text| Err((ErrorCode::BadTargets, text));
    let Routing { mut targets, keys, sessions, .. } = routing;
    if targets.is_empty() || targets.len() > MAX_TARGETS {
        return bad("1 to 1024 targets a message");
    }
    targets.sort_unstable();
    let is_sorted = targets.is_sorted_by(|one, next| one < next);
    if !is_sorted || !targets.iter().eq(keys.names()) || !targets.iter().eq(sessions.names()) {
        return bad("targets, keys and sessions are not of the same people, each once");
    }
    let all = targets.into_iter().zip(keys.into_values().zip(sessions.into_values()));
    Ok(all.map(|(target, (key, session))| Route { target, key, session }).collect())
}

/// Passes on that `recipient` takes so many packets more from somebody. The answer is `refused`; `None` if the grant was
/// passed on, or taken back. README#not-granted.
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

/// Passes a packet on to who has granted it. The answer is `refused`; `None` if it was queued. Under memory pressure this
/// waits up to [`PACKET_PATIENCE`], and so slows its sender alone, as long as its connection `is_served`.
/// README#packet-order.
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
