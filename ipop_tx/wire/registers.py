"""Messages about registers: between clients and coordinators, and between replicas."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ipop_tx.wire.fields import MAX_VALUE, Body, Count, Ident, Key, Members, Nonce, Signatures, Signer, Small

# --- registers: between a client and the coordinator ----------------------------------------------


class Record(Body, frozen=True, tag=40):
    """What a register holds. An empty `value` is a tombstone: the register was deleted."""

    owner: Ident
    version: Count
    ttl: Annotated[int, Meta(ge=1, lt=2**32)]
    """Seconds from the moment a replica accepts it."""
    value: Annotated[bytes, Meta(max_length=MAX_VALUE)]
    signer: Signer
    signature: Small


class Ballot(Body, frozen=True, order=True, tag=50):
    """A proposal's number; the proposer's ident makes it unique."""

    round: Count
    proposer: Ident


NO_BALLOT = Ballot(0, b"\0" * 20)


class Voice(Body, frozen=True, tag=49):
    """What one replica says for a certificate: with the record it has, that old, at this time (Unix seconds), it is as stated there."""

    credential: Signer
    age_ms: Count
    time: Count
    signature: Small
    """Over a `Statement`."""


class Certificate(Body, frozen=True, tag=39):
    """What a majority of the view `number` of a shard had accepted last for a key, signed by each of them."""

    number: Count
    members: Members
    accepted: Ballot
    record: Record | None
    nonce: Nonce
    """By whoever asked for it."""
    voices: Annotated[tuple[Voice, ...], Meta(max_length=16)]


class Read(Body, frozen=True, tag=41):
    """The register's current record, please. Answered by `Current`; with a certificate if `nonce`, which it then shows, is not empty.

    `voices`: how many the certificate should have at least, if the view has as many members.
    """

    key: Key
    nonce: Nonce = b""
    voices: Annotated[int, Meta(ge=0, le=16)] = 0


class Write(Body, frozen=True, tag=42):
    """Replace version `expected` (0: the register must be empty or expired). Answered by `Current`, with the writer's record if it won."""

    key: Key
    expected: Count
    record: Record


class Current(Body, frozen=True, tag=43):
    """The register's record after the operation; `won` tells a writer whether it took effect."""

    won: bool
    record: Record | None
    last: Count = 0
    """The newest version that the register has had, also where that is deleted or expired: the next one must be greater."""
    certificate: Certificate | None = None
    """If it was asked for; the record then stands in there."""


class Redirect(Body, frozen=True, tag=44):
    """Not I: these members keep the shard (none when I do not know)."""

    shard: Count
    number: Count
    members: Members


class NoMajority(Body, frozen=True, tag=45):
    """Too few replicas answered."""

    reached: Count
    needed: Count
    replicas: Count


class WhoKeeps(Body, frozen=True, tag=46):
    """Which view of the shard do you know? Answered by `Redirect`."""

    shard: Count


class Peek(Body, frozen=True, tag=47):
    """What have you accepted for `key`? Binds nobody. Answered by `Promise` or `Stale`."""

    shard: Count
    number: Count
    key: Key


class Show(Body, frozen=True, tag=31):
    """What have you of the register `key`, be it your own or one that you keep? Answered by `Shown`."""

    key: Key


class Shown(Body, frozen=True, tag=32):
    """This record, which says nothing but whom to ask; its owner shows the certificate that it has of it instead."""

    record: Record | None
    certificate: Certificate | None = None


# --- registers: between replicas --------------------------------------------------------------------


class Floor(Body, frozen=True, tag=68):
    """What holds for all keys of a shard, with or without a cell: a promise, and for those without, that no version was above this one."""

    promised: Ballot
    version: Count


NO_FLOOR = Floor(NO_BALLOT, 0)


class Prepare(Body, frozen=True, tag=51):
    """Promise to refuse anything below `ballot`. Answered by `Promise`, `Refused` or `Stale`."""

    shard: Count
    number: Count
    key: Key
    ballot: Ballot
    owner: Annotated[bytes, Meta(max_length=20)] = b""
    """Whose record of how many bytes is to be written, for the quota; empty when nothing is to grow."""
    size: Count = 0


class Promise(Body, frozen=True, tag=52):
    """Promised; this is what I accepted last, and how many milliseconds ago."""

    accepted: Ballot
    record: Record | None
    age_ms: Count
    last: Count = 0
    """Where there is no record: the newest version that one may have had."""


