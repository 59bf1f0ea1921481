//! Files, as far as their threads tell: read, found, sent, arrived, failed, and what the other side hears of that.
//!
//! Invariant: a step counts only while its transfer is on the list; what of it is shown is made harmless.
//! Specification: PROTOCOL#file-transfer.

use super::super::{Effect, Session};
use super::words::{Accept, Offer};
use super::{Size, State};
use crate::client::audience::Audience;
use crate::client::file::safe_name;
use crate::client::text::sanitise;
use crate::client::transfer::{Job, Step};
use crate::crypto::chunk::{CHUNK, chunks};
use crate::crypto::envelope::Kind;
use crate::encoding::Fixed;
use miniserde::json;
use zeroize::Zeroizing;

impl Session {
    /// A transfer has come one step further.
    pub(in super::super) fn step(&mut self, number: u32, step: Step) {
        if let Step::Parts(parts) = step {
            return self.list_files(&parts);
        }
        let Some(transfer) = self.files.list.get_mut(&number) else {
            // What was cancelled meanwhile has nothing more to say, but that it was too late.
            if let Step::Received(path) = step {
                let path = sanitise(&path.to_string_lossy());
                self.notice(format!("this file was already complete: {path}"));
            }
            return;
        };
        match step {
            Step::Read { done, size } => {
                self.moved = self.instant;
                (transfer.state, transfer.size) = (State::Preparing(done), size);
            }
            Step::Prepared { name, size, sha256 } => {
                let Some(chunks) = chunks(size) else {
                    return self.fail(number, "the file is too large");
                };
                (transfer.name, transfer.size, transfer.sha256) = (safe_name(&name), size, sha256);
                let offer = Offer {
                    transfer: Fixed(transfer.id),
                    key: transfer.key.duplicate(),
                    name: transfer.name.clone(),
                    size,
                    sha256: Fixed(sha256),
                    chunks: chunks.into(),
                };
                let (peer, text) = (transfer.peer.clone(), Zeroizing::new(json::to_string(&offer)));
                self.enter_state(number, State::Offered);
                self.send_about(Kind::FileOffer, Audience::Private(peer), text, Some(number));
            }
            Step::Parts(_) => {}
            Step::Tight { free, missing } => {
                let (title, free, missing) = (transfer.title(), Size(free), Size(missing));
                self.problem(format!(
                    "{title} may not fit: it needs {missing}, and the disk has {free} free; /cancel {number} ends it"
                ));
            }
            Step::Ready { start } => {
                // Whatever is renewed meanwhile, this key stays the transfer's.
                let key = self.keys.current();
                let session = Fixed(key.fingerprint().0);
                let accept = Accept { transfer: Fixed(transfer.id), start: start.into(), session };
                let done = transfer.size.min(u64::from(start) * CHUNK as u64);
                let peer = transfer.peer.clone();
                self.begin(number, done);
                // A grant that comes before the answer is kept there.
                self.job(number, Job::Start(key));
                let text = Zeroizing::new(json::to_string(&accept));
                self.send_about(Kind::FileAccept, Audience::Private(peer), text, Some(number));
            }
            Step::Progress(bytes) => {
                if let State::Moving(done) = &mut transfer.state {
                    *done = bytes.min(transfer.size);
                }
                self.moved = self.instant;
                self.tell_progress(number);
            }
            Step::Sent => self.enter_state(number, State::Confirming),
            Step::Received(path) => {
                let Some(transfer) = self.files.list.remove(&number) else { return };
                self.word(Kind::FileDone, number, &transfer, None);
                let (title, peer) = (transfer.title(), &transfer.peer);
                self.notice(format!(
                    "{title} from {peer} is complete: {}",
                    sanitise(&path.to_string_lossy())
                ));
            }
            Step::Kept(kept) => {
                self.files.list.remove(&number);
                match kept {
                    Ok(path) => self.notice(format!("a copy is kept: {}", sanitise(&path.to_string_lossy()))),
                    Err(why) => self.notice(format!("no copy is kept: {}", sanitise(&why))),
                }
            }
            Step::Failed { here, .. } if matches!(transfer.state, State::Keeping) => {
                self.step(number, Step::Kept(Err(here)));
            }
            Step::Failed { here, there, goes_on } => {
                let again = goes_on && matches!(transfer.state, State::Moving(1..));
                let again = if again { "; it resumes when it is offered again" } else { "" };
                let label = transfer.label();
                self.end_transfer(number, !goes_on, Some(there));
                self.problem(format!("{label}: {}{again}", sanitise(&here)));
            }
        }
    }

    /// One line for each tenth, where there is no bar.
    fn tell_progress(&mut self, number: u32) {
        let instant = self.instant;
        let Some(transfer) = self.files.list.get_mut(&number) else { return };
        let tenth = transfer.percent() / 10;
        if tenth > transfer.told {
            transfer.told = tenth;
            let line = format!("{}: {} %, {}", transfer.label(), tenth * 10, transfer.pace(instant));
            self.effects.push(Effect::Progress(line));
        }
    }
}
