//! Text as the terminal shows it: made harmless, measured, wrapped, searched for mentions.
//!
//! Invariant: what [`sanitise`] returns moves no cursor, changes no mode, reorders no neighbour
//! and hides nothing; every text of a peer or the server passes it once, on arrival.
//! Widths are the columns of a terminal that joins nothing: one that joins emoji shows less,
//! never more, so no row can overflow (README#text-from-others).

use std::ops::Range;
use unicode_normalization::UnicodeNormalization;
use unicode_width::UnicodeWidthChar;

/// Marks shown on one letter: four serve every living script, more climb into other rows.
const MAX_MARKS: usize = 4;
/// Columns at which joining stops: the largest emoji in use are families of four, two columns each.
const MAX_CLUSTER: usize = 8;
/// Lines of one message that get rows of their own: many more would push what others say out of sight.
const MAX_LINES: usize = 100;
const JOINER: char = '\u{200d}';
const EMOJI_STYLE: char = '\u{fe0f}';

/// Makes text of others harmless: line breaks become `⏎`, tabs spaces, and whatever controls the
/// terminal or deceives the eye U+FFFD; marks beyond `MAX_MARKS` on one letter are dropped. README#harmless.
pub fn sanitise(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut marks = 0;
    for c in text.replace("\r\n", "\n").chars() {
        let shown = match c {
            '\n' => '⏎',
            '\t' => ' ',
            c if is_harmful(c) => char::REPLACEMENT_CHARACTER,
            c => c,
        };
        marks = if columns(shown) == 0 { marks + 1 } else { 0 };
        if marks <= MAX_MARKS {
            clean.push(shown);
        }
    }
    clean
}

/// As [`sanitise`], but keeps the first line breaks: for the text of a message, whose lines a screen shows
/// below each other, each indented.
pub fn sanitise_lines(text: &str) -> String {
    let text = text.replace("\r\n", "\n");
    text.splitn(MAX_LINES, '\n').map(sanitise).collect::<Vec<_>>().join("\n")
}

/// Whether a character controls the terminal, the direction of text, or shows nothing at all.
/// The joiners and variation selectors stay: Persian, Hindi and emoji are written with them.
pub fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{115f}' | '\u{1160}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Whether a character leaves nothing to see where it stands alone: blanks of every kind, controls, marks and what
/// joins, and what stands for bytes that are no text.
pub fn is_blank(c: char) -> bool {
    let hollow = matches!(c, '\u{fffc}' | '\u{fffd}' | '\u{1d159}');
    hollow || c.is_whitespace() || is_harmful(c) || columns(c) == 0
}

/// The columns a text takes: the sum of its signs', whatever joins them, so that no part of it is wider alone.
pub fn width(text: &str) -> usize {
    let (mut total, mut last) = (0, 0);
    for c in text.chars() {
        match columns(c) {
            // The selector may turn a narrow sign into a wide picture.
            0 if c == EMOJI_STYLE && last == 1 => (total, last) = (total + 1, 2),
            0 => {}
            columns => (total, last) = (total + columns, columns),
        }
    }
    total
}

/// Splits into what a person takes for one character: a letter with its marks, a joined emoji.
pub fn clusters(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut chars = rest.char_indices();
        let (_, mut before) = chars.next()?;
        let mut used = columns(before);
        let joins = |before: char, c: char, used: usize| {
            let skin_tone = matches!(c, '\u{1f3fb}'..='\u{1f3ff}');
            columns(c) == 0 || ((before == JOINER || skin_tone) && used < MAX_CLUSTER && c != '\n')
        };
        let end = chars.find(|&(_, c)| {
            let ends = !joins(before, c, used);
            (before, used) = (c, used + columns(c));
            ends
        });
        let (cluster, after) = rest.split_at(end.map_or(rest.len(), |(at, _)| at));
        rest = after;
        Some(cluster)
    })
}

/// A line break takes the place of the sign that is shown for it.
fn columns(c: char) -> usize {
    if c == '\n' { 1 } else { c.width().unwrap_or(0) }
}

/// The beginning of the text that fits into `limit` columns.
pub fn fitting(text: &str, limit: usize) -> &str {
    let mut used = 0;
    let fits = |cluster: &&str| {
        used += width(cluster);
        used <= limit
    };
    let end = clusters(text).take_while(fits).map(str::len).sum();
    &text[..end]
}

