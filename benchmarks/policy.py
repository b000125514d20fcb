"""`python -m benchmarks.policy`: what rules cost a TCP stream, as root.

One pair of daemons; before each stream the network's policy is removed, or set to one whose last rule allows the stream, in turns.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from benchmarks.command import command
from benchmarks.dataplane import measure, packages
from benchmarks.dataplane.report import median
from benchmarks.dataplane.systems import IpopTx
from benchmarks.dataplane.underlay import Pair
from ipop_tx.lab import Lab, netns, wait_for
from ipop_tx.lab.node import LabNode


@command("policy")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; gives the exit status."""
    options = _parser().parse_args(argv)
    netns.require_root_and(())
    packages.require(packages.TOOLS)
    found: dict[int, list[measure.Stream]] = {0: [], options.rules: []}
    with Lab("policy") as lab:
        pair = Pair(lab, "policy", 0)
        system = IpopTx()
        try:
            target = system.start(pair)
            measure.tcp(pair, target, 1)  # the path, the caches and the MTU settle
            for number in range(options.rounds):
                for rules in list(found)[:: -1 if number % 2 else 1]:
                    _set(system.nodes, rules)
                    found[rules].append(measure.tcp(pair, target, options.seconds))
        finally:
            pair.stop()
    report = summary(found[0], found[options.rules], options.rules)
    print(json.dumps(report) if options.json else "\n".join(f"{name}  {value}" for name, value in report.items()), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.policy", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--rules", type=int, default=64, help="rules of the policy (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=5, help="length of a stream (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: %(default)s)")
    return parser


def rules_text(count: int) -> str:
    """A policy of so many rules, of which only the last one allows anything between the two."""
    rules = [f'[[allow]]\nfrom = "192.0.2.{number}"\nprotocol = "tcp"\nports = {2000 + number}\n' for number in range(count - 1)]
    return "\n".join(['default = "deny"', *rules, '[[allow]]\nprotocol = ["tcp", "icmp"]\n'])


def summary(without: Sequence[measure.Stream], with_rules: Sequence[measure.Stream], rules: int) -> dict[str, float | None]:
    """Medians, and the ratios of each round's two streams: of throughput, and of CPU seconds for a gigabyte."""
    pairs = list(zip(without, with_rules, strict=True))
    return {
        "rules": rules,
        "gbps_without": median([one.gbps for one in without]),
        "gbps_with": median([one.gbps for one in with_rules]),
        "throughput_ratio": median([other.gbps / one.gbps for one, other in pairs]),
        "cpu_ratio": median([other.cpu_s_per_gb / one.cpu_s_per_gb for one, other in pairs]),
    }


def _set(nodes: Sequence[LabNode], rules: int) -> None:
    """Change the policy at B, which has founded the network, and wait until both have it."""
    authority = nodes[1]
    socket = str(authority.socket)
    if rules:
        file = authority.directory / "policy.toml"
        file.write_text(rules_text(rules))
        authority.ipop("policy", "set", str(file), "--socket", socket)
    else:
        authority.ipop("policy", "remove", "--socket", socket)
    version = authority.request("GET", "/policy", None)["version"]
    for node in nodes:
        wait_for("the policy", 20, lambda node=node: node.request("GET", "/policy", None)["version"] == version)  # type: ignore[misc]


if __name__ == "__main__":
    sys.exit(main())
