"""TLS: datagrams over connections between members, on loopback; who is let in; what waits, and how much of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.trial.unittest import SkipTest, SynchronousTestCase
from zope.interface.verify import verifyObject

from ipop_tx.errors import EnvironmentProblem, LocalMisuse
from ipop_tx.identity.credentials import GuestCredentials
from ipop_tx.identity.keys import generate_key
from ipop_tx.interfaces import ITransport, ITransports
from ipop_tx.services.pump import Pump
from ipop_tx.transport import tls as tls_module
from ipop_tx.transport import tls_ends
from ipop_tx.transport.memory import MemoryNet
from ipop_tx.transport.several import Transports
from ipop_tx.transport.tls_connection import QUEUE_BYTES
from ipop_tx.transport.tls_context import knock
from ipop_tx.values import Endpoint
from tests.tls import Members, TlsCase
from tests.transport import Inbox, cut, laid_out

SOMEWHERE = Endpoint("tls-in", "192.0.2.1", 1)


class CarryTests(TlsCase):
    """Datagrams there and back."""

    def test_interface(self) -> None:
        transport, _, endpoint = self.listening()
        verifyObject(ITransport, transport)
        self.assertEqual(endpoint.scheme, "tls")
        self.assertEqual(self.dialling(self.members.founder)[0].local_endpoints(), [])

    async def test_there_and_back(self) -> None:
        """The answer goes by the connection that the question made."""
        _, inbox, endpoint = server = self.listening()
        client, answers = self.dialling(self.members.member("client"))
        client.write(endpoint, b"hello")
        await inbox.have(1)
        source, datagram = inbox.items[0]
        self.assertEqual((source.scheme, source.host, datagram), ("tls-in", "127.0.0.1", b"hello"))
        server[0].write(source, memoryview(b"--hello yourself")[2:])
        await answers.have(1)
        self.assertEqual(answers.items, [(endpoint, b"hello yourself")])
        self.assertEqual([one.peer.name for one in server[0] if one.peer], ["client"])

    async def test_ipv6(self) -> None:
        """A transport that listens on all addresses sees IPv4 clients as such."""
        if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
            raise SkipTest("this machine has no IPv6")
        server, inbox = self.dialling(self.members.founder, host="::", port=0)
        client, _ = self.dialling(self.members.member("client"))
        for number, host in enumerate(("::1", "127.0.0.1")):
            client.write(Endpoint("tls", host, server.port), b"x")
            await inbox.have(number + 1)
            self.assertEqual((inbox.items[-1][0].scheme, inbox.items[-1][0].host), ("tls-in", host))
        self.assertTrue(all(endpoint.port == server.port for endpoint in server.local_endpoints()))

    async def test_runs_keep_order_and_sizes(self) -> None:
        _, inbox, endpoint = self.listening()
        client, _ = self.dialling(self.members.member("client"))
        expected: list[bytes] = []
        for size, total in (
            (1472, 44 * 1472),
            (1472, 1472),
            (1472, 20),
            (1200, 20 * 1200 + 17),
            (100, 6400),
            (8973, 50000),
            (65000, 65000),
        ):
            run = os.urandom(total)
            for buffers in (laid_out(client, run, size) if size < 9000 else [run], [run[: total // 2], memoryview(run)[total // 2 :]]):
                self.assertTrue(client.write_run(endpoint, buffers, size, total))
                expected += cut(run, size)
                await inbox.have(len(expected))
        self.assertEqual([datagram for _, datagram in inbox.items], expected)
        self.assertGreater(inbox.bursts, 0)

    async def test_much_at_once(self) -> None:
        """Back-pressure: whoever waits when asked to loses nothing."""
        _, inbox, endpoint = self.listening()
        client, told = self.dialling(self.members.member("client"))
        client.write(endpoint, b"first")
        await inbox.have(1)
        run = os.urandom(64000)
        for number in range(500):
            if not client.write_run(endpoint, [number.to_bytes(4, "big") + run[4:]], 1000, 64000):
                drains = told.drains
                await self.becomes(lambda drains=drains: told.drains > drains)
        await inbox.have(1 + 500 * 64)
        self.assertEqual([int.from_bytes(datagram[:4], "big") for _, datagram in inbox.items[1::64]], list(range(500)))
        self.assertEqual(client.counters.dropped, 0)

    async def test_a_lost_connection_is_told_and_made_anew(self) -> None:
        server, inbox, endpoint = self.listening()
        client, told = self.dialling(self.members.member("client"))
        client.write(endpoint, b"one")
        await inbox.have(1)
        next(iter(server)).transport.abortConnection()  # type: ignore[union-attr]
        await self.becomes(lambda: told.lost == [endpoint] and inbox.lost == [inbox.items[0][0]])
        self.assertEqual(list(client), [])
        client.write(endpoint, b"too soon")
        self.assertEqual(list(client), [])
        await self.sleep(tls_ends.PATIENCE[1])
        client.write(endpoint, b"two")
        await inbox.have(2)
        self.assertEqual(inbox.items[1][1], b"two")

    async def test_nobody_there(self) -> None:
        """Silent, and tried more and more rarely."""
        server, _, endpoint = self.listening()
        await self.stopped(server)
        client, told = self.dialling(self.members.member("client"))
        client.write(endpoint, b"anybody?")
        await self.becomes(lambda: not list(client))
        self.assertFalse(client.write(endpoint, b"still nobody?") or list(client))
        self.assertEqual((told.lost, client._dialler._known[endpoint].failures), ([], 1))

    def test_nobody_is_reached_where_somebody_came_from(self) -> None:
        client, _ = self.dialling(self.members.member("client"))
        client.write(SOMEWHERE, b"x")
        self.assertTrue(client.write_run(SOMEWHERE, [b"x"], 1, 1))
        self.assertEqual(list(client), [])

    async def test_what_is_idle_is_closed(self) -> None:
        """By the end that made it, in good order."""
        server, inbox, endpoint = self.listening()
        client, told = self.dialling(self.members.member("client"))
        client.write(endpoint, b"one")
        await inbox.have(1)
        for _ in range(tls_module.OURS_IDLE):
            client._look()
            server._look()
        self.assertEqual((len(list(client)), len(list(server))), (1, 1))
        client._look()
        await self.becomes(lambda: not list(server) and told.lost == [endpoint])
        client.write(endpoint, b"two")
        await inbox.have(2)
        for transport in (client, server):
            for call in [call for call in reactor.getDelayedCalls() if call.func == transport._look]:  # type: ignore[attr-defined]
                if call is not transport._looking:
                    call.cancel()

    def test_a_taken_port(self) -> None:
        """One sentence that names port and mend."""
        _, _, endpoint = self.listening()
        problem = self.assertRaises(EnvironmentProblem, self.dialling, self.members.founder, host="127.0.0.1", port=endpoint.port)
        self.assertIn(f"TCP port {endpoint.port}", str(problem))
        self.assertIn("ss -ltnp", str(problem))

    async def test_stop_while_connecting(self) -> None:
        client, _ = self.dialling(self.members.member("client"))
        client.write(Endpoint("tls", "127.0.0.1", 9), b"x")
        client.stop()
        client.stop()
        self.assertEqual(list(client), [])


class PumpedTests(CarryTests):
    """The same under the loop of the daemon."""

    def setUp(self) -> None:
        super().setUp()
        self.loop = Pump(reactor)


class StrangerTests(TlsCase):
    """Who is let in, and what the others cost."""

    async def turned_away(self, credentials: Any) -> dict[str, int]:
        server, inbox, endpoint = self.listening()
        client, _ = self.dialling(credentials)
        client.write(endpoint, b"let me in")
        await self.becomes(lambda: not list(client))
        await self.becomes(lambda: server.counts()["strangers"] + server.counts()["malformed"] > 0)
        self.assertEqual((inbox.items, list(server)), ([], []))
        return server.counts()

    async def test_members_of_another_network(self) -> None:
        """They do not even learn which network this is."""
        other = Members(Path(self.mktemp()), "other")
        self.assertEqual((await self.turned_away(other.founder))["strangers"], 1)

    async def test_members_of_another_network_who_know_the_knock(self) -> None:
        other = Members(Path(self.mktemp()), "other").founder
        self.patch(type(other), "fingerprint", self.members.founder.fingerprint)
        self.assertEqual((await self.turned_away(other))["strangers"], 1)

    async def test_guests(self) -> None:
        """Whoever has an invitation may come, to ask for admission; but nobody connects to one who is only a guest."""
        guest = GuestCredentials(generate_key(), self.members.founder.fingerprint)
        server, inbox, endpoint = self.listening()
        client, _ = self.dialling(guest)
        client.write(endpoint, b"may I?")
        await inbox.have(1)
        self.assertTrue(next(iter(server)).peer.guest)  # type: ignore[union-attr]
        _, _, at_guest = self.listening(guest)
        member, _ = self.dialling(self.members.member("member"))
        member.write(at_guest, b"x")
        await self.becomes(lambda: not list(member))

    async def test_so_many_guests(self) -> None:
        """Anybody who knows the knock can be a guest, under as many keys as he likes: they take few places, and not for long."""
        self.patch(tls_ends, "GUESTS", 2)
        server, inbox, endpoint = self.listening()
        guests = [self.dialling(GuestCredentials(generate_key(), self.members.founder.fingerprint))[0] for _ in range(3)]
        for number, guest in enumerate(guests):
            guest.write(endpoint, b"x")
            await self.becomes(lambda number=number: server.counters.accepted == min(number + 1, 2) and not server._door._unknown)
        await self.becomes(lambda: not list(guests[2]))
        client, _ = self.dialling(self.members.member("client"))
        client.write(endpoint, b"member")
        await inbox.have(3)
        for connection in server:
            connection.looks = tls_module.GUESTS_STAY
        server._looking.cancel()
        server._look()
        await self.becomes(lambda: [one.peer.name for one in server if one.peer] == ["client"])

    async def test_a_flood_of_silent_ones(self) -> None:
        """The oldest silent one makes way for the next: who knocks at once comes in."""
        self.patch(tls_ends, "STRANGERS", 3)
        _, inbox, endpoint = self.listening()
        silent = [await self.raw(endpoint) for _ in range(5)]
        await self.becomes(lambda: [one.closed for one in silent] == [True, True, False, False, False])
        client, _ = self.dialling(self.members.member("client"))
        client.write(endpoint, b"x")
        await inbox.have(1)
        self.assertTrue(silent[2].closed)

    async def test_garbage(self) -> None:
        """Whatever a stranger says, it gets nothing, at once."""
        server, _, endpoint = self.listening()
        for said in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(3000), b"\x16\x03\x01\x00\x05" + bytes(5), b"\x16\x03\x01\xff\xff"):
            stranger = await self.raw(endpoint)
            stranger.transport.write(said)
            await self.becomes(lambda stranger=stranger: stranger.closed, 2)
            self.assertEqual(stranger.received, b"")
        self.assertEqual(server.counts()["strangers"], 4)

    async def test_silence(self) -> None:
        """Who says nothing is not waited for long."""
        self.patch(tls_ends, "KNOCKING_SECONDS", 0.1)
        _, _, endpoint = self.listening()
        stranger = await self.raw(endpoint)
        await self.becomes(lambda: stranger.closed, 2)

    async def test_so_many_at_a_time(self) -> None:
        """Strangers from one address do not use up the places, and members still come in once they are gone."""
        server, inbox, endpoint = self.listening()
        strangers = [await self.raw(endpoint) for _ in range(server.strangers_each + 3)]
        await self.becomes(lambda: sum(one.closed for one in strangers) == 3)
        for one in strangers:
            one.end()
        await self.becomes(lambda: not server._door._unknown and not server._door._from)
        client, _ = self.dialling(self.members.member("client"))
        client.write(endpoint, b"x")
        await inbox.have(1)

    async def test_a_member_has_few_connections(self) -> None:
        """The oldest makes way: it may be dead."""
        server, inbox, endpoint = self.listening()
        credentials = self.members.member("client")
        clients = []
        for number in range(tls_ends.EACH + 1):
            client, _ = self.dialling(credentials)
            client.write(endpoint, b"x")
            await inbox.have(number + 1)
            clients.append(client)
        await self.becomes(lambda: not list(clients[0]))
        self.assertEqual([len(list(client)) for client in clients[1:]], [1] * tls_ends.EACH)
        self.assertEqual(len(list(server)), tls_ends.EACH)

    async def test_so_many_in_all(self) -> None:
        server, inbox, endpoint = self.listening(connections=1)
        first, _ = self.dialling(self.members.member("one"))
        first.write(endpoint, b"x")
        await inbox.have(1)
        second, _ = self.dialling(self.members.member("two"))
        second.write(endpoint, b"x")
        await self.becomes(lambda: not list(second))
        self.assertEqual((len(list(server)), server.counts()["strangers"]), (1, 1))

    async def test_malformed_frames(self) -> None:
        """A member that sends what is no frame loses the connection."""
        server, inbox, endpoint = self.listening()
        client, _ = self.dialling(self.members.member("client"))
        client.write(endpoint, b"x")
        await inbox.have(1)
        next(iter(client)).send(bytes(4))
        await self.becomes(lambda: not list(server) and not list(client))
        self.assertEqual(len(inbox.items), 1)

    async def test_old_tls(self) -> None:
        """A client that knocks but speaks only TLS 1.2 gets an alert and no certificate."""
        _, _, endpoint = self.listening()
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_max_proto_version(SSL.TLS1_3_VERSION - 1)
        connection = SSL.Connection(context, None)
        connection.set_connect_state()
        connection.set_alpn_protos([knock(self.members.founder.fingerprint)])
        self.assertRaises(SSL.WantReadError, connection.do_handshake)
        stranger = await self.raw(endpoint)
        stranger.transport.write(connection.bio_read(65536))
        await self.becomes(lambda: stranger.closed)
        self.assertLess(len(stranger.received), 50)


class SlowTests(TlsCase):
    """Receivers that are slower than what is sent to them."""

    async def test_memory_is_bounded(self) -> None:
        """A peer that reads nothing holds a bounded queue, others are not kept waiting by it, and what does not fit is counted."""
        server, inbox, endpoint = self.listening()
        client, _ = self.dialling(self.members.member("client"))
        client.write(endpoint, b"x")
        await inbox.have(1)
        source = inbox.items[0][0]
        next(iter(client)).transport.pauseProducing()  # type: ignore[union-attr]
        slow = next(iter(server))
        run = os.urandom(64000)
        held = 0
        for _ in range(400):
            held += not server.write_run(source, [run], 1000, 64000)
            await self.sleep(0)
            self.assertLessEqual(slow.queued, QUEUE_BYTES)
        self.assertGreater(server.counters.dropped, 0)
        self.assertGreater(held, 0)
        drains = inbox.drains
        await self.sleep(2 * tls_module.HOLD_SECONDS)
        self.assertTrue(server.write_run(source, [run], 1000, 64000), "nobody waits for it any more")
        self.assertGreaterEqual(inbox.drains, max(1, drains))
        buffered = len(slow.transport.dataBuffer) + slow.transport._tempDataLen  # type: ignore[union-attr]
        self.assertLess(buffered, 4 * QUEUE_BYTES)
        next(iter(client)).transport.resumeProducing()  # type: ignore[union-attr]
        await self.becomes(lambda: not slow.queued)

    async def test_who_relays_holds_back(self) -> None:
        """A receiver that falls behind slows down the sender at the far side of a relay; nothing is lost, and little piles up."""
        self.patch(tls_module, "HOLD_SECONDS", 5.0)  # however busy this machine is
        relay, inbox, endpoint = self.listening()
        ends = [self.dialling(self.members.member(name)) for name in ("sender", "receiver")]
        for number, (end, _) in enumerate(ends):
            end.write(endpoint, b"x")
            await inbox.have(number + 1)
        (sender, told), (receiver, got) = ends
        onward = inbox.items[1][0]
        most = 0

        def relayed(source: Endpoint, heads: bytearray, bodies: memoryview, size: int, total: int) -> None:
            nonlocal most
            datagrams = (heads[16 * at : 16 * at + 16] + bodies[(size - 16) * at : (size - 16) * (at + 1)] for at in range(total // size))
            relay.write_run(onward, [b"".join(datagrams)], size, total)
            most = max(most, *(connection.queued for connection in relay))

        self.patch(inbox, "run_received", relayed)
        slow = next(iter(receiver)).transport
        slow.pauseProducing()  # type: ignore[union-attr]
        reactor.callLater(0.05, slow.resumeProducing)  # type: ignore[attr-defined, union-attr]
        for _ in range(300):
            if not sender.write_run(endpoint, [os.urandom(60000)], 1000, 60000):
                drains = told.drains
                await self.becomes(lambda drains=drains: told.drains > drains)
        await got.have(300 * 60)
        self.assertEqual((relay.counters.dropped, sender.counters.dropped), (0, 0))
        self.assertTrue(64 << 10 < most <= QUEUE_BYTES, most)

    async def test_what_is_urgent_goes_first(self) -> None:
        server, inbox, endpoint = self.listening()
        client, answers = self.dialling(self.members.member("client"))
        client.write(endpoint, b"x")
        await inbox.have(1)
        source, connection = inbox.items[0][0], next(iter(server))
        connection.pauseProducing()
        server.write_run(source, [b"frame"], 5, 5)
        server.write(source, b"control")
        connection.resumeProducing()
        await answers.have(2)
        self.assertEqual([datagram for _, datagram in answers.items], [b"control", b"frame"])

    async def test_each_member_has_its_rate(self) -> None:
        """By however many connections; nothing is lost, others are not slowed down."""
        server, inbox, endpoint = self.listening(rate=2e6)
        credentials = self.members.member("client")
        clients = [self.dialling(credentials)[0] for _ in range(2)]
        for client in clients:
            client.write(endpoint, b"x")
        await inbox.have(2)
        begun = reactor.seconds()  # type: ignore[attr-defined]
        for number in range(20):
            clients[number % 2].write_run(endpoint, [os.urandom(50000)], 1000, 50000)
            await self.sleep(0.001)
        await self.becomes(lambda: bool(server._shares._waiting))
        other, _ = self.dialling(self.members.member("other"))
        other.write(endpoint, b"me too")
        await self.becomes(lambda: (b"me too") in [datagram for _, datagram in inbox.items], 0.3)
        sent = 2 + 1 + (20 * 50 - 50 * sum(client.counters.dropped for client in clients))
        await inbox.have(sent)
        self.assertGreater(reactor.seconds() - begun, 0.5 * (sent - 3) * 1000 / 2e6 - 0.1)  # type: ignore[attr-defined]


class SeveralTests(SynchronousTestCase):
    """Several transports as one."""

    def both(self) -> Iterator[Any]:
        for scheme in ("udp", "tls"):
            transport = MemoryNet(reactor).transport("192.0.2.1", 1)
            transport.scheme = scheme
            yield transport

    def test_each_gets_its_own(self) -> None:
        udp, tls = self.both()
        several = Transports(udp, tls)
        verifyObject(ITransports, several)
        self.assertIs(several.carrier(Endpoint("udp", "192.0.2.1", 1)), udp)
        self.assertIs(several.carrier(Endpoint("tls", "192.0.2.1", 1)), tls)
        self.assertIs(several.carrier(Endpoint("tls-in", "192.0.2.1", 1)), tls)
        self.assertTrue(several.write_run(Endpoint("onion", "x.onion", 1), [b"x"], 1, 1))
        self.assertEqual(several.carries(), (("udp", 0), ("tls", 0)))
        verifyObject(ITransport, several.carrier(Endpoint("onion", "x.onion", 1)))

    def test_one_that_does_not_start(self) -> None:
        """None is left running."""
        udp, tls = self.both()
        started: list[str] = []
        self.patch(udp, "start", lambda receiver: started.append("udp"))
        self.patch(udp, "stop", lambda: started.remove("udp"))

        def refuse(receiver: Any) -> None:
            raise EnvironmentProblem("taken")

        self.patch(tls, "start", refuse)
        self.assertRaises(EnvironmentProblem, Transports(udp, tls).start, Inbox())
        self.assertEqual(started, [])

    def test_one_scheme_twice(self) -> None:
        udp, tls = self.both()
        tls.scheme = "udp"
        self.assertRaises(LocalMisuse, Transports, udp, tls)
