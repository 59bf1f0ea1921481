//! The outgoing queue: frames that wait to be sent, and sent frames that may have to be resent.
//!
//! Invariant: lines go before packets. Every frame is kept until the server acknowledges it. When the session is
//! resumed, exactly the frames that the server has not received are resent, before anything new, so nothing is lost,
//! doubled or reordered. A new login begins with an empty queue: unacknowledged messages are reported, never
//! repeated. Only the threads of transfers wait here for room. Specification: PROTOCOL#resuming.

use crate::protocol::{ClientMessage, Control};
use crate::sync::lock;
use crate::wire::window::{ACK_FRAMES, SendWindow, is_ack_due};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most lines that wait to be sent or acknowledged. The session has far fewer in flight, so this means that the
/// server accepts nothing.
const MAX_LINES: usize = 1024;
/// The most packets that wait to be sent: enough to keep the writer busy.
const MAX_PACKETS: usize = 8;
/// The bytes that wait to be sent or acknowledged before packets must wait: what a line of 80 MB/s with a round trip of
/// 200 ms has in flight.
const MAX_KEPT: usize = 16 * 1024 * 1024;

/// The pieces of one line or packet.
pub type Pieces = Arc<[Vec<u8>; 2]>;

/// The outgoing queue: see the [module](self).
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    control: Control,
    /// The lines, and behind them the packets: heads and payloads.
    window: SendWindow<Pieces>,
    /// Bytes of all of them.
    bytes: usize,
    /// When the last frame was sent or acknowledged.
    moved: Option<Instant>,
    /// There is a connection. Its writer ends before there is another one.
    is_connected: bool,
    /// A new session has begun, and the owner of the state does not know yet: messages queued meanwhile belong to the
    /// former session, and are dropped.
    outdated: bool,
    /// The queue accepts no further frames, and sends the waiting lines.
    ended: bool,
    /// The writer has ended: everything is sent, or the connection is broken.
    finished: bool,
}

impl Queue {
    /// Queues a message. False if 1,024 messages wait, or the queue has ended.
    pub fn say(&self, message: &ClientMessage) -> bool {
        let mut waiting = self.lock();
        let taken = !waiting.ended && waiting.window.row().len() < MAX_LINES;
        if taken && !waiting.outdated {
            let line = message.encode();
            waiting.bytes += line.len();
            waiting.window.push(Arc::new([line, Vec::new()]));
            self.changed.notify_all();
        }
        taken
    }

