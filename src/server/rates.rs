//! Rate limits: a token bucket for one account, and a counter for many names or addresses.
//!
//! Invariant: a client within its rate never waits. A [`Counter`] remembers at most [`MAX_REMEMBERED`] keys:
//! [`count`](Counter::count) alone does not check this, so a caller whose keys come from clients asks
//! [`has_room`](Counter::has_room) first. A counter reads no clock: callers pass the time.

use super::limits::MAX_REMEMBERED;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The key by which addresses are counted: an IPv4 address, or an IPv6 /64, the smallest network that one user has.
pub(super) fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !0u128 << 64).into()),
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
    /// A full bucket: `rate` tokens a second, and at most `burst` of them at once.
    pub fn new(rate: f64, burst: f64) -> Bucket {
        Bucket { rate, burst, tokens: burst, filled: Instant::now() }
    }

    /// A full bucket for the sessions of an account: `rate` requests a second, and four seconds' worth at once.
    pub fn of_account(rate: u32) -> Arc<Mutex<Bucket>> {
        Arc::new(Mutex::new(Bucket::new(f64::from(rate), f64::from(rate) * 4.0)))
    }

    /// Takes `cost` tokens (a full bucket is always enough), or none.
    ///
    /// # Errors
    /// If it holds fewer: how long to wait for them.
    pub fn take(&mut self, cost: f64) -> Result<(), Duration> {
        let now = Instant::now();
        let gained = now.duration_since(self.filled).as_secs_f64() * self.rate;
        self.tokens = (self.tokens + gained).min(self.burst);
        self.filled = now;
        let cost = cost.min(self.burst);
        if self.tokens >= cost {
            self.tokens -= cost;
            Ok(())
        } else {
            // A millisecond more, or rounding could make the wait too short.
            Err(Duration::from_secs_f64((cost - self.tokens) / self.rate + 0.001))
        }
    }

    /// Takes `cost` tokens, even if the bucket does not hold them: later calls of [`take`](Bucket::take) then wait
    /// longer. A negative cost gives tokens back.
    pub fn charge(&mut self, cost: f64) {
        self.tokens -= cost;
    }
}

/// Counts events by key. A key's interval begins with its first event; `limit` events in it are allowed.
pub struct Counter<K> {
    limit: u64,
    interval: Duration,
    counts: HashMap<K, Count>,
}

#[derive(Clone, Copy)]
struct Count {
    /// Events in this interval, those beyond the limit included.
    events: u64,
    /// The end of the interval.
    until: Instant,
}

impl<K: Clone + Eq + Hash> Counter<K> {
    /// A counter that allows `limit` events of a key in an `interval`.
    pub fn new(limit: u32, interval: Duration) -> Counter<K> {
        Counter { limit: limit.into(), interval, counts: HashMap::new() }
    }

