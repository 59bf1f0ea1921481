//! What waits to be sent to one client, and who sends it.
//!
//! Invariant: whoever holds the *baton* (`Queue::busy`) alone encrypts and writes, so ciphertext
//! leaves in the order in which it was made. Whoever queues something and finds the baton free
//! takes it; whoever finds it taken leaves at once, because the holder looks at the queue again,
//! under the same lock, before it lays the baton down. Nobody ever waits for a client:
//! when its socket is full, baton and rest go to a writer thread that ends when it has caught up.
//! Packets wait behind all lines. The queue is bounded: when it is full, an envelope is not taken and its sender is told, so that
//! no sender can throw a slow reader off; what the server itself has to say still fits, or the
//! client is closed, as is one that takes nothing for 30 s.

use super::limits::{MAX_WAITING_PACKETS, MAX_WRITERS, Ticket};
use super::{lock, status};
use crate::protocol::MAX_LINE;
use crate::wire::tls::Channel;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Bytes and parts that are encrypted together: one TLS record.
const BATCH_BYTES: usize = 16 * 1024;
const BATCH_PARTS: usize = 64;
/// Batches after which the holder of the baton gives it to a thread of its own: others wait for it.
const MAX_BATCHES: usize = 64;
/// Stack of a writer thread, which only encrypts and writes.
const WRITER_STACK: usize = 128 * 1024;

static WRITERS: AtomicUsize = AtomicUsize::new(0);
/// Bytes of packets in all outboxes.
static WAITING_PACKETS: AtomicUsize = AtomicUsize::new(0);

/// A piece of a line.
#[derive(Clone)]
pub enum Part {
    /// The same bytes for many clients.
    Shared(Arc<[u8]>),
    /// This client's alone.
    Own(Box<[u8]>),
}

impl Part {
    /// What is sent.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Part::Shared(bytes) => bytes,
            Part::Own(bytes) => bytes,
        }
    }
}

impl From<Vec<u8>> for Part {
    fn from(bytes: Vec<u8>) -> Self {
        Part::Own(bytes.into_boxed_slice())
    }
}

#[derive(Default)]
struct Queue {
    parts: VecDeque<Part>,
    bytes: usize,
    /// Packets, which let every line go first: a file does not hold up what people say.
    packets: VecDeque<Vec<u8>>,
    packet_bytes: usize,
    /// The baton: somebody encrypts and writes.
    busy: bool,
    /// On the flusher's list.
    listed: bool,
    /// The connection ends when the queue is empty.
    ending: bool,
    closed: bool,
}

/// The queue of one client.
pub struct Outbox {
    channel: Arc<Channel>,
    limit: usize,
    queue: Mutex<Queue>,
    /// Counted out when the last thread has let go of the socket.
    _ticket: Ticket,
}

/// What became of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queued {
    Yes,
    /// Too much waits already.
    Full,
    /// The client is gone.
    Gone,
}

impl Outbox {
    /// `limit` is in bytes.
    pub fn new(channel: Arc<Channel>, limit: usize, ticket: Ticket) -> Outbox {
        Outbox { channel, limit, queue: Mutex::default(), _ticket: ticket }
    }

    /// Queues one whole line of the server's own and sends what can be sent now.
    pub fn send(self: &Arc<Outbox>, line: impl IntoIterator<Item = Part>) {
        let mut queue = lock(&self.queue);
        self.put_own(&mut queue, line);
        self.take_baton(queue);
    }

    /// Queues one whole line of the server's own for the flusher.
    pub fn queue(self: &Arc<Outbox>, line: impl IntoIterator<Item = Part>, flusher: &Flusher) {
        let mut queue = lock(&self.queue);
        self.put_own(&mut queue, line);
        self.list(queue, flusher);
    }

    /// Queues one whole line from another client, for the flusher or to be sent at once, unless too
    /// much waits already.
    pub fn deliver(
        self: &Arc<Outbox>,
        line: impl IntoIterator<Item = Part>,
        flusher: Option<&Flusher>,
    ) -> Queued {
        let mut queue = lock(&self.queue);
        if queue.closed || queue.ending {
            return Queued::Gone;
        }
        if queue.bytes > self.limit {
            return Queued::Full;
        }
        put(&mut queue, line);
        match flusher {
            Some(flusher) => self.list(queue, flusher),
            None => self.take_baton(queue),
        }
        Queued::Yes
    }

