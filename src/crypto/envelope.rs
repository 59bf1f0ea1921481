//! Messages from one user to others: sealed once, with their key wrapped for each recipient.
//!
//! Invariant: a client decrypts nothing before it has verified the sender's signature over every field, and shows
//! nothing whose fields contradict each other. Only [`Envelope::verify`] makes a [`Verified`], and only that opens, so
//! the types enforce the order of the checks (PROTOCOL#checks).

use super::keys::{IdentityKey, SessionKey};
use super::primitives::{self, sha256};
use super::public::{Fingerprint, IdentityPublicKey, RSA_BYTES, SessionPublicKey, WRAPPED_BYTES};
use super::secret::{Key, random};
use super::{CryptoError, Fields, label};
use crate::encoding::{Bytes, Fixed, Joined, words};
/// A kind or scope of a later version, as it is on the wire: at most 32 bytes. PROTOCOL#later-versions.
pub use crate::name::Word;
use crate::name::{MAX_NAME, Username};
use miniserde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Texts are padded to a multiple of this number of bytes, so that a ciphertext reveals a length only in these steps.
pub const BUCKET: usize = 256;
/// The longest text of a message, in bytes.
pub const MAX_TEXT: usize = 32 * 1024;
/// The most members of a room, the sender included: each text is sealed and signed once for each of the others.
pub const MAX_MEMBERS: usize = 32;
/// The longest plaintext, in bytes: the members of the largest room and the longest text.
pub const MAX_PLAINTEXT: usize = 1 + MAX_MEMBERS * (1 + MAX_NAME) + MAX_TEXT;
/// The longest ciphertext, in bytes: the longest plaintext with its length and padding.
pub const MAX_CIPHERTEXT: usize = (4 + MAX_PLAINTEXT).next_multiple_of(BUCKET);

words! {
    /// The kind of content. It is signed: one kind is never taken for another.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Kind {
        /// A text that a user wrote.
        Message = "message",
        /// The sender opened a room with the recipient. No text.
        RoomOpened = "room_opened",
        /// The sender left that room. No text.
        RoomLeft = "room_left",
        /// The sender offers the recipient a file. The text of this and of the next four is JSON
        /// (PROTOCOL#file-transfer).
        FileOffer = "file_offer",
        /// The recipient of an offer accepts it.
        FileAccept = "file_accept",
        /// The recipient of an offer rejects it.
        FileReject = "file_reject",
        /// Either side ends a transfer.
        FileCancel = "file_cancel",
        /// The recipient has the complete file, and its hash is right.
        FileDone = "file_done",
    } else
    /// A kind of a later version.
    Later(Word)
}

words! {
    /// Whether an envelope is for everyone, one user or a room. It is signed.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Scope {
        /// All online users.
        Broadcast = "broadcast",
        /// One user, outside a room.
        Private = "private",
        /// One member of a room. The text of a message begins with all members.
        Room = "room",
    } else
    /// A scope of a later version, for one user or for everyone.
    Later(Word)
}

/// The header, which the sender signs and the AEAD authenticates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The kind of content.
    pub kind: Kind,
    /// Everyone, one user or a room.
    pub scope: Scope,
    /// The recipient of a private or room envelope, in the letter case of the account; `None` in a broadcast.
    pub recipient: Option<Username>,
    /// The recipient's session key, so that an envelope cannot be shown in another login. In a broadcast the server's
    /// key, so that it cannot be shown on another server; `None` without TLS.
    pub recipient_key: Option<Fingerprint>,
    /// The sender, in the letter case of the account. The server accepts only the name of the login.
    pub from: Username,
    /// The sender's identity key.
    pub identity: Fingerprint,
    /// The sender's session key, which names the conversation.
    pub session: Fingerprint,
    /// Rises by one from 1 in each conversation of the sender's session. PROTOCOL#sequence.
    pub sequence: u64,
    /// When the text was written, by the sender's clock, in milliseconds since 1970.
    pub time: u64,
    /// The [id](Verified::id) of a text that was sealed before; else `None`.
    pub again: Option<Fixed<32>>,
}

