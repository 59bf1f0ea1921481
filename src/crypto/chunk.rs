//! Files in chunks. Each chunk has its own random key, and one RSA block wraps the keys of five chunks.
//!
//! Invariant: nothing is decrypted before its HMAC under the transfer key, which only the two sides know, is checked. A
//! chunk opens only in its own place of its own transfer. The transfer key proves who made a chunk; the RSA blocks keep
//! the file secret if the transfer key is stolen later. Specification: PROTOCOL#chunks.

use super::keys::SessionKey;
use super::primitives::{self, Tag};
use super::public::{OAEP_BYTES, RSA_BYTES, SessionPublicKey};
use super::secret::{Key, random};
use super::{CryptoError, Fields, label};
use zeroize::Zeroizing;

/// Bytes of a file in one chunk, 64 KiB; the last chunk may be shorter. PROTOCOL#chunk.
pub const CHUNK: usize = 64 * 1024;
/// Chunks whose keys share an RSA block: as many keys of 32 bytes as it holds.
pub const GROUP: u32 = 5;
const _: () = assert!(GROUP as usize * 32 <= OAEP_BYTES);

/// Names a transfer: 16 random bytes, chosen by the sender. The server sees nothing else of it.
pub type TransferId = [u8; 16];

/// The terms of a transfer, which both sides know before the first chunk.
pub struct Plan {
    /// Part of every MAC and all associated data: a chunk of another transfer does not open.
    pub id: TransferId,
    /// The transfer key, from the offer: 32 bytes that only the two sides know.
    pub key: Key,
    /// Bytes of the whole file, with fewer than 2^32 chunks: whoever makes a plan checks that.
    pub size: u64,
    /// The first chunk that is sent; the recipient has those before it. Groups are counted from it.
    pub start: u32,
}

/// The number of chunks of a file of `size` bytes; `None` for 2^32 or more.
pub fn chunks(size: u64) -> Option<u32> {
    u32::try_from(size.div_ceil(CHUNK as u64)).ok()
}

/// A payload: `index ‖ MAC ‖ nonce ‖ tag ‖ block ‖ ciphertext`. `block` is empty unless the chunk is the first of a
/// group.
struct Parts<'a> {
    index: u32,
    mac: &'a [u8; 32],
    nonce: &'a [u8; 12],
    tag: &'a Tag,
    block: &'a [u8],
    ciphertext: &'a [u8],
}

impl Plan {
    /// The number of chunks of the file; 0 for an empty one.
    pub fn chunks(&self) -> u32 {
        chunks(self.size).unwrap_or(u32::MAX)
    }

    /// Chunks in the group that begins with chunk `first`: [`GROUP`], fewer at the end of the file, 0 beyond it.
    pub fn group(&self, first: u32) -> u32 {
        GROUP.min(self.chunks().saturating_sub(first))
    }

    /// Bytes of chunk `index`; 0 beyond the end of the file.
    pub fn length(&self, index: u32) -> usize {
        let before = u64::from(index) * CHUNK as u64;
        usize::try_from(self.size.saturating_sub(before)).map_or(CHUNK, |rest| rest.min(CHUNK))
    }

    fn fields(&self, label: &str, index: u32) -> Fields {
        Fields::new(label).bytes(&self.id).number(index.into())
    }

    /// PROTOCOL#chunk-ciphertext.
    fn associated(&self, index: u32) -> Vec<u8> {
        self.fields(label::CHUNK, index).finish()
    }

    /// PROTOCOL#chunk-mac.
    fn authenticated(&self, index: u32, block: &[u8], nonce: &[u8; 12], tag: &Tag) -> Vec<u8> {
        self.fields(label::CHUNK, index).bytes(block).bytes(nonce).bytes(tag).finish()
    }

    /// PROTOCOL#chunk-keys.
    fn oaep_label(&self, first: u32) -> [u8; 32] {
        primitives::sha256(&self.fields(label::CHUNK_KEYS, first).finish())
    }

