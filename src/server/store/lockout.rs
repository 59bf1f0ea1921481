//! Who has failed to log in too often. What outlives a restart is for [`locks`](super::locks).
//!
//! Invariant: a name is counted the same whether or not there is such an account; what is remembered is bounded, and no
//! storm of names makes a lock forgotten.

use crate::name::Username;
use crate::server::limits::{LOCKOUT, MAX_FAILURES, MAX_FAILURES_PER_ADDRESS, MAX_REMEMBERED};
use crate::server::rates::origin;
use crate::sync::lock;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Who failed to log in, and who is locked for it. PROTOCOL#lockout.
#[derive(Default)]
pub struct Lockout {
    names: Mutex<Failures<String>>,
    addresses: Mutex<Failures<IpAddr>>,
}

struct Failures<K> {
    of: HashMap<K, Record>,
}

#[derive(Clone, Copy)]
struct Record {
    count: u32,
    /// Of the first failure counted, or of the lock.
    since: Instant,
}

impl<K> Default for Failures<K> {
    fn default() -> Self {
        Failures { of: HashMap::new() }
    }
}

impl<K: std::hash::Hash + Eq + Clone> Failures<K> {
    /// The time until `key` is free again, if it is locked.
    fn locked(&self, key: &K, max: u32) -> Option<Duration> {
        let record = self.of.get(key)?;
        let left = LOCKOUT.checked_sub(record.since.elapsed())?;
        (record.count >= max && !left.is_zero()).then_some(left)
    }

    /// Counts one failure, unless `key` is locked; true if it is from now on.
    fn attempt(&mut self, key: K, max: u32) -> Result<bool, Duration> {
        if let Some(left) = self.locked(&key, max) {
            return Err(left);
        }
        if self.of.len() >= MAX_REMEMBERED {
            self.of.retain(|_, record| record.since.elapsed() < LOCKOUT);
        }
        if self.of.len() >= MAX_REMEMBERED
            && let Some(oldest) =
                self.of.iter().min_by_key(|(_, r)| (r.count >= max, r.since)).map(|(k, _)| k.clone())
        {
            self.of.remove(&oldest);
        }
        let now = Instant::now();
        let record = self.of.entry(key).or_insert(Record { count: 0, since: now });
        if record.since.elapsed() >= LOCKOUT {
            *record = Record { count: 0, since: now };
        }
        record.count += 1;
        if record.count == max {
            record.since = now;
        }
        Ok(record.count == max)
    }
}

impl Lockout {
    /// The time until `name`, or `address`, may try again; `None` if neither is locked.
    pub fn locked(&self, name: &Username, address: IpAddr) -> Option<Duration> {
        let by_name = lock(&self.names).locked(&name.folded(), MAX_FAILURES);
        by_name.or_else(|| lock(&self.addresses).locked(&origin(address), MAX_FAILURES_PER_ADDRESS))
    }

    /// Counts an attempt before it is checked, so that a thousand at once are not a thousand
    /// guesses; true if the name is now locked. A success is taken back by [`Lockout::forgive`].
    ///
    /// # Errors
    /// The time to wait, if name or address was locked already.
    pub fn count(&self, name: &Username, address: IpAddr) -> Result<bool, Duration> {
        let (mut names, folded) = (lock(&self.names), name.folded());
        if let Some(left) = names.locked(&folded, MAX_FAILURES) {
            // Not counted for the address either: it may be the name's owner's.
            return Err(left);
        }
        lock(&self.addresses).attempt(origin(address), MAX_FAILURES_PER_ADDRESS)?;
        names.attempt(folded, MAX_FAILURES)
    }

    /// The attempt was a success: the name starts afresh.
    pub fn forgive(&self, name: &Username, address: IpAddr) {
        lock(&self.names).of.remove(&name.folded());
        if let Some(record) = lock(&self.addresses).of.get_mut(&origin(address)) {
            record.count = record.count.saturating_sub(1);
        }
    }

    /// The name may be tried again at once; true if it was locked.
    pub fn unlock(&self, name: &Username) -> bool {
        let mut names = lock(&self.names);
        let locked = names.locked(&name.folded(), MAX_FAILURES).is_some();
        names.of.remove(&name.folded());
        locked
    }

