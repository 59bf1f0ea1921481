//! Every limit of the server in one place, and the counters that enforce them.
//!
//! Invariant: what an unauthenticated peer can make the server hold is bounded per address and in all; when a
//! bound is reached the oldest or the newcomer goes, and nobody who is logged in notices.

use crate::name::Username;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::lock;

/// TLS handshake and first line: enough for a slow line, too short to be worth holding open.
pub const FIRST_LINE: Duration = Duration::from_secs(10);
/// From the first line to the end of a login: time for the slowest hash that is accepted, and for another name.
pub const LOGIN: Duration = Duration::from_secs(300);
/// Lines of one connection before it is logged in: a registration and a login have three.
pub const LINES_BEFORE_LOGIN: u32 = 32;
/// A silent client is asked for a sign of life after this time: a third of [`DEAD_AFTER`].
pub const PING_AFTER: Duration = Duration::from_secs(30);
/// A client that was silent for this long is gone: it has left a ping unanswered for a minute.
pub const DEAD_AFTER: Duration = Duration::from_secs(90);
/// Presence is told at most this often: a person does not notice the delay.
pub const PRESENCE_INTERVAL: Duration = Duration::from_millis(200);
/// Bytes of send buffer that the kernel is asked for: what a client does not read takes 0.4 MB there instead of 3.9.
pub const SEND_BUFFER: usize = 128 * 1024;
/// Bytes of packets that wait for all clients together, or were not acknowledged yet: those who send to a client that
/// takes none are read more slowly long before.
pub const MAX_WAITING_PACKETS: usize = 256 * 1024 * 1024;
/// A packet for which there is no room waits this long, and its sender with it: a recipient who is only slow reads on by
/// then.
pub const PACKET_PATIENCE: Duration = Duration::from_secs(5);
/// A line or packet that a client has begun must be whole after this time: a mebibyte at 9 KiB a second.
const LINE: Duration = Duration::from_secs(120);
/// Bytes of lines and packets that all clients have begun and not finished; whose is longer than [`SMALL_LINE`] then loses
/// the connection. Hundreds of people who talk to a thousand at once are far below.
const MAX_UNFINISHED: usize = 256 * 1024 * 1024;
/// See [`MAX_UNFINISHED`]: a chunk of a file, or a message to a hundred people.
const SMALL_LINE: usize = 66 * 1024;
/// Both sides acknowledge after so many frames, or bytes: seldom enough to cost nothing, and far below what may be kept.
pub const ACK_AFTER_FRAMES: u64 = 32;
/// See [`ACK_AFTER_FRAMES`].
pub const ACK_AFTER_BYTES: usize = 128 * 1024;
/// The smallest outbox, in bytes: what a client need not have acknowledged yet, and an envelope, leave it open.
pub const MIN_OUTBOX: usize = 192 * 1024;
/// A session outlives its connection by this time: enough to change networks, too short to look on-line for long.
const GRACE: Duration = Duration::from_secs(60);
/// A resumption waits this long for the thread of the former connection, which looks up every [`NOTICE`].
pub const RESUME_PATIENCE: Duration = Duration::from_secs(2);
/// Who waits for something else looks this often whether their connection was taken over: a resumption hardly waits.
pub const NOTICE: Duration = Duration::from_millis(50);
/// Writer threads for clients that do not keep up, 128 KiB of stack each; more stalled ones than this are closed.
pub const MAX_WRITERS: usize = 1024;
/// File descriptors that are not clients: files, the listener, standard streams.
const SPARE_DESCRIPTORS: usize = 64;
/// Memory mappings of a thread (stack, guard, signal stack and its guard); the kernel allows
/// `vm.max_map_count` of them, and a process that runs out aborts.
const MAPPINGS_PER_THREAD: usize = 4;

/// Failed logins after which a name is locked: a person mistypes less often, and 480 guesses a day find no password.
const MAX_FAILURES: u32 = 5;
/// Failed logins after which an address is locked: more than one person may live there.
const MAX_FAILURES_PER_ADDRESS: u32 = 50;
/// Failures are counted, and locks last, for this long: who shuts somebody out on purpose has to do it again and again.
pub const LOCKOUT: Duration = Duration::from_secs(15 * 60);
/// Names and addresses whose failures are remembered, some megabytes; the oldest are forgotten first.
const MAX_REMEMBERED: usize = 20_000;

