//! The sending half of a session: its state, its connection and its frames. Plain data:
//! [`outbox`](super::outbox) locks it.

use super::frames::Frames;
use crate::protocol::Control;
use crate::server::connection_limits::Ticket;
use crate::wire::tls::Channel;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// A connection, counted as long as any thread uses its socket.
pub struct Link {
    /// Only the holder of the baton encrypts and writes; the connection's thread reads.
    pub channel: Channel,
    /// Counts the connection, and knows its address.
    pub ticket: Ticket,
}

/// The stage of a session between its login and its end.
pub enum State {
    /// The session continues.
    Open,
    /// The server's own messages no longer fit. Nothing is exchanged, and the next sweep, or a newer login, ends the
    /// session.
    Full,
    /// The session has ended. Its lines are still sent until this time, and nothing further is queued.
    Ending(Instant),
    /// The session has ended, and nothing is sent.
    Over,
}

/// The frames that a session sends and its connection, under one lock. `S` is the outbox of a message's sender.
pub struct Io<S> {
    /// The stage of the session.
    pub state: State,
    /// `None` while the session has no connection.
    pub link: Option<Arc<Link>>,
    /// The time at which the session lost its last connection.
    pub since: Instant,
    /// Attempts to attach a link so far, the login's included.
    pub attempts: u64,
    /// The last address of the client.
    pub address: IpAddr,
    /// The baton of `link`: true while a thread encrypts and writes.
    pub writing: bool,
    /// Whether the outbox is in a list for the flusher.
    pub listed: bool,
    /// Whether the outbox is in the flusher's list of deferred outboxes.
    pub deferred: bool,
    /// The control lines of `link`.
    pub control: Control,
    /// The frames that the session sends.
    pub frames: Frames<S>,
}

impl<S> Io<S> {
    /// For a new session, whose link is attached next. `limit` is in bytes of lines.
    pub fn new(limit: usize, address: IpAddr) -> Io<S> {
        Io {
            state: State::Open,
            link: None,
            since: Instant::now(),
            attempts: 0,
            address,
            writing: false,
            listed: false,
            deferred: false,
            control: Control::default(),
            frames: Frames::new(limit),
        }
    }

    /// Whether the session continues.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// Whether the session uses this connection.
    pub fn is_on(&self, link: &Arc<Link>) -> bool {
        self.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link))
    }

    /// Closes and forgets the link: its reader returns, and the holder of its baton has lost it.
    pub fn cut(&mut self) {
        self.writing = false;
        self.control = Control::default();
        if let Some(link) = self.link.take() {
            self.since = Instant::now();
            link.channel.close();
        }
    }

    /// Cuts the link and drops all frames.
    pub fn stop(&mut self, state: State) {
        self.state = state;
        self.frames.clear();
        self.cut();
    }

    /// The link no longer works. The session waits for another one, unless it is ending.
    pub fn broken(&mut self) {
        if matches!(self.state, State::Ending(_)) { self.stop(State::Over) } else { self.cut() }
    }

    /// Whether there is nothing to send.
    pub fn is_idle(&self) -> bool {
        self.control.is_idle() && self.frames.is_idle()
    }

    /// Puts the next batch into `plain`. Control lines are at the end of each batch, so that a `pong` seldom overtakes
    /// earlier answers, and waits for one batch at most.
    pub fn next_batch(&mut self, plain: &mut Vec<u8>, most: usize) {
        plain.clear();
        plain.extend(self.control.first.take().unwrap_or_default());
        self.frames.next_batch(plain, most);
        let end = plain.len() + most;
        while plain.len() < end
            && let Some(line) = self.control.next()
        {
            plain.extend(line);
        }
    }

    /// Releases the baton of the current link if nothing is left to send, else returns false. An ending session is over
    /// then.
    pub fn release_baton(&mut self) -> bool {
        if !self.is_idle() {
            return false;
        }
        self.writing = false;
        if matches!(self.state, State::Ending(_)) {
            self.state = State::Over;
            self.frames.clear();
            // Do not cut the link: the reader still discards input for a moment.
            if let Some(link) = self.link.take() {
                link.channel.end();
            }
        }
        true
    }
}
