//! The way to the server, over as many connections as it takes: one thread reads and reconnects, one writes; the
//! owner of the state waits for neither.
//!
//! Invariant: lines go before packets, and packets go past the owner of the state to and from the threads of
//! their transfers: a file at full speed does not hold up what people say. Every frame is kept until the server
//! acknowledges it; when the session is resumed, exactly what the server has not taken in goes out again,
//! before anything new, so nothing is lost, doubled or reordered. A new login begins with nothing: what was not
//! acknowledged is told, never repeated. Specification: README#resuming.

use super::connect::{Connection, StartError, reason};
use super::reconnect::{Again, LONGEST_PAUSE, Way, is_final, is_refused, pause};
use super::session::Event;
use super::transfer::Hub;
use crate::auth::PasswordKey;
use crate::protocol::{
    ClientMessage, ErrorCode, MAX_PACKET, Packet, Received as Acknowledged, ServerMessage,
};
use crate::wire::frame::Frame;
use crate::wire::tls::{Channel, Received};
use std::collections::VecDeque;
use std::io;
use std::mem::take;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Lines that wait to be sent, or acknowledged: the session has far fewer under way, so more means that nothing is taken.
const MAX_LINES: usize = 1024;
/// Packets that wait to be sent: enough to keep the writer busy.
const MAX_PACKETS: usize = 8;
/// Bytes that the server may leave unacknowledged before packets wait: a full window of every transfer.
const MAX_KEPT: usize = 16 * 1024 * 1024;
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

/// Why a server is given up for which [`Link::send`] has no room.
pub const TAKES_NOTHING: &str = "it takes nothing of what is sent";

/// The pieces of one line or packet.
type Pieces = Arc<[Vec<u8>; 2]>;

/// What waits to be sent, and what was sent and may have to be sent again.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// What is said about this connection alone, and not counted: the latest of each.
    ack: Option<u64>,
    pong: bool,
    ping: bool,
    lines: VecDeque<Pieces>,
    /// Heads and payloads.
    packets: VecDeque<Pieces>,
    /// Frames that the server has not acknowledged, in the order in which they go out.
    kept: VecDeque<Pieces>,
    kept_bytes: usize,
    /// Since when they are too much for another packet, and none was acknowledged.
    full: Option<Instant>,
    /// How many of them have gone out on this connection.
    gone: usize,
    /// Frames of this session that the server has acknowledged.
    acknowledged: u64,
    /// The connection in use, counted; its writer ends when there is another one, or none.
    connection: Option<u64>,
    connections: u64,
    /// A new session has begun, and who owns the state does not know yet: what is queued meanwhile belonged to the
    /// former one.
    outdated: bool,
    /// Nothing more is taken; what waits is still sent.
    ended: bool,
    /// Everything has been sent.
    finished: bool,
}

impl Waiting {
    /// From now on what is kept is too much, or it is not.
    fn look_if_full(&mut self) {
        self.full = (self.kept_bytes > MAX_KEPT).then(Instant::now);
    }

    fn next_sign(&mut self) -> Option<ClientMessage> {
        let ack = self.ack.take().map(|received| ClientMessage::Ack(Acknowledged { received }));
        let pong = |waiting: &mut Waiting| take(&mut waiting.pong).then_some(ClientMessage::Pong);
        let ping = |waiting: &mut Waiting| take(&mut waiting.ping).then_some(ClientMessage::Ping);
        ack.or_else(|| pong(self)).or_else(|| ping(self))
    }
}

impl Queue {
    /// Queues a message. False if the server has taken nothing for a thousand messages, or it is over.
    pub fn say(&self, message: &ClientMessage) -> bool {
        let mut waiting = self.lock();
        let taken = !waiting.ended && waiting.lines.len() + waiting.kept.len() < MAX_LINES;
        if taken && !waiting.outdated {
            waiting.lines.push_back(Arc::new([message.encode(), Vec::new()]));
            self.changed.notify_all();
        }
        taken
    }

