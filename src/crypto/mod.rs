//! Cryptography: RSA-2048, AES-256, PBKDF2, HMAC and SHA-256, and nothing else.
//!
//! Invariant: no primitive is written here, and every signed or authenticated byte string is
//! built by [`Fields`] from explicit fields under a versioned label (PROTOCOL#encodings).
//!
//! Rooms: [`secret`] (bytes that are wiped), [`primitives`] (one function each), [`public`]
//! (keys that only verify or encrypt: all that the server may name), [`keys`] (private keys),
//! [`key_file`] (the identity key at rest), [`envelope`] (messages), [`chunk`] (files).

pub mod chunk;
pub mod envelope;
pub mod key_file;
pub mod keys;
pub mod primitives;
pub mod public;
pub mod secret;

use crate::encoding::words;

/// Domain labels. The number is the protocol's version: bytes made under one label can never
/// be taken for bytes made under another. PROTOCOL#labels.
pub mod label {
    /// The identity key's signature under a session key (PROTOCOL#keys).
    pub const SESSION_CERTIFICATE: &str = "secure-messenger/1 session certificate";
    /// The identity key's signature that binds a login to its challenge and TLS channel (PROTOCOL#login).
    pub const LOGIN_PROOF: &str = "secure-messenger/1 login proof";
    /// HMAC under the password key, for a login (PROTOCOL#response).
    pub const LOGIN_RESPONSE: &str = "secure-messenger/1 login response";
    /// The same for a new password (PROTOCOL#response).
    pub const CHANGE_RESPONSE: &str = "secure-messenger/1 password change response";
    /// The identity key's signature for a new password (PROTOCOL#changing-the-password).
    pub const PASSWORD_CHANGE: &str = "secure-messenger/1 password change";
    /// HMAC under a session's token, for its challenge and TLS channel (PROTOCOL#resuming).
    pub const RESUME: &str = "secure-messenger/1 resume";
    /// The associated data of a message, whose hash is the label of OAEP, too (PROTOCOL#envelope).
    pub const ENVELOPE_HEADER: &str = "secure-messenger/1 envelope header";
    /// The sender's signature under header, nonce and hash of the ciphertext (PROTOCOL#envelope).
    pub const ENVELOPE_SIGNATURE: &str = "secure-messenger/1 envelope signature";
    /// HMAC under the message key, of this label's bytes alone (PROTOCOL#envelope).
    pub const KEY_COMMITMENT: &str = "secure-messenger/1 key commitment";
    /// HMAC under the transfer key, and associated data, of a chunk: two lists of different length (PROTOCOL#chunks).
    pub const CHUNK: &str = "secure-messenger/1 chunk";
    /// Its hash is the label of OAEP for the keys of a group of chunks (PROTOCOL#chunks).
    pub const CHUNK_KEYS: &str = "secure-messenger/1 chunk keys";
    /// One person's half of the digits that two compare (PROTOCOL#safety-number).
    pub const SAFETY_NUMBER: &str = "secure-messenger/1 safety number";
    /// The associated data of the identity key at rest (PROTOCOL#key-file).
    pub const KEY_FILE: &str = "secure-messenger/1 key file";
    /// HMAC under the identity key, which makes the history's key (PROTOCOL#kept-history).
    pub const HISTORY_KEY: &str = "secure-messenger/1 history key";
    /// The associated data of one kept message (PROTOCOL#kept-history).
    pub const HISTORY: &str = "secure-messenger/1 history";
    /// HMAC under the server's secret, which makes the salt of an unknown name (PROTOCOL#login).
    pub const FAKE_SALT: &str = "secure-messenger/1 fake salt";
}

/// The one encoding of everything that is signed, authenticated or hashed as a structure:
/// each field is its length as a 32-bit big-endian number, then its bytes; the first is the label.
/// Numbers are 64-bit big-endian fields. Two different lists never encode alike. PROTOCOL#fields.
pub struct Fields(Vec<u8>);

impl Fields {
    /// Begins with the label, see [`label`].
    pub fn new(label: &str) -> Fields {
        Fields(Vec::with_capacity(512)).bytes(label.as_bytes())
    }

    /// Appends one field. Panics if it has 4 GiB or more: all of them are bounded far below.
    pub fn bytes(mut self, field: &[u8]) -> Fields {
        let length = u32::try_from(field.len()).expect("fields are bounded far below 4 GiB");
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(field);
        self
    }

    /// Appends a number as an eight-byte field.
    pub fn number(self, number: u64) -> Fields {
        self.bytes(&number.to_be_bytes())
    }

    /// The encoded bytes.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

words! {
    /// What can be wrong with bytes that claim to be cryptographic. It says no more than that on
    /// purpose: details would help only whoever made them.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum CryptoError {
        /// Not a DER-encoded RSA key of 2048 bits with exponent 65,537.
        BadKey = "not an RSA-2048 public key",
        /// The signature is not this key's over these bytes.
        BadSignature = "the signature is wrong",
        /// Decryption failed: another key, altered bytes, a commitment to another key or false padding.
        BadCiphertext = "it cannot be decrypted",
        /// The envelope names another identity key than its sender's, or its ciphertext is too long.
        BadEnvelope = "its fields contradict each other",
        /// The certificate is older than a day or from the future, by more than two hours.
        StaleCertificate = "the session certificate is too old or from the future: compare the clocks",
        /// A chunk was altered, or is not of this transfer.
        BadChunk = "a part of it was altered on the way",
        /// A chunk is not the one that is due: it came twice, or one before it is missing.
        WrongChunk = "a part of it came twice, or is missing",
    }
}

impl std::error::Error for CryptoError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// PROTOCOL#fields.
    #[test]
    fn moving_a_byte_between_fields_changes_the_encoding() {
        let a = Fields::new("l").bytes(b"ab").bytes(b"c").finish();
        let b = Fields::new("l").bytes(b"a").bytes(b"bc").finish();
        assert_ne!(a, b);
        assert_eq!(a, b"\0\0\0\x01l\0\0\0\x02ab\0\0\0\x01c");
        assert_eq!(Fields::new("").number(1).finish(), b"\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x01");
    }
}
