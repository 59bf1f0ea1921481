//! Connects to one of the addresses of a name.
//!
//! Invariant: an address that does not answer delays the others by a fraction of a second, and all together take no
//! longer than the caller allows. Specification: RFC 8305, section 5.

use crate::sync::spawn;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Delay before the next address is tried: RFC 8305 section 5 recommends it, and most round trips are shorter.
const STAGGER: Duration = Duration::from_millis(250);
/// The most addresses that are tried: each costs a thread, and real servers have fewer.
const MAX_ADDRESSES: usize = 16;

/// Connects to the address that answers first. Each address has a head start of 250 ms on the next one.
///
/// # Errors
/// The last failure, when every address has failed; `TimedOut` at `end`; `AddrNotAvailable` without addresses.
pub fn dial(addresses: impl Iterator<Item = SocketAddr>, end: Instant) -> io::Result<TcpStream> {
    let left = || end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut addresses = addresses.take(MAX_ADDRESSES).peekable();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    // Keep a sender here: otherwise a thread that cannot start would close the channel.
    let (answer, answers) = channel();
    let mut pending = 0;
    while pending > 0 || addresses.peek().is_some() {
        if let Some(address) = addresses.next() {
            let (answer, left) = (answer.clone(), left());
            // A connection that arrives too late is closed with the channel.
            spawn("dial", move || _ = answer.send(TcpStream::connect_timeout(&address, left)))?;
            pending += 1;
        }
        let wait = if addresses.peek().is_some() { STAGGER.min(left()) } else { left() };
        match answers.recv_timeout(wait) {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => (last, pending) = (error, pending - 1),
            Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use std::net::TcpListener;

    /// A listener that accepts no connection: its queue is full, so the kernel answers no further SYN.
    fn silent() -> (Socket, Vec<TcpStream>, SocketAddr) {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        listener.bind(&any.into()).and_then(|()| listener.listen(0)).expect("a listener");
        let address = listener.local_addr().expect("bound").as_socket().expect("an address");
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(100));
        let queue = std::iter::from_fn(|| connect().ok()).collect();
        (listener, queue, address)
    }

    #[test]
    fn silent_address_does_not_delay_the_next() {
        let server = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = server.local_addr().expect("bound");
        let (first, second) = (silent(), silent());
        let end = Instant::now() + Duration::from_secs(60);
        let socket = dial([first.2, second.2, address].into_iter(), end).expect("connected");
        assert_eq!(socket.peer_addr().expect("connected"), address);
    }

    #[test]
    fn failures_and_silence_end_the_attempt() {
        let closed = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("bound");
        let kind = |addresses: &[SocketAddr], end| {
            dial(addresses.iter().copied(), end).expect_err("no server").kind()
        };
        let end = Instant::now() + Duration::from_secs(60);
        assert_eq!(kind(&[closed, closed], end), io::ErrorKind::ConnectionRefused);
        assert_eq!(kind(&[], end), io::ErrorKind::AddrNotAvailable);
        let silent = silent();
        let soon = Instant::now() + Duration::from_millis(300);
        assert_eq!(kind(&[silent.2, silent.2], soon), io::ErrorKind::TimedOut);
    }
}
