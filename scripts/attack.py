#!/usr/bin/env python3
"""Attacks a running coordinator and agent, row by row, and says what each row did to others: SECURITY.md.

    scripts/attack.py --rest 127.0.0.1:8080 --grpc 127.0.0.1:50051 --agent 127.0.0.1:50052 --pid coord=PID --pid agent=PID

It starts nothing. While a row runs, another process asks the attacked port for something ordinary all the time; the processes named by --pid are
looked at before, during and after. Only Python's standard library. Attack only what is yours.
"""

import argparse
import asyncio
import multiprocessing
import os
import resource
import socket
import statistics
import sys
import time

sys.dont_write_bytecode = True
import attack_quic
from attack_rows import ROWS, SETTLE_SECONDS

# Between two ordinary requests.
PROBE_PAUSE = 0.05
# How long an ordinary request may take until it counts as failed.
PROBE_LIMIT = 10
# Before a row: how the port answers when nobody attacks it.
IDLE_SECONDS = 2


# Ordinary requests ---------------------------------------------------------------------------------------------------


def ask_http(address):
    """Any answer will do: every port of ours speaks HTTP/1.1."""
    with socket.create_connection(address, PROBE_LIMIT) as connection:
        connection.settimeout(PROBE_LIMIT)
        connection.sendall(b"GET /api/v1/health HTTP/1.1\r\nhost: attack\r\nconnection: close\r\n\r\n")
        return connection.recv(4096).startswith(b"HTTP/1.1 ")


def ask_quic(address):
    """A handshake's first round trip; one that is asked to prove its address is served, too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(1)
        connection.connect(address)
        packet = attack_quic.initial()
        for _ in range(PROBE_LIMIT):
            connection.send(packet)
            try:
                # Something else is for an earlier probe, which had the same port.
                while attack_quic.kind(connection.recv(2048)) not in ("initial", "retry"):
                    pass
                return True
            except TimeoutError:
                continue
    return False


def probe(ask, address, stop, results):
    times, failed = [], 0
    while not stop.is_set():
        begun = time.monotonic()
        try:
            served = ask(address)
        except OSError:
            served = False
        if served:
            times.append(time.monotonic() - begun)
        else:
            failed += 1
        time.sleep(PROBE_PAUSE)
    results.put((times, failed))


class Prober:
    """Asks from a process of its own, so that the attacker's work does not slow it."""

    def __init__(self, ask, address):
        self.stop, self.results = multiprocessing.Event(), multiprocessing.Queue()
        self.process = multiprocessing.Process(target=probe, args=(ask, address, self.stop, self.results))
        self.process.start()

    def end(self):
        self.stop.set()
        result = self.results.get()
        self.process.join()
        return result


# What a process costs ------------------------------------------------------------------------------------------------


class Process:
    def __init__(self, name, pid):
        self.name, self.pid = name, pid

    def cpu_seconds(self):
        with open(f"/proc/{self.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self):
        with open(f"/proc/{self.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

    def files(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def run(args, name, port, address, attack, processes):
    ask = ask_quic if port == "quic" else ask_http
    prober = Prober(ask, address)
    time.sleep(IDLE_SECONDS)
    idle, idle_failed = prober.end()
    if idle_failed or not idle:
        sys.exit(f"attack.py: {address[0]}:{address[1]} does not answer ({port}); nothing was attacked")
    before = [(one.cpu_seconds(), one.memory_mb(), one.files()) for one in processes]
    prober, begun = Prober(ask, address), time.monotonic()
    done = asyncio.run(attack(args, address))
    seconds = time.monotonic() - begun
    times, failed = prober.end()
    during = [(one.cpu_seconds(), one.memory_mb()) for one in processes]
    until = time.monotonic() + args.settle
    while time.monotonic() < until and any(one.files() > was[2] for one, was in zip(processes, before)):
        time.sleep(1)
    print(f"\n{name} at {port}: {done}")
    slowest = f"median {1000 * statistics.median(times):.1f} ms, slowest {1000 * max(times):.0f} ms" if times else "NONE"
    print(f"  others: {len(times)} served, {failed} failed; {slowest}; idle {1000 * statistics.median(idle):.1f} ms")
    for one, was, then in zip(processes, before, during):
        cpu = then[0] - was[0]
        print(
            f"  {one.name}: {cpu:.1f} s of CPU in {seconds:.0f} s ({100 * cpu / seconds:.0f} %), memory {was[1]:.0f} MB, "
            f"{then[1] - was[1]:+.0f} MB then, {one.memory_mb() - was[1]:+.0f} MB after; files {was[2]}, {one.files()} after"
        )
    return bool(times) and failed == 0


def endpoint(value):
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{value!r} is not host:port")
    return socket.gethostbyname(host.strip("[]")), int(port)


def process(value):
    name, _, pid = value.rpartition("=")
    if not pid.isdigit() or not os.path.exists(f"/proc/{pid}"):
        raise argparse.ArgumentTypeError(f"{value!r} is not the id of a process, or NAME=id")
    return Process(name or pid, int(pid))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rest", type=endpoint, help="the coordinator's REST port")
    parser.add_argument("--grpc", type=endpoint, help="the coordinator's gRPC port")
    parser.add_argument("--agent", type=endpoint, help="an agent's port, TCP and UDP")
    parser.add_argument("--pid", type=process, action="append", default=[], help="a process to look at: NAME=id")
    parser.add_argument("--row", action="append", choices=ROWS, help="only this one (may be repeated)")
    parser.add_argument("--seconds", type=int, default=15, help="how long a row takes")
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--settle", type=int, default=SETTLE_SECONDS, help="how long to wait for what a row left behind")
    parser.add_argument("--model", help="a model of the agent, for window-0")
    parser.add_argument("--key", help="an API key, where the coordinator wants one")
    parser.add_argument("--log", help="the coordinator's log file, for log-injection")
    args = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    places = {"rest": args.rest, "grpc": args.grpc, "agent": args.agent, "quic": args.agent}
    bad = []
    for name in args.row or ROWS:
        attack, where = ROWS[name]
        for port in ("rest", "grpc", "agent") if where == "tcp" else (where,):
            if places[port] and not run(args, name, port, places[port], attack, args.pid):
                bad.append(f"{name} at {port}")
    print("\nothers were served all the time" if not bad else f"\nothers were NOT served: {', '.join(bad)}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
