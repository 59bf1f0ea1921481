//! The server's command: arguments, then run.

use secure_messenger::server::limits::Limits;
use secure_messenger::server::options::{self, Request};
use secure_messenger::server::{admin, check};
use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Every client is a descriptor: take as many as the system gives.
    let descriptors = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
    let maps = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    let maps = maps.and_then(|text| text.trim().parse().ok()).unwrap_or(65_530);
    let defaults = Limits::for_machine(usize::try_from(descriptors).unwrap_or(usize::MAX), maps);
    let mut out = io::stdout();
    match options::parse(std::env::args_os().skip(1), defaults) {
        Ok(Request::Help) => {
            let _ = out.write_all(options::HELP.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Request::Version) => {
            let _ = writeln!(out, "server {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Ok(Request::Check(options)) => match check::check(&options, &mut out) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => fail(error),
        },
        Ok(Request::User(folder, action)) => match admin::command(&folder, &action, &mut out) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(error),
        },
        Ok(Request::Run(options)) => {
            let Err(error) = secure_messenger::server::run(&options, &mut out);
            fail(error)
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "server: {error}");
            ExitCode::from(2)
        }
    }
}

fn fail(error: io::Error) -> ExitCode {
    let _ = writeln!(io::stderr(), "server: {error}");
    ExitCode::FAILURE
}
