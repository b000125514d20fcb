"""The driver of the DHCP server: disk before answers, frames on the TAP, leases of a node of which there is only the shape."""

from __future__ import annotations

import time
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.core.leases.dhcpterms import Terms
from ipop_tx.core.tasks import Future
from ipop_tx.errors import Conflict, StateError, Unavailable
from ipop_tx.forwarding.neighbour import probe
from ipop_tx.identity import state as files
from ipop_tx.identity.state import StateDirectory
from ipop_tx.services.guests import GuestService
from ipop_tx.wire import dhcp
from ipop_tx.wire.dhcp import Message
from tests.plane import NETWORK

OWN = IPv4Address("10.128.0.1")
LEASED = IPv4Address("10.128.7.7")
TAP_MAC, MAC = b"\x02tap00", b"\x02guest"
HOLDER = b"\x01" + MAC


class Reactor(Clock):
    """A clock, and UDP ports that are only noted."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: list[tuple[int, str]] = []
        self.bound: list[bytes] = []
        self.refusal: Exception | None = None

    def listenUDP(self, port: int, protocol: Any, interface: str) -> Any:
        if self.refusal is not None:
            raise self.refusal
        self.ports.append((port, interface))
        handle = SimpleNamespace(setsockopt=lambda level, option, value: self.bound.append(value))
        return SimpleNamespace(getHandle=lambda: handle, stopListening=lambda: self.ports.remove((port, interface)))


class Protocol:
    """The shape of a `ChordProtocol` whose node leases one address, when it is told to."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock.seconds
        self.commands: list[object] = []
        self.listeners: dict[type, Any] = {}
        self.node: Any = SimpleNamespace(leases=SimpleNamespace(guests={}))
        self.at_once = True
        self.failure: Exception | None = None

    def on(self, kind: type, listener: Any) -> None:
        self.listeners[kind] = listener

    def submit(self, command: Any) -> Deferred[Any]:
        self.commands.append(command)
        if isinstance(command, c.HoldLease):
            lease = SimpleNamespace(address=None, until=float("-inf"), problem="", name_problem="")
            self.node.leases.guests[command.holder] = lease
            if self.at_once:
                self.gain(command.holder)
        return fail(self.failure) if self.failure else succeed(None)

    def settle(self) -> None:
        """Nothing waits."""

    def gain(self, holder: bytes) -> None:
        lease = self.node.leases.guests[holder]
        lease.address, lease.until = LEASED.packed, self.clock() + 86400
        self.listeners[e.LeaseGained](e.LeaseGained(LEASED.packed, holder))


