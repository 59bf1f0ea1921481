//! The verdict of this crate's decoders on a case: `+` and the content in canonical form, or the reason for a refusal.

use super::Case;
use super::sealed::private;
use miniserde::json;
use secure_messenger::client::audience::Audience;
use secure_messenger::client::session::files::messages::{Accept, Closing, Offer, read};
use secure_messenger::crypto::chunk::{Plan, chunks};
use secure_messenger::crypto::envelope::{Kind, Scope};
use secure_messenger::crypto::key_file;
use secure_messenger::crypto::keys::IdentityKey;
use secure_messenger::crypto::primitives::sha256;
use secure_messenger::crypto::public::IdentityPublicKey;
use secure_messenger::crypto::secret::{Key, Password};
use secure_messenger::encoding::hex;
use secure_messenger::name::Username;
use secure_messenger::protocol::{ClientMessage, DecodeError, Packet, ServerMessage};

pub fn verdict(case: &Case) -> String {
    let parts: Vec<&[u8]> = case.parts.iter().map(Vec::as_slice).collect();
    let plain = |content: Option<String>, refusal: &str| content.ok_or(refusal.to_string());
    let verdict = match (case.kind, &parts[..]) {
        (b'C', [line]) => line_of(ClientMessage::decode(line).map(|message| message.encode())),
        (b'S', [line]) => line_of(ServerMessage::decode(line).map(|message| message.encode())),
        (b'P', [body]) => plain(packet(body), "malformed"),
        (b'T', [kind, text]) => plain(file_text(kind, text), "text"),
        (b'N', [text]) => plain(name(text), "malformed"),
        (b'W', [typed]) => Ok(forms(Password::new(utf8(typed)))),
        (b'K', [der]) => plain(public_key(der), "bad_key"),
        (b'I', [der]) => plain(private_key(der), "bad_key"),
        (b'E', [identity, session, line]) => envelope(identity, session, line),
        (b'G', [key, id, place, session, payloads @ ..]) => {
            plain(group(key, id, place, session, payloads), "chunk")
        }
        (b'L', [text]) => plain(logins(text), "key_file"),
        (b'F', [name, typed, text]) => plain(open_key_file(name, typed, text), "key_file"),
        _ => unreachable!("a case has a known kind"),
    };
    verdict.map_or_else(|refusal| refusal, |content| format!("+{content}"))
}

fn utf8(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// JSON with sorted members, so that the same content has the same text.
fn canonical(text: &str) -> String {
    json::to_string(&json::from_str::<json::Object>(text).expect("the encoder writes JSON"))
}

fn line_of(encoded: Result<Vec<u8>, DecodeError>) -> Result<String, String> {
    match encoded {
        Ok(line) => Ok(canonical(&utf8(&line))),
        Err(DecodeError::Malformed) => Err("malformed".into()),
        Err(DecodeError::UnknownType) => Err("unknown_type".into()),
        Err(DecodeError::OtherVersion(version)) => Err(format!("unsupported_version: {version}")),
    }
}

fn packet(body: &[u8]) -> Option<String> {
    let Packet { peer, transfer, payload } = Packet::decode(body).ok()?;
    Some(format!("{} {} {}", peer.as_str(), hex(&transfer), hex(payload)))
}

fn file_text(kind: &[u8], text: &[u8]) -> Option<String> {
    let text = str::from_utf8(text).ok()?;
    let content = match kind {
        b"file_offer" => {
            let offer: Offer = read(text).ok()?;
            if chunks(offer.size).map(u64::from) != Some(offer.chunks) {
                return None;
            }
            json::to_string(&offer)
        }
        b"file_accept" => json::to_string(&read::<Accept>(text).ok()?),
        _ => json::to_string(&read::<Closing>(text).ok()?),
    };
    Some(canonical(&content))
}

fn name(text: &[u8]) -> Option<String> {
    let name: Username = str::from_utf8(text).ok()?.parse().ok()?;
    Some(format!("{} {}", if name.is_reserved() { "reserved" } else { "free" }, name.as_str()))
}

fn forms(password: Password) -> String {
    password.forms().map(|form| hex(form.expose())).collect::<Vec<_>>().join(" ")
}

fn public_key(der: &[u8]) -> Option<String> {
    IdentityPublicKey::parse(der).ok().map(|key| hex(&key.fingerprint().0))
}

fn private_key(der: &[u8]) -> Option<String> {
    IdentityKey::from_pkcs8(der).ok().map(|key| hex(&key.public().fingerprint().0))
}

/// The specification states the order of these checks.
fn envelope(identity: &[u8], session: &[u8], line: &[u8]) -> Result<String, String> {
    let refused = |why: &str| why.to_string();
    let message = match ServerMessage::decode(line) {
        Ok(ServerMessage::EncryptedMessage(message)) => message,
        Ok(_) => return Err(refused("unknown_type")),
        Err(error) => return line_of(Err(error)),
    };
    let identity = IdentityPublicKey::parse(identity).map_err(|_| refused("unverified"))?;
    let verified = message.envelope.verify(&identity).map_err(|_| refused("unverified"))?;
    let header = verified.header();
    let text = verified.open(private(session), &message.key.bytes()).map_err(|_| refused("unopened"))?;
    let mut text = text.to_vec();
    let audience = Audience::take(header, &mut text).ok_or(refused("members"))?;
    let mut members: Vec<&str> = Vec::new();
    if header.kind == Kind::Message && header.scope == Scope::Room {
        members = audience.recipients().iter().chain([&header.from]).map(Username::as_str).collect();
        members.sort_unstable();
    }
    Ok(format!("{} {} {}", hex(&verified.id()), members.join(","), hex(&text)))
}

fn group(key: &[u8], id: &[u8], place: &[u8], session: &[u8], payloads: &[&[u8]]) -> Option<String> {
    let [start, size, first] =
        [0, 8, 16].map(|at| u64::from_be_bytes(*place[at..].first_chunk().expect("24 bytes")));
    let [start, first] = [start, first].map(|index| u32::try_from(index).expect("an index"));
    let plan = Plan {
        id: id.try_into().expect("16 bytes"),
        key: Key::from_slice(key).expect("32 bytes"),
        size,
        start,
    };
    let payloads: Vec<Vec<u8>> = payloads.iter().map(|payload| payload.to_vec()).collect();
    let opened = plan.open_group(first, &payloads, private(session)).ok()?;
    Some(hex(&sha256(&opened.concat())))
}

fn logins(text: &[u8]) -> Option<String> {
    let logins = key_file::logins(text).ok()?;
    if logins.is_empty() {
        Some("none".into())
    } else {
        Some(format!(
            "[{}]",
            logins.iter().map(|login| canonical(&json::to_string(login))).collect::<Vec<_>>().join(",")
        ))
    }
}

/// Tries the forms of the password, as the client does.
fn open_key_file(name: &[u8], typed: &[u8], text: &[u8]) -> Option<String> {
    let (name, password) = (utf8(name).parse().expect("a name"), Password::new(utf8(typed)));
    let opened = |form: Password| Some((key_file::open(text, &name, &form).ok()?, form));
    let (identity, form) = password.forms().find_map(opened)?;
    Some(format!("{} {}", hex(&identity.public().fingerprint().0), hex(form.expose())))
}
