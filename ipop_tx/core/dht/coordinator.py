"""The proposer's side of a register: any open member of a shard's view can run an operation for a client.

CASPaxos (Rystsov 2018): prepare at a majority, apply the change to the newest accepted value, accept at a majority. A read
that finds one and the same accepted ballot at a majority is done in one round trip; any other read completes what it found.

Records go to all members. Questions go at first only to as many as must agree, ourselves and the nearest; the others are asked as soon as
one of those fails, refuses or is slow.

Expiry is decided here, by the least age that a majority reports: a register counts as empty only when every replica that we asked
has held the record for longer than its time to live.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ipop_tx.core.dht.quota import size_of
from ipop_tx.core.dht.replica import Replicas, Shard
from ipop_tx.core.ident import shard_of
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future, failed, first, quorum, settled, spawn
from ipop_tx.errors import EnvironmentProblem, IpopError, LocalMisuse, QuotaExceeded, Unavailable
from ipop_tx.values import Ident
from ipop_tx.wire import messages as m

ATTEMPTS = 12
"""Rounds that an operation tries before it reports that no majority is to be had."""
PATIENCE = 4.0
"""Seconds after which no further round is begun, so that the client hears of it while it still waits."""
LONGEST_PAUSE = 0.8
"""Seconds, at most, between rounds: pauses are random and twice as long each time, so that one of several coordinators gets through."""
REPLICA_DEADLINE = 3.0
"""Seconds that a replica is given to answer."""
HEDGE = 0.15
"""Seconds, beside two round trips, after which the members are asked too that were spared a question at first."""

BY_MEMBERS = (m.Prepare, m.Accept, m.Seal, m.Succeed, m.Fetch, m.Forget)
"""What only a member of the view may ask."""

Change = Callable[[m.Record | None, int], m.Record | None]
"""From the live record and the newest version, dead or alive, to the record to write; None leaves the register as it is."""

Outcome = tuple[bool, m.Record | None, int]
"""Whether something was written, the live record afterwards, the newest version that was there before."""


class Coordinator:
    """Runs reads and writes on the registers of this node's open shards."""

    def __init__(self, replicas: Replicas, rpc: Rpc, runtime: Runtime) -> None:
        self.on_lagging: Callable[[int, Ident], None] = lambda shard, member: None
        self._replicas = replicas
        self._rpc = rpc
        self._runtime = runtime
        self._round = 0
        self._proposing: dict[bytes, Future[None]] = {}
        """The registers on which a ballot of ours is under way; settled when it is over."""
        self._acceptor: dict[type, Callable[[Any], m.Answer]] = {
            m.Peek: replicas.peek,
            m.Prepare: replicas.prepare,
            m.Accept: replicas.accept,
            m.Seal: replicas.seal,
            m.Succeed: replicas.succeed,
            m.Fetch: replicas.fetch,
            m.Retire: replicas.retire,
            m.Forget: replicas.forget,
        }
        for kind in (*self._acceptor, m.Install):
            rpc.serve(kind, lambda link, body: self._answer(link.ident, body))

    def serve(self, kind: type, answer: Callable[[Any], m.Answer]) -> None:
        """Answer one more kind of question, of others and of ourselves, unless the disk takes no writes."""
        self._acceptor[kind] = answer
        self._rpc.serve(kind, lambda link, body: self._answer(link.ident, body))

    def shard(self, key: bytes) -> Shard | None:
        """The shard of a key, if this node may coordinate on it."""
        shard = self._replicas.shards.get(shard_of(key, self._replicas.count))
        good = shard is not None and shard.open and self._replicas.ident in shard.members and not self._replicas.superseded(shard)
        return shard if good else None

    async def read(self, key: bytes) -> Outcome:
        """The live record. Raises `Unavailable`."""
        return await self.write(key, _as_it_is)

    async def write(self, key: bytes, change: Change) -> Outcome:
        """Apply `change` to the live record. Raises `Unavailable`, `QuotaExceeded`."""
        most, members, attempt = 0, tuple[Ident, ...](), 0
        offered: list[m.Record] = []
        give_up = self._runtime.now + PATIENCE
        while attempt < ATTEMPTS and self._runtime.now <= give_up and (shard := self.shard(key)) is not None:
            members = shard.members
            seen = await self._peek(shard, key)
            most = max(most, len(seen))
            if len(seen) >= majority(shard.members):
                live, last = self._live(seen), _last(seen)
                is_agreed = len({promise.accepted for promise in seen}) == 1
                wanted = change(live, last)
                if wanted is None and is_agreed and all(record.version <= last for record in offered):
                    return False, live, last
                if (other := self._proposing.get(key)) is not None:
                    await other
                    continue
                done = await self._propose_alone(shard, key, change, offered, None if offered else wanted)
                if done is not None:
                    return done
            attempt += 1
            await self._runtime.sleep(min(LONGEST_PAUSE, 0.03 * 2**attempt) * self._runtime.rng.random() + (0.3 if not seen else 0.0))
        raise Unavailable(most, majority(members), len(members))

    async def _propose_alone(
        self, shard: Shard, key: bytes, change: Change, offered: list[m.Record], intent: m.Record | None
    ) -> Outcome | None:
        """One ballot, and no other of ours on this register meanwhile: of many clients' writes each would undo the one before it.

        Whoever waited peeks again, and mostly finds its answer.
        """
        work = spawn(self._propose(shard, key, change, offered, intent))
        if not work.done:
            work.then(lambda done: self._proposing.__delitem__(key))
            self._proposing[key] = first([work])
        return await work

    async def _peek(self, shard: Shard, key: bytes) -> list[m.Promise]:
        answers = await self._ask(shard, m.Peek(shard.index, shard.number, key), m.Promise, sparing=True)
        return [answer for answer in answers if isinstance(answer, m.Promise)]

    async def complete(self, shard: Shard, key: bytes) -> None:
        """Write what a register holds once more, so that members who missed it have it too."""
        await self._propose(shard, key, _as_it_is, [], None)

    async def _propose(self, shard: Shard, key: bytes, change: Change, offered: list[m.Record], intent: m.Record | None) -> Outcome | None:
        """One ballot. None when it lost or found no majority; a record that a replica may have accepted all the same is then `offered`.

        Only another ballot can end that: while a register is about to expire, one majority may say that it is empty and the next that it
        is not, and a write that was offered to the first could yet come true after the second has been believed.

        Room is asked for `intent`: not for a deletion, nor for what was offered before. Raises `QuotaExceeded`.
        """
        ballot = self.ballot()
        owner, size = (intent.owner, size_of(intent)) if intent is not None and intent.value else (b"", 0)
        prepare = m.Prepare(shard.index, shard.number, key, ballot, owner, size)
        answers = await self._ask(shard, prepare, m.Promise, sparing=True)
        promises = [answer for answer in answers if isinstance(answer, m.Promise)]
        self.learn_rounds(answers)
        if len(promises) < majority(shard.members):
            return None
        live, last = self._live(promises), _last(promises)
        wanted = change(live, last)
        newest = max(promises, key=lambda promise: promise.accepted)
        record, age = (newest.record, self._age(promises, newest)) if wanted is None else (wanted, 0)
        accept = m.Accept(shard.index, shard.number, key, ballot, record, age)
        if wanted is not None:
            offered.append(wanted)
        answers = await self._ask(shard, accept, m.Done)
        self.learn_rounds(answers)
        if sum(isinstance(answer, m.Done) for answer in answers) < majority(shard.members):
            return None
        return (False, live, last) if wanted is None else (True, wanted, last)

    def _live(self, promises: list[m.Promise]) -> m.Record | None:
        """The newest accepted record, unless it is deleted or expired."""
        newest = max(promises, key=lambda promise: promise.accepted)
        if newest.record is None or not newest.record.value:
            return None
        return newest.record if self._age(promises, newest) <= newest.record.ttl * 1000 else None

    def _age(self, promises: list[m.Promise], newest: m.Promise) -> int:
        return min(promise.age_ms for promise in promises if promise.accepted == newest.accepted)

    def ballot(self) -> m.Ballot:
        """A ballot that we have not used in this life."""
        self._round += 1
        return m.Ballot(self._round, self._replicas.ident)

    def learn_rounds(self, answers: list[m.Answer]) -> None:
        """Let our next ballot be above those that others have named."""
        for answer in answers:
            ballot = answer.promised if isinstance(answer, m.Refused) else answer.accepted if isinstance(answer, m.Promise) else m.NO_BALLOT
            self._round = max(self._round, ballot.round)

    async def _ask(self, shard: Shard, body: m.Ask, good: type, sparing: bool = False) -> list[m.Answer]:
        """Ask all members, `sparing` those that are not needed; come back with a majority of good answers, or when no more can come.

        A ballot that was refused has lost once a majority has answered: dead members are not waited for then.
        """
        needed = majority(shard.members)
        members = self._rpc.nearest_first(shard.members) if sparing else shard.members
        spared = [(member, Future[m.Answer]()) for member in (members[needed:] if sparing else ())]

        def ask(member: Ident) -> Future[m.Answer]:
            future = self.ask_member(member, body)
            future.then(lambda done: self._note_stale(shard, member, done))
            return future

        def spare_none(_: object = None) -> None:
            while spared:
                member, later = spared.pop(0)
                ask(member).then(later.follow)

        def enough(answers: list[m.Answer]) -> bool:
            refused = any(isinstance(answer, m.Refused) for answer in answers)
            return sum(isinstance(answer, good) for answer in answers) >= needed or (refused and len(answers) >= needed)

        futures = [*(ask(member) for member in members[: len(members) - len(spared)]), *(later for _, later in spared)]
        for future in futures[:needed] if spared else ():
            future.then(lambda done: None if done.error is None and isinstance(done.result(), (good, m.Refused)) else spare_none())
        timer = self._runtime.after(HEDGE + 2 * self._rpc.slowest(members[:needed]), spare_none) if spared else None
        answers = await quorum(futures, enough)
        spared.clear()
        if timer is not None:
            timer.cancel()
        if sum(isinstance(answer, good) for answer in answers) < needed:
            full = [future.error for future in futures if isinstance(future.error, QuotaExceeded)]
            if len(full) > len(shard.members) - needed:
                raise full[0]
        return answers

    def ask_member(self, member: Ident, body: m.Ask) -> Future[m.Answer]:
        """Ask one member of a view, ourselves without any detour."""
        if member == self._replicas.ident:
            return self._answer_ourselves(body)
        return self._rpc.call(member, body, REPLICA_DEADLINE)

    def _answer(self, asker: Ident, body: Any) -> m.Answer:
        if self._replicas.suspended:
            raise EnvironmentProblem("this replica's disk takes no writes", "make room on it")
        if isinstance(body, m.Install):
            return self._replicas.install(asker, body)
        if isinstance(body, BY_MEMBERS):
            self._check_asker(asker, body)
        return self._acceptor[type(body)](body)

    def _check_asker(self, asker: Ident, body: Any) -> None:
        """Only members of a view change anything in it, each under its own ballots: that is what A of docs/dht.md rests on."""
        shard = self._replicas.shards.get(body.shard)
        stranger = shard is not None and shard.number == body.number and asker not in shard.members
        if stranger or (not isinstance(body, m.Fetch) and body.ballot.proposer != asker):
            self._runtime.count("proposal_refused")
            raise LocalMisuse("only a member of a view proposes in it, and only under its own ballots")

    def _answer_ourselves(self, body: Any) -> Future[m.Answer]:
        try:
            return settled(self._answer(self._replicas.ident, body))
        except IpopError as error:
            return failed(error)

    def _note_stale(self, shard: Shard, member: Ident, done: Future[m.Answer]) -> None:
        if done.error is not None or not isinstance(answer := done.result(), m.Stale):
            return
        if answer.number < shard.number or (answer.number == shard.number and answer.closed and shard.open):
            self.on_lagging(shard.index, member)
        else:
            self._replicas.learn(answer.shard, answer.number, answer.members)


def _as_it_is(live: m.Record | None, last: int) -> m.Record | None:
    return None


def _last(promises: list[m.Promise]) -> int:
    """The newest version that there has been; where no record is left, one that is not below it."""
    newest = max(promises, key=lambda promise: promise.accepted).record
    return newest.version if newest is not None else max(promise.last for promise in promises)


def majority(members: tuple[Ident, ...]) -> int:
    """How many of a view's members must agree."""
    return len(members) // 2 + 1
