//! Mail: messages that waited while the user was away, and the key for the next absence.
//!
//! Invariant: a message is on disk as taken before it is shown, and is confirmed only after it was shown, or when it
//! never will be. A mailbox key is erased when the server has a later one and no message needs the former any more.
//! Specification: PROTOCOL#mail-owner, PROTOCOL#mail-order, PROTOCOL#mail-records.

use super::contacts::Contacts;
use super::cx::Cx;
use super::event::Action;
use super::incoming::{Incoming, Received};
use super::presence::OnlineUsers;
use crate::client::store::mailbox::{MAX_KEYS, MailboxFile, MailboxKey, Taken};
use crate::clock;
use crate::crypto::keys::NewMailboxKey;
use crate::crypto::public::{Fingerprint, SessionCertificate};
use crate::name::Username;
use crate::protocol::{ClientMessage, ErrorCode, Failure, Kept, Mail, MailDone, MailRequest};
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// Live private and room messages wait this long for mail: a silent server must not hold them up. PROTOCOL#mail-order.
const PATIENCE: Duration = Duration::from_secs(10);
/// At the end, the client waits this long for mail to be shown, and for the next mailbox key: what is not confirmed by
/// then is fetched again, and a key is made at the next login.
const FAREWELL: Duration = Duration::from_secs(2);
/// The most bytes of messages that are shown together: twice the usual size of a mailbox on the server.
const MAX_TOGETHER: usize = 2 * 1024 * 1024;
/// The approximate size of a message besides its text, in bytes.
const MESSAGE: usize = 1024;
/// A key of this age, in milliseconds, is erased whatever the server says: its certificate is valid for 30 days, and a
/// server usually keeps a message for 30 more. PROTOCOL#mail-erasing.
const MAX_AGE: u64 = 60 * 24 * 3_600_000;
/// A mailbox key that is refused this often is not sent again: another machine is hardly faster twice.
const MAX_TRIES: u32 = 3;

/// The state of fetching.
#[derive(Default, PartialEq, Eq)]
enum Fetch {
    /// Not begun.
    #[default]
    Idle,
    /// The server owes an answer.
    Asked,
    /// The answer is here; whether there is `more`.
    Opening { more: bool },
    /// Nothing is left to fetch; whether the server has sent everything.
    Over { complete: bool },
}

/// The state of the next mailbox key.
#[derive(Default, PartialEq, Eq)]
enum Upload {
    /// It is not due yet.
    #[default]
    Idle,
    /// A thread is generating it.
    Making,
    /// The server owes an answer to this try.
    Sent(u32),
    /// The server has it on disk.
    Set,
    /// This session gets none.
    Failed,
    /// The server keeps no mail.
    Off,
}

/// See the module.
#[derive(Default)]
pub struct Mailbox {
    fetch: Fetch,
    upload: Upload,
    /// When the first request of this session was sent.
    begun: Option<Instant>,
    /// Whether live messages wait for mail.
    holds: bool,
    /// The number of the last message that the server has sent.
    after: u64,
    /// Messages of the last answer whose senders' keys are not known yet.
    waiting: VecDeque<Kept>,
    /// Senders whose keys were requested because of mail under this identity key.
    asked: HashSet<(Username, Fingerprint)>,
    /// Messages to show, with their numbers; `None` for one that arrived live.
    opened: Vec<(Option<u64>, Received)>,
    /// Their approximate memory, in bytes.
    bytes: usize,
    /// The ids and numbers of messages that are being shown.
    showing: Vec<([u8; 32], Option<u64>)>,
    /// The numbers of messages that are settled, and not confirmed yet.
    settled: Vec<u64>,
    /// Whether no request has followed the last confirmation. The answer to one proves that the server has handled it.
    unproven: bool,
    /// Senders whose mail waits for a decision of the user.
    undecided: BTreeSet<Username>,
    /// The mailbox keys of messages that were neither shown nor confirmed, which must stay.
    unsettled: HashSet<Fingerprint>,
}

impl Mailbox {
    /// Requests the mail when a session begins.
    pub fn begin(&mut self, cx: &mut Cx) {
        if self.begun.is_some() || cx.account.mailbox.is_none() {
            return;
        }
        self.begun = Some(cx.instant);
        self.request(cx);
        let has_keys = cx.account.mailbox.iter().any(|mailbox| mailbox.keys().next().is_some());
        self.hold(cx, has_keys);
    }

