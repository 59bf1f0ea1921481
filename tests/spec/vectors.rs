//! This implementation reads what other implementations produce, and computes the same values.
//!
//! `vectors/make.py` (pycryptodome 4.4.0, OpenSSL 3.0.19) made `vectors/vectors.json`. It shares no code with this
//! crate, and says how to run it. These tests need neither program, and altered vectors must fail. Specification:
//! PROTOCOL.md.

use crate::support::Folder;
use miniserde::{Deserialize, json};
use secure_messenger::auth::{self, PasswordKey, PendingLogin};
use secure_messenger::client::audience::{Audience, Partners};
use secure_messenger::client::options::{self, Options, Request};
use secure_messenger::client::store::history::{History, Message};
use secure_messenger::client::store::mailbox::MailboxFile;
use secure_messenger::crypto::chunk::Plan;
use secure_messenger::crypto::envelope::{Envelope, Kind, MAX_CIPHERTEXT, Scope, Sealed};
use secure_messenger::crypto::key_file::{self, KeyFileError, Login};
use secure_messenger::crypto::keys::{IdentityKey, SessionKey};
use secure_messenger::crypto::label;
use secure_messenger::crypto::primitives::{self, sha256};
use secure_messenger::crypto::public::{
    Fingerprint, IdentityPublicKey, MailboxCertificate, SessionCertificate, SessionPublicKey, WRAPPED_BYTES,
    safety_number,
};
use secure_messenger::crypto::secret::{Key, Password};
use secure_messenger::crypto::{CryptoError, Fields};
use secure_messenger::encoding::{Bytes, Fixed};
use secure_messenger::name::Username;
use secure_messenger::protocol::{
    Challenge, ChallengeResponse, ClientMessage, LoginRequest, PasswordChange, Register, ServerMessage,
    VERSION,
};
use std::fs;

/// `vectors.json`. Bytes are hexadecimal, except inside the key file and in lines of the wire.
#[derive(Deserialize)]
struct Vectors {
    identity: KeyVector,
    session: KeyVector,
    passwords: Vec<PasswordVector>,
    pbkdf2: Vec<Pbkdf2Vector>,
    hmac: Vec<HmacVector>,
    eax: Vec<AeadVector>,
    gcm: Vec<AeadVector>,
    oaep: Vec<OaepVector>,
    pss: Vec<PssVector>,
    key_file: KeyFileVector,
    history: SealedFileVector,
    mailbox_file: SealedFileVector,
    certificate: CertificateVector,
    mailbox_certificate: CertificateVector,
    logins: Vec<LoginVector>,
    password_changes: Vec<PasswordChangeVector>,
    resumptions: Vec<ResumptionVector>,
    fake_salt: FakeSaltVector,
    safety_number: SafetyNumberVector,
    envelopes: Vec<EnvelopeVector>,
    wrong_envelopes: Vec<EnvelopeVector>,
    wrong_lists: Vec<EnvelopeVector>,
    chunks: Vec<ChunkVector>,
}

#[derive(Deserialize)]
struct ChunkVector {
    start: u32,
    size: u64,
    transfer: String,
    transfer_key: String,
    chunk_key: String,
    oaep_label: String,
    associated: String,
    mac: String,
    text: String,
    payload: String,
}

#[derive(Deserialize)]
struct KeyVector {
    pkcs8: String,
    spki: String,
    pem: String,
    fingerprint: String,
    short: String,
}

#[derive(Deserialize)]
struct PasswordVector {
    typed: String,
    forms: Vec<String>,
}

#[derive(Deserialize)]
struct Pbkdf2Vector {
    password: String,
    salt: String,
    rounds: u32,
    key: String,
}

#[derive(Deserialize)]
struct HmacVector {
    source: String,
    key: String,
    message: String,
    mac: String,
}

#[derive(Deserialize)]
struct AeadVector {
    key: String,
    nonce: String,
    counter: u32,
    header: String,
    text: String,
    ciphertext: String,
    tag: String,
}

#[derive(Deserialize)]
struct OaepVector {
    by: String,
    key: String,
    label: String,
    block: String,
}

#[derive(Deserialize)]
struct PssVector {
    by: String,
    message: String,
    signature: String,
}

#[derive(Deserialize)]
struct SealedFileVector {
    owner: String,
    server: String,
    key: String,
    file: String,
    text: String,
}

#[derive(Deserialize)]
struct KeyFileVector {
    owner: String,
    password: String,
    logins: Vec<KeyFileLogin>,
    text: String,
}

#[derive(Deserialize)]
struct KeyFileLogin {
    salt: String,
    rounds: u32,
}

#[derive(Deserialize)]
struct CertificateVector {
    owner: String,
    created: u64,
    signed: String,
    signature: String,
}

#[derive(Deserialize)]
struct LoginVector {
    name: String,
    password: String,
    exporter: String,
    password_key: String,
    answered: String,
    proof_signed: String,
    register: String,
    challenge: String,
    response: String,
}

#[derive(Deserialize)]
struct PasswordChangeVector {
    name: String,
    old_password: String,
    new_password: String,
    exporter: String,
    answered: String,
    signed: String,
    challenge: String,
    change: String,
}

#[derive(Deserialize)]
struct ResumptionVector {
    name: String,
    token: String,
    exporter: String,
    proven: String,
    challenge: String,
    resume: String,
}

#[derive(Deserialize)]
struct FakeSaltVector {
    name: String,
    secret: String,
    salt: String,
}

#[derive(Deserialize)]
struct SafetyNumberVector {
    names: Vec<String>,
    fingerprints: Vec<String>,
    number: String,
}

#[derive(Deserialize)]
struct EnvelopeVector {
    what: String,
    members: Vec<String>,
    text: String,
    plaintext: String,
    message_key: String,
    commitment: String,
    header: String,
    oaep_label: String,
    padded: String,
    signed: String,
    signed_sha256: String,
    line: String,
}

