//! The server: accept loop → [`guest`] → [`connection`] → [`delivery`] → [`registry`] → the recipients' [`outbox`]es;
//! for its operator [`operator`], on disk [`store`].
//!
//! Invariants: nothing here can name a private key or an envelope's contents (a test reads the imports). No lock is held
//! while a thread waits for a client; one that is held while it waits for the disk (that of `locks.json`) is taken for
//! nothing else. Every wait for a client has a deadline, and everything that a client can make grow has a bound; those
//! that somebody can meet stand in [`limits`].
//!
//! Lock order, each before those behind it: a session's slot → the list of [`grace`]; slot, or what it has granted, or the
//! presence changes → the registry's sessions (→ its reservations) → an outbox → its TLS, the connection limits ([`accept`]). A session's
//! certificate and tokens are locked within the registry's, those of a replaced session before its successor's. The [`lockout`](store::lockout)'s
//! names come before its addresses. No two outboxes or slots are held together.

pub mod accept;
pub mod connection;
pub mod delivery;
pub mod flusher;
pub mod frames;
pub mod grace;
pub mod guest;
pub mod limits;
mod metrics;
pub mod operator;
pub mod options;
pub mod outbox;
pub mod rates;
pub mod receipts;
pub mod registry;
pub mod resume;
pub mod session;
pub mod store;
pub mod unfinished;

use crate::disk;
use crate::name::Username;
use crate::sync::lock;
use crate::wire::tls::limit_unsent;
use accept::{ConnectionLimits, Ticket};
use flusher::Flusher;
use grace::Grace;
use limits::Limits;
use operator::{admin, status};
use options::Options;
use rates::Registrations;
use registry::Registry;
use std::collections::VecDeque;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use store::accounts::Accounts;
use store::audit::Audit;
use store::certificates::Certificates;
use store::lockout::Lockout;
use store::locks::Locks;

/// Stack of a thread that does handshakes and logins, in bytes: more than four times that of a connection's, or glibc hands
/// it on, when it ends, with all the pages that a handshake has touched.
const ADMISSION_STACK: usize = 2 * 1024 * 1024;
/// Stack of a connection's thread, in bytes: nothing on it recurses, and there are ten thousand.
const CONNECTION_STACK: usize = 256 * 1024;
/// An admission thread waits this long for the next connection before it ends: through a storm of logins.
const ADMISSION_IDLE: Duration = Duration::from_secs(1);

/// What all threads share.
pub struct Shared {
    /// As the operator has set them.
    pub limits: Limits,
    /// With `--closed`: no new accounts.
    pub closed: bool,
    /// And with them the data folder's lock.
    pub accounts: Accounts,
    /// Who is on-line.
    pub registry: Registry,
    /// Writes out what broadcasts and presence have queued.
    pub flusher: Flusher,
    /// The sessions that wait for another connection.
    pub grace: Grace,
    /// Failed logins, by name and by address.
    pub lockout: Lockout,
    /// New accounts and changed passwords, by address.
    pub registrations: Registrations,
    /// The security log.
    pub audit: Audit,
    /// The server's TLS certificate and key. `None` with `--no-tls`.
    pub certificates: Option<Certificates>,
    connections: Arc<ConnectionLimits>,
    queue: AdmissionQueue,
    locks: Locks,
}

/// Sockets that wait for an admission thread, and how many such threads have nothing to do.
#[derive(Default)]
struct AdmissionQueue {
    state: Mutex<(VecDeque<Admission>, usize)>,
    wake: Condvar,
}

type Admission = (Arc<TcpStream>, std::net::IpAddr, Ticket);

