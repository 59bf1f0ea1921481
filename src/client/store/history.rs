//! Messages that outlive the session, sealed on disk, with `--keep-history`.
//!
//! Invariant: the file is sealed (see `sealed`). A damaged file stops the login, unchanged. Without the option nothing
//! is read or written, only erased on request. Format: PROTOCOL#kept-history.

use super::sealed::{Kind, Sealed, longest_line};
use crate::client::audience::{Audience, Partners};
use crate::client::options::Options;
use crate::crypto::envelope::{MAX_TEXT, Scope};
use crate::crypto::keys::IdentityKey;
use crate::crypto::label;
use crate::disk;
use crate::name::Username;
use crate::records::{self, Format};
use miniserde::{Deserialize, Serialize, json};
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;
use zeroize::Zeroizing;

/// The most messages that `/history` can show, including those of earlier sessions: enough to look something up, few
/// enough to rewrite at a login. PROTOCOL#history-length.
pub const MAX_HISTORY: usize = 1000;
/// At this number of records, the file is rewritten with the last [`MAX_HISTORY`]; this program never writes a longer
/// one.
const MAX_RECORDS: u64 = 2 * MAX_HISTORY as u64;
/// The longest plaintext: sanitising and JSON turn one byte of the text into three at most; the names of the largest
/// room take 1 KiB, other members some hundred bytes.
const MAX_PLAINTEXT: usize = 3 * MAX_TEXT + 2048;

const KIND: Kind = Kind {
    folder: "history",
    label: label::HISTORY,
    longest: MAX_PLAINTEXT,
    records: MAX_RECORDS,
    format: Format {
        longest: longest_line(MAX_PLAINTEXT),
        damaged: "is damaged, or belongs to another key: restore the file from a copy, or log in without \
            --keep-history and erase it with /history forget",
    },
};

const NOT_WANTED: &str = "messages of earlier sessions are kept on this disk: --keep-history shows them and keeps \
    more, /history forget erases them";
const ELSEWHERE: &str =
    "another client is using your history file: this one neither shows earlier messages nor keeps new ones";

/// A kept message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Milliseconds since 1970.
    pub time: u64,
    /// Its author.
    pub from: Username,
    /// Its recipients.
    pub to: Audience,
    /// The text as it was shown; sanitise it again, because another program may have written the file.
    pub text: String,
}

/// The sealed form of a message. PROTOCOL#history-record.
#[derive(Serialize, Deserialize)]
struct Content {
    time: u64,
    scope: Scope,
    from: Username,
    to: Option<Partners>,
    text: String,
}

impl Message {
    /// The sealed record. PROTOCOL#history-record.
    fn record(self) -> Zeroizing<String> {
        let Message { time, from, to, text } = self;
        let recipients = to.partners(&from, &from);
        let content = Content { time, scope: to.scope(), from, to: recipients, text };
        Zeroizing::new(json::to_string(&content))
    }

    /// Reverses [`Message::record`].
    fn of(record: &[u8]) -> Option<Message> {
        let Content { time, scope, from, to, text } = records::parse(record)?;
        Some(Message { time, from, to: Audience::new(scope, to)?, text })
    }
}

/// The file of one account on one server.
pub struct History {
    file: Sealed,
    wanted: bool,
}

impl History {
    /// The history of this account on the server of `options`. Reads nothing yet. PROTOCOL#history-file.
    pub fn new(options: &Options, owner: &Username, identity: &IdentityKey) -> History {
        let key = identity.history_key(owner, &options.server());
        History { file: Sealed::new(&KIND, options, owner, key), wanted: options.keep_history }
    }

    /// Whether `--keep-history` was given.
    pub fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Whether messages are kept now.
    pub fn is_kept(&self) -> bool {
        self.file.is_open()
    }

    fn is_there(&self) -> bool {
        let is_full = |path: &Path| fs::symlink_metadata(path).is_ok_and(|data| data.len() > 0);
        is_full(self.file.path()) || !records::asides(self.file.path()).is_empty()
    }

