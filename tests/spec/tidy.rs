//! House rules: file heads, imports in one direction, no `unwrap`, one place for each library. The documents explain
//! every dependency, and code and a test cite every clause of the specification.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The files of `src`: the path below it, and the text without unit tests.
pub fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let source = |(path, text): (String, String)| {
        let name = Path::new(&path).strip_prefix(&root).expect("below src").display().to_string();
        (name, text.split("#[cfg(test)]").next().unwrap_or_default().to_string())
    };
    let found: Vec<_> = texts("src", "rs").into_iter().map(source).collect();
    assert!(found.len() > 30, "only {} sources were found", found.len());
    found
}

/// Lines of code without comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.starts_with("//"))
}

#[test]
fn every_file_begins_with_its_purpose() {
    for (name, text) in sources() {
        assert!(text.starts_with("//! "), "{name} has no head");
    }
}

#[test]
fn source_has_no_unwrap_and_no_unsafe() {
    for (name, text) in sources() {
        for line in code(&text) {
            assert!(!line.contains(".unwrap()"), "{name}: {line}");
            assert!(!line.contains("unsafe "), "{name}: {line}");
        }
    }
}

#[test]
fn secrets_derive_nothing_and_compare_in_constant_time() {
    let sources = sources();
    let text = |file| &sources.iter().find(|(name, _)| name == file).expect(file).1;
    for file in ["crypto/secret.rs", "crypto/keys.rs"] {
        assert!(!code(text(file)).any(|line| line.contains("#[derive(")), "{file}");
    }
    let bodies: Vec<_> = between(text("crypto/secret.rs"), "fn eq(", '}').collect();
    assert!(bodies.len() == 2 && bodies.iter().all(|body| body.contains(".ct_eq(")), "{bodies:?}");
    assert!(text("crypto/primitives.rs").contains("verify_slice(mac)"));
}

