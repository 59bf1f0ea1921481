//! Random JSON: written in many valid ways, and sometimes mutated in values, members, tokens or bytes.

use crate::support::Dice;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

#[derive(Clone)]
pub enum Json {
    /// A token, written unchanged: a number, a word, or something that is not JSON.
    Raw(String),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

use Json::{List, Object, Raw, Text};

pub fn raw(token: impl ToString) -> Json {
    Raw(token.to_string())
}

pub fn text(text: impl AsRef<str>) -> Json {
    Text(text.as_ref().into())
}

pub fn base64(bytes: &[u8]) -> Json {
    Text(BASE64_STANDARD.encode(bytes))
}

pub fn pick<'a, T>(dice: &Dice, from: &'a [T]) -> &'a T {
    &from[dice.below(from.len() as u64) as usize]
}

/// True once in `n` times, at random.
pub fn once_in(dice: &Dice, n: u64) -> bool {
    dice.below(n) == 0
}

/// Tokens of numbers, at and around every limit. Those from [`INVALID`] on are not JSON.
const NUMBERS: [&str; 60] = [
    "0",
    "1",
    "2",
    "5",
    "-0",
    "-1",
    "0.0",
    "1.0",
    "-0.0",
    "1e0",
    "1E0",
    "1e+2",
    "1e-2",
    "0e0",
    "10E-1",
    "255",
    "256",
    "65536",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551614",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "-9223372036854775809",
    "-18446744073709551616",
    "99999999999999999999",
    "100000000000000000000000000000000",
    "1e308",
    "1.8e308",
    "1e309",
    "-1e309",
    "1e400",
    "1e-400",
    "0e400",
    "0.0e99999999999",
    "1e99999999999",
    "1e-99999999999",
    "5e-324",
    "2e-324",
    "0.00000000000000000000001e330",
    "0.00000000000000000000001e332",
    "1000000000000000000000000e-20",
    "123456789012345678901234567890.5e-10",
    "01",
    "00",
    "1.",
    ".5",
    "+1",
    "1e",
    "1e+",
    "--1",
    "0x10",
    "NaN",
    "Infinity",
    "-Infinity",
    "1_000",
];

/// The index of the first invalid token in [`NUMBERS`].
const INVALID: usize = 47;

/// Strings for texts and unknown members.
const TEXTS: [&str; 20] = [
    "",
    "a",
    "alice",
    "null",
    "é",
    "\u{1f600}",
    "\u{0}",
    "\u{7f}",
    "\u{80}",
    "\u{2028}",
    "\u{feff}",
    "\u{fffd}",
    "\u{ffff}",
    "\u{10ffff}",
    "\"",
    "\\",
    "/",
    "\n",
    "[[[[[[[[[[",
    ",,,,",
];

/// String tokens at the limits of JSON; some are not valid.
const STRINGS: [&str; 22] = [
    r#""\ud83d\ude00""#,
    r#""\uD83D\uDE00""#,
    r#""\ud83d""#,
    r#""\ude00""#,
    r#""\ude00\ud83d""#,
    r#""\ud83d\u0041""#,
    r#""\ud83dx\ude00""#,
    r#""\ud83d\ud83d\ude00""#,
    r#""\u0000""#,
    r#""\u00e9""#,
    r#""\u00E9""#,
    r#""\u00g0""#,
    r#""\u12""#,
    r#""\x41""#,
    r#""\'""#,
    r#""\/""#,
    r#""\b\f\n\r\t""#,
    r#""\""#,
    "\"\t\"",
    "\"\u{1f}\"",
    "'a'",
    "\"a",
];

/// A valid number in JSON.
fn number(dice: &Dice) -> Json {
    match dice.below(8) {
        0 => raw(format!(
            "{}{}e{}",
            pick(dice, &["", "-", "0.", "-0.00"]),
            dice.next() | 1 << 63,
            dice.below(700) as i64 - 350
        )),
        _ => raw(pick(dice, &NUMBERS[..INVALID])),
    }
}

/// A random value, nested at most `depth` deep.
pub fn any(dice: &Dice, depth: u64) -> Json {
    match dice.below(if depth == 0 { 5 } else { 8 }) {
        0 | 1 => number(dice),
        2 => raw(pick(dice, &["null", "true", "false"])),
        3 => text(pick(dice, &TEXTS)),
        4 => raw(pick(dice, &STRINGS)),
        5 => List((0..dice.below(4)).map(|_| any(dice, depth - 1)).collect()),
        6 => {
            let name = |dice: &Dice| pick(dice, &["a", "b", "type", "", "\u{e9}", "id", "key"]).to_string();
            Object((0..dice.below(4)).map(|_| (name(dice), any(dice, depth - 1))).collect())
        }
        _ => nested(dice, depth),
    }
}

