"""Real nodes on one machine: network namespaces, NAT routers, and the processes in them."""

from __future__ import annotations

from ipop_tx.lab.nat import Filtering, Kind, Mapping, Nat
from ipop_tx.lab.process import Process
from ipop_tx.lab.topology import Host, Lab, Site, SiteHost
from ipop_tx.lab.waiting import wait_for

__all__ = ["Filtering", "Host", "Kind", "Lab", "Mapping", "Nat", "Process", "Site", "SiteHost", "wait_for"]
