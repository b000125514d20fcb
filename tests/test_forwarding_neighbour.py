"""Neighbour requests. The sentence that is fuzzed: `parse` never raises and answers only well-formed requests."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.forwarding.neighbour import Request, announcement, answer, checksum, heard, is_discovery, parse, probe

OWNER = bytes.fromhex("020203040506")
ASKER = bytes.fromhex("620a0b0c0d0e")

ARP_REQUEST = bytes.fromhex("ffffffffffff620a0b0c0d0e0806 0001080006040001 620a0b0c0d0e 0a800001 000000000000 0a800002")
ARP_REPLY = bytes.fromhex("620a0b0c0d0e0202030405060806 0001080006040002 020203040506 0a800002 620a0b0c0d0e 0a800001")

SOURCE = IPv6Address("fd12:3456:789a:101:101:101:101:101")
TARGET = IPv6Address("fd12:3456:789a:202:202:202:202:202")
GROUP = IPv6Address("ff02::1:ff02:202")
ALL_NODES = IPv6Address("ff02::1")


def icmp6(source: IPv6Address, destination: IPv6Address, message: bytes, hops: int = 255, ether: bytes = b"") -> bytes:
    """An Ethernet frame; the checksum at bytes 2-3 of `message` is filled in by adding words, as the RFC writes it."""
    message = message[:2] + bytes(2) + message[4:]
    pseudo = source.packed + destination.packed + len(message).to_bytes(4, "big") + (58).to_bytes(4, "big")
    padded = pseudo + message + b"\0" * (len(message) % 2)
    total = sum(int.from_bytes(padded[i : i + 2], "big") for i in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    message = message[:2] + (0xFFFF - total).to_bytes(2, "big") + message[4:]
    header = bytes.fromhex("60000000") + len(message).to_bytes(2, "big") + bytes((58, hops)) + source.packed + destination.packed
    return (ether or b"\x33\x33" + destination.packed[12:]) + ASKER + b"\x86\xdd" + header + message


def solicitation(options: bytes = b"\x01\x01" + ASKER, target: IPv6Address = TARGET, code: int = 0) -> bytes:
    return bytes((135, code)) + bytes(6) + target.packed + options


NS = icmp6(SOURCE, GROUP, solicitation())
PROBE = icmp6(IPv6Address("::"), GROUP, solicitation(b""))
NA = icmp6(TARGET, SOURCE, bytes((136, 0, 0, 0, 0x60, 0, 0, 0)) + TARGET.packed + b"\x02\x01" + OWNER)


class ArpTests(SynchronousTestCase):
    """RFC 826."""

    def test_request(self) -> None:
        self.assertEqual(parse(ARP_REQUEST), Request(IPv4Address("10.128.0.2"), ASKER, IPv4Address("10.128.0.1").packed))

    def test_heard(self) -> None:
        """Whoever speaks ARP says who it is."""
        self.assertEqual(heard(ARP_REQUEST), (ASKER, IPv4Address("10.128.0.1").packed))
        self.assertEqual(heard(ARP_REPLY), (OWNER, IPv4Address("10.128.0.2").packed))
        for frame in (ARP_REQUEST[:-1], ARP_REQUEST[:14] + b"\0\7" + ARP_REQUEST[16:], NS, b""):
            self.assertIsNone(heard(frame))

    def test_probe(self) -> None:
        """It is answered to the asker, and tells nobody an address for it."""
        made = probe(ASKER, OWNER, IPv4Address("10.128.0.2").packed)
        self.assertEqual(parse(made), Request(IPv4Address("10.128.0.2"), ASKER, bytes(4)))
        self.assertEqual(made[:12], OWNER + ASKER)

    def test_reply(self) -> None:
        request = parse(memoryview(bytearray(ARP_REQUEST)))
        assert request is not None
        self.assertEqual(answer(request, OWNER), ARP_REPLY)

    def test_announcement(self) -> None:
        """Bytes for bytes; and it asks nothing."""
        frame = announcement(IPv4Address("10.128.0.2"), OWNER)
        pinned = "ffffffffffff0202030405060806 0001080006040001 020203040506 0a800002 000000000000 0a800002"
        self.assertEqual(frame, bytes.fromhex(pinned))
        self.assertIsNone(parse(frame))

    def test_padding_and_unicast_are_fine(self) -> None:
        self.assertEqual(parse(OWNER + ARP_REQUEST[6:] + bytes(18)), parse(ARP_REQUEST))

    def test_not_requests(self) -> None:
        announcement = ARP_REQUEST[:28] + IPv4Address("10.128.0.2").packed + ARP_REQUEST[32:]
        group_asker = ARP_REQUEST[:22] + b"\x01" + ARP_REQUEST[23:]
        for frame in (ARP_REPLY, announcement, group_asker, ARP_REQUEST[:-1], b""):
            self.assertIsNone(parse(frame))
        for place in range(14, 22):  # hardware, protocol, sizes, operation
            self.assertIsNone(parse(ARP_REQUEST[:place] + bytes((ARP_REQUEST[place] ^ 2,)) + ARP_REQUEST[place + 1 :]))


class SolicitationTests(SynchronousTestCase):
    """RFC 4861."""

    def test_request(self) -> None:
        self.assertEqual(parse(NS), Request(TARGET, ASKER, SOURCE.packed))

    def test_unicast_probe_of_a_known_neighbour(self) -> None:
        self.assertEqual(parse(icmp6(SOURCE, TARGET, solicitation(b""), ether=OWNER)), Request(TARGET, ASKER, SOURCE.packed))

    def test_answer(self) -> None:
        self.assertEqual(answer(Request(TARGET, ASKER, SOURCE.packed), OWNER), ASKER + OWNER + NA[12:])

    def test_answer_to_a_duplicate_address_probe_goes_to_all_nodes(self) -> None:
        request = parse(PROBE)
        assert request is not None
        wanted = icmp6(TARGET, ALL_NODES, bytes((136, 0, 0, 0, 0x20, 0, 0, 0)) + TARGET.packed + b"\x02\x01" + OWNER)
        self.assertEqual(answer(request, OWNER), bytes.fromhex("333300000001") + OWNER + wanted[12:])

    def test_unknown_options_are_passed_over(self) -> None:
        self.assertIsNotNone(parse(icmp6(SOURCE, GROUP, solicitation(b"\x0e\x02" + bytes(14) + b"\x01\x01" + ASKER))))

    def test_what_the_rfc_forbids(self) -> None:
        unspecified = IPv6Address("::")
        bad = {
            "hop limit": icmp6(SOURCE, GROUP, solicitation(), hops=254),
            "checksum": NS[:56] + bytes((NS[56] ^ 1,)) + NS[57:],
            "code": icmp6(SOURCE, GROUP, solicitation(code=1)),
            "multicast target": icmp6(SOURCE, GROUP, solicitation(target=GROUP)),
            "multicast source": icmp6(GROUP, GROUP, solicitation()),
            "option of length 0": icmp6(SOURCE, GROUP, solicitation(b"\x01\x00" + ASKER)),
            "option too long": icmp6(SOURCE, GROUP, solicitation(b"\x01\x02" + ASKER)),
            "half an option": icmp6(SOURCE, GROUP, solicitation(b"\x01")),
            "too short": icmp6(SOURCE, GROUP, solicitation()[:20]),
            "probe with a source": icmp6(unspecified, GROUP, solicitation()),
            "probe to a single node": icmp6(unspecified, TARGET, solicitation(b"")),
            "advertisement": NA,
            "cut off": NS[:-1],
        }
        for why, frame in bad.items():
            self.assertIsNone(parse(frame), why)


class DiscoveryTests(SynchronousTestCase):
    """Neighbour discovery is recognised wherever it hides, and nothing else is taken for it."""

    def behind(self, kind: int, extension: bytes, message: bytes) -> bytes:
        return NS[:20] + bytes((kind,)) + NS[21:54] + extension + message

    def test_found(self) -> None:
        for kind in range(133, 138):
            self.assertTrue(is_discovery(NS[:54] + bytes((kind,)) + NS[55:]))
        for header in (0, 43, 60, 135):
            self.assertTrue(is_discovery(self.behind(header, bytes((58, 1)) + bytes(14), solicitation())))
        self.assertTrue(is_discovery(self.behind(44, bytes((58, 0, 0, 1)) + bytes(4), solicitation())))
        self.assertTrue(is_discovery(self.behind(51, bytes((58, 4)) + bytes(22), solicitation())))
        self.assertTrue(is_discovery(self.behind(0, bytes((60, 0)) + bytes(6) + bytes((58, 0)) + bytes(6), solicitation())))

    def test_other_traffic(self) -> None:
        for kind in (128, 129, 132, 138, 1):
            self.assertFalse(is_discovery(NS[:54] + bytes((kind,)) + NS[55:]))
        self.assertFalse(is_discovery(NS[:20] + b"\x11" + NS[21:]))
        later_fragment = bytes((58, 0, 0x05, 0xA8)) + bytes(4)
        self.assertFalse(is_discovery(self.behind(44, later_fragment, solicitation())))

    @given(st.binary(max_size=200), st.sampled_from([0, 43, 44, 51, 58, 60, 135]))
    @settings(deadline=None)
    def test_never_raises(self, tail: bytes, kind: int) -> None:
        is_discovery(self.behind(kind, b"", tail))
        is_discovery(tail)


class FuzzTests(SynchronousTestCase):
    """Never raises, answers only well-formed requests."""

    def assertSound(self, frame: bytes) -> None:
        request = parse(frame)
        if request is None:
            return
        reply = answer(request, OWNER)
        self.assertEqual(reply[6:12], OWNER)
        if isinstance(request.target, IPv4Address):
            self.assertEqual((frame[12:22], frame[38:42]), (ARP_REQUEST[12:22], request.target.packed))
        else:
            length = int.from_bytes(frame[18:20], "big")
            self.assertEqual((frame[20:22], frame[54:56], frame[62:78]), (b"\x3a\xff", b"\x87\0", request.target.packed))
            self.assertEqual(checksum(frame[22:38], frame[38:54], frame[54 : 54 + length]), 0)
            self.assertEqual(checksum(reply[22:38], reply[38:54], reply[54:]), 0)

    @given(st.binary(max_size=200))
    @settings(deadline=None)
    def test_noise(self, frame: bytes) -> None:
        self.assertSound(frame)

    @given(st.sampled_from([ARP_REQUEST, NS, PROBE]), st.data())
    @settings(max_examples=400, deadline=None)
    def test_damaged_requests(self, frame: bytes, data: st.DataObject) -> None:
        damaged = bytearray(frame)
        for _ in range(data.draw(st.integers(0, 3))):
            damaged[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
        self.assertSound(bytes(damaged[: data.draw(st.integers(0, len(frame)))]) + data.draw(st.binary(max_size=8)))

    @given(st.binary(min_size=16, max_size=16), st.binary(max_size=40), st.sampled_from([1, 2, 14]))
    @settings(deadline=None)
    def test_repaired_checksums_reach_the_options(self, source: bytes, tail: bytes, kind: int) -> None:
        self.assertSound(icmp6(IPv6Address(source), GROUP, solicitation(bytes((kind,)) + tail)))

    @given(st.binary(min_size=4, max_size=64))
    @settings(deadline=None)
    def test_checksum_is_the_one_of_the_rfc(self, message: bytes) -> None:
        frame = icmp6(SOURCE, TARGET, message)
        self.assertEqual(checksum(SOURCE.packed, TARGET.packed, frame[54:]), 0)
        self.assertEqual(checksum(SOURCE.packed, TARGET.packed, message[:2] + bytes(2) + message[4:]), int.from_bytes(frame[56:58], "big"))
