//! The way to the server, over as many connections as it takes: one thread reads and reconnects, one writes; the
//! owner of the state waits for neither.
//!
//! Invariant: packets go past the owner of the state to and from the threads of their transfers: a file at full
//! speed does not hold up what people say. What goes out waits in the queue (`Queue`), whichever connection takes it;
//! what comes in is counted and acknowledged once it was delivered. Nothing is delivered behind an
//! [`Event::Closed`]. Specification: README#resuming.

use super::connect::{Connection, StartError, reason};
use super::lock;
use super::queue::Queue;
use super::reconnect::{Again, LONGEST_PAUSE, Way, is_final, is_refused, pause};
use super::session::{Event, last_word};
use super::transfer::Hub;
use crate::auth::PasswordKey;
use crate::protocol::{ClientMessage, MAX_PACKET, Packet, ServerMessage};
use crate::wire::frame::Frame;
use crate::wire::tls::{Channel, Received};
use std::io;
use std::mem::take;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What was taken in is acknowledged after so many frames, or bytes (README#resuming).
const ACK_FRAMES: u64 = 32;
/// See [`ACK_FRAMES`].
const ACK_BYTES: usize = 128 * 1024;
/// A silent server is asked for a sign of life after this time, as the server asks a client.
const PING_AFTER: Duration = Duration::from_secs(30);
/// A server that was silent for this long is gone, as a client is for the server.
const DEAD_AFTER: Duration = Duration::from_secs(90);
/// A connection that ended sooner is not had again at once.
const SHORT: Duration = Duration::from_secs(1);
/// At the end, what is queued has this long to go out; if nobody wants to wait for it, so long.
const FAREWELL: Duration = Duration::from_secs(30);
/// See [`FAREWELL`].
const HURRIED_FAREWELL: Duration = Duration::from_secs(1);

/// The way to the server.
pub struct Link {
    shared: Arc<Shared>,
}

/// What the link's owner and its threads share.
struct Shared {
    queue: Arc<Queue>,
    /// Of the connection in use, or of the last one.
    channel: Mutex<Arc<Channel>>,
    /// Of a password that was changed meanwhile.
    password_key: Mutex<Option<PasswordKey>>,
}

impl Link {
    /// Starts both threads. `deliver` gets what the server says, in order, what becomes of the connection, and at last an
    /// [`Event::Closed`]; it returns false when nobody listens any more. `hub` gets the packets.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(
        connection: Connection,
        way: Way,
        hub: Arc<Hub>,
        deliver: impl FnMut(Event) -> bool + Send + 'static,
    ) -> io::Result<Link> {
        let channel = Mutex::new(connection.channel.clone());
        let shared = Arc::new(Shared { queue: Arc::default(), channel, password_key: Mutex::default() });
        let number = shared.queue.restart();
        shared.queue.begin();
        let writer = shared.spawn_writer(number)?;
        let reader =
            Reader { shared: shared.clone(), way, hub, deliver, taken: Taken::default(), attempts: 0 };
        let thread = thread::Builder::new().name("receive".into());
        thread.spawn(move || reader.run(connection, writer))?;
        Ok(Link { shared })
    }

    /// Queues one message. False if the server has taken nothing for a thousand messages: it is to be given up.
    #[must_use]
    pub fn send(&self, message: &ClientMessage) -> bool {
        self.shared.queue.say(message)
    }

    /// What is queued from now on belongs to the new session.
    pub fn begin(&self) {
        self.shared.queue.begin();
    }

    /// Where transfers send their packets.
    pub fn queue(&self) -> Arc<Queue> {
        self.shared.queue.clone()
    }

    /// What keeps the key of a new password for later logins.
    pub fn password_keeper(&self) -> impl FnOnce(PasswordKey) + Send + 'static {
        let shared = self.shared.clone();
        move |key| *lock(&shared.password_key) = Some(key)
    }

    /// What is queued still goes out, and nothing after it; no connection is had again.
    pub fn end(&self) {
        self.shared.queue.end();
    }

    /// Waits until everything queued is sent, then ends the connection: at once if nothing is left to be said to the
    /// server, and soon if the person does not wait.
    pub fn finish(self, hurried: bool) {
        self.end();
        self.shared.queue.finish(if hurried { HURRIED_FAREWELL } else { FAREWELL });
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.queue.end();
        self.shared.close();
    }
}

