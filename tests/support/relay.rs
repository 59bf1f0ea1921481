//! The network between clients and a server: a relay that delays, limits, splits, holds, alters, records or cuts the
//! traffic in either direction, and that can redirect it to another server. It never polls: each thread waits for
//! bytes, for room, or for the time at which bytes are due.

use super::{Client, Dice, Folder, Server};
use secure_messenger::crypto::secret::random;
use secure_messenger::protocol::MAX_PACKET;
use secure_messenger::wire::frame::{self, Frame, Lines};
use socket2::SockRef;
use std::io::{Error, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// The maximum of one read, and of the bytes held unless a [`Shape`] allows more.
const PIECE: usize = 16 * 1024;
/// The kernel buffers of a relay with a limited rate: small, so that only the modelled buffer matters.
const SMALL_BUFFER: usize = 64 * 1024;

/// The properties of the network in one direction. All connections through a relay share its rate and buffer.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// The time from the end of a byte's transmission to its arrival.
    pub delay: Duration,
    /// The maximum of a random addition to the delay. Bytes stay in order.
    pub jitter: Duration,
    /// Bytes a second.
    pub rate: u64,
    /// The maximum number of bytes in the network, in flight or queued. Beyond that, the sender waits.
    pub buffer: usize,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape { delay: Duration::ZERO, jitter: Duration::ZERO, rate: u64::MAX, buffer: PIECE }
    }
}

impl Shape {
    /// A long fast line: a delay of this many milliseconds, and enough buffer for everything in flight.
    pub fn long(milliseconds: u64) -> Shape {
        let delay = Duration::from_millis(milliseconds);
        Shape { delay, buffer: 64 * 1024 * 1024, ..Shape::default() }
    }

    /// A slow line behind a deep buffer of 4 MB, as many routers have.
    pub fn slow(rate: u64) -> Shape {
        Shape { rate, buffer: 4_000_000, ..Shape::default() }
    }
}

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From clients to the server.
    Up,
    Down,
}

/// The unit in which a hook gets the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// The bytes of one read.
    Bytes,
    /// One TLS record.
    Records,
    /// One line with its line end, or one packet; only without TLS.
    Frames,
}

/// Gets each unit of one direction, and returns the bytes to pass on instead.
type Hook = Box<dyn FnMut(Vec<u8>) -> Vec<u8> + Send>;

/// A relay to the server.
pub struct Gate {
    pub port: u16,
    tls: bool,
    /// From clients, and from the server.
    flows: [Arc<Flow>; 2],
    /// The server's port; 0 while the relay is shut.
    target: Arc<AtomicU16>,
    is_over: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<Weak<Connection>>>>,
    /// Connections that are lost for the client and still open for the server.
    standing: Mutex<Vec<Arc<Connection>>>,
}

/// The client's end and the server's.
struct Connection {
    ends: [TcpStream; 2],
    is_standing: AtomicBool,
}

