//! The work that a session asks for, whichever front end shows it: what goes to the server, files, keys, passwords.
//!
//! Invariant: whatever takes long has a thread of its own, and what comes of it returns as an [`Event`] through the one
//! channel of the front end's loop: the state has one owner.

use super::connect::{Connection, StartError};
use super::link::Link;
use super::options::Options;
use super::password::{self, ChangeError};
use super::reconnect::Way;
use super::session::Event;
use super::spawn;
use super::transfer::{Hub, Job, Transfers};
use crate::crypto::keys::SessionKey;
use crate::crypto::secret::Password;
use crate::name::Username;
use crate::protocol::ClientMessage;
use std::io;
use std::sync::Arc;

/// See the module.
pub struct Work {
    options: Options,
    link: Link,
    transfers: Transfers,
    deliver: Arc<dyn Fn(Event) -> bool + Send + Sync>,
}

impl Work {
    /// Starts the threads. `deliver` puts an event into the loop's channel; it returns false when nobody listens any
    /// more.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(
        (connection, way): (Connection, Way),
        options: &Options,
        deliver: impl Fn(Event) -> bool + Send + Sync + 'static,
    ) -> io::Result<Work> {
        let deliver: Arc<dyn Fn(Event) -> bool + Send + Sync> = Arc::new(deliver);
        let (heard, stepped, hub) = (deliver.clone(), deliver.clone(), Arc::new(Hub::default()));
        let link = Link::start(connection, way, hub.clone(), move |event| heard(event))?;
        let folder = options.data_dir.join("files");
        let transfers = Transfers::new(folder, hub, link.queue(), move |event| stepped(event));
        Ok(Work { options: options.clone(), link, transfers, deliver })
    }

    /// What is sent from now on belongs to the new session.
    pub fn begin(&self) {
        self.link.begin();
    }

    /// Queues a message for the server; the end, if it takes nothing any more.
    pub fn send(&self, message: &ClientMessage) -> Option<Event> {
        (!self.link.send(message)).then(|| Event::Closed("it takes nothing of what is sent".into()))
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
        let deliver = self.deliver.clone();
        spawn("key", move || {
            deliver(Event::NewKey(Box::new(SessionKey::generate())));
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
        let (options, name, deliver) = (self.options.clone(), name.clone(), self.deliver.clone());
        let keep = self.link.password_keeper();
        spawn("password", move || {
            let passwords = passwords().map_err(ChangeError::Refused);
            let change =
                |(old, new): (Password, Password)| password::change(&options, &name, &old, &new, keep);
            deliver(Event::PasswordChanged(passwords.and_then(change)));
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