fn vectors() -> Vectors {
    json::from_str(include_str!("../vectors/vectors.json")).expect("make.py writes every field")
}

pub fn unhex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("ASCII"));
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal")).collect()
}

fn fixed<const N: usize>(digits: &str) -> [u8; N] {
    unhex(digits).try_into().expect("the right length")
}

fn key(digits: &str) -> Key {
    Key::new(fixed(digits))
}

fn name(text: &str) -> Username {
    text.parse().expect("a name")
}

/// Copies of `bytes`, each with the lowest bit of a different byte flipped.
fn flips<const N: usize>(bytes: &[u8; N]) -> impl Iterator<Item = [u8; N]> {
    (0..N).map(|i| {
        let mut flipped = *bytes;
        flipped[i] ^= 1;
        flipped
    })
}

impl Vectors {
    fn identity(&self) -> IdentityKey {
        IdentityKey::from_pkcs8(&unhex(&self.identity.pkcs8)).expect("a key")
    }

    fn identity_public(&self) -> IdentityPublicKey {
        IdentityPublicKey::parse(&unhex(&self.identity.spki)).expect("a key")
    }

    fn session(&self) -> SessionKey {
        SessionKey::from_pkcs8(&unhex(&self.session.pkcs8)).expect("a key")
    }

    fn session_public(&self) -> SessionPublicKey {
        SessionPublicKey::parse(&unhex(&self.session.spki)).expect("a key")
    }

    fn certificate(&self) -> SessionCertificate {
        let CertificateVector { created, signature, .. } = &self.certificate;
        let (session_key, certificate) = (Bytes(self.session_public().spki()), Fixed(fixed(signature)));
        SessionCertificate { session_key, created: *created, certificate }
    }
}

/// PROTOCOL#der, PROTOCOL#fingerprint.
#[test]
fn keys_and_fingerprints_match_another_implementation() {
    let v = vectors();
    let (identity, session) = (v.identity(), v.session());
    assert_eq!(identity.public().spki(), unhex(&v.identity.spki));
    assert_eq!(identity.public().to_pem(), v.identity.pem);
    assert_eq!(session.public().spki(), unhex(&v.session.spki));
    let from_pem = IdentityPublicKey::parse_pem(&v.identity.pem).expect("PEM");
    for (fingerprint, vector) in [
        (identity.public().fingerprint(), &v.identity),
        (from_pem.fingerprint(), &v.identity),
        (session.fingerprint(), &v.session),
    ] {
        assert_eq!(fingerprint.to_string(), vector.fingerprint);
        assert_eq!(fingerprint.key_id(), fixed(&vector.short));
        assert_eq!(vector.fingerprint.parse(), Ok(fingerprint));
    }
    assert_ne!(from_pem.fingerprint(), session.fingerprint());
}

/// PROTOCOL#password, PROTOCOL#password-forms.
#[test]
fn password_forms_agree_with_another_implementation() {
    for v in vectors().passwords {
        let password = Password::new(v.typed.clone());
        let forms: Vec<Vec<u8>> = password.forms().map(|form| form.expose().into()).collect();
        assert_eq!(forms, v.forms.iter().map(|form| unhex(form)).collect::<Vec<_>>(), "{}", v.typed);
        assert_eq!(password.expose(), forms[0]);
    }
}

/// PROTOCOL#primitives.
#[test]
fn pbkdf2_agrees_with_other_implementations() {
    for v in vectors().pbkdf2 {
        let derive = |password: &str, salt: &[u8], rounds: u32| {
            primitives::pbkdf2(&Password::new(password.into()), salt, rounds)
        };
        let (salt, expected) = (unhex(&v.salt), key(&v.key));
        assert_eq!(derive(&v.password, &salt, v.rounds), expected);
        let mut flipped = salt.clone();
        flipped[0] ^= 1;
        assert_ne!(derive(&v.password, &flipped, v.rounds), expected);
        assert_ne!(derive(&v.password.to_uppercase(), &salt, v.rounds), expected);
        assert_ne!(derive(&v.password, &salt, v.rounds + 1), expected);
    }
}

/// PROTOCOL#primitives.
#[test]
fn hmac_agrees_with_the_rfc_and_other_implementations() {
    for v in vectors().hmac {
        let (key, message, mac) = (key(&v.key), unhex(&v.message), fixed::<32>(&v.mac));
        assert_eq!(primitives::hmac(&key, &message), mac, "{}", v.source);
        assert!(primitives::hmac_matches(&key, &message, &mac));
        assert!(flips(&mac).all(|flipped| !primitives::hmac_matches(&key, &message, &flipped)));
        assert!(flips(key.expose()).all(|flipped| primitives::hmac(&Key::new(flipped), &message) != mac));
        for i in 0..message.len() {
            let mut flipped = message.clone();
            flipped[i] ^= 1;
            assert_ne!(primitives::hmac(&key, &flipped), mac);
        }
        assert!(!primitives::hmac_matches(&key, &message, &mac[..31]));
    }
}

/// The inputs of a decryption.
#[derive(Clone)]
struct Aead {
    key: [u8; 32],
    nonce: [u8; 12],
    counter: u32,
    header: Vec<u8>,
    ciphertext: Vec<u8>,
    tag: [u8; 16],
}

impl Aead {
    fn new(v: &AeadVector) -> Aead {
        Aead {
            key: fixed(&v.key),
            nonce: fixed(&v.nonce),
            counter: v.counter,
            header: unhex(&v.header),
            ciphertext: unhex(&v.ciphertext),
            tag: fixed(&v.tag),
        }
    }

    fn eax(&self) -> Result<Vec<u8>, CryptoError> {
        let (key, mut text) = (Key::new(self.key), self.ciphertext.clone());
        primitives::eax_open(&key, &self.nonce, self.counter, &self.header, &mut text, &self.tag)?;
        Ok(text)
    }

