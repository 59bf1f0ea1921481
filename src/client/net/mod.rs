//! The network: connect, log in, and keep one session over any number of connections.
//!
//! [`connect`] reaches a trusted server, and [`login`] begins a session there. From then on [`link`] owns the
//! connection: outgoing frames wait in the [`queue`](super::queue), incoming ones in the [`inbox`], and [`reconnect`]
//! replaces a connection that [`liveness`](crate::wire::liveness) has declared dead.

pub mod connect;
mod dial;
pub mod inbox;
pub mod link;
pub mod login;
pub mod reconnect;
