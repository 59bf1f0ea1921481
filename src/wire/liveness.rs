//! Decides whether the other side of a connection is still there: when to ask it for a sign of life, and when to drop
//! the connection. Both sides use it; no other timer decides that a peer is dead.
//!
//! Invariant: pure. It has no clock and no socket: the owner passes instants and does what [`Next`] says. A wall clock
//! that is set forwards or backwards costs one question. Specification: PROTOCOL#life.

use std::time::{Duration, Instant, SystemTime};

/// Wall clock and monotonic clock differ by this much only after a sleep, or when the wall clock is set.
const PARTED: Duration = Duration::from_secs(10);
/// A wait that ends this much too late: the process was stopped.
const LATE: Duration = Duration::from_secs(5);

/// How long silence is tolerated.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Silence before the question, while the peer owes an answer.
    pub owed: Duration,
    /// Silence before the question otherwise.
    pub idle: Duration,
    /// From the question to the end of the connection.
    pub answer: Duration,
    /// The same, for the question after a sleep.
    pub awake: Duration,
    /// From the question to the report that nothing is heard: most answers are faster.
    pub report: Duration,
    /// The longest wait: a sleep is noticed at the next one.
    pub tick: Duration,
}

/// What the owner does now.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for a sign of life, at most this long.
    Wait(Duration),
    /// Ask for one.
    Ask,
    /// Drop the connection.
    Drop,
}

/// Notices that this machine or process slept.
pub struct Clocks {
    at: Instant,
    wall: SystemTime,
    wait: Duration,
}

impl Clocks {
    /// Begins now.
    pub fn new(now: Instant, wall: SystemTime) -> Clocks {
        Clocks { at: now, wall, wait: Duration::ZERO }
    }

    /// The next look is due after this time.
    pub fn expect(&mut self, wait: Duration) {
        self.wait = wait;
    }

    /// Whether it slept since the last look: the clocks have parted, or the look is late.
    pub fn slept(&mut self, now: Instant, wall: SystemTime) -> bool {
        let passed = now.saturating_duration_since(self.at);
        let parted = match wall.duration_since(self.wall) {
            Ok(shown) => shown.abs_diff(passed),
            Err(backwards) => backwards.duration() + passed,
        };
        let late = passed > self.wait + LATE;
        (self.at, self.wall) = (now, wall);
        parted >= PARTED || late
    }
}

/// The question that is not answered.
struct Question {
    /// When it was asked, then when it was written.
    asked: Instant,
    patience: Duration,
    /// The same as `asked`, of the first of several questions that got no answer: its silence goes on.
    first: Instant,
    /// The silence that a person sees began here.
    silent: Instant,
    written: bool,
    /// Asked because an answer is owed: what else arrives does not tell that the peer hears this side.
    owed: bool,
}

/// What is known of the peer of one connection.
pub struct Liveness {
    patience: Patience,
    clocks: Clocks,
    heard: Instant,
    answered: Instant,
    owed: Option<Instant>,
    owes_ack: bool,
    question: Option<Question>,
}

impl Liveness {
    /// Of a connection that begins now.
    pub fn new(patience: Patience, now: Instant, wall: SystemTime) -> Liveness {
        let clocks = Clocks::new(now, wall);
        Liveness { patience, clocks, heard: now, answered: now, owed: None, owes_ack: false, question: None }
    }

