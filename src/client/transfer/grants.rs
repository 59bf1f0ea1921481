//! What one transfer that arrives has granted: as many chunks as its [`Window`] says, as the other transfers leave, and as
//! the disk has written.
//!
//! Invariant: the chunks in flight of all transfers are at most [`MAX_GRANTED`], or the server would refuse a grant; every
//! transfer may have one. Dropping this takes back what was granted and has not come. Specification: PROTOCOL#asked-for.

use super::window::Window;
use super::{MAX_ARRIVING, Shared};
use crate::crypto::chunk::{GROUP, TransferId};
use crate::encoding::Fixed;
use crate::name::Username;
use crate::protocol::{ClientMessage, Grant, MAX_GRANTED};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Chunks in flight to this client, beside one that each other transfer may always have.
const MAX_IN_FLIGHT: u32 = MAX_GRANTED + 1 - MAX_ARRIVING as u32;
/// Chunks that were granted and not written, for all transfers: 10.5 MiB, the chunks in flight and those that are being
/// decrypted. A share of it is more than a group, which can be
/// written only when all of it is there.
const MAX_HELD: u32 = MAX_GRANTED + 8 * GROUP;
const _: () = assert!(MAX_HELD / MAX_ARRIVING as u32 > GROUP);

/// What one transfer has granted, and may grant.
pub struct Grants {
    shared: Arc<Shared>,
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
    pub fn new(shared: Arc<Shared>, peer: Username, transfer: TransferId, left: u32) -> Grants {
        let sharing = shared.arriving.fetch_add(1, Ordering::Relaxed) + 1;
        Grants { shared, peer, transfer, window: Window::new(MAX_IN_FLIGHT, sharing), left, held: 0 }
    }

    /// A chunk has arrived, which may let others go. False if none was granted.
    pub fn arrive(&mut self, now: Instant) -> bool {
        let granted = self.window.arrive(self.shared.arriving.load(Ordering::Relaxed), now);
        if granted {
            self.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
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
        let share = MAX_HELD / self.shared.arriving.load(Ordering::Relaxed).max(1);
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
        let all = self.shared.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
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
        // The queue is full only when the server takes nothing: the session will find out.
        let _ = self.shared.queue.say(&ClientMessage::Grant(grant));
    }
}

impl Drop for Grants {
    fn drop(&mut self) {
        self.shared.arriving.fetch_sub(1, Ordering::Relaxed);
        self.shared.in_flight.fetch_sub(self.window.in_flight(), Ordering::Relaxed);
        self.say(0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::window::{FIRST, LONGEST_QUEUE, QUEUE};
    use super::*;

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
