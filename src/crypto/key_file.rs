//! The identity key on disk: PKCS#8 under AES-256-GCM, with a key that PBKDF2 derives from the password.
//!
//! Invariant: its owner's name and password are all that is needed to open the file. Each error says what is wrong.
//! Specification: PROTOCOL#key-file.

use super::keys::IdentityKey;
use super::primitives::{self, PBKDF2_MAX_ROUNDS, PBKDF2_MIN_ROUNDS, PBKDF2_ROUNDS};
use super::secret::{Password, random};
use super::{Fields, label};
use crate::disk;
use crate::encoding::{Bytes, Fixed, from_json, words};
use crate::name::Username;
use miniserde::{Deserialize, Serialize, json};
use zeroize::Zeroizing;

/// The longest file that is read, in bytes (a real one has 1.9 to 2.6 KB).
pub const MAX_FILE: usize = 16 * 1024;
/// The most [`Login`]s in a file: few accounts share one key, and the client compares each challenge with all of them.
pub const MAX_LOGINS: usize = 8;
const LOGINS: &str = "logins";
const VERSION: u32 = 1;
const KDF: &str = "PBKDF2-HMAC-SHA256";
const CIPHER: &str = "AES-256-GCM";

/// The salt and rounds that a user's client chose for an account, and that the server's challenge repeats.
/// PROTOCOL#known-logins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// The salt of PBKDF2, random.
    pub salt: Fixed<32>,
    /// The rounds of PBKDF2, 100,000 to 10,000,000.
    pub rounds: u32,
}

impl Login {
    /// A new login, for a registration or a new password.
    pub fn random() -> Login {
        Login { salt: Fixed(random()), rounds: PBKDF2_ROUNDS }
    }
}

/// PROTOCOL#key-file-form.
#[derive(Serialize, Deserialize)]
struct KeyFile {
    version: u32,
    kdf: String,
    rounds: u32,
    salt: Fixed<16>,
    cipher: String,
    nonce: Fixed<12>,
    ciphertext: Bytes,
    tag: Fixed<16>,
}

/// The member that an older key file lacks. PROTOCOL#logins.
#[derive(Deserialize)]
struct Listed {
    logins: Vec<Login>,
}

words! {
    /// Why a key file does not open.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum KeyFileError {
        /// The file does not have this format.
        Damaged = "the key file is damaged: restore it from a copy (or, if an editor has saved it in another encoding, save it \
                     as UTF-8)",
        /// Its version or its parameters are not accepted by this program.
        Unsupported = "the key file is of a newer version or asks for parameters that are not safe",
        /// Its list of logins is not valid: an empty list would refuse every server, a missing one would accept any.
        Logins = "the member \"logins\" of the key file is damaged: it holds 1 to 8 objects with a salt and rounds of their own; \
                  restore the file from a copy",
        /// The password is wrong (or the file was altered: the tag cannot tell which).
        WrongPassword = "the password does not open the key file",
    }
}

impl std::error::Error for KeyFileError {}

/// The data that GCM authenticates beside the ciphertext: the owner, so that files cannot be exchanged.
fn associated(owner: &Username) -> Vec<u8> {
    Fields::new(label::KEY_FILE).text(owner.as_str()).finish()
}

fn parse<T: Deserialize>(text: &[u8]) -> Result<T, KeyFileError> {
    let text = if text.len() > MAX_FILE { None } else { disk::text(text) };
    text.and_then(from_json).ok_or(KeyFileError::Damaged)
}

/// The logins in the text of a key file, the last used first, at most 8. Empty if the file has no list: an older client
/// or another program wrote it. PROTOCOL#logins.
///
/// # Errors
/// [`KeyFileError::Damaged`], [`KeyFileError::Logins`].
pub fn logins(text: &[u8]) -> Result<Vec<Login>, KeyFileError> {
    if !parse::<json::Object>(text)?.contains_key(LOGINS) {
        return Ok(Vec::new());
    }
    let Listed { logins: list } = parse(text).map_err(|_| KeyFileError::Logins)?;
    let is_single = |login: &Login| list.iter().filter(|other| other.salt == login.salt).count() == 1;
    let is_valid = |login: &Login| (PBKDF2_MIN_ROUNDS..=PBKDF2_MAX_ROUNDS).contains(&login.rounds);
    let has_few = (1..=MAX_LOGINS).contains(&list.len());
    if has_few && list.iter().all(|login| is_valid(login) && is_single(login)) {
        Ok(list)
    } else {
        Err(KeyFileError::Logins)
    }
}

