//! Cases with cryptography: keys in DER, envelopes, chunks, key files. A flawed part is signed and sealed like a valid
//! one, so that only its own check can refuse it.

use super::Case;
use super::json::{Json, Style, base64, mutate_bytes, once_in, pick, raw, text, written};
use super::lines::{around, valid_name};
use crate::support::Dice;
use crate::vectors::unhex;
use miniserde::{Deserialize, json};
use rsa::pkcs8::DecodePrivateKey;
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use rsa::{BoxedUint, Oaep};
use secure_messenger::crypto::chunk::{CHUNK, Plan};
use secure_messenger::crypto::envelope::{MAX_CIPHERTEXT, MAX_TEXT, pad};
use secure_messenger::crypto::keys::{IdentityKey, SessionKey};
use secure_messenger::crypto::primitives::{self, PBKDF2_MIN_ROUNDS, sha256};
use secure_messenger::crypto::secret::{Key, Password};
use secure_messenger::crypto::{Fields, label};
use sha2::{Sha256, Sha512};
use std::sync::LazyLock;

/// The keys of the test vectors: the same in every run.
struct Keys {
    identity: IdentityKey,
    identity_pkcs8: Vec<u8>,
    session: SessionKey,
    session_pkcs8: Vec<u8>,
}

#[derive(Deserialize)]
struct Vectors {
    identity: KeyVector,
    session: KeyVector,
}

#[derive(Deserialize)]
struct KeyVector {
    pkcs8: String,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let Vectors { identity, session } =
        json::from_str(include_str!("../../vectors/vectors.json")).expect("vectors");
    let [identity_pkcs8, session_pkcs8] = [identity, session].map(|key| unhex(&key.pkcs8));
    let identity = IdentityKey::from_pkcs8(&identity_pkcs8).expect("a key");
    let session = SessionKey::from_pkcs8(&session_pkcs8).expect("a key");
    Keys { identity, identity_pkcs8, session, session_pkcs8 }
});

/// The private key of all cases.
pub fn private(pkcs8: &[u8]) -> &'static SessionKey {
    assert!(pkcs8 == KEYS.session_pkcs8, "cases have one private key");
    &KEYS.session
}

// ---- DER

/// The functions below encode one in `odd` parts wrongly; with this value, practically none.
const NEVER: u64 = 1 << 40;

/// A value with its tag and length; one in `odd` has a tag or length that DER does not allow, or a value after it.
fn tlv(dice: &Dice, odd: u64, tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len() as u64;
    let bytes = length.to_be_bytes();
    let short: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
    let mut head = match length {
        0..128 => vec![tag, length as u8],
        _ => [&[tag, 0x80 | short.len() as u8], &short[..]].concat(),
    };
    let mut end = Vec::new();
    if once_in(dice, odd) {
        match dice.below(7) {
            0 => head = [&[tag, 0x84], &bytes[4..]].concat(),
            1 => head = [&[tag, 0x83], &bytes[5..]].concat(),
            2 if length < 256 => head = vec![tag, 0x81, length as u8],
            3 => (head, end) = (vec![tag, 0x80], vec![0, 0]),
            4 => head[0] ^= 1 << dice.below(8),
            5 => end = vec![5, 0],
            _ => *head.last_mut().expect("a length") ^= 1,
        }
    }
    [head, content.to_vec(), end].concat()
}

fn integer(dice: &Dice, odd: u64, number: &[u8]) -> Vec<u8> {
    let number: Vec<u8> = number.iter().copied().skip_while(|byte| *byte == 0).collect();
    let mut content = number.clone();
    if content.first().is_none_or(|byte| *byte >= 0x80) {
        content.insert(0, 0);
    }
    if once_in(dice, odd) {
        match dice.below(3) {
            0 => content.insert(0, 0),
            1 => content = number,
            _ => content.insert(0, 0xff),
        }
    }
    tlv(dice, odd, 2, &content)
}

