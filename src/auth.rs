//! Registration, login, password change and resumption: both sides, without sockets or files.
//!
//! Invariant: only [`PendingLogin::verify`] makes an [`Authenticated`], and only [`PendingLogin::verify_change`] makes
//! a [`NewPassword`]. Both take the pending login by value, so a challenge is used once. An unknown name takes the same
//! steps at the same cost as a known one. Specification: PROTOCOL#login.

use crate::crypto::key_file::Login;
use crate::crypto::keys::{IdentityKey, SessionKey};
use crate::crypto::primitives::{self, PBKDF2_MAX_ROUNDS, PBKDF2_MIN_ROUNDS, PBKDF2_ROUNDS};
use crate::crypto::public::{
    Fingerprint, IdentityPublicKey, RSA_BYTES, SessionCertificate, SessionPublicKey, is_far_ahead,
};
use crate::crypto::secret::{Key, Password, random};
use crate::crypto::{Fields, label};
use crate::encoding::{Bytes, Fixed};
use crate::name::Username;
use crate::protocol::{
    Challenge, ChallengeResponse, ErrorCode, Failure, LoginRequest, PasswordChange, Register, Resume,
    ResumeChallenge, VERSION,
};
use miniserde::{Deserialize, Serialize};
use std::sync::Arc;
use zeroize::Zeroizing;

/// An hour, in milliseconds.
const HOUR: u64 = 3_600_000;

/// An account, as the server stores it. OPERATING#server-files.
#[derive(Serialize, Deserialize)]
pub struct Account {
    /// The name, in the letter case of its registration.
    pub name: Username,
    /// The salt of PBKDF2.
    pub salt: Fixed<32>,
    /// The rounds of PBKDF2.
    pub rounds: u32,
    /// The result of PBKDF2, which replaces the password.
    pub password_key: Key,
    /// Fingerprint of the identity key, which has its own file.
    pub identity: Fingerprint,
}

/// The key that a client sent is not RSA-2048 with e = 65,537 in canonical DER.
fn bad_key<E>(_: E) -> Failure {
    Failure::new(ErrorCode::BadKey, "the key is not an RSA-2048 public key")
}

/// Name, password, key or channel is wrong; the client does not learn which one.
pub fn denied() -> Failure {
    Failure::new(ErrorCode::LoginFailed, "the name, the password or the key is wrong")
}

/// Whether an account may have this number of PBKDF2 rounds. PROTOCOL#rounds.
///
/// # Errors
/// `bad_rounds` for fewer than 100,000 or more than 10,000,000.
pub fn acceptable(rounds: u32) -> Result<u32, Failure> {
    let bounds = PBKDF2_MIN_ROUNDS..=PBKDF2_MAX_ROUNDS;
    let bad = || Failure::new(ErrorCode::BadRounds, "the number of PBKDF2 rounds is out of range");
    bounds.contains(&rounds).then_some(rounds).ok_or_else(bad)
}

/// The beginning of every response and proof: its purpose, the name, the challenge that it answers, and the TLS
/// channel, which `exporter` names (RFC 9266, 32 bytes; empty without TLS).
fn bound(label: &str, name: &Username, nonce: &[u8; 32], exporter: &[u8]) -> Fields {
    Fields::new(label).text(name.as_str()).bytes(nonce).bytes(exporter)
}

/// A login's response and proof name the session key. PROTOCOL#response, PROTOCOL#login-proof.
fn login_bytes(bound: Fields, session: Fingerprint) -> Vec<u8> {
    bound.bytes(&session.0).finish()
}

/// A resumption's proof names how many frames the client received. PROTOCOL#resume-proof.
fn resume_bytes(bound: Fields, received: u64) -> Vec<u8> {
    bound.number(received).finish()
}

