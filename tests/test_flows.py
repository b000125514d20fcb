"""The flow log: what the planes count, what is kept, who is told."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from benchmarks import flows as benchmark
from ipop_tx.cli.flows import FIELDS, line
from ipop_tx.core import events as e
from ipop_tx.core.tasks import Future
from ipop_tx.forwarding import counting as counting_module
from ipop_tx.forwarding import ledger as ledger_module
from ipop_tx.forwarding.counting import Counting
from ipop_tx.forwarding.ledger import Entry
from ipop_tx.forwarding.policing import Policing
from ipop_tx.services.flowlog import FlowLogService
from ipop_tx.services.flowstore import FlowStore
from ipop_tx.wire import messages as m
from ipop_tx.wire.flows import FRESH, MOST_ROWS, FlowRow
from ipop_tx.wire.policy import Party, parse
from tests.plane import Planes
from tests.test_forwarding_policing import echo, ip, tcp, udp

ONE, TWO = "10.128.0.1", "10.128.0.2"
SSH = 'default = "deny"\n[[allow]]\nname = "the ssh"\nprotocol = "tcp"\nports = 22\n'


def large(source: str, target: str, payload: int, segment: int) -> bytes:
    """A super-frame of TCP, with the usual options."""
    options = b"\x01\x01\x08\x0a" + bytes(8)
    body = struct.pack("!HHIIBBHHH", 4000, 22, 7, 9, 0x80, 0x10, 1000, 0, 0) + options + bytes(payload)
    plain = ip(6, source, target, body)
    head = 20 if ":" not in source else 40
    return struct.pack("<BBHHHH", 1, 1 if head == 20 else 4, 14 + head + 32, segment, 14 + head, 16) + plain[10:]


class PlaneCase(SynchronousTestCase):
    """Two planes that count."""

    def setUp(self) -> None:
        self.planes = Planes(2)
        self.one, self.two = self.planes.members
        self.planes.join(self.one, self.two)
        self.counts = [self.counted(member) for member in self.planes.members]

    def counted(self, member: Any) -> Counting:
        counting = Counting(self.planes.clock.seconds, self.rule_of(member))
        member.plane.count(counting)
        return counting

    def rule_of(self, member: Any) -> Any:
        return lambda peer, key: member.plane.policing.rule_of(peer, key) if member.plane.policing is not None else ""

    def send(self, frames: Iterable[bytes], back: bool = False) -> None:
        sender, receiver = (self.two, self.one) if back else (self.one, self.two)
        sender.give(frame[:10] + receiver.mac + sender.mac + frame[10:] for frame in frames)
        self.planes.carry()

    def told(self, place: int, before: float = float("inf")) -> list[tuple[Any, ...]]:
        """Entries, without what is alike in all tests."""
        found = self.counts[place].entries(before)
        return sorted(
            (str(ip_address(one.source)), one.source_port, one.target_port, one.protocol, one.packets, one.bytes, one.accepted, one.rule)
            for one in found
        )


class CountingTests(PlaneCase):
    """Each packet is counted once at either end."""

    def test_small(self) -> None:
        """TCP and UDP of the same ports apart, both directions apart, at both ends alike."""
        self.send([tcp(ONE, TWO, 4000, 22), *[udp(ONE, TWO, 4000, 22)] * 5])
        self.send([tcp(TWO, ONE, 22, 4000)], back=True)
        length, small = 44, 50
        wanted = [
            (ONE, 4000, 22, 6, 1, length, True, ""),
            (ONE, 4000, 22, 17, 5, 5 * small, True, ""),
            (TWO, 22, 4000, 6, 1, length, True, ""),
        ]
        self.assertEqual(self.told(0), wanted)
        self.assertEqual(self.told(1), wanted)
        self.assertEqual(self.told(0), [])

    def test_ipv6(self) -> None:
        """The same."""
        one, two = str(self.one.ip6), str(self.two.ip6)
        self.send([tcp(one, two, 4000, 22), udp(one, two, 4000, 22), udp(one, two, 4001, 22), echo(one, two)])
        for place in (0, 1):
            found = [entry[:5] for entry in self.told(place)]
            self.assertEqual(found, [(one, 0, 0, 58, 1), (one, 4000, 22, 6, 1), (one, 4000, 22, 17, 1), (one, 4001, 22, 17, 1)])

    def test_super_frames(self) -> None:
        """They count as the packets that they stand for, each with its headers."""
        for payload, packets in ((1000, 1), (1001, 2), (3000, 3), (60000, 60)):
            self.send([large(ONE, TWO, payload, 1000)])
            for place in (0, 1):
                self.assertEqual(self.told(place), [(ONE, 4000, 22, 6, packets, payload + 52 * packets, True, "")], (place, payload))

    def test_without_ports(self) -> None:
        """Pings of one program are one flow; fragments belong to none but their addresses'; options change nothing."""
        self.send([echo(ONE, TWO), echo(ONE, TWO), echo(ONE, TWO, identifier=10)])
        self.assertEqual([entry[3:5] for entry in self.told(0)], [(1, 1), (1, 2)])
        self.told(1)
        self.send(
            [
                udp(ONE, TWO, 4000, 22, fragment=0x2000),
                ip(17, ONE, TWO, bytes(30), fragment=100),
                ip(17, ONE, TWO, udp(ONE, TWO, 4000, 22)[32:], options=bytes(4)),
            ]
        )
        self.assertEqual([entry[1:5] for entry in self.told(1)], [(0, 0, 17, 1), (4000, 22, 17, 2)])

    def test_datagrams_that_leave_together(self) -> None:
        """Joined for the kernel, they are as many as they were."""
        self.send([udp(ONE, TWO, 4000, 22, identification=number) for number in range(40)])
        self.assertEqual([entry[4] for entry in self.told(1)], [40])

    def test_policy(self) -> None:
        """The rule stands with what it allows; what is dropped is counted too, at the end that drops it."""
        for member in self.planes.members:
            member.plane.police(Policing(Party("x", ()), parse(SSH), self.planes.clock.seconds))
        self.send([tcp(ONE, TWO, 4000, 22), tcp(ONE, TWO, 4000, 23), tcp(ONE, TWO, 4000, 23)])
        self.assertEqual(
            [(entry[2], entry[4], *entry[6:]) for entry in self.told(0)], [(22, 1, True, "the ssh"), (23, 2, False, "default")]
        )
        self.one.plane.police(None)
        self.send([tcp(ONE, TWO, 4000, 24)])
        self.assertEqual([(entry[2], *entry[6:]) for entry in self.told(1)], [(22, True, "the ssh"), (24, False, "default")])

    def test_time(self) -> None:
        """What goes on is written down once a minute, what is idle forgotten; begin and end are when it was seen."""
        clock = self.planes.clock
        self.send([udp(ONE, TWO, 1, 2)])
        self.assertEqual(self.told(0, before=clock.seconds() - 60), [])
        clock.advance(30)
        self.send([udp(ONE, TWO, 1, 2)])
        clock.advance(31)
        (entry,) = self.counts[0].entries(clock.seconds() - 60)
        self.assertEqual((entry.packets, entry.begin, entry.end), (2, 0.0, 61.0))
        self.assertEqual(len(self.counts[0]), 1)
        clock.advance(61)
        self.assertEqual((self.told(0, clock.seconds() - 60), len(self.counts[0])), ([], 0))

    def test_bounded(self) -> None:
        """Whoever sends from ever new ports has the oldest written down sooner, and beyond that some lost, which is counted."""
        self.patch(counting_module, "MOST_OF_ONE", 100)
        for port in range(1000, 1450, 50):
            self.send([udp(ONE, TWO, number, 9) for number in range(port, port + 50)])
            self.assertLessEqual(len(self.counts[1]), 100)
        self.assertEqual(len(self.told(1)), 450)
        self.patch(ledger_module, "MOST", 10)
        self.send([udp(ONE, TWO, number, 9) for number in range(30)])
        self.assertEqual(len(self.told(1)), 10)
        self.assertGreater(self.counts[1].ledger.lost, 0)
        self.assertEqual(len(self.told(1)), 10)

    def test_one_flow(self) -> None:
        """What `ipop explain` asks."""
        self.send([tcp(ONE, TWO, 4000, 22)])
        key = b"\x06" + self.one.ip.packed + self.two.ip.packed + struct.pack("!HH", 4000, 22)
        self.assertEqual(
            [counting.packets(peer.ident, key) for counting, peer in zip(self.counts, (self.two, self.one), strict=True)], [1, 1]
        )

    def test_junk(self) -> None:
        """Frames that make no sense pass or not as before, and nothing fails."""
        for frame in (bytes(12), bytes(10) + b"\x08\0E", bytes(10) + b"\x08\0" + bytes(30), bytes(10) + b"\x86\xdd\x60" + bytes(50)):
            self.send([frame])
            self.send([frame], back=True)
        self.assertEqual(self.flushLoggedErrors(), [])


