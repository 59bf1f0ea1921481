//! Thousands of logged-in clients in one process, over real TLS, as a load for the server: they read, acknowledge,
//! answer pings and send according to a plan. They send real envelopes, sealed, signed and wrapped once for each
//! sender; only the sequence number changes between messages, so that the load costs less than the server. They
//! decrypt nothing: sender and number identify a message, and a shared table has the time when it was sent.

use crate::support::{Person, Raw};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use secure_messenger::clock;
use secure_messenger::crypto::envelope::{Header, Kind, Scope, Sealed};
use secure_messenger::crypto::public::Fingerprint;
use secure_messenger::name::Username;
use secure_messenger::protocol::{
    ClientMessage, EncryptedSend, Received as Ack, Routing, ServerMessage, WrappedKey,
};
use secure_messenger::wire::tls::Received;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Concurrent logins.
const AT_ONCE: usize = 16;
/// The first sequence number, so high that all numbers have the same number of digits.
const FIRST: u64 = 1_000_000_000;
/// The number of messages per sender whose send time is kept.
const REMEMBERED: usize = 1 << 14;
/// After the end of a plan, messages count as lost when none arrives for this long.
const QUIET: Duration = Duration::from_secs(4);

pub fn name(number: usize) -> String {
    format!("m{number:06}")
}

fn nanoseconds() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// A histogram of delivery times, with a precision of about 2 %.
#[derive(Clone)]
pub struct Times(Vec<u64>);

impl Default for Times {
    fn default() -> Self {
        Times(vec![0; 64 * 32])
    }
}

impl Times {
    fn add(&mut self, nanoseconds: u64) {
        let octave = 63 - (nanoseconds | 32).leading_zeros() as usize;
        let step = (nanoseconds | 32) >> (octave - 5) & 31;
        self.0[octave * 32 + step as usize] += 1;
    }

    /// The time in milliseconds that `share` of 1,000 deliveries did not exceed.
    pub fn permille(&self, share: u64) -> f64 {
        let total: u64 = self.0.iter().sum();
        let mut left = (total * share).div_ceil(1000);
        for (place, count) in self.0.iter().enumerate() {
            left = left.saturating_sub(*count);
            if left == 0 {
                return (((32 + place % 32 + 1) as u64) << (place / 32) >> 5) as f64 / 1e6;
            }
        }
        f64::NAN
    }
}

/// When the senders of a plan send their messages.
#[derive(Clone, Copy)]
pub enum Pace {
    /// Each sender has at most this number of messages in flight.
    Window(u64),
    /// This number a second, of all senders together.
    Rate(f64),
    /// Each message is answered; members with an even number begin.
    Replies,
}

/// The messages to send, and their outcome.
pub struct Plan {
    senders: Vec<Speech>,
    /// The number of counted recipients of a message.
    receivers: usize,
    /// Members below this index are counted as recipients.
    listeners: usize,
    pace: Pace,
    begin: Instant,
    end: Instant,
    said: Vec<AtomicU64>,
    heard: Vec<AtomicU64>,
    times: Vec<Vec<AtomicU64>>,
}

/// A line of a sender, and the position of its number.
struct Speech {
    member: usize,
    line: Vec<u8>,
    at: usize,
}

/// The results of a plan.
#[derive(Default, Clone)]
pub struct Found {
    pub times: Times,
    pub said: u64,
    pub heard: u64,
    /// Bytes of received lines.
    pub bytes: u64,
    /// Messages that arrived out of order or twice.
    pub wrong: u64,
    /// Recipients for whom a message was not accepted.
    pub busy: u64,
    pub lost: u64,
    /// The time from the start to the last delivery.
    pub seconds: f64,
}

