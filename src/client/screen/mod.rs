//! The client on a full screen: one loop owns session and views, and waits for keys, signals, events and time in one
//! place. The meaning of keys is in `keys`.
//!
//! Invariant: the loop never waits for the terminal; only [`view`] draws what is shown.

pub mod conversations;
mod keys;
mod password_dialog;
pub mod prompter;
pub mod rows;
pub mod start;
pub mod view;

use super::backend::{Backend, Front, Passwords, drive};
use super::entry::{Entry, Place, Source};
use super::error::{ChangeError, StartError};
use super::lines::Lines;
use super::net::connect::Connection;
use super::net::reconnect::Reconnector;
use super::options::Options;
use super::session::{Display, Event, Exit, Session};
use super::terminal::editor::Editor;
use super::terminal::full_screen::FullScreen;
use super::terminal::input::Pastes;
use super::terminal::inputs::{Inputs, Taker};
use super::terminal::{self, charset, signals};
use crate::clock;
use conversations::{Conversation, Conversations};
use password_dialog::{CHANGE, PasswordDialog};
use signal_hook::consts::{SIGCONT, SIGTSTP, SIGWINCH};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::time::{Duration, Instant};
use view::{Status, Tab};

/// The most events handled before the keys again: few, so that a key does not wait long.
const EVENTS: usize = 8;
/// The screen is drawn at most 60 times a second, except after a key.
const FRAME: Duration = Duration::from_millis(17);
/// The bell rings at most this often for other users: they choose how often they write.
const RING: Duration = Duration::from_secs(1);
/// The session gets the time at least this often, so that seconds on the screen are right.
const TICK: Duration = Duration::from_secs(1);
const MOUSE_TAKEN: &str = "the mouse wheel now scrolls; hold Shift to select text";
const MOUSE_LEFT: &str = "the mouse now selects text; PgUp and PgDn scroll";

type Composed = Result<String, String>;

struct Screen {
    session: Session,
    backend: Backend,
    lines: Lines,
    views: Views,
    options: Options,
    /// When Escape was the last key and had no effect.
    escaped: Option<Instant>,
    pastes: Pastes,
    /// The text from the user's editor, or why there is none.
    composed: (Arc<dyn Fn(Composed) + Send + Sync>, Receiver<Composed>),
    /// Set when the session has ended by itself: the reason and all conversations stay visible until the user leaves.
    over: Option<Exit>,
}

/// The state of the screen beside the session's.
struct Views {
    screen: FullScreen,
    conversations: Conversations,
    /// The mouse is taken.
    mouse: bool,
    /// When another user last rang the bell.
    rang: Option<Instant>,
    /// The dialog for a new password: what is typed is not a line, and not shown.
    asking: Option<PasswordDialog>,
    /// Whether new mail is in no frame yet.
    undrawn_mail: bool,
    /// Gets a message when the frame with the latest mail is on the terminal.
    drawing_mail: Option<Receiver<()>>,
}

