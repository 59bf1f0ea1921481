//! The outbox of a session: its [`Frames`], the connection they go out on, and who sends them.
//!
//! Invariant: whoever holds the *baton* (`Queue::busy`) alone encrypts and writes, so ciphertext
//! leaves in the order in which it was made. Whoever queues something and finds the baton free
//! takes it, or leaves it to the [flusher](super::flusher); whoever finds it taken leaves at once, because the holder looks at the queue again,
//! under the same lock, before it lays the baton down. Nobody ever waits for a client:
//! when its socket is full, baton and rest go to a writer thread that ends when it has caught up.
//! The queue is bounded: when it is full, an envelope is not taken and its sender is told, so that
//! no sender can throw a slow reader off; what the server itself has to say still fits, or the
//! session ends. A connection that takes nothing for 30 s is closed, and one whose session has ended 30 s after that, however
//! much it takes.
//!
//! The outbox outlives its connection, a [`Link`]. There is one baton for each link: `busy` speaks of `link`, and both
//! change together, under the lock. A holder takes frames out of the queue only under the lock and after it has seen that
//! `link` is still the one it writes to; if not, it has lost its baton, leaves what it was about to write, and touches
//! nothing more. So when another link is put in, no frame gets a number any more on account of the former, and what
//! its holder may still be writing goes to a socket that is shut; every counted frame that it took is among those kept,
//! and is sent again. [`Outbox::claim`] takes the link off, [`Outbox::attach`] puts the next one in, and only for the
//! latest claim: of two resumptions at once the later one wins.

use super::connection_limits::Ticket;
use super::frames::{Frame, Frames, Freed, Part};
use super::limits::{FAREWELL, WRITE};
use super::metrics;
use super::quotas::{Permit, Quotas};
use super::receipts::{Receipt, Receipts};
use crate::protocol::{Received, ServerMessage, WrappedKey};
use crate::sync::lock;
use crate::wire::tls::Channel;
use crate::wire::window::{Control, ControlLine, FalseAck};
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

/// Bytes that are encrypted and sent together: four TLS records. With one in each call, calls took a third of a broadcast's
/// time that is not its reading.
const BATCH: usize = 64 * 1024;
/// The same, of a client that does not take them at once: they wait in memory. As much at a time has 30 s to go.
const SLOW_BATCH: usize = 16 * 1024;
/// Batches (1 MiB of lines) after which the holder of the baton gives it to a thread of its own: others wait for it.
const MAX_BATCHES: usize = 16;
/// Stack of a writer thread, in bytes, which only encrypts and writes.
const WRITER_STACK: usize = 128 * 1024;

/// A connection, counted as long as any thread holds on to its socket.
pub struct Link {
    /// Encrypted and written to by the holder of the baton alone, read by the connection's thread.
    pub channel: Channel,
    ticket: Ticket,
}

impl Link {
    /// A connection that has logged in or resumed.
    pub fn new(channel: Channel, ticket: Ticket) -> Arc<Link> {
        Arc::new(Link { channel, ticket })
    }
}

struct Queue {
    /// Of `link`.
    control: Control,
    frames: Frames,
    /// Of the letters among the frames, in their order; `None` once they were [taken](Outbox::take_receipts).
    receipts: Option<Receipts>,
    /// The last line, which goes behind all others.
    last: Option<Part>,
    /// `None` while the session has no connection.
    link: Option<Arc<Link>>,
    /// The baton of `link`: somebody encrypts and writes.
    busy: bool,
    /// In a [`Pass`].
    listed: bool,
    /// In the flusher's list of those that have something to send soon.
    listed_for_soon: bool,
    /// Resumptions so far.
    claims: u64,
    /// The session has ended, and its connection ends when the queue is empty, at the latest then.
    ending: Option<Instant>,
    closed: bool,
    /// Where the client was last; `None` once the end was reported.
    address: Option<IpAddr>,
}

impl Queue {
    fn is_open(&self) -> bool {
        !self.closed && self.ending.is_none()
    }

