//! Every message between client and server, to a line and back: here which there are, in `fields` what they say. A
//! [`Packet`] is no line.
//!
//! Invariant: a decoded message has the right types, lengths and names; what it means is for others
//! to check. A line is one JSON object whose `type` names the message; unknown fields are
//! ignored. Specification: PROTOCOL#messages.

mod by_name;
mod fields;
mod packet;
pub mod timing;

pub use by_name::ByName;
pub use fields::*;
pub use packet::Packet;

pub use crate::crypto::envelope::{Body, Envelope, Header, Kind, MAX_CIPHERTEXT, Scope};

use crate::encoding::{Both, FirstType, Joined, is_shallow, words};
use miniserde::{Deserialize, Serialize, json};
use std::borrow::Cow;

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

words! {
    /// The codes of [`Failure`]. PROTOCOL#error-codes.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum ErrorCode {
        /// The line or packet is no message, or a part of it is too long; after a false `ack` the connection is closed, too.
        Malformed = "malformed",
        /// A `type` that the server does not take.
        UnknownType = "unknown_type",
        /// A line or packet over its limit, of which nothing can be read any more: the connection is closed.
        LineTooLong = "line_too_long",
        /// Another `version` than [`VERSION`].
        UnsupportedVersion = "unsupported_version",
        /// What only a session may say, before the login is complete.
        NotLoggedIn = "not_logged_in",
        /// A step of a login in a session.
        AlreadyLoggedIn = "already_logged_in",
        /// An answer, and nothing was asked on this connection.
        NoChallenge = "no_challenge",
        /// Registration: somebody has the name, perhaps in another letter case. The connection stays open.
        NameTaken = "name_taken",
        /// Registration: the interface uses the name as a word.
        NameReserved = "name_reserved",
        /// Registration: the server runs with `--closed`.
        RegistrationClosed = "registration_closed",
        /// Login or change: name, password, identity key, signature or channel is wrong; which, is not told.
        LoginFailed = "login_failed",
        /// Resumption: there is no session that proof and count fit. The client logs in.
        NoSession = "no_session",
        /// Login or change: too many failures for the name or from the address; `retry_after` is set.
        Locked = "locked",
        /// A key that is not RSA-2048 in canonical DER, or a session certificate that is no good by itself.
        BadKey = "bad_key",
        /// Fewer than 100,000 or more than 10,000,000 PBKDF2 rounds.
        BadRounds = "bad_rounds",
        /// Targets, keys and scope do not fit each other, or there are too many names.
        BadTargets = "bad_targets",
        /// The envelope's `from` is not the name logged in with.
        WrongSender = "wrong_sender",
        /// Too many lines before a login, or new accounts and passwords from one address.
        TooManyRequests = "too_many_requests",
        /// Another login of the account has taken over; also to a `resume` of the session that it replaced.
        SignedInElsewhere = "signed_in_elsewhere",
        /// The certificate of the session key is no longer valid: the connection is closed, and the client logs in again.
        CertificateExpired = "certificate_expired",
        /// The operator has ended the account; the connection is closed.
        AccountRemoved = "account_removed",
        /// The login, or the end of a session's former connection, took too long.
        TimedOut = "timed_out",
        /// There are as many sessions as the server allows.
        ServerFull = "server_full",
        /// The server cannot write to its disk; a change of the password may or may not have been made.
        ServerError = "server_error",
    }
}

impl Failure {
    /// Whether it is this one.
    pub fn is(&self, code: ErrorCode) -> bool {
        self.code == code.as_str()
    }
}

