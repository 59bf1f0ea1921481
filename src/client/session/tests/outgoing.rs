//! Sent messages after the end of their session, and what is remembered of settled ones.

use super::*;
use crate::protocol::EncryptedSend;

impl Net {
    /// The next message that `n` sends; the server answers what comes before it.
    fn next_sent(&mut self, n: usize) -> Box<EncryptedSend> {
        loop {
            match self.said[n].front() {
                Some(ClientMessage::EncryptedSend(_)) => {}
                Some(_) => {
                    self.step(n);
                    continue;
                }
                None => panic!("nothing is sent: {:#?}", self.shown[n]),
            }
            if let Some(ClientMessage::EncryptedSend(send)) = self.said[n].pop_front() {
                return send;
            }
        }
    }

    /// Answers a message of `n`: this user got it.
    fn deliver(&mut self, n: usize, send: &EncryptedSend, to: usize) {
        let sent = Sent { id: send.routing.id, delivered: vec![name(to)], ..Sent::default() };
        self.server(n, ServerMessage::Sent(sent));
    }
}

/// PROTOCOL#sequence, PROTOCOL#sent.
#[test]
fn answer_to_a_message_of_a_former_session_counts_for_nothing() {
    let mut net = Net::new();
    net.type_in(0, "/msg bob one");
    net.settle();
    net.type_in(0, "/msg bob two");
    let former = net.next_sent(0);
    assert_eq!(former.envelope.header.sequence, 2);
    net.event(0, new_login());
    let why = "the connection was lost before the server confirmed it: \"two\" may not have arrived";
    assert_eq!(net.failed(0), [(2, why.to_string())]);
    net.deliver(0, &former, 1);
    assert_eq!(net.count("the server answered a request that was not made"), 1, "{:#?}", net.shown[0]);
    net.type_in(0, "/msg bob three");
    assert_eq!(net.next_sent(0).envelope.header.sequence, 1);
}

#[test]
fn member_without_an_answer_is_named_after_a_new_login() {
    let mut net = Net::with_records("", 3);
    net.type_in(0, "/room bob carol");
    net.type_in(0, "hello");
    let first = net.next_sent(0);
    let to = net.find(&first.routing.targets[0]).expect("a member");
    net.deliver(0, &first, to);
    assert_eq!(net.failed(0), []);
    net.event(0, new_login());
    let states: Vec<SendState> = net.shown[0].drain(..).filter_map(|entry| Some(entry.sending?.1)).collect();
    let other = name(3 - to);
    let [SendState::Partly(why)] = &states[..] else { panic!("{states:?}") };
    assert!(why.contains("1 of 2") && why.contains(other.as_str()), "{why}");
}

/// PROTOCOL#lost.
#[test]
fn delivered_message_is_forgotten_after_five_minutes() {
    let mut net = Net::new();
    net.type_in(0, "/msg bob one");
    net.settle();
    net.bob_leaves();
    net.type_in(0, "two");
    net.minutes_pass(5);
    net.lose(0, 1, "bob");
    assert_eq!(net.count("some messages to bob may not have arrived"), 1, "{:#?}", net.shown[0]);
    assert!(net.sessions[0].can_resend(2), "a failed message stays");
}

/// PROTOCOL#broadcast.
#[test]
fn resent_broadcast_goes_to_all_who_are_online_now() {
    let mut net = Net::with_records("", 3);
    net.change(&[], &[2]);
    net.away.push(1);
    net.type_in(0, "hello");
    net.settle();
    assert_eq!(net.failed(0).len(), 1);
    net.change(&[2], &[]);
    net.event(0, Event::Resend(1));
    net.settle();
    assert_eq!(net.lines(2), ["<alice> hello"]);
}

#[test]
fn delivered_messages_displace_neither_failed_nor_pending_ones() {
    let mut net = Net::with_records("", 3);
    net.change(&[], &[1, 2]);
    net.type_in(0, "failed");
    net.change(&[1, 2], &[]);
    net.type_in(0, "/msg carol pending");
    let pending = net.next_sent(0);
    for _ in 0..257 {
        net.type_in(0, "/msg bob delivered");
        net.settle();
    }
    assert!(net.sessions[0].can_resend(1));
    net.shown[0].clear();
    net.deliver(0, &pending, 2);
    assert_eq!(net.states(0), [SendState::Taken]);
}