    fn gcm(&self) -> Result<Vec<u8>, CryptoError> {
        let (key, mut text) = (Key::new(self.key), self.ciphertext.clone());
        primitives::gcm_open(&key, &self.nonce, &self.header, &mut text, &self.tag)?;
        Ok(text)
    }

    /// Copies of the inputs, each with one bit of a different byte flipped.
    fn all_flips(&self) -> Vec<Aead> {
        let mut all = Vec::new();
        let mut flip = |length: usize, change: fn(&mut Aead, usize)| {
            for i in 0..length {
                let mut flipped = self.clone();
                change(&mut flipped, i);
                all.push(flipped);
            }
        };
        flip(32, |aead, i| aead.key[i] ^= 1);
        flip(12, |aead, i| aead.nonce[i] ^= 1);
        flip(16, |aead, i| aead.tag[i] ^= 1);
        flip(self.header.len(), |aead, i| aead.header[i] ^= 1);
        flip(self.ciphertext.len(), |aead, i| aead.ciphertext[i] ^= 1);
        all
    }
}

/// PROTOCOL#primitives, PROTOCOL#ciphertext.
#[test]
fn eax_with_its_counter_agrees_with_pycryptodome() {
    for v in vectors().eax {
        let (aead, text) = (Aead::new(&v), unhex(&v.text));
        assert_eq!(aead.eax().expect("opens"), text);
        let mut sealed = text.clone();
        let tag =
            primitives::eax_seal(&Key::new(aead.key), &aead.nonce, aead.counter, &aead.header, &mut sealed);
        assert_eq!((sealed, tag), (aead.ciphertext.clone(), aead.tag));
        for flipped in aead.all_flips() {
            assert_eq!(flipped.eax(), Err(CryptoError::BadCiphertext));
        }
        let other_counter = Aead { counter: aead.counter ^ 1, ..aead };
        assert_eq!(other_counter.eax(), Err(CryptoError::BadCiphertext));
    }
}

/// PROTOCOL#primitives.
#[test]
fn gcm_agrees_with_pycryptodome() {
    for v in vectors().gcm {
        let (aead, text) = (Aead::new(&v), unhex(&v.text));
        assert_eq!(aead.gcm().expect("opens"), text);
        let mut sealed = text.clone();
        let tag = primitives::gcm_seal(&Key::new(aead.key), &aead.nonce, &aead.header, &mut sealed);
        assert_eq!((sealed, tag), (aead.ciphertext.clone(), aead.tag));
        for flipped in aead.all_flips() {
            assert_eq!(flipped.gcm(), Err(CryptoError::BadCiphertext));
        }
    }
}

/// PROTOCOL#primitives.
#[test]
fn keys_wrapped_by_other_implementations_unwrap() {
    let v = vectors();
    let session = v.session();
    for vector in &v.oaep {
        let (label, block) = (fixed(&vector.label), fixed(&vector.block));
        let unwrapped = session.unwrap(&block, label).expect("unwraps");
        assert_eq!(*unwrapped, unhex(&vector.key), "{}", vector.by);
        for flipped in flips(&block).step_by(5) {
            assert_eq!(session.unwrap(&flipped, label), Err(CryptoError::BadCiphertext));
        }
        for flipped in flips(&label) {
            assert_eq!(session.unwrap(&block, flipped), Err(CryptoError::BadCiphertext));
        }
    }
}

/// PROTOCOL#primitives.
#[test]
fn signatures_by_other_implementations_verify() {
    let v = vectors();
    let (identity, other_key) = (v.identity_public(), IdentityKey::generate());
    for vector in &v.pss {
        let (message, signature) = (unhex(&vector.message), fixed(&vector.signature));
        assert_eq!(identity.verify(&message, &signature), Ok(()), "{}", vector.by);
        for flipped in flips(&signature) {
            assert_eq!(identity.verify(&message, &flipped), Err(CryptoError::BadSignature));
        }
        for i in 0..message.len() {
            let mut flipped = message.clone();
            flipped[i] ^= 1;
            assert_eq!(identity.verify(&flipped, &signature), Err(CryptoError::BadSignature));
        }
        assert_eq!(other_key.public().verify(&message, &signature), Err(CryptoError::BadSignature));
    }
}

/// Options of a client that keeps messages of `server`.
fn options_of(home: &Folder, server: &str) -> Options {
    let (host, port) = server.split_once(':').expect("an address");
    let data = home.0.to_str().expect("UTF-8");
    let words = ["--keep-history", "--data-dir", data, "--host", host, "--port", port];
    match options::parse(words.map(Into::into)) {
        Ok(Request::Run(options)) => *options,
        _ => panic!("options"),
    }
}

/// PROTOCOL#mailbox-file-form, PROTOCOL#mailbox-file-key, PROTOCOL#mailbox-file-record.
#[test]
fn mailbox_file_made_by_another_implementation_loads() {
    let (v, home) = (vectors(), Folder::new());
    let SealedFileVector { owner, server, key: documented, file, text } = &v.mailbox_file;
    let (identity, owner) = (v.identity(), name(owner));
    assert_eq!(identity.mailbox_file_key(&owner, server), key(documented));
    let options = options_of(&home, server);
    fs::create_dir(home.path("mailbox")).expect("a folder");
    let load = |text: &str, notices: &mut Vec<String>| {
        fs::write(home.path("mailbox").join(file), text).expect("written");
        let mut mailbox = MailboxFile::new(&options, &owner, &identity);
        mailbox.load(notices).expect("loads");
        mailbox
    };
    let mut notices = Vec::new();
    let mailbox = load(text, &mut notices);
    assert!(notices.is_empty(), "{notices:?}");
    let keys: Vec<_> = mailbox.keys().map(|key| (key.key.fingerprint(), key.created)).collect();
    assert_eq!(keys, [(v.session().fingerprint(), 1_800_000_000_000)]);
    for (from, session, sequence, id, is_shown) in
        [("bob", 0x11, 1, 0x21, true), ("Carol-3", 0x12, (1 << 53) + 1, 0x22, false)]
    {
        let highest = mailbox.sequence(keys[0].0, &name(from), Fingerprint([session; 32]));
        assert_eq!(highest, Some(sequence), "{from}");
        assert_eq!(mailbox.recorded(&name(from), &[id; 32]), Some(is_shown), "{from}");
    }
    drop(mailbox);
    for field in ["nonce", "data", "tag"] {
        let mut notices = Vec::new();
        assert_eq!(load(&altered(text, field), &mut notices).keys().count(), 0);
        assert!(notices.concat().contains("line 1 is damaged"), "{field}: {notices:?}");
    }
}

