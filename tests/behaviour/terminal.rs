//! The full-screen client in a terminal: what the screen shows, what keys do, and that the terminal is restored however
//! the client ends.

use crate::support::{self, Client, Folder, Gate, Look, PASSWORD, Server, Terminal, hex, last_line, until};
use secure_messenger::crypto::secret::random;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

impl Terminal {
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

    /// Puts content on the screen that the client must restore, and starts a new record.
    fn prepare(&self) -> Before {
        // Otherwise the screen of an earlier call would pass for the new one.
        let mark = hex(&random::<4>());
        self.enter(&format!("clear; printf 'kept %s.\\n' one two {mark}"));
        self.expect(&format!("kept {mark}."));
        self.wait_for_shell();
        self.record();
        Before { modes: self.modes(), screen: self.screen() }
    }

    /// Checks that the client has left only its exit status, and `said` on the normal screen.
    fn expect_as_before(&self, before: &Before, what: &str, said: &str, status: u8) {
        // The last prompt may be the one before the client's command.
        self.wait(said, |screen| screen.lines().collect::<String>().contains(said));
        self.wait_for_shell();
        let (modes, screen) = (self.modes(), self.screen());
        assert_eq!(modes, before.modes, "{what}");
        let kept = before.screen.trim_end();
        assert!(screen.starts_with(kept), "{what}: before:\n{kept}\nnow:\n{screen}");
        let text: String = screen.lines().collect();
        assert!(text.contains(said) && !text.contains("everyone ·"), "{what}: {said:?}\n{screen}");
        self.expect_status(status);
        assert_eq!(self.changed_modes(), "", "{what}");
    }

    /// The exit status of the last command.
    fn expect_status(&self, status: u8) {
        self.enter("echo \"sta\"\"tus $?.\"");
        self.expect(&format!("status {status}."));
        self.wait_for_shell();
    }

    /// The modes that the recorded output left different from those of a new terminal.
    fn changed_modes(&self) -> String {
        let (mut changed, written) = (BTreeSet::new(), self.written());
        for sequence in written.split("\u{1b}[").skip(1) {
            let length = sequence.find(|c: char| !c.is_ascii_digit() && !"?;".contains(c));
            let (modes, last) = sequence.split_at(length.unwrap_or(sequence.len()));
            let (modes, on) = match last.chars().next() {
                Some('h') => (modes, true),
                Some('l') => (modes, false),
                // The scroll region (DECSTBM).
                Some('r') => ("region", !modes.is_empty()),
                _ => continue,
            };
            let is_private = modes.starts_with('?');
            for mode in modes.trim_start_matches('?').split(';') {
                // A new terminal wraps, and shows its cursor.
                match on == (is_private && ["7", "25"].contains(&mode)) {
                    true => changed.remove(mode),
                    false => changed.insert(mode),
                };
            }
        }
        changed.into_iter().collect::<Vec<_>>().join(" ")
    }
}

/// What the client must restore.
struct Before {
    modes: String,
    screen: String,
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
        self.talking.join().expect("it could always send")
    }
}

/// One user in the full screen and one in plain mode, who see each other.
fn alice_and_bob() -> (Server, Terminal, Client) {
    let server = Server::start();
    let terminal = Terminal::new();
    terminal.log_in(server.port, "alice");
    let bob = server.client("bob").ready();
    terminal.expect("* bob is online");
    (server, terminal, bob)
}

// ---- the user's editor

impl Terminal {
    /// Logs in with this script as the editor; `$1` is its file.
    fn log_in_with_editor(&self, port: u16, script: &str) {
        std::fs::write(self.home.path("editor"), script).expect("written");
        self.enter("export EDITOR='sh ~/editor'");
        self.log_in(port, "alice");
    }

    /// The texts of editors in the data folder.
    fn left_texts(&self) -> Vec<String> {
        let data = std::fs::read_dir(self.home.path(".secure_messenger_client")).expect("a folder");
        let folders = data.map(|entry| entry.expect("read").path());
        let texts = folders.filter(|path| path.display().to_string().contains("edit-"));
        texts.map(|path| std::fs::read_to_string(path.join("message.txt")).expect("a text")).collect()
    }
}

/// MANUAL#long-messages.
#[test]
fn editor_has_the_terminal_and_its_text_becomes_the_line() {
    let (server, terminal) = (Server::start(), Terminal::new());
    terminal.log_in_with_editor(
        server.port,
        "echo your turn; read line; echo \"$line\" >> \"$1\"; echo end >> \"$1\"",
    );
    let mut bob = server.client("bob").ready();
    terminal.ask("/room bob", "room with bob");
    for begun in ["one", "two"] {
        terminal.ask(&format!("/edit {begun}"), "your turn");
        assert!(!terminal.is_full_screen() && terminal.echoes());
        bob.ask(&format!("/msg alice beside {begun}"), &format!("beside {begun}"));
        terminal.enter("/exit");
        terminal.expect_last(&format!("bob> {begun}⏎/exit⏎end"));
        assert!(terminal.is_full_screen() && !terminal.echoes());
        terminal.expect(&format!("[private bob? → alice] beside {begun}"));
        terminal.keys(&["Enter"]);
        bob.expect(&format!("<alice -> bob> {begun}⏎/exit⏎end"));
    }
    assert!(terminal.left_texts().is_empty());
}

