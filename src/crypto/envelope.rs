//! Messages from one person to others: sealed once, wrapped for each recipient, opened once.
//!
//! Invariant: nothing is decrypted before the sender's signature over every field was checked,
//! and nothing is shown whose fields disagree. The order of the checks is the specification's
//! (PROTOCOL#envelope); the types enforce it: only [`Envelope::verify`] makes a [`Verified`],
//! and only that opens.

use super::keys::{IdentityKey, SessionKey};
use super::primitives::{self, Tag, sha256};
use super::public::{Fingerprint, IdentityPublicKey, RSA_BYTES, SessionPublicKey, Signature};
use super::secret::{Key, random};
use super::{CryptoError, Fields, label};
use crate::name::Username;
use zeroize::Zeroizing;

/// Plaintexts are padded to a multiple of this many bytes, so that a ciphertext tells a length in such steps alone.
pub const BUCKET: usize = 256;
/// The longest text of a message, in bytes.
pub const MAX_TEXT: usize = 32 * 1024;
/// The longest ciphertext: a full text, its length and padding.
pub const MAX_CIPHERTEXT: usize = MAX_TEXT + BUCKET;

/// The longest word for a kind or scope, in bytes.
const MAX_WORD: usize = 32;

/// A kind or scope of a later version, as it stands on the wire: 32 bytes at most. PROTOCOL#later-versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    bytes: [u8; MAX_WORD],
    length: usize,
}

impl Word {
    /// `None` for a longer one.
    pub fn new(text: &str) -> Option<Word> {
        let mut bytes = [0; MAX_WORD];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(Word { bytes, length: text.len() })
    }

    /// As it stands on the wire.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..self.length]).expect("it was made of a text")
    }
}

/// What an envelope is. Part of the signed header: one kind is never taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A text that a person wrote.
    Message,
    /// The sender has opened a private room with the recipient. No text.
    RoomOpened,
    /// The sender has left it. No text.
    RoomLeft,
    /// The sender offers the recipient a file. The text of this and the next four is JSON
    /// (PROTOCOL#file-transfer).
    FileOffer,
    /// The recipient of an offer takes it.
    FileAccept,
    /// The recipient of an offer does not take it.
    FileReject,
    /// Either side ends a transfer.
    FileCancel,
    /// The recipient has the whole file, and its hash is right.
    FileDone,
    /// A kind of a later version.
    Later(Word),
}

/// Who an envelope is for, as the sender signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everyone on-line.
    Broadcast,
    /// One person, outside a room.
    Private(Recipient),
    /// One person, in the room of the two.
    Room(Recipient),
    /// A scope of a later version, for one person or for everyone.
    Later(Word, Option<Recipient>),
}

/// The one recipient of a private or room envelope, down to the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// In the letter case of the account.
    pub name: Username,
    /// Of the recipient's session key: an envelope cannot be shown to another login of theirs.
    pub session: Fingerprint,
}

impl Scope {
    /// The one recipient; `None` of a broadcast.
    pub fn recipient(&self) -> Option<&Recipient> {
        match self {
            Scope::Broadcast => None,
            Scope::Private(recipient) | Scope::Room(recipient) => Some(recipient),
            Scope::Later(_, recipient) => recipient.as_ref(),
        }
    }

    /// As it stands on the wire and in the header.
    pub fn as_str(&self) -> &str {
        match self {
            Scope::Broadcast => "broadcast",
            Scope::Private(_) => "private",
            Scope::Room(_) => "room",
            Scope::Later(word, _) => word.as_str(),
        }
    }
}

impl Kind {
    /// As it stands on the wire and in the header.
    pub fn as_str(&self) -> &str {
        match self {
            Kind::Message => "message",
            Kind::RoomOpened => "room_opened",
            Kind::RoomLeft => "room_left",
            Kind::FileOffer => "file_offer",
            Kind::FileAccept => "file_accept",
            Kind::FileReject => "file_reject",
            Kind::FileCancel => "file_cancel",
            Kind::FileDone => "file_done",
            Kind::Later(word) => word.as_str(),
        }
    }

