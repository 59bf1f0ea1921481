//! The current conversation, and the open rooms.
//!
//! Invariant: a typed line goes where the screen says, and after a refused change of the conversation nowhere.

use super::cx::Cx;
use super::event::Display;
use crate::client::audience::{Audience, Partners};
use crate::client::command::{self, Command, View};
use crate::client::entry::{Place, Source};
use crate::client::store::trust::Trust;
use crate::name::Username;
use std::collections::BTreeSet;

/// Notices about a partner who opens and leaves a room repeatedly: two visits, then they are counted.
const MAX_ROOM_NOTICES: u32 = 4;

/// Where a typed line goes.
#[derive(Default, Clone, PartialEq, Eq)]
pub enum Destination {
    /// To all online users.
    #[default]
    Everyone,
    /// To these users alone.
    With(Partners),
    /// To nobody: a change of the conversation was refused.
    Nowhere,
}

impl Destination {
    /// Where the lines after `line` go if it succeeds; `None` if it changes nothing. `parsed` is the line's command,
    /// and `view` the destination of a view by its number.
    pub fn after(
        line: &str,
        parsed: &Result<Command, String>,
        view: impl Fn(usize) -> Destination,
    ) -> Option<Destination> {
        match parsed {
            Ok(Command::Room(names)) if names.is_empty() => None,
            Ok(Command::Room(names) | Command::View(View::With(names))) => {
                Some(Partners::new(names.clone()).map_or(Destination::Nowhere, Destination::With))
            }
            Ok(Command::Leave | Command::View(View::Everyone)) => Some(Destination::Everyone),
            Ok(Command::View(View::Number(number))) => Some(view(*number)),
            Err(_) if command::may_lead(line) => Some(Destination::Nowhere),
            _ => None,
        }
    }
}

impl From<Option<Partners>> for Destination {
    fn from(partners: Option<Partners>) -> Destination {
        partners.map_or(Destination::Everyone, Destination::With)
    }
}

/// See the module.
#[derive(Default)]
pub struct Talk {
    destination: Destination,
    /// The rooms that this user has opened. The partner in a room of two is online and was notified of it.
    rooms: BTreeSet<Partners>,
    /// Whether notifications are off.
    is_quiet: bool,
}

impl Talk {
    /// Where a typed line goes.
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// The users that the conversation is with; `None` if it is with everyone or nobody.
    pub fn partners(&self) -> Option<&Partners> {
        if let Destination::With(partners) = &self.destination { Some(partners) } else { None }
    }

    /// The recipients of typed lines; `None` if they go nowhere.
    pub fn audience(&self) -> Option<Audience> {
        match self.destination.clone() {
            Destination::Everyone => Some(Audience::Everyone),
            Destination::With(partners) if self.has_room(&partners) => Some(Audience::Room(partners)),
            Destination::With(partners) => partners.only().cloned().map(Audience::Private),
            Destination::Nowhere => None,
        }
    }

    /// Makes typed lines go to `partners`; `None` is everyone.
    pub fn go_to(&mut self, cx: &mut Cx, partners: Option<Partners>) {
        self.destination = partners.clone().into();
        cx.display(Display::Enter(partners));
    }

    /// Begins a change of the conversation: typed lines go nowhere until it succeeds.
    pub fn go_nowhere(&mut self) {
        self.destination = Destination::Nowhere;
    }

    /// Whether there is a room with `partners`.
    pub fn has_room(&self, partners: &Partners) -> bool {
        self.rooms.contains(partners)
    }

    /// Opens a room; false if it was open. PROTOCOL#open-room.
    pub fn open(&mut self, partners: Partners) -> bool {
        self.rooms.insert(partners)
    }

    /// Reports that `name` was notified of the room.
    pub fn opened(&self, cx: &mut Cx, name: &Username, trust: Option<Trust>) {
        let trust = match trust {
            Some(Trust::Verified) => "their key is verified".to_string(),
            _ => format!("their key is not verified yet: /verify {name} shows how"),
        };
        cx.notice(format!("you are in a private room with {name}; {trust}; /leave returns"));
    }

    /// Closes the room with `partners`. False if there was none.
    pub fn close(&mut self, partners: &Partners) -> bool {
        self.rooms.remove(partners)
    }

    /// Closes the room of two with `with`, if there is one, because one of the two sessions has ended; notifies the
    /// user.
    pub fn close_and_tell(&mut self, cx: &mut Cx, with: &Username) {
        if self.close(&with.clone().into()) {
            let text = format!(
                "the room with {with} is closed: what you type here is sent as private messages; /room {with} opens \
                 it again"
            );
            notice_in_room(cx, with, text);
        }
    }

    /// Closes every room of two, because the user's session has ended.
    pub fn close_all(&mut self, cx: &mut Cx) {
        let rooms = self.rooms.clone();
        rooms.iter().filter_map(Partners::only).for_each(|with| self.close_and_tell(cx, with));
    }

    /// Handles that `from` has opened or joined a room.
    pub fn partner_opened(&self, cx: &mut Cx, from: &Username) {
        if self.has_room(&from.clone().into()) {
            return notice_in_room(cx, from, format!("{from} has joined the room"));
        }
        let text = format!("{from} has opened a private room with you: /room {from} joins it");
        cx.tell_about(from, "room", MAX_ROOM_NOTICES, (Source::Notice, Place::Here, text));
        self.alert(cx, from, Place::With(from.clone().into()));
    }

    /// Handles that `from` has left a room.
    pub fn partner_left(&self, cx: &mut Cx, from: &Username) {
        notice_in_room(cx, from, format!("{from} has left the room"));
    }

    /// Turns notifications on or off.
    pub fn notify(&mut self, cx: &mut Cx, is_on: bool) {
        self.is_quiet = !is_on;
        let state = if is_on { "on" } else { "off" };
        cx.notice(format!("notifications of private messages, mentions and files are {state}"));
    }

    /// Notifies the user of `from`, unless notifications are off.
    pub fn alert(&self, cx: &mut Cx, from: &Username, place: Place) {
        if !self.is_quiet {
            cx.display(Display::Alert(from.clone(), place));
        }
    }
}

fn notice_in_room(cx: &mut Cx, with: &Username, text: String) {
    cx.tell_about(with, "room", MAX_ROOM_NOTICES, (Source::Notice, Place::With(with.clone().into()), text));
}
