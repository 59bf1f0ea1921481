//! Events that wait for the owner of the state: from the network, and from the threads that work for it.
//!
//! Invariant: the inbox is limited in bytes, and a slow screen or pipe blocks the network's reader only at the limit. A
//! frame is acknowledged when the owner has taken it. A resumption counts all frames that were read, because they are
//! not resent. Specification: PROTOCOL#ack-when, PROTOCOL#frames.

use crate::client::queue::Queue;
use crate::client::session::Event;
use crate::crypto::envelope::Envelope;
use crate::protocol::ServerMessage;
use crate::sync::lock;
use crate::wire::window::Received;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The time in which a private or room message that the owner has taken is acknowledged, because otherwise a lost
/// connection reports it to its sender as lost. Such acknowledgements are at least this far apart.
const ACK_PERIOD: Duration = Duration::from_secs(1);
/// The most bytes that the network's reader may add. A server sends far less without an `ack`.
const MAX_WAITING: usize = 4 * 1024 * 1024;
/// The most bytes that may wait when another thread adds an event: less, so that it waits before the reader does.
const MAX_OTHERS: usize = 1024 * 1024;
/// The most bytes of frames that wait unacknowledged behind a message that is held back: half of the smallest outbox of
/// this project's server. PROTOCOL#mail-order.
const MAX_HELD: usize = 192 * 1024;
/// The approximate size of an event besides its frame, in bytes.
const EVENT: usize = 256;

/// Wakes the owner, and never waits for it.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// The waiting events: see the [module](self).
pub struct Inbox {
    waiting: Mutex<Waiting>,
    room: Condvar,
    wake: Wake,
    /// Sends the acknowledgements.
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Waiting {
    items: VecDeque<Item>,
    /// Memory of all items.
    bytes: usize,
    /// The number of frames that were read in this session.
    read: u64,
    /// The number of frames that the owner has taken.
    taken: Received,
    /// The time of the last acknowledgement.
    acked_at: Option<Instant>,
    /// Whether a private or room message is among the frames taken since the last acknowledgement.
    direct: bool,
    /// Whether envelopes for this user alone are held back.
    holds: bool,
    /// The owner takes no further events.
    closed: bool,
}

struct Item {
    event: Event,
    memory: usize,
    /// The number of frames: its own, and the following ones without an event.
    frames: u64,
    /// Bytes of these frames.
    bytes: usize,
}

impl Item {
    fn envelope(&self) -> Option<&Envelope> {
        match &self.event {
            Event::Server(ServerMessage::EncryptedMessage(message)) => Some(&message.envelope),
            _ => None,
        }
    }

    fn is_direct(&self) -> bool {
        self.envelope().is_some_and(Envelope::is_direct_message)
    }

    /// Whether it is an envelope for this user alone: notices and messages about files share the messages' numbers.
    fn is_for_one(&self) -> bool {
        self.envelope().is_some_and(|envelope| envelope.header.recipient.is_some())
    }
}

impl Waiting {
    /// The index of the next item that the owner can take.
    fn next(&self) -> Option<usize> {
        let held = self.items.iter().take_while(|item| self.holds && item.is_for_one());
        let (held, bytes) = held.fold((0, 0), |(count, bytes), item| (count + 1, bytes + item.bytes));
        let next = if bytes > MAX_HELD { 0 } else { held };
        (next < self.items.len()).then_some(next)
    }

    /// Removes an item for the owner. Its frames count as taken when the items before it are taken.
    fn take(&mut self, at: usize) -> Option<Item> {
        let item = self.items.remove(at)?;
        self.bytes -= item.memory;
        match at.checked_sub(1).and_then(|before| self.items.get_mut(before)) {
            Some(before) => {
                before.frames += item.frames;
                before.bytes += item.bytes;
            }
            None => {
                self.taken.count(item.frames, item.bytes);
                self.direct |= item.frames > 0 && item.is_direct();
            }
        }
        Some(item)
    }

    /// The time until a taken private or room message must be acknowledged.
    fn left(&self, now: Instant) -> Option<Duration> {
        let passed = self.acked_at.map_or(ACK_PERIOD, |then| now.saturating_duration_since(then));
        (self.direct && self.taken.has_news()).then(|| ACK_PERIOD.saturating_sub(passed))
    }

