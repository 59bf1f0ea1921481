//! The private and room messages that a session's client has not acknowledged, and their senders (PROTOCOL#lost).
//!
//! Invariant: a message that was answered `delivered` has one receipt, in the order of delivery, until the client
//! acknowledges its frame or the session ends. Whoever ends the session takes the receipts, and the outbox accepts no
//! message after that, so each message is acknowledged or reported.

use super::frames::Frame;
use super::outbox::{Outbox, Pass};
use crate::name::Username;
use crate::protocol::{Lost, ServerMessage};
use std::collections::VecDeque;
use std::sync::Weak;

/// Receipts of frames that were dropped before the client acknowledged them: only a client that never acknowledges
/// reaches this number. All others are bounded by the frames in the outbox.
const MAX_DROPPED: usize = 256;

/// The sender of a message, and its `id`.
pub struct Receipt {
    /// Of the session that sent it; a later session of the same person is not notified.
    sender: Weak<Outbox>,
    id: u64,
    /// The number of its frame; 0 while the frame is in the row, which knows the number.
    frame: u64,
}

impl Receipt {
    /// For the message `id` of the session with this outbox.
    pub fn new(sender: Weak<Outbox>, id: u64) -> Receipt {
        Receipt { sender, id, frame: 0 }
    }
}

/// The receipts of one session, in the order of delivery.
#[derive(Default)]
pub struct Receipts {
    all: VecDeque<Receipt>,
    /// The frames of this number of receipts, at the front, have left the row.
    left: usize,
}

impl Receipts {
    /// A message was queued.
    pub fn push(&mut self, receipt: Receipt) {
        self.all.push_back(receipt);
    }

    /// The first message in the row has left it, as frame `number`.
    pub fn leaves(&mut self, number: u64) {
        if let Some(first) = self.all.get_mut(self.left) {
            first.frame = number;
            self.left += 1;
        }
    }

    /// The client has acknowledged `received` frames, and all of them have left the row.
    pub fn acknowledge(&mut self, received: u64) {
        while self.left > 0 && self.all.front().is_some_and(|first| first.frame <= received) {
            self.pop();
        }
        if self.all.is_empty() {
            // An idle session holds no memory for receipts.
            self.all = VecDeque::new();
        }
    }

    /// Bounds the receipts whose frames were dropped.
    pub fn forget(&mut self) {
        while self.left > MAX_DROPPED {
            self.pop();
        }
    }

    fn pop(&mut self) {
        self.all.pop_front();
        self.left -= 1;
    }

    /// Queues a `lost` for each sender that is still in the same session. `name` is the recipient's. No outbox may be
    /// locked. PROTOCOL#lost.
    pub fn report(self, name: &Username, pass: &mut Pass) {
        for receipt in self.all {
            if let Some(sender) = receipt.sender.upgrade() {
                let lost = Lost { id: receipt.id, name: name.clone() };
                sender.queue(Frame::message(&ServerMessage::Lost(lost)), pass);
            }
        }
    }
}

#[cfg(test)]
impl Receipts {
    /// In the order of delivery.
    pub fn ids(&self) -> Vec<u64> {
        self.all.iter().map(|receipt| receipt.id).collect()
    }
}
