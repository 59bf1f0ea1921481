//! The times of both sides that decide whether the other one is still there (PROTOCOL#life). Client and server pass them to
//! [`liveness`](crate::wire::liveness).
//!
//! Invariant: a client finds a dead connection well within the time that the server keeps its session (60 s).

use std::time::Duration;

/// A client asks after this silence while an answer or an `ack` is due: a person waits for it.
pub const ASK_OWED: Duration = Duration::from_secs(10);
/// A client asks after this silence otherwise: before the server does, so that the two never ask at once.
pub const ASK_IDLE: Duration = Duration::from_secs(25);
/// A client drops the connection when a `ping` is unanswered for this time, and at most [`ANSWER_JITTER`] longer.
pub const ANSWER: Duration = Duration::from_secs(20);
/// Clients that lose a server together do not return together.
pub const ANSWER_JITTER: Duration = Duration::from_secs(5);
/// The same as [`ANSWER`] after this machine has slept: the connection is probably dead, and a person waits.
pub const ANSWER_AWAKE: Duration = Duration::from_secs(8);
/// A server asks after this silence.
pub const SERVER_ASK: Duration = Duration::from_secs(30);
/// A server drops a connection after this silence: its `ping` is unanswered for a minute.
pub const SERVER_DROP: Duration = Duration::from_secs(90);
