//! One entry as rows of text: time, author and audience, text, delivery state.
//!
//! Invariant: no row is wider than the screen or contains a control character; only the first row of an entry touches
//! the left edge (from three columns up), even if its text has several lines, so no row can pass for an entry of
//! another user (MANUAL#the-screen).

use crate::client::audience::Audience;
use crate::client::entry::{Entry, SendState, Source};
use crate::client::store::trust::Trust;
use crate::client::terminal::frame::{BOLD, DIM, PLAIN, Row, Span, Style};
use crate::client::text::{
    all_mentions, breaks, fitted, fitting, links, mentions, target, truncate, width, wrap,
};
use crate::name::Username;
use std::ops::Range;
use std::sync::Arc;

// These colours are legible on black and on white.
const PRIVATE: u8 = 163;
const ROOM: u8 = 31;
const PROBLEM: u8 = 160;
const VERIFIED: u8 = 28;
const NAMES: [u8; 10] = [28, 32, 62, 64, 97, 98, 130, 132, 136, 166];

const ALARM: Style = Style { color: Some(PROBLEM), ..BOLD };

/// The rows of an entry: time, author and audience, text. Further rows are indented to the text's first column. `me` is
/// the reader; `clock` formats milliseconds since 1970 as "14:05".
pub fn rows(entry: &Entry, me: &str, clock: &dyn Fn(u64) -> String, columns: usize) -> Vec<Row> {
    if entry.source == Source::Rule {
        let text = truncate(&format!("── {} ", entry.text), columns);
        let line = "─".repeat(columns.saturating_sub(width(&text)) / width("─"));
        return vec![vec![span(&(text + &line), DIM)]];
    }
    if entry.source == Source::SafetyNumber {
        return large(&entry.text, columns);
    }
    let (head, style) = head(entry);
    let head_text: String = head.iter().map(|span| span.text.as_str()).collect();
    let time = format!("{} ", clock(entry.time));
    // A narrow screen cuts the time, never the text.
    let time = fitting(&time, columns / 3);
    let mut indent = width(time);
    let mut rows = Vec::new();
    let mut first = vec![span(time, DIM)];
    if indent + width(&head_text) <= columns / 2 {
        indent += width(&head_text);
        first.extend(head);
    } else {
        // With long names or a narrow screen, the head has its own rows.
        let head_style = head.first().map_or(PLAIN, |span| span.style);
        for part in wrap(head_text.trim_end(), columns - indent) {
            first.push(span(&part, head_style));
            rows.push(std::mem::replace(&mut first, vec![margin(indent)]));
        }
    }
    let room = columns.saturating_sub(indent);
    for line in entry.text.split('\n') {
        let marks = marks(line, style, me);
        for row in breaks(line, room) {
            first.extend(marked(line, row, style, &marks, room));
            rows.push(std::mem::replace(&mut first, vec![margin(indent)]));
        }
    }
    let (mark, style) = match &entry.sending {
        None => return rows,
        Some((_, SendState::InFlight)) => (" …".to_string(), DIM),
        Some((_, SendState::Taken)) => (" ✓".to_string(), DIM),
        Some((_, SendState::Kept(waits))) => (format!(" ✓ {waits}"), DIM),
        Some((_, SendState::Partly(why))) => (format!("✓ {why}; Alt-R sends it again"), ALARM),
        Some((_, SendState::Failed(why))) => (format!("✗ {why}; Alt-R sends it again"), ALARM),
    };
    match rows.last_mut() {
        Some(row)
            if mark.starts_with(' ')
                && row.iter().map(|span| width(&span.text)).sum::<usize>() + width(&mark) <= columns =>
        {
            row.push(span(&mark, style));
        }
        _ => rows
            .extend(wrap(mark.trim_start(), room).iter().map(|part| vec![margin(indent), span(part, style)])),
    }
    rows
}

