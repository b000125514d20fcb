"""Real daemons as services: the rights that they keep, what works without the others, and the configuration read anew."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

from ipop_tx.lab import Host, wait_for
from ipop_tx.lab.guest import Guest, add_bridge
from ipop_tx.lab.node import LabNode, environment, to_toml
from tests.system import why_not
from tests.system.case import LabTestCase

USER, UID = "nobody", 65534
NET_ADMIN, BIND_SERVICE, READ_SEARCH = 1 << 12, 1 << 10, 1 << 2
PYTHON = "/usr/bin/python3"
FLOOD = """
while [ ! -e "$1" ]; do
    ping -n -q -c50 -i0.01 -W5 "$0" | grep ' 50 received' || exit 1
done
echo 100% answered
"""


def why_no_other_user() -> str | None:
    """This Python may lie where others cannot read it; Debian's does if it is of the same version."""
    version = subprocess.run([PYTHON, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=False)
    if version.stdout.split() != [str(part) for part in sys.version_info[:2]]:
        return f"{PYTHON} is another Python than this one"
    return None


class ServiceCase(LabTestCase):
    """Daemons that become somebody else."""

    def rights(self, node: LabNode) -> dict[str, list[str]]:
        """What the kernel says of the process."""
        assert node.process is not None
        lines = Path(f"/proc/{node.process.pid}/status").read_text().splitlines()
        return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}

    def assert_capabilities(self, node: LabNode, wanted: int) -> None:
        """Exactly these, and no way to others."""
        rights = self.rights(node)
        self.assertEqual(int(rights["CapEff"][0], 16), wanted)
        self.assertEqual(int(rights["CapPrm"][0], 16), wanted)
        for none in ("CapBnd", "CapAmb", "CapInh"):
            self.assertEqual(int(rights[none][0], 16), 0, none)
        self.assertEqual(rights["NoNewPrivs"], ["1"])

    def as_user(self, node: LabNode) -> LabNode:
        """Have it become `USER`."""
        if (reason := why_no_other_user()) is not None:
            self.skipTest(reason)
        self.lab.scratch.chmod(0o755)
        node.keys["daemon"] = {"user": USER}
        node.keys["control"]["socket"] = str(node.directory / "run" / "control.sock")
        node.socket = node.directory / "run" / "control.sock"
        node.environment["PYTHONPATH"] = f"{environment()['PYTHONPATH']}:{sysconfig.get_path('purelib')}"
        return node

    def start(self, node: LabNode) -> str:
        """By a Python that `USER` can read, with a device that everybody may open, as everywhere but in some containers."""
        device = self.lab.scratch / "tun"
        if not device.exists():
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(10, 200))
            device.chmod(0o666)
        script = 'mount --bind "$0" /dev/net/tun && exec "$@"'
        node.start("unshare", "-m", "bash", "-c", script, str(device), PYTHON)
        return node.wait_until_up()

    def pair(self, host: Host, founder: LabNode) -> LabNode:
        """A member that becomes `USER`, up and reached."""
        node = self.as_user(LabNode(host))
        node.join(founder.invite(node.name))
        self.start(node)
        self.assert_reach(node, founder)
        return node