#[test]
fn server_cannot_name_what_would_let_it_read_messages() {
    let server: Vec<_> = sources().into_iter().filter(|(name, _)| name.starts_with("server/")).collect();
    assert!(server.len() >= 10);
    let forbidden = ["envelope::", "keys::", "key_file", "IdentityKey", "SessionKey", "crypto::*", "client"];
    for (name, text) in server {
        for line in code(&text) {
            let line = line.replace("routing::keys", "");
            let named = forbidden.iter().find(|word| line.starts_with("use ") && line.contains(**word));
            assert_eq!(named, None, "{name}: {line}");
            for word in ["IdentityKey", "SessionKey", "Sealed", "Verified", "unwrap(&", "crate::client"] {
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

/// Each room, and the rooms that it may name, which precede it in this list.
const ROOMS: [(&str, &[&str]); 13] = [
    ("clock", &[]),
    ("disk", &[]),
    ("cli", &["disk"]),
    ("encoding", &[]),
    ("sync", &[]),
    ("name", &["encoding"]),
    ("records", &["clock", "disk"]),
    ("crypto", &["disk", "encoding", "name"]),
    ("wire", &["clock", "crypto", "disk", "sync"]),
    ("protocol", &["crypto", "encoding", "name"]),
    ("auth", &["crypto", "encoding", "name", "protocol"]),
    ("client", EVERYTHING_SHARED),
    ("server", EVERYTHING_SHARED),
];
const EVERYTHING_SHARED: &[&str] =
    &["auth", "cli", "clock", "crypto", "disk", "encoding", "name", "protocol", "records", "sync", "wire"];

#[test]
fn imports_run_one_way() {
    let place = |name: &str| ROOMS.iter().position(|(room, _)| *room == name).expect(name);
    for (room, below) in ROOMS {
        assert!(below.iter().all(|name| place(name) < place(room)), "{room}");
    }
    let is_inside = |c: char| c.is_alphanumeric() || c == '_';
    for (name, text) in sources() {
        let room = name.split(['/', '.']).next().unwrap_or_default();
        for named in code(&text).flat_map(|line| line.split("crate::").skip(1)) {
            let named = named.split(|c| !is_inside(c)).next().unwrap_or_default();
            let (_, below) = ROOMS[place(room)];
            assert!(named == room || below.contains(&named), "{name} names {named}");
        }
    }
}

/// The modules of `crypto`: each may name only those before it.
const CRYPTO: [&str; 7] = ["secret", "primitives", "public", "keys", "key_file", "envelope", "chunk"];

#[test]
fn crypto_modules_name_only_modules_before_them() {
    for (name, text) in sources() {
        let module = name.strip_prefix("crypto/").and_then(|file| file.strip_suffix(".rs"));
        let Some(at) = CRYPTO.iter().position(|known| Some(*known) == module) else { continue };
        for later in &CRYPTO[at + 1..] {
            let names = |line: &str| line.contains("super::") && has_word(line, later);
            assert!(!code(&text).any(names), "{name} names {later}");
        }
    }
}

/// A file or folder, the path by which its code names its siblings, and the siblings that it may name.
const BELOW: [(&str, &str, &[&str]); 15] = [
    ("wire/certificate.rs", "super::", &[]),
    ("wire/frame.rs", "super::", &[]),
    ("wire/liveness.rs", "super::", &[]),
    ("wire/tls.rs", "super::", &["certificate"]),
    ("wire/window.rs", "super::", &[]),
    ("server/store/", "crate::server::", &["limits", "rates", "store", "threads"]),
    (
        "server/session/",
        "crate::server::",
        &["connection_limits", "limits", "quotas", "rates", "session", "threads"],
    ),
    ("server/connection_limits.rs", "super::", &["limits", "rates"]),
    ("server/rates.rs", "super::", &["limits"]),
    ("server/limits.rs", "super::", &[]),
    ("server/threads.rs", "super::", &[]),
    ("server/options.rs", "super::", &["limits"]),
    ("server/quotas.rs", "super::", &["limits"]),
    ("server/partial_frame.rs", "super::", &["limits", "quotas"]),
    ("server/operator/", "crate::server::", &["limits", "options", "shared", "store", "threads"]),
];

#[test]
fn siblings_name_only_siblings_below() {
    for (name, text) in sources() {
        for line in code(&text) {
            for (_, path, below) in BELOW.iter().filter(|(room, ..)| name.starts_with(room)) {
                let mut named = line.split(path).skip(1);
                assert!(
                    named.all(|named| below.iter().any(|room| named.starts_with(room))),
                    "{name}: {line}"
                );
                let folder = name.split('/').next().unwrap_or_default();
                let whole = format!("crate::{folder}::");
                assert!(*path != "super::" || !line.contains(&whole), "{name}: {line}");
                assert!(!line.contains("super::super"), "{name}: {line}");
            }
            // Only the start of the server uses the operator's tools.
            let may_name =
                ["server/operator/", "server/mod.rs", "bin/"].iter().any(|at| name.starts_with(at));
            assert!(may_name || !line.contains("operator::"), "{name}: {line}");
        }
    }
}

/// The path of a file's module below `crate`: empty for `lib.rs`.
fn module(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').filter(|part| *part != "lib").map(str::to_string).collect()
}

/// The paths that a `use` names: `a::{b, c::d}` are `a::b` and `a::c::d`.
fn expand(tree: &str) -> Vec<String> {
    let Some((before, inside)) = tree.split_once('{') else { return vec![tree.to_string()] };
    let inside = inside.strip_suffix('}').unwrap_or_else(|| panic!("{tree}"));
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for letter in inside.chars() {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        if letter == ',' && depth == 0 {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(letter);
        }
    }
    let parts = parts.iter().filter(|part| !part.is_empty());
    parts.flat_map(|part| expand(part)).map(|path| format!("{before}{path}")).collect()
}

/// The other modules that a module names.
fn named_modules(me: &[String], text: &str, all: &BTreeSet<Vec<String>>) -> BTreeSet<Vec<String>> {
    let (mut lines, mut paths) = (code(text), Vec::new());
    while let Some(line) = lines.next() {
        if let Some((before, tree)) = line.split_once("use ")
            && (before.is_empty() || (before.starts_with("pub") && !before.trim_end().contains(' ')))
        {
            let mut tree = tree.to_string();
            while !tree.contains(';') {
                tree.push_str(lines.next().expect("a use has an end"));
            }
            let tree: String = tree.split(';').next().unwrap_or_default().split_whitespace().collect();
            paths.extend(expand(&tree));
        }
    }
    let text: String = code(text).collect::<Vec<_>>().join("\n");
    for word in text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')) {
        paths.extend(
            Some(word.to_string())
                .filter(|word| ["crate::", "super::"].iter().any(|it| word.starts_with(it))),
        );
    }
    let resolve = |path: String| {
        let mut parts = path.split("::").peekable();
        let mut at = me.to_vec();
        match parts.peek() {
            Some(&"crate") => at.clear(),
            Some(&"super") => {
                while parts.next_if_eq(&"super").is_some() {
                    at.pop();
                }
            }
            _ => {}
        }
        parts.next_if_eq(&"crate");
        let start = at.len();
        for part in parts {
            at.push(part.to_string());
            if !all.contains(&at) {
                at.pop();
                break;
            }
        }
        (at != me && (start != me.len() || at.len() > start)).then_some(at)
    };
    paths.into_iter().filter_map(resolve).filter(|at| all.contains(at)).collect()
}

#[test]
fn module_imports_form_no_cycle() {
    let files: Vec<_> = sources().into_iter().filter(|(name, _)| !name.starts_with("bin/")).collect();
    let all: BTreeSet<_> = files.iter().map(|(name, _)| module(name)).collect();
    let below: BTreeMap<_, _> =
        files.iter().map(|(name, text)| (module(name), named_modules(&module(name), text, &all))).collect();
    assert!(below[&module("server/accept.rs")].contains(&module("server/connection.rs")));
    // A folder also counts as one module.
    let room = |path: &Vec<String>| path.iter().take(2).cloned().collect::<Vec<_>>();
    let mut rooms: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (me, named) in below.iter().filter(|(me, _)| me.len() > 1) {
        let named = named.iter().map(room).filter(|named| *named != room(me));
        rooms.entry(room(me)).or_default().extend(named);
    }
    assert_eq!(cycles(rooms), [""; 0], "these rooms import each other in a cycle");
    assert_eq!(cycles(below), [""; 0], "these modules import each other in a cycle");
}

/// The modules that are in a cycle of imports, or between two cycles.
fn cycles(mut below: BTreeMap<Vec<String>, BTreeSet<Vec<String>>>) -> Vec<String> {
    // A module that imports no remaining module, or that no remaining module imports, is in no cycle.
    while let Some(done) = below.keys().find(|me| {
        let is_left = |one: &&Vec<String>| below.contains_key(*one);
        !below[*me].iter().any(|one| is_left(&one)) || !below.values().any(|named| named.contains(*me))
    }) {
        below.remove(&done.clone());
    }
    below.keys().map(|path| path.join("::")).collect()
}

#[test]
fn tls_and_terminal_libraries_are_named_in_one_place() {
    for (library, home) in
        [("termion", "client/terminal/"), ("rustls::", "wire/tls.rs"), ("rcgen", "wire/certificate.rs")]
    {
        for (name, text) in sources().iter().filter(|(name, _)| !name.starts_with(home)) {
            // Types of certificates and keys are allowed everywhere.
            let names = |line: &str| line.replace("rustls::pki_types", "").contains(library);
            assert!(!code(text).any(names), "{name} names {library}");
        }
    }
}

/// The name of each document in citations, and its path.
const DOCUMENTS: [(&str, &str); 6] = [
    ("README", "README.md"),
    ("MANUAL", "src/client/MANUAL.md"),
    ("OPERATING", "src/server/OPERATING.md"),
    ("SECURITY", "src/SECURITY.md"),
    ("PROTOCOL", "src/protocol/PROTOCOL.md"),
    ("PERFORMANCE", "tests/bench/PERFORMANCE.md"),
];

pub fn document(name: &str) -> String {
    let (_, path) = DOCUMENTS.iter().find(|(document, _)| *document == name).expect("a document");
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// The trimmed cells of each row of the table whose head begins with `head`.
pub fn rows(text: &str, head: &str) -> Vec<Vec<String>> {
    let (_, table) = text.split_once(head).unwrap_or_else(|| panic!("no table {head}"));
    let rows = table.split("\n\n").next().expect("rows").lines().skip(2);
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect();
    rows.map(cells).collect()
}

/// Whether this run writes what it otherwise compares: `NAME=write`.
pub fn writes(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| value == "write")
}

/// Every text between `begin` and `end`.
pub fn between<'a>(text: &'a str, begin: &'a str, end: char) -> impl Iterator<Item = &'a str> {
    text.split(begin).skip(1).filter_map(move |rest| rest.split(end).next())
}

/// The anchors of a page: its clauses and messages.
pub fn anchors(page: &str) -> BTreeSet<String> {
    let all: Vec<_> = between(page, "<a id=\"", '"').map(String::from).collect();
    let names: BTreeSet<_> = all.iter().cloned().collect();
    assert_eq!(names.len(), all.len(), "an anchor occurs twice");
    names
}

/// All clauses, as they are cited: `PROTOCOL#name`.
pub fn clauses() -> BTreeSet<String> {
    let of = |name| anchors(&document(name)).into_iter().map(move |anchor| format!("{name}#{anchor}"));
    let names: BTreeSet<_> = DOCUMENTS.iter().flat_map(|(name, _)| of(*name)).collect();
    assert!(names.len() > 100, "only {} clauses were found", names.len());
    names
}

/// The anchors of a page's headings.
fn headings(page: &str) -> impl Iterator<Item = String> {
    page.lines().filter_map(|line| line.strip_prefix('#')).map(|line| {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        words
            .chars()
            .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-')
            .collect::<String>()
            .replace(' ', "-")
    })
}

/// All headings, as they are cited: `PROTOCOL#name`.
pub fn headings_of_documents() -> Vec<String> {
    let of =
        |name| headings(&document(name)).map(move |heading| format!("{name}#{heading}")).collect::<Vec<_>>();
    DOCUMENTS.iter().flat_map(|(name, _)| of(*name)).collect()
}

/// The clauses that a text cites, as `PROTOCOL#name`.
pub fn cited(text: &str) -> impl Iterator<Item = String> {
    let of = |name| {
        text.split(name).skip(1).filter_map(move |rest| {
            let rest = rest.strip_prefix('#')?;
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            let length = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            Some(format!("{name}#{}", rest[..length].trim_end_matches('-')))
        })
    };
    DOCUMENTS.iter().flat_map(move |(name, _)| of(*name))
}

#[test]
fn code_cites_every_clause_and_no_unknown_one() {
    let (clauses, cites): (_, BTreeSet<_>) =
        (clauses(), sources().iter().flat_map(|(_, text)| cited(text)).collect());
    let missing: Vec<_> = clauses.difference(&cites).collect();
    assert!(missing.is_empty(), "no comment in src cites {missing:?}");
    let known: BTreeSet<_> = clauses.into_iter().chain(headings_of_documents()).collect();
    let dangling: Vec<_> = cites.difference(&known).collect();
    assert!(dangling.is_empty(), "no document has the anchor {dangling:?}");
}

/// The text of all files with this ending in a folder and its subfolders.
pub fn texts(folder: &str, ending: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut folders, mut found) = (vec![root.join(folder)], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("readable") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == ending) {
                found.push((path.display().to_string(), fs::read_to_string(&path).expect("UTF-8")));
            }
        }
    }
    found
}