impl Plan {
    /// `senders` of `members` send to all others. Members from `listeners` on do not count as recipients.
    pub fn broadcast(
        members: usize,
        listeners: usize,
        senders: usize,
        pace: Pace,
        length: Duration,
    ) -> Arc<Plan> {
        let speakers = (0..senders).map(|n| n * listeners / senders);
        let speech = |from| Speech::of(from, (0..members).filter(|to| *to != from).collect(), None);
        let plan = Plan::of(speakers.map(speech).collect(), listeners - 1, pace, length);
        Arc::new(Plan { listeners, ..Arc::into_inner(plan).expect("new") })
    }

    /// Members 0 and 1 send to each other, as do 2 and 3, and so on.
    pub fn pairs(members: usize, pace: Pace, length: Duration) -> Arc<Plan> {
        let speech = |from: usize| {
            let to = Person::new(&name(from ^ 1));
            Speech::of(from, vec![from ^ 1], Some((to.name.clone(), to.session.fingerprint())))
        };
        Plan::of((0..members).map(speech).collect(), 1, pace, length)
    }

    fn of(senders: Vec<Speech>, receivers: usize, pace: Pace, length: Duration) -> Arc<Plan> {
        let zeros = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        let (said, heard) = (zeros(senders.len()), zeros(senders.len()));
        let times = senders.iter().map(|_| zeros(REMEMBERED)).collect();
        let begin = Instant::now();
        Arc::new(Plan {
            senders,
            receivers,
            listeners: usize::MAX,
            pace,
            begin,
            end: begin + length,
            said,
            heard,
            times,
        })
    }

    /// Repeats the plan from now on.
    pub fn again(self: &Arc<Plan>, length: Duration) -> Arc<Plan> {
        let senders =
            self.senders.iter().map(|speech| Speech { line: speech.line.clone(), ..*speech }).collect();
        let mut plan = Plan::of(senders, self.receivers, self.pace, length);
        if let Some(plan) = Arc::get_mut(&mut plan) {
            plan.listeners = self.listeners;
        }
        plan
    }

    /// Whether this sender sends one more now.
    fn is_due(&self, place: usize) -> bool {
        let now = Instant::now();
        if now >= self.end {
            return false;
        }
        let said = self.said[place].load(Ordering::Relaxed);
        let heard = self.heard[place].load(Ordering::Relaxed) / self.receivers as u64;
        match self.pace {
            Pace::Window(window) => said - heard < window,
            Pace::Rate(rate) => {
                let due = now.duration_since(self.begin).as_secs_f64() * rate - place as f64;
                said < (due / self.senders.len() as f64) as u64
            }
            Pace::Replies => said == 0 && self.senders[place].member.is_multiple_of(2),
        }
    }

