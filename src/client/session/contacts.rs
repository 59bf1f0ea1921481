//! The other users: their keys are requested, compared with the remembered ones, and trusted or not by the user.
//!
//! Invariant: a key is used only if it matches the remembered one or is the first for its user, and a session or
//! mailbox key only with its owner's certificate. A changed identity key is not used until the user has decided.

use super::cx::Cx;
use super::seal_key::SealKey;
use crate::client::entry::{Place, Source};
use crate::client::store::trust::{Trust, TrustStore};
use crate::crypto::public::{Fingerprint, IdentityPublicKey, SessionPublicKey, safety_number};
use crate::name::Username;
use crate::protocol::{ClientMessage, Keys, KeysRequest, MAX_KEY_NAMES, UserKeys};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::path::Path;

/// The most users that a server can make a client remember: five times the number that a server is made for.
const MAX_CONTACTS: usize = 50_000;
/// The most absent users whose keys a list requests: four requests, one after the other.
const MAX_LISTED: usize = 256;

/// One other user.
#[derive(Default)]
pub struct Contact {
    /// The identity key in use, remembered and shown by the server. `None` until the server has shown it.
    pub identity: Option<IdentityPublicKey>,
    /// A key that needs a decision: it differs from the remembered one, or the record of the remembered one may be
    /// lost.
    changed: Option<IdentityPublicKey>,
    /// The key to seal messages for; `None` if it was not requested, or the user is absent and has no mailbox.
    pub key: Option<SealKey>,
    /// A request for the keys is queued or in flight.
    is_asked: bool,
    /// The key whose safety number was shown last, to which a decision applies.
    shown: Option<Fingerprint>,
}

impl Contact {
    /// Whether the identity key has changed and the user has not decided yet.
    pub fn has_changed(&self) -> bool {
        self.changed.is_some()
    }

    /// The key of the user's session; `None` while the user is absent, or the key was not requested.
    pub fn session_key(&self) -> Option<&SessionPublicKey> {
        self.key.as_ref().filter(|key| !key.is_mailbox).map(|key| &key.key)
    }

    /// Whether this user is absent, and messages can wait for them.
    pub fn has_mailbox(&self) -> bool {
        self.key.as_ref().is_some_and(|key| key.is_mailbox)
    }
}

/// The result of keys that the server has shown.
#[derive(Debug, PartialEq, Eq)]
pub enum Learned {
    /// The remembered key, or the first one, which is remembered now.
    Known,
    /// The remembered key again, after another one.
    Reverted,
    /// The identity key differs from the remembered one, or the record of it may have been lost.
    Changed,
    /// The remembered key, but the certificate of the session or mailbox key is older than one seen before.
    Outdated,
    /// An invalid key or certificate, or a key that cannot be remembered; the reason.
    Refused(String),
}

/// All users that this session has met.
pub struct Contacts {
    people: HashMap<Username, Contact>,
    known: TrustStore,
    /// Users whose keys will be requested next. One request is in flight at a time, because several answers could
    /// exceed the limit that the server holds for a client.
    to_ask: VecDeque<Username>,
    /// The names of the request in flight.
    asking: Option<BTreeSet<Username>>,
    /// Safety numbers that wait for a key.
    verifying: BTreeSet<Username>,
    /// The absent users of a list that waits for their keys, and the number of further ones.
    listing: Option<(Vec<Username>, usize)>,
}

impl Contacts {
    /// No users yet.
    pub fn new(known: TrustStore) -> Contacts {
        let (people, verifying) = (HashMap::new(), BTreeSet::new());
        Contacts { people, known, to_ask: VecDeque::new(), asking: None, verifying, listing: None }
    }

    /// One user; a stranger if this session has not met them.
    pub fn get(&mut self, name: &Username) -> &mut Contact {
        self.people.entry(name.clone()).or_default()
    }

    /// One user that this session has met, else `None`.
    pub fn find(&self, name: &Username) -> Option<&Contact> {
        self.people.get(name)
    }

    /// Whether the server may introduce this name: it is known already, or there is room for one more, which counts
    /// from now on. This bounds what other parts store about users.
    pub fn admits(&mut self, name: &Username) -> bool {
        let is_admitted = self.people.contains_key(name) || self.people.len() < MAX_CONTACTS;
        if is_admitted {
            self.get(name);
        }
        is_admitted
    }

    /// Forgets a key whose certificate is no longer valid. `now_ms` is in milliseconds since 1970.
    /// PROTOCOL#session-certificate, PROTOCOL#mail-sender.
    pub fn expire(&mut self, name: &Username, now_ms: u64) {
        self.forget_key(name, |key| !key.is_valid_at(now_ms));
    }

