"""Inputs made to hurt: nested as deep as they are long, lengths that promise gigabytes, good ones cut off at every byte.

The sentence of `tests.fuzz` holds for them too, within `MOST_BYTES` of memory and `MOST_SECONDS` for each.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator

from ipop_tx.errors import IpopError
from tests import fuzz

LONG = 60_000
"""Bytes: a datagram has no more."""
MOST_BYTES = 4 << 20
MOST_SECONDS = 1.0


def nested() -> Iterator[bytes]:
    """Arrays and maps in one another, in msgpack, JSON, TOML and DER, alone and behind what the parsers look for first."""
    for opening in (b"\x91", b"\x81\xa1x", b"\xdc\x00\x01", b"[", b'{"allow":', b"\x30\x80", b"\xa0\x84\x00\x00\xff\xff"):
        deep = opening * (LONG // len(opening))
        yield deep
        for head in (b"\x92\x05", b"\x93\x05\x01", b"default = ", b"[[allow]]\nname = ", b"\x92"):
            yield head + deep


def promising() -> Iterator[bytes]:
    """Lengths with nothing behind them."""
    for head in (b"\xc6", b"\xdb", b"\xdd", b"\xdf", b"\xc9", b"\x30\x84", b"\x04\x84"):
        for length in (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\xff\xff\xff"):
            yield head + length
            yield b"\x92" + head + length
            yield b"\x93\x05\x01" + head + length
    yield from (bytes([byte]) * LONG for byte in (0x00, 0x41, 0x7F, 0x80, 0xC0, 0xFF))


def cut(name: str) -> Iterator[bytes]:
    """Every seed of a parser without its end."""
    for seed in fuzz.seeds(name):
        for end in range(len(seed)):
            yield seed[:end]


def against(name: str) -> tuple[int, int, list[str]]:
    """All of it against one parser: (inputs, most bytes that one took, what broke the sentence)."""
    longest = fuzz.LONGEST if name == "fragments" else LONG
    parse, inputs, most, broken = fuzz.PARSERS[name], [one[:longest] for one in (*nested(), *promising(), *cut(name))], 0, []
    tracemalloc.start()
    try:
        for data in inputs:
            tracemalloc.reset_peak()
            before, begun = tracemalloc.get_traced_memory()[0], time.process_time()
            try:
                parse(data)
            except IpopError:
                pass
            except Exception as error:  # noqa: BLE001 - this is what we look for
                broken.append(f"{name}: {type(error).__name__} at {data[:16].hex()}")
            took, seconds = tracemalloc.get_traced_memory()[1] - before, time.process_time() - begun
            most = max(most, took)
            if took > MOST_BYTES or seconds > MOST_SECONDS:
                broken.append(f"{name}: {took} bytes and {seconds:.1f} s for {data[:16].hex()}")
    finally:
        tracemalloc.stop()
    return len(inputs), most, broken
