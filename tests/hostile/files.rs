//! Senders, recipients, servers and clients that lie about files, against the real client and the real server. Whatever
//! they do, a line reports it, nothing unwanted gets a final name, and the chat continues.

use crate::support::{
    self, Client, Folder, Gate, Heard, Operator, Pair, Person, Raw, Server, Way, farewell, header, hex,
    memory_of, name, newcomer, noise, send_to, times, traces, until,
};
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use miniserde::json;
use secure_messenger::client::session::files::messages::Offer;
use secure_messenger::crypto::chunk::{CHUNK, GROUP, Plan, TransferId};
use secure_messenger::crypto::envelope::{Header, Kind, Scope, Sealed};
use secure_messenger::crypto::keys::SessionKey;
use secure_messenger::crypto::primitives::{hmac, sha256};
use secure_messenger::crypto::public::{Fingerprint, IdentityPublicKey, SessionPublicKey};
use secure_messenger::crypto::secret::{Key, random};
use secure_messenger::crypto::{Fields, label};
use secure_messenger::encoding::Fixed;
use secure_messenger::name::Username;
use secure_messenger::protocol::{ClientMessage, Grant, MAX_PACKET, Refused, ServerMessage};
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

// ---- offered files, and claims about them

/// A file that the test sends, and what the offer claims.
struct Deal {
    offer: Offer,
    content: Vec<u8>,
}

impl Deal {
    /// An honest offer.
    fn of(name: &str, size: usize) -> Deal {
        let content = noise(size);
        let offer = Offer {
            transfer: Fixed(random()),
            key: Key::random(),
            name: name.into(),
            size: size as u64,
            sha256: Fixed(sha256(&content)),
            chunks: size.div_ceil(CHUNK) as u64,
        };
        Deal { offer, content }
    }

    fn id(&self) -> TransferId {
        self.offer.transfer.0
    }

    fn text(&self) -> String {
        json::to_string(&self.offer)
    }

    fn plan(&self) -> Plan {
        Plan { id: self.id(), key: self.offer.key.duplicate(), size: self.content.len() as u64, start: 0 }
    }

    /// All chunks of the real content, sealed as an honest client seals them.
    fn payloads(&self, session: &SessionPublicKey) -> Vec<Vec<u8>> {
        let plan = self.plan();
        let seal = |first: u32| {
            let from = first as usize * CHUNK;
            let end = self.content.len().min(from + GROUP as usize * CHUNK);
            plan.seal_group(first, session, &self.content[from..end])
        };
        (0..plan.chunks()).step_by(GROUP as usize).flat_map(seal).collect()
    }

    /// The name of the part that a client keeps.
    fn part(&self, from: &str) -> String {
        format!("{from}_{}.part", hex(&self.offer.sha256.0))
    }
}

/// The text of a file notice.
fn about(id: TransferId, more: &str) -> String {
    format!("{{\"transfer\":{}{more}}}", json::to_string(&Fixed(id)))
}

/// The text of a `file_accept`.
fn accept(id: TransferId, start: u64, session: Fingerprint) -> String {
    about(id, &format!(",\"start\":{start},\"session\":{}", json::to_string(&Fixed(session.0))))
}

// The offsets of a chunk's fields: PROTOCOL.md, "Chunks".
const MAC: usize = 4;
const NONCE: usize = 36;
const TAG: usize = 48;
const BLOCK: usize = 64;
const TEXT: usize = BLOCK + 256;

fn index(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..MAC].try_into().expect("four bytes"))
}

/// Makes the MAC valid again after a change: the author of the chunk has the key.
fn resign(deal: &Deal, payload: &mut [u8]) {
    let block = if index(payload).is_multiple_of(GROUP) { &payload[BLOCK..TEXT] } else { &[] };
    let fields = Fields::new(label::CHUNK).bytes(&deal.id()).number(index(payload).into()).bytes(block);
    let signed = fields.bytes(&payload[NONCE..TAG]).bytes(&payload[TAG..BLOCK]).finish();
    payload[MAC..NONCE].copy_from_slice(&hmac(&deal.offer.key, &signed));
}

/// Puts other keys into the block of the group that begins with chunk `first`.
fn rewrap(deal: &Deal, first: u32, payload: &mut [u8], keys: &[u8], session: &SessionPublicKey) {
    let fields = Fields::new(label::CHUNK_KEYS).bytes(&deal.id()).number(first.into()).finish();
    payload[BLOCK..TEXT].copy_from_slice(&session.wrap(keys, sha256(&fields)));
    resign(deal, payload);
}

// ---- clients

fn packet(to: &str, id: TransferId, payload: &[u8]) -> Vec<u8> {
    Heard::Packet(name(to), id, payload.to_vec()).encode()
}

fn grant(to: &str, id: TransferId, count: u32) -> ClientMessage {
    ClientMessage::Grant(Grant { peer: name(to), transfer: Fixed(id), count })
}

/// An item that the hostile client receives.
enum Told {
    /// A text that the honest client sealed for it.
    Word(Kind, String),
    Packet(TransferId, Vec<u8>),
    Message(ServerMessage),
}

/// A hostile client on a raw connection, and the honest client that it attacks.
struct Mallory {
    raw: Raw,
    me: Person,
    victim: Username,
    identity: IdentityPublicKey,
    session: SessionPublicKey,
    /// The last number of the private conversation.
    sequence: u64,
    requests: u64,
    said: usize,
    /// Received items that no test has taken yet.
    kept: VecDeque<Told>,
    /// The transfer in progress, and the number of chunks that the victim has granted and that are not sent yet.
    credit: (TransferId, u32),
}

impl Mallory {
    fn new(server: &Server, who: &str, victim: &mut Client) -> Mallory {
        let (mut raw, me) = newcomer(server, who);
        victim.expect(&format!("* {who} is online"));
        let victim = name(&victim.name);
        let keys = raw.keys(&[victim.as_str()]);
        let session = keys.keys[0].session_key.as_ref().expect("online");
        Mallory {
            raw,
            me,
            victim,
            identity: IdentityPublicKey::parse(&keys.keys[0].identity.0).expect("a key"),
            session: SessionPublicKey::parse(&session.0).expect("a key"),
            sequence: 0,
            requests: 0,
            said: 0,
            kept: VecDeque::new(),
            credit: ([0; 16], 0),
        }
    }

    /// Waits for the first item that `take` accepts, and removes it.
    fn want<T>(&mut self, what: &str, mut take: impl FnMut(&Told) -> Option<T>) -> T {
        let mut at = 0;
        loop {
            if at == self.kept.len() {
                let told = match self.raw.next().unwrap_or_else(|| panic!("closed before {what}")) {
                    Heard::Packet(_, id, payload) => Told::Packet(id, payload),
                    Heard::Message(ServerMessage::EncryptedMessage(message)) => {
                        let verified = message.envelope.verify(&self.identity).expect("the victim's");
                        let text = verified.open(&self.me.session, &message.key.bytes()).expect("for us");
                        Told::Word(verified.header().kind, String::from_utf8_lossy(&text).into())
                    }
                    Heard::Message(message) => Told::Message(message),
                };
                self.kept.push_back(told);
            }
            if let Some(taken) = take(&self.kept[at]) {
                self.kept.remove(at);
                return taken;
            }
            at += 1;
        }
    }

