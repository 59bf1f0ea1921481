//! The frames that a session sends, with their wrapped keys, receipts and sizes (PROTOCOL#resuming). Plain data:
//! [`outbox`](super::outbox) locks it.
//!
//! Invariants: wrapped keys and receipts are kept beside the [`SendWindow`], in the order of their frames, so that the
//! window's items stay small: most sessions keep room for a few of them. A message that was answered `delivered` has
//! one receipt until the client acknowledges its frame, or the session ends and its receipts are taken.

use crate::name::Username;
use crate::protocol::{KEY_BEGINS, KEY_ENDS, MAX_LINE, ServerMessage, WrappedKey};
use crate::server::quotas::{Permit, Quota};
use crate::wire::window::{ACK_BYTES, ACK_FRAMES, FalseAck, SendWindow, is_ack_due, spare};
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::{Arc, LazyLock, Weak};

/// A line or packet head, perhaps the same bytes for many clients.
pub type Part = Arc<[u8]>;

/// The sender of a frame: a hash of the name under a random key, so that nobody can choose a name with another's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender(NonZeroU32);

impl Sender {
    /// The hash of a name, the same until the process ends.
    pub fn of(name: &Username) -> Sender {
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Sender(NonZeroU32::new(KEY.hash_one(name) as u32).unwrap_or(NonZeroU32::MIN))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Line,
    /// A line that ends with its recipient's own wrapped key.
    Envelope,
    /// An envelope with a receipt.
    Message,
    Packet,
}

struct Payload {
    bytes: Box<[u8]>,
    /// Once it is queued.
    permit: Option<Permit>,
}

/// A line or packet, without its wrapped key.
pub struct Frame {
    head: Part,
    payload: Option<Box<Payload>>,
    kind: Kind,
    /// `None` for the server's own messages.
    sender: Option<Sender>,
}

impl Frame {
    fn new(kind: Kind, head: impl Into<Part>) -> Frame {
        Frame { head: head.into(), payload: None, kind, sender: None }
    }

    /// A line with its end.
    pub fn line(line: impl Into<Part>) -> Frame {
        Frame::new(Kind::Line, line)
    }

    /// A message.
    pub fn message(message: &ServerMessage) -> Frame {
        Frame::line(message.encode())
    }

    /// The part of an envelope that all recipients get.
    pub fn envelope(shared: Part) -> Frame {
        Frame::new(Kind::Envelope, shared)
    }

    /// A packet.
    pub fn packet(head: Vec<u8>, payload: &[u8]) -> Frame {
        let payload = Payload { bytes: payload.into(), permit: None };
        Frame { payload: Some(Box::new(payload)), ..Frame::new(Kind::Packet, head) }
    }

    /// The same frame, from this sender.
    pub fn by(mut self, sender: Sender) -> Frame {
        self.sender = Some(sender);
        self
    }

    /// Whether a wrapped key belongs to it.
    fn has_key(&self) -> bool {
        matches!(self.kind, Kind::Envelope | Kind::Message)
    }

    /// The number of bytes on the wire.
    fn length(&self) -> usize {
        const KEY: usize = KEY_BEGINS.len() + WrappedKey::DIGITS + KEY_ENDS.len();
        let key = if self.has_key() { KEY } else { 0 };
        self.head.len() + self.payload.as_ref().map_or(0, |payload| payload.bytes.len()) + key
    }
}

/// The sender to notify if a message is lost. `S` is its outbox.
pub struct Receipt<S> {
    /// The session that sent the message: a later session of the same user is not notified.
    pub sender: Weak<S>,
    /// The number that the sender gave the message.
    pub id: u64,
}

/// The keys, receipts and sizes of the frames in the window.
struct Load<S> {
    /// The wrapped keys of the envelopes, in order.
    keys: VecDeque<WrappedKey>,
    /// Keys of envelopes that were sent on this connection.
    sent_keys: usize,
    /// The receipts of the messages, in order.
    receipts: VecDeque<Receipt<S>>,
    /// Bytes of lines.
    bytes: usize,
    packets: usize,
    packet_bytes: usize,
}

impl<S> Default for Load<S> {
    fn default() -> Self {
        let (keys, receipts) = (VecDeque::new(), VecDeque::new());
        Load { keys, sent_keys: 0, receipts, bytes: 0, packets: 0, packet_bytes: 0 }
    }
}

impl<S> Load<S> {
    fn add(&mut self, frame: &Frame) {
        match frame.kind {
            Kind::Packet => {
                self.packets += 1;
                self.packet_bytes += frame.length();
            }
            _ => self.bytes += frame.length(),
        }
    }

