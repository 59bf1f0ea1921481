//! Counters of what is too frequent to log; the status and the log report them.
//!
//! Invariant: counting takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count since the start.
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Refused connections.
pub static REFUSED: Counter = Counter(AtomicU64::new(0));
/// Envelopes refused because too much waited for the recipient; the sender got `busy`.
pub static BUSY: Counter = Counter(AtomicU64::new(0));
/// Clients closed because they did not read what was sent to them.
pub static SLOW_CLOSED: Counter = Counter(AtomicU64::new(0));
/// Times that a client was throttled.
pub static SLOWED: Counter = Counter(AtomicU64::new(0));
