//! The frames of a session: which were sent and are kept for resending, and how many were received (PROTOCOL#resuming).
//! Server and client use the same rules.
//!
//! Invariant: pure. Frame `acked + 1` is the first in `row`, and a frame never changes its number. An item leaves `row`
//! only when the peer acknowledges it, so every frame arrives once and in order.

use std::collections::VecDeque;

/// Frames after which either side acknowledges: rare enough to cost nothing, far below what a sender may keep.
pub const ACK_FRAMES: u64 = 32;
/// Bytes after which either side acknowledges: a third of a server's smallest outbox.
pub const ACK_BYTES: usize = 128 * 1024;

/// Whether an `ack` is due for this many frames and bytes. PROTOCOL#ack-when.
pub fn is_ack_due(frames: u64, bytes: usize) -> bool {
    frames >= ACK_FRAMES || bytes >= ACK_BYTES
}

/// An `ack` of more frames than were sent on this connection, or of fewer than the one before.
#[derive(Debug, PartialEq, Eq)]
pub struct FalseAck;

/// The frames that one side sends in a session.
pub struct SendWindow<T> {
    /// Frames `acked + 1`, `acked + 2`, and so on: first the sent ones, which are kept, then the unsent ones.
    row: VecDeque<T>,
    /// Items of `row` that were sent on this connection.
    sent: usize,
    acked: u64,
    /// The highest number that was sent on any connection.
    reached: u64,
    /// Items of low priority: sent when nothing else waits, and numbered then.
    behind: VecDeque<T>,
}

impl<T> Default for SendWindow<T> {
    fn default() -> Self {
        SendWindow { row: VecDeque::new(), sent: 0, acked: 0, reached: 0, behind: VecDeque::new() }
    }
}

impl<T> SendWindow<T> {
    /// Queues an item.
    pub fn push(&mut self, item: T) {
        self.row.push_back(item);
    }

    /// Queues an item of low priority.
    pub fn push_behind(&mut self, item: T) {
        self.behind.push_back(item);
    }

    /// The item that [`SendWindow::next`] would return.
    pub fn peek(&self) -> Option<&T> {
        self.row.get(self.sent).or_else(|| self.behind.front())
    }

    /// The next item to send, which is kept. Items to resend come first.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<&T> {
        if self.sent == self.row.len() {
            self.row.push_back(self.behind.pop_front()?);
        }
        self.sent += 1;
        self.reached = self.reached.max(self.acked + self.sent as u64);
        self.row.get(self.sent - 1)
    }

    /// The peer has received `received` frames since the session began. Passes the items that it acknowledges to
    /// `freed`.
    ///
    /// # Errors
    /// [`FalseAck`], and nothing has changed. PROTOCOL#ack-true.
    pub fn acknowledge(&mut self, received: u64, freed: impl FnMut(T)) -> Result<(), FalseAck> {
        if !(self.acked..=self.acked + self.sent as u64).contains(&received) {
            return Err(FalseAck);
        }
        self.sent -= self.free(received, freed);
        Ok(())
    }

    /// Whether a session can continue after `received` frames. They may have been sent on any connection: an abandoned
    /// attempt to resume can arrive after the successful one.
    pub fn reaches(&self, received: u64) -> bool {
        (self.acked..=self.reached).contains(&received)
    }

    /// Continues on another connection, whose peer has received `received` frames since the session began. If that is
    /// [out of reach](SendWindow::reaches), changes nothing and returns false. PROTOCOL#sent-again.
    pub fn resume(&mut self, received: u64, freed: impl FnMut(T)) -> bool {
        let reaches = self.reaches(received);
        if reaches {
            self.sent = 0;
            self.free(received, freed);
        }
        reaches
    }

    /// Frees the frames up to number `received`, and returns how many.
    fn free(&mut self, received: u64, freed: impl FnMut(T)) -> usize {
        let count = (received - self.acked) as usize;
        self.acked = received;
        self.row.drain(..count).for_each(freed);
        spare(&mut self.row);
        spare(&mut self.behind);
        count
    }

    /// Drops the unsent items of low priority.
    pub fn clear_behind(&mut self) {
        self.behind = VecDeque::new();
    }

    /// Whether there is nothing to send.
    pub fn is_idle(&self) -> bool {
        self.peek().is_none()
    }

    /// The numbered or queued items: first the sent ones, then the unsent ones.
    pub fn row(&self) -> impl ExactSizeIterator<Item = &T> {
        self.row.iter()
    }

    /// The number of them that were sent on this connection.
    pub fn sent(&self) -> usize {
        self.sent
    }

    /// The number of unsent items of low priority.
    pub fn behind(&self) -> usize {
        self.behind.len()
    }
}