/// Nested lists and objects, at most four levels more or fewer than `depth`.
fn nested(dice: &Dice, depth: u64) -> Json {
    let levels = depth + 4 - dice.below(9).min(depth + 3);
    (0..levels).fold(raw("1"), |inner, _| match dice.below(2) {
        0 => List(vec![inner]),
        _ => Object(vec![("a".into(), inner)]),
    })
}

/// Writes values in one of the many valid ways.
pub struct Style<'a> {
    dice: &'a Dice,
    /// Adds whitespace between tokens, and escapes in strings.
    is_odd: bool,
}

impl<'a> Style<'a> {
    pub fn new(dice: &'a Dice) -> Style<'a> {
        Style { dice, is_odd: once_in(dice, 3) }
    }

    pub fn write(&self, json: &Json) -> Vec<u8> {
        let mut out = String::new();
        self.space(&mut out);
        self.value(json, &mut out);
        self.space(&mut out);
        out.into_bytes()
    }

    fn space(&self, out: &mut String) {
        if self.is_odd && once_in(self.dice, 8) {
            out.push_str(pick::<&str>(self.dice, &[" ", "\t", "\r", "\n", " \r\n", "  "]));
        }
    }

    fn value(&self, json: &Json, out: &mut String) {
        match json {
            Raw(token) => out.push_str(token),
            Text(text) => self.string(text, out),
            List(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    self.comma(at, out);
                    self.value(item, out);
                    self.space(out);
                }
                self.space(out);
                out.push(']');
            }
            Object(members) => {
                out.push('{');
                for (at, (name, item)) in members.iter().enumerate() {
                    self.comma(at, out);
                    self.string(name, out);
                    self.space(out);
                    out.push(':');
                    self.space(out);
                    self.value(item, out);
                    self.space(out);
                }
                self.space(out);
                out.push('}');
            }
        }
    }

    fn comma(&self, at: usize, out: &mut String) {
        if at > 0 {
            out.push(',');
        }
        self.space(out);
    }

    fn string(&self, text: &str, out: &mut String) {
        let is_escaped = self.is_odd && once_in(self.dice, 6);
        out.push('"');
        for c in text.chars() {
            if is_escaped && once_in(self.dice, 4) || c < ' ' {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    let escape =
                        if once_in(self.dice, 2) { format!("{unit:04x}") } else { format!("{unit:04X}") };
                    out.push_str(&format!("\\u{escape}"));
                }
            } else if matches!(c, '"' | '\\') || is_escaped && c == '/' {
                out.extend(['\\', c]);
            } else {
                out.push(c);
            }
        }
        out.push('"');
    }
}

/// The number of values in a tree.
fn size(json: &Json) -> u64 {
    1 + match json {
        List(items) => items.iter().map(size).sum(),
        Object(members) => members.iter().map(|(_, item)| size(item)).sum(),
        _ => 0,
    }
}

/// Calls `change` with the value number `at`, counted from the root.
fn change_at(json: &mut Json, at: &mut u64, change: &mut dyn FnMut(&mut Json)) {
    if *at == 0 {
        *at = u64::MAX;
        return change(json);
    }
    *at -= 1;
    let items: Vec<&mut Json> = match json {
        List(items) => items.iter_mut().collect(),
        Object(members) => members.iter_mut().map(|(_, item)| item).collect(),
        _ => Vec::new(),
    };
    for item in items {
        if *at == u64::MAX {
            return;
        }
        change_at(item, at, change);
    }
}

/// Changes what a decoder must ignore: unknown members, repeated members, their order.
pub fn vary(dice: &Dice, json: &mut Json) {
    let Object(members) = json else { return };
    match dice.below(6) {
        0 => {
            let at = dice.below(members.len() as u64 + 1) as usize;
            let value = if once_in(dice, 3) {
                any(dice, 5)
            } else {
                raw(pick(dice, &["null", "[]", "{}", "1e3", "\"\""]))
            };
            members.insert(
                at,
                (pick(dice, &["x", "", "Type", "again", "é", "key", "id", "newest"]).to_string(), value),
            );
        }
        1 => {
            let (one, other) =
                (dice.below(members.len() as u64) as usize, dice.below(members.len() as u64) as usize);
            members.swap(one, other);
        }
        2 => {
            let at = dice.below(members.len() as u64) as usize;
            members.insert(at, members[at].clone());
        }
        3 => {
            let at = dice.below(members.len() as u64 + 1) as usize;
            members.insert(at, ("type".into(), text(pick(dice, &["ping", "ack", "x"]))));
            // The first `type` counts, so the own one stays first.
            if let Some(first) = members.iter().position(|(name, _)| name == "type")
                && first == at
            {
                let own = members.remove(at);
                members.push(own);
            }
        }
        _ => {}
    }
}