/// The clauses cited in comments directly above a line that begins with `test`. A citation in a file's head does not
/// count: each test names the clauses that it tries.
pub fn cited_above(text: &str, comment: &str, test: &str) -> Vec<String> {
    let (mut above, mut found) = (Vec::new(), Vec::new());
    for line in text.lines().map(str::trim_start) {
        match line.strip_prefix(comment) {
            Some(words) => above.extend(cited(words)),
            None if line.starts_with(test) => found.append(&mut above),
            None => above.clear(),
        }
    }
    found
}

#[test]
fn every_clause_is_cited_by_a_test() {
    let rust = [texts("tests", "rs"), texts("src", "rs")].concat();
    let rust = rust.iter().flat_map(|(_, text)| cited_above(text, "///", "#[test]"));
    let python = texts("tests/interop", "py");
    let python = python.iter().flat_map(|(_, text)| cited_above(text, "#", "def "));
    let (clauses, cites): (_, BTreeSet<_>) = (clauses(), rust.chain(python).collect());
    let missing: Vec<_> = clauses.difference(&cites).collect();
    assert!(missing.is_empty(), "no test cites {missing:?}");
    let dangling: Vec<_> = cites.difference(&clauses).collect();
    assert!(dangling.is_empty(), "no document has the anchor {dangling:?}");
}

