//! Starts the server's threads, each with a name and a stack of its own size.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Stack of a connection's thread, in bytes: nothing on it recurses, and there may be more than ten thousand.
pub const CONNECTION_STACK: usize = 256 * 1024;
/// The exit status of a Rust program whose main thread has panicked.
const PANICKED: i32 = 101;

/// Starts a thread with a stack of this number of bytes. Its panic ends only the connection that it serves.
///
/// # Errors
/// If no thread is available.
pub fn thread(name: &str, stack: usize, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).stack_size(stack).spawn(work).map(drop)
}

/// Starts a thread that all clients need. Its panic ends the process, as a panic of the main thread does: a supervisor
/// restarts the server, but nothing would restart the thread.
///
/// # Errors
/// If no thread is available.
pub fn service(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread(name, CONNECTION_STACK, move || {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            std::process::exit(PANICKED);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn panic_of_a_shared_thread_ends_the_process() {
        const ME: &str = "server::threads::tests::panic_of_a_shared_thread_ends_the_process";
        if std::env::var_os("PANIC_IN_A_SERVICE").is_some() {
            service("flusher", || panic!("as a fault might")).expect("a thread");
            std::thread::sleep(Duration::from_secs(60));
            std::process::exit(0);
        }
        let me = std::env::current_exe().expect("this test");
        let ended =
            Command::new(me).args(["--exact", ME]).env("PANIC_IN_A_SERVICE", "").output().expect("run");
        assert_eq!(ended.status.code(), Some(PANICKED));
    }
}
