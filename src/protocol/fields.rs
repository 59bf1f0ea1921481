//! The members of each message, beside its `type`. Specification: PROTOCOL#messages.
//!
//! Invariant: a value of fixed length or form has a type that allows no other.

use super::by_name::ByName;
use super::wrapped_key::WrappedKey;
use crate::crypto::envelope::Envelope;
use crate::crypto::public::{Fingerprint, MailboxCertificate, RSA_BYTES, SessionCertificate};
use crate::crypto::secret::Key;
use crate::encoding::{Bytes, Fixed, Joined};
use crate::name::Username;
use miniserde::{Deserialize, Serialize};

/// Client: create an account.
#[derive(Serialize, Deserialize)]
pub struct Register {
    /// [`VERSION`](super::VERSION); another version is `unsupported_version`.
    pub version: u32,
    /// The name to register; it is taken if another name differs from it only in letter case.
    pub username: Username,
    /// Salt of PBKDF2, random.
    pub salt: Fixed<32>,
    /// Rounds of PBKDF2: 100,000 to 10,000,000 are accepted.
    pub rounds: u32,
    /// `PBKDF2(password, salt, rounds)`, 32 bytes. The password itself never leaves the client.
    pub password_key: Key,
    /// The identity key, DER `SubjectPublicKeyInfo`, 294 bytes.
    pub public_key: Bytes,
}

/// Client: ask for a challenge.
#[derive(Serialize, Deserialize)]
pub struct LoginRequest {
    /// [`VERSION`](super::VERSION).
    pub version: u32,
    /// The name, in the letter case of the account.
    pub username: Username,
    /// The identity key, DER `SubjectPublicKeyInfo`, 294 bytes.
    pub public_key: Bytes,
}

/// Server: the challenge that a login answers.
#[derive(Serialize, Deserialize)]
pub struct Challenge {
    /// [`VERSION`](super::VERSION).
    pub version: u32,
    /// Random; valid for one response on this connection, within 5 minutes.
    pub nonce: Fixed<32>,
    /// The account's; for an unknown name an HMAC of the name under a secret of the server.
    pub salt: Fixed<32>,
    /// Rounds of the account's PBKDF2; a client refuses fewer than 100,000 or more than 10,000,000.
    pub rounds: u32,
}

/// Client: the answer to a challenge.
#[derive(Serialize, Deserialize)]
pub struct ChallengeResponse {
    /// `HMAC[password key]` over name, nonce, TLS exporter and session key's fingerprint (PROTOCOL#response).
    pub response: Fixed<32>,
    /// The session key, DER `SubjectPublicKeyInfo`, 294 bytes.
    pub session_key: Bytes,
    /// When the session key was made, by the client's clock in milliseconds since 1970.
    pub created: u64,
    /// The identity key's signature over name, session key and `created` (PROTOCOL#keys).
    pub certificate: Fixed<RSA_BYTES>,
    /// The identity key's signature over name, nonce, TLS exporter and session key's fingerprint (PROTOCOL#login).
    pub proof: Fixed<RSA_BYTES>,
}

impl ChallengeResponse {
    /// The session key with its certificate.
    pub fn certificate(&self) -> SessionCertificate {
        let (session_key, created, certificate) = (self.session_key.clone(), self.created, self.certificate);
        SessionCertificate { session_key, created, certificate }
    }
}

/// Client: a new password, the other answer to a challenge.
#[derive(Serialize, Deserialize)]
pub struct PasswordChange {
    /// `HMAC[old password key]` over name, nonce, TLS exporter, salt, rounds and new password key (PROTOCOL#response).
    pub response: Fixed<32>,
    /// Salt of the new password's PBKDF2, random.
    pub salt: Fixed<32>,
    /// Rounds of the new password's PBKDF2: 100,000 to 10,000,000 are accepted.
    pub rounds: u32,
    /// `PBKDF2(new password, salt, rounds)`, 32 bytes.
    pub password_key: Key,
    /// The identity key's signature over name, nonce, TLS exporter, salt, rounds and password key.
    pub proof: Fixed<RSA_BYTES>,
}

/// Client: ask to resume a session whose connection broke.
#[derive(Serialize, Deserialize)]
pub struct ResumeRequest {
    /// [`VERSION`](super::VERSION).
    pub version: u32,
    /// The user whose session continues.
    pub username: Username,
}

