//! Lines and packets that have begun to arrive.
//!
//! Invariant: each is complete within [`LINE`]. Together they have at most `MAX_PARTIAL` bytes, except that each client
//! may always have [`SMALL_LINE`] and the bytes of one read. The memory for them is at most twice that:
//! [`Lines`](crate::wire::frame::Lines).

use super::limits::{LINE, SMALL_LINE};
use super::quotas::{Permit, Quotas};
use std::time::Instant;

/// The incomplete line or packet of one client. A client that exceeds a limit loses the connection; the session
/// continues on another one. PROTOCOL#partial-frames.
pub struct PartialFrame {
    bytes: Permit,
    since: Instant,
}

impl PartialFrame {
    /// For a client from which nothing has arrived.
    pub fn new(quotas: &Quotas) -> PartialFrame {
        PartialFrame { bytes: quotas.partial.take(0), since: Instant::now() }
    }

    /// Sets its length. `is_new` if this is another frame than at the last call. Returns whether length and age are
    /// within limits.
    pub fn update(&mut self, bytes: usize, is_new: bool, now: Instant) -> bool {
        if is_new || self.bytes.amount() == 0 {
            self.since = now;
        }
        if bytes != self.bytes.amount() {
            self.bytes.resize(bytes);
        }
        let is_old = bytes > 0 && now.duration_since(self.since) > LINE;
        !is_old && (bytes <= SMALL_LINE || self.bytes.is_within())
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::MAX_PARTIAL;
    use super::*;
    use std::time::Duration;

    /// PROTOCOL#partial-frames.
    #[test]
    fn partial_frame_is_bounded_in_age_and_in_total_bytes() {
        let (quotas, start) = (Quotas::default(), Instant::now());
        let mut one = PartialFrame::new(&quotas);
        let (late, second) = (start + LINE, Duration::from_secs(1));
        assert!(one.update(1, true, start) && one.update(2, false, late));
        assert!(!one.update(3, false, late + second) && !one.update(3, false, late + second));
        assert!(one.update(3, true, late + second), "another line");
        assert!(one.update(0, true, late) && one.update(1, false, late + LINE), "nothing in between");
        assert!(one.update(2, false, late + LINE * 2) && one.update(0, false, late + LINE * 3));
        let mut many = PartialFrame::new(&quotas);
        assert!(one.update(SMALL_LINE + 1, true, start) && !many.update(MAX_PARTIAL, true, start));
        assert!(!one.update(SMALL_LINE + 1, false, start) && one.update(SMALL_LINE, false, start));
        drop(many);
        assert!(one.update(SMALL_LINE + 1, false, start), "there is room again");
    }
}
