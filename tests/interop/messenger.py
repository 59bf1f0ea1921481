#!/usr/bin/env python3
"""A second client for Secure Messenger, written from its specification alone.

Read it from top to bottom: each section names the heading of PROTOCOL.md that it implements, and
uses only the sections before it. `main()` at the end is a minimal program that reads and prints lines.

    encodings -> primitives -> keys -> envelope, chunks -> transport -> session -> client

The client is *single-threaded*: `poll()` reads one frame from the server and handles it,
`wait()` polls until a condition is true, and everything that concerns the user becomes an `Event`.
Sending never waits: a text becomes a `Job`, and `wait(lambda: job.done)` waits for its outcome.

Needs pycryptodome and pyOpenSSL (for `export_keying_material`, which `ssl` does not offer).
"""

import argparse, base64, collections, contextlib, fcntl, hashlib, hmac, itertools, json, os, re, secrets, select
import socket, struct, sys, time, unicodedata

try:
    from Cryptodome.Cipher import AES, PKCS1_OAEP            # Debian's name of pycryptodome
    from Cryptodome.Hash import SHA256
    from Cryptodome.PublicKey import RSA
    from Cryptodome.Signature import pss
except ImportError:
    from Crypto.Cipher import AES, PKCS1_OAEP
    from Crypto.Hash import SHA256
    from Crypto.PublicKey import RSA
    from Crypto.Signature import pss
from OpenSSL import SSL, crypto

VERSION = 1
LABEL = "secure-messenger/1 "                                # the `…` of every label
MINUTE, HOUR = 60_000, 3_600_000                             # milliseconds, like all times on the wire
LINE_BEFORE, LINE_AFTER, PACKET_MOST = 16 << 10, 1 << 20, 67_584
TEXT_MOST, CIPHERTEXT_MOST, TARGETS_MOST, NAMES_MOST, MEMBERS_MOST = 32 << 10, 34_048, 1_024, 64, 32
CHUNK, GROUP, WINDOW = 65_536, 5, 15                         # WINDOW: chunks in flight, complete groups
TRANSFERS_MOST, OFFERS_OF_ONE, OFFERS_MOST = 8, 16, 64       # 8 windows of 15 stay below 128 grants
ROUNDS, ROUNDS_LEAST, ROUNDS_MOST = 600_000, 100_000, 10_000_000
LOGINS, KEY_FILE_MOST = 8, 16 << 10                          # in a key file, and its bytes
CONVERSATIONS_MOST, WAITING_MOST = 64, 256                   # per user: remembered, and waiting for keys
KEPT_MOST = 32 << 20                                         # bytes kept until they are acknowledged
KEYS_MOST, TAKEN_MOST = 16, 20_000                           # in a mailbox file: keys, and records of messages
OLD_KEY = 60 * 24 * HOUR                                     # a mailbox key is kept at most this long
HELD_MOST = 192 << 10                                        # bytes of frames behind a message that waits for the mail
# delivered messages that can be sealed again when they are lost
LOSABLE_MOST = 256


class MessengerError(Exception):
    """An error: `code` is for programs, the text for users."""

    def __init__(self, code, text="", retry_after=None):
        super().__init__(f"{code}: {text}" if text else code)
        self.code, self.retry_after = code, retry_after


class Lost(MessengerError):
    """The connection has ended. `Client.resume()` may resume the session."""


class Refused(MessengerError):
    """Data from others has failed a check; `code` names the check."""


# ---------------------------------------------------------------- PROTOCOL: Encodings

def fields(label, *values):
    """Fields(label, f1, f2, …): each field after its length, numbers as 8 bytes."""
    out = b""
    for value in (LABEL + label, *values):
        if isinstance(value, int):
            value = struct.pack(">Q", value)
        elif isinstance(value, str):
            value = value.encode()
        value = value or b""
        out += struct.pack(">I", len(value)) + value
    return out


def base64_of(data):
    return base64.b64encode(data).decode()


def from_base64(text, length=None):
    """Strict: accepts only the canonical encoding."""
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        raise Refused("malformed", "not base64") from None
    if base64_of(data) != text or (length is not None and len(data) != length):
        raise Refused("malformed", "not base64 of the right length")
    return data


def now():
    return int(time.time() * 1000)


class Object(dict):
    """A JSON object. The last value of a repeated member counts, but each must be valid: `pairs` has them all."""

    def __init__(self, pairs):
        super().__init__(pairs)
        self.pairs = pairs


def parse(text):
    """The JSON of a line, of a text about a file, or of a key file: one object, nested at most 8 deep."""
    def float_of(digits):
        if abs(value := float(digits)) == float("inf"):              # PROTOCOL#json: too large for a double
            raise ValueError(digits)
        return value

    def integer_of(digits):
        value = float_of(digits)
        return value if digits == "-0" else int(digits)              # only digits make an integer

    def no_constant(name):
        raise ValueError(name)                                       # NaN and Infinity are not JSON

    def depth(value):
        inner = value if isinstance(value, list) else None
        if isinstance(value, Object):
            inner = [item for _, item in value.pairs]
        if isinstance(value, (str, Object)):                         # PROTOCOL#json: no half of a surrogate
            (value if isinstance(value, str) else "".join(name for name, _ in value.pairs)).encode()
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    try:
        value = json.loads(text.decode(), object_pairs_hook=Object, parse_int=integer_of, parse_float=float_of,
                           parse_constant=no_constant)
        # PROTOCOL#depth, PROTOCOL#commas
        if not isinstance(value, Object) or depth(value) > 8 or text.count(b",") > 16384:
            raise ValueError
        return value
    except (ValueError, RecursionError):
        raise Refused("malformed", "not a JSON object") from None


# A *form* is a function that returns what a JSON value represents, or raises `Refused`.

def integer(least=0, most=2**64 - 1):
    def read(value):
        if type(value) is not int or not least <= value <= most:     # neither bool nor float
            raise Refused("malformed", "not a number in its range")
        return value
    return read


def base64_form(length=None):
    return lambda value: from_base64(value, length)


def text_form(most=None):
    """A text of at most this number of bytes."""
    def read(value):
        if not isinstance(value, str) or most is not None and len(value.encode()) > most:
            raise Refused("malformed", "not a text in its bounds")
        return value
    return read


def flag(value):
    if type(value) is not bool:
        raise Refused("malformed", "not true or false")
    return value


def list_of(form):
    def read(value):
        if not isinstance(value, list):
            raise Refused("malformed", "not a list")
        return [form(item) for item in value]
    return read


def by_name(form):
    """An object whose members are names."""
    def read(value):
        if not isinstance(value, Object) or not all(is_name(name) for name, _ in value.pairs):
            raise Refused("malformed", "not an object of names")
        return {name: form(item) for name, item in value.pairs}
    return read


class Maybe:
    """A member that may be missing or null."""

    def __init__(self, form):
        self.form = form

    def __call__(self, value):
        return None if value is None else self.form(value)


def object_of(**forms):
    """An object with these members. Others are ignored. Each value of a repeated one must be valid."""
    def read(value):
        if not isinstance(value, dict):
            raise Refused("malformed", "not an object")
        found = {key: None for key, form in forms.items() if isinstance(form, Maybe)}
        for key, item in getattr(value, "pairs", value.items()):
            if key in forms:
                found[key] = forms[key](item)
        if len(found) < len(forms):
            raise Refused("malformed", "a member is missing")
        return found
    return read


def member(message, key, form):
    return object_of(**{key: form})(message)[key]


def number(message, key, least=0, most=2**64 - 1):
    return member(message, key, integer(least, most))


def binary(message, key, length=None):
    return member(message, key, base64_form(length))


def word(message, key, most=None):
    return member(message, key, text_form(most))


def names(message, key):
    return member(message, key, list_of(name_form))


# ---------------------------------------------------------------- PROTOCOL: Names

def is_name(name):
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", name) is not None


def name_form(value):
    if not is_name(value):
        raise Refused("malformed", "not a name")
    return value


RESERVED = ("all", "everyone", "me", "operator", "private", "room", "server", "you")


def is_reserved(name):
    """Whether a name looks like a word of the interface, so that it cannot be registered and is shown with an `@`."""
    def look(text):
        return text.translate(str.maketrans("01i3457", "olleast")).replace("rn", "m").replace("vv", "w")

    plain = name.lower().replace("_", "").replace("-", "")
    looks = {look(plain), look(plain.strip("0123456789"))}
    # An `i` does not look like the `l` of `all`; a capital `I` does, but only beside small letters.
    no_l = "i" in name or "I" in name and name == name.upper()
    return any(look(reserved) in looks and not (reserved == "all" and no_l) for reserved in RESERVED)


# ---------------------------------------------------------------- PROTOCOL: the members of each message

TIME = NUMBER = integer()
SMALL = integer(most=2**32 - 1)                                      # versions, rounds, and the count of a grant
DER = BINARY = base64_form()                                         # whether it is a key is checked later
SIGNATURE, WRAPPED, HASH, ID = base64_form(256), base64_form(264), base64_form(32), base64_form(16)
TEXT, WORD, NAMES = text_form(), text_form(32), list_of(name_form)
ENVELOPE = {"from": name_form, "kind": WORD, "scope": WORD, "recipient": Maybe(name_form), "recipient_key": Maybe(HASH),
            "identity": HASH, "session": HASH, "sequence": NUMBER, "time": TIME, "again": Maybe(HASH),
            "commitment": HASH, "nonce": base64_form(12), "ciphertext": BINARY, "tag": base64_form(16),
            "signature": SIGNATURE}
DELIVERED = {**ENVELOPE, "key": WRAPPED}
PERSON = {"name": name_form, "identity": DER, "session_key": Maybe(DER), "mailbox_key": Maybe(DER),
          "created": Maybe(TIME), "certificate": Maybe(SIGNATURE)}
GRANT, ACK = {"peer": name_form, "transfer": ID, "count": SMALL}, {"received": NUMBER}
EITHER = {"ack": ACK, "grant": GRANT, "ping": {}, "pong": {}}
FROM_CLIENT = {
    **EITHER, "logout": {},
    "register": {"version": SMALL, "username": name_form, "salt": HASH, "rounds": SMALL, "password_key": HASH,
                 "public_key": DER},
    "login_request": {"version": SMALL, "username": name_form, "public_key": DER},
    "challenge_response": {"response": HASH, "session_key": DER, "created": TIME, "certificate": SIGNATURE,
                           "proof": SIGNATURE},
    "password_change": {"response": HASH, "salt": HASH, "rounds": SMALL, "password_key": HASH, "proof": SIGNATURE},
    "resume_request": {"version": SMALL, "username": name_form},
    "resume": {"received": NUMBER, "proof": HASH},
    "renew": {"session_key": DER, "created": TIME, "certificate": SIGNATURE},
    "keys_request": {"names": NAMES},
    "encrypted_send": {"id": NUMBER, "targets": NAMES, "keys": by_name(WRAPPED), **ENVELOPE},
    "mailbox": {"mailbox_key": DER, "created": TIME, "certificate": SIGNATURE},
    "mail_request": {"keys": list_of(HASH), "after": NUMBER},
    "mail_done": {"numbers": list_of(NUMBER)},
}
FROM_SERVER = {
    **EITHER, "registered": {}, "password_changed": {}, "mailbox_set": {},
    "challenge": {"version": SMALL, "nonce": HASH, "salt": HASH, "rounds": SMALL},
    "session": {"token": HASH, "expires": TIME, "newest": TIME},
    "resume_challenge": {"version": SMALL, "nonce": HASH},
    "resumed": {"received": NUMBER},
    "presence": {"full": flag, "more": flag, "joined": NAMES, "left": NAMES},
    "keys": {"keys": list_of(object_of(**PERSON)), "unknown": NAMES},
    "encrypted_message": DELIVERED,
    "sent": {"id": NUMBER, **dict.fromkeys(("delivered", "kept", "offline", "stale", "busy"), NAMES)},
    "lost": {"id": NUMBER, "name": name_form},
    "mail": {"mail": list_of(object_of(number=NUMBER, message=object_of(**DELIVERED))), "more": flag, "other": NUMBER,
             "until": TIME},
    "refused": {"peer": name_form, "transfer": ID},
    "error": {"code": TEXT, "message": TEXT, "id": Maybe(NUMBER), "retry_after": Maybe(NUMBER), "newest": Maybe(TIME)},
}
VERSIONED = ("register", "login_request", "resume_request", "challenge", "resume_challenge")


