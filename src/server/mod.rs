//! The server: [`accept`] → [`login`] → [`connection`] → [`routing`] → [`registry`] → the recipients'
//! [`session`]s. [`store`] keeps data on disk, and [`operator`] serves the server's operator. This file starts the
//! threads.
//!
//! Invariants: nothing here can name a private key or the contents of an envelope (`tests/spec/tidy.rs` reads the
//! imports). No thread holds a lock while it waits for a client. The locks that are held during disk access (for
//! `users.json`, for `locks.json`, for a user's mailbox and for the renewal of the certificate) protect nothing else.
//! Every wait for a client has a deadline. Everything that a client can make grow has a limit, except accounts and the
//! records of new passwords, which are limited in rate only ([`limits::Limits::registrations`]). The limits that a user
//! can reach are in [`limits`].
//!
//! Lock order: see [`session::outbox`].
//!
#![doc = include_str!("OPERATING.md")]

pub mod accept;
pub mod connection;
pub mod connection_limits;
pub mod limits;
pub mod login;
pub mod mail;
pub mod operator;
pub mod options;
pub mod partial_frame;
pub mod presence;
pub mod quotas;
pub mod rates;
pub mod registry;
pub mod routing;
pub mod session;
pub mod shared;
pub mod store;
mod threads;

use operator::{admin, status};
use options::Options;
use shared::Shared;
use std::io::{self, Write};
use std::sync::Arc;
use store::Store;
use threads::service;

/// Serves until the process ends. Returns only if the start fails.
///
/// # Errors
/// With file, reason and remedy in the text.
pub fn run(options: &Options, out: &mut impl Write) -> io::Result<std::convert::Infallible> {
    // First, so that a SIGHUP or SIGUSR1 during the start does not end the process.
    let signals = status::catch()?;
    let folder = &options.data_dir;
    let mut notices = Vec::new();
    let opened = Store::open(folder, options.tls, &mut notices);
    let mut failed = None;
    // Continue after an error: a standard output on a full disk must not stop the server. Do not flush: another thread
    // may hold the lock of standard output while its reader does not read.
    let mut say = |line: String| failed = writeln!(out, "{line}").err().or(failed.take());
    if let Ok(store) = &opened {
        say(format!("data in {} ({} accounts)", folder.display(), store.accounts.count()));
    }
    notices.into_iter().for_each(&mut say);
    let store = opened?;
    if !options.tls {
        say(
            "WARNING: --no-tls: anyone on the network path can see who talks to whom, and tamper with logins"
                .into(),
        );
    }
    let listener = accept::bind(&options.host, options.port)?;
    say(format!("room for {} clients", options.limits.clients));
    let shared = Arc::new(Shared::new(options.limits.clone(), options.closed, store));
    status::start(&shared, signals)?;
    if let Err(error) = admin::serve(&shared, folder) {
        say(format!("WARNING: `server user` will not reach this server: {error}"));
    }
    let [flushing, reporting, sweeping] = [(); 3].map(|()| shared.clone());
    service("flusher", move || flushing.flusher.run())?;
    service("presence", move || presence::run(&reporting.registry, &reporting.flusher))?;
    service("sweep", move || sweeping.run_sweep())?;
    say(format!("listening on {}", listener.local_addr()?));
    shared.store.audit.log("started", None, None, "");
    if let Some(error) = failed {
        shared.store.audit.output_failed(&error);
    }
    accept::run(&shared, &listener)
}
