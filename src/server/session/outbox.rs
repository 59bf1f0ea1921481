//! The exchange of a session with its client: the frames that it sends ([`io`](super::io)), and the frames that it
//! receives.
//!
//! LOCK ORDER: a user's mailbox (held during disk access, taken by a thread without locks) → the registry's sessions.
//! `inbound` → what a session has granted → the registry's changes → its sessions → a session's keys and tokens (a
//! former session's first) → `io` → leaves (TLS, quotas, rates, connection limits, the flusher's lists, farewells,
//! accounts, the index of all mailboxes, the audit log). Two `io` or two `inbound` are never held together. Why this is
//! enough:
//!
//! 1. A client's frame is counted and handled together, under `inbound`, if its link serves the session when `inbound`
//!    is taken. No holder of `inbound` waits for a client or the disk (a message that uses the disk does so before), so
//!    a resumption gets `inbound` soon after it has cut the link.
//! 2. Only the holder of the *baton* (`Io::writing`) encrypts for the link. Cutting the link frees the baton in the
//!    same step, under `io`.
//! 3. After every write the holder checks whether its link is still the current one; if not, it touches nothing
//!    further.
//! 4. [`Outbox::attach`] cuts the former link, then takes `inbound` and reads the position, and sets the new link and
//!    its first line before it releases `inbound`: no frame of the former link is counted after the position. A newer
//!    attempt ends an older one.
//! 5. Control lines belong to a link and end with it; counted frames belong to the session.
//! 6. A frame keeps its number, and is freed only when the client acknowledges it, or when the session is full or ends.
//! 7. Nothing is queued after [`Outbox::close`], and it succeeds once.
//! 8. A session ends only in the registry ([`end`](crate::server::registry::Registry::end) or a newer login), under the
//!    lock of its changes. Delivery may fill an outbox, but never ends a session.
//!
//! Only a writer thread waits for a client to read: when a socket is full, the baton and the rest of the batch go to
//! one, which ends when it has caught up. A connection that accepts nothing for 30 s is closed; after the end of its
//! session, it is closed after 30 s in any case.

use super::frames::{self, Frame};
use super::io::{Io, Link, State};
use crate::name::Username;
use crate::protocol::{Control, Lost, ServerMessage, WrappedKey};
use crate::server::limits::{FAREWELL, WRITE};
use crate::server::quotas::{Permit, Quotas, count};
use crate::server::rates::Bucket;
use crate::server::threads::thread;
use crate::sync::lock;
use crate::wire::window::{FalseAck, Received};
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

/// Bytes that are encrypted and sent together: four TLS records. With one record a call, system calls took a third of
/// the time of sending a broadcast.
const BATCH: usize = 64 * 1024;
/// The same for a slow client, for which the encrypted batch waits in memory. Each batch has 30 s to be sent.
const SLOW_BATCH: usize = 16 * 1024;
/// Batches (1 MiB of lines) after which the holder gives the baton to a writer thread, because other clients wait for
/// the holder.
const MAX_BATCHES: usize = 16;
/// Stack of a writer thread, in bytes: it only encrypts and writes.
const WRITER_STACK: usize = 128 * 1024;

/// The state of the frames that the server receives.
pub struct Inbound {
    /// The number of frames since the login.
    pub received: Received,
    /// The account's rate, which its sessions share.
    pub bucket: Arc<Mutex<Bucket>>,
}

/// The next batch, before and after encryption. A thread that sends much uses the same buffers for every batch.
#[derive(Default)]
pub struct Buffers {
    plain: Vec<u8>,
    wire: Vec<u8>,
}

/// The exchange of a session with its client.
pub struct Outbox {
    io: Mutex<Io<Outbox>>,
    inbound: Mutex<Inbound>,
    quotas: Arc<Quotas>,
}

/// The receipt of a message to this client; its sender is notified if the message is lost.
pub type Receipt = frames::Receipt<Outbox>;

/// The condition under which a session ends.
#[derive(Clone, Copy)]
pub enum Condition<'a> {
    /// Unconditionally.
    Always,
    /// If it has this link.
    On(&'a Arc<Link>),
    /// If it has had no link since then.
    DetachedSince(Instant),
}

/// The result of [`Outbox::attach`].
#[derive(Debug, PartialEq, Eq)]
pub enum Attached {
    /// The session continues on this link.
    Yes,
    /// The session has ended, or cannot continue after so few or so many frames.
    NoSession,
    /// The former connection, which is closed, is still busy.
    Busy,
    /// A newer attempt has begun.
    Overtaken,
}

/// The result of [`Outbox::deliver`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queued {
    /// It is queued or sent. It may still be lost.
    Yes,
    /// Too much waits already.
    Full,
    /// The session has ended, or has granted no such packet.
    Gone,
}

impl Outbox {
    /// For a new session of a client at this address, whose link is attached next. `limit` is in bytes of lines: see
    /// [`Frames::takes`](super::frames::Frames::takes).
    pub fn new(limit: usize, bucket: Arc<Mutex<Bucket>>, quotas: Arc<Quotas>, address: IpAddr) -> Outbox {
        let inbound = Inbound { received: Received::default(), bucket };
        Outbox { io: Mutex::new(Io::new(limit, address)), inbound: Mutex::new(inbound), quotas }
    }

    /// Queues one message of the server's own and sends what can be sent now.
    pub fn send(self: &Arc<Outbox>, frame: Frame) {
        self.run_baton(self.put(frame), &mut Buffers::default());
    }

