//! Counts of events that are too frequent to log; the status and the log report them.
//!
//! Invariant: counting takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count since the start.
pub struct Metric(AtomicU64);

impl Metric {
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
pub static REFUSED: Metric = Metric(AtomicU64::new(0));
/// Envelopes refused because too much waited for the recipient; the sender got `busy`.
pub static BUSY: Metric = Metric(AtomicU64::new(0));
/// Clients closed because they did not read what the server sent.
pub static SLOW_CLOSED: Metric = Metric(AtomicU64::new(0));
/// How often a client was throttled.
pub static SLOWED: Metric = Metric(AtomicU64::new(0));
