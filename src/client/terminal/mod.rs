//! The terminal itself: modes, bytes in, frames out. The only place that names termion.
//!
//! Invariant: whatever was switched on is switched off again by `Drop`, by the panic hook or by
//! [`Terminal::suspend`], whichever comes first; and once it is off, nothing is drawn any more. The modes of the line are
//! restored first: they need no output, so they are restored on a terminal that accepts none, too.
//! What is typed ahead is kept: one thread reads, from the first prompt to the last screen,
//! and [`Keyboard`] hands its bytes on (README#the-screen).
//! Specification: xterm's "Control Sequences", by their names there.

pub mod charset;
pub mod editor;
pub mod input;
mod line;

use crate::client::screen::rows::{Row, Style};
use crate::client::screen::view::{Frame, Size};
use crate::client::text::{self, SAMPLES};
use crate::sync::lock;
use input::{Decoder, Key, Keys, are_lines};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write as _};
use std::mem::{replace, take};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{panic, thread};
use termion::raw::{IntoRawMode, RawTerminal};
use termion::{clear, color, cursor, screen, style};
use zeroize::Zeroizing;

/// Lines that follow one another this closely are one paste, however many reads they take.
const BURST: Duration = Duration::from_millis(10);
/// Nobody types as many keys in one read: there may be more to come.
const MANY: usize = 256;
/// Keys after which such a paste is handed on, whatever comes.
const MAX_BURST: usize = 64 * 1024;
/// At the end of the process, a terminal that accepts no output has this long to accept its former state.
const FAREWELL: Duration = Duration::from_secs(1);
/// It is tried again after this time.
const RETRY: Duration = Duration::from_millis(20);
/// Reads of the keyboard that may wait, of at most 1 KiB each: more than the longest line.
const MAX_PIECES: usize = 64;
/// Ctrl-C.
const INTERRUPT: u8 = 3;
/// The exit status after a panic, as the standard library has it.
const PANICKED: i32 = 101;

/// Bracketed paste (DECSET 2004).
const PASTE_ON: &str = "\x1b[?2004h";
const PASTE_OFF: &str = "\x1b[?2004l";
/// Telling whether the window has the keyboard (DECSET 1004).
const FOCUS_ON: &str = "\x1b[?1004h";
const FOCUS_OFF: &str = "\x1b[?1004l";
/// Telling of the mouse's buttons, to which the wheel belongs (DECSET 1000), in the form without a limit (1006).
const MOUSE_ON: &str = "\x1b[?1000h\x1b[?1006h";
const MOUSE_OFF: &str = "\x1b[?1006l\x1b[?1000l";
/// A link (OSC 8): its target follows, and without one it ends; then the end of the sequence.
const LINK: &str = "\x1b]8;;";
const ST: &str = "\x1b\\";
/// The row in which widths are measured first. F3 with Shift looks like an answer about row 1.
const FIRST_SAMPLE: u16 = 2;
/// No wrapping at the right edge (DECAWM): should the terminal measure a character wider than
/// we do, the row is cut and the screen stays whole.
const WRAP_OFF: &str = "\x1b[?7l";
const WRAP_ON: &str = "\x1b[?7h";

/// The terminal as long as it is ours, for output. It stays locked while a write waits for the terminal.
static OURS: Mutex<Option<File>> = Mutex::new(None);
/// Its modes as long as they are ours; dropping the inner value restores them. Nothing is written under this lock.
static MODES: Mutex<Option<Modes>> = Mutex::new(None);

struct Modes {
    _tty: RawTerminal<File>,
    full_screen: bool,
}

/// Whether there is a person at a terminal that can draw.
pub fn is_terminal() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|name| name == "dumb");
    io::stdin().is_terminal() && io::stdout().is_terminal() && !dumb
}

/// As the terminal is now; the classical size if it does not know.
pub fn size() -> Size {
    match termion::terminal_size() {
        Ok((columns, rows)) if columns > 0 && rows > 0 => Size { columns, rows },
        _ => Size { columns: 80, rows: 24 },
    }
}

/// Makes every panic restore the terminal, print its message and end the process, whichever thread it is in: none
/// goes on unseen.
pub fn install_panic_hook() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        abandon();
        print(panic);
        std::process::exit(PANICKED);
    }));
}

