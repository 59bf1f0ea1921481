//! Who is on-line, and who is told about it.
//!
//! Invariant: a name has at most one session; presence is told by one thread, at most every 200 ms,
//! in lines that are made once for everyone. A newcomer gets the whole list once, then changes; the more there are to
//! hear of them, the more of them are told together: ten thousand logins cause changes in the order of seconds, not of
//! logins squared.

use super::flusher::Flusher;
use super::frames::{Frame, Part};
use super::limits::PRESENCE_INTERVAL;
use super::lock;
use super::outbox::Pass;
use super::session::Session;
use crate::name::Username;
use crate::protocol::{MAX_PRESENCE_NAMES, Presence, ServerMessage};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

/// The sessions by name, and the changes nobody was told of yet.
#[derive(Default)]
pub struct Registry {
    sessions: RwLock<HashMap<Username, Arc<Session>>>,
    /// How many are about to be added, by name; taken after the lock of `sessions`.
    reserved: Mutex<HashMap<Username, usize>>,
    changes: Mutex<Changes>,
    changed: Condvar,
}

#[derive(Default)]
struct Changes {
    newcomers: Vec<Arc<Session>>,
    names: BTreeSet<Username>,
    /// Whose session has ended, whether or not another one has begun.
    ended: BTreeSet<Username>,
}

/// The sessions, held fast: to take the lock and to count a holder of the session, for each of a thousand recipients, took
/// a tenth of a broadcast's time.
pub struct Sessions<'a>(RwLockReadGuard<'a, HashMap<Username, Arc<Session>>>);

impl Sessions<'_> {
    /// As [`Registry::get`].
    pub fn get(&self, name: &Username) -> Option<&Session> {
        self.0.get(name).map(Arc::as_ref)
    }
}

/// The place of one who is about to be [added](Registry::add): until then, or until it is dropped, nobody else gets it.
#[derive(Default)]
pub struct Place<'a>(Option<(&'a Mutex<HashMap<Username, usize>>, Username)>);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some((reserved, name)) = &self.0 else { return };
        let mut reserved = lock(reserved);
        match reserved.get_mut(name) {
            Some(count) if *count > 1 => *count -= 1,
            _ => _ = reserved.remove(name),
        }
    }
}

