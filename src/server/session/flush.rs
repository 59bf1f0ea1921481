//! Sends queued frames: those of a broadcast as soon as possible, deferred ones at a tick. One thread does it, so that
//! a thread that has queued frames for a thousand users continues at once.
//!
//! Invariant: an outbox enters a [`FlushList`] only if it is not marked as listed, and the list for the tick only if it
//! is not marked as deferred. [`Outbox::flush`] clears both marks before it looks at the queue, so whatever is queued
//! later lists the outbox again. If it is still in another list, that flush finds what waits by then, or nothing.

use super::frames::Frame;
use super::outbox::{Buffers, FlushList, Outbox};
use crate::sync::lock;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// A deferred frame is sent within this time, or with another frame before. Longer than a busy client takes to answer,
/// shorter than a person notices.
const TICK: Duration = Duration::from_millis(20);
/// The most outboxes that wait for the same tick: the flusher cannot write more in that time. Beyond it, threads write
/// at once.
const MAX_DEFERRED: usize = 1024;
/// The number of listed outboxes that are flushed before the flusher checks for deferred ones again.
const AT_ONCE: usize = 64;

/// Sends the frames of broadcasts, and deferred frames. Frames that are queued for a client during one flush are sent
/// together in the next, in one write.
#[derive(Default)]
pub struct Flusher {
    lists: Mutex<Lists>,
    wake: Condvar,
}

#[derive(Default)]
struct Lists {
    next: VecDeque<Arc<Outbox>>,
    /// Outboxes to flush at `tick`.
    deferred: Vec<Arc<Outbox>>,
    /// `None` if nothing is deferred.
    tick: Option<Instant>,
}

impl Lists {
    /// The deferred outboxes if they are due, some of the others, and how long the deferred ones still have to wait.
    fn take(&mut self, now: Instant) -> (Vec<Arc<Outbox>>, Option<Duration>) {
        let mut some = Vec::new();
        if self.tick.take_if(|tick| *tick <= now).is_some() {
            some = std::mem::take(&mut self.deferred);
        }
        let count = self.next.len().min(AT_ONCE);
        some.extend(self.next.drain(..count));
        (some, self.tick.map(|tick| tick.saturating_duration_since(now)))
    }
}

impl Flusher {
    /// Flushes these next.
    pub fn add(&self, list: FlushList) {
        lock(&self.lists).next.extend(list.0);
        self.wake.notify_one();
    }

    /// Queues one message of the server's own that no user waits for: it is sent with the next frame, 20 ms later at
    /// the latest. PROTOCOL#deferred.
    pub fn send_deferred(&self, outbox: &Arc<Outbox>, frame: Frame) {
        if !outbox.defer(frame) {
            return;
        }
        let mut lists = lock(&self.lists);
        if lists.deferred.len() >= MAX_DEFERRED {
            drop(lists);
            return outbox.flush(&mut Buffers::default());
        }
        lists.deferred.push(outbox.clone());
        if lists.tick.is_none() {
            lists.tick = Some(Instant::now() + TICK);
            self.wake.notify_one();
        }
    }

