//! What the two sides of a transfer tell each other: the texts of the envelopes, and what those of the other
//! side do here.
//!
//! Invariant: a word about a transfer counts only from the other side of it, and only when its turn has come.
//! Specification: PROTOCOL#file-transfer.

use super::super::Session;
use super::{
    CANCELLED, MAX_LEAVING, MAX_LISTED, MAX_OFFERS_OF_ONE, MIN_RATED, Size, State, Transfer, shortened,
};
use crate::client::entry::Place;
use crate::client::file::safe_name;
use crate::client::transfer::Job;
use crate::crypto::chunk::{CHUNK, Plan, TransferId, chunks};
use crate::crypto::envelope::{Header, Kind};
use crate::crypto::public::Fingerprint;
use crate::crypto::secret::Key;
use crate::encoding::Fixed;
use crate::name::Username;
use miniserde::{Deserialize, Serialize, json};

/// The text of a `file_offer`. PROTOCOL#file-words, PROTOCOL#file_offer.
#[derive(Serialize, Deserialize)]
pub struct Offer {
    /// Random: names the transfer.
    pub transfer: Fixed<16>,
    /// The transfer key, random, 32 bytes.
    pub key: Key,
    /// The last part of the path; the recipient trusts none of it.
    pub name: String,
    /// Bytes of the file.
    pub size: u64,
    /// Of the whole file.
    pub sha256: Fixed<32>,
    /// `size` / 65,536, rounded up; below 2^32. An offer in which the two disagree is none.
    pub chunks: u64,
}

/// The text of a `file_accept`. PROTOCOL#file_accept, PROTOCOL#chunk-session.
#[derive(Serialize, Deserialize)]
pub struct Accept {
    /// As in the offer.
    pub transfer: Fixed<16>,
    /// Chunks before this one are there already; all of them if it is their number.
    pub start: u64,
    /// Fingerprint of the session key that the chunks' keys are to be wrapped for.
    pub session: Fixed<32>,
}

/// The text of the other three; the reason is for people.
/// PROTOCOL#file_reject, PROTOCOL#file_cancel, PROTOCOL#file_done.
#[derive(Serialize, Deserialize)]
pub struct Word {
    /// As in the offer.
    pub transfer: Fixed<16>,
    /// Of a `file_cancel`, for people; exactly `cancelled` if a person wished it; may be `None`.
    pub reason: Option<String>,
}

impl Session {
    /// A word about a file. `Err` if it is none.
    pub(in super::super) fn file_word(&mut self, header: &Header, text: &str) -> Result<(), String> {
        let from = &header.from;
        let nonsense = |_| "its text is malformed".to_string();
        match header.kind {
            Kind::FileOffer => self.offered(from, json::from_str(text).map_err(nonsense)?)?,
            Kind::FileAccept => {
                let Accept { transfer, start, session } = json::from_str(text).map_err(nonsense)?;
                self.accepted(from, &transfer.0, start, Fingerprint(session.0));
            }
            kind => {
                let Word { transfer, reason } = json::from_str(text).map_err(nonsense)?;
                let Some(number) = self.files.find(from, &transfer.0) else { return Ok(()) };
                self.ended_there(number, kind, reason.as_deref().map(shortened));
            }
        }
        Ok(())
    }

    /// PROTOCOL#bad-word.
    fn offered(&mut self, from: &Username, offer: Offer) -> Result<(), String> {
        if chunks(offer.size).map(u64::from) != Some(offer.chunks) {
            return Err("its size and its number of chunks do not match".into());
        }
        let theirs = self.files.list.values().filter(|one| one.peer == *from && !one.outgoing).count();
        if self.files.find(from, &offer.transfer.0).is_some() {
            return Err("it offers the same transfer twice".into());
        }
        if theirs >= MAX_OFFERS_OF_ONE {
            return Err("too many files are offered already: /files lists them".into());
        }
        if self.files.count(false) >= MAX_LISTED
            && let Some(transfer) =
                self.files.dispensable().and_then(|number| self.files.list.remove(&number))
        {
            let (title, peer) = (transfer.title(), &transfer.peer);
            self.notice(format!("too many files are offered: {title} from {peer} was removed from the list"));
        }
        let transfer = Transfer {
            peer: from.clone(),
            id: offer.transfer.0,
            key: offer.key,
            name: safe_name(&offer.name),
            size: offer.size,
            sha256: offer.sha256.0,
            outgoing: false,
            state: State::Offered,
            since: self.instant,
            begun: (self.instant, 0),
            told: 0,
        };
        let title = transfer.title();
        let number = self.files.add(transfer);
        self.notice(format!(
            "{from} offers you a file: {title}; /acceptfile {number} accepts it, /rejectfile {number} declines it"
        ));
        self.alert(from, Place::Here);
        Ok(())
    }

