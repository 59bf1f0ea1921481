//! The full-screen client in a real terminal, tmux: what the screen shows, what keys do, and that the terminal is
//! restored however the client ends. Screens are polled, with a deadline that only a broken program reaches.

use crate::support::{self, Client, DEADLINE, Folder, Gate, PASSWORD, Server, has, until};
use secure_messenger::crypto::secret::random;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The pause between two looks at the screen.
const LOOK: Duration = Duration::from_millis(15);

/// A shell in a terminal of 80 by 24.
struct Terminal {
    home: Arc<Folder>,
}

impl Terminal {
    /// `None` without tmux.
    fn new() -> Option<Terminal> {
        if !has("tmux") {
            return None;
        }
        let terminal = Terminal { home: Arc::new(Folder::new()) };
        terminal.tmux(&["new-session", "-d", "-x", "80", "-y", "24", "sh"]);
        terminal.tmux(&["set-option", "-g", "window-size", "manual"]);
        terminal.wait("a shell", |screen| !screen.trim().is_empty());
        // In two parts, so that the typed line does not look like the prompt.
        terminal.enter("PS1='rea''dy> '; clear");
        terminal.wait_for_shell();
        Some(terminal)
    }

    /// Runs a tmux command on a private socket in the test's own folder and returns its output.
    fn tmux(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux")
            .args(["-u", "-f", "/dev/null", "-S"])
            .arg(self.home.path("tmux"))
            .args(arguments)
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

    /// The screen with colours and styles as escape sequences.
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
            assert!(Instant::now() < end, "{what} did not appear:\n{screen}");
            thread::park_timeout(LOOK);
        }
    }

    fn expect(&self, part: &str) -> String {
        self.wait(part, |screen| screen.contains(part))
    }

    /// Types a line, and waits until `part` is on the screen.
    fn ask(&self, line: &str, part: &str) -> String {
        self.enter(line);
        self.expect(part)
    }

    /// Waits until this is the last line that is not empty.
    fn expect_last(&self, line: &str) -> String {
        self.wait(line, |screen| last_line(screen) == line)
    }

    fn wait_for_shell(&self) {
        self.expect_last("ready>");
    }

    /// The command line of a client with these arguments.
    fn client(&self, port: u16, arguments: &str) -> String {
        let program = env!("CARGO_BIN_EXE_client");
        format!("{program} --host 127.0.0.1 --port {port} {arguments}")
    }

    /// Starts a client that logs in without questions, and waits for its screen.
    fn log_in(&self, port: u16, name: &str) {
        self.enter(&self.unasked(port, name));
        let status = format!(" everyone · online · end-to-end encrypted · {name} · ");
        self.wait("a login", |screen| screen.contains(&status) && !screen.contains(" 0 people"));
    }

    fn unasked(&self, port: u16, name: &str) -> String {
        let password = self.home.password_file(PASSWORD);
        let rest = format!("--accept-new --user {name} --register --password-file {}", password.display());
        self.client(port, &rest)
    }

    /// What tmux reports about the terminal.
    fn tell(&self, format: &str) -> String {
        self.tmux(&["display-message", "-p", format]).trim_end().to_string()
    }

    /// A screen with content to restore, and a new record of what is written to it.
    fn prepare(&self) -> Before {
        // Close an open pipe first: the command is a toggle.
        self.tmux(&["pipe-pane"]);
        // Otherwise the screen and the record of the last time would pass for the new ones.
        let _ = std::fs::remove_file(self.record());
        let mark: String = random::<4>().iter().map(|byte| format!("{byte:02x}")).collect();
        self.enter(&format!("clear; printf 'kept %s.\\n' one two {mark}"));
        self.expect(&format!("kept {mark}."));
        self.wait_for_shell();
        self.tmux(&["pipe-pane", &format!("cat > {}", self.record().display())]);
        Before { modes: self.modes(), screen: self.screen() }
    }

    fn record(&self) -> PathBuf {
        self.home.path("written")
    }

    /// Everything that was written to the terminal since `prepare`, as soon as it contains `part`.
    fn written(&self, part: &str) -> String {
        until(part, || self.so_far().contains(part));
        self.so_far()
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.record()).unwrap_or_default()).into_owned()
    }

    /// All modes that can be queried: of the line, and of the terminal.
    fn modes(&self) -> String {
        let line = Command::new("stty").args(["-a", "-F", &self.tell("#{pane_tty}")]).output().expect("stty");
        assert!(line.status.success(), "{line:?}");
        let terminal = "alternate #{alternate_on} cursor #{cursor_flag} wrap #{wrap_flag} insert #{insert_flag} \
            origin #{origin_flag} keypad #{keypad_flag} #{keypad_cursor_flag} mouse #{mouse_any_flag} \
            #{mouse_standard_flag} #{mouse_button_flag} #{mouse_all_flag} #{mouse_sgr_flag} #{mouse_utf8_flag} \
            region #{scroll_region_upper} #{scroll_region_lower}";
        String::from_utf8(line.stdout).expect("UTF-8") + &self.tell(terminal)
    }

    /// The client has left only its exit status, and `said` on the normal screen.
    fn expect_as_before(&self, before: &Before, what: &str, said: &str, status: u8) {
        // The last prompt may be the one before the client's command.
        self.wait(said, |screen| screen.lines().collect::<String>().contains(said));
        self.wait_for_shell();
        let (modes, screen) = (self.modes(), self.screen());
        assert_eq!(modes, before.modes, "{what}");
        let kept = before.screen.trim_end();
        assert!(screen.starts_with(kept), "{what}:\n{kept}\nstood there before; now:\n{screen}");
        let text: String = screen.lines().collect();
        assert!(text.contains(said) && !text.contains("everyone ·"), "{what}: {said:?}\n{screen}");
        let styled = self.styled();
        assert_eq!(last_line(&styled), "ready>", "{what}: without colour or style");
        self.expect_status(status);
        // Modes that tmux cannot report.
        let written = self.written(&format!("status {status}."));
        assert_eq!(changed_modes(&written), "", "{what}");
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

    fn signal(&self, signal: &str) {
        support::signal(self.child().parse().expect("a number"), signal);
    }
}

/// What the client must restore.
struct Before {
    modes: String,
    screen: String,
}

/// The private modes (DECSET) that differ from those of a new terminal after this output.
fn changed_modes(written: &str) -> String {
    let mut changed = BTreeSet::new();
    for sequence in written.split("\u{1b}[?").skip(1) {
        let length = sequence.find(|c: char| !c.is_ascii_digit() && c != ';').unwrap_or(sequence.len());
        let on = match sequence[length..].chars().next() {
            Some('h') => true,
            Some('l') => false,
            _ => continue,
        };
        for mode in sequence[..length].split(';') {
            // A new terminal wraps, and shows its cursor.
            match on == ["7", "25"].contains(&mode) {
                true => changed.remove(mode),
                false => changed.insert(mode),
            };
        }
    }
    changed.into_iter().collect::<Vec<_>>().join(" ")
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let socket = self.home.path("tmux");
        let _ = Command::new("tmux").arg("-S").arg(socket).arg("kill-server").env_remove("TMUX").output();
    }
}

/// A client that sends one message after another until it is stopped.
struct Talker {
    quiet: Arc<AtomicBool>,
    talking: thread::JoinHandle<Client>,
}

impl Talker {
    fn start(mut who: Client) -> Talker {
        let quiet = Arc::new(AtomicBool::new(false));
        let told = quiet.clone();
        let talking = thread::spawn(move || {
            for number in 0.. {
                if told.load(Ordering::Relaxed) {
                    break;
                }
                who.ask(&format!("word {number}."), &format!(" word {number}."));
            }
            who
        });
        Talker { quiet, talking }
    }

