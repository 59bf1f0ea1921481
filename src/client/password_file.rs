//! Reads a password from the first line of a file that other users must not be able to read.
//!
//! Invariant: every buffer with the password is wiped, and at most 1,025 bytes of a file are read.

use super::error::StartError;
use crate::crypto::secret::Password;
use crate::disk;
use crate::sync::spawn;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::Duration;
use zeroize::Zeroizing;

/// The longest password in a file, in bytes: limits what is read at a wrong path.
const MAX_PASSWORD: u64 = 1024;
/// A pipe may come from a password manager that asks its user first.
const PASSWORD_PATIENCE: Duration = Duration::from_secs(30);
const NAME_A_FILE: &str = "name a file whose first line is the password";

/// Reads the password: waits up to 30 s for a pipe.
///
/// # Errors
/// [`StartError::Usage`], which says what is wrong with the file.
pub fn read(path: &Path) -> Result<Password, StartError> {
    read_within(path, PASSWORD_PATIENCE)
}

fn read_within(path: &Path, patience: Duration) -> Result<Password, StartError> {
    // A thread, because opening a pipe blocks until a program writes to it.
    let (sender, read) = sync_channel(1);
    let file = path.to_path_buf();
    spawn("password file", move || _ = sender.send(first_line(&file))).map_err(StartError::Disk)?;
    let password = read.recv_timeout(patience).unwrap_or_else(|_| {
        let seconds = patience.as_secs();
        Err(format!("nothing came from it in {seconds} s: write the password into it, or {NAME_A_FILE}"))
    });
    password.map_err(|why| StartError::Usage(format!("{}: {why}", path.display())))
}

fn first_line(path: &Path) -> Result<Password, String> {
    let file = File::open(path).map_err(|error| disk::reason(&error))?;
    let facts = file.metadata().map_err(|error| disk::reason(&error))?;
    if facts.is_dir() {
        return Err(format!("this is a folder: {NAME_A_FILE}"));
    }
    if !facts.is_file() && !facts.file_type().is_fifo() {
        return Err(format!("this is a device: {NAME_A_FILE}"));
    }
    if facts.permissions().mode() & 0o077 != 0 {
        return Err("other users can read this password file: chmod 600 it".into());
    }
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_PASSWORD as usize + 1));
    // No large buffer, because it would keep a copy.
    let mut reader = BufReader::with_capacity(1, file.take(MAX_PASSWORD + 1));
    reader.read_until(b'\n', &mut line).map_err(|error| disk::reason(&error))?;
    if line.len() as u64 > MAX_PASSWORD {
        return Err("its first line is too long: a password has at most 1024 bytes".into());
    }
    let text = std::str::from_utf8(&line)
        .map_err(|_| "the password is not UTF-8: save the file as UTF-8 text".to_string())?;
    // Some editors begin a file with a byte order mark, which nobody sees.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let password = Password::new(text.trim_end_matches(['\r', '\n']).to_string());
    match text.trim().is_empty() && !password.is_long_enough() {
        true if text.is_empty() => Err("it is empty: write the password into its first line".into()),
        true => Err("its first line is blank: write the password there".into()),
        false => Ok(password),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::random;
    use crate::encoding::hex;
    use std::fs;

    #[test]
    fn unusable_password_file_is_reported_with_the_fault() {
        let folder = std::env::temp_dir().join(format!("password-{}", hex(&random::<8>())));
        fs::create_dir(&folder).expect("a folder");
        let path = folder.join("file");
        let read = |path: &Path| read_within(path, Duration::from_secs(60));
        for (bytes, problem) in [
            (&b""[..], "it is empty"),
            (b"\xef\xbb\xbf", "it is empty"),
            (b"\n", "first line is blank"),
            (b"\r\nthe password\n", "first line is blank"),
            (b"\xef\xbb\xbf\r\n", "first line is blank"),
            (b"  \t\n", "first line is blank"),
            (b"\xff\xfep\0a\0", "save the file as UTF-8"),
            (&[b'x'; 2000], "at most 1024 bytes"),
        ] {
            fs::write(&path, bytes).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
            let error = read(&path).expect_err(problem).to_string();
            assert!(error.contains(problem) && error.contains("file"), "{error}");
        }
        fs::write(&path, "      \n").expect("written");
        assert!(read(&path).is_ok(), "blanks can be a password");
        for (path, problem) in [
            (folder.as_path(), "a folder"),
            (Path::new("/dev/null"), "a device"),
            (Path::new("/dev/zero"), "a device"),
        ] {
            let error = read(path).expect_err(problem).to_string();
            assert!(error.contains(problem) && error.contains("name a file"), "{error}");
        }
        let pipe = folder.join("pipe");
        let made = std::process::Command::new("mkfifo").args(["-m", "600"]).arg(&pipe).status();
        assert!(made.expect("mkfifo").success());
        let error = read_within(&pipe, Duration::ZERO).expect_err("nobody writes").to_string();
        assert!(error.contains("nothing came from it"), "{error}");
        fs::remove_dir_all(folder).expect("removed");
    }
}
