//! The house rules that a reader relies on: file heads, the direction of imports, no `unwrap`,
//! one place for each library, every dependency explained.

use std::fs;
use std::path::{Path, PathBuf};

fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut found) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("src is readable") {
            let path: PathBuf = entry.expect("entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(&root).expect("below src");
                let text = fs::read_to_string(&path).expect("UTF-8");
                // What only tests see is free to do as it likes.
                let text = text.split("#[cfg(test)]").next().unwrap_or_default().to_string();
                found.push((name.display().to_string(), text));
            }
        }
    }
    assert!(found.len() > 30, "the sources were found");
    found
}

/// Lines of code, comments left out.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.starts_with("//"))
}

#[test]
fn every_file_says_what_it_is_for() {
    for (name, text) in sources() {
        assert!(text.starts_with("//! "), "{name} has no head");
    }
}

#[test]
fn nothing_unwraps_and_nothing_is_unsafe() {
    for (name, text) in sources() {
        for line in code(&text) {
            assert!(!line.contains(".unwrap()"), "{name}: {line}");
            assert!(!line.contains("unsafe ") || line.contains("forbid"), "{name}: {line}");
        }
    }
}

#[test]
fn the_server_can_name_nothing_that_would_let_it_read_messages() {
    let server: Vec<_> = sources().into_iter().filter(|(name, _)| name.starts_with("server/")).collect();
    assert!(server.len() >= 10);
    let forbidden = ["envelope::", "keys::", "key_file", "IdentityKey", "SessionKey", "crypto::*", "client"];
    for (name, text) in server {
        for line in code(&text) {
            let line = line.replace("SessionKeyFields", "").replace("delivery::keys", "");
            let named = forbidden.iter().find(|word| line.starts_with("use ") && line.contains(**word));
            assert_eq!(named, None, "{name}: {line}");
            for word in ["IdentityKey", "SessionKey", "Sealed", "unwrap(&", "crate::client"] {
                assert!(!has_word(&line, word), "{name}: {line}");
            }
        }
    }
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !inside(before) && !inside(after)
    })
}

#[test]
fn imports_run_one_way() {
    let forbidden: [(&str, &[&str]); 5] = [
        ("crypto/", &["crate::auth", "crate::protocol", "crate::wire", "crate::server", "crate::client"]),
        ("wire/", &["crate::auth", "crate::protocol", "crate::server", "crate::client"]),
        ("protocol.rs", &["crate::auth", "crate::wire", "crate::server", "crate::client"]),
        ("auth.rs", &["crate::wire", "crate::server", "crate::client"]),
        ("client/", &["crate::server"]),
    ];
    for (name, text) in sources() {
        for (room, words) in forbidden {
            for word in words.iter().filter(|_| name.starts_with(room)) {
                assert!(!code(&text).any(|line| line.contains(word)), "{name} names {word}");
            }
        }
    }
}

#[test]
fn each_library_with_a_surface_is_named_in_one_place() {
    for (library, home) in
        [("termion", "client/terminal.rs"), ("rustls::", "wire/tls.rs"), ("rcgen", "wire/certificate.rs")]
    {
        for (name, text) in sources() {
            assert!(
                name == home || !code(&text).any(|line| line.contains(library)),
                "{name} names {library}"
            );
        }
    }
}

#[test]
fn every_dependency_has_its_reason_in_the_readme() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("Cargo.toml");
    let readme = fs::read_to_string(root.join("README.md")).expect("README.md");
    let table = manifest.split("[dependencies]").nth(1).and_then(|rest| rest.split("\n[").next());
    let names: Vec<&str> = table
        .expect("dependencies")
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name)
        .collect();
    assert!(names.len() >= 14, "{names:?}");
    for name in names {
        assert!(readme.contains(&format!("| `{name}` |")), "README's dependency table lacks {name}");
    }
}

#[test]
fn the_readme_s_commands_are_the_program_s() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).expect("README.md");
    for usage in secure_messenger::client::command::COMMANDS {
        assert!(readme.contains(&format!("`{}`", usage.usage)), "README lacks {}", usage.usage);
    }
    let helps = [secure_messenger::client::options::HELP, secure_messenger::server::options::HELP];
    for flag in helps.iter().flat_map(|help| help.split_whitespace()).filter(|word| word.starts_with("--")) {
        let flag = flag.trim_end_matches(|c: char| !c.is_alphanumeric());
        assert!(readme.contains(flag), "README lacks {flag}");
    }
}