    /// Whether a packet may be queued now. There is room for far more than one client may grant, unless many
    /// do not take what they have granted: then each may have an eighth of what is left.
    pub fn has_room(&self) -> bool {
        let left = MAX_WAITING_PACKETS.saturating_sub(WAITING_PACKETS.load(Ordering::Relaxed));
        lock(&self.queue).packet_bytes <= left / 8
    }

    /// How many packets wait.
    pub fn packets(&self) -> u32 {
        u32::try_from(lock(&self.queue).packets.len()).unwrap_or(u32::MAX)
    }

    /// Queues a packet behind all lines. False if the client is gone.
    pub fn relay(self: &Arc<Outbox>, packet: Vec<u8>) -> bool {
        let mut queue = lock(&self.queue);
        if queue.closed || queue.ending {
            return false;
        }
        count_packet(&mut queue, packet.len());
        queue.packets.push_back(packet);
        self.take_baton(queue);
        true
    }

    /// Whether the client is still served.
    pub fn is_open(&self) -> bool {
        let queue = lock(&self.queue);
        !queue.closed && !queue.ending
    }

    fn list(self: &Arc<Outbox>, mut queue: MutexGuard<'_, Queue>, flusher: &Flusher) {
        if !queue.busy && !queue.closed && !std::mem::replace(&mut queue.listed, true) {
            drop(queue);
            flusher.add(self.clone());
        }
    }

    /// Sends what is queued, and what TLS itself has to say, unless somebody is at it.
    pub fn flush(self: &Arc<Outbox>) {
        let mut queue = lock(&self.queue);
        queue.listed = false;
        self.take_baton(queue);
    }

    /// Closes the connection when all that is queued has been sent.
    pub fn end(self: &Arc<Outbox>) {
        let mut queue = lock(&self.queue);
        queue.ending = true;
        drop_packets(&mut queue);
        self.take_baton(queue);
    }

    /// Closes the connection now; its reader returns.
    pub fn close(&self) {
        self.shut(&mut lock(&self.queue));
    }

    fn shut(&self, queue: &mut Queue) {
        queue.closed = true;
        queue.parts = VecDeque::new();
        queue.bytes = 0;
        drop_packets(queue);
        self.channel.close();
    }

    fn put_own(&self, queue: &mut Queue, line: impl IntoIterator<Item = Part>) {
        if queue.closed || queue.ending {
            return;
        }
        if queue.bytes > self.limit.saturating_mul(2).saturating_add(MAX_LINE) {
            status::SLOW_CLOSED.add();
            return self.shut(queue);
        }
        put(queue, line);
    }

    /// Takes the baton if it is free, and runs with it.
    fn take_baton<'a>(self: &'a Arc<Outbox>, mut queue: MutexGuard<'a, Queue>) {
        if queue.busy || queue.closed {
            return;
        }
        queue.busy = true;
        let mut wire = Vec::new();
        for batches in 1.. {
            let more = next_batch(&mut queue);
            drop(queue);
            wire.clear();
            let sent = self.encrypt(more, &mut wire).and_then(|()| self.channel.send_now(&wire));
            queue = lock(&self.queue);
            match sent {
                Err(_) => return self.shut(&mut queue),
                Ok(count) if count < wire.len() || batches >= MAX_BATCHES => {
                    drop(queue);
                    let rest = wire.split_off(count);
                    return self.hand_over(rest);
                }
                Ok(_) => {}
            }
            if self.lay_down(&mut queue) {
                return;
            }
        }
    }

    /// Lays the baton down if nothing is left to do.
    fn lay_down(&self, queue: &mut Queue) -> bool {
        if (queue.parts.is_empty() && queue.packets.is_empty()) || queue.closed {
            queue.busy = false;
            if queue.ending && !queue.closed {
                let mut wire = Vec::new();
                self.channel.encrypt_end(&mut wire);
                let _ = self.channel.send_now(&wire);
                queue.closed = true;
                self.channel.finish();
            }
            return true;
        }
        false
    }

    fn encrypt(&self, batch: Vec<Part>, wire: &mut Vec<u8>) -> std::io::Result<()> {
        let parts: Vec<&[u8]> = batch.iter().map(Part::bytes).collect();
        self.channel.encrypt(&parts, wire)
    }

    /// Gives the baton and the rest to a writer thread of this client's own.
    fn hand_over(self: &Arc<Outbox>, rest: Vec<u8>) {
        let me = self.clone();
        let room = WRITERS.fetch_add(1, Ordering::Relaxed) < MAX_WRITERS;
        let thread = std::thread::Builder::new().name("writer".into()).stack_size(WRITER_STACK);
        let started = room
            && thread
                .spawn(move || {
                    me.write_out(rest);
                    WRITERS.fetch_sub(1, Ordering::Relaxed);
                })
                .is_ok();
        if !started {
            WRITERS.fetch_sub(1, Ordering::Relaxed);
            status::SLOW_CLOSED.add();
            self.close();
        }
    }

    /// The writer thread: sends, waiting for the client, until it has caught up. Each batch has
    /// 30 s, so who takes less than 2.2 KiB a second (a packet) is given up.
    fn write_out(self: &Arc<Outbox>, mut wire: Vec<u8>) {
        loop {
            let sent = self.channel.send(&wire);
            let mut queue = lock(&self.queue);
            if let Err(error) = sent {
                if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) {
                    status::SLOW_CLOSED.add();
                }
                return self.shut(&mut queue);
            }
            if self.lay_down(&mut queue) {
                return;
            }
            let batch = next_batch(&mut queue);
            drop(queue);
            wire.clear();
            if self.encrypt(batch, &mut wire).is_err() {
                return self.close();
            }
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        drop_packets(&mut lock(&self.queue));
    }
}

