//! The client on a full screen: keys, network, signals and time into one channel, one loop that
//! owns all state, one pure view. What keys do is in `typing`.
//!
//! Invariant: nothing touches session or views but this loop, and nothing the terminal but `painter`, for which the loop
//! does not wait; nothing is shown that [`view`] has not drawn.

mod painter;
mod typing;

use super::charset;
use super::connect::Connection;
use super::conversations::{Conversation, Conversations};
use super::editor::Editor;
use super::entry::{Entry, Place, Source};
use super::error::{ChangeError, StartError};
use super::input::{Key, Keys, Pastes};
use super::options::Options;
use super::reconnect::Way;
use super::session::{Effect, Event, Session};
use super::terminal::{self, Keyboard, Terminal};
use super::view::{self, Screen, Status, Tab};
use super::work::Work;
use crate::clock;
use crate::sync::spawn;
use painter::Painter;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};
use typing::Asking;

/// Events that may wait: few, so that a key never waits behind much.
const QUEUE: usize = 8;
/// The screen is drawn at most 60 times a second, but for what is typed.
const FRAME: Duration = Duration::from_millis(17);
/// It rings at most this often for others: they choose how often they speak.
const RING: Duration = Duration::from_secs(1);
/// Time passes at least this often: what is shown in seconds is right.
const TICK: Duration = Duration::from_secs(1);
const MOUSE_TAKEN: &str = "the mouse wheel now scrolls; hold Shift to select text";
const MOUSE_LEFT: &str = "the mouse now selects text; PgUp and PgDn scroll";

/// What wakes the loop.
enum Wake {
    /// Events wait.
    Events,
    Keys(Keys),
    Resized,
    /// The process is to be stopped for a while.
    Stopped,
    /// It continues.
    Continued,
    /// The process is to end, or the keyboard is gone.
    Stop,
}

impl Wake {
    /// Whether it ends a screen on which nothing happens any more.
    fn leaves(&self) -> bool {
        match self {
            Wake::Keys(keys) => keys.iter().any(|key| matches!(key, Key::Ctrl('c' | 'd'))),
            Wake::Stop => true,
            Wake::Events | Wake::Resized | Wake::Stopped | Wake::Continued => false,
        }
    }
}

/// What signals ask for. Their thread never waits for the loop, which looks here whenever it is woken.
#[derive(Default)]
struct Signalled {
    resized: AtomicBool,
    stopped: AtomicBool,
    continued: AtomicBool,
    stop: AtomicBool,
    /// The loop does not run, or the end has begun: a signal that ends the process waits for neither.
    ending: AtomicBool,
}

impl Signalled {
    fn take(&self, signal: i32) {
        let asked = match signal {
            SIGWINCH => &self.resized,
            SIGTSTP => &self.stopped,
            SIGCONT => &self.continued,
            _ if self.ending.swap(true, Ordering::SeqCst) => {
                terminal::abandon();
                let _ = signal_hook::low_level::emulate_default_handler(signal);
                return;
            }
            _ => &self.stop,
        };
        asked.store(true, Ordering::SeqCst);
    }

    /// What was asked for since the last time.
    fn woken(&self) -> impl Iterator<Item = Wake> {
        let asked = [
            (&self.resized, Wake::Resized),
            (&self.stopped, Wake::Stopped),
            (&self.continued, Wake::Continued),
            (&self.stop, Wake::Stop),
        ];
        asked.into_iter().filter_map(|(asked, wake)| asked.swap(false, Ordering::SeqCst).then_some(wake))
    }
}

/// What the full screen shows beside the session's state.
pub struct Facts {
    /// The command line.
    pub options: Options,
    /// False with `NO_COLOR`.
    pub color: bool,
}

