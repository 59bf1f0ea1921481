//! Messages that outlive the session, sealed on disk, for who asks for that with `--keep-history`.
//!
//! Invariant: no text is on disk in clear; a record opens for its account on its server alone, and only behind
//! the records that were before it; a file that is damaged stops the login before a byte of it is changed; one
//! client at a time has the file. Without the option nothing is read or written, only erased when that is
//! asked for. Format: PROTOCOL#kept-history.

use super::audience::Audience;
use super::entry::{Entry, Source};
use super::options::Options;
use super::text::{mentions, sanitise_lines};
use crate::crypto::envelope::{BUCKET, MAX_TEXT, Scope, pad, unpad};
use crate::crypto::keys::IdentityKey;
use crate::crypto::primitives::{Tag, gcm_open, gcm_seal, sha256};
use crate::crypto::secret::{Key, random};
use crate::crypto::{Fields, label};
use crate::disk;
use crate::encoding::{Bytes, Fixed};
use crate::name::Username;
use crate::records::{self, Format, Records, Writers};
use miniserde::{Deserialize, Serialize, json};
use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::str::from_utf8;
use std::thread;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// Messages that `/history` can show, those of earlier sessions included: enough to look something up, few enough to be
/// rewritten at a login. PROTOCOL#history-length.
pub const MAX_HISTORY: usize = 1000;
/// Records at which the file is rewritten with the last [`MAX_HISTORY`]; a longer one is not of this program.
const MAX_RECORDS: u64 = 2 * MAX_HISTORY as u64;
/// The longest plaintext: sanitising and JSON make at most three bytes of one of the text; names and
/// the rest take some hundred.
const MAX_PLAINTEXT: usize = 3 * MAX_TEXT + 1024;
/// The longest line: the padded plaintext in base64; nonce, tag and the members' names take some hundred.
const MAX_LINE: usize = (MAX_PLAINTEXT + BUCKET).div_ceil(3) * 4 + 256;
/// The login has ended an older client of the same account; it needs a moment to leave, and nobody sees anything meanwhile.
const HANDOVER: Duration = Duration::from_secs(2);
/// How often the lock is tried meanwhile.
const HANDOVER_STEP: Duration = Duration::from_millis(20);

const FORMAT: Format = Format {
    longest: MAX_LINE,
    damaged: "is damaged, or belongs to another key: restore the file from a copy, or log in without --keep-history \
        and erase it with /history forget",
};

const NOT_WANTED: &str = "messages of earlier sessions are kept on this disk: --keep-history shows them and keeps \
    more, /history forget erases them";
const ELSEWHERE: &str =
    "another client is using your history file: this one neither shows earlier messages nor keeps new ones";

/// What is sealed of a message. PROTOCOL#history-record.
#[derive(Serialize, Deserialize)]
struct Message {
    time: u64,
    scope: Scope,
    from: Username,
    to: Option<Username>,
    text: String,
}

impl Message {
    /// `None` if nobody has said it.
    fn of(entry: &Entry) -> Option<Message> {
        let Source::User { from, to } = &entry.source else { return None };
        let (scope, from, to) = (to.scope(), from.clone(), to.recipient().cloned());
        Some(Message { time: entry.time, scope, from, to, text: entry.text.clone() })
    }

    /// As `reader` is shown it; `None` if scope and names do not fit.
    fn entry(self, reader: &Username) -> Option<Entry> {
        let Message { time, scope, from, to, text } = self;
        // Who could write the file could write anything.
        let text = sanitise_lines(&text);
        let mention = from != *reader && !mentions(&text, reader.as_str()).is_empty();
        let source = Source::User { from, to: Audience::new(scope, to)? };
        let place = source.place(reader);
        Some(Entry { mention, ..Entry::new(time, source, place, text) })
    }
}

/// One line of the file.
#[derive(Serialize, Deserialize)]
struct Record {
    nonce: Fixed<12>,
    data: Bytes,
    tag: Fixed<16>,
}

/// Where the next record goes.
#[derive(Clone, Copy, Default)]
struct End {
    /// Records before it.
    index: u64,
    /// The last one's tag: a record of an older copy of the file does not fit in, even at its own index.
    tag: Option<Tag>,
}

