//! `server --check`: reports what a start would find, and changes nothing.
//!
//! Invariant: a *problem* would stop a start, and names its remedy; a *WARNING* would not.

use super::admin;
use crate::disk;
use crate::server::options::Options;
use crate::server::store;
use std::io::{self, Write};

/// Prints the content of the data folder. Returns whether a server could start with it.
///
/// # Errors
/// If it cannot be printed.
pub fn check(options: &Options, out: &mut impl Write) -> io::Result<bool> {
    let (folder, mut notices, mut problems) = (&options.data_dir, Vec::new(), Vec::new());
    writeln!(out, "data in {}", folder.display())?;
    match folder.try_exists().map_err(disk::at(folder)) {
        Ok(true) => {
            if admin::connect(folder).is_ok() {
                writeln!(out, "a server is using it")?;
            }
            problems = store::check(folder, options.tls, &mut notices);
        }
        Ok(false) => writeln!(out, "it does not exist: a start creates it")?,
        Err(error) => problems.push(error),
    }
    notices.iter().try_for_each(|notice| writeln!(out, "{notice}"))?;
    problems.iter().try_for_each(|problem| writeln!(out, "problem: {problem}"))?;
    Ok(problems.is_empty())
}
