//! Envelopes, chunks, public keys, the key file.

use super::{Choices, Property, no_examples};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use miniserde::{Deserialize, json};
use secure_messenger::crypto::chunk::{self, CHUNK, Plan};
use secure_messenger::crypto::envelope::{Header, Kind, Scope, Sealed, Word};
use secure_messenger::crypto::key_file::{self, KeyFileError, Login, MAX_LOGINS};
use secure_messenger::crypto::keys::{IdentityKey, SessionKey};
use secure_messenger::crypto::primitives::{PBKDF2_MAX_ROUNDS, PBKDF2_MIN_ROUNDS};
use secure_messenger::crypto::public::{Fingerprint, IdentityPublicKey, SessionPublicKey};
use secure_messenger::crypto::secret::{Key, Password};
use secure_messenger::encoding::{Fixed, Text};
use secure_messenger::protocol::{EncryptedMessage, ServerMessage, WrappedKey};
use std::sync::LazyLock;

pub const ENVELOPES: Property = Property { name: "envelopes", holds: envelopes, examples: no_examples };
pub const CHUNKS: Property = Property { name: "chunks", holds: chunks, examples: no_examples };
pub const KEYS: Property = Property { name: "keys", holds: keys, examples: some_keys };
pub const KEY_FILE: Property = Property { name: "key_file", holds: key_file, examples: some_key_files };

/// Generated once, because RSA keys take long.
static IDENTITY: LazyLock<IdentityKey> = LazyLock::new(IdentityKey::generate);
static SESSION: LazyLock<SessionKey> = LazyLock::new(SessionKey::generate);

const TEXT: &[u8] = "two lines\nof text, sealed once: é".as_bytes();

/// One private envelope and one broadcast envelope from alice, as bob receives them.
static SEALED: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    [Scope::Private, Scope::Broadcast].map(|scope| {
        let to_one = scope == Scope::Private;
        let header = Header {
            kind: Kind::Message,
            scope,
            recipient: to_one.then(|| "bob".parse().expect("name")),
            recipient_key: to_one.then(|| SESSION.fingerprint()),
            from: "alice".parse().expect("name"),
            identity: IDENTITY.public().fingerprint(),
            session: Fingerprint([3; 32]),
            sequence: 4,
            time: 1_700_000_000_000,
            again: None,
        };
        let sealed = Sealed::seal(header, &IDENTITY, TEXT);
        let key = WrappedKey::new(&sealed.wrap_for(SESSION.public()));
        let message = EncryptedMessage { envelope: sealed.envelope, key };
        ServerMessage::EncryptedMessage(Box::new(message)).encode()
    })
});

fn decoded(line: &[u8]) -> Option<EncryptedMessage> {
    match ServerMessage::decode(line) {
        Ok(ServerMessage::EncryptedMessage(message)) => Some(*message),
        _ => None,
    }
}

