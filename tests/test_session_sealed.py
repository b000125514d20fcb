"""The replay window against a set that remembers everything; the sealed channel's bytes, keys and counters."""

from __future__ import annotations

from itertools import pairwise

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ipop_tx.errors import BadDatagram, LocalMisuse
from ipop_tx.interfaces import ISealedChannel
from ipop_tx.session.hello import COOKIE_LIFETIME, ClientHello, CookieJar, parse_client_hello, split_records
from ipop_tx.session.replay import WINDOW, ReplayWindow
from ipop_tx.session.sealed import Algorithm, SealedChannel, sealed_index
from ipop_tx.wire.datagram import HEADER, headers

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
        header = bytes.fromhex("80000001 02 00 01 00 0000000000000000")
        self.assertEqual(sealed, header + AESGCM(b"c" * 16).encrypt(header[4:], b"frame", None))

    def test_a_record_in_three_pieces(self) -> None:
        """Byte by byte, as a data plane makes it: the nonce is that of piece 0, the ciphertext is cut, the tag goes with the last piece."""
        channel = self.channels(Algorithm.AES_128_GCM)[0]
        channel.reserve(258)
        header = HEADER.pack(channel.send_index, 2, 0, 3, 0, channel.reserve(1))
        sealed = bytearray(30 + 16)
        channel.encrypt(header[4:], bytes(range(30)), None, sealed)
        heads = headers(header, 3)
        pieces = [bytes(heads[n * 16 : n * 16 + 16] + sealed[n * 20 : n * 20 + 20]) for n in range(3)]
        self.assertEqual(bytes(sealed), AESGCM(b"c" * 16).encrypt(bytes.fromhex("02 00 03 00 0000000000000102"), bytes(range(30)), None))
        self.assertEqual(
            [piece.hex() for piece in pieces],
            [
                "80000001 02 00 03 00 0000000000000102 @0".replace(" ", "").replace("@0", sealed[:20].hex()),
                "80000001 02 01 03 00 0000000000000102 @1".replace(" ", "").replace("@1", sealed[20:40].hex()),
                "80000001 02 02 03 00 0000000000000102 @2".replace(" ", "").replace("@2", sealed[40:].hex()),
            ],
        )

    def test_what_selects_treatment_is_authentic(self) -> None:
        """Another kind, number of pieces, number of the piece, flag or counter: it does not open."""
        client, server = self.channels(Algorithm.AES_128_GCM)
        honest = client.protect(1, b"message")
        for at in range(4, 16):
            forged = honest[:at] + bytes((honest[at] ^ 2,)) + honest[at + 1 :]
            self.assertRaises(BadDatagram, server.unprotect, forged)
        self.assertEqual(server.unprotect(honest), (1, b"message"))

    def test_what_a_data_plane_asks(self) -> None:
        """Seal and open in buffers of one's own; a forgery leaves the window where it was, and no record opens twice."""
        for algorithm in Algorithm:
            client, server = self.channels(algorithm)
            verifyObject(ISealedChannel, client)
            first = client.reserve(3)
            self.assertEqual((first, client.reserve(0), client.reserve(1)), (0, 3, 3))
            for counter in (2, 0, 3):
                nonce = HEADER.pack(client.send_index, 2, 0, 1, 0, counter)[4:]
                sealed, opened = bytearray(21), memoryview(bytearray(40))
                client.encrypt(nonce, b"frame", None, sealed)
                self.assertTrue(server.fresh(counter))
                self.assertRaises(InvalidTag, server.decrypt, nonce, sealed[:-1] + b"?", None, opened[:5])
                self.assertTrue(server.fresh(counter))
                server.decrypt(nonce, sealed, None, opened[:5])
                server.accept(counter)
                self.assertEqual((bytes(opened[:5]), server.fresh(counter)), (b"frame", False))
            self.assertEqual((server.highest, server.datagrams_opened), (3, 3))

    def test_the_first_record_is_told_once(self) -> None:
        told: list[None] = []
        keys = (b"c" * 32, b"s" * 32)
        client = SealedChannel(*keys, 1, 2, Algorithm.AES_128_GCM)
        server = SealedChannel(*keys[::-1], 2, 1, Algorithm.AES_128_GCM, lambda: told.append(None))
        for _ in range(3):
            server.unprotect(client.protect(1, b""))
        self.assertEqual(len(told), 1)

    def test_a_piece_is_no_datagram(self) -> None:
        """Control messages that the plane has not opened come whole."""
        client, server = self.channels(Algorithm.AES_128_GCM)
        honest = client.protect(1, b"message")
        for pieces in (0, 2, 255):
            self.assertRaises(BadDatagram, server.unprotect, honest[:6] + bytes((pieces,)) + honest[7:])
        for length in (0, 15, 31):
            self.assertRaises(BadDatagram, server.unprotect, honest[:length])

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
        client.datagrams_sealed = 2**64 - 10
        self.assertRaises(LocalMisuse, client.reserve, 11)
        self.assertEqual(client.reserve(10), 2**64 - 10)
        self.assertRaises(LocalMisuse, client.reserve, 1)

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
