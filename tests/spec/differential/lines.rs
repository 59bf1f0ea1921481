//! Cases without cryptography: lines, packets, texts about files, names, passwords, lists of logins.

use super::Case;
use super::json::{Json, any, base64, mutate_bytes, mutate_text, once_in, pick, raw, text, written};
use crate::support::Dice;
use Json::{List, Object};

/// The members of an envelope: their names and forms, as [`value`] reads them.
const ENVELOPE: &str = "from:name kind:kind scope:scope recipient:name? recipient_key:32? identity:32 session:32 \
     sequence:u64 time:u64 again:32? commitment:32 nonce:12 ciphertext:bytes tag:16 signature:256";

const CLIENT: [(&str, &str); 17] = [
    ("register", "version:1 username:name salt:32 rounds:u32 password_key:32 public_key:bytes"),
    ("login_request", "version:1 username:name public_key:bytes"),
    ("challenge_response", "response:32 session_key:bytes created:u64 certificate:256 proof:256"),
    ("password_change", "response:32 salt:32 rounds:u32 password_key:32 proof:256"),
    ("resume_request", "version:1 username:name"),
    ("resume", "received:u64 proof:32"),
    ("renew", "session_key:bytes created:u64 certificate:256"),
    ("keys_request", "names:names"),
    ("encrypted_send", "id:u64 targets:names keys:keys envelope:envelope"),
    ("mailbox", "mailbox_key:bytes created:u64 certificate:256"),
    ("mail_request", "keys:hashes after:u64"),
    ("mail_done", "numbers:numbers"),
    ("grant", "peer:name transfer:16 count:u32"),
    ("ack", "received:u64"),
    ("ping", ""),
    ("pong", ""),
    ("logout", ""),
];

const SERVER: [(&str, &str); 19] = [
    ("challenge", "version:1 nonce:32 salt:32 rounds:u32"),
    ("session", "token:32 expires:u64 newest:u64"),
    ("resume_challenge", "version:1 nonce:32"),
    ("resumed", "received:u64"),
    ("presence", "full:bool more:bool joined:names left:names"),
    ("keys", "keys:people unknown:names"),
    ("encrypted_message", "envelope:envelope key:264"),
    ("sent", "id:u64 delivered:names kept:names offline:names stale:names busy:names"),
    ("lost", "id:u64 name:name"),
    ("mail", "mail:mail more:bool other:u64 until:u64"),
    ("grant", "peer:name transfer:16 count:u32"),
    ("refused", "peer:name transfer:16"),
    ("error", "code:text message:text id:u64? retry_after:u64? newest:u64?"),
    ("ack", "received:u64"),
    ("registered", ""),
    ("password_changed", ""),
    ("mailbox_set", ""),
    ("ping", ""),
    ("pong", ""),
];

const TEXTS: [(&str, &str); 5] = [
    ("file_offer", "transfer:16 key:32 name:text chunks:size sha256:32"),
    ("file_accept", "transfer:16 start:u64 session:32"),
    ("file_reject", "transfer:16"),
    ("file_cancel", "transfer:16 reason:text?"),
    ("file_done", "transfer:16"),
];

const KINDS: [&str; 12] = [
    "message",
    "room_opened",
    "room_left",
    "file_offer",
    "file_accept",
    "file_reject",
    "file_cancel",
    "file_done",
    "",
    "later",
    "a word of exactly thirty-two byte",
    "ein Wort mit zweiunddreißig Bytes",
];

/// A valid name.
pub fn valid_name(dice: &Dice) -> String {
    let first = b"abzABZ059";
    let later = b"abcxyzABCXYZ0189_-";
    let length = if once_in(dice, 4) { 32 - dice.below(3) } else { 1 + dice.below(9) };
    let rest = (1..length).map(|_| *pick(dice, later));
    [*pick(dice, first)].into_iter().chain(rest).map(char::from).collect()
}

fn number(dice: &Dice) -> u64 {
    match dice.below(4) {
        0 => dice.below(4),
        1 => *pick(dice, &[u64::MAX, u64::MAX - 1, 1 << 63, u64::from(u32::MAX), 1 << 32, 1 << 53]),
        _ => dice.next() >> dice.below(64),
    }
}

fn some(dice: &Dice, item: impl Fn(&Dice) -> Json) -> Json {
    List((0..dice.below(5)).map(|_| item(dice)).collect())
}