    fn stop(self) -> Client {
        self.quiet.store(true, Ordering::Relaxed);
        self.talking.join().expect("it could send all the time")
    }
}

fn last_line(screen: &str) -> &str {
    screen.lines().map(str::trim_end).rfind(|line| !line.is_empty()).unwrap_or_default()
}

/// One user in the full screen and one in plain mode, who see each other.
fn alice_and_bob() -> Option<(Server, Terminal, Client)> {
    let server = Server::start();
    let terminal = Terminal::new()?;
    terminal.log_in(server.port, "alice");
    let bob = server.client("bob").ready();
    terminal.expect("* bob is online");
    Some((server, terminal, bob))
}

// ---- before the login

#[test]
fn menu_creates_and_uses_an_account_with_a_hidden_password() {
    let server = Server::start();
    let Some(terminal) = Terminal::new() else { return };
    let client = terminal.client(server.port, "");
    terminal.ask(&client, "  1  create an account");
    terminal.expect_last(">");
    terminal.ask("9", "type 1, 2 or 3");
    terminal.enter("1");
    terminal.expect_last("name:");
    terminal.ask("al ice", "a name is 1 to 32 letters");
    terminal.enter("alice");
    let new = "new password (hidden, at least 6 characters):";
    let again = "repeat password:";
    let unseen = |screen: &str| assert!(!screen.contains("hunter") && !screen.contains('*'), "{screen}");
    terminal.expect_last(new);
    terminal.ask("hunt5", "a password has at least 6 characters");
    terminal.expect_last(new);
    terminal.text("hunter22");
    unseen(&terminal.expect_last(new));
    terminal.keys(&["Enter"]);
    terminal.expect_last(again);
    terminal.enter("hunter23");
    unseen(&terminal.expect("the two passwords do not match"));
    terminal.expect_last(new);
    terminal.enter("hunter22");
    terminal.expect_last(again);
    terminal.enter("hunter22");
    // The client asks before it trusts an unknown server.
    let fingerprint = server.greeting.join(" ");
    let at = fingerprint.find("SHA256:").expect("printed");
    terminal.expect(&fingerprint[at..at + 50]);
    unseen(&terminal.expect_last("do they match? (yes/no)"));
    terminal.enter("yes");
    unseen(
        &terminal
            .wait("a login", |screen| screen.replace("* ", "").contains("logged in as alice"))
            .replace("* ", ""),
    );
    terminal.enter("/exit");
    unseen(&terminal.expect_last("ready>"));
    terminal.expect_status(0);
    // Log in with the password; the server is known now.
    terminal.enter("clear");
    terminal.enter(&client);
    terminal.expect_last(">");
    terminal.enter("2");
    terminal.expect_last("name:");
    terminal.enter("alice");
    terminal.expect_last("password:");
    terminal.enter("hunter23");
    unseen(&terminal.expect("the password is wrong"));
    // The next input is a password again, not a choice of the menu, which would be visible.
    terminal.expect_last("password:");
    terminal.text("hunter24");
    unseen(&terminal.expect_last("password:"));
    terminal.keys(&["Enter"]);
    terminal.wait("a second answer", |screen| screen.matches("the password is wrong").count() == 2);
    terminal.expect_last("password:");
    terminal.keys(&["Enter"]);
    unseen(&terminal.expect_last(">"));
    terminal.enter("2");
    terminal.expect_last("name:");
    terminal.enter("carol");
    terminal.expect_last("password:");
    terminal.ask("hunter22", "there is no key for carol on this machine");
    terminal.expect_last(">");
    terminal.enter("2");
    terminal.expect_last("name:");
    terminal.enter("alice");
    terminal.expect_last("password:");
    terminal.ask("hunter22", "logged in as alice");
}

#[test]
fn new_password_is_typed_hidden_and_never_sent_as_a_message() {
    let Some((server, terminal, mut bob)) = alice_and_bob() else { return };
    let unseen = |screen: &str| assert!(!screen.contains("hunter"), "{screen}");
    terminal.enter("/passwd");
    terminal.expect_last("old password (hidden):");
    // An Escape that could begin an arrow key does not end the prompt in the middle of a word.
    terminal.text("hunter1");
    terminal.keys(&["Escape"]);
    terminal.text("hunter2");
    terminal.keys(&["C-c"]);
    unseen(&terminal.expect("your password was not changed"));
    terminal.expect_last(">");
    terminal.enter("/clear");
    terminal.enter("/passwd");
    terminal.expect_last("old password (hidden):");
    terminal.keys(&["Escape"]);
    terminal.expect("your password was not changed");
    terminal.expect_last(">");
    // All lines are typed before their prompts appear.
    terminal.enter("/passwd");
    for line in ["hunter1", "hunt2", "hunter22", "hunter23", "hunter22"] {
        terminal.enter(line);
    }
    unseen(&terminal.expect_last("repeat password:"));
    terminal.expect("a password has at least 6 characters");
    terminal.expect("the two passwords do not match");
    terminal.ask("hunter22", "the old password is wrong");
    unseen(&terminal.expect_last("old password (hidden):"));
    for line in [PASSWORD, "hunter22", "hunter22"] {
        terminal.enter(line);
    }
    unseen(&terminal.expect("your password is changed"));
    terminal.enter("hello bob");
    assert_eq!(bob.expect("hello bob"), "<alice> hello bob");
    assert!(bob.output.seen.iter().all(|line| !line.contains("hunt") && !line.contains(PASSWORD)));
    terminal.enter("/exit");
    terminal.wait_for_shell();
    terminal.enter(&terminal.client(server.port, "--user alice"));
    terminal.expect_last("password:");
    terminal.ask("hunter22", "logged in as alice");
}

#[test]
fn every_prompt_can_be_cancelled() {
    let server = Server::start();
    let Some(terminal) = Terminal::new() else { return };
    let new = "new password (hidden, at least 6 characters):";
    // Escape and Ctrl-C return to the menu from every prompt.
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
    terminal.enter(&terminal.client(server.port, ""));
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
    terminal.expect_last("repeat password:");
    back("Escape");
    menu(&[("name:", "alice"), (new, PASSWORD), ("repeat password:", PASSWORD)]);
    terminal.expect_last("do they match? (yes/no)");
    back("Escape");
    menu(&[("name:", "alice"), (new, PASSWORD), ("repeat password:", PASSWORD)]);
    terminal.expect_last("do they match? (yes/no)");
    terminal.ask("no", "is not known yet");
    terminal.expect_last(">");
    let key = terminal.home.path(".secure_messenger_client/keys/alice_private.key");
    assert!(!key.exists(), "a refused account leaves no key");
    assert!(!server.log().contains("alice"), "nothing was sent to an untrusted server");
    // Leave the menu.
    terminal.enter("3");
    terminal.wait_for_shell();
    terminal.expect_status(0);
}

#[test]
fn unreachable_server_is_reported_and_the_menu_returns() {
    let server = Server::start();
    let Some(terminal) = Terminal::new() else { return };
    let client = terminal.client(server.port, "--user alice --register");
    drop(server);
    terminal.enter(&client);
    let new = "new password (hidden, at least 6 characters):";
    terminal.expect_last(new);
    terminal.enter(PASSWORD);
    terminal.expect_last("repeat password:");
    terminal.ask(PASSWORD, "cannot be reached");
    terminal.expect_last(">");
    terminal.enter("3");
    terminal.wait_for_shell();
}

