//! The client on a full screen: keys, network, signals and time into one channel, one loop that
//! owns all state, one pure view.

use super::command::{self, Command};
use super::completion::complete;
use super::connect::{Connection, StartError};
use super::conversations::{Conversation, Conversations};
use super::editor::{Editor, Outcome};
use super::entry::{Entry, Place, Source};
use super::file;
use super::input::Key;
use super::options::Options;
use super::prompter::Unseen;
use super::reconnect::Way;
use super::session::{Effect, Event, Session};
use super::spawn;
use super::terminal::{self, Keyboard, Terminal};
use super::view::{self, Screen, Status, Tab};
use super::work::Work;
use crate::clock;
use crate::crypto::secret::Password;
use crate::name::Username;
use crate::protocol::ClientMessage;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};
use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};
use time::UtcOffset;

/// Events that may wait: few, so that a key never waits behind much.
const QUEUE: usize = 8;
/// The screen is drawn at most 60 times a second, but for what is typed.
const FRAME: Duration = Duration::from_millis(17);
/// It rings at most this often for others: they choose how often they speak.
const RING: Duration = Duration::from_secs(1);
/// Time passes at least this often: what is shown in seconds is right.
const TICK: Duration = Duration::from_secs(1);
/// Lines typed ahead of the server: a person sees long before that nothing goes out.
const MAX_AHEAD: usize = 100;
/// Rows that one step of the mouse wheel scrolls.
const WHEEL: usize = 3;

/// What wakes the loop.
enum Wake {
    Event(Event),
    Keys(Vec<Key>),
    Resized,
    /// The process is to be stopped for a while.
    Stopped,
    /// The process is to end, or the keyboard is gone.
    Stop,
}

/// What the full screen shows beside the session's state.
pub struct Facts {
    /// The command line.
    pub options: Options,
    /// The time zone in which times are shown.
    pub offset: UtcOffset,
    /// False with `NO_COLOR`.
    pub color: bool,
}

struct Front {
    session: Session,
    work: Work,
    terminal: Terminal,
    facts: Facts,
    conversations: Conversations,
    /// Lines that were typed and that the session does not take yet.
    ahead: VecDeque<String>,
    /// When it rang last for somebody.
    rang: Option<Instant>,
    /// The person does not wait for the end.
    abandoned: bool,
    /// The last problem, for the normal screen after a failure.
    problem: String,
    /// The new password is being asked for: what is typed is no line, and not shown.
    asking: Option<Asking>,
}

/// What was answered so far: the old password, then the new one, then that once more.
#[derive(Default)]
struct Asking {
    typed: Unseen,
    old: Option<Password>,
    new: Option<Password>,
}

/// Runs until the person leaves or the connection ends; the exit status and the last word.
///
/// # Errors
/// If terminal or threads cannot be had.
pub fn run(
    way: (Connection, Way),
    session: Session,
    mut keyboard: Keyboard,
    facts: Facts,
    greeting: String,
) -> io::Result<(u8, String)> {
    let (wake, waking) = sync_channel(QUEUE);
    let which = [SIGWINCH, SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGCONT, SIGTSTP];
    let mut signals = signal_hook::iterator::Signals::new(which)?;
    let terminal = Terminal::open(facts.color)?;
    let signalled = wake.clone();
    spawn("signals", move || {
        for signal in signals.forever() {
            let woken = match signal {
                SIGWINCH | SIGCONT => Wake::Resized,
                SIGTSTP => Wake::Stopped,
                _ => Wake::Stop,
            };
            if signalled.send(woken).is_err() {
                return;
            }
        }
    })?;
    let typed = wake.clone();
    spawn("keys", move || {
        keyboard.read_input(|keys| typed.send(Wake::Keys(keys)).is_ok());
        let _ = typed.send(Wake::Stop);
    })?;
    let work = Work::start(way, &facts.options, move |event| wake.send(Wake::Event(event)).is_ok())?;
    let (ahead, conversations) = (VecDeque::new(), Conversations::default());
    let (rang, asking, problem, abandoned) = (None, None, String::new(), false);
    let mut front =
        Front { session, work, terminal, facts, conversations, ahead, rang, abandoned, problem, asking };
    let earlier = front.session.history().cloned().collect();
    front.conversations.begin_with(earlier, &|time| clock::day(time, front.facts.offset));
    front.show(notice(greeting));
    front.show(notice("type a line to talk to everyone on-line; /room NAME talks to one person".into()));
    front.show(notice("/help lists all commands, /exit leaves".into()));
    front.draw()?;
    // What was taken in and is not drawn yet waits for the next frame; keys do not.
    let (mut drawn, mut dirty) = (Instant::now(), false);
    let status = loop {
        let wait = if dirty { FRAME.saturating_sub(drawn.elapsed()) } else { TICK };
        let woken = match waking.recv_timeout(wait) {
            Ok(woken) => woken,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Wake::Event(Event::Tick),
        };
        let at_once = matches!(woken, Wake::Keys(_) | Wake::Resized | Wake::Stopped);
        // What has come meanwhile is drawn together.
        let rest: Vec<Wake> = waking.try_iter().take(QUEUE).collect();
        let mut end = None;
        for woken in std::iter::once(woken).chain(rest) {
            end = front.wake(woken)?;
            if end.is_some() {
                break;
            }
        }
        if let Some(status) = end {
            break status;
        }
        dirty = true;
        if at_once || drawn.elapsed() >= FRAME {
            front.draw()?;
            (drawn, dirty) = (Instant::now(), false);
        }
    };
    let unsent = front.unsent();
    let Front { work, terminal, mut problem, abandoned, .. } = front;
    drop(terminal);
    // With another status, the farewell may have been said, or nobody may be there to hear it.
    work.finish(abandoned || status != 0);
    let Some(unsent) = unsent else { return Ok((status, problem)) };
    problem.push_str(if problem.is_empty() { "" } else { "\n" });
    Ok((1, problem + &unsent))
}