const RSA: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];

/// The algorithm `rsaEncryption` with its NULL.
fn algorithm(dice: &Dice, odd: u64) -> Vec<u8> {
    let mut id = RSA.to_vec();
    if once_in(dice, odd) {
        match dice.below(4) {
            0 => id[8] = 10,
            1 => id = vec![0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1],
            2 => id[1] = 0x80,
            _ => id[dice.below(9) as usize] ^= 1,
        }
    }
    let null = match dice.below(4 * odd) {
        0 => vec![],
        1 => vec![5, 1, 0],
        2 => vec![4, 0],
        3 => vec![5, 0x81, 0],
        _ => vec![5, 0],
    };
    tlv(dice, odd, 0x30, &[tlv(dice, odd, 6, &id), null].concat())
}

pub fn public_key(dice: &Dice) -> Case {
    let odd = *pick(dice, &[NEVER, NEVER, 60, 30]);
    let mut modulus = dice.bytes(256);
    (modulus[0], modulus[255]) = (modulus[0] | 0x80, modulus[255] | 1);
    let mut exponent = vec![1, 0, 1];
    if once_in(dice, odd / 4) {
        match dice.below(8) {
            0 => modulus[0] &= 0x7f,
            1 => modulus[255] &= 0xfe,
            2 => modulus.insert(0, 1),
            3 => drop(modulus.pop()),
            4 => {
                exponent = pick(
                    dice,
                    &[vec![3], vec![1, 0, 3], vec![1, 0, 0], vec![17], vec![0], vec![1], vec![1, 0, 0, 0, 1]],
                )
                .clone()
            }
            5 => modulus = vec![0xff; 256],
            6 => modulus = [vec![0x80], vec![0; 254], vec![1]].concat(),
            _ => modulus = dice.bytes(dice.below(300) as usize),
        }
    }
    let key = [integer(dice, odd, &modulus), integer(dice, odd, &exponent)].concat();
    let mut bits = [vec![0], tlv(dice, odd, 0x30, &key)].concat();
    if once_in(dice, odd) {
        bits[0] = dice.below(9) as u8;
    }
    let spki = [algorithm(dice, odd), tlv(dice, odd, 3, &bits)].concat();
    let mut der = tlv(dice, odd, 0x30, &spki);
    match dice.below(40) {
        0 => der = key,
        1 => der = KEYS.identity_pkcs8.clone(),
        2 => der = KEYS.identity.public().to_pem().into_bytes(),
        3..8 => mutate_bytes(dice, &mut der),
        8 => der = KEYS.identity.public().spki(),
        9 => der = [b"ssh-rsa ", &dice.bytes(20)[..]].concat(),
        _ => {}
    }
    Case::new(b'K', [der])
}

/// A private key. Other keys are derived from its DER (PROTOCOL#history-key), so it must have exactly one form.
pub fn private_key(dice: &Dice) -> Case {
    let mut der = KEYS.identity_pkcs8.clone();
    let odd = *pick(dice, &[NEVER, 30, 15]);
    let key = rsa::PrivateKey::from_pkcs8_der(&der).expect("a key");
    let one = BoxedUint::from(1u8);
    let (p, q) = (&key.primes()[0], &key.primes()[1]);
    let crt = |prime: &BoxedUint| {
        let less = prime.wrapping_sub(&one).to_nz().expect("not zero");
        key.d().rem_vartime(&less).to_be_bytes().to_vec()
    };
    let coefficient = key.crt_coefficient().expect("an inverse").to_be_bytes().to_vec();
    let (dp, dq) = (crt(p), crt(q));
    let plain = |number: &BoxedUint| number.to_be_bytes().to_vec();
    let mut numbers = vec![
        vec![0],
        plain(key.n()),
        plain(key.e()),
        plain(key.d()),
        plain(p),
        plain(q),
        dp,
        dq,
        coefficient,
    ];
    if odd < NEVER {
        let at = dice.below(9) as usize;
        match dice.below(4) {
            0 => {
                let byte = dice.below(numbers[at].len() as u64) as usize;
                numbers[at][byte] ^= 1 << dice.below(8);
            }
            1 => numbers.swap(4, 5),
            2 => drop(numbers.remove(at)),
            _ => {}
        }
        let rsa: Vec<u8> = numbers.iter().flat_map(|number| integer(dice, 4 * odd, number)).collect();
        let version = integer(dice, odd, if once_in(dice, 6) { &[1] } else { &[0] });
        let attributes = if once_in(dice, 6) { vec![0xa0, 0] } else { vec![] };
        let secret = tlv(dice, odd, 4, &tlv(dice, odd, 0x30, &rsa));
        der = tlv(dice, odd, 0x30, &[version, algorithm(dice, odd), secret, attributes].concat());
    } else if once_in(dice, 3) {
        mutate_bytes(dice, &mut der);
    }
    Case::new(b'I', [der])
}