/// At most `limit` columns of the text; `…` ends it where something is missing.
pub fn truncate(text: &str, limit: usize) -> String {
    if fitting(text, limit) == text {
        text.into()
    } else if limit == 0 {
        String::new()
    } else {
        fitting(text, limit - 1).to_owned() + "…"
    }
}

/// Breaks into rows of at most `limit` columns, between words where there are any. Never
/// empty; a character wider than a whole row becomes U+FFFD.
pub fn wrap(text: &str, limit: usize) -> Vec<String> {
    let limit = limit.max(1);
    let mut rows = Vec::new();
    let (mut row, mut used) = (String::new(), 0);
    for cluster in clusters(text) {
        let (cluster, columns) = match width(cluster) {
            columns if columns <= limit => (cluster, columns),
            _ => ("\u{fffd}", 1),
        };
        // Twice when the word carried over leaves no room for a wide character either.
        while used + columns > limit {
            let word = match row.rfind(' ') {
                Some(space) if cluster != " " => row.split_off(space + 1),
                _ => String::new(),
            };
            rows.push(row.trim_end_matches(' ').into());
            (used, row) = (width(&word), word);
        }
        if cluster != " " || !row.is_empty() || rows.is_empty() {
            row.push_str(cluster);
            used += columns;
        }
    }
    if !row.is_empty() || rows.is_empty() {
        rows.push(row);
    }
    rows
}

