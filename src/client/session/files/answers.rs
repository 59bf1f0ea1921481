//! The peer's messages about a file: offered, accepted, declined, cancelled, complete.
//!
//! Invariant: a message about a transfer counts only from its peer, and only in a state that expects it.
//! Specification: PROTOCOL#file-transfer.

use super::messages::{Accept, Closing, Offer, read};
use super::{CANCELLED, Files, MAX_LEAVING, MAX_LISTED, MAX_OFFERS_OF_ONE, MIN_RATED, Size, State, Transfer};
use crate::client::file::safe_name;
use crate::client::session::cx::Cx;
use crate::client::session::event::Action;
use crate::client::text::shortened;
use crate::client::transfer::Job;
use crate::crypto::chunk::{CHUNK, chunks};
use crate::crypto::envelope::{Header, Kind};
use crate::crypto::public::{Fingerprint, SessionPublicKey};
use crate::name::Username;

impl Files {
    /// Handles a `file_reject`, `file_cancel` or `file_done`. `Err` if it is malformed.
    pub fn closed(&mut self, cx: &mut Cx, header: &Header, text: &str) -> Result<(), String> {
        let Closing { transfer, reason } = read(text)?;
        if let Some(number) = self.find(&header.from, &transfer.0) {
            self.ended_there(cx, number, header.kind, reason.as_deref().map(shortened));
        }
        Ok(())
    }

    /// Handles a `file_offer`. `Err` if it is malformed, or there are too many. PROTOCOL#bad-file-message.
    pub fn offered(&mut self, cx: &mut Cx, from: &Username, text: &str) -> Result<(), String> {
        let offer: Offer = read(text)?;
        if chunks(offer.size).map(u64::from) != Some(offer.chunks) {
            return Err("its size and its number of chunks do not match".into());
        }
        let theirs = self.list.values().filter(|one| one.peer == *from && !one.outgoing).count();
        if self.find(from, &offer.transfer.0).is_some() {
            return Err("it offers the same transfer twice".into());
        }
        if theirs >= MAX_OFFERS_OF_ONE {
            return Err("too many files are offered already: /files lists them".into());
        }
        if self.count(false) >= MAX_LISTED
            && let Some(transfer) = self.dispensable().and_then(|number| self.list.remove(&number))
        {
            let (title, peer) = (transfer.title(), &transfer.peer);
            cx.notice(format!("too many files are offered: {title} from {peer} was removed from the list"));
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
            since: cx.instant,
            begun: (cx.instant, 0),
            told: 0,
        };
        let title = transfer.title();
        let number = self.add(transfer);
        self.meant.get_or_insert(number);
        cx.notice(format!(
            "{from} offers you a file: {title}; /acceptfile {number} accepts it, /rejectfile {number} declines it"
        ));
        Ok(())
    }

    /// Handles a `file_accept`. Returns the fingerprint of the session key to wrap the chunks' keys for, which
    /// [`Files::keys`] then needs; `None` if no transfer begins, `Err` if it is malformed. PROTOCOL#chunk-session.
    pub fn accepted(
        &mut self,
        cx: &mut Cx,
        from: &Username,
        text: &str,
    ) -> Result<Option<Fingerprint>, String> {
        let Accept { transfer: id, start, session } = read(text)?;
        let Some(number) = self.find(from, &id.0) else { return Ok(None) };
        let Some(transfer) = self.list.get(&number) else { return Ok(None) };
        if !transfer.outgoing || !matches!(transfer.state, State::Offered) {
            return Ok(None);
        }
        let chunks = chunks(transfer.size).unwrap_or(0);
        let Some(start) = u32::try_from(start).ok().filter(|start| *start <= chunks) else {
            self.fail(cx, number, "the answer starts after the end of the file");
            return Ok(None);
        };
        if self.moving(true) >= MAX_LEAVING {
            self.fail(cx, number, "too many files are in progress already: offer it again later");
            return Ok(None);
        }
        let session = Fingerprint(session.0);
        self.enter_state(cx, number, State::AwaitingKey(start, session));
        Ok(Some(session))
    }

    /// Handles the session key of `name`, or that there is none: transfers that wait for it begin, or fail.
    pub fn keys(&mut self, cx: &mut Cx, name: &Username, key: Option<&SessionPublicKey>) {
        let waits = |one: &Transfer| match one.state {
            State::AwaitingKey(start, session) if one.peer == *name => Some((start, session)),
            _ => None,
        };
        let list = self.list.iter();
        let waiting: Vec<_> = list.filter_map(|(number, one)| Some((*number, waits(one)?))).collect();
        for (number, (start, session)) in waiting {
            let key = key.filter(|key| key.fingerprint() == session);
            let (Some(recipient), Some(transfer)) = (key, self.list.get(&number)) else {
                self.fail(cx, number, "it was accepted in an earlier session: offer it again");
                continue;
            };
            let (plan, done) = (transfer.plan(start), transfer.size.min(u64::from(start) * CHUNK as u64));
            self.begin(cx, number, done);
            cx.act(Action::Transfer(number, Job::Send { recipient: recipient.clone(), plan }));
        }
    }

    /// Handles the end of a transfer by the peer.
    fn ended_there(&mut self, cx: &mut Cx, number: u32, kind: Kind, reason: Option<String>) {
        let Some(transfer) = self.list.get(&number) else { return };
        let (title, peer, outgoing) = (transfer.title(), transfer.peer.clone(), transfer.outgoing);
        let rate = match transfer.state {
            State::Confirming | State::Moving(1..) if transfer.size > MIN_RATED => {
                format!(", {}/s", Size(transfer.rate(transfer.size, cx.instant)))
            }
            _ => String::new(),
        };
        match (kind, &transfer.state) {
            (Kind::FileReject, State::Offered) if outgoing => {
                self.end_transfer(cx, number, false, None);
                cx.notice(format!("{peer} has declined {title}"));
            }
            (Kind::FileDone, State::AwaitingKey(..) | State::Moving(_) | State::Confirming) if outgoing => {
                self.enter_state(cx, number, State::Copying);
                cx.act(Action::Transfer(number, Job::Copy));
                cx.notice(format!("{peer} has received {title}{rate}"));
            }
            (Kind::FileCancel, state) if !matches!(state, State::Copying) => {
                let offered = !outgoing && matches!(state, State::Offered);
                let reason = reason.as_deref();
                // A user who cancels does not want to resume.
                self.end_transfer(cx, number, reason == Some(CANCELLED), None);
                cx.problem(match reason {
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
