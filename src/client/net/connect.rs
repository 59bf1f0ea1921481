//! From a host name to a channel with a trusted server.
//!
//! Invariant: the client sends no message to a server whose key is not trusted. It refuses a changed key, with the
//! reason and the remedy. Only `--no-tls` turns TLS off.

use super::dial::dial;
use crate::client::error::StartError;
use crate::client::options::Options;
use crate::client::store::trust::KnownServers;
use crate::client::text::shortened;
use crate::crypto::public::Fingerprint;
use crate::disk;
use crate::name::Username;
use crate::protocol::{ClientMessage, DecodeError, ErrorCode, Failure, MAX_LINE, ServerMessage};
use crate::sync::spawn;
use crate::wire::certificate;
use crate::wire::frame::Lines;
use crate::wire::tls::{Channel, Reader, Received, Unverified};
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// For all addresses of the server together: time for three retries of a lost SYN.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For the TLS handshake; the server waits no longer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the server's answer to each step of a login, in which it checks hashes and waits for its disk. A reconnection
/// has one shorter deadline for all steps.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest wait in seconds that a server may ask for: a day.
pub const MAX_RETRY_AFTER: u64 = 86_400;
/// The duration of a lock in seconds, if the server does not give it: that of this project's server.
const LOCKED: u64 = 900;

/// A connection before login: each request gets one answer.
pub struct Connection {
    /// To a server whose key is trusted; without TLS with `--no-tls`.
    pub channel: Arc<Channel>,
    /// The server's key; `None` with `--no-tls`.
    pub server: Option<Fingerprint>,
    /// Received lines that were not read yet.
    pub lines: Lines,
    /// The reading half of the channel.
    pub reader: Reader,
    /// The deadline of all steps together, for a reconnection.
    by: Option<Instant>,
    /// The seconds that the server's last error asks to wait.
    pub retry_after: Option<u64>,
}

/// Connects to the server of `options`. `ask` decides about an unknown server; if it returns true, its key is
/// remembered.
///
/// # Errors
/// [`StartError`]; [`StartError::UnknownServer`] if `ask` returns false.
pub fn connect(options: &Options, ask: impl FnOnce(Fingerprint) -> bool) -> Result<Connection, StartError> {
    let remember = |seen| known_servers(options)?.remember(&options.server(), seen).map_err(StartError::Disk);
    let seen = match attempt(options, None)? {
        Ok(connection) => {
            connection.server.map_or(Ok(()), remember)?;
            return Ok(connection);
        }
        Err(seen) => seen,
    };
    let doubt = known_servers(options)?.doubt(&options.server());
    // Decide first, then connect again: the server would not wait for the user's answer.
    if doubt.is_some() && options.accept_new || !ask(seen) {
        return Err(match doubt {
            Some(aside) => StartError::LostServer(options.server(), seen, aside),
            None => StartError::UnknownServer(options.server(), seen),
        });
    }
    remember(seen)?;
    attempt(options, None)?.map_err(|seen| StartError::UnknownServer(options.server(), seen))
}

/// The remembered keys of servers. Repairs of the file are not reported again: the start has done that.
///
/// # Errors
/// [`StartError::Disk`].
pub fn known_servers(options: &Options) -> Result<KnownServers, StartError> {
    KnownServers::open(&options.data_dir).map_err(StartError::Disk)
}

/// Connects again to the server whose key `options` pin, without reading a file. `by` is the deadline for the
/// connection and all answers on it.
///
/// # Errors
/// As [`connect`].
pub fn reconnect(options: &Options, by: Instant) -> Result<Connection, StartError> {
    let unknown = |seen| StartError::UnknownServer(options.server(), seen);
    attempt(options, Some(by))?.map_err(unknown)
}

/// One connection, or the key of an untrusted server.
fn attempt(options: &Options, by: Option<Instant>) -> Result<Result<Connection, Fingerprint>, StartError> {
    let socket = Arc::new(reach(options, by)?);
    let opened = |channel, server| {
        let (channel, lines, reader) = (Arc::new(channel), Lines::new(MAX_LINE), Reader::default());
        Ok(Ok(Connection { channel, server, lines, reader, by, retry_after: None }))
    };
    if !options.tls {
        return opened(Channel::bare(socket).map_err(StartError::Lost)?, None);
    }
    let unverified = Unverified::connect(&options.host, socket, sooner(HANDSHAKE_TIMEOUT, by));
    let unverified = unverified.map_err(StartError::Channel)?;
    let seen = unverified.fingerprint();
    let Some(expected) = trusted(options, seen)? else { return Ok(Err(seen)) };
    let changed = || StartError::ServerChanged { server: options.server(), seen, expected };
    opened(unverified.trust(expected).ok_or_else(changed)?, Some(seen))
}

/// The deadline of a step that may take `limit`, in an attempt with the deadline `by`.
fn sooner(limit: Duration, by: Option<Instant>) -> Instant {
    let end = Instant::now() + limit;
    by.map_or(end, |by| by.min(end))
}