    /// The flusher thread.
    pub fn run(&self) -> ! {
        let mut buffers = Buffers::default();
        loop {
            let mut lists = lock(&self.lists);
            let (some, wait) = lists.take(Instant::now());
            if some.is_empty() {
                drop(self.wake.wait_timeout(lists, wait.unwrap_or(Duration::MAX)));
            } else {
                drop(lists);
                some.iter().for_each(|outbox| outbox.flush(&mut buffers));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::outbox::Queued;
    use super::super::outbox::tests::{PATIENCE, has_come, hold, line, link, next, outbox_on};
    use super::*;

    #[test]
    fn queued_frames_join_the_next_flush_once() {
        let flusher = Arc::new(Flusher::default());
        let running = flusher.clone();
        std::thread::spawn(move || running.run());
        for _ in 0..3 {
            let (link, far) = link();
            let outbox = outbox_on(link.clone(), 1024);
            for by_itself in [false, true] {
                let mut list = FlushList::default();
                outbox.queue(line("one "), &mut list);
                assert_eq!(list.0.len(), 1);
                assert_eq!(outbox.deliver(line("two "), None, &mut list), Queued::Yes);
                assert!(list.0.len() == 1 && !has_come(&far));
                if by_itself {
                    flusher.add(FlushList::default());
                    flusher.add(list);
                } else {
                    outbox.flush(&mut Buffers::default());
                }
                assert_eq!(next(&far, 8), "one two ");
            }
            // A detached session sends its frames on its next connection.
            outbox.detach(&link);
            let mut list = FlushList::default();
            outbox.queue(line("three"), &mut list);
            assert!(list.0.is_empty());
        }
    }

    /// PROTOCOL#deferred.
    #[test]
    fn deferred_answer_is_sent_with_the_next_frame_or_alone() {
        let flusher = Arc::new(Flusher::default());
        let (link, far) = link();
        let outbox = outbox_on(link, 1024);
        flusher.send_deferred(&outbox, line("one "));
        flusher.send_deferred(&outbox, line("two "));
        assert!(!has_come(&far));
        outbox.send(line("three "));
        assert_eq!(next(&far, 14), "one two three ");
        // An outbox with deferred frames is listed once, until it is flushed.
        assert_eq!(lock(&flusher.lists).deferred.len(), 1);
        let running = flusher.clone();
        std::thread::spawn(move || running.run());
        for _ in 0..3 {
            flusher.send_deferred(&outbox, line("by itself "));
            assert_eq!(next(&far, 10), "by itself ");
        }
    }

    /// PROTOCOL#deferred.
    #[test]
    fn deferred_answer_waits_for_no_long_flush_or_full_list() {
        let flusher = Arc::new(Flusher::default());
        let [(idle, _far), (another, far)] = [link(), link()];
        let outbox = outbox_on(idle, 1024);
        // Two locked outboxes hold up the flusher.
        let [(first, _first), (second, _second)] = [link(), link()];
        let [first, second] = [first, second].map(|link| outbox_on(link, 1024));
        let (held, held_longer) = (hold(&first), hold(&second));
        let mut all = vec![outbox.clone(); AT_ONCE + 1];
        (all[0], all[AT_ONCE]) = (first.clone(), second.clone());
        flusher.add(FlushList(all));
        let running = flusher.clone();
        std::thread::spawn(move || running.run());
        let end = Instant::now() + PATIENCE;
        while lock(&flusher.lists).next.len() > 1 {
            assert!(Instant::now() < end, "the flush does not begin");
            std::thread::yield_now();
        }
        let another = outbox_on(another, 1024);
        flusher.send_deferred(&another, line("one "));
        let mut lists = lock(&flusher.lists);
        lists.tick = Some(Instant::now());
        drop((lists, held));
        assert_eq!(next(&far, 4), "one ");
        drop(held_longer);
        let full = Flusher::default();
        lock(&full.lists).deferred = vec![first.clone(); MAX_DEFERRED];
        full.send_deferred(&another, line("two "));
        assert_eq!(next(&far, 4), "two ");
    }

    #[test]
    fn deferred_frame_waits_for_its_tick_and_no_longer() {
        let (flusher, outbox) = (Flusher::default(), outbox_on(link().0, 1024));
        let take = |now| {
            let (some, wait) = lock(&flusher.lists).take(now);
            (some.len(), wait)
        };
        let start = Instant::now();
        assert_eq!(take(start), (0, None));
        flusher.send_deferred(&outbox, line("one"));
        let tick = lock(&flusher.lists).tick.expect("it is deferred");
        assert!(tick >= start + TICK && tick <= Instant::now() + TICK && TICK == Duration::from_millis(20));
        let early = tick - Duration::from_millis(1);
        assert_eq!(take(early), (0, Some(Duration::from_millis(1))));
        flusher.add(FlushList(vec![outbox.clone(); AT_ONCE + 1]));
        assert_eq!((take(early).0, take(tick)), (AT_ONCE, (2, None)), "nobody is woken without work");
    }
}
