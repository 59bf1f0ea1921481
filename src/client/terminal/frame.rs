//! A frame: rows of text in styles.

use std::sync::Arc;

/// Columns and rows of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Columns; a wide character takes two.
    pub columns: u16,
    /// Lines of text.
    pub rows: u16,
}

/// A whole screen.
#[derive(Debug)]
pub struct Frame {
    /// The rows from the top.
    pub rows: Vec<Row>,
    /// Column and row of the cursor, from 0.
    pub cursor: (u16, u16),
    /// The real scroll position, in rows up from the newest entry.
    pub scroll: usize,
}

/// The style of a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Style {
    /// A colour of the 256-colour palette; `None` is the terminal's default.
    pub color: Option<u8>,
    /// Bold, or brighter, as the terminal shows it.
    pub bold: bool,
    /// Dim.
    pub dim: bool,
    /// Text and background colour swapped.
    pub reverse: bool,
}

/// A piece of a row in one style.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Sanitised, without line breaks.
    pub text: String,
    /// The style of the whole piece.
    pub style: Style,
    /// The link target: the whole address, in printable ASCII.
    pub link: Option<Arc<str>>,
}

/// The spans of one row, left to right.
pub type Row = Vec<Span>;

/// The terminal's default style.
pub const PLAIN: Style = Style { color: None, bold: false, dim: false, reverse: false };
/// Important text.
pub const BOLD: Style = Style { bold: true, ..PLAIN };
/// Unimportant text.
pub const DIM: Style = Style { dim: true, ..PLAIN };
/// Text across the screen.
pub const REVERSE: Style = Style { reverse: true, ..PLAIN };
