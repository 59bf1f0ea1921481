//! The number of chunks of a transfer that may be in flight to this client: as many as its line needs, and no more.
//!
//! Invariant: pure; the caller reports grants, arrivals and the time. The window changes once a round, which ends when
//! chunks that were granted in it have arrived. It follows the length of their queue in time: the round trip of the
//! chunk granted last, minus the shortest round trip. A short queue lets the window grow; a long one shrinks it to the
//! amount that the line carries in the target time. The shortest round trip is measured again from time to time, with
//! an empty line, because lines change. Specification: PROTOCOL#asked-for.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The first window: 128 KiB, half a second of a line with 250 kB/s.
pub const FIRST: u32 = 2;
/// The target length of the queue: long enough to keep the line busy, short enough for the messages behind it.
pub const QUEUE: Duration = Duration::from_millis(150);
/// The longest queue that does not shrink the window.
pub const LONGEST_QUEUE: Duration = Duration::from_millis(300);
/// The shortest round trip is measured again after this time; the measurement costs about one round trip.
const REFRESH: Duration = Duration::from_secs(10);

/// The chunks in flight of one transfer, and their limit.
#[derive(Default)]
pub struct Window {
    /// The most chunks in flight now, at most `limit`.
    size: u32,
    limit: u32,
    /// The number of chunks granted, and arrived, so far.
    granted: u64,
    arrived: u64,
    /// Grants with chunks in flight, the oldest first.
    grants: VecDeque<Granted>,
    /// The shortest round trip, and when it was last measured.
    base: Option<(Duration, Instant)>,
    round: Round,
    /// Whether only one chunk may be in flight in this round, so that the line empties.
    measuring: bool,
}

struct Granted {
    /// The number of its last chunk.
    last: u64,
    count: u32,
    sent: Instant,
    /// The round trip of its first chunk.
    first: Option<Duration>,
}

/// Measurements since the round began.
#[derive(Default)]
struct Round {
    /// The last chunk granted when the round began; the round ends with the first grant after it.
    last: u64,
    /// The shortest round trip of any chunk.
    shortest: Option<Duration>,
    /// The most chunks in flight.
    most: u32,
}

impl Window {
    /// A window for at most `limit` chunks. `sharing` is the number of transfers on the line, including this one.
    pub fn new(limit: u32, sharing: u32) -> Window {
        Window { size: (FIRST / sharing.max(1)).max(1), limit, ..Window::default() }
    }

    /// The number of granted chunks that have not arrived.
    pub fn in_flight(&self) -> u32 {
        u32::try_from(self.granted - self.arrived).unwrap_or(u32::MAX)
    }

    /// The number of chunks that may be granted now.
    pub fn room(&self) -> u32 {
        let size = if self.measuring { 1 } else { self.size };
        size.saturating_sub(self.in_flight())
    }

    /// The fewest chunks to grant at a time, because each grant is a line through the server.
    pub fn batch(&self) -> u32 {
        if self.measuring { 1 } else { (self.size / 4).clamp(1, 12) }
    }

    /// Counts granted chunks.
    pub fn grant(&mut self, count: u32, now: Instant) {
        self.granted += u64::from(count);
        self.grants.push_back(Granted { last: self.granted, count, sent: now, first: None });
        self.round.most = self.round.most.max(self.in_flight());
    }

    /// Counts a chunk that has arrived; `sharing` as in [`Window::new`]. False if it was not granted.
    pub fn arrive(&mut self, sharing: u32, now: Instant) -> bool {
        let Some(grant) = self.grants.front_mut() else { return false };
        self.arrived += 1;
        let trip = now.saturating_duration_since(grant.sent);
        let first = *grant.first.get_or_insert(trip);
        let shortest = self.round.shortest.map_or(trip, |shortest| shortest.min(trip));
        self.round.shortest = Some(shortest);
        if self.arrived == grant.last
            && let Some(grant) = self.grants.pop_front()
            && grant.last > self.round.last
        {
            // The time of one chunk, among those in flight.
            let chunk = match grant.count {
                1 => trip / self.size,
                count => trip.saturating_sub(first) / (count - 1),
            };
            self.end_round(shortest, trip, chunk, sharing, now);
        }
        true
    }

