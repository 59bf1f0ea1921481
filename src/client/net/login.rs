//! Creates accounts, logs in, and changes the password.
//!
//! Invariant: no key is overwritten here. If the server refuses an account, the key file or the list entry that was
//! made for it is removed. If the outcome is unknown, the file stays, because it may be the only key of an account. The
//! password never leaves the client.

use super::connect::{Connection, connect, refusal};
use crate::auth::{PasswordKey, wrong_clock};
use crate::client::error::{ChangeError, StartError};
use crate::client::options::Options;
use crate::client::session::NewKey;
use crate::client::store::keys::{self, KeyFiles};
use crate::client::store::trust::TrustStore;
use crate::clock;
use crate::crypto::key_file::{self, KeyFileError, Login};
use crate::crypto::keys::{IdentityKey, SessionKey};
use crate::crypto::public::{SESSION_KEY_LIFETIME, SessionCertificate};
use crate::crypto::secret::{Key, Password};
use crate::encoding::Bytes;
use crate::name::Username;
use crate::protocol::{Challenge, ClientMessage, ErrorCode, LoginRequest, ServerMessage, VERSION};
use std::sync::Arc;
use std::thread;

/// The result of a login, besides the connection.
pub struct LoggedIn {
    /// For the next login, without a prompt.
    pub credentials: Credentials,
    /// The session key of this login.
    pub key: NewKey,
    /// Proves the session in a resumption: 32 bytes.
    pub token: Key,
    /// A notice for the user about the key file.
    pub notice: Option<String>,
}

/// The secrets that a later login needs. Wiped on drop.
pub struct Credentials {
    /// In the letter case of the account.
    pub name: Username,
    /// From the key file.
    pub identity: Arc<IdentityKey>,
    /// The key that represents the password for this server; the password itself is not kept.
    pub password_key: PasswordKey,
}

impl Credentials {
    /// Logs in again, with a new session key; returns the session's token, too.
    ///
    /// # Errors
    /// [`StartError`]; [`StartError::UnknownLogin`] if the server now expects another password.
    pub fn log_in(
        &self,
        connection: &mut Connection,
        key: SessionKey,
        options: &Options,
    ) -> Result<(NewKey, Key), StartError> {
        let challenge = ask_challenge(connection, &self.name, &self.identity)?;
        if !self.password_key.answers(&challenge) {
            return Err(StartError::UnknownLogin(options.key_path(&self.name)));
        }
        self.respond(connection, &challenge, key, options)
    }

    /// The login itself: PROTOCOL#login, PROTOCOL#two-clocks, PROTOCOL#newest.
    fn respond(
        &self,
        connection: &mut Connection,
        challenge: &Challenge,
        key: SessionKey,
        options: &Options,
    ) -> Result<(NewKey, Key), StartError> {
        let (now, identity) = (clock::now_ms(), self.identity.public().fingerprint());
        // An unreadable file stops the start. Later, the server's `newest` serves the same purpose.
        let known = TrustStore::open(&options.data_dir, &options.server()).ok();
        let newest = known.and_then(|known| known.newest(&self.name, identity, false, now));
        let created = SessionCertificate::next_created(newest.map_or(0, |(created, _)| created), now);
        let certificate = self.identity.certify(&self.name, &key, created);
        let exporter = connection.channel.exporter().to_vec();
        let session = (&key, certificate);
        let response = self.password_key.log_in(&self.name, challenge, &exporter, &self.identity, session);
        match connection.ask(&ClientMessage::ChallengeResponse(Box::new(response)))? {
            ServerMessage::Session(session) => {
                // The token is valid for a day, by the server's clock.
                let theirs = session.expires.saturating_sub(SESSION_KEY_LIFETIME.as_millis() as u64);
                let Some(advice) = wrong_clock(clock::now_ms(), theirs) else {
                    return Ok((NewKey { key, created, newest: session.newest }, session.token));
                };
                // Otherwise other users see us online until the grace period ends.
                let _ = connection.say(&ClientMessage::Logout);
                Err(StartError::Clock(advice))
            }
            ServerMessage::Error(failure) => Err(refusal(&failure, &self.name)),
            _ => Err(StartError::OutOfPlace),
        }
    }
}

