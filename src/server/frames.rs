//! The frames of one session, in order: those that went out and are kept until its client acknowledges them, and
//! those that wait (PROTOCOL#resuming). Data alone; who may touch it when is for [`outbox`](super::outbox).
//!
//! Invariant: lines stand in one row, in the order in which they were queued. The first `gone` of it went out on this
//! connection and are kept; a counted frame gets its number when it first goes out, so the first of the row is
//! frame `before + 1` of the session, and so on. `Frames::reached` tells the highest number that ever went out, on
//! whichever connection (the member of that name knows of former ones alone): a client may resume from there, and
//! acknowledges no more than this connection was sent. A packet is put into the row when it goes out, which is when no line
//! waits; a line that is not counted is taken out of it then. Nothing else leaves it but at its front: acknowledged, or
//! forgotten for a bound, after which the session cannot be resumed from before that point.

use super::limits::{ACK_AFTER_BYTES, ACK_AFTER_FRAMES, MAX_WAITING_PACKETS};
use super::receipts::{Receipt, Receipts};
use crate::name::Username;
use crate::protocol::{KEY_BEGINS, KEY_ENDS, MAX_LINE, ServerMessage, WrappedKey};
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

/// A queue keeps room for so many, 1.3 KiB of frames, even if it is empty.
const FEW: usize = 32;
/// Wrapped keys in memory that is asked for at once: 2.7 KiB.
const GROUP: usize = 8;

/// Bytes of packets in all sessions, waiting or kept.
static ALL_PACKETS: AtomicUsize = AtomicUsize::new(0);

/// A piece of a line or packet, perhaps the same bytes for many clients.
pub type Part = Arc<[u8]>;

/// Whose frame it is: a hash of the name under a random key, so that nobody can choose a name that counts as another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender(NonZeroU32);

impl Sender {
    /// The same for a name until the process ends.
    pub fn of(name: &Username) -> Sender {
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Sender(NonZeroU32::new(KEY.hash_one(name) as u32).unwrap_or(NonZeroU32::MIN))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A line that both sides count.
    Line,
    /// A line that ends with its recipient's own wrapped key, and is counted.
    Envelope,
    /// The same, with a [`Receipt`].
    Letter,
    /// A line that is not counted: it speaks of this connection, and is never sent again.
    Aside,
    Packet,
}

impl Kind {
    /// Whether a wrapped key belongs to it.
    fn has_key(self) -> bool {
        matches!(self, Kind::Envelope | Kind::Letter)
    }
}

/// A whole line or packet, but for its wrapped key.
struct Parts {
    head: Part,
    tail: Option<Part>,
    kind: Kind,
    /// `None` for the server's own.
    sender: Option<Sender>,
}

impl Parts {
    fn length(&self) -> usize {
        const KEY: usize = KEY_BEGINS.len() + WrappedKey::DIGITS + KEY_ENDS.len();
        let key = if self.kind.has_key() { KEY } else { 0 };
        self.head.len() + self.tail.as_ref().map_or(0, |tail| tail.len()) + key
    }
}

/// A whole line or packet.
pub struct Frame<'a> {
    parts: Parts,
    key: Option<&'a WrappedKey>,
    receipt: Option<Receipt>,
}

impl<'a> Frame<'a> {
    fn new(kind: Kind, head: impl Into<Part>) -> Frame<'a> {
        let parts = Parts { head: head.into(), tail: None, kind, sender: None };
        Frame { parts, key: None, receipt: None }
    }

    /// A line that is counted, with its end.
    pub fn line(line: impl Into<Part>) -> Frame<'a> {
        Frame::new(Kind::Line, line)
    }

    /// A message; whether it is counted is [`ServerMessage::is_counted`].
    pub fn message(message: &ServerMessage) -> Frame<'a> {
        Frame::new(if message.is_counted() { Kind::Line } else { Kind::Aside }, message.encode())
    }

    /// A message that is not counted, whatever it is: the login's own, and last words.
    pub fn aside(message: &ServerMessage) -> Frame<'a> {
        Frame::new(Kind::Aside, message.encode())
    }

    /// An envelope: what is the same for all recipients, and this one's key.
    pub fn envelope(shared: Part, own: &'a WrappedKey) -> Frame<'a> {
        Frame { key: Some(own), ..Frame::new(Kind::Envelope, shared) }
    }

    /// The same, whose sender is notified if the session ends before it was acknowledged.
    pub fn with_receipt(mut self, receipt: Receipt) -> Frame<'a> {
        self.parts.kind = Kind::Letter;
        Frame { receipt: Some(receipt), ..self }
    }

    /// The same, from another client.
    pub fn by(mut self, sender: Sender) -> Frame<'a> {
        self.parts.sender = Some(sender);
        self
    }

    /// A packet with its head.
    pub fn packet(head: Vec<u8>, payload: &[u8]) -> Frame<'a> {
        let mut frame = Frame::new(Kind::Packet, head);
        frame.parts.tail = Some(payload.into());
        frame
    }
}

