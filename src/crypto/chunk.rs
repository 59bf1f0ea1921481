//! Files in chunks: each under its own fresh key, the keys of five wrapped in one RSA block.
//!
//! Invariant: nothing is decrypted before its HMAC under the transfer key was checked, which only the
//! two sides know; a chunk opens in its own place of its own transfer alone. The transfer key
//! proves who made a chunk, the RSA blocks keep it secret when the transfer key is lost later.
//! Specification: PROTOCOL#chunks.

use super::keys::SessionKey;
use super::primitives::{self, Tag};
use super::public::{OAEP_BYTES, RSA_BYTES, SessionPublicKey};
use super::secret::{Key, random};
use super::{CryptoError, Fields, label};
use zeroize::Zeroizing;

/// Bytes of a file in one chunk, 64 KiB; the last one may have fewer. PROTOCOL#chunk.
pub const CHUNK: usize = 64 * 1024;
/// Chunks whose keys share an RSA block: as many as fit, 32 bytes each.
pub const GROUP: u32 = 5;
const _: () = assert!(GROUP as usize * 32 <= OAEP_BYTES);

/// What names a transfer: 16 bytes, random, made by the sender. The server sees it and nothing else of the transfer.
pub type TransferId = [u8; 16];

/// What both sides know of a transfer when it begins.
pub struct Plan {
    /// Also in every MAC and in the associated data: a chunk of another transfer does not open.
    pub id: TransferId,
    /// The transfer key, from the offer: 32 bytes that only the two sides know.
    pub key: Key,
    /// Bytes of the whole file: less than 2^32 chunks, which is checked before a plan is made.
    pub size: u64,
    /// The first chunk that is sent; those before it are there already. Groups are counted from it.
    pub start: u32,
}

/// A chunk that was checked and decrypted where it lay.
pub struct Opened {
    payload: Vec<u8>,
    from: usize,
}

impl Opened {
    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.payload[self.from..]
    }
}

/// How many chunks a file of `size` bytes has; `None` if they cannot be counted with 32 bits.
pub fn chunks(size: u64) -> Option<u32> {
    u32::try_from(size.div_ceil(CHUNK as u64)).ok()
}

// Where the fields of a payload begin.
const MAC: usize = 4;
const NONCE: usize = MAC + 32;
const TAG: usize = NONCE + 12;
const KEYS: usize = TAG + 16;

impl Plan {
    /// All chunks of the file: 0 of an empty one.
    pub fn chunks(&self) -> u32 {
        chunks(self.size).unwrap_or(u32::MAX)
    }

    /// Chunks in the group that begins with chunk `first`: [`GROUP`], fewer at the end, 0 behind it.
    pub fn group(&self, first: u32) -> u32 {
        GROUP.min(self.chunks().saturating_sub(first))
    }

    /// Bytes of chunk `index`; 0 behind the end of the file.
    pub fn length(&self, index: u32) -> usize {
        let before = u64::from(index) * CHUNK as u64;
        usize::try_from(self.size.saturating_sub(before)).map_or(CHUNK, |rest| rest.min(CHUNK))
    }

    /// PROTOCOL#chunk-mac.
    fn mac(&self, index: u32, keys: &[u8], nonce: &[u8], tag: &[u8]) -> Vec<u8> {
        let fields = Fields::new(label::CHUNK).bytes(&self.id).number(index.into());
        fields.bytes(keys).bytes(nonce).bytes(tag).finish()
    }

    /// PROTOCOL#chunk-ciphertext.
    fn associated(&self, index: u32) -> Vec<u8> {
        Fields::new(label::CHUNK).bytes(&self.id).number(index.into()).finish()
    }

    /// PROTOCOL#chunk-keys.
    fn oaep_label(&self, first: u32) -> [u8; 32] {
        primitives::sha256(&Fields::new(label::CHUNK_KEYS).bytes(&self.id).number(first.into()).finish())
    }

    /// Encrypts the group that begins with chunk `first`; `data` is all of its bytes. A payload for each chunk:
    /// index ‖ MAC ‖ nonce ‖ tag ‖ RSA block (of a group's first alone) ‖ ciphertext.
    ///
    /// # Panics
    /// If `data` has not the group's length.
    pub fn seal_group(&self, first: u32, recipient: &SessionPublicKey, data: &[u8]) -> Vec<Vec<u8>> {
        let keys = Zeroizing::new(random::<{ GROUP as usize * 32 }>());
        let keys = &keys[..self.group(first) as usize * 32];
        let block = recipient.wrap(keys, self.oaep_label(first));
        let chunks = data.chunks(CHUNK).zip(keys.chunks(32)).zip(first..);
        let sealed: Vec<Vec<u8>> = chunks
            .map(|((text, key), index)| {
                assert_eq!(text.len(), self.length(index), "the caller has read the whole chunk");
                let block: &[u8] = if index == first { &block } else { &[] };
                let key = Key::from_slice(key).expect("cut to 32 bytes");
                let nonce: [u8; 12] = random();
                let mut payload = Vec::with_capacity(KEYS + block.len() + text.len());
                payload.extend_from_slice(&index.to_be_bytes());
                payload.resize(KEYS, 0);
                payload.extend_from_slice(block);
                payload.extend_from_slice(text);
                let ciphertext = &mut payload[KEYS + block.len()..];
                let tag = primitives::eax_seal(&key, &nonce, index, &self.associated(index), ciphertext);
                let mac = primitives::hmac(&self.key, &self.mac(index, block, &nonce, &tag));
                payload[MAC..NONCE].copy_from_slice(&mac);
                payload[NONCE..TAG].copy_from_slice(&nonce);
                payload[TAG..KEYS].copy_from_slice(&tag);
                payload
            })
            .collect();
        assert_eq!(sealed.len(), self.group(first) as usize, "the caller has read the whole group");
        sealed
    }