/// PROTOCOL#history-file, PROTOCOL#history-key, PROTOCOL#history-chain, PROTOCOL#history-record.
#[test]
fn history_made_by_another_implementation_loads() {
    let (v, home) = (vectors(), Folder::new());
    let SealedFileVector { owner, server, key: documented, file, text } = &v.history;
    let (identity, owner) = (v.identity(), name(owner));
    assert_eq!(identity.history_key(&owner, server), key(documented));
    let options = options_of(&home, server);
    fs::create_dir(home.path("history")).expect("a folder");
    fs::write(home.path("history").join(file), text).expect("written");
    let mut history = History::new(&options, &owner, &identity);
    let loaded = history.load(&mut Vec::new()).expect("loads");
    let said = |time, from, to, text: &str| Message { time, from: name(from), to, text: text.into() };
    let expected = [
        said(1_800_000_000_000, "alice", Audience::Everyone, "to everyone"),
        said(1_800_000_000_001, "bob", Audience::Private(name("alice")), "@alice é\n2"),
        said(1_800_000_000_002, "alice", Audience::Room(name("bob").into()), &"x".repeat(300)),
        said(1_800_000_000_003, "bob", room(&["alice", "carol"]), "three"),
    ];
    assert_eq!(loaded, expected);
    drop(history);
    for field in ["nonce", "data", "tag"] {
        fs::write(home.path("history").join(file), altered(text, field)).expect("written");
        let error =
            History::new(&options, &owner, &identity).load(&mut Vec::new()).expect_err(field).to_string();
        assert!(error.contains("line 1 is damaged"), "{field}: {error}");
    }
}

/// A JSON text in which the base64 of `field` begins with another character.
fn altered(text: &str, field: &str) -> String {
    let start = format!("\"{field}\": \"");
    let at = text.find(&start).expect("the field") + start.len();
    let other = if text.as_bytes()[at] == b'A' { "B" } else { "A" };
    format!("{}{other}{}", &text[..at], &text[at + 1..])
}

/// PROTOCOL#key-file-form.
#[test]
fn key_file_made_by_another_implementation_opens() {
    let v = vectors();
    let KeyFileVector { owner, password, logins, text } = &v.key_file;
    let open = |text: &str, owner: &str, password: &str| {
        let opened = key_file::open(text.as_bytes(), &name(owner), &Password::new(password.into()));
        opened.map(|key| key.public().fingerprint())
    };
    assert_eq!(open(text, owner, password), Ok(v.identity_public().fingerprint()));
    let as_login = |login: &KeyFileLogin| Login { salt: Fixed(fixed(&login.salt)), rounds: login.rounds };
    let logins: Vec<Login> = logins.iter().map(as_login).collect();
    assert_eq!(key_file::logins(text.as_bytes()), Ok(logins));
    for field in ["salt", "nonce", "ciphertext", "tag"] {
        let altered = altered(text, field);
        assert_eq!(open(&altered, owner, password), Err(KeyFileError::WrongPassword), "{field}");
    }
    for (from, to) in [("\"version\": 1", "\"version\": 2"), ("PBKDF2", "PBKDF1"), ("AES-256", "AES-128")] {
        assert_eq!(open(&text.replace(from, to), owner, password), Err(KeyFileError::Unsupported), "{to}");
    }
    let rounds = text.replacen("100000", "100001", 1);
    assert_eq!(open(&rounds, owner, password), Err(KeyFileError::WrongPassword));
    assert_eq!(open(text, "alicf", password), Err(KeyFileError::WrongPassword));
    assert_eq!(open(text, owner, "correct horsf"), Err(KeyFileError::WrongPassword));
}

/// PROTOCOL#session-certificate.
#[test]
fn session_certificate_of_another_implementation_verifies() {
    let v = vectors();
    let CertificateVector { owner, created, signed, .. } = &v.certificate;
    let (owner, identity, certificate) = (name(owner), v.identity_public(), v.certificate());
    let key = certificate.verify(&owner, &identity, *created).expect("a certificate");
    assert_eq!(key.fingerprint(), v.session_public().fingerprint());
    let ours = v.identity().certify(&owner, &v.session(), *created);
    assert_eq!(identity.verify(&unhex(signed), &ours.certificate.0), Ok(()), "we sign the same bytes");

    let refused = |certificate: &SessionCertificate, owner: &Username| {
        let verdict = certificate.verify(owner, &identity, *created);
        assert_eq!(verdict.err(), Some(CryptoError::BadSignature));
    };
    for flipped in flips(&certificate.certificate.0) {
        refused(&SessionCertificate { certificate: Fixed(flipped), ..certificate.clone() }, &owner);
    }
    refused(&SessionCertificate { created: created ^ 1, ..certificate.clone() }, &owner);
    let session_key = Bytes(v.identity_public().spki());
    refused(&SessionCertificate { session_key, ..certificate.clone() }, &owner);
    refused(&certificate, &name("alicf"));
}

