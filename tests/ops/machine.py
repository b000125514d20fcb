"""A machine with a real systemd: Debian in `systemd-nspawn`, on a host of the lab, over a base image that is made once.

```
 /var/tmp/ipop-ops/bookworm-*   made by debootstrap at the first run, never written to
 lab's scratch/NAME/upper       what the machine has changed (overlayfs)
```
"""

from __future__ import annotations

import os
import stat
import subprocess
import zlib
from pathlib import Path

from ipop_tx.errors import EnvironmentProblem
from ipop_tx.lab import Host, wait_for
from ipop_tx.lab.process import Process

BASES = Path("/var/tmp/ipop-ops")
MIRROR = "http://deb.debian.org/debian"
BARE = "systemd,systemd-sysv,dbus,iproute2,iputils-ping,netbase"
FURNISHED = f"{BARE},python3,procps"
"""With what the package depends on, as most machines of these have it; then nothing needs the internet."""
_CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C"}
_BOOTED = ("running", "degraded")
_REBOOTS = 133
"""Exit status by which systemd-nspawn says that the machine wants to start again."""
_CGROUPS = Path("/sys/fs/cgroup")
# Each machine in control groups of its own: else its systemd would take another's services for its own.
_OWN_GROUP = 'for g in $0; do mkdir -p "$g" && echo $$ >"$g/cgroup.procs" || true; done 2>/dev/null; exec "$@"'


def why_not() -> str | None:
    """Why there can be no machines here; None when there can."""
    missing = [name for name in ("systemd-nspawn", "debootstrap", "nsenter") if not _which(name)]
    if os.geteuid() != 0:
        return "this needs root"
    return f"missing: {', '.join(missing)} (apt-get install systemd-container debootstrap)" if missing else None


def _which(name: str) -> bool:
    return any((Path(place) / name).exists() for place in _CLEAN["PATH"].split(":"))


def base(packages: str) -> Path:
    """A Debian with these packages and no more, made unless it is there."""
    found = BASES / f"bookworm-{zlib.crc32(packages.encode()):08x}"
    if not found.exists():
        made = found.with_suffix(".new")
        subprocess.run(["rm", "-rf", made], check=True)
        made.parent.mkdir(parents=True, exist_ok=True)
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", made, MIRROR]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        made.rename(found)
    return found


class Machine:
    """One of them, on `host`; `boot` starts it, `off` cuts its power."""

    def __init__(self, host: Host, nameserver: str = "", packages: str = FURNISHED) -> None:
        self.host = host
        self.root = host.directory / "root"
        upper, work = host.directory / "upper", host.directory / "work"
        for made in (self.root, upper, work):
            made.mkdir()
        options = f"lowerdir={base(packages)},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "none", "-o", options, self.root], check=True)
        (self.root / "etc/resolv.conf").unlink(missing_ok=True)
        (self.root / "etc/resolv.conf").write_text(f"nameserver {nameserver}\n" if nameserver else "")
        (self.root / "etc/dpkg/dpkg.cfg.d/ops").write_text("force-unsafe-io\n")  # these machines need not survive a power cut right after
        (self.root / "etc/hostname").write_text(f"{host.name}\n")
        self._device = host.directory / "tun"
        os.mknod(self._device, 0o666 | stat.S_IFCHR, os.makedev(10, 200))
        self._device.chmod(0o666)  # as on every machine that is no container
        self._groups = [place.parent / f"ipop-ops-{os.getpid()}-{host.name}" for place in _hierarchies()]
        self._nspawn: Process | None = None

    def boot(self) -> None:
        """Start it, and wait until its services have started: `running`, or `degraded` where one has failed."""
        nspawn = ["systemd-nspawn", "--quiet", f"--directory={self.root}", f"--machine={self.host.name}", "--register=no", "--keep-unit"]
        nspawn += [f"--network-namespace-path=/run/netns/{self.host.namespace}", "--capability=CAP_NET_ADMIN", "--resolv-conf=off"]
        nspawn += [f"--bind={self._device}:/dev/net/tun", "--console=pipe", "--boot"]
        command = ["bash", "-c", _OWN_GROUP, " ".join(map(str, self._groups)), *nspawn]
        self._nspawn = Process(command, self.host.directory / "machine.log")
        wait_for(f"the boot of {self.host.name}", 120, lambda: self.try_("systemctl is-system-running")[1].strip() in _BOOTED, 0.5)
        self.run("mount -o remount,rw,bind /proc/sys")  # nspawn protects it; a machine of its own has it writable

    def reboot(self) -> None:
        """As an administrator would. Where nspawn is no service itself, it ends instead."""
        assert self._nspawn is not None
        self.try_("systemctl reboot")
        status = self._nspawn.wait(90)
        if status != _REBOOTS:
            raise EnvironmentProblem(f"{self.host.name} did not reboot but end, with {status}")
        self.boot()

    def off(self) -> None:
        """For good: cut the power, remove what is outside of the lab's directory. Idempotent."""
        self.cut_power()
        subprocess.run(["umount", self.root], check=False, capture_output=True)
        for group in self._groups:
            subprocess.run(["find", group, "-depth", "-type", "d", "-delete"], check=False, capture_output=True)

    def cut_power(self) -> None:
        """Nothing in it has time for anything. Idempotent."""
        leader = self._leader()
        if leader is not None:
            subprocess.run(["kill", "-9", leader], check=False)
        if self._nspawn is not None:
            self._nspawn.stop(20)
            self._nspawn = None

    def _leader(self) -> str | None:
        """Its first process."""
        if self._nspawn is None:
            return None
        found = subprocess.run(["pgrep", "-P", str(self._nspawn.pid)], check=False, capture_output=True, text=True).stdout.split()
        return found[0] if found else None

    def try_(self, script: str, timeout: float = 120.0, outside: bool = False) -> tuple[int, str, str]:
        """Type something as root: (exit status, stdout, stderr). `outside` gives it this machine's own network, for the internet."""
        leader = self._leader()
        if leader is None:
            return 255, "", "the machine is off"
        inside = ["nsenter", "--target", leader, "--mount", "--uts", "--ipc", "--pid", *([] if outside else ["--net"])]
        inside += ["--wdns=/root", "bash", "-c", script]
        try:
            done = subprocess.run(
                inside, check=False, capture_output=True, text=True, timeout=timeout, env=_CLEAN, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            return 124, "", f"{script!r} took more than {timeout:g} s"
        return done.returncode, done.stdout, done.stderr

    def run(self, script: str, timeout: float = 120.0, outside: bool = False) -> str:
        """Type something that must work; gives its stdout. Raises `EnvironmentProblem`."""
        status, out, err = self.try_(script, timeout, outside)
        if status:
            raise EnvironmentProblem(f"{script!r} on {self.host.name} gave {status}", (err or out).strip()[-2000:])
        return out

    def copy(self, file: Path) -> str:
        """Put a file into /root; gives its path there."""
        (self.root / "root" / file.name).write_bytes(file.read_bytes())
        return f"/root/{file.name}"


def _hierarchies() -> list[Path]:
    found = sorted(_CGROUPS.glob("*/cgroup.procs"))
    return found if (_CGROUPS / "systemd").exists() else [_CGROUPS / "cgroup.procs"]
