//! Helpers for tests of whole programs: temporary folders, real servers on port 0, clients in plain mode and
//! in a terminal, a relay between them, and a raw connection that sends the bytes of an attacker. Nothing here sleeps:
//! each wait ends with a line, a screen or the end of the output, or fails at a deadline that only a broken program
//! reaches.

// Each test target uses only a part of this module.
#![allow(dead_code, unused_imports)]

mod cast;
mod dice;
mod envelope;
mod mail;
mod operator;
mod program;
mod relay;
pub mod storms;
mod terminal;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
pub use cast::*;
pub use dice::*;
pub use envelope::*;
pub use mail::*;
pub use operator::*;
pub use program::*;
pub use relay::*;
use secure_messenger::auth::PasswordKey;
use secure_messenger::client::store::trust::{Ignored, TrustStore};
use secure_messenger::clock;
use secure_messenger::crypto::key_file;
use secure_messenger::crypto::keys::{IdentityKey, SessionKey};
use secure_messenger::crypto::primitives::PBKDF2_MIN_ROUNDS;
use secure_messenger::crypto::public::RSA_BYTES;
use secure_messenger::crypto::secret::{Password, random};
use secure_messenger::disk;
use secure_messenger::encoding::{Bytes, Fixed};
use secure_messenger::name::Username;
use secure_messenger::protocol::{
    self, Challenge, ChallengeResponse, ClientMessage, Failure, Keys, KeysRequest, LoginRequest, MAX_PACKET,
    Packet, ServerMessage, Session, SessionCertificate, UserKeys, VERSION,
};
use secure_messenger::wire::frame::{self, Frame, Lines};
use secure_messenger::wire::tls::{Channel, Reader, Received, Unverified};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};
pub use terminal::*;

/// Only a broken program makes a test wait this long.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// The password of every user in the tests, and the new one in tests that change it.
pub const PASSWORD: &str = "correct horse battery";
pub const NEW: &str = "tr0ub4dor and three";
/// The client's data folder below its home.
pub const DATA: &str = ".secure_messenger_client";
pub const MIB: usize = 1024 * 1024;

/// A temporary folder, removed on drop.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Folder {
        let path = std::env::temp_dir().join(format!("messenger-test-{}", hex(&random::<8>())));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Folder(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A password file that only its owner may read.
    pub fn password_file(&self, password: &str) -> PathBuf {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.path(&format!("password-{}", password.len()));
        // An unchanged file is not written again: another client may be reading it.
        if std::fs::read_to_string(&path).is_ok_and(|text| text.trim_end() == password) {
            return path;
        }
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&path).expect("file");
        writeln!(file, "{password}").expect("write");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The lines of a program's output, read with a deadline.
pub struct Output {
    lines: Receiver<String>,
    pub seen: Vec<String>,
}

impl Output {
    pub fn of(stream: impl Read + Send + 'static) -> Output {
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                if line.is_err() || sender.send(line.unwrap_or_default()).is_err() {
                    return;
                }
            }
        });
        Output { lines, seen: Vec::new() }
    }

    /// The next line; `None` at the end of the output.
    pub fn next(&mut self) -> Option<String> {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => {
                self.seen.push(line.clone());
                Some(line)
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                panic!("no further line; so far: {:#?}", self.seen)
            }
        }
    }

    /// Reads the lines that are there, and does not wait. False at the end of the output.
    pub fn poll(&mut self) -> bool {
        loop {
            match self.lines.try_recv() {
                Ok(line) => self.seen.push(line),
                Err(error) => return error == std::sync::mpsc::TryRecvError::Empty,
            }
        }
    }

    /// Reads until a line contains `part`, and returns that line.
    pub fn expect(&mut self, part: &str) -> String {
        loop {
            match self.next() {
                Some(line) if line.contains(part) => return line,
                Some(_) => {}
                None => panic!("the output ended before {part:?}: {:#?}", self.seen),
            }
        }
    }

    /// Reads to the end, and returns all lines since the start.
    pub fn all(&mut self) -> Vec<String> {
        while self.next().is_some() {}
        self.seen.clone()
    }
}

