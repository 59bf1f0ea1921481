//! The link to the server, over any number of connections: one thread reads and reconnects, one writes, and the owner
//! of the state waits for neither.
//!
//! Invariant: packets bypass the owner of the state, to and from the threads of their transfers, so a file at full
//! speed delays no messages. Outgoing frames wait in the `Queue`, whichever connection sends them; incoming ones wait
//! in the [`Inbox`], where nothing follows an [`Event::Closed`]. [`Liveness`] alone decides that a connection is
//! dead. Specification: PROTOCOL#resuming, PROTOCOL#life.

use super::connect::Connection;
use super::inbox::{Inbox, Wake};
use super::reconnect::{Reconnected, Reconnector, User};
use crate::auth::PasswordKey;
use crate::client::error::reason;
use crate::client::queue::Queue;
use crate::client::session::{Event, last_word};
use crate::client::text::seconds;
use crate::client::transfer::Router;
use crate::crypto::secret::random;
use crate::protocol::timing::{ANSWER, ANSWER_AWAKE, ANSWER_JITTER, ASK_IDLE, ASK_OWED};
use crate::protocol::{ClientMessage, MAX_PACKET, Packet, ServerMessage};
use crate::sync::lock;
use crate::wire::frame::Frame;
use crate::wire::liveness::{Liveness, Next, Patience};
use crate::wire::tls::{Channel, Received};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

/// How long the server may be silent; up to [`ANSWER_JITTER`] is added for each connection. PROTOCOL#life.
pub const PATIENCE: Patience = Patience {
    owed: ASK_OWED,
    idle: ASK_IDLE,
    answer: ANSWER,
    awake: ANSWER_AWAKE,
    // Longer than the round trip of a slow network.
    report: Duration::from_secs(2),
    tick: Duration::from_secs(1),
};
/// Time to send the queued frames at the end, when the user waits for messages that are in flight.
const FAREWELL: Duration = Duration::from_secs(30);
/// The same when the user does not wait: enough for a `logout`.
const HURRIED_FAREWELL: Duration = Duration::from_secs(1);

/// The link to the server.
pub struct Link {
    shared: Arc<Shared>,
}

/// The state that the link's owner and its threads share.
struct Shared {
    queue: Arc<Queue>,
    inbox: Arc<Inbox>,
    /// The channel of the current connection, or of the last one.
    channel: Mutex<Arc<Channel>>,
    /// The liveness of the same connection.
    liveness: Mutex<Liveness>,
    patience: Patience,
    /// Since when an answer of the server is due.
    owed: Mutex<Option<Instant>>,
    user: User,
    /// Pending answers to `renew`: no other `session` brings a token.
    renewals: AtomicU32,
}

