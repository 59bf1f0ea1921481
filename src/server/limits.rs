//! The limits of the server that its operator or a client can reach. Those of the protocol are in
//! [`protocol`](crate::protocol); the sizes of a single mechanism (batches, ticks, stacks) are beside it. Enforced by
//! [`connection_limits`](super::connection_limits), [`lockout`](super::store::lockout), [`rates`](super::rates)
//! (requests and registrations), [`partial_frame`](super::partial_frame), [`outbox`](super::session::outbox) (what
//! waits for a client) and [`mail`](super::store::mail).

use std::time::Duration;

/// TLS handshake and first line: enough for a slow link, too short to be worth holding open.
pub const FIRST_LINE: Duration = Duration::from_secs(10);
/// From the first line to the end of a login: time for the slowest allowed hash, and for a second try with another
/// name.
pub const LOGIN: Duration = Duration::from_secs(300);
/// Lines of a connection before its login; a registration and a login together have three.
pub const LINES_BEFORE_LOGIN: u32 = 32;
/// Presence changes are sent at most this often: users do not notice the delay.
pub const PRESENCE_INTERVAL: Duration = Duration::from_millis(200);
/// Bytes of packets for all clients together that wait or are not acknowledged yet. The packets for a client that reads
/// nothing stay far below, because a session may hold only an eighth of what is left. Beyond this limit, each client
/// may still have 256 KiB and one packet; threads that ask at the same moment may exceed it by one packet each.
pub const MAX_WAITING_PACKETS: usize = 256 * 1024 * 1024;
/// A packet without room waits this long, and its sender with it: enough for a slow recipient to make room.
pub const PACKET_PATIENCE: Duration = Duration::from_secs(5);
/// A line or packet must be complete this long after its first byte: a mebibyte at 9 KiB a second.
pub const LINE: Duration = Duration::from_secs(120);
/// Bytes of incomplete lines and packets of all clients: more than hundreds of users need who each send to a thousand
/// at once. Beyond it, a client whose own is longer than [`SMALL_LINE`] loses the connection.
pub const MAX_PARTIAL: usize = 256 * 1024 * 1024;
/// Bytes that an incomplete line or packet may always have: a chunk of a file, or a message to a hundred users.
pub const SMALL_LINE: usize = 66 * 1024;
/// A client must read each 16 KiB within this time: more than a slow link needs.
pub const WRITE: Duration = Duration::from_secs(30);
/// After the end of its session, a client has this long to read the rest: as long as for a write.
pub const FAREWELL: Duration = Duration::from_secs(30);
/// The smallest outbox, in bytes. One sender may fill half of it, so half must hold the frames that a client need not
/// have acknowledged yet, and an envelope.
pub const MIN_OUTBOX: usize = 384 * 1024;
/// A session outlives its connection by this time: enough to change networks, too short to appear online for long.
const GRACE: Duration = Duration::from_secs(60);
/// The interval at which sessions are checked for their end: other users see a session about this much longer at most.
pub const SWEEP: Duration = Duration::from_secs(1);
/// A resumption waits this long for the thread of the previous connection, which checks its link every [`NOTICE`].
pub const RESUME_PATIENCE: Duration = Duration::from_secs(2);
/// A thread that waits for something else checks this often whether its connection was taken over, so that a resumption
/// waits no longer.
pub const NOTICE: Duration = Duration::from_millis(50);
/// Writer threads for slow clients, 128 KiB of stack each; further slow clients are closed.
pub const MAX_WRITERS: usize = 1024;
/// File descriptors that are not clients: files, the listener, standard streams.
const SPARE_DESCRIPTORS: usize = 64;
/// Memory mappings of a thread (stack, guard, signal stack and its guard). The kernel allows `vm.max_map_count`, and a
/// process that runs out aborts.
const MAPPINGS_PER_THREAD: usize = 4;
/// Memory mappings that are not of threads: the program, its libraries, and the allocator's large blocks.
const SPARE_MAPPINGS: usize = 4096;

/// Failed logins that lock a name: users mistype less often, and 480 guesses a day find no password.
pub const MAX_FAILURES: u32 = 5;
/// Failed logins that lock an address: several users may share it.
pub const MAX_FAILURES_PER_ADDRESS: u32 = 50;
/// Failures are counted, and locks last, for this long: keeping another user locked out takes continued effort.
pub const LOCKOUT: Duration = Duration::from_secs(15 * 60);
/// The most names or addresses that a [`Counter`](super::rates::Counter) remembers: some megabytes. To get one guess
/// more than [`MAX_FAILURES`], an attacker needs this number of attempts, from hundreds of addresses.
pub const MAX_REMEMBERED: usize = 20_000;

/// The limits that an operator can set with options.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections that the machine's own limits allow.
    pub room: usize,
    /// Logged-in clients.
    pub clients: usize,
    /// Connections from one address (IPv6: one /64), logged in or not.
    pub per_address: usize,
    /// Connections that are not logged in yet; beyond this number, the oldest is closed.
    pub waiting: usize,
    /// Bytes that may wait for one client, or not be acknowledged by it.
    pub outbox: usize,
    /// Requests a second of one account, four seconds' worth at once; a faster client is throttled.
    pub rate: u32,
    /// New accounts and changed passwords a minute from one address.
    pub registrations: u32,
    /// How long a session outlives its connection.
    pub grace: Duration,
    /// Messages for absent users.
    pub mail: MailLimits,
}

