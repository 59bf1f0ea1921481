//! Every message between client and server, to a line and back: here which there are, in `fields` what they say. A
//! [`Packet`] is no line.
//!
//! Invariant: a decoded message has the right types, lengths and names; what it means is for others
//! to check. A line is one JSON object whose `type` names the message; unknown fields are
//! ignored. Specification: PROTOCOL#messages.

mod fields;
mod packet;
pub mod timing;

pub use fields::*;
pub use packet::Packet;

use crate::encoding::{Both, Fields, FirstType, is_shallow};
use miniserde::{Deserialize, Serialize, json};
use std::borrow::Cow;
use std::fmt;

/// The version agreed in the first exchange.
pub const VERSION: u32 = 1;
/// The longest line before login, in bytes without its end: a login needs under 2 KiB.
pub const MAX_LINE_BEFORE_LOGIN: usize = 16 * 1024;
/// The longest line after login: an envelope for [`MAX_TARGETS`] recipients has about half of it.
pub const MAX_LINE: usize = 1024 * 1024;
/// The most recipients of one `encrypted_send`; a broadcast to more goes out in several.
pub const MAX_TARGETS: usize = 1024;
/// The most names of one `keys_request`: its answer then has about 80 KiB.
pub const MAX_KEY_NAMES: usize = 64;
/// The most names in one `presence` line: under 150 KB of them.
pub const MAX_PRESENCE_NAMES: usize = 4096;
/// The longest ciphertext of an envelope, in bytes: a text of 32 KiB, its length and its padding.
pub const MAX_CIPHERTEXT: usize = 33_024;
/// The longest body of a packet, in bytes: a chunk of 64 KiB, what protects it, and a name.
pub const MAX_PACKET: usize = 66 * 1024;
/// The most packets that one client may have granted to others and not received yet: 8.25 MiB.
pub const MAX_GRANTED: u32 = 128;

#[derive(Serialize, Deserialize)]
struct Empty {}

/// What can be read of a message of another version.
#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

/// The codes of [`Failure`]. PROTOCOL#error-codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The line or packet is no message, or a part of it is too long; after a false `ack` the connection is closed, too.
    Malformed,
    /// A `type` that the server does not take.
    UnknownType,
    /// A line or packet over its limit, of which nothing can be read any more: the connection is closed.
    LineTooLong,
    /// Another `version` than [`VERSION`].
    UnsupportedVersion,
    /// What only a session may say, before the login is complete.
    NotLoggedIn,
    /// A step of a login in a session.
    AlreadyLoggedIn,
    /// An answer, and nothing was asked on this connection.
    NoChallenge,
    /// Registration: somebody has the name, perhaps in another letter case. The connection stays open.
    NameTaken,
    /// Registration: the interface uses the name as a word.
    NameReserved,
    /// Registration: the server runs with `--closed`.
    RegistrationClosed,
    /// Login or change: name, password, identity key, signature or channel is wrong; which, is not told.
    LoginFailed,
    /// Resumption: there is no session that proof and count fit. The client logs in.
    NoSession,
    /// Login or change: too many failures for the name or from the address; `retry_after` is set.
    Locked,
    /// A key that is not RSA-2048 in canonical DER, or a session certificate that is no good by itself.
    BadKey,
    /// Fewer than 100,000 or more than 10,000,000 PBKDF2 rounds.
    BadRounds,
    /// Targets, keys, sessions and scope do not fit each other, or there are too many names.
    BadTargets,
    /// The envelope's `from` is not the name logged in with.
    WrongSender,
    /// Too many lines before a login, or new accounts and passwords from one address.
    TooManyRequests,
    /// Another login of the account has taken over; also to a `resume` of the session that it replaced.
    SignedInElsewhere,
    /// The certificate of the session key is no longer valid: the connection is closed, and the client logs in again.
    CertificateExpired,
    /// The operator has ended the account; the connection is closed.
    AccountRemoved,
    /// The login, or the end of a session's former connection, took too long.
    TimedOut,
    /// There are as many sessions as the server allows.
    ServerFull,
    /// The server cannot write to its disk; a change of the password may or may not have been made.
    ServerError,
}

impl Failure {
    /// Whether it is this one.
    pub fn is(&self, code: ErrorCode) -> bool {
        self.code == code.as_str()
    }
}

