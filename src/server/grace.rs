//! Who reads from a session's client, and what becomes of a session that nobody reads from (PROTOCOL#resuming).
//!
//! Invariant: what is needed to handle a session's frames is its [`Inbound`], of which there is one. It is always in one
//! of three places: with a connection's thread, inside a [`Turn`]; with a resumption that takes over, inside a `Turn`, too;
//! or in the session's [`Slot`]. A session is put on the list of [`Grace`], with the end of its time, under the slot's lock
//! (which is taken before the list's), before its `Inbound` is in the slot. The two are left one after the other: who has
//! emptied the slot then takes the session off the list, and who has taken it off the list, because its time is over or its
//! room is needed, ends it only if the slot still has the same place. So no frame is handled or counted by two, a
//! session without a connection always ends, and who takes the `Inbound` out of the slot, be it a resumption or the
//! end of the time, decides alone what becomes of it.
//!
//! A resumption first shuts the former connection ([`Outbox::claim`](super::outbox::Outbox::claim)). Its thread then
//! handles no further frame: before each one, and while it waits for anything, it looks whether the session still is on
//! its link. What it had read and not handled is not counted, so the client sends it again. Then it drops its `Turn`.

use super::limits::SWEEP;
use super::rates::Bucket;
use super::session::Session;
use super::{Shared, lock};
use crate::protocol::{ErrorCode, ServerMessage};
use crate::wire::window::Received;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a session knows of the frames that come from its client.
pub struct Inbound {
    /// Frames since the login.
    pub received: Received,
    /// The client's rate.
    pub bucket: Bucket,
}

impl Inbound {
    /// Of a new session. `rate` is in requests a second.
    pub fn new(rate: u32) -> Inbound {
        let rate = f64::from(rate);
        Inbound { received: Received::default(), bucket: Bucket::new(rate, rate * 4.0) }
    }
}

/// The end of a session's time, and a number that makes it unique.
type Place = (Instant, u64);

/// Where the [`Inbound`] of a session without a connection is.
#[derive(Default)]
pub struct Slot {
    inbound: Mutex<Option<(Place, Inbound)>>,
    returned: Condvar,
}

/// The right to handle the frames of a session. Dropped, it goes to the slot, unless the session has ended.
/// PROTOCOL#taken-over.
pub struct Turn {
    shared: Arc<Shared>,
    session: Arc<Session>,
    inbound: Option<Inbound>,
}

impl Turn {
    /// The first one of a session.
    pub fn first(shared: &Arc<Shared>, session: &Arc<Session>, inbound: Inbound) -> Turn {
        Turn { shared: shared.clone(), session: session.clone(), inbound: Some(inbound) }
    }

    /// The next one, as soon as the former is dropped; `None` if that takes longer than `patience`, or as soon as the
    /// session has ended.
    pub fn next(shared: &Arc<Shared>, session: &Arc<Session>, patience: Duration) -> Option<Turn> {
        let slot = &session.slot;
        let is_due = |place: &mut Option<_>| place.is_none() && session.outbox.is_open();
        let waited = slot.returned.wait_timeout_while(lock(&slot.inbound), patience, is_due);
        let (place, inbound) = waited.unwrap_or_else(PoisonError::into_inner).0.take()?;
        shared.grace.remove(place);
        Some(Turn::first(shared, session, inbound))
    }

    /// Whose frames.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// What is known of them.
    pub fn inbound(&mut self) -> &mut Inbound {
        self.inbound.as_mut().expect("only the end of the turn takes it")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(inbound) = self.inbound.take() else { return };
        let mut place = lock(&self.session.slot.inbound);
        // Seen under the lock, so that who ends the session either is seen here or finds it in the slot.
        if !self.session.outbox.is_open() {
            drop(place);
            return report_end(&self.shared, &self.session);
        }
        *place = Some((self.shared.grace.add(&self.session), inbound));
        self.session.slot.returned.notify_one();
    }
}

