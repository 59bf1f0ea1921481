//! A terminal window with a shell, for tests that press keys and read the screen.
//!
//! An emulator interprets everything that is written to a pty. The pty is the controlling terminal of the shell's
//! session, so Ctrl-C, Ctrl-Z, `/dev/tty`, job control and hangups work.

use super::{DEADLINE, Folder, signal};
use pty_process::blocking;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT};
use signal_hook::flag::register_conditional_shutdown;
use std::fs::{File, OpenOptions, read_to_string};
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Child;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once};
use std::thread;
use std::time::{Duration, Instant};
use vt100::Parser;

/// The pause between two checks whether a key was read.
const LOOK: Duration = Duration::from_millis(1);
/// The shell runs these commands first. Some machines have no program `clear`.
const START: &str = "PS1='ready> '; clear() { printf '\\033[H\\033[2J'; }\n";
const COLUMNS: u16 = 80;
const ROWS: u16 = 24;

/// A shell in a window of 80 by 24. Dropping it closes the window.
pub struct Terminal {
    /// The shell's home.
    pub home: Arc<Folder>,
    pub shell: Child,
    pty: Arc<File>,
    /// The end of the pty that the shell uses.
    end: File,
    window: Arc<Window>,
}

struct Window {
    shown: Mutex<Shown>,
    changed: Condvar,
}

struct Shown {
    emulator: Parser<Requests>,
    /// All output since the last [`Terminal::record`].
    written: Vec<u8>,
    /// The terminal accepts no output.
    held: bool,
}

/// The requests in the output that do not change the screen.
#[derive(Default)]
struct Requests {
    bells: usize,
    title: String,
    replies: String,
}

impl vt100::Callbacks for Requests {
    fn audible_bell(&mut self, _: &mut vt100::Screen) {
        self.bells += 1;
    }

    fn set_window_title(&mut self, _: &mut vt100::Screen, title: &[u8]) {
        self.title = String::from_utf8_lossy(title).into_owned();
    }

    fn unhandled_csi(
        &mut self,
        screen: &mut vt100::Screen,
        private: Option<u8>,
        _: Option<u8>,
        parameters: &[&[u16]],
        last: char,
    ) {
        // The program asks for the position of the cursor (CPR).
        if private.is_none() && parameters == [&[6][..]] && last == 'n' {
            let (row, column) = screen.cursor_position();
            self.replies += &format!("\x1b[{};{}R", row + 1, column + 1);
        }
    }
}

/// The style of a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    pub bold: bool,
    pub dim: bool,
    pub reverse: bool,
    pub colour: vt100::Color,
}

impl Look {
    pub const PLAIN: Look = Look { bold: false, dim: false, reverse: false, colour: vt100::Color::Default };
}

fn nonzero(length: u16) -> NonZeroU16 {
    NonZeroU16::new(length).expect("a size")
}

impl Shown {
    fn rows(&self) -> String {
        let screen = self.emulator.screen();
        screen.rows(0, screen.size().1.get()).map(|row| row.trim_end().to_string() + "\n").collect()
    }
}

impl Window {
    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().expect("the emulator does not panic")
    }

    /// Reads output until all programs have closed the terminal.
    fn show(&self, mut pty: &File) {
        let mut piece = [0; 16 * 1024];
        while let Ok(length @ 1..) = pty.read(&mut piece) {
            let mut shown = self.changed.wait_while(self.lock(), |shown| shown.held).expect("no panic");
            shown.written.extend(&piece[..length]);
            shown.emulator.process(&piece[..length]);
            let replies = std::mem::take(&mut shown.emulator.callbacks_mut().replies);
            drop(shown);
            self.changed.notify_all();
            // An error means that the program has ended.
            let _ = pty.write_all(replies.as_bytes());
        }
    }
}

/// Handles signals that may be ignored, as under `nohup` or in a script's background. A shell would inherit that they
/// are ignored; it does not inherit a handler.
fn ignore_no_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signal in [SIGHUP, SIGINT, SIGQUIT] {
            let ends = Arc::new(AtomicBool::new(true));
            register_conditional_shutdown(signal, 128 + signal, ends).expect("a handler");
        }
    });
}

