//! The other people on the server: their keys, asked for, and checked against what is remembered of them.
//!
//! Invariant: a key is used only after it matched what is remembered (or was seen for the first time), and a session
//! key only with its owner's certificate; a changed identity key is used for nothing until the
//! person at the keyboard has decided.

use super::outgoing::Missed;
use super::replay::Replay;
use super::{Effect, Session};
use crate::client::entry::{Place, Source};
use crate::client::trust::{KnownCertificates, KnownUsers, Trust};
use crate::crypto::CryptoError;
use crate::crypto::public::{
    Fingerprint, IdentityPublicKey, SessionCertificate, SessionPublicKey, is_valid_at,
};
use crate::name::Username;
use crate::protocol::{ClientMessage, EncryptedMessage, Keys, KeysRequest, MAX_KEY_NAMES, PersonKeys};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::Path;

/// Envelopes that wait for their senders' keys, in all; more are refused. Nothing of them is checked yet; they take 35 MB
/// at most.
pub const MAX_INBOX: usize = 1024;
/// And of one sender.
pub const MAX_INBOX_OF_ONE: usize = 64;
/// The ids of one sender that are kept: more than a person reads in an hour.
const MAX_IDS_OF_ONE: usize = 1024;
/// And of all: 2 MiB.
const MAX_IDS: usize = 65_536;
/// People that a server can make a client keep in mind: five times as many as are thought of.
const MAX_PEERS: usize = 50_000;

/// One other person.
#[derive(Default)]
pub struct Peer {
    /// The identity key in use: remembered, and shown by the server. `None` until it has shown it.
    pub identity: Option<IdentityPublicKey>,
    /// A key that differs from the remembered one, or whose record may have been lost, undecided; `None` if there is none.
    pub changed: Option<IdentityPublicKey>,
    /// The certified session key; `None` while not online, or not asked for.
    pub session: Option<SessionPublicKey>,
    /// When that was certified, in milliseconds since 1970.
    created: u64,
    /// A `keys_request` is under way.
    pub asked: bool,
    /// The session key of what is unanswered. Nothing is sent for another one before all of it is
    /// answered, or messages would overtake each other.
    pub flying: Option<Fingerprint>,
    /// The session key that the server last called stale.
    pub stale: Option<Fingerprint>,
    /// Unanswered `encrypted_send`s with this person as a target.
    pub in_flight: usize,
    /// What waits to be sent to this person, by number: that is, in order.
    pub backlog: BTreeSet<u64>,
    /// What waits to be read until the key is here.
    pub inbox: VecDeque<EncryptedMessage>,
    /// The last sequence number of the private conversation, and the session it belongs to; `None` before the first.
    pub sequence: Option<(Fingerprint, u64)>,
    /// What was taken in of what this person sent.
    pub replay: Replay,
    /// The ids of the latest messages of this person, the oldest first.
    ids: VecDeque<[u8; 32]>,
    /// Some ids are no longer here.
    pub has_forgotten: bool,
    /// Messages that did not arrive, in all.
    pub missing: u64,
    /// The key whose safety number was shown last: a decision is about that one.
    pub shown: Option<Fingerprint>,
}

impl Peer {
    /// Whether something can be sealed for this person now.
    pub fn is_ready(&self) -> bool {
        let Some(session) = &self.session else { return false };
        self.changed.is_none() && (self.in_flight == 0 || self.flying == Some(session.fingerprint()))
    }

    /// The next number of the private conversation with the current session, from 1. PROTOCOL#sequence.
    pub fn next_sequence(&mut self, session: Fingerprint) -> u64 {
        let next = match self.sequence {
            Some((former, last)) if former == session => last + 1,
            _ => 1,
        };
        self.sequence = Some((session, next));
        next
    }
}

/// What came of keys that the server has shown.
#[derive(Debug, PartialEq, Eq)]
pub enum Learned {
    /// As remembered, or seen for the first time and remembered.
    Known,
    /// The remembered key again, after another one.
    Reverted,
    /// The identity key differs from the remembered one, or the record of it may have been lost.
    Changed,
    /// As remembered, but the session key is not the newest that was seen.
    Outdated,
    /// The server shows a key that is none, or a session key that its owner has not certified.
    Refused(String),
}