#[test]
fn every_link_of_the_documents_has_a_target() {
    let is_link = |link: &&str| !link.starts_with("http") && link.contains(['#', '.']) && !link.contains(' ');
    for (name, file) in DOCUMENTS {
        let (page, path) = (document(name), Path::new(env!("CARGO_MANIFEST_DIR")).join(file));
        // The notation `PSS[key](m)` looks like a link.
        let pictures = between(&page, "src=\"", '"').chain(between(&page, "srcset=\"", '"'));
        for link in between(&page, "](", ')').filter(is_link).chain(pictures) {
            let (target, place) = link.split_once('#').unwrap_or((link, ""));
            let target = if target.is_empty() { path.clone() } else { path.with_file_name(target) };
            let text = fs::read_to_string(target).unwrap_or_else(|error| panic!("{file}: {link}: {error}"));
            let test = format!("#[test]\nfn {place}()");
            let is_there = if link.contains(".rs#") {
                text.replace("\n    ", "\n").contains(&test)
            } else {
                place.is_empty()
                    || anchors(&text).contains(place)
                    || headings(&text).any(|heading| heading == place)
            };
            assert!(is_there, "{file}: {link} has no target");
        }
    }
}

#[test]
fn each_claim_about_an_adversary_links_to_its_test() {
    let security = document("SECURITY");
    let lists: Vec<_> = security
        .split("\nCannot:\n")
        .skip(1)
        .filter_map(|rest| rest.split("\n\n").find(|part| part.trim_start().starts_with("- ")))
        .collect();
    assert_eq!(lists.len(), 8, "{lists:#?}");
    for claim in lists.iter().flat_map(|list| list.trim_start_matches("\n- ").split("\n- ")) {
        assert!(claim.contains(".rs#"), "no test for: {claim}");
    }
}

