//! The certificate in use: announced at the start, taken up anew when its files change.
//!
//! Invariant: a changed file that cannot be used never replaces one that works.

use super::audit::Audit;
use crate::clock;
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

/// The files are looked at this often at most, when somebody connects: a storm of logins costs no look each.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// See the module.
pub struct Certificates {
    folder: PathBuf,
    state: Mutex<State>,
}

struct State {
    acceptor: Acceptor,
    /// The files that are in use.
    stamp: Stamp,
    /// Those that could not be used, and it was told. They are tried again: perhaps only the moment was bad.
    unusable: Option<Stamp>,
    looked: Instant,
    facts: Facts,
}

/// Of both files: when anything about them last changed, be it their owner, and their length.
type Stamp = [Option<(i64, i64, u64)>; 2];

impl Certificates {
    /// Makes or renews what is missing or expired in `folder`. Also returns what there is, as sentences.
    ///
    /// # Errors
    /// With the path and the remedy in the text.
    pub fn open(folder: &Path) -> io::Result<(Certificates, Vec<String>)> {
        let now = clock::now_ms();
        let what = match certificate::prepare(folder, now)? {
            Prepared::Found => "certificate",
            Prepared::Made => "new certificate",
            Prepared::Renewed => "certificate renewed with the same key",
        };
        let stamp = stamp(folder);
        let acceptor = tls::acceptor(folder)?;
        let facts = certificate::read_facts(&folder.join("server.crt"))?;
        let mut notices = vec![format!("{what}: {facts}")];
        notices.extend(certificate::notice(&facts, now).map(|notice| format!("WARNING: {notice}")));
        let state = State { acceptor, stamp, unusable: None, looked: Instant::now(), facts };
        Ok((Certificates { folder: folder.to_path_buf(), state: Mutex::new(state) }, notices))
    }

    /// What the next handshake uses.
    pub fn current(&self, audit: &Audit) -> Acceptor {
        {
            let mut state = lock(&self.state);
            if state.looked.elapsed() < LOOK_EVERY {
                return state.acceptor.clone();
            }
            state.looked = Instant::now();
        }
        // What cannot be used is logged.
        let _ = self.take_up(audit);
        lock(&self.state).acceptor.clone()
    }

    /// Takes up files that have changed, now; what is in use then, or why it is what it was before, as a sentence.
    pub fn reload(&self, audit: &Audit) -> String {
        match self.take_up(audit) {
            Ok(()) => format!("reloaded; certificate: {}", lock(&self.state).facts),
            Err(error) => {
                let facts = lock(&self.state).facts.clone();
                format!(
                    "WARNING: reloaded, but the new certificate cannot be used: {error}; still in use: {facts}"
                )
            }
        }
    }

    fn take_up(&self, audit: &Audit) -> io::Result<()> {
        let (former, expired) = {
            let state = lock(&self.state);
            (state.stamp, state.facts.not_after <= clock::now_ms())
        };
        for notice in disk::close_to_others(&self.folder, super::is_private) {
            audit.log("storage_notice", None, None, &notice);
        }
        // A server that runs for over a year renews its own certificate, too.
        let renewed =
            expired && matches!(certificate::prepare(&self.folder, clock::now_ms()), Ok(Prepared::Renewed));
        let stamp = stamp(&self.folder);
        if !renewed && stamp == former {
            return Ok(());
        }
        let read = tls::acceptor(&self.folder)
            .and_then(|acceptor| Ok((acceptor, certificate::read_facts(&self.folder.join("server.crt"))?)));
        let mut state = lock(&self.state);
        match read {
            Ok((acceptor, facts)) => {
                let fingerprint = facts.fingerprint.to_string();
                (state.acceptor, state.facts, state.stamp, state.unusable) = (acceptor, facts, stamp, None);
                drop(state);
                audit.log("certificate_changed", None, None, &fingerprint);
                Ok(())
            }
            Err(error) => {
                let is_told = state.unusable.replace(stamp) == Some(stamp);
                drop(state);
                if !is_told {
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
    use crate::server::tests::shared;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    #[test]
    fn a_file_that_others_may_read_now_or_that_an_older_one_has_replaced_is_another_one() {
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
    fn files_are_looked_at_when_a_second_is_over_and_an_own_certificate_is_renewed_while_the_server_runs() {
        let (shared, folder) = shared(Duration::from_secs(3600));
        let path = folder.0.join("server.crt");
        let certificates = Certificates::open(&folder.0).expect("made").0;
        let first = lock(&certificates.state).acceptor.clone();
        let current = |looked: Instant| {
            lock(&certificates.state).looked = looked;
            certificates.current(&shared.audit)
        };
        let (just_now, long_ago) = (Instant::now() + LOOK_EVERY * 3600, Instant::now() - 2 * LOOK_EVERY);
        assert!(Arc::ptr_eq(&current(long_ago), &first), "nothing has changed");
        // Two years have passed, and nobody has touched the files.
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
        // What cannot be used is logged, and what could be is used on.
        fs::write(&path, "no certificate").expect("written");
        assert!(Arc::ptr_eq(&current(just_now), &renewed) && Arc::ptr_eq(&current(long_ago), &renewed));
        // It is tried again, and told once.
        assert!(Arc::ptr_eq(&current(long_ago), &renewed));
        shared.audit.flush();
        let log = fs::read_to_string(folder.0.join("security.log")).expect("a log");
        let count = |event: &str| log.matches(event).count();
        assert_eq!((count("certificate_changed"), count("certificate_unusable")), (1, 1), "{log}");
    }
}
