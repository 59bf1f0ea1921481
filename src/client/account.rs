//! Making an account, and logging in.
//!
//! Invariant: a key file is never overwritten here, and one that was made for an account that the server then refused does not
//! stay; when it is not known whether the server took it, the file stays, because it may
//! be the only key of an account. The password goes nowhere.

use super::connect::{Connection, StartError, refusal};
use super::options::Options;
use super::password;
use crate::auth;
use crate::clock;
use crate::crypto::key_file::{self, KeyFileError};
use crate::crypto::keys::{IdentityKey, SessionKey};
use crate::crypto::secret::Password;
use crate::disk;
use crate::encoding::Bytes;
use crate::name::Username;
use crate::protocol::{Challenge, ClientMessage, LoginRequest, ServerMessage, VERSION};
use std::fs;
use std::path::Path;
use std::thread;

/// What a login yields beside the connection.
pub struct LoggedIn {
    pub name: Username,
    pub identity: IdentityKey,
    pub key: SessionKey,
}

/// Logs in with the key file of `name`. `connect` is called when password and key fit.
///
/// # Errors
/// [`StartError`].
pub fn log_in(
    options: &Options,
    name: &Username,
    password: &Password,
    connect: impl FnOnce() -> Result<Connection, StartError>,
) -> Result<(Connection, LoggedIn), StartError> {
    thread::scope(|scope| {
        let key = scope.spawn(SessionKey::generate);
        let opened = password::open(options, name, password)?;
        let opened = opened.ok_or_else(|| StartError::NoKey(name.clone(), options.key_path(name)))?;
        let mut connection = connect()?;
        let key = key.join().expect("making a key does not panic");
        prove(&mut connection, name, password, &opened.identity, &key, None)?;
        opened.settle();
        Ok((connection, LoggedIn { name: name.clone(), identity: opened.identity, key }))
    })
}

/// Makes the account `name`, then logs in; an account that is there already with this key and
/// password is just logged in to.
///
/// # Errors
/// [`StartError`].
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
    let existing = password::open(options, name, password).map_err(|error| match error {
        StartError::KeyFile(KeyFileError::WrongPassword) => StartError::OtherKey(name.clone(), path.clone()),
        other => other,
    })?;
    let had_key = existing.is_some();
    let mut connection = connect()?;
    // What takes long is spread over two cores.
    let (opened, key, password_key) = thread::scope(|scope| {
        let other = scope.spawn(|| (SessionKey::generate(), auth::NewPasswordKey::derive(password)));
        let made = || make_key_file(&path, name, password).map(password::Opened::alone);
        let identity = existing.map_or_else(made, Ok);
        let (key, password_key) = other.join().expect("making a key does not panic");
        identity.map(|identity| (identity, key, password_key))
    })?;
    let request = password_key.register(name, opened.identity.public());
    match connection.ask(&ClientMessage::Register(request)) {
        Ok(ServerMessage::Registered) => {}
        Ok(ServerMessage::Error(failure)) => {
            let error = refusal(&failure, name);
            if !had_key {
                // Only a refusal is sure to leave no account behind, whose only key this would be.
                let _ = fs::remove_file(&path);
            }
            if !(had_key && matches!(error, StartError::NameTaken(_))) {
                return Err(error);
            }
        }
        unclear => return Err(unclear.err().unwrap_or(StartError::OutOfPlace)),
    }
    match prove(&mut connection, name, password, &opened.identity, &key, Some(&password_key)) {
        // The name is somebody else's: the key here is for another server's account.
        Err(StartError::Login) if had_key => Err(StartError::NameTaken(name.clone())),
        Err(error) => Err(error),
        Ok(()) => {
            opened.settle();
            Ok((connection, LoggedIn { name: name.clone(), identity: opened.identity, key }))
        }
    }
}

fn make_key_file(path: &Path, name: &Username, password: &Password) -> Result<IdentityKey, StartError> {
    let identity = IdentityKey::generate();
    let text = key_file::seal(&identity, name, password);
    disk::write_new(path, text.as_bytes()).map_err(StartError::Disk)?;
    Ok(identity)
}

/// The login itself: README, "Login".
fn prove(
    connection: &mut Connection,
    name: &Username,
    password: &Password,
    identity: &IdentityKey,
    key: &SessionKey,
    registered: Option<&auth::NewPasswordKey>,
) -> Result<(), StartError> {
    let challenge = challenge(connection, name, identity)?;
    let certificate = identity.certify(name, key, clock::now_ms());
    let exporter = connection.channel.exporter().to_vec();
    let response =
        auth::respond_after(registered, name, &challenge, &exporter, password, identity, (key, certificate));
    let response = response.map_err(StartError::Auth)?;
    match connection.ask(&ClientMessage::ChallengeResponse(Box::new(response)))? {
        ServerMessage::Session(_) => Ok(()),
        ServerMessage::Error(failure) => Err(refusal(&failure, name)),
        _ => Err(StartError::OutOfPlace),
    }
}

/// Asks for a challenge.
///
/// # Errors
/// [`StartError`].
pub fn challenge(
    connection: &mut Connection,
    name: &Username,
    identity: &IdentityKey,
) -> Result<Challenge, StartError> {
    let public_key = Bytes(identity.public().spki());
    let request = LoginRequest { version: VERSION, username: name.clone(), public_key };
    match connection.ask(&ClientMessage::LoginRequest(request))? {
        ServerMessage::Challenge(challenge) if challenge.version == VERSION => Ok(challenge),
        ServerMessage::Error(failure) => Err(refusal(&failure, name)),
        _ => Err(StartError::OutOfPlace),
    }
}