/// A real server process.
pub struct Server {
    pub child: Child,
    pub port: u16,
    pub tls: bool,
    /// The lines that it printed before it listened.
    pub greeting: Vec<String>,
    pub output: Output,
    /// The data folder is `home/data`.
    pub home: Arc<Folder>,
}

impl Server {
    pub fn start() -> Server {
        Server::with(&[])
    }

    pub fn with(arguments: &[&str]) -> Server {
        Server::within(Arc::new(Folder::new()), arguments)
    }

    /// Starts on a data folder that may exist already.
    pub fn within(home: Arc<Folder>, arguments: &[&str]) -> Server {
        Server::run(Command::new(env!("CARGO_BIN_EXE_server")), home, arguments)
    }

    /// The same, started by a shell that has run `preparation`.
    pub fn after(preparation: &str, home: Arc<Folder>, arguments: &[&str]) -> Server {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{preparation}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_server")]);
        Server::run(shell, home, arguments)
    }

    fn run(mut command: Command, home: Arc<Folder>, arguments: &[&str]) -> Server {
        let mut child = command
            .args(["--host", "127.0.0.1", "--port", "0", "--data-dir"])
            .arg(home.path("data"))
            .args(arguments)
            .env("HOME", &home.0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the server starts");
        let mut output = Output::of(child.stdout.take().expect("piped"));
        let line = output.expect("listening on ");
        let port = line.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        let greeting = output.seen.clone();
        let tls = !arguments.contains(&"--no-tls");
        Server { child, port, tls, greeting, output, home }
    }

    pub fn data(&self, path: &str) -> PathBuf {
        self.home.path("data").join(path)
    }

    /// Kills the server without warning, as a power failure would, and returns its home.
    pub fn kill(mut self) -> Arc<Folder> {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.home.clone()
    }

    /// A plain-mode client, which creates its account if necessary.
    pub fn client(&self, name: &str) -> Client {
        Client::start(self, name, &["--register"])
    }

    /// A client in a home that may have been used already.
    pub fn client_in(&self, home: &Arc<Folder>, name: &str, arguments: &[&str]) -> Client {
        Client::within(home.clone(), self.port, name, self.tls, arguments)
    }

    /// The line of the greeting that contains `part`; panics if there is none.
    pub fn told(&self, part: &str) -> String {
        let line = self.greeting.iter().find(|line| line.contains(part));
        line.unwrap_or_else(|| panic!("{part:?} is not in {:#?}", self.greeting)).clone()
    }

    /// Whether no line of the greeting contains `part`.
    pub fn is_silent_about(&self, part: &str) -> bool {
        !self.greeting.iter().any(|line| line.contains(part))
    }

    /// The fingerprint of the server's key.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.told("SHA256:"))
    }

    /// Sends a signal, `-TERM` for example.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Waits until the security log contains `part`.
    pub fn logs(&self, part: &str) {
        until(part, || self.log().contains(part));
    }

    /// Makes one failed login, and returns the error.
    pub fn fail(&self, person: &Person) -> Failure {
        let mut raw = self.raw();
        let failure = match raw.challenge(person) {
            Some(ServerMessage::Challenge(_)) => {
                raw.say(&person.false_response());
                raw.failure()
            }
            Some(ServerMessage::Error(failure)) => failure,
            _ => panic!("no challenge"),
        };
        assert!(raw.is_closed());
        failure
    }

    /// Whether a login with this password succeeds.
    pub fn opens(&self, person: &Person, password: &str) -> bool {
        matches!(self.raw().log_in_with(person, password), Some(ServerMessage::Session(_)))
    }

    /// A TCP connection without TLS or a login.
    pub fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect(("127.0.0.1", self.port)).expect("the server accepts");
        socket.set_read_timeout(Some(DEADLINE)).expect("a time-out");
        socket
    }

    /// A connection on which no message has been sent yet.
    pub fn raw(&self) -> Raw {
        Raw::over(self.socket(), self.tls)
    }

    /// The current content of the security log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data("logs/security.log")).expect("a security log")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A real client process in plain mode.
