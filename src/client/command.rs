//! Parses typed lines.
//!
//! Invariant: every line is exactly one [`Command`] or is refused. A line that looks like a command and is not one is
//! never sent as a message. The visible text decides, not the bytes: see [`parse`].

use super::terminal::input::{Key, keys};
use super::text::is_blank;
use crate::name::Username;
use unicode_normalization::char::is_public_assigned;

/// A parsed line.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// A message to the current audience.
    Say(String),
    /// One message to these users.
    Message(Vec<Username>, String),
    /// Opens the conversation with these users and a room in it; without names, reports the current audience.
    Room(Vec<Username>),
    /// Leaves the room, or closes the conversation.
    Leave,
    /// Shows another view, without notifying anybody.
    View(View),
    /// Toggles whether the client or the terminal handles the mouse.
    Mouse,
    /// Lists online users and how well their keys are known; with `true`, known absent users too.
    Users(bool),
    /// Shows the last messages, this number of them.
    History(usize),
    /// Shows the messages that contain this text.
    Search(String),
    /// Erases all messages, also on disk.
    Forget,
    /// Hides this user's messages; `None` lists ignored users.
    Ignore(Option<Username>),
    /// Shows this user's messages again.
    Unignore(Username),
    /// Turns notifications on or off.
    Notify(bool),
    /// Clears the screen.
    Clear,
    /// Explains all commands, or the one of this name.
    Help(Option<String>),
    /// Ends the client.
    Exit,
    /// Shows the safety number; with `true`, the user has compared it.
    Verify(Username, bool),
    /// Accepts the changed key of this user.
    Trust(Username),
    /// Offers this user a file, by its path as typed.
    SendFile(Username, String),
    /// Accepts the offer of this number; `None` is the only one.
    AcceptFile(Option<u32>),
    /// Declines the offer of this number; `None` is the only one.
    RejectFile(Option<u32>),
    /// Cancels the transfer of this number; `None` is the only one.
    Cancel(Option<u32>),
    /// Lists offers and transfers with their numbers.
    Files,
    /// Changes the password: to the one in this file, or `None` to ask, which only the full screen can.
    Password(Option<String>),
    /// Opens the user's editor with this text; the edited text becomes the line.
    Edit(String),
    /// An empty line.
    Nothing,
}

/// A view to go to.
#[derive(Debug, PartialEq, Eq)]
pub enum View {
    /// The view of everyone.
    Everyone,
    /// The view with this number, from 1.
    Number(usize),
    /// The view of the conversation with these users.
    With(Vec<Username>),
}

/// A command: how it is typed, explained and parsed. Completion reads the usage.
pub struct Usage {
    /// The name, without its slash.
    pub name: &'static str,
    /// The whole line, with its arguments in capitals.
    pub usage: &'static str,
    /// The explanation in `/help`.
    pub explanation: &'static str,
    parse: Parse,
}

impl Usage {
    /// Whether `/help` without a name lists it; the lines of other commands explain the rest.
    pub fn is_listed(&self) -> bool {
        !["unignore", "/"].contains(&self.name)
    }
}