    /// Sends an envelope unchanged, and waits until the server accepts it.
    fn post(&mut self, kind: Kind, scope: Scope, sequence: u64, session: Fingerprint, text: &str) {
        let to_one = scope != Scope::Broadcast;
        let to = to_one.then(|| (self.victim.clone(), self.session.fingerprint()));
        let header = Header { kind, session, ..header(&self.me, (scope, to), sequence) };
        let sealed = Sealed::seal(header, &self.me.identity, text.as_bytes());
        self.requests += 1;
        let (id, key) = (self.requests, sealed.wrap_for(&self.session));
        self.raw.say(&send_to(self.victim.as_str(), id, sealed.envelope, key));
        self.want("an answer", |told| match told {
            Told::Message(ServerMessage::Sent(sent)) if sent.id == id => {
                (sent.delivered.len() == 1).then_some(())
            }
            _ => None,
        });
    }

    /// Sends the victim a private envelope with the next sequence number.
    fn tell(&mut self, kind: Kind, text: &str) {
        self.sequence += 1;
        let session = self.me.session.fingerprint();
        self.post(kind, Scope::Private, self.sequence, session, text);
    }

    /// Sends every kind of file notice except an offer.
    fn meddle(&mut self, id: TransferId) {
        for kind in [Kind::FileReject, Kind::FileDone, Kind::FileCancel, Kind::FileAccept] {
            self.tell(kind, &accept(id, 0, self.me.session.fingerprint()));
        }
    }

    fn accept(&mut self, id: TransferId, start: u64) {
        self.tell(Kind::FileAccept, &accept(id, start, self.me.session.fingerprint()));
    }

    /// The victim's next notice of this kind.
    fn word(&mut self, kind: Kind) -> String {
        self.want(kind.as_str(), |told| match told {
            Told::Word(heard, text) if *heard == kind => Some(text.clone()),
            _ => None,
        })
    }

    /// The victim's next notice of this kind about one transfer.
    fn word_of(&mut self, kind: Kind, id: TransferId) -> String {
        let id = json::to_string(&Fixed(id));
        self.want(kind.as_str(), |told| match told {
            Told::Word(heard, text) if *heard == kind && text.contains(&id) => Some(text.clone()),
            _ => None,
        })
    }

    fn granted(&mut self, id: TransferId) -> u32 {
        self.want("a grant", |told| match told {
            Told::Message(ServerMessage::Grant(grant)) if grant.transfer.0 == id => Some(grant.count),
            _ => None,
        })
    }

    fn refused(&mut self, id: TransferId) {
        self.want("a refusal", |told| match told {
            Told::Message(ServerMessage::Refused(Refused { transfer, .. })) => {
                (transfer.0 == id).then_some(())
            }
            _ => None,
        });
    }

    fn send(&mut self, id: TransferId, payload: &[u8]) {
        assert!(self.raw.bytes(&packet(self.victim.as_str(), id, payload)), "the server reads");
    }

    /// Sends chunks as they are granted, until the victim cancels.
    fn pass(&mut self, id: TransferId, payloads: &[Vec<u8>]) {
        let name = json::to_string(&Fixed(id));
        for payload in payloads {
            if self.credit.0 != id {
                self.credit = (id, 0);
            }
            while self.credit.1 == 0 {
                let next = self.want("a grant or a cancel", |told| match told {
                    Told::Message(ServerMessage::Grant(grant)) if grant.transfer.0 == id => {
                        Some(Ok(grant.count))
                    }
                    Told::Word(Kind::FileCancel, text) if text.contains(&name) => Some(Err(text.clone())),
                    _ => None,
                });
                match next {
                    Ok(count) => self.credit.1 += count,
                    Err(text) => return self.kept.push_front(Told::Word(Kind::FileCancel, text)),
                }
            }
            self.credit.1 -= 1;
            self.send(id, payload);
        }
    }

    fn grant(&mut self, id: TransferId, count: u32) {
        self.raw.say(&grant(self.victim.as_str(), id, count));
    }

    /// Whether no packet of this transfer has arrived so far.
    fn has_no_packet(&mut self, id: TransferId) -> bool {
        self.raw.say(&ClientMessage::Ping);
        self.want("a pong", |told| matches!(told, Told::Message(ServerMessage::Pong)).then_some(()));
        !self.kept.iter().any(|told| matches!(told, Told::Packet(heard, _) if *heard == id))
    }

    /// Checks that both still chat, and that neither has missed a message.
    fn chat(&mut self, client: &mut Client) {
        self.said += 1;
        let (n, me) = (self.said, self.me.name.clone());
        client.say(&format!("/msg {me} number {n}"));
        assert_eq!(self.word(Kind::Message), format!("number {n}"));
        self.tell(Kind::Message, &format!("answer {n}"));
        client.expect(&format!("<{me} -> {}> answer {n}", client.name));
    }

    /// Offers the file. The client shows the offer, accepts it and grants chunks, if there are any.
    fn offer(&mut self, client: &mut Client, deal: &Deal) {
        self.tell(Kind::FileOffer, &deal.text());
        client.expect(&format!("* {} offers you a file: ", self.me.name));
        client.say("/acceptfile");
        assert!(self.word_of(Kind::FileAccept, deal.id()).contains("\"start\":0"));
        if deal.offer.size > 0 {
            self.credit = (deal.id(), self.granted(deal.id()));
        }
    }

    /// Offers the file, sends all chunks, and returns the client's line about the complete file.
    fn deliver(&mut self, client: &mut Client, deal: &Deal) -> String {
        self.offer(client, deal);
        let payloads = deal.payloads(&self.session);
        self.pass(deal.id(), &payloads);
        self.word_of(Kind::FileDone, deal.id());
        client.expect(&format!(" from {} is complete: ", self.me.name))
    }

    /// Makes the client offer this file, and returns the offer.
    fn is_offered(&mut self, client: &mut Client, file: &str, content: &[u8]) -> Offer {
        std::fs::write(client.home.path(file), content).expect("written");
        client.say(&format!("/sendfile {} {file}", self.me.name));
        let offer = json::from_str(&self.word(Kind::FileOffer)).expect("an offer");
        client.expect("who must accept it first");
        offer
    }

    /// Receives the file and confirms it.
    fn take(&mut self, client: &mut Client, offer: &Offer, content: &[u8]) {
        let id = offer.transfer.0;
        self.grant(id, offer.chunks as u32);
        let next = |told: &Told| match told {
            Told::Packet(heard, payload) if *heard == id => Some(payload.clone()),
            _ => None,
        };
        let payloads: Vec<_> = (0..offer.chunks).map(|_| self.want("a chunk", next)).collect();
        let plan = Plan { id, key: offer.key.duplicate(), size: offer.size, start: 0 };
        let mut got = Vec::new();
        for (n, group) in payloads.chunks(GROUP as usize).enumerate() {
            let opened = plan.open_group(n as u32 * GROUP, group, &self.me.session);
            opened.expect("opens").iter().for_each(|chunk| got.extend_from_slice(chunk));
        }
        assert!(got == content, "the sent content arrived");
        self.tell(Kind::FileDone, &about(id, ""));
        client.expect(&format!("* {} has received \"{}\"", self.me.name, offer.name));
        client.expect("* a copy is kept: ");
    }
}

/// A client, and mallory, who attacks it.
fn scene(victim: &str) -> (Server, Client, Mallory) {
    let server = Server::start();
    let mut victim = server.client(victim).ready();
    let mallory = Mallory::new(&server, "mallory", &mut victim);
    (server, victim, mallory)
}

/// The names in the folder of received files.
fn received(client: &Client) -> BTreeSet<String> {
    let entries = std::fs::read_dir(client.data("files/received")).expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into()).collect()
}

/// The same without parts.
fn arrived(client: &Client) -> Vec<String> {
    received(client).into_iter().filter(|name| !name.ends_with(".part")).collect()
}

/// All files in a client's home folder except the received ones.
fn elsewhere(client: &Client) -> BTreeSet<PathBuf> {
    let received = client.data("files/received");
    support::files(&client.home.0).into_iter().filter(|path| path.parent() != Some(&received)).collect()
}

