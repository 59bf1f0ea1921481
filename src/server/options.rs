//! The server's command line.

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

  --host ADDRESS        address to listen on (default 0.0.0.0)
  --port PORT           port to listen on; 0 takes a free one (default 1315)
  --data-dir FOLDER     accounts, certificate, log (default ~/.secure_messenger)
  --no-tls              no transport encryption: for tests and tunnels only
  --closed              make no new accounts

Limits (the defaults of the first two follow from the machine's):
  --clients N           people logged in at once
  --per-address N       connections from one address (default: half of --clients)
  --waiting N           connections that have not logged in yet; the oldest goes
  --outbox KIB          what may wait for one slow client (default 384)
  --rate N              requests a second of one client; faster ones wait (default 100)
  --grace SECONDS       how long a session outlives its connection (default 60)
  --registrations N     new accounts and passwords a minute from one address (default 120)

  --help, --version
";

/// A parsed command line.
#[derive(Debug, Clone)]
pub struct Options {
    pub host: String,
    pub port: u16,
    pub data_dir: PathBuf,
    pub tls: bool,
    pub closed: bool,
    pub limits: Limits,
}

/// What the command line asks for.
pub enum Request {
    Run(Box<Options>),
    Help,
    Version,
}

/// Parses the words behind the program's name. `defaults` are the machine's.
///
/// # Errors
/// One line that names the option.
pub fn parse(words: impl IntoIterator<Item = OsString>, defaults: Limits) -> Result<Request, String> {
    let (mut host, mut port, mut data_dir) = ("0.0.0.0".to_string(), 1315, None);
    let (mut tls, mut closed, mut limits, mut per_address) = (true, false, defaults, None);
    let mut arguments = Arguments::new(words);
    while let Some(flag) = arguments.flag()? {
        match flag.as_str() {
            "--host" => host = arguments.value(&flag)?,
            "--port" => port = arguments.value(&flag)?,
            "--data-dir" => data_dir = Some(arguments.value::<PathBuf>(&flag)?),
            "--no-tls" => tls = false,
            "--closed" => closed = true,
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
    limits.per_address = per_address.unwrap_or(limits.clients.div_ceil(2).max(16));
    let data_dir = match data_dir {
        Some(folder) => folder,
        None => disk::under_home(".secure_messenger").map_err(|error| error.to_string())?,
    };
    Ok(Request::Run(Box::new(Options { host, port, data_dir, tls, closed, limits })))
}

/// Bytes. A smaller one would be full before its client has to acknowledge anything.
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
