//! Plain mode: typed lines in, one line for each event out, no escape sequences.
//!
//! Invariant: plain mode never asks, and flushes each line. An unread output delays the session, but not the network.

use super::backend::{Backend, Front, Passwords, drive};
use super::entry::{self, Entry, SendState, Source};
use super::error::StartError;
use super::lines::{Lines, Typed};
use super::net::connect::Connection;
use super::net::reconnect::Reconnector;
use super::options::Options;
use super::password_file;
use super::path::typed_path;
use super::printer::Printer;
use super::session::{Display, Event, Exit, FAREWELL, NotText, Session};
use super::terminal::signals::{obey, on_signals};
use super::text::quoted;
use crate::clock;
use crate::crypto::envelope::MAX_TEXT;
use crate::sync::spawn;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{self, BufRead, Read};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// The most lines between the input's thread and the loop; the loop itself reads ahead.
const QUEUE: usize = 16;
/// The session gets the time at least this often: deadlines are met to the second.
const TICK: Duration = Duration::from_secs(1);
/// How often the loop checks whether mail is printed.
const PRINT_TICK: Duration = Duration::from_millis(50);

/// Runs until the input or the connection ends.
///
/// # Errors
/// If the output cannot be written, or no thread can be started.
pub fn run(
    link: (Connection, Reconnector),
    mut session: Session,
    options: &Options,
    greeting: &str,
) -> io::Result<Exit> {
    // One pending wake-up is enough.
    let (wake, waking) = sync_channel(1);
    let (lines, typed) = sync_channel(QUEUE);
    let printer = Printer::start(options.times)?;
    let (stopping, signalled, happened) = (printer.clone(), wake.clone(), wake.clone());
    let mut is_second = false;
    on_signals(&[SIGTERM, SIGINT, SIGHUP], move |signal, _| {
        // A second signal exits at once: the end may be waiting for a reader of the output.
        if std::mem::replace(&mut is_second, true) {
            obey(signal);
        }
        stopping.stop(signal);
        let _ = signalled.try_send(());
    })?;
    let poke = Box::new(move || _ = happened.try_send(()));
    let backend = Backend::start(session.me(), link, options, poke)?;
    spawn("input", move || read_lines(lines, &wake))?;
    printer.print(format!("* {greeting}"));
    let (times, password_file) = (options.times, options.password_file.clone());
    let mut front = Plain { printer, times, password_file, prints_mail: false };
    let mut lines = Lines::of(typed);
    let exit = front.serve(&mut session, &backend, &waking, &mut lines);
    if !session.is_leaving()
        && let Some(text) = lines.unsent()
    {
        front.printer.print(format!("! {text}"));
    }
    backend.finish(&exit);
    front.printer.finish()?;
    Ok(exit)
}

struct Plain {
    printer: Printer,
    times: bool,
    password_file: Option<PathBuf>,
    /// Whether mail is being printed: the session is notified when that is done.
    prints_mail: bool,
}

impl Plain {
    fn serve(
        &mut self,
        session: &mut Session,
        backend: &Backend,
        waking: &Receiver<()>,
        lines: &mut Lines,
    ) -> Exit {
        let mut had_line = false;
        // Mail is requested before anything arrives.
        if let Some(exit) = drive(session, backend, self, Event::Tick) {
            return exit;
        }
        loop {
            if backend.is_idle() && !had_line {
                let _ = waking.recv_timeout(if self.prints_mail { PRINT_TICK } else { TICK });
            }
            let stopped = self.printer.stopped();
            if let Some(signal) = stopped {
                let signal = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
                self.printer.print(format!("! ended by {signal}"));
            }
            // Otherwise a script would wait as long as the network is silent. When leaving, the session has its own
            // patience.
            let is_silent = session.owed().is_some_and(|since| since.elapsed() >= FAREWELL);
            let is_unheard = is_silent && !session.is_leaving() && lines.end();
            if stopped.is_some() || self.printer.has_failed() || is_unheard {
                let exit = drive(session, backend, self, Event::LeaveNow).unwrap_or_default();
                return Exit { status: 1, ..exit };
            }
            let event = match self.prints_mail && self.printer.is_idle() {
                true => {
                    self.prints_mail = false;
                    Event::MailShown
                }
                false => backend.next().unwrap_or(Event::Tick),
            };
            let mut exit = drive(session, backend, self, event);
            let line = if exit.is_none() { lines.next(session) } else { None };
            had_line = line.is_some();
            if let Some(line) = line {
                backend.touch();
                exit = drive(session, backend, self, line);
            }
            if let Some(exit) = exit {
                return exit;
            }
        }
    }
}