fn notice(text: String) -> Entry {
    Entry::new(clock::now_ms(), Source::Notice, Place::Here, text)
}

impl Front {
    /// Takes one thing in; the exit status if it was the last.
    fn wake(&mut self, woken: Wake) -> io::Result<Option<u8>> {
        match woken {
            Wake::Event(event) => {
                // What ends the session may have several reasons: all of them are told.
                self.problem.clear();
                if let Some(status) = self.handle(event)? {
                    return Ok(Some(status));
                }
                // What is typed after a command is meant for where it leads.
                let before = self.conversations.current().with.clone();
                let end = self.type_ahead();
                self.conversations.carry(&before);
                return end;
            }
            Wake::Keys(keys) => {
                for key in keys {
                    if let Some(status) = self.key(key)? {
                        return Ok(Some(status));
                    }
                }
            }
            Wake::Resized => self.terminal.redraw(),
            Wake::Stopped => self.suspend()?,
            Wake::Stop => return Ok(Some(self.abandon())),
        }
        Ok(None)
    }

    fn handle(&mut self, event: Event) -> io::Result<Option<u8>> {
        for effect in self.session.handle(event, clock::now_ms(), Instant::now()) {
            match effect {
                Effect::Begin => self.work.begin(),
                Effect::Send(message) => {
                    if let Some(end) = self.work.send(&message) {
                        return self.handle(end);
                    }
                }
                Effect::Show(entry) => self.show(entry),
                Effect::Transfer(number, job) => {
                    if let Some(failed) = self.work.transfer(number, job) {
                        self.handle(failed)?;
                    }
                }
                // A bar shows it.
                Effect::Progress(_) => {}
                // In a flood, one ring is enough.
                Effect::Alert(..) if self.rang.is_some_and(|rang| rang.elapsed() < RING) => {}
                Effect::Alert(from, place) => {
                    self.rang = Some(Instant::now());
                    match self.conversations.in_view(&place) {
                        true => self.terminal.bell()?,
                        false => self.terminal.notify(&format!("message from {from}"))?,
                    }
                }
                Effect::Enter(with) => self.conversations.enter(with),
                Effect::Leave(with) => self.conversations.close(&with),
                Effect::Clear => self.conversations.clear(),
                Effect::Forget => self.conversations.forget(),
                Effect::MakeSessionKey => self.work.make_session_key()?,
                // What it takes was asked for before.
                Effect::ChangePassword(file) => {
                    // A line with a file that was typed before must not end a question under way.
                    let asking = if file.is_none() { self.asking.take() } else { None };
                    let Asking { old, new, .. } = asking.unwrap_or_default();
                    self.work.change_password(self.session.me(), move || {
                        let without = || StartError::Usage("/passwd asks for it, without a file".into());
                        old.zip(new).ok_or_else(without)
                    })?;
                }
                Effect::Quit(status) => return Ok(Some(status)),
            }
        }
        Ok(None)
    }

    fn show(&mut self, entry: Entry) {
        if entry.source == Source::Problem {
            let newline = if self.problem.is_empty() { "" } else { "\n" };
            self.problem.push_str(&format!("{newline}{}", entry.text));
        }
        let offset = self.facts.offset;
        self.conversations.show(entry, &|time| clock::day(time, offset));
    }

    fn scroll(&mut self, change: impl FnOnce(usize) -> usize) {
        let view = self.conversations.current_mut();
        view.scroll = change(view.scroll);
    }

