//! Does timing reveal a secret? At a login: whether the name has an account, and whether the password is right. In a
//! comparison: where two values differ. A real server answers over TLS; then its parts run alone. All kinds of attempt
//! are mixed in random order. The noise is the difference that 95 of 100 random halvings of one kind do not exceed.
//!
//! `cargo bench --bench constant [-- [ATTEMPTS] [logins] [names] [decisions] [comparisons]]`; 10,000 attempts of each
//! kind take a quarter of an hour.

mod measure;
#[path = "../support/mod.rs"]
mod support;

use measure::{median, percentile};
use secure_messenger::auth::{self, PasswordKey, PendingLogin};
use secure_messenger::clock;
use secure_messenger::crypto::primitives;
use secure_messenger::crypto::secret::{Key, random};
use secure_messenger::disk;
use secure_messenger::encoding::Fixed;
use secure_messenger::protocol::{Challenge, ClientMessage, ServerMessage};
use secure_messenger::server::store::accounts::Accounts;
use socket2::{Domain, Socket, Type};
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;
use support::{DEADLINE, Dice, Folder, NEW, Person, Raw, Server, quick_key, shared_key};

/// One address registers all accounts.
const ARGUMENTS: [&str; 2] = ["--registrations", "1000000"];
/// Attempts for one name: the fifth failure would lock it.
const PER_NAME: usize = 4;
/// Failures from one address: the fiftieth would lock it.
const PER_ADDRESS: usize = 49;
/// Registrations on one connection, which may send 32 lines before a login.
const PER_CONNECTION: usize = 32;

/// What is wrong with an attempt.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Nothing,
    Password,
    Name,
    Proof,
    PasswordAndProof,
}

const KINDS: [Kind; 5] = [Kind::Nothing, Kind::Password, Kind::Name, Kind::Proof, Kind::PasswordAndProof];

/// An attempt, and the microseconds from the request to the challenge, and from the response to the answer.
struct Attempt {
    kind: Kind,
    challenge: f64,
    answer: f64,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let count = words.iter().find_map(|word| word.parse::<usize>().ok()).unwrap_or(200);
    let parts: [(&str, Part); 4] =
        [("logins", logins), ("names", names), ("decisions", decisions), ("comparisons", comparisons)];
    let is_named = |name: &str| words.iter().any(|word| word == name);
    let all = !parts.iter().any(|(name, _)| is_named(name));
    let dice = Dice::named("SEED");
    for (_, part) in parts.iter().filter(|(name, _)| all || is_named(name)) {
        part(count, &dice);
    }
}

/// Measures this number of attempts of each kind, and prints the result.
type Part = fn(usize, &Dice);

/// Compares the kinds that a client must not be able to tell apart, and two pairs that it may.
fn report(attempts: &[Attempt], dice: &Dice) {
    let of = |kind: Kind, time: fn(&Attempt) -> f64| -> Vec<f64> {
        attempts.iter().filter(|attempt| attempt.kind == kind).map(time).collect()
    };
    let challenge = |kind| of(kind, |attempt| attempt.challenge);
    let known = [Kind::Password, Kind::Proof, Kind::PasswordAndProof, Kind::Nothing].map(challenge).concat();
    head("from the request to the challenge");
    compare(("known name", &known), ("unknown name", &challenge(Kind::Name)), dice);
    let [nothing, password, name, proof, both] = KINDS.map(|kind| of(kind, |attempt| attempt.answer));
    head("from the response to the answer");
    compare(("wrong password", &password), ("unknown name", &name), dice);
    compare(("wrong proof", &proof), ("wrong proof and password", &both), dice);
    compare(("wrong password", &password), ("wrong proof", &proof), dice);
    compare(("wrong password", &password), ("nothing wrong", &nothing), dice);
}

fn shuffled<T>(mut list: Vec<T>, dice: &Dice) -> Vec<T> {
    for end in (1..list.len()).rev() {
        list.swap(end, dice.below(end as u64 + 1) as usize);
    }
    list
}

