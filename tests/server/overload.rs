//! Too many clients, and too busy ones, while two users chat: all their messages arrive, and a limit that acts is
//! logged, but not each time. `bench/storms.rs` measures how much slower the two are meanwhile.

use crate::support::storms::{self, ARGUMENTS};
use crate::support::{Pair, Person, Raw, Server, has, until};
use secure_messenger::protocol::ServerMessage;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Lets two users chat during a storm, and returns the server for later checks.
fn witnessed(storm: fn(u16, &AtomicBool)) -> Server {
    let server = Server::with(&ARGUMENTS);
    let mut pair = Pair::on(&server);
    let (stop, port) = (AtomicBool::new(false), server.port);
    thread::scope(|scope| {
        let raging = scope.spawn(|| storm(port, &stop));
        let mut n = 0;
        while n < 20 || !raging.is_finished() {
            pair.exchange();
            n += 1;
            stop.store(n >= 20, Ordering::SeqCst);
        }
    });
    pair.close();
    server
}

/// Checks that the log has the event at most 5 times: it is logged once a minute, and a storm takes less than 5.
fn is_logged_sparingly(server: &Server, event: &str) {
    let count = || server.log().lines().filter(|line| line.contains(&format!(" event={event} "))).count();
    until(event, || count() > 0);
    assert!(count() <= 5, "{event}: {} lines", count());
}

#[test]
fn hundreds_of_concurrent_logins_succeed_beside_chats() {
    witnessed(storms::logins);
}

#[test]
fn excess_logins_get_an_error_and_sessions_continue() {
    is_logged_sparingly(&witnessed(storms::crowd), "server_full");
}

/// PROTOCOL#full.
#[test]
fn concurrent_logins_succeed_exactly_up_to_the_limit() {
    const ROOM: usize = 3;
    let server = Server::with(&["--clients", "3", "--per-address", "100"]);
    let crowd: Vec<_> = (0..16)
        .map(|n| {
            let person = Person::new(&format!("person{n}"));
            let mut raw = Raw::reach(server.port).expect("a handshake");
            raw.register_quickly(&person);
            let challenge = raw.challenged(&person);
            let response = raw.respond_quickly(&person, &challenge);
            (raw, response)
        })
        .collect();
    let all_are_ready = Barrier::new(crowd.len());
    let (all_are_ready, inside) = (&all_are_ready, AtomicUsize::new(0));
    // Sessions stay until all have had their answer.
    let raws: Vec<Raw> = thread::scope(|scope| {
        let logins = crowd.into_iter().map(|(mut raw, response)| {
            let inside = &inside;
            scope.spawn(move || {
                all_are_ready.wait();
                raw.say(&response);
                match raw.answer() {
                    Some(ServerMessage::Session(_)) => _ = inside.fetch_add(1, Ordering::Relaxed),
                    Some(ServerMessage::Error(failure)) => assert_eq!(failure.code, "server_full"),
                    _ => panic!("neither accepted nor refused"),
                }
                raw
            })
        });
        let logins: Vec<_> = logins.collect();
        logins.into_iter().map(|login| login.join().expect("it ends")).collect()
    });
    assert_eq!(inside.into_inner(), ROOM);
    drop(raws);
}

#[test]
fn half_open_handshakes_evict_only_each_other() {
    is_logged_sparingly(&witnessed(storms::half_open), "pushed_out");
}

#[test]
fn only_the_sender_of_a_flood_is_throttled() {
    let mut server = witnessed(storms::flood);
    server.signal("-USR1");
    let status = server.output.expect("status: ");
    assert!(status.contains(" slowed=") && !status.contains(" slowed=0 "), "{status}");
}

#[test]
fn client_that_asks_and_never_reads_delays_nobody_else() {
    witnessed(storms::deaf);
}

#[test]
fn records_of_one_byte_are_read_like_any_other() {
    witnessed(storms::crumbs);
}

#[test]
fn repeated_key_updates_delay_no_other_client() {
    if has("openssl") {
        witnessed(storms::key_updates);
    }
}

#[test]
fn renegotiation_is_refused_and_delays_no_other_client() {
    if has("openssl") {
        witnessed(storms::renegotiations);
    }
}
