//! The client's command line program.

use secure_messenger::client::options::{self, Request};
use secure_messenger::disk::reason;
use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut out = io::stdout();
    match options::parse(std::env::args_os().skip(1)) {
        Ok(Request::Help) => exit_code(out.write_all(options::HELP.as_bytes())),
        Ok(Request::Version) => exit_code(writeln!(out, "client {}", env!("CARGO_PKG_VERSION"))),
        Ok(Request::Run(options)) => ExitCode::from(secure_messenger::client::run(&options)),
        Err(error) => {
            let _ = writeln!(io::stderr(), "client: {error}");
            ExitCode::from(2)
        }
    }
}

fn exit_code(done: io::Result<()>) -> ExitCode {
    let Err(error) = done else { return ExitCode::SUCCESS };
    let _ = writeln!(io::stderr(), "client: {}", reason(&error));
    ExitCode::FAILURE
}
