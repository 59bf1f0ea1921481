//! Bytes between two machines: bounded lines over TLS.
//!
//! Rooms: [`frame`] (lines out of a stream), [`tls`] (the channel; the only file that names
//! rustls), [`certificate`] (the server's own: made, renewed, read), [`liveness`] (whether the peer is still there), [`window`] (what was sent,
//! acknowledged and received).

pub mod certificate;
pub mod frame;
pub mod liveness;
pub mod tls;
pub mod window;
