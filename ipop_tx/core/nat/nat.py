"""Everything that a node does to know its own NAT, and to help others know theirs."""

from __future__ import annotations

from collections.abc import Callable

from ipop_tx.core.links.link import Link
from ipop_tx.core.links.links import Links
from ipop_tx.core.links.paths import Paths
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.nat.check import NatCheck
from ipop_tx.core.nat.help import NatHelp
from ipop_tx.core.nat.lifetime import NatLife
from ipop_tx.core.nat.search import Searches
from ipop_tx.core.nat.sides import Sides
from ipop_tx.core.natkind import NatFacts
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future
from ipop_tx.wire import messages as m


class Nat:
    """`help` serves other members, `check` and `life` ask them; `search` looks for ports; `sides` are the sockets for all that."""

    def __init__(self, links: Links, rpc: Rpc, paths: Paths, runtime: Runtime) -> None:
        self.tell: Callable[[Link], object] = lambda link: None
        """Tells a peer what we know of ourselves."""
        self.sides = Sides(runtime)
        self.help = NatHelp(links, self.sides, runtime)
        self.check = NatCheck(links, rpc, self.sides, paths.facts, paths.reaches, runtime)
        self.life = NatLife(self.check, paths, runtime)
        self.search = Searches(links, rpc, paths, self.sides, self.check, runtime)
        self._links = links
        self._facts = paths.facts
        rpc.serve(m.Assist, self.help.assist)
        rpc.serve(m.Knock, self.help.knock)

    def check_now(self) -> Future[NatFacts]:
        """Start a check, or join the one that runs. Peers hear of a change: it may say why a link is relayed, and who can help."""
        checked = self.check.check()
        checked.then(lambda done: self._found(done.result()) if done.error is None else None)
        return checked

    def _found(self, found: NatFacts) -> None:
        self._facts.hops = found.hops
        if self._facts.reach != found.reach:
            self._facts.reach = found.reach
            for link in self._links:
                self.tell(link)
