//! TLS, as independent scanners see it: every protocol version, cipher and known attack that they try.

use crate::support::{Server, has, other, run};
use std::collections::BTreeMap;
use std::fs;

/// Findings of testssl.sh that do not count: clients know the certificate by its fingerprint, and the last one is about
/// this machine's OpenSSL.
const ACCEPTED: [(&str, &str); 4] = [
    ("cert_chain_of_trust", "failed (self signed)."),
    ("cert_revocation", "Neither CRL nor OCSP URI provided"),
    ("DNS_CAArecord", "--"),
    ("engine_problem", "No engine or GOST support via engine with your"),
];

/// PROTOCOL#transport.
#[test]
fn testssl_finds_no_weakness() {
    if !has("testssl") {
        return;
    }
    let server = Server::start();
    let path = server.home.path("findings.csv");
    let report = path.to_str().expect("UTF-8");
    let tried = ["--protocols", "--std", "--fs", "--server-defaults", "--server-preference", "--vulnerable"];
    let mut testssl = other("testssl");
    testssl.args(["--quiet", "--warnings", "off", "--color", "0", "--csvfile", report]).args(tried);
    let (_, said, _) = run(testssl.args(["--ip", "127.0.0.1", &format!("127.0.0.1:{}", server.port)]));
    let findings = fs::read_to_string(path).unwrap_or_else(|error| panic!("{error}\n{said}"));
    let (mut found, mut wrong) = (BTreeMap::new(), Vec::new());
    for line in findings.lines().skip(1) {
        let fields: Vec<_> = line.trim_matches('"').split("\",\"").collect();
        let [id, _, _, severity, finding, ..] = fields[..] else { panic!("{line}") };
        let is_accepted = ACCEPTED.iter().any(|(known, begin)| id == *known && finding.starts_with(begin));
        wrong.extend((!is_accepted && !["OK", "INFO", "DEBUG"].contains(&severity)).then_some(line));
        found.insert(id.to_string(), finding.to_string());
    }
    for (id, begin) in [
        ("SSLv2", "not offered"),
        ("SSLv3", "not offered"),
        ("TLS1", "not offered"),
        ("TLS1_1", "not offered"),
        ("TLS1_3", "offered"),
        ("cipherlist_NULL", "not offered"),
        ("cipherlist_aNULL", "not offered"),
        ("cipherlist_AVERAGE", "not offered"),
        ("TLS_session_ticket", "no"),
        ("SSL_sessionID_support", "no"),
        ("sessionresumption_ticket", "not supported"),
        ("sessionresumption_ID", "No Session ID"),
        ("secure_client_renego", "not vulnerable"),
        ("CRIME_TLS", "not vulnerable"),
        ("heartbleed", "not vulnerable"),
        ("CCS", "not vulnerable"),
        ("ROBOT", "not vulnerable"),
        ("DROWN", "not vulnerable"),
        ("LOGJAM", "not vulnerable"),
        ("LUCKY13", "not vulnerable"),
    ] {
        let finding = found.get(id).unwrap_or_else(|| panic!("{id} was not tried:\n{findings}"));
        wrong.extend((!finding.starts_with(begin)).then_some(finding.as_str()));
    }
    assert_eq!(wrong, [""; 0]);
    let name = |id: &str| found.keys().find(|known| known.ends_with(id)).unwrap_or_else(|| panic!("{id}"));
    for cipher in found[name("FS_ciphers")].split_whitespace() {
        let is_aead = ["GCM", "CHACHA20"].iter().any(|aead| cipher.contains(aead));
        let has_exchange = ["TLS_", "ECDHE-"].iter().any(|begin| cipher.starts_with(begin));
        assert!(is_aead && has_exchange, "{cipher}");
    }
}

/// PROTOCOL#transport.
#[test]
fn sslscan_finds_no_weakness() {
    if !has("sslscan") {
        return;
    }
    let server = Server::start();
    let (_, text, _) = run(other("sslscan").args(["--no-colour", &format!("127.0.0.1:{}", server.port)]));
    for line in [
        "SSLv2 disabled",
        "SSLv3 disabled",
        "TLSv1.0 disabled",
        "TLSv1.1 disabled",
        "TLSv1.3 enabled",
        "Session renegotiation not supported",
        "TLSv1.3 not vulnerable to heartbleed",
    ] {
        let is_line = |shown: &str| shown.split_whitespace().collect::<Vec<_>>().join(" ") == line;
        assert!(text.lines().any(is_line), "{line}:\n{text}");
    }
    let ciphers = text.lines().filter_map(|line| {
        let line = line.strip_prefix("Preferred").or_else(|| line.strip_prefix("Accepted"))?;
        line.split_whitespace().find(|word| word.contains("TLS_") || word.contains('-'))
    });
    let ciphers: Vec<_> = ciphers.collect();
    assert!(ciphers.len() >= 3, "{text}");
    let is_good = |cipher: &&str| cipher.contains("GCM") || cipher.contains("CHACHA20");
    assert!(ciphers.iter().all(is_good), "{text}");
}
