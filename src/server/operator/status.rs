//! The status, a line every hour or on a signal, and what the other signals do.
//!
//! Invariant: once the server listens, only one thread writes to standard output. A reader that does not read delays
//! neither clients nor the log, and the exit by a second at most. Fields: OPERATING#status.

use crate::clock;
use crate::server::shared::Shared;
use crate::server::store::audit;
use crate::server::threads::service;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::iterator::Signals;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// A status is reported at least this often: 24 lines show the course of a day.
const EVERY: Duration = Duration::from_secs(3600);
/// The last line waits this long for the reader of standard output, which may have stopped reading.
const LAST_LINE: Duration = Duration::from_secs(1);
/// The most lines that wait for standard output, and signals for the status thread; more are dropped.
const QUEUE: usize = 16;

/// A line for standard output, and where to report that it is written.
type Line = (String, Option<SyncSender<()>>);

/// Catches signals from now on: SIGHUP (from logrotate) and SIGUSR1 do not end the process, and a write beyond a file
/// size limit fails instead of killing it. [`start`] handles those that came before it. Until then, SIGINT and SIGTERM
/// end the process as usual.
///
/// # Errors
/// If no signal handler is available.
pub fn catch() -> io::Result<Signals> {
    Signals::new([SIGHUP, SIGUSR1, SIGXFSZ])
}

/// Starts the threads. SIGUSR1 requests a status, SIGHUP a reload of log and certificate; SIGINT and SIGTERM end the
/// process at once. That is safe at any moment: files are only appended to or replaced as a whole, and nothing is
/// confirmed before it is on disk. `signals` are those of [`catch`].
///
/// # Errors
/// If no thread or signal handler is available.
pub fn start(shared: &Arc<Shared>, mut signals: Signals) -> io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        signals.add_signal(signal)?;
    }
    let (output, lines) = sync_channel::<Line>(QUEUE);
    let (requests, requested) = sync_channel(QUEUE);
    let writing = shared.clone();
    service("output", move || {
        for (line, written) in lines {
            if let Err(error) = writeln!(io::stdout(), "{line}") {
                writing.store.audit.output_failed(&error);
            }
            written.map(|written| written.send(()));
        }
    })?;
    let (reporting, reports) = (shared.clone(), output.clone());
    service("status", move || run(&reporting, &requested, &reports))?;
    let shared = shared.clone();
    service("signals", move || {
        for signal in signals.forever() {
            match signal {
                SIGINT | SIGTERM => break,
                SIGUSR1 | SIGHUP => drop(requests.try_send(signal)),
                _ => {}
            }
        }
        shared.store.audit.log("stopped", None, None, "");
        shared.store.audit.flush();
        let (written, wait) = sync_channel(1);
        if output.try_send(("stopped".into(), Some(written))).is_ok() {
            let _ = wait.recv_timeout(LAST_LINE);
        }
        std::process::exit(0);
    })
}

/// When the status thread acts without a request.
struct Schedule {
    /// The last time that the work of each minute was done.
    summed: Instant,
    /// The time of the last status.
    reported: Instant,
}

impl Schedule {
    fn next(&self) -> Instant {
        self.summed + audit::INTERVAL
    }

    /// Notes that the log was summed up. Returns whether a status is due as well.
    fn sum_up(&mut self, now: Instant) -> bool {
        self.summed = now;
        now.duration_since(self.reported) >= EVERY
    }
}

fn run(shared: &Shared, requests: &Receiver<i32>, output: &SyncSender<Line>) {
    let started = Instant::now();
    let mut schedule = Schedule { summed: started, reported: started };
    let mut counted = shared.quotas.counts();
    let report = |line: String| drop(output.try_send((line, None)));
    loop {
        let is_due = match requests.recv_timeout(schedule.next().saturating_duration_since(Instant::now())) {
            Ok(SIGHUP) => {
                report(reload(shared));
                false
            }
            Ok(_) => true,
            Err(RecvTimeoutError::Timeout) => {
                sum_up(shared, &mut counted);
                schedule.sum_up(Instant::now())
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if is_due {
            schedule.reported = Instant::now();
            let line = line(shared, started);
            shared.store.audit.log("status", None, None, &line);
            report(format!("status: {line}"));
        }
    }
}

/// Once a minute: logs how many lines were left out, and how often limits have taken effect, and deletes mail whose
/// days are over. Refused connections have their own events.
fn sum_up(shared: &Shared, counted: &mut [(&'static str, u64); 4]) {
    shared.store.audit.sum_up();
    shared.store.mail.expire(clock::now_ms());
    let before = std::mem::replace(counted, shared.quotas.counts());
    for ((event, now), (_, before)) in counted.iter().zip(before).skip(1) {
        if *now > before {
            shared.store.audit.log(event, None, None, &format!("count={}", now - before));
        }
    }
}

/// Loads a changed certificate and opens the log again. Returns the result as a sentence.
fn reload(shared: &Shared) -> String {
    let certificate =
        shared.store.certificates.as_ref().map(|certificates| certificates.reload(&shared.store.audit));
    shared.end_connections_of_another_key();
    // If the log was renamed, this line opens it again.
    shared.store.audit.log("reloaded", None, None, "");
    let done = certificate.unwrap_or("reloaded".into());
    match shared.store.audit.loses() {
        true => format!("WARNING: the security log cannot be written: standard error has the reason; {done}"),
        false => done,
    }
}

fn line(shared: &Shared, started: Instant) -> String {
    let (connections, waiting) = shared.connections.counts();
    let (mail, bytes) = shared.store.mail.counts();
    format!(
        "sessions={} connections={connections} waiting={waiting} accounts={} mail={mail} mail_kib={} memory_kib={}{} \
         uptime={}",
        shared.registry.count(),
        shared.store.accounts.count(),
        bytes / 1024,
        resident_kib(),
        shared.quotas.counts().map(|(name, count)| format!(" {name}={count}")).concat(),
        started.elapsed().as_secs()
    )
}

/// Physical memory in use; 0 if unknown.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_during_the_start_waits_and_does_not_end_it() {
        let mut signals = catch().expect("handlers");
        for signal in [SIGHUP, SIGUSR1] {
            signal_hook::low_level::raise(signal).expect("raised");
            assert_eq!(signals.pending().collect::<Vec<_>>(), [signal]);
        }
    }

    #[test]
    fn status_is_reported_an_hour_after_the_last_one() {
        let start = Instant::now();
        let mut schedule = Schedule { summed: start, reported: start };
        let mut reported = Vec::new();
        let minutes = |now: Instant| now.duration_since(start).as_secs() / 60;
        while minutes(schedule.next()) <= 200 {
            let now = schedule.next();
            let asked = minutes(now) == 90;
            if schedule.sum_up(now) || asked {
                schedule.reported = now;
                reported.push(minutes(now));
            }
        }
        assert_eq!(reported, [60, 90, 150]);
    }
}