/// The trusted key: from the command line, the server's own certificate on this machine, or `known_servers`. `None` if
/// the user must decide.
fn trusted(options: &Options, seen: Fingerprint) -> Result<Option<Fingerprint>, StartError> {
    if options.fingerprint.is_some() {
        return Ok(options.fingerprint);
    }
    let known = known_servers(options)?;
    // Before the remembered key: a new installation of the server on this machine has a new one.
    let local = || local_server().filter(|local| is_this_machine(&options.host) && *local == seen);
    let remembered = || known.get(&options.server());
    let is_new = options.accept_new && known.doubt(&options.server()).is_none();
    Ok(local().or_else(remembered).or(is_new.then_some(seen)))
}

fn is_this_machine(host: &str) -> bool {
    matches!(host, "localhost" | "127.0.0.1" | "::1")
}

/// The key of a server that runs as this user on this machine.
fn local_server() -> Option<Fingerprint> {
    let path = disk::under_home(".secure_messenger").ok()?.join("certs/server.crt");
    certificate::read_facts(&path).ok().map(|facts| facts.fingerprint)
}

/// The server's addresses. The system's resolver has no deadline, so it runs on its own thread.
fn resolve(options: &Options, by: Instant) -> io::Result<Vec<SocketAddr>> {
    let (host, port) = (options.host.clone(), options.port);
    let (sender, found) = mpsc::channel();
    spawn("resolve", move || {
        let _ = sender.send((host.as_str(), port).to_socket_addrs().map(Iterator::collect));
    })?;
    let left = by.saturating_duration_since(Instant::now());
    found.recv_timeout(left).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn reach(options: &Options, by: Option<Instant>) -> Result<TcpStream, StartError> {
    let failed = |error| StartError::Unreachable(options.server(), error);
    let end = sooner(CONNECT_TIMEOUT, by);
    resolve(options, end).and_then(|addresses| dial(addresses.into_iter(), end)).map_err(failed)
}

impl Connection {
    /// Sends one message.
    ///
    /// # Errors
    /// [`StartError::Lost`] if the connection does not take it in time, or is broken.
    pub fn say(&self, message: &ClientMessage) -> Result<(), StartError> {
        let line = zeroize::Zeroizing::new(message.encode());
        let mut wire = Vec::new();
        let end = sooner(ANSWER_TIMEOUT, self.by);
        let sent = self.channel.encrypt(&line, &mut wire).and_then(|()| self.channel.send_by(&wire, end));
        sent.map_err(StartError::Lost)
    }

    /// Sends one message and returns the answer, which may be an error of the server.
    ///
    /// # Errors
    /// [`StartError::Lost`] if the connection breaks or no answer arrives in time; [`StartError::OutOfPlace`] if the
    /// answer is not a message; [`StartError::OtherVersion`]; [`StartError::SpeaksTls`].
    pub fn ask(&mut self, message: &ClientMessage) -> Result<ServerMessage, StartError> {
        self.say(message)?;
        let deadline = sooner(ANSWER_TIMEOUT, self.by);
        loop {
            match self.lines.next_line() {
                Err(_) => return Err(StartError::OutOfPlace),
                Ok(Some(line)) => match ServerMessage::decode(line) {
                    Ok(ServerMessage::Ping) => self.say(&ClientMessage::Pong)?,
                    Ok(answer) => {
                        if let ServerMessage::Error(failure) = &answer {
                            self.retry_after = failure.retry_after;
                        }
                        return Ok(answer);
                    }
                    Err(DecodeError::OtherVersion(theirs)) => {
                        return Err(StartError::OtherVersion(Some(theirs)));
                    }
                    Err(_) => return Err(StartError::OutOfPlace),
                },
                Ok(None) => self.wait(deadline)?,
            }
        }
    }

    fn wait(&mut self, deadline: Instant) -> Result<(), StartError> {
        let wait = deadline.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return Err(StartError::Lost(io::ErrorKind::TimedOut.into()));
        }
        let received = self.channel.receive(&mut self.reader, self.lines.buffer(), wait);
        // A TLS server answers a client without TLS with an alert that begins with these bytes.
        let buffer = self.lines.buffer();
        if buffer.first() == Some(&0x15) && buffer.get(1) == Some(&0x03) {
            return Err(StartError::SpeaksTls);
        }
        match received {
            Ok(Received::End) => Err(StartError::Lost(io::Error::other("the server closed the connection"))),
            Ok(_) => Ok(()),
            Err(error) => Err(StartError::Lost(error)),
        }
    }
}

/// The error for a refusal of the server. A wait of more than a day counts as a day.
pub fn refusal(failure: &Failure, name: &Username) -> StartError {
    let is = |code| failure.is(code);
    if is(ErrorCode::LoginFailed) {
        StartError::Login
    } else if is(ErrorCode::SignedInElsewhere) {
        StartError::Elsewhere
    } else if is(ErrorCode::Locked) {
        StartError::Locked(name.clone(), failure.retry_after.unwrap_or(LOCKED).min(MAX_RETRY_AFTER))
    } else if is(ErrorCode::UnsupportedVersion) {
        StartError::OtherVersion(None)
    } else if is(ErrorCode::NameTaken) {
        StartError::NameTaken(name.clone())
    } else {
        let again = failure.retry_after.map(|seconds| seconds.min(MAX_RETRY_AFTER));
        let again = again.map_or(String::new(), |seconds| format!(" (try again in {seconds} seconds)"));
        StartError::Server(shortened(&failure.message) + &again)
    }
}