#[test]
fn auditor_line_counts_match_the_code() {
    let (security, sources) = (document("SECURITY"), sources());
    let lines = |path: &str| {
        let files = sources.iter().filter(|(name, _)| name.starts_with(path));
        let count: usize = files.map(|(_, text)| code(text).filter(|line| !line.is_empty()).count()).sum();
        assert!(count > 0, "{path} has no code");
        count
    };
    let number = |text: &str| text.replace(',', "").parse::<usize>().expect("a number");
    let compare = |paths: &str, said: usize| {
        let found: usize = paths.split('`').skip(1).step_by(2).map(lines).sum();
        assert!(found.abs_diff(said) <= said / 20, "{paths}: {found} lines, not {said}");
    };
    let rows = rows(&security, "| files | questions | lines |");
    rows.iter().for_each(|row| compare(&row[0], number(&row[2])));
    let hours = |count: usize| rows[..count].iter().map(|row| number(&row[2])).sum::<usize>().div_ceil(200);
    let promise = format!("six rows take {} hours, and all of them {}", hours(6), hours(rows.len()));
    assert!(security.replace('\n', " ").contains(&promise), "{promise}");
    let (_, day) = security.split_once("**In one day**").expect("the day");
    let day = day.split("\n\n").next().expect("a paragraph");
    let (_, said) = day.split_once("another user, ").expect("its lines");
    compare(day, number(said.split(' ').next().expect("a number")));
}