impl Front for Plain {
    fn display(&mut self, display: Display) -> Option<Event> {
        match display {
            // Printed when the server has accepted it.
            Display::Entry(Entry { sending: Some((_, SendState::InFlight)), .. }) => {}
            Display::Entry(entry) if entry.source == Source::Recalled && !self.times => {
                self.printer.print(format!("* {} {}", clock::date_minute(entry.time), entry.text));
            }
            Display::Entry(entry) => {
                let has_failed = matches!(entry.sending, Some((_, SendState::Failed(_))));
                if has_failed || !entry.is_update {
                    self.printer.print_at(entry.time, entry.line());
                }
                let state = match &entry.sending {
                    Some((_, SendState::Kept(waits))) => format!("* {waits}"),
                    Some((_, SendState::Partly(why))) => format!("! delivered to {why}"),
                    _ => return None,
                };
                self.printer.print(format!("{state} ({})", quoted(&entry.text)));
            }
            Display::Mail(entries) => {
                self.printer.print(format!("* {}", entry::away_with_times(&entries)));
                entries.iter().for_each(|entry| self.printer.print_at(entry.time, entry.line()));
                self.prints_mail = true;
            }
            Display::Progress(text) => self.printer.print(format!("* {text}")),
            Display::View(_) => {
                self.printer.print("! views have no numbers in plain mode: use /view NAME".into());
            }
            Display::Mouse => self.printer.print("! there is no mouse in plain mode".into()),
            Display::Alert(..) | Display::Enter(_) | Display::Leave(_) | Display::Clear | Display::Forget => {
            }
        }
        None
    }

    /// The old password is in the file of `--password-file`.
    fn passwords(&mut self, file: Option<String>) -> Passwords {
        let old = self.password_file.clone();
        Box::new(move || {
            let (Some(old), Some(new)) = (old, file) else {
                let text = "name a file whose first line is the new password: /passwd FILE";
                return Err(StartError::Usage(text.into()));
            };
            let new = typed_path(&new).map_err(StartError::Usage)?;
            Ok((password_file::read(&old)?, password_file::read(&new)?))
        })
    }
}

/// Reads lines. A line of more than 64 KiB is cut there, which the session still refuses as too long.
fn read_lines(lines: SyncSender<Typed>, wake: &SyncSender<()>) {
    let mut input = io::stdin().lock();
    let limit = MAX_TEXT as u64 * 2;
    for number in 1u64.. {
        let mut line = Vec::new();
        let length = (&mut input).take(limit).read_until(b'\n', &mut line).unwrap_or(0);
        if length == 0 {
            break;
        }
        if !line.ends_with(b"\n") && length as u64 == limit {
            let mut rest = Vec::new();
            while (&mut input).take(limit).read_until(b'\n', &mut rest).unwrap_or(0) as u64 == limit
                && !rest.ends_with(b"\n")
            {
                rest.clear();
            }
        }
        if lines.send(decode(&line, number)).is_err() {
            return;
        }
        let _ = wake.try_send(());
    }
    // The end of the channel is the end of the lines: wake the loop to see it.
    drop(lines);
    let _ = wake.try_send(());
}

/// The text of line `number`, without its end. Some editors put a byte order mark before the first line.
fn decode(line: &[u8], number: u64) -> Typed {
    let line = if number == 1 { line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line) } else { line };
    let problem = match std::str::from_utf8(line) {
        Ok(text) if !text.contains('\0') => return Ok(text.trim_end_matches(['\r', '\n']).to_string()),
        Ok(_) => "has a zero byte",
        Err(_) => "is not UTF-8",
    };
    let problem = format!("line {number} {problem}: it was not sent; convert the input to UTF-8 text");
    Err(NotText { problem, approximation: String::from_utf8_lossy(line).into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_that_is_not_utf_8_is_refused_completely() {
        for (bytes, text) in [
            (&b"hi \r\n"[..], "hi "),
            (b"\xef\xbb\xbf/msg bob x\n", "/msg bob x"),
            (b"\xef\xbb\xbf\xef\xbb\xbf/msg bob x\n", "\u{feff}/msg bob x"),
            (b"a \xef\xbf\xbd b", "a \u{fffd} b"),
        ] {
            assert_eq!(decode(bytes, 1).ok().as_deref(), Some(text));
        }
        assert_eq!(decode(b"\xef\xbb\xbfx", 2).ok().as_deref(), Some("\u{feff}x"), "no mark of the stream");
        for bytes in [
            &b"a\0b\n"[..],
            b"\0",
            b"\xff\xfe/\0m\0",
            b"caf\xe9",
            b"/msg bob \xc3",
            b"\xed\xa0\x80",
            b"\xc0\xaf",
        ] {
            let NotText { problem, .. } = decode(bytes, 7).expect_err("refused");
            assert!(problem.starts_with("line 7 ") && problem.contains("it was not sent"), "{problem}");
        }
    }
}