/// An envelope with altered fields or an altered line either means the same or is refused.
/// PROTOCOL#header, PROTOCOL#signature, PROTOCOL#commitment, PROTOCOL#padding, PROTOCOL#wrapped-key,
/// PROTOCOL#ciphertext, PROTOCOL#check-fields, PROTOCOL#check-signature, PROTOCOL#check-open.
fn envelopes(data: &[u8]) {
    let mut choices = Choices(data);
    let line = &SEALED[choices.below(2)];
    let before = decoded(&line[..line.len() - 1]).expect("an envelope");
    let mut line = line[..line.len() - 1].to_vec();
    let mut message = decoded(&line).expect("an envelope");
    if choices.below(4) == 0 {
        while !choices.is_empty() {
            choices.edit(&mut line);
        }
        let Some(altered) = decoded(&line) else { return };
        message = altered;
    } else {
        while !choices.is_empty() {
            alter(&mut message, &mut choices);
        }
    }
    let encode = |message| text(&ServerMessage::EncryptedMessage(Box::new(message)).encode());
    let copy = EncryptedMessage { envelope: message.envelope.clone(), key: message.key.clone() };
    let same = encode(copy) == encode(before);
    let opened =
        message.envelope.verify(IDENTITY.public()).and_then(|it| it.open(&SESSION, &message.key.bytes()));
    assert_eq!(opened.ok().as_deref().map(Vec::as_slice), same.then_some(TEXT));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Alters one field.
fn alter(message: &mut EncryptedMessage, choices: &mut Choices<'_>) {
    let (wire, body) = (&mut message.envelope.header, &mut message.envelope.body);
    let names = ["alice", "bob", "Bob", "carol"];
    let kinds = ["message", "room_opened", "file_offer", "file_done", "Message", ""];
    let scopes = ["private", "room", "broadcast", "group", ""];
    match choices.below(17) {
        0 => wire.from = choices.pick(&names).parse().expect("name"),
        1 => wire.kind = Kind::read(choices.pick(&kinds)).expect("short"),
        2 => wire.kind = Word::new(&choices.text()).map_or(wire.kind, Kind::Later),
        3 => wire.scope = Scope::read(choices.pick(&scopes)).expect("short"),
        4 => wire.recipient = choices.pick(&names).parse().ok(),
        5 => (wire.recipient, wire.recipient_key) = (None, None),
        6 => wire.recipient_key = Some(SESSION.fingerprint()),
        7 => flip(&mut wire.recipient_key.get_or_insert(Fingerprint([0; 32])).0, choices),
        8 => flip(&mut wire.identity.0, choices),
        9 => flip(&mut wire.session.0, choices),
        10 => wire.sequence = wire.sequence.wrapping_add(choices.number()),
        11 if choices.below(2) == 0 => flip(&mut wire.again.get_or_insert(Fixed([0; 32])).0, choices),
        11 => wire.time ^= choices.number(),
        12 => flip(&mut body.commitment.0, choices),
        13 => flip(&mut body.nonce.0, choices),
        14 => choices.edit(&mut body.ciphertext.0),
        15 => flip(&mut body.tag.0, choices),
        // Add the modulus: the bytes differ, but the number modulo the key is the same.
        _ => match choices.below(4) {
            0 => flip(&mut body.signature.0, choices),
            1 => rewrap(message, |key| flip(key, choices)),
            2 => add_modulus(&mut body.signature.0, &IDENTITY.public().spki()),
            _ => rewrap(message, |key| {
                let block = key.last_chunk_mut().expect("behind its id");
                add_modulus(block, &SESSION.public().spki())
            }),
        },
    }
}

fn rewrap(message: &mut EncryptedMessage, change: impl FnOnce(&mut [u8])) {
    let mut key = message.key.bytes();
    change(&mut key);
    message.key = WrappedKey::new(&key);
}

fn flip(bytes: &mut [u8], choices: &mut Choices<'_>) {
    let at = choices.below(bytes.len());
    bytes[at] ^= choices.byte();
}

/// Adds a key's modulus to a number, if there is room for it.
fn add_modulus(number: &mut [u8; 256], spki: &[u8]) {
    // The last five of the 294 bytes are the exponent and its header.
    let (modulus, before) = (&spki[spki.len() - 261..spki.len() - 5], *number);
    let mut carry = 0;
    for (digit, more) in number.iter_mut().zip(modulus).rev() {
        let sum = u16::from(*digit) + u16::from(*more) + carry;
        (*digit, carry) = (sum as u8, sum >> 8);
    }
    if carry > 0 {
        *number = before;
    }
}

const FILE: usize = CHUNK + 40;

static GROUP: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| plan().seal_group(1, SESSION.public(), &[5; FILE]));

/// Two chunks, the second one short, after a chunk that was received before.
fn plan() -> Plan {
    Plan { id: [7; 16], key: Key::new([8; 32]), size: (CHUNK + FILE) as u64, start: 1 }
}

/// Payloads that were altered, moved, repeated, omitted, or made by another sender do not open.
/// PROTOCOL#chunk, PROTOCOL#chunk-keys, PROTOCOL#chunk-ciphertext, PROTOCOL#chunk-mac, PROTOCOL#chunk-order.
fn chunks(data: &[u8]) {
    let mut choices = Choices(data);
    let (mut plan, mut payloads, mut first) = (plan(), GROUP.clone(), 1);
    let mut elsewhere = false;
    while !choices.is_empty() {
        let (count, kind) = (payloads.len().max(1), choices.below(12));
        let (one, other) = (choices.below(count), choices.below(count));
        match kind {
            0..6 => {
                let Some(payload) = payloads.get_mut(one) else { continue };
                // Prefer the first bytes: most of the structure is there.
                let at = if kind < 4 { choices.below(400) } else { choices.below(65_535) };
                let length = payload.len().max(1);
                match payload.get_mut(at % length) {
                    Some(byte) => *byte ^= choices.byte(),
                    None => payload.push(choices.byte()),
                }
            }
            6 => payloads.get_mut(one).into_iter().for_each(|payload| payload.truncate(other * 300)),
            7 => payloads.get_mut(one).into_iter().for_each(|payload| choices.edit(payload)),
            8 if !payloads.is_empty() => payloads.swap(one, other),
            9 if payloads.len() < 6 => payloads.extend(GROUP.get(one).cloned()),
            10 if !payloads.is_empty() => drop(payloads.remove(one)),
            11 => {
                elsewhere = true;
                match choices.below(5) {
                    // An index within the limit of a file.
                    0 => first = (choices.number() as u32 | 1 << 31).min(u32::MAX - chunk::GROUP),
                    1 => plan.id = [6; 16],
                    2 => plan.key = Key::new([9; 32]),
                    // A shift that is not a multiple of the group.
                    3 => plan.start = 2,
                    _ => plan.size -= 1,
                }
            }
            _ => {}
        }
    }
    let same = !elsewhere && payloads == *GROUP;
    match plan.open_group(first, &payloads, &SESSION) {
        Ok(opened) => {
            assert!(same && opened.concat() == [5; FILE]);
        }
        Err(_) => assert!(!same),
    }
}

