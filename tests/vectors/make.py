"""Makes the test vectors of tests/spec/vectors.rs with other implementations.

It shares no code with the messenger: it implements the documented encodings itself, and takes the
primitives from pycryptodome, hashlib and the `openssl` command. Run it from the top of the
repository, and commit its output:

    python3 tests/vectors/make.py > tests/vectors/vectors.json

vectors.json was made with Python 3.11.7, pycryptodome 4.4.0 and OpenSSL 3.0.19. The output of
pycryptodome is the same in each run (SHA-256 in counter mode replaces its random source); the block
and the signature by "OpenSSL" differ each time, because that command accepts no random source.
"""

import base64
import hashlib
import hmac
import json
import math
import os
import subprocess
import sys
import tempfile
import unicodedata

from Crypto.Cipher import AES, PKCS1_OAEP
from Crypto.Hash import HMAC, SHA256
from Crypto.Protocol.KDF import PBKDF2
from Crypto.PublicKey import RSA
from Crypto.Signature import pss

# Keys for these tests and nothing else. The first was made by pycryptodome, the second by OpenSSL.
IDENTITY_P = int(
    "bba139fd510907fcb94a3c7fd6362e0c519a6d795814067b781be1bc6353ddc9"
    "3bae3f1e9fe496d1beb6306b51c71165bffe9972591646d84617c0a9fd899204"
    "11f215182a1945b7f10c599c84cef08e52ecf964c46e1487b8c01220cdbff4dc"
    "d35e04fdb19810936544364173a2a6fcbdcb8d83f30ab5f536ac7b9422f7e225",
    16,
)
IDENTITY_Q = int(
    "e9bb6aa42e96df5f7ba665877a7d685c7b969cf232b43b3705e68ab31a6b7edf"
    "2d806efc7b97ea9c4f19dee22d9b84b321fc68114360690d3d01282be30bbc0e"
    "ac06663eaa6fd5e4b40146162c1b47a98d5d8e738ccc365da3bf9d34a083e856"
    "1ba2c52f6ac3e7afb83eac5f9a4ea09ffe7a139f16e3a29f16b5ba63de20a90f",
    16,
)
SESSION_P = int(
    "c5331c7ec127beadf3e0d6f4416e4e127e6efc344887c4a1e31ddfa1ebe6893b"
    "97c8a87d268f77e2a43c891fdef8583ac83d8571ab565f0f180246f35b68fc64"
    "92916f6ee64873b86612536f66090594601bd07e956a024111e90e343f0066fa"
    "b7b3e3aad8de58f971d38cca4a7c7b5860cb883b6bdba3369233213401e546c5",
    16,
)
SESSION_Q = int(
    "b9140edf1a2c0b2ac5139fc622dcab2b0e15e70b9bc3d76a29fa050d18bd72ec"
    "4b7f6bb58b82ab3d69910289806166fdbc527e714b3868a1b31ce45d4f64e1a5"
    "80f900fb9eeddab5cb3b7a7c1722c5d60ff445a71cb81f0e0ce0ed9c8700c498"
    "7dfa817a8a97f1bb4be0bbfb717b851defb80b239ef64b32eb63f0b7d5fd5e79",
    16,
)


def rsa_key(p, q):
    e = 65537
    return RSA.construct((p * q, e, pow(e, -1, math.lcm(p - 1, q - 1)), p, q))


IDENTITY = rsa_key(IDENTITY_P, IDENTITY_Q)
SESSION = rsa_key(SESSION_P, SESSION_Q)


def stream(name):
    """A random source that gives the same bytes for the same name."""
    state = {"block": 0, "rest": b""}

    def read(count):
        while len(state["rest"]) < count:
            state["rest"] += sha256(name.encode() + b"/" + str(state["block"]).encode())
            state["block"] += 1
        out, state["rest"] = state["rest"][:count], state["rest"][count:]
        return out

    return read