/// A password change's response and proof name the new salt, rounds and password key. PROTOCOL#response,
/// PROTOCOL#password-proof.
fn change_bytes(bound: Fields, PasswordKey { login, key }: &PasswordKey) -> Zeroizing<Vec<u8>> {
    let bound = bound.bytes(&login.salt.0).number(login.rounds.into());
    Zeroizing::new(bound.bytes(key.expose()).finish())
}

/// Server: checks only the form and the time of a session or mailbox key (DER) that a client offers: they depend on the
/// client alone and reveal nothing about an account. The owner has just made it, so a difference of over 2 hours means
/// that one clock is wrong. PROTOCOL#two-clocks. `now_ms` is the server's clock, milliseconds since 1970.
///
/// # Errors
/// `bad_key`.
pub fn check_offered(key: &Bytes, created: u64, now_ms: u64) -> Result<(), Failure> {
    SessionPublicKey::parse(&key.0).map_err(bad_key)?;
    let failed = |advice| Err(Failure::new(ErrorCode::BadKey, advice));
    wrong_clock(created, now_ms).map_or(Ok(()), failed)
}

/// The advice for a user whose clock differs from the server's by more than two hours, so that one side may refuse
/// certificates that the other accepts. Both times are in milliseconds since 1970.
pub fn wrong_clock(own: u64, servers: u64) -> Option<String> {
    let side = match (is_far_ahead(own, servers), is_far_ahead(servers, own)) {
        (true, _) => "ahead of",
        (_, true) => "behind",
        _ => return None,
    };
    let difference = match own.abs_diff(servers).saturating_add(HOUR / 2) / HOUR {
        hours @ ..36 => format!("{hours} hours"),
        hours => format!("{} days", (hours + 12) / 24),
    };
    Some(format!("your clock is {difference} {side} the server's: set the one that is wrong"))
}

impl From<&Challenge> for Login {
    fn from(challenge: &Challenge) -> Login {
        Login { salt: challenge.salt, rounds: challenge.rounds }
    }
}

/// `PBKDF2(password, salt, rounds)` with its salt and rounds. One server gets it in place of the password.
pub struct PasswordKey {
    /// The salt and rounds.
    pub login: Login,
    /// The result of PBKDF2.
    pub key: Key,
}

impl PasswordKey {
    /// With a new salt, for a new password. Takes about 0.1 s.
    pub fn new(password: &Password) -> PasswordKey {
        PasswordKey::with(password, Login::random())
    }

    /// With a login that this client has chosen, for a registration. Takes about 0.1 s.
    pub fn with(password: &Password, login: Login) -> PasswordKey {
        PasswordKey { login, key: primitives::pbkdf2(password, &login.salt.0, login.rounds) }
    }

    /// The key that a challenge asks for.
    ///
    /// # Errors
    /// `bad_rounds` if the server asks for too few or too many rounds.
    pub fn derive(password: &Password, challenge: &Challenge) -> Result<PasswordKey, Failure> {
        acceptable(challenge.rounds)?;
        Ok(PasswordKey::with(password, challenge.into()))
    }

    /// Whether a challenge asks for this key.
    pub fn answers(&self, challenge: &Challenge) -> bool {
        self.login == challenge.into()
    }

    /// The registration.
    pub fn register(&self, name: &Username, identity: &IdentityPublicKey) -> Register {
        Register {
            version: VERSION,
            username: name.clone(),
            salt: self.login.salt,
            rounds: self.login.rounds,
            password_key: self.key.duplicate(),
            public_key: Bytes(identity.spki()),
        }
    }

    /// The answer to a challenge that makes this the account's password key; `old` is the current password, `exporter`
    /// the channel's ([`Channel::exporter`](crate::wire::tls::Channel::exporter)).
    ///
    /// # Errors
    /// As [`PasswordKey::derive`].
    pub fn replace(
        &self,
        name: &Username,
        challenge: &Challenge,
        exporter: &[u8],
        old: &Password,
        identity: &IdentityKey,
    ) -> Result<PasswordChange, Failure> {
        let old = PasswordKey::derive(old, challenge)?;
        let bytes = |label| change_bytes(bound(label, name, &challenge.nonce.0, exporter), self);
        Ok(PasswordChange {
            response: old.response(&bytes(label::CHANGE_RESPONSE)),
            salt: self.login.salt,
            rounds: self.login.rounds,
            password_key: self.key.duplicate(),
            proof: Fixed(identity.sign(&bytes(label::PASSWORD_CHANGE))),
        })
    }

