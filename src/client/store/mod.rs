//! The client's data on disk: its memory of others ([`trust`]), the messages of earlier sessions ([`history`]), its
//! key ([`keys`]), and the keys of its mail ([`mailbox`]).
//!
//! Invariant: a `Store` writes a record to its file before it uses it; only certificates stay in memory for up to a
//! minute. All lists are [`records`]: unreadable data is never erased without a request. A damaged file stops the
//! start, except for the mailbox file. Specification: OPERATING#records.

pub mod history;
pub mod keys;
pub mod mailbox;
mod sealed;
pub mod trust;

use crate::disk;
use crate::records::{self, Records, Writers};
use miniserde::{Deserialize, Serialize, json};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The most bytes that are read of a set-aside file; a record has about 300.
const MAX_TORN: usize = 64 * 1024;

/// One kind of record.
trait Record: Serialize + Deserialize {
    /// The key of a record: its subject.
    fn key(&self) -> String;

    /// Whether this later record replaces `former`, a record of the same key.
    fn replaces(&self, _former: &Self) -> bool {
        true
    }
}

/// Whether a record concerns this client.
type Wanted<R> = Box<dyn Fn(&R) -> bool + Send>;

/// A file of records of one kind, which several clients may have open, and the valid record of each key.
struct Store<R: Record> {
    records: Records,
    newest: BTreeMap<String, R>,
    wanted: Wanted<R>,
    /// A record of another client has replaced one here since [`Store::refresh`] last reported it.
    is_replaced: bool,
    /// Reports of repairs, as sentences.
    notices: Vec<String>,
}

impl<R: Record> Store<R> {
    /// Reads the `wanted` records.
    fn open(path: &Path, wanted: impl Fn(&R) -> bool + Send + 'static) -> io::Result<Store<R>> {
        let (mut newest, mut notices, mut is_replaced) = (BTreeMap::new(), Vec::new(), false);
        let each = |line: &[u8]| take(&mut newest, line, &wanted, &mut is_replaced);
        let records = Records::open(path, Writers::Many, &mut notices, each)?;
        Ok(Store { records, newest, wanted: Box::new(wanted), is_replaced: false, notices })
    }

    /// Reads what other clients have written meanwhile. Returns whether a record here has been replaced.
    /// MANUAL#one-folder.
    fn refresh(&mut self) -> io::Result<bool> {
        let Store { records, newest, wanted, is_replaced, .. } = self;
        records.news(|line| take(newest, line, &**wanted, is_replaced))?;
        Ok(std::mem::take(is_replaced))
    }

    /// The record of `key`; `None` if there is none.
    fn get(&self, key: &str) -> Option<&R> {
        self.newest.get(key)
    }

    /// Appends a record, unless the current one, which another client may have written meanwhile, is not to be
    /// [replaced](Record::replaces). If `durable`, waits until it is on disk.
    fn put(&mut self, record: R, durable: bool) -> io::Result<()> {
        let Store { records, newest, wanted, is_replaced, notices } = self;
        let key = record.key();
        records.locked(|records| {
            records.read_on(|line| take(newest, line, &**wanted, is_replaced))?;
            if newest.get(&key).is_none_or(|former| record.replaces(former)) {
                notices.extend(records.write(line(&record).as_bytes(), durable)?);
                newest.insert(key, record);
            }
            Ok(())
        })
    }

    /// Stores a record only in memory, until the next [`Store::rewrite`].
    fn insert(&mut self, record: R) {
        self.newest.insert(record.key(), record);
    }

    /// Rewrites the file with the `wanted` records, including those that another client has written meanwhile.
    fn rewrite(&mut self, wanted: impl Fn(&R) -> bool) -> io::Result<()> {
        let Store { records, newest, is_replaced, notices, .. } = self;
        records.locked(|records| {
            notices.extend(records.repair(|line| take(newest, line, &wanted, is_replaced))?);
            newest.retain(|_, record| wanted(record));
            records.rewrite(newest.values().map(line), |_| Ok(()))
        })?;
        disk::sync_parent(self.records.path())
    }

    /// The set-aside file with a torn record that may begin with these members; `None` if there is none. Read each
    /// time, because another client may have set it aside.
    fn doubt(&self, members: &[(&str, &str)]) -> Option<PathBuf> {
        records::asides(self.records.path()).into_iter().find(|aside| may_begin(&torn(aside), members))
    }
}

/// Reads a line of a file; false if it is not a record. Sets `is_replaced` if it replaces a record.
fn take<R: Record>(
    newest: &mut BTreeMap<String, R>,
    line: &[u8],
    wanted: impl Fn(&R) -> bool,
    is_replaced: &mut bool,
) -> bool {
    let Some(record) = records::parse::<R>(line) else { return false };
    let key = record.key();
    if wanted(&record) && newest.get(&key).is_none_or(|former| record.replaces(former)) {
        *is_replaced |= newest.insert(key, record).is_some();
    }
    true
}

fn line(record: &impl Serialize) -> String {
    json::to_string(record) + "\n"
}

/// The text of a set-aside file up to the first hole, without blanks, in lower case because names never differ only in
/// case.
fn torn(aside: &Path) -> String {
    // An unreadable file may contain any record.
    let bytes = disk::read(aside, MAX_TORN).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    let text = text.chars().filter(|c| !c.is_whitespace() && *c != '\u{feff}');
    // Zeros are unwritten bytes, U+FFFD is a cut character.
    text.take_while(|c| !['\0', '\u{fffd}'].contains(c)).collect()
}

/// Whether a torn record may have begun with these members: false only if it has another value for one of them.
fn may_begin(mut torn: &str, members: &[(&str, &str)]) -> bool {
    let mut before = '{';
    for (name, value) in members {
        let Some(rest) = torn.strip_prefix(&format!("{before}\"{name}\":\"")) else { return true };
        let value = json::to_string(*value).to_ascii_lowercase();
        let Some(behind) = rest.strip_prefix(&value[1..]) else { return value[1..].starts_with(rest) };
        (torn, before) = (behind, ',');
    }
    true
}