/// Changes one value, which may make the object invalid.
pub fn mutate(dice: &Dice, json: &mut Json) {
    let mut at = dice.below(size(json));
    change_at(json, &mut at, &mut |value| match value {
        Raw(_) if once_in(dice, 2) => {
            *value = if once_in(dice, 4) { number(dice) } else { raw(pick(dice, &NUMBERS)) }
        }
        Text(text) if !once_in(dice, 4) => mutate_text(dice, text),
        List(items) if !once_in(dice, 4) => mutate_list(dice, items),
        Object(members) if !once_in(dice, 8) => mutate_members(dice, members),
        value => *value = any(dice, 3),
    });
}

fn mutate_list(dice: &Dice, items: &mut Vec<Json>) {
    let at = dice.below(items.len() as u64 + 1) as usize;
    match dice.below(3) {
        0 => items.insert(at, any(dice, 2)),
        1 if at < items.len() => drop(items.remove(at)),
        _ => items.extend(items.get(at).cloned()),
    }
}

fn mutate_members(dice: &Dice, members: &mut Vec<(String, Json)>) {
    let at = dice.below(members.len().max(1) as u64) as usize;
    let Some((name, value)) = members.get(at).cloned() else {
        return members.push(("a".into(), any(dice, 2)));
    };
    match dice.below(8) {
        0 => drop(members.remove(at)),
        1 => mutate_text(dice, &mut members[at].0),
        2 => members[at].1 = raw("null"),
        3 => members[at].1 = any(dice, 8),
        // The same name with another value, before or after.
        4 => members.insert(at + dice.below(2) as usize, (name, any(dice, 2))),
        5 | 6 => {
            let mut copy = value;
            mutate(dice, &mut copy);
            members.insert(dice.below(members.len() as u64 + 1) as usize, (name, copy));
        }
        _ => members.push((name, any(dice, 8))),
    }
}

pub fn mutate_text(dice: &Dice, text: &mut String) {
    let mut chars: Vec<char> = text.chars().collect();
    let at = dice.below(chars.len().max(1) as u64) as usize;
    let odd = ['=', '-', '_', '+', '/', 'A', 'z', '0', ' ', '\n', '\u{0}', 'é', 'B', '\u{1f600}', ',', '.'];
    match dice.below(9) {
        // The last digit of base64 has bits that must be zero.
        0 | 1 => {
            if let Some(digit) = chars.iter_mut().rev().find(|c| **c != '=') {
                *digit = *pick(dice, &['A', 'B', 'C', 'E', 'I', 'Q', 'g', 'w', '/', '-']);
            }
        }
        2 => drop(chars.pop()),
        3 => chars.push(*pick(dice, &odd)),
        4 => chars.insert(at, *pick(dice, &odd)),
        5 if !chars.is_empty() => chars[at] = *pick(dice, &odd),
        6 => chars.truncate(at),
        // Valid base64 of another length.
        7 => chars = BASE64_STANDARD.encode(dice.bytes(dice.below(40) as usize)).chars().collect(),
        _ => chars.extend(chars.clone()),
    }
    *text = chars.into_iter().collect();
}

/// Changes some bytes.
pub fn mutate_bytes(dice: &Dice, bytes: &mut Vec<u8>) {
    let at = dice.below(bytes.len() as u64 + 1) as usize;
    let odd: [&[u8]; 30] = [
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\"",
        b"\\",
        b" ",
        b"\t",
        b"\n",
        b"\r",
        b"\0",
        b"\x0b",
        b"\x0c",
        b"\xef\xbb\xbf",
        b"\xc2\xa0",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xff",
        b"\x80",
        b"0",
        b"-",
        b"e",
        b".",
        b"null",
        b"\\u0000",
        b"=",
        b"//",
    ];
    match dice.below(8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
        1 if at < bytes.len() => drop(bytes.remove(at)),
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..(at + dice.below(20) as usize).min(bytes.len()))),
        4 => {
            let part = bytes[at..(at + dice.below(40) as usize).min(bytes.len())].to_vec();
            bytes.splice(at..at, part);
        }
        5 => drop(bytes.splice(0..0, pick(dice, &odd).iter().copied())),
        6 => bytes.extend(pick(dice, &odd).iter()),
        _ => drop(bytes.splice(at..at, pick(dice, &odd).iter().copied())),
    }
}

/// Writes an object: 9 of 20 valid, 8 with mutated values, 3 with mutated bytes.
pub fn written(dice: &Dice, mut json: Json) -> Vec<u8> {
    for _ in 0..dice.below(3) {
        vary(dice, &mut json);
    }
    let level = dice.below(20);
    if (9..17).contains(&level) {
        for _ in 0..1 + dice.below(8) / 7 {
            mutate(dice, &mut json);
        }
    }
    let mut bytes = Style::new(dice).write(&json);
    if level >= 17 {
        for _ in 0..1 + dice.below(3) {
            mutate_bytes(dice, &mut bytes);
        }
    }
    bytes
}
