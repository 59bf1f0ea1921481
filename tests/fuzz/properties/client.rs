//! The client's input from the terminal and from other users: keys, file names, texts, typed lines.

use super::{Choices, Property, no_examples};
use secure_messenger::client::command::{self, Command};
use secure_messenger::client::completion;
use secure_messenger::client::file::safe_name;
use secure_messenger::client::terminal::editor::{Completion, Editor, MAX_LINE, Outcome};
use secure_messenger::client::terminal::input::{Decoder, Key, Pastes, keys};
use secure_messenger::client::text::{
    all_mentions, clusters, fitting, is_blank, is_harmful, sanitise, sanitise_lines, truncate, width, wrap,
};
use secure_messenger::name::Username;
use std::path::{Component, Path};
use std::time::Instant;

pub const INPUT: Property = Property { name: "input", holds: input, examples: some_input };
pub const NAMES: Property = Property { name: "names", holds: names, examples: some_names };
pub const TEXT: Property = Property { name: "text", holds: text, examples: some_text };
pub const TYPING: Property = Property { name: "typing", holds: typing, examples: no_examples };

/// Terminal bytes give the same keys wherever they are cut; no part of an escape sequence is text.
fn input(data: &[u8]) {
    let mut choices = Choices(data);
    let mut cuts = Choices(choices.bytes(8));
    let structured = choices.below(2) == 1;
    let (bytes, expected) = if structured { sequences(&mut choices) } else { (choices.0.to_vec(), None) };
    let now = Instant::now();
    let keys = keys(&bytes);
    let (mut decoder, mut pieces, mut rest) = (Decoder::default(), Vec::new(), &bytes[..]);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at((1 + cuts.below(256)).min(rest.len()));
        pieces.extend(decoder.feed(piece, now).drain(..));
        rest = after;
    }
    assert_eq!(pieces, *keys);
    let mut typed = String::new();
    let rest = decoder.expire();
    assert_eq!(decoder.deadline(), None, "silence ends everything");
    // Several lines are one paste, which loses no text.
    let text = |keys: &[Key]| -> String { keys.iter().map(text_of).collect() };
    assert_eq!(text(&Pastes::default().join(keys.clone())), text(&keys));
    for key in keys.iter().chain(rest.iter()) {
        match key {
            Key::Char(c) => {
                assert!(!c.is_control());
                typed.push(*c);
            }
            // A byte that is not valid text becomes a replacement character of three bytes.
            Key::Paste(text) => {
                assert!(text.len() <= 3 * 64 * 1024);
                typed.push_str(text);
            }
            _ => {}
        }
    }
    if let Some(expected) = expected {
        assert_eq!(typed, expected, "{bytes:?}");
    }
}

/// The text of a key, without line ends.
fn text_of(key: &Key) -> String {
    match key {
        Key::Char(c) | Key::Alt(c) => c.to_string(),
        Key::Paste(text) => text.replace(['\n', '\t'], ""),
        _ => String::new(),
    }
}

