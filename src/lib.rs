//! A self-hosted, end-to-end encrypted messenger for the terminal: one server, one client.
//!
//! This page is the map. `client/MANUAL.md` and `server/OPERATING.md` say what the programs do, `protocol/PROTOCOL.md`
//! specifies the protocol and the formats, `SECURITY.md` says what they protect against. The code cites their clauses
//! and sections by their anchors, and every clause is cited by code and by a test that tries it (`tests/spec/tidy.rs`).
//!
//! # Rooms
//!
//! Imports run one way, downwards in this list; `server` and `client` never meet.
//!
//! | room | what it is for |
//! |---|---|
//! | `bin/server`, `bin/client` | parse the arguments, then run |
//! | [`server`] | [`accept`](server::accept) → [`login`](server::login) → [`connection`](server::connection) → [`routing`](server::routing) → [`registry`](server::registry) → [`session`](server::session); [`operator`](server::operator) has its operator's tools, [`store`](server::store) its files |
//! | [`client`] | keys and network ([`net`](client::net)) → [`session`](client::session) → [`conversations`](client::screen::conversations) → [`view`](client::screen::view) → [`terminal`](client::terminal), or lines ([`plain`](client::plain)); [`transfer`](client::transfer) moves the bytes of files |
//! | [`auth`] | both sides of registration, login, password change and resumption, without I/O |
//! | [`protocol`] | every message, encoded as a line and decoded |
//! | [`wire`] | bounded lines and packets, TLS, the certificate, acknowledgements, liveness |
//! | [`crypto`] | keys, envelopes, chunks of files, the key file |
//! | [`encoding`], [`name`], [`disk`], [`records`], [`clock`], [`cli`], `sync` | small modules that all rooms use |
//!
//! # The path of a message
//!
//! A typed line becomes a [`Command`](client::command::Command). The [`Session`](client::session::Session) seals it, in
//! a room once for each other member ([`Sealed`](crypto::envelope::Sealed)), wraps its key for each recipient, and
//! passes an `encrypted_send` to the [`Link`](client::net::link::Link). The server's [`connection`](server::connection)
//! decodes it. [`routing`](server::routing) checks its recipients and queues it, with each recipient's own wrapped key,
//! in their [`Outbox`](server::session::outbox::Outbox); the [`flusher`](server::session::flush) sends broadcasts. A
//! recipient's session checks signature, recipient and order, decrypts, sanitises and shows an
//! [`Entry`](client::entry::Entry).
//!
//! # The end of a connection
//!
//! A session outlives its connection. Each side keeps sent frames in a [`SendWindow`](wire::window::SendWindow) until
//! the peer acknowledges them. [`liveness`](wire::liveness) decides on both sides that a connection is dead. The client
//! reconnects ([`reconnect`](client::net::reconnect)), [`login`](server::login) attaches the new connection to the
//! session ([`outbox`](server::session::outbox) says why that is safe), and both sides resend exactly the frames that
//! the peer has not received. A session that nobody resumes ends after a minute.
//!
//! # The path of a file
//!
//! Offer, answer and end are envelopes like any other ([`files`](client::session::files)). The chunks between them
//! bypass the session, which only starts the [jobs of a transfer](client::transfer). The sender's jobs hash the file,
//! and read and seal groups of chunks ([`Plan`](crypto::chunk::Plan)). The [`Link`](client::net::link::Link) sends them
//! as packets after all lines, and the server's [`routing`](server::routing) relays as many as the recipient has
//! granted. The recipient's job checks, decrypts and writes them into a [`Part`](client::file::Part), which gets its
//! final name when its hash is right.
//!
//! # Files on disk
//!
//! A message is stored in two cases: for an absent user, sealed, by the [server](server::store::mail); and if the user
//! asks for it, when [`history`](client::store::history) seals what the session shows. Every list, on both sides, is a
//! file of [`records`], which erases nothing that it cannot read. A client's [`mailbox`](client::store::mailbox) holds
//! the keys that open what the server keeps.
//!
//! # Invariants
//!
//! - The server can name no private key and nothing that opens an envelope: it imports
//!   [`crypto::public`] and, from [`protocol`], an envelope as it is sent, never [`crypto::keys`] or
//!   [`crypto::envelope`] (`tests/spec/tidy.rs`).
//! - Everything from wire or disk is bounded before it is parsed, and typed after that: a
//!   [`Username`](name::Username) is valid, a [`Fixed`](encoding::Fixed) has its length.
//! - Only [`PendingLogin::verify`](auth::PendingLogin::verify) makes an
//!   [`Authenticated`](auth::Authenticated), only
//!   [`PendingLogin::verify_change`](auth::PendingLogin::verify_change) makes a
//!   [`NewPassword`](auth::NewPassword), only
//!   [`Envelope::verify`](crypto::envelope::Envelope::verify) makes a
//!   [`Verified`](crypto::envelope::Verified), and only
//!   [`Unverified::trust`](wire::tls::Unverified::trust) gives a client a TLS channel.
//! - No thread holds a lock while it waits for a peer. Every wait for a peer has a deadline, and everything that a peer
//!   can make grow has a limit, except accounts and the records of new passwords, which are limited in rate only.
//!   ([`outbox`](server::session::outbox) states the order of the locks.)
//! - All text from others passes one function before it is shown: [`client::text::sanitise`].
//!
#![doc = include_str!("SECURITY.md")]
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
