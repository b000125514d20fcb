"""Rows of the package and its units."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from ipop_tx.lab import Lab, wait_for
from ipop_tx.lab.waiting import holds_within
from tests.ops.case import check, founded, identity, joined, package, reaches, row, set_for_unit, status, up
from tests.ops.machine import Machine

FLOOD = "while [ ! -e /root/over ]; do ping -n -q -c50 -i0.01 -W5 $0 | grep transmitted; done; echo end"
MOST_EXPOSED = 2.0
"""What `systemd-analyze security` may give at most, from 0 (best) to 10."""


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
    later = two.copy(newer(deb, lab.scratch))
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


def newer(deb: Path, place: Path) -> Path:
    """The same package as a later version, in the directory `place`."""
    tree = place / "tree"
    subprocess.run(["dpkg-deb", "-R", deb, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace("-1\nArch", "-2\nArch"))
    later = place / deb.name.replace("-1_", "-2_")
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, later], check=True, capture_output=True)
    return later


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
    two.run(f"nohup bash -c '{FLOOD}' {address} >/root/flood 2>&1 &")
    for _ in range(20):
        two.run("systemctl reload ipop@node")
    two.run("touch /root/over")
    wait_for("the end of the flood", 60, lambda: two.try_("tail -n1 /root/flood | grep -E ^end")[0] == 0, 0.5)
    flood = two.run("cat /root/flood").splitlines()
    check("\n".join(flood), flood[-1] == "end" and all(" 50 received" in line for line in flood[:-1]))
    pid = two.run("systemctl show -P MainPID ipop@node")
    two.run("cp /etc/ipop/node.toml /root/good; echo 'nonsense = 1' >>/etc/ipop/node.toml")
    check("a wrong file fails", two.try_("systemctl reload ipop@node")[0] != 0)
    check("the same daemon runs on", two.run("systemctl show -P MainPID ipop@node") == pid)
    check("its health says so", "former one" in " ".join(status_by_socket(two)["health"]))
    two.run("cp /root/good /etc/ipop/node.toml; systemctl reload ipop@node")
    check("all is well again", not status(two)["health"])
    return f"{50 * (len(flood) - 1)} pings during 20 reloads, all answered"


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
