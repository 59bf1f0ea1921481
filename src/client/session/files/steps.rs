//! Handles the reports of a transfer's jobs (hashed, found, sent, received, failed), and notifies the peer.
//!
//! Invariant: a step counts only while its transfer is in the list; names and paths are sanitised before they are
//! shown. Specification: PROTOCOL#file-transfer.

use super::messages::{Accept, Offer};
use super::{Files, Size, State};
use crate::client::file::safe_name;
use crate::client::session::cx::Cx;
use crate::client::session::event::{Action, Display};
use crate::client::text::sanitise;
use crate::client::transfer::{Job, Step};
use crate::crypto::chunk::{CHUNK, chunks};
use crate::crypto::envelope::Kind;
use crate::encoding::Fixed;

impl Files {
    /// Handles the report of a job.
    pub fn step(&mut self, cx: &mut Cx, number: u32, step: Step) {
        if let Step::Parts(parts) = step {
            return self.list_files(cx, &parts);
        }
        let Some(transfer) = self.list.get_mut(&number) else {
            // The transfer was cancelled; if that came too late, report it.
            if let Step::Received(path) = step {
                let path = sanitise(&path.to_string_lossy());
                cx.notice(format!("this file was already complete: {path}"));
            }
            return;
        };
        match step {
            Step::Hashing { done, size } => {
                self.moved = cx.instant;
                (transfer.state, transfer.size) = (State::Hashing(done), size);
            }
            Step::Hashed { name, size, sha256 } => {
                let Some(chunks) = chunks(size) else {
                    return self.fail(cx, number, "the file is too large");
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
                let peer = transfer.peer.clone();
                self.enter_state(cx, number, State::Offered);
                self.send(cx, number, &peer, Kind::FileOffer, &offer);
            }
            Step::Parts(_) => {}
            Step::Tight { free, missing } => {
                let (title, free, missing) = (transfer.title(), Size(free), Size(missing));
                cx.problem(format!(
                    "{title} may not fit: it needs {missing}, and the disk has {free} free; /cancel {number} ends it"
                ));
            }
            Step::Found { start } => {
                // The transfer keeps this key, even if it is renewed meanwhile.
                let key = cx.account.current();
                let session = Fixed(key.fingerprint().0);
                let accept = Accept { transfer: Fixed(transfer.id), start: start.into(), session };
                let plan = transfer.plan(start);
                let (sha256, name) = (transfer.sha256, transfer.name.clone());
                let done = transfer.size.min(u64::from(start) * CHUNK as u64);
                let peer = transfer.peer.clone();
                self.begin(cx, number, done);
                cx.act(Action::Transfer(number, Job::Receive { session: key, plan, sha256, name }));
                self.send(cx, number, &peer, Kind::FileAccept, &accept);
            }
            Step::Progress(bytes) => {
                if let State::Moving(done) = &mut transfer.state {
                    *done = bytes.min(transfer.size);
                }
                self.moved = cx.instant;
                self.tell_progress(cx, number);
            }
            Step::Sent if matches!(transfer.state, State::Moving(_)) => {
                self.enter_state(cx, number, State::Confirming);
            }
            // The transfer was confirmed meanwhile.
            Step::Sent => {}
            Step::Received(path) => {
                let Some(transfer) = self.list.remove(&number) else { return };
                self.close(cx, Kind::FileDone, number, &transfer, None);
                let (title, peer) = (transfer.title(), &transfer.peer);
                cx.notice(format!("{title} from {peer} is complete: {}", sanitise(&path.to_string_lossy())));
            }
            Step::Copied(kept) => {
                self.list.remove(&number);
                match kept {
                    Ok(path) => cx.notice(format!("a copy is kept: {}", sanitise(&path.to_string_lossy()))),
                    Err(why) => cx.notice(format!("no copy is kept: {}", sanitise(&why))),
                }
            }
            Step::Failed { here, .. } if matches!(transfer.state, State::Copying) => {
                self.step(cx, number, Step::Copied(Err(here)));
            }
            Step::Failed { here, there, can_resume } => {
                let again = can_resume && matches!(transfer.state, State::Moving(1..));
                let again = if again { "; it resumes when it is offered again" } else { "" };
                let label = transfer.label();
                self.end_transfer(cx, number, !can_resume, Some(there));
                cx.problem(format!("{label}: {}{again}", sanitise(&here)));
            }
        }
    }

    /// Shows a line for each tenth of the file; the full screen shows a bar instead.
    fn tell_progress(&mut self, cx: &mut Cx, number: u32) {
        let Some(transfer) = self.list.get_mut(&number) else { return };
        let tenth = transfer.percent() / 10;
        if tenth > transfer.told {
            transfer.told = tenth;
            let line = format!("{}: {} %, {}", transfer.label(), tenth * 10, transfer.pace(cx.instant));
            cx.display(Display::Progress(line));
        }
    }
}