    /// Something has arrived: the connection is not dropped. It is no answer if one is owed: a line that has gone silent
    /// in one direction goes on delivering in the other.
    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.question.take_if(|question| !question.owed);
    }

    /// What has arrived shows that the peer hears this side.
    pub fn answered(&mut self, now: Instant) {
        (self.heard, self.answered, self.question) = (now, now, None);
    }

    /// A write that had to wait has continued: the peer takes what is sent. A write that fits the kernel's buffer is no
    /// sign of life.
    pub fn progressed(&mut self, now: Instant) {
        self.heard(now);
    }

    /// Since when the peer owes an answer, if it does; and whether this side owes an `ack`.
    pub fn owes(&mut self, since: Option<Instant>, ack: bool) {
        if since != self.owed {
            // One has come.
            self.question.take_if(|question| question.owed);
        }
        (self.owed, self.owes_ack) = (since, ack);
    }

    /// The question has gone out: its time begins here.
    pub fn ping_written(&mut self, now: Instant) {
        if let Some(question) = self.question.as_mut().filter(|question| !question.written) {
            if question.first == question.asked {
                question.first = now;
            }
            (question.asked, question.written) = (now, true);
        }
    }

    /// Since when no answer is heard, if that is to be reported.
    pub fn silent(&self, now: Instant) -> Option<Instant> {
        let question = self.question.as_ref()?;
        (now.saturating_duration_since(question.first) >= self.patience.report).then_some(question.silent)
    }

    /// What to do now.
    pub fn next(&mut self, now: Instant, wall: SystemTime) -> Next {
        if self.clocks.slept(now, wall) {
            return self.ask(now, self.patience.awake);
        }
        let due = match &self.question {
            Some(question) => {
                let report = question.first + self.patience.report;
                let end = question.asked.max(self.heard) + question.patience;
                if now >= end {
                    return Next::Drop;
                }
                if now < report { report.min(end) } else { end }
            }
            None => {
                let owed = self.owed.map(|since| since.max(self.answered) + self.patience.owed);
                let silence = if self.owes_ack { self.patience.owed } else { self.patience.idle };
                let due = (self.heard + silence).min(owed.unwrap_or(self.heard + silence));
                if now >= due {
                    return self.ask(now, self.patience.answer);
                }
                due
            }
        };
        let wait = (due - now).min(self.patience.tick);
        self.clocks.expect(wait);
        Next::Wait(wait)
    }

    fn ask(&mut self, now: Instant, patience: Duration) -> Next {
        self.clocks.expect(Duration::ZERO);
        let (first, silent) = match &self.question {
            Some(former) => (former.first, former.silent),
            None => (now, self.owed.map_or(now, |since| since.max(self.answered).min(now))),
        };
        let owed = self.owed.is_some();
        self.question = Some(Question { asked: now, patience, first, silent, written: false, owed });
        Next::Ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const CLIENT: Patience =
        Patience { owed: s(10), idle: s(25), answer: s(20), awake: s(8), report: s(2), tick: s(1) };
    const SERVER: Patience =
        Patience { owed: s(30), idle: s(30), answer: s(60), awake: s(60), report: s(60), tick: s(30) };

    /// A peer and the time, which passes only here.
    struct Line {
        liveness: Liveness,
        start: Instant,
        passed: Duration,
        /// What the wall clock is wrong by.
        wall: SystemTime,
    }

    impl Line {
        fn new(patience: Patience) -> Line {
            let (start, wall) = (Instant::now(), SystemTime::UNIX_EPOCH + s(1_000_000));
            Line { liveness: Liveness::new(patience, start, wall), start, passed: s(0), wall }
        }

        fn now(&self) -> Instant {
            self.start + self.passed
        }

        fn next(&mut self) -> Next {
            self.liveness.next(self.start + self.passed, self.wall + self.passed)
        }

        /// Waits until there is something to do, and when.
        fn act(&mut self) -> (u64, Next) {
            loop {
                match self.next() {
                    Next::Wait(wait) => self.passed += wait,
                    other => return (self.passed.as_secs(), other),
                }
            }
        }
    }

    /// PROTOCOL#life.
    #[test]
    fn quiet_peer_is_asked_after_25_s_and_dropped_20_s_later() {
        let mut line = Line::new(CLIENT);
        assert_eq!(line.act(), (25, Next::Ask));
        assert_eq!(line.act(), (45, Next::Drop));
        let mut line = Line::new(SERVER);
        assert_eq!(line.act(), (30, Next::Ask));
        assert_eq!(line.act(), (90, Next::Drop));
    }

    /// PROTOCOL#life.
    #[test]
    fn peer_that_owes_an_answer_is_asked_after_10_s() {
        let mut line = Line::new(CLIENT);
        line.liveness.owes(Some(line.now()), false);
        assert_eq!(line.act(), (10, Next::Ask));
        // What it owes since later counts from then on; an answer to another question delays it.
        let mut line = Line::new(CLIENT);
        line.passed = s(1);
        line.liveness.owes(Some(line.now()), false);
        for _ in 0..3 {
            line.passed += s(1);
            line.next();
        }
        line.liveness.answered(line.now());
        assert_eq!(line.act(), (14, Next::Ask));
        assert_eq!(line.liveness.silent(line.now() + s(2)), Some(line.start + s(4)), "it answered then");
        // So is one that owes nothing, while this side owes an `ack`.
        let mut line = Line::new(CLIENT);
        line.passed = s(4);
        line.liveness.owes(None, true);
        line.liveness.heard(line.now());
        assert_eq!(line.act(), (14, Next::Ask));
        // One that begins to owe late is asked no later for it.
        let mut line = Line::new(CLIENT);
        while line.passed < s(20) {
            line.next();
            line.passed += s(1);
        }
        line.liveness.owes(Some(line.now()), false);
        assert_eq!(line.act(), (25, Next::Ask));
    }

    #[test]
    fn wait_is_no_longer_than_until_report_or_drop() {
        for (report, waits) in [(s(2), [2, 18]), (s(15), [15, 5]), (s(30), [20, 0])] {
            let mut line = Line::new(Patience { report, tick: s(60), ..CLIENT });
            assert_eq!(line.act(), (25, Next::Ask));
            for wait in waits.into_iter().filter(|wait| *wait > 0).map(s) {
                assert_eq!(line.next(), Next::Wait(wait));
                line.passed += wait;
            }
            assert_eq!(line.next(), Next::Drop);
        }
    }

    /// PROTOCOL#life.
    #[test]
    fn what_others_say_is_no_answer_and_no_silence() {
        let mut line = Line::new(CLIENT);
        line.liveness.owes(Some(line.now()), false);
        let (mut asked, mut reported) = (Vec::new(), None);
        for second in 1..=80 {
            line.passed = s(second);
            while line.next() == Next::Ask {
                asked.push(second);
            }
            line.liveness.heard(line.now());
            reported = reported.or(line.liveness.silent(line.now()).map(|since| (second, since)));
        }
        assert_eq!((asked, reported), (vec![10], Some((12, line.start))), "asked once, and reported");
        assert_eq!(line.act(), (100, Next::Drop), "when nobody is heard any more");
        // The answer ends it: to the question, or to what was asked before.
        for answer in [
            |line: &mut Line| line.liveness.answered(line.now()),
            |line: &mut Line| line.liveness.owes(None, false),
        ] {
            let mut line = Line::new(CLIENT);
            line.liveness.owes(Some(line.now()), false);
            assert_eq!(line.act(), (10, Next::Ask));
            line.passed = s(13);
            line.liveness.heard(line.now());
            answer(&mut line);
            assert_eq!(line.liveness.silent(line.now()), None);
        }
    }

    #[test]
    fn whatever_arrives_answers_the_question() {
        let mut line = Line::new(CLIENT);
        for round in 1..=3 {
            assert_eq!(line.act(), (25 * round, Next::Ask));
            line.next();
            line.liveness.heard(line.now());
        }
    }

    #[test]
    fn the_time_of_a_question_begins_when_it_is_written() {
        let mut line = Line::new(CLIENT);
        assert_eq!(line.act().1, Next::Ask);
        line.passed += s(1);
        line.next();
        line.passed += s(1);
        line.liveness.ping_written(line.now());
        line.liveness.ping_written(line.now() + s(3));
        assert_eq!([1, 2].map(|later| line.liveness.silent(line.now() + s(later)).is_some()), [false, true]);
        assert_eq!(line.act(), (47, Next::Drop));
        // One that is never written does not wait for ever.
        let mut line = Line::new(CLIENT);
        assert_eq!((line.act(), line.act()), ((25, Next::Ask), (45, Next::Drop)));
    }

    #[test]
    fn write_that_waited_and_continued_is_a_sign_of_life() {
        let mut line = Line::new(CLIENT);
        line.act();
        line.next();
        line.liveness.progressed(line.now());
        assert_eq!(line.act(), (50, Next::Ask));
    }

    #[test]
    fn silence_is_reported_12_s_after_an_answer_was_due() {
        let mut line = Line::new(CLIENT);
        line.liveness.owes(Some(line.now()), false);
        line.act();
        assert_eq!(line.liveness.silent(line.now()), None, "most answers come sooner");
        while line.liveness.silent(line.now()).is_none() {
            let Next::Wait(wait) = line.next() else { panic!("nothing else to do") };
            line.passed += wait;
        }
        assert_eq!(line.passed, s(12));
        assert_eq!(line.liveness.silent(line.now()), Some(line.start));
        line.liveness.answered(line.now());
        assert_eq!(line.liveness.silent(line.now()), None);
    }

    #[test]
    fn question_after_a_sleep_continues_the_silence_before() {
        let mut line = Line::new(CLIENT);
        line.liveness.owes(Some(line.now()), false);
        assert_eq!(line.act(), (10, Next::Ask));
        line.passed = s(13);
        line.next();
        assert_eq!(line.liveness.silent(line.now()), Some(line.start));
        line.wall += s(3600);
        assert_eq!(line.next(), Next::Ask);
        assert_eq!(line.liveness.silent(line.now()), Some(line.start), "nothing was heard meanwhile");
        line.liveness.ping_written(line.now());
        assert_eq!(line.liveness.silent(line.now()), Some(line.start));
        assert_eq!(line.act(), (21, Next::Drop));
        line.liveness.answered(line.now());
        assert_eq!(line.liveness.silent(line.now()), None);
    }

    #[test]
    fn after_a_sleep_it_asks_at_once_and_drops_after_8_s() {
        for (monotonic, wall) in [(s(0), s(3600)), (s(200), s(200)), (s(7), s(7))] {
            let mut line = Line::new(CLIENT);
            assert_eq!(line.next(), Next::Wait(s(1)));
            line.passed += monotonic;
            line.wall += wall - monotonic;
            let asked = line.passed.as_secs();
            assert_eq!(line.act(), (asked, Next::Ask));
            assert_eq!(line.act(), (asked + 8, Next::Drop));
        }
        // A question from before the sleep may never have been answered: it is asked again.
        let mut line = Line::new(CLIENT);
        line.act();
        line.wall += s(3600);
        assert_eq!((line.act(), line.act()), ((25, Next::Ask), (33, Next::Drop)));
        let mut line = Line::new(CLIENT);
        line.next();
        line.passed += s(5);
        assert!(matches!(line.next(), Next::Wait(_)), "a busy machine is late, too");
        // Whoever asks looks again at once, however long it would have waited before.
        let mut line = Line::new(SERVER);
        assert_eq!(line.act(), (30, Next::Ask));
        line.passed += s(6);
        assert_eq!(line.next(), Next::Ask);
    }

    #[test]
    fn wall_clock_that_is_set_costs_one_question() {
        for change in [-86_400, -10, 10, 86_400 * 365] {
            let mut line = Line::new(CLIENT);
            line.next();
            let by = s(i64::unsigned_abs(change));
            line.wall = if change < 0 { line.wall - by } else { line.wall + by };
            assert_eq!(line.act(), (0, Next::Ask), "{change}");
            line.liveness.heard(line.now());
            assert_eq!(line.act(), (25, Next::Ask));
        }
        let mut line = Line::new(CLIENT);
        line.next();
        line.wall += s(9);
        assert!(matches!(line.next(), Next::Wait(_)));
    }
}