class GuestServiceTests(SynchronousTestCase):
    """One guest."""

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.state = StateDirectory(self.mktemp())
        self.make()

    def make(self, guests: int = 3) -> None:
        self.written: list[bytes] = []
        self.served: list[tuple[bytes, bytes | None]] = []
        self.protocol = Protocol(self.reactor)
        self.plane: Any = SimpleNamespace(serve=lambda address, mac: self.served.append((address, mac)))
        tap: Any = SimpleNamespace(mac=TAP_MAC, addressed="br0", writev=lambda buffers: self.written.append(b"".join(buffers)))
        terms = Terms(NETWORK.pool, TAP_MAC, "node", guests, 3600, 86400)
        self.service = GuestService(self.reactor, self.protocol, self.state, terms, self.plane, tap)  # type: ignore[arg-type]

    def start(self) -> None:
        self.service.startService()
        self.addCleanup(lambda: self.service.running and self.service.stopService())
        self.service.address_changed(OWN)

    def ask(self, kind: int, **fields: Any) -> bool:
        served: bool = self.plane.dhcp(Message(kind, b"xid1", MAC, fields.pop("options", {}), **fields))
        return served

    def join(self) -> None:
        self.ask(dhcp.DISCOVER)
        self.ask(dhcp.REQUEST, options={dhcp.SERVER: OWN.packed, dhcp.REQUESTED: LEASED.packed})

    def answers(self) -> list[Message]:
        return [dhcp.decode(frame[10 + 42 :]) for frame in self.written]

    def test_a_guest(self) -> None:
        """By frames on the TAP, whose source is not the interface's own MAC."""
        self.start()
        self.join()
        self.assertEqual([answer.kind for answer in self.answers()], [dhcp.OFFER, dhcp.ACK])
        ack = self.written[-1]
        self.assertEqual((ack[10:16], ack[36:40], ack[40:44]), (MAC, OWN.packed, LEASED.packed))
        self.assertNotEqual(ack[16:22], TAP_MAC)
        self.assertEqual(ack[16] & 3, 2)
        self.assertEqual(self.served, [(LEASED.packed, MAC)])
        self.assertEqual(
            self.service.status(),
            [{"address": "10.128.7.7", "name": None, "mac": MAC.hex(":"), "holder": HOLDER.hex(), "state": "bound", "expires_s": 3600}],
        )
        self.assertEqual(self.service.health(), [])

    def test_the_disk_before_the_answer(self) -> None:
        self.start()
        order: list[str] = []
        write = self.state.write_json
        self.patch(self.state, "write_json", lambda name, value: (order.append("disk"), write(name, value)))
        self.patch(self.service._tap, "writev", lambda buffers: order.append("answer"))
        self.join()
        self.assertEqual(order, ["answer", "disk", "answer"])

    def test_restart(self) -> None:
        """Another life, some seconds later by the wall: the guest is served at once, its lease confirmed, its time goes on."""
        self.start()
        self.join()
        self.reactor.advance(5)
        later = time.time() + 5
        self.patch(time, "time", lambda: later)
        self.make()
        self.protocol.at_once = False
        self.start()
        self.assertEqual(self.served, [(LEASED.packed, MAC)])
        self.assertEqual(self.protocol.commands, [c.HoldLease(HOLDER, "", None, 86400, LEASED.packed)])
        self.assertIn(self.service.status()[0]["expires_s"], (3594, 3595))
        self.ask(dhcp.REQUEST, client=LEASED.packed)
        self.assertEqual([answer.kind for answer in self.answers()], [dhcp.ACK])
        self.reactor.advance(3595 + 61)
        self.assertEqual(self.protocol.commands[-1], c.GiveUpLease(HOLDER))
        self.assertEqual(self.state.read_json(files.GUESTS), {"guests": []})

    def test_a_wall_clock_that_was_set(self) -> None:
        """Forwards: the guest has its grace. Back: no more time than a whole lease."""
        self.start()
        self.join()
        for shift, left in ((1e9, 0), (-1e9, 3600)):
            moved = time.time() + shift
            self.patch(time, "time", lambda moved=moved: moved)
            self.make()
            self.start()
            self.assertEqual(self.service.status()[0]["expires_s"], left)

    def test_unreadable(self) -> None:
        """Of another version, perhaps: the guests are asked for again by their clients."""
        for content in ([], {"guests": [{"mac": 7}]}, {"guests": [{"mac": "zz", "holder": "", "name": "", "address": "", "until": 0}]}, {}):
            self.state.write_json(files.GUESTS, content)
            self.make()
            self.start()
            self.assertEqual(self.service.status(), [])

    def test_a_disk_that_refuses(self) -> None:
        """Guests are served all the same, and health says what a restart would do."""
        self.start()
        self.patch(self.state, "write_json", lambda name, value: (_ for _ in ()).throw(StateError("the disk is full", "free some")))
        self.join()
        self.assertEqual([answer.kind for answer in self.answers()], [dhcp.OFFER, dhcp.ACK])
        self.assertIn("guests would be forgotten by a restart: the disk is full", *self.service.health())

    def test_no_majority(self) -> None:
        self.protocol.at_once = False
        self.start()
        self.ask(dhcp.DISCOVER)
        self.protocol.node.leases.guests[HOLDER].problem = f"no address yet: {Unavailable(2, 3, 5)}"
        lines: list[str] = []

        def observe(event: Any) -> None:
            if "guest_waits" in str(event.get("log_format")):
                lines.append(event["reason"])

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        for _ in range(4):
            self.reactor.advance(2)
            self.ask(dhcp.DISCOVER)
        self.assertEqual((self.written, len(lines)), ([], 1))
        self.assertIn("2 of 5 replicas reached", lines[0])
        sentence = f"guest {MAC.hex(':')}: no address yet: 2 of 5 replicas reached: 3 are needed; waiting for the others"
        self.assertEqual(self.service.health(), [sentence])
        self.assertEqual(self.service.status()[0]["state"], "waiting")
        self.protocol.node.leases.guests[HOLDER].problem = ""
        self.protocol.gain(HOLDER)
        self.assertEqual([answer.kind for answer in self.answers()], [dhcp.OFFER])
        self.assertEqual(self.service.health(), [])

    def test_many_problems(self) -> None:
        self.make(guests=9)
        self.protocol.at_once = False
        self.start()
        for number in range(9):
            self.plane.dhcp(Message(dhcp.DISCOVER, b"xid1", b"\x02gues" + bytes((number,))))
        for lease in self.protocol.node.leases.guests.values():
            lease.problem = "no address yet"
        self.assertEqual(len(self.service.health()), 4)
        self.assertIn("6 more guests", self.service.health()[-1])

    def test_full(self) -> None:
        self.make(guests=1)
        self.start()
        self.join()
        self.assertEqual(self.service.health(), [])
        self.assertTrue(self.plane.dhcp(Message(dhcp.DISCOVER, b"xid1", b"\x02other")))
        self.assertIn("raise dhcp.guests", *self.service.health())
        self.reactor.advance(301)
        self.assertEqual(self.service.health(), [])

    def test_no_guests(self) -> None:
        """Then only a client on the interface itself is answered, and no port is opened."""
        self.make(guests=0)
        self.start()
        self.assertFalse(self.ask(dhcp.DISCOVER))
        self.assertEqual((self.written, self.reactor.ports), ([], []))
        self.assertTrue(self.plane.dhcp(Message(dhcp.DISCOVER, b"xid1", TAP_MAC)))
        self.assertEqual(self.answers()[0].yours, OWN.packed)

    def test_the_port_of_the_server(self) -> None:
        """For renewals and releases, which go to our address: on the interface that has it, and from the client's port only."""
        self.start()
        self.assertEqual((self.reactor.ports, self.reactor.bound), ([(67, str(OWN))], [b"br0\0"]))
        self.join()
        release = dhcp.encode(Message(dhcp.RELEASE, b"xid1", MAC, {dhcp.SERVER: OWN.packed}, client=LEASED.packed))
        self.service._port.datagramReceived(release, (str(LEASED), 1068))
        self.service._port.datagramReceived(b"nonsense", (str(LEASED), 68))
        self.assertEqual(len(self.service.status()), 1)
        self.service._port.datagramReceived(release, (str(LEASED), 68))
        self.assertEqual(self.service.status(), [])
        self.service.address_changed(None)
        self.assertEqual(self.reactor.ports, [])

    def test_a_port_that_is_taken(self) -> None:
        self.reactor.refusal = CannotListenError(str(OWN), 67, OSError(98, "in use"))
        self.start()
        self.assertIn("UDP port 67 of 10.128.0.1 cannot be used (Address already in use)", *self.service.health())
        self.reactor.refusal = None
        self.service.address_changed(OWN)
        self.assertEqual(self.service.health(), [])

    def test_a_lease_that_cannot_be_given_up(self) -> None:
        self.start()
        self.join()
        self.protocol.failure = Unavailable(1, 3, 5)
        self.ask(dhcp.RELEASE, client=LEASED.packed, options={dhcp.SERVER: OWN.packed})
        self.assertEqual(self.service.status(), [])

    def hand_over(self) -> Future[None]:
        """Another node asks for the guest."""
        reply: Future[None] = Future()
        self.protocol.listeners[e.HandOverAsked](e.HandOverAsked(b"o" * 20, LEASED.packed, HOLDER, reply))
        return reply

    def test_a_guest_that_has_moved(self) -> None:
        """It is asked by ARP, several times, and does not answer."""
        self.start()
        self.join()
        reply = self.hand_over()
        self.reactor.pump([0.25] * 3)
        self.assertFalse(reply.done)
        self.assertEqual([frame[10:] for frame in self.written[2:]], [probe(self.service._mac, MAC, LEASED.packed)] * 4)
        self.plane.heard(b"\x02other", LEASED.packed)
        self.reactor.advance(0.25)
        self.assertTrue(reply.done)
        self.assertIsNone(reply.result())
        self.assertEqual((self.service.status(), self.served[-1]), ([], (LEASED.packed, None)))
        self.assertEqual(self.protocol.commands[-1], c.GiveUpLease(HOLDER))

    def test_a_guest_that_is_here(self) -> None:
        self.start()
        self.join()
        reply = self.hand_over()
        self.plane.heard(MAC, LEASED.packed)
        self.reactor.advance(0.25)
        self.assertIsInstance(reply.error, Conflict)
        self.assertEqual(len(self.service.status()), 1)

    def test_a_hand_over_that_fails(self) -> None:
        """The register cannot be freed, or we stop meanwhile: the other node hears no."""
        self.start()
        self.join()
        reply = self.hand_over()
        self.protocol.failure = Unavailable(1, 3, 5)
        self.reactor.pump([0.25] * 4)
        self.assertIsInstance(reply.error, Unavailable)
        self.protocol.failure = None
        self.join()
        reply = self.hand_over()
        self.service.stopService()
        self.reactor.pump([0.25] * 4)
        self.assertIsInstance(reply.error, Conflict)
        self.assertEqual(len(self.state.read_json(files.GUESTS)["guests"]), 1)

    def test_stopped(self) -> None:
        """What comes late does nothing, and no timer is left."""
        self.start()
        self.join()
        self.service.stopService()
        self.ask(dhcp.DISCOVER)
        self.protocol.listeners[e.LeaseLost](e.LeaseLost(LEASED.packed, "it was released", HOLDER))
        self.assertEqual((len(self.written), self.reactor.getDelayedCalls(), self.reactor.ports), (2, [], []))
        self.assertEqual(len(self.state.read_json(files.GUESTS)["guests"]), 1)

    def test_the_nodes_own_lease(self) -> None:
        self.start()
        for event in (e.LeaseGained(OWN.packed), e.LeaseLost(OWN.packed, "")):
            self.protocol.listeners[type(event)](event)
        self.assertEqual(self.service.status(), [])