impl ErrorCode {
    /// As it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::Malformed => "malformed",
            ErrorCode::UnknownType => "unknown_type",
            ErrorCode::LineTooLong => "line_too_long",
            ErrorCode::UnsupportedVersion => "unsupported_version",
            ErrorCode::NotLoggedIn => "not_logged_in",
            ErrorCode::AlreadyLoggedIn => "already_logged_in",
            ErrorCode::NoChallenge => "no_challenge",
            ErrorCode::NameTaken => "name_taken",
            ErrorCode::NameReserved => "name_reserved",
            ErrorCode::RegistrationClosed => "registration_closed",
            ErrorCode::LoginFailed => "login_failed",
            ErrorCode::NoSession => "no_session",
            ErrorCode::Locked => "locked",
            ErrorCode::BadKey => "bad_key",
            ErrorCode::BadRounds => "bad_rounds",
            ErrorCode::BadTargets => "bad_targets",
            ErrorCode::WrongSender => "wrong_sender",
            ErrorCode::TooManyRequests => "too_many_requests",
            ErrorCode::SignedInElsewhere => "signed_in_elsewhere",
            ErrorCode::CertificateExpired => "certificate_expired",
            ErrorCode::AccountRemoved => "account_removed",
            ErrorCode::TimedOut => "timed_out",
            ErrorCode::ServerFull => "server_full",
            ErrorCode::ServerError => "server_error",
        }
    }
}

/// What a client says.
pub enum ClientMessage {
    /// `register`, answered by `registered`. PROTOCOL#register.
    Register(Register),
    /// `login_request`, answered by `challenge`. PROTOCOL#login_request.
    LoginRequest(LoginRequest),
    /// `challenge_response`, answered by `session`. PROTOCOL#challenge_response.
    ChallengeResponse(Box<ChallengeResponse>),
    /// `password_change`, answered by `password_changed`; then the connection is closed. PROTOCOL#password_change.
    PasswordChange(Box<PasswordChange>),
    /// `resume_request`, answered by `resume_challenge`. PROTOCOL#resume_request.
    ResumeRequest(ResumeRequest),
    /// `resume`, answered by `resumed`. PROTOCOL#resume.
    Resume(Resume),
    /// `renew`, answered by `session`. PROTOCOL#renew.
    Renew(Box<SessionKeyFields>),
    /// `keys_request`, answered by `keys`. PROTOCOL#keys_request.
    KeysRequest(KeysRequest),
    /// `encrypted_send`, answered by `sent`. PROTOCOL#encrypted_send.
    EncryptedSend(Box<EncryptedSend>),
    /// `grant`, answered by `refused` or nothing. PROTOCOL#grant.
    Grant(Grant),
    /// `ack`, without an answer. PROTOCOL#ack.
    Ack(Received),
    /// `ping`, answered by `pong`. PROTOCOL#ping.
    Ping,
    /// `pong`, a sign of life. PROTOCOL#pong.
    Pong,
    /// `logout`: the session ends at once. PROTOCOL#logout.
    Logout,
}

/// What a server says.
pub enum ServerMessage {
    /// `registered`: the account is on disk. PROTOCOL#registered.
    Registered,
    /// `challenge`, to a `login_request`. PROTOCOL#challenge.
    Challenge(Challenge),
    /// `session`, to a `challenge_response` or `renew`. PROTOCOL#session.
    Session(Session),
    /// `password_changed`: the new password is on disk. PROTOCOL#password_changed.
    PasswordChanged,
    /// `resume_challenge`, to a `resume_request`. PROTOCOL#resume_challenge.
    ResumeChallenge(ResumeChallenge),
    /// `resumed`: the session goes on, on this connection. PROTOCOL#resumed.
    Resumed(Received),
    /// `presence`, unasked. PROTOCOL#presence.
    Presence(Presence),
    /// `keys`, to a `keys_request`. PROTOCOL#keys_answer.
    Keys(Keys),
    /// `encrypted_message`, unasked. PROTOCOL#encrypted_message.
    EncryptedMessage(Box<EncryptedMessage>),
    /// `sent`, to an `encrypted_send`. PROTOCOL#sent.
    Sent(Sent),
    /// `lost`, unasked: the recipient's session ended before it acknowledged a message. PROTOCOL#lost.
    Lost(Lost),
    /// `grant`, passed on from the peer who grants. PROTOCOL#grant.
    Grant(Grant),
    /// `refused`, to a packet or grant that is not passed on. PROTOCOL#refused.
    Refused(Refused),
    /// `error`, to any request, or before the connection is closed. PROTOCOL#error.
    Error(Failure),
    /// `ack`, without an answer. PROTOCOL#ack.
    Ack(Received),
    /// `ping`, to a client that was silent for 30 s. PROTOCOL#ping.
    Ping,
    /// `pong`, to a `ping`. PROTOCOL#pong.
    Pong,
}