/// Serves until the process ends. Returns only an error of the start.
///
/// # Errors
/// With file, reason and remedy in the text.
pub fn run(options: &Options, out: &mut impl Write) -> io::Result<std::convert::Infallible> {
    // Nothing but the end of a start may end by it.
    let signals = status::catch()?;
    let folder = &options.data_dir;
    disk::private_folders(folder, &store::FOLDERS)?;
    let mut notices = store::close_private(folder);
    let (accounts, repaired) = Accounts::open(folder)?;
    notices.extend(repaired);
    let audit = Audit::open(&folder.join("logs"))?;
    let (locks, held, repaired) = Locks::open(folder)?;
    notices.extend(repaired);
    let mut output = Output { out, failed: None };
    output.say(format_args!("data in {} ({} accounts)", folder.display(), accounts.count()));
    for notice in notices {
        output.say(&notice);
        audit.log("storage_notice", None, None, &notice);
    }
    let certificates = match options.tls {
        true => {
            let (certificates, notices) = Certificates::open(&folder.join("certs"))?;
            notices.iter().for_each(|notice| output.say(notice));
            Some(certificates)
        }
        false => {
            output.say(
                "WARNING: --no-tls: anyone on the way can see who talks to whom, and tamper with logins",
            );
            None
        }
    };
    let listener = bind(&options.host, options.port)?;
    output.say(format_args!("room for {} clients", options.limits.clients));
    let shared = Arc::new(Shared {
        connections: Arc::new(ConnectionLimits::new(&options.limits)),
        limits: options.limits.clone(),
        closed: options.closed,
        accounts,
        registry: Registry::default(),
        flusher: Flusher::default(),
        grace: Grace::new(options.limits.grace),
        lockout: Lockout::default(),
        registrations: Registrations::new(options.limits.registrations),
        audit,
        certificates,
        queue: AdmissionQueue::default(),
        locks,
    });
    for (name, left) in held.locked {
        shared.lockout.restore(name, left);
    }
    status::start(&shared, signals)?;
    if let Err(error) = admin::serve(&shared, folder) {
        output.say(format_args!("WARNING: `server user` will not reach this server: {error}"));
    }
    let flushing = shared.clone();
    thread("flusher", CONNECTION_STACK, move || flushing.flusher.run())?;
    let telling = shared.clone();
    thread("presence", CONNECTION_STACK, move || telling.registry.tell_presence(&telling.flusher))?;
    let ending = shared.clone();
    thread("grace", CONNECTION_STACK, move || ending.grace.run(&ending))?;
    output.say(format_args!("listening on {}", listener.local_addr()?));
    shared.audit.log("started", None, None, "");
    if let Some(error) = output.failed {
        shared.audit.output_failed(&error);
    }
    accept(&shared, &listener)
}

/// Standard output, which may be on a full disk: that is no reason to serve nobody.
struct Output<'a, W> {
    out: &'a mut W,
    failed: Option<io::Error>,
}

impl<W: Write> Output<'_, W> {
    fn say(&mut self, line: impl Display) {
        if let Err(error) = writeln!(self.out, "{line}").and_then(|()| self.out.flush()) {
            self.failed = Some(error);
        }
    }
}

fn thread(name: &str, stack: usize, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).stack_size(stack).spawn(work).map(drop)
}

fn bind(host: &str, port: u16) -> io::Result<TcpListener> {
    let failed = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => " (is a server running already? --port chooses another)",
            _ => "",
        };
        io::Error::new(error.kind(), format!("cannot listen on {host}:{port}: {error}{hint}"))
    };
    let address = (host, port).to_socket_addrs().map_err(failed)?.next();
    let address = address.ok_or_else(|| failed(io::ErrorKind::AddrNotAvailable.into()))?;
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).map_err(failed)?;
    socket.set_reuse_address(true).map_err(failed)?;
    socket.bind(&address.into()).map_err(failed)?;
    // A storm of logins must not overflow the kernel's queue of 128.
    socket.listen(4096).map_err(failed)?;
    Ok(socket.into())
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) -> ! {
    let tell = |event: &'static str, detail: &str| shared.audit.limit(event, None, None, detail);
    loop {
        let (socket, address) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                // Out of descriptors: those who are connected are served on, the others wait a little.
                tell("accept_failed", &error.to_string());
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        let socket = Arc::new(socket);
        let Some(ticket) = shared.connections.admit(address.ip(), &socket) else {
            metrics::REFUSED.add();
            tell("refused", "too many connections");
            continue;
        };
        if ticket.pushed_out {
            tell("pushed_out", "too many connections that are not logged in");
        }
        limit_unsent(&socket);
        shared.enqueue((socket, address.ip(), ticket));
    }
}

