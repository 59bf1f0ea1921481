//! Reports users who join and leave: one thread, at most every 200 ms, in lines that are encoded once for all.
//!
//! Invariant: a new session gets the complete list once, then changes. The more sessions there are, the less often
//! changes are reported: otherwise the number of lines would grow with the square of the sessions.

use super::limits::PRESENCE_INTERVAL;
use super::registry::{Changes, Registry};
use super::session::Session;
use super::session::flush::Flusher;
use super::session::frames::{Frame, Part};
use super::session::outbox::FlushList;
use crate::name::Username;
use crate::protocol::{MAX_PRESENCE_NAMES, Presence, ServerMessage};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The presence thread.
pub fn run(registry: &Registry, flusher: &Flusher) -> ! {
    let mut reported: BTreeSet<Username> = BTreeSet::new();
    let mut due = Instant::now();
    loop {
        let (changes, sessions) = registry.wait(due);
        let started = Instant::now();
        if !changes.names.is_empty() {
            due = started + interval(sessions.len());
        }
        report(registry, &sessions, &changes, &mut reported, flusher);
        std::thread::sleep(PRESENCE_INTERVAL.saturating_sub(started.elapsed()));
    }
}

/// Reports the changes to all sessions, and the complete list to new ones.
fn report(
    registry: &Registry,
    sessions: &[Arc<Session>],
    changes: &Changes,
    reported: &mut BTreeSet<Username>,
    flusher: &Flusher,
) {
    let (mut joined, mut left) = (Vec::new(), Vec::new());
    for name in &changes.names {
        // A user who has logged in again is in both lists, so that clients notice the end of the former session.
        if changes.ended.contains(name) && reported.remove(name) {
            left.push(name.clone());
        }
        if registry.get(name).is_some() && reported.insert(name.clone()) {
            joined.push(name.clone());
        }
    }
    let news = encode(false, joined, left);
    let list = match changes.newcomers[..] {
        [] => Vec::new(),
        _ => encode(true, reported.iter().cloned().collect(), Vec::new()),
    };
    let new: HashSet<_> = changes.newcomers.iter().map(Arc::as_ptr).collect();
    let others = sessions.iter().filter(|session| !new.contains(&Arc::as_ptr(session)));
    let (others, newcomers) =
        (others.map(|one| (one, &news)), changes.newcomers.iter().map(|one| (one, &list)));
    let mut flush = FlushList::default();
    for (session, lines) in others.chain(newcomers) {
        lines.iter().for_each(|line| session.outbox.queue(Frame::line(line.clone()), &mut flush));
    }
    flusher.add(flush);
}

/// Time between two changes for this number of sessions: at most 2,500 lines a second for all together, up to 50,000
/// sessions, and at most 20 s. PROTOCOL#presence-rate.
fn interval(sessions: usize) -> Duration {
    const AT_ONCE: usize = 500;
    PRESENCE_INTERVAL * u32::try_from(sessions.div_ceil(AT_ONCE)).unwrap_or(u32::MAX).clamp(1, 100)
}