    /// Removes the keys, receipt and size of the oldest frame.
    fn free(&mut self, frame: &Frame) {
        match frame.kind {
            Kind::Packet => {
                self.packets -= 1;
                self.packet_bytes -= frame.length();
            }
            _ => self.bytes -= frame.length(),
        }
        if frame.has_key() {
            self.keys.pop_front();
            self.sent_keys = self.sent_keys.saturating_sub(1);
        }
        if frame.kind == Kind::Message {
            self.receipts.pop_front();
        }
    }

    /// Returns unused memory, so that an idle session holds little.
    fn spare(&mut self) {
        spare(&mut self.keys);
        if self.receipts.is_empty() {
            self.receipts = VecDeque::new();
        }
    }
}

/// All frames of one session that are not acknowledged. PROTOCOL#frames, PROTOCOL#kept, PROTOCOL#kept-limit.
pub struct Frames<S> {
    /// For [`Frames::takes`], in bytes of lines.
    limit: usize,
    window: SendWindow<Frame>,
    load: Load<S>,
}

impl<S> Frames<S> {
    /// No frames. `limit` is in bytes.
    pub fn new(limit: usize) -> Frames<S> {
        Frames { limit, window: SendWindow::default(), load: Load::default() }
    }

    /// Queues a line.
    pub fn put(&mut self, frame: Frame) {
        self.load.add(&frame);
        self.window.push(frame);
    }

    /// Queues an envelope with its recipient's own wrapped key.
    pub fn put_envelope(&mut self, mut frame: Frame, key: &WrappedKey, receipt: Option<Receipt<S>>) {
        self.load.keys.push_back(key.clone());
        if let Some(receipt) = receipt {
            frame.kind = Kind::Message;
            self.load.receipts.push_back(receipt);
        }
        self.put(frame);
    }

    /// Takes the receipts of the messages that the client has not acknowledged.
    pub fn take_receipts(&mut self) -> VecDeque<Receipt<S>> {
        std::mem::take(&mut self.load.receipts)
    }

    /// Whether there is room for a packet: each session has 256 KiB, which a client need not have acknowledged yet, and
    /// an eighth of what all sessions together have left. PROTOCOL#packet-order.
    pub fn has_packet_room(&self, quota: &Quota) -> bool {
        self.load.packet_bytes.saturating_sub(2 * ACK_BYTES) <= quota.left() / 8
    }

    /// Queues a packet.
    pub fn put_packet(&mut self, mut packet: Frame, quota: &Arc<Quota>) {
        self.load.add(&packet);
        let length = packet.length();
        if let Some(payload) = &mut packet.payload {
            payload.permit = Some(quota.take(length));
        }
        self.window.push_behind(packet);
    }

    /// Whether there is room for a frame of another client. Beyond half of the limit, its sender may hold no more,
    /// including this frame, than is free: a flood leaves half of the limit to all other senders, a second flood a
    /// quarter. PROTOCOL#shares.
    pub fn takes(&self, frame: &Frame) -> bool {
        let held = self.load.bytes;
        if held <= self.limit / 2 {
            return true;
        }
        let free = self.limit.saturating_sub(held);
        if frame.length() > free {
            return false;
        }
        let theirs = self.window.row().filter(|one| one.sender == frame.sender && one.kind != Kind::Packet);
        theirs.map(Frame::length).sum::<usize>() + frame.length() <= free
    }

