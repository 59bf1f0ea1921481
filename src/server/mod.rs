//! The server: accept loop → [`guest`] → [`connection`] → [`delivery`] → [`registry`] → the recipients' [`outbox`]es;
//! for its operator [`operator`], on disk [`store`].
//!
//! Invariants: nothing here can name a private key or an envelope's contents (a test reads the imports). No lock is held
//! while a thread waits for a client; those that are held while they wait for the disk (those of `locks.json` and of the
//! renewal of a certificate) are taken for nothing else. Every wait for a client has a deadline, and everything that a client can make grow has a bound; those
//! that somebody can meet stand in [`limits`].
//!
//! Lock order, each before those behind it: a session's slot → the list of [`grace`]; slot, or what it has granted, or the
//! presence changes → the registry's sessions (→ its reservations) → an outbox → its TLS, the [`connection_limits`]. A session's
//! certificate and tokens are locked within the registry's, those of a replaced session before its successor's.
//! No two outboxes or slots are held together.

pub mod accept;
pub mod connection;
pub mod connection_limits;
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
pub mod partial_frame;
pub mod quotas;
pub mod rates;
pub mod receipts;
pub mod registry;
pub mod resume;
pub mod session;
pub mod store;
mod threads;

use crate::crypto::public::Fingerprint;
use crate::crypto::secret::Key;
use crate::sync::lock;
use accept::AdmissionQueue;
use connection_limits::ConnectionLimits;
use flusher::Flusher;
use grace::Grace;
use limits::Limits;
use operator::{admin, status};
use options::Options;
use quotas::Quotas;
use rates::Counter;
use registry::Registry;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::Store;
use store::accounts::Accounts;
use store::audit::Audit;
use store::certificates::Certificates;
use store::lockout::Lockout;
use threads::{CONNECTION_STACK, thread};

/// The time for [`Limits::registrations`].
const MINUTE: Duration = Duration::from_secs(60);

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
    /// What all sessions share.
    pub quotas: Arc<Quotas>,
    /// Makes the salts of names that do not exist, 32 bytes.
    pub salt_secret: Key,
    /// Failed logins, by name and by address.
    pub lockout: Lockout,
    /// New accounts and changed passwords, by address.
    pub registrations: Mutex<Counter<IpAddr>>,
    /// The security log.
    pub audit: Audit,
    /// The server's TLS certificate and key. `None` with `--no-tls`.
    pub certificates: Option<Certificates>,
    connections: Arc<ConnectionLimits>,
    queue: AdmissionQueue,
}

impl Shared {
    /// The server's key: `None` without TLS.
    fn server_key(&self) -> Option<Fingerprint> {
        self.certificates.as_ref().map(Certificates::key)
    }

    /// Once the key is another one: clients of the former key would refuse the broadcasts of the others.
    /// PROTOCOL#broadcast-server.
    fn end_connections_of_another_key(&self) {
        if self.certificates.as_ref().is_some_and(Certificates::has_new_key) {
            self.registry.disconnect();
        }
    }

    /// Without sessions yet.
    fn new(limits: Limits, closed: bool, store: Store) -> Shared {
        Shared {
            closed,
            accounts: store.accounts,
            registry: Registry::default(),
            flusher: Flusher::default(),
            grace: Grace::new(limits.grace),
            quotas: Arc::default(),
            salt_secret: store.salt_secret,
            lockout: store.lockout,
            registrations: Mutex::new(Counter::new(limits.registrations, MINUTE)),
            audit: store.audit,
            certificates: store.certificates,
            connections: Arc::new(ConnectionLimits::new(&limits)),
            queue: AdmissionQueue::default(),
            limits,
        }
    }
}

/// Serves until the process ends. Returns only an error of the start.
///
/// # Errors
/// With file, reason and remedy in the text.
pub fn run(options: &Options, out: &mut impl Write) -> io::Result<std::convert::Infallible> {
    // From now on a signal for the log or the certificate ends no start.
    let signals = status::catch()?;
    let folder = &options.data_dir;
    let mut notices = Vec::new();
    let opened = Store::open(folder, options.tls, &mut notices);
    let mut output = Output { out, failed: None };
    if let Ok(store) = &opened {
        output.say(format_args!("data in {} ({} accounts)", folder.display(), store.accounts.count()));
    }
    notices.iter().for_each(|notice| output.say(notice));
    let store = opened?;
    if !options.tls {
        output.say("WARNING: --no-tls: anyone on the way can see who talks to whom, and tamper with logins");
    }
    let listener = accept::bind(&options.host, options.port)?;
    output.say(format_args!("room for {} clients", options.limits.clients));
    let shared = Arc::new(Shared::new(options.limits.clone(), options.closed, store));
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
    accept::run(&shared, &listener)
}

/// Standard output. It may be on a full disk, which must not keep the server from serving.
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

#[cfg(test)]
mod tests {
    use super::store::accounts::tests::Folder;
    use super::*;

    /// What the threads of a server share that nobody can connect to, and its data folder.
    pub fn shared(grace: Duration) -> (Arc<Shared>, Folder) {
        let folder = Folder::new();
        let limits = Limits { grace, ..Limits::for_machine(1024, 65_530) };
        let store = Store::open(&folder.0, false, &mut Vec::new()).expect("a new folder");
        (Arc::new(Shared::new(limits, false, store)), folder)
    }
}
