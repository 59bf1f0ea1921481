//! Signals that end, stop or continue the process.

use crate::sync::spawn;
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::origin::WithOrigin;
use signal_hook::low_level;
use signal_hook::low_level::siginfo::Cause;
use std::io;

/// Calls `act` on a thread of its own for each of these signals, except those that the process was started to ignore.
/// Its second argument tells whether the kernel sent the signal, as it does for a key.
///
/// # Errors
/// If no signal handler or thread is available.
pub fn on_signals(signals: &[i32], mut act: impl FnMut(i32, bool) + Send + 'static) -> io::Result<()> {
    let mut signals = SignalsInfo::<WithOrigin>::new(unignored(signals))?;
    spawn("signals", move || signals.forever().for_each(|by| act(by.signal, by.cause == Cause::Kernel)))
}

/// Acts on the signal as the system does by default: most end the process.
pub fn obey(signal: i32) {
    let _ = low_level::emulate_default_handler(signal);
}

/// The signals that the process was not started to ignore: POSIX requires that nohup(1) and `&` in a shell stay in
/// force. All of them if the system does not tell.
fn unignored(signals: &[i32]) -> impl Iterator<Item = i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    signals.iter().copied().filter(move |signal| mask >> (signal - 1) & 1 == 0)
}

/// Whether a shell can continue this program after a stop; true if the system does not tell. If none can, the process
/// group is orphaned (POSIX): nobody at this terminal could continue it, and the kernel ignores Ctrl-Z, too.
pub fn can_suspend() -> bool {
    let ids = |process: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        let mut words = stat.rsplit_once(')')?.1.split_whitespace().skip(1).map(str::to_string);
        Some((words.next()?, words.next()?, words.next()?))
    };
    let Some((mut parent, group, session)) = ids("self") else { return true };
    while let Some((next, its_group, its_session)) = ids(&parent) {
        if its_session != session || its_group != group {
            return its_session == session;
        }
        parent = next;
    }
    false
}