impl End {
    fn advance(&mut self, tag: Tag) {
        *self = End { index: self.index + 1, tag: Some(tag) };
    }
}

/// The file of one account on one server.
pub struct History {
    path: PathBuf,
    owner: Username,
    server: String,
    key: Key,
    wanted: bool,
    /// Locked. `None` while nothing is kept.
    records: Option<Records>,
    end: End,
}

impl History {
    /// Of this account on the server of `options`; nothing is read yet. PROTOCOL#history-file.
    pub fn new(options: &Options, owner: &Username, identity: &IdentityKey) -> History {
        let server = options.server();
        let hash: String = sha256(server.as_bytes())[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        History {
            path: options.data_dir.join("history").join(format!("{}_{hash}", owner.as_str())),
            key: identity.history_key(owner, &server),
            owner: owner.clone(),
            server,
            wanted: options.keep_history,
            records: None,
            end: End::default(),
        }
    }

    /// Whether `--keep-history` was given.
    pub fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Whether messages are kept now.
    pub fn is_kept(&self) -> bool {
        self.records.is_some()
    }

    fn is_there(&self) -> bool {
        let is_full = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|data| data.len() > 0);
        is_full(&self.path) || !records::asides(&self.path).is_empty()
    }

    /// What the person should know at the start; `None` if nothing.
    pub fn notice(&self) -> Option<&str> {
        match (self.wanted, &self.records) {
            (true, Some(records)) => records.repaired(),
            (true, None) => Some(ELSEWHERE),
            (false, _) => self.is_there().then_some(NOT_WANTED),
        }
    }

    /// Takes the file for this client and reads the last [`MAX_HISTORY`] messages, the oldest first; none
    /// without the option, or if another client has the file. PROTOCOL#history-damage.
    ///
    /// # Errors
    /// The disk's; with file, line and remedy in the text if a record is damaged or of another key.
    pub fn load(&mut self) -> io::Result<VecDeque<Entry>> {
        let (mut entries, mut end) = (VecDeque::new(), End::default());
        let file = if self.wanted { lock(&self.path, HANDOVER)? } else { None };
        let Some(file) = file else { return Ok(entries) };
        let each = |line: &[u8]| {
            let entry = if end.index < MAX_RECORDS { self.open(line, &mut end) } else { None };
            let is_understood = entry.is_some();
            entries.extend(entry);
            if entries.len() > MAX_HISTORY {
                entries.pop_front();
            }
            is_understood
        };
        let records = Records::of(file, &self.path, Writers::One, &FORMAT, each)?;
        (self.records, self.end) = (Some(records), end);
        if end.index > MAX_HISTORY as u64 {
            // If the disk is full, the longer file will do for now.
            let _ = self.rewrite(&entries);
        }
        Ok(entries)
    }

    /// What GCM authenticates beside a record behind `end`: whose it is, and its place. PROTOCOL#history-chain.
    fn associated(&self, end: &End) -> Vec<u8> {
        Fields::new(label::HISTORY)
            .bytes(self.owner.as_str().as_bytes())
            .bytes(self.server.as_bytes())
            .number(end.index)
            .bytes(end.tag.as_ref().map_or(&[], |tag| tag))
            .finish()
    }

    /// The line behind `end`, which moves on.
    fn seal(&self, message: &Message, end: &mut End) -> Vec<u8> {
        let plaintext = Zeroizing::new(json::to_string(message));
        assert!(plaintext.len() <= MAX_PLAINTEXT, "texts are bounded where they are typed and received");
        let (nonce, mut data) = (random(), pad(plaintext.as_bytes()));
        let tag = gcm_seal(&self.key, &nonce, &self.associated(end), &mut data);
        let line =
            json::to_string(&Record { nonce: Fixed(nonce), data: Bytes(data), tag: Fixed(tag) }) + "\n";
        end.advance(tag);
        line.into_bytes()
    }

    /// Reverses [`History::seal`]; `None` if anything differs.
    fn open(&self, line: &[u8], end: &mut End) -> Option<Entry> {
        let record: Record = records::parse(line)?;
        let (mut data, tag) = (Zeroizing::new(record.data.0), record.tag.0);
        gcm_open(&self.key, &record.nonce.0, &self.associated(end), &mut data, &tag).ok()?;
        let plaintext = from_utf8(unpad(&data, MAX_PLAINTEXT)?).ok()?;
        let entry = json::from_str::<Message>(plaintext).ok()?.entry(&self.owner)?;
        end.advance(tag);
        Some(entry)
    }

