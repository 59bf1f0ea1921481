//! The frames of one session, in order: those that went out and are kept until its client acknowledges them, and
//! those that wait (README#resuming). Data alone; who may touch it when is for [`outbox`](super::outbox).
//!
//! Invariant: a counted frame gets its number when it first goes out, which is when it moves from what waits
//! to the end of `kept`; so `kept` is in wire order, and frame `before + n + 1` of the session is
//! `kept[n]`. Nothing leaves `kept` but at its front: acknowledged, or forgotten for a bound, after which the session
//! cannot be resumed from before that point. Keeping copies no bytes.

use super::limits::{ACK_AFTER_BYTES, ACK_AFTER_FRAMES, MAX_WAITING_PACKETS};
use crate::protocol::{KEY_BEGINS, KEY_ENDS, MAX_LINE, ServerMessage, WrappedKey};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that are encrypted together: as much as one TLS record holds.
const BATCH_BYTES: usize = 16 * 1024;

/// Frames that a queue which is empty keeps room for: less than a kilobyte.
const SMALL_QUEUE: usize = 8;

/// Bytes of packets in all sessions, waiting or kept.
static ALL_PACKETS: AtomicUsize = AtomicUsize::new(0);

/// A piece of a line or packet, perhaps the same bytes for many clients.
pub type Part = Arc<[u8]>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A line that both sides count.
    Line,
    /// A line that is not counted: it speaks of this connection, and is never sent again.
    Aside,
    Packet,
}

/// A whole line or packet.
pub struct Frame {
    head: Part,
    tail: Tail,
    kind: Kind,
}

enum Tail {
    None,
    Payload(Part),
    Key(WrappedKey),
}

impl Frame {
    /// A line that is counted, with its end.
    pub fn line(line: impl Into<Part>) -> Frame {
        Frame { head: line.into(), tail: Tail::None, kind: Kind::Line }
    }

    /// A message; whether it is counted is [`ServerMessage::is_counted`].
    pub fn message(message: &ServerMessage) -> Frame {
        let kind = if message.is_counted() { Kind::Line } else { Kind::Aside };
        Frame { kind, ..Frame::line(message.encode()) }
    }

    /// A message that is not counted, whatever it is: the login's own, and last words.
    pub fn aside(message: &ServerMessage) -> Frame {
        Frame { kind: Kind::Aside, ..Frame::line(message.encode()) }
    }

    /// An envelope: what is the same for all recipients, and this one's key.
    pub fn envelope(shared: Part, own: WrappedKey) -> Frame {
        Frame { tail: Tail::Key(own), ..Frame::line(shared) }
    }

    /// A packet with its head.
    pub fn packet(head: Vec<u8>, payload: &[u8]) -> Frame {
        Frame { head: head.into(), tail: Tail::Payload(payload.into()), kind: Kind::Packet }
    }

    /// What is sent, appended.
    fn write(&self, plain: &mut Vec<u8>) {
        plain.extend_from_slice(&self.head);
        match &self.tail {
            Tail::None => {}
            Tail::Payload(payload) => plain.extend_from_slice(payload),
            Tail::Key(key) => {
                for part in [KEY_BEGINS, key.as_str().as_bytes(), KEY_ENDS] {
                    plain.extend_from_slice(part);
                }
            }
        }
    }

    fn length(&self) -> usize {
        self.head.len()
            + match &self.tail {
                Tail::None => 0,
                Tail::Payload(payload) => payload.len(),
                Tail::Key(key) => KEY_BEGINS.len() + key.as_str().len() + KEY_ENDS.len(),
            }
    }
}

/// A queue of frames and what it holds.
#[derive(Default)]
struct Line {
    frames: VecDeque<Frame>,
    /// Of lines.
    bytes: usize,
    packets: usize,
    packet_bytes: usize,
}

impl Line {
    fn push(&mut self, frame: Frame) {
        match frame.kind {
            Kind::Packet => {
                self.packets += 1;
                self.packet_bytes += frame.length();
            }
            Kind::Line | Kind::Aside => self.bytes += frame.length(),
        }
        self.frames.push_back(frame);
    }

    fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        match frame.kind {
            Kind::Packet => {
                self.packets -= 1;
                self.packet_bytes -= frame.length();
            }
            Kind::Line | Kind::Aside => self.bytes -= frame.length(),
        }
        if self.frames.is_empty() && self.frames.capacity() > SMALL_QUEUE {
            // An idle client holds no memory for the frames it may get one day.
            self.frames = VecDeque::new();
        }
        Some(frame)
    }
}

/// An `ack` of more than was sent, or of less than the one before.
#[derive(Debug, PartialEq, Eq)]
pub struct FalseAck;

/// All frames of one session. README#frames, README#kept.
pub struct Frames {
    /// Bytes of lines: see [`Frames::is_full`].
    limit: usize,
    /// Those that went out, on this connection or a former one.
    kept: Line,
    /// So many of them, at the front, went out on this connection; the others are sent again before anything else.
    gone: usize,
    /// Counted frames before the first that is kept.
    before: u64,
    /// What the client has last said to have taken in.
    acknowledged: u64,
    /// Whether it has ever sent an `ack`.
    acknowledges: bool,
    lines: Line,
    /// They let every line go first: a file does not hold up what people say.
    packets: Line,
}

impl Frames {
    /// None. `limit` is in bytes.
    pub fn new(limit: usize) -> Frames {
        Frames {
            limit,
            kept: Line::default(),
            gone: 0,
            before: 0,
            acknowledged: 0,
            acknowledges: false,
            lines: Line::default(),
            packets: Line::default(),
        }
    }

    /// Queues a frame.
    pub fn put(&mut self, frame: Frame) {
        match frame.kind {
            Kind::Packet => {
                ALL_PACKETS.fetch_add(frame.length(), Ordering::Relaxed);
                self.packets.push(frame);
            }
            Kind::Line | Kind::Aside => self.lines.push(frame),
        }
    }

    /// Bytes of lines that count against the limit. What a connected client that never acknowledges has been sent
    /// does not: it is [forgotten](Frames::forget) instead.
    fn counted_bytes(&self, connected: bool) -> usize {
        let kept = if self.acknowledges || !connected { self.kept.bytes } else { 0 };
        self.lines.bytes + kept
    }

    /// Whether an envelope is not taken.
    pub fn is_full(&self, connected: bool) -> bool {
        self.counted_bytes(connected) > self.limit
    }

    /// Whether not even what the server itself has to say is taken.
    pub fn overflows(&self, connected: bool) -> bool {
        self.counted_bytes(connected) > self.limit.saturating_mul(2).saturating_add(MAX_LINE)
    }

    /// How many packets wait, or are kept although the client could have acknowledged them. README#kept-limit.
    pub fn packets(&self) -> usize {
        let kept = if self.acknowledges { self.kept.packets } else { 0 };
        self.packets.packets + kept.saturating_sub(ACK_AFTER_FRAMES as usize)
    }

    /// Whether a packet may be queued. There is room for far more than one client may grant, unless many do not
    /// take what they have granted: then each may have an eighth of what is left, and of what a connected client was
    /// sent only twice what it may take in without a word is kept.
    pub fn has_room(&mut self, connected: bool) -> bool {
        let share = MAX_WAITING_PACKETS.saturating_sub(ALL_PACKETS.load(Ordering::Relaxed)) / 8;
        if !connected {
            return self.packets.packet_bytes + self.kept.packet_bytes <= share;
        }
        while self.gone > 0 && self.kept.packet_bytes > share.max(2 * ACK_AFTER_BYTES) {
            self.drop_first();
        }
        self.packets.packet_bytes <= share
    }

    /// Whether nothing is left to send.
    pub fn is_idle(&self) -> bool {
        self.gone == self.kept.frames.len() && self.lines.frames.is_empty() && self.packets.frames.is_empty()
    }

