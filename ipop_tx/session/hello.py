"""Reads the first flight of DTLS 1.2 and writes the request for a cookie, so that strangers cost no state."""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from typing import NamedTuple

# Record (RFC 6347, section 4.1): type, version, epoch, sequence number (48 bits), length.
RECORD = struct.Struct("!BHH6sH")
# Handshake (section 4.2.2): type, length (24 bits), message number, fragment offset and length (24 bits each).
_MESSAGE = struct.Struct("!B3sH3s3s")

HANDSHAKE = 22
_CLIENT_HELLO = 1
_HELLO_VERIFY_REQUEST = 3
_DTLS_1_0 = 0xFEFF
_RANDOM_AT = RECORD.size + _MESSAGE.size + 2
_SESSION_ID_AT = _RANDOM_AT + 32

COOKIE_BYTES = 32
COOKIE_LIFETIME = 60.0
"""Seconds after which a new cookie key is drawn; the one before is still accepted as long again."""


class ClientHello(NamedTuple):
    """What has to be known of a ClientHello before any state is kept for its sender."""

    random: bytes
    cookie: bytes


def parse_client_hello(datagram: bytes | memoryview) -> ClientHello | None:
    """The ClientHello that `datagram` begins with, None for anything else. Never raises."""
    raw = bytes(datagram[:512])
    if len(raw) < _SESSION_ID_AT + 2 or raw[0] != HANDSHAKE or raw[1] != 0xFE or raw[3:5] != b"\0\0":
        return None
    kind, length, _, offset, fragment = _MESSAGE.unpack_from(raw, RECORD.size)
    if kind != _CLIENT_HELLO or offset != b"\0\0\0" or length != fragment:
        return None
    cookie_at = _SESSION_ID_AT + 1 + raw[_SESSION_ID_AT]
    if raw[_SESSION_ID_AT] > 32 or cookie_at >= len(raw):
        return None
    cookie = raw[cookie_at + 1 : cookie_at + 1 + raw[cookie_at]]
    return ClientHello(raw[_RANDOM_AT:_SESSION_ID_AT], cookie) if len(cookie) == raw[cookie_at] else None


def hello_verify_request(cookie: bytes) -> bytes:
    """The stateless answer (RFC 6347, section 4.2.1).

    Its record number is always 0, and not the hello's: OpenSSL numbers the records of the server's first flight from 1, and a
    client that had seen 1 already, because it sent its hello twice, would drop them as replayed.
    """
    body = struct.pack("!HB", _DTLS_1_0, len(cookie)) + cookie
    length = len(body).to_bytes(3, "big")
    message = _MESSAGE.pack(_HELLO_VERIFY_REQUEST, length, 0, b"\0\0\0", length) + body
    return RECORD.pack(HANDSHAKE, _DTLS_1_0, 0, bytes(6), len(message)) + message


def split_records(flight: bytes, limit: int) -> list[bytes]:
    """Cut OpenSSL's output into datagrams of at most `limit` bytes, at the ends of records."""
    datagrams: list[bytes] = []
    begin = end = 0
    while end < len(flight):
        after = end + RECORD.size + int.from_bytes(flight[end + 11 : end + 13], "big")
        if after - begin > limit and end > begin:
            datagrams.append(flight[begin:end])
            begin = end
        end = after
    if end > begin:
        datagrams.append(flight[begin:end])
    return datagrams


class CookieJar:
    """Makes and checks cookies: a keyed hash of where a hello came from and of its random bytes."""

    def __init__(self) -> None:
        self._keys = [os.urandom(32)]
        self._drawn_at: float | None = None

    def cookie(self, now: float, source: bytes, random: bytes) -> bytes:
        """The cookie that a hello from `source` must carry now."""
        if self._drawn_at is None:
            self._drawn_at = now
        elif now - self._drawn_at > COOKIE_LIFETIME:
            fresh_enough = now - self._drawn_at <= 2 * COOKIE_LIFETIME
            self._keys = [os.urandom(32), *(self._keys[:1] if fresh_enough else [])]
            self._drawn_at = now
        return _hash(self._keys[0], source, random)

    def valid(self, now: float, source: bytes, hello: ClientHello) -> bool:
        """Whether `hello` carries a cookie that this jar gave to `source` lately."""
        self.cookie(now, source, hello.random)
        return any(hmac.compare_digest(hello.cookie, _hash(key, source, hello.random)) for key in self._keys)


def _hash(key: bytes, source: bytes, random: bytes) -> bytes:
    return hmac.digest(key, random + source, hashlib.sha256)