/// As texts are compared in a search: letter case, and the two ways to write a letter with marks, make no difference.
pub fn folded(text: &str) -> String {
    // Upper case first: some letters have two lower-case forms (ς and σ, s and ſ), or two letters in upper case (ß).
    text.nfd().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

/// Where somebody is addressed, in bytes: every `@` with the name after it, unless it stands inside a word.
pub fn all_mentions(text: &str) -> impl Iterator<Item = Range<usize>> {
    let in_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    text.match_indices('@').filter_map(move |(at, _)| {
        let name = &text[at + 1..];
        let length = name.find(|c| !in_name(c)).unwrap_or(name.len());
        let alone = !text[..at].ends_with(in_name);
        (alone && length > 0).then_some(at..at + 1 + length)
    })
}

/// Where the bearer of `name` is addressed, in bytes, in any letter case.
pub fn mentions(text: &str, name: &str) -> Vec<Range<usize>> {
    let addressed = |at: &Range<usize>| text[at.start + 1..at.end].eq_ignore_ascii_case(name);
    all_mentions(text).filter(addressed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// README#harmless.
    #[test]
    fn folded_texts_ignore_case_and_normal_form() {
        for (one, other) in [
            ("é", "e\u{301}"),
            ("É", "e\u{301}"),
            ("Ñandú", "n\u{303}ANDU\u{301}"),
            ("Straße", "STRASSE"),
            ("ΣΊΣΥΦΟΣ", "σίσυφος"),
            ("ПРИВЕТ, Й", "привет, и\u{306}"),
            ("ế", "E\u{302}\u{301}"),
            ("\u{1ead}", "a\u{302}\u{323}"),
            ("한글", "\u{1112}\u{1161}\u{11ab}\u{1100}\u{1173}\u{11af}"),
        ] {
            assert_eq!(folded(one), folded(other), "{one}");
        }
        assert_ne!(folded("e"), folded("é"));
    }

    #[test]
    fn nothing_that_controls_or_deceives_survives() {
        assert_eq!(sanitise("a\u{1b}[2J\u{7f}\u{9b}b"), "a\u{fffd}[2J\u{fffd}\u{fffd}b");
        assert_eq!(sanitise("one\r\ntwo\nthree\tx\r"), "one⏎two⏎three x\u{fffd}");
        for bad in "\u{61c}\u{200b}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\u{2069}\u{feff}\u{e0001}\u{e007f}".chars() {
            assert_eq!(sanitise(&format!("a{bad}b")), "a\u{fffd}b", "{bad:?}");
        }
        for c in (0..=0x9f).filter_map(char::from_u32) {
            assert!(!sanitise(&c.to_string()).contains(char::is_control));
        }
    }

    #[test]
    fn only_so_many_lines_of_a_message_get_rows() {
        assert_eq!(sanitise_lines("one\r\ntwo\n\u{9b}\u{85}\u{2028}"), "one\ntwo\n\u{fffd}\u{fffd}\u{fffd}");
        let many = sanitise_lines(&"\n".repeat(32 * 1024));
        assert_eq!(many.matches('\n').count(), MAX_LINES - 1);
        assert_eq!(many.matches('⏎').count(), 32 * 1024 - (MAX_LINES - 1));
    }

    #[test]
    fn a_line_break_is_a_character_of_its_own() {
        assert_eq!(clusters("a\n👩\u{200d}\nb").collect::<Vec<_>>(), ["a", "\n", "👩\u{200d}", "\n", "b"]);
        assert_eq!(width("a\nb"), width("a⏎b"));
    }

    #[test]
    fn what_people_write_stays_as_it_is() {
        for good in ["héllo", "e\u{301}", "日本語", "👨‍👩‍👧‍👦", "❤️", "می\u{200c}خواهم", "שלום", "👍🏽"]
        {
            assert_eq!(sanitise(good), good);
            assert_eq!(sanitise(&sanitise(good)), sanitise(good));
        }
        let towers = format!("a{}b{}", "\u{301}".repeat(100), "\u{200d}".repeat(100));
        assert_eq!(sanitise(&towers).chars().count(), 10);
    }

    #[test]
    fn widths_are_those_of_the_terminal() {
        for (text, columns) in [("", 0), ("abc", 3), ("日本", 4), ("e\u{301}x", 2), ("👍", 2), ("☺️", 2)]
        {
            assert_eq!(width(text), columns, "{text}");
        }
        assert_eq!(clusters("ae\u{301}👨‍👩‍👧b👍🏽").collect::<Vec<_>>(), ["a", "e\u{301}", "👨‍👩‍👧", "b", "👍🏽"]);
        assert_eq!(clusters(&"x\u{200d}".repeat(80)).count(), 10);
    }

    #[test]
    fn a_picture_takes_two_columns_also_where_it_is_joined_to_others() {
        assert_eq!(width("x\u{200d}☺\u{fe0f}"), 3);
        assert_eq!(width("☺\u{301}\u{fe0f}\u{fe0f}"), 2);
        // Broken elsewhere, the same signs join otherwise: no row gets wider by that.
        let joined = "a\u{200d}".repeat(8) + " b\u{200d}☺\u{fe0f}\u{200d}☺\u{fe0f}";
        for limit in 1..20 {
            let rows = wrap(&joined, limit);
            assert!(
                rows.iter().all(|row| row.chars().map(|c| width(&c.to_string())).sum::<usize>() <= limit)
            );
            assert!(rows.iter().all(|row| 2 * row.matches('☺').count() <= limit.max(2)), "{rows:?}");
        }
    }

    #[test]
    fn truncation_says_so() {
        assert_eq!(truncate("hello", 5), "hello");
        assert_eq!(truncate("hello", 4), "hel…");
        assert_eq!(truncate("日本語", 4), "日…");
        assert_eq!(truncate("hello", 1), "…");
        assert_eq!(truncate("hello", 0), "");
    }

    #[test]
    fn rows_break_between_words_and_never_overflow() {
        assert_eq!(wrap("the quick brown fox", 9), ["the quick", "brown fox"]);
        assert_eq!(wrap("hello  world", 5), ["hello", "world"]);
        assert_eq!(wrap("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
        assert_eq!(wrap("日本語", 3), ["日", "本", "語"]);
        assert_eq!(wrap("日a", 1), ["\u{fffd}", "a"]);
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap(" bcd日", 4), ["", "bcd", "日"]);
        let mixed = "a bcdef👨‍👩‍👧‍👦 e\u{301}a 日本語 👨‍👩‍👧‍👦 averyveryverylongword  ☺️ fin";
        for limit in 0..60 {
            for row in wrap(mixed, limit) {
                assert!(width(&row) <= limit.max(1), "{limit}: {row:?}");
            }
        }
    }

    #[test]
    fn only_a_whole_name_is_a_mention() {
        assert_eq!(mentions("hi @Alice, @bob @alice", "alice"), [3..9, 16..22]);
        assert_eq!(mentions("@alice@alice (@alice)", "alice"), [0..6, 14..20]);
        for other in ["@alice2", "x@alice", "@alice-b", "@alice_b", "alice", "@", "@ alice"] {
            assert!(mentions(other, "alice").is_empty(), "{other}");
        }
        assert_eq!(all_mentions("@a é@bob, x@c").collect::<Vec<_>>(), [0..2, 5..9]);
    }
}
