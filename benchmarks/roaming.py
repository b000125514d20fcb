"""`python -m benchmarks.roaming`: what happens to a running transfer when networks change beneath it, in the lab, as root.

Two members behind two NATs, two public ones. While a TCP stream goes from one to the other and pings besides, the router of one forgets its
mappings and gives other ports, reboots, the machine changes to another access network, its daemon is suspended; then both NATs become such
that they need a relay, and the relay is killed. docs/performance.md has the keys of the result.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from benchmarks.command import command
from benchmarks.dataplane.report import table
from benchmarks.streams import Steady
from ipop_tx.errors import IpopError
from ipop_tx.lab import Lab, Nat, Site, netns, wait_for
from ipop_tx.lab.node import LabNode
from ipop_tx.lab.process import Process

ANSWERED_MOST, DIRECT_MOST = 6.5, 10.0
"""Seconds until pings are answered again, and until the path is direct again."""
PATIENCE = 75.0
"""Seconds after which nothing is waited for any more."""
QUIET = 8.0
"""Seconds between two events."""
DARK, SUSPENDED = 4.0, 15.0
"""Seconds that a router takes to reboot, and a daemon is stopped."""
PORT = 7000
INTERVAL = 0.1


@dataclass
class Change:
    """What came of one event. Seconds count from its end: the router is up again, the machine awake."""

    event: str
    answered_s: float | None
    """Until pings were answered steadily again."""
    settled_s: float | None
    """Until the path was as it should be: direct, or over a relay that lives."""
    path: str
    within: bool


@command("roaming", "interrupted; everything was removed")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; gives the exit status: 0 only when all was in time and the checksum right."""
    options = _parser().parse_args(argv)
    netns.require_root_and(("ip", "ping", "nft", "conntrack"))
    with Lab("roaming") as lab:
        found = run(lab, options.events)
    print(json.dumps(found) if options.json else text(found), flush=True)
    return 0 if found["ok"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.roaming", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, instead of a table")
    parser.add_argument("--events", nargs="+", choices=EVENTS, default=list(EVENTS), metavar="EVENT", help=f"some of {', '.join(EVENTS)}")
    return parser


