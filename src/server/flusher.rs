//! When what was queued for others is written out: a broadcast's frames in passes, what nobody waits for at a tick. One
//! thread, so that whoever has queued for a thousand people goes on at once.
//!
//! Invariant: an outbox is put into a [`Pass`] only if its mark for that is not set, and so into the lists for a tick;
//! [`Outbox::flush`] clears both marks before it looks at the queue, so what is queued later lists it again and nothing is
//! left lying. Where it still stands in another list, the flush for that one finds what there is by then, or nothing.

use super::frames::Frame;
use super::lock;
use super::outbox::{Buffers, Outbox, Pass};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What nobody waits for goes out after this time, or twice this time at most, if nothing else has taken it along before.
/// Longer than the answer of a busy client takes, shorter than a person could notice.
const SOON: Duration = Duration::from_millis(10);
/// So many may wait for the same tick: the flusher writes to no more in that time. Whoever else has something to say writes
/// it himself.
const MOST_FOR_SOON: usize = 1024;
/// Outboxes of a pass that are written out before the flusher looks whether others have waited long enough.
const AT_ONCE: usize = 64;

/// Writes out what broadcasts have queued, in passes: what arrives for a client during a pass goes
/// out together in the next, in one write. And what may wait a little.
#[derive(Default)]
pub struct Flusher {
    lists: Mutex<Lists>,
    wake: Condvar,
}

#[derive(Default)]
struct Lists {
    next: Vec<Arc<Outbox>>,
    /// To be written out at `tick`.
    soon: Vec<Arc<Outbox>>,
    /// One tick later.
    later: Vec<Arc<Outbox>>,
    /// `None` if both are empty.
    tick: Option<Instant>,
}

impl Lists {
    /// Those that have waited long enough, and how long the next have to wait; `None` if there are none.
    fn due(&mut self) -> (Vec<Arc<Outbox>>, Option<Duration>) {
        let Some(tick) = self.tick else { return (Vec::new(), None) };
        let (now, mut due) = (Instant::now(), Vec::new());
        if tick <= now {
            due = std::mem::replace(&mut self.soon, std::mem::take(&mut self.later));
            self.tick = (!self.soon.is_empty()).then_some(now + SOON);
        }
        (due, self.tick.map(|tick| tick.saturating_duration_since(now)))
    }
}

impl Flusher {
    /// Writes these out next, all that was queued for everyone before anything is written.
    pub fn add(&self, pass: Pass) {
        let mut lists = lock(&self.lists);
        let is_idle = lists.next.is_empty() && !pass.0.is_empty();
        lists.next.extend(pass.0);
        if is_idle {
            self.wake.notify_one();
        }
    }

    /// Queues one frame of the server's own that nobody waits for: it goes out with the next one, and at the latest
    /// after 20 ms. PROTOCOL#soon.
    pub fn send_soon(&self, outbox: &Arc<Outbox>, frame: Frame) {
        if outbox.queue_for_soon(frame) && !self.add_for_soon(outbox) {
            outbox.flush(&mut Buffers::default());
        }
    }