    /// Sends a control line, if the session has this link.
    pub fn control(self: &Arc<Outbox>, link: &Arc<Link>, change: impl FnOnce(&mut Control)) {
        let mut io = lock(&self.io);
        if io.is_open() && io.is_on(link) {
            change(&mut io.control);
            self.run_baton(io, &mut Buffers::default());
        }
    }

    /// Queues one message of the server's own. True if the caller has to [flush](Outbox::flush) it later.
    pub fn defer(&self, frame: Frame) -> bool {
        !std::mem::replace(&mut self.put(frame).deferred, true)
    }

    /// Queues one message of the server's own, to be flushed with the list.
    pub fn queue(self: &Arc<Outbox>, frame: Frame, list: &mut FlushList) {
        self.list(self.put(frame), list);
    }

    /// Queues a message of the server's own. If these no longer fit, the session is [full](State::Full), and the next
    /// sweep ends it. PROTOCOL#ends-at-once.
    fn put(&self, frame: Frame) -> MutexGuard<'_, Io<Outbox>> {
        let mut io = lock(&self.io);
        if io.is_open() && io.frames.overflows() {
            count(&self.quotas.slow_closed);
            io.stop(State::Full);
        }
        if io.is_open() {
            io.frames.put(frame);
        }
        io
    }

    /// Queues one line from another client, to be flushed with the list, unless too much waits already. An envelope has
    /// its recipient's own wrapped key, and perhaps a receipt.
    pub fn deliver(
        self: &Arc<Outbox>,
        frame: Frame,
        key: Option<(&WrappedKey, Option<Receipt>)>,
        list: &mut FlushList,
    ) -> Queued {
        let mut io = lock(&self.io);
        if !io.is_open() {
            return Queued::Gone;
        }
        if !io.frames.takes(&frame) {
            return Queued::Full;
        }
        match key {
            Some((key, receipt)) => io.frames.put_envelope(frame, key, receipt),
            None => io.frames.put(frame),
        }
        self.list(io, list);
        Queued::Yes
    }

    /// Queues a packet behind all lines; `packet` makes it, only if there is room. The caller [flushes](Outbox::flush)
    /// when it holds no lock.
    pub fn put_packet(&self, packet: impl FnOnce() -> Frame) -> Queued {
        let mut io = lock(&self.io);
        if !io.is_open() {
            return Queued::Gone;
        }
        if !io.frames.has_packet_room(&self.quotas.packets) {
            return Queued::Full;
        }
        io.frames.put_packet(packet(), &self.quotas.packets);
        Queued::Yes
    }

    /// How many packets count against what may be granted: see [`Frames::packets`](super::frames::Frames::packets).
    pub fn packets(&self) -> u32 {
        u32::try_from(lock(&self.io).frames.packets()).unwrap_or(u32::MAX)
    }

    /// Locks the state of received frames. No thread waits while it holds this lock.
    pub fn inbound(&self) -> MutexGuard<'_, Inbound> {
        lock(&self.inbound)
    }

    /// The last address of the client.
    pub fn address(&self) -> IpAddr {
        lock(&self.io).address
    }

    /// Whether the server's own messages no longer fit, and the session has not been ended yet.
    pub fn is_full(&self) -> bool {
        matches!(lock(&self.io).state, State::Full)
    }

    /// Whether the session continues, and on this connection.
    pub fn serves(&self, link: &Arc<Link>) -> bool {
        let io = lock(&self.io);
        io.is_open() && io.is_on(link)
    }

    /// Since when the session has no connection; `None` if it has one, or has ended, or its login has not attached the
    /// first one yet.
    pub fn detached(&self) -> Option<Instant> {
        let io = lock(&self.io);
        let is_detached = io.attempts > 0 && io.link.is_none();
        (is_detached && matches!(io.state, State::Open | State::Full)).then_some(io.since)
    }

    /// Whether the session has ended and `link` is still sent the rest.
    pub fn says_farewell(&self, link: &Arc<Link>) -> bool {
        let io = lock(&self.io);
        !io.is_open() && io.is_on(link)
    }

    /// If the session has ended, drops the frames that still wait for its client, and closes the connection.
    pub fn end_farewell(&self) {
        let mut io = lock(&self.io);
        if matches!(io.state, State::Ending(_)) {
            io.stop(State::Over);
        }
    }

    /// Frees the frames that the client of `link` has received, unless the session has another link. True if an `ack`
    /// was due for them.
    ///
    /// # Errors
    /// [`FalseAck`], as [`Frames::acknowledge`](super::frames::Frames::acknowledge).
    pub fn acknowledge(&self, link: &Arc<Link>, received: u64) -> Result<bool, FalseAck> {
        let mut io = lock(&self.io);
        if !io.is_on(link) {
            return Ok(false);
        }
        io.frames.acknowledge(received)
    }

    /// Begins or continues on `link`, whose client has received `received` frames since the login. Its first line is
    /// `hello` of the number of frames that the server has received. Waits for the former connection's thread for at
    /// most `patience`. The last of several attempts wins. PROTOCOL#taken-over.
    pub fn attach(
        self: &Arc<Outbox>,
        link: Arc<Link>,
        received: u64,
        patience: Duration,
        hello: impl FnOnce(u64) -> Vec<u8>,
    ) -> Attached {
        let mut io = lock(&self.io);
        if !io.is_open() || !io.frames.reaches(received) {
            return Attached::NoSession;
        }
        io.cut();
        io.attempts += 1;
        let (attempt, until) = (io.attempts, Instant::now() + patience);
        drop(io);
        loop {
            // The holder of `inbound` soon sees that its link was cut.
            let inbound = match self.inbound.try_lock() {
                Err(TryLockError::WouldBlock) => None,
                Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
                Ok(inbound) => Some(inbound),
            };
            let mut io = lock(&self.io);
            if io.attempts != attempt {
                return Attached::Overtaken;
            }
            if !io.is_open() {
                return Attached::NoSession;
            }
            if let Some(mut inbound) = inbound {
                if !io.frames.resume(received) {
                    return Attached::NoSession;
                }
                link.ticket.logged_in();
                io.control.first = Some(hello(inbound.received.position()));
                (io.address, io.link) = (link.ticket.address, Some(link));
                drop(inbound);
                self.run_baton(io, &mut Buffers::default());
                return Attached::Yes;
            }
            drop(io);
            if Instant::now() >= until {
                return Attached::Busy;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Closes the connection; the client can resume the session.
    pub fn disconnect(&self) {
        let mut io = lock(&self.io);
        if io.is_open() {
            io.cut();
        }
    }

    /// The reader of `link` has ended, perhaps before a login has attached it: closes the connection, unless the
    /// farewell is still being sent.
    pub fn detach(&self, link: &Arc<Link>) {
        let mut io = lock(&self.io);
        io.attempts = io.attempts.max(1);
        if io.is_open() && io.is_on(link) {
            io.cut();
        }
    }

    /// Closes the session of the user `name` if the condition holds. Nothing further is queued. If the session has a
    /// connection, queued frames are still sent, then `last`. Each sender that is still in the same session is notified
    /// of its messages that the client has not acknowledged. Returns the client's last address to exactly one caller,
    /// who flushes the list when it holds no lock. PROTOCOL#lost.
    pub fn close(
        self: &Arc<Outbox>,
        name: &Username,
        condition: Condition<'_>,
        last: Option<&ServerMessage>,
        list: &mut FlushList,
    ) -> Option<IpAddr> {
        let mut io = lock(&self.io);
        let is_met = match condition {
            Condition::Always => true,
            Condition::On(link) => io.is_on(link),
            Condition::DetachedSince(since) => io.link.is_none() && io.since == since,
        };
        if !is_met || !matches!(io.state, State::Open | State::Full) {
            return None;
        }
        let (address, receipts) = (io.address, io.frames.take_receipts());
        if let Some(link) = &io.link {
            // Until the client closes it, new connections may evict it.
            link.ticket.logged_out();
            io.state = State::Ending(Instant::now() + FAREWELL);
            io.frames.end();
            // Nothing follows the last line.
            io.control = Control { first: io.control.first.take(), ..Control::default() };
            if let Some(message) = last {
                io.frames.put(Frame::message(message));
            }
        } else {
            io.stop(State::Over);
        }
        self.list(io, list);
        for Receipt { sender, id } in receipts {
            if let Some(sender) = sender.upgrade() {
                let lost = Lost { id, name: name.clone() };
                sender.queue(Frame::message(&ServerMessage::Lost(lost)), list);
            }
        }
        Some(address)
    }

    /// Puts the outbox into the list, unless it has no link, is listed already, or a thread writes.
    fn list(self: &Arc<Outbox>, mut io: MutexGuard<'_, Io<Outbox>>, list: &mut FlushList) {
        if !io.writing && io.link.is_some() && !std::mem::replace(&mut io.listed, true) {
            drop(io);
            list.0.push(self.clone());
        }
    }

    /// Sends queued frames and TLS's own records, unless another thread does.
    pub fn flush(self: &Arc<Outbox>, buffers: &mut Buffers) {
        let mut io = lock(&self.io);
        (io.listed, io.deferred) = (false, false);
        self.run_baton(io, buffers);
    }

    /// The deadline for the next write of a writer thread; `None` if it has lost its link.
    fn write_until(&self, link: &Arc<Link>) -> Option<Instant> {
        let (io, usual) = (lock(&self.io), Instant::now() + WRITE);
        let until = if let State::Ending(end) = io.state { end.min(usual) } else { usual };
        io.is_on(link).then_some(until)
    }

    /// Takes the baton if it is free, and sends.
    fn run_baton<'a>(self: &'a Arc<Outbox>, mut io: MutexGuard<'a, Io<Outbox>>, buffers: &mut Buffers) {
        let Buffers { plain, wire } = buffers;
        let Some(link) = io.link.clone().filter(|_| !io.writing) else { return };
        io.writing = true;
        for batches in 1.. {
            io.next_batch(plain, BATCH);
            drop(io);
            wire.clear();
            let sent = link.channel.encrypt(plain, wire).and_then(|()| link.channel.send_now(wire));
            if let Ok(count) = sent
                && (count < wire.len() || batches >= MAX_BATCHES)
            {
                return self.hand_over(link, wire.split_off(count));
            }
            let Some(next) = self.after_write(&link, sent.map(drop)) else { return };
            io = next;
        }
    }

    /// The step of a baton's holder after a write to `link`. `None` if it is done: nothing is left to send, the link is
    /// broken, or the session has another one.
    fn after_write(&self, link: &Arc<Link>, sent: io::Result<()>) -> Option<MutexGuard<'_, Io<Outbox>>> {
        let mut io = lock(&self.io);
        if !io.is_on(link) {
            return None;
        }
        if let Err(error) = sent {
            if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) {
                count(&self.quotas.slow_closed);
            }
            io.broken();
            return None;
        }
        (!io.release_baton()).then_some(io)
    }

    /// Gives the baton and the rest of a batch to a writer thread for this link.
    fn hand_over(self: &Arc<Outbox>, link: Arc<Link>, rest: Vec<u8>) {
        let (me, its) = (self.clone(), link.clone());
        let started = self.quotas.writers.take_within(1).is_some_and(|permit| {
            thread("writer", WRITER_STACK, move || me.write_out(&its, rest, permit)).is_ok()
        });
        if !started {
            self.after_write(&link, Err(ErrorKind::TimedOut.into()));
        }
    }

    /// The writer thread: waits for the client and sends until it has caught up. Each [`SLOW_BATCH`] has 30 s. The
    /// system accepts it when half of the bytes that it holds are sent, so a client that takes 4 KiB a second is not
    /// dropped. PROTOCOL#slow-client.
    fn write_out(self: &Arc<Outbox>, link: &Arc<Link>, mut wire: Vec<u8>, _permit: Permit) {
        let mut plain = Vec::new();
        loop {
            let encrypted = link.channel.encrypt(&plain, &mut wire);
            // While the thread waits for the client, keep only the bytes in progress.
            plain = Vec::new();
            let sent = encrypted.and_then(|()| {
                wire.chunks(SLOW_BATCH).try_for_each(|some| {
                    let until = self.write_until(link).ok_or(io::Error::from(ErrorKind::NotConnected))?;
                    link.channel.send_by(some, until)
                })
            });
            let Some(mut io) = self.after_write(link, sent) else { return };
            wire = Vec::new();
            io.next_batch(&mut plain, SLOW_BATCH);
        }
    }
}

