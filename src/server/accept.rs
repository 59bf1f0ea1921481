//! The listener: accepts connections, and hands each to a thread that does its handshake and login.
//!
//! Invariant: the accept loop waits for no client, and no client's login delays another's.

use super::connection_limits::Ticket;
use super::shared::Shared;
use super::threads::{CONNECTION_STACK, thread};
use super::{connection, quotas};
use crate::sync::lock;
use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Stack of an admission thread, in bytes: more than four times that of a connection's thread. Otherwise glibc would
/// reuse it for a connection's thread, which would keep all the pages that a handshake has touched.
const ADMISSION_STACK: usize = 2 * 1024 * 1024;
/// An admission thread waits this long for the next connection before it ends, so that it outlasts a storm of logins.
const ADMISSION_IDLE: Duration = Duration::from_secs(1);
/// Connections that the kernel keeps for [`run`]: the usual 128 are too few for a storm of logins.
const BACKLOG: i32 = 4096;

/// Hands connections to the admission threads.
#[derive(Default)]
struct AdmissionQueue {
    state: Mutex<QueueState>,
    wake: Condvar,
}

#[derive(Default)]
struct QueueState {
    tickets: VecDeque<Ticket>,
    /// Admission threads that wait for a ticket.
    idle: usize,
}

/// Listens on the first address of `host`, an address or a name, that is available.
///
/// # Errors
/// With the address and the remedy in the text.
pub(super) fn bind(host: &str, port: u16) -> io::Result<TcpListener> {
    let failed = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => " (is a server running already? --port chooses another)",
            _ => "",
        };
        io::Error::new(error.kind(), format!("cannot listen on {host}:{port}: {error}{hint}"))
    };
    let listener = TcpListener::bind((host, port)).map_err(failed)?;
    socket2::SockRef::from(&listener).listen(BACKLOG).map_err(failed)?;
    Ok(listener)
}

/// Accepts connections until the process ends.
pub(super) fn run(shared: &Arc<Shared>, listener: &TcpListener) -> ! {
    let queue = Arc::new(AdmissionQueue::default());
    let log = |event: &'static str, detail: &str| shared.store.audit.limit(event, None, None, detail);
    loop {
        let (socket, address) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                // Probably out of descriptors: connected clients are still served; new ones wait.
                log("accept_failed", &error.to_string());
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        let Some((ticket, has_evicted)) = shared.connections.admit(address.ip(), Arc::new(socket)) else {
            quotas::count(&shared.quotas.refused);
            log("refused", "too many connections");
            continue;
        };
        if has_evicted {
            log("pushed_out", "too many connections that are not logged in");
        }
        enqueue(shared, &queue, ticket);
    }
}

/// Hands a connection to an idle admission thread, or to a new one.
fn enqueue(shared: &Arc<Shared>, queue: &Arc<AdmissionQueue>, ticket: Ticket) {
    let mut state = lock(&queue.state);
    state.tickets.push_back(ticket);
    if state.idle >= state.tickets.len() {
        queue.wake.notify_one();
        return;
    }
    drop(state);
    let (admitting, source) = (shared.clone(), queue.clone());
    if thread("admission", ADMISSION_STACK, move || admit_all(&admitting, &source)).is_err() {
        // No thread is available: drop this connection.
        lock(&queue.state).tickets.pop_back();
    }
}

fn admit_all(shared: &Arc<Shared>, queue: &AdmissionQueue) {
    loop {
        let mut state = lock(&queue.state);
        if state.tickets.is_empty() {
            state.idle += 1;
            let waited = queue.wake.wait_timeout(state, ADMISSION_IDLE);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.idle -= 1;
        }
        let Some(ticket) = state.tickets.pop_front() else { return };
        drop(state);
        if let Some(client) = connection::admit(shared, ticket) {
            // Boxed, to keep the stack of the waiting thread small.
            let mut client = Box::new(client);
            // Without a thread the closure is dropped, and with it the connection.
            let _ = thread("client", CONNECTION_STACK, move || client.run());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::shared::tests::shared;
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Instant;

    /// PROTOCOL#deadlines.
    #[test]
    fn slow_login_delays_no_other_client() {
        let (shared, _folder) = shared(Duration::from_secs(3600));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let queue = Arc::new(AdmissionQueue::default());
        let connect = || {
            let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
            far.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
            let (socket, address) = listener.accept().expect("accepted");
            enqueue(
                &shared,
                &queue,
                shared.connections.admit(address.ip(), Arc::new(socket)).expect("there is room").0,
            );
            far
        };
        let is_answered = |mut far: &TcpStream| {
            far.write_all(b"{\"type\":\"ping\"}\n").expect("written");
            far.read(&mut [0; 100]).is_ok_and(|count| count > 0)
        };
        for _ in 0..3 {
            let end = Instant::now() + Duration::from_secs(60);
            // A thread that has served one client waits for the next, up to `ADMISSION_IDLE`.
            while lock(&queue.state).idle == 0 {
                assert!(Instant::now() < end, "no thread becomes idle");
                drop(connect());
                std::thread::park_timeout(Duration::from_millis(10));
            }
            let slow = [connect(), connect()];
            assert!(slow.iter().all(is_answered) && is_answered(&connect()));
        }
    }
}
