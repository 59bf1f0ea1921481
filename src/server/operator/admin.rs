//! `server user …`: an operator's actions on accounts, whether or not a server runs.
//!
//! A running server listens on `admin.sock` in its data folder. A request is a line `remove NAME` or `unlock NAME`, the
//! answer a line that begins with `ok` or `error`. When no server listens, the command takes the folder's lock and
//! makes the change itself.
//!
//! Invariant: a change is one line appended to a file, and is confirmed when that line is on disk, so if either side is
//! killed, the change is either complete or not made; only the mail of a removed account may stay. Only the folder's
//! owner (0700) can connect, who could edit its files anyway; no network reaches the socket.

use crate::disk;
use crate::name::Username;
use crate::protocol::ErrorCode;
use crate::server::options::Action;
use crate::server::shared::Shared;
use crate::server::store::{Store, accounts, lockout};
use crate::server::threads::service;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The socket's name in the data folder.
const SOCKET: &str = "admin.sock";
/// The longest line of either side, in bytes: a request has a verb and a name of 32, an answer may have a path.
const MAX_LINE: u64 = 8192;
/// The server waits this long for a request, and the command for an answer, which needs only the disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// Performs `action`, through the server that runs on `folder` if one does.
///
/// # Errors
/// With the reason and the remedy in the text.
pub fn command(folder: &Path, action: &Action, out: &mut impl Write) -> io::Result<()> {
    let users = folder.join("users.json");
    let owner = fs::metadata(&users).map_err(disk::at(&users))?.uid();
    let request = match action {
        Action::List => return list(folder, out),
        Action::Remove(name) => format!("remove {}\n", name.as_str()),
        Action::Unlock(name) => format!("unlock {}\n", name.as_str()),
    };
    match connect(folder) {
        Ok(stream) => writeln!(out, "{}", ask(&stream, &request)?),
        Err(_) => {
            // The server could not open files of another user at its next start.
            if fs::metadata("/proc/self").is_ok_and(|me| me.uid() != owner) {
                let text = format!(
                    "no server is running here: start it, or run this as user {owner}, the owner of its files"
                );
                return Err(disk::error(folder, text));
            }
            let store = Store::open(folder, false, &mut Vec::new())?;
            let done = perform(action, &store, |_| false);
            store.audit.flush();
            writeln!(out, "{}", done?)
        }
    }
}

/// Calls `act` with a path of the socket in `folder`: through the folder's descriptor, because the folder's own path
/// may not fit an address (108 bytes on Linux).
fn at_socket<T>(folder: &Path, act: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    let done = File::open(folder).and_then(|folder| {
        act(&Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(SOCKET))
    });
    done.map_err(disk::at(&folder.join(SOCKET)))
}

/// A connection to the server that runs on `folder`.
///
/// # Errors
/// With the path in the text, if none runs.
pub fn connect(folder: &Path) -> io::Result<UnixStream> {
    at_socket(folder, |path| UnixStream::connect(path))
}

fn list(folder: &Path, out: &mut impl Write) -> io::Result<()> {
    let locked = lockout::list(folder)?;
    for account in accounts::list(folder)? {
        let left = locked.get(&account.name.folded());
        let lock = left.map(|left| format!(" locked for {} min", left.as_secs() / 60 + 1));
        writeln!(out, "{} {}{}", account.name.as_str(), account.identity, lock.unwrap_or_default())?;
    }
    Ok(())
}

/// Asks the running server.
fn ask(stream: &UnixStream, request: &str) -> io::Result<String> {
    let text = "the server did not answer: the change may or may not have been made (`user list` shows it)";
    let unknown = |_| io::Error::other(text);
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    let mut reader = BufReader::new(stream.take(MAX_LINE));
    let asked = (&*stream).write_all(request.as_bytes()).and_then(|()| reader.read_line(&mut answer));
    asked.map_err(unknown)?;
    match answer.strip_suffix('\n').and_then(|line| line.split_once(' ')) {
        Some(("ok", text)) => Ok(text.into()),
        Some(("error", text)) => Err(io::Error::other(text.to_string())),
        _ => Err(unknown(io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Changes the files and the state in memory. `end` ends the session of a removed account; returns whether there was
/// one.
fn perform(action: &Action, store: &Store, end: impl FnOnce(&Username) -> bool) -> io::Result<String> {
    match action {
        Action::List => Err(io::Error::other("list reads users.json, and needs no server")),
        Action::Remove(name) => {
            let (mut ended, mut mail) = ("", 0);
            let removed = store.accounts.remove(name, || {
                if end(name) {
                    ended = "; its session has ended";
                }
                mail = store.mail.remove(name);
            });
            let identity = removed?.map(|identity| identity.to_string());
            let identity = identity.unwrap_or("it had a key file and no account".into());
            store.audit.log("removed", Some(name), None, &identity);
            Ok(format!("{name} is removed: {identity}{ended}; deleted messages to and from it: {mail}"))
        }
        Action::Unlock(name) => {
            store.lockout.unlock(name)?;
            store.audit.log("unlocked", Some(name), None, "");
            Ok(format!("{name} is not locked"))
        }
    }
}

/// Listens for requests from now on. The caller holds the folder's lock.
///
/// # Errors
/// If the socket cannot be made, with its path in the text.
pub fn serve(shared: &Arc<Shared>, folder: &Path) -> io::Result<()> {
    let path = folder.join(SOCKET);
    // Remove the socket of a former server: only the holder of the lock listens.
    let _ = fs::remove_file(&path);
    let listener = at_socket(folder, |path| UnixListener::bind(path))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(disk::at(&path))?;
    let shared = shared.clone();
    service("admin", move || {
        loop {
            match listener.accept() {
                // A command that has ended gets no answer.
                Ok((stream, _)) => drop(answer(&shared, &stream)),
                // Out of descriptors: wait before the next try.
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    })
}

fn answer(shared: &Shared, stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut line)?;
    // A partial line is from a command that was killed.
    let Some(line) = line.strip_suffix('\n') else { return Ok(()) };
    let (verb, name) = line.split_once(' ').unwrap_or((line, ""));
    let end = |name: &Username| {
        let session = shared.registry.get(name);
        let text = "the operator of the server has removed this account";
        session.inspect(|session| shared.dismiss(session, ErrorCode::AccountRemoved, text)).is_some()
    };
    let done = Action::parse(verb, Some(name))
        .and_then(|action| perform(&action, &shared.store, end).map_err(|error| error.to_string()));
    let line = done.map_or_else(|error| format!("error {error}"), |text| format!("ok {text}"));
    (&*stream).write_all((line.replace('\n', " ") + "\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_or_unknown_answer_is_neither_success_nor_refusal() {
        let outcome = |answer: &str| {
            let (near, mut far) = UnixStream::pair().expect("sockets");
            far.write_all(answer.as_bytes()).expect("written");
            far.shutdown(std::net::Shutdown::Write).expect("ended");
            ask(&near, "unlock alice\n").map_err(|error| error.to_string())
        };
        assert_eq!(outcome("ok alice is free\n"), Ok("alice is free".to_string()));
        assert_eq!(outcome("error no such name\n"), Err("no such name".to_string()));
        for half in ["", "ok", "ok alice", "error", "error no such", "okay alice\n", "\n"] {
            let error = outcome(half).expect_err(half);
            assert!(error.starts_with("the server did not answer"), "{half:?}: {error}");
        }
    }
}
