//! What the person types: every command, and what it answers.

use super::record::Record;
use super::{Effect, Session};
use crate::client::audience::Audience;
use crate::client::command::{self, Command, View};
use crate::client::entry::{Entry, Place, Source};
use crate::client::history::History;
use crate::client::text::{folded, sanitise};
use crate::client::trust::Trust;
use crate::crypto::envelope::Kind;
use crate::crypto::public::safety_number;
use crate::name::Username;
use std::time::Instant;

/// Messages that a search shows, the latest: more would push the rest out of sight.
const MAX_FOUND: usize = 100;

const ELSE: &str = "any other line goes to the current conversation; //TEXT sends /TEXT";

impl Session {
    pub(super) fn line(&mut self, line: &str, now: Instant) {
        let command = match command::parse(line) {
            Ok(command) => command,
            Err(problem) => return self.problem(sanitise(&problem)),
        };
        match command {
            Command::Nothing => {}
            Command::Say(text) => {
                let audience = match self.partner.clone() {
                    Some(partner) if self.has_room(&partner) => Audience::Room(partner),
                    Some(partner) => Audience::Private(partner),
                    None => Audience::Everyone,
                };
                self.send(Kind::Message, audience, text);
            }
            Command::Message(name, text) => {
                if let Some(name) = self.other(name) {
                    self.send(Kind::Message, Audience::Private(name), text);
                }
            }
            Command::Room(None) => self.notice(match &self.partner {
                Some(partner) => format!("you are talking to {partner} alone: /leave returns to everyone"),
                None => "you are talking to everyone: /room NAME opens a private room".into(),
            }),
            Command::Room(Some(name)) => self.enter(name),
            Command::Leave => self.leave(),
            Command::View(View::Everyone) => {
                self.go_to(None);
                self.notice("you are talking to everyone".into());
            }
            Command::View(View::Number(number)) => self.effects.push(Effect::View(number)),
            Command::View(View::With(name)) => self.view(name),
            Command::Mouse => self.effects.push(Effect::Mouse),
            Command::Users => self.tell_users(),
            Command::History(count) => self.tell_history(count, ""),
            Command::Search(text) => self.tell_history(MAX_FOUND, &sanitise(&text)),
            Command::Forget => self.forget(),
            Command::Ignore(name) => self.ignore(name),
            Command::Unignore(name) => self.unignore(name),
            Command::Notify(ring) => {
                self.quiet = !ring;
                let state = if self.quiet { "off" } else { "on" };
                self.notice(format!("notifications of private messages, mentions and files are {state}"));
            }
            Command::Clear => self.effects.push(Effect::Clear),
            Command::Help(topic) => self.help(topic.as_deref()),
            Command::Exit => self.exit(now),
            Command::Verify(name, compared) => self.verify(name, compared),
            Command::Trust(name) => self.trust(name),
            Command::SendFile(name, path) => {
                if let Some(name) = self.other(name) {
                    self.send_file(name, path);
                }
            }
            Command::AcceptFile(number) => self.accept_file(number),
            Command::RejectFile(number) => self.reject_file(number),
            Command::Cancel(number) => self.cancel_file(number),
            Command::Files => self.tell_files(),
            Command::Password(_) if self.changing => {
                self.problem("a password change is already in progress".into());
            }
            Command::Password(file) => {
                self.changing = true;
                self.effects.push(Effect::ChangePassword(file));
            }
        }
    }

    /// The name as it is spelled by its owner; `None`, and told, if it is one's own.
    fn other(&mut self, typed: Username) -> Option<Username> {
        let exact = self.online.contains(&typed) || self.peers.trust(&typed).is_some();
        let folded = typed.folded();
        let name = match exact {
            true => typed,
            false => {
                let mut known = self.online.iter().chain(self.peers.names());
                known.find(|name| name.folded() == folded).cloned().unwrap_or(typed)
            }
        };
        if name == self.me {
            self.problem("that is your own name".into());
            return None;
        }
        Some(name)
    }

    /// What is typed goes to `partner` from now on.
    pub(super) fn go_to(&mut self, partner: Option<Username>) {
        self.partner = partner.clone();
        self.effects.push(Effect::Enter(partner));
    }

