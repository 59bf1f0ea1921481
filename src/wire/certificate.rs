//! The server's certificate: made at the first start, read, and renewed with the same key.
//!
//! Invariants: an existing key or certificate is never overwritten, except an expired certificate that this program
//! made. A running server makes no key. Clients pin the SHA-256 of the public key (SPKI, RFC 5280 section 4.1.2.7), so
//! they do not notice a renewal.

use crate::clock;
use crate::crypto::public::Fingerprint;
use crate::disk;
use rcgen::{CertificateParams, DnType, KeyPair, PublicKeyData, date_time_ymd};
use rsa::pkcs8::der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use rsa::pkcs8::der::{Decode, Encode, Tag, Tagged};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// A new certificate is valid for a year: clients check the key, not the dates.
const VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);
/// The server warns this long before a certificate expires: 30 days, time for an operator to get another.
pub const NOTICE: Duration = Duration::from_secs(30 * 24 * 3600);
/// The common name of a certificate that this program makes.
const COMMON_NAME: &str = "secure_messenger";
/// The DER before [`COMMON_NAME`] in the subject of such a certificate, which has no other part: a set, a sequence, the
/// object identifier 2.5.4.3, a UTF-8 string of 16 bytes.
const SUBJECT: &[u8] = b"\x31\x19\x30\x17\x06\x03\x55\x04\x03\x0c\x10";
/// The first alternative names of such a certificate, in DER: localhost, 127.0.0.1, ::1.
const LOCAL: &[u8] = b"\x82\x09localhost\x87\x04\x7f\x00\x00\x01\x87\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01";
/// The longest PEM file that is read, in bytes; a chain of certificates has some KiB.
const MAX_PEM: usize = 256 * 1024;

pub(super) const UNUSABLE_KEY: &str = "this key cannot be used for TLS: use RSA with 2048 bits or more, ECDSA on P-256, P-384 \
    or P-521, or Ed25519";
pub(super) const OTHER_KEY: &str = "server.key is not the key of the certificate in server.crt: install a matching pair (of \
    several keys in server.key, the first counts)";

/// Text that identifies other content of a PEM file, and its remedy.
const OTHER_FORMS: [(&str, &str); 7] = [
    // PKCS#8, then the older form of OpenSSL.
    ("BEGIN ENCRYPTED", ENCRYPTED),
    ("4,ENCRYPTED", ENCRYPTED),
    ("CERTIFICATE REQUEST-----", "it is a request: have an authority sign it, and install its certificate"),
    ("PUBLIC KEY-----", "it is a public key: put a certificate in server.crt, its private key in server.key"),
    (
        "OPENSSH PRIVATE KEY-----",
        "it is a key of OpenSSH: make one for TLS (openssl genpkey -algorithm ed25519), and have it certified",
    ),
    (
        "TRUSTED CERTIFICATE-----",
        "it is in a format that only OpenSSL reads: convert it (openssl x509 -in FILE -out server.crt)",
    ),
    ("PKCS7-----", "it is PKCS#7: convert it (openssl pkcs7 -print_certs -in FILE -out server.crt)"),
];
const ENCRYPTED: &str = "it is encrypted, and a server cannot ask for its password: decrypt it (openssl pkey -in \
    server.key -out plain.key), and replace it with the result, with chmod 600";
const PKCS12: &str = "this is PKCS#12: extract certificate and key (openssl pkcs12 -in FILE -nokeys -out server.crt, and \
    -nocerts -noenc -out server.key)";
const DER: &str = "this is DER: convert it to PEM (openssl x509 or openssl pkey, -inform DER)";

/// The facts that the program reads from a certificate. `Display` shows the fingerprint and the end.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The fingerprint of the public key (SPKI).
    pub fingerprint: Fingerprint,
    /// The start of its validity, milliseconds since 1970.
    pub not_before: u64,
    /// The end of its validity, milliseconds since 1970.
    pub not_after: u64,
    /// Whether issuer, subject and names are the ones that this program writes.
    pub self_made: bool,
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (valid until {})", self.fingerprint, clock::utc_day(self.not_after))
    }
}