    fn key(&mut self, key: Key) -> io::Result<Option<u8>> {
        let page = usize::from(terminal::size().rows).saturating_sub(3).max(1);
        match key {
            Key::FocusIn => self.conversations.away = false,
            Key::FocusOut => self.conversations.away = true,
            Key::Ctrl('l') => self.terminal.redraw(),
            Key::Ctrl('z') => self.suspend()?,
            Key::PageUp => self.scroll(|rows| rows.saturating_add(page)),
            Key::PageDown => self.scroll(|rows| rows.saturating_sub(page)),
            Key::WheelUp => self.scroll(|rows| rows.saturating_add(WHEEL)),
            Key::WheelDown => self.scroll(|rows| rows.saturating_sub(WHEEL)),
            key if self.asking.is_some() => return self.answer(key),
            Key::Alt(digit @ '1'..='9') => return self.switch(digit as usize - '1' as usize),
            Key::AltLeft | Key::AltRight => {
                let (at, count) = (self.conversations.index(), self.conversations.all().len());
                return self.switch((at + if key == Key::AltLeft { count - 1 } else { 1 }) % count);
            }
            Key::Alt('r') if self.is_prompt() => match self.conversations.take_failed() {
                Some(number) => return self.handle(Event::Again(number)),
                None => self.terminal.bell()?,
            },
            key => return self.edit(key),
        }
        Ok(None)
    }

    /// Whether a line would be taken now.
    fn is_prompt(&self) -> bool {
        self.ahead.is_empty() && self.session.takes_lines()
    }

    /// Goes to another view, unless lines wait: what is typed must go where the screen says.
    fn switch(&mut self, to: usize) -> io::Result<Option<u8>> {
        match self.conversations.all().get(to) {
            Some(view) if self.ahead.is_empty() => {
                let with = view.with.clone();
                self.handle(Event::Switch(with))
            }
            _ => {
                self.terminal.bell()?;
                Ok(None)
            }
        }
    }

    /// Takes a key that is meant for the line.
    fn edit(&mut self, key: Key) -> io::Result<Option<u8>> {
        let waiting = self.ahead.len();
        let view = self.conversations.current_mut();
        match key {
            Key::Ctrl('c' | 'd') if view.editor.is_empty() => return self.enter("/exit".into()),
            // The line stays where it is.
            Key::Enter if waiting >= MAX_AHEAD && view.editor.text() != "/exit" => self.terminal.bell()?,
            Key::Tab | Key::BackTab => {
                let people = self.session.people().map(Username::as_str);
                let find = |before: &str| complete(before, people, file::listing);
                if !view.editor.complete(key == Key::BackTab, find) {
                    self.terminal.bell()?;
                }
            }
            key => match view.editor.key(&key) {
                Outcome::Submitted(line) => {
                    view.scroll = 0;
                    // At once, whatever waits: what is typed next must never become a message.
                    if matches!(command::parse(&line), Ok(Command::Password(None))) {
                        self.asking = Some(Asking::default());
                        return Ok(None);
                    }
                    return self.enter(line);
                }
                Outcome::Ignored if key == Key::Escape => view.scroll = 0,
                Outcome::Ignored => {
                    // Esc and then a letter, which a slow line has put together: a slash must not be lost, or a
                    // command becomes a message.
                    if let Key::Alt(c) = key {
                        let end = self.edit(Key::Escape)?;
                        return if end.is_some() { Ok(end) } else { self.edit(Key::Char(c)) };
                    }
                }
                Outcome::Edited => {}
            },
        }
        Ok(None)
    }

    /// Takes a key of an answer to the question for passwords.
    fn answer(&mut self, key: Key) -> io::Result<Option<u8>> {
        let Some(asking) = &mut self.asking else { return Ok(None) };
        let leaves = match key {
            Key::Ctrl('c') => true,
            // Not in the middle: on a slow line, an arrow key can begin with what looks like Esc.
            Key::Escape | Key::Ctrl('d') => asking.typed.is_empty(),
            _ => false,
        };
        if leaves {
            self.asking = None;
            self.show(notice("your password stays as it is".into()));
            return Ok(None);
        }
        let Some(password) = asking.typed.key(key) else { return Ok(None) };
        let problem = match (&asking.old, &asking.new) {
            (None, _) => {
                asking.old = Some(password);
                return Ok(None);
            }
            (Some(_), None) if password.is_long_enough() => {
                asking.new = Some(password);
                return Ok(None);
            }
            (Some(_), None) => StartError::ShortPassword.to_string(),
            (Some(_), Some(new)) if *new == password => {
                let end = self.handle(Event::Line("/passwd".into()));
                self.asking = None;
                return end;
            }
            (Some(_), Some(_)) => {
                asking.new = None;
                "the two differ: the new password once more".into()
            }
        };
        self.show(notice(problem));
        Ok(None)
    }

