//! From terminal bytes to keys.
//!
//! Invariant: total and incremental. Every byte string decodes, the same bytes give the same
//! keys however they were cut, and nothing of an escape sequence ever ends as text. What was typed may be a password:
//! keys that nobody needs any more leave nothing in memory.
//! Specification: ECMA-48 section 5.4 (control sequences), xterm's "PC-style function keys"
//! and "bracketed paste mode". Not termion's own parser: that one panics on some input and
//! cannot see where a paste ends.

use std::mem::take;
use zeroize::{Zeroize, Zeroizing};

/// The longest parameters of a control sequence that are kept; real ones have under ten bytes.
const MAX_SEQUENCE: usize = 32;
/// The longest paste that is kept; it exceeds the longest message.
const MAX_PASTE: usize = 64 * 1024;
const ESCAPE: u8 = 0x1b;
const END_OF_PASTE: &[u8] = b"\x1b[201~";

/// What a person did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// A character that was typed.
    Char(char),
    /// Ends the line.
    Enter,
    /// Begins another line of the same message.
    AltEnter,
    /// Completes.
    Tab,
    /// Shift-Tab.
    BackTab,
    /// Removes to the left.
    Backspace,
    /// Removes to the right.
    Delete,
    /// One character back.
    Left,
    /// One character on.
    Right,
    /// What was typed before.
    Up,
    /// What was typed after it.
    Down,
    /// To the beginning of the line.
    Home,
    /// To its end.
    End,
    /// A screen back.
    PageUp,
    /// A screen on.
    PageDown,
    /// An arrow with Ctrl: one word back.
    WordLeft,
    /// One word on.
    WordRight,
    /// An arrow with Alt: the view before.
    AltLeft,
    /// The view after.
    AltRight,
    /// The mouse's wheel, away from the person.
    WheelUp,
    /// Towards the person.
    WheelDown,
    /// ESC alone: see [`Decoder::pending`].
    Escape,
    /// The terminal's window has the keyboard now (DECSET 1004).
    FocusIn,
    /// And no longer.
    FocusOut,
    /// With a lower-case letter, or one of ` \]^_`.
    Ctrl(char),
    /// A character that came after ESC.
    Alt(char),
    /// As it was pasted, line breaks and all.
    Paste(String),
    /// A key or a report that means nothing here.
    Unknown,
}

impl Zeroize for Key {
    fn zeroize(&mut self) {
        if let Key::Paste(text) = self {
            text.zeroize();
        }
        *self = Key::Unknown;
    }
}

/// Keys in their order, wiped when they are dropped. Whoever fills it reserves the room first: one that grows leaves
/// copies behind.
pub type Keys = Zeroizing<Vec<Key>>;

#[derive(Default)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After `ESC [` or `ESC O`: which, and the parameters so far.
    Sequence(u8, Vec<u8>),
    /// After `ESC [ M`, a mouse report of three bytes: how many are missing.
    Mouse(u8),
    /// Between the marks of a paste: the bytes so far, and how much of the end mark was seen.
    Paste(Zeroizing<Vec<u8>>, usize),
}

/// Decodes bytes as they come and keeps what is incomplete.
#[derive(Default)]
pub struct Decoder {
    state: State,
    /// The beginning of a UTF-8 character.
    partial: Vec<u8>,
    /// Whether that character came after ESC.
    alt: bool,
    keys: Keys,
}