/// Reads a DER certificate, RFC 5280 section 4.1; `None` if it is damaged. Checks no signature.
pub fn facts(der: &[u8]) -> Option<Facts> {
    let certificate = Vec::<AnyRef<'_>>::from_der(der).ok()?;
    let mut fields: Vec<AnyRef<'_>> = certificate.first()?.decode_as().ok()?;
    // A certificate of version 1 does not name its version.
    if matches!(fields.first()?.tag(), Tag::ContextSpecific { .. }) {
        fields.remove(0);
    }
    let [_serial, _algorithm, issuer, validity, subject, key, extensions @ ..] = &fields[..] else {
        return None;
    };
    let times: Vec<AnyRef<'_>> = validity.decode_as().ok()?;
    let [begin, end] = times[..] else { return None };
    let is_for_this_machine =
        extensions.iter().any(|part| part.value().windows(LOCAL.len()).any(|window| window == LOCAL));
    let is_named = subject.value() == [SUBJECT, COMMON_NAME.as_bytes()].concat();
    Some(Facts {
        fingerprint: Fingerprint::of(&key.to_der().ok()?),
        not_before: milliseconds(begin)?,
        not_after: milliseconds(end)?,
        self_made: is_named && is_for_this_machine && issuer == subject,
    })
}

fn milliseconds(time: AnyRef<'_>) -> Option<u64> {
    let since_1970 = match time.tag() {
        Tag::UtcTime => time.decode_as::<UtcTime>().ok()?.to_unix_duration(),
        _ => time.decode_as::<GeneralizedTime>().ok()?.to_unix_duration(),
    };
    Some(since_1970.as_millis() as u64)
}

/// `server.key` and `server.crt` in `folder`.
pub(super) fn paths(folder: &Path) -> (PathBuf, PathBuf) {
    (folder.join("server.key"), folder.join("server.crt"))
}

/// The work of [`prepare`].
#[derive(Debug, PartialEq, Eq)]
pub enum Prepared {
    /// Both files existed. Nothing changed, even if the certificate is expired: this program did not make it.
    Found,
    /// The certificate is new, and the key if there was none.
    Made,
    /// A certificate that this program had made was expired. A new one for the same key replaces it.
    Renewed,
}

/// The work that [`prepare`] would do in `folder` at `now_ms`, milliseconds since 1970.
///
/// # Errors
/// With the path in the text if a file is damaged or a broken link, the key is missing beside a certificate, or an
/// expired certificate has another key.
pub fn plan(folder: &Path, now_ms: u64) -> io::Result<Prepared> {
    let (key_path, certificate_path) = paths(folder);
    match (disk::is_there(&key_path)?, disk::is_there(&certificate_path)?) {
        (true, true) => {
            let facts = read_facts(&certificate_path)?;
            if !is_renewable(&facts, now_ms) {
                return Ok(Prepared::Found);
            }
            match is_of(&facts, &read_key_pair(&key_path)?) {
                true => Ok(Prepared::Renewed),
                false => Err(disk::error(folder, OTHER_KEY)),
            }
        }
        (true, false) => read_key_pair(&key_path).map(|_| Prepared::Made),
        (false, true) => Err(disk::error(
            &key_path,
            "the certificate's key is missing: restore it, or remove server.crt to create a new pair; then every client has \
             to accept the new fingerprint",
        )),
        (false, false) => Ok(Prepared::Made),
    }
}

/// For a start: as [`renew`], and creates the key and the certificate in `folder` if they are missing. `now_ms` is in
/// milliseconds since 1970.
///
/// # Errors
/// As [`plan`], with the files unchanged; also if the disk fails, or another program creates the files meanwhile.
pub fn prepare(folder: &Path, now_ms: u64) -> io::Result<Prepared> {
    let (key_path, certificate_path) = paths(folder);
    let is_ours = |name: &str| [&key_path, &certificate_path].iter().any(|path| path.ends_with(name));
    disk::remove_temporary(folder, is_ours)?;
    if renew(folder, now_ms)? {
        return Ok(Prepared::Renewed);
    }
    let plan = plan(folder, now_ms)?;
    if plan == Prepared::Made {
        if !disk::is_there(&key_path)? {
            let key = KeyPair::generate().map_err(io::Error::other)?;
            disk::place_new(&key_path, Zeroizing::new(key.serialize_pem()).as_bytes())?;
        }
        disk::place_new(&certificate_path, certify(&read_key_pair(&key_path)?, now_ms)?.as_bytes())?;
    }
    Ok(plan)
}

/// Renews an expired certificate that this program made, with the same key, and makes no other file: if one is missing
/// while the server runs, its operator may be exchanging it. Returns whether it did. `now_ms` is in milliseconds since
/// 1970.
///
/// # Errors
/// As [`plan`]; also if the disk fails, or the certificate was replaced meanwhile.
pub fn renew(folder: &Path, now_ms: u64) -> io::Result<bool> {
    if plan(folder, now_ms)? != Prepared::Renewed {
        return Ok(false);
    }
    let (key_path, path) = paths(folder);
    let key = read_key_pair(&key_path)?;
    let renewed = certify(&key, now_ms)?;
    // Read again directly before the rename: the operator may have put another certificate there since the plan.
    let check = |_: &File| match read_facts(&path)? {
        facts if is_renewable(&facts, now_ms) && is_of(&facts, &key) => Ok(()),
        _ => Err(disk::error(&path, "replaced by another program just now; it stays as it is")),
    };
    disk::replace_with(&path, |file| file.write_all(renewed.as_bytes()), check)?;
    disk::sync_parent(&path)?;
    Ok(true)
}

