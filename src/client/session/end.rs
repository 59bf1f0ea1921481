//! The end of a session: by the user, by the server, or because something takes too long.
//!
//! Invariant: the user sees what may be lost; after the end, no job runs and no file is held.

use super::Session;
use super::account::PasswordChange;
use super::event::{Display, Effect, Event};
use super::leaving::Step;
use crate::client::error::ChangeError;
use crate::protocol::ClientMessage;
use std::time::Instant;

impl Session {
    /// Leaves when nothing is left to wait for, or the wait takes too long. The event before this one was at `before`.
    pub(super) fn leave_if_done(&mut self, before: Instant) {
        let awaits_mail = self.leaving.since().is_some_and(|since| !self.mailbox.is_settled(&self.cx, since));
        let state = (self.is_settled() && !awaits_mail, self.files.is_idle());
        let moved = self.files.moved();
        let moved = self.connection.owed().map_or(moved, |owed| owed.max(moved));
        match self.leaving.step(&self.cx, before, state, moved) {
            Some(Step::Leave) => {
                let unfinished = self.files.unfinished();
                let is_unchanged = self.cx.account.password == PasswordChange::Failed;
                let is_failed = unfinished.is_some() || is_unchanged || self.outbox.has_given_up();
                unfinished.into_iter().for_each(|text| self.cx.problem(text));
                self.cx.send(ClientMessage::Logout);
                self.cx.quit(u8::from(is_failed), true);
            }
            Some(Step::GiveUp) => self.give_up(),
            Some(Step::Tell) => {
                if let Some(text) = self.leaving() {
                    self.cx.display(Display::Progress(text));
                }
            }
            None => {}
        }
    }

    /// Ends because nothing more can arrive, and reports what may be lost.
    pub(super) fn give_up(&mut self) {
        self.tell_unsettled();
        self.cx.quit(1, false);
    }

    /// Ends at once, because the user does not want to wait.
    pub(super) fn leave_now(&mut self) {
        let is_unsettled = self.tell_unsettled();
        self.cx.quit(u8::from(is_unsettled), false);
    }

    /// Reports what an immediate end may lose; false if nothing.
    fn tell_unsettled(&mut self) -> bool {
        let is_changing = self.cx.account.password == PasswordChange::Running;
        let unclear_password = is_changing.then(|| ChangeError::Unfinished.to_string());
        let messages = self.outbox.unsettled(self.connection.lost_since());
        let unsettled = messages.chain(self.files.unfinished()).chain(unclear_password);
        let unsettled: Vec<String> = unsettled.collect();
        unsettled.iter().for_each(|text| self.cx.problem(text));
        !unsettled.is_empty()
    }

    /// Ends jobs and closes files: the screen may show an ended session for hours.
    pub(super) fn close(&mut self) {
        self.files.end(&mut self.cx);
        self.record.close();
        self.cx.account.mailbox = None;
        self.contacts.close(&self.cx);
    }

    /// Handles an event after the end, when the user can still read every conversation.
    pub(super) fn handle_after_the_end(&mut self, event: Event) -> Vec<Effect> {
        if let Event::Switch(partners) = event {
            self.talk.go_to(&mut self.cx, partners);
        }
        std::mem::take(&mut self.cx.effects)
    }
}