    /// Keeps the last of `messages`, if messages are kept. After a failure nothing more is: there would be a gap
    /// that nobody sees.
    ///
    /// # Errors
    /// The disk's; what was kept before stands.
    pub fn append(&mut self, messages: &VecDeque<Entry>) -> io::Result<()> {
        let Some(message) = messages.back().filter(|_| self.is_kept()).and_then(Message::of) else {
            return Ok(());
        };
        let written = match self.end.index < MAX_RECORDS {
            true => self.write(&message),
            // A session may be long.
            false => self.rewrite(messages),
        };
        if written.is_err() {
            self.records = None;
        }
        written
    }

    fn write(&mut self, message: &Message) -> io::Result<()> {
        let mut end = self.end;
        let line = self.seal(message, &mut end);
        if let Some(records) = &mut self.records {
            records.append(&line, false)?;
            self.end = end;
        }
        Ok(())
    }

    /// What a crash may leave of a rewrite.
    fn temporary(&self) -> PathBuf {
        self.path.with_extension("tmp")
    }

    /// Puts a file of these messages alone in the place of the old one. It is locked before it has its name, so that no
    /// other client is in between.
    fn rewrite(&mut self, messages: &VecDeque<Entry>) -> io::Result<()> {
        let Some(mut records) = self.records.take() else { return Ok(()) };
        let mut end = End::default();
        let lines = messages.iter().filter_map(Message::of).map(|message| self.seal(&message, &mut end));
        let rewritten = records.rewrite(lines, |file| is_ours(file, &self.temporary()).map(drop));
        self.records = Some(records);
        rewritten?;
        self.end = end;
        disk::sync_parent(&self.path)
    }

    /// Erases the file, and what a crash has left beside it; whether there was one. Messages from now on are
    /// kept if that is wanted.
    ///
    /// # Errors
    /// The disk's, or that another client has the file.
    pub fn forget(&mut self) -> io::Result<bool> {
        let was_there = self.is_there();
        let temporary = self.temporary();
        if temporary.exists() {
            fs::remove_file(&temporary).map_err(disk::at(&temporary))?;
        }
        // In place, so that the lock stays what it is.
        let file = match &self.records {
            Some(records) => records.file().try_clone().map_err(disk::at(&self.path))?,
            None if !was_there => return Ok(false),
            None => lock(&self.path, Duration::ZERO)?.ok_or_else(|| {
                disk::error(&self.path, "another client is using it: leave that client, or erase it there")
            })?,
        };
        records::erase(&file, &self.path)?;
        self.records = Some(Records::of(file, &self.path, Writers::One, &FORMAT, |_| false)?);
        self.end = End::default();
        if !self.wanted {
            fs::remove_file(&self.path).map_err(disk::at(&self.path))?;
            self.records = None;
            disk::sync_parent(&self.path)?;
        }
        Ok(was_there)
    }
}

/// Opens the file for this client alone; `None` if another one has it for so long. PROTOCOL#history-lock.
fn lock(path: &Path, patience: Duration) -> io::Result<Option<File>> {
    let end = Instant::now() + patience;
    loop {
        let file = disk::append(path)?;
        if is_ours(&file, path).map_err(disk::at(path))? {
            return Ok(Some(file));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        thread::sleep(HANDOVER_STEP);
    }
}

/// Whether the file is locked by us now, and still what `path` names: another client may have replaced or erased
/// it before it let go of the lock. Where the file system has no locks, nobody has one.
fn is_ours(file: &File, path: &Path) -> io::Result<bool> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::Unsupported => return Err(error),
        _ => {}
    }
    Ok(disk::is_at(file, path))
}

#[cfg(test)]
mod tests {
    use super::super::entry::Place;
    use super::*;
    use crate::client::options::{self, Request};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::LazyLock;

    static KEY: LazyLock<IdentityKey> = LazyLock::new(IdentityKey::generate);

    fn name(text: &str) -> Username {
        text.parse().expect("name")
    }

    /// A data folder, removed at the end.
    struct Home(PathBuf);

