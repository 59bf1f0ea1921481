//! The channel between client and server: TLS 1.3 or 1.2 over TCP, or plain TCP if the user asks for it.
//!
//! Invariant: a thread that waits for the socket holds no lock; the TLS state is locked only to move bytes in or out. A
//! client gets a TLS [`Channel`] only by naming the fingerprint that it trusts ([`Unverified::trust`]). Nothing falls
//! back to plain TCP. No other file talks to rustls.

use super::certificate::{self, Facts};
use crate::crypto::public::Fingerprint;
use crate::disk;
use crate::sync::lock;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, Connection, DigitallySignedStruct, SignatureScheme};
use rustls::{InvalidMessage, ServerConfig, ServerConnection};
use socket2::SockRef;
use std::io::{self, BufRead, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A blocked write returns after this time with what it has written, so that its progress is seen.
const WRITE_STEP: Duration = Duration::from_secs(1);
/// RFC 9266 section 2: the channel binding's label; its value has 32 bytes and no context. PROTOCOL#exporter.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";
/// Bytes that the kernel holds and has not sent yet. It bounds the wait of a line behind earlier ones, and the cost of
/// a client that does not read. Bytes in flight do not count, so long lines are not slower.
const NOT_SENT: u32 = 128 * 1024;
/// Bytes of a first read, on the stack: an idle connection holds no buffer.
const SMALL_READ: usize = 2048;
/// Bytes of the reads after a full first one: about a chunk of a file.
const LARGE_READ: usize = 64 * 1024;

const OLD_VERSION: &str = "this certificate is not of X.509 version 3, which TLS needs: have it issued again with the \
    server's names as an extension (openssl x509 -req -copy_extensions copy, or with -extfile)";
const WRONG_ORDER: &str = "the server's own certificate, which belongs to server.key, must be the first in this file: put \
    those of the authorities after it";

/// The server's side of TLS: certificate, key, versions.
pub type Acceptor = Arc<ServerConfig>;

/// TLS 1.3 and 1.2, ECDHE with AES-GCM or ChaCha20-Poly1305, X25519MLKEM768 preferred: the library's defaults with the
/// feature `prefer-post-quantum`, which a test watches. PROTOCOL#transport.
fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key.clone_key())
}

/// Reads `server.crt` and `server.key` of a folder.
///
/// # Errors
/// With the path and the remedy in the text, also if the two do not belong together.
pub fn acceptor(folder: &Path) -> io::Result<(Acceptor, Facts)> {
    let (key_path, path) = certificate::paths(folder);
    let ((chain, facts), key) = (certificate::read_chain(&path)?, certificate::read_key(&key_path)?);
    let fits = |one: &CertificateDer<'static>| server_config(vec![one.clone()], &key).is_ok();
    let mut config = server_config(chain.clone(), &key).map_err(|error| match error {
        rustls::Error::General(_) => disk::error(&key_path, certificate::UNUSABLE_KEY),
        _ if chain.iter().skip(1).any(fits) => disk::error(&path, WRONG_ORDER),
        rustls::Error::InconsistentKeys(_) => disk::error(folder, certificate::OTHER_KEY),
        // The library has no error kind for this.
        error if error.to_string().contains("UnsupportedCertVersion") => disk::error(&path, OLD_VERSION),
        error => disk::error(
            &path,
            format!("this certificate cannot be used for TLS: get another for the same key ({error})"),
        ),
    })?;
    // RFC 9266 section 4.2: without it, a TLS 1.2 exporter does not name one channel.
    config.require_ems = true;
    // Every login is a full one, so there is nothing to resume and nothing to store for it.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok((Arc::new(config), facts))
}

/// Checks that the server holds the key of its certificate. [`Unverified::trust`] checks that it is the right key.
#[derive(Debug)]
struct PossessionOnly(WebPkiSupportedAlgorithms);

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
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// Sends lines at once, and limits what the kernel holds unsent. A system without such a limit limits the whole send
/// buffer.
fn prepare(socket: &TcpStream) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    let _ = SockRef::from(socket).set_tcp_notsent_lowat(NOT_SENT);
    #[cfg(not(target_os = "linux"))]
    let _ = SockRef::from(socket).set_send_buffer_size(NOT_SENT as usize);
    socket.set_nodelay(true)
}

