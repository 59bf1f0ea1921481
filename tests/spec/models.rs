//! The symbolic models in `tests/model/`: Verifpal finds exactly the attacks that each header names, also after each
//! breakage. Their labels, fields, clauses and tests are those of the code and the specification.
//!
//! "No attack found at 1 and 2 sessions" is no proof. `cargo install verifpal --version 1.6.7 --locked` installs the
//! tool; without it, its test is skipped with a notice, and the others still run.

use crate::support::{Folder, has, other, repository, skip};
use crate::tidy::{between, clauses, headings_of_documents, texts};
use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Results of other versions may differ.
const VERSION: &str = "verifpal 1.6.7";
/// The slowest run takes 5 s alone, and 10 s on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);
/// The words that begin an entry of the header or a breakage. Comment lines with more indentation continue it.
const ENTRIES: [&str; 6] = ["Models: ", "Abstracts: ", "Clauses: ", "Fields: ", "Expected: ", "`"];
/// The labels that no model uses, and why.
const UNMODELLED: [(&str, &str); 6] = [
    ("fake salt", "it hides which names exist: Verifpal's attacker compares no answers"),
    ("key file", DISK),
    ("history key", DISK),
    ("history", DISK),
    ("mailbox file key", DISK),
    ("mailbox file", DISK),
];
const DISK: &str = "a file of one user: there is no message to attack";

/// A change that must bring an attack.
struct Breakage {
    line: String,
    replaced: Vec<(String, String)>,
    code: String,
    sessions: usize,
    test: String,
}

/// The fields under one label, each with its term, or `None` if it is omitted for a reason.
type Fields = (String, Vec<(String, Option<String>)>);

struct Model {
    name: String,
    text: String,
    clauses: Vec<String>,
    fields: Vec<Fields>,
    /// The result codes at 1 and at 2 sessions.
    expected: [String; 2],
    breakages: Vec<Breakage>,
}

fn models() -> Vec<Model> {
    let mut models: Vec<_> =
        texts("tests/model", "vp").into_iter().map(|(path, text)| parse(&path, text)).collect();
    assert!(!models.is_empty(), "no model was found");
    models.sort_by(|a, b| a.name.cmp(&b.name));
    models
}

fn parse(path: &str, text: String) -> Model {
    let name = path.rsplit('/').next().unwrap_or_default().to_string();
    let (mut entries, mut is_open) = (Vec::<String>::new(), false);
    for line in text.lines() {
        match line.strip_prefix("// ") {
            Some(words) if ENTRIES.iter().any(|entry| words.starts_with(entry)) => {
                entries.push(words.to_string());
                is_open = true;
            }
            Some(words) if is_open && words.starts_with("  ") => {
                *entries.last_mut().expect("an entry") += &format!(" {}", words.trim());
            }
            _ => is_open = false,
        }
    }
    let all = |entry: &'static str| entries.iter().filter_map(move |line| line.strip_prefix(entry));
    let one = |entry: &'static str| {
        let found: Vec<_> = all(entry).collect();
        assert_eq!(found.len(), 1, "{name}: one line begins with `// {entry}`");
        found[0]
    };
    let has_head = text.starts_with("// ") && one("Models: ").len().min(one("Abstracts: ").len()) > 20;
    assert!(has_head, "{name}: no purpose, what it models, or what it abstracts from");
    let wrong = |line: &str| -> ! { panic!("{name}: malformed: {line}") };
    let results: Vec<_> =
        one("Expected: ").split(", ").map(|part| result(part).unwrap_or_else(|| wrong(part))).collect();
    let [(at_1, 1), (at_2, 2)] = &results[..] else { wrong(one("Expected: ")) };
    let expected = [at_1.clone(), at_2.clone()];
    let clauses = one("Clauses: ").split(", ").map(String::from).collect();
    let fields = all("Fields: ").map(|line| fields(line).unwrap_or_else(|| wrong(line))).collect();
    let breakages = entries.iter().filter(|line| line.starts_with('`'));
    let breakages = breakages.map(|line| breakage(line).unwrap_or_else(|| wrong(line))).collect();
    Model { name, text, clauses, fields, expected, breakages }
}

