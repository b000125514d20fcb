"""The rows of `python -m tests.ops`: each is a test that also gives a figure."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipop_tx.lab import Lab, wait_for
from ipop_tx.lab.node import environment
from ipop_tx.lab.waiting import holds_within
from tests.ops.machine import Machine

ROOT = Path(__file__).parents[2]
ROWS: dict[str, Callable[[Lab], str]] = {}
MOST_EXPOSED = 2.0
"""What `systemd-analyze security` may give at most, from 0 (best) to 10."""


def row(name: str) -> Callable[[Callable[[Lab], str]], Callable[[Lab], str]]:
    """Register a row."""

    def register(function: Callable[[Lab], str]) -> Callable[[Lab], str]:
        ROWS[name] = function
        return function

    return register


def check(what: str, holds: object) -> None:
    """Raises `AssertionError` that says what did not hold."""
    if not holds:
        raise AssertionError(what)


@functools.cache
def package() -> Path:
    """The package of this tree, built once in a run."""
    built = subprocess.run([ROOT / "tools/deb"], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout.split()[-1]
    return ROOT / built


def newer(deb: Path) -> Path:
    """The same package as a later version."""
    tree = deb.with_suffix("")
    subprocess.run(["dpkg-deb", "-R", deb, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace("-1\nArch", "-2\nArch"))
    later = deb.with_name(deb.name.replace("-1_", "-2_"))
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, later], check=True, capture_output=True)
    shutil.rmtree(tree)
    return later


def status(machine: Machine, config: str = "node") -> dict[str, Any]:
    """What `ipop status --json` shows there."""
    found: dict[str, Any] = json.loads(machine.run(f"ipop status --json --config /etc/ipop/{config}.toml"))
    return found


def up(machine: Machine, config: str = "node") -> str:
    """Wait for an address; gives it."""

    def address() -> str | None:
        code, out, _ = machine.try_(f"ipop status --json --config /etc/ipop/{config}.toml")
        return json.loads(out)["self"]["address"] if code == 0 else None

    return str(wait_for(f"an address of {machine.host.name}", 60, address, 0.2))


def reaches(machine: Machine, address: str) -> bool:
    """Whether a ping is answered within 20 s."""
    return holds_within(20, lambda: machine.try_(f"ping -n -c1 -W1 {address}")[0] == 0)


def founded(lab: Lab, name: str = "one", nameserver: str = "", more: str = "") -> Machine:
    """A machine with the package, the first node of `home`, which runs and starts at each boot. `more` is added to node.toml."""
    machine = Machine(lab.public_host(name), nameserver)
    MACHINES.append(machine)
    machine.boot()
    machine.run(f"dpkg -i {machine.copy(package())}")
    machine.run(f"ipop network create home --name {name}")
    if more:
        machine.run(f"cat >>/etc/ipop/node.toml <<'END'\n{more}\nEND")
    machine.run("systemctl enable --now ipop@node")
    up(machine)
    return machine


MACHINES: list[Machine] = []
"""Those of the row that runs, to be switched off after it."""


def joined(lab: Lab, one: Machine, name: str = "two") -> Machine:
    """Another machine, which has joined."""
    machine = Machine(lab.public_host(name))
    MACHINES.append(machine)
    machine.boot()
    machine.run(f"dpkg -i {machine.copy(package())}")
    token = one.run(f"ipop invite --name {name}").strip()
    machine.run(f"ipop join {token}")
    machine.run("systemctl enable --now ipop@node")
    up(machine)
    return machine


@row("package")
def package_row(lab: Lab) -> str:
    """Installed, started, upgraded, rebooted, removed, purged."""
    deb = package()
    begun = time.monotonic()
    one = founded(lab)
    two = joined(lab, one)
    took = time.monotonic() - begun
    check("two reaches one", reaches(two, up(one)))
    rights = two.run("grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp):' /proc/$(systemctl show -P MainPID ipop@node)/status")
    check(f"rights: {rights}", "CapEff:\t0000000000001000" in rights and "NoNewPrivs:\t1" in rights and "Seccomp:\t2" in rights)
    check("the daemon is ipop", two.run("id -u ipop").strip() in rights.splitlines()[0].split())
    check(f"health: {status(two)['health']}", not status(two)["health"])
    before = identity(two)
    later = two.copy(newer(deb))
    begun = time.monotonic()
    two.run(f"dpkg -i {later}")
    up(two)
    upgraded = time.monotonic() - begun
    check("ident and address were kept by the upgrade", identity(two) == before)
    check("two reaches one after the upgrade", reaches(two, up(one)))
    two.reboot()
    up(two)
    check("ident and address were kept by a reboot", identity(two) == before)
    cycles = two.try_("journalctl --no-pager -q -g 'ordering cycle'")[1]
    check(cycles, not cycles)
    two.run("dpkg -r ipop-tx")
    check("the interface has gone", "ipop0" not in two.run("ip link"))
    check("the daemon has gone", two.try_("pgrep -u ipop")[0] == 1)
    two.run(f"dpkg -i {two.copy(deb)} && systemctl start ipop@node")
    up(two)
    check("ident and address were kept by removing and installing", identity(two) == before)
    two.run("dpkg -P ipop-tx")
    left = two.try_("ls -d /etc/ipop /var/lib/ipop /usr/lib/ipop-tx /usr/bin/ipop /lib/systemd/system/ipop* 2>/dev/null")[1].split()
    check(f"left after a purge: {left}", not left)
    return f"{deb.stat().st_size / 1e6:.1f} MB; two machines booted, installed and joined in {took:.0f} s; upgrade {upgraded:.1f} s"


def identity(machine: Machine) -> tuple[str, str]:
    """Who it is."""
    address = up(machine)
    return status(machine)["self"]["ident"], address


@row("unit")
def unit_row(lab: Lab) -> str:
    """What systemd says of the units; the interface and its kernel settings."""
    one = founded(lab)
    said = one.try_("systemd-analyze verify /lib/systemd/system/ipop* 2>&1")[1].strip()
    check(f"systemd-analyze verify: {said}", not said)
    overall = one.run("systemd-analyze security --no-pager ipop@node.service | tail -1")
    exposure = float(overall.split(":")[1].split()[0])
    check(overall, exposure <= MOST_EXPOSED)
    check("the kernel does not configure the TAP", one.run("cat /proc/sys/net/ipv6/conf/ipop0/accept_ra").strip() == "0")
    one.run("ip link del ipop0")
    check("the TAP is there again", holds_within(20, lambda: one.try_("ip -4 addr show ipop0 | grep inet")[0] == 0))
    check(f"health: {status(one)['health']}", not status(one)["health"])
    return f"exposure {exposure}"


@row("reload")
def reload_row(lab: Lab) -> str:
    """`systemctl reload`: twenty lose nothing, a wrong file changes nothing and is told."""
    one = founded(lab)
    two = joined(lab, one)
    address = up(one)
    check("two reaches one", reaches(two, address))
    two.run(f"ping -n -q -c1500 -i0.01 {address} >/root/flood 2>&1 & ")
    for _ in range(20):
        two.run("systemctl reload ipop@node")
    check("the flood went on meanwhile", two.try_("pgrep -x ping")[0] == 0)
    wait_for("the end of the flood", 60, lambda: two.try_("pgrep -x ping")[0] == 1, 0.5)
    flood = two.run("cat /root/flood")
    check(flood, "1500 received" in flood)
    pid = two.run("systemctl show -P MainPID ipop@node")
    two.run("cp /etc/ipop/node.toml /root/good; echo 'nonsense = 1' >>/etc/ipop/node.toml")
    check("a wrong file fails", two.try_("systemctl reload ipop@node")[0] != 0)
    check("the same daemon runs on", two.run("systemctl show -P MainPID ipop@node") == pid)
    check("its health says so", "former one" in " ".join(status_by_socket(two)["health"]))
    two.run("cp /root/good /etc/ipop/node.toml; systemctl reload ipop@node")
    check("all is well again", not status(two)["health"])
    return "1500 of 1500 pings during 20 reloads"


def status_by_socket(machine: Machine) -> dict[str, Any]:
    """The same while node.toml cannot be read."""
    found: dict[str, Any] = json.loads(machine.run("ipop status --json --socket /run/ipop/control.sock"))
    return found


@row("watchdog")
def watchdog_row(lab: Lab) -> str:
    """A daemon that hangs is started again, and so is one that was killed; with the same address."""
    one = founded(lab)
    before = identity(one)
    set_for_unit(one, "WatchdogSec=3")
    one.run("systemctl restart ipop@node")
    took = {}
    for word in ("STOP", "KILL"):
        up(one)
        pid = one.run("systemctl show -P MainPID ipop@node").strip()
        begun = time.monotonic()
        one.run(f"kill -{word} {pid}")
        wait_for("another daemon", 60, lambda pid=pid: one.run("systemctl show -P MainPID ipop@node").strip() not in ("0", pid), 0.2)  # type: ignore[misc]
        check("ident and address were kept", identity(one) == before)
        took[word] = time.monotonic() - begun
    return f"hung: up again after {took['STOP']:.1f} s (WatchdogSec=3); killed: after {took['KILL']:.1f} s"


def set_for_unit(machine: Machine, line: str) -> None:
    """Change the unit until the next boot."""
    place = "/run/systemd/system/ipop@.service.d"
    machine.run(f"mkdir -p {place}; printf '[Service]\\n{line}\\n' >{place}/ops.conf; systemctl daemon-reload")


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
    one.run("systemctl enable --now systemd-resolved; ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf")
    one.run(f"dpkg -i {one.copy(package())}; ipop network create home --name one")
    one.run("printf '[dns]\\nlisten = \"127.0.0.153:53\"\\n' >>/etc/ipop/node.toml; systemctl enable --now ipop@node")
    address = up(one)

    def ours() -> bool:
        return address in one.try_("resolvectl query --cache=no one.home.ipop")[1]

    check("names of the network", holds_within(10, ours))
    check("other names go elsewhere", "127.0.0.153" not in one.run("resolvectl dns | grep -v ipop0"))
    check("the daemon knows that it is asked", holds_within(20, lambda: not status(one)["health"]))
    one.run("ip link del ipop0")
    begun = time.monotonic()
    check("names after the TAP was removed", holds_within(60, ours))
    took = time.monotonic() - begun
    one.run("systemctl stop ipop@node")
    check("nothing is left", "127.0.0.153" not in one.run("resolvectl dns"))
    return f"names again {took:.1f} s after the TAP was removed"


WORK = """[node]
state = "/var/lib/ipop/{name}"
[listen]
udp = "0.0.0.0:{port}"
[tap]
name = "{tap}"
[control]
socket = "/run/ipop/{name}.sock"
"""


@row("two-networks")
def two_networks_row(lab: Lab) -> str:
    """Two daemons, two networks; a third whose pool overlaps is refused and told, and harms neither."""
    one = founded(lab)

    def add(name: str, port: int, tap: str, pool: str) -> tuple[int, str]:
        text = WORK.format(name=name, port=port, tap=tap)
        one.run(f"cat >/etc/ipop/{name}.toml <<'END'\n{text}END\nipop network create {name} --pool {pool} --config /etc/ipop/{name}.toml")
        code, _, err = one.try_(f"systemctl start ipop@{name}")
        return code, err

    check("the second starts", add("work", 4501, "ipop1", "10.129.0.0/16")[0] == 0)
    addresses = {up(one), up(one, "work")}
    check(f"an address in each: {addresses}", {address.split(".")[1] for address in addresses} == {"128", "129"})
    check("the third is refused", add("clash", 4502, "ipop2", "10.128.64.0/18")[0] != 0)
    said = one.run("journalctl -u ipop@clash --no-pager")
    check(said, "overlaps what this machine has already" in said and "another --pool" in said)
    check("it is not started again and again", one.run("systemctl show -P NRestarts ipop@clash").strip() == "0")
    one.run("systemctl stop ipop@node")
    check("the other goes on when one stops", up(one, "work") in addresses)
    return "two up, the third refused"
