//! The server's command line.

use super::limits::{Limits, MIN_OUTBOX};
use crate::cli::Arguments;
use crate::disk;
use crate::name::Username;
use std::ffi::OsString;
use std::iter::Peekable;
use std::path::PathBuf;
use std::time::Duration;

/// The text of `--help`.
pub const HELP: &str = "\
The server of a self-hosted, end-to-end encrypted messenger.

usage: server [OPTION...]
       server user list|remove NAME|unlock NAME [--data-dir FOLDER]

  --host ADDRESS        address to listen on (default 0.0.0.0)
  --port PORT           port to listen on; 0 takes a free one (default 1315)
  --data-dir FOLDER     accounts, certificate, log (default ~/.secure_messenger)
  --no-tls              no transport encryption: for tests and tunnels only
  --closed              accept no new accounts

Limits (the defaults of the first three depend on the machine):
  --clients N           clients logged in at once
  --per-address N       connections from one address (default: half of --clients)
  --waiting N           connections not logged in yet; beyond it, the oldest is closed
  --outbox KIB          data that may wait for one slow client (default 384)
  --rate N              requests a second before a client is throttled (default 100)
  --grace SECONDS       how long a session outlives its connection (default 60)
  --registrations N     new accounts and passwords a minute from one address (default 120)

Messages for absent users, which wait on disk until they log in:
  --mail KIB            for one recipient, an eighth from one sender; 0: keep none (default 1024)
  --mail-sender KIB     from one sender to all recipients (default 4096)
  --mail-total MIB      for all recipients (default 1024)
  --mail-messages N     messages for one recipient (default 1000)
  --mail-days N         days that a message waits (default 30)

  --check               report what the data folder holds and whether a start would fail
  --help, --version

Options can also be listed in the file \"options\" of the data folder, one a line.

  user list             lists accounts, fingerprints of identity keys, and locked names
  user remove NAME      removes the account, ends its session, and frees the name
  user unlock NAME      unlocks NAME, which failed logins have locked
";

/// The data folder below `$HOME`.
const FOLDER: &str = ".secure_messenger";

/// The options of a start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The address to listen on, or a name for it; default 0.0.0.0.
    pub host: String,
    /// Default 1315; 0 takes a free one.
    pub port: u16,
    /// The data folder; default `~/.secure_messenger`. OPERATING#server-files.
    pub data_dir: PathBuf,
    /// False with `--no-tls`.
    pub tls: bool,
    /// With `--closed`: no new accounts.
    pub closed: bool,
    /// The limits: the machine's defaults, except where an option sets them.
    pub limits: Limits,
}

/// The command that was given.
pub enum Request {
    /// Serve.
    Run(Options),
    /// `--check`: report what a start would find, and change nothing.
    Check(Options),
    /// `user …`: an action on the accounts of this data folder.
    User(PathBuf, Action),
    /// Print [`HELP`].
    Help,
    /// Print the program's version.
    Version,
}

/// The commands of `user …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Prints all accounts; needs no server.
    List,
    /// Removes the account of this name, and ends its session.
    Remove(Username),
    /// Unlocks this name, which failed logins have locked.
    Unlock(Username),
}

impl Action {
    /// Parses the words of a command line or a request.
    ///
    /// # Errors
    /// One line: the usage, or what is wrong with the name.
    pub fn parse(verb: &str, name: Option<&str>) -> Result<Action, String> {
        let named = || {
            let name = name.ok_or_else(|| format!("user {verb} needs a name"))?;
            name.parse::<Username>().map_err(String::from)
        };
        match verb {
            "list" if name.is_none() => Ok(Action::List),
            "remove" => named().map(Action::Remove),
            "unlock" => named().map(Action::Unlock),
            _ => Err("usage: server user list, user remove NAME or user unlock NAME".into()),
        }
    }
}

/// Parses the options file of the data folder, and the words after the program's name, which win. `defaults` are the
/// machine's.
///
/// # Errors
/// One line that names the option, and its line in the file, or asks for a data folder because `HOME` is not set.
pub fn parse(words: impl IntoIterator<Item = OsString>, defaults: Limits) -> Result<Request, String> {
    let mut words = words.into_iter().peekable();
    let action = words.next_if(|word| word == "user").map(|_| action(&mut words)).transpose()?;
    let mut arguments =
        if action.is_some() { Arguments::new(words) } else { Arguments::with_file(words, FOLDER)? };
    parse_all(&mut arguments, action, defaults).map_err(|error| arguments.at(&error))
}