    /// Reverses [`Kind::as_str`]; `None` for a word that is too long.
    pub fn parse(text: &str) -> Option<Kind> {
        use Kind::{FileAccept, FileCancel, FileDone, FileOffer, FileReject, Message, RoomLeft, RoomOpened};
        let all = [Message, RoomOpened, RoomLeft, FileOffer, FileAccept, FileReject, FileCancel, FileDone];
        let known = all.into_iter().find(|kind| kind.as_str() == text);
        known.or_else(|| Word::new(text).map(Kind::Later))
    }
}

/// What the sender signs and the AEAD authenticates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Who it is for.
    pub scope: Scope,
    /// In the letter case of the account.
    pub sender: Username,
    /// Of the sender's identity key.
    pub identity: Fingerprint,
    /// Of the sender's session key, which names the conversation.
    pub session: Fingerprint,
    /// Strictly rising from 1 in each conversation of the sender's session.
    pub sequence: u64,
    /// The sender's clock, milliseconds since 1970.
    pub time: u64,
}

impl Header {
    /// PROTOCOL#header.
    fn encode(&self, commitment: &[u8; 32]) -> Vec<u8> {
        let (name, session): (&[u8], &[u8]) = match self.scope.recipient() {
            Some(recipient) => (recipient.name.as_str().as_bytes(), &recipient.session.0),
            None => (b"", b""),
        };
        Fields::new(label::ENVELOPE_HEADER)
            .bytes(self.kind.as_str().as_bytes())
            .bytes(self.scope.as_str().as_bytes())
            .bytes(name)
            .bytes(session)
            .bytes(self.sender.as_str().as_bytes())
            .bytes(&self.identity.0)
            .bytes(&self.session.0)
            .number(self.sequence)
            .number(self.time)
            .bytes(commitment)
            .finish()
    }
}

/// `HMAC-SHA256[key](label)`: EAX does not commit to its key, this does. PROTOCOL#commitment.
fn commitment(key: &Key) -> [u8; 32] {
    primitives::hmac(key, label::KEY_COMMITMENT.as_bytes())
}

/// PROTOCOL#signature.
fn signed_bytes(header: &[u8], nonce: &[u8; 12], ciphertext: &[u8], tag: &Tag) -> Vec<u8> {
    let body = sha256(&[ciphertext, tag].concat());
    Fields::new(label::ENVELOPE_SIGNATURE).bytes(header).bytes(nonce).bytes(&body).finish()
}

/// The part of an envelope that is the same for all its recipients, as it goes over the wire.
#[derive(Clone, PartialEq, Eq)]
pub struct Body {
    /// What was signed.
    pub header: Header,
    /// `HMAC[message key](label)`: a ciphertext has one key under which it is accepted.
    pub commitment: [u8; 32],
    /// Random; a counter of 0 makes it EAX's 16 bytes.
    pub nonce: [u8; 12],
    /// Of the padded text: at most [`MAX_CIPHERTEXT`] bytes, which [`Envelope::verify`] checks.
    pub ciphertext: Vec<u8>,
    /// Of EAX, with the encoded header as associated data.
    pub tag: Tag,
    /// The identity key's, over header, nonce and the hash of ciphertext and tag.
    pub signature: Signature,
}

/// A sealed message with its key, on the sender's side, until it was wrapped for all.
pub struct Sealed {
    /// What everyone gets.
    pub body: Body,
    key: Key,
    oaep_label: [u8; 32],
}

impl Sealed {
    /// Encrypts and signs `text` under a fresh key; about 2 ms.
    ///
    /// # Panics
    /// If `text` is longer than [`MAX_TEXT`]; callers bound what people type.
    pub fn seal(header: Header, identity: &IdentityKey, text: &[u8]) -> Sealed {
        assert!(text.len() <= MAX_TEXT, "texts are bounded where they are typed");
        // PROTOCOL#message-key.
        let key = Key::random();
        let commitment = commitment(&key);
        let encoded = header.encode(&commitment);
        let nonce = random();
        let mut ciphertext = pad(text);
        // PROTOCOL#ciphertext.
        let tag = primitives::eax_seal(&key, &nonce, 0, &encoded, &mut ciphertext);
        let signature = identity.sign(&signed_bytes(&encoded, &nonce, &ciphertext, &tag));
        let body = Body { header, commitment, nonce, ciphertext, tag, signature };
        Sealed { body, key, oaep_label: sha256(&encoded) }
    }