impl Header {
    /// PROTOCOL#header.
    fn encode(&self, commitment: &[u8; 32]) -> Vec<u8> {
        Fields::new(label::ENVELOPE_HEADER)
            .text(self.kind.as_str())
            .text(self.scope.as_str())
            .text(self.recipient.as_ref().map_or("", Username::as_str))
            .bytes(self.recipient_key.as_ref().map_or(&[], |key| &key.0))
            .text(self.from.as_str())
            .bytes(&self.identity.0)
            .bytes(&self.session.0)
            .number(self.sequence)
            .number(self.time)
            .bytes(self.again.as_ref().map_or(&[], |id| &id.0))
            .bytes(commitment)
            .finish()
    }

    /// Whether kind, scope and recipient fit each other; words of a later version fit everything.
    /// PROTOCOL#check-fields, PROTOCOL#later-versions.
    fn agrees(&self) -> bool {
        let to_one = self.recipient.is_some();
        let scope_fits = match self.scope {
            Scope::Broadcast => !to_one,
            Scope::Private | Scope::Room => to_one,
            Scope::Later(_) => true,
        };
        let kind_fits = match self.kind {
            Kind::Message | Kind::Later(_) => true,
            Kind::RoomOpened | Kind::RoomLeft => matches!(self.scope, Scope::Room | Scope::Later(_)),
            _ => matches!(self.scope, Scope::Private | Scope::Later(_)),
        };
        scope_fits && kind_fits && (!to_one || self.recipient_key.is_some())
    }
}

/// The ciphertext of an envelope, and what protects it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    /// `HMAC[message key](label)`, so that no second key opens the ciphertext.
    pub commitment: Fixed<32>,
    /// Random; followed by a counter of 0 in EAX's 16 bytes.
    pub nonce: Fixed<12>,
    /// The padded text, encrypted: at most [`MAX_CIPHERTEXT`] bytes.
    pub ciphertext: Bytes,
    /// EAX's, over nonce, header and ciphertext.
    pub tag: Fixed<16>,
    /// The identity key's, over header, nonce and the hash of ciphertext and tag.
    pub signature: Fixed<RSA_BYTES>,
}

impl Joined for Body {
    const MEMBERS: &[&str] = &["commitment", "nonce", "ciphertext", "tag", "signature"];
}

impl Body {
    /// The bytes that the sender signs. PROTOCOL#signature.
    fn signed(&self, header: &[u8]) -> Vec<u8> {
        let hash = sha256(&[&self.ciphertext.0[..], &self.tag.0].concat());
        Fields::new(label::ENVELOPE_SIGNATURE).bytes(header).bytes(&self.nonce.0).bytes(&hash).finish()
    }
}

/// The part that all recipients get. Nothing in a received one is trusted before [`Envelope::verify`].
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Its kind, its sender and its recipient.
    pub header: Header,
    /// The ciphertext, and what protects both.
    pub body: Body,
}

impl Envelope {
    /// Whether this is a private or room message. Its recipient acknowledges it soon, and the server reports it if it
    /// is lost. PROTOCOL#lost, PROTOCOL#ack-when.
    pub fn is_direct_message(&self) -> bool {
        self.header.kind == Kind::Message && self.header.recipient.is_some()
    }

    /// Checks the sender's signature, before any RSA decryption or AES. PROTOCOL#check-signature.
    ///
    /// # Errors
    /// [`CryptoError::BadEnvelope`] if the fields contradict each other, the ciphertext is longer than
    /// [`MAX_CIPHERTEXT`], or the header names another key than `identity`; [`CryptoError::BadSignature`].
    pub fn verify(&self, identity: &IdentityPublicKey) -> Result<Verified<'_>, CryptoError> {
        let (header, body) = (&self.header, &self.body);
        let is_valid = header.agrees() && body.ciphertext.0.len() <= MAX_CIPHERTEXT;
        if !is_valid || header.identity != identity.fingerprint() {
            return Err(CryptoError::BadEnvelope);
        }
        let encoded = header.encode(&body.commitment.0);
        identity.verify(&body.signed(&encoded), &body.signature.0)?;
        Ok(Verified { envelope: self, encoded })
    }
}