impl Decoder {
    /// The keys these bytes complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Keys {
        // A byte completes two keys at most: one that it breaks off, and its own.
        self.keys.reserve(2 * bytes.len());
        for &byte in bytes {
            self.byte(byte);
        }
        take(&mut self.keys)
    }

    /// Whether an ESC stands alone: the key of that name, unless more follows at once.
    pub fn pending(&self) -> bool {
        matches!(self.state, State::Escape)
    }

    /// Nothing followed: what was [`pending`](Self::pending) is a key.
    pub fn flush(&mut self) -> Keys {
        if self.pending() {
            self.state = State::Text;
            self.keys.push(Key::Escape);
        }
        take(&mut self.keys)
    }

    fn byte(&mut self, byte: u8) {
        match take(&mut self.state) {
            State::Text => self.text(byte),
            State::Escape => match byte {
                b'[' | b'O' => self.state = State::Sequence(byte, Vec::new()),
                b'\r' | b'\n' => self.keys.push(Key::AltEnter),
                0x00..0x20 => {
                    self.keys.push(Key::Escape);
                    self.text(byte);
                }
                _ => {
                    self.alt = true;
                    self.text(byte);
                }
            },
            State::Sequence(kind, parameters) => self.sequence(kind, parameters, byte),
            State::Mouse(missing) => match missing {
                2.. => self.state = State::Mouse(missing - 1),
                _ => self.keys.push(Key::Unknown),
            },
            State::Paste(pasted, seen) => self.paste(pasted, seen, byte),
        }
    }

    fn text(&mut self, byte: u8) {
        if byte >= 0x80 || !self.partial.is_empty() {
            return self.utf8(byte);
        }
        let key = match byte {
            ESCAPE => {
                self.state = State::Escape;
                return;
            }
            b'\r' | b'\n' => Key::Enter,
            b'\t' => Key::Tab,
            0x00 => Key::Ctrl(' '),
            0x01..0x1b => Key::Ctrl(char::from(byte | 0x60)),
            0x1c..0x20 => Key::Ctrl(char::from(byte | 0x40)),
            0x7f if !self.alt => Key::Backspace,
            _ => return self.character(char::from(byte)),
        };
        self.keys.push(key);
    }

    fn utf8(&mut self, byte: u8) {
        self.partial.push(byte);
        match std::str::from_utf8(&self.partial) {
            Ok(text) => {
                let c = text.chars().next().unwrap_or(char::REPLACEMENT_CHARACTER);
                self.partial.zeroize();
                self.character(c);
            }
            Err(error) if error.error_len().is_none() => {}
            Err(_) => {
                let begun = self.partial.len() > 1;
                self.partial.zeroize();
                self.character(char::REPLACEMENT_CHARACTER);
                // The byte that broke a character off may begin the next one.
                if begun {
                    self.text(byte);
                }
            }
        }
    }

    fn character(&mut self, c: char) {
        self.keys.push(match (take(&mut self.alt), c) {
            // ESC DEL is Alt and Backspace together.
            (true, '\x7f') => Key::Alt(c),
            (_, c) if c.is_control() => Key::Unknown,
            (true, c) => Key::Alt(c),
            (false, c) => Key::Char(c),
        });
    }

    fn sequence(&mut self, kind: u8, mut parameters: Vec<u8>, byte: u8) {
        match byte {
            // The Linux console's function keys have a second bracket: ESC [ [ A.
            b' '..=b'?' | b'[' if byte != b'[' || parameters.is_empty() => {
                // One byte over the limit marks it as too long.
                if parameters.len() <= MAX_SEQUENCE {
                    parameters.push(byte);
                }
                self.state = State::Sequence(kind, parameters);
            }
            b'@'..=b'~' if (byte, &parameters[..]) == (b'~', b"200") => {
                self.state = State::Paste(Zeroizing::new(Vec::with_capacity(MAX_PASTE)), 0);
            }
            // Terminals that know no better form send the button, the column and the row.
            b'M' if parameters.is_empty() && kind == b'[' => self.state = State::Mouse(3),
            b'@'..=b'~' => self.keys.push(named(&parameters, byte)),
            // Broken off by something that cannot be part of it.
            _ => {
                self.keys.push(Key::Unknown);
                self.text(byte);
            }
        }
    }

    fn paste(&mut self, mut pasted: Zeroizing<Vec<u8>>, seen: usize, byte: u8) {
        if byte == END_OF_PASTE[seen] {
            if seen + 1 < END_OF_PASTE.len() {
                self.state = State::Paste(pasted, seen + 1);
            } else {
                self.keys.push(Key::Paste(String::from_utf8_lossy(&pasted).into_owned()));
            }
            return;
        }
        // Not the end mark after all. ESC occurs in it only first, so nothing else can restart it.
        let restarted = byte == ESCAPE;
        let last = if restarted { &[][..] } else { &[byte] };
        let room = MAX_PASTE - pasted.len();
        pasted.extend(END_OF_PASTE[..seen].iter().chain(last).take(room));
        self.state = State::Paste(pasted, restarted.into());
    }
}

