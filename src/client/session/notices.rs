//! Notices that others can cause, about users and about the server: shown once, then counted.
//!
//! Invariant: whatever others send, and however fast, a minute shows a limited number of these lines. None is lost: a
//! line that is not shown is counted, and the count is shown later or at the end. Ignored users cause none.

use crate::client::entry::{Entry, Place, Source};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The minute of the limits below. A count is shown after it, then after twice the time before, as long as it grows.
const COUNTED: Duration = Duration::from_secs(60);
/// The longest time between two reports of a count.
const COUNTED_AT_MOST: Duration = Duration::from_secs(3600);
/// Notices about users in a minute: more than a person reads.
const MAX_ABOUT_USERS: u32 = 30;
/// The most notices about one user, which leaves room for others.
const MAX_ABOUT_ONE: u32 = 10;
/// Notices about the server in a minute: an honest one causes few.
const MAX_ABOUT_SERVER: u32 = 10;
/// Lines in a minute about users who come and go.
const MAX_PRESENCE: u32 = 60;
/// The most different notices that are remembered: some 100 KiB.
const MAX_TOLD: usize = 512;

/// Lines that may still be shown in the current minute.
pub struct Allowance {
    most: u32,
    used: u32,
    /// The lines about each user.
    used_by: BTreeMap<String, u32>,
    since: Option<Instant>,
    /// Notices that were not shown.
    more: u64,
}

impl Allowance {
    const fn new(most: u32) -> Allowance {
        Allowance { most, used: 0, used_by: BTreeMap::new(), since: None, more: 0 }
    }

    /// Begins another minute if one is over, or at the end, which also shows lines. False if it did not.
    fn renew(&mut self, now: Instant, last: bool) -> bool {
        let is_over = last || self.since.is_none_or(|since| now.duration_since(since) >= COUNTED);
        if is_over {
            (self.used, self.since) = (0, Some(now));
            self.used_by.clear();
        }
        is_over
    }

    /// Whether this number of lines may be shown now; if so, they count as shown.
    pub fn take(&mut self, lines: usize) -> bool {
        let used = self.used.saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
        let allowed = used <= self.most;
        self.used = if allowed { used } else { self.used };
        allowed
    }

    /// Whether a line about this user may be shown now; empty for the server.
    fn take_about(&mut self, about: &str) -> bool {
        let used = self.used_by.get(about).copied().unwrap_or(0);
        let allowed = used < MAX_ABOUT_ONE && self.take(1);
        if allowed {
            self.used_by.insert(about.into(), used + 1);
        }
        allowed
    }
}

/// A notice that was shown.
struct Told {
    shown: u32,
    /// How often it was not shown since then.
    more: u64,
    /// The latest one that was not shown.
    entry: Entry,
    due: Instant,
    wait: Duration,
}

/// The notices that others have caused so far.
pub struct Notices {
    /// By user, in lower case (empty for the server, `*` for no single user), and topic.
    told: BTreeMap<(String, String), Told>,
    users: Allowance,
    server: Allowance,
    pub(super) presence: Allowance,
    /// Whether a message of a later version was reported.
    pub(super) later: bool,
}

impl Default for Notices {
    fn default() -> Notices {
        let [users, server, presence] = [MAX_ABOUT_USERS, MAX_ABOUT_SERVER, MAX_PRESENCE].map(Allowance::new);
        Notices { told: BTreeMap::new(), users, server, presence, later: false }
    }
}

impl Notices {
    /// Whether to show `entry`: the first `limit` with the same key are shown, as long as there is room.
    pub fn admits(&mut self, key: (String, String), limit: u32, entry: &Entry, now: Instant) -> bool {
        let allowance = if key.0.is_empty() { &mut self.server } else { &mut self.users };
        let is_full = self.told.len() >= MAX_TOLD;
        match self.told.get_mut(&key) {
            Some(told) if told.shown >= limit => {
                told.more = told.more.saturating_add(1);
                told.entry = entry.clone();
                return false;
            }
            None if is_full => {}
            known if allowance.take_about(&key.0) => {
                match known {
                    Some(told) => told.shown += 1,
                    None => {
                        let (entry, due) = (entry.clone(), now + COUNTED);
                        let told = Told { shown: 1, more: 0, entry, due, wait: COUNTED };
                        self.told.insert(key, told);
                    }
                }
                return true;
            }
            _ => {}
        }
        allowance.more = allowance.more.saturating_add(1);
        false
    }

