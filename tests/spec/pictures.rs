//! The pictures in `tests/pictures`: the screen as the client draws it, as SVG, for a dark and a light page.

use crate::tidy::writes;
use secure_messenger::client::audience::{Audience, Partners};
use secure_messenger::client::command::COMMANDS;
use secure_messenger::client::entry::{Entry, Place, SendState, Source};
use secure_messenger::client::screen::view::{Screen, Status, Tab, draw};
use secure_messenger::client::session::files::Progress;
use secure_messenger::client::store::trust::Trust;
use secure_messenger::client::terminal::editor::Editor;
use secure_messenger::client::terminal::frame::{Frame, Size, Span, Style};
use secure_messenger::client::terminal::input::Key;
use secure_messenger::client::text::width;
use secure_messenger::crypto::public::{Fingerprint, safety_number};
use secure_messenger::name::Username;
use std::fmt::Write as _;
use std::path::Path;

const COLUMNS: u16 = 80;
/// Pixels of a column and of a row.
const CELL: (f64, f64) = (8.4, 18.0);
/// Pixels around the screen.
const MARGIN: f64 = 12.0;
/// The name of each theme, and its colours of text and background.
const THEMES: [(&str, &str, &str); 2] = [("dark", "#d0d7de", "#0d1117"), ("light", "#1f2328", "#ffffff")];

fn name(name: &str) -> Username {
    name.parse().expect("a valid name")
}

/// A message; alice's own has a state of delivery.
fn said(from: &str, to: Audience, text: &str, sending: Option<SendState>) -> Entry {
    let trust = Some(Trust::Verified).filter(|_| to != Audience::Everyone || from != "alice");
    let entry = Entry::new(0, Source::User { from: name(from), to }, Place::Here, text.into());
    Entry { trust, sending: sending.map(|state| (1, state)), ..entry }
}

fn notice(text: &str) -> Entry {
    Entry::new(0, Source::Notice, Place::Here, text.into())
}

/// The view of everyone, in which alice has sent one message to bob alone.
fn chat() -> Vec<Entry> {
    let asked = "@alice did you bring the photos?";
    let carol =
        Entry { mention: true, trust: Some(Trust::Known), ..said("carol", Audience::Everyone, asked, None) };
    vec![
        notice("logged in as alice on chat.example.org:1315"),
        notice("3 online: alice (you), bob (verified), carol (not verified)"),
        said("bob", Audience::Everyone, "good evening, everybody", None),
        carol,
        said("alice", Audience::Everyone, "all 400 of them, you have been warned", Some(SendState::Taken)),
        said("bob", Audience::Everyone, "start with the dog: https://example.org/dog", None),
        said(
            "alice",
            Audience::Private(name("bob")),
            "the cake is for carol, not a word!",
            Some(SendState::Taken),
        ),
        notice("dave is online"),
        said("alice", Audience::Everyone, "the dog it is", Some(SendState::InFlight)),
    ]
}

fn comparison() -> Vec<Entry> {
    let keys = [Fingerprint([1; 32]), Fingerprint([2; 32])];
    let number = safety_number((&name("alice"), keys[0]), (&name("bob"), keys[1]));
    let groups: Vec<_> = number.split(' ').collect();
    let rows = groups.chunks(4).map(|row| format!("    {}", row.join(" ")));
    let rows = rows.map(|row| Entry::new(0, Source::SafetyNumber, Place::Here, row));
    let mut entries = vec![notice("safety number with bob (not verified):")];
    entries.extend(rows);
    entries.push(notice(
        "compare it with bob in person or by phone, not in this chat: if all 60 digits match, type /verify bob yes; if \
         not, someone may be intercepting your messages",
    ));
    entries.push(notice("bob is verified"));
    entries
}

fn transfer() -> Vec<Entry> {
    let to_bob = || Audience::Room(Partners::from(name("bob")));
    vec![
        said(
            "bob",
            Audience::Room(Partners::from(name("alice"))),
            "and the one where she jumps into the lake",
            None,
        ),
        said("alice", to_bob(), "on its way, with all the others", Some(SendState::Taken)),
        notice(
            "\"holiday photos.zip\" (805.3 MB) is offered to bob, who must accept it first; /cancel 1 withdraws it",
        ),
        notice("sending \"holiday photos.zip\" (805.3 MB) to bob"),
        said("alice", to_bob(), "it takes ten seconds", Some(SendState::Taken)),
    ]
}

fn help() -> Vec<Entry> {
    let listed = COMMANDS.iter().filter(|usage| usage.is_listed());
    listed.map(|usage| notice(&format!("{:<20} {}", usage.usage, usage.explanation))).collect()
}

