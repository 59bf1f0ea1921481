//! `--keep-history` with real programs: the next session finds the messages, nobody else can read the file, without the
//! option there is no file, and `/history forget` erases it.

use crate::support::{Client, DATA, Folder, NEW, Server, files, until};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

const KEEP: &str = "--keep-history";

/// Alice's folder.
struct Home(Arc<Folder>);

impl Home {
    fn new() -> Home {
        Home(Arc::new(Folder::new()))
    }

    fn alice(&self, server: &Server, arguments: &[&str]) -> Client {
        server.client_in(&self.0, "alice", &[&["--register"], arguments].concat())
    }

    fn data(&self, path: &str) -> PathBuf {
        self.0.path(DATA).join(path)
    }

    /// The only history file.
    fn history(&self) -> PathBuf {
        let found = files(&self.data("history"));
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    }

    fn records(&self) -> usize {
        fs::read_to_string(self.history()).expect("text").lines().count()
    }
}

/// The lines that answer `/history`.
fn history(client: &mut Client) -> Vec<String> {
    let before = client.output.seen.len();
    client.say("/history");
    client.ask("/notify", "* notifications of private messages, mentions and files are on");
    let lines = &client.output.seen[before..];
    let start = lines.iter().position(|line| line.contains(" session")).expect("an answer");
    lines[start + 1..lines.len() - 1].iter().map(without_date).collect()
}

/// "* 2026-01-31 08:05 <alice> hi" without its date.
fn without_date(line: &String) -> String {
    let (date, rest) = line.split_at("* 2026-01-31 08:05 ".len());
    let digits: String = date.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(digits, "* 0000-00-00 00:00 ", "{line}");
    format!("* {rest}")
}

/// PROTOCOL#history-file, PROTOCOL#history-key.
#[test]
fn next_session_finds_messages_and_the_disk_reveals_none() {
    let (server, home) = (Server::start(), Home::new());
    let mut alice = home.alice(&server, &[KEEP]).ready();
    let mut bob = server.client("bob").ready();
    alice.expect("* bob is online");
    alice.ask("pineapple for everyone", "<alice> pineapple");
    bob.expect("<alice> pineapple");
    bob.say("/msg alice pineapple for one");
    alice.expect("<bob -> alice> pineapple");
    alice.ask("/room bob", "* you are in a private room with bob");
    alice.ask("pineapple in a room", "<alice -> bob> pineapple");
    // Messages that nobody received are not kept, nor are notices.
    alice.ask("/msg carol pineapple for nobody", "! there is no account named carol");
    alice.leaves();
    let said = [
        "* <alice> pineapple for everyone",
        "* <bob -> alice> pineapple for one",
        "* <alice -> bob> pineapple in a room",
    ];
    assert_eq!(home.records(), said.len());
    assert_eq!(fs::metadata(home.history()).expect("there").permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(home.data("history")).expect("there").permissions().mode() & 0o777, 0o700);
    for path in files(&home.data("")) {
        let bytes = fs::read(&path).expect("readable");
        assert!(!bytes.windows(9).any(|part| part == b"pineapple"), "{}", path.display());
    }
    let mut alice = home.alice(&server, &[KEEP]).ready();
    assert!(!alice.output.seen.iter().any(|line| line.contains("pineapple")), "nothing at the start");
    assert_eq!(history(&mut alice), said);
    alice.ask("/history ROOM", "* the last message with \"ROOM\" of this and earlier sessions");
    assert_eq!(without_date(&alice.expect(&said[2][2..])), said[2]);
    // A password change loses no message.
    alice.say(&format!("/passwd {}", home.0.password_file(NEW).display()));
    alice.expect("* your password is changed");
    alice.leaves();
    let new = home.0.password_file(NEW);
    let new = ["--password-file", new.to_str().expect("UTF-8"), KEEP];
    let mut alice = home.alice(&server, &new).ready();
    assert_eq!(history(&mut alice), said);
    // Another server has another file.
    let other = Server::start();
    let mut elsewhere = home.alice(&other, &new).ready();
    assert!(history(&mut elsewhere).is_empty());
}

#[test]
fn history_without_the_option_is_untouched_and_reported() {
    let (server, home) = (Server::start(), Home::new());
    let mut bob = server.client("bob").ready();
    let mut alice = home.alice(&server, &[]).ready();
    alice.ask("/msg bob unkept", "<alice -> bob> unkept");
    alice.ask("/history forget", "* all messages are erased; none were kept on disk");
    assert!(history(&mut alice).is_empty());
    alice.leaves();
    assert!(!home.data("history").exists());
    let mut alice = home.alice(&server, &[KEEP]).ready();
    alice.ask("/msg bob kept", "<alice -> bob> kept");
    alice.leaves();
    // A client that reads this file stops.
    let (file, before) = (home.history(), "damaged\n");
    fs::write(&file, before).expect("written");
    let mut alice = home.alice(&server, &[]).ready();
    let told = alice.output.seen.iter().filter(|line| line.contains("--keep-history")).collect::<Vec<_>>();
    assert!(told.len() == 1 && told[0].contains("/history forget"), "{told:?}");
    alice.ask("/msg bob unkept", "<alice -> bob> unkept");
    assert_eq!(history(&mut alice), ["* <alice -> bob> unkept"]);
    assert_eq!(fs::read_to_string(&file).expect("there"), before);
    alice.ask("/history forget", "* all messages are erased, here and on disk");
    assert!(!file.exists() && history(&mut alice).is_empty());
    alice.leaves();
    let alice = home.alice(&server, &[]).ready();
    assert!(!alice.output.seen.iter().any(|line| line.contains("--keep-history")));
    bob.expect("unkept");
}

