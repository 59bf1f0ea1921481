//! Handles typed lines: every command and its answer.

use super::Session;
use super::account::PasswordChange;
use super::event::{Action, Display, NotText};
use super::talk::Destination;
use crate::client::audience::{Audience, Partners};
use crate::client::command::{self, Command, View};
use crate::client::text::{quoted, sanitise};
use crate::crypto::envelope::{Kind, MAX_MEMBERS};
use crate::name::Username;
use std::collections::BTreeMap;

/// A search shows this many messages at most, the latest ones: users do not read more.
const MAX_FOUND: usize = 100;
/// `/users` names this many online users and counts the rest: about two screens of text.
const MAX_ONLINE_NAMED: usize = 200;

/// The answer to a line that goes nowhere.
const NOWHERE: &str = "you are talking to nobody, because your last /room or /view was refused; /view returns to \
    everyone, /room NAME... talks to these users";

/// The last line of `/help`.
const ELSE: &str = "any other line goes to the current conversation; //TEXT sends /TEXT";

impl Session {
    pub(super) fn line(&mut self, line: &str) {
        let was_with = self.talk.partners().cloned();
        let parsed = command::parse(line);
        // A line after a refused change was meant for that conversation only: it goes nowhere.
        let leads = Destination::after(line, &parsed, |_| Destination::Nowhere);
        if leads.is_some_and(|to| to != Destination::Everyone) {
            self.talk.go_nowhere();
        }
        let cx = &mut self.cx;
        let command = match parsed {
            Ok(command) => command,
            Err(problem) => return cx.problem(sanitise(&problem)),
        };
        match command {
            Command::Nothing => {}
            Command::Say(text) => match self.talk.audience() {
                Some(audience) => self.send(Kind::Message, audience, text),
                None => cx.problem(format!("{} was not sent: {NOWHERE}", quoted(&text))),
            },
            Command::Message(names, text) => {
                let Some(with) = self.others(names) else { return };
                self.open_group(&with);
                let audience = with.only().cloned().map_or(Audience::Room(with), Audience::Private);
                self.send(Kind::Message, audience, text);
            }
            Command::Room(names) if names.is_empty() => {
                let text = match self.talk.destination() {
                    Destination::With(with) => {
                        let with = with.only().map_or_else(|| self.members(with), Username::to_string);
                        format!("you are talking to {with} alone: /leave returns to everyone")
                    }
                    Destination::Everyone => {
                        "you are talking to everyone: /room NAME opens a private room".into()
                    }
                    Destination::Nowhere => NOWHERE.into(),
                };
                self.cx.notice(text);
            }
            Command::Room(names) => self.enter(names, was_with.as_ref()),
            Command::Leave => self.leave(),
            Command::View(View::Everyone) => {
                self.talk.go_to(cx, None);
                cx.notice("you are talking to everyone");
            }
            Command::View(View::Number(number)) => cx.display(Display::View(number)),
            Command::View(View::With(names)) => self.view(names),
            Command::Mouse => cx.display(Display::Mouse),
            Command::Users(all) => {
                self.tell_users();
                if all {
                    self.list_absent();
                }
            }
            Command::History(count) => self.record.tell(cx, count, ""),
            Command::Search(text) => self.record.tell(cx, MAX_FOUND, &sanitise(&text)),
            Command::Forget => {
                self.outbox.forget_settled();
                self.record.forget(cx);
            }
            Command::Ignore(name) => self.ignore(name),
            Command::Unignore(name) => self.unignore(name),
            Command::Notify(is_on) => self.talk.notify(cx, is_on),
            Command::Clear => cx.display(Display::Clear),
            Command::Help(topic) => self.help(topic.as_deref()),
            Command::Exit => self.leaving.begin(cx),
            Command::Verify(name, compared) => {
                if let Some(name) = self.other(name) {
                    self.contacts.verify(&mut self.cx, name, compared);
                }
            }
            Command::Trust(name) => self.trust(name),
            Command::SendFile(name, path) => self.send_file(name, path),
            Command::AcceptFile(number) => self.files.accept_file(cx, number),
            Command::RejectFile(number) => self.files.reject_file(cx, number),
            Command::Cancel(number) => self.files.cancel_file(cx, number),
            Command::Files => self.files.tell_files(cx),
            Command::Edit(_) => cx.problem("/edit works only on the full screen"),
            Command::Password(_) if cx.account.password == PasswordChange::Running => {
                cx.problem("a password change is already in progress");
            }
            Command::Password(file) => {
                cx.account.password = PasswordChange::Running;
                cx.act(Action::ChangePassword(file));
            }
        }
    }