def decode(line, forms):
    """The type of a line, its members, and the object as it was sent. The first `type` counts."""
    message = parse(line)
    kind = next((value for key, value in message.pairs if key == "type"), None)
    if not isinstance(kind, str):
        raise Refused("malformed", "no type")
    message["type"] = kind
    if kind in VERSIONED:                                            # another version may have other members
        try:
            version = number(message, "version", most=2**32 - 1)
        except Refused:
            version = VERSION                                        # its invalid form is refused below
        if version != VERSION:
            raise Refused("unsupported_version", str(version))
    if kind not in forms:
        raise Refused("unknown_type")
    return kind, object_of(**forms[kind])(message), message


def parse_packet(body):
    """The user, the transfer and the payload of a packet."""
    length = body[0] if body else 0
    name, rest = body[1:1 + length].decode("ascii", "replace"), body[1 + length:]
    transfer, payload = rest[:16], rest[16:]
    if not is_name(name) or len(transfer) != 16:
        raise Refused("malformed", "an incomplete packet")
    return name, transfer, payload


# ---------------------------------------------------------------- PROTOCOL: Encodings (primitives)

def hmac256(key, message):
    return hmac.new(key, message, hashlib.sha256).digest()


def sha256(data):
    return hashlib.sha256(data).digest()


def prepared(typed):
    """A password prepared as in RFC 8265, so that all keyboards produce the same bytes."""
    return unicodedata.normalize("NFC", "".join(" " if unicodedata.category(c) == "Zs" else c for c in typed))


def password_forms(typed):
    """The prepared password, then the forms that older clients made of the same keys."""
    return list(dict.fromkeys((prepared(typed), typed, unicodedata.normalize("NFD", typed))))


def password_key(password, salt, rounds, least=ROUNDS_LEAST):
    if not least <= rounds <= ROUNDS_MOST:
        raise Refused("bad_rounds", f"{rounds} rounds")
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)


def seal(key, nonce, associated, text, mode=AES.MODE_EAX):
    """EAX[key](…) with a 16-byte nonce, or GCM with 12 bytes. Returns (ciphertext, tag)."""
    cipher = AES.new(key, mode, nonce=nonce, mac_len=16)
    cipher.update(associated)
    return cipher.encrypt_and_digest(text)


def unseal(key, nonce, associated, ciphertext, tag, mode=AES.MODE_EAX):
    cipher = AES.new(key, mode, nonce=nonce, mac_len=16)
    cipher.update(associated)
    try:
        return cipher.decrypt_and_verify(ciphertext, tag)
    except ValueError:
        raise Refused("decrypt", "altered, or made for another key") from None


class PublicKey:
    """An RSA-2048 key with e = 65537 as canonical SubjectPublicKeyInfo; refuses anything else."""

    HEAD = bytes.fromhex("30820122300d06092a864886f70d01010105000382010f003082010a0282010100")
    TAIL = bytes.fromhex("0203010001")                               # e = 65537

    def __init__(self, der):
        modulus = der[len(self.HEAD):-len(self.TAIL)]
        if der != self.HEAD + modulus + self.TAIL or len(modulus) != 256 or modulus[0] < 0x80 or modulus[-1] % 2 == 0:
            raise Refused("bad_key", "not a canonical RSA-2048 key")
        self._key = RSA.construct((int.from_bytes(modulus, "big"), 65537), consistency_check=False)
        self.der, self.fingerprint = der, sha256(der)
        self.short = self.fingerprint[:8]

    def verify(self, message, signature):
        try:
            pss.new(self._key, salt_bytes=32).verify(SHA256.new(message), signature)
            return True
        except ValueError:
            return False

    def wrap(self, secret, label):
        return PKCS1_OAEP.new(self._key, SHA256, label=label).encrypt(secret)


class PrivateKey:
    def __init__(self, der=None):
        # OpenSSL generates keys much faster than pycryptodome
        if der is None:
            made = crypto.PKey()
            made.generate_key(crypto.TYPE_RSA, 2048)
            parts = made.to_cryptography_key().private_numbers()
            self._key = RSA.construct((parts.public_numbers.n, 65537, parts.d, parts.p, parts.q),
                                      consistency_check=False)
        else:
            try:
                self._key = RSA.import_key(der)
            except (ValueError, IndexError, TypeError):
                raise Refused("bad_key", "not an RSA key") from None
            if not self._key.has_private() or self.pkcs8() != der:
                raise Refused("bad_key", "not a canonical private key")
        self.public = PublicKey(self._key.public_key().export_key("DER"))

    def pkcs8(self):
        return self._key.export_key("DER", pkcs=8)

    def sign(self, message):
        return pss.new(self._key, salt_bytes=32).sign(SHA256.new(message))

    def unwrap(self, block, label, length):
        try:
            secret = PKCS1_OAEP.new(self._key, SHA256, label=label).decrypt(block)
        except (ValueError, TypeError):
            secret = b""
        if len(secret) != length:
            raise Refused("unwrap", "the wrapped key cannot be decrypted")
        return secret


# ---------------------------------------------------------------- PROTOCOL: Keys

LIFETIME = {"session": 26 * HOUR, "mailbox": 30 * 24 * HOUR}         # how long a certificate of each kind is valid


def certificate_text(name, key, created, kind="session"):
    return fields(kind + " certificate", name, key.der, created)


def check_certificate(identity, name, key, created, certificate, at=None, kind="session"):
    """Checks a certificate: signed by the identity key, valid from 2 hours before `created` to its lifetime after."""
    at = now() if at is None else at
    if not created - 2 * HOUR <= at <= created + LIFETIME[kind]:
        raise Refused("certificate", "not valid now")
    if not identity.verify(certificate_text(name, key, created, kind), certificate):
        raise Refused("certificate", "invalid signature")


# ---------------------------------------------------------------- PROTOCOL: Key file

def write_key_file(path, name, password, identity, rounds=ROUNDS, **more):
    if len(password) < 6:
        raise MessengerError("bad_password", "at least 6 characters")
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    ciphertext, tag = seal(password_key(password, salt, rounds), nonce, fields("key file", name), identity.pkcs8(),
                           AES.MODE_GCM)
    text = json.dumps({"version": 1, "kdf": "PBKDF2-HMAC-SHA256", "rounds": rounds, "salt": base64_of(salt),
                       "cipher": "AES-256-GCM", "nonce": base64_of(nonce), "ciphertext": base64_of(ciphertext),
                       "tag": base64_of(tag), **more})
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path)


def parse_key_file(text):
    """The object of a key file, without the bytes that editors and crashes leave around it."""
    if len(text) > KEY_FILE_MOST:
        raise Refused("malformed", "too long")
    return parse(text.rstrip(b"\0").removeprefix("\ufeff".encode()))


def key_file_logins(text):
    """The (salt, rounds) that a challenge may contain, the last used first; None if the file has no list."""
    file = parse_key_file(text)
    if "logins" not in file:
        return None
    logins = member(file, "logins", list_of(object_of(salt=HASH, rounds=SMALL)))
    logins = [(login["salt"], login["rounds"]) for login in logins]
    if not 1 <= len(logins) <= LOGINS or len({salt for salt, _ in logins}) < len(logins) \
            or not all(ROUNDS_LEAST <= rounds <= ROUNDS_MOST for _, rounds in logins):
        raise Refused("key_file", "logins")
    return logins


def as_members(logins):
    return [{"salt": base64_of(salt), "rounds": rounds} for salt, rounds in logins]


def keep_logins(path, logins):
    with open(path) as file:
        text = json.dumps({**json.load(file), "logins": as_members(logins)}) + "\n"
    with os.fdopen(os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".tmp", path)
    sync_folder(path)


def sync_folder(path):
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


KEY_FILE = object_of(version=SMALL, kdf=TEXT, rounds=SMALL, salt=ID, cipher=TEXT, nonce=base64_form(12),
                     ciphertext=BINARY, tag=ID)


def open_key_file(text, name, typed):
    """The identity, and the form of the password that decrypts it, which the account has too."""
    file = KEY_FILE(parse_key_file(text))
    if (file["version"], file["kdf"], file["cipher"]) != (1, "PBKDF2-HMAC-SHA256", "AES-256-GCM"):
        raise Refused("key_file", "unknown version")
    key_file_logins(text)                                            # an invalid list makes the file invalid
    for password in password_forms(typed):
        key = password_key(password, file["salt"], file["rounds"])
        try:
            identity = unseal(key, file["nonce"], fields("key file", name), file["ciphertext"], file["tag"],
                              AES.MODE_GCM)
        except Refused as error:
            refused = error
        else:
            return PrivateKey(identity), password
    raise refused


# ---------------------------------------------------------------- PROTOCOL: Safety number

def safety_number(*people):
    """The safety number of two (name, identity fingerprint): twelve groups of five digits, the same for both users."""
    halves = []
    for name, fingerprint in people:
        digest = sha256(fields("safety number", name, fingerprint))
        halves.append(" ".join(f"{int.from_bytes(digest[i:i + 5], 'big') % 100_000:05}" for i in range(0, 30, 5)))
    return " ".join(sorted(halves))


# ---------------------------------------------------------------- PROTOCOL: Envelope

FILE_KINDS = ("file_offer", "file_accept", "file_reject", "file_cancel", "file_done")
SCOPES_OF = {"message": ("broadcast", "private", "room"), "room_opened": ("room",), "room_left": ("room",),
             **dict.fromkeys(FILE_KINDS, ("private",))}


def pad(text):
    """The text after its length, padded with zeros to the next multiple of 256 bytes."""
    data = struct.pack(">I", len(text)) + text
    return data + bytes(-len(data) % 256)


def unpad(padded):
    length = struct.unpack(">I", padded[:4])[0] if len(padded) >= 4 else CIPHERTEXT_MOST
    if length > TEXT_MOST + 1 + 33 * MEMBERS_MOST or pad(padded[4:4 + length]) != padded:
        raise Refused("padding")
    return padded[4:4 + length]