    /// The due acknowledgement; with `early`, any new frame makes it due.
    fn ack(&mut self, early: bool, now: Instant) -> Option<u64> {
        let early = early || self.left(now).is_some_and(|left| left.is_zero());
        let received = self.taken.due(early)?;
        (self.acked_at, self.direct) = (Some(now), false);
        Some(received)
    }
}

impl Inbox {
    /// An empty inbox. Calls `wake` when an event is added.
    pub fn new(queue: Arc<Queue>, wake: Wake) -> Inbox {
        Inbox { waiting: Mutex::default(), room: Condvar::new(), wake, queue }
    }

    /// Adds one counted frame of the session, with its event, if any. False if the inbox is closed.
    pub fn frame(&self, event: Option<Event>, bytes: usize) -> bool {
        let memory = EVENT + bytes;
        self.add(MAX_WAITING, |waiting| {
            waiting.read += 1;
            match (event, waiting.items.back_mut()) {
                (Some(event), _) => waiting.items.push_back(Item { event, memory, frames: 1, bytes }),
                (None, Some(last)) => {
                    last.frames += 1;
                    last.bytes += bytes;
                    return 0;
                }
                (None, None) => {
                    waiting.taken.count(1, bytes);
                    return 0;
                }
            }
            memory
        })
    }

    /// Adds an event of the network's reader. False if the inbox is closed.
    pub fn tell(&self, event: Event) -> bool {
        self.put(event, MAX_WAITING)
    }

    /// Adds an event of another thread, which waits for room. False if the inbox is closed.
    pub fn report(&self, event: Event) -> bool {
        self.put(event, MAX_OTHERS)
    }

    fn put(&self, event: Event, limit: usize) -> bool {
        self.add(limit, |waiting| {
            waiting.items.push_back(Item { event, memory: EVENT, frames: 0, bytes: 0 });
            EVENT
        })
    }

    fn add(&self, limit: usize, add: impl FnOnce(&mut Waiting) -> usize) -> bool {
        let full = |waiting: &mut Waiting| waiting.bytes > limit && !waiting.closed;
        let waiting = self.room.wait_while(lock(&self.waiting), full);
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        if waiting.closed {
            return false;
        }
        let memory = add(&mut waiting);
        waiting.bytes += memory;
        self.acknowledge(&mut waiting, false);
        drop(waiting);
        if memory > 0 {
            (self.wake)();
        }
        true
    }

    /// The next event; `None` if nothing waits.
    pub fn next(&self) -> Option<Event> {
        let mut waiting = lock(&self.waiting);
        let next = waiting.next()?;
        let item = waiting.take(next)?;
        self.acknowledge(&mut waiting, false);
        drop(waiting);
        self.room.notify_all();
        Some(item.event)
    }

    /// Whether nothing waits that the owner can take.
    pub fn is_empty(&self) -> bool {
        lock(&self.waiting).next().is_none()
    }

    /// Sets whether envelopes for this user alone are held back. Later events overtake them, acknowledgements do not.
    /// PROTOCOL#mail-order.
    pub fn hold(&self, holds: bool) {
        lock(&self.waiting).holds = holds;
    }

    /// Acknowledges the frames that the owner has taken since the last acknowledgement.
    pub fn acknowledge_now(&self) {
        self.acknowledge(&mut lock(&self.waiting), true);
    }

    /// Sends a due acknowledgement; returns the time of the next call, if that is known.
    pub fn acknowledge_due(&self) -> Option<Duration> {
        let mut waiting = lock(&self.waiting);
        self.acknowledge(&mut waiting, false);
        waiting.left(Instant::now())
    }

    /// Sends a due acknowledgement, under the lock: after a resumption, an older number must not be sent.
    fn acknowledge(&self, waiting: &mut Waiting, early: bool) {
        if let Some(received) = waiting.ack(early, Instant::now()) {
            self.queue.control(|control| control.ack = Some(received));
        }
    }

    /// The number of frames that were read, for a resumption.
    pub fn read(&self) -> u64 {
        lock(&self.waiting).read
    }

    /// Notes that the session was resumed. The server will not resend the frames that were read, so none is held back
    /// any longer.
    pub fn resumed(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.holds = false;
        let read = waiting.read;
        waiting.taken.tell(read);
        waiting.direct = false;
    }

    /// Begins a new session. Waiting frames of the former one no longer count.
    pub fn restart(&self) {
        let mut waiting = lock(&self.waiting);
        (waiting.read, waiting.taken, waiting.direct) = (0, Received::default(), false);
        waiting.items.iter_mut().for_each(|item| (item.frames, item.bytes) = (0, 0));
    }