/// Runs until the user leaves.
///
/// # Errors
/// If the terminal or a thread is not available.
pub fn run(
    link: (Connection, Reconnector),
    session: Session,
    inputs: &mut Inputs,
    options: &Options,
    greeting: String,
) -> io::Result<Exit> {
    // Before the terminal is asked for the widths of its characters: it may answer at once.
    inputs.taken_by(Taker::Screen);
    let screen = FullScreen::start(options.mouse, inputs.lender(), inputs.closer())?;
    let backend = Backend::start(session.me(), link, options, Box::new(inputs.waker()))?;
    let conversations = Conversations::default();
    let ((done, left), wake) = (channel(), inputs.waker());
    let composed = move |text| {
        let _ = done.send(text);
        wake();
    };
    let mut screen = Screen {
        session,
        backend,
        lines: Lines::default(),
        views: Views {
            screen,
            conversations,
            mouse: options.mouse,
            rang: None,
            asking: None,
            undrawn_mail: false,
            drawing_mail: None,
        },
        options: options.clone(),
        escaped: None,
        pastes: Pastes::default(),
        composed: (Arc::new(composed), left),
        over: None,
    };
    screen.greet(greeting);
    let mut exit = screen.serve(inputs);
    inputs.taken_by(Taker::End);
    let Screen { backend, views, lines, .. } = screen;
    if let Some(unsent) = lines.unsent() {
        exit.status = 1;
        exit.warnings.push(unsent);
    }
    views.screen.want(|wanted| wanted.end = true);
    backend.finish(&exit);
    views.screen.finish(exit.waits);
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
            let text = "your locale is not UTF-8, so characters outside ASCII are shown as ?; \
                        start with LANG=C.UTF-8 to see them";
            texts.push(text.into());
        }
        texts.into_iter().for_each(|text| self.views.notice(text));
    }

    /// Handles everything that arrives until the client ends. Draws after a key or a signal at once, and other changes
    /// together, at most once every [`FRAME`].
    fn serve(&mut self, inputs: &mut Inputs) -> Exit {
        self.draw();
        // Mail is requested before anything arrives.
        if let Some(exit) = self.take(Event::Tick) {
            return exit;
        }
        let (mut drawn, mut ticked, mut dirty) = (Instant::now(), Instant::now(), false);
        loop {
            let wait = match dirty {
                _ if self.over.is_none() && !self.backend.is_idle() => Duration::ZERO,
                true => FRAME.saturating_sub(drawn.elapsed()),
                false => TICK.saturating_sub(ticked.elapsed()),
            };
            let (keys, signals) = inputs.next(wait);
            let at_once = !keys.is_empty() || !signals.is_empty();
            if !keys.is_empty() {
                self.backend.touch();
            }
            let exit = keys.into_iter().find_map(|keys| self.keys(keys));
            let mut exit = exit.or_else(|| signals.into_iter().find_map(|signal| self.signal(signal)));
            self.take_composed();
            if exit.is_none() && self.views.drawing_mail.take_if(|drawn| drawn.try_recv().is_ok()).is_some() {
                exit = self.take(Event::MailShown);
            }
            if exit.is_none() && ticked.elapsed() >= TICK {
                ticked = Instant::now();
                exit = self.take(Event::Tick);
            }
            for _ in 0..EVENTS {
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

    fn signal(&mut self, signal: i32) -> Option<Exit> {
        match signal {
            SIGWINCH => self.views.screen.want(|wanted| wanted.redraw = true),
            SIGTSTP => self.views.suspend(),
            SIGCONT => self.views.screen.want(|wanted| wanted.resume = true),
            _ => return Some(self.leave_now()),
        }
        None
    }

    /// Handles an event and the lines that waited for it.
    fn take(&mut self, event: Event) -> Option<Exit> {
        let was_wrong = matches!(event, Event::PasswordChanged(Err(ChangeError::WrongPassword)));
        if was_wrong && self.views.conversations.current().editor.is_empty() {
            // The next line is often the right password, which must not become a message.
            self.views.asking.get_or_insert_with(|| PasswordDialog::new(CHANGE));
        }
        if let exit @ Some(_) = self.drive(event) {
            return exit;
        }
        // A line typed after a command belongs to the view that the command opens.
        let before = self.views.conversations.current().with.clone();
        let exit = self.take_lines();
        self.views.conversations.carry(&before);
        exit
    }

    /// Passes waiting lines to the session as long as it takes them.
    fn take_lines(&mut self) -> Option<Exit> {
        while self.over.is_none()
            && let Some(line) = self.lines.next(&self.session)
        {
            if let exit @ Some(_) = self.drive(line) {
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
        // The user did not request the end: after an exit, the rest of a line being typed would go to the shell.
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
        let trust = match &self.views.conversations.current().with {
            Some(with) => session.trust_word(with),
            None => "",
        };
        let current = self.views.conversations.index();
        let tab = |(at, view): (usize, &Conversation)| Tab {
            name: match &view.with {
                Some(with) if at != current => session.marked(with),
                Some(with) if session.has_room(with) => format!("room with {}", session.marked(with)),
                Some(with) => format!("private with {}", session.marked(with)),
                None => "everyone".into(),
            },
            unread: view.unread,
            current: at == current,
        };
        let tabs = self.views.conversations.all().iter().enumerate().map(tab).collect();
        let view = self.views.conversations.current();
        let unseen = Editor::default();
        let (alarm, link) = match (&self.over, session.leaving()) {
            (Some(_), _) => ("THE SESSION IS OVER: Ctrl-C leaves".into(), String::new()),
            (None, Some(leaving)) => (leaving, session.connection()),
            (None, None) if session.is_responsive() => (String::new(), session.connection()),
            (None, None) => (session.connection(), String::new()),
        };
        let tls = if self.options.tls { "" } else { "NO TLS" };
        let safety: Vec<&str> = [tls, trust].into_iter().filter(|part| !part.is_empty()).collect();
        let status = Status {
            tabs,
            alarm,
            link,
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
        let drawn = std::mem::take(&mut self.views.undrawn_mail).then(|| sync_channel(1));
        let (drawn, drawing) = drawn.unzip();
        self.views.drawing_mail = drawing.or(self.views.drawing_mail.take());
        self.views.screen.want(|wanted| {
            wanted.frame = Some(frame);
            wanted.drawn = drawn.or(wanted.drawn.take());
        });
    }
}

impl Views {
    fn notice(&mut self, text: String) {
        self.conversations.show(notice(text), &clock::day);
    }

    fn bell(&self) {
        self.screen.want(|wanted| wanted.bell = true);
    }

    fn suspend(&mut self) {
        if signals::can_suspend() {
            self.screen.want(|wanted| wanted.suspend = true);
        }
    }
}

impl Front for Views {
    fn display(&mut self, display: Display) -> Option<Event> {
        match display {
            Display::Entry(entry) => self.conversations.show(entry, &clock::day),
            Display::Mail(entries) => {
                self.conversations.show_mail(entries, &clock::day);
                (self.undrawn_mail, self.drawing_mail) = (true, None);
            }
            // A bar or the status line shows it.
            Display::Progress(_) => {}
            // In a flood, one ring is enough.
            Display::Alert(..) if self.rang.is_some_and(|rang| rang.elapsed() < RING) => {}
            Display::Alert(from, place) => {
                self.rang = Some(Instant::now());
                match self.conversations.in_view(&place) {
                    true => self.bell(),
                    false => {
                        let text = format!("message from {from}");
                        self.screen.want(|wanted| wanted.notification = Some(text));
                    }
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
                self.screen.want(|wanted| wanted.mouse = Some(self.mouse));
                self.notice(if self.mouse { MOUSE_TAKEN } else { MOUSE_LEFT }.into());
            }
            Display::Clear => self.conversations.clear(),
            Display::Forget => self.conversations.forget(),
        }
        None
    }

    /// The user has typed them already. A `/passwd FILE` typed earlier does not end a question in progress.
    fn passwords(&mut self, file: Option<String>) -> Passwords {
        let answers = self.asking.take_if(|_| file.is_none()).and_then(PasswordDialog::answers);
        let mut answers = answers.unwrap_or_default().into_iter();
        let passwords = answers.next().zip(answers.next());
        let text = "/passwd takes no file here: it asks for the password";
        Box::new(move || passwords.ok_or_else(|| StartError::Usage(text.into())))
    }
}