/// Until the handle is closed, a signal that ends or stops the process restores the terminal first. When it continues, the
/// terminal is as before: what is typed at a question for a password stays unseen.
///
/// # Errors
/// If there is no signal handler or thread to be had.
pub fn restore_on_signals() -> io::Result<signal_hook::iterator::Handle> {
    let mut suspended = false;
    on_signals(&[SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGTSTP, SIGCONT], move |signal| {
        let is_ours = lock(&MODES).is_some();
        match signal {
            // A terminal that takes no output must not hold up the next signal.
            SIGCONT if take(&mut suspended) || is_ours => {
                _ = thread::Builder::new().spawn(|| enter(false));
            }
            SIGCONT => {}
            SIGTSTP if !can_suspend() => {}
            SIGTSTP => {
                suspended = is_ours;
                abandon();
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            _ => {
                abandon();
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        }
    })
}

/// Calls `act` on a thread of its own for each of these signals that the process was not started to ignore, until the handle
/// is closed.
///
/// # Errors
/// If there is no signal handler or thread to be had.
pub(super) fn on_signals(
    signals: &[i32],
    act: impl FnMut(i32) + Send + 'static,
) -> io::Result<signal_hook::iterator::Handle> {
    let mut signals = signal_hook::iterator::Signals::new(unignored(signals))?;
    let handle = signals.handle();
    thread::Builder::new().name("signals".into()).spawn(move || signals.forever().for_each(act))?;
    Ok(handle)
}

/// Those of these signals that the process was not started to ignore. As POSIX wants it, nohup(1) and `&` in a shell stay in
/// force. All of them where the system does not tell.
fn unignored(signals: &[i32]) -> impl Iterator<Item = i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    signals.iter().copied().filter(move |signal| mask >> (signal - 1) & 1 == 0)
}

/// Whether a shell is above that can let a stopped program go on: without one, nobody at this terminal could. True where the
/// system does not tell. The kernel stops no such program on Ctrl-Z either (POSIX, orphaned process group).
pub fn can_suspend() -> bool {
    let of = |process: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        let mut words = stat.rsplit_once(')')?.1.split_whitespace().skip(1).map(str::to_string);
        Some((words.next()?, words.next()?, words.next()?))
    };
    let Some((mut parent, group, session)) = of("self") else { return true };
    while let Some((next, its_group, its_session)) = of(&parent) {
        if its_session != session || its_group != group {
            return its_session == session;
        }
        parent = next;
    }
    false
}

/// Takes in where the cursor stood behind a sample; whether texts have other widths than assumed until now.
pub fn has_measured(row: u16, column: u16) -> bool {
    let sample = row.checked_sub(FIRST_SAMPLE).map(usize::from);
    sample.is_some_and(|sample| text::measured(sample, usize::from(column.saturating_sub(1))))
}