#[test]
fn interrupt_ends_a_client_that_is_connecting() {
    let (silent, Some(terminal)) = (TcpListener::bind("127.0.0.1:0").expect("a listener"), Terminal::new())
    else {
        return;
    };
    let before = terminal.prepare();
    terminal.ask(&terminal.unasked(silent.local_addr().expect("bound").port(), "alice"), "connecting ...");
    terminal.keys(&["C-c"]);
    terminal.expect_as_before(&before, "connecting", "connecting ...", 130);
}

// ---- talking

#[test]
fn typing_is_undisturbed_by_what_arrives() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
    terminal.text("half a li");
    terminal.expect_last("> half a li");
    for text in ["one", "two", "three"] {
        bob.say(text);
        terminal.expect(&format!("<bob?> {text}"));
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
fn terminal_that_accepts_no_output_holds_up_no_message() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
    let tmux: u32 = terminal.tell("#{pid}").parse().expect("a number");
    support::signal(tmux, "-STOP");
    // Far more than may be unacknowledged: bob repeats what is refused meanwhile.
    let taken = (0..60).all(|n| {
        let end = Instant::now() + DEADLINE;
        loop {
            bob.say(&format!("number {n} {}", "word ".repeat(4000)));
            if bob.expect(&format!("number {n} ")).starts_with("<bob> ") {
                return true;
            }
            if Instant::now() > end {
                return false;
            }
            thread::park_timeout(LOOK);
        }
    });
    support::signal(tmux, "-CONT");
    assert!(taken, "{:#?}", bob.output.seen.last());
    bob.say("the last");
    terminal.expect("<bob?> the last");
}

#[test]
fn conversation_has_its_view_and_the_prompt_names_it() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
    bob.say("to everyone");
    bob.say("/msg alice for you alone");
    bob.say("/msg alice and again");
    terminal.expect("<bob?> to everyone");
    let screen = terminal.expect(" [1 everyone]  2 bob? (2) · online");
    assert!(!screen.contains("for you alone"), "{screen}");
    terminal.enter("/msg bob an answer");
    // Shown in this view, too, because it may fail.
    terminal.expect("[private alice → bob?] an answer ✓");
    bob.expect("<alice -> bob> an answer");
    terminal.text("half a line for all");
    terminal.keys(&["M-2"]);
    let screen = terminal.expect("[private bob? → alice] for you alone");
    assert!(screen.contains("── new ──") && screen.contains("an answer ✓"), "{screen}");
    assert!(screen.contains(" 1 everyone  [2 private with bob?] · not verified · online"), "{screen}");
    terminal.expect_last("bob>");
    terminal.ask("privately", "[private alice → bob?] privately ✓");
    bob.expect("<alice -> bob> privately");
    terminal.keys(&["M-Left"]);
    terminal.expect_last("> half a line for all");
    terminal.keys(&["C-u"]);
    terminal.ask("/room bob", "you are in a private room with bob");
    terminal.expect("[2 room with bob?]");
    bob.expect("* alice has opened a private room with you: /room alice joins it");
    terminal.ask("in here", "(room alice → bob?) in here ✓");
    bob.expect("<alice -> bob> in here");
    bob.say("/room alice");
    terminal.expect("* bob has joined the room");
    bob.say("me too");
    terminal.expect("(room bob? → alice) me too");
    terminal.ask("/leave", "[1 everyone]  2 bob?");
    terminal.expect_last(">");
    bob.expect("* alice has left the room");
    terminal.enter("back");
    bob.expect("<alice> back");
    terminal.expect("<alice> back ✓");
    terminal.keys(&["M-Right"]);
    terminal.expect_last("bob>");
    terminal.ask("/leave", "* conversation with bob closed; you are talking to everyone");
    terminal.expect(" everyone · online");
}

#[test]
fn failed_message_shows_why_and_one_key_resends_it() {
    let Some((server, terminal, bob)) = alice_and_bob() else { return };
    let home = bob.home.clone();
    assert_eq!(bob.finish().0, 0);
    terminal.expect("* bob has left");
    terminal.ask("are you there?", "✗ nobody else is online: your message was not sent; Alt-R sends");
    let mut bob = Client::within(home, server.port, "bob", true, &[]).ready();
    terminal.expect("* bob is online");
    terminal.keys(&["M-r"]);
    let screen = terminal.expect("<alice> are you there? ✓");
    assert!(!screen.contains('✗'), "{screen}");
    bob.expect("<alice> are you there?");
}

#[test]
fn escape_and_a_command_that_come_together_are_both_taken() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
    terminal.tmux(&["send-keys", "-l", "\u{1b}/help room"]);
    terminal.expect("> /help room ");
    terminal.keys(&["Enter"]);
    terminal.expect("talk to NAME alone; /leave returns");
    terminal.enter("and a message");
    assert_eq!(bob.expect("<alice>"), "<alice> and a message");
}

#[test]
fn wheel_scrolls() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
    for number in 0..40 {
        bob.say(&format!("line number {number}."));
    }
    terminal.expect("line number 39.");
    // As a terminal reports it: button 64 at column 10, row 5.
    terminal.tmux(&["send-keys", "-l", "\u{1b}[<64;10;5M"]);
    terminal.expect(" ↑3 · ");
    terminal.tmux(&["send-keys", "-l", "\u{1b}[<65;10;5M"]);
    terminal.wait("the end", |screen| !screen.contains('↑'));
}

#[test]
fn tab_completes_search_finds_and_lines_form_one_message() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
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
    bob.expect("<alice> @bob: first⏎<bob> second");
    let screen = terminal.expect("<bob> second");
    let rows: Vec<&str> = screen.lines().skip_while(|row| !row.contains("<alice> @bob: first")).collect();
    assert!(rows[1].trim_start().starts_with("<bob> second"), "{screen}");
    assert_eq!(rows[0].find("@bob: first"), rows[1].find("<bob> second"), "below the text: {screen}");
    // A half-typed line survives a search, whether or not it is abandoned.
    terminal.text("half");
    terminal.keys(&["C-r"]);
    terminal.text("FIR");
    terminal.expect_last("(search) FIR: @bob: first⏎<bob> second");
    terminal.keys(&["C-g"]);
    terminal.expect_last("> half");
    terminal.keys(&["C-r"]);
    terminal.enter("fir");
    bob.expect("<alice> @bob: first⏎<bob> second");
    terminal.expect_last("> half");
}

