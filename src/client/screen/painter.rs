//! Writes to the terminal on a thread of its own.
//!
//! Invariant: the loop never waits for the terminal: one that accepts no output (Ctrl-S, a hung ssh) delays drawing and
//! nothing else. Only the newest frame waits.

use crate::client::session::Exit;
use crate::client::terminal;
use crate::client::terminal::frame::Frame;
use crate::client::terminal::full_screen::FullScreen;
use crate::client::terminal::signals::obey;
use crate::sync::{lock, spawn};
use signal_hook::consts::SIGTSTP;
use std::io;
use std::mem::take;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// At the end, the terminal has this long to accept its former state: it may have been paused with Ctrl-S.
const FAREWELL: Duration = Duration::from_secs(30);
/// The same, if the person does not wait.
const HURRIED_FAREWELL: Duration = Duration::from_millis(500);

/// The full screen, from [`start`](Painter::start) to [`finish`](Painter::finish).
pub struct Painter(Arc<Shared>);

#[derive(Default)]
struct Shared {
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

/// What is to be written next.
#[derive(Default)]
struct Wanted {
    frame: Option<Frame>,
    redraw: bool,
    bell: bool,
    notification: Option<String>,
    /// The mouse is to be taken, or left to the terminal.
    mouse: Option<bool>,
    suspend: bool,
    resume: bool,
    end: bool,
    /// The thread has ended, and the terminal is as it was.
    ended: bool,
}

impl Wanted {
    fn is_nothing(&self) -> bool {
        let quiet = self.frame.is_none() && !self.bell && self.notification.is_none();
        quiet && self.mouse.is_none() && !self.suspend && !self.resume && !self.end
    }
}

impl Painter {
    /// Takes `terminal` over. `failed` is called if it cannot be written to.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(mut terminal: FullScreen, failed: impl FnOnce() + Send + 'static) -> io::Result<Painter> {
        let shared = Arc::<Shared>::default();
        let me = shared.clone();
        spawn("screen", move || {
            let painted = me.run(&mut terminal);
            drop(terminal);
            lock(&me.wanted).ended = true;
            me.changed.notify_all();
            if painted.is_err() {
                failed();
            }
        })?;
        Ok(Painter(shared))
    }

    fn want(&self, want: impl FnOnce(&mut Wanted)) {
        want(&mut lock(&self.0.wanted));
        self.0.changed.notify_all();
    }

    /// Shows a frame, unless there is a newer one by then.
    pub fn draw(&self, frame: Frame) {
        self.want(|wanted| wanted.frame = Some(frame));
    }

    /// What stands on the screen is unknown: the next frame is drawn completely.
    pub fn redraw(&self) {
        self.want(|wanted| wanted.redraw = true);
    }

    /// Rings.
    pub fn bell(&self) {
        self.want(|wanted| wanted.bell = true);
    }

    /// Rings, and asks the desktop to show a text.
    pub fn notify(&self, text: String) {
        self.want(|wanted| wanted.notification = Some(text));
    }

    /// Takes the mouse, or leaves it to the terminal.
    pub fn take_mouse(&self, taken: bool) {
        self.want(|wanted| wanted.mouse = Some(taken));
    }

    /// Gives the terminal back, and stops the process. SIGCONT, which lets it continue, asks to [`resume`](Self::resume).
    pub fn suspend(&self) {
        self.want(|wanted| wanted.suspend = true);
    }

    /// Takes the terminal again.
    pub fn resume(&self) {
        self.want(|wanted| wanted.resume = true);
    }

    /// Gives the terminal back soon.
    pub fn end(&self) {
        self.want(|wanted| wanted.end = true);
    }

    /// Waits until the terminal is given back. One that accepts no output gets its modes back nevertheless.
    pub fn finish(self, exit: &Exit) {
        self.end();
        let patience = if exit.waits { FAREWELL } else { HURRIED_FAREWELL };
        let wanted = lock(&self.0.wanted);
        drop(self.0.changed.wait_timeout_while(wanted, patience, |wanted| !wanted.ended));
        terminal::abandon();
    }
}

impl Shared {
    fn run(&self, terminal: &mut FullScreen) -> io::Result<()> {
        terminal.measure()?;
        loop {
            let wanted = self.changed.wait_while(lock(&self.wanted), |wanted| wanted.is_nothing());
            let wanted = take(&mut *wanted.unwrap_or_else(PoisonError::into_inner));
            if wanted.end {
                return Ok(());
            }
            if wanted.suspend {
                terminal.suspend();
                obey(SIGTSTP);
            }
            if wanted.resume {
                terminal.resume()?;
                terminal.measure()?;
            }
            if let Some(taken) = wanted.mouse {
                terminal.take_mouse(taken)?;
            }
            if wanted.redraw {
                terminal.redraw();
            }
            if let Some(frame) = wanted.frame {
                terminal.draw(&frame)?;
            }
            match wanted.notification {
                Some(text) => terminal.notify(&text)?,
                None if wanted.bell => terminal.bell()?,
                None => {}
            }
        }
    }
}
