//! The server's certificate: made at the first start, read, and renewed with the same key.
//!
//! Invariant: a key or certificate that is there is never overwritten, except an expired
//! certificate that this program made itself. Clients pin the SHA-256 of the public key (SPKI,
//! RFC 5280 section 4.1.2.7), so a renewal with the same key changes nothing for them.

use crate::clock;
use crate::crypto::public::Fingerprint;
use crate::disk;
use crate::wire::tls::{CertificateDer, OTHER_KEY, PrivateKeyDer, UNUSABLE_KEY};
use rcgen::{CertificateParams, DnType, KeyPair, PublicKeyData, date_time_ymd};
use rsa::pkcs8::der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use rsa::pkcs8::der::{Decode, Encode, Reader, Tag, Tagged};
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;
use zeroize::Zeroizing;

/// A certificate made here is valid for this long: clients check the key, and no dates.
const VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);
/// The end of a certificate is announced this long before: time for an operator to get another.
pub const NOTICE: Duration = Duration::from_secs(30 * 24 * 3600);
/// The common name by which a certificate made here is known.
const COMMON_NAME: &str = "secure_messenger";
/// What stands before [`COMMON_NAME`] in the subject of a certificate made here, which has nothing else: the headers of
/// a set, of a sequence, of the object identifier 2.5.4.3 with its value, and of a UTF-8 string of 16 bytes.
const SUBJECT: &[u8] = b"\x31\x19\x30\x17\x06\x03\x55\x04\x03\x0c\x10";
/// How the alternative names of a certificate made here begin: localhost, 127.0.0.1, ::1.
const LOCAL: &[u8] = b"\x82\x09localhost\x87\x04\x7f\x00\x00\x01\x87\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01";
/// The longest PEM file that is read, in bytes: a chain has some KiB.
pub const MAX_PEM: usize = 256 * 1024;

/// What PEM files also hold, by the end of its label, and what to do then.
const OTHER_FORMS: [(&str, &str); 5] = [
    (
        "CERTIFICATE REQUEST",
        "it is a request: have an authority sign it, and put the certificate that you get in server.crt",
    ),
    (
        "PUBLIC KEY",
        "it is a public key: put the certificate in server.crt, and the private key that belongs to it in server.key",
    ),
    (
        "OPENSSH PRIVATE KEY",
        "it is a key of OpenSSH: make one for TLS (openssl genpkey -algorithm ed25519), and have it certified",
    ),
    (
        "TRUSTED CERTIFICATE",
        "it is in a form of OpenSSL alone: convert it (openssl x509 -in FILE -out server.crt)",
    ),
    ("PKCS7", "it is PKCS#7: convert it (openssl pkcs7 -print_certs -in FILE -out server.crt)"),
];

/// What is read out of a certificate. `Display` is its fingerprint and its end.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Of the public key (SPKI).
    pub fingerprint: Fingerprint,
    /// The begin of its validity, milliseconds since 1970.
    pub not_before: u64,
    /// The end of its validity, milliseconds since 1970.
    pub not_after: u64,
    /// Whether issuer, subject and names are the ones this program writes.
    pub self_made: bool,
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (valid until {})", self.fingerprint, clock::utc_day(self.not_after))
    }
}

