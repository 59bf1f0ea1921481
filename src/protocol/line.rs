//! From a line to its type and members, and back. Specification: PROTOCOL#line.

use super::fields::{EncryptedMessage, EncryptedSend, Kept, Mail};
use super::limits::VERSION;
use super::wrapped_key::WrappedKey;
use crate::crypto::envelope::{Body, Envelope, Header};
use crate::encoding::{Both, FirstType, Joined, is_bounded};
use miniserde::{Deserialize, Serialize, json};
use std::borrow::Cow;
use std::fmt;

/// Why a line is not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// Not UTF-8, not JSON, or a member is missing or of the wrong type or length.
    Malformed,
    /// A `type` that this side does not accept.
    UnknownType,
    /// A version other than [`VERSION`], whose members are not known.
    OtherVersion(u32),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DecodeError::Malformed => {
                "not a message: it is not JSON, or a member is missing or of the wrong type"
            }
            DecodeError::UnknownType => "unknown message type",
            DecodeError::OtherVersion(_) => {
                "the protocol's version here is 1: one of the two programs is too old"
            }
        })
    }
}

impl std::error::Error for DecodeError {}

/// The messages that have a `version`.
const VERSIONED: [&str; 5] = ["register", "login_request", "resume_request", "challenge", "resume_challenge"];

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// The text of a line and its `type`.
///
/// # Errors
/// [`DecodeError::Malformed`], and [`DecodeError::OtherVersion`] whatever else the line has: another version may have
/// other members. PROTOCOL#version.
pub(super) fn head(line: &[u8]) -> Result<(&str, Cow<'_, str>), DecodeError> {
    let text = str::from_utf8(line).map_err(|_| DecodeError::Malformed)?;
    if !is_bounded(text) {
        return Err(DecodeError::Malformed);
    }
    // Our own programs write the type first. Elsewhere it takes one more pass over up to 1 MiB.
    let kind: Cow<str> = match text.strip_prefix(r#"{"type":""#).and_then(|rest| rest.split_once('"')) {
        Some((kind, _)) if !kind.contains('\\') => kind.into(),
        _ => parse::<FirstType>(text)?.0.into(),
    };
    if VERSIONED.contains(&&*kind)
        && let Ok(Versioned { version }) = parse(text)
        && version != VERSION
    {
        return Err(DecodeError::OtherVersion(version));
    }
    Ok((text, kind))
}

/// PROTOCOL#json.
fn parse<T: Deserialize>(text: &str) -> Result<T, DecodeError> {
    json::from_str(text).map_err(|_| DecodeError::Malformed)
}

/// One line with its end.
pub(super) fn line(kind: &str, message: &impl Members) -> Vec<u8> {
    let members = message.write();
    let comma = if members.is_empty() { "" } else { "," };
    format!("{{\"type\":\"{kind}\"{comma}{members}}}\n").into_bytes()
}

/// The beginning of an `encrypted_message` line, the same for all recipients; [`KEY_BEGINS`], the recipient's own
/// [`WrappedKey`] and [`KEY_ENDS`] follow.
pub fn shared_part(envelope: &Envelope) -> Vec<u8> {
    format!("{{\"type\":\"encrypted_message\",{}", envelope_members(envelope)).into_bytes()
}

/// The part of an `encrypted_message` before the base64 of the wrapped key.
pub const KEY_BEGINS: &[u8] = b",\"key\":\"";
/// The part after it: the end of the line.
pub const KEY_ENDS: &[u8] = b"\"}\n";

/// A message without members beside its `type`.
#[derive(Serialize, Deserialize)]
pub(super) struct Empty {}

/// The members of a message beside its `type`.
pub(super) trait Members: Sized {
    fn read(text: &str) -> Result<Self, DecodeError>;

    /// As JSON, without the braces of the object.
    fn write(&self) -> String;
}

impl<T: Serialize + Deserialize> Members for T {
    fn read(text: &str) -> Result<T, DecodeError> {
        parse(text)
    }

    fn write(&self) -> String {
        members(self)
    }
}

fn members(object: &impl Serialize) -> String {
    let text = json::to_string(object);
    text[1..text.len() - 1].into()
}

fn envelope_members(Envelope { header, body }: &Envelope) -> String {
    [members(header), members(body)].join(",")
}

/// An envelope, and what the same object contains beside it.
fn with_envelope<T: Deserialize + Joined>(text: &str) -> Result<(T, Envelope), DecodeError> {
    parse::<WithEnvelope<T>>(text).and_then(apart)
}

type WithEnvelope<T> = Both<T, Both<Body, Header>>;

fn apart<T>(both: WithEnvelope<T>) -> Result<(T, Envelope), DecodeError> {
    let (beside, envelope) = both.parts().ok_or(DecodeError::Malformed)?;
    let (body, header) = envelope.parts().ok_or(DecodeError::Malformed)?;
    Ok((beside, Envelope { header, body }))
}

impl Members for Box<EncryptedSend> {
    fn read(text: &str) -> Result<Self, DecodeError> {
        let (routing, envelope) = with_envelope(text)?;
        Ok(Box::new(EncryptedSend { routing, envelope }))
    }

    fn write(&self) -> String {
        [members(&self.routing), envelope_members(&self.envelope)].join(",")
    }
}

/// The members of an `encrypted_message` beside the envelope.
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
        [envelope_members(&self.envelope), members(&OwnKey { key: self.key.clone() })].join(",")
    }
}

/// The members of a `mail`.
#[derive(Deserialize)]
struct MailForm {
    mail: Vec<KeptForm>,
    more: bool,
    other: u64,
    until: u64,
}

#[derive(Deserialize)]
struct KeptForm {
    number: u64,
    message: WithEnvelope<OwnKey>,
}

impl Members for Mail {
    fn read(text: &str) -> Result<Self, DecodeError> {
        let MailForm { mail, more, other, until } = parse(text)?;
        let kept = |KeptForm { number, message }| {
            let (OwnKey { key }, envelope) = apart(message)?;
            Ok(Kept { number, message: Box::new(EncryptedMessage { envelope, key }) })
        };
        let mail = mail.into_iter().map(kept).collect::<Result<_, _>>()?;
        Ok(Mail { mail, more, other, until })
    }

    fn write(&self) -> String {
        let Mail { mail, more, other, until } = self;
        let kept = |Kept { number, message }: &Kept| {
            format!("{{\"number\":{number},\"message\":{{{}}}}}", message.write())
        };
        let mail = mail.iter().map(kept).collect::<Vec<_>>().join(",");
        format!("\"mail\":[{mail}],\"more\":{more},\"other\":{other},\"until\":{until}")
    }
}