/// Takes the terminal: its modes are ours until [`restore`].
///
/// # Errors
/// If there is no terminal, or its modes cannot be set.
pub(super) fn enter(full_screen: bool) -> io::Result<()> {
    // Else the modes to go back to would be our own.
    restore();
    let output = termion::get_tty()?;
    let mut modes = lock(&MODES);
    *modes = Some(Modes { _tty: termion::get_tty()?.into_raw_mode()?, full_screen });
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
pub(super) fn restore() {
    let Some(modes) = lock(&MODES).take() else { return };
    let farewell = farewell(modes.full_screen);
    drop(modes);
    if let Some(mut ours) = lock(&OURS).take() {
        // A terminal that is gone needs no restoring.
        let _ = ours.write_all(farewell.as_bytes());
    }
}

fn farewell(full_screen: bool) -> String {
    let full = format!("{MOUSE_OFF}{FOCUS_OFF}{WRAP_ON}{}", screen::ToMainScreen);
    format!("{}{PASTE_OFF}{}{}", style::Reset, cursor::Show, if full_screen { &full } else { "" })
}

/// As [`restore`], at the end of the process: waits at most a second for a terminal that accepts no output.
pub(super) fn abandon() {
    let end = Instant::now() + FAREWELL;
    let Some(modes) = lock(&MODES).take() else { return };
    let farewell = farewell(modes.full_screen);
    drop(modes);
    let tty = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open("/dev/tty");
    let Ok(mut tty) = tty else { return };
    loop {
        // Nothing is drawn after this. At last it is written beside a thread that is stuck in a write.
        let is_free = OURS.try_lock().map(|mut ours| *ours = None).is_ok();
        let is_last = Instant::now() >= end;
        let is_written = (is_free || is_last) && tty.write_all(farewell.as_bytes()).is_ok();
        if is_written || is_last {
            return;
        }
        thread::park_timeout(RETRY);
    }
}

/// In one piece, if the terminal is ours.
///
/// # Errors
/// If it cannot be written to.
pub(super) fn write(text: &str) -> io::Result<()> {
    match lock(&OURS).as_mut() {
        Some(ours) => ours.write_all(charset::shown(text).as_bytes()),
        None => Ok(()),
    }
}

/// Writes the line anew in which the cursor stands, and leaves it behind `before`, the beginning of that line.
///
/// # Errors
/// As [`write`].
pub(super) fn rewrite(line: &str, before: &str) -> io::Result<()> {
    write(&format!("\r{line}{}\r{before}", clear::UntilNewline))
}

/// The full screen, from [`open`](Self::open) to drop. Either this or a prompter lives, not both.
pub struct Terminal {
    color: bool,
    /// The mouse's reports are asked for.
    mouse: bool,
    /// What stands there now; empty when that is unknown.
    shown: Vec<Row>,
}

impl Terminal {
    /// Takes the screen over, and the mouse if wanted. Without `color` there is still bold and reverse.
    ///
    /// # Errors
    /// If there is no terminal, or its modes cannot be set.
    pub fn open(color: bool, mouse: bool) -> io::Result<Terminal> {
        let mut terminal = Terminal { color, mouse, shown: Vec::new() };
        terminal.resume()?;
        Ok(terminal)
    }

    /// Takes the mouse, or leaves it to the terminal.
    ///
    /// # Errors
    /// If the terminal cannot be written to.
    pub fn take_mouse(&mut self, taken: bool) -> io::Result<()> {
        self.mouse = taken;
        write(if taken { MOUSE_ON } else { MOUSE_OFF })
    }

    /// Shows the frame; writes only the rows that changed.
    ///
    /// # Errors
    /// If the terminal cannot be written to.
    pub fn draw(&mut self, frame: &Frame) -> io::Result<()> {
        let out = self.difference(frame).expect("a string takes everything written to it");
        self.shown.clear();
        write(&out)?;
        self.shown.clone_from(&frame.rows);
        Ok(())
    }

    fn difference(&self, frame: &Frame) -> Result<String, fmt::Error> {
        let mut out = cursor::Hide.to_string();
        let known = self.shown.len() == frame.rows.len();
        if !known {
            write!(out, "{}", clear::All)?;
        }
        for ((row, line), n) in frame.rows.iter().enumerate().zip(1..) {
            if known && self.shown[row] == *line {
                continue;
            }
            // Cleared first: after a full row this would clear its last column.
            write!(out, "{}{}", cursor::Goto(1, n), clear::CurrentLine)?;
            for span in line {
                self.paint(&mut out, span.style)?;
                match &span.link {
                    Some(target) => write!(out, "{LINK}{target}{ST}{}{LINK}{ST}{}", span.text, style::Reset)?,
                    None => write!(out, "{}{}", span.text, style::Reset)?,
                }
            }
        }
        let (column, row) = frame.cursor;
        write!(out, "{}{}", cursor::Goto(column.saturating_add(1), row.saturating_add(1)), cursor::Show)?;
        Ok(out)
    }

    fn paint(&self, out: &mut String, style: Style) -> fmt::Result {
        if let Some(index) = style.color.filter(|_| self.color) {
            write!(out, "{}", color::Fg(color::AnsiValue(index)))?;
        }
        if style.bold {
            write!(out, "{}", style::Bold)?;
        }
        if style.dim {
            write!(out, "{}", style::Faint)?;
        }
        if style.reverse {
            write!(out, "{}", style::Invert)?;
        }
        Ok(())
    }

    /// Forgets what stands on the screen: it was resized or written over.
    pub fn redraw(&mut self) {
        self.shown.clear();
    }

    /// Rings.
    ///
    /// # Errors
    /// If the terminal cannot be written to.
    pub fn bell(&mut self) -> io::Result<()> {
        write("\x07")
    }

    /// Rings, and asks the desktop to show a text (OSC 9).
    ///
    /// # Errors
    /// If the terminal cannot be written to.
    pub fn notify(&mut self, text: &str) -> io::Result<()> {
        let text = text.replace(char::is_control, "");
        write(&format!("\x07\x1b]9;{text}\x07"))
    }

    /// Gives the terminal back, for Ctrl-Z: the caller stops the process; SIGCONT asks to [`resume`](Self::resume).
    pub fn suspend(&mut self) {
        restore();
    }

    /// Takes it over again, also where a shell has changed its modes; the next [`draw`](Self::draw) paints everything.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn resume(&mut self) -> io::Result<()> {
        self.redraw();
        enter(true)?;
        write(if self.mouse { MOUSE_ON } else { "" })
    }

    /// Asks how wide the terminal shows what terminals do not agree about, each in a row of its own: the answers (CPR)
    /// tell where the cursor came to stand. The next frame is drawn over it. Only for a program that reads the answers.
    ///
    /// # Errors
    /// If the terminal cannot be written to.
    pub fn measure(&mut self) -> io::Result<()> {
        // On a lower screen the answers could not be told apart.
        if usize::from(size().rows) < SAMPLES.len() + 1 {
            return Ok(());
        }
        let ask =
            |(row, sample): (u16, &(&str, _, _))| format!("{}{}\x1b[6n", cursor::Goto(1, row), sample.0);
        self.redraw();
        write(&(FIRST_SAMPLE..).zip(&SAMPLES).map(ask).collect::<String>())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// The one reader of the terminal's input, and what it read that nobody has asked for yet.
pub struct Keyboard {
    /// With the time at which they were read.
    bytes: Receiver<(Instant, Zeroizing<Vec<u8>>)>,
    /// When the latest were, of those that were decoded.
    read: Instant,
    decoder: Decoder,
    ready: Keys,
    /// Nobody takes keys for a while: Ctrl-C is SIGINT, as on a terminal that is not raw.
    pub(super) deaf: Arc<AtomicBool>,
}

impl Keyboard {
    /// Begins to read; a process needs only one.
    ///
    /// # Errors
    /// If standard input is closed, or no thread can be had.
    pub fn open() -> io::Result<Keyboard> {
        // A handle of its own: `Stdin` would keep a copy of what is typed, passwords too.
        let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let (sender, bytes) = mpsc::sync_channel(MAX_PIECES);
        let keyboard = Keyboard::of(bytes);
        let deaf = keyboard.deaf.clone();
        // Nothing waits for this thread: it ends with the input or with the process.
        thread::Builder::new().name("keyboard".into()).spawn(move || {
            loop {
                let mut piece = Zeroizing::new(vec![0; 1024]);
                match input.read(&mut piece) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) | Ok(0) => break,
                    Ok(length) => piece.truncate(length),
                }
                if piece.contains(&INTERRUPT) && deaf.load(Ordering::SeqCst) {
                    let _ = signal_hook::low_level::raise(SIGINT);
                }
                if sender.send((Instant::now(), piece)).is_err() {
                    break;
                }
            }
        })?;
        Ok(keyboard)
    }

    fn of(bytes: Receiver<(Instant, Zeroizing<Vec<u8>>)>) -> Keyboard {
        let (decoder, ready, deaf) = (Decoder::default(), Keys::default(), Arc::default());
        Keyboard { bytes, read: Instant::now(), decoder, ready, deaf }
    }

    /// Hands on all keys as they come, those of one read together, until `deliver` returns false or the input ends.
    pub fn read_input(&mut self, mut deliver: impl FnMut(Keys) -> bool) {
        while self.fill() {
            // A paste may take several reads, but what was typed later and waited is none of it.
            while (are_lines(&self.ready) || self.ready.len() >= MANY)
                && self.ready.len() < MAX_BURST
                && let Ok((read, piece)) = self.bytes.recv_timeout(BURST)
            {
                let more = self.decoder.feed(&piece, read);
                let before = take(&mut self.ready);
                if read.saturating_duration_since(replace(&mut self.read, read)) < BURST {
                    let mut both = Keys::new(Vec::with_capacity(before.len() + more.len()));
                    [before, more].iter_mut().for_each(|keys| both.append(keys));
                    self.ready = both;
                } else {
                    self.ready = more;
                    if !deliver(before) {
                        return;
                    }
                }
            }
            if !deliver(take(&mut self.ready)) {
                return;
            }
        }
    }

    /// The next key; `None` when the input has ended.
    pub(super) fn next(&mut self) -> Option<Key> {
        self.fill().then(|| self.ready.remove(0))
    }

    /// Gives back a key that [`next`](Self::next) gave.
    pub(super) fn give_back(&mut self, key: Key) {
        self.ready.insert(0, key);
    }

    /// Waits until a key is ready; false when there will be none.
    fn fill(&mut self) -> bool {
        while self.ready.is_empty() {
            let deadline = self.decoder.deadline();
            let piece = match deadline {
                Some(deadline) => self.bytes.recv_timeout(deadline.saturating_duration_since(Instant::now())),
                None => self.bytes.recv().map_err(RecvTimeoutError::from),
            };
            self.ready = match piece {
                Ok((read, piece)) => {
                    self.read = read;
                    self.decoder.feed(&piece, read)
                }
                // Also at the end of the input: what has begun before it is still something.
                Err(_) if deadline.is_some() => self.decoder.expire(),
                Err(_) => return false,
            };
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::input::Pastes;
    use super::*;
    use crate::client::screen::rows::Span;

    fn frame(lines: &[&str]) -> Frame {
        let style = Style { color: Some(31), bold: true, ..Style::default() };
        let rows = lines.iter().map(|line| vec![Span { text: (*line).into(), style, link: None }]).collect();
        Frame { rows, cursor: (2, 1), scroll: 0 }
    }

    fn terminal(color: bool, shown: &[&str]) -> Terminal {
        Terminal { color, mouse: true, shown: frame(shown).rows }
    }

    #[test]
    fn only_what_changed_is_written() {
        let out = terminal(true, &["one", "two"]).difference(&frame(&["one", "2"])).expect("a string");
        assert_eq!(out, "\x1b[?25l\x1b[2;1H\x1b[2K\x1b[38;5;31m\x1b[1m2\x1b[m\x1b[2;3H\x1b[?25h");
        let out = terminal(true, &["one"]).difference(&frame(&["one", "two"])).expect("a string");
        assert!(out.contains("\x1b[2J") && out.contains("one") && out.contains("two"));
    }

    #[test]
    fn links_are_opened_and_closed_around_their_text() {
        let mut linked = frame(&["https://a.org"]);
        linked.rows[0][0].link = Some("https://a.org".into());
        let out = terminal(false, &[]).difference(&linked).expect("a string");
        assert!(out.contains("\x1b]8;;https://a.org\x1b\\https://a.org\x1b]8;;\x1b\\\x1b[m"), "{out:?}");
    }

    #[test]
    fn answer_about_the_cursor_is_one_only_in_the_rows_of_samples() {
        for (row, column) in [(1, 3), (2, 5), (0, 0), (9, 3), (5, 9)] {
            assert!(!has_measured(row, column), "a key that looks like one, or nothing new: {row} {column}");
        }
    }

    #[test]
    fn without_color_there_is_still_bold() {
        let out = terminal(false, &[]).difference(&frame(&["one"])).expect("a string");
        assert!(out.contains("\x1b[1mone") && !out.contains("38;5"), "{out:?}");
    }

    #[test]
    fn terminal_of_another_job_is_left_alone() {
        let mut terminal = terminal(true, &[]);
        terminal.draw(&frame(&["one"])).expect("nothing to fail");
        terminal.bell().expect("nothing to fail");
        terminal.suspend();
    }

    #[test]
    fn keys_arrive_in_order_and_a_lone_escape_in_time() {
        let (sender, bytes) = mpsc::channel();
        let mut keyboard = Keyboard::of(bytes);
        sender.send((Instant::now(), Zeroizing::new(b"a\rb\x1b".to_vec()))).expect("open");
        assert_eq!(keyboard.next(), Some(Key::Char('a')));
        assert_eq!(keyboard.next(), Some(Key::Enter));
        let mut rest = Vec::new();
        keyboard.read_input(|keys| {
            rest.extend(keys.iter().cloned());
            rest.len() < 2
        });
        assert_eq!(rest, [Key::Char('b'), Key::Escape]);
        drop(sender);
        assert_eq!(keyboard.next(), None);
    }

    #[test]
    fn lines_of_several_reads_are_handed_on_together() {
        let (sender, bytes) = mpsc::channel();
        let mut keyboard = Keyboard::of(bytes);
        let now = Instant::now();
        for (piece, late) in [(&b"one\rtwo"[..], 0), (b"\r", 0), (b"/exit\r", 0), (b"typed\r", 1)] {
            let read = now + late * 2 * BURST;
            sender.send((read, Zeroizing::new(piece.to_vec()))).expect("open");
        }
        drop(sender);
        let mut reads = Vec::new();
        keyboard.read_input(|keys| {
            reads.push(Pastes::default().join(keys).to_vec());
            true
        });
        assert_eq!(reads[0], [Key::Paste("one\ntwo\n/exit\n".into())]);
        assert_eq!((reads.len(), reads[1].last()), (2, Some(&Key::Enter)), "what was typed later");
    }
}