def openssl(*arguments, **files):
    """Runs the command; `{name}` in an argument is the path of a file with those bytes."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name, content in files.items():
            paths[name] = os.path.join(folder, name)
            with open(paths[name], "wb") as file:
                file.write(content)
        command = ["openssl"] + [argument.format(**paths) for argument in arguments]
        return subprocess.run(command, check=True, capture_output=True).stdout


# Encodings.


def fields(label, *values):
    """Each field is its length (32 bits, big-endian) and its bytes; numbers are 64 bits, big-endian."""
    out = b""
    for value in (label, *values):
        if isinstance(value, str):
            value = value.encode()
        if isinstance(value, int):
            value = value.to_bytes(8, "big")
        out += len(value).to_bytes(4, "big") + value
    return out


def label(name):
    return "secure-messenger/1 " + name


def spki(key):
    return key.public_key().export_key("DER")


def fingerprint(key):
    return sha256(spki(key))


def b64(data):
    return base64.b64encode(data).decode()


def pad(text):
    """Length (32 bits, big-endian), text, zeros up to a multiple of 256."""
    padded = len(text).to_bytes(4, "big") + text
    return padded + bytes(-len(padded) % 256)


# Primitives.


def sha256(message):
    return hashlib.sha256(message).digest()


def hmac_sha256(key, message):
    mac = HMAC.new(key, message, SHA256).digest()
    assert mac == hmac.digest(key, message, "sha256")
    return mac


def pbkdf2(password, salt, rounds):
    key = PBKDF2(password.encode(), salt, 32, rounds, hmac_hash_module=SHA256)
    assert key == hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    options = ["digest:SHA256", f"hexpass:{password.encode().hex()}", f"hexsalt:{salt.hex()}", f"iter:{rounds}"]
    kdf = [word for option in options for word in ("-kdfopt", option)]
    assert key == openssl("kdf", "-keylen", "32", "-binary", *kdf, "PBKDF2")
    return key


def eax(key, nonce, counter, header, text):
    cipher = AES.new(key, AES.MODE_EAX, nonce=nonce + counter.to_bytes(4, "big"), mac_len=16)
    cipher.update(header)
    return cipher.encrypt_and_digest(text)


def gcm(key, nonce, header, text):
    cipher = AES.new(key, AES.MODE_GCM, nonce=nonce, mac_len=16)
    cipher.update(header)
    return cipher.encrypt_and_digest(text)


def oaep(key, message, oaep_label, randfunc):
    cipher = PKCS1_OAEP.new(key.public_key(), SHA256, label=oaep_label, randfunc=randfunc)
    return cipher.encrypt(message)


def sign(key, message, randfunc):
    return pss.new(key, salt_bytes=32, rand_func=randfunc).sign(SHA256.new(message))


# Vectors.


def key_vector(key):
    return {
        "pkcs8": key.export_key("DER", pkcs=8).hex(),
        "spki": spki(key).hex(),
        "pem": key.public_key().export_key("PEM").decode() + "\n",
        "fingerprint": "SHA256:" + b64(fingerprint(key)).rstrip("="),
        "short": fingerprint(key)[:8].hex(),
    }


def password_vector(typed):
    """The forms that a client tries; the first one is that of new passwords."""
    spaced = "".join(" " if unicodedata.category(c) == "Zs" else c for c in typed)
    forms = [unicodedata.normalize("NFC", spaced), typed, unicodedata.normalize("NFD", typed)]
    return {"typed": typed, "forms": [form.encode().hex() for form in dict.fromkeys(forms)]}


def pbkdf2_vector(password, salt, rounds):
    return {
        "password": password,
        "salt": salt.hex(),
        "rounds": rounds,
        "key": pbkdf2(password, salt, rounds).hex(),
    }


def hmac_vector(source, key, message, known=None):
    """HMAC fills keys up with zeros to 64 bytes, so a shorter key may be written as 32 bytes."""
    key = key.ljust(32, b"\0")
    mac = hmac_sha256(key, message)
    assert known is None or mac.hex() == known
    assert mac.hex().encode() in openssl(
        "dgst", "-sha256", "-mac", "HMAC", "-macopt", "hexkey:" + key.hex(), "{message}", message=message
    )
    return {"source": source, "key": key.hex(), "message": message.hex(), "mac": mac.hex()}


def aead_vector(name, counter, header, text):
    """EAX with a counter, GCM without."""
    random = stream(name)
    key, nonce = random(32), random(12)
    sealed = gcm(key, nonce, header, text) if counter is None else eax(key, nonce, counter, header, text)
    return {
        "key": key.hex(),
        "nonce": nonce.hex(),
        "counter": counter or 0,
        "header": header.hex(),
        "text": text.hex(),
        "ciphertext": sealed[0].hex(),
        "tag": sealed[1].hex(),
    }


def oaep_vectors():
    random = stream("oaep")
    key, oaep_label = random(32), random(32)
    by_openssl = openssl(
        *"pkeyutl -encrypt -pubin -keyform DER -inkey {public} -in {key}".split(),
        *"-pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256".split(),
        *f"-pkeyopt rsa_oaep_label:{oaep_label.hex()}".split(),
        public=spki(SESSION),
        key=key,
    )
    blocks = {"pycryptodome": oaep(SESSION, key, oaep_label, random), "OpenSSL": by_openssl}
    return [
        {"by": by, "key": key.hex(), "label": oaep_label.hex(), "block": block.hex()}
        for by, block in blocks.items()
    ]


def pss_vectors():
    message = b"signed by another implementation"
    by_openssl = openssl(
        *"dgst -sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32".split(),
        *"-sign {private} {message}".split(),
        private=IDENTITY.export_key("PEM", pkcs=8),
        message=message,
    )
    signatures = {"pycryptodome": sign(IDENTITY, message, stream("pss")), "OpenSSL": by_openssl}
    return [
        {"by": by, "message": message.hex(), "signature": signature.hex()}
        for by, signature in signatures.items()
    ]


def key_file_vector(owner, password, rounds):
    random = stream("key file")
    salt, nonce = random(16), random(12)
    logins = [(random(32), 600_000), (random(32), 100_000)]
    body = IDENTITY.export_key("DER", pkcs=8)
    ciphertext, tag = gcm(pbkdf2(password, salt, rounds), nonce, fields(label("key file"), owner), body)
    text = {
        "version": 1,
        "kdf": "PBKDF2-HMAC-SHA256",
        "rounds": rounds,
        "salt": b64(salt),
        "cipher": "AES-256-GCM",
        "nonce": b64(nonce),
        "ciphertext": b64(ciphertext),
        "tag": b64(tag),
        "logins": [{"salt": b64(salt), "rounds": rounds} for salt, rounds in logins],
    }
    return {
        "owner": owner,
        "password": password,
        "logins": [{"salt": salt.hex(), "rounds": rounds} for salt, rounds in logins],
        "text": json.dumps(text, indent=2) + "\n",
    }


def history_vector(owner, server, messages):
    return sealed_vector("history", owner, server, [json.dumps(message).encode() for message in messages])


def mailbox_file_vector(owner, server, created, messages):
    records = [b"\1" + created.to_bytes(8, "big") + SESSION.export_key("DER", pkcs=8)]
    for sender, session, sequence, message_id in messages:
        key = sha256(spki(SESSION))
        records.append(b"\2" + key + session + sequence.to_bytes(8, "big") + message_id + sender.encode())
    records.append(b"\3" + messages[0][3])
    return sealed_vector("mailbox file", owner, server, records)


def sealed_vector(what, owner, server, records):
    random = stream(what)
    secret = IDENTITY.export_key("DER", pkcs=8)
    key = HMAC.new(secret, fields(label(what + " key"), owner, server), SHA256).digest()
    lines, last = "", b""
    for index, record in enumerate(records):
        nonce = random(12)
        data, last = gcm(key, nonce, fields(label(what), owner, server, index, last), pad(record))
        lines += json.dumps({"nonce": b64(nonce), "data": b64(data), "tag": b64(last)}) + "\n"
    file = owner + "_" + sha256(server.encode()).hex()[:16]
    return {"owner": owner, "server": server, "key": key.hex(), "file": file, "text": lines}


def certificate(owner, created, what="session"):
    signed = fields(label(what + " certificate"), owner, spki(SESSION), created)
    return signed, sign(IDENTITY, signed, stream("certificate"))


def certificate_vector(owner, created, what="session"):
    signed, signature = certificate(owner, created, what)
    return {"owner": owner, "created": created, "signed": signed.hex(), "signature": signature.hex()}


def login_vector(name, password, exporter, created):
    random = stream(f"login with {len(exporter)} bytes")
    salt, nonce, rounds = random(32), random(32), 100_000
    password_key = pbkdf2(password, salt, rounds)
    signed = fields(label("login proof"), name, nonce, exporter, fingerprint(SESSION))
    answered = fields(label("login response"), name, nonce, exporter, fingerprint(SESSION))
    register = {
        "type": "register",
        "version": 1,
        "username": name,
        "salt": b64(salt),
        "rounds": rounds,
        "password_key": b64(password_key),
        "public_key": b64(spki(IDENTITY)),
    }
    challenge = {"type": "challenge", "version": 1, "nonce": b64(nonce), "salt": b64(salt), "rounds": rounds}
    response = {
        "type": "challenge_response",
        "response": b64(hmac_sha256(password_key, answered)),
        "session_key": b64(spki(SESSION)),
        "created": created,
        "certificate": b64(certificate(name, created)[1]),
        "proof": b64(sign(IDENTITY, signed, random)),
    }
    return {
        "name": name,
        "password": password,
        "exporter": exporter.hex(),
        "password_key": password_key.hex(),
        "answered": answered.hex(),
        "proof_signed": signed.hex(),
        "register": json.dumps(register),
        "challenge": json.dumps(challenge),
        "response": json.dumps(response),
    }


def password_change_vector(name, old, new, exporter):
    """The answer to a challenge that makes `new` the password."""
    random = stream(f"password change with {len(exporter)} bytes")
    old_salt, nonce, salt, rounds = random(32), random(32), random(32), 100_000
    password_key = pbkdf2(new, salt, rounds)
    signed = fields(label("password change"), name, nonce, exporter, salt, rounds, password_key)
    answered = fields(label("password change response"), name, nonce, exporter, salt, rounds, password_key)
    challenge = {"type": "challenge", "version": 1, "nonce": b64(nonce), "salt": b64(old_salt), "rounds": rounds}
    change = {
        "type": "password_change",
        "response": b64(hmac_sha256(pbkdf2(old, old_salt, rounds), answered)),
        "salt": b64(salt),
        "rounds": rounds,
        "password_key": b64(password_key),
        "proof": b64(sign(IDENTITY, signed, random)),
    }
    return {
        "name": name,
        "old_password": old,
        "new_password": new,
        "exporter": exporter.hex(),
        "answered": answered.hex(),
        "signed": signed.hex(),
        "challenge": json.dumps(challenge),
        "change": json.dumps(change),
    }


def resumption_vector(name, received, exporter):
    random = stream(f"resumption with {len(exporter)} bytes")
    token, nonce = random(32), random(32)
    proven = fields(label("resume"), name, nonce, exporter, received)
    challenge = {"type": "resume_challenge", "version": 1, "nonce": b64(nonce)}
    resume = {"type": "resume", "received": received, "proof": b64(hmac_sha256(token, proven))}
    return {
        "name": name,
        "token": token.hex(),
        "exporter": exporter.hex(),
        "proven": proven.hex(),
        "challenge": json.dumps(challenge),
        "resume": json.dumps(resume),
    }


def fake_salt_vector(name):
    """The salt of a challenge for a name without an account, computed from the name as it was typed."""
    secret = stream("fake salt")(32)
    salt = hmac_sha256(secret, fields(label("fake salt"), name))
    return {"name": name, "secret": secret.hex(), "salt": salt.hex()}


def safety_number_vector(one, other):
    def half(person):
        name, key = person
        digest = sha256(fields(label("safety number"), name, fingerprint(key)))
        fives = [digest[start : start + 5] for start in range(0, 30, 5)]
        return " ".join("%05d" % (int.from_bytes(five, "big") % 100_000) for five in fives)

    return {
        "names": [one[0], other[0]],
        "fingerprints": [fingerprint(one[1]).hex(), fingerprint(other[1]).hex()],
        "number": " ".join(sorted([half(one), half(other)])),
    }


# The fingerprint of the server's key.
SERVER = sha256(b"the server's key")


def member_list(names):
    """The number of members; for each, the length of the name and the name."""
    return bytes([len(names)]) + b"".join(bytes([len(name)]) + name.encode() for name in names)


def envelope_vector(what, kind, scope, text, sequence, **wrong):
    """`wrong` replaces the value of one step.

    The envelope is correctly signed, but must not open, unless only `again` or `members` is replaced.
    """
    random = stream(what)
    sender, recipient = "alice", "Bob-2"
    key, nonce, time = random(32), random(12), 1_800_000_000_123
    identity, session = fingerprint(IDENTITY), sha256(b"the sender's session key")
    again = wrong.get("again", b"")
    commitment = wrong.get("commitment", hmac_sha256(key, label("key commitment").encode()))
    to_one = scope != "broadcast"
    to_name, to_key = (recipient, fingerprint(SESSION)) if to_one else (b"", SERVER)
    header = fields(
        label("envelope header"),
        kind,
        scope,
        to_name,
        to_key,
        sender,
        identity,
        session,
        sequence,
        time,
        again,
        commitment,
    )
    in_room = (kind, scope) == ("message", "room")
    members = wrong.get("members", ["Bob-2", "alice"] if in_room else [])
    plaintext = wrong.get("list", member_list(members) if in_room else b"") + text
    padded = wrong.get("padded", pad(plaintext))
    ciphertext, tag = eax(key, nonce, wrong.get("counter", 0), wrong.get("associated", header), padded)
    oaep_label = wrong.get("oaep_label", sha256(header))
    block = oaep(SESSION, key[: wrong.get("key_length", 32)], oaep_label, random)
    wrapped = wrong.get("key_id", fingerprint(SESSION)[:8]) + block
    signed = fields(label("envelope signature"), header, nonce, sha256(ciphertext + tag))
    line = {
        "type": "encrypted_message",
        "from": sender,
        "kind": kind,
        "scope": scope,
        "recipient": recipient if to_one else None,
        "recipient_key": b64(to_key),
        "identity": b64(identity),
        "session": b64(session),
        "sequence": sequence,
        "time": time,
        "again": b64(again) if again else None,
        "commitment": b64(commitment),
        "nonce": b64(nonce),
        "ciphertext": b64(ciphertext),
        "tag": b64(tag),
        "signature": b64(sign(IDENTITY, signed, random)),
        "key": b64(wrapped),
    }
    return {
        "what": what,
        "members": members,
        "text": text.hex(),
        "plaintext": plaintext.hex(),
        "message_key": key.hex(),
        "commitment": commitment.hex(),
        "header": header.hex(),
        "oaep_label": oaep_label.hex(),
        "padded": padded.hex(),
        "signed": signed.hex(),
        "signed_sha256": sha256(signed).hex(),
        "line": json.dumps(line),
    }


def envelope_vectors():
    hello = "Grüße, Bob: see you at 7 — 👋".encode()
    return [
        envelope_vector("a private message", "message", "private", hello, 1),
        envelope_vector("a room message that fills its bucket", "message", "room", b"x" * 239, 2),
        envelope_vector(
            "a message in a room of three", "message", "room", hello, 3, members=["Bob-2", "alice", "carol"]
        ),
        envelope_vector("a broadcast one byte over its bucket", "message", "broadcast", b"y" * 253, 2**53),
        envelope_vector("an opened room, without text", "room_opened", "room", b"", 4),
        envelope_vector("a left room, without text", "room_left", "room", b"", 5),
        envelope_vector("a private message sent again", "message", "private", hello, 6, again=sha256(b"a header")),
    ]


def wrong_envelope_vectors():
    text = b"hello"
    length = (5).to_bytes(4, "big")
    replacements = {
        "a commitment to another key": {"commitment": sha256(b"another key")},
        "the label of another header": {"oaep_label": sha256(b"another header")},
        "no label": {"oaep_label": b""},
        "the id of another key": {"key_id": fingerprint(IDENTITY)[:8]},
        "the counter of a file's chunk": {"counter": 1},
        "other associated data": {"associated": b""},
        "a key of 31 bytes": {"key_length": 31},
        "padding that is not zero": {"padded": (length + text).ljust(255, b"\0") + b"\1"},
        "a bucket too many": {"padded": pad(text) + bytes(256)},
        "no padding": {"padded": length + text},
        "a length beyond the end": {"padded": (253).to_bytes(4, "big") + bytes(252)},
        "an endless length": {"padded": b"\xff" * 4 + bytes(252)},
        "no length": {"padded": b""},
    }
    return [
        envelope_vector(what, "message", "private", text, 1, **wrong) for what, wrong in replacements.items()
    ]


def wrong_list_vectors():
    many = ["Bob-2", "alice"] + [f"member-{n:02}" for n in range(31)]
    lists = {
        "a list without the recipient": member_list(["alice", "carol"]),
        "a list without the sender": member_list(["Bob-2", "carol"]),
        "a list that is not sorted": member_list(["alice", "Bob-2"]),
        "a list with a name twice": member_list(["Bob-2", "alice", "alice"]),
        "a list with names that differ only in case": member_list(["Bob-2", "Carol", "alice", "carol"]),
        "a list of 33 members": member_list(many),
        "a list with an invalid name": member_list(["Bob-2", "alice", "b b"]),
        "a list with an empty name": member_list(["", "Bob-2", "alice"]),
        "a list that ends too early": member_list(["Bob-2", "alice"])[:-1],
        "no list": b"",
    }
    return [envelope_vector(what, "message", "room", b"", 1, list=wrong) for what, wrong in lists.items()]


def chunk_vector(start, text):
    """The last chunk of a file, after a recipient has the chunks before `start`."""
    random = stream(f"chunk {start}")
    transfer, transfer_key, key, nonce = random(16), random(32), random(32), random(12)
    oaep_label = sha256(fields(label("chunk keys"), transfer, start))
    block = oaep(SESSION, key, oaep_label, random)
    associated = fields(label("chunk"), transfer, start)
    ciphertext, tag = eax(key, nonce, start, associated, text)
    authenticated = fields(label("chunk"), transfer, start, block, nonce, tag)
    mac = hmac_sha256(transfer_key, authenticated)
    payload = start.to_bytes(4, "big") + mac + nonce + tag + block + ciphertext
    return {
        "start": start,
        "size": start * 65536 + len(text),
        "transfer": transfer.hex(),
        "transfer_key": transfer_key.hex(),
        "chunk_key": key.hex(),
        "oaep_label": oaep_label.hex(),
        "associated": associated.hex(),
        "mac": mac.hex(),
        "text": text.hex(),
        "payload": payload.hex(),
    }


def main():
    header = b"authenticated, not encrypted"
    rfc = "RFC 4231, test case "
    vectors = {
        "identity": key_vector(IDENTITY),
        "session": key_vector(SESSION),
        "passwords": [
            password_vector("correct horse"),
            password_vector("Gr\u00fc\u00dfe"),
            password_vector("Gru\u0308\u00dfe\u00a01"),
            password_vector("\u212b\u3000\ufb01\uff21\u1e9b\u0323"),
            password_vector("\uac00\u1100\u1161 \U0001d160"),
        ],
        "pbkdf2": [
            pbkdf2_vector("password", b"salt", 1),
            pbkdf2_vector("correct horse", stream("salt")(32), 100_000),
            pbkdf2_vector("Grüße 🔑", stream("salt")(16), 600_000),
        ],
        "hmac": [
            hmac_vector(
                rfc + "1",
                b"\x0b" * 20,
                b"Hi There",
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            hmac_vector(
                rfc + "2",
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            hmac_vector("pycryptodome", stream("hmac")(32), b"\0" * 200),
        ],
        "eax": [
            aead_vector("eax, counter 0", 0, header, b"a message"),
            aead_vector("eax, counter 5", 5, header, bytes(range(256)) * 2),
            aead_vector("eax, highest counter", 2**32 - 1, b"", b"x"),
            aead_vector("eax, no text", 0, header, b""),
        ],
        "gcm": [aead_vector("gcm", None, header, bytes(range(100)))],
        "oaep": oaep_vectors(),
        "pss": pss_vectors(),
        "key_file": key_file_vector("alice", "correct horse", 100_000),
        "history": history_vector(
            "alice",
            "localhost:1315",
            [
                {"time": 1_800_000_000_000, "scope": "broadcast", "from": "alice", "text": "to everyone"},
                {"time": 1_800_000_000_001, "scope": "private", "from": "bob", "to": "alice", "text": "@alice é\n2"},
                {"time": 1_800_000_000_002, "scope": "room", "from": "alice", "to": "bob", "text": "x" * 300},
                {"time": 1_800_000_000_003, "scope": "room", "from": "bob", "to": "alice,carol", "text": "three"},
            ],
        ),
        "mailbox_file": mailbox_file_vector(
            "alice",
            "localhost:1315",
            1_800_000_000_000,
            [("bob", b"\x11" * 32, 1, b"\x21" * 32), ("Carol-3", b"\x12" * 32, 2**53 + 1, b"\x22" * 32)],
        ),
        "certificate": certificate_vector("alice", 1_800_000_000_000),
        "mailbox_certificate": certificate_vector("alice", 1_800_000_000_000, "mailbox"),
        "logins": [
            login_vector("alice", "correct horse", stream("exporter")(32), 1_800_000_000_000),
            login_vector("alice", "correct horse", b"", 1_800_000_000_000),
        ],
        "password_changes": [
            password_change_vector("alice", "correct horse", "battery staple", stream("exporter")(32)),
            password_change_vector("alice", "correct horse", "battery staple", b""),
        ],
        "resumptions": [
            resumption_vector("alice", 2**53 + 1, stream("exporter")(32)),
            resumption_vector("alice", 0, b""),
        ],
        "fake_salt": fake_salt_vector("NoBody"),
        "safety_number": safety_number_vector(("alice", IDENTITY), ("Bob-2", SESSION)),
        "envelopes": envelope_vectors(),
        "wrong_envelopes": wrong_envelope_vectors(),
        "wrong_lists": wrong_list_vectors(),
        "chunks": [chunk_vector(0, b"a small file"), chunk_vector(3, bytes(range(256)))],
    }
    json.dump(vectors, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
