//! The input of the terminal, and signals, from the first question to the end.
//!
//! Invariant: while nobody takes keys, they are dropped, so an answer or a line is typed after the question or the
//! screen appeared (MANUAL#the-screen). One thread reads the terminal and one takes signals; the owner waits for both,
//! and for its events, in [`Inputs::next`]. Only the reader waits for the owner, when much is typed.

use super::input::{Decoder, Key, Keys, are_lines};
use super::signals::{can_suspend, obey, on_signals};
use super::{abandon, enter, is_ours};
use crate::sync::{lock, spawn};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};
use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::mem::{replace, take};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// Lines that follow one another this closely are one paste, however many reads they take.
const BURST: Duration = Duration::from_millis(10);
/// This many keys in one read are not typed: more of a paste may follow.
const MANY: usize = 256;
/// A paste of this many keys is not held longer: more than the longest message, and its memory is bounded.
const MAX_BURST: usize = 64 * 1024;
/// The most reads that wait for the owner, of at most 1 KiB each: more than the longest line.
const MAX_READS: usize = 64;
/// Ctrl-C.
const INTERRUPT: u8 = 3;
/// The terminal answers within this time, even over a slow line.
const ANSWER: Duration = Duration::from_secs(5);
/// A question waits without a limit, in steps of this length.
const LONG: Duration = Duration::from_secs(3600);

/// The taker of keys and signals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Taker {
    /// None: the client connects or makes keys. Keys are dropped; Ctrl-C and signals end the client, or stop it.
    #[default]
    Nobody,
    /// A question takes keys. Signals end the client, or stop it.
    Question,
    /// The full screen takes keys and signals.
    Screen,
    /// Another program: nothing is read, and only signals that end the client are kept for the screen.
    Program,
    /// None any more: the client ends, and a signal ends it at once.
    End,
}

/// See the module.
pub struct Inputs {
    shared: Arc<Shared>,
    /// When the latest keys were read.
    read: Instant,
    /// The keys of that read, as long as more of a paste may follow.
    latest: Keys,
    /// The keys of complete reads and pastes; in each, the last key is first.
    ready: VecDeque<Keys>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    decoder: Decoder,
    /// The keys of each read, and its time.
    reads: VecDeque<(Instant, Keys)>,
    /// The time of the latest read, if it was dropped.
    dropped: Option<Instant>,
    signals: BTreeSet<i32>,
    is_woken: bool,
    is_closed: bool,
    /// The reader waits until another program has ended.
    is_resting: bool,
    taker: Taker,
}

impl Waiting {
    fn is_nothing(&self) -> bool {
        self.reads.is_empty() && self.signals.is_empty() && !self.is_woken && !self.is_closed
    }

    /// Decodes a read. While the client takes no keys, drops it, with the rest of a paste that began in it.
    fn take(&mut self, read: Instant, piece: &[u8]) {
        if self.dropped.is_some() && self.decoder.deadline().is_some_and(|end| end <= read) {
            self.decoder.expire();
        }
        let is_begun = self.decoder.deadline().is_some();
        let is_rest = |dropped| is_begun || read.saturating_duration_since(dropped) < BURST;
        let has_taker = !matches!(self.taker, Taker::Nobody | Taker::Program);
        let is_dropped = !has_taker || self.dropped.is_some_and(is_rest);
        let keys = self.decoder.feed(piece, read);
        self.dropped = is_dropped.then_some(read);
        if !is_dropped {
            self.reads.push_back((read, keys));
        }
    }

