"""Control messages: their bytes are pinned, and no bytes make the decoder do anything but decode or raise `BadMessage`."""

from __future__ import annotations

from typing import get_args

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from ipop_tx.errors import BadMessage
from ipop_tx.wire import messages as m
from ipop_tx.wire.flows import FlowRow

A, B, K = bytes(range(20)), bytes(range(20, 40)), bytes(range(40, 60))
BALLOT = m.Ballot(7, A)
RECORD = m.Record(A, 3, 86400, b"value", b"signer", b"signature")
FLOOR = m.Floor(BALLOT, 9)
CELL = m.Cell(K, BALLOT, BALLOT, RECORD, 1500)
VOICE = m.Voice(b"cred", 1500, 1800000000, b"signature")
CERTIFICATE = m.Certificate(4, (A, B), BALLOT, RECORD, A[:16], (VOICE,))
ENDPOINT = "udp:198.51.100.7:4500"

PARTS = {
    "a": "c414" + A.hex(),
    "b": "c414" + B.hex(),
    "k": "c414" + K.hex(),
    "public": "c420" + bytes(range(32)).hex(),
    "endpoint": "b57564703a3139382e35312e3130302e373a34353030",
}
PARTS["ballot"] = "933207" + PARTS["a"]
PARTS["floor"] = "9344" + PARTS["ballot"] + "09"
PARTS["record"] = "9728" + PARTS["a"] + "03ce00015180c40576616c7565c4067369676e6572c4097369676e6174757265"
PARTS["voice"] = "9531c40463726564cd05dcce6b49d200c4097369676e6174757265"
PARTS["certificate"] = (
    "97270492" + PARTS["a"] + PARTS["b"] + PARTS["ballot"] + PARTS["record"] + "c410" + A[:16].hex() + "91" + PARTS["voice"]
)

