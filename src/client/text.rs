//! Text as the terminal shows it: sanitised, measured, wrapped, searched for mentions.
//!
//! Invariant: the result of [`sanitise`] moves no cursor, changes no mode, reorders no neighbour and hides nothing;
//! every text of a peer or the server passes it once, on arrival. Widths are those of a terminal that joins nothing,
//! until [`measured`] reports what this one does (PROTOCOL#text-from-others).

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use unicode_normalization::UnicodeNormalization;
use unicode_width::UnicodeWidthChar;

/// The most marks on one letter: every living script needs at most four, and more reach into other rows.
const MAX_MARKS: usize = 4;
/// The most columns of joined emoji: the largest are families of four, two columns each.
const MAX_CLUSTER: usize = 8;
/// The most lines of one message with their own rows: more would push other messages off the screen.
const MAX_LINES: usize = 100;
/// The longest reason from a peer or the server that is shown, in characters: about two sentences.
const MAX_REASON: usize = 200;
/// The longest link, in bytes: terminals accept little more.
const MAX_LINK: usize = 2000;
const JOINER: char = '\u{200d}';
const EMOJI_STYLE: char = '\u{fe0f}';

/// Makes text from others harmless. Line breaks become `⏎`, tabs become spaces, and characters that control the
/// terminal or deceive the reader become U+FFFD; marks beyond `MAX_MARKS` on one letter are dropped.
/// PROTOCOL#harmless.
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

/// As [`sanitise`], but keeps the first 99 line breaks: the screen shows the lines of a message below each other.
pub fn sanitise_lines(text: &str) -> String {
    let text = text.replace("\r\n", "\n");
    text.splitn(MAX_LINES, '\n').map(sanitise).collect::<Vec<_>>().join("\n")
}

/// The quoted beginning of a text, to identify it.
pub fn quoted(text: &str) -> String {
    let text = sanitise(text);
    match text.char_indices().nth(20) {
        Some((end, _)) => format!("\"{}…\"", &text[..end]),
        None => format!("\"{text}\""),
    }
}

/// The quoted beginnings of several texts.
pub fn all_quoted<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    texts.map(quoted).collect::<Vec<_>>().join(", ")
}

/// Whether a character controls the terminal or the direction of text, or is invisible. Joiners and variation selectors
/// are harmless: Persian, Hindi and emoji need them.
pub fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{115f}' | '\u{1160}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Whether a character alone is invisible: blanks of every kind, controls, marks, joiners, and the replacement of bytes
/// that are not text.
pub fn is_blank(c: char) -> bool {
    let hollow = matches!(c, '\u{2d7f}' | '\u{fffc}' | '\u{fffd}' | '\u{13430}'..='\u{13442}' | '\u{1d159}');
    hollow || c.is_whitespace() || is_harmful(c) || columns(c) == 0
}

/// Texts whose width differs between terminals, with their columns in one that joins nothing, and in others.
pub const SAMPLES: [(&str, usize, usize); 4] =
    [("👩\u{200d}🚀", 4, 2), ("👍\u{1f3fd}", 4, 2), ("☺\u{fe0f}", 2, 1), ("…", 1, 2)];
/// The bits of the samples in [`OTHERS`], in their order.
const JOINED: u8 = 1;
const TONED: u8 = 2;
const UNSTYLED: u8 = 4;
const AMBIGUOUS: u8 = 8;
/// The samples for which this terminal uses the other number of columns. Measured once: every width depends on it.
static OTHERS: AtomicU8 = AtomicU8::new(0);

/// Records the columns that the terminal uses for a sample; true if that changes widths.
pub fn measured(sample: usize, columns: usize) -> bool {
    let Some((_, usual, other)) = SAMPLES.get(sample) else { return false };
    let bit = 1 << sample;
    let before = match columns {
        _ if columns == *usual => OTHERS.fetch_and(!bit, Ordering::Relaxed),
        _ if columns == *other => OTHERS.fetch_or(bit, Ordering::Relaxed),
        _ => return false,
    };
    before != OTHERS.load(Ordering::Relaxed)
}

/// The columns of a text. If this terminal joins nothing, they are the sum over its characters, so that no part is
/// wider alone.
pub fn width(text: &str) -> usize {
    width_as(OTHERS.load(Ordering::Relaxed), text)
}

