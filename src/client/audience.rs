//! The recipients of a message: one type from the typed command to the signed scope, the view and the history.
//!
//! Invariant: a room is the set of its members, in one form for everyone. It has no other state, so nobody can change
//! its members. Specification: PROTOCOL#members.

use crate::crypto::envelope::{Header, Kind, MAX_MEMBERS, Scope};
use crate::encoding::{Text, text};
use crate::name::Username;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use zeroize::Zeroizing;

/// The other users of a conversation: 1 to 31 names, each once, in the order of their bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Partners(Vec<Username>);

impl Partners {
    /// `None` if there are no names, or more than a room can have.
    pub fn new(names: impl IntoIterator<Item = Username>) -> Option<Partners> {
        let names: BTreeSet<Username> = names.into_iter().collect();
        (1..MAX_MEMBERS).contains(&names.len()).then(|| Partners(names.into_iter().collect()))
    }

    /// The names.
    pub fn names(&self) -> &[Username] {
        &self.0
    }

    /// The only name; `None` if there are several.
    pub fn only(&self) -> Option<&Username> {
        if let [name] = self.names() { Some(name) } else { None }
    }
}

impl From<Username> for Partners {
    fn from(name: Username) -> Partners {
        Partners(vec![name])
    }
}

/// For display: "bob, carol".
impl fmt::Display for Partners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(Username::to_string).collect::<Vec<_>>().join(", "))
    }
}

text!(Partners);

/// On disk: "bob,carol".
impl Text for Partners {
    fn read(text: &str) -> Option<Partners> {
        let names: Option<Vec<Username>> = text.split(',').map(Username::read).collect();
        Partners::new(names?)
    }

    fn write(&self) -> Cow<'_, str> {
        self.0.iter().map(Username::as_str).collect::<Vec<_>>().join(",").into()
    }
}

/// The recipients of a message, without its author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// All online users.
    Everyone,
    /// This user, outside a room.
    Private(Username),
    /// These users, in the room of them and the author.
    Room(Partners),
}

impl Audience {
    /// The audience of a scope and recipients. `None` if they contradict each other, or the scope is unknown.
    pub fn new(scope: Scope, to: Option<Partners>) -> Option<Audience> {
        match (scope, to) {
            (Scope::Broadcast, None) => Some(Audience::Everyone),
            (Scope::Private, Some(to)) => to.only().cloned().map(Audience::Private),
            (Scope::Room, Some(to)) => Some(Audience::Room(to)),
            _ => None,
        }
    }

    /// The scope that the author signs.
    pub fn scope(&self) -> Scope {
        match self {
            Audience::Everyone => Scope::Broadcast,
            Audience::Private(_) => Scope::Private,
            Audience::Room(_) => Scope::Room,
        }
    }

    /// The names of the recipients; empty for everyone.
    pub fn recipients(&self) -> &[Username] {
        match self {
            Audience::Everyone => &[],
            Audience::Private(name) => std::slice::from_ref(name),
            Audience::Room(partners) => partners.names(),
        }
    }

    /// The partners of `me` in a message of `from`; `None` for everyone.
    pub fn partners(&self, from: &Username, me: &Username) -> Option<Partners> {
        let all = self.recipients().iter().chain((from != me).then_some(from));
        if *self == Audience::Everyone {
            None
        } else {
            Partners::new(all.filter(|name| *name != me).cloned())
        }
    }

    /// The plaintext for a text of `from`: in a room, the members precede it. PROTOCOL#members.
    pub fn plaintext(&self, from: &Username, text: &str) -> Zeroizing<Vec<u8>> {
        let members = match self {
            Audience::Room(partners) => partners.names().iter().chain([from]).collect(),
            _ => BTreeSet::new(),
        };
        // A growing vector would leave copies of the text in memory.
        let length = members.iter().map(|name| 1 + name.as_str().len()).sum::<usize>();
        let mut plaintext = Zeroizing::new(Vec::with_capacity(1 + length + text.len()));
        plaintext.extend((!members.is_empty()).then_some(members.len() as u8));
        for name in members {
            plaintext.push(name.as_str().len() as u8);
            plaintext.extend_from_slice(name.as_str().as_bytes());
        }
        plaintext.extend_from_slice(text.as_bytes());
        plaintext
    }

    /// The audience of a received envelope; removes the members from the beginning of its `plaintext`. `None` if the
    /// list is invalid. PROTOCOL#check-members.
    pub fn take(header: &Header, plaintext: &mut Vec<u8>) -> Option<Audience> {
        let Some(recipient) = &header.recipient else { return Some(Audience::Everyone) };
        match (header.scope, header.kind) {
            (Scope::Room, Kind::Message) => {}
            (Scope::Room, _) => return Some(Audience::Room(recipient.clone().into())),
            _ => return Some(Audience::Private(recipient.clone())),
        }
        let (count, mut rest) = plaintext.split_first()?;
        let mut members: Vec<Username> = Vec::new();
        for _ in 0..*count {
            let (length, after) = rest.split_first()?;
            let (name, after) = after.split_at_checked(usize::from(*length))?;
            members.push(Username::read(str::from_utf8(name).ok()?)?);
            rest = after;
        }
        let length = plaintext.len() - rest.len();
        let folded: BTreeSet<String> = members.iter().map(Username::folded).collect();
        let is_canonical = members.is_sorted_by(|a, b| a < b) && folded.len() == members.len();
        let is_complete = [&header.from, recipient].iter().all(|name| members.contains(name));
        let others = members.into_iter().filter(|name| *name != header.from);
        let partners = Partners::new(others).filter(|_| is_canonical && is_complete)?;
        plaintext.drain(..length);
        Some(Audience::Room(partners))
    }
}
