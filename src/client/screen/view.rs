//! Draws the screen: a pure function from the client's state and a size to rows of text.
//!
//! Invariant: every frame has exactly as many rows as the screen, and none is wider; it contains no control
//! character; an entry appears only as its rows (`rows`) (MANUAL#the-screen).

use super::rows::{rows, span};
use crate::client::command;
use crate::client::entry::Entry;
use crate::client::session::files::Progress;
use crate::client::terminal::editor::Editor;
use crate::client::terminal::frame::{BOLD, DIM, Frame, PLAIN, REVERSE, Row, Size};
use crate::client::text::{fitting, truncate, width};
use std::cmp::Reverse;
use std::collections::VecDeque;

/// One view in the status line.
#[derive(Debug, Clone, Default)]
pub struct Tab {
    /// "everyone", "bob✓"; for an open room "room with bob✓".
    pub name: String,
    /// Messages that arrived while another view was shown.
    pub unread: usize,
    /// Whether it is shown.
    pub current: bool,
}

/// The status line above the input.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// A warning: "CONNECTION LOST".
    pub alarm: String,
    /// All views.
    pub tabs: Vec<Tab>,
    /// "online", "online, 2 pending".
    pub link: String,
    /// A warning about safety: that there is no TLS, whether the other person's key was verified.
    pub trust: String,
    /// The reader's own name.
    pub me: String,
    /// The number of online users.
    pub online: usize,
    /// `host:port`.
    pub server: String,
    /// The prompt before the input: "> ", "bob> ".
    pub prompt: String,
}

/// Everything a frame is made of.
pub struct Screen<'a> {
    /// The entries of the view that is shown, the oldest first.
    pub entries: &'a VecDeque<Entry>,
    /// The transfers in progress.
    pub progress: &'a [Progress],
    /// The status line.
    pub status: &'a Status,
    /// The line being typed.
    pub editor: &'a Editor,
    /// Rows scrolled up, counted from the newest entry without the last `newer`.
    pub scroll: usize,
    /// Entries that arrived below what is shown.
    pub newer: usize,
    /// Messages that arrived since scrolling began.
    pub unseen: usize,
    /// The reader, whose mentions stand out.
    pub me: &'a str,
    /// Formats milliseconds since 1970 as "14:05".
    pub clock: &'a dyn Fn(u64) -> String,
}

/// How messages are protected.
const ENCRYPTION: &str = "end-to-end encrypted";
/// The most rows of progress bars, so that messages keep most of the screen; a small screen has fewer.
const MAX_BARS: usize = 4;
/// The columns that the names of the current view keep, however little room there is.
const MIN_TAB: usize = 24;
/// The fewest columns for a hint: a shorter one is useless.
const MIN_HINT: usize = 16;

/// Draws the entries with the newest lowest, the progress bars, the status line and the input line.
pub fn draw(screen: &Screen, size: Size) -> Frame {
    let (columns, height) = (usize::from(size.columns), usize::from(size.rows));
    let bars: Vec<Row> =
        screen.progress.iter().take(MAX_BARS.min(height / 4)).map(|one| bar(one, columns)).collect();
    let (mut rows, scroll) = history(screen, columns, height.saturating_sub(2 + bars.len()));
    rows.extend(bars);
    if height > 1 {
        rows.push(match screen.editor.question() {
            Some(question) => across(&question, columns),
            None => status_line(screen, scroll, columns),
        });
    }
    let label = screen.editor.label();
    let prompt = truncate(label.as_ref().unwrap_or(&screen.status.prompt), columns / 2);
    let (input, at) = screen.editor.visible(columns.saturating_sub(width(&prompt)));
    // It fits: the cursor is left of the last column, which is a u16.
    let column = u16::try_from(width(&prompt) + at).unwrap_or(0);
    if height > 0 {
        let mut row = vec![span(&prompt, BOLD)];
        for (n, line) in input.split('\n').enumerate() {
            row.extend((n > 0).then(|| span("⏎", DIM)));
            row.push(span(line, PLAIN));
        }
        let room = columns.saturating_sub(width(&prompt) + width(input) + 2);
        if let Some(hint) = hint(screen.editor).filter(|_| room >= MIN_HINT) {
            row.push(span(&format!("  {}", truncate(&hint, room)), DIM));
        }
        rows.push(row);
    }
    for row in &mut rows {
        clip(row, columns);
    }
    Frame { rows, cursor: (column, size.rows.saturating_sub(1)), scroll }
}

