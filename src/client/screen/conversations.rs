//! The views: one for everyone, and one for each partner.
//!
//! Invariant: what a sender signed decides the view (see [`Place`]). The first view is that of everyone, and stays.
//! Entries, bytes and views are bounded, and a flood in one view removes nothing from another until all are large. A
//! half-typed line belongs to its view: changing the view never sends it to another audience. Pure: time and day come
//! from the caller. Specification: MANUAL#the-screen.

use crate::client::audience::Partners;
use crate::client::entry::{Entry, Place, SendState, Source, away};
use crate::client::store::trust::Trust;
use crate::client::terminal::editor::Editor;
use std::collections::VecDeque;

/// Entries kept in one view: more than a user reads again.
const MAX_ENTRIES: usize = 2000;
/// Bytes of text in all views together: over 100 of the longest messages (32 KiB, each byte shown as U+FFFD).
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// The most views: more partners than a user follows, and few enough for a linear search.
const MAX_VIEWS: usize = 50;
/// The text on the rule where reading stopped.
const NEW: &str = "new";

/// One view.
#[derive(Default)]
pub struct Conversation {
    /// The partners; `None` for everyone.
    pub with: Option<Partners>,
    /// At most 2,000, the oldest first.
    pub entries: VecDeque<Entry>,
    /// Bytes of the texts in `entries`.
    bytes: usize,
    /// The line being typed in this view, and the lines typed before.
    pub editor: Editor,
    /// Rows scrolled up, counted from the newest entry without the last `newer`.
    pub scroll: usize,
    /// Entries that arrived since the last frame while scrolled up: the view must not move.
    pub newer: usize,
    /// Messages that arrived while scrolled up.
    pub unseen: usize,
    /// Messages that arrived while another view was shown.
    pub unread: usize,
    /// Whether the place where reading stopped is marked.
    marked: bool,
    /// The last time that it was shown or got an entry, as a count of such events.
    touched: u64,
    /// Whether the user has visited this view, or has written to the partner from elsewhere.
    visited: bool,
    /// The best trust in the partner's key so far.
    trust: Option<Trust>,
}

impl Conversation {
    fn new(with: Option<Partners>) -> Conversation {
        Conversation { with, editor: Editor::for_messages(), ..Conversation::default() }
    }

    /// The reasons to keep it, most important first: a stranger's messages must not close a friend's view.
    fn worth(&self) -> (bool, bool, bool, bool, u64) {
        // A user can invent any number of rooms: one of several counts only after a visit.
        let is_chosen = self.visited || self.with.as_ref().is_none_or(|with| with.only().is_some());
        let trust = self.trust.filter(|_| is_chosen);
        let known = self.visited || trust >= Some(Trust::Known);
        let verified = trust == Some(Trust::Verified);
        (!self.editor.is_empty(), verified, known, self.unread > 0, self.touched)
    }

    fn push(&mut self, entry: Entry) {
        if self.entries.len() >= MAX_ENTRIES {
            self.forget_oldest();
        }
        self.bytes += weight(&entry);
        self.entries.push_back(entry);
        self.newer += usize::from(self.scroll > 0);
    }

    fn clear(&mut self) {
        self.entries.clear();
        (self.bytes, self.scroll, self.newer, self.unseen, self.unread) = (0, 0, 0, 0, 0);
    }

    fn forget_oldest(&mut self) {
        self.bytes -= self.entries.pop_front().as_ref().map_or(0, weight);
    }

    fn forget_newest(&mut self) {
        self.bytes -= self.entries.pop_back().as_ref().map_or(0, weight);
        self.newer = self.newer.saturating_sub(1);
    }
}

/// The bytes of an entry's text, and of the names in a room of several. A rule has none: it may be removed at any time.
fn weight(entry: &Entry) -> usize {
    let names = match &entry.source {
        Source::Rule => return 0,
        // As recipients and as a place.
        Source::User { to, .. } => 2 * to.recipients().get(1..).map_or(0, size_of_val),
        _ => 0,
    };
    entry.text.len() + names
}

