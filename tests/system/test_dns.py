"""Names of the network, asked by real programs: dig, the C library, systemd-resolved; and what is left when a daemon is killed."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address
from pathlib import Path

from ipop_tx.lab import Host, wait_for
from ipop_tx.lab.node import LabNode
from ipop_tx.lab.process import Process
from ipop_tx.lab.waiting import holds_within
from tests.system import why_not
from tests.system.case import LabTestCase

SERVER = "127.0.0.153"
RESOLVED = "/lib/systemd/systemd-resolved"
BUS = """<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_type="signal"/>
<allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
<allow receive_type="method_call"/><allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/></policy>
</busconfig>"""


class DnsCase(LabTestCase):
    """Two nodes of the network `lab`; `one` answers names."""

    def grown(self, **dns: object) -> tuple[LabNode, LabNode]:
        """Both, running."""
        one = LabNode(self.lab.public_host("one"))
        one.keys["dns"] = {"listen": f"{SERVER}:53", **dns}
        one.create("lab")
        self.start(one)
        return one, self.admit(one, self.lab.public_host("two"))

    def start(self, node: LabNode) -> None:
        """Start it and wait."""
        node.start(*self.wrapper)
        node.wait_until_up()

    wrapper: tuple[str, ...] = ()

    def dig(self, host: Host, *question: str) -> str:
        """The answer's value alone."""
        return host.run(["dig", "+short", "+tries=3", f"@{SERVER}", *question]).stdout.strip()


class ResolvConfTests(DnsCase):
    """Where the C library reads resolv.conf."""

    skip = why_not("dig", "getent", "unshare")

    def getent(self, host: Host, resolv_conf: Path, *words: str) -> str:
        """What programs are told; empty for nothing."""
        script = 'mount --bind "$0" /etc/resolv.conf && exec getent "$@"'
        return host.run(["unshare", "-m", "bash", "-c", script, str(resolv_conf), *words], check=False).stdout

    def upstream(self, host: Host) -> None:
        """The name server that this machine had before: it knows `example.test`."""
        hosts = host.directory / "hosts"
        hosts.write_text("192.0.2.7 example.test\n")
        twistd = str(Path(sys.executable).with_name("twistd"))
        pidfile = f"--pidfile={host.directory / 'dns.pid'}"
        host.start([twistd, "-n", pidfile, "dns", "-i", "127.0.0.1", "-p", "53", "--hosts-file", str(hosts)], log="upstream.log")
        wait_for("the upstream", 20, lambda: "192.0.2.7" in host.run(["dig", "+short", "@127.0.0.1", "example.test"], check=False).stdout)

    def test_names(self) -> None:
        """There and back, by dig and getent. A killed daemon harms no other name, and nothing of it stays behind."""
        resolv_conf = self.lab.scratch / "resolv.conf"
        resolv_conf.write_text(before := "nameserver 127.0.0.1\noptions timeout:2\n")
        one, two = self.grown(resolv_conf=str(resolv_conf), system="resolv.conf")
        host = one.host
        self.upstream(host)
        address = two.address
        wait_for("the name of two", 10, lambda: self.dig(host, "two.lab.ipop") == address)  # it is claimed after the address
        self.assertEqual(self.dig(host, "+tcp", "two.lab.ipop", "AAAA"), two.ipv6)
        self.assertEqual(self.dig(host, "-x", address), "two.lab.ipop.")
        self.assertEqual(self.dig(host, "-x", two.ipv6), "two.lab.ipop.")
        self.assertIn("status: NXDOMAIN", host.run(["dig", f"@{SERVER}", "three.lab.ipop"]).stdout)
        self.assertIn(f"{address} ", self.getent(host, resolv_conf, "ahostsv4", "two"))
        self.assertIn(two.ipv6, self.getent(host, resolv_conf, "ahostsv6", "two.lab.ipop"))
        self.assertIn("two.lab.ipop", self.getent(host, resolv_conf, "hosts", address))
        self.assertIn("192.0.2.7", self.getent(host, resolv_conf, "hosts", "example.test"))
        self.assertEqual(host.run(["ping", "-c1", "-W5", "-n", str(IPv4Address(self.dig(host, "two.lab.ipop")))]).returncode, 0)
        one.kill9()
        self.assertNotEqual(resolv_conf.read_text(), before)
        self.assertIn("192.0.2.7", self.getent(host, resolv_conf, "hosts", "example.test"))
        one.ipop("dns", "restore", "--config", str(one.config))
        self.assertEqual(resolv_conf.read_text(), before)
        self.start(one)
        self.assertTrue(holds_within(20, lambda: "two.lab.ipop" in self.getent(host, resolv_conf, "hosts", address)))
        one.stop()
        self.assertEqual(resolv_conf.read_text(), before)


class ResolvedTests(DnsCase):
    """Where systemd-resolved answers."""

    skip = why_not("resolvectl", "dbus-daemon", "unshare", "nsenter") or (None if Path(RESOLVED).exists() else f"there is no {RESOLVED}")

    def resolved(self, host: Host) -> Process:
        """systemd-resolved and its bus in a mount namespace of the host's own: gives the process whose namespace it is."""
        bus = host.directory / "bus.conf"
        bus.write_text(BUS)
        script = f"""mount -t tmpfs tmpfs /run && mkdir -p /run/systemd /run/dbus
        dbus-daemon --config-file={bus} --nofork --nopidfile & bus=$!
        {RESOLVED} & resolved=$!
        trap 'kill $bus $resolved' EXIT
        trap 'exit 0' TERM INT
        wait"""
        holder = host.start(["unshare", "-m", "bash", "-c", script], log="resolved.log")
        self.wrapper = ("nsenter", "-t", str(holder.pid), "-m")
        wait_for("systemd-resolved", 20, lambda: host.run([*self.wrapper, "resolvectl", "status"], check=False).returncode == 0)
        return holder

    def test_split(self) -> None:
        """It asks us for our names only, and forgets us when the daemon is killed."""
        host = self.lab.public_host("one")
        self.resolved(host)
        one = LabNode(host)
        one.keys["dns"] = {"listen": f"{SERVER}:53", "system": "resolved"}
        one.create("lab")
        self.start(one)
        two = self.admit(one, self.lab.public_host("two"))

        def asked(*words: str) -> str:
            done = host.run([*self.wrapper, "resolvectl", *words], check=False)
            return done.stdout + done.stderr

        address = two.address
        self.assertTrue(holds_within(20, lambda: address in asked("query", "--legend=no", "two.lab.ipop")), asked("status"))
        self.assertIn("two.lab.ipop", asked("query", "--legend=no", address))
        self.assertIn("-DefaultRoute", asked("status", "ipop0"))
        one.kill9()
        self.assertTrue(holds_within(10, lambda: "lab.ipop" not in asked("status")), asked("status"))
        self.start(one)
        self.assertTrue(holds_within(20, lambda: address in asked("query", "--legend=no", "two.lab.ipop")), asked("status"))
        self.assertEqual(one.status()["health"], [])
