"""A UDP port is kept mapped, whatever the gateway speaks, refuses, forgets or garbles; in virtual time."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from random import Random
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from ipop_tx.services import portmap
from ipop_tx.services.portmap import PortMapService
from ipop_tx.services.portmapper import AGAIN, HEARTBEAT, LIFETIME, WAITS, Epoch, Phase, PortMapper
from ipop_tx.services.upnp import Upnp, UpnpMapping
from ipop_tx.transport.gateway import Gateway
from ipop_tx.values import Endpoint
from ipop_tx.wire import portmap as w

NONCE = bytes(range(12))
POOL = IPv4Network("10.128.0.0/16")
CLIENT, OUTER, PORT = IPv4Address("192.168.1.10"), IPv4Address("203.0.113.7"), 4500


class FakeGateway:
    """Speaks what it is told to; its clock is the test's, from `began` on."""

    def __init__(self, clock: Clock, pcp: bool = True, pmp: bool = True) -> None:
        self.clock = clock
        self.pcp, self.pmp = pcp, pmp
        self.began = clock.seconds()
        self.result = 0
        self.granted = LIFETIME
        self.outer_offset = 0
        self.mappings: dict[int, int] = {}
        self.asked: list[bytes] = []
        self.silent = False

    @property
    def epoch(self) -> int:
        """Seconds since it was started."""
        return int(self.clock.seconds() - self.began)

    def restart(self) -> None:
        """Forget everything."""
        self.mappings.clear()
        self.began = self.clock.seconds()

    def answers(self, data: bytes) -> Iterator[bytes]:
        """What it says to a question."""
        self.asked.append(data)
        if self.silent:
            return
        if data[0] == w.PMP and self.pmp:
            yield self._pmp(data)
        elif data[0] == w.PCP and self.pcp:
            yield self._pcp(data)
        elif self.pmp:
            yield struct.pack("!BBHI", 0, 0x80 | data[1], 1, self.epoch)
        elif self.pcp:
            yield struct.pack("!BBBBII12x", 2, 0x80 | data[1], 0, 1, 60, self.epoch)

    def _pmp(self, data: bytes) -> bytes:
        if data[1] == 0:
            return struct.pack("!BBHI", 0, 0x80, 0, self.epoch) + OUTER.packed
        inner, wanted, lifetime = struct.unpack("!HHI", data[4:])
        outer = self._map(inner, wanted, lifetime)
        return struct.pack("!BBHIHHI", 0, 0x81, self.result, self.epoch, inner, outer, min(lifetime, self.granted))

    def _pcp(self, data: bytes) -> bytes:
        lifetime = int.from_bytes(data[4:8], "big")
        head = struct.pack("!BBBBII12x", 2, 0x80 | data[1], 0, self.result, min(lifetime, self.granted), self.epoch)
        if data[1] == 0:
            return head
        nonce, _, inner, wanted = struct.unpack_from("!12sB3xHH", data, 24)
        outer = self._map(inner, wanted, lifetime)
        return head + struct.pack("!12sB3xHH16s", nonce, 17, inner, outer, bytes(10) + b"\xff\xff" + OUTER.packed)

    def _map(self, inner: int, wanted: int, lifetime: int) -> int:
        if self.result:
            return 0
        if not lifetime:
            self.mappings.pop(inner, None)
            return 0
        self.mappings[inner] = (wanted or inner) + self.outer_offset
        return self.mappings[inner]