def member_list(names):
    """The list before the text of a room message: the members, in the order of their bytes."""
    return bytes([len(names)]) + b"".join(bytes([len(name)]) + name.encode() for name in sorted(names))


def parse_members(plaintext, sender, recipient, known):
    """The members of a room, and the text after them."""
    names, rest = [], plaintext[1:]
    for _ in range(plaintext[0] if plaintext else 0):
        length = rest[0] if rest else 0
        names.append(rest[1:1 + length].decode("latin-1"))
        rest = rest[1 + length:]
    if not all(map(is_name, names)) or not 2 <= len(names) <= MEMBERS_MOST \
            or plaintext[:len(plaintext) - len(rest)] != member_list(names):
        raise Refused("members", "not a list of names in order")
    if not {sender, recipient} <= set(names) or len({name.lower() for name in names}) < len(names):
        raise Refused("members", "it lacks the sender or the recipient, or has a name twice")
    if any(name.lower() == other.lower() and name != other for name in names for other in known):
        raise Refused("members", "a name that differs from a known one only in case")
    return names, rest


class Envelope:
    """The signed part of a message. The wrapped message key, `key`, differs for each recipient and is not signed."""

    MEMBERS = ("sender", *(member for member in ENVELOPE if member != "from"))

    def __init__(self, **members):
        self.__dict__.update(dict.fromkeys(self.MEMBERS), **members)

    def header(self):
        return fields("envelope header", self.kind, self.scope, self.recipient, self.recipient_key, self.sender,
                      self.identity, self.session, self.sequence, self.time, self.again, self.commitment)

    def id(self):
        return self.again or sha256(self.header())

    def signed(self):
        return fields("envelope signature", self.header(), self.nonce, sha256(self.ciphertext + self.tag))

    def conversation(self):
        """What a sequence number counts in: all broadcasts of a session key, or its messages to one key."""
        return self.session, self.recipient and self.recipient_key

    @classmethod
    def seal(cls, identity, text, message_key, **members):
        """Seals everything except the wrapped keys, which `wrap` makes."""
        self = cls(identity=identity.public.fingerprint,
                   commitment=hmac256(message_key, (LABEL + "key commitment").encode()), nonce=secrets.token_bytes(12),
                   **members)
        self.ciphertext, self.tag = seal(message_key, self.nonce + bytes(4), self.header(), pad(text))
        self.signature = identity.sign(self.signed())
        return self

    def wrap(self, session, message_key):
        return session.short + session.wrap(message_key, sha256(self.header()))

    def open(self, session, wrapped):
        """Step 6 of Receiving: unwrap, check the commitment, decrypt, check the padding."""
        if wrapped[:8] != session.public.short:
            raise Refused("key_id", "wrapped for another key")
        message_key = session.unwrap(wrapped[8:], sha256(self.header()), 32)
        if not hmac.compare_digest(hmac256(message_key, (LABEL + "key commitment").encode()), self.commitment):
            raise Refused("commitment")
        return unpad(unseal(message_key, self.nonce + bytes(4), self.header(), self.ciphertext, self.tag))

    def wire(self):
        """The members on a line; absent ones are omitted."""
        out = {}
        for key in self.MEMBERS:
            value = getattr(self, key)
            if value is not None:
                out["from" if key == "sender" else key] = base64_of(value) if isinstance(value, bytes) else value
        return out

    @classmethod
    def parse(cls, message):
        """Step 1 of Receiving: the fields are consistent, and the kind and scope are known."""
        members = object_of(**ENVELOPE)(message)
        self = cls(sender=members.pop("from"), **members)
        scopes = {scope for known in SCOPES_OF.values() for scope in known}
        # from a later version: not shown
        self.later = self.kind not in SCOPES_OF or self.scope not in scopes
        if self.scope in scopes and self.kind in SCOPES_OF and self.scope not in SCOPES_OF[self.kind]:
            raise Refused("kind", f"{self.kind} with scope {self.scope}")
        if self.scope in scopes and (self.recipient is None) != (self.scope == "broadcast"):
            raise Refused("recipient", "a broadcast with a recipient, or another scope without one")
        if self.recipient is not None and self.recipient_key is None:
            raise Refused("recipient", "without a key")
        if len(self.ciphertext) > CIPHERTEXT_MOST:
            raise Refused("malformed", "ciphertext too long")
        return self


# ---------------------------------------------------------------- PROTOCOL: Mailbox file

def name_hash(name, server):
    """The name of an account's file for one server."""
    return f"{name}_{sha256(server.encode())[:8].hex()}"


class Mailbox:
    """The private mailbox keys of an account on one machine, and records of their mail: a chain of sealed lines."""

    def __init__(self, path, identity, name, server):
        self.path, self._of = path, (name, server)
        self._secret = hmac256(identity.pkcs8(), fields("mailbox file key", name, server))
        # fingerprint: (key, created); place: id; (sender, id)
        self.keys, self.taken, self.shown = {}, {}, set()
        self._file = open(path, "a+b", opener=lambda path, flags: os.open(path, flags, 0o600))
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise MessengerError("mailbox_in_use", "another client holds the lock of the mailbox file") from None
        sync_folder(path)
        self._file.seek(0)
        self._index, self._tag = 0, b""
        for line in self._file.read().splitlines():
            sealed = parse(line)
            self._index, before, self._tag = self._index + 1, self._tag, binary(sealed, "tag", 16)
            padded = unseal(self._secret, binary(sealed, "nonce", 12), self._place(self._index - 1, before),
                            binary(sealed, "data"), self._tag, AES.MODE_GCM)
            self._read(unpad(padded))

    def _place(self, index, before):
        return fields("mailbox file", *self._of, index, before)

    def _read(self, record):
        kind, rest = record[0], record[1:]
        if kind == 1:
            key = PrivateKey(rest[8:])
            self.keys[key.public.fingerprint] = key, int.from_bytes(rest[:8], "big")
        elif kind == 2:
            key, session, sequence, text, sender = struct.unpack(f">32s32sQ32s{len(rest) - 104}s", rest)
            self.taken[sender.decode(), session, key, sequence] = text
        elif kind == 3:
            sender = [sender for (sender, *_), text in self.taken.items() if text == rest][-1]
            self.shown.add((sender, rest))
        else:
            raise Refused("mailbox_file", "an unknown record")

    def close(self):
        self._file.close()

    def _write(self, record):
        nonce = secrets.token_bytes(12)
        data, tag = seal(self._secret, nonce, self._place(self._index, self._tag), pad(record), AES.MODE_GCM)
        self._file.write(json.dumps({"nonce": base64_of(nonce), "data": base64_of(data),
                                     "tag": base64_of(tag)}).encode() + b"\n")
        self._index, self._tag = self._index + 1, tag

    def _add(self, *records):
        for record in records:
            self._write(record)
            self._read(record)
        self._file.flush()
        os.fsync(self._file.fileno())

    def add(self, key, created):
        self._add(struct.pack(">BQ", 1, created) + key.pkcs8())

    @staticmethod
    def _record(place, text):
        sender, session, key, sequence = place
        return b"\2" + key + session + struct.pack(">Q", sequence) + text + sender.encode()

    @staticmethod
    def _place_of(envelope):
        return envelope.sender, envelope.session, envelope.recipient_key, envelope.sequence

    def take(self, envelope):
        self._add(self._record(self._place_of(envelope), envelope.id()))

    def show(self, envelope):
        self._add(b"\3" + envelope.id())

    def state(self, envelope):
        """The record of this text (None, "taken" or "shown"), and whether this same envelope arrived before."""
        text = envelope.sender, envelope.id()
        taken = any(text == (place[0], id) for place, id in self.taken.items())
        same = self.taken.get(self._place_of(envelope)) == envelope.id()
        return "shown" if text in self.shown else "taken" if taken else None, same

    def check_new(self, envelope):
        """Step 5 of Receiving, for a conversation that lasts as long as its mailbox key."""
        *conversation, sequence = self._place_of(envelope)
        last = max((last for (*other, last) in self.taken if other == conversation), default=0)
        if sequence <= last:
            raise Refused("sequence", "a repetition, or too late")
        if len(self.taken) >= TAKEN_MOST:
            raise Refused("mailbox_full", "too many messages for the mailbox keys")
        return sequence - last - 1

    def erase(self, fingerprints):
        """Erases keys and the records of their mail, by writing a new file."""
        keys, taken, shown = self.keys, self.taken, self.shown
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.path + ".tmp")
        self._file = open(self.path + ".tmp", "a+b", opener=lambda path, flags: os.open(path, flags, 0o600))
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.keys, self.taken, self.shown, self._index, self._tag = {}, {}, set(), 0, b""
        self._add(*(struct.pack(">BQ", 1, created) + key.pkcs8()
                    for at, (key, created) in keys.items() if at not in fingerprints))
        for place, text in taken.items():
            if place[2] not in fingerprints:
                self._add(self._record(place, text), *([b"\3" + text] if (place[0], text) in shown else []))
        os.replace(self.path + ".tmp", self.path)
        sync_folder(self.path)


# ---------------------------------------------------------------- PROTOCOL: Chunks

def chunk_blocks(index, start):
    return (index - start) % GROUP == 0


def chunk_mac(transfer_key, transfer, index, block, nonce, tag):
    return hmac256(transfer_key, fields("chunk", transfer, index, block, nonce, tag))


def seal_chunk(transfer_key, transfer, index, chunk_key, block, data):
    """The payload of one packet; `block` is empty except for the first chunk of a group."""
    nonce = secrets.token_bytes(12)
    ciphertext, tag = seal(chunk_key, nonce + struct.pack(">I", index), fields("chunk", transfer, index), data)
    mac = chunk_mac(transfer_key, transfer, index, block, nonce, tag)
    return struct.pack(">I", index) + mac + nonce + tag + block + ciphertext


def wrap_chunk_keys(session, transfer, index, keys):
    return session.wrap(b"".join(keys), sha256(fields("chunk keys", transfer, index)))


def parse_chunk(payload, transfer_key, transfer, index, start, length):
    """Checks a chunk's sender, position and length. Returns (block, nonce, tag, ciphertext)."""
    block_length = 256 if chunk_blocks(index, start) else 0
    if len(payload) != 64 + block_length + length or payload[:4] != struct.pack(">I", index):
        raise Refused("chunk", "out of order, or wrong length")
    mac, nonce, tag = payload[4:36], payload[36:48], payload[48:64]
    block, ciphertext = payload[64:64 + block_length], payload[64 + block_length:]
    if not hmac.compare_digest(chunk_mac(transfer_key, transfer, index, block, nonce, tag), mac):
        raise Refused("chunk", "altered")
    return block, nonce, tag, ciphertext


def open_chunks(session, transfer, first, group):
    """Decrypts a group of parsed chunks, which `parse_chunk` has checked."""
    keys = session.unwrap(group[0][0], sha256(fields("chunk keys", transfer, first)), 32 * len(group))
    return b"".join(unseal(keys[32 * i:32 * i + 32], nonce + struct.pack(">I", first + i),
                           fields("chunk", transfer, first + i), ciphertext, tag)
                    for i, (_, nonce, tag, ciphertext) in enumerate(group))


