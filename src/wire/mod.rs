//! Bytes between two machines: bounded lines over TLS.
//!
//! Rooms: [`frame`] splits a stream into lines and packets; [`tls`] is the channel, the only file that talks to rustls;
//! [`certificate`] makes, renews and reads the server's certificate; [`window`] counts frames and keeps them until they
//! are acknowledged; [`liveness`] decides whether the peer is alive.

pub mod certificate;
pub mod frame;
pub mod liveness;
pub mod tls;
pub mod window;
