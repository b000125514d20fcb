"""What lies under TLS connections: frames on a stream, the knock, who is shown which certificate when. No sockets."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.errors import BadDatagram
from ipop_tx.transport.frames import HEAD, deliver, framed, unframed
from ipop_tx.transport.tls_context import TlsContexts, knock, knocked
from ipop_tx.values import Endpoint
from tests.tls import Members
from tests.transport import Inbox, cut

SOMEWHERE = Endpoint("tls-in", "192.0.2.1", 1)


class FrameTests(SynchronousTestCase):
    """Runs on a stream."""

    def test_vector(self) -> None:
        self.assertEqual(framed((b"abc", b"de"), 3, 5).hex(), "00050003" + b"abcde".hex())
        self.assertEqual(framed((b"abc", b"beyond"), 9, 2).hex(), "00020002" + b"ab".hex())

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 9000))), st.lists(st.integers(1, 5000)))
    def test_whatever_is_framed_comes_out_however_it_is_cut(self, runs: list[tuple[int, int]], cuts: list[int]) -> None:
        wanted = [(min(size, total), os.urandom(total)) for size, total in runs if -(-total // size) <= 64]
        stream = b"".join(framed((run[:7], run[7:]), size, len(run)) for size, run in wanted)
        rest, found, at = b"", [], 0
        for length in [*cuts, len(stream)]:
            rest += stream[at : at + length]
            runs, taken = unframed(memoryview(rest))
            found += [(size, bytes(run)) for size, run in runs]
            rest, at = rest[taken:], at + length
        self.assertEqual((found, rest), (wanted, b""))

    @settings(deadline=None)
    @given(st.binary(max_size=200))
    def test_garbage_is_refused_or_waited_for(self, garbage: bytes) -> None:
        """Never anything else."""
        try:
            runs, taken = unframed(memoryview(garbage))
        except BadDatagram:
            return
        self.assertEqual(taken, sum(HEAD.size + len(run) for _, run in runs))

    def test_senseless_heads(self) -> None:
        for total, size in ((0, 0), (0, 1), (1, 0), (1, 2), (65001, 1472), (65, 1)):
            with self.assertRaises(BadDatagram):
                unframed(memoryview(HEAD.pack(total, size)))

    def test_delivered_as_it_was(self) -> None:
        """Sizes around that of a header, last datagrams shorter than one."""
        for size, total in ((1, 5), (16, 40), (17, 40), (100, 305), (1472, 3 * 1472), (1472, 1472 + 3), (50, 50)):
            inbox, run = Inbox(), os.urandom(total)
            deliver(inbox, SOMEWHERE, size, memoryview(run))
            self.assertEqual([datagram for _, datagram in inbox.items], cut(run, size))


class KnockTests(SynchronousTestCase):
    """Who may see our certificate."""

    def hello(self, fingerprint: bytes) -> bytes:
        context = SSL.Context(SSL.TLS_METHOD)
        connection = SSL.Connection(context, None)
        connection.set_connect_state()
        connection.set_alpn_protos([knock(fingerprint)])
        self.assertRaises(SSL.WantReadError, connection.do_handshake)
        return connection.bio_read(65536)

    def test_every_beginning(self) -> None:
        """Undecided until the hello is whole, then in; with another fingerprint, or a byte changed in the knock, out."""
        hello = self.hello(b"f" * 16)
        for length in range(len(hello)):
            self.assertIsNone(knocked(b"f" * 16, hello[:length]))
        self.assertTrue(knocked(b"f" * 16, hello))
        self.assertFalse(knocked(b"g" * 16, hello))
        at = hello.index(b"ipop/")
        for place in range(at, at + 5 + 8 + 16):
            altered = bytearray(hello)
            altered[place] ^= 1
            self.assertFalse(knocked(b"f" * 16, altered))

    def test_two_knocks_differ(self) -> None:
        self.assertNotEqual(knock(b"f" * 16)[5:], knock(b"f" * 16)[5:])

    def test_others_are_known_at_once(self) -> None:
        for first in (b"GET / HTTP/1.1\r\n", b"SSH-2.0-x", b"\x80", b"\x16\x03\x01\xff\xff"):
            self.assertFalse(knocked(b"f" * 16, first))

    @settings(deadline=None)
    @given(st.binary(max_size=5000))
    def test_any_bytes(self, data: bytes) -> None:
        """Never in, and never waited for beyond a bound."""
        self.assertIn(knocked(b"f" * 16, data), (False, None) if len(data) < 4096 else (False,))


class ContextTests(SynchronousTestCase):
    """What is the same for all connections."""

    def test_a_server_shows_nothing_before_the_hello(self) -> None:
        contexts = TlsContexts(Members(Path(self.mktemp())).founder)
        connection = contexts.server()
        self.assertRaises(SSL.WantReadError, connection.do_handshake)
        self.assertRaises(SSL.WantReadError, connection.bio_read, 100)

    def test_a_client_shows_nothing_to_strangers(self) -> None:
        """A server of another network that knows our knock learns only that somebody does: we hang up before our certificate is due."""
        ours, other = Members(Path(self.mktemp())).founder, Members(Path(self.mktemp()), "other").founder
        client, server = TlsContexts(ours).client(), TlsContexts(other).server()
        ended = []
        for _ in range(4):
            for end, far in ((client, server), (server, client)):
                try:
                    end.do_handshake()
                except SSL.WantReadError:
                    pass
                except SSL.Error:
                    ended.append(end)
                try:
                    far.bio_write(end.bio_read(65536))
                except SSL.Error:
                    continue
        self.assertIs(ended[0], client)
        self.assertEqual(server.get_app_data().chain, {})
        self.assertEqual(len(client.get_app_data().chain), 3)