    /// The notice at the start, if there is one.
    pub fn notice(&self) -> Option<&'static str> {
        match self.wanted {
            true => (!self.is_kept()).then_some(ELSEWHERE),
            false => self.is_there().then_some(NOT_WANTED),
        }
    }

    /// Locks the file and reads the last [`MAX_HISTORY`] messages, the oldest first; none without the option, or if
    /// another client uses the file. Reports a repair in `notices`. PROTOCOL#history-damage.
    ///
    /// # Errors
    /// The disk's; with file, line and remedy in the text if a record is damaged or belongs to another key.
    pub fn load(&mut self, notices: &mut Vec<String>) -> io::Result<VecDeque<Message>> {
        let mut messages = VecDeque::new();
        if !self.wanted {
            return Ok(messages);
        }
        let Some(file) = self.file.lock()? else { return Ok(messages) };
        self.file.read(file, notices, |record| {
            let message = Message::of(record);
            let is_understood = message.is_some();
            messages.extend(message);
            if messages.len() > MAX_HISTORY {
                messages.pop_front();
            }
            is_understood
        })?;
        if self.file.count() > MAX_HISTORY as u64 {
            // If the disk is full, keep the longer file for now.
            let _ = self.rewrite(messages.iter().cloned());
        }
        Ok(messages)
    }

    /// Appends `message`, if messages are kept; writes `all` of them, including this one, if the file must be
    /// rewritten. After a failure no further messages are kept, because the gap would be invisible.
    ///
    /// # Errors
    /// The disk's; the messages kept before remain.
    pub fn append(&mut self, message: Message, all: impl Iterator<Item = Message>) -> io::Result<()> {
        if !self.is_kept() {
            return Ok(());
        }
        let written = match self.file.count() < MAX_RECORDS {
            true => self.file.append([message.record()], false),
            // The file may also become long during a session.
            false => self.rewrite(all),
        };
        written.inspect_err(|_| self.file.close())
    }

    fn rewrite(&mut self, messages: impl Iterator<Item = Message>) -> io::Result<()> {
        self.file.rewrite(messages.map(Message::record))?;
        disk::sync_parent(self.file.path())
    }

    /// Erases the file and the remains of a crash; returns whether there was a file. Later messages are kept if the
    /// option is given.
    ///
    /// # Errors
    /// The disk's, also if another client uses the file.
    pub fn forget(&mut self) -> io::Result<bool> {
        let was_there = self.is_there();
        // Erase in place, so that the lock stays valid.
        let file = match self.is_kept() {
            true => self.file.file()?,
            false if !was_there => return self.file.remove_temporary().map(|()| false),
            false => disk::lock(self.file.path(), Duration::ZERO)?,
        };
        // Only under the lock: another client may be rewriting its file.
        self.file.remove_temporary()?;
        records::erase(&file, self.file.path())?;
        self.file.read(file, &mut Vec::new(), |_| false)?;
        if !self.wanted {
            fs::remove_file(self.file.path()).map_err(disk::at(self.file.path()))?;
            self.file.close();
            disk::sync_parent(self.file.path())?;
        }
        Ok(was_there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::random;
    use crate::encoding::hex;
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::sync::LazyLock;

    static KEY: LazyLock<IdentityKey> = LazyLock::new(IdentityKey::generate);

    fn name(text: &str) -> Username {
        text.parse().expect("name")
    }

    /// A data folder, removed on drop.
    struct Home(PathBuf);

    impl Home {
        fn new() -> Home {
            let id = hex(&random::<8>());
            let path = std::env::temp_dir().join(format!("history-{id}"));
            disk::private_folders(&path, &["history"]).expect("folder");
            Home(path)
        }

        fn history_of(&self, owner: &str, identity: &IdentityKey, words: &[&str]) -> History {
            let data = self.0.to_str().expect("UTF-8");
            let options = Options::of(&[&["--data-dir", data], words].concat());
            History::new(&options, &name(owner), identity)
        }

        /// Alice's history.
        fn history(&self) -> History {
            self.history_of("alice", &KEY, &["--keep-history"])
        }

        fn keep(&self, texts: &[&str]) {
            let mut history = self.history();
            history.load(&mut Vec::new()).expect("loads");
            for text in texts {
                append(&mut history, text);
            }
        }

        /// Loads the history, and returns the texts.
        fn texts(&self) -> Vec<String> {
            let messages = self.history().load(&mut Vec::new()).expect("loads");
            messages.into_iter().map(|message| message.text).collect()
        }

        fn path(&self) -> PathBuf {
            self.history().file.path().into()
        }

        fn lines(&self) -> Vec<String> {
            let text = fs::read_to_string(self.path()).expect("text");
            text.lines().map(|line| format!("{line}\n")).collect()
        }

        /// Replaces the file by these lines, and returns the refused line. The file must stay unchanged.
        fn refused(&self, lines: &[String]) -> Option<usize> {
            let (path, text) = (self.path(), lines.concat());
            fs::write(&path, &text).expect("written");
            let mut history = self.history();
            let error = history.load(&mut Vec::new()).err()?.to_string();
            assert_eq!(fs::read_to_string(&path).expect("text"), text, "untouched");
            assert!(!history.is_kept() && history.append(message("x"), [].into_iter()).is_ok());
            assert_eq!(fs::read_to_string(&path).expect("text"), text, "untouched");
            let file = path.to_str().expect("UTF-8");
            assert!(error.starts_with(file) && error.contains("erase it with /history forget"), "{error}");
            let number = error.split("line ").nth(1).and_then(|rest| rest.split(' ').next());
            Some(number.and_then(|number| number.parse().ok()).expect("a number"))
        }
    }

    impl Drop for Home {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn message(text: &str) -> Message {
        Message { time: 1, from: name("bob"), to: Audience::Everyone, text: text.into() }
    }

    fn append(history: &mut History, text: &str) {
        history.append(message(text), [].into_iter()).expect("appended");
    }

    #[test]
    fn kept_messages_reload_unchanged_and_are_encrypted() {
        let home = Home::new();
        let (alice, bob) = (name("alice"), name("bob"));
        let addressed = [
            (&alice, Audience::Everyone),
            (&bob, Audience::Private(alice.clone())),
            (&alice, Audience::Room(bob.clone().into())),
        ];
        let mut messages = VecDeque::new();
        let mut history = home.history();
        assert!(history.load(&mut Vec::new()).expect("nothing is there").is_empty());
        for (time, (from, to)) in (1_700_000_000_000..).zip(addressed) {
            let text = "two lines\nfor @Alice \"\\ ⏎ é\u{1b}[2J".into();
            messages.push_back(Message { time, from: from.clone(), to, text });
            history.append(messages[messages.len() - 1].clone(), [].into_iter()).expect("appended");
        }
        drop(history);
        assert_eq!(home.history().load(&mut Vec::new()).expect("loads"), messages);
        let path = home.path();
        assert_eq!(path.file_name().expect("named").to_str(), Some("alice_1ab68e0d91a2553b"));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let file = fs::read_to_string(&path).expect("text");
        for clear in ["lines", "Alice", "alice", "bob", "private", "1700000000", "text"] {
            assert!(!file.contains(clear), "{clear}");
        }
        // Lengths only reveal steps of 256 bytes.
        let lengths: Vec<usize> = home.lines().iter().map(String::len).collect();
        assert_eq!(lengths, [lengths[0]; 3]);
    }

    #[test]
    fn history_opens_only_with_its_key_account_and_server() {
        let home = Home::new();
        home.keep(&["secret"]);
        let path = home.path();
        let before = fs::read(&path).expect("there");
        let other = IdentityKey::generate();
        for (owner, identity, words) in [
            ("alice", &other, &["--keep-history"][..]),
            ("bob", &*KEY, &["--keep-history"]),
            ("alice", &*KEY, &["--keep-history", "--port", "1316"]),
            ("alice", &*KEY, &["--keep-history", "--host", "127.0.0.1"]),
        ] {
            let mut history = home.history_of(owner, identity, words);
            fs::write(history.file.path(), &before).expect("written");
            let error = history.load(&mut Vec::new()).expect_err("refused").to_string();
            assert!(error.contains("line 1 is damaged, or belongs to another key"), "{error}");
            assert_eq!(fs::read(history.file.path()).expect("there"), before);
        }
    }

    /// PROTOCOL#history-chain.
    #[test]
    fn altered_or_missing_record_is_refused_and_file_untouched() {
        let home = Home::new();
        home.keep(&["one", "two", "three"]);
        let lines = home.lines();
        let pick = |wanted: &[usize]| wanted.iter().map(|&n| lines[n].clone()).collect::<Vec<_>>();
        assert_eq!(home.refused(&pick(&[0, 1, 2])), None);
        // Changes that editors make are harmless.
        let edited =
            [format!("\u{feff}\r\n{}", lines[0].replace('\n', " \r\n")), "\n".into(), lines[1].clone()];
        assert_eq!(home.refused(&edited), None);
        for (wanted, refused) in [
            (&[1, 0, 2][..], 1),
            (&[0, 2, 1], 2),
            (&[0, 2], 2),
            (&[1, 2], 1),
            (&[2], 1),
            (&[0, 0, 1, 2], 2),
            (&[0, 1, 2, 2], 4),
        ] {
            assert_eq!(home.refused(&pick(wanted)), Some(refused), "{wanted:?}");
        }
        for field in ["nonce", "data", "tag"] {
            let mut altered = lines.clone();
            let at = altered[1].find(&format!("\"{field}\":\"")).expect("there") + field.len() + 4;
            let other = if altered[1].as_bytes()[at] == b'A' { "B" } else { "A" };
            altered[1].replace_range(at..=at, other);
            assert_eq!(home.refused(&altered), Some(2), "{field}");
        }
        for (bad, behind) in [("{}\n", 0), ("[[[[\n", 0), ("\u{0}\n", 1)] {
            let altered = [&lines[..1], &[bad.into()], &lines[1..1 + behind]].concat();
            assert_eq!(home.refused(&altered), Some(2), "{bad:?}");
        }
        // A line without an end, longer than a record can be.
        assert_eq!(home.refused(&[lines[0].clone(), "x".repeat(KIND.format.longest + 1)]), Some(2));
    }

    /// PROTOCOL#history-chain.
    #[test]
    fn record_of_an_older_copy_is_refused_at_the_same_place() {
        let home = Home::new();
        home.keep(&["one", "two", "three"]);
        let older = home.lines();
        home.history().load(&mut Vec::new()).expect("loads");
        fs::write(home.path(), "").expect("written");
        home.keep(&["four", "five", "six"]);
        let mut lines = home.lines();
        lines[2] = older[2].clone();
        assert_eq!(home.refused(&lines), Some(3));
    }

    /// PROTOCOL#history-damage.
    #[test]
    fn torn_last_line_is_set_aside_and_the_chain_continues() {
        let home = Home::new();
        home.keep(&["one", "two"]);
        let whole = home.lines();
        for cut in [1, 20, whole[1].len() - 2] {
            let torn = whole[1][..cut].to_string() + if cut == 20 { "\0\0" } else { "" };
            fs::write(home.path(), whole[0].clone() + &torn).expect("written");
            let mut history = home.history();
            let mut notices = Vec::new();
            assert_eq!(history.load(&mut notices).expect("loads").len(), 1, "{cut}");
            assert!(notices.concat().contains("set aside in") && history.notice().is_none());
            drop(history);
            assert_eq!(home.lines(), whole[..1], "{cut}");
            let asides = records::asides(&home.path());
            assert!(asides.iter().any(|aside| fs::read_to_string(aside).is_ok_and(|text| text == torn)));
        }
        // Set-aside files are erased too.
        assert_eq!(records::asides(&home.path()).len(), 3);
        home.history().forget().expect("erased");
        assert!(records::asides(&home.path()).is_empty());
        // A record that only lacks its line end counts.
        fs::write(home.path(), whole.concat().trim_end()).expect("written");
        assert_eq!(home.texts(), ["one", "two"]);
        fs::write(home.path(), &whole[0]).expect("written");
        home.keep(&["three"]);
        assert_eq!(home.texts(), ["one", "three"]);
    }

    /// PROTOCOL#history-record.
    #[test]
    fn longest_message_fits_in_a_record() {
        let home = Home::new();
        // The longest text after sanitising.
        let worst = ["\u{fffd}", "\"", "\n"].map(|text| text.repeat(MAX_TEXT));
        home.keep(&worst.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(home.texts(), worst);
    }

    /// PROTOCOL#history-length.
    #[test]
    fn rewrite_keeps_the_last_thousand_messages() {
        let home = Home::new();
        let mut history = home.history();
        let mut session = history.load(&mut Vec::new()).expect("loads");
        for n in 0..MAX_RECORDS + 2 {
            session.push_back(message(&n.to_string()));
            session.drain(..session.len().saturating_sub(MAX_HISTORY));
            history.append(message(&n.to_string()), session.iter().cloned()).expect("appended");
            let rewritten = n >= MAX_RECORDS;
            let records = if rewritten { MAX_HISTORY as u64 + n - MAX_RECORDS } else { n + 1 };
            assert_eq!(history.file.count(), records);
        }
        disk::lock(history.file.path(), Duration::ZERO).expect_err("the new file is locked");
        drop(history);
        assert_eq!(home.lines().len(), MAX_HISTORY + 1);
        let last: Vec<String> = (1002..2002).map(|n| n.to_string()).collect();
        assert_eq!(home.texts(), last);
        assert_eq!(home.lines().len(), MAX_HISTORY, "and rewritten");
        assert_eq!(home.texts(), last);
        home.keep(&["one more"]);
        assert_eq!(home.texts().last().map(String::as_str), Some("one more"));
        // An endless file is not read to its end.
        let mut history = home.history();
        history.load(&mut Vec::new()).expect("loads");
        while history.file.count() <= MAX_RECORDS {
            history.file.append([message("x").record()], false).expect("written");
        }
        drop(history);
        assert_eq!(home.refused(&home.lines()), Some(MAX_RECORDS as usize + 1));
    }

    #[test]
    fn forgetting_leaves_nothing_and_later_messages_are_kept() {
        let home = Home::new();
        home.keep(&vec!["x"; MAX_HISTORY + 1]);
        let mut history = home.history();
        // Loading rewrites the file, so its handle was not opened for appending.
        history.load(&mut Vec::new()).expect("loads");
        fs::write(disk::temporary(history.file.path()), "of a crash").expect("written");
        assert!(history.forget().expect("erased"));
        assert!(
            fs::read(history.file.path()).expect("there").is_empty()
                && !disk::temporary(history.file.path()).exists()
        );
        append(&mut history, "new");
        assert!(history.is_kept());
        drop(history);
        assert_eq!(home.texts(), ["new"]);
        // Without the option nothing is read, and the file is erased on request.
        let mut without = home.history_of("alice", &KEY, &[]);
        assert!(without.notice().is_some_and(|text| text.contains("/history forget")));
        assert!(without.load(&mut Vec::new()).expect("not read").is_empty() && !without.is_kept());
        append(&mut without, "unkept");
        assert_eq!(home.texts(), ["new"]);
        assert!(without.forget().expect("erased") && !without.file.path().exists());
        assert!(!without.forget().expect("nothing there") && !without.file.path().exists());
        assert_eq!(without.notice(), None);
    }

    /// PROTOCOL#history-lock.
    #[test]
    fn history_is_locked_by_one_client_even_while_replaced() {
        let home = Home::new();
        let mut first = home.history();
        first.load(&mut Vec::new()).expect("loads");
        append(&mut first, "one");
        assert_eq!(first.notice(), None);
        let mut second = home.history();
        assert!(second.load(&mut Vec::new()).expect("reported, no error").is_empty());
        assert_eq!(second.notice(), Some(ELSEWHERE));
        append(&mut second, "lost");
        let rewritten = disk::temporary(first.file.path());
        fs::write(&rewritten, "by the first client").expect("written");
        let error = second.forget().expect_err("not ours").to_string();
        assert!(rewritten.exists(), "the first client's rewrite can finish");
        assert!(error.contains("another program is using this file"), "{error}");
        // A lock on the former file is not a lock on this one.
        let former = disk::append(first.file.path()).expect("opens");
        first.rewrite([message("one")].into_iter()).expect("rewritten");
        assert!(disk::try_lock(&former).expect("locks") && !disk::is_at(&former, first.file.path()));
        disk::lock(first.file.path(), Duration::ZERO).expect_err("locked");
        drop(first);
        disk::lock(&home.path(), Duration::ZERO).expect("free");
        assert_eq!(home.texts(), ["one"]);
    }

    /// PROTOCOL#history-damage.
    #[test]
    fn failing_disk_loses_no_earlier_record() {
        let home = Home::new();
        let mut history = home.history();
        history.load(&mut Vec::new()).expect("loads");
        append(&mut history, "one");
        // No further messages are kept.
        let file = File::open(history.file.path()).expect("opens");
        history.file.read(file, &mut Vec::new(), |_| true).expect("whole");
        let error = history.append(message("two"), [].into_iter()).expect_err("refused").to_string();
        assert!(error.starts_with(history.file.path().to_str().expect("UTF-8")), "{error}");
        // Reported once, without an invisible gap.
        assert!(!history.is_kept());
        append(&mut history, "three");
        assert_eq!(home.texts(), ["one"]);
    }

    #[test]
    fn history_file_that_is_a_link_is_refused() {
        let home = Home::new();
        fs::write(home.0.join("treasure"), "whole").expect("written");
        std::os::unix::fs::symlink(home.0.join("treasure"), home.path()).expect("link");
        home.history().load(&mut Vec::new()).expect_err("a link");
        home.history_of("alice", &KEY, &[]).forget().expect_err("a link");
        assert_eq!(fs::read(home.0.join("treasure")).expect("there"), b"whole");
    }
}