/// The session key of an answer, if there is one, with its owner's certificate checked; when that was made.
fn certified(
    keys: &PersonKeys,
    identity: &IdentityPublicKey,
    now_ms: u64,
) -> Result<Option<(SessionPublicKey, u64)>, CryptoError> {
    let (Some(key), Some(created), Some(certificate)) = (&keys.session_key, keys.created, keys.certificate)
    else {
        return Ok(None);
    };
    let certificate = SessionCertificate { session_key: key.clone(), created, certificate };
    Ok(Some((certificate.verify(&keys.name, identity, now_ms)?, created)))
}

/// Everyone this session has had to do with.
pub struct Peers {
    peers: HashMap<Username, Peer>,
    known: KnownUsers,
    pub(super) certificates: KnownCertificates,
    /// Ids of messages, of all of them.
    ids: usize,
}

impl Peers {
    /// Nobody yet.
    pub fn new(known: KnownUsers, certificates: KnownCertificates) -> Peers {
        Peers { peers: HashMap::new(), known, certificates, ids: 0 }
    }

    /// One person; a stranger if they were never heard of.
    pub fn get(&mut self, name: &Username) -> &mut Peer {
        self.peers.entry(name.clone()).or_default()
    }

    /// One person that something is known of already, else `None`.
    pub fn find(&self, name: &Username) -> Option<&Peer> {
        self.peers.get(name)
    }

    /// Whether the server may bring this name up: somebody met already, or one more of not too many.
    pub fn admits(&self, name: &Username) -> bool {
        self.peers.contains_key(name) || self.peers.len() < MAX_PEERS
    }

    /// Takes in the id of a message of `name`; false if it was there. PROTOCOL#id-memory.
    pub fn is_new(&mut self, name: &Username, id: [u8; 32]) -> bool {
        let peer = self.get(name);
        if peer.ids.contains(&id) {
            return false;
        }
        peer.ids.push_back(id);
        let is_long = peer.ids.len() > MAX_IDS_OF_ONE;
        self.ids += 1;
        if is_long || self.ids > MAX_IDS {
            let fullest = self.peers.values_mut().max_by_key(|peer| peer.ids.len());
            if let Some(peer) = fullest {
                (peer.has_forgotten, _) = (true, peer.ids.pop_front());
                self.ids -= 1;
            }
        }
        true
    }

    /// Forgets a session key whose certificate is no longer valid. `now_ms` is in milliseconds since 1970.
    /// PROTOCOL#session-certificate.
    pub fn expire(&mut self, name: &Username, now_ms: u64) {
        let peer = self.get(name);
        if !is_valid_at(peer.created, now_ms) {
            peer.session = None;
        }
    }