/// Why a line is not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// Not UTF-8, not JSON, or a field is missing or of the wrong type or length.
    Malformed,
    /// A `type` that this side does not take.
    UnknownType,
    /// Of another version than [`VERSION`], whose members are not known.
    OtherVersion,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DecodeError::Malformed => {
                "not a message: it is not JSON, or a field is missing or of the wrong type"
            }
            DecodeError::UnknownType => "unknown message type",
            DecodeError::OtherVersion => {
                "the protocol's version here is 1: one of the two programs is too old"
            }
        })
    }
}

impl std::error::Error for DecodeError {}

/// The text of a line and its `type`.
fn head(line: &[u8]) -> Result<(&str, Cow<'_, str>), DecodeError> {
    let text = std::str::from_utf8(line).map_err(|_| DecodeError::Malformed)?;
    if !is_shallow(text) {
        return Err(DecodeError::Malformed);
    }
    // Where our own programs put it, it is found without reading half a megabyte once more for it.
    let first = text.strip_prefix(r#"{"type":""#).and_then(|rest| rest.split_once('"'));
    match first {
        Some((kind, _)) if !kind.contains('\\') => Ok((text, Cow::Borrowed(kind))),
        _ => Ok((text, Cow::Owned(body::<FirstType>(text)?.0))),
    }
}

impl Fields for OwnKey {
    const NAMES: &[&str] = &["key"];
}

/// Why a message cannot be read. One of another version may have other members. PROTOCOL#version.
fn blame(error: DecodeError, text: &str, kind: &str) -> DecodeError {
    let kinds = ["register", "login_request", "resume_request", "challenge", "resume_challenge"];
    let is_other = |line: Versioned| line.version != u64::from(VERSION);
    match kinds.contains(&kind) && body(text).is_ok_and(is_other) {
        true => DecodeError::OtherVersion,
        false => error,
    }
}

/// The fields of two structs that share a line.
fn both<A: Deserialize + Fields, B: Deserialize>(text: &str) -> Result<(A, B), DecodeError> {
    body::<Both<A, B>>(text)?.parts().ok_or(DecodeError::Malformed)
}

fn body<T: Deserialize>(text: &str) -> Result<T, DecodeError> {
    json::from_str(text).map_err(|_| DecodeError::Malformed)
}

/// The version that a line names, if it names one: a later one may have other members. PROTOCOL#version.
pub fn version_of(line: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Version {
        version: Option<u32>,
    }
    let (text, _) = head(line).ok()?;
    body::<Version>(text).ok()?.version
}

/// A message without fields: its line is an object all the same.
fn empty<M>(text: &str, message: M) -> Result<M, DecodeError> {
    body::<Empty>(text).map(|_| message)
}

/// One line: the type, then the fields of each part.
fn line(kind: &str, parts: &[String]) -> Vec<u8> {
    let length = parts.iter().map(String::len).sum::<usize>();
    let mut line = Vec::with_capacity(length + kind.len() + 16);
    for part in ["{\"type\":\"", kind, "\""] {
        line.extend_from_slice(part.as_bytes());
    }
    for part in parts {
        let fields = &part[1..part.len() - 1];
        if !fields.is_empty() {
            line.push(b',');
            line.extend_from_slice(fields.as_bytes());
        }
    }
    line.extend_from_slice(b"}\n");
    line
}

fn one<T: Serialize>(kind: &str, body: &T) -> Vec<u8> {
    line(kind, &[json::to_string(body)])
}

impl ClientMessage {
    /// Decodes one line without its end. Unknown members are ignored; how long a line may be is the reader's to say.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(line: &[u8]) -> Result<ClientMessage, DecodeError> {
        let (text, kind) = head(line)?;
        ClientMessage::read(text, &kind).map_err(|error| blame(error, text, &kind))
    }

    fn read(text: &str, kind: &str) -> Result<ClientMessage, DecodeError> {
        Ok(match kind {
            "register" => ClientMessage::Register(body(text)?),
            "login_request" => ClientMessage::LoginRequest(body(text)?),
            "challenge_response" => ClientMessage::ChallengeResponse(Box::new(body(text)?)),
            "password_change" => ClientMessage::PasswordChange(Box::new(body(text)?)),
            "resume_request" => ClientMessage::ResumeRequest(body(text)?),
            "resume" => ClientMessage::Resume(body(text)?),
            "renew" => ClientMessage::Renew(Box::new(body(text)?)),
            "keys_request" => ClientMessage::KeysRequest(body(text)?),
            "encrypted_send" => {
                let (routing, envelope) = both(text)?;
                ClientMessage::EncryptedSend(Box::new(EncryptedSend { routing, envelope }))
            }
            "grant" => ClientMessage::Grant(body(text)?),
            "ack" => ClientMessage::Ack(body(text)?),
            "ping" => empty(text, ClientMessage::Ping)?,
            "pong" => empty(text, ClientMessage::Pong)?,
            "logout" => empty(text, ClientMessage::Logout)?,
            _ => return empty(text, ()).and(Err(DecodeError::UnknownType)),
        })
    }

    /// The line, with its end.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ClientMessage::Register(body) => one("register", body),
            ClientMessage::LoginRequest(body) => one("login_request", body),
            ClientMessage::ChallengeResponse(body) => one("challenge_response", &**body),
            ClientMessage::PasswordChange(body) => one("password_change", &**body),
            ClientMessage::ResumeRequest(body) => one("resume_request", body),
            ClientMessage::Resume(body) => one("resume", body),
            ClientMessage::Renew(body) => one("renew", &**body),
            ClientMessage::KeysRequest(body) => one("keys_request", body),
            ClientMessage::EncryptedSend(send) => {
                line("encrypted_send", &[json::to_string(&send.routing), json::to_string(&send.envelope)])
            }
            ClientMessage::Grant(body) => one("grant", body),
            ClientMessage::Ack(body) => one("ack", body),
            ClientMessage::Ping => one("ping", &Empty {}),
            ClientMessage::Pong => one("pong", &Empty {}),
            ClientMessage::Logout => one("logout", &Empty {}),
        }
    }
}