class StoreTests(SynchronousTestCase):
    """The file."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.store = self.opened()

    def opened(self, most: int = 100) -> FlowStore:
        store = FlowStore(self.path, most)
        store.open()
        self.addCleanup(store.close)
        return store

    def row(self, end: int, port: int = 22) -> FlowRow:
        return FlowRow(ip_address(ONE).packed, ip_address(TWO).packed, 4000, port, 6, 3, 300, end - 1, end, True, "ssh")

    def test_kept(self) -> None:
        """Over a restart, the newest first, by member and time."""
        self.store.add([(b"a" * 20, self.row(10)), (b"b" * 20, self.row(20)), (b"a" * 20, self.row(30))])
        self.store.close()
        store = self.opened()
        self.assertEqual(store.find(None, 0, 9), [self.row(30), self.row(20), self.row(10)])
        self.assertEqual(store.find(b"a" * 20, 11, 9), [self.row(30)])
        self.assertEqual(store.find(None, 0, 1), [self.row(30)])
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)

    def test_bounded(self) -> None:
        """The oldest go."""
        for end in range(0, 500, 50):
            self.store.add((b"a" * 20, self.row(end + number)) for number in range(50))
        self.assertEqual([row.end for row in self.store.find(None, 0, 1000)], list(range(499, 399, -1)))

    def test_damaged(self) -> None:
        """A file that is none is begun anew; one that cannot be written is told, and costs rows only."""
        self.store.close()
        self.path.write_bytes(b"nonsense" * 1000)
        store = self.opened()
        self.assertEqual((store.add([(b"a" * 20, self.row(1))]), store.find(None, 0, 9)), (0, [self.row(1)]))
        nowhere = FlowStore(self.path / "no" / "file", 9)
        nowhere.open()
        self.assertEqual((nowhere.add([(b"a" * 20, self.row(1))]), nowhere.find(None, 0, 9)), (1, []))
        self.assertIn("flows are not logged", nowhere.problem)


class ToldTests(SynchronousTestCase):
    """Who gets to know what."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.listeners: dict[type, Any] = {}
        self.orders: list[Any] = []
        signer = SimpleNamespace(is_ordered=lambda order: order.signature == b"good")
        node: Any = SimpleNamespace(
            ident=b"n" * 20, peer=SimpleNamespace(name="own"), network=SimpleNamespace(name="lab", ident=b"w" * 20), links=(),
            dht=SimpleNamespace(signer=signer), leases=SimpleNamespace(own=SimpleNamespace(address=None)),
        )  # fmt: skip
        protocol: Any = SimpleNamespace(node=node, clock=self.clock.seconds, on=self.listeners.__setitem__)
        plane: Any = SimpleNamespace(policing=None, count=lambda counting: None)
        self.store = FlowStore(Path(self.mktemp()), 1000)
        self.service = FlowLogService(self.clock, protocol, plane, self.store, lambda: None, lambda: 10000.0)
        self.service.startService()
        self.addCleanup(self.service.stopService)
        rows = [
            (peer, FlowRow(bytes(4), bytes(4), port, 22, 6, 1, 60, 9000, 9000, True, "")) for port, peer in ((1, b"a" * 20), (2, b"b" * 20))
        ]
        self.store.add(rows)

    def ask(
        self, asker: bytes, about: bytes = b"", *, named: bytes = b"", seconds: int = 3600, time: int = 0, signature: bytes = b""
    ) -> Any:
        """As if it came from a member, which may name another one."""
        reply: Future[Any] = Future()
        question = m.AskFlows(b"w" * 20, named or asker, seconds, about, time, signature)
        self.listeners[e.FlowsAsked](e.FlowsAsked(asker, question, reply))
        return reply.result()

    def ports(self, answer: Any) -> list[int]:
        return [row.source_port for row in answer.rows]

    def test_only_ones_own(self) -> None:
        """A member hears of its own flows, whatever it says that it is; of others only by the authority's word, for itself and fresh."""
        self.assertEqual(self.ports(self.ask(b"a" * 20)), [1])
        self.assertEqual(self.ports(self.ask(b"c" * 20)), [])
        self.assertEqual(self.ports(self.ask(b"c" * 20, named=b"a" * 20)), [])
        good: dict[str, Any] = {"time": 10000 - FRESH, "signature": b"good"}
        for about, more in ((b"a" * 20, {}), (b"a" * 20, {**good, "signature": b"bad"}), (b"a" * 20, {**good, "time": 10000 - FRESH - 1})):
            self.assertIsInstance(self.ask(b"c" * 20, about, **more), m.Failed)
        self.assertIsInstance(self.ask(b"c" * 20, b"a" * 20, **good, named=b"d" * 20), m.Failed)
        self.assertEqual(self.ports(self.ask(b"c" * 20, b"a" * 20, **good)), [1])

    def test_bounded(self) -> None:
        """So many rows in an answer, which fits the control messages; only as far back as was asked."""
        self.assertEqual(self.ports(self.ask(b"a" * 20, seconds=10)), [])
        row = FlowRow(bytes(16), bytes(16), 65535, 65535, 255, 2**40, 2**50, 9999, 9999, True, "r" * 60)
        self.store.add((b"a" * 20, row) for _ in range(MOST_ROWS + 5))
        answer = self.ask(b"a" * 20)
        self.assertEqual((len(answer.rows), answer.more), (MOST_ROWS, True))
        self.assertEqual(m.decode(m.encode(m.Reply(1, answer))), m.Reply(1, answer))
        self.assertLess(len(m.encode(answer)), 60000)

    def test_control_socket(self) -> None:
        """This node's own; two others only where the authority's key is."""
        told = self.successResultOf(self.service.routes()["POST /flows"]({"since_s": 3600}))
        self.assertEqual([one["source_port"] for one in told["flows"]], [2, 1])
        self.assertEqual((told["network"], told["missing"]), ("lab", []))
        for wrong in ({"since_s": -1}, {"since_s": "x"}, {"limit": 5000}, {"between": ["a"]}, {"between": [1, 2]}):
            self.failureResultOf(self.service.routes()["POST /flows"](wrong))

    def test_rows(self) -> None:
        """From the node's clock to the world's."""
        from ipop_tx.services.flowlog import _row

        entry = Entry(b"a" * 20, bytes(4), bytes(4), 1, 2, 6, 3, 4, 10.0, 12.0, True, "r" * 99)
        self.assertEqual(_row(entry, 5000.0), FlowRow(bytes(4), bytes(4), 1, 2, 6, 3, 4, 5010, 5012, True, "r" * 60))


