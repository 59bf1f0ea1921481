//! The texts of the envelopes in which the two sides of a transfer talk about it.
//!
//! Specification: PROTOCOL#file-transfer.

use crate::crypto::secret::Key;
use crate::encoding::Fixed;
use miniserde::{Deserialize, Serialize};

/// The text of a `file_offer`. PROTOCOL#file-messages, PROTOCOL#file_offer.
#[derive(Serialize, Deserialize)]
pub struct Offer {
    /// Random: names the transfer.
    pub transfer: Fixed<16>,
    /// The transfer key, random, 32 bytes.
    pub key: Key,
    /// The last part of the path; the recipient trusts none of it.
    pub name: String,
    /// Bytes of the file.
    pub size: u64,
    /// Of the whole file.
    pub sha256: Fixed<32>,
    /// `size` / 65,536, rounded up; below 2^32. An offer in which the two disagree is none.
    pub chunks: u64,
}

/// The text of a `file_accept`. PROTOCOL#file_accept, PROTOCOL#chunk-session.
#[derive(Serialize, Deserialize)]
pub struct Accept {
    /// As in the offer.
    pub transfer: Fixed<16>,
    /// Chunks before this one are there already; all of them if it is their number.
    pub start: u64,
    /// Fingerprint of the session key that the chunks' keys are to be wrapped for.
    pub session: Fixed<32>,
}

/// The text of the other three; the reason is for people.
/// PROTOCOL#file_reject, PROTOCOL#file_cancel, PROTOCOL#file_done.
#[derive(Serialize, Deserialize)]
pub struct Closing {
    /// As in the offer.
    pub transfer: Fixed<16>,
    /// Of a `file_cancel`, for people; exactly `cancelled` if a person wished it; may be `None`.
    pub reason: Option<String>,
}
