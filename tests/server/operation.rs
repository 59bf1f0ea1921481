//! Operating a server: files and their modes, the certificate, options, signals, TLS versions and ciphers, the log, and
//! what neither the wire nor the disk may reveal.

use crate::support::{
    self, Client, DATA, Folder, Gate, PASSWORD, Person, Raw, Server, Way, fingerprint, has, hex, holds,
    newcomer, openssl, refused, refused_start, run, run_server, traces, until,
};
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use secure_messenger::clock;
use secure_messenger::disk;
use secure_messenger::protocol::{ClientMessage, ServerMessage};
use secure_messenger::wire::certificate::{self, Prepared};
use secure_messenger::wire::tls::Unverified;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;

/// In milliseconds.
const DAY: u64 = 24 * 3600 * 1000;

#[test]
fn only_the_owner_can_read_files_of_server_or_client() {
    let server = Server::start();
    let mut alice = server.client("alice").ready();
    let bob = server.client("bob").ready();
    alice.ask("/msg bob hello", "<alice -> bob> hello");
    let folders = [server.data(""), bob.data(""), alice.data("")];
    fn check(path: &Path) -> usize {
        let data = fs::symlink_metadata(path).expect("there");
        let mode = data.permissions().mode() & 0o7777;
        if !data.is_dir() {
            assert_eq!(mode, 0o600, "{}", path.display());
            return 1;
        }
        assert_eq!(mode, 0o700, "{}", path.display());
        let entries = fs::read_dir(path).expect("readable");
        entries.map(|entry| check(&entry.expect("entry").path())).sum()
    }
    let counts = folders.map(|folder| check(&folder));
    assert!(counts.iter().all(|count| *count >= 3), "{counts:?}");
}

#[test]
fn open_data_folder_is_made_private_unless_it_has_other_files() {
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("mode");
    let home = Server::start().kill();
    open(&home.path("data"));
    let server = Server::within(home, &[]);
    assert_eq!(mode(&server.data("")), 0o700);
    let home = Folder::new();
    fs::create_dir(home.path("data")).expect("folder");
    fs::write(home.path("data/letter.txt"), "somebody's").expect("written");
    open(&home.path("data"));
    let error = refused_start(&home, &[]);
    assert!(error.contains("chmod 700"), "{error}");
    assert_eq!(mode(&home.path("data")), 0o755);
    assert_eq!(support::files(&home.path("data")).len(), 1);
}