    /// The keys of incomplete input whose deadline has passed.
    fn expire(&mut self) -> Keys {
        let keys = self.decoder.expire();
        if self.dropped.is_some() { Keys::default() } else { keys }
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut lock(&self.waiting));
        self.changed.notify_all();
    }

    /// Reads until the input ends.
    fn read(&self, mut input: File) {
        loop {
            let mut piece = Zeroizing::new(vec![0; 1024]);
            match input.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) | Ok(0) => return self.change(|waiting| waiting.is_closed = true),
                Ok(length) => piece.truncate(length),
            }
            let read = Instant::now();
            let full = |waiting: &mut Waiting| waiting.reads.len() >= MAX_READS;
            let waiting = self.changed.wait_while(lock(&self.waiting), full);
            let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
            waiting.take(read, &piece);
            let is_interrupt = waiting.taker == Taker::Nobody && piece.contains(&INTERRUPT);
            waiting.is_resting = waiting.taker == Taker::Program;
            self.changed.notify_all();
            drop(self.changed.wait_while(waiting, |waiting| waiting.is_resting));
            if is_interrupt {
                let _ = signal_hook::low_level::raise(SIGINT);
            }
        }
    }

    /// Keeps a signal for the screen, or acts on it at once. A second signal to end does not wait for the screen.
    fn signal(&self, signal: i32, by_kernel: bool, was_stopped: &mut bool) {
        let is_end = !matches!(signal, SIGWINCH | SIGTSTP | SIGCONT);
        let is_key = by_kernel && matches!(signal, SIGINT | SIGQUIT);
        let mut waiting = lock(&self.waiting);
        match waiting.taker {
            // The key was for another program, which may have ended by now: the screen's own keys send no signal.
            Taker::Program | Taker::Screen if is_key => return,
            taker if taker == Taker::Screen || taker == Taker::Program && is_end => {
                waiting.signals.insert(signal);
                waiting.taker = if is_end { Taker::End } else { taker };
                return self.changed.notify_all();
            }
            Taker::End if !is_end => return,
            _ => drop(waiting),
        }
        match signal {
            // A terminal that accepts no output must not hold up the next signal.
            SIGCONT if take(was_stopped) || is_ours() => _ = spawn("continue", || _ = enter(false)),
            SIGCONT | SIGWINCH => {}
            SIGTSTP if !can_suspend() => {}
            _ => {
                *was_stopped = signal == SIGTSTP && is_ours();
                abandon();
                obey(signal);
            }
        }
    }
}

impl Inputs {
    /// Starts to read, and to take signals. A process needs only one.
    ///
    /// # Errors
    /// If standard input is closed, or no thread is available.
    pub fn open() -> io::Result<Inputs> {
        // Its own handle: `Stdin` would keep a copy of what is typed, even of passwords.
        let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let inputs = Inputs::new();
        let (reads, asked) = (inputs.shared.clone(), inputs.shared.clone());
        // No thread joins it: it ends with the input or with the process.
        spawn("keyboard", move || reads.read(input))?;
        let mut was_stopped = false;
        let which = [SIGWINCH, SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGCONT, SIGTSTP];
        on_signals(&which, move |signal, by_kernel| asked.signal(signal, by_kernel, &mut was_stopped))?;
        Ok(inputs)
    }

    fn new() -> Inputs {
        let (shared, ready) = (Arc::default(), VecDeque::new());
        Inputs { shared, read: Instant::now(), latest: Keys::default(), ready }
    }

    /// Changes the taker of keys and signals. If there is none, drops the keys that wait.
    pub fn taken_by(&mut self, taker: Taker) {
        self.shared.change(|waiting| {
            waiting.taker = taker;
            if taker == Taker::Nobody {
                self.latest = Keys::default();
                self.ready.clear();
                waiting.reads.clear();
            }
        });
    }