/// Why TLS failed: `Unsupported` if the peer does not speak it, otherwise `InvalidData`. No socket fails with these.
fn tls_error(error: rustls::Error) -> io::Error {
    let kind = match error {
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => ErrorKind::Unsupported,
        _ => ErrorKind::InvalidData,
    };
    io::Error::new(kind, error)
}

/// A socket of which each read and write ends at a deadline, with `TimedOut` or `WouldBlock`.
struct Timed<'a>(&'a TcpStream, Instant);

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.1.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.set_read_timeout(self.left()?)?;
        self.0.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, records: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.set_write_timeout(self.left()?)?;
        self.0.write_vectored(records)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a socket only waited too long. A process that was stopped and continues is interrupted (signal(7)).
fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// The buffer that the one reading thread of a channel keeps between reads: a large one while much arrives, otherwise
/// none.
#[derive(Default)]
pub struct Reader {
    large: Vec<u8>,
    /// False while TLS may hold bytes that came with the handshake, or an end that came with the last bytes. Asking it
    /// before each read would cost each thread another page of stack.
    is_drained: bool,
}

/// The result of [`Channel::receive`].
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes arrived, perhaps only for TLS itself.
    Some,
    /// Nothing arrived. The wait may have been shorter than the maximum.
    Silence,
    /// The peer has closed.
    End,
}

/// A TLS connection, which no third party can read or change, or plain TCP.
pub struct Channel {
    socket: Arc<TcpStream>,
    /// `None` without TLS.
    tls: Option<Mutex<Connection>>,
    exporter: Vec<u8>,
}

impl Channel {
    /// Server: the handshake, or none without an acceptor.
    ///
    /// # Errors
    /// The socket's, also when `deadline` passes; `Unsupported` if the peer does not speak TLS, `InvalidData` if the
    /// handshake fails.
    pub fn accept(
        acceptor: Option<Acceptor>,
        socket: Arc<TcpStream>,
        deadline: Instant,
    ) -> io::Result<Channel> {
        let Some(config) = acceptor else { return Channel::bare(socket) };
        let tls = ServerConnection::new(config).map_err(tls_error)?;
        Channel::shake(tls.into(), socket, deadline)
    }

    /// A channel without TLS, for `--no-tls` only.
    ///
    /// # Errors
    /// The socket's, when its options are set.
    pub fn bare(socket: Arc<TcpStream>) -> io::Result<Channel> {
        prepare(&socket)?;
        Ok(Channel { socket, tls: None, exporter: Vec::new() })
    }

    fn shake(mut tls: Connection, socket: Arc<TcpStream>, deadline: Instant) -> io::Result<Channel> {
        prepare(&socket)?;
        tls.set_buffer_limit(None);
        while tls.is_handshaking() {
            let moved = tls.complete_io(&mut Timed(&socket, deadline));
            moved.map_err(|error| error.downcast().map_or_else(|error| error, tls_error))?;
        }
        let exporter = tls.export_keying_material(vec![0; 32], EXPORTER_LABEL, None).map_err(tls_error)?;
        Ok(Channel { socket, tls: Some(Mutex::new(tls)), exporter })
    }

    /// The TLS exporter of RFC 9266, 32 bytes; empty without TLS.
    pub fn exporter(&self) -> &[u8] {
        &self.exporter
    }

