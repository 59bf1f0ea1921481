//! What waits to be sent to the server, and what was sent and may have to be sent again.
//!
//! Invariant: lines go before packets. Every frame is kept until the server acknowledges it; when the session is
//! resumed, exactly what the server has not taken in goes out again, before anything new, so nothing is lost,
//! doubled or reordered. A new login begins with nothing: what was not acknowledged is told, never repeated. Only
//! the threads of transfers wait here for room. Specification: PROTOCOL#resuming.

use super::inbox::{ACK_BYTES, ACK_FRAMES};
use super::lock;
use crate::protocol::{ClientMessage, Received};
use std::collections::VecDeque;
use std::io;
use std::mem::take;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lines that wait to be sent, or acknowledged: the session has far fewer under way, so more means that nothing is taken.
const MAX_LINES: usize = 1024;
/// Packets that wait to be sent: enough to keep the writer busy.
const MAX_PACKETS: usize = 8;
/// Bytes that the server may leave unacknowledged before packets wait: a full window of every transfer.
const MAX_KEPT: usize = 16 * 1024 * 1024;

/// The pieces of one line or packet.
pub type Pieces = Arc<[Vec<u8>; 2]>;

/// What waits to be sent, and what was sent and may have to be sent again.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// What is said about a connection alone, and not counted: the latest of each.
#[derive(Default)]
pub struct Signs {
    /// So many frames of the session were taken in.
    pub ack: Option<u64>,
    /// Answers the server's.
    pub pong: bool,
    /// Asks for a sign of life.
    pub ping: bool,
}

impl Signs {
    fn next(&mut self) -> Option<ClientMessage> {
        let ack = self.ack.take().map(|received| ClientMessage::Ack(Received { received }));
        let pong = |signs: &mut Signs| take(&mut signs.pong).then_some(ClientMessage::Pong);
        let ping = |signs: &mut Signs| take(&mut signs.ping).then_some(ClientMessage::Ping);
        ack.or_else(|| pong(self)).or_else(|| ping(self))
    }
}

#[derive(Default)]
struct Waiting {
    signs: Signs,
    lines: VecDeque<Pieces>,
    /// Heads and payloads.
    packets: VecDeque<Pieces>,
    /// Frames that the server has not acknowledged, in the order in which they go out.
    kept: VecDeque<Pieces>,
    kept_bytes: usize,
    /// How many of them have gone out on this connection.
    gone: usize,
    /// When the last one went out, or was acknowledged.
    moved: Option<Instant>,
    /// Frames of this session that the server has acknowledged.
    acknowledged: u64,
    /// The connection in use, counted; its writer ends when there is another one, or none.
    connection: Option<u64>,
    connections: u64,
    /// A new session has begun, and who owns the state does not know yet: what is queued meanwhile belonged to the
    /// former one.
    outdated: bool,
    /// Nothing more is taken; what waits is still sent.
    ended: bool,
    /// Everything has been sent.
    finished: bool,
}

impl Waiting {
    /// Whether what is kept is too much for another packet.
    fn is_full(&self) -> bool {
        self.kept_bytes > MAX_KEPT
    }
}

impl Queue {
    /// Queues a message. False if the server has taken nothing for a thousand messages, or it is over.
    pub fn say(&self, message: &ClientMessage) -> bool {
        let mut waiting = self.lock();
        let taken = !waiting.ended && waiting.lines.len() + waiting.kept.len() < MAX_LINES;
        if taken && !waiting.outdated {
            waiting.lines.push_back(Arc::new([message.encode(), Vec::new()]));
            self.changed.notify_all();
        }
        taken
    }