impl Link {
    /// Starts both threads. The [inbox](Link::inbox) gets the server's messages in order, the state of the
    /// connection, and finally an [`Event::Closed`]; each calls `wake`. `router` gets the packets.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(
        connection: Connection,
        reconnector: Reconnector,
        router: Arc<Router>,
        patience: Patience,
        wake: Wake,
    ) -> io::Result<Link> {
        let (queue, now) = (Arc::new(Queue::default()), Instant::now());
        let shared = Arc::new(Shared {
            inbox: Arc::new(Inbox::new(queue.clone(), wake)),
            queue,
            channel: Mutex::new(connection.channel.clone()),
            liveness: Mutex::new(Liveness::new(jittered(patience), now, SystemTime::now())),
            patience,
            owed: Mutex::default(),
            user: User { key: Mutex::new(now), password_key: Mutex::default() },
            renewals: AtomicU32::new(0),
        });
        shared.queue.restart();
        shared.queue.begin();
        let writer = shared.spawn_writer()?;
        let reader = Reader { shared: shared.clone(), reconnector, router };
        let thread = thread::Builder::new().name("receive".into());
        thread.spawn(move || reader.run(connection, writer))?;
        Ok(Link { shared })
    }

    /// The incoming events.
    pub fn inbox(&self) -> Arc<Inbox> {
        self.shared.inbox.clone()
    }

    /// Sets since when an answer of the server is due, if one is.
    pub fn owes(&self, since: Option<Instant>) {
        *lock(&self.shared.owed) = since;
    }

    /// The user is present: ends a pause between two attempts.
    pub fn touch(&self) {
        *lock(&self.shared.user.key) = Instant::now();
    }

    /// Queues one message. False if 1,024 messages wait: the caller should give up.
    #[must_use]
    pub fn send(&self, message: &ClientMessage) -> bool {
        if matches!(message, ClientMessage::Renew(_)) {
            self.shared.renewals.fetch_add(1, Relaxed);
        }
        if matches!(message, ClientMessage::Logout) {
            // Otherwise senders are notified that messages shown here may not have arrived. PROTOCOL#ack-when.
            self.shared.inbox.acknowledge_now();
        }
        self.shared.queue.say(message)
    }

    /// From now on, queued messages belong to the new session.
    pub fn begin(&self) {
        self.shared.renewals.store(0, Relaxed);
        self.shared.queue.begin();
    }

    /// The queue, to which transfers send their packets.
    pub fn queue(&self) -> Arc<Queue> {
        self.shared.queue.clone()
    }

    /// A function that stores the key of a new password for later logins.
    pub fn password_keeper(&self) -> impl FnOnce(PasswordKey) + Send + 'static {
        let shared = self.shared.clone();
        move |key| *lock(&shared.user.password_key) = Some(key)
    }

    /// Sends what is queued and nothing after it; does not reconnect.
    pub fn end(&self) {
        self.shared.inbox.acknowledge_now();
        self.shared.queue.end();
    }

    /// Waits until everything queued is sent, for 30 s or, if `hurried`, for 1 s; then closes the connection.
    pub fn finish(self, hurried: bool) {
        self.end();
        self.shared.queue.wait_until_sent(if hurried { HURRIED_FAREWELL } else { FAREWELL });
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.queue.end();
        self.shared.inbox.close();
        self.shared.close();
    }
}

fn jittered(patience: Patience) -> Patience {
    // In proportion, because tests use a shorter patience.
    let most = patience.answer * ANSWER_JITTER.as_millis() as u32 / ANSWER.as_millis() as u32;
    let jitter = most * u32::from(random::<1>()[0]) / u32::from(u8::MAX);
    Patience { answer: patience.answer + jitter, ..patience }
}

impl Shared {
    fn close(&self) {
        lock(&self.channel).close();
    }

    fn spawn_writer(self: &Arc<Self>) -> io::Result<JoinHandle<()>> {
        let me = self.clone();
        thread::Builder::new().name("send".into()).spawn(move || me.write())
    }

    fn write(&self) {
        let channel = lock(&self.channel).clone();
        let (mut wire, ping) = (Vec::new(), ClientMessage::Ping.encode());
        let progressed = || lock(&self.liveness).heard(Instant::now());
        while let Some(pieces) = self.queue.next() {
            wire.clear();
            let encrypted = channel.encrypt(&pieces.concat(), &mut wire);
            if encrypted.and_then(|()| channel.send_patiently(&wire, progressed)).is_err() {
                // The reader notices the same failure.
                channel.close();
                return self.queue.finished();
            }
            if pieces[0] == ping {
                lock(&self.liveness).ping_written(Instant::now());
            }
        }
        channel.end();
        self.queue.finished();
    }
}

struct Reader {
    shared: Arc<Shared>,
    reconnector: Reconnector,
    router: Arc<Router>,
}

/// Why reading a connection has ended.
enum End {
    /// It broke.
    Lost(String),
    /// The link has ended: with a final [`Event::Closed`] for this reason, or without one.
    Over(Option<String>),
}

impl Reader {
    fn tell(&self, event: Event) -> bool {
        self.shared.inbox.tell(event)
    }

    fn run(mut self, mut connection: Connection, mut writer: JoinHandle<()>) {
        loop {
            let begun = Instant::now();
            let end = self.read(&mut connection);
            connection.channel.close();
            self.shared.queue.disconnect();
            // It does not block, because the socket is closed.
            let _ = writer.join();
            let next = match end {
                End::Lost(why) => self.restore(why, begun.elapsed()),
                End::Over(why) => Err(why),
            };
            match next {
                Ok(next) => (connection, writer) = next,
                Err(why) => {
                    why.map(|why| self.tell(Event::Closed(why)));
                    return;
                }
            }
        }
    }