/// A result code and its number of sessions: `c0a1 at 2`.
fn result(part: &str) -> Option<(String, usize)> {
    let (code, sessions) = part.split_once(" at ")?;
    let is_valid = |pair: &[u8]| b"cafue".contains(&pair[0]) && matches!(pair.get(1), Some(b'0' | b'1'));
    let is_code = !code.is_empty() && code.as_bytes().chunks(2).all(is_valid);
    let sessions = sessions.parse().ok().filter(|sessions| (1..=2).contains(sessions))?;
    is_code.then(|| (code.to_string(), sessions))
}

/// `` `A` -> `B` and `C` -> `D`: c0a1 at 2, name_of_a_test ``.
fn breakage(line: &str) -> Option<Breakage> {
    let parts: Vec<_> = line.split('`').collect();
    let (last, replaced) = parts.split_last()?;
    let is_form = |(at, part): (usize, &[&str])| match part {
        [before, old, " -> ", _] => *before == [" and ", ""][usize::from(at == 0)] && !old.is_empty(),
        _ => false,
    };
    let is_valid = replaced.chunks(4).enumerate().all(is_form);
    let (code, test) = last.strip_prefix(": ")?.rsplit_once(", ")?;
    let (code, sessions) = result(code).filter(|_| is_valid)?;
    let replaced = replaced.chunks(4).map(|part| (part[1].to_string(), part[3].to_string())).collect();
    Some(Breakage { line: line.to_string(), replaced, code, sessions, test: test.to_string() })
}

/// `LABEL: field = term, field omitted (reason)`; a label alone has no fields.
fn fields(line: &str) -> Option<Fields> {
    let (label, list) = line.split_once(':')?;
    let field = |part: &String| match (part.split_once(" = "), part.split_once(" omitted (")) {
        (Some((field, term)), None) => Some((bare(field), Some(term.to_string()))),
        (None, Some((field, reason))) => (reason.len() > 5).then(|| (bare(field), None)),
        _ => None,
    };
    let list = split(list);
    Some((label.to_string(), list.iter().map(field).collect::<Option<_>>()?))
}

/// The parts between commas outside parentheses.
fn split(list: &str) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in list.chars() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        match c {
            ',' if depth == 0 => parts.push(String::new()),
            _ => parts.last_mut().expect("a part").push(c),
        }
    }
    let parts = parts.iter().map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
    parts.filter(|part| !part.is_empty()).collect()
}

/// The text inside the parentheses that `text` begins with.
fn inside(text: &str) -> &str {
    let mut depth = 0;
    let end = text.find(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth == 0
    });
    &text[1..end.expect("a closing parenthesis")]
}

/// A field's name, without the link and the " or empty" of the specification.
fn bare(field: &str) -> String {
    let linked = field.strip_prefix('[').and_then(|link| link.split_once("](")).map(|(name, _)| name);
    linked.unwrap_or(field).trim_end_matches(" or empty").to_string()
}

/// The lists of fields in the specification, each with its label.
fn formulas() -> Vec<(String, Vec<String>)> {
    let page = repository("src/protocol/PROTOCOL.md");
    let lists = page.match_indices("Fields(\"… ").map(|(at, _)| split(inside(&page[at + "Fields".len()..])));
    let lists = lists.map(|list| {
        let label = list[0].trim_start_matches("\"… ").trim_end_matches('"').to_string();
        (label, list[1..].iter().map(|field| bare(field)).collect())
    });
    let alone = between(&page, "(\"secure-messenger/1 ", '"').map(|label| (label.to_string(), Vec::new()));
    lists.chain(alone).collect()
}

impl Model {
    /// The lines that are neither empty nor comments.
    fn code(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter(|line| !line.trim().is_empty() && !line.trim().starts_with("//"))
    }

