//! File transfers: jobs on their own threads, and a table of the state that the jobs of a transfer share.
//!
//! Invariant: a job reports one final [`Step`] unless it is stopped, and no thread waits between two jobs. The file
//! stays open in the table from the first job to the last, so that the same file is hashed, sent and copied. The memory
//! of a transfer is limited by the packets that its recipient has granted (10.5 MiB in all). Disk, cryptography and
//! network overlap, and the owner of the state waits for none of them. Specification: PROTOCOL#file-transfer.

mod grants;
mod receiving;
mod sending;
mod window;

use super::file::{LeftPart, Part, Source, left_parts};
use super::queue::Queue;
use crate::crypto::chunk::{Plan, TransferId};
use crate::crypto::keys::SessionKey;
use crate::crypto::public::SessionPublicKey;
use crate::name::Username;
use crate::protocol::{Grant, Packet, Refused};
use crate::sync::{lock, spawn};
pub use grants::MAX_ARRIVING;
use grants::{Grants, Sharing};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A waiting job fails if no packet of any transfer moves for this time, in which a session can be resumed.
const STALLED: Duration = Duration::from_secs(60);
/// After the server has refused to relay a transfer, the peer's reason arrives within this time.
const LAST_WORD: Duration = Duration::from_secs(5);
/// The interval of progress reports: a bar moves smoothly.
const REPORT_PERIOD: Duration = Duration::from_millis(100);

/// A job that the session requests for one of its transfers.
pub enum Job {
    /// Open and hash a file that is to be offered.
    Hash {
        /// The recipient of the offer.
        peer: Username,
        /// Names the transfer.
        id: TransferId,
        /// The path, as typed.
        path: String,
    },
    /// The offer was accepted: send the file.
    Send {
        /// The session key that the chunks' keys are wrapped for.
        recipient: SessionPublicKey,
        /// The plan of the transfer, with the first missing chunk.
        plan: Plan,
    },
    /// The recipient has the complete file: keep a copy.
    Copy,
    /// The user has accepted an offer: find the part that exists already.
    Look {
        /// The user who offered it.
        peer: Username,
        /// Names the transfer.
        id: TransferId,
        /// Bytes of the whole file.
        size: u64,
        /// The SHA-256 of the whole file.
        sha256: [u8; 32],
    },
    /// The sender was notified: receive the missing chunks.
    Receive {
        /// The session key that the chunks' keys are wrapped for.
        session: Arc<SessionKey>,
        /// The plan of the transfer, with the first missing chunk.
        plan: Plan,
        /// The SHA-256 of the whole file.
        sha256: [u8; 32],
        /// The offered name, made harmless.
        name: String,
    },
    /// End the transfer.
    Stop {
        /// Whether the received part is removed.
        discard: bool,
    },
    /// List the partial files.
    List,
}

/// The report of a job. The last three end the transfer.
pub enum Step {
    /// This much of the file is hashed.
    Hashing {
        /// Bytes so far.
        done: u64,
        /// Bytes of the whole file.
        size: u64,
    },
    /// The file can be offered.
    Hashed {
        /// The last part of its path.
        name: String,
        /// Bytes.
        size: u64,
        /// The SHA-256 of the whole file.
        sha256: [u8; 32],
    },
    /// The disk may have too little room.
    Tight {
        /// Free bytes.
        free: u64,
        /// Missing bytes of the file.
        missing: u64,
    },
    /// The part that exists already ends before this chunk.
    Found {
        /// The first missing chunk.
        start: u32,
    },
    /// Bytes of the file that were sent, or written.
    Progress(u64),
    /// All chunks were sent.
    Sent,
    /// The partial files.
    Parts(Vec<LeftPart>),
    /// The file is complete, at this path.
    Received(PathBuf),
    /// The copy of the sent file, or the reason why there is none.
    Copied(Result<PathBuf, String>),
    /// The transfer has failed.
    Failed {
        /// The reason, for this user.
        here: String,
        /// The reason, for the peer.
        there: String,
        /// Whether the received part is kept, so that the transfer can resume.
        can_resume: bool,
    },
}