/// All views, and the one that is shown.
pub struct Conversations {
    views: Vec<Conversation>,
    current: usize,
    touches: u64,
    closed: Closed,
    /// Whether the window has lost the focus.
    pub away: bool,
}

/// Views that were closed for lack of room since the current notice about that began.
#[derive(Default)]
struct Closed {
    views: usize,
    unread: usize,
    /// The notice as it is shown.
    text: String,
    /// The views that are not reported yet, each with its number of unread messages.
    latest: Vec<(Partners, usize)>,
}

impl Default for Conversations {
    fn default() -> Conversations {
        let views = vec![Conversation::new(None)];
        Conversations { views, current: 0, touches: 0, closed: Closed::default(), away: false }
    }
}

impl Conversations {
    /// All views: everyone, then the partners in the order in which they began.
    pub fn all(&self) -> &[Conversation] {
        &self.views
    }

    /// The index of the view that is shown.
    pub fn index(&self) -> usize {
        self.current
    }

    /// The view that is shown.
    pub fn current(&self) -> &Conversation {
        &self.views[self.current]
    }

    /// The view that is shown.
    pub fn current_mut(&mut self) -> &mut Conversation {
        &mut self.views[self.current]
    }

    /// Whether the user sees what is shown at `place`.
    pub fn in_view(&self, place: &Place) -> bool {
        let here = self.find(place).is_some_and(|view| view == self.current);
        here && !self.away && self.current().scroll == 0
    }

    /// Shows the view with `with`; opens it if needed.
    pub fn enter(&mut self, with: Option<Partners>) {
        let place = with.clone().map_or(Place::Everyone, Place::With);
        self.current = self.find(&place).unwrap_or_else(|| self.open(with));
        self.touch(self.current);
        let view = self.current_mut();
        (view.unread, view.visited) = (0, true);
    }

    /// Moves the text that was typed at `from` after the command that has led here.
    pub fn carry(&mut self, from: &Option<Partners>) {
        let former = self.views.iter().position(|view| view.with == *from);
        if let Some(former) = former.filter(|former| *former != self.current)
            && let Ok([former, current]) = self.views.get_disjoint_mut([former, self.current])
        {
            former.editor.hand_over(&mut current.editor);
        }
    }

    /// Closes the conversation with `with`, unless it is shown or has a half-typed line.
    pub fn close(&mut self, with: &Partners) {
        let ends = |at: &usize| *at != self.current && self.views[*at].editor.is_empty();
        if let Some(at) = self.find(&Place::With(with.clone())).filter(ends) {
            self.remove(at);
        }
    }

    fn remove(&mut self, at: usize) {
        self.views.remove(at);
        self.current -= usize::from(at < self.current);
    }

    /// Clears the view that is shown.
    pub fn clear(&mut self) {
        self.current_mut().clear();
    }

    /// Clears all views.
    pub fn forget(&mut self) {
        self.views.iter_mut().for_each(Conversation::clear);
    }

    /// Adds an entry. `day` names the day of a time in milliseconds.
    pub fn show(&mut self, entry: Entry, day: &dyn Fn(u64) -> String) {
        let said = entry.source.from().is_some();
        if let Place::About(name) = &entry.place {
            let with = self.views.iter().filter_map(|view| view.with.clone());
            for with in with.filter(|with| with.names().contains(name)).collect::<Vec<_>>() {
                self.show(Entry { place: Place::With(with), ..entry.clone() }, day);
            }
        }
        if let Some(was) = self.replace(&entry) {
            let problem = entry.sending.as_ref().and_then(|(_, state)| state.problem());
            if let Some(why) = problem.filter(|_| was == SendState::Taken) {
                // Mark it in its own view, where it may be old.
                let notice = Entry::new(entry.time, Source::Problem, Place::Here, why.into());
                self.append(self.current, notice, day);
            }
            return;
        }
        let view = match (self.find(&entry.place), &entry.place) {
            (Some(view), _) => view,
            (None, Place::With(with)) if said => self.open(Some(with.clone())),
            (None, _) => self.current,
        };
        // A message sent from another view is shown there, too, because it may fail.
        let new = entry
            .sending
            .as_ref()
            .is_some_and(|(_, state)| !matches!(state, SendState::Taken | SendState::Kept(_)));
        if new && view != self.current {
            self.append(self.current, entry.clone(), day);
        }
        self.append(view, entry, day);
        self.report_closed(day);
    }