fn person(kind: &str, number: usize) -> Person {
    Person::new(&format!("{kind}-{number:06}"))
}

/// Logins over the network. No name and no address has enough failures to be locked.
fn logins(count: usize, dice: &Dice) {
    let server = Server::with(&ARGUMENTS);
    let numbers: Vec<usize> = (0..=count).collect();
    for some in numbers.chunks(PER_CONNECTION) {
        let mut raw = server.raw();
        some.iter().for_each(|number| raw.register_quickly(&person("known", *number)));
    }
    let wrong = quick_key(NEW);
    let (mut known, mut unknown, mut failures) = (0, 0, 0);
    let mut measure = |kind| {
        let number = if kind == Kind::Name { &mut unknown } else { &mut known };
        let person = person(if kind == Kind::Name { "other" } else { "known" }, *number / PER_NAME);
        *number += 1;
        failures += usize::from(kind != Kind::Nothing);
        attempt(&server, &person, kind, failures / PER_ADDRESS, &wrong)
    };
    for _ in 0..PER_NAME {
        // The first logins of a process are slower.
        measure(Kind::Nothing);
    }
    let kinds = shuffled((0..count).flat_map(|_| KINDS).collect(), dice);
    println!("{count} logins of each kind, microseconds");
    report(&kinds.into_iter().map(measure).collect::<Vec<_>>(), dice);
}

/// Looks up each name once, and the same number of names without an account.
fn names(count: usize, dice: &Dice) {
    let folder = Folder::new();
    disk::private_folders(&folder.path("keys"), &[]).expect("a folder");
    let accounts = Accounts::open(&folder.path(""), &mut Vec::new()).expect("no accounts yet");
    let list = |kind: &str| (0..count).map(|number| person(kind, number)).collect::<Vec<_>>();
    let (known, unknown) = (list("known"), list("other"));
    for person in &known {
        let registration = shared_key().register(&person.name, person.identity.public());
        let (account, identity) = auth::accept_registration(registration).expect("an account");
        assert!(accounts.register(account, &identity).expect("stored"));
    }
    let mut times = [const { Vec::new() }; 2];
    for (person, is_known) in
        shuffled(known.iter().map(|p| (p, true)).chain(unknown.iter().map(|p| (p, false))).collect(), dice)
    {
        let start = Instant::now();
        let seen = black_box(accounts.see(black_box(&person.name)));
        times[usize::from(is_known)].push(start.elapsed().as_secs_f64() * 1e9);
        assert_eq!(seen.is_some(), is_known);
    }
    println!("{count} look-ups of each kind among as many accounts, nanoseconds");
    head("a name");
    compare(("known name", &times[1]), ("unknown name", &times[0]), dice);
}

/// One login on a new connection from the address with this number. The client's own work is the same for all kinds.
fn attempt(server: &Server, person: &Person, kind: Kind, address: usize, wrong: &PasswordKey) -> Attempt {
    let certificate = person.identity.certify(&person.name, &person.session, clock::now_ms());
    let mut raw = Raw::over(connect(server.port, address), true);
    let (challenge_time, answer) = ask(&mut raw, &person.login_request());
    let ServerMessage::Challenge(challenge) = answer else { panic!("no challenge") };
    let is_password_wrong = matches!(kind, Kind::Password | Kind::PasswordAndProof);
    let key = if is_password_wrong { wrong } else { shared_key() };
    let respond = |challenge: &Challenge| {
        let session = (&*person.session, certificate.clone());
        key.log_in(&person.name, challenge, raw.channel.exporter(), &person.identity, session)
    };
    let mut response = respond(&challenge);
    let other = respond(&Challenge { nonce: Fixed(random()), ..challenge });
    if matches!(kind, Kind::Proof | Kind::PasswordAndProof) {
        response.proof = other.proof;
    }
    let (answer_time, answer) = ask(&mut raw, &ClientMessage::ChallengeResponse(Box::new(response)));
    match answer {
        ServerMessage::Session(_) if kind == Kind::Nothing => raw.say(&ClientMessage::Logout),
        ServerMessage::Error(failure) if kind != Kind::Nothing && failure.code == "login_failed" => {}
        _ => panic!("{kind:?}: another answer"),
    }
    Attempt { kind, challenge: challenge_time, answer: answer_time }
}