#[test]
fn paste_holds_no_keys_and_several_lines_need_a_second_enter() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
    let paste = |text: &str| {
        terminal.tmux(&["set-buffer", "--", text]);
        // Between the marks, and with CR instead of LF, as terminals send it.
        terminal.tmux(&["paste-buffer", "-p"]);
    };
    terminal.text("half");
    let question = "2 lines pasted: Enter sends one message, Esc removes it";
    for last in ["Escape", "Enter"] {
        paste(" a\n/exit\n");
        terminal.expect_last("> half a⏎/exit");
        terminal.keys(&["Enter"]);
        terminal.expect(question);
        terminal.keys(&[last]);
        terminal.wait("no question", |screen| !screen.contains(question));
    }
    bob.expect("<alice> half a⏎/exit");
    terminal.expect_last(">");
    // Keys that leave, suspend, clear the line, complete, search and send; arrows and pages; lost focus; the beginning
    // of an end mark and what resembles one: in a paste, none has its usual effect.
    let keys = [
        "\u{3}\u{4}\u{1a}\u{15}\t\u{12}\u{c}\u{7f}",
        "\u{1b}[A\u{1b}[5~\u{1b}OM\u{1b}[O\u{1b}\r\u{1b}",
        "\u{1b}[200~\u{1b}[201\u{1b}[20\u{1b}[0201~\u{1b}[201;1~\u{1b}[201 ~\u{9b}201~",
        "\u{1b}]0;owned\u{7}\u{1b}[2J\u{1b}[?1049l",
    ];
    for keys in keys {
        let title = terminal.tell("#{pane_title}");
        terminal.text("be");
        paste(&format!("fore{keys}/exit after"));
        let line = terminal.wait("what was pasted", |screen| {
            last_line(screen).starts_with("> before") && last_line(screen).ends_with("/exit after")
        });
        assert_eq!(terminal.tell("#{alternate_on} #{pane_title}"), format!("1 {title}"), "{line}");
        assert!(!line.contains("(search)") && !line.contains(" ↑"), "{line}");
        // With a line end, the client asks first; Enter again sends it.
        terminal.keys(&["Enter"]);
        let screen = terminal.wait("sent, or asked about", |screen| {
            screen.contains("lines pasted") || last_line(screen) == ">"
        });
        if screen.contains("lines pasted") {
            terminal.keys(&["Enter"]);
        }
        let got = bob.expect("<alice> before");
        assert!(got.ends_with("/exit after") && !got.contains(char::is_control), "{got:?}");
        terminal.expect_last(">");
    }
}

#[test]
fn lines_without_paste_marks_are_a_paste_all_the_same() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
    terminal.tmux(&["set-buffer", "--", "one\n/exit\n"]);
    // Without marks, as a terminal without bracketed paste sends it.
    terminal.tmux(&["paste-buffer"]);
    terminal.expect_last("> one⏎/exit");
    terminal.keys(&["Enter"]);
    terminal.expect("2 lines pasted: Enter sends one message");
    terminal.keys(&["Enter"]);
    bob.expect("<alice> one⏎/exit");
    // Text that looks like a command is refused as when it is typed.
    terminal.tmux(&["set-buffer", "--", "\n/msg bob secret\n"]);
    terminal.tmux(&["paste-buffer"]);
    terminal.expect_last("> ⏎/msg bob secret");
    terminal.keys(&["Enter"]);
    terminal.expect("lines pasted: Enter sends one message");
    terminal.keys(&["Enter"]);
    terminal.expect("a command must begin with /");
    terminal.ask("\u{ff0f}msg bob secret", "U+FF0F is not a slash");
    terminal.enter("after it");
    assert_eq!(bob.expect("<alice"), "<alice> after it");
}

#[test]
fn terminal_replies_and_unfinished_input_type_nothing() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
    let send = |bytes: &str| terminal.tmux(&["send-keys", "-l", "--", bytes]);
    for reply in [
        "\u{1b}]11;rgb:0000/0000/0000\u{1b}\\",
        "\u{1b}]10;rgb:ffff/ffff/ffff\u{7}",
        "\u{1b}P>|XTerm(390)\u{1b}\\",
        "\u{1b}_Gi=31;OK\u{1b}\\",
        "\u{1b}[?62;22c\u{1b}[>1;10;0c\u{1b}[?2026;2$y",
        "\u{1b}Od\u{1b}[c\u{1b}[7~",
    ] {
        send(reply);
    }
    send("half");
    terminal.expect_last("> half");
    terminal.keys(&["C-u"]);
    terminal.expect_last(">");
    // The end mark never arrives; the keyboard works again.
    send("\u{1b}[200~pasted");
    terminal.expect_last("> pasted");
    terminal.text(" and typed");
    terminal.expect_last("> pasted and typed");
    terminal.keys(&["Enter"]);
    assert_eq!(bob.expect("<alice"), "<alice> pasted and typed");
}

#[test]
fn paste_in_several_reads_stays_one_and_sends_nothing() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
    // Without marks, then with a start mark and pauses longer than the client waits.
    for (first, shown) in [("one\n/exit\n", "one⏎/exit"), ("\u{1b}[200~one\n/exit\n", "one⏎/exit")] {
        terminal.text(first);
        terminal.expect_last(&format!("> {shown}"));
        terminal.text("/exit\n");
        terminal.expect_last(&format!("> {shown}⏎/exit"));
        terminal.text("\n\n");
        terminal.text("three\n");
        terminal.expect_last(&format!("> {shown}⏎/exit⏎⏎⏎three"));
        terminal.keys(&["Enter"]);
        terminal.expect("6 lines pasted: Enter sends one message");
        terminal.keys(&["Enter"]);
        assert_eq!(bob.expect("<alice"), format!("<alice> {shown}⏎/exit⏎⏎⏎three"));
    }
    // One line, whose rest arrives in time and then too late.
    terminal.text("\u{1b}[200~hello ");
    terminal.expect_last("> hello");
    terminal.text(" world\n");
    terminal.expect_last("> hello  world");
    terminal.text("/exit\n");
    terminal.expect_last("> hello  world⏎/exit");
    terminal.text("\u{1b}[201~");
    terminal.keys(&["C-u"]);
    terminal.expect_last(">");
    terminal.enter("after it");
    assert_eq!(bob.expect("<alice"), "<alice> after it");
}

#[test]
fn other_views_are_reached_without_alt() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
    bob.say("/msg alice for you alone");
    terminal.expect(" [1 everyone]  2 bob? (1) · ");
    terminal.enter("/view 2");
    terminal.expect_last("bob>");
    terminal.enter("/view");
    terminal.expect_last(">");
    terminal.keys(&["Escape", "2"]);
    terminal.expect_last("bob>");
    terminal.enter("/view Everyone");
    terminal.expect_last(">");
    terminal.enter("/view BOB");
    terminal.expect_last("bob>");
    terminal.ask("/view 9", "there is no view 9");
    terminal.ask("/view carol", "no user named carol is known");
    terminal.enter("to you");
    bob.expect("<alice -> bob> to you");
    assert!(bob.output.seen.iter().all(|line| !line.contains("room")), "{:?}", bob.output.seen);
}

#[test]
fn mouse_command_toggles_who_handles_the_mouse() {
    let server = Server::start();
    let Some(terminal) = Terminal::new() else { return };
    let mouse = |flag: &str| support::until(flag, || terminal.tell("#{mouse_any_flag}") == flag);
    terminal.log_in(server.port, "alice");
    mouse("1");
    terminal.ask("/mouse", "the mouse now selects text");
    mouse("0");
    terminal.ask("/mouse", "the mouse wheel now scrolls");
    mouse("1");
    terminal.enter("/exit");
    terminal.wait_for_shell();
    terminal.ask(&format!("{} --no-mouse", terminal.unasked(server.port, "alice")), " online: ");
    mouse("0");
}

#[test]
fn cursor_stands_where_the_terminal_shows_it_behind_emoji() {
    let server = Server::start();
    let Some(terminal) = Terminal::new() else { return };
    terminal.log_in(server.port, "alice");
    for emoji in [
        "👩\u{200d}🚀",
        "👍🏽",
        "☺\u{fe0f}",
        "❤\u{fe0f}\u{200d}🔥",
        "👨\u{200d}👩\u{200d}👧",
        "🇩🇪",
        "e\u{301}",
        "日",
    ] {
        terminal.text(&format!("{emoji}x"));
        terminal.wait(emoji, |screen| last_line(screen).ends_with('x'));
        terminal.keys(&["Left"]);
        support::until(emoji, || terminal.tell("#{cursor_character}") == "x");
        terminal.keys(&["C-u", "C-k"]);
        terminal.expect_last(">");
    }
}

