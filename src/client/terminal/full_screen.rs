//! The full screen, written to by a thread of its own.
//!
//! Invariant: no other thread waits for the terminal: one that accepts no output (Ctrl-S, a hung ssh) delays drawing
//! and nothing else. Only the newest frame waits; only rows that changed are written, each frame in one piece.

use super::frame::{Frame, Row, Style};
use super::inputs::Lender;
use super::signals::obey;
use super::{MOUSE_OFF, MOUSE_ON, abandon, enter, lend, restore, size, write};
use crate::client::text::{self, SAMPLES};
use crate::sync::{lock, spawn};
use signal_hook::consts::SIGTSTP;
use std::fmt::{self, Write as _};
use std::io;
use std::mem::take;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use termion::{clear, color, cursor, style};

/// The longest wait for a terminal that accepts no output at the end: the user may have paused it with Ctrl-S.
const FAREWELL: Duration = Duration::from_secs(30);
/// The same for an end that nothing may delay, such as after a signal: short enough to seem immediate.
const HURRIED_FAREWELL: Duration = Duration::from_millis(500);
/// Begins a link (OSC 8): the target and [`ST`] follow. An empty target ends the link.
const LINK: &str = "\x1b]8;;";
/// Ends a control string (ECMA-48, 5.6).
const ST: &str = "\x1b\\";
/// A request for the cursor's position (DSR 6), which the terminal answers (CPR).
const ASK_POSITION: &str = "\x1b[6n";
/// The row in which widths are measured first. F3 with Shift looks like an answer about row 1.
const FIRST_SAMPLE: u16 = 2;

/// Records the cursor's position behind a sample; true if that changes the widths of texts.
pub fn has_measured(row: u16, column: u16) -> bool {
    let sample = row.checked_sub(FIRST_SAMPLE).map(usize::from);
    sample.is_some_and(|sample| text::measured(sample, usize::from(column.saturating_sub(1))))
}

/// The full screen, from [`start`](FullScreen::start) to [`finish`](FullScreen::finish).
pub struct FullScreen(Arc<Shared>);

#[derive(Default)]
struct Shared {
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

/// Runs another program, which has the terminal meanwhile; the argument tells why it could not get it.
pub type Program = Box<dyn FnOnce(io::Result<()>) + Send>;

/// The next things to write.
#[derive(Default)]
pub struct Wanted {
    /// The next frame.
    pub frame: Option<Frame>,
    /// Gets a message when the next frame is written.
    pub drawn: Option<SyncSender<()>>,
    /// The contents of the screen are unknown: the next frame is drawn completely.
    pub redraw: bool,
    /// Rings.
    pub bell: bool,
    /// Rings, and asks the desktop to show this text (OSC 9).
    pub notification: Option<String>,
    /// Takes the mouse, or leaves it to the terminal.
    pub mouse: Option<bool>,
    /// Gives the terminal back and stops the process. SIGCONT, which continues it, asks to `resume`.
    pub suspend: bool,
    /// Takes the terminal again, even if a shell has changed its modes.
    pub resume: bool,
    /// Gives the terminal to this program until it has ended.
    pub program: Option<Program>,
    /// Gives the terminal back.
    pub end: bool,
    is_new: bool,
    /// The thread has ended, and the terminal is as before.
    has_ended: bool,
}

impl FullScreen {
    /// Takes the screen, and the mouse if wanted. `failed` is called if the terminal cannot be written to; `keys` are
    /// lent with the terminal.
    ///
    /// # Errors
    /// If there is no terminal, its modes cannot be set, or no thread is available.
    pub fn start(
        mouse: bool,
        keys: Lender,
        failed: impl FnOnce() + Send + 'static,
    ) -> io::Result<FullScreen> {
        let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let mut painter = Painter { color, mouse, shown: Vec::new() };
        painter.resume()?;
        let shared = Arc::<Shared>::default();
        let me = shared.clone();
        spawn("screen", move || {
            let painted = painter.run(&me, &keys);
            restore();
            lock(&me.wanted).has_ended = true;
            me.changed.notify_all();
            if painted.is_err() {
                failed();
            }
        })?;
        Ok(FullScreen(shared))
    }

    /// Changes what is written next.
    pub fn want(&self, change: impl FnOnce(&mut Wanted)) {
        let mut wanted = lock(&self.0.wanted);
        change(&mut wanted);
        wanted.is_new = true;
        self.0.changed.notify_all();
    }

    /// Waits until the terminal is given back: up to 30 s, or half a second if the user does not wait. Its modes are
    /// restored even if it accepts no output.
    pub fn finish(self, waits: bool) {
        self.want(|wanted| wanted.end = true);
        let patience = if waits { FAREWELL } else { HURRIED_FAREWELL };
        let wanted = lock(&self.0.wanted);
        drop(self.0.changed.wait_timeout_while(wanted, patience, |wanted| !wanted.has_ended));
        abandon();
    }
}

/// The thread's state.
struct Painter {
    /// Without colours there is still bold and reverse.
    color: bool,
    /// The mouse's reports are requested.
    mouse: bool,
    /// The rows on the screen; empty if unknown.
    shown: Vec<Row>,
}

impl Painter {
    fn run(&mut self, shared: &Shared, keys: &Lender) -> io::Result<()> {
        self.measure()?;
        loop {
            let wanted = shared.changed.wait_while(lock(&shared.wanted), |wanted| !wanted.is_new);
            let mut wanted = take(&mut *wanted.unwrap_or_else(PoisonError::into_inner));
            if wanted.end {
                return Ok(());
            }
            if let Some(program) = wanted.program.take() {
                self.lend(keys, program)?;
            }
            self.paint(wanted)?;
        }
    }