impl ClientMessage {
    /// Whether it is one of the frames that both sides count and that are sent again when a session is
    /// resumed. Of everything that follows a login, only these are not (PROTOCOL#resuming).
    pub fn is_counted(&self) -> bool {
        !matches!(self, ClientMessage::Ack(_) | ClientMessage::Ping | ClientMessage::Pong)
    }
}

/// What a recipient gets beside the envelope.
#[derive(Serialize, Deserialize)]
struct OwnKey {
    key: WrappedKey,
}

impl ServerMessage {
    /// Decodes one line without its end, by the same rules.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(line: &[u8]) -> Result<ServerMessage, DecodeError> {
        let (text, kind) = head(line)?;
        ServerMessage::read(text, &kind).map_err(|error| blame(error, text, &kind))
    }

    fn read(text: &str, kind: &str) -> Result<ServerMessage, DecodeError> {
        Ok(match kind {
            "registered" => empty(text, ServerMessage::Registered)?,
            "challenge" => ServerMessage::Challenge(body(text)?),
            "session" => ServerMessage::Session(body(text)?),
            "password_changed" => empty(text, ServerMessage::PasswordChanged)?,
            "resume_challenge" => ServerMessage::ResumeChallenge(body(text)?),
            "resumed" => ServerMessage::Resumed(body(text)?),
            "presence" => ServerMessage::Presence(body(text)?),
            "keys" => ServerMessage::Keys(body(text)?),
            "encrypted_message" => {
                let (OwnKey { key }, envelope) = both(text)?;
                ServerMessage::EncryptedMessage(Box::new(EncryptedMessage { envelope, key }))
            }
            "sent" => ServerMessage::Sent(body(text)?),
            "lost" => ServerMessage::Lost(body(text)?),
            "grant" => ServerMessage::Grant(body(text)?),
            "refused" => ServerMessage::Refused(body(text)?),
            "error" => ServerMessage::Error(body(text)?),
            "ack" => ServerMessage::Ack(body(text)?),
            "ping" => empty(text, ServerMessage::Ping)?,
            "pong" => empty(text, ServerMessage::Pong)?,
            _ => return empty(text, ()).and(Err(DecodeError::UnknownType)),
        })
    }

    /// The line, with its end.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ServerMessage::Registered => one("registered", &Empty {}),
            ServerMessage::Challenge(body) => one("challenge", body),
            ServerMessage::Session(body) => one("session", body),
            ServerMessage::PasswordChanged => one("password_changed", &Empty {}),
            ServerMessage::ResumeChallenge(body) => one("resume_challenge", body),
            ServerMessage::Resumed(body) => one("resumed", body),
            ServerMessage::Presence(body) => one("presence", body),
            ServerMessage::Keys(body) => one("keys", body),
            ServerMessage::EncryptedMessage(message) => {
                let (head, key) = (shared_part(&message.envelope), message.key.digits());
                [&head, KEY_BEGINS, key, KEY_ENDS].concat()
            }
            ServerMessage::Sent(body) => one("sent", body),
            ServerMessage::Lost(body) => one("lost", body),
            ServerMessage::Grant(body) => one("grant", body),
            ServerMessage::Refused(body) => one("refused", body),
            ServerMessage::Error(body) => one("error", body),
            ServerMessage::Ack(body) => one("ack", body),
            ServerMessage::Ping => one("ping", &Empty {}),
            ServerMessage::Pong => one("pong", &Empty {}),
        }
    }

    /// Whether it is counted: see [`ClientMessage::is_counted`].
    pub fn is_counted(&self) -> bool {
        !matches!(self, ServerMessage::Ack(_) | ServerMessage::Ping | ServerMessage::Pong)
    }

    /// An error without `id` and `retry_after`.
    pub fn error(code: ErrorCode, message: impl Into<String>) -> ServerMessage {
        ServerMessage::Error(Failure {
            code: code.as_str().into(),
            message: message.into(),
            id: None,
            retry_after: None,
        })
    }
}