/// Gives memory back that was for far more than is there: an idle client holds none for what it may get one day.
fn spare<T>(queue: &mut VecDeque<T>) {
    if queue.capacity() > FEW && queue.len() < queue.capacity() / 8 {
        queue.shrink_to(FEW.max(2 * queue.len()));
    }
}

/// Wrapped keys in order, in groups: to ask for memory for each of a thousand recipients, and to give it back from another
/// thread, took a quarter of a broadcast's time.
#[derive(Default)]
struct Keys {
    groups: VecDeque<Vec<WrappedKey>>,
    /// So many of the first group are taken out already.
    taken: usize,
}

impl Keys {
    fn push(&mut self, key: WrappedKey) {
        if self.groups.back().is_none_or(|last| last.len() == GROUP) {
            self.groups.push_back(Vec::with_capacity(GROUP));
        }
        self.groups.back_mut().expect("it is there now").push(key);
    }

    fn get(&self, place: usize) -> &WrappedKey {
        let place = self.taken + place;
        &self.groups[place / GROUP][place % GROUP]
    }

    /// Takes the first one out.
    fn pop(&mut self) {
        self.taken += 1;
        let is_only = self.groups.len() == 1;
        let Some(first) = self.groups.front_mut().filter(|first| first.len() == self.taken) else { return };
        self.taken = 0;
        if is_only {
            // Its memory is for the next.
            first.clear();
        } else {
            self.groups.pop_front();
            spare(&mut self.groups);
        }
    }
}

/// Frames in order, and what they hold.
#[derive(Default)]
struct Row {
    frames: VecDeque<Parts>,
    /// Of the envelopes, in the same order.
    keys: Keys,
    /// Of lines.
    bytes: usize,
    packets: usize,
    packet_bytes: usize,
}

impl Row {
    fn push(&mut self, frame: Parts, key: Option<&WrappedKey>) {
        match frame.kind {
            Kind::Packet => {
                self.packets += 1;
                self.packet_bytes += frame.length();
            }
            _ => self.bytes += frame.length(),
        }
        if let Some(key) = key {
            self.keys.push(key.clone());
        }
        self.frames.push_back(frame);
    }

    /// Takes the first one out.
    fn pop(&mut self) -> Option<Parts> {
        let frame = self.frames.pop_front()?;
        match frame.kind {
            Kind::Packet => {
                self.packets -= 1;
                self.packet_bytes -= frame.length();
            }
            _ => self.bytes -= frame.length(),
        }
        if frame.kind.has_key() {
            self.keys.pop();
        }
        spare(&mut self.frames);
        Some(frame)
    }

    /// Takes one out that is not counted.
    fn remove_aside(&mut self, place: usize) {
        if let Some(aside) = self.frames.remove(place) {
            self.bytes -= aside.length();
        }
        spare(&mut self.frames);
    }

    /// Takes all of them out.
    fn drop_asides(&mut self) {
        let (frames, bytes) = (&mut self.frames, &mut self.bytes);
        frames.retain(|frame| {
            let is_aside = frame.kind == Kind::Aside;
            *bytes -= if is_aside { frame.length() } else { 0 };
            !is_aside
        });
        spare(frames);
    }
}

/// An `ack` of more than was sent, or of less than the one before.
#[derive(Debug, PartialEq, Eq)]
pub struct FalseAck;

/// The beginning of a row.
#[derive(Default)]
struct Gone {
    frames: usize,
    /// Wrapped keys among them.
    keys: usize,
    /// Of lines among them.
    bytes: usize,
}

/// All frames of one session. PROTOCOL#frames, PROTOCOL#kept.
pub struct Frames {
    /// Bytes of lines: see [`Frames::is_full`].
    limit: usize,
    /// What went out, and the lines that wait.
    row: Row,
    /// Those of them, at the front, that went out on this connection; those behind, that have gone out on a former one, are
    /// sent again before anything else.
    gone: Gone,
    /// Counted frames before the first of the row.
    before: u64,
    /// What the client has last said to have taken in.
    acknowledged: u64,
    /// Whether it has ever sent an `ack`.
    acknowledges: bool,
    /// Those that wait. They let every line go first: a file does not hold up what people say.
    packets: Row,
    /// Packets that are about to be queued, and their bytes: see [`Frames::reserve`].
    reserved: (usize, usize),
    /// The highest number that went out on a former connection.
    reached: u64,
    /// `None` once they were [taken](Frames::take_receipts).
    receipts: Option<Receipts>,
}