fn frame(rows: u16, entries: Vec<Entry>, progress: &[Progress], with: Option<&str>, typed: &str) -> Frame {
    let tab = |text: &str, current, unread| Tab { name: text.into(), unread, current };
    let status = Status {
        alarm: String::new(),
        tabs: vec![
            tab("everyone", with.is_none(), 0),
            tab(if with.is_some() { "room with bob✓" } else { "bob✓" }, with.is_some(), 0),
        ],
        link: "online".into(),
        trust: if with.is_some() { "verified".into() } else { String::new() },
        me: "alice".into(),
        online: 3,
        server: "chat.example.org:1315".into(),
        prompt: with.map_or("> ".into(), |with| format!("{with}> ")),
    };
    let mut editor = Editor::for_messages();
    typed.chars().for_each(|c| drop(editor.key(&Key::Char(c))));
    let clock = |_| "20:15".to_string();
    let (entries, editor) = (entries.into(), &editor);
    let (scroll, newer, unseen) = (0, 0, 0);
    let me = "alice";
    draw(
        &Screen {
            entries: &entries,
            progress,
            status: &status,
            editor,
            scroll,
            newer,
            unseen,
            me,
            clock: &clock,
        },
        Size { columns: COLUMNS, rows },
    )
}

/// A colour of xterm's 256-colour palette.
fn color(index: u8) -> String {
    let level = |n: u8| if n == 0 { 0 } else { 55 + 40 * n };
    match index {
        16..=231 => {
            let n = index - 16;
            format!("#{:02x}{:02x}{:02x}", level(n / 36), level(n / 6 % 6), level(n % 6))
        }
        _ => panic!("the screen uses only the palette's cube, not {index}"),
    }
}

fn svg(frame: &Frame, (_, text, background): (&str, &str, &str)) -> String {
    let (width_of, height_of) = CELL;
    let (columns, rows) = (f64::from(COLUMNS), frame.rows.len() as f64);
    let (across, down) = (columns * width_of + 2.0 * MARGIN, rows * height_of + 2.0 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{across:.0}\" height=\"{down:.0}\" \
         font-family=\"ui-monospace,Menlo,Consolas,monospace\" font-size=\"14\" xml:space=\"preserve\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{background}\"/>\n"
    );
    let mut cell = |column: usize, row: usize, span: &Span| {
        let (x, y) = (MARGIN + column as f64 * width_of, MARGIN + row as f64 * height_of);
        let length = width(&span.text) as f64 * width_of;
        let Style { color: index, bold, dim, reverse } = span.style;
        let ink = index.map_or(text.to_string(), color);
        let (ink, paper) = if reverse { (background.to_string(), Some(ink)) } else { (ink, None) };
        if let Some(paper) = paper {
            let rectangle = format!("width=\"{length:.1}\" height=\"{height_of}\" fill=\"{paper}\"");
            writeln!(out, "<rect x=\"{x:.1}\" y=\"{y:.1}\" {rectangle}/>").expect("a string");
        }
        let weight = if bold { " font-weight=\"bold\"" } else { "" };
        let faint = if dim { " opacity=\"0.6\"" } else { "" };
        let shown = span.text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let place = format!("x=\"{x:.1}\" y=\"{:.1}\" textLength=\"{length:.1}\"", y + 0.75 * height_of);
        writeln!(out, "<text {place} fill=\"{ink}\"{weight}{faint}>{shown}</text>").expect("a string");
    };
    for (row, spans) in frame.rows.iter().enumerate() {
        let mut column = 0;
        for span in spans {
            if !span.text.trim().is_empty() || span.style.reverse {
                cell(column, row, span);
            }
            column += width(&span.text);
        }
    }
    let (column, row) = frame.cursor;
    let cursor = Span { text: " ".into(), style: Style { reverse: true, ..Style::default() }, link: None };
    cell(column.into(), row.into(), &cursor);
    out + "</svg>\n"
}

#[test]
fn pictures_match_the_screen() {
    let bar = Progress {
        label: "holiday photos.zip → bob".into(),
        percent: 22,
        pace: "55.9 MB/s, 11 s left".into(),
    };
    let scenes = [
        ("chat", frame(13, chat(), &[], None, "")),
        ("safety-number", frame(13, comparison(), &[], Some("bob"), "")),
        ("file", frame(11, transfer(), &[bar], Some("bob"), "/sendf")),
        ("help", frame(24, help(), &[], None, "")),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures");
    for (scene, frame) in &scenes {
        for theme in THEMES {
            let (path, picture) = (folder.join(format!("{scene}-{}.svg", theme.0)), svg(frame, theme));
            if writes("PICTURES") {
                std::fs::write(&path, &picture).expect("written");
            }
            let kept = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                kept == picture,
                "{path:?} is stale: PICTURES=write cargo test --test spec pictures renews it"
            );
        }
    }
}