VECTORS: list[tuple[m.Message, str]] = [
    (m.PathChallenge(2**62, b"pad"), "9301cf4000000000000000c403706164"),
    (m.PathResponse(1, ENDPOINT), "930201{endpoint}"),
    (m.Close("the node leaves"), "9203af746865206e6f6465206c6561766573"),
    (m.Fragment(9, 1, 2, b"part"), "9504090102c40470617274"),
    (m.Opened(0x80000005, 65536, 65000, 3), "9507ce80000005ce00010000cdfde803"),
    (
        m.Request(258, m.Hello(m.ADMITS, (ENDPOINT,), bytes((10, 128, 0, 9)), 2, 4, revocations=A[:8])),
        "9305cd01029b0a0191{endpoint}c4040a800009020400c2a0c408000102030405060700",
    ),
    (m.Request(1, m.Offer((ENDPOINT,), 2, 4, 1, True, ENDPOINT)), "930501970b91{endpoint}020401c3{endpoint}"),
    (m.Request(1, m.Renew(A[:8], bytes(range(32)))), "930501930cc4080001020304050607{public}"),
    (m.Reply(1, m.Renewed(bytes(range(32)))), "930601920d{public}"),
    (m.Probe(2**62), "9250cf4000000000000000"),
    (m.Probed(7, ENDPOINT), "935107{endpoint}"),
    (m.Request(1, m.Assist()), "9305019152"),
    (m.Reply(1, m.Assisting(65535)), "9306019253cdffff"),
    (m.Request(1, m.Knock(7, ENDPOINT, True)), "930501945407{endpoint}c3"),
    (m.Request(1, m.Search(ENDPOINT, (40001,), (A,))), "9305019455{endpoint}91cd9c4191{a}"),
    (m.Reply(1, m.Searching(ENDPOINT, (40001,))), "9306019356{endpoint}91cd9c41"),
    (m.Request(1, m.Whence()), "9305019159"),
    (m.Request(1, m.WhereIs(A)), "9305019257{a}"),
    (m.Reply(1, m.Sighted(ENDPOINT)), "9306019258{endpoint}"),
    (m.Request(1, m.GetNeighbours()), "9305019114"),
    (m.Request(1, m.Notify()), "930501921500"),
    (m.Request(1, m.Notify(7)), "930501921507"),
    (m.Reply(1, m.Neighbours(A, (B, K), True)), "9306019516{a}92{b}{k}c300"),
    (m.Request(1, m.Lookup(K, 40, A)), "9305019417{k}28{a}"),
    (m.Request(1, m.Closest(K, 40, (A,))), "930501941c{k}2891{a}"),
    (m.Reply(1, m.Found(A, (B,), 3, K)), "9306019518{a}91{b}03{k}"),
    (m.Request(1, m.Leaving(None, (B,))), "9305019319c091{b}"),
    (m.Reply(1, m.Done()), "930601911a"),
    (m.Request(1, m.Suggest(B)), "930501921b{b}"),
    (m.Request(1, m.Links((A, B), b"\x07\xff")), "930501932192{a}{b}c40207ff"),
    (m.Request(1, m.Broadcast(B, b"revoked")), "930501931d{b}c4077265766f6b6564"),
    (m.Request(1, m.Seek(K, 40, 3, 2)), "930501951e{k}280302"),
    (m.Request(1, m.Unneeded()), "9305019122"),
    (m.Reply(1, m.Needed()), "9306019123"),
    (m.Request(1, m.NotYours(bytes((10, 128, 0, 9)))), "9305019224c4040a800009"),
    (m.Request(1, m.NotMine(bytes((10, 128, 0, 9)), True)), "9305019325c4040a800009c3"),
    (m.Request(1, m.HandOver(bytes((10, 128, 0, 9)), b"\x01guest")), "9305019326c4040a800009c406016775657374"),
    (m.Request(1, m.Read(K)), "9305019429{k}c40000"),
    (m.Request(1, m.Write(K, 2, RECORD)), "930501942a{k}02{record}"),
    (m.Reply(1, m.Current(True, RECORD, 3)), "930601952bc3{record}03c0"),
    (m.Request(1, m.Read(K, A[:16], 3)), "9305019429{k}c410" + A[:16].hex() + "03"),
    (m.Reply(1, m.Current(True, None, 0, CERTIFICATE)), "930601952bc3c000{certificate}"),
    (m.Request(1, m.Show(K)), "930501921f{k}"),
    (m.Reply(1, m.Shown(None, CERTIFICATE)), "9306019320c0{certificate}"),
    (m.Request(1, m.Vouch(31, 4, K, A[:16])), "93050195301f04{k}c410" + A[:16].hex()),
    (m.Reply(1, m.Vouched(BALLOT, RECORD, VOICE)), "9306019445{ballot}{record}{voice}"),
    (m.Reply(1, m.Redirect(31, 4, (A, B))), "930601942c1f0492{a}{b}"),
    (m.Reply(1, m.NoMajority(1, 3, 5)), "930601942d010305"),
    (m.Request(1, m.WhoKeeps(31)), "930501922e1f"),
    (m.Request(1, m.Peek(31, 4, K)), "930501942f1f04{k}"),
    (m.Request(1, m.Prepare(31, 4, K, BALLOT)), "93050197331f04{k}{ballot}c40000"),
    (m.Request(1, m.Prepare(31, 4, K, BALLOT, A, 300)), "93050197331f04{k}{ballot}{a}cd012c"),
    (m.Reply(1, m.Promise(BALLOT, None, 0, 7)), "9306019534{ballot}c00007"),
    (m.Request(1, m.Accept(31, 4, K, BALLOT, RECORD, 1500)), "93050197351f04{k}{ballot}{record}cd05dc"),
    (m.Reply(1, m.Refused(BALLOT)), "9306019236{ballot}"),
    (m.Reply(1, m.Stale(31, 4, (A, B), True)), "93060195371f0492{a}{b}c3"),
    (m.Request(1, m.Seal(31, 4, BALLOT)), "93050194381f04{ballot}"),
    (m.Reply(1, m.Sealed(m.NO_BALLOT, (), 17)), "9306019439933200c41400000000000000000000000000000000000000009011"),
    (m.Request(1, m.Succeed(31, 4, BALLOT, (A, B))), "930501953a1f04{ballot}92{a}{b}"),
    (m.Request(1, m.Fetch(31, 4, b"")), "930501943b1f04c400"),
    (m.Reply(1, m.Page((CELL,), False, FLOOR)), "930601943d91963c{k}{ballot}{ballot}{record}cd05dcc2{floor}"),
    (m.Request(1, m.Forget(31, 4, K, BALLOT)), "93050195401f04{k}{ballot}"),
    (
        m.Request(1, m.Install(31, 5, (A, B), (CELL,), 0, True, 7, FLOOR)),
        "930501993e1f0592{a}{b}91963c{k}{ballot}{ballot}{record}cd05dc00c307{floor}",
    ),
    (m.Request(1, m.Retire(31, 4, (A, B))), "930501943f1f0492{a}{b}"),
    (
        m.Request(1, m.Order(A, 9, (B,), (0, 31), bytes(range(16)), 1800000000, b"signature")),
        "9305019841{a}0991{b}92001fc410000102030405060708090a0b0c0d0e0fce6b49d200c4097369676e6174757265",
    ),
    (m.Request(1, m.Salvage(31, 9, b"")), "93050194421f09c400"),
    (
        m.Request(1, m.Revoked((m.Revocation(A, bytes(range(32)), "gone", 1800000000, b"signature"),), True)),
        "930501935b91975a{a}{public}a4676f6e65ce6b49d200c4097369676e617475726500c3",
    ),
    (m.Request(1, m.WhichRevoked(bytes(range(32)))), "930501925c{public}"),
    (m.Reply(1, m.Salvaged(4, (CELL,), False, FLOOR)), "93060195430491963c{k}{ballot}{ballot}{record}cd05dcc2{floor}"),
    (
        m.Request(1, m.Enrol(b"invitation", b"csr", b"", b"signature", "alice", A)),
        "9305019746c40a696e7669746174696f6ec403637372c400c4097369676e6174757265a5616c696365{a}",
    ),
    (m.Reply(1, m.Enrolled((b"leaf", b"ca"), (ENDPOINT,))), "930601934792c4046c656166c402636191{endpoint}"),
    (
        m.Request(1, m.Charters((m.Charter(A, 1, ((b"root", 0),), (bytes(range(33)),), 1, (b"ca",), 1800000000, b"signature"),), True)),
        "93050193639199 61{a}019192c404726f6f740091c421%s0191c4026361ce6b49d200c4097369676e6174757265c3".replace(" ", "")
        % bytes(range(33)).hex(),
    ),
    (m.Request(1, m.WhichCharters(7)), "930501926207"),
    (m.Request(1, m.Readmit((b"leaf", b"ca"), b"signature")), "930501934a92c4046c656166c4026361c4097369676e6174757265"),
    (m.Reply(1, m.Readmitted((b"leaf", b"ca", b"root"))), "930601924b93c4046c656166c4026361c404726f6f74"),
    (
        m.Reply(1, m.Failed("Conflict", "the register is taken", "choose another")),
        "9306019448a8436f6e666c696374b57468652072656769737465722069732074616b656eae63686f6f736520616e6f74686572",
    ),
    (m.Reply(1, m.Working()), "9306019149"),
    (m.Request(1, m.Newest(1800000000, bytes(range(8)))), "9305019360ce6b49d200c4080001020304050607"),
    (m.Request(1, m.Relate(A[:4], B[:4], 6, 22, 0, 40000)), "930501976ec40400010203c40414151617061600cd9c40"),
    (
        m.Reply(1, m.Relation(0, 1800000000, A[:4], 60, 7, True, "ssh", False, 2, 4, 1, 2, 3)),
        "9306019e6f00ce6b49d200c404000102033c07c3a3737368c20204010203",
    ),
    (m.Request(1, m.AskFlows(A, B, 3600, K, 1800000000, b"signature")), "9305019772{a}{b}cd0e10{k}ce6b49d200c4097369676e6174757265"),
    (
        m.Reply(1, m.FlowsTold((FlowRow(A[:4], B[:4], 4000, 22, 6, 3, 180, 100, 160, True, "ssh"),), True)),
        "9306019373919bc40400010203c40414151617cd0fa0160603ccb464cca0c3a3737368c3",
    ),
    (m.Request(1, m.Reach(A)), "9305019270{a}"),
    (m.Reply(1, m.Reached(True, 1800000000)), "9306019371c3ce6b49d200"),
    (
        m.Reply(1, m.Settings(A, 7, (("policy", b"text"),), b"signature")),
        "930601955f{a}079192a6706f6c696379c40474657874c4097369676e6174757265",
    ),
]