    /// Adds messages that waited while the user was away, and below them in each view a rule with their number.
    pub fn show_mail(&mut self, mail: Vec<Entry>, day: &dyn Fn(u64) -> String) {
        let mut counts: Vec<(Place, usize)> = Vec::new();
        for entry in mail {
            match counts.iter_mut().find(|(place, _)| *place == entry.place) {
                Some((_, count)) => *count += 1,
                None => counts.push((entry.place.clone(), 1)),
            }
            self.show(entry, day);
        }
        let mut hidden = Vec::new();
        for (place, count) in counts {
            let Some(at) = self.find(&place) else { continue };
            if let Some(time) = self.views[at].entries.back().map(|last| last.time) {
                self.views[at].push(rule(time, away(count)));
            }
            if let (Place::With(with), true) = (place, at != self.current) {
                hidden.push(format!("{with} ({count})"));
            }
        }
        if let (false, Some(time)) = (hidden.is_empty(), self.views.iter().filter_map(last_time).max()) {
            let text = format!("messages have waited for you: {}; /view NAME shows them", hidden.join(" · "));
            self.append(self.current, Entry::new(time, Source::Notice, Place::Here, text), day);
        }
    }

    /// The first hidden conversation with unread messages, and their number; broadcasts do not count.
    pub fn unread(&self) -> Option<(Partners, usize)> {
        let unread = self.views.iter().filter(|view| view.unread > 0);
        unread.filter_map(|view| Some((view.with.clone()?, view.unread))).next()
    }

    /// Reports the closed views in one line, which is updated as long as nothing else is shown below it.
    fn report_closed(&mut self, day: &dyn Fn(u64) -> String) {
        let closed = std::mem::take(&mut self.closed.latest);
        let (Some((with, _)), Some(time)) = (closed.last(), self.views.iter().filter_map(last_time).max())
        else {
            return;
        };
        let last = self.current().entries.back();
        if last.is_some_and(|last| last.source == Source::Problem && last.text == self.closed.text) {
            self.current_mut().forget_newest();
        } else {
            (self.closed.views, self.closed.unread) = (0, 0);
        }
        self.closed.views += closed.len();
        self.closed.unread += closed.iter().map(|(_, unread)| unread).sum::<usize>();
        let Closed { views, unread, .. } = self.closed;
        let (were, messages) = (
            if views == 1 { "view was" } else { "views were" },
            if unread == 1 { "message" } else { "messages" },
        );
        self.closed.text = format!(
            "{views} {were} closed to make room, the last one of {with}, with {unread} unread {messages}: \
             /history shows them"
        );
        let text = self.closed.text.clone();
        self.append(self.current, Entry::new(time, Source::Problem, Place::Here, text), day);
    }

    /// Shows the messages of earlier sessions, the oldest first, as read.
    pub fn begin_with(&mut self, earlier: Vec<Entry>, day: &dyn Fn(u64) -> String) {
        for entry in earlier {
            let at = match (self.find(&entry.place), &entry.place) {
                (None, Place::With(with)) => self.open(Some(with.clone())),
                (at, _) => at.unwrap_or(0),
            };
            let view = &mut self.views[at];
            let today = day(entry.time);
            if view.entries.back().is_none_or(|last| day(last.time) != today) {
                view.push(rule(entry.time, today));
            }
            view.push(entry);
        }
        for view in &mut self.views {
            if let Some(time) = view.entries.back().map(|last| last.time) {
                view.push(rule(time, "earlier sessions".into()));
            }
        }
    }