/// Outboxes with queued frames that were not flushed yet.
#[must_use]
#[derive(Default)]
pub struct FlushList(pub(super) Vec<Arc<Outbox>>);

impl FlushList {
    /// Flushes them on this thread.
    pub fn flush(self) {
        let mut buffers = Buffers::default();
        self.0.iter().for_each(|outbox| outbox.flush(&mut buffers));
    }
}

#[cfg(test)]
pub(in crate::server) mod tests {
    use super::*;
    use crate::server::connection_limits::ConnectionLimits;
    use crate::server::limits::{Limits, MAX_WRITERS};
    use crate::wire::tls::Channel;
    use std::io::{BufRead, BufReader, Read};
    use std::net::{TcpListener, TcpStream};
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    /// Longer than anything takes, even on a busy machine.
    pub const PATIENCE: Duration = Duration::from_secs(60);

    /// A link without TLS, and its other end.
    pub fn link() -> (Arc<Link>, TcpStream) {
        link_from([127, 0, 0, 1].into())
    }

    /// The same, from this address.
    pub fn link_from(address: IpAddr) -> (Arc<Link>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let other = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (socket, _) = listener.accept().expect("accepted");
        let socket = Arc::new(socket);
        let connections = Arc::new(ConnectionLimits::new(&Limits::for_machine(1024, 65_530)));
        let (ticket, _) = connections.admit(address, socket.clone()).expect("the first");
        let channel = Channel::bare(socket).expect("a socket");
        (Arc::new(Link { channel, ticket }), other)
    }