class VectorTests(TestCase):
    """One message of each type, byte by byte."""

    def test_encode(self) -> None:
        """Each message has the pinned bytes."""
        for message, text in VECTORS:
            self.assertEqual(m.encode(message).hex(), text.format(**PARTS), message)

    def test_decode(self) -> None:
        """The pinned bytes give the message back."""
        for message, text in VECTORS:
            self.assertEqual(m.decode(bytes.fromhex(text.format(**PARTS))), message)

    def test_all_types(self) -> None:
        """No message is without a vector."""
        pinned = {type(getattr(message, "body", message)) for message, _ in VECTORS} | {m.Request, m.Reply}
        self.assertEqual(set(get_args(m.Message)) | set(get_args(m.Ask)) | set(get_args(m.Answer)), pinned)

    def test_trailing_fields(self) -> None:
        """A later version may add fields at the end of a message."""
        for message, text in VECTORS:
            fields = msgspec.msgpack.decode(bytes.fromhex(text.format(**PARTS)))
            self.assertEqual(m.decode(msgspec.msgpack.encode([*fields, "later"])), message)

    def test_missing_fields(self) -> None:
        """What an earlier version left out at the end of a message has its default."""
        self.assertEqual(m.decode(bytes.fromhex("9201cf4000000000000000")), m.PathChallenge(2**62))