/// Reads a DER certificate, RFC 5280 section 4.1. No signature is checked.
///
/// # Errors
/// If it is not one.
pub fn facts(der: &[u8]) -> Result<Facts, rsa::pkcs8::der::Error> {
    let certificate = AnyRef::from_der(der)?;
    certificate.sequence(|parts| {
        let tbs: AnyRef<'_> = parts.decode()?;
        while !parts.is_finished() {
            parts.decode::<AnyRef<'_>>()?;
        }
        tbs.sequence(|fields| {
            // version [0] is optional; then serial, signature algorithm, issuer, validity, subject, key
            let mut serial: AnyRef<'_> = fields.decode()?;
            if matches!(serial.tag(), Tag::ContextSpecific { .. }) {
                serial = fields.decode()?;
            }
            let (_, _, issuer): (AnyRef<'_>, AnyRef<'_>, AnyRef<'_>) =
                (serial, fields.decode()?, fields.decode()?);
            let validity: AnyRef<'_> = fields.decode()?;
            let (subject, key): (AnyRef<'_>, AnyRef<'_>) = (fields.decode()?, fields.decode()?);
            let mut is_for_this_machine = false;
            while !fields.is_finished() {
                let rest: AnyRef<'_> = fields.decode()?;
                is_for_this_machine |= rest.value().windows(LOCAL.len()).any(|window| window == LOCAL);
            }
            let time = |time: AnyRef<'_>| match time.tag() {
                Tag::UtcTime => time.decode_as::<UtcTime>().map(|time| time.to_unix_duration()),
                _ => time.decode_as::<GeneralizedTime>().map(|time| time.to_unix_duration()),
            };
            let (begin, end) = validity.sequence(|times| {
                let (begin, end): (AnyRef<'_>, AnyRef<'_>) = (times.decode()?, times.decode()?);
                Ok::<_, rsa::pkcs8::der::Error>((time(begin)?, time(end)?))
            })?;
            let named = subject.value() == [SUBJECT, COMMON_NAME.as_bytes()].concat();
            Ok(Facts {
                fingerprint: Fingerprint::of(&key.to_der()?),
                not_before: begin.as_millis() as u64,
                not_after: end.as_millis() as u64,
                self_made: named && is_for_this_machine && issuer == subject,
            })
        })
    })
}

/// What [`prepare`] did.
#[derive(Debug, PartialEq, Eq)]
pub enum Prepared {
    /// Both files were there, and nothing was changed: also with a certificate of others that is expired.
    Found,
    /// A certificate was made, and a key if there was none.
    Made,
    /// A certificate of this program's own was expired: there is a new one for the same key.
    Renewed,
}

/// What [`prepare`] would do in `folder` at `now_ms`, milliseconds since 1970.
///
/// # Errors
/// With the path in the text if the key is missing beside a certificate, one of the two is damaged or a link that cannot
/// be followed, or an expired certificate is another key's.
pub fn plan(folder: &Path, now_ms: u64) -> io::Result<Prepared> {
    let (key_path, certificate_path) = (folder.join("server.key"), folder.join("server.crt"));
    match (disk::is_there(&key_path)?, disk::is_there(&certificate_path)?) {
        (true, true) if is_renewed(folder, &read_facts(&certificate_path)?, now_ms)? => Ok(Prepared::Renewed),
        (true, true) => Ok(Prepared::Found),
        (true, false) => read_key_pair(&key_path).map(|_| Prepared::Made),
        (false, true) => Err(disk::at(&key_path)(io::Error::other(
            "the certificate's key is missing: restore it, or remove server.crt to make a new pair, \
             whose new fingerprint every client will have to accept",
        ))),
        (false, false) => Ok(Prepared::Made),
    }
}

/// Sees to it that `folder` holds `server.key` and a `server.crt`, which is renewed if it is expired and self-made.
/// `now_ms` is in milliseconds since 1970.
///
/// # Errors
/// Those of [`plan`]: nothing is overwritten then; or if the disk fails.
pub fn prepare(folder: &Path, now_ms: u64) -> io::Result<Prepared> {
    let (key_path, plan) = (folder.join("server.key"), plan(folder, now_ms)?);
    if plan != Prepared::Found {
        if !disk::is_there(&key_path)? {
            let key = KeyPair::generate().map_err(io::Error::other)?;
            disk::replace(&key_path, Zeroizing::new(key.serialize_pem()).as_bytes())?;
        }
        certify(&key_path, &folder.join("server.crt"), now_ms)?;
    }
    Ok(plan)
}

