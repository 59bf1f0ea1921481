//! A relay between clients and a server that plays a network: it delays, limits and buffers each direction, holds it as a
//! network that has gone silent does, cuts connections, and leads to another server. It never polls: each thread waits for
//! bytes, for room, or for the instant at which bytes are due.

use super::{Client, Folder, Server};
use secure_messenger::crypto::secret::random;
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The most that is read at once, and held unless a [`Shape`] says otherwise.
const PIECE: usize = 16 * 1024;
/// Kernel buffers of a relay whose rate is limited, so that the modelled buffer is the only one that counts.
const SMALL_BUFFER: usize = 64 * 1024;

/// What a network does to the bytes of one direction. Connections through the same relay share its rate and buffer.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// From the end of a byte's transmission to its arrival.
    pub delay: Duration,
    /// Up to this much is added to the delay, at random. Bytes stay in order.
    pub jitter: Duration,
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that the network holds at most, on their way or waiting. Beyond that the sender waits.
    pub buffer: usize,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape { delay: Duration::ZERO, jitter: Duration::ZERO, rate: u64::MAX, buffer: PIECE }
    }
}

impl Shape {
    /// A long fast line: this many milliseconds, and room for whatever is on its way.
    pub fn long(milliseconds: u64) -> Shape {
        let delay = Duration::from_millis(milliseconds);
        Shape { delay, buffer: 64 * 1024 * 1024, ..Shape::default() }
    }

    /// A slow line behind a deep buffer, as many routers have: 4 MB.
    pub fn slow(rate: u64) -> Shape {
        Shape { rate, buffer: 4_000_000, ..Shape::default() }
    }
}

/// A relay to the server.
pub struct Gate {
    pub port: u16,
    /// What clients send, and what the server sends.
    there: Arc<Flow>,
    back: Arc<Flow>,
    /// The port that it leads to; 0 while it is shut.
    target: Arc<AtomicU16>,
    /// Both ends of every connection.
    sockets: Arc<Mutex<Vec<TcpStream>>>,
}

impl Gate {
    /// One that delays and limits nothing.
    pub fn before(server: &Server) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (target, sockets) = (Arc::new(AtomicU16::new(server.port)), Arc::<Mutex<Vec<_>>>::default());
        let [there, back] = [(); 2].map(|()| Arc::new(Flow::default()));
        let gate = Gate { port, there, back, target, sockets };
        let (there, back) = (gate.there.clone(), gate.back.clone());
        let (target, sockets) = (gate.target.clone(), gate.sockets.clone());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // Under the lock, so that no connection slips through while the others are cut.
                let mut all = sockets.lock().expect("whole");
                let Ok(server) = TcpStream::connect(("127.0.0.1", target.load(Ordering::SeqCst))) else {
                    continue;
                };
                let is_limited = there.is_limited() || back.is_limited();
                for socket in [&client, &server] {
                    socket.set_nodelay(true).expect("a socket");
                    if is_limited {
                        limit_kernel(socket);
                    }
                    all.push(socket.try_clone().expect("a second handle"));
                }
                drop(all);
                there.connect(&client, &server);
                back.connect(&server, &client);
            }
        });
        gate
    }

    /// From now on, this happens to what clients send, and to what the server sends.
    pub fn shape(&self, there: Shape, back: Shape) {
        self.there.change(|state| state.shape = there);
        self.back.change(|state| state.shape = back);
        if self.there.is_limited() || self.back.is_limited() {
            self.sockets.lock().expect("whole").iter().for_each(limit_kernel);
        }
    }

    /// The most bytes that this relay has held at once, from clients and from the server, since the last call.
    pub fn most_held(&self) -> (usize, usize) {
        let most = |flow: &Flow| {
            let mut state = flow.state.lock().expect("whole");
            let held = state.held;
            std::mem::replace(&mut state.most_held, held)
        };
        (most(&self.there), most(&self.back))
    }

    /// Breaks every connection.
    pub fn cut(&self) {
        for socket in self.sockets.lock().expect("whole").drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Breaks every connection, and accepts no other.
    pub fn shut(&self) {
        self.target.store(0, Ordering::SeqCst);
        self.cut();
    }

    /// From now on, connections lead there.
    pub fn lead_to(&self, server: &Server) {
        self.target.store(server.port, Ordering::SeqCst);
    }

    /// A plain-mode client behind it.
    pub fn client(&self, home: Arc<Folder>, name: &str, arguments: &[&str]) -> Client {
        Client::within(home, self.port, name, true, arguments)
    }

    /// Bytes from clients that have passed.
    pub fn passed(&self) -> u64 {
        self.there.state.lock().expect("whole").passed
    }

    /// Holds what clients send, and the end of their connections, after about this many bytes more.
    pub fn hold_after(&self, more: u64) {
        self.there.hold_after(more);
    }

    /// Holds nothing that clients send.
    pub fn open(&self) {
        self.hold_after(u64::MAX);
    }

    /// Holds what the server sends, or holds it no longer.
    pub fn hold_answers(&self, held: bool) {
        self.back.hold_after(if held { 0 } else { u64::MAX });
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // Otherwise the server would not see the end of a client that has gone.
        self.open();
        self.hold_answers(false);
    }
}

