//! Splits a byte stream into lines and packets (PROTOCOL#lines, PROTOCOL#packets).
//!
//! Invariant: the buffer holds at most the limit and one read, however the bytes arrive, and its capacity is at most
//! twice its length plus `SPARE`. The limit applies before any parsing.

use std::io::BufRead;
use zeroize::Zeroize;

/// A line or packet is longer than the limit.
#[derive(Debug, PartialEq, Eq)]
pub struct LineTooLong;

/// The first byte of a packet; no line of JSON begins with it.
const PACKET: u8 = 0;
/// A packet's first byte and its length.
const PACKET_HEAD: usize = 5;

/// The capacity of the buffer beyond twice its length, in bytes: two reads, so that it does not shrink after each of
/// them. Without a limit, it would keep the memory of the longest line, uncounted.
const SPARE: usize = 128 * 1024;

/// One line or packet. PROTOCOL#packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A line without its end.
    Line(&'a [u8]),
    /// A packet without its head.
    Packet(&'a [u8]),
}

/// The bytes before a packet's payload: a zero, the length of address and payload as a 32-bit big-endian number, the
/// address.
pub fn packet_head(address: &[u8], payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(address.len() + payload.len()).expect("packets are small");
    [&[PACKET], &length.to_be_bytes()[..], address].concat()
}

/// Collects bytes and returns them as lines. PROTOCOL#line.
pub struct Lines {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were returned.
    taken: usize,
    /// Bytes of `buffer` that were returned or have no line end.
    searched: usize,
    limit: usize,
    /// Whether to wipe the bytes that were returned.
    wipes: bool,
}

impl Lines {
    /// `limit` is the longest line in bytes without its end. Returned bytes are wiped until [`Lines::log_in`].
    pub fn new(limit: usize) -> Lines {
        Lines { buffer: Vec::new(), taken: 0, searched: 0, limit, wipes: true }
    }

    /// After a login: sets another limit, which applies to all bytes that were not returned yet, and stops wiping.
    /// Lines are sealed from now on, and wiping half a megabyte takes long.
    pub fn log_in(&mut self, limit: usize) {
        self.buffer();
        (self.limit, self.wipes) = (limit, false);
    }

    /// The buffer, to append received bytes.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        if self.taken > 0 {
            let rest = self.buffer.len() - self.taken;
            self.buffer.copy_within(self.taken.., 0);
            // Lines before login hold password keys.
            if self.wipes {
                self.buffer[rest..].zeroize();
            }
            self.buffer.truncate(rest);
            self.searched -= self.taken;
            self.taken = 0;
            // An idle connection holds no memory.
            if rest == 0 || self.buffer.capacity() > 2 * rest + SPARE {
                self.buffer.shrink_to_fit();
            }
        }
        &mut self.buffer
    }

    /// The next complete line without its end; `None` until its end has arrived. PROTOCOL#line-length.
    ///
    /// # Errors
    /// [`LineTooLong`], also before the end has arrived.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, LineTooLong> {
        // On a slice this cannot fail. It looks at many bytes at a time.
        let past = self.searched + (&self.buffer[self.searched..]).skip_until(b'\n').unwrap_or_default();
        let is_whole = past > self.searched && self.buffer[past - 1] == b'\n';
        let (start, end) = (self.taken, past - usize::from(is_whole));
        if end - start > self.limit {
            return Err(LineTooLong);
        }
        self.searched = past;
        if !is_whole {
            return Ok(None);
        }
        self.taken = past;
        Ok(Some(&self.buffer[start..end]))
    }

    /// The next complete line or packet; `None` until all of it has arrived. A packet's body has at most `limit` bytes.
    /// PROTOCOL#bad-packet.
    ///
    /// # Errors
    /// [`LineTooLong`], also before the rest has arrived.
    pub fn next_frame(&mut self, limit: usize) -> Result<Option<Frame<'_>>, LineTooLong> {
        let waiting = &self.buffer[self.taken..];
        if waiting.first() != Some(&PACKET) {
            return Ok(self.next_line()?.map(Frame::Line));
        }
        let Some([_, length @ ..]) = waiting.first_chunk::<PACKET_HEAD>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > limit {
            return Err(LineTooLong);
        }
        let start = self.taken + PACKET_HEAD;
        if self.buffer.len() < start + length {
            return Ok(None);
        }
        (self.taken, self.searched) = (start + length, start + length);
        Ok(Some(Frame::Packet(&self.buffer[start..self.taken])))
    }

    /// The bytes of the incomplete line or packet at the end, and whether it is a new one: a frame was returned since
    /// the last append.
    pub fn partial(&self) -> (usize, bool) {
        (self.buffer.len() - self.taken, self.taken > 0)
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(lines: &mut Lines) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| lines.next_line().expect("short").map(<[u8]>::to_vec)).collect()
    }

    /// PROTOCOL#line.
    #[test]
    fn lines_are_the_same_however_the_stream_is_cut() {
        let stream = b"one\n\ntwo and a half\nthree\nrest";
        for piece in 1..stream.len() {
            let mut lines = Lines::new(20);
            let mut got = Vec::new();
            for bytes in stream.chunks(piece) {
                lines.buffer().extend_from_slice(bytes);
                got.extend(all(&mut lines));
            }
            assert_eq!(got, [b"one".to_vec(), b"".to_vec(), b"two and a half".to_vec(), b"three".to_vec()]);
        }
    }

    /// PROTOCOL#packet.
    #[test]
    fn packets_and_lines_are_the_same_however_the_stream_is_cut() {
        let packet = |address: &[u8], payload: &[u8]| [&packet_head(address, payload), payload].concat();
        let packets = [packet(b"a\n", b"b"), packet(b"", b""), packet(b"", &[0; 9])];
        let stream = [&packets[0][..], b"{one}\n", &packets[1], &packets[2], b"\n"].concat();
        for piece in 1..stream.len() {
            let mut lines = Lines::new(20);
            let mut got = Vec::new();
            for bytes in stream.chunks(piece) {
                lines.buffer().extend_from_slice(bytes);
                while let Some(frame) = lines.next_frame(9).expect("short") {
                    got.push(format!("{frame:?}"));
                }
            }
            let zeros = [0; 9];
            let frames = [
                Frame::Packet(b"a\nb"),
                Frame::Line(b"{one}"),
                Frame::Packet(b""),
                Frame::Packet(&zeros),
                Frame::Line(b""),
            ];
            assert_eq!(got, frames.map(|frame| format!("{frame:?}")));
        }
        let mut lines = Lines::new(20);
        lines.buffer().extend_from_slice(&packet_head(b"", &[0; 10]));
        assert_eq!(lines.next_frame(9), Err(LineTooLong), "before its bytes have arrived");
    }

    /// PROTOCOL#line-length.
    #[test]
    fn line_over_the_limit_is_refused_before_its_end_arrives() {
        let mut lines = Lines::new(3);
        lines.buffer().extend_from_slice(b"abc\nabcd");
        assert_eq!(lines.next_line(), Ok(Some(&b"abc"[..])));
        assert_eq!(lines.next_line(), Err(LineTooLong));
    }

    /// PROTOCOL#line-length.
    #[test]
    fn limit_after_a_login_applies_to_lines_not_returned_yet() {
        let mut lines = Lines::new(3);
        lines.buffer().extend_from_slice(b"abc\nlonger\n");
        assert_eq!(lines.next_line(), Ok(Some(&b"abc"[..])));
        lines.log_in(6);
        assert_eq!(lines.next_line(), Ok(Some(&b"longer"[..])));
        lines.buffer().extend_from_slice(b"too long");
        assert_eq!(lines.next_line(), Err(LineTooLong));
    }

    #[test]
    fn returned_lines_are_freed_and_an_idle_buffer_is_empty() {
        let mut lines = Lines::new(20);
        for _ in 0..100 {
            lines.buffer().extend_from_slice(b"one\ntwo\nth");
            assert_eq!(all(&mut lines).len(), 2);
            assert_eq!(lines.buffer(), b"th");
            lines.buffer().extend_from_slice(b"ree\n");
            assert_eq!(all(&mut lines), [b"three"]);
            assert_eq!(lines.buffer().capacity(), 0);
        }
    }

    /// PROTOCOL#partial-frames.
    #[test]
    fn start_of_a_line_keeps_no_memory_of_a_longer_one() {
        for length in [SPARE / 2, 1 << 20] {
            let mut lines = Lines::new(1 << 20);
            lines.buffer().resize(length, b'x');
            lines.buffer().extend_from_slice(b"\n{");
            let before = lines.buffer().capacity();
            assert_eq!(all(&mut lines).len(), 1);
            let after = lines.buffer().capacity();
            // The buffer keeps its size: growing again for every read would cost time.
            assert!(after <= 2 + SPARE && (after == before || before > SPARE), "{before}, {after}");
        }
    }
}
