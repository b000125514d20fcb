"""NAT-PMP and PCP: their bytes are pinned, and no bytes make the decoder do anything but decode or raise `BadMessage`."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from ipop_tx.errors import BadMessage
from ipop_tx.wire import portmap as w

CLIENT, OUTER = IPv4Address("192.168.1.10"), IPv4Address("203.0.113.7")
NONCE = bytes(range(12))
MAPPED = "00000000000000000000ffff"

REQUESTS = [
    (w.pmp_address(), "0000"),
    (w.pmp_map(4500, 4501, 3600), "000100001194119500000e10"),
    (w.pcp_announce(CLIENT), f"0200000000000000{MAPPED}c0a8010a"),
    (
        w.pcp_map(CLIENT, NONCE, 4500, 4501, 3600),
        f"0201000000000e10{MAPPED}c0a8010a000102030405060708090a0b1100000011941195{MAPPED}00000000",
    ),
]
ANSWERS: list[tuple[str, w.Answer]] = [
    ("0080000000000064cb007107", w.OuterAddress(0, 100, OUTER)),
    ("008000000000006400000000", w.OuterAddress(0, 100, None)),
    ("0080000300000064", w.OuterAddress(3, 100, None)),
    ("00810000000000641194119500000e10", w.Mapped(w.PMP, 0, 100, 4500, 4501, 3600)),
    ("00810002000000641194000000000000", w.Mapped(w.PMP, 2, 100, 4500, 0, 0)),
    ("0081000100000064", w.Mapped(w.PMP, 1, 100, 0, 0, 0)),
    (f"028000000000000000000064{'00' * 12}", w.Announced(0, 100)),
    (f"028100010000003c00000064{'00' * 12}", w.Announced(1, 100)),
    (
        f"0281000000000e1000000064{'00' * 12}000102030405060708090a0b1100000011941195{MAPPED}cb007107",
        w.Mapped(w.PCP, 0, 100, 4500, 4501, 3600, NONCE, OUTER),
    ),
    (
        f"0281000000000e1000000064{'00' * 12}000102030405060708090a0b110000001194119520010db8000000000000000000000007",
        w.Mapped(w.PCP, 0, 100, 4500, 4501, 3600, NONCE, IPv6Address("2001:db8::7")),
    ),
    (
        f"028100080000003c00000064{'00' * 12}000102030405060708090a0b1100000011940000{'00' * 16}",
        w.Mapped(w.PCP, 8, 100, 4500, 0, 60, NONCE, None),
    ),
]
BAD = [
    "",
    "00",
    "0000",  # a request
    "000100001194119500000e10",
    "0080000000000064cb0071",
    "0080000000000064cb00710700",
    "008000000000",
    "00810000000000641194119500000e",
    "00820000000000641194119500000e10",  # a mapping for TCP
    "01810000000000641194119500000e10",
    "03810000000000641194119500000e10",
    f"028000000000000000000064{'00' * 11}",
    f"028000000000000000000064{'00' * 13}",
    f"0281000000000e1000000064{'00' * 12}000102030405060708090a0b",
    f"0281000000000e1000000064{'00' * 12}000102030405060708090a0b0600000011941195{MAPPED}cb007107",  # TCP
    f"0282000000000e1000000064{'00' * 48}",  # PEER
    f"028000000000000000000064{'00' * 1100}",
]


class VectorTests(TestCase):
    """Byte by byte."""

    def test_requests(self) -> None:
        """What we send, after RFC 6886 and RFC 6887."""
        for request, text in REQUESTS:
            self.assertEqual(request.hex(), text)

    def test_answers(self) -> None:
        """What gateways say."""
        for text, answer in ANSWERS:
            self.assertEqual(w.decode(bytes.fromhex(text)), answer, text)

    def test_bad(self) -> None:
        """What does not decode."""
        for text in BAD:
            self.assertRaises(BadMessage, w.decode, bytes.fromhex(text))

    def test_addresses_that_are_none(self) -> None:
        """A gateway without an outer address, or one that names itself or everybody, gives no endpoint."""
        for address in ("0.0.0.0", "127.0.0.1", "224.0.0.1", "169.254.1.1"):
            answer = w.decode(bytes.fromhex("0080000000000064") + IPv4Address(address).packed)
            self.assertIsInstance(answer, w.OuterAddress)
            self.assertIsNone(answer.address)  # type: ignore[union-attr]


class FuzzTests(TestCase):
    """Any bytes at all."""

    @settings(max_examples=300, deadline=None)
    @given(
        st.one_of(
            st.binary(max_size=80),
            st.builds(
                lambda head, rest: head + rest, st.sampled_from([b"\0\x80", b"\0\x81", b"\2\x80", b"\2\x81"]), st.binary(max_size=70)
            ),
        )
    )
    @example(b"\2\x81" + bytes(58))
    def test_any_bytes(self, data: bytes) -> None:
        """They decode to an answer, or raise `BadMessage`."""
        try:
            answer = w.decode(data)
        except BadMessage:
            return
        self.assertIsInstance(answer, (w.OuterAddress, w.Mapped, w.Announced))

    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from([text for text, _ in ANSWERS]), st.data())
    def test_altered_answers(self, text: str, data: st.DataObject) -> None:
        """A good answer with one byte changed, cut or made longer, does the same."""
        good = bytearray.fromhex(text)
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(good)))
        try:
            w.decode(bytes(good[:cut]) + data.draw(st.binary(max_size=8)))
        except BadMessage:
            return
