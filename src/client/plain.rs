//! The client as a line filter: what one would type in, one line an event out, no escape sequences.
//!
//! Invariant: it never asks; each line is flushed; a line is read only when the session takes it,
//! so a long script waits for the server instead of for memory. Output that nobody reads holds up the session, and never
//! the network.

use super::command::{self, Command};
use super::connect::{Connection, StartError};
use super::entry::{Entry, SendState, Source};
use super::options::Options;
use super::path::typed_path;
use super::printer::Printer;
use super::reconnect::Way;
use super::session::{Effect, Event, Session};
use super::spawn;
use super::text::quoted;
use super::work::Work;
use crate::clock;
use crate::crypto::envelope::MAX_TEXT;
use crate::crypto::secret::Password;
use crate::protocol::ClientMessage;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{self, BufRead, Read};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

/// Lines of the input that may wait.
const QUEUE: usize = 16;
/// Time passes at least this often: deadlines are met to the second.
const TICK: Duration = Duration::from_secs(1);

/// Runs until the input ends or the connection does; the exit status.
///
/// # Errors
/// If the output cannot be written, or no thread can be had.
pub fn run(
    connection: Connection,
    way: Way,
    mut session: Session,
    options: &Options,
    greeting: &str,
) -> io::Result<u8> {
    // A wake says nothing but that it is time to look: one that waits is enough.
    let (wake, waking) = sync_channel(1);
    let (lines, typed) = sync_channel(QUEUE);
    let wanted = [SIGTERM, SIGINT, SIGHUP].into_iter().filter(|signal| !is_ignored(*signal));
    let mut signals = signal_hook::iterator::Signals::new(wanted)?;
    let (happened, signalled) = (wake.clone(), wake.clone());
    let printer = Printer::start()?;
    let stopping = printer.clone();
    spawn("signals", move || {
        for (count, signal) in signals.forever().enumerate() {
            // A second signal exits at once: the end may be waiting for a reader of the output.
            if count > 0 {
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            stopping.stop();
            let _ = signalled.try_send(());
        }
    })?;
    let poke = Box::new(move || _ = happened.try_send(()));
    let work = Work::start((connection, way), options, poke)?;
    spawn("input", move || read_lines(lines, &wake))?;
    printer.print(format!("* {greeting}"));
    let mut lines = Lines { typed, held: None, taken: 0 };
    let status = serve(&mut session, options, &work, &printer, &waking, &mut lines);
    if !session.is_leaving()
        && let Some(text) = lines.unsent()
    {
        printer.print(format!("! {text}"));
    }
    if !matches!(status, Ok(0)) {
        // Otherwise other users see us online until the grace period ends.
        let _ = work.send(&ClientMessage::Logout);
    }
    // With status 1, the farewell may have been said, or nobody may be there to hear it.
    work.finish(!matches!(status, Ok(0)));
    printer.finish()?;
    status
}

/// Whether the process was started with the signal ignored, as nohup(1) does, and a shell for what runs in the background:
/// it stays ignored. False where the system does not tell.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

fn serve(
    session: &mut Session,
    options: &Options,
    work: &Work,
    printer: &Printer,
    waking: &Receiver<()>,
    lines: &mut Lines,
) -> io::Result<u8> {
    loop {
        if work.is_idle() {
            let _ = waking.recv_timeout(TICK);
        }
        if printer.is_stopped() {
            session.last_words().lines().for_each(|line| printer.print(format!("! {line}")));
            return Ok(1);
        }
        let mut events = vec![work.next().unwrap_or(Event::Tick)];
        loop {
            for event in std::mem::take(&mut events) {
                for effect in session.handle(event, clock::now_ms(), Instant::now()) {
                    match effect {
                        Effect::Begin => work.begin(),
                        Effect::Send(message) => events.extend(work.send(&message)),
                        // Shown when the server has taken it.
                        Effect::Show(Entry { sending: Some((_, SendState::UnderWay)), .. }) => {}
                        Effect::Show(entry) if entry.source == Source::Recalled => {
                            let date = clock::date_minute(entry.time);
                            printer.print(format!("* {date} {}", entry.text));
                        }
                        Effect::Show(entry) => printer.print(entry.line()),
                        Effect::Progress(text) => printer.print(format!("* {text}")),
                        Effect::Transfer(number, job) => events.extend(work.transfer(number, job)),
                        Effect::MakeSessionKey => work.make_session_key()?,
                        Effect::ChangePassword(file) => {
                            let old = options.password_file.clone();
                            work.change_password(session.me(), move || passwords(old, file))?;
                        }
                        Effect::Alert(..) | Effect::Enter(_) | Effect::Leave(_) => {}
                        Effect::View(_) => {
                            printer.print("! without a screen views have no numbers: /view NAME".into());
                        }
                        Effect::Mouse => printer.print("! without a screen there is no mouse to take".into()),
                        Effect::Clear | Effect::Forget => {}
                        Effect::Quit(status) => return Ok(status),
                    }
                }
                work.owes(session.owed());
            }
            if printer.has_failed() {
                return Ok(1);
            }
            if !events.is_empty() {
                continue;
            }
            if !session.takes_lines() || printer.is_stopped() {
                break;
            }
            match lines.next(session.is_settled()) {
                Ok(line) => {
                    work.touch();
                    events.push(Event::Line(line));
                }
                Err(TryRecvError::Disconnected) => events.push(Event::EndOfInput),
                Err(TryRecvError::Empty) => break,
            }
        }
    }
}

/// The lines of the input.
struct Lines {
    typed: Receiver<String>,
    /// A command that waits.
    held: Option<String>,
    /// How many the session has taken.
    taken: u64,
}

impl Lines {
    /// The next line, if there is one and the session can take it: a command's answer comes after those of the lines
    /// before it.
    fn next(&mut self, is_settled: bool) -> Result<String, TryRecvError> {
        let line = self.held.take().map_or_else(|| self.typed.try_recv(), Ok)?;
        if line.starts_with('/') && !is_settled {
            self.held = Some(line);
            return Err(TryRecvError::Empty);
        }
        self.taken += 1;
        Ok(line)
    }

    /// What is to be said of lines that never came to be sent, if there are any.
    fn unsent(self) -> Option<String> {
        let next = self.held.or_else(|| self.typed.try_recv().ok())?;
        let text = || {
            let (number, line) = (self.taken + 1, quoted(&next));
            format!("line {number} of the input ({line}) and any after it were not sent")
        };
        (command::parse(&next) != Ok(Command::Exit)).then(text)
    }
}

/// The password so far from the file it came from, the new one from the file that was typed.
fn passwords(old: Option<PathBuf>, new: Option<String>) -> Result<(Password, Password), StartError> {
    let (Some(old), Some(new)) = (old, new) else {
        return Err(StartError::Usage("name a file whose first line is the new one: /passwd FILE".into()));
    };
    Ok((super::read_password(&old)?, super::read_password(&typed_path(&new))?))
}

/// Reads lines of bounded length; what is not UTF-8 is replaced, a longer line is cut where the session will refuse it.
fn read_lines(lines: SyncSender<String>, wake: &SyncSender<()>) {
    let mut input = io::stdin().lock();
    let limit = MAX_TEXT as u64 * 2;
    let mut first = true;
    loop {
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
        let line = String::from_utf8_lossy(&line);
        // A byte order mark, which some editors put before all, is no part of the first line.
        let line = if std::mem::take(&mut first) { line.trim_start_matches('\u{feff}') } else { &line };
        let line = line.trim_end_matches(['\r', '\n']).to_string();
        if lines.send(line).is_err() {
            return;
        }
        let _ = wake.try_send(());
    }
    // The end of the lines is the end of their channel: the loop is woken to see it.
    drop(lines);
    let _ = wake.try_send(());
}
