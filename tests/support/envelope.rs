//! Envelopes with any header: sealed as by an honest client, or filled with bytes that only the server accepts.

use super::{Person, name};
use secure_messenger::clock;
use secure_messenger::crypto::envelope::{Body, Envelope, Header, Kind, Scope, Sealed};
use secure_messenger::crypto::public::{Fingerprint, RSA_BYTES, SessionPublicKey, WRAPPED_BYTES};
use secure_messenger::crypto::secret::random;
use secure_messenger::encoding::{Bytes, Fixed};
use secure_messenger::name::Username;
use secure_messenger::protocol::{
    ClientMessage, EncryptedMessage, EncryptedSend, Routing, ServerMessage, WrappedKey,
};

/// The scope and the recipient of an envelope.
pub type To = (Scope, Option<(Username, Fingerprint)>);

pub const EVERYONE: To = (Scope::Broadcast, None);

pub fn private_to(who: &str, session: &SessionPublicKey) -> To {
    (Scope::Private, Some((name(who), session.fingerprint())))
}

pub fn header(from: &Person, (scope, to): To, sequence: u64) -> Header {
    let (recipient, recipient_key) = to.unzip();
    Header {
        kind: Kind::Message,
        scope,
        recipient,
        recipient_key,
        from: from.name.clone(),
        identity: from.identity.public().fingerprint(),
        session: from.session.fingerprint(),
        sequence,
        time: clock::now_ms(),
        again: None,
    }
}

pub fn delivery(envelope: Envelope, key: [u8; WRAPPED_BYTES]) -> ServerMessage {
    ServerMessage::EncryptedMessage(Box::new(EncryptedMessage { envelope, key: WrappedKey::new(&key) }))
}

/// Seals a text under any header, and delivers it to `session`.
pub fn sealed(from: &Person, header: Header, text: &[u8], session: &SessionPublicKey) -> ServerMessage {
    let sealed = Sealed::seal(header, &from.identity, text);
    delivery(sealed.envelope.clone(), sealed.wrap_for(session))
}

/// A message as an honest client seals it, delivered to `session`.
pub fn message(
    from: &Person,
    to: To,
    sequence: u64,
    text: &str,
    session: &SessionPublicKey,
) -> ServerMessage {
    sealed(from, header(from, to, sequence), text.as_bytes(), session)
}

/// The request that sends an envelope to one user.
pub fn send_to(to: &str, id: u64, envelope: Envelope, key: [u8; WRAPPED_BYTES]) -> ClientMessage {
    let keys = [(name(to), WrappedKey::new(&key))].into_iter().collect();
    let routing = Routing { id, targets: vec![name(to)], keys };
    ClientMessage::EncryptedSend(Box::new(EncryptedSend { routing, envelope }))
}

/// A broadcast that only the server accepts: nothing in it is encrypted. The wrapped key of target N begins with the id
/// of the session key that every [`Person`] has; its other bytes are 100 + N.
pub fn letter(from: &Person, targets: &[&str], number: u64, size: usize) -> EncryptedSend {
    let key = |(n, to): (usize, &&str)| {
        let mut wrapped = [(100 + n) as u8; WRAPPED_BYTES];
        wrapped[..8].copy_from_slice(&from.session.fingerprint().key_id());
        (name(to), WrappedKey::new(&wrapped))
    };
    let keys = targets.iter().enumerate().map(key).collect();
    let body = Body {
        commitment: Fixed(random()),
        nonce: Fixed(random()),
        ciphertext: Bytes(vec![5; size]),
        tag: Fixed([6; 16]),
        signature: Fixed([7; RSA_BYTES]),
    };
    EncryptedSend {
        routing: Routing { id: number, targets: targets.iter().map(|to| name(to)).collect(), keys },
        envelope: Envelope { header: header(from, EVERYONE, number), body },
    }
}
