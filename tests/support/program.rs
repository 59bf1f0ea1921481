//! Programs that run to their end: this project's own and those of others, which may be missing.

use super::{Folder, Output};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs a program to its end: exit status, output, errors. It must go on printing until it ends.
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
    // The words of `user` come before all options.
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

/// Runs a start that must be refused: the one line that says why.
pub fn refused_start(home: &Folder, arguments: &[&str]) -> String {
    let (status, output, errors) =
        run_server(home, &[&["--host", "127.0.0.1", "--port", "0"], arguments].concat());
    assert_eq!(status, 1, "{output}{errors}");
    let reason = errors.strip_prefix("server: ").and_then(|reason| reason.strip_suffix('\n'));
    let reason = reason.unwrap_or_else(|| panic!("no reason: {errors}"));
    assert!(!reason.contains('\n'), "{errors}");
    reason.to_string()
}

/// Runs `server --check`: its status and all that it says.
pub fn check(home: &Folder) -> (i32, String) {
    let (status, output, errors) = run_server(home, &["--check"]);
    assert_eq!(errors, "", "{output}");
    (status, output)
}

/// Runs `server user`: its status and all that it says.
pub fn user(home: &Folder, arguments: &[&str]) -> (i32, String) {
    let (status, output, errors) = run_server(home, &[&["user"], arguments].concat());
    (status, output + &errors)
}

/// Runs a client that has nothing to say to its end: its status and its lines.
pub fn run_client(home: &Folder, port: u16, password: &str, arguments: &[&str]) -> (i32, Vec<String>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_client"));
    command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--password-file"]);
    command.arg(home.password_file(password)).args(arguments).env("HOME", &home.0);
    let (status, output, errors) = run(&mut command);
    (status, (output + &errors).lines().map(String::from).collect())
}

/// Whether a program of others is installed. Where it is not, the test is left out and says so, or fails if
/// `TESTS_SKIP_NOTHING` is set.
pub fn has(program: &str) -> bool {
    find(program).is_some() || skip(&format!("{program} is not installed"))
}

/// A program of others.
pub fn other(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| program.into()))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Some are in folders that only root's PATH has.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

pub fn make_fifo(path: &Path) {
    assert_eq!(run(Command::new("mkfifo").arg(path)).0, 0);
}

/// Says why a test is left out; always false.
pub fn skip(reason: &str) -> bool {
    assert!(std::env::var_os("TESTS_SKIP_NOTHING").is_none(), "{reason}");
    let test = std::thread::current().name().unwrap_or_default().to_string();
    // Not by `println`, whose output a test that succeeds does not show.
    let _ = writeln!(std::io::stderr(), "{test} is skipped: {reason}");
    false
}

/// What OpenSSL prints, for arguments that are separated by spaces.
pub fn openssl(arguments: &str) -> (bool, String) {
    let (status, output, errors) = run(Command::new("openssl").args(arguments.split(' ')));
    (status == 0, output + &errors)
}

/// Sets the limit of a process's largest file, in bytes or `unlimited`. False where that is not possible.
pub fn limit_files(pid: u32, limit: &str) -> bool {
    let mut command = Command::new("prlimit");
    command.args(["--pid", &pid.to_string(), &format!("--fsize={limit}")]);
    has("prlimit") && run(&mut command).0 == 0
}

/// A file of the repository.
pub fn repository(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// The block of README's that begins with `head`.
pub fn block(head: &str) -> String {
    let readme = repository("README.md");
    let begins = |block: &&str| block.starts_with(head);
    let block = readme.split("\n```\n").chain(readme.split("\n```ini\n")).find(begins);
    let block = block.unwrap_or_else(|| panic!("no block {head}"));
    block.split("\n```").next().unwrap_or_default().to_string() + "\n"
}