fn words(dice: &Dice) -> String {
    let parts =
        ["a", "é", "\u{1f600}", "\\", "\"", "\n", "\u{1}", " ", "cancelled", "/", "\u{7f}", "\u{2028}"];
    (0..dice.below(6)).map(|_| *pick(dice, &parts)).collect()
}

fn value(dice: &Dice, form: &str) -> Json {
    if let Ok(length) = form.parse() {
        return if form == "1" { raw("1") } else { base64(&dice.bytes(length)) };
    }
    match form {
        "name" => text(valid_name(dice)),
        "kind" => text(pick(dice, &KINDS)),
        "scope" => text(pick(dice, &["broadcast", "private", "room", "group", ""])),
        "text" => text(words(dice)),
        "bool" => raw(pick(dice, &["true", "false"])),
        "u64" => raw(number(dice)),
        "u32" => raw(number(dice) as u32),
        "bytes" => base64(&dice.bytes(*pick(dice, &[0, 1, 2, 3, 64, 294]))),
        "names" => some(dice, |dice| value(dice, "name")),
        "hashes" => some(dice, |dice| value(dice, "32")),
        "numbers" => some(dice, |dice| value(dice, "u64")),
        "keys" => Object(
            (0..dice.below(3))
                .map(|_| (pick(dice, &[valid_name(dice), "type".into()]).clone(), value(dice, "264")))
                .collect(),
        ),
        "people" => some(dice, |dice| {
            object(
                dice,
                "name:name identity:bytes session_key:bytes? mailbox_key:bytes? created:u64? certificate:256?",
            )
        }),
        "mail" => List((0..dice.below(3)).map(|_| object(dice, "number:u64 message:delivered")).collect()),
        "delivered" => object(dice, "envelope:envelope key:264"),
        _ => unreachable!("{form}"),
    }
}

/// An object with these members; some of the optional ones are missing or `null`.
fn object(dice: &Dice, forms: &str) -> Json {
    let mut members = Vec::new();
    for (name, form) in forms.split_whitespace().filter_map(|member| member.split_once(':')) {
        match form.strip_suffix('?') {
            _ if form == "envelope" => {
                let Object(envelope) = object(dice, ENVELOPE) else { continue };
                members.extend(envelope);
            }
            _ if form == "size" => {
                let size = if once_in(dice, 2) { number(dice) >> 16 } else { dice.below(1 << 18) };
                let chunks = size.div_ceil(65_536) + u64::from(once_in(dice, 8));
                members.extend([("size".to_string(), raw(size)), ("chunks".to_string(), raw(chunks))]);
            }
            None => members.push((name.to_string(), value(dice, form))),
            Some(form) => match dice.below(3) {
                0 => members.push((name.to_string(), raw("null"))),
                1 => members.push((name.to_string(), value(dice, form))),
                _ => {}
            },
        }
    }
    Object(members)
}

fn message(dice: &Dice, table: &[(&str, &str)]) -> Vec<u8> {
    let (kind, forms) = *pick(dice, table);
    let Object(mut members) = object(dice, forms) else { unreachable!("an object") };
    // Our own programs write the type first, which takes a faster path of the decoder.
    let at = if once_in(dice, 3) { dice.below(members.len() as u64 + 1) as usize } else { 0 };
    members.insert(at, ("type".into(), text(kind)));
    written(dice, Object(members))
}

pub fn client(dice: &Dice) -> Case {
    let table: &[_] = if once_in(dice, 30) { &SERVER } else { &CLIENT };
    Case::new(b'C', [message(dice, table)])
}

pub fn server(dice: &Dice) -> Case {
    let table: &[_] = if once_in(dice, 30) { &CLIENT } else { &SERVER };
    Case::new(b'S', [message(dice, table)])
}

pub fn file_text(dice: &Dice) -> Case {
    let (kind, forms) = *pick(dice, &TEXTS);
    Case::new(b'T', [kind.into(), written(dice, object(dice, forms))])
}

pub fn packet(dice: &Dice) -> Case {
    let name = valid_name(dice);
    let mut body =
        [&[name.len() as u8], name.as_bytes(), &dice.bytes(16), &dice.bytes(dice.below(40) as usize)]
            .concat();
    if once_in(dice, 2) {
        match dice.below(4) {
            0 => body[0] = dice.next() as u8 & 63,
            1 => body.truncate(dice.below(60) as usize),
            2 => {
                let at = dice.below(body.len() as u64) as usize;
                body[at] = dice.next() as u8;
            }
            _ => mutate_bytes(dice, &mut body),
        }
    }
    Case::new(b'P', [body])
}