    /// Reads at most once and appends the plaintext to `plain`. Waits at most `wait` and at least a millisecond; less
    /// when the process was stopped and continues, because the caller must look at its clocks then.
    ///
    /// # Errors
    /// The socket's, or a TLS error, after which the channel is useless.
    pub fn receive(&self, reader: &mut Reader, plain: &mut Vec<u8>, wait: Duration) -> io::Result<Received> {
        let before = plain.len();
        let received = |has_ended: bool, after: usize| {
            if has_ended && after == before { Received::End } else { Received::Some }
        };
        if !std::mem::replace(&mut reader.is_drained, true) {
            let has_ended = self.take_in(&[], plain)?;
            if has_ended || plain.len() > before {
                return Ok(received(has_ended, plain.len()));
            }
        }
        self.socket.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        let mut small = [0; SMALL_READ];
        let buffer = if reader.large.is_empty() { &mut small[..] } else { &mut reader.large[..] };
        let count = match (&*self.socket).read(buffer) {
            Ok(0) => return Ok(Received::End),
            Ok(count) => count,
            Err(error) if is_silence(&error) => {
                reader.large = Vec::new();
                return Ok(Received::Silence);
            }
            Err(error) => return Err(error),
        };
        let has_ended = self.take_in(&buffer[..count], plain)?;
        if count < SMALL_READ {
            reader.large = Vec::new();
        } else if reader.large.is_empty() {
            reader.large = vec![0; LARGE_READ];
        }
        reader.is_drained = !has_ended;
        Ok(received(has_ended, plain.len()))
    }

    /// Decrypts; true if the peer has closed.
    fn take_in(&self, mut wire: &[u8], plain: &mut Vec<u8>) -> io::Result<bool> {
        let Some(mut tls) = self.lock() else {
            plain.extend_from_slice(wire);
            return Ok(false);
        };
        loop {
            if !wire.is_empty() {
                tls.read_tls(&mut wire)?;
            }
            let state = tls.process_new_packets().map_err(io::Error::other)?;
            take_plaintext(&mut tls, plain);
            if state.peer_has_closed() || wire.is_empty() {
                return Ok(state.peer_has_closed());
            }
        }
    }

    /// Encrypts `plain` in as few records as possible and appends them to `wire`, after TLS's own records, such as the
    /// answer to a key update. Send the results in the order of the calls.
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