/// Logs in with the key file of `name`. `connect` is called after the password has opened it.
///
/// # Errors
/// [`StartError`]: there is no key file or the password does not open it, `connect` fails, or the server refuses.
pub fn log_in(
    options: &Options,
    name: &Username,
    password: &Password,
    connect: impl FnOnce() -> Result<Connection, StartError>,
) -> Result<(Connection, LoggedIn), StartError> {
    thread::scope(|scope| {
        let key = scope.spawn(SessionKey::generate);
        let opened = keys::open(options, name, password)?;
        let no_key = || StartError::NoKey(name.clone(), options.key_path(name));
        let (opened, password) = opened.ok_or_else(no_key)?;
        let mut connection = connect()?;
        let key = key.join().expect("making a key does not panic");
        let login = prove(&mut connection, options, (name, &password), opened, key, None)?;
        Ok((connection, login))
    })
}

/// Creates the account `name`, then logs in. If the account already exists with this key and password, only logs in.
///
/// # Errors
/// [`StartError`]: the password is too short, this machine has another key of this name, the key file cannot be
/// written, `connect` fails, or the server refuses.
pub fn register(
    options: &Options,
    name: &Username,
    password: &Password,
    connect: impl FnOnce() -> Result<Connection, StartError>,
) -> Result<(Connection, LoggedIn), StartError> {
    if !password.is_long_enough() {
        return Err(StartError::ShortPassword);
    }
    let path = options.key_path(name);
    let existing = keys::open(options, name, password).map_err(|error| match error {
        StartError::KeyFile(KeyFileError::WrongPassword) => StartError::OtherKey(name.clone(), path.clone()),
        other => other,
    })?;
    let had_key = existing.is_some();
    let (existing, form) = existing.unzip();
    let password = form.as_ref().unwrap_or(password);
    let mut connection = connect()?;
    let login = Login::random();
    // Spread the slow computations over two cores.
    let (mut opened, key, password_key) = thread::scope(|scope| {
        let other = scope.spawn(|| (SessionKey::generate(), PasswordKey::with(password, login)));
        let made = || KeyFiles::make(&path, name, password, login);
        let opened = existing.map_or_else(made, |opened| opened.with(login));
        let (key, password_key) = other.join().expect("making a key does not panic");
        opened.map(|opened| (opened, key, password_key))
    })?;
    let request = password_key.register(name, opened.identity.public());
    let mut is_made = false;
    match connection.ask(&ClientMessage::Register(request)) {
        Ok(ServerMessage::Registered) => is_made = true,
        Ok(ServerMessage::Error(failure)) => {
            // Only a refusal shows that no account has this key. After a disk failure, the server itself does not
            // know.
            if !failure.is(ErrorCode::ServerError) {
                opened.take_back();
            }
            let error = refusal(&failure, name);
            if !(had_key && matches!(error, StartError::NameTaken(_))) {
                return Err(error);
            }
        }
        unclear => return Err(unclear.err().unwrap_or(StartError::OutOfPlace)),
    }
    match prove(&mut connection, options, (name, password), opened, key, Some(password_key)) {
        Err(error) if is_made => Err(StartError::OnlyMade(Box::new(error))),
        // Another user has the name here; this key is for an account on another server.
        Err(StartError::Login) => Err(StartError::NameTaken(name.clone())),
        Err(error) => Err(error),
        Ok(login) => Ok((connection, login)),
    }
}

