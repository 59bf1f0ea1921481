//! A file that is sent: read, hashed, offered, sealed chunk by chunk as the other side asks for them.
//!
//! Invariant: no chunk goes out that was not granted, and none before the offer was accepted; a file that has become
//! shorter ends it. Specification: PROTOCOL#file-transfer.

use super::{Failure, STALLED, Step, TOLD_EVERY, Worker};
use crate::client::file::Source;
use crate::client::lock;
use crate::client::path::{typed_path, whole};
use crate::crypto::chunk::{CHUNK, GROUP, Plan};
use crate::crypto::public::SessionPublicKey;
use crate::name::Username;
use crate::protocol::Packet;
use crate::wire::frame;
use std::time::{Duration, Instant};

/// An offer that nobody answers is withdrawn long before; its thread ends at last.
const UNANSWERED: Duration = Duration::from_secs(24 * 3600);

impl Worker {
    /// Opens, hashes, waits for the answer, sends, waits for the confirmation, keeps a copy.
    pub fn send(&self, path: &str, peer: &Username) -> Result<(), Failure> {
        let path = typed_path(path).map_err(Failure::Wrong)?;
        let source = Source::open(&path).map_err(|why| Failure::NotOpened(whole(&path), why))?;
        let mut told = Instant::now();
        let sha256 = source.hash(|done| {
            if told.elapsed() >= TOLD_EVERY {
                told = Instant::now();
                self.tell(Step::Read { done, size: source.size });
            }
            self.control.goes_on()
        })?;
        self.tell(Step::Prepared { name: source.name.clone(), size: source.size, sha256 });
        // Who has it all already may confirm it before the first chunk.
        let begun = self.control.wait(UNANSWERED, |state| match state.keep {
            Some(()) => Some(None),
            None => state.send.take().map(Some),
        })?;
        if let Some((recipient, plan)) = begun {
            self.send_chunks(&source, peer, &recipient, &plan)?;
            self.tell(Step::Sent);
        }
        self.control.wait(UNANSWERED, |state| state.keep.take())?;
        let kept = source.copy(&self.shared.sent, peer).map_err(|error| error.to_string());
        self.tell(Step::Kept(kept));
        Ok(())
    }

    fn send_chunks(
        &self,
        source: &Source,
        peer: &Username,
        recipient: &SessionPublicKey,
        plan: &Plan,
    ) -> Result<(), Failure> {
        let address = Packet::address(peer, &plan.id);
        let mut told = Instant::now();
        let mut buffer = vec![0; GROUP as usize * CHUNK];
        let mut first = plan.start;
        while first < plan.chunks() {
            let count = plan.group(first);
            let length = (first..first + count).map(|index| plan.length(index)).sum();
            let at = u64::from(first) * CHUNK as u64;
            let read = source.read_at(&mut buffer[..length], at);
            read.map_err(|error| Failure::Wrong(error.to_string()))?;
            for payload in plan.seal_group(first, recipient, &buffer[..length]) {
                // Before a wait, too, or the last of it would never be told.
                let waits = lock(&self.control.state).granted == 0;
                if told.elapsed() >= if waits { TOLD_EVERY / 5 } else { TOLD_EVERY } {
                    told = Instant::now();
                    self.tell(Step::Progress(at));
                }
                // Who says to have it all gets nothing more.
                let wanted = self.control.wait(STALLED, |state| match state.keep {
                    Some(()) => Some(false),
                    None => {
                        state.granted = state.granted.checked_sub(1)?;
                        Some(true)
                    }
                })?;
                if !wanted {
                    return Ok(());
                }
                self.shared.queue.packet(frame::packet_head(&address, &payload), payload, STALLED)?;
                *lock(&self.shared.hub.moved) = Some(Instant::now());
            }
            first += count;
        }
        Ok(())
    }
}
