//! Counters of what is too frequent to log; the status and the log report them.
//!
//! Invariant: counting takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the start.
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Connections that were not let in.
pub static REFUSED: Counter = Counter(AtomicU64::new(0));
/// Envelopes not taken for a recipient, because too much waited for them; their sender was told.
pub static BUSY: Counter = Counter(AtomicU64::new(0));
/// Clients closed because they did not take what was sent to them.
pub static SLOW_CLOSED: Counter = Counter(AtomicU64::new(0));
/// Times that a client was read more slowly because it asked for too much.
pub static SLOWED: Counter = Counter(AtomicU64::new(0));