#[test]
fn address_is_a_link_and_nothing_of_it_a_sequence() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
    terminal.tmux(&["pipe-pane", &format!("cat > {}", terminal.record().display())]);
    let address = format!("https://example.org/{}", "long/".repeat(20));
    bob.say(&format!("see {address}."));
    let written = terminal.written("\u{1b}]8;;\u{1b}\\\u{1b}[m.");
    let parts = written.matches(&format!("\u{1b}]8;;{address}\u{1b}\\")).count();
    assert!(parts >= 2, "each row leads to all of it: {written:?}");
    bob.say("//see https://a.org/\u{7}\u{1b}\\\u{1b}]0;owned\u{7}");
    terminal.expect("]0;owned");
    assert!(!terminal.written("]0;owned").contains("8;;https://a.org"));
}

#[test]
fn wrong_password_file_is_followed_by_a_question() {
    let server = Server::start();
    let Some(terminal) = Terminal::new() else { return };
    drop(Client::within(terminal.home.clone(), server.port, "alice", true, &["--register"]).ready());
    let wrong = terminal.home.password_file("something else");
    for (file, problem) in [(wrong, "the password is wrong"), (terminal.home.path("none"), "No such file")] {
        let arguments = format!("--user alice --password-file {}", file.display());
        terminal.ask(&terminal.client(server.port, &arguments), problem);
        terminal.expect_last("password:");
        terminal.ask(PASSWORD, "logged in as alice");
        terminal.enter("/exit");
        terminal.wait_for_shell();
        terminal.enter("clear");
        terminal.wait_for_shell();
    }
}

/// The part of a styled screen between the last escape sequence before `text` and `text`.
fn style_before(styled: &str, text: &str) -> String {
    let at = styled.find(text).expect("the text is on the screen");
    let start = styled[..at].rfind('\u{1b}').expect("it is styled");
    styled[start + 1..at].to_string()
}

#[test]
fn mention_is_highlighted_and_rings_the_bell() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
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
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
    let words = "lorem ipsum dolor sit amet ".repeat(8) + "finis";
    bob.say(&words);
    let screen = terminal.expect("finis");
    let first = screen.lines().position(|line| line.contains("<bob?> lorem")).expect("the first row");
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
fn resized_terminal_is_redrawn_while_messages_arrive() {
    let Some((server, terminal, bob)) = alice_and_bob() else { return };
    terminal.text("half a line");
    terminal.expect_last("> half a line");
    let talker = Talker::start(bob);
    let resize = |columns: u16, rows: u16| {
        terminal.tmux(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]);
    };
    let whole = |columns: usize, rows: usize| {
        let cursor = format!("13,{}", rows - 1);
        // Without this, the former screen, cut off, would match.
        let end = if columns < 80 { "…".to_string() } else { format!("127.0.0.1:{}", server.port) };
        terminal.wait(&format!("a screen of {columns} by {rows}"), |screen| {
            let lines: Vec<&str> = screen.lines().collect();
            lines.len() == rows
                && lines[rows - 1].starts_with("> half a line")
                && lines[rows - 2].starts_with(" everyone")
                && lines[rows - 2].trim_end().ends_with(&end)
                && lines.iter().all(|line| line.chars().count() <= columns)
                && screen.contains("word ")
                // No remains of the former screen.
                && screen.matches("half a line").count() == 1
                && screen.matches(" everyone").count() == 1
                && terminal.tell("#{cursor_x},#{cursor_y}") == cursor
        });
    };
    for (columns, rows) in [(20, 6), (300, 100), (40, 10), (80, 24)] {
        resize(columns, rows);
        whole(columns.into(), rows.into());
    }
    // A window dragged by its corner.
    for step in 0..40 {
        resize(20 + step * 7, 6 + step * 2);
    }
    resize(20, 6);
    whole(20, 6);
    resize(80, 24);
    let mut bob = talker.stop();
    bob.say("a message that is a little longer than forty columns are");
    terminal.expect("columns are");
    whole(80, 24);
    resize(40, 10);
    whole(40, 10);
    let screen = terminal.screen();
    let all: Vec<&str> = screen.split_whitespace().collect();
    assert!(all.join(" ").contains("<bob?> a message that is a little longer than"), "{screen}");
    terminal.keys(&["Enter"]);
    bob.expect("<alice> half a line");
}

#[test]
fn commands_are_explained_and_mistyped_ones_never_sent() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
    terminal.enter("/help");
    let screen = terminal.expect("any other line goes to");
    for command in ["/msg NAME TEXT", "/room NAME", "/leave", "/verify NAME", "/trust NAME", "/exit"] {
        assert!(screen.contains(command), "{command}:\n{screen}");
    }
    terminal.ask("/hlep", "there is no command /hlep: did you mean /help?");
    terminal.ask("/help room", "talk to NAME alone; /leave returns");
    terminal.enter("/clear");
    terminal.wait("an empty screen", |screen| !screen.contains("/hlep") && screen.contains("everyone ·"));
    terminal.ask("//hlep is not a command", "<alice> /hlep is not a command ✓");
    assert_eq!(bob.expect("hlep"), "<alice> /hlep is not a command");
    terminal.ask("/history", "* the last message of this session");
    terminal.ask("/users", "2 online: alice (you), bob (not verified)");
    terminal.ask("/verify bob", "safety number with bob");
    terminal.ask("/verify bob yes", "* bob is verified");
    terminal.ask("/room bob", "[2 room with bob✓] · verified");
}

#[test]
fn bar_shows_the_progress_of_a_file() {
    let server = Server::start();
    let Some(terminal) = Terminal::new() else { return };
    terminal.log_in(server.port, "alice");
    let gate = Gate::before(&server);
    let mut bob = gate.client(Arc::new(Folder::new()), "bob", &["--register"]).ready();
    terminal.expect("* bob is online");
    let bytes: Vec<u8> = (0..8_000_000).map(|n: u32| (n % 251) as u8).collect();
    std::fs::write(bob.home.path("big.bin"), &bytes).expect("written");
    bob.say("/sendfile alice big.bin");
    terminal.expect("* bob offers you a file: \"big.bin\" (8.0 MB)");
    gate.hold_after(0);
    terminal.enter("/acceptfile");
    // The file arrives in small steps, one for each look, until the bar appears; then it stops.
    let screen = terminal.wait("a bar", |screen| {
        let seen = screen.contains(" big.bin ← bob ━");
        gate.hold_after(if seen { 0 } else { 128 * 1024 });
        seen
    });
    let bar = screen.lines().find(|line| line.contains('━')).expect("seen");
    assert!(bar.contains("━─") && bar.contains(" % · "), "{bar}");
    // The bar is above the status line and the input.
    let rows: Vec<&str> = screen.lines().collect();
    assert!(rows[21].contains('━') && rows[22].contains("everyone · online"), "{screen}");
    terminal.text("half a li");
    bob.expect("* sending \"big.bin\"");
    terminal.expect_last("> half a li");
    gate.open();
    terminal.expect("* \"big.bin\" (8.0 MB) from bob is complete:");
    let screen = terminal.wait("the end of the bar", |screen| !screen.contains('━'));
    assert_eq!(last_line(&screen), "> half a li");
    let path = terminal.home.path(".secure_messenger_client/files/received/bob_big.bin");
    assert!(std::fs::read(path).expect("the file is there") == bytes);
}

