//! Reports who joins and leaves: one thread, at most every 200 ms, in lines that are encoded once for all.
//!
//! Invariant: a new session gets the complete list once, then changes. The more sessions there are, the more changes are
//! reported together, so the number of lines grows with the time that ten thousand logins take, not with their square.

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
    let mut told: BTreeSet<Username> = BTreeSet::new();
    let mut due = Instant::now();
    loop {
        let (changes, sessions) = registry.wait(due);
        let started = Instant::now();
        if !changes.names.is_empty() {
            due = started + interval(sessions.len());
        }
        tell(registry, &sessions, &changes, &mut told, flusher);
        std::thread::sleep(PRESENCE_INTERVAL.saturating_sub(started.elapsed()));
    }
}

/// Reports the changes to all sessions, and the complete list to new ones.
fn tell(
    registry: &Registry,
    sessions: &[Arc<Session>],
    changes: &Changes,
    told: &mut BTreeSet<Username>,
    flusher: &Flusher,
) {
    let (mut joined, mut left) = (Vec::new(), Vec::new());
    for name in &changes.names {
        // A user who has logged in again is in both lists: what was agreed with the former session is void.
        if changes.ended.contains(name) && told.remove(name) {
            left.push(name.clone());
        }
        if registry.get(name).is_some() && told.insert(name.clone()) {
            joined.push(name.clone());
        }
    }
    let news = encode(false, joined, left);
    let new: HashSet<_> = changes.newcomers.iter().map(Arc::as_ptr).collect();
    let mut list = FlushList::default();
    for session in sessions {
        if !new.contains(&Arc::as_ptr(session)) {
            news.iter().for_each(|line| {
                session.outbox.queue(Frame::line(line.clone()), &mut list);
            });
        }
    }
    if !changes.newcomers.is_empty() {
        let all = encode(true, told.iter().cloned().collect(), Vec::new());
        for newcomer in &changes.newcomers {
            all.iter().for_each(|line| {
                newcomer.outbox.queue(Frame::line(line.clone()), &mut list);
            });
        }
    }
    flusher.add(list);
}

/// Time between two changes for this number of sessions: all together get at most 2,500 lines a second.
/// PROTOCOL#presence-rate.
fn interval(sessions: usize) -> Duration {
    const AT_ONCE: usize = 500;
    PRESENCE_INTERVAL * u32::try_from(sessions.div_ceil(AT_ONCE)).unwrap_or(u32::MAX).clamp(1, 100)
}

/// Presence lines of bounded length; none if there is nothing to report. Names that left come before names that joined, or
/// a user in both lists could end as gone. PROTOCOL#presence-lists.
fn encode(full: bool, joined: Vec<Username>, left: Vec<Username>) -> Vec<Part> {
    let gone = left.chunks(MAX_PRESENCE_NAMES).map(|names| (names, &[][..]));
    let here = joined.chunks(MAX_PRESENCE_NAMES).map(|names| (&[][..], names));
    let mut pieces: Vec<(&[Username], &[Username])> = gone.chain(here).collect();
    if full && pieces.is_empty() {
        pieces.push((&[], &[]));
    }
    if let [(left, []), ([], joined)] = pieces[..] {
        pieces = vec![(left, joined)];
    }
    let last = pieces.len().saturating_sub(1);
    let line = |(n, (left, joined)): (usize, (&[Username], &[Username]))| {
        let (more, full) = (n < last, full && n == 0);
        let presence = Presence { more, full, joined: joined.to_vec(), left: left.to_vec() };
        Part::from(ServerMessage::Presence(presence).encode())
    };
    pieces.into_iter().enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::super::session::outbox::{Buffers, Condition};
    use super::super::session::tests::session;
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
    fn the_more_there_are_the_less_often_each_is_told() {
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
    fn round(registry: &Registry, told: &mut BTreeSet<Username>) {
        let (changes, sessions) = registry.wait(Instant::now());
        tell(registry, &sessions, &changes, told, &Flusher::default());
    }

    /// What a session has received since the last call: whether it is the complete list, who joined, who left.
    fn heard((session, far): &(Arc<Session>, TcpStream)) -> Vec<(bool, String, String)> {
        session.outbox.flush(&mut Buffers::default());
        session.outbox.send(Frame::message(&ServerMessage::Pong));
        far.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        let mut lines = Vec::new();
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            (&*far).read_exact(&mut byte).expect("it is told");
            if byte != *b"\n" {
                line.extend(byte);
                continue;
            }
            let list = |names: &[Username]| names.iter().map(Username::as_str).collect::<Vec<_>>().join(" ");
            match ServerMessage::decode(&std::mem::take(&mut line)) {
                Ok(ServerMessage::Presence(one)) => {
                    lines.push((one.full, list(&one.joined), list(&one.left)))
                }
                Ok(ServerMessage::Pong) => return lines,
                _ => panic!("not presence"),
            }
        }
    }

    /// PROTOCOL#presence.
    #[test]
    fn new_session_gets_the_list_and_all_get_each_change_once() {
        let (registry, mut told) = (Registry::default(), BTreeSet::new());
        let [alice, bob, carol, again] = ["alice", "bob", "carol", "bob"].map(session);
        let add = |session| registry.insert(session, 100, &ServerMessage::Pong).is_ok();
        let remove = |(session, _): &(Arc<Session>, TcpStream)| {
            let mut list = FlushList::default();
            let ended = registry.end(session, Condition::Always, Some(&ServerMessage::Pong), &mut list);
            list.flush();
            ended.is_some()
        };
        let full = |names: &str| [(true, names.to_string(), String::new())];
        let change = |joined: &str, left: &str| [(false, joined.to_string(), left.to_string())];
        assert!(add(&alice.0) && add(&bob.0));
        round(&registry, &mut told);
        assert_eq!((heard(&alice), heard(&bob)), (full("alice bob").into(), full("alice bob").into()));
        assert!(add(&carol.0));
        round(&registry, &mut told);
        for one in [&alice, &bob] {
            assert_eq!(heard(one), change("carol", ""));
        }
        assert_eq!(heard(&carol), full("alice bob carol"));
        // A user who logs in again has left and joined.
        assert!(add(&again.0));
        assert!(!remove(&bob), "the end of the former session is not that of the user");
        round(&registry, &mut told);
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
        round(&registry, &mut told);
        assert_eq!((heard(&alice), heard(&carol)), (change("", "bob").into(), change("", "bob").into()));
        assert_eq!((heard(&alice), heard(&carol), heard(&again)), (Vec::new(), Vec::new(), Vec::new()));
    }
}
