"""A QUIC client's first packet (RFC 9000 §17.2.2, RFC 9001 §5), with nothing but Python's standard library, for attack.py.

AES-128 and GCM are written out, slowly: make the packets before the clock runs.
"""

import hashlib
import hmac
import os
import struct

ALPN = b"titan/1"
SALT = bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")
MIN_DATAGRAM = 1200


def _sbox():
    p = q = 1
    box = [0] * 256
    while True:
        p = p ^ ((p << 1) & 0xFF) ^ (0x1B if p & 0x80 else 0)
        for shift in (1, 2, 4):
            q ^= (q << shift) & 0xFF
        if q & 0x80:
            q ^= 0x09
        rotated = q
        x = q
        for _ in range(4):
            rotated = ((rotated << 1) | (rotated >> 7)) & 0xFF
            x ^= rotated
        box[p] = x ^ 0x63
        if p == 1:
            break
    box[0] = 0x63
    return box


SBOX = _sbox()
DOUBLE = [((x << 1) ^ (0x1B if x & 0x80 else 0)) & 0xFF for x in range(256)]


class Aes128:
    def __init__(self, key):
        words = [list(key[i : i + 4]) for i in range(0, 16, 4)]
        round_constant = 1
        for i in range(4, 44):
            word = list(words[i - 1])
            if i % 4 == 0:
                word = [SBOX[b] for b in word[1:] + word[:1]]
                word[0] ^= round_constant
                round_constant = DOUBLE[round_constant]
            words.append([a ^ b for a, b in zip(words[i - 4], word)])
        self.keys = [sum(words[i : i + 4], []) for i in range(0, 44, 4)]

    def encrypt(self, block):
        state = [a ^ b for a, b in zip(block, self.keys[0])]
        for number in range(1, 11):
            state = [SBOX[state[(4 * (c + r) + r) % 16]] for c in range(4) for r in range(4)]
            if number < 10:
                mixed = []
                for c in range(0, 16, 4):
                    a = state[c : c + 4]
                    every = a[0] ^ a[1] ^ a[2] ^ a[3]
                    mixed += [a[i] ^ every ^ DOUBLE[a[i] ^ a[(i + 1) % 4]] for i in range(4)]
                state = mixed
            state = [a ^ b for a, b in zip(state, self.keys[number])]
        return bytes(state)


def _gcm(key, nonce, text, aad):
    """AES-128-GCM: the ciphertext and its tag."""
    aes = Aes128(key)
    h = int.from_bytes(aes.encrypt(bytes(16)), "big")

    def times(x):
        z, v = 0, h
        for bit in range(127, -1, -1):
            if x >> bit & 1:
                z ^= v
            v = (v >> 1) ^ (0xE1 << 120 if v & 1 else 0)
        return z

    out = bytearray()
    for i in range(0, len(text), 16):
        stream = aes.encrypt(nonce + struct.pack(">I", i // 16 + 2))
        out += bytes(a ^ b for a, b in zip(text[i : i + 16], stream))
    x = 0
    for data in (aad, bytes(out)):
        for i in range(0, len(data), 16):
            x = times(x ^ int.from_bytes(data[i : i + 16].ljust(16, b"\0"), "big"))
    x = times(x ^ (len(aad) * 8 << 64 | len(out) * 8))
    tag = x ^ int.from_bytes(aes.encrypt(nonce + b"\0\0\0\1"), "big")
    return bytes(out) + tag.to_bytes(16, "big")


def _expand(secret, label, length):
    label = b"tls13 " + label
    info = struct.pack(">HB", length, len(label)) + label + b"\0"
    return hmac.new(secret, info + b"\1", hashlib.sha256).digest()[:length]


def keys(connection_id):
    """Key, nonce and header protection key of a client's Initial packets."""
    initial = hmac.new(SALT, connection_id, hashlib.sha256).digest()
    client = _expand(initial, b"client in", 32)
    return _expand(client, b"quic key", 16), _expand(client, b"quic iv", 12), _expand(client, b"quic hp", 16)


def _extension(kind, body):
    return struct.pack(">HH", kind, len(body)) + body


def _client_hello(source_id, server_name):
    name = server_name.encode()
    parameters = b"\x0f" + bytes([len(source_id)]) + source_id
    # initial_max_data, initial_max_stream_data_bidi_local, initial_max_streams_bidi
    for kind in (4, 5, 8):
        parameters += bytes([kind, 2]) + struct.pack(">H", 0x4000 | 1000)
    extensions = b"".join(
        [
            _extension(0, struct.pack(">HBH", len(name) + 3, 0, len(name)) + name),
            _extension(10, b"\0\2\0\x1d"),
            _extension(13, b"\0\x08\x04\x03\x08\x04\x08\x07\x05\x03"),
            _extension(16, struct.pack(">HB", len(ALPN) + 1, len(ALPN)) + ALPN),
            _extension(43, b"\2\3\4"),
            # Any 32 bytes are a public key of X25519.
            _extension(51, b"\0\x24\0\x1d\0\x20" + os.urandom(32)),
            _extension(57, parameters),
        ]
    )
    body = b"\3\3" + os.urandom(32) + b"\0" + b"\0\2\x13\x01" + b"\1\0"
    body += struct.pack(">H", len(extensions)) + extensions
    return b"\1" + len(body).to_bytes(3, "big") + body


def initial(server_name="agent.titan.internal"):
    """A datagram with which a client begins, with a connection ID of its own."""
    connection_id, source_id = os.urandom(8), os.urandom(8)
    key, iv, protection = keys(connection_id)
    hello = _client_hello(source_id, server_name)
    payload = b"\6\0" + struct.pack(">H", 0x4000 | len(hello)) + hello
    header = b"\xc0\0\0\0\1\x08" + connection_id + b"\x08" + source_id + b"\0"
    # A packet number of one byte, 0, and the tag.
    header += struct.pack(">H", 0x4000 | len(payload) + 17) + b"\0"
    sealed = _gcm(key, iv, payload, header)
    mask = Aes128(protection).encrypt(sealed[3:19])
    protected = bytes([header[0] ^ (mask[0] & 0x0F)]) + header[1:-1] + bytes([header[-1] ^ mask[1]])
    # What follows the packet is no packet, and is ignored; it makes the datagram long enough (RFC 9000 §14.1).
    return (protected + sealed).ljust(MIN_DATAGRAM, b"\0")


def kind(datagram):
    """What a server answered with: "initial", "retry", or something else."""
    if not datagram or not datagram[0] & 0x80:
        return "other"
    return {0: "initial", 3: "retry"}.get(datagram[0] >> 4 & 3, "other")
