//! Runs programs to their end: this project's own, and foreign ones that may be missing.

use super::{Folder, Output};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs a program to its end, and returns its exit status, output and errors. Panics if it is silent for too long.
pub fn run(command: &mut Command) -> (i32, String, String) {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut errors = Output::of(child.stderr.take().expect("piped"));
    let mut output = Output::of(child.stdout.take().expect("piped"));
    let text = |output: &mut Output| output.all().into_iter().map(|line| line + "\n").collect();
    let (output, errors) = (text(&mut output), text(&mut errors));
    (child.wait().expect("it ends").code().unwrap_or(-1), output, errors)
}

/// The server on `home/data`.
pub fn server_command(home: &Folder, arguments: &[&str]) -> Command {
    let data = home.path("data");
    let data = ["--data-dir", data.to_str().expect("UTF-8")];
    // The subcommand `user` and its arguments come before all options.
    let is_user = arguments.first() == Some(&"user");
    let arguments = if is_user { [arguments, &data].concat() } else { [&data, arguments].concat() };
    let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
    command.args(arguments).env("HOME", &home.0).stdin(Stdio::null());
    command
}

/// Runs the server on `home/data` to its end.
pub fn run_server(home: &Folder, arguments: &[&str]) -> (i32, String, String) {
    run(&mut server_command(home, arguments))
}

/// Runs a start that the server must refuse, and returns the one line with the reason.
pub fn refused_start(home: &Folder, arguments: &[&str]) -> String {
    let (status, output, errors) =
        run_server(home, &[&["--host", "127.0.0.1", "--port", "0"], arguments].concat());
    assert_eq!(status, 1, "{output}{errors}");
    let reason = errors.strip_prefix("server: ").and_then(|reason| reason.strip_suffix('\n'));
    let reason = reason.unwrap_or_else(|| panic!("no reason: {errors}"));
    assert!(!reason.contains('\n'), "{errors}");
    reason.to_string()
}

/// Runs `server --check`, and returns its status and output.
pub fn check(home: &Folder) -> (i32, String) {
    let (status, output, errors) = run_server(home, &["--check"]);
    assert_eq!(errors, "", "{output}");
    (status, output)
}

/// Runs `server user`, and returns its status, output and errors.
pub fn user(home: &Folder, arguments: &[&str]) -> (i32, String) {
    let (status, output, errors) = run_server(home, &[&["user"], arguments].concat());
    (status, output + &errors)
}

/// Runs a client without input to its end, and returns its status and lines.
pub fn run_client(home: &Folder, port: u16, password: &str, arguments: &[&str]) -> (i32, Vec<String>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_client"));
    command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--password-file"]);
    command.arg(home.password_file(password)).args(arguments).env("HOME", &home.0);
    let (status, output, errors) = run(&mut command);
    (status, (output + &errors).lines().map(String::from).collect())
}

/// Whether a foreign program is installed. If not, prints that the test is skipped, or panics if `TESTS_SKIP_NOTHING`
/// is set.
pub fn has(program: &str) -> bool {
    find(program).is_some() || skip(&format!("{program} is not installed"))
}

/// The command of a foreign program.
pub fn other(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| program.into()))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).or(home).unwrap_or_default();
    // Some programs are in folders that only root has in PATH.
    let others = ["/usr/sbin".into(), "/sbin".into(), cargo.join("bin")];
    let folders = std::env::split_paths(&path).chain(others);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

pub fn make_fifo(path: &Path) {
    assert_eq!(run(Command::new("mkfifo").arg(path)).0, 0);
}

/// Prints why a test is skipped. Always false.
pub fn skip(reason: &str) -> bool {
    assert!(std::env::var_os("TESTS_SKIP_NOTHING").is_none(), "{reason}");
    let test = std::thread::current().name().unwrap_or_default().to_string();
    // Not `println`: the test runner hides the output of successful tests.
    let _ = writeln!(std::io::stderr(), "{test} is skipped: {reason}");
    false
}

/// Runs OpenSSL with arguments separated by spaces; whether it succeeded, and everything it printed.
pub fn openssl(arguments: &str) -> (bool, String) {
    let (status, output, errors) = run(Command::new("openssl").args(arguments.split(' ')));
    (status == 0, output + &errors)
}

/// Limits the size of the files that a process writes, in bytes or `unlimited`. False without `prlimit`.
pub fn limit_files(pid: u32, limit: &str) -> bool {
    let mut command = Command::new("prlimit");
    command.args(["--pid", &pid.to_string(), &format!("--fsize={limit}")]);
    has("prlimit") && run(&mut command).0 == 0
}

/// A file of the repository.
pub fn repository(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// The code block of the operator's manual that begins with `head`.
pub fn block(head: &str) -> String {
    let manual = repository("src/server/OPERATING.md");
    let begins = |block: &&str| block.starts_with(head);
    let block = manual.split("\n```text\n").chain(manual.split("\n```ini\n")).find(begins);
    let block = block.unwrap_or_else(|| panic!("no block {head}"));
    block.split("\n```").next().unwrap_or_default().to_string() + "\n"
}
