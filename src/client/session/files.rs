//! Files that are offered, sent and received: the state of each transfer, and its display.
//!
//! Invariant: nothing is fetched or written before the user has accepted the offer. `commands` handles the user's
//! commands, `answers` the peer's messages (their texts are in [`messages`]), and `steps` the reports of the jobs of
//! [`transfer`](crate::client::transfer). Specification: PROTOCOL#file-transfer.

mod answers;
mod commands;
pub mod messages;
mod steps;

use super::cx::Cx;
use super::event::Action;
use super::outgoing::Outgoing;
use crate::client::audience::Audience;
use crate::client::text::sanitise;
use crate::client::transfer::{Job, MAX_ARRIVING};
use crate::crypto::chunk::{Plan, TransferId};
use crate::crypto::envelope::Kind;
use crate::crypto::public::Fingerprint;
use crate::crypto::secret::Key;
use crate::encoding::Fixed;
use crate::name::Username;
use messages::Closing;
use miniserde::{Serialize, json};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// The most transfers and offers in the list, in each direction: more than a user keeps track of.
const MAX_LISTED: usize = 64;
/// The most offers of one sender, which leaves room for others.
const MAX_OFFERS_OF_ONE: usize = 16;
/// The most files that are sent at the same time, each with a thread: as many as one peer receives.
const MAX_LEAVING: usize = MAX_ARRIVING;
/// An offer without an answer ends after this time: its sender may have forgotten it. PROTOCOL#offer-life.
const OFFER_LIFETIME: Duration = Duration::from_secs(3600);
/// The recipient confirms a complete file within this time, in which it writes the rest and compares the hash.
/// PROTOCOL#transfer-end.
const CONFIRMATION: Duration = Duration::from_secs(120);
/// The reason in a `file_cancel` when a user has cancelled: the recipient removes the received part.
const CANCELLED: &str = "cancelled";
/// The smallest file, in bytes, whose rate is shown: a smaller one is over too soon.
const MIN_RATED: u64 = 1_000_000;

/// The stage of a transfer; "out" and "in" mark those of one direction.
enum State {
    /// Out: the file is being hashed; the bytes so far.
    Hashing(u64),
    /// The peer (out) or the user (in) has not answered.
    Offered,
    /// In: the part that exists already is being hashed.
    Looking,
    /// Out: accepted from this chunk on; the named session key of the peer is not known yet.
    AwaitingKey(u32, Fingerprint),
    /// Chunks are in flight; the bytes so far.
    Moving(u64),
    /// Out: everything is sent, and not confirmed yet.
    Confirming,
    /// Out: confirmed; a copy of the file is being made.
    Copying,
}

struct Transfer {
    peer: Username,
    id: TransferId,
    key: Key,
    /// The file name, harmless: see [`safe_name`].
    name: String,
    size: u64,
    sha256: [u8; 32],
    outgoing: bool,
    state: State,
    /// When the state began.
    since: Instant,
    /// When the first chunk was due, and the bytes that existed then.
    begun: (Instant, u64),
    /// The number of tenths that were shown.
    told: u64,
}

/// A transfer that was interrupted before its file was complete.
struct Stopped {
    title: String,
    peer: Username,
    sha256: [u8; 32],
    outgoing: bool,
}

/// All transfers, by number.
pub struct Files {
    list: BTreeMap<u32, Transfer>,
    /// The latest transfers that can resume, at most [`MAX_LISTED`].
    stopped: VecDeque<Stopped>,
    /// The number of the latest transfer.
    last: u32,
    /// Whether the parts on disk are being listed for `/files`.
    is_listing: bool,
    /// The offer that an answer without a number means, if it is still open.
    meant: Option<u32>,
    /// Messages to peers, not sent yet.
    messages: VecDeque<Outgoing>,
    /// When a file last made progress.
    moved: Instant,
}

/// The progress of one transfer, for the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// "photo.jpg → bob".
    pub label: String,
    /// From 0 to 100.
    pub percent: u64,
    /// "98.2 MB/s, 3 s left".
    pub pace: String,
}

