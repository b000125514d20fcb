"""Rows of the names: of the network, and above all the others."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from ipop_tx.lab import Lab
from ipop_tx.lab.node import environment
from ipop_tx.lab.waiting import holds_within
from tests.ops.case import MACHINES, check, founded, package, row, set_for_unit, status, up
from tests.ops.machine import Machine


@row("dns")
def dns_row(lab: Lab) -> str:
    """Names of the network, and above all the others: after kill -9, a power cut, with the overlay down, after a DHCP client."""
    server = lab.public_host("resolver")
    hosts = server.directory / "hosts"
    hosts.write_text("192.0.2.7 example.test\n")
    twistd = str(Path(sys.executable).with_name("twistd"))
    words = ["-n", "--pidfile=", "dns", "-i", server.address, "-p", "53", "--hosts-file", str(hosts)]
    server.start([twistd, *words], environment=environment())
    one = founded(lab, nameserver=server.address, more='[dns]\nlisten = "127.0.0.153:53"')
    untouched = f"nameserver {server.address}\n"

    def others() -> bool:
        return one.try_("timeout 3 getent ahostsv4 example.test")[1].startswith("192.0.2.7")

    def ours() -> bool:
        return one.try_("getent ahostsv4 one.home.ipop")[1].startswith(up(one))

    def written() -> str:
        return one.run("cat /etc/resolv.conf")

    check("names of the network", holds_within(10, ours))
    check("other names", others())
    check("the daemon knows that it is asked", holds_within(20, lambda: not status(one)["health"]))
    one.run(f"printf 'nameserver {server.address}\\n' >/etc/resolv.conf")
    check("after a DHCP client has written resolv.conf", holds_within(10, lambda: "127.0.0.153" in written()))
    slowest = 0.0
    # A question that waits in the daemon's socket when it dies is lost, and the C library waits its 5 s: so kill, then ask.
    one.run("pid=$(systemctl show -P MainPID ipop@node); kill -9 $pid; while [ -e /proc/$pid/fd/0 ]; do sleep 0.01; done")
    for _ in range(20):
        begun = time.monotonic()
        check("other names right after kill -9", others())
        slowest = max(slowest, time.monotonic() - begun)
        time.sleep(0.1)
    up(one)
    check("names of the network after a restart", holds_within(15, ours))
    set_for_unit(one, "Restart=no")
    one.run("systemctl kill -s KILL ipop@node")
    check("lines are taken out after a kill without a restart", holds_within(15, lambda: written() == untouched))
    check("other names with the overlay down", others())
    set_for_unit(one, "Restart=on-failure")
    one.run("systemctl reset-failed; systemctl start ipop@node")
    up(one)
    check("names again", holds_within(15, ours))
    one.cut_power()
    one.boot()
    up(one)
    check("names of the network after a power cut", holds_within(15, ours))
    check("the daemon knows that it is asked", holds_within(20, lambda: not status(one)["health"]))
    one.run("systemctl disable ipop@node")
    one.cut_power()
    one.boot()
    check("a power cut leaves our lines", "127.0.0.153" in written())
    check("other names after a power cut, without a daemon", others())
    one.run("systemctl enable --now ipop@node")
    one.reboot()
    up(one)
    check("names of the network after a reboot", holds_within(15, ours))
    check("other names after a reboot", others())
    one.run("systemctl stop ipop@node")
    check("a stopped daemon leaves resolv.conf as it was", written() == untouched)
    return f"slowest answer for another name in the 2 s after kill -9: {slowest:.2f} s"


@row("resolved")
def resolved_row(lab: Lab) -> str:
    """By systemd-resolved: the daemon is no root, so others must tell it."""
    nameserver = re.search(r"(?m)^nameserver (\S+)", Path("/etc/resolv.conf").read_text())
    one = Machine(lab.public_host("one"), nameserver[1] if nameserver else "")
    MACHINES.append(one)
    one.boot()
    one.run("apt-get install -y --no-install-recommends systemd-resolved", timeout=300, outside=True)
    one.run("systemctl enable systemd-resolved; ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf")
    one.reboot()  # the bus knows it then
    one.run(f"dpkg -i {one.copy(package())}; ipop network create home --name one")
    one.run("printf '[dns]\\nlisten = \"127.0.0.153:53\"\\n' >>/etc/ipop/node.toml; systemctl enable --now ipop@node")
    address = up(one)

    def ours() -> bool:
        return address in one.try_("resolvectl query --cache=no one.home.ipop")[1]

    check("names of the network", holds_within(10, ours))
    check("other names go elsewhere", one.run("resolvectl default-route ipop0").strip().endswith(": no"))
    check("the daemon knows that it is asked", holds_within(20, lambda: not status(one)["health"]))
    one.run("ip link del ipop0")
    begun = time.monotonic()
    check("names after the TAP was removed", holds_within(60, ours))
    took = time.monotonic() - begun
    one.run("systemctl stop ipop@node")
    check("nothing is left", "127.0.0.153" not in one.run("resolvectl dns"))
    return f"names again {took:.1f} s after the TAP was removed"