    /// A function that wakes the owner for an event, and never waits for it.
    pub fn waker(&self) -> impl Fn() + Send + Sync + 'static {
        let shared = self.shared.clone();
        move || shared.change(|waiting| waiting.is_woken = true)
    }

    /// A handle that gives the keys to another program.
    pub fn lender(&self) -> Lender {
        Lender(self.shared.clone())
    }

    /// A function that reports to the owner that the terminal is gone.
    pub fn closer(&self) -> impl Fn() + Send + 'static {
        let shared = self.shared.clone();
        move || shared.change(|waiting| waiting.is_closed = true)
    }

    /// The keys and signals that arrive within this time; possibly none, and earlier. The keys of one read, or of one
    /// paste, are together. SIGHUP, too, when the terminal is gone.
    pub fn next(&mut self, wait: Duration) -> (VecDeque<Keys>, BTreeSet<i32>) {
        let mut signals = self.fill(wait);
        signals.extend(lock(&self.shared.waiting).is_closed.then_some(SIGHUP));
        let mut reads = take(&mut self.ready);
        reads.retain(|keys| !keys.is_empty());
        reads.iter_mut().for_each(|keys| keys.reverse());
        (reads, signals)
    }

    /// Waits for the next key of an answer; `None` when the input has ended.
    pub fn key(&mut self) -> Option<Key> {
        loop {
            match self.ready.front_mut().map(|keys| keys.pop()) {
                Some(Some(key)) => return Some(key),
                Some(None) => _ = self.ready.pop_front(),
                None => {
                    self.fill(LONG);
                    if self.ready.is_empty() && lock(&self.shared.waiting).is_closed {
                        return None;
                    }
                }
            }
        }
    }

    /// Takes back a key from [`key`](Self::key).
    pub fn give_back(&mut self, key: Key) {
        self.ready.push_front(Keys::new(vec![key]));
    }

    /// Waits, and moves the keys of complete reads and pastes to `ready`.
    fn fill(&mut self, wait: Duration) -> BTreeSet<i32> {
        let (mut waiting, changed) = (lock(&self.shared.waiting), &self.shared.changed);
        let now = Instant::now();
        let held = is_burst(&self.latest).then_some(self.read + BURST);
        let end = [held, waiting.decoder.deadline()].into_iter().flatten().fold(now + wait, Instant::min);
        let wait = if self.ready.is_empty() { end.saturating_duration_since(now) } else { Duration::ZERO };
        let woken = changed.wait_timeout_while(waiting, wait, |waiting| waiting.is_nothing());
        waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
        let is_closed = waiting.is_closed;
        let is_over = |end: Instant| is_closed || Instant::now() >= end;
        // At the end of the input, too: an incomplete key before it still counts.
        let expired = waiting.decoder.deadline().is_some_and(is_over).then(|| waiting.expire());
        let (reads, signals) = (take(&mut waiting.reads), take(&mut waiting.signals));
        waiting.is_woken = false;
        drop(waiting);
        // There is room again.
        changed.notify_all();
        for (read, more) in reads {
            // A paste may take several reads; keys typed later that waited do not belong to it.
            if is_burst(&self.latest) && read.saturating_duration_since(self.read) < BURST {
                self.latest = joined(take(&mut self.latest), more);
            } else {
                self.hand_on(more);
            }
            self.read = read;
        }
        expired.into_iter().for_each(|more| self.hand_on(more));
        if !is_burst(&self.latest) || is_over(self.read + BURST) {
            self.hand_on(Keys::default());
        }
        signals
    }

    /// The latest keys are complete; these are the latest now.
    fn hand_on(&mut self, latest: Keys) {
        let mut complete = replace(&mut self.latest, latest);
        complete.reverse();
        self.ready.extend((!complete.is_empty()).then_some(complete));
    }
}

/// Gives the screen's keys to another program.
pub struct Lender(Arc<Shared>);

