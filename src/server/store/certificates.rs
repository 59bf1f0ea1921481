//! The certificate in use: reported at the start, and read again when its files change.
//!
//! Invariants: an unusable file never replaces a certificate that works, and only a start makes files.

use super::audit::Audit;
use super::files::{self, Notices};
use crate::clock;
use crate::crypto::public::Fingerprint;
use crate::disk;
use crate::sync::lock;
use crate::wire::certificate::{self, Facts, Prepared};
use crate::wire::tls::{self, Acceptor};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The files are checked at most this often, at a new connection: a storm of logins must not cost a check each.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// See the module.
pub struct Certificates {
    folder: PathBuf,
    state: Mutex<State>,
    /// Held by the thread that renews the files: two at once would write the same temporary file.
    renewing: Mutex<()>,
}

struct State {
    acceptor: Acceptor,
    /// The stamp of the files in use.
    stamp: Stamp,
    /// The stamp of files that failed to load, which was logged. Retried silently: the operator may be mid-copy.
    unusable: Option<Stamp>,
    looked: Instant,
    facts: Facts,
    /// The key at the last [`Certificates::take_new_key`], or at the start.
    key: Fingerprint,
}

/// For each file, its length and the time of its last change, including changes of owner or mode.
type Stamp = [Option<(i64, i64, u64)>; 2];

/// Reports what [`Certificates::open`] would find and do.
///
/// # Errors
/// As [`Certificates::open`].
pub(super) fn check(folder: &Path, notices: &mut Notices) -> io::Result<()> {
    let now = clock::now_ms();
    match certificate::plan(folder, now)? {
        Prepared::Found => report("certificate", &tls::acceptor(folder)?.1, now, notices),
        Prepared::Renewed => {
            let facts = certificate::read_facts(&folder.join("server.crt"))?;
            notices.push(format!("certificate: {facts}; expired: a start renews it"));
        }
        Prepared::Made => {
            let key = if disk::is_there(&folder.join("server.key"))? { " for certs/server.key" } else { "" };
            notices.push(format!("no certificate: a start creates one{key}"));
        }
    }
    Ok(())
}

fn report(what: &str, facts: &Facts, now: u64, notices: &mut Notices) {
    notices.push(format!("{what}: {facts}"));
    notices.extend(certificate::notice(facts, now).map(|notice| format!("WARNING: {notice}")));
}

impl Certificates {
    /// Reads the certificate in `folder`; makes it if it is missing, and renews it if it is expired and self-made.
    ///
    /// # Errors
    /// With the path and the remedy in the text.
    pub fn open(folder: &Path, notices: &mut Notices) -> io::Result<Certificates> {
        let now = clock::now_ms();
        let what = match certificate::prepare(folder, now)? {
            Prepared::Found => "certificate",
            Prepared::Made => "new certificate",
            Prepared::Renewed => "certificate renewed with the same key",
        };
        let stamp = stamp(folder);
        let (acceptor, facts) = tls::acceptor(folder)?;
        report(what, &facts, now, notices);
        let key = facts.fingerprint;
        let state = State { acceptor, stamp, unusable: None, looked: Instant::now(), facts, key };
        Ok(Certificates { folder: folder.into(), state: Mutex::new(state), renewing: Mutex::default() })
    }

    /// The configuration for the next handshake, and the fingerprint of its key. Loads changed files, at most once a
    /// second.
    pub fn current(&self, audit: &Audit) -> (Acceptor, Fingerprint) {
        let mut state = lock(&self.state);
        if state.looked.elapsed() >= LOOK_EVERY {
            state.looked = Instant::now();
            drop(state);
            // A failure is logged.
            let _ = self.update(audit);
            state = lock(&self.state);
        }
        (state.acceptor.clone(), state.facts.fingerprint)
    }

    /// The fingerprint of the server's key, from the certificate in use.
    pub fn key(&self) -> Fingerprint {
        lock(&self.state).facts.fingerprint
    }

    /// Whether the key differs from the one at the last call: connections over the former one have to end.
    pub fn take_new_key(&self) -> bool {
        let mut state = lock(&self.state);
        let key = state.facts.fingerprint;
        std::mem::replace(&mut state.key, key) != key
    }

    /// Loads changed files now. Returns a sentence: the certificate in use, or why it is still the former one.
    pub fn reload(&self, audit: &Audit) -> String {
        let updated = self.update(audit);
        let state = lock(&self.state);
        let facts = &state.facts;
        match updated {
            Ok(()) => format!("reloaded; certificate: {facts}"),
            Err(error) => {
                format!(
                    "WARNING: reloaded, but the new certificate cannot be used: {error}; still in use: {facts}"
                )
            }
        }
    }

    fn update(&self, audit: &Audit) -> io::Result<()> {
        let (former, is_expired) = {
            let state = lock(&self.state);
            (state.stamp, state.facts.not_after <= clock::now_ms())
        };
        for notice in disk::close_to_others(&self.folder, files::is_private) {
            audit.log("storage_notice", None, None, &notice);
        }
        // The server's own certificate lasts a year; the server may run longer.
        let is_renewed = is_expired && {
            let _renewing = lock(&self.renewing);
            certificate::renew(&self.folder, clock::now_ms()).unwrap_or(false)
        };
        let stamp = stamp(&self.folder);
        if !is_renewed && stamp == former {
            return Ok(());
        }
        match tls::acceptor(&self.folder) {
            Ok((acceptor, facts)) => {
                audit.log("certificate_changed", None, None, &facts.fingerprint.to_string());
                let mut state = lock(&self.state);
                (state.acceptor, state.facts, state.stamp, state.unusable) = (acceptor, facts, stamp, None);
                Ok(())
            }
            Err(error) => {
                if lock(&self.state).unusable.replace(stamp) != Some(stamp) {
                    audit.log("certificate_unusable", None, None, &error.to_string());
                }
                Err(error)
            }
        }
    }
}