pub struct Client {
    pub child: Child,
    input: Option<ChildStdin>,
    pub output: Output,
    pub home: Arc<Folder>,
    pub name: String,
}

impl Client {
    /// Starts in a new home, and does not wait for the login.
    pub fn start(server: &Server, name: &str, arguments: &[&str]) -> Client {
        Client::within(Arc::new(Folder::new()), server.port, name, server.tls, arguments)
    }

    /// Starts in a home that may have been used already. Accepts a server that it sees for the first time.
    pub fn within(home: Arc<Folder>, port: u16, name: &str, tls: bool, arguments: &[&str]) -> Client {
        Client::run(Command::new(env!("CARGO_BIN_EXE_client")), home, port, name, tls, arguments)
    }

    /// The same, started by a shell that has run `preparation`.
    pub fn after(preparation: &str, home: Arc<Folder>, port: u16, name: &str, arguments: &[&str]) -> Client {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{preparation}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_client")]);
        Client::run(shell, home, port, name, true, arguments)
    }

    /// Starts in its home as the working directory.
    fn run(
        mut command: Command,
        home: Arc<Folder>,
        port: u16,
        name: &str,
        tls: bool,
        arguments: &[&str],
    ) -> Client {
        let password = home.password_file(PASSWORD);
        command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--user", name, "--password-file"]);
        command.arg(password).args(arguments).env("HOME", &home.0).current_dir(&home.0);
        if tls {
            command.arg("--accept-new");
        } else {
            command.arg("--no-tls");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().expect("the client starts");
        let input = child.stdin.take();
        let output = Output::of(child.stdout.take().expect("piped"));
        Client { child, input, output, home, name: name.into() }
    }

    /// Waits until the client is logged in and has listed the online users.
    pub fn ready(mut self) -> Client {
        self.expect("* logged in as ");
        self.expect(" online: ");
        self
    }

    /// Types one line.
    pub fn say(&mut self, line: &str) {
        assert!(self.try_say(line), "the client reads");
    }

    /// Types one line. False if the client has ended.
    pub fn try_say(&mut self, line: &str) -> bool {
        let input = self.input.as_mut().expect("the input is open");
        writeln!(input, "{line}").and_then(|()| input.flush()).is_ok()
    }

    /// Types one line, and reads until an output line contains `part`.
    pub fn ask(&mut self, line: &str, part: &str) -> String {
        self.say(line);
        self.expect(part)
    }

    /// See [`Output::expect`].
    pub fn expect(&mut self, part: &str) -> String {
        self.output.expect(part)
    }

    /// Closes the input, and does not wait for the client's end.
    pub fn end(&mut self) {
        self.input = None;
    }

    /// Closes the input, and returns the exit status and all lines.
    pub fn finish(mut self) -> (i32, Vec<String>) {
        self.end();
        let lines = self.output.all();
        let status = self.child.wait().expect("it ends");
        (status.code().unwrap_or(-1), lines)
    }

    /// Closes the input, and returns all lines. The client must exit with `status`, and a line must contain `part`.
    pub fn ends(self, status: i32, part: &str) -> Vec<String> {
        let (ended, lines) = self.finish();
        let is_told = lines.iter().any(|line| line.contains(part));
        assert!(ended == status && is_told, "{ended}, {part:?}: {lines:#?}");
        lines
    }

    /// Closes the input, and returns all lines. The client must exit with status 0.
    pub fn leaves(self) -> Vec<String> {
        self.ends(0, "")
    }

    /// Waits until the client exits by itself, and returns its status.
    pub fn status(&mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }

    /// Sends a signal, `-TERM` for example.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    pub fn data(&self, path: &str) -> PathBuf {
        self.home.path(DATA).join(path)
    }

