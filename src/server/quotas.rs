//! Amounts that all sessions share, and counts of events that are too frequent to log each.
//!
//! Invariant: whatever was taken is returned when its [`Permit`] is dropped. Counting takes no lock.

use super::limits::{MAX_PARTIAL, MAX_WAITING_PACKETS, MAX_WRITERS};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// All quotas of a server, and counts since its start.
pub struct Quotas {
    /// Bytes of packets that wait or are not acknowledged.
    pub packets: Arc<Quota>,
    /// Writer threads.
    pub writers: Arc<Quota>,
    /// Bytes of lines and packets that have begun to arrive.
    pub partial: Arc<Quota>,
    /// Refused connections.
    pub refused: AtomicU64,
    /// Envelopes refused because too much waited for the recipient; the sender got `busy`.
    pub busy: AtomicU64,
    /// Clients closed because they did not read what the server sent.
    pub slow_closed: AtomicU64,
    /// How often a client was throttled.
    pub slowed: AtomicU64,
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Quotas {
    /// The counts by their names in status and log.
    pub fn counts(&self) -> [(&'static str, u64); 4] {
        let Quotas { refused, busy, slow_closed, slowed, .. } = self;
        [("refused", refused), ("busy", busy), ("slow_closed", slow_closed), ("slowed", slowed)]
            .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }
}

impl Default for Quotas {
    fn default() -> Self {
        let quota = |limit| Arc::new(Quota { limit, used: AtomicUsize::new(0) });
        let [packets, writers, partial] = [MAX_WAITING_PACKETS, MAX_WRITERS, MAX_PARTIAL].map(quota);
        let [refused, busy, slow_closed, slowed] = Default::default();
        Quotas { packets, writers, partial, refused, busy, slow_closed, slowed }
    }
}

/// A limited amount.
pub struct Quota {
    limit: usize,
    used: AtomicUsize,
}

impl Quota {
    /// The amount that is not taken.
    pub fn left(&self) -> usize {
        self.limit.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    /// Takes an amount, even beyond the limit.
    pub fn take(self: &Arc<Quota>, amount: usize) -> Permit {
        self.used.fetch_add(amount, Ordering::Relaxed);
        Permit { quota: self.clone(), amount }
    }

    /// Takes an amount, if it is within the limit.
    pub fn take_within(self: &Arc<Quota>, amount: usize) -> Option<Permit> {
        let fits = |used: usize| used.checked_add(amount).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Permit { quota: self.clone(), amount })
    }
}

/// An amount that was taken.
pub struct Permit {
    quota: Arc<Quota>,
    amount: usize,
}

impl Permit {
    /// Changes the amount, even beyond the limit.
    pub fn resize(&mut self, amount: usize) {
        *self = self.quota.take(amount);
    }

    /// The amount.
    pub fn amount(&self) -> usize {
        self.amount
    }

    /// Whether all permits together are within the limit.
    pub fn is_within(&self) -> bool {
        self.quota.used.load(Ordering::Relaxed) <= self.quota.limit
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.quota.used.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permit_counts_until_it_is_dropped() {
        let quotas = Quotas::default();
        let writers = (0..MAX_WRITERS).map(|_| quotas.writers.take_within(1)).collect::<Vec<_>>();
        assert!(writers.iter().all(Option::is_some) && quotas.writers.take_within(1).is_none());
        assert_eq!(quotas.writers.left(), 0);
        let mut more = quotas.writers.take(2);
        assert!(!more.is_within());
        more.resize(0);
        assert!(more.is_within() && more.amount() == 0);
        drop((writers, more));
        assert_eq!(quotas.writers.left(), MAX_WRITERS);
    }
}