/// Whether the certificate of these facts in `folder`, which holds a key too, is to be renewed; an error if the key cannot
/// be read or is another certificate's.
fn is_renewed(folder: &Path, facts: &Facts, now_ms: u64) -> io::Result<bool> {
    if facts.not_after > now_ms || !facts.self_made {
        return Ok(false);
    }
    let key = read_key_pair(&folder.join("server.key"))?;
    if Fingerprint::of(&key.subject_public_key_info()) != facts.fingerprint {
        return Err(disk::at(folder)(io::Error::other(OTHER_KEY)));
    }
    Ok(true)
}

/// With the private key, which is certified here.
fn read_key_pair(path: &Path) -> io::Result<KeyPair> {
    KeyPair::try_from(&read_key(path)?).map_err(|_| disk::at(path)(io::Error::other(UNUSABLE_KEY)))
}

/// Reads the certificates of a PEM file, at least one.
///
/// # Errors
/// With the path and the remedy in the text.
pub fn read_chain(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let pem = plain(path, disk::read(path, MAX_PEM)?)?;
    let chain = rustls_pemfile::certs(&mut &pem[..]).collect::<Result<Vec<_>, _>>();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        other => Err(disk::at(path)(missing(&pem, "certificate", other.is_err()))),
    }
}

/// Reads the first private key of a PEM file.
///
/// # Errors
/// The same; also if others can read the file, or the key is encrypted.
pub fn read_key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    let pem = read_key_pem(path)?;
    match rustls_pemfile::private_key(&mut &pem[..]) {
        Ok(Some(key)) => Ok(key),
        other => Err(disk::at(path)(missing(&pem, "private key", other.is_err()))),
    }
}

/// Why there is no `wanted` in a file, and what to do.
fn missing(pem: &[u8], wanted: &str, is_damaged: bool) -> io::Error {
    let text = String::from_utf8_lossy(pem);
    let has = |label: &str| text.contains(&format!("{label}-----"));
    let why = if text.trim_matches(|c: char| c.is_whitespace() || c == '\0').is_empty() {
        "it is empty: restore it from a copy"
    } else if let Some((_, why)) = OTHER_FORMS.iter().find(|(label, _)| has(label)) {
        *why
    } else if is_damaged || has(&wanted.to_ascii_uppercase()) {
        "it is damaged or cut off: copy it again, from the line -----BEGIN to the line -----END"
    } else if has("PRIVATE KEY") || has("CERTIFICATE") {
        "it is the other of the two: put the certificate in server.crt, and its private key in server.key"
    } else {
        "it is not PEM, which begins with -----BEGIN: restore it from a copy"
    };
    io::Error::other(format!("no {wanted} in this file: {why}"))
}

/// Reads the PEM file of a private key.
fn read_key_pem(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let pem = Zeroizing::new(plain(path, std::mem::take(&mut *disk::read_private(path, MAX_PEM)?))?);
    // PKCS#8, and the older form of OpenSSL.
    if [&b"BEGIN ENCRYPTED"[..], b"4,ENCRYPTED"]
        .iter()
        .any(|mark| pem.windows(mark.len()).any(|w| w == *mark))
    {
        return Err(disk::at(path)(io::Error::other(
            "the key is encrypted, and nobody is there to type its password: decrypt it (openssl pkey -in server.key \
             -out plain.key), and put the result in its place with chmod 600",
        )));
    }
    Ok(pem)
}

fn plain(path: &Path, mut pem: Vec<u8>) -> io::Result<Vec<u8>> {
    let wrong = |text| Err(disk::at(path)(io::Error::other(text)));
    match pem[..] {
        [0xef, 0xbb, 0xbf, ..] => drop(pem.drain(..3)),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            return wrong("this looks like UTF-16: save the file as UTF-8");
        }
        // A sequence that begins with version 3, perhaps of no definite length.
        [0x30, 0x82, _, _, 0x02, 0x01, 0x03, ..] | [0x30, 0x80, 0x02, 0x01, 0x03, ..] => {
            return wrong(
                "this is PKCS#12: take certificate and key out of it (openssl pkcs12 -in FILE -nokeys -out server.crt, and \
                 -nocerts -noenc -out server.key)",
            );
        }
        // A sequence of more than 127 bytes, as nearly every key and certificate is, or a short key.
        [0x30, 0x81 | 0x82, ..] | [0x30, _, 0x02, 0x01, ..] => {
            return wrong("this is DER: convert it to PEM (openssl x509 or openssl pkey, -inform DER)");
        }
        _ => {}
    }
    Ok(pem)
}