    /// This user has gone offline.
    pub fn left(&mut self, name: &Username) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.session = None;
        }
    }

    /// All names met so far, for letter-case corrections.
    pub fn names(&self) -> impl Iterator<Item = &Username> {
        self.peers.keys()
    }

    /// A new own session key begins new conversations with everyone.
    pub fn restart_numbers(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.sequence = None);
    }

    /// A new own session: nothing that went to the sessions of others is under way any more. Those of whom something
    /// waits for their keys.
    pub fn restart(&mut self) -> Vec<Username> {
        for peer in self.peers.values_mut() {
            peer.backlog.clear();
            (peer.session, peer.flying, peer.in_flight) = (None, None, 0);
            (peer.asked, peer.sequence) = (false, None);
        }
        let waiting = self.peers.iter().filter(|(_, peer)| !peer.inbox.is_empty() && peer.changed.is_none());
        waiting.map(|(name, _)| name.clone()).collect()
    }

    /// How well the key of `name` is known; `None` for a stranger.
    pub fn trust(&self, name: &Username) -> Option<Trust> {
        self.known.get(name).map(|(_, trust)| trust)
    }

    /// Whether the key of `name` has changed and nobody has decided yet.
    pub fn has_changed(&self, name: &Username) -> bool {
        self.find(name).is_some_and(|peer| peer.changed.is_some())
    }

    /// See [`KnownUsers::doubt`].
    pub fn doubt(&self, name: &Username) -> Option<&Path> {
        self.known.doubt(name)
    }

    /// The key that `/verify` is about: the changed one, if it has changed; `None` for a stranger.
    pub fn fingerprint(&self, name: &Username) -> Option<Fingerprint> {
        let changed = self.find(name).and_then(|peer| peer.changed.as_ref());
        changed.map(IdentityPublicKey::fingerprint).or_else(|| self.known.get(name).map(|(key, _)| key))
    }

    /// Takes in the keys that the server shows for one person. `now_ms` is in milliseconds since 1970.
    /// PROTOCOL#ask-keys.
    pub fn learn(&mut self, keys: &PersonKeys, now_ms: u64) -> Learned {
        let peer = self.peers.entry(keys.name.clone()).or_default();
        peer.asked = false;
        peer.session = None;
        if let Some(other) = self.known.other_spelling(&keys.name) {
            return Learned::Refused(format!("{other} is already known, and differs only in letter case"));
        }
        let Ok(identity) = IdentityPublicKey::parse(&keys.identity.0) else {
            return Learned::Refused("the server shows an invalid identity key".into());
        };
        let session = match certified(keys, &identity, now_ms) {
            Ok(session) => session,
            Err(error) => {
                return Learned::Refused(format!(
                    "the session key that the server shows is invalid: {error}"
                ));
            }
        };
        let remembered = self.known.get(&keys.name).map(|(fingerprint, _)| fingerprint);
        let is_new = remembered.is_none() && self.known.doubt(&keys.name).is_none();
        if !is_new && remembered != Some(identity.fingerprint()) {
            (peer.identity, peer.changed) = (None, Some(identity));
            return Learned::Changed;
        }
        if remembered.is_none() && self.known.count() >= MAX_PEERS {
            return Learned::Refused("this client already remembers the most users that it can".into());
        }
        if remembered.is_none()
            && let Err(error) = self.known.remember(&keys.name, identity.fingerprint())
        {
            return Learned::Refused(format!("the key cannot be saved: {error}"));
        }
        let (reverted, owner) = (peer.changed.is_some(), identity.fingerprint());
        (peer.identity, peer.changed) = (Some(identity), None);
        if let Some((key, created)) = session {
            // PROTOCOL#newest-certificate.
            if !self.certificates.admit(&keys.name, owner, (created, key.fingerprint()), now_ms) {
                return Learned::Outdated;
            }
            (peer.session, peer.created) = (Some(key), created);
        }
        if reverted { Learned::Reverted } else { Learned::Known }
    }

    /// The person at the keyboard accepts the changed key of `name`. False if it has not changed.
    ///
    /// # Errors
    /// The disk's.
    pub fn accept(&mut self, name: &Username) -> std::io::Result<bool> {
        let peer = self.peers.entry(name.clone()).or_default();
        let Some(identity) = &peer.changed else { return Ok(false) };
        self.known.decide(name, identity.fingerprint(), Trust::Known)?;
        peer.identity = peer.changed.take();
        Ok(true)
    }

    /// The person at the keyboard has compared the safety number with `name`.
    ///
    /// # Errors
    /// The disk's.
    pub fn mark_verified(&mut self, name: &Username) -> std::io::Result<()> {
        match self.known.get(name) {
            Some((key, _)) => self.known.decide(name, key, Trust::Verified),
            None => Ok(()),
        }
    }
}

