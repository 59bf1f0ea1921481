//! What waits to be sent to one client, and who sends it.
//!
//! Invariant: whoever holds the *baton* (`Queue::busy`) alone encrypts and writes, so ciphertext
//! leaves in the order in which it was made. Whoever queues something and finds the baton free
//! takes it; whoever finds it taken leaves at once, because the holder looks at the queue again,
//! under the same lock, before it lays the baton down. Nobody ever waits for a client:
//! when its socket is full, baton and rest go to a writer thread that ends when it has caught up.
//! The queue is bounded; a client that lets it overflow is closed, and nobody else notices.

use super::limits::MAX_WRITERS;
use super::lock;
use crate::wire::tls::Channel;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Bytes and parts that are encrypted together: one TLS record.
const BATCH_BYTES: usize = 16 * 1024;
const BATCH_PARTS: usize = 64;
/// Stack of a writer thread, which only encrypts and writes.
const WRITER_STACK: usize = 128 * 1024;

static WRITERS: AtomicUsize = AtomicUsize::new(0);

/// A piece of a line.
#[derive(Clone)]
pub enum Part {
    /// The same bytes for many clients.
    Shared(Arc<[u8]>),
    /// This client's alone.
    Own(Box<[u8]>),
}

impl Part {
    fn bytes(&self) -> &[u8] {
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
}

impl Outbox {
    /// `limit` is in bytes.
    pub fn new(channel: Arc<Channel>, limit: usize) -> Outbox {
        Outbox { channel, limit, queue: Mutex::default() }
    }

    /// Queues one whole line and sends what can be sent now. False if the client is gone.
    pub fn send(self: &Arc<Outbox>, line: impl IntoIterator<Item = Part>) -> bool {
        let mut queue = lock(&self.queue);
        let queued = self.put(&mut queue, line);
        self.take_baton(queue);
        queued
    }

    /// Queues one whole line for the flusher. False if the client is gone.
    pub fn queue(self: &Arc<Outbox>, line: impl IntoIterator<Item = Part>, flusher: &Flusher) -> bool {
        let mut queue = lock(&self.queue);
        let queued = self.put(&mut queue, line);
        if queued && !queue.busy && !queue.listed {
            queue.listed = true;
            drop(queue);
            flusher.add(self.clone());
        }
        queued
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
        self.channel.close();
    }

    fn put(&self, queue: &mut Queue, line: impl IntoIterator<Item = Part>) -> bool {
        if queue.closed || queue.ending {
            return false;
        }
        let before = queue.parts.len();
        let bytes_before = queue.bytes;
        for part in line {
            queue.bytes += part.bytes().len();
            queue.parts.push_back(part);
        }
        // A single line may be longer than the limit: it is bounded by the protocol.
        if queue.bytes > self.limit && bytes_before > 0 && before > 0 {
            self.shut(queue);
            return false;
        }
        true
    }

    /// Takes the baton if it is free, and runs with it.
    fn take_baton<'a>(self: &'a Arc<Outbox>, mut queue: MutexGuard<'a, Queue>) {
        if queue.busy || queue.closed {
            return;
        }
        queue.busy = true;
        let mut wire = Vec::new();
        loop {
            let more = next_batch(&mut queue);
            drop(queue);
            wire.clear();
            let sent = self.encrypt(more, &mut wire).and_then(|()| self.channel.send_now(&wire));
            queue = lock(&self.queue);
            match sent {
                Err(_) => return self.shut(&mut queue),
                Ok(count) if count < wire.len() => {
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
        if queue.parts.is_empty() || queue.closed {
            queue.busy = false;
            if queue.ending && !queue.closed {
                let mut wire = Vec::new();
                self.channel.encrypt_end(&mut wire);
                let _ = self.channel.send_now(&wire);
                self.shut(queue);
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
            self.close();
        }
    }

    /// The writer thread: sends, waiting for the client, until it has caught up.
    fn write_out(self: &Arc<Outbox>, mut wire: Vec<u8>) {
        loop {
            let sent = self.channel.send(&wire);
            let mut queue = lock(&self.queue);
            if sent.is_err() {
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

fn next_batch(queue: &mut Queue) -> Vec<Part> {
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