// ---- RSA with invalid encoded blocks

/// RFC 8017 appendix B.2.1.
fn mgf1(seed: &[u8], length: usize) -> Vec<u8> {
    let blocks = (0u32..).flat_map(|count| sha256(&[seed, &count.to_be_bytes()].concat()));
    blocks.take(length).collect()
}

fn masked(bytes: &[u8], seed: &[u8]) -> Vec<u8> {
    bytes.iter().zip(mgf1(seed, bytes.len())).map(|(byte, mask)| byte ^ mask).collect()
}

/// The block to the power of `exponent`, modulo `modulus`.
fn power(block: &[u8], exponent: &BoxedUint, modulus: &BoxedUint) -> [u8; 256] {
    let odd = modulus.to_odd().expect("a modulus is odd");
    let number = BoxedUint::from_be_slice(block, 2048).expect("256 bytes");
    number.pow_mod(exponent, &odd).to_be_bytes().as_ref().try_into().expect("256 bytes")
}

/// Adds the modulus if the sum fits: another block for the same number.
fn add_modulus(number: [u8; 256], modulus: &BoxedUint) -> [u8; 256] {
    let (mut sum, mut carry) = (number, 0);
    for (digit, more) in sum.iter_mut().zip(modulus.to_be_bytes().iter()).rev() {
        let both = u16::from(*digit) + u16::from(*more) + carry;
        (*digit, carry) = (both as u8, both >> 8);
    }
    if carry == 0 { sum } else { number }
}

fn signature(dice: &Dice, message: &[u8], sound: bool) -> [u8; 256] {
    if sound || !once_in(dice, 4) {
        return KEYS.identity.sign(message);
    }
    let key = rsa::PrivateKey::from_pkcs8_der(&KEYS.identity_pkcs8).expect("a key");
    let hash = sha256(message);
    match dice.below(6) {
        // RFC 8017 section 9.2: PKCS #1 v1.5.
        0 => {
            let info = unhex("3031300d060960864801650304020105000420");
            power(&[&[0, 1][..], &[0xff; 202], &[0], &info, &hash].concat(), key.d(), key.n())
        }
        1 => add_modulus(KEYS.identity.sign(message), key.n()),
        2 => dice.bytes(256).try_into().expect("256 bytes"),
        _ => {
            // RFC 8017 section 9.1.1, with one part that may be wrong.
            let wrong = dice.below(8);
            let salt = dice.bytes(if wrong == 0 { *pick(dice, &[0, 20, 31, 33, 64, 222]) } else { 32 });
            let zeros = 222 - salt.len();
            let mut digest = sha256(&[&[0; 8], &hash[..], &salt].concat());
            let mut block = [&vec![0; zeros][..], &[1], &salt].concat();
            match wrong {
                1 => block[dice.below(zeros as u64) as usize] = 1,
                2 => block[zeros] = *pick(dice, &[0, 2, 0x81]),
                3 => block[zeros + 1 + dice.below(32) as usize] ^= 1,
                4 => digest[dice.below(32) as usize] ^= 1,
                _ => {}
            }
            let mut block = masked(&block, &digest);
            block[0] &= 0x7f;
            if wrong == 5 {
                block[0] |= 0x80;
            }
            let trailer = if wrong == 6 { *pick(dice, &[0xcc, 0xbd, 0]) } else { 0xbc };
            power(&[&block, &digest[..], &[trailer]].concat(), key.d(), key.n())
        }
    }
}

