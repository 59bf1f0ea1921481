//! Sends queued frames: those of a broadcast at once and together, deferred ones at a tick. One thread does it, so that
//! a thread that has queued frames for a thousand users continues at once.
//!
//! Invariant: an outbox enters a [`FlushList`] only if it is not marked as listed, and the lists for a tick only if it
//! is not marked as deferred. [`Outbox::flush`] clears both marks before it looks at the queue, so whatever is queued
//! later lists the outbox again. If it is still in another list, that flush finds what waits by then, or nothing.

use super::frames::Frame;
use super::outbox::{Buffers, FlushList, Outbox};
use crate::sync::lock;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A deferred frame is sent after this time, at most twice this time, or with another frame before. Longer than a busy
/// client takes to answer, shorter than a person notices.
const TICK: Duration = Duration::from_millis(10);
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
    next: Vec<Arc<Outbox>>,
    /// Outboxes to flush at `tick`.
    due: Vec<Arc<Outbox>>,
    /// Outboxes to flush one tick later.
    deferred: Vec<Arc<Outbox>>,
    /// `None` if both are empty.
    tick: Option<Instant>,
}

impl Lists {
    /// The deferred outboxes that are due, and how long the next have to wait; `None` if there are none.
    fn take_due(&mut self) -> (Vec<Arc<Outbox>>, Option<Duration>) {
        let Some(tick) = self.tick else { return (Vec::new(), None) };
        let (now, mut due) = (Instant::now(), Vec::new());
        if tick <= now {
            due = std::mem::replace(&mut self.due, std::mem::take(&mut self.deferred));
            self.tick = (!self.due.is_empty()).then_some(now + TICK);
        }
        (due, self.tick.map(|tick| tick.saturating_duration_since(now)))
    }
}

impl Flusher {
    /// Flushes these next.
    pub fn add(&self, list: FlushList) {
        let mut lists = lock(&self.lists);
        let is_idle = lists.next.is_empty() && !list.0.is_empty();
        lists.next.extend(list.0);
        if is_idle {
            self.wake.notify_one();
        }
    }

    /// Queues one message of the server's own that no user waits for: it is sent with the next frame, at the latest
    /// after 20 ms. PROTOCOL#soon.
    pub fn send_deferred(&self, outbox: &Arc<Outbox>, frame: Frame) {
        if outbox.defer(frame) && !self.add_deferred(outbox) {
            outbox.flush(&mut Buffers::default());
        }
    }

    /// False if too many wait already.
    fn add_deferred(&self, outbox: &Arc<Outbox>) -> bool {
        let mut lists = lock(&self.lists);
        let fits = lists.deferred.len() < MAX_DEFERRED;
        if fits {
            lists.deferred.push(outbox.clone());
        }
        if lists.tick.is_none() {
            lists.tick = Some(Instant::now() + TICK);
            self.wake.notify_one();
        }
        fits
    }

    /// The flusher thread.
    pub fn run(&self) -> ! {
        let mut buffers = Buffers::default();
        let mut flush = |some: &[Arc<Outbox>]| some.iter().for_each(|outbox| outbox.flush(&mut buffers));
        loop {
            let mut lists = lock(&self.lists);
            let (due, next) = loop {
                let (due, wait) = lists.take_due();
                if !due.is_empty() || !lists.next.is_empty() {
                    break (due, std::mem::take(&mut lists.next));
                }
                lists = match wait {
                    Some(wait) => {
                        self.wake.wait_timeout(lists, wait).unwrap_or_else(PoisonError::into_inner).0
                    }
                    None => self.wake.wait(lists).unwrap_or_else(PoisonError::into_inner),
                };
            };
            drop(lists);
            flush(&due);
            for some in next.chunks(AT_ONCE) {
                flush(some);
                let due = lock(&self.lists).take_due().0;
                flush(&due);
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
    fn queued_work_joins_the_next_pass_once() {
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
            // A detached session sends it on its next connection.
            outbox.detach(&link);
            let mut list = FlushList::default();
            outbox.queue(line("three"), &mut list);
            assert!(list.0.is_empty());
        }
    }

    /// PROTOCOL#soon.
    #[test]
    fn delayed_answer_is_sent_with_the_next_frame_or_alone() {
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

    /// PROTOCOL#soon.
    #[test]
    fn delayed_answers_wait_for_no_long_pass_and_no_crowd() {
        let flusher = Arc::new(Flusher::default());
        let [(idle, _far), (another, far)] = [link(), link()];
        let outbox = outbox_on(idle, 1024);
        // Two locked outboxes hold up the flusher's pass.
        let [(first, _first), (second, _second)] = [link(), link()];
        let [first, second] = [first, second].map(|link| outbox_on(link, 1024));
        let (held, held_longer) = (hold(&first), hold(&second));
        let mut all = vec![outbox.clone(); AT_ONCE + 1];
        (all[0], all[AT_ONCE]) = (first.clone(), second.clone());
        flusher.add(FlushList(all));
        let running = flusher.clone();
        std::thread::spawn(move || running.run());
        let end = Instant::now() + PATIENCE;
        while !lock(&flusher.lists).next.is_empty() {
            assert!(Instant::now() < end, "it does not begin");
            std::thread::yield_now();
        }
        let another = outbox_on(another, 1024);
        flusher.send_deferred(&another, line("one "));
        let mut lists = lock(&flusher.lists);
        (lists.tick, lists.due) = (Some(Instant::now()), std::mem::take(&mut lists.deferred));
        drop((lists, held));
        assert_eq!(next(&far, 4), "one ");
        drop(held_longer);
        let full = Flusher::default();
        lock(&full.lists).deferred = vec![first.clone(); MAX_DEFERRED];
        full.send_deferred(&another, line("two "));
        assert_eq!(next(&far, 4), "two ");
    }

    #[test]
    fn delayed_work_waits_for_one_tick_and_not_for_three() {
        let (mut lists, outbox) = (Lists::default(), outbox_on(link().0, 1024));
        assert!(matches!(lists.take_due(), (none, None) if none.is_empty()));
        let tick = |lists: &mut Lists| {
            lists.tick = Some(Instant::now());
            let (due, wait) = lists.take_due();
            assert!(wait.is_none_or(|wait| wait <= TICK) && wait == lists.tick.map(|_| TICK));
            due.len()
        };
        lists.deferred.push(outbox.clone());
        assert_eq!(tick(&mut lists), 0);
        lists.deferred.extend([outbox.clone(), outbox.clone()]);
        assert!(matches!(lists.take_due(), (none, Some(_)) if none.is_empty()), "not before its time");
        assert_eq!([tick(&mut lists), tick(&mut lists)], [1, 2]);
        assert!(lists.tick.is_none(), "the flusher is not woken without a deferred frame");
    }
}
