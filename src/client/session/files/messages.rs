//! The texts of envelopes with messages about a transfer.
//!
//! Specification: PROTOCOL#file-transfer.

use crate::crypto::secret::Key;
use crate::encoding::{Fixed, from_json};
use miniserde::{Deserialize, Serialize};

/// Reads one of the texts below. PROTOCOL#json, PROTOCOL#bad-file-message.
///
/// # Errors
/// The reason, for the user, if it is malformed.
pub fn read<T: Deserialize>(text: &str) -> Result<T, String> {
    from_json(text).ok_or_else(|| "its text is malformed".into())
}

/// The text of a `file_offer`. PROTOCOL#file-messages, PROTOCOL#file_offer.
#[derive(Serialize, Deserialize)]
pub struct Offer {
    /// The transfer id, random.
    pub transfer: Fixed<16>,
    /// The transfer key, random, 32 bytes.
    pub key: Key,
    /// The last part of the path; the recipient does not trust it.
    pub name: String,
    /// The size of the file in bytes.
    pub size: u64,
    /// The SHA-256 of the whole file.
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
    /// The reason of a `file_cancel`, for the user; exactly `cancelled` if a user cancelled; may be `None`.
    pub reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PROTOCOL#json, PROTOCOL#bad-file-message.
    #[test]
    fn file_message_is_parsed_like_a_line() {
        let closes = |more: &str| {
            let text = format!(r#"{{"transfer":"AAAAAAAAAAAAAAAAAAAAAA=="{more}}}"#);
            read::<Closing>(&text).is_ok()
        };
        assert!(closes("") && closes(r#","reason":null"#) && closes(r#","x":[[[[[[[1]]]]]]]"#));
        for bad in
            [r#","x":[[[[[[[[1]]]]]]]]"#, r#","x":1e400"#, r#","reason":1"#, r#","reason":1,"reason":"a""#]
        {
            assert!(!closes(bad), "{bad}");
        }
        assert!(!closes(&format!(r#","x":"{}""#, ",".repeat(16_384))), "too many commas");
    }
}