fn wrapped(dice: &Dice, secret: &[u8], hash: [u8; 32], sound: bool) -> Vec<u8> {
    let public = KEYS.session.public();
    if sound || !once_in(dice, 4) {
        return public.wrap(secret, hash).to_vec();
    }
    let key = rsa::PrivateKey::from_pkcs8_der(&KEYS.session_pkcs8).expect("a key").to_public_key();
    match dice.below(6) {
        0 => public.wrap(secret, sha256(&hash)).to_vec(),
        1 => key
            .encrypt(&mut rand::rng(), Oaep::<Sha256, Sha512>::new_with_mgf_hash_and_label(hash), secret)
            .expect("fits"),
        2 => add_modulus(public.wrap(secret, hash), key.n()).to_vec(),
        _ => {
            // RFC 8017 section 7.1.1, with one part that may be wrong.
            let seed = dice.bytes(32);
            let padding = 223 - 32 - 1 - secret.len();
            let mut block = [&sha256(&hash)[..], &vec![0; padding], &[1], secret].concat();
            let mut first = 0;
            match dice.below(8) {
                0 => block[dice.below(32) as usize] ^= 1,
                1 => block[32 + dice.below(padding as u64) as usize] = *pick(dice, &[1, 2, 0xff]),
                2 => block[32 + padding] = *pick(dice, &[0, 2]),
                3 => block[32..].fill(0),
                4 => first = 1,
                _ => {}
            }
            let block = masked(&block, &seed);
            let seed: Vec<u8> = seed.iter().zip(mgf1(&block, 32)).map(|(byte, mask)| byte ^ mask).collect();
            power(&[vec![first], seed, block].concat(), key.e(), key.n()).to_vec()
        }
    }
}

