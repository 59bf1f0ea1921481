//! What happens to a session, and what it wants done.
//!
//! Invariant: neither holds a clock, a socket or a thread: the same events give the same effects.

use crate::client::entry::{Entry, Place};
use crate::client::error::ChangeError;
use crate::client::transfer::{Job, Step};
use crate::crypto::keys::SessionKey;
use crate::name::Username;
use crate::protocol::{ClientMessage, DecodeError, ServerMessage};
use std::time::{Duration, Instant};

/// The session key of a login.
pub struct NewKey {
    /// The key.
    pub key: SessionKey,
    /// When it was certified, in milliseconds since 1970.
    pub created: u64,
    /// The highest `created` of earlier certificates that the server knows: see [`Session`](crate::protocol::Session).
    pub newest: u64,
}

/// What happens to a session.
pub enum Event {
    /// A line was typed.
    Line(String),
    /// The user goes to the conversation with this user, or with everyone.
    Switch(Option<Username>),
    /// The user wants to send the failed message of this number again.
    Again(u64),
    /// A message of the server.
    Server(ServerMessage),
    /// A line of the server that is no message.
    Unreadable(DecodeError),
    /// The server has been silent since then, and does not answer a `ping`; `None` when it is heard again.
    Silent(Option<Instant>),
    /// The connection broke, for this reason. The link reconnects.
    Lost(String),
    /// The time of the next attempt; why the server refused the last one, if it did.
    Retry(Instant, Option<String>),
    /// The session was resumed, after this time without a connection.
    Resumed(Duration),
    /// The former session is over; a new login gave this key, after this time without a connection.
    LoggedIn(Box<NewKey>, Duration),
    /// The connection has ended for good.
    Closed(String),
    /// A line of the input is no text, for this reason.
    NotText(String),
    /// No more lines will be typed.
    EndOfInput,
    /// A new session key was made, as [`Action::MakeSessionKey`] asked.
    NewKey(Box<SessionKey>),
    /// A job of the transfer of this number reports.
    Transfer(u32, Step),
    /// The outcome of [`Action::ChangePassword`].
    PasswordChanged(Result<(), ChangeError>),
    /// Time has passed.
    Tick,
}

/// What is to be done, in this order.
pub enum Effect {
    /// For the backend.
    Do(Action),
    /// For the front end.
    Show(Display),
    /// The end. No effect follows it.
    Quit(Exit),
}

/// What the session needs done for it.
pub enum Action {
    /// Sends this to the server.
    Send(ClientMessage),
    /// Messages sent from now on belong to the new session.
    Begin,
    /// Takes up to 300 ms, so not here; [`Event::NewKey`] brings the key.
    MakeSessionKey,
    /// The user wants a new password: from this file, or to be asked for it. [`Event::PasswordChanged`] brings the outcome.
    ChangePassword(Option<String>),
    /// A job for the transfer of this number.
    Transfer(u32, Job),
}

/// What the user sees or hears.
pub enum Display {
    /// A new entry, or the outcome of the own message with the same number.
    Entry(Entry),
    /// This user is talking to the one at the keyboard, here.
    Alert(Username, Place),
    /// Typed lines go there now.
    Enter(Option<Username>),
    /// The conversation is over.
    Leave(Username),
    /// The user goes to the view with this number, from 1.
    View(usize),
    /// The mouse is taken, or left to the terminal.
    Mouse,
    /// The view that is shown is emptied.
    Clear,
    /// All views are emptied.
    Forget,
    /// What the full screen shows elsewhere: how far a file is, that the server is silent, what the end waits for.
    Progress(String),
}

/// How the client ends.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Of the process: 0, or 1 if something failed or may be lost.
    pub status: u8,
    /// The problems that were shown last: a full screen is gone at the end.
    pub warnings: Vec<String>,
    /// What is queued goes out first; otherwise nothing holds up the end.
    pub waits: bool,
}

impl Exit {
    /// At once, because something failed.
    pub fn failed(warnings: Vec<String>) -> Exit {
        Exit { status: 1, warnings, waits: false }
    }
}
