//! The client: keys, lines and the network's events → one owner of all state ([`session`]) → a pure view on the
//! terminal, or lines.
//!
//! Invariant: everything from the server is hostile until checked. Both front ends ([`screen`] and [`plain`]) show the
//! same entries of the same session, and use the same `backend`.
//!
#![doc = include_str!("MANUAL.md")]

pub mod audience;
mod backend;
pub mod command;
pub mod completion;
pub mod compose;
pub mod entry;
pub mod error;
pub mod file;
mod lines;
pub mod net;
pub mod options;
mod password_file;
pub mod path;
pub mod plain;
mod printer;
pub mod queue;
pub mod screen;
pub mod session;
pub mod store;
pub mod terminal;
pub mod text;
pub mod transfer;

use crate::clock;
use crate::disk;
use crate::protocol::ClientMessage;
use crate::sync::spawn;
use error::StartError;
use net::connect::{self, Connection};
use net::login::{self, Credentials, LoggedIn};
use net::reconnect::Reconnector;
use options::Options;
use screen::prompter::Prompter;
use screen::start;
use session::{NewKey, Session};
use std::io::{self, Write};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};
use store::history::History;
use store::mailbox::MailboxFile;
use store::trust::{Ignored, TrustStore};
use terminal::charset;
use terminal::inputs::Inputs;

const NO_TLS: &str = "WARNING: --no-tls: anyone on the network path can see who talks to whom, take \
    over your login, and guess your password";
/// Time for the terminal to show why the program ends.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Runs the client; the exit status: 0, 1 for a failure, 2 for wrong usage.
pub fn run(options: &Options) -> u8 {
    let interactive = !options.plain && terminal::is_terminal();
    let status = if interactive { run_screen(options) } else { run_plain(options) };
    status.unwrap_or_else(|error| {
        let _ = match error {
            StartError::Usage(_) => writeln!(io::stderr(), "client: {error}"),
            _ if interactive => {
                print_last(&format!("{error}\n"));
                Ok(())
            }
            _ => writeln!(io::stdout(), "{}", charset::printed(&format!("! {error}")))
                .or_else(|_| writeln!(io::stderr(), "client: {error}")),
        };
        if matches!(error, StartError::Usage(_)) { 2 } else { 1 }
    })
}

/// A file in the folder `mailbox`: backup programs that know this convention leave the folder out.
const CACHE_TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n\
    # Do not back up this folder: a copy of an erased mailbox key could still open the messages that waited for it.\n";

/// Makes the folders, and closes private files to other users; returns a sentence for each closed file.
fn prepare(options: &Options) -> Result<Vec<String>, StartError> {
    let folders = ["keys", "files", "files/received", "files/sent"];
    // Separately: these may be missing from a data folder that is ours, because they exist only with their option.
    let optional = [options.keep_history.then_some("history"), options.mail.then_some("mailbox")];
    let optional: Vec<_> = optional.into_iter().flatten().collect();
    for folders in [&folders[..], &optional] {
        disk::private_folders(&options.data_dir, folders).map_err(StartError::Disk)?;
    }
    if options.mail {
        // A failure is ignored: the file exists already, or backups contain the keys.
        let _ = disk::write_new(&options.data_dir.join("mailbox/CACHEDIR.TAG"), CACHE_TAG);
    }
    // The user's own folder may contain other files.
    let is_ours = |name: &str| ["known_", "ignored"].iter().any(|begin| name.starts_with(begin));
    let mut closed = disk::close_to_others(&options.data_dir, is_ours);
    for folder in ["keys", "history", "mailbox"] {
        closed.extend(disk::close_to_others(&options.data_dir.join(folder), |_| true));
    }
    Ok(closed)
}

/// Remembered and ignored users, and notices about their files.
type Memory = (TrustStore, Ignored, Vec<String>);

/// Reads the memory before the login: with a damaged file, the login would end an older session in vain.
fn read_memory(options: &Options) -> Result<Memory, StartError> {
    let (notices, folder, server) = (prepare(options)?, &options.data_dir, options.server());
    let trust = TrustStore::open(folder, &server).map_err(StartError::Disk)?;
    let ignored = Ignored::open(folder, &server).map_err(StartError::Disk)?;
    Ok((trust, ignored, notices))
}

/// The mailbox file of the account. A failure does not stop the login, but is reported in `notices`.
fn mailbox(options: &Options, credentials: &Credentials, notices: &mut Vec<String>) -> MailboxFile {
    let mut mailbox = MailboxFile::new(options, &credentials.name, &credentials.identity);
    if let Err(error) = mailbox.load(notices) {
        notices.push(format!("{error}; this client neither fetches mail nor makes a mailbox key"));
    }
    notices.extend(mailbox.notice().map(str::to_string));
    mailbox
}

