//! The client's command line.

use super::text::is_blank;
use crate::cli::Arguments;
use crate::crypto::public::Fingerprint;
use crate::disk;
use crate::name::Username;
use std::ffi::OsString;
use std::net::Ipv6Addr;
use std::path::PathBuf;

/// The text of `--help`.
pub const HELP: &str = "\
A messenger for the terminal, end-to-end encrypted.

usage: client [OPTION...]

  --host NAME           the server (default localhost)
  --port PORT           its port (default 1315)
  --data-dir FOLDER     keys, files, known users (default ~/.secure_messenger_client)
  --fingerprint SHA256:...
                        fingerprint of the server's key; the server prints it when it starts
  --accept-new          accept the key of a new server without asking
  --no-tls              no transport encryption; the server needs --no-tls too
  --user NAME           log in as NAME
  --register            create the account first, if it does not exist
  --password-file PATH  read the password from the first line of this file, which
                        other users must not be able to read
  --keep-history        keep messages on this disk, encrypted; weakens forward
                        secrecy: the disk and the password then reveal them
  --no-mail             make no mailbox key: messages do not wait for you while you are
                        away; what already waits is still delivered
  --no-mouse            leave the mouse to the terminal: the wheel does not scroll
  --plain               plain mode: lines in, lines out (the default without a terminal)
  --times               plain mode: each line begins with its time (RFC 3339, UTC)

  --help, --version

Options can also be listed in the file \"options\" of the data folder, one a line.
In the messenger, /help lists the commands.
";

/// The default data folder, below `$HOME`.
const FOLDER: &str = ".secure_messenger_client";

/// A parsed command line.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The name or address of the server; `localhost` unless given.
    pub host: String,
    /// The port; 1315 unless given.
    pub port: u16,
    /// The data folder (MANUAL#client-files); `~/.secure_messenger_client` unless given.
    pub data_dir: PathBuf,
    /// The only accepted key of the server; `None` for the remembered key or a question.
    pub fingerprint: Option<Fingerprint>,
    /// Accepts and remembers an unknown server without asking.
    pub accept_new: bool,
    /// False with `--no-tls`.
    pub tls: bool,
    /// The name to log in with; `None` asks.
    pub user: Option<Username>,
    /// Creates the account first.
    pub register: bool,
    /// The file whose first line is the password; `None` asks.
    pub password_file: Option<PathBuf>,
    /// Keeps messages on disk (MANUAL#keeping-messages).
    pub keep_history: bool,
    /// False with `--no-mail`: no mailbox key is made.
    pub mail: bool,
    /// False with `--no-mouse`: the terminal handles the wheel.
    pub mouse: bool,
    /// Plain mode (MANUAL#plain-mode).
    pub plain: bool,
    /// Lines in plain mode begin with their times.
    pub times: bool,
}

impl Options {
    /// `host:port`, with the host as typed but in lower case: the name under which the server and its users are
    /// remembered.
    pub fn server(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The same options with only one accepted server key: that of a connection, if it has one.
    pub fn pinned(&self, server: Option<Fingerprint>) -> Options {
        Options { fingerprint: server.or(self.fingerprint), ..self.clone() }
    }

    /// The key file of `name`.
    pub fn key_path(&self, name: &Username) -> PathBuf {
        self.data_dir.join("keys").join(format!("{}_private.key", name.as_str()))
    }
}

/// What the command line requests.
pub enum Request {
    /// Connect to the server.
    Run(Box<Options>),
    /// Print [`HELP`].
    Help,
    /// Print the program's version.
    Version,
}

/// Parses the options file of the data folder and the arguments of the command line, which take precedence.
///
/// # Errors
/// One line that names the option and its line in the file.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Request, String> {
    let mut arguments = Arguments::with_file(words, FOLDER)?;
    parse_all(&mut arguments).map_err(|error| arguments.at(&error))
}

