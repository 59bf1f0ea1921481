//! The channel between client and server: TLS 1.3 or 1.2 over TCP, or bare TCP by explicit wish.
//!
//! Invariant: the socket is read outside the lock, the TLS state is locked only to feed bytes in or
//! take them out, and a client gets a [`Channel`] only by naming the fingerprint it trusts
//! ([`Unverified::trust`]). Nothing falls back to bare TCP. This is the only file that names rustls.

use super::certificate;
use crate::crypto::public::Fingerprint;
use crate::disk;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
pub(super) use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, Connection, DigitallySignedStruct, SignatureScheme};
use rustls::{InvalidMessage, ServerConfig, ServerConnection};
use socket2::SockRef;
use std::fmt;
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A blocked write gives up after this time: who takes nothing for so long is gone, or reads too slowly to be served.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// A write that waits for the other side is looked at this often.
const WRITE_STEP: Duration = Duration::from_secs(1);
/// RFC 9266 section 2: the channel binding's label; its value has 32 bytes and no context. PROTOCOL#exporter.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";
/// Bytes that the kernel holds before it has sent the former ones: a line waits behind no more than these, and a client that
/// does not read costs no more. What is in flight is not limited by it, so a long line is as fast as it can be.
const NOT_SENT: u32 = 128 * 1024;
/// A first read has this size in bytes, on the stack; idle connections hold no more.
const SMALL_READ: usize = 2048;
/// What follows a full first read is read in pieces of this size in bytes: about a chunk of a file.
const LARGE_READ: usize = 64 * 1024;

pub(super) const UNUSABLE_KEY: &str = "this key cannot be used for TLS: make one of RSA with 2048 bits or more, of ECDSA on P-256, \
    P-384 or P-521, or of Ed25519, and have it certified";
const OLD_VERSION: &str = "this certificate is not of X.509 version 3, which TLS needs: have it made again with the names of \
    this server as an extension (openssl x509 -req -copy_extensions copy, or with -extfile)";
const WRONG_ORDER: &str = "the server's own certificate, which belongs to server.key, must be the first in this file: put \
    those of the authorities behind it";
pub(super) const OTHER_KEY: &str = "server.key is not the key of the certificate in server.crt: put the two there that belong together (of several keys in \
    server.key, the first counts)";

/// The server's side of TLS: certificate, key, versions.
pub type Acceptor = Arc<ServerConfig>;

/// TLS 1.3 and 1.2, ECDHE with AES-GCM or ChaCha20-Poly1305, X25519MLKEM768 preferred: all of
/// that are the library's defaults under the feature `prefer-post-quantum`; a test watches them.
/// PROTOCOL#transport.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Reads `server.crt` and `server.key` of a folder.
///
/// # Errors
/// With the path in the text, or if the two do not belong together.
pub fn acceptor(folder: &Path) -> io::Result<Acceptor> {
    let (key_path, certificate_path) = (folder.join("server.key"), folder.join("server.crt"));
    let wrong = |path: &Path, text: &str| disk::at(path)(io::Error::other(text));
    let chain = certificate::read_chain(&certificate_path)?;
    let key = certificate::read_key(&key_path)?;
    let key = provider().key_provider.load_private_key(key).map_err(|_| wrong(&key_path, UNUSABLE_KEY))?;
    let is_of_key = |chain| CertifiedKey::new(chain, key.clone()).keys_match();
    if let Err(error) = is_of_key(chain.clone()) {
        let others = chain.iter().skip(1).any(|one| is_of_key(vec![one.clone()]).is_ok());
        return Err(match error {
            _ if others => wrong(&certificate_path, WRONG_ORDER),
            rustls::Error::InconsistentKeys(_) => wrong(folder, OTHER_KEY),
            // The library has no name for it.
            error if error.to_string().contains("UnsupportedCertVersion") => {
                wrong(&certificate_path, OLD_VERSION)
            }
            error => wrong(
                &certificate_path,
                &format!("this certificate cannot be used for TLS: get another for the same key ({error})"),
            ),
        });
    }
    let certified = SingleCertAndKey::from(CertifiedKey::new(chain, key));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certified));
    // RFC 9266 section 4.2: without it, a TLS 1.2 exporter does not name one channel.
    config.require_ems = true;
    // Every login is a full one: there is nothing to resume, and nothing to keep for it.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// Checks that the server holds the key of its certificate, and leaves it to
