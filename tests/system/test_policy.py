"""The network's policy among real daemons: who reaches what, changes under live traffic, members that were away."""

from __future__ import annotations

import json
import sys

from ipop_tx.lab import wait_for
from ipop_tx.lab.node import LabNode
from ipop_tx.lab.process import Process
from ipop_tx.lab.waiting import holds_within
from tests.system.case import LabTestCase

ECHO = """import socketserver, sys
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True
Server(("0.0.0.0", int(sys.argv[1])), Echo).serve_forever()
"""
ASK = """import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3])) as line:
    line.sendall(b"hello\\n")
    assert line.recv(6)
"""
TALK = """import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as line:
    for number in range(1 << 30):
        line.sendall(b"%d\\n" % number)
        line.recv(100)
        print("echo", number, flush=True)
        time.sleep(0.05)
"""

SSH = """default = "deny"
[[allow]]
name = "ssh"
from = "group:admins"
to = "group:servers"
protocol = "tcp"
ports = 22
[[allow]]
name = "ping"
protocol = "icmp"
types = "echo-request"
"""
WEB = """
[[allow]]
name = "web"
to = "name:server"
protocol = "tcp"
ports = "80-81"
"""


class PolicyTests(LabTestCase):
    """`founder` is the authority; `admin` and `server` are in groups; `off` is stopped when the policy comes."""

    def set_policy(self, founder: LabNode, text: str, *nodes: LabNode) -> None:
        """Set it, and wait until these nodes have it."""
        file = founder.directory / "policy.toml"
        file.write_text(text)
        founder.ipop("policy", "set", str(file), "--socket", str(founder.socket))
        self.has_policy(founder, *nodes)

    def has_policy(self, founder: LabNode, *nodes: LabNode) -> None:
        """They have the founder's."""
        version = founder.status()["policy"]["version"]
        for node in nodes:
            wait_for(f"the policy at {node.name}", 20, lambda node=node: (node.status()["policy"] or {}).get("version") == version)  # type: ignore[misc]

    def asks(self, one: LabNode, other: LabNode, port: int, seconds: float = 10.0) -> bool:
        """Whether a TCP connection carries a line there and back."""
        words = [sys.executable, "-c", ASK, other.address, str(port), str(seconds)]
        return one.host.run(words, check=False, timeout=seconds * 2 + 10).returncode == 0

    def verdict(self, node: LabNode, *words: str) -> tuple[int, str]:
        """What `ipop policy test` says there."""
        status, out, _ = node.ipop("policy", "test", *words, "--socket", str(node.socket), check=False)
        return status, out.strip()

    def goes_on(self, talk: Process) -> bool:
        """Whether ten more lines are echoed."""
        before = talk.output.count("echo")
        return holds_within(15, lambda: talk.output.count("echo") >= before + 10, every=0.1)

    def test_policy(self) -> None:
        """Set, changed while a connection and pings are under way, learnt by one that was off, kept over a kill."""
        founder = self.found(self.lab.public_host("founder"))
        server = self.admit(founder, self.lab.public_host("server"), "--group", "servers")
        admin = self.admit(founder, self.lab.public_host("admin"), "--group", "admins")
        off = self.admit(founder, self.lab.public_host("off"))
        self.settle(founder, server, admin, off)
        for port in (22, 80):
            server.host.start([sys.executable, "-c", ECHO, str(port)], log=f"echo-{port}.log")
        for node in (admin, off):
            wait_for("the servers", 20, lambda node=node: self.asks(node, server, 80) and self.asks(node, server, 22))  # type: ignore[misc]
        off.stop()
        talk = admin.host.start([sys.executable, "-c", TALK, server.address, "22"], log="talk.log")
        pings = admin.host.start(["stdbuf", "-oL", "ping", "-n", "-i0.2", server.address], log="pings.log")
        wait_for("a conversation", 10, lambda: "echo 3" in talk.output)

        self.set_policy(founder, SSH, server, admin)
        self.assertTrue(self.goes_on(talk), "a connection that was under way is cut by a policy that allows it")
        self.assertTrue(self.asks(admin, server, 22))
        self.assertFalse(self.asks(admin, server, 80, 1.5))
        self.assertFalse(self.asks(founder, server, 22, 1.5))
        self.assertTrue(founder.reaches(server.address))
        self.assertEqual(self.verdict(founder, "admin", "server", "tcp/22"), (0, "allowed: by ssh"))
        self.assertEqual(self.verdict(server, admin.address, server.address, "tcp/80"), (1, "dropped: no rule allows it"))
        self.assertEqual(self.verdict(admin, "server", "admin", "tcp/22"), (1, "dropped: no rule allows it"))
        self.assertGreater(admin.status()["counters"]["out_policy"], 0)
        file = str(founder.directory / "policy.toml")
        status, _, sentence = server.ipop("policy", "set", file, "--socket", str(server.socket), check=False)
        self.assertIn("only the node that holds the authority's key can change the policy", sentence)
        self.assertEqual(status, 1)

        off.start()
        off.wait_until_up()
        self.has_policy(founder, off)
        self.assertFalse(self.asks(off, server, 22, 1.5))

        self.set_policy(founder, SSH + WEB, server, admin, off)
        self.assertTrue(self.goes_on(talk))
        self.assertTrue(self.asks(off, server, 80))
        before = pings.output.count(" bytes from ")
        self.assertTrue(holds_within(10, lambda: pings.output.count(" bytes from ") > before + 2, every=0.1))

        server.kill9()
        server.start()
        server.wait_until_up()
        self.assertEqual(server.status()["policy"]["version"], founder.status()["policy"]["version"])
        self.assertTrue(self.goes_on(talk))
        self.assertFalse(self.asks(off, server, 22, 1.5))

        self.set_policy(founder, SSH.replace("22", "23") + WEB, server, admin, off)
        self.assertFalse(self.goes_on_soon(talk), "a connection goes on that no rule allows any more")
        shown = json.loads(server.ipop("policy", "show", "--json", "--socket", str(server.socket))[1])
        self.assertIn("23", shown["text"])
        self.assertEqual(set(shown["enforced"]["allowed"]), {"ssh", "ping", "web"})
        founder.ipop("policy", "remove", "--socket", str(founder.socket))
        wait_for("no policy", 20, lambda: all(node.status()["policy"] is None for node in (server, admin, off)))
        self.assertTrue(self.asks(off, server, 22))

    def goes_on_soon(self, talk: Process) -> bool:
        """Whether anything is echoed in two seconds, once what was under way has arrived."""
        holds_within(1.0, lambda: False, every=0.5)
        before = talk.output.count("echo")
        return holds_within(2.0, lambda: talk.output.count("echo") > before, every=0.1)