/// Parses the words after a command's name. Words that it does not consume are an error.
type Parse = fn(&mut Words<'_>) -> Result<Command, Wrong>;

/// All commands, as `/help` lists them.
pub const COMMANDS: [Usage; 23] = [
    usage("msg", "/msg NAME TEXT", "send one message; to several: bob,carol", |words| {
        let names = users(words.next().ok_or(Wrong::Usage)?)?;
        let text = words.rest().ok_or(Wrong::Usage)?;
        if !text.contains(is_visible) {
            return Err(Wrong::Because("this message has no visible text: it was not sent".into()));
        }
        Ok(Command::Message(names, text.into()))
    }),
    usage("room", "/room NAME...", "talk to these users alone; /leave returns", |words| {
        Ok(Command::Room(words.rest().map_or(Ok(Vec::new()), users)?))
    }),
    usage("leave", "/leave", "leave the room and talk to everyone again", |_| Ok(Command::Leave)),
    usage("view", "/view [NAME or N]", "go to another view (Alt-N), or back to everyone", |words| {
        Ok(Command::View(match words.next() {
            None => View::Everyone,
            Some(word) if word.eq_ignore_ascii_case("everyone") => View::Everyone,
            Some(word) => match word.trim_start_matches('#').parse() {
                Ok(number) => View::Number(number),
                Err(_) => View::With(users(word)?),
            },
        }))
    }),
    usage("users", "/users [all]", "list online users and their keys; all: absent too", |words| {
        Ok(Command::Users(words.option(&["all"])?.is_some()))
    }),
    usage("verify", "/verify NAME [yes]", "show the safety number; yes: you have compared it", |words| {
        let name = words.user()?;
        Ok(Command::Verify(name, words.option(&["yes"])?.is_some()))
    }),
    usage("trust", "/trust NAME", "accept the changed key of NAME", |words| {
        Ok(Command::Trust(words.user()?))
    }),
    usage("sendfile", "/sendfile NAME PATH", "offer a file; it is sent when NAME accepts", |words| {
        Ok(Command::SendFile(words.user()?, words.rest().ok_or(Wrong::Usage)?.into()))
    }),
    usage("acceptfile", "/acceptfile [#]", "accept the offered file, or file number #", |words| {
        Ok(Command::AcceptFile(words.number()?))
    }),
    usage("rejectfile", "/rejectfile [#]", "decline the offered file, or file number #", |words| {
        Ok(Command::RejectFile(words.number()?))
    }),
    usage("cancel", "/cancel [#]", "cancel the transfer, or file number #", |words| {
        Ok(Command::Cancel(words.number()?))
    }),
    usage("files", "/files", "list files offered or in progress, with numbers", |_| Ok(Command::Files)),
    usage("ignore", "/ignore [NAME]", "hide messages from NAME, or list; /unignore shows", |words| {
        Ok(Command::Ignore(words.next().map(user).transpose()?))
    }),
    usage("unignore", "/unignore NAME", "show messages from NAME again", |words| {
        Ok(Command::Unignore(words.user()?))
    }),
    usage("notify", "/notify [off]", "turn notifications on or off", |words| {
        Ok(Command::Notify(words.option(&["on", "off"])? != Some("off")))
    }),
    usage("mouse", "/mouse", "scroll with the mouse, or leave it to the terminal", |_| Ok(Command::Mouse)),
    usage("history", "/history [N or TEXT]", "show the last N (20), or find TEXT; forget: erase", |words| {
        Ok(match words.rest().map(str::trim_end) {
            None => Command::History(HISTORY),
            Some(word) if word.eq_ignore_ascii_case("forget") => Command::Forget,
            Some(text) => text.parse().map_or_else(|_| Command::Search(text.into()), Command::History),
        })
    }),
    usage("passwd", "/passwd [FILE]", "change your password (plain mode: read from FILE)", |words| {
        Ok(Command::Password(words.rest().map(str::to_owned)))
    }),
    usage("edit", "/edit [TEXT]", "write a long message in your editor (EDITOR=nano)", |words| {
        Ok(Command::Edit(words.rest().unwrap_or_default().into()))
    }),
    usage("clear", "/clear", "clear the screen", |_| Ok(Command::Clear)),
    usage("help", "/help [COMMAND]", "show this list, or one command; Tab completes", |words| {
        Ok(Command::Help(words.next().map(|word| name(word.trim_start_matches('/')))))
    }),
    usage("exit", "/exit", "leave", |_| Ok(Command::Exit)),
    usage("/", "//TEXT", "send a line that begins with a slash", |words| {
        Ok(Command::Say(format!("/{}", std::mem::take(&mut words.0))))
    }),
];

const fn usage(name: &'static str, usage: &'static str, explanation: &'static str, parse: Parse) -> Usage {
    Usage { name, usage, explanation, parse }
}

/// Why a line is not a valid command.
enum Wrong {
    /// The client shows the command's usage.
    Usage,
    /// Another reason, as a sentence.
    Because(String),
}

/// The words after a command's name that are not parsed yet.
struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    /// The next word, if there is one.
    fn next(&mut self) -> Option<&'a str> {
        let (word, rest) = split(self.0.trim_start());
        self.0 = rest;
        (!word.is_empty()).then_some(word)
    }

    /// The rest of the line; `None` if it is blank.
    fn rest(&mut self) -> Option<&'a str> {
        let rest = std::mem::take(&mut self.0).trim_start();
        (!rest.is_empty()).then_some(rest)
    }

    fn user(&mut self) -> Result<Username, Wrong> {
        user(self.next().ok_or(Wrong::Usage)?)
    }

    /// A number, as `3` or `#3`.
    fn number(&mut self) -> Result<Option<u32>, Wrong> {
        let parse = |word: &str| word.trim_start_matches('#').parse().map_err(|_| Wrong::Usage);
        self.next().map(parse).transpose()
    }

    /// One of these words, or none.
    fn option(&mut self, options: &[&'static str]) -> Result<Option<&'static str>, Wrong> {
        let find = |word: &str| options.iter().copied().find(|option| option.eq_ignore_ascii_case(word));
        self.next().map(|word| find(word).ok_or(Wrong::Usage)).transpose()
    }
}

fn split(text: &str) -> (&str, &str) {
    text.split_once(char::is_whitespace).unwrap_or((text, ""))
}

fn user(word: &str) -> Result<Username, Wrong> {
    let name = word.strip_prefix('@').unwrap_or(word);
    if name.is_empty() {
        return Err(Wrong::Usage);
    }
    name.parse().map_err(|error| Wrong::Because(format!("{name} is not a valid name: {error}")))
}

/// Names between spaces or commas.
fn users(words: &str) -> Result<Vec<Username>, Wrong> {
    words.replace(", ", " ").split_whitespace().flat_map(|word| word.split(',')).map(user).collect()
}

/// The command that is being typed, once it is unambiguous; otherwise `None`.
pub fn hint(line: &str) -> Option<&'static Usage> {
    let line = line.strip_prefix('/')?;
    let (word, typed) = line.split_once(char::is_whitespace).map_or((line, false), |(word, _)| (word, true));
    let word = if word.starts_with('/') { "/" } else { &name(word) };
    let mut begun = COMMANDS.iter().filter(|usage| !word.is_empty() && usage.name.starts_with(word));
    let only = begun.next().filter(|_| !typed && begun.next().is_none());
    COMMANDS.iter().find(|usage| usage.name == word).or(only)
}

