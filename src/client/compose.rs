//! A long message, written in the user's own editor. Specification: MANUAL#long-messages.
//!
//! Invariant: while the editor runs, the text is in a private folder of its own. After that, the folder is removed with
//! everything in it. Only a text that the client cannot send stays, and the error names its path.

use super::terminal::editor::MAX_LINE;
use crate::crypto::secret::random;
use crate::disk;
use crate::encoding::hex;
use std::path::Path;
use std::process::Command;
use std::{fs, io};

/// The beginning of the names of these folders.
const FOLDER: &str = "edit-";
/// The longest file that is read, in bytes: line ends may have two characters.
const MAX_FILE: usize = 2 * MAX_LINE;

/// The user's editor, as a command of the shell.
///
/// # Errors
/// If no variable names one.
pub fn editor() -> Result<String, String> {
    let named = |variable| std::env::var(variable).ok().filter(|value| !value.trim().is_empty());
    let none = "no editor is known: start the client with EDITOR=nano, or with the command of another editor";
    named("VISUAL").or_else(|| named("EDITOR")).ok_or_else(|| none.into())
}

/// Runs `editor` on a text that begins with `start`, and waits for its end. `data` is the data folder.
///
/// # Errors
/// For the user: why there is no text to send, and where a text is that the client could not take.
pub fn compose(data: &Path, editor: &str, start: &str) -> Result<String, String> {
    let folder = data.join(format!("{FOLDER}{}", hex(&random::<8>())));
    let path = folder.join("message.txt");
    let begun = if start.is_empty() { String::new() } else { format!("{start}\n") };
    let made = disk::make_folder(&folder).and_then(|()| disk::write_new(&path, begun.as_bytes()));
    let ran = made.map_err(|error| error.to_string()).and_then(|()| run(editor, &path));
    let left = disk::read(&path, MAX_FILE);
    let is_work = match &left {
        Ok(bytes) => !bytes.trim_ascii().is_empty() && *bytes != begun.as_bytes(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    };
    match ran.and_then(|()| taken(left)) {
        Err(why) if is_work => Err(format!("{why}; what you wrote is in {}", path.display())),
        text => {
            let _ = fs::remove_dir_all(folder);
            text
        }
    }
}

/// Runs the editor through the shell, as other programs do, because the variable may contain arguments. Ctrl-C does
/// not end the shell, which waits for the editor.
fn run(editor: &str, path: &Path) -> Result<(), String> {
    let failed = |why: String| format!("the editor {editor} failed ({why})");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("trap : INT QUIT; {editor} \"$@\"")).arg(editor).arg(path);
    match shell.status().map_err(|error| failed(disk::reason(&error)))? {
        status if status.success() => Ok(()),
        // The shell's exit status for a missing command (POSIX, section 2.8.2).
        status if status.code() == Some(127) => Err(failed("no such command".into())),
        status => Err(failed(status.to_string())),
    }
}

/// The text without a byte order mark and without trailing line ends; all other line ends become `\n`.
fn taken(left: io::Result<Vec<u8>>) -> Result<String, String> {
    let bytes = left.map_err(|error| error.to_string())?;
    let text = disk::text(&bytes).ok_or("the text is not UTF-8")?;
    let text = text.replace("\r\n", "\n").replace('\r', "\n").trim_end_matches('\n').to_string();
    match text.len() {
        _ if text.trim().is_empty() => Err("the text is empty".into()),
        ..=MAX_LINE => Ok(text),
        long => {
            let (length, most) = (long.div_ceil(1024), MAX_LINE / 1024);
            Err(format!("the text has {length} KiB, and a line at most {most}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn data() -> PathBuf {
        let path = std::env::temp_dir().join(format!("compose-{}", hex(&random::<8>())));
        fs::create_dir(&path).expect("a folder");
        path
    }

    /// The result of this script as the editor, whose `$1` is the file; and whether the file stays.
    fn written(script: &str, start: &str) -> (Result<String, String>, bool) {
        let data = data();
        let result = compose(&data, &format!("f() {{ {script}\n}}; f"), start);
        let stays = fs::read_dir(&data).expect("a folder").count() > 0;
        fs::remove_dir_all(data).expect("removed");
        (result, stays)
    }

    /// MANUAL#long-messages.
    #[test]
    fn text_of_the_editor_is_taken_as_editors_write_it() {
        for (script, text) in [
            (":", "begun"),
            ("echo more >> \"$1\"", "begun\nmore"),
            ("printf '\\357\\273\\277one\\r\\ntwo\\r\\n\\r\\n' > \"$1\"", "one\ntwo"),
            ("printf '/msg bob hi' > \"$1\"; cp \"$1\" \"$1~\"", "/msg bob hi"),
            ("rm \"$1\"; echo new > \"$1\"", "new"),
        ] {
            assert_eq!(written(script, "begun"), (Ok(text.into()), false), "{script}");
        }
    }

    /// MANUAL#long-messages.
    #[test]
    fn text_that_cannot_be_taken_stays_on_disk() {
        for (script, why) in [
            ("echo more > \"$1\"; exit 1", "failed (exit status: 1)"),
            ("echo more > \"$1\"; kill -9 $$", "failed (signal: 9"),
            ("printf '\\377' > \"$1\"", "not UTF-8"),
            (
                "printf 'a\\0\\0' > \"$1\"; head -c 40000 /dev/zero | tr '\\0' x >> \"$1\"",
                "40 KiB, and a line at most 32",
            ),
            ("head -c 70000 /dev/zero | tr '\\0' x > \"$1\"", "longer than 65536 bytes"),
        ] {
            let (result, stays) = written(script, "begun");
            let error = result.expect_err(script);
            assert!(error.contains(why) && error.contains("what you wrote is in /"), "{script}: {error}");
            assert!(stays, "{script}");
        }
    }

    /// MANUAL#long-messages.
    #[test]
    fn editor_that_leaves_nothing_to_send_says_why() {
        for (script, why) in [
            ("printf ' \\n\\n' > \"$1\"", "the text is empty"),
            ("exit 3", "failed (exit status: 3)"),
            ("rm \"$1\"", "message.txt"),
            ("no-such-editor", "failed (no such command)"),
        ] {
            let (result, stays) = written(script, "begun");
            let error = result.expect_err(script);
            assert!(error.contains(why) && !error.contains("what you wrote"), "{script}: {error}");
            assert!(!stays, "{script}");
        }
    }

    /// MANUAL#long-messages.
    #[test]
    fn text_that_is_being_written_is_private() {
        let script = "stat -c %a \"$1\" \"${1%/*}\" > \"$1.modes\"; cat \"$1.modes\" > \"$1\"";
        assert_eq!(written(script, "").0, Ok("600\n700".into()));
    }
}
