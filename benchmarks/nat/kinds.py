"""The routers of the matrix: what stands before a site, and what the model of NATs says of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ipop_tx.core.natkind import Kind as Depends
from ipop_tx.core.natkind import Reach, feasible
from ipop_tx.lab import Nat
from ipop_tx.lab.nat import Filtering, Mapping

_MAPPINGS = {
    Mapping.PORT_KEPT: ("kept", Depends.ENDPOINT_INDEPENDENT),
    Mapping.PORT_CHANGED: ("changed", Depends.ENDPOINT_INDEPENDENT),
    Mapping.ADDRESS_DEPENDENT: ("addr", Depends.ADDRESS_DEPENDENT),
    Mapping.SEQUENTIAL: ("seq", Depends.ADDRESS_AND_PORT_DEPENDENT),
    Mapping.RANDOM: ("random", Depends.ADDRESS_AND_PORT_DEPENDENT),
}
_FILTERINGS = {
    Filtering.ENDPOINT_INDEPENDENT: ("eif", Depends.ENDPOINT_INDEPENDENT),
    Filtering.ADDRESS_DEPENDENT: ("adf", Depends.ADDRESS_DEPENDENT),
    Filtering.PORT_DEPENDENT: ("apdf", Depends.ADDRESS_AND_PORT_DEPENDENT),
}


class Router(NamedTuple):
    """One kind: `nat` before the site (None: no router at all), and `outer` before that, if there are two in a row.

    `versions`: which of IPv4 and IPv6 it has. Who has IPv6 has no router, but a firewall of its own that lets in answers only if alone.
    """

    name: str
    nat: Nat | None
    reach: Reach
    outer: Nat | None = None
    versions: tuple[int, ...] = (4,)

    def meets(self, other: Router) -> bool:
        """Whether the model says that the two can have a direct path."""
        return bool(set(self.versions) & set(other.versions)) and feasible(self.reach, other.reach)


def routers() -> Iterator[Router]:
    """All of them: none, fifteen NATs, 1:1, plain Linux, two in a row, one that lets no UDP through; both versions of IP, and IPv6 only."""
    steady, strict = Depends.ENDPOINT_INDEPENDENT, Depends.ADDRESS_AND_PORT_DEPENDENT
    yield Router("public", None, Reach(Depends.NONE, steady))
    for mapping, (mapped, depends) in _MAPPINGS.items():
        for filtering, (filtered, lets_in) in _FILTERINGS.items():
            reach = Reach(depends, lets_in, step=1 if mapping is Mapping.SEQUENTIAL else 0)
            yield Router(f"{mapped}-{filtered}", Nat(mapping, filtering), reach)
    yield Router("one2one", Nat.ONE_TO_ONE, Reach(steady, steady))
    yield Router("linux", Nat.LINUX, Reach(steady, strict, brittle=True))
    yield Router("cgn", Nat.PORT_RESTRICTED, Reach(steady, strict), Nat.PORT_RESTRICTED)
    yield Router("blocked", Nat.UDP_BLOCKED, Reach(Depends.BLOCKED, Depends.BLOCKED))
    yield Router("dual", None, Reach(Depends.NONE, steady), versions=(4, 6))
    yield Router("v6only", None, Reach(Depends.NONE, strict), versions=(6,))


QUICK = ("public", "kept-apdf", "seq-apdf", "random-apdf", "random-adf", "blocked")