    fn is_on(&self, link: &Arc<Link>) -> bool {
        self.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link))
    }

    /// Takes the link off and shuts it; its reader returns, and the holder of its baton has lost it.
    fn cut(&mut self) {
        self.busy = false;
        if let Some(link) = self.link.take() {
            link.channel.close();
        }
    }

    /// Ends the session at once.
    fn shut(&mut self) {
        self.closed = true;
        self.frames.clear();
        self.cut();
    }

    /// The client has received the frames of these receipts.
    fn freed(&mut self, freed: &Freed) {
        self.receipts.iter_mut().for_each(|receipts| receipts.acknowledge(freed.letters));
    }

    /// Whether there is nothing to send.
    fn is_idle(&self) -> bool {
        self.control.is_idle() && self.frames.is_idle() && self.last.is_none()
    }

    /// Puts into `plain` what is sent next. Control lines end each batch: a `pong` seldom overtakes what was asked for
    /// before it, and no frame, however long, holds them up.
    fn next_batch(&mut self, plain: &mut Vec<u8>, most: usize) {
        plain.clear();
        plain.extend(self.control.first.take().unwrap_or_default());
        self.frames.next_batch(plain, most);
        let end = plain.len() + most;
        while plain.len() < end
            && let Some(line) = self.control.next()
        {
            plain.extend(match line {
                ControlLine::First(line) => line,
                ControlLine::Ack(received) => ServerMessage::Ack(Received { received }).encode(),
                ControlLine::Pong => ServerMessage::Pong.encode(),
                ControlLine::Ping => ServerMessage::Ping.encode(),
            });
        }
        if self.frames.is_idle() && self.control.is_idle() {
            plain.extend_from_slice(&self.last.take().unwrap_or_default());
        }
    }
}

/// What goes out next, and what encryption makes of it: whoever sends much keeps them from one batch to the next.
#[derive(Default)]
pub struct Buffers {
    plain: Vec<u8>,
    wire: Vec<u8>,
}

/// Why a packet was not queued.
pub enum Unqueued {
    /// There is no room for it.
    Full(Frame),
    /// The session has ended.
    Gone,
}

/// The queue of one session.
pub struct Outbox {
    queue: Mutex<Queue>,
    quotas: Arc<Quotas>,
}

/// What became of an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queued {
    /// It is in the queue, or out already. Whether it arrives is not known.
    Yes,
    /// Too much waits already.
    Full,
    /// The session has ended.
    Gone,
}

impl Outbox {
    /// `limit` is in bytes of lines: see [`Frames::takes`].
    pub fn new(link: Arc<Link>, limit: usize, quotas: Arc<Quotas>) -> Outbox {
        let queue = Queue {
            control: Control::default(),
            frames: Frames::new(limit),
            receipts: Some(Receipts::default()),
            last: None,
            address: Some(link.ticket.address),
            link: Some(link),
            busy: false,
            listed: false,
            listed_for_soon: false,
            claims: 0,
            ending: None,
            closed: false,
        };
        Outbox { queue: Mutex::new(queue), quotas }
    }

    /// Queues one frame of the server's own and sends what can be sent now.
    pub fn send(self: &Arc<Outbox>, frame: Frame) {
        let mut queue = lock(&self.queue);
        put_own(&mut queue, frame);
        self.take_baton(queue, &mut Buffers::default());
    }

    /// Sends a line about the connection in use.
    pub fn control(self: &Arc<Outbox>, change: impl FnOnce(&mut Control)) {
        let mut queue = lock(&self.queue);
        if queue.is_open() {
            change(&mut queue.control);
            self.take_baton(queue, &mut Buffers::default());
        }
    }

    /// Queues one frame of the server's own. True if somebody has to [flush](Outbox::flush) it, and nobody else will.
    pub fn queue_for_soon(&self, frame: Frame) -> bool {
        let mut queue = lock(&self.queue);
        put_own(&mut queue, frame);
        !std::mem::replace(&mut queue.listed_for_soon, true)
    }

    /// Queues one frame of the server's own for the next pass.
    pub fn queue(self: &Arc<Outbox>, frame: Frame, pass: &mut Pass) {
        let mut queue = lock(&self.queue);
        put_own(&mut queue, frame);
        self.list(queue, pass);
    }

