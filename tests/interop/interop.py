#!/usr/bin/env python3
"""Two independent implementations of one specification talk to each other: `messenger.py` (Python)
and the programs of the reference implementation (Rust), with a real server, over real TLS.

    python3 interop.py --server PATH --client PATH [--vectors PATH]

Prints `ok NAME` for each step. Stops at the first step that fails, with the reason and status 1.
Every wait is for an event or a file, with a deadline.
"""

import argparse, json, os, re, select, shutil, signal, subprocess, sys, tempfile, time, traceback

import messenger as m
from messenger import Client, Envelope, Lost, MessengerError, PrivateKey, PublicKey, Refused, fields

DEADLINE = 15                                                # seconds, for each wait
ROUNDS = 100_000                                             # PBKDF2 rounds of the Python accounts: the minimum


def check(condition, reason):
    if not condition:
        raise AssertionError(reason)


def refused(code, act):
    """Checks that `act` fails with this code."""
    try:
        act()
    except MessengerError as error:
        return check(error.code == code, f"refused with {error}, not with {code}")
    raise AssertionError(f"not refused; expected {code}")


class Rust:
    """A process of the reference implementation, with its output as lines."""

    def __init__(self, world, *command):
        self.world, self.lines, self._rest = world, [], b""
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, env={"HOME": world.folder, "PATH": os.defpath},
                                        cwd=world.folder)
        world.processes.append(self)
        os.set_blocking(self.process.stdout.fileno(), False)

    def fileno(self):
        return self.process.stdout.fileno()

    @staticmethod
    def remove(world, name):
        """The operator removes an account."""
        world.all.append(Rust(world, world.arguments.server, "user", "remove", name, "--data-dir",
                              world.path("server")))

    def read(self):
        data = self.process.stdout.read(1 << 20)
        if data == b"":
            self.world.processes.remove(self)
        *lines, self._rest = (self._rest + (data or b"")).split(b"\n")
        self.lines += [line.decode() for line in lines]

    def say(self, *lines):
        self.process.stdin.write("".join(line + "\n" for line in lines).encode())
        self.process.stdin.flush()

    def expect(self, wanted):
        """Waits for the first line that equals `wanted` or matches that pattern; removes and returns it."""
        def found():
            for i, line in enumerate(self.lines):
                if match := (wanted.search(line) if isinstance(wanted, re.Pattern) else line == wanted):
                    del self.lines[i]
                    return match
        return self.world.until(found,
                                f"the line {str(wanted)[:200]!r}; got {[line[:200] for line in self.lines[-12:]]}")

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class World:
    """A server, its folder, and its clients."""

    def __init__(self, arguments):
        self.arguments, self.processes, self.clients, self.all = arguments, [], [], []
        self.folder = tempfile.mkdtemp(prefix="interop-")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.all:
            process.stop()
        shutil.rmtree(self.folder)

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def until(self, test, reason):
        """Lets all clients read until `test()` is true, and returns its result."""
        deadline = time.monotonic() + DEADLINE
        while True:
            if result := test():
                return result
            for client in self.clients:
                while client.poll(0):                                # one frame each time
                    if result := test():
                        return result
            left = deadline - time.monotonic()
            check(left > 0, f"timed out waiting for {reason}")
            # files change without an event
            for ready in select.select([*self.processes, *self.clients], [], [], min(left, 0.2))[0]:
                if isinstance(ready, Rust):
                    ready.read()

    def start_server(self, *options, port=0):
        self.server = server = Rust(self, self.arguments.server, "--host", "127.0.0.1", "--port", str(port),
                                    "--data-dir", self.path("server"), *options)
        self.all.append(server)
        self.fingerprint = server.expect(re.compile(r"SHA256:\S+"))[0]
        self.port = int(server.expect(re.compile(r"listening on .*:(\d+)$"))[1])

    def kill_server(self, *options):
        """Kills the server and starts it again at the same address. Sessions end."""
        self.server.stop()
        self.processes.remove(self.server)
        self.clients.clear()
        self.start_server(*options, port=self.port)

    def rust(self, name, *options, password=None):
        password_file = self.path(name + ".password")
        with os.fdopen(os.open(password_file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write((password or typed(name)) + "\n")
        client = Rust(self, self.arguments.client, "--plain", "--host", "127.0.0.1", "--port", str(self.port),
                      "--fingerprint", self.fingerprint, "--data-dir", self.path(name), "--user", name,
                      "--password-file", password_file, *options)
        self.all.append(client)
        return client

    def python(self, name, identity=None, password=None, key_file=None, mailbox=None):
        password, identity = password or m.prepared(typed(name)), identity or PrivateKey()
        return Client("127.0.0.1", self.port, self.fingerprint, name, password, identity, key_file=key_file,
                      mailbox=mailbox and self.path(mailbox))

    def log_in(self, client, register=False):
        client.connect()
        if register:
            client.register(ROUNDS)
        client.login()
        if client not in self.clients:
            self.clients.append(client)
        return client

    def event(self, client, kind, **members):
        def found():
            for event in client.events:
                if event.kind == kind and all(getattr(event, key, None) == value for key, value in members.items()):
                    client.events.remove(event)
                    return event
        return self.until(found, f"the event {kind} {members}; got {list(client.events)[-8:]}")

    def delivered(self, *jobs):
        self.outcome("delivered", *jobs)

    def outcome(self, fate, *jobs):
        for job in jobs:
            self.until(lambda: job.done, "an answer from the server")
            check(set(job.outcome.values()) == {fate}, f"not {fate}: {job.outcome}")


def typed(name):
    """A password as macOS may send it: decomposed, with the no-break space of Option and the space bar."""
    return f"Secre\u0301t\u00a0{name}"


# ---------------------------------------------------------------- vectors

def unhex(text):
    return bytes.fromhex(text)


def vectors_primitives(v):
    for which in ("identity", "session"):
        key = PrivateKey(unhex(v[which]["pkcs8"])).public
        check(key.der.hex() == v[which]["spki"] and key.short.hex() == v[which]["short"], which)
        check("SHA256:" + m.base64_of(key.fingerprint).rstrip("=") == v[which]["fingerprint"],
              f"fingerprint of {which}")
    for x in v["passwords"]:
        check([form.encode().hex() for form in m.password_forms(x["typed"])] == x["forms"],
              f"the forms of {x['typed']}")
    for x in v["pbkdf2"]:
        check(m.password_key(x["password"], unhex(x["salt"]), x["rounds"], least=1).hex() == x["key"], "pbkdf2")
    for x in v["hmac"]:
        check(m.hmac256(unhex(x["key"]), unhex(x["message"])).hex() == x["mac"], "hmac")
    for name, mode in (("eax", m.AES.MODE_EAX), ("gcm", m.AES.MODE_GCM)):
        for x in v[name]:
            nonce = unhex(x["nonce"]) + (x["counter"].to_bytes(4, "big") if name == "eax" else b"")
            key, header, text = unhex(x["key"]), unhex(x["header"]), unhex(x["text"])
            sealed = m.seal(key, nonce, header, text, mode)
            check(sealed == (unhex(x["ciphertext"]), unhex(x["tag"])), name)
            check(m.unseal(key, nonce, header, *sealed, mode) == text, name)
    session, identity = PrivateKey(unhex(v["session"]["pkcs8"])), PublicKey(unhex(v["identity"]["spki"]))
    for x in v["oaep"]:
        check(session.unwrap(unhex(x["block"]), unhex(x["label"]), 32).hex() == x["key"], "oaep")
    for x in v["pss"]:
        check(identity.verify(unhex(x["message"]), unhex(x["signature"])), "pss")
    check(fields("fake salt", v["fake_salt"]["name"])[4:].startswith(b"secure-messenger/1 fake salt"), "labels")
    check(m.hmac256(unhex(v["fake_salt"]["secret"]),
                    fields("fake salt", v["fake_salt"]["name"])).hex() == v["fake_salt"]["salt"], "fake salt")
    check(fields("", "ab", 1)[-18:].hex() == "00000002" "6162" "00000008" "0000000000000001", "the example of Fields")


def vectors_keys_and_login(v):
    file = v["key_file"]
    identity, password = m.open_key_file(file["text"].encode(), file["owner"], file["password"])
    check(identity.pkcs8().hex() == v["identity"]["pkcs8"] and password == file["password"],
          "the key in the key file, as PKCS#8")
    refused("decrypt", lambda: m.open_key_file(file["text"].encode(), "alicE", file["password"]))
    logins = [(unhex(x["salt"]), x["rounds"]) for x in file["logins"]]
    check(m.key_file_logins(file["text"].encode()) == logins, "the logins in the key file")
    session, x = PublicKey(unhex(v["session"]["spki"])), v["certificate"]
    check(m.certificate_text(x["owner"], session, x["created"]).hex() == x["signed"], "what a certificate signs")
    for at, good in ((-2 * m.HOUR, True), (26 * m.HOUR, True), (-2 * m.HOUR - 1, False), (26 * m.HOUR + 1, False)):
        act = lambda: m.check_certificate(identity.public, x["owner"], session, x["created"], unhex(x["signature"]),
                                          x["created"] + at)
        act() if good else refused("certificate", act)
    y = v["mailbox_certificate"]
    check(m.certificate_text(y["owner"], session, y["created"], "mailbox").hex() == y["signed"],
          "what a mailbox certificate signs")
    for of, kind, at, good in ((y, "mailbox", 30 * 24 * m.HOUR, True), (y, "mailbox", 30 * 24 * m.HOUR + 1, False),
                               (x, "mailbox", 0, False), (y, "session", 0, False)):
        act = lambda: m.check_certificate(identity.public, y["owner"], session, y["created"], unhex(of["signature"]),
                                          y["created"] + at, kind)
        act() if good else refused("certificate", act)
    for x in v["logins"]:
        register, challenge, response = (m.parse(x[key].encode()) for key in ("register", "challenge", "response"))
        key = m.password_key(x["password"], m.binary(challenge, "salt", 32), challenge["rounds"])
        nonce = m.binary(challenge, "nonce", 32)
        check(key.hex() == x["password_key"] and m.base64_of(key) == register["password_key"], "password key")
        answered = fields("login response", x["name"], nonce, unhex(x["exporter"]), session.fingerprint)
        check(answered.hex() == x["answered"] and m.base64_of(m.hmac256(key, answered)) == response["response"],
              "response")
        proof = fields("login proof", x["name"], nonce, unhex(x["exporter"]), session.fingerprint)
        check(proof.hex() == x["proof_signed"], "what the login proof signs")
        check(identity.public.verify(proof, m.binary(response, "proof", 256)), "login proof")
    x = v["safety_number"]
    check(m.safety_number(*zip(x["names"], map(unhex, x["fingerprints"]))) == x["number"], "safety number")


# PROTOCOL#mailbox-file-form, PROTOCOL#mailbox-file-key, PROTOCOL#mailbox-file-record.
def vectors_mailbox_file(v):
    x, identity, session = v["mailbox_file"], *(PrivateKey(unhex(v[key]["pkcs8"])) for key in ("identity", "session"))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, x["file"])
        check(x["file"] == m.name_hash(x["owner"], x["server"]), "the name of the file")

        def opened(text):
            with open(path, "w") as file:
                file.write(text)
            return m.Mailbox(path, identity, x["owner"], x["server"])
        mailbox, key = opened(x["text"]), session.public.fingerprint
        check(mailbox._secret.hex() == x["key"], "the key of the file")
        for again in (False, True):                                  # as it is, and as this client writes it
            check([(at, created) for at, (_, created) in mailbox.keys.items()] == [(key, 1_800_000_000_000)],
                  mailbox.keys)
            check(mailbox.taken == {("bob", b"\x11" * 32, key, 1): b"\x21" * 32,
                                    ("Carol-3", b"\x12" * 32, key, 2**53 + 1): b"\x22" * 32}, mailbox.taken)
            check(mailbox.shown == {("bob", b"\x21" * 32)}, mailbox.shown)
            mailbox.erase([bytes(32)])
            mailbox.close()
            mailbox = m.Mailbox(path, identity, x["owner"], x["server"])
        mailbox.erase([key])
        mailbox.close()
        mailbox = m.Mailbox(path, identity, x["owner"], x["server"])
        check((mailbox.keys, mailbox.taken, mailbox.shown) == ({}, {}, set()), "an erased key has left something")
        mailbox.close()
        lines = x["text"].splitlines()
        for spoiled in (lines[1:], [lines[0], *lines[2:]], [lines[1], lines[0], *lines[2:]]):
            refused("decrypt", lambda: opened("\n".join(spoiled)))


def recipient_of_vectors(v, session):
    """The recipient of the vectors' envelopes, without a connection."""
    client = Client("", 0, "", "Bob-2", "", session)
    client._begin_session(session)
    client.server_key = m.sha256(b"the server's key")
    client.person("alice").identity = PublicKey(unhex(v["identity"]["spki"]))
    client.person("alice").remembered = client.person("alice").identity.fingerprint
    return client


def vectors_envelopes(v):
    session = PrivateKey(unhex(v["session"]["pkcs8"]))
    for x in v["envelopes"]:
        client, message = recipient_of_vectors(v, session), m.parse(x["line"].encode())
        envelope = Envelope.parse(message)
        check(envelope.header().hex() == x["header"], f"header of {x['what']}")
        check(envelope.signed().hex() == x["signed"], f"signed bytes of {x['what']}")
        check(m.sha256(envelope.header()).hex() == x["oaep_label"]
              and m.sha256(envelope.signed()).hex() == x["signed_sha256"], "hashes")
        check(m.pad(unhex(x["plaintext"])).hex() == x["padded"], f"padding of {x['what']}")
        listed = m.member_list(x["members"]) if x["members"] else b""
        check((listed + unhex(x["text"])).hex() == x["plaintext"], f"members of {x['what']}")
        wire = {key: value for key, value in message.items() if value is not None and key not in ("type", "key")}
        check(envelope.wire() == wire, f"members of {x['what']}")
        client._on_encrypted_message(message)
        shown = [event for event in client.events if event.kind == message["kind"]]
        check(len(shown) == 1 and shown[0].text == unhex(x["text"]).decode(), f"{x['what']}: {list(client.events)}")
        check(shown[0].members == x["members"], f"members of {x['what']}: {shown}")
    codes = {"a commitment to another key": "commitment", "the label of another header": "unwrap", "no label": "unwrap",
             "a key of 31 bytes": "unwrap", "the counter of a file's chunk": "decrypt",
             "other associated data": "decrypt", "the id of another key": "key_id"}
    codes.update({x["what"]: "members" for x in v["wrong_lists"]})
    for x in v["wrong_envelopes"] + v["wrong_lists"]:
        client = recipient_of_vectors(v, session)
        client._on_encrypted_message(m.parse(x["line"].encode()))
        event, code = client.events[-1], codes.get(x["what"], "padding")
        check(event.kind == "refused" and event.code == code, f"{x['what']}: {event}")


def vectors_chunks(v):
    session = PrivateKey(unhex(v["session"]["pkcs8"]))
    for x in v["chunks"]:
        payload, start, size = unhex(x["payload"]), x["start"], x["size"]
        transfer, key, index = unhex(x["transfer"]), unhex(x["transfer_key"]), int.from_bytes(payload[:4], "big")
        check(fields("chunk", transfer, index).hex() == x["associated"], "associated data")
        length = min(m.CHUNK, size - index * m.CHUNK)
        chunk = m.parse_chunk(payload, key, transfer, index, start, length)
        check(session.unwrap(chunk[0], unhex(x["oaep_label"]), 32).hex() == x["chunk_key"], "chunk key")
        check(m.open_chunks(session, transfer, index, [chunk]).hex() == x["text"], "bytes of a chunk")
        for spoiled in (payload[:-1], payload[:-1] + bytes([payload[-1] ^ 1]), payload[:10] + b"!" + payload[11:]):
            refused("chunk" if spoiled[:-1] != payload[:-1] else "decrypt", lambda: (
                m.open_chunks(session, transfer, index, [m.parse_chunk(spoiled, key, transfer, index, start, length)])))


# ---------------------------------------------------------------- messages

# PROTOCOL#register, PROTOCOL#registered, PROTOCOL#login_request, PROTOCOL#challenge, PROTOCOL#challenge_response,
# PROTOCOL#session, PROTOCOL#login-failed, PROTOCOL#exporter.
def registration_and_login(world):
    alice = world.log_in(world.python("alice"), register=True)
    refused("name_taken", lambda: world.python("ALICE").connect().register(ROUNDS))
    refused("login_failed", lambda: world.python("alice", alice.identity, "secret of another").connect().login())
    refused("login_failed", lambda: world.python("alice").connect().login())                    # another identity key
    refused("login_failed", lambda: world.python("alice", alice.identity).connect().login(proof_exporter=bytes(32)))
    stranger = world.python("alice", alice.identity)
    stranger.fingerprint = "SHA256:" + "A" * 43
    refused("server_key", stranger.connect)
    return alice


TEXTS = ("hello", "two\nlines", "Grüße, привет, 你好, 👋🏽", " spaces  around ", "//", "x" * m.TEXT_MOST)


def shown(text):
    return text.replace("\n", "⏎")


# PROTOCOL#encrypted_send, PROTOCOL#sent, PROTOCOL#encrypted_message.
def python_to_rust(world, alice, *rusts):
    for text in TEXTS:
        jobs = [alice.broadcast(text), alice.send("bob", text), *alice.room(["bob"], text)]
        for rust in rusts:
            rust.expect(f"<alice> {shown(text)}")
        for _ in jobs[1:]:
            rusts[0].expect(f"<alice -> bob> {shown(text)}")
        world.delivered(*jobs)


# PROTOCOL#broadcast, PROTOCOL#sequence.
def rust_to_python(world, alice, bob):
    for text in TEXTS:
        if "\n" not in text and not text.startswith("/"):            # plain mode sends each line as a message
            text = text.strip()
            bob.say(text, "/msg alice " + text)
            for scope in ("broadcast", "private"):
                event = world.event(alice, "message", name="bob")
                check((event.scope, event.text) == (scope, text), f"{scope} {text[:50]!r} came as {event}")


def rooms(world, alice, bob):
    world.delivered(alice.open_room("bob"))
    bob.expect(re.compile(r"^\* alice has opened a private room with you"))
    bob.say("/room alice", "in the room", "/leave", "outside")
    for kind, scope, text in (("room_opened", "room", ""), ("message", "room", "in the room"),
                              ("room_left", "room", ""), ("message", "broadcast", "outside")):
        event = world.event(alice, kind, name="bob")
        check((event.scope, event.text) == (scope, text), event)
    world.delivered(*alice.room(["bob"], "still here"), alice.leave_room("bob"))
    bob.expect("<alice -> bob> still here")
    bob.expect("* alice has left the room")


# PROTOCOL#members, PROTOCOL#room-copies.
def room_of_three(world, alice, bob, carol):
    copies = alice.room(["bob", "carol"], "the three of us")
    world.delivered(*copies)
    check(len({copy.time for copy in copies}) == len({copy.id for copy in copies}) == 2,
          "copies of a room message can be linked")
    for rust in (bob, carol):
        rust.expect("<alice -> bob, carol> the three of us")
    bob.say("/room CAROL alice", "and me")
    carol.expect("<bob -> alice, carol> and me")
    event = world.event(alice, "message", name="bob")
    check((event.scope, event.text, event.members) == ("room", "and me", ["alice", "bob", "carol"]), event)
    bob.say("/leave")
    # A list without its recipient.
    alice._enqueue(m.Job(["bob"], "not for bob", "message", "room", {"alice", "carol"}))
    bob.expect(re.compile("^! refused a message that claims to come from alice: its list of members is invalid"))


# PROTOCOL#safety-digits.
def safety_numbers(world, alice, bob):
    bob.say("/verify alice")
    bob.expect(re.compile(r"^\* safety number with alice"))
    number = " ".join(bob.expect(re.compile(r"^\*\s+(\d{5} \d{5} \d{5} \d{5})$"))[1] for _ in range(3))
    check(number == alice.safety_number("bob"), f"bob has {number}, alice {alice.safety_number('bob')}")


# PROTOCOL#key-file-form, PROTOCOL#password, PROTOCOL#password-forms.
def key_files(world, alice, bob):
    with open(world.path("bob", "keys", "bob_private.key"), "rb") as file:
        text = file.read()
    for password in (typed("bob"), m.prepared(typed("bob"))):
        identity, form = m.open_key_file(text, "bob", password)
        check(identity.public.fingerprint == alice.person("bob").remembered, "another key in bob's file")
        check(form == "Secr\u00e9t bob", f"the file is under {form!a}")
    refused("decrypt", lambda: m.open_key_file(text, "bob", typed("boB")))
    check(len(m.key_file_logins(text)) == 1, "the login in bob's file")
    composed, decomposed = "Gr\u00fc\u00dfe an alle", "Gru\u0308\u00dfe an alle"
    for name, of_account, typed_here in (("dave", composed, decomposed), ("dora", decomposed, composed)):
        python = world.python(name, password=of_account).connect().register(ROUNDS)
        os.makedirs(world.path(name, "keys"), 0o700)
        m.write_key_file(world.path(name, "keys", f"{name}_private.key"), name, of_account, python.identity, ROUNDS)
        rust = world.rust(name, password=typed_here)
        rust.expect(re.compile(rf"^\* logged in as {name}"))
        rust.expect(re.compile(r"now records how this server asks for your password"))
        with open(world.path(name, "keys", f"{name}_private.key"), "rb") as file:
            check(m.key_file_logins(file.read()) == list(python._key_at),
                  "what the client has put into a file without logins")
        rust.say("/msg alice from a key file of Python")
        event = world.event(alice, "message", name=name, text="from a key file of Python")
        check(alice.person(name).remembered == python.identity.public.fingerprint, event)
        rust.say("/exit")
        world.until(lambda: rust.process.poll() == 0, f"the end of {name}'s client")


# PROTOCOL#stale, PROTOCOL#check-again.
def stale_keys(world, alice, bob):
    """Each side notices that the other has a new session key, after a renewal and after a new login."""
    alice.renew()
    world.event(alice, "renewed")
    bob.say("/msg alice to the renewed key")
    world.event(alice, "message", text="to the renewed key")
    world.delivered(alice.send("bob", "from the renewed key"))
    bob.expect("<alice -> bob> from the renewed key")
    bob.say("/exit")
    world.until(lambda: "bob" not in alice.online, "bob's logout")
    job = alice.send("bob", "to nobody")
    world.until(lambda: job.done, "an answer")
    check(job.outcome == {"bob": "offline"}, job.outcome)
    bob = world.rust("bob", "--no-mail")
    world.until(lambda: "bob" in alice.online, "bob's return")       # with a key that alice does not know yet
    jobs = [alice.send("bob", "a"), alice.broadcast("b"), alice.send("bob", "c")]
    for line in ("<alice -> bob> a (sent again)", "<alice> b", "<alice -> bob> c (sent again)"):
        bob.expect(line)
    world.delivered(*jobs)
    check(not [line for line in bob.lines if line.startswith("!")], bob.lines)
    return bob


# PROTOCOL#newest, PROTOCOL#newest-certificate.
def clock_set_back(world, alice, bob):
    """Fay's clock is an hour ahead, then correct; bob still reaches her. Alice refuses an old certificate of bob's."""
    right = m.now
    m.now = lambda: right() + m.HOUR
    ahead = world.log_in(world.python("fay"), register=True)
    m.now = right
    bob.say("/msg fay one")
    world.event(ahead, "message", text="one")
    world.clients.remove(ahead)
    fay = world.log_in(world.python("fay", ahead.identity))
    world.event(fay, "renewed")
    bob.say("/msg fay two")
    world.event(fay, "message", text="two")
    check(not [line for line in bob.lines if "set back" in line], bob.lines)
    person = alice.person("bob")
    created, key = person.newest["session"]
    for before, other in ((created - 1, key), (created, bytes(32))):
        refused("set_back", lambda: alice._check_newest(person, before, other))
    alice._check_newest(person, created, key)
    world.clients.remove(fay)
    fay.logout()
    world.until(lambda: "fay" not in alice.online, "fay's logout")
    bob.expect("* fay has left")


# ---------------------------------------------------------------- resuming

# PROTOCOL#resume_request, PROTOCOL#resume_challenge, PROTOCOL#resume, PROTOCOL#resumed, PROTOCOL#resume-proof,
# PROTOCOL#sent-again, PROTOCOL#frames.
def resuming(world, alice, bob):
    """The connection breaks four times while both send many texts at once."""
    alice.events.clear(), bob.lines.clear()
    jobs, count = [], 40
    for part in range(4):
        jobs += [alice.send("bob", f"to bob {part}-{i}") for i in range(count)]
        bob.say(*(f"/msg alice to alice {part}-{i}" for i in range(count)))
        world.until(lambda: sum(event.kind == "message" for event in alice.events) >= part * count + 5, "some texts")
        alice.transport.abort()
        jobs += [alice.send("bob", f"to bob {part}-while lost-{i}") for i in range(5)]
        refused("closed", lambda: alice.poll(0))
        # without its token, nobody can resume the session, or end it
        if part == 1:
            thief = world.python("alice", alice.identity)
            thief.token, thief.frames = bytes(32), alice.frames
            refused("no_session", thief.resume)
        alice.resume()
    world.until(lambda: all(job.done for job in jobs), "all answers")
    world.delivered(*jobs)
    alice_hears = [f"to alice {part}-{i}" for part in range(4) for i in range(count)]
    bob_hears = [job.text for job in jobs]
    world.until(lambda: sum(event.kind == "message" for event in alice.events) >= len(alice_hears), "bob's texts")
    world.delivered(alice.send("bob", "the end"))
    world.until(lambda: "<alice -> bob> the end" in bob.lines, "alice's texts")
    check([event.text for event in alice.events if event.kind == "message"] == alice_hears,
          "texts for alice are lost, repeated or out of order")
    prefix = "<alice -> bob> "
    check([line[len(prefix):] for line in bob.lines if line.startswith(prefix)] == [*bob_hears, "the end"],
          "texts for bob are lost, repeated or out of order")
    check(not [line for line in bob.lines if line.startswith("!") or "online" in line],
          f"bob has noticed: {bob.lines[-5:]}")
    check({event.kind for event in alice.events} == {"message"}, f"alice has noticed: {alice.events}")
    bob.lines.clear(), alice.events.clear()


# PROTOCOL#no-session.
def wrong_resumption(world, alice):
    """`no_session` answers a count that was never reached, like the wrong proof above. The session remains."""
    alice.transport.abort()
    received, alice.frames.received = alice.frames.received, 10**6
    refused("no_session", alice.resume)
    alice.ended, alice.frames.received = None, received
    alice.resume()


# ---------------------------------------------------------------- files

def make_file(world, name, size):
    data = bytes(i * 7 % 251 for i in range(1009)) * (size // 1009 + 1)
    with open(world.path(name), "wb") as file:
        file.write(data[:size])
    return world.path(name), data[:size]


OFFERED = r'^\* alice offers you a file: "%s" .*/acceptfile (\d+)'


def over(world, transfer, state, reason=None):
    world.until(lambda: transfer.over, "the end of a transfer")
    check(transfer.state == state and reason in (None, transfer.reason), f"{transfer.state}: {transfer.reason}")


def received_by_rust(world, bob, data):
    path = bob.expect(re.compile(r"is complete: (.*)$"))[1]
    with open(path, "rb") as file:
        check(file.read() == data, f"{path} has the wrong content")
    return path


# PROTOCOL#file-messages, PROTOCOL#file_offer, PROTOCOL#file_accept, PROTOCOL#file_done, PROTOCOL#chunk.
def files_to_rust(world, alice, bob):
    for name, size in (("some ünïcode file.bin", 700_001), ("empty", 0), ("exact", 5 * m.CHUNK)):
        path, data = make_file(world, name, size)
        transfer = alice.offer_file("bob", path)
        bob.say("/acceptfile " + bob.expect(re.compile(OFFERED % name))[1])
        over(world, transfer, "complete")
        received_by_rust(world, bob, data)


# PROTOCOL#file-messages, PROTOCOL#grant, PROTOCOL#packet, PROTOCOL#asked-for.
def files_from_rust(world, alice, bob):
    os.mkdir(world.path("received"))
    for name, size in (("from bob.bin", 654_321), ("nothing", 0), ("exact too", 10 * m.CHUNK)):
        path, data = make_file(world, name, size)
        bob.say(f"/sendfile alice {path}")
        transfer = alice.accept_file(world.event(alice, "file_offer", name="bob").transfer, world.path("received"))
        over(world, transfer, "complete")
        bob.expect(re.compile(rf'^\* alice has received "{name}"'))
        with open(transfer.path, "rb") as file:
            check(file.read() == data, f"{transfer.path} has the wrong content")
    check(sorted(os.listdir(world.path("received"))) == ["bob~exact too", "bob~from bob.bin", "bob~nothing"],
          "something else in the folder")


# PROTOCOL#file_reject, PROTOCOL#file_cancel.
def refused_files(world, alice, bob):
    """Rejected, withdrawn, and cancelled in progress, by each side."""
    path, _ = make_file(world, "unwanted", 3_000_000)
    transfer = alice.offer_file("bob", path)
    bob.say("/rejectfile " + bob.expect(re.compile(OFFERED % "unwanted"))[1])
    over(world, transfer, "ended", "rejected")
    transfer = alice.offer_file("bob", path)
    bob.expect(re.compile(OFFERED % "unwanted"))
    alice.cancel_file(transfer)
    bob.expect('! alice has withdrawn "unwanted" (3.0 MB)')

    transfer = alice.offer_file("bob", path)                         # alice cancels after the first chunks
    bob.say("/acceptfile " + bob.expect(re.compile(OFFERED % "unwanted"))[1])
    world.until(lambda: transfer.index, "the first chunk")
    alice.cancel_file(transfer)
    bob.expect(re.compile(r'^! alice has cancelled "unwanted"'))
    # bob cancels before alice learns that he has accepted
    transfer = alice.offer_file("bob", path)
    number = bob.expect(re.compile(OFFERED % "unwanted"))[1]
    world.clients.remove(alice)
    bob.say("/acceptfile " + number, "/cancel " + number)
    bob.expect(re.compile(r'^\* receiving "unwanted"'))
    bob.expect(re.compile(r'you have cancelled "unwanted"'))
    world.clients.append(alice)
    over(world, transfer, "ended", "cancelled")

    bob.say(f"/sendfile alice {path}")
    alice.reject_file(world.event(alice, "file_offer").transfer)
    bob.expect('* alice has declined "unwanted" (3.0 MB)')
    bob.say(f"/sendfile alice {path}")
    transfer = alice.accept_file(world.event(alice, "file_offer").transfer, world.path("received"))
    world.until(lambda: transfer.index >= 2 * m.GROUP, "the first chunks")
    alice.cancel_file(transfer)
    bob.expect(re.compile(r'^! alice has cancelled "unwanted"'))
    check(not [name for name in os.listdir(world.path("received")) if "unwanted" in name or "part" in name],
          "a file was left")


# PROTOCOL#go-on.
def continued_file(world, alice, bob):
    """A new offer of an interrupted file continues where the transfer ended: received chunks are not sent again."""
    path, data = make_file(world, "long", 50 * m.CHUNK + 17)
    transfer = alice.offer_file("bob", path)
    bob.say("/acceptfile " + bob.expect(re.compile(OFFERED % "long"))[1])
    world.until(lambda: transfer.index >= 11 or transfer.over, "eleven chunks")
    alice._end(transfer, "a pause")
    bob.expect(re.compile(r'^! .*"long".*pause'))
    transfer = alice.offer_file("bob", path)
    bob.say("/acceptfile " + bob.expect(re.compile(OFFERED % "long"))[1])
    over(world, transfer, "complete")
    check(transfer.start >= m.GROUP, f"it started at {transfer.start}")
    received_by_rust(world, bob, data)


# PROTOCOL#frames.
def files_while_resuming(world, alice, bob):
    path, data = make_file(world, "through thick and thin", 2_222_222)
    sending = alice.offer_file("bob", path)
    bob.say("/acceptfile " + bob.expect(re.compile(OFFERED % "through thick and thin"))[1], f"/sendfile alice {path}")
    receiving = alice.accept_file(world.event(alice, "file_offer", name="bob").transfer, world.path("received"))
    for least in (3, 17):
        world.until(lambda: receiving.index >= least or receiving.over, "chunks")
        alice.transport.abort()
        alice.resume()
    over(world, sending, "complete")
    over(world, receiving, "complete")
    received_by_rust(world, bob, data)
    with open(receiving.path, "rb") as file:
        check(file.read() == data, "the wrong content")


# PROTOCOL#chunk-order.
def spoiled_chunks(world, alice, bob):
    """One bit of a chunk is altered, in each direction: the transfer ends, and no part of the file is left."""
    path, _ = make_file(world, "spoiled", 400_000)
    send = alice._send

    def spoil(message, packet=False):
        send(message[:-1] + bytes([message[-1] ^ 1]) if packet else message, packet)
    alice._send = spoil
    transfer = alice.offer_file("bob", path)
    bob.say("/acceptfile " + bob.expect(re.compile(OFFERED % "spoiled"))[1])
    over(world, transfer, "ended")
    alice._send = send
    bob.expect(re.compile(r'^! .*spoiled'))
    bob.say(f"/sendfile alice {path}")
    transfer, take = world.event(alice, "file_offer").transfer, alice._on_packet
    alice._on_packet = lambda body: take(body[:-1] + bytes([body[-1] ^ 1]))
    alice.accept_file(transfer, world.path("received"))
    over(world, transfer, "ended")
    alice._on_packet = take
    bob.expect(re.compile(r'^! .*spoiled'))
    check(not [name for name in os.listdir(world.path("received")) if "spoiled" in name or "part" in name],
          "a file was left")


# ---------------------------------------------------------------- attacks

def shoot(world, alice, envelope, message_key, wrapped=None):
    """Sends an arbitrary envelope from alice's account to bob."""
    session = alice.person("bob").session
    job = m.Job(["bob"], "", "message", "private")
    alice._last_id += 1
    alice._due[alice._last_id] = job, {"bob": (session.fingerprint, "session")}
    alice._send({"type": "encrypted_send", "id": alice._last_id, "targets": ["bob"],
                 "keys": {"bob": m.base64_of(wrapped or envelope.wrap(session, message_key))}, **envelope.wire()})
    world.until(lambda: job.done, "an answer")
    return job.outcome


# PROTOCOL#check-fields, PROTOCOL#check-identity, PROTOCOL#check-signature, PROTOCOL#check-recipient,
# PROTOCOL#check-sequence, PROTOCOL#check-open, PROTOCOL#own-name, PROTOCOL#routing, PROTOCOL#later-versions.
def false_envelopes_for_rust(world, alice, bob):
    session = alice.person("bob").session

    def forged(text="forged", sign=True, message_key=m.secrets.token_bytes(32), **members):
        place = (alice.key.public.fingerprint, session.fingerprint)
        given = {"sender": "alice", "kind": "message", "scope": "private", "recipient": "bob",
                 "recipient_key": session.fingerprint, "session": alice.key.public.fingerprint,
                 "sequence": alice.person("bob").sequences[place] + 1, "time": m.now()}
        after = {key: members.pop(key) for key in ("identity", "commitment", "tag", "signature") if key in members}
        envelope = Envelope.seal(alice.identity, text.encode(), message_key, **{**given, **members})
        envelope.__dict__.update(after)
        if sign and "signature" not in after:
            envelope.signature = alice.identity.sign(envelope.signed())
        return envelope, message_key

    world.delivered(alice.send("bob", "a true one"))
    bob.expect("<alice -> bob> a true one")
    used = dict(alice.person("bob").sequences)[(alice.key.public.fingerprint, session.fingerprint)]
    replayed, told = forged("shown once"), set()
    for what, envelope, reason in (
            ("a replayed number", forged(sequence=used), "duplicate"),
            ("another signature", forged(signature=bytes(256)), "signature"),
            ("for another session", forged(recipient_key=bytes(32)), "another user, or for an earlier session"),
            ("another identity", forged(identity=bytes(32)), "contradict"),
            ("another commitment", forged(commitment=bytes(32)), "decrypted"),
            ("another tag", forged(tag=bytes(16)), "decrypted"),
            ("a room notice that is private", forged("", kind="room_opened"), "contradict"),
            ("a room notice with a text", forged(kind="room_opened", scope="room"), "contradict")):
        check(shoot(world, alice, *envelope) == {"bob": "delivered"}, f"{what}: the server did not deliver it")
        if reason not in told:                                       # the same reason is shown once, then counted
            bob.expect(re.compile(rf"^! refused a message that claims to come from alice: .*{reason}"))
        told.add(reason)
    shoot(world, alice, *forged(recipient="carol"))
    world.event(alice, "error", code="bad_targets")
    shoot(world, alice, *forged(sender="carol"))
    world.event(alice, "error", code="wrong_sender")
    shoot(world, alice, *replayed)
    bob.expect("<alice -> bob> shown once")
    shoot(world, alice, *replayed)
    alice.person("bob").sequences[alice.key.public.fingerprint, session.fingerprint] += 1
    shoot(world, alice, *forged("not known", kind="hello"))
    bob.expect(re.compile(r"^\* alice has sent something that this version does not know"))
    alice.person("bob").sequences[alice.key.public.fingerprint, session.fingerprint] += 1
    world.delivered(alice.send("bob", "and a true one"))
    bob.expect("<alice -> bob> and a true one")
    check(not [line for line in bob.lines if "forged" in line or "missing" in line or "not known" in line], bob.lines)


def false_envelopes_for_python(world, alice, bob):
    """Alice receives bob's last envelope again, with each member altered."""
    heard, take = [], alice._on_encrypted_message
    alice._on_encrypted_message = heard.append                       # hold it, to alter it first
    bob.say("/msg alice genuine")
    world.until(lambda: heard, "bob's envelope")
    alice._on_encrypted_message = take
    genuine = heard[0]

    def flipped(key, at=0):
        data = bytearray(m.from_base64(genuine[key]))
        data[at] ^= 1
        return m.base64_of(bytes(data))

    alice.events.clear()
    for changed, codes in (
            ({"from": "carol"}, {"identity"}), ({"from": "BOB"}, {"name"}), ({"from": "alice"}, {"name"}),
            ({"kind": "hello"}, {"signature"}), ({"kind": "room_left"}, {"kind"}), ({"scope": "room"}, {"signature"}),
            ({"scope": "broadcast"}, {"recipient"}), ({"recipient": "carol"}, {"signature"}),
            ({"sequence": genuine["sequence"] + 1}, {"signature"}), ({"sequence": 0}, {"malformed"}),
            ({"sequence": 1.5}, {"malformed"}), ({"sequence": True}, {"malformed"}),
            ({"time": genuine["time"] + 1}, {"signature"}), ({"tag": genuine["nonce"]}, {"malformed"}),
            ({"nonce": genuine["nonce"] + "\n"}, {"malformed"}), ({"signature": None}, {"malformed"}),
            ({"key": flipped("key")}, {"key_id"}), ({"key": flipped("key", 100)}, {"unwrap"}),
            *(({key: flipped(key)}, {"identity"} if key == "identity" else {"signature"}) for key in (
                "recipient_key", "identity", "session", "commitment", "nonce", "ciphertext", "tag", "signature"))):
        alice._on_encrypted_message({**genuine, **changed})
        event = world.event(alice, "refused")
        check(event.code in codes, f"{str(changed)[:80]} was refused as {event.code}, not {codes}")
    alice._on_encrypted_message(genuine)
    world.event(alice, "message", text="genuine", name="bob")
    alice._on_encrypted_message(genuine)
    check(world.event(alice, "refused").code == "sequence", "a repetition")
    check(not [event for event in alice.events if event.kind == "message"], alice.events)


# PROTOCOL#check-identity, PROTOCOL#ends-at-once.
def changed_keys(world, alice, bob):
    """The name eve gets another key: both programs refuse it until their user trusts it."""
    eve = world.log_in(world.python("eve"), register=True)
    world.delivered(eve.broadcast("I am eve"))
    bob.expect("<eve> I am eve")
    world.event(alice, "message", name="eve")
    Rust.remove(world, "eve")
    world.event(eve, "error", code="account_removed")
    world.clients.remove(eve)
    refused("closed", lambda: [eve.poll(DEADLINE) for _ in range(9)])
    refused("account_removed", eve.resume)
    false = world.log_in(world.python("eve"), register=True)
    job = false.broadcast("I am eve, too")
    bob.expect(re.compile(r"^! .*eve.*key.*"))
    check(world.event(alice, "refused", name="eve").code == "key_changed", "the wrong code")
    job = alice.send("eve", "who?")
    world.until(lambda: job.done, "a refusal")
    check(job.outcome == {"eve": "key_changed"}, job.outcome)
    check(not [line for line in bob.lines if line.startswith("<eve> I am eve, too")], bob.lines)
    alice.trust("eve")
    world.delivered(alice.send("eve", "so it is you"))
    world.event(false, "message", text="so it is you")
    world.clients.remove(false)
    false.logout()


# PROTOCOL#not-a-message, PROTOCOL#frames, PROTOCOL#connection-order.
def unknown_types(world, alice, bob):
    for line, code in (({"type": "hello"}, "unknown_type"), ({"type": 5}, "malformed"), ({"no": "type"}, "malformed"),
                       ({"type": "keys_request", "names": [f"n{i}" for i in range(65)]}, "bad_targets"),
                       ({"type": "login_request", "version": 1, "username": "alice", "public_key": ""},
                        "already_logged_in"),
                       ({"type": "resume_request", "version": 1, "username": "alice"}, "already_logged_in")):
        alice._send(line)
        world.event(alice, "error", code=code)
    world.delivered(alice.send("bob", "it goes on"))
    bob.expect("<alice -> bob> it goes on")
    alice.transport.abort()
    alice.resume()                                                   # succeeds because both sides counted these frames


# PROTOCOL#lost, PROTOCOL#ack-when.
def lost_messages(world, alice, bob):
    """A session ends before its client acknowledges messages: the senders' programs resend or report them."""
    eve = world.log_in(world.python("eve2"), register=True)
    world.delivered(alice.send("eve2", "shown"))
    world.event(eve, "message", text="shown")                        # acknowledged at once
    world.clients.remove(eve)                                        # from here on, her client reads nothing
    jobs = [alice.send("eve2", text) for text in ("one", "two")]
    world.delivered(*jobs)
    bob.say("/msg eve2 three")
    bob.expect("<bob -> eve2> three")
    again = world.log_in(world.python("eve2", eve.identity))
    for text in ("one", "two"):
        world.event(again, "message", text=text, marked=True)
    world.delivered(*jobs)
    alice._on_lost({"id": 10**6, "name": "eve2"})                    # a message that alice no longer has
    world.event(alice, "lost", id=10**6, name="eve2")
    world.event(again, "message", name="bob", text="three", marked=True)
    again._acknowledge()
    world.clients.remove(again)
    bob.say("/msg eve2 four")
    bob.expect("<bob -> eve2> four")
    again._send({"type": "logout"})                                  # she has no mailbox
    bob.expect("! \"four\" may not have arrived: eve2's session ended first")


# PROTOCOL#password_change, PROTOCOL#password_changed, PROTOCOL#replaced, PROTOCOL#elsewhere, PROTOCOL#known-logins.
def changed_password(world, alice, _):
    path = world.path("alice.key")
    m.write_key_file(path, "alice", alice.password, alice.identity, ROUNDS, logins=m.as_members(alice._key_at))
    shutil.copy(path, world.path("copy.key"))
    alice.change_password("another secret", path, ROUNDS)
    with open(path, "rb") as file:
        text = file.read()
    m.open_key_file(text, "alice", "another secret")
    check(m.key_file_logins(text) == list(alice._key_at), "the login in the key file of the new password")
    refused("login_failed", lambda: world.python("alice", alice.identity).connect().login())
    refused("unknown_login",
            lambda: world.python("alice", alice.identity, key_file=world.path("copy.key")).connect().login())
    second = world.log_in(world.python("alice", alice.identity, "another secret"))
    world.event(alice, "error", code="signed_in_elsewhere")
    world.clients.remove(alice)
    refused("closed", lambda: alice.poll(DEADLINE))
    refused("signed_in_elsewhere", alice.resume)
    second.logout()


# ---------------------------------------------------------------- mail

def arrives(world, name, *options, identity=None, mailbox=None):
    """Logs in with a mailbox file, and registers without `identity`. Returns when the new mailbox key is set."""
    client = world.log_in(world.python(name, identity, mailbox=mailbox or name + ".mailbox"), register=identity is None)
    world.event(client, "mailbox_set")
    return client


def leaves(world, client, others=()):
    world.until(lambda: all(client.name in other.online for other in others), f"the presence of {client.name}")
    world.clients.remove(client)
    client.logout()
    client.mailbox.close()
    for other in others:
        world.until(lambda: client.name not in other.online, f"{client.name}'s logout")


def returns(world, client):
    return arrives(world, client.name, identity=client.identity, mailbox=os.path.basename(client.mailbox.path))


def messages(client):
    """The messages that were shown so far, in order."""
    shown = [event for event in client.events if event.kind == "message"]
    problems = [event for event in client.events
                if event.kind in ("refused", "gap", "key_refused", "odd_time", "mailbox_refused", "mail_elsewhere")]
    check(not problems, problems)
    client.events.clear()
    return [(event.name, event.scope, event.text, event.mail) for event in shown]


# PROTOCOL#mailbox, PROTOCOL#mailbox_set, PROTOCOL#mail_request, PROTOCOL#mail, PROTOCOL#mail_done, PROTOCOL#keeping,
# PROTOCOL#fetching.
def mail_between_pythons(world):
    """Mail for carol survives a kill of the server, and arrives once and in order."""
    alice, bob, carol = (arrives(world, name) for name in ("alice", "bob", "carol"))
    dave = arrives(world, "dave")
    world.delivered(alice.send("carol", "while you are here"))
    world.event(carol, "message", mail=False)
    leaves(world, carol, (alice, bob))
    private = alice.send("carol", "one")                             # sealed for the session key at first: stale
    to_bob, to_carol = alice.room(["bob", "carol"], "two")
    world.delivered(to_bob)
    world.outcome("kept", private, to_carol)
    to_alice, from_bob = bob.room(["alice", "carol"], "three")
    world.delivered(to_alice)
    world.outcome("kept", from_bob, *(alice.send("carol", f"four {i}" + "." * 3000) for i in range(10)))
    refusals = alice.broadcast("nobody keeps this"), alice.open_room("carol")
    world.outcome("delivered", refusals[0])
    world.event(dave, "message", scope="broadcast")
    world.outcome("offline", refusals[1])
    world.kill_server()
    for client in (alice, bob, dave):
        world.log_in(client)
    world.outcome("kept", *(alice.send("carol", f"five {i}") for i in range(20)))
    carol = returns(world, carol)
    texts = ["one", "two", *(f"four {i}" + "." * 3000 for i in range(10)), *(f"five {i}" for i in range(20))]
    check([(event.text, event.members) for event in carol.events if event.kind == "message" and event.scope == "room"]
          == [("two", ["alice", "bob", "carol"]), ("three", ["alice", "bob", "carol"])], carol.events)
    arrived = messages(carol)
    check([text for name, _, text, _ in arrived if name == "alice"] == texts,
          "alice's texts are lost, repeated or out of order")
    check([text for name, _, text, _ in arrived if name == "bob"] == ["three"] and all(mail for *_, mail in arrived),
          arrived[:4])
    check(len(carol.mailbox.keys) == 1 and not carol.mailbox.taken, "the former key has not been erased")
    world.delivered(alice.send("carol", "live again"))
    world.event(carol, "message", text="live again", mail=False)
    leaves(world, carol, (alice, bob))
    carol = returns(world, carol)
    check(messages(carol) == [] and messages(dave) == [], "a second login got something")
    check(not os.listdir(world.path("server", "mail", "carol"))[1:], "the server still has mail")
    leaves(world, dave)
    return alice, bob, carol


# PROTOCOL#stale, PROTOCOL#lost, PROTOCOL#outcome.
def changes_of_key(world, alice, bob, carol):
    """A message is sealed again if its key is no longer in use, or if the recipient never received it."""
    leaves(world, carol, (alice, bob))
    world.outcome("kept", alice.send("carol", "kept"))
    world.clients.remove(alice)                                      # she does not see that carol has returned
    carol = returns(world, carol)
    world.clients.append(alice)
    world.delivered(alice.send("carol", "for the former mailbox key"))
    event = world.event(carol, "message", text="for the former mailbox key", mail=False)
    check(event.marked, event)
    world.delivered(alice.send("carol", "acknowledged"))
    world.event(carol, "message", text="acknowledged")
    for overtaken in (False, True):                                  # `lost` may come before `sent`
        heard, answered = [], alice._on_sent
        carol._acknowledge()
        # from here on, carol reads and acknowledges nothing
        world.clients.remove(carol)
        alice._on_sent = heard.append if overtaken else answered
        world.until(lambda: "carol" in alice.online, "carol's presence")
        jobs = [alice.send("carol", "lost 1"), *alice.room(["carol"], "lost 2"), alice.send("carol", "lost 3")]
        world.until(lambda: len(heard) == 3 or all(job.outcome == {"carol": "delivered"} for job in jobs),
                    "the answers")
        carol._send({"type": "logout"})
        world.until(lambda: "carol" not in alice.online, "carol's logout")
        alice._on_sent = answered
        for message in heard:
            alice._on_sent(message)
        alice._flush()
        world.outcome("kept", *jobs)
        carol.mailbox.close()
        check(not [event for event in alice.events if event.kind == "lost"], alice.events)
        carol = returns(world, carol)
        arrived = [(event.text, event.marked) for event in carol.events if event.kind == "message"]
        check(arrived == [(f"lost {i}", True) for i in (1, 2, 3)], arrived)
        messages(carol)
    return carol


def crash(kind=None, *_, **__):
    if kind in ("presence", "new_key"):
        return
    raise MessengerError("crash")


# PROTOCOL#mail-records, PROTOCOL#mail-erasing, PROTOCOL#mail-order.
def crashes(world, alice, carol):
    """Carol's client dies at each step from fetching to erasing: it loses nothing, and marks what it may have shown."""
    for point, expected in (("_take", [("a", False), ("b", False)]), ("_tell", [("a", True), ("b", True)]),
                            ("_confirm", []), ("_on_mailbox_set", [])):
        leaves(world, carol, [alice])
        world.outcome("kept", alice.send("carol", "a"), alice.send("carol", "b"))
        carol = world.python("carol", carol.identity, mailbox="carol.mailbox")
        keys = len(carol.mailbox.keys)
        carol.person("alice").remembered = alice.identity.public.fingerprint
        setattr(carol, point, crash)
        carol.connect()
        refused("crash", lambda: (carol.login(), [carol.poll(1) for _ in range(9)]))
        check(keys == 1, "a key too many")
        carol.transport.abort()
        carol.mailbox.close()
        carol = world.python("carol", carol.identity, mailbox="carol.mailbox")
        carol.person("alice").remembered = alice.identity.public.fingerprint
        world.log_in(carol)
        world.event(carol, "mailbox_set")
        arrived = [(event.text, event.marked) for event in carol.events if event.kind == "message"]
        check(arrived == expected, f"after a crash in {point}: {arrived}")
        messages(carol)
        check(len(carol.mailbox.keys) == 1, f"after a crash in {point}: {len(carol.mailbox.keys)} keys")
    return carol


# PROTOCOL#mail-refusals, PROTOCOL#mail-order.
def mail_that_fails_a_check(world, alice, carol):
    """Carol confirms mail that fails a check, and does not show it. Live envelopes for a mailbox key are mail."""
    leaves(world, carol, [alice])
    world.outcome("kept", *(alice.send("carol", f"genuine {i}") for i in range(3)))
    carol = world.python("carol", carol.identity, mailbox="carol.mailbox")
    heard, carol._on_mail = [], lambda message: heard.append(message)
    world.log_in(carol)
    world.until(lambda: heard, "the mail")
    carol._hold_until += 600
    world.until(lambda: "carol" in alice.online, "carol's presence")
    world.delivered(alice.send("carol", "live"), alice.broadcast("for all"))
    # only envelopes for one recipient wait for the mail
    world.event(carol, "message", text="for all")
    carol._acknowledge()
    check(carol.frames.told < carol.frames.received, "a message that waits is acknowledged")
    first, second, third = (kept["message"] for kept in heard[0]["mail"])
    session = alice.key.public.fingerprint
    key = next(iter(carol.mailbox.keys.values()))[0].public

    def sealed(for_key=key, **members):
        given = {"sender": "alice", "kind": "message", "scope": "private", "recipient": "carol",
                 "recipient_key": for_key.fingerprint, "session": session, "sequence": 100, "time": m.now()}
        envelope = Envelope.seal(alice.identity, b"", b"k" * 32, **{**given, **members})
        return {**envelope.wire(), "key": m.base64_of(envelope.wrap(for_key, b"k" * 32))}

    for changed, code in (({**first, "signature": second["signature"]}, "signature"),
                          ({**first, "tag": second["tag"]}, "signature"), ({**first, "key": second["key"]}, "unwrap"),
                          (sealed(recipient="bob"), "recipient"), (sealed(recipient_key=bytes(32)), "recipient"),
                          (sealed(carol.key.public), "recipient"), (sealed(kind="room_opened", scope="room"), "kind"),
                          (sealed(kind="file_offer"), "kind"), (sealed(scope="room"), "members"),
                          (sealed(kind="hello"), "kind"), ({**first, "scope": "broadcast"}, "recipient"),
                          ({"from": "alice"}, "malformed"),
                          (sealed(scope="broadcast", recipient=None, recipient_key=carol.server_key), "recipient"),
                          (sealed(scope="broadcast", recipient=None), "recipient")):
        carol._confirmed, carol._opened, carol._batch = [], [], {7, 8}
        carol._take(changed, 7)
        event = world.event(carol, "refused")
        check(event.code == code and carol._confirmed == [7] and carol._batch == {8},
              f"{event}, not {code}; {carol._confirmed}")
    for live, code in (({"kind": "file_offer"}, "kind"),
                       ({"scope": "broadcast", "recipient": None, "recipient_key": carol.server_key}, "key_id")):
        carol._take(sealed(**live))
        check(world.event(carol, "refused").code == code, f"a live envelope under a mailbox key: {live}")
    check(not [event for event in carol.events if event.kind == "message"] and not carol.mailbox.taken, carol.events)
    del carol._on_mail
    carol._take(first)                                               # live, for a mailbox key: treated as mail
    world.event(carol, "message", text="genuine 0", mail=True)
    carol._batch = set()
    carol._on_mail(heard[0])
    world.event(carol, "mailbox_set")
    check([event[2] for event in messages(carol)] == ["genuine 1", "genuine 2", "live"], "the genuine mail")
    for mail in ({"mail": [{"number": 5, "message": third}, {"number": 5, "message": third}], "more": False, "other": 0,
                  "until": 0},
                 {"mail": [], "more": True, "other": 0, "until": 0},
                 {"mail": [], "more": False, "other": -1, "until": 0},
                 {"mail": 1, "more": False, "other": 0, "until": 0}):
        carol._fetching, carol._more, carol._after = True, None, 0
        refused("malformed", lambda: carol._on_mail(mail))
    carol._fetching = False
    return carol


# PROTOCOL#mailbox-key, PROTOCOL#mailbox-certificate, PROTOCOL#newest, PROTOCOL#mail-owner, PROTOCOL#mail-sender,
# PROTOCOL#mailbox-file-lock.
def mailbox_keys(world, alice, carol):
    """A sender checks label, age and order of certificates. The owner uses a later `created`, and erases old keys."""
    leaves(world, carol, [alice])
    world.outcome("kept", alice.send("carol", "in time"))
    person, key = alice.person("carol"), next(iter(carol.mailbox.keys.values()))[0].public
    created = person.newest["mailbox"][0]

    def entry(at, kind="mailbox", shown="mailbox", of=key):
        return {"name": "carol", "identity": m.base64_of(carol.identity.public.der),
                shown + "_key": m.base64_of(of.der), "created": at,
                "certificate": m.base64_of(carol.identity.sign(m.certificate_text("carol", of, at, kind)))}
    for given, code in ((entry(created, "session"), "certificate"), (entry(created, shown="session"), "certificate"),
                        (entry(m.now() - 31 * 24 * m.HOUR), "certificate"),
                        (entry(m.now() + 3 * m.HOUR), "certificate"), (entry(created - 1), "set_back"),
                        (entry(created, of=alice.key.public), "set_back"),
                        ({**entry(created), "session_key": m.base64_of(key.der)}, "malformed")):
        refused(code, lambda: alice._learn(person, given))
    alice._learn(person, entry(created))
    person.created -= 31 * 24 * m.HOUR                               # the key has become too old since it was fetched
    check(not alice._usable(person, m.Job(["carol"], "", "message", "private")), "an old certificate")
    person.session = None
    for kind, fate in (("session", "kept"), ("mailbox", "delivered")):
        job = m.Job(["carol"], "", "message", "private")
        alice._due[10**6] = job, {"carol": (bytes(32), kind)}
        alice._on_sent({"id": 10**6, **dict.fromkeys(("delivered", "kept", "offline", "stale", "busy"), []),
                        fate: ["carol"]})
        check(job.outcome == {"carol": "broken"}, job.outcome)
    # A machine without the private key reports the mail, which stays for the first machine. Its clock is behind.
    right = m.now
    m.now = lambda: right() - m.HOUR
    second = arrives(world, "carol", identity=carol.identity, mailbox="second.mailbox")
    m.now = right
    event = world.event(second, "mail_elsewhere", count=1)
    check(abs(event.until - right() - 30 * 24 * m.HOUR) < m.HOUR and not messages(second), event)
    check(next(iter(second.mailbox.keys.values()))[1] > created,
          "the second machine's key is older than the first one's")
    refused("mailbox_in_use", lambda: world.python("carol", carol.identity, mailbox="second.mailbox"))
    leaves(world, second, [alice])
    world.outcome("kept", alice.send("carol", "for the second machine"))
    carol = world.python("carol", carol.identity, mailbox="carol.mailbox")
    old = m.PrivateKey()
    carol.mailbox.add(old, m.now() - m.OLD_KEY - m.HOUR)
    world.log_in(carol)
    world.event(carol, "mailbox_set")
    world.event(carol, "message", text="in time", mail=True)
    world.event(carol, "mail_elsewhere", count=1)
    check(len(carol.mailbox.keys) == 1 and not messages(carol), carol.mailbox.keys)
    leaves(world, carol, [alice])
    second = returns(world, second)
    check([event[2] for event in messages(second)] == ["for the second machine"], "the second machine's mail")
    return second


# PROTOCOL#mail-refusals, PROTOCOL#mail-erasing.
def undecided_mail(world, alice, carol):
    """Mail under a changed identity key waits, with its mailbox key, for carol's decision. Other mail does not."""
    eve = arrives(world, "eve")
    world.delivered(eve.send("carol", "I am eve"))
    world.event(carol, "message", text="I am eve")
    leaves(world, carol, [alice, eve])
    Rust.remove(world, "eve")
    world.event(eve, "error", code="account_removed")
    world.clients.remove(eve)
    false = arrives(world, "eve", mailbox="false.mailbox")
    world.outcome("kept", *(false.send("carol", f"I am eve, too {i}") for i in range(20)))
    world.outcome("kept", alice.send("carol", "beware of eve"))
    known = carol.person("eve").remembered
    carol = world.python("carol", carol.identity, mailbox="second.mailbox")
    carol.person("eve").remembered = known
    world.log_in(carol)
    world.event(carol, "mailbox_set")
    world.event(carol, "message", text="beware of eve", mail=True)
    check(not [event for event in carol.events if event.kind == "message"] and len(carol.mailbox.keys) == 2,
          carol.events)
    keys = dict(carol.mailbox.keys)
    former, (key, created) = next(iter(keys.items()))
    carol.mailbox.keys[former] = key, created - m.OLD_KEY
    carol._erase()
    check(former not in carol.mailbox.keys, "a key is kept for over 60 days")
    carol.mailbox.keys = keys
    carol.events.clear()
    carol.trust("eve")
    world.event(carol, "mail_over")
    check([event[2] for event in messages(carol)] == [f"I am eve, too {i}" for i in range(20)], "the mail that waited")
    check(len(carol.mailbox.keys) == 1, "the former key has not been erased")
    leaves(world, false, [alice, carol])
    leaves(world, carol, [alice])


# PROTOCOL#keeping, PROTOCOL#lost, PROTOCOL#mail-sender.
def mail_from_rust(world, alice, carol, rob):
    """The Rust client seals for the mailbox key of a Python client: at once, after `stale`, and after `lost`."""
    world.delivered(alice.send("rob", "hello"))
    rob.expect("<alice -> rob> hello")
    leaves(world, alice, [carol])
    rob.expect("* alice has left")
    rob.say("/msg alice one", "/room alice carol", "two", "/leave", "/msg alice three")
    for text in ("one", "two", "three"):
        rob.expect(f'* kept for alice until they log in ("{text}")')
    world.event(carol, "message", name="rob", text="two", mail=False)
    world.kill_server()
    world.log_in(carol)
    world.until(lambda: "rob" in carol.online, "rob's return")
    rob.say("/msg alice four")
    rob.expect('* kept for alice until they log in ("four")')
    alice = returns(world, alice)
    arrived = [(event.text, event.members, event.marked) for event in alice.events if event.kind == "message"
               and event.name == "rob"]
    members = ["alice", "carol", "rob"]
    check(arrived == [("one", [], False), ("two", members, False), ("three", [], False), ("four", [], False)], arrived)
    messages(alice)
    rob.say("/msg alice live")                                       # rob has the former mailbox key
    world.event(alice, "message", text="live", mail=False)
    alice._acknowledge()
    # from here on, alice reads and acknowledges nothing
    world.clients.remove(alice)
    rob.say(*(f"/msg alice lost {i}" for i in range(3)))
    rob.expect("<rob -> alice> lost 2")
    alice._send({"type": "logout"})
    for i in range(3):
        rob.expect(f'* kept for alice until they log in ("lost {i}")')
    alice.mailbox.close()
    alice = returns(world, alice)
    arrived = [(event.text, event.marked) for event in alice.events if event.kind == "message"]
    check(arrived == [(f"lost {i}", True) for i in range(3)], arrived)
    messages(alice)
    return alice


def key_of_rust(world, before=None):
    """The certificate of rob's mailbox key, once the server has another one than `before`."""
    def found():
        if os.path.exists(path := world.path("server", "mail", "rob", "key")):
            with open(path) as file:
                return (text := file.read()) != before and text
    return world.until(found, "rob's mailbox key")


# PROTOCOL#mail-order, PROTOCOL#mailbox-file-form, PROTOCOL#mailbox-file-erasing.
def mail_to_rust(world, alice, carol, rob):
    """The Rust client fetches mail of Python clients: once, in order, and before live messages."""
    key = key_of_rust(world)

    def left():
        rob.say("/exit")
        world.until(lambda: rob.process.poll() == 0 and "rob" not in {*alice.online, *carol.online},
                    "the end of rob's client")

    def heard(*lines):
        for line in lines:
            rob.expect(line)
        problems = [line for line in rob.lines if line.startswith(("!", "<"))]
        check(not problems, problems)

    left()
    private = alice.send("rob", "one")
    to_carol, to_rob = alice.room(["rob", "carol"], "two")
    world.delivered(to_carol)
    world.outcome("kept", private, to_rob)
    to_alice, from_carol = carol.room(["alice", "rob"], "three")
    world.delivered(to_alice)
    world.outcome("kept", from_carol, *(alice.send("rob", f"four {i}") for i in range(20)))
    world.kill_server()
    for client in (alice, carol):
        world.log_in(client)
    world.outcome("kept", alice.send("rob", "five"))
    rob = world.rust("rob")
    rob.expect(re.compile(r"^\* 24 messages "))
    order = [line for line in heard_in_order(world, rob, 24) if line.startswith("<alice")]
    check(order == ["<alice -> rob> one (sent again)", "<alice -> carol, rob> two",
                    *(f"<alice -> rob> four {i}" for i in range(20)), "<alice -> rob> five"], order)
    key = key_of_rust(world, key)
    world.until(lambda: "rob" in alice.online, "the presence of rob")
    world.delivered(alice.send("rob", "live"))
    heard("<alice -> rob> live")
    left()
    rob = world.rust("rob")
    rob.expect(re.compile("^\\* logged in as rob"))
    key = key_of_rust(world, key)
    heard()
    left()
    # Each implementation uses the other's mailbox file.
    world.outcome("kept", alice.send("rob", "for a key that Rust has made"))
    with open(world.path("rob", "keys", "rob_private.key"), "rb") as file:
        identity, password = m.open_key_file(file.read(), "rob", typed("rob"))
    file = os.path.join("rob", "mailbox", m.name_hash("rob", f"127.0.0.1:{world.port}"))
    other = world.log_in(world.python("rob", identity, password, mailbox=file))
    world.event(other, "mailbox_set")
    check([text for *_, text, _ in messages(other)] == ["for a key that Rust has made"], other.events)
    leaves(world, other, [alice, carol])
    world.outcome("kept", alice.send("rob", "for a key that Python has made"))
    rob = world.rust("rob")
    heard("<alice -> rob> for a key that Python has made")
    left()


# PROTOCOL#mail-refusals, PROTOCOL#checks.
def false_mail_for_rust(world, alice, carol):
    """Rob's client confirms mail that fails a check, and shows only genuine mail."""
    copied = alice.send("rob", "copied")
    world.outcome("kept", copied)
    world.outcome("kept", carol.send("rob", "from carol"))
    key = alice.person("rob").session

    def shot(client, text="forged", after={}, **members):
        conversation = client.key.public.fingerprint, key.fingerprint
        client.person("rob").sequences[conversation] += 1
        given = {"sender": client.name, "kind": "message", "scope": "private", "recipient": "rob",
                 "recipient_key": key.fingerprint, "session": conversation[0],
                 "sequence": client.person("rob").sequences[conversation], "time": m.now()}
        message_key = m.secrets.token_bytes(32)
        envelope = Envelope.seal(client.identity, text.encode(), message_key, **{**given, **members})
        envelope.__dict__.update(after)
        if "signature" not in after:
            envelope.signature = client.identity.sign(envelope.signed())
        wrapped = envelope.wrap(key, message_key)
        client._last_id += 1
        job = m.Job(["rob"], "", "message", "private")
        client._due[client._last_id] = job, {"rob": (key.fingerprint, "mailbox")}
        client._send({"type": "encrypted_send", "id": client._last_id, "targets": ["rob"],
                      "keys": {"rob": m.base64_of(wrapped)}, **envelope.wire()})
        world.outcome("kept", job)

    for members, after in (({"sequence": 1}, {}), ({"recipient_key": bytes(32)}, {}), ({"scope": "room"}, {}),
                           ({}, {"signature": bytes(256)}), ({}, {"identity": bytes(32)}),
                           ({}, {"commitment": bytes(32)}), ({}, {"tag": bytes(16)})):
        shot(alice, after=after, **members)
    # Ids count per sender: carol cannot make alice's text look like one that was shown.
    shot(carol, "first under that id", again=b"i" * 32)
    shot(alice, "second under that id", again=b"i" * 32)
    world.outcome("kept", alice.send("rob", "genuine"))
    rob = world.rust("rob")
    lines = heard_in_order(world, rob, 5)
    check(lines == ["<alice -> rob> copied", "<carol -> rob> from carol",
                    "<carol -> rob> first under that id (sent again)",
                    "<alice -> rob> second under that id (sent again)", "<alice -> rob> genuine"], lines)
    world.until(lambda: os.listdir(world.path("server", "mail", "rob")) == ["key"], "the deletion of all mail")
    rob.say("/exit")
    world.until(lambda: rob.process.poll() == 0, "the end of rob's client")


def heard_in_order(world, rust, count):
    shown = lambda: [line for line in rust.lines if line.startswith("<")]
    world.until(lambda: len(shown()) >= count, f"{count} messages")
    lines = shown()
    rust.lines.clear()
    return lines


def server_without_mail(world, alice):
    world.kill_server("--mail", "0")
    world.log_in(alice)
    check(world.event(alice, "mailbox_refused").code == "no_mail", "the wrong code")
    check(not alice.mailbox.keys, "a key is kept for a server that keeps no mail")
    alice.mailbox.close()


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True, type=os.path.abspath)
    parser.add_argument("--client", required=True, type=os.path.abspath)
    parser.add_argument("--vectors", default=os.path.join(here, "..", "vectors", "vectors.json"))
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    began, name = time.monotonic(), "start"

    def step(function, *parameters):
        nonlocal name
        name = function.__name__
        at = time.monotonic()
        result = function(*parameters)
        print(f"ok {name} ({time.monotonic() - at:.1f} s)", flush=True)
        return result

    try:
        with World(arguments) as world:
            with open(arguments.vectors) as file:
                vectors = json.load(file)
            world.start_server()
            # start in the background
            bob, carol = (world.rust(who, "--register", "--no-mail") for who in ("bob", "carol"))
            for function in (vectors_primitives, vectors_keys_and_login, vectors_mailbox_file, vectors_envelopes,
                             vectors_chunks):
                step(function, vectors)
            alice = step(registration_and_login, world)
            for who, rust in (("bob", bob), ("carol", carol)):
                rust.expect(re.compile(rf"^\* logged in as {who} "))
            world.until(lambda: {"bob", "carol"} <= alice.online, "bob and carol")
            step(python_to_rust, world, alice, bob, carol)
            step(rust_to_python, world, alice, bob)
            step(rooms, world, alice, bob)
            step(room_of_three, world, alice, bob, carol)
            step(safety_numbers, world, alice, bob)
            step(key_files, world, alice, bob)
            bob = step(stale_keys, world, alice, bob)
            step(clock_set_back, world, alice, bob)
            step(resuming, world, alice, bob)
            step(wrong_resumption, world, alice)
            for function in (files_to_rust, files_from_rust, refused_files, continued_file, files_while_resuming,
                             spoiled_chunks, false_envelopes_for_rust, false_envelopes_for_python, changed_keys,
                             unknown_types, lost_messages, changed_password):
                step(function, world, alice, bob)
        with World(arguments) as world:
            world.start_server()
            alice, bob, carol = step(mail_between_pythons, world)
            carol = step(changes_of_key, world, alice, bob, carol)
            rob = world.rust("rob", "--register")
            for client in (alice, carol):
                world.until(lambda: {"rob", "alice", "carol"} <= client.online, "the presence of rob")
            alice = step(mail_from_rust, world, alice, carol, rob)
            step(mail_to_rust, world, alice, carol, rob)
            step(false_mail_for_rust, world, alice, carol)
            carol = step(crashes, world, alice, carol)
            carol = step(mail_that_fails_a_check, world, alice, carol)
            carol = step(mailbox_keys, world, alice, carol)
            step(undecided_mail, world, alice, carol)
            step(server_without_mail, world, alice)
    except (AssertionError, MessengerError, OSError) as error:
        print(f"FAILED {name}: {error or type(error).__name__}", flush=True)
        traceback.print_exc()
        return 1
    print(f"all ok in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
