"""Certificates: what a register holds, signed by a majority of those who keep it, so that whoever shows it need not be believed.

A certificate is a read whose answers are signed. Each replica says under which ballot it has accepted which record last; when a majority
of the view says the same, that record was chosen, and was the newest when the asker's nonce was made. Emptiness is certified alike.

Who was a member of a view is not recorded anywhere. So a voice counts from a member of the network whose ident lies so near behind the
shard's beginning as the ring, as dense as it is around us, lets one expect (`MARGIN`): nobody chooses a place on the ring.
"""

from __future__ import annotations

from functools import partial

from msgspec.structs import replace

from ipop_tx.core.dht.coordinator import PATIENCE, Coordinator, majority
from ipop_tx.core.dht.records import RegisterSigner
from ipop_tx.core.dht.replica import REPLICAS, Replicas, Shard
from ipop_tx.core.ident import clockwise, shard_of, shard_start
from ipop_tx.core.ring.ring import SUCCESSORS, Ring
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import quorum
from ipop_tx.errors import BadMessage, Unavailable
from ipop_tx.interfaces import IRecordSigner
from ipop_tx.values import IDENT_BITS, Ident, Network, short
from ipop_tx.wire import messages as m

MARGIN = 8
"""By how much farther from the shard's beginning than is likely a member of its view may lie."""
SHOWN_FOR = 3600.0
"""Seconds for which a certificate may be shown to others: so long may somebody who has given an address up deny it."""
SKEW = 300.0
"""Seconds by which a member's clock may be ahead of ours."""