/// Why a job ends early.
enum Failure {
    /// The session has requested another job.
    Stopped,
    /// The connection, the peer or this machine prevents it; a later transfer can resume.
    Broken(String),
    /// The file at this path cannot be offered, for this reason.
    NotOpened(String, String),
    /// The path is invalid, or the file is not the offered one.
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
    /// The report to the session, if any. Paths are not sent to the peer.
    fn step(self) -> Option<Step> {
        use ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let (here, there, can_resume) = match self {
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
        Some(Step::Failed { here, there, can_resume })
    }
}

/// A transfer, which its jobs share.
struct Transfer {
    peer: Username,
    id: TransferId,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The number of the current job. A job that finds another number here stops.
    turn: u32,
    /// Sending: the offered file.
    source: Option<Arc<Source>>,
    /// Sending: packets that may be sent.
    granted: u32,
    /// Receiving: the part of the file.
    part: Option<Part>,
    /// Receiving: packets that have arrived.
    packets: VecDeque<Vec<u8>>,
    /// Receiving: the grants.
    grants: Option<Grants>,
    /// The received part is to be removed.
    discard: bool,
    /// The reason why the transfer cannot continue.
    broken: Option<&'static str>,
    /// Since when the server has refused to relay.
    refused: Option<Instant>,
}

impl Transfer {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut lock(&self.state));
        self.changed.notify_all();
        changed
    }

    fn next_turn(&self) -> u32 {
        self.change(|state| {
            state.turn += 1;
            state.turn
        })
    }
}

/// The table of all transfers, by number; routes packets and grants.
#[derive(Default)]
pub struct Router {
    running: Mutex<BTreeMap<u32, Arc<Transfer>>>,
    /// When a packet of any transfer was last sent or received.
    moved: Mutex<Option<Instant>>,
}

impl Router {
    fn find(&self, peer: &Username, id: &TransferId) -> Option<Arc<Transfer>> {
        lock(&self.running).values().find(|one| one.peer == *peer && one.id == *id).cloned()
    }

    fn remove(&self, number: u32) -> Option<Arc<Transfer>> {
        lock(&self.running).remove(&number)
    }

    fn has_moved(&self) {
        *lock(&self.moved) = Some(Instant::now());
    }

    /// Routes a packet. One of no running transfer is dropped.
    pub fn packet(&self, packet: &Packet<'_>) {
        let Some(transfer) = self.find(&packet.peer, &packet.transfer) else { return };
        self.has_moved();
        transfer.change(|state| {
            match state.grants.as_mut().is_some_and(|grants| grants.arrive(Instant::now())) {
                true => state.packets.push_back(packet.payload.to_vec()),
                false => state.broken = Some("more data arrived than was requested"),
            }
        });
    }

    /// Routes a grant of the recipient.
    pub fn grant(&self, grant: &Grant) {
        if let Some(transfer) = self.find(&grant.peer, &grant.transfer.0) {
            transfer.change(|state| state.granted = state.granted.saturating_add(grant.count));
        }
    }

    /// Notes that the server refuses to relay the transfer.
    pub fn refused(&self, refused: &Refused) {
        if let Some(transfer) = self.find(&refused.peer, &refused.transfer.0) {
            transfer.change(|state| {
                state.granted = 0;
                state.refused = state.refused.or(Some(Instant::now()));
            });
        }
    }
}

/// Starts the jobs of all transfers.
pub struct Transfers(Arc<Shared>);

struct Shared {
    received: PathBuf,
    sent: PathBuf,
    router: Arc<Router>,
    queue: Arc<Queue>,
    deliver: Box<dyn Fn(u32, Step) -> bool + Send + Sync>,
    sharing: Arc<Sharing>,
}

impl Transfers {
    /// `folder` contains `received` and `sent`; `deliver` gets the steps of each transfer by its number.
    pub fn new(
        folder: PathBuf,
        router: Arc<Router>,
        queue: Arc<Queue>,
        deliver: impl Fn(u32, Step) -> bool + Send + Sync + 'static,
    ) -> Transfers {
        let (received, sent) = (folder.join("received"), folder.join("sent"));
        let (deliver, sharing) = (Box::new(deliver), Arc::default());
        Transfers(Arc::new(Shared { received, sent, router, queue, deliver, sharing }))
    }