fn limit_kernel(socket: &TcpStream) {
    let socket = SockRef::from(socket);
    // A socket that was cut meanwhile has none.
    let _ = socket.set_recv_buffer_size(SMALL_BUFFER);
    let _ = socket.set_send_buffer_size(SMALL_BUFFER);
}

/// One direction of all connections through a relay.
struct Flow {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    shape: Shape,
    /// Bytes that have passed, and those that may.
    passed: u64,
    limit: u64,
    /// Until when the bytes that have been read are being transmitted.
    busy_until: Instant,
    /// Bytes that were read and have not been written.
    held: usize,
    most_held: usize,
}

impl Default for Flow {
    fn default() -> Flow {
        let state = State {
            shape: Shape::default(),
            passed: 0,
            limit: u64::MAX,
            busy_until: Instant::now(),
            held: 0,
            most_held: 0,
        };
        Flow { state: Mutex::new(state), changed: Condvar::new() }
    }
}

/// Bytes on their way. They count as held until they are written or dropped.
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
        self.state.lock().expect("whole").shape.rate < u64::MAX
    }

    fn hold_after(&self, more: u64) {
        self.change(|state| state.limit = state.passed.saturating_add(more));
    }

    /// Starts the two threads of one connection's direction.
    fn connect(self: &Arc<Self>, from: &TcpStream, to: &TcpStream) {
        let [from, to] = [from, to].map(|socket| socket.try_clone().expect("a second handle"));
        let (pieces, row) = channel();
        let flow = self.clone();
        thread::spawn(move || flow.read(&from, &pieces));
        let flow = self.clone();
        thread::spawn(move || {
            let _ = flow.write(&to, &row);
            let _ = to.shutdown(Shutdown::Both);
        });
    }

    /// Reads while there is room, and nothing while the direction is held.
    fn read(self: &Arc<Self>, mut from: &TcpStream, row: &Sender<Piece>) {
        let mut buffer = [0; PIECE];
        loop {
            let full = |state: &mut State| state.passed >= state.limit || state.held >= state.shape.buffer;
            let state = self.changed.wait_while(self.state.lock().expect("whole"), full).expect("whole");
            // At most 20 ms of a slow line.
            let most = usize::try_from(state.shape.rate / 50).unwrap_or(PIECE).clamp(1024, PIECE);
            drop(state);
            match from.read(&mut buffer[..most]) {
                Ok(length) if length > 0 => {
                    let piece = self.take(&buffer[..length]);
                    if row.send(piece).is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    }

    fn take(self: &Arc<Self>, bytes: &[u8]) -> Piece {
        let mut state = self.state.lock().expect("whole");
        let shape = state.shape;
        let transmission = Duration::from_nanos(bytes.len() as u64 * 1_000_000_000 / shape.rate);
        state.busy_until = state.busy_until.max(Instant::now()) + transmission;
        state.held += bytes.len();
        state.most_held = state.most_held.max(state.held);
        let jitter = shape.jitter * u32::from(random::<1>()[0]) / 255;
        let due = state.busy_until + shape.delay + jitter;
        Piece { bytes: bytes.to_vec(), due, flow: self.clone() }
    }

    /// Writes each piece when it is due and not held.
    fn write(&self, mut to: &TcpStream, row: &Receiver<Piece>) -> std::io::Result<()> {
        let held = |state: &mut State| state.passed >= state.limit;
        for piece in row {
            let mut state = self.state.lock().expect("whole");
            loop {
                state = self.changed.wait_while(state, held).expect("whole");
                let left = piece.due.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                state = self.changed.wait_timeout(state, left).expect("whole").0;
            }
            state.passed += piece.bytes.len() as u64;
            drop(state);
            to.write_all(&piece.bytes)?;
        }
        drop(self.changed.wait_while(self.state.lock().expect("whole"), held).expect("whole"));
        Ok(())
    }
}
