//! The grants of one receiving transfer: limited by its [`Window`], the other transfers, and the speed of the disk.
//!
//! Invariant: at most [`MAX_GRANTED`] chunks of all transfers are in flight, because the server would refuse more; each
//! transfer may always have one. Dropping a [`Grants`] revokes unused grants. Specification: PROTOCOL#asked-for.

use super::window::Window;
use crate::client::queue::Queue;
use crate::crypto::chunk::{GROUP, TransferId};
use crate::encoding::Fixed;
use crate::name::Username;
use crate::protocol::{ClientMessage, Grant, MAX_GRANTED};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// The most files received at once: each has up to five threads and a window of chunks.
pub const MAX_ARRIVING: usize = 8;
/// The most chunks in flight to this client, besides the one that each other transfer may always have.
const MAX_IN_FLIGHT: u32 = MAX_GRANTED + 1 - MAX_ARRIVING as u32;
/// The most granted chunks of all transfers that are not written yet, in flight or being decrypted: 10.5 MiB. Each
/// transfer's share must exceed a group, which can be written only when it is complete.
const MAX_HELD: u32 = MAX_GRANTED + 8 * GROUP;
const _: () = assert!(MAX_HELD / MAX_ARRIVING as u32 > GROUP);

/// The state that all transfers to this client share.
#[derive(Default)]
pub struct Sharing {
    /// The number of files being received.
    arriving: AtomicU32,
    /// The number of their chunks in flight.
    in_flight: AtomicU32,
}

/// The grants of one transfer.
pub struct Grants {
    sharing: Arc<Sharing>,
    queue: Arc<Queue>,
    peer: Username,
    transfer: TransferId,
    window: Window,
    /// The number of chunks that were not granted yet.
    left: u32,
    /// The number of granted chunks that were not written yet.
    held: u32,
}

impl Grants {
    /// Grants for `left` chunks from `peer`.
    pub fn new(
        sharing: Arc<Sharing>,
        queue: Arc<Queue>,
        peer: Username,
        transfer: TransferId,
        left: u32,
    ) -> Grants {
        let arriving = sharing.arriving.fetch_add(1, Ordering::Relaxed) + 1;
        let window = Window::new(MAX_IN_FLIGHT, arriving);
        Grants { sharing, queue, peer, transfer, window, left, held: 0 }
    }

    /// Counts a chunk that has arrived, and grants more if possible. False if none was granted.
    pub fn arrive(&mut self, now: Instant) -> bool {
        let granted = self.window.arrive(self.sharing.arriving.load(Ordering::Relaxed), now);
        if granted {
            self.sharing.in_flight.fetch_sub(1, Ordering::Relaxed);
            self.grant(now);
        }
        granted
    }

    /// Counts chunks that were written.
    pub fn written(&mut self, count: u32) {
        self.held -= count;
        self.grant(Instant::now());
    }

    /// Grants as many chunks as are allowed now.
    pub fn grant(&mut self, now: Instant) {
        let share = MAX_HELD / self.sharing.arriving.load(Ordering::Relaxed).max(1);
        let count = self.window.room().min(share.saturating_sub(self.held)).min(self.left);
        // Do not grant single chunks, because each grant is a line through the server.
        if count == 0 || count < self.window.batch() && count < self.left {
            return;
        }
        let is_first = self.window.in_flight() == 0;
        let take = |all: u32| {
            let free = MAX_IN_FLIGHT.saturating_sub(all).max(u32::from(is_first));
            Some(all + count.min(free))
        };
        let all = self.sharing.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        let count = all.map_or(0, |all| take(all).unwrap_or(all) - all);
        if count > 0 {
            self.left -= count;
            self.held += count;
            self.window.grant(count, now);
            self.say(count);
        }
    }

    fn say(&self, count: u32) {
        let grant = Grant { peer: self.peer.clone(), transfer: Fixed(self.transfer), count };
        // The queue is full only if the server accepts no data, which the session will notice.
        let _ = self.queue.say(&ClientMessage::Grant(grant));
    }
}