    /// Begins a new session. Returns the messages opened in the former one, which are shown now; their numbers are no
    /// longer valid.
    pub fn restart(&mut self, cx: &mut Cx) -> Vec<Received> {
        let shown = self.show(cx);
        self.hold(cx, false);
        let showing = self.showing.iter().map(|(id, _)| (*id, None)).collect();
        *self = Mailbox { showing, ..Mailbox::default() };
        shown
    }

    fn request(&mut self, cx: &mut Cx) {
        let mailbox = cx.account.mailbox.iter();
        let keys = mailbox.flat_map(MailboxFile::keys).map(|mailbox| mailbox.key.fingerprint()).collect();
        cx.send(ClientMessage::MailRequest(MailRequest { keys, after: self.after }));
        (self.fetch, self.unproven) = (Fetch::Asked, false);
    }

    fn hold(&mut self, cx: &mut Cx, holds: bool) {
        if std::mem::replace(&mut self.holds, holds) != holds {
            cx.act(Action::Hold(holds));
        }
    }

    /// Takes an answer. PROTOCOL#fetching.
    pub fn answered(&mut self, cx: &mut Cx, Mail { mail, more, other, until }: Mail) {
        if self.fetch != Fetch::Asked {
            return cx.out_of_place();
        }
        if other > 0 && self.after == 0 {
            let (messages, wait) = if other == 1 { ("message", "waits") } else { ("messages", "wait") };
            let until = clock::date_minute(until);
            cx.notice(format!(
                "{other} {messages} {wait} for the machine that you used before, until {until}"
            ));
        }
        let numbers = std::iter::once(self.after).chain(mail.iter().map(|kept| kept.number));
        self.fetch = match numbers.is_sorted_by(|a, b| a < b) && (!more || !mail.is_empty()) {
            true => Fetch::Opening { more },
            false => {
                cx.server_problem("the server sent mail in a wrong order");
                return self.over(cx, false);
            }
        };
        self.after = mail.last().map_or(self.after, |kept| kept.number);
        self.waiting = mail.into();
    }

    /// Keeps an opened message until it is shown.
    pub fn keep(&mut self, number: Option<u64>, received: Received) {
        self.bytes += received.text.len() + MESSAGE;
        self.opened.push((number, received));
    }

    /// Fetches, confirms, replaces and erases what it can now; returns the messages to show, in order.
    pub fn advance(
        &mut self,
        cx: &mut Cx,
        contacts: &mut Contacts,
        incoming: &mut Incoming,
        online: &OnlineUsers,
    ) -> Vec<Received> {
        let Some(begun) = self.begun else { return Vec::new() };
        for kept in std::mem::take(&mut self.waiting) {
            self.open(cx, contacts, incoming, online, kept);
        }
        if !self.settled.is_empty() {
            let numbers = std::mem::take(&mut self.settled);
            cx.send(ClientMessage::MailDone(MailDone { numbers }));
            self.unproven = true;
        }
        let is_late = cx.instant.duration_since(begun) >= PATIENCE;
        let mut shown = Vec::new();
        match self.fetch {
            Fetch::Opening { more: true } if self.waiting.is_empty() && self.bytes <= MAX_TOGETHER => {
                self.request(cx);
            }
            Fetch::Opening { more } if self.waiting.is_empty() => {
                shown = self.show(cx);
                match self.fetch {
                    Fetch::Over { .. } => {}
                    _ if more => self.request(cx),
                    _ => self.over(cx, true),
                }
            }
            Fetch::Over { .. } => {
                shown = self.show(cx);
                // The user has decided about a sender.
                let undecided = self.undecided.len();
                self.undecided.retain(|name| contacts.has_changed(name));
                if self.undecided.len() < undecided && cx.account.mailbox.is_some() {
                    (self.after, self.unsettled) = (0, HashSet::new());
                    self.request(cx);
                }
            }
            _ if is_late => shown = self.show(cx),
            _ => {}
        }
        if is_late {
            self.hold(cx, false);
        }
        if self.upload == Upload::Idle && (is_late || matches!(self.fetch, Fetch::Over { .. })) {
            self.renew(cx);
        }
        // A key stays until the server has deleted the confirmed messages, which another answer proves.
        // PROTOCOL#mail-erasing.
        if self.unproven && self.fetch == (Fetch::Over { complete: true }) {
            self.request(cx);
        }
        self.erase(cx, is_late);
        shown
    }