/// Whether it is an expired certificate that this program made.
fn is_renewable(facts: &Facts, now_ms: u64) -> bool {
    facts.self_made && facts.not_after <= now_ms
}

/// Whether a certificate is for this key.
fn is_of(facts: &Facts, key: &KeyPair) -> bool {
    Fingerprint::of(&key.subject_public_key_info()) == facts.fingerprint
}

/// Signs a certificate for this machine's names; PEM.
fn certify(key: &KeyPair, now_ms: u64) -> io::Result<String> {
    let mut names = ["localhost", "127.0.0.1", "::1"].map(String::from).to_vec();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let is_name = host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    if is_name && !["", "localhost"].contains(&host) {
        names.push(host.to_string());
    }
    let mut params = CertificateParams::new(names).map_err(io::Error::other)?;
    params.distinguished_name.push(DnType::CommonName, COMMON_NAME);
    // A minute back, for clients whose clock is a little behind.
    let start = date_time_ymd(1970, 1, 1) + Duration::from_millis(now_ms.saturating_sub(60_000));
    (params.not_before, params.not_after) = (start, start + VALIDITY);
    Ok(params.self_signed(key).map_err(io::Error::other)?.pem())
}

/// Reads the first certificate of a PEM file.
///
/// # Errors
/// With the path in the text.
pub fn read_facts(path: &Path) -> io::Result<Facts> {
    Ok(read_chain(path)?.1)
}

/// Reads the certificates of a PEM file, at least one, and the facts of the first.
///
/// # Errors
/// With the path and the remedy in the text.
pub(super) fn read_chain(path: &Path) -> io::Result<(Vec<CertificateDer<'static>>, Facts)> {
    let bytes = disk::read(path, MAX_PEM)?;
    let chain: Result<Vec<_>, _> = rustls_pemfile::certs(&mut without_mark(&bytes)).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain = chain.ok_or_else(|| missing(path, &bytes, "certificate"))?;
    let facts = facts(&chain[0]);
    let facts = facts.ok_or_else(|| disk::error(path, "the certificate is damaged: copy it again"))?;
    Ok((chain, facts))
}

/// Reads the first private key of a PEM file.
///
/// # Errors
/// As [`read_chain`]; also if other users can read the file, or the key is encrypted.
pub(super) fn read_key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    let bytes = disk::read_private(path, MAX_PEM)?;
    let key = rustls_pemfile::private_key(&mut without_mark(&bytes)).ok().flatten();
    key.ok_or_else(|| missing(path, &bytes, "private key"))
}

/// Reads the private key that signs a certificate here.
fn read_key_pair(path: &Path) -> io::Result<KeyPair> {
    KeyPair::try_from(&read_key(path)?).map_err(|_| disk::error(path, UNUSABLE_KEY))
}

/// An editor may have saved the file with a byte order mark.
fn without_mark(pem: &[u8]) -> &[u8] {
    pem.strip_prefix("\u{feff}".as_bytes()).unwrap_or(pem)
}

/// The remedy for a file that is not PEM but UTF-16, PKCS#12 or DER; `None` for any other.
fn other_encoding(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("this looks like UTF-16: save the file as UTF-8"),
        // A sequence that begins with version 3, perhaps of indefinite length.
        [0x30, 0x82, _, _, 0x02, 0x01, 0x03, ..] | [0x30, 0x80, 0x02, 0x01, 0x03, ..] => Some(PKCS12),
        // A sequence of more than 127 bytes, as nearly every key and certificate is, or a short key.
        [0x30, 0x81 | 0x82, ..] | [0x30, _, 0x02, 0x01, ..] => Some(DER),
        _ => None,
    }
}

/// The error for a file without a `wanted`: why, and what to do.
fn missing(path: &Path, bytes: &[u8], wanted: &str) -> io::Error {
    if let Some(why) = other_encoding(bytes) {
        return disk::error(path, why);
    }
    let text = String::from_utf8_lossy(bytes);
    let has = |label: &str| text.contains(&format!("{label}-----"));
    let why = if text.trim_matches(|c: char| c.is_whitespace() || c == '\0').is_empty() {
        "it is empty: restore it from a copy"
    } else if let Some((_, why)) = OTHER_FORMS.iter().find(|(mark, _)| text.contains(mark)) {
        *why
    } else if !has(&wanted.to_ascii_uppercase()) && (has("PRIVATE KEY") || has("CERTIFICATE")) {
        "it belongs in the other file: put the certificate in server.crt, and its private key in server.key"
    } else if text.contains("-----BEGIN") {
        "it is damaged or cut off: copy it again, from the line -----BEGIN to the line -----END"
    } else {
        "it is not PEM, which begins with -----BEGIN: restore it from a copy"
    };
    disk::error(path, format!("no {wanted} in this file: {why}"))
}