    /// Whether even the server's own messages no longer fit.
    pub fn overflows(&self) -> bool {
        self.load.bytes > self.limit.saturating_mul(2).saturating_add(MAX_LINE)
    }

    /// The number of packets that wait, or that the client must have acknowledged if it has received them.
    /// PROTOCOL#granted-limit.
    pub fn packets(&self) -> usize {
        let waiting = self.window.behind();
        waiting + (self.load.packets - waiting).saturating_sub(ACK_FRAMES as usize)
    }

    /// Whether nothing is left to send.
    pub fn is_idle(&self) -> bool {
        self.window.is_idle()
    }

    /// Appends the next frames to `plain`: frames to resend, then lines, then packets. One frame of any length, or as
    /// many as fit in `most` bytes. PROTOCOL#packet-order.
    pub fn next_batch(&mut self, plain: &mut Vec<u8>, most: usize) {
        plain.reserve(self.window.peek().map_or(0, Frame::length));
        while let Some(next) = self.window.peek() {
            if !plain.is_empty() && plain.len() + next.length() > most {
                break;
            }
            let Some(frame) = self.window.next() else { break };
            // A copy costs less than a reference count that several cores change, for a line to a thousand clients.
            plain.extend_from_slice(&frame.head);
            if let Some(payload) = &frame.payload {
                plain.extend_from_slice(&payload.bytes);
            }
            if frame.has_key() {
                for part in [KEY_BEGINS, self.load.keys[self.load.sent_keys].digits(), KEY_ENDS] {
                    plain.extend_from_slice(part);
                }
                self.load.sent_keys += 1;
            }
        }
    }

    /// The client has received `received` frames since the login. Returns whether an `ack` was due for what it
    /// acknowledges. PROTOCOL#ack-true.
    ///
    /// # Errors
    /// [`FalseAck`], and nothing has changed.
    pub fn acknowledge(&mut self, received: u64) -> Result<bool, FalseAck> {
        let (load, mut frames, mut bytes) = (&mut self.load, 0, 0);
        self.window.acknowledge(received, |frame| {
            (frames, bytes) = (frames + 1, bytes + frame.length());
            load.free(&frame);
        })?;
        load.spare();
        Ok(is_ack_due(frames, bytes))
    }

    /// Whether the session can continue with a client that has received `received` frames since the login.
    pub fn reaches(&self, received: u64) -> bool {
        self.window.reaches(received)
    }

    /// Continues on another connection whose client has received `received` frames since the login. If that is out of
    /// reach, changes nothing and returns false. PROTOCOL#sent-again.
    pub fn resume(&mut self, received: u64) -> bool {
        let load = &mut self.load;
        let reaches = self.window.resume(received, |frame| load.free(&frame));
        if reaches {
            load.sent_keys = 0;
            load.spare();
        }
        reaches
    }

    /// Drops the packets that wait: the session ends, and only its lines are still sent.
    pub fn end(&mut self) {
        self.window.clear_behind();
    }

    /// Drops all frames. Their receipts stay until the session ends.
    pub fn clear(&mut self) {
        let receipts = self.take_receipts();
        (self.window, self.load) = (SendWindow::default(), Load { receipts, ..Load::default() });
    }
}

#[cfg(test)]
pub(in crate::server) mod tests {
    use super::*;
    use crate::server::limits::MAX_WAITING_PACKETS;
    use crate::server::quotas::Quotas;

    /// Frames whose receipts notify nobody.
    type Frames = super::Frames<()>;

    /// Takes all bytes of packets except `rest`, as other sessions would, until the permit is dropped.
    pub fn under_pressure(quotas: &Quotas, rest: usize) -> Permit {
        quotas.packets.take(MAX_WAITING_PACKETS - rest)
    }

    fn line(n: u8) -> Frame {
        Frame::line(vec![n; 10])
    }

