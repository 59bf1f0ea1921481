//! The recipients of a message: one type from the typed command to the signed scope, the view and the history.

use crate::crypto::envelope::Scope;
use crate::name::Username;

/// The recipients of a message, without its author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// All online users.
    Everyone,
    /// This user, outside a room.
    Private(Username),
    /// This user, in the room of the two.
    Room(Username),
}

impl Audience {
    /// The audience of a signed scope and recipient. `None` if they contradict each other, or the scope is unknown.
    pub fn new(scope: Scope, recipient: Option<Username>) -> Option<Audience> {
        match (scope, recipient) {
            (Scope::Broadcast, None) => Some(Audience::Everyone),
            (Scope::Private, Some(name)) => Some(Audience::Private(name)),
            (Scope::Room, Some(name)) => Some(Audience::Room(name)),
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

    /// The one recipient; `None` for everyone.
    pub fn recipient(&self) -> Option<&Username> {
        match self {
            Audience::Everyone => None,
            Audience::Private(name) | Audience::Room(name) => Some(name),
        }
    }
}
