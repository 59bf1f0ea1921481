//! All messages between client and server: their tables here, their members in `fields`, their text in `line`.
//! [`Packet`]s come between the lines.
//!
//! Invariant: a decoded message has valid types, lengths and names; other rooms check its meaning. A line is one JSON
//! object whose `type` names the message, and unknown members are ignored. Specification: PROTOCOL#messages.
//!
#![doc = include_str!("PROTOCOL.md")]

mod by_name;
mod fields;
mod limits;
mod line;
mod packet;
pub mod timing;
mod wrapped_key;

pub use by_name::ByName;
pub use fields::*;
pub use limits::*;
pub use line::{DecodeError, KEY_BEGINS, KEY_ENDS, shared_part};
pub use packet::Packet;
pub use wrapped_key::WrappedKey;

pub use crate::crypto::envelope::{Body, Envelope, Header, Kind, MAX_CIPHERTEXT, Scope};
pub use crate::crypto::public::{KeyId, MailboxCertificate, SessionCertificate};

use crate::encoding::words;
use line::{Empty, Members, head, line};
use std::time::Duration;

/// The messages of one direction: `"type" => Variant(Members)`, then `"type" => Variant` for those without members.
macro_rules! messages {
    (
        $(#[$doc:meta])* $name:ident
        { $($(#[$about:meta])* $kind:literal => $variant:ident($members:ty),)* }
        { $($(#[$bare_about:meta])* $bare_kind:literal => $bare:ident,)* }
    ) => {
        $(#[$doc])*
        pub enum $name { $($(#[$about])* $variant($members),)* $($(#[$bare_about])* $bare,)* }

        impl $name {
            /// Decodes one line without its end. Unknown members are ignored; the reader limits the length of lines.
            ///
            /// # Errors
            /// [`DecodeError`].
            pub fn decode(line: &[u8]) -> Result<$name, DecodeError> {
                let (text, kind) = head(line)?;
                match &*kind {
                    $($kind => <$members>::read(text).map($name::$variant),)*
                    $($bare_kind => Empty::read(text).map(|_| $name::$bare),)*
                    _ => Empty::read(text).and(Err(DecodeError::UnknownType)),
                }
            }

            /// The line, with its end.
            pub fn encode(&self) -> Vec<u8> {
                match self {
                    $($name::$variant(members) => line($kind, members),)*
                    $($name::$bare => line($bare_kind, &Empty {}),)*
                }
            }

            /// Whether both sides count this frame, and the sender repeats it when a session is resumed. After a login,
            /// only these three are not counted (PROTOCOL#frames).
            pub fn is_counted(&self) -> bool {
                !matches!(self, $name::Ack(_) | $name::Ping | $name::Pong)
            }
        }
    };
}

messages! {
    /// A message from a client.
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
        "renew" => Renew(Box<SessionCertificate>),
        /// `keys_request`, answered by `keys`. PROTOCOL#keys_request.
        "keys_request" => KeysRequest(KeysRequest),
        /// `encrypted_send`, answered by `sent`. PROTOCOL#encrypted_send.
        "encrypted_send" => EncryptedSend(Box<EncryptedSend>),
        /// `mailbox`, answered by `mailbox_set`. PROTOCOL#mailbox.
        "mailbox" => Mailbox(Box<MailboxCertificate>),
        /// `mail_request`, answered by `mail`. PROTOCOL#mail_request.
        "mail_request" => MailRequest(MailRequest),
        /// `mail_done`, without an answer. PROTOCOL#mail_done.
        "mail_done" => MailDone(MailDone),
        /// `grant`, answered by `refused` or nothing. PROTOCOL#grant.
        "grant" => Grant(Grant),
        /// `ack`, without an answer. PROTOCOL#ack.
        "ack" => Ack(Received),
    } {
        /// `ping`, answered by `pong`. PROTOCOL#ping.
        "ping" => Ping,
        /// `pong`, a sign of life. PROTOCOL#pong.
        "pong" => Pong,
        /// `logout`: the session ends at once. PROTOCOL#logout.
        "logout" => Logout,
    }
}

messages! {
    /// A message from a server.
    ServerMessage {
        /// `challenge`, to a `login_request`. PROTOCOL#challenge.
        "challenge" => Challenge(Challenge),
        /// `session`, to a `challenge_response` or `renew`. PROTOCOL#session.
        "session" => Session(Session),
        /// `resume_challenge`, to a `resume_request`. PROTOCOL#resume_challenge.
        "resume_challenge" => ResumeChallenge(ResumeChallenge),
        /// `resumed`: the session continues on this connection. PROTOCOL#resumed.
        "resumed" => Resumed(Received),
        /// `presence`, without a request. PROTOCOL#presence.
        "presence" => Presence(Presence),
        /// `keys`, to a `keys_request`. PROTOCOL#keys_answer.
        "keys" => Keys(Keys),
        /// `encrypted_message`, without a request. PROTOCOL#encrypted_message.
        "encrypted_message" => EncryptedMessage(Box<EncryptedMessage>),
        /// `sent`, to an `encrypted_send`. PROTOCOL#sent.
        "sent" => Sent(Sent),
        /// `lost`, without a request: the recipient's session ended before it acknowledged a message. PROTOCOL#lost.
        "lost" => Lost(Lost),
        /// `mail`, to a `mail_request`. PROTOCOL#mail.
        "mail" => Mail(Mail),
        /// `grant`, forwarded from the peer that grants. PROTOCOL#grant.
        "grant" => Grant(Grant),
        /// `refused`, to a packet or grant that is not forwarded. PROTOCOL#refused.
        "refused" => Refused(Refused),
        /// `error`, to any request, or before the server closes the connection. PROTOCOL#error.
        "error" => Error(Failure),
        /// `ack`, without an answer. PROTOCOL#ack.
        "ack" => Ack(Received),
    } {
        /// `registered`: the account is on disk. PROTOCOL#registered.
        "registered" => Registered,
        /// `password_changed`: the new password is on disk. PROTOCOL#password_changed.
        "password_changed" => PasswordChanged,
        /// `mailbox_set`: the mailbox key is on disk. PROTOCOL#mailbox_set.
        "mailbox_set" => MailboxSet,
        /// `ping`, to a client that was silent for 30 s. PROTOCOL#ping.
        "ping" => Ping,
        /// `pong`, to a `ping`. PROTOCOL#pong.
        "pong" => Pong,
    }
}

impl ServerMessage {
    /// An error with only a code and a message.
    pub fn error(code: ErrorCode, message: impl Into<String>) -> ServerMessage {
        ServerMessage::Error(Failure::new(code, message))
    }
}

words! {
    /// The codes of an `error`. PROTOCOL#error-codes.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum ErrorCode {
        /// The line or packet is not a message, or a part of it is too long. After a false `ack` the connection is
        /// closed.
        Malformed = "malformed",
        /// A `type` that the server does not accept.
        UnknownType = "unknown_type",
        /// A line or packet over its limit: the connection is closed.
        LineTooLong = "line_too_long",
        /// A `version` other than [`VERSION`].
        UnsupportedVersion = "unsupported_version",
        /// A message that needs a session, before the login is complete.
        NotLoggedIn = "not_logged_in",
        /// A message of a login, in a session.
        AlreadyLoggedIn = "already_logged_in",
        /// A response without a challenge on this connection.
        NoChallenge = "no_challenge",
        /// Registration: the name exists, perhaps in another letter case. The connection stays open.
        NameTaken = "name_taken",
        /// Registration: the name reads like a word of the interface.
        NameReserved = "name_reserved",
        /// Registration: the server runs with `--closed`.
        RegistrationClosed = "registration_closed",
        /// Login or password change: name, password, identity key, signature or channel is wrong. The server does not
        /// say which.
        LoginFailed = "login_failed",
        /// Resumption: no session matches proof and count. The client logs in.
        NoSession = "no_session",
        /// Login or password change: too many failures for the name or from the address; `retry_after` is set.
        Locked = "locked",
        /// A key that is not RSA-2048 in canonical DER, or a session certificate that is not valid.
        BadKey = "bad_key",
        /// A mailbox key whose certificate is not valid, or that is not newer than the one in use.
        BadMailbox = "bad_mailbox",
        /// A mailbox key, on a server that keeps no mail.
        NoMail = "no_mail",
        /// Fewer than 100,000 or more than 10,000,000 PBKDF2 rounds.
        BadRounds = "bad_rounds",
        /// Targets, keys and scope contradict each other, or there are too many names.
        BadTargets = "bad_targets",
        /// The envelope's `from` is not the name of the login.
        WrongSender = "wrong_sender",
        /// Too many lines before a login, or new accounts and passwords from one address.
        TooManyRequests = "too_many_requests",
        /// Another login of the account replaced this session; also the answer to a `resume` of it.
        SignedInElsewhere = "signed_in_elsewhere",
        /// The session certificate expired: the connection is closed, and the client logs in again.
        CertificateExpired = "certificate_expired",
        /// The operator removed the account; the connection is closed.
        AccountRemoved = "account_removed",
        /// The login, or the end of the session's previous connection, took too long.
        TimedOut = "timed_out",
        /// The server has as many sessions as it allows.
        ServerFull = "server_full",
        /// The server cannot write to its disk. A password change may or may not have been stored.
        ServerError = "server_error",
    }
}

impl Failure {
    /// An error with only a code and a message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Failure {
        let (code, message) = (code.as_str().into(), message.into());
        Failure { code, message, id: None, retry_after: None, newest: None }
    }

    /// The same with the time after which a new attempt may succeed, rounded up to seconds.
    pub fn after(self, wait: Duration) -> Failure {
        Failure { retry_after: Some(wait.as_secs() + 1), ..self }
    }

    /// Whether it has this code.
    pub fn is(&self, code: ErrorCode) -> bool {
        self.code == code.as_str()
    }
}

/// The lines of one connection that are neither counted nor resent. Both sides write them alike. A later `ack` replaces
/// an earlier one.
#[derive(Default)]
pub struct Control {
    /// The first line of this connection, with its end.
    pub first: Option<Vec<u8>>,
    /// The number of frames received.
    pub ack: Option<u64>,
    /// Answers to the peer's `ping`s.
    pub pongs: u32,
    /// Whether to ask for a sign of life.
    pub ping: bool,
}

impl Control {
    /// Takes the next line. An `ack` comes before the `pong` that it explains.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(line) = self.first.take() {
            Some(line)
        } else if let Some(received) = self.ack.take() {
            Some(ServerMessage::Ack(Received { received }).encode())
        } else if self.pongs > 0 {
            self.pongs -= 1;
            Some(ServerMessage::Pong.encode())
        } else {
            std::mem::take(&mut self.ping).then(|| ServerMessage::Ping.encode())
        }
    }

    /// Whether there is nothing to send.
    pub fn is_idle(&self) -> bool {
        self.first.is_none() && self.ack.is_none() && self.pongs == 0 && !self.ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::Fixed;
    use crate::name::Username;

    fn decode(line: &str) -> Result<ClientMessage, DecodeError> {
        ClientMessage::decode(line.as_bytes())
    }

    #[test]
    fn control_is_idle_only_without_any_line() {
        let lines = |mut control: Control| {
            let is_idle = control.is_idle();
            let count = std::iter::from_fn(|| control.next()).count();
            assert!(control.is_idle());
            (is_idle, count)
        };
        assert_eq!(lines(Control::default()), (true, 0));
        assert_eq!(lines(Control { first: Some(Vec::new()), ..Control::default() }), (false, 1));
        assert_eq!(lines(Control { ack: Some(0), ..Control::default() }), (false, 1));
        assert_eq!(lines(Control { pongs: 2, ..Control::default() }), (false, 2));
        assert_eq!(lines(Control { ping: true, ..Control::default() }), (false, 1));
    }

    /// PROTOCOL#not-a-message.
    #[test]
    fn line_that_is_not_a_message_is_refused() {
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
        // PROTOCOL#depth.
        let nested =
            |depth| format!("{{\"type\":\"ping\",\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(decode(&nested(7)).is_ok());
        assert_eq!(decode(&nested(8)).err(), Some(Malformed));
        // PROTOCOL#commas.
        let names =
            |count| format!("{{\"type\":\"keys_request\",\"names\":[{}\"a\"]}}", "\"a\",".repeat(count));
        assert!(decode(&names(16_383)).is_ok(), "the comma behind the type counts");
        assert_eq!(decode(&names(16_384)).err(), Some(Malformed));
        let nested = format!("{{\"x\":{},\"type\":\"ping\"}}", "[".repeat(500_000));
        assert_eq!(decode(&nested).err(), Some(Malformed));
    }

    /// PROTOCOL#version.
    #[test]
    fn line_of_another_version_is_refused_with_its_version() {
        let challenge =
            Challenge { version: 3, nonce: Fixed([1; 32]), salt: Fixed([2; 32]), rounds: 600_000 };
        let challenge = ServerMessage::Challenge(challenge).encode();
        let decoded = ServerMessage::decode(&challenge[..challenge.len() - 1]);
        assert_eq!(
            decoded.err(),
            Some(DecodeError::OtherVersion(3)),
            "also if it has the members of this version"
        );
        for (line, version) in [
            (r#"{"type":"login_request","version":2,"name":"alice"}"#, 2),
            (r#"{"type":"register","version":0}"#, 0),
            (r#"{"type":"resume_request","version":4294967295}"#, u32::MAX),
        ] {
            assert_eq!(decode(line).err(), Some(DecodeError::OtherVersion(version)), "{line}");
        }
        for line in [
            r#"{"type":"login_request","version":1}"#,
            r#"{"type":"keys_request","version":2}"#,
            r#"{"type":"resume_request","version":4294967296}"#,
        ] {
            assert_eq!(decode(line).err(), Some(DecodeError::Malformed), "{line}");
        }
        let challenge = ServerMessage::decode(br#"{"type":"challenge","version":2,"nonce":"new"}"#);
        assert_eq!(challenge.err(), Some(DecodeError::OtherVersion(2)));
    }

    /// PROTOCOL#line.
    #[test]
    fn unknown_members_are_ignored_and_the_last_repeated_counts() {
        let text = r#"{"extra":{"a":[1,2]},"received":1,"type":"ack","received":2,"more":null}"#;
        assert!(matches!(decode(text), Ok(ClientMessage::Ack(Received { received: 2 }))));
        for bad in ["\"1\"", "-1", "null"] {
            let text = format!(r#"{{"type":"ack","received":{bad},"received":2}}"#);
            assert!(matches!(decode(&text), Err(DecodeError::Malformed)), "{text}");
        }
    }

    /// PROTOCOL#json.
    #[test]
    fn invalid_json_in_an_unknown_member_is_refused() {
        let is_ping = |value: &str| {
            [format!(r#"{{"type":"ping","x":{value}}}"#), format!(r#"{{"x":[{value}],"type":"ping"}}"#)]
                .map(|line| decode(&line).is_ok_and(|message| matches!(message, ClientMessage::Ping)))
        };
        let long = "9".repeat(309);
        for value in
            [r#""\ud83d\ude00""#, r#""\u0000""#, "-1e308", "1e-400", "18446744073709551616", &long[1..]]
        {
            assert_eq!(is_ping(value), [true; 2], "{value}");
        }
        for value in
            [r#""\ud83d""#, r#""\ude00\ud83d""#, "1e400", "-1e400", &long, "01", "1.", "NaN", "\"\t\""]
        {
            assert_eq!(is_ping(value), [false; 2], "{value}");
        }
    }

    /// PROTOCOL#reserved-names, PROTOCOL#encrypted_send.
    #[test]
    fn reserved_name_is_sent_without_its_at_sign() {
        let name: Username = "server".parse().expect("a name");
        let keys = [(name.clone(), WrappedKey::new(&[1; 264]))].into_iter().collect();
        let targets = vec![name.clone()];
        let send = EncryptedSend { routing: Routing { id: 1, targets, keys }, envelope: Envelope::sample() };
        let line = ClientMessage::EncryptedSend(Box::new(send)).encode();
        match ClientMessage::decode(&line[..line.len() - 1]) {
            Ok(ClientMessage::EncryptedSend(send)) => assert!(send.routing.keys.names().eq([&name])),
            _ => panic!("not an encrypted_send"),
        }
    }

    /// PROTOCOL#encrypted_message.
    #[test]
    fn shared_part_and_own_key_form_one_message() {
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
    fn first_type_counts_at_any_position() {
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

    #[test]
    fn control_keeps_the_latest_ack_and_sends_it_before_pongs() {
        let mut control = Control { first: Some(b"x\n".to_vec()), ..Control::default() };
        assert!(!control.is_idle());
        (control.ping, control.pongs, control.ack) = (true, 2, Some(1));
        control.ack = Some(2);
        let lines: Vec<_> = std::iter::from_fn(|| control.next()).collect();
        let ack = ClientMessage::Ack(Received { received: 2 }).encode();
        let [pong, ping] = [ClientMessage::Pong, ClientMessage::Ping].map(|message| message.encode());
        assert_eq!(lines, [b"x\n".to_vec(), ack, pong.clone(), pong, ping], "as a client writes them");
        assert!(control.is_idle());
    }
}