/// MANUAL#long-messages.
#[test]
fn keys_that_signal_reach_the_editor_alone() {
    let (server, terminal) = (Server::start(), Terminal::new());
    let script = "sleep 600 & trap 'echo caught > \"$1\"; kill $!; exit 0' INT; echo your turn; wait";
    terminal.log_in_with_editor(server.port, script);
    terminal.ask("/edit", "your turn");
    terminal.keys(&["C-c"]);
    terminal.expect_last("> caught");
    terminal.keys(&["C-c"]);
    std::fs::write(terminal.home.path("editor"), "echo your turn; read line; echo \"$line\" > \"$1\"")
        .expect("written");
    terminal.ask("/edit", "your turn");
    terminal.keys(&["C-z"]);
    terminal.wait_for_shell();
    terminal.enter("fg");
    terminal.enter("after a stop");
    terminal.expect_last("> after a stop");
}

/// MANUAL#long-messages.
#[test]
fn terminal_is_restored_after_an_editor_that_broke_it() {
    let (server, terminal) = (Server::start(), Terminal::new());
    let before = terminal.prepare();
    terminal.log_in_with_editor(server.port, "echo kept > \"$1\"; stty raw -echo; exit 1");
    terminal.ask("/edit", "nothing was sent");
    terminal.enter("/exit");
    terminal.expect_as_before(&before, "a killed editor", "client", 0);
    // The text that it left stays.
    assert_eq!(terminal.left_texts(), ["kept\n"]);
}

/// MANUAL#long-messages.
#[test]
fn missing_editor_or_empty_text_is_reported() {
    let (server, terminal) = (Server::start(), Terminal::new());
    terminal.enter("unset EDITOR VISUAL");
    terminal.log_in(server.port, "alice");
    terminal.ask("/edit", "no editor is known: start the client with EDITOR=nano");
    terminal.enter("/exit");
    terminal.wait_for_shell();
    terminal.log_in_with_editor(server.port, ":");
    terminal.ask("/edit", "the text is empty; nothing was sent");
    terminal.ask("/edit as it was", "> as it was");
}

/// MANUAL#long-messages.
#[test]
fn signal_ends_a_client_whose_editor_runs() {
    let (server, terminal) = (Server::start(), Terminal::new());
    terminal.log_in_with_editor(server.port, "echo your turn; sleep 600");
    terminal.ask("/edit", "your turn");
    let client = terminal.child();
    terminal.signal("-TERM");
    until("it has ended", || !Path::new(&format!("/proc/{client}")).exists());
    terminal.wait_for_shell();
}

// ---- before the login

#[test]
fn menu_creates_and_uses_an_account_with_a_hidden_password() {
    let server = Server::start();
    let terminal = Terminal::new();
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
    terminal.expect(&server.fingerprint());
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
    terminal.ask("carol", "there is no key for carol on this machine");
    terminal.expect_last(">");
    terminal.enter("2");
    terminal.expect_last("name:");
    terminal.enter("alice");
    terminal.expect_last("password:");
    terminal.ask("hunter22", "logged in as alice");
}

