//! The work that a session asks for, whichever front end shows it: what goes to the server, files, keys, passwords.
//!
//! Invariant: whatever takes long has a thread of its own, and what comes of it returns as an [`Event`] through the
//! [`Inbox`]: the state has one owner.

use super::account;
use super::connect::Connection;
use super::error::{ChangeError, StartError};
use super::inbox::{Inbox, Wake};
use super::link::{self, Link};
use super::options::Options;
use super::reconnect::Way;
use super::session::Event;
use super::transfer::{Job, Router, Transfers};
use crate::crypto::keys::SessionKey;
use crate::crypto::secret::Password;
use crate::name::Username;
use crate::protocol::ClientMessage;
use crate::sync::spawn;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// See the module.
pub struct Work {
    options: Options,
    link: Link,
    transfers: Transfers,
    inbox: Arc<Inbox>,
}

impl Work {
    /// Starts the threads. `wake` is called when an event waits for the loop, and does not wait itself.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start((connection, way): (Connection, Way), options: &Options, wake: Wake) -> io::Result<Work> {
        let options = options.pinned(connection.server);
        let router = Arc::new(Router::default());
        let link = Link::start(connection, way, router.clone(), link::PATIENCE, wake)?;
        let (folder, inbox) = (options.data_dir.join("files"), link.inbox());
        let stepped = inbox.clone();
        let transfers = Transfers::new(folder, router, link.queue(), move |number, step| {
            stepped.report(Event::Transfer(number, step))
        });
        Ok(Work { options, link, transfers, inbox })
    }

    /// The next event; `None` if none waits.
    pub fn next(&self) -> Option<Event> {
        self.inbox.next()
    }

    /// Whether no event waits.
    pub fn is_idle(&self) -> bool {
        self.inbox.is_empty()
    }

    /// Since when the server owes the session an answer, if it does.
    pub fn owes(&self, since: Option<Instant>) {
        self.link.owes(since);
    }

    /// A key was pressed, or a line came.
    pub fn touch(&self) {
        self.link.touch();
    }

    /// What is sent from now on belongs to the new session.
    pub fn begin(&self) {
        self.link.begin();
    }

    /// Queues a message for the server; the end, if it takes nothing any more.
    pub fn send(&self, message: &ClientMessage) -> Option<Event> {
        (!self.link.send(message)).then(|| Event::Closed("it does not accept data".into()))
    }

    /// Does something for a transfer; what has failed at once.
    pub fn transfer(&self, number: u32, job: Job) -> Option<Event> {
        self.transfers.take(number, job).map(|step| Event::Transfer(number, step))
    }

    /// Makes a session key.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn make_session_key(&self) -> io::Result<()> {
        let inbox = self.inbox.clone();
        spawn("key", move || {
            inbox.report(Event::NewKey(Box::new(SessionKey::generate())));
        })
    }

    /// Changes the password of `name`. `passwords` gives the old and the new one.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn change_password(
        &self,
        name: &Username,
        passwords: impl FnOnce() -> Result<(Password, Password), StartError> + Send + 'static,
    ) -> io::Result<()> {
        let (options, name, inbox) = (self.options.clone(), name.clone(), self.inbox.clone());
        let keep = self.link.password_keeper();
        spawn("password", move || {
            let passwords = passwords().map_err(ChangeError::Refused);
            let change = |(old, new): (Password, Password)| {
                account::change_password(&options, &name, &old, &new, keep)
            };
            inbox.report(Event::PasswordChanged(passwords.and_then(change)));
        })
    }

    /// Says farewell, if anybody is there to hear it; nothing is said after it, and no connection is had again.
    pub fn end(&self) {
        let _ = self.link.send(&ClientMessage::Logout);
        self.link.end();
    }

    /// Waits until everything queued is sent, then ends the connection; soon, if the person does not wait.
    pub fn finish(self, hurried: bool) {
        self.link.finish(hurried);
    }
}