/// Ends a session, wherever it is: others see its client leave at once, and the client still gets what waits for it, and
/// `last`. PROTOCOL#ends-at-once.
pub fn end(shared: &Shared, session: &Arc<Session>, last: Option<&ServerMessage>) {
    session.outbox.end(last);
    report_end(shared, session);
}

/// What follows the end of an outbox, once for each, whoever comes first.
fn report_end(shared: &Shared, session: &Arc<Session>) {
    let Some(address) = session.outbox.take_end() else { return };
    // Before the registry reports that the person left.
    session.report_lost().flush();
    shared.registry.remove(session);
    shared.audit.log("logout", Some(&session.name), Some(address), "");
    let waiting = lock(&session.slot.inbound).take();
    if let Some((place, _)) = waiting {
        shared.grace.remove(place);
    }
    // A resumption that waits for its turn waits in vain.
    session.slot.returned.notify_all();
}

/// [Ends](end) a session, and tells its client why.
pub fn dismiss(shared: &Shared, session: &Arc<Session>, code: ErrorCode, text: &str) {
    end(shared, session, Some(&ServerMessage::error(code, text)));
}

/// The sessions without a connection, by the end of their time. PROTOCOL#outlives.
pub struct Grace {
    length: Duration,
    list: Mutex<(BTreeMap<Place, Arc<Session>>, u64)>,
    wake: Condvar,
}

impl Grace {
    /// `length` is the time that a session has.
    pub fn new(length: Duration) -> Grace {
        Grace { length, list: Mutex::default(), wake: Condvar::new() }
    }

    fn add(&self, session: &Arc<Session>) -> Place {
        let mut list = lock(&self.list);
        let place = (Instant::now() + self.length, list.1);
        list.1 += 1;
        list.0.insert(place, session.clone());
        // All have the same time: only the first one is earlier than what the thread waits for.
        if list.0.len() == 1 {
            self.wake.notify_one();
        }
        place
    }

    fn remove(&self, place: Place) {
        lock(&self.list).0.remove(&place);
    }

    /// Ends the session whose time would end first, to make room for another. False if there is none.
    pub fn end_first(&self, shared: &Shared) -> bool {
        loop {
            // Not in the condition of a `while let`: the lock would be held while the session ends.
            let first = lock(&self.list).0.pop_first();
            match first {
                None => return false,
                Some((place, session)) if expire(shared, place, &session) => return true,
                // A resumption was faster: the next one.
                Some(_) => {}
            }
        }
    }