    /// The answer to a challenge that asks for this key, on the channel of `exporter`, with a session key and its
    /// certificate.
    pub fn log_in(
        &self,
        name: &Username,
        challenge: &Challenge,
        exporter: &[u8],
        identity: &IdentityKey,
        session: (&SessionKey, SessionCertificate),
    ) -> ChallengeResponse {
        let (key, SessionCertificate { session_key, created, certificate }) = session;
        let bound = |label| bound(label, name, &challenge.nonce.0, exporter);
        let bytes = |label| login_bytes(bound(label), key.fingerprint());
        ChallengeResponse {
            response: self.response(&bytes(label::LOGIN_RESPONSE)),
            session_key,
            created,
            certificate,
            proof: Fixed(identity.sign(&bytes(label::LOGIN_PROOF))),
        }
    }

    fn response(&self, bytes: &[u8]) -> Fixed<32> {
        Fixed(primitives::hmac(&self.key, bytes))
    }
}

/// Server: turns a registration into an account and its identity key. The caller checks whether the name is free.
///
/// # Errors
/// `bad_rounds`, `bad_key`.
pub fn accept_registration(request: Register) -> Result<(Account, IdentityPublicKey), Failure> {
    let Register { username: name, salt, rounds, password_key, public_key, .. } = request;
    let key = IdentityPublicKey::parse(&public_key.0).map_err(bad_key)?;
    Ok((Account { name, salt, rounds: acceptable(rounds)?, password_key, identity: key.fingerprint() }, key))
}

/// Client: the answer to a challenge, for the session with this `token`. `received` counts the session's frames that
/// have arrived.
pub fn resume(
    name: &Username,
    challenge: &ResumeChallenge,
    exporter: &[u8],
    token: &Key,
    received: u64,
) -> Resume {
    let proven = resume_bytes(bound(label::RESUME, name, &challenge.nonce.0, exporter), received);
    Resume { received, proof: Fixed(primitives::hmac(token, &proven)) }
}

/// Server: a resumption, between challenge and answer.
pub struct PendingResume {
    name: Username,
    nonce: [u8; 32],
}

impl PendingResume {
    /// Makes the challenge, for any name.
    pub fn new(name: Username) -> (PendingResume, ResumeChallenge) {
        let nonce = random();
        let challenge = ResumeChallenge { version: VERSION, nonce: Fixed(nonce) };
        (PendingResume { name, nonce }, challenge)
    }

    /// The user whose session is requested.
    pub fn name(&self) -> &Username {
        &self.name
    }

    /// Checks the answer against all `tokens`, each in constant time, and returns the index of the last one that
    /// matches. So that timing does not reveal whether the session exists, the caller passes the same number of tokens
    /// either way.
    pub fn verify(&self, resume: &Resume, exporter: &[u8], tokens: &[Key]) -> Option<usize> {
        let proven = resume_bytes(bound(label::RESUME, &self.name, &self.nonce, exporter), resume.received);
        let fits = |token: &Key| primitives::hmac_matches(token, &proven, &resume.proof.0);
        // Try all of them, so that the time does not depend on the match.
        let fold = |found, (at, token)| if fits(token) { Some(at) } else { found };
        tokens.iter().enumerate().fold(None, fold)
    }
}

/// Server: a login, between challenge and response.
pub struct PendingLogin {
    /// If the name has no account, all values but the name are random.
    account: Arc<Account>,
    is_known: bool,
    nonce: [u8; 32],
    offered: IdentityPublicKey,
}