#[test]
fn security_document_explains_every_dependency() {
    let arguments = ["tree", "--locked", "--offline", "-e", "no-dev", "--prefix", "none", "--format"];
    let tree = |extra: &[&str]| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).args(extra);
        String::from_utf8(cargo.output().expect("cargo tree").stdout).expect("UTF-8")
    };
    let direct = tree(&["{p} | {l}", "--depth", "1"]);
    let direct: Vec<_> = direct.lines().filter(|line| !line.starts_with("secure_messenger ")).collect();
    assert!(direct.len() >= 14, "{direct:?}");
    let security = document("SECURITY");
    let rows = rows(&security, "\n| crate | why |");
    assert_eq!(rows.len(), direct.len(), "{direct:?}");
    for line in direct {
        let (package, licence) = line.split_once(" | ").expect("two columns");
        let (name, _) = package.split_once(" v").expect("a name and a version");
        let row = rows.iter().find(|row| row[0] == format!("`{name}`"));
        let row = row.unwrap_or_else(|| panic!("the dependency table lacks {name}"));
        assert!(row.iter().any(|cell| cell == licence), "{name} is under {licence}");
    }
    let all: BTreeSet<_> = tree(&["{p}"]).lines().map(|line| line.replace(" (*)", "")).collect();
    assert!(security.contains(&format!("lists {} crates", all.len())), "there are {} crates", all.len());
}

#[test]
fn manuals_have_all_commands_and_options() {
    let (readme, manual) = (document("README"), document("MANUAL"));
    for usage in secure_messenger::client::command::COMMANDS {
        let row = format!("| `{}` | {} |\n", usage.usage, usage.explanation);
        assert!(readme.contains(&row), "README lacks {row}");
        assert!(manual.contains(&format!("`{}`", usage.usage)), "the manual lacks {}", usage.usage);
    }
    let of_client = (secure_messenger::client::options::HELP, manual);
    let of_server = (secure_messenger::server::options::HELP, document("OPERATING"));
    for (help, manual) in [of_client, of_server] {
        for flag in help.split_whitespace().filter(|word| word.starts_with("--")) {
            let flag = flag.trim_end_matches(|c: char| !c.is_alphanumeric());
            assert!(manual.contains(flag), "its manual lacks {flag}");
        }
    }
}

#[test]
fn readme_and_lines_of_documents_are_short() {
    assert!(document("README").len() <= 12 * 1024);
    for (name, _) in DOCUMENTS {
        for line in document(name).lines().filter(|line| !line.starts_with('|')) {
            assert!(line.chars().count() <= 120, "{name}: {line}");
        }
    }
}

/// The words in backquotes in one column of the specification's table whose head begins with `head`.
fn table(head: &str, column: usize) -> Vec<String> {
    let words =
        |row: Vec<String>| row[column].split('`').skip(1).step_by(2).map(String::from).collect::<Vec<_>>();
    rows(&document("PROTOCOL"), head).into_iter().flat_map(words).collect()
}

/// PROTOCOL#labels.
#[test]
fn each_label_has_one_purpose_in_the_specification() {
    let sources = sources();
    let (_, text) = sources.iter().find(|(name, _)| name == "crypto/mod.rs").expect("the labels' place");
    let labels: Vec<_> = between(text, "&str = \"secure-messenger/1 ", '"').map(String::from).collect();
    let listed: Vec<_> = table("| label | used in |", 0)
        .iter()
        .map(|label| label.trim_start_matches("secure-messenger/1 ").trim_start_matches("… ").to_string())
        .collect();
    let set = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
    assert!(labels.len() > 10 && set(&labels).len() == labels.len(), "{labels:?}");
    assert_eq!((set(&labels), labels.len()), (set(&listed), listed.len()));
    let elsewhere = sources.iter().filter(|(name, _)| name != "crypto/mod.rs");
    for (name, text) in elsewhere {
        assert!(
            !code(text).any(|line| line.contains("\"secure-messenger/1")),
            "{name} has a label of its own"
        );
    }
}

/// PROTOCOL#error-codes.
#[test]
fn specification_lists_exactly_the_codes_of_the_server() {
    let sources = sources();
    let (_, text) = sources.iter().find(|(name, _)| name == "protocol/mod.rs").expect("the codes' place");
    let said: BTreeSet<_> = between(text, "pub enum ErrorCode {", '}')
        .flat_map(code)
        .filter_map(|line| line.split_once(" = \"")?.1.strip_suffix("\",").map(String::from))
        .collect();
    assert!(said.len() > 20, "{said:?}");
    // A first cell may contain several codes.
    assert_eq!(said, table("| error code | when |", 0).into_iter().collect());
}
