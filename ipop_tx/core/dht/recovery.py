"""Break-glass: views that have lost their majority for ever are founded anew from what is left, by order of the authority alone.

The order names shards, members, and a view's number far beyond any that the old view and its successors can reach. It goes to everybody who
is linked, and to whoever links later, lies on every disk, and ends the older views: a replica that has seen it accepts nothing in
them. Then whoever carries it out collects the copies that are left, merges those of the latest view, and installs the result.
What had been accepted only by members that are gone is gone with them: docs/dht.md says what that gives up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ipop_tx.core.dht.coordinator import Coordinator, majority
from ipop_tx.core.dht.dht import Dht
from ipop_tx.core.dht.replica import Replicas, raised
from ipop_tx.core.dht.views import merge, parts_of
from ipop_tx.core.events import ViewsFounded
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.linktable import LinkTable
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import all_settled, spawn, successes
from ipop_tx.errors import EnvironmentProblem, IpopError, LocalMisuse
from ipop_tx.values import Ident, short
from ipop_tx.wire import messages as m

ATTEMPTS = 5
"""How often it is tried to install a view."""
TOLD = 16
"""Most orders, the latest, that a new link is told."""


class Loss(NamedTuple):
    """A shard that can be neither read nor written: its newest view, as far as anybody here knows, and who of that can be reached."""

    shard: int
    number: int
    members: tuple[Ident, ...]
    reached: tuple[Ident, ...]
    copies: tuple[Ident, ...]
    """Who has a copy of that view."""


class Founded(NamedTuple):
    """What came of an order for one shard: from which view how many copies were merged, and how many registers those held."""

    shard: int
    copies: int
    number: int
    registers: int
    works: bool
    """Whether a majority of the new members has it."""


class _Copy(NamedTuple):
    number: int
    cells: list[m.Cell]
    floor: m.Floor


class Recovery:
    """Obeys the authority's orders, spreads them, and carries one out when asked to."""

    def __init__(
        self,
        replicas: Replicas,
        coordinator: Coordinator,
        dht: Dht,
        links: LinkTable,
        rpc: Rpc,
        runtime: Runtime,
        is_authentic: Callable[[m.Order], bool],
    ) -> None:
        self._replicas = replicas
        self._coordinator = coordinator
        self._dht = dht
        self._links = links
        self._rpc = rpc
        self._runtime = runtime
        self._is_authentic = is_authentic
        rpc.serve(m.Order, self._ordered)
        rpc.serve(m.Salvage, self._salvage)
        links.on_up.append(self._tell_orders)

    # --- orders ------------------------------------------------------------------------------

    def _ordered(self, link: Link, order: m.Order) -> m.Done:
        self._obey(order)
        return m.Done()

    def _obey(self, order: m.Order) -> None:
        """Take an order, and pass it on if it is news. Raises `LocalMisuse` for one that the authority has not signed."""
        if not self._is_authentic(order):
            self._runtime.count("order_forged")
            raise LocalMisuse("an order to found views anew must be signed by this network's authority")
        if self._replicas.suspended:
            raise EnvironmentProblem("this node's disk takes no writes", "make room on it")
        if self._replicas.obey(order):
            self._runtime.emit(ViewsFounded(order.shards, order.number, order.members))
            for link in self._links:
                self._rpc.on_link(link, order)

    def _tell_orders(self, link: Link) -> None:
        """Whoever comes, or comes back, hears which views are over before it takes part in them, unless with others who do not know it."""
        orders = sorted({order.nonce: order for order in self._replicas.orders.values()}.values(), key=lambda order: order.number)
        for order in orders[-TOLD:]:
            self._rpc.on_link(link, order)

    def _salvage(self, link: Link, body: m.Salvage) -> m.Answer:
        return self._replicas.salvage(body)

    # --- what is lost ------------------------------------------------------------------------

    async def survey(self) -> list[Loss]:
        """The shards that cannot be read from here. Takes up to `Dht`'s patience."""
        every = range(self._replicas.count)
        reads = [spawn(self._dht.get(self._replicas.start_of(index))) for index in every]
        await all_settled(reads)
        return [await self._loss(index) for index, read in zip(every, reads, strict=True) if isinstance(read.error, IpopError)]

    async def _loss(self, index: int) -> Loss:
        views = {self._replicas.ident: self._replicas.newest(index)}
        for link in self._links:
            try:
                answer = await self._rpc.on_link(link, m.WhoKeeps(index))
            except IpopError:
                continue
            if isinstance(answer, m.Redirect):
                views[link.ident] = answer
        newest = max(views.values(), key=lambda view: view.number)
        reached = tuple(member for member in newest.members if member in views)
        copies = tuple(member for member in reached if views[member].number == newest.number)
        return Loss(index, newest.number, newest.members, reached, copies)

    # --- carrying out ------------------------------------------------------------------------

    async def carry_out(self, order: m.Order) -> list[Founded]:
        """Found the views of an order, from what can be reached. Raises `LocalMisuse` for one that the authority has not signed."""
        before = {index: self._replicas.newest(index).members for index in order.shards}
        self._obey(order)
        founding = await all_settled([spawn(self._found(order, index, before[index])) for index in order.shards])
        return [done.result() for done in founding]

    async def _found(self, order: m.Order, index: int, before: tuple[Ident, ...]) -> Founded:
        sources = sorted({self._replicas.ident, *self._links.by_ident, *before, *order.members})
        found = await successes([self._runtime.background(self._copy_of(source, order, index)) for source in sources])
        latest = max((copy.number for copy in found), default=0)
        copies = [copy for copy in found if copy.number == latest > 0]
        cells, floor = dict[bytes, m.Cell](), m.NO_FLOOR
        for copy in copies:
            floor = raised(floor, copy.floor)
            for cell in copy.cells:
                cells[cell.key] = merge(cells.get(cell.key), cell)
        works = await self._install(order, index, [cells[key] for key in sorted(cells)], floor)
        return Founded(index, len(copies), latest, len(cells), works)

    async def _copy_of(self, source: Ident, order: m.Order, index: int) -> _Copy:
        """All that a member has of a shard, once it has taken the order."""
        if source != self._replicas.ident:
            await self._rpc.call(source, order)
        cells: list[m.Cell] = []
        while True:
            salvage = m.Salvage(index, order.number, cells[-1].key if cells else b"")
            answer = self._replicas.salvage(salvage) if source == self._replicas.ident else await self._rpc.call(source, salvage)
            if not isinstance(answer, m.Salvaged):
                return _Copy(0, [], m.NO_FLOOR)
            cells.extend(answer.cells)
            if not answer.more or not answer.cells:
                return _Copy(answer.number, cells, answer.floor)

    async def _install(self, order: m.Order, index: int, cells: list[m.Cell], floor: m.Floor) -> bool:
        parts = parts_of(index, order.number, order.members, cells, floor, self._runtime.rng.getrandbits(32))
        for attempt in range(ATTEMPTS):
            installed = await successes([self._runtime.background(self._install_at(member, parts)) for member in order.members])
            if len(installed) >= majority(order.members):
                return True
            await self._runtime.sleep(1.0 + attempt)
        return False

    async def _install_at(self, member: Ident, parts: list[m.Install]) -> None:
        for part in parts:
            answer = await self._coordinator.ask_member(member, part)
            if not isinstance(answer, m.Done):
                raise EnvironmentProblem(f"{short(member)} does not take its copy")