    /// Encrypts the group that begins with chunk `first` and returns a payload for each chunk; `data` is the file's
    /// bytes of the whole group.
    ///
    /// # Panics
    /// If `data` does not have the group's length.
    pub fn seal_group(&self, first: u32, recipient: &SessionPublicKey, data: &[u8]) -> Vec<Vec<u8>> {
        let keys = Zeroizing::new(random::<{ GROUP as usize * 32 }>());
        let keys = &keys[..self.group(first) as usize * 32];
        let block = recipient.wrap(keys, self.oaep_label(first));
        let seal = |((text, key), index): ((&[u8], &[u8]), u32)| {
            assert_eq!(text.len(), self.length(index), "the caller read the whole chunk");
            let key = Key::from_slice(key).expect("32 bytes");
            let (nonce, mut ciphertext) = (random(), text.to_vec());
            let tag = primitives::eax_seal(&key, &nonce, index, &self.associated(index), &mut ciphertext);
            let block: &[u8] = if index == first { &block } else { &[] };
            let mac = primitives::hmac(&self.key, &self.authenticated(index, block, &nonce, &tag));
            [&index.to_be_bytes()[..], &mac, &nonce, &tag, block, &ciphertext].concat()
        };
        let sealed: Vec<Vec<u8>> = data.chunks(CHUNK).zip(keys.chunks(32)).zip(first..).map(seal).collect();
        assert_eq!(sealed.len(), self.group(first) as usize, "the caller read the whole group");
        sealed
    }

    /// Reverses [`Plan::seal_group`] for all payloads of a group and returns the file's bytes of each; about 2 ms, most
    /// of it RSA. All payloads are checked before one is decrypted.
    ///
    /// # Errors
    /// [`CryptoError::WrongChunk`] for a chunk of this transfer in a wrong place, [`CryptoError::BadChunk`] for
    /// anything else.
    pub fn open_group(
        &self,
        first: u32,
        payloads: &[Vec<u8>],
        session: &SessionKey,
    ) -> Result<Vec<Vec<u8>>, CryptoError> {
        let parts = payloads.iter().zip(first..).map(|(payload, due)| self.check(payload, due));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        let block = parts.first().and_then(|part| part.block.try_into().ok()).ok_or(CryptoError::BadChunk)?;
        let keys = session.unwrap(block, self.oaep_label(first)).map_err(|_| CryptoError::BadChunk)?;
        if keys.len() != parts.len() * 32 {
            return Err(CryptoError::BadChunk);
        }
        let open = |(part, key): (Parts<'_>, &[u8])| {
            let key = Key::from_slice(key).ok_or(CryptoError::BadChunk)?;
            let (mut text, associated) = (part.ciphertext.to_vec(), self.associated(part.index));
            primitives::eax_open(&key, part.nonce, part.index, &associated, &mut text, part.tag)
                .map_err(|_| CryptoError::BadChunk)?;
            Ok(text)
        };
        parts.into_iter().zip(keys.chunks(32)).map(open).collect()
    }