    /// PROTOCOL#chunk-session.
    fn accepted(&mut self, from: &Username, id: &TransferId, start: u64, session: Fingerprint) {
        let Some(number) = self.files.find(from, id) else { return };
        let Some(transfer) = self.files.list.get(&number) else { return };
        if !transfer.outgoing || !matches!(transfer.state, State::Offered) {
            return;
        }
        let chunks = chunks(transfer.size).unwrap_or(0);
        let Some(start) = u32::try_from(start).ok().filter(|start| *start <= chunks) else {
            return self.fail(number, "the answer starts after the end of the file");
        };
        if self.files.moving(true) >= MAX_LEAVING {
            return self.fail(number, "too many files are in progress already: offer it again later");
        }
        self.enter_state(number, State::AwaitingKey(start, session));
        match self.peers.find(from).and_then(|peer| peer.session.as_ref()) {
            Some(key) if key.fingerprint() == session => self.keys_for_files(from),
            _ => self.ask_for_keys([from.clone()]),
        }
    }

    /// The keys of `name` are as new as they get: what waits for them begins, or never will.
    pub(in super::super) fn keys_for_files(&mut self, name: &Username) {
        let waits = |one: &Transfer| match one.state {
            State::AwaitingKey(start, session) if one.peer == *name => Some((start, session)),
            _ => None,
        };
        let list = self.files.list.iter();
        let waiting: Vec<_> = list.filter_map(|(number, one)| Some((*number, waits(one)?))).collect();
        for (number, (start, session)) in waiting {
            let key = self.peers.find(name).filter(|peer| peer.changed.is_none());
            let key = key.and_then(|peer| peer.session.clone());
            let (Some(recipient), Some(transfer)) =
                (key.filter(|key| key.fingerprint() == session), self.files.list.get(&number))
            else {
                self.fail(number, "the key that it was accepted with is no longer in use");
                continue;
            };
            let (id, key, size) = (transfer.id, transfer.key.duplicate(), transfer.size);
            self.begin(number, size.min(u64::from(start) * CHUNK as u64));
            self.job(number, Job::Send { recipient, plan: Plan { id, key, size, start } });
        }
    }

    /// The other side has ended a transfer, one way or the other.
    fn ended_there(&mut self, number: u32, kind: Kind, reason: Option<String>) {
        let Some(transfer) = self.files.list.get(&number) else { return };
        let (title, peer, outgoing) = (transfer.title(), transfer.peer.clone(), transfer.outgoing);
        let sent =
            transfer.size > MIN_RATED && matches!(transfer.state, State::Confirming | State::Moving(1..));
        let rate = format!(", {}/s", Size(transfer.rate(transfer.size, self.instant)));
        let rate = if sent { rate } else { String::new() };
        match (kind, &transfer.state) {
            (Kind::FileReject, State::Offered) if outgoing => {
                self.end_transfer(number, false, None);
                self.notice(format!("{peer} has declined {title}"));
            }
            (Kind::FileDone, State::AwaitingKey(..) | State::Moving(_) | State::Confirming) if outgoing => {
                self.enter_state(number, State::Keeping);
                self.job(number, Job::Keep);
                self.notice(format!("{peer} has received {title}{rate}"));
            }
            (Kind::FileCancel, state) if !matches!(state, State::Keeping) => {
                let offered = !outgoing && matches!(state, State::Offered);
                let reason = reason.as_deref();
                // Who cancels on purpose does not want it to go on another time.
                self.end_transfer(number, reason == Some(CANCELLED), None);
                self.problem(match reason {
                    Some(CANCELLED) if offered => format!("{peer} has withdrawn {title}"),
                    Some(CANCELLED) => format!("{peer} has cancelled {title}"),
                    Some(reason) => format!("{title} failed on {peer}'s side: {reason}"),
                    None => format!("{title} failed on {peer}'s side"),
                });
            }
            _ => {}
        }
    }
}