    /// Queues a packet; false if there is no room for it.
    fn put(frames: &mut Frames, packet: Frame, quotas: &Quotas) -> bool {
        let has_room = frames.has_packet_room(&quotas.packets);
        if has_room {
            frames.put_packet(packet, &quotas.packets);
        }
        has_room
    }

    fn put_packet(frames: &mut Frames, n: u8) {
        assert!(put(frames, Frame::packet(vec![n; 4], &[n; 6]), &Quotas::default()));
    }

    /// Whether there is no room for a line of a third client.
    fn is_full(frames: &Frames) -> bool {
        !frames.takes(&line(0).by(sender("carol")))
    }

    fn sender(name: &str) -> Sender {
        Sender::of(&name.parse().expect("name"))
    }

    /// Sends everything, and returns the first byte of each frame.
    fn sent(frames: &mut Frames) -> Vec<u8> {
        let mut out = Vec::new();
        while !frames.is_idle() {
            let mut batch = Vec::new();
            frames.next_batch(&mut batch, 100);
            out.extend(batch.chunks(10).map(|frame| frame[0]));
        }
        out
    }

    /// PROTOCOL#packet-order, PROTOCOL#sent-again.
    #[test]
    fn unacknowledged_frames_are_resent_before_others() {
        let mut frames = Frames::new(1000);
        put_packet(&mut frames, 1);
        [line(2), line(3)].into_iter().for_each(|frame| frames.put(frame));
        assert_eq!(sent(&mut frames), [2, 3, 1]);
        put_packet(&mut frames, 5);
        frames.put(line(4));
        assert!(!frames.resume(4) && frames.resume(1));
        frames.put(line(6));
        assert_eq!(sent(&mut frames), [3, 1, 4, 6, 5]);
        assert_eq!(frames.acknowledge(6), Ok(false));
        assert_eq!((frames.load.bytes, frames.load.packets, frames.load.packet_bytes), (0, 0, 0));
    }

    /// PROTOCOL#no-session.
    #[test]
    fn abandoned_resumption_does_not_end_the_session() {
        let mut frames = Frames::new(1000);
        put_packet(&mut frames, 2);
        [line(1), line(3)].into_iter().for_each(|frame| frames.put(frame));
        assert_eq!(sent(&mut frames), [1, 3, 2]);
        // An abandoned attempt, on which nothing is sent; then the true count.
        assert!(frames.resume(1) && frames.resume(1));
        assert_eq!(frames.acknowledge(2), Err(FalseAck), "nothing was sent on this connection yet");
        assert!(frames.reaches(3) && !frames.reaches(4) && frames.resume(3));
        assert_eq!(frames.acknowledge(2), Err(FalseAck), "the client has three already");
        assert!(frames.is_idle() && !frames.reaches(2) && frames.load.packet_bytes == 0);
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
            while taken < 100 && frames.takes(&line(0).by(sender)) {
                frames.put(line(0).by(sender));
                taken += 1;
            }
            taken
        };
        // One sender may fill half. Sent frames count until they are acknowledged.
        assert_eq!(flood(&mut frames, eve), 6);
        sent(&mut frames);
        assert_eq!((flood(&mut frames, eve), flood(&mut frames, mallory)), (0, 2));
        assert_eq!((flood(&mut frames, carol), flood(&mut frames, eve)), (1, 0));
        assert_eq!((frames.acknowledge(3), flood(&mut frames, eve)), (Ok(false), 1));
        // The server's own messages reduce the room of all senders.
        frames.put(Frame::line(vec![0; 100]));
        assert_eq!([eve, mallory, carol].map(|one| flood(&mut frames, one)), [0; 3]);
        assert_eq!(size_of::<Frame>(), 32, "8 bytes more would cost every idle client 256 bytes");
    }