fn width_as(others: u8, text: &str) -> usize {
    let (mut total, mut last, mut before) = (0, 0, ' ');
    for c in text.chars() {
        let joins = (others & JOINED != 0 && before == JOINER && last > 0 && !c.is_ascii())
            || (others & TONED != 0 && last == 2 && is_skin_tone(c));
        match columns_as(others, c) {
            // The selector may turn a narrow character into a wide emoji.
            0 if c == EMOJI_STYLE && last == 1 && others & UNSTYLED == 0 => (total, last) = (total + 1, 2),
            0 => {}
            _ if joins => {}
            columns => (total, last) = (total + columns, columns),
        }
        before = c;
    }
    total
}

fn is_skin_tone(c: char) -> bool {
    matches!(c, '\u{1f3fb}'..='\u{1f3ff}')
}

/// Splits into visible characters: a letter with its marks, a joined emoji.
pub fn clusters(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut chars = rest.char_indices();
        let (_, mut before) = chars.next()?;
        let mut used = columns(before);
        let mut is_half_flag = is_flag_letter(before);
        let end = chars.find(|&(_, c)| {
            let joins = columns(c) == 0
                || (is_half_flag && is_flag_letter(c))
                || (is_skin_tone(c) && !is_skin_tone(before))
                || (before == JOINER && used < MAX_CLUSTER && c != '\n');
            // Two regional indicators are a flag; a third begins another one.
            is_half_flag &= columns(c) == 0;
            (before, used) = (c, used + columns(c));
            !joins
        });
        let (cluster, after) = rest.split_at(end.map_or(rest.len(), |(at, _)| at));
        rest = after;
        Some(cluster)
    })
}

/// Regional indicators: two of them are a flag.
fn is_flag_letter(c: char) -> bool {
    matches!(c, '\u{1f1e6}'..='\u{1f1ff}')
}

/// The columns of one character alone. A line break counts as the sign that is shown for it.
pub fn columns(c: char) -> usize {
    columns_as(OTHERS.load(Ordering::Relaxed), c)
}