# ---------------------------------------------------------------- PROTOCOL: File transfer (its messages)

FILE_MEMBERS = {"file_offer": {"transfer": ID, "key": HASH, "name": TEXT, "size": NUMBER, "sha256": HASH,
                               "chunks": NUMBER},
                "file_accept": {"transfer": ID, "start": NUMBER, "session": HASH},
                **dict.fromkeys(("file_reject", "file_cancel", "file_done"), {"transfer": ID, "reason": Maybe(TEXT)})}


def file_members(kind, text):
    content = object_of(**FILE_MEMBERS[kind])(parse(text))
    if kind == "file_offer" and not content["chunks"] == -(-content["size"] // CHUNK) < 2**32:
        raise Refused("text", "size and chunks disagree, or the file is too large")
    return content


# ---------------------------------------------------------------- PROTOCOL: Received files

def plain_name(name):
    """A harmless file name made from a name that another user chose."""
    name = re.split(r"[/\\]", name)[-1]
    name = "".join("_" if c in ':*?"<>|' or not c.isprintable() else c for c in name).strip(". \u00a0")
    stem, extension = os.path.splitext(name)
    if re.fullmatch(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])", name.split(".")[0].strip()):
        stem = "_" + stem
    if extension.lower() == ".part":
        extension = ".part_"
    while len((stem + extension).encode()) > 180:
        stem, extension = (stem[:-1], extension) if stem else ("", extension[:-1])
    return stem + extension or "file"


# ---------------------------------------------------------------- PROTOCOL: Lines (the connection)