    impl Home {
        fn new() -> Home {
            let id: String = random::<8>().iter().map(|b| format!("{b:02x}")).collect();
            let path = std::env::temp_dir().join(format!("history-{id}"));
            disk::private_folders(&path, &["history"]).expect("folder");
            Home(path)
        }

        fn history_of(&self, owner: &str, identity: &IdentityKey, words: &[&str]) -> History {
            let data = self.0.to_str().expect("UTF-8");
            let words = [&["--data-dir", data], words].concat();
            match options::parse(words.iter().map(|&word| word.into())) {
                Ok(Request::Run(options)) => History::new(&options, &name(owner), identity),
                _ => panic!("options"),
            }
        }

        /// Alice's.
        fn history(&self) -> History {
            self.history_of("alice", &KEY, &["--keep-history"])
        }

        fn keep(&self, texts: &[&str]) {
            let mut history = self.history();
            history.load().expect("loads");
            for text in texts {
                append(&mut history, text);
            }
        }

        /// The texts that load.
        fn texts(&self) -> Vec<String> {
            let entries = self.history().load().expect("loads");
            entries.into_iter().map(|entry| entry.text).collect()
        }

        fn lines(&self) -> Vec<String> {
            let text = fs::read_to_string(self.history().path).expect("text");
            text.lines().map(|line| format!("{line}\n")).collect()
        }