#[test]
fn history_forget_erases_and_later_messages_are_kept() {
    let (server, home) = (Server::start(), Home::new());
    let _bob = server.client("bob").ready();
    let mut alice = home.alice(&server, &[KEEP]).ready();
    alice.ask("/msg bob before", "<alice -> bob> before");
    alice.ask("/history forget", "* all messages are erased, here and on disk");
    alice.expect("* new messages are kept on disk again");
    assert_eq!(fs::metadata(home.history()).expect("there").len(), 0);
    assert!(history(&mut alice).is_empty());
    alice.ask("/msg bob after", "<alice -> bob> after");
    alice.leaves();
    let mut alice = home.alice(&server, &[KEEP]).ready();
    assert_eq!(history(&mut alice), ["* <alice -> bob> after"]);
}

/// PROTOCOL#history-lock.
#[test]
fn client_that_takes_over_continues_the_history() {
    let (server, home) = (Server::start(), Home::new());
    let _bob = server.client("bob").ready();
    let mut first = home.alice(&server, &[KEEP]).ready();
    first.ask("/msg bob one", "<alice -> bob> one");
    // Its login ends the first session, which then releases the file.
    let mut second = home.alice(&server, &[KEEP]).ready();
    first.expect("! you have logged in elsewhere");
    assert_eq!(first.finish().0, 1);
    assert_eq!(history(&mut second), ["* <alice -> bob> one"]);
    second.ask("/msg bob two", "<alice -> bob> two");
    second.leaves();
    let other = File::open(home.history()).expect("opens");
    other.try_lock().expect("free");
    let mut alice = home.alice(&server, &[KEEP]);
    alice.expect(
        "* another client is using your history file: this one neither shows earlier messages nor keeps",
    );
    alice.expect(" online: ");
    alice.ask("/msg bob unkept", "<alice -> bob> unkept");
    alice.ask("/history forget", "! all messages are erased here, but not on disk: ");
    alice.leaves();
    drop(other);
    let mut alice = home.alice(&server, &[KEEP]).ready();
    assert_eq!(history(&mut alice), ["* <alice -> bob> one", "* <alice -> bob> two"]);
}

/// PROTOCOL#history-damage.
#[test]
fn damaged_history_stops_the_login_and_changes_nothing() {
    let (server, home) = (Server::with(&["--grace", "3600"]), Home::new());
    let _bob = server.client("bob").ready();
    let mut alice = home.alice(&server, &[KEEP]).ready();
    for text in ["one", "two"] {
        alice.ask(&format!("/msg bob {text}"), text);
    }
    alice.leaves();
    let file = home.history();
    let text = fs::read_to_string(&file).expect("text");
    let second = text.lines().nth(1).expect("two records");
    fs::write(&file, format!("{second}\n{second}\n")).expect("written");
    let (status, lines) = home.alice(&server, &[KEEP]).finish();
    let problem = lines.last().expect("told");
    assert!(
        status == 1 && problem.starts_with(&format!("! {}: line 1 is damaged", file.display())),
        "{lines:?}"
    );
    assert_eq!(fs::read_to_string(&file).expect("text"), format!("{second}\n{second}\n"));
    // Other users do not see her online.
    until("the logout is logged", || server.log().matches("event=logout user=alice ").count() == 2);
    // The remedy works.
    let mut alice = home.alice(&server, &[]).ready();
    alice.ask("/history forget", "erased, here and on disk");
    alice.leaves();
    assert_eq!(home.alice(&server, &[KEEP]).finish().0, 0);
}

/// PROTOCOL#history-damage.
#[test]
fn full_disk_is_reported_once_and_loses_no_kept_message() {
    let (server, home) = (Server::start(), Home::new());
    let _bob = server.client("bob").ready();
    assert_eq!(home.alice(&server, &[]).finish().0, 0);
    // Writes beyond 1 or 2 KiB (the shell chooses the block size) fail as on a full disk.
    let limit = "trap '' XFSZ; ulimit -f 2";
    let mut alice =
        Client::after(limit, home.0.clone(), server.port, "alice", &["--accept-new", KEEP, "--no-mail"])
            .ready();
    for n in 1..=8 {
        alice.ask(&format!("/msg bob message {n}"), &format!("<alice -> bob> message {n}"));
    }
    assert_eq!(history(&mut alice).len(), 8);
    let (status, lines) = alice.finish();
    let told: Vec<_> = lines.iter().filter(|line| line.starts_with("! ")).collect();
    assert!(status == 0 && told.len() == 1 && told[0].contains("messages are no longer kept"), "{told:?}");
    let kept = home.records();
    assert!((1..8).contains(&kept) && fs::read(home.history()).expect("there").ends_with(b"\n"));
    let mut alice = home.alice(&server, &[KEEP]).ready();
    let lines: Vec<String> = (1..=kept).map(|n| format!("* <alice -> bob> message {n}")).collect();
    assert_eq!(history(&mut alice), lines);
}