/// A warning if a certificate is not valid yet at `now_ms` (milliseconds since 1970), is expired, or expires within
/// [`NOTICE`].
pub fn notice(facts: &Facts, now_ms: u64) -> Option<String> {
    let (begin, end) = (clock::utc_day(facts.not_before), clock::utc_day(facts.not_after));
    if now_ms < facts.not_before {
        Some(format!(
            "the certificate is not valid before {begin}: check this machine's clock, or replace certs/server.crt"
        ))
    } else if facts.not_after <= now_ms {
        Some(format!("the certificate expired on {end}: replace certs/server.crt"))
    } else if facts.not_after - now_ms <= NOTICE.as_millis() as u64 {
        Some(format!("the certificate expires on {end}, in less than 30 days"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::Folder;
    use rcgen::Issuer;
    use std::fs;

    const YEAR: u64 = 365 * 24 * 3_600_000;
    const NOW: u64 = 60 * YEAR;

    #[test]
    fn expired_certificate_is_renewed_only_if_self_made() {
        let folder = Folder::new();
        assert_eq!(prepare(&folder, NOW).expect("made"), Prepared::Made);
        let path = folder.join("server.crt");
        let key = read_key_pair(&folder.join("server.key")).expect("a key");
        let read = || fs::read(&path).expect("there");
        let params = |name: &str| {
            let mut params = CertificateParams::new(vec!["localhost".to_string()]).expect("a name");
            params.distinguished_name.push(DnType::CommonName, name);
            params.not_after = date_time_ymd(2001, 1, 1);
            params.not_before = date_time_ymd(2000, 1, 1);
            params
        };
        let authority = Issuer::new(params("An Authority"), KeyPair::generate().expect("a key"));
        for of_others in [
            params("example.org").self_signed(&key),
            params("secure_messenger-prod").self_signed(&key),
            params("my secure_messenger").self_signed(&key),
            // A certificate with our name alone is not self-made.
            params(COMMON_NAME).self_signed(&key),
            // Neither is one with our name that an authority signed.
            params(COMMON_NAME).signed_by(&key, &authority),
        ] {
            fs::write(&path, of_others.expect("signed").pem()).expect("written");
            let before = read();
            assert_eq!(prepare(&folder, NOW).expect("found"), Prepared::Found);
            assert!(read() == before);
            assert!(
                notice(&read_facts(&path).expect("whole"), NOW).is_some_and(|text| text.contains("expired"))
            );
        }
        fs::remove_file(&path).expect("removed");
        assert_eq!(prepare(&folder, NOW).expect("made"), Prepared::Made, "for the key that is there");
        let made = read_facts(&path).expect("whole");
        assert!(made.self_made && made.fingerprint == Fingerprint::of(&key.subject_public_key_info()));
        assert_eq!(made.not_after, NOW + YEAR - 60_000);
        assert_eq!(prepare(&folder, made.not_after - 1).expect("found"), Prepared::Found);
        assert_eq!(prepare(&folder, made.not_after).expect("renewed"), Prepared::Renewed);
        let renewed = read_facts(&path).expect("whole");
        assert!(renewed.fingerprint == made.fingerprint && renewed.not_after > made.not_after);
        // With another key, it is unknown whether the key or the certificate is right.
        let before = read();
        let other = KeyPair::generate().expect("a key").serialize_pem();
        fs::write(folder.join("server.key"), other).expect("written");
        let error = prepare(&folder, renewed.not_after).expect_err("another key").to_string();
        assert!(error.ends_with(OTHER_KEY) && read() == before, "{error}");
    }

    #[test]
    fn end_of_a_certificate_is_announced_from_30_days_before() {
        let told = |left: u64, now: u64| {
            let fingerprint = Fingerprint([0; 32]);
            let facts = Facts { fingerprint, not_before: NOW, not_after: NOW + left, self_made: true };
            notice(&facts, now).unwrap_or_default()
        };
        let month = 30 * 24 * 3_600_000;
        assert_eq!(told(month + 1, NOW), "");
        assert!(told(month, NOW).contains("expires on 2030-01-16") && told(1, NOW).contains("expires"));
        assert!(told(0, NOW).contains("expired on") && told(0, NOW + YEAR).contains("expired on"));
        assert!(told(YEAR, NOW - 1).contains("not valid before 2029-12-17"));
    }
}
