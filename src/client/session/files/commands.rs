//! The user's commands about files: offer, accept, decline, cancel, list.
//!
//! Invariant: a file is fetched only after `accept_file`, and one that is arriving is not fetched a second time.
//! Specification: MANUAL#sending-files.

use super::{CANCELLED, Files, MAX_LISTED, Size, State, Stopped, Transfer};
use crate::client::file::{LeftPart, safe_name};
use crate::client::path::meant_path;
use crate::client::session::cx::Cx;
use crate::client::session::event::Action;
use crate::client::text::sanitise;
use crate::client::transfer::{Job, MAX_ARRIVING};
use crate::crypto::envelope::Kind;
use crate::crypto::secret::{Key, random};
use crate::name::Username;

impl Files {
    /// Offers a file to `name`, who is online.
    pub fn send_file(&mut self, cx: &mut Cx, name: Username, path: String) {
        if self.count(true) >= MAX_LISTED {
            return cx
                .problem("too many files are offered or in progress: /files lists them, /cancel ends one");
        }
        let id = random();
        let transfer = Transfer {
            peer: name.clone(),
            id,
            key: Key::random(),
            name: safe_name(&meant_path(&path).unwrap_or_else(|_| path.as_str().into()).to_string_lossy()),
            size: 0,
            sha256: [0; 32],
            outgoing: true,
            state: State::Hashing(0),
            since: cx.instant,
            begun: (cx.instant, 0),
            told: 0,
        };
        let number = self.add(transfer);
        cx.act(Action::Transfer(number, Job::Hash { peer: name, id, path }));
    }

    /// The offer that the user's `command` means: the one with this number, or without a number the only one, if it was
    /// the first since the last answer. Otherwise the user may have read about another one.
    fn offer(&mut self, cx: &mut Cx, number: Option<u32>, command: &str) -> Option<u32> {
        let mut offers = self.list.iter().filter(|(_, one)| one.is_open()).map(|(number, _)| *number);
        let found = match number {
            Some(number) => offers.find(|offer| *offer == number),
            None => offers.next().filter(|only| offers.next().is_none() && self.meant == Some(*only)),
        };
        if found.is_none() {
            let none = self.list.values().all(|one| !one.is_open());
            cx.problem(match number {
                Some(number) => format!("there is no offer number {number}: /files lists them"),
                None if none => "nobody has offered you a file".into(),
                None => format!("several files were offered: type /{command} NUMBER, /files lists them"),
            });
            if number.is_none() {
                self.tell_other_offers(cx);
            }
        }
        found
    }

    /// Accepts this offer, or the only one.
    pub fn accept_file(&mut self, cx: &mut Cx, number: Option<u32>) {
        let Some(number) = self.offer(cx, number, "acceptfile") else { return };
        if self.moving(false) >= MAX_ARRIVING {
            let text = format!(
                "{MAX_ARRIVING} files are already arriving: wait until one is complete, or /cancel it"
            );
            return cx.problem(text);
        }
        let Some(transfer) = self.list.get(&number) else { return };
        let same = |one: &Transfer| (&one.peer, one.sha256) == (&transfer.peer, transfer.sha256);
        if self.list.values().any(|one| !one.outgoing && !one.is_open() && same(one)) {
            return cx.problem(format!("{} is already arriving", transfer.title()));
        }
        let (peer, id) = (transfer.peer.clone(), transfer.id);
        let job = Job::Look { peer, id, size: transfer.size, sha256: transfer.sha256 };
        self.enter_state(cx, number, State::Looking);
        cx.act(Action::Transfer(number, job));
        self.tell_other_offers(cx);
    }

    /// Declines this offer, or the only one.
    pub fn reject_file(&mut self, cx: &mut Cx, number: Option<u32>) {
        let Some(number) = self.offer(cx, number, "rejectfile") else { return };
        if let Some(transfer) = self.list.remove(&number) {
            self.close(cx, Kind::FileReject, number, &transfer, None);
            cx.notice(format!("you have declined {} from {}", transfer.title(), transfer.peer));
        }
        self.tell_other_offers(cx);
    }