/// What an operator may adjust; the flags of the server's command line.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections that the machine's own limits allow.
    pub room: usize,
    /// Logged-in clients.
    pub clients: usize,
    /// Connections from one address (IPv6: one /64), logged in or not.
    pub per_address: usize,
    /// Connections that are not logged in yet; when there are more, the oldest goes.
    pub waiting: usize,
    /// Bytes that may wait for one client, or not be acknowledged by it.
    pub outbox: usize,
    /// Requests a second of one client, four seconds' worth at once; faster ones wait.
    pub rate: u32,
    /// New accounts and changed passwords a minute from one address.
    pub registrations: u32,
    /// How long a session outlives its connection.
    pub grace: Duration,
}

impl Limits {
    /// Defaults that the machine's limits on descriptors and memory mappings (`vm.max_map_count`) allow.
    pub fn for_machine(descriptors: usize, max_map_count: usize) -> Limits {
        let threads = max_map_count.saturating_sub(4096) / MAPPINGS_PER_THREAD;
        let room = descriptors.saturating_sub(SPARE_DESCRIPTORS).min(threads.saturating_sub(MAX_WRITERS));
        let waiting = (room / 4).clamp(1, 2048);
        let clients = room.saturating_sub(waiting).max(1);
        Limits {
            room,
            clients,
            per_address: Limits::share(clients),
            waiting,
            outbox: 384 * 1024,
            rate: 100,
            registrations: 120,
            grace: GRACE,
        }
    }

    /// Connections that one address has unless it is told otherwise: half of all, and enough for one household.
    pub fn share(clients: usize) -> usize {
        clients.div_ceil(2).max(16)
    }
}

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

/// Lets connections in and counts them.
pub struct Doors {
    state: Mutex<DoorState>,
    waiting: usize,
    per_address: usize,
    total: usize,
}

#[derive(Default)]
struct DoorState {
    next: u64,
    /// Not logged in yet, oldest first.
    waiting: BTreeMap<u64, Arc<TcpStream>>,
    per_address: HashMap<IpAddr, usize>,
    total: usize,
}

/// A counted connection; counted out when dropped.
pub struct Ticket {
    doors: Arc<Doors>,
    socket: Arc<TcpStream>,
    number: u64,
    origin: IpAddr,
    /// The oldest of those who waited had to go for it.
    pub pushed_out: bool,
}

impl Doors {
    /// See [`Limits`].
    pub fn new(limits: &Limits) -> Doors {
        Doors {
            state: Mutex::default(),
            waiting: limits.waiting,
            per_address: limits.per_address,
            total: limits.clients.saturating_add(limits.waiting),
        }
    }

    /// Counts a new connection in; `None` if its address or the server has too many.
    /// When too many wait for their login, the oldest of them goes.
    pub fn admit(self: &Arc<Doors>, address: IpAddr, socket: &Arc<TcpStream>) -> Option<Ticket> {
        let origin = origin(address);
        let mut state = lock(&self.state);
        let here = state.per_address.get(&origin).copied().unwrap_or(0);
        if here >= self.per_address || state.total >= self.total {
            return None;
        }
        let mut pushed_out = false;
        if state.waiting.len() >= self.waiting
            && let Some((_, oldest)) = state.waiting.pop_first()
        {
            let _ = oldest.shutdown(Shutdown::Both);
            pushed_out = true;
        }
        let number = state.next;
        state.next += 1;
        state.total += 1;
        state.waiting.insert(number, socket.clone());
        *state.per_address.entry(origin).or_default() += 1;
        Some(Ticket { doors: self.clone(), socket: socket.clone(), number, origin, pushed_out })
    }

    /// Connections in all, and how many of them are not logged in.
    pub fn counts(&self) -> (usize, usize) {
        let state = lock(&self.state);
        (state.total, state.waiting.len())
    }
}

impl Ticket {
    /// The connection has logged in: it can no longer be pushed out by newcomers.
    pub fn logged_in(&self) {
        lock(&self.doors.state).waiting.remove(&self.number);
    }

    /// Its session has ended: until the other side closes it, it is among the first to make room for newcomers.
    pub fn logged_out(&self) {
        lock(&self.doors.state).waiting.insert(self.number, self.socket.clone());
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = lock(&self.doors.state);
        state.waiting.remove(&self.number);
        state.total -= 1;
        if let Some(here) = state.per_address.get_mut(&self.origin) {
            *here -= 1;
            if *here == 0 {
                state.per_address.remove(&self.origin);
            }
        }
    }
}