    /// Whether a line that was read already contains `part`.
    pub fn has_seen(&self, part: &str) -> bool {
        self.output.seen.iter().any(|line| line.contains(part))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How often lines report `part`, including the repetitions that a line counts: "(once more)", "(7 more times)".
pub fn times(lines: &[String], part: &str) -> u64 {
    let count = |line: &String| match line.rsplit_once(" (") {
        Some((_, rest)) => rest.strip_suffix(" more times)").and_then(|n| n.parse().ok()).unwrap_or(1),
        None => 1,
    };
    lines.iter().filter(|line| line.contains(part)).map(count).sum()
}

/// Counts received frames from the login on, as a client does.
#[derive(Default)]
pub struct Count {
    is_logged_in: bool,
    received: u64,
}

impl Count {
    /// Counts one frame; a packet has no message.
    pub fn take(&mut self, message: Option<&ServerMessage>) {
        self.received += u64::from(self.is_logged_in && message.is_none_or(ServerMessage::is_counted));
        self.is_logged_in |= matches!(message, Some(ServerMessage::Session(_)));
    }

    /// The acknowledgement of all frames; `None` before a login, which a resume does not replace.
    pub fn ack(&self) -> Option<ClientMessage> {
        self.is_logged_in.then_some(ClientMessage::Ack(protocol::Received { received: self.received }))
    }
}

/// A connection that sends whatever a test requests.
pub struct Raw {
    pub socket: Arc<TcpStream>,
    pub channel: Arc<Channel>,
    pub reader: Reader,
    pub count: Count,
    pub lines: Lines,
}

impl Raw {
    pub fn over(socket: TcpStream, tls: bool) -> Raw {
        let socket = Arc::new(socket);
        if tls {
            Raw::shaken(socket).expect("handshake")
        } else {
            Raw::on(socket.clone(), Channel::bare(socket).expect("socket"))
        }
    }

    /// Connects to a server that may exit at any moment.
    pub fn reach(port: u16) -> Option<Raw> {
        Raw::shaken(Arc::new(TcpStream::connect(("127.0.0.1", port)).ok()?)).ok()
    }

    fn shaken(socket: Arc<TcpStream>) -> io::Result<Raw> {
        let unverified = Unverified::connect("localhost", socket.clone(), Instant::now() + DEADLINE)?;
        let seen = unverified.fingerprint();
        Ok(Raw::on(socket, unverified.trust(seen).expect("its own key")))
    }

    fn on(socket: Arc<TcpStream>, channel: Channel) -> Raw {
        let lines = Lines::new(4 * 1024 * 1024);
        let (reader, count) = (Reader::default(), Count::default());
        Raw { socket, channel: Arc::new(channel), reader, count, lines }
    }

    /// Sends any bytes. False if the connection no longer accepts any.
    pub fn bytes(&mut self, bytes: &[u8]) -> bool {
        let mut wire = Vec::new();
        self.channel
            .encrypt(bytes, &mut wire)
            .and_then(|()| self.channel.send_by(&wire, Instant::now() + DEADLINE))
            .is_ok()
    }

    pub fn say(&mut self, message: &ClientMessage) {
        assert!(self.bytes(&message.encode()), "the server reads");
    }

    /// The next frame, converted by `of`; `None` when the connection has ended.
    fn receive<T>(&mut self, of: impl Fn(Frame<'_>) -> T) -> Option<T> {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(frame) = self.lines.next_frame(MAX_PACKET).expect("bounded frames") {
                return Some(of(frame));
            }
            assert!(Instant::now() < end, "the server neither answered nor closed");
            match self.channel.receive(&mut self.reader, self.lines.buffer(), Duration::from_secs(1)) {
                Ok(Received::End) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next message or packet; `None` when the connection has ended.
    pub fn next(&mut self) -> Option<Heard> {
        let heard = self.receive(Heard::of)?;
        self.count.take(heard.message());
        Some(heard)
    }

    /// The next message; `None` when the connection has ended.
    pub fn hear(&mut self) -> Option<ServerMessage> {
        match self.next()? {
            Heard::Message(message) => Some(message),
            Heard::Packet(..) => panic!("a packet"),
        }
    }

    /// The next line as received, without its line end; `None` when the connection has ended. Not counted.
    pub fn line(&mut self) -> Option<String> {
        self.receive(|frame| match frame {
            Frame::Line(line) => String::from_utf8(line.to_vec()).expect("UTF-8"),
            Frame::Packet(_) => panic!("a packet"),
        })
    }

    /// Whether the server answers a ping next: it has processed everything before, without an error.
    pub fn is_usable(&mut self) -> bool {
        self.bytes(&ClientMessage::Ping.encode()) && matches!(self.answer(), Some(ServerMessage::Pong))
    }

    /// Acknowledges all frames received.
    pub fn acknowledge(&mut self) {
        let ack = self.count.ack().expect("the connection is logged in");
        self.say(&ack);
    }

    /// The next message that is not presence, a ping or an acknowledgement.
    pub fn answer(&mut self) -> Option<ServerMessage> {
        loop {
            match self.hear() {
                Some(ServerMessage::Presence(_) | ServerMessage::Ping | ServerMessage::Ack(_)) => {}
                other => return other,
            }
        }
    }

    /// The error that must be the next answer.
    pub fn failure(&mut self) -> Failure {
        refused(self.answer())
    }

    /// The code of the error that must be the next answer.
    pub fn error(&mut self) -> String {
        self.failure().code
    }

    /// Requests keys, and returns the answer.
    pub fn keys(&mut self, names: &[&str]) -> Keys {
        self.say(&ClientMessage::KeysRequest(KeysRequest {
            names: names.iter().map(|text| name(text)).collect(),
        }));
        loop {
            match self.answer() {
                Some(ServerMessage::Keys(keys)) => return keys,
                Some(ServerMessage::EncryptedMessage(_) | ServerMessage::Sent(_)) => {}
                _ => panic!("no keys"),
            }
        }
    }

    /// Whether the connection ends without another message.
    pub fn is_closed(&mut self) -> bool {
        self.answer().is_none()
    }

    /// Registers `person`.
    pub fn register(&mut self, person: &Person) {
        self.say(&person.registration());
        assert!(matches!(self.answer(), Some(ServerMessage::Registered)), "registered");
    }

    /// Logs `person` in; panics if the server refuses.
    pub fn logs_in(&mut self, person: &Person) -> Session {
        match self.log_in(person) {
            Some(ServerMessage::Session(session)) => session,
            Some(ServerMessage::Error(failure)) => panic!("{}: {}", failure.code, failure.message),
            _ => panic!("not logged in"),
        }
    }

    /// Requests a login, and returns the challenge; panics on any other answer.
    pub fn challenged(&mut self, person: &Person) -> Challenge {
        match self.challenge(person) {
            Some(ServerMessage::Challenge(challenge)) => challenge,
            Some(ServerMessage::Error(failure)) => panic!("{}: {}", failure.code, failure.message),
            _ => panic!("no challenge"),
        }
    }

    /// Registers `person` under [`shared_key`], and returns the error if the server refuses.
    pub fn try_register(&mut self, person: &Person) -> Option<Failure> {
        let request = shared_key().register(&person.name, person.identity.public());
        self.bytes(&ClientMessage::Register(request).encode());
        match self.answer() {
            Some(ServerMessage::Registered) => None,
            refusal => Some(refused(refusal)),
        }
    }

    /// Registers `person` under [`shared_key`], unless the account exists already.
    pub fn register_quickly(&mut self, person: &Person) {
        if let Some(failure) = self.try_register(person) {
            assert_eq!(failure.code, "name_taken");
        }
    }

    /// Logs in a person that [`Raw::register_quickly`] has registered.
    pub fn log_in_quickly(&mut self, person: &Person) -> Option<ServerMessage> {
        let challenge = match self.challenge(person) {
            Some(ServerMessage::Challenge(challenge)) => challenge,
            other => return other,
        };
        let response = self.respond_quickly(person, &challenge);
        self.bytes(&response.encode());
        self.answer()
    }

    /// The valid response for a person that [`Raw::register_quickly`] has registered. Sends nothing.
    pub fn respond_quickly(&self, person: &Person, challenge: &Challenge) -> ClientMessage {
        let certificate = person.identity.certify(&person.name, &person.session, clock::now_ms());
        let (session, exporter) = ((&*person.session, certificate), self.channel.exporter());
        let response = shared_key().log_in(&person.name, challenge, exporter, &person.identity, session);
        ClientMessage::ChallengeResponse(Box::new(response))
    }

    /// Requests a login, and returns the server's answer.
    pub fn challenge(&mut self, person: &Person) -> Option<ServerMessage> {
        self.bytes(&person.login_request().encode());
        self.answer()
    }

    /// Logs `person` in, and returns the server's final answer.
    pub fn log_in(&mut self, person: &Person) -> Option<ServerMessage> {
        self.log_in_with(person, PASSWORD)
    }

    /// The same with any password; `None` if the server is gone.
    pub fn log_in_with(&mut self, person: &Person, password: &str) -> Option<ServerMessage> {
        let challenge = match self.challenge(person) {
            Some(ServerMessage::Challenge(challenge)) => challenge,
            other => return other,
        };
        let response = self.response(person, &challenge, password);
        self.bytes(&ClientMessage::ChallengeResponse(Box::new(response)).encode());
        self.answer()
    }

    /// The response to a challenge; it is valid if the password is correct. Sends nothing.
    pub fn response(&self, person: &Person, challenge: &Challenge, password: &str) -> ChallengeResponse {
        let certificate = person.identity.certify(&person.name, &person.session, clock::now_ms());
        let key = PasswordKey::derive(&Password::new(password.into()), challenge).expect("acceptable rounds");
        let session = (&*person.session, certificate);
        key.log_in(&person.name, challenge, self.channel.exporter(), &person.identity, session)
    }

    /// Changes a password, and returns the server's final answer.
    pub fn change_password(&mut self, person: &Person, old: &str, new: &str) -> Option<ServerMessage> {
        let challenge = match self.challenge(person) {
            Some(ServerMessage::Challenge(challenge)) => challenge,
            other => return other,
        };
        let (key, old) = (quick_key(new), Password::new(old.into()));
        let exporter = self.channel.exporter();
        let change = key.replace(&person.name, &challenge, exporter, &old, &person.identity);
        let change = change.expect("acceptable rounds");
        self.bytes(&ClientMessage::PasswordChange(Box::new(change)).encode());
        self.answer()
    }
}

/// The key of a password, with the minimum number of rounds.
pub fn quick_key(password: &str) -> PasswordKey {
    let (nonce, salt) = (Fixed(random()), Fixed(random()));
    let shape = Challenge { version: VERSION, nonce, salt, rounds: PBKDF2_MIN_ROUNDS };
    PasswordKey::derive(&Password::new(password.into()), &shape).expect("enough rounds")
}

/// One password key for many people, derived once: a derivation for each login would cost the test program far more CPU
/// time than the server.
pub fn shared_key() -> &'static PasswordKey {
    static KEY: OnceLock<PasswordKey> = OnceLock::new();
    KEY.get_or_init(|| quick_key(PASSWORD))
}

/// A name with keys. All people of a test program share the same keys, because generating RSA keys takes long; the
/// server accepts that.
pub struct Person {
    pub name: Username,
    pub identity: Arc<IdentityKey>,
    pub session: Arc<SessionKey>,
}

impl Person {
    pub fn new(name: &str) -> Person {
        static KEYS: OnceLock<(Arc<IdentityKey>, Arc<SessionKey>)> = OnceLock::new();
        let (identity, session) =
            KEYS.get_or_init(|| (Arc::new(IdentityKey::generate()), Arc::new(SessionKey::generate())));
        Person { name: name.parse().expect("name"), identity: identity.clone(), session: session.clone() }
    }

    /// A home with this person's key file, encrypted under [`PASSWORD`].
    pub fn home(&self) -> Arc<Folder> {
        home_with(&self.name, &key_file::seal(&self.identity, &self.name, &Password::new(PASSWORD.into())))
    }

    /// The same keys under another name.
    pub fn called(&self, name: &str) -> Person {
        let name = self::name(name);
        Person { name, identity: self.identity.clone(), session: self.session.clone() }
    }

    /// The keys that an honest server shows while the person is online.
    pub fn shown(&self) -> UserKeys {
        let certificate = self.identity.certify(&self.name, &self.session, clock::now_ms());
        self.shown_with(Some(&certificate))
    }

    pub fn shown_with(&self, certificate: Option<&SessionCertificate>) -> UserKeys {
        UserKeys::new(self.name.clone(), self.identity.public().spki(), certificate)
    }

    pub fn login_request(&self) -> ClientMessage {
        let (username, public_key) = (self.name.clone(), Bytes(self.identity.public().spki()));
        ClientMessage::LoginRequest(LoginRequest { version: VERSION, username, public_key })
    }

    /// A well-formed response with invalid values; it costs no CPU time.
    pub fn false_response(&self) -> ClientMessage {
        ClientMessage::ChallengeResponse(Box::new(ChallengeResponse {
            response: Fixed([1; 32]),
            session_key: Bytes(self.session.public().spki()),
            created: clock::now_ms(),
            certificate: Fixed([1; RSA_BYTES]),
            proof: Fixed([1; RSA_BYTES]),
        }))
    }

    /// A registration with a new salt and [`PASSWORD`].
    pub fn registration(&self) -> ClientMessage {
        let key = PasswordKey::new(&Password::new(PASSWORD.into()));
        ClientMessage::Register(key.register(&self.name, self.identity.public()))
    }
}

/// A home with a key file.
pub fn home_with(name: &Username, key_file: &str) -> Arc<Folder> {
    let home = Arc::new(Folder::new());
    let keys = home.path(DATA).join("keys");
    [home.path(DATA), keys.clone()]
        .iter()
        .for_each(|path| disk::private_folders(path, &[]).expect("a folder"));
    let path = keys.join(format!("{name}_private.key"));
    disk::write_new(&path, key_file.as_bytes()).expect("written");
    home
}

/// A new person, registered and logged in.
pub fn newcomer(server: &Server, name: &str) -> (Raw, Person) {
    let person = Person::new(name);
    let mut raw = server.raw();
    raw.register(&person);
    raw.logs_in(&person);
    (raw, person)
}

pub fn name(text: &str) -> Username {
    text.parse().expect("a name")
}

/// The error in an answer that must be one.
pub fn refused(answer: Option<ServerMessage>) -> Failure {
    match answer {
        Some(ServerMessage::Error(failure)) => failure,
        Some(_) => panic!("not refused"),
        None => panic!("closed without an error"),
    }
}

/// The fingerprint in a line: `SHA256:` and 43 characters of base64.
pub fn fingerprint(line: &str) -> String {
    let start = line.find("SHA256:").unwrap_or_else(|| panic!("no fingerprint: {line}"));
    line[start..start + 50].to_string()
}

/// The memory of a process in bytes, from `/proc`: `VmRSS:` is the current value, `VmHWM:` the maximum so far.
pub fn memory_of(pid: u32, which: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("Linux");
    let size = status.lines().find_map(|line| line.strip_prefix(which)).expect("a size");
    size.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All regular files below a folder; sockets are omitted.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("readable") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.is_file() {
            found.push(path);
        }
    }
    found
}

/// Sends a signal, `-TERM` for example, to a process.
pub fn signal(pid: u32, signal: &str) {
    // The shell's builtin: not every machine has a program `kill`.
    let sent = Command::new("sh").args(["-c", "kill $0 $1", signal, &pid.to_string()]).status();
    assert!(sent.expect("a shell").success());
}

/// Whether this process ignores a signal, as under `nohup`. Its child processes inherit that.
pub fn is_ignored(signal: &str) -> bool {
    let bit = ["-HUP", "-INT"].iter().position(|name| *name == signal);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    bit.is_some_and(|bit| mask.unwrap_or(0) >> bit & 1 == 1)
}

/// Stops a process, and continues it.
pub fn interrupt(pid: u32) {
    let stopped = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    };
    signal(pid, "-STOP");
    until("the process is stopped", stopped);
    signal(pid, "-CONT");
    until("the process continues", || !stopped());
}

/// Polls a condition that no event announces, with a deadline.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "never came true: {what}");
        thread::park_timeout(Duration::from_millis(10));
    }
}