class RefusalTests(TestCase):
    """What must not decode."""

    def refused(self, message: msgspec.Struct) -> None:
        """The message encodes, for nobody checks there, but does not decode."""
        self.assertRaises(BadMessage, m.decode, m.encode(message))

    def test_limits(self) -> None:
        """Each bound of the format is enforced."""
        long = m.Record(A, 1, 60, bytes(m.MAX_VALUE + 1), b"", b"")
        for message in (
            m.PathChallenge(-1),
            m.PathChallenge(2**62 + 1),
            m.PathChallenge(1, bytes(m.MAX_PADDING + 1)),
            m.PathResponse(1, "x" * 101),
            m.Close("x" * 201),
            m.Fragment(1, 64, 64, b""),
            m.Fragment(1, 0, 65, b""),
            m.Fragment(1, 0, 0, b""),
            m.Opened(-1, 0, 0, 0),
            m.Opened(1, -1, 0, 0),
            m.Opened(1, 0, 2**62 + 1, 0),
            m.Opened(1, 0, 0, -1),
            m.Request(1, m.Relate(bytes(17), b"")),
            m.Request(1, m.Relate(b"", b"", 256)),
            m.Request(1, m.Relate(b"", b"", 6, 65536)),
            m.Reply(1, m.Relation(0, 0, bytes(5), 0, 0, True, "", True, 0, 0)),
            m.Request(1, m.Reach(A[:19])),
            m.Request(1, m.Lookup(K[:19], 1)),
            m.Request(1, m.Lookup(K, 65)),
            m.Request(1, m.Lookup(K, 1, A + b"x")),
            m.Request(1, m.Broadcast(B[:19], b"")),
            m.Request(1, m.Broadcast(B, bytes(m.MAX_VALUE + 1))),
            m.Request(1, m.Seek(K, 65, 3, 0)),
            m.Request(1, m.Seek(K, 40, 1, 0)),
            m.Request(1, m.Seek(K, 40, 17, 0)),
            m.Request(1, m.Seek(K, 40, 16, 16)),
            m.Request(1, m.Hello(0, ("",) * 17, b"")),
            m.Request(1, m.Hello(0, (), bytes(5))),
            m.Request(1, m.Renew(bytes(7), bytes(32))),
            m.Request(1, m.Renew(bytes(9), bytes(32))),
            m.Request(1, m.Renew(bytes(8), bytes(31))),
            m.Request(1, m.Renew(bytes(8), bytes(33))),
            m.Reply(1, m.Renewed(bytes(31))),
            m.Reply(1, m.Renewed(bytes(33))),
            m.Reply(1, m.Neighbours(None, (A,) * 65, True)),
            m.Reply(1, m.Redirect(1, 1, (A,) * 17)),
            m.Request(1, m.Write(K, 0, long)),
            m.Request(1, m.Write(K, 0, m.Record(A, 1, 0, b"", b"", b""))),
            m.Request(1, m.Write(K, 0, m.Record(A, 1, 60, b"", bytes(2049), b""))),
            m.Request(1, m.Fetch(1, 1, bytes(21))),
            m.Reply(1, m.Page((CELL,) * 65, False)),
            m.Reply(1, m.Failed("x" * 41, "", "")),
        ):
            self.refused(message)

    def test_wrong_direction(self) -> None:
        """An answer is no question, and a question no answer."""
        self.refused(m.Request(1, m.Done()))  # type: ignore[arg-type]
        self.refused(m.Reply(1, m.Read(K)))  # type: ignore[arg-type]

    def test_nonsense(self) -> None:
        """Empty, unfinished, over-long, unknown, deep, and not UTF-8."""
        whole = m.encode(m.Request(1, m.Read(K)))
        damaged = (whole[:-1], whole + b"\0", b"\x91\x7f", b"\x91" * 5000, b"\xdd\xff\xff\xff\xff")
        for payload in (b"", *damaged, b"\x92\x03\xa2\xff\xff", b"\x92\x03\xa1\x80"):
            self.assertRaises(BadMessage, m.decode, payload)