    /// Queues a packet, and waits for room. False if it is over.
    pub fn packet(&self, head: Vec<u8>, payload: Vec<u8>) -> bool {
        let mut waiting = self.lock();
        while !waiting.ended && (waiting.packets.len() >= MAX_PACKETS || waiting.full.is_some()) {
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        if !waiting.ended && !waiting.outdated {
            waiting.packets.push_back(Arc::new([head, payload]));
            self.changed.notify_all();
        }
        !waiting.ended
    }

    /// Says something about this connection.
    fn sign(&self, say: impl FnOnce(&mut Waiting)) {
        say(&mut self.lock());
        self.changed.notify_all();
    }

    /// The server has taken in so many frames. False if it cannot have.
    fn acknowledge(&self, received: u64) -> bool {
        let mut waiting = self.lock();
        let Some(new) = received.checked_sub(waiting.acknowledged).and_then(|new| usize::try_from(new).ok())
        else {
            return false;
        };
        if new > waiting.gone {
            return false;
        }
        let done: usize = waiting.kept.drain(..new).map(|pieces| length(&pieces)).sum();
        waiting.kept_bytes -= done;
        waiting.gone -= new;
        waiting.acknowledged = received;
        if new > 0 {
            waiting.look_if_full();
        }
        self.changed.notify_all();
        true
    }

    /// Whether packets wait for a server that answers, and acknowledges nothing for as long as `patience`.
    fn is_stuck(&self, patience: Duration) -> bool {
        self.lock().full.is_some_and(|since| since.elapsed() >= patience)
    }

    /// The session goes on over a new connection: what the server has not taken in goes out again. `None` if it
    /// claims to have taken in what it cannot have.
    fn resume(&self, received: u64) -> Option<u64> {
        self.acknowledge(received).then(|| self.connect(|waiting| waiting.gone = 0))
    }

    /// A new session begins: nothing of the former one goes there.
    fn restart(&self) -> u64 {
        self.connect(|waiting| {
            let (ended, connections) = (waiting.ended, waiting.connections);
            *waiting = Waiting { ended, connections, outdated: true, ..Waiting::default() };
        })
    }

    /// Who owns the state knows of the new session.
    fn begin(&self) {
        self.lock().outdated = false;
    }

    fn connect(&self, change: impl FnOnce(&mut Waiting)) -> u64 {
        let mut waiting = self.lock();
        change(&mut waiting);
        (waiting.ack, waiting.pong, waiting.ping) = (None, false, false);
        waiting.connections += 1;
        waiting.connection = Some(waiting.connections);
        waiting.look_if_full();
        self.changed.notify_all();
        waiting.connections
    }

    fn disconnect(&self) {
        self.lock().connection = None;
        self.changed.notify_all();
    }

    fn end(&self) {
        let mut waiting = self.lock();
        waiting.ended = true;
        waiting.packets.clear();
        self.changed.notify_all();
    }

    /// The next to be sent over this connection; `None` at its end.
    fn next(&self, connection: u64) -> Option<Pieces> {
        let mut waiting = self.lock();
        loop {
            if waiting.connection != Some(connection) {
                return None;
            }
            if let Some(sign) = waiting.next_sign() {
                return Some(Arc::new([sign.encode(), Vec::new()]));
            }
            if waiting.gone == waiting.kept.len() {
                let new = waiting.lines.pop_front();
                if let Some(new) = new.or_else(|| waiting.packets.pop_front()) {
                    waiting.kept_bytes += length(&new);
                    waiting.kept.push_back(new);
                    if waiting.full.is_none() {
                        waiting.look_if_full();
                    }
                    self.changed.notify_all();
                }
            }
            if let Some(next) = waiting.kept.get(waiting.gone).cloned() {
                waiting.gone += 1;
                return Some(next);
            }
            if waiting.ended {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until then. True if it is over.
    fn is_over_by(&self, then: Instant) -> bool {
        let left = then.saturating_duration_since(Instant::now());
        let wait = self.changed.wait_timeout_while(self.lock(), left, |waiting| !waiting.ended);
        wait.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    fn finished(&self) {
        self.lock().finished = true;
        self.changed.notify_all();
    }

    /// Waits until all has gone out, if there is a connection for it.
    fn finish(&self, patience: Duration) {
        let unsent = |waiting: &mut Waiting| !waiting.finished && waiting.connection.is_some();
        drop(self.changed.wait_timeout_while(self.lock(), patience, unsent));
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.waiting)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn length(pieces: &Pieces) -> usize {
    pieces.iter().map(Vec::len).sum()
}

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

    /// Waits until everything queued is sent, then ends the connection: at once if nothing is left to be said to the
    /// server, and soon if the person does not wait.
    pub fn finish(self, hurried: bool) {
        self.shared.queue.end();
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
            let [head, rest] = &*pieces;
            if channel.encrypt(&[head, rest], &mut wire).and_then(|()| channel.send(&wire)).is_err() {
                // The reader will find out.
                return channel.close();
            }
        }
        wire.clear();
        channel.encrypt_end(&mut wire);
        let _ = channel.send_now(&wire);
        self.queue.finished();
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
                Some((new, number)) => {
                    connection = new;
                    match self.shared.spawn_writer(number) {
                        Ok(thread) => writer = thread,
                        Err(error) => {
                            (self.deliver)(Event::Closed(error.to_string()));
                            return;
                        }
                    }
                }
                None => return,
            }
        }
    }

    /// Tries until the session is there again, or another one; `None` if it is over.
    fn reconnect(&mut self, lost: Instant) -> Option<(Connection, u64)> {
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
                    let event = match again {
                        Again::Resumed(_) => {
                            self.attempts = 0;
                            Event::Resumed(lost.elapsed())
                        }
                        Again::LoggedIn(key) => Event::LoggedIn(key, lost.elapsed()),
                    };
                    return (self.deliver)(event).then_some((connection, number));
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
                Ok(Received::Silence) => self.shared.queue.sign(|waiting| waiting.ping = true),
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
                    self.shared.queue.sign(|waiting| waiting.pong = true);
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
                // Another client of this person is there now: to come back would throw it off.
                Ok(ServerMessage::Error(failure))
                    if failure.code == ErrorCode::SignedInElsewhere.as_str() =>
                {
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
            self.shared.queue.sign(|waiting| waiting.ack = Some(received));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> (Queue, u64) {
        let queue = Queue::default();
        let connection = queue.restart();
        queue.begin();
        (queue, connection)
    }

    /// What goes out next, as text.
    fn next(queue: &Queue, connection: u64) -> String {
        let pieces = queue.next(connection).expect("something waits");
        pieces.iter().map(|piece| String::from_utf8_lossy(piece).trim_end().to_string()).collect()
    }

    fn packet(queue: &Queue, text: &str) {
        assert!(queue.packet(text.into(), Vec::new()));
    }

    const LOGOUT: &str = r#"{"type":"logout"}"#;

    #[test]
    fn lines_go_before_packets_and_after_the_end_only_what_waits_goes() {
        let (queue, connection) = begun();
        packet(&queue, "one");
        packet(&queue, "two");
        assert!(queue.say(&ClientMessage::Logout));
        assert_eq!(next(&queue, connection), LOGOUT);
        assert_eq!(next(&queue, connection), "one");
        assert!(queue.say(&ClientMessage::Logout));
        queue.end();
        assert!(!queue.packet(Vec::new(), Vec::new()) && !queue.say(&ClientMessage::Logout));
        assert_eq!(next(&queue, connection), LOGOUT);
        assert!(queue.next(connection).is_none());
    }

    /// README#kept, README#sent-again.
    #[test]
    fn exactly_what_was_not_taken_in_goes_out_again_and_in_the_same_order() {
        let (queue, first) = begun();
        for text in ["one", "two", "three", "four"] {
            packet(&queue, text);
        }
        queue.sign(|waiting| (waiting.ping, waiting.ack) = (true, Some(7)));
        assert_eq!(next(&queue, first), r#"{"type":"ack","received":7}"#);
        assert_eq!(next(&queue, first), r#"{"type":"ping"}"#);
        let gone: Vec<String> = (0..3).map(|_| next(&queue, first)).collect();
        assert_eq!(gone, ["one", "two", "three"]);
        assert!(queue.acknowledge(1));
        queue.sign(|waiting| waiting.pong = true);
        queue.disconnect();
        assert!(queue.next(first).is_none(), "the former writer ends");
        assert!(queue.say(&ClientMessage::Logout));
        let second = queue.resume(2).expect("possible");
        let gone: Vec<String> = (0..3).map(|_| next(&queue, second)).collect();
        assert_eq!(gone, ["three", LOGOUT, "four"], "no sign of the former connection, and nothing twice");
        assert!(queue.acknowledge(5));
        let waiting = queue.lock();
        assert_eq!((waiting.kept.len(), waiting.kept_bytes), (0, 0));
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_is_refused() {
        let (queue, connection) = begun();
        packet(&queue, "one");
        assert!(!queue.acknowledge(1));
        next(&queue, connection);
        assert!(!queue.acknowledge(2) && !queue.acknowledge(u64::MAX) && queue.acknowledge(1));
        assert!(!queue.acknowledge(0) && queue.resume(0).is_none() && queue.resume(2).is_none());
    }

    #[test]
    fn a_new_session_begins_with_nothing_of_the_former_one() {
        let (queue, first) = begun();
        packet(&queue, "one");
        next(&queue, first);
        packet(&queue, "two");
        let second = queue.restart();
        packet(&queue, "three");
        assert!(queue.say(&ClientMessage::Logout), "whose sender has not heard of it yet");
        queue.begin();
        packet(&queue, "four");
        assert_eq!(next(&queue, second), "four");
        assert!(queue.acknowledge(1));
    }

    #[test]
    fn who_sends_packets_waits_for_room_and_is_woken_at_the_end() {
        let (queue, connection) = begun();
        thread::scope(|scope| {
            let sender = scope.spawn(|| (0..).take_while(|_| queue.packet(Vec::new(), vec![0; 9])).count());
            while queue.lock().packets.len() < MAX_PACKETS {
                thread::yield_now();
            }
            assert!(queue.next(connection).is_some());
            while queue.lock().packets.len() < MAX_PACKETS {
                thread::yield_now();
            }
            queue.end();
            assert_eq!(sender.join().expect("it ends"), MAX_PACKETS + 1);
        });
    }

    #[test]
    fn a_server_that_acknowledges_nothing_of_a_file_is_noticed() {
        const SIZE: usize = MAX_KEPT / 4;
        let (queue, first) = begun();
        let send = |connection| {
            assert!(queue.packet(Vec::new(), vec![0; SIZE]) && queue.next(connection).is_some());
        };
        (0..4).for_each(|_| send(first));
        assert!(!queue.is_stuck(Duration::ZERO), "there is room for one more");
        send(first);
        assert!(queue.is_stuck(Duration::ZERO) && !queue.is_stuck(DEAD_AFTER));
        let since = queue.lock().full;
        assert!(queue.acknowledge(0), "says nothing new");
        assert_eq!(queue.lock().full, since);
        assert!(queue.acknowledge(2) && !queue.is_stuck(Duration::ZERO));
        (0..2).for_each(|_| send(first));
        assert!(queue.is_stuck(Duration::ZERO));
        let full = queue.lock().full;
        assert!(queue.resume(2).is_some() && queue.lock().full > full, "a new connection has its own time");
    }
}
