"""Control messages (payload of sealed kind 1): MessagePack arrays whose first element is the message's number.

Every request has one reply, named beside it. Unknown numbers, missing fields and wrong types do not decode; added trailing
fields are ignored, so that later versions can extend a message.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from ipop_tx.errors import BadMessage

Ident = Annotated[bytes, Meta(min_length=20, max_length=20)]
Key = Annotated[bytes, Meta(min_length=20, max_length=20)]
Small = Annotated[bytes, Meta(max_length=128)]
Name = Annotated[str, Meta(max_length=63)]
EndpointText = Annotated[str, Meta(max_length=100)]
Count = Annotated[int, Meta(ge=0, le=2**62)]
Members = Annotated[tuple[Ident, ...], Meta(max_length=16)]
Neighbourhood = Annotated[tuple[Ident, ...], Meta(max_length=64)]
Endpoints = Annotated[tuple[EndpointText, ...], Meta(max_length=16)]

MAX_VALUE = 1024
"""Largest value of a register, in bytes."""

MAX_PADDING = 9000
"""Most bytes of padding in a path challenge; as much as the largest usual Ethernet frame holds."""

ADMITS = 1
"""Flag of `Hello`: this member admits others."""
APPOINTS = 2
"""Flag of `Hello`: this member holds the authority's key."""

PLACED = 4
"""Flag of `Hello`: this member has neighbours on both sides, so it can pass things on around the ring."""


class _Message(Struct, frozen=True, array_like=True):
    pass


# --- paths ---------------------------------------------------------------------------------------


class PathChallenge(_Message, frozen=True, tag=1):
    """Prove that you receive at the address this was sent to. Answered on the path it came by.

    The padding makes a datagram of a certain length, to learn whether the path carries it; the answer stays small.
    """

    token: Count
    padding: Annotated[bytes, Meta(max_length=MAX_PADDING)] = b""


class PathResponse(_Message, frozen=True, tag=2):
    """The answer, with the endpoint that the challenge came from ("" when it was relayed)."""

    token: Count
    observed: EndpointText


class Close(_Message, frozen=True, tag=3):
    """This link ends; the reason is for the log."""

    reason: Annotated[str, Meta(max_length=200)]


class Fragment(_Message, frozen=True, tag=4):
    """Part `index` of `count` of a control message too long for one datagram."""

    group: Count
    index: Annotated[int, Meta(ge=0, lt=64)]
    count: Annotated[int, Meta(ge=1, le=64)]
    part: bytes


class Opened(_Message, frozen=True, tag=7):
    """What the sender has opened of the receiver's records of a session: the one whose datagrams carry `index`.

    `highest` is the greatest counter, `opened` the number of records, `failed` that of records in several pieces which did not open, on
    any session.
    """

    index: Count
    highest: Count
    opened: Count
    failed: Count


# --- links ---------------------------------------------------------------------------------------


class Hello(_Message, frozen=True, tag=10):
    """First request on a link, and its own reply: flags, the endpoints to try, the overlay address held (4 bytes or empty)."""

    flags: Count
    candidates: Endpoints
    address: Annotated[bytes, Meta(max_length=4)]


class Offer(_Message, frozen=True, tag=11):
    """Endpoints to try for a direct path, now. Its own reply."""

    candidates: Endpoints


# --- ring ----------------------------------------------------------------------------------------


class GetNeighbours(_Message, frozen=True, tag=20):
    """Ask for `Neighbours`."""


class Notify(_Message, frozen=True, tag=21):
    """I believe that I am your predecessor (Chord's rectify). Answered by `Neighbours`."""


class Neighbours(_Message, frozen=True, tag=22):
    """A node's view of its surroundings; `joined` is false while it has no place on the ring."""

    predecessor: Ident | None
    successors: Neighbourhood
    joined: bool


class Lookup(_Message, frozen=True, tag=23):
    """Who owns `key`? Passed on from node to node; answered by `Found` along the way back."""

    key: Key
    ttl: Annotated[int, Meta(ge=0, le=64)]
    exclude: Ident | None = None
    """A node that is looking for its own place and so must not be named as owner."""


class Found(_Message, frozen=True, tag=24):
    """The owner of a key, the nodes after it, and how many hops the question took."""

    owner: Ident
    successors: Neighbourhood
    hops: Count
    agent: Ident | None = None
    """The node that passed the question to the owner, so has a link to it."""