struct Front {
    session: Session,
    work: Work,
    painter: Painter,
    facts: Facts,
    conversations: Conversations,
    /// Lines that were typed and that the session does not take yet.
    ahead: VecDeque<String>,
    /// When it rang last for somebody.
    rang: Option<Instant>,
    /// When Escape was the last key.
    escaped: Option<Instant>,
    /// Of the full screen's keys.
    pastes: Pastes,
    /// The person does not wait for the end.
    abandoned: bool,
    /// The session has ended by itself.
    over: bool,
    /// The last problem, for the normal screen after a failure.
    problem: String,
    /// The new password is being asked for: what is typed is no line, and not shown.
    asking: Option<Asking>,
}

/// Runs until the person leaves or the connection ends; the exit status and the last word. From now on signals are for the
/// session, and no more for `former`.
///
/// # Errors
/// If terminal or threads cannot be had.
pub fn run(
    way: (Connection, Way),
    session: Session,
    mut keyboard: Keyboard,
    facts: Facts,
    greeting: String,
    former: &signal_hook::iterator::Handle,
) -> io::Result<(u8, String)> {
    let (wake, waking) = sync_channel(QUEUE);
    let which = [SIGWINCH, SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGCONT, SIGTSTP];
    let mut signals = signal_hook::iterator::Signals::new(terminal::unignored(&which))?;
    former.close();
    let signalled = Arc::new(Signalled { ending: true.into(), ..Signalled::default() });
    let (asked, woken_by) = (signalled.clone(), wake.clone());
    spawn("signals", move || {
        for signal in signals.forever() {
            asked.take(signal);
            // If the channel is full, the loop is awake.
            let _ = woken_by.try_send(Wake::Events);
        }
    })?;
    let terminal = Terminal::open(facts.color, facts.options.mouse)?;
    let typed = wake.clone();
    spawn("keys", move || {
        keyboard.read_input(|keys| typed.send(Wake::Keys(keys)).is_ok());
        let _ = typed.send(Wake::Stop);
    })?;
    let failed = wake.clone();
    let painter = Painter::start(terminal, move || drop(failed.send(Wake::Stop)))?;
    // If the channel is full, the loop looks for events anyway.
    let work = Work::start(way, &facts.options, Box::new(move || drop(wake.try_send(Wake::Events))))?;
    let (ahead, conversations) = (VecDeque::new(), Conversations::default());
    let (rang, escaped, asking, problem, abandoned, over) = (None, None, None, String::new(), false, false);
    let mut front = Front {
        session,
        work,
        painter,
        facts,
        conversations,
        ahead,
        rang,
        escaped,
        pastes: Pastes::default(),
        abandoned,
        over,
        problem,
        asking,
    };
    let earlier = front.session.history().cloned().collect();
    front.conversations.begin_with(earlier, &clock::day);
    front.show(notice(greeting));
    front.show(notice("type a line to talk to everyone online; /room NAME talks to one user".into()));
    front.show(notice("/help lists all commands, /exit leaves".into()));
    if !charset::is_complete() {
        let text = "your locale is not UTF-8: other than ASCII characters are shown as ?; start with LANG=C.UTF-8 to see them";
        front.show(notice(text.into()));
    }
    signalled.ending.store(false, Ordering::SeqCst);
    front.draw();
    // What was taken in and is not drawn yet waits for the next frame; keys do not.
    let (mut drawn, mut dirty) = (Instant::now(), false);
    let mut ticked = drawn;
    let status = loop {
        let wait = match dirty {
            _ if !front.work.is_idle() => Duration::ZERO,
            true => FRAME.saturating_sub(drawn.elapsed()),
            false => TICK,
        };
        let first = waking.recv_timeout(wait).ok();
        let woken = first.into_iter().chain(waking.try_iter().take(QUEUE));
        let woken: Vec<Wake> = woken.chain(signalled.woken()).collect();
        let was_woken = !woken.is_empty();
        let at_once = woken.iter().any(|woken| !matches!(woken, Wake::Events));
        let mut end = None;
        for woken in woken {
            end = end.or(front.wake(woken)?);
        }
        // What has come meanwhile is drawn together.
        // Time passes also while keys and events never cease.
        let is_due = ticked.elapsed() >= TICK;
        for _ in 0..QUEUE {
            let event = if is_due { None } else { front.work.next() };
            if end.is_some() || (event.is_none() && was_woken && !is_due) {
                break;
            }
            let is_last = event.is_none();
            if is_last {
                ticked = Instant::now();
            }
            end = front.take(event.unwrap_or(Event::Tick))?;
            if end.is_some() && !front.session.is_leaving() {
                front.stay(&waking, &signalled)?;
            }
            if is_last {
                break;
            }
        }
        if let Some(status) = end {
            break status;
        }
        front.work.owes(front.session.owed());
        dirty = true;
        if at_once || drawn.elapsed() >= FRAME {
            front.draw();
            (drawn, dirty) = (Instant::now(), false);
        }
    };
    signalled.ending.store(true, Ordering::SeqCst);
    let unsent = front.unsent();
    let Front { work, painter, mut problem, abandoned, .. } = front;
    painter.end();
    // With another status, the farewell may have been said, or nobody may be there to hear it.
    work.finish(abandoned || status != 0);
    painter.finish(abandoned);
    let Some(unsent) = unsent else { return Ok((status, problem)) };
    problem.push_str(if problem.is_empty() { "" } else { "\n" });
    Ok((1, problem + &unsent))
}