    /// Queues one line from another client, for the next pass or to be sent at once, unless too
    /// much waits already. An envelope has its recipient's own wrapped key.
    pub fn deliver(
        self: &Arc<Outbox>,
        frame: Frame,
        key: Option<&WrappedKey>,
        receipt: Option<Receipt>,
        pass: Option<&mut Pass>,
    ) -> Queued {
        let mut guard = lock(&self.queue);
        let queue = &mut *guard;
        let Some(receipts) = queue.receipts.as_mut().filter(|_| !queue.closed && queue.ending.is_none())
        else {
            return Queued::Gone;
        };
        if !queue.frames.takes(&frame) {
            return Queued::Full;
        }
        receipts.push(receipt);
        match key {
            Some(key) => queue.frames.put_envelope(frame, key),
            None => queue.frames.put(frame),
        }
        match pass {
            Some(pass) => self.list(guard, pass),
            None => self.take_baton(guard, &mut Buffers::default()),
        }
        Queued::Yes
    }

    /// Queues a packet behind all lines. The caller [flushes](Outbox::flush) when it holds no lock.
    ///
    /// # Errors
    /// The packet, if there is no room for it, or if the session has ended.
    pub fn put_packet(&self, packet: Frame) -> Result<(), Unqueued> {
        let mut queue = lock(&self.queue);
        if !queue.is_open() {
            return Err(Unqueued::Gone);
        }
        queue.frames.put_packet(packet, &self.quotas.packets).map_err(Unqueued::Full)
    }

    /// How many packets count against what may be granted: see [`Frames::packets`].
    pub fn packets(&self) -> u32 {
        u32::try_from(lock(&self.queue).frames.packets()).unwrap_or(u32::MAX)
    }

    /// Whether the session goes on.
    pub fn is_open(&self) -> bool {
        lock(&self.queue).is_open()
    }

    /// Whether the session goes on, and on this connection.
    pub fn serves(&self, link: &Arc<Link>) -> bool {
        let queue = lock(&self.queue);
        queue.is_open() && queue.is_on(link)
    }

    /// Takes in what the client of `link` says to have received, unless the session has gone to another link. True if it was
    /// so much that an `ack` was due.
    ///
    /// # Errors
    /// [`FalseAck`], as [`Frames::acknowledge`].
    pub fn acknowledge(&self, link: &Arc<Link>, received: u64) -> Result<bool, FalseAck> {
        let mut queue = lock(&self.queue);
        if !queue.is_on(link) {
            return Ok(false);
        }
        let freed = queue.frames.acknowledge(received)?;
        queue.freed(&freed);
        Ok(freed.was_due())
    }

    /// Closes the session's connection for one whose client has taken in `received` frames since the login, and returns
    /// the number of the claim. `None`, and nothing has changed, if the session has ended or cannot be resumed from
    /// there.
    pub fn claim(&self, received: u64) -> Option<u64> {
        let mut queue = lock(&self.queue);
        if !queue.is_open() || !queue.frames.reaches(received) {
            return None;
        }
        queue.cut();
        queue.claims += 1;
        Some(queue.claims)
    }

    /// Continues on `link`, whose first line is `hello`. False, and nothing has changed, if the session has ended since the
    /// claim, or there was a later one.
    pub fn attach(self: &Arc<Outbox>, link: Arc<Link>, claim: u64, received: u64, hello: Vec<u8>) -> bool {
        let mut queue = lock(&self.queue);
        if !queue.is_open() || queue.claims != claim {
            return false;
        }
        let Some(freed) = queue.frames.resume(received) else { return false };
        queue.freed(&freed);
        queue.cut();
        queue.control = Control { first: Some(hello), ..Control::default() };
        (queue.address, queue.link) = (Some(link.ticket.address), Some(link));
        self.take_baton(queue, &mut Buffers::default());
        true
    }

    /// Closes the connection; the client can resume the session.
    pub fn disconnect(&self) {
        let mut queue = lock(&self.queue);
        if queue.is_open() {
            queue.cut();
        }
    }

    /// The reader of `link` has ended: the connection is closed, unless it is ending by itself.
    pub fn detach(&self, link: &Arc<Link>) {
        let mut queue = lock(&self.queue);
        if queue.is_open() && queue.is_on(link) {
            queue.cut();
        }
    }

    fn list(self: &Arc<Outbox>, mut queue: MutexGuard<'_, Queue>, pass: &mut Pass) {
        if !queue.busy && queue.link.is_some() && !std::mem::replace(&mut queue.listed, true) {
            drop(queue);
            pass.0.push(self.clone());
        }
    }

