//! The texts of envelopes with messages about a transfer.
//!
//! Specification: PROTOCOL#file-transfer.

use crate::crypto::secret::Key;
use crate::encoding::Fixed;
use miniserde::{Deserialize, Serialize};

/// The text of a `file_offer`. PROTOCOL#file-messages, PROTOCOL#file_offer.
#[derive(Serialize, Deserialize)]
pub struct Offer {
    /// The transfer id, random.
    pub transfer: Fixed<16>,
    /// The transfer key, random, 32 bytes.
    pub key: Key,
    /// The last part of the path; the recipient does not trust it.
    pub name: String,
    /// Bytes of the file.
    pub size: u64,
    /// The hash of the whole file.
    pub sha256: Fixed<32>,
    /// `size` / 65,536, rounded up; below 2^32. An offer in which the two disagree is invalid.
    pub chunks: u64,
}

/// The text of a `file_accept`. PROTOCOL#file_accept, PROTOCOL#chunk-session.
#[derive(Serialize, Deserialize)]
pub struct Accept {
    /// As in the offer.
    pub transfer: Fixed<16>,
    /// The recipient has all chunks before this one; the whole file if it is the number of chunks.
    pub start: u64,
    /// The fingerprint of the session key to wrap the chunks' keys for.
    pub session: Fixed<32>,
}

/// The text of the other three messages.
/// PROTOCOL#file_reject, PROTOCOL#file_cancel, PROTOCOL#file_done.
#[derive(Serialize, Deserialize)]
pub struct Closing {
    /// As in the offer.
    pub transfer: Fixed<16>,
    /// The reason of a `file_cancel`, for people; exactly `cancelled` if a user cancelled; may be `None`.
    pub reason: Option<String>,
}
