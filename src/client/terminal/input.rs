//! From terminal bytes to keys.
//!
//! Invariant: total, incremental and pure. Every byte string decodes, the same bytes give the same keys however they
//! are cut, and no part of an escape sequence becomes text. No state lasts for ever: the caller passes the time, and
//! silence ends incomplete input ([`Decoder::deadline`]). Input may be a password, so dropped keys are wiped.
//! Specification: ECMA-48 (5.4 control sequences, 5.6 control strings), xterm's "PC-style function keys", "bracketed
//! paste mode" and "modifyOtherKeys", rxvt's keys, kitty's `CSI u`. Not termion's own parser: that one panics on some
//! input and cannot see where a paste ends.

use std::mem::take;
use std::time::{Duration, Instant};
use zeroize::{Zeroize, Zeroizing};

/// Wait after ESC for the rest of a key. A mobile network delays it by up to 200 ms; a user who presses Escape hardly
/// notices.
const ESCAPE_WAIT: Duration = Duration::from_millis(300);
/// Silence that ends a sequence, a control string or a paste: the rest is lost.
const SEQUENCE_WAIT: Duration = Duration::from_secs(1);
/// Ctrl-C ends a sequence or paste only if it arrives alone, after this silence: in a paste it is an ordinary
/// character.
const ALONE: Duration = Duration::from_millis(100);
/// The longest parameters of a control sequence, in bytes; real ones have under 20.
const MAX_SEQUENCE: usize = 32;
/// The longest paste, in bytes: more than the longest message.
const MAX_PASTE: usize = 64 * 1024;
const ESCAPE: char = '\x1b';
const END_OF_PASTE: &[u8] = b"\x1b[201~";

/// A decoded key or report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// A character that was typed.
    Char(char),
    /// Enter: ends the line.
    Enter,
    /// Alt-Enter: begins another line of the same message.
    AltEnter,
    /// Tab: completes.
    Tab,
    /// Shift-Tab.
    BackTab,
    /// Removes the character to the left.
    Backspace,
    /// Removes the character to the right.
    Delete,
    /// One character back.
    Left,
    /// One character forward.
    Right,
    /// To the previous line of the history.
    Up,
    /// To the next line of the history.
    Down,
    /// To the beginning of the line.
    Home,
    /// To the end of the line.
    End,
    /// A screen up.
    PageUp,
    /// A screen down.
    PageDown,
    /// An arrow with Ctrl: one word back.
    WordLeft,
    /// One word forward.
    WordRight,
    /// An arrow with Alt: to the previous view.
    AltLeft,
    /// To the next view.
    AltRight,
    /// The mouse wheel, up.
    WheelUp,
    /// The mouse wheel, down.
    WheelDown,
    /// ESC alone, after 300 ms.
    Escape,
    /// The window has got the focus (DECSET 1004).
    FocusIn,
    /// The window has lost the focus.
    FocusOut,
    /// Ctrl with a lower-case letter or one of ` \]^_`.
    Ctrl(char),
    /// Alt with a character: it came after ESC.
    Alt(char),
    /// Pasted text, with its line breaks.
    Paste(String),
    /// The end mark of a paste that silence had already ended.
    PasteEnd,
    /// The terminal's report of its cursor: row and column, from 1.
    Position(u16, u16),
    /// A key or a report without a meaning here.
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

/// Keys in order, wiped on drop. Reserve the capacity before filling it: growth leaves copies behind.
pub type Keys = Zeroizing<Vec<Key>>;

#[derive(Default)]
enum State {
    #[default]
    Ground,
    /// After one ESC, or after two: some terminals send Alt that way.
    Escape { twice: bool },
    /// After CSI (`[`) or SS3 (`O`): the parameters and intermediates so far.
    Sequence { kind: char, twice: bool, text: Vec<u8> },
    /// After the introducer of OSC, DCS, APC, PM or SOS: whether anything followed, and whether that was ESC, which
    /// may begin the end.
    String { kind: char, begun: bool, escape: bool },
    /// After `CSI M`, a mouse report of three bytes: the number still missing.
    Mouse(u8),
    /// Between the marks of a paste: the bytes so far, and the length of the end mark seen.
    Paste(Zeroizing<Vec<u8>>, usize),
}