/// Whether a line is `/exit` or `/quit`.
pub fn is_exit(line: &str) -> bool {
    matches!(parse(line), Ok(Command::Exit))
}

/// Whether a refused line may be a mistyped `/room` or `/view`: the lines after it are meant for that conversation.
pub fn may_lead(line: &str) -> bool {
    let word = line.split(char::is_whitespace).find(|word| word.contains(char::is_alphanumeric));
    let word = name(word.unwrap_or_default().trim_start_matches(|c: char| !c.is_alphanumeric()));
    ["room", "view"].contains(&nearest(&word).unwrap_or_default())
}

/// The name in [`COMMANDS`] for a typed name, which may be an alias.
pub fn name(word: &str) -> String {
    let word = word.to_ascii_lowercase();
    if word == "quit" { "exit".into() } else { word }
}

/// Characters that look like a slash: Unicode's confusables, forms of other keyboards, and stroke marks.
const SOLIDI: &[char] = &[
    '/',
    '\u{337}',
    '\u{338}',
    '\u{1735}',
    '\u{2041}',
    '\u{2044}',
    '\u{20e5}',
    '\u{20eb}',
    '\u{2215}',
    '\u{233f}',
    '\u{2571}',
    '\u{27cb}',
    '\u{29f6}',
    '\u{29f8}',
    '\u{2afb}',
    '\u{2afd}',
    '\u{2e0d}',
    '\u{2e4a}',
    '\u{ff0f}',
    '\u{1d23a}',
    '\u{1f67c}',
];
/// Letters and strokes that look like a slash. They also begin ordinary words, so they count only before a Latin
/// letter.
const STROKES: &[char] = &[
    '\u{280c}', '\u{2cc6}', '\u{2cc7}', '\u{2f03}', '\u{3033}', '\u{30ce}', '\u{31d2}', '\u{31d3}',
    '\u{4e3f}', '\u{ff89}',
];
/// Characters that look like a backslash. They also begin ordinary texts, so they count only before a command's name.
const BACKSLASHES: &[char] = &['\\', '\u{2216}', '\u{27cd}', '\u{29f5}', '\u{29f9}', '\u{fe68}', '\u{ff3c}'];

/// The messages that `/history` shows without a number: about a screen.
pub const HISTORY: usize = 20;

