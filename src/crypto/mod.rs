//! Cryptography: RSA-2048, AES-256, PBKDF2, HMAC and SHA-256, and nothing else.
//!
//! Invariant: no primitive is implemented here, and [`Fields`] builds every signed or authenticated byte string from
//! explicit fields under a versioned label (PROTOCOL#encodings).
//!
//! Rooms: [`secret`] (keys and passwords), [`primitives`] (one function each), [`public`] (keys that verify or wrap:
//! the only RSA that the server may name), [`keys`] (private keys), [`key_file`] (the identity key on disk),
//! [`envelope`] (messages), [`chunk`] (files).

pub mod chunk;
pub mod envelope;
pub mod key_file;
pub mod keys;
pub mod primitives;
pub mod public;
pub mod secret;

use crate::encoding::words;

/// Domain labels; the number is the protocol's version. Bytes made under one label are never valid under another.
/// PROTOCOL#labels.
pub mod label {
    /// The identity key's signature on a session key (PROTOCOL#keys).
    pub const SESSION_CERTIFICATE: &str = "secure-messenger/1 session certificate";
    /// The identity key's signature on a mailbox key (PROTOCOL#mailbox-certificate).
    pub const MAILBOX_CERTIFICATE: &str = "secure-messenger/1 mailbox certificate";
    /// The identity key's signature that binds a login to its challenge and TLS channel (PROTOCOL#login).
    pub const LOGIN_PROOF: &str = "secure-messenger/1 login proof";
    /// HMAC under the password key, for a login (PROTOCOL#response).
    pub const LOGIN_RESPONSE: &str = "secure-messenger/1 login response";
    /// HMAC under the old password key, for a new password (PROTOCOL#response).
    pub const CHANGE_RESPONSE: &str = "secure-messenger/1 password change response";
    /// The identity key's signature for a new password (PROTOCOL#changing-the-password).
    pub const PASSWORD_CHANGE: &str = "secure-messenger/1 password change";
    /// HMAC under a session's token, for its challenge and TLS channel (PROTOCOL#resuming).
    pub const RESUME: &str = "secure-messenger/1 resume";
    /// The associated data of a message; its hash is also the OAEP label (PROTOCOL#envelope).
    pub const ENVELOPE_HEADER: &str = "secure-messenger/1 envelope header";
    /// The sender's signature on header, nonce and hash of the ciphertext (PROTOCOL#envelope).
    pub const ENVELOPE_SIGNATURE: &str = "secure-messenger/1 envelope signature";
    /// HMAC under the message key, of this label's bytes only (PROTOCOL#envelope).
    pub const KEY_COMMITMENT: &str = "secure-messenger/1 key commitment";
    /// A chunk's HMAC under the transfer key, and its associated data: two lists of different length (PROTOCOL#chunks).
    pub const CHUNK: &str = "secure-messenger/1 chunk";
    /// The fields whose hash is the OAEP label for the keys of a group of chunks (PROTOCOL#chunks).
    pub const CHUNK_KEYS: &str = "secure-messenger/1 chunk keys";
    /// One user's half of a safety number (PROTOCOL#safety-number).
    pub const SAFETY_NUMBER: &str = "secure-messenger/1 safety number";
    /// The associated data of the key file (PROTOCOL#key-file).
    pub const KEY_FILE: &str = "secure-messenger/1 key file";
    /// HMAC under the identity key: the key of the history (PROTOCOL#kept-history).
    pub const HISTORY_KEY: &str = "secure-messenger/1 history key";
    /// The associated data of one message in the history (PROTOCOL#kept-history).
    pub const HISTORY: &str = "secure-messenger/1 history";
    /// HMAC under the identity key: the key of the mailbox file (PROTOCOL#mailbox-file-key).
    pub const MAILBOX_FILE_KEY: &str = "secure-messenger/1 mailbox file key";
    /// The associated data of one record in the mailbox file (PROTOCOL#mailbox-file-form).
    pub const MAILBOX_FILE: &str = "secure-messenger/1 mailbox file";
    /// HMAC under the server's secret: the salt of an unknown name (PROTOCOL#login).
    pub const FAKE_SALT: &str = "secure-messenger/1 fake salt";
}

/// The encoding of everything that is signed, authenticated or hashed as a structure. Each field is its length as a
/// 32-bit big-endian number, then its bytes; the first field is the label. Different lists have different encodings.
/// PROTOCOL#fields.
pub struct Fields(Vec<u8>);

impl Fields {
    /// Begins with one of the [labels](label).
    pub fn new(label: &str) -> Fields {
        Fields(Vec::with_capacity(512)).text(label)
    }

    /// Appends one field.
    ///
    /// # Panics
    /// If it has 4 GiB or more.
    pub fn bytes(mut self, field: &[u8]) -> Fields {
        let length = u32::try_from(field.len()).expect("fields are limited to far less than 4 GiB");
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(field);
        self
    }

    /// Appends the UTF-8 bytes of a text as one field.
    pub fn text(self, text: &str) -> Fields {
        self.bytes(text.as_bytes())
    }

    /// Appends a number as a field of 8 bytes, big-endian.
    pub fn number(self, number: u64) -> Fields {
        self.bytes(&number.to_be_bytes())
    }

    /// The encoded bytes.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

words! {
    /// Why keys, signatures or ciphertexts are refused. Details are left out: they would help only an attacker.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum CryptoError {
        /// Not an RSA key of 2048 bits with exponent 65,537 in canonical DER.
        BadKey = "not an RSA-2048 public key",
        /// The key did not sign these bytes.
        BadSignature = "the signature is wrong",
        /// Decryption failed: a wrong key, altered bytes, a commitment to another key or wrong padding.
        BadCiphertext = "it cannot be decrypted",
        /// Fields of an envelope contradict each other, its ciphertext is too long, or it names another identity key.
        BadEnvelope = "its fields contradict each other",
        /// The session certificate is older than 26 hours or the mailbox certificate than 30 days, or one is more than
        /// 2 hours from the future.
        StaleCertificate = "the certificate is too old or from the future: compare the clocks",
        /// A chunk was altered or belongs to another transfer.
        BadChunk = "a part of it was altered",
        /// A chunk is out of order: it arrived twice, or one before it is missing.
        WrongChunk = "a part of it arrived twice or is missing",
    }
}

impl std::error::Error for CryptoError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// PROTOCOL#fields.
    #[test]
    fn fields_encode_differently_when_a_byte_moves() {
        let a = Fields::new("l").bytes(b"ab").bytes(b"c").finish();
        let b = Fields::new("l").bytes(b"a").bytes(b"bc").finish();
        assert_ne!(a, b);
        assert_eq!(a, b"\0\0\0\x01l\0\0\0\x02ab\0\0\0\x01c");
        assert_eq!(Fields::new("").number(1).finish(), b"\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x01");
    }
}
