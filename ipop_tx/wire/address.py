"""What an ident implies without asking anybody: its MAC address and its IPv6 address."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network

from ipop_tx.values import IDENT_BYTES, Ident

MAC_BYTES = 6
IPV6_PREFIX_BITS = 48
_IDENT_IN_IPV6 = 10  # bytes: what a /48 leaves


def mac_of(ident: Ident) -> bytes:
    """The MAC address (6 bytes) of a node: the first 48 bits of its ident, of which two are forced.

    Bit 1 of the first byte marks it as locally administered, bit 0 as unicast (IEEE 802); 46 bits of the ident remain.
    """
    return bytes((ident[0] & 0xFC | 0x02,)) + ident[1:MAC_BYTES]


def ipv6_of(prefix: IPv6Network, ident: Ident) -> IPv6Address:
    """The IPv6 address of a node: the network's /48 and the first 80 bits of its ident."""
    return IPv6Address(prefix.network_address.packed[: IPV6_PREFIX_BITS // 8] + ident[:_IDENT_IN_IPV6])


def ident_prefix_of(address: IPv6Address) -> Ident:
    """The least ident that could own an overlay IPv6 address: its low 80 bits, padded with zeros to 20 bytes.

    The owner, if there is one, is therefore the first node at or after it on the ring.
    """
    return address.packed[IPV6_PREFIX_BITS // 8 :].ljust(IDENT_BYTES, b"\0")
