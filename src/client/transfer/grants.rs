//! What one transfer that arrives has granted: as many chunks as its [`Window`] says, as the other transfers leave, and as
//! the disk has written.
//!
//! Invariant: the chunks in flight of all transfers are at most [`MAX_GRANTED`], or the server would refuse a grant; every
//! transfer may have one. Dropping this takes back what was granted and has not come. Specification: PROTOCOL#asked-for.

use super::window::Window;
use crate::client::net::queue::Queue;
use crate::crypto::chunk::{GROUP, TransferId};
use crate::encoding::Fixed;
use crate::name::Username;
use crate::protocol::{ClientMessage, Grant, MAX_GRANTED};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// Files that arrive at once, each with a thread and a window of chunks.
pub const MAX_ARRIVING: usize = 8;
/// Chunks in flight to this client, beside one that each other transfer may always have.
const MAX_IN_FLIGHT: u32 = MAX_GRANTED + 1 - MAX_ARRIVING as u32;
/// Chunks that were granted and not written, for all transfers: 10.5 MiB, the chunks in flight and those that are being
/// decrypted. A share of it is more than a group, which can be
/// written only when all of it is there.
const MAX_HELD: u32 = MAX_GRANTED + 8 * GROUP;
const _: () = assert!(MAX_HELD / MAX_ARRIVING as u32 > GROUP);

/// What the transfers to this client have between them.
#[derive(Default)]
pub struct Sharing {
    /// Files that are arriving.
    arriving: AtomicU32,
    /// Chunks that are in flight for them.
    in_flight: AtomicU32,
}

/// What one transfer has granted, and may grant.
pub struct Grants {
    sharing: Arc<Sharing>,
    queue: Arc<Queue>,
    peer: Username,
    transfer: TransferId,
    window: Window,
    /// Chunks of the file that were not granted yet.
    left: u32,
    /// Chunks that were granted and not written.
    held: u32,
}

impl Grants {
    /// For `left` chunks that `peer` is to send.
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

    /// A chunk has arrived, which may let others go. False if none was granted.
    pub fn arrive(&mut self, now: Instant) -> bool {
        let granted = self.window.arrive(self.sharing.arriving.load(Ordering::Relaxed), now);
        if granted {
            self.sharing.in_flight.fetch_sub(1, Ordering::Relaxed);
            self.grant(now);
        }
        granted
    }

    /// `count` chunks were written.
    pub fn written(&mut self, count: u32) {
        self.held -= count;
        self.grant(Instant::now());
    }

    /// Grants what may be granted now.
    pub fn grant(&mut self, now: Instant) {
        let share = MAX_HELD / self.sharing.arriving.load(Ordering::Relaxed).max(1);
        let count = self.window.room().min(share.saturating_sub(self.held)).min(self.left);
        // Not for each chunk: a grant is a line through the server.
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
        // The queue is full only when the server does not accept data: the session will find out.
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

    /// Transfers to one client, of files with so many chunks each.
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

        /// One chunk of each that has some in flight arrives at once, so that the windows grow, and is `written`.
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
        // The disk is stuck: what has arrived is held, and no more is granted than each one's share.
        (0..1000).for_each(|_| arriving.round(false));
        assert!(arriving.all.iter().all(|grants| grants.held <= MAX_HELD / MAX_ARRIVING as u32));
        arriving.round(true);
        // What ends leaves its room to the others.
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
    fn whole_file_is_granted_and_no_chunk_more() {
        for chunks in [1, 2, 5, 1001] {
            let mut arriving = Arriving::new(1, chunks);
            (0..chunks).for_each(|_| arriving.round(true));
            let grants = &mut arriving.all[0];
            assert_eq!((grants.left, grants.held, grants.arrive(arriving.now)), (0, 0, false), "{chunks}");
        }
    }

    /// PROTOCOL#grants.
    #[test]
    fn transfer_that_ends_takes_its_grants_back() {
        let mut arriving = Arriving::new(1, 10);
        let queue = arriving.queue.clone();
        let connection = queue.restart();
        queue.begin();
        arriving.all[0].grant(arriving.now);
        arriving.all.clear();
        queue.end();
        let counts = [(); 2].map(|()| {
            match ClientMessage::decode(queue.next(connection).expect("a line")[0].trim_ascii()) {
                Ok(ClientMessage::Grant(grant)) => grant.count,
                _ => panic!("no grant"),
            }
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