/// Complete ECMA-48 sequences with text between them and in pastes; also the text alone.
fn sequences(choices: &mut Choices<'_>) -> (Vec<u8>, Option<String>) {
    let (mut bytes, mut expected) = (Vec::new(), String::new());
    while !choices.is_empty() {
        let raw = choices.text();
        let text = raw.replace(|c: char| c.is_control(), "");
        match choices.below(8) {
            0 => {
                bytes.extend(text.as_bytes());
                expected += &text;
            }
            // Any content except the end of a paste.
            1 if !raw.contains("\x1b[201~") => {
                bytes.extend([b"\x1b[200~", raw.as_bytes(), b"\x1b[201~"].concat());
                expected += &raw;
            }
            // A function or keypad key. The next one, ESC O X, is the keypad's equals sign, which is text.
            2 => bytes.extend([0x1b, b'O', b'@' + choices.byte() % 24]),
            // A control string with any content except what ends it.
            4 => {
                let begin = [
                    "\x1bP", "\x1bX", "\x1b]", "\x1b^", "\x1b_", "\u{90}", "\u{98}", "\u{9d}", "\u{9e}",
                    "\u{9f}",
                ];
                bytes.extend(choices.pick(&begin).as_bytes());
                bytes.extend(raw.replace(['\x07', '\x18', '\x1a', '\x1b', '\u{9c}'], "").as_bytes());
                bytes.extend(choices.pick(&["\x1b\\", "\u{9c}", "\x18"]).as_bytes());
            }
            3 => {
                bytes.extend(b"\x1b[M");
                bytes.extend([choices.byte(), choices.byte(), choices.byte()]);
            }
            _ => {
                let count = choices.below(48);
                let parameters = choices.bytes(count).iter().map(|byte| b'0' + byte % 16);
                let count = choices.below(4);
                let parameters: Vec<u8> =
                    parameters.chain(choices.bytes(count).iter().map(|byte| b' ' + byte % 16)).collect();
                let last = b'@' + choices.byte() % 63;
                // Paste marks, mouse reports and the Linux console's keys continue after this byte; rxvt's keys with
                // Shift end before it; other codes are text.
                let digits = parameters.iter().take_while(|byte| byte.is_ascii_digit()).count();
                let longer = match last {
                    b'~' => {
                        parameters == b"200"
                            || parameters.starts_with(b"27;")
                            || parameters.starts_with(b"27:")
                    }
                    b'M' | b'[' => parameters.is_empty(),
                    _ => last == b'u',
                };
                let longer = longer || (digits > 0 && parameters.get(digits) == Some(&b'$'));
                if !longer {
                    bytes.extend([b"\x1b[", &parameters[..], &[last]].concat());
                }
            }
        }
    }
    (bytes, Some(expected))
}

fn some_input() -> Vec<Vec<u8>> {
    let cut = b"\x01\x02\x03\x01\x02\x03\x01\x02\0";
    let texts: [&[u8]; 7] = [
        b"\x1b]11;rgb:00/00/00\x1b\\\x1bP>|term\x1b\\a\x1b_Gi=1;OK\x1b\\",
        b"one\rtwo\r\x1b[97;5u\x1b[3$\x1bOd\x9b1;5C\xc2\x9bA",
        b"a\x1b[A\x1bOB\x1b[1;5C\x1b[<64;10;2M\x1b[M !!",
        b"\x1b[200~pasted\r\n\x1b[A\x1b[201~\r",
        b"\x1b\x1b[3~\x1bb\x1b\r\x7f\x03",
        "é日😀\u{1b}ä".as_bytes(),
        b"\xe2\x82\x1b[[A\xff",
    ];
    texts.map(|text| [cut, text].concat()).to_vec()
}

/// Any file name becomes one plain name; a user name is one already.
/// PROTOCOL#name-form, PROTOCOL#reserved-names, PROTOCOL#plain-name.
fn names(data: &[u8]) {
    let name = String::from_utf8_lossy(data);
    let safe = safe_name(&name);
    assert!(!safe.is_empty() && safe.len() <= 180, "{safe:?}");
    let mut parts = Path::new(&safe).components();
    assert_eq!(parts.next(), Some(Component::Normal(safe.as_ref())));
    assert_eq!(parts.next(), None);
    let outer = |c: char| c == '.' || c.is_whitespace();
    assert!(!safe.starts_with(outer) && !safe.ends_with(outer), "{safe:?}");
    assert!(!safe.contains(|c| is_harmful(c) || "/\\:*?\"<>|".contains(c)), "{safe:?}");
    assert!(!safe.to_ascii_lowercase().ends_with(".part"), "{safe:?}");
    let first = safe.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    assert!(!["CON", "PRN", "AUX", "NUL", "COM1", "LPT9"].contains(&&*first), "{safe:?}");
    assert!(safe.len() > 178 || safe_name(&safe) == safe, "{safe:?}");
    if let Ok(user) = name.parse::<Username>() {
        assert!(user.as_str() == name && (1..=32).contains(&name.len()));
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        assert!(name.bytes().all(plain) && !name.starts_with(['_', '-']));
    }
}