/// Decodes bytes as they arrive and keeps incomplete ones.
#[derive(Default)]
pub struct Decoder {
    state: State,
    /// The beginning of a UTF-8 character.
    partial: Vec<u8>,
    /// When bytes arrived last.
    fed: Option<Instant>,
    keys: Keys,
}

impl Decoder {
    /// The keys that these bytes, read at `now`, complete.
    pub fn feed(&mut self, bytes: &[u8], now: Instant) -> Keys {
        let silence = self.fed.map(|fed| now.saturating_duration_since(fed));
        // Two keys a byte, and two more if it follows a state that an earlier read has left, such as two ESC.
        self.keys.reserve(2 * bytes.len() + 2);
        if bytes == [3] && silence >= Some(ALONE) {
            self.end();
        }
        self.fed = Some(now);
        for &byte in bytes {
            self.byte(byte);
        }
        take(&mut self.keys)
    }

    /// When an incomplete sequence or paste ends unless more arrives; `None` without one.
    pub fn deadline(&self) -> Option<Instant> {
        let wait = match self.state {
            State::Ground if self.partial.is_empty() => return None,
            State::Escape { .. } => ESCAPE_WAIT,
            _ => SEQUENCE_WAIT,
        };
        self.fed.map(|fed| fed + wait)
    }

    /// The deadline has passed: the keys of the incomplete input.
    pub fn expire(&mut self) -> Keys {
        self.end();
        take(&mut self.keys)
    }

    fn end(&mut self) {
        if !take(&mut self.partial).is_empty() {
            self.character(char::REPLACEMENT_CHARACTER);
        }
        let key = match take(&mut self.state) {
            State::Ground => return,
            State::Escape { twice } => {
                self.keys.extend(twice.then_some(Key::Escape));
                Key::Escape
            }
            // Nothing has followed: the user pressed Alt and this character.
            State::Sequence { kind, text, .. } if text.is_empty() => Key::Alt(kind),
            State::String { kind, begun: false, .. } => Key::Alt(kind),
            State::Paste(pasted, _) => pasted_key(&pasted),
            _ => Key::Unknown,
        };
        // 8-bit introducers are not keys.
        self.keys.push(if matches!(key, Key::Alt(c) if c.is_control()) { Key::Unknown } else { key });
    }