class FormatTests(SynchronousTestCase):
    """The command's line, and the benchmark."""

    def test_line(self) -> None:
        """Fields of version 2 in their order, then the rule."""
        flow = {
            "reporter": "laptop", "source": ONE, "target": TWO, "source_port": 4000, "target_port": 22, "protocol": 6, "packets": 3,
            "bytes": 180, "start": 100, "end": 160, "action": "REJECT", "rule": "rule 1",
        }  # fmt: skip
        text = line(json.loads(json.dumps(flow)), "lab")
        self.assertEqual(text, f"2 lab laptop {ONE} {TWO} 4000 22 6 3 180 100 160 REJECT OK rule_1")
        self.assertEqual(len(text.split()), len(FIELDS))
        self.assertTrue(line({**flow, "rule": ""}, "lab").endswith("REJECT OK -"))

    def test_summary(self) -> None:
        """Ratios are those of the rounds."""
        one, other, none = benchmark.Turn(1.0, 10**9, 2.0), benchmark.Turn(1.0, 5 * 10**8, 2.0), benchmark.Turn(1.0, 0, 2.0)
        found = benchmark.summary([one, one, one], [other, other, none])
        self.assertEqual((found["throughput_ratio"], found["cpu_ratio"], found["turns"]), (0.5, 2.0, 2))
