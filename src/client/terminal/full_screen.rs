//! The full screen, from [`FullScreen::open`] to its drop.
//!
//! Invariant: only rows that changed are written, each frame in one piece. A prompter does not live beside it.

use super::frame::{Frame, Row, Style};
use super::{MOUSE_OFF, MOUSE_ON, enter, restore, size, write};
use crate::client::text::{self, SAMPLES};
use std::fmt::{self, Write as _};
use std::io;
use termion::{clear, color, cursor, style};

/// A link (OSC 8): its target follows, and without one it ends; then the end of the sequence.
const LINK: &str = "\x1b]8;;";
const ST: &str = "\x1b\\";
/// The row in which widths are measured first. F3 with Shift looks like an answer about row 1.
const FIRST_SAMPLE: u16 = 2;

/// Takes in where the cursor stood behind a sample; whether texts have other widths than assumed until now.
pub fn has_measured(row: u16, column: u16) -> bool {
    let sample = row.checked_sub(FIRST_SAMPLE).map(usize::from);
    sample.is_some_and(|sample| text::measured(sample, usize::from(column.saturating_sub(1))))
}

/// See the module.
pub struct FullScreen {
    color: bool,
    /// The mouse's reports are asked for.
    mouse: bool,
    /// What stands there now; empty when that is unknown.
    shown: Vec<Row>,
}

impl FullScreen {
    /// Takes the screen over, and the mouse if wanted. Without `color` there is still bold and reverse.
    ///
    /// # Errors
    /// If there is no terminal, or its modes cannot be set.
    pub fn open(color: bool, mouse: bool) -> io::Result<FullScreen> {
        let mut terminal = FullScreen { color, mouse, shown: Vec::new() };
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

impl Drop for FullScreen {
    fn drop(&mut self) {
        restore();
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

    fn terminal(color: bool, shown: &[&str]) -> FullScreen {
        FullScreen { color, mouse: true, shown: frame(shown).rows }
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
}
