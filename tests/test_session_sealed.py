"""The replay window against a set that remembers everything; the sealed channel's bytes, keys and counters."""

from __future__ import annotations

from itertools import pairwise

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.errors import BadDatagram, LocalMisuse
from ipop_tx.session.hello import COOKIE_LIFETIME, ClientHello, CookieJar, parse_client_hello, split_records
from ipop_tx.session.replay import WINDOW, ReplayWindow
from ipop_tx.session.sealed import Algorithm, SealedChannel, sealed_index

BEGINNING = b"\x16\xfe\xfd\0\0" + bytes(8) + b"\1\0\0\xb0\0\0\0\0\0\0\0\xb0"
"""A record header and a handshake header that promise a ClientHello."""


class ReplayWindowTests(SynchronousTestCase):
    """Exactly the counters in (highest - WINDOW, highest] that were not accepted, and everything newer, are fresh."""

    @given(
        st.lists(st.one_of(st.integers(-3, 3), st.integers(-WINDOW - 2, WINDOW + 2), st.integers(0, 2**63)), max_size=60),
        st.integers(0, 9000),
    )
    def test_against_a_set(self, steps: list[int], run: int) -> None:
        window, seen, highest = ReplayWindow(), set(range(run)), run - 1
        for counter in range(run):
            window.accept(counter)
        for step in steps:
            counter = min(max(highest + step, 0), 2**64 - 1)
            expected = counter > highest or (counter > highest - WINDOW and counter not in seen)
            self.assertEqual(window.fresh(counter), expected)
            if expected:
                window.accept(counter)
                seen.add(counter)
                highest = max(highest, counter)
                self.assertFalse(window.fresh(counter))

    def test_edges(self) -> None:
        window = ReplayWindow()
        window.accept(WINDOW)
        self.assertEqual([window.fresh(counter) for counter in (0, 1, WINDOW - 1, WINDOW, WINDOW + 1)], [False, True, True, False, True])
        window.accept(1)
        window.accept(2**64 - 1)
        self.assertEqual([window.fresh(2**64 - 1 - back) for back in (0, 1, WINDOW - 1, WINDOW)], [False, True, True, False])


class SealedChannelTests(SynchronousTestCase):
    """The format of docs/architecture.md."""

    def channels(self, algorithm: Algorithm) -> tuple[SealedChannel, SealedChannel]:
        keys, indices = (b"c" * 32, b"s" * 32), (0x80000001, 0xBFFFFFFF)
        return SealedChannel(*keys, *indices, algorithm), SealedChannel(*keys[::-1], *indices[::-1], algorithm)

    def test_bytes(self) -> None:
        sealed = self.channels(Algorithm.AES_128_GCM)[0].protect(2, b"frame")
        header = bytes.fromhex("80000001 02 00 0000 0000000000000000")
        self.assertEqual(sealed, header + AESGCM(b"c" * 16).encrypt(header[4:], b"frame", None))

    def test_counters(self) -> None:
        for algorithm in Algorithm:
            client, server = self.channels(algorithm)
            sealed = [client.protect(1, b"%d" % number) for number in range(5)]
            for number in (4, 0, 3):
                self.assertEqual(server.unprotect(sealed[number]), (1, b"%d" % number))
            self.assertEqual((client.datagrams_sealed, server.datagrams_opened), (5, 3))

    def test_a_forgery_does_not_move_the_window(self) -> None:
        client, server = self.channels(Algorithm.AES_128_GCM)
        honest = client.protect(1, b"")
        forged = honest[:8] + bytes([255]) * 8 + honest[16:]
        self.assertRaises(BadDatagram, server.unprotect, forged)
        self.assertEqual(server.unprotect(honest), (1, b""))

    def test_no_counter_twice(self) -> None:
        client, server = self.channels(Algorithm.AES_128_GCM)
        client.datagrams_sealed = 2**64 - 1
        self.assertEqual(server.unprotect(client.protect(1, b"last")), (1, b"last"))
        self.assertRaises(LocalMisuse, client.protect, 1, b"")

    def test_index(self) -> None:
        self.assertEqual([sealed_index(raw) for raw in (bytes(4), b"\xff" * 4, b"\x40\0\0\1")], [0x80000000, 0xBFFFFFFF, 0x80000001])


class HelloTests(SynchronousTestCase):
    """Parsing before any state is kept."""

    @given(st.binary(max_size=200), st.sampled_from([b"", b"\x16\xfe\xff\0\0", BEGINNING]))
    def test_never_raises(self, tail: bytes, head: bytes) -> None:
        hello = parse_client_hello(head + tail)
        self.assertTrue(hello is None or len(hello.random) == 32)

    @given(st.lists(st.integers(0, 1187), min_size=1, max_size=12))
    def test_records_are_packed_into_datagrams(self, lengths: list[int]) -> None:
        flight = b"".join(b"\x16\xfe\xfd" + bytes(8) + length.to_bytes(2, "big") + bytes(length) for length in lengths)
        datagrams = split_records(flight, 1200)
        self.assertEqual(b"".join(datagrams), flight)
        self.assertTrue(all(len(datagram) <= 1200 and datagram[0] == 0x16 for datagram in datagrams))
        self.assertTrue(all(len(one) + 13 + int.from_bytes(two[11:13], "big") > 1200 for one, two in pairwise(datagrams)))

    def test_cookies_age(self) -> None:
        jar = CookieJar()
        hello = ClientHello(b"r" * 32, jar.cookie(0.0, b"here", b"r" * 32))
        for now, good in ((0.0, True), (COOKIE_LIFETIME + 1, True), (2 * COOKIE_LIFETIME + 3, False)):
            self.assertEqual(jar.valid(now, b"here", hello), good)
        idle = CookieJar()
        old = ClientHello(b"r" * 32, idle.cookie(0.0, b"here", b"r" * 32))
        self.assertFalse(idle.valid(10 * COOKIE_LIFETIME, b"here", old))
        self.assertFalse(jar.valid(0.0, b"there", ClientHello(b"r" * 32, jar.cookie(0.0, b"here", b"r" * 32))))