/// The limits of messages that wait for absent users. PROTOCOL#mail-limits.
#[derive(Debug, Clone)]
pub struct MailLimits {
    /// Bytes for one recipient, an eighth of it from one sender. 0 keeps nothing.
    pub bytes: u64,
    /// Bytes from one sender for all recipients.
    pub sender: u64,
    /// Bytes for all recipients.
    pub total: u64,
    /// Messages for one recipient.
    pub messages: usize,
    /// Days that a message waits.
    pub days: u64,
}

impl Default for MailLimits {
    fn default() -> Self {
        let mib = 1024 * 1024;
        MailLimits { bytes: mib, sender: 4 * mib, total: 1024 * mib, messages: 1000, days: 30 }
    }
}

/// 24 hours, in milliseconds.
pub const DAY: u64 = 24 * 3_600_000;

impl Limits {
    /// Defaults that the machine's limits on descriptors and memory mappings (`vm.max_map_count`) allow.
    pub fn for_machine(descriptors: usize, max_map_count: usize) -> Limits {
        let threads = max_map_count.saturating_sub(SPARE_MAPPINGS) / MAPPINGS_PER_THREAD;
        let room = descriptors.saturating_sub(SPARE_DESCRIPTORS).min(threads.saturating_sub(MAX_WRITERS));
        let waiting = (room / 4).clamp(1, 2048);
        let clients = room.saturating_sub(waiting).max(1);
        Limits {
            room,
            clients,
            per_address: Limits::share(clients),
            waiting,
            outbox: MIN_OUTBOX,
            rate: 100,
            registrations: 120,
            grace: GRACE,
            mail: MailLimits::default(),
        }
    }

    /// The default for one address: half of the clients, so that no address keeps out all others, and at least 16,
    /// enough for one household.
    pub fn share(clients: usize) -> usize {
        clients.div_ceil(2).max(16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::window::{ACK_BYTES, ACK_FRAMES};

    #[test]
    fn documented_limits_are_the_ones_enforced() {
        let documents = [
            include_str!("OPERATING.md"),
            include_str!("../SECURITY.md"),
            include_str!("../protocol/PROTOCOL.md"),
        ];
        let documents = documents.concat().replace('\n', " ");
        let kib = 1024;
        let thousands = |n: usize| format!("{},{:03}", n / 1000, n % 1000);
        let usual = Limits::for_machine(1 << 20, 65_530);
        for promise in [
            format!("`ack` is sent when {ACK_FRAMES} frames or {} KiB have been", ACK_BYTES / kib),
            format!("waits for many clients (about {} MiB in all)", MAX_WAITING_PACKETS / kib / kib),
            format!("recipient for which at most {} KiB wait", 2 * ACK_BYTES / kib),
            format!(
                "If the throttling lasts over {} s, the transfer's grant is taken back",
                PACKET_PATIENCE.as_secs()
            ),
            format!("the server serves {} at once (a thread each)", thousands(MAX_WRITERS)),
            format!("`--outbox KIB` | {} (at least {})", usual.outbox / kib, MIN_OUTBOX / kib),
            format!("({} with 65,530 mappings)", thousands(usual.clients)),
            format!("`--waiting N` | {} or a quarter", thousands(usual.waiting)),
            format!("`--grace SECONDS` | {} |", usual.grace.as_secs()),
            format!("`--rate N` | {} |", usual.rate),
            format!("`--registrations N` | {} |", usual.registrations),
            format!("`--mail KIB` | {} |", usual.mail.bytes / 1024),
            format!("`--mail-sender KIB` | {} |", usual.mail.sender / 1024),
            format!("`--mail-total MIB` | {} |", usual.mail.total / 1024 / 1024),
            format!("`--mail-messages N` | {} |", usual.mail.messages),
            format!("`--mail-days N` | {} |", usual.mail.days),
            format!("after a number of days, {} by default", usual.mail.days),
        ] {
            assert!(documents.contains(&promise), "{promise}");
        }
        assert_eq!([0, 1, 31, 33, 34, 1001].map(Limits::share), [16, 16, 16, 17, 17, 501]);
    }

    #[test]
    fn defaults_fit_the_machine() {
        let exact = Limits::for_machine(SPARE_DESCRIPTORS + 1000, 65_530);
        assert_eq!((exact.room, exact.waiting, exact.clients, exact.per_address), (1000, 250, 750, 375));
        let tiny = Limits::for_machine(0, 0);
        assert_eq!((tiny.room, tiny.waiting, tiny.clients), (0, 1, 1));
        let small = Limits::for_machine(256, 65_530);
        assert!(small.clients + small.waiting + SPARE_DESCRIPTORS <= 256);
        let large = Limits::for_machine(1 << 20, 65_530);
        assert!(large.clients >= 10_000, "{large:?}");
        let threads = large.clients + large.waiting + MAX_WRITERS;
        assert!(threads * MAPPINGS_PER_THREAD < 65_530);
    }
}
