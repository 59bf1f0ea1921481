//! The decoders of this crate and those of `tests/interop/messenger.py`, which was written from PROTOCOL.md alone, must
//! accept the same cases with the same content. The cases are random lines of both directions, packets, texts about
//! files, names, passwords, keys, envelopes, chunks and key files.
//!
//! `DIFFERENTIAL` sets the number of cases. `DIFFERENTIAL_SEED` repeats them, except for the random numbers in sealed
//! ones. A difference is reported with the seed of its case; that seed and `DIFFERENTIAL=1` repeat the case alone.
//! `DIFFERENTIAL_KINDS` chooses kinds by their letters, `EG` for example.

mod decoders;
mod json;
mod lines;
mod sealed;

use crate::interop::python;
use crate::support::{Dice, number, skip};
use decoders::verdict;
use secure_messenger::crypto::secret::random;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

/// An input of both decoders: a letter for its kind, and its parts.
#[derive(Clone)]
pub struct Case {
    kind: u8,
    parts: Vec<Vec<u8>>,
}

impl Case {
    fn new(kind: u8, parts: impl Into<Vec<Vec<u8>>>) -> Case {
        Case { kind, parts: parts.into() }
    }

    fn encode(&self) -> Vec<u8> {
        let parts = self.parts.iter().flat_map(|part| [&length(part)[..], part].concat());
        let case: Vec<u8> = [self.kind].into_iter().chain(parts).collect();
        [&length(&case)[..], &case].concat()
    }
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("a case is short").to_be_bytes()
}

type Make = fn(&Dice) -> Case;

/// The kinds, with their shares of 10,000 cases. Kinds with RSA or PBKDF2 are rare because they are slow in Python.
const KINDS: [(u8, &str, u64, Make); 12] = [
    (b'C', "lines of a client", 3_450, lines::client),
    (b'S', "lines of a server", 3_450, lines::server),
    (b'T', "texts about files", 800, lines::file_text),
    (b'P', "packets", 600, lines::packet),
    (b'N', "names", 600, lines::name),
    (b'W', "passwords", 200, lines::password),
    (b'K', "public keys", 500, sealed::public_key),
    (b'L', "lists of logins", 350, lines::logins),
    (b'E', "envelopes", 36, sealed::envelope),
    (b'G', "groups of chunks", 8, sealed::group),
    (b'F', "key files", 4, sealed::key_file),
    (b'I', "private keys", 2, sealed::private_key),
];

/// A random case of one of these kinds.
fn make(dice: &Dice, kinds: &str) -> Case {
    let wanted = || KINDS.into_iter().filter(|(kind, ..)| kinds.contains(char::from(*kind)));
    let mut at = dice.below(wanted().map(|(_, _, share, _)| share).sum());
    for (_, _, share, make) in wanted() {
        if at < share {
            return make(dice);
        }
        at -= share;
    }
    unreachable!("the shares are complete")
}

/// The other decoder, a process.
struct Other(Child);

impl Other {
    fn start(python: &str) -> Other {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/differential.py");
        let mut command = Command::new(python);
        command.arg("-B").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        Other(command.spawn().expect("Python starts"))
    }

    /// Its verdicts on a batch.
    fn verdicts(&mut self, cases: &[Case]) -> Vec<String> {
        let batch: Vec<u8> = cases.iter().flat_map(Case::encode).chain([0; 4]).collect();
        let stdin = self.0.stdin.as_mut().expect("piped");
        stdin.write_all(&batch).and_then(|()| stdin.flush()).expect("Python reads");
        cases.iter().map(|_| self.answer()).collect()
    }

    fn answer(&mut self) -> String {
        let stdout = self.0.stdout.as_mut().expect("piped");
        let mut length = [0; 4];
        stdout.read_exact(&mut length).expect("Python answers");
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        stdout.read_exact(&mut answer).expect("Python answers");
        String::from_utf8(answer).expect("Python answers in UTF-8")
    }

    fn differs(&mut self, case: &Case) -> Option<[String; 2]> {
        let (ours, theirs) = (verdict(case), self.verdicts(std::slice::from_ref(case)).remove(0));
        (ours != theirs).then_some([ours, theirs])
    }

