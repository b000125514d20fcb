"""Traffic by way of others: through one and two relays, by detours, over narrower paths; and headers that nobody makes."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.forwarding.relaying import MOST_REMEMBERED, REMEMBERED
from ipop_tx.wire.datagram import BUNDLE, CONTROL, FRAME, HEADER, RELAY
from ipop_tx.wire.relay import FIXED_BYTES, MAX_TTL, MAX_VIA, TRAFFIC, Relayed
from tests.plane import ClearSession, Member, Planes, receive_run
from tests.test_forwarding_batch import Maker, comparable, reference
from tests.test_forwarding_runs import frame_of, record


class Chain(SynchronousTestCase):
    """A, one relay after another, B. `ends` are the two ends of the session between A and B."""

    count = 3

    def setUp(self) -> None:
        self.net = Planes(self.count)
        self.members = self.net.members
        self.a, self.b = self.members[0], self.members[-1]
        self.links = [self.net.join(one, other) for one, other in zip(self.members, self.members[1:], strict=False)]
        self.ends = self.net.session()
        self.a.knows(self.b, [self.ends[0]], by=self.members[1])
        self.b.knows(self.a, [self.ends[1]], by=self.members[-2])
        for number, one in enumerate(self.members):
            for other in (self.a, self.b):
                if other is self.b and number < self.count - 1:
                    one.control.hops[other.ident] = (self.members[number + 1].ident, None)
                elif other is self.a and number:
                    one.control.hops[other.ident] = (self.members[number - 1].ident, None)

    def crosses(self, sender: Member, receiver: Member, seed: int = 1, count: int = 20) -> list[bytes]:
        """All kinds of frames get across, as they were and in order. Gives the datagrams."""
        receiver.port.taken.clear()
        frames = [frame for frame in Maker(seed, sender, receiver).frames(count) if frame[22:24] != b"\x88\xb5"]
        sender.give(frames)
        datagrams = self.net.carry()
        self.assertEqual([comparable(frame) for frame in receiver.port.taken], reference(frames))
        self.assertEqual([one.dropped() for one in self.members], [{}] * self.count)
        return datagrams


class OneRelayTests(Chain):
    """A - R - B."""

    def test_there_and_back(self) -> None:
        for width in (1, 3, 44):
            self.a.adjacency(self.b).width.pieces = width
            self.crosses(self.a, self.b, width)
            self.crosses(self.b, self.a, width)
        self.assertGreater(self.members[1].plane.relaying.relayed, 100)

    def test_the_relay_sees_and_tells_nothing(self) -> None:
        """It neither delivers nor asks; and what is on the wire is not what it sealed for the first hop."""
        relay = self.members[1]
        self.crosses(self.a, self.b)
        self.assertEqual((relay.port.written, relay.elsewhere.datagrams), ([], []))
        self.assertEqual([call for call in relay.control.calls if call[0] == "unsealed"], [])

    def test_a_narrower_path_behind_the_relay(self) -> None:
        """Records are cut for each path by itself; a long one takes more than one send."""
        relay = self.members[1]
        self.a.knows(relay, [self.links[0][0]], mtu=8973)
        relay.knows(self.b, [self.links[1][0]], mtu=1200)
        self.a.adjacency(self.b).width.pieces = 64
        self.crosses(self.a, self.b, 5, 60)
        self.a.knows(relay, [self.links[0][0]], mtu=6500)
        maker = Maker(7, self.a, self.b)
        whole = maker.addressed(maker.flows[-1].whole(bytes(64400), 1388))
        self.a.give([whole])
        self.net.carry()
        self.assertEqual([comparable(frame) for frame in self.b.port.taken][-47:], reference([whole]))
        self.assertIn((1200, 54), relay.wire.runs)
        relay.knows(self.b, [self.links[1][0]], mtu=8973)
        self.a.knows(relay, [self.links[0][0]], mtu=1200)
        self.crosses(self.a, self.b, 6, 60)

    def test_while_the_relay_has_no_path_frames_wait(self) -> None:
        """They are not sealed for a way that does not exist."""
        relay, peer = self.members[1], self.a.adjacency(self.b)
        self.a.control.later = True
        hop = self.a.fib.update(relay.ident, [self.links[0][0]], None)
        assert hop is not None
        self.assertFalse(peer.reachable)
        frames = Maker(1, self.a, self.b).frames(5)
        self.a.give(frames)
        self.assertEqual(self.a.wire.sent, [])
        self.a.fib.update(relay.ident, [self.links[0][0]], relay.endpoint)
        self.a.plane.fib_changed(peer)
        self.net.carry()
        self.assertEqual([comparable(frame) for frame in self.b.port.taken], reference(frames))

    def test_a_relay_that_is_gone(self) -> None:
        self.a.fib.remove(self.members[1].ident)
        self.assertFalse(self.a.adjacency(self.b).reachable)

    def test_a_next_hop_of_no_use(self) -> None:
        """One without a path, one without a session, one that nobody knows: counted, not lost in silence."""
        relay, target = self.members[1], bytes((99,)) * 20
        nested = Relayed(target, self.a.ident, b"x" * 40).traffic_header() + b"x" * 40
        for change in (
            lambda: relay.fib.update(self.b.ident, [self.links[1][0]], None),
            lambda: relay.fib.update(self.b.ident, [], self.b.endpoint),
            lambda: relay.fib.remove(self.b.ident),
        ):
            change()
            relay.plane.relaying.forget()
            relay.control.hops[target] = (self.b.ident, None)
            relay.plane.datagram_received(self.a.endpoint, self.links[0][0].protect(RELAY, nested))
        self.assertEqual((relay.dropped(), relay.plane.relaying.relayed), ({"relay_no_route": 3}, 0))

    def test_next_hops_are_remembered_and_forgotten(self) -> None:
        relay = self.members[1]
        target = bytes((99,)) * 20
        relay.control.hops[target] = (self.b.ident, None)
        nested = Relayed(target, self.a.ident, b"x").traffic_header() + b"x" * 40

        def asked() -> int:
            relay.plane.datagram_received(self.a.endpoint, self.links[0][0].protect(RELAY, nested))
            return len([call for call in relay.control.calls if call[0] == "next_hop"])

        self.assertEqual([asked(), asked()], [1, 1])
        self.net.clock.advance(REMEMBERED)
        self.assertEqual([asked(), asked()], [2, 2])
        relay.plane.fib_changed(relay.adjacency(self.b))
        self.assertEqual(asked(), 3)
        for number in range(2 * MOST_REMEMBERED):
            header = Relayed(number.to_bytes(20, "big"), self.a.ident, b"x").traffic_header()
            relay.plane.datagram_received(self.a.endpoint, self.links[0][0].protect(RELAY, header + b"x" * 40))
        self.assertLessEqual(len(relay.plane.relaying._hops), MOST_REMEMBERED)


class TwoRelaysTests(Chain):
    """A - R1 - R2 - B."""

    count = 4

    def test_there_and_back(self) -> None:
        self.crosses(self.a, self.b)
        self.crosses(self.b, self.a)

    def test_by_a_route(self) -> None:
        """Stations that the sender names; each is taken off by the one it names."""
        r1, r2 = self.members[1:3]
        for via in ([r1], [r2], [r1, r2]):
            self.a.knows(self.b, [self.ends[0]], by=r1, via=via)
            r1.control.hops[r2.ident] = (r2.ident, None)
            self.crosses(self.a, self.b)

    def test_by_a_detour(self) -> None:
        """R1 reaches the next station only through R2: it puts the station in front of the route. Also the destination itself."""
        r1, r2 = self.members[1:3]
        for via in ([], [self.b]):
            self.a.knows(self.b, [self.ends[0]], by=r1, via=via)
            r1.control.hops[self.b.ident] = (r2.ident, self.b.ident)
            r1.plane.relaying.forget()
            self.crosses(self.a, self.b)

    def test_a_detour_on_a_full_route(self) -> None:
        r1, r2 = self.members[1:3]
        r1.control.hops[self.b.ident] = (r2.ident, self.b.ident)
        self.a.knows(self.b, [self.ends[0]], by=r1, via=[self.b] * MAX_VIA)
        self.a.give([Maker(1, self.a, self.b).icmp()])
        self.net.carry()
        self.assertEqual(self.b.port.taken, [])
        self.assertEqual(list(r1.dropped()), ["relay_no_route"])

    def test_ttl(self) -> None:
        """Each relay takes one; what has none left is dropped, and what is for us is taken all the same."""
        r1, r2 = self.members[1:3]
        sealed = self.ends[0].protect(FRAME, frame_of(self.a, self.b, b"hello"))
        for ttl, drops in (
            (1, ({"relay_ttl": 1}, {})),
            (2, ({"relay_ttl": 1}, {"relay_ttl": 1})),
            (3, ({"relay_ttl": 1}, {"relay_ttl": 1})),
        ):
            header = bytearray(Relayed(self.b.ident, self.a.ident, b"x", ttl=ttl).traffic_header())
            receive_run(r1.plane, self.a.endpoint, [self.links[0][0].protect(RELAY, bytes(header) + sealed)])
            self.net.carry()
            self.assertEqual((r1.dropped(), r2.dropped()), drops)
        self.assertEqual([frame[34:] for frame in self.b.port.taken], [b"hello"])

    def test_a_loop_ends(self) -> None:
        """Two relays that send it back to each other."""
        r1, r2 = self.members[1:3]
        nobody = bytes((99,)) * 20
        r1.control.hops[nobody], r2.control.hops[nobody] = (r2.ident, None), (r1.ident, None)
        for ttl in (MAX_TTL, MAX_TTL + 1, 255):
            before = r1.plane.relaying.relayed + r2.plane.relaying.relayed
            header = bytes((ttl,)) + Relayed(nobody, self.a.ident, b"x").traffic_header()[1:]
            r1.plane.datagram_received(self.a.endpoint, self.links[0][0].protect(RELAY, header + b"x" * 40))
            self.net.carry()
            self.assertLess(r1.plane.relaying.relayed + r2.plane.relaying.relayed - before, MAX_TTL)


class SenselessTests(Chain):
    """Headers and records that nobody makes."""

    def relay(self, content: bytes, at: Member | None = None, kind: int = RELAY) -> None:
        receiver, session = (self.b, self.links[1][0]) if at is self.b else (self.members[1], self.links[0][0])
        sender = self.members[1] if at is self.b else self.a
        receive_run(receiver.plane, sender.endpoint, [session.protect(kind, content)])
        receiver.plane.burst_ended()

    def test_only_traffic_is_the_planes(self) -> None:
        """What has not the flag, or is too short for a header, is the control plane's, unchanged."""
        relay = self.members[1]
        contents = [b"", b"\x20\0\0", Relayed(self.b.ident, self.a.ident, b"x").encode(), b"\x20\0\0" + bytes((TRAFFIC,)) + bytes(39)]
        contents.append(bytes((1, 0, 0, 0xFE)) + bytes(60))
        for content in contents:
            self.relay(content)
        self.assertEqual([call[3:] for call in relay.control.calls if call[0] == "unsealed"], [(RELAY, content) for content in contents])
        self.assertEqual((relay.wire.sent, relay.dropped()), ([], {}))

    def test_counts_out_of_range(self) -> None:
        relay = self.members[1]
        idents = self.b.ident + self.a.ident
        bad = [bytes((32, back, 0, TRAFFIC)) + idents + bytes(200) for back in (1, 6, 255)]
        bad += [bytes((32, 0, via, TRAFFIC)) + idents + bytes(9000) for via in (MAX_VIA + 1, 255)]
        bad += [bytes((32, 0, via, TRAFFIC)) + idents + bytes(20 * via) for via in (0, 1, MAX_VIA)]
        bad += [bytes((32, 0, 3, TRAFFIC)) + idents + bytes(59)]
        bad += [bytes((ttl, 0, 0, TRAFFIC)) + idents + bytes(100) for ttl in (MAX_TTL + 1, 255)]
        for content in bad:
            for piece in record(self.links[0][0], RELAY, content, 1184):
                relay.plane.datagram_received(self.a.endpoint, piece)
        self.assertEqual((relay.dropped(), relay.wire.sent), ({"relay_malformed": len(bad)}, []))

    def test_records_inside(self) -> None:
        """Only frames: no control message, no other relay's record, no piece, nothing of a session that we have not."""
        header = Relayed(self.b.ident, self.a.ident, b"x").traffic_header()
        plain = frame_of(self.a, self.b, b"inside")
        good = self.ends[0].protect(FRAME, plain)
        again = Relayed(self.b.ident, self.a.ident, b"x").traffic_header() + self.ends[0].protect(FRAME, plain)
        bad = [self.ends[0].protect(kind, content) for kind in (0, CONTROL, RELAY, 5, 255) for content in (b"message", again)]
        bad += [good[:5] + bytes((1,)) + good[6:], good[:6] + bytes((2,)) + good[7:], good[:6] + b"\0" + good[7:]]
        bad += [b"x", good[:31], good[:3] + b"\x77" + good[4:], good[:-1] + bytes((good[-1] ^ 1,))]
        for one in bad:
            self.relay(header + one, self.b)
        self.assertEqual((self.b.port.written, self.b.control.calls), ([], []))
        self.assertEqual(self.b.dropped(), {"in_forged": len(bad)})
        for _ in range(2):
            self.relay(header + good, self.b)
        self.relay(header + self.ends[0].protect(BUNDLE, plain + len(plain).to_bytes(2, "big") + b"\0\1"), self.b)
        self.assertEqual([frame[34:] for frame in self.b.port.taken], [b"inside"] * 2)

    def test_the_longest(self) -> None:
        """A record inside that is as long as a record can be; no longer one is made."""
        header = Relayed(self.b.ident, self.a.ident, b"x").traffic_header()
        for length in (65000, 65900, 66000):
            plain = frame_of(self.a, self.b, b"")
            sealed = self.ends[0].protect(FRAME, plain + bytes(length - len(header) - 32 - len(plain)))
            for piece in record(self.links[0][0], RELAY, header + sealed, 1184):
                self.members[1].plane.datagram_received(self.a.endpoint, piece)
            self.net.carry()
        self.assertEqual(len(self.b.port.taken), 3)

    def test_what_comes_by_a_relay_is_no_path(self) -> None:
        self.crosses(self.a, self.b)
        self.assertEqual([call for call in self.b.control.calls if call[0] == "path_seen"], [])

    def test_a_relay_cannot_speak_for_others(self) -> None:
        """It can repeat, keep, alter what it relays; nothing of that reaches the kernel twice or altered."""
        self.a.give(Maker(3, self.a, self.b).frames(10))
        relay = self.members[1]
        expected: list[bytes] = []
        carried = self.a.wire.take()
        for endpoint, datagram in carried:
            self.assertEqual(endpoint, relay.endpoint)
            relay.plane.datagram_received(self.a.endpoint, datagram)
            relay.plane.datagram_received(self.a.endpoint, datagram)
        onward = relay.wire.take()
        for _, datagram in onward + onward:
            self.b.plane.datagram_received(relay.endpoint, datagram)
        self.b.plane.burst_ended()
        expected = list(self.b.port.taken)
        self.assertEqual(len({comparable(frame) for frame in expected}), len(expected))

    heads = st.one_of(
        st.binary(max_size=300),
        st.builds(
            lambda ttl, back, via, flags, idents, tail: bytes((ttl, back, via, flags)) + b"".join(idents) + tail,
            st.integers(0, 255),
            st.sampled_from([0, 0, 0, 1, 6, 255]),
            st.integers(0, 10),
            st.sampled_from([TRAFFIC, TRAFFIC, 255, 0, 2]),
            st.lists(st.sampled_from([bytes((n,)) * 20 for n in (1, 2, 3, 99)]), min_size=0, max_size=13),
            st.binary(max_size=60),
        ),
    )

    @settings(max_examples=300, deadline=None)
    @given(st.lists(heads, min_size=1, max_size=5))
    def test_any_header(self, contents: list[bytes]) -> None:
        """Nothing raises; what goes on has a header in range with a smaller ttl and the same content; no frame is written."""
        net = Planes(3)
        a, relay, b = net.members
        link, onward = net.join(a, relay), net.join(relay, b)
        relay.control.hops[bytes((99,)) * 20] = (b.ident, bytes((98,)) * 20)
        for content in contents:
            before = relay.plane.relaying.relayed
            receive_run(relay.plane, a.endpoint, [link[0].protect(RELAY, content)])
            for endpoint, datagram in relay.wire.take():
                to = onward[1] if endpoint == b.endpoint else link[0]
                self.assert_senseful(content, opened(to, datagram))
                self.assertEqual(relay.plane.relaying.relayed, before + 1)
        self.assertEqual((relay.port.written, b.port.written), ([], []))

    def assert_senseful(self, came: bytes, went: bytes) -> None:
        self.assertTrue(came[3] & TRAFFIC and went[3] == came[3])
        self.assertEqual(went[0], came[0] - 1)
        self.assertEqual((went[1], came[1]), (0, 0))
        self.assertLessEqual(max(came[2], went[2]), MAX_VIA)
        self.assertEqual(went[FIXED_BYTES + 20 * went[2] :], came[FIXED_BYTES + 20 * came[2] :])
        self.assertEqual(went[4:44], came[4:44])


def opened(session: ClearSession, datagram: bytes) -> Any:
    """The content of a record of kind RELAY in one piece."""
    _, kind, piece, pieces, _, _ = HEADER.unpack_from(datagram)
    assert (kind, piece, pieces) == (RELAY, 0, 1)
    return session.unprotect(datagram)[1]
