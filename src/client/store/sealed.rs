//! Files of one account on one server whose records are sealed: the kept history and the mailbox file.
//!
//! Invariant: no record is on disk in clear. A record opens only for its account on its server, and only after the
//! records that preceded it. One client at a time uses the file, and a failure leaves it unchanged. Formats:
//! PROTOCOL#history-chain, PROTOCOL#mailbox-file.

use crate::client::options::Options;
use crate::crypto::Fields;
use crate::crypto::envelope::{BUCKET, pad, unpad};
use crate::crypto::primitives::{Tag, gcm_open, gcm_seal, sha256};
use crate::crypto::secret::{Key, random};
use crate::disk;
use crate::encoding::{Bytes, Fixed, hex};
use crate::name::Username;
use crate::records::{self, Format, Records, Writers};
use miniserde::{Deserialize, Serialize, json};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// The wait for an older client of the same account, which this login has disconnected; short, because the user sees
/// nothing meanwhile. PROTOCOL#history-lock.
const HANDOVER: Duration = Duration::from_secs(2);

/// The properties of one kind of sealed file.
pub(super) struct Kind {
    /// The folder in the data folder.
    pub folder: &'static str,
    /// The label of the associated data.
    pub label: &'static str,
    /// The longest record, in bytes.
    pub longest: usize,
    /// The most records; a longer file is damaged.
    pub records: u64,
    /// The longest line, and the error for a damaged one.
    pub format: Format,
}

/// The longest line of records of at most `longest` bytes: padded and in base64; nonce, tag and the members' names take
/// about a hundred bytes.
pub(super) const fn longest_line(longest: usize) -> usize {
    (longest + BUCKET).div_ceil(3) * 4 + 256
}

/// One line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    nonce: Fixed<12>,
    data: Bytes,
    tag: Fixed<16>,
}

/// The end of the chain, after which the next record goes.
#[derive(Clone, Copy, Default)]
struct End {
    /// The number of records.
    index: u64,
    /// The tag of the last record: a record from an older copy of the file does not fit, even at its own index.
    tag: Option<Tag>,
}

impl End {
    fn after(self, tag: Tag) -> End {
        End { index: self.index + 1, tag: Some(tag) }
    }
}

/// The file of one account on one server.
pub(super) struct Sealed {
    kind: &'static Kind,
    path: PathBuf,
    owner: Username,
    server: String,
    key: Key,
    /// The locked file; `None` while it is not used.
    records: Option<Records>,
    end: End,
}

impl Sealed {
    /// The file of this account on the server of `options`. Reads nothing yet. PROTOCOL#history-file.
    pub fn new(kind: &'static Kind, options: &Options, owner: &Username, key: Key) -> Sealed {
        let server = options.server();
        let hash = hex(&sha256(server.as_bytes())[..8]);
        Sealed {
            kind,
            path: options.data_dir.join(kind.folder).join(format!("{}_{hash}", owner.as_str())),
            owner: owner.clone(),
            server,
            key,
            records: None,
            end: End::default(),
        }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file is locked and was read.
    pub fn is_open(&self) -> bool {
        self.records.is_some()
    }

    /// The number of records.
    pub fn count(&self) -> u64 {
        self.end.index
    }

    /// The locked file.
    ///
    /// # Errors
    /// If it is not used, or the disk's.
    pub fn file(&self) -> io::Result<File> {
        let records = self.records.as_ref().ok_or_else(|| self.unused())?;
        records.file().try_clone().map_err(disk::at(&self.path))
    }

    /// Locks the file, and creates a missing one; `None` if another client uses it. PROTOCOL#history-lock.
    ///
    /// # Errors
    /// The disk's, with the path.
    pub fn lock(&self) -> io::Result<Option<File>> {
        match disk::lock(&self.path, HANDOVER) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            file => file.map(Some),
        }
    }

