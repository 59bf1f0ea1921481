//! A self-hosted, end-to-end encrypted messenger for the terminal: one server, one client.
//!
//! This page is the map. README.md says what the programs do, `protocol/PROTOCOL.md` specifies the
//! protocol and the formats; the code cites their clauses and sections by their anchors, and every
//! clause is cited by code and by a test that tries it (`tests/spec/tidy.rs`).
//!
//! # Rooms
//!
//! Imports run one way, downwards in this list; `server` and `client` never meet.
//!
//! | room | what it is for |
//! |---|---|
//! | `bin/server`, `bin/client` | arguments, then run |
//! | [`server`] | [`accept`](server::accept) → [`login`](server::login) → [`connection`](server::connection) → [`routing`](server::routing) → [`registry`](server::registry) → [`session`](server::session); [`operator`](server::operator) is for its operator, [`store`](server::store) is on disk |
//! | [`client`] | keys and network ([`net`](client::net)) → [`session`](client::session) → [`conversations`](client::screen::conversations) → [`view`](client::screen::view) → [`terminal`](client::terminal), or lines ([`plain`](client::plain)); files past them ([`transfer`](client::transfer)) |
//! | [`auth`] | both sides of registration, login and a new password, without I/O |
//! | [`protocol`] | every message, to a line and back |
//! | [`wire`] | bounded lines and packets, TLS, the certificate |
//! | [`crypto`] | keys, envelopes, chunks of files, the key file |
//! | [`encoding`], [`name`], [`disk`], [`records`], [`clock`], [`cli`], `sync` | small things that everyone needs |
//!
//! # A message on its way
//!
//! A typed line becomes a [`Command`](client::command::Command); the
//! [`Session`](client::session::Session) seals it ([`Sealed`](crypto::envelope::Sealed)),
//! wraps its key for each recipient and hands an `encrypted_send` to the
//! [`Link`](client::net::link::Link). The server's [`connection`](server::connection) decodes it,
//! [`routing`](server::routing) checks where it goes and puts it, with each recipient's own
//! wrapped key, into their [`Outbox`](server::session::outbox::Outbox); what goes to many is sent by the
//! [`flusher`](server::session::flush). A recipient's
//! session checks signature, recipient and order, decrypts, sanitises and shows an [`Entry`](client::entry::Entry).
//!
//! # A connection on its way out
//!
//! A session outlives it. What was sent stays in the [`SendWindow`](wire::window::SendWindow) of either side until the other
//! acknowledges it. [`liveness`](wire::liveness) decides on both sides that the connection is dead. The client comes back
//! ([`reconnect`](client::net::reconnect)), [`login`](server::login) attaches the new connection to the session
//! ([`outbox`](server::session::outbox) says why that is safe), and both sides send again exactly what the other has not received. A
//! session that nobody resumes ends after a minute.
//!
//! # A file on its way
//!
//! Offer, answer and end are envelopes like any other ([`files`](client::session::files)). The chunks
//! between them go past the session, which starts the [jobs of a transfer](client::transfer): one hashes the file, one reads
//! and seals groups of chunks ([`Plan`](crypto::chunk::Plan)), the [`Link`](client::net::link::Link) sends them as packets behind
//! all lines, the server's [`routing`](server::routing) relays as many as the recipient has granted, and the recipient's job
//! checks, decrypts and writes them into a [`Part`](client::file::Part), which gets its name when its hash is right.
//!
//! # What stays on disk
//!
//! Of messages nothing, unless somebody asks for it: then [`history`](client::store::history) seals what the session shows.
//! Whatever is a list, on both sides, is a file of [`records`], which erases nothing that it does not understand.
//!
//! # Invariants
//!
//! - The server can name no private key and nothing that opens an envelope: it imports
//!   [`crypto::public`] and, from [`protocol`], an envelope as it is sent, never [`crypto::keys`] or
//!   [`crypto::envelope`] (`tests/spec/tidy.rs`).
//! - Everything from wire or disk is bounded before it is parsed and typed after: a
//!   [`Username`](name::Username) is valid, a [`Fixed`](encoding::Fixed) has its length.
//! - Only [`PendingLogin::verify`](auth::PendingLogin::verify) makes an
//!   [`Authenticated`](auth::Authenticated), only
//!   [`PendingLogin::verify_change`](auth::PendingLogin::verify_change) makes a
//!   [`NewPassword`](auth::NewPassword), only
//!   [`Envelope::verify`](crypto::envelope::Envelope::verify) makes a
//!   [`Verified`](crypto::envelope::Verified), and only
//!   [`Unverified::trust`](wire::tls::Unverified::trust) gives a client its channel.
//! - No lock is held while a thread waits for the other side; no wait for it is without a deadline, and nothing that it can
//!   make grow without a bound. ([`outbox`](server::session::outbox) says in which order locks are taken.)
//! - All text from others is sanitised at one point, [`client::text::sanitise`].

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod auth;
pub mod cli;
pub mod client;
pub mod clock;
pub mod crypto;
pub mod disk;
pub mod encoding;
pub mod name;
pub mod protocol;
pub mod records;
pub mod server;
mod sync;
pub mod wire;