/// PROTOCOL#harmless.
#[test]
fn message_cannot_move_the_cursor_or_rename_the_terminal() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
    let title = terminal.tmux(&["display-message", "-p", "#{pane_title}"]);
    bob.say("\u{1b}]0;owned\u{7}\u{1b}[2J\u{1b}[1;1Htop\u{1b}[?1049l\u{9b}5A bottom");
    let screen = terminal.expect("bottom");
    assert!(screen.contains("<bob?> \u{fffd}]0;owned\u{fffd}\u{fffd}[2J\u{fffd}[1;1Htop"), "{screen}");
    assert!(!screen.lines().next().unwrap_or_default().contains("top"), "{screen}");
    assert_eq!(terminal.tmux(&["display-message", "-p", "#{pane_title}"]), title);
    terminal.expect_last(">");
}

#[test]
fn colours_are_used_unless_no_color_is_set() {
    let server = Server::start();
    let coloured = |styled: &str| styled.contains("38;5;");
    let Some(terminal) = Terminal::new() else { return };
    terminal.log_in(server.port, "alice");
    let mut bob = server.client("bob").ready();
    terminal.expect("* bob is online");
    bob.say("@alice, in colour");
    terminal.expect("in colour");
    assert!(coloured(&terminal.styled()), "{:?}", terminal.styled());
    terminal.enter("/exit");
    terminal.wait_for_shell();
    terminal.ask(&format!("NO_COLOR=1 {}", terminal.unasked(server.port, "alice")), " online: ");
    bob.expect("* alice has left");
    bob.expect("* alice is online");
    bob.say("without colour, @alice");
    terminal.expect("without colour");
    terminal.ask("/hlep", "did you mean");
    let styled = terminal.styled();
    assert!(!coloured(&styled), "{styled:?}");
    assert!(styled.contains(";1m") && styled.contains(";7m"), "it is still bold or reverse: {styled:?}");
}

#[test]
fn dumb_terminal_or_pipe_gets_plain_mode() {
    let server = Server::start();
    let Some(terminal) = Terminal::new() else { return };
    let raw = terminal.home.path("raw");
    // In two parts, so that the typed line does not contain the expected text.
    terminal.ask("clear; echo clea''red", "cleared");
    terminal.wait_for_shell();
    // Record everything that the terminal gets from here on.
    terminal.tmux(&["pipe-pane", "-o", &format!("cat > {}", raw.display())]);
    for command in [
        format!("TERM=dumb {}", terminal.unasked(server.port, "alice")),
        format!("{} | cat", terminal.unasked(server.port, "alice")),
        format!("{} --plain", terminal.unasked(server.port, "alice")),
    ] {
        terminal.ask(&command, " online: alice (you)");
        terminal.enter("/exit");
        terminal.wait_for_shell();
        terminal.enter("printf '\\n%.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24");
        terminal.wait("a scrolled screen", |screen| !screen.contains("online:"));
    }
    // Without an account and a password it reports that, and asks nothing.
    terminal.enter(&format!("TERM=dumb {}", terminal.client(server.port, "")));
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

/// A way to end: its name, the command that starts (empty: a login), what it shows when it has started, what ends it,
/// what it leaves on the normal screen, the exit status.
type End<'a> = (&'a str, Option<String>, &'a str, &'a dyn Fn(), &'a str, u8);

/// Ends the client in every way; `busy`: while messages arrive.
fn end_in_every_way(busy: bool) {
    let (server, Some(terminal)) = (Server::start(), Terminal::new()) else { return };
    let hello = "secure messenger ";
    // Another user, so that the talker has a recipient.
    let _carol = server.client("carol").ready();
    let talker = busy.then(|| Talker::start(server.client("bob").ready()));
    let leaves = || terminal.enter("/exit");
    let interrupts = || {
        // A typed line is discarded first.
        terminal.text("never sent");
        terminal.expect_last("> never sent");
        terminal.keys(&["C-c"]);
        terminal.expect_last(">");
        terminal.keys(&["C-c"]);
    };
    let again = || {
        let second = Client::within(terminal.home.clone(), server.port, "alice", true, &[]).ready();
        assert_eq!(second.finish().0, 0);
        // A line that is typed at this moment must not reach the shell.
        terminal.expect("* the session is over: Ctrl-C leaves");
        terminal.ask("touch typed", "* not sent: the session is over; Ctrl-C leaves");
        terminal.enter("/exit");
    };
    let press = |key: &'static str| move |terminal: &Terminal| terminal.keys(&[key]);
    let (escape, interrupt, end_of_file) = (press("Escape"), press("C-c"), press("C-d"));
    let test = std::env::current_exe().expect("this program");
    let panics = "RUST_BACKTRACE=0 ".to_string()
        + &test.display().to_string()
        + " --ignored --exact terminal::panic_on_the_full_screen --nocapture";
    let asks = || Some(terminal.client(server.port, "--user alice"));
    let menu = || Some(terminal.client(server.port, ""));
    let ends: &[End] = &[
        ("/exit", None, "", &leaves, hello, 0),
        ("Ctrl-C", None, "", &interrupts, hello, 0),
        ("Ctrl-D", None, "", &|| end_of_file(&terminal), hello, 0),
        ("SIGTERM", None, "", &|| terminal.signal("-TERM"), hello, 0),
        ("SIGHUP", None, "", &|| terminal.signal("-HUP"), hello, 0),
        ("SIGINT", None, "", &|| terminal.signal("-INT"), hello, 0),
        ("SIGQUIT", None, "", &|| terminal.signal("-QUIT"), hello, 0),
        ("another login", None, "", &again, "you have logged in elsewhere", 1),
        ("a panic", Some(panics), "", &|| {}, "as it was meant to", 101),
        ("Escape in the menu", menu(), ">", &|| escape(&terminal), "  3  exit", 0),
        ("Ctrl-C in the menu", menu(), ">", &|| interrupt(&terminal), "  3  exit", 0),
        ("Ctrl-D in the menu", menu(), ">", &|| end_of_file(&terminal), "  3  exit", 0),
        ("SIGTERM at a question", asks(), "password:", &|| terminal.signal("-TERM"), "password:", 143),
        ("SIGHUP at a question", asks(), "password:", &|| terminal.signal("-HUP"), "password:", 129),
        ("SIGINT at a question", asks(), "password:", &|| terminal.signal("-INT"), "password:", 130),
        ("SIGQUIT at a question", asks(), "password:", &|| terminal.signal("-QUIT"), "password:", 131),
    ];
    for (what, command, begun, end, said, status) in ends {
        // No messages arrive while the menu asks.
        if busy && !begun.is_empty() {
            continue;
        }
        let before = terminal.prepare();
        match command {
            Some(command) => terminal.enter(command),
            None => {
                terminal.log_in(server.port, "alice");
                // Otherwise there would be nothing to restore.
                assert_ne!(terminal.modes(), before.modes);
                let changed = || changed_modes(&terminal.so_far());
                until("modes", || ["1004", "1049", "2004"].iter().all(|mode| changed().contains(mode)));
            }
        }
        if !begun.is_empty() {
            terminal.expect_last(begun);
            // The record is behind the screen.
            until("pastes are marked", || changed_modes(&terminal.so_far()) == "2004");
        }
        if busy && command.is_none() {
            let first = terminal.expect("<bob?> word ");
            terminal.wait("more from bob", |screen| *screen != first);
        }
        end();
        terminal.expect_as_before(&before, what, said, *status);
    }
    drop(talker.map(Talker::stop));
    let before = terminal.prepare();
    terminal.log_in(server.port, "alice");
    drop(server);
    terminal.expect("CONNECTION LOST");
    leaves();
    terminal.expect_as_before(&before, "a dead server", hello, 0);
}

#[test]
fn terminal_is_restored_at_every_end_without_messages() {
    end_in_every_way(false);
}

#[test]
fn terminal_is_restored_at_every_end_while_messages_arrive() {
    end_in_every_way(true);
}

/// Not a test of its own: [`end_in_every_way`] runs it in a terminal.
#[test]
#[ignore = "panics on purpose, and needs a terminal"]
fn panic_on_the_full_screen() {
    secure_messenger::client::terminal::install_panic_hook();
    let terminal = secure_messenger::client::terminal::Terminal::open(false, true).expect("a terminal");
    // Never dropped: only the hook restores the terminal.
    std::mem::forget(terminal);
    panic!("as it was meant to");
}

#[test]
fn client_stopped_from_outside_restores_the_terminal() {
    let (server, Some(terminal)) = (Server::start(), Terminal::new()) else { return };
    let before = terminal.prepare();
    terminal.log_in(server.port, "alice");
    terminal.signal("-TSTP");
    // 128 and SIGSTOP.
    terminal.expect_as_before(&before, "TSTP", "Stopped", 147);
}

#[test]
fn password_stays_unseen_after_a_stop() {
    let (server, Some(terminal)) = (Server::start(), Terminal::new()) else { return };
    for signal in ["-TSTP", "-STOP"] {
        let before = terminal.prepare();
        terminal.enter(&terminal.client(server.port, "--user alice"));
        terminal.expect_last("password:");
        let child = terminal.child();
        // State, process group, and foreground process group.
        let stat = || {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).expect("it runs");
            let words = stat.rsplit(") ").next().unwrap_or_default().split(' ').map(str::to_string);
            let words: Vec<String> = words.collect();
            (words[0].clone(), words[2].clone(), words[5].clone())
        };
        terminal.signal(signal);
        until("it is stopped, and the shell in front", || stat().0 == "T" && stat().1 != stat().2);
        assert!(signal == "-STOP" || terminal.modes() == before.modes);
        // A shell may change the modes.
        terminal.text("stty sane; fg");
        terminal.keys(&["C-j"]);
        until("it is in front", || stat().0 != "T" && stat().1 == stat().2);
        until("it is raw", || terminal.modes().contains("-icanon"));
        terminal.enter("hidden");
        let screen = terminal.expect("there is no key for alice");
        assert!(!screen.contains("hidden"), "{screen}");
        terminal.expect_last(">");
        terminal.keys(&["C-c"]);
        terminal.wait_for_shell();
    }
}