fn object<'a>(members: impl IntoIterator<Item = (&'a str, Json)>) -> Json {
    Json::Object(members.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
}

// ---- Envelopes

fn plaintext(dice: &Dice, from: &str, recipient: &str, is_room: bool, sound: bool) -> Vec<u8> {
    let length = match dice.below(12) {
        0 => 251 + dice.below(3),
        1 => MAX_TEXT as u64 - 1 + dice.below(3),
        _ => dice.below(40),
    };
    let text = if once_in(dice, 8) { dice.bytes(length as usize) } else { vec![b'x'; length as usize] };
    if !is_room {
        return text;
    }
    let mut names = vec![from.to_string(), recipient.to_string()];
    names.extend((0..*pick(dice, &[0, 1, 2, 5, 30, 31])).map(|_| valid_name(dice)));
    names.sort();
    names.dedup();
    names.truncate(32);
    for name in [from, recipient] {
        if sound && !names.iter().any(|other| other == name) {
            names.pop();
            names.push(name.to_string());
        }
    }
    match if sound { 24 } else { dice.below(24) } {
        0 => names.reverse(),
        1 => drop(names.remove(0)),
        2 => names.push("zz z".into()),
        3 => names.push(names[0].to_uppercase()),
        4 => names.insert(1, names[0].clone()),
        5 => names.truncate(1),
        6 => names[0].clear(),
        _ => {}
    }
    if sound || once_in(dice, 2) {
        names.sort();
    }
    let mut list = vec![names.len() as u8];
    names.iter().for_each(|name| list.extend([&[name.len() as u8], name.as_bytes()].concat()));
    match if sound { 24 } else { dice.below(24) } {
        0 => list[0] = list[0].wrapping_add(1),
        1 => list.truncate(dice.below(list.len() as u64) as usize),
        2 => {
            let at = dice.below(list.len() as u64) as usize;
            list[at] ^= 1 << dice.below(8);
        }
        _ => {}
    }
    [list, text].concat()
}

fn padded(dice: &Dice, text: &[u8], sound: bool) -> Vec<u8> {
    let mut padded = pad(text);
    if !sound && once_in(dice, 6) {
        match dice.below(6) {
            0 => padded.extend([0; 256]),
            1 => *padded.last_mut().expect("bytes") ^= 1,
            2 => padded.truncate(dice.below(padded.len() as u64) as usize),
            3 => padded[dice.below(4) as usize] ^= 1 << dice.below(8),
            4 => drop(padded.splice(..4, 0xffff_u32.to_be_bytes())),
            _ => padded.clear(),
        }
    }
    padded
}

pub fn envelope(dice: &Dice) -> Case {
    // Half of them have no flaw.
    let sound = once_in(dice, 2);
    let flawed = |n| !sound && once_in(dice, n);
    let identity = KEYS.identity.public();
    let mut kind = *pick(dice, &["message", "message", "message", "room_left", "file_offer", "later"]);
    let mut scope = *pick(dice, &["broadcast", "private", "room", "room", "group"]);
    if sound || once_in(dice, 2) {
        (kind, scope) = (*pick(dice, &["message", "later"]), *pick(dice, &["private", "room"]));
    }
    let (from, to) = (valid_name(dice), valid_name(dice));
    let to_one = (scope != "broadcast") ^ flawed(12);
    let recipient = to_one.then_some(to.as_str());
    let recipient_key = (to_one ^ flawed(12)).then_some(KEYS.session.fingerprint().0);
    let own = if flawed(20) { [1; 32] } else { identity.fingerprint().0 };
    let (session, sequence, time) =
        (dice.bytes(32), dice.next() >> dice.below(64), dice.next() >> dice.below(64));
    let again = once_in(dice, 4).then(|| dice.bytes(32));
    let key = Key::new(dice.bytes(32).try_into().expect("32 bytes"));
    let mut commitment = primitives::hmac(&key, label::KEY_COMMITMENT.as_bytes());
    if flawed(20) {
        commitment[dice.below(32) as usize] ^= 1;
    }
    let header = Fields::new(label::ENVELOPE_HEADER)
        .text(kind)
        .text(scope)
        .text(recipient.unwrap_or_default())
        .bytes(recipient_key.as_ref().map_or(&[], |key| &key[..]))
        .text(&from)
        .bytes(&own)
        .bytes(&session)
        .number(sequence)
        .number(time)
        .bytes(again.as_deref().unwrap_or_default())
        .bytes(&commitment)
        .finish();
    let nonce: [u8; 12] = dice.bytes(12).try_into().expect("12 bytes");
    let text_of = plaintext(dice, &from, &to, (kind, scope) == ("message", "room"), sound);
    let mut ciphertext = padded(dice, &text_of, sound);
    if flawed(30) {
        ciphertext.resize(MAX_CIPHERTEXT + 256 * dice.below(2) as usize, 0);
    }
    let mut tag = primitives::eax_seal(&key, &nonce, u32::from(flawed(20)), &header, &mut ciphertext);
    if flawed(20) {
        tag[dice.below(16) as usize] ^= 1;
    }
    let hash = sha256(&[&ciphertext[..], &tag].concat());
    let signed = Fields::new(label::ENVELOPE_SIGNATURE).bytes(&header).bytes(&nonce).bytes(&hash).finish();
    let secret = match dice.below(if sound { 1 } else { 12 }) + u64::from(sound) {
        0 => dice.bytes(*pick(dice, &[0, 31, 33, 64, 190])),
        _ => key.expose().to_vec(),
    };
    let mut id = KEYS.session.fingerprint().key_id().to_vec();
    if flawed(20) {
        id[dice.below(8) as usize] ^= 1;
    }
    let own_key = [id, wrapped(dice, &secret, sha256(&header), sound)].concat();
    let mut members: Vec<(&str, Json)> = vec![("type", text("encrypted_message")), ("from", text(&from))];
    members.extend([
        ("kind", text(kind)),
        ("scope", text(scope)),
        ("sequence", raw(sequence)),
        ("time", raw(time)),
    ]);
    members.extend(recipient.map(|name| ("recipient", text(name))));
    members.extend(recipient_key.map(|key| ("recipient_key", base64(&key))));
    members.extend(again.map(|id| ("again", base64(&id))));
    let binary: [(&str, &[u8]); 8] = [
        ("identity", &own),
        ("session", &session),
        ("commitment", &commitment),
        ("nonce", &nonce),
        ("ciphertext", &ciphertext),
        ("tag", &tag),
        ("signature", &signature(dice, &signed, sound)),
        ("key", &own_key),
    ];
    members.extend(binary.map(|(name, bytes)| (name, base64(bytes))));
    let object = object(members);
    // Few are mutated as JSON, because other cases try that.
    let line = if flawed(8) { written(dice, object) } else { Style::new(dice).write(&object) };
    Case::new(b'E', [identity.spki(), KEYS.session_pkcs8.clone(), line])
}

// ---- Chunks

pub fn group(dice: &Dice) -> Case {
    let start = dice.below(3) as u32;
    // Most groups are one short chunk: full ones are long.
    let full = if once_in(dice, 6) { 1 + dice.below(4) as u32 } else { 0 };
    let first = start + 5 * dice.below(2) as u32;
    let rest = *pick(dice, &[1, 2, 100, 65_535]);
    let size = u64::from(first + full) * CHUNK as u64 + rest;
    let (key, id) = (dice.bytes(32), dice.bytes(16));
    let plan = Plan {
        id: id.clone().try_into().expect("16 bytes"),
        key: Key::from_slice(&key).expect("32 bytes"),
        size,
        start,
    };
    let data = vec![7; full as usize * CHUNK + rest as usize];
    let mut payloads = if once_in(dice, 2) {
        plan.seal_group(first, KEYS.session.public(), &data)
    } else {
        forged(dice, &plan, first, &data)
    };
    let (mut first, mut start, mut size) = (u64::from(first), u64::from(start), size);
    match dice.below(24) {
        0 => first += 1,
        // Groups are counted from the start, so `start` never exceeds `first`.
        1 => start = start.saturating_sub(1),
        2 => size -= 1,
        3 => drop(payloads.pop()),
        4 => payloads.push(payloads[0].clone()),
        5 => payloads.reverse(),
        6..10 => {
            let at = dice.below(payloads.len() as u64) as usize;
            mutate_bytes(dice, &mut payloads[at]);
        }
        10 => {
            let byte = dice.below(400.min(payloads[0].len() as u64)) as usize;
            payloads[0][byte] ^= 1 << dice.below(8);
        }
        _ => {}
    }
    let place = [start, size, first].map(u64::to_be_bytes).concat();
    let parts = [vec![key, id, place, KEYS.session_pkcs8.clone()], payloads].concat();
    Case::new(b'G', parts)
}

/// Payloads whose keys, block, tags or MACs may be wrong, under a valid MAC where that is possible.
fn forged(dice: &Dice, plan: &Plan, first: u32, data: &[u8]) -> Vec<Vec<u8>> {
    let count = data.len().div_ceil(CHUNK);
    let keys: Vec<Vec<u8>> = (0..count).map(|_| dice.bytes(32)).collect();
    let fields = |label: &str, index: u32| Fields::new(label).bytes(&plan.id).number(index.into());
    let secret = match dice.below(6) {
        0 => keys.concat()[1..].to_vec(),
        1 if count < 5 => [keys.concat(), dice.bytes(32)].concat(),
        _ => keys.concat(),
    };
    let block = wrapped(dice, &secret, sha256(&fields(label::CHUNK_KEYS, first).finish()), false);
    let seal = |((text, key), index): ((&[u8], &Vec<u8>), u32)| {
        let key = Key::from_slice(key).expect("32 bytes");
        let nonce: [u8; 12] = dice.bytes(12).try_into().expect("12 bytes");
        let (mut ciphertext, counter) = (text.to_vec(), index ^ u32::from(once_in(dice, 12)));
        let mut tag = primitives::eax_seal(
            &key,
            &nonce,
            counter,
            &fields(label::CHUNK, index).finish(),
            &mut ciphertext,
        );
        if once_in(dice, 12) {
            tag[0] ^= 1;
        }
        let block: &[u8] = if index == first { &block } else { &[] };
        let authenticated = fields(label::CHUNK, index).bytes(block).bytes(&nonce).bytes(&tag).finish();
        let mac = primitives::hmac(&plan.key, &authenticated);
        [&index.to_be_bytes()[..], &mac, &nonce, &tag, block, &ciphertext].concat()
    };
    data.chunks(CHUNK).zip(&keys).zip(first..).map(seal).collect()
}

// ---- Key files

pub fn key_file(dice: &Dice) -> Case {
    let (name, typed) =
        (valid_name(dice), *pick(dice, &["secret", "fünf\u{a0}Wörter", "fu\u{308}nf", "\u{212b}ngstrom"]));
    // The form of the password under which the file is sealed.
    let form = if once_in(dice, 3) { Password::new(typed.into()).forms().last() } else { None };
    let password = form.unwrap_or_else(|| Password::new(typed.into()));
    let mut rounds = PBKDF2_MIN_ROUNDS;
    if once_in(dice, 10) {
        rounds = *pick(dice, &[99_999, 10_000_001, 0, u32::MAX]);
    }
    let (salt, nonce) = (dice.bytes(16), dice.bytes(12));
    let key = primitives::pbkdf2(&password, &salt, rounds.min(PBKDF2_MIN_ROUNDS));
    let owner = if once_in(dice, 12) { valid_name(dice) } else { name.clone() };
    let associated = Fields::new(label::KEY_FILE).text(&owner).finish();
    let mut body = KEYS.identity_pkcs8.clone();
    if once_in(dice, 12) {
        mutate_bytes(dice, &mut body);
    }
    let mut tag = primitives::gcm_seal(&key, nonce[..].try_into().expect("12 bytes"), &associated, &mut body);
    if once_in(dice, 12) {
        tag[0] ^= 1;
    }
    let kdf = if once_in(dice, 20) { "scrypt" } else { "PBKDF2-HMAC-SHA256" };
    let cipher = if once_in(dice, 20) { "AES-256-EAX" } else { "AES-256-GCM" };
    let version = if once_in(dice, 20) { *pick(dice, &[0, 2, u64::MAX]) } else { 1 };
    let login = [("salt", base64(&dice.bytes(32))), ("rounds", raw(600_000))];
    let members = [
        ("version", raw(version)),
        ("kdf", text(kdf)),
        ("rounds", raw(rounds)),
        ("salt", base64(&salt)),
        ("cipher", text(cipher)),
        ("nonce", base64(&nonce)),
        ("ciphertext", base64(&body)),
        ("tag", base64(&tag)),
        ("logins", Json::List(vec![object(login)])),
    ];
    let object = object(members);
    let mut file = if once_in(dice, 3) { written(dice, object) } else { Style::new(dice).write(&object) };
    around(dice, &mut file);
    Case::new(b'F', [name.into_bytes(), typed.into(), file])
}
