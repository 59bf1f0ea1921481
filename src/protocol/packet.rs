//! Packets between the lines: opaque bytes from one user to another. Specification: PROTOCOL#packets.

use super::line::DecodeError;
use crate::name::Username;

/// Opaque bytes for one user: all that the server knows of a file.
pub struct Packet<'a> {
    /// To the server: the recipient. From the server: the sender.
    pub peer: Username,
    /// The transfer: 16 random bytes, chosen by the sender of the file.
    pub transfer: [u8; 16],
    /// A chunk of the file (PROTOCOL#chunks), which the server does not read.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// The part before the payload: the length of the name as one byte, the name, the transfer.
    pub fn address(peer: &Username, transfer: &[u8; 16]) -> Vec<u8> {
        let name = peer.as_str().as_bytes();
        let length = u8::try_from(name.len()).expect("a name has at most 32 bytes");
        [&[length], name, transfer].concat()
    }

    /// Decodes the body of a packet: name, transfer, and a payload, which may be empty. The reader limits its length.
    ///
    /// # Errors
    /// [`DecodeError::Malformed`] if the body is too short, or its name is invalid. PROTOCOL#bad-packet.
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
