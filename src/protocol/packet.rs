//! What goes past the lines: opaque bytes on their way from one person to another. Specification: PROTOCOL#packets.

use super::DecodeError;
use crate::name::Username;

/// Opaque bytes for one person: all that the server knows of a file. `peer` is, to the server, the
/// recipient, and, from it, the sender.
pub struct Packet<'a> {
    /// To the server the recipient, from it the sender.
    pub peer: Username,
    /// The transfer, as its sender has named it: random.
    pub transfer: [u8; 16],
    /// What the server does not look at: a chunk (PROTOCOL#chunks).
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// What stands before the payload: the length of the name as one byte, the name, the transfer.
    pub fn address(peer: &Username, transfer: &[u8; 16]) -> Vec<u8> {
        let name = peer.as_str().as_bytes();
        let length = u8::try_from(name.len()).expect("names are short");
        [&[length], name, transfer].concat()
    }

    /// Decodes a packet's body: name, transfer, payload, which may be empty. Its length is the reader's to bound.
    ///
    /// # Errors
    /// [`DecodeError::Malformed`] if the body is too short for its parts, or its name is none.
    pub fn decode(body: &'a [u8]) -> Result<Packet<'a>, DecodeError> {
        let split = || {
            let (length, rest) = body.split_first()?;
            let (name, rest) = rest.split_at_checked(usize::from(*length))?;
            let (transfer, payload) = rest.split_first_chunk()?;
            let peer = std::str::from_utf8(name).ok()?.parse().ok()?;
            Some(Packet { peer, transfer: *transfer, payload })
        };
        split().ok_or(DecodeError::Malformed)
    }
}
