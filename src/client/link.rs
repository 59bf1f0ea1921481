//! The two threads of a connection: one reads, one writes; the owner of the state waits for neither.
//!
//! Invariant: lines go before packets, and packets go past the owner of the state to and from the threads of
//! their transfers: a file at full speed does not hold up what people say.

use super::connect::{Connection, reason};
use super::session::Event;
use super::transfer::Hub;
use crate::protocol::{ClientMessage, MAX_PACKET, Packet, ServerMessage};
use crate::wire::frame::Frame;
use crate::wire::tls::{Channel, Received};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Lines that wait to be sent. The session has far fewer under way.
const MAX_LINES: usize = 1024;
/// Packets that wait to be sent: enough to keep the writer busy.
const MAX_PACKETS: usize = 8;
/// A silent server is asked for a sign of life after this time.
const PING_AFTER: Duration = Duration::from_secs(30);
/// A server that was silent for this long is gone.
const DEAD_AFTER: Duration = Duration::from_secs(90);

/// What waits to be sent.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    /// Heads and payloads.
    packets: VecDeque<[Vec<u8>; 2]>,
    /// Nothing more is taken; the lines are still sent.
    ended: bool,
}

impl Queue {
    /// Queues a message. False if the server has taken nothing for a thousand messages, or it is over.
    pub fn say(&self, message: &ClientMessage) -> bool {
        let mut waiting = self.lock();
        let taken = !waiting.ended && waiting.lines.len() < MAX_LINES;
        if taken {
            waiting.lines.push_back(message.encode());
            self.changed.notify_all();
        }
        taken
    }

    /// Queues a packet, and waits for room. False if it is over.
    pub fn packet(&self, head: Vec<u8>, payload: Vec<u8>) -> bool {
        let mut waiting = self.lock();
        while !waiting.ended && waiting.packets.len() >= MAX_PACKETS {
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        if !waiting.ended {
            waiting.packets.push_back([head, payload]);
            self.changed.notify_all();
        }
        !waiting.ended
    }

    fn end(&self) {
        let mut waiting = self.lock();
        waiting.ended = true;
        waiting.packets.clear();
        self.changed.notify_all();
    }

    /// The next to be sent; `None` at the end.
    fn next(&self) -> Option<[Vec<u8>; 2]> {
        let mut waiting = self.lock();
        loop {
            let line = waiting.lines.pop_front().map(|line| [line, Vec::new()]);
            if let Some(next) = line.or_else(|| waiting.packets.pop_front()) {
                self.changed.notify_all();
                return Some(next);
            }
            if waiting.ended {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way to the server.
pub struct Link {
    channel: Arc<Channel>,
    queue: Arc<Queue>,
    writer: Option<JoinHandle<()>>,
}

impl Link {
    /// Starts both threads. `deliver` gets what the server says, in order, and at last an
    /// [`Event::Closed`]; it returns false when nobody listens any more. `hub` gets the packets.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(
        connection: Connection,
        hub: Arc<Hub>,
        deliver: impl FnMut(Event) -> bool + Send + 'static,
    ) -> io::Result<Link> {
        let (channel, queue) = (connection.channel.clone(), Arc::new(Queue::default()));
        let (writing, lines) = (channel.clone(), queue.clone());
        let writer = thread::Builder::new().name("send".into()).spawn(move || write(&writing, &lines))?;
        let pings = queue.clone();
        let reader = thread::Builder::new().name("receive".into());
        reader.spawn(move || read(connection, &pings, &hub, deliver))?;
        Ok(Link { channel, queue, writer: Some(writer) })
    }

    /// Queues one message. A server that takes nothing for a thousand messages is given up.
    pub fn send(&self, message: &ClientMessage) {
        if !self.queue.say(message) {
            self.channel.close();
        }
    }

    /// Where transfers send their packets.
    pub fn queue(&self) -> Arc<Queue> {
        self.queue.clone()
    }

    /// Waits until everything queued is sent, then ends the connection.
    pub fn finish(mut self) {
        self.queue.end();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.queue.end();
        self.channel.close();
    }
}

fn write(channel: &Channel, queue: &Queue) {
    let mut wire = Vec::new();
    while let Some([head, rest]) = queue.next() {
        wire.clear();
        if channel.encrypt(&[&head, &rest], &mut wire).and_then(|()| channel.send(&wire)).is_err() {
            // The reader will find out and say so.
            queue.end();
            return channel.close();
        }
    }
    wire.clear();
    channel.encrypt_end(&mut wire);
    let _ = channel.send_now(&wire);
}

fn read(mut connection: Connection, pings: &Queue, hub: &Hub, mut deliver: impl FnMut(Event) -> bool) {
    let mut heard = Instant::now();
    let reason = loop {
        match connection.lines.next_frame(MAX_PACKET) {
            Err(_) => break "it sent an overlong line".to_string(),
            Ok(Some(frame)) => {
                let event = match frame {
                    Frame::Line(line) => match ServerMessage::decode(line) {
                        Ok(ServerMessage::Grant(grant)) => {
                            hub.grant(&grant);
                            continue;
                        }
                        Ok(ServerMessage::Refused(refused)) => {
                            hub.refused(&refused);
                            continue;
                        }
                        Ok(message) => Event::Server(message),
                        Err(error) => Event::Unreadable(error),
                    },
                    Frame::Packet(body) => match Packet::decode(body) {
                        Ok(packet) => {
                            hub.packet(&packet);
                            continue;
                        }
                        Err(error) => Event::Unreadable(error),
                    },
                };
                if !deliver(event) {
                    return;
                }
                continue;
            }
            Ok(None) => {}
        }
        match connection.channel.receive(&mut connection.reader, connection.lines.buffer(), PING_AFTER) {
            Ok(Received::Some) => heard = Instant::now(),
            Ok(Received::End) => break "the server has closed it".to_string(),
            Ok(Received::Silence) if heard.elapsed() >= DEAD_AFTER => {
                break "no sign of life for 90 seconds".to_string();
            }
            Ok(Received::Silence) => {
                let _ = pings.say(&ClientMessage::Ping);
            }
            Err(error) => break reason(&error),
        }
    };
    deliver(Event::Closed(reason));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_before_packets_and_after_the_end_only_lines_go() {
        let queue = Queue::default();
        let packet = |n: u8| queue.packet(vec![0, n], vec![n]);
        assert!(packet(1) && packet(2) && queue.say(&ClientMessage::Ping));
        assert_eq!(queue.next().expect("a line")[0], ClientMessage::Ping.encode());
        assert_eq!(queue.next(), Some([vec![0, 1], vec![1]]));
        assert!(queue.say(&ClientMessage::Pong));
        queue.end();
        assert!(!packet(3) && !queue.say(&ClientMessage::Ping));
        assert_eq!(queue.next().expect("a line")[0], ClientMessage::Pong.encode());
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn who_sends_packets_waits_for_room_and_is_woken_at_the_end() {
        let queue = Queue::default();
        thread::scope(|scope| {
            let sender = scope.spawn(|| (0..).take_while(|_| queue.packet(Vec::new(), vec![0; 9])).count());
            while queue.lock().packets.len() < MAX_PACKETS {
                thread::yield_now();
            }
            assert!(queue.next().is_some());
            while queue.lock().packets.len() < MAX_PACKETS {
                thread::yield_now();
            }
            queue.end();
            assert_eq!(sender.join().expect("it ends"), MAX_PACKETS + 1);
        });
    }
}