impl Drop for Grants {
    fn drop(&mut self) {
        self.sharing.arriving.fetch_sub(1, Ordering::Relaxed);
        self.sharing.in_flight.fetch_sub(self.window.in_flight(), Ordering::Relaxed);
        self.say(0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::window::{FIRST, LONGEST_QUEUE, QUEUE};
    use super::*;

    /// Transfers to one client, of files with this many chunks each.
    struct Arriving {
        sharing: Arc<Sharing>,
        queue: Arc<Queue>,
        all: Vec<Grants>,
        now: Instant,
    }

    impl Arriving {
        fn new(count: usize, chunks: u32) -> Arriving {
            let queue = Arc::new(Queue::default());
            let sharing = Arc::new(Sharing::default());
            let peer: Username = "bob".parse().expect("name");
            let all = (0..count)
                .map(|n| Grants::new(sharing.clone(), queue.clone(), peer.clone(), [n as u8; 16], chunks));
            let (all, now) = (all.collect(), Instant::now());
            Arriving { sharing, queue, all, now }
        }

        /// One chunk of each transfer with chunks in flight arrives without a delay, so that the windows grow, and is
        /// `written`.
        fn round(&mut self, written: bool) {
            for grants in &mut self.all {
                grants.grant(self.now);
                if grants.window.in_flight() > 0 {
                    assert!(grants.arrive(self.now));
                    (0..u32::from(written)).for_each(|_| grants.written(1));
                }
            }
            let in_flight: u32 = self.all.iter().map(|grants| grants.window.in_flight()).sum();
            assert_eq!(self.sharing.in_flight.load(Ordering::Relaxed), in_flight);
            assert!(in_flight <= MAX_GRANTED, "{in_flight} chunks are granted");
        }
    }

    /// PROTOCOL#granted-limit.
    #[test]
    fn chunks_in_flight_of_all_transfers_stay_within_the_limit() {
        let mut arriving = Arriving::new(MAX_ARRIVING, u32::MAX);
        (0..1000).for_each(|_| arriving.round(true));
        // The disk is stuck: received chunks are held, and no transfer gets more than its share.
        (0..1000).for_each(|_| arriving.round(false));
        assert!(arriving.all.iter().all(|grants| grants.held <= MAX_HELD / MAX_ARRIVING as u32));
        arriving.round(true);
        // A transfer that ends leaves its room to the others.
        arriving.all.truncate(1);
        arriving.round(true);
        assert_eq!(arriving.sharing.arriving.load(Ordering::Relaxed), 1);
        arriving.all.clear();
        arriving.round(true);
    }

    #[test]
    fn transfer_may_have_one_chunk_beside_full_transfers() {
        let mut arriving = Arriving::new(1, u32::MAX);
        arriving.sharing.in_flight.store(MAX_GRANTED, Ordering::Relaxed);
        arriving.all[0].grant(arriving.now);
        assert_eq!(arriving.all[0].window.in_flight(), 1);
    }

    #[test]
    fn exactly_the_missing_chunks_are_granted() {
        for chunks in [1, 2, 5, 1001] {
            let mut arriving = Arriving::new(1, chunks);
            (0..chunks).for_each(|_| arriving.round(true));
            let grants = &mut arriving.all[0];
            assert_eq!((grants.left, grants.held, grants.arrive(arriving.now)), (0, 0, false), "{chunks}");
        }
    }

    /// PROTOCOL#grants.
    #[test]
    fn transfer_that_ends_revokes_its_grants() {
        let mut arriving = Arriving::new(1, 10);
        let queue = arriving.queue.clone();
        queue.restart();
        queue.begin();
        arriving.all[0].grant(arriving.now);
        arriving.all.clear();
        queue.end();
        let counts =
            [(); 2].map(|()| match ClientMessage::decode(queue.next().expect("a line")[0].trim_ascii()) {
                Ok(ClientMessage::Grant(grant)) => grant.count,
                _ => panic!("no grant"),
            });
        assert_eq!(counts, [FIRST, 0]);
    }

    #[test]
    fn specification_names_the_limits_of_the_window() {
        let specification = include_str!("../../protocol/PROTOCOL.md").replace('\n', " ");
        for promise in [
            format!("begins with {FIRST} chunks in flight"),
            format!("in a round trip and {} ms, at most {MAX_IN_FLIGHT} chunks", QUEUE.as_millis()),
            format!("over {} ms longer than the shortest", LONGEST_QUEUE.as_millis()),
        ] {
            assert!(specification.contains(&promise), "{promise}");
        }
    }
}