    /// The counted notices to show now; all of them at the end.
    pub fn counted(&mut self, now: Instant, last: bool) -> Vec<(Source, Place, String)> {
        let mut shown = Vec::new();
        let [of_users, of_server, _] = [&mut self.users, &mut self.server, &mut self.presence]
            .map(|allowance| allowance.renew(now, last));
        let (users, server) = (&mut self.users, &mut self.server);
        self.told.retain(|(about, _), told| {
            if told.due > now && !last {
                return true;
            }
            let allowance = if about.is_empty() { &mut *server } else { &mut *users };
            let more = std::mem::take(&mut told.more);
            if more > 0 && allowance.take_about(about) {
                let Entry { source, place, text, .. } = told.entry.clone();
                let times = if more == 1 { "once more".into() } else { format!("{more} more times") };
                shown.push((source, place, format!("{text} ({times})")));
            } else {
                allowance.more = allowance.more.saturating_add(more);
            }
            told.wait = (told.wait * 2).min(COUNTED_AT_MOST);
            told.due = now + told.wait;
            more > 0
        });
        for (allowance, is_due, what) in
            [(users, of_users, "notices about users"), (server, of_server, "problems with the server")]
        {
            let more = if is_due { std::mem::take(&mut allowance.more) } else { 0 };
            if more > 0 {
                let text = format!("{more} more {what} were not shown");
                shown.push((Source::Problem, Place::Here, text));
            }
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(notices: &mut Notices, n: u32, now: Instant) -> bool {
        let entry = Entry::new(0, Source::Problem, Place::Here, format!("problem {n}"));
        notices.admits((format!("user{n}"), "topic".into()), 1, &entry, now)
    }

    /// The number of notices that a later line counts.
    fn counted((_, _, text): &(Source, Place, String)) -> u64 {
        let count = text.split_once('(').map_or(text.as_str(), |(_, count)| count);
        if count == "once more)" {
            1
        } else {
            count.split(' ').next().and_then(|n| n.parse().ok()).expect("a count")
        }
    }

    #[test]
    fn different_notices_are_remembered_in_bounded_memory() {
        let mut notices = Notices::default();
        let shown = (0..2 * MAX_TOLD as u32).filter(|n| {
            // Let minutes pass.
            notices.users.used = 0;
            admits(&mut notices, *n, Instant::now())
        });
        assert_eq!(
            (shown.count(), notices.users.more, notices.told.len()),
            (MAX_TOLD, MAX_TOLD as u64, MAX_TOLD)
        );
    }

    #[test]
    fn flood_of_notices_is_bounded_and_all_are_counted() {
        let (mut notices, mut now) = (Notices::default(), Instant::now());
        let (mut caused, mut told, mut known) = (0, 0, 0);
        for _ in 0..200 {
            let lines = notices.counted(now, false);
            told += lines.iter().map(counted).sum::<u64>();
            let shown = (0..known + 10).filter(|n| admits(&mut notices, *n, now)).count();
            assert!(lines.len() + shown <= MAX_ABOUT_USERS as usize + 1);
            (caused, told, known) = (caused + u64::from(known + 10), told + shown as u64, known + 5);
            now += COUNTED;
        }
        assert_eq!(told + notices.counted(now, true).iter().map(counted).sum::<u64>(), caused);
    }

    #[test]
    fn repeated_notice_is_counted_at_doubling_intervals() {
        let (mut notices, begun) = (Notices::default(), Instant::now());
        assert!(admits(&mut notices, 1, begun));
        let shown = (1..=360).map(|n| n * 30).filter(|seconds| {
            let now = begun + Duration::from_secs(*seconds);
            assert!(!admits(&mut notices, 1, now));
            !notices.counted(now, false).is_empty()
        });
        assert_eq!(shown.collect::<Vec<_>>(), [60, 180, 420, 900, 1860, 3780, 7380]);
        // A notice that no longer occurs is forgotten.
        let later = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(notices.counted(later(10_980), false).len(), 1);
        assert!(notices.counted(later(14_580), false).is_empty() && notices.told.is_empty());
    }
}
