//! The input and output of a session: events and effects.
//!
//! Invariant: neither holds a clock, a socket or a thread, so a test can play any course of events.

use crate::client::audience::Partners;
use crate::client::entry::{Entry, Place};
use crate::client::error::ChangeError;
use crate::client::transfer::{Job, Step};
use crate::crypto::keys::{NewMailboxKey, SessionKey};
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

/// A line of the input that is not text.
pub struct NotText {
    /// The mistake, for the user.
    pub problem: String,
    /// The line with a replacement character for each mistake.
    pub approximation: String,
}

/// Something that happens to a session.
pub enum Event {
    /// A line was typed.
    Line(String),
    /// The user goes to the conversation with these users, or with everyone.
    Switch(Option<Partners>),
    /// The user sends the failed message with this number again.
    Resend(u64),
    /// A message from the server.
    Server(ServerMessage),
    /// A line from the server that is not a message.
    Unreadable(DecodeError),
    /// The server has been silent since this time and does not answer a `ping`; `None` when it answers again.
    Silent(Option<Instant>),
    /// The connection broke for this reason. The link reconnects automatically.
    Lost(String),
    /// The time of the next attempt; why the server refused the last one, if it did.
    Retry(Instant, Option<String>),
    /// The session was resumed, after this time without a connection.
    Resumed(Duration),
    /// The former session is over; a new login gave this key, after this time without a connection.
    LoggedIn(Box<NewKey>, Duration),
    /// The connection has ended for good.
    Closed(String),
    /// A line of the input is not text.
    NotText(NotText),
    /// No more lines will be typed.
    EndOfInput,
    /// The user leaves without waiting for anything.
    LeaveNow,
    /// A new session key was made, as [`Action::MakeSessionKey`] asked.
    NewKey(Box<SessionKey>),
    /// A mailbox key was made, as [`Action::MakeMailboxKey`] asked.
    NewMailboxKey(Box<NewMailboxKey>),
    /// All messages of [`Display::Mail`] so far are on the screen, or printed.
    MailShown,
    /// A job of the transfer of this number reports.
    Transfer(u32, Step),
    /// The outcome of [`Action::ChangePassword`].
    PasswordChanged(Result<(), ChangeError>),
    /// Time has passed.
    Tick,
}

/// Something to do; effects are done in their order.
pub enum Effect {
    /// For the backend.
    Do(Action),
    /// For the front end.
    Show(Display),
    /// The end. No effect follows it.
    Quit(Exit),
}

/// An action that the session requests.
pub enum Action {
    /// Sends this to the server.
    Send(ClientMessage),
    /// Begins a new session: later messages belong to it.
    Begin,
    /// Generates a session key, which takes up to 300 ms; [`Event::NewKey`] brings it.
    MakeSessionKey,
    /// Generates a mailbox key; [`Event::NewMailboxKey`] brings it.
    MakeMailboxKey,
    /// Whether private and room messages from the server wait, unacknowledged, for mail. PROTOCOL#mail-order.
    Hold(bool),
    /// Changes the password, read from this file or prompted for. [`Event::PasswordChanged`] brings the outcome.
    ChangePassword(Option<String>),
    /// Runs a job for the transfer of this number.
    Transfer(u32, Job),
}

/// Something that the user sees or hears.
pub enum Display {
    /// A new entry, or the outcome of the own message with the same number.
    Entry(Entry),
    /// Messages that waited while the user was away. [`Event::MailShown`] follows.
    Mail(Vec<Entry>),
    /// Notifies the user of a message from this user, in this view.
    Alert(Username, Place),
    /// Typed lines go to this conversation from now on.
    Enter(Option<Partners>),
    /// The conversation is closed.
    Leave(Partners),
    /// The user goes to the view with this number, from 1.
    View(usize),
    /// Takes the mouse, or leaves it to the terminal.
    Mouse,
    /// Clears the current view.
    Clear,
    /// Clears all views.
    Forget,
    /// A line that the full screen shows elsewhere: the progress of a file, a silent server, what the exit waits for.
    Progress(String),
}

/// How the client ends.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// The exit status: 0, or 1 if something failed or may be lost.
    pub status: u8,
    /// The last problems, to print at the end, when the full screen is gone.
    pub warnings: Vec<String>,
    /// Whether queued messages are sent first; otherwise nothing delays the end.
    pub waits: bool,
}