impl Frames {
    /// None. `limit` is in bytes.
    pub fn new(limit: usize) -> Frames {
        Frames {
            limit,
            row: Row::default(),
            gone: Gone::default(),
            before: 0,
            acknowledged: 0,
            acknowledges: false,
            packets: Row::default(),
            reserved: (0, 0),
            reached: 0,
            receipts: Some(Receipts::default()),
        }
    }

    /// Queues a frame.
    pub fn put(&mut self, frame: Frame<'_>) {
        let Frame { parts, key, receipt } = frame;
        if let (Some(receipts), Some(receipt)) = (&mut self.receipts, receipt) {
            receipts.push(receipt);
        }
        match parts.kind {
            Kind::Packet => {
                ALL_PACKETS.fetch_add(parts.length(), Ordering::Relaxed);
                self.packets.push(parts, None);
            }
            _ => self.row.push(parts, key),
        }
    }

    /// What of the row does not count against the limit: what a connected client that never acknowledges has been sent,
    /// which is [forgotten](Frames::forget) instead.
    fn uncounted(&self, connected: bool) -> (usize, usize) {
        if self.acknowledges || !connected { (0, 0) } else { (self.gone.frames, self.gone.bytes) }
    }

    /// Bytes of lines that count against the limit.
    fn counted_bytes(&self, connected: bool) -> usize {
        self.row.bytes - self.uncounted(connected).1
    }

    /// Whether a frame of another client is taken. Beyond half of the limit its sender may hold no more, with this frame, than
    /// is free: so a flood leaves half of it to all others, a second one a quarter. PROTOCOL#shares.
    pub fn takes(&self, frame: &Frame<'_>, connected: bool) -> bool {
        let held = self.counted_bytes(connected);
        if held <= self.limit / 2 {
            return true;
        }
        // A walk along the row, in an outbox that is filling up alone.
        let theirs = |parts: &&Parts| parts.kind != Kind::Packet && parts.sender == frame.parts.sender;
        let counted = self.row.frames.iter().skip(self.uncounted(connected).0);
        let theirs: usize = counted.filter(theirs).map(Parts::length).sum();
        theirs + frame.parts.length() <= self.limit.saturating_sub(held)
    }

    /// Whether not even what the server itself has to say is taken.
    pub fn overflows(&self, connected: bool) -> bool {
        self.counted_bytes(connected) > self.limit.saturating_mul(2).saturating_add(MAX_LINE)
    }

    /// How many packets wait or are about to, or are kept although the client could have acknowledged them.
    /// PROTOCOL#kept-limit.
    pub fn packets(&self) -> usize {
        let kept = if self.acknowledges { self.row.packets } else { 0 };
        self.packets.packets + self.reserved.0 + kept.saturating_sub(ACK_AFTER_FRAMES as usize)
    }

    /// Reserves room for a packet of `length` bytes, which counts as waiting from now on. There is room for far more
    /// than one client may grant, unless many do not take what they have granted: then each may have an eighth of what
    /// is left (and one packet, if it has none), and of what a connected client was sent only twice what it may take
    /// in without a word is kept.
    pub fn reserve(&mut self, length: usize, connected: bool) -> bool {
        let share = MAX_WAITING_PACKETS.saturating_sub(ALL_PACKETS.load(Ordering::Relaxed)) / 8;
        while connected && self.gone.frames > 0 && self.row.packet_bytes > share.max(2 * ACK_AFTER_BYTES) {
            self.drop_first();
        }
        self.receipts.iter_mut().for_each(Receipts::forget);
        let kept = if connected { 0 } else { self.row.packet_bytes };
        let fits = self.packets.packet_bytes + self.reserved.1 + kept <= share;
        if fits {
            ALL_PACKETS.fetch_add(length, Ordering::Relaxed);
            self.reserved = (self.reserved.0 + 1, self.reserved.1 + length);
        }
        fits
    }

    /// Releases the room reserved for a packet of `length` bytes: it is queued or dropped.
    pub fn release(&mut self, length: usize) {
        ALL_PACKETS.fetch_sub(length, Ordering::Relaxed);
        self.reserved = (self.reserved.0 - 1, self.reserved.1 - length);
    }

    /// Whether nothing is left to send.
    pub fn is_idle(&self) -> bool {
        self.gone.frames == self.row.frames.len() && self.packets.frames.is_empty()
    }