#[test]
fn new_password_is_typed_hidden_and_never_sent_as_a_message() {
    let (server, terminal, mut bob) = alice_and_bob();
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
    let terminal = Terminal::new();
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
    let screen = terminal.ask("no", "nothing was sent to the server at");
    assert!(!screen.contains("--fingerprint"), "no option helps here: {screen}");
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
fn existing_key_registers_with_its_own_password() {
    let terminal = Terminal::new();
    let home = terminal.home.clone();
    drop(Client::within(home, Server::start().port, "alice", true, &["--register"]).ready());
    let server = Server::start();
    terminal.enter(&terminal.client(server.port, "--accept-new"));
    terminal.expect_last(">");
    terminal.enter("1");
    terminal.expect_last("name:");
    terminal.ask("alice", "this machine has a key for alice");
    let key = "password of this key (hidden):";
    terminal.expect_last(key);
    terminal.ask("something else", "this password does not open it");
    terminal.expect_last(key);
    terminal.ask(PASSWORD, "logged in as alice");
}

#[test]
fn unreachable_server_is_reported_and_the_menu_returns() {
    let server = Server::start();
    let terminal = Terminal::new();
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
    let (silent, terminal) = (TcpListener::bind("127.0.0.1:0").expect("a listener"), Terminal::new());
    let before = terminal.prepare();
    terminal.ask(&terminal.unasked(silent.local_addr().expect("bound").port(), "alice"), "connecting ...");
    terminal.keys(&["C-c"]);
    terminal.expect_as_before(&before, "connecting", "connecting ...", 130);
}

#[test]
fn password_typed_again_while_connecting_is_not_sent() {
    let server = Server::start();
    let (gate, terminal) = (Gate::before(&server), Terminal::new());
    terminal.log_in(server.port, "alice");
    terminal.enter("/exit");
    terminal.wait_for_shell();
    let mut bob = server.client("bob").ready();
    gate.hold_answers(true);
    terminal.enter(&terminal.client(gate.port, "--accept-new --user alice"));
    terminal.expect_last("password:");
    terminal.ask(PASSWORD, "connecting ...");
    terminal.enter(PASSWORD);
    gate.hold_answers(false);
    terminal.expect(" everyone · online");
    terminal.enter("after it");
    assert_eq!(bob.expect("<alice"), "<alice> after it");
}

#[test]
fn yes_before_the_fingerprint_is_shown_is_not_an_answer() {
    let server = Server::start();
    let (gate, terminal) = (Gate::before(&server), Terminal::new());
    gate.hold_answers(true);
    terminal.enter(&terminal.client(gate.port, "--user alice --register"));
    terminal.expect_last("new password (hidden, at least 6 characters):");
    terminal.enter(PASSWORD);
    terminal.expect_last("repeat password:");
    terminal.ask(PASSWORD, "connecting ...");
    terminal.enter("yes");
    gate.hold_answers(false);
    terminal.expect_last("do they match? (yes/no)");
    terminal.ask("no", "nothing was sent to the server");
    let known = terminal.home.path(".secure_messenger_client/known_servers");
    assert!(!std::fs::read_to_string(known).expect("opened").contains("127.0.0.1"));
}

// ---- talking

#[test]
fn typed_text_survives_arriving_messages() {
    let (_server, terminal, mut bob) = alice_and_bob();
    terminal.text("half a li");
    terminal.expect_last("> half a li");
    for text in ["one", "two", "three"] {
        bob.say(text);
        terminal.expect(&format!("<bob?> {text}"));
        terminal.expect_last("> half a li");
    }
    assert_eq!(terminal.cursor(), (11, 23), "the cursor is behind the typed text");
    terminal.enter("ne");
    bob.expect("<alice> half a line");
    terminal.expect("<alice> half a line");
    terminal.expect_last(">");
}

#[test]
fn blocked_terminal_delays_no_message() {
    let (_server, terminal, mut bob) = alice_and_bob();
    terminal.hold(true);
    // Far more than may be unacknowledged: bob repeats each message until the server accepts it.
    for n in 0..60 {
        until("the server accepts a message", || {
            bob.say(&format!("number {n} {}", "word ".repeat(4000)));
            bob.expect(&format!("number {n} ")).starts_with("<bob> ")
        });
    }
    terminal.hold(false);
    bob.say("the last");
    terminal.expect("<bob?> the last");
}

#[test]
fn conversation_has_its_view_and_the_prompt_names_it() {
    let (_server, terminal, mut bob) = alice_and_bob();
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

/// PROTOCOL#open-room, PROTOCOL#room-copies.
#[test]
fn screen_names_all_members_and_resends_to_those_who_missed_it() {
    let (server, terminal, mut bob) = alice_and_bob();
    // No message waits for her.
    let mut carol = Client::start(&server, "carol", &["--register", "--no-mail"]).ready();
    terminal.expect("* carol is online");
    terminal.text("/room car\t");
    terminal.expect("> /room carol ");
    terminal.enter("BOB");
    let screen = terminal.expect("* the room of bob (new), carol (new) and you is open; /leave closes it");
    assert!(screen.contains(" 1 everyone  [2 room with bob?, carol?] · new · online"), "{screen}");
    terminal.expect_last("bob, carol>");
    terminal.ask("hello both", "(room alice → bob, carol?) hello both ✓");
    bob.expect("<alice -> bob, carol> hello both");
    carol.expect("<alice -> bob, carol> hello both");
    // A reply is in the same view, and counts as unread elsewhere.
    terminal.keys(&["M-1"]);
    bob.say("/msg alice,carol a reply");
    terminal.expect(" [1 everyone]  2 bob?, carol? (1) · online");
    terminal.keys(&["M-2"]);
    terminal.expect("(room bob? → alice, carol) a reply");
    // One member is away.
    let home = carol.home.clone();
    carol.leaves();
    terminal.expect("* carol has left");
    terminal.ask("where are you?", "✓ 1 of 2: carol is offline; Alt-R");
    bob.expect("<alice -> bob, carol> where are you?");
    let mut carol = server.client_in(&home, "carol", &[]).ready();
    terminal.expect("* carol is online");
    terminal.keys(&["M-r"]);
    terminal.expect("(room alice → bob, carol?) where are you? ✓");
    carol.expect("<alice -> bob, carol> where are you?");
    terminal.ask("/leave", "* conversation with bob, carol closed; you are talking to everyone");
    terminal.expect(" everyone · online");
    let lines = bob.leaves();
    assert_eq!(lines.iter().filter(|line| line.contains("where are you?")).count(), 1, "{lines:#?}");
}

/// MANUAL#leaving, MANUAL#absent-users.
#[test]
fn exit_and_login_point_to_messages_in_hidden_views() {
    let (server, terminal, mut bob) = alice_and_bob();
    bob.say("/msg alice precious");
    terminal.expect(" [1 everyone]  2 bob? (1) · online");
    terminal.keys(&["C-c"]);
    let screen = terminal.expect("* here is an unread message; /exit again leaves");
    assert!(screen.contains("[private bob? → alice] precious"), "{screen}");
    terminal.enter("/exit");
    terminal.wait_for_shell();
    terminal.expect_status(0);
    bob.ask("/msg alice from afar", "* kept for alice until they log in");
    bob.ask("/msg alice again", "* kept for alice until they log in (\"again\")");
    terminal.enter(&terminal.unasked(server.port, "alice").replace("--register ", ""));
    terminal.expect("* messages have waited for you: bob (2); /view NAME shows them");
    terminal.keys(&["C-c"]);
    let screen = terminal.expect("* here are 2 unread messages; /exit again leaves");
    assert!(screen.contains("from afar") && screen.contains("again"), "{screen}");
    // Two views.
    let mut carol = server.client("carol").ready();
    terminal.keys(&["M-1"]);
    bob.say("/msg alice three");
    carol.say("/msg alice four");
    terminal.expect("2 bob? (1)  3 carol? (1)");
    terminal.enter("/exit");
    terminal.expect("* here is an unread message; /exit again shows the next");
    terminal.enter("/exit");
    terminal.expect("* here is an unread message; /exit again leaves");
}

#[test]
fn failed_message_shows_why_and_one_key_resends_it() {
    let (server, terminal, bob) = alice_and_bob();
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
fn command_in_one_read_with_escape_is_kept() {
    let (_server, terminal, mut bob) = alice_and_bob();
    terminal.text("\u{1b}/help room");
    terminal.expect("> /help room ");
    terminal.keys(&["Enter"]);
    terminal.expect("talk to these users alone; /leave returns");
    terminal.enter("and a message");
    assert_eq!(bob.expect("<alice>"), "<alice> and a message");
}

#[test]
fn wheel_scrolls() {
    let (_server, terminal, mut bob) = alice_and_bob();
    for number in 0..40 {
        bob.say(&format!("line number {number}."));
    }
    terminal.expect("line number 39.");
    // As a terminal reports it: button 64 at column 10, row 5.
    terminal.text("\u{1b}[<64;10;5M");
    terminal.expect(" ↑3 · ");
    terminal.text("\u{1b}[<65;10;5M");
    terminal.wait("the end", |screen| !screen.contains('↑'));
}

#[test]
fn tab_completes_search_finds_and_lines_form_one_message() {
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
    let (_server, terminal, mut bob) = alice_and_bob();
    terminal.text("half");
    let question = "2 lines pasted: Enter sends them as one message, Esc removes them";
    for last in ["Escape", "Enter"] {
        terminal.paste(" a\n/exit\n");
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
        terminal.text("be");
        terminal.paste(&format!("fore{keys}/exit after"));
        let line = terminal.wait("what was pasted", |screen| {
            last_line(screen).starts_with("> before") && last_line(screen).ends_with("/exit after")
        });
        assert!(terminal.is_full_screen() && terminal.title().is_empty(), "{line}");
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
fn lines_without_paste_marks_are_a_paste_too() {
    let (_server, terminal, mut bob) = alice_and_bob();
    // Without marks, as a terminal without bracketed paste sends it.
    terminal.text("one\r/exit\r");
    terminal.expect_last("> one⏎/exit");
    terminal.keys(&["Enter"]);
    terminal.expect("2 lines pasted: Enter sends them as one message");
    terminal.keys(&["Enter"]);
    bob.expect("<alice> one⏎/exit");
    // Text that looks like a command is refused as when it is typed.
    terminal.text("\r/msg bob secret\r");
    terminal.expect_last("> ⏎/msg bob secret");
    terminal.keys(&["Enter"]);
    terminal.expect("lines pasted: Enter sends them as one message");
    terminal.keys(&["Enter"]);
    terminal.expect("a command must begin with /");
    terminal.ask("\u{ff0f}msg bob secret", "U+FF0F is not a slash");
    terminal.enter("after it");
    assert_eq!(bob.expect("<alice"), "<alice> after it");
}

#[test]
fn terminal_replies_and_unfinished_input_type_nothing() {
    let (_server, terminal, mut bob) = alice_and_bob();
    for reply in [
        "\u{1b}]11;rgb:0000/0000/0000\u{1b}\\",
        "\u{1b}]10;rgb:ffff/ffff/ffff\u{7}",
        "\u{1b}P>|XTerm(390)\u{1b}\\",
        "\u{1b}_Gi=31;OK\u{1b}\\",
        "\u{1b}[?62;22c\u{1b}[>1;10;0c\u{1b}[?2026;2$y",
        "\u{1b}Od\u{1b}[c\u{1b}[7~",
    ] {
        terminal.text(reply);
    }
    terminal.text("half");
    terminal.expect_last("> half");
    terminal.keys(&["C-u"]);
    terminal.expect_last(">");
    // The end mark never arrives; the keyboard works again.
    terminal.text("\u{1b}[200~pasted");
    terminal.expect_last("> pasted");
    terminal.text(" and typed");
    terminal.expect_last("> pasted and typed");
    terminal.keys(&["Enter"]);
    assert_eq!(bob.expect("<alice"), "<alice> pasted and typed");
}

#[test]
fn paste_in_several_reads_stays_one_and_sends_nothing() {
    let (_server, terminal, mut bob) = alice_and_bob();
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
        terminal.expect("6 lines pasted: Enter sends them as one message");
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
    let (_server, terminal, mut bob) = alice_and_bob();
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
    terminal.expect_last("(nobody)>");
    terminal.ask("to whom?", "\"to whom?\" was not sent: you are talking to nobody");
    terminal.enter("/view bob");
    terminal.expect_last("bob>");
    terminal.enter("to you");
    bob.expect("<alice -> bob> to you");
    assert!(bob.output.seen.iter().all(|line| !line.contains("room")), "{:?}", bob.output.seen);
}

#[test]
fn digit_after_an_escape_that_ended_scrolling_is_text() {
    let (_server, terminal, mut bob) = alice_and_bob();
    bob.say("/msg alice for you alone");
    terminal.expect(" [1 everyone]  2 bob? (1) · ");
    for number in 0..40 {
        bob.say(&format!("line number {number}."));
    }
    terminal.expect("line number 39.");
    terminal.keys(&["PageUp"]);
    terminal.expect(" ↑");
    terminal.keys(&["Escape"]);
    terminal.wait("the end", |screen| !screen.contains('↑'));
    terminal.text("2");
    terminal.expect_last("> 2");
    terminal.enter(" of us");
    assert_eq!(bob.expect("<alice"), "<alice> 2 of us");
}

#[test]
fn mouse_command_toggles_who_handles_the_mouse() {
    let server = Server::start();
    let terminal = Terminal::new();
    let mouse = |on| drop(terminal.wait("the mouse", |_| terminal.reports_mouse() == on));
    terminal.log_in(server.port, "alice");
    mouse(true);
    terminal.ask("/mouse", "the mouse now selects text");
    mouse(false);
    terminal.ask("/mouse", "the mouse wheel now scrolls");
    mouse(true);
    terminal.enter("/exit");
    terminal.wait_for_shell();
    terminal.ask(&format!("{} --no-mouse", terminal.unasked(server.port, "alice")), " online: ");
    mouse(false);
}

#[test]
fn cursor_is_right_behind_emoji_of_any_width() {
    let server = Server::start();
    let terminal = Terminal::new();
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
        terminal.wait(emoji, |_| terminal.under_cursor() == "x");
        terminal.keys(&["C-u", "C-k"]);
        terminal.expect_last(">");
    }
}

#[test]
fn address_is_a_link_and_contains_no_sequence() {
    let (_server, terminal, mut bob) = alice_and_bob();
    terminal.record();
    let address = format!("https://example.org/{}", "long/".repeat(20));
    bob.say(&format!("see {address}."));
    terminal.wait("the end", |_| terminal.written().contains("\u{1b}]8;;\u{1b}\\\u{1b}[m."));
    let written = terminal.written();
    let parts = written.matches(&format!("\u{1b}]8;;{address}\u{1b}\\")).count();
    assert!(parts >= 2, "each row leads to all of it: {written:?}");
    bob.say("//see https://a.org/\u{7}\u{1b}\\\u{1b}]0;owned\u{7}");
    terminal.expect("]0;owned");
    assert!(!terminal.written().contains("8;;https://a.org"));
}

#[test]
fn wrong_password_file_is_followed_by_a_question() {
    let server = Server::start();
    let terminal = Terminal::new();
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

#[test]
fn mention_is_highlighted_and_rings_the_bell() {
    let (_server, terminal, mut bob) = alice_and_bob();
    bob.say("nobody in particular, not even alice");
    terminal.expect("nobody in particular");
    assert_eq!(terminal.bells(), 0);
    bob.say("hello @ALICE, and @carol, alice@example.org");
    terminal.expect("hello @ALICE");
    assert!(terminal.look("@ALICE").reverse);
    assert!(!terminal.look("@carol").reverse && !terminal.look("alice@example.org").reverse);
    terminal.wait("the bell", |_| terminal.bells() == 1);
}

#[test]
fn long_lines_and_wide_characters_are_wrapped_in_line() {
    let (_server, terminal, mut bob) = alice_and_bob();
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
    terminal.keys(&["Backspace", "Backspace"]);
    terminal.expect_last("> 日");
    assert_eq!(terminal.cursor().0, 4);
    terminal.enter("é");
    bob.expect("<alice> 日é");
}

#[test]
fn resized_terminal_is_redrawn_while_messages_arrive() {
    let (server, terminal, bob) = alice_and_bob();
    terminal.text("half a line");
    terminal.expect_last("> half a line");
    let talker = Talker::start(bob);
    let whole = |columns: usize, rows: usize| {
        let cursor = (13, rows as u16 - 1);
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
                && terminal.cursor() == cursor
        });
    };
    for (columns, rows) in [(20, 6), (300, 100), (40, 10), (80, 24)] {
        terminal.resize(columns, rows);
        whole(columns.into(), rows.into());
    }
    // A window dragged by its corner.
    for step in 0..40 {
        terminal.resize(20 + step * 7, 6 + step * 2);
    }
    terminal.resize(20, 6);
    whole(20, 6);
    terminal.resize(80, 24);
    let mut bob = talker.stop();
    bob.say("a message that is a little longer than forty columns are");
    terminal.expect("columns are");
    whole(80, 24);
    terminal.resize(40, 10);
    whole(40, 10);
    let screen = terminal.screen();
    let all: Vec<&str> = screen.split_whitespace().collect();
    assert!(all.join(" ").contains("<bob?> a message that is a little longer than"), "{screen}");
    terminal.keys(&["Enter"]);
    bob.expect("<alice> half a line");
}

#[test]
fn keys_typed_while_the_window_is_resized_all_arrive() {
    let (_server, terminal, mut bob) = alice_and_bob();
    let line = "typed while the user drags the corner";
    for (step, letter) in (0..).zip(line.chars()) {
        terminal.resize(30 + 3 * step, 8 + step);
        terminal.text(&letter.to_string());
    }
    terminal.keys(&["Enter"]);
    assert_eq!(bob.expect("<alice>"), format!("<alice> {line}"));
}

#[test]
fn status_line_names_destination_and_safety_at_every_width() {
    let (server, terminal, _bob) = alice_and_bob();
    let all =
        format!(" everyone · online · end-to-end encrypted · alice · 2 people · 127.0.0.1:{}", server.port);
    for (columns, shown) in [(60, 59), (80, all.chars().count()), (200, all.chars().count())] {
        terminal.resize(columns, 24);
        let line: String = all.chars().take(shown).collect();
        terminal.wait(&line, |screen| screen.lines().nth(22).is_some_and(|row| row.starts_with(&line)));
    }
}

#[test]
fn long_line_scrolls_and_its_end_and_cursor_stay_visible() {
    let (_server, terminal, mut bob) = alice_and_bob();
    // With one of these widths, a column at the edge stays empty.
    for columns in [80, 81] {
        terminal.resize(columns, 24);
        let line = "日本".repeat(30) + "x";
        terminal.text(&line);
        let screen = terminal.wait("its end", |screen| last_line(screen).ends_with("日本x"));
        // All characters are wide except the two of the prompt and the last one.
        let length = 2 * last_line(&screen).chars().count() - 3;
        assert!(length > 40 && length < columns.into(), "{screen}");
        assert_eq!(terminal.cursor(), (length as u16, 23), "{screen}");
        terminal.keys(&["Enter"]);
        assert_eq!(bob.expect("<alice>"), format!("<alice> {line}"));
    }
}

#[test]
fn notices_are_dim_names_coloured_and_texts_plain() {
    let (_server, terminal, mut bob) = alice_and_bob();
    bob.say("a word");
    terminal.expect("a word");
    let dim = Look { dim: true, ..Look::PLAIN };
    assert_eq!([terminal.look("bob is online"), terminal.look("a word")], [dim, Look::PLAIN]);
    let name = terminal.look("bob?>");
    assert!(name.bold && !name.dim && name.colour != Look::PLAIN.colour, "{name:?}");
}

#[test]
fn key_that_arrives_in_pieces_is_one_key() {
    let (_server, terminal, mut bob) = alice_and_bob();
    (0..40).for_each(|number| bob.say(&format!("line number {number}.")));
    terminal.expect("line number 39.");
    // PageUp, as slow networks deliver it.
    ["\u{1b}", "[", "5", "~"].iter().for_each(|piece| terminal.text(piece));
    let screen = terminal.expect(" ↑");
    assert_eq!(last_line(&screen), ">");
}

#[test]
fn ctrl_l_repairs_a_screen_that_another_program_wrote_to() {
    let (_server, terminal, _bob) = alice_and_bob();
    let before = terminal.screen();
    terminal.scribble("\r\n\nsomebody else\r\n");
    terminal.expect("somebody else");
    terminal.keys(&["C-l"]);
    terminal.wait("the screen as before", |screen| screen == before);
}

#[test]
fn commands_are_explained_and_mistyped_ones_never_sent() {
    let (_server, terminal, mut bob) = alice_and_bob();
    terminal.enter("/help");
    let screen = terminal.expect("any other line goes to");
    for command in ["/msg NAME TEXT", "/room NAME...", "/leave", "/verify NAME", "/trust NAME", "/exit"] {
        assert!(screen.contains(command), "{command}:\n{screen}");
    }
    terminal.ask("/hlep", "there is no command /hlep: did you mean /help?");
    terminal.ask("/help room", "talk to these users alone; /leave returns");
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
    let terminal = Terminal::new();
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
    let path = terminal.home.path(".secure_messenger_client/files/received/bob~big.bin");
    assert!(std::fs::read(path).expect("the file is there") == bytes);
}

/// PROTOCOL#harmless.
#[test]
fn message_cannot_move_the_cursor_or_rename_the_terminal() {
    let (_server, terminal, mut bob) = alice_and_bob();
    bob.say("\u{1b}]0;owned\u{7}\u{1b}[2J\u{1b}[1;1Htop\u{1b}[?1049l\u{9b}5A bottom");
    let screen = terminal.expect("bottom");
    // The emulator drops this character.
    let written = terminal.written();
    assert!(written.contains("\u{fffd}]0;owned\u{fffd}\u{fffd}[2J\u{fffd}[1;1Htop"), "{written:?}");
    assert!(!screen.lines().next().unwrap_or_default().contains("top"), "{screen}");
    assert_eq!(terminal.title(), "");
    terminal.expect_last(">");
}

#[test]
fn colours_are_used_unless_no_color_is_set() {
    let server = Server::start();
    let terminal = Terminal::new();
    terminal.log_in(server.port, "alice");
    let mut bob = server.client("bob").ready();
    terminal.expect("* bob is online");
    bob.say("@alice, in colour");
    terminal.expect("in colour");
    assert_ne!(terminal.look("bob?>").colour, Look::PLAIN.colour);
    terminal.enter("/exit");
    terminal.wait_for_shell();
    terminal.record();
    terminal.ask(&format!("NO_COLOR=1 {}", terminal.unasked(server.port, "alice")), " online: ");
    bob.expect("* alice has left");
    bob.expect("* alice is online");
    bob.say("without colour, @alice");
    terminal.expect("without colour");
    terminal.ask("/hlep", "did you mean");
    assert!(!terminal.written().contains("\u{1b}[38;5;"));
    assert!(terminal.look("bob?>").bold && terminal.look("@alice").reverse);
}

#[test]
fn dumb_terminal_or_pipe_gets_plain_mode() {
    let server = Server::start();
    let terminal = Terminal::new();
    // In two parts, so that the typed line does not contain the expected text.
    terminal.ask("clear; echo clea''red", "cleared");
    terminal.wait_for_shell();
    terminal.record();
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
    let written = terminal.written();
    assert_eq!(written.matches("* logged in as alice").count(), 3, "{written}");
    assert!(!written.contains('\u{1b}') && !written.contains('\u{7}'), "{written:?}");
}

// ---- the ends

/// A way to end: its name, the command that starts the client (`None`: a login), the last line when it has started, the
/// act that ends it, a text that it leaves on the normal screen, its exit status.
type End<'a> = (&'a str, Option<String>, &'a str, &'a dyn Fn(), &'a str, u8);

/// Ends the client in every way; `busy`: while messages arrive.
fn end_in_every_way(busy: bool) {
    let (server, terminal) = (Server::start(), Terminal::new());
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
        // A line typed at this moment must not reach the shell.
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
                let changed = terminal.changed_modes();
                assert!(["1004", "1049", "2004"].iter().all(|mode| changed.contains(mode)), "{changed}");
            }
        }
        if !begun.is_empty() {
            terminal.expect_last(begun);
            assert_eq!(terminal.changed_modes(), "2004");
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
    secure_messenger::client::terminal::enter(true).expect("a terminal");
    panic!("as it was meant to");
}

#[test]
fn closed_window_ends_its_client() {
    let (_server, terminal, mut bob) = alice_and_bob();
    let client = terminal.child();
    drop(terminal);
    bob.expect("* alice has left");
    until("it has ended", || !Path::new(&format!("/proc/{client}")).exists());
}

#[test]
fn client_stopped_from_outside_restores_the_terminal() {
    let (server, terminal) = (Server::start(), Terminal::new());
    let before = terminal.prepare();
    terminal.log_in(server.port, "alice");
    terminal.signal("-TSTP");
    // 128 and SIGSTOP.
    terminal.expect_as_before(&before, "TSTP", "Stopped", 147);
}

#[test]
fn password_stays_hidden_after_a_stop() {
    let (server, terminal) = (Server::start(), Terminal::new());
    for signal in ["-TSTP", "-STOP"] {
        let before = terminal.prepare();
        terminal.enter(&terminal.client(server.port, "--user alice --register"));
        terminal.expect_last("new password (hidden, at least 6 characters):");
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
        // The shell does not write, so the last output of the client may still be on its way.
        until("the modes are as before", || signal == "-STOP" || terminal.modes() == before.modes);
        // A shell may change the modes.
        terminal.text("stty sane; fg");
        terminal.keys(&["C-j"]);
        until("it is in front", || stat().0 != "T" && stat().1 == stat().2);
        until("it is raw", || !terminal.echoes());
        terminal.enter("unspoken");
        let screen = terminal.expect_last("repeat password:");
        assert!(!screen.contains("unspoken"), "{screen}");
        terminal.keys(&["C-c"]);
        terminal.expect_last(">");
        terminal.keys(&["C-c"]);
        terminal.wait_for_shell();
    }
}

#[test]
fn signal_ends_a_client_whose_terminal_accepts_no_output() {
    let (_server, terminal, mut bob) = alice_and_bob();
    let child = terminal.child();
    terminal.hold(true);
    // More than the kernel buffers for the terminal: each resize redraws everything.
    for n in 0..100 {
        bob.say(&format!("number {n} {}", "word ".repeat(400)));
        support::signal(child, "-WINCH");
        bob.expect(&format!("number {n} "));
    }
    let start = Instant::now();
    support::signal(child, "-TERM");
    until("it has ended", || !Path::new(&format!("/proc/{child}")).exists());
    let waited = start.elapsed();
    assert!(waited < Duration::from_secs(15), "{waited:?}");
    assert!(terminal.echoes());
}

#[test]
fn client_that_nobody_could_continue_is_not_suspended() {
    let (server, mut terminal) = (Server::start(), Terminal::new());
    terminal.enter(&format!("exec {}", terminal.unasked(server.port, "alice")));
    terminal.wait("a login", |screen| screen.contains(" · alice · 1 person"));
    terminal.keys(&["C-z"]);
    terminal.text("still here");
    terminal.expect_last("> still here");
    terminal.keys(&["C-c", "C-c"]);
    until("it ends", || terminal.shell.try_wait().expect("a child").is_some_and(|status| status.success()));
}

#[test]
fn suspended_client_restores_the_terminal_and_continues() {
    let (server, terminal) = (Server::start(), Terminal::new());
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
    let (mut server, terminal, bob) = alice_and_bob();
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
    let (gate, terminal) = (Gate::before(&server), Terminal::new());
    terminal.log_in(gate.port, "alice");
    let mut bob = server.client("bob").ready();
    bob.say("/msg alice hello");
    terminal.expect(" [1 everyone]  2 bob? (1) · online");
    gate.hold_answers(true);
    // As many as may be in flight, and two more.
    for n in 0..64 {
        // Typed faster, they would be a paste.
        terminal.ask(&format!("in flight {n}."), &format!("in flight {n}. …"));
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
    assert!(screen.contains(over) && !screen.contains("CONNECTION LOST"), "{screen}");
    // Typed lines are answered, and the conversation can still be read.
    terminal.keys(&["M-r"]);
    terminal.text("and more");
    terminal.expect_last("> typed afterand more");
    terminal.keys(&["Enter"]);
    terminal.expect("* not sent: the session is over; Ctrl-C leaves");
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
    let (_server, terminal, mut bob) = alice_and_bob();
    for number in 0..40 {
        bob.say(&format!("line number {number}."));
    }
    terminal.expect("<bob?> line number 39.");
    terminal.keys(&["PageUp"]);
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
    let (_server, terminal, mut bob) = alice_and_bob();
    let told = || terminal.written().matches("\x1b]9;message from bob\x07").count();
    bob.say("/msg alice one");
    terminal.expect("2 bob? (1)");
    until("notified, because another view is shown", || {
        bob.ask("/msg alice again", "again");
        told() > 0
    });
    terminal.keys(&["M-2"]);
    terminal.expect("[private bob? → alice] one");
    let (before, already) = (told(), terminal.bells());
    until("the bell rings", || {
        bob.ask("/msg alice again", "again");
        terminal.bells() > already
    });
    assert_eq!(told(), before, "the view is visible");
    // The window loses the focus.
    terminal.text("\u{1b}[O");
    until("the desktop is notified", || {
        bob.ask("/msg alice again", "again");
        told() > before
    });
    terminal.text("\u{1b}[I");
    terminal.ask("/notify off", "* notifications of private messages, mentions and files are off");
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
fn message_time_uses_the_offset_of_its_own_moment() {
    let server = Server::start();
    let terminal = Terminal::new();
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
fn terminal_without_utf8_gets_only_ascii() {
    let server = Server::start();
    let terminal = Terminal::new();
    terminal.enter("export LC_ALL=C");
    terminal.prepare();
    terminal.ask(&terminal.unasked(server.port, "alice"), "your locale is not UTF-8");
    let mut bob = server.client("bob").ready();
    terminal.expect("* bob is online");
    // In a terminal of one byte per character, the last bytes of these characters are CSI and OSC.
    bob.say("ě2J ĝ2;title 漢字.");
    let screen = terminal.expect("<bob?> ?2J ?2;title ????.");
    assert!(screen.contains(" everyone | online | "), "{screen}");
    let written = terminal.written();
    assert!(written.is_ascii(), "{written}");
}
