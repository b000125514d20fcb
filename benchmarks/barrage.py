"""A flood of UDP datagrams: `python -m benchmarks.barrage KIND TARGET PORT RATE SPREAD [KEY]`, until SIGTERM; prints their rate.

KIND is what each datagram is: `junk`, random bytes; or the first flight of a handshake of one protocol: `dtls` (RFC 6347), `openvpn`,
`wireguard` (to whom has the public key KEY, base 16, whose second check sum it passes). SPREAD is `one` for one source, `many` for a
different one each time, out of 100.64.0.0/10.
"""

from __future__ import annotations

import hashlib
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence

from OpenSSL import SSL

SOURCES = "100.64.0.0/10"
_FIRST, _HOSTS = 0x64400000, 1 << 22
_ONE = "100.64.0.1"
_KINDS = 2048
"""Different datagrams, sent in turns."""
_EVERY = 0.002
"""Seconds from one burst to the next."""
_SIZES = (20, 1400)


def junk() -> bytes:
    """Anything."""
    return random.randbytes(random.randint(*_SIZES))


def dtls() -> bytes:
    """A ClientHello without a cookie, as OpenSSL writes it, with a random of its own."""
    global _hello  # noqa: PLW0603
    if not _hello:
        connection = SSL.Connection(SSL.Context(SSL.DTLS_METHOD), None)
        connection.set_connect_state()
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            _hello = connection.bio_read(2048)
    return _hello[:27] + random.randbytes(32) + _hello[59:]


_hello = b""


def openvpn() -> bytes:
    """P_CONTROL_HARD_RESET_CLIENT_V2 with key 0: a session identifier, no acknowledgements, packet 0."""
    return bytes([7 << 3]) + random.randbytes(8) + bytes(5)


def wireguard(public: bytes) -> bytes:
    """A handshake initiation whose first mac is right: all that can be checked before the curve is."""
    text = b"\x01\0\0\0" + random.randbytes(112)
    key = hashlib.blake2s(b"mac1----" + public).digest()
    return text + hashlib.blake2s(text, digest_size=16, key=key).digest() + bytes(16)


def packet(source: int, target: str, port: int, payload: bytes) -> bytes:
    """IPv4 and UDP around it; the kernel fills in length and checksum of the first, the second needs none."""
    udp = struct.pack("!4H", random.randint(1024, 65535), port, 8 + len(payload), 0)
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, source.to_bytes(4, "big"), socket.inet_aton(target)) + udp + payload


def main(words: Sequence[str]) -> int:
    """Gives the exit status."""
    kind, target, port, rate, spread, *key = words
    kinds: dict[str, Callable[[], bytes]] = {
        "junk": junk,
        "dtls": dtls,
        "openvpn": openvpn,
        "wireguard": lambda: wireguard(bytes.fromhex(key[0])),
    }
    one = int.from_bytes(socket.inet_aton(_ONE), "big")
    sources = [one if spread == "one" else _FIRST + random.randrange(_HOSTS) for _ in range(_KINDS)]
    packets = [packet(source, target, int(port), kinds[kind]()) for source in sources]
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    print("ready", flush=True)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as out:
        begun, sent = time.monotonic(), 0
        while not told:
            due = int((time.monotonic() - begun) * float(rate)) - sent
            for number in range(sent, sent + due):
                out.sendto(packets[number % _KINDS], (target, 0))
            sent += due
            time.sleep(_EVERY)
        print(f"{sent / (time.monotonic() - begun):.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