    /// Puts into `plain` what goes out next: what has to be sent again, then lines, then packets. One frame of any length,
    /// or what fits `most` bytes; nothing if nothing is left to send.
    pub fn next_batch(&mut self, plain: &mut Vec<u8>, most: usize) {
        plain.clear();
        plain.reserve(self.peek().map_or(0, Parts::length));
        while let Some(next) = self.peek() {
            if !plain.is_empty() && plain.len() + next.length() > most {
                break;
            }
            self.step(plain);
        }
    }

    /// PROTOCOL#packet-order.
    fn peek(&self) -> Option<&Parts> {
        self.row.frames.get(self.gone.frames).or_else(|| self.packets.frames.front())
    }

    /// Takes what [`Frames::peek`] shows; a counted frame is kept. Its bytes are copied: that costs less than to
    /// count, from several cores, who holds which part of a line that goes to a thousand people.
    fn step(&mut self, plain: &mut Vec<u8>) {
        if self.gone.frames == self.row.frames.len()
            && let Some(packet) = self.packets.pop()
        {
            self.row.push(packet, None);
        }
        let Some(frame) = self.row.frames.get(self.gone.frames) else { return };
        plain.extend_from_slice(&frame.head);
        plain.extend_from_slice(frame.tail.as_deref().unwrap_or_default());
        match frame.kind {
            Kind::Aside => return self.row.remove_aside(self.gone.frames),
            Kind::Envelope | Kind::Letter => {
                for part in [KEY_BEGINS, self.row.keys.get(self.gone.keys).digits(), KEY_ENDS] {
                    plain.extend_from_slice(part);
                }
                self.gone.keys += 1;
                self.gone.bytes += frame.length();
            }
            Kind::Line => self.gone.bytes += frame.length(),
            Kind::Packet => {}
        }
        self.gone.frames += 1;
    }

    /// Of a client that has never acknowledged anything, drops what was sent first until no more than the limit is held.
    pub fn forget(&mut self) {
        while !self.acknowledges
            && self.gone.frames > 0
            && self.row.bytes + self.row.packet_bytes > self.limit
        {
            self.drop_first();
            self.receipts.iter_mut().for_each(Receipts::forget);
        }
    }

    /// Drops the first of those that have gone out on this connection.
    fn drop_first(&mut self) {
        let Some(frame) = self.pop() else { return };
        self.gone.frames -= 1;
        self.gone.bytes -= if frame.kind == Kind::Packet { 0 } else { frame.length() };
        self.gone.keys -= usize::from(frame.kind.has_key());
    }

    /// Takes the first one out of the row.
    fn pop(&mut self) -> Option<Parts> {
        let frame = self.row.pop()?;
        self.before += 1;
        match (frame.kind, &mut self.receipts) {
            (Kind::Packet, _) => _ = ALL_PACKETS.fetch_sub(frame.length(), Ordering::Relaxed),
            (Kind::Letter, Some(receipts)) => receipts.leaves(self.before),
            _ => {}
        }
        Some(frame)
    }

    /// Drops what the client has taken in, `received` frames since the login. True if that was so much that an `ack` was
    /// due. PROTOCOL#ack-true.
    ///
    /// # Errors
    /// [`FalseAck`], and nothing has changed.
    pub fn acknowledge(&mut self, received: u64) -> Result<bool, FalseAck> {
        if received < self.acknowledged || received > self.before + self.gone.frames as u64 {
            return Err(FalseAck);
        }
        let bytes = |frames: &Frames| frames.row.bytes + frames.row.packet_bytes;
        let (former, held) = (self.acknowledged, bytes(self));
        while self.before < received {
            self.drop_first();
        }
        self.receipts.iter_mut().for_each(|receipts| receipts.acknowledge(received));
        (self.acknowledged, self.acknowledges) = (received, true);
        Ok(received - former >= ACK_AFTER_FRAMES || held - bytes(self) >= ACK_AFTER_BYTES)
    }

    /// The highest number that has ever gone out.
    fn reached(&self) -> u64 {
        self.reached.max(self.before + self.gone.frames as u64)
    }

    /// Whether a client that has taken in `received` frames since the login can be sent all the rest. It may have them from
    /// any connection: one that was given up may have been resumed after the one that it came back on.
    pub fn reaches(&self, received: u64) -> bool {
        (self.before..=self.reached()).contains(&received)
    }