    fn byte(&mut self, byte: u8) {
        match take(&mut self.state) {
            State::Mouse(missing) => match missing {
                2.. => self.state = State::Mouse(missing - 1),
                _ => self.keys.push(Key::Unknown),
            },
            State::Paste(pasted, seen) => self.paste(pasted, seen, byte),
            state => {
                self.state = state;
                self.utf8(byte);
            }
        }
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
                // An 8-bit control character, from a terminal that sends those as single bytes.
                let control = matches!(byte, 0x80..0xa0) && !begun;
                self.character(if control { char::from(byte) } else { char::REPLACEMENT_CHARACTER });
                // The byte that interrupted a character may begin the next one.
                if begun {
                    self.byte(byte);
                }
            }
        }
    }

    fn character(&mut self, c: char) {
        match take(&mut self.state) {
            State::Escape { twice } => self.escape(twice, c),
            State::Sequence { kind, twice, text } => self.sequence(kind, twice, text, c),
            State::String { kind, escape, .. } => match c {
                // Cancelled, or at its end: ST of one or two characters, or xterm's BEL for OSC.
                '\x18' | '\x1a' | '\u{9c}' => {}
                '\x07' if matches!(kind, ']' | '\u{9d}') => {}
                '\\' if escape => {}
                _ if escape => self.escape(false, c),
                _ => self.state = State::String { kind, begun: true, escape: c == ESCAPE },
            },
            _ => self.ground(c),
        }
    }

    fn ground(&mut self, c: char) {
        let key = match c {
            ESCAPE => return self.state = State::Escape { twice: false },
            '\u{8f}' | '\u{9b}' => return self.begin(c, false),
            '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}' => return self.begin(c, false),
            '\r' | '\n' => Key::Enter,
            '\t' => Key::Tab,
            '\0' => Key::Ctrl(' '),
            '\x7f' => Key::Backspace,
            '\x01'..='\x1a' => Key::Ctrl(char::from(c as u8 | 0x60)),
            '\x1c'..='\x1f' => Key::Ctrl(char::from(c as u8 | 0x40)),
            c if c.is_control() => Key::Unknown,
            c => Key::Char(c),
        };
        self.keys.push(key);
    }

    fn escape(&mut self, twice: bool, c: char) {
        let sequence = matches!(c, '[' | 'O');
        // With an arrow, the two ESC mean Alt.
        self.keys.extend((twice && !sequence).then_some(Key::Escape));
        match c {
            ESCAPE => self.state = State::Escape { twice: true },
            '[' | 'O' | 'P' | 'X' | ']' | '^' | '_' => self.begin(c, twice),
            '\r' | '\n' => self.keys.push(Key::AltEnter),
            // ESC DEL is Alt-Backspace.
            c if c == '\x7f' || !c.is_control() => self.keys.push(Key::Alt(c)),
            c => {
                self.keys.push(Key::Escape);
                self.ground(c);
            }
        }
    }

    /// Begins a sequence or a string, by the character after ESC or the equivalent 8-bit character.
    fn begin(&mut self, c: char, twice: bool) {
        self.state = match c {
            '[' | 'O' | '\u{8f}' | '\u{9b}' => State::Sequence { kind: c, twice, text: Vec::new() },
            kind => State::String { kind, begun: false, escape: false },
        };
    }

    fn sequence(&mut self, kind: char, twice: bool, mut text: Vec<u8>, c: char) {
        let control = matches!(kind, '[' | '\u{9b}');
        let number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
        match c {
            // Older terminals send the button, the column and the row as bytes.
            'M' if control && text.is_empty() => self.state = State::Mouse(3),
            '~' if control && text == b"200" => {
                self.state = State::Paste(Zeroizing::new(Vec::with_capacity(MAX_PASTE)), 0);
            }
            // An intermediate byte is the final one of rxvt's keys with Shift, and of the keypad's space.
            '$' if control && number => self.keys.push(named(control, &text, '~')),
            ' ' if !control && text.is_empty() => self.keys.push(Key::Char(' ')),
            // The Linux console's function keys have a second bracket: ESC [ [ A.
            ' '..='?' | '[' if c != '[' || text.is_empty() => {
                // One byte more than the limit marks it as too long.
                text.extend((text.len() <= MAX_SEQUENCE).then_some(c as u8));
                self.state = State::Sequence { kind, twice, text };
            }
            '@'..='~' => {
                let key = match (named(control, &text, c), twice) {
                    (Key::Left, true) => Key::AltLeft,
                    (Key::Right, true) => Key::AltRight,
                    (key, twice) => {
                        self.keys.extend(twice.then_some(Key::Escape));
                        key
                    }
                };
                self.keys.push(key);
            }
            // Interrupted by a byte that cannot be part of it.
            _ => {
                self.keys.push(Key::Unknown);
                self.ground(c);
            }
        }
    }

    fn paste(&mut self, mut pasted: Zeroizing<Vec<u8>>, seen: usize, byte: u8) {
        if byte == END_OF_PASTE[seen] {
            if seen + 1 < END_OF_PASTE.len() {
                self.state = State::Paste(pasted, seen + 1);
            } else {
                self.keys.push(pasted_key(&pasted));
            }
            return;
        }
        // Not the end mark. ESC is only its first byte, so only ESC can restart it.
        let restarted = byte == END_OF_PASTE[0];
        let last = if restarted { &[][..] } else { &[byte] };
        let room = MAX_PASTE - pasted.len();
        pasted.extend(END_OF_PASTE[..seen].iter().chain(last).take(room));
        self.state = State::Paste(pasted, restarted.into());
    }
}

fn pasted_key(bytes: &[u8]) -> Key {
    Key::Paste(String::from_utf8_lossy(bytes).into_owned())
}

/// The keys of complete input.
pub fn keys(bytes: &[u8]) -> Keys {
    Decoder::default().feed(bytes, Instant::now())
}

/// Recognises pastes in the keys of each read. Several lines in one read are a paste, with or without marks: nobody
/// types that fast. So is text before a late end mark. The rest of a paste may arrive later: several keys in one read
/// behind a paste belong to it, until a key other than Enter arrives alone, or the line is sent.
#[derive(Default)]
pub struct Pastes {
    may_continue: bool,
}

impl Pastes {
    /// Whether the rest of a paste may follow.
    pub fn may_continue(&self) -> bool {
        self.may_continue
    }