impl Shared {
    fn close(&self) {
        lock(&self.channel).close();
    }

    fn spawn_writer(self: &Arc<Self>, connection: u64) -> io::Result<JoinHandle<()>> {
        let me = self.clone();
        thread::Builder::new().name("send".into()).spawn(move || me.write(connection))
    }

    fn write(&self, connection: u64) {
        let channel = lock(&self.channel).clone();
        let mut wire = Vec::new();
        while let Some(pieces) = self.queue.next(connection) {
            wire.clear();
            if channel.encrypt(&pieces.concat(), &mut wire).and_then(|()| channel.send(&wire)).is_err() {
                // The reader will find out.
                channel.close();
                return self.queue.finished(connection);
            }
        }
        wire.clear();
        channel.encrypt_end(&mut wire);
        let _ = channel.send_now(&wire);
        self.queue.finished(connection);
    }
}

/// Frames of this session that were taken in.
#[derive(Default)]
struct Taken {
    frames: u64,
    /// Since the last acknowledgement.
    new_frames: u64,
    new_bytes: usize,
}

struct Reader<D> {
    shared: Arc<Shared>,
    way: Way,
    hub: Arc<Hub>,
    deliver: D,
    taken: Taken,
    /// Attempts since a connection was of use.
    attempts: u32,
}

/// Why a connection is not read any more.
enum End {
    /// It broke.
    Lost(String),
    /// It is over: what to tell, if anybody listens.
    Over(Option<String>),
}

impl<D: FnMut(Event) -> bool> Reader<D> {
    fn run(mut self, mut connection: Connection, mut writer: JoinHandle<()>) {
        loop {
            let begun = Instant::now();
            let end = self.read(&mut connection);
            connection.channel.close();
            self.shared.queue.disconnect();
            // It waits for nothing any more: the socket is closed.
            let _ = writer.join();
            let why = match end {
                End::Lost(why) => why,
                End::Over(why) => {
                    why.map(|why| (self.deliver)(Event::Closed(why)));
                    return;
                }
            };
            let lost = Instant::now();
            // A session that goes on costs little, a new one a key: who lets us in and throws us out meets a pause.
            self.attempts = match (self.attempts, begun.elapsed()) {
                (_, lasted) if lasted >= Duration::from_millis(LONGEST_PAUSE) => 0,
                (0, lasted) => u32::from(lasted < SHORT),
                (attempts, _) => attempts,
            };
            if !(self.deliver)(Event::Lost(why)) {
                return;
            }
            match self.reconnect(lost) {
                Some(new) => (connection, writer) = new,
                None => return,
            }
        }
    }

    /// Tries until the session is there again, or another one; `None` if it is over.
    fn reconnect(&mut self, lost: Instant) -> Option<(Connection, JoinHandle<()>)> {
        let (mut refused, mut locked, mut why) = (false, Duration::ZERO, None);
        loop {
            let then = Instant::now() + pause(self.attempts) + take(&mut locked);
            self.attempts += 1;
            if !(self.deliver)(Event::Retry(then, why)) || self.shared.queue.is_over_by(then) {
                return None;
            }
            if let Some(key) = lock(&self.shared.password_key).take() {
                self.way.set_password_key(key);
            }
            let again = self.way.again(self.taken.frames);
            let error = match again {
                Ok((connection, again)) => {
                    let number = match &again {
                        Again::Resumed(received) => self.shared.queue.resume(*received),
                        Again::LoggedIn(_) => {
                            self.taken = Taken::default();
                            Some(self.shared.queue.restart())
                        }
                    };
                    let Some(number) = number else {
                        (self.deliver)(Event::Closed("it claims what cannot be".into()));
                        return None;
                    };
                    let channel = connection.channel.clone();
                    *lock(&self.shared.channel) = channel;
                    // First: who leaves at this moment waits for it.
                    let writer = match self.shared.spawn_writer(number) {
                        Ok(writer) => writer,
                        Err(error) => {
                            self.shared.close();
                            (self.deliver)(Event::Closed(error.to_string()));
                            return None;
                        }
                    };
                    let event = match again {
                        Again::Resumed(_) => {
                            self.attempts = 0;
                            Event::Resumed(lost.elapsed())
                        }
                        Again::LoggedIn(key) => Event::LoggedIn(key, lost.elapsed()),
                    };
                    return (self.deliver)(event).then_some((connection, writer));
                }
                Err(error) => error,
            };
            let again_refused = matches!(error, StartError::Login) && std::mem::replace(&mut refused, true);
            if is_final(&error) || again_refused {
                (self.deliver)(Event::Closed(error.to_string()));
                return None;
            }
            why = is_refused(&error).then(|| error.to_string());
            if let StartError::Locked(_, seconds) = error {
                locked = Duration::from_secs(seconds);
            }
        }
    }