    /// Starts a job; returns a step if the job cannot be started.
    pub fn take(&self, number: u32, job: Job) -> Option<Step> {
        match job {
            Job::Hash { peer, id, path } => {
                self.begin(number, peer, id);
                self.spawn(number, move |worker| worker.hash(&path))
            }
            Job::Send { recipient, plan } => self.spawn(number, move |worker| worker.send(&recipient, &plan)),
            Job::Copy => self.spawn(number, Worker::copy),
            Job::Look { peer, id, size, sha256 } => {
                self.begin(number, peer, id);
                self.spawn(number, move |worker| worker.look(size, &sha256))
            }
            Job::Receive { session, plan, sha256, name } => {
                self.spawn(number, move |worker| worker.receive(&session, &plan, &sha256, &name))
            }
            Job::Stop { discard } => {
                self.stop(number, discard);
                None
            }
            Job::List => {
                let shared = self.0.clone();
                let list = move || _ = (shared.deliver)(number, Step::Parts(left_parts(&shared.received)));
                // A list is not worth a failure: without a thread, it is empty.
                spawn("file", list).err().map(|_| Step::Parts(Vec::new()))
            }
        }
    }

    fn begin(&self, number: u32, peer: Username, id: TransferId) {
        let transfer = Transfer { peer, id, state: Mutex::default(), changed: Condvar::new() };
        lock(&self.0.router.running).insert(number, Arc::new(transfer));
    }

    fn spawn(
        &self,
        number: u32,
        work: impl FnOnce(&Worker) -> Result<(), Failure> + Send + 'static,
    ) -> Option<Step> {
        let transfer = lock(&self.0.router.running).get(&number)?.clone();
        let worker = Worker { number, turn: transfer.next_turn(), transfer, shared: self.0.clone() };
        let started = thread::Builder::new().name("file".into()).spawn(move || {
            if let Some(step) = work(&worker).err().and_then(Failure::step) {
                worker.finish(step);
            }
        });
        let error = started.err()?;
        self.stop(number, false);
        Failure::Broken(error.to_string()).step()
    }

    fn stop(&self, number: u32, discard: bool) {
        let Some(transfer) = self.0.router.remove(number) else { return };
        let part = transfer.change(|state| {
            // Set both under one lock: a job that sees the new number reads whether to discard.
            (state.turn, state.discard) = (state.turn + 1, discard);
            state.packets.clear();
            state.part.take()
        });
        if let Some(part) = part.filter(|_| discard) {
            part.discard();
        }
    }
}

/// One job's thread.
struct Worker {
    number: u32,
    turn: u32,
    transfer: Arc<Transfer>,
    shared: Arc<Shared>,
}

impl Worker {
    fn tell(&self, step: Step) {
        (self.shared.deliver)(self.number, step);
    }

    /// Ends the transfer with its last step.
    fn finish(&self, step: Step) {
        self.shared.router.remove(self.number);
        self.tell(step);
    }

    /// Whether the session has not requested another job meanwhile.
    fn is_current(&self) -> bool {
        lock(&self.transfer.state).turn == self.turn
    }

    /// Waits for a condition, for at most [`STALLED`] after the last packet of any transfer.
    fn wait<T>(&self, mut take: impl FnMut(&mut State) -> Option<T>) -> Result<T, Failure> {
        let begun = Instant::now();
        let mut state = lock(&self.transfer.state);
        loop {
            if state.turn != self.turn {
                return Err(Failure::Stopped);
            }
            if let Some(taken) = take(&mut state) {
                return Ok(taken);
            }
            if let Some(why) = state.broken {
                return Err(Failure::Broken(why.into()));
            }
            let moved = *lock(&self.shared.router.moved);
            let end = moved.map_or(begun, |moved| moved.max(begun)) + STALLED;
            let end = state.refused.map_or(end, |since| end.min(since + LAST_WORD));
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let why = match state.refused {
                    Some(_) => "the other side has stopped responding",
                    None => "no data has arrived for a minute",
                };
                return Err(Failure::Broken(why.into()));
            }
            let waited = self.transfer.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