class MapperCase(TestCase):
    """One mapper at one gateway."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.gateway = FakeGateway(self.clock)
        self.changes: list[tuple[str, int] | None] = []
        self.mapper = PortMapper(self.clock, Random(1), NONCE, CLIENT, PORT, self.send, lambda: self.changes.append(self.mapper.outer))

    def send(self, data: bytes) -> None:
        """To the gateway, whose answers come a moment later."""
        for answer in self.gateway.answers(data):
            self.clock.callLater(0.001, self.mapper.received, answer)

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        end = self.clock.seconds() + seconds
        while self.clock.getDelayedCalls() and min(call.getTime() for call in self.clock.getDelayedCalls()) <= end:
            self.clock.advance(max(0.0, min(call.getTime() for call in self.clock.getDelayedCalls()) - self.clock.seconds()))
        self.clock.advance(end - self.clock.seconds())

    def maps_asked(self) -> int:
        """How often a mapping was asked for since this was last called."""
        count = sum(data[1] == 1 for data in self.gateway.asked)
        self.gateway.asked.clear()
        return count


class MapperTests(MapperCase):
    """What it does."""

    def test_pcp(self) -> None:
        """The better protocol is taken, the other one is noticed."""
        self.mapper.start()
        self.run_for(1)
        self.assertEqual(self.mapper.outer, (str(OUTER), PORT))
        self.assertEqual(self.changes, [(str(OUTER), PORT)])
        self.assertEqual(self.mapper.speaks, {"PCP", "NAT-PMP"})
        self.assertEqual(self.maps_asked(), 1)

    def test_pmp(self) -> None:
        """An older gateway says that it does not know PCP, and is asked its own way at once."""
        self.gateway.pcp = False
        self.mapper.start()
        self.run_for(0.1)
        self.assertEqual(self.mapper.outer, (str(OUTER), PORT))
        self.assertEqual(self.mapper.speaks, {"NAT-PMP"})

    def test_another_outer_port(self) -> None:
        """What counts is the port given, and that one is asked for again."""
        for pcp in (True, False):
            self.setUp()
            self.gateway.pcp, self.gateway.outer_offset = pcp, 7
            self.mapper.start()
            self.run_for(1)
            self.assertEqual(self.mapper.outer, (str(OUTER), PORT + 7))
            self.gateway.outer_offset = 0
            self.run_for(LIFETIME)
            self.assertEqual(self.mapper.outer, (str(OUTER), PORT + 7))

    def test_renewal(self) -> None:
        """Renewed when half of its life is over, for ever."""
        for pcp in (True, False):
            self.setUp()
            self.gateway.pcp = pcp
            self.mapper.start()
            self.run_for(1)
            self.maps_asked()
            self.run_for(LIFETIME / 2)
            self.assertEqual(self.maps_asked(), 1)
            self.run_for(10 * LIFETIME)
            self.assertTrue(19 <= self.maps_asked() <= 24)
            self.assertEqual(len(self.changes), 1)

    def test_stop(self) -> None:
        """Taken away at the end, and then all is quiet."""
        for pcp in (True, False):
            self.setUp()
            self.gateway.pcp = pcp
            self.mapper.start()
            self.run_for(1)
            self.assertEqual(self.gateway.mappings, {PORT: PORT})
            self.mapper.stop()
            self.assertEqual(self.gateway.mappings, {})
            self.assertIsNone(self.mapper.outer)
            self.run_for(1)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_silent_gateway(self) -> None:
        """It is asked a few times by both protocols, then again after a long while."""
        self.gateway.silent = True
        self.mapper.start()
        self.run_for(2 * sum(WAITS) + 1)
        self.assertIs(self.mapper.phase, Phase.SILENT)
        self.assertEqual(self.maps_asked(), 2 * len(WAITS))
        self.run_for(AGAIN - 20)
        self.assertEqual(self.maps_asked(), 0)
        self.gateway.silent = False
        self.run_for(20)
        self.assertEqual(self.mapper.outer, (str(OUTER), PORT))

    def test_a_refusal(self) -> None:
        """It is told as a sentence, and the gateway asked again after a while."""
        for pcp, words in ((True, "switched off"), (False, "switched off")):
            self.setUp()
            self.gateway.pcp, self.gateway.result = pcp, 2
            self.mapper.start()
            self.run_for(1)
            self.assertIs(self.mapper.phase, Phase.REFUSED)
            self.assertIn(words, self.mapper.problem)
            self.gateway.result = 0
            self.run_for(max(AGAIN, 1800) + 1)
            self.assertEqual((self.mapper.outer, self.mapper.problem), ((str(OUTER), PORT), ""))

    def test_restart_announced(self) -> None:
        """A gateway that says that its clock began anew is asked at once."""
        for announcement in (struct.pack("!BBBBII12x", 2, 0x80, 0, 0, 0, 0), struct.pack("!BBHI", 0, 0x80, 0, 0) + OUTER.packed):
            self.setUp()
            self.gateway.pcp = announcement[0] == w.PCP
            self.mapper.start()
            self.run_for(100)
            self.gateway.restart()
            self.mapper.received(announcement)
            self.run_for(1.5)
            self.assertEqual(self.gateway.mappings, {PORT: PORT})

    def test_restart_at_once(self) -> None:
        """A gateway that restarts a moment after it has made the mapping has a clock that tells nothing: its announcement does."""
        self.mapper.start()
        self.run_for(1)
        self.gateway.restart()
        self.mapper.received(struct.pack("!BBBBII12x", 2, 0x80, 0, 0, 0, 0), announced=True)
        self.run_for(1.5)
        self.assertEqual(self.gateway.mappings, {PORT: PORT})

    def test_a_gateway_that_begins_to_speak(self) -> None:
        """One that was silent and announces itself is asked at once."""
        self.gateway.silent = True
        self.mapper.start()
        self.run_for(60)
        self.gateway.silent = False
        self.gateway.restart()
        self.mapper.received(struct.pack("!BBBBII12x", 2, 0x80, 0, 0, 0, 0))
        self.run_for(1.5)
        self.assertEqual(self.gateway.mappings, {PORT: PORT})

    def test_restart_noticed(self) -> None:
        """Without an announcement the next look at its clock shows it."""
        for pcp in (True, False):
            self.setUp()
            self.gateway.pcp = pcp
            self.mapper.start()
            self.run_for(1000)
            self.gateway.restart()
            self.run_for(1.1 * HEARTBEAT + 2)
            self.assertEqual(self.gateway.mappings, {PORT: PORT})

    def test_gateway_vanishes(self) -> None:
        """Without answers the mapping counts until its time is over, and is asked for more and more often until then."""
        self.mapper.start()
        self.run_for(1)
        self.gateway.silent = True
        self.maps_asked()
        self.run_for(LIFETIME - 10)
        self.assertIsNotNone(self.mapper.outer)
        self.assertTrue(8 < self.maps_asked() < 60)
        self.run_for(60)
        self.assertIsNone(self.mapper.outer)
        self.assertIsNone(self.changes[-1])

    def test_what_is_not_for_us(self) -> None:
        """Answers with another nonce, port or protocol, late ones, and garbage change nothing."""
        self.gateway.silent = True
        self.mapper.start()
        other = struct.pack("!BBBBII12x", 2, 0x81, 0, 0, 60, 5) + struct.pack(
            "!12sB3xHH16s", bytes(12), 17, PORT, 9, bytes(12) + OUTER.packed
        )
        for data in (other, struct.pack("!BBHIHHI", 0, 0x81, 0, 5, PORT + 1, 9, 60), b"", b"\0\x81", bytes(100), b"\2\x81" + bytes(60)):
            self.mapper.received(data)
        self.assertIsNone(self.mapper.outer)
        self.assertIs(self.mapper.phase, Phase.PCP)

    def test_any_bytes(self) -> None:
        """Ten thousand random answers, in all phases, do no harm; afterwards it goes on."""
        rng = Random(7)
        self.mapper.start()
        for _ in range(10000):
            head = rng.choice((b"\0\x80", b"\0\x81", b"\2\x80", b"\2\x81", b"\1\x81", b""))
            self.mapper.received(head + rng.randbytes(rng.choice((0, 2, 6, 10, 14, 22, 58))))
            if not rng.randrange(100):
                self.run_for(rng.random() * 5)
        self.run_for(2 * AGAIN + 3600)
        self.assertEqual(self.mapper.outer, (str(OUTER), PORT))


class EpochTests(TestCase):
    """A gateway's clock."""

    def test_clocks(self) -> None:
        """One that runs a little fast or slow is good; one that stood still, jumped or began anew is not."""
        for version, readings, good in (
            (w.PMP, [(0, 100), (100, 200)], True),
            (w.PMP, [(0, 100), (100, 190)], True),
            (w.PMP, [(0, 100), (100, 180)], False),
            (w.PMP, [(0, 100), (100, 500)], True),
            (w.PMP, [(0, 100), (100, 0)], False),
            (w.PCP, [(0, 100), (100, 200)], True),
            (w.PCP, [(0, 100), (200, 250)], False),
            (w.PCP, [(0, 100), (100, 300)], False),
            (w.PCP, [(0, 100), (0, 98)], False),
            (w.PCP, [(0, 100), (0, 99)], True),
        ):
            epoch = Epoch()
            self.assertEqual([epoch.went_on(now, reading, version) for now, reading in readings][-1], good, (version, readings))