    /// The thread that ends sessions whose time without a connection is over, whose certificate has expired, or for which too
    /// much waited.
    pub fn run(&self, shared: &Shared) -> ! {
        let (mut list, mut sweep) = (lock(&self.list), Instant::now() + SWEEP);
        loop {
            let now = Instant::now();
            let due = list.0.first_key_value().map_or(sweep, |((until, _), _)| sweep.min(*until));
            if due > now {
                list = self.wake.wait_timeout(list, due - now).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let first =
                list.0.first_entry().filter(|first| first.key().0 <= now).map(|first| first.remove_entry());
            drop(list);
            if let Some((place, session)) = first {
                expire(shared, place, &session);
            }
            if sweep <= now {
                sweep_out(shared, now);
                sweep = now + SWEEP;
            }
            list = lock(&self.list);
        }
    }
}

/// Ends a session that was taken off the list. False if a resumption was faster.
fn expire(shared: &Shared, place: Place, session: &Arc<Session>) -> bool {
    let taken = lock(&session.slot.inbound).take_if(|(its, _)| *its == place);
    if taken.is_some() {
        end(shared, session, None);
    }
    taken.is_some()
}

/// Ends the sessions whose certificate others do not take any more, and reports the end of those whose outbox has overflowed
/// while nobody was there to notice it. PROTOCOL#certificate-ends.
fn sweep_out(shared: &Shared, now: Instant) {
    for session in shared.registry.overdue(now) {
        let text = "the certificate of your session key has expired: a new login is needed";
        dismiss(shared, &session, ErrorCode::CertificateExpired, text);
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::Frame;
    use super::super::registry::Place;
    use super::super::session::tests::session;
    use super::super::store::accounts::tests::Folder;
    use super::super::tests::shared;
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn inbound() -> Inbound {
        Inbound::new(100)
    }

    /// Somebody on-line, whose frames this thread handles.
    fn turn(shared: &Arc<Shared>, name: &str) -> Turn {
        let (session, _) = session(name);
        shared.registry.add(&session, Place::default());
        Turn::first(shared, &session, inbound())
    }

    fn is_on_line(shared: &Shared, name: &str) -> bool {
        shared.registry.get(&name.parse().expect("name")).is_some()
    }

    fn waiting(shared: &Shared) -> usize {
        lock(&shared.grace.list).0.len()
    }

    fn logouts(shared: &Shared, folder: &Folder) -> usize {
        shared.audit.flush();
        let log = std::fs::read_to_string(folder.0.join("logs/security.log")).expect("a log");
        log.matches("event=logout").count()
    }

    /// PROTOCOL#taken-over.
    #[test]
    fn one_alone_handles_the_frames_of_a_session_and_the_next_knows_how_far_they_came() {
        let (shared, _folder) = shared(HOUR);
        let mut first = turn(&shared, "alice");
        let session = first.session().clone();
        assert!(Turn::next(&shared, &session, Duration::from_millis(1)).is_none(), "somebody is at it");
        first.inbound().received.count(1, 1);
        std::thread::scope(|scope| {
            let next = scope
                .spawn(|| Turn::next(&shared, &session, HOUR).expect("as soon as the former is dropped"));
            drop(first);
            let mut next = next.join().expect("whole");
            assert!(Arc::ptr_eq(next.session(), &session) && next.inbound().received.position() == 1);
            assert_eq!(waiting(&shared), 0, "who is served is on no list");
            drop(next);
        });
        assert!(waiting(&shared) == 1 && is_on_line(&shared, "alice"));
        assert!(Turn::next(&shared, &session, Duration::ZERO).is_some());
    }

    /// PROTOCOL#outlives.
    #[test]
    fn who_has_no_connection_has_a_place_of_its_own_and_all_of_its_time() {
        let (shared, _folder) = shared(HOUR);
        let before = Instant::now();
        let places = ["one", "other"].map(|name| shared.grace.add(&session(name).0));
        assert!(places[0].1 != places[1].1, "also of two that came at the same instant");
        assert!(places.iter().all(|(until, _)| *until >= before + HOUR));
    }

    /// PROTOCOL#full.
    #[test]
    fn room_is_made_by_whose_time_would_end_first_and_by_nobody_who_has_a_connection() {
        let (shared, folder) = shared(HOUR);
        let served = turn(&shared, "served");
        let returned = turn(&shared, "returned");
        let session = returned.session().clone();
        drop(returned);
        // A resumption that has taken the turn, but not yet the place on the list: the next one goes.
        let taken = lock(&session.slot.inbound).take();
        ["first", "second", "third"].iter().for_each(|name| drop(turn(&shared, name)));
        let there =
            || ["served", "returned", "first", "second", "third"].map(|name| is_on_line(&shared, name));
        assert!(shared.grace.end_first(&shared));
        assert_eq!((there(), waiting(&shared)), ([true, true, false, true, true], 2));
        assert!(shared.grace.end_first(&shared));
        assert_eq!(there(), [true, true, false, false, true]);
        assert!(shared.grace.end_first(&shared) && !shared.grace.end_first(&shared));
        assert_eq!((there(), waiting(&shared)), ([true, true, false, false, false], 0));
        assert_eq!(logouts(&shared, &folder), 3);
        drop((taken, served));
        assert!(waiting(&shared) == 1 && is_on_line(&shared, "served"));
    }

    /// PROTOCOL#ends-at-once.
    #[test]
    fn dismissed_user_is_offline_at_once() {
        let (shared, folder) = shared(HOUR);
        let away = turn(&shared, "away");
        let gone = away.session().clone();
        drop(away);
        dismiss(&shared, &gone, ErrorCode::AccountRemoved, "");
        assert!(!is_on_line(&shared, "away") && !gone.outbox.is_open() && waiting(&shared) == 0);
        assert!(Turn::next(&shared, &gone, Duration::ZERO).is_none());
        let served = turn(&shared, "served");
        let session = served.session().clone();
        dismiss(&shared, &session, ErrorCode::AccountRemoved, "");
        assert!(!session.outbox.is_open() && !is_on_line(&shared, "served"));
        drop(served);
        assert!(!is_on_line(&shared, "served") && waiting(&shared) == 0);
        assert!(Turn::next(&shared, &session, Duration::ZERO).is_none(), "it does not wait for anybody");
        assert_eq!(logouts(&shared, &folder), 2, "each is told of once");
    }

    /// PROTOCOL#taken-over.
    #[test]
    fn resumption_does_not_wait_for_a_session_that_ends() {
        let (shared, _folder) = shared(HOUR);
        let first = turn(&shared, "alice");
        let session = first.session().clone();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| Turn::next(&shared, &session, HOUR).is_none());
            end(&shared, &session, None);
            assert!(waiting.join().expect("whole"));
        });
        drop(first);
    }

    /// PROTOCOL#certificate-ends.
    #[test]
    fn session_ends_with_its_certificate() {
        let (shared, folder) = shared(HOUR);
        let [old, new] = ["old", "new"].map(|name| turn(&shared, name));
        drop(turn(&shared, "away"));
        sweep_out(&shared, Instant::now());
        assert!(is_on_line(&shared, "old") && is_on_line(&shared, "away"));
        for name in ["old", "away"] {
            shared.registry.get(&name.parse().expect("name")).expect("online").expire();
        }
        sweep_out(&shared, Instant::now());
        assert!(["old", "away"].iter().all(|name| !is_on_line(&shared, name)) && is_on_line(&shared, "new"));
        assert!(!old.session().outbox.is_open() && waiting(&shared) == 0);
        drop((old, new));
        assert_eq!(logouts(&shared, &folder), 2);
    }

    /// PROTOCOL#ends-at-once.
    #[test]
    fn session_that_overflows_without_a_connection_is_soon_gone() {
        let (shared, folder) = shared(HOUR);
        drop(turn(&shared, "away"));
        let session = shared.registry.get(&"away".parse().expect("name")).expect("online");
        session.outbox.claim(0).expect("it has a connection");
        // Its limit is a mebibyte.
        (0..5).for_each(|_| session.outbox.send(Frame::line(vec![b'x'; 1 << 20])));
        assert!(!session.outbox.is_open() && is_on_line(&shared, "away"));
        sweep_out(&shared, Instant::now());
        assert!(!is_on_line(&shared, "away") && waiting(&shared) == 0 && logouts(&shared, &folder) == 1);
    }

    /// PROTOCOL#outlives.
    #[test]
    fn a_session_ends_when_its_time_is_over_and_no_other() {
        let ends = |shared: &Shared, name: &str| {
            let end = Instant::now() + Duration::from_secs(60);
            while is_on_line(shared, name) {
                assert!(Instant::now() < end, "{name} never ends");
                std::thread::park_timeout(Duration::from_millis(1));
            }
        };
        let (shared, _folder) = shared(Duration::from_millis(50));
        let running = shared.clone();
        std::thread::spawn(move || running.grace.run(&running));
        // The thread is woken for the first on the list, whether it waits already or not.
        for n in 0..5 {
            let name = format!("short{n}");
            drop(turn(&shared, &name));
            ends(&shared, &name);
        }
        // One that has an hour: as there is none otherwise, the thread has to be told.
        let later = turn(&shared, "later");
        let place = (Instant::now() + HOUR, u64::MAX);
        lock(&shared.grace.list).0.insert(place, later.session().clone());
        *lock(&later.session().slot.inbound) = Some((place, inbound()));
        // Two rounds: whatever the thread does about it in the first, it has done by the second.
        for name in ["short", "last"] {
            drop(turn(&shared, name));
            shared.grace.wake.notify_one();
            ends(&shared, name);
        }
        assert!(is_on_line(&shared, "later"));
    }
}