/// The server's decisions, in this process.
fn decisions(count: usize, dice: &Dice) {
    let (known, unknown, wrong) = (person("known", 0), person("other", 0), quick_key(NEW));
    let registration = shared_key().register(&known.name, known.identity.public());
    let account = Arc::new(auth::accept_registration(registration).expect("an account").0);
    let (secret, exporter, now) = (Key::random(), random::<32>(), clock::now_ms());
    let false_proof = Fixed(known.identity.sign(b"something else"));
    let certificates =
        [&known, &unknown].map(|person| person.identity.certify(&person.name, &person.session, now));
    let measure = |kind| {
        let is_known = kind != Kind::Name;
        let (person, certificate) =
            if is_known { (&known, &certificates[0]) } else { (&unknown, &certificates[1]) };
        let ClientMessage::LoginRequest(request) = person.login_request() else { panic!("a request") };
        let seen = is_known.then(|| account.clone());
        let start = Instant::now();
        let (pending, challenge) = PendingLogin::new(request, seen, &secret).expect("a challenge");
        let challenge_time = start.elapsed();
        let is_password_wrong = matches!(kind, Kind::Password | Kind::PasswordAndProof);
        let key = if is_password_wrong { &wrong } else { shared_key() };
        let session = (&*person.session, certificate.clone());
        let mut response = key.log_in(&person.name, &challenge, &exporter, &person.identity, session);
        if matches!(kind, Kind::Proof | Kind::PasswordAndProof) {
            response.proof = false_proof;
        }
        let start = Instant::now();
        let verified = pending.verify(&response, &exporter, now);
        let answer_time = start.elapsed();
        assert_eq!(verified.is_ok(), kind == Kind::Nothing, "{kind:?}");
        let [challenge, answer] = [challenge_time, answer_time].map(|time| time.as_secs_f64() * 1e6);
        Attempt { kind, challenge, answer }
    };
    let kinds = shuffled((0..count).flat_map(|_| KINDS).collect(), dice);
    println!("{count} decisions of each kind without network and store, microseconds");
    report(&kinds.into_iter().map(measure).collect::<Vec<_>>(), dice);
}

/// A connection from one of the addresses of this machine.
fn connect(port: u16, address: usize) -> TcpStream {
    let own = Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 0).to_bits() + address as u32);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((own, 0)).into()).expect("an own address");
    socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).expect("the server accepts");
    socket.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    socket.into()
}

/// The microseconds until the next line from the server, and the line.
fn ask(raw: &mut Raw, message: &ClientMessage) -> (f64, ServerMessage) {
    let (line, start) = (message.encode(), Instant::now());
    assert!(raw.bytes(&line), "the server reads");
    let answer = raw.line().expect("an answer");
    let time = start.elapsed().as_secs_f64() * 1e6;
    (time, ServerMessage::decode(answer.as_bytes()).expect("a message"))
}

