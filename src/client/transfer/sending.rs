//! Sends a file: hashes it for the offer, then seals its chunks as the recipient grants them.
//!
//! Invariant: a chunk is sent only after the offer was accepted and the chunk was granted. A file that has become
//! shorter ends the transfer. Specification: PROTOCOL#file-transfer.

use super::{Failure, REPORT_PERIOD, STALLED, Step, Worker};
use crate::client::file::Source;
use crate::client::path::{typed_path, whole};
use crate::crypto::chunk::{CHUNK, GROUP, Plan};
use crate::crypto::public::SessionPublicKey;
use crate::protocol::Packet;
use crate::sync::lock;
use crate::wire::frame;
use std::sync::Arc;
use std::time::Instant;

impl Worker {
    /// Opens and hashes a file for an offer.
    pub fn hash(&self, path: &str) -> Result<(), Failure> {
        let path = typed_path(path).map_err(Failure::Wrong)?;
        let source = Source::open(&path).map_err(|why| Failure::NotOpened(whole(&path), why))?;
        let mut reported = Instant::now();
        let sha256 = source.hash(|done| {
            if reported.elapsed() >= REPORT_PERIOD {
                reported = Instant::now();
                self.tell(Step::Hashing { done, size: source.size });
            }
            self.is_current()
        })?;
        let hashed = Step::Hashed { name: source.name.clone(), size: source.size, sha256 };
        self.transfer.change(|state| state.source = Some(Arc::new(source)));
        self.tell(hashed);
        Ok(())
    }

    /// Keeps a copy of the sent file.
    pub fn copy(&self) -> Result<(), Failure> {
        let copied = self.source()?.copy(&self.shared.sent, &self.transfer.peer);
        self.finish(Step::Copied(copied.map_err(|error| error.to_string())));
        Ok(())
    }

    fn source(&self) -> Result<Arc<Source>, Failure> {
        lock(&self.transfer.state).source.clone().ok_or(Failure::Stopped)
    }

    /// Sends the chunks from `plan.start` on, as they are granted.
    pub fn send(&self, recipient: &SessionPublicKey, plan: &Plan) -> Result<(), Failure> {
        let source = self.source()?;
        let address = Packet::address(&self.transfer.peer, &plan.id);
        let mut reported = Instant::now();
        let mut buffer = vec![0; GROUP as usize * CHUNK];
        let mut first = plan.start;
        while first < plan.chunks() {
            let count = plan.group(first);
            let length = (first..first + count).map(|index| plan.length(index)).sum();
            let at = u64::from(first) * CHUNK as u64;
            let read = source.read_at(&mut buffer[..length], at);
            read.map_err(|error| Failure::Wrong(error.to_string()))?;
            for payload in plan.seal_group(first, recipient, &buffer[..length]) {
                // Report sooner before a wait: otherwise the bar stops short of the data that was sent.
                let waits = lock(&self.transfer.state).granted == 0;
                if reported.elapsed() >= if waits { REPORT_PERIOD / 5 } else { REPORT_PERIOD } {
                    reported = Instant::now();
                    self.tell(Step::Progress(at));
                }
                self.wait(|state| {
                    state.granted = state.granted.checked_sub(1)?;
                    Some(())
                })?;
                self.shared.queue.packet(frame::packet_head(&address, &payload), payload, STALLED)?;
                self.shared.router.has_moved();
            }
            first += count;
        }
        self.tell(Step::Sent);
        Ok(())
    }
}