    /// Puts into `plain` what goes out next: what has to be sent again, then lines, then packets. One frame of any length,
    /// or what fits one record; nothing if nothing is left to send.
    pub fn next_batch(&mut self, plain: &mut Vec<u8>) {
        plain.clear();
        while let Some(next) = self.peek() {
            if !plain.is_empty() && plain.len() + next.length() > BATCH_BYTES {
                break;
            }
            self.step(plain);
        }
    }

    /// README#packet-order.
    fn peek(&self) -> Option<&Frame> {
        let again = self.kept.frames.get(self.gone);
        again.or_else(|| self.lines.frames.front()).or_else(|| self.packets.frames.front())
    }

    /// Takes what [`Frames::peek`] shows; a counted frame is kept. Its bytes are copied: that costs less than to
    /// count, from several cores, who holds which part of a line that goes to a thousand people.
    fn step(&mut self, plain: &mut Vec<u8>) {
        if let Some(again) = self.kept.frames.get(self.gone) {
            again.write(plain);
            self.gone += 1;
        } else if let Some(frame) = self.lines.pop().or_else(|| self.packets.pop()) {
            frame.write(plain);
            if frame.kind != Kind::Aside {
                self.kept.push(frame);
                self.gone += 1;
            }
        }
    }

    /// Of a client that has never acknowledged anything, drops what was sent first until no more than the limit is held.
    pub fn forget(&mut self) {
        let held = |frames: &Frames| frames.kept.bytes + frames.kept.packet_bytes + frames.lines.bytes;
        while !self.acknowledges && self.gone > 0 && held(self) > self.limit {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(frame) = self.kept.pop() {
            self.before += 1;
            self.gone = self.gone.saturating_sub(1);
            if frame.kind == Kind::Packet {
                ALL_PACKETS.fetch_sub(frame.length(), Ordering::Relaxed);
            }
        }
    }

    /// Drops what the client has taken in, `received` frames since the login. True if that was so much that an `ack` was
    /// due. README#ack-true.
    ///
    /// # Errors
    /// [`FalseAck`], and nothing has changed.
    pub fn acknowledge(&mut self, received: u64) -> Result<bool, FalseAck> {
        if received < self.acknowledged || received > self.before + self.gone as u64 {
            return Err(FalseAck);
        }
        let bytes = |frames: &Frames| frames.kept.bytes + frames.kept.packet_bytes;
        let (former, held) = (self.acknowledged, bytes(self));
        self.drop_to(received);
        self.acknowledges = true;
        Ok(received - former >= ACK_AFTER_FRAMES || held - bytes(self) >= ACK_AFTER_BYTES)
    }

    fn drop_to(&mut self, received: u64) {
        while self.before < received {
            self.drop_first();
        }
        self.acknowledged = received;
    }

    /// Whether a client that has taken in `received` frames since the login can be sent all the rest.
    pub fn reaches(&self, received: u64) -> bool {
        (self.before..=self.before + self.gone as u64).contains(&received)
    }

    /// Begins anew on another connection whose client has taken in `received` frames since the login. False, and nothing
    /// has changed, if that is [out of reach](Frames::reaches). README#sent-again.
    pub fn resume(&mut self, received: u64) -> bool {
        if !self.reaches(received) {
            return false;
        }
        self.drop_to(received);
        self.gone = 0;
        // What spoke of the former connection is void: an old `ack` would even be false now.
        for frame in std::mem::take(&mut self.lines).frames {
            if frame.kind != Kind::Aside {
                self.lines.push(frame);
            }
        }
        true
    }

    /// The session ends: its lines still go out, nothing can be sent again.
    pub fn end(&mut self) {
        self.release_packets();
        (self.kept, self.packets, self.gone) = (Line::default(), Line::default(), 0);
    }

    /// Nothing is sent any more.
    pub fn clear(&mut self) {
        self.end();
        self.lines = Line::default();
    }

    fn release_packets(&self) {
        ALL_PACKETS.fetch_sub(self.kept.packet_bytes + self.packets.packet_bytes, Ordering::Relaxed);
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.release_packets();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::lock;
    use super::*;
    use crate::protocol::ErrorCode;
    use std::sync::Mutex;

    /// Does something while so many bytes of packets wait for others that `rest` are left for all.
    pub fn under_pressure(rest: usize, work: impl FnOnce()) {
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = lock(&ALONE);
        ALL_PACKETS.fetch_add(MAX_WAITING_PACKETS - rest, Ordering::Relaxed);
        work();
        ALL_PACKETS.fetch_sub(MAX_WAITING_PACKETS - rest, Ordering::Relaxed);
    }

    fn line(n: u8) -> Frame {
        Frame::line(vec![n; 10])
    }

    fn packet(n: u8) -> Frame {
        Frame::packet(vec![n; 4], &[n; 6])
    }

    fn aside() -> Frame {
        Frame { kind: Kind::Aside, ..line(255) }
    }

    /// The first bytes of all that goes out now.
    fn sent(frames: &mut Frames) -> Vec<u8> {
        let (mut batch, mut out) = (Vec::new(), Vec::new());
        while !frames.is_idle() {
            frames.next_batch(&mut batch);
            out.extend(batch.chunks(10).map(|frame| frame[0]));
        }
        out
    }

    /// README#packet-order, README#sent-again.
    #[test]
    fn what_was_sent_and_not_taken_in_is_sent_again_in_its_order_and_before_the_rest() {
        let mut frames = Frames::new(1000);
        [packet(1), line(2), aside(), line(3)].into_iter().for_each(|frame| frames.put(frame));
        assert_eq!(sent(&mut frames), [2, 255, 3, 1]);
        [line(4), aside(), packet(5)].into_iter().for_each(|frame| frames.put(frame));
        assert!(!frames.resume(4) && frames.resume(1));
        frames.put(line(6));
        // Cut again in the middle: only what went out on the last connection can have been taken in.
        let mut again = Vec::new();
        (0..2).for_each(|_| frames.step(&mut again));
        assert_eq!([again[0], again[10]], [3, 1]);
        assert!(!frames.reaches(4) && frames.resume(3));
        assert_eq!(sent(&mut frames), [4, 6, 5]);
        assert_eq!(frames.acknowledge(6), Ok(false));
        assert!(frames.kept.frames.is_empty() && frames.kept.bytes == 0 && frames.kept.packet_bytes == 0);
    }

    /// README#ack-true.
    #[test]
    fn an_ack_neither_falls_nor_exceeds_what_was_sent() {
        let mut frames = Frames::new(1000);
        (1..=3).for_each(|n| frames.put(line(n)));
        assert_eq!(frames.acknowledge(1), Err(FalseAck), "nothing has gone out");
        sent(&mut frames);
        assert_eq!(frames.acknowledge(4), Err(FalseAck));
        assert_eq!(frames.acknowledge(2), Ok(false));
        assert_eq!(frames.acknowledge(2), Ok(false));
        assert_eq!(frames.acknowledge(1), Err(FalseAck));
        assert!(!frames.reaches(1) && frames.reaches(2) && frames.reaches(3));
    }

    /// README#kept-limit.
    #[test]
    fn who_never_acknowledges_is_served_and_the_oldest_is_forgotten() {
        let mut frames = Frames::new(50);
        for n in 0..100 {
            assert!(!frames.is_full(true), "{n}");
            frames.put(line(n));
            sent(&mut frames);
            frames.forget();
            assert!(frames.kept.bytes <= 50);
        }
        assert!(!frames.reaches(94) && frames.reaches(95) && frames.reaches(100));
        // Without a connection nothing more is forgotten, and so it fills.
        frames.put(line(100));
        assert!(frames.is_full(false));
    }

    /// README#kept-limit.
    #[test]
    fn what_is_kept_for_one_who_acknowledges_counts_like_what_waits() {
        let mut frames = Frames::new(50);
        frames.put(line(0));
        sent(&mut frames);
        assert_eq!(frames.acknowledge(1), Ok(false));
        for n in 1..=6 {
            assert!(!frames.is_full(true), "{n}");
            frames.put(line(n));
            sent(&mut frames);
            frames.forget();
        }
        assert!(frames.is_full(true) && frames.reaches(1));
        (0..40).for_each(|n| frames.put(packet(n)));
        assert_eq!(frames.packets(), 40);
        sent(&mut frames);
        assert_eq!(frames.packets(), 8, "those it must have acknowledged");
        assert_eq!(frames.acknowledge(47), Ok(true));
        assert_eq!(frames.packets(), 0);
        assert!(!frames.is_full(true));
    }

    /// README#kept-limit.
    #[test]
    fn all_that_is_held_for_one_who_never_acknowledges_counts_and_what_was_not_sent_is_never_forgotten() {
        let mut frames = Frames::new(50);
        [line(1), packet(2), line(3), packet(4)].into_iter().for_each(|frame| frames.put(frame));
        sent(&mut frames);
        frames.put(line(5));
        frames.forget();
        assert!(frames.reaches(0), "just as much as may be held");
        frames.put(line(6));
        frames.forget();
        assert!(!frames.reaches(0) && frames.resume(1));
        (7..20).for_each(|n| frames.put(line(n)));
        frames.forget();
        assert_eq!(sent(&mut frames), [&[3, 2, 4][..], &(5..20).collect::<Vec<_>>()].concat());
    }

    /// README#ack-true.
    #[test]
    fn an_ack_was_due_after_32_frames_or_128_kib_since_the_one_before() {
        for (count, length, due) in [(31, 10, false), (32, 10, true), (2, 65_535, false), (2, 65_536, true)] {
            let mut frames = Frames::new(1 << 20);
            for received in [count, 2 * count] {
                for n in 0..count {
                    let bytes = vec![0; length];
                    frames.put(if n % 2 == 0 { Frame::line(bytes) } else { Frame::packet(bytes, b"") });
                }
                while !frames.is_idle() {
                    frames.next_batch(&mut Vec::new());
                }
                assert_eq!(frames.acknowledge(received), Ok(due), "{count} frames of {length} bytes");
            }
        }
        let mut frames = Frames::new(1 << 20);
        (0..10).for_each(|_| frames.put(Frame::line(vec![b'x'; 65_535])));
        while !frames.is_idle() {
            frames.next_batch(&mut Vec::new());
        }
        assert_eq!(frames.acknowledge(1), Ok(false), "whatever is still to be acknowledged");
    }

    #[test]
    fn a_frame_counts_as_many_bytes_as_go_out_and_its_own_messages_alone_are_not_counted_as_frames() {
        let (shared, key): (Part, _) =
            (b"{\"type\":\"encrypted_message\""[..].into(), WrappedKey::new(&[7; 256]));
        let written = |frame: &Frame| {
            let mut plain = Vec::new();
            frame.write(&mut plain);
            plain
        };
        let envelope = Frame::envelope(shared.clone(), key.clone());
        assert_eq!(written(&envelope), [&shared, KEY_BEGINS, key.as_str().as_bytes(), KEY_ENDS].concat());
        let said = ServerMessage::error(ErrorCode::Malformed, "");
        let (pong, error, last) =
            (Frame::message(&ServerMessage::Pong), Frame::message(&said), Frame::aside(&said));
        assert_eq!(
            [&envelope, &packet(1), &pong, &error, &last].map(|frame| frame.kind),
            [Kind::Line, Kind::Packet, Kind::Aside, Kind::Line, Kind::Aside]
        );
        for frame in [envelope, packet(1), line(1), pong, error, last] {
            assert_eq!(frame.length(), written(&frame).len());
        }
    }

    #[test]
    fn what_goes_out_together_fits_one_record_and_what_does_not_fit_goes_alone() {
        let mut frames = Frames::new(1 << 20);
        for length in [8192, 8192, 1, 16_383, 40_000, 1] {
            frames.put(Frame::line(vec![b'x'; length]));
        }
        let (mut batch, mut lengths) = (Vec::new(), Vec::new());
        while !frames.is_idle() && lengths.len() < 6 {
            frames.next_batch(&mut batch);
            lengths.push(batch.len());
        }
        assert_eq!(lengths, [16_384, 16_384, 40_000, 1]);
        frames.next_batch(&mut batch);
        assert!(batch.is_empty());
    }

    #[test]
    fn an_idle_queue_holds_no_more_memory_than_that_of_a_few_frames() {
        for (count, held) in [(SMALL_QUEUE, SMALL_QUEUE), (SMALL_QUEUE + 1, 0), (1000, 0)] {
            let mut line = Line { frames: VecDeque::with_capacity(count), ..Line::default() };
            (0..count).for_each(|_| line.push(packet(1)));
            for left in (0..count).rev() {
                assert!(line.pop().is_some() && line.frames.len() == left);
                assert!(left == 0 || line.frames.capacity() >= count);
            }
            assert_eq!((line.frames.capacity(), line.packets, line.packet_bytes), (held, 0, 0));
        }
    }

    #[test]
    fn of_a_session_that_has_ended_nothing_is_held() {
        let mut frames = Frames::new(1000);
        frames.put(line(1));
        sent(&mut frames);
        [line(2), packet(3)].into_iter().for_each(|frame| frames.put(frame));
        frames.clear();
        assert!(frames.is_idle() && !frames.reaches(1));
        assert_eq!([&frames.kept, &frames.lines, &frames.packets].map(|line| line.frames.len()), [0; 3]);
    }

    /// README#ends-at-once.
    #[test]
    fn what_the_server_itself_says_may_be_two_outboxes_and_a_mebibyte_and_no_more() {
        let mut frames = Frames::new(50);
        frames.put(Frame::line(vec![b'x'; 2 * 50 + MAX_LINE]));
        assert!(frames.is_full(true) && !frames.overflows(true));
        frames.put(Frame::line(*b"x"));
        assert!(frames.overflows(true));
    }

    /// README#kept-limit.
    #[test]
    fn where_much_waits_for_many_each_may_have_an_eighth_of_the_rest_and_gives_it_back() {
        const PACKET: usize = 64 * 1024;
        // Room for four packets: 4 are at most (rest - 4) / 8. Half a packet is for what other tests have waiting.
        const REST: usize = 9 * 4 * PACKET + PACKET / 2;
        let queue = |count: usize| {
            let mut frames = Frames::new(1 << 30);
            (0..count).for_each(|_| frames.put(Frame::packet(vec![0], &[0; PACKET - 1])));
            frames
        };
        under_pressure(REST, || {
            assert!(queue(4).has_room(true) && queue(4).has_room(false));
            let mut frames = queue(5);
            assert!(!frames.has_room(true) && !frames.has_room(false));
            while !frames.is_idle() {
                frames.next_batch(&mut Vec::new());
            }
            assert!(
                !frames.has_room(false) && frames.reaches(0),
                "without a connection nothing is forgotten"
            );
            // Nor is what has to be sent again.
            assert!(frames.resume(0) && !frames.is_idle() && frames.has_room(true) && frames.reaches(0));
            while !frames.is_idle() {
                frames.next_batch(&mut Vec::new());
            }
            // Of what went out, 256 KiB are kept at least.
            assert!(frames.has_room(true) && !frames.reaches(0) && frames.reaches(1));
            assert_eq!(frames.kept.packet_bytes, 4 * PACKET);
            // What is gone, however it went, makes room, and no more than it took.
            frames.put(Frame::packet(vec![0], &[0; PACKET - 1]));
            drop(frames);
            let mut ended = queue(3);
            ended.end();
            assert!(queue(4).has_room(true) && !queue(5).has_room(true));
        });
    }
}
