//! The two threads of a connection: one reads, one writes; the owner of the state waits for neither.

use super::connect::{Connection, reason};
use super::session::Event;
use crate::protocol::{ClientMessage, ServerMessage};
use crate::wire::tls::{Channel, Received};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Lines that wait to be sent. The session has far fewer under way.
const QUEUE: usize = 1024;
/// A silent server is asked for a sign of life after this time.
const PING_AFTER: Duration = Duration::from_secs(30);
/// A server that was silent for this long is gone.
const DEAD_AFTER: Duration = Duration::from_secs(90);

/// The way to the server.
pub struct Link {
    channel: Arc<Channel>,
    queue: Option<SyncSender<Vec<u8>>>,
    writer: Option<JoinHandle<()>>,
}

impl Link {
    /// Starts both threads. `deliver` gets what the server says, in order, and at last an
    /// [`Event::Closed`]; it returns false when nobody listens any more.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(
        connection: Connection,
        deliver: impl FnMut(Event) -> bool + Send + 'static,
    ) -> io::Result<Link> {
        let (queue, lines) = sync_channel(QUEUE);
        let channel = connection.channel.clone();
        let writing = channel.clone();
        let writer = thread::Builder::new().name("send".into()).spawn(move || write(&writing, &lines))?;
        let pings = queue.clone();
        thread::Builder::new().name("receive".into()).spawn(move || read(connection, &pings, deliver))?;
        Ok(Link { channel, queue: Some(queue), writer: Some(writer) })
    }

    /// Queues one message. A server that takes nothing for a thousand messages is given up.
    pub fn send(&self, message: &ClientMessage) {
        let full = self.queue.as_ref().is_some_and(|queue| queue.try_send(message.encode()).is_err());
        if full {
            self.channel.close();
        }
    }

    /// Waits until everything queued is sent, then ends the connection.
    pub fn finish(mut self) {
        if let (Some(queue), Some(writer)) = (self.queue.take(), self.writer.take()) {
            // An empty line of nothing tells the writer to end, although the reader still holds the queue.
            let _ = queue.send(Vec::new());
            let _ = writer.join();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.channel.close();
    }
}

fn write(channel: &Channel, lines: &Receiver<Vec<u8>>) {
    for line in lines {
        let mut wire = Vec::new();
        if line.is_empty() {
            channel.encrypt_end(&mut wire);
            let _ = channel.send_now(&wire);
            return;
        }
        if channel.encrypt(&[&line], &mut wire).and_then(|()| channel.send(&wire)).is_err() {
            // The reader will find out and say so.
            return channel.close();
        }
    }
}

fn read(mut connection: Connection, pings: &SyncSender<Vec<u8>>, mut deliver: impl FnMut(Event) -> bool) {
    let mut heard = Instant::now();
    let reason = loop {
        match connection.lines.next_line() {
            Err(_) => break "it sent an overlong line".to_string(),
            Ok(Some(line)) => {
                let event = match ServerMessage::decode(line) {
                    Ok(message) => Event::Server(message),
                    Err(error) => Event::Unreadable(error),
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
                let _ = pings.try_send(ClientMessage::Ping.encode());
            }
            Err(error) => break reason(&error),
        }
    };
    deliver(Event::Closed(reason));
}