/// The text of a key file with its logins replaced by these. All other members stay, even unknown ones.
///
/// # Errors
/// [`KeyFileError::Damaged`], also if it would be too long to be read again.
pub fn with_logins(text: &[u8], logins: &[Login]) -> Result<String, KeyFileError> {
    let mut members: json::Object = parse(text)?;
    let list = json::from_str(&json::to_string(logins)).map_err(|_| KeyFileError::Damaged)?;
    members.insert(LOGINS.into(), list);
    let text = json::to_string(&members) + "\n";
    if text.len() > MAX_FILE { Err(KeyFileError::Damaged) } else { Ok(text) }
}

/// The text of a key file without logins, one line with its end, with a fresh salt and nonce; about 0.1 s, for PBKDF2.
pub fn seal(key: &IdentityKey, owner: &Username, password: &Password) -> String {
    let (salt, nonce) = (random(), random());
    let mut body = key.to_pkcs8();
    let wrapping = primitives::pbkdf2(password, &salt, PBKDF2_ROUNDS);
    let tag = primitives::gcm_seal(&wrapping, &nonce, &associated(owner), &mut body);
    let mut text = json::to_string(&KeyFile {
        version: VERSION,
        kdf: KDF.into(),
        rounds: PBKDF2_ROUNDS,
        salt: Fixed(salt),
        cipher: CIPHER.into(),
        nonce: Fixed(nonce),
        ciphertext: Bytes(body.to_vec()),
        tag: Fixed(tag),
    });
    text.push('\n');
    text
}

