"""Why a link has no direct path, as far as a node knows, in words."""

from __future__ import annotations

from collections.abc import Callable

from ipop_tx.core.links.facts import version_of
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.paths import ROUNDS, Paths
from ipop_tx.core.natkind import feasible, why_infeasible

SETTLING = ROUNDS[-1] + 3.0
"""Seconds within which challenges to a peer's candidates are answered, if they are."""


def why_relayed(link: Link, paths: Paths, now: float, search: Callable[[Link], str | None] = lambda link: None) -> str | None:
    """The likeliest reason; None for a link that is direct. `search` tells what comes of a search for a port (`Searches.state`)."""
    if link.is_direct:
        return None
    ours, theirs = paths.facts.reach, paths.reaches.get(link.ident)
    if theirs is not None and (theirs.blocked or ours.blocked or (ours.known and theirs.known)) and not feasible(ours, theirs):
        return why_infeasible(ours, theirs)
    peers, own = _versions(link, paths), paths.facts.versions()
    if len(peers) == len(own) == 1 and peers != own:
        return f"the peer is reached by IPv{peers.pop()} only, this node by IPv{own.pop()} only"
    tried = paths.tried.get(link.ident)
    if tried is None:
        return "the peer has not told its endpoints yet"
    began, count = tried
    if not count:
        return "the peer tells no endpoint that this node can send to"
    if now - began < SETTLING:
        return f"challenges are under way to {_endpoints(count)}"
    if (searched := search(link)) is not None:
        return searched
    unknown = " and here" if not ours.known else ""
    doubt = f"; the NAT at the peer{unknown} is not known yet" if theirs is None or not theirs.known else ""
    return f"no answer to challenges yet ({_endpoints(count)} tried {now - began:.0f} s ago){doubt}"


def _endpoints(count: int) -> str:
    return "1 endpoint" if count == 1 else f"{count} endpoints"


def _versions(link: Link, paths: Paths) -> set[int]:
    """Over which versions of IP a peer may be reached by UDP, as it says."""
    named = (paths.admissible(text) for text in paths.endpoints_of(link.ident))
    return {version_of(endpoint) for endpoint in named if endpoint is not None and endpoint.carrier == "udp"}