/// The hint behind the typed text.
fn hint(editor: &Editor) -> Option<String> {
    let command = || command::hint(editor.text()).filter(|_| editor.label().is_none());
    let usage = |usage: &command::Usage| format!("{}  {}", usage.usage, usage.explanation);
    editor.candidates().or_else(|| command().map(usage))
}

/// `height` rows of entries, and their real scroll position. Hidden entries are only counted, and wrapped for that only
/// once.
fn history(screen: &Screen, columns: usize, height: usize) -> (Vec<Row>, usize) {
    let rows_of = |entry: &Entry| rows(entry, screen.me, screen.clock, columns);
    let height_of = |entry: &Entry| match entry.wrapped.get() {
        (wrapped_for, height) if wrapped_for == columns && height > 0 => height,
        _ => {
            let height = rows_of(entry).len();
            entry.wrapped.set((columns, height));
            height
        }
    };
    let (mut needed, mut total, mut below) = (height.saturating_add(screen.scroll), 0, 0);
    for (n, entry) in screen.entries.iter().rev().enumerate() {
        if total >= needed {
            break;
        }
        let rows = height_of(entry);
        if n < screen.newer {
            (below, needed) = (below + rows, needed.saturating_add(rows));
        }
        total += rows;
    }
    let scroll = screen.scroll.saturating_add(below).min(total.saturating_sub(height));
    let (mut upward, mut hidden) = (Vec::new(), scroll);
    for entry in screen.entries.iter().rev() {
        if upward.len() >= height {
            break;
        }
        match hidden.checked_sub(height_of(entry)) {
            Some(rest) => hidden = rest,
            None => upward.extend(rows_of(entry).into_iter().rev().skip(std::mem::take(&mut hidden))),
        }
    }
    upward.resize(height, Row::new());
    upward.reverse();
    (upward, scroll)
}

/// "photo.jpg → bob ━━━━━━────── 45 % · 98.2 MB/s, 3 s left".
fn bar(progress: &Progress, columns: usize) -> Row {
    let label = truncate(&progress.label, columns / 3);
    let percent = usize::try_from(progress.percent).map_or(100, |percent| percent.min(100));
    let figures = truncate(&format!(" {percent} % · {}", progress.pace), columns / 2);
    let room = columns.saturating_sub(width(&label) + width(&figures) + 2);
    // Both signs are equally wide.
    let signs = room / width("─");
    let full = signs * percent / 100;
    let (done, left) = ("━".repeat(full), "─".repeat(signs - full));
    vec![span(&format!(" {label} "), BOLD), span(&done, BOLD), span(&left, DIM), span(&figures, PLAIN)]
}

fn status_line(screen: &Screen, scroll: usize, columns: usize) -> Row {
    let above = match (scroll, screen.unseen) {
        (0, _) => String::new(),
        (rows, 0) => format!("↑{rows}"),
        (rows, new) => format!("↑{rows} ↓{new} new"),
    };
    let people = match screen.status.online {
        1 => "1 person".into(),
        n => format!("{n} people"),
    };
    let Status { alarm, tabs, link, trust, me, server, .. } = screen.status;
    // On a narrow screen, where a line goes and whether that is safe are cut last.
    let urgent: usize = [&above, alarm, trust].into_iter().map(|part| width(part) + 3).sum();
    let tabs = tabs_line(tabs, (columns * 2 / 3).min(columns.saturating_sub(urgent)));
    let mut parts = vec![above.as_str(), &tabs, trust, alarm, link, ENCRYPTION, me, &people, server];
    parts.retain(|part| !part.is_empty());
    across(&parts.join(" · "), columns)
}

