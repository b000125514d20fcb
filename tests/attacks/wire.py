"""What an attacker has on the wire: eyes on a router, and datagrams with any source."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Self

from ipop_tx.lab import Host, netns

_IPV4, _OUTGOING = 0x0800, 4
_SO_RCVBUFFORCE = 33
_UDP = 17

Address = tuple[str, int]


@dataclass(frozen=True)
class Datagram:
    """A UDP datagram over IPv4 that somebody saw."""

    source: Address
    target: Address
    payload: bytes


class Eyes:
    """Sees all UDP over IPv4 that comes into a host from now on, also what is only forwarded there."""

    def __init__(self, host: Host) -> None:
        with netns.inside(host.namespace):
            self._port = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_IPV4))
        self._port.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 25)
        self._port.setblocking(False)
        self._kept: list[Datagram] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *why: object) -> None:
        self._port.close()

    def seen(self, source: str | None = None, target: str | None = None) -> list[Datagram]:
        """What came so far, all of it or that between two addresses."""
        self._read()
        return [one for one in self._kept if source in (None, one.source[0]) and target in (None, one.target[0])]

    def _read(self) -> None:
        while True:
            try:
                packet, where = self._port.recvfrom(1 << 17)
            except BlockingIOError:
                return
            found = parsed(packet)
            if where[2] != _OUTGOING and found is not None:
                self._kept.append(found)


def parsed(packet: bytes) -> Datagram | None:
    """The UDP datagram in an IPv4 packet, None for another one or a fragment."""
    at = (packet[0] & 15) * 4
    if packet[9] != _UDP or int.from_bytes(packet[6:8], "big") & 0x3FFF or len(packet) < at + 8:
        return None
    from_port, to_port, length = struct.unpack_from("!HHH", packet, at)
    source, target = (socket.inet_ntoa(packet[place : place + 4]) for place in (12, 16))
    # A run of datagrams that was sent at once is still one here, longer than a length field can say.
    end = len(packet) if len(packet) - at > length > 0 and len(packet) > 1600 else at + length
    return Datagram((source, from_port), (target, to_port), packet[at + 8 : end])


class Forger:
    """Sends datagrams from a host under any source address."""

    def __init__(self, host: Host) -> None:
        with netns.inside(host.namespace):
            self._port = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *why: object) -> None:
        self._port.close()

    def send(self, source: Address, target: Address, payload: bytes) -> None:
        """One datagram; the kernel fills in the checksum of the IPv4 header, and UDP's is left out."""
        self._port.sendto(udp(source, target, payload), (target[0], 0))

    def again(self, one: Datagram, source: Address | None = None) -> None:
        """A datagram that was seen, once more, maybe from elsewhere."""
        self.send(source or one.source, one.target, one.payload)


def udp(source: Address, target: Address, payload: bytes) -> bytes:
    """An IPv4 packet with a UDP datagram; the kernel's own checksum is filled in by `ipv4`."""
    return ipv4(source[0], target[0], _UDP, struct.pack("!HHHH", source[1], target[1], 8 + len(payload), 0) + payload)


def ipv4(source: str, target: str, protocol: int, content: bytes) -> bytes:
    """An IPv4 packet (RFC 791) with a good checksum."""
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(content), 0, 0, 64, protocol, 0, *map(socket.inet_aton, (source, target)))
    return head[:10] + _checksum(head).to_bytes(2, "big") + head[12:] + content


def echo(source: str, target: str) -> bytes:
    """An IPv4 packet with an ICMP echo request."""
    asked = struct.pack("!BBHHH", 8, 0, 0, 1, 1)
    return ipv4(source, target, 1, asked[:2] + _checksum(asked).to_bytes(2, "big") + asked[4:])


def cut(one: Host, other: Host) -> str:
    """Rules for a router that lets nothing pass between two hosts."""
    pairs = ((one.address, other.address), (other.address, one.address))
    rules = "".join(f" ip saddr {source} ip daddr {target} drop\n" for source, target in pairs)
    return f"table ip cut {{\n chain c {{\n type filter hook forward priority 0;\n{rules} }}\n}}\n"


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