/// PROTOCOL#session-certificate, PROTOCOL#times.
#[test]
fn session_certificate_is_valid_from_minus_2_to_26_hours() {
    let v = vectors();
    let (owner, created, certificate) = (name(&v.certificate.owner), v.certificate.created, v.certificate());
    let hour = 3_600_000;
    let verdict = |now| certificate.verify(&owner, &v.identity_public(), now).map(drop);
    for now in [created - 2 * hour, created + 26 * hour] {
        assert_eq!(verdict(now), Ok(()));
    }
    for now in [0, created - 2 * hour - 1, created + 26 * hour + 1, u64::MAX] {
        assert_eq!(verdict(now), Err(CryptoError::StaleCertificate));
    }
}

/// PROTOCOL#mailbox-certificate, PROTOCOL#labels.
#[test]
fn mailbox_certificate_of_another_implementation_verifies() {
    let v = vectors();
    let CertificateVector { owner, created, signed, signature } = &v.mailbox_certificate;
    let (owner, identity, created) = (name(owner), v.identity_public(), *created);
    let mailbox_key = Bytes(v.session_public().spki());
    let certificate = MailboxCertificate { mailbox_key, created, certificate: Fixed(fixed(signature)) };
    let verdict = |certificate: &MailboxCertificate, owner: &Username, now: u64| {
        certificate.verify(owner, &identity, now).map(|key| key.fingerprint())
    };
    let key = v.session_public().fingerprint();
    assert_eq!((verdict(&certificate, &owner, created), certificate.key_id()), (Ok(key), key.key_id()));
    let ours = v.identity().certify_mailbox(&owner, &v.session(), created);
    assert_eq!(identity.verify(&unhex(signed), &ours.certificate.0), Ok(()), "we sign the same bytes");
    let bad = Err(CryptoError::BadSignature);
    for flipped in flips(&certificate.certificate.0) {
        let flipped = MailboxCertificate { certificate: Fixed(flipped), ..certificate.clone() };
        assert_eq!(verdict(&flipped, &owner, created), bad);
    }
    assert_eq!(verdict(&certificate, &name("alicf"), created), bad);
    let other = MailboxCertificate { created: created ^ 1, ..certificate.clone() };
    assert_eq!(verdict(&other, &owner, created), bad);
    // Neither certificate serves as the other.
    let session = v.certificate();
    let of_session = MailboxCertificate { certificate: session.certificate, ..certificate.clone() };
    assert_eq!(verdict(&of_session, &owner, created), bad);
    let of_mailbox = SessionCertificate { certificate: certificate.certificate, ..session };
    assert_eq!(of_mailbox.verify(&owner, &identity, created).err(), Some(CryptoError::BadSignature));
    let hour = 3_600_000;
    for (now, valid) in [
        (created - 2 * hour, true),
        (created + 30 * 24 * hour, true),
        (created - 2 * hour - 1, false),
        (created + 30 * 24 * hour + 1, false),
    ] {
        let expected = if valid { Ok(key) } else { Err(CryptoError::StaleCertificate) };
        assert_eq!(verdict(&certificate, &owner, now), expected);
    }
}

fn challenge(line: &str) -> Challenge {
    match ServerMessage::decode(line.as_bytes()) {
        Ok(ServerMessage::Challenge(challenge)) => challenge,
        _ => panic!("not a challenge"),
    }
}

fn response(v: &LoginVector) -> ChallengeResponse {
    match ClientMessage::decode(v.response.as_bytes()) {
        Ok(ClientMessage::ChallengeResponse(response)) => *response,
        _ => panic!("not a response"),
    }
}

fn register(v: &LoginVector) -> Register {
    match ClientMessage::decode(v.register.as_bytes()) {
        Ok(ClientMessage::Register(register)) => register,
        _ => panic!("not a registration"),
    }
}

/// PROTOCOL#challenge, PROTOCOL#challenge_response, PROTOCOL#response, PROTOCOL#login-proof.
#[test]
fn login_response_matches_another_implementation() {
    let v = vectors();
    let (identity, session) = (v.identity(), v.session());
    for login in &v.logins {
        let (name, password_key) = (name(&login.name), key(&login.password_key));
        let (exporter, signed) = (unhex(&login.exporter), unhex(&login.proof_signed));
        let theirs = response(login);
        let certificate = || SessionCertificate {
            session_key: Bytes(v.session_public().spki()),
            created: theirs.created,
            certificate: theirs.certificate,
        };
        let answer = |challenge: &Challenge, exporter: &[u8], password: &str| {
            let key =
                PasswordKey::derive(&Password::new(password.into()), challenge).expect("acceptable rounds");
            key.log_in(&name, challenge, exporter, &identity, (&session, certificate()))
        };
        let proves = |response: &ChallengeResponse| identity.public().verify(&signed, &response.proof.0);
        let challenge = || challenge(&login.challenge);
        let ours = answer(&challenge(), &exporter, &login.password);
        assert_eq!(ours.response.0, theirs.response.0);
        assert!(ours.session_key == theirs.session_key);
        assert_eq!(proves(&theirs), Ok(()));
        assert_eq!(proves(&ours), Ok(()), "we sign the same bytes");

        let answered = unhex(&login.answered);
        let matches = |mac: &[u8]| primitives::hmac_matches(&password_key, &answered, mac);
        assert!(matches(&theirs.response.0));
        assert!(flips(&theirs.response.0).all(|flipped| !matches(&flipped)));
        let certified = certificate().verify(&name, identity.public(), theirs.created);
        assert_eq!(certified.map(drop), Ok(()));

        let mut other = challenge();
        other.nonce.0[31] ^= 1;
        let other = answer(&other, &exporter, &login.password);
        assert!(other.response.0 != theirs.response.0 && proves(&other).is_err());
        let other = answer(&challenge(), b"another channel", &login.password);
        assert!(other.response.0 != theirs.response.0 && proves(&other).is_err());
        let other = answer(&challenge(), &exporter, "correct horsf");
        assert!(other.response.0 != theirs.response.0 && proves(&other).is_ok());
    }
}