/// Server: the challenge that a resumption answers.
#[derive(Serialize, Deserialize)]
pub struct ResumeChallenge {
    /// [`VERSION`](super::VERSION).
    pub version: u32,
    /// Random; valid for one answer on this connection, within 5 minutes.
    pub nonce: Fixed<32>,
}

/// Client: the proof, and the number of frames that it received.
#[derive(Serialize, Deserialize)]
pub struct Resume {
    /// Frames of this session that the client received since the login.
    pub received: u64,
    /// `HMAC[token]` over name, nonce, TLS exporter and `received` (PROTOCOL#resuming).
    pub proof: Fixed<32>,
}

/// Either: how many frames of this session the sender received. As `resumed`: the session continues.
#[derive(Serialize, Deserialize)]
pub struct Received {
    /// Counted frames since the login. It never decreases and never exceeds what the peer sent.
    pub received: u64,
}

/// Server: the login or the new session key is accepted.
#[derive(Serialize, Deserialize)]
pub struct Session {
    /// 32 bytes that prove the ownership of the session when it is resumed; each `renew` returns new ones.
    pub token: Key,
    /// The end of the token's validity, after 24 hours: in milliseconds since 1970, by the server's clock.
    pub expires: u64,
    /// The highest `created` of the certificates that the server accepted for this account before this one, since its
    /// start; 0 if there was none. PROTOCOL#newest.
    pub newest: u64,
}

/// Server: the online users. The first list is complete, the later ones contain changes.
#[derive(Serialize, Deserialize)]
pub struct Presence {
    /// More of the first list follows.
    pub more: bool,
    /// True only on the first line of the first list, which replaces what the client knew.
    pub full: bool,
    /// All online users in the first list, later the users who joined. At most
    /// [`MAX_PRESENCE_NAMES`](super::MAX_PRESENCE_NAMES).
    pub joined: Vec<Username>,
    /// Users who left. A user who logged in again since the last line is in `joined`, too.
    pub left: Vec<Username>,
}

/// Client: ask for the keys of these users.
#[derive(Serialize, Deserialize)]
pub struct KeysRequest {
    /// At most [`MAX_KEY_NAMES`](super::MAX_KEY_NAMES).
    pub names: Vec<Username>,
}

/// Server: the keys.
#[derive(Serialize, Deserialize)]
pub struct Keys {
    /// One entry for each requested user with an account.
    pub keys: Vec<UserKeys>,
    /// Names without an account, or whose key file the server cannot read.
    pub unknown: Vec<Username>,
}

/// One user's keys: the session key of an online user, the mailbox key of an offline one, if there is one; never both.
#[derive(Serialize, Deserialize)]
pub struct UserKeys {
    /// The name, in the letter case of the account.
    pub name: Username,
    /// The identity key, DER `SubjectPublicKeyInfo`, 294 bytes.
    pub identity: Bytes,
    /// The session key, DER, 294 bytes. `None` for an offline user.
    pub session_key: Option<Bytes>,
    /// The mailbox key, DER, 294 bytes. `None` for an online user.
    pub mailbox_key: Option<Bytes>,
    /// When the key was made, by its owner's clock in milliseconds since 1970. `None` without a key.
    pub created: Option<u64>,
    /// The identity key's signature over name, key and `created`. `None` without a key.
    pub certificate: Option<Fixed<RSA_BYTES>>,
}

impl UserKeys {
    /// Keys of a user with this identity key (DER) and, while online, the session key of this certificate.
    pub fn new(name: Username, identity: Vec<u8>, session: Option<&SessionCertificate>) -> UserKeys {
        UserKeys {
            name,
            identity: Bytes(identity),
            session_key: session.map(|session| session.session_key.clone()),
            mailbox_key: None,
            created: session.map(|session| session.created),
            certificate: session.map(|session| session.certificate),
        }
    }

    /// Keys of an offline user with this mailbox key.
    pub fn with_mailbox(self, mailbox: &MailboxCertificate) -> UserKeys {
        let (mailbox_key, created) = (Some(mailbox.mailbox_key.clone()), Some(mailbox.created));
        UserKeys { mailbox_key, created, certificate: Some(mailbox.certificate), ..self }
    }
}

/// Where an envelope goes.
#[derive(Serialize, Deserialize)]
pub struct Routing {
    /// The sender's number for this request, which the answer repeats.
    pub id: u64,
    /// 1 to [`MAX_TARGETS`](super::MAX_TARGETS) different names.
    pub targets: Vec<Username>,
    /// The message key, wrapped for each target's session or mailbox key: exactly the targets' names.
    pub keys: ByName<WrappedKey>,
}

