//! The full-screen client in a real terminal, which is tmux: what a person sees, what typing does, and that the
//! terminal is whole again however the client ends. Screens are polled, with a deadline that
//! only a broken program reaches.

mod common;

use common::{Client, DEADLINE, Folder, Gate, PASSWORD, Server};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks at the screen.
const LOOK: Duration = Duration::from_millis(15);

/// A shell in a terminal of 80 by 24.
struct Terminal {
    home: Arc<Folder>,
}

impl Terminal {
    fn new() -> Terminal {
        let terminal = Terminal { home: Arc::new(Folder::new()) };
        terminal.tmux(&["new-session", "-d", "-x", "80", "-y", "24", "sh"]);
        terminal.tmux(&["set-option", "-g", "window-size", "manual"]);
        terminal.wait("a shell", |screen| !screen.trim().is_empty());
        // In two parts, so that the line typed is not the prompt.
        terminal.enter("PS1='rea''dy> '; clear");
        terminal.wait_for_shell();
        terminal
    }

    /// Runs a tmux command on a private socket in the test's own folder; its output.
    fn tmux(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux")
            .args(["-u", "-L", "screen", "-f", "/dev/null"])
            .args(arguments)
            .env("TMUX_TMPDIR", &self.home.0)
            .env("HOME", &self.home.0)
            .env("LC_ALL", "C.UTF-8")
            .env_remove("TMUX")
            .env_remove("NO_COLOR")
            .output()
            .expect("these tests drive the client in tmux: install it (README, \"Test it\")");
        assert!(output.status.success(), "tmux {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Types text as it is.
    fn text(&self, text: &str) {
        self.tmux(&["send-keys", "-l", "--", text]);
    }

    /// Presses keys by their tmux names.
    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    fn enter(&self, line: &str) {
        self.text(line);
        self.keys(&["Enter"]);
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// With colours and styles as escape sequences.
    fn styled(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    fn wait(&self, what: &str, is_there: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let screen = self.screen();
            if is_there(&screen) {
                return screen;
            }
            assert!(Instant::now() < end, "{what} did not come:\n{screen}");
            thread::park_timeout(LOOK);
        }
    }

    fn expect(&self, part: &str) -> String {
        self.wait(part, |screen| screen.contains(part))
    }

    /// The last line that is not empty is this.
    fn expect_last(&self, line: &str) -> String {
        self.wait(line, |screen| last_line(screen) == line)
    }

    fn wait_for_shell(&self) {
        self.expect_last("ready>");
    }

    /// The command line of a client with these arguments.
    fn client(&self, server: &Server, arguments: &str) -> String {
        let program = env!("CARGO_BIN_EXE_client");
        format!("{program} --host 127.0.0.1 --port {} {arguments}", server.port)
    }

    /// Starts a client that logs in without questions, and waits for its screen.
    fn log_in(&self, server: &Server, name: &str) {
        self.enter(&self.unasked(server, name));
        self.expect(" on-line: ");
        self.expect("everyone · on-line · end-to-end encrypted");
    }

    fn unasked(&self, server: &Server, name: &str) -> String {
        let password = self.home.password_file(PASSWORD);
        let rest = format!("--accept-new --user {name} --register --password-file {}", password.display());
        self.client(server, &rest)
    }

    /// The terminal's modes, as the shell sees them.
    fn modes(&self) -> String {
        self.enter("clear");
        self.enter("echo mod''es $(stty -g)");
        let screen = self.expect("modes ");
        self.wait_for_shell();
        let all: String = screen.lines().collect();
        let end = all.find("ready> ready").unwrap_or(all.len());
        let modes = &all[all.find("modes ").expect("seen")..end];
        modes.split_whitespace().nth(1).expect("modes").replace("ready>", "")
    }

    /// The exit status of the last command.
    fn expect_status(&self, status: u8) {
        self.enter("echo \"sta\"\"tus $?.\"");
        self.expect(&format!("status {status}."));
        self.wait_for_shell();
    }

    /// The process that the shell waits for.
    fn child(&self) -> String {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let shell = shell.trim();
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"));
        children.expect("Linux tells the children").trim().to_string()
    }

    fn is_whole(&self) {
        let state = self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag} #{wrap_flag}"]);
        assert_eq!(state.trim(), "0 1 1", "normal screen, cursor seen, wrapping on");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = Command::new("tmux")
            .args(["-L", "screen", "kill-server"])
            .env("TMUX_TMPDIR", &self.home.0)
            .env_remove("TMUX")
            .output();
    }
}

fn last_line(screen: &str) -> &str {
    screen.lines().map(str::trim_end).rfind(|line| !line.is_empty()).unwrap_or_default()
}

/// A person at a terminal and one at a line filter, who know of each other.
fn alice_and_bob() -> (Server, Terminal, Client) {
    let server = Server::start();
    let terminal = Terminal::new();
    terminal.log_in(&server, "alice");
    let bob = server.client("bob").ready();
    terminal.expect("* bob is on-line");
    (server, terminal, bob)
}

// ---- before the login

#[test]
fn an_account_is_made_and_used_through_the_menu_with_the_password_unseen() {
    let server = Server::start();
    let terminal = Terminal::new();
    let client = terminal.client(&server, "");
    terminal.enter(&client);
    terminal.expect("  1  create an account");
    terminal.expect_last(">");
    terminal.enter("9");
    terminal.expect("type 1, 2 or 3");
    terminal.enter("1");
    terminal.expect_last("name:");
    terminal.enter("al ice");
    terminal.expect("a name is 1 to 32 letters");
    terminal.enter("alice");
    let new = "new password (unseen, at least 6 characters):";
    let again = "the same once more:";
    let unseen = |screen: &str| assert!(!screen.contains("hunter") && !screen.contains('*'), "{screen}");
    terminal.expect_last(new);
    terminal.enter("hunt5");
    terminal.expect("a password has at least 6 characters");
    terminal.expect_last(new);
    terminal.text("hunter22");
    unseen(&terminal.expect_last(new));
    terminal.keys(&["Enter"]);
    terminal.expect_last(again);
    terminal.enter("hunter23");
    unseen(&terminal.expect("the two differ"));
    terminal.expect_last(new);
    terminal.enter("hunter22");
    terminal.expect_last(again);
    terminal.enter("hunter22");
    // A server seen for the first time is not trusted without a word.
    let fingerprint = server.greeting.join(" ");
    let at = fingerprint.find("SHA256:").expect("printed");
    terminal.expect(&fingerprint[at..at + 50]);
    unseen(&terminal.expect_last("is it the same? (yes/no)"));
    terminal.enter("yes");
    unseen(
        &terminal
            .wait("a login", |screen| screen.replace("* ", "").contains("logged in as alice"))
            .replace("* ", ""),
    );
    terminal.enter("/exit");
    unseen(&terminal.expect_last("ready>"));
    terminal.expect_status(0);
    // Again, by its password; the server is known now.
    terminal.enter("clear");
    terminal.enter(&client);
    terminal.expect_last(">");
    terminal.enter("2");
    terminal.expect_last("name:");
    terminal.enter("alice");
    terminal.expect_last("password:");
    terminal.enter("hunter23");
    unseen(&terminal.expect("the password is wrong"));
    terminal.expect_last(">");
    terminal.enter("2");
    terminal.expect_last("name:");
    terminal.enter("carol");
    terminal.expect_last("password:");
    terminal.enter("hunter22");
    terminal.expect("there is no key for carol on this machine");
    terminal.expect_last(">");
    terminal.enter("2");
    terminal.expect_last("name:");
    terminal.enter("alice");
    terminal.expect_last("password:");
    terminal.enter("hunter22");
    terminal.expect("logged in as alice");
}

#[test]
fn a_new_password_is_asked_for_unseen_and_nothing_typed_then_is_a_message() {
    let (server, terminal, mut bob) = alice_and_bob();
    let unseen = |screen: &str| assert!(!screen.contains("hunter"), "{screen}");
    terminal.enter("/passwd");
    terminal.expect_last("old password (unseen):");
    // What could be the beginning of an arrow key does not end it in the middle of a word.
    terminal.text("hunter1");
    terminal.keys(&["Escape"]);
    terminal.text("hunter2");
    terminal.keys(&["C-c"]);
    unseen(&terminal.expect("your password stays as it is"));
    terminal.expect_last(">");
    terminal.enter("/clear");
    terminal.enter("/passwd");
    terminal.expect_last("old password (unseen):");
    terminal.keys(&["Escape"]);
    terminal.expect("your password stays as it is");
    terminal.expect_last(">");
    // All of it ahead of the questions.
    terminal.enter("/passwd");
    for line in ["hunter1", "hunt2", "hunter22", "hunter23", "hunter22"] {
        terminal.enter(line);
    }
    unseen(&terminal.expect_last("the same once more:"));
    terminal.expect("a password has at least 6 characters");
    terminal.expect("the two differ");
    terminal.enter("hunter22");
    unseen(&terminal.expect("the old one is wrong"));
    terminal.enter("/passwd");
    for line in [PASSWORD, "hunter22", "hunter22"] {
        terminal.enter(line);
    }
    unseen(&terminal.expect("your password is changed"));
    terminal.enter("hello bob");
    assert_eq!(bob.expect("hello bob"), "<alice> hello bob");
    assert!(bob.output.seen.iter().all(|line| !line.contains("hunt") && !line.contains(PASSWORD)));
    terminal.enter("/exit");
    terminal.wait_for_shell();
    terminal.enter(&terminal.client(&server, "--user alice"));
    terminal.expect_last("password:");
    terminal.enter("hunter22");
    terminal.expect("logged in as alice");
}

#[test]
fn every_prompt_can_be_backed_out_of() {
    let server = Server::start();
    let terminal = Terminal::new();
    let modes = terminal.modes();
    let new = "new password (unseen, at least 6 characters):";
    // Each way ends in the menu, however far it went: by Escape and by Ctrl-C.
    let back = |key: &str| {
        terminal.keys(&[key]);
        terminal.expect_last(">");
    };
    let menu = |steps: &[(&str, &str)]| {
        terminal.enter("1");
        for (question, answer) in steps {
            terminal.expect_last(question);
            terminal.enter(answer);
        }
    };
    terminal.enter(&terminal.client(&server, ""));
    terminal.expect_last(">");
    menu(&[]);
    terminal.expect_last("name:");
    back("Escape");
    menu(&[]);
    terminal.expect_last("name:");
    back("C-c");
    menu(&[("name:", "alice")]);
    terminal.expect_last(new);
    back("Escape");
    menu(&[("name:", "alice"), (new, PASSWORD)]);
    terminal.expect_last("the same once more:");
    back("Escape");
    menu(&[("name:", "alice"), (new, PASSWORD), ("the same once more:", PASSWORD)]);
    terminal.expect_last("is it the same? (yes/no)");
    back("Escape");
    menu(&[("name:", "alice"), (new, PASSWORD), ("the same once more:", PASSWORD)]);
    terminal.expect_last("is it the same? (yes/no)");
    terminal.enter("no");
    terminal.expect("is not known yet");
    terminal.expect_last(">");
    let key = terminal.home.path(".secure_messenger_client/keys/alice_private.key");
    assert!(!key.exists(), "an account that was not made leaves no key");
    assert!(!server.log().contains("alice"), "nothing was told to a server that nobody vouched for");
    // Out of the menu itself: by 3, by Escape, by Ctrl-C, by Ctrl-D.
    terminal.enter("3");
    terminal.wait_for_shell();
    terminal.expect_status(0);
    for key in ["Escape", "C-c", "C-d"] {
        terminal.enter("clear");
        terminal.enter(&terminal.client(&server, ""));
        terminal.expect("  3  exit");
        terminal.expect_last(">");
        terminal.keys(&[key]);
        terminal.wait_for_shell();
        terminal.expect_status(0);
    }
    assert_eq!(terminal.modes(), modes);
}

#[test]
fn a_server_that_is_not_there_is_told_and_the_menu_comes_back() {
    let server = Server::start();
    let terminal = Terminal::new();
    let client = terminal.client(&server, "--user alice --register");
    drop(server);
    terminal.enter(&client);
    let new = "new password (unseen, at least 6 characters):";
    terminal.expect_last(new);
    terminal.enter(PASSWORD);
    terminal.expect_last("the same once more:");
    terminal.enter(PASSWORD);
    terminal.expect("cannot be reached");
    terminal.expect_last(">");
    terminal.enter("3");
    terminal.wait_for_shell();
}

// ---- talking

#[test]
fn typing_is_undisturbed_by_what_arrives() {
    let (_server, terminal, mut bob) = alice_and_bob();
    terminal.text("half a li");
    terminal.expect_last("> half a li");
    for text in ["one", "two", "three"] {
        bob.say(text);
        terminal.expect(&format!("<bob> {text}"));
        terminal.expect_last("> half a li");
    }
    let cursor = terminal.tmux(&["display-message", "-p", "#{cursor_x},#{cursor_y}"]);
    assert_eq!(cursor.trim(), "11,23", "the cursor stands behind what was typed");
    terminal.enter("ne");
    bob.expect("<alice> half a line");
    terminal.expect("<alice> half a line");
    terminal.expect_last(">");
}

#[test]
fn public_private_and_room_messages_look_different_and_the_prompt_says_where_one_is() {
    let (_server, terminal, mut bob) = alice_and_bob();
    bob.say("to everyone");
    bob.say("/msg alice for you alone");
    terminal.expect("<bob> to everyone");
    terminal.expect("[private bob → alice] for you alone");
    terminal.enter("/msg bob an answer");
    terminal.expect("[private alice → bob] an answer");
    bob.expect("<alice -> bob> an answer");
    terminal.enter("/room bob");
    terminal.expect("you are in a private room with bob");
    terminal.expect("private room with bob · on-line");
    terminal.expect_last("bob>");
    bob.expect("* alice has opened a private room with you: /room alice joins it");
    terminal.enter("in here");
    terminal.expect("(room alice → bob) in here");
    bob.expect("<alice -> bob> in here");
    bob.say("/room alice");
    terminal.expect("* bob has joined the room");
    bob.say("me too");
    terminal.expect("(room bob → alice) me too");
    terminal.enter("/leave");
    terminal.expect("everyone · on-line");
    terminal.expect_last(">");
    bob.expect("* alice has left the room");
    terminal.enter("back");
    bob.expect("<alice> back");
    terminal.expect("<alice> back");
}

#[test]
fn tab_completes_a_search_finds_and_several_lines_are_one_message() {
    let (_server, terminal, mut bob) = alice_and_bob();
    std::fs::write(terminal.home.path("notes.txt"), "some").expect("written");
    let begins = |start: &str| terminal.wait(start, |screen| last_line(screen).starts_with(start));
    terminal.text("/se");
    terminal.keys(&["Tab"]);
    begins("> /sendfile   /sendfile NAME PATH  offer a file;");
    terminal.text("B");
    terminal.keys(&["Tab"]);
    terminal.text("~/no");
    terminal.keys(&["Tab"]);
    begins("> /sendfile bob ~/notes.txt  /sendfile NAME PATH");
    terminal.keys(&["C-u"]);
    terminal.expect_last(">");
    terminal.text("bo");
    terminal.keys(&["Tab"]);
    terminal.text("first");
    terminal.keys(&["M-Enter"]);
    terminal.enter("<bob> second");
    bob.expect("<alice> bob: first⏎<bob> second");
    let screen = terminal.expect("<bob> second");
    let rows: Vec<&str> = screen.lines().skip_while(|row| !row.contains("<alice> bob: first")).collect();
    assert_eq!(rows[1].trim_start(), "<bob> second", "{screen}");
    assert_eq!(rows[0].find("bob: first"), rows[1].find("<bob> second"), "below the text: {screen}");
    // A half-typed line outlives a search, given up or not.
    terminal.text("half");
    terminal.keys(&["C-r"]);
    terminal.text("FIR");
    terminal.expect_last("(search) FIR: bob: first⏎<bob> second");
    terminal.keys(&["C-g"]);
    terminal.expect_last("> half");
    terminal.keys(&["C-r"]);
    terminal.enter("fir");
    bob.expect("<alice> bob: first⏎<bob> second");
    terminal.expect_last("> half");
    // Nothing in a paste is a key, and several lines are asked about.
    terminal.tmux(&["set-buffer", " a\n/exit\n"]);
    let question = "2 lines were pasted: Enter again sends one message, Esc removes the paste";
    for last in ["Escape", "Enter"] {
        terminal.tmux(&["paste-buffer", "-p"]);
        terminal.expect_last("> half a⏎/exit");
        terminal.keys(&["Enter"]);
        terminal.expect(question);
        terminal.keys(&[last]);
        terminal.wait("no question", |screen| !screen.contains(question));
    }
    bob.expect("<alice> half a⏎/exit");
    terminal.expect_last(">");
}

/// The part of a styled screen between the last escape sequence before `text` and `text`.
fn style_before(styled: &str, text: &str) -> String {
    let at = styled.find(text).expect("it stands there");
    let start = styled[..at].rfind('\u{1b}').expect("it is styled");
    styled[start + 1..at].to_string()
}

#[test]
fn a_mention_stands_out_and_rings_the_bell() {
    let (_server, terminal, mut bob) = alice_and_bob();
    bob.say("nobody in particular, not even alice");
    terminal.expect("nobody in particular");
    let rung = || terminal.tmux(&["display-message", "-p", "#{window_bell_flag}"]);
    assert_eq!(rung().trim(), "0");
    bob.say("hello @ALICE, and @carol, alice@example.org");
    terminal.expect("hello @ALICE");
    let styled = terminal.styled();
    let reverse = |text: &str| style_before(&styled, text).trim_end_matches('m').contains('7');
    assert!(reverse("@ALICE"), "{styled:?}");
    assert!(!reverse("@carol") && !reverse("alice@example.org"), "{styled:?}");
    assert_eq!(rung().trim(), "1");
}

#[test]
fn long_lines_and_wide_characters_are_wrapped_in_line() {
    let (_server, terminal, mut bob) = alice_and_bob();
    let words = "lorem ipsum dolor sit amet ".repeat(8) + "finis";
    bob.say(&words);
    let screen = terminal.expect("finis");
    let first = screen.lines().position(|line| line.contains("<bob> lorem")).expect("the first row");
    let rows: Vec<&str> =
        screen.lines().skip(first).take_while(|line| !line.contains("everyone ·")).collect();
    assert!(rows.len() >= 4, "{screen}");
    let column = rows[0].find("lorem").expect("found");
    for row in &rows[1..] {
        assert!(row.chars().count() <= 80 && row[..column].trim().is_empty(), "{screen}");
        assert!(!row[column..].starts_with(' '), "below the first word: {screen}");
    }
    let joined: Vec<&str> = rows.iter().map(|row| row[column..].trim()).collect();
    assert_eq!(joined.join(" "), words, "nothing is lost");
    let wide = "日本語のテキスト".repeat(8);
    bob.say(&wide);
    bob.say("naïve e\u{301}té ☕ ende");
    let screen = terminal.expect("ende");
    assert!(screen.contains("naïve e\u{301}té ☕ ende"), "{screen}");
    let shown: String = screen.chars().filter(|c| wide.contains(*c)).collect();
    assert_eq!(shown, wide, "{screen}");
    // In the input line, a wide character is one character and two columns.
    terminal.text("日本x");
    terminal.expect_last("> 日本x");
    terminal.keys(&["BSpace", "BSpace"]);
    terminal.expect_last("> 日");
    terminal.wait("the cursor", |_| terminal.tmux(&["display-message", "-p", "#{cursor_x}"]).trim() == "4");
    terminal.enter("é");
    bob.expect("<alice> 日é");
}

#[test]
fn a_resized_terminal_is_drawn_anew() {
    let (_server, terminal, mut bob) = alice_and_bob();
    bob.say("a message that is a little longer than forty columns are");
    terminal.expect("columns are");
    terminal.text("half a line");
    terminal.expect_last("> half a line");
    for (columns, rows) in [(40, 10), (120, 40), (20, 5), (80, 24)] {
        let (x, y) = (columns.to_string(), rows.to_string());
        terminal.tmux(&["resize-window", "-x", &x, "-y", &y]);
        let screen = terminal.wait("the new size", |screen| {
            let lines: Vec<&str> = screen.lines().collect();
            let filled = terminal.tmux(&["display-message", "-p", "#{cursor_y}"]);
            lines.len() == rows
                && filled.trim() == (rows - 1).to_string()
                && lines[rows - 1].starts_with("> half a line")
                && lines[rows - 2].starts_with(" everyone")
        });
        assert_eq!(screen.matches("half a line").count(), 1, "nothing is left over:\n{screen}");
        assert_eq!(screen.matches(" everyone ·").count(), 1, "nothing is left over:\n{screen}");
        let all: Vec<&str> = screen.split_whitespace().collect();
        if rows >= 10 {
            assert!(all.join(" ").contains("<bob> a message that is"), "{screen}");
        }
    }
    terminal.keys(&["Enter"]);
    bob.expect("<alice> half a line");
}

#[test]
fn commands_are_explained_and_a_mistyped_one_is_never_sent() {
    let (_server, terminal, mut bob) = alice_and_bob();
    terminal.enter("/help");
    let screen = terminal.expect("anything else goes to everyone");
    for command in ["/msg NAME TEXT", "/room NAME", "/leave", "/verify NAME", "/trust NAME", "/exit"] {
        assert!(screen.contains(command), "{command}:\n{screen}");
    }
    terminal.enter("/hlep");
    terminal.expect("there is no command /hlep: did you mean /help?");
    terminal.enter("/help room");
    terminal.expect("talk to NAME alone until /leave");
    terminal.enter("/clear");
    terminal.wait("an empty screen", |screen| !screen.contains("/hlep") && screen.contains("everyone ·"));
    terminal.enter("//hlep is not a command");
    terminal.expect("<alice> /hlep is not a command");
    assert_eq!(bob.expect("hlep"), "<alice> /hlep is not a command");
    terminal.enter("/history");
    terminal.expect("* the last message of this session");
    terminal.enter("/users");
    terminal.expect("2 on-line: alice (you), bob (not verified)");
    terminal.enter("/verify bob");
    terminal.expect("safety number with bob");
    terminal.enter("/verify bob yes");
    terminal.expect("* bob is verified");
    terminal.enter("/room bob");
    terminal.expect("end-to-end encrypted · verified");
}

#[test]
fn a_bar_shows_how_far_a_file_is_and_a_line_where_it_stands() {
    let server = Server::start();
    let terminal = Terminal::new();
    terminal.log_in(&server, "alice");
    let gate = Gate::before(&server);
    let mut bob = gate.client(Arc::new(Folder::new()), "bob", &["--register"]).ready();
    terminal.expect("* bob is on-line");
    let bytes: Vec<u8> = (0..8_000_000).map(|n: u32| (n % 251) as u8).collect();
    std::fs::write(bob.home.path("big.bin"), &bytes).expect("written");
    bob.say("/sendfile alice big.bin");
    terminal.expect("* bob offers you a file: \"big.bin\" (8.0 MB)");
    gate.hold_after(0);
    terminal.enter("/acceptfile");
    // It comes in small steps, one for each look, until something of it is seen; then it stands still.
    let screen = terminal.wait("a bar", |screen| {
        let seen = screen.contains(" big.bin ← bob ━");
        gate.hold_after(if seen { 0 } else { 128 * 1024 });
        seen
    });
    let bar = screen.lines().find(|line| line.contains('━')).expect("seen");
    assert!(bar.contains("━─") && bar.contains(" % · "), "{bar}");
    // It is above the status line and the input, and in nobody's way.
    let rows: Vec<&str> = screen.lines().collect();
    assert!(rows[21].contains('━') && rows[22].contains("everyone · on-line"), "{screen}");
    terminal.text("half a li");
    bob.expect("* sending \"big.bin\"");
    terminal.expect_last("> half a li");
    gate.open();
    terminal.expect("* \"big.bin\" (8.0 MB) from bob has arrived whole:");
    let screen = terminal.wait("the end of the bar", |screen| !screen.contains('━'));
    assert_eq!(last_line(&screen), "> half a li");
    let path = terminal.home.path(".secure_messenger_client/files/received/bob_big.bin");
    assert!(std::fs::read(path).expect("the file is there") == bytes);
}

#[test]
fn a_message_can_neither_move_the_cursor_nor_rename_the_terminal() {
    let (_server, terminal, mut bob) = alice_and_bob();
    let title = terminal.tmux(&["display-message", "-p", "#{pane_title}"]);
    bob.say("\u{1b}]0;owned\u{7}\u{1b}[2J\u{1b}[1;1Htop\u{1b}[?1049l\u{9b}5A bottom");
    let screen = terminal.expect("bottom");
    assert!(screen.contains("<bob> \u{fffd}]0;owned\u{fffd}\u{fffd}[2J\u{fffd}[1;1Htop"), "{screen}");
    assert!(!screen.lines().next().unwrap_or_default().contains("top"), "{screen}");
    assert_eq!(terminal.tmux(&["display-message", "-p", "#{pane_title}"]), title);
    terminal.expect_last(">");
}

#[test]
fn colours_are_used_unless_the_person_wants_none() {
    let server = Server::start();
    let coloured = |styled: &str| styled.contains("38;5;");
    let terminal = Terminal::new();
    terminal.log_in(&server, "alice");
    let mut bob = server.client("bob").ready();
    terminal.expect("* bob is on-line");
    bob.say("/msg alice in colour");
    terminal.expect("in colour");
    assert!(coloured(&terminal.styled()), "{:?}", terminal.styled());
    terminal.enter("/exit");
    terminal.wait_for_shell();
    terminal.enter(&format!("NO_COLOR=1 {}", terminal.unasked(&server, "alice")));
    terminal.expect(" on-line: ");
    bob.expect("* alice has left");
    bob.expect("* alice is on-line");
    bob.say("/msg alice without colour, @alice");
    terminal.expect("without colour");
    terminal.enter("/hlep");
    terminal.expect("did you mean");
    let styled = terminal.styled();
    assert!(!coloured(&styled), "{styled:?}");
    assert!(
        styled.contains("\u{1b}[1m") || styled.contains("\u{1b}[7m"),
        "it is still bold or reverse: {styled:?}"
    );
}

#[test]
fn nothing_is_drawn_on_a_dumb_terminal_or_into_a_pipe() {
    let server = Server::start();
    let terminal = Terminal::new();
    let raw = terminal.home.path("raw");
    // In two parts, so that what is awaited is not the line typed.
    terminal.enter("clear; echo clea''red");
    terminal.expect("cleared");
    terminal.wait_for_shell();
    // Everything that the terminal gets from here on.
    terminal.tmux(&["pipe-pane", "-o", &format!("cat > {}", raw.display())]);
    for command in [
        format!("TERM=dumb {}", terminal.unasked(&server, "alice")),
        format!("{} | cat", terminal.unasked(&server, "alice")),
        format!("{} --plain", terminal.unasked(&server, "alice")),
    ] {
        terminal.enter(&command);
        terminal.expect(" on-line: alice (you)");
        terminal.enter("/exit");
        terminal.wait_for_shell();
        terminal.enter("printf '\\n%.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24");
        terminal.wait("a scrolled screen", |screen| !screen.contains("on-line:"));
    }
    // Without an account and a password to use it says so, and asks nothing.
    terminal.enter(&format!("TERM=dumb {}", terminal.client(&server, "")));
    terminal.expect("give --user and --password-file");
    terminal.wait_for_shell();
    terminal.expect_status(2);
    terminal.tmux(&["pipe-pane"]);
    let end = Instant::now() + DEADLINE;
    let written = loop {
        let written = std::fs::read(&raw).unwrap_or_default();
        let text = String::from_utf8_lossy(&written).into_owned();
        if text.contains("status 2.") {
            break text;
        }
        assert!(Instant::now() < end, "{text}");
        thread::park_timeout(LOOK);
    };
    assert_eq!(written.matches("* logged in as alice").count(), 3, "{written}");
    assert!(!written.contains('\u{1b}') && !written.contains('\u{7}'), "{written:?}");
}

// ---- the ends

#[test]
fn leaving_leaves_the_terminal_as_it_was() {
    let (server, terminal) = (Server::start(), Terminal::new());
    let modes = terminal.modes();
    let leave: [&dyn Fn(); 3] = [
        &|| terminal.enter("/exit"),
        &|| {
            // With something typed, it is thrown away first.
            terminal.text("never sent");
            terminal.expect_last("> never sent");
            terminal.keys(&["C-c"]);
            terminal.expect_last(">");
            terminal.keys(&["C-c"]);
        },
        &|| terminal.keys(&["C-d"]),
    ];
    for leave in leave {
        terminal.log_in(&server, "alice");
        let inside = terminal.tmux(&["display-message", "-p", "#{alternate_on}"]);
        assert_eq!(inside.trim(), "1");
        leave();
        terminal.wait_for_shell();
        terminal.expect_status(0);
        assert!(!terminal.screen().contains("everyone ·"), "{}", terminal.screen());
        terminal.is_whole();
        assert_eq!(terminal.modes(), modes);
    }
}

#[test]
fn a_client_that_was_stopped_and_continued_goes_on() {
    let server = Server::start();
    let terminal = Terminal::new();
    let modes = terminal.modes();
    terminal.log_in(&server, "alice");
    let mut bob = server.client("bob").ready();
    terminal.expect("* bob is on-line");
    terminal.text("half a li");
    terminal.expect_last("> half a li");
    terminal.keys(&["C-z"]);
    terminal.wait_for_shell();
    terminal.is_whole();
    assert_eq!(terminal.modes(), modes);
    bob.say("while you were away");
    bob.expect("<bob> while you were away");
    terminal.enter("fg");
    terminal.expect("<bob> while you were away");
    terminal.expect_last("> half a li");
    terminal.enter("ne");
    bob.expect("<alice> half a line");
    terminal.keys(&["C-c"]);
    terminal.wait_for_shell();
    assert_eq!(terminal.modes(), modes);
}

#[test]
fn a_signal_ends_the_client_with_the_terminal_whole() {
    let (server, terminal) = (Server::start(), Terminal::new());
    let modes = terminal.modes();
    for signal in ["-TERM", "-HUP", "-INT"] {
        terminal.log_in(&server, "alice");
        let killed = Command::new("kill").args([signal, &terminal.child()]).status().expect("kill");
        assert!(killed.success());
        terminal.wait_for_shell();
        terminal.is_whole();
        assert_eq!(terminal.modes(), modes, "{signal}");
    }
}

#[test]
fn a_signal_at_a_question_ends_the_client_with_the_terminal_whole() {
    let (server, terminal) = (Server::start(), Terminal::new());
    let modes = terminal.modes();
    for signal in ["-TERM", "-INT"] {
        terminal.enter("clear");
        terminal.enter(&terminal.client(&server, "--user alice"));
        terminal.expect_last("password:");
        let killed = Command::new("kill").args([signal, &terminal.child()]).status().expect("kill");
        assert!(killed.success());
        let screen = terminal.wait("the shell", |screen| screen.matches("ready>").count() == 2);
        assert!(last_line(&screen) == "ready>", "on a line of its own: {screen}");
        assert_eq!(terminal.modes(), modes, "{signal}");
    }
}

#[test]
fn a_server_that_dies_leaves_the_terminal_whole_and_a_reason_on_it() {
    let (server, terminal) = (Server::start(), Terminal::new());
    let modes = terminal.modes();
    terminal.log_in(&server, "alice");
    drop(server);
    terminal.wait_for_shell();
    assert!(terminal.screen().contains("the connection to the server is lost"), "{}", terminal.screen());
    terminal.is_whole();
    terminal.expect_status(1);
    assert_eq!(terminal.modes(), modes);
}

#[test]
fn a_login_elsewhere_ends_the_older_client_with_the_reason_on_the_normal_screen() {
    let (server, terminal) = (Server::start(), Terminal::new());
    terminal.log_in(&server, "alice");
    let home = terminal.home.clone();
    let second = Client::within(home, server.port, "alice", true, &[]).ready();
    terminal.wait_for_shell();
    assert!(terminal.screen().contains("you have logged in from elsewhere"), "{}", terminal.screen());
    terminal.expect_status(1);
    assert_eq!(second.finish().0, 0);
}

#[test]
fn a_server_that_dies_with_a_message_under_way_leaves_both_facts_on_the_screen() {
    let (mut server, terminal, bob) = alice_and_bob();
    terminal.enter("the first");
    terminal.expect("<alice> the first");
    let frozen = Command::new("kill").args(["-STOP", &server.child.id().to_string()]).status().expect("kill");
    assert!(frozen.success());
    terminal.text("the second");
    terminal.expect_last("> the second");
    terminal.keys(&["Enter"]);
    terminal.expect_last(">");
    server.child.kill().expect("a child");
    terminal.wait_for_shell();
    let screen = terminal.screen();
    assert!(screen.contains("the connection to the server is lost"), "{screen}");
    assert!(screen.contains("1 message of yours was not acknowledged"), "{screen}");
    let (status, lines) = bob.finish();
    assert_eq!(status, 1, "{lines:#?}");
}

/// Not a test of its own: what [`a_panic_is_told_on_the_normal_screen`] runs in a terminal.
#[test]
#[ignore = "panics on purpose, and needs a terminal"]
#[should_panic]
fn panic_on_the_full_screen() {
    secure_messenger::client::terminal::install_panic_hook();
    let terminal = secure_messenger::client::terminal::Terminal::open(false).expect("a terminal");
    // Never dropped: whatever is restored, the hook restores.
    std::mem::forget(terminal);
    panic!("as it was meant to");
}

#[test]
fn a_panic_is_told_on_the_normal_screen() {
    let terminal = Terminal::new();
    let modes = terminal.modes();
    let program = std::env::current_exe().expect("this program");
    terminal.enter("clear");
    terminal.enter(&format!(
        "RUST_BACKTRACE=0 {} --ignored --exact panic_on_the_full_screen --nocapture; echo \"en\"\"ded\"",
        program.display()
    ));
    let screen = terminal.expect("ended");
    assert!(screen.contains("as it was meant to"), "{screen}");
    terminal.wait_for_shell();
    terminal.is_whole();
    assert_eq!(terminal.modes(), modes);
}

#[test]
fn a_scrolled_view_stays_where_it_is_and_a_rule_marks_where_reading_stopped() {
    let (_server, terminal, mut bob) = alice_and_bob();
    for number in 0..40 {
        bob.say(&format!("line number {number}."));
    }
    terminal.expect("<bob> line number 39.");
    terminal.keys(&["PPage"]);
    let scrolled = terminal.expect(" ↑");
    let first = scrolled.lines().next().expect("a row").to_string();
    bob.say("while you were reading");
    bob.say("twice");
    let screen = terminal.expect("↓2 new");
    assert_eq!(screen.lines().next(), Some(&*first), "{screen}");
    assert!(!screen.contains("while you"), "{screen}");
    terminal.keys(&["Escape"]);
    let screen = terminal.expect("<bob> twice");
    let rows: Vec<&str> = screen.lines().collect();
    let rule = rows.iter().position(|row| row.starts_with("── new ──")).expect("a rule");
    assert!(rows[rule - 1].contains("line number 39.") && rows[rule + 1].contains("while you"), "{screen}");
    assert!(!screen.contains("↓2 new"), "{screen}");
}

#[test]
fn the_desktop_is_told_of_a_private_message_while_the_window_is_elsewhere() {
    let (_server, terminal, mut bob) = alice_and_bob();
    let pipe = terminal.home.path("piped");
    terminal.tmux(&["pipe-pane", &format!("cat > {}", pipe.display())]);
    let piped = || std::fs::read(&pipe).unwrap_or_default();
    let told = || String::from_utf8_lossy(&piped()).matches("\x1b]9;message from bob\x07").count();
    bob.say("/msg alice one");
    terminal.expect("[private bob → alice] one");
    assert_eq!(told(), 0, "the window has the keyboard");
    // What a terminal sends when its window loses the keyboard, and gets it back.
    terminal.tmux(&["send-keys", "-H", "1b", "5b", "4f"]);
    common::until("told", || {
        bob.say("/msg alice again");
        bob.expect("again");
        told() > 0
    });
    terminal.tmux(&["send-keys", "-H", "1b", "5b", "49"]);
    terminal.enter("/notify off");
    terminal.expect("* the terminal does not ring");
}

#[test]
fn messages_of_earlier_sessions_stand_above_a_rule() {
    let server = Server::start();
    let terminal = Terminal::new();
    let mut bob = server.client("bob").ready();
    let keep = ["--register", "--keep-history"];
    let mut before = Client::within(terminal.home.clone(), server.port, "alice", true, &keep).ready();
    for name in ["bob", "carol"] {
        let mut other = if name == "bob" { None } else { Some(server.client(name).ready()) };
        other.as_mut().unwrap_or(&mut bob).say(&format!("/msg alice from {name}"));
        before.expect(&format!("from {name}"));
    }
    before.say("/ignore carol");
    before.expect("* nothing from carol is shown any more");
    assert_eq!(before.finish().0, 0);
    let client = terminal.unasked(&server, "alice") + " --keep-history";
    terminal.enter(&client);
    let screen = terminal.expect(" on-line: ");
    let rows: Vec<&str> = screen.lines().collect();
    let rule = rows.iter().position(|row| row.starts_with("── earlier sessions ──")).expect("a rule");
    assert!(rows[rule - 1].contains("[private bob → alice] from bob"), "{screen}");
    assert!(rows[rule + 1].contains("* logged in as alice"), "{screen}");
    assert!(!screen.contains("from carol"), "of somebody who is ignored: {screen}");
    terminal.enter("/history forget");
    let screen = terminal.expect("the file that kept them is erased");
    assert!(!screen.contains("from bob"), "{screen}");
}