    /// The message key for one recipient, bound to this header, 256 bytes; about 0.1 ms. PROTOCOL#wrapped-key.
    pub fn wrap_for(&self, recipient: &SessionPublicKey) -> [u8; RSA_BYTES] {
        recipient.wrap(self.key.expose(), self.oaep_label)
    }
}

/// Length as 32 bits, text, zeros: see [`BUCKET`]. PROTOCOL#padding.
///
/// # Panics
/// If `text` is longer than 4 GiB.
pub fn pad(text: &[u8]) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("texts are bounded far below 4 GiB");
    let mut padded = Vec::with_capacity((4 + text.len()).next_multiple_of(BUCKET));
    padded.extend_from_slice(&length.to_be_bytes());
    padded.extend_from_slice(text);
    padded.resize(padded.len().next_multiple_of(BUCKET), 0);
    padded
}

/// Reverses [`pad`]. `None` for a text of more than `limit` bytes, and for padding that another program would not have
/// made.
pub fn unpad(padded: &[u8], limit: usize) -> Option<&[u8]> {
    let (length, rest) = padded.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length) as usize;
    let (text, zeros) = rest.split_at_checked(length)?;
    let exact = padded.len() == (4 + length).next_multiple_of(BUCKET) && length <= limit;
    (exact && zeros.iter().all(|&byte| byte == 0)).then_some(text)
}

/// An envelope as a recipient got it: nothing in it is believed yet.
pub struct Envelope {
    /// The same for all recipients.
    pub body: Body,
    /// The message key, wrapped for this recipient's session key.
    pub wrapped: [u8; RSA_BYTES],
}

impl Envelope {
    /// The first check, before any RSA decryption or AES: the sender's signature. PROTOCOL#check-signature.
    ///
    /// # Errors
    /// [`CryptoError::BadEnvelope`] if `identity` is not the key that the header names, or the ciphertext is longer than
    /// [`MAX_CIPHERTEXT`]; [`CryptoError::BadSignature`].
    pub fn verify(&self, identity: &IdentityPublicKey) -> Result<Verified<'_>, CryptoError> {
        let body = &self.body;
        if body.header.identity != identity.fingerprint() || body.ciphertext.len() > MAX_CIPHERTEXT {
            return Err(CryptoError::BadEnvelope);
        }
        let header = body.header.encode(&body.commitment);
        identity.verify(&signed_bytes(&header, &body.nonce, &body.ciphertext, &body.tag), &body.signature)?;
        Ok(Verified { envelope: self, header })
    }
}

/// An envelope whose signature is its sender's.
pub struct Verified<'a> {
    envelope: &'a Envelope,
    header: Vec<u8>,
}

impl Verified<'_> {
    /// What the sender signed.
    pub fn header(&self) -> &Header {
        &self.envelope.body.header
    }

    /// Unwraps the key, checks its commitment, decrypts and removes the padding; about 2 ms. PROTOCOL#check-open.
    ///
    /// # Errors
    /// [`CryptoError::BadCiphertext`], whichever step failed.
    pub fn open(&self, session: &SessionKey) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let body = &self.envelope.body;
        let key = session.unwrap(&self.envelope.wrapped, sha256(&self.header))?;
        let key = Key::from_slice(&key).ok_or(CryptoError::BadCiphertext)?;
        if Key::new(commitment(&key)) != Key::new(body.commitment) {
            return Err(CryptoError::BadCiphertext);
        }
        let mut text = Zeroizing::new(body.ciphertext.clone());
        primitives::eax_open(&key, &body.nonce, 0, &self.header, &mut text, &body.tag)?;
        let text = unpad(&text, MAX_TEXT).ok_or(CryptoError::BadCiphertext)?;
        Ok(Zeroizing::new(text.to_vec()))
    }
}