    /// Reverses [`Plan::seal_group`] for the payloads of a whole group; about 2 ms, most of it RSA. All of
    /// them are checked before anything is decrypted.
    ///
    /// # Errors
    /// [`CryptoError::WrongChunk`] for a chunk of this transfer that is not due here,
    /// [`CryptoError::BadChunk`] for anything else.
    pub fn open_group(
        &self,
        first: u32,
        payloads: Vec<Vec<u8>>,
        session: &SessionKey,
    ) -> Result<Vec<Opened>, CryptoError> {
        for (payload, due) in payloads.iter().zip(first..) {
            self.check(payload, due)?;
        }
        let block = payloads.first().and_then(|payload| payload.get(KEYS..)?.first_chunk());
        let keys = session.unwrap(block.ok_or(CryptoError::BadChunk)?, self.oaep_label(first));
        let keys = keys.map_err(|_| CryptoError::BadChunk)?;
        if keys.len() != payloads.len() * 32 {
            return Err(CryptoError::BadChunk);
        }
        let chunks = payloads.into_iter().zip(keys.chunks(32)).zip(first..);
        let open = |((mut payload, key), index): ((Vec<u8>, &[u8]), u32)| {
            let key = Key::from_slice(key).ok_or(CryptoError::BadChunk)?;
            let nonce: [u8; 12] = payload[NONCE..TAG].try_into().expect("checked");
            let tag: Tag = payload[TAG..KEYS].try_into().expect("checked");
            let from = if index == first { KEYS + RSA_BYTES } else { KEYS };
            primitives::eax_open(&key, &nonce, index, &self.associated(index), &mut payload[from..], &tag)
                .map_err(|_| CryptoError::BadChunk)?;
            Ok(Opened { payload, from })
        };
        chunks.map(open).collect()
    }

    /// Whether a payload was made by the other side, for the place `due`.
    fn check(&self, payload: &[u8], due: u32) -> Result<(), CryptoError> {
        let (head, rest) = payload.split_at_checked(KEYS).ok_or(CryptoError::BadChunk)?;
        let index = u32::from_be_bytes(head[..MAC].try_into().expect("four bytes"));
        let block = if index.wrapping_sub(self.start).is_multiple_of(GROUP) { RSA_BYTES } else { 0 };
        let (block, ciphertext) = rest.split_at_checked(block).ok_or(CryptoError::BadChunk)?;
        let signed = self.mac(index, block, &head[NONCE..TAG], &head[TAG..KEYS]);
        if !primitives::hmac_matches(&self.key, &signed, &head[MAC..NONCE]) {
            return Err(CryptoError::BadChunk);
        }
        if index != due {
            return Err(CryptoError::WrongChunk);
        }
        if ciphertext.len() != self.length(index) {
            return Err(CryptoError::BadChunk);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::OnceLock;

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
    fn every_length_survives_from_every_start() {
        for size in [1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, 5 * CHUNK + 1, 7 * CHUNK + 3] {
            let whole = text(size);
            for start in [0, 1, 2] {
                let plan = plan(size as u64, start);
                let (mut first, mut got) = (start, Vec::new());
                while first < plan.chunks() {
                    let from = first as usize * CHUNK;
                    let to = size.min(from + GROUP as usize * CHUNK);
                    let sealed = plan.seal_group(first, session().public(), &whole[from..to]);
                    let opened = plan.open_group(first, sealed, session()).expect("opens");
                    opened.iter().for_each(|chunk| got.extend_from_slice(chunk.bytes()));
                    first += plan.group(first);
                }
                assert!(got == whole[(start as usize * CHUNK).min(size)..], "{size} from {start}");
            }
        }
    }

    /// PROTOCOL#chunk-mac, PROTOCOL#chunk-order.
    #[test]
    fn nothing_altered_moved_or_repeated_opens() {
        let plan = plan(7 * CHUNK as u64, 0);
        let whole = text(7 * CHUNK);
        let sealed = plan.seal_group(0, session().public(), &whole[..5 * CHUNK]);
        let open = |payloads: Vec<Vec<u8>>| plan.open_group(0, payloads, session()).err();
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
        assert_eq!(moved.open_group(0, sealed.clone(), session()).err(), Some(CryptoError::BadChunk));
        let other = Plan { key: Key::new([9; 32]), ..self::plan(plan.size, 0) };
        assert_eq!(
            changed(&|all| all[4] = other.seal_group(0, session().public(), &whole[..5 * CHUNK])[4].clone()),
            Some(CryptoError::BadChunk)
        );
        assert_eq!(other.open_group(0, sealed.clone(), session()).err(), Some(CryptoError::BadChunk));
        assert_eq!(plan.open_group(0, sealed, &SessionKey::generate()).err(), Some(CryptoError::BadChunk));
    }

    #[test]
    fn the_shape_of_a_file_is_counted_right() {
        assert_eq!([0, 1, CHUNK as u64, CHUNK as u64 + 1].map(chunks), [Some(0), Some(1), Some(1), Some(2)]);
        assert_eq!(chunks(u64::MAX), None);
        let plan = plan(2 * CHUNK as u64 + 3, 0);
        assert_eq!([0, 1, 2, 3].map(|index| plan.length(index)), [CHUNK, CHUNK, 3, 0]);
        assert_eq!([0, 1, 3].map(|first| plan.group(first)), [3, 2, 0]);
    }
}