    fn words(&self) -> BTreeSet<&str> {
        self.code().flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_')).collect()
    }

    /// The lists of terms in the model's calls. Nested `CONCAT`s are joined.
    fn lists(&self) -> BTreeSet<Vec<String>> {
        let code = self.code().collect::<Vec<_>>().join("\n");
        let calls = code.match_indices('(').map(|(at, _)| split(inside(&code[at..])));
        let lists = calls.flat_map(|call| {
            let whole = call.iter().flat_map(|term| joined(term)).collect();
            call.iter().map(|term| joined(term)).chain([whole]).collect::<Vec<_>>()
        });
        lists.collect()
    }

    /// The model with a breakage. Only code is replaced.
    fn broken(&self, breakage: &Breakage) -> String {
        let mut lines: Vec<_> =
            self.text.lines().filter(|line| !line.trim().starts_with("//")).map(String::from).collect();
        for (old, new) in &breakage.replaced {
            let before = lines.clone();
            lines.iter_mut().for_each(|line| *line = line.replace(old, new));
            assert!(before != lines, "{}: nothing to replace: {}", self.name, breakage.line);
        }
        lines.join("\n")
    }
}

fn joined(term: &str) -> Vec<String> {
    match term.strip_prefix("CONCAT(").and_then(|terms| terms.strip_suffix(')')) {
        Some(terms) => split(terms).iter().flat_map(|term| joined(term)).collect(),
        None => vec![term.to_string()],
    }
}

#[test]
fn models_are_short_enough_to_be_read() {
    for model in models() {
        let lines = model.code().count();
        assert!((40..=100).contains(&lines), "{} has {lines} lines", model.name);
        let long = model.text.lines().find(|line| line.chars().count() > 120);
        assert_eq!(long, None, "{}", model.name);
    }
}

/// PROTOCOL#labels.
#[test]
fn each_label_is_in_a_model_or_has_a_reason_not_to_be() {
    let code = repository("src/crypto/mod.rs");
    let labels: BTreeSet<_> = between(&code, "&str = \"secure-messenger/1 ", '"').collect();
    let models = models();
    let used: BTreeSet<_> =
        models.iter().flat_map(|model| model.fields.iter().map(|(label, _)| label.as_str())).collect();
    let excused: BTreeSet<_> = UNMODELLED.iter().map(|(label, _)| *label).collect();
    let both: Vec<_> = used.intersection(&excused).collect();
    assert!(both.is_empty(), "modelled labels need no reason: {both:?}");
    let odd: Vec<_> =
        labels.symmetric_difference(&used.union(&excused).copied().collect()).copied().collect();
    assert!(odd.is_empty(), "without model and reason, or not in the code: {odd:?}");
    for model in &models {
        let words = model.words();
        for label in &labels {
            let has_fields = model.fields.iter().any(|(of, _)| of == label);
            let is_used = words.contains(label.replace(' ', "_").as_str());
            assert_eq!(is_used, has_fields, "{}: `{label}`: used, and has a line of fields", model.name);
        }
    }
}

/// PROTOCOL#fields.
#[test]
fn models_have_the_fields_of_the_specification() {
    let formulas = formulas();
    for model in models() {
        let lists = model.lists();
        for (label, fields) in &model.fields {
            let names: Vec<_> = fields.iter().map(|(name, _)| name.clone()).collect();
            let specified: Vec<_> =
                formulas.iter().filter(|(of, _)| of == label).map(|(_, list)| list).collect();
            let is_one = specified.contains(&&names);
            assert!(is_one, "{}: {label}: {names:?} is none of {specified:?}", model.name);
            let terms = fields.iter().filter_map(|(_, term)| term.as_deref()).flat_map(joined);
            let terms: Vec<_> = [label.replace(' ', "_")].into_iter().chain(terms).collect();
            assert!(lists.contains(&terms), "{}: the model lacks {terms:?}", model.name);
        }
    }
}

