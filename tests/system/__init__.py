"""Tests of real daemons in a lab; they need root."""

from __future__ import annotations

from ipop_tx.errors import IpopError
from ipop_tx.lab import netns


def why_not(*programs: str) -> str | None:
    """Why tests that need the lab (and `programs`) cannot run here; None when they can. Made for trial's `skip`."""
    try:
        netns.require_root_and({"ip", "nft", "conntrack", "ping", *programs})
    except IpopError as error:
        return str(error)
    return None