/// "1 everyone  [2 bob✓]  3 carol (3)": the numbers of the views' keys, the current view in brackets, and unread
/// messages. If there is too little room, views without unread messages are left out first; `…` counts the unread
/// ones of hidden views.
fn tabs_line(tabs: &[Tab], columns: usize) -> String {
    if let [only] = tabs {
        return only.name.clone();
    }
    let text = |(at, tab): (usize, &Tab)| {
        let unread = if tab.unread > 0 { format!(" ({})", tab.unread) } else { String::new() };
        let text = format!("{} {}{unread}", at + 1, tab.name);
        if tab.current { format!("[{text}]") } else { text }
    };
    let mut shown: Vec<(usize, &Tab)> = tabs.iter().enumerate().collect();
    loop {
        let mut line = shown.iter().copied().map(text).collect::<Vec<_>>().join("  ");
        let all: usize = tabs.iter().map(|tab| tab.unread).sum();
        let hidden = all - shown.iter().map(|(_, tab)| tab.unread).sum::<usize>();
        line += if shown.len() < tabs.len() { "  …" } else { "" };
        line += &if hidden > 0 { format!(" ({hidden})") } else { String::new() };
        let places = shown.iter().enumerate().filter(|(_, (_, tab))| !tab.current);
        let dispensable = places.min_by_key(|(place, (_, tab))| (tab.unread > 0, Reverse(*place)));
        match dispensable {
            Some((place, _)) if width(&line) > columns => _ = shown.remove(place),
            _ => return truncate(&line, columns.max(MIN_TAB)),
        }
    }
}

/// A reverse row with this text.
fn across(text: &str, columns: usize) -> Row {
    let text = truncate(&format!(" {text}"), columns);
    let padding = " ".repeat(columns.saturating_sub(width(&text)));
    vec![span(&(text + &padding), REVERSE)]
}

