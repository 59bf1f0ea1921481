//! Who may connect, and how many.
//!
//! Invariant: what an unauthenticated peer can make the server hold is bounded per address and in all; when a
//! bound is reached the oldest or the newcomer goes, and nobody who is logged in notices.

use super::limits::Limits;
use super::rates::origin;
use crate::sync::lock;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::{Arc, Mutex};

/// Lets connections in and counts them.
pub struct ConnectionLimits {
    state: Mutex<State>,
    waiting: usize,
    per_address: usize,
    total: usize,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Not logged in yet, oldest first.
    waiting: BTreeMap<u64, Arc<TcpStream>>,
    per_address: HashMap<IpAddr, usize>,
    total: usize,
}

/// A counted connection; counted out when dropped.
pub struct Ticket {
    limits: Arc<ConnectionLimits>,
    socket: Arc<TcpStream>,
    number: u64,
    /// Where it comes from.
    pub address: IpAddr,
    /// The oldest of those who waited had to go for it.
    pub pushed_out: bool,
}

impl ConnectionLimits {
    /// See [`Limits`].
    pub fn new(limits: &Limits) -> ConnectionLimits {
        ConnectionLimits {
            state: Mutex::default(),
            waiting: limits.waiting,
            per_address: limits.per_address,
            total: limits.clients.saturating_add(limits.waiting),
        }
    }

    /// Counts a new connection in; `None` if its address or the server has too many.
    /// When too many wait for their login, the oldest of them goes.
    pub fn admit(self: &Arc<ConnectionLimits>, address: IpAddr, socket: &Arc<TcpStream>) -> Option<Ticket> {
        let origin = origin(address);
        let mut state = lock(&self.state);
        let here = state.per_address.get(&origin).copied().unwrap_or(0);
        if here >= self.per_address || state.total >= self.total {
            return None;
        }
        let mut pushed_out = false;
        if state.waiting.len() >= self.waiting
            && let Some((_, oldest)) = state.waiting.pop_first()
        {
            let _ = oldest.shutdown(Shutdown::Both);
            pushed_out = true;
        }
        let number = state.next;
        state.next += 1;
        state.total += 1;
        state.waiting.insert(number, socket.clone());
        *state.per_address.entry(origin).or_default() += 1;
        Some(Ticket { limits: self.clone(), socket: socket.clone(), number, address, pushed_out })
    }

    /// Connections in all, and how many of them are not logged in.
    pub fn counts(&self) -> (usize, usize) {
        let state = lock(&self.state);
        (state.total, state.waiting.len())
    }
}

impl Ticket {
    /// The connection has logged in: it can no longer be pushed out by newcomers.
    pub fn logged_in(&self) {
        lock(&self.limits.state).waiting.remove(&self.number);
    }

    /// Its session has ended: until the other side closes it, it is among the first to make room for newcomers.
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
        let admit = |n| connections.admit(house(n), &connect().0);

        let first = [admit(1).expect("let in"), admit(1).expect("let in")];
        assert!(connections.counts() == (2, 2) && admit(1).is_none(), "an address has two");
        first.iter().for_each(Ticket::logged_in);
        assert_eq!(connections.counts(), (2, 0));

        // Two wait; a third one pushes the oldest out, and nobody else.
        let (older, mut older_far) = connect();
        let (newer, mut newer_far) = connect();
        let older = connections.admit(house(2), &older).expect("let in");
        let newer = connections.admit(house(2), &newer).expect("let in");
        assert!(!older.pushed_out && !newer.pushed_out);
        let third = admit(3).expect("let in");
        assert!(third.pushed_out);
        assert_eq!(older_far.read(&mut [0]).expect("shut"), 0);
        newer_far.set_nonblocking(true).expect("a socket");
        assert_eq!(newer_far.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));

        // It counts until its thread has let go of it: three and two are all there may be.
        assert!(connections.counts() == (5, 2) && admit(4).is_none(), "the house is full");
        drop(older);
        assert_eq!(connections.counts(), (4, 2));
        newer.logged_in();
        let fourth = admit(4).expect("let in");
        assert!(!fourth.pushed_out && connections.counts() == (5, 2));

        let [one, other] = first;
        drop(one);
        let again = admit(1).expect("one of the two has gone");
        drop((third, fourth));
        assert!(admit(1).is_none(), "and only one");
        drop((again, other, newer));
        assert_eq!(connections.counts(), (0, 0));
        assert!(lock(&connections.state).per_address.is_empty(), "nothing is kept of those who have gone");
    }
}
