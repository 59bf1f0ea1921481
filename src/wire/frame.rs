//! Lines and packets out of a byte stream (PROTOCOL#lines, PROTOCOL#packets).
//!
//! Invariant: no more than the limit and one read is ever held, whatever arrives in
//! whatever pieces; the limit is applied before a line or packet is looked at.

use std::io::BufRead;
use zeroize::Zeroize;

/// A line, or a packet, was longer than the limit.
#[derive(Debug, PartialEq, Eq)]
pub struct LineTooLong;

/// The first byte of a packet; no line of JSON begins with it.
const PACKET: u8 = 0;
/// A packet's first byte and its length.
const PACKET_HEAD: usize = 5;

/// What stands between two others in the stream. PROTOCOL#packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A line without its end.
    Line(&'a [u8]),
    /// A packet without its head.
    Packet(&'a [u8]),
}

/// What goes before a packet's payload: a zero byte, the length of what follows as a 32-bit
/// big-endian number, the address.
pub fn packet_head(address: &[u8], payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(address.len() + payload.len()).expect("packets are small");
    [&[PACKET], &length.to_be_bytes()[..], address].concat()
}

/// Collects bytes and gives them back as lines. PROTOCOL#line.
pub struct Lines {
    buffer: Vec<u8>,
    /// Bytes of `buffer` already given out.
    taken: usize,
    /// Bytes of `buffer` known to hold no line end.
    searched: usize,
    limit: usize,
    /// What was given out does not stay behind in memory.
    wipes: bool,
}

impl Lines {
    /// `limit` is the longest line in bytes, its end not counted. What is given out is wiped until [`Lines::log_in`].
    pub fn new(limit: usize) -> Lines {
        Lines { buffer: Vec::new(), taken: 0, searched: 0, limit, wipes: true }
    }

    /// After a login: another limit, for what has not been given out yet, and the last wiping. What clients say from now on is
    /// sealed, and half a megabyte of it takes long to wipe.
    pub fn log_in(&mut self, limit: usize) {
        self.buffer();
        (self.limit, self.wipes) = (limit, false);
    }

    /// Where received bytes are appended.
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
            if self.buffer.is_empty() {
                // An idle connection holds no memory for the lines it may get one day.
                self.buffer = Vec::new();
            }
        }
        &mut self.buffer
    }

    /// The next whole line without its end; `None` until its end has arrived. PROTOCOL#line-length.
    ///
    /// # Errors
    /// [`LineTooLong`], also for a line whose end has not arrived yet.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, LineTooLong> {
        // Of a slice this reads nothing and cannot fail; it looks at many bytes at a time.
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

    /// The next whole line or packet; `None` until all of it has arrived. A packet's body has at most `limit` bytes.
    /// PROTOCOL#bad-packet.
    ///
    /// # Errors
    /// [`LineTooLong`], before the rest has arrived.
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
}

impl Lines {
    /// Bytes of a line or packet that is not whole yet; and whether something was given out since bytes were appended, so
    /// that they are another one's than before.
    pub fn unfinished(&self) -> (usize, bool) {
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
    fn a_line_over_the_limit_is_refused_before_its_end_arrives() {
        let mut lines = Lines::new(3);
        lines.buffer().extend_from_slice(b"abc\nabcd");
        assert_eq!(lines.next_line(), Ok(Some(&b"abc"[..])));
        assert_eq!(lines.next_line(), Err(LineTooLong));
    }

    /// PROTOCOL#line-length.
    #[test]
    fn after_a_login_another_limit_is_for_all_that_was_not_given_out() {
        let mut lines = Lines::new(3);
        lines.buffer().extend_from_slice(b"abc\nlonger\n");
        assert_eq!(lines.next_line(), Ok(Some(&b"abc"[..])));
        lines.log_in(6);
        assert_eq!(lines.next_line(), Ok(Some(&b"longer"[..])));
        lines.buffer().extend_from_slice(b"too long");
        assert_eq!(lines.next_line(), Err(LineTooLong));
    }

    #[test]
    fn what_was_given_out_is_held_no_longer_and_who_says_nothing_holds_nothing() {
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
}