    /// Checks that the peer made a payload for the position `due`, and returns its parts.
    fn check<'a>(&self, payload: &'a [u8], due: u32) -> Result<Parts<'a>, CryptoError> {
        let parts = self.split(payload).ok_or(CryptoError::BadChunk)?;
        let authenticated = self.authenticated(parts.index, parts.block, parts.nonce, parts.tag);
        if !primitives::hmac_matches(&self.key, &authenticated, parts.mac) {
            Err(CryptoError::BadChunk)
        } else if parts.index != due {
            Err(CryptoError::WrongChunk)
        } else if parts.ciphertext.len() != self.length(due) {
            Err(CryptoError::BadChunk)
        } else {
            Ok(parts)
        }
    }

    fn split<'a>(&self, payload: &'a [u8]) -> Option<Parts<'a>> {
        let (index, rest) = payload.split_first_chunk()?;
        let (mac, rest) = rest.split_first_chunk()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (tag, rest) = rest.split_first_chunk()?;
        let index = u32::from_be_bytes(*index);
        let is_first = index.wrapping_sub(self.start).is_multiple_of(GROUP);
        let (block, ciphertext) = rest.split_at_checked(if is_first { RSA_BYTES } else { 0 })?;
        Some(Parts { index, mac, nonce, tag, block, ciphertext })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::OnceLock;

    // The offsets of the parts of a payload.
    const MAC: usize = 4;
    const NONCE: usize = MAC + 32;
    const TAG: usize = NONCE + 12;
    const KEYS: usize = TAG + 16;

    fn session() -> &'static SessionKey {
        static KEY: OnceLock<SessionKey> = OnceLock::new();
        KEY.get_or_init(SessionKey::generate)
    }

    fn plan(size: u64, start: u32) -> Plan {
        Plan { id: [7; 16], key: Key::new([8; 32]), size, start }
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n % 251) as u8).collect()
    }

    /// PROTOCOL#chunk.
    #[test]
    fn chunks_of_any_length_and_start_are_restored() {
        for size in [1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, 5 * CHUNK + 1, 7 * CHUNK + 3] {
            let whole = text(size);
            for start in [0, 1, 2] {
                let plan = plan(size as u64, start);
                let (mut first, mut got) = (start, Vec::new());
                while first < plan.chunks() {
                    let from = first as usize * CHUNK;
                    let to = size.min(from + GROUP as usize * CHUNK);
                    let sealed = plan.seal_group(first, session().public(), &whole[from..to]);
                    let opened = plan.open_group(first, &sealed, session()).expect("opens");
                    opened.iter().for_each(|chunk| got.extend_from_slice(chunk));
                    first += plan.group(first);
                }
                assert!(got == whole[(start as usize * CHUNK).min(size)..], "{size} from {start}");
            }
        }
    }

    /// PROTOCOL#chunk-mac, PROTOCOL#chunk-order.
    #[test]
    fn altered_moved_or_repeated_chunk_is_refused() {
        let plan = plan(7 * CHUNK as u64, 0);
        let whole = text(7 * CHUNK);
        let sealed = plan.seal_group(0, session().public(), &whole[..5 * CHUNK]);
        let open = |payloads: Vec<Vec<u8>>| plan.open_group(0, &payloads, session()).err();
        assert_eq!(open(sealed.clone()), None);
        // Each field of a first and of a later chunk, and the two ends of the ciphertext.
        for at in [0, MAC, NONCE, TAG, KEYS, KEYS + RSA_BYTES, KEYS + RSA_BYTES + CHUNK - 1] {
            for chunk in [0, 1] {
                let mut altered = sealed.clone();
                let at = at.min(altered[chunk].len() - 1);
                altered[chunk][at] ^= 1;
                assert_eq!(open(altered), Some(CryptoError::BadChunk), "byte {at} of chunk {chunk}");
            }
        }
        let changed = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
            let mut payloads = sealed.clone();
            change(&mut payloads);
            open(payloads)
        };
        assert_eq!(changed(&|all| all.swap(2, 3)), Some(CryptoError::WrongChunk));
        assert_eq!(changed(&|all| all[3] = all[2].clone()), Some(CryptoError::WrongChunk));
        assert_eq!(changed(&|all| all[1] = all[0].clone()), Some(CryptoError::WrongChunk));
        assert_eq!(changed(&|all| all[2].truncate(KEYS)), Some(CryptoError::BadChunk));
        assert_eq!(changed(&|all| all[2].clear()), Some(CryptoError::BadChunk));
        assert_eq!(changed(&|all| all[2].push(0)), Some(CryptoError::BadChunk));
        let next = plan.seal_group(5, session().public(), &whole[5 * CHUNK..]);
        assert_eq!(changed(&|all| all[4] = next[0].clone()), Some(CryptoError::WrongChunk));
        let moved = Plan { id: [6; 16], ..self::plan(plan.size, 0) };
        assert_eq!(moved.open_group(0, &sealed, session()).err(), Some(CryptoError::BadChunk));
        let other = Plan { key: Key::new([9; 32]), ..self::plan(plan.size, 0) };
        assert_eq!(
            changed(&|all| all[4] = other.seal_group(0, session().public(), &whole[..5 * CHUNK])[4].clone()),
            Some(CryptoError::BadChunk)
        );
        assert_eq!(other.open_group(0, &sealed, session()).err(), Some(CryptoError::BadChunk));
        assert_eq!(plan.open_group(0, &sealed, &SessionKey::generate()).err(), Some(CryptoError::BadChunk));
        // The peer itself made these, but not for this file: a longer chunk, and a block with more keys than chunks.
        let shorter = self::plan(5 * CHUNK as u64 - 1, 0);
        assert_eq!(shorter.open_group(0, &sealed, session()).err(), Some(CryptoError::BadChunk));
        assert_eq!(plan.open_group(0, &sealed[..3], session()).err(), Some(CryptoError::BadChunk));
    }

    /// PROTOCOL#chunk-keys.
    #[test]
    fn transfer_key_alone_opens_no_chunk() {
        let plan = plan(CHUNK as u64, 0);
        let sealed = plan.seal_group(0, session().public(), &text(CHUNK));
        let part = plan.check(&sealed[0], 0).expect("a right MAC");
        let (mut text, associated) = (part.ciphertext.to_vec(), plan.associated(0));
        let opened = primitives::eax_open(&plan.key, part.nonce, 0, &associated, &mut text, part.tag);
        assert!(opened.is_err());
    }

    #[test]
    fn chunks_and_groups_of_a_file_are_counted_exactly() {
        assert_eq!([0, 1, CHUNK as u64, CHUNK as u64 + 1].map(chunks), [Some(0), Some(1), Some(1), Some(2)]);
        assert_eq!(chunks(u64::MAX), None);
        let plan = plan(2 * CHUNK as u64 + 3, 0);
        assert_eq!([0, 1, 2, 3].map(|index| plan.length(index)), [CHUNK, CHUNK, 3, 0]);
        assert_eq!([0, 1, 3].map(|first| plan.group(first)), [3, 2, 0]);
    }
}