    fn append(&mut self, at: usize, entry: Entry, day: &dyn Fn(u64) -> String) {
        // Own messages count as read.
        let said = entry.source.from().is_some() && entry.sending.is_none();
        let (hidden, away) = (at != self.current, self.away);
        let view = &mut self.views[at];
        let today = day(entry.time);
        if view.entries.back().is_some_and(|last| day(last.time) != today) {
            view.push(rule(entry.time, today));
        }
        if said && (hidden || away || view.scroll > 0) && !std::mem::replace(&mut view.marked, true) {
            view.entries.retain(|entry| entry.source != Source::Rule || entry.text != NEW);
            view.push(rule(entry.time, NEW.into()));
        }
        view.unread += usize::from(said && hidden);
        view.visited |= entry.sending.is_some();
        view.trust = view.trust.max(entry.trust);
        view.unseen += usize::from(said && view.scroll > 0);
        view.push(entry);
        self.touch(at);
        while self.views.iter().map(|view| view.bytes).sum::<usize>() > MAX_BYTES
            && let Some(largest) = self.views.iter_mut().max_by_key(|view| view.bytes)
        {
            largest.forget_oldest();
        }
    }

    /// Updates the own message with the same number, and returns its former state.
    fn replace(&mut self, entry: &Entry) -> Option<SendState> {
        let number = entry.number()?;
        let mut former = None;
        for view in &mut self.views {
            if let Some(old) = view.entries.iter_mut().rev().find(|entry| entry.number() == Some(number)) {
                former = std::mem::replace(old, entry.clone()).sending;
            }
        }
        former.map(|(_, state)| state)
    }

    /// Removes the oldest failed message that is `at_hand` to be resent from the view that is shown. Returns its
    /// number; `None` if there is none. Repeated calls return the messages in the order in which they were typed.
    pub fn take_failed(&mut self, at_hand: impl Fn(u64) -> bool) -> Option<u64> {
        let failed = |entry: &Entry| {
            entry.sending.as_ref().and_then(|(number, state)| state.problem().map(|_| *number))
        };
        let number = self.current().entries.iter().filter_map(failed).find(|number| at_hand(*number))?;
        for view in &mut self.views {
            if let Some(at) = view.entries.iter().rposition(|entry| entry.number() == Some(number)) {
                view.bytes -= view.entries.remove(at).as_ref().map_or(0, weight);
            }
        }
        Some(number)
    }

    /// Stores how far up the last frame really was.
    pub fn drawn(&mut self, scroll: usize) {
        let away = self.away;
        let view = self.current_mut();
        (view.scroll, view.newer) = (scroll, 0);
        if scroll == 0 {
            view.unseen = 0;
            view.marked &= away;
        }
    }

    fn find(&self, place: &Place) -> Option<usize> {
        match place {
            Place::Everyone | Place::About(_) => Some(0),
            Place::Here => Some(self.current),
            Place::With(with) => self.views.iter().position(|view| view.with.as_ref() == Some(with)),
        }
    }

    /// Makes room by closing the least important view (see [`Conversation::worth`]), which is reported.
    fn open(&mut self, with: Option<Partners>) -> usize {
        if self.views.len() >= MAX_VIEWS {
            let others = self.views.iter().enumerate().skip(1).filter(|(at, _)| *at != self.current);
            if let Some((at, _)) = others.min_by_key(|(_, view)| view.worth()) {
                let Conversation { with, unread, .. } = &self.views[at];
                self.closed.latest.extend(with.clone().map(|with| (with, *unread)));
                self.remove(at);
            }
        }
        self.views.push(Conversation::new(with));
        self.touch(self.views.len() - 1);
        self.views.len() - 1
    }

    fn touch(&mut self, at: usize) {
        self.touches += 1;
        self.views[at].touched = self.touches;
    }
}

fn last_time(view: &Conversation) -> Option<u64> {
    view.entries.back().map(|last| last.time)
}