class Transport:
    """TLS to the server whose fingerprint is known, and frames: ("line", bytes) and ("packet", bytes).

    The specification allows TLS 1.2 with extended master secret. pyOpenSSL cannot tell whether that was used,
    and every server speaks 1.3, so this client insists on it.
    """

    def __init__(self, host, port, fingerprint, timeout=10):
        self.in_session, self._buffer, self._seen = False, bytearray(), 0
        try:
            self._socket = socket.create_connection((host, port), timeout)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setblocking(False)
        except OSError as error:
            raise Lost("connect", str(error)) from None
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        self._tls = SSL.Connection(context, self._socket)
        self._tls.set_connect_state()
        self._patiently(self._tls.do_handshake, time.monotonic() + timeout)
        # Names, dates and authorities do not matter, only the key, which the handshake has proved to be the server's.
        spki = crypto.dump_publickey(crypto.FILETYPE_ASN1, self._tls.get_peer_certificate().get_pubkey())
        self.server_key = sha256(spki)
        if "SHA256:" + base64_of(self.server_key).rstrip("=") != fingerprint:
            self.abort()
            raise MessengerError("server_key", "the server has another key than the expected one")
        self.exporter = self._tls.export_keying_material(b"EXPORTER-Channel-Binding", 32)

    def _patiently(self, act, deadline, reading=False):
        """Repeats an operation that would block, until it succeeds (its result) or the deadline passes (None)."""
        while True:
            try:
                return act()
            except (SSL.WantReadError, SSL.WantWriteError) as wants:
                writing = isinstance(wants, SSL.WantWriteError)
                left = deadline - time.monotonic()
                ready = select.select([self._socket], [self._socket] if writing else [], [], max(left, 0))
                if ready == ([], [], []):
                    if reading:
                        return None
                    raise Lost("timed_out") from None
                if writing and ready[0]:
                    self._read()                             # otherwise both sides could wait for the other to read
            except (SSL.Error, OSError, ValueError) as error:
                raise Lost("closed", str(error)) from None

    def _read(self):
        try:
            self._buffer += self._tls.recv(1 << 16)
            return True
        except SSL.WantReadError:
            return False
        except (SSL.Error, OSError):
            return False                                     # the next read reports it

    def send(self, data):
        view = memoryview(data)
        while view:
            view = view[self._patiently(lambda: self._tls.send(view[:1 << 14]), time.monotonic() + 30):]

    def receive(self, timeout):
        deadline = time.monotonic() + timeout
        while (frame := self._frame()) is None:
            data = self._patiently(lambda: self._tls.recv(1 << 16), deadline, reading=True)
            if data is None:
                return None
            self._buffer += data
        return frame

    def _frame(self):
        if self.in_session and self._buffer[:1] == b"\0":
            if len(self._buffer) < 5:
                return None
            end = 5 + struct.unpack(">I", self._buffer[1:5])[0]
            if end > 5 + PACKET_MOST:
                raise Lost("line_too_long", "a packet from the server")
            return self._cut("packet", 5, end, end) if len(self._buffer) >= end else None
        end = self._buffer.find(b"\n", self._seen)
        if (len(self._buffer) if end < 0 else end) > (LINE_AFTER if self.in_session else LINE_BEFORE):
            raise Lost("line_too_long", "a line from the server")
        self._seen = len(self._buffer)
        return self._cut("line", 0, end, end + 1) if end >= 0 else None

    def _cut(self, kind, start, end, after):
        body = bytes(self._buffer[start:end])
        del self._buffer[:after]
        self._seen = 0
        return kind, body

    def fileno(self):
        return self._socket.fileno()

    def abort(self):
        """Drops the TCP connection without a farewell."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


# ---------------------------------------------------------------- PROTOCOL: Resuming (sent and counted frames)

class Frames:
    """Counts the frames of a session in both directions, and keeps sent frames until they are acknowledged."""

    UNCOUNTED = ("ack", "ping", "pong", "resumed")

    def __init__(self):
        self.kept, self.kept_bytes, self.confirmed = collections.deque(), 0, 0
        self.received, self.told, self.untold_bytes = 0, 0, 0
        # whether a private or room message is not acknowledged yet
        self.direct, self.told_at = False, 0
        # bytes received; frames and bytes before the first held one
        self.total, self.held = 0, None

    def sent(self, data):
        if self.kept_bytes + len(data) > KEPT_MOST:
            raise MessengerError("too_much", "the server does not acknowledge frames")
        self.kept.append(data)
        self.kept_bytes += len(data)

    def confirm(self, received):
        if not self.confirmed <= received <= self.confirmed + len(self.kept):
            raise Lost("malformed", "the server acknowledges frames that were not sent")
        while self.confirmed < received:
            self.kept_bytes -= len(self.kept.popleft())
            self.confirmed += 1

    def took(self, size):
        self.received, self.total, self.untold_bytes = self.received + 1, self.total + size, self.untold_bytes + size

    def patience(self):
        """Seconds until a private or room message must be acknowledged."""
        return max(0, self.told_at + 1 - time.monotonic()) if self.direct else float("inf")

    def due(self):
        return self.patience() == 0 or self._done() - self.told >= 32 or self.untold_bytes >= 128 << 10

    def _done(self):
        return max(self.told, self.held[0]) if self.held else self.received

    def tell(self):
        self.told, self.untold_bytes, self.direct, self.told_at = self._done(), 0, False, time.monotonic()
        return self.told

    def hold(self, size):
        """Holds the frame received last: it and later ones are not acknowledged until `held` is None."""
        self.held = self.held or (self.received - 1, self.total - size)


# ---------------------------------------------------------------- people, events, jobs, transfers

class Event:
    """Something to report to the user: `kind` and its members."""

    def __init__(self, kind, **members):
        self.kind = kind
        self.__dict__.update(members)

    def __repr__(self):
        return f"Event({', '.join(f'{k}={v!r:.80}' for k, v in self.__dict__.items())})"


class Person:
    """Everything known about another user."""

    def __init__(self, name):
        self.name, self.remembered, self.changed = name, None, None  # fingerprints: trusted, seen instead
        # PublicKey; `session` is the key that messages are sealed for
        self.identity = self.session = None
        self.key_kind = "session"                                    # or "mailbox": the kind of that key
        self.created, self.asked = 0, False
        # kind of key: created and key of the newest certificate
        self.newest = {}
        # envelopes that wait for keys, with their keys and numbers as mail
        self.waiting = []
        self.ids = collections.deque(maxlen=1024)                    # ids of messages that were shown
        self.stale = None                                            # the key that the server last called stale
        self.sequences = collections.Counter()                       # conversation: the last number sent
        # conversation: (last number, time); latest forgotten time
        self.seen, self.floor = collections.OrderedDict(), 0

    def check_new(self, envelope):
        """Step 5 of Receiving: refuses repetitions, and returns how many numbers are missing."""
        last, _ = self.seen.get(envelope.conversation(), (None, 0))
        if last is None:
            if envelope.time <= self.floor:
                raise Refused("sequence", "part of a forgotten conversation")
            return envelope.sequence - 1 if envelope.recipient else 0
        if envelope.sequence <= last:
            raise Refused("sequence", "a repetition, or too late")
        return envelope.sequence - last - 1

    def use(self, envelope):
        self.seen[envelope.conversation()] = (envelope.sequence, envelope.time)
        self.seen.move_to_end(envelope.conversation())
        if len(self.seen) > CONVERSATIONS_MOST:
            self.floor = max(self.floor, self.seen.popitem(last=False)[1][1])


class Job:
    """A text that is being sent.

    `outcome` has for each target: delivered, kept, offline, busy, stale, an error code, or broken (the server reports
    an outcome that is impossible for the key, so the message may not have arrived)."""

    def __init__(self, targets, text, kind, scope, members=()):
        self.targets, self.text, self.kind, self.scope = list(targets), text, kind, scope
        self.plaintext = (member_list(members) if members else b"") + text.encode()
        self.outcome, self.tries, self.envelope, self.message_key = {}, 0, None, None
        self.time, self.id, self.order = now(), None, 0
        self.waits = kind == "message" and scope != "broadcast"      # whether it can wait for an absent user

    @property
    def done(self):
        return len(self.outcome) == len(self.targets)


class Transfer:
    """A file, in either direction. `state`: offered, keys, in progress, confirming (all sent), complete, ended."""

    def __init__(self, person, transfer, key, name, size, digest):
        self.person, self.id, self.key, self.name, self.size, self.digest = person, transfer, key, name, size, digest
        self.chunks = -(-size // CHUNK)
        self.state, self.deadline, self.start, self.index, self.reason = "offered", time.monotonic() + 3600, 0, 0, None
        self.file, self.session, self.granted = None, None, 0
        self.keys, self.group, self.hash, self.path = [], [], hashlib.sha256(), None

    @property
    def over(self):
        return self.state in ("complete", "ended")

    def length(self, index):
        return min(CHUNK, self.size - index * CHUNK)


# ---------------------------------------------------------------- the client

class Client:
    def __init__(self, host, port, fingerprint, name, password, identity, known_users=None, key_file=None,
                 mailbox=None):
        self.host, self.port, self.fingerprint = host, port, fingerprint
        self.name, self.password, self.identity = name, password, identity
        self.events, self.people, self.online = collections.deque(), {}, set()
        self.transport = self.token = self.ended = self.server_key = None
        self.mailbox = Mailbox(mailbox, identity, name, self._server()) if mailbox else None
        self._began = now()
        self._key_at = {}                                            # (salt, rounds): the password's key
        # the only (salt, rounds) that a challenge may contain
        self._key_file, self.logins = key_file, None
        if key_file:
            with open(key_file, "rb") as file:
                self.logins = key_file_logins(file.read())
        self.newest = 0                                              # the highest `created` of our own certificates
        self._known_users = known_users                              # a file in the format of MANUAL.md: Client files
        if known_users and os.path.exists(known_users):
            with open(known_users) as file:
                for record in map(json.loads, file):
                    if record["server"] == self._server() and (record.get("decided")
                                                               or record["name"] not in self.people):
                        self.person(record["name"]).remembered = from_base64(record["identity"], 32)
        if known_users and os.path.exists(known_users + ".certificates"):
            with open(known_users + ".certificates") as file:
                for record in (record for record in map(json.loads, file) if record["server"] == self._server()):
                    person, key = self.person(record["name"]), from_base64(record["key"], 32)
                    if person.remembered == from_base64(record["identity"], 32):
                        person.newest[record.get("kind", "session")] = record["created"], key

    def _server(self):
        return f"{self.host.lower()}:{self.port}"

    # -------------------------------------------------------- PROTOCOL: Login

    def _say(self, message):
        """Sends a line that the session does not count."""
        self.transport.send(json.dumps(message).encode() + b"\n")

    def _hear(self, wanted, timeout=30):
        """Waits for an answer before `session`, and answers pings meanwhile."""
        while True:
            frame = self.transport.receive(timeout)
            if frame is None:
                raise Lost("timed_out")
            kind, members, message = decode(frame[1], FROM_SERVER)
            if kind == "ping":
                self._say({"type": "pong"})
            elif kind == "error":
                raise MessengerError(members["code"], members["message"], members["retry_after"])
            elif kind == wanted:
                return message
            elif kind != "pong":
                raise Lost("malformed", f"unexpected answer: {str(kind)[:40]}")

    def connect(self):
        self.transport = Transport(self.host, self.port, self.fingerprint)
        self.server_key = self.transport.server_key
        return self

    def _keep_logins(self, logins):
        if self._key_file and logins != self.logins:
            keep_logins(self._key_file, logins)
            self.logins = logins

    def register(self, rounds=ROUNDS):
        salt = secrets.token_bytes(32)
        self._keep_logins([*(self.logins or [])[:LOGINS - 1], (salt, rounds)])
        key = self._key_at[salt, rounds] = password_key(self.password, salt, rounds)
        self._say({"type": "register", "version": VERSION, "username": self.name, "salt": base64_of(salt),
                   "rounds": rounds, "password_key": base64_of(key), "public_key": base64_of(self.identity.public.der)})
        self._hear("registered")
        return self

    def _challenge(self):
        """Steps 1 and 2: returns the nonce, the salt with the rounds, and the password's key for the response."""
        self._say({"type": "login_request", "version": VERSION, "username": self.name,
                   "public_key": base64_of(self.identity.public.der)})
        challenge = self._hear("challenge")
        nonce, at = binary(challenge, "nonce", 32), (binary(challenge, "salt", 32), number(challenge, "rounds"))
        if self.logins is not None and at not in self.logins:
            raise Refused("unknown_login",
                          "the password was changed elsewhere, or this is a false server: copy the key file again")
        if at not in self._key_at:
            self._key_at = {at: password_key(self.password, *at)}
        return nonce, at, self._key_at[at]

    def _new_session_key(self):
        """A new session key, and the members that certify it."""
        key, created = PrivateKey(), max(now(), self.newest + 1)
        if created > now() + 2 * HOUR:
            created = now()
        self.newest = max(self.newest, created)
        certificate = self.identity.sign(certificate_text(self.name, key.public, created))
        return key, {"session_key": base64_of(key.public.der), "created": created,
                     "certificate": base64_of(certificate)}

    def login(self, proof_exporter=None):
        """Begins a new session, and returns when the list of online users has arrived."""
        nonce, at, secret = self._challenge()
        key, members = self._new_session_key()
        response = fields("login response", self.name, nonce, self.transport.exporter, key.public.fingerprint)
        proof = fields("login proof", self.name, nonce,
                       self.transport.exporter if proof_exporter is None else proof_exporter, key.public.fingerprint)
        self._say({"type": "challenge_response", "response": base64_of(hmac256(secret, response)), **members,
                   "proof": base64_of(self.identity.sign(proof))})
        session = self._hear("session")
        self.token, self.transport.in_session, self.ended = binary(session, "token", 32), True, None
        self._keep_logins([at, *(login for login in self.logins or [] if login != at)])
        self._begin_session(key)
        self.newest = max(self.newest, number(session, "newest"))
        if members["created"] <= number(session, "newest"):          # others would refuse it
            self.renew()
        if self.mailbox:
            self._fetch()
        self.wait(lambda: self._listed)
        return self

    def _begin_session(self, key):
        self.key, self._key_since, self._next_key, self._former = key, time.monotonic(), None, []
        self.frames, self.online, self._listed = Frames(), set(), False
        self._queue, self._due, self._stale, self._last_id = collections.deque(), {}, [], 0
        # by id: delivered messages and their times; lost before `sent`
        self._losable, self._lost = collections.OrderedDict(), set()
        self._fetching, self._batch, self._requested, self._fetched = False, set(), (), False
        self._held, self._left, self._no_mail = [], set(), False
        self._mailbox_due, self._mailbox_set, self._mailbox_tries = None, None, 0
        self._asked, self._broadcasts, self._last_order = collections.deque(), 0, 0
        self.offers, self.sending, self.receiving = {}, {}, {}       # by transfer; only other users' offers
        for person in self.people.values():
            person.session, person.asked, person.waiting = None, False, []    # mail is fetched again
            person.sequences.clear()

    def logout(self):
        # otherwise shown messages would be reported as lost
        self._acknowledge()
        self._send({"type": "logout"})
        self.ended, self.token = "logged out", None

    def fileno(self):
        """For `select`: readable when `poll` has work."""
        return self.transport.fileno()

    # -------------------------------------------------------- PROTOCOL: Resuming

    def resume(self, timeout=30):
        """Resumes the session on a new connection, after `Lost`."""
        if self.ended or not self.token:
            raise MessengerError(self.ended or "no_session")
        self.connect()
        self._say({"type": "resume_request", "version": VERSION, "username": self.name})
        challenge = self._hear("resume_challenge", timeout)
        received = self.frames.received
        proof = hmac256(self.token,
                        fields("resume", self.name, binary(challenge, "nonce", 32), self.transport.exporter, received))
        self._say({"type": "resume", "received": received, "proof": base64_of(proof)})
        try:
            resumed = self._hear("resumed", timeout)
        except MessengerError as error:
            if error.code in ("no_session", "signed_in_elsewhere"):
                self.ended = error.code
            raise
        self.transport.in_session = True
        self.frames.told = received                                  # our `received` acknowledged everything
        self.frames.confirm(number(resumed, "received"))
        for data in list(self.frames.kept):
            self.transport.send(data)
        return self

    def _send(self, message, packet=False):
        """Sends one frame of the session. If the connection is lost, the frame waits for `resume`."""
        data = b"\0" + struct.pack(">I", len(message)) + message if packet else json.dumps(message).encode() + b"\n"
        if packet or message.get("type") not in Frames.UNCOUNTED:
            self.frames.sent(data)
        try:
            self.transport.send(data)
        except Lost:
            # the server's farewell can still be read; then `receive` raises
            pass

    def _acknowledge_due(self):
        if self.frames.due():
            self._acknowledge()

    def _acknowledge(self):
        self._send({"type": "ack", "received": self.frames.tell()})

    # -------------------------------------------------------- PROTOCOL: Messages (handling frames)

    def poll(self, timeout):
        """Handles one frame, if one arrives within the time. Raises `Lost` when the connection is lost."""
        self._look_at_the_clock()
        end, left = time.monotonic() + timeout, timeout
        while (frame := self.transport.receive(min(left, self.frames.patience()))) is None:
            self._acknowledge_due()
            if (left := end - time.monotonic()) <= 0:
                return False
        kind, body = frame
        try:
            if kind == "packet":
                self.frames.took(len(body))
                self._on_packet(body)
            else:
                try:
                    name, _, message = decode(body, FROM_SERVER)
                except Refused:                                      # PROTOCOL#not-a-message: counted and ignored
                    name, message = None, None
                if name not in Frames.UNCOUNTED:
                    self.frames.took(len(body))
                if name in self.HANDLED:
                    getattr(self, "_on_" + name)(message)
        except Refused as error:
            # From the server itself, not a user: it is faulty or hostile.
            self.transport.abort()
            raise Lost("malformed", f"from the server: {error}") from None
        self._acknowledge_due()
        self._flush()
        return True

    HANDLED = ("ack", "ping", "keys", "sent", "encrypted_message", "presence", "session", "grant", "refused", "lost",
               "mail", "mailbox_set", "error")

    def wait(self, test, timeout=30):
        """Polls until `test()` is true, and returns its result."""
        deadline = time.monotonic() + timeout
        while not (result := test()):
            left = deadline - time.monotonic()
            if left <= 0:
                raise MessengerError("timed_out", "the deadline passed")
            self.poll(min(left, 1))
        return result

    def event(self, kind, timeout=30, **members):
        """Waits for the first event of this kind with these members, removes and returns it."""
        def found():
            for event in self.events:
                if event.kind == kind and all(getattr(event, key, None) == value for key, value in members.items()):
                    self.events.remove(event)
                    return event
        return self.wait(found, timeout)

    def _tell(self, kind, **members):
        self.events.append(Event(kind, **members))

    def _on_ack(self, message):
        self.frames.confirm(number(message, "received"))

    def _on_ping(self, _):
        if self.frames.received > self.frames.told:
            self._acknowledge()
        self._send({"type": "pong"})

    def _on_error(self, message):
        code = word(message, "code")
        if code in ("signed_in_elsewhere", "account_removed"):
            self.ended = code
        concerns = number(message, "id") if message.get("id") is not None else None
        if code == "bad_targets" and concerns is None and self._asked:
            self._settle(self._asked.popleft(), code)
        elif concerns in self._due:
            job, targets = self._due.pop(concerns)
            job.outcome.update(dict.fromkeys(targets, code))
        elif code in ("bad_mailbox", "no_mail", "server_error") and concerns is None and self._mailbox_due:
            self._on_mailbox_refused(code, message)
        elif code == "bad_key" and self._next_key:
            self._next_key, self.newest = None, max(self.newest, number(message, "newest"))
        self._tell("error", code=code, text=word(message, "message"), id=concerns)

    def _on_presence(self, message):
        joined, left = names(message, "joined"), names(message, "left")
        if message.get("full") is True:
            self.online, self._listed = set(), False
        self.online = self.online - set(left) | set(joined)          # a user in both lists has logged in again
        if not self._listed:
            self._listed = message.get("more") is not True
        for name in joined:
            if name in self.people and self.people[name].key_kind == "mailbox":
                self.people[name].session = None                     # now the user has a session key
        for name in left:
            for transfer in [*self.offers.values(), *self.sending.values(), *self.receiving.values()]:
                if transfer.person == name:
                    self._end(transfer, f"{name} has left", tell=False)
        self._tell("presence", joined=joined, left=left)

    # -------------------------------------------------------- PROTOCOL: Keys (of others), Receiving step 2

    def person(self, name):
        """The user of this name. Refuses a name that differs from a known one only in letter case."""
        if name not in self.people:
            if not is_name(name) or any(name.lower() == other.lower() for other in (*self.people, self.name)):
                raise Refused("name", "invalid, or differs from a known name only in letter case")
            self.people[name] = Person(name)
        return self.people[name]

    def _ask(self, wanted):
        wanted = [name for name in wanted if not self.person(name).asked][:NAMES_MOST]
        if wanted and not self._asked:                               # one request at a time, because answers are long
            for name in wanted:
                self.people[name].asked = True
            self._asked.append(wanted)
            self._send({"type": "keys_request", "names": wanted})

    def _on_keys(self, message):
        asked = self._asked.popleft() if self._asked else []
        entries, unknown = message.get("keys"), names(message, "unknown")
        if sorted(unknown + [word(entry, "name") for entry in entries]) != sorted(asked):
            raise Refused("malformed", "keys that were not requested")
        failed = dict.fromkeys(unknown, "unknown")
        for entry in entries:
            person = self.people[entry["name"]]
            person.session = None
            try:
                self._learn(person, entry)
            except Refused as error:
                failed[person.name] = error.code
                self._tell("key_refused", name=person.name, reason=str(error))
        self._settle(asked, "offline", failed)

    def _learn(self, person, entry):
        identity = PublicKey(binary(entry, "identity", 294))
        if person.remembered is None:                                # trust on first use
            self._remember(person, identity.fingerprint)
            self._tell("new_key", name=person.name)
        elif person.remembered != identity.fingerprint:
            person.changed = identity.fingerprint
            self._tell("key_changed", name=person.name)
            raise Refused("key_changed", "not the remembered key")
        person.identity, person.changed = identity, None
        kinds = [kind for kind in LIFETIME if entry.get(kind + "_key") is not None]
        if len(kinds) > 1:
            raise Refused("malformed", "a session key and a mailbox key")
        for kind in kinds:
            key, created = PublicKey(binary(entry, kind + "_key", 294)), number(entry, "created")
            check_certificate(identity, person.name, key, created, binary(entry, "certificate", 256), kind=kind)
            self._check_newest(person, created, key.fingerprint, kind)
            person.session, person.created, person.key_kind = key, created, kind

    def _check_newest(self, person, created, key, kind="session"):
        """PROTOCOL#newest-certificate. A certificate too far ahead of our clock counts as forgotten."""
        before, known = person.newest.get(kind, (0, b""))
        if before <= now() + 2 * HOUR and (created < before or created == before and key != known):
            raise Refused("set_back",
                          f"the clock of {person.name} may have been set back: this key is older than one seen before")
        if person.newest.get(kind) != (created, key):
            person.newest[kind] = created, key
            if self._known_users:                                    # a later line replaces earlier ones
                with open(self._known_users + ".certificates", "a") as file:
                    file.write(json.dumps({"server": self._server(), "name": person.name,
                                           "identity": base64_of(person.remembered), "kind": kind, "created": created,
                                           "key": base64_of(key)}) + "\n")

    def _remember(self, person, fingerprint, **more):
        person.remembered = fingerprint
        if self._known_users:
            with open(self._known_users, "a") as file:
                file.write(json.dumps({"server": self._server(), "name": person.name,
                                       "identity": base64_of(fingerprint), **more}) + "\n")

    def trust(self, name):
        """The user has decided to trust the new key."""
        person = self.person(name)
        if person.changed:
            self._remember(person, person.changed, verified=False, decided=True)
            person.identity = person.session = person.changed = None
            person.newest = {}                                       # certificates of the former identity
            if self._left and not self._fetching:
                self._fetch()                                        # mail that waited for this decision

    def safety_number(self, name):
        return safety_number((self.name, self.identity.public.fingerprint), (name, self.person(name).remembered))

    def _settle(self, asked, otherwise, failed={}):
        """Handles everything that waited for the keys of these users."""
        for name in asked:
            person = self.people[name]
            person.asked = False
            waiting, person.waiting = person.waiting, []
            for envelope, wrapped, at in waiting:
                self._open(person, envelope, wrapped, at)
            for job, targets in self._queue:
                if name in targets and not self._usable(person, job):
                    targets.remove(name)
                    job.outcome[name] = failed.get(name, otherwise)
        others = [name for name, person in self.people.items() if person.waiting and not person.asked]
        self._ask(others)                                            # envelopes that arrived in the meantime
        for transfer in list(self.sending.values()):
            if transfer.state == "keys" and transfer.person in asked:
                self._begin(transfer, asked_before=True)

    # -------------------------------------------------------- PROTOCOL: Receiving

    def _on_encrypted_message(self, message):
        if not self._holding():
            self._release()
        if message.get("recipient") is not None and self._holding():
            self.frames.hold(len(str(message)))
            self._held.append(message)                               # mail comes first
        else:
            self.frames.direct |= message.get("kind") == "message" and message.get("recipient") is not None
            self._take(message)

    def _take(self, message, at=None):
        """Handles an envelope that arrived live, or as mail with the number `at`."""
        claimed = str(message.get("from"))[:32]
        try:
            envelope, wrapped = Envelope.parse(message), binary(message, "key", 264)            # 1
            # other numbers are not used
            number(message, "sequence", 1, 2**64 - 2)
            if envelope.sender == self.name:
                raise Refused("name", "it claims to be from this user")
            person = self.person(envelope.sender)
        except Refused as error:
            self._tell("refused", name=claimed, code=error.code, reason=str(error))
            return self._settled(at)
        if not person.waiting and person.identity and person.identity.fingerprint == envelope.identity:
            self._open(person, envelope, wrapped, at)
        elif len(person.waiting) < WAITING_MOST or at is not None:                              # 2
            person.waiting.append((envelope, wrapped, at))
            self._ask([person.name])
        else:
            self._tell("refused", name=claimed, code="waiting", reason="too much waits for this key")

    def _open(self, person, envelope, wrapped, at=None):
        is_mail = self.mailbox and envelope.recipient and envelope.recipient_key in self.mailbox.keys
        mailbox = self.mailbox if is_mail else None
        taken, same = None, False
        try:
            if person.changed:
                raise Refused("key_changed", "not the remembered key")
            if not person.identity or person.identity.fingerprint != envelope.identity:         # 2
                raise Refused("identity", "not this user's key")
            if not person.identity.verify(envelope.signed(), envelope.signature):               # 3
                raise Refused("signature")
            keys = {key: private for key, (private, _) in mailbox.keys.items()} if mailbox else self._session_keys()
            if envelope.recipient and (envelope.recipient != self.name or envelope.recipient_key not in keys):  # 4
                raise Refused("recipient", "for another user, or for another session")
            if at is not None and not mailbox:
                raise Refused("recipient", "mail that is not for a mailbox key")
            if not envelope.recipient and envelope.recipient_key != self.server_key:
                raise Refused("server", "made for another server")
            if mailbox and (envelope.kind != "message" or envelope.scope not in ("private", "room")):
                raise Refused("kind", "only private and room messages wait for absent users")
            if mailbox:
                taken, same = mailbox.state(envelope)
                missing = 0 if same else mailbox.check_new(envelope) # `same`: taken or shown before, but not confirmed
            else:
                missing = person.check_new(envelope)                                            # 5
            text, members = self._unwrap(envelope, wrapped, keys), []                           # 6
            if (envelope.kind, envelope.scope) == ("message", "room"):                          # 7
                known = {*self.online, *(name for name, other in self.people.items() if other.remembered)}
                members, text = parse_members(text, person.name, self.name, known)
            try:
                text = text.decode()
            except UnicodeDecodeError:
                raise Refused("text", "not UTF-8") from None
            if text and envelope.kind in ("room_opened", "room_left") or len(text.encode()) > TEXT_MOST:
                raise Refused("text", "a notice that contains text, or too long")
            if not mailbox:
                person.use(envelope)                                 # all checks have passed: the number is used
            is_file_word = envelope.kind in FILE_KINDS and not envelope.later
            content = self._file_word(envelope.kind, text) if is_file_word else None
        except Refused as error:
            self._tell("refused", name=envelope.sender, code=error.code, reason=str(error))
            undecided = person.changed or not person.identity or error.code == "mailbox_full"
            if at is not None and undecided:
                # neither shown nor confirmed until the user has decided
                self._left.add(envelope.recipient_key)
            return self._settled(at, confirm=not undecided)
        if missing:
            self._tell("gap", name=person.name, missing=missing)
        if mailbox and not same:
            mailbox.take(envelope)
        fresh, run = taken != "shown" and envelope.id() not in person.ids, self._began > envelope.time - 5 * MINUTE
        marked = taken == "taken" or envelope.again is not None and (run or len(person.ids) == person.ids.maxlen)

        def show():
            if fresh and abs(envelope.time - now()) > 5 * MINUTE and not mailbox:
                self._tell("odd_time", name=person.name, time=envelope.time)
            if fresh and content is not None:
                getattr(self, "_on_" + envelope.kind)(person.name, content)
            elif fresh and not envelope.later:
                self._tell(envelope.kind, name=person.name, scope=envelope.scope, text=text, time=envelope.time,
                           members=members, mail=mailbox is not None, marked=marked)
            if mailbox and taken != "shown":
                mailbox.show(envelope)

        if fresh:
            person.ids.append(envelope.id())
        if at is None:
            return show()
        self._opened.append((at, show))
        self._settled(at)

    @staticmethod
    def _unwrap(envelope, wrapped, keys):
        """Finds our key by the id before the wrapped key. For one recipient, it must be the signed one."""
        mine = next((key for key in keys.values() if key.public.short == wrapped[:8]), None)
        if mine is None or envelope.recipient and envelope.recipient_key != mine.public.fingerprint:
            raise Refused("key_id", "wrapped for another key")
        return envelope.open(mine, wrapped)

    def _session_keys(self):
        """Our session keys by fingerprint: the current one, the former one for 60 s, and one not confirmed yet."""
        self._former = [(key, until) for key, until in self._former if until > time.monotonic()]
        return {key.public.fingerprint: key for key in (self.key, self._next_key, *(key for key, _ in self._former))
                if key}

    # -------------------------------------------------------- PROTOCOL: Mail (owner and recipient)

    def _fetch(self):
        """Fetches the mail for our mailbox keys. Live envelopes for one recipient wait meanwhile, at most 10 s."""
        self._fetching, self._hold_until, self._left = True, time.monotonic() + 10, set()
        self._requested = list(self.mailbox.keys)
        self._request_mail(0)

    def _request_mail(self, after):
        self._after, self._confirmed, self._opened, self._more = after, [], [], None
        self._send({"type": "mail_request", "keys": [base64_of(key) for key in self._requested], "after": after})

    def _on_mail(self, message):
        object_of(**FROM_SERVER["mail"])(message)
        if not self._fetching or self._more is not None:
            return                                                   # not requested
        mail, self._more = message.get("mail"), message.get("more")
        self._elsewhere = number(message, "other"), number(message, "until")
        numbers = [self._after, *(number(kept, "number") for kept in mail)]
        if any(a >= b for a, b in zip(numbers, numbers[1:])) or self._more and not mail:
            raise Refused("malformed", "mail that is out of order, or none although more waits")
        self._after, self._batch = numbers[-1], set(numbers[1:])
        if not mail:
            self._mail_over()
        for kept in mail:
            self._take(kept["message"], kept["number"])

    def _settled(self, at, confirm=True):
        """Counts a message of the batch as opened or refused. After the last one, all are shown in order."""
        if at in self._batch:
            self._batch.remove(at)
            self._confirmed += [at] if confirm else []
            if not self._batch:
                for _, show in sorted(self._opened, key=lambda entry: entry[0]):
                    show()
                self._confirm()

    def _confirm(self):
        """Confirms the batch, and requests the next one.

        An empty batch ends the fetch: the server handles requests in order, so it has then handled each `mail_done`."""
        if self._confirmed:
            self._send({"type": "mail_done", "numbers": self._confirmed})
        self._request_mail(self._after)

    def _mail_over(self):
        self._fetching, self._fetched = False, True
        others, until = self._elsewhere
        if others:
            self._tell("mail_elsewhere", count=others, until=until)
        self._tell("mail_over")
        self._release()
        self._erase()
        self._make_mailbox()

    def _make_mailbox(self):
        """Makes the key of the next absence, once in a session."""
        if self._mailbox_tries == 0:
            if len(self.mailbox.keys) < KEYS_MOST:
                self._offer_mailbox(PrivateKey())
            else:
                self._tell("mailbox_refused", code="too_many_keys")

    def _holding(self):
        held = self.frames.held
        is_full = held and self.frames.total > held[1] + HELD_MOST
        return self._fetching and time.monotonic() < self._hold_until and not is_full

    def _release(self):
        held, self._held = self._held, []
        if held:
            self.frames.held, self.frames.direct = None, True
        for message in held:
            self._take(message)

    def _offer_mailbox(self, key, newest=0):
        """Certifies the key of the next absence. The private key is on disk before the server has the public one."""
        created = max(now(), newest + 1, *(created + 1 for _, created in self.mailbox.keys.values()))
        if created > now() + 2 * HOUR:
            created = now()
        self.mailbox.add(key, created)
        self._mailbox_due, self._mailbox_tries = key.public.fingerprint, self._mailbox_tries + 1
        certificate = self.identity.sign(certificate_text(self.name, key.public, created, "mailbox"))
        self._send({"type": "mailbox", "mailbox_key": base64_of(key.public.der), "created": created,
                    "certificate": base64_of(certificate)})

    def _on_mailbox_refused(self, code, message):
        (key, created), self._mailbox_due = self.mailbox.keys[self._mailbox_due], None
        newest = number(message, "newest") if code == "bad_mailbox" else 0
        if created <= newest < now() + 2 * HOUR and self._mailbox_tries <= 2:
            return self._offer_mailbox(key, newest)
        if code != "server_error":                                   # after `server_error`, the server may have the key
            self.mailbox.erase([key.public.fingerprint])
        self._no_mail = code == "no_mail"
        self._erase()
        self._tell("mailbox_refused", code=code)

    def _on_mailbox_set(self, _):
        if self._mailbox_due:
            self._mailbox_set, self._mailbox_due = self._mailbox_due, None
            self._erase()
            self._tell("mailbox_set")

    def _erase(self):
        """Erases keys that a confirmed later one has replaced and whose mail is settled, and keys that are too old."""
        replaced = 2**64 if self._no_mail else self.mailbox.keys[self._mailbox_set][1] if self._mailbox_set else 0
        erased = [key for key in self._requested if self._fetched and key in self.mailbox.keys and (
            self.mailbox.keys[key][1] < replaced and key not in self._left
            or self.mailbox.keys[key][1] + OLD_KEY < now())]
        if erased:
            self.mailbox.erase(erased)

    # -------------------------------------------------------- PROTOCOL: Sending

    def send(self, name, text, kind="message", scope="private"):
        return self._enqueue(Job([name], text, kind, scope))

    def broadcast(self, text):
        """Sends to all other online users."""
        return self._enqueue(Job(sorted(self.online - {self.name}), text, "message", "broadcast"))

    def room(self, names, text):
        """Sends one copy to each other member. Each has its own time: a common one would link the copies."""
        members = {self.name, *names}
        jobs = [Job([name], text, "message", "room", members) for name in sorted(members - {self.name})]
        for job, early in zip(jobs, secrets.SystemRandom().sample(range(1000), len(jobs))):
            job.time -= early
        return [self._enqueue(job) for job in jobs]

    def open_room(self, name):
        return self.send(name, "", "room_opened", "room")

    def leave_room(self, name):
        return self.send(name, "", "room_left", "room")

    def _enqueue(self, job):
        if len(job.text.encode()) > TEXT_MOST:
            raise MessengerError("too_long", "a message has at most 32 KiB")
        self._last_order += 1
        job.order = self._last_order
        for name in job.targets:
            if self.person(name).changed:
                job.outcome[name] = "key_changed"
        targets = [name for name in job.targets if name not in job.outcome]
        for i in range(0, len(targets), TARGETS_MOST):
            self._queue.append((job, targets[i:i + TARGETS_MOST]))
        self._flush()
        return job

    def _flush(self):
        """Sends the texts whose keys are known.

        One rule keeps the order: after `stale`, no new text is sent until all answers have arrived; then the stale text
        is sent again first."""
        if self._stale and not self._due:
            for job, targets in self._stale:
                for name in targets:
                    self.people[name].session = None
            self._queue = collections.deque(sorted([*self._stale, *self._queue], key=lambda entry: entry[0].order))
            self._stale = []
        while self._queue and not self._stale:
            job, targets = self._queue[0]
            missing = [name for name in targets if not self._usable(self.people[name], job)]
            if missing:
                return self._ask(missing)
            self._queue.popleft()
            if targets:
                self._transmit(job, targets)

    @staticmethod
    def _usable(person, job):
        """Whether the known key is valid for this job: only private and room messages are sealed for a mailbox key."""
        is_valid = person.session is not None and now() <= person.created + LIFETIME[person.key_kind]
        return is_valid and (job.waits or person.key_kind == "session")

    def _transmit(self, job, targets):
        same = [name for name in targets if job.tries
                and self.people[name].stale == self.people[name].session.fingerprint]
        job.outcome.update(dict.fromkeys(same, "stale"))             # sealing again for the same key would not help
        targets = [name for name in targets if name not in same]
        if not targets:
            return
        session = None if job.scope == "broadcast" else self.people[targets[0]].session
        if job.envelope is None or session and job.envelope.recipient_key != session.fingerprint:
            if session:
                counter = self.people[targets[0]].sequences
                conversation = self.key.public.fingerprint, session.fingerprint
                counter[conversation] += 1
                place = {"recipient": targets[0], "recipient_key": session.fingerprint,
                         "sequence": counter[conversation]}
            else:
                self._broadcasts += 1
                place = {"recipient_key": self.server_key, "sequence": self._broadcasts}
            job.message_key = secrets.token_bytes(32)
            job.envelope = Envelope.seal(self.identity, job.plaintext, job.message_key, sender=self.name, kind=job.kind,
                                         scope=job.scope, session=self.key.public.fingerprint, time=job.time,
                                         again=job.id, **place)
            job.id = job.envelope.id()
        self._last_id += 1
        sessions = {name: self.people[name].session for name in targets}
        self._due[self._last_id] = job, {name: (key.fingerprint, self.people[name].key_kind)
                                         for name, key in sessions.items()}
        self._send({"type": "encrypted_send", "id": self._last_id, "targets": targets,
                    "keys": {name: base64_of(job.envelope.wrap(key, job.message_key))
                             for name, key in sessions.items()}, **job.envelope.wire()})

    def _on_sent(self, message):
        at = number(message, "id")
        job, targets = self._due.pop(at, (None, {}))
        fates = {name: fate for fate in ("delivered", "kept", "offline", "stale", "busy")
                 for name in names(message, fate)}
        if job is None or sorted(fates) != sorted(targets):
            raise Refused("malformed", "an answer that matches no message")
        fates = {name: "broken" if fate == {"session": "kept", "mailbox": "delivered"}[targets[name][1]] else fate
                 for name, fate in fates.items()}
        again = [name for name, fate in fates.items() if fate == "stale" or (at, name) in self._lost]
        job.outcome.update(fates)
        if job.waits and "delivered" in fates.values():
            self._losable[at] = job, targets, time.monotonic()
            if len(self._losable) > LOSABLE_MOST:
                self._losable.popitem(last=False)
        self._lost -= {(at, name) for name in again}
        self._seal_again(job, {name: targets[name] for name in again})

    def _seal_again(self, job, targets):
        """After `stale` or `lost`, seals the text again, under its id, for the user's current key."""
        if targets and job.tries < 3:
            job.tries += 1
            for name, (key, _) in targets.items():
                self.people[name].stale = key
                del job.outcome[name]
            self._stale.append((job, list(targets)))

    def _on_lost(self, message):
        at, name = number(message, "id"), word(message, "name")
        job, targets, since = self._losable.pop(at, (None, {}, 0))
        if name in targets and time.monotonic() < since + 300 and job.tries < 3:
            self._seal_again(job, targets)
        elif at in self._due and name in self._due[at][1]:
            self._lost.add((at, name))                               # it has overtaken `sent`
        else:
            self._tell("lost", id=at, name=name)

    # -------------------------------------------------------- PROTOCOL: Keys (renewal), Changing the password

    def renew(self):
        """Renews the session key. `poll` does this after 23 hours, an hour before the limit."""
        self._next_key, members = self._new_session_key()
        self._send({"type": "renew", **members})

    def _on_session(self, message):
        if self._next_key is None:
            raise Refused("malformed", "a session that was not requested")
        self.token = binary(message, "token", 32)
        self._former.append((self.key, time.monotonic() + 60))
        self.key, self._key_since, self._next_key, self._broadcasts = self._next_key, time.monotonic(), None, 0
        self._tell("renewed")

    def change_password(self, new, key_file, rounds=ROUNDS):
        """Changes the password on a separate connection. If the outcome is unknown, both key files remain."""
        other = Client(self.host, self.port, self.fingerprint, self.name, self.password, self.identity,
                       key_file=key_file).connect()
        new = self.password if prepared(new) == prepared(self.password) else prepared(new)
        nonce, at, secret = other._challenge()
        salt = secrets.token_bytes(32)
        logins = [(salt, rounds), *(login for login in other.logins or [] if login != at)][:LOGINS]
        write_key_file(key_file + ".new", self.name, new, self.identity, server=self._server(),
                       logins=as_members(logins))
        key = password_key(new, salt, rounds)
        place = self.name, nonce, other.transport.exporter, salt, rounds, key
        response, proof = hmac256(secret, fields("password change response", *place)), fields("password change", *place)
        try:
            other._say({"type": "password_change", "response": base64_of(response), "salt": base64_of(salt),
                        "rounds": rounds, "password_key": base64_of(key),
                        "proof": base64_of(self.identity.sign(proof))})
            other._hear("password_changed")
        except MessengerError as error:
            if error.code != "server_error" and not isinstance(error, Lost):
                os.remove(key_file + ".new")
            raise
        os.replace(key_file + ".new", key_file)
        sync_folder(key_file)
        self.password, self._key_at = new, {(salt, rounds): key}
        self.logins = logins if self._key_file else None

    # -------------------------------------------------------- PROTOCOL: File transfer

    def offer_file(self, name, path):
        digest, size = hashlib.sha256(), os.path.getsize(path)
        with open(path, "rb") as file:
            while data := file.read(1 << 20):
                digest.update(data)
        transfer = Transfer(name, secrets.token_bytes(16), secrets.token_bytes(32), os.path.basename(path), size,
                            digest.digest())
        transfer.path = path
        self.sending[transfer.id] = transfer
        self._word(transfer, "file_offer", key=base64_of(transfer.key), name=transfer.name, size=size,
                   sha256=base64_of(transfer.digest), chunks=transfer.chunks)
        return transfer

    def accept_file(self, transfer, folder):
        """Accepts an offered file, which appears in the folder when it is complete and verified."""
        if len(self.receiving) >= TRANSFERS_MOST or self.offers.pop(transfer.id, None) is None:
            raise MessengerError("transfer", "no such offer, or too many transfers")
        self.receiving[transfer.id] = transfer
        transfer.path = os.path.join(folder, f"{transfer.person}~{plain_name(transfer.name)}")
        part = os.path.join(folder, f"{transfer.person}_{transfer.id.hex()}.part")
        transfer.file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b")
        transfer.part, transfer.session, transfer.state = part, self.key, "in progress"
        self._word(transfer, "file_accept", start=0, session=base64_of(transfer.session.public.fingerprint))
        self._grant(transfer)
        if not transfer.chunks:
            self._finish(transfer)
        return transfer

    def reject_file(self, transfer):
        if self.offers.pop(transfer.id, None):
            transfer.state = "ended"
            self._word(transfer, "file_reject")

    def cancel_file(self, transfer):
        self._end(transfer, "cancelled")

    def _word(self, transfer, kind, **members):
        return self.send(transfer.person, json.dumps({"transfer": base64_of(transfer.id), **members}), kind)

    def _file_word(self, kind, text):
        """The members of a file message. An incomplete or contradictory one is refused like a bad envelope."""
        content = file_members(kind, text.encode())
        content["id"] = content["transfer"]
        if kind == "file_offer":
            content["made"] = Transfer(None, content["id"],
                                       *(content[key] for key in ("key", "name", "size", "sha256")))
        return content

    def _of(self, where, name, transfer):
        """The transfer of a file message; none if the message is not from its peer."""
        found = where.get(transfer)
        return found if found and found.person == name else None

    def _on_file_offer(self, name, content):
        transfer = content["made"]
        transfer.person = name
        if transfer.id in {**self.offers, **self.receiving, **self.sending} or len(self.offers) >= OFFERS_MOST \
                or sum(offer.person == name for offer in self.offers.values()) >= OFFERS_OF_ONE:
            return self._tell("refused", name=name, code="offers", reason="too many offers")
        self.offers[transfer.id] = transfer
        self._tell("file_offer", name=name, transfer=transfer)

    def _on_file_accept(self, name, content):
        transfer = self._of(self.sending, name, content["id"])
        if transfer and transfer.state == "offered":
            if content["start"] > transfer.chunks:
                return self._end(transfer, "the accept starts beyond the end of the file")
            transfer.start = transfer.index = content["start"]
            transfer.wanted = content["session"]
            self._begin(transfer)

    def _begin(self, transfer, asked_before=False):
        """Begins to send if the accept names the user's session key: chunk keys are wrapped for no other."""
        session = self.people[transfer.person].session
        if session and session.fingerprint == transfer.wanted:
            transfer.session, transfer.state, transfer.file = session, "in progress", open(transfer.path, "rb")
            transfer.file.seek(transfer.start * CHUNK)
            self._continue(transfer)
        elif asked_before:
            self._end(transfer, "the server shows another session key than the accept names")
        else:
            transfer.state = "keys"
            self._ask([transfer.person])

    def _on_grant(self, message):
        transfer = self._of(self.sending, word(message, "peer"), binary(message, "transfer", 16))
        count = number(message, "count")
        if transfer and not transfer.over:
            transfer.granted += count
            self._continue(transfer)

    def _continue(self, transfer):
        """Sends the granted chunks."""
        while transfer.state == "in progress" and transfer.granted and transfer.index < transfer.chunks:
            index, block = transfer.index, b""
            if chunk_blocks(index, transfer.start):
                transfer.keys = [secrets.token_bytes(32) for _ in range(min(GROUP, transfer.chunks - index))]
                block = wrap_chunk_keys(transfer.session, transfer.id, index, transfer.keys)
            data = transfer.file.read(transfer.length(index))
            if len(data) != transfer.length(index):
                return self._end(transfer, "the file has changed")
            payload = seal_chunk(transfer.key, transfer.id, index, transfer.keys.pop(0), block, data)
            self._send(bytes([len(transfer.person)]) + transfer.person.encode() + transfer.id + payload, packet=True)
            transfer.granted, transfer.index, transfer.deadline = transfer.granted - 1, index + 1, time.monotonic() + 60
        if transfer.state == "in progress" and transfer.index == transfer.chunks:
            transfer.state, transfer.deadline = "confirming", time.monotonic() + 120

    def _on_file_done(self, name, content):
        transfer = self._of(self.sending, name, content["id"])
        if transfer and transfer.state in ("in progress", "confirming"):
            self._close(transfer, "complete")

    def _on_file_reject(self, name, content):
        transfer = self._of(self.sending, name, content["id"])
        if transfer and transfer.state == "offered":
            self._close(transfer, "ended", "rejected")

    def _on_file_cancel(self, name, content):
        for where in (self.offers, self.sending, self.receiving):
            if transfer := self._of(where, name, content["id"]):
                self._close(transfer, "ended", (content["reason"] or "cancelled by the other side")[:200])

    def _on_refused(self, message):
        for where in (self.sending, self.receiving):
            if transfer := self._of(where, word(message, "peer"), binary(message, "transfer", 16)):
                transfer.deadline = min(transfer.deadline, time.monotonic() + 5)

    def _look_at_the_clock(self):
        if self._fetching and time.monotonic() > self._hold_until:
            self._make_mailbox()                                     # do not wait for slow mail
        if not self._holding():
            self._release()
        for transfer in [*self.offers.values(), *self.sending.values(), *self.receiving.values()]:
            if time.monotonic() > transfer.deadline:
                self._end(transfer, "no progress for too long")
        if time.monotonic() - self._key_since > 23 * 3600 and not self._next_key:
            self.renew()

    def _grant(self, transfer):
        """Grants chunks up to the window, which holds complete groups, so that a group in progress can be completed."""
        count = min(WINDOW - transfer.granted, transfer.chunks - transfer.index - transfer.granted)
        if count > 0 and (transfer.granted == 0 or transfer.index % GROUP == 0):
            transfer.granted += count
            self._send({"type": "grant", "peer": transfer.person, "transfer": base64_of(transfer.id), "count": count})

    def _on_packet(self, body):
        name, transfer_id, payload = parse_packet(body)
        transfer = self._of(self.receiving, name, transfer_id)
        if not transfer:
            return                                                   # the transfer has ended
        try:
            if not transfer.granted:
                raise Refused("chunk", "not requested")
            transfer.group.append(parse_chunk(payload, transfer.key, transfer.id, transfer.index, transfer.start,
                                              transfer.length(transfer.index)))
            transfer.granted, transfer.index = transfer.granted - 1, transfer.index + 1
            transfer.deadline = time.monotonic() + 60
            if transfer.index == transfer.chunks or chunk_blocks(transfer.index, transfer.start):
                data = open_chunks(transfer.session, transfer.id, transfer.index - len(transfer.group), transfer.group)
                transfer.group = []
                transfer.hash.update(data)
                transfer.file.write(data)
                self._grant(transfer)
            if transfer.index == transfer.chunks:
                self._finish(transfer)
        except (Refused, OSError) as error:
            self._end(transfer, str(error))

    def _finish(self, transfer):
        if transfer.hash.digest() != transfer.digest:
            return self._end(transfer, "the file is not the one that was offered")
        transfer.file.flush()
        os.fsync(transfer.file.fileno())
        stem, extension = os.path.splitext(transfer.path)
        for count in itertools.count():                              # never overwrite a file
            path = transfer.path if not count else f"{stem}_{count}{extension}"
            with contextlib.suppress(FileExistsError):
                os.link(transfer.part, path)
                break
        transfer.path = path
        self._word(transfer, "file_done")
        self._close(transfer, "complete")

    def _end(self, transfer, reason, tell=True):
        """Ends a transfer from our side, and notifies the peer unless `tell` is false."""
        if not transfer.over:
            if tell:
                self._word(transfer, "file_cancel", reason=reason)
            self._close(transfer, "ended", reason)

    def _close(self, transfer, state, reason=None):
        transfer.state, transfer.reason = state, reason
        if self.receiving.pop(transfer.id, None):
            self._send({"type": "grant", "peer": transfer.person, "transfer": base64_of(transfer.id), "count": 0})
            os.unlink(transfer.part)                                 # this client does not continue interrupted files
        self.offers.pop(transfer.id, None), self.sending.pop(transfer.id, None)
        if transfer.file:
            transfer.file.close()
        self._tell("file_" + state, name=transfer.person, transfer=transfer, reason=reason)