    /// Begins anew on another connection whose client has taken in `received` frames since the login. False, and nothing
    /// has changed, if that is [out of reach](Frames::reaches). PROTOCOL#sent-again.
    pub fn resume(&mut self, received: u64) -> bool {
        if !self.reaches(received) {
            return false;
        }
        (self.reached, self.gone) = (self.reached(), Gone::default());
        // What spoke of the former connection is void: an old `ack` would even be false now.
        self.row.drop_asides();
        while self.before < received && self.pop().is_some() {}
        self.receipts.iter_mut().for_each(|receipts| receipts.acknowledge(received));
        self.acknowledged = received;
        true
    }

    /// The session ends: its lines still go out, nothing can be sent again.
    pub fn end(&mut self) {
        while self.gone.frames > 0 {
            self.drop_first();
        }
        ALL_PACKETS.fetch_sub(self.packets.packet_bytes, Ordering::Relaxed);
        self.packets = Row::default();
    }

    /// Takes the receipts of what the client has not acknowledged; `None` if they were taken.
    pub fn take_receipts(&mut self) -> Option<Receipts> {
        self.receipts.take()
    }

    /// Whether the receipts were taken: no message may be queued after that.
    pub fn are_reported(&self) -> bool {
        self.receipts.is_none()
    }

    /// Nothing is sent any more. The receipts stay.
    pub fn clear(&mut self) {
        self.release_packets();
        (self.row, self.packets) = (Row::default(), Row::default());
        self.gone = Gone::default();
    }

    fn release_packets(&self) {
        ALL_PACKETS.fetch_sub(self.row.packet_bytes + self.packets.packet_bytes, Ordering::Relaxed);
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
    use std::ops::Range;
    use std::sync::{Mutex, Weak};

    impl Frames {
        /// Of the messages that have a receipt.
        fn ids(&self) -> Vec<u64> {
            self.receipts.as_ref().map(Receipts::ids).unwrap_or_default()
        }
    }

    /// Does something while so many bytes of packets wait for others that `rest` are left for all.
    pub fn under_pressure(rest: usize, work: impl FnOnce()) {
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = lock(&ALONE);
        ALL_PACKETS.fetch_add(MAX_WAITING_PACKETS - rest, Ordering::Relaxed);
        work();
        ALL_PACKETS.fetch_sub(MAX_WAITING_PACKETS - rest, Ordering::Relaxed);
    }

    fn line(n: u8) -> Frame<'static> {
        Frame::line(vec![n; 10])
    }