impl Terminal {
    pub fn new() -> Terminal {
        ignore_no_signals();
        let home = Arc::new(Folder::new());
        let start = home.path("start");
        std::fs::write(&start, START).expect("written");
        let (pty, pts) = blocking::open().expect("a pty");
        let pty = Arc::new(File::from(OwnedFd::from(pty)));
        let shell = blocking::Command::new("sh")
            .env("HOME", &home.0)
            .env("ENV", &start)
            .env("TERM", "xterm-256color")
            .env("LC_ALL", "C.UTF-8")
            .env_remove("NO_COLOR")
            .spawn(pts)
            .expect("a shell");
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY);
        let end = options.open(format!("/proc/{}/fd/0", shell.id())).expect("its terminal");
        let (columns, rows) = (nonzero(COLUMNS), nonzero(ROWS));
        let emulator = Parser::new_with_callbacks(rows, columns, 0, Requests::default());
        let shown = Mutex::new(Shown { emulator, written: Vec::new(), held: false });
        let window = Arc::new(Window { shown, changed: Condvar::new() });
        let (showing, read) = (window.clone(), pty.clone());
        thread::spawn(move || showing.show(&read));
        let terminal = Terminal { home, shell, pty, end, window };
        terminal.resize(COLUMNS, ROWS);
        terminal.wait_for_shell();
        terminal
    }

    /// Types text or other bytes, and waits until the program has read them: otherwise the client would read several
    /// lines at once and take them for a paste.
    pub fn text(&self, text: &str) {
        (&*self.pty).write_all(text.as_bytes()).expect("the terminal is open");
        let deadline = Instant::now() + DEADLINE;
        while self.is_unread() {
            assert!(Instant::now() < deadline, "{text:?} is not read:\n{}", self.screen());
            thread::park_timeout(LOOK);
        }
    }

    fn is_unread(&self) -> bool {
        let mut end = [PollFd::new(&self.end, PollFlags::IN)];
        poll(&mut end, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("polled");
        end[0].revents() == PollFlags::IN
    }

    /// Presses keys by name: `Enter`, `PageUp`, `C-c` for Ctrl-C, `M-2` for Alt-2.
    pub fn keys(&self, names: &[&str]) {
        names.iter().for_each(|name| self.text(&key(name)));
    }

    /// Types a line.
    pub fn enter(&self, line: &str) {
        self.text(line);
        self.keys(&["Enter"]);
    }

    /// Pastes text between marks; the program must have switched bracketed paste on.
    pub fn paste(&self, text: &str) {
        assert!(self.window.lock().emulator.screen().bracketed_paste());
        self.text(&format!("\x1b[200~{}\x1b[201~", text.replace('\n', "\r")));
    }

    /// All rows, without trailing blanks.
    pub fn screen(&self) -> String {
        self.window.lock().rows()
    }

    /// Waits until `is_there` accepts the screen, and returns it. Checks again after each output, but not while the
    /// cursor is hidden: the frame is incomplete.
    pub fn wait(&self, what: &str, is_there: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let shown = self.window.lock();
            let (seen, screen) = (shown.written.len(), shown.rows());
            let is_drawn = !shown.emulator.screen().hide_cursor();
            drop(shown);
            if is_drawn && is_there(&screen) {
                return screen;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what:?} did not appear:\n{screen}");
            let is_same = |shown: &mut Shown| shown.written.len() == seen;
            drop(self.window.changed.wait_timeout_while(self.window.lock(), left, is_same));
        }
    }

    /// Waits until `part` is on the screen.
    pub fn expect(&self, part: &str) -> String {
        self.wait(part, |screen| screen.contains(part))
    }

    /// Types a line, and waits until `part` is on the screen.
    pub fn ask(&self, line: &str, part: &str) -> String {
        self.enter(line);
        self.expect(part)
    }

    /// Waits until `line` is the last line that is not empty.
    pub fn expect_last(&self, line: &str) -> String {
        self.wait(line, |screen| last_line(screen) == line)
    }

    /// Waits until the shell accepts a command.
    pub fn wait_for_shell(&self) {
        self.expect_last("ready>");
    }

    /// The column and row of the cursor, from 0.
    pub fn cursor(&self) -> (u16, u16) {
        let (row, column) = self.window.lock().emulator.screen().cursor_position();
        (column, row)
    }

    /// The character at the cursor.
    pub fn under_cursor(&self) -> String {
        let shown = self.window.lock();
        let screen = shown.emulator.screen();
        let (row, column) = screen.cursor_position();
        screen.cell(row, column).expect("a cell").contents().to_string()
    }

    /// The style of the first character of `text`, at its first position on the screen.
    pub fn look(&self, text: &str) -> Look {
        let shown = self.window.lock();
        let screen = shown.emulator.screen();
        let (rows, columns) = screen.size();
        let cells = (0..rows.get()).flat_map(|row| (0..columns.get()).map(move |column| (row, column)));
        let begins = |(row, column): &(u16, u16)| {
            screen.contents_between(*row, *column, *row, columns.get()).starts_with(text)
        };
        let (row, column) = cells.into_iter().find(begins).unwrap_or_else(|| panic!("{text:?} is not there"));
        let cell = screen.cell(row, column).expect("a cell");
        Look { bold: cell.bold(), dim: cell.dim(), reverse: cell.inverse(), colour: cell.fgcolor() }
    }

    /// How often the bell has rung.
    pub fn bells(&self) -> usize {
        self.window.lock().emulator.callbacks().bells
    }

    /// The window's title.
    pub fn title(&self) -> String {
        self.window.lock().emulator.callbacks().title.clone()
    }

    pub fn is_full_screen(&self) -> bool {
        self.window.lock().emulator.screen().alternate_screen()
    }

    /// Whether clicks are reported to the program.
    pub fn reports_mouse(&self) -> bool {
        self.window.lock().emulator.screen().mouse_protocol_mode() != vt100::MouseProtocolMode::None
    }

    /// Whether the kernel echoes and edits typed lines, as it does outside the client.
    pub fn echoes(&self) -> bool {
        let modes = tcgetattr(&self.end).expect("a terminal").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// All modes of the line and of the emulator.
    pub fn modes(&self) -> String {
        let line = tcgetattr(&self.end).expect("a terminal");
        let shown = self.window.lock();
        let screen = shown.emulator.screen();
        let is_cursor_hidden = screen.hide_cursor();
        let modes = (screen.alternate_screen(), is_cursor_hidden, screen.input_mode_formatted());
        format!("{line:?} {modes:?} {:?}", screen.attributes_formatted())
    }

    /// Starts a new record of the output.
    pub fn record(&self) {
        self.window.lock().written.clear();
    }

    /// All output since [`record`](Self::record).
    pub fn written(&self) -> String {
        String::from_utf8_lossy(&self.window.lock().written).into_owned()
    }

    /// Writes to the terminal as another program does.
    pub fn scribble(&self, text: &str) {
        (&self.end).write_all(text.as_bytes()).expect("written");
    }

    /// Changes the size of the window.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.window.lock().emulator.set_size(nonzero(rows), nonzero(columns));
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.pty, size).expect("resized");
    }

    /// Stops or resumes reading output. A terminal on a hung connection stops, too.
    pub fn hold(&self, held: bool) {
        self.window.lock().held = held;
        self.window.changed.notify_all();
    }

    /// The process that the shell waits for.
    pub fn child(&self) -> u32 {
        let shell = self.shell.id();
        let children = read_to_string(format!("/proc/{shell}/task/{shell}/children"));
        children.expect("Linux lists the children").trim().parse().expect("one child")
    }

    /// Sends it a signal, `-TERM` for example.
    pub fn signal(&self, name: &str) {
        signal(self.child(), name);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.hold(false);
        // The death of the session leader hangs the terminal up.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// The last line that is not empty.
pub fn last_line(screen: &str) -> &str {
    screen.lines().rfind(|line| !line.is_empty()).unwrap_or_default()
}

/// The bytes that xterm sends for a key.
fn key(name: &str) -> String {
    match name {
        "Enter" => "\r".into(),
        "Escape" => "\x1b".into(),
        "Tab" => "\t".into(),
        "Backspace" => "\x7f".into(),
        "Left" => "\x1b[D".into(),
        "PageUp" => "\x1b[5~".into(),
        "M-Left" => "\x1b[1;3D".into(),
        "M-Right" => "\x1b[1;3C".into(),
        character if character.len() == 1 => character.into(),
        _ => match name.split_at(2) {
            ("C-", letter) => char::from(letter.as_bytes()[0] & 0x1f).into(),
            ("M-", name) => format!("\x1b{}", key(name)),
            _ => panic!("no key {name}"),
        },
    }
}