fn some_names() -> Vec<Vec<u8>> {
    let long = ["x".repeat(179) + ". and more", "y".repeat(175) + ".part is not the end"];
    let long = long.into_iter().chain([format!("COM1.{}", "z".repeat(300)), "é.".repeat(200)]);
    let short =
        ["../../.bashrc", "C:\\nul.txt", "a\u{1b}[2J\u{202e}b.jpg", " . .hidden. ", "x.PaRt", "alice-2"];
    long.chain(short.map(String::from)).map(String::into_bytes).collect()
}

/// The columns on a terminal that joins no characters: each letter or sign, with its marks, counts on its own.
fn columns(text: &str) -> usize {
    let (mut total, mut start) = (0, 0);
    for (at, c) in text.char_indices() {
        if width(&text[at..at + c.len_utf8()]) > 0 {
            total += width(&text[start..at]);
            start = at;
        }
    }
    total + width(&text[start..])
}

/// A shown text is harmless and never wider than requested; breaking it into rows loses only spaces.
/// PROTOCOL#harmless.
fn text(data: &[u8]) {
    let mut choices = Choices(data);
    let limit = choices.below(64);
    let raw = String::from_utf8_lossy(choices.0);
    let clean = sanitise(&raw);
    assert!(!clean.contains(is_harmful) && !clean.contains('\n'));
    assert_eq!(sanitise(&clean), clean);
    let lines = sanitise_lines(&raw);
    assert!(!lines.contains(|c| c != '\n' && is_harmful(c)));
    assert!(lines.matches('\n').count() < 100);
    assert_eq!(sanitise_lines(&lines), lines);
    // Typed text is not sanitised, so the following must hold for any text.
    for text in [&clean, &lines, &*raw] {
        assert_eq!(clusters(text).collect::<String>(), *text);
        assert_eq!(width(text), columns(text), "{text:?}");
        let (short, cut) = (fitting(text, limit), truncate(text, limit));
        assert!(text.starts_with(short) && columns(short) <= limit);
        assert!(columns(&cut) <= limit && (cut == *text || cut.ends_with('…') || limit == 0));
        for at in all_mentions(text) {
            assert!(text[at.clone()].starts_with('@') && at.len() > 1);
        }
        let rows = wrap(text, limit);
        assert!(!rows.is_empty());
        for row in &rows {
            assert!(columns(row) <= limit.max(1), "{limit}: {row:?} of {text:?}");
        }
        // At least as wide as any single character.
        if limit > 20 {
            assert_eq!(rows.concat().replace(' ', ""), text.replace(' ', ""), "{limit}");
        }
    }
}

fn some_text() -> Vec<Vec<u8>> {
    let texts = [
        "the quick  brown fox @alice",
        "日本語 👨‍👩‍👧‍👦 e\u{301}\u{301} ☺️ 👍🏽 x\u{200d}y\u{200d}☺\u{fe0f}",
        "a\u{1b}[2J\u{9b}\u{202e}b\r\n\tc\u{200b}",
        "می\u{200c}خواهم שלום \u{fe0f}\u{301}",
    ];
    texts.map(|text| [&[7], text.as_bytes()].concat()).to_vec()
}

/// Whatever keys are pressed, the line is bounded and harmless, and its cursor is visible. A submitted line has exactly
/// one meaning, and a line that looks like a command is never sent as text.
fn typing(data: &[u8]) {
    let mut choices = Choices(data);
    let messages = choices.below(4) > 0;
    let mut editor = if messages { Editor::for_messages() } else { Editor::default() };
    let allowed = |c: char| (messages && c == '\n') || !is_harmful(c);
    while !choices.is_empty() {
        match choices.below(40) {
            kind @ 0..2 => {
                let count = choices.below(4);
                let find = |before: &str| match choices.below(3) {
                    0 => complete(before),
                    _ => Completion {
                        start: before.char_indices().last().map_or(0, |(at, _)| at),
                        candidates: ["", "é", "👩 "].map(String::from)[..count.min(3)].to_vec(),
                    },
                };
                editor.complete(kind == 0, find);
                let _ = editor.candidates();
            }
            kind => {
                if let Outcome::Submitted(line) = editor.key(&key(kind, &mut choices)) {
                    assert!(line.chars().all(allowed));
                    parsed(&line);
                }
            }
        }
        let line = editor.text();
        assert!(line.len() <= MAX_LINE && line.chars().all(allowed), "{line:?}");
        let columns = choices.below(24);
        // Panics if the cursor is inside a character.
        let (shown, column) = editor.visible(columns);
        assert!(width(shown) <= columns && column < columns.max(1), "{columns}: {shown:?} {column}");
        if let Some(question) = editor.question() {
            let lines: Option<usize> = question.split(' ').next().and_then(|count| count.parse().ok());
            assert!(lines.is_some_and(|lines| lines > 1), "{question}");
        }
        assert!(editor.label().is_none_or(|label| !label.contains(is_harmful)));
        let _ = command::hint(line);
    }
    parsed(editor.text());
    // In plain mode, lines do not pass through an editor.
    parsed(&String::from_utf8_lossy(data));
    complete(&String::from_utf8_lossy(data));
}