    /// Goes to a conversation without a word to anybody, if there may be one.
    fn view(&mut self, name: Username) {
        let Some(name) = self.other(name) else { return };
        if !self.online.contains(&name) && self.peers.trust(&name).is_none() {
            return self.problem(format!("no user named {name} is known: /users lists online users"));
        }
        self.go_to(Some(name.clone()));
        self.notice(format!("you are talking to {name} alone; /view returns to everyone"));
    }

    fn enter(&mut self, name: Username) {
        let Some(name) = self.other(name) else { return };
        let had_room = self.has_room(&name);
        if had_room && self.partner.as_ref() == Some(&name) {
            return self.notice(format!("you are already in a room with {name}"));
        }
        // Before anything can be refused: what is typed next is meant for nobody else.
        self.go_to(Some(name.clone()));
        if self.peers.has_changed(&name) {
            return self.reconsider(&name);
        }
        if !had_room {
            self.rooms.insert(name.clone());
            self.send(Kind::RoomOpened, Audience::Room(name), String::new());
        }
    }

    /// The partner has been told.
    pub(super) fn entered(&mut self, name: &Username) {
        let trust = match self.peers.trust(name) {
            Some(Trust::Verified) => "their key is verified".to_string(),
            _ => format!("their key is not verified yet: /verify {name} shows how"),
        };
        self.notice(format!("you are in a private room with {name}; {trust}; /leave returns"));
    }

    fn leave(&mut self) {
        let Some(partner) = self.partner.clone() else {
            return self.notice("you are already talking to everyone; /exit leaves the messenger".into());
        };
        self.go_to(None);
        if self.rooms.remove(&partner) {
            self.send(Kind::RoomLeft, Audience::Room(partner.clone()), String::new());
            self.notice(format!("you have left the room with {partner}; you are talking to everyone"));
        } else {
            self.notice(format!("conversation with {partner} closed; you are talking to everyone"));
            self.effects.push(Effect::Leave(partner));
        }
    }

    /// The last `count` messages that hold `text`, in any letter case.
    fn tell_history(&mut self, count: usize, text: &str) {
        let wanted = folded(text);
        let found = self.history().map(|entry| (entry.time, entry.line()));
        let mut lines: Vec<_> = found.filter(|(_, line)| folded(line).contains(&wanted)).collect();
        let lines = lines.split_off(lines.len().saturating_sub(count));
        let with = if text.is_empty() { String::new() } else { format!(" with \"{text}\"") };
        let wanted = self.kept.as_ref().is_some_and(History::is_wanted);
        let session = if wanted { "this and earlier sessions" } else { "this session" };
        self.notice(match lines.len() {
            0 => format!("no messages{with} yet in {session}"),
            1 => format!("the last message{with} of {session}"),
            shown => format!("the last {shown} messages{with} of {session}"),
        });
        // Each with its own time.
        for (time, line) in lines {
            self.effects.push(Effect::Show(Entry::new(time, Source::Recalled, Place::Here, line)));
        }
    }

    /// Erases all messages, on the screen and on disk too.
    fn forget(&mut self) {
        self.history = Record::default();
        self.outbox.forget_failed();
        self.effects.push(Effect::Forget);
        let forgotten = "all messages are erased";
        match self.kept.as_mut().map_or(Ok(false), History::forget) {
            Ok(false) => self.notice(format!("{forgotten}; none were kept on disk")),
            Ok(true) => self.notice(format!("{forgotten}, here and on disk")),
            Err(error) => self.problem(format!("{forgotten} here, but not on disk: {error}")),
        }
        if self.kept.as_ref().is_some_and(History::is_kept) {
            self.notice("new messages are kept on disk again".into());
        }
    }

    fn help(&mut self, topic: Option<&str>) {
        // The last one stands in the last line.
        let matching = |usage: &&command::Usage| topic.map_or(usage.name != "/", |topic| usage.name == topic);
        let found: Vec<_> = command::COMMANDS.iter().filter(matching).collect();
        if let (Some(topic), true) = (topic, found.is_empty()) {
            return self
                .problem(format!("there is no command /{}: /help lists all commands", sanitise(topic)));
        }
        for usage in found {
            self.notice(format!("{:<20} {}", usage.usage, usage.explanation));
        }
        if topic.is_none() {
            self.notice(ELSE.into());
        }
    }