const REFUSED: &str = "! refused a message that claims to come from mallory: ";
/// Seven chunks in two groups; the last chunk has 100 bytes.
const SEVEN: usize = 6 * CHUNK + 100;

/// Alice offers bob a file, and he accepts it.
fn send(pair: &mut Pair, file: &str, content: &[u8]) {
    std::fs::write(pair.alice.home.path(file), content).expect("written");
    pair.alice.say(&format!("/sendfile bob {file}"));
    pair.bob.expect(&format!("* alice offers you a file: \"{file}\""));
    pair.bob.say("/acceptfile");
}

/// Checks that they noticed nothing.
fn close(pair: Pair, mut server: Server) {
    pair.close();
    assert!(server.child.try_wait().expect("its state").is_none(), "the server has ended");
}

// ---- a hostile sender

/// PROTOCOL#plain-name.
#[test]
fn any_file_name_becomes_one_plain_file_in_its_folder() {
    let (_server, mut bob, mut mallory) = scene("bob");
    mallory.chat(&mut bob);
    let before = elsewhere(&bob);
    let long = "x".repeat(5000);
    let names: [(&str, &str); 17] = [
        ("../../.bashrc", "bashrc"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\up.exe", "up.exe"),
        ("a/../../../b.txt", "b.txt"),
        ("../../keys/bob_private.key", "bob_private.key"),
        ("\u{1b}[2J\u{1b}]0;owned\u{7}esc.txt", "_[2J_]0;owned_esc.txt"),
        ("one.txt\r\n* carol has left", "one.txt___ carol has left"),
        ("gpj.\u{202e}exe\u{2066}\u{200f}", "gpj._exe__"),
        ("\u{9b}31m\u{85}\u{feff}c1", "_31m__c1"),
        ("nul\0byte", "nul_byte"),
        ("CON", "_CON"),
        ("lpt1.txt", "_lpt1.txt"),
        ("", "file"),
        ("..", "file_1"),
        ("/", "file_2"),
        ("~", "~"),
        (&long, &long[..178]),
    ];
    for (n, (hostile, plain)) in names.iter().enumerate() {
        let deal = Deal::of(hostile, 1 + n * 10);
        let told = mallory.deliver(&mut bob, &deal);
        let place = bob.data("files/received").join(format!("mallory~{plain}"));
        assert!(told.ends_with(&format!(" is complete: {}", place.display())), "{hostile:?}: {told}");
        assert!(std::fs::read(&place).expect("there") == deal.content, "{hostile:?}");
        let facts = std::fs::symlink_metadata(&place).expect("there");
        assert!(facts.is_file(), "{hostile:?}");
    }
    assert_eq!(received(&bob).len(), names.len());
    assert_eq!(elsewhere(&bob), before);
    mallory.chat(&mut bob);
    farewell(bob);
}

/// PROTOCOL#harmless.
#[test]
fn combining_marks_in_a_file_name_are_limited() {
    let (_server, mut bob, mut mallory) = scene("bob");
    let tower = format!("a{}.txt", "\u{301}".repeat(60));
    mallory.tell(Kind::FileOffer, &Deal::of(&tower, 3).text());
    let told = bob.expect("* mallory offers you a file: ");
    // The rules of a message apply: PROTOCOL.md, "Text from others".
    assert!(!told.contains(&"\u{301}".repeat(5)), "{told}");
}

#[test]
fn received_file_is_never_taken_for_another_partial_file() {
    let (_server, mut bob, mut mallory) = scene("bob");
    let second = Deal::of("second", SEVEN);
    // The name under which bob's client looks for the part of the second file.
    let first = Deal::of(second.part("mallory").strip_prefix("mallory_").expect("its owner"), CHUNK);
    mallory.deliver(&mut bob, &first);
    let place = bob.data("files/received").join(received(&bob).first().expect("one file"));
    mallory.tell(Kind::FileOffer, &second.text());
    bob.expect("* mallory offers you a file: \"second\"");
    bob.say("/acceptfile");
    let accept = mallory.word_of(Kind::FileAccept, second.id());
    assert!(accept.contains("\"start\":0"), "no part of the second file exists: {accept}");
    mallory.tell(Kind::FileCancel, &about(second.id(), ",\"reason\":\"cancelled\""));
    bob.expect("mallory has cancelled \"second\"");
    mallory.chat(&mut bob);
    assert!(std::fs::read(place).expect("still there") == first.content, "nothing overwrites it");
    farewell(bob);
}

/// PROTOCOL#bad-file-message, PROTOCOL#offer-life, PROTOCOL#file_offer.
#[test]
fn contradictory_offers_are_refused_and_the_list_is_limited() {
    let (_server, mut bob, mut mallory) = scene("bob");
    let honest = Deal::of("honest", SEVEN);
    let lie = |change: &dyn Fn(&mut Offer)| {
        let mut deal = Deal::of("lie", SEVEN);
        change(&mut deal.offer);
        deal.text()
    };
    let replaced = |from: &str, to: &str| honest.text().replacen(from, to, 1);
    let huge = format!("{{\"name\":\"{}", "x".repeat(32_000));
    let mut texts = vec![
        lie(&|offer| offer.chunks += 1),
        lie(&|offer| offer.chunks -= 1),
        lie(&|offer| offer.chunks = 0),
        lie(&|offer| offer.chunks = u64::MAX),
        lie(&|offer| offer.size = u64::MAX),
        lie(&|offer| (offer.size, offer.chunks) = (u64::MAX, u64::MAX.div_ceil(CHUNK as u64))),
        lie(&|offer| (offer.size, offer.chunks) = (1 << 48, 1 << 32)),
        lie(&|offer| (offer.size, offer.chunks) = (0, 1)),
        replaced("\"size\":", "\"size\":-"),
        replaced("\"size\":", "\"size\":1e9"),
        replaced("\"chunks\":", "\"chunk\":"),
        replaced("\"key\":\"", "\"key\":\"AAAA"),
        replaced("\"transfer\":\"", "\"transfer\":\"AAAA"),
        replaced("\"name\":\"honest\"", "\"name\":[\"honest\"]"),
        replaced("{", "{{"),
        format!("[{}]", honest.text()),
        huge,
        "[".repeat(32_000),
        "{\"a\":".repeat(6_000),
    ];
    texts.extend(["", "{}", "null", "not JSON", "\u{1b}[2J"].map(String::from));
    for text in &texts {
        mallory.tell(Kind::FileOffer, text);
    }
    // An offer to everyone or to a room is refused, and does not use up its number.
    let ours = mallory.me.session.fingerprint();
    for scope in [Scope::Broadcast, Scope::Room] {
        for kind in [Kind::FileOffer, Kind::FileAccept, Kind::FileCancel, Kind::FileDone] {
            mallory.post(kind, scope, mallory.sequence + 1, ours, &honest.text());
        }
    }
    // Invalid notices about unknown transfers.
    for kind in [Kind::FileAccept, Kind::FileReject, Kind::FileCancel, Kind::FileDone] {
        for text in ["", "{}", "[]", "{\"transfer\":\"AAAA\",\"start\":0}", "{\"transfer\":7,\"start\":-1}"] {
            mallory.tell(kind, text);
        }
    }
    // A valid notice that answers no offer is ignored.
    mallory.accept(random(), 1 << 32);
    mallory.chat(&mut bob);
    bob.ask("/files", "* no files are offered or in progress");
    assert!(!bob.output.seen.iter().any(|line| line.contains("offers you")), "{:#?}", bob.output.seen);
    // The same offer twice, then hundreds of offers.
    mallory.tell(Kind::FileOffer, &honest.text());
    bob.expect("* mallory offers you a file: \"honest\"");
    mallory.tell(Kind::FileOffer, &honest.text());
    for n in 0..200 {
        mallory.tell(Kind::FileOffer, &Deal::of(&format!("flood-{n}"), 1).text());
    }
    mallory.chat(&mut bob);
    bob.say("/files");
    for _ in 0..16 {
        bob.expect(" from mallory: is offered");
    }
    assert!(received(&bob).is_empty());
    let lines = farewell(bob);
    assert_eq!(times(&lines, "offers you a file"), 16);
    let refused = texts.len() as u64 + 8 + 20 + 1 + 185;
    assert_eq!(times(&lines, REFUSED), refused, "{lines:#?}");
}

/// PROTOCOL#chunk-order, PROTOCOL#chunk-mac, PROTOCOL#chunk-keys, PROTOCOL#whole-file, PROTOCOL#grants.
#[test]
fn file_with_a_wrong_chunk_ends_and_never_gets_its_name() {
    let (_server, mut bob, mut mallory) = scene("bob");
    let session = mallory.session.clone();
    let stranger = SessionKey::generate();
    let (order, altered) = ("a part of it arrived twice or is missing", "a part of it was altered");
    type Chunks = Vec<Vec<u8>>;
    type Spoil<'a> = &'a dyn Fn(&Deal, &mut Chunks);
    let last = |payload: &mut Vec<u8>| *payload.last_mut().expect("a byte") ^= 1;
    let rewrapped = |first: u32, keys: usize, key: SessionPublicKey| {
        move |deal: &Deal, all: &mut Chunks| {
            rewrap(deal, first, &mut all[first as usize], &vec![7; keys * 32], &key);
        }
    };
    let (few, many) = (rewrapped(0, 4, session.clone()), rewrapped(5, 5, session.clone()));
    let (none, foreign) = (rewrapped(0, 0, session.clone()), rewrapped(0, 5, stranger.public().clone()));
    let other = Deal::of("other", SEVEN).payloads(&session);
    let spoils: [(&str, &str, Spoil<'_>); 22] = [
        ("one twice", order, &|_, all| all[2] = all[1].clone()),
        ("one missing", order, &|_, all| drop(all.remove(1))),
        ("the first missing", order, &|_, all| drop(all.remove(0))),
        ("two swapped", order, &|_, all| all.swap(2, 3)),
        ("two groups swapped", order, &|_, all| all.swap(0, 5)),
        ("another index", order, &|deal, all| {
            all[1][..MAC].copy_from_slice(&u32::MAX.to_be_bytes());
            resign(deal, &mut all[1]);
        }),
        ("an index without its MAC", altered, &|_, all| all[1][3] = 2),
        ("one byte more", altered, &|_, all| all[3].push(0)),
        ("one byte less", altered, &|_, all| all[3].truncate(CHUNK)),
        ("the last longer than the file", altered, &|_, all| all[6].extend([0; CHUNK - 100])),
        ("an empty one", altered, &|_, all| all[1].clear()),
        ("a head alone", altered, &|_, all| all[1].truncate(BLOCK)),
        ("a wrong MAC", altered, &|_, all| all[1][MAC] ^= 1),
        ("a wrong tag under a right MAC", altered, &|deal, all| {
            all[1][TAG] ^= 1;
            resign(deal, &mut all[1]);
        }),
        ("a wrong nonce under a right MAC", altered, &|deal, all| {
            all[6][NONCE] ^= 1;
            resign(deal, &mut all[6]);
        }),
        ("an altered byte of the text", altered, &|_, all| last(&mut all[4])),
        ("an altered block", altered, &|_, all| all[5][BLOCK + 9] ^= 1),
        ("a block with too few keys", altered, &few),
        ("a block with too many keys", altered, &many),
        ("a block without keys", altered, &none),
        ("a block for somebody else", altered, &foreign),
        ("a chunk of another file", altered, &|_, all| all[1] = other[1].clone()),
    ];
    const SECOND_GROUP: [&str; 4] = [
        "the last longer than the file",
        "a wrong nonce under a right MAC",
        "an altered block",
        "a block with too many keys",
    ];
    for (n, (what, why, spoil)) in spoils.into_iter().enumerate() {
        let deal = Deal::of(&format!("file-{n}"), SEVEN);
        mallory.offer(&mut bob, &deal);
        let mut payloads = deal.payloads(&session);
        spoil(&deal, &mut payloads);
        mallory.pass(deal.id(), &payloads);
        let told = bob.expect(&format!("! file-{n} ← mallory: "));
        assert!(told.contains(why), "{what}: {told}");
        // Only the group before the wrong one is kept.
        let first_is_right = SECOND_GROUP.contains(&what);
        assert_eq!(told.ends_with("it resumes when it is offered again"), first_is_right, "{what}: {told}");
        let reason = mallory.word_of(Kind::FileCancel, deal.id());
        assert!(reason.contains(why), "{what}: {reason}");
        // The grant is revoked.
        until("nothing is granted any more", || {
            mallory.send(deal.id(), b"late");
            mallory.raw.say(&ClientMessage::Ping);
            mallory.want("a refusal or a pong", |told| match told {
                Told::Message(ServerMessage::Refused(refused)) if refused.transfer.0 == deal.id() => {
                    Some(true)
                }
                Told::Message(ServerMessage::Pong) => Some(false),
                _ => None,
            })
        });
        assert!(arrived(&bob).is_empty(), "{what}: {:?}", arrived(&bob));
    }
    mallory.chat(&mut bob);
    // A wrong hash of the whole file: every chunk is valid, and not a byte is kept.
    for size in [SEVEN, 0] {
        let mut lie = Deal::of("lie", size);
        lie.offer.sha256 = Fixed(random());
        mallory.offer(&mut bob, &lie);
        mallory.pass(lie.id(), &lie.payloads(&session));
        let told = bob.expect("! lie ← mallory: ");
        assert!(told.contains("it is not the file that was offered"), "{told}");
        assert!(mallory.word_of(Kind::FileCancel, lie.id()).contains("not the file that was offered"));
        assert!(!received(&bob).contains(&lie.part("mallory")), "{:?}", received(&bob));
    }
    assert!(arrived(&bob).is_empty(), "{:?}", arrived(&bob));
    mallory.deliver(&mut bob, &Deal::of("honest", SEVEN));
    assert_eq!(arrived(&bob), ["mallory~honest"]);
    mallory.chat(&mut bob);
    farewell(bob);
}

/// PROTOCOL#whole-file, PROTOCOL#file_cancel.
#[test]
fn file_of_another_size_than_offered_never_gets_its_name() {
    let (_server, mut bob, mut mallory) = scene("bob");
    let session = mallory.session.clone();
    // More or less than was offered.
    let altered = "a part of it was altered";
    for (real, said, why) in [
        (6 * CHUNK, 5 * CHUNK, "it is not the file that was offered"),
        (7 * CHUNK, 6 * CHUNK, altered),
        (SEVEN, SEVEN - 1, altered),
        (SEVEN, SEVEN + 1, altered),
    ] {
        let mut deal = Deal::of("larger", real);
        (deal.offer.size, deal.offer.chunks) = (said as u64, said.div_ceil(CHUNK) as u64);
        mallory.offer(&mut bob, &deal);
        mallory.pass(deal.id(), &deal.payloads(&session));
        let told = bob.expect("! larger ← mallory: ");
        assert!(told.contains(why), "{real} for {said}: {told}");
        assert!(mallory.word_of(Kind::FileCancel, deal.id()).contains(why));
    }
    // Fewer chunks, then silence: the recipient cancels.
    let deal = Deal::of("silent", SEVEN);
    mallory.offer(&mut bob, &deal);
    mallory.pass(deal.id(), &deal.payloads(&session)[..6]);
    mallory.chat(&mut bob);
    bob.ask("/cancel", "* you have cancelled \"silent\" (393.3 kB) from mallory");
    assert!(mallory.word_of(Kind::FileCancel, deal.id()).contains("\"cancelled\""));
    until("the part is removed", || !received(&bob).contains(&deal.part("mallory")));
    // Fewer chunks, then a cancellation, and late chunks after it.
    for reason in ["", ",\"reason\":\"cancelled\"", ",\"reason\":\"\\u001b[2Jno\\nmore \\u202edisk\""] {
        let deal = Deal::of("broken", SEVEN);
        mallory.offer(&mut bob, &deal);
        let payloads = deal.payloads(&session);
        mallory.pass(deal.id(), &payloads[..6]);
        mallory.tell(Kind::FileCancel, &about(deal.id(), reason));
        let told = bob.expect("! ");
        assert!(
            told.contains("mallory has cancelled \"broken\"")
                || told.contains("\"broken\" (393.3 kB) failed on mallory's side"),
            "{told}"
        );
        mallory.send(deal.id(), &payloads[6]);
        mallory.chat(&mut bob);
    }
    // The largest file that an offer can describe.
    let mut most = Deal::of("most", 1);
    (most.offer.size, most.offer.chunks) = ((1 << 48) - CHUNK as u64, (1 << 32) - 1);
    mallory.offer(&mut bob, &most);
    mallory.tell(Kind::FileCancel, &about(most.id(), ""));
    bob.expect("! \"most\" (281.4 TB) failed on mallory's side");
    mallory.chat(&mut bob);
    assert!(arrived(&bob).is_empty(), "{:?}", arrived(&bob));
    farewell(bob);
}

/// PROTOCOL#asked-for, PROTOCOL#not-granted.
#[test]
fn unrequested_packets_reach_no_client_or_disk() {
    let (_server, mut bob, mut mallory) = scene("bob");
    let deal = Deal::of("eager", SEVEN);
    let payloads = deal.payloads(&mallory.session);
    mallory.tell(Kind::FileOffer, &deal.text());
    bob.expect("* mallory offers you a file: \"eager\"");
    for payload in &payloads {
        mallory.send(deal.id(), payload);
        mallory.refused(deal.id());
    }
    assert!(received(&bob).is_empty());
    bob.say("/acceptfile");
    mallory.word_of(Kind::FileAccept, deal.id());
    // Packets of another transfer, or more than were granted, are refused and do not disturb the file.
    mallory.send(random(), &payloads[0]);
    mallory.pass(deal.id(), &payloads);
    mallory.send(deal.id(), &payloads[6]);
    mallory.refused(deal.id());
    mallory.word_of(Kind::FileDone, deal.id());
    bob.expect("* \"eager\" (393.3 kB) from mallory is complete: ");
    mallory.send(deal.id(), &payloads[0]);
    mallory.refused(deal.id());
    assert_eq!(received(&bob), BTreeSet::from(["mallory~eager".to_string()]));
    assert!(std::fs::read(bob.data("files/received/mallory~eager")).expect("there") == deal.content);
    mallory.chat(&mut bob);
    farewell(bob);
}

/// PROTOCOL#bad-file-message.
#[test]
fn notice_or_packet_about_a_foreign_transfer_does_nothing() {
    let server = Server::start();
    let mut bob = server.client("bob").ready();
    let mut carol = Mallory::new(&server, "carol", &mut bob);
    let mut mallory = Mallory::new(&server, "mallory", &mut bob);
    let deal = Deal::of("between", SEVEN);
    let payloads = deal.payloads(&carol.session);
    carol.tell(Kind::FileOffer, &deal.text());
    bob.expect("* carol offers you a file: \"between\"");
    // Mallory has learned the transfer id, and even the key.
    let meddle = |mallory: &mut Mallory, id: TransferId| {
        mallory.meddle(id);
        mallory.send(id, &payloads[0]);
        mallory.refused(id);
    };
    meddle(&mut mallory, deal.id());
    meddle(&mut mallory, random());
    bob.say("/files");
    assert!(bob.expect(" \"between\" ").contains("from carol: is offered"));
    bob.say("/acceptfile");
    carol.word_of(Kind::FileAccept, deal.id());
    meddle(&mut mallory, deal.id());
    carol.pass(deal.id(), &payloads[..6]);
    meddle(&mut mallory, deal.id());
    // Notices of its sender that are unexpected here.
    for kind in [Kind::FileAccept, Kind::FileReject, Kind::FileDone] {
        carol.tell(kind, &accept(deal.id(), 0, carol.me.session.fingerprint()));
    }
    carol.pass(deal.id(), &payloads[6..]);
    carol.word_of(Kind::FileDone, deal.id());
    bob.expect("* \"between\" (393.3 kB) from carol is complete: ");
    meddle(&mut mallory, deal.id());
    mallory.chat(&mut bob);
    let lines = farewell(bob);
    assert!(!lines.iter().any(|line| line.starts_with('!')), "{lines:#?}");
}

// ---- a hostile recipient

/// PROTOCOL#bad-file-message, PROTOCOL#chunk-session, PROTOCOL#file_accept.
#[test]
fn wrong_answer_to_an_offer_ends_it_or_does_nothing() {
    let (_server, mut alice, mut mallory) = scene("alice");
    let content = noise(SEVEN);
    // A start beyond the end.
    for start in [8, u32::MAX.into(), 1 << 32, u64::MAX] {
        let offer = mallory.is_offered(&mut alice, "beyond", &content);
        mallory.accept(offer.transfer.0, start);
        alice.expect("! beyond → mallory: the answer starts after the end of the file");
        assert!(mallory.word_of(Kind::FileCancel, offer.transfer.0).contains("after the end of the file"));
        mallory.grant(offer.transfer.0, 7);
        assert!(mallory.has_no_packet(offer.transfer.0));
    }
    // With a session key that the server does not show.
    let offer = mallory.is_offered(&mut alice, "keyless", &content);
    mallory.tell(Kind::FileAccept, &accept(offer.transfer.0, 0, Fingerprint([7; 32])));
    alice.expect("! keyless → mallory: it was accepted in an earlier session: offer it again");
    mallory.word_of(Kind::FileCancel, offer.transfer.0);
    mallory.grant(offer.transfer.0, 7);
    assert!(mallory.has_no_packet(offer.transfer.0));
    // Confirmed before it was accepted, accepted twice, then declined: it is sent once, from the first start.
    let offer = mallory.is_offered(&mut alice, "again", &content);
    let id = offer.transfer.0;
    mallory.tell(Kind::FileDone, &about(id, ""));
    [0, 5, 0].into_iter().for_each(|start| mallory.accept(id, start));
    mallory.tell(Kind::FileReject, &about(id, ""));
    mallory.take(&mut alice, &offer, &content);
    mallory.meddle(id);
    mallory.grant(id, 7);
    mallory.chat(&mut alice);
    assert!(mallory.has_no_packet(id));
    let lines = farewell(alice);
    for once in ["* mallory has received ", "* sending \"again\""] {
        assert_eq!(lines.iter().filter(|line| line.starts_with(once)).count(), 1, "{lines:#?}");
    }
}

/// PROTOCOL#granted-limit, PROTOCOL#harmless.
#[test]
fn recipient_that_grants_nothing_or_everything_delays_nobody() {
    let (_server, mut alice, mut mallory) = scene("alice");
    let offer = mallory.is_offered(&mut alice, "waiting", &noise(SEVEN));
    let id = offer.transfer.0;
    mallory.accept(id, 0);
    mallory.chat(&mut alice);
    for count in [u32::MAX, 129] {
        mallory.grant(id, count);
        mallory.refused(id);
    }
    let beyond = support::with_field(&grant("alice", id, 1).encode(), "count", "4294967296");
    mallory.raw.bytes(beyond.as_bytes());
    mallory.want("an error", |told| match told {
        Told::Message(ServerMessage::Error(failure)) => (failure.code == "malformed").then_some(()),
        _ => None,
    });
    mallory.chat(&mut alice);
    assert!(mallory.has_no_packet(id));
    alice.ask("/cancel", "* you have cancelled \"waiting\" (393.3 kB) to mallory");
    assert!(mallory.word_of(Kind::FileCancel, id).contains("\"cancelled\""));
    mallory.grant(id, 128);
    mallory.chat(&mut alice);
    assert!(mallory.has_no_packet(id));
    // Reasons with terminal control sequences.
    for reason in
        ["\\u001b[2J\\u001b]0;owned\\u0007", "no\\r\\n<alice> I owe you\\u202e", &"\\u0000x".repeat(4_000)]
    {
        let offer = mallory.is_offered(&mut alice, "reasons", b"short");
        let text = about(offer.transfer.0, &format!(",\"reason\":\"{reason}\""));
        mallory.tell(Kind::FileCancel, &text);
        let told = alice.expect("! \"reasons\" (5 B) failed on mallory's side: ");
        assert!(told.chars().count() < 300, "{told}");
    }
    mallory.chat(&mut alice);
    farewell(alice);
}

/// PROTOCOL#transfer-end, PROTOCOL#file_done.
#[test]
fn recipient_that_confirms_early_gets_no_more_chunks() {
    let (_server, mut alice, mut mallory) = scene("alice");
    let id = mallory.is_offered(&mut alice, "early", &noise(SEVEN)).transfer.0;
    mallory.accept(id, 0);
    mallory.tell(Kind::FileDone, &about(id, ""));
    alice.expect("* mallory has received \"early\"");
    alice.expect(" kept: ");
    mallory.grant(id, 7);
    mallory.chat(&mut alice);
    assert!(mallory.has_no_packet(id), "it is over");
    farewell(alice);
}

/// PROTOCOL#bad-file-message.
#[test]
fn only_the_recipient_of_an_offer_can_answer_it() {
    let server = Server::start();
    let mut alice = server.client("alice").ready();
    let mut bob = Mallory::new(&server, "bob", &mut alice);
    let mut mallory = Mallory::new(&server, "mallory", &mut alice);
    let content = noise(SEVEN);
    let offer = bob.is_offered(&mut alice, "for-bob", &content);
    let id = offer.transfer.0;
    let meddle = |mallory: &mut Mallory| {
        mallory.meddle(id);
        mallory.grant(id, 7);
    };
    meddle(&mut mallory);
    mallory.chat(&mut alice);
    alice.ask("/files", "\"for-bob\" (393.3 kB) to bob: waits for bob");
    bob.accept(id, 0);
    bob.chat(&mut alice);
    meddle(&mut mallory);
    mallory.chat(&mut alice);
    assert!(bob.has_no_packet(id) && mallory.has_no_packet(id), "mallory's grants are for mallory alone");
    bob.take(&mut alice, &offer, &content);
    mallory.chat(&mut alice);
    assert!(mallory.has_no_packet(id));
    let lines = farewell(alice);
    assert!(!lines.iter().any(|line| line.starts_with('!')), "{lines:#?}");
}

// ---- a hostile server, between real clients and a real one

/// Two clients on a server, with a relay of its operator before each.
fn tapped() -> (Server, Operator, Operator, Pair) {
    let server = Server::with(&["--no-tls"]);
    let (to_alice, to_bob) = (Operator::before(&server), Operator::before(&server));
    let start = |operator: &Operator, name| operator.client(&Arc::new(Folder::new()), name);
    let pair = Pair::of(start(&to_alice, "alice"), start(&to_bob, "bob"));
    (server, to_alice, to_bob, pair)
}

/// Sets a rule for the packet with this number; lines pass unchanged.
fn packets(
    operator: &Operator,
    mut change: impl FnMut(usize, TransferId, Vec<u8>) -> Vec<Vec<u8>> + Send + 'static,
) {
    let mut count = 0;
    operator.rule(move |heard| match heard {
        Heard::Packet(_, id, payload) => {
            count += 1;
            change(count - 1, id, payload)
        }
        line => vec![line.encode()],
    });
}

/// Sets a rule for each grant; everything else passes unchanged.
fn grants(operator: &Operator, mut change: impl FnMut(Grant) -> Vec<Vec<u8>> + Send + 'static) {
    operator.rule(move |heard| match heard {
        Heard::Message(ServerMessage::Grant(grant)) => change(grant),
        other => vec![other.encode()],
    });
}

fn refusal(peer: &str, id: TransferId) -> Vec<u8> {
    ServerMessage::Refused(Refused { peer: name(peer), transfer: Fixed(id) }).encode()
}

/// PROTOCOL#chunk-order, PROTOCOL#chunk-mac, PROTOCOL#transfer-end.
#[test]
fn file_altered_by_the_server_ends_and_never_gets_its_name() {
    let (_server, to_alice, to_bob, mut pair) = tapped();
    let (order, altered) = ("a part of it arrived twice or is missing", "a part of it was altered");
    let gone = "the other side has stopped responding";
    let content = || noise(SEVEN);
    let as_it_is = |id, payload: &[u8]| vec![packet("alice", id, payload)];
    type Change = Box<dyn FnMut(usize, TransferId, Vec<u8>) -> Vec<Vec<u8>> + Send>;
    let flip = |which: usize, at: usize| -> Change {
        Box::new(move |n, id, mut payload| {
            if n == which {
                let at = at.min(payload.len() - 1);
                payload[at] ^= 1;
            }
            as_it_is(id, &payload)
        })
    };
    let mut held = None;
    let cases: [(&str, &str, Change); 14] = [
        ("the index", altered, flip(0, 3)),
        ("the MAC", altered, flip(0, MAC)),
        ("the nonce", altered, flip(6, NONCE)),
        ("the tag", altered, flip(3, TAG)),
        ("the block", altered, flip(0, TEXT - 1)),
        ("the text", altered, flip(2, 30_000)),
        ("the last byte", altered, flip(6, usize::MAX)),
        (
            "one dropped",
            order,
            Box::new(move |n, id, payload| if n == 1 { vec![] } else { as_it_is(id, &payload) }),
        ),
        (
            "one repeated",
            order,
            Box::new(move |_, id, payload| vec![packet("alice", id, &payload).repeat(2)]),
        ),
        (
            "two swapped",
            order,
            Box::new(move |n, id, payload| match n {
                1 => {
                    held = Some(payload);
                    vec![]
                }
                2 => [payload, held.take().unwrap_or_default()]
                    .iter()
                    .flat_map(|one| as_it_is(id, one))
                    .collect(),
                _ => as_it_is(id, &payload),
            }),
        ),
        (
            "one of its own",
            // An additional packet shifts all that follow.
            "a part of it ",
            Box::new(move |n, id, payload| {
                let own = if n == 0 { as_it_is(id, &noise(5000)) } else { vec![] };
                own.into_iter().chain(as_it_is(id, &payload)).collect()
            }),
        ),
        (
            "more data arrived than was requested",
            "",
            Box::new(move |_, id, payload| vec![packet("alice", id, &payload).repeat(100)]),
        ),
        (
            "one under another's name",
            order,
            Box::new(move |n, id, payload| match n {
                1 => vec![packet("carol", id, &payload)],
                _ => as_it_is(id, &payload),
            }),
        ),
        (
            "a refusal",
            gone,
            Box::new(move |n, id, payload| match n {
                0 => vec![packet("alice", id, &payload), refusal("alice", id)],
                _ => vec![],
            }),
        ),
    ];
    for (n, (what, why, change)) in cases.into_iter().enumerate() {
        packets(&to_bob, change);
        let file = format!("file-{n}");
        send(&mut pair, &file, &content());
        let told = pair.bob.expect(&format!("! {file} ← alice: "));
        assert!(told.contains(why), "{what}: {told}");
        let told = pair.alice.expect(&format!("! \"{file}\" (393.3 kB) failed on bob's side: "));
        assert!(told.contains(why), "{what}: {told}");
        assert!(arrived(&pair.bob).is_empty(), "{what}: {:?}", arrived(&pair.bob));
        pair.exchange();
    }
    to_bob.rule(|heard| vec![heard.encode()]);
    // The sender gets a refusal instead of a grant.
    grants(&to_alice, |grant| vec![refusal("bob", grant.transfer.0)]);
    send(&mut pair, "refused", &content());
    pair.alice.expect(&format!("! refused → bob: {gone}"));
    pair.bob.expect(&format!("! \"refused\" (393.3 kB) failed on alice's side: {gone}"));
    // The operator grants more than bob did: the real server accepts only what bob granted.
    grants(&to_alice, |grant| vec![ServerMessage::Grant(Grant { count: u32::MAX, ..grant }).encode()]);
    packets(&to_bob, |_, _, _| vec![]);
    send(&mut pair, "flood", &noise(40 * CHUNK));
    pair.alice.expect(&format!("! flood → bob: {gone}"));
    pair.bob.expect(&format!("! \"flood\" (2.6 MB) failed on alice's side: {gone}"));
    pair.exchange();
    assert!(arrived(&pair.bob).is_empty(), "{:?}", arrived(&pair.bob));
    let (lines, more) = (farewell(pair.alice), farewell(pair.bob));
    assert!(
        !lines.iter().chain(&more).any(|line| line.contains(" is complete") || line.contains("has received"))
    );
}

#[test]
fn invented_server_messages_do_not_harm_a_transfer() {
    let (_server, to_alice, to_bob, mut pair) = tapped();
    packets(&to_bob, |_, id, payload| {
        let malformed = vec![0, 0, 0, 0, 0];
        let unknown = packet("alice", random(), &payload);
        let strangers = packet("carol", id, &noise(100));
        let line = ServerMessage::Grant(Grant { peer: name("alice"), transfer: Fixed(id), count: u32::MAX });
        vec![unknown, strangers, refusal("carol", id), refusal("alice", random()), line.encode(), malformed]
            .into_iter()
            .chain([packet("alice", id, &payload)])
            .collect()
    });
    grants(&to_alice, |Grant { peer, transfer, count }| {
        let grant = |peer: &Username, transfer, count| {
            ServerMessage::Grant(Grant { peer: peer.clone(), transfer, count }).encode()
        };
        // The sum is beyond any number; the others are for nobody.
        let (huge, carol) = (grant(&peer, transfer, u32::MAX), name("carol"));
        let stray =
            [grant(&carol, transfer, 9), grant(&peer, Fixed([1; 16]), 9), refusal("carol", transfer.0)];
        [vec![huge.clone(), huge, grant(&peer, transfer, count)], stray.to_vec()].concat()
    });
    // As many chunks as the recipient's first grant, because it never made the invented ones.
    let content = noise(CHUNK + 1);
    send(&mut pair, "untouched", &content);
    pair.bob.expect("* \"untouched\" (65.5 kB) from alice is complete: ");
    pair.alice.expect("* bob has received \"untouched\"");
    assert!(std::fs::read(pair.bob.data("files/received/alice~untouched")).expect("there") == content);
    pair.exchange();
    assert_eq!(pair.alice.output.seen.iter().find(|line| line.starts_with('!')), None);
    farewell(pair.alice);
    let lines = farewell(pair.bob);
    assert_eq!(times(&lines, "! the server sent an invalid message"), 2, "{lines:#?}");
}

// ---- hostile clients, against the server

/// PROTOCOL#bad-packet, PROTOCOL#packet.
#[test]
fn malformed_packet_gets_a_code_and_a_long_one_closes() {
    let server = Server::start();
    let mut pair = Pair::on(&server);
    let body = |body: &[u8]| [&[0], &(body.len() as u32).to_be_bytes()[..], body].concat();
    // Before login, only lines are valid.
    for bytes in [packet("bob", [1; 16], b"\n"), packet("bob", [1; 16], &[7; 20_000])] {
        let mut raw = server.raw();
        raw.bytes(&bytes);
        let code = raw.error();
        assert!(["malformed", "line_too_long"].contains(&code.as_str()) && raw.is_closed(), "{code}");
    }
    let (mut raw, _) = newcomer(&server, "mallory");
    let long = [&[33u8][..], &[b'a'; 33], &[0; 16]].concat();
    for bad in [
        &b""[..],
        &[0],
        &[0; 40],
        &[3, b'b', b'o', b'b'],
        b"\x03bob fifteen bytes",
        b"\xffbob................",
        b"\x03b/b................",
        b"\x03\xff\xfe\xfd................",
        b"\x04bob\n................",
        b"\x04-bob................",
        &long,
    ] {
        raw.bytes(&body(bad));
        assert_eq!(raw.error(), "malformed", "{bad:?}");
        assert!(raw.is_usable(), "{bad:?}");
    }
    pair.exchange();
    // The longest body, and one byte more.
    let head = "bob".len() + 17;
    raw.bytes(&packet("bob", [1; 16], &vec![7; MAX_PACKET - head]));
    assert!(matches!(raw.answer(), Some(ServerMessage::Refused(_))));
    assert!(raw.is_usable());
    raw.bytes(&packet("bob", [1; 16], &vec![7; MAX_PACKET - head + 1])[..5]);
    assert_eq!(raw.error(), "line_too_long");
    assert!(raw.is_closed());
    let (mut raw, _) = newcomer(&server, "eve");
    raw.bytes(&[0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(raw.error(), "line_too_long");
    assert!(raw.is_closed());
    close(pair, server);
}

/// The next answer must be a refusal of this transfer.
fn is_refused(raw: &mut Raw, id: TransferId) {
    match raw.answer() {
        Some(ServerMessage::Refused(refused)) => assert!(refused.transfer.0 == id, "of another transfer"),
        _ => panic!("not refused"),
    }
}

fn is_granted(raw: &mut Raw, id: TransferId, count: u32) {
    match raw.answer() {
        Some(ServerMessage::Grant(grant)) => assert!((grant.transfer.0, grant.count) == (id, count)),
        _ => panic!("not granted"),
    }
}

/// PROTOCOL#grants, PROTOCOL#granted-limit, PROTOCOL#not-granted, PROTOCOL#grant, PROTOCOL#refused.
#[test]
fn packet_goes_only_where_and_as_often_as_granted() {
    let server = Server::start();
    let mut pair = Pair::on(&server);
    let (mut taker, _) = newcomer(&server, "taker");
    let (mut sender, _) = newcomer(&server, "sender");
    let (mut mallory, _) = newcomer(&server, "mallory");
    let (a, b): (TransferId, TransferId) = (random(), random());
    for to in ["nobody", "sender", "taker", "bob"] {
        sender.bytes(&packet(to, a, b"ungranted"));
        is_refused(&mut sender, a);
        assert!(sender.is_usable(), "{to}");
    }
    pair.exchange();
    // Grants to offline names are refused and do not count.
    for n in 0..300 {
        taker.say(&grant(&format!("nobody-{n}"), a, 128));
        is_refused(&mut taker, a);
    }
    for count in [129, u32::MAX] {
        taker.say(&grant("sender", a, count));
        is_refused(&mut taker, a);
    }
    for n in 0..128u8 {
        taker.say(&grant("sender", [n; 16], 1));
        is_granted(&mut sender, [n; 16], 1);
    }
    taker.say(&grant("sender", a, 1));
    is_refused(&mut taker, a);
    // A revoked grant is not passed on, and frees its packets.
    for n in 0..128u8 {
        taker.say(&grant("sender", [n; 16], 0));
    }
    assert!(taker.is_usable());
    sender.bytes(&packet("taker", [5; 16], b"taken back"));
    is_refused(&mut sender, [5; 16]);
    taker.say(&grant("sender", a, 100));
    is_granted(&mut sender, a, 100);
    taker.say(&grant("sender", b, 29));
    is_refused(&mut taker, b);
    taker.say(&grant("sender", a, 0));
    taker.say(&grant("sender", b, 3));
    is_granted(&mut sender, b, 3);
    // A grant is for one sender and one transfer.
    mallory.bytes(&packet("taker", b, b"not mine"));
    is_refused(&mut mallory, b);
    sender.bytes(&packet("taker", a, b"of another"));
    is_refused(&mut sender, a);
    sender.bytes(&packet("mallory", b, b"to another"));
    is_refused(&mut sender, b);
    for n in 0..4u8 {
        sender.bytes(&packet("taker", b, &[n]));
    }
    is_refused(&mut sender, b);
    for n in 0..3u8 {
        match taker.next() {
            Some(Heard::Packet(from, id, payload)) => {
                assert!((from.as_str(), id, payload) == ("sender", b, vec![n]));
            }
            _ => panic!("not the packet"),
        }
    }
    assert!(taker.is_usable() && sender.is_usable() && mallory.is_usable());
    // A grant ends with the session of the user who gave it.
    taker.say(&grant("mallory", a, 1));
    is_granted(&mut mallory, a, 1);
    let again = Person::new("taker");
    let mut second = server.raw();
    second.logs_in(&again);
    assert!(second.is_usable());
    mallory.bytes(&packet("taker", a, b"for the former one"));
    is_refused(&mut mallory, a);
    close(pair, server);
}

/// PROTOCOL#packet-cost.
#[test]
fn sender_of_refused_packets_is_throttled() {
    let server = Server::with(&["--rate", "20"]);
    let (mut raw, _) = newcomer(&server, "mallory");
    let started = Instant::now();
    raw.bytes(&packet("nobody", [1; 16], b"x").repeat(100));
    for _ in 0..100 {
        is_refused(&mut raw, [1; 16]);
    }
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    let started = Instant::now();
    raw.bytes(&[0; 5].repeat(40));
    for _ in 0..40 {
        assert_eq!(raw.error(), "malformed");
    }
    assert!(started.elapsed() >= Duration::from_millis(1800), "{:?}", started.elapsed());
}

/// PROTOCOL#packet.
#[test]
fn split_packet_is_joined_and_a_broken_one_leaves_nothing() {
    let server = Server::with(&["--no-tls", "--grace", "1"]);
    let mut pair = Pair::on(&server);
    let (mut raw, _) = newcomer(&server, "mallory");
    let whole = packet("bob", [1; 16], b"1\n{}\0");
    let stream = [&whole[..], &ClientMessage::Ping.encode(), &whole].concat();
    for cut in 1..stream.len() {
        let (start, rest) = stream.split_at(cut);
        raw.bytes(start);
        // Another answer comes between, so that the two halves do not arrive together.
        if cut.is_multiple_of(8) {
            pair.exchange();
        }
        raw.bytes(rest);
        is_refused(&mut raw, [1; 16]);
        assert!(matches!(raw.answer(), Some(ServerMessage::Pong)), "cut at {cut}");
        is_refused(&mut raw, [1; 16]);
    }
    drop(raw);
    for (n, cut) in [1, 3, 5, 6, 8, 20, whole.len() - 1].into_iter().enumerate() {
        let who = format!("cut-{n}");
        let (mut raw, _) = newcomer(&server, &who);
        raw.bytes(&whole[..cut]);
        drop(raw);
        server.logs(&format!("event=logout user={who} "));
    }
    close(pair, server);
}

#[test]
fn client_that_grants_and_never_reads_delays_no_other() {
    let server = Server::start();
    let mut pair = Pair::on(&server);
    let (mut keen, _) = newcomer(&server, "keen");
    let person = Person::new("deaf");
    let socket = server.socket();
    // The kernel's buffers are not the server's memory.
    socket2::SockRef::from(&socket).set_recv_buffer_size(16 * 1024).expect("a size");
    let mut deaf = Raw::over(socket, true);
    deaf.register(&person);
    deaf.logs_in(&person);
    let before = memory_of(server.child.id(), "VmRSS:");
    let (id, payload) = (random(), noise(CHUNK));
    let flood = packet("deaf", id, &payload);
    deaf.say(&grant("keen", id, 128));
    is_granted(&mut keen, id, 128);
    (0..129).for_each(|_| assert!(keen.bytes(&flood)));
    is_refused(&mut keen, id);
    pair.exchange();
    // Packets that were sent and not read still count: more is granted only for what the kernel has accepted.
    (0..100).for_each(|_| deaf.say(&grant("keen", id, 1)));
    (0..5).for_each(|_| pair.exchange());
    (0..100).for_each(|_| assert!(keen.bytes(&flood)));
    keen.say(&ClientMessage::Ping);
    let told = std::iter::from_fn(|| keen.answer()).take_while(|told| !matches!(told, ServerMessage::Pong));
    let refused = told.filter(|told| matches!(told, ServerMessage::Refused(_))).count();
    assert!(refused > 70, "{refused} of 100");
    let after = memory_of(server.child.id(), "VmRSS:");
    assert!(after < before + 20 * 1024 * 1024, "{before} bytes, then {after}");
    pair.exchange();
    drop(deaf);
    assert!(keen.is_usable());
    close(pair, server);
}

// ---- what the server learns

#[test]
fn wire_and_server_disk_hold_no_file_name_or_content() {
    let server = Server::with(&["--no-tls"]);
    let gate = Gate::before(&server);
    let records = [Way::Up, Way::Down].map(|way| gate.record(way));
    let start = |name| gate.client(Arc::new(Folder::new()), name, &["--register"]);
    let mut pair = Pair::of(start("alice"), start("bob"));
    let (file, content) = ("Pläne für Ouagadougou.pdf", noise(SEVEN));
    send(&mut pair, file, &content);
    pair.bob.expect(" from alice is complete: ");
    pair.alice.expect("* a copy is kept: ");
    pair.exchange();
    farewell(pair.alice);
    farewell(pair.bob);
    let mut seen = vec![records.map(|record| record.lock().expect("whole").concat()).concat()];
    assert!(seen[0].len() > 2 * content.len(), "both halves of the path exist");
    for path in support::files(&server.data("")) {
        seen.push(path.to_string_lossy().into_owned().into_bytes());
        seen.push(std::fs::read(path).expect("readable"));
    }
    let holds = |seen: &[u8]| {
        let windows: HashSet<&[u8]> = seen.windows(16).collect();
        let raw = content.windows(16).any(|piece| windows.contains(piece));
        let names = traces(file.as_bytes()).into_iter().chain(traces(&content[1000..1016]));
        raw || names.into_iter().any(|trace| support::holds(seen, &trace))
    };
    assert!(!seen.iter().any(|bytes| holds(bytes)));
    // The search can find them.
    for needle in [&content[12_345..12_361], file.as_bytes(), BASE64_STANDARD_NO_PAD.encode(file).as_bytes()]
    {
        assert!(holds(&[b"before ", needle, b" after, and some more of it"].concat()));
    }
    assert!([&b"\"file_offer\""[..], b"\"alice\""].iter().all(|word| support::holds(&seen[0], word)));
}
