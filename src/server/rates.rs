//! How often somebody may ask for something.
//!
//! Invariant: who is within the rate never waits, and what is remembered of those who are not is bounded.

use super::limits::MAX_REMEMBERED;
use crate::sync::lock;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// One person's share of an IPv6 network is a /64.
pub(super) fn origin(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6((u128::from(v6) & !0u128 << 64).into()),
        },
        v4 => v4,
    }
}

/// A token bucket.
pub struct Bucket {
    /// Tokens a second.
    rate: f64,
    /// The most tokens it holds.
    burst: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full one: `rate` tokens a second, and at most `burst` of them at once.
    pub fn new(rate: f64, burst: f64) -> Bucket {
        Bucket { rate, burst, tokens: burst, filled: Instant::now() }
    }

    /// Takes `cost` tokens (a full bucket is always enough), or none.
    ///
    /// # Errors
    /// If it holds fewer: how long to wait for them.
    pub fn take(&mut self, cost: f64) -> Result<(), Duration> {
        self.fill();
        let cost = cost.min(self.burst);
        if self.tokens >= cost {
            self.tokens -= cost;
            Ok(())
        } else {
            // A little more than it takes, against rounding.
            Err(Duration::from_secs_f64((cost - self.tokens) / self.rate + 0.001))
        }
    }

    fn fill(&mut self) {
        let now = Instant::now();
        let gained = now.duration_since(self.filled).as_secs_f64() * self.rate;
        self.tokens = (self.tokens + gained).min(self.burst);
        self.filled = now;
    }
}

/// Registrations by address.
pub struct Registrations {
    per_minute: f64,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

impl Registrations {
    /// See [`Limits::registrations`](super::limits::Limits::registrations).
    pub fn new(per_minute: u32) -> Registrations {
        Registrations { per_minute: f64::from(per_minute.max(1)), buckets: Mutex::default() }
    }

    /// Counts one registration, or none.
    ///
    /// # Errors
    /// If its address (IPv6: its /64) has made too many: how long it has to wait.
    pub fn take(&self, address: IpAddr) -> Result<(), Duration> {
        let mut buckets = lock(&self.buckets);
        if buckets.len() >= MAX_REMEMBERED {
            buckets.retain(|_, bucket| {
                bucket.fill();
                bucket.tokens < bucket.burst
            });
            if buckets.len() >= MAX_REMEMBERED {
                return Err(Duration::from_secs(60));
            }
        }
        let fresh = || Bucket::new(self.per_minute / 60.0, self.per_minute);
        buckets.entry(origin(address)).or_insert_with(fresh).take(1.0)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// As if `time` had gone by since.
    pub fn ago(time: Duration) -> Instant {
        Instant::now().checked_sub(time).expect("a clock with a past")
    }

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_then_its_rate() {
        // So slow that a machine under load makes no difference.
        let mut bucket = Bucket::new(0.01, 3.0);
        assert_eq!((bucket.take(2.0), bucket.take(1.0)), (Ok(()), Ok(())));
        let wait = bucket.take(2.0).expect_err("empty").as_secs_f64();
        assert!((190.0..200.1).contains(&wait), "{wait}");
        // What is refused costs nothing, and who waits as long as told has enough.
        bucket.filled = ago(Duration::from_secs_f64(wait));
        assert_eq!(bucket.take(2.0), Ok(()));
        assert!(bucket.take(0.1).is_err());
        bucket.filled = ago(Duration::from_secs(100_000));
        assert_eq!((bucket.take(3.0), bucket.take(0.1).is_err()), (Ok(()), true), "never more than a burst");
        bucket.filled = ago(Duration::from_secs(1_000));
        assert_eq!(bucket.take(1_000.0), Ok(()), "a full one is always enough");
        assert!(bucket.take(0.1).is_err());
    }

    #[test]
    fn registrations_are_counted_by_address_in_bounded_memory() {
        let registrations = Registrations::new(2);
        let (here, there) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        assert_eq!((registrations.take(here), registrations.take(here)), (Ok(()), Ok(())));
        let wait = registrations.take(here).expect_err("too many").as_secs_f64();
        assert!((20.0..30.1).contains(&wait), "{wait}");
        assert_eq!(registrations.take(there), Ok(()));
        let address = |n: usize| IpAddr::from([11, (n >> 16) as u8, (n >> 8) as u8, n as u8]);
        for n in 2..MAX_REMEMBERED {
            assert_eq!(registrations.take(address(n)), Ok(()));
        }
        // Whoever comes to a full memory waits, and those who have waited a minute are forgotten.
        assert_eq!(registrations.take(address(0)), Err(Duration::from_secs(60)));
        for n in 2..102 {
            let mut buckets = lock(&registrations.buckets);
            buckets.get_mut(&address(n)).expect("there").filled = ago(Duration::from_secs(60));
        }
        assert_eq!(registrations.take(address(0)), Ok(()));
        assert_eq!(lock(&registrations.buckets).len(), MAX_REMEMBERED - 99);
        assert!(registrations.take(here).is_err(), "who has not is not");
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_as_one() {
        let a: IpAddr = "2001:db8::1".parse().expect("address");
        let b: IpAddr = "2001:db8::ffff:2".parse().expect("address");
        assert_eq!(origin(a), origin(b));
        assert_ne!(origin(a), origin("2001:db8:0:1::1".parse().expect("address")));
        assert_eq!(origin("::ffff:10.0.0.1".parse().expect("address")), IpAddr::from([10, 0, 0, 1]));
    }
}
