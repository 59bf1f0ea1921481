//! The characters that the terminal can show, according to the locale.
//!
//! Invariant: a terminal whose locale is set and does not name UTF-8 gets only ASCII. It could take bytes of UTF-8 for
//! control characters (the last byte of `ě` is CSI), and any user could write escape sequences to it.

use crate::client::text::columns;
use std::borrow::Cow;
use std::env;
use std::io::{self, IsTerminal};
use std::sync::LazyLock;

static UTF8: LazyLock<bool> = LazyLock::new(|| is_utf8(|name| env::var_os(name)?.into_string().ok()));

/// Whether the locale names UTF-8 or is not set at all. Reads the variables of setlocale(3) in its order; unlike
/// setlocale(3), does not take an unset locale for "C".
fn is_utf8(variable: impl Fn(&str) -> Option<String>) -> bool {
    let locale =
        ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(|name| variable(name).filter(|s| !s.is_empty()));
    locale.is_none_or(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

/// Whether the terminal can show all characters.
pub fn is_complete() -> bool {
    *UTF8
}

/// The text as this terminal can show it, in the same number of columns.
pub fn shown(text: &str) -> Cow<'_, str> {
    if is_complete() { Cow::Borrowed(text) } else { Cow::Owned(ascii(text)) }
}

/// As [`shown`], for a line of standard output: if that is not a terminal, the line stays as it is.
pub fn printed(line: &str) -> Cow<'_, str> {
    if io::stdout().is_terminal() { shown(line) } else { Cow::Borrowed(line) }
}

fn ascii(text: &str) -> String {
    let signs = text.chars().flat_map(|c| {
        let (sign, count) = match c {
            c if c.is_ascii() => (c, 1),
            '─' | '━' => ('-', 1),
            '→' => ('>', 1),
            '✓' => ('+', 1),
            '✗' => ('x', 1),
            '…' => ('.', 1),
            '·' => ('|', 1),
            c => ('?', columns(c)),
        };
        std::iter::repeat_n(sign, count)
    });
    signs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_variable_that_is_set_decides() {
        let locale = |set: &[(&str, &str)]| {
            is_utf8(|name| set.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).into()))
        };
        assert!(locale(&[]) && locale(&[("LANG", "de_DE.UTF-8")]) && locale(&[("LC_CTYPE", "C.utf8")]));
        assert!(locale(&[("LC_ALL", ""), ("LC_CTYPE", "en_US.UTF-8"), ("LANG", "C")]));
        assert!(!locale(&[("LC_ALL", "POSIX"), ("LANG", "en_US.UTF-8")]));
        assert!(!locale(&[("LANG", "C")]) && !locale(&[("LANG", "de_DE@euro")]));
    }

    #[test]
    fn ascii_text_has_no_other_byte_and_the_same_width() {
        let text = "\x1b[2m08:05 \x1b[m<bob✓> ě 漢字 e\u{301}… ─→ 🏳️";
        let shown = ascii(text);
        assert_eq!(shown, "\x1b[2m08:05 \x1b[m<bob+> ? ???? e. -> ?");
        assert!(shown.is_ascii());
    }
}