    /// False if too many wait already.
    fn add_for_soon(&self, outbox: &Arc<Outbox>) -> bool {
        let mut lists = lock(&self.lists);
        let fits = lists.later.len() < MOST_FOR_SOON;
        if fits {
            lists.later.push(outbox.clone());
        }
        if lists.tick.is_none() {
            lists.tick = Some(Instant::now() + SOON);
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
            let (due, pass) = loop {
                let (due, wait) = lists.due();
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
            for some in pass.chunks(AT_ONCE) {
                flush(some);
                let due = lock(&self.lists).due().0;
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
    fn what_is_queued_for_a_pass_goes_out_with_it_and_nobody_is_in_it_twice() {
        let flusher = Arc::new(Flusher::default());
        let running = flusher.clone();
        std::thread::spawn(move || running.run());
        for _ in 0..3 {
            let (link, far) = link();
            let outbox = outbox_on(link.clone(), 1024);
            for by_itself in [false, true] {
                let mut pass = Pass::default();
                outbox.queue(line("one "), &mut pass);
                assert_eq!(pass.0.len(), 1);
                assert_eq!(outbox.deliver(line("two "), None, None, Some(&mut pass)), Queued::Yes);
                assert!(pass.0.len() == 1 && !has_come(&far));
                if by_itself {
                    flusher.add(Pass::default());
                    flusher.add(pass);
                } else {
                    outbox.flush(&mut Buffers::default());
                }
                assert_eq!(next(&far, 8), "one two ");
            }
            // Who has no connection gets it with the next.
            outbox.detach(&link);
            let mut pass = Pass::default();
            outbox.queue(line("three"), &mut pass);
            assert!(pass.0.is_empty());
        }
    }

    /// PROTOCOL#soon.
    #[test]
    fn what_nobody_waits_for_goes_out_with_the_next_frame_or_by_itself() {
        let flusher = Arc::new(Flusher::default());
        let (link, far) = link();
        let outbox = outbox_on(link, 1024);
        flusher.send_soon(&outbox, line("one "));
        flusher.send_soon(&outbox, line("two "));
        assert!(!has_come(&far));
        outbox.send(line("three "));
        assert_eq!(next(&far, 14), "one two three ");
        // Those who have something to say are listed once, until they are seen to.
        assert_eq!(lock(&flusher.lists).later.len(), 1);
        let running = flusher.clone();
        std::thread::spawn(move || running.run());
        for _ in 0..3 {
            flusher.send_soon(&outbox, line("by itself "));
            assert_eq!(next(&far, 10), "by itself ");
        }
    }

    /// PROTOCOL#soon.
    #[test]
    fn who_waits_for_company_does_not_wait_for_a_long_pass_and_too_many_do_not_wait_at_all() {
        let flusher = Arc::new(Flusher::default());
        let [(idle, _far), (another, far)] = [link(), link()];
        let outbox = outbox_on(idle, 1024);
        // The pass gets no further than to these two.
        let [(first, _first), (second, _second)] = [link(), link()];
        let [first, second] = [first, second].map(|link| outbox_on(link, 1024));
        let (held, held_longer) = (hold(&first), hold(&second));
        let mut all = vec![outbox.clone(); AT_ONCE + 1];
        (all[0], all[AT_ONCE]) = (first.clone(), second.clone());
        flusher.add(Pass(all));
        let running = flusher.clone();
        std::thread::spawn(move || running.run());
        let end = Instant::now() + PATIENCE;
        while !lock(&flusher.lists).next.is_empty() {
            assert!(Instant::now() < end, "it does not begin");
            std::thread::yield_now();
        }
        let another = outbox_on(another, 1024);
        flusher.send_soon(&another, line("one "));
        let mut lists = lock(&flusher.lists);
        (lists.tick, lists.soon) = (Some(Instant::now()), std::mem::take(&mut lists.later));
        drop((lists, held));
        assert_eq!(next(&far, 4), "one ");
        drop(held_longer);
        let full = Flusher::default();
        lock(&full.lists).later = vec![first.clone(); MOST_FOR_SOON];
        full.send_soon(&another, line("two "));
        assert_eq!(next(&far, 4), "two ");
    }

    #[test]
    fn what_may_wait_waits_for_one_tick_and_not_for_three() {
        let (mut lists, outbox) = (Lists::default(), outbox_on(link().0, 1024));
        assert!(matches!(lists.due(), (none, None) if none.is_empty()));
        let tick = |lists: &mut Lists| {
            lists.tick = Some(Instant::now());
            let (due, wait) = lists.due();
            assert!(wait.is_none_or(|wait| wait <= SOON) && wait == lists.tick.map(|_| SOON));
            due.len()
        };
        lists.later.push(outbox.clone());
        assert_eq!(tick(&mut lists), 0);
        lists.later.extend([outbox.clone(), outbox.clone()]);
        assert!(matches!(lists.due(), (none, Some(_)) if none.is_empty()), "not before its time");
        assert_eq!([tick(&mut lists), tick(&mut lists)], [1, 2]);
        assert!(lists.tick.is_none(), "who has nothing to say soon is not woken");
    }
}
