//! The protocol's version, and how much one message may contain. Specification: PROTOCOL#line-length,
//! PROTOCOL#messages.

/// The version that the first messages of both sides agree on. PROTOCOL#version.
pub const VERSION: u32 = 1;
/// The longest line before login, in bytes without its end; a login needs under 2 KiB.
pub const MAX_LINE_BEFORE_LOGIN: usize = 16 * 1024;
/// The longest line after login, in bytes without its end; an envelope for [`MAX_TARGETS`] recipients has about half of
/// it.
pub const MAX_LINE: usize = 1024 * 1024;
/// The most recipients of one `encrypted_send`; a client splits a larger broadcast.
pub const MAX_TARGETS: usize = 1024;
/// The most names in one `keys_request`; its answer has up to 80 KiB.
pub const MAX_KEY_NAMES: usize = 64;
/// The most names in each list of a `presence` line, which then has under 300 KB.
pub const MAX_PRESENCE_NAMES: usize = 4096;
/// The longest body of a packet, in bytes: a chunk of 64 KiB, what protects it, a name and a transfer.
pub const MAX_PACKET: usize = 66 * 1024;
/// The most packets for one client that are granted, waiting or unacknowledged: 8.25 MiB.
pub const MAX_GRANTED: u32 = 128;
/// The most keys in one `mail_request`; a client has one or two.
pub const MAX_MAILBOX_KEYS: usize = 64;
/// The most messages in one `mail`.
pub const MAX_MAIL: usize = 16;
/// The most bytes of messages in one `mail`: a third of the smallest outbox, so that there is room for others'
/// envelopes while it is not acknowledged.
pub const MAX_MAIL_BYTES: usize = 128 * 1024;