    /// The next connection, after one that lasted for `lasted`. Errors: as [`End::Over`].
    fn restore(
        &mut self,
        why: String,
        lasted: Duration,
    ) -> Result<(Connection, JoinHandle<()>), Option<String>> {
        let (shared, lost) = (self.shared.clone(), Instant::now());
        if !self.tell(Event::Lost(why)) {
            return Err(None);
        }
        let restored = self.reconnector.restore((lost, lasted), &shared.user, &shared.queue, &shared.inbox);
        let (connection, again) = restored?;
        match &again {
            Reconnected::Resumed(received) => {
                shared.inbox.resumed();
                if !shared.queue.resume(*received) {
                    return Err(Some("it sent an invalid acknowledgement".into()));
                }
            }
            Reconnected::LoggedIn(_) => {
                shared.inbox.restart();
                shared.queue.restart();
            }
        }
        let (patience, now) = (jittered(shared.patience), Instant::now());
        *lock(&shared.channel) = connection.channel.clone();
        *lock(&shared.liveness) = Liveness::new(patience, now, SystemTime::now());
        // Before the event: a client that is leaving waits until the writer has sent everything.
        let writer = shared.spawn_writer().map_err(|error| {
            shared.close();
            Some(error.to_string())
        })?;
        let event = match again {
            Reconnected::Resumed(_) => Event::Resumed(lost.elapsed()),
            Reconnected::LoggedIn(key) => Event::LoggedIn(key, lost.elapsed()),
        };
        self.tell(event).then_some((connection, writer)).ok_or(None)
    }

    fn read(&mut self, connection: &mut Connection) -> End {
        let mut silent = None;
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
            let (next, since) = self.look();
            if since != silent {
                silent = since;
                self.tell(Event::Silent(silent));
            }
            let wait = match next {
                Next::Wait(wait) => wait,
                Next::Ask => {
                    // Otherwise a lost connection would report messages to their senders as lost that were shown long
                    // ago.
                    self.shared.inbox.acknowledge_now();
                    self.shared.queue.control(|control| control.ping = true);
                    continue;
                }
                Next::Drop => {
                    let time = silent.map_or(Duration::ZERO, |since| since.elapsed());
                    return End::Lost(format!("no answer for {}", seconds(time)));
                }
            };
            // At most a second, so that messages are acknowledged in time.
            let wait = self.shared.inbox.acknowledge_due().map_or(wait, |due| wait.min(due));
            match connection.channel.receive(&mut connection.reader, connection.lines.buffer(), wait) {
                Ok(Received::Some) => lock(&self.shared.liveness).heard(Instant::now()),
                Ok(Received::End) => return End::Lost("the server closed the connection".into()),
                Ok(Received::Silence) => {}
                Err(error) => return End::Lost(reason(&error)),
            }
        }
    }

    /// The next step of liveness, and since when an answer is missing.
    fn look(&self) -> (Next, Option<Instant>) {
        let (owed, owes_ack) = (*lock(&self.shared.owed), self.shared.queue.owes_ack());
        let (mut liveness, now) = (lock(&self.shared.liveness), Instant::now());
        liveness.owes(owed, owes_ack);
        let next = liveness.next(now, SystemTime::now());
        (next, liveness.silent(now))
    }

    fn take(&mut self, frame: Frame<'_>) -> Result<(), End> {
        let bytes = match &frame {
            Frame::Line(bytes) | Frame::Packet(bytes) => bytes.len(),
        };
        let event = match frame {
            Frame::Packet(body) => match Packet::decode(body) {
                Ok(packet) => {
                    self.router.packet(&packet);
                    None
                }
                Err(error) => Some(Event::Unreadable(error)),
            },
            Frame::Line(line) => match ServerMessage::decode(line) {
                Ok(ServerMessage::Ping) => {
                    self.shared.inbox.acknowledge_now();
                    self.shared.queue.control(|control| control.pongs = control.pongs.saturating_add(1));
                    return Ok(());
                }
                Ok(ServerMessage::Pong) => {
                    lock(&self.shared.liveness).answered(Instant::now());
                    return Ok(());
                }
                Ok(ServerMessage::Ack(ack)) => {
                    lock(&self.shared.liveness).answered(Instant::now());
                    let possible = self.shared.queue.acknowledge(ack.received);
                    let impossible = || End::Over(Some("it acknowledged frames that were never sent".into()));
                    return possible.then_some(()).ok_or_else(impossible);
                }
                Ok(ServerMessage::Grant(grant)) => {
                    self.router.grant(&grant);
                    None
                }
                Ok(ServerMessage::Refused(refused)) => {
                    self.router.refused(&refused);
                    None
                }
                // Another client of this user is online, and a reconnection would disconnect it; or the session has
                // ended for good.
                Ok(ServerMessage::Error(failure)) if last_word(&failure).is_some() => {
                    self.tell(Event::Server(ServerMessage::Error(failure)));
                    return Err(End::Over(None));
                }
                Ok(message) => {
                    // PROTOCOL#renew.
                    let is_due = |due: u32| due.checked_sub(1);
                    if let ServerMessage::Session(session) = &message
                        && self.shared.renewals.fetch_update(Relaxed, Relaxed, is_due).is_ok()
                    {
                        self.reconnector.set_token(session.token.duplicate());
                    }
                    Some(Event::Server(message))
                }
                Err(error) => Some(Event::Unreadable(error)),
            },
        };
        let is_wanted = self.shared.inbox.frame(event, bytes);
        is_wanted.then_some(()).ok_or(End::Over(None))
    }
}

