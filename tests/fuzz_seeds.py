"""Good inputs for the fuzzer, made by the code that sends them."""

from __future__ import annotations

import base64
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from tempfile import TemporaryDirectory

from ipop_tx.forwarding.neighbour import answer, parse
from ipop_tx.identity.assignment import credential
from ipop_tx.identity.authority import create_network, read_certificates
from ipop_tx.identity.certificates import to_der
from ipop_tx.identity.credentials import GuestCredentials
from ipop_tx.identity.enrolment import build_enrol
from ipop_tx.identity.invitation import _CHECKSUM_BYTES, PREFIX, Invitation, InvitationRecord, Wish
from ipop_tx.identity.keys import generate_key, read_key, sign
from ipop_tx.identity.signer import RecordSigner
from ipop_tx.identity.state import ADMISSION_CERTIFICATE, ADMISSION_KEY, NODE_CHAIN, NODE_KEY, StateDirectory
from ipop_tx.session.dtls import DtlsSessionFactory
from ipop_tx.values import Endpoint
from ipop_tx.wire import dhcp, portmap
from ipop_tx.wire import messages as m
from ipop_tx.wire.relay import Relayed

_IDENT = bytes(range(20))
_BALLOT = m.Ballot(7, _IDENT)
_RECORD = m.Record(_IDENT, 3, 60, b"value", bytes(49), bytes(70))
_BODIES = (
    m.Hello(1, ("udp:203.0.113.1:4500", "tls:203.0.113.1:443"), bytes(4)),
    m.Offer(("udp:203.0.113.1:4500",)),
    m.Renew(bytes(8), bytes(32)),
    m.Lookup(_IDENT, 40),
    m.Notify(5),
    m.Leaving(_IDENT, (_IDENT,)),
    m.Accept(3, 1, _IDENT, _BALLOT, _RECORD, 0),
    m.Install(3, 1, (_IDENT,), (m.Cell(_IDENT, _BALLOT, _BALLOT, _RECORD, 0),), 0, True, 1),
    m.Broadcast(_IDENT, b"payload"),
    m.Enrol(b"x", b"csr", b"", b"s", "name", _IDENT),
    m.Order(_IDENT, 5, (_IDENT,), (1, 2), bytes(16), 1, b"sig"),
)
_ARP = b"\xff" * 6 + bytes.fromhex("0200000000010806000108000604000102000000000110a80001") + bytes(10)
_IPV4 = bytes.fromhex("45000034000000004006000010a80001 10a80002".replace(" ", ""))
_TCP = bytes.fromhex("0016 0017 00000001 00000002 8018 0100 0000 0000 0204 05b4 0101 0101 0303 0700".replace(" ", ""))
_PACKED = bytes.fromhex("01010000") + b"\x20\x00" + bytes.fromhex("22001000") + b"\x08\x00" + _IPV4 + _TCP + bytes(64)
_OFFER = dhcp.encode(dhcp.Message(dhcp.OFFER, bytes(4), bytes([2] * 6), {dhcp.SERVER: bytes(4)}, True))


_POLICY = b"""default = "deny"
[[allow]]
name = "web"
from = ["group:dev", "10.128.0.0/24"]
to = ["any"]
protocol = ["tcp"]
ports = ["80", "8000-8100"]
"""
"""Of docs/policy.md's kind."""


def _identity() -> tuple[list[bytes], bytes, bytes, dict[str, list[bytes]]]:
    with TemporaryDirectory() as place:
        state = StateDirectory(Path(place))
        create_network(state, "lab", IPv4Network("10.128.0.0/16"), "node")
        chain = read_certificates(state, NODE_CHAIN)
        invitation = Invitation.make(chain[-1], 2**31, (Endpoint("udp", "203.0.113.1", 4500),))
        key, above = read_key(state, ADMISSION_KEY), read_certificates(state, ADMISSION_CERTIFICATE)
        record = InvitationRecord.make(invitation, Wish("node"), key, above[0])
        more = {
            "request": [build_enrol(invitation, generate_key(), None, "node").csr],
            "credential": [credential(chain)],
            "signature": [RecordSigner(read_key(state, NODE_KEY), bytes(16)).signer + sign(read_key(state, NODE_KEY), b"data")],
        }
    return [to_der(one) for one in chain], str(invitation).encode(), record.encode(), more


def invitation_body(token: bytes) -> bytes:
    """What an invitation says, without its checksum."""
    encoded = token.decode().removeprefix(PREFIX)
    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))[:-_CHECKSUM_BYTES]


_CHAIN, _TOKEN, _INVITATION, _MORE = _identity()
_question = parse(_ARP)

SEEDS: dict[str, list[bytes]] = {
    "message": [
        *(m.encode(m.Request(1, body)) for body in _BODIES),
        *(m.encode(one) for one in (m.PathChallenge(1, bytes(9)), m.PathResponse(1, ""), m.Close("x"), m.Fragment(1, 0, 2, b"part"))),
        m.encode(m.Reply(1, m.Promise(_BALLOT, _RECORD, 5))),
        m.encode(m.Opened(1, 2, 3, 4)),
    ],
    "relay": [Relayed(_IDENT, _IDENT, b"datagram", 5, (_IDENT,), (_IDENT, _IDENT)).encode()],
    "hello": [DtlsSessionFactory(GuestCredentials(generate_key(), bytes(16))).initiate(0.0).poll_transmit() or b""],
    "dhcp": [_OFFER],
    "portmap": [
        portmap.pcp_map(IPv4Address("10.0.0.1"), bytes(12), 4500, 4500, 60),
        portmap.pmp_map(4500, 4500, 60),
        bytes([0, 128]) + bytes(10),
    ],
    "neighbour": [_ARP, *([answer(_question, bytes(6))] if _question else [])],
    "bundle": [bytes(100) + b"\x00\x32\x00\x32\x00\x02"],
    "endpoint": [b"udp:203.0.113.1:4500", b"tls:[2001:db8::1]:443", b"onion:abcdef:1"],
    "stream": [b"\x00\x10" + bytes(16)],
    "certificate": _CHAIN,
    "invitation": [_TOKEN],
    **_MORE,
    "policy": [_POLICY, b'{"default": "deny", "allow": [{"name": "a", "to": ["any"], "protocol": ["icmp"], "types": ["echo-request"]}]}'],
    "service": [b"tcp/443", b"icmp/echo-request", b"udp"],
    "http_proxy": [b"HTTP/1.1 200 Connection established\r\n\r\nrest", b"HTTP/1.1 407 No\r\n\r\n"],
    "socks_proxy": [b"\x05\x02\x01\x00\x05\x00\x00\x01\xc0\x00\x02\x02\x01\xbb", b"\x05\x00\x05\x00\x00\x03\x04host\x01\xbb"],
    "fragments": [bytes(range(256)), bytes([0, 1, 0, 2, 0, 1, 1, 2]) * 8],
    "invitation_body": [invitation_body(_TOKEN)],
    "invitation_record": [_INVITATION, b"\x99" + _INVITATION[1:] + b"\x91" * 1500 + b"\xc0"],
    **{name: [_PACKED] for name in ("payload", "restore", "segment", "clamp", "too_big", "is_dhcp")},
    "dhcp_frame": [bytes(12) + b"\x08\0" + _IPV4 + bytes.fromhex("0044004301000000") + _OFFER],
}