# ---------------------------------------------------------------- a minimal program

def harmless(text):
    """PROTOCOL: Text from others. The text can neither control the terminal nor look like another line."""
    return "".join(c if c.isprintable() else {"\n": "⏎", "\t": " "}.get(c, "\ufffd") for c in text)


def main():
    parser = argparse.ArgumentParser(description="Lines go to everyone; `NAME: text` goes to NAME alone.")
    for option in ("host", "port", "fingerprint", "user", "key-file", "password-file"):
        parser.add_argument("--" + option, required=True)
    parser.add_argument("--register", action="store_true")
    arguments = parser.parse_args()
    with open(arguments.password_file) as file:
        password = file.readline().rstrip("\n")
    if not os.path.exists(arguments.key_file):
        write_key_file(arguments.key_file, arguments.user, prepared(password), PrivateKey())
    with open(arguments.key_file, "rb") as file:
        identity, password = open_key_file(file.read(), arguments.user, password)
    client = Client(arguments.host, int(arguments.port), arguments.fingerprint, arguments.user, password, identity,
                    arguments.key_file + ".known_users", arguments.key_file, arguments.key_file + ".mailbox").connect()
    if arguments.register:
        client.register()
    client.login()
    print("* online:", *sorted(client.online))
    while True:
        if select.select([sys.stdin], [], [], 0)[0]:
            line = sys.stdin.readline()
            if not line:
                return client.logout()
            name, _, text = line.rstrip("\n").partition(": ")
            is_private = text and name in {*client.online, *client.people}
            job = client.send(name, text) if is_private else client.broadcast(line.rstrip("\n"))
            print("*", client.wait(lambda: job.done) and job.outcome)
        try:
            client.poll(0.2)
        except Lost:
            client.resume()
        while client.events:
            event = client.events.popleft()
            text = harmless(getattr(event, "text", repr(event)))
            print(f"<{event.name}> {text}" if event.kind == "message" else f"* {text}")


if __name__ == "__main__":
    main()