/// Compares keys, then MACs, then with a function that returns at the first difference, which must be visible.
fn comparisons(count: usize, dice: &Dice) {
    let (secret, key) = (random::<32>(), Key::random());
    let flipped = |bytes: [u8; 32]| {
        let flip = |at: usize| std::array::from_fn(|n| bytes[n] ^ u8::from(n == at));
        [bytes, flip(0), flip(31)]
    };
    let (others, macs) = (flipped(secret), flipped(primitives::hmac(&key, b"message")));
    let (own, keys) = (Key::new(secret), others.map(Key::new));
    let is_key = |which: usize| black_box(&own) == black_box(&keys[which]);
    let is_mac = |which: usize| primitives::hmac_matches(&key, b"message", black_box(&macs[which]));
    let is_plain =
        |which: usize| black_box(&secret).iter().zip(black_box(&others[which])).all(|(a, b)| a == b);
    println!("{count} times 1,000 comparisons of 32 bytes, nanoseconds for each");
    let kinds: [(&str, &dyn Fn(usize) -> bool); 3] =
        [("keys", &is_key), ("an HMAC and its comparison", &is_mac), ("not in constant time", &is_plain)];
    for (title, compared) in kinds {
        let mut times = [const { Vec::new() }; 3];
        for which in shuffled((0..count).flat_map(|_| 0..3).collect(), dice) {
            let start = Instant::now();
            for _ in 0..1000 {
                black_box(compared(which));
            }
            times[which].push(start.elapsed().as_secs_f64() * 1e6);
        }
        let [equal, first, last] = &times;
        head(title);
        compare(("equal", equal), ("first byte differs", first), dice);
        compare(("first byte differs", first), ("last byte differs", last), dice);
    }
}

fn head(title: &str) {
    println!(
        "  {title:<34} {:>9} {:>9} {:>9} {:>9} {:>7} {:>8} {:>7} {:>8}",
        "25 %", "median", "75 %", "longer", "noise", "P", "noise", "visible"
    );
}

/// Prints the quartiles of both, and how much longer the second median is; the probability P that a second time exceeds
/// a first one (Mann-Whitney); the noise of both figures; and the shortest delay that P would show.
fn compare((first, one): (&str, &[f64]), (second, other): (&str, &[f64]), dice: &Dice) {
    let quartiles = |name: &str, times: &[f64]| {
        let [low, middle, high] = [25, 50, 75].map(|percent| percentile(times.to_vec(), percent));
        format!("  {name:<34} {low:>9.2} {middle:>9.2} {high:>9.2}")
    };
    println!("{}", quartiles(first, one));
    let halves: Vec<_> = (0..100).map(|_| halves(one, dice)).collect();
    let noise = |of: fn(&[f64], &[f64]) -> f64| {
        percentile(halves.iter().map(|(one, other)| of(one, other).abs()).collect(), 95)
    };
    let (noise_longer, noise_bias) = (noise(longer), noise(bias));
    let (half, rest) = &halves[0];
    let is_visible = |delay: &f64| {
        let delayed: Vec<f64> = rest.iter().map(|time| time + delay).collect();
        bias(half, &delayed) - bias(half, rest) > noise_bias
    };
    let visible = (-20..40).map(|power| 2f64.powi(power)).find(is_visible).unwrap_or(f64::NAN);
    println!(
        "{} {:>9.2} {noise_longer:>7.2} {:>8.4} {noise_bias:>7.4} {visible:>8.3}",
        quartiles(second, other),
        longer(one, other),
        0.5 + bias(one, other)
    );
}

fn halves(times: &[f64], dice: &Dice) -> (Vec<f64>, Vec<f64>) {
    let mut half = shuffled(times.to_vec(), dice);
    let rest = half.split_off(times.len() / 2);
    (half, rest)
}

fn longer(one: &[f64], other: &[f64]) -> f64 {
    median(other.to_vec()) - median(one.to_vec())
}

/// The probability that a time of `other` exceeds one of `one` (ties count half), minus a half.
fn bias(one: &[f64], other: &[f64]) -> f64 {
    let mut sorted = one.to_vec();
    sorted.sort_by(f64::total_cmp);
    let ranks = other.iter().map(|time| {
        let (below, upto) = (sorted.partition_point(|t| t < time), sorted.partition_point(|t| t <= time));
        (below + upto) as f64 / 2.0
    });
    ranks.sum::<f64>() / (one.len() * other.len()) as f64 - 0.5
}
