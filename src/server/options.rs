//! The server's command line.

use super::admin::Action;
use super::limits::{Limits, MIN_OUTBOX};
use crate::arguments::Arguments;
use crate::disk;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// What `--help` prints.
pub const HELP: &str = "\
The server of a self-hosted, end-to-end encrypted messenger.

usage: server [OPTION...]
       server user list|remove NAME|unlock NAME [--data-dir FOLDER]

  --host ADDRESS        address to listen on (default 0.0.0.0)
  --port PORT           port to listen on; 0 takes a free one (default 1315)
  --data-dir FOLDER     accounts, certificate, log (default ~/.secure_messenger)
  --no-tls              no transport encryption: for tests and tunnels only
  --closed              make no new accounts

Limits (the defaults of the first two follow from the machine's):
  --clients N           clients logged in at once
  --per-address N       connections from one address (default: half of --clients)
  --waiting N           connections that have not logged in yet; the oldest goes
  --outbox KIB          what may wait for one slow client (default 384)
  --rate N              requests a second of one client; faster ones wait (default 100)
  --grace SECONDS       how long a session outlives its connection (default 60)
  --registrations N     new accounts and passwords a minute from one address (default 120)

  --check               say what the data folder holds and whether a server could start with it
  --help, --version

  user list             all accounts, their identity keys' fingerprints, and who is locked
  user remove NAME      ends the account and its session; the name can then be registered again
  user unlock NAME      lets NAME, locked after failed logins, try again at once
";

/// A parsed command line.
#[derive(Debug, Clone)]
pub struct Options {
    /// The address to listen on, or a name for it; default 0.0.0.0.
    pub host: String,
    /// Default 1315; 0 takes a free one.
    pub port: u16,
    /// README#server-files; default `~/.secure_messenger`.
    pub data_dir: PathBuf,
    /// False with `--no-tls`.
    pub tls: bool,
    /// With `--closed`: no new accounts.
    pub closed: bool,
    /// The machine's, except where given.
    pub limits: Limits,
}

/// The command that was given.
pub enum Request {
    /// Serve.
    Run(Box<Options>),
    /// `--check`: report what a start would find, and change nothing.
    Check(Box<Options>),
    /// `user …`: an action on the accounts of this data folder.
    User(PathBuf, Action),
    /// Print [`HELP`].
    Help,
    /// Print the program's version.
    Version,
}

/// Parses the words after the program's name. `defaults` are the machine's.
///
/// # Errors
/// One line that names the option, or asks for a data folder because `HOME` is not set.
pub fn parse(words: impl IntoIterator<Item = OsString>, defaults: Limits) -> Result<Request, String> {
    let (mut host, mut port, mut data_dir) = ("0.0.0.0".to_string(), 1315, None);
    let (mut tls, mut closed, mut check) = (true, false, false);
    let (mut limits, mut per_address) = (defaults, None);
    let mut words = words.into_iter().peekable();
    if words.next_if(|word| word == "user").is_some() {
        return parse_user(words);
    }
    let mut arguments = Arguments::new(words);
    while let Some(flag) = arguments.flag()? {
        match flag.as_str() {
            "--host" => host = arguments.value(&flag)?,
            "--port" => port = arguments.value(&flag)?,
            "--data-dir" => data_dir = Some(arguments.value::<PathBuf>(&flag)?),
            "--no-tls" => tls = false,
            "--closed" => closed = true,
            "--check" => check = true,
            "--clients" => limits.clients = positive(&mut arguments, &flag)?,
            "--per-address" => per_address = Some(positive(&mut arguments, &flag)?),
            "--waiting" => limits.waiting = positive(&mut arguments, &flag)?,
            "--outbox" => limits.outbox = outbox(&mut arguments, &flag)?,
            "--grace" => {
                limits.grace = Duration::from_secs(positive(&mut arguments, &flag)?.min(3600) as u64)
            }
            "--rate" => limits.rate = positive(&mut arguments, &flag)?.min(u32::MAX as usize) as u32,
            "--registrations" => {
                limits.registrations = positive(&mut arguments, &flag)?.min(u32::MAX as usize) as u32
            }
            "--help" | "-h" => return Ok(Request::Help),
            "--version" | "-V" => return Ok(Request::Version),
            _ => return Err(format!("unknown option: {flag} (--help lists them)")),
        }
    }
    if limits.clients.saturating_add(limits.waiting) > limits.room {
        let (clients, waiting, room) = (limits.clients, limits.waiting, limits.room);
        return Err(format!(
            "--clients {clients} and --waiting {waiting} are more than the {room} connections that this machine \
             allows (ulimit -n, vm.max_map_count)"
        ));
    }
    limits.per_address = per_address.unwrap_or(Limits::share(limits.clients));
    let options = Box::new(Options { host, port, data_dir: or_default(data_dir)?, tls, closed, limits });
    Ok(if check { Request::Check(options) } else { Request::Run(options) })
}

fn or_default(data_dir: Option<PathBuf>) -> Result<PathBuf, String> {
    match data_dir {
        Some(folder) => Ok(folder),
        None => disk::under_home(".secure_messenger").map_err(|error| error.to_string()),
    }
}

/// Parses the words after `user`: action, name, data folder.
fn parse_user(words: impl Iterator<Item = OsString>) -> Result<Request, String> {
    let mut words = words.peekable();
    let mut plain =
        || words.next_if(|word| !word.as_encoded_bytes().starts_with(b"-")).map(OsString::into_string);
    let not_utf8 = |_| "an argument that is not UTF-8".to_string();
    let verb = plain().transpose().map_err(not_utf8)?.unwrap_or_default();
    let name = plain().transpose().map_err(not_utf8)?;
    let action = Action::parse(&verb, name.as_deref())?;
    let (mut data_dir, mut arguments) = (None, Arguments::new(words));
    while let Some(flag) = arguments.flag()? {
        match flag.as_str() {
            "--data-dir" => data_dir = Some(arguments.value::<PathBuf>(&flag)?),
            _ => return Err(format!("unknown option: {flag} (user takes --data-dir alone)")),
        }
    }
    Ok(Request::User(or_default(data_dir)?, action))
}

/// In bytes. A smaller outbox would be full before its client has to acknowledge.
fn outbox(arguments: &mut Arguments, flag: &str) -> Result<usize, String> {
    let bytes = arguments.value::<usize>(flag)?.saturating_mul(1024);
    if bytes < MIN_OUTBOX {
        Err(format!("{flag} takes a number from {}", MIN_OUTBOX / 1024))
    } else {
        Ok(bytes)
    }
}

fn positive(arguments: &mut Arguments, flag: &str) -> Result<usize, String> {
    match arguments.value::<usize>(flag)? {
        0 => Err(format!("{flag} takes a number from 1")),
        number => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With room for 1000 connections.
    fn request(line: &str) -> Result<Request, String> {
        let defaults = Limits::for_machine(1064, 65_530);
        parse(line.split_whitespace().map(OsString::from), defaults)
    }

    fn limits(line: &str) -> Limits {
        match request(&format!("--data-dir here {line}")) {
            Ok(Request::Run(options)) => options.limits,
            Ok(_) => panic!("{line}: something else"),
            Err(error) => panic!("{line}: {error}"),
        }
    }

    #[test]
    fn every_limit_is_taken_from_its_option() {
        let asked = limits(
            "--clients 90 --per-address 7 --waiting 8 --outbox 400 --rate 9 --registrations 10 --grace 11",
        );
        let Limits { room, clients, per_address, waiting, outbox, rate, registrations, grace } = asked;
        assert_eq!((room, clients, per_address, waiting), (1000, 90, 7, 8));
        assert_eq!((outbox, rate, registrations, grace.as_secs()), (400 * 1024, 9, 10, 11));
        // Half of the clients given, not of those possible.
        assert_eq!((limits("").per_address, limits("--clients 90").per_address), (375, 45));
    }

    #[test]
    fn limit_is_neither_zero_nor_more_than_the_machine_allows() {
        assert_eq!(limits("--outbox 384").outbox, MIN_OUTBOX);
        assert_eq!(limits("--clients 750 --waiting 250").clients, 750);
        assert_eq!(limits("--grace 4000").grace.as_secs(), 3600, "an hour at most");
        let huge = u64::from(u32::MAX) + 1;
        assert_eq!(limits(&format!("--rate {huge} --registrations {huge}")).rate, u32::MAX);
        assert_eq!(limits(&format!("--registrations {huge}")).registrations, u32::MAX);
        for (line, part) in [
            ("--outbox 383", "from 384"),
            ("--clients 751 --waiting 250", "751"),
            ("--clients 750 --waiting 251", "251"),
            ("--clients 0", "from 1"),
            ("--per-address 0", "from 1"),
            ("--waiting 0", "from 1"),
            ("--rate 0", "from 1"),
            ("--registrations 0", "from 1"),
            ("--grace 0", "from 1"),
        ] {
            let error = request(&format!("--data-dir here {line}")).err().expect(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn options_choose_between_serving_and_other_commands() {
        let run = |line: &str| match request(&format!("--data-dir here {line}")) {
            Ok(Request::Run(options)) => (options.tls, options.closed, options.host.clone(), options.port),
            _ => panic!("{line}: something else"),
        };
        assert_eq!(run(""), (true, false, "0.0.0.0".into(), 1315));
        assert_eq!(run("--no-tls --host 127.0.0.1"), (false, false, "127.0.0.1".into(), 1315));
        assert_eq!(run("--closed --port 0"), (true, true, "0.0.0.0".into(), 0));
        assert!(matches!(request("--check --data-dir here"), Ok(Request::Check(_))));
        for line in ["--help", "-h", "--no-tls --help"] {
            assert!(matches!(request(line), Ok(Request::Help)), "{line}");
        }
        for line in ["--version", "-V"] {
            assert!(matches!(request(line), Ok(Request::Version)), "{line}");
        }
        let folder = |line: &str| match request(line) {
            Ok(Request::User(folder, _)) => folder,
            _ => panic!("{line}: something else"),
        };
        assert_eq!(folder("user list --data-dir here"), PathBuf::from("here"));
        assert_eq!(folder("user unlock alice --data-dir=there"), PathBuf::from("there"));
        for line in ["user list --port 1", "user", "user list --data-dir", "run user list"] {
            assert!(request(line).is_err(), "{line}");
        }
    }
}