/// A number of bytes, shown with a decimal unit.
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["kB", "MB", "GB", "TB", "PB", "EB"];
        let mut tenths = self.0 / 100;
        if self.0 < 1000 {
            return write!(f, "{} B", self.0);
        }
        for unit in units {
            if tenths < 10_000 {
                return write!(f, "{}.{} {unit}", tenths / 10, tenths % 10);
            }
            tenths /= 1000;
        }
        write!(f, "{} EB", self.0)
    }
}

fn time_left(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

impl Transfer {
    /// `"photo.jpg" (5.0 MB)`; no name holds a quotation mark.
    fn title(&self) -> String {
        format!("\"{}\" ({})", sanitise(&self.name), Size(self.size))
    }

    /// The plan that both sides share, from this chunk on.
    fn plan(&self, start: u32) -> Plan {
        Plan { id: self.id, key: self.key.duplicate(), size: self.size, start }
    }

    fn label(&self) -> String {
        let arrow = if self.outgoing { "→" } else { "←" };
        format!("{} {arrow} {}", sanitise(&self.name), self.peer)
    }

    /// Whether this is an offer that the user has not answered.
    fn is_open(&self) -> bool {
        !self.outgoing && matches!(self.state, State::Offered)
    }

    fn percent(&self) -> u64 {
        match self.state {
            State::Hashing(0) => 0,
            State::Hashing(done) | State::Moving(done) => {
                done.saturating_mul(100).checked_div(self.size).unwrap_or(100)
            }
            State::Confirming | State::Copying => 100,
            _ => 0,
        }
    }

    fn pace(&self, now: Instant) -> String {
        let done = match self.state {
            State::Moving(done) => done,
            State::Hashing(_) => return "is being read".into(),
            _ => return "almost done".into(),
        };
        let rate = self.rate(done, now);
        match self.size.saturating_sub(done).checked_div(rate) {
            Some(left) => format!("{}/s, {} left", Size(rate), time_left(left)),
            None => "starting".into(),
        }
    }

    /// Bytes a second since the start.
    fn rate(&self, done: u64, now: Instant) -> u64 {
        let (since, from) = self.begun;
        let milliseconds = (now.duration_since(since).as_millis() as u64).max(1);
        done.saturating_sub(from).saturating_mul(1000) / milliseconds
    }
}

impl Files {
    /// No transfers; the client begins `now`.
    pub fn new(now: Instant) -> Files {
        let (list, stopped, messages) = (BTreeMap::new(), VecDeque::new(), VecDeque::new());
        Files { list, stopped, last: 0, is_listing: false, meant: None, messages, moved: now }
    }

    /// The next message to the peer of a transfer.
    pub fn next_message(&mut self) -> Option<Outgoing> {
        self.messages.pop_front()
    }

    /// When a file last made progress.
    pub fn moved(&self) -> Instant {
        self.moved
    }

    /// Whether the user waits for the answer to `/files`.
    pub fn is_listing(&self) -> bool {
        self.is_listing
    }

    /// Whether no file is being received or sent, and no offer waits for the peer's answer.
    pub fn is_idle(&self) -> bool {
        self.list.values().all(Transfer::is_open)
    }

    /// The number of transfers in one direction.
    fn count(&self, outgoing: bool) -> usize {
        self.list.values().filter(|one| one.outgoing == outgoing).count()
    }

    /// The oldest unanswered offer of the user with the most offers.
    fn dispensable(&self) -> Option<u32> {
        let mut offers: BTreeMap<&Username, Vec<u32>> = BTreeMap::new();
        for (number, one) in self.list.iter().filter(|(_, one)| one.is_open()) {
            offers.entry(&one.peer).or_default().push(*number);
        }
        offers.into_values().max_by_key(Vec::len)?.first().copied()
    }

    /// The number of files in progress in one direction.
    fn moving(&self, outgoing: bool) -> usize {
        let counts = |state: &State| !matches!(state, State::Hashing(_) | State::Offered | State::Copying);
        self.list.values().filter(|one| one.outgoing == outgoing && counts(&one.state)).count()
    }

    fn find(&self, peer: &Username, id: &TransferId) -> Option<u32> {
        let found = self.list.iter().find(|(_, transfer)| transfer.peer == *peer && transfer.id == *id);
        found.map(|(number, _)| *number)
    }

    fn add(&mut self, transfer: Transfer) -> u32 {
        self.last += 1;
        self.list.insert(self.last, transfer);
        self.last
    }

    /// The progress of all transfers, at `now`.
    pub fn progress(&self, now: Instant) -> impl Iterator<Item = Progress> {
        let moving = |transfer: &&Transfer| {
            matches!(transfer.state, State::Hashing(_) | State::Moving(_) | State::Confirming)
        };
        self.list.values().filter(moving).map(move |transfer| Progress {
            label: transfer.label(),
            percent: transfer.percent(),
            pace: transfer.pace(now),
        })
    }

    fn enter_state(&mut self, cx: &mut Cx, number: u32, state: State) {
        let since = cx.instant;
        if let Some(transfer) = self.list.get_mut(&number) {
            (transfer.state, transfer.since) = (state, since);
        }
    }

    fn begin(&mut self, cx: &mut Cx, number: u32, from: u64) {
        self.enter_state(cx, number, State::Moving(from));
        let Some(transfer) = self.list.get_mut(&number) else { return };
        let of = (&transfer.peer, transfer.sha256, transfer.outgoing);
        self.stopped.retain(|one| (&one.peer, one.sha256, one.outgoing) != of);
        transfer.begun = (cx.instant, from);
        transfer.told = transfer.percent() / 10;
        let (title, peer, percent) = (transfer.title(), &transfer.peer, transfer.percent());
        let what = match transfer.outgoing {
            true => format!("sending {title} to {peer}"),
            false => format!("receiving {title} from {peer}"),
        };
        cx.notice(if from == 0 { what } else { format!("{what}: resuming at {percent} %") });
    }

    /// Ends a transfer that cannot continue: both sides are notified, and the received part stays, so that it can
    /// resume.
    fn fail(&mut self, cx: &mut Cx, number: u32, why: &str) {
        let Some(transfer) = self.list.get(&number) else { return };
        let label = transfer.label();
        self.end_transfer(cx, number, false, Some(why.into()));
        cx.problem(format!("{label}: {why}"));
    }

    /// Removes a transfer, stops its job, and sends the peer the reason in `tell`, if any.
    fn end_transfer(&mut self, cx: &mut Cx, number: u32, discard: bool, tell: Option<String>) {
        let Some(transfer) = self.list.remove(&number) else { return };
        cx.act(Action::Transfer(number, Job::Stop { discard }));
        let is_begun = !matches!(transfer.state, State::Hashing(_) | State::Offered);
        if is_begun && !discard {
            let stopped = &mut self.stopped;
            stopped.truncate(MAX_LISTED - 1);
            let (peer, sha256, outgoing) = (transfer.peer.clone(), transfer.sha256, transfer.outgoing);
            stopped.push_front(Stopped { title: transfer.title(), peer, sha256, outgoing });
        }
        if tell.is_some() && !matches!(transfer.state, State::Hashing(_)) {
            self.close(cx, Kind::FileCancel, number, &transfer, tell);
        }
    }

    /// Queues a message to the peer of a transfer. It may contain a key.
    fn send(&mut self, cx: &Cx, number: u32, peer: &Username, kind: Kind, message: &impl Serialize) {
        let (to, text) = (Audience::Private(peer.clone()), Zeroizing::new(json::to_string(message)));
        self.messages.push_back(Outgoing::new(kind, to, text, cx.now).about(number));
    }

    fn close(&mut self, cx: &Cx, kind: Kind, number: u32, transfer: &Transfer, reason: Option<String>) {
        let closing = Closing { transfer: Fixed(transfer.id), reason };
        self.send(cx, number, &transfer.peer, kind, &closing);
    }

    /// Handles the outcome of a message about a transfer: `None` if it was delivered.
    pub fn settled(&mut self, cx: &mut Cx, number: u32, kind: Kind, missed: Option<String>) {
        self.moved = cx.instant;
        let Some(transfer) = self.list.get(&number) else { return };
        let (title, peer) = (transfer.title(), transfer.peer.clone());
        match (kind, missed) {
            (Kind::FileOffer, None) if matches!(transfer.state, State::Offered) => cx.notice(format!(
                "{title} is offered to {peer}, who must accept it first; /cancel {number} withdraws it"
            )),
            (Kind::FileOffer | Kind::FileAccept, Some(why)) => {
                self.end_transfer(cx, number, false, None);
                cx.problem(format!("{title} was not transferred: {why}"));
            }
            _ => {}
        }
    }

    /// Forgets the offers of `name`, so that their ends are not shown. False if there were none.
    pub fn forget_offers(&mut self, name: &Username) -> bool {
        let (folded, before) = (name.folded(), self.list.len());
        self.list.retain(|_, one| !(one.is_open() && one.peer.folded() == folded));
        self.list.len() < before
    }

    /// Ends all transfers with `name`, who has gone offline.
    pub fn left(&mut self, cx: &mut Cx, name: &Username) {
        self.interrupt(cx, |peer| peer == name, &format!("{name} has left"));
    }

    /// Ends every transfer with these users, for the reason `why`; each can resume in another session.
    pub fn interrupt(&mut self, cx: &mut Cx, with: impl Fn(&Username) -> bool, why: &str) {
        let theirs = |(number, one): (&u32, &Transfer)| {
            (with(&one.peer) && !matches!(one.state, State::Copying)).then_some(*number)
        };
        let mut offers = Vec::new();
        for number in self.list.iter().filter_map(theirs).collect::<Vec<_>>() {
            let Some(transfer) = self.list.get(&number) else { continue };
            let title = transfer.title();
            let offered = matches!(transfer.state, State::Hashing(_) | State::Offered);
            let again =
                if transfer.outgoing { "offer it again to resume" } else { "it resumes when offered again" };
            self.end_transfer(cx, number, false, None);
            match offered {
                true => offers.push(title),
                false => cx.problem(format!("{why}: {title} was interrupted; {again}")),
            }
        }
        match &offers[..] {
            [] => {}
            [title] => cx.notice(format!("{why}: {title} is no longer offered")),
            many => cx.notice(format!("{why}: {} files are no longer offered", many.len())),
        }
    }

    /// Stops every job at the end of the session. Received parts stay for another session.
    pub fn end(&mut self, cx: &mut Cx) {
        for number in std::mem::take(&mut self.list).into_keys() {
            cx.act(Action::Transfer(number, Job::Stop { discard: false }));
        }
    }

    /// Ends offers without an answer and files without a confirmation when their time is over.
    pub fn tick(&mut self, cx: &mut Cx) {
        let overdue = |transfer: &Transfer| {
            let limit = match transfer.state {
                State::Offered => OFFER_LIFETIME,
                State::Confirming => CONFIRMATION,
                _ => return false,
            };
            cx.instant.duration_since(transfer.since) >= limit
        };
        let list = self.list.iter();
        let overdue: Vec<u32> = list.filter(|(_, one)| overdue(one)).map(|(number, _)| *number).collect();
        for number in overdue {
            self.fail(cx, number, "there was no answer in time");
        }
    }

    /// The report of files that are not complete; `None` without one.
    pub fn unfinished(&self) -> Option<String> {
        let list = self.list.values();
        let titles =
            list.filter(|one| !one.is_open() && !matches!(one.state, State::Copying)).map(Transfer::title);
        let titles: Vec<String> = titles.collect();
        (!titles.is_empty()).then(|| format!("not complete: {}; offer it again to resume", titles.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_readable() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (65_536, "65.5 kB"),
            (999_999, "999.9 kB"),
            (5_000_000, "5.0 MB"),
            (1 << 30, "1.0 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
        assert_eq!([5, 119, 120, 7200].map(time_left), ["5 s", "119 s", "2 min", "2 h"]);
    }
}