    pub(super) fn not_text(&mut self, NotText { problem, approximation }: NotText) {
        if command::may_lead(&approximation) {
            self.talk.go_nowhere();
        }
        self.cx.problem(sanitise(&problem));
    }

    /// The name in its owner's spelling; `None`, with a report, if it is the user's own.
    fn other(&mut self, typed: Username) -> Option<Username> {
        self.others(vec![typed])?.only().cloned()
    }

    /// The other users of a conversation in their owners' spelling; `None`, with a report, if there are none or too
    /// many. PROTOCOL#typed-members.
    fn others(&mut self, typed: Vec<Username>) -> Option<Partners> {
        let distinct: BTreeMap<String, Username> =
            typed.into_iter().map(|name| (name.folded(), name)).collect();
        let me = &self.cx.me;
        let spelled = |(folded, typed): (String, Username)| {
            if self.is_known(&typed) {
                return typed;
            }
            let mut known = std::iter::once(me).chain(self.online.others(me));
            let known = known.find(|name| name.folded() == folded);
            known.or_else(|| self.contacts.other_spelling(&typed)).unwrap_or(&typed).clone()
        };
        // More names are refused below in any case; looking all of them up would take long.
        let named = distinct.into_iter().take(MAX_MEMBERS + 1);
        let others: Vec<Username> = named.map(spelled).filter(|name| name != me).collect();
        let problem = match others.len() {
            0 => "that is your own name".into(),
            _ => format!("a room has at most {MAX_MEMBERS} members, you included"),
        };
        let partners = Partners::new(others);
        if partners.is_none() {
            self.cx.problem(problem);
        }
        partners
    }

    /// Whether the user is online, or their key is remembered.
    fn is_known(&self, name: &Username) -> bool {
        self.online.contains(name) || self.contacts.trust(name).is_some()
    }

    /// Goes to a conversation with known users, without notifying them.
    fn view(&mut self, names: Vec<Username>) {
        let Some(with) = self.others(names) else { return };
        if let Some(name) = with.names().iter().find(|name| !self.is_known(name)) {
            return self
                .cx
                .problem(format!("no user named {name} is known: /users all lists those you know"));
        }
        self.go_to(Some(with.clone()));
        self.cx.notice(format!("you are talking to {with} alone; /view returns to everyone"));
    }

    /// Goes to a conversation; `None` is everyone.
    pub(super) fn go_to(&mut self, with: Option<Partners>) {
        self.talk.go_to(&mut self.cx, with.clone());
        with.iter().for_each(|with| self.open_group(with));
    }

    /// Opens a room of more than two, if it was not open: shows its members before anything is sent to them.
    /// PROTOCOL#open-room.
    fn open_group(&mut self, with: &Partners) {
        if with.only().is_none() && self.talk.open(with.clone()) {
            self.cx.notice(format!("the room of {} and you is open; /leave closes it", self.members(with)));
        }
    }

    /// The partners, each with the trust in their key, and whether they are ignored. MANUAL#rooms.
    fn members(&self, with: &Partners) -> String {
        let described = |name: &Username| {
            let ignored = if self.cx.ignored.contains(name) { "; ignored, but reads this" } else { "" };
            format!("{name} ({}{ignored})", self.contacts.trust_word(name))
        };
        with.names().iter().map(described).collect::<Vec<_>>().join(", ")
    }

    fn enter(&mut self, names: Vec<Username>, was_with: Option<&Partners>) {
        let Some(with) = self.others(names) else { return };
        let had_room = self.talk.has_room(&with);
        // Switch before anything can be refused: the user means the next lines for these partners only.
        self.go_to(Some(with.clone()));
        if had_room && was_with == Some(&with) {
            return self.cx.notice(format!("you are already in a room with {with}"));
        }
        // PROTOCOL#room-notices.
        let Some(name) = with.only() else { return };
        if self.contacts.has_changed(name) {
            return self.contacts.reconsider(&mut self.cx, name);
        }
        if self.talk.open(with.clone()) {
            self.send(Kind::RoomOpened, Audience::Room(with), String::new());
        }
    }

    fn leave(&mut self) {
        let Some(with) = self.talk.partners().cloned() else {
            self.talk.go_to(&mut self.cx, None);
            return self.cx.notice("you are talking to everyone; /exit leaves the messenger");
        };
        self.talk.go_to(&mut self.cx, None);
        if self.talk.close(&with) && with.only().is_some() {
            self.cx.notice(format!("you have left the room with {with}; you are talking to everyone"));
            self.send(Kind::RoomLeft, Audience::Room(with), String::new());
        } else {
            self.cx.notice(format!("conversation with {with} closed; you are talking to everyone"));
            self.cx.display(Display::Leave(with));
        }
    }