/// Parses one line, from either front end. A line that begins with a slash is a command. Any other line whose first
/// visible character is or looks like a slash is refused: otherwise everyone would read a mistyped command.
///
/// # Errors
/// The mistake, for the user.
pub fn parse(line: &str) -> Result<Command, String> {
    let line = line.trim_end_matches(['\r', '\n']);
    if line.starts_with('/')
        && !line.starts_with("//")
        && let Some((first, rest)) = line.split_once('\n')
    {
        // Only the first line is the command: no other line becomes an argument by accident.
        return match parse(first)? {
            Command::Message(names, text) => Ok(Command::Message(names, format!("{text}\n{rest}"))),
            Command::Edit(text) => Ok(Command::Edit(format!("{text}\n{rest}"))),
            _ => {
                Err("this command takes one line: put a second / before it to send all lines as text".into())
            }
        };
    }
    let Some(rest) = line.strip_prefix('/') else { return text(line) };
    let (word, rest) = rest.strip_prefix('/').map_or_else(|| split(rest), |text| ("/", text));
    let word = &name(word);
    let Some(command) = COMMANDS.iter().find(|command| command.name == word) else {
        return Err(match nearest(word) {
            Some(name) => {
                format!("there is no command /{word}: did you mean /{name}? (/help lists all commands)")
            }
            None => {
                format!("there is no command /{word} (/help lists all commands; //{word} sends it as text)")
            }
        });
    };
    let mut words = Words(rest);
    match (command.parse)(&mut words) {
        Ok(parsed) if words.next().is_none() => Ok(parsed),
        Err(Wrong::Because(text)) => Err(text),
        Ok(_) | Err(Wrong::Usage) => Err(format!("usage: {}", command.usage)),
    }
}

/// Whether a character is visible, even if only as a stroke through the one before.
fn is_visible(c: char) -> bool {
    SOLIDI.contains(&c) || BACKSLASHES.contains(&c) || !is_blank(c)
}

/// Whether a character certainly has a shape of its own. Fonts decide what private-use, unassigned and description
/// characters look like, and format characters depend on what follows.
fn is_known(c: char) -> bool {
    let is_format = matches!(c, '\u{600}'..='\u{605}' | '\u{6dd}' | '\u{70f}' | '\u{890}' | '\u{891}' | '\u{8e2}'
        | '\u{2ff0}'..='\u{2fff}' | '\u{110bd}' | '\u{110cd}');
    is_public_assigned(c) && !is_format
}

/// A line that does not begin with a slash.
fn text(line: &str) -> Result<Command, String> {
    if !line.contains(is_visible) {
        return Ok(Command::Nothing);
    }
    let mut seen = line.chars().filter(|c| is_visible(*c) && is_known(*c));
    let first = seen.next().unwrap_or_default();
    let second = seen.next().unwrap_or_default();
    if first == '/' {
        return Err(
            "a command must begin with /: remove what comes before it, or type // to send it as text".into(),
        );
    }
    let means_command = || {
        let behind = line.split(first).nth(1).unwrap_or_default();
        let words: String = behind.chars().filter(|c| c.is_whitespace() || is_visible(*c)).collect();
        let word = words.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
        COMMANDS.iter().any(|usage| usage.name == name(&word))
    };
    if SOLIDI.contains(&first)
        || STROKES.contains(&first) && second.is_ascii_alphabetic()
        || BACKSLASHES.contains(&first) && means_command()
    {
        let code = u32::from(first);
        return Err(format!(
            "this looks like a command, but U+{code:04X} is not a slash: type / for a command, // to send a slash"
        ));
    }
    if line.replace("\r\n", "\n").contains(is_control) {
        // Terminals differ in what they hide, remove and move, so any slash may be the first visible character.
        if line.contains(SOLIDI) || line.contains(STROKES) {
            return Err(
                "a control character makes this line look like a command: remove it, or type // to send the line as text"
                    .into(),
            );
        }
        if !keys(line.as_bytes()).iter().any(|key| matches!(key, Key::Char(c) if is_visible(*c))) {
            return Err("this line has no visible text: it was not sent".into());
        }
    }
    Ok(Command::Say(line.into()))
}

/// Whether a character may control a terminal. The replacement of bytes that are not UTF-8 may have been an 8-bit
/// control.
fn is_control(c: char) -> bool {
    c.is_control() && !matches!(c, '\t' | '\n') || c == char::REPLACEMENT_CHARACTER
}