class Closest(_Message, frozen=True, tag=28):
    """Which nodes lie nearest to `key`, whatever they think of the ring? Passed on greedily; answered by `Found`.

    The asker's neighbours are left out, since they would only lead back to it.
    """

    key: Key
    ttl: Annotated[int, Meta(ge=0, le=64)]
    exclude: Neighbourhood


class Leaving(_Message, frozen=True, tag=25):
    """I leave the ring: these are my neighbours. Answered by `Done`."""

    predecessor: Ident | None
    successors: Neighbourhood


class Done(_Message, frozen=True, tag=26):
    """Understood."""


class Suggest(_Message, frozen=True, tag=27):
    """There is a node that may be nearer to you than the one you have. Answered by `Done`."""

    ident: Ident


class Unneeded(_Message, frozen=True, tag=29):
    """I do not need this link. Answered by `Done` if you do not need it either, so that I may end it; else by `Needed`."""


class Needed(_Message, frozen=True, tag=30):
    """I need this link."""


# --- registers: between a client and the coordinator ----------------------------------------------


class Record(_Message, frozen=True, tag=40):
    """What a register holds. An empty `value` is a tombstone: the register was deleted."""

    owner: Ident
    version: Count
    ttl: Annotated[int, Meta(ge=1, lt=2**32)]
    """Seconds from the moment a replica accepts it."""
    value: Annotated[bytes, Meta(max_length=MAX_VALUE)]
    signer: Small
    signature: Small


class Read(_Message, frozen=True, tag=41):
    """The register's current record, please. Answered by `Current`."""

    key: Key


class Write(_Message, frozen=True, tag=42):
    """Replace version `expected` (0: the register must be empty or expired). Answered by `Current`, with the writer's record if it won."""

    key: Key
    expected: Count
    record: Record


class Current(_Message, frozen=True, tag=43):
    """The register's record after the operation; `won` tells a writer whether it took effect."""

    won: bool
    record: Record | None
    last: Count = 0
    """The newest version that the register has had, also where that is deleted or expired: the next one must be greater."""


class Redirect(_Message, frozen=True, tag=44):
    """Not I: these members keep the shard (none when I do not know)."""

    shard: Count
    number: Count
    members: Members


class NoMajority(_Message, frozen=True, tag=45):
    """Too few replicas answered."""

    reached: Count
    needed: Count
    replicas: Count


class WhoKeeps(_Message, frozen=True, tag=46):
    """Which view of the shard do you know? Answered by `Redirect`."""

    shard: Count


class Peek(_Message, frozen=True, tag=47):
    """What have you accepted for `key`? Binds nobody. Answered by `Promise` or `Stale`."""

    shard: Count
    number: Count
    key: Key


# --- registers: between replicas --------------------------------------------------------------------


class Ballot(_Message, frozen=True, order=True, tag=50):
    """A proposal's number; the proposer's ident makes it unique."""

    round: Count
    proposer: Ident


NO_BALLOT = Ballot(0, b"\0" * 20)


class Prepare(_Message, frozen=True, tag=51):
    """Promise to refuse anything below `ballot`. Answered by `Promise`, `Refused` or `Stale`."""

    shard: Count
    number: Count
    key: Key
    ballot: Ballot


class Promise(_Message, frozen=True, tag=52):
    """Promised; this is what I accepted last, and how many milliseconds ago."""

    accepted: Ballot
    record: Record | None
    age_ms: Count


class Accept(_Message, frozen=True, tag=53):
    """Accept `record` under `ballot`. Answered by `Done`, `Refused` or `Stale`."""

    shard: Count
    number: Count
    key: Key
    ballot: Ballot
    record: Record | None
    age_ms: Count
    """How old the record already is; not 0 when an earlier write is being completed."""


class Refused(_Message, frozen=True, tag=54):
    """A higher ballot was promised."""

    promised: Ballot


class Stale(_Message, frozen=True, tag=55):
    """The view named is not the one I am in; `closed` says that mine is about to change."""

    shard: Count
    number: Count
    members: Members
    closed: bool


class Seal(_Message, frozen=True, tag=56):
    """Stop accepting in view `number`, and promise `ballot` for the decision on the next. Answered by `Sealed`, `Refused` or `Stale`."""

    shard: Count
    number: Count
    ballot: Ballot