/// The key of a complete sequence: `CSI number ; modifiers final`, or `SS3 final`.
fn named(parameters: &[u8], last: u8) -> Key {
    // A mouse report: `CSI < button ; column ; row M`.
    if parameters.first() == Some(&b'<') {
        return match (parameters.split(|byte| *byte == b';').next(), last) {
            (Some(b"<64"), b'M') => Key::WheelUp,
            (Some(b"<65"), b'M') => Key::WheelDown,
            _ => Key::Unknown,
        };
    }
    let text = if parameters.len() <= MAX_SEQUENCE { std::str::from_utf8(parameters) } else { Ok("?") };
    let mut numbers = text.unwrap_or("?").split(';').map(|number| match number {
        "" => Some(1),
        number => number.parse::<u16>().ok(),
    });
    let (Some(Some(number)), Some(modifiers), None) =
        (numbers.next(), numbers.next().unwrap_or(Some(1)), numbers.next())
    else {
        return Key::Unknown;
    };
    // One more than a set of bits: Shift 1, Alt 2, Ctrl 4.
    let modifiers = modifiers.saturating_sub(1);
    let (by_word, alt) = (modifiers & 4 != 0, modifiers & 2 != 0);
    match (last, number) {
        (b'A', _) => Key::Up,
        (b'B', _) => Key::Down,
        (b'C', _) if by_word => Key::WordRight,
        (b'D', _) if by_word => Key::WordLeft,
        (b'C', _) if alt => Key::AltRight,
        (b'D', _) if alt => Key::AltLeft,
        (b'C', _) => Key::Right,
        (b'D', _) => Key::Left,
        (b'H', _) | (b'~', 1 | 7) => Key::Home,
        (b'F', _) | (b'~', 4 | 8) => Key::End,
        (b'~', 3) => Key::Delete,
        (b'~', 5) => Key::PageUp,
        (b'~', 6) => Key::PageDown,
        (b'Z', _) => Key::BackTab,
        (b'M', 1) if parameters.is_empty() => Key::Enter,
        (b'I', 1) if parameters.is_empty() => Key::FocusIn,
        (b'O', 1) if parameters.is_empty() => Key::FocusOut,
        _ => Key::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Keys {
        Decoder::default().feed(bytes)
    }

    #[test]
    fn the_keys_of_a_keyboard_have_their_names() {
        let table: &[(&[u8], Key)] = &[
            (b"a", Key::Char('a')),
            ("é".as_bytes(), Key::Char('é')),
            ("😀".as_bytes(), Key::Char('😀')),
            (b"\r", Key::Enter),
            (b"\x1bOM", Key::Enter),
            (b"\x1b\r", Key::AltEnter),
            (b"\t", Key::Tab),
            (b"\x1b[Z", Key::BackTab),
            (b"\x1b[I", Key::FocusIn),
            (b"\x1b[O", Key::FocusOut),
            (b"\x7f", Key::Backspace),
            (b"\x08", Key::Ctrl('h')),
            (b"\x03", Key::Ctrl('c')),
            (b"\x1a", Key::Ctrl('z')),
            (b"\x1c", Key::Ctrl('\\')),
            (b"\x1bb", Key::Alt('b')),
            ("\u{1b}ä".as_bytes(), Key::Alt('ä')),
            (b"\x1b\x7f", Key::Alt('\x7f')),
            (b"\x1b[A", Key::Up),
            (b"\x1bOB", Key::Down),
            (b"\x1b[C", Key::Right),
            (b"\x1b[1;2D", Key::Left),
            (b"\x1b[1;5C", Key::WordRight),
            (b"\x1b[1;5D", Key::WordLeft),
            (b"\x1b[1;3D", Key::AltLeft),
            (b"\x1b[1;4C", Key::AltRight),
            (b"\x1b[<64;10;2M", Key::WheelUp),
            (b"\x1b[<65;100;200M", Key::WheelDown),
            (b"\x1b[<65;1;2m", Key::Unknown),
            (b"\x1b[M !!", Key::Unknown),
            (b"\x1b[M\x1b\r\xff", Key::Unknown),
            (b"\x1b[H", Key::Home),
            (b"\x1b[4~", Key::End),
            (b"\x1b[3~", Key::Delete),
            (b"\x1b[5~", Key::PageUp),
            (b"\x1b[6;5~", Key::PageDown),
            (b"\x1bOP", Key::Unknown),
            (b"\x1b[[A", Key::Unknown),
            (b"\x1b[<0;1;2M", Key::Unknown),
            (b"\x1b[?1;2c", Key::Unknown),
            (b"\xc2\x9b", Key::Unknown),
        ];
        for (bytes, key) in table {
            assert_eq!(*keys(bytes), std::slice::from_ref(key), "{bytes:?}");
        }
    }

    #[test]
    fn escape_is_a_key_only_when_nothing_follows() {
        let mut decoder = Decoder::default();
        assert_eq!(*decoder.feed(b"\x1b"), []);
        assert!(decoder.pending());
        assert_eq!(*decoder.flush(), [Key::Escape]);
        assert!(!decoder.pending());
        assert_eq!(*decoder.feed(b"[A"), [Key::Char('['), Key::Char('A')]);
        assert_eq!(*decoder.feed(b"\x1b\x1b[A"), [Key::Escape, Key::Up]);
        assert_eq!(*decoder.flush(), []);
    }

    #[test]
    fn a_paste_is_one_key_whatever_it_holds() {
        assert_eq!(
            *keys(b"\x1b[200~a\r\x1b[A\x1b\x1b[201~b"),
            [Key::Paste("a\r\x1b[A\x1b".into()), Key::Char('b')]
        );
        let mut long = b"\x1b[200~".to_vec();
        long.extend([b'x'; 2 * MAX_PASTE]);
        long.extend(b"\x1b[201~y");
        assert_eq!(*keys(&long), [Key::Paste("x".repeat(MAX_PASTE)), Key::Char('y')]);
    }

    #[test]
    fn broken_sequences_leave_no_text_behind() {
        let long = [b"\x1b[".as_slice(), &[b'1'; 500], b"A"].concat();
        assert_eq!(*keys(&long), [Key::Unknown]);
        assert_eq!(*keys(b"\x1b[1\x03"), [Key::Unknown, Key::Ctrl('c')]);
        let replaced = Key::Char(char::REPLACEMENT_CHARACTER);
        assert_eq!(*keys(b"\xff\xe2\x82a"), [replaced.clone(), replaced.clone(), Key::Char('a')]);
        assert_eq!(*keys(b"\xe2\x1b[A"), [replaced, Key::Up]);
    }
}