fn key(kind: usize, choices: &mut Choices<'_>) -> Key {
    // No control characters, because those are other keys (see [`input`]).
    const SIGNS: [char; 14] =
        ['a', 'é', '日', '\u{301}', '\u{200d}', '👩', '👧', '🏽', '\u{fe0f}', '☺', ' ', '/', '@', '\u{202e}'];
    match kind {
        2..10 => Key::Char(SIGNS[choices.below(SIGNS.len())]),
        10 => {
            let c = char::from_u32(choices.number() as u32 % 0x11_0000);
            Key::Char(c.filter(|c| !c.is_control()).unwrap_or('\u{e000}'))
        }
        11 => Key::Paste(choices.text()),
        12 => Key::Paste(choices.pick(&["x\ny", "\n", "\u{301}\r\n\u{200d}", "/msg bob ", "\t"]).into()),
        // Limited, so that it is rare.
        13 if choices.below(32) == 0 => Key::Paste("日\n".repeat(MAX_LINE / 5)),
        14..22 => Key::Ctrl(char::from(b'a' + choices.byte() % 26)),
        22 => Key::Alt(choices.pick(&["b", "d", "\x7f"]).chars().next().unwrap_or('b')),
        _ => {
            let keys = [
                Key::Enter,
                Key::AltEnter,
                Key::Backspace,
                Key::Delete,
                Key::Left,
                Key::Right,
                Key::Up,
                Key::Down,
                Key::Home,
                Key::End,
                Key::WordLeft,
                Key::WordRight,
                Key::Escape,
                Key::Tab,
                Key::Unknown,
            ];
            keys[choices.below(keys.len())].clone()
        }
    }
}

fn complete(before: &str) -> Completion {
    let files = |folder: &str| vec![format!("{folder}a"), "b\u{1b}".into(), "é c/".into(), String::new()];
    let completion = completion::complete(before, ["alice", "Al"].into_iter(), files);
    assert!(before.is_char_boundary(completion.start) && completion.candidates.len() <= 200);
    assert!(completion.candidates.iter().all(|text| !text.contains(is_harmful)));
    completion
}

fn parsed(line: &str) {
    let first = line.chars().find(|&c| c == '\u{338}' || !is_blank(c));
    let is_like_one = matches!(first, Some('/' | '\u{338}' | '\u{ff0f}' | '\u{2215}'));
    match command::parse(line) {
        Ok(Command::Say(text)) => {
            assert!(!is_like_one || (line.starts_with("//") && text.starts_with('/')), "{line:?}");
            assert!(!text.trim().is_empty() && line.contains(&text));
        }
        Ok(Command::Message(_, text)) => assert!(!text.is_empty() && line.contains(&text), "{line:?}"),
        Ok(Command::SendFile(_, path)) => assert!(!path.is_empty() && !path.contains('\n'), "{line:?}"),
        Ok(Command::Nothing) => assert!(line.chars().all(is_blank)),
        Ok(_) => assert!(line.starts_with('/') && !line.starts_with("//"), "{line:?}"),
        // Text with other characters may be refused too: the test does not predict which.
        Err(text) => assert!(
            !text.is_empty()
                && (is_like_one
                    || first == Some('\\')
                    || !line.is_ascii()
                    || line.contains(char::is_control)),
            "{line:?}"
        ),
    }
}
