"""The sealed channel: authenticated encryption of datagrams once a handshake has given the keys."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from zope.interface import implementer

from ipop_tx.errors import BadDatagram, LocalMisuse
from ipop_tx.interfaces import ISealedChannel
from ipop_tx.session.replay import ReplayWindow
from ipop_tx.wire.datagram import HEADER, OVERHEAD

LAST_COUNTER = 2**64 - 1


class Algorithm(Enum):
    """The AEADs of the sealed channel; the value is the length of the key in bytes."""

    AES_128_GCM = 16
    CHACHA20_POLY1305 = 32


def sealed_index(exported: bytes) -> int:
    """A receiver index from 4 exported bytes, with the top bits 10: the range that RFC 7983 leaves free."""
    return int.from_bytes(exported, "big") & 0x3FFFFFFF | 0x80000000


@implementer(ISealedChannel)
class SealedChannel:
    """Both directions of one session after its handshake.

    The keys may be longer than `algorithm` needs; the rest is ignored. A counter is never used twice under a key. `protect` and
    `unprotect` are whole datagrams; a data plane seals records in buffers of its own, with `reserve`, `encrypt`, `decrypt`, `fresh`
    and `accept`, and must call them in that order.
    """

    __slots__ = ("_on_first", "_opener", "_receive_index", "_replay", "_sealer", "datagrams_opened", "datagrams_sealed", "decrypt",
                 "encrypt", "fresh", "send_index")  # fmt: skip

    def __init__(
        self,
        send_key: bytes,
        receive_key: bytes,
        send_index: int,
        receive_index: int,
        algorithm: Algorithm,
        on_first: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_first` is called once, when the first datagram of the peer has been opened."""
        cipher = AESGCM if algorithm is Algorithm.AES_128_GCM else ChaCha20Poly1305
        self._sealer, self._opener = cipher(send_key[: algorithm.value]), cipher(receive_key[: algorithm.value])
        self.encrypt = self._sealer.encrypt_into
        self.decrypt = self._opener.decrypt_into
        self.send_index = send_index
        self._receive_index = receive_index
        self._replay = ReplayWindow()
        self.fresh = self._replay.fresh
        self._on_first = on_first
        self.datagrams_sealed = 0
        self.datagrams_opened = 0

    @property
    def highest(self) -> int:
        """The greatest counter that was opened, -1 before the first."""
        return self._replay.highest

    def reserve(self, count: int) -> int:
        """Take `count` counters for records to be sealed; gives the first one. Raises `LocalMisuse` when those of this key are used up."""
        counter = self.datagrams_sealed
        if counter + count - 1 > LAST_COUNTER:
            raise LocalMisuse("this session's key has sealed all datagrams that it may", "make a new session")
        self.datagrams_sealed = counter + count
        return counter

    def accept(self, counter: int) -> None:
        """A record with this counter was opened: it is not fresh any more."""
        self._replay.accept(counter)
        self.datagrams_opened += 1
        if self.datagrams_opened == 1:
            self._on_first()

    def accept_run(self, first: int, count: int) -> None:
        """Records with `count` counters one after another were opened; `first` is the one after the greatest so far."""
        self._replay.advance(count)
        self.datagrams_opened += count
        if self.datagrams_opened == count:
            self._on_first()

    def protect(self, kind: int, payload: bytes | memoryview) -> bytes:
        """Seal one datagram. Raises `LocalMisuse` when the counters of this key are used up."""
        header = HEADER.pack(self.send_index, kind, 0, 1, 0, self.reserve(1))
        return header + self._sealer.encrypt(header[4:], payload, None)

    def unprotect(self, datagram: bytes | memoryview) -> tuple[int, bytes]:
        """Open one sealed datagram: (kind, payload). Raises `BadDatagram`."""
        if len(datagram) < OVERHEAD:
            raise BadDatagram("a sealed datagram is too short")
        index, kind, _, pieces, _, counter = HEADER.unpack_from(datagram)
        if index != self._receive_index:
            raise BadDatagram("a sealed datagram is for another session")
        if pieces != 1:
            raise BadDatagram("a sealed datagram is only a piece of a record")
        if not self.fresh(counter):
            raise BadDatagram("a sealed datagram came twice or too late")
        try:
            payload = self._opener.decrypt(datagram[4:16], datagram[16:], None)
        except InvalidTag:
            raise BadDatagram("a sealed datagram is forged or damaged") from None
        self.accept(counter)
        return kind, payload