/// Reads the first certificate of a PEM file.
///
/// # Errors
/// With the path in the text.
pub fn read_facts(path: &Path) -> io::Result<Facts> {
    let damaged = |_| disk::at(path)(io::Error::other("the certificate is damaged: copy it again"));
    facts(&read_chain(path)?[0]).map_err(damaged)
}

/// Signs a certificate for this machine's names with the key in `key_path`.
fn certify(key_path: &Path, certificate_path: &Path, now_ms: u64) -> io::Result<()> {
    let key = read_key_pair(key_path)?;
    let mut names = vec!["localhost".to_string(), "127.0.0.1".to_string(), "::1".to_string()];
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let valid = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
    };
    if valid(host) && host != "localhost" {
        names.push(host.to_string());
    }
    let mut params = CertificateParams::new(names).map_err(io::Error::other)?;
    params.distinguished_name.push(DnType::CommonName, COMMON_NAME);
    // A minute back, for clients whose clock is a little behind.
    let start = date_time_ymd(1970, 1, 1) + Duration::from_millis(now_ms.saturating_sub(60_000));
    params.not_before = start;
    params.not_after = start + VALIDITY;
    let certificate = params.self_signed(&key).map_err(io::Error::other)?;
    disk::replace(certificate_path, certificate.pem().as_bytes())
}

/// A sentence if at `now_ms` (milliseconds since 1970) a certificate is not valid yet, or its end is past or at most [`NOTICE`]
/// away, else `None`.
pub fn notice(facts: &Facts, now_ms: u64) -> Option<String> {
    let day = clock::utc_day(facts.not_after);
    if now_ms < facts.not_before {
        let day = clock::utc_day(facts.not_before);
        Some(format!(
            "the certificate is not valid before {day}: compare this machine's clock, or replace certs/server.crt"
        ))
    } else if facts.not_after <= now_ms {
        Some(format!("the certificate expired on {day}: replace certs/server.crt"))
    } else if facts.not_after - now_ms <= NOTICE.as_millis() as u64 {
        Some(format!("the certificate expires on {day}, in less than 30 days"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secret::random;
    use rcgen::Issuer;
    use std::fs;

    const YEAR: u64 = 365 * 24 * 3_600_000;
    const NOW: u64 = 60 * YEAR;

    #[test]
    fn an_expired_certificate_is_renewed_if_it_is_our_own_and_left_alone_if_it_is_anybody_else_s() {
        let name: String = random::<8>().iter().map(|byte| format!("{byte:02x}")).collect();
        let folder = std::env::temp_dir().join(format!("certificates-{name}"));
        disk::private_folders(&folder, &[]).expect("a folder");
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
            // The name alone does not make it ours.
            params(COMMON_NAME).self_signed(&key),
            // Somebody's for the same purpose, and one who happens to have our name.
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
        // Beside another key, nobody knows which of the two is to stay.
        let before = read();
        let other = KeyPair::generate().expect("a key").serialize_pem();
        fs::write(folder.join("server.key"), other).expect("written");
        let error = prepare(&folder, renewed.not_after).expect_err("another key").to_string();
        assert!(error.ends_with(OTHER_KEY) && read() == before, "{error}");
        fs::remove_dir_all(&folder).expect("clean up");
    }

    #[test]
    fn the_end_of_a_certificate_is_told_thirty_days_before_and_from_then_on() {
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
