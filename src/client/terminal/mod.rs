//! The terminal: its modes and its output. Only this room names termion.
//!
//! Invariant: [`restore`], [`abandon`] or the panic hook switches off what [`enter`] has switched on; after that,
//! nothing is drawn. They restore the modes of the line first: those need no output, so they are restored even on a
//! terminal that accepts none. Specification: xterm's "Control Sequences", by their names there; MANUAL#the-screen.

pub mod charset;
pub mod editor;
pub mod frame;
pub mod full_screen;
pub mod input;
pub mod inputs;
mod line;
pub mod signals;

use crate::sync::lock;
use frame::Size;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use std::{panic, thread};
use termion::raw::{IntoRawMode, RawTerminal};
use termion::{clear, cursor, screen, style};

/// The longest wait for a terminal that accepts no output when the process ends: a user or a system waits for that.
const FAREWELL: Duration = Duration::from_secs(1);
/// Time between two attempts within [`FAREWELL`].
const RETRY: Duration = Duration::from_millis(20);
/// The exit status of a panic in a program of the standard library.
const PANICKED: i32 = 101;

/// Bracketed paste (DECSET 2004).
const PASTE_ON: &str = "\x1b[?2004h";
const PASTE_OFF: &str = "\x1b[?2004l";
/// Reports of the window's focus (DECSET 1004).
const FOCUS_ON: &str = "\x1b[?1004h";
const FOCUS_OFF: &str = "\x1b[?1004l";
/// Reports of the mouse's buttons and wheel (DECSET 1000), in decimal, so that columns have no limit (1006).
const MOUSE_ON: &str = "\x1b[?1000h\x1b[?1006h";
const MOUSE_OFF: &str = "\x1b[?1006l\x1b[?1000l";
/// No wrapping at the right edge (DECAWM): if a character is wider than expected, the terminal cuts the row and the
/// other rows stay in place.
const WRAP_OFF: &str = "\x1b[?7l";
const WRAP_ON: &str = "\x1b[?7h";

/// The terminal while it is ours, for output. A write that waits for the terminal holds the lock.
static OURS: Mutex<Option<File>> = Mutex::new(None);
/// Its modes while they are ours; dropping the inner value restores them. No write happens under this lock.
static MODES: Mutex<Option<Modes>> = Mutex::new(None);

struct Modes {
    tty: RawTerminal<File>,
    full_screen: bool,
    /// Another program has the terminal until the next [`enter`].
    are_lent: bool,
}

/// Whether a user is at a terminal that can draw.
pub fn is_terminal() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|name| name == "dumb");
    io::stdin().is_terminal() && io::stdout().is_terminal() && !dumb
}

/// The terminal's present size; 80 × 24 if it is unknown.
pub fn size() -> Size {
    match termion::terminal_size() {
        Ok((columns, rows)) if columns > 0 && rows > 0 => Size { columns, rows },
        _ => Size { columns: 80, rows: 24 },
    }
}

/// Makes every panic, in any thread, restore the terminal, print its message and end the process: otherwise a thread
/// could end unnoticed.
pub fn install_panic_hook() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        abandon();
        print(panic);
        std::process::exit(PANICKED);
    }));
}

/// Whether the terminal's modes are ours.
pub fn is_ours() -> bool {
    lock(&MODES).as_ref().is_some_and(|modes| !modes.are_lent)
}

/// Takes the terminal: its modes are ours until [`restore`].
///
/// # Errors
/// If there is no terminal, or its modes cannot be set.
pub fn enter(full_screen: bool) -> io::Result<()> {
    // Otherwise the modes to restore would be our own.
    restore();
    let output = termion::get_tty()?;
    let mut modes = lock(&MODES);
    *modes = Some(Modes { tty: termion::get_tty()?.into_raw_mode()?, full_screen, are_lent: false });
    drop(modes);
    *lock(&OURS) = Some(output);
    write(PASTE_ON)?;
    if full_screen {
        write(&format!("{}{WRAP_OFF}{FOCUS_ON}{}", screen::ToAlternateScreen, clear::All))
    } else {
        Ok(())
    }
}

/// Gives it back. Does nothing the second time.
pub fn restore() {
    let Some(modes) = lock(&MODES).take() else { return };
    let full_screen = modes.full_screen;
    drop(modes);
    say_farewell(full_screen);
}

/// Gives it to another program until the next [`enter`]. The former modes stay known: that program may leave others.
pub fn lend() {
    let mut modes = lock(&MODES);
    let Some(lent) = modes.as_mut() else { return };
    lent.are_lent = true;
    // The other program notices if the terminal is gone.
    let _ = lent.tty.suspend_raw_mode();
    let full_screen = lent.full_screen;
    drop(modes);
    say_farewell(full_screen);
}

/// Writes the last output. Nothing is drawn after it.
fn say_farewell(full_screen: bool) {
    if let Some(mut ours) = lock(&OURS).take() {
        // A terminal that is gone needs no restoring.
        let _ = ours.write_all(farewell(full_screen).as_bytes());
    }
}

fn farewell(full_screen: bool) -> String {
    let full = format!("{MOUSE_OFF}{FOCUS_OFF}{WRAP_ON}{}", screen::ToMainScreen);
    format!("{}{PASTE_OFF}{}{}", style::Reset, cursor::Show, if full_screen { &full } else { "" })
}

/// As [`restore`], at the end of the process: waits at most a second for a terminal that accepts no output. A program
/// to which the terminal is lent keeps it.
pub fn abandon() {
    let end = Instant::now() + FAREWELL;
    let Some(modes) = lock(&MODES).take_if(|modes| !modes.are_lent) else { return };
    let farewell = farewell(modes.full_screen);
    drop(modes);
    let tty = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open("/dev/tty");
    let Ok(mut tty) = tty else { return };
    loop {
        // Nothing is drawn after this. The last attempt writes even if another thread is stuck in a write.
        let is_free = OURS.try_lock().map(|mut ours| *ours = None).is_ok();
        let is_last = Instant::now() >= end;
        let is_written = (is_free || is_last) && tty.write_all(farewell.as_bytes()).is_ok();
        if is_written || is_last {
            return;
        }
        thread::park_timeout(RETRY);
    }
}

/// Writes in one piece, if the terminal is ours.
///
/// # Errors
/// If it cannot be written to.
pub fn write(text: &str) -> io::Result<()> {
    match lock(&OURS).as_mut() {
        Some(ours) => ours.write_all(charset::shown(text).as_bytes()),
        None => Ok(()),
    }
}

/// Rewrites the cursor's line, and puts the cursor behind `before`, the beginning of that line.
///
/// # Errors
/// As [`write()`].
pub fn rewrite(line: &str, before: &str) -> io::Result<()> {
    write(&format!("\r{line}{}\r{before}", clear::UntilNewline))
}