    /// Sends as much as fits without waiting, and returns the number of bytes, perhaps 0.
    ///
    /// # Errors
    /// The socket's.
    pub fn send_now(&self, wire: &[u8]) -> io::Result<usize> {
        if wire.is_empty() {
            return Ok(0);
        }
        match SockRef::from(&*self.socket).send_with_flags(wire, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }

    /// Sends everything, however long the peer takes; [`Channel::close`] by another thread ends it. Calls `progressed`
    /// each time that a write had to wait and then continued.
    ///
    /// # Errors
    /// The socket's.
    pub fn send_patiently(&self, mut wire: &[u8], mut progressed: impl FnMut()) -> io::Result<()> {
        wire = &wire[self.send_now(wire)?..];
        while !wire.is_empty() {
            match Timed(&self.socket, Instant::now() + WRITE_STEP).write(wire) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => {
                    wire = &wire[sent..];
                    progressed();
                }
                Err(error) if is_silence(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends everything before `deadline`.
    ///
    /// # Errors
    /// The socket's; a time-out (`TimedOut` or `WouldBlock`) may leave a part sent, after which the channel is useless.
    pub fn send_by(&self, wire: &[u8], deadline: Instant) -> io::Result<()> {
        Timed(&self.socket, deadline).write_all(wire)
    }

    /// Closes our direction, with TLS's `close_notify`: bytes in flight still arrive, and the peer can still send.
    pub fn end(&self) {
        let mut wire = Vec::new();
        if let Some(mut tls) = self.lock() {
            tls.send_close_notify();
            let _ = drain(&mut tls, &mut wire);
        }
        let _ = self.send_now(&wire);
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Closes both directions; a blocked reader returns.
    pub fn close(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn lock(&self) -> Option<MutexGuard<'_, Connection>> {
        self.tls.as_ref().map(lock)
    }
}

/// Client: a finished handshake with a server whose key is not checked yet. PROTOCOL#server-key.
pub struct Unverified {
    channel: Channel,
    fingerprint: Fingerprint,
}

impl Unverified {
    /// The handshake. The client sends nothing else before [`Unverified::trust`].
    ///
    /// # Errors
    /// As [`Channel::accept`].
    pub fn connect(host: &str, socket: Arc<TcpStream>, deadline: Instant) -> io::Result<Unverified> {
        let verifier = PossessionOnly(aws_lc_rs::default_provider().signature_verification_algorithms);
        let mut config = ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.require_ems = true;
        config.resumption = rustls::client::Resumption::disabled();
        let name = ServerName::try_from(host.to_string()).or_else(|_| ServerName::try_from("localhost"));
        let name = name.expect("the second is a host name");
        let tls = ClientConnection::new(Arc::new(config), name).map_err(tls_error)?;
        let channel = Channel::shake(tls.into(), socket, deadline)?;
        let facts = channel.lock().and_then(|tls| certificate::facts(tls.peer_certificates()?.first()?));
        let damaged = || io::Error::new(ErrorKind::InvalidData, "the certificate is damaged");
        Ok(Unverified { channel, fingerprint: facts.ok_or_else(damaged)?.fingerprint })
    }

    /// The server's key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The channel; `None` if the server's key is not the expected one.
    pub fn trust(self, expected: Fingerprint) -> Option<Channel> {
        (self.fingerprint == expected).then_some(self.channel)
    }
}

fn drain(tls: &mut Connection, wire: &mut Vec<u8>) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(wire)?;
    }
    Ok(())
}

/// Appends all plaintext that has arrived. An error means that there is no more for now; the next read reports an end.
fn take_plaintext(tls: &mut Connection, plain: &mut Vec<u8>) {
    let mut reader = tls.reader();
    while let Ok(some @ [_, ..]) = reader.fill_buf() {
        let count = some.len();
        plain.extend_from_slice(some);
        reader.consume(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::Folder;
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
    fn buffer_is_large_while_much_arrives_and_otherwise_freed() {
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
        assert_eq!(take(0, Duration::ZERO), (Received::Silence, 0, 0), "silence frees it");
        far.shutdown(Shutdown::Write).expect("ended");
        assert_eq!(channel.receive(&mut reader, &mut plain, HOUR).expect("ended"), Received::End);
    }

    #[test]
    fn full_socket_takes_nothing_and_a_closed_one_is_an_error() {
        let (channel, far) = channel();
        let piece = vec![b'x'; 64 * 1024];
        let mut sent = 0;
        // The kernel buffers some megabytes.
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
    fn patient_write_reports_progress_and_ends_with_close() {
        let (channel, mut far) = channel();
        let waits = std::cell::Cell::new(0);
        let count = || waits.set(waits.get() + 1);
        channel.send_patiently(&[0; 1024], count).expect("it fits");
        assert_eq!(waits.get(), 0);
        let piece = vec![0; 16 * 1024 * 1024];
        std::thread::scope(|scope| {
            scope.spawn(|| far.read_exact(&mut vec![0; 1024 + piece.len()]).expect("all of it"));
            channel.send_patiently(&piece, count).expect("the peer reads");
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

    #[test]
    fn last_bytes_arrive_before_the_end() {
        let folder = Folder::new();
        certificate::prepare(&folder, crate::clock::now_ms()).expect("a certificate");
        let (acceptor, _) = acceptor(&folder).expect("a pair");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let socket = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let deadline = Instant::now() + HOUR;
        let channel = std::thread::scope(|scope| {
            scope.spawn(|| {
                let server = Unverified::connect("localhost", Arc::new(socket), deadline).expect("TLS");
                let seen = server.fingerprint();
                let (channel, mut wire) = (server.trust(seen).expect("its key"), Vec::new());
                channel.encrypt(b"last", &mut wire).expect("TLS");
                channel.send_by(&wire, deadline).expect("it fits");
                channel.end();
            });
            let (socket, _) = listener.accept().expect("accepted");
            Channel::accept(Some(acceptor), Arc::new(socket), deadline).expect("TLS")
        });
        let (mut reader, mut plain, mut before) = (Reader::default(), Vec::new(), 0);
        while channel.receive(&mut reader, &mut plain, HOUR).expect("TLS") != Received::End {
            before = plain.len();
        }
        assert_eq!((&plain[..], before), (&b"last"[..], 4));
    }
}
