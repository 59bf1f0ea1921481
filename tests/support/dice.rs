//! A generator of random choices: the same seed repeats the same numbers.

use secure_messenger::crypto::secret::random;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A generator. Clones share their state.
#[derive(Clone)]
pub struct Dice(Arc<AtomicU64>);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(Arc::new(AtomicU64::new(seed)))
    }

    /// A generator seeded from this environment variable, or at random. Prints the seed.
    pub fn named(variable: &str) -> Dice {
        let seed = number(variable, u64::from_be_bytes(random()));
        println!("{variable}={seed}");
        Dice::new(seed)
    }

    pub fn next(&self) -> u64 {
        // SplitMix64: every seed is good.
        let step = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(step, Ordering::Relaxed).wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `end - 1`.
    pub fn below(&self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn bytes(&self, length: usize) -> Vec<u8> {
        let words = (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes());
        words.take(length).collect()
    }
}

/// The number in an environment variable.
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// Random bytes, different in each call.
pub fn noise(length: usize) -> Vec<u8> {
    Dice::new(u64::from_be_bytes(random())).bytes(length)
}
