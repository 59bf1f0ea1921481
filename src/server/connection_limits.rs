//! The number of connections: in all, per address, and not logged in yet.
//!
//! Invariant: connections are limited per address and in total; beyond these limits, the server refuses a new
//! connection. Beyond the limit of connections that are not logged in, it closes the oldest of them, and never a
//! logged-in one.

use super::limits::Limits;
use super::rates::origin;
use crate::sync::lock;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::{Arc, Mutex};

/// See the module.
pub struct ConnectionLimits {
    state: Mutex<State>,
    limits: Limits,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Not logged in, by number, oldest first.
    waiting: BTreeMap<u64, Arc<TcpStream>>,
    per_address: HashMap<IpAddr, usize>,
    total: usize,
}

/// A connection that counts until this is dropped.
pub struct Ticket {
    limits: Arc<ConnectionLimits>,
    number: u64,
    /// Its socket.
    pub socket: Arc<TcpStream>,
    /// The address of its peer.
    pub address: IpAddr,
}

impl ConnectionLimits {
    /// No connections yet.
    pub fn new(limits: &Limits) -> ConnectionLimits {
        ConnectionLimits { state: Mutex::default(), limits: limits.clone() }
    }

    /// Counts a new connection; `None` if its address or the server has too many. If too many connections are not
    /// logged in, closes the oldest of them, and returns true.
    pub fn admit(
        self: &Arc<ConnectionLimits>,
        address: IpAddr,
        socket: Arc<TcpStream>,
    ) -> Option<(Ticket, bool)> {
        let (origin, limits) = (origin(address), &self.limits);
        let mut state = lock(&self.state);
        let here = state.per_address.get(&origin).copied().unwrap_or(0);
        if here >= limits.per_address || state.total >= limits.clients.saturating_add(limits.waiting) {
            return None;
        }
        let is_full = state.waiting.len() >= limits.waiting;
        let oldest = if is_full { state.waiting.pop_first() } else { None };
        let has_evicted = oldest.map(|(_, oldest)| oldest.shutdown(Shutdown::Both)).is_some();
        let number = state.next;
        state.next += 1;
        state.total += 1;
        state.waiting.insert(number, socket.clone());
        *state.per_address.entry(origin).or_default() += 1;
        Some((Ticket { limits: self.clone(), number, socket, address }, has_evicted))
    }

    /// The number of connections, and of those among them that are not logged in.
    pub fn counts(&self) -> (usize, usize) {
        let state = lock(&self.state);
        (state.total, state.waiting.len())
    }
}

impl Ticket {
    /// The connection has logged in: new connections can no longer evict it.
    pub fn logged_in(&self) {
        lock(&self.limits.state).waiting.remove(&self.number);
    }

    /// Its session has ended: until the other side closes it, new connections may evict it.
    pub fn logged_out(&self) {
        lock(&self.limits.state).waiting.insert(self.number, self.socket.clone());
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = lock(&self.limits.state);
        state.waiting.remove(&self.number);
        state.total -= 1;
        let origin = origin(self.address);
        if let Some(here) = state.per_address.get_mut(&origin) {
            *here -= 1;
            if *here == 0 {
                state.per_address.remove(&origin);
            }
        }
    }
}

#[cfg(test)]
impl Ticket {
    /// Whether new connections may evict it.
    pub fn is_waiting(&self) -> bool {
        lock(&self.limits.state).waiting.contains_key(&self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_refused_at_each_limit() {
        use std::io::{ErrorKind, Read};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let connect = || {
            let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
            (Arc::new(listener.accept().expect("accepted").0), far)
        };
        let limits = Limits { clients: 3, waiting: 2, per_address: 2, ..Limits::for_machine(1024, 65_530) };
        let connections = Arc::new(ConnectionLimits::new(&limits));
        let house = |n: u8| IpAddr::from([10, 0, 0, n]);
        let admit = |n| connections.admit(house(n), connect().0);
        let admitted = |n| admit(n).map(|(ticket, _)| ticket);

        let first = [admitted(1).expect("admitted"), admitted(1).expect("admitted")];
        assert!(connections.counts() == (2, 2) && admit(1).is_none(), "an address may have two");
        first.iter().for_each(Ticket::logged_in);
        assert_eq!(connections.counts(), (2, 0));

        // Two are not logged in; a third evicts the oldest alone.
        let (older, mut older_far) = connect();
        let (newer, mut newer_far) = connect();
        let (older, has_evicted) = connections.admit(house(2), older).expect("admitted");
        assert!(!has_evicted);
        let (newer, has_evicted) = connections.admit(house(2), newer).expect("admitted");
        assert!(!has_evicted);
        let (third, has_evicted) = admit(3).expect("admitted");
        assert!(has_evicted);
        assert_eq!(older_far.read(&mut [0]).expect("shut"), 0);
        newer_far.set_nonblocking(true).expect("a socket");
        assert_eq!(newer_far.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));

        // An evicted connection counts until its thread drops it; three and two are the limit.
        assert!(connections.counts() == (5, 2) && admit(4).is_none(), "the server is full");
        drop(older);
        assert_eq!(connections.counts(), (4, 2));
        newer.logged_in();
        assert_eq!(connections.counts(), (4, 1));
        newer.logged_out();
        assert_eq!(connections.counts(), (4, 2), "it may be evicted again");
        newer.logged_in();
        let (fourth, has_evicted) = admit(4).expect("admitted");
        assert!(!has_evicted && connections.counts() == (5, 2));

        let [one, other] = first;
        drop(one);
        let again = admitted(1).expect("one of the two is closed");
        drop((third, fourth));
        assert!(admit(1).is_none(), "and only one");
        drop((again, other, newer));
        assert_eq!(connections.counts(), (0, 0));
        assert!(lock(&connections.state).per_address.is_empty(), "closed connections leave nothing");
    }
}
