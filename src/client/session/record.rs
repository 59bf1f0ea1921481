//! The messages that `/history` shows, which are also kept on disk if the user asks for it.
//!
//! Invariant: the number of messages and bytes is limited; every received message that was shown, and every own one
//! that a recipient got, is recorded; messages from disk are sanitised again.

use super::cx::Cx;
use super::event::{Display, Effect};
use crate::client::entry::{Entry, Place, SendState, Source};
use crate::client::store::history::{History, MAX_HISTORY, Message};
use crate::client::store::trust::Ignored;
use crate::client::text::{folded, mentions, sanitise_lines};
use crate::name::Username;
use std::collections::VecDeque;

/// The most bytes of text: 1,000 messages of the usual length use a tenth of it, the longest has 96 KiB.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// The latest messages, the oldest first. MANUAL#commands.
#[derive(Default)]
pub struct Record {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The file in which they are kept.
    kept: Option<History>,
}

/// Whether an entry is a received message, or an own one that a recipient has got.
fn is_said(entry: &Entry) -> bool {
    let is_sent =
        |(_, state): &(u64, SendState)| !matches!(state, SendState::InFlight | SendState::Failed(_));
    let is_sent = entry.sending.as_ref().is_none_or(is_sent);
    is_sent && matches!(entry.source, Source::User { .. })
}

impl Record {
    /// A record with the messages of `earlier` sessions from the history file, as `reader` sees them.
    pub fn new(kept: History, earlier: VecDeque<Message>, reader: &Username) -> Record {
        let mut record = Record { kept: Some(kept), ..Record::default() };
        earlier.into_iter().for_each(|message| record.push(recalled(message, reader)));
        record
    }

    /// Adds a message, and drops the oldest ones if there is no room.
    fn push(&mut self, entry: Entry) {
        self.bytes += entry.text.len();
        self.entries.push_back(entry);
        while (self.entries.len() > MAX_HISTORY || self.bytes > MAX_BYTES)
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= oldest.text.len();
        }
    }

    /// Records the messages that the event has shown. A recorded message that was lost, or is sent again, is updated.
    pub fn take_said(&mut self, cx: &mut Cx) {
        let shown = cx.effects.iter().flat_map(|effect| match effect {
            Effect::Show(Display::Entry(entry)) => std::slice::from_ref(entry),
            Effect::Show(Display::Mail(entries)) => entries,
            _ => &[],
        });
        for entry in shown.cloned().collect::<Vec<_>>() {
            let is_it = |known: &&mut Entry| entry.number().is_some() && known.number() == entry.number();
            if let Some(known) = self.entries.iter_mut().rev().find(is_it) {
                *known = entry;
                continue;
            }
            if !is_said(&entry) {
                continue;
            }
            let said = message(&entry);
            self.push(entry);
            let kept = self.kept.as_mut().zip(said);
            let all = self.entries.iter().filter_map(message);
            if let Some(Err(error)) = kept.map(|(kept, said)| kept.append(said, all)) {
                cx.problem(format!("{error}; new messages are no longer kept; earlier ones stay readable"));
            }
        }
    }

    /// Closes the history file: another client may use it.
    pub fn close(&mut self) {
        self.kept = None;
    }

    /// The messages, the oldest first, without those of users who are ignored now.
    pub fn messages(&self, ignored: &Ignored) -> impl Iterator<Item = &Entry> {
        let is_ignored = |entry: &&Entry| entry.source.from().is_some_and(|from| ignored.contains(from));
        self.entries.iter().filter(move |entry| !is_ignored(entry))
    }

    /// Shows the last `count` messages that contain `text`, in any letter case.
    pub fn tell(&self, cx: &mut Cx, count: usize, text: &str) {
        let wanted = folded(text);
        let lines = self.messages(&cx.ignored).map(|entry| (entry.time, line(entry)));
        let mut lines: Vec<_> = lines.filter(|(_, line)| folded(line).contains(&wanted)).collect();
        let lines = lines.split_off(lines.len().saturating_sub(count));
        let with = if text.is_empty() { String::new() } else { format!(" with \"{text}\"") };
        let is_kept = self.kept.as_ref().is_some_and(History::is_wanted);
        let session = if is_kept { "this and earlier sessions" } else { "this session" };
        cx.notice(match lines.len() {
            0 => format!("no messages{with} yet in {session}"),
            1 => format!("the last message{with} of {session}"),
            shown => format!("the last {shown} messages{with} of {session}"),
        });
        // Each with its own time.
        for (time, line) in lines {
            cx.display(Display::Entry(Entry::new(time, Source::Recalled, Place::Here, line)));
        }
    }

    /// Erases all messages, here, on the screen and on disk.
    pub fn forget(&mut self, cx: &mut Cx) {
        (self.entries, self.bytes) = (VecDeque::new(), 0);
        cx.display(Display::Forget);
        let forgotten = "all messages are erased";
        match self.kept.as_mut().map_or(Ok(false), History::forget) {
            Ok(false) => cx.notice(format!("{forgotten}; none were kept on disk")),
            Ok(true) => cx.notice(format!("{forgotten}, here and on disk")),
            Err(error) => cx.problem(format!("{forgotten} here, but not on disk: {error}")),
        }
        if self.kept.as_ref().is_some_and(History::is_kept) {
            cx.notice("new messages are kept on disk again");
        }
    }
}