#[test]
fn signal_ends_a_client_whose_terminal_accepts_no_output() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
    let (tmux, tty) = (terminal.tell("#{pid}").parse().expect("a number"), terminal.tell("#{pane_tty}"));
    let child: u32 = terminal.child().parse().expect("a number");
    support::signal(tmux, "-STOP");
    // More than the kernel buffers for the terminal: each resize redraws everything.
    for n in 0..100 {
        bob.say(&format!("number {n} {}", "word ".repeat(400)));
        support::signal(child, "-WINCH");
        bob.expect(&format!("number {n} "));
    }
    let start = Instant::now();
    support::signal(child, "-TERM");
    until("it has ended", || !PathBuf::from(format!("/proc/{child}")).exists());
    let waited = start.elapsed();
    let line = Command::new("stty").args(["-a", "-F", &tty]).output().expect("stty");
    support::signal(tmux, "-CONT");
    assert!(waited < Duration::from_secs(15), "{waited:?}");
    let modes = String::from_utf8(line.stdout).expect("UTF-8");
    assert!([" icanon", " echo "].iter().all(|mode| modes.contains(mode)), "{modes}");
}

#[test]
fn where_nobody_could_let_it_go_on_a_client_is_not_suspended() {
    let (server, Some(terminal)) = (Server::start(), Terminal::new()) else { return };
    // script(1) gives it a terminal without a shell.
    let client = format!("exec {}", terminal.unasked(server.port, "alice"));
    terminal.enter(&format!("script -qc '{client}' /dev/null"));
    terminal.wait("a login", |screen| screen.contains(" · alice · 1 person"));
    terminal.keys(&["C-z"]);
    terminal.text("still here");
    terminal.expect_last("> still here");
    terminal.keys(&["C-c", "C-c"]);
    terminal.wait_for_shell();
}

#[test]
fn suspended_client_restores_the_terminal_and_continues() {
    let (server, Some(terminal)) = (Server::start(), Terminal::new()) else { return };
    let mut before = terminal.prepare();
    terminal.log_in(server.port, "alice");
    let _carol = server.client("carol").ready();
    let mut bob = server.client("bob").ready();
    terminal.expect("* bob is online");
    terminal.text("half a li");
    terminal.expect_last("> half a li");
    // 128 and SIGSTOP.
    const STOPPED: u8 = 147;
    terminal.keys(&["C-z"]);
    terminal.expect_as_before(&before, "suspended", "Stopped", STOPPED);
    bob.ask("while you were away", "<bob> while you were away");
    before.screen = terminal.prepare().screen;
    terminal.ask("fg", "<bob?> while you were away");
    terminal.expect_last("> half a li");
    // The same while messages arrive before, during and after the stop.
    let talker = Talker::start(bob);
    for _ in 0..3 {
        let first = terminal.expect("<bob?> word ");
        terminal.wait("more from bob", |screen| *screen != first);
        terminal.keys(&["C-z"]);
        terminal.expect_as_before(&before, "suspended in a flood", "Stopped", STOPPED);
        before.screen = terminal.prepare().screen;
        terminal.enter("fg");
        terminal.expect_last("> half a li");
    }
    let mut bob = talker.stop();
    bob.say("now quiet");
    terminal.expect("<bob?> now quiet");
    terminal.enter("ne");
    bob.expect("<alice> half a line");
    terminal.enter("/exit");
    terminal.expect_as_before(&before, "after all that", "client", 0);
}

#[test]
fn exit_after_a_lost_connection_lists_unacknowledged_texts() {
    let Some((mut server, terminal, bob)) = alice_and_bob() else { return };
    terminal.ask("the first", "<alice> the first ✓");
    support::signal(server.child.id(), "-STOP");
    terminal.ask("the second", "<alice> the second …");
    server.child.kill().expect("a child");
    terminal.expect("CONNECTION LOST, trying again");
    terminal.ask("/exit", " leaving: 1 message is not acknowledged yet; Ctrl-C leaves now · ");
    terminal.keys(&["C-c"]);
    terminal.wait_for_shell();
    let screen = terminal.screen();
    assert!(screen.contains("1 message of yours was not acknowledged"), "{screen}");
    let (status, lines) = bob.finish();
    assert_eq!(status, 0, "bob has no unacknowledged messages: {lines:#?}");
}