    /// PROTOCOL#ack-true.
    #[test]
    fn ack_that_falls_or_exceeds_the_sent_frames_is_false() {
        let mut frames = Frames::new(1000);
        (1..=3).for_each(|n| frames.put(line(n)));
        assert_eq!(frames.acknowledge(1), Err(FalseAck), "nothing was sent");
        sent(&mut frames);
        assert_eq!(frames.acknowledge(4), Err(FalseAck));
        assert_eq!(frames.acknowledge(2), Ok(false));
        assert_eq!(frames.acknowledge(2), Ok(false));
        assert_eq!(frames.acknowledge(1), Err(FalseAck));
        assert!(!frames.reaches(1) && frames.reaches(2) && frames.reaches(3));
    }

    /// PROTOCOL#kept-limit.
    #[test]
    fn kept_frames_count_against_the_limit_until_acknowledged() {
        let mut frames = Frames::new(50);
        for n in 0..5 {
            assert!(!is_full(&frames), "{n}");
            frames.put(line(n));
            sent(&mut frames);
        }
        assert!(is_full(&frames) && frames.reaches(0));
        assert_eq!(frames.acknowledge(1), Ok(false));
        assert!(!is_full(&frames));
        (0..40).for_each(|n| put_packet(&mut frames, n));
        assert_eq!(frames.packets(), 40);
        sent(&mut frames);
        assert_eq!(frames.packets(), 8, "the number that it must have acknowledged");
        assert_eq!(frames.acknowledge(45), Ok(true));
        assert_eq!(frames.packets(), 0);
    }

    /// PROTOCOL#ack-true.
    #[test]
    fn client_ack_was_due_after_32_frames_or_128_kib() {
        for (count, length, due) in [(31, 10, false), (32, 10, true), (2, 65_535, false), (2, 65_536, true)] {
            let mut frames = Frames::new(1 << 20);
            for received in [count, 2 * count] {
                for n in 0..count {
                    let bytes = vec![0; length];
                    if n % 2 == 0 {
                        frames.put(Frame::line(bytes));
                    } else {
                        let packet = Frame::packet(bytes, b"");
                        assert!(put(&mut frames, packet, &Quotas::default()));
                    }
                }
                sent(&mut frames);
                assert_eq!(frames.acknowledge(received), Ok(due), "{count} frames of {length} bytes");
            }
        }
        let mut frames = Frames::new(1 << 20);
        (0..10).for_each(|_| frames.put(Frame::line(vec![b'x'; 65_535])));
        sent(&mut frames);
        assert_eq!(frames.acknowledge(1), Ok(false), "no matter how much is unacknowledged");
    }

    #[test]
    fn frame_counts_as_many_bytes_as_are_sent() {
        let (shared, key): (Part, _) =
            (b"{\"type\":\"encrypted_message\""[..].into(), WrappedKey::new(&[7; 264]));
        for has_receipt in [false, true] {
            let (mut frames, mut plain) = (Frames::new(1000), Vec::new());
            let receipt = has_receipt.then(|| Receipt { sender: Weak::new(), id: 7 });
            frames.put_envelope(Frame::envelope(shared.clone()), &key, receipt);
            let length = frames.load.bytes;
            frames.next_batch(&mut plain, 100);
            assert_eq!(plain, [&shared, KEY_BEGINS, key.digits(), KEY_ENDS].concat());
            assert!(length == plain.len() && frames.is_idle() && frames.reaches(1));
            assert_eq!(frames.load.receipts.len(), usize::from(has_receipt));
            assert_eq!((frames.acknowledge(1), frames.load.bytes), (Ok(false), 0));
            assert!(frames.take_receipts().is_empty());
        }
        let (mut frames, mut plain) = (Frames::new(1000), Vec::new());
        put_packet(&mut frames, 1);
        frames.next_batch(&mut plain, 100);
        assert_eq!((frames.load.packet_bytes, plain), (10, vec![1; 10]));
    }

