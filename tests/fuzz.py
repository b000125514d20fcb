"""`python -m tests.fuzz --executions N`: every parser of what strangers or members send, fed with mutations of good inputs.

The one sentence that is tested: a parser gives a value or raises an `IpopError`, whatever it is given, in bounded memory. Inputs that
break it are written to tests/corpus/NAME/ and are tried first from then on.
"""

from __future__ import annotations

import argparse
import base64
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from ipop_tx.core.links.fragments import Reassembly
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import IpopError
from ipop_tx.forwarding import dhcp as frames_dhcp
from ipop_tx.forwarding import neighbour, offload
from ipop_tx.forwarding.delivery import _lengths
from ipop_tx.forwarding.mtu import clamp_mss, too_big
from ipop_tx.identity import assignment, enrolment, signer
from ipop_tx.identity.certificates import MALFORMED, facts_of, network_of
from ipop_tx.identity.invitation import PREFIX, Invitation, InvitationRecord, _checksum
from ipop_tx.identity.keys import COMPRESSED_BYTES, SALT_BYTES
from ipop_tx.session.hello import parse_client_hello
from ipop_tx.transport.frames import unframed
from ipop_tx.transport.proxy import tunnel
from ipop_tx.values import Endpoint, Proxy
from ipop_tx.wire import dhcp, policy, portmap
from ipop_tx.wire import messages as m
from ipop_tx.wire.datagram import form_of, receiver_index
from ipop_tx.wire.relay import Relayed

CORPUS = Path(__file__).with_name("corpus")
LONGEST = 2048
"""Bytes of an input, at most."""
Parser = Callable[[bytes], Any]


def _certificate(data: bytes) -> None:
    from cryptography import x509

    try:
        certificate = x509.load_der_x509_certificate(data)
        network_of(certificate)
        facts_of(certificate)
    except MALFORMED:
        pass  # what those who call these functions expect


def _invitation_body(data: bytes) -> Invitation:
    """With a good checksum, which a mutation would hardly ever hit."""
    return Invitation.parse(PREFIX + base64.urlsafe_b64encode(data + _checksum(data)).decode().rstrip("="))


def _der_pair(data: bytes) -> None:
    assignment.chain_of.cache_clear()
    assignment.key_and_salt(data)


def _signature(data: bytes) -> None:
    signer._owner(data[: COMPRESSED_BYTES + SALT_BYTES], b"data", data[COMPRESSED_BYTES + SALT_BYTES :])


def _proxied(kind: str) -> Parser:
    """What a proxy says, in two parts."""
    asked = Proxy(kind, "192.0.2.1", 8080, "user", "password")

    def say(data: bytes) -> None:
        way = tunnel(asked, Endpoint("tls", "192.0.2.2", 443))
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            if not way.done:
                way.receive(part)

    return say


def _fragments(data: bytes) -> None:
    """A row of fragments of several senders."""
    reassembly = Reassembly(Runtime(Random(1)))
    for at in range(0, len(data) - 4, 4):
        sender, group, index, count = data[at : at + 4]
        whole = reassembly.add(bytes([sender & 3]) * 20, m.Fragment(group, index & 63, max(1, count & 63), data[at : at + count]))
        if whole is not None:
            m.decode(whole)


def _packed(work: Callable[[memoryview, int], Any]) -> Parser:
    return lambda data: work(memoryview(bytearray(data[:LONGEST])), len(data[:LONGEST])) if len(data) >= 34 else None


def _text(read: Callable[[str], Any]) -> Parser:
    return lambda data: read(data.decode("latin-1"))