    /// Queues a packet, and waits for room.
    ///
    /// # Errors
    /// `Interrupted` if the queue has ended; `WouldBlock` if no frame is sent for `patience`.
    pub fn packet(&self, head: Vec<u8>, payload: Vec<u8>, patience: Duration) -> io::Result<()> {
        let begun = Instant::now();
        let mut waiting = self.lock();
        let is_full = |waiting: &Waiting| waiting.window.behind() >= MAX_PACKETS || waiting.bytes > MAX_KEPT;
        while !waiting.ended && is_full(&waiting) {
            let end = waiting.moved.map_or(begun, |moved| moved.max(begun)) + patience;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "the server does not accept data"));
            }
            let waited = self.changed.wait_timeout(waiting, left);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if waiting.ended {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if !waiting.outdated {
            waiting.bytes += head.len() + payload.len();
            waiting.window.push_behind(Arc::new([head, payload]));
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Changes the pending control lines, which belong to the connection and are never resent.
    pub fn control(&self, change: impl FnOnce(&mut Control)) {
        change(&mut self.lock().control);
        self.changed.notify_all();
    }

    /// Drops the frames that the server has received: this number of the session's. False if that is impossible.
    pub fn acknowledge(&self, received: u64) -> bool {
        let Waiting { window, bytes, moved, .. } = &mut *self.lock();
        let is_true = window.acknowledge(received, |pieces| *bytes -= length(&pieces)).is_ok();
        if is_true {
            *moved = Some(Instant::now());
        }
        self.changed.notify_all();
        is_true
    }

    /// Whether the server owes an `ack`, by the number of its unacknowledged frames or bytes.
    pub fn owes_ack(&self) -> bool {
        let window = &self.lock().window;
        let sent = window.row().take(window.sent().min(ACK_FRAMES as usize));
        is_ack_due(sent.len() as u64, sent.map(length).sum())
    }

    /// Continues the session over a new connection; frames that the server has not received are resent. False if the
    /// server claims to have received an impossible number.
    pub fn resume(&self, received: u64) -> bool {
        let mut waiting = self.lock();
        let Waiting { window, bytes, .. } = &mut *waiting;
        let is_possible = window.resume(received, |pieces| *bytes -= length(&pieces));
        if is_possible {
            (waiting.control, waiting.is_connected, waiting.finished) = (Control::default(), true, false);
            self.changed.notify_all();
        }
        is_possible
    }

    /// Begins a new session over a new connection; frames of the former session are dropped.
    pub fn restart(&self) {
        let mut waiting = self.lock();
        let ended = waiting.ended;
        *waiting = Waiting { ended, is_connected: true, outdated: true, ..Waiting::default() };
        self.changed.notify_all();
    }

    /// From now on, queued messages belong to the new session: the owner of the state knows about it.
    pub fn begin(&self) {
        self.lock().outdated = false;
    }

    /// Sends nothing until there is another connection: this one is lost.
    pub fn disconnect(&self) {
        self.lock().is_connected = false;
        self.changed.notify_all();
    }

    /// Ends the queue: it drops waiting packets, sends waiting lines, and accepts no further frames.
    pub fn end(&self) {
        let mut waiting = self.lock();
        waiting.ended = true;
        waiting.window.clear_behind();
        self.changed.notify_all();
    }

    /// The next frame to send over the connection; `None` at its end.
    pub fn next(&self) -> Option<Pieces> {
        let mut waiting = self.lock();
        loop {
            if !waiting.is_connected {
                return None;
            }
            if let Some(line) = waiting.control.next() {
                return Some(Arc::new([line, Vec::new()]));
            }
            if let Some(next) = waiting.window.next().cloned() {
                waiting.moved = Some(Instant::now());
                self.changed.notify_all();
                return Some(next);
            }
            if waiting.ended {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until this moment. True if the queue has ended.
    pub fn is_over_by(&self, then: Instant) -> bool {
        let left = then.saturating_duration_since(Instant::now());
        let wait = self.changed.wait_timeout_while(self.lock(), left, |waiting| !waiting.ended);
        wait.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    /// Notes that the writer has ended: everything is sent, or the connection is broken.
    pub fn finished(&self) {
        self.lock().finished = true;
        self.changed.notify_all();
    }

    /// Waits until everything is sent, if there is a connection.
    pub fn wait_until_sent(&self, patience: Duration) {
        let unsent = |waiting: &mut Waiting| !waiting.finished && waiting.is_connected;
        drop(self.changed.wait_timeout_while(self.lock(), patience, unsent));
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.waiting)
    }
}

fn length(pieces: &Pieces) -> usize {
    pieces.iter().map(Vec::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::window::ACK_BYTES;
    use std::thread;

    fn begun() -> Queue {
        let queue = Queue::default();
        queue.restart();
        queue.begin();
        queue
    }

    /// The next frame, as text.
    fn next(queue: &Queue) -> String {
        let pieces = queue.next().expect("something waits");
        pieces.iter().map(|piece| String::from_utf8_lossy(piece).trim_end().to_string()).collect()
    }

    fn packet(queue: &Queue, text: &str) {
        queue.packet(text.into(), Vec::new(), Duration::ZERO).expect("room");
    }

    const LOGOUT: &str = r#"{"type":"logout"}"#;

    #[test]
    fn lines_precede_packets_and_only_they_outlast_the_end() {
        let queue = begun();
        packet(&queue, "one");
        packet(&queue, "two");
        assert!(queue.say(&ClientMessage::Logout));
        assert_eq!(next(&queue), LOGOUT);
        assert_eq!(next(&queue), "one");
        assert!(queue.say(&ClientMessage::Logout));
        queue.end();
        let end = queue.packet(Vec::new(), Vec::new(), Duration::ZERO).expect_err("it is over");
        assert!(end.kind() == io::ErrorKind::Interrupted && !queue.say(&ClientMessage::Logout));
        assert_eq!(next(&queue), LOGOUT);
        assert!(queue.next().is_none());
    }

    #[test]
    fn unacknowledged_frames_are_limited() {
        let queue = begun();
        assert_eq!((0..2000).filter(|_| queue.say(&ClientMessage::Logout)).count(), MAX_LINES);
        let queue = begun();
        packet(&queue, &"x".repeat(MAX_KEPT + 1));
        next(&queue);
        let refused = queue.packet("y".into(), Vec::new(), Duration::ZERO).expect_err("no room");
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        assert!(queue.acknowledge(1));
        packet(&queue, "y");
    }

    /// PROTOCOL#kept, PROTOCOL#sent-again.
    #[test]
    fn exactly_the_unacknowledged_frames_are_resent_in_order() {
        let queue = begun();
        for text in ["one", "two", "three", "four"] {
            packet(&queue, text);
        }
        queue.control(|control| (control.ping, control.ack) = (true, Some(7)));
        assert_eq!(next(&queue), r#"{"type":"ack","received":7}"#);
        assert_eq!(next(&queue), r#"{"type":"ping"}"#);
        let gone: Vec<String> = (0..3).map(|_| next(&queue)).collect();
        assert_eq!(gone, ["one", "two", "three"]);
        assert!(queue.acknowledge(1));
        queue.control(|control| control.pongs = 1);
        queue.disconnect();
        assert!(queue.next().is_none(), "the writer of the lost connection ends");
        assert!(queue.say(&ClientMessage::Logout));
        assert!(queue.resume(2));
        let gone: Vec<String> = (0..3).map(|_| next(&queue)).collect();
        assert_eq!(gone, ["three", LOGOUT, "four"], "no former control frame, nothing twice");
        assert!(queue.acknowledge(5));
        let waiting = queue.lock();
        assert_eq!((waiting.window.row().len(), waiting.bytes), (0, 0));
    }

    #[test]
    fn end_of_a_lost_connection_does_not_end_the_next_one() {
        let queue = begun();
        queue.disconnect();
        assert!(queue.next().is_none());
        queue.finished();
        assert!(queue.resume(0) && queue.say(&ClientMessage::Logout));
        queue.end();
        thread::scope(|scope| {
            let end = scope.spawn(|| queue.wait_until_sent(Duration::from_secs(60)));
            assert_eq!(next(&queue), LOGOUT);
            assert!(!end.is_finished() && queue.next().is_none());
            queue.finished();
        });
    }

    #[test]
    fn ack_of_frames_never_sent_is_refused() {
        let queue = begun();
        packet(&queue, "one");
        assert!(!queue.acknowledge(1));
        next(&queue);
        assert!(!queue.acknowledge(2) && !queue.acknowledge(u64::MAX) && queue.acknowledge(1));
        assert!(!queue.acknowledge(0) && !queue.resume(0) && !queue.resume(2));
    }

    #[test]
    fn new_session_drops_the_queue_of_the_former_one() {
        let queue = begun();
        packet(&queue, "one");
        next(&queue);
        packet(&queue, "two");
        queue.restart();
        packet(&queue, "three");
        assert!(queue.say(&ClientMessage::Logout), "the owner does not know of the new session yet");
        queue.begin();
        packet(&queue, "four");
        assert_eq!(next(&queue), "four");
        assert!(queue.acknowledge(1));
    }

    #[test]
    fn packet_fails_after_its_patience_if_nothing_is_sent() {
        let queue = begun();
        (0..MAX_PACKETS).for_each(|_| packet(&queue, "one"));
        let error = queue.packet(Vec::new(), Vec::new(), Duration::from_millis(9)).expect_err("no room");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn packet_sender_waits_for_room_and_wakes_at_the_end() {
        let queue = begun();
        let minute = Duration::from_secs(60);
        let sends = |_: &u32| queue.packet(Vec::new(), vec![0; 9], minute).is_ok();
        thread::scope(|scope| {
            let sender = scope.spawn(|| (0..).take_while(sends).count());
            while queue.lock().window.behind() < MAX_PACKETS {
                thread::yield_now();
            }
            assert!(queue.next().is_some());
            while queue.lock().window.behind() < MAX_PACKETS {
                thread::yield_now();
            }
            queue.end();
            assert_eq!(sender.join().expect("it ends"), MAX_PACKETS + 1);
        });
    }

    /// PROTOCOL#ack-when.
    #[test]
    fn ack_is_due_after_32_frames_or_128_kib() {
        let queue = begun();
        let send = |bytes: usize| {
            queue.packet(Vec::new(), vec![0; bytes], Duration::ZERO).expect("room");
            assert!(queue.next().is_some());
        };
        (0..31).for_each(|_| send(9));
        assert!(!queue.owes_ack());
        send(9);
        assert!(queue.owes_ack() && queue.acknowledge(2) && !queue.owes_ack());
        send(ACK_BYTES);
        assert!(queue.owes_ack() && queue.acknowledge(33) && !queue.owes_ack());
    }
}