/// Presence lines of bounded length; none if there is nothing to report. Names that left come before names that joined,
/// or a client could hold a user in both lists to be offline. PROTOCOL#presence-lists.
fn encode(full: bool, joined: Vec<Username>, left: Vec<Username>) -> Vec<Part> {
    if !full && joined.is_empty() && left.is_empty() {
        return Vec::new();
    }
    let line = |joined: &[Username], left: &[Username]| Presence {
        more: true,
        full: false,
        joined: joined.into(),
        left: left.into(),
    };
    let mut lines = if joined.len().max(left.len()) <= MAX_PRESENCE_NAMES {
        vec![line(&joined, &left)]
    } else {
        let gone = left.chunks(MAX_PRESENCE_NAMES).map(|names| line(&[], names));
        gone.chain(joined.chunks(MAX_PRESENCE_NAMES).map(|names| line(names, &[]))).collect()
    };
    lines[0].full = full;
    lines.last_mut().into_iter().for_each(|last| last.more = false);
    lines.into_iter().map(|line| ServerMessage::Presence(line).encode().into()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::session::outbox::{Buffers, Condition};
    use super::super::session::tests::session;
    use super::super::shared::tests::{HOUR, shared};
    use super::*;
    use std::io::Read;
    use std::net::TcpStream;

    fn names(range: std::ops::Range<usize>) -> Vec<Username> {
        range.map(|n| format!("n{n}").parse().expect("name")).collect()
    }

    fn lines(full: bool, joined: Vec<Username>, left: Vec<Username>) -> Vec<Presence> {
        let decode = |part: Part| match ServerMessage::decode(&part) {
            Ok(ServerMessage::Presence(presence)) => presence,
            _ => panic!("not presence"),
        };
        encode(full, joined, left).into_iter().map(decode).collect()
    }

    /// PROTOCOL#presence-lists.
    #[test]
    fn user_in_both_lists_is_online_at_the_end() {
        let lines = lines(false, names(0..5000), names(0..9000));
        let mut online: HashSet<Username> = names(0..9000).into_iter().collect();
        for line in &lines {
            assert!(!line.full && line.joined.len().max(line.left.len()) <= MAX_PRESENCE_NAMES);
            online.retain(|name| !line.left.contains(name));
            online.extend(line.joined.iter().cloned());
        }
        assert_eq!(online, names(0..5000).into_iter().collect());
    }

    /// PROTOCOL#presence-rate.
    #[test]
    fn presence_is_sent_less_often_to_more_users() {
        let milliseconds = [0, 1, 500, 501, 10_000].map(|count| interval(count).as_millis());
        assert_eq!(milliseconds, [200, 200, 200, 400, 4000]);
        assert_eq!(interval(usize::MAX), PRESENCE_INTERVAL * 100);
    }

    /// PROTOCOL#presence-lists, PROTOCOL#presence.
    #[test]
    fn few_changes_are_one_line_and_a_list_marks_its_ends() {
        assert_eq!(lines(false, Vec::new(), Vec::new()).len(), 0);
        assert_eq!(lines(false, names(0..3), names(3..5)).len(), 1);
        let all = lines(true, names(0..9000), Vec::new());
        let marks: Vec<(bool, bool)> = all.iter().map(|line| (line.full, line.more)).collect();
        assert_eq!(marks, [(true, true), (false, true), (false, false)]);
        assert_eq!(lines(true, Vec::new(), Vec::new()).len(), 1);
    }

    /// A round of the presence thread, without its pause.
    fn round(registry: &Registry, reported: &mut BTreeSet<Username>) {
        let (changes, sessions) = registry.wait(Instant::now());
        report(registry, &sessions, &changes, reported, &Flusher::default());
    }

    /// The news for a session since the last call: whether it is the complete list, who joined, who left.
    fn heard((session, far): &(Arc<Session>, TcpStream)) -> Vec<(bool, String, String)> {
        session.outbox.flush(&mut Buffers::default());
        session.outbox.send(Frame::message(&ServerMessage::Pong));
        far.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        let mut lines = Vec::new();
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            (&*far).read_exact(&mut byte).expect("a line");
            if byte != *b"\n" {
                line.extend(byte);
                continue;
            }
            let list = |names: &[Username]| names.iter().map(Username::as_str).collect::<Vec<_>>().join(" ");
            match ServerMessage::decode(&std::mem::take(&mut line)) {
                Ok(ServerMessage::Presence(one)) => {
                    lines.push((one.full, list(&one.joined), list(&one.left)))
                }
                // The end of a session that was replaced also counts.
                Ok(ServerMessage::Pong | ServerMessage::Error(_)) => return lines,
                _ => panic!("not presence"),
            }
        }
    }

    /// PROTOCOL#presence.
    #[test]
    fn new_session_gets_the_list_and_all_get_each_change_once() {
        let ((shared, _folder), mut reported) = (shared(HOUR), BTreeSet::new());
        let registry = &shared.registry;
        let [alice, bob, carol, again] = ["alice", "bob", "carol", "bob"].map(session);
        let add = |session| registry.insert(session, 100);
        let remove = |(session, _): &(Arc<Session>, TcpStream)| {
            registry.end(session, Condition::Always, Some(&ServerMessage::Pong))
        };
        let full = |names: &str| [(true, names.to_string(), String::new())];
        let change = |joined: &str, left: &str| [(false, joined.to_string(), left.to_string())];
        assert!(add(&alice.0) && add(&bob.0));
        round(registry, &mut reported);
        assert_eq!((heard(&alice), heard(&bob)), (full("alice bob").into(), full("alice bob").into()));
        assert!(add(&carol.0));
        round(registry, &mut reported);
        for one in [&alice, &bob] {
            assert_eq!(heard(one), change("carol", ""));
        }
        assert_eq!(heard(&carol), full("alice bob carol"));
        // A user who logs in again has left and joined.
        assert!(add(&again.0));
        assert!(!remove(&bob), "the end of a replaced session does not take its user offline");
        round(registry, &mut reported);
        for one in [&alice, &carol] {
            assert_eq!(heard(one), change("bob", "bob"));
        }
        assert_eq!((heard(&again), heard(&bob)), (full("alice bob carol").into(), Vec::new()));
        let name = &again.0.name;
        assert!(registry.count() == 3 && registry.get(name).is_some_and(|now| Arc::ptr_eq(&now, &again.0)));
        assert!(remove(&again) && !remove(&again));
        assert!(registry.count() == 2 && registry.get(name).is_none());
        // A user who joined and left in between is not reported.
        let dave = session("dave");
        add(&dave.0);
        assert!(remove(&dave));
        round(registry, &mut reported);
        assert_eq!((heard(&alice), heard(&carol)), (change("", "bob").into(), change("", "bob").into()));
        assert_eq!((heard(&alice), heard(&carol), heard(&again)), (Vec::new(), Vec::new(), Vec::new()));
    }
}
