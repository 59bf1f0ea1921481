//! From a host name to a channel with a trusted server.
//!
//! Invariant: the client sends nothing to a server whose key nobody has vouched for; it refuses a changed key, with
//! the reason and the remedy; only `--no-tls` turns TLS off.

use super::dial::dial;
use super::options::Options;
use super::text::shortened;
use super::trust::{KnownCertificates, KnownServers};
use crate::crypto::key_file::KeyFileError;
use crate::crypto::public::Fingerprint;
use crate::disk;
use crate::name::Username;
use crate::protocol::{ClientMessage, DecodeError, ErrorCode, Failure, MAX_LINE, ServerMessage, VERSION};
use crate::sync::spawn;
use crate::wire::certificate;
use crate::wire::frame::Lines;
use crate::wire::tls::{Channel, Reader, Received, Unverified};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// For all addresses of the server together: time for three retries of a lost SYN.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For the TLS handshake: the server waits no longer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the server's answer to each step of a login: it checks hashes and waits for its disk. An attempt to reconnect
/// has its own, shorter deadline for everything.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest wait in seconds that a server may ask for: a day.
pub const MAX_RETRY_AFTER: u64 = 86_400;
/// The duration of a lock in seconds if the server does not name it: that of this project's server.
const LOCKED: u64 = 900;

/// Why a login failed. `Display` says what happened and what to do.
#[derive(Debug)]
pub enum StartError {
    /// No connection to `host:port`, and why.
    Unreachable(String, io::Error),
    /// The server speaks TLS, and this client runs with `--no-tls`.
    SpeaksTls,
    /// The connection or its TLS handshake failed, as [`Unverified::connect`] says.
    Channel(io::Error),
    /// Nobody has vouched for the key of `host:port`, which has this fingerprint.
    UnknownServer(String, Fingerprint),
    /// The damaged record that was set aside in this file may be that of `host:port`, so the server with this
    /// fingerprint may not be new.
    LostServer(String, Fingerprint, PathBuf),
    /// The server's key is not the remembered one, or not that of `--fingerprint`.
    ServerChanged {
        /// `host:port`, as typed.
        server: String,
        /// The key that the server has shown.
        seen: Fingerprint,
        /// The key that the server should have.
        expected: Fingerprint,
    },
    /// The connection broke during the login, or no answer arrived in time.
    Lost(io::Error),
    /// The server sent an unexpected message.
    OutOfPlace,
    /// The server speaks this other version of the protocol; `None` if it did not name it.
    OtherVersion(Option<u64>),
    /// There is no key file for this name at this path.
    NoKey(Username, std::path::PathBuf),
    /// The key file does not open.
    KeyFile(KeyFileError),
    /// A registration: the password does not open the existing key file for the name, at this path.
    OtherKey(Username, std::path::PathBuf),
    /// A registration: another user has the name.
    NameTaken(Username),
    /// A registration: the password has fewer than 6 characters.
    ShortPassword,
    /// A registration: the account is created, but the login that followed failed.
    OnlyMade(Box<StartError>),
    /// The server has refused the name, the password or the key, and does not tell which.
    Login,
    /// The challenge's salt and rounds are not in the key file at this path.
    UnknownLogin(PathBuf),
    /// A password change was interrupted, and the server expects the other of the two passwords.
    OtherPassword,
    /// Another client of the same user has replaced this one.
    Elsewhere,
    /// Too many failed logins with this name or from this address: the seconds left, a day at most.
    Locked(Username, u64),
    /// The server's challenge is not safe to answer.
    Auth(Failure),
    /// This clock is too far from the server's, so certificates would be refused; with advice for the user.
    Clock(String),
    /// Any other refusal, with the server's text, sanitised.
    Server(String),
    /// A file of the data folder cannot be read or written; the text names it.
    Disk(io::Error),
    /// The options or a command are incomplete or contradict each other; at the start, the exit status is 2.
    Usage(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Unreachable(server, error) => {
                write!(f, "the server at {server} cannot be reached: {} (is it running? --host and --port choose another)", reason(error))
            }
            StartError::Channel(error) if error.kind() == io::ErrorKind::Unsupported => {
                f.write_str("the server does not speak TLS: if it was started with --no-tls on purpose, start this client with it too")
            }
            StartError::Channel(error) if error.kind() == io::ErrorKind::InvalidData => {
                write!(f, "the TLS handshake failed: {error}")
            }
            StartError::Channel(error) => write!(f, "the connection failed: {}", reason(error)),
            StartError::OnlyMade(error) => write!(f, "your account is created, but the login failed: {error}"),
            StartError::SpeaksTls => f.write_str("the server speaks TLS: leave out --no-tls"),
            StartError::UnknownServer(server, seen) => write!(
                f,
                "the server at {server} is not known yet. Its fingerprint is {seen}: compare it with the one that the \
                 server prints when it starts, then use --fingerprint {seen} (or --accept-new)"
            ),
            StartError::LostServer(server, seen, aside) => write!(
                f,
                "the server at {server} may not be new: a damaged record of known_servers, set aside in {aside}, may have \
                 been its record, so --accept-new does not accept it. Its fingerprint is {seen}: compare it with the one \
                 that the server prints when it starts, then use --fingerprint {seen}. When you have done so for every \
                 server you knew, remove {aside}",
                aside = aside.display()
            ),
            StartError::ServerChanged { server, seen, expected } => write!(
                f,
                "THE KEY OF THE SERVER AT {server} HAS CHANGED: expected {expected}, seen {seen}. Either the operator has \
                 replaced the key, or someone is intercepting the connection. Nothing was sent. Ask the operator for the \
                 server's fingerprint; only if it is the one seen now, use --fingerprint {seen}"
            ),
            StartError::Lost(error) => write!(f, "connection lost: {}", reason(error)),
            StartError::OutOfPlace => f.write_str("unexpected message from the server: is it a server of this messenger?"),
            StartError::OtherVersion(theirs) => {
                let theirs = theirs.map_or("another version".into(), |version| format!("version {version}"));
                write!(
                    f,
                    "the server speaks {theirs} of the protocol, this client version {VERSION}: use a client of that \
                     version, or ask the operator to update the server"
                )
            }
            StartError::NoKey(name, path) => write!(
                f,
                "there is no key for {name} on this machine: copy it to {} from the machine where you created \
                 the account, or create a new account",
                path.display()
            ),
            StartError::KeyFile(KeyFileError::WrongPassword) => {
                f.write_str("the password is wrong: it does not open your key on this machine")
            }
            StartError::KeyFile(error) => write!(f, "{error}"),
            StartError::OtherKey(name, path) => write!(
                f,
                "there is already a key for {name} ({}), and this password does not open it: log in with the right \
                 password, or choose another name; nothing was overwritten",
                path.display()
            ),
            StartError::NameTaken(name) => write!(f, "the name {name} is taken: choose another"),
            StartError::ShortPassword => f.write_str("a password has at least 6 characters"),
            StartError::Login => f.write_str(
                "login failed: the name or the password is wrong, or the key on this machine is not this account's \
                 (if the password was changed on another machine, copy the key file from there)",
            ),
            StartError::UnknownLogin(path) => write!(
                f,
                "this server does not ask for your password as your key file expects, so nothing was sent. Either the \
                 password was changed elsewhere, or your account is not on this server (the name may be taken), or this \
                 is a false server. If you changed the password on another machine, copy the key file from there to {}. \
                 If you have no account on this server, create it. If nothing else helps, ask the operator to remove \
                 the account, then create it again: you keep your key",
                path.display()
            ),
            StartError::OtherPassword => f.write_str(
                "an earlier password change was interrupted, and the server expects the other of the two \
                 passwords: log in with that one",
            ),
            StartError::Elsewhere => f.write_str("you have logged in elsewhere: this session is over"),
            StartError::Locked(name, seconds) => write!(
                f,
                "too many failed logins as {name}, or from your address: try again in {}",
                minutes(*seconds)
            ),
            StartError::Auth(Failure { message, .. }) => {
                write!(f, "the server asks for something unsafe: {message}")
            }
            StartError::Clock(advice) => f.write_str(advice),
            StartError::Server(text) => write!(f, "the server says: {text}"),
            StartError::Disk(error) => write!(f, "{error}"),
            StartError::Usage(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for StartError {}

fn minutes(seconds: u64) -> String {
    match seconds.div_ceil(60) {
        1 => "1 minute".into(),
        minutes => format!("{minutes} minutes"),
    }
}

/// The reason of a failed socket, for users.
pub fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "there was no answer in time".into(),
        io::ErrorKind::UnexpectedEof => "the server closed the connection".into(),
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::ConnectionReset => "the server reset the connection".into(),
        _ => error.to_string(),
    }
}

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
    /// The deadline of the attempt, if it has one.
    by: Option<Instant>,
    /// The seconds that the server's last error asks to wait.
    pub retry_after: Option<u64>,
}