    fn paint(&mut self, wanted: Wanted) -> io::Result<()> {
        if wanted.suspend {
            restore();
            obey(SIGTSTP);
        }
        if wanted.resume {
            self.resume()?;
            self.measure()?;
        }
        if let Some(taken) = wanted.mouse {
            self.mouse = taken;
            write(if taken { MOUSE_ON } else { MOUSE_OFF })?;
        }
        if wanted.redraw {
            self.shown.clear();
        }
        if let Some(frame) = wanted.frame {
            let out = self.difference(&frame).expect("a string takes everything written to it");
            self.shown.clear();
            write(&out)?;
            self.shown = frame.rows;
            let _ = wanted.drawn.map(|drawn| drawn.try_send(()));
        }
        match wanted.notification {
            Some(text) => write(&format!("\x07\x1b]9;{}\x07", text.replace(char::is_control, ""))),
            None if wanted.bell => write("\x07"),
            None => Ok(()),
        }
    }

    /// Runs a program that reads and writes the terminal itself.
    fn lend(&mut self, keys: &Lender, program: Program) -> io::Result<()> {
        let lent = keys.lend(|| write(ASK_POSITION));
        if lent.is_ok() {
            lend();
        }
        program(lent);
        self.resume()?;
        keys.take_back();
        self.measure()
    }

    fn resume(&mut self) -> io::Result<()> {
        self.shown.clear();
        enter(true)?;
        write(if self.mouse { MOUSE_ON } else { "" })
    }

    /// Asks how wide the terminal shows texts whose width differs between terminals, one in each row: the answers (CPR)
    /// report the cursor's position. The next frame is drawn over it.
    fn measure(&mut self) -> io::Result<()> {
        // On a lower screen the answers could not be told apart.
        if usize::from(size().rows) < SAMPLES.len() + 1 {
            return Ok(());
        }
        let ask = |(row, sample): (u16, &(&str, _, _))| {
            format!("{}{}{ASK_POSITION}", cursor::Goto(1, row), sample.0)
        };
        self.shown.clear();
        write(&(FIRST_SAMPLE..).zip(&SAMPLES).map(ask).collect::<String>())
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
            // Clear first: behind a full row this would clear its last column.
            write!(out, "{}{}", cursor::Goto(1, n), clear::CurrentLine)?;
            for span in line {
                self.style(&mut out, span.style)?;
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

    fn style(&self, out: &mut String, style: Style) -> fmt::Result {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::terminal::frame::Span;

    fn frame(lines: &[&str]) -> Frame {
        let style = Style { color: Some(31), bold: true, ..Style::default() };
        let rows = lines.iter().map(|line| vec![Span { text: (*line).into(), style, link: None }]).collect();
        Frame { rows, cursor: (2, 1), scroll: 0 }
    }

    fn painter(color: bool, shown: &[&str]) -> Painter {
        Painter { color, mouse: true, shown: frame(shown).rows }
    }

    #[test]
    fn only_what_changed_is_written() {
        let out = painter(true, &["one", "two"]).difference(&frame(&["one", "2"])).expect("a string");
        assert_eq!(out, "\x1b[?25l\x1b[2;1H\x1b[2K\x1b[38;5;31m\x1b[1m2\x1b[m\x1b[2;3H\x1b[?25h");
        let out = painter(true, &["one"]).difference(&frame(&["one", "two"])).expect("a string");
        assert!(out.contains("\x1b[2J") && out.contains("one") && out.contains("two"));
    }

    #[test]
    fn links_are_opened_and_closed_around_their_text() {
        let mut linked = frame(&["https://a.org"]);
        linked.rows[0][0].link = Some("https://a.org".into());
        let out = painter(false, &[]).difference(&linked).expect("a string");
        assert!(out.contains("\x1b]8;;https://a.org\x1b\\https://a.org\x1b]8;;\x1b\\\x1b[m"), "{out:?}");
    }

    #[test]
    fn cursor_report_counts_only_in_the_rows_of_samples() {
        for (row, column) in [(1, 3), (2, 5), (0, 0), (9, 3), (5, 9)] {
            assert!(!has_measured(row, column), "a key that looks like one, or nothing new: {row} {column}");
        }
    }

    #[test]
    fn bold_remains_without_colour() {
        let out = painter(false, &[]).difference(&frame(&["one"])).expect("a string");
        assert!(out.contains("\x1b[1mone") && !out.contains("38;5"), "{out:?}");
    }

    #[test]
    fn terminal_of_another_job_is_left_alone() {
        let wanted =
            Wanted { frame: Some(frame(&["one"])), bell: true, mouse: Some(true), ..Wanted::default() };
        painter(true, &[]).paint(wanted).expect("nothing to fail");
    }
}