    /// Forgets the key to seal messages for if it `is_over`: its session has ended, its owner has returned from an
    /// absence, or the server calls it stale.
    pub fn forget_key(&mut self, name: &Username, is_over: impl Fn(&SealKey) -> bool) {
        if let Some(contact) = self.people.get_mut(name) {
            contact.key.take_if(|key| is_over(key));
        }
    }

    /// All users of this server whose keys are remembered.
    pub fn names(&self) -> impl Iterator<Item = &Username> {
        self.known.names()
    }

    /// After the start of a new session: requests again the keys of `waiting`, and of users whose safety number was
    /// requested.
    pub fn restart(&mut self, waiting: Vec<Username>) {
        for contact in self.people.values_mut() {
            (contact.key, contact.is_asked) = (None, false);
        }
        self.to_ask.clear();
        self.asking = None;
        let waiting = waiting.into_iter().filter(|name| !self.has_changed(name));
        let listing = self.listing.iter().flat_map(|(names, _)| names);
        let names: Vec<Username> = waiting.chain(self.verifying.iter().chain(listing).cloned()).collect();
        self.ask_for(names);
    }

    /// How well the key of `name` is known; `None` for a stranger.
    pub fn trust(&self, name: &Username) -> Option<Trust> {
        self.known.get(name).map(|(_, trust)| trust)
    }

