"""Segment sizes and ICMP errors. The sentence that is fuzzed: nothing raises, and every checksum that is written is right."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.forwarding.mtu import HEAD, NEEDS_CHECKSUM, clamp_mss, inner_mtu, too_big
from tests.namespace import Namespace, why_no_namespaces

IPV4, IPV6 = b"\x08\x00", b"\x86\xdd"
HERE4, THERE4 = IPv4Address("10.128.0.1").packed, IPv4Address("10.128.0.2").packed
HERE6, THERE6 = IPv6Address("fd12::1").packed, IPv6Address("fd12::2").packed
MSS = b"\x02\x04\x05\xb4"  # 1460


def naive(data: bytes) -> int:
    """The internet checksum as RFC 1071 writes it; 0 over what carries the right one."""
    total = 0
    for at in range(0, len(data), 2):
        total += data[at] << 8 | (data[at + 1] if at + 1 < len(data) else 0)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    return source + destination + struct.pack(">IHBB", length, 0, 0, protocol)


def ipv4(
    payload: bytes, protocol: int = 6, fragment: int = 0x4000, source: bytes = HERE4, to: bytes = THERE4, options: bytes = b""
) -> bytes:
    size = 20 + len(options)
    header = struct.pack(">BBHHHBBH", 0x40 | size // 4, 0, size + len(payload), 7, fragment, 64, protocol, 0) + source + to + options
    return header[:10] + naive(header).to_bytes(2, "big") + header[12:] + payload


def ipv6(payload: bytes, protocol: int = 6, source: bytes = HERE6, to: bytes = THERE6) -> bytes:
    return struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64) + source + to + payload


def tcp(options: bytes, source: bytes, to: bytes, flags: int = 2, body: bytes = b"") -> bytes:
    """A TCP segment with its whole checksum."""
    options += b"\0" * (-len(options) % 4)
    segment = struct.pack(">HHIIBBHHH", 4000, 80, 1, 0, (20 + len(options)) // 4 << 4, flags, 65535, 0, 0) + options + body
    total = naive(pseudo(source, to, 6, len(segment)) + segment)
    return segment[:16] + total.to_bytes(2, "big") + segment[18:]


def packed(packet: bytes, flags: int = 0, room: int = 50) -> bytearray:
    """The packet in a buffer that is larger than the frame."""
    return bytearray(bytes((flags,)) + bytes(9) + (IPV4 if packet[0] >> 4 == 4 else IPV6) + packet + b"\xee" * room)


def syn4(options: bytes = MSS, flags: int = 2, fragment: int = 0x4000, ip_options: bytes = b"") -> bytes:
    return ipv4(tcp(options, HERE4, THERE4, flags), fragment=fragment, options=ip_options)


def syn6(options: bytes = MSS) -> bytes:
    return ipv6(tcp(options, HERE6, THERE6))


class InnerTests(SynchronousTestCase):
    """The TAP's MTU."""

    def test_values(self) -> None:
        for outer, ipv6_too, inner in (
            (1500, False, 1428),
            (1500, True, 1408),
            (9000, False, 8928),
            (65536, False, 8928),
            (1400, False, 1328),
            (1280, True, 1280),
        ):
            self.assertEqual(inner_mtu(outer, ipv6_too), inner)


