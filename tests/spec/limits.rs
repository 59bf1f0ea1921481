//! The table of limits and times in the specification has the values of the code, and so have its clauses.

use crate::tidy::{document, rows, sources};
use std::collections::BTreeSet;

/// Constants of the compared files that are no limits of the protocol: sizes that follow from the primitives, and
/// choices of this server.
const OTHERS: [&str; 23] = [
    "VERSION",
    "RSA_BITS",
    "RSA_BYTES",
    "KEY_ID_BYTES",
    "WRAPPED_BYTES",
    "OAEP_BYTES",
    "MAX_SPKI",
    "PSS_SALT",
    "VALID",
    "MAX_PLAINTEXT",
    "MAX_CIPHERTEXT",
    "ANSWER_JITTER",
    "PRESENCE_INTERVAL",
    "MIN_OUTBOX",
    "SWEEP",
    "NOTICE",
    "MAX_WRITERS",
    "SPARE_DESCRIPTORS",
    "MAPPINGS_PER_THREAD",
    "SPARE_MAPPINGS",
    "MAX_REMEMBERED",
    "DAY",
    "DIGITS",
];

struct Row {
    value: String,
    clause: String,
    file: String,
    constant: String,
}

/// The rows of the table, without those that only name a group.
fn limits() -> Vec<Row> {
    let rows = rows(&document("PROTOCOL"), "| limit | value | kept by |");
    let limit = |cells: Vec<String>| {
        let [_, value, _, clause, place] = &cells[..] else { panic!("{cells:?}") };
        let (file, constant) = place.trim_matches('`').split_once("` `")?;
        let clause = clause.split(['[', ']']).nth(1)?;
        let [value, clause, file, constant] = [value, clause, file, constant].map(String::from);
        Some(Row { value, clause, file, constant })
    };
    rows.into_iter().filter_map(limit).collect()
}

/// A value of the table: a number, or bytes or milliseconds if it has a unit.
fn value(text: &str) -> u64 {
    let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
    let scale = match unit {
        "" => 1,
        "KiB" => 1024,
        "MiB" => 1024 * 1024,
        "s" => 1000,
        "minutes" => 60_000,
        "hour" | "hours" => 3_600_000,
        "days" => 24 * 3_600_000,
        _ => panic!("{unit}"),
    };
    number.replace(',', "").parse::<u64>().expect("a number") * scale
}

/// The value of a constant's expression: a number, a product, or a duration in milliseconds.
fn evaluate(expression: &str) -> u64 {
    let inner = |name: &str| expression.strip_prefix(name).and_then(|rest| rest.strip_suffix(')'));
    if let Some(seconds) = inner("Duration::from_secs(") {
        return evaluate(seconds) * 1000;
    }
    let factor = |factor: &str| factor.trim().replace('_', "").parse::<u64>().expect("a factor");
    expression.split('*').map(factor).product()
}

/// The constants of a file: name and expression.
fn constants(text: &str) -> Vec<(&str, &str)> {
    let numbers = ["u32", "u64", "usize", "Duration"];
    let all = text.split("const ").skip(1).filter_map(|rest| rest.split(';').next()?.split_once(" = "));
    let named = all.filter_map(|(head, expression)| Some((head.split_once(": ")?, expression)));
    named.filter(|((_, kind), _)| numbers.contains(kind)).map(|((name, _), it)| (name, it)).collect()
}

/// The text of a clause, up to the next anchor.
fn clause(name: &str) -> String {
    let specification = document("PROTOCOL");
    let (_, rest) = specification.split_once(&format!("<a id=\"{name}\">")).expect(name);
    rest.split("<a id=").next().expect("a clause").to_string()
}

#[test]
fn limits_of_the_specification_are_those_of_the_code() {
    let sources = sources();
    assert!(limits().len() > 60, "only {} limits were found", limits().len());
    for Row { value: said, file, constant, .. } in limits() {
        let (_, text) = sources.iter().find(|(name, _)| *name == file).expect(&file);
        let all = constants(text);
        let (_, expression) =
            all.iter().find(|(name, _)| *name == constant).unwrap_or_else(|| panic!("{constant}"));
        assert_eq!(value(&said), evaluate(expression), "{file} {constant}");
    }
}

#[test]
fn clauses_state_the_values_of_the_table_of_limits() {
    for Row { value, clause: name, .. } in limits() {
        let number = value.split(' ').next().expect("a number");
        let word = match number {
            "1" => "an",
            "2" => "two",
            "3" => "three",
            "5" => "five",
            _ => number,
        };
        let text = clause(&name);
        let has = |it: &str| {
            text.split(|c: char| !(c.is_alphanumeric() || c == ',')).any(|word| word.trim_matches(',') == it)
        };
        assert!(has(number) || has(word), "{name} lacks {value}");
    }
}

#[test]
fn each_limit_of_the_protocol_is_in_the_table() {
    let listed: BTreeSet<_> = limits().into_iter().map(|row| (row.file, row.constant)).collect();
    let is_shared = |file: &str| {
        ["protocol/", "crypto/"].iter().any(|room| file.starts_with(room)) || file == "server/limits.rs"
    };
    let mut excused = BTreeSet::new();
    for (file, text) in sources().iter().filter(|(file, _)| is_shared(file)) {
        for (name, _) in constants(text) {
            if let Some(other) = OTHERS.iter().find(|other| **other == name) {
                excused.insert(*other);
            } else {
                assert!(listed.contains(&(file.clone(), name.to_string())), "the table lacks {file} {name}");
            }
        }
    }
    assert_eq!(excused, OTHERS.into(), "each exception is a constant of the code");
}
