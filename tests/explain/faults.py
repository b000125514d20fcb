"""Planted faults: how each is made and unmade, which code `ipop explain` must give for it, and words of the mend."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from ipop_tx.core.dht.records import lease_key
from ipop_tx.identity.credentials import Credentials
from ipop_tx.identity.state import StateDirectory
from ipop_tx.lab import wait_for
from ipop_tx.lab.node import LabNode
from tests.explain.daemon import LEASE_SECONDS
from tests.explain.net import Net

Question = tuple[LabNode, tuple[str, ...]]
"""Who is asked to explain what."""
Plant = Callable[[Net], Iterator[Question]]


@dataclass(frozen=True)
class Fault:
    """One row. `plant` gives the question before the fault is there, then again when it is, and unmakes it at its end."""

    name: str
    code: str
    mend: str
    plant: Plant
    probe: bool = False


FAULTS: list[Fault] = []


def fault(name: str, code: str, mend: str, probe: bool = False) -> Callable[[Plant], Plant]:
    """Enter a row."""

    def enter(plant: Plant) -> Plant:
        FAULTS.append(Fault(name, code, mend, plant, probe))
        return plant

    return enter


@contextmanager
def firewall(net: Net, node: LabNode, chain: str, rule: str) -> Iterator[None]:
    """While this lasts a host's kernel drops something."""
    net.firewall(node.host, f"table ip faults {{\n chain c {{\n type filter hook {chain} priority 0;\n {rule}\n }}\n}}\n")
    try:
        yield
    finally:
        net.firewall(node.host, "")


def asks(net: Net, *words: str) -> Question:
    """The laptop is asked."""
    return net.laptop, words


# --- who is it ---------------------------------------------------------------------------------


@fault("name unknown", "name-unknown", "ipop peers names")
def name_unknown(net: Net) -> Iterator[Question]:
    """Nobody is called so."""
    yield asks(net, net.server.name)
    yield asks(net, "servre", "tcp/22")


@fault("address outside the pool", "address-outside", "ask for the address that ipop status shows")
def address_outside(net: Net) -> Iterator[Question]:
    """Another network's."""
    yield asks(net, net.server.address)
    yield asks(net, "10.200.0.7", "tcp/22")


@fault("lease missing", "lease-missing-there", "ipop lease renew")
def lease_missing(net: Net) -> Iterator[Question]:
    """Its register is empty, while the node believes to have it."""
    question = asks(net, net.server.name, "tcp/22")
    yield question
    network = Credentials.load(StateDirectory(net.server.state)).network
    key = lease_key(network, bytes(int(part) for part in net.server.address.split("."))).hex()
    net.server.request("POST", "/dht/delete", {"entries": [{"key": key}]})
    yield question
    net.server.request("POST", "/lease/renew", {})


@fault("lease expired", "lease-expired-there", "start the daemon of brief")
def lease_expired(net: Net) -> Iterator[Question]:
    """A node with a short lease has been off for longer."""
    brief = net.ready("brief")
    question = asks(net, brief.address, "tcp/22")
    yield question
    brief.kill9()
    over = time.time() + LEASE_SECONDS + 1
    wait_for("the end of the lease", 20, lambda: time.time() > over, every=0.2)
    yield question


@fault("DNS: the resolver does not ask us", "dns-not-asked", "nameserver 127.0.0.153")
def resolver_elsewhere(net: Net) -> Iterator[Question]:
    """resolv.conf names another server."""
    question = asks(net, net.server.name, "tcp/22")
    yield question
    file = net.laptop.directory / "resolv.conf"
    file.write_text("nameserver 192.0.2.53\n")
    yield question
    file.write_text("nameserver 127.0.0.153\n")


# --- this machine ------------------------------------------------------------------------------


@fault("TAP down", "tap-down", "ip link set ipop0 up")
def tap_down(net: Net) -> Iterator[Question]:
    """By hand."""
    question = asks(net, net.server.name, "tcp/22")
    yield question
    net.laptop.host.run(["ip", "link", "set", "ipop0", "down"])
    yield question
    restart(net.laptop)