/// A message as a line of the history. One that has failed after its delivery is lost.
fn line(entry: &Entry) -> String {
    let is_lost = matches!(entry.sending, Some((_, SendState::Failed(_))));
    entry.whole() + if is_lost { " (may not have arrived)" } else { "" }
}

/// The form of an entry in the file; `None` if it is not a message.
fn message(entry: &Entry) -> Option<Message> {
    let Source::User { from, to } = &entry.source else { return None };
    Some(Message { time: entry.time, from: from.clone(), to: to.clone(), text: entry.text.clone() })
}

/// A kept message as `reader` sees it.
fn recalled(message: Message, reader: &Username) -> Entry {
    let Message { time, from, to, text } = message;
    let text = sanitise_lines(&text);
    let mention = from != *reader && !mentions(&text, reader.as_str()).is_empty();
    let source = Source::User { from, to };
    let place = source.place(reader);
    Entry { mention, ..Entry::new(time, source, place, text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::audience::Audience;

    #[test]
    fn record_is_bounded_in_messages_and_bytes() {
        let said = |text: String| Entry::new(0, Source::Notice, Place::Everyone, text);
        let mut record = Record::default();
        (0..2 * MAX_HISTORY).for_each(|_| record.push(said("first".into())));
        assert_eq!((record.entries.len(), record.bytes), (MAX_HISTORY, 5 * MAX_HISTORY));
        for n in 0..MAX_HISTORY {
            record.push(said(format!("{n:05} {}", "x".repeat(40_000))));
            assert!(record.entries.len() <= MAX_HISTORY && record.bytes <= MAX_BYTES);
        }
        assert!(record.entries.len() > 200);
        assert_eq!(record.bytes, record.entries.iter().map(|entry| entry.text.len()).sum::<usize>());
        assert!(record.entries.back().is_some_and(|last| last.text.starts_with("00999")));
    }

    /// PROTOCOL#history-record.
    #[test]
    fn kept_message_is_shown_unchanged_but_sanitised() {
        let [alice, bob] = ["alice", "bob"].map(|name| name.parse::<Username>().expect("name"));
        for (from, to, place, mention) in [
            (&alice, Audience::Everyone, Place::Everyone, false),
            (&bob, Audience::Private(alice.clone()), Place::With(bob.clone().into()), true),
            (&alice, Audience::Room(bob.clone().into()), Place::With(bob.clone().into()), false),
        ] {
            let source = Source::User { from: from.clone(), to };
            let said = Entry { mention, ..Entry::new(7, source, place, "two\nfor @Alice".into()) };
            let kept = message(&said).expect("said");
            assert_eq!(recalled(kept.clone(), &alice), said);
            let altered = Message { text: "\u{1b}[2J\u{202e}x\r".into(), ..kept };
            assert_eq!(recalled(altered, &alice).text, "\u{fffd}[2J\u{fffd}x\u{fffd}");
        }
        assert_eq!(message(&Entry::new(0, Source::Notice, Place::Here, "a notice".into())), None);
    }
}
