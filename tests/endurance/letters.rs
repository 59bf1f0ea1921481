//! Numbered private and room messages of real clients that log in, leave and are killed, and the fate of each message.

use crate::support::{Client, DATA, Folder, Gate, Server, files};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Options of a server whose mailboxes are never full.
pub const ROOMY: [&str; 6] = ["--mail", "1000000", "--mail-sender", "1000000", "--mail-messages", "1000000"];

/// A user, and the output of each run of their client.
pub struct User {
    pub name: String,
    pub home: Arc<Folder>,
    pub client: Option<Client>,
    pub runs: Vec<Vec<String>>,
}

impl User {
    pub fn new(name: &str) -> User {
        User { name: name.into(), home: Arc::new(Folder::new()), client: None, runs: Vec::new() }
    }

    /// Starts the client, and does not wait for the login.
    pub fn start(&mut self, gate: &Gate) {
        assert!(self.client.is_none(), "{} is here", self.name);
        self.client = Some(gate.client(self.home.clone(), &self.name, &["--register"]));
    }

    /// Starts the client if it does not run, and waits for the login.
    pub fn log_in(&mut self, gate: &Gate) -> &mut Client {
        if self.client.is_none() {
            self.start(gate);
        }
        let client = self.client.as_mut().expect("started");
        while !client.has_seen(" online: ") {
            assert!(client.output.next().is_some(), "{} has ended: {:#?}", self.name, client.output.seen);
        }
        client
    }

    pub fn kill(&mut self) {
        if let Some(mut client) = self.client.take() {
            let _ = client.child.kill();
            self.runs.push(client.output.all());
        }
    }

    /// Ends the client as its user does, and waits.
    pub fn leave(&mut self) {
        if let Some(client) = self.client.take() {
            self.runs.push(client.finish().1);
        }
    }

    /// Reads what the client has printed. False if it has ended.
    pub fn poll(&mut self) -> bool {
        let has_ended = self.client.as_mut().is_some_and(|client| !client.output.poll());
        if has_ended {
            self.kill();
        }
        !has_ended
    }

    pub fn lines(&self) -> impl Iterator<Item = &String> {
        let current = self.client.iter().flat_map(|client| &client.output.seen);
        self.runs.iter().flatten().chain(current)
    }

    /// The messages shown so far: who wrote to whom, the number, whether it is marked as perhaps repeated.
    pub fn shown(&self) -> Vec<(&str, usize, bool)> {
        self.lines().filter_map(|line| shown(line)).collect()
    }

    /// The messages that overtook mail, because a resumption of the session had acknowledged them. PROTOCOL#mail-order.
    fn early(&self) -> BTreeSet<usize> {
        let current = self.client.iter().map(|client| &client.output.seen);
        let early = self.runs.iter().chain(current).filter_map(|lines| {
            let at = |part: &str| lines.iter().position(|line| line.contains(part));
            Some(lines.get(at("* back online")?..at("arrived while you were away")?)?.iter())
        });
        early.flatten().filter_map(|line| shown(line)).map(|(_, number, _)| number).collect()
    }

    /// The number of lines in the mailbox file: 1 for a single key without records.
    pub fn records(&self) -> usize {
        let files = files(&self.home.path(DATA).join("mailbox"));
        let file = files.into_iter().find(|path| !path.ends_with("CACHEDIR.TAG"));
        file.and_then(|path| std::fs::read_to_string(path).ok()).map_or(0, |text| text.lines().count())
    }
}

/// The files of messages that wait on the server for this user.
pub fn waiting(server: &Server, name: &str) -> Vec<PathBuf> {
    let is_message = |path: &PathBuf| {
        let file = path.file_name().and_then(|file| file.to_str());
        file.is_some_and(|file| file.starts_with(|c: char| c.is_ascii_digit()) && !file.ends_with(".tmp"))
    };
    files(&server.data("mail").join(name)).into_iter().filter(is_message).collect()
}

fn shown(line: &str) -> Option<(&str, usize, bool)> {
    let (who, text) = line.strip_prefix('<')?.split_once("> n").filter(|(who, _)| who.contains(" -> "))?;
    let (number, mark) = text.split_once(' ').unwrap_or((text, ""));
    let marks = ["", "(perhaps shown before)", "(sent again)", "(perhaps shown before) (sent again)"];
    assert!(marks.contains(&mark), "{line}");
    Some((who, number.parse().expect("a number"), !mark.is_empty()))
}

/// A message of a test. Its text is its number.
struct Letter {
    from: String,
    /// The run of the sender's client.
    run: usize,
    to: BTreeSet<String>,
}