/// Digits to compare: bold, and spaced if there is room.
fn large(text: &str, columns: usize) -> Vec<Row> {
    let apart: String = text.trim().chars().flat_map(|c| [c, ' ']).collect();
    let text = if width(&apart) + 6 <= columns { apart } else { text.trim().to_string() };
    let rows = wrap(&text, columns.saturating_sub(4));
    rows.iter().map(|part| vec![margin(4.min(columns)), span(part, BOLD)]).chain([Row::new()]).collect()
}

/// The author and audience, and the style of the text.
fn head(entry: &Entry) -> (Row, Style) {
    let kind = |color| Style { color: Some(color), ..BOLD };
    let name = |name: &Username| {
        span(
            &name.to_string(),
            Style { color: Some(color_of(name)), bold: true, reverse: entry.mention, dim: false },
        )
    };
    let mark = entry.trust.map_or("", Trust::mark);
    // The mark belongs to the partner: the author of a received message, or the recipient of an own one.
    let (theirs, own) = if entry.sending.is_none() { (mark, "") } else { ("", mark) };
    let mark = span(theirs, if entry.trust == Some(Trust::Verified) { kind(VERIFIED) } else { DIM });
    match &entry.source {
        Source::User { from, to } => {
            let (open, close, style) = match to {
                Audience::Everyone => ("<", "> ".into(), PLAIN),
                Audience::Private(to) => ("[private ", format!(" → {to}{own}] "), kind(PRIVATE)),
                Audience::Room(to) => ("(room ", format!(" → {to}{own}) "), kind(ROOM)),
            };
            (vec![span(open, style), name(from), mark, span(&close, style)], PLAIN)
        }
        Source::Notice | Source::Recalled | Source::SafetyNumber | Source::Rule => {
            (vec![span("* ", DIM)], DIM)
        }
        Source::Problem => (vec![span("! ", ALARM)], ALARM),
    }
}

/// The colour of a name, always the same (FNV-1a of its folded form).
fn color_of(name: &Username) -> u8 {
    let hash = name
        .folded()
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    NAMES[hash as usize % NAMES.len()]
}

/// A highlighted part of a line: range, style, and link target.
type Mark = (Range<usize>, Style, Option<Arc<str>>);

/// Mentions and links, from left to right. They are found before the line is broken into rows, which may split them.
fn marks(line: &str, style: Style, me: &str) -> Vec<Mark> {
    let mine = mentions(line, me);
    let mut marks: Vec<Mark> = links(line)
        .map(|at| (at.clone(), style, Some(target(&line[at]).into())))
        .chain(all_mentions(line).map(|at| {
            let reverse = mine.binary_search_by_key(&at.start, |mine| mine.start).is_ok();
            (at, Style { bold: true, reverse, ..style }, None)
        }))
        .collect();
    marks.sort_by_key(|(at, ..)| at.start);
    marks
}

/// One row of a line.
fn marked(line: &str, row: Range<usize>, style: Style, marks: &[Mark], columns: usize) -> Row {
    let mut spans = Row::new();
    let mut done = row.start;
    if fitted(&line[row.clone()], columns) != &line[row.clone()] {
        return vec![span(fitted(&line[row], columns), style)];
    }
    let first = marks.partition_point(|(at, ..)| at.end <= row.start);
    for (at, style_there, link) in marks[first..].iter().take_while(|(at, ..)| at.start < row.end) {
        // Marks never overlap; if they did, the first would win.
        let at = at.start.max(done)..at.end.min(row.end);
        if at.is_empty() {
            continue;
        }
        spans.push(span(&line[done..at.start], style));
        spans.push(Span { link: link.clone(), ..span(&line[at.clone()], *style_there) });
        done = at.end;
    }
    spans.push(span(&line[done..row.end], style));
    spans
}

/// A second check: entries are already sanitised, but no control character may leave here.
pub fn span(text: &str, style: Style) -> Span {
    Span { text: text.replace(char::is_control, "\u{fffd}"), style, link: None }
}

fn margin(columns: usize) -> Span {
    span(&" ".repeat(columns), PLAIN)
}