class _Port:
    """A socket that goes nowhere."""

    def __init__(self, protocol: Any, written: list[bytes]) -> None:
        self.protocol, self.written = protocol, written
        self.open = True
        protocol.transport = self

    def write(self, data: bytes, address: object = None) -> None:
        self.written.append(data)

    def stopListening(self) -> None:
        self.open = False


class _Reactor(Clock):
    """A clock that also makes such sockets."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: list[_Port] = []
        self.written: list[bytes] = []

    def listenUDP(self, port: int, protocol: Any, interface: str = "") -> _Port:
        self.ports.append(_Port(protocol, self.written))
        return self.ports[-1]

    def listenMulticast(self, port: int, protocol: Any, interface: str = "", listenMultiple: bool = False) -> _Port:
        return self.listenUDP(port, protocol, interface)


class _Transport:
    port = PORT

    def local_endpoints(self) -> list[Endpoint]:
        return [Endpoint("udp", str(CLIENT), PORT)]


class _Upnp:
    """A router that is asked by UPnP."""

    available = True
    asked: list[str]

    def __init__(self, reactor: Any, client: IPv4Address) -> None:
        type(self).asked = []

    def map(self, port: int) -> Deferred[UpnpMapping]:
        self.asked.append("map")
        done: Deferred[UpnpMapping] = Deferred()
        done.callback(UpnpMapping(str(OUTER), port, 0))
        return done

    def unmap(self, outer: int) -> Deferred[None]:
        self.asked.append("unmap")
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done


class ServiceTests(TestCase):
    """The service around it."""

    def setUp(self) -> None:
        self.reactor = _Reactor()
        self.told: list[tuple[Endpoint, ...]] = []
        self.gateway: Gateway | None = Gateway("eth0", IPv4Address("192.168.1.1"), CLIENT)
        self.patch(portmap, "Upnp", _Upnp)
        self.service = PortMapService(self.reactor, _Transport(), ["ipop0"], self.told.append, NONCE, POOL, self.find)  # type: ignore[arg-type]

    def find(self, ignore: list[str], pool: IPv4Network) -> Gateway | None:
        """The default route."""
        return self.gateway

    def test_upnp_where_nothing_better_is_spoken(self) -> None:
        """A silent gateway is asked by UPnP; at the end that mapping is taken away."""
        self.service.startService()
        self.reactor.pump([0.25] * 80)
        self.assertEqual(self.told, [(Endpoint("udp", str(OUTER), PORT),)])
        self.service.stopService()
        self.assertEqual(_Upnp.asked, ["map", "unmap"])
        self.assertEqual(self.told[-1], ())
        self.assertEqual([port for port in self.reactor.ports if port.open], [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_no_gateway_and_another_one(self) -> None:
        """Nothing is asked where nothing leads out; when the default route changes, the new gateway is asked."""
        self.gateway = None
        self.service.startService()
        self.reactor.pump([1] * 30)
        self.assertEqual(self.reactor.written, [])
        for last in (1, 2):
            self.gateway = Gateway("eth0", IPv4Address(f"192.168.1.{last}"), CLIENT)
            before = len(self.reactor.written)
            self.reactor.pump([1] * 11)
            self.assertGreater(len(self.reactor.written), before)
        self.assertEqual(sum(port.open for port in self.reactor.ports), 2)
        self.service.stopService()

    def test_public_addresses_ask_nobody(self) -> None:
        """A machine that the whole internet reaches has no NAT; nor is asked for an address that the transport does not use."""
        for client in ("8.8.4.4", "192.168.7.7"):
            self.gateway = Gateway("eth0", IPv4Address("192.168.1.1"), IPv4Address(client))
            self.service.startService()
            self.reactor.pump([1] * 11)
            self.service.stopService()
        self.assertEqual(self.reactor.written, [])

    def test_announcements_of_others(self) -> None:
        """Only the gateway itself is believed."""
        self.service.startService()
        announcements = self.reactor.ports[1].protocol
        heard: list[bytes] = []
        assert self.service._mapper is not None
        self.patch(self.service._mapper, "received", lambda data, announced: heard.append(data))
        announcements.datagramReceived(b"x", ("192.168.1.66", 5351))
        announcements.datagramReceived(b"y", ("192.168.1.1", 5351))
        self.assertEqual(heard, [b"y"])
        self.service.stopService()


class UpnpTests(TestCase):
    """The thread around the library that blocks."""

    def setUp(self) -> None:
        self.calls: list[str] = []

    async def test_one_at_a_time_and_errors(self) -> None:
        """Calls follow each other; an error of the library is a sentence; a search is not repeated within a minute."""
        upnp = Upnp(reactor, CLIENT)

        class Device:
            lanaddr = str(CLIENT)

            def addportmapping(device, *arguments: Any) -> bool:
                self.calls.append(f"add {arguments[0]} for {arguments[-1]}")
                if arguments[0] == PORT:
                    raise Exception("ConflictInMappingEntry")
                if arguments[-1]:
                    raise Exception("OnlyPermanentLeasesSupported")
                return True

            def externalipaddress(device) -> str:
                return str(OUTER)

            def deleteportmapping(device, *arguments: Any) -> None:
                raise Exception("NoSuchEntryInArray")

        upnp._device, upnp._searched = Device(), reactor.seconds()  # type: ignore[attr-defined]
        mapped, searched, unmapped = upnp.map(PORT), upnp.search(), upnp.unmap(PORT)
        mapping = await mapped
        self.assertEqual((mapping.host, mapping.lifetime), (str(OUTER), 0))
        self.assertNotEqual(mapping.port, PORT)
        self.assertEqual(self.calls, [f"add {PORT} for 3600", f"add {mapping.port} for 3600", f"add {mapping.port} for 0"])
        self.assertTrue(await searched)
        await unmapped
        self.assertFalse(await upnp.search(), "the device that failed is forgotten")

        def refuse() -> bool:
            raise OSError("no route")

        self.patch(upnp, "_search", refuse)
        await self.assertFailure(upnp.map(PORT), OSError)
