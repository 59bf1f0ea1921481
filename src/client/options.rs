//! The client's command line.

use crate::arguments::Arguments;
use crate::crypto::public::Fingerprint;
use crate::disk;
use crate::name::Username;
use std::ffi::OsString;
use std::path::PathBuf;

/// What `--help` prints.
pub const HELP: &str = "\
A messenger for the terminal, end-to-end encrypted.

usage: client [OPTION...]

  --host NAME           the server (default localhost)
  --port PORT           its port (default 1315)
  --data-dir FOLDER     keys, files, known people (default ~/.secure_messenger_client)
  --fingerprint SHA256:...
                        the server's key, as the server prints it at its start
  --accept-new          remember a server seen for the first time without asking
  --no-tls              no transport encryption: the server must be started so, too
  --user NAME           log in as NAME
  --register            make the account first, if it is not there
  --password-file PATH  the password is the first line; nobody else may read the file
  --keep-history        keep messages on this disk, sealed; weakens forward
                        secrecy: who later has disk and password reads them
  --plain               no screen: lines in, lines out (also without a terminal)

  --help, --version

In the messenger, /help lists the commands.
";

/// A parsed command line.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server's name or address; `localhost` unless given.
    pub host: String,
    /// 1315 unless given.
    pub port: u16,
    /// README#client-files; `~/.secure_messenger_client` unless given.
    pub data_dir: PathBuf,
    /// The only key that the server may have; `None` for the one that is remembered, or asked about.
    pub fingerprint: Option<Fingerprint>,
    /// Remembers a server seen for the first time without asking.
    pub accept_new: bool,
    /// False with `--no-tls`.
    pub tls: bool,
    /// Who logs in; `None` asks.
    pub user: Option<Username>,
    /// Makes the account first.
    pub register: bool,
    /// Whose first line is the password, without its end; `None` asks.
    pub password_file: Option<PathBuf>,
    /// Keeps messages on disk (README#keeping-messages).
    pub keep_history: bool,
    /// The line filter (README#the-line-filter).
    pub plain: bool,
}

impl Options {
    /// `host:port`, the host as typed but in lower case, under which server and people are remembered.
    pub fn server(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The key file of `name`.
    pub fn key_path(&self, name: &Username) -> PathBuf {
        self.data_dir.join("keys").join(format!("{}_private.key", name.as_str()))
    }
}

/// What the command line asks for.
pub enum Request {
    /// Connect.
    Run(Box<Options>),
    /// Print [`HELP`].
    Help,
    /// Print the program's version.
    Version,
}

/// Parses the words behind the program's name.
///
/// # Errors
/// One line that names the option.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Request, String> {
    let mut options = Options {
        host: "localhost".into(),
        port: 1315,
        data_dir: PathBuf::new(),
        fingerprint: None,
        accept_new: false,
        tls: true,
        user: None,
        register: false,
        password_file: None,
        keep_history: false,
        plain: false,
    };
    let mut arguments = Arguments::new(words);
    while let Some(flag) = arguments.flag()? {
        match flag.as_str() {
            "--host" => options.host = arguments.value::<String>(&flag)?.to_ascii_lowercase(),
            "--port" => options.port = arguments.value(&flag)?,
            "--data-dir" => options.data_dir = arguments.value(&flag)?,
            "--fingerprint" => options.fingerprint = Some(arguments.value(&flag)?),
            "--accept-new" => options.accept_new = true,
            "--no-tls" => options.tls = false,
            "--user" => options.user = Some(arguments.value(&flag)?),
            "--register" => options.register = true,
            "--password-file" => options.password_file = Some(arguments.value(&flag)?),
            "--keep-history" => options.keep_history = true,
            "--plain" => options.plain = true,
            "--help" | "-h" => return Ok(Request::Help),
            "--version" | "-V" => return Ok(Request::Version),
            _ => return Err(format!("unknown option: {flag} (--help lists them)")),
        }
    }
    if options.host.is_empty() || options.host.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("--host needs a name or an address".into());
    }
    if options.data_dir.as_os_str().is_empty() {
        options.data_dir = disk::under_home(".secure_messenger_client").map_err(|error| error.to_string())?;
    }
    Ok(Request::Run(Box::new(options)))
}
