"""Control messages (payload of sealed kind 1): MessagePack arrays whose first element is the message's number.

Every request has one reply, named beside it. Unknown numbers, missing fields and wrong types do not decode; added trailing
fields are ignored, so that later versions can extend a message.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ipop_tx.errors import BadMessage
from ipop_tx.wire.addresses import HandOver as HandOver, NotMine as NotMine, NotYours as NotYours
from ipop_tx.wire.fields import (
    MAX_PADDING as MAX_PADDING,
    MAX_VALUE as MAX_VALUE,
    Body,
    Count,
    Endpoints,
    EndpointText,
    Ident,
    Key,
    NatKind,
    Neighbourhood,
    Ports,
    PublicKey,
)
from ipop_tx.wire.flows import AskFlows as AskFlows, FlowsTold as FlowsTold
from ipop_tx.wire.registers import (
    NO_BALLOT as NO_BALLOT,
    NO_FLOOR as NO_FLOOR,
    Accept as Accept,
    Ballot as Ballot,
    Cell as Cell,
    Certificate as Certificate,
    Current as Current,
    Fetch as Fetch,
    Floor as Floor,
    Forget as Forget,
    Install as Install,
    NoMajority as NoMajority,
    Order as Order,
    Page as Page,
    Peek as Peek,
    Prepare as Prepare,
    Promise as Promise,
    Read as Read,
    Record as Record,
    Redirect as Redirect,
    Refused as Refused,
    Retire as Retire,
    Salvage as Salvage,
    Salvaged as Salvaged,
    Seal as Seal,
    Sealed as Sealed,
    Show as Show,
    Shown as Shown,
    Stale as Stale,
    Statement as Statement,
    Succeed as Succeed,
    Voice as Voice,
    Vouch as Vouch,
    Vouched as Vouched,
    WhoKeeps as WhoKeeps,
    Write as Write,
)
from ipop_tx.wire.relation import Reach as Reach, Reached as Reached, Relate as Relate, Relation as Relation
from ipop_tx.wire.settings import Newest as Newest, Settings as Settings
from ipop_tx.wire.trust import (
    PAGE as PAGE,
    Charter as Charter,
    Charters as Charters,
    Enrol as Enrol,
    Enrolled as Enrolled,
    Readmit as Readmit,
    Readmitted as Readmitted,
    Revocation as Revocation,
    Revoked as Revoked,
    WhichCharters as WhichCharters,
    WhichRevoked as WhichRevoked,
)

ADMITS = 1
"""Flag of `Hello`: this member admits others."""
APPOINTS = 2
"""Flag of `Hello`: this member holds the authority's key."""
PLACED = 4
"""Flag of `Hello`: this member has neighbours on both sides, so it can pass things on around the ring."""


# --- paths ---------------------------------------------------------------------------------------


class PathChallenge(Body, frozen=True, tag=1):
    """Prove that you receive at the address this was sent to. Answered on the path it came by.

    The padding makes a datagram of a certain length, to learn whether the path carries it; the answer stays small.
    """

    token: Count
    padding: Annotated[bytes, Meta(max_length=MAX_PADDING)] = b""


class PathResponse(Body, frozen=True, tag=2):
    """The answer, with the endpoint that the challenge came from ("" when it was relayed)."""

    token: Count
    observed: EndpointText


class Close(Body, frozen=True, tag=3):
    """This link ends; the reason is for the log."""

    reason: Annotated[str, Meta(max_length=200)]


class Fragment(Body, frozen=True, tag=4):
    """Part `index` of `count` of a control message too long for one datagram."""

    group: Count
    index: Annotated[int, Meta(ge=0, lt=64)]
    count: Annotated[int, Meta(ge=1, le=64)]
    part: bytes


class Opened(Body, frozen=True, tag=7):
    """What the sender has opened of the receiver's records of a session: the one whose datagrams carry `index`.

    `highest` is the greatest counter, `opened` the number of records, `failed` that of records in several pieces which did not open, on
    any session.
    """

    index: Count
    highest: Count
    opened: Count
    failed: Count


# --- links ---------------------------------------------------------------------------------------


