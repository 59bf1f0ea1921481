//! The client on a full screen: keys, network, signals and time into one channel, one loop that
//! owns all state, one pure view. What keys do is in `keys`.
//!
//! Invariant: nothing touches session or views but this loop, and nothing the terminal but `painter`, for which the loop
//! does not wait; nothing is shown that [`view`] has not drawn.

pub mod conversations;
mod keys;
mod painter;
pub mod prompter;
pub mod rows;
pub mod start;
pub mod view;

use super::backend::{Backend, Front, Passwords, drive};
use super::entry::{Entry, Place, Source};
use super::error::{ChangeError, StartError};
use super::lines::Lines;
use super::net::connect::Connection;
use super::net::reconnect::Way;
use super::options::Options;
use super::session::{Display, Event, Exit, Session};
use super::terminal::editor::Editor;
use super::terminal::input::{Keys, Pastes};
use super::terminal::{self, Keyboard, Terminal, charset};
use crate::clock;
use crate::sync::spawn;
use conversations::{Conversation, Conversations};
use painter::Painter;
use prompter::Asking;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};
use view::{Status, Tab};

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

struct Screen {
    session: Session,
    backend: Backend,
    lines: Lines,
    views: Views,
    options: Options,
    /// When Escape was the last key.
    escaped: Option<Instant>,
    pastes: Pastes,
    /// The session has ended by itself: the reason and all conversations stay to be read until the user leaves.
    over: Option<Exit>,
}

/// What the screen shows beside the session's state.
struct Views {
    painter: Painter,
    conversations: Conversations,
    /// The mouse is taken.
    mouse: bool,
    /// When another user last rang the bell.
    rang: Option<Instant>,
    /// A new password is being asked for: what is typed is no line, and not shown.
    asking: Option<Asking>,
}

/// Runs until the user leaves. Signals now go to the session, not to `former`.
///
/// # Errors
/// If the terminal or a thread is not available.
pub fn run(
    way: (Connection, Way),
    session: Session,
    mut keyboard: Keyboard,
    options: &Options,
    greeting: String,
    former: &signal_hook::iterator::Handle,
) -> io::Result<Exit> {
    let (wake, waking) = sync_channel(QUEUE);
    let signalled = Arc::new(Signalled { ending: true.into(), ..Signalled::default() });
    let (asked, woken_by) = (signalled.clone(), wake.clone());
    let which = [SIGWINCH, SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGCONT, SIGTSTP];
    terminal::on_signals(&which, move |signal| {
        asked.take(signal);
        // If the channel is full, the loop is awake.
        let _ = woken_by.try_send(Wake::Events);
    })?;
    former.close();
    let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let terminal = Terminal::open(color, options.mouse)?;
    let typed = wake.clone();
    spawn("keys", move || {
        keyboard.read_input(|keys| typed.send(Wake::Keys(keys)).is_ok());
        let _ = typed.send(Wake::Stop);
    })?;
    let failed = wake.clone();
    let painter = Painter::start(terminal, move || drop(failed.send(Wake::Stop)))?;
    // If the channel is full, the loop looks for events anyway.
    let poke = Box::new(move || drop(wake.try_send(Wake::Events)));
    let backend = Backend::start(session.me(), way, options, poke)?;
    let conversations = Conversations::default();
    let mut screen = Screen {
        session,
        backend,
        lines: Lines::default(),
        views: Views { painter, conversations, mouse: options.mouse, rang: None, asking: None },
        options: options.clone(),
        escaped: None,
        pastes: Pastes::default(),
        over: None,
    };
    screen.greet(greeting);
    signalled.ending.store(false, Ordering::SeqCst);
    let mut exit = screen.serve(&waking, &signalled);
    signalled.ending.store(true, Ordering::SeqCst);
    let Screen { backend, views, lines, .. } = screen;
    if let Some(unsent) = lines.unsent() {
        exit.status = 1;
        exit.warnings.push(unsent);
    }
    views.painter.end();
    backend.finish(&exit);
    views.painter.finish(&exit);
    Ok(exit)
}

fn notice(text: String) -> Entry {
    Entry::new(clock::now_ms(), Source::Notice, Place::Here, text)
}