    /// How well the key of `name` is known, as a word.
    pub fn trust_word(&self, name: &Username) -> &'static str {
        match self.certainty(name) {
            (false, None) => "RECORD DAMAGED",
            (false, Some(_)) => "KEY CHANGED",
            (true, None) => "new",
            (true, Some(Trust::New | Trust::Known)) => "not verified",
            (true, Some(Trust::Verified)) => "verified",
        }
    }

    /// How well the key of `name` is known, in order: whether it is unchanged, then the trust in it.
    pub fn certainty(&self, name: &Username) -> (bool, Option<Trust>) {
        (!self.has_changed(name), self.trust(name))
    }

    /// How well the key of `name` is known, as a mark beside the name.
    pub fn trust_mark(&self, name: &Username) -> &'static str {
        if self.has_changed(name) { "!" } else { self.trust(name).unwrap_or(Trust::New).mark() }
    }

    /// The known name that differs from `name` only in letter case; `None` without one. PROTOCOL#name-case.
    pub fn other_spelling(&self, name: &Username) -> Option<&Username> {
        self.known.other_spelling(name)
    }

    /// Whether the key of `name` has changed and the user has not decided yet.
    pub fn has_changed(&self, name: &Username) -> bool {
        self.find(name).is_some_and(Contact::has_changed)
    }

    /// The key that `/verify` shows: the changed one if there is one; `None` for a stranger.
    fn fingerprint(&self, name: &Username) -> Option<Fingerprint> {
        let changed = self.find(name).and_then(|contact| contact.changed.as_ref());
        changed.map(IdentityPublicKey::fingerprint).or_else(|| self.known.get(name).map(|(key, _)| key))
    }

    /// Remembers an own certificate for the next login, because a restarted server has forgotten it.
    pub fn remember_own(&mut self, cx: &Cx, created: u64, key: Fingerprint) {
        self.known.admit(&cx.me, cx.account.fingerprint(), (false, created, key), cx.now.max(created));
    }

    /// Reads decisions of other clients with the same folder, reports repairs of files, and writes remembered
    /// certificates when it is time.
    pub fn tick(&mut self, cx: &mut Cx) {
        if let Err(error) = self.refresh().and_then(|()| cx.ignored.refresh()) {
            let text = format!("decisions that you make in another client do not count here: {error}");
            cx.problem_about_some("records", text);
        }
        self.ask(cx);
        let notices = self.known.notices().into_iter().chain(cx.ignored.notices());
        notices.collect::<Vec<_>>().into_iter().for_each(|text| cx.problem(text));
        if let Err(error) = self.known.write_in_time(cx.now, cx.instant) {
            cx.problem_about_some(
                "certificates",
                format!("after a restart, outdated keys of other users may be accepted: {error}"),
            );
        }
    }

    /// Writes the remembered certificates to disk now.
    pub fn close(&mut self, cx: &Cx) {
        self.known.close(cx.now);
    }

    /// Forgets keys that another client with the same folder has decided against, and requests them and changed ones
    /// again.
    fn refresh(&mut self) -> io::Result<()> {
        if !self.known.refresh()? {
            return Ok(());
        }
        let mut outdated = Vec::new();
        for (name, contact) in &mut self.people {
            let key = contact.identity.as_ref().map(IdentityPublicKey::fingerprint);
            let is_met = key.is_some() || contact.has_changed();
            if is_met && key != self.known.get(name).map(|(key, _)| key) {
                (contact.identity, contact.key) = (None, None);
                outdated.push(name.clone());
            }
        }
        self.ask_for(outdated);
        Ok(())
    }

    // ---- requests

    /// Requests keys that were not requested already.
    pub fn ask_for(&mut self, names: impl IntoIterator<Item = Username>) {
        for name in names {
            if !std::mem::replace(&mut self.get(&name).is_asked, true) {
                self.to_ask.push_back(name);
            }
        }
    }

    /// Sends the next request for keys, unless one is in flight.
    pub fn ask(&mut self, cx: &mut Cx) {
        if self.asking.is_none() && !self.to_ask.is_empty() {
            let count = self.to_ask.len().min(MAX_KEY_NAMES);
            let names: BTreeSet<Username> = self.to_ask.drain(..count).collect();
            let request = KeysRequest { names: names.iter().cloned().collect() };
            cx.send(ClientMessage::KeysRequest(request));
            self.asking = Some(names);
        }
    }

    /// Whether the keys of `name` were requested and have not arrived.
    pub fn is_asked(&self, name: &Username) -> bool {
        self.find(name).is_some_and(|contact| contact.is_asked)
    }

    /// Whether an answer is due.
    pub fn is_asking(&self) -> bool {
        self.asking.is_some()
    }

    /// The names of the request in flight, if `keys` answer it. PROTOCOL#ask-keys.
    pub fn answered(&mut self, keys: &Keys) -> Option<BTreeSet<Username>> {
        let told = keys.keys.iter().map(|person| &person.name).chain(&keys.unknown);
        let told: BTreeSet<&Username> = told.collect();
        // An answer contains exactly the names of its request.
        self.asking.take_if(|asked| told.iter().copied().eq(asked.iter()))
    }

    /// Handles that `name` has no usable keys; reports `why` if the user waits for a safety number.
    pub fn no_keys(&mut self, cx: &mut Cx, name: &Username, why: String) {
        self.get(name).is_asked = false;
        if self.verifying.remove(name) {
            cx.problem(why);
        }
    }

    /// Takes the keys that the server shows for one user, and reports what is wrong with them.
    pub fn take(&mut self, cx: &mut Cx, person: &UserKeys) -> Learned {
        let name = &person.name;
        let before = self.fingerprint(name);
        let learned = self.learn(person, cx.now);
        match &learned {
            Learned::Known => {}
            Learned::Reverted => {
                let text = format!("the server shows the known key of {name} again");
                cx.tell_about(name, "reverted", 1, (Source::Notice, Place::Here, text));
            }
            Learned::Changed => match self.trust(name) {
                _ if self.fingerprint(name) == before => {}
                // A server can invent any number of these users.
                Some(Trust::New) | None => {
                    let key = self.fingerprint(name).map_or(String::new(), |key| key.to_string());
                    cx.problem_about(name, &key, self.undecided(name));
                }
                _ if cx.ignored.contains(name) => {}
                _ => cx.problem(self.undecided(name)),
            },
            Learned::Outdated => {
                let text = "{}'s clock may have been set back, or the server shows an old key of {}: nothing is sent \
                            to {}. Try again in a minute; if this repeats, ask {} to check the clock and to log in \
                            again";
                cx.problem_about(name, "outdated", text.replace("{}", name.as_str()));
            }
            Learned::Refused(why) => {
                cx.problem_about(name, why, format!("the keys of {name} cannot be used: {why}"));
            }
        }
        learned
    }

    /// Checks and stores the keys that the server shows for one user. `now_ms` is in milliseconds since 1970.
    /// PROTOCOL#ask-keys.
    fn learn(&mut self, keys: &UserKeys, now_ms: u64) -> Learned {
        let contact = self.people.entry(keys.name.clone()).or_default();
        contact.is_asked = false;
        contact.key = None;
        let Ok(identity) = IdentityPublicKey::parse(&keys.identity.0) else {
            return Learned::Refused("the server shows an invalid identity key".into());
        };
        let shown = match SealKey::shown(keys, &identity, now_ms) {
            Ok(key) => key,
            Err(why) => return Learned::Refused(why),
        };
        let owner = identity.fingerprint();
        if self.known.is_new(&keys.name) {
            if self.known.count() >= MAX_CONTACTS {
                return Learned::Refused("this client already remembers as many users as it can".into());
            }
            if let Err(error) = self.known.remember(&keys.name, owner, Trust::New) {
                return Learned::Refused(format!("the key cannot be saved: {error}"));
            }
        }
        // Another client with the same folder may have been first.
        if let Some(other) = self.known.other_spelling(&keys.name) {
            return Learned::Refused(format!("{other} is already known, and differs only in letter case"));
        }
        if self.known.get(&keys.name).map(|(fingerprint, _)| fingerprint) != Some(owner) {
            (contact.identity, contact.changed) = (None, Some(identity));
            return Learned::Changed;
        }
        let reverted = contact.changed.is_some();
        (contact.identity, contact.changed) = (Some(identity), None);
        if let Some(SealKey { key, is_mailbox, created }) = &shown {
            // PROTOCOL#newest-certificate.
            if !self.known.admit(&keys.name, owner, (*is_mailbox, *created, key.fingerprint()), now_ms) {
                return Learned::Outdated;
            }
        }
        contact.key = shown;
        if reverted { Learned::Reverted } else { Learned::Known }
    }

    // ---- the user's decisions

    /// Shows the safety number with `name`, or marks their key as verified if it was `compared`.
    pub fn verify(&mut self, cx: &mut Cx, name: Username, compared: bool) {
        if self.fingerprint(&name).is_none() {
            self.verifying.insert(name.clone());
            return self.ask_for([name]);
        }
        if !compared {
            return self.tell_safety_number(cx, &name);
        }
        if self.has_changed(&name) {
            return self.reconsider(cx, &name);
        }
        if self.get(&name).shown.is_none() {
            cx.problem(format!("you have not seen the safety number with {name} yet: compare it first"));
            return self.tell_safety_number(cx, &name);
        }
        if !self.is_about_the_shown_key(cx, &name) {
            return;
        }
        match self.mark_verified(&name) {
            Ok(()) => cx.notice(format!("{name} is verified")),
            Err(error) => cx.problem(format!("this cannot be saved: {error}")),
        }
    }

    /// Shows the safety number with `name` if it waited for their key, which has arrived.
    pub fn tell_awaited(&mut self, cx: &mut Cx, name: &Username) {
        if self.verifying.remove(name) {
            self.tell_safety_number(cx, name);
        }
    }

    /// Whether no safety number and no list waits for a key.
    pub fn is_settled(&self) -> bool {
        self.verifying.is_empty() && self.listing.is_none()
    }

    /// Requests the keys of absent users that are not known, for a list of them.
    pub fn list(&mut self, mut absent: Vec<Username>, now_ms: u64) {
        let rest = absent.split_off(absent.len().min(MAX_LISTED)).len();
        absent.iter().for_each(|name| self.expire(name, now_ms));
        let has_key = |name: &&Username| self.find(name).is_some_and(|contact| contact.key.is_some());
        let unknown: Vec<Username> = absent.iter().filter(|name| !has_key(name)).cloned().collect();
        self.ask_for(unknown);
        self.listing = Some((absent, rest));
    }

    /// The absent users of the list, and the number of further ones, once all keys have arrived.
    pub fn listed(&mut self) -> Option<(Vec<Username>, usize)> {
        let people = &self.people;
        let waits = |name: &Username| people.get(name).is_some_and(|contact| contact.is_asked);
        self.listing.take_if(|(names, _)| !names.iter().any(waits))
    }

    fn tell_safety_number(&mut self, cx: &mut Cx, name: &Username) {
        let Some(theirs) = self.fingerprint(name) else {
            return cx.problem(format!("no key of {name} is known"));
        };
        self.get(name).shown = Some(theirs);
        let number = safety_number((&cx.me, cx.account.fingerprint()), (name, theirs));
        cx.notice(format!("safety number with {name} ({}):", self.trust_word(name)));
        let groups: Vec<&str> = number.split(' ').collect();
        for row in groups.chunks(4) {
            cx.show(Source::SafetyNumber, Place::Here, format!("    {}", row.join(" ")));
        }
        let then = match self.has_changed(name) {
            true => format!("/trust {name}"),
            false => format!("/verify {name} yes"),
        };
        cx.notice(format!(
            "compare it with {name} in person or by phone, not in this chat: if all 60 digits match, type {then}; if \
             not, someone may be intercepting your messages"
        ));
    }

    /// Whether the key of `name` is still the one whose number was shown last, if one was shown.
    fn is_about_the_shown_key(&mut self, cx: &mut Cx, name: &Username) -> bool {
        let (shown, current) = (self.get(name).shown, self.fingerprint(name));
        if shown.is_none() || shown == current {
            return true;
        }
        cx.problem(format!("the key of {name} has changed since its safety number was shown: compare again"));
        self.tell_safety_number(cx, name);
        false
    }

    /// Accepts the changed key of `name`. False if that is not possible now.
    pub fn decide(&mut self, cx: &mut Cx, name: &Username) -> bool {
        if !self.is_about_the_shown_key(cx, name) {
            return false;
        }
        let new = if self.trust(name).is_some() { "new " } else { "" };
        match self.accept(name) {
            Ok(false) => cx.notice(format!("the key of {name} has not changed: there is nothing to accept")),
            Ok(true) => cx.notice(format!(
                "the {new}key of {name} is accepted; /verify {name} shows its safety number"
            )),
            Err(error) => {
                cx.problem(format!("your decision cannot be saved: {error}"));
                return false;
            }
        }
        true
    }

    /// Reports again why nothing is sent to `name`, and requests the key in case it is the known one again.
    pub fn reconsider(&mut self, cx: &mut Cx, name: &Username) {
        cx.problem(self.undecided(name));
        self.ask_for([name.clone()]);
    }

    /// Accepts the changed key of `name`. False if it has not changed.
    ///
    /// # Errors
    /// The disk's.
    fn accept(&mut self, name: &Username) -> io::Result<bool> {
        let contact = self.people.entry(name.clone()).or_default();
        let Some(identity) = &contact.changed else { return Ok(false) };
        self.known.remember(name, identity.fingerprint(), Trust::Known)?;
        contact.identity = contact.changed.take();
        Ok(true)
    }

    /// Marks `name` as verified: the user has compared the safety number.
    ///
    /// # Errors
    /// The disk's.
    fn mark_verified(&mut self, name: &Username) -> io::Result<()> {
        match self.known.get(name) {
            Some((key, _)) => self.known.remember(name, key, Trust::Verified),
            None => Ok(()),
        }
    }

    /// In a few words, why nothing is sent to `name` before the user has decided.
    pub fn doubt(&self, name: &Username) -> String {
        match self.trust(name) {
            Some(_) => format!("the key of {name} has changed"),
            None => format!("the record of {name}'s key is damaged"),
        }
    }

    /// Why the key of `name` needs a decision, and how to decide.
    fn undecided(&self, name: &Username) -> String {
        let (what, why, then) = match self.known.doubt(name).as_deref().map(Path::display) {
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
    use crate::crypto::keys::{IdentityKey, SessionKey};
    use crate::crypto::secret::random;
    use std::fs;
    use std::path::PathBuf;

    /// Contacts with these records, and their folder, which the test removes.
    fn contacts(records: &str) -> (Contacts, PathBuf) {
        let folder = std::env::temp_dir().join(format!("contacts-{}", u64::from_be_bytes(random())));
        fs::create_dir(&folder).expect("a folder");
        fs::write(folder.join("known_users"), records).expect("written");
        (Contacts::new(TrustStore::open(&folder, "a:1").expect("files")), folder)
    }

    /// OPERATING#records.
    #[test]
    fn key_whose_record_was_torn_is_used_after_a_decision() {
        let (mut contacts, folder) = contacts("{\"server\":\"a:1\",\"name\":\"bob\",\"iden");
        let identity = IdentityKey::generate().public().spki();
        for (name, is_doubtful) in [("bob", true), ("carol", false)] {
            let name: Username = name.parse().expect("name");
            let keys = UserKeys::new(name, identity.clone(), None);
            for _ in 0..2 {
                assert_eq!(contacts.learn(&keys, 0) == Learned::Changed, is_doubtful);
                assert_eq!(contacts.get(&keys.name).identity.is_none(), is_doubtful);
            }
            assert_eq!(contacts.accept(&keys.name).expect("stored"), is_doubtful);
            assert_eq!(contacts.learn(&keys, 0), Learned::Known);
            assert!(contacts.get(&keys.name).identity.is_some());
        }
        fs::remove_dir_all(folder).expect("clean up");
    }

    /// PROTOCOL#ask-keys.
    #[test]
    fn key_that_the_server_no_longer_shows_is_forgotten() {
        let (mut contacts, folder) = contacts("");
        let (bob, identity): (Username, _) = ("bob".parse().expect("name"), IdentityKey::generate());
        let certificate = identity.certify(&bob, &SessionKey::generate(), 0);
        for session in [Some(&certificate), None] {
            let keys = UserKeys::new(bob.clone(), identity.public().spki(), session);
            assert_eq!(contacts.learn(&keys, 0), Learned::Known);
            assert_eq!(contacts.get(&bob).key.is_some(), session.is_some());
        }
        fs::remove_dir_all(folder).expect("clean up");
    }
}