/// Changes the password of `name` in the key file and on the server. Takes up to a second, besides the server's
/// answers. Uses its own connection, so the session continues. `keep` gets the key of the new password as soon as the
/// server expects it. PROTOCOL#password-file.
///
/// # Errors
/// [`ChangeError`]; the account always opens with the old or the new password.
pub fn change_password(
    options: &Options,
    name: &Username,
    old: &Password,
    new: &Password,
    keep: impl FnOnce(PasswordKey),
) -> Result<(), ChangeError> {
    use ChangeError::{NotReplaced, Refused, Unclear};
    if !new.is_long_enough() {
        return Err(Refused(StartError::ShortPassword));
    }
    let (files, form) = keys::open_for_change(options, name, old)?;
    // An unchanged password keeps its form: while two files exist, the server must expect the form that opens either.
    let (old, new) = (&form, if old == new { &form } else { new });
    let (sealed, key) = (key_file::seal(&files.identity, name, new), PasswordKey::new(new));
    let mut connection = connect(options, |_| false).map_err(Refused)?;
    let challenge = challenge(&mut connection, name, &files).map_err(Refused)?;
    let exporter = connection.channel.exporter().to_vec();
    let request = key.replace(name, &challenge, &exporter, old, &files.identity);
    let request = request.map_err(|error| Refused(StartError::Auth(error)))?;
    let written = files.write_successor(&options.server(), &sealed, (&challenge).into(), key.login);
    written.map_err(Refused)?;
    match connection.ask(&ClientMessage::PasswordChange(Box::new(request))) {
        Ok(ServerMessage::PasswordChanged) => {
            // Before the disk can fail, because the server now expects the new password.
            keep(key);
            files.take_successor().map_err(NotReplaced)
        }
        // After a disk failure, the server itself does not know.
        Ok(ServerMessage::Error(failure)) if !failure.is(ErrorCode::ServerError) => {
            files.drop_successor();
            Err(Refused(refusal(&failure, name)))
        }
        Ok(ServerMessage::Error(failure)) => Err(Unclear(refusal(&failure, name))),
        Ok(_) => Err(Unclear(StartError::OutOfPlace)),
        Err(error) => Err(Unclear(error)),
    }
}

/// Logs in with the password, or with the password key that was just registered, and then updates the key file.
fn prove(
    connection: &mut Connection,
    options: &Options,
    (name, password): (&Username, &Password),
    opened: KeyFiles,
    key: SessionKey,
    registered: Option<PasswordKey>,
) -> Result<LoggedIn, StartError> {
    let challenge = challenge(connection, name, &opened)?;
    let password_key = match registered.filter(|registered| registered.answers(&challenge)) {
        Some(registered) => registered,
        None => PasswordKey::derive(password, &challenge).map_err(StartError::Auth)?,
    };
    let identity = opened.identity.clone();
    let credentials = Credentials { name: name.clone(), identity, password_key };
    let (key, token) = credentials.respond(connection, &challenge, key, options)?;
    let notice = opened.settle(credentials.password_key.login);
    Ok(LoggedIn { credentials, key, token, notice })
}

/// Requests a challenge that is safe to answer: the key file lists its salt and rounds, or has no list.
/// PROTOCOL#known-logins.
///
/// # Errors
/// As [`Connection::ask`]; the server's refusal; [`StartError::UnknownLogin`]; [`StartError::OtherPassword`].
fn challenge(
    connection: &mut Connection,
    name: &Username,
    opened: &KeyFiles,
) -> Result<Challenge, StartError> {
    let challenge = ask_challenge(connection, name, &opened.identity)?;
    opened.place((&challenge).into())?;
    Ok(challenge)
}

fn ask_challenge(
    connection: &mut Connection,
    name: &Username,
    identity: &IdentityKey,
) -> Result<Challenge, StartError> {
    let public_key = Bytes(identity.public().spki());
    let request = LoginRequest { version: VERSION, username: name.clone(), public_key };
    match connection.ask(&ClientMessage::LoginRequest(request))? {
        ServerMessage::Challenge(challenge) => Ok(challenge),
        ServerMessage::Error(failure) => Err(refusal(&failure, name)),
        _ => Err(StartError::OutOfPlace),
    }
}