    fn total(counts: &[AtomicU64]) -> u64 {
        counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

impl Speech {
    /// An envelope with 256 bytes of text for all of `to`, who share their keys.
    fn of(member: usize, to: Vec<usize>, one: Option<(Username, Fingerprint)>) -> Speech {
        let me = Person::new(&name(member));
        let scope = if one.is_some() { Scope::Private } else { Scope::Broadcast };
        let (recipient, recipient_key) = one.unzip();
        let header = Header {
            kind: Kind::Message,
            scope,
            recipient,
            recipient_key,
            from: me.name.clone(),
            identity: me.identity.public().fingerprint(),
            session: me.session.fingerprint(),
            sequence: FIRST,
            time: clock::now_ms(),
            again: None,
        };
        let sealed = Sealed::seal(header, &me.identity, &[b'x'; 252]);
        let key = WrappedKey::new(&sealed.wrap_for(me.session.public()));
        let names = || to.iter().map(|number| name(*number).parse().expect("a name"));
        let routing = Routing {
            id: 0,
            targets: names().collect(),
            keys: names().map(|name| (name, key.clone())).collect(),
        };
        let line =
            ClientMessage::EncryptedSend(Box::new(EncryptedSend { routing, envelope: sealed.envelope }))
                .encode();
        let number = FIRST.to_string();
        let at = find(&line, br#""sequence":"#).expect("it has one") + br#""sequence":"#.len();
        assert_eq!(&line[at..at + number.len()], number.as_bytes());
        Speech { member, line, at }
    }
}

fn find(line: &[u8], what: &[u8]) -> Option<usize> {
    line.windows(what.len()).position(|window| window == what)
}

/// One client.
struct Member {
    number: usize,
    raw: Raw,
    /// The number of frames received, and the number and bytes of those not acknowledged yet.
    frames: u64,
    new: (u64, usize),
    /// Bytes that the socket has not accepted yet.
    out: Vec<u8>,
    /// The last message of each sender.
    last: Vec<u64>,
    deaf: bool,
}

enum Order {
    Join(Box<Member>),
    Begin(Arc<Plan>),
    /// Members that no longer read.
    Deafen(std::ops::Range<usize>),
    End(Sender<Found>),
}

/// All clients. One thread polls them, as load generators for other servers do, so that the figures can be compared: a
/// server spends more CPU time if it has to wake a thread for each client.
pub struct Crowd {
    orders: Option<Sender<Order>>,
    waker: Waker,
    worker: Option<JoinHandle<()>>,
    /// Connections that ended.
    pub closed: Arc<AtomicUsize>,
}

impl Crowd {
    /// Logs in `members`, whose accounts exist; also returns the milliseconds of each login.
    pub fn log_in(port: u16, members: std::ops::Range<usize>) -> (Crowd, Vec<f64>) {
        let (order, orders) = channel();
        let poll = Poll::new().expect("a poll");
        let waker = Waker::new(poll.registry(), Token(usize::MAX)).expect("a waker");
        let closed = Arc::new(AtomicUsize::new(0));
        let its_closed = closed.clone();
        let worker = Some(thread::spawn(move || Worker::new(poll, orders, its_closed).run()));
        let crowd = Crowd { orders: Some(order), waker, worker, closed };
        let (next, times) = (AtomicUsize::new(members.start), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if !members.contains(&number) {
                            return;
                        }
                        let begin = Instant::now();
                        let member = Member::log_in(port, number);
                        times.lock().expect("whole").push(begin.elapsed().as_secs_f64() * 1e3);
                        crowd.order(Order::Join(Box::new(member)));
                    }
                });
            }
        });
        (crowd, times.into_inner().expect("whole"))
    }

    fn order(&self, order: Order) {
        self.orders.as_ref().expect("it runs").send(order).expect("it runs");
        self.waker.wake().expect("it runs");
    }

    /// Stops these members from reading.
    pub fn deafen(&self, members: std::ops::Range<usize>) {
        self.order(Order::Deafen(members));
    }

    /// Runs a plan.
    pub fn carry_out(&self, plan: &Arc<Plan>) -> Found {
        self.order(Order::Begin(plan.clone()));
        let (mut heard, mut since, mut last) = (0, Instant::now(), Instant::now());
        loop {
            thread::sleep(Duration::from_millis(5));
            let now = Plan::total(&plan.heard);
            if now > heard {
                (heard, since, last) = (now, Instant::now(), Instant::now());
            }
            let all = Plan::total(&plan.said) * plan.receivers as u64;
            if Instant::now() > plan.end && (heard == all || since.elapsed() > QUIET) {
                break;
            }
        }
        let (tell, told) = channel();
        self.order(Order::End(tell));
        let mut found = told.recv().expect("it answers");
        (found.said, found.heard) = (Plan::total(&plan.said), Plan::total(&plan.heard));
        found.lost = found.said * plan.receivers as u64 - found.heard;
        found.seconds = last.duration_since(plan.begin).as_secs_f64();
        found
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.waker.wake();
        if let Some(worker) = self.worker.take() {
            worker.join().expect("it ends");
        }
    }
}