    /// The owner takes no further events.
    pub fn close(&self) {
        lock(&self.waiting).closed = true;
        self.room.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::envelope::{Kind, Kind::Message, Kind::RoomOpened};
    use crate::protocol::{EncryptedMessage, WrappedKey};
    use crate::wire::window::ACK_BYTES;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    /// An inbox, its queue with a connection, and how often it woke its owner.
    fn inbox() -> (Inbox, Arc<Queue>, Arc<AtomicUsize>) {
        let (queue, woken) = (Arc::new(Queue::default()), Arc::new(AtomicUsize::new(0)));
        queue.restart();
        let count = woken.clone();
        let wake = Box::new(move || _ = count.fetch_add(1, Ordering::Relaxed));
        (Inbox::new(queue.clone(), wake), queue, woken)
    }

    fn acked(queue: &Queue) -> String {
        queue.end();
        let sent = std::iter::from_fn(|| queue.next()).map(|pieces| pieces.concat());
        sent.map(|line| String::from_utf8(line).expect("JSON")).collect()
    }

    /// PROTOCOL#ack-when.
    #[test]
    fn only_messages_taken_by_the_owner_are_acknowledged() {
        let (inbox, queue, woken) = inbox();
        for _ in 0..40 {
            assert!(inbox.frame(Some(Event::Tick), 10));
        }
        // A packet of a file, which goes to another thread.
        assert!(inbox.frame(None, 10));
        inbox.acknowledge_now();
        assert_eq!(woken.load(Ordering::Relaxed), 40);
        for _ in 0..32 {
            assert!(inbox.next().is_some());
        }
        assert_eq!(inbox.read(), 41);
        for _ in 0..8 {
            inbox.next();
        }
        assert!(inbox.is_empty() && inbox.next().is_none());
        assert_eq!(acked(&queue), "{\"type\":\"ack\",\"received\":32}\n");
        let (inbox, queue, _) = self::inbox();
        inbox.frame(None, ACK_BYTES);
        assert_eq!(acked(&queue), "{\"type\":\"ack\",\"received\":1}\n");
    }

    fn envelope(kind: Kind, to: &str) -> Event {
        let mut envelope = Envelope::sample();
        (envelope.header.kind, envelope.header.recipient) = (kind, to.parse().ok());
        let key = WrappedKey::new(&[10; 264]);
        Event::Server(ServerMessage::EncryptedMessage(Box::new(EncryptedMessage { envelope, key })))
    }

    /// PROTOCOL#ack-when.
    #[test]
    fn direct_message_alone_is_acknowledged_when_taken() {
        let (inbox, queue, _) = inbox();
        for (kind, to) in [(Message, ""), (RoomOpened, "bob"), (Message, "bob"), (Message, "")] {
            assert!(inbox.frame(Some(envelope(kind, to)), 10));
        }
        assert!(inbox.next().is_some() && inbox.next().is_some() && inbox.acknowledge_due().is_none());
        assert!(lock(&inbox.waiting).acked_at.is_none());
        assert!(inbox.next().is_some() && inbox.next().is_some() && inbox.acknowledge_due().is_none());
        assert_eq!(acked(&queue), "{\"type\":\"ack\",\"received\":3}\n");
    }

    /// PROTOCOL#mail-order.
    #[test]
    fn held_messages_wait_unacknowledged_behind_later_events() {
        let held = || {
            let (inbox, queue, _) = inbox();
            inbox.hold(true);
            inbox.frame(Some(Event::Tick), 10);
            for (kind, to) in [(Message, "bob"), (RoomOpened, "bob"), (Message, "bob"), (Message, "")] {
                inbox.frame(Some(envelope(kind, to)), 10);
            }
            // The broadcasts pass.
            assert_eq!(std::iter::from_fn(|| inbox.next()).count(), 2);
            assert!(inbox.is_empty());
            inbox.frame(Some(Event::Tick), 10);
            assert!(matches!(inbox.next(), Some(Event::Tick)) && inbox.is_empty());
            (inbox, queue)
        };
        let (inbox, queue) = held();
        inbox.acknowledge_now();
        assert_eq!(acked(&queue), "{\"type\":\"ack\",\"received\":1}\n");
        let (inbox, queue) = held();
        inbox.hold(false);
        (0..3).for_each(|_| assert!(matches!(inbox.next(), Some(Event::Server(_)))));
        inbox.acknowledge_now();
        assert!(inbox.is_empty());
        assert_eq!(acked(&queue), "{\"type\":\"ack\",\"received\":6}\n");
    }

    /// PROTOCOL#mail-order.
    #[test]
    fn acknowledged_messages_are_held_no_longer() {
        let (inbox, ..) = inbox();
        inbox.hold(true);
        inbox.frame(Some(envelope(Message, "bob")), 10);
        assert!(inbox.is_empty());
        inbox.resumed();
        assert!(matches!(inbox.next(), Some(Event::Server(_))), "held any longer, a crash would lose it");
    }

    /// PROTOCOL#mail-order.
    #[test]
    fn held_messages_pass_after_192_kib_of_other_frames() {
        let (inbox, ..) = inbox();
        inbox.hold(true);
        inbox.frame(Some(envelope(Message, "bob")), 10);
        for held in [true, true, false] {
            inbox.frame(Some(Event::Tick), MAX_HELD / 2 - 10);
            assert!(matches!(inbox.next(), Some(Event::Tick)));
            assert_eq!(inbox.is_empty(), held);
        }
        assert!(matches!(inbox.next(), Some(Event::Server(_))));
    }

    /// PROTOCOL#ack-when.
    #[test]
    fn direct_messages_get_one_ack_in_a_second() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        let mut take = |after: u64, direct: bool| {
            let now = now + Duration::from_millis(after);
            waiting.taken.count(1, 10);
            waiting.direct |= direct;
            let ack = waiting.ack(false, now);
            (ack, waiting.left(now).map(|left| left.as_millis()))
        };
        assert_eq!(take(0, false), (None, None));
        assert_eq!(take(0, true), (Some(2), None));
        assert_eq!(take(200, true), (None, Some(800)));
        assert_eq!(take(900, true), (None, Some(100)));
        assert_eq!(take(1000, false), (Some(5), None));
        assert_eq!(take(5000, false), (None, None));
        assert_eq!(take(5000, true), (Some(7), None));
        // The resumption has acknowledged it already.
        waiting.taken.tell(9);
        waiting.taken.count(1, 10);
        waiting.direct = true;
        assert_eq!((waiting.ack(true, now), waiting.left(now)), (None, None));
    }