/// A line of JSON in which the value of `field` is replaced by `value`, which may be any text.
pub fn with_field(line: &[u8], field: &str, value: &str) -> String {
    let line = std::str::from_utf8(line).expect("UTF-8");
    let name = format!("\"{field}\":");
    let start = line.find(&name).expect("the field is there") + name.len();
    let rest = &line[start..];
    let length = match rest.as_bytes()[0] {
        b'"' => 2 + rest[1..].find('"').expect("a string ends"),
        b'[' => 1 + rest.find(']').expect("a list ends"),
        b'{' => 1 + rest.find('}').expect("an object ends"),
        _ => rest.find([',', '}']).expect("a number ends"),
    };
    format!("{}{value}{}", &line[..start], &rest[length..])
}

/// A line of JSON in which `field` has an unknown name.
pub fn without_field(line: &[u8], field: &str) -> String {
    let line = std::str::from_utf8(line).expect("UTF-8");
    line.replacen(&format!("\"{field}\":"), "\"unheard-of\":", 1)
}

/// One frame from the server.
pub enum Heard {
    Message(ServerMessage),
    /// The other side's name, the transfer, the payload.
    Packet(Username, [u8; 16], Vec<u8>),
}

impl Heard {
    /// Parses a frame that includes its packet head or its line end.
    pub fn parse(frame: &[u8]) -> Heard {
        match frame {
            [0, _, _, _, _, body @ ..] => Heard::of(Frame::Packet(body)),
            [line @ .., _] => Heard::of(Frame::Line(line)),
            [] => panic!("no frame"),
        }
    }

