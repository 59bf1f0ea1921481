//! What messages say: the members of each one's line, beside its `type`. Specification: PROTOCOL#messages.
//!
//! Invariant: whatever has a fixed length or form has a type that allows no other.

use super::ByName;
use crate::crypto::envelope::Envelope;
use crate::crypto::public::{RSA_BYTES, SessionCertificate, ShortFingerprint, WRAPPED_BYTES};
use crate::crypto::secret::Key;
use crate::encoding::{Bytes, Fixed, Joined, Text, base64, text};
use crate::name::Username;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use miniserde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Client: make an account.
#[derive(Serialize, Deserialize)]
pub struct Register {
    /// The protocol's version; another one than [`VERSION`](super::VERSION) is `unsupported_version`.
    pub version: u32,
    /// The name to be registered; it is taken if another one differs from it in letter case alone.
    pub username: Username,
    /// Random, for PBKDF2.
    pub salt: Fixed<32>,
    /// Of PBKDF2: 100,000 to 10,000,000 are accepted.
    pub rounds: u32,
    /// `PBKDF2(password, salt, rounds)`, 32 bytes; the password itself never leaves the client.
    pub password_key: Key,
    /// The identity key, DER `SubjectPublicKeyInfo`, 294 bytes.
    pub public_key: Bytes,
}

/// Client: ask for a challenge.
#[derive(Serialize, Deserialize)]
pub struct LoginRequest {
    /// The protocol's version: [`VERSION`](super::VERSION).
    pub version: u32,
    /// The name of the account, in its own letter case.
    pub username: Username,
    /// The identity key, DER `SubjectPublicKeyInfo`, 294 bytes.
    pub public_key: Bytes,
}

/// Server: what a login must answer.
#[derive(Serialize, Deserialize)]
pub struct Challenge {
    /// The protocol's version: [`VERSION`](super::VERSION).
    pub version: u32,
    /// Random; good for one response on this connection, within 5 minutes.
    pub nonce: Fixed<32>,
    /// The account's; for an unknown name one that is made from the name and a secret of the server.
    pub salt: Fixed<32>,
    /// Of the account's PBKDF2; a client refuses fewer than 100,000 or more than 10,000,000.
    pub rounds: u32,
}

/// Client: the answer to a challenge.
#[derive(Serialize, Deserialize)]
pub struct ChallengeResponse {
    /// `HMAC[password key]` over name, nonce, TLS exporter and session key's fingerprint (PROTOCOL#response).
    pub response: Fixed<32>,
    /// The session key, DER `SubjectPublicKeyInfo`, 294 bytes.
    pub session_key: Bytes,
    /// When the session key was made, in milliseconds since 1970, by the client's clock.
    pub created: u64,
    /// The identity key's signature over name, session key and `created` (PROTOCOL#keys).
    pub certificate: Fixed<RSA_BYTES>,
    /// The identity key's signature over name, nonce, TLS exporter and session key's fingerprint (PROTOCOL#login).
    pub proof: Fixed<RSA_BYTES>,
}

/// Client: a new password, as the other answer to a challenge.
#[derive(Serialize, Deserialize)]
pub struct PasswordChange {
    /// `HMAC[password key so far]` over name, nonce, TLS exporter, salt, rounds and new password key (PROTOCOL#response).
    pub response: Fixed<32>,
    /// Random, for the new password's PBKDF2.
    pub salt: Fixed<32>,
    /// Of the new password's PBKDF2: 100,000 to 10,000,000 are accepted.
    pub rounds: u32,
    /// `PBKDF2(new password, salt, rounds)`, 32 bytes.
    pub password_key: Key,
    /// The identity key's signature over name, nonce, TLS exporter, salt, rounds and password key.
    pub proof: Fixed<RSA_BYTES>,
}

/// Client: ask to take up a session whose connection broke.
#[derive(Serialize, Deserialize)]
pub struct ResumeRequest {
    /// The protocol's version: [`VERSION`](super::VERSION).
    pub version: u32,
    /// Whose session is to go on.
    pub username: Username,
}

/// Server: what that must answer.
#[derive(Serialize, Deserialize)]
pub struct ResumeChallenge {
    /// The protocol's version: [`VERSION`](super::VERSION).
    pub version: u32,
    /// Random; good for one answer on this connection, within 5 minutes.
    pub nonce: Fixed<32>,
}

/// Client: the answer, and how much has arrived.
#[derive(Serialize, Deserialize)]
pub struct Resume {
    /// Frames of this session that the client has taken in, since the login.
    pub received: u64,
    /// `HMAC[token]` over name, nonce, TLS exporter and `received` (PROTOCOL#resuming).
    pub proof: Fixed<32>,
}

/// Either: so many frames of this session were taken in. As `resumed`: and the session goes on.
#[derive(Serialize, Deserialize)]
pub struct Received {
    /// Counted frames since the login; it never falls, and never exceeds what the other side has sent.
    pub received: u64,
}