    fn packet(n: u8) -> Frame<'static> {
        Frame::packet(vec![n; 4], &[n; 6])
    }

    /// Whether a line of a third person is not taken.
    fn is_full(frames: &Frames, connected: bool) -> bool {
        !frames.takes(&line(0).by(sender("carol")), connected)
    }

    fn sender(name: &str) -> Sender {
        Sender::of(&name.parse().expect("name"))
    }

    fn has_room(frames: &mut Frames, connected: bool) -> bool {
        let fits = frames.reserve(1, connected);
        (0..u8::from(fits)).for_each(|_| frames.release(1));
        fits
    }

    fn aside() -> Frame<'static> {
        Frame::new(Kind::Aside, vec![255; 10])
    }

    /// The first bytes of all that goes out now.
    fn sent(frames: &mut Frames) -> Vec<u8> {
        let (mut batch, mut out) = (Vec::new(), Vec::new());
        while !frames.is_idle() {
            frames.next_batch(&mut batch, 100);
            out.extend(batch.chunks(10).map(|frame| frame[0]));
        }
        out
    }

    /// PROTOCOL#packet-order, PROTOCOL#sent-again.
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
        assert!(
            frames.row.frames.is_empty()
                && (frames.row.bytes, frames.gone.bytes, frames.row.packet_bytes) == (0, 0, 0)
        );
    }

    /// PROTOCOL#no-session.
    #[test]
    fn older_resumption_that_comes_late_ends_no_session() {
        let mut frames = Frames::new(1000);
        [line(1), packet(2), line(3)].into_iter().for_each(|frame| frames.put(frame));
        assert_eq!(sent(&mut frames), [1, 3, 2]);
        // An attempt that was given up, and on which nothing goes out; then the count that is true.
        assert!(frames.resume(1) && frames.resume(1));
        assert_eq!(frames.acknowledge(2), Err(FalseAck), "this connection was sent nothing yet");
        assert!(frames.reaches(3) && !frames.reaches(4) && frames.resume(3));
        assert_eq!(frames.acknowledge(2), Err(FalseAck), "it has said that it has three");
        assert!(frames.is_idle() && !frames.reaches(2) && frames.row.packet_bytes == 0);
        frames.put(line(4));
        assert_eq!((sent(&mut frames), frames.acknowledge(4)), (vec![4], Ok(false)));
    }

    /// PROTOCOL#shares.
    #[test]
    fn sender_beyond_half_holds_no_more_than_is_free() {
        let [eve, mallory, carol] = ["eve", "mallory", "carol"].map(sender);
        let mut frames = Frames::new(100);
        let flood = |frames: &mut Frames, sender: Sender| {
            let mut taken = 0;
            while taken < 100 && frames.takes(&line(0).by(sender), false) {
                frames.put(line(0).by(sender));
                taken += 1;
            }
            taken
        };
        // Up to half it is anybody's; an acknowledged frame makes room, and what went out and is kept counts.
        assert_eq!(flood(&mut frames, eve), 6);
        sent(&mut frames);
        assert_eq!((flood(&mut frames, eve), flood(&mut frames, mallory)), (0, 2));
        assert_eq!((flood(&mut frames, carol), flood(&mut frames, eve)), (1, 0));
        assert_eq!((frames.acknowledge(3), flood(&mut frames, eve)), (Ok(false), 1));
        // What the server itself has to say leaves less to all of them.
        frames.put(Frame::line(vec![0; 100]));
        assert_eq!([eve, mallory, carol].map(|one| flood(&mut frames, one)), [0; 3]);
        // What will be forgotten, because its client never acknowledges, is no part of anybody's share.
        let mut frames = Frames::new(100);
        (0..5).for_each(|_| frames.put(line(0).by(eve)));
        sent(&mut frames);
        (0..6).for_each(|_| frames.put(line(0).by(carol)));
        assert!(frames.takes(&line(0).by(eve), true) && !frames.takes(&line(0).by(carol), true));
        assert_eq!(size_of::<Parts>(), 40, "one more member would cost every idle client 256 bytes");
    }

    /// PROTOCOL#lost.
    #[test]
    fn receipts_leave_with_the_frames_the_client_acknowledges() {
        let key = WrappedKey::new(&[1; 264]);
        let letter = |id| {
            Frame::envelope(vec![id; 10].into(), &key).with_receipt(Receipt::new(Weak::new(), id.into()))
        };
        let mut frames = Frames::new(100_000);
        let put = |frames: &mut Frames, ids: Range<u8>| ids.for_each(|id| frames.put(letter(id)));
        put(&mut frames, 1..3);
        [packet(0), aside(), line(0)].into_iter().for_each(|frame| frames.put(frame));
        put(&mut frames, 3..5);
        // Lines first: frames 1 and 2, line 3, frames 4 and 5, packet 6.
        sent(&mut frames);
        put(&mut frames, 5..7);
        assert_eq!(frames.ids(), [1, 2, 3, 4, 5, 6]);
        assert_eq!((frames.acknowledge(1), frames.ids()), (Ok(false), vec![2, 3, 4, 5, 6]));
        // What is not sent again any more is not acknowledged either.
        frames.drop_first();
        frames.drop_first();
        assert_eq!(frames.ids(), [2, 3, 4, 5, 6]);
        assert_eq!((frames.acknowledge(3), frames.ids()), (Ok(false), vec![3, 4, 5, 6]));
        assert!(frames.resume(4));
        assert_eq!(frames.ids(), [4, 5, 6]);
        sent(&mut frames);
        assert_eq!((frames.acknowledge(7), frames.ids()), (Ok(false), vec![6]));
        put(&mut frames, 7..9);
        frames.end();
        frames.clear();
        assert_eq!(frames.ids(), [6, 7, 8]);
        assert!(
            frames.take_receipts().is_some() && frames.are_reported() && frames.take_receipts().is_none()
        );
        // Of a client that never acknowledges, the latest are remembered.
        let mut frames = Frames::new(0);
        for _ in 0..1000 {
            put(&mut frames, 0..1);
            sent(&mut frames);
            frames.forget();
        }
        assert_eq!(frames.ids().len(), 256);
    }

    /// PROTOCOL#granted-limit.
    #[test]
    fn packet_counts_from_its_reservation_on() {
        let mut frames = Frames::new(1000);
        let all = || ALL_PACKETS.load(Ordering::Relaxed);
        under_pressure(1 << 20, || {
            let before = all();
            assert!(frames.reserve(10, true) && frames.packets() == 1 && all() >= before + 10);
            frames.release(10);
            frames.put(packet(1));
            assert_eq!(frames.packets(), 1);
        });
        assert!(frames.reserve(10, false) && frames.packets() == 2);
        frames.release(10);
        assert_eq!((frames.packets(), frames.reserved), (1, (0, 0)));
    }

    /// PROTOCOL#ack-true.
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

    /// PROTOCOL#kept-limit.
    #[test]
    fn who_never_acknowledges_is_served_and_the_oldest_is_forgotten() {
        let mut frames = Frames::new(50);
        for n in 0..100 {
            assert!(!is_full(&frames, true), "{n}");
            frames.put(line(n));
            sent(&mut frames);
            frames.forget();
            assert!(frames.row.bytes <= 50);
        }
        assert!(!frames.reaches(94) && frames.reaches(95) && frames.reaches(100));
        // Without a connection nothing more is forgotten, and so it fills.
        frames.put(line(100));
        assert!(is_full(&frames, false));
    }

    /// PROTOCOL#kept-limit.
    #[test]
    fn what_is_kept_for_one_who_acknowledges_counts_like_what_waits() {
        let mut frames = Frames::new(50);
        frames.put(line(0));
        sent(&mut frames);
        assert_eq!(frames.acknowledge(1), Ok(false));
        for n in 1..=5 {
            assert!(!is_full(&frames, true), "{n}");
            frames.put(line(n));
            sent(&mut frames);
            frames.forget();
        }
        assert!(is_full(&frames, true) && frames.reaches(1));
        (0..40).for_each(|n| frames.put(packet(n)));
        assert_eq!(frames.packets(), 40);
        sent(&mut frames);
        assert_eq!(frames.packets(), 8, "those it must have acknowledged");
        assert_eq!(frames.acknowledge(46), Ok(true));
        assert_eq!(frames.packets(), 0);
        assert!(!is_full(&frames, true));
    }

    /// PROTOCOL#kept-limit.
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

    /// PROTOCOL#ack-true.
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
                    frames.next_batch(&mut Vec::new(), 100);
                }
                assert_eq!(frames.acknowledge(received), Ok(due), "{count} frames of {length} bytes");
            }
        }
        let mut frames = Frames::new(1 << 20);
        (0..10).for_each(|_| frames.put(Frame::line(vec![b'x'; 65_535])));
        while !frames.is_idle() {
            frames.next_batch(&mut Vec::new(), 100);
        }
        assert_eq!(frames.acknowledge(1), Ok(false), "whatever is still to be acknowledged");
    }

    #[test]
    fn a_frame_counts_as_many_bytes_as_go_out_and_its_own_messages_alone_are_not_counted_as_frames() {
        let (shared, key): (Part, _) =
            (b"{\"type\":\"encrypted_message\""[..].into(), WrappedKey::new(&[7; 264]));
        let said = ServerMessage::error(ErrorCode::Malformed, "");
        let all = [
            (Frame::envelope(shared.clone(), &key), Kind::Envelope),
            (packet(1), Kind::Packet),
            (line(1), Kind::Line),
            (Frame::message(&ServerMessage::Pong), Kind::Aside),
            (Frame::message(&said), Kind::Line),
            (Frame::aside(&said), Kind::Aside),
        ];
        for (frame, kind) in all {
            assert_eq!(frame.parts.kind, kind);
            let (mut frames, mut plain, length) = (Frames::new(1000), Vec::new(), frame.parts.length());
            frames.put(frame);
            assert_eq!(frames.row.bytes + frames.packets.packet_bytes, length);
            frames.next_batch(&mut plain, 100);
            assert_eq!(plain.len(), length);
            assert!(frames.is_idle() && frames.reaches(u64::from(kind != Kind::Aside)));
            if kind == Kind::Envelope {
                assert_eq!(plain, [&shared, KEY_BEGINS, key.digits(), KEY_ENDS].concat());
            }
        }
    }

    #[test]
    fn each_envelope_goes_out_with_its_own_key_as_often_as_it_goes_out() {
        let mut frames = Frames::new(1 << 20);
        let last_digits = |frames: &mut Frames| {
            let mut plain = Vec::new();
            frames.step(&mut plain);
            plain[plain.len().saturating_sub(KEY_ENDS.len() + WrappedKey::DIGITS)..][..4].to_vec()
        };
        let keys: Vec<_> = (0..20).map(|n| WrappedKey::new(&[n; 264])).collect();
        for key in &keys {
            frames.put(Frame::envelope(b"{".to_vec().into(), key));
            frames.put(aside());
            frames.put(line(9));
        }
        let digits = |n: usize| keys[n].digits()[..4].to_vec();
        for n in 0..13 {
            assert_eq!(last_digits(&mut frames), digits(n));
            (0..2).for_each(|_| drop(last_digits(&mut frames)));
        }
        assert_eq!(frames.acknowledge(22), Ok(false));
        assert!(frames.resume(22));
        for n in 11..20 {
            assert_eq!(last_digits(&mut frames), digits(n));
            last_digits(&mut frames);
        }
        assert!(frames.is_idle() && frames.acknowledge(40) == Ok(false));
        assert_eq!(
            (frames.row.bytes, frames.row.keys.groups[0].len(), frames.gone.frames, frames.gone.keys),
            (0, 0, 0, 0)
        );
    }

    #[test]
    fn what_goes_out_together_is_bounded_and_what_is_longer_goes_alone() {
        let mut frames = Frames::new(1 << 20);
        for length in [50, 50, 1, 99, 200, 1] {
            frames.put(Frame::line(vec![b'x'; length]));
        }
        let (mut batch, mut lengths) = (Vec::new(), Vec::new());
        while !frames.is_idle() && lengths.len() < 6 {
            frames.next_batch(&mut batch, 100);
            lengths.push(batch.len());
        }
        assert_eq!(lengths, [100, 100, 200, 1]);
        frames.next_batch(&mut batch, 100);
        assert!(batch.is_empty());
    }

    #[test]
    fn a_queue_holds_no_more_memory_than_for_a_few_frames_or_eight_times_as_many_as_there_are() {
        let key = WrappedKey::new(&[1; 264]);
        let is_small = |queue_capacity: usize, length: usize| queue_capacity <= (8 * length + 8).max(FEW);
        let mut row = Row::default();
        (0..1000).for_each(|_| row.push(Frame::new(Kind::Envelope, *b"{").parts, Some(&key)));
        for left in (0..1000).rev() {
            assert!(row.pop().is_some() && row.frames.len() == left);
            assert!(is_small(row.frames.capacity(), left), "{} for {left}", row.frames.capacity());
            let groups = (left + row.keys.taken).div_ceil(GROUP).max(1);
            assert!(row.keys.groups.len() == groups && row.keys.taken < GROUP);
            assert!(is_small(row.keys.groups.capacity(), groups));
        }
        assert_eq!((row.bytes, row.keys.groups[0].len()), (0, 0));
        // However they leave.
        for resumed in [false, true] {
            let mut frames = Frames::new(1 << 20);
            (0..1000).for_each(|_| frames.put(aside()));
            if resumed {
                assert!(frames.resume(0));
            }
            sent(&mut frames);
            assert!(frames.is_idle() && is_small(frames.row.frames.capacity(), 0));
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
        assert_eq!([&frames.row, &frames.packets].map(|row| (row.frames.len(), row.bytes)), [(0, 0); 2]);
    }

    /// PROTOCOL#ends-at-once.
    #[test]
    fn what_the_server_itself_says_may_be_two_outboxes_and_a_mebibyte_and_no_more() {
        let mut frames = Frames::new(50);
        frames.put(Frame::line(vec![b'x'; 2 * 50 + MAX_LINE]));
        assert!(is_full(&frames, true) && !frames.overflows(true));
        frames.put(Frame::line(*b"x"));
        assert!(frames.overflows(true));
    }

    /// PROTOCOL#kept-limit.
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
            assert!(has_room(&mut queue(4), true) && has_room(&mut queue(4), false));
            let mut frames = queue(3);
            assert!(frames.reserve(PACKET, true) && frames.reserve(PACKET, true));
            assert!(!frames.reserve(PACKET, true), "what is reserved counts like what waits");
            (0..2).for_each(|_| frames.release(PACKET));
            frames = queue(5);
            assert!(!has_room(&mut frames, true) && !has_room(&mut frames, false));
            while !frames.is_idle() {
                frames.next_batch(&mut Vec::new(), 100);
            }
            assert!(
                !has_room(&mut frames, false) && frames.reaches(0),
                "without a connection nothing is forgotten"
            );
            // Nor is what has to be sent again.
            assert!(frames.resume(0) && !frames.is_idle());
            assert!(has_room(&mut frames, true) && frames.reaches(0));
            while !frames.is_idle() {
                frames.next_batch(&mut Vec::new(), 100);
            }
            // Of what went out, 256 KiB are kept at least.
            assert!(has_room(&mut frames, true) && !frames.reaches(0) && frames.reaches(1));
            assert_eq!(frames.row.packet_bytes, 4 * PACKET);
            // What is gone, however it went, makes room, and no more than it took.
            frames.put(Frame::packet(vec![0], &[0; PACKET - 1]));
            drop(frames);
            let mut ended = queue(3);
            ended.end();
            assert!(has_room(&mut queue(4), true) && !has_room(&mut queue(5), true));
        });
    }
}