words! {
    /// Why a line is not a message.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum DecodeError {
        /// Not UTF-8, not JSON, or a field is missing or of the wrong type or length.
        Malformed = "not a message: it is not JSON, or a field is missing or of the wrong type",
        /// A `type` that this side does not take.
        UnknownType = "unknown message type",
        /// Of another version than [`VERSION`], whose members are not known.
        OtherVersion = "the protocol's version here is 1: one of the two programs is too old",
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

/// Why a message cannot be read. One of another version may have other members. PROTOCOL#version.
fn blame(error: DecodeError, text: &str, kind: &str) -> DecodeError {
    let kinds = ["register", "login_request", "resume_request", "challenge", "resume_challenge"];
    let is_other = |line: Versioned| line.version != u64::from(VERSION);
    match kinds.contains(&kind) && body(text).is_ok_and(is_other) {
        true => DecodeError::OtherVersion,
        false => error,
    }
}

fn body<T: Deserialize>(text: &str) -> Result<T, DecodeError> {
    json::from_str(text).map_err(|_| DecodeError::Malformed)
}

/// The version that a line names, if it names one: a later one may have other members. PROTOCOL#version.
pub fn version_of(line: &[u8]) -> Option<u64> {
    let (text, _) = head(line).ok()?;
    Some(body::<Versioned>(text).ok()?.version)
}

/// The members of a message beside its `type`.
trait Members: Sized {
    fn read(text: &str) -> Result<Self, DecodeError>;
    /// A JSON object.
    fn write(&self) -> String;
}

impl<T: Serialize + Deserialize> Members for T {
    fn read(text: &str) -> Result<T, DecodeError> {
        body(text)
    }

    fn write(&self) -> String {
        json::to_string(self)
    }
}

/// An envelope's members, and those of what goes with it.
fn with_envelope<T: Deserialize + Joined>(text: &str) -> Result<(T, Envelope), DecodeError> {
    let both = body::<Both<T, Both<Body, Header>>>(text)?.parts();
    let (beside, envelope) = both.ok_or(DecodeError::Malformed)?;
    let (body, header) = envelope.parts().ok_or(DecodeError::Malformed)?;
    Ok((beside, Envelope { header, body }))
}

/// The members of several structs in one object.
fn joined(objects: &[String]) -> String {
    let members: Vec<_> = objects.iter().map(|object| &object[1..object.len() - 1]).collect();
    format!("{{{}}}", members.join(","))
}

impl Members for Box<EncryptedSend> {
    fn read(text: &str) -> Result<Self, DecodeError> {
        let (routing, envelope) = with_envelope(text)?;
        Ok(Box::new(EncryptedSend { routing, envelope }))
    }

    fn write(&self) -> String {
        let Envelope { header, body } = &self.envelope;
        joined(&[json::to_string(&self.routing), json::to_string(header), json::to_string(body)])
    }
}

/// What a recipient gets beside the envelope.
#[derive(Serialize, Deserialize)]
struct OwnKey {
    key: WrappedKey,
}

impl Joined for OwnKey {
    const MEMBERS: &[&str] = &["key"];
}

impl Members for Box<EncryptedMessage> {
    fn read(text: &str) -> Result<Self, DecodeError> {
        let (OwnKey { key }, envelope) = with_envelope(text)?;
        Ok(Box::new(EncryptedMessage { envelope, key }))
    }

    fn write(&self) -> String {
        let (Envelope { header, body }, key) = (&self.envelope, self.key.clone());
        joined(&[json::to_string(header), json::to_string(body), json::to_string(&OwnKey { key })])
    }
}

/// One line with its end: the type, then the members.
fn line(kind: &str, members: &impl Members) -> Vec<u8> {
    let body = members.write();
    let comma = if body == "{}" { "" } else { "," };
    ["{\"type\":\"", kind, "\"", comma, &body[1..], "\n"].concat().into_bytes()
}

/// The messages of one direction: `"type" => Variant(Body)`.
macro_rules! messages {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $kind:literal => $variant:ident $(($body:ty))?,)* }) => {
        $(#[$doc])*
        pub enum $name { $($(#[$about])* $variant $(($body))?,)* }

        impl $name {
            /// Decodes one line without its end. Unknown members are ignored; how long a line may be is the reader's to say.
            ///
            /// # Errors
            /// [`DecodeError`].
            pub fn decode(line: &[u8]) -> Result<$name, DecodeError> {
                let (text, kind) = head(line)?;
                let message = match &*kind {
                    $($kind => messages!(@read text, $name::$variant $(, $body)?),)*
                    _ => Empty::read(text).and(Err(DecodeError::UnknownType)),
                };
                message.map_err(|error| blame(error, text, &kind))
            }

            /// The line, with its end.
            pub fn encode(&self) -> Vec<u8> {
                match self {
                    $($name::$variant $((messages!(@first body $body)))? => {
                        line($kind, messages!(@members $(body $body)?))
                    })*
                }
            }

            /// Whether it is one of the frames that both sides count and that are sent again when a session is
            /// resumed. Of everything that follows a login, only these are not (PROTOCOL#resuming).
            pub fn is_counted(&self) -> bool {
                !matches!(self, $name::Ack(_) | $name::Ping | $name::Pong)
            }
        }
    };
    (@read $text:ident, $variant:path) => { Empty::read($text).map(|_| $variant) };
    (@read $text:ident, $variant:path, $body:ty) => { <$body>::read($text).map($variant) };
    (@first $one:ident $other:ty) => { $one };
    (@members) => { &Empty {} };
    (@members $body:ident $type:ty) => { $body };
}

messages! {
    /// What a client sends.
    ClientMessage {
        /// `register`, answered by `registered`. PROTOCOL#register.
        "register" => Register(Register),
        /// `login_request`, answered by `challenge`. PROTOCOL#login_request.
        "login_request" => LoginRequest(LoginRequest),
        /// `challenge_response`, answered by `session`. PROTOCOL#challenge_response.
        "challenge_response" => ChallengeResponse(Box<ChallengeResponse>),
        /// `password_change`, answered by `password_changed`; then the connection is closed. PROTOCOL#password_change.
        "password_change" => PasswordChange(Box<PasswordChange>),
        /// `resume_request`, answered by `resume_challenge`. PROTOCOL#resume_request.
        "resume_request" => ResumeRequest(ResumeRequest),
        /// `resume`, answered by `resumed`. PROTOCOL#resume.
        "resume" => Resume(Resume),
        /// `renew`, answered by `session`. PROTOCOL#renew.
        "renew" => Renew(Box<SessionKeyFields>),
        /// `keys_request`, answered by `keys`. PROTOCOL#keys_request.
        "keys_request" => KeysRequest(KeysRequest),
        /// `encrypted_send`, answered by `sent`. PROTOCOL#encrypted_send.
        "encrypted_send" => EncryptedSend(Box<EncryptedSend>),
        /// `grant`, answered by `refused` or nothing. PROTOCOL#grant.
        "grant" => Grant(Grant),
        /// `ack`, without an answer. PROTOCOL#ack.
        "ack" => Ack(Received),
        /// `ping`, answered by `pong`. PROTOCOL#ping.
        "ping" => Ping,
        /// `pong`, a sign of life. PROTOCOL#pong.
        "pong" => Pong,
        /// `logout`: the session ends at once. PROTOCOL#logout.
        "logout" => Logout,
    }
}

messages! {
    /// What a server sends.
    ServerMessage {
        /// `registered`: the account is on disk. PROTOCOL#registered.
        "registered" => Registered,
        /// `challenge`, to a `login_request`. PROTOCOL#challenge.
        "challenge" => Challenge(Challenge),
        /// `session`, to a `challenge_response` or `renew`. PROTOCOL#session.
        "session" => Session(Session),
        /// `password_changed`: the new password is on disk. PROTOCOL#password_changed.
        "password_changed" => PasswordChanged,
        /// `resume_challenge`, to a `resume_request`. PROTOCOL#resume_challenge.
        "resume_challenge" => ResumeChallenge(ResumeChallenge),
        /// `resumed`: the session goes on, on this connection. PROTOCOL#resumed.
        "resumed" => Resumed(Received),
        /// `presence`, unasked. PROTOCOL#presence.
        "presence" => Presence(Presence),
        /// `keys`, to a `keys_request`. PROTOCOL#keys_answer.
        "keys" => Keys(Keys),
        /// `encrypted_message`, unasked. PROTOCOL#encrypted_message.
        "encrypted_message" => EncryptedMessage(Box<EncryptedMessage>),
        /// `sent`, to an `encrypted_send`. PROTOCOL#sent.
        "sent" => Sent(Sent),
        /// `lost`, unasked: the recipient's session ended before it acknowledged a message. PROTOCOL#lost.
        "lost" => Lost(Lost),
        /// `grant`, passed on from the peer who grants. PROTOCOL#grant.
        "grant" => Grant(Grant),
        /// `refused`, to a packet or grant that is not passed on. PROTOCOL#refused.
        "refused" => Refused(Refused),
        /// `error`, to any request, or before the connection is closed. PROTOCOL#error.
        "error" => Error(Failure),
        /// `ack`, without an answer. PROTOCOL#ack.
        "ack" => Ack(Received),
        /// `ping`, to a client that was silent for 30 s. PROTOCOL#ping.
        "ping" => Ping,
        /// `pong`, to a `ping`. PROTOCOL#pong.
        "pong" => Pong,
    }
}

impl ServerMessage {
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
pub fn shared_part(Envelope { header, body }: &Envelope) -> Vec<u8> {
    let members = joined(&[json::to_string(header), json::to_string(body)]);
    ["{\"type\":\"encrypted_message\",", &members[1..members.len() - 1]].concat().into_bytes()
}

/// What stands before the base64 of the wrapped key in an `encrypted_message`.
pub const KEY_BEGINS: &[u8] = b",\"key\":\"";
/// What stands after it: the end of the line.
pub const KEY_ENDS: &[u8] = b"\"}\n";

#[cfg(test)]
mod tests {
    use super::*;

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
        let envelope = Envelope::sample();
        let key = WrappedKey::new(&[10; 264]);
        let line = [&shared_part(&envelope), KEY_BEGINS, key.digits(), KEY_ENDS].concat();
        assert_eq!(line.last(), Some(&b'\n'));
        match ServerMessage::decode(&line[..line.len() - 1]) {
            Ok(ServerMessage::EncryptedMessage(message)) => {
                assert!(message.key == key && message.envelope == envelope);
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