    /// Joins pasted text.
    pub fn join(&mut self, mut keys: Keys) -> Keys {
        let is_text = |key: &&Key| matches!(key, Key::Char(_) | Key::Enter | Key::Tab);
        let has_ended = keys.contains(&Key::PasteEnd);
        let is_rest = self.may_continue && keys.iter().filter(is_text).count() > 1;
        if !(has_ended || are_lines(&keys) || is_rest) {
            let is_paste = keys.iter().any(|key| matches!(key, Key::Paste(_)));
            // A line end may be a read of its own, and Enter may answer the question whether to send the paste.
            let is_inert = |key: &Key| *key == Key::Enter || is_report(key);
            self.may_continue = is_paste || self.may_continue && keys.iter().all(is_inert);
            return keys;
        }
        self.may_continue = !has_ended;
        let mut text = String::with_capacity(4 * keys.len());
        let mut joined = Keys::new(Vec::with_capacity(keys.len() + 1));
        for key in keys.drain(..) {
            match key {
                Key::Char(c) | Key::Alt(c) => text.push(c),
                Key::Enter | Key::AltEnter => text.push('\n'),
                Key::Tab => text.push('\t'),
                Key::Paste(mut pasted) => {
                    text.push_str(&pasted);
                    pasted.zeroize();
                }
                key if is_report(&key) => joined.push(key),
                _ => {}
            }
        }
        joined.push(Key::Paste(text));
        joined
    }
}

/// Terminal reports stay reports in a paste: they are not keys.
fn is_report(key: &Key) -> bool {
    matches!(key, Key::FocusIn | Key::FocusOut | Key::Position(..))
}

/// Whether a line end has text on both sides, or a text has a line end on both sides.
pub fn are_lines(keys: &[Key]) -> bool {
    let is_end = |key: &Key| match key {
        Key::Enter => Some(true),
        Key::Char(_) | Key::Alt(_) => Some(false),
        _ => None,
    };
    let mut ends: Vec<bool> = keys.iter().filter_map(is_end).collect();
    ends.dedup();
    ends.len() > 2
}

/// A key that is sent by its code: `CSI code ; modifiers u`, or xterm's `CSI 27 ; modifiers ; code ~`.
fn coded(code: u32, modifiers: u32) -> Key {
    let (shift, alt, ctrl) = (modifiers & 1 != 0, modifiers & 2 != 0, modifiers & 4 != 0);
    match char::from_u32(code).unwrap_or_default() {
        ESCAPE => Key::Escape,
        '\r' if shift || alt || ctrl => Key::AltEnter,
        '\r' => Key::Enter,
        '\t' if shift => Key::BackTab,
        '\t' => Key::Tab,
        '\x7f' | '\x08' if alt => Key::Alt('\x7f'),
        '\x7f' | '\x08' => Key::Backspace,
        // The private-use codes are kitty's keys without text; Super and others have no meaning here.
        c if c.is_control() || matches!(c, '\u{e000}'..='\u{f8ff}') || modifiers & 0x38 != 0 => Key::Unknown,
        c if ctrl && (c.is_ascii_alphabetic() || " \\]^_".contains(c)) => Key::Ctrl(c.to_ascii_lowercase()),
        _ if ctrl => Key::Unknown,
        c if alt => Key::Alt(c),
        c if shift => Key::Char(c.to_uppercase().next().unwrap_or(c)),
        c => Key::Char(c),
    }
}