    fn ignore(&mut self, name: Option<Username>) {
        let Some(name) = name else {
            let names: Vec<&str> = self.ignored.names().map(Username::as_str).collect();
            return self.notice(match names.is_empty() {
                true => "no users are ignored: /ignore NAME hides the messages of NAME".into(),
                false => {
                    format!("ignored users: {}; /unignore NAME shows their messages again", names.join(", "))
                }
            });
        };
        let Some(name) = self.other(name) else { return };
        match self.ignored.set(&name, true) {
            Ok(()) => {
                let offers = if self.forget_offers(&name) { "; their file offers are removed" } else { "" };
                self.notice(format!(
                    "messages from {name} are no longer shown{offers}; /unignore {name} shows them again"
                ));
            }
            Err(error) => self.problem(format!("this cannot be saved: {error}")),
        }
    }

    fn unignore(&mut self, name: Username) {
        let Some(name) = self.other(name) else { return };
        if !self.ignored.contains(&name) {
            return self.notice(format!("{name} is not ignored"));
        }
        match self.ignored.set(&name, false) {
            Ok(()) => self.notice(format!("new messages from {name} are shown again")),
            Err(error) => self.problem(format!("this cannot be saved: {error}")),
        }
    }

    fn verify(&mut self, name: Username, compared: bool) {
        let Some(name) = self.other(name) else { return };
        if self.peers.fingerprint(&name).is_none() {
            self.verifying.insert(name.clone());
            return self.ask_for_keys([name]);
        }
        if !compared {
            return self.tell_safety_number(&name);
        }
        if self.peers.has_changed(&name) {
            return self.reconsider(&name);
        }
        if self.peers.get(&name).shown.is_none() {
            self.problem(format!("you have not seen the safety number with {name} yet: compare it first"));
            return self.tell_safety_number(&name);
        }
        if !self.is_about_the_shown_key(&name) {
            return;
        }
        match self.peers.mark_verified(&name) {
            Ok(()) => self.notice(format!("{name} is verified")),
            Err(error) => self.problem(format!("this cannot be saved: {error}")),
        }
    }

    pub(super) fn tell_safety_number(&mut self, name: &Username) {
        let Some(theirs) = self.peers.fingerprint(name) else {
            return self.problem(format!("no key of {name} is known"));
        };
        self.peers.get(name).shown = Some(theirs);
        let number = safety_number((&self.me, self.identity.public().fingerprint()), (name, theirs));
        self.notice(format!("safety number with {name} ({}):", self.trust_word(name)));
        let groups: Vec<&str> = number.split(' ').collect();
        for row in groups.chunks(4) {
            self.show(Source::SafetyNumber, Place::Here, format!("    {}", row.join(" ")));
        }
        let then = match self.peers.has_changed(name) {
            true => format!("/trust {name}"),
            false => format!("/verify {name} yes"),
        };
        self.notice(format!(
            "compare it with {name} in person or by phone, not in this chat: if all 60 digits match, type {then}; if not, \
             someone may be intercepting your messages"
        ));
    }

    /// Whether a decision about `name` is about the key whose number was shown last, if one was.
    fn is_about_the_shown_key(&mut self, name: &Username) -> bool {
        let (shown, current) = (self.peers.get(name).shown, self.peers.fingerprint(name));
        if shown.is_none() || shown == current {
            return true;
        }
        self.problem(format!(
            "the key of {name} has changed since its safety number was shown: compare again"
        ));
        self.tell_safety_number(name);
        false
    }

    fn trust(&mut self, name: Username) {
        let Some(name) = self.other(name) else { return };
        if !self.is_about_the_shown_key(&name) {
            return;
        }
        let new = if self.peers.trust(&name).is_some() { "new " } else { "" };
        match self.peers.accept(&name) {
            Ok(false) => {
                self.notice(format!("the key of {name} has not changed: there is nothing to accept"))
            }
            Ok(true) => self.notice(format!(
                "the {new}key of {name} is accepted; /verify {name} shows its safety number"
            )),
            Err(error) => return self.problem(format!("your decision cannot be saved: {error}")),
        }
        self.read_inbox(&name);
        self.pump([name]);
    }
}