    /// `loaded` is the round trip of the chunk granted last, `chunk` the time of each further chunk.
    fn end_round(
        &mut self,
        shortest: Duration,
        loaded: Duration,
        chunk: Duration,
        sharing: u32,
        now: Instant,
    ) {
        let next = Round { last: self.granted, most: self.in_flight(), ..Round::default() };
        let used = std::mem::replace(&mut self.round, next).most;
        let measured = std::mem::take(&mut self.measuring);
        let (base, since) = match self.base {
            Some((base, since)) if base < shortest && !measured => (base, since),
            _ => (shortest, now),
        };
        self.base = Some((base, since));
        if measured {
            return;
        }
        self.measuring = now.saturating_duration_since(since) >= REFRESH;
        let [aim, longest] = [QUEUE, LONGEST_QUEUE].map(|all| all / sharing.max(1));
        let seconds = |duration: Duration| duration.as_secs_f64();
        let (size, queue) = (f64::from(self.size), loaded.saturating_sub(base));
        let size = match queue {
            queue if queue < aim => size + (seconds(aim - queue) / seconds(chunk)).min(2.0 * size).ceil(),
            // The amount that the line carries in the target time.
            queue if queue > longest => (size * seconds(base + aim) / seconds(loaded)).floor(),
            _ => size,
        };
        // Grow only if this round has used the whole window.
        self.size = (size as u32).min(used * 3).clamp(1, self.limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    const CHUNK: f64 = 65_536.0;
    const LIMIT: u32 = 121;

    /// A line that many windows share, with simulated time.
    struct Line {
        now: Instant,
        /// Bytes a second, and the round trip without a queue.
        rate: f64,
        trip: Duration,
        /// The maximum addition to a round trip.
        jitter: Duration,
        busy_until: Instant,
        windows: Vec<Window>,
        /// The arrival time of each chunk, and its window.
        arrivals: BinaryHeap<Reverse<(Instant, usize)>>,
        last: Vec<Instant>,
        random: u32,
    }

    impl Line {
        fn new(rate: f64, trip: u64, windows: usize) -> Line {
            let (now, trip) = (Instant::now(), Duration::from_millis(trip));
            let windows = (0..windows).map(|_| Window::new(LIMIT, windows as u32)).collect::<Vec<_>>();
            let (jitter, last) = (Duration::ZERO, vec![now; windows.len()]);
            let arrivals = BinaryHeap::new();
            Line { now, rate, trip, jitter, busy_until: now, windows, arrivals, last, random: 1 }
        }

        fn grant(&mut self, which: usize) {
            let window = &mut self.windows[which];
            let count = window.room();
            if count < window.batch() {
                return;
            }
            window.grant(count, self.now);
            assert!(window.in_flight() <= LIMIT);
            for _ in 0..count {
                self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let jitter = self.jitter.mul_f64(f64::from(self.random) / f64::from(u32::MAX));
                let sent = self.now + self.trip / 2;
                self.busy_until = self.busy_until.max(sent) + Duration::from_secs_f64(CHUNK / self.rate);
                self.last[which] = self.last[which].max(self.busy_until + self.trip / 2 + jitter);
                self.arrivals.push(Reverse((self.last[which], which)));
            }
        }

        /// Runs for some seconds. Returns the bytes a second of each window, and the longest queue: the time of the
        /// chunks in flight beyond the shortest round trip, which includes one chunk.
        fn run(&mut self, seconds: u64) -> (Vec<f64>, Duration) {
            let end = self.now + Duration::from_secs(seconds);
            let (mut arrived, mut queue) = (vec![0.0; self.windows.len()], Duration::ZERO);
            (0..self.windows.len()).for_each(|which| self.grant(which));
            while let Some(Reverse((at, which))) = self.arrivals.pop() {
                if at > end {
                    self.arrivals.push(Reverse((at, which)));
                    break;
                }
                self.now = at;
                let sharing = self.windows.len() as u32;
                assert!(self.windows[which].arrive(sharing, at));
                arrived[which] += CHUNK;
                self.grant(which);
                let sum: u32 = self.windows.iter().map(Window::in_flight).sum();
                let takes = Duration::from_secs_f64(f64::from(sum) * CHUNK / self.rate);
                let shortest = self.trip + Duration::from_secs_f64(CHUNK / self.rate);
                queue = queue.max(takes.saturating_sub(shortest));
            }
            self.now = end;
            (arrived.iter().map(|bytes| bytes / seconds as f64).collect(), queue)
        }
    }

    fn seconds(duration: Duration) -> f64 {
        duration.as_secs_f64()
    }

    #[test]
    fn window_grows_to_the_capacity_of_a_long_line() {
        for (rate, jitter, share) in [(10e6, 0, 0.9), (30e6, 0, 0.95), (30e6, 60, 0.85)] {
            let mut line = Line::new(rate, 200, 1);
            line.jitter = Duration::from_millis(jitter);
            line.run(3);
            let (arrived, _) = line.run(10);
            assert!(arrived[0] >= share * rate, "{arrived:?} of {rate}");
        }
    }

    #[test]
    fn window_keeps_the_queue_short_on_a_slow_line() {
        for (rate, trip) in [(100e3, 0), (250e3, 0), (250e3, 200), (1e6, 50), (10e6, 200)] {
            let mut line = Line::new(rate, trip, 1);
            let (_, first) = line.run(1);
            line.run(10);
            let (arrived, queue) = line.run(60);
            // A chunk cannot be cut.
            let longest = seconds(LONGEST_QUEUE) + CHUNK / rate;
            assert!(seconds(queue.max(first)) <= longest, "{first:?}, {queue:?}");
            assert!(arrived[0] >= 0.9 * rate, "{arrived:?} of {rate}");
        }
    }

    #[test]
    fn window_follows_a_line_that_changes() {
        let mut line = Line::new(20e6, 100, 1);
        for rate in [20e6, 500e3, 20e6] {
            line.rate = rate;
            line.run(10);
            let (arrived, _) = line.run(10);
            let in_flight = f64::from(line.windows[0].in_flight()) * CHUNK / rate;
            assert!(arrived[0] >= 0.9 * rate, "{arrived:?} of {rate}");
            assert!(in_flight <= 0.1 + seconds(LONGEST_QUEUE) + CHUNK / rate, "{in_flight} s at {rate}");
        }
        // A longer route.
        line.trip = Duration::from_millis(700);
        line.run(20);
        assert!(line.run(10).0[0] >= 9e6);
    }

    #[test]
    fn windows_that_share_a_line_leave_each_other_room() {
        for (rate, trip, windows) in [(250e3, 0, 2), (1e6, 50, 2), (1e6, 50, 8), (10e6, 100, 2)] {
            let mut line = Line::new(rate, trip, windows);
            line.run(20);
            let (arrived, queue) = line.run(60);
            let sum: f64 = arrived.iter().sum();
            assert!(sum >= 0.95 * rate, "{arrived:?} of {rate}");
            assert!(arrived.iter().all(|one| *one >= 0.5 * rate / windows as f64), "{arrived:?} of {rate}");
            // Each window has at least one chunk in flight, and one more while it probes for room.
            let least = 2.0 * windows as f64 * CHUNK / rate;
            assert!(seconds(queue) <= least.max(seconds(LONGEST_QUEUE)), "{queue:?}");
        }
    }

    #[test]
    fn window_begins_small_and_grows_only_as_it_is_used() {
        assert_eq!([1, 2, 8].map(|sharing| Window::new(LIMIT, sharing).room()), [FIRST, 1, 1]);
        let (mut window, now) = (Window::new(LIMIT, 1), Instant::now());
        for _ in 0..100 {
            window.grant(1, now);
            assert!(window.arrive(1, now));
        }
        assert_eq!(window.room(), 3);
    }

    #[test]
    fn chunk_that_was_not_granted_is_refused() {
        let (mut window, now) = (Window::new(LIMIT, 1), Instant::now());
        assert!(!window.arrive(1, now));
        window.grant(2, now);
        assert!(window.arrive(1, now) && window.arrive(1, now) && !window.arrive(1, now));
        assert_eq!(window.in_flight(), 0);
    }
}