impl Lender {
    /// Waits until nothing more is read. `ask` makes the terminal answer: its answer wakes the reader.
    ///
    /// # Errors
    /// If `ask` fails, the terminal does not answer within 5 s, or the client ends.
    pub fn lend(&self, ask: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.hand(Taker::Screen, Taker::Program);
        ask()?;
        let is_reading = |waiting: &mut Waiting| waiting.taker == Taker::Program && !waiting.is_resting;
        let waited = self.0.changed.wait_timeout_while(lock(&self.0.waiting), ANSWER, is_reading);
        match waited.unwrap_or_else(PoisonError::into_inner).0.is_resting {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::TimedOut, "the terminal does not report its cursor")),
        }
    }

    /// The screen has the keys again.
    pub fn take_back(&self) {
        self.hand(Taker::Program, Taker::Screen);
    }

    /// A taker that has changed otherwise stays.
    fn hand(&self, from: Taker, to: Taker) {
        self.0.change(|waiting| {
            waiting.taker = if waiting.taker == from { to } else { waiting.taker };
            (waiting.is_resting, waiting.dropped) = (false, None);
        });
    }
}

/// Whether more of a paste may follow.
fn is_burst(keys: &Keys) -> bool {
    (are_lines(keys) || keys.len() >= MANY) && keys.len() < MAX_BURST
}