fn notice(text: String) -> Entry {
    Entry::new(clock::now_ms(), Source::Notice, Place::Here, text)
}

impl Front {
    /// Takes an event in; the exit status if it was the last.
    fn take(&mut self, event: Event) -> io::Result<Option<u8>> {
        // What ends the session may have several reasons: all of them are told.
        self.problem.clear();
        if let Some(status) = self.handle(event)? {
            return Ok(Some(status));
        }
        // What is typed after a command is meant for where it leads.
        let before = self.conversations.current().with.clone();
        let end = self.type_ahead();
        self.conversations.carry(&before);
        end
    }

    /// Does what it was woken for; the exit status if that was the last.
    fn wake(&mut self, woken: Wake) -> io::Result<Option<u8>> {
        match woken {
            Wake::Events => {}
            Wake::Keys(keys) => {
                self.work.touch();
                return self.keys(keys);
            }
            Wake::Resized => self.painter.redraw(),
            Wake::Stopped => self.suspend(),
            Wake::Continued => self.painter.resume(),
            Wake::Stop => return Ok(Some(self.abandon())),
        }
        Ok(None)
    }

    fn handle(&mut self, event: Event) -> io::Result<Option<u8>> {
        let mut failed = Vec::new();
        let was_wrong = matches!(event, Event::PasswordChanged(Err(ChangeError::WrongPassword)));
        if was_wrong && self.conversations.current().editor.is_empty() {
            // What is typed next is often the right one, which must not become a message.
            self.asking.get_or_insert_default();
        }
        for effect in self.session.handle(event, clock::now_ms(), Instant::now()) {
            match effect {
                Effect::Begin => self.work.begin(),
                Effect::Send(message) => failed.extend(self.work.send(&message)),
                Effect::Show(entry) => self.show(entry),
                Effect::Transfer(number, job) => failed.extend(self.work.transfer(number, job)),
                // A bar shows it.
                Effect::Progress(_) => {}
                // In a flood, one ring is enough.
                Effect::Alert(..) if self.rang.is_some_and(|rang| rang.elapsed() < RING) => {}
                Effect::Alert(from, place) => {
                    self.rang = Some(Instant::now());
                    match self.conversations.in_view(&place) {
                        true => self.painter.bell(),
                        false => self.painter.notify(format!("message from {from}")),
                    }
                }
                Effect::Enter(with) => self.conversations.enter(with),
                Effect::Leave(with) => self.conversations.close(&with),
                Effect::View(number) => match self.conversations.all().get(number.wrapping_sub(1)) {
                    Some(view) => failed.push(Event::Switch(view.with.clone())),
                    None => self.show(notice(format!("there is no view {number}"))),
                },
                Effect::Mouse => {
                    self.facts.options.mouse = !self.facts.options.mouse;
                    self.painter.take_mouse(self.facts.options.mouse);
                    let state = if self.facts.options.mouse { MOUSE_TAKEN } else { MOUSE_LEFT };
                    self.show(notice(state.into()));
                }
                Effect::Clear => self.conversations.clear(),
                Effect::Forget => self.conversations.forget(),
                Effect::MakeSessionKey => self.work.make_session_key()?,
                // What it takes was asked for before.
                Effect::ChangePassword(file) => {
                    // A line with a file that was typed before must not end a question under way.
                    let asking = if file.is_none() { self.asking.take() } else { None };
                    let Asking { old, new, .. } = asking.unwrap_or_default();
                    self.work.change_password(self.session.me(), move || {
                        let without = || {
                            StartError::Usage("/passwd takes no file here: it asks for the password".into())
                        };
                        old.zip(new).ok_or_else(without)
                    })?;
                }
                Effect::Quit(status) => return Ok(Some(status)),
            }
        }
        // Only now: what else there was to show comes before the end.
        for event in failed {
            if let Some(status) = self.handle(event)? {
                return Ok(Some(status));
            }
        }
        Ok(None)
    }