class Sealed(_Message, frozen=True, tag=57):
    """Sealed; a successor that I accepted earlier, under which ballot, and how many registers I hold."""

    accepted: Ballot
    successor: Members
    registers: Count


class Succeed(_Message, frozen=True, tag=58):
    """Accept `members` as the view after `number`. Answered by `Done`, `Refused` or `Stale`."""

    shard: Count
    number: Count
    ballot: Ballot
    members: Members


class Fetch(_Message, frozen=True, tag=59):
    """The registers of a sealed view whose keys come after `after`. Answered by `Page`, `Stale`."""

    shard: Count
    number: Count
    after: Annotated[bytes, Meta(max_length=20)]


class Cell(_Message, frozen=True, tag=60):
    """All that a replica knows of one register."""

    key: Key
    promised: Ballot
    accepted: Ballot
    record: Record | None
    age_ms: Count


class Page(_Message, frozen=True, tag=61):
    """Some cells in the order of their keys; `more` says that others follow."""

    cells: Annotated[tuple[Cell, ...], Meta(max_length=64)]
    more: bool


class Install(_Message, frozen=True, tag=62):
    """Part of the contents of view `number`; the last part (`final`) opens it. Answered by `Done` or `Stale`."""

    shard: Count
    number: Count
    members: Members
    cells: Annotated[tuple[Cell, ...], Meta(max_length=64)]
    part: Count
    final: bool
    attempt: Count
    """Tells the parts of one attempt from those of another."""


class Retire(_Message, frozen=True, tag=63):
    """The view after `number` is open at a majority of `members`: whoever is not among them may forget the shard. Answered by `Done`."""

    shard: Count
    number: Count
    members: Members


# --- admission ------------------------------------------------------------------------------------


class Enrol(_Message, frozen=True, tag=70):
    """A guest's request: certificate requests (DER) for its node key and, if it is appointed, its admission key.

    Signed by the invitation's key. Answered by `Enrolled`.
    """

    invitation: Small
    csr: Annotated[bytes, Meta(max_length=2048)]
    admission_csr: Annotated[bytes, Meta(max_length=2048)]
    signature: Small
    name: Name
    guest: Ident
    """Hash of the invitation's key, as the receiving member saw it proven in the handshake."""


class Enrolled(_Message, frozen=True, tag=71):
    """The certificates (DER; member's chain, then the admission certificate if appointed) and endpoints of members."""

    certificates: Annotated[tuple[bytes, ...], Meta(max_length=8)]
    endpoints: Endpoints


class Failed(_Message, frozen=True, tag=72):
    """The request cannot be met; a sentence and its mend, for people. `code` is the name of an error class."""

    code: Annotated[str, Meta(max_length=40)]
    sentence: Annotated[str, Meta(max_length=300)]
    mend: Annotated[str, Meta(max_length=300)]


class Working(_Message, frozen=True, tag=73):
    """The request was received and is being worked on; sent in reply to its repetition."""


Ask = (
    Hello
    | Offer
    | GetNeighbours
    | Notify
    | Lookup
    | Closest
    | Leaving
    | Suggest
    | Unneeded
    | Read
    | Write
    | WhoKeeps
    | Peek
    | Prepare
    | Accept
    | Seal
    | Succeed
    | Fetch
    | Install
    | Retire
    | Enrol
)
Answer = (
    Hello
    | Offer
    | Neighbours
    | Found
    | Done
    | Needed
    | Current
    | Redirect
    | NoMajority
    | Promise
    | Refused
    | Stale
    | Sealed
    | Page
    | Enrolled
    | Failed
    | Working
)


class Request(_Message, frozen=True, tag=5):
    """A question; `id` is unique among the sender's unanswered ones on this link."""

    id: Count
    body: Ask


class Reply(_Message, frozen=True, tag=6):
    """The answer to the question with the same `id`."""

    id: Count
    body: Answer


Message = PathChallenge | PathResponse | Close | Fragment | Opened | Request | Reply

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Struct) -> bytes:
    """The message's bytes."""
    return _encoder.encode(message)


def decode(payload: bytes) -> Message:
    """Read one control message. Raises `BadMessage`."""
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"a control message does not parse ({error})") from None
