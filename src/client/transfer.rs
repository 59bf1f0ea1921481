//! Files on their way: a thread for each that is sent (`sending`), a few for each that is received (`receiving`).
//!
//! Invariant: what a transfer holds in memory is bounded by the packets that its recipient has granted
//! (10.5 MiB for all transfers); disk, cryptography and network overlap, and none of them is touched by the owner of the
//! state, which starts a [`Job`] and hears of its [`Step`]s. Specification: PROTOCOL#file-transfer.

mod grants;
mod receiving;
mod sending;
mod window;

use super::file::{LeftPart, left_parts};
use super::lock;
use super::queue::Queue;
use super::session::Event;
use crate::crypto::chunk::{Plan, TransferId};
use crate::crypto::keys::SessionKey;
use crate::crypto::public::SessionPublicKey;
use crate::name::Username;
use crate::protocol::{Grant, Packet, Refused};
use grants::Grants;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Files that arrive at once, each with a thread and a window of chunks.
pub const MAX_ARRIVING: usize = 8;
/// When no packet of any transfer has come or gone for this long, they have ended: as long as a session waits to be resumed.
const STALLED: Duration = Duration::from_secs(60);
/// When the server passes nothing on any more, the other side's word on why comes within this time.
const LAST_WORD: Duration = Duration::from_secs(5);
/// Progress is told this often: a bar moves smoothly, and no more.
const TOLD_EVERY: Duration = Duration::from_millis(100);

/// What the session wants done for one of its transfers, named by its number.
pub enum Job {
    /// Open and hash a file that is to be offered; then wait for [`Job::Send`].
    Prepare {
        /// Who is offered it.
        peer: Username,
        /// Names the transfer.
        id: TransferId,
        /// As it was typed.
        path: String,
    },
    /// The offer was accepted: send it.
    Send {
        /// The session key that the chunks' keys are wrapped for.
        recipient: SessionPublicKey,
        /// What both sides know, with the first chunk that is wanted.
        plan: Plan,
    },
    /// Tell which parts of files are there.
    List,
    /// An offer was accepted here: find what is there already; then wait for [`Job::Start`].
    Receive {
        /// The user that offered it.
        peer: Username,
        /// What both sides know; its `start` is found here.
        plan: Plan,
        /// Of the whole file.
        sha256: [u8; 32],
        /// As it was offered, made harmless already.
        name: String,
    },
    /// The other side knows: take the chunks, which are wrapped for this key.
    Start(Arc<SessionKey>),
    /// The other side has it all: keep a copy.
    Keep,
    /// It is over. What has arrived of it stays for another time, or not.
    Stop {
        /// Whether what has arrived is removed.
        discard: bool,
    },
}

/// How far a transfer is.
pub enum Step {
    /// So much of the file is read.
    Read {
        /// Bytes so far.
        done: u64,
        /// Bytes of the whole file.
        size: u64,
    },
    /// The file can be offered.
    Prepared {
        /// The last part of its path.
        name: String,
        /// Bytes.
        size: u64,
        /// Of the whole file.
        sha256: [u8; 32],
    },
    /// What is there of files that have not arrived whole.
    Parts(Vec<LeftPart>),
    /// The disk seems to have too little room.
    Tight {
        /// Bytes that are free.
        free: u64,
        /// Bytes of the file that are missing.
        missing: u64,
    },
    /// Chunks before this one are there already.
    Ready {
        /// The first chunk that is wanted.
        start: u32,
    },
    /// Bytes of the file that are sent, or written.
    Progress(u64),
    /// Everything was sent.
    Sent,
    /// Everything has arrived, and stands here.
    Received(PathBuf),
    /// The copy of what was sent, or why there is none.
    Kept(Result<PathBuf, String>),
    /// It has ended otherwise: why, for the people on this side and on the other, and whether what has
    /// arrived is of use.
    Failed {
        /// For the person at the keyboard.
        here: String,
        /// For the other side.
        there: String,
        /// Whether what has arrived stays for another time.
        goes_on: bool,
    },
}