    fn show(&mut self, entry: Entry) {
        if entry.source == Source::Problem {
            let newline = if self.problem.is_empty() { "" } else { "\n" };
            self.problem.push_str(&format!("{newline}{}", entry.text));
        }
        self.conversations.show(entry, &clock::day);
    }

    /// The session has ended, and nobody has asked for it: until the person leaves, the reason and all conversations stay to
    /// be read, and what is being typed at this moment is not sent; in the shell it would be a command.
    fn stay(&mut self, waking: &Receiver<Wake>, signalled: &Signalled) -> io::Result<()> {
        // Or others would think that what they say is read, and a lost connection would be had again.
        self.work.end();
        (self.over, self.abandoned, self.asking) = (true, true, None);
        self.show(notice("the session is over: Ctrl-C leaves".into()));
        self.draw();
        while let Ok(first) = waking.recv() {
            for woken in std::iter::once(first).chain(signalled.woken()) {
                if woken.leaves() || self.wake(woken)?.is_some() {
                    return Ok(());
                }
                self.draw();
            }
        }
        Ok(())
    }

    fn suspend(&mut self) {
        if terminal::can_suspend() {
            self.painter.suspend();
        }
    }

    fn draw(&mut self) {
        let session = &self.session;
        let (place, trust) = match session.partner() {
            Some(name) => {
                let kind = if session.has_room(name) { "room" } else { "private" };
                (format!("{kind} with {name}"), session.trust_word(name))
            }
            None => ("everyone".to_string(), ""),
        };
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
        let unseen = Editor::default();
        let (alarm, link) = if self.over {
            ("THE SESSION IS OVER: Ctrl-C leaves".into(), String::new())
        } else if let Some(leaving) = session.leaving() {
            (leaving, session.connection())
        } else if session.is_heard() {
            (String::new(), session.connection())
        } else {
            (session.connection(), String::new())
        };
        let tls = if self.facts.options.tls { "" } else { ", NO TLS" };
        let status = Status {
            tabs,
            alarm,
            link,
            encryption: format!("end-to-end encrypted{tls}"),
            trust: trust.into(),
            me: session.me().to_string(),
            online: session.online(),
            server: self.facts.options.server(),
            prompt: self.prompt(),
        };
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
            clock: &clock::hour_minute,
        };
        let frame = view::draw(&screen, terminal::size());
        self.conversations.drawn(frame.scroll);
        self.painter.draw(frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_kept_for_a_loop_that_is_busy() {
        let signalled = Signalled::default();
        for signal in [SIGWINCH, SIGTERM, SIGTSTP, SIGCONT, SIGWINCH] {
            signalled.take(signal);
        }
        let woken: Vec<Wake> = signalled.woken().collect();
        assert!(matches!(woken[..], [Wake::Resized, Wake::Stopped, Wake::Continued, Wake::Stop]));
        assert_eq!(signalled.woken().count(), 0);
    }
}
