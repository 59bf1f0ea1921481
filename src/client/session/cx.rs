//! The context that every part of a session gets with an event: the user's account, the clocks, and the effects.
//!
//! Invariant: every line for the user goes through here. Notices that others can cause are counted, and ignored users
//! cause none, except notices about files.

use super::account::Account;
use super::event::{Action, Display, Effect, Exit};
use super::notices::Notices;
use crate::client::entry::{Entry, Place, Source};
use crate::client::store::trust::Ignored;
use crate::name::Username;
use crate::protocol::ClientMessage;
use std::time::Instant;

/// The most users that a notice names; for more, it gives the number.
pub const MAX_NAMED: usize = 5;

/// The context of one event.
pub struct Cx {
    /// The user's own name.
    pub me: Username,
    /// The user's own keys.
    pub account: Account,
    /// The wall clock, in milliseconds since 1970.
    pub now: u64,
    /// The monotonic clock.
    pub instant: Instant,
    /// Users whose messages are not shown.
    pub ignored: Ignored,
    /// The effects of the event so far, in order.
    pub effects: Vec<Effect>,
    /// How the client ends, once that is known. Later events change nothing.
    exit: Option<Exit>,
    notices: Notices,
}

impl Cx {
    /// The context before the first event.
    pub fn new(me: Username, account: Account, ignored: Ignored, instant: Instant) -> Cx {
        let (effects, notices) = (Vec::new(), Notices::default());
        Cx { me, account, now: 0, instant, ignored, effects, exit: None, notices }
    }

    /// Adds an action for the backend.
    pub fn act(&mut self, action: Action) {
        self.effects.push(Effect::Do(action));
    }

    /// Adds a display for the front end.
    pub fn display(&mut self, display: Display) {
        self.effects.push(Effect::Show(display));
    }

    /// Ends the client, unless it has ended. [`take_effects`](Self::take_effects) adds the warnings.
    pub fn quit(&mut self, status: u8, waits: bool) {
        self.exit.get_or_insert(Exit { status, warnings: Vec::new(), waits });
    }

    /// Whether the client has ended.
    pub fn is_over(&self) -> bool {
        self.exit.is_some()
    }

    /// Queues a message to the server.
    pub fn send(&mut self, message: ClientMessage) {
        self.act(Action::Send(message));
    }

    /// Shows a line. `text` is sanitised.
    pub fn show(&mut self, source: Source, place: Place, text: String) {
        self.display(Display::Entry(Entry::new(self.now, source, place, text)));
    }

    /// Shows a notice.
    pub fn notice(&mut self, text: impl Into<String>) {
        self.show(Source::Notice, Place::Here, text.into());
    }

    /// Shows a notice about `name`.
    pub fn notice_about(&mut self, name: &Username, text: String) {
        self.show(Source::Notice, Place::About(name.clone()), text);
    }

    /// Shows a problem, and what to do.
    pub fn problem(&mut self, text: impl Into<String>) {
        self.show(Source::Problem, Place::Here, text.into());
    }

    /// Shows a problem with `name` that others can cause, or counts it. Problems with the same `topic` are the same.
    pub fn problem_about(&mut self, name: &Username, topic: &str, text: String) {
        self.tell_about(name, topic, 1, (Source::Problem, Place::Here, text));
    }

    /// Shows a problem that concerns several users or none, or counts it. Problems with the same `topic` are the same.
    pub fn problem_about_some(&mut self, topic: &str, text: String) {
        let entry = Entry::new(self.now, Source::Problem, Place::Here, text);
        self.tell(("*".into(), topic.into()), 1, entry);
    }

    /// Shows a notice about `name` up to `limit` times, then counts it. PROTOCOL#notices.
    pub fn tell_about(
        &mut self,
        name: &Username,
        topic: &str,
        limit: u32,
        (source, place, text): (Source, Place, String),
    ) {
        if !self.ignored.contains(name) {
            self.tell((name.folded(), topic.into()), limit, Entry::new(self.now, source, place, text));
        }
    }

    /// Shows a problem with what the server sent, or counts it. PROTOCOL#notices.
    pub fn server_problem(&mut self, text: impl Into<String>) {
        let text = text.into();
        let entry = Entry::new(self.now, Source::Problem, Place::Here, text.clone());
        self.tell((String::new(), text), 1, entry);
    }

    /// Reports a message that the server must not send now.
    pub fn out_of_place(&mut self) {
        self.server_problem("unexpected message from the server");
    }

    fn tell(&mut self, key: (String, String), limit: u32, entry: Entry) {
        if self.notices.admits(key, limit, &entry, self.instant) {
            self.display(Display::Entry(entry));
        }
    }

    /// Whether this number of lines about users who come and go may be shown now; if so, they count as shown.
    pub fn takes_presence(&mut self, lines: usize) -> bool {
        self.notices.presence.take(lines)
    }

    /// Reports once in a session that a later version has sent something unknown. PROTOCOL#later-versions.
    pub fn tell_later(&mut self, what: &str) {
        if !std::mem::replace(&mut self.notices.later, true) {
            self.notice(format!("{what}; a newer client may show it"));
        }
    }

    /// Shows counted notices when it is time, and all of them at the end.
    pub fn tell_counted(&mut self, last: bool) {
        for (source, place, text) in self.notices.counted(self.instant, last) {
            self.show(source, place, text);
        }
    }

    /// Takes the effects of the event. At the end, counted notices follow, then [`Effect::Quit`] with all problems.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        if let Some(Exit { status, waits, .. }) = self.exit {
            self.tell_counted(true);
            let problem = |effect: &Effect| match effect {
                Effect::Show(Display::Entry(entry)) if entry.source == Source::Problem => {
                    Some(entry.text.clone())
                }
                _ => None,
            };
            let warnings = self.effects.iter().filter_map(problem).collect();
            self.effects.push(Effect::Quit(Exit { status, warnings, waits }));
        }
        std::mem::take(&mut self.effects)
    }
}