/// The capacity of an empty queue, in bytes of items, so that a short queue is not allocated again and again.
const KEPT: usize = 2048;

/// Frees the memory of a queue that was far longer than it is now, so that an idle session does not hold its maximum.
pub fn spare<T>(queue: &mut VecDeque<T>) {
    let few = KEPT / size_of::<T>().max(1);
    if queue.capacity() > few && queue.len() < queue.capacity() / 8 {
        queue.shrink_to(few.max(2 * queue.len()));
    }
}

/// Counts the frames that one side receives in a session.
#[derive(Default, Clone, Copy)]
pub struct Received {
    total: u64,
    /// The number that the peer knows. It may be ahead of `total`: a resumption can name frames that are counted later.
    told: u64,
    /// Bytes of the frames that the peer does not know.
    bytes: usize,
}

impl Received {
    /// Counts received frames and their bytes.
    pub fn count(&mut self, frames: u64, bytes: usize) {
        self.total += frames;
        self.bytes += if self.total > self.told { bytes } else { 0 };
    }

    /// Whether there are frames that the peer does not know.
    pub fn has_news(&self) -> bool {
        self.total > self.told
    }

    /// The number for an `ack`, if one is due; with `early`, after any frame. PROTOCOL#ack-when.
    pub fn due(&mut self, early: bool) -> Option<u64> {
        let news = self.total.saturating_sub(self.told);
        (is_ack_due(news, self.bytes) || (early && news > 0)).then(|| self.position())
    }

    /// The number of frames received, which the caller sends to the peer now.
    pub fn position(&mut self) -> u64 {
        self.tell(self.total);
        self.total
    }

    /// The peer learns that `count` frames were received.
    pub fn tell(&mut self, count: u64) {
        (self.told, self.bytes) = (count, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::random;

    /// Pseudorandom numbers.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % end
        }
    }

    /// A window, its peer, and the state that both should have.
    #[derive(Default)]
    struct Model {
        window: SendWindow<u64>,
        /// The items that were pushed, and those that were freed.
        pushed: u64,
        freed: Vec<u64>,
        /// All items in the order of their first send.
        order: Vec<u64>,
        /// The highest number that any connection has sent.
        reached: u64,
        sent: u64,
        acked: u64,
        /// Sent on this connection, and not arrived yet.
        flight: VecDeque<u64>,
        arrived: Vec<u64>,
    }

    impl Model {
        fn next(&mut self) {
            let peeked = self.window.peek().copied();
            let next = self.window.next().copied();
            assert_eq!(peeked, next);
            let Some(item) = next else { return };
            self.sent += 1;
            let number = self.acked + self.sent;
            if number > self.reached {
                self.order.push(item);
                self.reached = number;
            }
            assert_eq!(self.order[number as usize - 1], item, "a frame keeps its number");
            self.flight.push_back(item);
        }

        fn deliver(&mut self, count: u64) {
            for _ in 0..count {
                self.arrived.extend(self.flight.pop_front());
            }
        }

        fn acknowledge(&mut self, received: u64) {
            let is_true = (self.acked..=self.acked + self.sent).contains(&received);
            let (freed, before) = (&mut self.freed, (self.window.row().len(), self.window.sent()));
            let result = self.window.acknowledge(received, |item| freed.push(item));
            assert_eq!(result.is_ok(), is_true);
            if is_true {
                self.sent -= received - self.acked;
                self.acked = received;
            } else {
                assert_eq!(before, (self.window.row().len(), self.window.sent()));
            }
        }

        fn resume(&mut self, received: u64) {
            let possible = (self.acked..=self.reached).contains(&received);
            assert_eq!(self.window.reaches(received), possible);
            let (freed, before) = (&mut self.freed, (self.window.row().len(), self.window.sent()));
            assert_eq!(self.window.resume(received, |item| freed.push(item)), possible);
            if possible {
                (self.acked, self.sent) = (received, 0);
                self.flight.clear();
            } else {
                assert_eq!(before, (self.window.row().len(), self.window.sent()));
            }
        }

        fn check(&self) {
            assert!(self.order.starts_with(&self.arrived), "{:?} of {:?}", self.arrived, self.order);
            assert!(self.order.starts_with(&self.freed) && self.freed.len() as u64 == self.acked);
            let held = self.window.row().len() + self.window.behind();
            assert_eq!(self.freed.len() + held, self.pushed as usize);
            assert_eq!(self.window.sent() as u64, self.sent);
        }
    }

