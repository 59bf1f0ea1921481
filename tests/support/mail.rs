//! Mailbox keys, and messages that wait for absent users.

use super::{Person, Raw, Server, header, private_to, send_to};
use secure_messenger::clock;
use secure_messenger::crypto::envelope::Sealed;
use secure_messenger::crypto::keys::SessionKey;
use secure_messenger::crypto::public::{Fingerprint, SessionPublicKey};
use secure_messenger::protocol::{
    ClientMessage, EncryptedMessage, Kept, Mail, MailDone, MailRequest, MailboxCertificate, ServerMessage,
    UserKeys,
};
use std::sync::OnceLock;

/// The mailbox key of every person, because generating RSA keys takes long.
pub fn mailbox_key() -> &'static SessionKey {
    static KEY: OnceLock<SessionKey> = OnceLock::new();
    KEY.get_or_init(SessionKey::generate)
}

impl Person {
    /// Certifies the mailbox key.
    pub fn mailbox(&self, created: u64) -> MailboxCertificate {
        self.identity.certify_mailbox(&self.name, mailbox_key(), created)
    }

    /// The keys that a server shows while the person is absent.
    pub fn shown_absent(&self, mailbox: MailboxCertificate) -> UserKeys {
        let MailboxCertificate { mailbox_key, created, certificate } = mailbox;
        let (created, certificate) = (Some(created), Some(certificate));
        UserKeys { mailbox_key: Some(mailbox_key), created, certificate, ..self.shown_with(None) }
    }

    /// A private message that is sealed for this key. Its number is also that of the request.
    pub fn mail_for(&self, to: &str, key: &SessionPublicKey, number: u64, text: &str) -> ClientMessage {
        let header = header(self, private_to(to, key), number);
        let sealed = Sealed::seal(header, &self.identity, text.as_bytes());
        send_to(to, number, sealed.envelope.clone(), sealed.wrap_for(key))
    }

    /// The text of a message from this person that was sealed for the mailbox key.
    pub fn text_in(&self, message: &EncryptedMessage) -> String {
        let verified = message.envelope.verify(self.identity.public()).expect("signed by the sender");
        let text = verified.open(mailbox_key(), &message.key.bytes()).expect("sealed for the mailbox key");
        String::from_utf8(text.to_vec()).expect("UTF-8")
    }
}

impl Raw {
    /// Sends a mailbox key, and returns `mailbox_set` or the code of the error.
    pub fn set_mailbox(&mut self, certificate: &MailboxCertificate) -> String {
        self.say(&ClientMessage::Mailbox(Box::new(certificate.clone())));
        match self.answer() {
            Some(ServerMessage::MailboxSet) => "mailbox_set".into(),
            Some(ServerMessage::Error(failure)) => failure.code,
            _ => panic!("no answer to a mailbox key"),
        }
    }

    /// Requests the mail for these keys.
    pub fn fetch_for(&mut self, keys: &[Fingerprint]) -> Mail {
        self.say(&ClientMessage::MailRequest(MailRequest { keys: keys.to_vec(), after: 0 }));
        match self.answer() {
            Some(ServerMessage::Mail(mail)) => mail,
            _ => panic!("no mail"),
        }
    }

    /// Requests the mail for the mailbox key.
    pub fn fetch(&mut self) -> Mail {
        self.fetch_for(&[mailbox_key().fingerprint()])
    }

    /// Confirms messages, and waits until the server has deleted them.
    pub fn confirm(&mut self, mail: &[Kept]) {
        let numbers = mail.iter().map(|kept| kept.number).collect();
        self.say(&ClientMessage::MailDone(MailDone { numbers }));
        assert!(self.is_usable());
    }

    /// Sends an envelope to one user, and returns the name of the list in `sent`, or the code of the error.
    pub fn outcome(&mut self, send: &ClientMessage) -> String {
        self.say(send);
        let sent = match self.answer() {
            Some(ServerMessage::Sent(sent)) => sent,
            Some(ServerMessage::Error(failure)) => return failure.code,
            _ => panic!("no outcome"),
        };
        let lists = [
            ("delivered", sent.delivered),
            ("kept", sent.kept),
            ("offline", sent.offline),
            ("stale", sent.stale),
            ("busy", sent.busy),
        ];
        let names: Vec<_> = lists.iter().filter(|(_, names)| !names.is_empty()).collect();
        assert!(names.len() == 1 && names[0].1.len() == 1, "one list with one name");
        names[0].0.into()
    }

    /// Ends the session, and returns when it has ended.
    pub fn leaves(mut self) {
        self.say(&ClientMessage::Logout);
        while self.hear().is_some() {}
    }
}

impl Server {
    /// A new account with a mailbox, and no session.
    pub fn absent(&self, who: &str) -> Person {
        let person = Person::new(who);
        let mut raw = self.raw();
        raw.register_quickly(&person);
        assert!(matches!(raw.log_in_quickly(&person), Some(ServerMessage::Session(_))));
        assert_eq!(raw.set_mailbox(&person.mailbox(clock::now_ms())), "mailbox_set");
        raw.leaves();
        person
    }

    /// Logs in a person that was [`absent`](Server::absent).
    pub fn returns(&self, person: &Person) -> Raw {
        let mut raw = self.raw();
        assert!(matches!(raw.log_in_quickly(person), Some(ServerMessage::Session(_))));
        raw
    }

    /// A new account with a session.
    pub fn present(&self, who: &str) -> (Raw, Person) {
        let person = Person::new(who);
        self.raw().register_quickly(&person);
        (self.returns(&person), person)
    }
}

/// The certified mailbox key that a server shows for an absent user; `None` for an online user.
pub fn shown_mailbox(raw: &mut Raw, person: &Person) -> Option<MailboxCertificate> {
    let keys = raw.keys(&[person.name.as_str()]).keys.remove(0);
    assert!(keys.session_key.is_none() != keys.mailbox_key.is_none(), "one of the two");
    let (created, certificate) = (keys.created.expect("a time"), keys.certificate.expect("a certificate"));
    keys.mailbox_key.map(|mailbox_key| MailboxCertificate { mailbox_key, created, certificate })
}