/// Opens the text of a key file; about 0.1 s, for PBKDF2.
///
/// # Errors
/// [`KeyFileError`]; parameters are checked before any work is done with them.
pub fn open(text: &[u8], owner: &Username, password: &Password) -> Result<IdentityKey, KeyFileError> {
    let file: KeyFile = parse(text)?;
    let is_known = file.version == VERSION && file.kdf == KDF && file.cipher == CIPHER;
    if !is_known || !(PBKDF2_MIN_ROUNDS..=PBKDF2_MAX_ROUNDS).contains(&file.rounds) {
        return Err(KeyFileError::Unsupported);
    }
    logins(text)?;
    let wrapping = primitives::pbkdf2(password, &file.salt.0, file.rounds);
    let mut body = Zeroizing::new(file.ciphertext.0);
    primitives::gcm_open(&wrapping, &file.nonce.0, &associated(owner), &mut body, &file.tag.0)
        .map_err(|_| KeyFileError::WrongPassword)?;
    IdentityKey::from_pkcs8(&body).map_err(|_| KeyFileError::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PROTOCOL#logins.
    #[test]
    fn list_of_logins_changes_and_other_members_stay() {
        let text = br#"{"later":[1.5,null,{"a":"b"}],"version":1}"#;
        assert_eq!(logins(text), Ok(vec![]));
        let list: Vec<Login> = (0..MAX_LOGINS).map(|_| Login::random()).collect();
        let full = with_logins(text, &list).expect("a key file");
        assert_eq!(logins(full.as_bytes()), Ok(list.clone()));
        assert!(full.starts_with(r#"{"later":[1.5,null,{"a":"b"}],"logins":["#), "{full}");
        let one = with_logins(full.as_bytes(), &list[..1]).expect("a key file");
        assert_eq!(logins(one.as_bytes()), Ok(list[..1].to_vec()));
        // A file that grows when it is rewritten must not become too long to be read.
        let long = format!(r#"{{"later":[{}1]}}"#, "1e9,".repeat(4000));
        assert_eq!(logins(long.as_bytes()), Ok(vec![]));
        assert_eq!(with_logins(long.as_bytes(), &list), Err(KeyFileError::Damaged));
        let padded = |length| format!("{:length$}", "{}");
        assert_eq!(logins(padded(MAX_FILE).as_bytes()), Ok(vec![]));
        assert_eq!(logins(padded(MAX_FILE + 1).as_bytes()), Err(KeyFileError::Damaged));
    }

    /// PROTOCOL#logins.
    #[test]
    fn list_of_logins_with_one_wrong_entry_is_refused() {
        let list: Vec<Login> = (0..=MAX_LOGINS).map(|_| Login::random()).collect();
        let of = |list: &[Login]| logins(with_logins(b"{}", list).expect("a key file").as_bytes());
        let with = |rounds| [list[0], Login { rounds, ..list[1] }];
        for rounds in [PBKDF2_MIN_ROUNDS, PBKDF2_MAX_ROUNDS] {
            assert_eq!(of(&with(rounds)), Ok(with(rounds).to_vec()));
        }
        for rounds in [PBKDF2_MIN_ROUNDS - 1, PBKDF2_MAX_ROUNDS + 1] {
            assert_eq!(of(&with(rounds)), Err(KeyFileError::Logins));
        }
        let twice = [list[0], Login { rounds: PBKDF2_MIN_ROUNDS, ..list[0] }];
        for wrong in [&[][..], &list, &twice] {
            assert_eq!(of(wrong), Err(KeyFileError::Logins));
        }
    }

    /// PROTOCOL#line, PROTOCOL#json, PROTOCOL#depth.
    #[test]
    fn key_file_follows_the_json_profile_of_lines() {
        let login = json::to_string(&Login::random());
        let list = |members: &str| {
            logins(format!("{{{members}\"logins\":[{login}]}}").as_bytes()).map(|list| list.len())
        };
        assert_eq!(list(r#""a":[[[[[[[1]]]]]]],"#), Ok(1));
        assert_eq!(list(r#""a":[[[[[[[[1]]]]]]]],"#), Err(KeyFileError::Damaged));
        assert_eq!(list(&format!(r#""logins":[{login},{login}],"#)), Ok(1), "the last one counts");
        let twice = format!("{{\"salt\":\"\",{}", &login[1..]);
        for bad in ["null", "[{}]", r#"[{"salt":""}]"#, &format!("[{twice}]")] {
            assert_eq!(
                list(&format!(r#""logins":{bad},"#)),
                Err(KeyFileError::Logins),
                "each must be valid: {bad}"
            );
        }
        assert_eq!(logins(br#"{"logins":null}"#), Err(KeyFileError::Logins));
    }

    /// PROTOCOL#key-file-form, PROTOCOL#identity-key.
    #[test]
    fn only_the_owner_s_password_opens_a_key_file() {
        let (alice, bob) = ("alice".parse().expect("name"), "bob".parse().expect("name"));
        let key = IdentityKey::generate();
        let right = Password::new("correct horse".into());
        let text = seal(&key, &alice, &right);
        let opened = open(text.as_bytes(), &alice, &right).expect("opens");
        assert_eq!(opened.public().fingerprint(), key.public().fingerprint());
        // Remains of editors and crashes around it are harmless.
        for edited in [
            text.trim_end().into(),
            format!("\u{feff}\r\n{}\r\n\r\n", text.trim_end()),
            text.clone() + "\0\0",
        ] {
            open(edited.as_bytes(), &alice, &right).expect("opens");
        }
        let wrong = Password::new("correct house".into());
        assert_eq!(open(text.as_bytes(), &alice, &wrong).expect_err("wrong"), KeyFileError::WrongPassword);
        assert_eq!(open(text.as_bytes(), &bob, &right).expect_err("moved"), KeyFileError::WrongPassword);
        let others = [("\"version\":1", "\"version\":2"), (KDF, "scrypt"), (CIPHER, "AES-128-GCM")];
        for (ours, other) in others {
            let foreign = text.replace(ours, other);
            assert_ne!(foreign, text);
            assert_eq!(open(foreign.as_bytes(), &alice, &right).expect_err(other), KeyFileError::Unsupported);
        }
        let cheap = text.replace("600000", "99999");
        assert_eq!(open(cheap.as_bytes(), &alice, &right).expect_err("cheap"), KeyFileError::Unsupported);
        let endless = text.replace("600000", "4294967295");
        assert_eq!(open(endless.as_bytes(), &alice, &right).expect_err("endless"), KeyFileError::Unsupported);
        for end in [0, 1, 100, text.len() - 3] {
            assert_eq!(
                open(&text.as_bytes()[..end], &alice, &right).expect_err("cut"),
                KeyFileError::Damaged
            );
        }
    }
}