/// [`Unverified::trust`] whether that is the right key.
#[derive(Debug)]
struct PossessionOnly(Arc<CryptoProvider>);

impl ServerCertVerifier for PossessionOnly {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Limits what the kernel holds unsent. A system that cannot do that limits what it holds at all.
pub fn limit_unsent(socket: &TcpStream) {
    #[cfg(target_os = "linux")]
    let _ = SockRef::from(socket).set_tcp_notsent_lowat(NOT_SENT);
    #[cfg(not(target_os = "linux"))]
    let _ = SockRef::from(socket).set_send_buffer_size(NOT_SENT as usize);
}

/// Why a channel could not be made.
#[derive(Debug)]
pub enum ChannelError {
    /// The socket failed.
    Io(io::Error),
    /// What came is not TLS.
    NotTls,
    /// The TLS handshake failed.
    Tls(String),
    /// The server's key is not the one expected.
    WrongKey {
        /// Fingerprint of the key that it has shown.
        seen: Fingerprint,
    },
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChannelError::Io(error) => write!(f, "{error}"),
            ChannelError::NotTls => f.write_str("the other side does not speak TLS"),
            ChannelError::Tls(text) => write!(f, "the TLS handshake failed: {text}"),
            ChannelError::WrongKey { seen } => write!(f, "the server shows another key: {seen}"),
        }
    }
}

impl std::error::Error for ChannelError {}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> Self {
        ChannelError::Io(error)
    }
}

impl From<rustls::Error> for ChannelError {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => ChannelError::NotTls,
            other => ChannelError::Tls(other.to_string()),
        }
    }
}

/// What a channel's one reading thread keeps between reads: a large buffer while much
/// arrives, nothing while little does.
#[derive(Default)]
pub struct Reader {
    large: Vec<u8>,
    /// The time-out that is set on the socket.
    wait: Duration,
    /// The other side has closed; its last words have been given out.
    ended: bool,
}

/// What a [`Channel::receive`] brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes, perhaps none for the reader (a TLS message of its own).
    Some,
    /// Nothing so far: perhaps sooner than the time allowed.
    Silence,
    /// The other side has closed.
    End,
}

/// A connection of which both sides know that it is theirs alone.
pub struct Channel {
    socket: Arc<TcpStream>,
    /// `None` without TLS.
    tls: Option<Mutex<Connection>>,
    exporter: Vec<u8>,
}

impl Channel {
    /// Server: the handshake, or nothing without an acceptor. Bytes that came with it are appended to `early`.
    ///
    /// # Errors
    /// [`ChannelError`], also when `deadline` passes.
    pub fn accept(
        acceptor: Option<Acceptor>,
        socket: Arc<TcpStream>,
        deadline: Instant,
        early: &mut Vec<u8>,
    ) -> Result<Channel, ChannelError> {
        match acceptor {
            None => Ok(Channel::bare(socket)?),
            Some(config) => Channel::shake(ServerConnection::new(config)?.into(), socket, deadline, early),
        }
    }

    /// A channel without TLS, for `--no-tls` only.
    ///
    /// # Errors
    /// The socket's, when its options are set.
    pub fn bare(socket: Arc<TcpStream>) -> io::Result<Channel> {
        prepare(&socket)?;
        Ok(Channel { socket, tls: None, exporter: Vec::new() })
    }

    fn shake(
        mut tls: Connection,
        socket: Arc<TcpStream>,
        deadline: Instant,
        early: &mut Vec<u8>,
    ) -> Result<Channel, ChannelError> {
        prepare(&socket)?;
        tls.set_buffer_limit(None);
        while tls.is_handshaking() {
            flush(&mut tls, &socket)?;
            if !tls.is_handshaking() {
                break;
            }
            let read = uninterrupted(|| {
                socket.set_read_timeout(Some(left_until(deadline)?))?;
                tls.read_tls(&mut &*socket)
            })?;
            if read == 0 {
                return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
            }
            if let Err(error) = tls.process_new_packets() {
                // The alert tells the other side why.
                let _ = flush(&mut tls, &socket);
                return Err(error.into());
            }
        }
        flush(&mut tls, &socket)?;
        tls.process_new_packets()?;
        take_plaintext(&mut tls, early)?;
        let exporter = tls.export_keying_material(vec![0; 32], EXPORTER_LABEL, None)?;
        Ok(Channel { socket, tls: Some(Mutex::new(tls)), exporter })
    }