impl Connection {
    fn cut(&self) {
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Gate {
    /// A relay that changes nothing.
    pub fn before(server: &Server) -> Gate {
        Gate::of(server, Unit::Bytes)
    }

    /// A relay whose hooks get these units.
    pub fn of(server: &Server, unit: Unit) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let gate = Gate {
            port: listener.local_addr().expect("bound").port(),
            tls: server.tls,
            flows: [(); 2].map(|()| Arc::new(Flow::default())),
            target: Arc::new(AtomicU16::new(server.port)),
            is_over: Arc::default(),
            connections: Arc::default(),
            standing: Mutex::default(),
        };
        let (flows, target, connections) =
            (gate.flows.clone(), gate.target.clone(), gate.connections.clone());
        let is_over = gate.is_over.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                // Connect under the lock, so that `cut` misses no connection.
                let mut all = connections.lock().expect("whole");
                let Ok(server) = TcpStream::connect(("127.0.0.1", target.load(Ordering::SeqCst))) else {
                    continue;
                };
                let is_limited = flows.iter().any(|flow| flow.is_limited());
                for end in [&client, &server] {
                    end.set_nodelay(true).expect("a socket");
                    if is_limited {
                        limit_kernel(end);
                    }
                }
                let is_standing = AtomicBool::new(false);
                let connection = Arc::new(Connection { ends: [client, server], is_standing });
                all.retain(|one| one.strong_count() > 0);
                all.push(Arc::downgrade(&connection));
                for way in [Way::Up, Way::Down] {
                    flows[way as usize].connect(&connection, way, unit);
                }
            }
        });
        gate
    }

    fn flow(&self, way: Way) -> &Flow {
        &self.flows[way as usize]
    }

    /// Replaces the hook of one direction, for open and future connections.
    pub fn hook(&self, way: Way, hook: impl FnMut(Vec<u8>) -> Vec<u8> + Send + 'static) {
        *self.flow(way).hook.lock().expect("whole") = Box::new(hook);
    }

    /// Records the traffic of one direction from now on, unit by unit.
    pub fn record(&self, way: Way) -> Arc<Mutex<Vec<Vec<u8>>>> {
        let record = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let kept = record.clone();
        self.hook(way, move |unit| {
            kept.lock().expect("whole").push(unit.clone());
            unit
        });
        record
    }

    /// Sends extra bytes on the newest connection, between two units.
    pub fn inject(&self, way: Way, bytes: &[u8]) {
        let flow = &self.flows[way as usize];
        let newest = flow.state.lock().expect("whole").newest.clone();
        let is_open = newest.expect("connected").send(Some(flow.take(bytes.to_vec()))).is_ok();
        assert!(is_open, "the connection is open");
    }

    /// Sets the shape of the traffic from clients, and from the server.
    pub fn shape(&self, there: Shape, back: Shape) {
        self.flow(Way::Up).change(|state| state.shape = there);
        self.flow(Way::Down).change(|state| state.shape = back);
        if self.flows.iter().any(|flow| flow.is_limited()) {
            self.live().iter().flat_map(|one| &one.ends).for_each(limit_kernel);
        }
    }

    /// Keeps the kernel's buffers of future connections small, even with an unlimited rate.
    pub fn limit_kernel(&self) {
        self.flow(Way::Up).change(|state| state.is_limited = true);
    }

    /// Splits the traffic at random positions from `dice`.
    pub fn split(&self, dice: &Dice) {
        self.flows.iter().for_each(|flow| flow.change(|state| state.split = Some(dice.clone())));
    }

    fn live(&self) -> Vec<Arc<Connection>> {
        self.connections.lock().expect("whole").iter().filter_map(Weak::upgrade).collect()
    }

    /// The maximum number of bytes held at once since the last call, from clients and from the server.
    pub fn most_held(&self) -> (usize, usize) {
        let most = |flow: &Flow| {
            let mut state = flow.state.lock().expect("whole");
            let held = state.held;
            std::mem::replace(&mut state.most_held, held)
        };
        (most(self.flow(Way::Up)), most(self.flow(Way::Down)))
    }

    /// Breaks every connection.
    pub fn cut(&self) {
        self.live().iter().for_each(|one| one.cut());
    }

    /// Breaks every connection for its client only: to the server, it stays open.
    pub fn lose_clients(&self) {
        let mut standing = self.standing.lock().expect("whole");
        *standing = self.live();
        for one in &*standing {
            one.is_standing.store(true, Ordering::SeqCst);
            let _ = one.ends[0].shutdown(Shutdown::Both);
        }
    }

    /// Passes `more` further bytes in this direction, then cuts each connection that sends, until [`Gate::heal`].
    pub fn cut_after(&self, way: Way, more: u64) {
        self.flow(way).change(|state| state.end = state.passed.saturating_add(more));
    }

    /// Ends [`Gate::cut_after`].
    pub fn heal(&self) {
        self.flows.iter().for_each(|flow| flow.change(|state| state.end = u64::MAX));
    }

    /// Stops all traffic in both directions for this long.
    pub fn stall(&self, time: Duration) {
        self.flows.iter().for_each(|flow| flow.change(|state| state.busy_until = Instant::now() + time));
    }

    /// Breaks every connection, and accepts no new one.
    pub fn shut(&self) {
        self.target.store(0, Ordering::SeqCst);
        self.cut();
    }

    /// Redirects new connections to this server.
    pub fn lead_to(&self, server: &Server) {
        self.target.store(server.port, Ordering::SeqCst);
    }

    /// A plain-mode client that connects through this relay.
    pub fn client(&self, home: Arc<Folder>, name: &str, arguments: &[&str]) -> Client {
        Client::within(home, self.port, name, self.tls, arguments)
    }

    /// The number of bytes passed on from clients so far.
    pub fn passed(&self) -> u64 {
        self.flow(Way::Up).state.lock().expect("whole").passed
    }

    /// Holds the traffic from clients, and the end of their connections, after about this many further bytes.
    pub fn hold_after(&self, more: u64) {
        self.flow(Way::Up).hold_after(more);
    }

    /// Releases the traffic from clients.
    pub fn open(&self) {
        self.hold_after(u64::MAX);
    }

    /// Holds the traffic from the server, or releases it.
    pub fn hold_answers(&self, held: bool) {
        self.flow(Way::Down).hold_after(if held { 0 } else { u64::MAX });
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // Otherwise the server would not notice that a client has disconnected.
        self.open();
        self.hold_answers(false);
        self.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn limit_kernel(socket: &TcpStream) {
    let socket = SockRef::from(socket);
    // Fails for a socket that was cut meanwhile.
    let _ = socket.set_recv_buffer_size(SMALL_BUFFER);
    let _ = socket.set_send_buffer_size(SMALL_BUFFER);
}

/// One direction of all connections through a relay.
struct Flow {
    hook: Mutex<Hook>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    shape: Shape,
    /// Bytes passed so far, and the number after which they are held.
    passed: u64,
    limit: u64,
    /// The number of passed bytes at which connections are cut.
    end: u64,
    split: Option<Dice>,
    /// Whether the kernel's buffers are small even with an unlimited rate.
    is_limited: bool,
    newest: Option<Sender<Option<Piece>>>,
    /// The end of the transmission of all bytes read so far.
    busy_until: Instant,
    /// Bytes that were read and not written yet.
    held: usize,
    most_held: usize,
}

impl Default for Flow {
    fn default() -> Flow {
        let state = State {
            shape: Shape::default(),
            passed: 0,
            limit: u64::MAX,
            end: u64::MAX,
            split: None,
            is_limited: false,
            newest: None,
            busy_until: Instant::now(),
            held: 0,
            most_held: 0,
        };
        Flow { hook: Mutex::new(Box::new(|bytes| bytes)), state: Mutex::new(state), changed: Condvar::new() }
    }
}

/// Bytes in flight. They count as held until they are written or dropped.
struct Piece {
    bytes: Vec<u8>,
    due: Instant,
    flow: Arc<Flow>,
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.flow.change(|state| state.held -= self.bytes.len());
    }
}

