//! Performs the actions of a session, for both front ends: messages to the server, files, keys, passwords.
//!
//! Invariant: every long operation has its own thread, and its outcome returns as an [`Event`] through the [`Inbox`],
//! so that the state has one owner. [`drive`] is the only loop over effects.

use super::error::{ChangeError, StartError};
use super::net::connect::Connection;
use super::net::inbox::{Inbox, Wake};
use super::net::link::{self, Link};
use super::net::login;
use super::net::reconnect::Reconnector;
use super::options::Options;
use super::session::{Action, Display, Effect, Event, Exit, Session};
use super::transfer::{Router, Transfers};
use crate::clock;
use crate::crypto::keys::{NewMailboxKey, SessionKey};
use crate::crypto::secret::Password;
use crate::name::Username;
use crate::protocol::ClientMessage;
use crate::sync::spawn;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// Returns the old and the new password. Called on its own thread, because reading them may take long.
pub type Passwords = Box<dyn FnOnce() -> Result<(Password, Password), StartError> + Send>;

/// A front end: the full screen, or plain mode.
pub trait Front {
    /// Shows something; returns the event that follows from it, if any.
    fn display(&mut self, display: Display) -> Option<Event>;

    /// The passwords of a change: the new one from this file, or both as typed.
    fn passwords(&mut self, file: Option<String>) -> Passwords;
}

/// Handles an event and the events that follow from it at once; returns how the client ends, if it does.
pub fn drive(session: &mut Session, backend: &Backend, front: &mut impl Front, event: Event) -> Option<Exit> {
    let mut events = VecDeque::from([event]);
    while let Some(event) = events.pop_front() {
        for effect in session.handle(event, clock::now_ms(), Instant::now()) {
            match effect {
                Effect::Do(action) => events.extend(backend.perform(action, front)),
                Effect::Show(display) => events.extend(front.display(display)),
                Effect::Quit(exit) => return Some(exit),
            }
        }
    }
    backend.link.owes(session.owed());
    None
}

/// What performs the actions of one session.
pub struct Backend {
    me: Username,
    options: Options,
    link: Link,
    transfers: Transfers,
    inbox: Arc<Inbox>,
}

impl Backend {
    /// Starts the threads. `wake` is called when an event waits, and does not wait itself.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(
        me: &Username,
        (connection, reconnector): (Connection, Reconnector),
        options: &Options,
        wake: Wake,
    ) -> io::Result<Backend> {
        let options = options.pinned(connection.server);
        let router = Arc::new(Router::default());
        let link = Link::start(connection, reconnector, router.clone(), link::PATIENCE, wake)?;
        let (folder, inbox) = (options.data_dir.join("files"), link.inbox());
        let stepped = inbox.clone();
        let transfers = Transfers::new(folder, router, link.queue(), move |number, step| {
            stepped.report(Event::Transfer(number, step))
        });
        Ok(Backend { me: me.clone(), options, link, transfers, inbox })
    }

    /// The next event; `None` if none waits.
    pub fn next(&self) -> Option<Event> {
        self.inbox.next()
    }

    /// Whether no event waits.
    pub fn is_idle(&self) -> bool {
        self.inbox.is_empty()
    }

    /// Notes that a key was pressed, or a line arrived.
    pub fn touch(&self) {
        self.link.touch();
    }

    /// Performs an action; returns the event of an immediate failure.
    fn perform(&self, action: Action, front: &mut impl Front) -> Option<Event> {
        match action {
            Action::Send(message) => {
                return (!self.link.send(&message)).then(|| Event::Closed("it does not accept data".into()));
            }
            Action::Begin => self.link.begin(),
            Action::Transfer(number, job) => {
                return self.transfers.take(number, job).map(|step| Event::Transfer(number, step));
            }
            Action::MakeSessionKey => {
                let inbox = self.inbox.clone();
                let make = move || _ = inbox.report(Event::NewKey(Box::new(SessionKey::generate())));
                // If no thread starts, the session requests the key again in ten minutes.
                let _ = spawn("key", make);
            }
            Action::MakeMailboxKey => {
                let inbox = self.inbox.clone();
                let make =
                    move || _ = inbox.report(Event::NewMailboxKey(Box::new(NewMailboxKey::generate())));
                let _ = spawn("key", make);
            }
            Action::Hold(holds) => self.inbox.hold(holds),
            Action::ChangePassword(file) => {
                let error = self.change_password(front.passwords(file)).err()?;
                return Some(Event::PasswordChanged(Err(ChangeError::Refused(StartError::Disk(error)))));
            }
        }
        None
    }

    fn change_password(&self, passwords: Passwords) -> io::Result<()> {
        let (options, name, inbox) = (self.options.clone(), self.me.clone(), self.inbox.clone());
        let keep = self.link.password_keeper();
        spawn("password", move || {
            let passwords = passwords().map_err(ChangeError::Refused);
            let outcome =
                passwords.and_then(|(old, new)| login::change_password(&options, &name, &old, &new, keep));
            inbox.report(Event::PasswordChanged(outcome));
        })
    }

    /// Logs out. Nothing is sent after it, and nothing reconnects.
    pub fn end(&self) {
        let _ = self.link.send(&ClientMessage::Logout);
        self.link.end();
    }

    /// Waits until everything queued is sent, then ends the connection; waits only for a moment if the exit does not
    /// wait.
    pub fn finish(self, exit: &Exit) {
        if !exit.waits {
            // Otherwise other users see us online until the grace period ends.
            self.end();
        }
        self.link.finish(!exit.waits);
    }
}