class Vouch(Body, frozen=True, tag=48):
    """What have you accepted for `key`? Sign it. Answered by `Vouched` or `Stale`."""

    shard: Count
    number: Count
    key: Key
    nonce: Nonce


class Vouched(Body, frozen=True, tag=69):
    """This, with my voice."""

    accepted: Ballot
    record: Record | None
    voice: Voice


class Statement(Body, frozen=True, tag=79):
    """What a voice signs. Never sent."""

    network: Ident
    number: Count
    members: Members
    key: Key
    accepted: Ballot
    record: Record | None
    nonce: Nonce
    age_ms: Count
    time: Count


class Accept(Body, frozen=True, tag=53):
    """Accept `record` under `ballot`. Answered by `Done`, `Refused` or `Stale`."""

    shard: Count
    number: Count
    key: Key
    ballot: Ballot
    record: Record | None
    age_ms: Count
    """How old the record already is; not 0 when an earlier write is being completed."""


class Refused(Body, frozen=True, tag=54):
    """A higher ballot was promised."""

    promised: Ballot


class Stale(Body, frozen=True, tag=55):
    """The view named is not the one I am in; `closed` says that mine is about to change."""

    shard: Count
    number: Count
    members: Members
    closed: bool


class Seal(Body, frozen=True, tag=56):
    """Stop accepting in view `number`, and promise `ballot` for the decision on the next. Answered by `Sealed`, `Refused` or `Stale`."""

    shard: Count
    number: Count
    ballot: Ballot


class Sealed(Body, frozen=True, tag=57):
    """Sealed; a successor that I accepted earlier, under which ballot, and how many registers I hold."""

    accepted: Ballot
    successor: Members
    registers: Count


class Succeed(Body, frozen=True, tag=58):
    """Accept `members` as the view after `number`. Answered by `Done`, `Refused` or `Stale`."""

    shard: Count
    number: Count
    ballot: Ballot
    members: Members


class Fetch(Body, frozen=True, tag=59):
    """The registers of a sealed view whose keys come after `after`. Answered by `Page`, `Stale`."""

    shard: Count
    number: Count
    after: Annotated[bytes, Meta(max_length=20)]


class Cell(Body, frozen=True, tag=60):
    """All that a replica knows of one register."""

    key: Key
    promised: Ballot
    accepted: Ballot
    record: Record | None
    age_ms: Count


class Page(Body, frozen=True, tag=61):
    """Some cells in the order of their keys; `more` says that others follow."""

    cells: Annotated[tuple[Cell, ...], Meta(max_length=64)]
    more: bool
    floor: Floor = NO_FLOOR


class Install(Body, frozen=True, tag=62):
    """Part of the contents of view `number`; the last part (`final`) opens it. Answered by `Done` or `Stale`."""

    shard: Count
    number: Count
    members: Members
    cells: Annotated[tuple[Cell, ...], Meta(max_length=64)]
    part: Count
    final: bool
    attempt: Count
    """Tells the parts of one attempt from those of another."""
    floor: Floor = NO_FLOOR
    """The same in all parts."""


class Retire(Body, frozen=True, tag=63):
    """The view after `number` is open at a majority of `members`: whoever is not among them may forget the shard. Answered by `Done`."""

    shard: Count
    number: Count
    members: Members


class Forget(Body, frozen=True, tag=64):
    """All members have promised `ballot` for a register that is over: drop it. Answered by `Done`, `Refused` or `Stale`."""

    shard: Count
    number: Count
    key: Key
    ballot: Ballot


# --- views founded anew ------------------------------------------------------------------------------


class Order(Body, frozen=True, tag=65):
    """The authority founds the view `number` of some shards anew, with `members`: older views of them are over. Answered by `Done`."""

    network: Ident
    number: Count
    members: Members
    shards: Annotated[tuple[Count, ...], Meta(max_length=4096)]
    nonce: Annotated[bytes, Meta(min_length=16, max_length=16)]
    time: Count
    """Seconds since the Unix epoch at which it was given."""
    signature: Signatures = b""
    """By the authority, over all the rest."""


class Salvage(Body, frozen=True, tag=66):
    """What is left of a shard, as the order with this number wants it; keys after `after`. Answered by `Salvaged` or `Stale`."""

    shard: Count
    number: Count
    after: Annotated[bytes, Meta(max_length=20)]


class Salvaged(Body, frozen=True, tag=67):
    """Part of a copy of view `number` (0: there is none here), which accepts nothing any more; otherwise as `Page`."""

    number: Count
    cells: Annotated[tuple[Cell, ...], Meta(max_length=64)]
    more: bool
    floor: Floor
