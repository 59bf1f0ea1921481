//! How the server is doing: counters, one line of them an hour or when asked for, and the end on a signal.
//!
//! Invariant: counting takes no lock; nobody but one thread waits for standard output, so a reader that does
//! not read holds up neither clients nor the log nor the end. Fields: README#status.

use crate::server::metrics::{BUSY, Counter, REFUSED, SLOW_CLOSED, SLOWED};
use crate::server::store::audit;
use crate::server::{CONNECTION_STACK, Shared, thread};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::iterator::Signals;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// A status is told this often without being asked for: often enough to see a day's course, 24 lines of it.
const EVERY: Duration = Duration::from_secs(3600);
/// The last word waits this long for who reads standard output, who may not: the end does not depend on it.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What is counted where no event is logged, as the event that tells of it once a minute.
static SILENT: [(&str, &Counter); 3] = [("busy", &BUSY), ("slow_closed", &SLOW_CLOSED), ("slowed", &SLOWED)];

/// A line for standard output, and who wants to know when it is out.
type Line = (String, Option<SyncSender<()>>);

/// Lines that wait for standard output; more are dropped.
const MAX_LINES: usize = 16;

/// What a signal asks for.
enum Request {
    Status,
    Reload,
}

/// From now on a logrotate's signal does not end the process, nor does a file that may not grow: writing to it fails.
///
/// # Errors
/// If no signal handler is available.
pub fn catch() -> io::Result<Signals> {
    Signals::new([SIGHUP, SIGXFSZ])
}

/// Starts the threads. SIGUSR1 asks for a status, SIGHUP to reload log and certificate; SIGINT and SIGTERM end the
/// process at once. That is safe at any moment: files are only appended to or replaced whole, and nothing is confirmed
/// before it is on disk. `signals` are those of [`catch`].
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
            let request = match signal {
                SIGUSR1 => Some(Request::Status),
                SIGHUP => Some(Request::Reload),
                _ => None,
            };
            if let Some(request) = request {
                let _ = ask.try_send(request);
            }
            if ![SIGINT, SIGTERM].contains(&signal) {
                continue;
            }
            shared.audit.log("stopped", None, None, "");
            shared.audit.flush();
            let (done, wait) = sync_channel(1);
            if say.try_send(("stopped".into(), Some(done))).is_ok() {
                let _ = wait.recv_timeout(LAST_WORD);
            }
            std::process::exit(0);
        }
    })
}

/// What happens without being asked for.
struct Rounds {
    /// When the log was summed up last.
    summed: Instant,
    /// When the last status was told.
    told: Instant,
}

impl Rounds {
    fn next(&self) -> Instant {
        self.summed + audit::INTERVAL
    }

    /// The log is summed up. True if it is also time for a status.
    fn sum_up(&mut self, now: Instant) -> bool {
        self.summed = now;
        now.duration_since(self.told) >= EVERY
    }
}

fn run(shared: &Shared, asked: &Receiver<Request>, say: &SyncSender<Line>) {
    let started = Instant::now();
    let mut rounds = Rounds { summed: started, told: started };
    let mut counted = [0; SILENT.len()];
    loop {
        let ask = asked.recv_timeout(rounds.next().saturating_duration_since(Instant::now()));
        if matches!(ask, Err(RecvTimeoutError::Timeout)) {
            let tells = rounds.sum_up(Instant::now());
            shared.audit.sum_up();
            for ((event, counter), before) in SILENT.iter().zip(&mut counted) {
                let now = counter.get();
                if now > *before {
                    shared.audit.log(event, None, None, &format!("count={}", now - *before));
                }
                *before = now;
            }
            if !tells {
                continue;
            }
        }
        if matches!(ask, Err(RecvTimeoutError::Disconnected)) {
            return;
        }
        if matches!(ask, Ok(Request::Reload)) {
            let certificate =
                shared.certificates.as_ref().map(|certificates| certificates.reload(&shared.audit));
            // The log is opened again for this line, if it was renamed.
            shared.audit.log("reloaded", None, None, "");
            let mut told = certificate.unwrap_or("reloaded".into());
            if shared.audit.loses() {
                told =
                    format!("WARNING: the security log cannot be written: standard error says why; {told}");
            }
            let _ = say.try_send((told, None));
            continue;
        }
        rounds.told = Instant::now();
        let line = line(shared, started);
        shared.audit.log("status", None, None, &line);
        let _ = say.try_send((format!("status: {line}"), None));
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

/// Physical memory in use; 0 where the system does not tell.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_once_an_hour_and_an_hour_after_one_that_was_asked_for() {
        let start = Instant::now();
        let mut rounds = Rounds { summed: start, told: start };
        let mut told = Vec::new();
        let minutes = |now: Instant| now.duration_since(start).as_secs() / 60;
        while minutes(rounds.next()) <= 200 {
            let now = rounds.next();
            let asked = minutes(now) == 90;
            if rounds.sum_up(now) || asked {
                rounds.told = now;
                told.push(minutes(now));
            }
        }
        assert_eq!(told, [60, 90, 150]);
    }
}