impl Flow {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("whole"));
        self.changed.notify_all();
    }

    fn is_limited(&self) -> bool {
        let state = self.state.lock().expect("whole");
        state.is_limited || state.shape.rate < u64::MAX
    }

    fn hold_after(&self, more: u64) {
        self.change(|state| state.limit = state.passed.saturating_add(more));
    }

    /// Starts the two threads of one direction of a connection.
    fn connect(self: &Arc<Self>, connection: &Arc<Connection>, way: Way, unit: Unit) {
        let (from, to) = (way as usize, 1 - way as usize);
        let (pieces, queue) = channel();
        self.change(|state| state.newest = Some(pieces.clone()));
        let (flow, one) = (self.clone(), connection.clone());
        thread::spawn(move || flow.read(&one.ends[from], unit, &pieces));
        let (flow, one) = (self.clone(), connection.clone());
        thread::spawn(move || {
            let is_cut = flow.write(&one.ends[to], &queue).is_err();
            if one.is_standing.load(Ordering::SeqCst) {
                return;
            }
            if is_cut {
                one.cut();
            } else {
                let _ = one.ends[to].shutdown(Shutdown::Both);
            }
        });
    }

    /// Reads while there is room and the direction is not held.
    fn read(self: &Arc<Self>, mut from: &TcpStream, unit: Unit, queue: &Sender<Option<Piece>>) {
        let (mut buffer, mut units) = ([0; PIECE], Units::new(unit));
        loop {
            let full = |state: &mut State| state.passed >= state.limit || state.held >= state.shape.buffer;
            let state = self.changed.wait_while(self.state.lock().expect("whole"), full).expect("whole");
            // At most 20 ms of a slow line.
            let mut most = usize::try_from(state.shape.rate / 50).unwrap_or(PIECE).clamp(1024, PIECE);
            if let Some(dice) = &state.split {
                // Half of the pieces are so small that a cut can fall on any byte.
                most = 1 + dice.below(if dice.below(2) == 0 { 64 } else { 4096 }) as usize;
            }
            drop(state);
            let Ok(length @ 1..) = from.read(&mut buffer[..most]) else { break };
            for one in units.take(&buffer[..length]) {
                let passed = (self.hook.lock().expect("whole"))(one);
                if !passed.is_empty() && queue.send(Some(self.take(passed))).is_err() {
                    return;
                }
            }
        }
        let _ = queue.send(None);
    }

    fn take(self: &Arc<Self>, bytes: Vec<u8>) -> Piece {
        let mut state = self.state.lock().expect("whole");
        let shape = state.shape;
        let transmission = Duration::from_nanos(bytes.len() as u64 * 1_000_000_000 / shape.rate);
        state.busy_until = state.busy_until.max(Instant::now()) + transmission;
        state.held += bytes.len();
        state.most_held = state.most_held.max(state.held);
        let jitter = shape.jitter * u32::from(random::<1>()[0]) / 255;
        let due = state.busy_until + shape.delay + jitter;
        Piece { bytes, due, flow: self.clone() }
    }

    /// Writes each piece when it is due and the direction is not held.
    fn write(&self, mut to: &TcpStream, queue: &Receiver<Option<Piece>>) -> std::io::Result<()> {
        let held = |state: &mut State| state.passed >= state.limit;
        while let Ok(Some(piece)) = queue.recv() {
            let mut state = self.state.lock().expect("whole");
            loop {
                state = self.changed.wait_while(state, held).expect("whole");
                let left = piece.due.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                state = self.changed.wait_timeout(state, left).expect("whole").0;
            }
            let left = usize::try_from(state.end.saturating_sub(state.passed)).unwrap_or(usize::MAX);
            let passing = left.min(piece.bytes.len());
            state.passed += passing as u64;
            drop(state);
            to.write_all(&piece.bytes[..passing])?;
            if passing == left {
                return Err(Error::other("cut"));
            }
        }
        drop(self.changed.wait_while(self.state.lock().expect("whole"), held).expect("whole"));
        Ok(())
    }
}

/// Cuts the bytes of one direction of a connection into units.
struct Units {
    unit: Unit,
    rest: Vec<u8>,
    lines: Lines,
}

impl Units {
    fn new(unit: Unit) -> Units {
        Units { unit, rest: Vec::new(), lines: Lines::new(4 * 1024 * 1024) }
    }

    fn take(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        const HEAD: usize = 5;
        let mut units = Vec::new();
        match self.unit {
            Unit::Bytes => units.push(bytes.to_vec()),
            Unit::Records => {
                self.rest.extend_from_slice(bytes);
                while let Some(&[.., high, low]) = self.rest.get(..HEAD) {
                    let length = HEAD + usize::from(u16::from_be_bytes([high, low]));
                    if self.rest.len() < length {
                        break;
                    }
                    units.push(self.rest.drain(..length).collect());
                }
            }
            Unit::Frames => {
                self.lines.buffer().extend_from_slice(bytes);
                while let Some(frame) = self.lines.next_frame(MAX_PACKET).expect("bounded frames") {
                    units.push(match frame {
                        Frame::Line(line) => [line, b"\n"].concat(),
                        Frame::Packet(body) => [&frame::packet_head(b"", body), body].concat(),
                    });
                }
            }
        }
        units
    }
}