/// A sealed message and its key, on the sender's side.
pub struct Sealed {
    /// The part that all recipients get.
    pub envelope: Envelope,
    key: Key,
    /// SHA-256 of the header.
    oaep_label: [u8; 32],
}

impl Sealed {
    /// Encrypts and signs `text` under a new key; about 2 ms.
    ///
    /// # Panics
    /// If `text` is longer than [`MAX_PLAINTEXT`]: callers limit what users type.
    pub fn seal(header: Header, identity: &IdentityKey, text: &[u8]) -> Sealed {
        assert!(text.len() <= MAX_PLAINTEXT, "texts are limited where they are typed");
        // PROTOCOL#message-key.
        let key = Key::random();
        let commitment = commitment(&key);
        let encoded = header.encode(&commitment);
        let (nonce, mut ciphertext) = (random(), pad(text));
        // PROTOCOL#ciphertext.
        let tag = primitives::eax_seal(&key, &nonce, 0, &encoded, &mut ciphertext);
        let mut body = Body {
            commitment: Fixed(commitment),
            nonce: Fixed(nonce),
            ciphertext: Bytes(ciphertext),
            tag: Fixed(tag),
            signature: Fixed([0; RSA_BYTES]),
        };
        body.signature = Fixed(identity.sign(&body.signed(&encoded)));
        Sealed { envelope: Envelope { header, body }, key, oaep_label: sha256(&encoded) }
    }

    /// The same as [`Verified::id`].
    pub fn id(&self) -> [u8; 32] {
        self.envelope.header.again.map_or(self.oaep_label, |id| id.0)
    }

    /// The id of the recipient's key, then the message key, wrapped for that key and bound to this header; about 0.1
    /// ms. PROTOCOL#wrapped-key.
    pub fn wrap_for(&self, recipient: &SessionPublicKey) -> [u8; WRAPPED_BYTES] {
        let block = recipient.wrap(self.key.expose(), self.oaep_label);
        let wrapped = [&recipient.fingerprint().key_id()[..], &block].concat();
        wrapped.try_into().expect("an id and a block")
    }
}

/// An envelope whose signature is the sender's.
pub struct Verified<'a> {
    envelope: &'a Envelope,
    encoded: Vec<u8>,
}

impl Verified<'_> {
    /// The header that the sender signed.
    pub fn header(&self) -> &Header {
        &self.envelope.header
    }

    /// Identifies the text, however often it is sealed: SHA-256 of its first header. PROTOCOL#message-id.
    pub fn id(&self) -> [u8; 32] {
        self.header().again.map_or_else(|| sha256(&self.encoded), |id| id.0)
    }

    /// Unwraps the key, checks the commitment to it, decrypts and removes the padding; about 0.5 ms. `wrapped` is
    /// [`Sealed::wrap_for`]'s. PROTOCOL#check-open, PROTOCOL#key-id.
    ///
    /// # Errors
    /// [`CryptoError::BadCiphertext`], whichever step fails.
    pub fn open(
        &self,
        session: &SessionKey,
        wrapped: &[u8; WRAPPED_BYTES],
    ) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let (body, encoded) = (&self.envelope.body, &self.encoded);
        let (id, block) = wrapped.split_first_chunk().expect("an id and a block");
        if *id != session.fingerprint().key_id() {
            return Err(CryptoError::BadCiphertext);
        }
        let key = session.unwrap(block.try_into().expect("a block"), sha256(encoded))?;
        let key = Key::from_slice(&key).ok_or(CryptoError::BadCiphertext)?;
        // In constant time.
        if Key::new(commitment(&key)) != Key::new(body.commitment.0) {
            return Err(CryptoError::BadCiphertext);
        }
        let mut text = Zeroizing::new(body.ciphertext.0.clone());
        primitives::eax_open(&key, &body.nonce.0, 0, encoded, &mut text, &body.tag.0)?;
        let text = unpad(&text, MAX_PLAINTEXT).ok_or(CryptoError::BadCiphertext)?;
        Ok(Zeroizing::new(text.to_vec()))
    }
}