/// Why a transfer's thread ends early.
enum Failure {
    Stopped,
    Broken(String),
    /// The file at this path cannot be offered.
    NotOpened(String, String),
    /// The file is another than the one that was offered.
    Wrong(String),
    Disk(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::Interrupted => Failure::Stopped,
            ErrorKind::WouldBlock => Failure::Broken(error.to_string()),
            _ => Failure::Disk(error),
        }
    }
}

impl Failure {
    /// What the session is told, if anything. Paths stay on this side.
    fn step(self) -> Option<Step> {
        use ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let (here, there, goes_on) = match self {
            Failure::Stopped => return None,
            Failure::Broken(why) => (why.clone(), why, true),
            Failure::NotOpened(path, why) => (format!("{path}: {why}"), why, false),
            Failure::Wrong(why) => (why.clone(), why, false),
            Failure::Disk(error) => {
                let full = matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge);
                let there = if full { "the disk is full" } else { "a disk error" };
                (error.to_string(), there.into(), true)
            }
        };
        Some(Step::Failed { here, there, goes_on })
    }
}

/// What a transfer's threads share with the rest.
#[derive(Default)]
struct Control {
    state: Mutex<State>,
    changed: Condvar,
    moved: Moved,
}

/// When a packet of any transfer last came or went.
type Moved = Arc<Mutex<Option<Instant>>>;

#[derive(Default)]
struct State {
    /// Sending: packets that may be sent.
    granted: u32,
    send: Option<(SessionPublicKey, Plan)>,
    keep: Option<()>,
    /// Receiving: packets that have come.
    packets: VecDeque<Vec<u8>>,
    /// What was granted for them, and may be.
    grants: Option<Grants>,
    start: Option<Arc<SessionKey>>,
    stopped: bool,
    discard: bool,
    /// Why it cannot go on.
    broken: Option<&'static str>,
    /// Since when the server passes nothing on.
    refused: Option<Instant>,
}