    /// PROTOCOL#frames, PROTOCOL#kept, PROTOCOL#sent-again, PROTOCOL#ack-true.
    #[test]
    fn every_frame_arrives_once_and_in_order_after_any_cut() {
        let seed = u64::from_be_bytes(random());
        println!("seed {seed}");
        let mut dice = Dice(seed);
        for _ in 0..200 {
            let mut model = Model::default();
            for _ in 0..300 {
                let received = model.arrived.len() as u64;
                match dice.below(9) {
                    0 | 1 => {
                        model.pushed += 1;
                        let item = model.pushed;
                        if dice.below(3) > 0 {
                            model.window.push(item)
                        } else {
                            model.window.push_behind(item)
                        }
                    }
                    2..=4 => model.next(),
                    5 => model.deliver(1 + dice.below(3)),
                    6 => model.acknowledge(received),
                    7 => {
                        model.acknowledge(model.acked + model.sent + 1 + dice.below(3));
                        model.acknowledge(model.acked.wrapping_sub(1 + dice.below(3)));
                    }
                    _ => {
                        // An older attempt may arrive late; the latest always succeeds.
                        let stale = model.acked + dice.below(received - model.acked + 1);
                        model.resume(stale);
                        (0..dice.below(3)).for_each(|_| model.next());
                        model.resume(model.reached + 1 + dice.below(2));
                        model.resume(received);
                        assert_eq!(model.acked, received);
                    }
                }
                model.check();
            }
            while !model.window.is_idle() {
                model.next();
            }
            model.deliver(model.flight.len() as u64);
            model.acknowledge(model.arrived.len() as u64);
            model.check();
            assert_eq!((model.arrived.len() as u64, model.window.row().len()), (model.pushed, 0));
        }
    }

    #[test]
    fn low_priority_items_wait_until_all_others_are_sent() {
        let mut window = SendWindow::default();
        window.push_behind('p');
        window.push('a');
        assert_eq!(
            [window.next().copied(), window.next().copied(), window.next().copied()],
            [Some('a'), Some('p'), None]
        );
        window.push_behind('q');
        window.push('b');
        assert!(window.resume(1, drop));
        // Once sent, it keeps its number and therefore its place.
        let again: Vec<char> = std::iter::from_fn(|| window.next().copied()).collect();
        assert_eq!(again, ['p', 'b', 'q']);
        window.push_behind('r');
        window.clear_behind();
        assert!(window.is_idle() && window.behind() == 0 && window.row().len() == 3);
    }

    /// PROTOCOL#ack-when.
    #[test]
    fn ack_is_due_after_32_frames_or_128_kib_or_any_news() {
        let mut received = Received::default();
        assert_eq!(received.due(true), None, "no news");
        (1..ACK_FRAMES).for_each(|_| received.count(1, 1));
        assert_eq!(received.due(false), None);
        received.count(1, 1);
        assert_eq!((received.due(false), received.due(true)), (Some(32), None));
        received.count(1, ACK_BYTES / 2);
        received.count(1, ACK_BYTES / 2 - 1);
        assert_eq!(received.due(false), None);
        received.count(1, 1);
        assert_eq!((received.due(false), received.due(false)), (Some(35), None));
        received.count(1, 0);
        assert_eq!((received.due(false), received.due(true)), (None, Some(36)));
        received.count(1, ACK_BYTES);
        assert_eq!((received.position(), received.due(true)), (37, None), "a resumption reports it too");
    }

    /// PROTOCOL#ack-true.
    #[test]
    fn ack_is_never_lower_than_at_the_resumption() {
        let mut received = Received::default();
        received.tell(40);
        (0..40).for_each(|_| received.count(1, ACK_BYTES));
        assert_eq!(received.due(true), None);
        received.count(1, 1);
        assert_eq!((received.due(false), received.due(true)), (None, Some(41)));
    }

    #[test]
    fn queue_holds_at_most_eight_times_its_items_or_a_few() {
        const FEW: usize = KEPT / size_of::<u64>();
        let mut window = SendWindow::default();
        (0..1000u64).for_each(|n| window.push(n));
        while window.next().is_some() {}
        for received in 1..=1000 {
            assert_eq!(window.acknowledge(received, drop), Ok(()));
            let left = window.row().len();
            assert!(window.row.capacity() <= (8 * left + 8).max(FEW), "{} for {left}", window.row.capacity());
        }
        (0..1000).for_each(|n| window.push_behind(n));
        while window.next().is_some() {}
        assert!(window.acknowledge(2000, drop).is_ok() && window.behind.capacity() <= FEW);
    }
}