    /// An outbox with this limit, on this link.
    pub fn outbox_on(link: Arc<Link>, limit: usize) -> Arc<Outbox> {
        let outbox =
            Arc::new(Outbox::new(limit, Bucket::of_account(100), Arc::default(), link.ticket.address));
        assert_eq!(attach(&outbox, &link, 0), Attached::Yes);
        outbox
    }

    /// Attaches a link, without a first line.
    pub fn attach(outbox: &Arc<Outbox>, link: &Arc<Link>, received: u64) -> Attached {
        outbox.attach(link.clone(), received, Duration::from_millis(1), |_| Vec::new())
    }

    impl Outbox {
        /// Whether the session continues.
        pub fn is_open(&self) -> bool {
            lock(&self.io).is_open()
        }

        /// As if a thread were writing.
        pub fn keep_writing(&self) {
            lock(&self.io).writing = true;
        }

        /// Its quotas, which no other outbox shares.
        pub fn quotas(&self) -> &Quotas {
            &self.quotas
        }
    }

    /// Ends the session; false if it had ended before, or the condition does not hold.
    fn end_if(outbox: &Arc<Outbox>, condition: Condition<'_>) -> bool {
        let mut list = FlushList::default();
        let has_ended = outbox.close(&"alice".parse().expect("a name"), condition, None, &mut list).is_some();
        list.flush();
        has_ended
    }

    fn end(outbox: &Arc<Outbox>) -> bool {
        end_if(outbox, Condition::Always)
    }

    /// Sends a line of another client at once.
    fn deliver(outbox: &Arc<Outbox>, frame: Frame) -> Queued {
        let mut list = FlushList::default();
        let queued = outbox.deliver(frame, None, &mut list);
        list.flush();
        queued
    }

    /// Blocks all queueing and sending until this is dropped.
    pub fn hold(outbox: &Outbox) -> impl Sized {
        lock(&outbox.io)
    }

    /// PROTOCOL#life.
    #[test]
    fn long_frames_hold_up_no_control_line() {
        let (link, _other) = link();
        let outbox = outbox_on(link, 1 << 20);
        let mut io = lock(&outbox.io);
        for _ in 0..2 {
            io.frames.put(Frame::line(vec![b'x'; 2 * SLOW_BATCH]));
        }
        io.control.ack = Some(1);
        io.control.pongs = 1;
        let mut plain = Vec::new();
        io.next_batch(&mut plain, SLOW_BATCH);
        let ack = ServerMessage::Ack(crate::protocol::Received { received: 1 });
        let ends = [ack.encode(), ServerMessage::Pong.encode()].concat();
        assert!(plain.len() > 2 * SLOW_BATCH && plain.ends_with(&ends));
    }