class Certificates:
    """Gives this node's voice, collects those of a majority, and judges what others show."""

    def __init__(
        self,
        network: Network,
        replicas: Replicas,
        coordinator: Coordinator,
        ring: Ring,
        runtime: Runtime,
        signer: IRecordSigner,
        records: RegisterSigner,
    ) -> None:
        self._records = records
        self._network = network
        self._replicas = replicas
        self._coordinator = coordinator
        self._ring = ring
        self._runtime = runtime
        self._signer = signer
        coordinator.serve(m.Vouch, self._vouch)

    # --- giving and collecting -----------------------------------------------------------------

    def _vouch(self, body: m.Vouch) -> m.Answer:
        answer = self._replicas.peek(m.Peek(body.shard, body.number, body.key))
        if not isinstance(answer, m.Promise):
            return answer
        members = self._replicas.shards[body.shard].members
        certificate = m.Certificate(body.number, members, answer.accepted, answer.record, body.nonce, ())
        unsigned = m.Voice(self._signer.credential, answer.age_ms, int(self._signer.wall()), b"")
        signature = self._signer.sign(self._text(body.key, certificate, unsigned))
        return m.Vouched(answer.accepted, answer.record, replace(unsigned, signature=signature))

    async def collect(self, key: bytes, nonce: bytes, voices: int) -> m.Certificate:
        """What a majority says of a register whose shard we keep, by so many `voices` if they can be had. Raises `Unavailable`."""
        reached, members = 0, tuple[Ident, ...]()
        give_up = self._runtime.now + PATIENCE
        while self._runtime.now <= give_up and (shard := self._coordinator.shard(key)) is not None:
            members = shard.members
            asked = [self._coordinator.ask_member(member, m.Vouch(shard.index, shard.number, key, nonce)) for member in members]
            wanted = min(max(voices, majority(members)), len(members))
            answers = await quorum(asked, partial(self._agree, key, shard, nonce, wanted))
            certificate = self._agreed(key, shard, nonce, majority(members), answers)
            if certificate is not None:
                return certificate
            reached = max(reached, sum(isinstance(answer, m.Vouched) for answer in answers))
            await self._coordinator.read(key)  # which lets them agree
            await self._runtime.sleep(self._runtime.spread(0.1))
        raise Unavailable(reached, majority(members), len(members))

    def _agree(self, key: bytes, shard: Shard, nonce: bytes, least: int, answers: list[m.Answer]) -> bool:
        return self._agreed(key, shard, nonce, least, answers) is not None

    def _agreed(self, key: bytes, shard: Shard, nonce: bytes, least: int, answers: list[m.Answer]) -> m.Certificate | None:
        """The certificate of `least` members or more that say the same, if there is one among the answers."""
        groups: dict[tuple[m.Ballot, m.Record | None], list[m.Voice]] = {}
        for answer in answers:
            if isinstance(answer, m.Vouched):
                groups.setdefault((answer.accepted, answer.record), []).append(answer.voice)
        for (accepted, record), voices in groups.items():
            certificate = m.Certificate(shard.number, shard.members, accepted, record, nonce, ())
            good = {ident: voice for voice in voices if (ident := self._speaker(key, certificate, voice)) in shard.members}
            if len(good) >= least:
                return replace(certificate, voices=tuple(good.values()))
        return None

    # --- judging -------------------------------------------------------------------------------

    def check(self, key: bytes, certificate: m.Certificate) -> None:
        """Raise `BadMessage`, with the reason, unless a majority of a view that there may have been says this of the register `key`."""
        index = shard_of(key, self._network.shards)
        speakers = [self._speaker(key, certificate, voice) for voice in certificate.voices]
        order = self._replicas.orders.get(index)
        if order is not None and certificate.number < order.number:
            raise _refused("the authority has ended that view")
        ordered = order.members if order is not None and certificate.number == order.number else ()
        for speaker in speakers:
            if speaker is None:
                raise _refused("a signature is not that of a member over it")
            if speaker not in certificate.members:
                raise _refused(f"{short(speaker)} is not in the view that it names")
            if speaker not in ordered and not self._may_keep(index, speaker):
                raise _refused(f"{short(speaker)} is not where on the ring one looks for who keeps that part of the DHT")
        if len(set(speakers)) < len(speakers):
            raise _refused("a voice is counted twice")
        if len(speakers) < (majority(certificate.members) if ordered else self.needed(certificate.members)):
            raise _refused(f"{len(speakers)} voices are no majority")
        if certificate.record is not None and not self._records.authentic(key, certificate.record):
            raise _refused("its record is not signed by the owner")

    def needed(self, members: tuple[Ident, ...] = ()) -> int:
        """Voices that make a majority of a view, and not of fewer members than the ring has for one: a view may be younger than that."""
        return max(majority(members), majority((*self._ring.successors, self._ring.ident)[:REPLICAS]))

    def check_shown(self, key: bytes, certificate: m.Certificate) -> m.Record | None:
        """The live record in a certificate that was not made for us, if it is good and, by our clock, fresh. Raises `BadMessage`."""
        self.check(key, certificate)
        now = self._signer.wall()
        if not all(now - SHOWN_FOR <= voice.time <= now + SKEW for voice in certificate.voices):
            raise _refused("it is too old, or a clock is wrong")
        return self.live(certificate, now)

    def live(self, certificate: m.Certificate, wall: float | None = None) -> m.Record | None:
        """See `held`; a record whose owner was thrown out is none."""
        record = held(certificate, wall)
        return None if record is not None and self._records.is_void(record) else record

    def _may_keep(self, index: int, ident: Ident) -> bool:
        """Whether a member lies so near behind a shard's beginning that it may be among the first there, or may have been."""
        if len(self._ring.successors) < SUCCESSORS:
            return True  # that is the whole ring
        return clockwise(shard_start(index, self._network.shards), ident) < MARGIN * REPLICAS * (1 << IDENT_BITS) // self._ring.estimate()

    def _speaker(self, key: bytes, certificate: m.Certificate, voice: m.Voice) -> Ident | None:
        """The member whose voice this is; None if the signature is not good, or not a member's."""
        member = self._signer.admitted(voice.credential)
        if member is None or self._records.is_out(member):
            return None
        return self._signer.verify(voice.credential, self._text(key, certificate, voice), voice.signature)

    def _text(self, key: bytes, certificate: m.Certificate, voice: m.Voice) -> bytes:
        """What a voice signs: all but the other voices, and itself."""
        about = (certificate.number, certificate.members, key, certificate.accepted, certificate.record, certificate.nonce)
        return b"ipop-voice-1" + m.encode(m.Statement(self._network.ident, *about, voice.age_ms, voice.time))


def held(certificate: m.Certificate, wall: float | None = None) -> m.Record | None:
    """The record in a good certificate, unless it is deleted or has expired; at `wall`, Unix seconds, if not just now."""
    record = certificate.record
    if record is None or not record.value:
        return None
    age = min(voice.age_ms + (1000 * max(0.0, wall - voice.time) if wall is not None else 0) for voice in certificate.voices)
    return record if age <= record.ttl * 1000 else None


def _refused(reason: str) -> BadMessage:
    return BadMessage(f"the certificate of a register is no good: {reason}", "try again")