class RightsTests(ServiceCase):
    """What is kept."""

    def test_root(self) -> None:
        """It stays root, but can do no more than is needed; a low port adds one capability."""
        node = self.found(self.lab.public_host("one"))
        self.assert_capabilities(node, NET_ADMIN | READ_SEARCH)
        self.assertEqual(node.stop(), -signal.SIGTERM)
        node.keys["dns"] = {"listen": "127.0.0.153:53", "system": "none"}
        node.start()
        node.wait_until_up()
        self.assert_capabilities(node, NET_ADMIN | BIND_SERVICE | READ_SEARCH)
        self.assertEqual(node.status()["health"], [])

    def test_state_of_another(self) -> None:
        """Root without its rights over others' files could not use it."""
        node = LabNode(self.lab.public_host("one"))
        node.create("lab")
        os.chown(node.state, UID, UID)
        self.assert_refused(node.refuse(), str(node.state), f'daemon.user = "{USER}"')

    def test_no_such_user(self) -> None:
        """It is named before anything is opened."""
        node = LabNode(self.lab.public_host("one"))
        node.create("lab")
        node.keys["daemon"] = {"user": "ipop-nobody-has-this"}
        self.assert_refused(node.refuse(), "ipop-nobody-has-this", "adduser")
        self.assertIsNone(node.address_on_tap())

    def test_another_user(self) -> None:
        """All works: the TAP also after it was removed, other addresses of the machine, a kill, `ipop` by root; others are refused."""
        founder = self.found(self.lab.public_host("founder"))
        node = self.pair(self.lab.public_host("two"), founder)
        self.assertEqual(self.rights(node)["Uid"], [str(UID)] * 4)
        self.assertEqual(self.rights(node)["Groups"], [str(UID)])
        self.assert_capabilities(node, NET_ADMIN)
        self.assertEqual({path.stat().st_uid for path in (node.state, *node.state.iterdir())}, {UID})
        node.host.run(["ip", "link", "del", "ipop0"])
        wait_for("the TAP again", 20, node.address_on_tap)
        self.assert_reach(node, founder)
        self.assertEqual(node.status()["health"], [])
        node.host.run(["ip", "addr", "add", "198.51.100.77/32", "dev", "eth0"])
        wait_for("another endpoint", 20, lambda: "udp:198.51.100.77:4500" in node.status()["self"]["endpoints"])
        address = node.address
        node.kill9()
        self.assertEqual(self.start(node), address)
        self.assert_reach(node, founder)
        self.assertEqual(node.ipop("status", "--socket", str(node.socket))[0], 0)
        self.assertEqual(self.asked_by(node, "1"), "refused")
        self.assertEqual(self.asked_by(node, str(UID)), "200")

    def asked_by(self, node: LabNode, uid: str, group: str = "1", route: str = "GET /status") -> str:
        """What a user gets on the control socket: the status, or `refused` by the file's mode."""
        method, path = route.split()
        curl = [
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-X",
            method,
            "--unix-socket",
            str(node.socket),
            f"http://ipop{path}",
        ]
        done = node.host.run(["setpriv", f"--reuid={uid}", f"--regid={group}", f"--groups={group}", *curl], check=False)
        return done.stdout if done.returncode == 0 else "refused"

    def test_group(self) -> None:
        """Its members look and change nothing; nobody else even looks."""
        self.lab.scratch.chmod(0o755)
        node = LabNode(self.lab.public_host("one"))
        node.keys["control"]["group"] = "games"
        node.create("lab")
        node.start()
        node.wait_until_up()
        games = str(os.stat(node.socket).st_gid)
        self.assertNotEqual(games, "0")
        self.assertEqual(node.socket.stat().st_mode & 0o777, 0o660)
        self.assertEqual(self.asked_by(node, "1", games), "200")
        for route in ("POST /invite", "POST /leave", "POST /reload", "POST /revoke", "POST /dht/set", "POST /policy"):
            self.assertEqual(self.asked_by(node, "1", games, route), "403", route)
        self.assertEqual(self.asked_by(node, "1"), "refused")
        self.assertEqual(node.status()["self"]["name"], "one")

    def test_guests(self) -> None:
        """DHCP needs port 67 on each address, and the TAP in a bridge: both work as another user, also when the TAP is a new one."""
        if (reason := why_not("udhcpc")) is not None:
            self.skipTest(reason)
        founder = self.found(self.lab.public_host("founder"))
        host = self.lab.public_host("two")
        add_bridge(host)
        node = self.as_user(LabNode(host))
        node.keys["tap"]["bridge"] = "br0"
        node.keys["dhcp"] = {"guests": 2}
        node.join(founder.invite(node.name))
        self.start(node)
        self.assert_capabilities(node, NET_ADMIN | BIND_SERVICE)
        guest = Guest(host, "box")
        guest.udhcpc()
        guest.wait_for_event("bound")
        self.assertEqual(guest.run(["ping", "-n", "-c3", "-W5", founder.address], check=False).returncode, 0)
        host.run(["ip", "link", "del", "ipop0"])
        wait_for("the TAP again", 20, lambda: host.run(["ip", "link", "show", "ipop0"], check=False).returncode == 0)
        self.assertEqual(guest.run(["ping", "-n", "-c3", "-W5", founder.address], check=False).returncode, 0)
        second = Guest(host, "jar")
        second.udhcpc()
        second.wait_for_event("bound")
        self.assertEqual(node.status()["health"], [])
        self.assertIn(f"{node.address}%br0:67", host.run(["ss", "-uln"]).stdout)

    def test_no_secret_is_told(self) -> None:
        """Neither keys, nor invitations, nor passwords stand in what a daemon writes or shows."""
        node = LabNode(self.lab.public_host("one"))
        node.create("lab")
        node.keys["log"]["level"] = "debug"
        node.keys["listen.tls"] = {"proxy": "http://somebody:proxy-password@127.0.0.1:9"}
        node.start()
        node.wait_until_up()
        token = node.invite("two")
        shown = json.dumps(node.status()) + node.request("GET", "/metrics")["text"]
        self.assertEqual(node.stop(), -signal.SIGTERM)
        assert node.process is not None
        told = shown + node.process.output
        secrets = [line for key in node.state.glob("*.key") for line in key.read_text().splitlines() if not line.startswith("-----")]
        self.assertGreater(len(secrets), 2)
        for secret in (*secrets, token, "proxy-password"):
            self.assertNotIn(secret, told)


