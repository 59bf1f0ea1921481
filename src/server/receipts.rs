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

/// The sender of a message, and its `id`.
pub struct Receipt {
    /// Of the session that sent it; a later session of the same person is not notified.
    sender: Weak<Outbox>,
    id: u64,
}

impl Receipt {
    /// For the message `id` of the session with this outbox.
    pub fn new(sender: Weak<Outbox>, id: u64) -> Receipt {
        Receipt { sender, id }
    }
}

/// The receipts of one session, in the order of delivery.
#[derive(Default)]
pub struct Receipts(VecDeque<Receipt>);

impl Receipts {
    /// A message was queued.
    pub fn push(&mut self, receipt: Option<Receipt>) {
        self.0.extend(receipt);
    }

    /// The client has acknowledged this number of messages.
    pub fn acknowledge(&mut self, count: usize) {
        self.0.drain(..count.min(self.0.len()));
        if self.0.is_empty() {
            // An idle session holds no memory for receipts.
            self.0 = VecDeque::new();
        }
    }

    /// Queues a `lost` for each sender that is still in the same session. `name` is the recipient's. No outbox may be
    /// locked. PROTOCOL#lost.
    pub fn report(self, name: &Username, pass: &mut Pass) {
        for receipt in self.0 {
            if let Some(sender) = receipt.sender.upgrade() {
                let lost = Lost { id: receipt.id, name: name.clone() };
                sender.queue(Frame::message(&ServerMessage::Lost(lost)), pass);
            }
        }
    }
}