impl Screen {
    fn greet(&mut self, greeting: String) {
        let earlier = self.session.history().cloned().collect();
        self.views.conversations.begin_with(earlier, &clock::day);
        let mut texts = vec![
            greeting,
            "type a line to talk to everyone online; /room NAME talks to one user".into(),
            "/help lists all commands, /exit leaves".into(),
        ];
        if !charset::is_complete() {
            texts.push("your locale is not UTF-8, so characters outside ASCII are shown as ?; start with LANG=C.UTF-8 to see them".into());
        }
        texts.into_iter().for_each(|text| self.views.notice(text));
    }

    /// What has come is drawn together, at most once a frame; only what is typed is drawn at once.
    fn serve(&mut self, waking: &Receiver<Wake>, signalled: &Signalled) -> Exit {
        self.draw();
        let (mut drawn, mut ticked, mut dirty) = (Instant::now(), Instant::now(), false);
        loop {
            let wait = match dirty {
                _ if self.over.is_none() && !self.backend.is_idle() => Duration::ZERO,
                true => FRAME.saturating_sub(drawn.elapsed()),
                false => TICK.saturating_sub(ticked.elapsed()),
            };
            let first = waking.recv_timeout(wait).ok();
            let woken = first.into_iter().chain(waking.try_iter().take(QUEUE));
            let woken: Vec<Wake> = woken.chain(signalled.woken()).collect();
            let at_once = woken.iter().any(|woken| !matches!(woken, Wake::Events));
            let mut exit = woken.into_iter().find_map(|woken| self.wake(woken));
            if exit.is_none() && ticked.elapsed() >= TICK {
                ticked = Instant::now();
                exit = self.take(Event::Tick);
            }
            for _ in 0..QUEUE {
                if exit.is_none()
                    && self.over.is_none()
                    && let Some(event) = self.backend.next()
                {
                    exit = self.take(event);
                }
            }
            if let Some(exit) = exit {
                return exit;
            }
            dirty = true;
            if at_once || drawn.elapsed() >= FRAME {
                self.draw();
                (drawn, dirty) = (Instant::now(), false);
            }
        }
    }

    /// Handles the reason of a wake-up; returns how the client ends, if it does.
    fn wake(&mut self, woken: Wake) -> Option<Exit> {
        match woken {
            Wake::Events => {}
            Wake::Keys(keys) => {
                self.backend.touch();
                return self.keys(keys);
            }
            Wake::Resized => self.views.painter.redraw(),
            Wake::Stopped => self.views.suspend(),
            Wake::Continued => self.views.painter.resume(),
            Wake::Stop => return Some(self.leave_now()),
        }
        None
    }

    /// Handles an event and the lines that waited for it.
    fn take(&mut self, event: Event) -> Option<Exit> {
        let was_wrong = matches!(event, Event::PasswordChanged(Err(ChangeError::WrongPassword)));
        if was_wrong && self.views.conversations.current().editor.is_empty() {
            // What is typed next is often the right one, which must not become a message.
            self.views.asking.get_or_insert_default();
        }
        let exit = self.drive(event);
        if exit.is_some() {
            return exit;
        }
        // What is typed after a command is meant for where it leads.
        let before = self.views.conversations.current().with.clone();
        let exit = self.take_lines();
        self.views.conversations.carry(&before);
        exit
    }

    /// Hands on the waiting lines that the session takes.
    fn take_lines(&mut self) -> Option<Exit> {
        while self.over.is_none()
            && let Some(line) = self.lines.next(&self.session)
        {
            let exit = self.drive(line);
            if exit.is_some() {
                return exit;
            }
        }
        None
    }

    fn drive(&mut self, event: Event) -> Option<Exit> {
        let exit = drive(&mut self.session, &self.backend, &mut self.views, event)?;
        if self.session.is_leaving() {
            return Some(exit);
        }
        // The user did not ask for the end: the rest of a line being typed would go to the shell.
        self.backend.end();
        (self.over, self.views.asking) = (Some(exit), None);
        self.views.notice("the session is over: Ctrl-C leaves".into());
        None
    }

    /// Leaves without waiting.
    fn leave_now(&mut self) -> Exit {
        let leave = || drive(&mut self.session, &self.backend, &mut self.views, Event::LeaveNow);
        self.over.take().or_else(leave).unwrap_or_default()
    }

