//! `server --check`: a start that stops before it listens, and changes nothing.
//!
//! Invariant: what the data folder holds is read by the code of a start ([`Store::open`]), which makes, changes and locks
//! nothing here. A *problem* would stop a start, and says its remedy; a *WARNING* would not.

use super::admin;
use crate::disk;
use crate::server::options::Options;
use crate::server::store::{Findings, Mode, Store};
use std::io::{self, Write};

/// Prints what there is; true if a server could start with it.
///
/// # Errors
/// If it cannot be printed.
pub fn check(options: &Options, out: &mut impl Write) -> io::Result<bool> {
    let (folder, mut findings) = (&options.data_dir, Findings::new(Mode::Check));
    writeln!(out, "data in {}", folder.display())?;
    let is_there = folder.try_exists().map_err(disk::at(folder));
    match findings.take(is_there.map(|is_there| (Some(is_there), Vec::new())))? {
        Some(true) => {
            if admin::connect(folder).is_ok() {
                writeln!(out, "a server runs on it")?;
            }
            Store::open(folder, options.tls, &mut findings)?;
        }
        Some(false) => writeln!(out, "not there: a start would make it")?,
        None => {}
    }
    findings.lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    Ok(findings.is_sound)
}