#[cfg(test)]
mod tests {
    use super::super::connect::connect;
    use super::super::login::Credentials;
    use super::*;
    use crate::auth::PendingResume;
    use crate::client::options::Options;
    use crate::crypto::envelope::Envelope;
    use crate::crypto::keys::{IdentityKey, SessionKey};
    use crate::crypto::secret::{Key, Password};
    use crate::protocol::{EncryptedMessage, Received as Taken, WrappedKey};
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc::{Receiver, channel};

    /// Times a hundred times shorter.
    fn hasty() -> Patience {
        let Patience { owed, idle, answer, awake, report, tick } = PATIENCE;
        let [owed, idle, answer, awake, report, tick] =
            [owed, idle, answer, awake, report, tick].map(|time| time / 100);
        Patience { owed, idle, answer, awake, report, tick }
    }

    /// The server's end of a connection.
    struct ServerEnd(BufReader<TcpStream>);

    impl ServerEnd {
        fn accept(listener: &TcpListener) -> ServerEnd {
            let socket = listener.accept().expect("the client connects").0;
            socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a time");
            ServerEnd(BufReader::new(socket))
        }

        fn say(&mut self, message: &ServerMessage) {
            self.0.get_mut().write_all(&message.encode()).expect("the client reads");
        }

        fn hear(&mut self) -> Option<ClientMessage> {
            let mut line = Vec::new();
            self.0.read_until(b'\n', &mut line).ok().filter(|length| *length > 0)?;
            ClientMessage::decode(line.trim_ascii_end()).ok()
        }

        fn resumes(listener: &TcpListener, received: u64) -> ServerEnd {
            ServerEnd::resumes_with(listener, received, &[]).0
        }

        /// Also returns which of these tokens the client has proven.
        fn resumes_with(listener: &TcpListener, received: u64, tokens: &[Key]) -> (ServerEnd, Option<usize>) {
            let mut end = ServerEnd::accept(listener);
            let Some(ClientMessage::ResumeRequest(request)) = end.hear() else { panic!("no request") };
            let (pending, challenge) = PendingResume::new(request.username);
            end.say(&ServerMessage::ResumeChallenge(challenge));
            let Some(ClientMessage::Resume(answer)) = end.hear() else { panic!("no answer") };
            end.say(&ServerMessage::Resumed(Taken { received }));
            (end, pending.verify(&answer, b"", tokens))
        }
    }

    /// A link in a session, its server, and what wakes the link's owner.
    fn link(patience: Patience) -> (Link, TcpListener, ServerEnd, Receiver<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port().to_string();
        let words = ["--no-tls", "--host", "127.0.0.1", "--port", &port, "--data-dir", "/nowhere"];
        let options = Options::of(&words);
        let connection = connect(&options, |_| false).expect("it listens");
        let end = ServerEnd::accept(&listener);
        let (name, identity) = ("alice".parse().expect("name"), Arc::new(IdentityKey::generate()));
        let password_key = PasswordKey::new(&Password::new("a password".into()));
        let credentials = Credentials { name, identity, password_key };
        let reconnector = Reconnector::new(&options, credentials, Key::random());
        let (wake, woken) = channel();
        let wake = Box::new(move || _ = wake.send(()));
        let link = Link::start(connection, reconnector, Arc::default(), patience, wake).expect("threads");
        (link, listener, end, woken)
    }