    /// Locks `folded` for `left` more, as a file from before a restart says.
    pub fn restore(&self, folded: String, left: Duration) {
        let since = Instant::now().checked_sub(LOCKOUT.saturating_sub(left)).unwrap_or_else(Instant::now);
        let record = Record { count: MAX_FAILURES, since };
        let mut names = lock(&self.names);
        if names.of.len() < MAX_REMEMBERED {
            names.of.insert(folded, record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::rates::tests::ago;

    /// PROTOCOL#lockout.
    #[test]
    fn five_failures_lock_a_name_in_any_letter_case_and_a_success_forgives() {
        let lockout = Lockout::default();
        let (alice, upper) = ("alice".parse().expect("name"), "ALICE".parse().expect("name"));
        let here = IpAddr::from([10, 0, 0, 1]);
        for _ in 0..4 {
            assert_eq!(lockout.count(&alice, here), Ok(false));
        }
        lockout.forgive(&alice, here);
        for _ in 0..4 {
            assert_eq!(lockout.count(&upper, here), Ok(false));
        }
        assert_eq!(lockout.locked(&alice, here), None);
        assert_eq!(lockout.count(&alice, here), Ok(true));
        assert!(lockout.count(&alice, here).is_err(), "a locked name is not counted further");
        let left = lockout.locked(&upper, here).expect("locked");
        assert!(left <= LOCKOUT && left > LOCKOUT - Duration::from_secs(60));
        assert_eq!(lockout.locked(&"bob".parse().expect("name"), here), None);
    }

    /// PROTOCOL#lockout.
    #[test]
    fn an_address_that_guesses_at_many_names_is_locked() {
        let lockout = Lockout::default();
        let here = IpAddr::from([10, 0, 0, 1]);
        for n in 0..MAX_FAILURES_PER_ADDRESS {
            assert!(lockout.count(&format!("name{n}").parse().expect("name"), here).is_ok());
        }
        let fresh = "fresh".parse().expect("name");
        assert!(lockout.locked(&fresh, here).is_some());
        assert!(lockout.locked(&fresh, IpAddr::from([10, 0, 0, 2])).is_none());
    }

    /// PROTOCOL#lockout.
    #[test]
    fn locked_name_does_not_count_for_the_address() {
        let (lockout, here) = (Lockout::default(), IpAddr::from([10, 0, 0, 1]));
        let [alice, bob]: [Username; 2] = ["alice", "bob"].map(|name| name.parse().expect("name"));
        for _ in 0..2 * MAX_FAILURES_PER_ADDRESS {
            let _ = lockout.count(&alice, here);
        }
        assert!(lockout.locked(&alice, here).is_some());
        assert_eq!(lockout.locked(&bob, here), None);
    }

    #[test]
    fn failures_are_remembered_in_bounded_memory() {
        let mut failures = Failures::default();
        for n in 0..MAX_REMEMBERED + 100 {
            assert_eq!(failures.attempt(n, 5), Ok(false));
        }
        assert!(failures.of.len() <= MAX_REMEMBERED);
    }

    #[test]
    fn failures_count_and_locks_hold_as_long_as_specified() {
        let specification = include_str!("../../protocol/PROTOCOL.md").replace('\n', " ");
        let minutes = LOCKOUT.as_secs() / 60;
        let promise = format!(
            "After {MAX_FAILURES} failures for a name (in any letter case, existing or not) within {minutes} minutes, or \
             {MAX_FAILURES_PER_ADDRESS} from an address, the answer to `login_request` and to step 3 is `locked` with \
             `retry_after` seconds, for {minutes} minutes."
        );
        assert!(specification.contains(&promise), "{promise}");
        let mut failures = Failures::default();
        let early = ago(LOCKOUT - Duration::from_secs(60));
        failures.of.insert("early", Record { count: 4, since: early });
        failures.of.insert("late", Record { count: 4, since: ago(LOCKOUT) });
        failures.of.insert("locked", Record { count: 5, since: early });
        failures.of.insert("unlocked", Record { count: 5, since: ago(LOCKOUT) });
        assert!(failures.locked(&"locked", 5).is_some_and(|left| left <= Duration::from_secs(60)));
        assert_eq!(failures.locked(&"unlocked", 5), None);
        assert!(failures.attempt("locked", 5).is_err());
        // Of a lock that is over nothing is left: the next failure is the first.
        for name in ["late", "unlocked"] {
            let locks: Vec<_> = (0..5).map(|_| failures.attempt(name, 5)).collect();
            assert_eq!(locks, [Ok(false), Ok(false), Ok(false), Ok(false), Ok(true)], "{name}");
        }
        // A lock lasts from the last failure on, not from the first.
        assert_eq!(failures.attempt("early", 5), Ok(true));
        let left = failures.locked(&"early", 5).expect("locked");
        assert!(left > LOCKOUT - Duration::from_secs(60), "{left:?}");
    }

    #[test]
    fn a_storm_of_names_makes_no_lock_forgotten() {
        let mut failures = Failures::default();
        failures.of.insert(0, Record { count: 5, since: ago(LOCKOUT / 2) });
        failures.of.insert(1, Record { count: 4, since: ago(LOCKOUT / 2) });
        failures.of.insert(2, Record { count: 4, since: ago(LOCKOUT / 3) });
        let since = ago(LOCKOUT / 4);
        failures.of.extend((3..MAX_REMEMBERED).map(|n| (n, Record { count: 1, since })));
        assert_eq!(failures.attempt(MAX_REMEMBERED, 5), Ok(false));
        assert_eq!(failures.of.len(), MAX_REMEMBERED);
        assert!(!failures.of.contains_key(&1), "the oldest that is no lock goes first");
        assert!(failures.locked(&0, 5).is_some() && failures.of[&2].count == 4);
        // When there is nothing but locks, the oldest of them goes; those that are over go before, all at once.
        for record in failures.of.values_mut() {
            record.count = 5;
        }
        assert_eq!(failures.attempt(MAX_REMEMBERED + 1, 5), Ok(false));
        assert!(!failures.of.contains_key(&0) && failures.of.len() == MAX_REMEMBERED);
        for n in 3..103 {
            failures.of.get_mut(&n).expect("there").since = ago(LOCKOUT);
        }
        assert_eq!(failures.attempt(MAX_REMEMBERED + 2, 5), Ok(false));
        assert_eq!(failures.of.len(), MAX_REMEMBERED - 99);
    }

    #[test]
    fn a_success_takes_back_its_own_attempt_and_no_other() {
        let lockout = Lockout::default();
        let here = IpAddr::from([10, 0, 0, 1]);
        let name = |n: u32| format!("name{n}").parse::<Username>().expect("name");
        for n in 1..MAX_FAILURES_PER_ADDRESS {
            assert_eq!(lockout.count(&name(n), here), Ok(false));
        }
        for _ in 0..10 {
            assert_eq!(lockout.count(&name(0), here), Ok(false), "the last one before the lock");
            assert!(lockout.locked(&name(0), here).is_some());
            lockout.forgive(&name(0), here);
            assert_eq!(lockout.locked(&name(0), here), None);
        }
    }

    #[test]
    fn an_operator_unlocks_a_name_and_a_restart_does_not() {
        let lockout = Lockout::default();
        let (alice, here) = ("Alice".parse().expect("name"), IpAddr::from([10, 0, 0, 1]));
        assert!(!lockout.unlock(&alice));
        lockout.restore("alice".into(), Duration::from_secs(100));
        let left = lockout.locked(&alice, here).expect("locked");
        assert!(left <= Duration::from_secs(100) && left > Duration::from_secs(40), "{left:?}");
        assert!(lockout.unlock(&alice) && !lockout.unlock(&alice));
        assert_eq!(lockout.locked(&alice, here), None);
        for _ in 0..4 {
            assert_eq!(lockout.count(&alice, here), Ok(false));
        }
        assert!(!lockout.unlock(&alice), "it was not locked yet");
        assert_eq!(lockout.count(&alice, here), Ok(false), "and starts afresh all the same");
        // A file is no way to fill the memory.
        for n in 0..MAX_REMEMBERED + 100 {
            lockout.restore(format!("name{n}"), LOCKOUT);
        }
        assert_eq!(lock(&lockout.names).of.len(), MAX_REMEMBERED);
    }
}