    /// How long `key` has to wait for its next interval, if it has reached the limit.
    pub fn wait(&self, key: &K, now: Instant) -> Option<Duration> {
        let count = self.counts.get(key).filter(|count| count.events >= self.limit)?;
        Some(count.until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Whether `key` may be counted: up to [`MAX_REMEMBERED`] keys are remembered.
    pub fn has_room(&self, key: &K) -> bool {
        self.counts.len() < MAX_REMEMBERED || self.counts.contains_key(key)
    }

    /// Counts an event, allowed or not. Returns the number of events in this interval and, if a new interval begins,
    /// the number of events that the former one had beyond the limit, else 0.
    pub fn count(&mut self, key: K, now: Instant) -> (u64, u64) {
        let fresh = Count { events: 0, until: now + self.interval };
        let count = self.counts.entry(key).or_insert(fresh);
        let former = if count.until <= now { std::mem::replace(count, fresh) } else { fresh };
        count.events += 1;
        (count.events, former.events.saturating_sub(self.limit))
    }

    /// Counts an allowed event, and makes room for it.
    ///
    /// # Errors
    /// How long to wait, if it is beyond the limit; it is not counted then.
    pub fn take(&mut self, key: K, now: Instant) -> Result<(), Duration> {
        if let Some(wait) = self.wait(&key, now) {
            return Err(wait);
        }
        self.make_room(&key, now);
        self.count(key, now);
        Ok(())
    }

    /// Takes one event back.
    pub fn uncount(&mut self, key: &K) {
        if let Some(count) = self.counts.get_mut(key) {
            count.events = count.events.saturating_sub(1);
        }
    }

    /// Blocks `key` until then, as if it had reached the limit.
    pub fn hold(&mut self, key: K, until: Instant) {
        self.counts.insert(key, Count { events: self.limit, until });
    }

    /// Forgets the events of `key`.
    pub fn forget(&mut self, key: &K) {
        self.counts.remove(key);
    }

    /// Forgets intervals that are over. Returns the number of events beyond the limit of each key that had some.
    pub fn forget_expired(&mut self, now: Instant) -> Vec<(K, u64)> {
        let limit = self.limit;
        let expired = self.counts.extract_if(|_, count| count.until <= now);
        expired
            .filter(|(_, count)| count.events > limit)
            .map(|(key, count)| (key, count.events - limit))
            .collect()
    }

    /// Counts an event, allowed or not, and makes room for it. A key that reaches the limit is blocked for a whole
    /// interval from now on; returns whether this event reaches it.
    pub fn count_failure(&mut self, key: K, now: Instant) -> bool {
        self.make_room(&key, now);
        let is_last = self.count(key.clone(), now).0 == self.limit;
        if is_last {
            self.hold(key, now + self.interval);
        }
        is_last
    }

    /// Forgets intervals that are over; if there are none, the oldest of the keys with the fewest events. So a storm of
    /// new keys resets no key that is closer to the limit.
    fn make_room(&mut self, key: &K, now: Instant) {
        if !self.has_room(key) {
            self.forget_expired(now);
        }
        if !self.has_room(key) {
            let fewest = self.counts.iter().min_by_key(|(_, count)| (count.events, count.until));
            if let Some(fewest) = fewest.map(|(key, _)| key.clone()) {
                self.counts.remove(&fewest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The moment `time` ago.
    fn ago(time: Duration) -> Instant {
        Instant::now().checked_sub(time).expect("a clock with a past")
    }

    #[test]
    fn bucket_gives_its_burst_at_once_and_then_its_rate() {
        // So slow that load on the machine makes no difference.
        let mut bucket = Bucket::new(0.01, 3.0);
        assert_eq!((bucket.take(2.0), bucket.take(1.0)), (Ok(()), Ok(())));
        let wait = bucket.take(2.0).expect_err("empty").as_secs_f64();
        assert!((190.0..200.1).contains(&wait), "{wait}");
        // A refusal costs nothing, and the announced wait is long enough.
        bucket.filled = ago(Duration::from_secs_f64(wait));
        assert_eq!(bucket.take(2.0), Ok(()));
        assert!(bucket.take(0.1).is_err());
        bucket.filled = ago(Duration::from_secs(100_000));
        assert_eq!((bucket.take(3.0), bucket.take(0.1).is_err()), (Ok(()), true), "never more than a burst");
        bucket.filled = ago(Duration::from_secs(1_000));
        assert_eq!(bucket.take(1_000.0), Ok(()), "a full one is always enough");
        assert!(bucket.take(0.1).is_err());
    }

    const MINUTE: Duration = Duration::from_secs(60);

    /// PROTOCOL#registration-limit.
    #[test]
    fn counter_allows_its_limit_in_each_interval() {
        let (mut counter, start) = (Counter::new(2, MINUTE), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!((counter.take("here", start), counter.take("here", at(10))), (Ok(()), Ok(())));
        assert_eq!(counter.take("here", at(20)), Err(MINUTE * 2 / 3), "from the first event on");
        assert_eq!(counter.take("there", at(20)), Ok(()));
        assert_eq!(counter.wait(&"here", at(59)), Some(Duration::from_secs(1)));
        assert_eq!((counter.wait(&"here", at(60)), counter.wait(&"elsewhere", at(0))), (None, None));
        assert_eq!((counter.take("here", at(60)), counter.take("here", at(119))), (Ok(()), Ok(())));
        assert_eq!(counter.take("here", at(119)), Err(Duration::from_secs(1)));
        counter.uncount(&"here");
        assert_eq!(counter.take("here", at(119)), Ok(()), "an event taken back counts no more");
        counter.forget(&"here");
        assert_eq!(counter.take("here", at(119)), Ok(()));
        counter.hold("here", at(200));
        assert_eq!(counter.take("here", at(199)), Err(Duration::from_secs(1)));
        assert_eq!(counter.take("here", at(200)), Ok(()));
    }

    #[test]
    fn counter_reports_events_beyond_the_limit_once() {
        let (mut counter, start) = (Counter::new(3, MINUTE), Instant::now());
        let counted: Vec<_> = (0..5).map(|_| counter.count("here", start)).collect();
        assert_eq!(counted, [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0)]);
        assert_eq!(counter.count("here", start + MINUTE), (1, 2));
        assert_eq!(counter.count("here", start + 2 * MINUTE), (1, 0), "once");
        for _ in 0..9 {
            counter.count("there", start + MINUTE);
        }
        assert!(counter.forget_expired(start + MINUTE).is_empty(), "the minute is not over");
        assert_eq!(counter.forget_expired(start + 2 * MINUTE), [("there", 6)]);
        assert_eq!(counter.counts.len(), 1);
    }

    /// A full counter: key 0 has reached the limit of 2, and the intervals of keys 1 to `expired` are over.
    fn full(expired: usize) -> (Counter<usize>, Instant) {
        let (mut counter, start) = (Counter::new(2, MINUTE), Instant::now());
        counter.hold(0, start + MINUTE);
        for key in 1..MAX_REMEMBERED {
            let age = if key <= expired { MINUTE } else { MINUTE / 2 };
            counter.count(key, start - age);
        }
        (counter, start)
    }

    /// PROTOCOL#registration-limit.
    #[test]
    fn full_counter_takes_new_keys_and_stays_bounded() {
        let (mut counter, start) = full(0);
        let new = MAX_REMEMBERED;
        assert!(!counter.has_room(&new) && counter.has_room(&1));
        assert_eq!(counter.take(1, start), Ok(()));
        for key in new..new + 100 {
            assert_eq!((counter.take(key, start), counter.counts.len()), (Ok(()), MAX_REMEMBERED));
        }
        assert!(counter.wait(&0, start).is_some(), "a key at the limit stays");
        let (mut counter, start) = full(100);
        assert_eq!(counter.take(new, start), Ok(()));
        assert_eq!(counter.counts.len(), MAX_REMEMBERED - 99);
        assert!(counter.wait(&0, start).is_some(), "a key whose interval is not over stays");
    }

    #[test]
    fn failure_at_the_limit_holds_for_a_whole_interval() {
        let (mut counter, start) = (Counter::new(3, MINUTE), Instant::now());
        let late = start + MINUTE - Duration::from_secs(1);
        let failures = [start, start, late].map(|now| counter.count_failure("here", now));
        assert_eq!(failures, [false, false, true]);
        assert_eq!(counter.wait(&"here", late), Some(MINUTE), "from the last failure on, not from the first");
        // After a lock, counting starts again: the next failure is the first.
        let failures = [MINUTE; 3].map(|later| counter.count_failure("here", late + later));
        assert_eq!(failures, [false, false, true]);
        counter.count_failure("there", start);
        counter.count_failure("there", start);
        let failures = [MINUTE; 3].map(|later| counter.count_failure("there", start + later));
        assert_eq!(failures, [false, false, true], "the first two are forgotten");
    }

    #[test]
    fn full_counter_forgets_the_fewest_and_oldest_first() {
        let (mut counter, start) = full(0);
        let new = MAX_REMEMBERED;
        counter.hold(0, start + MINUTE / 4);
        counter.counts.get_mut(&5).expect("there").until = start + MINUTE / 3;
        counter.make_room(&1, start);
        assert_eq!(counter.counts.len(), MAX_REMEMBERED, "a known key needs no room");
        counter.make_room(&new, start);
        assert_eq!(counter.counts.len(), MAX_REMEMBERED - 1);
        assert!(!counter.counts.contains_key(&5) && counter.wait(&0, start).is_some());
        // If all keys are at the limit, the oldest is forgotten; expired ones are forgotten first, all at once.
        counter.count(new, start);
        counter.counts.values_mut().for_each(|count| count.events = 2);
        assert!(!counter.count_failure(5, start), "its first");
        assert!(!counter.counts.contains_key(&0) && counter.counts.len() == MAX_REMEMBERED);
        counter.make_room(&0, start + MINUTE / 2);
        assert_eq!(counter.counts.len(), 2, "those counted now");
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
