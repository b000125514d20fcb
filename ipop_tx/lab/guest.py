"""Guests: machines on a bridge of a host, with a DHCP client of Debian and nothing of ours."""

from __future__ import annotations

import signal

from ipop_tx.errors import EnvironmentProblem
from ipop_tx.lab import netns
from ipop_tx.lab.process import Process
from ipop_tx.lab.topology import Host
from ipop_tx.lab.waiting import holds_within, wait_for

BRIDGE = "br0"
_SCRIPT = """#!/bin/sh
# Run by udhcpc (event in $1) and by dhclient (event in $reason).
event=${1:-$reason} ip=${ip:-$new_ip_address} dev=${interface}
mtu=${mtu:-$new_interface_mtu} router=${router:-$new_routers} dns=${dns:-$new_domain_name_servers} domain=${domain:-$new_domain_name}
case $event in
    deconfig|PREINIT|RELEASE|EXPIRE|STOP|FAIL) ip -4 addr flush dev $dev; ip link set $dev up ;;
    bound|renew|BOUND|RENEW|REBIND|REBOOT)
        ip link set $dev mtu ${mtu:-1500}
        ip addr replace $ip/16 dev $dev
        ;;
esac
echo "$event ${ip:--} ${mtu:--} ${router:--} ${dns:--} ${domain:--}" >>"$EVENTS"
"""


class Guest(Host):
    """A machine whose one interface, eth0, is plugged into the bridge of another."""

    def __init__(self, behind: Host, name: str, plugged: bool = True) -> None:
        super().__init__(behind.lab, name, "", None)
        self.behind = behind
        self.client: Process | None = None
        self.script = self.directory / "script"
        self.script.write_text(_SCRIPT)
        self.script.chmod(0o755)
        self._events = self.directory / "events"
        self._events.touch()
        self._port = f"g{self.lab.next_number()}"
        if plugged:
            self.plug_into(behind)

    @property
    def host(self) -> Host:
        """Itself: where a node's programs run is its host, and a guest is one."""
        return self

    def plug_into(self, host: Host) -> None:
        """Connect eth0 to the bridge of a host."""
        cable = f"link add {self._port} type veth peer name eth0 address {self._mac()} netns {self.namespace}"
        netns.configure(host.namespace, cable, *self._at_bridge())
        netns.configure(self.namespace, "link set eth0 up")

    def move_to(self, host: Host) -> None:
        """Pull the cable out, and put it into the bridge of another host."""
        netns.configure(self.behind.namespace, f"link set {self._port} netns {host.namespace}")
        self.behind = host
        netns.configure(host.namespace, *self._at_bridge())

    def _at_bridge(self) -> tuple[str, ...]:
        return f"link set {self._port} master {BRIDGE}", f"link set {self._port} up"

    def _mac(self) -> str:
        return "02:" + ":".join(f"{byte:02x}" for byte in self.name.encode().ljust(5, b"_")[:5])

    def udhcpc(self, *options: str, interface: str = "eth0") -> Process:
        """Start busybox's client."""
        words = ["udhcpc", "-f", "-i", interface, "-s", str(self.script), "-t", "20", "-T", "1", "-A", "3", *options]
        self.client = self.start(words, "udhcpc.log", {"EVENTS": str(self._events), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        return self.client

    def dhclient(self) -> Process:
        """Start ISC's client."""
        words = ["dhclient", "-d", "-v", *self._dhclient_files(), "eth0"]
        self.client = self.start(words, "dhclient.log")
        return self.client

    def dhclient_release(self) -> None:
        """Have it give its address back, which ends it."""
        self.run(["dhclient", "-r", "-v", *self._dhclient_files(), "eth0"])

    def _dhclient_files(self) -> list[str]:
        files = {"-lf": "leases", "-pf": "dhclient.pid", "-cf": "dhclient.conf"}
        wanted = "subnet-mask, interface-mtu, routers, domain-name-servers, domain-name"
        lines = f'send host-name "{self.name}"', f"request {wanted}", "timeout 20", "retry 2", "initial-interval 1"
        (self.directory / "dhclient.conf").write_text("".join(f"{line};\n" for line in lines))
        pairs = [word for option, name in files.items() for word in (option, str(self.directory / name))]
        return [*pairs, "-sf", str(self.script), "-e", f"EVENTS={self._events}"]

    def send(self, number: signal.Signals) -> None:
        """To the client: SIGUSR1 makes udhcpc renew, SIGUSR2 release."""
        assert self.client is not None
        self.client.send(number)

    def events(self) -> list[list[str]]:
        """What the client has told: event, address, MTU, router, name servers, domain; a dash for what there is not."""
        return [line.split() for line in self._events.read_text().splitlines()]

    def wait_for_event(self, *names: str, after: int = 0, seconds: float = 20.0) -> list[str]:
        """Wait for an event of one of these names, behind the first `after` ones; gives it."""

        def look() -> list[str] | None:
            return next((event for event in self.events()[after:] if event[0] in names), None)

        try:
            return wait_for(f"{names} at {self.name}", seconds, look)
        except EnvironmentProblem as error:
            log = self.client.output[-2000:] if self.client else ""
            raise EnvironmentProblem(str(error), f"{self.events()}; {log}") from None

    def reaches(self, address: str, seconds: float = 20.0) -> bool:
        """Whether a ping is answered, asking again for up to `seconds`."""
        return holds_within(seconds, lambda: not self.run(["ping", "-n", "-c1", "-W1", address], check=False).returncode)


def add_bridge(host: Host) -> None:
    """Give a host a bridge for guests."""
    netns.configure(host.namespace, f"link add {BRIDGE} type bridge forward_delay 0", f"link set {BRIDGE} up")
