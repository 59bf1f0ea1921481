//! Requests about mail: mailbox keys, messages for absent users, and their delivery at the next login.
//!
//! Invariant: all of them read or write the disk, so they are handled before the sender's `inbound` is locked. If the
//! connection is taken over meanwhile, the client sends the request again, so each may be handled twice. `set` and
//! `fetch` use the mailbox of the session's own user.

use super::quotas;
use super::routing;
use super::session::Session;
use super::shared::Shared;
use super::store::mail::Outcome;
use crate::auth;
use crate::clock;
use crate::protocol::{
    EncryptedMessage, EncryptedSend, ErrorCode, Failure, MAX_MAILBOX_KEYS, MailRequest, MailboxCertificate,
    Sent, ServerMessage,
};
use std::ptr;

/// A session that has ended must not replace the mailbox key of a later one, or leave a key or a message of a removed
/// account.
fn is_current(shared: &Shared, session: &Session) -> bool {
    shared.registry.get(&session.name).is_some_and(|current| ptr::eq(&*current, session))
}

/// Takes a new mailbox key. The answer is `mailbox_set`, `bad_mailbox`, `no_mail` or `server_error`.
/// PROTOCOL#mailbox-key.
pub fn set(shared: &Shared, session: &Session, certificate: &MailboxCertificate) -> ServerMessage {
    let (mail, name, now) = (&shared.store.mail, &session.name, clock::now_ms());
    if mail.limits.bytes == 0 {
        return ServerMessage::error(ErrorCode::NoMail, "this server keeps no messages for absent users");
    }
    let offered = auth::check_offered(&certificate.mailbox_key, certificate.created, now);
    let refusal = match offered {
        Err(failure) => failure.message,
        Ok(()) if certificate.verify(name, &session.identity(), now).is_err() => {
            "the mailbox key is not certified by your identity key".into()
        }
        Ok(()) => match mail.set(name, certificate, || is_current(shared, session)) {
            Ok(true) => return ServerMessage::MailboxSet,
            Ok(false) => "the mailbox key is not newer than the one in use".into(),
            Err(_) => {
                let text = "the server cannot store the mailbox key now: tell its operator";
                return ServerMessage::error(ErrorCode::ServerError, text);
            }
        },
    };
    let newest = Some(mail.newest(name));
    ServerMessage::Error(Failure { newest, ..Failure::new(ErrorCode::BadMailbox, refusal) })
}

/// Keeps a private or room message that is sealed for its recipient's mailbox key; the answer is `sent`, or an `error`
/// with the request's `id`. `None` for any other or invalid envelope. PROTOCOL#keeping, PROTOCOL#outcome.
pub fn keep(shared: &Shared, sender: &Session, send: &mut EncryptedSend) -> Option<ServerMessage> {
    let (mail, id) = (&shared.store.mail, send.routing.id);
    let to = send.envelope.header.recipient.clone().filter(|_| send.envelope.is_direct_message())?;
    let (current, _) = mail.key(&to)?;
    let key = send.routing.keys.get(&to).filter(|key| key.id() == current)?.clone();
    routing::check(sender, send).ok()?;
    let message = Box::new(EncryptedMessage { envelope: send.envelope.clone(), key });
    let mut sent = Sent { id, ..Sent::default() };
    let may_keep = || shared.registry.get(&to).is_none() && is_current(shared, sender);
    let names = match mail.keep(&to, message, may_keep) {
        Ok(Outcome::Kept) => &mut sent.kept,
        Ok(Outcome::Stale) => &mut sent.stale,
        Ok(Outcome::Full) => {
            quotas::count(&shared.quotas.busy);
            &mut sent.busy
        }
        Err(_) => {
            let text = "the server cannot keep messages now: tell its operator";
            let failure = Failure::new(ErrorCode::ServerError, text);
            return Some(ServerMessage::Error(Failure { id: Some(id), ..failure }));
        }
    };
    names.push(to);
    Some(ServerMessage::Sent(sent))
}

/// The mail that waits for these keys. PROTOCOL#fetching.
pub fn fetch(shared: &Shared, session: &Session, request: &MailRequest) -> ServerMessage {
    if request.keys.len() > MAX_MAILBOX_KEYS {
        return ServerMessage::error(ErrorCode::Malformed, "at most 64 keys a request");
    }
    let keys: Vec<_> = request.keys.iter().map(|key| key.key_id()).collect();
    ServerMessage::Mail(shared.store.mail.fetch(&session.name, &keys, request.after))
}

#[cfg(test)]
mod tests {
    use super::super::routing::tests::letter;
    use super::super::session::outbox::Condition;
    use super::super::session::tests::{name, session};
    use super::super::shared::tests::{HOUR, shared};
    use super::*;
    use crate::crypto::public::{RSA_BYTES, WRAPPED_BYTES};
    use crate::encoding::{Bytes, Fixed};
    use crate::protocol::{Scope, WrappedKey};

    /// OPERATING#server-mail.
    #[test]
    fn message_is_kept_only_from_the_current_session() {
        let (shared, _folder) = shared(HOUR);
        let ([ended, current], carol) = (["alice", "alice"].map(|name| session(name).0), name("carol"));
        let (mailbox_key, certificate) = (Bytes(vec![1; 294]), Fixed([0; RSA_BYTES]));
        let key = MailboxCertificate { mailbox_key, created: clock::now_ms(), certificate };
        assert!(shared.store.mail.set(&carol, &key, || true).expect("a disk"));
        let mut wrapped = [0; WRAPPED_BYTES];
        wrapped[..8].copy_from_slice(&key.key_id());
        let mut send = letter("alice", &["carol"]);
        send.routing.keys = [(carol.clone(), WrappedKey::new(&wrapped))].into_iter().collect();
        (send.envelope.header.scope, send.envelope.header.recipient) = (Scope::Private, Some(carol));
        let mut outcome = |sender| match keep(&shared, sender, &mut send) {
            Some(ServerMessage::Sent(sent)) => (sent.kept.len(), sent.stale.len()),
            _ => panic!("no outcome"),
        };
        // An operator removes the account while its message is in progress.
        assert!(shared.registry.insert(&ended, 9) && shared.registry.end(&ended, Condition::Always, None));
        assert_eq!(outcome(&ended), (0, 1));
        assert!(shared.registry.insert(&current, 9));
        assert_eq!(outcome(&current), (1, 0));
    }
}