impl Member {
    fn log_in(port: u16, number: usize) -> Member {
        let (mut raw, person) = (Raw::reach(port).expect("a handshake"), Person::new(&name(number)));
        match raw.log_in_quickly(&person) {
            Some(ServerMessage::Session(_)) => {}
            Some(ServerMessage::Error(failure)) => panic!("{}: {}", person.name, failure.message),
            _ => panic!("{} is not admitted", person.name),
        }
        raw.socket.set_nonblocking(true).expect("a socket");
        Member { number, raw, frames: 0, new: (0, 0), out: Vec::new(), last: Vec::new(), deaf: false }
    }

    fn say(&mut self, line: &[u8]) {
        if self.raw.channel.encrypt(line, &mut self.out).is_ok() {
            self.send();
        }
    }

    fn send(&mut self) {
        while !self.out.is_empty() {
            match self.raw.channel.send_now(&self.out) {
                Ok(0) => return,
                Ok(count) => drop(self.out.drain(..count)),
                // The reader handles the error.
                Err(_) => return self.out.clear(),
            }
        }
    }
}

struct Worker {
    poll: Poll,
    orders: Receiver<Order>,
    members: Vec<Option<Member>>,
    plan: Option<Arc<Plan>>,
    /// The members of this worker that send: index in the plan, index here.
    senders: Vec<(usize, usize)>,
    found: Found,
    closed: Arc<AtomicUsize>,
}