    /// Lists the remaining offers after one was answered. From now on, the first of them is meant.
    fn tell_other_offers(&mut self, cx: &mut Cx) {
        let offers = || self.list.iter().filter(|(_, one)| one.is_open());
        self.meant = offers().next().map(|(number, _)| *number);
        let offers: Vec<String> =
            offers().map(|(number, one)| format!("#{number} {} from {}", one.title(), one.peer)).collect();
        if !offers.is_empty() {
            cx.notice(format!("still offered: {}", offers.join(", ")));
        }
    }

    /// Ends this transfer, or the only one.
    pub fn cancel_file(&mut self, cx: &mut Cx, number: Option<u32>) {
        let done = |one: &Transfer| matches!(one.state, State::Copying);
        let list = &self.list;
        let mut moving = list.iter().filter(|(_, one)| !one.is_open() && !done(one));
        let (found, several) = match number {
            Some(number) => (list.get_key_value(&number).filter(|(_, one)| !done(one)), false),
            None => (moving.next(), moving.next().is_some()),
        };
        let Some((number, transfer)) = found.map(|(number, one)| (*number, one)).filter(|_| !several) else {
            return cx.problem(match number {
                Some(number) => format!("there is no file number {number}: /files lists them"),
                None if several => {
                    "several files are in progress: /cancel NUMBER ends one, /files lists them".into()
                }
                None => "no file is offered or in progress".into(),
            });
        };
        if transfer.is_open() {
            return self.reject_file(cx, Some(number));
        }
        let (title, peer, outgoing) = (transfer.title(), transfer.peer.clone(), transfer.outgoing);
        self.end_transfer(cx, number, true, Some(CANCELLED.into()));
        let way = if outgoing { "to" } else { "from" };
        cx.notice(format!("you have cancelled {title} {way} {peer}"));
    }

    /// Begins to answer `/files`: a job first lists the parts on disk.
    pub fn tell_files(&mut self, cx: &mut Cx) {
        if !std::mem::replace(&mut self.is_listing, true) {
            cx.act(Action::Transfer(0, Job::List));
        }
    }

    /// Answers `/files`: lists offers, transfers in progress, and interrupted ones.
    pub(super) fn list_files(&mut self, cx: &mut Cx, parts: &[LeftPart]) {
        self.is_listing = false;
        let mut lines: Vec<String> = self
            .list
            .iter()
            .map(|(number, transfer)| {
                let (title, peer) = (transfer.title(), &transfer.peer);
                let way = if transfer.outgoing { "to" } else { "from" };
                let state = match &transfer.state {
                    State::Hashing(_) => "is being read".to_string(),
                    State::Offered if transfer.outgoing => {
                        format!("waits for {peer}; /cancel {number} withdraws it")
                    }
                    State::Offered => format!("is offered: /acceptfile {number} or /rejectfile {number}"),
                    State::Looking | State::AwaitingKey(..) => "starting".into(),
                    State::Moving(_) => format!("{} %, {}", transfer.percent(), transfer.pace(cx.instant)),
                    State::Confirming => "sent, waiting for confirmation".into(),
                    State::Copying => "complete, a copy is being made".into(),
                };
                match transfer.state {
                    State::Hashing(_) => {
                        format!("#{number} {} {way} {peer}: {state}", sanitise(&transfer.name))
                    }
                    _ => format!("#{number} {title} {way} {peer}: {state}"),
                }
            })
            .collect();
        if lines.is_empty() {
            lines.push("no files are offered or in progress: /sendfile NAME PATH offers one".into());
        }
        let stopped = self.stopped.iter().filter(|one| one.outgoing);
        lines.extend(
            stopped.map(|one| {
                format!("{} to {} was interrupted: offer it again to resume", one.title, one.peer)
            }),
        );
        let is_known = |part: &LeftPart| {
            let same = |one: &Transfer| (&one.peer, one.sha256) == (&part.sender, part.sha256);
            self.list.values().any(|one| !one.outgoing && same(one))
        };
        lines.extend(parts.iter().filter(|part| !is_known(part)).take(MAX_LISTED).map(|part| {
            let same =
                |one: &&Stopped| !one.outgoing && (&one.peer, one.sha256) == (&part.sender, part.sha256);
            let title = self.stopped.iter().find(same).map_or("a file", |one| &one.title);
            let (sender, size) = (&part.sender, Size(part.bytes));
            format!(
                "{title} from {sender} was interrupted after {size}: it resumes when {sender} offers it again"
            )
        }));
        lines.into_iter().for_each(|line| cx.notice(line));
    }
}