/// The command that `word` probably means: one that begins with it, or differs in at most a third of its letters.
fn nearest(word: &str) -> Option<&'static str> {
    let names = || COMMANDS.iter().map(|usage| usage.name);
    let begun = names().find(|name| word.len() >= 2 && name.starts_with(word));
    begun.or_else(|| {
        let (distance, name) = names().map(|name| (distance(word, name), name)).min()?;
        (distance <= (name.len() / 3).max(1) && name != "/").then_some(name)
    })
}

/// The number of letters to insert, remove, change or swap to turn one word into the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(32).collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Username {
        text.parse().expect("name")
    }

    #[test]
    fn command_list_fits_a_screen_of_80_by_24() {
        let listed = COMMANDS.iter().filter(|usage| usage.is_listed()).count();
        assert!(listed < 22, "a last line about the rest, the status and the input need room");
        for usage in COMMANDS {
            // The time and a mark precede the line.
            let line = format!("14:05 * {:<20} {}", usage.usage, usage.explanation);
            assert!(line.len() <= 80, "{line}");
        }
    }

    #[test]
    fn lines_parse_as_users_expect() {
        for (line, command) in [
            ("hello there", Command::Say("hello there".into())),
            ("//etc/passwd", Command::Say("/etc/passwd".into())),
            ("  ", Command::Nothing),
            ("", Command::Nothing),
            ("/msg bob  hi  there ", Command::Message(vec![name("bob")], "hi  there ".into())),
            ("/msg @bob hi", Command::Message(vec![name("bob")], "hi".into())),
            ("/ROOM bob", Command::Room(vec![name("bob")])),
            ("/room", Command::Room(vec![])),
            ("/room bob  @carol ", Command::Room(vec![name("bob"), name("carol")])),
            ("/room bob, carol,dave", Command::Room(["bob", "carol", "dave"].map(name).into())),
            ("/msg bob,@carol hi", Command::Message(vec![name("bob"), name("carol")], "hi".into())),
            ("/msg bob carol", Command::Message(vec![name("bob")], "carol".into())),
            ("/view bob,carol", Command::View(View::With(vec![name("bob"), name("carol")]))),
            ("/view", Command::View(View::Everyone)),
            ("/view Everyone", Command::View(View::Everyone)),
            ("/view 2", Command::View(View::Number(2))),
            ("/view #12", Command::View(View::Number(12))),
            ("/view bob", Command::View(View::With(vec![name("bob")]))),
            ("/view @2", Command::View(View::With(vec![name("2")]))),
            ("/mouse", Command::Mouse),
            ("/history", Command::History(20)),
            ("/history 5", Command::History(5)),
            ("/history see you ", Command::Search("see you".into())),
            ("/history Forget ", Command::Forget),
            ("/history forget me not", Command::Search("forget me not".into())),
            ("/ignore", Command::Ignore(None)),
            ("/ignore @bob", Command::Ignore(Some(name("bob")))),
            ("/notify OFF", Command::Notify(false)),
            ("/verify bob YES", Command::Verify(name("bob"), true)),
            (
                "/sendfile bob ~/My Files/a b.txt ",
                Command::SendFile(name("bob"), "~/My Files/a b.txt ".into()),
            ),
            ("/acceptfile", Command::AcceptFile(None)),
            ("/rejectfile #12", Command::RejectFile(Some(12))),
            ("/cancel 3", Command::Cancel(Some(3))),
            ("/edit", Command::Edit(String::new())),
            ("/edit hi  there", Command::Edit("hi  there".into())),
            ("/passwd ", Command::Password(None)),
            ("/passwd ~/my new one", Command::Password(Some("~/my new one".into()))),
            ("/passwd it ends in a blank ", Command::Password(Some("it ends in a blank ".into()))),
            ("/help /room", Command::Help(Some("room".into()))),
            ("/exit\r\n", Command::Exit),
        ] {
            assert_eq!(parse(line), Ok(command), "{line}");
        }
    }

    #[test]
    fn first_line_decides_and_further_lines_are_text_or_refused() {
        for (line, command) in [
            ("hi\n/exit", Command::Say("hi\n/exit".into())),
            ("//exit\n/exit", Command::Say("/exit\n/exit".into())),
            ("/msg bob hi \n/exit\n", Command::Message(vec![name("bob")], "hi \n/exit".into())),
            ("/edit hi\n/exit", Command::Edit("hi\n/exit".into())),
        ] {
            assert_eq!(parse(line), Ok(command), "{line:?}");
        }
        // A blank before a command does not make it a message: the line is refused.
        for line in
            [" /msg bob x", "\t/passwd", "  /room bob", "\u{a0}/exit", " //x", "\n/exit", " \n\r\n /exit"]
        {
            assert!(parse(line).is_err(), "{line:?}");
        }
        for line in [
            "/exit\nhi",
            "/verify bob\nyes",
            "/verify\nbob",
            "/room\nbob",
            "/msg bob\nhi",
            "/msg\nbob hi",
            "/sendfile bob a\nb",
            "/\nexit",
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn line_is_refused_when_a_slash_is_seen_first() {
        let unseen = [
            "\u{feff}",
            "\u{200b}",
            "\u{200d}",
            "\u{2060}",
            "\u{ad}",
            "\u{200f}",
            "\u{202e}",
            "\u{fe0f}",
            "\u{e0100}",
            "\u{301}",
            "\0",
            "\u{7f}",
            "\u{85}",
            "\u{9b}31m",
            "\u{a0}",
            "\u{3000}",
            "\u{2003}",
            "\u{1680}",
            "\u{2800}",
            "\u{3164}",
            "\u{34f}",
            "\u{fffd}\0",
            "\u{1d159}",
            "\u{1b}[0m",
            "\u{1b}",
            "\u{1b}]0;t\u{7}",
            "\u{1b}\\",
            "\u{1b}(B",
            "\u{1b}=",
            "\u{e000}",
            "\u{10fffd}",
            "x\u{8}",
            "x\r",
            "x \u{1b}[D",
            "abc \u{15} ",
            "abc \u{17}",
            "abc \u{1}",
            "abc \u{1b}[2K \u{1b}[G ",
            "abc\u{1b}[H",
            "abc \u{1b}[1;5D",
            "abc\u{1b}[A",
            "abc\u{1b}b",
            "\u{13441}",
            "\u{13442}",
            "\u{2d7f}",
            "\u{600}",
            "\u{6dd}",
            "\u{70f}",
            "\u{891}",
            "\u{8e2}",
            "\u{110bd}",
            "\u{110cd}",
            "\u{378}",
            "\u{2fff}",
            "\u{fdd0}",
            "\u{1fffe}",
            "\u{50000}",
            "\n",
            "\u{e002f}",
            "\u{1b}(B\u{1b}[m",
            "\u{1b}>",
            "\u{1b}=",
            "\u{1b}%G",
            "\u{1b}c",
            "\u{1b}#8",
            "\u{e}",
            "A\u{c}",
            "\u{1b}[8mA\u{1b}[0m",
            "\u{1b}[30mA\u{1b}[m",
            "\u{fffd}0m",
            "",
        ];
        let solidi =
            "\u{ff0f}\u{2044}\u{2215}\u{29f8}\u{2571}\u{338}\u{337}\u{27cb}\u{1f67c}\u{30ce}\u{ff89}";
        for before in unseen {
            for slash in solidi.chars().chain((!before.is_empty()).then_some('/')) {
                let line = format!("{before}{slash}msg bob secret");
                assert!(parse(&line).is_err(), "{line:?}");
            }
        }
        for text in [
            "ノート",
            "ﾉｰﾄ",
            "\u{7}hi",
            "1/2",
            "hi\t/x",
            "\u{200b}.",
            "·/x",
            "\u{1b}[31mred\u{1b}[0m",
            "hi\r\n/x",
            "left\u{1b}[D",
        ] {
            assert_eq!(parse(text), Ok(Command::Say(text.into())), "{text:?}");
        }
        for nothing in ["\u{feff}", "\u{200b}\u{a0}", "\u{3000}", "\0", "\n\n", "\u{301}"] {
            assert_eq!(parse(nothing), Ok(Command::Nothing), "{nothing:?}");
        }
        for written_over in [
            "\0/msg bob secret\rother",
            "\u{feff}/x\u{8}\u{8}hi",
            "a/msg bob secret\u{1b}[G\u{1b}[P",
            "\u{1b}[31mred\u{1b}[0m /x",
        ] {
            assert!(parse(written_over).is_err(), "{written_over:?}");
        }
        assert!(parse("\u{1b}P/msg bob secret").is_err(), "invisible, but not empty");
    }

    #[test]
    fn invisible_character_never_turns_a_command_into_text() {
        // Unicode's Default_Ignorable_Code_Point, controls, blanks, and other characters known to be invisible.
        let ranges = [
            (0, 0x20),
            (0x7f, 0xa0),
            (0xad, 0xad),
            (0x300, 0x36f),
            (0x61c, 0x61c),
            (0x115f, 0x1160),
            (0x1680, 0x1680),
            (0x17b4, 0x17b5),
            (0x180b, 0x180f),
            (0x2000, 0x200f),
            (0x2028, 0x202f),
            (0x205f, 0x206f),
            (0x2800, 0x2800),
            (0x3000, 0x3000),
            (0x3164, 0x3164),
            (0xfe00, 0xfe0f),
            (0xfe20, 0xfe2f),
            (0xfeff, 0xfeff),
            (0xffa0, 0xffa0),
            (0xfff0, 0xfffd),
            (0x13430, 0x13442),
            (0x1bca0, 0x1bca3),
            (0x1d173, 0x1d17a),
            (0xe0000, 0xe0fff),
        ];
        for c in ranges.iter().flat_map(|(from, to)| *from..=*to).filter_map(char::from_u32) {
            for before in
                [format!("{c}"), format!("\u{feff}{c}"), format!("{c}\u{feff}"), format!("\r{c}{c} ")]
            {
                let line = format!("{before}/msg bob secret");
                assert!(parse(&line).is_err(), "{line:?}");
            }
            let (inside, invisible) = (format!("/{c}msg bob secret"), format!("/msg bob {c}\u{feff}"));
            assert!(parse(&inside).is_err(), "{inside:?}");
            assert!(SOLIDI.contains(&c) || parse(&invisible).is_err(), "{invisible:?}");
        }
        for backslash in BACKSLASHES {
            for line in [format!("{backslash}msg bob secret"), format!("\u{200b}{backslash}\u{feff}QUIT")] {
                assert!(parse(&line).is_err(), "{line:?}");
            }
        }
        for text in ["\\o/", "\\begin{msg}", "\\\\server\\msg", "\\message"] {
            assert_eq!(parse(text), Ok(Command::Say(text.into())), "{text:?}");
        }
    }

    #[test]
    fn name_with_an_invisible_character_is_refused() {
        for name in ["b\u{200b}ob", "\u{feff}bob", "bob\u{ad}", "bo\u{301}b", "b\u{fe0f}ob", "bob\0", "bоb"]
        {
            for line in [format!("/msg {name} text"), format!("/room {name}"), format!("/sendfile {name} a")]
            {
                assert!(parse(&line).is_err(), "{line:?}");
            }
        }
        for line in ["/\u{200b}msg bob x", "/msg\u{200b} bob x", "/\u{338}msg bob x", "/\0m\0s\0g\0 b"] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn hint_appears_once_the_typed_command_is_clear() {
        for (line, name) in [
            ("/se", Some("sendfile")),
            ("/SENDFILE bob ", Some("sendfile")),
            ("/msg bob\nhi", Some("msg")),
            ("/r", None),
            ("/room", Some("room")),
            ("/", None),
            ("//", Some("/")),
            ("//etc", Some("/")),
            ("/se bob", None),
            ("/xyz", None),
            ("/quit", Some("exit")),
            ("room", None),
        ] {
            assert_eq!(hint(line).map(|usage| usage.name), name, "{line:?}");
        }
    }

    #[test]
    fn mistyped_command_suggests_the_nearest_and_is_never_sent() {
        for (line, hint) in [
            ("/hlep", "/help"),
            ("/romo bob", "/room"),
            ("/mgs bob hi", "/msg"),
            ("/user", "/users"),
            ("/ver bob", "/verify"),
            ("/quti", "there is no command /quti"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(hint), "{line}: {error}");
        }
        assert!(parse("/xyzzyplugh").expect_err("unknown").contains("/help lists all"));
        assert_eq!(parse("/quit now"), parse("/exit now"));
        for line in [
            "/msg bob",
            "/msg",
            "/verify",
            "/trust",
            "/notify x",
            "/unignore",
            "/verify bob no",
            "/leave now",
            "/mouse on",
            "/view 1 2",
            "/view b\u{200b}ob",
            "/sendfile bob",
            "/cancel x",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