    #[test]
    fn own_messages_to_a_client_that_never_reads_are_bounded() {
        let (link, _deaf) = link();
        let outbox = outbox_on(link, 1024);
        // The kernel buffers some megabytes; the rest exceeds the limit long before the write times out.
        let lines = (0..1000).take_while(|_| {
            outbox.send(Frame::line(vec![b'x'; 64 * 1024]));
            outbox.is_open()
        });
        let taken = lines.count();
        assert!(taken < 1000, "{taken} lines of 64 KiB wait for one client");
    }

    /// PROTOCOL#slow-client.
    #[test]
    fn slow_client_is_closed_if_too_many_others_are_slow() {
        let (link, _deaf) = link();
        let outbox = outbox_on(link.clone(), 1 << 30);
        let _others = outbox.quotas.writers.take(MAX_WRITERS);
        let lines = (0..1000).take_while(|_| {
            outbox.send(Frame::line(vec![b'x'; 64 * 1024]));
            outbox.serves(&link)
        });
        assert!(lines.count() < 1000 && outbox.is_open());
        assert!(outbox.quotas.counts().contains(&("slow_closed", 1)));
    }

    #[test]
    fn fast_reader_does_not_keep_the_sending_thread() {
        // In one of these rounds the client is likely to take everything at once.
        for _ in 0..50 {
            let (link, far) = link();
            let outbox = outbox_on(link.clone(), 1 << 30);
            // Without a writer that could continue, the connection is closed.
            let _others = outbox.quotas.writers.take(MAX_WRITERS);
            std::thread::scope(|scope| {
                scope.spawn(|| std::io::copy(&mut &far, &mut std::io::sink()));
                let mut list = FlushList::default();
                (0..=MAX_BATCHES)
                    .for_each(|_| outbox.queue(Frame::line(vec![b'x'; BATCH / 2 + 1]), &mut list));
                list.flush();
                let is_kept = outbox.serves(&link);
                outbox.disconnect();
                assert!(!is_kept);
            });
        }
    }

    #[test]
    fn writer_of_the_former_link_touches_nothing_of_the_next() {
        const LINE: usize = 64 * 1024;
        for _ in 0..20 {
            let (former, _deaf) = link();
            let outbox = outbox_on(former.clone(), 1 << 30);
            let line = |n: u8| Frame::line(vec![n; LINE]);
            // More than the kernel buffers: a writer waits, and the rest waits for it.
            (0..200).for_each(|n| outbox.send(line(n)));
            // Control lines of that link wait too, and end with it.
            outbox.control(&former, |control| (control.ack, control.pongs) = (Some(1), 1));
            let (next, mut other) = link();
            assert_eq!(attach(&outbox, &next, 0), Attached::Yes);
            assert!(!outbox.serves(&former));
            outbox.send(line(200));
            let mut got = vec![0; LINE];
            for n in 0..=200 {
                other.read_exact(&mut got).expect("the next link stays open");
                assert!(got.iter().all(|byte| *byte == n), "{n}");
            }
            assert!(outbox.serves(&next));
        }
    }