/// Connects to the server of `options`. `ask` decides about an unknown server; if it returns true, its key is
/// remembered.
///
/// # Errors
/// [`StartError`]; [`StartError::UnknownServer`] if `ask` says no.
pub fn connect(options: &Options, ask: impl FnOnce(Fingerprint) -> bool) -> Result<Connection, StartError> {
    let remember = |seen| known_servers(options)?.remember(&options.server(), seen).map_err(StartError::Disk);
    let seen = match attempt(options, None)? {
        Ok(connection) => {
            connection.server.map_or(Ok(()), remember)?;
            return Ok(connection);
        }
        Err(seen) => seen,
    };
    let doubt = known_servers(options)?.doubt(&options.server()).map(Path::to_path_buf);
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

/// The remembered keys of servers.
///
/// # Errors
/// [`StartError::Disk`].
pub fn known_servers(options: &Options) -> Result<KnownServers, StartError> {
    KnownServers::open(&options.data_dir.join("known_servers")).map_err(StartError::Disk)
}

/// The remembered newest certificates of this server's users.
///
/// # Errors
/// [`StartError::Disk`].
pub fn known_certificates(options: &Options) -> Result<KnownCertificates, StartError> {
    let path = options.data_dir.join("known_certificates");
    KnownCertificates::open(&path, options.server()).map_err(StartError::Disk)
}

/// Connects again to the server whose key `options` pin, without reading a file. `by` is the deadline for the
/// connection and everything that is asked on it.
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
    let Some(expected) = vouched(options, seen)? else { return Ok(Err(seen)) };
    let changed = || StartError::ServerChanged { server: options.server(), seen, expected };
    opened(unverified.trust(expected).ok_or_else(changed)?, Some(seen))
}

/// The deadline of a step that may take `limit`, in an attempt with the deadline `by`.
fn sooner(limit: Duration, by: Option<Instant>) -> Instant {
    let end = Instant::now() + limit;
    by.map_or(end, |by| by.min(end))
}

/// The trusted key: from the command line, the server's own certificate on this machine, or memory. `None` if the user
/// must decide.
fn vouched(options: &Options, seen: Fingerprint) -> Result<Option<Fingerprint>, StartError> {
    if options.fingerprint.is_some() {
        return Ok(options.fingerprint);
    }
    let known = known_servers(options)?;
    // After a new installation on this machine, the new key is there, too.
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

/// The error for a refusal of the server; `retry_after` is cut to a day.
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
