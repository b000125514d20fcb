"""Keeps this machine from answering for its addresses of the network anywhere but on the network.

Linux has a *weak host model* (RFC 1122, 3.3.4.2): a packet for any address of the machine is taken by whichever interface it comes, and
ARP on the LAN is answered for all of them. So somebody on the LAN could speak to what listens on the overlay's address without being a
member. Two tables of nf_tables drop that, for our own addresses only, so that several daemons on a machine do not meddle with each other:

    table inet ipop-NAME: for this machine, by none of (lo, the TAP, its bridge), to one of our addresses
    table arp ipop-NAME:  a question by none of those for one of our IPv4 addresses
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address

from ipop_tx.log import Logger
from ipop_tx.services import nftables as nft

_log = Logger()
_IPV4_TO, _IPV6_TO, _ARP_TARGET = 16, 24, 24
"""Where the address stands in the header."""
_TABLES = (nft.INET, nft.LOCAL_IN), (nft.ARP, nft.ARP_IN)


class Shield:
    """The tables of one daemon; `own` are the interfaces that are the network's.

    The kernel removes them when the daemon ends, also by a kill; a kernel before Linux 5.12 when it is stopped, and after a kill when it
    starts again.
    """

    def __init__(self, own: Sequence[str]) -> None:
        self._name = f"ipop-{own[0]}"
        self._admitted = ["lo", *own]
        self._batches: nft.Batches | None = None
        self._owned = True
        self._problem = ""

    def health(self) -> list[str]:
        """A sentence when there are no such tables though there should be."""
        return [self._problem] if self._problem else []

    def protect(self, addresses: Iterable[IPv4Address | IPv6Address]) -> None:
        """Exactly these addresses from now on. A kernel that cannot do it is a matter for `health` only."""
        rules = [rule for address in addresses for rule in self._rules(address)]
        try:
            if self._batches is None:
                self._make()
            assert self._batches is not None
            self._batches.commit([*(nft.no_rules(family, self._name) for family, _ in _TABLES), *rules])
            self._problem = ""
        except OSError as error:
            self._problem = (
                f"nf_tables refuses rules ({os.strerror(error.errno or 0)}): this machine's addresses of the network are answered on its "
                "other interfaces too; set tap.shield = false if that is meant"
            )
            _log.warn("shield_failed reason={reason}", reason=str(error))

    def lift(self) -> None:
        """Remove the tables. Idempotent."""
        if self._batches is None:
            return
        try:
            if not self._owned:
                self._batches.commit([one for family, _ in _TABLES for one in nft.no_table(family, self._name)])
        except OSError as error:
            _log.warn("shield_left reason={reason}", reason=str(error))
        self._batches.close()
        self._batches = None

    def _make(self) -> None:
        batches = nft.Batches()
        try:
            batches.commit([one for family, _ in _TABLES for one in nft.no_table(family, self._name)])  # of a daemon that was killed
            self._owned = self._made(batches, nft.OWNER) or not self._made(batches, 0)
        except OSError:
            batches.close()
            raise
        self._batches = batches

    def _made(self, batches: nft.Batches, flags: int) -> bool:
        """Whether the kernel knows `flags`. Raises `OSError` when it takes no tables even without any."""
        made = [(nft.table(family, self._name, flags), nft.chain(family, self._name, hook)) for family, hook in _TABLES]
        try:
            batches.commit([one for both in made for one in both])
        except OSError:
            if not flags:
                raise
            return False
        return True

    def _rules(self, address: IPv4Address | IPv6Address) -> list[nft.Message]:
        elsewhere = nft.came_by_none_of(self._admitted)
        if address.version == 6:
            return [nft.drop(nft.INET, self._name, elsewhere, nft.of_protocol(nft.IPV6), nft.has(_IPV6_TO, address.packed))]
        return [
            nft.drop(nft.INET, self._name, elsewhere, nft.of_protocol(nft.IPV4), nft.has(_IPV4_TO, address.packed)),
            nft.drop(nft.ARP, self._name, elsewhere, nft.has(_ARP_TARGET, address.packed)),
        ]
