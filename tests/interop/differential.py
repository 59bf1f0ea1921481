#!/usr/bin/env python3
"""Decodes cases with the decoders of `messenger.py`, for a comparison with another implementation.

A case on the standard input is its length (32 bits), a letter for its kind, and its parts, each after its length. The
answer is a length and a verdict: `+` and the content in canonical form, or the reason for a refusal. A case of length 0
ends a batch; then the answers of the batch follow. `tests/spec/differential.rs` makes the cases and the same verdicts.
"""

import json, struct, sys

import messenger as m


def canonical(content):
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=m.base64_of)


def line(forms):
    def verdict(text):
        kind, members, _ = m.decode(text, forms)
        return canonical({"type": kind, **members})
    return verdict


def packet(body):
    name, transfer, payload = m.parse_packet(body)
    return f"{name} {transfer.hex()} {payload.hex()}"


def file_text(kind, text):
    return canonical(m.file_members(kind.decode(), text))


def name(text):
    try:
        text = text.decode()
    except UnicodeDecodeError:
        raise m.Refused("malformed") from None
    return ("reserved " if m.is_reserved(text) else "free ") + m.name_form(text)


def password(typed):
    return " ".join(form.encode().hex() for form in m.password_forms(typed.decode()))


def public_key(der):
    return m.PublicKey(der).fingerprint.hex()


PRIVATE = {}


def private_key(der):
    """Cached, because most cases have the same key, and checking it takes long."""
    if der not in PRIVATE:
        PRIVATE[der] = m.PrivateKey(der)
    return PRIVATE[der]


def new_private_key(der):
    return m.PrivateKey(der).public.fingerprint.hex()


def envelope(identity, session, text):
    _, _, message = m.decode(text, {"encrypted_message": m.DELIVERED})
    try:
        sealed, identity = m.Envelope.parse(message), m.PublicKey(identity)
        if sealed.identity != identity.fingerprint or not identity.verify(sealed.signed(), sealed.signature):
            raise m.Refused("signature")
    except m.Refused:
        raise m.Refused("unverified") from None
    try:
        plaintext, members = sealed.open(private_key(session), m.binary(message, "key", 264)), []
    except m.Refused:
        raise m.Refused("unopened") from None
    if (sealed.kind, sealed.scope) == ("message", "room"):
        members, plaintext = m.parse_members(plaintext, sealed.sender, sealed.recipient, ())
    return f"{sealed.id().hex()} {','.join(members)} {plaintext.hex()}"


def group(key, transfer, place, session, *payloads):
    start, size, first = struct.unpack(">QQQ", place)
    length = lambda index: max(0, min(m.CHUNK, size - index * m.CHUNK))
    if not payloads:
        raise m.Refused("chunk")
    parsed = [m.parse_chunk(payload, key, transfer, first + i, start, length(first + i)) for i,
              payload in enumerate(payloads)]
    return m.sha256(m.open_chunks(private_key(session), transfer, first, parsed)).hex()


def logins(text):
    found = m.key_file_logins(text)
    return "none" if found is None else canonical(m.as_members(found))


def key_file(name, typed, text):
    identity, form = m.open_key_file(text, name.decode(), typed.decode())
    return f"{identity.public.fingerprint.hex()} {form.encode().hex()}"


KINDS = {b"C": line(m.FROM_CLIENT), b"S": line(m.FROM_SERVER), b"P": packet, b"T": file_text, b"N": name,
         b"W": password, b"K": public_key, b"I": new_private_key, b"E": envelope, b"G": group, b"L": logins,
         b"F": key_file}
# Where the specification does not state the order of the checks, one word represents all reasons.
PLAIN = {b"P": "malformed", b"T": "text", b"N": "malformed", b"K": "bad_key", b"I": "bad_key", b"G": "chunk",
         b"L": "key_file", b"F": "key_file"}


def verdict(kind, parts):
    try:
        return "+" + KINDS[kind](*parts)
    except m.Refused as error:
        return PLAIN.get(kind) or (str(error) if error.code == "unsupported_version" else error.code)
    # a fault of this client is reported as a difference
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main():
    read, write, answers = sys.stdin.buffer.read, sys.stdout.buffer.write, []
    while head := read(4):
        case = read(struct.unpack(">I", head)[0])
        if case:
            parts, at = [], 1
            while at < len(case):
                end = at + 4 + struct.unpack_from(">I", case, at)[0]
                parts.append(case[at + 4:end])
                at = end
            answers.append(verdict(case[:1], parts).encode(errors="backslashreplace"))
        else:                                                        # the end of a batch: answer it
            write(b"".join(struct.pack(">I", len(answer)) + answer for answer in answers))
            sys.stdout.buffer.flush()
            answers = []


if __name__ == "__main__":
    main()
