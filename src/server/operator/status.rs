//! The status, a line every hour or on a signal, and what the other signals do.
//!
//! Invariant: only one thread waits for standard output, so a reader that does not read delays neither clients nor the log
//! nor the end. Fields: README#status.

use crate::server::metrics::{BUSY, Counter, REFUSED, SLOW_CLOSED, SLOWED};
use crate::server::store::audit;
use crate::server::{CONNECTION_STACK, Shared, thread};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::iterator::Signals;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// A status is reported at least this often: 24 lines show the course of a day.
const EVERY: Duration = Duration::from_secs(3600);
/// The last line waits this long for a reader of standard output, who may not read.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Counters whose increase is logged once a minute, and the name of that event.
static SILENT: [(&str, &Counter); 3] = [("busy", &BUSY), ("slow_closed", &SLOW_CLOSED), ("slowed", &SLOWED)];

/// A line for standard output, and where to report that it is written.
type Line = (String, Option<SyncSender<()>>);

/// The most lines that wait for standard output; more are dropped.
const MAX_LINES: usize = 16;

/// A signal's request.
enum Request {
    Status,
    Reload,
}

/// From now on SIGHUP (from logrotate) does not end the process, and a file that may not grow is an error of its write.
///
/// # Errors
/// If no signal handler is available.
pub fn catch() -> io::Result<Signals> {
    Signals::new([SIGHUP, SIGXFSZ])
}

/// Starts the threads. SIGUSR1 requests a status, SIGHUP a reload of log and certificate; SIGINT and SIGTERM end the process
/// at once. That is safe at any moment: files are only appended to or replaced as a whole, and nothing is confirmed before
/// it is on disk. `signals` are those of [`catch`].
///
/// # Errors
/// If no thread or signal handler is available.
pub fn start(shared: &Arc<Shared>, mut signals: Signals) -> io::Result<()> {
    for signal in [SIGINT, SIGTERM, SIGUSR1] {
        signals.add_signal(signal)?;
    }
    let (say, said) = sync_channel::<Line>(MAX_LINES);
    let (ask, asked) = sync_channel(MAX_LINES);
    let output = shared.clone();
    thread("output", CONNECTION_STACK, move || {
        for (line, done) in said {
            if let Err(error) = writeln!(io::stdout(), "{line}") {
                output.audit.output_failed(&error);
            }
            done.map(|done| done.send(()));
        }
    })?;
    let (telling, saying) = (shared.clone(), say.clone());
    thread("status", CONNECTION_STACK, move || run(&telling, &asked, &saying))?;
    let shared = shared.clone();
    thread("signals", CONNECTION_STACK, move || {
        for signal in signals.forever() {
            let _ = match signal {
                SIGUSR1 => ask.try_send(Request::Status),
                SIGHUP => ask.try_send(Request::Reload),
                SIGINT | SIGTERM => break,
                _ => Ok(()),
            };
        }
        shared.audit.log("stopped", None, None, "");
        shared.audit.flush();
        let (done, wait) = sync_channel(1);
        if say.try_send(("stopped".into(), Some(done))).is_ok() {
            let _ = wait.recv_timeout(LAST_WORD);
        }
        std::process::exit(0);
    })
}

/// When the status thread acts without a request.
struct Schedule {
    /// When the log was summed up last.
    summed: Instant,
    /// When the last status was reported.
    reported: Instant,
}

impl Schedule {
    fn next(&self) -> Instant {
        self.summed + audit::INTERVAL
    }

    /// The log is summed up. True if it is also time for a status.
    fn sum_up(&mut self, now: Instant) -> bool {
        self.summed = now;
        now.duration_since(self.reported) >= EVERY
    }
}

fn run(shared: &Shared, asked: &Receiver<Request>, say: &SyncSender<Line>) {
    let started = Instant::now();
    let mut schedule = Schedule { summed: started, reported: started };
    let mut counted = [0; SILENT.len()];
    loop {
        match asked.recv_timeout(schedule.next().saturating_duration_since(Instant::now())) {
            Ok(Request::Status) => {}
            Ok(Request::Reload) => {
                let _ = say.try_send((reload(shared), None));
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                shared.audit.sum_up();
                for ((event, counter), before) in SILENT.iter().zip(&mut counted) {
                    let now = counter.get();
                    if now > *before {
                        shared.audit.log(event, None, None, &format!("count={}", now - *before));
                    }
                    *before = now;
                }
                if !schedule.sum_up(Instant::now()) {
                    continue;
                }
            }
        }
        schedule.reported = Instant::now();
        let line = line(shared, started);
        shared.audit.log("status", None, None, &line);
        let _ = say.try_send((format!("status: {line}"), None));
    }
}

/// Takes up a changed certificate and opens the log again. Returns what is reported, as a sentence.
fn reload(shared: &Shared) -> String {
    let certificate = shared.certificates.as_ref().map(|certificates| certificates.reload(&shared.audit));
    shared.end_connections_of_another_key();
    // The log is opened again for this line, if it was renamed.
    shared.audit.log("reloaded", None, None, "");
    let done = certificate.unwrap_or("reloaded".into());
    match shared.audit.loses() {
        true => format!("WARNING: the security log cannot be written: standard error says why; {done}"),
        false => done,
    }
}

fn line(shared: &Shared, started: Instant) -> String {
    let (connections, waiting) = shared.connections.counts();
    format!(
        "sessions={} connections={connections} waiting={waiting} accounts={} memory_kib={} refused={} busy={} \
         slow_closed={} slowed={} uptime={}",
        shared.registry.count(),
        shared.accounts.count(),
        resident_kib(),
        REFUSED.get(),
        BUSY.get(),
        SLOW_CLOSED.get(),
        SLOWED.get(),
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
    fn status_is_reported_an_hour_after_the_last_one() {
        let start = Instant::now();
        let mut schedule = Schedule { summed: start, reported: start };
        let mut told = Vec::new();
        let minutes = |now: Instant| now.duration_since(start).as_secs() / 60;
        while minutes(schedule.next()) <= 200 {
            let now = schedule.next();
            let asked = minutes(now) == 90;
            if schedule.sum_up(now) || asked {
                schedule.reported = now;
                told.push(minutes(now));
            }
        }
        assert_eq!(told, [60, 90, 150]);
    }
}