#[test]
fn models_name_only_clauses_and_tests_that_exist() {
    let places: BTreeSet<_> = clauses().into_iter().chain(headings_of_documents()).collect();
    let code = [texts("tests", "rs"), texts("src", "rs")].concat();
    let code: Vec<_> = code.iter().map(|(_, text)| text.replace("\n    ", "\n")).collect();
    for model in models() {
        let missing = model.clauses.iter().find(|clause| !places.contains(*clause));
        assert_eq!(missing, None, "{}: no such clause", model.name);
        for test in model.breakages.iter().map(|breakage| &breakage.test) {
            let test = format!("#[test]\nfn {test}()");
            assert!(code.iter().any(|text| text.contains(&test)), "{}: no such test: {test}", model.name);
        }
    }
}

/// A query that no breakage breaks may be vacuous.
#[test]
fn each_query_that_holds_is_broken_by_a_breakage() {
    for model in models() {
        let is_broken = |code: &str, query: usize| code.as_bytes().get(2 * query + 1) == Some(&b'1');
        let queries = model.expected[0].len() / 2;
        let falls = |breakage: &Breakage, query| {
            is_broken(&breakage.code, query) && !is_broken(&model.expected[breakage.sessions - 1], query)
        };
        for query in (0..queries).filter(|query| model.expected.iter().any(|code| !is_broken(code, *query))) {
            let breaks = model.breakages.iter().any(|breakage| falls(breakage, query));
            assert!(breaks, "{}: no breakage breaks query {}: it may be vacuous", model.name, query + 1);
        }
        for breakage in &model.breakages {
            let breaks = (0..queries).any(|query| falls(breakage, query));
            assert!(breaks, "{}: it breaks nothing: {}", model.name, breakage.line);
        }
    }
}

/// Runs a model, and returns its result code.
fn verify(folder: &Folder, number: usize, text: &str, sessions: usize) -> String {
    let file = folder.path(&format!("{number}.vp"));
    std::fs::write(&file, text).expect("written");
    let mut command = other("verifpal");
    command.args(["verify", "--quiet", "--result-code", "--sessions", &sessions.to_string()]).arg(file);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("verifpal");
    let began = Instant::now();
    while child.try_wait().expect("a status").is_none() {
        if began.elapsed() > DEADLINE {
            child.kill().and_then(|()| child.wait()).expect("killed");
            return format!("nothing in {} s", DEADLINE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().expect("its output");
    let said = String::from_utf8_lossy(&output.stdout).to_string();
    let code = said.lines().last().filter(|_| output.status.success()).map(String::from);
    code.unwrap_or_else(|| format!("{said}{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn models_and_their_breakages_have_the_expected_results() {
    let models = models();
    let mut runs = Vec::new();
    for model in &models {
        let expected = model.expected.iter().zip(1..);
        runs.extend(expected.map(|(code, at)| (model, "as it is", model.text.clone(), at, code)));
        let breakages = model.breakages.iter();
        runs.extend(
            breakages.map(|one| (model, one.line.as_str(), model.broken(one), one.sessions, &one.code)),
        );
    }
    if !has("verifpal") {
        return;
    }
    let version = other("verifpal").arg("--version").output().expect("a version").stdout;
    if String::from_utf8_lossy(&version).trim() != VERSION {
        skip(&format!("the models are for {VERSION}"));
        return;
    }
    let folder = Folder::new();
    let (runs, failures) = (Mutex::new(runs.into_iter().enumerate()), Mutex::new(Vec::new()));
    let next = || runs.lock().expect("not poisoned").next();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some((number, (model, what, text, sessions, expected))) = next() {
                    let seen = verify(&folder, number, &text, sessions);
                    if seen != *expected {
                        let of = format!("{} at {sessions}, {what}", model.name);
                        let failure = format!("{of}: expected {expected}, seen {seen}");
                        failures.lock().expect("not poisoned").push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("not poisoned");
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}