/// Server: proof of a complete login. Only [`PendingLogin::verify`] makes one.
pub struct Authenticated {
    name: Username,
    identity: IdentityPublicKey,
    certificate: SessionCertificate,
}

impl Authenticated {
    /// The user who logged in.
    pub fn name(&self) -> &Username {
        &self.name
    }

    /// The account's identity key.
    pub fn identity(&self) -> &IdentityPublicKey {
        &self.identity
    }

    /// The session key, certified by the identity key.
    pub fn certificate(&self) -> &SessionCertificate {
        &self.certificate
    }
}

/// Server: an account with the new password of its owner. Only [`PendingLogin::verify_change`] makes one.
pub struct NewPassword(Account);

impl NewPassword {
    /// The account with its new password key.
    pub fn into_account(self) -> Account {
        self.0
    }
}

impl PendingLogin {
    /// Makes the challenge, which accepts one answer (PROTOCOL#challenge-once). `account` is `None` for an unknown
    /// name, whose salt is an HMAC of the name under `secret`: stable, and indistinguishable from a real one.
    ///
    /// # Errors
    /// `bad_key` if the client's key is not valid, for known and unknown names alike.
    pub fn new(
        request: LoginRequest,
        account: Option<Arc<Account>>,
        secret: &Key,
    ) -> Result<(PendingLogin, Challenge), Failure> {
        let offered = IdentityPublicKey::parse(&request.public_key.0).map_err(bad_key)?;
        let (nonce, is_known) = (random(), account.is_some());
        // The name as typed: a known name in another letter case is unknown. PROTOCOL#unknown-name.
        let fake = Fields::new(label::FAKE_SALT).text(request.username.as_str()).finish();
        // Compute the dummy values for known names too, so that timing does not reveal unknown ones (SECURITY#limits).
        let nobody = Arc::new(Account {
            name: request.username,
            salt: Fixed(primitives::hmac(secret, &fake)),
            rounds: PBKDF2_ROUNDS,
            password_key: Key::random(),
            identity: Fingerprint(random()),
        });
        let account = account.unwrap_or(nobody);
        let (salt, rounds) = (account.salt, account.rounds);
        let challenge = Challenge { version: VERSION, nonce: Fixed(nonce), salt, rounds };
        Ok((PendingLogin { account, is_known, nonce, offered }, challenge))
    }

    /// The user who requests a login.
    pub fn name(&self) -> &Username {
        &self.account.name
    }

    /// Checks password, identity key and channel of a password change: always all of them, so that timing does not tell
    /// which one failed.
    ///
    /// # Errors
    /// `bad_rounds` for the new password's rounds, else [`denied`].
    pub fn verify_change(self, change: PasswordChange, exporter: &[u8]) -> Result<NewPassword, Failure> {
        let login = Login { salt: change.salt, rounds: acceptable(change.rounds)? };
        let new = PasswordKey { login, key: change.password_key };
        let bytes = |label| change_bytes(bound(label, self.name(), &self.nonce, exporter), &new);
        let (responded, proven) = (bytes(label::CHANGE_RESPONSE), bytes(label::PASSWORD_CHANGE));
        if self.proves((&responded, &change.response), (&proven, &change.proof)) {
            let (name, identity) = (self.account.name.clone(), self.account.identity);
            let Login { salt, rounds } = login;
            Ok(NewPassword(Account { name, salt, rounds, password_key: new.key, identity }))
        } else {
            Err(denied())
        }
    }

    /// Whether the client knows the password, which makes the response, and has the account's identity key, which makes
    /// the proof. Always checks both.
    fn proves(&self, response: (&[u8], &Fixed<32>), proof: (&[u8], &Fixed<RSA_BYTES>)) -> bool {
        let knows_password = primitives::hmac_matches(&self.account.password_key, response.0, &response.1.0);
        // In constant time.
        let is_owner = Key::new(self.offered.fingerprint().0) == Key::new(self.account.identity.0);
        let has_key = self.offered.verify(proof.0, &proof.1.0).is_ok();
        self.is_known & knows_password & is_owner & has_key
    }

