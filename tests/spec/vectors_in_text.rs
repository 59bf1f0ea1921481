//! The specification shows the vectors of `tests/vectors/vectors.json`.

use crate::tidy::{document, writes};
use miniserde::json::{self, Value};
use std::path::Path;

/// Places in `vectors.json`, and the members of each that a block shows.
type Shown = &'static [(&'static str, &'static [&'static str])];

/// The block of each marker in the specification.
const BLOCKS: [(&str, Shown); 25] = [
    ("fingerprint", &[("identity", &["fingerprint", "short"])]),
    (
        "primitives",
        &[
            ("pbkdf2/0", &["password", "salt", "rounds", "key"]),
            ("hmac/0", &["key", "message", "mac"]),
            ("eax/0", &["key", "nonce", "counter", "header", "text", "ciphertext", "tag"]),
            ("gcm/0", &["key", "nonce", "header", "text", "ciphertext", "tag"]),
            ("oaep/0", &["key", "label", "block"]),
            ("pss/0", &["message", "signature"]),
        ],
    ),
    ("session-certificate", &[("certificate", &["owner", "created", "signed", "signature"])]),
    ("registration", &[("logins/0", &["password", "register"])]),
    ("unknown-name", &[("fake_salt", &["name", "secret", "salt"])]),
    (
        "response",
        &[("logins/0", &["password", "password_key", "exporter", "challenge", "answered", "response"])],
    ),
    ("login-proof", &[("logins/0", &["proof_signed"])]),
    (
        "password-proof",
        &[(
            "password_changes/0",
            &["old_password", "new_password", "exporter", "challenge", "answered", "signed", "change"],
        )],
    ),
    ("header", &[("envelopes/0", &["text", "header"])]),
    ("commitment", &[("envelopes/0", &["message_key", "commitment"])]),
    ("padding", &[("envelopes/0", &["padded"])]),
    ("members", &[("envelopes/2", &["what", "plaintext"])]),
    ("signature", &[("envelopes/0", &["signed"])]),
    ("wrapped-key", &[("envelopes/0", &["oaep_label", "line"])]),
    ("resume-proof", &[("resumptions/0", &["token", "exporter", "challenge", "proven", "resume"])]),
    ("mailbox-certificate", &[("mailbox_certificate", &["owner", "created", "signed", "signature"])]),
    ("chunk-keys", &[("chunks/0", &["start", "size", "transfer", "chunk_key", "oaep_label"])]),
    ("chunk", &[("chunks/0", &["transfer_key", "associated", "mac", "text", "payload"])]),
    ("safety-digits", &[("safety_number", &["names", "fingerprints", "number"])]),
    ("key-file-form", &[("key_file", &["owner", "password", "text"])]),
    (
        "password-forms",
        &[
            ("passwords/1", &["typed", "forms"]),
            ("passwords/2", &["typed", "forms"]),
            ("passwords/3", &["typed", "forms"]),
        ],
    ),
    ("history-key", &[("history", &["owner", "server", "file", "key"])]),
    ("history-chain", &[("history", &["text"])]),
    ("mailbox-file-record", &[("mailbox_file", &["key", "text"])]),
    ("keys", &[("identity", &["pkcs8", "spki"]), ("session", &["pkcs8", "spki"])]),
];
const END: &str = "<!-- end of vectors -->";
/// The most characters of a value on one line, so that indented lines stay within 120 columns.
const WIDTH: usize = 96;

/// The value at a path of members and indexes.
fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('/').fold(value, |value, step| match value {
        Value::Object(members) => members.get(step).unwrap_or_else(|| panic!("{path}")),
        Value::Array(items) => &items[step.parse::<usize>().expect("an index")],
        _ => panic!("{path}"),
    })
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.trim_end().to_string(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        other => json::to_string(other),
    }
}

/// The lines of a value, folded at [`WIDTH`].
fn folded(text: &str) -> Vec<String> {
    let fold = |line: &str| {
        let letters: Vec<char> = line.chars().collect();
        letters.chunks(WIDTH).map(String::from_iter).collect::<Vec<_>>()
    };
    text.lines().flat_map(fold).collect()
}

fn block(vectors: &Value, shown: Shown) -> String {
    let mut lines = vec!["```text".to_string()];
    for (place, members) in shown {
        for member in *members {
            let name = format!("{} {member}", place.split('/').next().unwrap_or_default());
            match &folded(&text(at(vectors, &format!("{place}/{member}"))))[..] {
                [one] if name.len() + one.len() < WIDTH => lines.push(format!("{name} = {one}")),
                many => {
                    lines.push(format!("{name} ="));
                    lines.extend(many.iter().map(|line| format!("    {line}")));
                }
            }
        }
    }
    format!("{}\n```\n\n{END}", lines.join("\n"))
}

/// `VECTORS=write` renews the blocks.
#[test]
fn vectors_in_the_specification_are_those_of_the_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let vectors = std::fs::read_to_string(root.join("tests/vectors/vectors.json")).expect("readable");
    let vectors: Value = json::from_str(&vectors).expect("JSON");
    let mut document = document("PROTOCOL");
    let markers = document.matches("<!-- vectors: ").count();
    assert_eq!(markers, BLOCKS.len(), "each marker has a row in BLOCKS");
    let is_writing = writes("VECTORS");
    for (name, shown) in BLOCKS {
        let marker = format!("<!-- vectors: {name} -->\n\n");
        let (before, rest) = document.split_once(&marker).unwrap_or_else(|| panic!("no marker for {name}"));
        let block = block(&vectors, shown);
        if is_writing {
            let after = match rest.split_once(END) {
                Some((former, after)) if former.starts_with("```text") => after,
                _ => &format!("\n\n{rest}"),
            };
            document = format!("{before}{marker}{block}{after}");
        } else {
            let hint = "VECTORS=write cargo test --test spec vectors_in_text renews it";
            assert!(rest.starts_with(&block), "the block {name} is stale: {hint}");
        }
    }
    if is_writing {
        std::fs::write(root.join("src/protocol/PROTOCOL.md"), document).expect("written");
    }
}