    fn next(link: &Link, woken: &Receiver<()>) -> Event {
        loop {
            if let Some(event) = link.inbox().next() {
                return event;
            }
            woken.recv_timeout(Duration::from_secs(60)).expect("something happens");
        }
    }

    /// PROTOCOL#life.
    #[test]
    fn silent_server_is_pinged_reported_dropped_and_resumed() {
        let (link, listener, mut end, woken) = link(hasty());
        for round in 0..3 {
            link.owes(Some(Instant::now()));
            assert!(matches!(end.hear(), Some(ClientMessage::Ping)), "round {round}");
            assert!(matches!(next(&link, &woken), Event::Silent(Some(_))));
            assert!(matches!(next(&link, &woken), Event::Lost(why) if why.starts_with("no answer for ")));
            end = ServerEnd::resumes(&listener, 0);
            while !matches!(next(&link, &woken), Event::Resumed(_)) {}
        }
        link.finish(false);
    }

    /// PROTOCOL#pong.
    #[test]
    fn server_that_answers_is_never_dropped() {
        let (link, _listener, mut end, woken) = link(Patience { answer: Duration::from_secs(60), ..hasty() });
        link.owes(Some(Instant::now()));
        for _ in 0..20 {
            assert!(matches!(end.hear(), Some(ClientMessage::Ping)));
            end.say(&ServerMessage::Pong);
        }
        // Other notices of slow answers may have come first.
        drop(woken);
        while let Some(event) = link.inbox().next() {
            assert!(matches!(event, Event::Silent(_)));
        }
    }

    /// PROTOCOL#life.
    #[test]
    fn server_that_sends_but_never_answers_is_reported() {
        let (link, _listener, mut end, _woken) =
            link(Patience { answer: Duration::from_secs(60), ..hasty() });
        link.owes(Some(Instant::now()));
        assert!(matches!(end.hear(), Some(ClientMessage::Ping)));
        let event = loop {
            end.say(&ServerMessage::Ping);
            assert!(matches!(end.hear(), Some(ClientMessage::Pong)), "the server is asked once");
            if let Some(event) = link.inbox().next() {
                break event;
            }
        };
        assert!(matches!(event, Event::Silent(Some(_))));
    }

    /// PROTOCOL#life.
    #[test]
    fn server_that_reads_nothing_is_dropped_without_a_ping() {
        let (link, listener, _end, woken) = link(hasty());
        let queue = link.queue();
        let packet = move || queue.packet(vec![b'x'; 60_000], vec![b'\n'], PATIENCE.answer);
        let sender = thread::spawn(move || while packet().is_ok() {});
        while !matches!(next(&link, &woken), Event::Lost(_)) {}
        let mut end = ServerEnd::resumes(&listener, 0);
        let mut line = Vec::new();
        end.0.read_until(b'\n', &mut line).expect("it is resent");
        assert_eq!(line.len(), 60_001);
        drop(link);
        sender.join().expect("it ends");
    }

    /// PROTOCOL#ack-when.
    #[test]
    fn taken_direct_messages_are_acknowledged_on_a_quiet_line() {
        let hour = Duration::from_secs(3600);
        let (link, _listener, mut end, woken) = link(Patience { owed: hour, idle: hour, ..PATIENCE });
        for round in 1..4 {
            let mut envelope = Envelope::sample();
            envelope.header.recipient = "alice".parse().ok();
            let message = EncryptedMessage { envelope, key: WrappedKey::new(&[10; 264]) };
            end.say(&ServerMessage::EncryptedMessage(Box::new(message)));
            assert!(matches!(next(&link, &woken), Event::Server(ServerMessage::EncryptedMessage(_))));
            assert!(matches!(end.hear(), Some(ClientMessage::Ack(Taken { received })) if received == round));
        }
    }