    /// Sends what is queued, and what TLS itself has to say, unless somebody is at it.
    pub fn flush(self: &Arc<Outbox>, buffers: &mut Buffers) {
        let mut queue = lock(&self.queue);
        (queue.listed, queue.listed_for_soon) = (false, false);
        self.take_baton(queue, buffers);
    }

    /// Ends the session: when all lines that are queued have been sent, and `last`, or at once without a connection.
    pub fn end(self: &Arc<Outbox>, last: Option<&ServerMessage>) {
        let mut queue = lock(&self.queue);
        if queue.link.is_none() {
            return queue.shut();
        }
        if queue.is_open() {
            queue.last = last.map(|message| message.encode().into());
        }
        queue.ending.get_or_insert_with(|| Instant::now() + FAREWELL);
        queue.frames.end();
        self.take_baton(queue, &mut Buffers::default());
    }

    /// Accepts no more from other clients. The receipts of what the client has not acknowledged, for the first caller.
    pub fn take_receipts(&self) -> Option<Receipts> {
        lock(&self.queue).receipts.take()
    }

    /// Where the client of a session that has ended was last: for the first who asks, and reports the end.
    pub fn take_end(&self) -> Option<IpAddr> {
        let mut queue = lock(&self.queue);
        if queue.is_open() { None } else { queue.address.take() }
    }

    /// Whether the session has ended and `link` is still sent the rest.
    pub fn says_farewell(&self, link: &Arc<Link>) -> bool {
        let queue = lock(&self.queue);
        !queue.is_open() && queue.is_on(link)
    }

    /// How long a writer may take for what it sends next; `None` if it has lost its link.
    fn write_until(&self, link: &Arc<Link>) -> Option<Instant> {
        let (queue, usual) = (lock(&self.queue), Instant::now() + WRITE);
        queue.is_on(link).then(|| queue.ending.map_or(usual, |end| end.min(usual)))
    }

    /// Takes the baton if it is free, and runs with it.
    fn take_baton<'a>(self: &'a Arc<Outbox>, mut queue: MutexGuard<'a, Queue>, buffers: &mut Buffers) {
        let Buffers { plain, wire } = buffers;
        let Some(link) = queue.link.clone().filter(|_| !queue.busy) else { return };
        queue.busy = true;
        for batches in 1.. {
            queue.next_batch(plain, BATCH);
            drop(queue);
            wire.clear();
            let sent = link.channel.encrypt(plain, wire).and_then(|()| link.channel.send_now(wire));
            queue = lock(&self.queue);
            if !queue.is_on(&link) {
                return;
            }
            match sent {
                Err(_) => return broken(&mut queue),
                Ok(count) if count < wire.len() || batches >= MAX_BATCHES => {
                    drop(queue);
                    let rest = wire.split_off(count);
                    return self.hand_over(link, rest);
                }
                Ok(_) => {}
            }
            if lay_down(&mut queue, &link) {
                return;
            }
        }
    }

    /// Gives the baton and the rest to a writer thread of this link's own.
    fn hand_over(self: &Arc<Outbox>, link: Arc<Link>, rest: Vec<u8>) {
        let (me, its) = (self.clone(), link.clone());
        let started = self.quotas.writers.take_within(1).is_some_and(|permit| {
            let thread = std::thread::Builder::new().name("writer".into()).stack_size(WRITER_STACK);
            thread.spawn(move || me.write_out(&its, rest, permit)).is_ok()
        });
        if !started {
            metrics::SLOW_CLOSED.add();
            self.give_up(&link);
        }
    }

    fn give_up(&self, link: &Arc<Link>) {
        let mut queue = lock(&self.queue);
        if queue.is_on(link) {
            broken(&mut queue);
        }
    }

    /// The writer thread: sends, waiting for the client, until it has caught up. Each [`SLOW_BATCH`] has
    /// 30 s, and goes when half of what the system holds unsent has gone: who takes 4 KiB a second is not given up.
    /// PROTOCOL#slow-client.
    fn write_out(self: &Arc<Outbox>, link: &Arc<Link>, mut wire: Vec<u8>, _permit: Permit) {
        loop {
            let sent = wire.chunks(SLOW_BATCH).try_for_each(|some| {
                let until = self.write_until(link).ok_or(io::Error::from(ErrorKind::NotConnected))?;
                link.channel.send_by(some, until)
            });
            let mut queue = lock(&self.queue);
            if !queue.is_on(link) {
                return;
            }
            if let Err(error) = sent {
                if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) {
                    metrics::SLOW_CLOSED.add();
                }
                return broken(&mut queue);
            }
            if lay_down(&mut queue, link) {
                return;
            }
            // Neither holds more than it has to while it waits.
            let mut plain = Vec::new();
            wire = Vec::new();
            queue.next_batch(&mut plain, SLOW_BATCH);
            drop(queue);
            if link.channel.encrypt(&plain, &mut wire).is_err() {
                return self.give_up(link);
            }
        }
    }
}

