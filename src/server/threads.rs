//! Starts the server's threads, each with a name and a stack of its own size.

use std::io;

/// Stack of a connection's thread, in bytes: nothing on it recurses, and there are ten thousand.
pub const CONNECTION_STACK: usize = 256 * 1024;

/// Starts a thread with a stack of this number of bytes.
///
/// # Errors
/// If no thread is available.
pub fn thread(name: &str, stack: usize, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).stack_size(stack).spawn(work).map(drop)
}