/// Both, without a growing buffer, which would leave copies behind.
fn joined(mut before: Keys, mut more: Keys) -> Keys {
    let mut both = Keys::new(Vec::with_capacity(before.len() + more.len()));
    [&mut before, &mut more].into_iter().for_each(|keys| both.append(keys));
    both
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::terminal::input::Pastes;

    /// Reads, each with its time in units of twice the pause within a paste.
    fn read(inputs: &Inputs, reads: &[(&[u8], u32)]) {
        let now = inputs.read;
        inputs.shared.change(|waiting| {
            reads.iter().for_each(|(bytes, late)| waiting.take(now + *late * 2 * BURST, bytes));
        });
    }

    fn with(reads: &[(&[u8], u32)]) -> Inputs {
        let mut inputs = Inputs::new();
        inputs.taken_by(Taker::Question);
        read(&inputs, reads);
        inputs
    }

    /// All keys that are handed on.
    fn keys(inputs: &mut Inputs) -> Vec<Key> {
        inputs.closer()();
        std::iter::from_fn(|| inputs.key()).collect()
    }

    #[test]
    fn keys_typed_while_nothing_reads_them_are_dropped() {
        let mut inputs = with(&[(b"secret\ryes\r", 0)]);
        while inputs.key() != Some(Key::Enter) {}
        inputs.taken_by(Taker::Nobody);
        read(&inputs, &[(b"yes\r", 2), (b"secret\r", 3), (b"\r", 4)]);
        inputs.taken_by(Taker::Question);
        read(&inputs, &[(b"no\r", 5)]);
        assert_eq!(keys(&mut inputs), [Key::Char('n'), Key::Char('o'), Key::Enter]);
        // Keys typed before the first question are dropped, too, however many.
        let mut inputs = Inputs::new();
        read(&inputs, &[(b"yes\r".as_slice(), 2); 2 * MAX_READS]);
        inputs.taken_by(Taker::Screen);
        assert_eq!(keys(&mut inputs), []);
    }

    #[test]
    fn paste_is_dropped_with_the_rest_that_follows_a_question() {
        for (before, rest, until) in [
            (&b"secret\r"[..], &b"yes\r"[..], 0),
            (b"\x1b[200~secret\r", b"yes\r\x1b[201~", 3),
            (b"\x1b[20", b"0~yes\r\x1b[201~", 3),
            (b"\xc3", b"\xa4yes\r", 3),
        ] {
            let mut inputs = Inputs::new();
            read(&inputs, &[(before, 0)]);
            inputs.taken_by(Taker::Question);
            read(&inputs, &[(rest, until), (b"y", until + 1)]);
            assert_eq!(keys(&mut inputs), [Key::Char('y')], "{before:?}");
        }
        // One without its end mark has ended before the question.
        let mut inputs = Inputs::new();
        read(&inputs, &[(b"\x1b[200~secret\r", 0)]);
        inputs.taken_by(Taker::Question);
        read(&inputs, &[(b"y", 100)]);
        assert_eq!(keys(&mut inputs), [Key::Char('y')]);
    }

    #[test]
    fn keys_arrive_in_order_and_a_lone_escape_in_time() {
        let mut inputs = with(&[(b"a\rb\x1b", 0)]);
        assert_eq!(inputs.key(), Some(Key::Char('a')));
        assert_eq!(inputs.key(), Some(Key::Enter));
        inputs.give_back(Key::Enter);
        let mut rest = Vec::new();
        while rest.len() < 3 {
            inputs.next(LONG).0.iter().for_each(|keys| rest.extend(keys.iter().cloned()));
        }
        assert_eq!(rest, [Key::Enter, Key::Char('b'), Key::Escape]);
        inputs.closer()();
        assert_eq!(inputs.key(), None);
    }

    #[test]
    fn lines_of_several_reads_are_passed_on_together() {
        let mut inputs = with(&[(b"one\rtwo", 0), (b"\r", 0), (b"/exit\r", 0), (b"typed\r", 1)]);
        let reads: Vec<_> =
            inputs.next(LONG).0.into_iter().map(|keys| Pastes::default().join(keys).to_vec()).collect();
        assert_eq!(reads[0], [Key::Paste("one\ntwo\n/exit\n".into())]);
        assert_eq!((reads.len(), reads[1].last()), (2, Some(&Key::Enter)), "keys that were typed later");
    }

    #[test]
    fn signals_are_kept_while_the_screen_is_busy() {
        let mut inputs = Inputs::new();
        inputs.taken_by(Taker::Screen);
        for signal in [SIGWINCH, SIGTSTP, SIGCONT, SIGWINCH, SIGTERM] {
            inputs.shared.signal(signal, true, &mut false);
        }
        let signals = inputs.next(LONG).1;
        assert_eq!(signals, BTreeSet::from([SIGTERM, SIGCONT, SIGTSTP, SIGWINCH]));
        assert!(inputs.next(Duration::ZERO).1.is_empty());
        assert_eq!(lock(&inputs.shared.waiting).taker, Taker::End, "a second one to end would not wait");
    }

    /// MANUAL#long-messages.
    #[test]
    fn late_signal_of_a_key_for_the_editor_does_not_end_the_client() {
        let mut inputs = Inputs::new();
        inputs.taken_by(Taker::Screen);
        for (by_kernel, is_kept) in [(true, false), (false, true)] {
            inputs.shared.signal(SIGINT, by_kernel, &mut false);
            assert_eq!(inputs.next(Duration::ZERO).1.contains(&SIGINT), is_kept);
        }
    }

    /// MANUAL#long-messages.
    #[test]
    fn keys_typed_just_after_the_editor_has_ended_are_kept() {
        let mut inputs = Inputs::new();
        inputs.taken_by(Taker::Screen);
        let lender = inputs.lender();
        lender.hand(Taker::Screen, Taker::Program);
        // The answer that wakes the reader.
        read(&inputs, &[(b"\x1b[1;1R", 0)]);
        lender.take_back();
        read(&inputs, &[(b"a\r", 0)]);
        assert_eq!(keys(&mut inputs), [Key::Char('a'), Key::Enter]);
    }

    /// MANUAL#long-messages.
    #[test]
    fn keys_are_not_lent_while_the_client_ends() {
        let mut inputs = Inputs::new();
        inputs.taken_by(Taker::Screen);
        let ends = || {
            inputs.shared.signal(SIGINT, true, &mut false);
            inputs.shared.signal(SIGTERM, false, &mut false);
            Ok(())
        };
        assert!(inputs.lender().lend(ends).is_err());
        inputs.lender().take_back();
        assert_eq!(lock(&inputs.shared.waiting).taker, Taker::End);
        assert_eq!(inputs.next(LONG).1, BTreeSet::from([SIGTERM]), "the other one was for the program");
    }
}