    #[test]
    fn envelope_is_sent_and_resent_with_its_own_key() {
        let mut frames = Frames::new(1 << 20);
        let first_digits = |frames: &mut Frames| {
            let mut plain = Vec::new();
            frames.next_batch(&mut plain, 0);
            plain[plain.len().saturating_sub(KEY_ENDS.len() + WrappedKey::DIGITS)..][..4].to_vec()
        };
        let keys: Vec<_> = (0..20).map(|n| WrappedKey::new(&[n; 264])).collect();
        for key in &keys {
            frames.put_envelope(Frame::envelope(b"{".to_vec().into()), key, None);
            frames.put(line(9));
        }
        let digits = |n: usize| keys[n].digits()[..4].to_vec();
        for n in 0..13 {
            assert_eq!(first_digits(&mut frames), digits(n));
            first_digits(&mut frames);
        }
        assert_eq!(frames.acknowledge(20), Ok(false));
        assert_eq!(first_digits(&mut frames), digits(13));
        assert!(frames.resume(22));
        for n in 11..20 {
            assert_eq!(first_digits(&mut frames), digits(n));
            first_digits(&mut frames);
        }
        assert!(frames.is_idle() && frames.acknowledge(40) == Ok(false));
        assert_eq!((frames.load.bytes, frames.load.keys.len(), frames.load.sent_keys), (0, 0, 0));
    }

    #[test]
    fn batch_is_bounded_and_a_longer_frame_goes_alone() {
        let mut frames = Frames::new(1 << 20);
        for length in [50, 50, 1, 99, 200, 1] {
            frames.put(Frame::line(vec![b'x'; length]));
        }
        let mut lengths = Vec::new();
        while !frames.is_idle() && lengths.len() < 6 {
            let mut batch = Vec::new();
            frames.next_batch(&mut batch, 100);
            lengths.push(batch.len());
        }
        assert_eq!(lengths, [100, 100, 200, 1]);
    }

    #[test]
    fn ended_session_holds_nothing() {
        let (mut frames, quotas) = (Frames::new(1000), Quotas::default());
        frames.put(line(1));
        sent(&mut frames);
        frames.put(line(2));
        assert!(put(&mut frames, Frame::packet(vec![3], b""), &quotas));
        assert_eq!(quotas.packets.left(), MAX_WAITING_PACKETS - 1);
        frames.end();
        assert_eq!((quotas.packets.left(), sent(&mut frames)), (MAX_WAITING_PACKETS, vec![2]));
        frames.clear();
        assert!(frames.is_idle() && !frames.reaches(1) && frames.load.bytes == 0);
    }

    /// PROTOCOL#ends-at-once.
    #[test]
    fn own_messages_fit_two_outboxes_and_a_mebibyte() {
        let mut frames = Frames::new(50);
        frames.put(Frame::line(vec![b'x'; 2 * 50 + MAX_LINE]));
        assert!(is_full(&frames) && !frames.overflows());
        frames.put(Frame::line(*b"x"));
        assert!(frames.overflows());
    }

    /// PROTOCOL#kept-limit, PROTOCOL#packet-order.
    #[test]
    fn session_may_hold_256_kib_and_an_eighth_of_the_rest() {
        const PACKET: usize = 64 * 1024;
        let (quotas, mut frames) = (Quotas::default(), Frames::new(1000));
        let packet = || Frame::packet(vec![0], &[0; PACKET - 1]);
        let fill = |frames: &mut Frames| (0..).take_while(|_| put(frames, packet(), &quotas)).count();
        let pressure = under_pressure(&quotas, 0);
        assert_eq!(fill(&mut frames), 5, "up to 256 KiB");
        while !frames.is_idle() {
            frames.next_batch(&mut Vec::new(), 100);
        }
        assert_eq!(fill(&mut frames), 0, "kept frames count");
        assert!(frames.acknowledge(2).is_ok());
        assert_eq!(fill(&mut frames), 2);
        drop((frames, pressure));
        assert_eq!(quotas.packets.left(), MAX_WAITING_PACKETS);
        // With four packets beyond 256 KiB, an eighth of the rest is four.
        let _pressure = under_pressure(&quotas, (4 + 4 + 4 * 8) * PACKET);
        assert_eq!(fill(&mut Frames::new(1000)), 9);
    }
}