class Hello(Body, frozen=True, tag=10):
    """First request on a link, and its own reply: flags, the endpoints to try, the overlay address held (4 bytes or empty).

    `mapping` and `filtering` are what the sender knows of its NAT (`core.natkind.Kind`), `step` by how much its ports grow, if they do;
    `brittle` says that nothing must come in before it has sent; `outer` is where most members see it.
    """

    flags: Count
    candidates: Endpoints
    address: Annotated[bytes, Meta(max_length=4)]
    mapping: NatKind = 0
    filtering: NatKind = 0
    step: NatKind = 0
    brittle: bool = False
    outer: EndpointText = ""
    revocations: Annotated[bytes, Meta(max_length=8)] = b""
    """A digest of all revocations that the sender knows of; empty for none. `charter` is the number of the newest that it knows."""
    charter: Count = 0


class Offer(Body, frozen=True, tag=11):
    """Endpoints to try for a direct path, now. Its own reply. The other fields as in `Hello`."""

    candidates: Endpoints
    mapping: NatKind = 0
    filtering: NatKind = 0
    step: NatKind = 0
    brittle: bool = False
    outer: EndpointText = ""


class Renew(Body, frozen=True, tag=12):
    """Make a new session of the one with the tag `parent`, from my key and yours (X25519). Answered by `Renewed`."""

    parent: Annotated[bytes, Meta(min_length=8, max_length=8)]
    public: PublicKey


class Renewed(Body, frozen=True, tag=13):
    """My key: the new session opens from now on."""

    public: PublicKey


# --- what a NAT does ------------------------------------------------------------------------------


class Probe(Body, frozen=True, tag=80):
    """At which endpoint do you see me? Answered by `Probed` on the way it came by, if the sender is known to be at that address."""

    nonce: Count


class Probed(Body, frozen=True, tag=81):
    """There. Or what a `Knock` has asked for; the nonce tells."""

    nonce: Count
    observed: EndpointText


class Assist(Body, frozen=True, tag=82):
    """Open a second port for a minute. Answered by `Assisting`."""


class Assisting(Body, frozen=True, tag=83):
    """It is this one; 0 when there is none to be had."""

    port: Annotated[int, Meta(ge=0, le=65535)]


class Knock(Body, frozen=True, tag=84):
    """Send me one `Probed` with this nonce, to an endpoint of mine; from your second port, if `second`. Answered by `Done`.

    Only an address at which the asker has answered the other's own challenge will do, whatever the port.
    """

    nonce: Count
    endpoint: EndpointText
    second: bool


class Search(Body, frozen=True, tag=85):
    """Challenge ports of my NAT, by which I have sent to you: these, or any if there are none. Answered by `Searching`.

    If the two meet, these are the ports of one socket that will send to you.

    `outer` is the NAT's address (with whatever port); each of the `witnesses` has a direct path to me and sees me there.
    """

    outer: EndpointText
    ports: Ports
    witnesses: Annotated[tuple[Ident, ...], Meta(max_length=4)]


class Searching(Body, frozen=True, tag=86):
    """It is done now. If the two meet, from these ports at `outer`: send to them, the first to the first."""

    outer: EndpointText = ""
    ports: Ports = ()


class WhereIs(Body, frozen=True, tag=87):
    """At which endpoint does this member answer you? Answered by `Sighted`."""

    ident: Ident


class Whence(Body, frozen=True, tag=89):
    """From which endpoint will you challenge ports of my NAT? I am about to open them for it. Answered by `Searching`."""


class Sighted(Body, frozen=True, tag=88):
    """There, by UDP; "" if there is no direct path."""

    endpoint: EndpointText


# --- ring ----------------------------------------------------------------------------------------


class GetNeighbours(Body, frozen=True, tag=20):
    """Ask for `Neighbours`."""


class Notify(Body, frozen=True, tag=21):
    """I believe that I am your predecessor (Chord's rectify). Answered by `Neighbours`; by `Done` if those are of version `known`."""

    known: Count = 0


class Neighbours(Body, frozen=True, tag=22):
    """A node's view of its surroundings; `joined` is false while it has no place on the ring."""

    predecessor: Ident | None
    successors: Neighbourhood
    joined: bool
    version: Count = 0
    """Another one after every change; 0 is none."""


class Lookup(Body, frozen=True, tag=23):
    """Who owns `key`? Passed on from node to node; answered by `Found` along the way back."""

    key: Key
    ttl: Annotated[int, Meta(ge=0, le=64)]
    exclude: Ident | None = None
    """A node that is looking for its own place and so must not be named as owner."""


class Found(Body, frozen=True, tag=24):
    """The owner of a key, the nodes after it, and how many hops the question took."""

    owner: Ident
    successors: Neighbourhood
    hops: Count
    agent: Ident | None = None
    """The node that passed the question to the owner, so has a link to it."""