impl Control {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
        self.changed.notify_all();
    }

    /// Waits for something, at most so long after anything has moved.
    fn wait<T>(
        &self,
        patience: Duration,
        mut take: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, Failure> {
        let begun = Instant::now();
        let mut state = lock(&self.state);
        loop {
            if state.stopped {
                return Err(Failure::Stopped);
            }
            if let Some(taken) = take(&mut state) {
                return Ok(taken);
            }
            if let Some(why) = state.broken {
                return Err(Failure::Broken(why.into()));
            }
            let end = lock(&self.moved).map_or(begun, |moved| moved.max(begun)) + patience;
            let end = state.refused.map_or(end, |since| end.min(since + LAST_WORD));
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let why = match state.refused {
                    Some(_) => "the other side has stopped responding",
                    None => "no data has arrived for a minute",
                };
                return Err(Failure::Broken(why.into()));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn goes_on(&self) -> bool {
        !lock(&self.state).stopped
    }
}

struct Running {
    number: u32,
    peer: Username,
    id: TransferId,
    control: Arc<Control>,
}

/// Where packets and grants go.
#[derive(Default)]
pub struct Hub {
    running: Mutex<Vec<Running>>,
    moved: Moved,
}

impl Hub {
    fn find(&self, peer: &Username, id: &TransferId) -> Option<Arc<Control>> {
        let running = lock(&self.running);
        let found = running.iter().find(|running| running.peer == *peer && running.id == *id);
        found.map(|running| running.control.clone())
    }

    /// A chunk has come. One that nobody waits for is dropped.
    pub fn packet(&self, packet: &Packet<'_>) {
        let Some(control) = self.find(&packet.peer, &packet.transfer) else { return };
        let now = Instant::now();
        *lock(&self.moved) = Some(now);
        control.change(|state| match state.grants.as_mut().is_some_and(|grants| grants.arrive(now)) {
            true => state.packets.push_back(packet.payload.to_vec()),
            false => state.broken = Some("more data arrived than was requested"),
        });
    }

    /// The other side takes more.
    pub fn grant(&self, grant: &Grant) {
        if let Some(control) = self.find(&grant.peer, &grant.transfer.0) {
            control.change(|state| state.granted = state.granted.saturating_add(grant.count));
        }
    }

    /// The server passes nothing on any more.
    pub fn refused(&self, refused: &Refused) {
        if let Some(control) = self.find(&refused.peer, &refused.transfer.0) {
            control.change(|state| {
                state.granted = 0;
                state.refused = state.refused.or(Some(Instant::now()));
            });
        }
    }
}

/// Starts the threads.
pub struct Transfers(Arc<Shared>);

struct Shared {
    received: PathBuf,
    sent: PathBuf,
    hub: Arc<Hub>,
    queue: Arc<Queue>,
    deliver: Box<dyn Fn(Event) -> bool + Send + Sync>,
    /// Files that are arriving, and the chunks that are in flight for them.
    arriving: AtomicU32,
    in_flight: AtomicU32,
}

impl Transfers {
    /// `folder` holds `received` and `sent`; `deliver` takes the steps.
    pub fn new(
        folder: PathBuf,
        hub: Arc<Hub>,
        queue: Arc<Queue>,
        deliver: impl Fn(Event) -> bool + Send + Sync + 'static,
    ) -> Transfers {
        let (received, sent) = (folder.join("received"), folder.join("sent"));
        let (arriving, in_flight) = (AtomicU32::new(0), AtomicU32::new(0));
        let deliver = Box::new(deliver);
        Transfers(Arc::new(Shared { received, sent, hub, queue, deliver, arriving, in_flight }))
    }

    /// Does what the session wants; what has failed at once, else `None`.
    pub fn take(&self, number: u32, job: Job) -> Option<Step> {
        let find = || {
            let running = lock(&self.0.hub.running);
            running.iter().find(|running| running.number == number).map(|running| running.control.clone())
        };
        let change = |change: &mut dyn FnMut(&mut State)| {
            if let Some(control) = find() {
                control.change(change);
            }
        };
        match job {
            Job::Prepare { peer, id, path } => {
                return self.spawn(number, peer.clone(), id, move |worker| worker.send(&path, &peer));
            }
            Job::Receive { peer, plan, sha256, name } => {
                return self.spawn(number, peer.clone(), plan.id, move |worker| {
                    worker.receive(&peer, plan, &sha256, &name)
                });
            }
            Job::List => return Some(Step::Parts(left_parts(&self.0.received))),
            Job::Send { recipient, plan } => {
                let mut send = Some((recipient, plan));
                change(&mut |state| state.send = send.take());
            }
            Job::Start(session) => change(&mut |state| state.start = Some(session.clone())),
            Job::Keep => change(&mut |state| state.keep = Some(())),
            Job::Stop { discard } => change(&mut |state| {
                (state.stopped, state.discard) = (true, discard);
                state.packets.clear();
            }),
        }
        None
    }

    fn spawn(
        &self,
        number: u32,
        peer: Username,
        id: TransferId,
        work: impl FnOnce(&Worker) -> Result<(), Failure> + Send + 'static,
    ) -> Option<Step> {
        let control = Arc::new(Control { moved: self.0.hub.moved.clone(), ..Control::default() });
        let worker = Worker { number, control: control.clone(), shared: self.0.clone() };
        lock(&self.0.hub.running).push(Running { number, peer, id, control });
        let thread = thread::Builder::new().name("file".into());
        let started = thread.spawn(move || {
            if let Some(step) = work(&worker).err().and_then(Failure::step) {
                worker.tell(step);
            }
        });
        // The worker takes itself off the list, also when its thread was never started.
        started.err().and_then(|error| Failure::Broken(error.to_string()).step())
    }
}

/// One transfer's thread.
struct Worker {
    number: u32,
    control: Arc<Control>,
    shared: Arc<Shared>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        lock(&self.shared.hub.running).retain(|running| running.number != self.number);
    }
}

impl Worker {
    fn tell(&self, step: Step) {
        (self.shared.deliver)(Event::Transfer(self.number, step));
    }
}