fn stamp(folder: &Path) -> Stamp {
    ["server.crt", "server.key"].map(|name| {
        let data = fs::metadata(folder.join(name)).ok()?;
        Some((data.ctime(), data.ctime_nsec(), data.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::accounts::tests::Folder;
    use super::*;
    use crate::server::shared::tests::shared;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    #[test]
    fn change_of_mode_or_file_changes_the_stamp() {
        let folder = Folder::new();
        let path = |name: &str| folder.0.join(name);
        let write = |name: &str| fs::write(path(name), "as long").expect("written");
        write("server.key");
        // The clock of files has steps of some milliseconds.
        let changed = |change: &dyn Fn()| {
            let before = stamp(&folder.0);
            while stamp(&folder.0) == before {
                change();
            }
        };
        changed(&|| {
            fs::set_permissions(path("server.key"), fs::Permissions::from_mode(0o600)).expect("changed")
        });
        changed(&|| {
            write("other");
            fs::rename(path("other"), path("server.key")).expect("renamed");
        });
        let [certificate, key] = stamp(&folder.0);
        assert!(certificate.is_none() && key.is_some());
    }

    #[test]
    fn running_server_renews_its_certificate_within_a_second() {
        let (shared, folder) = shared(Duration::from_secs(3600));
        let path = folder.0.join("server.crt");
        let certificates = Certificates::open(&folder.0, &mut Notices::new()).expect("made");
        let first = lock(&certificates.state).acceptor.clone();
        let current = |looked: Instant| {
            lock(&certificates.state).looked = looked;
            certificates.current(&shared.store.audit).0
        };
        let (just_now, long_ago) = (Instant::now() + LOOK_EVERY * 3600, Instant::now() - 2 * LOOK_EVERY);
        assert!(Arc::ptr_eq(&current(long_ago), &first), "nothing has changed");
        // Two years have passed without a change to the files.
        fs::remove_file(&path).expect("removed");
        certificate::prepare(&folder.0, clock::now_ms() - 2 * 365 * 24 * 3_600_000).expect("made");
        {
            let mut state = lock(&certificates.state);
            (state.stamp, state.facts.not_after) = (stamp(&folder.0), 0);
        }
        assert!(Arc::ptr_eq(&current(just_now), &first));
        let renewed = current(long_ago);
        assert!(!Arc::ptr_eq(&renewed, &first));
        let facts = certificate::read_facts(&path).expect("whole");
        assert!(
            facts.not_after > clock::now_ms() && lock(&certificates.state).facts.not_after == facts.not_after
        );
        // An unusable certificate is logged, and the former stays in use.
        fs::write(&path, "no certificate").expect("written");
        assert!(Arc::ptr_eq(&current(just_now), &renewed) && Arc::ptr_eq(&current(long_ago), &renewed));
        // It is retried, and logged once.
        assert!(Arc::ptr_eq(&current(long_ago), &renewed));
        shared.store.audit.flush();
        let log = fs::read_to_string(folder.0.join("logs/security.log")).expect("a log");
        let count = |event: &str| log.matches(event).count();
        assert_eq!((count("certificate_changed"), count("certificate_unusable")), (1, 1), "{log}");
    }

    /// PROTOCOL#server-key.
    #[test]
    fn running_server_makes_no_file_in_place_of_a_missing_one() {
        let (_shared, folder) = shared(Duration::from_secs(3600));
        let audit = Audit::open(&folder.0.join("logs")).expect("a log");
        let certificates = Certificates::open(&folder.0, &mut Notices::new()).expect("made");
        let key = certificates.key();
        lock(&certificates.state).facts.not_after = 0;
        // The operator of an expired certificate moves both files away to put others there.
        for name in ["server.crt", "server.key"] {
            fs::remove_file(folder.0.join(name)).expect("removed");
            assert!(certificates.reload(&audit).starts_with("WARNING"));
            assert!(!folder.0.join(name).exists() && certificates.key() == key, "{name}");
        }
    }

    #[test]
    fn check_reports_what_a_start_does_to_a_certificate() {
        const DAY: i64 = 24 * 3600 * 1000;
        for (age, expected, unexpected) in [
            (366, "expired: a start renews it", "WARNING"),
            (340, "WARNING: the certificate expires on ", "renews"),
            (1, "valid until", "WARNING"),
            (-2, "WARNING: the certificate is not valid before ", "expire"),
        ] {
            let folder = Folder::new();
            certificate::prepare(&folder.0, clock::now_ms().wrapping_add_signed(-age * DAY)).expect("made");
            let mut notices = Notices::new();
            check(&folder.0, &mut notices).expect("a start can use it");
            let text = notices.join("\n");
            assert!(text.contains(expected) && !text.contains(unexpected), "{age} days: {text}");
        }
        // An invalid key stops a start, too.
        let folder = Folder::new();
        fs::write(folder.0.join("server.key"), "no key").expect("written");
        assert!(check(&folder.0, &mut Notices::new()).is_err());
        assert!(Certificates::open(&folder.0, &mut Notices::new()).is_err());
    }
}
