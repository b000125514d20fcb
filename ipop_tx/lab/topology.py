"""Labs: an internet of its own on one machine, with public hosts, sites behind NATs, and no way out.

```
   host "cloud0" ---+                          +--- wan [router] lan --- host "c1"
   203.0.113.10     |                          |                    `--- host "c2"
                 [ the internet: one router ]--+
   host "cloud1" ---+    192.0.2.1             +--- wan [router] lan --- host "h1"
```

Every box is a network namespace, every line a veth pair, every router routes for real; the public part has no broadcast.
Outside are the documentation ranges (RFC 5737), inside the private ones, never the overlay's own pool.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from ipop_tx.errors import EnvironmentProblem, LocalMisuse
from ipop_tx.lab import netns
from ipop_tx.lab.nat import Kind, Nat, ruleset
from ipop_tx.lab.process import Process
from ipop_tx.lab.registry import Record, clean, started
from ipop_tx.lab.waiting import wait_for

CORE = "192.0.2.1"
"""The internet's own router, everybody's next hop."""
IPV6 = "fd99::"
"""What the IPv6 addresses of hosts begin with."""


class Host:
    """A machine of the lab. `address` is its own; `public` the one under which the internet reaches it, if any does."""

    def __init__(self, lab: Lab, name: str, address: str, public: str | None) -> None:
        self.lab = lab
        self.name = name
        self.address = address
        self.public = public
        self.namespace = lab.add_namespace(name)
        self.directory = lab.scratch / name
        self.directory.mkdir()
        netns.configure(self.namespace, "link set lo up")

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 60.0,
        text: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end. Raises `EnvironmentProblem` when `check` is on and it fails, or when it takes too long."""
        command = ["ip", "netns", "exec", self.namespace, *argv]
        try:
            done = subprocess.run(command, check=False, input=text or "", capture_output=True, text=True, timeout=timeout, env=environment)
        except subprocess.TimeoutExpired:
            raise EnvironmentProblem(f"{' '.join(argv)!r} on {self.name} took more than {timeout:g} s") from None
        if check and done.returncode:
            raise EnvironmentProblem(f"{' '.join(argv)!r} on {self.name} failed", (done.stderr or done.stdout).strip())
        return done

    def start(self, argv: Sequence[str], log: str | None = None, environment: Mapping[str, str] | None = None) -> Process:
        """Start a program here in the background; its output goes to `log` in the host's directory."""
        path = self.directory / (log or f"{Path(argv[0]).name}.log")
        process = Process(["ip", "netns", "exec", self.namespace, *argv], path, environment)
        self.lab.processes.append(process)
        # Until it has entered the namespace nobody could tell whose it is.
        wait_for(f"start of {argv[0]}", 10, lambda: process.returncode is not None or netns.lives_in(process.pid, self.namespace), 0.001)
        return process

    def socket(self, kind: socket.SocketKind = socket.SOCK_DGRAM, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
        """A socket of this very process that lives on this host."""
        with netns.inside(self.namespace):
            return socket.socket(family, kind)

    def plug(self, there: bool = True) -> None:
        """Pull the host's network cable, or put it back."""
        netns.configure(self.namespace, f"link set eth0 {'up' if there else 'down'}", *(self._default_route() if there else ()))

    def _default_route(self) -> tuple[str, ...]:
        return (f"route replace {CORE} dev eth0", f"route replace default via {CORE} dev eth0")


class SiteHost(Host):
    """A host behind a site's router."""

    def __init__(self, site: Site, name: str, address: str, public: str | None) -> None:
        super().__init__(site.lab, name, address, public)
        self.site = site

    def _default_route(self) -> tuple[str, ...]:
        return (f"route replace default via {self.site.gateway} dev eth0",)


class Site:
    """A place with a router of its own and a LAN behind it: up to 200 hosts."""

    def __init__(self, lab: Lab, name: str, nat: Nat, subnet: IPv4Network, behind: Site | None) -> None:
        self.lab = lab
        self.name = name
        self.subnet = subnet
        self.behind = behind
        self.gateway = str(subnet[1])
        self._ports = 0
        self._outer: dict[str, str] = {}
        address = behind.new_address() if behind else lab.new_public_address()
        self.router = Host(lab, f"{name}-router", address, None if behind else address)
        self._wire_router()
        self.nat = nat
        self.set_nat(nat)

    @property
    def outer_address(self) -> str:
        """The router's address towards the internet (or towards the site that it is behind)."""
        return self.router.address

    def host(self, name: str) -> SiteHost:
        """A new machine on the LAN; behind a one-to-one NAT it also gets an outer address."""
        address = self.new_address()
        public = self.lab.new_public_address() if self.nat.kind is Kind.ONE_TO_ONE else None
        host = SiteHost(self, name, address, public)
        self.attach(host.namespace, "eth0")
        netns.configure(host.namespace, f"addr add {address}/24 dev eth0", "link set eth0 up", f"route add default via {self.gateway}")
        if public:
            self._outer[address] = public
            self.lab.route(public, self.router)
            self.set_nat(self.nat)
        return host

    def set_nat(self, nat: Nat) -> None:
        """Change what the router does; everything that it remembered is forgotten."""
        self.nat = nat
        rules = ruleset(nat, self.outer_address, str(self.subnet), self._outer)
        self.router.run(["nft", "-f", "-"], text=rules)
        self.router.run(["conntrack", "-F"])

    def forget_mappings(self) -> None:
        """What a reboot of the router does: every mapping is gone."""
        self.set_nat(self.nat)

    def new_address(self) -> str:
        """The LAN's next free address."""
        self._ports += 1
        return str(self.subnet[9 + self._ports])

    def attach(self, namespace: str, interface: str) -> None:
        """A cable from the LAN's switch to a new interface of `namespace`."""
        port = f"p{self.lab.next_number()}"
        netns.configure(
            self.router.namespace,
            f"link add {port} type veth peer name {interface} netns {namespace}",
            f"link set {port} master lan",
            f"link set {port} up",
        )

    def _wire_router(self) -> None:
        if self.behind:
            self.behind.attach(self.router.namespace, "wan")
            way_out: tuple[str, ...] = (
                f"addr add {self.outer_address}/24 dev wan",
                "link set wan up",
                f"route add default via {self.behind.gateway}",
            )
        else:
            self.lab.attach(self.router, "wan")
            way_out = ()
        netns.configure(
            self.router.namespace,
            *way_out,
            "link add lan type bridge forward_delay 0",
            f"addr add {self.gateway}/24 dev lan",
            "link set lan up",
        )
        netns.set_kernel(self.router.namespace, "ipv4.ip_forward", 1)
        netns.set_kernel(self.router.namespace, "bridge.bridge-nf-call-iptables", 0)  # the LAN's own traffic is not the router's


class Lab:
    """One lab; a context manager. Leaving it, however, removes all that it made.

    Entering raises `PermissionProblem` or `EnvironmentProblem` when the machine cannot hold a lab, and removes what dead labs left.
    """

    def __init__(self, name: str, parent: Path | None = None) -> None:
        """`parent` is where its directory is made, the usual place for temporary files unless told."""
        if not (name.isascii() and name.isalnum() and len(name) <= 16):
            raise LocalMisuse(f"{name!r} is not a name for a lab", "use up to 16 letters and digits")
        self.name = name
        self._parent = parent
        self._record = Record(name, os.getpid(), started(os.getpid()), "")
        self._numbers = iter(range(1, 1 << 16))
        self._public = _public_addresses()
        self._terminate: object = None
        self.processes: list[Process] = []
        """All that were started, dead or alive."""

    def __enter__(self) -> Self:
        netns.require_root_and()
        clean()
        if self._record.path.exists():
            raise LocalMisuse(f"this process already has a lab named {self.name}", "give the second one another name")
        self._record.scratch = tempfile.mkdtemp(prefix=f"ipop-{self.name}-", dir=self._parent)
        self._record.save()
        self._catch_sigterm()
        try:
            self.core = Host(self, "internet", CORE, None)
            """The internet's own router."""
            netns.configure(self.core.namespace, f"addr add {CORE}/32 dev lo")
            netns.set_kernel(self.core.namespace, "ipv4.ip_forward", 1)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def scratch(self) -> Path:
        """A directory that goes with the lab."""
        return Path(self._record.scratch)

    @property
    def kept(self) -> bool:
        """Whether `keep` was called."""
        return self._record.kept

    def keep(self) -> None:
        """Leave everything running after the end of this process, until `python -m ipop_tx.lab clean`."""
        self._record.kept = True
        self._record.save()

    def close(self) -> None:
        """End all processes, remove all namespaces and files. Idempotent; does nothing for a lab that is kept."""
        if not self._record.kept and self._record.scratch:
            self._record.destroy()
            self._record.scratch = ""
            for process in self.processes:  # they are dead: this only buries them
                process.stop()
        self._release_sigterm()

    def public_host(self, name: str) -> Host:
        """A new machine with an address of its own on the internet."""
        address = self.new_public_address()
        host = Host(self, name, address, address)
        self.attach(host, "eth0")
        return host

    def give_ipv6(self, host: Host, alone: bool = False) -> str:
        """An IPv6 address for a public host, which the internet routes; `alone` takes its way out over IPv4 away."""
        address, device = f"{IPV6}{self.next_number():x}", f"v{host.address}"
        netns.set_kernel(self.core.namespace, "ipv6.conf.all.forwarding", 1)
        show = ["ip", "-6", "-o", "addr", "show", "dev", device, "scope", "link"]
        shown = wait_for(f"a link-local address of {device}", 10, lambda: self.core.run(show).stdout.split())
        gateway = shown[3].partition("/")[0]
        netns.configure(host.namespace, f"addr add {address}/128 dev eth0 nodad", f"route add default via {gateway} dev eth0")
        netns.configure(self.core.namespace, f"route add {address}/128 dev {device}")
        if alone:
            netns.configure(host.namespace, "route del default via " + CORE)
        return address

    def site(self, name: str, nat: Nat, behind: Site | None = None) -> Site:
        """A new site; `behind` another one (a carrier's NAT) instead of directly on the internet."""
        number = self.next_number()
        subnet = IPv4Network(f"192.168.{number}.0/24" if number % 2 else f"10.0.{number}.0/24")
        return Site(self, name, nat, subnet, behind)

    def attach(self, host: Host, interface: str) -> None:
        """A cable from the internet's router to a new interface of `host`, with its address and default route."""
        netns.configure(
            host.namespace,
            f"link add {interface} type veth peer name v{host.address} netns {self.core.namespace}",
            f"addr add {host.address}/32 dev {interface}",
            f"link set {interface} up",
        )
        netns.configure(self.core.namespace, f"link set v{host.address} up")
        netns.configure(host.namespace, f"route add {CORE} dev {interface}", f"route add default via {CORE} dev {interface}")
        self.route(host.address, host)

    def route(self, address: str, host: Host) -> None:
        """Make the internet deliver `address` to `host`."""
        via = f" via {host.address}" if address != host.address else ""
        netns.configure(self.core.namespace, f"route add {address}/32{via} dev v{host.address}")

    def new_public_address(self) -> str:
        """The next free address of the internet; neighbours in the list are in different /24."""
        return next(self._public)

    def add_namespace(self, name: str) -> str:
        """Make a namespace, on record before it exists."""
        namespace = f"ipop-{self.name}-{os.getpid()}-{name}"
        if namespace in self._record.namespaces:
            raise LocalMisuse(f"the lab already has a host named {name}", "give the second one another name")
        self._record.namespaces.append(namespace)
        self._record.save()
        netns.call(["ip", "netns", "add", namespace])
        return namespace

    def next_number(self) -> int:
        """A number that no site or cable has yet."""
        return next(self._numbers)

    def _catch_sigterm(self) -> None:
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            self._terminate = signal.signal(signal.SIGTERM, _leave)

    def _release_sigterm(self) -> None:
        if self._terminate is not None:
            with suppress(ValueError):  # not the main thread: it was not set here either
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._terminate = None


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _public_addresses() -> Iterator[str]:
    for last in range(10, 250):
        yield f"203.0.113.{last}"
        yield f"198.51.100.{last}"