        /// Puts these lines in the place of the file; which line is refused. The file stays as it is then.
        fn refused(&self, lines: &[String]) -> Option<usize> {
            let (path, text) = (self.history().path, lines.concat());
            fs::write(&path, &text).expect("written");
            let mut history = self.history();
            let error = history.load().err()?.to_string();
            assert_eq!(fs::read_to_string(&path).expect("text"), text, "untouched");
            assert!(!history.is_kept() && history.append(&said("x")).is_ok());
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

    fn entry(text: &str) -> Entry {
        Entry::new(
            1,
            Source::User { from: name("bob"), to: Audience::Everyone },
            Place::Everyone,
            text.into(),
        )
    }

    fn said(text: &str) -> VecDeque<Entry> {
        VecDeque::from([entry(text)])
    }

    fn append(history: &mut History, text: &str) {
        history.append(&said(text)).expect("appended");
    }

    #[test]
    fn kept_messages_reload_unchanged_and_are_never_in_clear() {
        let home = Home::new();
        let (alice, bob) = (name("alice"), name("bob"));
        let sources = [
            Source::User { from: alice.clone(), to: Audience::Everyone },
            Source::User { from: bob.clone(), to: Audience::Private(alice.clone()) },
            Source::User { from: alice.clone(), to: Audience::Room(bob.clone()) },
        ];
        let mut entries: VecDeque<Entry> = VecDeque::new();
        let mut history = home.history();
        assert!(history.load().expect("nothing is there").is_empty());
        for (time, source) in (1_700_000_000_000..).zip(sources) {
            let mention = source.from() == Some(&bob);
            let (place, text) = (source.place(&alice), "two lines\nfor @Alice \"\\ ⏎ é");
            entries.push_back(Entry { mention, ..Entry::new(time, source, place, text.into()) });
            history.append(&entries).expect("appended");
        }
        history
            .append(&VecDeque::from([Entry::new(0, Source::Notice, Place::Here, "a notice".into())]))
            .expect("none");
        drop(history);
        assert_eq!(home.history().load().expect("loads"), entries);
        let path = home.history().path;
        assert_eq!(path.file_name().expect("named").to_str(), Some("alice_1ab68e0d91a2553b"));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let file = fs::read_to_string(&path).expect("text");
        for clear in ["lines", "Alice", "alice", "bob", "private", "1700000000", "text"] {
            assert!(!file.contains(clear), "{clear}");
        }
        // Nor do lengths say more than steps of 256 bytes do.
        let lengths: Vec<usize> = home.lines().iter().map(String::len).collect();
        assert_eq!(lengths, [lengths[0]; 3]);
    }

    #[test]
    fn another_key_another_account_and_another_server_open_nothing() {
        let home = Home::new();
        home.keep(&["secret"]);
        let path = home.history().path;
        let before = fs::read(&path).expect("there");
        let other = IdentityKey::generate();
        for (owner, identity, words) in [
            ("alice", &other, &["--keep-history"][..]),
            ("bob", &*KEY, &["--keep-history"]),
            ("alice", &*KEY, &["--keep-history", "--port", "1316"]),
            ("alice", &*KEY, &["--keep-history", "--host", "127.0.0.1"]),
        ] {
            let mut history = home.history_of(owner, identity, words);
            fs::write(&history.path, &before).expect("written");
            let error = history.load().expect_err("refused").to_string();
            assert!(error.contains("line 1 is damaged, or belongs to another key"), "{error}");
            assert_eq!(fs::read(&history.path).expect("there"), before);
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
        // What editors do is harmless.
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
        // A line without an end that is too long for one.
        assert_eq!(home.refused(&[lines[0].clone(), "x".repeat(MAX_LINE + 1)]), Some(2));
    }

    /// PROTOCOL#history-chain.
    #[test]
    fn record_of_an_older_copy_is_refused_at_its_own_place() {
        let home = Home::new();
        home.keep(&["one", "two", "three"]);
        let older = home.lines();
        home.history().load().expect("loads");
        fs::write(home.history().path, "").expect("written");
        home.keep(&["four", "five", "six"]);
        let mut lines = home.lines();
        lines[2] = older[2].clone();
        assert_eq!(home.refused(&lines), Some(3));
    }

    /// PROTOCOL#history-damage.
    #[test]
    fn torn_last_line_is_set_aside_and_what_follows_fits() {
        let home = Home::new();
        home.keep(&["one", "two"]);
        let whole = home.lines();
        for cut in [1, 20, whole[1].len() - 2] {
            let torn = whole[1][..cut].to_string() + if cut == 20 { "\0\0" } else { "" };
            fs::write(home.history().path, whole[0].clone() + &torn).expect("written");
            let mut history = home.history();
            assert_eq!(history.load().expect("loads").len(), 1, "{cut}");
            assert!(history.notice().is_some_and(|text| text.contains("set aside in")));
            drop(history);
            assert_eq!(home.lines(), whole[..1], "{cut}");
            let asides = records::asides(&home.history().path);
            assert!(asides.iter().any(|aside| fs::read_to_string(aside).is_ok_and(|text| text == torn)));
        }
        // What was set aside is erased with the rest.
        assert_eq!(records::asides(&home.history().path).len(), 3);
        home.history().forget().expect("erased");
        assert!(records::asides(&home.history().path).is_empty());
        // Without its line end alone, the record counts.
        fs::write(home.history().path, whole.concat().trim_end()).expect("written");
        assert_eq!(home.texts(), ["one", "two"]);
        fs::write(home.history().path, &whole[0]).expect("written");
        home.keep(&["three"]);
        assert_eq!(home.texts(), ["one", "three"]);
    }

    /// PROTOCOL#history-record.
    #[test]
    fn kept_text_is_sanitised_again() {
        let home = Home::new();
        home.keep(&["\u{1b}[2J\u{202e}x\r"]);
        assert_eq!(home.texts(), ["\u{fffd}[2J\u{fffd}x\u{fffd}"]);
    }

    /// PROTOCOL#history-record.
    #[test]
    fn longest_message_fits() {
        let home = Home::new();
        let worst = [sanitise_lines(&"\u{1}".repeat(MAX_TEXT)), "\"".repeat(MAX_TEXT), "\n".repeat(MAX_TEXT)];
        let worst: Vec<String> = worst.iter().map(|text| sanitise_lines(text)).collect();
        home.keep(&worst.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(home.texts(), worst);
    }

    /// PROTOCOL#history-length.
    #[test]
    fn rewrite_keeps_the_last_thousand_messages() {
        let home = Home::new();
        let mut history = home.history();
        let mut session = history.load().expect("loads");
        for n in 0..MAX_RECORDS + 2 {
            session.extend(said(&n.to_string()));
            session.drain(..session.len().saturating_sub(MAX_HISTORY));
            history.append(&session).expect("appended");
            let rewritten = n >= MAX_RECORDS;
            let records = if rewritten { MAX_HISTORY as u64 + n - MAX_RECORDS } else { n + 1 };
            assert_eq!(history.end.index, records);
        }
        assert!(lock(&history.path, Duration::ZERO).expect("opens").is_none(), "the new file is locked");
        drop(history);
        assert_eq!(home.lines().len(), MAX_HISTORY + 1);
        let last: Vec<String> = (1002..2002).map(|n| n.to_string()).collect();
        assert_eq!(home.texts(), last);
        assert_eq!(home.lines().len(), MAX_HISTORY, "and rewritten");
        assert_eq!(home.texts(), last);
        home.keep(&["and on"]);
        assert_eq!(home.texts().last().map(String::as_str), Some("and on"));
        // A file that goes on and on is not read to its end.
        let mut history = home.history();
        history.load().expect("loads");
        while history.end.index <= MAX_RECORDS {
            history.write(&Message::of(&entry("x")).expect("a message")).expect("written");
        }
        drop(history);
        assert_eq!(home.refused(&home.lines()), Some(MAX_RECORDS as usize + 1));
    }

    #[test]
    fn forgetting_leaves_nothing_and_what_comes_then_is_kept() {
        let home = Home::new();
        home.keep(&vec!["x"; MAX_HISTORY + 1]);
        let mut history = home.history();
        // It is rewritten at the load: the handle is not one for appending.
        history.load().expect("loads");
        fs::write(history.temporary(), "of a crash").expect("written");
        assert!(history.forget().expect("erased"));
        assert!(fs::read(&history.path).expect("there").is_empty() && !history.temporary().exists());
        append(&mut history, "new");
        assert!(history.is_kept());
        drop(history);
        assert_eq!(home.texts(), ["new"]);
        // Without the option nothing is read, and what is there goes when that is asked for.
        let mut without = home.history_of("alice", &KEY, &[]);
        assert!(without.notice().is_some_and(|text| text.contains("/history forget")));
        assert!(without.load().expect("not read").is_empty() && !without.is_kept());
        append(&mut without, "unkept");
        assert_eq!(home.texts(), ["new"]);
        assert!(without.forget().expect("erased") && !without.path.exists());
        assert!(!without.forget().expect("nothing there") && !without.path.exists());
        assert_eq!(without.notice(), None);
    }

    /// PROTOCOL#history-lock.
    #[test]
    fn history_is_locked_by_one_client_even_while_replaced() {
        let home = Home::new();
        let mut first = home.history();
        first.load().expect("loads");
        append(&mut first, "one");
        assert_eq!(first.notice(), None);
        let mut second = home.history();
        assert!(second.load().expect("told, no error").is_empty());
        assert_eq!(second.notice(), Some(ELSEWHERE));
        append(&mut second, "lost");
        let error = second.forget().expect_err("not ours").to_string();
        assert!(error.contains("another client is using it"), "{error}");
        // One that has the former file is not taken for one that has this.
        let former = disk::append(&first.path).expect("opens");
        first.rewrite(&said("one")).expect("rewritten");
        assert!(!is_ours(&former, &first.path).expect("locks"));
        assert!(lock(&first.path, Duration::ZERO).expect("opens").is_none());
        drop(first);
        assert!(lock(&home.history().path, Duration::ZERO).expect("opens").is_some());
        assert_eq!(home.texts(), ["one"]);
    }

    /// PROTOCOL#history-damage.
    #[test]
    fn failing_disk_loses_no_earlier_record() {
        let home = Home::new();
        let mut history = home.history();
        history.load().expect("loads");
        append(&mut history, "one");
        // It takes no more.
        let file = File::open(&history.path).expect("opens");
        history.records =
            Some(Records::of(file, &history.path, Writers::One, &FORMAT, |_| true).expect("whole"));
        let error = history.append(&said("two")).expect_err("refused").to_string();
        assert!(error.starts_with(history.path.to_str().expect("UTF-8")), "{error}");
        // Told once; no gap that nobody would see.
        assert!(!history.is_kept());
        append(&mut history, "three");
        assert_eq!(home.texts(), ["one"]);
    }

    #[test]
    fn no_link_is_followed() {
        let home = Home::new();
        fs::write(home.0.join("treasure"), "whole").expect("written");
        std::os::unix::fs::symlink(home.0.join("treasure"), home.history().path).expect("link");
        home.history().load().expect_err("a link");
        home.history_of("alice", &KEY, &[]).forget().expect_err("a link");
        assert_eq!(fs::read(home.0.join("treasure")).expect("there"), b"whole");
    }
}
