//! The client as a line filter: what one would type in, one line an event out, no escape sequences.
//!
//! Invariant: it never asks; each line is flushed; a line is read only when the session takes it,
//! so a long script waits for the server instead of for memory. Output that nobody reads holds up the session, and never
//! the network.

use super::command::{Command, is_exit, parse};
use super::connect::Connection;
use super::entry::{Entry, SendState, Source};
use super::error::StartError;
use super::options::Options;
use super::path::typed_path;
use super::printer::Printer;
use super::reconnect::Way;
use super::session::{Effect, Event, FAREWELL, Session};
use super::terminal;
use super::text::quoted;
use super::work::Work;
use crate::clock;
use crate::crypto::envelope::MAX_TEXT;
use crate::crypto::secret::Password;
use crate::protocol::ClientMessage;
use crate::sync::spawn;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

/// A line of the input; what is wrong with one that is not text.
type Typed = Result<String, String>;

/// Lines of the input that may wait.
const QUEUE: usize = 16;
/// Lines that are read ahead of these, to see whether the input has ended.
const AHEAD: usize = 256;
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
    let wanted = terminal::unignored(&[SIGTERM, SIGINT, SIGHUP]);
    let mut signals = signal_hook::iterator::Signals::new(wanted)?;
    let (happened, signalled) = (wake.clone(), wake.clone());
    let printer = Printer::start(options.times)?;
    let stopping = printer.clone();
    spawn("signals", move || {
        for (count, signal) in signals.forever().enumerate() {
            // A second signal exits at once: the end may be waiting for a reader of the output.
            if count > 0 {
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            stopping.stop(signal);
            let _ = signalled.try_send(());
        }
    })?;
    let poke = Box::new(move || _ = happened.try_send(()));
    let work = Work::start((connection, way), options, poke)?;
    spawn("input", move || read_lines(lines, &wake))?;
    printer.print(format!("* {greeting}"));
    let mut lines = Lines::new(typed);
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
        let stopped = printer.stopped();
        if let Some(signal) = stopped {
            let signal = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            printer.print(format!("! ended by {signal}"));
        }
        // Without this, a script would wait as long as the network is silent. At the end, its session waits no longer either.
        let is_silent = session.owed().is_some_and(|since| since.elapsed() >= FAREWELL);
        if stopped.is_some() || is_silent && !session.is_leaving() && lines.end() {
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
                        Effect::Show(entry) if entry.source == Source::Recalled && !options.times => {
                            let date = clock::date_minute(entry.time);
                            printer.print(format!("* {date} {}", entry.text));
                        }
                        Effect::Show(entry) => printer.print_at(entry.time, entry.line()),
                        Effect::Progress(text) => printer.print(format!("* {text}")),
                        Effect::Transfer(number, job) => events.extend(work.transfer(number, job)),
                        Effect::MakeSessionKey => work.make_session_key()?,
                        Effect::ChangePassword(file) => {
                            let old = options.password_file.clone();
                            work.change_password(session.me(), move || passwords(old, file))?;
                        }
                        Effect::Alert(..) | Effect::Enter(_) | Effect::Leave(_) => {}
                        Effect::View(_) => {
                            printer.print("! views have no numbers in plain mode: use /view NAME".into());
                        }
                        Effect::Mouse => printer.print("! there is no mouse in plain mode".into()),
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
            if !session.takes_lines() || printer.stopped().is_some() {
                break;
            }
            match lines.next(session.is_settled()) {
                Ok(line) => {
                    work.touch();
                    match line {
                        Ok(line) => events.push(Event::Line(line)),
                        Err(problem) => printer.print(format!("! {problem}")),
                    }
                }
                Err(TryRecvError::Disconnected) => events.push(Event::EndOfInput),
                Err(TryRecvError::Empty) => break,
            }
        }
    }
}

/// The lines of the input.
struct Lines {
    typed: Receiver<Typed>,
    /// Lines that the session has not taken. The first may wait for the answers to the lines before it.
    waiting: VecDeque<Typed>,
    /// No more lines follow them.
    have_ended: bool,
    /// How many the session has taken.
    taken: u64,
}

impl Lines {
    fn new(typed: Receiver<Typed>) -> Lines {
        Lines { typed, waiting: VecDeque::new(), have_ended: false, taken: 0 }
    }

    fn look_ahead(&mut self) {
        while !self.have_ended && self.waiting.len() < AHEAD {
            match self.typed.try_recv() {
                Ok(line) => self.waiting.push_back(line),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.have_ended = true,
            }
        }
    }

    /// Whether the lines that wait are the last ones.
    fn end(&mut self) -> bool {
        self.look_ahead();
        self.have_ended || self.waiting.iter().flatten().any(|line| is_exit(line))
    }