/// The connection takes nothing more. The session waits for another one, unless it was ending.
fn broken(queue: &mut Queue) {
    if queue.ending.is_some() { queue.shut() } else { queue.cut() }
}

/// Lays the baton of the current link down if nothing is left to do.
fn lay_down(queue: &mut Queue, link: &Arc<Link>) -> bool {
    if !queue.is_idle() {
        return false;
    }
    queue.busy = false;
    if queue.ending.is_some() {
        link.channel.end();
        link.ticket.logged_out();
        // Not cut: the reader still listens for a moment.
        (queue.closed, queue.link) = (true, None);
        queue.frames.clear();
    }
    true
}

/// What the server itself has to say and no longer fits ends the session. Without a connection, others see it go at the
/// next sweep. PROTOCOL#ends-at-once.
fn put_own(queue: &mut Queue, frame: Frame) {
    if !queue.is_open() {
        return;
    }
    if queue.frames.overflows() {
        metrics::SLOW_CLOSED.add();
        return queue.shut();
    }
    queue.frames.put(frame);
}

/// Outboxes that something was queued in, for the flusher to write out.
#[must_use]
#[derive(Default)]
pub struct Pass(pub(super) Vec<Arc<Outbox>>);

impl Pass {
    /// Writes them out on this thread.
    pub fn flush(self) {
        let mut buffers = Buffers::default();
        self.0.iter().for_each(|outbox| outbox.flush(&mut buffers));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::connection_limits::ConnectionLimits;
    use super::super::limits::Limits;
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    /// What comes at all comes sooner, also on a machine that has much to do.
    pub const PATIENCE: Duration = Duration::from_secs(60);

    /// A link without TLS, and its other end.
    pub fn link() -> (Arc<Link>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let other = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (socket, from) = listener.accept().expect("accepted");
        let socket = Arc::new(socket);
        let connections = Arc::new(ConnectionLimits::new(&Limits::for_machine(1024, 65_530)));
        let ticket = connections.admit(from.ip(), &socket).expect("the first");
        (Link::new(Channel::bare(socket).expect("a socket"), ticket), other)
    }

    impl Outbox {
        /// What it shares with no other.
        pub fn quotas(&self) -> &Quotas {
            &self.quotas
        }
    }

    /// An outbox of this limit.
    pub fn outbox_on(link: Arc<Link>, limit: usize) -> Arc<Outbox> {
        Arc::new(Outbox::new(link, limit, Arc::default()))
    }

    /// Whoever wants to queue or to send something waits until this is dropped.
    pub fn hold(outbox: &Outbox) -> impl Sized {
        lock(&outbox.queue)
    }

    /// PROTOCOL#life.
    #[test]
    fn long_frames_hold_up_no_control_line() {
        let (link, _other) = link();
        let outbox = outbox_on(link, 1 << 20);
        let mut queue = lock(&outbox.queue);
        for _ in 0..2 {
            queue.frames.put(Frame::line(vec![b'x'; 2 * SLOW_BATCH]));
        }
        queue.control.ack = Some(1);
        queue.control.pongs = 1;
        let mut plain = Vec::new();
        queue.next_batch(&mut plain, SLOW_BATCH);
        let ends =
            [ServerMessage::Ack(Received { received: 1 }).encode(), ServerMessage::Pong.encode()].concat();
        assert!(plain.len() > 2 * SLOW_BATCH && plain.ends_with(&ends));
    }

    #[test]
    fn what_the_server_itself_says_to_one_who_never_reads_is_bounded_too() {
        let (link, _deaf) = link();
        let outbox = outbox_on(link, 1024);
        // Some megabytes are the kernel's; long before the write times out, the rest is too much.
        let lines = (0..1000).take_while(|_| {
            outbox.send(Frame::line(vec![b'x'; 64 * 1024]));
            outbox.is_open()
        });
        let taken = lines.count();
        assert!(taken < 1000, "{taken} lines of 64 KiB wait for one client");
    }

    #[test]
    fn a_writer_of_the_former_link_touches_nothing_of_the_next() {
        const LINE: usize = 64 * 1024;
        for _ in 0..20 {
            let (former, _deaf) = link();
            let outbox = outbox_on(former.clone(), 1 << 30);
            let line = |n: u8| Frame::line(vec![n; LINE]);
            // More than the kernel takes: a writer waits, and the rest waits for it.
            (0..200).for_each(|n| outbox.send(line(n)));
            let (next, mut other) = link();
            let claim = outbox.claim(0).expect("nothing is forgotten");
            assert!(!outbox.serves(&former) && outbox.attach(next.clone(), claim, 0, Vec::new()));
            assert!(!outbox.attach(former, claim - 1, 0, Vec::new()), "an older claim");
            outbox.send(line(200));
            let mut got = vec![0; LINE];
            for n in 0..=200 {
                other.read_exact(&mut got).expect("the next link stays open");
                assert!(got.iter().all(|byte| *byte == n), "{n}");
            }
            assert!(outbox.serves(&next));
        }
    }

    /// PROTOCOL#ends-at-once.
    #[test]
    fn farewell_that_is_read_slowly_ends_in_time() {
        let (link, far) = link();
        let outbox = outbox_on(link.clone(), 1 << 30);
        // More than the kernel takes: a writer waits for the client.
        const LINE: usize = 64 * 1024;
        (0..400).for_each(|_| outbox.send(Frame::line(vec![b'x'; LINE])));
        outbox.end(None);
        assert!(outbox.says_farewell(&link) && outbox.take_end().is_some() && outbox.take_end().is_none());
        let until = lock(&outbox.queue).ending.expect("it is ending");
        assert!(until <= Instant::now() + FAREWELL);
        // Its reader has ended first, and whoever ends it once more gives it no more time.
        outbox.detach(&link);
        assert!(outbox.says_farewell(&link));
        lock(&outbox.queue).ending = Some(Instant::now());
        outbox.end(None);
        let got = rest(&far).len();
        assert!(got < 400 * LINE, "all of it went out, in its own time");
        assert!(!outbox.says_farewell(&link) && lock(&outbox.queue).frames.is_idle());
    }

    fn relay(outbox: &Arc<Outbox>, packet: Frame) -> bool {
        let queued = outbox.put_packet(packet).is_ok();
        outbox.flush(&mut Buffers::default());
        queued
    }

    pub fn line(text: &str) -> Frame {
        Frame::line(text.as_bytes())
    }

    /// What comes next.
    pub fn next(mut far: &TcpStream, length: usize) -> String {
        far.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut got = vec![0; length];
        far.read_exact(&mut got).expect("it comes");
        String::from_utf8(got).expect("text")
    }

    /// What comes until the connection ends.
    fn rest(mut far: &TcpStream) -> String {
        far.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut got = String::new();
        far.read_to_string(&mut got).expect("it ends");
        got
    }

    pub fn has_come(far: &TcpStream) -> bool {
        far.set_nonblocking(true).expect("a socket");
        let seen = far.peek(&mut [0]).is_ok();
        far.set_nonblocking(false).expect("a socket");
        seen
    }

    /// PROTOCOL#ends-at-once.
    #[test]
    fn who_ends_a_session_lets_its_lines_go_out_and_takes_nothing_after_them() {
        let (link, far) = link();
        link.ticket.logged_in();
        let outbox = outbox_on(link.clone(), 1024);
        assert!(outbox.is_open() && outbox.serves(&link));
        assert_eq!(outbox.deliver(line("one "), None, None, None), Queued::Yes);
        let mut pass = Pass::default();
        outbox.queue(line("two "), &mut pass);
        outbox.end(None);
        assert!(!outbox.is_open() && !outbox.serves(&link));
        assert_eq!(outbox.deliver(line("late"), None, None, None), Queued::Gone);
        assert!(!relay(&outbox, Frame::packet(b"late".to_vec(), b"")) && outbox.claim(0).is_none());
        outbox.send(line("late"));
        assert_eq!(rest(&far), "one two ");
        assert!(!outbox.is_open() && link.ticket.is_waiting());
    }

    /// PROTOCOL#ends-at-once.
    #[test]
    fn a_session_without_a_connection_ends_at_once() {
        let (former, _far) = link();
        let outbox = outbox_on(former.clone(), 1024);
        let claim = outbox.claim(0).expect("nothing is forgotten");
        outbox.send(line("waits"));
        assert!(outbox.is_open());
        outbox.end(None);
        assert!(lock(&outbox.queue).frames.is_idle(), "nothing is held for it");
        let (next, far) = link();
        assert!(
            !outbox.is_open()
                && !outbox.attach(next.clone(), claim, 0, Vec::new())
                && outbox.claim(0).is_none()
        );
        next.channel.close();
        assert_eq!(rest(&far), "");
    }

    /// PROTOCOL#taken-over, PROTOCOL#no-session.
    #[test]
    fn a_session_hears_its_own_link_alone_and_goes_on_from_where_it_can() {
        let (former, _far) = link();
        let outbox = outbox_on(former.clone(), 1024);
        outbox.send(line("one "));
        assert!(outbox.claim(2).is_none() && outbox.serves(&former), "nothing has changed");
        let claim = outbox.claim(0).expect("nothing is forgotten");
        assert!(outbox.is_open() && !outbox.serves(&former));
        let (current, far) = link();
        assert!(outbox.attach(current.clone(), claim, 0, Vec::new()));
        assert_eq!(next(&far, 4), "one ");
        // The former one's thread looks up late.
        outbox.detach(&former);
        outbox.give_up(&former);
        assert_eq!(outbox.acknowledge(&former, 99), Ok(false));
        assert!(outbox.serves(&current));
        assert_eq!(outbox.acknowledge(&current, 99), Err(FalseAck));
        assert_eq!(outbox.acknowledge(&current, 1), Ok(false));
        outbox.detach(&current);
        assert_eq!(rest(&far), "");
        assert!(outbox.is_open() && !outbox.serves(&current));
        assert_eq!(outbox.deliver(line("two "), None, None, None), Queued::Yes);
        assert!(outbox.claim(0).is_none(), "what was acknowledged is gone");
        let (earlier, later) = (outbox.claim(1).expect("in reach"), outbox.claim(1).expect("in reach"));
        let (last, far) = link();
        for (claim, received) in [(earlier, 1), (later, 0), (later, 2)] {
            assert!(!outbox.attach(last.clone(), claim, received, Vec::new()) && !outbox.serves(&last));
        }
        assert!(outbox.attach(last.clone(), later, 1, Vec::new()) && outbox.serves(&last));
        assert_eq!(next(&far, 4), "two ");
        outbox.give_up(&last);
        assert!(outbox.is_open() && !outbox.serves(&last));
        assert!(relay(&outbox, Frame::packet(b"waits".to_vec(), b"")) && outbox.packets() == 1);
    }

    #[test]
    fn a_connection_that_breaks_leaves_the_session_and_all_that_was_not_acknowledged() {
        let (former, far) = link();
        let outbox = outbox_on(former.clone(), 1 << 30);
        drop(far);
        let sent = (0..1000).take_while(|_| {
            outbox.send(line("again "));
            outbox.serves(&former)
        });
        let sent = sent.count() + 1;
        assert!(sent < 1000 && outbox.is_open());
        let claim = outbox.claim(0).expect("nothing is forgotten");
        let (current, far) = link();
        assert!(outbox.attach(current, claim, 0, Vec::new()));
        assert_eq!(next(&far, 6 * sent), "again ".repeat(sent));
    }

    #[test]
    fn one_who_is_told_more_than_fits_is_full_and_takes_again_when_it_was_taken_in() {
        let (link, far) = link();
        let outbox = outbox_on(link.clone(), 10);
        outbox.send(line("a"));
        assert_eq!((next(&far, 1).as_str(), outbox.acknowledge(&link, 1)), ("a", Ok(false)));
        assert_eq!(
            outbox.deliver(line("0123456789"), None, None, None),
            Queued::Yes,
            "just as much as may wait"
        );
        assert_eq!(outbox.deliver(line("c"), None, None, None), Queued::Full);
        assert_eq!(next(&far, 10), "0123456789");
        assert_eq!(outbox.acknowledge(&link, 2), Ok(false));
        assert_eq!(outbox.deliver(line("c"), None, None, None), Queued::Yes);
        assert_eq!(next(&far, 1), "c");
    }
}