/// The key of a complete sequence: `CSI number ; modifiers final` (`control`), or `SS3 modifiers final`.
fn named(control: bool, text: &[u8], last: char) -> Key {
    // A mouse report: `CSI < button ; column ; row M`.
    if text.first() == Some(&b'<') {
        return match (text.split(|byte| *byte == b';').next(), last) {
            (Some(b"<64"), 'M') => Key::WheelUp,
            (Some(b"<65"), 'M') => Key::WheelDown,
            _ => Key::Unknown,
        };
    }
    let Some(numbers) = numbers(text) else { return Key::Unknown };
    let number = |at: usize| numbers.get(at).and_then(|(number, _)| *number);
    let (first, second) = match control {
        true => (number(0), number(1)),
        false => (None, number(1).or(number(0))),
    };
    // A key was released.
    if numbers.get(1).is_some_and(|(_, kind)| *kind == Some(3)) {
        return Key::Unknown;
    }
    // Modifiers are one more than a bit set: Shift 1, Alt 2, Ctrl 4.
    let modifiers = second.unwrap_or(1).saturating_sub(1);
    let (by_word, alt) = (modifiers & 4 != 0, modifiers & 2 != 0);
    match (last, first) {
        ('A' | 'a', _) => Key::Up,
        ('B' | 'b', _) => Key::Down,
        ('C', _) if by_word => Key::WordRight,
        ('D', _) if by_word => Key::WordLeft,
        ('C', _) if alt => Key::AltRight,
        ('D', _) if alt => Key::AltLeft,
        // rxvt's arrows: CSI with Shift, SS3 with Ctrl.
        ('c', None) if !control => Key::WordRight,
        ('d', None) if !control => Key::WordLeft,
        ('C', _) | ('c', None) => Key::Right,
        ('D', _) | ('d', None) => Key::Left,
        ('~', Some(27)) => number(2).map_or(Key::Unknown, |code| coded(code, modifiers)),
        ('u', Some(code)) => coded(code, modifiers),
        ('H', _) | ('~' | '^' | '@', Some(1 | 7)) => Key::Home,
        ('F', _) | ('~' | '^' | '@', Some(4 | 8)) => Key::End,
        ('~' | '^' | '@', Some(3)) => Key::Delete,
        ('~' | '^' | '@', Some(5)) => Key::PageUp,
        ('~' | '^' | '@', Some(6)) => Key::PageDown,
        ('~', Some(201)) => Key::PasteEnd,
        ('Z', _) => Key::BackTab,
        ('R', Some(row)) if row > 0 => match (row.try_into(), second.unwrap_or(1).try_into()) {
            (Ok(row), Ok(column)) => Key::Position(row, column),
            _ => Key::Unknown,
        },
        ('I', None) if control && text.is_empty() => Key::FocusIn,
        ('O', None) if control && text.is_empty() => Key::FocusOut,
        // The keypad in application mode, which another program may have left on.
        ('M', _) if !control => Key::Enter,
        ('I', _) if !control => Key::Tab,
        ('X', _) if !control => Key::Char('='),
        ('j'..='y', _) if !control => Key::Char(char::from(last as u8 & 0x3f)),
        _ => Key::Unknown,
    }
}