    /// Removes what a crash has left of a rewrite.
    ///
    /// # Errors
    /// The disk's, with the path.
    pub fn remove_temporary(&self) -> io::Result<()> {
        let temporary = disk::temporary(&self.path);
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(disk::at(&temporary)(error)),
            _ => Ok(()),
        }
    }

    /// Reads the locked `file`, and uses it from then on. `each` gets every record, and returns whether it understands
    /// it. Reports a repair in `notices`.
    ///
    /// # Errors
    /// The disk's; with file, line and remedy in the text if a record is damaged or belongs to another key.
    pub fn read(
        &mut self,
        file: File,
        notices: &mut Vec<String>,
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<()> {
        let mut end = End::default();
        let each = |line: &[u8]| {
            let Some((padded, tag)) = self.open(line, end) else { return false };
            let is_understood = unpad(&padded, self.kind.longest).is_some_and(&mut each);
            if is_understood {
                end = end.after(tag);
            }
            is_understood
        };
        let records = Records::of(file, &self.path, Writers::One, &self.kind.format, notices, each)?;
        (self.records, self.end) = (Some(records), end);
        Ok(())
    }

    /// Stops using the file, and releases its lock.
    pub fn close(&mut self) {
        self.records = None;
    }

    /// The data that GCM authenticates beside a record after `end`: its owner and its place. PROTOCOL#history-chain.
    fn associated(&self, end: End) -> Vec<u8> {
        Fields::new(self.kind.label)
            .text(self.owner.as_str())
            .text(&self.server)
            .number(end.index)
            .bytes(end.tag.as_ref().map_or(&[], |tag| tag))
            .finish()
    }

    /// The line after `end`, which advances.
    fn seal(&self, text: &[u8], end: &mut End) -> Vec<u8> {
        assert!(text.len() <= self.kind.longest, "records are bounded where they are made");
        let (nonce, mut data) = (random(), pad(text));
        let tag = gcm_seal(&self.key, &nonce, &self.associated(*end), &mut data);
        let line = json::to_string(&Line { nonce: Fixed(nonce), data: Bytes(data), tag: Fixed(tag) }) + "\n";
        *end = end.after(tag);
        line.into_bytes()
    }

    /// Reverses [`Sealed::seal`], except for the padding; `None` if anything differs.
    fn open(&self, line: &[u8], end: End) -> Option<(Zeroizing<Vec<u8>>, Tag)> {
        let record: Line = records::parse(line).filter(|_| end.index < self.kind.records)?;
        let (mut data, tag) = (Zeroizing::new(record.data.0), record.tag.0);
        gcm_open(&self.key, &record.nonce.0, &self.associated(end), &mut data, &tag).ok()?;
        Some((data, tag))
    }

    /// Appends records in one write. If `durable`, waits until they and the name of the file are on disk.
    ///
    /// # Errors
    /// The disk's, with the path. The file then ends as before, or it is closed.
    pub fn append<T: AsRef<[u8]>>(
        &mut self,
        texts: impl IntoIterator<Item = T>,
        durable: bool,
    ) -> io::Result<()> {
        let Some(mut records) = self.records.take() else { return Err(self.unused()) };
        let (length, mut end) = (records.length()?, self.end);
        let lines: Vec<u8> = texts.into_iter().flat_map(|text| self.seal(text.as_ref(), &mut end)).collect();
        let synced = if durable && self.end.index == 0 { disk::sync_parent(&self.path) } else { Ok(()) };
        let written = synced.and_then(|()| records.append(&lines, durable));
        // A partial record after the end of the chain would make the next one unreadable.
        if written.is_ok() || records.length().is_ok_and(|now| now == length) && records.sync().is_ok() {
            self.records = Some(records);
        }
        written?;
        self.end = end;
        Ok(())
    }

    /// Replaces the file by one with only these records. It is locked before it gets its name, so that no other client
    /// can use it in between. The caller syncs the folder.
    ///
    /// # Errors
    /// The disk's, with the path; the former file remains.
    pub fn rewrite<T: AsRef<[u8]>>(&mut self, texts: impl IntoIterator<Item = T>) -> io::Result<()> {
        let Some(mut records) = self.records.take() else { return Err(self.unused()) };
        let mut end = End::default();
        let lines = texts.into_iter().map(|text| self.seal(text.as_ref(), &mut end));
        let rewritten = records.rewrite(lines, |file| disk::try_lock(file).map(drop));
        self.records = Some(records);
        rewritten?;
        self.end = end;
        Ok(())
    }

    fn unused(&self) -> io::Error {
        disk::error(&self.path, "this client does not use the file: another one does, or a write has failed")
    }
}
