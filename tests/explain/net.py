"""The network in which faults are planted: one lab for all of them."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from ipop_tx.identity.authority import install_chain, make_request, sign_request
from ipop_tx.identity.certificates import MEMBER_LIFETIME
from ipop_tx.identity.state import StateDirectory
from ipop_tx.lab import Lab, Nat, wait_for
from ipop_tx.lab.node import LabNode
from ipop_tx.lab.process import Process
from ipop_tx.lab.topology import Host

BRIEF = 40.0
"""Seconds for which the certificate of `Net.old` is good."""
SHELL = 'cp -a "$0" "$0.copy"; mount -t tmpfs -o size=4m none "$0"; cp -a "$0.copy/." "$0"; exec "$@"'
SERVE = """import socket
with socket.create_server(("", 22)) as door:
    while True:
        door.accept()[0].close()
"""


class FaultyNode(LabNode):
    """A daemon with a fault of its own, one of `daemon.CHANGES`."""

    change = ""

    def start(self, *wrapper: str) -> Process:
        """See `LabNode.start`."""
        changed = (sys.executable, "-m", "tests.explain.daemon", self.change) if self.change else ()
        return super().start(*wrapper, *changed)


class Net:
    """All nodes are started at once, and waited for when a fault needs them. `laptop` asks, `server` is asked about."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.nodes: dict[str, LabNode] = {}
        self.founder = LabNode(lab.public_host("founder"))
        self.old_ends = 0.0
        """When the certificate of `old` does."""

    def start(self) -> None:
        """Whoever has something special stands first, since it takes longest."""
        self.founder.create("lab")
        self.founder.keys["listen.tls"] = {"port": 443}
        self.founder.start()
        self.founder.wait_until_up()
        shut = self._joined("shut", self.lab.site("office", Nat.UDP_BLOCKED).host("shut"))
        shut.keys["node"]["bootstrap"] = [f"tls:{self.founder.host.address}:443"]
        shut.start()
        laptop = self._joined("laptop")
        file = laptop.directory / "resolv.conf"
        file.write_text("nameserver 127.0.0.153\n")
        laptop.keys["dns"] = {"listen": "127.0.0.153:53", "system": "none", "resolv_conf": str(file)}
        laptop.start()
        server = self._joined("server")
        server.start()
        server.host.start([sys.executable, "-c", SERVE], log="serve.log")
        cramped = self._joined("cramped")
        cramped.start("sh", "-c", SHELL, str(cramped.state))
        for name, change in (("brief", "brief_lease"), ("lawless", "lawless"), ("early", "wrong_clock")):
            self._joined(name, change=change).start()
        for name in ("left", "right"):
            self._joined(name, self.lab.site(f"{name}-site", Nat.SYMMETRIC).host(name)).start()
        for name in ("gone", "down", "lonely"):
            self._joined(name).start()
        self._start_old()

    def _joined(self, name: str, host: Host | None = None, change: str = "") -> FaultyNode:
        node = self.nodes[name] = FaultyNode(host or self.lab.public_host(name))
        node.change = change
        node.join(self.founder.invite(name))
        return node

    def _start_old(self) -> None:
        """A member whose certificate ends soon."""
        node = self.nodes["old"] = FaultyNode(self.lab.public_host("old"))
        node.change = "unrenewed"
        state = StateDirectory(node.state)
        self.old_ends = time.time() + BRIEF
        request = make_request(state, "old")
        install_chain(state, sign_request(StateDirectory(self.founder.state), request, "old", wall=self.old_ends - MEMBER_LIFETIME))
        node.keys["node"]["bootstrap"] = [f"udp:{self.founder.host.address}:4500"]
        node.start()

    def ready(self, name: str) -> LabNode:
        """A node, once it is up."""
        self.nodes[name].wait_until_up(60)
        return self.nodes[name]

    @property
    def laptop(self) -> LabNode:
        """Its resolver asks it."""
        return self.nodes["laptop"]

    @property
    def server(self) -> LabNode:
        """Something listens to tcp/22 there."""
        return self.nodes["server"]

    def inside(self, node: LabNode, *words: str) -> None:
        """Run a program where the node's disk is."""
        assert node.process is not None
        node.host.run(["nsenter", "-t", str(node.process.pid), "-m", *words], check=False)

    def explain(self, node: LabNode, *words: str, probe: bool = False) -> dict[str, Any]:
        """What `ipop explain` says there."""
        options = ("--probe",) if probe else ()
        where = ("--config", str(node.config))
        _, out, told = node.ipop("explain", *words, *options, "--json", *where, check=False, timeout=60)
        if not out:
            raise AssertionError(told)
        found: dict[str, Any] = json.loads(out)
        return found

    def codes(self, found: dict[str, Any]) -> list[str]:
        """The codes of the faults in it."""
        return [one["code"] for one in found["steps"] if one["verdict"] == "fault"]

    def policy(self, text: str, *nodes: LabNode) -> None:
        """Set the network's policy (empty: none), and wait until these nodes have it."""
        version = self.founder.request("POST", "/policy", {"text": text})["version"]
        for node in (self.founder, *nodes):
            wait_for("the policy", 20, lambda node=node: node.request("GET", "/policy")["version"] == version)  # type: ignore[misc]

    def firewall(self, host: Host, rules: str) -> None:
        """Let a host's kernel drop something; empty: nothing."""
        host.run(["nft", "-f", "-"], text=f"table ip faults\ndelete table ip faults\n{rules}")