/// Names: words of the interface, often disguised by similar letters, and others.
pub fn name(dice: &Dice) -> Case {
    let words =
        ["all", "everyone", "me", "operator", "private", "room", "server", "you", "ali", "al", "emma"];
    let mut name = if once_in(dice, 3) { valid_name(dice) } else { pick(dice, &words).to_string() };
    let alike = ["o0O", "l1iIL", "e3E", "a4A", "s5S", "t7T", "m", "w"];
    let disguised = name.chars().map(|c| {
        let others = alike.iter().find(|others| others.contains(c));
        match (others, dice.below(3)) {
            (Some(others), 0) => others.chars().nth(dice.below(others.len() as u64) as usize).unwrap_or(c),
            (_, 1) if once_in(dice, 3) => c.to_ascii_uppercase(),
            _ => c,
        }
    });
    name = disguised.collect();
    for _ in 0..dice.below(3) {
        match dice.below(6) {
            0 => name
                .insert(dice.below(name.len() as u64 + 1) as usize, *pick(dice, &['_', '-', '0', '1', '9'])),
            1 => name.push(*pick(dice, &['_', '-', '0', '7', 'I', 'l'])),
            2 => name = name.replace('m', "rn").replace('w', "vv"),
            3 => name.insert(0, *pick(dice, &['1', '3', '9', 'I'])),
            _ => {}
        }
    }
    if once_in(dice, 8) {
        mutate_text(dice, &mut name);
    }
    let mut bytes = name.into_bytes();
    if once_in(dice, 16) {
        mutate_bytes(dice, &mut bytes);
    }
    Case::new(b'N', [bytes])
}

/// Passwords of all kinds of space, characters with several Unicode forms, and characters with none.
pub fn password(dice: &Dice) -> Case {
    let odd = "aZ9 ~\u{a0}\u{1680}\u{2000}\u{2007}\u{200a}\u{200b}\u{202f}\u{205f}\u{3000}\u{feff}\t\u{85}\u{2028}\
        éüßñ\u{308}\u{301}\u{327}\u{212b}\u{2126}\u{fb01}\u{ff21}\u{1e9b}\u{323}\u{1d160}\u{390}\u{f1b}\u{ac00}\u{1100}\
        \u{1161}\u{11a8}\u{1f600}\u{340}\u{344}\u{958}";
    let odd: Vec<char> = odd.chars().collect();
    let typed: String = (0..dice.below(12)).map(|_| *pick(dice, &odd)).collect();
    Case::new(b'W', [typed.into_bytes()])
}

/// A list of logins in an otherwise arbitrary key file.
pub fn logins(dice: &Dice) -> Case {
    let login = |dice: &Dice| {
        let rounds = if once_in(dice, 12) {
            *pick(dice, &[99_999, 10_000_001, 0])
        } else {
            *pick(dice, &[100_000, 600_000, 10_000_000])
        };
        Object(vec![("salt".into(), value(dice, "32")), ("rounds".into(), raw(rounds))])
    };
    let count = if once_in(dice, 6) { *pick(dice, &[0, 8, 9]) } else { 1 + dice.below(3) };
    let mut list: Vec<Json> = (0..count).map(|_| login(dice)).collect();
    if once_in(dice, 8) {
        list.extend(list.first().cloned());
    }
    let mut members = vec![("version".to_string(), raw("1")), ("later".into(), any(dice, 2))];
    if !once_in(dice, 6) {
        members.insert(dice.below(3) as usize, ("logins".into(), List(list)));
    }
    let mut text = written(dice, Object(members));
    around(dice, &mut text);
    Case::new(b'L', [text])
}

/// Adds what editors and crashes leave around a file, or pads it to its maximum length or one byte more.
pub fn around(dice: &Dice, text: &mut Vec<u8>) {
    match dice.below(24) {
        0 => drop(text.splice(0..0, *b"\xef\xbb\xbf")),
        1 => text.extend_from_slice(b"\0\0"),
        2 => text.extend_from_slice(b"\r\n\0"),
        3 => text.extend_from_slice(b"\0\n"),
        4 => text.resize(16 * 1024 + dice.below(2) as usize, b' '),
        5 => drop(text.splice(0..0, *b"\xef\xbb\xbf\xef\xbb\xbf")),
        _ => {}
    }
}