class Closest(Body, frozen=True, tag=28):
    """Which nodes lie nearest to `key`, whatever they think of the ring? Passed on greedily; answered by `Found`.

    The asker's neighbours are left out, since they would only lead back to it.
    """

    key: Key
    ttl: Annotated[int, Meta(ge=0, le=64)]
    exclude: Neighbourhood


class Leaving(Body, frozen=True, tag=25):
    """I leave the ring: these are my neighbours. Answered by `Done`."""

    predecessor: Ident | None
    successors: Neighbourhood


class Done(Body, frozen=True, tag=26):
    """Understood."""


class Suggest(Body, frozen=True, tag=27):
    """There is a node that may be nearer to you than the one you have. Answered by `Done`."""

    ident: Ident


class Links(Body, frozen=True, tag=33):
    """The members on the ring that I have links to, in ascending order, and the round trip to each (`core.routing`). Answered by `Done`."""

    idents: Neighbourhood
    delays: Annotated[bytes, Meta(max_length=64)]


class Broadcast(Body, frozen=True, tag=29):
    """Take this, and pass it on to everybody between you and `limit`, both left out. Answered by `Done`, at once."""

    limit: Ident
    payload: Annotated[bytes, Meta(max_length=MAX_VALUE)]


class Seek(Body, frozen=True, tag=30):
    """Who owns `key`? As `Lookup`, but passed on, as far as that goes, to members of one colour of `routes`; answered by `Found`."""

    key: Key
    ttl: Annotated[int, Meta(ge=0, le=64)]
    routes: Annotated[int, Meta(ge=2, le=16)]
    colour: Annotated[int, Meta(ge=0, le=15)]


class Unneeded(Body, frozen=True, tag=34):
    """I do not need this link. Answered by `Done` if you do not need it either, so that I may end it; else by `Needed`."""


class Needed(Body, frozen=True, tag=35):
    """I need this link."""


# --- answers to anything --------------------------------------------------------------------------


class Failed(Body, frozen=True, tag=72):
    """The request cannot be met; a sentence and its mend, for people. `code` is the name of an error class."""

    code: Annotated[str, Meta(max_length=40)]
    sentence: Annotated[str, Meta(max_length=300)]
    mend: Annotated[str, Meta(max_length=300)]


class Working(Body, frozen=True, tag=73):
    """The request was received and is being worked on; sent in reply to its repetition."""


Ask = (
    Hello
    | Offer
    | Renew
    | Assist
    | Knock
    | Search
    | Whence
    | WhereIs
    | GetNeighbours
    | Notify
    | Lookup
    | Closest
    | Leaving
    | Suggest
    | Links
    | Broadcast
    | Seek
    | Unneeded
    | HandOver
    | NotYours
    | NotMine
    | Read
    | Write
    | Show
    | WhoKeeps
    | Peek
    | Vouch
    | Prepare
    | Accept
    | Seal
    | Succeed
    | Fetch
    | Install
    | Retire
    | Forget
    | Order
    | Revoked
    | WhichRevoked
    | Charters
    | WhichCharters
    | Salvage
    | Enrol
    | Readmit
    | Newest
    | Relate
    | Reach
    | AskFlows
)
Answer = (
    Hello
    | Offer
    | Renewed
    | Assisting
    | Searching
    | Sighted
    | Neighbours
    | Found
    | Done
    | Needed
    | Current
    | Redirect
    | NoMajority
    | Shown
    | Promise
    | Vouched
    | Refused
    | Stale
    | Sealed
    | Page
    | Salvaged
    | Revoked
    | Charters
    | Enrolled
    | Readmitted
    | Failed
    | Working
    | Newest
    | Settings
    | Relation
    | Reached
    | FlowsTold
)


class Request(Body, frozen=True, tag=5):
    """A question; `id` is unique among the sender's unanswered ones on this link."""

    id: Count
    body: Ask


class Reply(Body, frozen=True, tag=6):
    """The answer to the question with the same `id`."""

    id: Count
    body: Answer


Message = PathChallenge | PathResponse | Close | Fragment | Opened | Probe | Probed | Request | Reply

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Body) -> bytes:
    """The message's bytes."""
    return _encoder.encode(message)


def decode(payload: bytes) -> Message:
    """Read one control message. Raises `BadMessage`."""
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"a control message does not parse ({error})") from None