@fault("TAP gone", "tap-gone", "restart the daemon")
def tap_gone(net: Net) -> Iterator[Question]:
    """Renamed by hand: one that is deleted the daemon makes again in a second."""
    question = asks(net, net.server.name, "tcp/22")
    yield question
    net.laptop.host.run(["ip", "link", "set", "ipop0", "down"])
    net.laptop.host.run(["ip", "link", "set", "ipop0", "name", "taken0"])
    yield question
    restart(net.laptop)


def restart(node: LabNode) -> None:
    """Stop and start a daemon."""
    node.stop()
    node.start()
    node.wait_until_up()
    wait_for("links again", 20, lambda: len(node.status()["peers"]) > 1)


@fault("wrong route", "route-elsewhere", "remove that route")
def wrong_route(net: Net) -> Iterator[Question]:
    """A more specific one."""
    address = net.server.address
    question = asks(net, address, "tcp/22")
    yield question
    net.laptop.host.run(["ip", "route", "add", f"{address}/32", "dev", "eth0"])
    yield question
    net.laptop.host.run(["ip", "route", "del", f"{address}/32", "dev", "eth0"])


@fault("overlapping range", "pool-overlaps", "give that other network another range")
def overlapping_range(net: Net) -> Iterator[Question]:
    """Another interface has a part of the pool."""
    address = net.server.address
    question = asks(net, address, "tcp/22")
    yield question
    neighbour = f"{address.rpartition('.')[0]}.{int(address.rpartition('.')[2]) ^ 1}"
    for words in ("link add br9 type bridge", f"addr add {neighbour}/30 dev br9", "link set br9 up"):
        net.laptop.host.run(["ip", *words.split()])
    yield question
    net.laptop.host.run(["ip", "link", "del", "br9"])


@fault("disk full", "disk-full", "free some space")
def disk_full(net: Net) -> Iterator[Question]:
    """That of the state."""
    node = net.ready("cramped")
    question: Question = (node, (net.server.name, "tcp/22"))
    yield question
    net.inside(node, "dd", "if=/dev/zero", f"of={node.state}/fill", "bs=64k")
    yield question
    net.inside(node, "rm", f"{node.state}/fill")


@fault("state read-only", "disk-read-only", "mount its disk read-write")
def read_only(net: Net) -> Iterator[Question]:
    """Another disk stands before it, since the kernel lets no disk become so while its files are open."""
    node = net.ready("cramped")
    question: Question = (node, (net.server.name, "tcp/22"))
    yield question
    net.inside(node, "mount", "-t", "tmpfs", "-o", "ro", "none", str(node.state))
    yield question
    net.inside(node, "umount", str(node.state))


# --- policy, firewalls, services ---------------------------------------------------------------

WEB = 'default = "deny"\n[[allow]]\nname = "web"\nprotocol = "tcp"\nports = 80\n'


@fault("policy drop at the sender", "policy-drops-here", "add a rule")
def policy_here(net: Net) -> Iterator[Question]:
    """Both ends have it, so the sender drops first."""
    question = asks(net, net.server.name, "tcp/22")
    yield question
    net.policy(WEB, net.laptop, net.server)
    yield question
    net.policy("", net.laptop, net.server)


@fault("policy drop at the receiver", "policy-drops-there", "add a rule, or wait")
def policy_there(net: Net) -> Iterator[Question]:
    """The sender does not have it."""
    lawless = net.ready("lawless")
    question: Question = (lawless, (net.server.name, "tcp/22"))
    yield question
    net.policy(WEB, net.server)
    yield question
    net.policy("", net.server)


@fault("policy drop between two others", "policy-drops-pair", "add a rule")
def policy_of_others(net: Net) -> Iterator[Question]:
    """Asked at a third node."""
    question: Question = (net.founder, ("laptop", "server", "tcp/22"))
    yield question
    net.policy(WEB, net.laptop, net.server)
    yield question
    net.policy("", net.laptop, net.server)


@fault("firewall here", "firewall-here", "a firewall here drops it", probe=True)
def firewall_here(net: Net) -> Iterator[Question]:
    """Outwards."""
    question = asks(net, net.server.name, "tcp/22")
    yield question
    with firewall(net, net.laptop, "output", 'oifname "ipop0" tcp dport 22 drop'):
        yield question