PARSERS: dict[str, Parser] = {
    "message": m.decode,
    "relay": Relayed.decode,
    "datagram": lambda data: (form_of(data), receiver_index(data)),
    "hello": parse_client_hello,
    "dhcp": dhcp.decode,
    "dhcp_frame": lambda data: frames_dhcp.parse(data, True),
    "is_dhcp": lambda data: frames_dhcp.is_dhcp(data) and frames_dhcp.is_from_server(data) if len(data) >= 34 else None,
    "portmap": portmap.decode,
    "neighbour": lambda data: (neighbour.parse(data), neighbour.heard(data), neighbour.is_discovery(data)),
    "bundle": lambda data: _lengths(memoryview(data)),
    "payload": _packed(offload.payload_at),
    "restore": _packed(lambda packed, end: offload.restore(packed, offload.payload_at(packed, end) and end, 0, True)),
    "segment": lambda data: offload.segment(data) if len(data) > 34 else None,
    "clamp": _packed(lambda packed, end: clamp_mss(packed, end, 1280)),
    "too_big": _packed(lambda packed, end: too_big(packed, end, 1280)),
    "stream": lambda data: unframed(memoryview(data)),
    "endpoint": _text(Endpoint.parse),
    "invitation": _text(Invitation.parse),
    "invitation_body": _invitation_body,
    "invitation_record": InvitationRecord.decode,
    "certificate": _certificate,
    "request": enrolment._request,
    "credential": _der_pair,
    "signature": _signature,
    "policy": _text(policy.parse),
    "service": _text(policy.parse_service),
    "http_proxy": _proxied("http"),
    "socks_proxy": _proxied("socks5"),
    "fragments": _fragments,
}


def seeds(name: str) -> list[bytes]:
    """Good inputs, or nearly, to begin with."""
    from tests import fuzz_seeds

    kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    return [*kept, *fuzz_seeds.SEEDS.get(name, []), b"", bytes(64)]


def mutated(rng: Random, pool: Sequence[bytes]) -> bytes:
    """One of the pool with a few things changed: bits, bytes, lengths, a piece of another one."""
    data = bytearray(rng.choice(pool))
    for _ in range(1 + int(rng.random() * 4)):
        kind, at = int(rng.random() * 7), int(rng.random() * (len(data) + 1))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << int(rng.random() * 8)
        elif kind == 1 and at < len(data):
            data[at] = int(rng.random() * 256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = rng.randbytes(1 + int(rng.random() * 8))
        elif kind == 4:
            del data[at : at + 1 + int(rng.random() * 8)]
        elif kind == 5 and at < len(data):
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x92, 0xDC, 0xDD, 0xC6))
        else:
            other = rng.choice(pool)
            data[at : at + 16] = other[int(rng.random() * (len(other) + 1)) :][:64]
    return bytes(data[:LONGEST])


def fuzz(name: str, executions: int, seed: int) -> tuple[int, list[str]]:
    """(executions, what broke the sentence). An input that is taken without complaint joins the pool, up to a bound."""
    parse, rng, pool, broken = PARSERS[name], Random(f"{name}{seed}"), seeds(name), []
    good = len(pool)
    for number in range(executions):
        data = pool[number] if number < good else mutated(rng, pool)
        try:
            parse(data)
        except IpopError:
            continue
        except Exception as error:  # noqa: BLE001 - this is what we look for
            broken.append(f"{name}: {type(error).__name__}: {error}")
            keep(name, data)
            if len(broken) >= 3:
                return number + 1, broken
            continue
        if number >= good and rng.random() < 0.01:
            pool.append(data) if len(pool) < good + 200 else pool.__setitem__(good + int(rng.random() * 200), data)
    return executions, broken


def keep(name: str, data: bytes) -> None:
    """Write an input that has broken a parser into the corpus."""
    import hashlib

    place = CORPUS / name
    place.mkdir(parents=True, exist_ok=True)
    (place / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def run(executions: int, seed: int, names: Sequence[str]) -> dict[str, Any]:
    """All parsers in turn; gives the report."""
    begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done, broken = {}, []
    for name in names:
        done[name], found = fuzz(name, executions // len(names), seed)
        broken += found
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    cpu = round(time.process_time() - begun, 1)
    return {"executions": sum(done.values()), "cpu_s": cpu, "memory_grown_mb": round(grown, 1), "parsers": done, "broken": broken}


def main(argv: Sequence[str] | None = None) -> int:
    """Run with words of the command line; gives the exit status: 0 only when no parser broke."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--executions", type=int, default=100_000, help="of all parsers together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations (default: %(default)s)")
    parser.add_argument("parsers", nargs="*", metavar="PARSER", help=f"some of {', '.join(PARSERS)}")
    options = parser.parse_args(argv)
    found = run(options.executions, options.seed, options.parsers or list(PARSERS))
    print(json.dumps(found))
    return 1 if found["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
