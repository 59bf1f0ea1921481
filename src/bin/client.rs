//! The client's command: arguments, then run.

use secure_messenger::client::options::{self, Request};
use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut out = io::stdout();
    match options::parse(std::env::args_os().skip(1)) {
        Ok(Request::Help) => {
            let _ = out.write_all(options::HELP.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Request::Version) => {
            let _ = writeln!(out, "client {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Ok(Request::Run(options)) => ExitCode::from(secure_messenger::client::run(&options)),
        Err(error) => {
            let _ = writeln!(io::stderr(), "client: {error}");
            ExitCode::from(2)
        }
    }
}