/// Bytes of unfinished lines and packets, of all who are logged in.
static ALL_UNFINISHED: AtomicUsize = AtomicUsize::new(0);

/// A line or packet of one client that is not whole yet: bounded in time, and together with all others' in bytes. Who breaks
/// this loses the connection; the session goes on on another one. README#unfinished.
#[derive(Default)]
pub struct Unfinished {
    bytes: usize,
    since: Option<Instant>,
}

impl Unfinished {
    /// Now it has so many bytes; `anew` if they are another one's than before. False if that is too much, or too old.
    pub fn is_bearable(&mut self, bytes: usize, anew: bool, now: Instant) -> bool {
        let more = bytes.wrapping_sub(self.bytes);
        let all = ALL_UNFINISHED.fetch_add(more, Ordering::Relaxed).wrapping_add(more);
        let since = self.since.filter(|_| !anew && self.bytes > 0).unwrap_or(now);
        (self.bytes, self.since) = (bytes, Some(since));
        let is_old = bytes > 0 && now.duration_since(since) > LINE;
        !is_old && (bytes <= SMALL_LINE || all <= MAX_UNFINISHED)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        ALL_UNFINISHED.fetch_sub(self.bytes, Ordering::Relaxed);
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
    /// See [`Limits::registrations`].
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

/// Who failed to log in, and who is locked for it. README#lockout.
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
        lock(&self.addresses).attempt(origin(address), MAX_FAILURES_PER_ADDRESS)?;
        lock(&self.names).attempt(name.folded(), MAX_FAILURES)
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

    /// README#unfinished.
    #[test]
    fn what_is_not_whole_is_bounded_in_time_and_with_that_of_all_others() {
        let (mut one, start) = (Unfinished::default(), Instant::now());
        let (late, second) = (start + LINE, Duration::from_secs(1));
        assert!(one.is_bearable(1, true, start) && one.is_bearable(2, false, late));
        assert!(!one.is_bearable(3, false, late + second) && !one.is_bearable(3, false, late + second));
        assert!(one.is_bearable(3, true, late + second), "of another line");
        assert!(one.is_bearable(0, true, late) && one.is_bearable(1, false, late + LINE), "none between");
        assert!(one.is_bearable(2, false, late + LINE * 2) && one.is_bearable(0, false, late + LINE * 3));
        // Others count as well, so this is not tried at its very bound.
        let mut many = Unfinished::default();
        assert!(
            one.is_bearable(SMALL_LINE + 1, true, start) && !many.is_bearable(MAX_UNFINISHED, true, start)
        );
        assert!(!one.is_bearable(SMALL_LINE + 1, false, start) && one.is_bearable(SMALL_LINE, false, start));
        drop(many);
        assert!(one.is_bearable(SMALL_LINE + 1, false, start), "there is room again");
    }

    /// README#lockout.
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

    /// README#lockout.
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

    #[test]
    fn failures_are_remembered_in_bounded_memory() {
        let mut failures = Failures::default();
        for n in 0..MAX_REMEMBERED + 100 {
            assert_eq!(failures.attempt(n, 5), Ok(false));
        }
        assert!(failures.of.len() <= MAX_REMEMBERED);
    }

    /// As if `time` had gone by since.
    fn ago(time: Duration) -> Instant {
        Instant::now().checked_sub(time).expect("a clock with a past")
    }

    #[test]
    fn failures_count_and_locks_hold_for_as_long_as_the_readme_says() {
        let readme = include_str!("../../README.md").replace('\n', " ");
        let minutes = LOCKOUT.as_secs() / 60;
        let promise = format!(
            "After {MAX_FAILURES} failures for a name (in any letter case, existing or not) within {minutes} minutes, or \
             {MAX_FAILURES_PER_ADDRESS} from an address, the answer to `login_request` and to step 3 is `locked` with \
             `retry_after` seconds, for {minutes} minutes."
        );
        assert!(readme.contains(&promise), "{promise}");
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
    fn doors_close_at_each_limit_and_open_again_when_somebody_goes() {
        use std::io::{ErrorKind, Read};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let connect = || {
            let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
            (Arc::new(listener.accept().expect("accepted").0), far)
        };
        let limits = Limits { clients: 3, waiting: 2, per_address: 2, ..Limits::for_machine(1024, 65_530) };
        let doors = Arc::new(Doors::new(&limits));
        let house = |n: u8| IpAddr::from([10, 0, 0, n]);
        let admit = |n| doors.admit(house(n), &connect().0);

        let first = [admit(1).expect("let in"), admit(1).expect("let in")];
        assert!(doors.counts() == (2, 2) && admit(1).is_none(), "an address has two");
        first.iter().for_each(Ticket::logged_in);
        assert_eq!(doors.counts(), (2, 0));

        // Two wait; a third one pushes the oldest out, and nobody else.
        let (older, mut older_far) = connect();
        let (newer, mut newer_far) = connect();
        let older = doors.admit(house(2), &older).expect("let in");
        let newer = doors.admit(house(2), &newer).expect("let in");
        assert!(!older.pushed_out && !newer.pushed_out);
        let third = admit(3).expect("let in");
        assert!(third.pushed_out);
        assert_eq!(older_far.read(&mut [0]).expect("shut"), 0);
        newer_far.set_nonblocking(true).expect("a socket");
        assert_eq!(newer_far.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));

        // It counts until its thread has let go of it: three and two are all there may be.
        assert!(doors.counts() == (5, 2) && admit(4).is_none(), "the house is full");
        drop(older);
        assert_eq!(doors.counts(), (4, 2));
        newer.logged_in();
        let fourth = admit(4).expect("let in");
        assert!(!fourth.pushed_out && doors.counts() == (5, 2));

        let [one, other] = first;
        drop(one);
        let again = admit(1).expect("one of the two has gone");
        drop((third, fourth));
        assert!(admit(1).is_none(), "and only one");
        drop((again, other, newer));
        assert_eq!(doors.counts(), (0, 0));
        assert!(lock(&doors.state).per_address.is_empty(), "nothing is kept of those who have gone");
    }

    #[test]
    fn the_readme_s_limits_are_the_ones_that_are_enforced() {
        let readme = include_str!("../../README.md").replace('\n', " ");
        let kib = 1024;
        let thousands = |n: usize| format!("{},{:03}", n / 1000, n % 1000);
        let usual = Limits::for_machine(1 << 20, 65_530);
        for promise in [
            format!(
                "`ack` is sent when {ACK_AFTER_FRAMES} frames or {} KiB have been",
                ACK_AFTER_BYTES / kib
            ),
            format!("waits for many clients ({} MiB in all)", MAX_WAITING_PACKETS / kib / kib),
            format!("perhaps only the latest {} KiB for each", 2 * ACK_AFTER_BYTES / kib),
            format!("if that lasts over {} s, the transfer's grant is taken back", PACKET_PATIENCE.as_secs()),
            format!("the server serves {} at once (a thread each)", thousands(MAX_WRITERS)),
            format!("`--outbox KIB` | {} (at least {})", usual.outbox / kib, MIN_OUTBOX / kib),
            format!("({} with 65,530 mappings)", thousands(usual.clients)),
            format!("`--waiting N` | {} or a quarter", thousands(usual.waiting)),
            format!("`--grace SECONDS` | {} |", usual.grace.as_secs()),
            format!("`--rate N` | {} |", usual.rate),
            format!("`--registrations N` | {} |", usual.registrations),
        ] {
            assert!(readme.contains(&promise), "{promise}");
        }
        assert_eq!([0, 1, 31, 33, 34, 1001].map(Limits::share), [16, 16, 16, 17, 17, 501]);
    }

    #[test]
    fn defaults_fit_the_machine() {
        let exact = Limits::for_machine(SPARE_DESCRIPTORS + 1000, 65_530);
        assert_eq!((exact.room, exact.waiting, exact.clients, exact.per_address), (1000, 250, 750, 375));
        let tiny = Limits::for_machine(0, 0);
        assert_eq!((tiny.room, tiny.waiting, tiny.clients), (0, 1, 1));
        let small = Limits::for_machine(256, 65_530);
        assert!(small.clients + small.waiting + SPARE_DESCRIPTORS <= 256);
        let large = Limits::for_machine(1 << 20, 65_530);
        assert!(large.clients >= 10_000, "{large:?}");
        let threads = large.clients + large.waiting + MAX_WRITERS;
        assert!(threads * MAPPINGS_PER_THREAD < 65_530);
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
