//! Receives a file: grants its chunks, decrypts them on several threads, and writes them in order on one.
//!
//! Invariant: only chunks that [`Plan::open_group`] has checked are written, each in its place; the file gets its name
//! only when all of it is on disk and its hash is right. Specification: PROTOCOL#asked-for, PROTOCOL#chunk-order.

use super::grants::Grants;
use super::{Failure, REPORT_PERIOD, Shared, Step, Worker};
use crate::client::file::{Part, free_space};
use crate::crypto::chunk::{CHUNK, Plan};
use crate::crypto::keys::SessionKey;
use crate::sync::lock;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// The number of a group's first chunk, and the file's bytes in each chunk.
type Opened = (u32, Result<Vec<Vec<u8>>, Failure>);

/// How often to check whether more can be granted while no chunk arrives.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Worker {
    /// Finds the existing part of a file of `size` bytes.
    pub fn look(&self, size: u64, sha256: &[u8; 32]) -> Result<(), Failure> {
        let folder = &self.shared.received;
        let mut part = Part::open(folder, &self.transfer.peer, sha256)?;
        let have = match part.take_up(size, || self.is_current()) {
            Ok(have) => have,
            Err(error) => return Err(self.give_up(part, error.into())),
        };
        let missing = size - have;
        if let Some(free) = free_space(folder).filter(|free| *free < missing) {
            self.tell(Step::Tight { free, missing });
        }
        let mut part = Some(part);
        let stored = self.wait(|state| {
            state.part = part.take();
            Some(())
        });
        if let (Err(failure), Some(part)) = (stored, part) {
            return Err(self.give_up(part, failure));
        }
        self.tell(Step::Found { start: u32::try_from(have.div_ceil(CHUNK as u64)).unwrap_or(u32::MAX) });
        Ok(())
    }

    /// Receives the missing chunks, and gives the file its name if its hash is right. PROTOCOL#whole-file.
    pub fn receive(
        &self,
        session: &SessionKey,
        plan: &Plan,
        sha256: &[u8; 32],
        name: &str,
    ) -> Result<(), Failure> {
        let mut part = self.wait(|state| state.part.take())?;
        let whole = self.fill(session, plan, &mut part).and_then(|()| {
            if !part.is_right(sha256) {
                return Err(Failure::Wrong("it is not the file that was offered".into()));
            }
            part.sync()?;
            // A cancellation until here takes effect.
            self.wait(|_| Some(()))
        });
        if let Err(failure) = whole {
            return Err(self.give_up(part, failure));
        }
        self.finish(Step::Received(part.finish(&self.shared.received, &self.transfer.peer, name)?));
        Ok(())
    }

    /// Keeps the part, so that the transfer can resume, unless it is wrong or was cancelled.
    fn give_up(&self, part: Part, failure: Failure) -> Failure {
        if matches!(failure, Failure::Wrong(_)) || lock(&self.transfer.state).discard {
            part.discard();
        }
        failure
    }

    fn fill(&self, session: &SessionKey, plan: &Plan, part: &mut Part) -> Result<(), Failure> {
        let left = plan.chunks() - plan.start;
        let Shared { sharing, queue, .. } = &*self.shared;
        let grants = Grants::new(sharing.clone(), queue.clone(), self.transfer.peer.clone(), plan.id, left);
        lock(&self.transfer.state).grants = Some(grants);
        let taken = self.take_chunks(session, plan, part);
        // Revoke unused grants.
        lock(&self.transfer.state).grants = None;
        taken
    }

    fn grants(&self, change: impl FnOnce(&mut Grants)) {
        if let Some(grants) = &mut lock(&self.transfer.state).grants {
            change(grants);
        }
    }

    /// Decrypts groups on several threads (mostly RSA), and writes them in order on this one.
    /// PROTOCOL#chunk-order, PROTOCOL#asked-for.
    fn take_chunks(&self, session: &SessionKey, plan: &Plan, part: &mut Part) -> Result<(), Failure> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(4);
        let due = Mutex::new(plan.start);
        let (opened, results) = sync_channel(threads);
        thread::scope(|scope| {
            for _ in 0..threads {
                let (opened, due) = (opened.clone(), &due);
                let opener = move || self.open_groups(session, plan, due, &opened);
                // Fewer threads are slower; without any, the failure is reported.
                let _ = thread::Builder::new().name("file".into()).spawn_scoped(scope, opener);
            }
            drop(opened);
            let written = self.write_groups(plan, part, results);
            if written.is_err() {
                // The other threads stop too.
                self.transfer.next_turn();
            }
            written
        })
    }

    fn open_groups(&self, session: &SessionKey, plan: &Plan, due: &Mutex<u32>, opened: &SyncSender<Opened>) {
        loop {
            // Only one thread at a time waits for packets, so that groups are taken in order.
            let mut due = lock(due);
            let (first, count) = (*due, plan.group(*due) as usize);
            if count == 0 {
                return;
            }
            let packets = self
                .wait(|state| (state.packets.len() >= count).then(|| state.packets.drain(..count).collect()));
            *due = if packets.is_ok() { first + count as u32 } else { plan.chunks() };
            drop(due);
            let group = packets.and_then(|packets: Vec<Vec<u8>>| {
                let group = plan.open_group(first, &packets, session);
                group.map_err(|error| Failure::Broken(error.to_string()))
            });
            if opened.send((first, group)).is_err() {
                return;
            }
        }
    }

    fn write_groups(&self, plan: &Plan, part: &mut Part, results: Receiver<Opened>) -> Result<(), Failure> {
        let mut written = plan.start;
        let tell = |written: u32| self.tell(Step::Progress(u64::from(written) * CHUNK as u64));
        let result = (|| {
            let mut waiting = BTreeMap::new();
            let mut reported = Instant::now();
            while written < plan.chunks() {
                self.grants(|grants| grants.grant(Instant::now()));
                let (first, group) = match results.recv_timeout(LOOK_AGAIN) {
                    Ok(result) => result,
                    Err(RecvTimeoutError::Timeout) => {
                        tell(written);
                        continue;
                    }
                    // The decrypting threads end only after one of them has reported the reason, if there were any.
                    Err(RecvTimeoutError::Disconnected) => {
                        return Err(Failure::Broken("the system could not start a thread for it".into()));
                    }
                };
                // Write the chunks before a wrong one first: a later transfer continues after them.
                waiting.insert(first, group);
                while let Some(group) = waiting.remove(&written) {
                    let group = group?;
                    group.iter().try_for_each(|chunk| part.write(chunk))?;
                    written += group.len() as u32;
                    self.grants(|grants| grants.written(group.len() as u32));
                }
                if reported.elapsed() >= REPORT_PERIOD {
                    reported = Instant::now();
                    tell(written);
                }
            }
            Ok(())
        })();
        if result.is_err() {
            // A later transfer continues after this part.
            tell(written);
        }
        result
    }
}