/// PROTOCOL#register.
#[test]
fn password_change_matches_another_implementation() {
    let v = vectors();
    let identity = v.identity();
    for change in &v.password_changes {
        let Ok(ClientMessage::PasswordChange(theirs)) = ClientMessage::decode(change.change.as_bytes())
        else {
            panic!("not a change")
        };
        let challenge = || challenge(&change.challenge);
        let (exporter, signed) = (unhex(&change.exporter), unhex(&change.signed));
        let [old, new] = [&change.old_password, &change.new_password].map(|text| Password::new(text.clone()));
        // The new password under the salt that the other implementation has chosen.
        let chosen = Challenge { salt: theirs.salt, rounds: theirs.rounds, ..challenge() };
        let new = PasswordKey::derive(&new, &chosen).expect("the rounds are acceptable");
        let answer = |exporter: &[u8]| {
            let answer = new.replace(&name(&change.name), &challenge(), exporter, &old, &identity);
            answer.expect("the rounds are acceptable")
        };
        let proves = |change: &PasswordChange| identity.public().verify(&signed, &change.proof.0);
        let ours = answer(&exporter);
        assert_eq!(ours.response.0, theirs.response.0);
        let old_key = primitives::pbkdf2(&old, &challenge().salt.0, challenge().rounds);
        assert!(primitives::hmac_matches(&old_key, &unhex(&change.answered), &theirs.response.0));
        assert_eq!(ours.password_key, theirs.password_key);
        assert_eq!(proves(&theirs), Ok(()));
        assert_eq!(proves(&ours), Ok(()), "we sign the same bytes");
        assert!(proves(&answer(b"another channel")).is_err());
    }
}

#[test]
fn resumption_proof_matches_another_implementation() {
    for v in vectors().resumptions {
        let (Ok(ClientMessage::Resume(theirs)), Ok(ServerMessage::ResumeChallenge(challenge))) =
            (ClientMessage::decode(v.resume.as_bytes()), ServerMessage::decode(v.challenge.as_bytes()))
        else {
            panic!("not a resumption")
        };
        let (name, token, exporter) = (name(&v.name), key(&v.token), unhex(&v.exporter));
        let answer =
            |exporter: &[u8], received| auth::resume(&name, &challenge, exporter, &token, received).proof.0;
        assert_eq!(answer(&exporter, theirs.received), theirs.proof.0);
        assert_ne!(answer(&exporter, theirs.received + 1), theirs.proof.0);
        assert_ne!(answer(b"another channel", theirs.received), theirs.proof.0);
        let proves = |mac: &[u8]| primitives::hmac_matches(&token, &unhex(&v.proven), mac);
        assert!(proves(&theirs.proof.0));
        assert!(flips(&theirs.proof.0).all(|flipped| !proves(&flipped)));
    }
}

#[test]
fn registration_made_by_another_implementation_is_accepted() {
    let v = vectors();
    for login in &v.logins {
        let (account, identity) = auth::accept_registration(register(login)).expect("valid");
        assert_eq!(account.name.as_str(), login.name);
        assert_eq!(account.password_key, key(&login.password_key));
        assert_eq!(account.salt, challenge(&login.challenge).salt);
        assert_eq!(identity.fingerprint(), v.identity_public().fingerprint());
        assert_eq!(account.identity, identity.fingerprint());
    }
}

/// PROTOCOL#unknown-name.
#[test]
fn salt_of_an_unknown_name_matches_its_vector() {
    let v = vectors();
    let salt = |name: &str, secret: [u8; 32]| {
        let request = LoginRequest {
            version: VERSION,
            username: name.parse().expect("a name"),
            public_key: register(&v.logins[0]).public_key,
        };
        let (_, challenge) = PendingLogin::new(request, None, &Key::new(secret)).expect("a challenge");
        challenge.salt.0
    };
    let (secret, expected) = (fixed(&v.fake_salt.secret), fixed::<32>(&v.fake_salt.salt));
    assert_eq!(salt(&v.fake_salt.name, secret), expected);
    let lower = v.fake_salt.name.to_lowercase();
    assert_ne!(salt(&lower, secret), expected, "another letter case is another name");
    assert_ne!(salt("nobodz", secret), expected);
    assert!(flips(&secret).all(|flipped| salt(&v.fake_salt.name, flipped) != expected));
}

/// PROTOCOL#safety-digits.
#[test]
fn safety_number_matches_another_implementation() {
    let v = vectors().safety_number;
    let names: Vec<Username> = v.names.iter().map(|text| name(text)).collect();
    let prints: Vec<[u8; 32]> = v.fingerprints.iter().map(|digits| fixed(digits)).collect();
    let number = |one: (&Username, [u8; 32]), other: (&Username, [u8; 32])| {
        safety_number((one.0, Fingerprint(one.1)), (other.0, Fingerprint(other.1)))
    };
    let (one, other) = ((&names[0], prints[0]), (&names[1], prints[1]));
    assert_eq!(number(one, other), v.number);
    assert_eq!(number(other, one), v.number);
    assert_eq!(v.number.bytes().filter(u8::is_ascii_digit).count(), 60);
    assert!(flips(&prints[0]).all(|flipped| number((one.0, flipped), other) != v.number));
    assert!(flips(&prints[1]).all(|flipped| number(one, (other.0, flipped)) != v.number));
    assert_ne!(number((&name("alicf"), prints[0]), other), v.number);
}

/// The envelope and the wrapped key of an `encrypted_message` line.
fn envelope(line: &str) -> (Envelope, [u8; WRAPPED_BYTES]) {
    let Ok(ServerMessage::EncryptedMessage(message)) = ServerMessage::decode(line.as_bytes()) else {
        panic!("not an encrypted_message");
    };
    let key = message.key.bytes();
    (message.envelope, key)
}

