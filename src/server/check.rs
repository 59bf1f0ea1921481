//! `server --check`: whether a server could start with this data folder, and what there is.
//!
//! Invariant: nothing is made, changed or locked, so it may be run beside a server. A *problem* is what would
//! stop a start, with its remedy; a *WARNING* is what would not.

use super::accounts::{self, Survey};
use super::locks::Locks;
use super::options::Options;
use crate::clock;
use crate::disk;
use crate::wire::certificate;
use crate::wire::tls;
use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

struct Report<'a> {
    out: &'a mut dyn Write,
    sound: bool,
}

impl Report<'_> {
    fn say(&mut self, text: impl Display) -> io::Result<()> {
        writeln!(self.out, "{text}")
    }

    fn warn(&mut self, text: impl Display) -> io::Result<()> {
        self.say(format_args!("WARNING: {text}"))
    }

    /// The value, or a problem.
    fn take<T>(&mut self, result: io::Result<T>) -> io::Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                self.sound = false;
                self.say(format_args!("problem: {error}"))?;
                Ok(None)
            }
        }
    }
}

/// Prints what there is; true if a server could start with it.
///
/// # Errors
/// If it cannot be printed.
pub fn check(options: &Options, out: &mut impl Write) -> io::Result<bool> {
    let folder = &options.data_dir;
    let mut report = Report { out, sound: true };
    report.say(format_args!("data in {}", folder.display()))?;
    match report.take(folder.try_exists().map_err(disk::at(folder)))? {
        Some(true) if report.take(disk::check_root(folder, &super::FOLDERS))?.is_some() => {}
        Some(false) => {
            report.say("not there: a start would make it")?;
            return Ok(true);
        }
        _ => return Ok(false),
    }
    if UnixStream::connect(folder.join("admin.sock")).is_ok() {
        report.say("a server runs on it")?;
    }
    modes(&mut report, folder)?;
    if let Some(survey) = report.take(Survey::of(folder))? {
        report.say(format_args!("{} accounts", survey.accounts.len()))?;
        if survey.torn > 0 {
            let torn = survey.torn;
            report.warn(format_args!("users.json: {torn} bytes behind its last line: a start drops them"))?;
        }
        // A server starts without them, and tells nobody the keys of such a person.
        for error in survey.accounts.iter().filter_map(|account| survey.identity(account).err()) {
            report.warn(error)?;
        }
    }
    if let Some(locked) = report.take(Locks::new(folder).read())? {
        report.say(format_args!("{} locked names", locked.len()))?;
    }
    let secret = folder.join("salt.secret");
    if secret.exists() {
        report.take(accounts::read_secret(&secret))?;
    }
    if options.tls {
        certificates(&mut report, &folder.join("certs"))?;
    }
    Ok(report.sound)
}

/// A start closes folders, but leaves files as they are.
fn modes(report: &mut Report<'_>, folder: &Path) -> io::Result<()> {
    for folder in [folder.to_path_buf(), folder.join("certs"), folder.join("keys"), folder.join("logs")] {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let Some(entry) = report.take(entry.map_err(disk::at(&folder)))? else { continue };
            let Some(data) = report.take(entry.metadata().map_err(disk::at(&entry.path())))? else {
                continue;
            };
            if data.is_file() && data.permissions().mode() & 0o077 != 0 {
                let path = entry.path();
                report.warn(format_args!("{}: others have rights to it: chmod 600", path.display()))?;
            }
        }
    }
    Ok(())
}

/// What [`certificate::prepare`] would do.
fn certificates(report: &mut Report<'_>, folder: &Path) -> io::Result<()> {
    let (key, path) = (folder.join("server.key"), folder.join("server.crt"));
    match (key.exists(), path.exists()) {
        (false, false) => return report.say("no certificate: a start makes one"),
        (true, false) => {
            if report.take(certificate::check_key(&key))?.is_some() {
                report.say("no certificate: a start makes one for certs/server.key")?;
            }
            return Ok(());
        }
        (false, true) => return report.take(Err::<(), _>(certificate::key_missing(&key))).map(drop),
        (true, true) => {}
    }
    let Some(facts) = report.take(certificate::read_facts(&path))? else { return Ok(()) };
    let day = clock::utc_day(facts.not_after);
    report.say(format_args!("certificate: {} (valid until {day})", facts.fingerprint))?;
    report.take(tls::acceptor(folder))?;
    let now = clock::now_ms();
    match certificate::notice(&facts, now) {
        Some(_) if facts.self_made && facts.not_after <= now => report.say("expired: a start renews it"),
        Some(notice) => report.warn(notice),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::accounts::tests::Folder;
    use super::*;

    #[test]
    fn what_a_start_would_do_about_a_certificate_is_told() {
        const DAY: u64 = 24 * 3600 * 1000;
        for (days, told, other) in [
            (366, "expired: a start renews it\n", "WARNING"),
            (340, "WARNING: the certificate expires on ", "renews"),
            (1, "valid until", "WARNING"),
        ] {
            let folder = Folder::new();
            certificate::prepare(&folder.0, clock::now_ms() - days * DAY).expect("made");
            let mut out = Vec::new();
            let mut report = Report { out: &mut out, sound: true };
            certificates(&mut report, &folder.0).expect("told");
            assert!(report.sound);
            let text = String::from_utf8(out).expect("text");
            assert!(text.contains(told) && !text.contains(other), "{days} days: {text}");
        }
        // What no certificate can be made for stops a start, too.
        let folder = Folder::new();
        fs::write(folder.0.join("server.key"), "no key").expect("written");
        let mut report = Report { out: &mut Vec::new(), sound: true };
        certificates(&mut report, &folder.0).expect("told");
        assert!(!report.sound);
    }
}