    /// Checks password, identity key, session certificate and channel: always all of them. `now_ms` is the server's
    /// clock, milliseconds since 1970.
    ///
    /// # Errors
    /// [`denied`].
    pub fn verify(
        self,
        response: &ChallengeResponse,
        exporter: &[u8],
        now_ms: u64,
    ) -> Result<Authenticated, Failure> {
        let (certificate, session) = (response.certificate(), Fingerprint::of(&response.session_key.0));
        let bytes = |label| login_bytes(bound(label, self.name(), &self.nonce, exporter), session);
        let (responded, proven) = (bytes(label::LOGIN_RESPONSE), bytes(label::LOGIN_PROOF));
        let is_certified = certificate.verify(self.name(), &self.offered, now_ms).is_ok();
        // PROTOCOL#login-failed.
        if self.proves((&responded, &response.response), (&proven, &response.proof)) & is_certified {
            Ok(Authenticated { name: self.name().clone(), identity: self.offered, certificate })
        } else {
            Err(denied())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Person {
        name: Username,
        password: Password,
        identity: IdentityKey,
        session: SessionKey,
        account: Arc<Account>,
    }

    const NOW: u64 = 1_800_000_000_000;

    fn person(name: &str) -> Person {
        let (name, password) = (name.parse().expect("name"), Password::new("correct horse".into()));
        let (identity, session) = (IdentityKey::generate(), SessionKey::generate());
        let request = PasswordKey::new(&password).register(&name, identity.public());
        let (account, _) = accept_registration(request).expect("valid");
        Person { name, password, identity, session, account: Arc::new(account) }
    }

    /// One login; `change` alters the response, and `exporter` is the server's view of the channel.
    fn login(
        p: &Person,
        known: bool,
        change: impl FnOnce(&mut ChallengeResponse),
        exporter: &[u8],
    ) -> Result<Authenticated, Failure> {
        let request = LoginRequest {
            version: VERSION,
            username: p.name.clone(),
            public_key: Bytes(p.identity.public().spki()),
        };
        let account = known.then(|| p.account.clone());
        let pending = PendingLogin::new(request, account, &Key::new([1; 32])).expect("challenge");
        answer(p, pending, change, exporter)
    }

    /// The rest of a login, after its challenge.
    fn answer(
        p: &Person,
        (pending, challenge): (PendingLogin, Challenge),
        change: impl FnOnce(&mut ChallengeResponse),
        exporter: &[u8],
    ) -> Result<Authenticated, Failure> {
        let certificate = p.identity.certify(&p.name, &p.session, NOW);
        let session = (&p.session, certificate);
        let key = PasswordKey::derive(&p.password, &challenge).expect("acceptable rounds");
        let mut response = key.log_in(&p.name, &challenge, b"exporter", &p.identity, session);
        change(&mut response);
        check_offered(&response.session_key, response.created, NOW)?;
        pending.verify(&response, exporter, NOW)
    }

    /// PROTOCOL#login-failed, PROTOCOL#login-proof.
    #[test]
    fn login_fails_when_any_part_is_wrong() {
        let p = person("alice");
        assert_eq!(login(&p, true, |_| (), b"exporter").expect("accepted").name().as_str(), "alice");
        let denied = |result: Result<Authenticated, Failure>| {
            assert_eq!(result.err(), Some(denied()));
        };
        denied(login(&p, false, |_| (), b"exporter"));
        denied(login(&p, true, |_| (), b"another channel"));
        denied(login(&p, true, |r| r.response.0[0] ^= 1, b"exporter"));
        denied(login(&p, true, |r| r.proof.0[9] ^= 1, b"exporter"));
        denied(login(&p, true, |r| r.certificate.0[9] ^= 1, b"exporter"));
        denied(login(&p, true, |r| r.created += 1, b"exporter"));
        let other = SessionKey::generate();
        denied(login(&p, true, |r| r.session_key = Bytes(other.public().spki()), b"exporter"));
    }

    /// PROTOCOL#unknown-name.
    #[test]
    fn unknown_name_is_denied_even_with_its_dummy_values() {
        let p = person("alice");
        let request = LoginRequest {
            version: VERSION,
            username: p.name.clone(),
            public_key: Bytes(p.identity.public().spki()),
        };
        let new = PendingLogin::new(request, Some(p.account.clone()), &Key::new([1; 32]));
        let (mut pending, challenge) = new.expect("challenge");
        pending.is_known = false;
        assert_eq!(answer(&p, (pending, challenge), |_| (), b"exporter").err(), Some(denied()));
    }

    /// PROTOCOL#two-clocks.
    #[test]
    fn wrong_clock_is_reported_with_direction_and_days() {
        let p = person("alice");
        let hours = |off: i64| {
            let created = NOW.saturating_add_signed(off * 3_600_000);
            let key = Bytes(p.session.public().spki());
            let refused = check_offered(&key, created, NOW).err();
            refused.map_or(String::new(), |failure| failure.message)
        };
        assert_eq!([hours(2), hours(0), hours(-2)], ["", "", ""]);
        for (off, said) in [
            (3, "your clock is 3 hours ahead of the server's"),
            (48, "your clock is 2 days ahead of the server's"),
            (-3, "your clock is 3 hours behind the server's"),
            (-48, "your clock is 2 days behind the server's"),
            (-24 * 365, "your clock is 365 days behind the server's"),
        ] {
            assert!(hours(off).starts_with(said), "{}", hours(off));
        }
        assert!(wrong_clock(u64::MAX, 0).is_some() && wrong_clock(0, u64::MAX).is_some());
    }

    /// PROTOCOL#resume-proof.
    #[test]
    fn resume_proof_binds_token_name_channel_and_count() {
        let (alice, bob): (Username, Username) =
            ("alice".parse().expect("name"), "bob".parse().expect("name"));
        let (token, former, other) = (Key::new([1; 32]), Key::new([2; 32]), Key::new([3; 32]));
        let attempt = |name: &Username, token: &Key, channel: &[u8], change: &dyn Fn(&mut Resume)| {
            let (pending, challenge) = PendingResume::new(alice.clone());
            let mut answer = resume(name, &challenge, channel, token, 7);
            change(&mut answer);
            pending.verify(&answer, b"exporter", &[Key::new([1; 32]), Key::new([2; 32])])
        };
        assert_eq!(attempt(&alice, &token, b"exporter", &|_| ()), Some(0));
        assert_eq!(attempt(&alice, &former, b"exporter", &|_| ()), Some(1));
        assert_eq!(attempt(&alice, &other, b"exporter", &|_| ()), None);
        assert_eq!(attempt(&bob, &token, b"exporter", &|_| ()), None);
        assert_eq!(attempt(&alice, &token, b"another", &|_| ()), None);
        assert_eq!(attempt(&alice, &token, b"exporter", &|answer| answer.received += 1), None);
        let (pending, challenge) = PendingResume::new(alice.clone());
        assert_eq!(pending.verify(&resume(&alice, &challenge, b"", &token, 0), b"", &[]), None);
        let (_, challenge) = PendingResume::new(alice.clone());
        let (pending, _) = PendingResume::new(alice.clone());
        assert_eq!(pending.verify(&resume(&alice, &challenge, b"", &token, 0), b"", &[token]), None);
    }

    /// PROTOCOL#password-proof.
    #[test]
    fn password_change_needs_all_parts_of_a_login() {
        let p = person("alice");
        let change = |known: bool, exporter: &[u8], alter: fn(&mut PasswordChange)| {
            let request = LoginRequest {
                version: VERSION,
                username: p.name.clone(),
                public_key: Bytes(p.identity.public().spki()),
            };
            let account = known.then(|| p.account.clone());
            let (pending, challenge) =
                PendingLogin::new(request, account, &Key::new([1; 32])).expect("challenge");
            let new = PasswordKey::new(&Password::new("another".into()));
            let mut change =
                new.replace(&p.name, &challenge, b"exporter", &p.password, &p.identity).expect("rounds");
            alter(&mut change);
            let account = pending.verify_change(change, exporter)?.into_account();
            assert!(
                (account.salt, account.rounds) == (new.login.salt, new.login.rounds)
                    && account.password_key == new.key
            );
            assert!(account.name == p.name && account.identity == p.account.identity);
            Ok(())
        };
        assert_eq!(change(true, b"exporter", |_| ()), Ok(()));
        assert_eq!(change(false, b"exporter", |_| ()), Err(denied()));
        assert_eq!(change(true, b"another channel", |_| ()), Err(denied()));
        assert_eq!(change(true, b"exporter", |c| c.response.0[0] ^= 1), Err(denied()));
        assert_eq!(change(true, b"exporter", |c| c.proof.0[9] ^= 1), Err(denied()));
        let refused = change(true, b"exporter", |c| c.rounds = 99_999);
        assert!(refused.is_err_and(|failure| failure.is(ErrorCode::BadRounds)));
    }

    #[test]
    fn stolen_user_file_opens_no_account() {
        let mut p = person("alice");
        // The thief knows the password key but has another identity key.
        p.identity = IdentityKey::generate();
        assert_eq!(login(&p, true, |_| (), b"exporter").err(), Some(denied()));
    }

    /// PROTOCOL#unknown-name, PROTOCOL#rounds.
    #[test]
    fn unknown_name_gets_a_stable_salt_and_a_fresh_nonce() {
        let p = person("nobody");
        let ask = |secret: u8| {
            let request = LoginRequest {
                version: VERSION,
                username: p.name.clone(),
                public_key: Bytes(p.identity.public().spki()),
            };
            PendingLogin::new(request, None, &Key::new([secret; 32])).expect("challenge").1
        };
        assert!(ask(1).salt == ask(1).salt && ask(1).nonce != ask(1).nonce);
        assert!(ask(1).salt != ask(2).salt && ask(1).rounds == PBKDF2_ROUNDS);
    }

    #[test]
    fn password_key_answers_only_its_own_salt_and_rounds() {
        let (salt, rounds) = ([1; 32], PBKDF2_ROUNDS);
        let login = Login { salt: Fixed(salt), rounds };
        let key = PasswordKey { login, key: Key::new([2; 32]) };
        let asks = |salt: [u8; 32], rounds: u32| {
            let (nonce, salt) = (Fixed([3; 32]), Fixed(salt));
            key.answers(&Challenge { version: VERSION, nonce, salt, rounds })
        };
        assert!(asks(salt, rounds) && !asks([4; 32], rounds) && !asks(salt, rounds + 1));
    }

    /// PROTOCOL#rounds.
    #[test]
    fn challenge_with_too_few_or_too_many_rounds_is_refused() {
        let p = person("alice");
        for rounds in [0, 1, 99_999, 10_000_001, u32::MAX] {
            let challenge =
                Challenge { version: VERSION, nonce: Fixed([0; 32]), salt: Fixed([0; 32]), rounds };
            let key = PasswordKey::derive(&p.password, &challenge);
            assert!(key.is_err_and(|failure| failure.is(ErrorCode::BadRounds)));
            let key = PasswordKey::new(&p.password);
            let change = key.replace(&p.name, &challenge, b"", &p.password, &p.identity);
            assert!(change.is_err_and(|failure| failure.is(ErrorCode::BadRounds)));
        }
    }
}