impl Worker {
    fn new(poll: Poll, orders: Receiver<Order>, closed: Arc<AtomicUsize>) -> Worker {
        let (members, senders) = (Vec::new(), Vec::new());
        Worker { poll, orders, members, plan: None, senders, found: Found::default(), closed }
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            loop {
                match self.orders.try_recv() {
                    Ok(order) => self.take(order),
                    Err(std::sync::mpsc::TryRecvError::Empty) => break,
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
                }
            }
            let wait = if self.plan.is_some() { 1 } else { 1000 };
            // Poll fails only when it is interrupted.
            let _ = self.poll.poll(&mut events, Some(Duration::from_millis(wait)));
            for event in &events {
                let Token(place) = event.token();
                if let Some(Some(member)) = self.members.get_mut(place) {
                    member.send();
                    self.read(place);
                }
            }
            self.speak();
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Join(member) => {
                let (place, socket) = (self.members.len(), member.raw.socket.clone());
                self.members.push(Some(*member));
                let (fd, both) = (socket.as_raw_fd(), Interest::READABLE | Interest::WRITABLE);
                self.poll.registry().register(&mut SourceFd(&fd), Token(place), both).expect("a socket");
                self.read(place);
            }
            Order::Begin(plan) => {
                let of = |number| {
                    self.members.iter().position(|one| one.as_ref().is_some_and(|one| one.number == number))
                };
                let senders = plan.senders.iter().enumerate();
                self.senders =
                    senders.filter_map(|(place, speech)| Some((place, of(speech.member)?))).collect();
                for member in self.members.iter_mut().flatten() {
                    member.last = vec![FIRST; plan.senders.len()];
                }
                (self.plan, self.found) = (Some(plan), Found::default());
            }
            Order::Deafen(range) => {
                let members = self.members.iter_mut().flatten();
                members.for_each(|member| member.deaf = range.contains(&member.number));
            }
            Order::End(tell) => {
                self.plan = None;
                let _ = tell.send(std::mem::take(&mut self.found));
            }
        }
    }

    fn speak(&mut self) {
        let Some(plan) = self.plan.clone() else { return };
        for (place, at) in self.senders.clone() {
            let is_free =
                |members: &[Option<Member>]| members[at].as_ref().is_some_and(|member| member.out.is_empty());
            while is_free(&self.members) && plan.is_due(place) {
                self.say(&plan, place, at);
            }
        }
    }

    fn say(&mut self, plan: &Plan, place: usize, at: usize) {
        let (Some(member), speech) = (&mut self.members[at], &plan.senders[place]) else { return };
        let number = plan.said[place].fetch_add(1, Ordering::Relaxed) + 1;
        plan.times[place][number as usize % REMEMBERED].store(nanoseconds(), Ordering::Relaxed);
        let digits = (FIRST + number).to_string();
        let mut line = speech.line.clone();
        line[speech.at..speech.at + digits.len()].copy_from_slice(digits.as_bytes());
        member.say(&line);
    }

    /// Reads everything that has arrived.
    fn read(&mut self, place: usize) {
        let plan = self.plan.clone();
        let Some(member) = &mut self.members[place] else { return };
        let mut answers = Vec::new();
        while !member.deaf {
            let raw = &mut member.raw;
            match raw.channel.receive(&mut raw.reader, raw.lines.buffer(), Duration::from_millis(1)) {
                Ok(Received::Silence) => break,
                Ok(Received::Some) => {}
                Ok(Received::End) | Err(_) => {
                    self.closed.fetch_add(1, Ordering::Relaxed);
                    self.members[place] = None;
                    return;
                }
            }
            let mut pings = 0;
            while let Some(line) = raw.lines.next_line().expect("bounded lines") {
                match kind(line) {
                    b"ping" => pings += 1,
                    b"pong" | b"ack" => {}
                    other => {
                        member.frames += 1;
                        member.new = (member.new.0 + 1, member.new.1 + line.len());
                        let Some(plan) = &plan else { continue };
                        if other == b"sent" && !line.ends_with(br#""busy":[]}"#) {
                            let busy = find(line, br#""busy":"#).unwrap_or(0);
                            self.found.busy +=
                                line[busy..].iter().filter(|byte| **byte == b'm').count() as u64;
                        }
                        if other == b"encrypted_message"
                            && member.number < plan.listeners
                            && let Some((sender, number)) = message(plan, line)
                        {
                            let since =
                                plan.times[sender][number as usize % REMEMBERED].load(Ordering::Relaxed);
                            self.found.times.add(nanoseconds() - since);
                            self.found.bytes += line.len() as u64 + 1;
                            // A gap is a message that was not accepted, which is already counted.
                            self.found.wrong += u64::from(FIRST + number <= member.last[sender]);
                            member.last[sender] = FIRST + number;
                            plan.heard[sender].fetch_add(1, Ordering::Relaxed);
                            if matches!(plan.pace, Pace::Replies) && Instant::now() < plan.end {
                                answers.push(sender ^ 1);
                            }
                        }
                    }
                }
            }
            (0..pings).for_each(|_| member.say(&ClientMessage::Pong.encode()));
            if member.new.0 >= 32 || member.new.1 >= 128 * 1024 {
                member.new = (0, 0);
                member.say(&ClientMessage::Ack(Ack { received: member.frames }).encode());
            }
        }
        if let Some(plan) = plan {
            answers.into_iter().for_each(|sender| self.say(&plan, sender, place));
        }
    }
}

/// The `type` of a line.
fn kind(line: &[u8]) -> &[u8] {
    const HEAD: &[u8] = br#"{"type":""#;
    let rest = line.strip_prefix(HEAD).unwrap_or_default();
    rest.split(|byte| *byte == b'"').next().unwrap_or_default()
}

/// The sender's index in the plan, and the number of the message.
fn message(plan: &Plan, line: &[u8]) -> Option<(usize, u64)> {
    let head = std::str::from_utf8(line.get(..400)?).ok()?;
    let after = |what: &str| head.split_once(what).map(|(_, rest)| rest);
    let from: usize = after(r#""from":"m"#)?.get(..6)?.parse().ok()?;
    let number: u64 = after(r#""sequence":"#)?.get(..10)?.parse().ok()?;
    let sender = plan.senders.binary_search_by_key(&from, |speech| speech.member).ok()?;
    Some((sender, number.checked_sub(FIRST)?))
}