impl Joined for Routing {
    const MEMBERS: &[&str] = &["id", "targets", "keys"];
}

/// Client: an envelope, and a wrapped key for each recipient.
pub struct EncryptedSend {
    /// Where it goes.
    pub routing: Routing,
    /// The part that all recipients get.
    pub envelope: Envelope,
}

/// Server: an envelope, and the recipient's own wrapped key.
pub struct EncryptedMessage {
    /// The part that all recipients get.
    pub envelope: Envelope,
    /// The id of this recipient's key, and the message key wrapped for it.
    pub key: WrappedKey,
}

/// Server: the outcome of an `encrypted_send`. Each target is in exactly one list.
#[derive(Default, Serialize, Deserialize)]
pub struct Sent {
    /// The id of the `encrypted_send`.
    pub id: u64,
    /// The server queued the envelope for these users; they may not have received it yet.
    pub delivered: Vec<Username>,
    /// The envelope is on the server's disk for these users until they log in.
    pub kept: Vec<Username>,
    /// These users have no session, and no mailbox for this envelope.
    pub offline: Vec<Username>,
    /// These users have another key now: request it and send again.
    pub stale: Vec<Username>,
    /// Too much already waits for these users.
    pub busy: Vec<Username>,
}

/// Server: a `delivered` message may not have arrived, because the recipient's session ended.
#[derive(Serialize, Deserialize)]
pub struct Lost {
    /// The id of the `encrypted_send`.
    pub id: u64,
    /// The recipient.
    pub name: Username,
}

/// Client: send the mail that waits for these keys.
#[derive(Serialize, Deserialize)]
pub struct MailRequest {
    /// The mailbox keys with which the client can decrypt: at most [`MAX_MAILBOX_KEYS`](super::MAX_MAILBOX_KEYS).
    pub keys: Vec<Fingerprint>,
    /// Only messages with a higher number.
    pub after: u64,
}

/// Server: the oldest messages that wait for the named keys.
pub struct Mail {
    /// In the order in which they were kept: at most [`MAX_MAIL`](super::MAX_MAIL), and at most
    /// [`MAX_MAIL_BYTES`](super::MAX_MAIL_BYTES) together.
    pub mail: Vec<Kept>,
    /// More messages wait for these keys, with higher numbers.
    pub more: bool,
    /// The number of messages that wait for other keys.
    pub other: u64,
    /// When the last of those is deleted, in milliseconds since 1970, by the server's clock; 0 if there are none.
    pub until: u64,
}

/// A message that was kept.
pub struct Kept {
    /// Names the message in `mail_done`; higher than those of the messages that were kept before it and still wait.
    pub number: u64,
    /// The message, as it was sent.
    pub message: Box<EncryptedMessage>,
}

/// Client: delete these messages.
#[derive(Serialize, Deserialize)]
pub struct MailDone {
    /// Their numbers; unknown ones are ignored.
    pub numbers: Vec<u64>,
}

/// Client: allows `peer` to send it `count` more packets. Server: `peer` allows this client to send them.
#[derive(Serialize, Deserialize)]
pub struct Grant {
    /// To the server: the sender of the packets. From the server: their recipient.
    pub peer: Username,
    /// The transfer: 16 random bytes, chosen by the sender of the file.
    pub transfer: Fixed<16>,
    /// Packets, at most [`MAX_GRANTED`](super::MAX_GRANTED) in all. 0 revokes the unused ones.
    pub count: u32,
}

/// Server: a packet or grant was not forwarded, because `peer` did not ask for it or is offline.
#[derive(Serialize, Deserialize)]
pub struct Refused {
    /// The other side of the transfer, as in the packet or grant.
    pub peer: Username,
    /// The transfer of the packet or grant.
    pub transfer: Fixed<16>,
}

/// Server: a request failed, or the connection ends.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Stable, for programs: see [`ErrorCode`](super::ErrorCode).
    pub code: String,
    /// The text for people.
    pub message: String,
    /// The id of the `encrypted_send` that it answers; `None` for any other request.
    pub id: Option<u64>,
    /// Seconds until a new attempt may succeed; `None` where waiting does not help.
    pub retry_after: Option<u64>,
    /// For a refused `renew`: as in [`Session`]. For a refused `mailbox`: the `created` of the mailbox key in use, 0 if
    /// there is none.
    pub newest: Option<u64>,
}