class ReloadTests(ServiceCase):
    """`ipop reload` and SIGHUP."""

    def reload(self, node: LabNode) -> tuple[int, str, str]:
        """Write the file and have it read."""
        node.config.write_text(self.toml(node))
        return node.ipop("reload", "--json", "--socket", str(node.socket), check=False)

    @staticmethod
    def toml(node: LabNode) -> str:
        return to_toml(node.keys)

    def test_what_is_taken(self) -> None:
        """Live keys at once, others after a restart, a wrong file not at all; the exit status tells."""
        node = self.found(self.lab.public_host("one"))
        self.assertEqual(json.loads(self.reload(node)[1]), {"taken": [], "restart": []})
        node.keys["metrics"] = {"listen": "127.0.0.1:9477"}
        node.keys["listen"]["advertise"] = ["udp:198.51.100.9:4500"]
        node.keys["tap"]["mtu"] = 1300
        status, out, _ = self.reload(node)
        self.assertEqual((status, json.loads(out)), (0, {"taken": ["listen.advertise", "metrics.listen"], "restart": ["tap.mtu"]}))
        self.assertIn("ipop_", node.host.run(["curl", "-s", "http://127.0.0.1:9477/metrics"]).stdout)
        self.assertIn("udp:198.51.100.9:4500", node.status()["self"]["endpoints"])
        self.assertEqual(len(node.status()["health"]), 1)
        self.assertIn("tap.mtu", node.status()["health"][0])
        node.keys["tap"] = {"name": "ipop0", "mtu": 1}
        status, _, err = self.reload(node)
        self.assertEqual(status, 1)
        self.assertIn("tap.mtu = 1", err)
        self.assertIn("the former one is in use", node.status()["health"][0])
        self.assertIn("udp:198.51.100.9:4500", node.status()["self"]["endpoints"])
        node.keys["tap"] = {"name": "ipop0"}
        self.assertEqual(json.loads(self.reload(node)[1]), {"taken": [], "restart": []})
        self.assertEqual(node.status()["health"], [])

    def test_under_traffic(self) -> None:
        """Twenty reloads, by SIGHUP and by command, lose none of the pings that go on all the while, a hundred a second."""
        one = self.found(self.lab.public_host("one"))
        two = self.admit(one, self.lab.public_host("two"))
        self.assert_reach(one, two)
        wait_for("a direct path", 20, lambda: two.path_to(one).startswith("direct"))
        over = two.directory / "over"
        flood = two.host.start(["bash", "-c", FLOOD, one.address, str(over)], log="flood.log")
        assert two.process is not None
        for round_ in range(20):
            two.keys["log"]["level"] = ("debug", "info")[round_ % 2]
            two.keys["metrics"] = {"listen": f"127.0.0.1:{9400 + round_}"}
            if round_ % 2:
                self.assertEqual(self.reload(two)[0], 0)
            else:
                two.config.write_text(self.toml(two))
                two.process.send(signal.SIGHUP)
                port = 9400 + round_
                curl = ["curl", "-s", "-o", "/dev/null", f"http://127.0.0.1:{port}/metrics"]
                wait_for("metrics there", 10, lambda curl=curl: two.host.run(curl, check=False).returncode == 0)  # type: ignore[misc]
        self.assertIsNone(flood.returncode, flood.output)
        over.touch()
        self.assertEqual(flood.wait(60), 0, flood.output)
        self.assertIn("100% answered", flood.output)


class ManagerTests(ServiceCase):
    """What a service manager hears."""

    def test_notify(self) -> None:
        """Ready, alive, reloading, ready again, stopping: in this order."""
        node = LabNode(self.lab.public_host("one"))
        node.create("lab")
        heard = self.lab.scratch / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(heard))
            manager.settimeout(30)
            node.environment |= {"NOTIFY_SOCKET": str(heard), "WATCHDOG_USEC": "900000"}
            node.start()

            def hear(word: str) -> str:
                while True:
                    lines = manager.recv(4096).decode().splitlines()
                    if word in (line.partition("=")[0] for line in lines):
                        return "\n".join(lines)

            self.assertEqual(hear("READY"), "READY=1")
            address = node.wait_until_up()
            while address not in (alive := hear("WATCHDOG")):
                pass
            self.assertIn(f"STATUS={address}, linked to 0 members", alive)
            assert node.process is not None
            node.process.send(signal.SIGHUP)
            self.assertIn("MONOTONIC_USEC=", hear("RELOADING"))
            self.assertIn("READY=1", hear("READY"))
            node.process.send(signal.SIGTERM)
            hear("STOPPING")
            self.assertEqual(node.process.wait(20), -signal.SIGTERM)