/// All messages of a test, by number.
#[derive(Default)]
pub struct Letters(Vec<Letter>);

impl Letters {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Types the next message, and returns its number.
    pub fn say(&mut self, from: &mut User, to: &[&str]) -> usize {
        let number = self.0.len();
        let client = from.client.as_mut().expect("the sender is here");
        client.try_say(&format!("/msg {} n{number}", to.join(",")));
        let to = to.iter().map(|name| name.to_string()).collect();
        self.0.push(Letter { from: from.name.clone(), run: from.runs.len(), to });
        number
    }

    /// Asserts what holds whatever was killed or disconnected:
    ///
    /// - A message that its sender's client reported as kept was shown to the recipient.
    /// - So was a message that the client showed as accepted and did not report later, unless it is `excused`.
    ///   (`delivered` promises less than `kept`: the message is in a session of the recipient.)
    /// - A message that was shown twice has a mark, except the first time.
    /// - Messages without a mark are in order, for each conversation and each run of the sender's client; live ones
    ///   that a resumption has acknowledged may overtake mail.
    /// - Nobody saw a message for others.
    ///
    /// Returns the numbers of messages that were kept and delivered, and of marks.
    pub fn check(&self, users: &[&User], excused: impl Fn(&str, usize) -> bool) -> (usize, usize, usize) {
        // The messages that were accepted without a later report, and each kept message with its recipient.
        let (mut accepted, mut kept) = (BTreeSet::new(), BTreeSet::new());
        for user in users {
            for line in user.lines() {
                if let Some((_, number, _)) = shown(line).filter(|shown| self.0[shown.1].from == user.name) {
                    accepted.insert(number);
                }
                let numbers =
                    line.split('"').filter_map(|part| part.strip_prefix('n')?.parse::<usize>().ok());
                let names = line.split("kept for ").nth(1).and_then(|rest| rest.split(" until ").next());
                for number in numbers.filter(|_| line.starts_with(['!', '*'])) {
                    if line.starts_with('!') {
                        accepted.remove(&number);
                    }
                    let names = names.into_iter().flat_map(|names| names.split(", "));
                    kept.extend(names.map(|name| (number, name)));
                }
            }
        }
        let (mut delivered, mut marks) = (0, 0);
        for user in users {
            let mut last: BTreeMap<(&str, usize), usize> = BTreeMap::new();
            let (mut seen, early) = (BTreeSet::new(), user.early());
            for (who, number, is_marked) in user.shown() {
                let letter = &self.0[number];
                if letter.from == user.name {
                    continue;
                }
                let to = letter.to.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                assert!(letter.to.contains(&user.name), "{} saw n{number}", user.name);
                assert_eq!(who, format!("{} -> {to}", letter.from), "n{number}");
                assert!(seen.insert(number) || is_marked, "{} saw n{number} again without a mark", user.name);
                marks += usize::from(is_marked);
                if !is_marked
                    && !early.contains(&number)
                    && let Some(before) = last.insert((who, letter.run), number)
                {
                    assert!(
                        before < number,
                        "{} saw n{number} after n{before}: {:#?}",
                        user.name,
                        about(users, &[number, before])
                    );
                }
            }
            for (number, letter) in self.0.iter().enumerate().filter(|(_, one)| one.to.contains(&user.name)) {
                let is_kept = kept.contains(&(number, user.name.as_str()));
                let is_sure = is_kept || accepted.contains(&number) && !excused(&user.name, number);
                let what = if is_kept { "kept" } else { "delivered" };
                assert!(
                    !is_sure || seen.contains(&number),
                    "{what} n{number} of {}, run {}, is lost to {}: {:#?}",
                    letter.from,
                    letter.run,
                    user.name,
                    about(users, &[number])
                );
                delivered += usize::from(is_sure && !is_kept);
            }
        }
        (kept.len(), delivered, marks)
    }
}

/// The lines about these messages, in all runs.
fn about<'a>(users: &[&'a User], numbers: &[usize]) -> Vec<(&'a str, usize, &'a String)> {
    let texts: Vec<String> = numbers.iter().map(|number| format!("n{number}")).collect();
    let mut found = Vec::new();
    for user in users {
        let current = user.client.iter().map(|client| &client.output.seen);
        for (run, lines) in user.runs.iter().chain(current).enumerate() {
            let lines = lines.iter().filter(|line| {
                line.starts_with("* ")
                    || line.starts_with("! ")
                    || texts.iter().any(|text| line.contains(text))
            });
            found.extend(lines.map(|line| (user.name.as_str(), run, line)));
        }
    }
    found
}
