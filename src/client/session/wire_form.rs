//! Envelopes between their typed form and the message that carries them: both directions, side by side.
//!
//! Invariant: what is typed went through [`typed`], which refuses fields that contradict each other.
//! Specification: PROTOCOL#envelope.

use crate::crypto::envelope::{self, Body, Envelope, Header, Kind, Recipient, Scope, Word};
use crate::crypto::public::Fingerprint;
use crate::encoding::{Bytes, Fixed};
use crate::protocol::{self, EncryptedMessage, EnvelopeFields};

const _: () = assert!(envelope::MAX_CIPHERTEXT == protocol::MAX_CIPHERTEXT);

/// An envelope's body as it goes over the wire.
pub fn wire_form(body: &Body) -> EnvelopeFields {
    let header = &body.header;
    let recipient = header.scope.recipient();
    EnvelopeFields {
        from: header.sender.clone(),
        kind: header.kind.as_str().into(),
        scope: header.scope.as_str().into(),
        recipient: recipient.map(|recipient| recipient.name.clone()),
        recipient_session: recipient.map(|recipient| Fixed(recipient.session.0)),
        identity: Fixed(header.identity.0),
        session: Fixed(header.session.0),
        sequence: header.sequence,
        time: header.time,
        commitment: Fixed(body.commitment),
        nonce: Fixed(body.nonce),
        ciphertext: Bytes(body.ciphertext.clone()),
        tag: Fixed(body.tag),
        signature: Fixed(body.signature),
    }
}

/// The typed form of an envelope from the wire; `None` if its fields contradict each other. A kind or scope of a later
/// version is typed, too. PROTOCOL#check-fields.
pub fn typed(message: EncryptedMessage) -> Option<Envelope> {
    let wire = message.envelope;
    let recipient = match (wire.recipient, wire.recipient_session) {
        (Some(name), Some(session)) => Some(Recipient { name, session: Fingerprint(session.0) }),
        (None, None) => None,
        _ => return None,
    };
    let scope = match (wire.scope.as_str(), recipient) {
        ("broadcast", None) => Scope::Broadcast,
        ("private", Some(recipient)) => Scope::Private(recipient),
        ("room", Some(recipient)) => Scope::Room(recipient),
        ("broadcast" | "private" | "room", _) => return None,
        (word, recipient) => Scope::Later(Word::new(word)?, recipient),
    };
    let kind = Kind::parse(&wire.kind)?;
    let fits = match (kind, &scope) {
        // PROTOCOL#later-versions.
        (Kind::Message | Kind::Later(_), _) | (_, Scope::Later(..)) => true,
        (Kind::RoomOpened | Kind::RoomLeft, scope) => matches!(scope, Scope::Room(_)),
        (_, scope) => matches!(scope, Scope::Private(_)),
    };
    if !fits {
        return None;
    }
    let header = Header {
        kind,
        scope,
        sender: wire.from,
        identity: Fingerprint(wire.identity.0),
        session: Fingerprint(wire.session.0),
        sequence: wire.sequence,
        time: wire.time,
    };
    let body = Body {
        header,
        commitment: wire.commitment.0,
        nonce: wire.nonce.0,
        ciphertext: wire.ciphertext.0,
        tag: wire.tag.0,
        signature: wire.signature.0,
    };
    Some(Envelope { body, wrapped: message.key.bytes() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::WrappedKey;

    #[test]
    fn a_kind_is_typed_in_its_own_scope_alone() {
        let recipient = || Recipient { name: "bob".parse().expect("name"), session: Fingerprint([1; 32]) };
        let scopes = [Scope::Broadcast, Scope::Private(recipient()), Scope::Room(recipient())];
        let fits = |kind| {
            let typed = scopes.clone().map(|scope| {
                let header = Header {
                    kind,
                    scope,
                    sender: "alice".parse().expect("name"),
                    identity: Fingerprint([2; 32]),
                    session: Fingerprint([3; 32]),
                    sequence: 1,
                    time: 0,
                };
                let (ciphertext, signature) = (vec![0; 256], [0; 256]);
                let body =
                    Body { header, commitment: [4; 32], nonce: [5; 12], ciphertext, tag: [6; 16], signature };
                typed(EncryptedMessage { envelope: wire_form(&body), key: WrappedKey::new(&[7; 256]) })
            });
            typed.map(|envelope| envelope.is_some())
        };
        assert_eq!(fits(Kind::Message), [true; 3]);
        for notice in [Kind::RoomOpened, Kind::RoomLeft] {
            assert_eq!(fits(notice), [false, false, true], "{notice:?}");
        }
        for word in [Kind::FileOffer, Kind::FileAccept, Kind::FileReject, Kind::FileCancel, Kind::FileDone] {
            assert_eq!(fits(word), [false, true, false], "{word:?}");
        }
    }
}
