//! The client as a line filter: what one would type in, one line an event out, no escape sequences.
//!
//! Invariant: it never asks; each line is flushed; a line is read only when the session takes it,
//! so a long script waits for the server instead of for memory.

use super::connect::{Connection, StartError};
use super::entry::{Entry, SendState};
use super::file::typed_path;
use super::link::{Link, TAKES_NOTHING};
use super::options::Options;
use super::reconnect::Way;
use super::session::{Effect, Event, Session};
use super::transfer::{Hub, Transfers};
use crate::clock;
use crate::crypto::envelope::MAX_TEXT;
use crate::crypto::secret::Password;
use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Events of the network that may wait: few, so that a line of the input never waits behind much.
const QUEUE: usize = 16;
/// Time passes at least this often: deadlines are met to the second.
const TICK: Duration = Duration::from_secs(1);

/// What wakes the loop.
enum Wake {
    Event(Event),
    /// A line, or the end, waits in the other channel.
    Input,
}

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
    let (wake, waking) = sync_channel(QUEUE);
    let (lines, typed) = sync_channel(QUEUE);
    let network = wake.clone();
    let hub = Arc::new(Hub::default());
    let link =
        Link::start(connection, way, hub.clone(), move |event| network.send(Wake::Event(event)).is_ok())?;
    let working = wake.clone();
    let transfers = Transfers::new(options.data_dir.join("files"), hub, link.queue(), move |event| {
        working.send(Wake::Event(event)).is_ok()
    });
    let reading = wake.clone();
    thread::Builder::new().name("input".into()).spawn(move || read_lines(lines, &reading))?;
    writeln!(io::stdout(), "* {greeting}")?;
    io::stdout().flush()?;
    let status = serve(&mut session, options, &link, &transfers, &waking, &typed, &wake);
    // With status 1, the farewell may have been said, or nobody may be there to hear it.
    link.finish(!matches!(status, Ok(0)));
    status
}

fn serve(
    session: &mut Session,
    options: &Options,
    link: &Link,
    transfers: &Transfers,
    waking: &Receiver<Wake>,
    typed: &Receiver<String>,
    wake: &SyncSender<Wake>,
) -> io::Result<u8> {
    let mut held: Option<String> = None;
    loop {
        let mut events = Vec::new();
        match waking.recv_timeout(TICK) {
            Ok(Wake::Event(event)) => events.push(event),
            Ok(Wake::Input) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => events.push(Event::Tick),
        }
        loop {
            for event in std::mem::take(&mut events) {
                for effect in session.handle(event, clock::now_ms(), Instant::now()) {
                    match effect {
                        Effect::Begin => link.begin(),
                        Effect::Send(message) if link.send(&message) => {}
                        Effect::Send(_) => events.push(Event::Closed(TAKES_NOTHING.into())),
                        // Shown when the server has taken it.
                        Effect::Show(Entry { sending: Some((_, SendState::UnderWay)), .. }) => {}
                        Effect::Show(entry) => print(&entry.line())?,
                        Effect::Progress(text) => print(&format!("* {text}"))?,
                        Effect::Transfer(number, job) => {
                            let step = transfers.take(number, job);
                            events.extend(step.map(|step| Event::Transfer(number, step)));
                        }
                        Effect::MakeSessionKey => super::make_session_key({
                            let wake = wake.clone();
                            move |event| drop(wake.send(Wake::Event(event)))
                        })?,
                        Effect::ChangePassword(file) => {
                            let (wake, old) = (wake.clone(), options.password_file.clone());
                            super::change_password(
                                options,
                                session.me(),
                                move || passwords(old, file),
                                link.password_keeper(),
                                move |event| drop(wake.send(Wake::Event(event))),
                            )?;
                        }
                        Effect::Alert(..) | Effect::Enter(_) | Effect::Leave(_) => {}
                        Effect::Clear | Effect::Forget => {}
                        Effect::Quit(status) => return Ok(status),
                    }
                }
            }
            if !session.takes_lines() {
                break;
            }
            match held.take().map_or_else(|| typed.try_recv(), Ok) {
                // A command's answer comes after those of the lines before it.
                Ok(line) if line.starts_with('/') && !session.is_settled() => {
                    held = Some(line);
                    break;
                }
                Ok(line) => events.push(Event::Line(line)),
                Err(TryRecvError::Disconnected) => events.push(Event::EndOfInput),
                Err(TryRecvError::Empty) => break,
            }
        }
    }
}

/// The password so far from the file it came from, the new one from the file that was typed.
fn passwords(old: Option<PathBuf>, new: Option<String>) -> Result<(Password, Password), StartError> {
    let (Some(old), Some(new)) = (old, new) else {
        return Err(StartError::Usage("name a file whose first line is the new one: /passwd FILE".into()));
    };
    Ok((super::read_password(&old)?, super::read_password(&typed_path(&new))?))
}

fn print(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Reads lines of bounded length; what is not UTF-8 is replaced, a longer line is cut where the session will refuse it.
fn read_lines(lines: SyncSender<String>, wake: &SyncSender<Wake>) {
    let mut input = io::stdin().lock();
    let limit = MAX_TEXT as u64 * 2;
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
        let line = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_string();
        if lines.send(line).is_err() || wake.send(Wake::Input).is_err() {
            return;
        }
    }
    // The end of the lines is the end of their channel: the loop is woken to see it.
    drop(lines);
    let _ = wake.send(Wake::Input);
}