    /// The next line, if there is one and the session can take it. What is answered at once would overtake the answers to the
    /// lines before it; the session itself waits for them at the end.
    fn next(&mut self, is_settled: bool) -> Result<Typed, TryRecvError> {
        self.look_ahead();
        match self.waiting.front() {
            None if self.have_ended => return Err(TryRecvError::Disconnected),
            Some(line) if is_settled || is_unanswered(line) => {}
            _ => return Err(TryRecvError::Empty),
        }
        let line = self.waiting.pop_front().ok_or(TryRecvError::Empty)?;
        self.taken += 1;
        Ok(line)
    }

    /// The report of lines that were never sent, if there are any.
    fn unsent(mut self) -> Option<String> {
        self.look_ahead();
        let next = self.waiting.pop_front()?;
        let line = next.as_deref().map_or(String::new(), |line| format!(" ({})", quoted(line)));
        let text = || format!("line {} of the input{line} and any after it were not sent", self.taken + 1);
        (next.as_deref().map(parse) != Ok(Ok(Command::Exit))).then(text)
    }
}

/// The password so far from the file it came from, the new one from the file that was typed.
fn passwords(old: Option<PathBuf>, new: Option<String>) -> Result<(Password, Password), StartError> {
    let (Some(old), Some(new)) = (old, new) else {
        return Err(StartError::Usage(
            "name a file whose first line is the new password: /passwd FILE".into(),
        ));
    };
    let new = typed_path(&new).map_err(StartError::Usage)?;
    Ok((super::read_password(&old)?, super::read_password(&new)?))
}

/// Whether a line is answered when the server has taken it, or not at all: anything else is answered at once.
fn is_unanswered(line: &Typed) -> bool {
    let Ok(line) = line else { return false };
    line.len() <= MAX_TEXT && matches!(parse(line), Ok(Command::Say(_) | Command::Nothing | Command::Exit))
}

/// Reads lines of bounded length. A longer line is cut where the session will refuse it.
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
    // The end of the lines is the end of their channel: the loop is woken to see it.
    drop(lines);
    let _ = wake.try_send(());
}

/// The text of line `number`, without its end. Only before the first one, some editors put a byte order mark.
fn decode(line: &[u8], number: u64) -> Typed {
    let line = if number == 1 { line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line) } else { line };
    let problem = match std::str::from_utf8(line) {
        Ok(text) if !text.contains('\0') => return Ok(text.trim_end_matches(['\r', '\n']).to_string()),
        Ok(_) => "has a zero byte",
        Err(_) => "is not UTF-8",
    };
    Err(format!("line {number} {problem}: it was not sent; convert the input to UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_is_seen_behind_lines_that_wait() {
        let (input, typed) = sync_channel(QUEUE);
        let mut lines = Lines::new(typed);
        let say = |line: &str| input.send(Ok(line.into())).expect("read");
        say("/msg bob one");
        say("two");
        assert_eq!(lines.next(false), Err(TryRecvError::Empty), "it waits for what was said before it");
        assert!(!lines.end());
        say("/exit");
        assert!(lines.end());
        for line in ["/msg bob one", "two", "/exit"] {
            assert_eq!(lines.next(true), Ok(Ok(line.into())));
        }
        say("/msg bob three");
        drop(input);
        assert!(lines.end());
        let told = lines.unsent().expect("one was not sent");
        assert_eq!(told, "line 4 of the input (\"/msg bob three\") and any after it were not sent");
    }

    #[test]
    fn line_that_is_not_text_is_refused_whole() {
        for (bytes, text) in [
            (&b"hi \r\n"[..], "hi "),
            (b"\xef\xbb\xbf/msg bob x\n", "/msg bob x"),
            (b"\xef\xbb\xbf\xef\xbb\xbf/msg bob x\n", "\u{feff}/msg bob x"),
            (b"a \xef\xbf\xbd b", "a \u{fffd} b"),
        ] {
            assert_eq!(decode(bytes, 1).as_deref(), Ok(text));
        }
        assert_eq!(decode(b"\xef\xbb\xbfx", 2).as_deref(), Ok("\u{feff}x"), "no mark of the stream");
        for bytes in [
            &b"a\0b\n"[..],
            b"\0",
            b"\xff\xfe/\0m\0",
            b"caf\xe9",
            b"/msg bob \xc3",
            b"\xed\xa0\x80",
            b"\xc0\xaf",
        ] {
            let problem = decode(bytes, 7).expect_err("refused");
            assert!(problem.starts_with("line 7 ") && problem.contains("it was not sent"), "{problem}");
        }
    }
}