/// Client: a new session key for the running session.
#[derive(Serialize, Deserialize)]
pub struct SessionKeyFields {
    /// DER `SubjectPublicKeyInfo`, 294 bytes.
    pub session_key: Bytes,
    /// When the key was made, in milliseconds since 1970, by its owner's clock.
    pub created: u64,
    /// The identity key's signature over name, session key and `created` (PROTOCOL#keys).
    pub certificate: Fixed<RSA_BYTES>,
}

impl SessionKeyFields {
    /// The wire form of a certificate.
    pub fn new(certificate: &SessionCertificate) -> SessionKeyFields {
        SessionKeyFields {
            session_key: Bytes(certificate.key.spki()),
            created: certificate.created,
            certificate: Fixed(certificate.signature),
        }
    }
}

/// Server: the login, or the new session key, was accepted.
#[derive(Serialize, Deserialize)]
pub struct Session {
    /// 32 bytes that prove the session when its connection broke; each `renew` brings new ones.
    pub token: Key,
    /// When the token is void: 24 hours on, in milliseconds since 1970, by the server's clock.
    pub expires: u64,
}

/// Server: who is on-line. The first one is full, the later ones say what changed.
#[derive(Serialize, Deserialize)]
pub struct Presence {
    /// More of the first list follows.
    pub more: bool,
    /// True on the first line of the first list alone: it replaces what was known.
    pub full: bool,
    /// Who is on-line: on the lines of the first list everyone, later who came. At most [`MAX_PRESENCE_NAMES`](super::MAX_PRESENCE_NAMES).
    pub joined: Vec<Username>,
    /// Who has left. Who has logged in anew since the last line stands in `joined`, too.
    pub left: Vec<Username>,
}

/// Client: the keys of these people, please.
#[derive(Serialize, Deserialize)]
pub struct KeysRequest {
    /// At most [`MAX_KEY_NAMES`](super::MAX_KEY_NAMES).
    pub names: Vec<Username>,
}

/// Server: what was asked for.
#[derive(Serialize, Deserialize)]
pub struct Keys {
    /// Of everyone asked for who has an account, once.
    pub keys: Vec<PersonKeys>,
    /// Names without an account; also of one whose key file the server cannot read.
    pub unknown: Vec<Username>,
}

/// One person's keys; the session's are missing for someone who is not on-line.
#[derive(Serialize, Deserialize)]
pub struct PersonKeys {
    /// The name of the account, in its own letter case.
    pub name: Username,
    /// The identity key, DER `SubjectPublicKeyInfo`, 294 bytes.
    pub identity: Bytes,
    /// The session key, DER, 294 bytes; `None` for someone who is not on-line, like the next two.
    pub session_key: Option<Bytes>,
    /// When the session key was made, in milliseconds since 1970, by its owner's clock.
    pub created: Option<u64>,
    /// The identity key's signature over name, session key and `created`.
    pub certificate: Option<Fixed<RSA_BYTES>>,
}

/// Where an envelope goes.
#[derive(Serialize, Deserialize)]
pub struct Routing {
    /// The sender's number for this request, repeated in the answer.
    pub id: u64,
    /// 1 to [`MAX_TARGETS`](super::MAX_TARGETS) different names.
    pub targets: Vec<Username>,
    /// The message key, wrapped for each target's session key: exactly the targets' names.
    pub keys: ByName<WrappedKey>,
}

impl Joined for Routing {
    const MEMBERS: &[&str] = &["id", "targets", "keys"];
}

/// The id of a recipient's key, and the message key wrapped for it, on its way through the server, which passes its text on:
/// checked to be the base64 of [`WRAPPED_BYTES`] bytes. The server reads the id alone. It is its own memory: a message to a
/// thousand users has a thousand of them.
#[derive(Clone, PartialEq, Eq)]
pub struct WrappedKey([u8; WrappedKey::DIGITS]);

text!(WrappedKey);

impl Text for WrappedKey {
    /// `None` where the decoder would not make [`WRAPPED_BYTES`] bytes of it: asked a thousand times for one message, so that
    /// it is worth not to decode. Their number is a multiple of three: no padding, and each digit has six bits.
    fn read(text: &str) -> Option<WrappedKey> {
        let digits = text.as_bytes().try_into().ok()?;
        let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() | (*byte == b'+') | (*byte == b'/');
        // Without a way out in the middle, many are looked at together.
        let is_base64 = text.as_bytes().iter().fold(true, |all, byte| all & is_digit(byte));
        is_base64.then_some(WrappedKey(digits))
    }

