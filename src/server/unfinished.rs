//! Lines and packets that have begun to come.
//!
//! Invariant: none takes for ever. All together have no more than [`MAX_UNFINISHED`] bytes, but for [`SMALL_LINE`], and what
//! one read brings, of each client.

use super::limits::{LINE, MAX_UNFINISHED, SMALL_LINE};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Bytes of unfinished lines and packets, of all who are logged in.
static ALL_UNFINISHED: AtomicUsize = AtomicUsize::new(0);

/// A line or packet of one client that is not whole yet: bounded in time, and together with all others' in bytes. Who breaks
/// this loses the connection; the session goes on on another one. PROTOCOL#unfinished.
#[derive(Default)]
pub struct Unfinished {
    bytes: usize,
    since: Option<Instant>,
}

impl Unfinished {
    /// Now it has so many bytes; `anew` if they are another one's than before. False if that is too much, or too old.
    pub fn is_bearable(&mut self, bytes: usize, anew: bool, now: Instant) -> bool {
        let more = bytes.wrapping_sub(self.bytes);
        let all = ALL_UNFINISHED.fetch_add(more, Ordering::Relaxed).wrapping_add(more);
        let since = self.since.filter(|_| !anew && self.bytes > 0).unwrap_or(now);
        (self.bytes, self.since) = (bytes, Some(since));
        let is_old = bytes > 0 && now.duration_since(since) > LINE;
        !is_old && (bytes <= SMALL_LINE || all <= MAX_UNFINISHED)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        ALL_UNFINISHED.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// PROTOCOL#unfinished.
    #[test]
    fn what_is_not_whole_is_bounded_in_time_and_with_that_of_all_others() {
        let (mut one, start) = (Unfinished::default(), Instant::now());
        let (late, second) = (start + LINE, Duration::from_secs(1));
        assert!(one.is_bearable(1, true, start) && one.is_bearable(2, false, late));
        assert!(!one.is_bearable(3, false, late + second) && !one.is_bearable(3, false, late + second));
        assert!(one.is_bearable(3, true, late + second), "of another line");
        assert!(one.is_bearable(0, true, late) && one.is_bearable(1, false, late + LINE), "none between");
        assert!(one.is_bearable(2, false, late + LINE * 2) && one.is_bearable(0, false, late + LINE * 3));
        // Others count as well, so this is not tried at its very bound.
        let mut many = Unfinished::default();
        assert!(
            one.is_bearable(SMALL_LINE + 1, true, start) && !many.is_bearable(MAX_UNFINISHED, true, start)
        );
        assert!(!one.is_bearable(SMALL_LINE + 1, false, start) && one.is_bearable(SMALL_LINE, false, start));
        drop(many);
        assert!(one.is_bearable(SMALL_LINE + 1, false, start), "there is room again");
    }
}
