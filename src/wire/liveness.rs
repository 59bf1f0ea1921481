//! Decides whether a peer is alive: when to ask it for a sign of life, and when to drop the connection. Server and
//! client use it; no other timer decides that a peer is dead. A question is a `ping`.
//!
//! Invariant: pure. It has no clock and no socket: the owner passes the time and does what [`Next`] says. Setting the
//! wall clock costs one question. Specification: PROTOCOL#life.

use std::time::{Duration, Instant, SystemTime};

/// The wall clock and the monotonic clock differ by 10 s only after a sleep, or when the wall clock was set.
const PARTED: Duration = Duration::from_secs(10);
/// A wait that ends 5 s too late shows that the process was stopped.
const LATE: Duration = Duration::from_secs(5);

/// The tolerated durations of silence.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Silence before a question while the peer owes an answer.
    pub owed: Duration,
    /// Silence before a question otherwise.
    pub idle: Duration,
    /// From the question to the end of the connection.
    pub answer: Duration,
    /// From a question after a sleep to the end of the connection.
    pub awake: Duration,
    /// From the question to the report of silence: most answers are faster.
    pub report: Duration,
    /// The longest wait. A sleep is noticed after it.
    pub tick: Duration,
}

/// The next step of the owner.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for a sign of life, at most this long.
    Wait(Duration),
    /// Ask for one.
    Ask,
    /// Drop the connection.
    Drop,
}

/// Notices that this machine or this process slept.
pub struct Clocks {
    at: Instant,
    wall: SystemTime,
    wait: Duration,
}

impl Clocks {
    /// Starts now.
    pub fn new(now: Instant, wall: SystemTime) -> Clocks {
        Clocks { at: now, wall, wait: Duration::ZERO }
    }

    /// The next call of [`Clocks::slept`] is due after this time.
    pub fn expect(&mut self, wait: Duration) {
        self.wait = wait;
    }

    /// Whether there was a sleep since the last call: the clocks differ, or this call is late.
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

/// A question without an answer so far.
struct Question {
    /// When it was asked, later when it was written.
    asked: Instant,
    patience: Duration,
    /// The `asked` of the first of several unanswered questions.
    first: Instant,
    /// The start of the silence that is reported.
    silent: Instant,
    written: bool,
    /// Whether the peer owed an answer. Other traffic does not show that the peer hears this side.
    owed: bool,
}

/// The state of one connection's peer.
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
    /// A connection that begins now.
    pub fn new(patience: Patience, now: Instant, wall: SystemTime) -> Liveness {
        let clocks = Clocks::new(now, wall);
        Liveness { patience, clocks, heard: now, answered: now, owed: None, owes_ack: false, question: None }
    }