/// The beginning of an `encrypted_message` line, the same for all recipients; [`KEY_BEGINS`], the recipient's own
/// [`WrappedKey`] and [`KEY_ENDS`] follow.
pub fn shared_part(envelope: &EnvelopeFields) -> Vec<u8> {
    let mut start = one("encrypted_message", envelope);
    start.truncate(start.len() - 2);
    start
}

/// What stands before the base64 of the wrapped key in an `encrypted_message`.
pub const KEY_BEGINS: &[u8] = b",\"key\":\"";
/// What stands after it: the end of the line.
pub const KEY_ENDS: &[u8] = b"\"}\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::{Bytes, Fixed};

    fn decode(line: &str) -> Result<ClientMessage, DecodeError> {
        ClientMessage::decode(line.as_bytes())
    }

    /// PROTOCOL#not-a-message.
    #[test]
    fn what_is_not_a_message_is_refused_without_a_panic() {
        use DecodeError::{Malformed, UnknownType};
        for (line, error) in [
            ("", Malformed),
            ("{", Malformed),
            ("[]", Malformed),
            ("null", Malformed),
            ("{}", Malformed),
            ("{\"type\":3}", Malformed),
            ("{\"type\":\"ping\"} {}", Malformed),
            ("{\"type\":\"nonsense\"}", UnknownType),
            ("{\"type\":\"presence\",\"full\":true,\"joined\":[],\"left\":[]}", UnknownType),
            ("{\"type\":\"keys_request\"}", Malformed),
            ("{\"type\":\"keys_request\",\"names\":\"alice\"}", Malformed),
            ("{\"type\":\"keys_request\",\"names\":[\"a/b\"]}", Malformed),
            ("{\"type\":\"keys_request\",\"names\":[1e999]}", Malformed),
            (
                "{\"type\":\"login_request\",\"version\":99999999999999999999,\"username\":\"a\",\"public_key\":\"\"}",
                Malformed,
            ),
            ("{\"type\":\"login_request\",\"version\":-1,\"username\":\"a\",\"public_key\":\"\"}", Malformed),
        ] {
            assert_eq!(decode(line).err(), Some(error), "{line}");
        }
        assert_eq!(ClientMessage::decode(b"{\"type\":\"ping\xff\"}").err(), Some(Malformed));
        let nested = format!("{{\"x\":{},\"type\":\"ping\"}}", "[".repeat(500_000));
        assert_eq!(decode(&nested).err(), Some(Malformed));
    }

    /// PROTOCOL#version.
    #[test]
    fn line_of_another_version_is_told_as_such() {
        for line in [
            r#"{"type":"login_request","version":2,"name":"alice"}"#,
            r#"{"type":"register","version":0}"#,
            r#"{"type":"resume_request","version":18446744073709551615}"#,
        ] {
            assert_eq!(decode(line).err(), Some(DecodeError::OtherVersion), "{line}");
        }
        for line in [r#"{"type":"login_request","version":1}"#, r#"{"type":"keys_request","version":2}"#] {
            assert_eq!(decode(line).err(), Some(DecodeError::Malformed), "{line}");
        }
        let challenge = ServerMessage::decode(br#"{"type":"challenge","version":2,"nonce":"new"}"#);
        assert_eq!(challenge.err(), Some(DecodeError::OtherVersion));
    }

    #[test]
    fn brackets_inside_strings_are_not_nesting() {
        let text = format!("{{\"note\":\"{}\\\"[[\",\"type\":\"ping\"}}", "[{".repeat(50));
        assert!(matches!(decode(&text), Ok(ClientMessage::Ping)));
    }

    /// PROTOCOL#line.
    #[test]
    fn unknown_fields_are_ignored_and_the_last_of_duplicates_counts() {
        let text = r#"{"extra":{"a":[1,2]},"received":1,"type":"ack","received":2,"more":null}"#;
        assert!(matches!(decode(text), Ok(ClientMessage::Ack(Received { received: 2 }))));
        for bad in ["\"1\"", "-1", "null"] {
            let text = format!(r#"{{"type":"ack","received":{bad},"received":2}}"#);
            assert!(matches!(decode(&text), Err(DecodeError::Malformed)), "{text}");
        }
    }

    /// PROTOCOL#encrypted_message.
    #[test]
    fn the_two_parts_of_a_delivery_make_one_message() {
        let envelope = EnvelopeFields {
            from: "alice".parse().expect("name"),
            kind: "message".into(),
            scope: "broadcast".into(),
            recipient: None,
            recipient_session: None,
            identity: Fixed([1; 32]),
            session: Fixed([2; 32]),
            sequence: 3,
            time: 4,
            commitment: Fixed([5; 32]),
            nonce: Fixed([6; 12]),
            ciphertext: Bytes(vec![7; 256]),
            tag: Fixed([8; 16]),
            signature: Fixed([9; 256]),
        };
        let key = WrappedKey::new(&[10; 256]);
        let line = [&shared_part(&envelope), KEY_BEGINS, key.digits(), KEY_ENDS].concat();
        assert_eq!(line.last(), Some(&b'\n'));
        match ServerMessage::decode(&line[..line.len() - 1]) {
            Ok(ServerMessage::EncryptedMessage(message)) => {
                assert!(message.key.bytes() == [10; 256] && message.envelope.sequence == 3);
                assert!(message.envelope.recipient.is_none());
            }
            _ => panic!("not an encrypted_message"),
        }
    }

    /// PROTOCOL#line.
    #[test]
    fn the_first_type_counts_wherever_it_stands_and_the_rest_must_be_an_object_all_the_same() {
        let decode = |line: &str| ClientMessage::decode(line.as_bytes());
        let is_ping = |line: &str| matches!(decode(line), Ok(ClientMessage::Ping));
        assert!(is_ping(r#"{"type":"ping"}"#) && is_ping(r#"{ "a": [1], "type": "ping" }"#));
        assert!(is_ping(r#"{"type":"p\u0069ng"}"#));
        for twice in [
            r#"{"type":"ping","type":"logout"}"#,
            r#"{"a":1,"type":"ping","type":"logout"}"#,
            r#"{"type":"ping","type":7}"#,
            r#"{"a":1,"type":"ping","type":{"b":[]}}"#,
        ] {
            assert!(is_ping(twice), "{twice}");
        }
        for cut in [r#"{"type":"ping""#, r#"{"type":"ping"}}"#, r#"{"type":"ping",}"#, r#"{"type":"none""#] {
            assert!(matches!(decode(cut), Err(DecodeError::Malformed)), "{cut}");
        }
        assert!(matches!(decode(r#"{"type":"none"}"#), Err(DecodeError::UnknownType)));
        assert!(matches!(decode(r#"{"a":"ping"}"#), Err(DecodeError::Malformed)));
    }
}