    /// PROTOCOL#ack-true.
    #[test]
    fn ack_is_never_below_the_count_of_a_resumption() {
        let (inbox, queue, _) = inbox();
        for _ in 0..100 {
            inbox.frame(Some(Event::Tick), 10);
        }
        inbox.resumed();
        for _ in 0..100 {
            inbox.next();
        }
        inbox.acknowledge_now();
        inbox.frame(None, 10);
        inbox.acknowledge_now();
        assert_eq!(acked(&queue), "{\"type\":\"ack\",\"received\":101}\n");
    }

    #[test]
    fn frames_of_a_former_session_do_not_count_in_the_next() {
        let (inbox, queue, _) = inbox();
        inbox.frame(Some(Event::Tick), 10);
        inbox.restart();
        inbox.frame(Some(Event::Tick), 10);
        assert!(inbox.next().is_some());
        inbox.acknowledge_now();
        assert_eq!(acked(&queue), "");
        let (inbox, queue, _) = self::inbox();
        inbox.frame(Some(Event::Tick), 10);
        inbox.restart();
        inbox.frame(Some(Event::Tick), 10);
        assert!(inbox.next().is_some() && inbox.next().is_some());
        inbox.acknowledge_now();
        assert_eq!(acked(&queue), "{\"type\":\"ack\",\"received\":1}\n");
    }

    #[test]
    fn full_inbox_blocks_writers_until_there_is_room_or_it_closes() {
        let (inbox, ..) = inbox();
        let put = |count: usize| (0..count).filter(|_| inbox.frame(Some(Event::Tick), 1024 * 1024)).count();
        assert_eq!(put(4), 4);
        thread::scope(|scope| {
            let waits = scope.spawn(|| inbox.report(Event::Tick));
            let writer = scope.spawn(|| put(2));
            assert!(inbox.next().is_some());
            while inbox.read() < 5 {
                thread::yield_now();
            }
            assert!(!waits.is_finished(), "others wait sooner");
            inbox.close();
            assert!(writer.join().expect("it ends") <= 2 && !waits.join().expect("it ends"));
            assert!(!inbox.tell(Event::Tick));
        });
    }
}