    #[test]
    fn stuck_session_delays_no_pong_and_gets_all_later() {
        let (link, _listener, mut end, woken) = link(PATIENCE);
        for _ in 0..100 {
            end.say(&ServerMessage::error(crate::protocol::ErrorCode::Malformed, "x".repeat(10_000)));
        }
        end.say(&ServerMessage::Ping);
        assert!(matches!(end.hear(), Some(ClientMessage::Pong)), "nothing is acknowledged before");
        for _ in 0..100 {
            assert!(matches!(next(&link, &woken), Event::Server(ServerMessage::Error(_))));
        }
        assert!(matches!(end.hear(), Some(ClientMessage::Ack(_))));
    }

    /// PROTOCOL#renew.
    #[test]
    fn only_the_answer_to_a_renewal_brings_a_token() {
        let (link, listener, mut end, woken) = link(PATIENCE);
        let (name, key) = ("alice".parse().expect("name"), SessionKey::generate());
        let renew = ClientMessage::Renew(Box::new(IdentityKey::generate().certify(&name, &key, 1)));
        let other = ClientMessage::KeysRequest(crate::protocol::KeysRequest { names: vec![name] });
        let say = |message: &ClientMessage, end: &mut ServerEnd| {
            assert!(link.send(message));
            while end.hear().expect("a message").encode() != message.encode() {}
        };
        let grant = |token: &Key, end: &mut ServerEnd| {
            let session = crate::protocol::Session { token: token.duplicate(), expires: 1, newest: 1 };
            end.say(&ServerMessage::Session(session));
            assert!(matches!(next(&link, &woken), Event::Server(ServerMessage::Session(_))));
        };
        let [of_former_session, unrequested, new, after_another] = [1, 2, 3, 4].map(|n| Key::new([n; 32]));
        say(&renew, &mut end);
        link.shared.queue.restart();
        link.begin();
        grant(&of_former_session, &mut end);
        grant(&unrequested, &mut end);
        say(&renew, &mut end);
        grant(&new, &mut end);
        say(&other, &mut end);
        grant(&after_another, &mut end);
        drop(end);
        let tokens = [of_former_session, unrequested, new, after_another];
        assert_eq!(ServerEnd::resumes_with(&listener, 0, &tokens).1, Some(2));
    }

    /// PROTOCOL#ack-true.
    #[test]
    fn acknowledgement_of_unsent_frames_ends_the_client() {
        for resumes in [false, true] {
            let (link, listener, mut end, woken) = link(PATIENCE);
            if resumes {
                drop(end);
                end = ServerEnd::resumes(&listener, 1);
            } else {
                end.say(&ServerMessage::Ack(Taken { received: 1 }));
            }
            let why = loop {
                if let Event::Closed(why) = next(&link, &woken) {
                    break why;
                }
            };
            assert!(why.contains("acknowledge"), "{why}");
            drop(end);
        }
    }

    /// PROTOCOL#ack-when.
    #[test]
    fn pong_ping_logout_and_end_come_after_an_acknowledgement() {
        let cases: [fn(&Link, &mut ServerEnd); 4] = [
            |_, end| end.say(&ServerMessage::Ping),
            |link, _| link.owes(Some(Instant::now())),
            |link, _| assert!(link.send(&ClientMessage::Logout)),
            |link, _| link.end(),
        ];
        for (number, case) in cases.into_iter().enumerate() {
            let (link, _listener, mut end, woken) =
                link(Patience { owed: Duration::from_millis(10), ..PATIENCE });
            end.say(&ServerMessage::error(crate::protocol::ErrorCode::Malformed, "x"));
            assert!(matches!(next(&link, &woken), Event::Server(ServerMessage::Error(_))));
            case(&link, &mut end);
            let heard = end.hear();
            assert!(matches!(&heard, Some(ClientMessage::Ack(Taken { received: 1 }))), "{number}");
        }
    }

    /// PROTOCOL#elsewhere.
    #[test]
    fn final_error_ends_the_client_without_another_attempt() {
        let (link, listener, mut end, woken) = link(PATIENCE);
        end.say(&ServerMessage::error(crate::protocol::ErrorCode::SignedInElsewhere, "x"));
        assert!(matches!(next(&link, &woken), Event::Server(ServerMessage::Error(_))));
        // It may have closed the connection already.
        let _ = end.0.get_mut().write_all(&ServerMessage::Ping.encode());
        assert!(end.hear().is_none(), "the client closes the connection");
        drop((link, end));
        listener.set_nonblocking(true).expect("a listener");
        assert!(listener.accept().is_err());
    }
}
