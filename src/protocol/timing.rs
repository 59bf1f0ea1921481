//! When each side asks whether its peer is alive, and when it drops the connection (PROTOCOL#life). Both pass these
//! times to [`liveness`](crate::wire::liveness).
//!
//! Invariant: a client notices a dead connection well before the server ends the session, 60 s after its connection.

use std::time::Duration;

/// A client pings after this silence while an answer or an `ack` is due: a user is waiting.
pub const ASK_OWED: Duration = Duration::from_secs(10);
/// A client pings after this silence otherwise: before [`SERVER_ASK`], so that the two never ping at once.
pub const ASK_IDLE: Duration = Duration::from_secs(25);
/// A client drops the connection when its `ping` is unanswered for this time plus up to [`ANSWER_JITTER`].
pub const ANSWER: Duration = Duration::from_secs(20);
/// The random part of that time, so that clients that lose a server together do not return together.
pub const ANSWER_JITTER: Duration = Duration::from_secs(5);
/// Replaces [`ANSWER`] after this machine slept: the connection is probably dead, and a user is waiting.
pub const ANSWER_AWAKE: Duration = Duration::from_secs(8);
/// A server pings after this silence.
pub const SERVER_ASK: Duration = Duration::from_secs(30);
/// A server drops a connection after this silence: its `ping` was unanswered for 60 s.
pub const SERVER_DROP: Duration = Duration::from_secs(90);
