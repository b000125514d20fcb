"""The wires under test: for every system two machines with a router between them, and if wanted delay and loss.

```
                A --- 10.61.1.0/24 --- router --- 10.61.2.0/24 --- B          MTU 1500
   with delay:  A --- [user-space wire] --- router --- B                      offloads off from the wire on
```

Every system has three namespaces of its own, so that no system sees the overlay addresses of another.
"""

from __future__ import annotations

import json
import sys
from typing import Literal

from ipop_tx.lab import Host, Lab, Process, netns, wait_for
from ipop_tx.lab.node import environment

A_ADDRESS = "10.61.1.2"
B_ADDRESS = "10.61.2.2"
R_ADDRESS = "10.61.3.2"
ROUTER_A = "10.61.1.1"
ROUTER_B = "10.61.2.1"
_ROUTER_R = "10.61.3.1"
_NET_A, _NET_B = "10.61.1.0/24", "10.61.2.0/24"

OFFLOADS = ("tx", "tso", "gso", "gro", "tx-udp-segmentation")
"""Without them every frame that the router sees is one datagram of at most 1514 bytes, with its checksum filled in."""

_RULES = """
add table ip {table}
delete table ip {table}
table ip {table} {{
 chain forwarded {{ type filter hook forward priority -200;
{rules}
 }}
}}
"""
_CLIENT_HELLO = "ip protocol udp @th,64,8 22 @th,168,8 1"
"""A DTLS record of a handshake whose first message is a ClientHello."""


class Pair:
    """A, a router, and B; `label` names them. `rtt_ms` is added by a user-space wire between A and the router.

    `congestion` names TCP's congestion control for what is measured here, instead of the machine's default.
    """

    def __init__(self, lab: Lab, label: str, rtt_ms: float = 0, congestion: str = "") -> None:
        self.lab = lab
        self.label = label
        self.congestion = congestion
        self.a = Host(lab, f"{label}-a", A_ADDRESS, A_ADDRESS)
        self.b = Host(lab, f"{label}-b", B_ADDRESS, B_ADDRESS)
        self.router = Host(lab, f"{label}-router", ROUTER_A, None)
        self._wire: Process | None = None
        if rtt_ms:
            self._lay_delayed_wire(rtt_ms)
        else:
            _cable(self.router, "to-a", self.a, "eth0")
        _cable(self.router, "to-b", self.b, "eth0")
        _machine(self.a, A_ADDRESS, ROUTER_A)
        _machine(self.b, B_ADDRESS, ROUTER_B)
        netns.configure(
            self.router.namespace,
            f"addr add {ROUTER_A}/24 dev to-a",
            "link set to-a up",
            f"addr add {ROUTER_B}/24 dev to-b",
            "link set to-b up",
        )
        netns.set_kernel(self.router.namespace, "ipv4.ip_forward", 1)
        if rtt_ms:
            # A keeps its own: its super-frames cross the wire whole, and are cut where they leave it for the router.
            for host, device in ((self._middle, "right"), (self.router, "to-a"), (self.router, "to-b"), (self.b, "eth0")):
                _without_offloads(host, device)

    def side(self, name: Literal["a", "b"]) -> Host:
        """A machine by its letter."""
        return self.a if name == "a" else self.b

    def pids(self) -> list[int]:
        """All processes that live on A and B now: the daemons, as long as nothing is being measured."""
        return netns.members([self.a.namespace, self.b.namespace])

    def lose(self, percent: float) -> None:
        """From now on the router drops this share of all packets, in either direction; at random, one by one."""
        share = round(percent * 1000)
        rule = "drop" if share >= 100_000 else f"numgen random mod 100000 < {share} drop" if share else ""
        self._filter("impair", rule)

    def part(self, parted: bool = True) -> None:
        """From now on the router drops all UDP between A and B, or no longer."""
        both = ((_NET_A, _NET_B), (_NET_B, _NET_A)) if parted else ()
        self._filter("part", *(f"ip saddr {source} ip daddr {target} ip protocol udp drop" for source, target in both))

    def block_udp(self) -> None:
        """From now on the router drops all UDP."""
        self._filter("part", "ip protocol udp drop")

    def without_offloads(self) -> None:
        """From now on every frame on A's and on B's cable is one datagram, so that each is lost alone."""
        for host, device in ((self.a, "eth0"), (self.router, "to-a"), (self.router, "to-b"), (self.b, "eth0")):
            _without_offloads(host, device)

    def hosts(self) -> tuple[Host, ...]:
        """All machines, the router last."""
        return self.a, self.b, self.router

    def stop(self) -> None:
        """End all that runs here; the namespaces go with the lab."""
        here = {host.namespace for host in self.hosts()}
        for process in self.lab.processes:
            if process.returncode is None and any(netns.lives_in(process.pid, namespace) for namespace in here):
                process.stop()
        if self._wire is not None:
            self._wire.stop()

    def _filter(self, table: str, *rules: str) -> None:
        """Put rules of the router in the place of those that this table had."""
        self.router.run(["nft", "-f", "-"], text=_RULES.format(table=table, rules="\n".join(f"  {rule}" for rule in rules)))

    def _lay_delayed_wire(self, rtt_ms: float) -> None:
        middle = self._middle = Host(self.lab, f"{self.label}-wire", "", None)
        _cable(middle, "left", self.a, "eth0")
        _cable(middle, "right", self.router, "to-a")
        netns.configure(middle.namespace, "link set left up promisc on", "link set right up promisc on")
        for name in ("all", "default", "left", "right"):
            netns.set_kernel(middle.namespace, f"ipv6.conf.{name}.disable_ipv6", 1)
        argv = [sys.executable, "-m", "benchmarks.dataplane.wire", "left", "right", str(rtt_ms / 2)]
        wire = self._wire = middle.start(argv, "wire.log", environment())
        wait_for(f"the delayed wire of {self.label}", 10, lambda: "ready" in wire.output)