#[test]
fn first_certificate_lasts_a_year_and_names_this_machine() {
    let server = Server::start();
    let path = server.data("certs/server.crt");
    if !has("openssl") {
        return;
    }
    let openssl = |arguments: &str| openssl(arguments).1;
    let text = openssl(&format!("x509 -in {} -noout -text", path.display()));
    for part in ["DNS:localhost", "IP Address:127.0.0.1", "IP Address:0:0:0:0:0:0:0:1"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
    assert!(text.contains(&format!("DNS:{}", host.trim())), "{text}");
    let facts = certificate::read_facts(&path).expect("readable");
    let days = (facts.not_after + DAY / 2 - clock::now_ms()) / DAY;
    assert_eq!(days, 365);
    let line = server.told("new certificate");
    assert_eq!(fingerprint(&line), facts.fingerprint.to_string());
    assert!(line.contains(&format!("(valid until {})", clock::utc_day(facts.not_after))), "{line}");
    assert!(server.is_silent_about("WARNING"));
    // The same fingerprint, computed by OpenSSL: SHA-256 of the public key's DER.
    let folder = Folder::new();
    let [pem, der] = ["key.pem", "key.der"].map(|name| folder.path(name).display().to_string());
    openssl(&format!("x509 -in {} -noout -pubkey -out {pem}", path.display()));
    openssl(&format!("pkey -pubin -in {pem} -outform DER -out {der}"));
    let digest = openssl(&format!("dgst -sha256 -r {der}"));
    assert!(digest.starts_with(&hex(&facts.fingerprint.0)), "{digest}");
}

/// PROTOCOL#server-key.
#[test]
fn expired_certificate_is_renewed_and_keeps_its_pinned_key() {
    let home = Arc::new(Folder::new());
    let certs = home.path("data/certs");
    disk::private_folders(&certs, &[]).expect("folder");
    let then = clock::now_ms() - 400 * DAY;
    assert_eq!(certificate::prepare(&certs, then).expect("made"), Prepared::Made);
    let old = certificate::read_facts(&certs.join("server.crt")).expect("readable");
    let key = fs::read(certs.join("server.key")).expect("made");
    assert!(old.not_after < clock::now_ms());
    let server = Server::within(home, &[]);
    let line = server.told("renewed with the same key");
    assert_eq!(fingerprint(&line), old.fingerprint.to_string());
    assert_eq!(fs::read(certs.join("server.key")).expect("there"), key);
    let new = certificate::read_facts(&certs.join("server.crt")).expect("readable");
    assert!(new.not_after > clock::now_ms() + 360 * DAY);
    // The client trusts only the fingerprint of the expired certificate.
    let pin = ["--register", "--fingerprint", &old.fingerprint.to_string()];
    Client::start(&server, "alice", &pin).leaves();
}

#[test]
fn last_thirty_days_of_a_certificate_are_announced() {
    for (days, announced) in [(340, true), (330, false)] {
        let home = Arc::new(Folder::new());
        let certs = home.path("data/certs");
        disk::private_folders(&certs, &[]).expect("folder");
        certificate::prepare(&certs, clock::now_ms() - days * DAY).expect("made");
        let before = fs::read(certs.join("server.crt")).expect("made");
        let server = Server::within(home, &[]);
        let warned = !server.is_silent_about("WARNING: the certificate expires on ");
        assert_eq!(warned, announced, "{:#?}", server.greeting);
        assert_eq!(fs::read(certs.join("server.crt")).expect("kept"), before);
    }
}

/// The fingerprint that a new connection sees.
fn seen(server: &Server) -> String {
    let deadline = std::time::Instant::now() + support::DEADLINE;
    Unverified::connect("localhost", Arc::new(server.socket()), deadline)
        .expect("a handshake")
        .fingerprint()
        .to_string()
}

/// PROTOCOL#broadcast-server.
#[test]
fn operator_certificate_reloads_live_and_a_broken_one_does_not() {
    let server = Server::start();
    let (mut alice, _) = newcomer(&server, "alice");
    let made = seen(&server);
    assert_eq!(made, server.fingerprint());
    let (bob, mut early) = (Person::new("bob"), server.raw());
    early.register_quickly(&bob);
    // Garbage in its place: the certificate in use stays.
    let (path, key_path) = (server.data("certs/server.crt"), server.data("certs/server.key"));
    let good = fs::read(&path).expect("there");
    fs::write(&path, "rubbish").expect("written");
    until("the log reports it", || {
        assert_eq!(seen(&server), made);
        server.log().contains("event=certificate_unusable")
    });
    fs::write(&path, good).expect("written");
    assert!(alice.is_usable(), "the key is the same");
    // The operator's own certificate with an RSA key, made by OpenSSL.
    if !has("openssl") {
        return;
    }
    let folder = Folder::new();
    let (key, certificate) = (folder.path("key"), folder.path("crt"));
    let (_, text) = openssl(&format!(
        "req -x509 -newkey rsa:2048 -nodes -subj /CN=example.org -days 90 -keyout {} -out {}",
        key.display(),
        certificate.display()
    ));
    let facts = certificate::read_facts(&certificate).unwrap_or_else(|_| panic!("{text}"));
    fs::copy(&key, &key_path).expect("copied");
    fs::copy(&certificate, &path).expect("copied");
    until("the new certificate is shown", || {
        let now = seen(&server);
        assert!(now == made || now == facts.fingerprint.to_string());
        now != made
    });
    let event = format!("event=certificate_changed user=- addr=- {}\n", facts.fingerprint);
    server.logs(&event);
    assert!(alice.is_closed(), "others would refuse her broadcasts");
    // A connection that was made before, and logs in only now, is closed too.
    early.log_in_quickly(&bob);
    assert!(!early.is_usable());
    // The next start still uses it, and neither renews nor replaces it.
    let server = Server::within(server.kill(), &[]);
    assert_eq!(fingerprint(&server.told("certificate: ")), facts.fingerprint.to_string());
}

#[test]
fn certificate_without_its_key_stops_the_start_unchanged() {
    let home = Server::start().kill();
    let (key, certificate) = (home.path("data/certs/server.key"), home.path("data/certs/server.crt"));
    let (kept_key, kept) = (fs::read(&key).expect("made"), fs::read(&certificate).expect("made"));
    fs::remove_file(&key).expect("removed");
    let error = refused_start(&home, &[]);
    assert!(error.contains("server.key") && error.contains("restore it"), "{error}");
    assert!(!key.exists() && fs::read(&certificate).expect("kept") == kept);
    fs::write(&key, "not a key").expect("written");
    let error = refused_start(&home, &[]);
    assert!(error.contains("server.key"), "{error}");
    assert_eq!(fs::read(&key).expect("kept"), b"not a key");
    fs::write(&key, &kept_key).expect("written");
    fs::write(&certificate, "not a certificate").expect("written");
    let error = refused_start(&home, &[]);
    assert!(error.contains("server.crt"), "{error}");
    assert_eq!(fs::read(&certificate).expect("kept"), b"not a certificate");
    // A key without a certificate gets a new one, with the same fingerprint.
    fs::remove_file(&certificate).expect("removed");
    let server = Server::within(home, &[]);
    fs::write(server.home.path("kept.crt"), kept).expect("written");
    let former = certificate::read_facts(&server.home.path("kept.crt")).expect("readable");
    assert_eq!(server.fingerprint(), former.fingerprint.to_string());
}

#[test]
fn wrong_options_are_one_line_and_status_2() {
    let home = Folder::new();
    for arguments in [
        &["--unheard-of"][..],
        &["word"],
        &["--port"],
        &["--port", "70000"],
        &["--port", "x"],
        &["--port=-1"],
        &["--clients", "0"],
        &["--rate", "many"],
        &["--outbox", "383"],
        &["--grace", "0"],
        &["--no-tls=yes"],
        &["--closed", "yes"],
    ] {
        let (status, output, errors) = run_server(&home, arguments);
        assert_eq!((status, &*output, errors.lines().count()), (2, "", 1), "{arguments:?}: {errors}");
        assert!(errors.starts_with("server: "), "{errors}");
    }
    assert!(support::files(&home.0).is_empty());
}

#[test]
fn options_file_is_read_and_its_errors_name_the_line() {
    let home = Arc::new(Folder::new());
    let (folder, options) = (home.path("data"), home.path("data/options"));
    fs::create_dir(&folder).expect("made");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("set");
    fs::write(&options, "# mine\n--closed\n--rate many\n").expect("written");
    let (status, _, errors) = run_server(&home, &[]);
    assert!(status == 2 && errors.contains("options, line 3: ") && errors.contains("many"), "{errors}");
    let (status, output, _) = run_server(&home, &["--help"]);
    assert!(status == 0 && !output.is_empty(), "help works beside wrong options");
    fs::write(&options, "--closed\n--host nowhere.invalid\n").expect("written");
    let server = Server::within(home, &[]);
    let mut raw = server.raw();
    raw.say(&Person::new("alice").registration());
    assert_eq!(raw.error(), "registration_closed");
}

#[test]
fn help_names_every_option_and_version_the_version() {
    let home = Folder::new();
    let (status, text, errors) = run_server(&home, &["--help"]);
    assert_eq!((status, &*errors), (0, ""));
    let options = "--host --port --data-dir --no-tls --closed --check --clients --per-address --waiting --outbox \
        --rate --registrations --grace --mail --mail-sender --mail-total --mail-messages --mail-days --help --version \
        1315 ~/.secure_messenger";
    for option in options.split(' ') {
        assert!(text.contains(option), "{option}");
    }
    let (status, text, errors) = run_server(&home, &["--version"]);
    assert_eq!((status, &*errors), (0, ""));
    assert_eq!(text, format!("server {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn used_port_or_folder_is_reported_and_first_server_continues() {
    let server = Server::start();
    let (mut alice, _) = newcomer(&server, "alice");
    let error = refused_start(&server.home, &[]);
    assert!(error.contains("another server is using this folder") && error.contains("--data-dir"), "{error}");
    let other = Folder::new();
    let error = refused_start(&other, &["--port", &server.port.to_string()]);
    assert!(error.contains(&format!("127.0.0.1:{}", server.port)) && error.contains("--port"), "{error}");
    let error = refused_start(&other, &["--host", "no-such-host.invalid"]);
    assert!(error.contains("no-such-host.invalid"), "{error}");
    assert!(alice.is_usable());
    newcomer(&server, "bob");
}

#[test]
fn signal_ends_the_server_with_status_0_and_keeps_accounts() {
    let mut home = Arc::new(Folder::new());
    for (n, signal) in ["-TERM", "-INT"].into_iter().enumerate() {
        let mut server = Server::within(home, &[]);
        server.told(&format!("({n} accounts)"));
        let (mut raw, person) = newcomer(&server, &format!("alice{n}"));
        // Others are connected and halfway through a login.
        let _silent = server.socket();
        let _guest = server.raw();
        let started = std::time::Instant::now();
        server.signal(signal);
        let status = server.child.wait().expect("it ends");
        assert!(started.elapsed().as_secs() < 3, "{:?}", started.elapsed());
        assert_eq!(status.code(), Some(0), "{signal}");
        assert!(raw.is_closed());
        assert!(server.log().trim_end().ends_with("event=stopped user=- addr=-"));
        home = server.home.clone();
        let again = Server::within(home, &[]);
        again.raw().logs_in(&person);
        home = again.kill();
    }
}

/// A handshake by OpenSSL.
fn s_client(server: &Server, arguments: &str) -> String {
    openssl(&format!("s_client -connect 127.0.0.1:{} -brief {arguments}", server.port)).1
}

/// PROTOCOL#transport.
#[test]
fn tls_1_3_and_1_2_are_spoken_and_nothing_older() {
    if !has("openssl") {
        return;
    }
    let server = Server::start();
    for (version, name) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        let text = s_client(&server, version);
        assert!(text.contains(&format!("Protocol version: {name}")), "{text}");
    }
    for version in ["-tls1_1", "-tls1"] {
        // At this security level OpenSSL offers the version, so it is the server that refuses.
        let text = s_client(&server, &format!("{version} -cipher ALL:@SECLEVEL=0"));
        assert!(text.contains("SSL alert number"), "{text}");
        assert!(!text.contains("Protocol version"), "{text}");
    }
}

/// PROTOCOL#transport.
#[test]
fn only_ecdhe_with_aes_gcm_or_chacha20_is_spoken() {
    if !has("openssl") {
        return;
    }
    let server = Server::start();
    let good =
        ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"];
    for cipher in good {
        let text = s_client(&server, &format!("-tls1_2 -cipher {cipher}"));
        assert!(text.contains(&format!("Ciphersuite: {cipher}")), "{text}");
    }
    let others = "ALL:COMPLEMENTOFALL:!ECDHE+AESGCM:!ECDHE+CHACHA20:@SECLEVEL=0";
    for ciphers in [others, "AES128-SHA:@SECLEVEL=0", "ECDHE-ECDSA-AES128-SHA256"] {
        let text = s_client(&server, &format!("-tls1_2 -cipher {ciphers}"));
        assert!(text.contains("alert handshake failure"), "{ciphers}: {text}");
    }
    for suite in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"] {
        let text = s_client(&server, &format!("-tls1_3 -ciphersuites {suite}"));
        assert!(text.contains(&format!("Ciphersuite: {suite}")), "{text}");
    }
    let ccm = "TLS_AES_128_CCM_SHA256:TLS_AES_128_CCM_8_SHA256";
    let text = s_client(&server, &format!("-tls1_3 -ciphersuites {ccm}"));
    assert!(text.contains("alert handshake failure"), "{text}");
}

/// An ordinary client that trusts the server's certificate by its file.
fn tls_client(
    server: &Server,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    let path = server.data("certs/server.crt");
    roots.add(CertificateDer::from_pem_file(path).expect("a certificate")).expect("acceptable");
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// PROTOCOL#transport.
#[test]
fn tls_sessions_never_resume_and_tls_1_2_needs_ems() {
    use rustls::client::Resumption;
    let server = Server::start();
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let mut config = tls_client(&server, &[version]);
        // This client resumes a session if the server allows it.
        (config.resumption, config.enable_early_data) = (Resumption::in_memory_sessions(16), true);
        let config = Arc::new(config);
        for _ in 0..3 {
            let name = ServerName::try_from("localhost").expect("a name");
            let mut tls = rustls::ClientConnection::new(config.clone(), name).expect("a client");
            assert!(tls.early_data().is_none());
            let mut socket = server.socket();
            // Read up to an answer: a ticket would come before it.
            tls.writer().write_all(&ClientMessage::Ping.encode()).expect("room");
            let mut answer = [0; 16];
            let length = rustls::Stream::new(&mut tls, &mut socket).read(&mut answer).expect("an answer");
            assert!(answer[..length].starts_with(b"{\"type\":\"pong"));
            assert_eq!(tls.handshake_kind(), Some(rustls::HandshakeKind::Full));
            assert_eq!(tls.tls13_tickets_received(), 0);
        }
    }
    let home = Folder::new();
    if !has("openssl") {
        return;
    }
    let settings = "openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\n";
    for (options, spoken) in [("", true), ("Options = -ExtendedMasterSecret\n", false)] {
        let path = home.path("openssl.cnf");
        fs::write(&path, format!("{settings}{options}")).expect("written");
        let address = format!("127.0.0.1:{}", server.port);
        let mut client = Command::new("openssl");
        client.args(["s_client", "-connect", &address, "-brief", "-tls1_2"]).env("OPENSSL_CONF", &path);
        let (_, _, text) = run(&mut client);
        assert_eq!(text.contains("Protocol version: TLSv1.2"), spoken, "{text}");
        assert_eq!(text.contains("SSL alert number"), !spoken, "{text}");
    }
}

/// PROTOCOL#transport.
#[test]
fn key_exchange_is_hybrid_post_quantum() {
    let server = Server::start();
    let config = tls_client(&server, rustls::DEFAULT_VERSIONS);
    let name = ServerName::try_from("localhost").expect("a name");
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut socket = server.socket();
    while tls.is_handshaking() {
        tls.complete_io(&mut socket).expect("a handshake");
    }
    let group = tls.negotiated_key_exchange_group().expect("a group");
    assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(tls.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

/// PROTOCOL#registration-limit.
#[test]
fn closed_server_creates_no_accounts_and_serves_old_ones() {
    let server = Server::start();
    let (_, alice) = newcomer(&server, "alice");
    let server = Server::within(server.kill(), &["--closed"]);
    let mut raw = server.raw();
    raw.say(&Person::new("bob").registration());
    assert_eq!(raw.error(), "registration_closed");
    server.raw().logs_in(&alice);
    let carol = server.client("carol");
    let home = carol.home.clone();
    carol.ends(1, "no new accounts");
    assert!(!home.path(DATA).join("keys/carol_private.key").exists());
    assert!(!server.data("keys/bob.pem").exists());
}

#[test]
fn security_log_has_one_line_per_event_and_no_forged_line() {
    let server = Server::start();
    let (mut raw, _) = newcomer(&server, "alice");
    raw.bytes(b"{\"type\":\"logout\"}\n");
    assert!(raw.is_closed());
    server.logs("event=logout");
    let forged = "x\\n2030-01-01T00:00:00Z event=login user=root addr=10.0.0.1";
    for line in [
        format!("{{\"type\":\"{forged}\"}}\n"),
        format!(
            "{{\"type\":\"login_request\",\"version\":1,\"username\":\"{forged}\",\"public_key\":\"\"}}\n"
        ),
    ] {
        let mut raw = server.raw();
        raw.bytes(line.as_bytes());
        raw.error();
    }
    let mut raw = server.raw();
    raw.say(&Person::new("alice").registration());
    assert_eq!(raw.error(), "name_taken");
    server.logs("event=name_taken");
    let log = server.log();
    let events: Vec<&str> = log
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(words.len(), 4, "{line}");
            let time = words[0].as_bytes();
            assert!(time.len() == 20 && words[0].starts_with("20") && words[0].ends_with('Z'), "{line}");
            assert!(matches!(words[2], "user=-" | "user=alice"), "{line}");
            assert!(matches!(words[3], "addr=-" | "addr=127.0.0.1"), "{line}");
            words[1].strip_prefix("event=").expect("an event")
        })
        .collect();
    assert_eq!(events, ["started", "registered", "login", "logout", "name_taken"], "{log}");
    assert!(log.ends_with('\n') && !log.contains("root"));
}

/// PROTOCOL#password.
#[test]
fn wire_and_server_files_hold_no_message_and_no_password() {
    let server = Server::with(&["--no-tls"]);
    server.told("WARNING: --no-tls");
    let gate = Gate::before(&server);
    let recordings = [Way::Up, Way::Down].map(|way| gate.record(way));
    let start = |name: &str, home: Arc<Folder>| gate.client(home, name, &["--register"]).ready();
    let [mut alice, mut bob] = ["alice", "bob"].map(|name| start(name, Arc::new(Folder::new())));
    alice.meets("bob");
    let secrets = ["a public word: zanzibar", "a private word: ouagadougou", "in the room: antananarivo"];
    alice.say(secrets[0]);
    bob.expect(secrets[0]);
    alice.say(&format!("/msg bob {}", secrets[1]));
    bob.expect(secrets[1]);
    alice.say("/room bob");
    alice.say(secrets[2]);
    bob.expect(secrets[2]);
    alice.expect(secrets[2]);
    // A second login uses the key and does not register.
    let home = bob.home.clone();
    bob.leaves();
    start("bob", home);
    alice.leaves();
    let wire = recordings.map(|record| record.lock().expect("whole").concat()).concat();
    let files: Vec<Vec<u8>> =
        support::files(&server.data("")).iter().map(|path| fs::read(path).expect("readable")).collect();
    assert!(files.len() >= 5, "{}", files.len());
    for secret in secrets.iter().chain(&[PASSWORD]) {
        for trace in traces(secret.as_bytes()) {
            let text = String::from_utf8_lossy(&trace);
            assert!(!holds(&wire, &trace), "on the wire: {text}");
            assert!(!files.iter().any(|file| holds(file, &trace)), "on disk: {text}");
        }
    }
    // The search can find things: names and the types of messages are visible.
    for visible in ["\"alice\"", "encrypted_send", "\"password_key\""] {
        assert!(holds(&wire, visible.as_bytes()), "{visible}");
    }
    let needle = BASE64_STANDARD_NO_PAD.encode(format!("x{}yz", secrets[0]));
    assert!(traces(secrets[0].as_bytes()).iter().any(|trace| holds(needle.as_bytes(), trace)));
}

/// PROTOCOL#full, PROTOCOL#replaced.
#[test]
fn user_logs_in_again_on_a_full_server_and_no_other_does() {
    let server = Server::with(&["--clients", "2", "--per-address", "100"]);
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(Person::new);
    [&alice, &bob, &carol].iter().for_each(|one| server.raw().register_quickly(one));
    let mut served = server.raw();
    assert!(matches!(served.log_in_quickly(&bob), Some(ServerMessage::Session(_))));
    let mut current = server.raw();
    assert!(matches!(current.log_in_quickly(&alice), Some(ServerMessage::Session(_))));
    let (port, carol) = (server.port, &carol);
    thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..10 {
                let answer = Raw::reach(port).expect("a handshake").log_in_quickly(carol);
                assert_eq!(refused(answer).code, "server_full");
            }
        });
        for _ in 0..10 {
            let mut next = server.raw();
            assert!(matches!(next.log_in_quickly(&alice), Some(ServerMessage::Session(_))));
            assert_eq!(std::mem::replace(&mut current, next).error(), "signed_in_elsewhere");
        }
    });
    assert!(served.is_usable());
}

/// PROTOCOL#full.
#[test]
fn full_server_says_so_and_serves_its_sessions() {
    let server = Server::with(&["--clients", "2", "--per-address", "100", "--grace", "3600"]);
    server.told("room for 2 clients");
    let (mut alice, _) = newcomer(&server, "alice");
    let (bob, _) = newcomer(&server, "bob");
    let carol = Person::new("carol");
    let mut raw = server.raw();
    raw.register(&carol);
    assert_eq!(refused(raw.log_in(&carol)).code, "server_full");
    assert!(alice.is_usable());
    let told = "! your account is created, but the login failed: the server says: the server is full: try again later";
    server.client("dave").ends(1, told);
    // On a full server, a session without a connection ends before its grace period is over.
    drop(bob);
    until("there is room again", || matches!(server.raw().log_in(&carol), Some(ServerMessage::Session(_))));
}