fn parse_all(arguments: &mut Arguments) -> Result<Request, String> {
    let mut options = Options {
        host: "localhost".into(),
        port: 1315,
        tls: true,
        mail: true,
        mouse: true,
        ..Options::default()
    };
    while let Some(flag) = arguments.flag()? {
        match flag.as_str() {
            "--host" => options.host = host(&arguments.value::<String>(&flag)?)?,
            "--port" => options.port = arguments.port(&flag)?,
            "--data-dir" => options.data_dir = arguments.value(&flag)?,
            "--fingerprint" => {
                let typed: String = arguments.value(&flag)?;
                let wrong = |_| {
                    format!(
                        "--fingerprint takes the fingerprint that the server prints when it starts, not {typed:?}"
                    )
                };
                options.fingerprint = Some(typed.parse().map_err(wrong)?);
            }
            "--accept-new" => options.accept_new = true,
            "--no-tls" => options.tls = false,
            "--user" => options.user = Some(arguments.value(&flag)?),
            "--register" => options.register = true,
            "--password-file" => options.password_file = Some(arguments.value(&flag)?),
            "--keep-history" => options.keep_history = true,
            "--no-mail" => options.mail = false,
            "--no-mouse" => options.mouse = false,
            "--plain" => options.plain = true,
            "--times" => options.times = true,
            "--help" | "-h" => return Ok(Request::Help),
            "--version" | "-V" => return Ok(Request::Version),
            _ => return Err(format!("unknown option: {flag} (--help lists them)")),
        }
    }
    if options.data_dir.as_os_str().is_empty() {
        options.data_dir = disk::under_home(FOLDER).map_err(|error| error.to_string())?;
    }
    Ok(Request::Run(Box::new(options)))
}

/// The host as it is remembered: in lower case, an IPv6 address without brackets.
fn host(typed: &str) -> Result<String, String> {
    let host = typed.to_ascii_lowercase();
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
    // `%` precedes the interface of a link-local address.
    if bare.split('%').next().is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()) {
        return Ok(bare.into());
    }
    match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() && (!name.contains(':') || name.ends_with(']')) => {
            Err(format!("--host takes no port: use --host {name} --port {port}"))
        }
        None if !host.is_empty() && !host.contains(|c: char| is_blank(c) || "/@[]".contains(c)) => Ok(host),
        _ => Err(format!("--host takes a name or an address (example.org, 192.0.2.1, ::1), not {typed:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Options {
        /// The options of this command line, for tests of all rooms.
        pub fn of(words: &[&str]) -> Options {
            parsed(words).expect("good options")
        }
    }

    fn parsed(words: &[&str]) -> Result<Options, String> {
        match parse(words.iter().map(OsString::from))? {
            Request::Run(options) => Ok(*options),
            _ => Err("no options".into()),
        }
    }

    #[test]
    fn host_is_a_name_or_an_address_and_never_a_port() {
        let host = |value| parsed(&["--data-dir", "x", "--host", value]).map(|options| options.host);
        for (value, expected) in [
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("FE80::1%eth0", "fe80::1%eth0"),
            ("Example.ORG", "example.org"),
        ] {
            assert_eq!(host(value).as_deref(), Ok(expected));
        }
        for (value, remedy) in [
            ("127.0.0.1:1315", "--host 127.0.0.1 --port 1315"),
            ("[::1]:1315", "--host [::1] --port 1315"),
            ("example.org:7", "--host example.org --port 7"),
            ("https://example.org", "a name or an address"),
            ("[::1", "a name or an address"),
            ("a b", "a name or an address"),
            ("local\u{200b}host", "a name or an address"),
            ("", "a name or an address"),
        ] {
            let error = host(value).expect_err(value);
            assert!(error.contains(remedy), "{value}: {error}");
        }
    }

    #[test]
    fn invalid_value_is_refused_with_a_remedy() {
        for (flag, value, remedy) in [
            ("--user", "Zo\u{eb}", "letters (a-z, A-Z), digits, _ or -"),
            ("--user", "a b", "letters (a-z, A-Z)"),
            ("--port", "70000", "from 0 to 65535, not 70000"),
            ("--fingerprint", "x", "the fingerprint that the server prints"),
        ] {
            let error = parsed(&[flag, value]).expect_err(value);
            assert!(error.contains(flag) && error.contains(value) && error.contains(remedy), "{error}");
        }
    }
}
