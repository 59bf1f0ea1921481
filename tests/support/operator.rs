//! A hostile operator between real clients and a real server without TLS: a rule replaces each frame.

use super::{Client, Count, Folder, Gate, Heard, Server, Unit, Way};
use secure_messenger::protocol::ServerMessage;
use std::sync::{Arc, Mutex};

/// Serves one client at a time.
pub struct Operator {
    pub gate: Gate,
    count: Arc<Mutex<Count>>,
}

impl Operator {
    pub fn before(server: &Server) -> Operator {
        let operator = Operator { gate: Gate::of(server, Unit::Frames), count: Arc::default() };
        let count = operator.count.clone();
        operator.gate.hook(Way::Up, move |frame| {
            let mut count = count.lock().expect("whole");
            if frame.starts_with(b"{\"type\":\"login_request\"") {
                *count = Count::default();
            } else if frame.starts_with(b"{\"type\":\"ack\"") {
                // The client counts the replaced frames; the server must get the number that it sent.
                return count.ack().map_or(Vec::new(), |ack| ack.encode());
            }
            frame
        });
        operator.rule(|heard| vec![heard.encode()]);
        operator
    }

    pub fn client(&self, home: &Arc<Folder>, name: &str) -> Client {
        self.gate.client(home.clone(), name, &["--register"])
    }

    /// Sets the rule that replaces each frame from the server.
    pub fn rule(&self, mut rule: impl FnMut(Heard) -> Vec<Vec<u8>> + Send + 'static) {
        let count = self.count.clone();
        self.gate.hook(Way::Down, move |frame| {
            let heard = Heard::parse(&frame);
            count.lock().expect("whole").take(heard.message());
            rule(heard).concat()
        });
    }

    /// Sets the rule that replaces each message from the server; packets pass unchanged.
    pub fn messages(&self, mut rule: impl FnMut(ServerMessage) -> Vec<ServerMessage> + Send + 'static) {
        self.rule(move |heard| match heard {
            Heard::Message(message) => rule(message).iter().map(ServerMessage::encode).collect(),
            packet => vec![packet.encode()],
        });
    }

    pub fn inject(&self, message: &ServerMessage) {
        self.gate.inject(Way::Down, &message.encode());
    }
}