/// `HMAC-SHA256[key](label)`: EAX does not commit to its key, this does. PROTOCOL#commitment.
fn commitment(key: &Key) -> [u8; 32] {
    primitives::hmac(key, label::KEY_COMMITMENT.as_bytes())
}

/// Length as 32 bits, text, zeros up to a multiple of [`BUCKET`]. PROTOCOL#padding.
///
/// # Panics
/// If `text` is longer than 4 GiB.
pub fn pad(text: &[u8]) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("texts are limited to far less than 4 GiB");
    // A growing vector would leave copies of the text in memory.
    let mut padded = Vec::with_capacity((4 + text.len()).next_multiple_of(BUCKET));
    padded.extend_from_slice(&length.to_be_bytes());
    padded.extend_from_slice(text);
    padded.resize(padded.len().next_multiple_of(BUCKET), 0);
    padded
}

/// Reverses [`pad`]. `None` if the text has more than `limit` bytes or the padding is not exactly [`pad`]'s.
pub fn unpad(padded: &[u8], limit: usize) -> Option<&[u8]> {
    let (length, rest) = padded.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length) as usize;
    let (text, zeros) = rest.split_at_checked(length)?;
    let is_exact = padded.len() == (4 + length).next_multiple_of(BUCKET) && length <= limit;
    (is_exact && zeros.iter().all(|&byte| byte == 0)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Envelope {
        /// A broadcast without a valid signature.
        pub fn sample() -> Envelope {
            let header = Header {
                kind: Kind::Message,
                scope: Scope::Broadcast,
                recipient: None,
                recipient_key: None,
                from: "alice".parse().expect("name"),
                identity: Fingerprint([1; 32]),
                session: Fingerprint([2; 32]),
                sequence: 3,
                time: 4,
                again: None,
            };
            let body = Body {
                commitment: Fixed([5; 32]),
                nonce: Fixed([6; 12]),
                ciphertext: Bytes(vec![7; 256]),
                tag: Fixed([8; 16]),
                signature: Fixed([9; 256]),
            };
            Envelope { header, body }
        }
    }

    /// PROTOCOL#check-fields.
    #[test]
    fn kind_fits_only_its_own_scope() {
        let fits = |kind, scope, to_one: bool| {
            let header = Header {
                kind,
                scope,
                recipient: to_one.then(|| "bob".parse().expect("name")),
                recipient_key: to_one.then_some(Fingerprint([1; 32])),
                from: "alice".parse().expect("name"),
                identity: Fingerprint([2; 32]),
                session: Fingerprint([3; 32]),
                sequence: 1,
                time: 0,
                again: None,
            };
            let half = Header { recipient_key: None, ..header.clone() };
            assert!(!to_one || !half.agrees(), "a recipient without a key");
            header.agrees()
        };
        let scopes = |kind| {
            assert!(!fits(kind, Scope::Broadcast, true) && !fits(kind, Scope::Private, false));
            assert!(!fits(kind, Scope::Room, false));
            [(Scope::Broadcast, false), (Scope::Private, true), (Scope::Room, true)]
                .map(|(scope, to_one)| fits(kind, scope, to_one))
        };
        assert_eq!(scopes(Kind::Message), [true; 3]);
        for notice in [Kind::RoomOpened, Kind::RoomLeft] {
            assert_eq!(scopes(notice), [false, false, true], "{notice}");
        }
        for word in [Kind::FileOffer, Kind::FileAccept, Kind::FileReject, Kind::FileCancel, Kind::FileDone] {
            assert_eq!(scopes(word), [false, true, false], "{word}");
        }
    }
}