    /// Queues a packet, and waits for room.
    ///
    /// # Errors
    /// `Interrupted` if it is over; `WouldBlock` if no frame goes out for as long as `patience`.
    pub fn packet(&self, head: Vec<u8>, payload: Vec<u8>, patience: Duration) -> io::Result<()> {
        let begun = Instant::now();
        let mut waiting = self.lock();
        while !waiting.ended && (waiting.packets.len() >= MAX_PACKETS || waiting.is_full()) {
            let end = waiting.moved.map_or(begun, |moved| moved.max(begun)) + patience;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "the server takes nothing"));
            }
            let waited = self.changed.wait_timeout(waiting, left);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if waiting.ended {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if !waiting.outdated {
            waiting.packets.push_back(Arc::new([head, payload]));
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Says something about this connection.
    pub fn sign(&self, say: impl FnOnce(&mut Signs)) {
        say(&mut self.lock().signs);
        self.changed.notify_all();
    }

    /// The server has taken in so many frames of this session. False if it cannot have.
    pub fn acknowledge(&self, received: u64) -> bool {
        let mut waiting = self.lock();
        let Some(new) = received.checked_sub(waiting.acknowledged).and_then(|new| usize::try_from(new).ok())
        else {
            return false;
        };
        if new > waiting.gone {
            return false;
        }
        let done: usize = waiting.kept.drain(..new).map(|pieces| length(&pieces)).sum();
        waiting.kept_bytes -= done;
        waiting.gone -= new;
        (waiting.acknowledged, waiting.moved) = (received, Some(Instant::now()));
        self.changed.notify_all();
        true
    }

    /// Whether an `ack` is due: the server has this many frames or bytes that it has not acknowledged.
    pub fn owes_ack(&self) -> bool {
        let waiting = self.lock();
        waiting.gone as u64 >= ACK_FRAMES || (waiting.gone > 0 && waiting.kept_bytes >= ACK_BYTES)
    }

    /// The session goes on over a new connection, whose number is returned: what the server has not taken in goes out
    /// again. `None` if it claims to have taken in what it cannot have.
    pub fn resume(&self, received: u64) -> Option<u64> {
        self.acknowledge(received).then(|| self.connect(|waiting| waiting.gone = 0))
    }

    /// A new session begins, over a connection of this number: nothing of the former one goes there.
    pub fn restart(&self) -> u64 {
        self.connect(|waiting| {
            let (ended, connections) = (waiting.ended, waiting.connections);
            *waiting = Waiting { ended, connections, outdated: true, ..Waiting::default() };
        })
    }

    /// Who owns the state knows of the new session.
    pub fn begin(&self) {
        self.lock().outdated = false;
    }

    fn connect(&self, change: impl FnOnce(&mut Waiting)) -> u64 {
        let mut waiting = self.lock();
        change(&mut waiting);
        (waiting.signs, waiting.finished) = (Signs::default(), false);
        waiting.connections += 1;
        waiting.connection = Some(waiting.connections);
        self.changed.notify_all();
        waiting.connections
    }

    /// The connection is lost: nothing goes out until there is another one.
    pub fn disconnect(&self) {
        self.lock().connection = None;
        self.changed.notify_all();
    }

    /// Nothing more is taken.
    pub fn end(&self) {
        let mut waiting = self.lock();
        waiting.ended = true;
        waiting.packets.clear();
        self.changed.notify_all();
    }

    /// The next to be sent over this connection; `None` at its end.
    pub fn next(&self, connection: u64) -> Option<Pieces> {
        let mut waiting = self.lock();
        loop {
            if waiting.connection != Some(connection) {
                return None;
            }
            if let Some(sign) = waiting.signs.next() {
                return Some(Arc::new([sign.encode(), Vec::new()]));
            }
            if waiting.gone == waiting.kept.len() {
                let new = waiting.lines.pop_front();
                if let Some(new) = new.or_else(|| waiting.packets.pop_front()) {
                    waiting.kept_bytes += length(&new);
                    waiting.kept.push_back(new);
                    self.changed.notify_all();
                }
            }
            if let Some(next) = waiting.kept.get(waiting.gone).cloned() {
                (waiting.gone, waiting.moved) = (waiting.gone + 1, Some(Instant::now()));
                return Some(next);
            }
            if waiting.ended {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until then. True if it is over.
    pub fn is_over_by(&self, then: Instant) -> bool {
        let left = then.saturating_duration_since(Instant::now());
        let wait = self.changed.wait_timeout_while(self.lock(), left, |waiting| !waiting.ended);
        wait.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    /// Nothing more goes out over this connection: everything has, or it is broken. Of one that was lost before, that says nothing.
    pub fn finished(&self, connection: u64) {
        let mut waiting = self.lock();
        waiting.finished |= waiting.connection == Some(connection);
        self.changed.notify_all();
    }

    /// Waits until all has gone out, if there is a connection for it.
    pub fn finish(&self, patience: Duration) {
        let unsent = |waiting: &mut Waiting| !waiting.finished && waiting.connection.is_some();
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
    use std::thread;

    fn begun() -> (Queue, u64) {
        let queue = Queue::default();
        let connection = queue.restart();
        queue.begin();
        (queue, connection)
    }

    /// What goes out next, as text.
    fn next(queue: &Queue, connection: u64) -> String {
        let pieces = queue.next(connection).expect("something waits");
        pieces.iter().map(|piece| String::from_utf8_lossy(piece).trim_end().to_string()).collect()
    }

    fn packet(queue: &Queue, text: &str) {
        queue.packet(text.into(), Vec::new(), Duration::ZERO).expect("room");
    }

    const LOGOUT: &str = r#"{"type":"logout"}"#;

    #[test]
    fn lines_go_before_packets_and_after_the_end_only_what_waits_goes() {
        let (queue, connection) = begun();
        packet(&queue, "one");
        packet(&queue, "two");
        assert!(queue.say(&ClientMessage::Logout));
        assert_eq!(next(&queue, connection), LOGOUT);
        assert_eq!(next(&queue, connection), "one");
        assert!(queue.say(&ClientMessage::Logout));
        queue.end();
        let end = queue.packet(Vec::new(), Vec::new(), Duration::ZERO).expect_err("it is over");
        assert!(end.kind() == io::ErrorKind::Interrupted && !queue.say(&ClientMessage::Logout));
        assert_eq!(next(&queue, connection), LOGOUT);
        assert!(queue.next(connection).is_none());
    }

    /// PROTOCOL#kept, PROTOCOL#sent-again.
    #[test]
    fn exactly_what_was_not_taken_in_goes_out_again_and_in_the_same_order() {
        let (queue, first) = begun();
        for text in ["one", "two", "three", "four"] {
            packet(&queue, text);
        }
        queue.sign(|signs| (signs.ping, signs.ack) = (true, Some(7)));
        assert_eq!(next(&queue, first), r#"{"type":"ack","received":7}"#);
        assert_eq!(next(&queue, first), r#"{"type":"ping"}"#);
        let gone: Vec<String> = (0..3).map(|_| next(&queue, first)).collect();
        assert_eq!(gone, ["one", "two", "three"]);
        assert!(queue.acknowledge(1));
        queue.sign(|signs| signs.pong = true);
        queue.disconnect();
        assert!(queue.next(first).is_none(), "the former writer ends");
        assert!(queue.say(&ClientMessage::Logout));
        let second = queue.resume(2).expect("possible");
        let gone: Vec<String> = (0..3).map(|_| next(&queue, second)).collect();
        assert_eq!(gone, ["three", LOGOUT, "four"], "no sign of the former connection, and nothing twice");
        assert!(queue.acknowledge(5));
        let waiting = queue.lock();
        assert_eq!((waiting.kept.len(), waiting.kept_bytes), (0, 0));
    }

    #[test]
    fn the_end_of_a_connection_that_was_lost_is_not_the_end_of_the_next_one() {
        let (queue, first) = begun();
        queue.disconnect();
        queue.finished(first);
        let second = queue.resume(0).expect("possible");
        assert!(queue.say(&ClientMessage::Logout));
        queue.end();
        queue.finished(first);
        thread::scope(|scope| {
            let end = scope.spawn(|| queue.finish(Duration::from_secs(60)));
            assert_eq!(next(&queue, second), LOGOUT);
            assert!(!end.is_finished() && queue.next(second).is_none());
            queue.finished(second);
        });
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_is_refused() {
        let (queue, connection) = begun();
        packet(&queue, "one");
        assert!(!queue.acknowledge(1));
        next(&queue, connection);
        assert!(!queue.acknowledge(2) && !queue.acknowledge(u64::MAX) && queue.acknowledge(1));
        assert!(!queue.acknowledge(0) && queue.resume(0).is_none() && queue.resume(2).is_none());
    }

    #[test]
    fn a_new_session_begins_with_nothing_of_the_former_one() {
        let (queue, first) = begun();
        packet(&queue, "one");
        next(&queue, first);
        packet(&queue, "two");
        let second = queue.restart();
        packet(&queue, "three");
        assert!(queue.say(&ClientMessage::Logout), "whose sender has not heard of it yet");
        queue.begin();
        packet(&queue, "four");
        assert_eq!(next(&queue, second), "four");
        assert!(queue.acknowledge(1));
    }

    #[test]
    fn packet_waits_for_its_patience_while_nothing_moves() {
        let (queue, _) = begun();
        (0..MAX_PACKETS).for_each(|_| packet(&queue, "one"));
        let error = queue.packet(Vec::new(), Vec::new(), Duration::from_millis(9)).expect_err("no room");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn who_sends_packets_waits_for_room_and_is_woken_at_the_end() {
        let (queue, connection) = begun();
        let minute = Duration::from_secs(60);
        let sends = |_: &u32| queue.packet(Vec::new(), vec![0; 9], minute).is_ok();
        thread::scope(|scope| {
            let sender = scope.spawn(|| (0..).take_while(sends).count());
            while queue.lock().packets.len() < MAX_PACKETS {
                thread::yield_now();
            }
            assert!(queue.next(connection).is_some());
            while queue.lock().packets.len() < MAX_PACKETS {
                thread::yield_now();
            }
            queue.end();
            assert_eq!(sender.join().expect("it ends"), MAX_PACKETS + 1);
        });
    }

    /// PROTOCOL#ack-when.
    #[test]
    fn ack_is_due_after_32_frames_or_128_kib() {
        let (queue, first) = begun();
        let send = |bytes: usize| {
            queue.packet(Vec::new(), vec![0; bytes], Duration::ZERO).expect("room");
            assert!(queue.next(first).is_some());
        };
        (0..31).for_each(|_| send(9));
        assert!(!queue.owes_ack());
        send(9);
        assert!(queue.owes_ack() && queue.acknowledge(2) && !queue.owes_ack());
        send(ACK_BYTES);
        assert!(queue.owes_ack() && queue.acknowledge(33) && !queue.owes_ack());
    }
}