    /// PROTOCOL#taken-over.
    #[test]
    fn sender_on_the_former_link_leaves_the_next_alone() {
        const READ: usize = 10;
        let (outbox, sent, is_over) =
            (outbox_on(link().0, 1 << 30), AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let end = Instant::now() + PATIENCE;
                while !is_over.load(Ordering::SeqCst) && Instant::now() < end {
                    outbox.send(line("x"));
                    sent.fetch_add(1, Ordering::SeqCst);
                }
            });
            let is_served = |round: usize| {
                let (link, far) = link();
                assert_eq!(attach(&outbox, &link, (round * READ) as u64), Attached::Yes);
                // The thread that wrote to the former link has returned, and has sent again.
                let before = sent.load(Ordering::SeqCst);
                until(|| sent.load(Ordering::SeqCst) > before + 1);
                next(&far, READ).len() == READ && outbox.serves(&link)
            };
            let served = (0..200).take_while(|round| is_served(*round)).count();
            is_over.store(true, Ordering::SeqCst);
            assert_eq!(served, 200);
        });
    }

    /// PROTOCOL#ends-at-once.
    #[test]
    fn slowly_read_farewell_ends_at_its_deadline() {
        let (link, far) = link();
        let outbox = outbox_on(link.clone(), 1 << 30);
        // More than the kernel buffers: a writer waits for the client.
        const LINE: usize = 64 * 1024;
        (0..400).for_each(|_| outbox.send(Frame::line(vec![b'x'; LINE])));
        assert!(end(&outbox) && !end(&outbox) && outbox.says_farewell(&link));
        let State::Ending(until) = lock(&outbox.io).state else { panic!("it is not ending") };
        assert!(until <= Instant::now() + FAREWELL);
        // Its reader ends first; ending the session again does not extend its time.
        outbox.detach(&link);
        assert!(outbox.says_farewell(&link));
        lock(&outbox.io).state = State::Ending(Instant::now());
        assert!(!end(&outbox));
        let got = rest(&far).len();
        assert!(got < 400 * LINE, "everything was sent, despite the deadline");
        assert!(!outbox.says_farewell(&link) && lock(&outbox.io).frames.is_idle());
    }

    /// PROTOCOL#ends-at-once.
    #[test]
    fn farewell_follows_all_lines_and_nothing_follows_it() {
        const LINE: usize = 64 * 1024;
        let (link, far) = link();
        let outbox = outbox_on(link.clone(), 1 << 30);
        // More than the kernel buffers: most of it waits for the client.
        (0..200).for_each(|_| outbox.send(Frame::line(vec![b'x'; LINE])));
        assert_eq!(outbox.put_packet(|| Frame::packet(b"waits".to_vec(), b"")), Queued::Yes);
        let mut list = FlushList::default();
        let name = "alice".parse().expect("name");
        assert!(outbox.close(&name, Condition::Always, Some(&ServerMessage::Ping), &mut list).is_some());
        list.flush();
        outbox.send(line("late"));
        outbox.control(&link, |control| control.pongs = 1);
        assert_eq!(attach(&outbox, &self::link().0, 0), Attached::NoSession);
        outbox.disconnect();
        let (got, last) = (rest(&far), ServerMessage::Ping.encode());
        assert!(got.len() == 200 * LINE + last.len() && got.as_bytes().ends_with(&last));
    }

    fn relay(outbox: &Arc<Outbox>, packet: Frame) -> bool {
        let queued = outbox.put_packet(|| packet) == Queued::Yes;
        outbox.flush(&mut Buffers::default());
        queued
    }

    pub fn line(text: &str) -> Frame {
        Frame::line(text.as_bytes())
    }

    /// Reads the next `length` bytes as text.
    pub fn next(mut far: &TcpStream, length: usize) -> String {
        far.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut got = vec![0; length];
        far.read_exact(&mut got).expect("it comes");
        String::from_utf8(got).expect("text")
    }

    /// Reads until the connection ends.
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
    fn ended_session_sends_its_lines_and_queues_nothing_more() {
        let (link, far) = link();
        link.ticket.logged_in();
        let outbox = outbox_on(link.clone(), 1024);
        assert!(outbox.is_open() && outbox.serves(&link));
        assert_eq!(deliver(&outbox, line("one ")), Queued::Yes);
        let mut list = FlushList::default();
        outbox.queue(line("two "), &mut list);
        assert!(end(&outbox) && !end(&outbox));
        assert!(!outbox.is_open() && !outbox.serves(&link));
        assert_eq!(deliver(&outbox, line("late")), Queued::Gone);
        assert!(!relay(&outbox, Frame::packet(b"late".to_vec(), b"")));
        outbox.send(line("late"));
        assert_eq!(rest(&far), "one two ");
        assert!(link.ticket.is_waiting());
        assert_eq!(attach(&outbox, &link, 0), Attached::NoSession);
    }

    /// PROTOCOL#ends-at-once.
    #[test]
    fn session_without_a_connection_ends_at_once() {
        let (former, _far) = link();
        let outbox = outbox_on(former.clone(), 1024);
        outbox.detach(&former);
        outbox.send(line("waits"));
        assert!(outbox.is_open());
        let since = outbox.detached().expect("it has no connection");
        let (next, far) = link();
        assert_eq!(attach(&outbox, &next, 0), Attached::Yes);
        assert!(!end_if(&outbox, Condition::DetachedSince(since)) && outbox.is_open());
        outbox.detach(&next);
        assert!(!end_if(&outbox, Condition::DetachedSince(since)), "the time starts again");
        let since = outbox.detached().expect("it has no connection");
        assert!(end_if(&outbox, Condition::DetachedSince(since)) && !end(&outbox));
        assert!(lock(&outbox.io).frames.is_idle(), "nothing is held for it");
        assert_eq!(attach(&outbox, &next, 0), Attached::NoSession);
        assert_eq!(rest(&far), "waits");
    }

    /// PROTOCOL#ends-at-once.
    #[test]
    fn full_session_exchanges_nothing_and_ends_once() {
        let (link, far) = link();
        let outbox = outbox_on(link.clone(), 10);
        outbox.detach(&link);
        (0..5).for_each(|_| outbox.send(Frame::line(vec![b'x'; 1 << 20])));
        assert!(outbox.is_full() && !outbox.is_open() && outbox.detached().is_some());
        assert_eq!(deliver(&outbox, line("a")), Queued::Gone);
        assert_eq!(attach(&outbox, &link, 0), Attached::NoSession);
        assert!(end(&outbox) && !end(&outbox) && !outbox.is_full());
        assert_eq!(rest(&far), "");
    }

    /// PROTOCOL#taken-over, PROTOCOL#no-session.
    #[test]
    fn session_serves_its_own_link_alone_and_continues_where_it_can() {
        let (former, _far) = link();
        let outbox = outbox_on(former.clone(), 1024);
        outbox.send(line("one "));
        let (current, far) = link();
        assert_eq!(attach(&outbox, &current, 2), Attached::NoSession);
        assert!(outbox.serves(&former), "nothing has changed");
        assert_eq!(attach(&outbox, &current, 0), Attached::Yes);
        assert!(outbox.is_open() && !outbox.serves(&former));
        assert_eq!(next(&far, 4), "one ");
        // The former link's thread acts before it notices the new link.
        outbox.control(&former, |control| control.pongs = 1);
        outbox.detach(&former);
        assert!(outbox.after_write(&former, Err(ErrorKind::TimedOut.into())).is_none());
        assert_eq!(outbox.acknowledge(&former, 99), Ok(false));
        assert!(outbox.serves(&current));
        assert_eq!(outbox.acknowledge(&current, 99), Err(FalseAck));
        assert_eq!(outbox.acknowledge(&current, 1), Ok(false));
        outbox.detach(&current);
        assert_eq!(rest(&far), "");
        assert!(outbox.is_open() && !outbox.serves(&current));
        assert_eq!(deliver(&outbox, line("two ")), Queued::Yes);
        let (last, far) = link();
        assert_eq!(attach(&outbox, &last, 0), Attached::NoSession, "what was acknowledged is gone");
        assert_eq!(attach(&outbox, &last, 1), Attached::Yes);
        assert_eq!(next(&far, 4), "two ");
        assert!(outbox.after_write(&last, Err(ErrorKind::BrokenPipe.into())).is_none());
        assert!(outbox.is_open() && !outbox.serves(&last));
        assert!(relay(&outbox, Frame::packet(b"waits".to_vec(), b"")) && outbox.packets() == 1);
    }

    /// PROTOCOL#taken-over.
    #[test]
    fn resumption_waits_for_a_frame_in_progress_or_fails() {
        let ((former, _far), (next, far)) = (link(), link());
        let outbox = outbox_on(former.clone(), 1024);
        let mut inbound = outbox.inbound();
        assert_eq!(attach(&outbox, &next, 0), Attached::Busy);
        assert!(!outbox.serves(&former), "the link is cut all the same");
        std::thread::scope(|scope| {
            let resumption = scope.spawn(|| {
                outbox.attach(next.clone(), 0, PATIENCE, |received| received.to_string().into_bytes())
            });
            inbound.received.count(1, 1);
            drop(inbound);
            assert_eq!(resumption.join().expect("whole"), Attached::Yes);
        });
        assert_eq!(self::next(&far, 1), "1");
        let inbound = outbox.inbound();
        std::thread::scope(|scope| {
            let resumption = scope.spawn(|| outbox.attach(former.clone(), 0, PATIENCE, |_| Vec::new()));
            until(|| outbox.detached().is_some());
            assert!(end(&outbox));
            assert_eq!(resumption.join().expect("whole"), Attached::NoSession, "at once");
        });
        drop(inbound);
    }

    pub fn until(condition: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < end, "the condition never occurs");
            std::thread::yield_now();
        }
    }

    /// PROTOCOL#taken-over.
    #[test]
    fn newer_resumption_wins_in_any_order_of_the_lock() {
        let outbox = outbox_on(link().0, 1024);
        for _ in 0..50 {
            let [(older, far), (newer, _far)] = [link(), link()];
            let inbound = outbox.inbound();
            let attempts = lock(&outbox.io).attempts;
            std::thread::scope(|scope| {
                let first = scope.spawn(|| outbox.attach(older.clone(), 0, PATIENCE, |_| b"first".into()));
                until(|| lock(&outbox.io).attempts == attempts + 1);
                let second = scope.spawn(|| outbox.attach(newer.clone(), 0, PATIENCE, |_| Vec::new()));
                until(|| lock(&outbox.io).attempts == attempts + 2);
                drop(inbound);
                assert_eq!(first.join().expect("whole"), Attached::Overtaken);
                assert_eq!(second.join().expect("whole"), Attached::Yes);
            });
            assert!(outbox.serves(&newer) && !has_come(&far));
        }
    }

    /// PROTOCOL#ends-at-once.
    #[test]
    fn session_that_ends_during_a_resumption_keeps_no_link() {
        for _ in 0..200 {
            let outbox = outbox_on(link().0, 1024);
            let (next, far) = link();
            std::thread::scope(|scope| {
                scope.spawn(|| _ = attach(&outbox, &next, 0));
                scope.spawn(|| assert!(end(&outbox)));
            });
            drop(next);
            assert_eq!(rest(&far), "");
            assert!(lock(&outbox.io).link.is_none() && !outbox.is_open());
        }
    }

    #[test]
    fn only_an_open_session_that_had_a_link_is_detached() {
        let (link, _other) = link();
        let outbox =
            Arc::new(Outbox::new(1000, Bucket::of_account(100), Arc::default(), link.ticket.address));
        assert_eq!(outbox.detached(), None, "its login attaches the first link");
        assert_eq!(attach(&outbox, &link, 0), Attached::Yes);
        assert_eq!(outbox.detached(), None);
        lock(&outbox.io).broken();
        assert!(outbox.detached().is_some());
        assert!(end(&outbox));
        assert_eq!(outbox.detached(), None);
    }

    /// PROTOCOL#outlives.
    #[test]
    fn failed_attempts_do_not_prolong_a_session() {
        let (link, _far) = link();
        let outbox = outbox_on(link, 1024);
        outbox.disconnect();
        let since = outbox.detached();
        outbox.disconnect();
        let _inbound = outbox.inbound();
        assert_eq!(attach(&outbox, &self::link().0, 0), Attached::Busy);
        assert!(since.is_some() && outbox.detached() == since);
    }

    /// PROTOCOL#ends-at-once.
    #[test]
    fn farewell_can_be_evicted_and_an_attached_link_cannot() {
        let (link, _far) = link();
        let outbox = outbox_on(link.clone(), 1 << 30);
        assert!(!link.ticket.is_waiting());
        (0..400).for_each(|_| outbox.send(Frame::line(vec![b'x'; 64 * 1024])));
        assert!(end(&outbox) && link.ticket.is_waiting() && outbox.says_farewell(&link));
    }

    /// PROTOCOL#ends-at-once.
    #[test]
    fn former_link_cannot_end_the_session() {
        let (former, _former) = link();
        let outbox = outbox_on(former.clone(), 1024);
        let (current, _far) = link();
        assert_eq!(attach(&outbox, &current, 0), Attached::Yes);
        assert!(!end_if(&outbox, Condition::On(&former)) && outbox.serves(&current));
        assert!(end_if(&outbox, Condition::On(&current)) && !outbox.is_open());
    }

    #[test]
    fn broken_connection_keeps_session_and_unacknowledged_frames() {
        let (former, far) = link();
        let outbox = outbox_on(former.clone(), 1 << 30);
        drop(far);
        let sent = (0..1000).take_while(|_| {
            outbox.send(line("again "));
            outbox.serves(&former)
        });
        let sent = sent.count() + 1;
        assert!(sent < 1000 && outbox.is_open());
        let (current, far) = link();
        assert_eq!(attach(&outbox, &current, 0), Attached::Yes);
        assert_eq!(next(&far, 6 * sent), "again ".repeat(sent));
    }

    #[test]
    fn full_outbox_accepts_again_after_an_ack() {
        let (link, far) = link();
        let outbox = outbox_on(link.clone(), 10);
        outbox.send(line("a"));
        assert_eq!((next(&far, 1).as_str(), outbox.acknowledge(&link, 1)), ("a", Ok(false)));
        assert_eq!(deliver(&outbox, line("0123456789")), Queued::Yes, "exactly the limit");
        assert_eq!(deliver(&outbox, line("c")), Queued::Full);
        assert_eq!(next(&far, 10), "0123456789");
        assert_eq!(outbox.acknowledge(&link, 2), Ok(false));
        assert_eq!(deliver(&outbox, line("c")), Queued::Yes);
        assert_eq!(next(&far, 1), "c");
    }

    /// Reads the lines of one connection, `count` of them or fewer, and returns how many it has read.
    fn read(far: &TcpStream, count: usize, mut take: impl FnMut(&str)) -> usize {
        far.set_read_timeout(Some(Duration::from_millis(5))).expect("a socket");
        let (mut lines, mut line, mut read) = (BufReader::new(far), String::new(), 0);
        while read < count {
            match lines.read_line(&mut line) {
                Ok(1..) if line.ends_with('\n') => {
                    take(line.trim_end());
                    line.clear();
                    read += 1;
                }
                _ => break,
            }
        }
        read
    }

    /// PROTOCOL#frames, PROTOCOL#sent-again, PROTOCOL#taken-over.
    #[test]
    fn two_seconds_of_cuts_lose_repeat_and_reorder_nothing() {
        const SENDERS: usize = 3;
        let outbox = outbox_on(link().0, 64 * 1024);
        let end = Instant::now() + Duration::from_secs(2);
        // The frames received, and everything sent: compared at the end.
        let (counted, total) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
        std::thread::scope(|scope| {
            let (outbox, counted, total) = (&outbox, &counted, &total);
            let senders: Vec<_> = (0..SENDERS)
                .map(|sender| {
                    scope.spawn(move || {
                        let mut sent = 0u64;
                        while Instant::now() < end {
                            let text = format!("{sender} {sent}\n").into_bytes();
                            // Sent at once, flushed with a list, or sent after all lines.
                            let queued = match (sender, sent % 3) {
                                (2, _) => outbox.put_packet(|| Frame::packet(text, b"")) == Queued::Yes,
                                (_, 0) => deliver(outbox, Frame::line(text)) == Queued::Yes,
                                _ => {
                                    let mut list = FlushList::default();
                                    let queued = outbox.deliver(Frame::line(text), None, &mut list);
                                    list.flush();
                                    queued == Queued::Yes
                                }
                            };
                            outbox.flush(&mut Buffers::default());
                            sent += u64::from(queued);
                            if !queued || sent.is_multiple_of(64) {
                                std::thread::sleep(Duration::from_millis(1));
                            }
                        }
                        sent
                    })
                })
                .collect();
            let client = scope.spawn(move || {
                let (mut received, mut acked, mut seen, mut round) = (0u64, 0, [0u64; SENDERS], 0usize);
                let mut connections = 0;
                loop {
                    round += 1;
                    let (link, far) = link();
                    // An abandoned attempt may arrive late.
                    let (late, _far) = self::link();
                    let hello = |position: u64| {
                        assert_eq!(position, counted.load(Ordering::SeqCst), "all handled frames");
                        b"hello\n".to_vec()
                    };
                    if round.is_multiple_of(3) {
                        assert_eq!(outbox.attach(late.clone(), acked, PATIENCE, hello), Attached::Yes);
                    }
                    assert_eq!(outbox.attach(link.clone(), received, PATIENCE, hello), Attached::Yes);
                    acked = received;
                    connections += 1;
                    // The connection's thread.
                    let reader = link.clone();
                    scope.spawn(move || {
                        loop {
                            let mut inbound = outbox.inbound();
                            if !outbox.serves(&reader) {
                                return;
                            }
                            inbound.received.count(1, 1);
                            counted.fetch_add(1, Ordering::SeqCst);
                            drop(inbound);
                            std::thread::yield_now();
                        }
                    });
                    let mut is_first = true;
                    read(&far, round * 37 % 500, |line| {
                        if std::mem::take(&mut is_first) {
                            return assert_eq!(line, "hello");
                        }
                        let (sender, number) = line.split_once(' ').expect("two words");
                        let sender: usize = sender.parse().expect("a number");
                        assert_eq!(number, seen[sender].to_string(), "of {sender}");
                        seen[sender] += 1;
                        received += 1;
                        if received.is_multiple_of(17) {
                            assert!(outbox.acknowledge(&link, received).is_ok());
                            acked = received;
                        }
                    });
                    let is_done = received == total.load(Ordering::SeqCst);
                    if round.is_multiple_of(2) || is_done {
                        outbox.detach(&link);
                    }
                    if is_done {
                        return (seen, connections);
                    }
                }
            });
            let sent: Vec<u64> = senders.into_iter().map(|sender| sender.join().expect("whole")).collect();
            total.store(sent.iter().sum(), Ordering::SeqCst);
            let (seen, connections) = client.join().expect("whole");
            println!("{sent:?} in {connections} connections");
            assert_eq!(sent, seen);
            assert!(connections > 1 && !sent.contains(&0));
        });
    }
}
