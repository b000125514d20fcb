"""The sealed channel: authenticated encryption of datagrams once a handshake has given the keys."""

from __future__ import annotations

import struct
from enum import Enum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from ipop_tx.errors import BadDatagram, LocalMisuse
from ipop_tx.session.replay import ReplayWindow

# 0               4      5       6          8                   16            n-16     n
# +---------------+------+-------+----------+--------------------+------------+--------+
# | receiver index| kind | flags | reserved |  counter           | ciphertext | tag    |
# +---------------+------+-------+----------+--------------------+------------+--------+
#   10xxxxxx ...   \__________ bytes 4-15 are the AEAD nonce __________/
HEADER = struct.Struct("!IBBHQ")
TAG_BYTES = 16
OVERHEAD = HEADER.size + TAG_BYTES
"""Bytes that sealing adds to a payload."""

LAST_COUNTER = 2**64 - 1


class Algorithm(Enum):
    """The AEADs of the sealed channel; the value is the length of the key in bytes."""

    AES_128_GCM = 16
    CHACHA20_POLY1305 = 32


def sealed_index(exported: bytes) -> int:
    """A receiver index from 4 exported bytes, with the top bits 10: the range that RFC 7983 leaves free."""
    return int.from_bytes(exported, "big") & 0x3FFFFFFF | 0x80000000


class SealedChannel:
    """Both directions of one session after its handshake.

    The keys may be longer than `algorithm` needs; the rest is ignored. A counter is never used twice under a key.
    """

    __slots__ = ("_open", "_receive_index", "_replay", "_seal", "_send_index", "datagrams_opened", "datagrams_sealed")

    def __init__(self, send_key: bytes, receive_key: bytes, send_index: int, receive_index: int, algorithm: Algorithm) -> None:
        cipher = AESGCM if algorithm is Algorithm.AES_128_GCM else ChaCha20Poly1305
        self._seal = cipher(send_key[: algorithm.value]).encrypt
        self._open = cipher(receive_key[: algorithm.value]).decrypt
        self._send_index = send_index
        self._receive_index = receive_index
        self._replay = ReplayWindow()
        self.datagrams_sealed = 0
        self.datagrams_opened = 0

    def protect(self, kind: int, payload: bytes | memoryview) -> bytes:
        """Seal one datagram. Raises `LocalMisuse` when the counters of this key are used up."""
        counter = self.datagrams_sealed
        if counter > LAST_COUNTER:
            raise LocalMisuse("this session's key has sealed all datagrams that it may", "make a new session")
        self.datagrams_sealed = counter + 1
        header = HEADER.pack(self._send_index, kind, 0, 0, counter)
        return header + self._seal(header[4:], payload, None)

    def unprotect(self, datagram: bytes | memoryview) -> tuple[int, bytes]:
        """Open one sealed datagram: (kind, payload). Raises `BadDatagram`."""
        if len(datagram) < OVERHEAD:
            raise BadDatagram("a sealed datagram is too short")
        index, kind, _, _, counter = HEADER.unpack_from(datagram)
        if index != self._receive_index:
            raise BadDatagram("a sealed datagram is for another session")
        if not self._replay.fresh(counter):
            raise BadDatagram("a sealed datagram came twice or too late")
        try:
            payload = self._open(datagram[4:16], datagram[16:], None)
        except InvalidTag:
            raise BadDatagram("a sealed datagram is forged or damaged") from None
        self._replay.accept(counter)
        self.datagrams_opened += 1
        return kind, payload