    /// Takes a typed line: now if the session can, in turn otherwise. A second `/exit` does not wait.
    fn enter(&mut self, line: String) -> io::Result<Option<u8>> {
        if line == "/exit" && (self.ahead.contains(&line) || !self.session.takes_lines()) {
            return Ok(Some(self.abandon()));
        }
        self.ahead.push_back(line);
        self.type_ahead()
    }

    /// Leaves without waiting: the exit status, and what nobody has acknowledged as the last word.
    fn abandon(&mut self) -> u8 {
        // Or one would seem to be there for a minute more.
        let _ = self.work.send(&ClientMessage::Logout);
        self.abandoned = true;
        let session = &self.session;
        let texts = [session.unsettled(), session.unfinished_files(), session.unclear_password()];
        self.problem = texts.into_iter().flatten().collect::<Vec<_>>().join("\n");
        u8::from(!self.problem.is_empty())
    }

    fn type_ahead(&mut self) -> io::Result<Option<u8>> {
        while self.session.takes_lines()
            && let Some(line) = self.ahead.pop_front()
        {
            if let Some(status) = self.handle(Event::Line(line))? {
                return Ok(Some(status));
            }
        }
        Ok(None)
    }

    /// What is to be said of lines that never came to be sent, if there are any.
    fn unsent(&self) -> Option<String> {
        match self.ahead.iter().filter(|line| *line != "/exit").count() {
            0 => None,
            1 => Some("1 line that you had typed was not sent".into()),
            count => Some(format!("{count} lines that you had typed were not sent")),
        }
    }

    /// Where the lines that wait lead: what is typed behind them goes there.
    fn destination(&self) -> Option<Username> {
        let leads = |line: &String| match command::parse(line) {
            Ok(Command::Room(Some(name))) => Some(Some(name)),
            Ok(Command::Leave) => Some(None),
            _ => None,
        };
        self.ahead.iter().rev().find_map(leads).unwrap_or_else(|| self.session.partner().cloned())
    }

    fn suspend(&mut self) -> io::Result<()> {
        self.terminal.suspend();
        signal_hook::low_level::emulate_default_handler(SIGTSTP)?;
        self.terminal.resume()
    }

    fn draw(&mut self) -> io::Result<()> {
        let session = &self.session;
        let (place, trust) = match session.partner() {
            Some(name) => {
                let kind = if session.has_room(name) { "room" } else { "private" };
                (format!("{kind} with {name}"), session.trust_word(name))
            }
            None => ("everyone".to_string(), ""),
        };
        let prompt = self.destination().map_or("> ".to_string(), |name| format!("{name}> "));
        let current = self.conversations.index();
        let tab = |(at, view): (usize, &Conversation)| Tab {
            name: match &view.with {
                Some(name) if at == current => format!("{place}{}", session.trust_mark(name)),
                Some(name) => format!("{name}{}", session.trust_mark(name)),
                None => "everyone".into(),
            },
            unread: view.unread,
            current: at == current,
        };
        let tabs = self.conversations.all().iter().enumerate().map(tab).collect();
        let view = self.conversations.current();
        let prompt = match &self.asking {
            None => prompt,
            Some(Asking { old: None, .. }) => "old password (unseen): ".into(),
            Some(Asking { new: None, .. }) => "new password (unseen): ".into(),
            Some(_) => "the same once more: ".into(),
        };
        let unseen = Editor::default();
        let tls = if self.facts.options.tls { "" } else { ", NO TLS" };
        let status = Status {
            tabs,
            alarm: if session.is_lost() { session.connection() } else { String::new() },
            link: if session.is_lost() { String::new() } else { session.connection() },
            encryption: format!("end-to-end encrypted{tls}"),
            trust: trust.into(),
            me: session.me().to_string(),
            online: session.online(),
            server: self.facts.options.server(),
            prompt,
        };
        let offset = self.facts.offset;
        let progress: Vec<_> = session.progress().collect();
        let screen = Screen {
            entries: &view.entries,
            progress: &progress,
            status: &status,
            editor: if self.asking.is_some() { &unseen } else { &view.editor },
            scroll: view.scroll,
            newer: view.newer,
            unseen: view.unseen,
            me: session.me().as_str(),
            clock: &|ms| clock::hour_minute(ms, offset),
        };
        let frame = view::draw(&screen, terminal::size());
        self.conversations.drawn(frame.scroll);
        self.terminal.draw(&frame)
    }
}
