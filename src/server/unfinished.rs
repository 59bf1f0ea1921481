//! Lines and packets that have begun to arrive.
//!
//! Invariant: each is complete in time. All together have no more than `MAX_UNFINISHED` bytes, but for [`SMALL_LINE`], and
//! what one read brings, of each client.

use super::limits::{LINE, SMALL_LINE};
use super::quotas::{Permit, Quotas};
use std::time::Instant;

/// A line or packet of one client that is not complete yet: bounded in time, and together with all others' in bytes. A
/// client that exceeds this loses the connection; the session continues on another one. PROTOCOL#unfinished.
pub struct Unfinished {
    bytes: Permit,
    since: Option<Instant>,
}

impl Unfinished {
    /// Nothing has begun to arrive.
    pub fn new(quotas: &Quotas) -> Unfinished {
        Unfinished { bytes: quotas.partial.take(0), since: None }
    }

    /// Now it has so many bytes; `anew` if they are another one's than before. False if that is too much, or too old.
    pub fn is_bearable(&mut self, bytes: usize, anew: bool, now: Instant) -> bool {
        let since = self.since.filter(|_| !anew && self.bytes.amount() > 0).unwrap_or(now);
        if bytes != self.bytes.amount() {
            self.bytes.resize(bytes);
        }
        self.since = Some(since);
        let is_old = bytes > 0 && now.duration_since(since) > LINE;
        !is_old && (bytes <= SMALL_LINE || self.bytes.is_within())
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::MAX_UNFINISHED;
    use super::*;
    use std::time::Duration;

    /// PROTOCOL#unfinished.
    #[test]
    fn what_is_not_whole_is_bounded_in_time_and_with_that_of_all_others() {
        let (quotas, start) = (Quotas::default(), Instant::now());
        let mut one = Unfinished::new(&quotas);
        let (late, second) = (start + LINE, Duration::from_secs(1));
        assert!(one.is_bearable(1, true, start) && one.is_bearable(2, false, late));
        assert!(!one.is_bearable(3, false, late + second) && !one.is_bearable(3, false, late + second));
        assert!(one.is_bearable(3, true, late + second), "of another line");
        assert!(one.is_bearable(0, true, late) && one.is_bearable(1, false, late + LINE), "none between");
        assert!(one.is_bearable(2, false, late + LINE * 2) && one.is_bearable(0, false, late + LINE * 3));
        let mut many = Unfinished::new(&quotas);
        assert!(
            one.is_bearable(SMALL_LINE + 1, true, start) && !many.is_bearable(MAX_UNFINISHED, true, start)
        );
        assert!(!one.is_bearable(SMALL_LINE + 1, false, start) && one.is_bearable(SMALL_LINE, false, start));
        drop(many);
        assert!(one.is_bearable(SMALL_LINE + 1, false, start), "there is room again");
    }
}
