//! Prints the lines of plain mode on a thread of its own.
//!
//! Invariant: no line is lost before the output fails, and the waiting lines are limited: at a mebibyte, the session
//! waits until there is room, the output fails, or the process is to stop.

use super::terminal::charset;
use crate::clock;
use crate::sync::{lock, spawn};
use std::io::{self, Write};
use std::mem::take;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The most bytes that wait for a reader of the output.
const MAX_WAITING: usize = 1024 * 1024;
/// The time to print waiting lines after a signal.
const HURRIED: Duration = Duration::from_secs(1);

/// Prints lines. Clones share one output.
#[derive(Clone)]
pub struct Printer {
    shared: Arc<Shared>,
    /// Each line begins with its time.
    times: bool,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    /// Whether the thread is writing.
    writing: bool,
    failed: Option<io::Error>,
    /// The signal that has ended all waits for the output.
    stopped: Option<i32>,
}

impl Printer {
    /// Starts the thread. With `times`, each line begins with its time (RFC 3339, UTC).
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(times: bool) -> io::Result<Printer> {
        let printer = Printer { shared: Arc::default(), times };
        let (me, mut out) = (printer.clone(), io::stdout());
        spawn("print", move || me.write_to(&mut out))?;
        Ok(printer)
    }

    fn write_to(&self, out: &mut impl Write) {
        loop {
            let mut waiting = self.wait_while(|waiting| waiting.lines.is_empty());
            let lines = take(&mut waiting.lines);
            waiting.writing = true;
            // Wake a sender that waits for room.
            self.shared.changed.notify_all();
            drop(waiting);
            let written = out.write_all(&lines).and_then(|()| out.flush());
            let mut waiting = lock(&self.shared.waiting);
            waiting.writing = false;
            waiting.failed = written.err();
            self.shared.changed.notify_all();
            if waiting.failed.is_some() {
                return;
            }
        }
    }

    fn wait_while(&self, condition: impl Fn(&Waiting) -> bool) -> MutexGuard<'_, Waiting> {
        let waited = self.shared.changed.wait_while(lock(&self.shared.waiting), |waiting| condition(waiting));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints one line with the current time, and waits for room.
    pub fn print(&self, line: String) {
        self.print_at(clock::now_ms(), line);
    }

    /// Prints one line with its time, in milliseconds since 1970, and waits for room.
    pub fn print_at(&self, time: u64, line: String) {
        let full = |waiting: &Waiting| {
            waiting.lines.len() >= MAX_WAITING && waiting.failed.is_none() && waiting.stopped.is_none()
        };
        let mut waiting = self.wait_while(full);
        if waiting.failed.is_none() {
            if self.times {
                waiting.lines.extend_from_slice(format!("{} ", clock::utc(time)).as_bytes());
            }
            waiting.lines.extend_from_slice(charset::printed(&line).as_bytes());
            waiting.lines.push(b'\n');
        }
        self.shared.changed.notify_all();
    }

    /// Ends all waits for the output, after this signal.
    pub fn stop(&self, signal: i32) {
        lock(&self.shared.waiting).stopped = Some(signal);
        self.shared.changed.notify_all();
    }

    /// The signal after which the process is to stop.
    pub fn stopped(&self) -> Option<i32> {
        lock(&self.shared.waiting).stopped
    }

    /// Whether the output has failed.
    pub fn has_failed(&self) -> bool {
        lock(&self.shared.waiting).failed.is_some()
    }

    /// Whether everything is printed.
    pub fn is_idle(&self) -> bool {
        let waiting = lock(&self.shared.waiting);
        !waiting.writing && waiting.lines.is_empty() && waiting.failed.is_none()
    }

    /// Waits until everything is printed, but only for a second after a signal.
    ///
    /// # Errors
    /// The output's.
    pub fn finish(&self) -> io::Result<()> {
        let unprinted =
            |waiting: &Waiting| (waiting.writing || !waiting.lines.is_empty()) && waiting.failed.is_none();
        let waiting = self.wait_while(|waiting| unprinted(waiting) && waiting.stopped.is_none());
        let waited = self.shared.changed.wait_timeout_while(waiting, HURRIED, |waiting| unprinted(waiting));
        waited.unwrap_or_else(PoisonError::into_inner).0.failed.take().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;

    /// An output that accepts data only when the test allows it.
    struct Stuck(Receiver<()>, Sender<Vec<u8>>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            let _ = self.1.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn printer() -> (Printer, Sender<()>, Receiver<Vec<u8>>) {
        let (printer, (go, goes), (wrote, written)) =
            (Printer { shared: Arc::default(), times: false }, channel(), channel());
        let me = printer.clone();
        thread::spawn(move || me.write_to(&mut Stuck(goes, wrote)));
        (printer, go, written)
    }

    #[test]
    fn lines_wait_for_a_reader_in_order_and_none_is_lost() {
        let (printer, go, written) = printer();
        let line = "x".repeat(1000);
        let count = 3 * MAX_WAITING / line.len();
        thread::scope(|scope| {
            let session = scope.spawn(|| (0..count).for_each(|n| printer.print(format!("{n} {line}"))));
            let has_room = |waiting: &Waiting| waiting.lines.len() < MAX_WAITING;
            drop(printer.wait_while(has_room));
            assert!(!session.is_finished());
            (0..count).for_each(|_| _ = go.send(()));
        });
        printer.finish().expect("printed");
        let all: Vec<u8> = written.try_iter().flatten().collect();
        let numbers: Vec<_> = all
            .split(|byte| *byte == b'\n')
            .map(|line| String::from_utf8_lossy(line).split(' ').next().unwrap_or_default().to_string())
            .collect();
        let expected: Vec<_> = (0..count).map(|n| n.to_string()).chain([String::new()]).collect();
        assert_eq!(numbers, expected);
    }

    #[test]
    fn signal_ends_the_wait_for_a_reader() {
        let (printer, _go, _written) = printer();
        thread::scope(|scope| {
            let session = scope.spawn(|| {
                while printer.stopped().is_none() {
                    printer.print("x".repeat(MAX_WAITING));
                }
            });
            drop(printer.wait_while(|waiting| waiting.lines.len() < MAX_WAITING));
            printer.stop(signal_hook::consts::SIGTERM);
            session.join().expect("it ends");
        });
        printer.finish().expect("nothing has failed");
    }

    #[test]
    fn failed_output_is_an_error_and_blocks_nothing() {
        let (printer, go, _written) = printer();
        drop(go);
        (0..9).for_each(|_| printer.print("x".repeat(MAX_WAITING)));
        printer.finish().expect_err("it has failed");
    }
}
