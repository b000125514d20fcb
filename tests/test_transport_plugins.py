"""Transports of other packages: the one in docs/transports.md is installed in a directory, found, held to the interface, and used."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ipop_tx.cli.daemon import Daemon
from ipop_tx.errors import EnvironmentProblem
from ipop_tx.identity.state import StateDirectory
from ipop_tx.lab import Process, wait_for
from ipop_tx.lab.node import to_toml
from ipop_tx.transport.plugins import foreign_transports
from tests.test_embedding import EmbeddingCase
from tests.transport import Inbox, cut

DOCS = Path(__file__).parents[1] / "docs" / "transports.md"


def example() -> str:
    """The transport of the documentation."""
    return next(block for block in re.findall(r"(?ms)^```python\n(.*?)^```", DOCS.read_text()) if "ITransport" in block)


def install(directory: Path, name: str, source: str, **points: str) -> None:
    """What pip would leave there: a module, and a dist-info with its entry points."""
    info = directory / f"{name}-1.0.dist-info"
    info.mkdir()
    (directory / f"{name}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "".join(f"{scheme} = {target}\n" for scheme, target in points.items())
    (info / "entry_points.txt").write_text(f"[ipop_tx.transports]\n{lines}")


class Installed:
    """A directory that Python finds packages in, for the time of a test."""

    def here(self: Any) -> Path:
        directory = Path(tempfile.mkdtemp(prefix="ipop-plugins-"))
        self.addCleanup(shutil.rmtree, directory)
        self.patch(sys, "path", [str(directory), *sys.path])
        for module in ("ipop_mask", "ipop_bad"):
            self.addCleanup(sys.modules.pop, module, None)
        return directory


class ExampleTests(Installed, TestCase):
    """The one of the documentation."""

    timeout = 10

    def test_length(self) -> None:
        self.assertLess(len(example().splitlines()), 60)

    async def test_carries(self) -> None:
        install(self.here(), "ipop_mask", example(), mask="ipop_mask:MaskTransport")
        ends = []
        for _ in range(2):
            (transport,) = foreign_transports(reactor, {"mask": {"host": "127.0.0.1", "port": 0, "secret": "s"}})
            inbox = Inbox()
            transport.start(inbox)
            self.addCleanup(transport.stop)
            ends.append((transport, inbox, transport.local_endpoints()[0]))
        (a, _, a_endpoint), (_, b_inbox, b_endpoint) = ends
        a.write(b_endpoint, b"\0hello")
        a.write_run(b_endpoint, [bytes(1000), bytes(700)], 500, 1600)
        await b_inbox.have(5)
        self.assertEqual([datagram for _, datagram in b_inbox.items], [b"\0hello", *cut(bytes(1600), 500)])
        self.assertEqual({source for source, _ in b_inbox.items}, {a_endpoint})

    def test_its_errors(self) -> None:
        install(self.here(), "ipop_mask", example(), mask="ipop_mask:MaskTransport")
        (first,) = foreign_transports(reactor, {"mask": {"host": "127.0.0.1", "port": 0, "secret": "s"}})
        first.start(Inbox())
        self.addCleanup(first.stop)
        taken = {"host": "127.0.0.1", "port": first.local_endpoints()[0].port, "secret": "s"}
        (second,) = foreign_transports(reactor, {"mask": taken})
        self.assertRaises(EnvironmentProblem, second.start, Inbox())
        second.stop()


class RefusalTests(Installed, SynchronousTestCase):
    """What is no transport is refused in one sentence that names table and mend."""

    def refused(self, source: str, target: str = "ipop_bad:T", scheme: str = "bad") -> str:
        install(self.here(), "ipop_bad", source, **{scheme: target})
        line = str(self.assertRaises(EnvironmentProblem, foreign_transports, reactor, {scheme: {}}))
        self.assertIn(f"[transports.{scheme}]", line)
        self.assertNotIn("\n", line)
        return line

    def test_not_installed(self) -> None:
        line = str(self.assertRaises(EnvironmentProblem, foreign_transports, reactor, {"nosuch": {}}))
        self.assertIn("no installed package has a transport 'nosuch'", line)
        install(self.here(), "ipop_bad", "", bad="ipop_bad:T")
        self.assertIn("installed are bad", str(self.assertRaises(EnvironmentProblem, foreign_transports, reactor, {"nosuch": {}})))

    def test_nothing_asked_for(self) -> None:
        """What is installed and not asked for is not even imported."""
        install(self.here(), "ipop_bad", "raise SystemExit", bad="ipop_bad:T")
        self.assertEqual(foreign_transports(reactor, {}), [])

    def test_broken_module(self) -> None:
        self.assertIn("cannot be loaded", self.refused("import nosuchmodule"))

    def test_missing_class(self) -> None:
        self.assertIn("cannot be loaded", self.refused("x = 1"))

    def test_no_transport(self) -> None:
        self.assertIn("is no transport", self.refused("class T:\n  def __init__(self, reactor, options): pass"))

    def test_half_a_transport(self) -> None:
        head = "from zope.interface import implementer\nfrom ipop_tx.interfaces import ITransport\n"
        body = "@implementer(ITransport)\nclass T:\n  scheme = 'bad'\n  def __init__(self, reactor, options): pass"
        self.assertIn("is no transport", self.refused(head + body))

    def test_bad_options(self) -> None:
        self.assertIn("cannot be made", self.refused(example(), "ipop_bad:MaskTransport"))

    def test_another_scheme(self) -> None:
        source = example() + "\ndef T(reactor, options):\n    return MaskTransport(reactor, {'port': 0, 'secret': 's'})\n"
        self.assertIn("[transports.mask]", self.refused(source))


class WholeTests(EmbeddingCase):
    """Two daemons that know each other only by an endpoint of that transport."""

    def node(self, name: str, state: StateDirectory, *bootstrap: str) -> tuple[Process, dict[str, Any]]:
        """A daemon with the transport, and what it says of itself."""
        config = self.configured(name, state, *bootstrap)
        config.write_text(config.read_text() + to_toml({"transports.mask": {"host": "127.0.0.1", "port": 0, "secret": "s"}}))
        process = self.run_example(name, config, self.directory)
        return process, self.status(name, process)

    def test_join_by_it(self) -> None:
        """They meet by it, and then find that UDP passes too."""
        install(self.directory, "ipop_mask", example(), mask="ipop_mask:MaskTransport")
        founder = self.found("first")
        _, told = self.node("first", founder)
        met = next(endpoint for endpoint in told["endpoints"] if endpoint.startswith("mask:"))
        _, _ = self.node("second", self.admitted("second", founder), met)
        self.assertIn(f"path={met}", (self.directory / "second.log").read_text())
        daemon = Daemon(self.directory / "second.sock")
        wait_for("UDP", 40, lambda: daemon.get("/status")["peers"][0]["path"].startswith("direct udp:"), 0.2)