class ClampTests(SynchronousTestCase):
    """TCP's maximum segment size."""

    def clamped(self, packet: bytes, mtu: int) -> tuple[bool, bytes]:
        buffer = packed(packet)
        end = HEAD + len(packet)
        changed = clamp_mss(buffer, end, mtu)
        self.assertEqual(buffer[:HEAD] + buffer[end:], packed(packet)[:HEAD] + b"\xee" * 50)
        return changed, bytes(buffer[HEAD:end])

    def test_lowered(self) -> None:
        """In both families, with a right checksum, wherever the option stands."""
        for before in (b"", b"\x01", b"\x01\x01\x04\x02", b"\x01\x01\x01", b"\x08\x0a" + bytes(8) + b"\x01"):
            for after in (b"", b"\x04\x02", b"\x01\x03\x03\x07"):
                options = lambda size, before=before, after=after: before + b"\x02\x04" + size.to_bytes(2, "big") + after  # noqa: E731
                self.assertEqual(self.clamped(syn4(options(1460)), 1428), (True, syn4(options(1388))))
                self.assertEqual(self.clamped(syn6(options(1440)), 1428), (True, syn6(options(1368))))

    def test_with_ip_options(self) -> None:
        self.assertEqual(
            self.clamped(syn4(ip_options=b"\x01" * 8), 1428), (True, syn4(b"\x02\x04" + (1388).to_bytes(2, "big"), ip_options=b"\x01" * 8))
        )

    def test_an_answer_too(self) -> None:
        self.assertTrue(self.clamped(syn4(flags=0x12), 1428)[0])

    def test_unfinished_checksum(self) -> None:
        """The sum of the pseudo-header does not depend on the option."""
        buffer = packed(syn4(), NEEDS_CHECKSUM)
        self.assertTrue(clamp_mss(buffer, len(buffer) - 50, 1428))
        self.assertEqual(buffer[HEAD + 36 : HEAD + 38], syn4()[36:38])
        self.assertEqual(buffer[HEAD + 42 : HEAD + 44], (1388).to_bytes(2, "big"))

    def test_left_alone(self) -> None:
        """What is small enough, no SYN, a later fragment, without the option, other or malformed."""
        whole = syn4()
        for packet in (
            syn4(b"\x02\x04" + (1388).to_bytes(2, "big")),
            syn4(flags=0x10),
            syn4(fragment=0x0001),
            syn4(b"\x04\x02\x01\x01"),
            syn4(b"\x00" + MSS),
            syn4(b"\x02\x03\x05\xb4"),
            syn4(b"\x09\x00" + MSS),
            syn4(b"\x01\x09\x01" + MSS[:1]),
            whole[:9] + b"\x11" + whole[10:],
            b"\x43" + whole[1:],
            b"\x4f" + whole[1:],
            whole[:32] + b"\xf0" + whole[33:],
            whole[:32] + b"\x10" + whole[33:],
            whole[:41],
            ipv6(b"\x06\x00" + bytes(6) + tcp(MSS, HERE6, THERE6), 60),
        ):
            self.assertEqual(self.clamped(packet, 1428), (False, packet))

    @given(st.sampled_from((syn4, syn6)), st.binary(max_size=36), st.integers(0, 65535), st.integers(0, 9000))
    @settings(max_examples=300)
    def test_any_options(self, make: type, options: bytes, size: int, mtu: int) -> None:
        """Whatever else is there, the checksum is right before and after."""
        packet = make(b"\x01" * (options[0] % 4 if options else 0) + b"\x02\x04" + size.to_bytes(2, "big") + options[:30])
        headers, most = (20, mtu - 40) if make is syn4 else (40, mtu - 60)
        changed, result = self.clamped(packet, mtu)
        self.assertEqual(changed, 0 < most < size)
        addresses = result[12:20] if make is syn4 else result[8:40]
        segment = result[headers:]
        self.assertEqual(naive(pseudo(addresses[: len(addresses) // 2], addresses[len(addresses) // 2 :], 6, len(segment)) + segment), 0)


class TooBigTests(SynchronousTestCase):
    """ICMP errors."""

    def test_ipv4(self) -> None:
        """RFC 1191, with as much of the packet as 576 bytes hold."""
        for size in (8, 100, 528, 529, 1400, 60000):
            packet = ipv4(bytes(range(256)) * 235, 17)[: 20 + size]
            answer = too_big(packed(packet), HEAD + len(packet), 1300)
            assert answer is not None
            self.assertEqual(answer[:HEAD], bytes(10) + IPV4)
            answer = answer[HEAD:]
            self.assertEqual(int.from_bytes(answer[2:4], "big"), len(answer))
            self.assertEqual(len(answer), min(576, 28 + len(packet)))
            self.assertEqual((naive(answer[:20]), naive(answer[20:])), (0, 0))
            self.assertEqual(answer[9:10] + answer[12:20], b"\x01" + THERE4 + HERE4)
            self.assertEqual(answer[20:22] + answer[24:28], bytes((3, 4, 0, 0)) + (1300).to_bytes(2, "big"))
            self.assertEqual(answer[28:], packet[:548])

    def test_ipv6(self) -> None:
        """RFC 4443, with as much of the packet as 1280 bytes hold."""
        for size in (8, 101, 1192, 1193, 60000):
            packet = ipv6(bytes(range(256)) * 235, 17)[: 40 + size]
            answer = too_big(packed(packet), HEAD + len(packet), 1300)
            assert answer is not None
            self.assertEqual(answer[:HEAD], bytes(10) + IPV6)
            answer = answer[HEAD:]
            self.assertEqual((len(answer), answer[6]), (min(1280, 48 + len(packet)), 58))
            self.assertEqual(int.from_bytes(answer[4:6], "big"), len(answer) - 40)
            self.assertEqual(answer[8:40], THERE6 + HERE6)
            self.assertEqual(naive(pseudo(THERE6, HERE6, 58, len(answer) - 40) + answer[40:]), 0)
            self.assertEqual(answer[40:42] + answer[44:48], b"\x02\x00" + (1300).to_bytes(4, "big"))
            self.assertEqual(answer[48:], packet[:1232])

    def test_none(self) -> None:
        """Where no error may be sent."""
        group4, group6 = IPv4Address("224.0.0.251").packed, IPv6Address("ff02::fb").packed
        for packet in (
            ipv4(bytes(100), fragment=0),
            ipv4(bytes(100), fragment=0x4001),
            ipv4(bytes(100), source=group4),
            ipv4(bytes(100), source=bytes(4)),
            ipv4(bytes(100), to=group4),
            ipv4(bytes(100), to=b"\xff" * 4),
            *(ipv4(bytes((kind,)) + bytes(99), 1) for kind in (3, 4, 5, 11, 12)),
            ipv4(bytes(7)),
            b"\x44" + ipv4(bytes(100))[1:],
            ipv6(bytes(100), source=group6),
            ipv6(bytes(100), source=bytes(16)),
            ipv6(bytes(100), to=group6),
            *(ipv6(bytes((kind,)) + bytes(99), 58) for kind in (1, 2, 3, 4, 127, 137)),
            ipv6(bytes((58, 0)) + bytes(6) + b"\x01" + bytes(99), 60),
            ipv6(bytes((17, 0, 0, 8)) + bytes(100), 44),
            ipv6(bytes((60, 0)) * 20, 60)[:50],
            ipv6(b"", 17),
        ):
            self.assertIsNone(too_big(packed(packet), HEAD + len(packet), 1300), packet)
        self.assertIsNone(too_big(bytearray(10) + b"\x08\x06" + bytes(28), 40, 1300))

    def test_some(self) -> None:
        """Where one may: echo requests, and whatever stands behind other headers."""
        for packet in (
            ipv4(b"\x08" + bytes(99), 1),
            ipv6(b"\x80" + bytes(99), 58),
            ipv6(bytes((58, 0)) + bytes(6) + b"\x80" + bytes(99), 0),
            ipv6(bytes((17, 0, 0, 1)) + bytes(100), 44),
            ipv6(bytes(100), 59),
        ):
            self.assertIsNotNone(too_big(packed(packet), HEAD + len(packet), 1300), packet)


GOOD = (syn4(), syn6(), ipv4(bytes(600), 17), ipv6(bytes(1400), 17), ipv6(bytes((58, 0)) + bytes(6) + b"\x80" + bytes(99), 0))


class FuzzTests(SynchronousTestCase):
    """Any bytes."""

    def try_all(self, buffer: bytearray, end: int, mtu: int) -> None:
        view = memoryview(bytearray(buffer))
        changed = clamp_mss(view, end, mtu)
        self.assertIn(changed, (True, False))
        self.assertEqual(len(view), len(buffer))
        if not changed:
            self.assertEqual(bytes(view), buffer)
        answer = too_big(buffer, end, mtu)
        if answer is not None and answer[10:12] == IPV4:
            self.assertEqual((naive(answer[HEAD : HEAD + 20]), naive(answer[HEAD + 20 :])), (0, 0))
        elif answer is not None:
            source, to, message = answer[HEAD + 8 : HEAD + 24], answer[HEAD + 24 : HEAD + 40], answer[HEAD + 40 :]
            self.assertEqual(naive(pseudo(source, to, 58, len(message)) + message), 0)

    @given(st.sampled_from((IPV4, IPV6, b"\x08\x06")), st.binary(max_size=150), st.integers(0, 200), st.integers(0, 65535))
    @settings(max_examples=400)
    def test_noise(self, ethertype: bytes, packet: bytes, end: int, mtu: int) -> None:
        self.try_all(bytearray(10) + ethertype + packet, end, mtu)

    @given(st.sampled_from(GOOD), st.data(), st.integers(0, 9000))
    @settings(max_examples=600)
    def test_damaged(self, packet: bytes, data: st.DataObject, mtu: int) -> None:
        buffer = packed(packet)
        for _ in range(data.draw(st.integers(1, 3))):
            buffer[data.draw(st.integers(0, min(len(buffer) - 1, 100)))] = data.draw(st.integers(0, 255))
        self.try_all(buffer, data.draw(st.integers(0, len(buffer))), mtu)


class KernelTests(SynchronousTestCase):
    """The real kernel believes what is written here: a TAP in a namespace, and this test is what lies behind it."""

    skip = why_no_namespaces()
    MAC = bytes.fromhex("020000000099")

    def setUp(self) -> None:
        space = Namespace()
        self.addCleanup(space.remove)
        self.space = space
        self.tap = space.call(os.open, "/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        self.addCleanup(os.close, self.tap)
        fcntl.ioctl(self.tap, 0x400454CA, struct.pack("16sH22x", b"mtut0", 0x5002))  # TUNSETIFF: IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
        for words in (
            "link set mtut0 up",
            "address add 10.128.0.1/16 dev mtut0",
            "address add fd12::1/64 dev mtut0 nodad",
            "neigh add 10.128.0.2 dev mtut0 lladdr 02:00:00:00:00:99 nud permanent",
            "neigh add fd12::2 dev mtut0 lladdr 02:00:00:00:00:99 nud permanent",
        ):
            space.run("ip", *words.split())

    def socket(self, family: int, kind: int) -> socket.socket:
        made: socket.socket = self.space.call(socket.socket, family, kind | socket.SOCK_NONBLOCK)
        self.addCleanup(made.close)
        return made

    def frame(self, least: int, protocol: int) -> tuple[bytes, bytearray]:
        """The next frame with a packet of this protocol, and it packed."""
        while select.select([self.tap], [], [], 5)[0]:
            frame = os.read(self.tap, 1 << 17)[10:]
            if len(frame) >= least and frame[0:6] == self.MAC and protocol == frame[23 if frame[12:14] == IPV4 else 20]:
                return frame, bytearray(10) + frame[12:]
        raise self.failureException("the kernel sends nothing")

    def write(self, frame: bytes) -> None:
        """Hand a frame to the kernel, with an offload head that asks for nothing."""
        os.write(self.tap, bytes(10) + frame)

    def told(self, family: int, to: str, level: int, discover: int, mtu_option: int) -> None:
        """A sender of large datagrams learns from an error what fits."""
        sender = self.socket(family, socket.SOCK_DGRAM)
        sender.setsockopt(level, discover, 2)  # IP_PMTUDISC_DO
        sender.connect((to, 9))
        sender.send(bytes(1400))
        frame, buffer = self.frame(1400, 17)
        answer = too_big(buffer, len(buffer), 1300)
        assert answer is not None
        self.write(frame[6:12] + self.MAC + answer[10:])
        self.assertIn("mtu 1300", self.space.run("ip", "route", "get", to))
        self.assertEqual(sender.getsockopt(level, mtu_option), 1300)

    def test_ipv4(self) -> None:
        self.told(socket.AF_INET, "10.128.0.2", socket.IPPROTO_IP, 10, 14)

    def test_ipv6(self) -> None:
        self.told(socket.AF_INET6, "fd12::2", socket.IPPROTO_IPV6, 23, 24)

    def test_super_frame(self) -> None:
        """A TCP sender believes it too when a frame is quoted that its kernel has not cut into segments yet."""
        fcntl.ioctl(self.tap, 0x400454D0, 0x01 | 0x02)  # TUNSETOFFLOAD: TUN_F_CSUM, TUN_F_TSO4
        sender = self.socket(socket.AF_INET, socket.SOCK_STREAM)
        sender.connect_ex(("10.128.0.2", 80))
        frame, _ = self.frame(54, 6)
        port, _, sequence = struct.unpack_from(">HHI", frame, 34)
        segment = struct.pack(">HHIIBBHHH", 80, port, 9, sequence + 1 & 0xFFFFFFFF, 6 << 4, 0x12, 65535, 0, 0) + MSS
        segment = segment[:16] + naive(pseudo(THERE4, HERE4, 6, len(segment)) + segment).to_bytes(2, "big") + segment[18:]
        self.write(frame[6:12] + self.MAC + IPV4 + ipv4(segment, source=THERE4, to=HERE4))
        self.assertTrue(select.select([], [sender], [], 5)[1])
        sender.send(bytes(9000))
        frame, buffer = self.frame(4000, 6)
        answer = too_big(buffer, len(buffer), 1300)
        assert answer is not None
        self.write(frame[6:12] + self.MAC + answer[10:])
        self.assertIn("mtu 1300", self.space.run("ip", "route", "get", "10.128.0.2"))
        self.assertEqual(sender.getsockopt(socket.IPPROTO_IP, 14), 1300)

    def test_syn(self) -> None:
        """A SYN as the kernel makes it."""
        for family, to, headers in ((socket.AF_INET, "10.128.0.2", 40), (socket.AF_INET6, "fd12::2", 60)):
            self.socket(family, socket.SOCK_STREAM).connect_ex((to, 80))
            _, buffer = self.frame(54, 6)
            self.assertTrue(clamp_mss(buffer, len(buffer), 1300))
            tcp_at = HEAD + headers - 20
            self.assertEqual(buffer[tcp_at + 20 : tcp_at + 24], b"\x02\x04" + (1300 - headers).to_bytes(2, "big"))
            addresses = bytes(buffer[HEAD + 12 : HEAD + 20] if headers == 40 else buffer[HEAD + 8 : HEAD + 40])
            half = len(addresses) // 2
            self.assertEqual(naive(pseudo(addresses[:half], addresses[half:], 6, len(buffer) - tcp_at) + buffer[tcp_at:]), 0)