    fn help(&mut self, topic: Option<&str>) {
        let matching = |usage: &&command::Usage| topic.map_or(usage.is_listed(), |topic| usage.name == topic);
        let found: Vec<_> = command::COMMANDS.iter().filter(matching).collect();
        if let (Some(topic), true) = (topic, found.is_empty()) {
            return self
                .cx
                .problem(format!("there is no command /{}: /help lists all commands", sanitise(topic)));
        }
        for usage in found {
            self.cx.notice(format!("{:<20} {}", usage.usage, usage.explanation));
        }
        if topic.is_none() {
            self.cx.notice(ELSE);
        }
    }

    fn ignore(&mut self, name: Option<Username>) {
        let Some(name) = name else {
            let names: Vec<&str> = self.cx.ignored.names().map(Username::as_str).collect();
            return self.cx.notice(match names.is_empty() {
                true => "no users are ignored: /ignore NAME hides the messages of NAME".into(),
                false => {
                    format!("ignored users: {}; /unignore NAME shows their messages again", names.join(", "))
                }
            });
        };
        let Some(name) = self.other(name) else { return };
        match self.cx.ignored.set(&name, true) {
            Ok(()) => {
                let offers =
                    if self.files.forget_offers(&name) { "; their file offers are removed" } else { "" };
                self.cx.notice(format!(
                    "messages from {name} are no longer shown{offers}; /unignore {name} shows them again"
                ));
            }
            Err(error) => self.cx.problem(format!("this cannot be saved: {error}")),
        }
    }

    fn unignore(&mut self, name: Username) {
        let Some(name) = self.other(name) else { return };
        if !self.cx.ignored.contains(&name) {
            return self.cx.notice(format!("{name} is not ignored"));
        }
        match self.cx.ignored.set(&name, false) {
            Ok(()) => self.cx.notice(format!("new messages from {name} are shown again")),
            Err(error) => self.cx.problem(format!("this cannot be saved: {error}")),
        }
    }

    pub(super) fn tell_users(&mut self) {
        let mut people = vec![format!("{} (you)", self.cx.me)];
        let others = self.online.others(&self.cx.me).take(MAX_ONLINE_NAMED);
        people.extend(others.map(|name| format!("{name} ({})", self.contacts.trust_word(name))));
        let count = self.online.count();
        let rest = count.saturating_sub(people.len());
        let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        self.cx.notice(format!("{} online: {}{rest}", count.max(1), people.join(", ")));
    }

    /// Begins a list of the absent users that this client knows (the server lists no accounts): requests their keys,
    /// which show whether messages can wait for them.
    fn list_absent(&mut self) {
        let (cx, online) = (&self.cx, &self.online);
        let absent = self.contacts.names().filter(|name| !online.contains(name) && **name != cx.me);
        let absent: Vec<Username> = absent.cloned().collect();
        self.contacts.list(absent, cx.now);
    }

    /// Shows the list of absent users once all keys have arrived.
    pub(super) fn tell_absent(&mut self) {
        let Some((absent, rest)) = self.contacts.listed() else { return };
        let described = |name: &Username| {
            let waits = match self.contacts.find(name) {
                Some(contact) if contact.has_mailbox() => ", messages wait",
                Some(contact) if contact.has_changed() || contact.key.is_some() => "",
                _ => ", no mailbox",
            };
            format!("{name} ({}{waits})", self.contacts.trust_word(name))
        };
        let count = absent.len() + rest;
        let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        let absent = absent.iter().map(described).collect::<Vec<_>>().join(", ");
        self.cx.notice(match count {
            0 => "you know no absent users".into(),
            _ => format!("{count} absent: {absent}{rest}"),
        });
    }

    fn trust(&mut self, name: Username) {
        let Some(name) = self.other(name) else { return };
        if self.contacts.decide(&mut self.cx, &name) {
            self.read_inbox(&name);
            self.outbox.send_backlogs(&mut self.cx, &mut self.contacts, [name]);
        }
    }

    fn send_file(&mut self, name: Username, path: String) {
        let Some(name) = self.other(name) else { return };
        if !self.online.contains(&name) {
            return self.cx.problem(format!("{name} is offline: files can be sent only to online users"));
        }
        if self.contacts.has_changed(&name) {
            return self.contacts.reconsider(&mut self.cx, &name);
        }
        self.files.send_file(&mut self.cx, name, path);
    }
}