    fn draw(&mut self) {
        let session = &self.session;
        let (place, trust) = match &self.views.conversations.current().with {
            Some(name) => {
                let kind = if session.has_room(name) { "room" } else { "private" };
                (format!("{kind} with {name}"), session.trust_word(name))
            }
            None => ("everyone".to_string(), ""),
        };
        let current = self.views.conversations.index();
        let tab = |(at, view): (usize, &Conversation)| Tab {
            name: match &view.with {
                Some(name) if at == current => format!("{place}{}", session.trust_mark(name)),
                Some(name) => format!("{name}{}", session.trust_mark(name)),
                None => "everyone".into(),
            },
            unread: view.unread,
            current: at == current,
        };
        let tabs = self.views.conversations.all().iter().enumerate().map(tab).collect();
        let view = self.views.conversations.current();
        let unseen = Editor::default();
        let (alarm, link) = if self.over.is_some() {
            ("THE SESSION IS OVER: Ctrl-C leaves".into(), String::new())
        } else if let Some(leaving) = session.leaving() {
            (leaving, session.connection())
        } else if session.is_heard() {
            (String::new(), session.connection())
        } else {
            (session.connection(), String::new())
        };
        let tls = if self.options.tls { "" } else { "NO TLS" };
        let safety: Vec<&str> = [tls, trust].into_iter().filter(|part| !part.is_empty()).collect();
        let status = Status {
            tabs,
            alarm,
            link,
            encryption: "end-to-end encrypted".into(),
            trust: safety.join(" · "),
            me: session.me().to_string(),
            online: session.online(),
            server: self.options.server(),
            prompt: self.prompt(),
        };
        let progress: Vec<_> = session.progress().collect();
        let screen = view::Screen {
            entries: &view.entries,
            progress: &progress,
            status: &status,
            editor: if self.views.asking.is_some() { &unseen } else { &view.editor },
            scroll: view.scroll,
            newer: view.newer,
            unseen: view.unseen,
            me: session.me().as_str(),
            clock: &clock::hour_minute,
        };
        let frame = view::draw(&screen, terminal::size());
        self.views.conversations.drawn(frame.scroll);
        self.views.painter.draw(frame);
    }
}

impl Views {
    fn notice(&mut self, text: String) {
        self.conversations.show(notice(text), &clock::day);
    }

    fn suspend(&mut self) {
        if terminal::can_suspend() {
            self.painter.suspend();
        }
    }
}

impl Front for Views {
    fn display(&mut self, display: Display) -> Option<Event> {
        match display {
            Display::Entry(entry) => self.conversations.show(entry, &clock::day),
            // A bar or the status line shows it.
            Display::Progress(_) => {}
            // In a flood, one ring is enough.
            Display::Alert(..) if self.rang.is_some_and(|rang| rang.elapsed() < RING) => {}
            Display::Alert(from, place) => {
                self.rang = Some(Instant::now());
                match self.conversations.in_view(&place) {
                    true => self.painter.bell(),
                    false => self.painter.notify(format!("message from {from}")),
                }
            }
            Display::Enter(with) => self.conversations.enter(with),
            Display::Leave(with) => self.conversations.close(&with),
            Display::View(number) => match self.conversations.all().get(number.wrapping_sub(1)) {
                Some(view) => return Some(Event::Switch(view.with.clone())),
                None => self.notice(format!("there is no view {number}")),
            },
            Display::Mouse => {
                self.mouse = !self.mouse;
                self.painter.take_mouse(self.mouse);
                self.notice(if self.mouse { MOUSE_TAKEN } else { MOUSE_LEFT }.into());
            }
            Display::Clear => self.conversations.clear(),
            Display::Forget => self.conversations.forget(),
        }
        None
    }

    /// The user has typed them already. A `/passwd FILE` typed earlier does not end a question in progress.
    fn passwords(&mut self, file: Option<String>) -> Passwords {
        let asking = if file.is_none() { self.asking.take() } else { None };
        let Asking { old, new, .. } = asking.unwrap_or_default();
        let text = "/passwd takes no file here: it asks for the password";
        Box::new(move || old.zip(new).ok_or_else(|| StartError::Usage(text.into())))
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