@fault("firewall at the other end", "firewall-there", "a firewall there drops it", probe=True)
def firewall_there(net: Net) -> Iterator[Question]:
    """Inwards."""
    question = asks(net, net.server.name, "tcp/22")
    yield question
    with firewall(net, net.server, "input", 'iifname "ipop0" tcp dport 22 drop'):
        yield question


@fault("service not listening", "service-closed", "start it", probe=True)
def service_closed(net: Net) -> Iterator[Question]:
    """Nobody waits at that port."""
    yield asks(net, net.server.name, "tcp/22")
    yield asks(net, net.server.name, "tcp/23")


# --- between -----------------------------------------------------------------------------------


@fault("NAT blocked", "nat-blocks", "forward UDP port 4500")
def nat_blocked(net: Net) -> Iterator[Question]:
    """Both ends behind symmetric NATs, neither of which numbers its ports."""
    left, right = net.ready("left"), net.ready("right")
    yield left, (net.founder.name,)
    for node in (left, right):
        node.request("POST", "/netcheck", {}, timeout=60)
    question: Question = (left, (right.name,))
    wait_for("both NATs known", 30, lambda: "nat-blocks" in net.codes(net.explain(left, right.name)), every=1.0)
    yield question


@fault("UDP blocked", "udp-blocked-here", "let UDP out")
def udp_blocked(net: Net) -> Iterator[Question]:
    """Only TCP to port 443 gets out."""
    yield net.laptop, (net.founder.name,)
    shut = net.ready("shut")
    shut.request("POST", "/netcheck", {}, timeout=60)
    yield shut, (net.founder.name,)


@fault("MTU hole", "mtu-hole", "raise the MTU", probe=True)
def mtu_hole(net: Net) -> Iterator[Question]:
    """Datagrams of more than 1000 bytes vanish before the server."""
    question = asks(net, net.server.name, "tcp/22")
    yield question
    drop = f"ip saddr {net.laptop.host.address} ip length > 1000 drop"
    with firewall(net, net.server, "input", f"udp dport 4500 {drop}"):
        yield question


@fault("revoked", "revoked-there", "remove its state directory and join it anew")
def revoked(net: Net) -> Iterator[Question]:
    """By the authority."""
    gone = net.ready("gone")
    question = asks(net, gone.name, "tcp/22")
    yield question
    net.founder.request("POST", "/revoke", {"target": "gone", "confirm": True})
    wait_for("the revocation", 20, lambda: net.laptop.request("GET", "/revocations"))
    yield question


@fault("certificate expired", "certificate-expired-there", "admitted anew")
def expired(net: Net) -> Iterator[Question]:
    """It ends while the node runs."""
    yield asks(net, net.server.name)
    wait_for("the end of the certificate", 60, lambda: time.time() > net.old_ends + 1, every=0.2)
    yield asks(net, "old", "tcp/22")


@fault("clock wrong", "clock-wrong-there", "NTP")
def clock_there(net: Net) -> Iterator[Question]:
    """Two hours ahead."""
    yield asks(net, net.server.name)
    yield asks(net, net.ready("early").name)


@fault("clock wrong here", "clock-wrong-here", "NTP")
def clock_here(net: Net) -> Iterator[Question]:
    """The others agree with each other."""
    yield asks(net, net.server.name)
    yield net.ready("early"), (net.server.name,)


@fault("node down", "peer-down", "start its daemon")
def node_down(net: Net) -> Iterator[Question]:
    """Killed a moment ago."""
    down = net.ready("down")
    question = asks(net, down.name, "tcp/22")
    yield question
    down.kill9()
    yield question


@fault("no daemon here", "node-down", "twistd ipop")
def no_daemon(net: Net) -> Iterator[Question]:
    """The one that is asked is off."""
    yield asks(net, net.server.name)
    yield net.nodes["down"], (net.server.name,)


@fault("no ring", "alone", "node.bootstrap")
def no_ring(net: Net) -> Iterator[Question]:
    """Started with the cable pulled."""
    lonely = net.ready("lonely")
    question: Question = (lonely, (net.server.name,))
    yield question
    lonely.stop()
    lonely.host.plug(False)
    lonely.start()
    wait_for("a control socket", 20, partial(os.path.exists, lonely.socket))
    yield question