fn parse_all(arguments: &mut Arguments, action: Option<Action>, defaults: Limits) -> Result<Request, String> {
    let mut options = Options {
        host: "0.0.0.0".into(),
        port: 1315,
        data_dir: PathBuf::new(),
        tls: true,
        closed: false,
        limits: defaults,
    };
    let (mut data_dir, mut per_address, mut check) = (None, None, false);
    let limits = &mut options.limits;
    while let Some(flag) = arguments.flag()? {
        // A number above `most` counts as `most`.
        let mut number = |least: usize, most: usize| {
            let word: String = arguments.value(&flag)?;
            let number = word.parse().ok().filter(|number| *number >= least);
            number
                .map(|number: usize| number.min(most))
                .ok_or_else(|| format!("{flag} takes a number from {least}, not {word}"))
        };
        match flag.as_str() {
            "--data-dir" => data_dir = Some(arguments.value::<PathBuf>(&flag)?),
            _ if action.is_some() => {
                return Err(format!("unknown option: {flag} (user takes only --data-dir)"));
            }
            "--host" => options.host = arguments.value(&flag)?,
            "--port" => options.port = arguments.port(&flag)?,
            "--no-tls" => options.tls = false,
            "--closed" => options.closed = true,
            "--check" => check = true,
            "--clients" => limits.clients = number(1, usize::MAX)?,
            "--per-address" => per_address = Some(number(1, usize::MAX)?),
            "--waiting" => limits.waiting = number(1, usize::MAX)?,
            "--outbox" => limits.outbox = number(MIN_OUTBOX / 1024, usize::MAX / 1024)? * 1024,
            "--grace" => limits.grace = Duration::from_secs(number(1, 3600)? as u64),
            "--rate" => limits.rate = number(1, u32::MAX as usize)? as u32,
            "--mail" => limits.mail.bytes = number(0, usize::MAX / 1024)? as u64 * 1024,
            "--mail-sender" => limits.mail.sender = number(1, usize::MAX / 1024)? as u64 * 1024,
            "--mail-total" => limits.mail.total = number(1, usize::MAX >> 20)? as u64 * 1024 * 1024,
            "--mail-messages" => limits.mail.messages = number(1, usize::MAX)?,
            "--mail-days" => limits.mail.days = number(1, 365)? as u64,
            "--registrations" => limits.registrations = number(1, u32::MAX as usize)? as u32,
            "--help" | "-h" => return Ok(Request::Help),
            "--version" | "-V" => return Ok(Request::Version),
            _ => return Err(format!("unknown option: {flag} (--help lists them)")),
        }
    }
    let default = || disk::under_home(FOLDER).map_err(|error| error.to_string());
    options.data_dir = data_dir.map_or_else(default, Ok)?;
    if let Some(action) = action {
        return Ok(Request::User(options.data_dir, action));
    }
    let (clients, waiting, room) = (limits.clients, limits.waiting, limits.room);
    if clients.saturating_add(waiting) > room {
        return Err(format!(
            "--clients {clients} and --waiting {waiting} exceed the {room} connections that this machine allows \
             (ulimit -n, vm.max_map_count)"
        ));
    }
    limits.per_address = per_address.unwrap_or(Limits::share(clients));
    Ok(if check { Request::Check(options) } else { Request::Run(options) })
}

/// Parses the words after `user` up to the first option.
fn action(words: &mut Peekable<impl Iterator<Item = OsString>>) -> Result<Action, String> {
    let mut word = || {
        let word = words.next_if(|word| !word.as_encoded_bytes().starts_with(b"-"));
        word.map(OsString::into_string).transpose().map_err(|_| "an argument is not UTF-8".to_string())
    };
    let verb = word()?.unwrap_or_default();
    Action::parse(&verb, word()?.as_deref())
}

#[cfg(test)]
mod tests {
    use super::super::limits::MailLimits;
    use super::*;

    /// Parses for a machine with room for 1000 connections.
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
            "--clients 90 --per-address 7 --waiting 8 --outbox 400 --rate 9 --registrations 10 --grace 11 \
             --mail 500 --mail-sender 600 --mail-total 700 --mail-messages 12 --mail-days 13",
        );
        let Limits { room, clients, per_address, waiting, outbox, rate, registrations, grace, mail } = asked;
        let MailLimits { bytes, sender, total, messages, days } = mail;
        assert_eq!((room, clients, per_address, waiting), (1000, 90, 7, 8));
        assert_eq!((outbox, rate, registrations, grace.as_secs()), (400 * 1024, 9, 10, 11));
        assert_eq!((bytes, sender, total), (500 * 1024, 600 * 1024, 700 * 1024 * 1024));
        assert_eq!((messages, days), (12, 13));
        // Half of the given clients, not of the possible ones.
        assert_eq!((limits("").per_address, limits("--clients 90").per_address), (375, 45));
    }

    #[test]
    fn limit_is_neither_zero_nor_more_than_the_machine_allows() {
        assert_eq!(limits("--outbox 384").outbox, MIN_OUTBOX);
        assert_eq!(limits("--clients 750 --waiting 250").clients, 750);
        assert_eq!(limits("--grace 4000").grace.as_secs(), 3600, "an hour at most");
        assert_eq!(limits("--mail 0 --mail-days 9999").mail.bytes, 0);
        let huge = u64::from(u32::MAX) + 1;
        assert_eq!(limits(&format!("--rate {huge} --registrations {huge}")).rate, u32::MAX);
        assert_eq!(limits(&format!("--registrations {huge}")).registrations, u32::MAX);
        for (line, part) in [
            ("--outbox 383", "from 384"),
            ("--mail x", "a number from 0, not x"),
            ("--mail-sender 0", "from 1"),
            ("--mail-messages 0", "from 1"),
            ("--clients 751 --waiting 250", "751"),
            ("--clients 750 --waiting 251", "251"),
            ("--clients 0", "from 1"),
            ("--per-address 0", "from 1"),
            ("--waiting 0", "from 1"),
            ("--rate 0", "from 1"),
            ("--registrations 0", "from 1"),
            ("--grace 0", "from 1"),
            ("--rate x", "a number from 1, not x"),
            ("--port 65536", "from 0 to 65535"),
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