    /// The TLS exporter of RFC 9266, 32 bytes; empty without TLS.
    pub fn exporter(&self) -> &[u8] {
        &self.exporter
    }

    /// Reads once, outside the lock, and appends what it meant to `plain`. Waits at most `wait`, and a millisecond at least;
    /// less when the process was stopped and goes on, for the caller has to look at its clocks then.
    ///
    /// # Errors
    /// The socket's, or a TLS error, after which the channel is useless.
    pub fn receive(&self, reader: &mut Reader, plain: &mut Vec<u8>, wait: Duration) -> io::Result<Received> {
        if reader.ended {
            return Ok(Received::End);
        }
        let wait = wait.max(Duration::from_millis(1));
        if reader.wait != wait {
            self.socket.set_read_timeout(Some(wait))?;
            reader.wait = wait;
        }
        let mut small = [0; SMALL_READ];
        let buffer = if reader.large.is_empty() { &mut small[..] } else { &mut reader.large[..] };
        let count = match (&*self.socket).read(buffer) {
            Ok(0) => return Ok(Received::End),
            Ok(count) => count,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                reader.large = Vec::new();
                return Ok(Received::Silence);
            }
            // Asked again, it would wait for the whole time once more.
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(Received::Silence),
            Err(e) => return Err(e),
        };
        let before = plain.len();
        let mut received = self.take_in(&buffer[..count], plain)?;
        if received == Received::End && plain.len() > before {
            (reader.ended, received) = (true, Received::Some);
        }
        if count == SMALL_READ && reader.large.is_empty() {
            reader.large = vec![0; LARGE_READ];
        } else if count < SMALL_READ {
            reader.large = Vec::new();
        }
        Ok(received)
    }

    fn take_in(&self, mut wire: &[u8], plain: &mut Vec<u8>) -> io::Result<Received> {
        let Some(mut tls) = self.lock() else {
            plain.extend_from_slice(wire);
            return Ok(Received::Some);
        };
        while !wire.is_empty() {
            tls.read_tls(&mut wire)?;
            let state = tls.process_new_packets().map_err(io::Error::other)?;
            take_plaintext(&mut tls, plain)?;
            if state.peer_has_closed() {
                return Ok(Received::End);
            }
        }
        Ok(Received::Some)
    }

    /// Whether TLS has something of its own to send (the answer to a key update): then an
    /// [`Channel::encrypt`] of nothing is due.
    pub fn wants_to_send(&self) -> bool {
        self.lock().is_some_and(|tls| tls.wants_write())
    }

    /// Encrypts `plain` in as few records as possible, appended to `wire`. Calls must be in the
    /// order in which their results are sent.
    ///
    /// # Errors
    /// A TLS error, after which the channel is useless.
    pub fn encrypt(&self, plain: &[u8], wire: &mut Vec<u8>) -> io::Result<()> {
        let Some(mut tls) = self.lock() else {
            wire.extend_from_slice(plain);
            return Ok(());
        };
        tls.writer().write_all(plain)?;
        drain(&mut tls, wire)
    }

    /// The end of the stream, to be sent last: TLS's `close_notify`, nothing without TLS.
    pub fn encrypt_end(&self, wire: &mut Vec<u8>) {
        if let Some(mut tls) = self.lock() {
            tls.send_close_notify();
            let _ = drain(&mut tls, wire);
        }
    }

    /// Sends as much as fits without waiting, and returns how many bytes that was: perhaps none.
    ///
    /// # Errors
    /// The socket's.
    pub fn send_now(&self, wire: &[u8]) -> io::Result<usize> {
        if wire.is_empty() {
            return Ok(0);
        }
        match SockRef::from(&*self.socket).send_with_flags(wire, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }

    /// Sends everything within 30 s, however slowly the other side takes it.
    ///
    /// # Errors
    /// As [`Channel::send_by`].
    pub fn send(&self, wire: &[u8]) -> io::Result<()> {
        self.send_by(wire, Instant::now() + WRITE_TIMEOUT)
    }

    /// Sends everything, however long the other side takes for it: [`Channel::close`] by another thread ends it. Calls
    /// `progressed` each time that a write had to wait and then continued.
    ///
    /// # Errors
    /// The socket's.
    pub fn send_patiently(&self, mut wire: &[u8], mut progressed: impl FnMut()) -> io::Result<()> {
        wire = &wire[self.send_now(wire)?..];
        while !wire.is_empty() {
            let sent = uninterrupted(|| {
                self.socket.set_write_timeout(Some(WRITE_STEP))?;
                (&*self.socket).write(wire)
            });
            match sent {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => {
                    wire = &wire[sent..];
                    progressed();
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends everything before `deadline`.
    ///
    /// # Errors
    /// The socket's; a time-out (`TimedOut` or `WouldBlock`) may leave a part sent, after which the channel is useless.
    pub fn send_by(&self, mut wire: &[u8], deadline: Instant) -> io::Result<()> {
        while !wire.is_empty() {
            let sent = uninterrupted(|| {
                self.socket.set_write_timeout(Some(left_until(deadline)?))?;
                (&*self.socket).write(wire)
            })?;
            if sent == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            wire = &wire[sent..];
        }
        Ok(())
    }

    /// Says the [end](Channel::encrypt_end) and ends our direction: what was sent still arrives, and the other side can still be
    /// heard.
    pub fn end(&self) {
        let mut wire = Vec::new();
        self.encrypt_end(&mut wire);
        let _ = self.send_now(&wire);
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Ends both directions; a blocked reader returns.
    pub fn close(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn lock(&self) -> Option<MutexGuard<'_, Connection>> {
        self.tls.as_ref().map(|tls| tls.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls.is_some() { "Channel(TLS)" } else { "Channel(bare)" })
    }
}

/// Client: a finished handshake with a server whose key nobody has vouched for yet. PROTOCOL#server-key.
pub struct Unverified {
    channel: Channel,
    fingerprint: Fingerprint,
    early: Vec<u8>,
}

impl Unverified {
    /// Client: the handshake. Nothing of ours is sent over it before [`Unverified::trust`].
    ///
    /// # Errors
    /// [`ChannelError`], also when `deadline` passes.
    pub fn connect(
        host: &str,
        socket: Arc<TcpStream>,
        deadline: Instant,
    ) -> Result<Unverified, ChannelError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PossessionOnly(provider())))
            .with_no_client_auth();
        config.require_ems = true;
        config.resumption = rustls::client::Resumption::disabled();
        let name = ServerName::try_from(host.to_string()).or_else(|_| ServerName::try_from("localhost"));
        let name = name.map_err(|_| ChannelError::Tls("not a host name".into()))?;
        let tls = ClientConnection::new(Arc::new(config), name)?;
        let mut early = Vec::new();
        let channel = Channel::shake(tls.into(), socket, deadline, &mut early)?;
        let fingerprint = channel.lock().and_then(|tls| {
            certificate::facts(tls.peer_certificates()?.first()?).ok().map(|facts| facts.fingerprint)
        });
        let fingerprint =
            fingerprint.ok_or_else(|| ChannelError::Tls("the certificate is damaged".into()))?;
        Ok(Unverified { channel, fingerprint, early })
    }

    /// The key that the server has shown.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The channel, if the server's key is the expected one, and what the server said early.
    ///
    /// # Errors
    /// [`ChannelError::WrongKey`], with the key that was shown.
    pub fn trust(self, expected: Fingerprint) -> Result<(Channel, Vec<u8>), ChannelError> {
        if self.fingerprint == expected {
            Ok((self.channel, self.early))
        } else {
            Err(ChannelError::WrongKey { seen: self.fingerprint })
        }
    }
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_write_timeout(Some(WRITE_TIMEOUT))
}

/// A socket with a time-out is interrupted when its process was stopped and goes on (signal(7)): it is asked again.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn left_until(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

fn flush(tls: &mut Connection, socket: &TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        uninterrupted(|| tls.write_tls(&mut &*socket))?;
    }
    Ok(())
}

fn drain(tls: &mut Connection, wire: &mut Vec<u8>) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(wire)?;
    }
    Ok(())
}