    /// Something has arrived, or a write that had to wait has continued, so the connection is not dropped. A write that
    /// fits the kernel's buffer is no sign of life. This ends no question about an answer that is owed: a network that
    /// fails in one direction may still deliver in the other.
    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.question.take_if(|question| !question.owed);
    }

    /// Something has arrived that shows that the peer hears this side.
    pub fn answered(&mut self, now: Instant) {
        (self.heard, self.answered, self.question) = (now, now, None);
    }

    /// Sets since when the peer owes an answer (`None` if it owes none), and whether this side owes an `ack`.
    pub fn owes(&mut self, since: Option<Instant>, ack: bool) {
        if since != self.owed {
            // An answer has arrived.
            self.question.take_if(|question| question.owed);
        }
        (self.owed, self.owes_ack) = (since, ack);
    }

    /// The question was written: its time starts now.
    pub fn ping_written(&mut self, now: Instant) {
        if let Some(question) = self.question.as_mut().filter(|question| !question.written) {
            if question.first == question.asked {
                question.first = now;
            }
            (question.asked, question.written) = (now, true);
        }
    }

    /// The start of the silence, if it has lasted long enough to be reported.
    pub fn silent(&self, now: Instant) -> Option<Instant> {
        let question = self.question.as_ref()?;
        (now.saturating_duration_since(question.first) >= self.patience.report).then_some(question.silent)
    }

    /// Decides what to do now.
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
                let due = self.heard + silence;
                let due = owed.map_or(due, |owed| owed.min(due));
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

    /// A peer, and a clock that the test moves.
    struct Line {
        liveness: Liveness,
        start: Instant,
        passed: Duration,
        /// The wall clock at the start, and by how much it was set.
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

        /// Waits until there is something to do, and returns when.
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
    fn quiet_peer_is_pinged_after_25_s_and_dropped_20_s_later() {
        let mut line = Line::new(CLIENT);
        assert_eq!(line.act(), (25, Next::Ask));
        assert_eq!(line.act(), (45, Next::Drop));
        let mut line = Line::new(SERVER);
        assert_eq!(line.act(), (30, Next::Ask));
        assert_eq!(line.act(), (90, Next::Drop));
    }

    /// PROTOCOL#life.
    #[test]
    fn peer_that_owes_an_answer_is_pinged_after_10_s() {
        let mut line = Line::new(CLIENT);
        line.liveness.owes(Some(line.now()), false);
        assert_eq!(line.act(), (10, Next::Ask));
        // The time counts from the debt; an answer to something else delays it.
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
        // The same holds for a peer that owes nothing while this side owes an `ack`.
        let mut line = Line::new(CLIENT);
        line.passed = s(4);
        line.liveness.owes(None, true);
        line.liveness.heard(line.now());
        assert_eq!(line.act(), (14, Next::Ask));
        // A late debt does not delay the question.
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
    fn other_traffic_is_neither_an_answer_nor_silence() {
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
        assert_eq!(line.act(), (100, Next::Drop), "after the last traffic");
        // An answer to the question or to the request ends it.
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
    fn any_traffic_answers_a_ping_when_nothing_is_owed() {
        let mut line = Line::new(CLIENT);
        for round in 1..=3 {
            assert_eq!(line.act(), (25 * round, Next::Ask));
            line.next();
            line.liveness.heard(line.now());
        }
    }

    #[test]
    fn time_of_a_ping_begins_when_it_is_written() {
        let mut line = Line::new(CLIENT);
        assert_eq!(line.act().1, Next::Ask);
        line.passed += s(1);
        line.next();
        line.passed += s(1);
        line.liveness.ping_written(line.now());
        line.liveness.ping_written(line.now() + s(3));
        assert_eq!([1, 2].map(|later| line.liveness.silent(line.now() + s(later)).is_some()), [false, true]);
        assert_eq!(line.act(), (47, Next::Drop));
        // A question that is never written does not wait forever.
        let mut line = Line::new(CLIENT);
        assert_eq!((line.act(), line.act()), ((25, Next::Ask), (45, Next::Drop)));
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
    fn ping_after_a_sleep_continues_the_earlier_silence() {
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
    fn peer_is_pinged_after_a_sleep_and_dropped_8_s_later() {
        for (monotonic, wall) in [(s(0), s(3600)), (s(200), s(200)), (s(7), s(7))] {
            let mut line = Line::new(CLIENT);
            assert_eq!(line.next(), Next::Wait(s(1)));
            line.passed += monotonic;
            line.wall += wall - monotonic;
            let asked = line.passed.as_secs();
            assert_eq!(line.act(), (asked, Next::Ask));
            assert_eq!(line.act(), (asked + 8, Next::Drop));
        }
        // The answer to a question from before the sleep may be lost: ask again.
        let mut line = Line::new(CLIENT);
        line.act();
        line.wall += s(3600);
        assert_eq!((line.act(), line.act()), ((25, Next::Ask), (33, Next::Drop)));
        let mut line = Line::new(CLIENT);
        line.next();
        line.passed += s(5);
        assert!(matches!(line.next(), Next::Wait(_)), "a busy machine is late too");
        // After a question, the next call is due at once.
        let mut line = Line::new(SERVER);
        assert_eq!(line.act(), (30, Next::Ask));
        line.passed += s(6);
        assert_eq!(line.next(), Next::Ask);
    }

    #[test]
    fn changed_wall_clock_costs_one_ping() {
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
