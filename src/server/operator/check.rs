//! `server --check`: whether a server could start with this data folder, and what there is.
//!
//! Invariant: nothing is made, changed or locked, so it may be run beside a server. A *problem* is what would
//! stop a start, with its remedy; a *WARNING* is what would not.

use super::admin;
use crate::clock;
use crate::disk;
use crate::server::options::Options;
use crate::server::store::accounts::{self, Survey};
use crate::server::store::{self, locks};
use crate::wire::certificate;
use crate::wire::tls;
use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{self, Write};
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
        Some(true) if report.take(disk::check_root(folder, &store::FOLDERS))?.is_some() => {}
        Some(false) => {
            report.say("not there: a start would make it")?;
            return Ok(true);
        }
        _ => return Ok(false),
    }
    if admin::connect(folder).is_ok() {
        report.say("a server runs on it")?;
    }
    modes(&mut report, folder)?;
    if let Some(survey) = report.take(Survey::of(folder))? {
        report.say(format_args!("{} accounts", survey.accounts.len()))?;
        survey.notices.iter().try_for_each(|notice| report.say(notice))?;
        survey.repair.map_or(Ok(()), |repair| report.warn(repair))?;
        // A server starts without them, and tells nobody the keys of such a person.
        for error in survey.accounts.iter().filter_map(|account| accounts::identity(folder, account).err()) {
            report.warn(error)?;
        }
    }
    if let Some(held) = report.take(locks::survey(folder))? {
        report.say(format_args!("{} locked names", held.locked.len()))?;
        held.repair.map_or(Ok(()), |repair| report.warn(repair))?;
        if held.unread > 0 {
            report.warn(format_args!(
                "locks.json: {} lines are not understood: a start sets them aside",
                held.unread
            ))?;
        }
    }
    let secret = folder.join("salt.secret");
    if report.take(disk::is_there(&secret))? == Some(true) {
        report.take(accounts::read_secret(&secret))?;
    }
    let log = folder.join("logs/security.log");
    if report.take(disk::is_there(&log))? == Some(true) {
        report.take(disk::open(&log))?;
    }
    if options.tls {
        certificates(&mut report, &folder.join("certs"))?;
    }
    Ok(report.sound)
}

/// A start closes folders and private files to others, and leaves other files as they are.
fn modes(report: &mut Report<'_>, folder: &Path) -> io::Result<()> {
    for name in [""].iter().chain(&store::FOLDERS) {
        let folder = folder.join(name);
        for path in disk::open_to_others(&folder, |_| true) {
            let is_private = path.file_name().and_then(OsStr::to_str).is_some_and(store::is_private);
            let remedy = if is_private { "a start takes them away" } else { "chmod 600" };
            report.warn(format_args!("{}: others have rights to it: {remedy}", path.display()))?;
        }
    }
    Ok(())
}

/// What [`certificate::prepare`] would do.
fn certificates(report: &mut Report<'_>, folder: &Path) -> io::Result<()> {
    let (key, path) = (folder.join("server.key"), folder.join("server.crt"));
    let there = disk::is_there(&key).and_then(|key| Ok((key, disk::is_there(&path)?)));
    let Some(there) = report.take(there)? else { return Ok(()) };
    match there {
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
    let now = clock::now_ms();
    match report.take(certificate::is_renewed(folder, &facts, now))? {
        Some(true) => return report.say("expired: a start renews it"),
        Some(false) => report.take(tls::acceptor(folder))?,
        None => return Ok(()),
    };
    certificate::notice(&facts, now).map_or(Ok(()), |notice| report.warn(notice))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::store::accounts::tests::Folder;
    use std::fs;

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
