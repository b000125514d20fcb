"""`python -m benchmarks.idle`: what a direct path between two members that say nothing costs, and whether their NATs keep it open, as root.

Pairs behind port-restricted NATs that forget a mapping after 10, 30 and 60 s, in a network in which they are no ring neighbours. Once
each daemon has learnt what its router does, the pairs are silent, and everything between them is counted at the router. Then one ping: it
must be answered over the path that was there before. docs/nat.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

from benchmarks.command import command
from benchmarks.dataplane.report import table
from ipop_tx.errors import EnvironmentProblem, IpopError
from ipop_tx.lab import Lab, Nat, Site, netns, wait_for
from ipop_tx.lab.node import LabNode

LIFETIMES = (10, 30, 60)
"""Seconds."""
EACH, PUBLIC = 4, 6
"""Members behind NATs of each lifetime, of whom two are taken that are no neighbours; and members without a NAT."""
WATCHED = 2
"""Neighbours on either side that are challenged more often."""
LEARNS = 300.0
SETTLES = 65.0
"""Seconds after the last frame until a path's MTU is watched no more."""
SILENCE = 50.0
"""Seconds of silence then: links that nobody uses end after 120 s."""
COUNT = """
table ip counted {{
 chain through {{ type filter hook forward priority 10;
  ip saddr {other} counter
  ip daddr {other} counter
 }}
}}
"""


@dataclass
class Member:
    """One behind a NAT."""

    site: Site
    node: LabNode


@command("idle", "interrupted; everything was removed")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; gives the exit status: 0 only when every path was held."""
    options = _parser().parse_args(argv)
    netns.require_root_and(("ip", "nft", "conntrack"))
    with Lab("idle") as lab:
        found = run(lab, options.lifetimes, options.seconds)
    print(json.dumps({"pairs": found}) if options.json else text(found), flush=True)
    return 0 if all(one["held"] for one in found) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench-idle", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, instead of a table")
    parser.add_argument("--lifetimes", type=int, nargs="+", default=LIFETIMES, metavar="SECONDS", help="of mappings (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=SILENCE, help="of silence, 50 at most (default: %(default)g)")
    return parser


def say(words: str) -> None:
    """Progress, for whoever waits."""
    print(f"idle: {words}", file=sys.stderr, flush=True)


def run(lab: Lab, lifetimes: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """All pairs at the same time; an entry for each. Raises `IpopError` when they do not even come up."""
    founder, *others = [LabNode(lab.public_host(f"p{number}")) for number in range(PUBLIC)]
    founder.create("idle")
    founder.start()
    founder.wait_until_up()
    members = {lifetime: [_member(lab, lifetime, number) for number in range(EACH)] for lifetime in lifetimes}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda node: node.enter(founder, seconds=60), [*others, *(one.node for group in members.values() for one in group)]))
    say(f"{PUBLIC + EACH * len(lifetimes)} have joined; what do the routers do?")
    time.sleep(1.3 * max(lifetimes))
    for group in members.values():
        for one in group:
            wait_for(f"what the router of {one.node.name} does", LEARNS, partial(_has_learnt, one.node), every=10)
    pairs = {lifetime: _strangers(group) for lifetime, group in members.items()}
    for one, other in pairs.values():
        _meet(one, other)
    time.sleep(SETTLES)
    for one, other in pairs.values():
        one.site.router.run(["nft", "-f", "-"], text=COUNT.format(other=other.site.outer_address))
    say(f"{seconds:g} s of silence")
    time.sleep(seconds)
    return [_found(lifetime, one, other, seconds) for lifetime, (one, other) in pairs.items()]


def _member(lab: Lab, lifetime: int, number: int) -> Member:
    site = lab.site(f"s{lifetime}x{number}", Nat.PORT_RESTRICTED)
    for key in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
        netns.set_kernel(site.router.namespace, f"netfilter.{key}", lifetime)
    node = LabNode(site.host(f"m{lifetime}x{number}"))
    node.keys["nat"] = {"port_mapping": False}  # there is none, and a check would look for it each time
    return Member(site, node)


def _has_learnt(node: LabNode) -> bool:
    found = node.request("POST", "/netcheck", {}, timeout=40)["lifetime_s"]
    return bool(found["less_than"])


def _strangers(group: Sequence[Member]) -> tuple[Member, Member]:
    """Two that are no ring neighbours."""
    for one, other in combinations(group, 2):
        if not _neighbours(one.node, other.node) and not _neighbours(other.node, one.node):
            return one, other
    raise EnvironmentProblem("all members with one lifetime are neighbours", "run it again")


def _neighbours(one: LabNode, other: LabNode) -> bool:
    return other.name in one.status()["self"]["ring"]["successors"][:WATCHED]


def _meet(one: Member, other: Member) -> None:
    if not one.node.reaches(other.node.address):
        raise EnvironmentProblem(f"{one.node.name} and {other.node.name} do not reach each other", "see their logs")
    for node, peer in ((one.node, other.node), (other.node, one.node)):
        node.wait_for_path(peer, lambda path: path.startswith("direct"))


def _found(lifetime: int, one: Member, other: Member, seconds: float) -> dict[str, Any]:
    rules = json.loads(one.site.router.run(["nft", "-j", "list", "table", "ip", "counted"]).stdout)["nftables"]
    counters = [part["counter"] for rule in rules for part in rule.get("rule", {}).get("expr", ()) if "counter" in part]
    path = one.node.path_to(other.node)
    try:
        answered = one.node.ping(other.node.address, 1.0) is not None
        after = one.node.path_to(other.node)
    except IpopError as error:
        say(str(error))
        answered, after = False, "unknown"
    found = {
        "lifetime_s": lifetime,
        "datagrams": sum(int(counter["packets"]) for counter in counters),
        "bytes_per_s": round(sum(int(counter["bytes"]) for counter in counters) / seconds, 2),
        "path": path,
        "held": answered and path.startswith("direct") and after == path,
    }
    say(json.dumps(found))
    return found


def text(found: Sequence[dict[str, Any]]) -> str:
    """For people."""
    head = ["mapping lives, s", "datagrams", "bytes/s, both ways", "path", "held"]
    return table(
        [head],
        [[*(str(one[key]) for key in ("lifetime_s", "datagrams", "bytes_per_s", "path")), "yes" if one["held"] else "no"] for one in found],
    )


if __name__ == "__main__":
    sys.exit(main())