    fn read(&mut self, connection: &mut Connection) -> End {
        let mut heard = Instant::now();
        loop {
            let frame = match connection.lines.next_frame(MAX_PACKET) {
                Err(_) => return End::Over(Some("it sent an overlong line".into())),
                Ok(frame) => frame,
            };
            if let Some(frame) = frame {
                match self.take(frame) {
                    Ok(()) => continue,
                    Err(end) => return end,
                }
            }
            match connection.channel.receive(&mut connection.reader, connection.lines.buffer(), PING_AFTER) {
                Ok(Received::Some | Received::Silence) if self.shared.queue.is_stuck(DEAD_AFTER) => {
                    return End::Lost("it acknowledges nothing of a file".into());
                }
                Ok(Received::Some) => heard = Instant::now(),
                Ok(Received::End) => return End::Lost("the server has closed it".into()),
                Ok(Received::Silence) if heard.elapsed() >= DEAD_AFTER => {
                    return End::Lost("no sign of life for 90 seconds".into());
                }
                Ok(Received::Silence) => self.shared.queue.sign(|signs| signs.ping = true),
                Err(error) => return End::Lost(reason(&error)),
            }
        }
    }

    fn take(&mut self, frame: Frame<'_>) -> Result<(), End> {
        let bytes = match &frame {
            Frame::Line(bytes) | Frame::Packet(bytes) => bytes.len(),
        };
        let event = match frame {
            Frame::Packet(body) => match Packet::decode(body) {
                Ok(packet) => {
                    self.hub.packet(&packet);
                    None
                }
                Err(error) => Some(Event::Unreadable(error)),
            },
            Frame::Line(line) => match ServerMessage::decode(line) {
                Ok(ServerMessage::Ping) => {
                    self.acknowledge();
                    self.shared.queue.sign(|signs| signs.pong = true);
                    return Ok(());
                }
                Ok(ServerMessage::Pong) => return Ok(()),
                Ok(ServerMessage::Ack(ack)) => {
                    let possible = self.shared.queue.acknowledge(ack.received);
                    let impossible = || End::Over(Some("it acknowledges what was never sent".into()));
                    return possible.then_some(()).ok_or_else(impossible);
                }
                Ok(ServerMessage::Grant(grant)) => {
                    self.hub.grant(&grant);
                    None
                }
                Ok(ServerMessage::Refused(refused)) => {
                    self.hub.refused(&refused);
                    None
                }
                // Another client of this person is there now: to come back would throw it off. Or there is nowhere to come back to.
                Ok(ServerMessage::Error(failure)) if last_word(&failure).is_some() => {
                    (self.deliver)(Event::Server(ServerMessage::Error(failure)));
                    return Err(End::Over(None));
                }
                Ok(message) => {
                    if let ServerMessage::Session(session) = &message {
                        self.way.set_token(session.token.duplicate());
                    }
                    Some(Event::Server(message))
                }
                Err(error) => Some(Event::Unreadable(error)),
            },
        };
        if event.is_some_and(|event| !(self.deliver)(event)) {
            return Err(End::Over(None));
        }
        self.taken.frames += 1;
        self.taken.new_frames += 1;
        self.taken.new_bytes += bytes;
        if self.taken.new_frames >= ACK_FRAMES || self.taken.new_bytes >= ACK_BYTES {
            self.acknowledge();
        }
        Ok(())
    }

    fn acknowledge(&mut self) {
        if self.taken.new_frames > 0 {
            (self.taken.new_frames, self.taken.new_bytes) = (0, 0);
            let received = self.taken.frames;
            self.shared.queue.sign(|signs| signs.ack = Some(received));
        }
    }
}