    fn write(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl WrappedKey {
    /// Of the base64 of [`WRAPPED_BYTES`] bytes: 352.
    pub const DIGITS: usize = WRAPPED_BYTES / 3 * 4;

    /// The base64 of a wrapped key.
    pub fn new(wrapped: &[u8; WRAPPED_BYTES]) -> WrappedKey {
        WrappedKey(base64(wrapped).as_bytes().try_into().expect("the base64 of so many bytes"))
    }

    /// Which key it is wrapped for, as the sender says. PROTOCOL#key-id.
    pub fn id(&self) -> ShortFingerprint {
        let [a, b, c, d, e, f, g, h, _] = self.decoded(12);
        ShortFingerprint([a, b, c, d, e, f, g, h])
    }

    /// What the recipient unwraps.
    pub fn bytes(&self) -> [u8; WRAPPED_BYTES] {
        self.decoded(Self::DIGITS)
    }

    fn decoded<const N: usize>(&self, digits: usize) -> [u8; N] {
        let mut bytes = [0; N];
        BASE64_STANDARD.decode_slice(&self.0[..digits], &mut bytes).expect("it was checked");
        bytes
    }

    /// Its base64, 352 characters.
    pub fn digits(&self) -> &[u8] {
        &self.0
    }
}

const _: () = assert!(WRAPPED_BYTES / 3 * 3 == WRAPPED_BYTES, "its base64 has no padding");

/// Client: an envelope with a wrapped key for each recipient.
pub struct EncryptedSend {
    /// Where it goes.
    pub routing: Routing,
    /// What every recipient gets.
    pub envelope: Envelope,
}

/// Server: an envelope with the recipient's own wrapped key.
pub struct EncryptedMessage {
    /// What every recipient gets.
    pub envelope: Envelope,
    /// The message key, wrapped for this recipient's session key, whose id it begins with.
    pub key: WrappedKey,
}

/// Server: what became of an `encrypted_send`. Every target is in exactly one list.
#[derive(Serialize, Deserialize)]
pub struct Sent {
    /// Of the `encrypted_send` that it answers.
    pub id: u64,
    /// It was queued for these people, no more.
    pub delivered: Vec<Username>,
    /// No session of theirs is there.
    pub offline: Vec<Username>,
    /// On-line with another session key than the one used: fetch it and send again.
    pub stale: Vec<Username>,
    /// On-line, but so much waits for them already that this was not taken.
    pub busy: Vec<Username>,
}

/// Server: a message that was `delivered` may not have arrived, because the recipient's session ended.
#[derive(Serialize, Deserialize)]
pub struct Lost {
    /// Of the `encrypted_send`.
    pub id: u64,
    /// The recipient.
    pub name: Username,
}

/// Client: `peer` may send me so many packets more. Server: `peer` grants you so many.
#[derive(Serialize, Deserialize)]
pub struct Grant {
    /// To the server who may send, from it who grants.
    pub peer: Username,
    /// The transfer, as its sender has named it: random.
    pub transfer: Fixed<16>,
    /// Packets. At most [`MAX_GRANTED`](super::MAX_GRANTED) in all; with 0, what was granted and not used is taken back.
    pub count: u32,
}

/// Server: a packet or grant for `peer` was not passed on: it was not asked for, or they are gone.
#[derive(Serialize, Deserialize)]
pub struct Refused {
    /// The other side of the transfer, as the packet or grant named it.
    pub peer: Username,
    /// The transfer of the packet or grant.
    pub transfer: Fixed<16>,
}

/// Server: a request failed, or the connection ends.
#[derive(Serialize, Deserialize)]
pub struct Failure {
    /// Stable, for programs: see [`ErrorCode`](super::ErrorCode).
    pub code: String,
    /// For people.
    pub message: String,
    /// Of the `encrypted_send` it answers; `None` for anything else.
    pub id: Option<u64>,
    /// Seconds until it is worth trying again; `None` where waiting is of no use.
    pub retry_after: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::random;

    /// PROTOCOL#base64, PROTOCOL#key-id.
    #[test]
    fn a_wrapped_key_is_exactly_what_the_decoder_takes() {
        let decoded =
            |text: &str| BASE64_STANDARD.decode(text).is_ok_and(|bytes| bytes.len() == WRAPPED_BYTES);
        let bytes: [u8; WRAPPED_BYTES] = random();
        let good = WrappedKey::new(&bytes);
        assert!(good.bytes() == bytes && good.id().0 == bytes[..8]);
        let is_taken = |text: &str| WrappedKey::read(text).is_some_and(|key| key.digits() == text.as_bytes());
        assert!(is_taken(str::from_utf8(good.digits()).expect("ASCII")));
        for at in [0, 1, 170, 348, 349, 350, 351] {
            for byte in 0..=127u8 {
                let mut text = good.digits().to_vec();
                text[at] = byte;
                let text = String::from_utf8(text).expect("ASCII");
                assert_eq!(is_taken(&text), decoded(&text), "{byte} at {at}");
            }
        }
        for count in [0, 1, 85, 256, 262, 263, 265, 266, 267] {
            let text = BASE64_STANDARD.encode(vec![7; count]);
            assert!(!is_taken(&text), "{count} bytes");
        }
        assert!(!is_taken(&format!("é{}", str::from_utf8(&good.digits()[2..]).expect("ASCII"))));
    }
}