    pub fn of(frame: Frame<'_>) -> Heard {
        match frame {
            Frame::Line(line) => Heard::Message(ServerMessage::decode(line).expect("a message")),
            Frame::Packet(body) => {
                let Packet { peer, transfer, payload } = Packet::decode(body).expect("a packet");
                Heard::Packet(peer, transfer, payload.to_vec())
            }
        }
    }

    pub fn message(&self) -> Option<&ServerMessage> {
        match self {
            Heard::Message(message) => Some(message),
            Heard::Packet(..) => None,
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        match self {
            Heard::Message(message) => message.encode(),
            Heard::Packet(peer, transfer, payload) => {
                [&frame::packet_head(&Packet::address(peer, transfer), payload), &payload[..]].concat()
            }
        }
    }
}

/// The empty stores of a new client.
pub fn memory(folder: &Folder) -> (TrustStore, Ignored) {
    let (folder, server) = (folder.path(""), "server:1");
    (TrustStore::open(&folder, server).expect("files"), Ignored::open(&folder, server).expect("a file"))
}

/// Every form in which bytes may contain a secret: raw, in hexadecimal, and in base64 at any of the three offsets,
/// without the characters at either end that also depend on neighbouring bytes.
pub fn traces(secret: &[u8]) -> Vec<Vec<u8>> {
    let digits = hex(secret);
    let mut traces = vec![secret.to_vec(), digits.to_uppercase().into_bytes(), digits.into_bytes()];
    for offset in 0..3 {
        let shifted = [&b"\0\0"[..offset], secret].concat();
        for text in [BASE64_STANDARD_NO_PAD.encode(&shifted), BASE64_URL_SAFE_NO_PAD.encode(&shifted)] {
            traces.push(text.as_bytes()[[0, 2, 3][offset]..text.len() - 2].to_vec());
        }
    }
    traces
}

pub fn holds(bytes: &[u8], trace: &[u8]) -> bool {
    bytes.windows(trace.len()).any(|window| window == trace)
}