/// The room of the author and these users.
fn room(others: &[&str]) -> Audience {
    Audience::Room(Partners::new(others.iter().map(|other| name(other))).expect("some"))
}

/// PROTOCOL#encrypted_message, PROTOCOL#members.
#[test]
fn envelope_made_by_another_implementation_opens() {
    let v = vectors();
    let (identity, session) = (v.identity_public(), v.session());
    for vector in &v.envelopes {
        let (envelope, wrapped) = envelope(&vector.line);
        let verified = envelope.verify(&identity).expect(&vector.what);
        let mut text = verified.open(&session, &wrapped).expect(&vector.what);
        assert_eq!(*text, unhex(&vector.plaintext), "{}", vector.what);
        let header = verified.header();
        let to = Audience::take(header, &mut text).expect(&vector.what);
        assert_eq!(*text, unhex(&vector.text), "{}", vector.what);
        if !vector.members.is_empty() {
            let others = vector.members.iter().map(String::as_str).filter(|name| *name != "alice");
            assert_eq!(to, room(&others.collect::<Vec<_>>()));
            let text = String::from_utf8(text.to_vec()).expect("text");
            assert_eq!(*to.plaintext(&header.from, &text), unhex(&vector.plaintext), "{}", vector.what);
        }
    }
}

/// PROTOCOL#check-members.
#[test]
fn wrong_list_of_members_made_elsewhere_is_refused() {
    let v = vectors();
    let (identity, session) = (v.identity_public(), v.session());
    for vector in &v.wrong_lists {
        let (envelope, wrapped) = envelope(&vector.line);
        let verified = envelope.verify(&identity).expect(&vector.what);
        let mut text = verified.open(&session, &wrapped).expect(&vector.what);
        assert_eq!(Audience::take(verified.header(), &mut text), None, "{}", vector.what);
    }
    assert_eq!(v.wrong_lists.len(), 10);
}

/// PROTOCOL#header, PROTOCOL#commitment, PROTOCOL#padding, PROTOCOL#ciphertext, PROTOCOL#signature,
/// PROTOCOL#wrapped-key.
#[test]
fn each_intermediate_value_of_an_envelope_matches_its_vector() {
    let v = vectors();
    let (identity, session) = (v.identity_public(), v.session());
    for vector in &v.envelopes {
        let (Envelope { body, .. }, wrapped) = envelope(&vector.line);
        let (header, signed) = (unhex(&vector.header), unhex(&vector.signed));
        let message_key = key(&vector.message_key);
        assert_eq!(sha256(&header), fixed(&vector.oaep_label));
        assert_eq!(
            session
                .unwrap(wrapped.last_chunk().expect("a block"), fixed(&vector.oaep_label))
                .expect("unwraps")
                .as_slice(),
            message_key.expose()
        );
        assert_eq!(wrapped[..8], session.fingerprint().0[..8]);
        assert_eq!(primitives::hmac(&message_key, label::KEY_COMMITMENT.as_bytes()), body.commitment.0);
        assert_eq!(body.commitment.0, fixed::<32>(&vector.commitment));
        let mut padded = unhex(&vector.padded);
        let tag = primitives::eax_seal(&message_key, &body.nonce.0, 0, &header, &mut padded);
        assert_eq!((padded, tag), (body.ciphertext.0, body.tag.0));
        assert_eq!(sha256(&signed), fixed(&vector.signed_sha256));
        assert_eq!(identity.verify(&signed, &body.signature.0), Ok(()));
    }
}

/// PROTOCOL#header, PROTOCOL#signature, PROTOCOL#message-id.
#[test]
fn envelope_with_one_flipped_bit_is_refused() {
    let v = vectors();
    let (identity, session) = (v.identity_public(), v.session());
    for vector in &v.envelopes {
        let (whole, wrapped) = envelope(&vector.line);
        let changed = |change: &dyn Fn(&mut Envelope)| {
            let mut envelope = whole.clone();
            change(&mut envelope);
            envelope.verify(&identity).err()
        };
        let refused = |change: &dyn Fn(&mut Envelope)| {
            assert_eq!(changed(change), Some(CryptoError::BadSignature), "{}", vector.what);
        };
        assert_eq!(changed(&|_| ()), None);
        for i in 0..32 {
            refused(&|e| e.header.session.0[i] ^= 1);
            refused(&|e| e.body.commitment.0[i] ^= 1);
            assert_eq!(changed(&|e| e.header.identity.0[i] ^= 1), Some(CryptoError::BadEnvelope));
        }
        for bit in 0..64 {
            refused(&|e| e.header.sequence ^= 1 << bit);
            refused(&|e| e.header.time ^= 1 << bit);
        }
        refused(&|e| e.header.again = Some(Fixed([7; 32])));
        let verified = whole.verify(&identity).expect("it is genuine");
        let first = whole.header.again.map_or(fixed(&vector.oaep_label), |id| id.0);
        assert_eq!(verified.id(), first);
        (0..12).for_each(|i| refused(&|e| e.body.nonce.0[i] ^= 1));
        (0..16).for_each(|i| refused(&|e| e.body.tag.0[i] ^= 1));
        (0..256).for_each(|i| refused(&|e| e.body.signature.0[i] ^= 1));
        (0..whole.body.ciphertext.0.len()).for_each(|i| refused(&|e| e.body.ciphertext.0[i] ^= 1));
        refused(&|e| e.header.from = name("alicf"));
        // A header that contradicts itself is refused before its signature is checked.
        let contradicts = |change: &dyn Fn(&mut Envelope)| {
            let error = changed(change).expect(&vector.what);
            assert!(
                [CryptoError::BadSignature, CryptoError::BadEnvelope].contains(&error),
                "{}",
                vector.what
            );
        };
        for kind in [Kind::Message, Kind::RoomOpened, Kind::RoomLeft] {
            if kind != whole.header.kind {
                contradicts(&|e| e.header.kind = kind);
            }
        }
        let (to, moved) = (session.fingerprint(), Fingerprint([7; 32]));
        for recipient in
            [None, Some((name("Bob-2"), to)), Some((name("Bob-3"), to)), Some((name("Bob-2"), moved))]
        {
            let (recipient, recipient_key) = recipient.unzip();
            for scope in [Scope::Broadcast, Scope::Private, Scope::Room] {
                let is_same =
                    whole.header.recipient == recipient && whole.header.recipient_key == recipient_key;
                if scope != whole.header.scope || !is_same {
                    contradicts(&|e| {
                        (e.header.scope, e.header.recipient, e.header.recipient_key) =
                            (scope, recipient.clone(), recipient_key);
                    });
                }
            }
        }
        let verified = whole.verify(&identity).expect("it is genuine");
        assert!(verified.open(&session, &wrapped).is_ok());
        for flipped in flips(&wrapped).take(64).chain(flips(&wrapped).skip(64).step_by(16)) {
            assert_eq!(verified.open(&session, &flipped).err(), Some(CryptoError::BadCiphertext));
        }
    }
}