/// The parameters, each with its second part behind a colon; `None` if they are not numbers or too long.
fn numbers(text: &[u8]) -> Option<Vec<(Option<u32>, Option<u32>)>> {
    let text =
        std::str::from_utf8(text).ok().filter(|text| text.len() <= MAX_SEQUENCE && !text.contains('+'))?;
    let number = |part: Option<&str>| match part {
        None | Some("") => Some(None),
        Some(part) => part.parse().ok().map(Some),
    };
    let parameter = |part: &str| {
        let mut parts = part.split(':');
        Some((number(parts.next())?, number(parts.next())?))
    };
    text.split(';').map(parameter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of pieces, each with the milliseconds before it. Deadlines in the pauses are applied.
    fn timed(pieces: &[(u64, &[u8])]) -> Vec<Key> {
        let (mut decoder, mut now, mut keys) = (Decoder::default(), Instant::now(), Vec::new());
        for (pause, bytes) in pieces {
            let next = now + Duration::from_millis(*pause);
            if decoder.deadline().is_some_and(|deadline| deadline <= next) {
                keys.extend(decoder.expire().drain(..));
            }
            keys.extend(decoder.feed(bytes, next).drain(..));
            now = next;
        }
        keys
    }

    #[test]
    fn keyboard_keys_are_decoded() {
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
            (b"\x1b[7~", Key::Home),
            (b"\x1b[8~", Key::End),
            (b"\x1bOc", Key::WordRight),
            (b"\x1bOd", Key::WordLeft),
            (b"\x1b[c", Key::Right),
            (b"\x1b[d", Key::Left),
            (b"\x1b[a", Key::Up),
            (b"\x1bOb", Key::Down),
            (b"\x1b[3^", Key::Delete),
            (b"\x1b[3$", Key::Delete),
            (b"\x1b[5@", Key::PageUp),
            (b"\x1b\x1b[D", Key::AltLeft),
            (b"\x1b\x1bOC", Key::AltRight),
            (b"\x1bO5C", Key::WordRight),
            (b"\x1bOo", Key::Char('/')),
            (b"\x1bOp", Key::Char('0')),
            (b"\x1bO ", Key::Char(' ')),
            (b"\x1b[97u", Key::Char('a')),
            (b"\x1b[97;2u", Key::Char('A')),
            (b"\x1b[97;5u", Key::Ctrl('a')),
            (b"\x1b[97;5:3u", Key::Unknown),
            (b"\x1b[50;3u", Key::Alt('2')),
            (b"\x1b[13u", Key::Enter),
            (b"\x1b[13;2u", Key::AltEnter),
            (b"\x1b[27u", Key::Escape),
            (b"\x1b[57352u", Key::Unknown),
            (b"\x1b[97;9u", Key::Unknown),
            (b"\x1b[27;5;97~", Key::Ctrl('a')),
            (b"\x1b[27;2;13~", Key::AltEnter),
            (b"\x1b[24;80R", Key::Position(24, 80)),
            (b"\x1b[201~", Key::PasteEnd),
            (b"\x1bOP", Key::Unknown),
            (b"\x1b[4;1$y", Key::Unknown),
            (b"\x1b[?2026;2$y", Key::Unknown),
            (b"\x1b[1 q", Key::Unknown),
            (b"\x1b[~", Key::Unknown),
            (b"\x1b[>0;276;0c", Key::Unknown),
            (b"\x1b[8;24;80t", Key::Unknown),
            (b"\x1b[+5A", Key::Unknown),
            (b"\x9bA", Key::Up),
            ("\u{9b}1;5C".as_bytes(), Key::WordRight),
            ("\u{8f}B".as_bytes(), Key::Down),
            ("\u{84}".as_bytes(), Key::Unknown),
            (b"\x1b[[A", Key::Unknown),
            (b"\x1b[<0;1;2M", Key::Unknown),
            (b"\x1b[?1;2c", Key::Unknown),
        ];
        for (bytes, key) in table {
            assert_eq!(*keys(bytes), std::slice::from_ref(key), "{bytes:?}");
        }
    }

    #[test]
    fn escape_is_a_key_only_when_nothing_follows() {
        assert_eq!(timed(&[(0, b"\x1b"), (400, b"[A")]), [Key::Escape, Key::Char('['), Key::Char('A')]);
        assert_eq!(timed(&[(0, b"\x1b"), (299, b"[A")]), [Key::Up]);
        assert_eq!(timed(&[(0, b"\x1b"), (60, b"\r")]), [Key::AltEnter]);
        assert_eq!(timed(&[(0, b"\x1b"), (60, b"b")]), [Key::Alt('b')]);
        assert_eq!(*keys(b"\x1b\x1b[A"), [Key::Escape, Key::Up]);
        assert_eq!(timed(&[(0, b"\x1b\x1b"), (400, b"")]), [Key::Escape, Key::Escape]);
        assert_eq!(*keys(b"\x1b\x1bx"), [Key::Escape, Key::Alt('x')]);
    }

    #[test]
    fn sequence_that_has_begun_waits_one_second() {
        assert_eq!(timed(&[(0, b"\x1b["), (900, b"1;"), (900, b"5C")]), [Key::WordRight]);
        assert_eq!(timed(&[(0, b"\x1b[1"), (1100, b"x")]), [Key::Unknown, Key::Char('x')]);
        assert_eq!(timed(&[(0, b"\x1bO"), (900, b"d")]), [Key::WordLeft]);
        assert_eq!(
            timed(&[(0, b"\x1b[20"), (900, b"0~/exit\r\x1b[2"), (900, b"01~")]),
            [Key::Paste("/exit\r".into())]
        );
        assert_eq!(timed(&[(0, b"\xe2\x82"), (1100, b"x")]), [Key::Char('\u{fffd}'), Key::Char('x')]);
        // Alt with a character that begins a sequence.
        for c in ['O', '[', 'P', ']'] {
            assert_eq!(
                timed(&[(0, format!("\x1b{c}").as_bytes()), (1100, b"x")]),
                [Key::Alt(c), Key::Char('x')]
            );
        }
        assert_eq!(timed(&[(0, "\u{9b}".as_bytes()), (1100, b"x")]), [Key::Unknown, Key::Char('x')]);
    }

    #[test]
    fn control_string_is_discarded_completely() {
        for begin in
            ["\x1b]", "\x1bP", "\x1b_", "\x1b^", "\x1bX", "\u{9d}", "\u{90}", "\u{9f}", "\u{9e}", "\u{98}"]
        {
            for end in ["\x1b\\", "\u{9c}", "\x18", "\x1a"] {
                let string = format!("a{begin}11;rgb:0/0/0\r/exit\r“Ü\x03{end}b");
                for cut in 0..string.len() {
                    let (first, second) = string.as_bytes().split_at(cut);
                    assert_eq!(
                        timed(&[(0, first), (200, second)]),
                        [Key::Char('a'), Key::Char('b')],
                        "{string:?}"
                    );
                }
            }
            let open = format!("{begin}10;?");
            assert_eq!(timed(&[(0, open.as_bytes()), (1100, b"b")]), [Key::Unknown, Key::Char('b')]);
            assert_eq!(
                timed(&[(0, open.as_bytes()), (200, b"\x03"), (0, b"b")]),
                [Key::Unknown, Key::Ctrl('c'), Key::Char('b')]
            );
            // Another sequence cancels it.
            assert_eq!(*keys(format!("{open}\x1b[A").as_bytes()), [Key::Up]);
        }
        assert_eq!(*keys(b"\x1b]0;t\x07b"), [Key::Char('b')]);
    }

    #[test]
    fn paste_without_its_end_ends_by_silence_or_ctrl_c() {
        let pasted = Key::Paste("a\r".into());
        assert_eq!(timed(&[(0, b"\x1b[200~a\r"), (1100, b"b")]), [pasted.clone(), Key::Char('b')]);
        assert_eq!(timed(&[(0, b"\x1b[200~a\r"), (200, b"\x03")]), [pasted, Key::Ctrl('c')]);
        // In a paste it is a character.
        let all = Key::Paste("a\x03\r/exit\r".into());
        assert_eq!(timed(&[(0, b"\x1b[200~a"), (0, b"\x03"), (0, b"\r/exit\r\x1b[201~")]), [all]);
    }

    #[test]
    fn rest_of_a_paste_sends_nothing_until_a_single_key() {
        for begin in [b"\x1b[200~a\r\x1b[201~".as_slice(), b"one\rtwo\r"] {
            let mut pastes = Pastes::default();
            let mut read = |bytes: &[u8]| pastes.join(keys(bytes)).to_vec();
            let paste = |text: &str| vec![Key::Paste(text.into())];
            assert!(matches!(read(begin)[..], [Key::Paste(_)]));
            assert_eq!(read(b"/exit\r"), paste("/exit\n"));
            assert_eq!(read(b"\x1b[I"), [Key::FocusIn]);
            assert_eq!(read(b"\r"), [Key::Enter]);
            assert_eq!(read(b"\r\r"), paste("\n\n"));
            assert_eq!(read(b"b"), [Key::Char('b')]);
            assert_eq!(read(b"b\r"), [Key::Char('b'), Key::Enter]);
            assert!(matches!(read(begin)[..], [Key::Paste(_)]));
            assert_eq!(read(b"b\r\x1b[201~"), paste("b\n"));
            assert_eq!(read(b"b\r"), [Key::Char('b'), Key::Enter], "its end mark has come");
        }
    }

    #[test]
    fn lines_of_one_read_are_a_paste() {
        let together = |bytes: &[u8]| Pastes::default().join(keys(bytes)).to_vec();
        let paste = |text: &str| vec![Key::Paste(text.into())];
        assert_eq!(together(b"one\rtwo\r"), paste("one\ntwo\n"));
        assert_eq!(together(b"\r/exit\n"), paste("\n/exit\n"));
        assert_eq!(together(b"a\t\x1b[A\x03\x1b/\rb"), paste("a\t/\nb"));
        assert_eq!(together(b"a\x1b[I\rb"), [vec![Key::FocusIn], paste("a\nb")].concat());
        assert_eq!(together(b"rest\r\x1b[201~"), paste("rest\n"));
        for typed in
            [&b"one\r"[..], b"\r", b"\rone", b"\x1b[A\r\x1b[A", b"one\r\x1b[200~x\x1b[201~", b"a\x1b[B"]
        {
            assert_eq!(*Pastes::default().join(keys(typed)), *keys(typed), "{typed:?}");
        }
    }

    #[test]
    fn paste_is_one_key_whatever_it_contains() {
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