impl Registry {
    /// A place for somebody of this name; who takes over a session of their own needs no new one. `None` if `limit` are
    /// on-line, or about to be. PROTOCOL#full.
    pub fn place(&self, name: &Username, limit: usize) -> Option<Place<'_>> {
        let sessions = self.read();
        let mut reserved = lock(&self.reserved);
        let has_place = sessions.contains_key(name) || reserved.contains_key(name);
        // As many as log in at this moment.
        let newcomers = || reserved.keys().filter(|name| !sessions.contains_key(name)).count();
        (has_place || sessions.len() + newcomers() < limit).then(|| {
            *reserved.entry(name.clone()).or_default() += 1;
            Place(Some((&self.reserved, name.clone())))
        })
    }

    /// Adds a session and returns the one it replaces; `None` if nobody of that name was on-line.
    pub fn add(&self, session: &Arc<Session>, place: Place<'_>) -> Option<Arc<Session>> {
        // Both at once, or a newcomer could hear of changes before the whole list.
        let mut changes = lock(&self.changes);
        let mut sessions = self.write();
        // Before anybody can find the new session.
        let lost = sessions.get(&session.name).map(|former| former.report_lost());
        let former = sessions.insert(session.name.clone(), session.clone());
        if let Some(former) = &former {
            // Before anybody finds it: who comes back for the former one is to be told of this one.
            session.supersede(former);
        }
        drop((place, sessions));
        changes.newcomers.push(session.clone());
        if former.is_some() {
            changes.ended.insert(session.name.clone());
        }
        changes.names.insert(session.name.clone());
        self.changed.notify_one();
        drop(changes);
        lost.into_iter().for_each(Pass::flush);
        former
    }

    /// Removes this session, unless a newer one has replaced it. True if it was there.
    pub fn remove(&self, session: &Arc<Session>) -> bool {
        let mut sessions = self.write();
        let mine = sessions.get(&session.name).is_some_and(|current| Arc::ptr_eq(current, session));
        if mine {
            sessions.remove(&session.name);
            drop(sessions);
            let mut changes = lock(&self.changes);
            changes.names.insert(session.name.clone());
            changes.ended.insert(session.name.clone());
            self.changed.notify_one();
        }
        mine
    }

    /// The session of exactly this name; `None` if nobody of it is on-line.
    pub fn get(&self, name: &Username) -> Option<Arc<Session>> {
        self.read().get(name).cloned()
    }

    /// To look several up at once: while it lives, nobody comes or goes, so it is for a moment.
    pub fn look(&self) -> Sessions<'_> {
        Sessions(self.read())
    }

    /// The sessions whose certificate has expired by `now`, or whose outbox has ended.
    pub fn overdue(&self, now: Instant) -> Vec<Arc<Session>> {
        let is_overdue = |session: &&Arc<Session>| !session.is_certified(now) || !session.outbox.is_open();
        self.read().values().filter(is_overdue).cloned().collect()
    }

    /// Closes the connections of all sessions, which can be resumed.
    pub fn disconnect(&self) {
        self.read().values().for_each(|session| session.outbox.disconnect());
    }

    /// How many are on-line.
    pub fn count(&self) -> usize {
        self.read().len()
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<Username, Arc<Session>>> {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<Username, Arc<Session>>> {
        self.sessions.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The presence thread.
    pub fn tell_presence(&self, flusher: &Flusher) -> ! {
        let mut told: BTreeSet<Username> = BTreeSet::new();
        let mut due = Instant::now();
        loop {
            let mut changes = lock(&self.changes);
            while changes.names.is_empty() {
                changes = self.changed.wait(changes).unwrap_or_else(PoisonError::into_inner);
            }
            let started = Instant::now();
            let newcomers = std::mem::take(&mut changes.newcomers);
            let (mut sessions, mut news) = (Vec::new(), Changes::default());
            if started >= due {
                news = std::mem::take(&mut *changes);
                sessions = self.read().values().cloned().collect();
                due = started + interval(sessions.len());
            }
            drop(changes);
            self.tell(&sessions, &newcomers, &news, &mut told, flusher);
            std::thread::sleep(PRESENCE_INTERVAL.saturating_sub(started.elapsed()));
        }
    }

    /// Tells the sessions what is new, and the newcomers everything that has been told.
    fn tell(
        &self,
        sessions: &[Arc<Session>],
        newcomers: &[Arc<Session>],
        changes: &Changes,
        told: &mut BTreeSet<Username>,
        flusher: &Flusher,
    ) {
        let (mut joined, mut left) = (Vec::new(), Vec::new());
        for name in &changes.names {
            let online = self.get(name).is_some();
            // Who has logged in anew stands in both lists: what was agreed with the former session is void.
            let known = told.contains(name);
            if known && (!online || changes.ended.contains(name)) {
                told.remove(name);
                left.push(name.clone());
            }
            if online && told.insert(name.clone()) {
                joined.push(name.clone());
            }
        }
        let news = encode(false, joined, left);
        let new: HashSet<_> = newcomers.iter().map(Arc::as_ptr).collect();
        let mut pass = Pass::default();
        for session in sessions {
            if !new.contains(&Arc::as_ptr(session)) {
                news.iter().for_each(|line| {
                    session.outbox.queue(Frame::line(line.clone()), &mut pass);
                });
            }
        }
        if !newcomers.is_empty() {
            let all = encode(true, told.iter().cloned().collect(), Vec::new());
            for newcomer in newcomers {
                all.iter().for_each(|line| {
                    newcomer.outbox.queue(Frame::line(line.clone()), &mut pass);
                });
            }
        }
        flusher.add(pass);
    }
}

/// Time between two changes that so many are told: they have at most 2,500 lines a second together.
/// PROTOCOL#presence-rate.
fn interval(sessions: usize) -> Duration {
    const AT_ONCE: usize = 500;
    PRESENCE_INTERVAL * u32::try_from(sessions.div_ceil(AT_ONCE)).unwrap_or(u32::MAX).clamp(1, 100)
}

/// Presence lines of bounded length; none if there is nothing to tell. Who has left comes before who has
/// joined, or somebody in both lists could end as gone. PROTOCOL#presence-lists.
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
    use super::super::outbox::{Buffers, Queued};
    use super::super::receipts::Receipt;
    use super::super::session::tests::session;
    use super::*;
    use crate::protocol::{Lost, WrappedKey};
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
    fn who_is_in_both_lists_is_on_line_at_the_end_however_long_they_are() {
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
    fn few_changes_are_one_line_and_a_full_list_says_where_it_begins_and_ends() {
        assert_eq!(lines(false, Vec::new(), Vec::new()).len(), 0);
        assert_eq!(lines(false, names(0..3), names(3..5)).len(), 1);
        let all = lines(true, names(0..9000), Vec::new());
        let marks: Vec<(bool, bool)> = all.iter().map(|line| (line.full, line.more)).collect();
        assert_eq!(marks, [(true, true), (false, true), (false, false)]);
        assert_eq!(lines(true, Vec::new(), Vec::new()).len(), 1);
    }

    /// PROTOCOL#lost.
    #[test]
    fn lost_messages_are_reported_before_the_new_session_is_found() {
        let registry = Registry::default();
        let [alice, bob, again] = ["alice", "bob", "bob"].map(session);
        [&alice, &bob].iter().for_each(|one| _ = registry.add(&one.0, Place::default()));
        let key = WrappedKey::new(&[1; 264]);
        let deliver = |id| {
            let receipt = Receipt::new(Arc::downgrade(&alice.0.outbox), id);
            bob.0.outbox.deliver(Frame::envelope((*b"{}\n").into(), true), Some(&key), Some(receipt), None)
        };
        assert_eq!(deliver(7), Queued::Yes);
        registry.add(&again.0, Place::default());
        assert_eq!(deliver(8), Queued::Gone);
        let line = ServerMessage::Lost(Lost { id: 7, name: bob.0.name.clone() }).encode();
        let mut got = vec![0; line.len()];
        alice.1.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        (&alice.1).read_exact(&mut got).expect("it is told");
        assert_eq!(got, line);
        // Only once, however the former session then ends.
        assert!(bob.0.outbox.take_receipts().is_none());
    }

    /// A round of the presence thread in which nobody is told too often.
    fn round(registry: &Registry, told: &mut BTreeSet<Username>) {
        let mut news = std::mem::take(&mut *lock(&registry.changes));
        let newcomers = std::mem::take(&mut news.newcomers);
        let sessions: Vec<_> = registry.read().values().cloned().collect();
        registry.tell(&sessions, &newcomers, &news, told, &Flusher::default());
    }

    /// What somebody has been told since they were asked last: whether it is the full list, who has joined, who has left.
    fn heard((session, far): &(Arc<Session>, TcpStream)) -> Vec<(bool, String, String)> {
        session.outbox.flush(&mut Buffers::default());
        session.outbox.control(|control| control.pongs = 1);
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
    fn a_newcomer_hears_of_everyone_and_everyone_once_of_who_comes_and_goes() {
        let (registry, mut told) = (Registry::default(), BTreeSet::new());
        let [alice, bob, carol, again] = ["alice", "bob", "carol", "bob"].map(session);
        let full = |names: &str| [(true, names.to_string(), String::new())];
        let change = |joined: &str, left: &str| [(false, joined.to_string(), left.to_string())];
        assert!(
            registry.add(&alice.0, Place::default()).is_none()
                && registry.add(&bob.0, Place::default()).is_none()
        );
        round(&registry, &mut told);
        assert_eq!((heard(&alice), heard(&bob)), (full("alice bob").into(), full("alice bob").into()));
        assert!(registry.add(&carol.0, Place::default()).is_none());
        round(&registry, &mut told);
        for one in [&alice, &bob] {
            assert_eq!(heard(one), change("carol", ""));
        }
        assert_eq!(heard(&carol), full("alice bob carol"));
        // Who logs in anew has left and joined: what was agreed with the former session is void.
        assert!(registry.add(&again.0, Place::default()).is_some_and(|former| Arc::ptr_eq(&former, &bob.0)));
        assert!(!registry.remove(&bob.0), "the end of the former session is not that of the person");
        round(&registry, &mut told);
        for one in [&alice, &carol] {
            assert_eq!(heard(one), change("bob", "bob"));
        }
        assert_eq!((heard(&again), heard(&bob)), (full("alice bob carol").into(), Vec::new()));
        let name = &again.0.name;
        assert!(registry.count() == 3 && registry.get(name).is_some_and(|now| Arc::ptr_eq(&now, &again.0)));
        assert!(registry.remove(&again.0) && !registry.remove(&again.0));
        assert!(registry.count() == 2 && registry.get(name).is_none());
        // Nobody hears of one who came and went in between.
        let dave = session("dave");
        registry.add(&dave.0, Place::default());
        registry.remove(&dave.0);
        round(&registry, &mut told);
        assert_eq!((heard(&alice), heard(&carol)), (change("", "bob").into(), change("", "bob").into()));
        round(&registry, &mut told);
        assert_eq!((heard(&alice), heard(&carol), heard(&again)), (Vec::new(), Vec::new(), Vec::new()));
    }
}