impl Shared {
    /// Hands a connection to an idle admission thread, or to a new one.
    fn enqueue(self: &Arc<Shared>, admission: Admission) {
        let mut state = lock(&self.queue.state);
        state.0.push_back(admission);
        if state.1 >= state.0.len() {
            self.queue.wake.notify_one();
            return;
        }
        drop(state);
        let shared = self.clone();
        if thread("admission", ADMISSION_STACK, move || shared.admit_all()).is_err() {
            // No thread to be had: a connection is dropped, the others go on.
            lock(&self.queue.state).0.pop_back();
        }
    }

    fn admit_all(self: &Arc<Shared>) {
        loop {
            let mut state = lock(&self.queue.state);
            if state.0.is_empty() {
                state.1 += 1;
                let waited = self.queue.wake.wait_timeout(state, ADMISSION_IDLE);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                state.1 -= 1;
            }
            let Some((socket, address, ticket)) = state.0.pop_front() else {
                return;
            };
            drop(state);
            if let Some(client) = connection::admit(self, socket, address, ticket) {
                // Boxed, for the stack of a thread that waits.
                let client = Box::new(client);
                // If no thread can be had, the closure is dropped, and with it the connection.
                let _ = thread("client", CONNECTION_STACK, move || client.run());
            }
        }
    }

    /// Writes down that a name is locked, so that a restart does not unlock it. A failure of the disk is logged, no more.
    pub fn remember_lock(&self, name: &Username) {
        if let Err(error) = self.locks.lock(name) {
            self.audit.log("storage_failed", Some(name), None, &error.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::store::accounts::tests::Folder;
    use super::*;
    use std::io::Read;
    use std::time::Instant;

    /// What the threads of a server share that nobody can connect to, and its data folder.
    pub fn shared(grace: Duration) -> (Arc<Shared>, Folder) {
        let folder = Folder::new();
        let limits = Limits { grace, ..Limits::for_machine(1024, 65_530) };
        let (accounts, _) = Accounts::open(&folder.0).expect("a new folder");
        let shared = Shared {
            connections: Arc::new(ConnectionLimits::new(&limits)),
            closed: false,
            accounts,
            registry: Registry::default(),
            flusher: Flusher::default(),
            grace: Grace::new(grace),
            lockout: Lockout::default(),
            registrations: Registrations::new(limits.registrations),
            audit: Audit::open(&folder.0).expect("a log"),
            certificates: None,
            queue: AdmissionQueue::default(),
            locks: Locks::open(&folder.0).expect("none").0,
            limits,
        };
        (Arc::new(shared), folder)
    }

    /// PROTOCOL#deadlines.
    #[test]
    fn who_takes_long_to_log_in_keeps_nobody_waiting() {
        let (shared, _folder) = shared(Duration::from_secs(3600));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let guest = || {
            let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
            far.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
            let (socket, address) = listener.accept().expect("accepted");
            let socket = Arc::new(socket);
            let ticket = shared.connections.admit(address.ip(), &socket).expect("there is room");
            shared.enqueue((socket, address.ip(), ticket));
            far
        };
        let is_answered = |mut far: &TcpStream| {
            far.write_all(b"{\"type\":\"ping\"}\n").expect("written");
            far.read(&mut [0; 100]).is_ok_and(|count| count > 0)
        };
        for _ in 0..3 {
            let end = Instant::now() + Duration::from_secs(60);
            // A thread that has served one is free for the next, for a while.
            while lock(&shared.queue.state).1 == 0 {
                assert!(Instant::now() < end, "no thread is ever free");
                drop(guest());
                std::thread::park_timeout(Duration::from_millis(10));
            }
            let slow = [guest(), guest()];
            assert!(slow.iter().all(is_answered) && is_answered(&guest()));
        }
    }
}