impl Session {
    /// How well the key of `name` is known, in a word.
    pub fn trust_word(&self, name: &Username) -> &'static str {
        match self.peers.trust(name) {
            None if self.peers.has_changed(name) => "RECORD DAMAGED",
            _ if self.peers.has_changed(name) => "KEY CHANGED",
            Some(Trust::Verified) => "verified",
            Some(Trust::New | Trust::Known) => "not verified",
            None => "new",
        }
    }

    /// The same as a mark beside the name.
    pub fn trust_mark(&self, name: &Username) -> &'static str {
        if self.peers.has_changed(name) { "!" } else { self.peers.trust(name).unwrap_or(Trust::New).mark() }
    }

    /// Asks for keys that are not on their way already.
    pub(super) fn ask_for_keys(&mut self, names: impl IntoIterator<Item = Username>) {
        for name in names {
            if !std::mem::replace(&mut self.peers.get(&name).asked, true) {
                self.to_ask.push_back(name);
            }
        }
    }

    /// Sends the next request for keys, if none is under way.
    pub(super) fn ask(&mut self) {
        if self.asking.is_none() && !self.to_ask.is_empty() {
            let count = self.to_ask.len().min(MAX_KEY_NAMES);
            let names: BTreeSet<Username> = self.to_ask.drain(..count).collect();
            let request = KeysRequest { names: names.iter().cloned().collect() };
            self.effects.push(Effect::Send(ClientMessage::KeysRequest(request)));
            self.asking = Some(names);
        }
    }

    /// Takes the answer to the request under way: everyone who was asked for is settled by it.
    pub(super) fn take_keys(&mut self, keys: &Keys) {
        let told = keys.keys.iter().map(|person| &person.name).chain(&keys.unknown);
        let told: BTreeSet<Username> = told.cloned().collect();
        // An answer is about exactly the names of the question.
        let Some(mut asked) = self.asking.take_if(|asked| *asked == told) else {
            return self.server_problem("the server sent keys that were not requested".into());
        };
        self.owed = None;
        let mut here = Vec::new();
        for person in &keys.keys {
            if asked.remove(&person.name) {
                here.push(person.name.clone());
                self.take_person(person);
            }
        }
        // One envelope for all of them together.
        self.pump(here);
        for name in asked {
            self.no_keys(&name, Missed::NoAccount);
        }
    }

    fn take_person(&mut self, person: &PersonKeys) {
        let name = &person.name;
        let before = self.peers.fingerprint(name);
        match self.peers.learn(person, self.now) {
            Learned::Known => {}
            Learned::Reverted => {
                let text = format!("the server shows the known key of {name} again");
                self.tell_about(name, "reverted", 1, (Source::Notice, Place::Here, text));
            }
            Learned::Changed => {
                match self.peers.trust(name) {
                    _ if self.peers.fingerprint(name) == before => {}
                    // A server can invent any number of these.
                    Some(Trust::New) | None => {
                        let key = self.peers.fingerprint(name).map_or(String::new(), |key| key.to_string());
                        self.problem_about(name, &key, self.undecided(name));
                    }
                    _ if self.ignored.contains(name) => {}
                    _ => self.explain_changed(name),
                }
                self.give_up(name, Missed::KeyChanged);
            }
            Learned::Outdated => {
                let text = "{}'s clock may have been set back, or the server shows an old key of {}: nothing is sent to {}. \
                            Try again in a minute; if this repeats, ask {} to check the clock and to log in again";
                self.problem_about(name, "outdated", text.replace("{}", name.as_str()));
                self.give_up(name, Missed::NoKey);
            }
            Learned::Refused(why) => {
                self.problem_about(name, &why, format!("the keys of {name} cannot be used: {why}"));
                return self.no_keys(name, Missed::NoKey);
            }
        }
        if self.peers.find(name).is_some_and(|peer| peer.session.is_none()) {
            self.give_up(name, Missed::Offline);
        }
        self.read_inbox(name);
        self.keys_for_files(name);
        if self.verifying.remove(name) {
            self.tell_safety_number(name);
        }
    }

    /// There are no keys of `name` to be had.
    fn no_keys(&mut self, name: &Username, why: Missed) {
        self.peers.get(name).asked = false;
        self.give_up(name, why);
        self.keys_for_files(name);
        self.drop_inbox(name);
        if self.verifying.remove(name) {
            self.problem(match why {
                Missed::NoAccount => format!("there is no account named {name}"),
                _ => format!("{name} has no usable key"),
            });
        }
    }

    /// Says again why nothing goes to `name`, and looks whether the key is still another.
    pub(super) fn reconsider(&mut self, name: &Username) {
        self.explain_changed(name);
        self.ask_for_keys([name.clone()]);
    }

    pub(super) fn explain_changed(&mut self, name: &Username) {
        self.problem(self.undecided(name));
    }

    /// Why nothing goes to `name` before the person has decided, in a few words.
    pub(super) fn doubt(&self, name: &Username) -> String {
        match self.peers.trust(name) {
            Some(_) => format!("the key of {name} has changed"),
            None => format!("the record of {name}'s key is damaged"),
        }
    }

    /// Why the key of `name` has to be decided about, and how.
    fn undecided(&self, name: &Username) -> String {
        let (what, why, then) = match self.peers.doubt(name).map(Path::display) {
            None => (
                "HAS CHANGED",
                format!("Either {name} has created a new key, or someone is intercepting your messages"),
                "".into(),
            ),
            Some(aside) => (
                "MAY HAVE CHANGED",
                format!(
                    "A damaged record of known_users, set aside in {aside}, may have been the record of {name}"
                ),
                format!(
                    ". When you have decided about everyone you knew, remove {aside} and restart the client"
                ),
            ),
        };
        format!(
            "THE IDENTITY KEY OF {name} {what}. {why}. Nothing is sent to {name} or shown from {name} until you \
             decide: ask {name} in person or by phone, compare the number that /verify {name} shows, and type \
             /trust {name} only if it matches{then}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::keys::IdentityKey;
    use crate::crypto::secret::random;
    use crate::encoding::Bytes;
    use crate::records;

    fn peers(file: &Path) -> Peers {
        let certificates = KnownCertificates::open(&file.with_extension("certificates"), "a:1".into());
        let known = KnownUsers::open(file, "a:1".into()).expect("a file");
        Peers::new(known, certificates.expect("a file"))
    }

    /// PROTOCOL#id-memory.
    #[test]
    fn ids_are_remembered_up_to_a_number_of_each_and_of_all() {
        let file = std::env::temp_dir().join(format!("ids-{}", std::process::id()));
        let mut peers = peers(&file);
        let name = |n: usize| format!("user{n}").parse::<Username>().expect("name");
        let id = |n: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            id
        };
        let all = |peers: &mut Peers, of: usize, count: usize| {
            (0..count).filter(|n| peers.is_new(&name(of), id(*n))).count()
        };
        assert_eq!(all(&mut peers, 0, MAX_IDS_OF_ONE), MAX_IDS_OF_ONE);
        assert_eq!(all(&mut peers, 0, MAX_IDS_OF_ONE), 0);
        assert!(!peers.get(&name(0)).has_forgotten && peers.is_new(&name(0), id(MAX_IDS_OF_ONE)));
        assert!(peers.get(&name(0)).has_forgotten && peers.is_new(&name(0), id(0)), "the oldest is gone");
        for other in 1..MAX_IDS / MAX_IDS_OF_ONE {
            assert_eq!(all(&mut peers, other, MAX_IDS_OF_ONE), MAX_IDS_OF_ONE);
        }
        assert_eq!(peers.ids, MAX_IDS);
        assert!(peers.is_new(&name(99), id(0)) && peers.ids == MAX_IDS && !peers.is_new(&name(99), id(0)));
    }

    /// README#records.
    #[test]
    fn key_whose_record_was_torn_is_used_after_a_decision() {
        let id: String = random::<8>().iter().map(|b| format!("{b:02x}")).collect();
        let file = std::env::temp_dir().join(format!("peers-{id}"));
        std::fs::write(&file, "{\"server\":\"a:1\",\"name\":\"bob\",\"iden").expect("written");
        let mut peers = peers(&file);
        let identity = Bytes(IdentityKey::generate().public().spki());
        for (name, is_doubtful) in [("bob", true), ("carol", false)] {
            let name: Username = name.parse().expect("name");
            let identity = identity.clone();
            let keys = PersonKeys { name, identity, session_key: None, created: None, certificate: None };
            for _ in 0..2 {
                assert_eq!(peers.learn(&keys, 0) == Learned::Changed, is_doubtful);
                assert_eq!(peers.get(&keys.name).identity.is_none(), is_doubtful);
            }
            assert_eq!(peers.accept(&keys.name).expect("stored"), is_doubtful);
            assert_eq!(peers.learn(&keys, 0), Learned::Known);
            assert!(peers.get(&keys.name).identity.is_some());
        }
        for file in records::asides(&file).iter().chain([&file, &file.with_extension("certificates")]) {
            std::fs::remove_file(file).expect("clean up");
        }
    }
}