fn rule(time: u64, text: String) -> Entry {
    Entry::new(time, Source::Rule, Place::Here, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::audience::Audience;
    use crate::client::terminal::input::Key;
    use crate::name::Username;

    fn name(text: &str) -> Username {
        text.parse().expect("a valid name")
    }

    fn received(from: &str, text: &str) -> Entry {
        let source = Source::User { from: name(from), to: Audience::Private(name("me")) };
        let place = source.place(&name("me"));
        Entry::new(0, source, place, text.into())
    }

    fn notice(place: Place, text: &str) -> Entry {
        Entry::new(0, Source::Notice, place, text.into())
    }

    fn own(number: u64, state: SendState, text: &str) -> Entry {
        let entry = Entry::new(
            0,
            Source::User { from: name("me"), to: Audience::Everyone },
            Place::Everyone,
            text.into(),
        );
        Entry { sending: Some((number, state)), ..entry }
    }

    fn take(views: &mut Conversations, entry: Entry) {
        views.show(entry, &|ms| format!("day {}", ms / 100));
    }

    fn texts(view: &Conversation) -> Vec<&str> {
        view.entries.iter().map(|entry| entry.text.as_str()).collect()
    }

    #[test]
    fn message_goes_to_the_view_its_sender_meant_and_is_counted() {
        let mut views = Conversations::default();
        take(&mut views, notice(Place::With(name("bob").into()), "bob has left the room"));
        take(&mut views, received("bob", "one"));
        take(&mut views, received("carol", "two"));
        take(&mut views, received("bob", "three"));
        take(&mut views, notice(Place::With(name("bob").into()), "bob has joined the room"));
        take(&mut views, notice(Place::About(name("bob")), "bob has left"));
        take(&mut views, notice(Place::About(name("dave")), "dave has left"));
        let all: Vec<Vec<&str>> = views.all().iter().map(texts).collect();
        assert_eq!(
            all,
            [
                vec!["bob has left the room", "bob has left", "dave has left"],
                vec!["new", "one", "three", "bob has joined the room", "bob has left"],
                vec!["new", "two"],
            ],
            "a notice opens no view"
        );
        assert_eq!(views.all().iter().map(|view| view.unread).collect::<Vec<_>>(), [0, 2, 1]);
        views.enter(Some(name("bob").into()));
        views.drawn(0);
        assert_eq!(views.all().iter().map(|view| view.unread).collect::<Vec<_>>(), [0, 0, 1]);
        take(&mut views, received("bob", "four"));
        assert_eq!(texts(views.current()).last(), Some(&"four"));
        assert_eq!(views.current().unread, 0);
        take(&mut views, notice(Place::Here, "an answer"));
        assert_eq!(texts(views.current()).last(), Some(&"an answer"));
    }

    #[test]
    fn only_the_visible_end_of_a_view_counts_as_seen() {
        let mut views = Conversations::default();
        let bob = Place::With(name("bob").into());
        assert!(views.in_view(&Place::Everyone) && views.in_view(&Place::Here) && !views.in_view(&bob));
        views.enter(Some(name("bob").into()));
        assert!(!views.in_view(&Place::Everyone) && views.in_view(&bob));
        views.current_mut().scroll = 1;
        assert!(!views.in_view(&bob));
        views.current_mut().scroll = 0;
        views.away = true;
        assert!(!views.in_view(&bob));
    }

    #[test]
    fn half_typed_line_stays_in_its_view_unless_after_a_command() {
        let mut views = Conversations::default();
        let write = |views: &mut Conversations, text: &str| {
            views.current_mut().editor.key(&Key::Paste(text.into()));
        };
        write(&mut views, "for all");
        views.enter(Some(name("bob").into()));
        assert!(views.current().editor.is_empty());
        write(&mut views, "for bob");
        views.enter(None);
        assert_eq!(views.current().editor.text(), "for all");
        views.carry(&Some(name("bob").into()));
        assert_eq!(views.current().editor.text(), "for all", "no half-typed line is lost");
        views.enter(Some(name("carol").into()));
        views.carry(&None);
        assert_eq!(views.current().editor.text(), "for all");
        views.enter(None);
        assert!(views.current().editor.is_empty());
        views.close(&name("bob").into());
        assert_eq!(views.all().len(), 3, "it has a half-typed line");
        views.enter(Some(name("carol").into()));
        write(&mut views, "!");
        views.current_mut().editor.key(&Key::Ctrl('u'));
        views.enter(None);
        views.close(&name("carol").into());
        assert_eq!(views.all().len(), 2);
    }

    #[test]
    fn own_message_stays_one_entry_in_every_state() {
        let mut views = Conversations::default();
        take(&mut views, own(1, SendState::InFlight, "one"));
        take(&mut views, own(2, SendState::InFlight, "two"));
        take(&mut views, own(1, SendState::Taken, "one"));
        take(&mut views, own(2, SendState::Failed("why".into()), "two"));
        take(&mut views, received("bob", "new"));
        let states: Vec<_> = views.current().entries.iter().map(|entry| entry.sending.clone()).collect();
        assert_eq!(states, [Some((1, SendState::Taken)), Some((2, SendState::Failed("why".into())))]);
        assert_eq!(views.take_failed(|_| true), Some(2));
        assert_eq!((views.take_failed(|_| true), views.current().entries.len()), (None, 1));
        // Sent from here to another view: shown in both.
        let elsewhere = |state| Entry { place: Place::With(name("bob").into()), ..own(3, state, "three") };
        take(&mut views, elsewhere(SendState::InFlight));
        take(&mut views, elsewhere(SendState::Failed("why".into())));
        let failed =
            |view: &Conversation| view.entries.iter().filter(|entry| entry.number() == Some(3)).count();
        assert_eq!(views.all().iter().map(failed).collect::<Vec<_>>(), [1, 1]);
        // A message that fails after it was accepted is also reported in the current view.
        let problems = |views: &Conversations| {
            let is_problem = |entry: &&Entry| entry.source == Source::Problem;
            views.current().entries.iter().filter(is_problem).count()
        };
        let lost = |state| Entry { place: Place::With(name("bob").into()), ..own(4, state, "four") };
        take(&mut views, lost(SendState::Taken));
        assert_eq!(problems(&views), 0);
        take(&mut views, lost(SendState::Failed("why".into())));
        assert_eq!(problems(&views), 1);
        // The outcome is shown at the message and nowhere else.
        views.clear();
        views.enter(Some(name("carol").into()));
        take(&mut views, elsewhere(SendState::Failed("why again".into())));
        assert_eq!(views.all().iter().map(failed).collect::<Vec<_>>(), [0, 1, 0]);
        views.enter(Some(name("bob").into()));
        assert_eq!(views.take_failed(|_| true), Some(3));
        assert_eq!(views.all().iter().map(failed).collect::<Vec<_>>(), [0, 0, 0]);
        take(&mut views, received("dave", "new"));
        views.forget();
        assert!(views.all().iter().all(|view| view.entries.is_empty() && view.unread + view.bytes == 0));
    }

    #[test]
    fn flood_is_bounded_and_removes_nothing_from_other_views() {
        let mut views = Conversations::default();
        take(&mut views, received("bob", "precious"));
        let text = "x".repeat(20_000);
        for n in 0..10_000 {
            take(&mut views, received("mallory", &format!("{n} {text}")));
        }
        assert_eq!(texts(&views.all()[1]), ["new", "precious"]);
        assert!(views.all()[2].entries.len() <= MAX_ENTRIES);
        assert!(views.all().iter().map(|view| view.bytes).sum::<usize>() <= MAX_BYTES);
        let counted = |view: &Conversation| view.entries.iter().map(weight).sum::<usize>();
        assert!(views.all().iter().all(|view| counted(view) == view.bytes));
        views.enter(Some(name("bob").into()));
        for n in 0..500 {
            take(&mut views, received(&format!("mallory{n}"), "hi"));
        }
        assert_eq!(views.all().len(), MAX_VIEWS);
        assert_eq!(views.current().with, Some(name("bob").into()));
        views.enter(None);
        take(&mut views, received("one-more", "hi"));
        assert!(
            views.all().iter().any(|view| view.with == Some(name("bob").into())),
            "visited views stay longest"
        );
    }

    #[test]
    fn available_failed_messages_are_taken_in_order() {
        let mut views = Conversations::default();
        for number in 1..5 {
            take(&mut views, own(number, SendState::Failed("why".into()), "text"));
        }
        assert_eq!(views.take_failed(|number| number != 1), Some(2));
        assert_eq!(views.take_failed(|number| number != 1), Some(3));
        assert_eq!(views.take_failed(|number| number != 1), Some(4));
        assert_eq!(views.take_failed(|number| number != 1), None);
        assert_eq!(texts(views.current()), ["text"], "a message that cannot be resent stays visible");
    }

    #[test]
    fn strangers_close_no_friends_view_and_it_is_reported() {
        let mut views = Conversations::default();
        let known = |from: &str, trust| Entry { trust: Some(trust), ..received(from, "precious") };
        take(&mut views, known("verified", Trust::Verified));
        take(&mut views, known("known", Trust::Known));
        let answered =
            Entry { place: Place::With(name("answered").into()), ..own(1, SendState::InFlight, "hi") };
        take(&mut views, received("answered", "precious"));
        take(&mut views, answered);
        let reports = |views: &Conversations| {
            let is_report = |entry: &&Entry| entry.source == Source::Problem;
            let reports = views.current().entries.iter().filter(is_report);
            reports.map(|entry| entry.text.clone()).collect::<Vec<_>>()
        };
        for n in 0..46 {
            take(&mut views, known(&format!("stranger{n}"), Trust::New));
        }
        assert!(reports(&views).is_empty());
        // A stranger without unread messages goes before one with some.
        views.enter(Some(name("stranger7").into()));
        views.enter(None);
        views.views.iter_mut().for_each(|view| view.visited &= view.trust != Some(Trust::New));
        for n in 46..1000 {
            take(&mut views, known(&format!("stranger{n}"), Trust::New));
            if n == 46 {
                let first =
                    "1 view was closed to make room, the last one of stranger7, with 0 unread messages";
                assert!(reports(&views)[0].starts_with(first), "{:?}", reports(&views));
            }
        }
        let told = reports(&views);
        assert_eq!(told.len(), 1, "one line, updated");
        let text = "954 views were closed to make room, the last one of stranger953, with 953";
        assert!(told[0].starts_with(text), "{told:?}");
        for friend in ["verified", "known", "answered"] {
            let view =
                views.all().iter().find(|view| view.with == Some(name(friend).into())).expect("still there");
            assert!(view.unread == 1 && texts(view).contains(&"precious"), "{friend}");
        }
        // When something else is shown below it, a new notice begins.
        take(&mut views, notice(Place::Here, "something else"));
        take(&mut views, received("another", "hi"));
        assert!(reports(&views)[1].starts_with("1 view was closed"), "{:?}", reports(&views));
    }

    #[test]
    fn invented_rooms_close_no_friends_view_and_their_names_count() {
        let mut views = Conversations::default();
        let from_friend = |to: Audience| {
            let source = Source::User { from: name("friend"), to };
            let place = source.place(&name("me"));
            Entry { trust: Some(Trust::Verified), ..Entry::new(0, source, place, String::new()) }
        };
        take(&mut views, from_friend(Audience::Private(name("me"))));
        let mut names = 0;
        for n in 0..2 * MAX_VIEWS {
            let others = (0..30).map(|m| name(&format!("m{n}-{m}"))).chain([name("me")]);
            take(&mut views, from_friend(Audience::Room(Partners::new(others).expect("31"))));
            names += 30 * size_of::<Username>();
        }
        assert!(views.all().len() == MAX_VIEWS && views.all()[1].with == Some(name("friend").into()));
        let bytes: usize = views.all().iter().map(|view| view.bytes).sum();
        assert!(bytes >= names / 2, "{bytes}");
    }

    #[test]
    fn mark_shows_where_reading_stopped_and_rule_begins_each_day() {
        let mut views = Conversations::default();
        let said = |time, text: &str| Entry { time, place: Place::Everyone, ..received("bob", text) };
        take(&mut views, said(0, "one"));
        take(&mut views, said(100, "two"));
        assert_eq!(texts(views.current()), ["one", "day 1", "two"]);
        views.away = true;
        for text in ["three", "four"] {
            take(&mut views, said(100, text));
            views.drawn(0);
        }
        assert_eq!(texts(views.current())[3..], ["new", "three", "four"]);
        views.away = false;
        views.drawn(0);
        views.current_mut().scroll = 1;
        take(&mut views, said(100, "five"));
        assert_eq!(texts(views.current())[3..], ["three", "four", "new", "five"], "there is one mark");
        let view = views.current();
        assert_eq!((view.newer, view.unseen), (2, 1));
    }
}
