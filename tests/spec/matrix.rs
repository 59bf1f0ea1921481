//! The last table of the security document: what stands behind each clause of the specification.

use super::tidy::{anchors, cited, cited_above, clauses, document, sources, texts, writes};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The head of the table. `MATRIX=write cargo test --test spec matrix` writes the rows.
const HEAD: &str = "| clause | code | tests | models | fuzz targets |\n|---|---|---|---|---|\n";

/// The places that cite each clause.
#[derive(Default)]
struct Cites(BTreeMap<String, BTreeMap<String, usize>>);

impl Cites {
    fn add(&mut self, clauses: impl IntoIterator<Item = String>, place: &str) {
        for clause in clauses {
            *self.0.entry(clause).or_default().entry(place.to_string()).or_default() += 1;
        }
    }

    /// The places that cite a clause, with the number of citations if there are several.
    fn of(&self, clause: &str) -> String {
        let places = self.0.get(clause).into_iter().flatten();
        let places = places.map(|(place, times)| match times {
            1 => place.clone(),
            times => format!("{place} ({times})"),
        });
        places.collect::<Vec<_>>().join(", ")
    }
}

/// The path of a file below a folder of the project, without its extension.
fn short(path: &str, folder: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let path = Path::new(path).strip_prefix(root).expect("below the folder").with_extension("");
    path.display().to_string().trim_end_matches("/mod").to_string()
}

fn code() -> Cites {
    let mut found = Cites::default();
    for (name, text) in sources() {
        let clauses: BTreeSet<_> = cited(&text).collect();
        found.add(clauses, name.trim_end_matches(".rs").trim_end_matches("/mod"));
    }
    found
}

/// The files of unit tests are in italics.
fn tests() -> Cites {
    let mut found = Cites::default();
    for (path, text) in texts("tests", "rs") {
        found.add(cited_above(&text, "///", "#[test]"), &short(&path, "tests"));
    }
    for (path, text) in texts("src", "rs") {
        let place = format!("*{}*", short(&path, "src"));
        found.add(cited_above(&text, "///", "#[test]"), &place);
    }
    for (path, text) in texts("tests/interop", "py") {
        found.add(cited_above(&text, "#", "def "), &short(&path, "tests"));
    }
    found
}

fn models() -> Cites {
    let mut found = Cites::default();
    for (path, text) in texts("tests/model", "vp") {
        let clauses: BTreeSet<_> =
            text.lines().filter(|line| line.starts_with("//")).flat_map(cited).collect();
        found.add(clauses, &short(&path, "tests/model"));
    }
    found
}

/// The function of each property has the name of its target.
fn targets() -> Cites {
    let mut found = Cites::default();
    for (path, _) in texts("tests/fuzz/fuzz_targets", "rs") {
        let target = short(&path, "tests/fuzz/fuzz_targets");
        for (_, text) in texts("tests/fuzz/properties", "rs") {
            found.add(cited_above(&text, "///", &format!("fn {target}(")), &target);
        }
    }
    found
}

fn matrix() -> String {
    let (code, tests, models, targets) = (code(), tests(), models(), targets());
    for name in models.0.keys().chain(targets.0.keys()) {
        assert!(clauses().contains(name), "no document has the anchor {name}");
    }
    let mut rows = HEAD.to_string();
    let specification = document("PROTOCOL");
    let all = anchors(&specification);
    assert!(all.len() > 150, "only {} clauses were found", all.len());
    // In the order of the specification.
    for clause in specification.split("<a id=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
        let name = format!("PROTOCOL#{clause}");
        let cells = [&code, &tests, &models, &targets].map(|cites| cites.of(&name));
        assert!(!cells[0].is_empty() && !cells[1].is_empty(), "{clause} has no code or no test");
        rows += &format!("| [{clause}](protocol/PROTOCOL.md#{clause}) | {} |\n", cells.join(" | "));
    }
    rows
}

#[test]
fn matrix_of_the_security_document_is_current() {
    let (document, matrix) = (document("SECURITY"), matrix());
    let (before, _) = document.split_once(HEAD).expect("the document has the table's head");
    if writes("MATRIX") {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/SECURITY.md");
        return std::fs::write(path, format!("{before}{matrix}")).expect("written");
    }
    let is_stale = |row: &&str| !document.contains(*row);
    let stale: Vec<_> = matrix.lines().filter(is_stale).collect();
    let is_same = document == format!("{before}{matrix}");
    assert!(is_same, "MATRIX=write cargo test --test spec matrix renews the table: {stale:#?}");
}