class Triangle(Pair):
    """A pair, and a third machine R at the same router: a relay for those that the router parts."""

    def __init__(self, lab: Lab, label: str, congestion: str = "") -> None:
        super().__init__(lab, label, congestion=congestion)
        self.r = Host(lab, f"{label}-r", R_ADDRESS, R_ADDRESS)
        _cable(self.router, "to-r", self.r, "eth0")
        _machine(self.r, R_ADDRESS, _ROUTER_R)
        netns.configure(self.router.namespace, f"addr add {_ROUTER_R}/24 dev to-r", "link set to-r up")

    def hosts(self) -> tuple[Host, ...]:
        """All machines, the router last."""
        return self.a, self.b, self.r, self.router

    def count_hellos(self) -> None:
        """From now on the router counts the first flights of handshakes (DTLS ClientHello)."""
        self._filter("hellos", f"{_CLIENT_HELLO} counter")

    def hellos(self) -> int:
        """How many there were. A handshake has two, for the cookie; one that goes over a relay is hidden in it."""
        rules = json.loads(self.router.run(["nft", "-j", "list", "table", "ip", "hellos"]).stdout)["nftables"]
        counters = [part["counter"] for rule in rules for part in rule.get("rule", {}).get("expr", ()) if "counter" in part]
        return sum(int(counter["packets"]) for counter in counters)

    def pids(self) -> list[int]:
        """Those on A, B and R."""
        return netns.members([self.a.namespace, self.b.namespace, self.r.namespace])


def _cable(one: Host, one_device: str, other: Host, other_device: str) -> None:
    netns.configure(one.namespace, f"link add {one_device} type veth peer name {other_device} netns {other.namespace}")


def _machine(host: Host, address: str, gateway: str) -> None:
    # No IPv6 below: a system that prefers it would not be measured on the same way as the others.
    netns.set_kernel(host.namespace, "ipv6.conf.eth0.disable_ipv6", 1)
    netns.configure(host.namespace, f"addr add {address}/24 dev eth0", "link set eth0 up", f"route add default via {gateway}")


def _without_offloads(host: Host, device: str) -> None:
    for offload in OFFLOADS:  # one by one: no device knows all of them
        host.run(["ethtool", "-K", device, offload, "off"], check=False)
