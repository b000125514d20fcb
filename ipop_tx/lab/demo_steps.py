"""The demo itself: what it builds, does and measures, in order."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from itertools import combinations, permutations

from ipop_tx.errors import EnvironmentProblem
from ipop_tx.lab.demo_report import Report
from ipop_tx.lab.nat import Nat
from ipop_tx.lab.node import LabNode, program
from ipop_tx.lab.story import Story
from ipop_tx.lab.topology import Host, Lab, Site
from ipop_tx.lab.traffic import Overlay, Watch, fetch, overlay, unreached

PATIENCE = 8.0
"""Seconds that a pair has to reach each other, after its first ping."""
RECOVERY = 20.0
"""The same, after a node was killed."""
WATCH = 10.0
"""Seconds of pings around the kill."""

CHROMIUM = "chromium --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"


class Demo:
    """A public founder, a cloud, a campus, a home; then the founder dies and a newcomer joins through `cloud1`."""

    def __init__(self, lab: Lab, story: Story, megabytes: int) -> None:
        self._lab = lab
        self._story = story
        self._megabytes = megabytes
        self.report = Report(file_megabytes=megabytes)
        self.nodes: list[LabNode] = []
        """Those that run, in the order in which they joined; the founder first, until it is killed."""
        self._overlay: dict[str, Overlay] = {}

    def run(self) -> None:
        """All steps. Raises `IpopError` when one cannot be done; `report` has what was found until then."""
        with self._story.step("A small internet, made of network namespaces on this machine, with no way out"):
            hosts = self._build()
        with self._story.step("The founder creates a network; every other node joins with an invitation"):
            self._gather(hosts)
        with self._story.step("Every node pings every other, over IPv4 and IPv6"):
            self._ping_all()
        with self._story.step(f"{self._megabytes} MB by curl, from a node behind one NAT to a node behind another"):
            self._transfer()
        with self._story.step("The founder is killed (SIGKILL), and it was everybody's bootstrap"):
            self._kill_founder()
        with self._story.step("A new node joins all the same, invited by another member"):
            self._newcomer()

    def _build(self) -> list[Host]:
        lab = self._lab
        founder = lab.public_host("founder")
        cloud = lab.site("cloud", Nat.ONE_TO_ONE)
        campus = lab.site("campus", Nat.PORT_RESTRICTED)
        self._home: Site = lab.site("home", Nat.PORT_RESTRICTED)
        inner = [cloud.host("cloud1"), cloud.host("cloud2"), campus.host("campus1"), campus.host("campus2")]
        inner += [self._home.host("home1"), self._home.host("home2")]
        rows = [["founder", founder.address, founder.address, "public"]]
        rows += [[host.name, host.address, host.public or host.site.outer_address, str(host.site.nat)] for host in inner]
        self._story.table(["machine", "own address", "seen as", "router"], rows)
        return [founder, *inner]

    def _gather(self, hosts: list[Host]) -> None:
        founder = LabNode(hosts[0])
        founder.create("demo")
        self._start(founder, "created the network demo")
        for host in hosts[1:]:
            # Appointed: may admit others as well, so that the founder is not needed for that either.
            token = founder.invite(host.name, *(["--appoint"] if host.name == "cloud1" else []))
            node = LabNode(host)
            node.join(token)
            self._start(node, "invited by founder" + (", and appointed to admit others" if host.name == "cloud1" else ""))
        self.report.nodes = len(self.nodes)

    def _start(self, node: LabNode, how: str) -> float:
        began = time.monotonic()
        node.start()
        node.wait_until_up()
        seconds = time.monotonic() - began
        own = self._overlay[node.name] = overlay(node)
        self.nodes.append(node)
        self.report.join_seconds.append(seconds)
        self._story.say(f"{node.name:8} {own.ipv4:15} {own.ipv6}  up {seconds:.2f} s after its start; {how}")
        return seconds

    def _ping_all(self) -> None:
        report = self.report
        for a, b in combinations(self.nodes, 2):
            answer = a.ping(self._ipv4(b))
            if answer is None:
                report.first_pings_lost += 1
                self._story.say(f"the first ping {a.name} -> {b.name} was not answered")
            else:
                report.first_pings.append(answer)
        if report.first_pings:
            self._story.say(
                f"the very first ping of each of {len(report.first_pings)} pairs was answered after"
                f" {statistics.median(report.first_pings):.1f} ms (median), {max(report.first_pings):.1f} ms (longest)"
            )
        report.pairs, report.pairs_reached = self._reach("IPv4", self.nodes, ipv6=False)
        report.ipv6_pairs_reached = self._reach("IPv6", self.nodes, ipv6=True)[1]
        report.paths = self._paths()
        self._story.say("paths: " + ", ".join(f"{count} {kind}" for kind, count in report.paths.items()))

    def _reach(self, what: str, nodes: list[LabNode], *, ipv6: bool, seconds: float = PATIENCE) -> tuple[int, int]:
        """(ordered pairs, those that reach each other)."""
        pairs = list(permutations(nodes, 2))
        missing = unreached(pairs, self._ipv6 if ipv6 else self._ipv4, seconds)
        self._story.say(f"{what}: {len(pairs) - len(missing)} of {len(pairs)} pairs reached" + _named(missing))
        return len(pairs), len(pairs) - len(missing)

    def _paths(self) -> dict[str, int]:
        """How many ordered pairs go directly, over a relay, or have no path now."""
        kinds = Counter(a.path_to(b).split()[0] for a, b in permutations(self.nodes, 2))
        return {kind: kinds[kind] for kind in ("direct", "relay", "idle", "unknown") if kinds[kind] or kind in ("direct", "relay")}

    def _transfer(self) -> None:
        server, client = self._node("campus1"), self._node("home1")
        moved = fetch(server, client, self._ipv4(server), self._megabytes)
        path = client.path_to(server)
        self.report.file_ok, self.report.file_seconds, self.report.file_path = moved.good, moved.seconds, path
        verdict = "SHA-256 is the same" if moved.good else "SHA-256 DIFFERS"
        self._story.say(f"campus1 -> home1 in {moved.seconds:.1f} s, {moved.mbit_per_second:g} Mbit/s, {verdict}")
        self._story.say(f"path: {path}")

    def _kill_founder(self) -> None:
        founder = self.nodes.pop(0)
        watch = Watch(self.nodes, self._ipv4, WATCH + 1)
        time.sleep(1)  # a second of peace first, so that every watch has begun
        killed = time.time()
        founder.kill9()
        after = self.report.after_kill
        after.outages = list(watch.outages(killed).values())
        if after.outages:
            self._story.say(
                f"silence between the others: {statistics.median(after.outages):.2f} s (median), {max(after.outages):.2f} s (longest)"
            )
        after.pairs, after.pairs_reached = self._reach("the others, IPv4", self.nodes, ipv6=False, seconds=RECOVERY)

    def _newcomer(self) -> None:
        after = self.report.after_kill
        inviter, others = self._node("cloud1"), list(self.nodes)
        node = LabNode(self._home.host("laptop"))
        node.join(inviter.invite(node.name))
        after.join_seconds = self._start(node, "invited by cloud1")
        self.report.join_seconds.pop()  # told apart: the ring was just wounded
        after.joined = True
        pairs = [pair for other in others for pair in ((node, other), (other, node))]
        missing = unreached(pairs, self._ipv4, PATIENCE)
        after.newcomer_pairs, after.newcomer_pairs_reached = len(pairs), len(pairs) - len(missing)
        self._story.say(f"{after.newcomer_pairs_reached} of {after.newcomer_pairs} pairs with the new node reached" + _named(missing))

    def _node(self, name: str) -> LabNode:
        for node in self.nodes:
            if node.name == name:
                return node
        raise EnvironmentProblem(f"{name} does not run")

    def _ipv4(self, node: LabNode) -> str:
        return self._overlay[node.name].ipv4

    def _ipv6(self, node: LabNode) -> str:
        return self._overlay[node.name].ipv6

    def hints(self) -> list[tuple[str, str]]:
        """What a person may do with a demo that was kept: (what, the command)."""
        found = [("see logs and files", f"ls {self._lab.scratch}/*")]
        if len(self.nodes) < 2:
            return found
        node, other = self.nodes[-1], self.nodes[-2]
        enter, there = (f"ip netns exec {n.host.namespace}" for n in (node, other))
        web = self._ipv4(other)
        return [
            (f"a shell on {node.name}", f"{enter} bash"),
            ("its status", f"{' '.join(program('ipop'))} status --socket {node.socket}"),
            ("ping another node", f"{enter} ping {web}"),
            (f"a web page on {other.name}", f"{there} python3 -m http.server --bind {web} 8000"),
            (f"a browser on {node.name}", f"{enter} {CHROMIUM} --user-data-dir={node.directory / 'chromium'} http://{web}:8000/"),
            *found,
        ]


def _named(missing: list[tuple[str, str]]) -> str:
    return "; not reached: " + ", ".join(f"{a} -> {b}" for a, b in missing) if missing else ""