fn put(queue: &mut Queue, line: impl IntoIterator<Item = Part>) {
    for part in line {
        queue.bytes += part.bytes().len();
        queue.parts.push_back(part);
    }
}

fn count_packet(queue: &mut Queue, length: usize) {
    queue.packet_bytes += length;
    WAITING_PACKETS.fetch_add(length, Ordering::Relaxed);
}

fn drop_packets(queue: &mut Queue) {
    WAITING_PACKETS.fetch_sub(queue.packet_bytes, Ordering::Relaxed);
    queue.packet_bytes = 0;
    queue.packets = VecDeque::new();
}

/// Lines if there are any, one packet otherwise.
fn next_batch(queue: &mut Queue) -> Vec<Part> {
    if queue.parts.is_empty()
        && let Some(packet) = queue.packets.pop_front()
    {
        queue.packet_bytes -= packet.len();
        WAITING_PACKETS.fetch_sub(packet.len(), Ordering::Relaxed);
        return vec![packet.into()];
    }
    let mut bytes = 0;
    let mut batch = Vec::with_capacity(queue.parts.len().min(BATCH_PARTS));
    while let Some(part) = queue.parts.front() {
        let length = part.bytes().len();
        if !batch.is_empty() && (bytes + length > BATCH_BYTES || batch.len() >= BATCH_PARTS) {
            break;
        }
        bytes += length;
        batch.extend(queue.parts.pop_front());
    }
    queue.bytes -= bytes;
    batch
}

/// Writes out what broadcasts have queued, in passes: what arrives for a client during a pass goes
/// out together in the next, in one TLS record and one write.
#[derive(Default)]
pub struct Flusher {
    list: Mutex<Vec<Arc<Outbox>>>,
    wake: Condvar,
}

impl Flusher {
    fn add(&self, outbox: Arc<Outbox>) {
        let mut list = lock(&self.list);
        list.push(outbox);
        if list.len() == 1 {
            self.wake.notify_one();
        }
    }

    /// The flusher thread.
    pub fn run(&self) -> ! {
        loop {
            let mut list = lock(&self.list);
            while list.is_empty() {
                list = self.wake.wait(list).unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            let pass = std::mem::take(&mut *list);
            drop(list);
            for outbox in pass {
                outbox.flush();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::{Doors, Limits};
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_the_server_itself_says_to_one_who_never_reads_is_bounded_too() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let _deaf = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (socket, from) = listener.accept().expect("accepted");
        let socket = Arc::new(socket);
        let doors = Arc::new(Doors::new(&Limits::for_machine(1024, 65_530)));
        let ticket = doors.admit(from.ip(), &socket).expect("the first");
        let channel = Arc::new(Channel::bare(socket).expect("a socket"));
        let outbox = Arc::new(Outbox::new(channel, 1024, ticket));
        // Some megabytes are the kernel's; long before the write times out, the rest is too much.
        let lines = (0..1000).take_while(|_| {
            outbox.send([Part::from(vec![b'x'; 64 * 1024])]);
            outbox.is_open()
        });
        let taken = lines.count();
        assert!(taken < 1000, "{taken} lines of 64 KiB wait for one client");
    }
}
