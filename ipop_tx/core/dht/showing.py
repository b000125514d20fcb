"""Registers shown by their owners: who holds an address can prove it, also where no majority can be asked.

An owner has its registers certified, again and again, and shows the certificate to whoever asks. Whom to ask, anybody may say: a record
in any copy, of whatever age, names an owner. So replicas need not keep certificates; who is to be reached must be there anyway.
"""

from __future__ import annotations

from collections.abc import Iterable

from ipop_tx.core.dht.certificates import SHOWN_FOR, Certificates, held
from ipop_tx.core.dht.dht import Dht
from ipop_tx.core.dht.replica import Replicas
from ipop_tx.core.ident import shard_of
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import successes
from ipop_tx.errors import BadMessage, IpopError
from ipop_tx.values import Ident
from ipop_tx.wire import messages as m

EVERY = SHOWN_FOR / 3
"""Seconds after which a certificate is renewed, so that there is a good one also some time after a majority was reached last."""
RETRY = 30.0
"""Seconds until it is tried again."""
PATIENCE = 2.0
"""Seconds that those have who are asked at once."""
MOST = 8
"""Who are asked at once."""


class Showing:
    """Keeps certificates of this node's own registers, shows them, and asks others for theirs."""

    def __init__(self, replicas: Replicas, dht: Dht, certificates: Certificates, rpc: Rpc, runtime: Runtime) -> None:
        self.shown: dict[bytes, m.Certificate] = {}
        """The last certificate of each of our registers that has had one."""
        self._replicas = replicas
        self._dht = dht
        self._certificates = certificates
        self._rpc = rpc
        self._runtime = runtime
        self._turns: dict[bytes, int] = {}
        """The registers that we show, and how often each has been changed."""
        rpc.serve(m.Show, lambda link, body: self._show(body.key))

    # --- showing -------------------------------------------------------------------------------

    def keep(self, key: bytes) -> None:
        """A register has been written by us: have what it holds now certified, and keep that fresh."""
        self._turns[key] = turn = self._turns.get(key, 0) + 1
        self._runtime.background(self._keep_fresh(key, turn))

    def drop(self, key: bytes) -> None:
        """It is not ours any more."""
        self._turns.pop(key, None)
        self.shown.pop(key, None)

    async def _keep_fresh(self, key: bytes, turn: int) -> None:
        while self._turns.get(key) == turn:
            wait = EVERY
            try:
                certificate = await self._dht.certified(key)
            except IpopError:
                wait = RETRY
            else:
                record = held(certificate)
                if self._turns.get(key) == turn and record is not None and record.owner == self._replicas.ident:
                    self.shown[key] = certificate
            await self._runtime.sleep(self._runtime.spread(wait))

    def _show(self, key: bytes) -> m.Shown:
        if key in self.shown:
            return m.Shown(None, self.shown[key])
        shard = self._replicas.shards.get(shard_of(key, self._replicas.count))
        cell = shard.cells.get(key) if shard is not None else None
        return m.Shown(cell.record if cell is not None else None)

    # --- asking --------------------------------------------------------------------------------

    async def find(self, key: bytes, claimants: Iterable[Ident]) -> m.Record | None:
        """What the owner of a register proves of it; None when nobody proves anything.

        Asked are the `claimants`, who may be the owner, then those who keep a copy, then whoever they name.
        """
        local = self._show(key)
        named, asked = [*claimants, *([local.record.owner] if local.record else [])], {self._replicas.ident}
        for step in range(3):
            if step == 1:
                named += await self._dht.keepers(key)
            fresh = [ident for ident in dict.fromkeys(named) if ident not in asked][:MOST]
            asked.update(fresh)
            answers = await successes([self._rpc.call(ident, m.Show(key), PATIENCE) for ident in fresh])
            shown = [answer for answer in answers if isinstance(answer, m.Shown)]
            for record in [self._proven(key, answer) for answer in shown]:
                if record is not None:
                    return record
            named = [answer.record.owner for answer in shown if answer.record is not None]
        return None

    def _proven(self, key: bytes, answer: m.Shown) -> m.Record | None:
        if answer.certificate is None:
            return None
        try:
            return self._certificates.check_shown(key, answer.certificate)
        except BadMessage:
            self._runtime.count("certificate_refused")
            return None