    /// Opens a message if its sender's key is known. PROTOCOL#mail-refusals.
    fn open(
        &mut self,
        cx: &mut Cx,
        contacts: &mut Contacts,
        incoming: &mut Incoming,
        online: &OnlineUsers,
        kept: Kept,
    ) {
        let Kept { number, message } = kept;
        let header = &message.envelope.header;
        let from = header.from.clone();
        if from == cx.me {
            incoming.refuse(cx, header, "its sender is invalid");
            return self.settled.push(number);
        }
        if !contacts.admits(&from) {
            return self.unsettled.extend(header.recipient_key);
        }
        let identity = contacts.find(&from).and_then(|contact| contact.identity.as_ref());
        let identity = identity.map(|identity| identity.fingerprint());
        let is_asked = !contacts.has_changed(&from)
            && identity != Some(header.identity)
            && (contacts.is_asked(&from) || self.asked.insert((from.clone(), header.identity)));
        if is_asked {
            contacts.ask_for([from]);
            self.waiting.push_back(Kept { number, message });
        } else if contacts.has_changed(&from) || identity.is_none() {
            self.unsettled.extend(header.recipient_key);
            if contacts.has_changed(&from) {
                let text = format!("messages from {from} wait until you decide about their key");
                cx.problem_about(&from, "mail", text);
                self.undecided.insert(from);
            }
        } else {
            match incoming.open(cx, contacts, online, &message) {
                Some(received) if received.is_mail => self.keep(Some(number), received),
                opened => {
                    if opened.is_some() {
                        incoming.refuse(cx, header, "it was not sealed for a mailbox");
                    }
                    self.settled.push(number);
                }
            }
        }
    }

    /// Records the opened messages as taken, and returns them in order. PROTOCOL#mail-records.
    fn show(&mut self, cx: &mut Cx) -> Vec<Received> {
        let mut opened = std::mem::take(&mut self.opened);
        self.bytes = 0;
        let Some(mailbox) = cx.account.mailbox.as_mut().filter(|_| !opened.is_empty()) else {
            return Vec::new();
        };
        opened.sort_by_key(|(number, _)| number.unwrap_or(u64::MAX));
        let taken: Vec<Taken> = opened.iter().filter_map(|(_, received)| taken(received)).collect();
        if let Err(error) = mailbox.take(&taken) {
            let text =
                "messages that arrived while you were away wait on the server: free space and start again";
            cx.problem(format!("{error}: {text}"));
            self.over(cx, false);
            // These messages count as received in this run: only the next one can fetch them again.
            cx.account.mailbox = None;
            return Vec::new();
        }
        self.showing.extend(opened.iter().map(|(number, received)| (received.id, *number)));
        opened.into_iter().map(|(_, received)| received).collect()
    }

    /// Notes that all messages of [`show`](Self::show) so far were shown: they can be confirmed.
    pub fn shown(&mut self, cx: &mut Cx) {
        let showing = std::mem::take(&mut self.showing);
        let ids: Vec<[u8; 32]> = showing.iter().map(|(id, _)| *id).collect();
        // Without the record, a message may be shown again, with a mark.
        if let Some(Err(error)) = cx.account.mailbox.as_mut().map(|mailbox| mailbox.shown(&ids)) {
            cx.problem_about_some("mailbox", error.to_string());
        }
        self.settled.extend(showing.into_iter().filter_map(|(_, number)| number));
    }

    fn over(&mut self, cx: &mut Cx, complete: bool) {
        self.fetch = Fetch::Over { complete };
        self.waiting.clear();
        self.hold(cx, false);
    }

    // ---- the key for the next absence

    /// Begins to replace the mailbox key. PROTOCOL#mail-owner.
    fn renew(&mut self, cx: &mut Cx) {
        let mailbox = cx.account.mailbox.as_ref();
        self.upload =
            match mailbox.filter(|mailbox| mailbox.is_wanted()).map(|mailbox| mailbox.keys().count()) {
                None => Upload::Failed,
                // PROTOCOL#mailbox-file-limits.
                Some(MAX_KEYS..) => {
                    let text = "your mailbox file has 16 keys whose messages have not all arrived: \
                                your next absence has no key of its own";
                    cx.problem(text);
                    self.announce(cx, 0, 1);
                    return;
                }
                Some(_) => {
                    cx.act(Action::MakeMailboxKey);
                    Upload::Making
                }
            };
    }

    /// Seals a new key on disk, and sends it to the server.
    pub fn made(&mut self, cx: &mut Cx, key: NewMailboxKey) {
        let Some(mailbox) = cx.account.mailbox.as_mut().filter(|_| self.upload == Upload::Making) else {
            return;
        };
        let created = SessionCertificate::next_created(newest(mailbox), cx.now);
        match mailbox.add(key, created) {
            Ok(()) => self.announce(cx, 0, 1),
            Err(error) => {
                self.upload = Upload::Failed;
                cx.problem(format!("{error}: others can leave you messages for your former key only"));
            }
        }
    }

