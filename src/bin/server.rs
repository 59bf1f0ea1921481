//! The server's command line program.

use secure_messenger::disk::reason;
use secure_messenger::server::limits::Limits;
use secure_messenger::server::operator::{admin, check};
use secure_messenger::server::options::{self, Request};
use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Every client needs a descriptor: take as many as the system allows. Where a limit cannot be read, assume the
    // usual one of Linux.
    let descriptors = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
    let maps = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    let maps = maps.and_then(|text| text.trim().parse().ok()).unwrap_or(65_530);
    let defaults = Limits::for_machine(usize::try_from(descriptors).unwrap_or(usize::MAX), maps);
    let mut out = io::stdout();
    match options::parse(std::env::args_os().skip(1), defaults) {
        Ok(Request::Help) => exit_code(out.write_all(options::HELP.as_bytes())),
        Ok(Request::Version) => exit_code(writeln!(out, "server {}", env!("CARGO_PKG_VERSION"))),
        Ok(Request::Check(options)) => match check::check(&options, &mut out) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => exit_code(Err(error)),
        },
        Ok(Request::User(folder, action)) => exit_code(admin::command(&folder, &action, &mut out)),
        Ok(Request::Run(options)) => {
            let Err(error) = secure_messenger::server::run(&options, &mut out);
            exit_code(Err(error))
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "server: {error}");
            ExitCode::from(2)
        }
    }
}

fn exit_code(done: io::Result<()>) -> ExitCode {
    let Err(error) = done else { return ExitCode::SUCCESS };
    let _ = writeln!(io::stderr(), "server: {}", reason(&error));
    ExitCode::FAILURE
}
