"""Registers as a client sees them, wherever they are kept; and the door at which clients of other nodes knock.

A client asks a member of the register's shard to run the operation: itself if it is one, else a member that it remembers, else the ring's
owner of the shard, who knows or can ask around. A write is signed once and repeated as it is, so repeating it through another
coordinator after a lost answer cannot apply it twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from ipop_tx.core.dht.certificates import Certificates
from ipop_tx.core.dht.coordinator import Change, Coordinator, majority
from ipop_tx.core.dht.records import RegisterSigner
from ipop_tx.core.dht.replica import Replicas
from ipop_tx.core.ident import shard_of
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.linktable import LinkTable
from ipop_tx.core.links.rpc import Rpc, unexpected
from ipop_tx.core.ring.lookup import Lookups
from ipop_tx.core.ring.ring import Ring
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future, first, spawn
from ipop_tx.errors import BadMessage, Conflict, IpopError, LocalMisuse, QuotaExceeded, Unavailable, Unreachable
from ipop_tx.values import Ident, short
from ipop_tx.wire import messages as m

PATIENCE = 20.0
"""Seconds until an operation is given up."""
OPERATION_DEADLINE = 8.0
"""Seconds that one coordinator is given."""
HEDGE = 0.7
"""Seconds after which another coordinator is asked too. Harmless, since an operation repeated is one operation."""


class Dht:
    """`get`, `create`, `compare_and_set`, `delete`."""

    def __init__(
        self,
        replicas: Replicas,
        coordinator: Coordinator,
        ring: Ring,
        lookups: Lookups,
        links: LinkTable,
        rpc: Rpc,
        runtime: Runtime,
        signer: RegisterSigner,
        certificates: Certificates,
    ) -> None:
        self._replicas = replicas
        self._coordinator = coordinator
        self._ring = ring
        self._lookups = lookups
        self._links = links
        self._rpc = rpc
        self._runtime = runtime
        self.signer = signer
        self.certificates = certificates
        self._ident = replicas.ident
        rpc.serve(m.Read, self._serve_read)
        rpc.serve(m.Write, self._serve_write)
        rpc.serve(m.WhoKeeps, self._serve_who_keeps)

    # --- client ------------------------------------------------------------------------------

    async def get(self, key: bytes) -> m.Record | None:
        """The live record. Raises `Unavailable` or `Unreachable`."""
        record = (await self._operate(key, m.Read(key))).record
        if record is not None and not self.signer.authentic(key, record):
            raise BadMessage("a member answered with a record that its owner has not signed", "try again")
        return None if record is not None and self.signer.is_void(record) else record

    async def certified(self, key: bytes) -> m.Certificate:
        """What the register holds, signed by a majority of its replicas just now: no coordinator need be believed.

        Raises `Unavailable`, `Unreachable`; `BadMessage` when all that was shown was no good.
        """
        nonce = self._runtime.rng.getrandbits(128).to_bytes(16, "big")
        certificate = (await self._operate(key, m.Read(key, nonce, self.certificates.needed()))).certificate
        assert certificate is not None  # else it would not have been taken
        return certificate

    async def create(self, key: bytes, value: bytes, ttl: float) -> m.Record:
        """Fill an empty register. Raises `Conflict`, with what is there in its sentence, or `QuotaExceeded`.

        The version goes on from the one that was deleted or has expired, so an old write that is still under way cannot revive it.
        """
        last = 0
        while True:
            record = self.signer.record(key, last + 1, ttl, _checked(value))
            current = await self._operate(key, m.Write(key, 0, record))
            taken = current.record is not None and not self.signer.is_void(current.record)
            if current.won or taken or current.last <= last:
                return _written(record, current)
            last = current.last

    async def compare_and_set(self, key: bytes, version: int, value: bytes, ttl: float) -> m.Record:
        """Replace our version `version`, or that of somebody whom the authority's assignment overrides.

        Raises `Conflict`, `QuotaExceeded`.
        """
        return await self._write(key, version, self.signer.record(key, version + 1, ttl, _checked(value)))

    async def delete(self, key: bytes, version: int) -> None:
        """Empty our register. Raises `Conflict`."""
        await self._write(key, version, self.signer.record(key, version + 1, 3600, b""))

    async def _write(self, key: bytes, expected: int, record: m.Record) -> m.Record:
        return _written(record, await self._operate(key, m.Write(key, expected, record)))

    async def _operate(self, key: bytes, body: m.Read | m.Write) -> m.Current:
        """Ask until there is an answer or patience ends, which it does also while somebody is still being waited for."""
        problems: list[IpopError] = [self._why_not()]
        asking = spawn(self._ask_until(self._runtime.now + PATIENCE, key, body, problems))
        await self._runtime.wait([asking], PATIENCE)
        if asking.done:
            return asking.result()
        raise problems[-1]

    def _why_not(self) -> Unreachable:
        if self._ring.joined:
            return Unreachable("nobody on the ring answers for this part of the DHT", "wait for the nodes that keep it")
        return Unreachable("the node is not on the ring yet", "wait until it has joined")

    async def _ask_until(self, deadline: float, key: bytes, body: m.Read | m.Write, problems: list[IpopError]) -> m.Current:
        """The most telling problem so far stands last in `problems`: numbers before sentences, many replicas before few."""
        pause = 0.1
        coordinators: set[Ident] = set()
        while self._runtime.now < deadline:
            try:
                async for answer in self._answers(key, body, coordinators, deadline):
                    if isinstance(answer, m.Current) and (len(coordinators) == 1 or _is_final(body, answer)):
                        if (reason := self._why_unproven(body, answer)) is None:
                            return answer
                        problems.append(reason)
                    if isinstance(answer, QuotaExceeded) and not coordinators:
                        raise answer
                    if isinstance(answer, m.NoMajority) and not (
                        isinstance(problems[-1], Unavailable) and problems[-1].reached > answer.reached
                    ):
                        problems.append(Unavailable(answer.reached, answer.needed, answer.replicas))
            except QuotaExceeded:
                raise
            except IpopError as problem:
                if not isinstance(problems[-1], Unavailable):
                    problems.append(problem)
            await self._runtime.sleep(self._runtime.spread(pause))
            pause = min(1.0, pause * 1.5)
        raise problems[-1]

    def _why_unproven(self, body: m.Read | m.Write, current: m.Current) -> BadMessage | None:
        """What is wrong with the certificate that was to come with an answer; None if nothing is."""
        if isinstance(body, m.Write) or not body.nonce:
            return None
        try:
            if current.certificate is None or current.certificate.nonce != body.nonce:
                raise BadMessage("a member has certified nothing, or something else")
            self.certificates.check(body.key, current.certificate)
        except BadMessage as reason:
            self._runtime.count("certificate_refused")
            return reason
        return None

    async def _answers(
        self, key: bytes, body: m.Read | m.Write, coordinators: set[Ident], deadline: float
    ) -> AsyncIterator[m.Answer | QuotaExceeded]:
        """The answers of one coordinator after the other; all that may have begun to carry the operation out are noted."""
        if self._coordinator.shard(key) is not None:
            yield await self._run_here(key, body, coordinators)
        index = shard_of(key, self._replicas.count)
        closed = self._closed_here(index)
        view = self._replicas.newest(index).members
        to_ask = await self._first_to_ask(index, closed)
        asked: set[Ident] = {self._ident}
        waiting: list[Future[m.Answer]] = []
        while (to_ask or waiting) and self._runtime.now < deadline:
            member = self._readiest(to_ask, asked)
            if member is not None:
                asked.add(member)
                waiting.append(self._rpc.call(member, body, OPERATION_DEADLINE))
                waiting[-1].then(lambda done, member=member: _note_closed(member, done, closed))  # type: ignore[misc]
                fresh = member not in coordinators
                coordinators.add(member)
                waiting[-1].then(lambda done, member=member, fresh=fresh: _note_unbegun(member, done, coordinators, fresh))  # type: ignore[misc]
            if not waiting:  # nobody is left but ourselves
                break
            await (self._runtime.wait(waiting, HEDGE) if to_ask else first(waiting))
            for done in [future for future in waiting if future.done]:
                waiting.remove(done)
                if isinstance(done.error, QuotaExceeded):
                    yield done.error
                if done.error is not None:
                    continue
                answer = done.result()
                if isinstance(answer, m.Redirect):
                    self._replicas.learn(index, answer.number, answer.members)
                    view = answer.members or view
                    to_ask.extend(ident for ident in view if ident not in asked)
                else:
                    yield answer
        if reached := closed & set(view):
            yield m.NoMajority(len(reached), majority(view), len(view))
        self._replicas.known.pop(index, None)

    async def _run_here(self, key: bytes, body: m.Read | m.Write, coordinators: set[Ident]) -> m.Answer | QuotaExceeded:
        """Coordinate ourselves."""
        fresh = self._ident not in coordinators
        coordinators.add(self._ident)
        try:
            return await self._run(key, body)
        except QuotaExceeded as refusal:
            if fresh:
                coordinators.discard(self._ident)
            return refusal

    def _readiest(self, to_ask: list[Ident], asked: set[Ident]) -> Ident | None:
        """Take the next member to ask: one with a link before one without, in the order given."""
        fresh = [ident for ident in dict.fromkeys(to_ask) if ident not in asked]
        best = min(fresh, key=lambda ident: ident not in self._links.by_ident, default=None)
        to_ask[:] = [ident for ident in fresh if ident != best]
        return best

    def _closed_here(self, index: int) -> set[Ident]:
        """Ourselves, if we keep the shard in the newest view that we know of: we may not coordinate on it just now, but we are there."""
        shard = self._replicas.shards.get(index)
        return {self._ident} if shard is not None and not self._replicas.superseded(shard) else set()

    async def _first_to_ask(self, index: int, closed: set[Ident]) -> list[Ident]:
        """The members of a view that we have heard of, those of our own that are linked; else whoever the ring names."""
        known, shard = self._replicas.known.get(index), self._replicas.shards.get(index)
        members = known.members if known else [member for member in shard.members if member in self._links.by_ident] if shard else ()
        if members:
            return list(members)
        try:
            return await self._who_may_keep(index)
        except IpopError:
            if not closed:
                raise
            return []

    async def _who_may_keep(self, index: int) -> list[Ident]:
        """The ring's owner of a shard's beginning; if that is ourselves and we keep nothing, whoever our neighbours name."""
        owner = (await self._lookups.find(self._replicas.start_of(index))).owner
        if owner != self._ident:
            return [owner]
        await self._ask_around(index)
        known = self._replicas.known.get(index)
        return list(known.members) if known else []

    async def keepers(self, key: bytes) -> list[Ident]:
        """Who may have a copy of a register, as far as anybody says. Raises `Unreachable`."""
        index = shard_of(key, self._replicas.count)
        if not self._replicas.newest(index).members:
            for ident in (found := await self._who_may_keep(index)):
                answer = await self._rpc.call(ident, m.WhoKeeps(index), 2.0)
                if isinstance(answer, m.Redirect):
                    self._replicas.learn(index, answer.number, answer.members)
            return list(self._replicas.newest(index).members) or found
        return list(self._replicas.newest(index).members)

    # --- coordinator's door ------------------------------------------------------------------

    async def _serve_read(self, link: Link, body: m.Read) -> m.Answer:
        if self._coordinator.shard(body.key) is None:
            return await self._redirect(body.key)
        return await self._run(body.key, body)

    async def _serve_write(self, link: Link, body: m.Write) -> m.Answer:
        if body.record.owner != link.ident or not self.signer.authentic(body.key, body.record):
            self._runtime.count("record_forged")
            raise LocalMisuse("a record is written only by its owner, with its owner's signature")
        if self._coordinator.shard(body.key) is None:
            return await self._redirect(body.key)
        return await self._run(body.key, body)

    async def _run(self, key: bytes, body: m.Read | m.Write) -> m.Answer:
        try:
            if isinstance(body, m.Read) and body.nonce:
                return m.Current(True, None, certificate=await self.certificates.collect(key, body.nonce, body.voices))
            if isinstance(body, m.Read):
                _, record, last = await self._coordinator.read(key)
                return m.Current(True, record, last)
            won, record, last = await self._coordinator.write(key, self._change_of(body))
        except Unavailable as error:
            return m.NoMajority(error.reached, error.needed, error.replicas)
        return m.Current(won or record == body.record or _was_deleted(body, record), record, last)

    def _change_of(self, body: m.Write) -> Change:
        """What a write does, by its own words or because the authority's assignment overrides whoever holds the address."""
        plain = change_of(body)

        def change(live: m.Record | None, last: int) -> m.Record | None:
            if live is not None and live != body.record and self.signer.is_void(live):
                live = None
            wanted = plain(live, last)
            if wanted is None and live is not None and live.version == body.expected and body.record.version == body.expected + 1:
                return body.record if self.signer.overrides(body.key, body.record, live) else None
            return wanted

        return change

    async def _redirect(self, key: bytes) -> m.Answer:
        index = shard_of(key, self._replicas.count)
        if index not in self._replicas.known:
            await self._ask_around(index)
        return self._replicas.newest(index)

    async def _ask_around(self, index: int) -> None:
        """A new owner of a shard's beginning learns from the nodes after it who keeps the shard."""
        for neighbour in self._ring.successors[:4]:
            try:
                answer = await self._rpc.call(neighbour, m.WhoKeeps(index), 2.0)
            except IpopError:
                continue
            if isinstance(answer, m.Redirect):
                self._replicas.learn(index, answer.number, answer.members)
            else:
                raise unexpected(answer)

    def _serve_who_keeps(self, link: Link, body: m.WhoKeeps) -> m.Answer:
        return self._replicas.newest(body.shard)