    /// Certifies the latest key and sends it; again with a `created` above that of `others`, the newest on the server.
    fn announce(&mut self, cx: &mut Cx, others: u64, tries: u32) {
        self.upload = Upload::Failed;
        let Some(mailbox) = cx.account.mailbox.as_ref() else { return };
        let Some(latest) = mailbox.keys().last() else { return };
        let created = match tries {
            1 if mailbox.keys().count() < MAX_KEYS => latest.created,
            _ => SessionCertificate::next_created(others.max(newest(mailbox)), cx.now),
        };
        let certificate = cx.account.identity.certify_mailbox(&cx.me, &latest.key, created);
        cx.send(ClientMessage::Mailbox(Box::new(certificate)));
        self.upload = Upload::Sent(tries);
    }

    /// Notes that the server has the new key on disk.
    pub fn set(&mut self, cx: &mut Cx) {
        match self.upload {
            Upload::Sent(_) => self.upload = Upload::Set,
            _ => cx.out_of_place(),
        }
    }

    /// Handles an error that may answer a request about mail; false if it is to be shown.
    pub fn refused(&mut self, cx: &mut Cx, failure: &Failure) -> bool {
        use ErrorCode::{BadMailbox, Malformed, NoMail, ServerError};
        if ![BadMailbox, Malformed, NoMail, ServerError].into_iter().any(|code| failure.is(code)) {
            return false;
        }
        if let Upload::Sent(tries) = self.upload {
            if failure.is(NoMail) {
                self.upload = Upload::Off;
                return true;
            }
            self.upload = Upload::Failed;
            if failure.is(BadMailbox) && tries < MAX_TRIES {
                self.announce(cx, failure.newest.unwrap_or(0), tries + 1);
                return true;
            }
            cx.problem(
                "the server has refused your mailbox key: others may not be able to leave you messages",
            );
        }
        if self.fetch == Fetch::Asked {
            self.over(cx, false);
        }
        false
    }

    /// Whether the server owes an answer.
    pub fn is_asking(&self) -> bool {
        self.fetch == Fetch::Asked || matches!(self.upload, Upload::Sent(_))
    }

    /// Whether the exit, requested at `since`, need not wait for mail.
    pub fn is_settled(&self, cx: &Cx, since: Instant) -> bool {
        let is_idle = matches!(self.fetch, Fetch::Idle | Fetch::Over { .. }) && self.showing.is_empty();
        let is_renewed = !matches!(self.upload, Upload::Making | Upload::Sent(_));
        (is_idle && is_renewed) || cx.instant.duration_since(since) >= FAREWELL
    }

    /// Erases keys that are not needed any more. PROTOCOL#mail-erasing.
    fn erase(&mut self, cx: &mut Cx, is_late: bool) {
        let is_over = matches!(self.fetch, Fetch::Over { .. });
        let is_idle = self.showing.is_empty() && self.opened.is_empty();
        let Some(mailbox) = cx.account.mailbox.as_mut().filter(|_| is_idle && (is_over || is_late)) else {
            return;
        };
        let is_replaced =
            matches!(self.upload, Upload::Set | Upload::Off) && self.fetch == Fetch::Over { complete: true };
        let latest = mailbox.keys().last().filter(|_| self.upload != Upload::Off);
        let latest = latest.map(|latest| latest.key.fingerprint());
        let is_kept = |mailbox: &MailboxKey| {
            let key = mailbox.key.fingerprint();
            let is_needed = !is_replaced || Some(key) == latest || self.unsettled.contains(&key);
            is_needed && cx.now.saturating_sub(mailbox.created) <= MAX_AGE
        };
        if !mailbox.keys().all(is_kept)
            && let Err(error) = mailbox.retain(is_kept)
        {
            cx.problem_about_some("mailbox", format!("old mailbox keys are not erased: {error}"));
        }
    }
}

fn newest(mailbox: &MailboxFile) -> u64 {
    mailbox.keys().map(|key| key.created).max().unwrap_or(0)
}

fn taken(Received { header, id, .. }: &Received) -> Option<Taken> {
    let (key, from) = (header.recipient_key?, header.from.clone());
    Some(Taken { key, from, session: header.session, sequence: header.sequence, id: *id })
}

#[cfg(test)]
mod tests;
