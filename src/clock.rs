//! Wall-clock time for people and signed fields. Durations use [`std::time::Instant`], which is never set back.

use std::time::{SystemTime, UNIX_EPOCH};
use time::{OffsetDateTime, UtcOffset};

/// Milliseconds since 1970; 0 before. PROTOCOL#times.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn date_time(ms: u64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp((ms / 1000) as i64).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// `2026-01-31T08:05:09Z`, from milliseconds since 1970; `1970-01-01T00:00:00Z` for a time after the year 9999.
pub fn utc(ms: u64) -> String {
    let t = date_time(ms);
    format!("{}T{:02}:{:02}:{:02}Z", t.date(), t.hour(), t.minute(), t.second())
}

/// The date in [`utc`]: `2026-01-31`.
pub fn utc_day(ms: u64) -> String {
    date_time(ms).date().to_string()
}

/// In this machine's time zone, or in UTC if that is unknown. Each time has the offset of its own moment, so a message
/// from before the change to summer time keeps its hour.
fn local(ms: u64) -> OffsetDateTime {
    let t = date_time(ms);
    t.checked_to_offset(UtcOffset::local_offset_at(t).unwrap_or(UtcOffset::UTC)).unwrap_or(t)
}

/// `08:05` in local time, from milliseconds since 1970.
pub fn hour_minute(ms: u64) -> String {
    let t = local(ms);
    format!("{:02}:{:02}", t.hour(), t.minute())
}

/// `2026-01-31 08:05` in local time, from milliseconds since 1970.
pub fn date_minute(ms: u64) -> String {
    format!("{} {}", local(ms).date(), hour_minute(ms))
}

/// `Monday 2 November 2026` in local time, from milliseconds since 1970.
pub fn day(ms: u64) -> String {
    let t = local(ms);
    format!("{} {} {} {}", t.weekday(), t.day(), t.month(), t.year())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_iso_8601_and_never_panic() {
        assert_eq!(utc(1_769_846_709_000), "2026-01-31T08:05:09Z");
        assert_eq!(utc_day(0), "1970-01-01");
        utc(u64::MAX);
        hour_minute(u64::MAX);
        let last = 253_402_300_799_000;
        assert_eq!(
            (utc(last).as_str(), utc_day(last + 1000).as_str()),
            ("9999-12-31T23:59:59Z", "1970-01-01")
        );
        day(last);
        assert_eq!(date_minute(1_769_860_800_000).len(), "2026-01-31 08:05".len());
        // Noon of that day is the same day from the Azores to Japan.
        assert_eq!(day(1_769_860_800_000), "Saturday 31 January 2026");
    }
}