/// A public key has one encoding, and is usable with any modulus.
/// PROTOCOL#der.
fn keys(spki: &[u8]) {
    if let Ok(key) = IdentityPublicKey::parse(spki) {
        assert_eq!(key.spki(), spki);
        assert_eq!(key.fingerprint(), Fingerprint::of(spki));
        let again = IdentityPublicKey::parse_pem(&key.to_pem()).expect("its own PEM");
        assert_eq!(again.spki(), spki);
        assert!(key.verify(b"text", &[1; 256]).is_err());
        let session = SessionPublicKey::parse(spki).expect("the same rules");
        session.wrap(&[7; 160], [1; 32]);
    }
    if let Ok(text) = std::str::from_utf8(spki) {
        if let Ok(key) = IdentityPublicKey::parse_pem(text) {
            assert!(IdentityPublicKey::parse(&key.spki()).is_ok());
        }
        if let Ok(fingerprint) = text.parse::<Fingerprint>() {
            assert_eq!(fingerprint.to_string(), text.trim_end_matches('='));
        }
    }
}

fn some_keys() -> Vec<Vec<u8>> {
    let key = IDENTITY.public();
    vec![key.spki(), key.to_pem().into_bytes(), key.fingerprint().to_string().into_bytes()]
}

#[derive(Deserialize)]
struct Rounds {
    rounds: u32,
}

/// Only valid key files are accepted, and parameters out of bounds are refused before any key derivation. Parameters
/// within bounds are not tried, because each takes a second. A list of logins is within its limits, and can be read
/// again after it was written.
/// PROTOCOL#key-file-form, PROTOCOL#logins, PROTOCOL#rounds.
fn key_file(text: &[u8]) {
    if let Ok(mut logins) = key_file::logins(text) {
        assert!(logins.len() <= MAX_LOGINS);
        let login = Login { salt: Fixed([0; 32]), rounds: PBKDF2_MIN_ROUNDS };
        logins.retain(|other| other.salt != login.salt);
        logins.insert(0, login);
        logins.truncate(MAX_LOGINS);
        let written = key_file::with_logins(text, &logins);
        assert!(written.is_err() || key_file::logins(written.unwrap_or_default().as_bytes()) == Ok(logins));
    }
    let parsed = std::str::from_utf8(text).ok().and_then(|text| json::from_str::<Rounds>(text).ok());
    if parsed.is_some_and(|file| (PBKDF2_MIN_ROUNDS..=PBKDF2_MAX_ROUNDS).contains(&file.rounds)) {
        return;
    }
    let alice = "alice".parse().expect("name");
    let error = key_file::open(text, &alice, &Password::new("secret".into())).expect_err("refused");
    assert!(matches!(error, KeyFileError::Damaged | KeyFileError::Unsupported | KeyFileError::Logins));
}

fn some_key_files() -> Vec<Vec<u8>> {
    let binary = |length| BASE64_STANDARD.encode(vec![7; length]);
    let file = format!(
        concat!(
            r#"{{"version":1,"kdf":"PBKDF2-HMAC-SHA256","rounds":99999,"salt":"{}","cipher":"AES-256-GCM","#,
            r#""nonce":"{}","ciphertext":"{}","tag":"{}"}}"#
        ),
        binary(16),
        binary(12),
        binary(40),
        binary(16)
    );
    let login = format!(r#"{{"salt":"{}","rounds":600000}}"#, binary(32));
    let listed = format!(r#"{{"logins":[{login}],"version":1}}"#);
    vec![file.into_bytes(), listed.into_bytes()]
}