def change_of(body: m.Write) -> Change:
    """What a write does to the live record. It leaves alone what it does not expect, and what it has written before."""

    def change(live: m.Record | None, last: int) -> m.Record | None:
        record = body.record
        if live == record:
            return None
        if body.expected == 0:
            return record if live is None and record.version > last else None
        matches = live is not None and live.version == body.expected and live.owner == record.owner
        return record if matches and record.version == body.expected + 1 else None

    return change


def _note_closed(member: Ident, done: Future[m.Answer], closed: set[Ident]) -> None:
    """A member that names the view that it is in itself cannot coordinate: the view is about to change."""
    answer = None if done.error else done.result()
    if isinstance(answer, m.Redirect) and member in answer.members:
        closed.add(member)


def _note_unbegun(member: Ident, done: Future[m.Answer], coordinators: set[Ident], fresh: bool) -> None:
    """A member that sends us elsewhere has begun nothing; one that was given no room has not either, unless it had been asked before."""
    if (fresh and isinstance(done.error, QuotaExceeded)) or (done.error is None and isinstance(done.result(), m.Redirect)):
        coordinators.discard(member)


def _is_final(body: m.Read | m.Write, current: m.Current) -> bool:
    """Whether no other coordinator can still give another answer: versions only grow, so what is too old now is so for ever.

    A record that is about to expire is alive to one coordinator and gone to the next, who may carry the write out that the first refused.
    """
    return isinstance(body, m.Read) or current.won or current.last >= body.record.version


def _written(record: m.Record, current: m.Current) -> m.Record:
    """The record, if it was written. Raises `Conflict`."""
    if current.won:
        return record
    found = current.record
    if found is None:
        raise Conflict("the register is empty", "create it")
    raise Conflict(f"the register is held by {short(found.owner)} in version {found.version}", version=found.version)


def _was_deleted(body: m.Write, live: m.Record | None) -> bool:
    """A deletion that finds the register empty has been carried out already, by us or by time."""
    return not body.record.value and live is None


def _checked(value: bytes) -> bytes:
    if not 0 < len(value) <= m.MAX_VALUE:
        raise LocalMisuse(f"a register's value has 1 to {m.MAX_VALUE} bytes, not {len(value)}")
    return value
