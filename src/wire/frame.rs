//! Lines out of a byte stream.
//!
//! Invariant: no more than the limit and one read is ever held, whatever arrives in
//! whatever pieces; the limit is applied before a line is looked at.

use zeroize::Zeroize;

/// A line was longer than the limit.
#[derive(Debug, PartialEq, Eq)]
pub struct LineTooLong;

/// Collects bytes and gives them back as lines.
pub struct Lines {
    buffer: Vec<u8>,
    /// Bytes of `buffer` already given out.
    taken: usize,
    /// Bytes of `buffer` known to hold no line end.
    searched: usize,
    limit: usize,
}

impl Lines {
    /// `limit` is the longest line in bytes, its end not counted.
    pub fn new(limit: usize) -> Lines {
        Lines { buffer: Vec::new(), taken: 0, searched: 0, limit }
    }

    /// Changes the limit, for what has not been given out yet.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Where received bytes are appended.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        if self.taken > 0 {
            let rest = self.buffer.len() - self.taken;
            self.buffer.copy_within(self.taken.., 0);
            // Lines before login hold password keys: what was given out does not stay behind.
            self.buffer[rest..].zeroize();
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

    /// The next whole line without its end, if there is one.
    ///
    /// # Errors
    /// [`LineTooLong`], also for a line whose end has not arrived yet.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, LineTooLong> {
        let found = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n');
        let end = found.map_or(self.buffer.len(), |at| self.searched + at);
        let start = self.taken;
        if end - start > self.limit {
            return Err(LineTooLong);
        }
        self.searched = end;
        if found.is_none() {
            return Ok(None);
        }
        self.searched += 1;
        self.taken = self.searched;
        Ok(Some(&self.buffer[start..end]))
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

    #[test]
    fn a_line_over_the_limit_is_refused_before_its_end_arrives() {
        let mut lines = Lines::new(3);
        lines.buffer().extend_from_slice(b"abc\nabcd");
        assert_eq!(lines.next_line(), Ok(Some(&b"abc"[..])));
        assert_eq!(lines.next_line(), Err(LineTooLong));
    }
}