/// Appends all plaintext that is there.
fn take_plaintext(tls: &mut Connection, plain: &mut Vec<u8>) -> io::Result<()> {
    let mut reader = tls.reader();
    loop {
        let count = match reader.fill_buf() {
            Ok(some) => {
                plain.extend_from_slice(some);
                some.len()
            }
            // There is no more for now.
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            // What a close without a word means is for the next read to say.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => 0,
            Err(error) => return Err(error),
        };
        if count == 0 {
            return Ok(());
        }
        reader.consume(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A channel without TLS, and its other end.
    fn channel() -> (Channel, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (near, _) = listener.accept().expect("accepted");
        (Channel::bare(Arc::new(near)).expect("a socket"), far)
    }

    #[test]
    fn the_buffer_is_large_while_much_arrives_and_nothing_is_held_for_who_says_little() {
        let (channel, mut far) = channel();
        let (mut reader, mut plain) = (Reader::default(), Vec::new());
        let mut take = |bytes: usize, wait: Duration| {
            far.write_all(&vec![b'x'; bytes]).expect("written");
            plain.clear();
            let received = channel.receive(&mut reader, &mut plain, wait).expect("open");
            (received, plain.len(), reader.large.len())
        };
        let short = Duration::from_millis(1);
        assert_eq!(take(0, short), (Received::Silence, 0, 0));
        assert_eq!(take(SMALL_READ - 1, HOUR), (Received::Some, SMALL_READ - 1, 0));
        assert_eq!(take(SMALL_READ, HOUR), (Received::Some, SMALL_READ, LARGE_READ));
        assert_eq!(take(SMALL_READ, HOUR), (Received::Some, SMALL_READ, LARGE_READ));
        assert_eq!(take(SMALL_READ - 1, HOUR), (Received::Some, SMALL_READ - 1, 0));
        assert_eq!(take(SMALL_READ, HOUR).2, LARGE_READ);
        assert_eq!(take(0, Duration::ZERO), (Received::Silence, 0, 0), "silence lets it go, too");
        far.shutdown(Shutdown::Write).expect("ended");
        assert_eq!(channel.receive(&mut reader, &mut plain, HOUR).expect("ended"), Received::End);
    }

    #[test]
    fn who_takes_nothing_is_sent_nothing_without_waiting_and_who_is_gone_is_an_error() {
        let (channel, far) = channel();
        let piece = vec![b'x'; 64 * 1024];
        let mut sent = 0;
        // Some megabytes are the kernel's.
        let is_full = (0..10_000).any(|_| {
            let count = channel.send_now(&piece).expect("a full socket is no error");
            sent += count;
            count == 0
        });
        assert!(is_full && sent > 0);
        let late = channel.send_by(&piece, Instant::now()).expect_err("there is no time left");
        assert_eq!(late.kind(), ErrorKind::TimedOut);
        drop(far);
        let gone = (0..10_000).find_map(|_| channel.send_by(&piece, Instant::now() + HOUR).err());
        assert!(
            gone.is_some_and(|error| error.kind() != ErrorKind::TimedOut),
            "long before the time is over"
        );
        assert!(channel.send_now(&piece).is_err());
    }

    #[test]
    fn patient_write_tells_that_it_waited_and_ends_with_close() {
        let (channel, mut far) = channel();
        let waits = std::cell::Cell::new(0);
        let count = || waits.set(waits.get() + 1);
        channel.send_patiently(&[0; 1024], count).expect("it fits");
        assert_eq!(waits.get(), 0);
        let piece = vec![0; 16 * 1024 * 1024];
        std::thread::scope(|scope| {
            scope.spawn(|| far.read_exact(&mut vec![0; 1024 + piece.len()]).expect("all of it"));
            channel.send_patiently(&piece, count).expect("somebody reads");
        });
        assert!(waits.get() > 0);
        std::thread::scope(|scope| {
            let stuck = scope.spawn(|| channel.send_patiently(&piece, || ()));
            scope.spawn(|| {
                while channel.send_now(&[0]).is_ok_and(|sent| sent > 0) {}
                channel.close();
            });
            assert!(stuck.join().expect("it ends").is_err());
        });
    }
}
