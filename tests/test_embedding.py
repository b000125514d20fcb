"""The example of docs/embedding.md runs: two applications on loopback, each with a node inside, no root, no TAP."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from twisted.application.service import IService
from twisted.trial import unittest
from zope.interface.verify import verifyObject

from ipop_tx import Node, load_config
from ipop_tx.app import found_network, tap_mtu
from ipop_tx.cli.daemon import Daemon
from ipop_tx.cli.membership import pool_range
from ipop_tx.config import parse_config
from ipop_tx.errors import EnvironmentProblem, IpopError
from ipop_tx.forwarding.mtu import inner_mtu
from ipop_tx.identity.authority import Admitter, install_chain, make_request, sign_request
from ipop_tx.identity.certificates import fingerprint
from ipop_tx.identity.state import StateDirectory
from ipop_tx.interfaces import IDHT, IAddressPool, IBroadcast, IPuncher, IResolver, IStatus
from ipop_tx.lab import Process, wait_for
from ipop_tx.lab.node import environment, program, to_toml
from ipop_tx.transport.interfaces import largest_mtu

EXAMPLE = Path(__file__).parents[1] / "examples" / "embed.py"


class MtuTests(unittest.SynchronousTestCase):
    """The MTU of the TAP."""

    def test_as_configured_or_as_fits(self) -> None:
        """A number counts; without one the interfaces and the family of the socket decide."""
        for text, mtu in (
            ("[tap]\nmtu = 1444", 1444),
            ("", inner_mtu(largest_mtu(), ipv6=False)),
            ('[listen]\nudp = "[::]:4500"', inner_mtu(largest_mtu(), ipv6=True)),
        ):
            self.assertEqual(tap_mtu(parse_config(f'[node]\nstate = "/s"\n{text}', Path("n.toml"))), mtu)


class EmbeddingCase(unittest.SynchronousTestCase):
    """Nodes under the application of docs/embedding.md, on loopback."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ipop-embedding-"))  # a unix socket's path must be short
        self.addCleanup(shutil.rmtree, self.directory)

    def found(self, name: str) -> StateDirectory:
        """The state of a new network's first node."""
        state = StateDirectory(self.directory / f"{name}-state")
        found_network(state, "embedded", pool_range("10.128.0.0/16"), name)
        return state

    def admitted(self, name: str, founder: StateDirectory) -> StateDirectory:
        """The state of one more member, signed on the founder's machine without a daemon."""
        state = StateDirectory(self.directory / f"{name}-state")
        chain = sign_request(founder, make_request(state, name), "")
        install_chain(state, chain, fingerprint(Admitter.load(founder).root))
        return state

    def configured(self, name: str, state: StateDirectory, *bootstrap: str) -> Path:
        """A node.toml for a node without TAP on any free port of the loopback."""
        config = self.directory / f"{name}.toml"
        keys: dict[str, dict[str, Any]] = {
            "node": {"state": str(state.path), "bootstrap": list(bootstrap)},
            "listen": {"udp": "127.0.0.1:0"},
            "tap": {"enabled": False},
            "control": {"socket": str(self.directory / f"{name}.sock")},
        }
        config.write_text(to_toml(keys))
        return config

    def run_example(self, name: str, config: Path, packages: Path | None = None) -> Process:
        """`twistd -ny examples/embed.py` in the background; ended with the test. `packages`: a directory with more of them."""
        argv = [*program("twistd"), "--nodaemon", f"--pidfile={config}.pid", "-y", str(EXAMPLE)]
        surroundings = {**environment(), "IPOP_CONFIG": str(config)}
        if packages is not None:
            surroundings["PYTHONPATH"] = f"{packages}:{surroundings['PYTHONPATH']}"
        process = Process(argv, self.directory / f"{name}.log", surroundings)
        self.addCleanup(process.stop)
        return process

    def status(self, name: str, process: Process) -> dict[str, Any]:
        """What the application's node says of itself once it has an address."""

        def look() -> dict[str, Any] | None:
            if process.returncode is not None:
                raise EnvironmentProblem("the application ended", process.output[-2000:])
            try:
                me: dict[str, Any] = Daemon(self.directory / f"{name}.sock").get("/status")["self"]
            except IpopError:
                return None
            return me if me["address"] and me["endpoints"] else None

        return wait_for(f"an address on {name}", 30, look, every=0.1)


class EmbeddingTests(EmbeddingCase):
    """Nodes under other applications."""

    def test_the_example(self) -> None:
        """Two of them meet, lease different addresses, and the second reads what the first has written."""
        founder = self.found("one")
        one = self.run_example("one", self.configured("one", founder))
        first = self.status("one", one)
        wait_for("the greeting", 20, lambda: f"one {first['address']}: hello from one" in one.output)
        two = self.run_example("two", self.configured("two", self.admitted("two", founder), first["endpoints"][0]))
        second = self.status("two", two)
        self.assertNotEqual(first["address"], second["address"])
        wait_for("the greeting on the other", 20, lambda: f"two {second['address']}: hello from one" in two.output)
        self.assertEqual((two.stop(), one.stop()), (-15, -15))
        for process in (one, two):
            self.assertNotIn("Traceback", process.output)

    def test_the_interfaces(self) -> None:
        """What docs/embedding.md promises of `Node`, before it is started."""
        node = Node(load_config(self.configured("one", self.found("one"))))
        self.addCleanup(node.store.close)
        verifyObject(IService, node)
        verifyObject(IStatus, node)
        verifyObject(IDHT, node.dht)
        verifyObject(IResolver, node.dht)
        verifyObject(IBroadcast, node.ring)
        verifyObject(IAddressPool, node.pool)
        verifyObject(IPuncher, node.puncher)