/// PROTOCOL#check-open, PROTOCOL#commitment, PROTOCOL#wrapped-key, PROTOCOL#padding.
#[test]
fn correctly_signed_envelope_with_a_wrong_step_does_not_open() {
    let v = vectors();
    let (identity, session) = (v.identity_public(), v.session());
    for vector in &v.wrong_envelopes {
        let (envelope, wrapped) = envelope(&vector.line);
        let verified = envelope.verify(&identity).expect(&vector.what);
        assert_eq!(
            verified.open(&session, &wrapped).err(),
            Some(CryptoError::BadCiphertext),
            "{}",
            vector.what
        );
    }
    let (mut long, _) = envelope(&v.envelopes[0].line);
    long.body.ciphertext.0 = vec![0; MAX_CIPHERTEXT + 1];
    assert_eq!(long.verify(&identity).err(), Some(CryptoError::BadEnvelope));
}

/// PROTOCOL#chunk, PROTOCOL#chunk-keys, PROTOCOL#chunk-ciphertext, PROTOCOL#chunk-mac.
#[test]
fn chunk_of_another_implementation_opens_unless_a_bit_flips() {
    let session = SessionKey::from_pkcs8(&unhex(&vectors().session.pkcs8)).expect("a key");
    for v in vectors().chunks {
        let (id, key) = (fixed(&v.transfer), key(&v.transfer_key));
        let plan = Plan { id, key, size: v.size, start: v.start };
        let payload = unhex(&v.payload);
        let opened = plan.open_group(v.start, std::slice::from_ref(&payload), &session).expect("it opens");
        assert_eq!(opened[0], unhex(&v.text));
        for at in 0..payload.len() {
            let mut altered = payload.clone();
            altered[at] ^= 1 << (at % 8);
            assert!(plan.open_group(v.start, &[altered], &session).is_err(), "byte {at}");
        }
        // The intermediate values, computed from the fields at their specified offsets.
        let (mac, nonce, tag, block) =
            (&payload[4..36], &payload[36..48], &payload[48..64], &payload[64..320]);
        let number = u64::from(v.start);
        let fields = |label| Fields::new(label).bytes(&plan.id).number(number);
        assert_eq!(sha256(&fields(label::CHUNK_KEYS).finish()), fixed(&v.oaep_label));
        assert_eq!(fields(label::CHUNK).finish(), unhex(&v.associated));
        let authenticated = fields(label::CHUNK).bytes(block).bytes(nonce).bytes(tag).finish();
        assert_eq!(primitives::hmac(&plan.key, &authenticated), mac);
        assert_eq!(mac, unhex(&v.mac));
        let keys = session.unwrap(block.try_into().expect("256"), fixed(&v.oaep_label)).expect("unwraps");
        assert_eq!(*keys, unhex(&v.chunk_key));
    }
}

/// PROTOCOL#message-key, PROTOCOL#chunk-keys.
#[test]
fn fresh_keys_and_nonces_differ_each_time() {
    let v = vectors();
    let (identity, session) = (v.identity(), v.session());
    let (Envelope { header, .. }, _) = envelope(&v.envelopes[0].line);
    let [one, other] = [(); 2].map(|()| Sealed::seal(header.clone(), &identity, b"the same").envelope.body);
    // Different commitments mean different message keys.
    assert!(one.commitment != other.commitment && one.nonce != other.nonce);
    let plan = Plan { id: [1; 16], key: Key::new([2; 32]), size: 5 * 65_536, start: 0 };
    let oaep_label = sha256(&Fields::new(label::CHUNK_KEYS).bytes(&plan.id).number(0).finish());
    let mut keys = Vec::new();
    let mut nonces = Vec::new();
    for _ in 0..2 {
        let payloads = plan.seal_group(0, session.public(), &vec![7; 5 * 65_536]);
        let block = payloads[0][64..320].try_into().expect("a block");
        let unwrapped = session.unwrap(block, oaep_label).expect("it is for this key");
        assert_eq!(unwrapped.len(), 5 * 32);
        keys.extend(unwrapped.chunks(32).map(<[u8]>::to_vec));
        nonces.extend(payloads.iter().map(|payload| payload[36..48].to_vec()));
    }
    for mut all in [keys, nonces] {
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 10);
    }
    let owner = name("alice");
    let [one, other] = [(); 2].map(|()| key_file::seal(&identity, &owner, &Password::new("secret".into())));
    for field in ["salt", "nonce", "ciphertext"] {
        let value = |text: &str| {
            let rest = text.split(&format!("\"{field}\":\"")).nth(1).expect("the field").to_string();
            rest.split('"').next().expect("its end").to_string()
        };
        assert_ne!(value(&one), value(&other), "{field}");
    }
}