class Roaming:
    """The lab, the pair in it, and what runs between the two."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.relays = [LabNode(lab.public_host(name)) for name in ("relay1", "relay2")]
        self.campus, self.home = lab.site("campus", Nat.PORT_RESTRICTED), lab.site("home", Nat.PORT_RESTRICTED)
        self.lte: Site | None = None
        self.left, self.right = LabNode(self.campus.host("left")), LabNode(self.home.host("right"))
        self.killed: LabNode | None = None
        founder = self.relays[0]
        founder.create("roaming")
        founder.start()
        founder.wait_until_up()
        for node in (self.relays[1], self.left, self.right):
            node.enter(founder)
        self.left.reaches(self.right.address)
        self.left.wait_for_path(self.right, lambda path: path.startswith("direct"), 60)
        self._settle()

    def _settle(self) -> None:
        """Every member has a copy of every part of the DHT."""
        nodes = [*self.relays, self.left, self.right]

        def full() -> bool:
            return all(dht["shards"] == dht["of"] for dht in (node.status()["self"]["dht"] for node in nodes))

        wait_for("a full copy on every node", 60, full, every=0.5)

    def begin(self) -> None:
        """The stream and the pings."""
        address = self.right.address
        self.stream = Steady(self.right.host, address, self.left.host, PORT)
        self.pings: Process = self.left.host.start(["ping", "-n", "-D", f"-i{INTERVAL}", address], "pings.log")

    def end(self) -> dict[str, Any]:
        """What came of the stream."""
        self.pings.stop()
        sent, received = self.stream.end()
        return {**received, "whole": (sent["bytes"], sent["sha256"]) == (received["bytes"], received["sha256"])}

    def answers(self) -> list[float]:
        """When pings were answered, in Unix time."""
        return [float(moment) for moment in re.findall(r"^\[([\d.]+)\] \d+ bytes from", self.pings.output, re.MULTILINE)]

    def path(self) -> str:
        """How traffic goes from left to right, as the left daemon says."""
        with suppress(IpopError):
            return self.left.path_to(self.right)
        return "unknown"

    def dead(self) -> str:
        """What no path may name: the relay that was killed."""
        return self.killed.name if self.killed is not None else ""

    # --- events: each gives when it was over, and what path should follow -----------------------

    def rebinding(self) -> None:
        """The router forgets every mapping, and gives other ports from now on."""
        self.campus.set_nat(Nat.PORT_CHANGING if self.campus.nat == Nat.PORT_RESTRICTED else Nat.PORT_RESTRICTED)

    def reboot(self) -> None:
        """The router is away for some seconds, and knows nothing when it is back."""
        netns.configure(self.campus.router.namespace, "link set lan down")
        time.sleep(DARK)
        self.campus.forget_mappings()
        netns.configure(self.campus.router.namespace, "link set lan up")

    def lte_switch(self) -> None:
        """Another interface, another address, another NAT."""
        self.lte = self.lte or self.lab.site("lte", Nat.PORT_RESTRICTED)
        host, address = self.left.host, self.lte.new_address()
        self.lte.attach(host.namespace, "wwan0")
        netns.configure(
            host.namespace,
            f"addr add {address}/24 dev wwan0",
            "link set wwan0 up",
            "link set eth0 down",
            f"route replace default via {self.lte.gateway} dev wwan0",
        )
        self.campus = self.lte

    def suspend(self) -> None:
        """The daemon does nothing for a while."""
        assert self.left.process is not None
        self.left.process.send(signal.SIGSTOP)
        time.sleep(SUSPENDED)
        self.left.process.send(signal.SIGCONT)

    def relay_killed(self) -> None:
        """Both NATs become symmetric; once a relay carries everything it is killed."""
        for site in (self.campus, self.home):
            site.set_nat(Nat.SYMMETRIC)
        names = [relay.name for relay in self.relays]
        wait_for("a relay", 60, lambda: self.path().removeprefix("relay via ") in names and self._spares() > 1, 0.2)
        time.sleep(QUIET)
        self.killed = next(relay for relay in self.relays if self.path().endswith(relay.name))
        self.killed.kill9()

    def _spares(self) -> int:
        """Relays that either end knows to work, at the end that knows fewer."""
        pairs = ((self.left, self.right), (self.right, self.left))
        return min(len(peer["relays"]) for one, other in pairs for peer in one.status()["peers"] if peer["name"] == other.name)

    def as_wanted(self, path: str) -> bool:
        """Whether a path is the best that there can be now."""
        return path.startswith("direct") if self.killed is None else path.startswith("relay via relay") and self.killed.name not in path


EVENTS: dict[str, Callable[[Roaming], None]] = {
    "rebinding": Roaming.rebinding,
    "reboot": Roaming.reboot,
    "lte": Roaming.lte_switch,
    "suspend": Roaming.suspend,
    "relay-killed": Roaming.relay_killed,
}


def run(lab: Lab, events: Sequence[str]) -> dict[str, Any]:
    """All of it. Raises `IpopError` when the pair does not come up."""
    pair = Roaming(lab)
    pair.begin()
    changes = []
    for event in events:
        time.sleep(QUIET)
        changes.append(_happens(pair, event))
        print(f"roaming: {changes[-1]}", file=sys.stderr, flush=True)
    transfer = pair.end()
    return {
        "changes": [asdict(change) for change in changes],
        "transfer": transfer,
        "ok": bool(transfer["whole"]) and all(change.within for change in changes),
    }


def _happens(pair: Roaming, event: str) -> Change:
    EVENTS[event](pair)
    over, settled = time.time(), None
    while time.time() < over + PATIENCE:
        answers = pair.answers()
        alive = bool(answers) and answers[-1] > max(over + 3 * INTERVAL, time.time() - 5 * INTERVAL)
        if alive and pair.as_wanted(pair.path()):
            settled = round(time.time() - over, 1)
            break
        time.sleep(0.05)
    time.sleep(3.0)
    answered = _steady(pair.answers(), over)
    within = answered is not None and answered <= ANSWERED_MOST and settled is not None and settled <= DIRECT_MOST
    return Change(event, answered, settled, pair.path(), within)


def _steady(answers: Sequence[float], over: float) -> float | None:
    """Seconds from `over` until answers came without a gap of a second; None if they do not yet."""
    moments = [over, *(moment for moment in answers if moment > over)]
    if len(moments) < 2 or time.time() - moments[-1] > 1.0:
        return None
    gaps = [later for earlier, later in pairwise(moments) if later - earlier > 1.0]
    return round((gaps[-1] if gaps else moments[1]) - over, 1)


def text(found: dict[str, Any]) -> str:
    """For people."""
    rows = [
        [one["event"], *("never" if one[key] is None else f"{one[key]:.1f} s" for key in ("answered_s", "settled_s")), one["path"]]
        for one in found["changes"]
    ]
    transfer = found["transfer"]
    checksum = "right" if transfer["whole"] else "WRONG"
    end = f"{transfer['bytes'] / 1e6:.0f} MB, longest wait {transfer['longest_wait_s']} s, checksum {checksum}"
    return table([["event", "answered after", "settled after", "path"]], rows) + "\n\n" + end


if __name__ == "__main__":
    sys.exit(main())
