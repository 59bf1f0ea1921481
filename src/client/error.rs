//! Why a login or a password change failed, and what the user can do.

use crate::crypto::key_file::KeyFileError;
use crate::crypto::public::Fingerprint;
use crate::disk;
use crate::name::Username;
use crate::protocol::{Failure, VERSION};
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a login failed. `Display` says what happened and what to do.
#[derive(Debug)]
pub enum StartError {
    /// No connection to `host:port`, and why.
    Unreachable(String, io::Error),
    /// The server speaks TLS, and this client runs with `--no-tls`.
    SpeaksTls,
    /// The connection or its TLS handshake failed; for the kinds of error, see
    /// [`Unverified::connect`](crate::wire::tls::Unverified::connect).
    Channel(io::Error),
    /// The key of `host:port`, with this fingerprint, is not known.
    UnknownServer(String, Fingerprint),
    /// The user has not accepted the key of `host:port`.
    Declined(String),
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
    /// The server speaks another version of the protocol: this one, if it has named it.
    OtherVersion(Option<u32>),
    /// There is no key file for this name at this path.
    NoKey(Username, PathBuf),
    /// The key file does not open.
    KeyFile(KeyFileError),
    /// A registration: the password does not open the existing key file for the name, at this path.
    OtherKey(Username, PathBuf),
    /// A registration: another user has the name.
    NameTaken(Username),
    /// A registration: the password has fewer than 6 characters.
    ShortPassword,
    /// A registration: the account is created, but the login after it failed.
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
    /// This machine's clock is too far from the server's, so certificates would be refused; with advice for the user.
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
                f.write_str("the server does not speak TLS: if it was started with --no-tls on purpose, start this client with --no-tls too")
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
            StartError::Declined(server) => write!(
                f,
                "nothing was sent to the server at {server}: ask its operator for the fingerprint, then try again and \
                 compare the two"
            ),
            StartError::LostServer(server, seen, aside) => write!(
                f,
                "the server at {server} may be known already: a damaged record of known_servers, set aside in {aside}, may \
                 have been its record, so --accept-new does not apply. The fingerprint is {seen}: compare it with the one \
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
                    "the server uses {theirs} of the protocol, this client version {VERSION}: install a client for that \
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
            StartError::Disk(error) => f.write_str(&disk::reason(error)),
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

/// The reason of a network error, for users.
pub fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "there was no answer in time".into(),
        io::ErrorKind::UnexpectedEof => "the server closed the connection".into(),
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::ConnectionReset => "the server reset the connection".into(),
        _ => disk::reason(error),
    }
}

/// Why the password was not, or may not have been, changed. `Display` says what to do.
#[derive(Debug)]
pub enum ChangeError {
    /// The old password does not open the key file.
    WrongPassword,
    /// Another client is changing it, or an earlier change was interrupted.
    Unsettled,
    /// The change was refused: nothing has changed.
    Refused(StartError),
    /// The server may have changed it: its answer is missing or unclear.
    Unclear(StartError),
    /// The change is still in progress.
    Unfinished,
    /// The server has changed it, but the disk failed.
    NotReplaced(io::Error),
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LOG_IN: &str = "log in with the new password, or with the old one if that fails";
        match self {
            ChangeError::WrongPassword => {
                f.write_str("your password was not changed: the old password is wrong")
            }
            ChangeError::Unsettled => {
                write!(f, "an earlier change of your password is not complete: leave and {LOG_IN}")
            }
            ChangeError::Refused(error) => write!(f, "your password was not changed: {error}"),
            ChangeError::Unclear(error) => {
                write!(f, "it is not known whether your password was changed: {error}; leave and {LOG_IN}")
            }
            ChangeError::Unfinished => {
                write!(f, "it is not known whether your password was changed: next time, {LOG_IN}")
            }
            ChangeError::NotReplaced(error) => write!(
                f,
                "your password is changed, but the key file cannot be replaced: {error}; log in with the new one"
            ),
        }
    }
}

impl std::error::Error for ChangeError {}