fn begin(
    options: &Options,
    (trust, ignored, mut notices): Memory,
    connection: &Connection,
    login: LoggedIn,
) -> Result<(Session, Reconnector, String), StartError> {
    let mut history = History::new(options, &login.credentials.name, &login.credentials.identity);
    let earlier = history.load(&mut notices).map_err(|error| {
        // Otherwise other users see us online until the grace period ends.
        let _ = connection.say(&ClientMessage::Logout);
        StartError::Disk(error)
    })?;
    let mailbox = mailbox(options, &login.credentials, &mut notices);
    let tls = if options.tls { "" } else { " WITHOUT TLS" };
    let LoggedIn { credentials, key, token, notice } = login;
    notices.extend(notice);
    let (name, identity) = (credentials.name.clone(), credentials.identity.clone());
    let greeting = format!("logged in as {name} on {}{tls}", options.server());
    let NewKey { key, created, newest } = key;
    let session = Session::new(name, identity, key, (trust, ignored), Instant::now());
    let session = session.with_server_key(connection.server).certified(created, newest);
    let mut session = session.with_mailbox(mailbox);
    session.keep(history, earlier, notices, clock::now_ms());
    Ok((session, Reconnector::new(&options.pinned(connection.server), credentials, token), greeting))
}

fn run_plain(options: &Options) -> Result<u8, StartError> {
    let (Some(name), Some(path)) = (&options.user, &options.password_file) else {
        let text = "without a terminal, or with --plain, give --user and --password-file (--help explains)";
        return Err(StartError::Usage(text.into()));
    };
    let password = password_file::read(path)?;
    let memory = read_memory(options)?;
    let connect = || connect::connect(options, |_| false);
    let (connection, login) = match options.register {
        true => login::register(options, name, &password, connect)?,
        false => login::log_in(options, name, &password, connect)?,
    };
    drop(password);
    let (session, reconnector, greeting) = begin(options, memory, &connection, login)?;
    let exit =
        plain::run((connection, reconnector), session, options, &greeting).map_err(StartError::Disk)?;
    Ok(exit.status)
}

fn run_screen(options: &Options) -> Result<u8, StartError> {
    let memory = read_memory(options)?;
    terminal::install_panic_hook();
    let mut inputs = Inputs::open().map_err(StartError::Disk)?;
    let mut prompter = Prompter::open(&mut inputs).map_err(StartError::Disk)?;
    let warning = if options.tls { String::new() } else { format!("\n{NO_TLS}") };
    let hello =
        format!("secure messenger {}, server {}{warning}", env!("CARGO_PKG_VERSION"), options.server());
    let asked = prompter.println(&hello).and_then(|()| start::ask(options, &mut prompter));
    drop(prompter);
    let (connection, login) = match asked {
        Ok(Some(login)) => login,
        Ok(None) => return Ok(0),
        // The terminal was closed: there is nobody to report this to.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
        Err(error) => return Err(StartError::Disk(error)),
    };
    let (session, reconnector, greeting) = begin(options, memory, &connection, login)?;
    let exit = screen::run((connection, reconnector), session, &mut inputs, options, greeting);
    let exit = exit.map_err(StartError::Disk)?;
    if exit.status != 0 && !exit.warnings.is_empty() {
        let columns = usize::from(terminal::size().columns);
        let rows = exit.warnings.iter().flat_map(|text| text::wrap(text, columns));
        print_last(&rows.map(|row| row + "\n").collect::<String>());
    }
    Ok(exit.status)
}

/// Prints why the program ends. A terminal that accepts no output does not delay the end.
fn print_last(text: &str) {
    let (done, printed) = sync_channel(1);
    let text = charset::shown(text).into_owned();
    let print = move || {
        let _ = io::stderr().write_all(text.as_bytes());
        let _ = done.send(());
    };
    if spawn("print", print).is_ok() {
        let _ = printed.recv_timeout(LAST_WAIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::random;
    use crate::encoding::hex;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn mailbox_folder_is_private_and_left_out_of_backups() {
        let root = std::env::temp_dir().join(format!("client-{}", hex(&random::<8>())));
        let prepared = |words: &[&str]| {
            let words = [&["--data-dir", root.to_str().expect("UTF-8")], words].concat();
            prepare(&Options::of(&words)).expect("prepared")
        };
        let (folder, tag) = (root.join("mailbox"), root.join("mailbox/CACHEDIR.TAG"));
        let mode = |path: &std::path::Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        prepared(&["--no-mail"]);
        assert!(!folder.exists());
        // A data folder of an earlier version may be open to others.
        fs::write(root.join("known_users"), "").expect("written");
        fs::set_permissions(&root, Permissions::from_mode(0o755)).expect("opened");
        prepared(&[]);
        assert_eq!((mode(&root), mode(&folder), mode(&tag)), (0o700, 0o700, 0o600));
        let text = fs::read_to_string(&tag).expect("there");
        assert!(text.starts_with("Signature: 8a477f597d28d172789f06886806bc55\n# "), "{text}");
        fs::write(&tag, "changed").expect("written");
        fs::write(folder.join("alice_0"), "").expect("written");
        fs::set_permissions(folder.join("alice_0"), Permissions::from_mode(0o644)).expect("opened");
        assert!(prepared(&[]).concat().contains("alice_0: other users had access"));
        assert_eq!(
            (mode(&folder.join("alice_0")), fs::read(&tag).expect("there")),
            (0o600, b"changed".into())
        );
        fs::remove_file(&tag).and_then(|()| symlink(root.join("treasure"), &tag)).expect("a link");
        prepared(&[]);
        assert!(!root.join("treasure").exists());
        fs::remove_dir_all(&root).expect("clean up");
    }
}