    /// Removes bytes from a case as long as the verdicts still differ in the same way.
    fn shrunk(&mut self, mut case: Case) -> Case {
        let accepted = |verdicts: [String; 2]| verdicts.map(|verdict| verdict.starts_with('+'));
        let Some(way) = self.differs(&case).map(accepted) else { return case };
        // The last part has the content.
        let last = case.parts.len() - 1;
        let mut size = case.parts[last].len() / 2;
        while size > 0 {
            let mut at = 0;
            while at + size <= case.parts[last].len() {
                let mut less = case.clone();
                less.parts[last].drain(at..at + size);
                if self.differs(&less).map(accepted) == Some(way) {
                    case = less;
                } else {
                    at += size;
                }
            }
            size /= 2;
        }
        case
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The number of cases of each kind, and of accepted ones among them.
type Counts = BTreeMap<u8, [u64; 2]>;

/// Compares the verdicts on these cases, and reports at most 20 differences.
fn compare(
    python: &str,
    (seed, kinds): (u64, &str),
    cases: impl Iterator<Item = u64>,
) -> (Counts, Vec<String>) {
    let (mut other, mut counts, mut differences) = (Other::start(python), Counts::new(), Vec::new());
    let mut seeds = cases.map(|case| seed.wrapping_add(case)).peekable();
    while seeds.peek().is_some() {
        let batch: Vec<u64> = seeds.by_ref().take(200).collect();
        let cases: Vec<Case> = batch.iter().map(|seed| make(&Dice::new(*seed), kinds)).collect();
        let theirs = other.verdicts(&cases);
        for ((seed, case), theirs) in batch.iter().zip(cases).zip(theirs) {
            let ours = verdict(&case);
            let count = counts.entry(case.kind).or_default();
            *count = [count[0] + 1, count[1] + u64::from(ours.starts_with('+'))];
            if ours != theirs && differences.len() < 20 {
                differences.push(report(&mut other, *seed, case, [ours, theirs]));
            }
        }
    }
    (counts, differences)
}

fn report(other: &mut Other, seed: u64, case: Case, before: [String; 2]) -> String {
    let small = other.shrunk(case);
    let [ours, theirs] = other.differs(&small).unwrap_or(before);
    let parts: Vec<String> = small.parts.iter().map(|part| part.escape_ascii().to_string()).collect();
    let kind = char::from(small.kind);
    format!(
        "DIFFERENTIAL_SEED={seed}, kind {kind}:\n  {}\n  Rust:   {ours}\n  Python: {theirs}",
        parts.join("\n  ")
    )
}

/// PROTOCOL#line, PROTOCOL#json, PROTOCOL#base64, PROTOCOL#packet, PROTOCOL#der, PROTOCOL#checks, PROTOCOL#chunk,
/// PROTOCOL#key-file-form, PROTOCOL#logins, PROTOCOL#bad-file-message, PROTOCOL#reserved-names.
#[test]
fn both_decoders_agree_on_every_case() {
    let Some(python) = python() else {
        skip("no Python with pycryptodome and pyOpenSSL is installed");
        return;
    };
    let cases = number("DIFFERENTIAL", 20_000);
    let seed = number("DIFFERENTIAL_SEED", u64::from_be_bytes(random()));
    println!("DIFFERENTIAL_SEED={seed}");
    let all: String = KINDS.iter().map(|(kind, ..)| char::from(*kind)).collect();
    let kinds = &*std::env::var("DIFFERENTIAL_KINDS").unwrap_or(all);
    let workers = thread::available_parallelism().map_or(2, |count| count.get() as u64).min(4);
    let share = |worker: u64| (worker..cases).step_by(workers as usize);
    let results: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers)
            .map(|worker| scope.spawn(move || compare(python, (seed, kinds), share(worker))))
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker")).collect()
    });
    let (mut counts, mut differences) = (Counts::new(), Vec::new());
    for (some, found) in results {
        differences.extend(found);
        for (kind, [all, accepted]) in some {
            let count = counts.entry(kind).or_default();
            *count = [count[0] + all, count[1] + accepted];
        }
    }
    for (kind, name, ..) in KINDS {
        let [all, accepted] = counts.get(&kind).copied().unwrap_or_default();
        println!("{name}: {all} cases, {accepted} accepted");
    }
    let accepted: u64 = counts.values().map(|count| count[1]).sum();
    println!("{cases} cases, {accepted} accepted");
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    assert!(cases < 1000 || accepted * 3 > cases, "only {accepted} of {cases} cases are accepted");
}