fn clip(row: &mut Row, columns: usize) {
    let mut left = columns;
    for span in row.iter_mut() {
        span.text.truncate(fitting(&span.text, left).len());
        left = left.saturating_sub(width(&span.text));
    }
    row.retain(|span| !span.text.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::audience::Audience;
    use crate::client::entry::{Place, SendState, Source};
    use crate::client::store::trust::Trust;
    use crate::client::terminal::editor::Completion;
    use crate::client::terminal::frame::Style;
    use crate::client::terminal::input::Key;
    use crate::client::text::{SAMPLES, measured, wrap};
    use crate::name::Username;

    fn entry(source: Source, text: &str) -> Entry {
        Entry::new(0, source, Place::Everyone, text.into())
    }

    fn name(text: &str) -> Username {
        text.parse().expect("a valid name")
    }

    fn said(text: &str) -> Entry {
        entry(Source::User { from: name("alice"), to: Audience::Everyone }, text)
    }

    fn with_frame<T>(entries: Vec<Entry>, scroll: usize, size: (u16, u16), check: impl Fn(Frame) -> T) -> T {
        with_bars(&[], entries, scroll, size, check)
    }

    fn with_bars<T>(
        progress: &[Progress],
        entries: Vec<Entry>,
        scroll: usize,
        size: (u16, u16),
        check: impl Fn(Frame) -> T,
    ) -> T {
        let mut editor = Editor::for_messages();
        editor.key(&Key::Paste("half a line".into()));
        check(drawn(&editor, progress, entries, (scroll, 0, 0), size))
    }

    fn drawn(
        editor: &Editor,
        progress: &[Progress],
        entries: Vec<Entry>,
        (scroll, newer, unseen): (usize, usize, usize),
        size: (u16, u16),
    ) -> Frame {
        let status = Status {
            alarm: String::new(),
            tabs: vec![Tab { name: "room with bob".into(), unread: 0, current: true }],
            link: "online".into(),
            trust: "verified".into(),
            me: "carol".into(),
            online: 3,
            server: "localhost:1".into(),
            prompt: "bob> ".into(),
        };
        draw(
            &Screen {
                entries: &entries.into(),
                progress,
                status: &status,
                editor,
                scroll,
                newer,
                unseen,
                me: "carol",
                clock: &|_| "14:05".into(),
            },
            Size { columns: size.0, rows: size.1 },
        )
    }

    /// The lowest two rows after these keys.
    fn input(columns: u16, keys: &[Key]) -> [String; 2] {
        let mut editor = Editor::for_messages();
        keys.iter().for_each(|key| drop(editor.key(key)));
        let frame = drawn(&editor, &[], Vec::new(), (0, 0, 0), (columns, 3));
        [text_of(&frame.rows[1]).trim_end().into(), text_of(&frame.rows[2])]
    }

    #[test]
    fn input_shows_line_breaks_and_hints() {
        let typed = |text: &str| Key::Paste(text.into());
        let [status, row] = input(80, &[typed("one\ntwo"), Key::AltEnter]);
        assert_eq!(row, "bob> one⏎two⏎");
        assert!(status.starts_with(" room with bob"));
        let question = " 2 lines pasted: Enter sends them as one message, Esc removes them";
        assert_eq!(input(80, &[typed("one\ntwo"), Key::Enter]), [question, "bob> one⏎two"]);
        let hint = "/sendfile NAME PATH  offer a file; it is sent when NAME accepts";
        assert_eq!(input(90, &[typed("/sendfile ")])[1], format!("bob> /sendfile   {hint}"));
        assert_eq!(input(40, &[typed("/sendfile ")])[1], "bob> /sendfile   /sendfile NAME PATH  o…");
        assert_eq!(input(32, &[typed("/sendfile ")])[1], "bob> /sendfile ");
        let search = [typed("/msg bob tea"), Key::Enter, typed("half"), Key::Ctrl('r'), typed("te")];
        assert_eq!(input(80, &search)[1], "(search) te: /msg bob tea");
        let find = |_: &str| Completion { start: 0, candidates: vec!["alice: ".into(), "al: ".into()] };
        let mut editor = Editor::for_messages();
        assert!(editor.complete(false, find));
        let frame = drawn(&editor, &[], Vec::new(), (0, 0, 0), (80, 1));
        assert_eq!(text_of(&frame.rows[0]), "bob> alice:   al:");
        assert_eq!((frame.cursor, frame.rows[0][2].style), ((12, 0), DIM));
    }

    #[test]
    fn message_lines_are_stacked_under_their_author() {
        let text = "one\n14:05 <bob> two\n\n  three three";
        let rows = [
            "14:05 <alice> one",
            "              14:05 <bob>",
            "              two",
            "              ",
            "                three three",
        ];
        assert_eq!(shown(vec![said(text)], 0, (28, 7))[..5], rows);
        // If the name has its own row, they are still indented.
        assert_eq!(shown(vec![said(text)], 0, (22, 7))[2], "      14:05 <bob> two");
    }

    #[test]
    fn destination_and_safety_are_cut_last() {
        let tab = |name: &str, current| Tab { name: name.into(), unread: 0, current };
        let status = Status {
            alarm: "CONNECTION LOST, trying again in 12 s, 3 pending".into(),
            tabs: vec![tab("everyone", false), tab("room with bob?", true), tab("carol", false)],
            trust: "NO TLS · not verified".into(),
            ..Status::default()
        };
        let shown = |columns| status_line(&status, columns);
        assert!(shown(60).starts_with(" [2 room with bob?]  … · NO TLS · not verified · CONN"));
        assert!(
            shown(200).starts_with(" 1 everyone  [2 room with bob?]  3 carol · NO TLS · not verified · CONN")
        );
    }

    #[test]
    fn names_of_a_large_room_are_cut_before_its_trust() {
        let names: Vec<String> = (0..31).map(|n| format!("member-{n}?")).collect();
        let tab = |name: &str, current| Tab { name: name.into(), unread: 0, current };
        let tabs = [tab("everyone", false), tab(&format!("room with {}", names.join(", ")), true)];
        let (trust, prompt) = ("not verified".into(), format!("{}> ", names.join(", ")));
        let status = Status { tabs: tabs.into(), trust, prompt, ..Status::default() };
        for columns in [48, 80, 300] {
            let line = status_line(&status, columns);
            assert!(
                line.starts_with(" [2 room with member-0?") && line.contains("… · not verified"),
                "{line}"
            );
            assert_eq!(width(&line), usize::from(columns));
        }
    }

    /// The status line of an empty screen of three rows.
    fn status_line(status: &Status, columns: u16) -> String {
        let screen = Screen {
            entries: &VecDeque::new(),
            progress: &[],
            status,
            editor: &Editor::for_messages(),
            scroll: 0,
            newer: 0,
            unseen: 0,
            me: "alice",
            clock: &|_| String::new(),
        };
        text_of(&draw(&screen, Size { columns, rows: 3 }).rows[1])
    }

    fn text_of(row: &Row) -> String {
        row.iter().map(|span| span.text.as_str()).collect()
    }

    fn shown(entries: Vec<Entry>, scroll: usize, size: (u16, u16)) -> Vec<String> {
        with_frame(entries, scroll, size, |frame| frame.rows.iter().map(text_of).collect())
    }

    fn all_kinds() -> Vec<Entry> {
        let (alice, bob) = (name("alice"), name("bob"));
        vec![
            entry(Source::User { from: alice.clone(), to: Audience::Everyone }, "hi all"),
            entry(Source::User { from: alice.clone(), to: Audience::Private(bob.clone()) }, "psst"),
            entry(Source::User { from: alice, to: Audience::Room(bob.into()) }, "in here"),
            entry(Source::Notice, "bob is online"),
            entry(Source::Problem, "the connection is lost"),
        ]
    }

    #[test]
    fn kinds_of_messages_look_different() {
        let rows = shown(all_kinds(), 0, (100, 8));
        assert_eq!(
            rows[..6],
            [
                "",
                "14:05 <alice> hi all",
                "14:05 [private alice → bob] psst",
                "14:05 (room alice → bob) in here",
                "14:05 * bob is online",
                "14:05 ! the connection is lost",
            ]
        );
        let status =
            " room with bob · verified · online · end-to-end encrypted · carol · 3 people · localhost:1";
        assert_eq!(rows[6].trim_end(), status);
        assert_eq!(width(&rows[6]), 100);
        assert_eq!(rows[7], "bob> half a line");
    }

    #[test]
    fn trust_follows_the_name_and_delivery_follows_the_message() {
        let (alice, bob) = (name("alice"), name("bob"));
        let known = |trust, entry| Entry { trust: Some(trust), ..entry };
        let own = |state, text: &str| Entry { sending: Some((1, state)), ..said(text) };
        let why = "bob is offline: your message was not delivered";
        let entries = vec![
            known(Trust::New, said("hi")),
            known(
                Trust::Verified,
                entry(Source::User { from: alice.clone(), to: Audience::Private(bob.clone()) }, "psst"),
            ),
            known(
                Trust::Verified,
                Entry {
                    source: Source::User { from: alice.clone(), to: Audience::Room(bob.clone().into()) },
                    ..own(SendState::Taken, "in here")
                },
            ),
            own(SendState::InFlight, "one"),
            own(SendState::Taken, &"x".repeat(46)),
            own(SendState::Failed(why.into()), "two"),
        ];
        assert_eq!(
            shown(entries, 0, (60, 11))[..9],
            [
                "14:05 <alice?> hi",
                "14:05 [private alice✓ → bob] psst",
                "14:05 (room alice → bob✓) in here ✓",
                "14:05 <alice> one …",
                &format!("14:05 <alice> {}", "x".repeat(46)),
                "              ✓",
                "14:05 <alice> two",
                "              ✗ bob is offline: your message was not",
                "              delivered; Alt-R sends it again",
            ]
        );
    }

    #[test]
    fn status_line_names_conversations_and_unread_counts() {
        let tab = |name: &str, unread, current| Tab { name: name.into(), unread, current };
        let mut tabs = vec![tab("everyone", 0, false), tab("bob✓", 0, true), tab("carol?", 12, false)];
        assert_eq!(tabs_line(&tabs, 60), "1 everyone  [2 bob✓]  3 carol? (12)");
        assert_eq!(tabs_line(&tabs[..1], 60), "everyone");
        tabs.extend((0..6).map(|n| tab(&format!("someone{n}"), 0, false)));
        tabs.push(tab("dave!", 1, false));
        assert_eq!(tabs_line(&tabs, 60), "1 everyone  [2 bob✓]  3 carol? (12)  10 dave! (1)  …");
        assert_eq!(tabs_line(&tabs, 40), "[2 bob✓]  3 carol? (12)  10 dave! (1)  …");
        assert_eq!(tabs_line(&tabs, 39), "[2 bob✓]  3 carol? (12)  … (1)");
        assert_eq!(tabs_line(&tabs, 20), "[2 bob✓]  … (13)");
    }

    #[test]
    fn safety_number_is_spaced_if_there_is_room() {
        let number = entry(Source::SafetyNumber, "    12345 67890 12345 67890");
        let rows = shown(vec![number.clone()], 0, (60, 4));
        assert_eq!(rows[..2], ["    1 2 3 4 5   6 7 8 9 0   1 2 3 4 5   6 7 8 9 0 ", ""]);
        assert_eq!(shown(vec![number], 0, (40, 4))[..2], ["    12345 67890 12345 67890", ""]);
    }

    #[test]
    fn narrow_screen_still_shows_author_and_audience() {
        let rows = shown(all_kinds(), 0, (20, 15));
        assert_eq!(
            rows,
            [
                "14:05 <alice>",
                "      hi all",
                "14:05 [private alice",
                "      → bob]",
                "      psst",
                "14:05 (room alice →",
                "      bob)",
                "      in here",
                "14:05 * bob is",
                "        online",
                "14:05 ! the",
                "        connection",
                "        is lost",
                " room with bob · ve…",
                "bob> half a line",
            ]
        );
    }

    #[test]
    fn forged_entry_stays_under_its_author() {
        let forged = format!("{} 14:05 <bob> I owe you", "x".repeat(20));
        let rows = shown(vec![said(&forged)], 0, (40, 5));
        assert_eq!(rows[1], "14:05 <alice> xxxxxxxxxxxxxxxxxxxx 14:05");
        assert_eq!(rows[2], "              <bob> I owe you");
    }

    #[test]
    fn frame_fits_its_screen_exactly() {
        let wide =
            "日本語 👨‍👩‍👧‍👦 e\u{301}\u{301} ☺️ averyveryveryverylongword @carol \u{1b}[2J\u{9b} fin ".repeat(9);
        let mut entries = all_kinds();
        entries.push(said(&wide));
        entries.push(said(&wide.replace(' ', "\n")));
        entries.push(entry(Source::Rule, "Monday"));
        entries.push(Entry { sending: Some((1, SendState::InFlight)), ..said("one") });
        entries.push(entry(
            Source::User { from: name(&"a".repeat(32)), to: Audience::Private(name(&"b".repeat(32))) },
            &wide,
        ));
        let sizes = (0..6).flat_map(|c| (0..6).map(move |r| (c, r)));
        for size in sizes.chain((6..100).map(|c| (c, 6 + c / 3))).chain([(300, 100), (u16::MAX, 2)]) {
            for scroll in [0, 3, usize::MAX] {
                with_frame(entries.clone(), scroll, size, |frame| {
                    assert_eq!(frame.rows.len(), usize::from(size.1));
                    assert!(frame.cursor.0 < size.0.max(1) && frame.cursor.1 < size.1.max(1), "{size:?}");
                    for row in frame.rows.iter().map(text_of) {
                        assert!(width(&row) <= usize::from(size.0), "{size:?}: {row:?}");
                        assert!(!row.contains(char::is_control), "{row:?}");
                    }
                });
            }
        }
    }

    #[test]
    fn frame_fits_with_any_measured_widths() {
        let test = std::env::current_exe().expect("this program");
        let name = "client::screen::view::tests::frames_in_all_widths";
        let drawn = std::process::Command::new(test).args(["--ignored", "--exact", name]).output();
        let drawn = drawn.expect("it runs");
        let said = String::from_utf8_lossy(&drawn.stdout);
        assert!(drawn.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    #[ignore = "changes the widths of the whole process"]
    fn frames_in_all_widths() {
        for others in 0..16 {
            for (n, (_, usual, other)) in SAMPLES.iter().enumerate() {
                measured(n, if others >> n & 1 == 0 { *usual } else { *other });
            }
            frame_fits_its_screen_exactly();
            let bars = [Progress { label: "photo.jpg → bob".into(), percent: 50, pace: "3 s left".into() }];
            for size in (0..60).map(|columns| (columns, 8)) {
                with_bars(&bars, all_kinds(), 0, size, |frame| {
                    assert!(frame.rows.iter().all(|row| width(&text_of(row)) <= size.0.into()), "{size:?}");
                });
            }
            for limit in 0..6 {
                let (short, row) = (truncate("hello", limit), &wrap("日", limit)[0]);
                assert!(width(&short) <= limit && width(row) <= limit.max(1), "{limit}: {short} {row}");
            }
        }
    }

    #[test]
    fn transfers_have_bars_between_messages_and_status_line() {
        let bar = |label: &str, percent| Progress {
            label: label.into(),
            percent,
            pace: "9.8 MB/s, 3 s left".into(),
        };
        let two = [bar("photo.jpg → bob", 25), bar(&"日本語".repeat(30), 100)];
        with_bars(&two, vec![said("hi")], 0, (60, 8), |frame| {
            let rows: Vec<String> = frame.rows.iter().map(text_of).collect();
            assert_eq!(
                rows[3..6],
                [
                    "14:05 <alice> hi",
                    " photo.jpg → bob ━━━━───────────── 25 % · 9.8 MB/s, 3 s left",
                    " 日本語日本語日本語… ━━━━━━━━━━━━ 100 % · 9.8 MB/s, 3 s left",
                ]
            );
            assert!(rows[6].starts_with(" room with bob"));
        });
        let many: Vec<Progress> = (0..9).map(|n| bar("file.zip ← alice", n * 20)).collect();
        for size in (0..40).flat_map(|columns| (0..12).map(move |rows| (columns, rows))) {
            with_bars(&many, vec![said("hi")], 0, size, |frame| {
                assert_eq!(frame.rows.len(), usize::from(size.1));
                let bars = frame.rows.iter().filter(|row| text_of(row).contains("file")).count();
                assert!(bars <= usize::from(size.1) / 4);
                for row in &frame.rows {
                    assert!(width(&text_of(row)) <= usize::from(size.0), "{size:?}");
                }
            });
        }
    }

    #[test]
    fn scrolling_stops_at_the_oldest_entry() {
        let entries: Vec<Entry> = (0..9).map(|n| said(&n.to_string())).collect();
        assert_eq!(shown(entries.clone(), 2, (60, 5))[0], "14:05 <alice> 4");
        with_frame(entries, 99, (60, 5), |frame| {
            assert_eq!(frame.scroll, 6);
            assert_eq!(text_of(&frame.rows[0]), "14:05 <alice> 0");
            assert!(text_of(&frame.rows[3]).starts_with(" ↑6 · room"));
        });
    }

    #[test]
    fn scrolled_view_does_not_move_and_counts_new_messages() {
        let entries = |count: usize| (0..count).map(|n| said(&n.to_string())).collect::<Vec<_>>();
        let editor = Editor::default();
        let before = drawn(&editor, &[], entries(9), (4, 0, 0), (60, 5));
        let mut more = entries(9);
        more.push(said(&"a long one ".repeat(20)));
        more.push(said("the last"));
        let after = drawn(&editor, &[], more, (4, 2, 2), (60, 5));
        assert_eq!(before.rows[..3], after.rows[..3]);
        assert!(after.scroll > 6, "rows of new entries count: {}", after.scroll);
        let status = text_of(&after.rows[3]);
        assert!(status.starts_with(&format!(" ↑{} ↓2 new · room", after.scroll)), "{status}");
    }

    #[test]
    fn scrolled_frame_does_not_depend_on_known_rows_below() {
        let entries: VecDeque<Entry> = (1..30).map(|n| said(&"word ".repeat(n * 7 % 60))).collect();
        let status = Status::default();
        let editor = Editor::default();
        let frame = |scroll, columns, entries: &VecDeque<Entry>| {
            let progress = &[];
            let clock = &|_| "14:05".to_string();
            let (newer, unseen, me) = (0, 0, "carol");
            let screen = Screen {
                entries,
                progress,
                status: &status,
                editor: &editor,
                scroll,
                newer,
                unseen,
                me,
                clock,
            };
            draw(&screen, Size { columns, rows: 12 }).rows
        };
        for scroll in 0..200 {
            for columns in [30, 61] {
                let fresh = entries.clone();
                fresh.iter().for_each(|entry| entry.wrapped.set((0, 0)));
                assert_eq!(frame(scroll, columns, &entries), frame(scroll, columns, &fresh), "{scroll}");
            }
        }
    }

    #[test]
    fn rule_crosses_the_screen_without_an_author() {
        let rule = |text: &str| entry(Source::Rule, text);
        assert_eq!(
            shown(vec![said("one"), rule("Monday 2 November 2026"), said("two")], 0, (40, 5))[..3],
            ["14:05 <alice> one", "── Monday 2 November 2026 ──────────────", "14:05 <alice> two"]
        );
        for columns in 0..30 {
            for row in shown(vec![rule("Monday 2 November 2026")], 0, (columns, 4)) {
                assert!(width(&row) <= usize::from(columns), "{row}");
            }
        }
    }

    #[test]
    fn wrapped_address_is_a_whole_link_in_each_row() {
        let text = "see https://example.org/a/rather/long/path?to=the#end, @carol";
        with_frame(vec![said(text)], 0, (40, 8), |frame| {
            let linked =
                frame.rows.iter().flatten().filter_map(|span| Some((&*span.text, span.link.as_deref()?)));
            let (parts, targets): (Vec<_>, Vec<_>) = linked.unzip();
            assert_eq!(parts.concat(), "https://example.org/a/rather/long/path?to=the#end");
            assert!(parts.len() > 1 && targets.iter().all(|target| *target == parts.concat()), "{targets:?}");
        });
        // No part of the address can end the escape sequence.
        let hostile =
            "https://a.org/\u{1b}\\\u{1b}]0;x\u{7} https://b.org/\u{9c}\u{202e}x https://c.org/\u{20ac}";
        with_frame(vec![said(hostile)], 0, (200, 4), |frame| {
            let links: Vec<_> = frame.rows.iter().flatten().filter_map(|span| span.link.as_deref()).collect();
            assert_eq!(links, ["https://c.org/%E2%82%AC"]);
        });
    }

    #[test]
    fn mentions_that_run_into_links_are_drawn_whole() {
        let texts = ["@http://x", "@a-https://b", "@http://x@bob", "@x-http://y", "hi", "@bob"];
        for text in texts.iter().flat_map(|one| texts.map(|two| format!("{one} {two}{one}"))) {
            for columns in 20..60 {
                let rows = shown(vec![said(&text)], 0, (columns, 9));
                assert!(rows.concat().contains(&text[..2]), "{text}: {rows:?}");
            }
            let line = shown(vec![said(&text)], 0, (200, 3))[0].clone();
            assert_eq!(line, format!("14:05 <alice> {text}"));
        }
    }

    #[test]
    fn mentions_stand_out() {
        let mut mine = said("hey @Carol and @bob");
        mine.mention = true;
        with_frame(vec![mine], 0, (60, 3), |frame| {
            let looks =
                |text: &str| frame.rows[0].iter().find(|span| span.text == text).map(|span| span.style);
            assert!(looks("alice").is_some_and(|style| style.reverse));
            assert_eq!(looks("@Carol"), Some(Style { reverse: true, ..BOLD }));
            assert_eq!(looks("@bob"), Some(BOLD));
        });
    }
}