fn columns_as(others: u8, c: char) -> usize {
    let width = if others & AMBIGUOUS == 0 { c.width() } else { c.width_cjk() };
    if c == '\n' { 1 } else { width.unwrap_or(0) }
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

/// At most `limit` columns of the text; `…` ends it if something is missing.
pub fn truncate(text: &str, limit: usize) -> String {
    if fitting(text, limit) == text {
        text.into()
    } else if let Some(room) = limit.checked_sub(columns('…')) {
        fitting(text, room).to_owned() + "…"
    } else {
        fitting(text, limit).into()
    }
}

/// Breaks a text into rows of at most `limit` columns, between words if possible. Never empty; a character wider than a
/// row becomes U+FFFD, or `?` if that is too wide as well.
pub fn wrap(text: &str, limit: usize) -> Vec<String> {
    breaks(text, limit).into_iter().map(|row| fitted(&text[row], limit).into()).collect()
}

/// A row from [`breaks`], or a replacement that fits for a single character that is wider than a row.
pub fn fitted(row: &str, limit: usize) -> &str {
    let signs = [row, "\u{fffd}"];
    signs.into_iter().find(|sign| width(sign) <= limit.max(1)).unwrap_or("?")
}

/// The byte ranges of the rows for [`wrap`], without the spaces at the breaks. A character wider than a row has its
/// own.
pub fn breaks(text: &str, limit: usize) -> Vec<Range<usize>> {
    let limit = limit.max(1);
    let mut rows = Vec::new();
    let (mut row, mut used) = (0..0, 0);
    for cluster in clusters(text) {
        let columns = width(cluster).min(limit);
        // Twice if the word that moves down leaves no room for a wide character either.
        while used + columns > limit {
            let word = match text[row.clone()].rfind(' ') {
                Some(space) if cluster != " " => row.start + space + 1,
                _ => row.end,
            };
            rows.push(row.start..row.start + text[row.start..word].trim_end_matches(' ').len());
            row.start = word;
            used = width(&text[row.clone()]);
        }
        row.end += cluster.len();
        if cluster != " " || row.len() > 1 || rows.is_empty() {
            used += columns;
        } else {
            row.start = row.end;
        }
    }
    if !row.is_empty() || rows.is_empty() {
        rows.push(row);
    }
    rows
}

/// The form in which a search compares texts: letter case and Unicode normal form make no difference.
pub fn folded(text: &str) -> String {
    // Upper case first: some letters have two lower-case forms (ς and σ, s and ſ), or two upper-case letters (ß).
    text.nfd().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

/// The byte ranges of mentions: every `@` and the name after it, unless it is inside a word or a web address. A name
/// that continues as one visible word is not a mention.
pub fn all_mentions(text: &str) -> impl Iterator<Item = Range<usize>> {
    let in_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let mut links = links(text).peekable();
    text.match_indices('@').filter_map(move |(at, _)| {
        let name = &text[at + 1..];
        let length = name.find(|c| !in_name(c)).unwrap_or(name.len());
        let continues = |c: char| {
            c == char::REPLACEMENT_CHARACTER || columns(c) == 0 || (c.is_alphanumeric() && columns(c) == 1)
        };
        let alone =
            !text[..at].ends_with(|c| in_name(c) || c == '/') && !name[length..].starts_with(continues);
        while links.next_if(|link| link.end <= at).is_some() {}
        // A link may also begin within the name, as in `@http://`.
        let linked = links.peek().is_some_and(|link| link.start < at + 1 + length);
        (alone && !linked && length > 0).then_some(at..at + 1 + length)
    })
}

/// The byte ranges of mentions of `name`, in any letter case.
pub fn mentions(text: &str, name: &str) -> Vec<Range<usize>> {
    let addressed = |at: &Range<usize>| text[at.start + 1..at.end].eq_ignore_ascii_case(name);
    all_mentions(text).filter(addressed).collect()
}

/// The byte ranges of web addresses (`http://`, `https://`), without trailing punctuation. An address with an invisible
/// character is not a link: it would lead elsewhere than it seems.
pub fn links(text: &str) -> impl Iterator<Item = Range<usize>> {
    let is_outside = |c: char| c.is_whitespace() || "<>\"`{}|\\^“”„«»「」。，、！？（）".contains(c);
    let hides =
        |c: char| is_harmful(c) || matches!(c, '\u{34f}' | '\u{200c}' | JOINER | '\u{fffc}' | '\u{fffd}');
    let mut from = 0;
    std::iter::from_fn(move || {
        while let Some(at) = text[from..].find("://").map(|at| from + at) {
            from = at + 3;
            let scheme = text[..at].trim_end_matches(|c: char| c.is_ascii_alphanumeric()).len();
            let is_web = ["http", "https"].iter().any(|name| text[scheme..at].eq_ignore_ascii_case(name));
            if is_web && text[from..].starts_with(|c: char| c.is_alphanumeric() || c == '[') {
                from = text[from..].find(is_outside).map_or(text.len(), |length| from + length);
                let whole = &text[scheme..from];
                if whole.len() <= MAX_LINK && !whole.contains(hides) {
                    return Some(scheme..scheme + without_punctuation(whole).len());
                }
            }
        }
        None
    })
}

fn without_punctuation(link: &str) -> &str {
    let excess = |open, close| link.matches(close).count().saturating_sub(link.matches(open).count());
    let (mut round, mut square) = (excess('(', ')'), excess('[', ']'));
    let is_behind = |c: char| match c {
        ')' if round > 0 => {
            round -= 1;
            true
        }
        ']' if square > 0 => {
            square -= 1;
            true
        }
        c => ".,;:!?'…".contains(c),
    };
    link.trim_end_matches(is_behind)
}

/// The target of a link: characters other than printable ASCII are percent-encoded, so that they end no escape sequence
/// (OSC 8).
pub fn target(link: &str) -> String {
    let escaped = |byte: u8| match byte {
        0x21..=0x7e => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    link.bytes().map(escaped).collect()
}

/// The first 200 characters of a text from others, sanitised.
pub fn shortened(reason: &str) -> String {
    sanitise(&reason.chars().take(MAX_REASON).collect::<String>())
}

/// A duration in words.
pub fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0 => "a moment".into(),
        1 => "1 second".into(),
        seconds @ 2..120 => format!("{seconds} seconds"),
        seconds => format!("{} minutes", seconds / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// PROTOCOL#harmless.
    #[test]
    fn control_and_deceptive_characters_are_replaced() {
        assert_eq!(sanitise("a\u{1b}[2J\u{7f}\u{9b}b"), "a\u{fffd}[2J\u{fffd}\u{fffd}b");
        assert_eq!(sanitise("one\r\ntwo\nthree\tx\r"), "one⏎two⏎three x\u{fffd}");
        let blank = "\u{ad}\u{180e}\u{115f}\u{1160}\u{2800}\u{3164}\u{ffa0}\u{fff9}\u{fffa}\u{fffb}\u{e0000}\u{e0020}";
        let ranges = ('\u{2028}'..='\u{202e}').chain('\u{2060}'..='\u{206f}');
        for bad in blank.chars().chain(ranges) {
            assert_eq!(sanitise(&format!("a{bad}b")), "a\u{fffd}b", "{bad:?}");
        }
        for bad in "\u{61c}\u{200b}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\u{2069}\u{feff}\u{e0001}\u{e007f}".chars() {
            assert_eq!(sanitise(&format!("a{bad}b")), "a\u{fffd}b", "{bad:?}");
        }
        for c in (0..=0x9f).filter_map(char::from_u32) {
            assert!(!sanitise(&c.to_string()).contains(char::is_control));
        }
    }

    #[test]
    fn long_message_gets_a_limited_number_of_rows() {
        assert_eq!(sanitise_lines("one\r\ntwo\n\u{9b}\u{85}\u{2028}"), "one\ntwo\n\u{fffd}\u{fffd}\u{fffd}");
        let many = sanitise_lines(&"\n".repeat(32 * 1024));
        assert_eq!(many.matches('\n').count(), MAX_LINES - 1);
        assert_eq!(many.matches('⏎').count(), 32 * 1024 - (MAX_LINES - 1));
    }

    #[test]
    fn line_break_is_a_character_of_its_own() {
        assert_eq!(clusters("a\n👩\u{200d}\nb").collect::<Vec<_>>(), ["a", "\n", "👩\u{200d}", "\n", "b"]);
        assert_eq!(width("a\nb"), width("a⏎b"));
    }

    #[test]
    fn emoji_of_several_characters_are_one_cluster() {
        let emoji =
            ["🇩🇪", "🇪🇺", "👨‍👩‍👧‍👦", "👩🏽‍❤️‍💋‍👨🏽", "👩🏽‍🤝‍👨🏿", "👍🏽", "🏳️‍🌈", "1️⃣", "#️⃣", "❤️", "e\u{301}", "ᄒ\u{1161}\u{11ab}"];
        for one in emoji {
            assert_eq!(clusters(one).collect::<Vec<_>>(), [one]);
            let four = format!("{one}{one}x{one}");
            assert_eq!(clusters(&four).collect::<Vec<_>>(), [one, one, "x", one]);
        }
        assert_eq!(clusters("🇩🇪🇫").collect::<Vec<_>>(), ["🇩🇪", "🇫"]);
        assert_eq!(clusters("🇩a🇪").count(), 3);
        let tones = "🏽".repeat(50);
        assert_eq!(clusters(&tones).count(), 50);
    }

    #[test]
    fn ordinary_text_stays_unchanged() {
        for good in ["héllo", "e\u{301}", "日本語", "👨‍👩‍👧‍👦", "❤️", "می\u{200c}خواهم", "שלום", "👍🏽"]
        {
            assert_eq!(sanitise(good), good);
            assert_eq!(sanitise(&sanitise(good)), sanitise(good));
        }
        let towers = format!("a{}b{}", "\u{301}".repeat(100), "\u{200d}".repeat(100));
        assert_eq!(sanitise(&towers).chars().count(), 10);
    }

    #[test]
    fn widths_are_those_of_a_terminal_that_joins_nothing() {
        for (text, columns) in [("", 0), ("abc", 3), ("日本", 4), ("e\u{301}x", 2), ("👍", 2), ("☺️", 2)]
        {
            assert_eq!(width(text), columns, "{text}");
        }
        assert_eq!(clusters("ae\u{301}👨‍👩‍👧b👍🏽").collect::<Vec<_>>(), ["a", "e\u{301}", "👨‍👩‍👧", "b", "👍🏽"]);
        assert_eq!(clusters(&"x\u{200d}".repeat(80)).count(), 10);
    }

    #[test]
    fn emoji_takes_two_columns_even_when_joined_to_others() {
        assert_eq!(width("x\u{200d}☺\u{fe0f}"), 3);
        assert_eq!(width("☺\u{301}\u{fe0f}\u{fe0f}"), 2);
        // Broken at other places, the same characters join differently: no row gets wider.
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
    fn truncation_is_marked() {
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
    fn terminal_that_joins_emoji_shows_fewer_columns() {
        let widths = |others| {
            ["👩\u{200d}🚀", "👍🏽", "☺\u{fe0f}", "…", "👨\u{200d}❤\u{fe0f}\u{200d}👨", "x\u{200d}y"]
                .map(|text| width_as(others, text))
        };
        assert_eq!(widths(0), [4, 4, 2, 1, 6, 2]);
        assert_eq!(widths(JOINED), [2, 4, 2, 1, 2, 2]);
        assert_eq!(widths(TONED), [4, 2, 2, 1, 6, 2]);
        assert_eq!(widths(UNSTYLED), [4, 4, 1, 1, 5, 2]);
        assert_eq!(widths(AMBIGUOUS), [4, 4, 2, 2, 6, 2]);
        for (n, (text, usual, other)) in SAMPLES.iter().enumerate() {
            assert_eq!((width_as(0, text), width_as(1 << n, text)), (*usual, *other), "{text}");
        }
        assert_eq!(
            (width_as(TONED, "x🏽"), width_as(JOINED, "\u{200d}👩")),
            (3, 2),
            "a tone or joiner without an emoji before it joins nothing"
        );
        assert!(!measured(0, 4) && !measured(0, 3) && !measured(9, 1), "nothing new or known");
    }

    #[test]
    fn visible_part_of_a_web_address_is_a_link() {
        let found = |text: &'static str| links(text).map(|at| &text[at]).collect::<Vec<_>>();
        assert_eq!(
            found("see https://a.org/x?y=1#z, (http://b.org/a_(b)) <HTTPS://[::1]:8/>."),
            ["https://a.org/x?y=1#z", "http://b.org/a_(b)", "HTTPS://[::1]:8/"]
        );
        assert_eq!(
            found("https://k.de/K\u{f6}ln… und “http://x.y”"),
            ["https://k.de/K\u{f6}ln", "http://x.y"]
        );
        for none in [
            "ftp://a.org",
            "xhttp://a.org",
            "https://",
            "http:// a",
            "https://good.org\u{200d}.evil.org",
            "https://a\u{fffd}b.org",
        ] {
            assert!(links(none).next().is_none(), "{none:?}");
        }
        let long = format!("https://a.org/{}", ")".repeat(40_000));
        assert!(links(&long).next().is_none());
        assert_eq!(
            target("https://k.de/K\u{f6}ln;\u{1b}\\\u{9c} \u{7}"),
            "https://k.de/K%C3%B6ln;%1B\\%C2%9C%20%07"
        );
    }

    #[test]
    fn only_a_whole_name_is_a_mention() {
        assert_eq!(mentions("hi @Alice, @bob @alice", "alice"), [3..9, 16..22]);
        assert_eq!(mentions("@alice@alice (@alice)", "alice"), [0..6, 14..20]);
        for other in ["@alice2", "x@alice", "@alice-b", "@alice_b", "alice", "@", "@ alice"] {
            assert!(mentions(other, "alice").is_empty(), "{other}");
        }
        assert_eq!(all_mentions("@a é@bob, x@c").collect::<Vec<_>>(), [0..2, 5..9]);
        assert_eq!(mentions("@alice: 你好@alice吗 @alice's", "alice"), [0..6, 14..20, 24..30]);
        for seen in [
            "http://x/@alice",
            "x.org/@alice",
            "https://a@alice/b",
            "@al\u{fffd}ice",
            "@al\u{200d}ice",
            "@alice\u{301}",
            "@alicé",
            "@http://x",
            "@a-https://b",
            "@ alice",
        ] {
            assert!(all_mentions(seen).next().is_none(), "{seen}");
        }
    }
}