class PropertyTests(TestCase):
    """For all bytes, and for all damage to good bytes."""

    @given(st.binary(max_size=300))
    @settings(max_examples=400)
    def test_any_bytes(self, payload: bytes) -> None:
        """Only `BadMessage`, and what decodes encodes to something that decodes alike."""
        self.decode_or_refuse(payload)

    @given(st.sampled_from(VECTORS), st.data())
    @settings(max_examples=400)
    def test_damaged(self, vector: tuple[m.Message, str], data: st.DataObject) -> None:
        """One byte is other than it was sent."""
        payload = bytearray(m.encode(vector[0]))
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
        self.decode_or_refuse(bytes(payload))

    @given(st.integers(0, 2**62), st.sampled_from([vector[0].body for vector in VECTORS if isinstance(vector[0], m.Request)]))
    def test_requests(self, number: int, body: m.Ask) -> None:
        """Any request number comes back."""
        self.assertEqual(m.decode(m.encode(m.Request(number, body))), m.Request(number, body))

    @given(
        st.binary(min_size=20, max_size=20),
        st.integers(0, 2**62),
        st.integers(1, 2**32 - 1),
        st.binary(max_size=m.MAX_VALUE),
        st.binary(max_size=128),
    )
    def test_records(self, owner: bytes, version: int, ttl: int, value: bytes, signature: bytes) -> None:
        """Any record within its bounds comes back."""
        message = m.Reply(1, m.Current(True, m.Record(owner, version, ttl, value, signature, signature)))
        self.assertEqual(m.decode(m.encode(message)), message)

    def decode_or_refuse(self, payload: bytes) -> None:
        """Decode; raise nothing else than `BadMessage`."""
        try:
            message = m.decode(payload)
        except BadMessage:
            return
        self.assertEqual(m.decode(m.encode(message)), message)
