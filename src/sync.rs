//! Locks that a panic does not poison, and threads with names.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// Locks `mutex`, even after a thread panicked with the lock: every critical section here leaves its data consistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a thread that nobody joins.
///
/// # Errors
/// If the system cannot start a thread.
pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(work).map(drop)
}