#[test]
fn waiting_lines_hold_the_view_and_are_reported_at_the_end() {
    let (server, other) = (Server::start(), Server::start());
    let (gate, Some(terminal)) = (Gate::before(&server), Terminal::new()) else { return };
    terminal.log_in(gate.port, "alice");
    let mut bob = server.client("bob").ready();
    bob.say("/msg alice hello");
    terminal.expect(" [1 everyone]  2 bob? (1) · online");
    gate.hold_answers(true);
    // As many as may be in flight, and two more.
    for n in 0..64 {
        // Typed faster, they would be a paste.
        terminal.ask(&format!("under way {n}."), &format!("under way {n}. …"));
    }
    terminal.enter("this one waits");
    terminal.enter("and this one");
    terminal.keys(&["M-2"]);
    terminal.text("typed after");
    let screen = terminal.expect_last("> typed after");
    assert!(screen.contains(" [1 everyone]  2 bob? (1) · ") && !screen.contains("waits"), "{screen}");
    gate.lead_to(&other);
    gate.cut();
    gate.hold_answers(false);
    let screen = terminal.expect("* the session is over: Ctrl-C leaves");
    let over = " THE SESSION IS OVER: Ctrl-C leaves ";
    assert!(screen.contains(over) && !screen.contains("trying again,"), "{screen}");
    // Typed lines are answered, and the conversation can still be read.
    terminal.ask("and more", "* not sent: the session is over; Ctrl-C leaves");
    terminal.keys(&["PageUp"]);
    terminal.expect("THE KEY OF THE SERVER AT");
    terminal.wait("older lines", |screen| !screen.contains("the session is over: Ctrl-C leaves"));
    terminal.keys(&["Escape", "2"]);
    let screen = terminal.expect("[private bob? → alice] hello");
    assert!(screen.contains(over), "{screen}");
    terminal.keys(&["C-c"]);
    terminal.wait_for_shell();
    let screen = terminal.expect("2 lines that you had typed were not sent");
    assert!(screen.contains("messages of yours were not acknowledged"), "{screen}");
}

#[test]
fn scrolled_view_stays_and_a_rule_marks_where_reading_stopped() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
    for number in 0..40 {
        bob.say(&format!("line number {number}."));
    }
    terminal.expect("<bob?> line number 39.");
    terminal.keys(&["PPage"]);
    let scrolled = terminal.expect(" ↑");
    let first = scrolled.lines().next().expect("a row").to_string();
    bob.say("while you were reading");
    bob.say("twice");
    let screen = terminal.expect("↓2 new");
    assert_eq!(screen.lines().next(), Some(&*first), "{screen}");
    assert!(!screen.contains("while you"), "{screen}");
    terminal.keys(&["Escape"]);
    let screen = terminal.expect("<bob?> twice");
    let rows: Vec<&str> = screen.lines().collect();
    let rule = rows.iter().position(|row| row.starts_with("── new ──")).expect("a rule");
    assert!(rows[rule - 1].contains("line number 39.") && rows[rule + 1].contains("while you"), "{screen}");
    assert!(!screen.contains("↓2 new"), "{screen}");
}

#[test]
fn private_message_notifies_the_desktop_if_unfocused() {
    let Some((_server, terminal, mut bob)) = alice_and_bob() else { return };
    let pipe = terminal.home.path("piped");
    terminal.tmux(&["pipe-pane", &format!("cat > {}", pipe.display())]);
    let piped = || std::fs::read(&pipe).unwrap_or_default();
    let told = || String::from_utf8_lossy(&piped()).matches("\x1b]9;message from bob\x07").count();
    bob.say("/msg alice one");
    terminal.expect("2 bob? (1)");
    support::until("notified, because another view is shown", || {
        bob.ask("/msg alice again", "again");
        told() > 0
    });
    terminal.keys(&["M-2"]);
    terminal.expect("[private bob? → alice] one");
    let (before, rung) = (told(), || String::from_utf8_lossy(&piped()).matches('\u{7}').count());
    let already = rung();
    support::until("the bell rings", || {
        bob.ask("/msg alice again", "again");
        rung() > already
    });
    assert_eq!(told(), before, "the view is visible");
    // What a terminal sends when its window loses the focus and gets it back.
    terminal.tmux(&["send-keys", "-H", "1b", "5b", "4f"]);
    support::until("the desktop is notified", || {
        bob.ask("/msg alice again", "again");
        told() > before
    });
    terminal.tmux(&["send-keys", "-H", "1b", "5b", "49"]);
    terminal.ask("/notify off", "* notifications of private messages, mentions and files are off");
}

#[test]
fn messages_of_earlier_sessions_stand_above_a_rule() {
    let server = Server::start();
    let Some(terminal) = Terminal::new() else { return };
    let mut bob = server.client("bob").ready();
    let keep = ["--register", "--keep-history"];
    let mut before = Client::within(terminal.home.clone(), server.port, "alice", true, &keep).ready();
    for name in ["bob", "carol"] {
        let mut other = if name == "bob" { None } else { Some(server.client(name).ready()) };
        other.as_mut().unwrap_or(&mut bob).say(&format!("/msg alice from {name}"));
        before.expect(&format!("from {name}"));
    }
    before.ask("/ignore carol", "* messages from carol are no longer shown");
    assert_eq!(before.finish().0, 0);
    let client = terminal.unasked(server.port, "alice") + " --keep-history";
    terminal.enter(&client);
    let screen = terminal.expect(" online: ");
    assert!(screen.contains("* logged in as alice"), "{screen}");
    terminal.keys(&["M-2"]);
    let screen = terminal.expect("── earlier sessions ──");
    let rows: Vec<&str> = screen.lines().collect();
    let rule = rows.iter().position(|row| row.starts_with("── earlier sessions ──")).expect("a rule");
    assert!(rows[rule - 1].contains("[private bob → alice] from bob"), "{screen}");
    assert!(!screen.contains("from carol"), "from an ignored user: {screen}");
    terminal.enter("/history forget");
    let screen = terminal.expect("erased, here and on disk");
    assert!(!screen.contains("from bob"), "{screen}");
}

/// A time zone (POSIX) whose clocks go forward by an hour at this moment, in seconds since 1970.
fn summer_time_from(second: i64) -> String {
    let change = time::OffsetDateTime::from_unix_timestamp(second).expect("a time");
    let day = change.ordinal() - 1;
    format!("WIN0SUM,{day}/{}:{}:{},{}/0", change.hour(), change.minute(), change.second(), (day + 60) % 365)
}

#[test]
fn time_shows_the_offset_of_its_own_moment() {
    let server = Server::start();
    let Some(terminal) = Terminal::new() else { return };
    let now = || time::OffsetDateTime::now_utc().unix_timestamp();
    let hour = |word: &str| {
        let screen = terminal.expect(word);
        let line = screen.lines().find(|line| line.contains(word)).expect("expected");
        line[..2].parse::<u8>().expect("a time")
    };
    let client = terminal.unasked(server.port, "alice") + " --keep-history";
    terminal.ask(&format!("TZ=UTC {client}"), " online · end-to-end encrypted");
    let mut bob = server.client("bob").ready();
    terminal.expect("* bob is online");
    bob.say("winter");
    let winter = hour("winter");
    let change = now() + 1;
    terminal.enter("/exit");
    terminal.wait_for_shell();
    until("the change", || now() > change);
    terminal.ask(&format!("clear; TZ={} {client}", summer_time_from(change)), "earlier sessions");
    terminal.expect(" 2 people");
    bob.say("summer");
    assert_ne!(hour("summer"), winter);
    assert_eq!(hour("winter"), winter);
}

#[test]
fn terminal_without_utf8_gets_ascii_alone() {
    let server = Server::start();
    let Some(terminal) = Terminal::new() else { return };
    terminal.enter("export LC_ALL=C");
    terminal.prepare();
    terminal.ask(&terminal.unasked(server.port, "alice"), "your locale is not UTF-8");
    let mut bob = server.client("bob").ready();
    terminal.expect("* bob is online");
    // In a terminal of one byte per character, the last bytes of these characters are CSI and OSC.
    bob.say("ě2J ĝ2;title 漢字.");
    let screen = terminal.expect("<bob?> ?2J ?2;title ????.");
    assert!(screen.contains(" everyone | online | "), "{screen}");
    let written = std::fs::read(terminal.record()).expect("recorded");
    assert!(written.is_ascii(), "{}", String::from_utf8_lossy(&written));
}
