"""Our name server in /etc/resolv.conf, before the others, and out again.

What is ours stands between two comments, at the head (`nameserver`) and at the end (`search`, of which the last line counts). The
rest of the file is never touched, so taking ours out gives back the file, whoever has changed the rest in the meantime. While the
daemon is dead, our server's port answers nobody, and the C library goes on to the next line at once.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from ipaddress import ip_address
from pathlib import Path

from ipop_tx.errors import EnvironmentProblem, PermissionProblem

RESOLV_CONF = Path("/etc/resolv.conf")
MAX_SERVERS = 3  # resolv.conf(5): MAXNS
_BLOCK = r"(?m)^# ipop {}: begin\n(?:.*\n)*?# ipop {}: end\n"


def with_ours(text: str, network: str, server: str, domain: str = "") -> str:
    """The file with our server named first, and `domain` searched last where there is one."""
    rest = without_ours(text, network)
    head = _block(network, f"nameserver {server}")
    if not domain:
        return head + rest
    ended = rest if rest.endswith("\n") or not rest else rest + "\n"
    searched = dict.fromkeys([*_searched(rest), domain])  # another network of ours may have taken our domain along
    return head + ended + _block(network, " ".join(["search", *searched]))


def is_in(text: str, network: str, server: str, domain: str = "") -> bool:
    """Whether our lines do what they are for: who comes first among several networks of this machine does not matter."""
    before, found, _ = text.partition(_block(network, f"nameserver {server}"))
    name = re.escape(network)
    blocks = len(re.findall(_BLOCK.format(name, name), text))
    foreign = re.search(r"(?m)^nameserver\s", re.sub(_BLOCK.format("[^:]*", "[^:]*"), "", before))
    return bool(found) and not foreign and blocks == 1 + bool(domain) and (not domain or domain in _searched(text))


def without_ours(text: str, network: str) -> str:
    """The file as it would be without us."""
    name = re.escape(network)
    return re.sub(_BLOCK.format(name, name), "", text)


def servers_of(text: str) -> list[str]:
    """The name servers that the file names outside of blocks of ours and of other networks, as the C library takes them."""
    rest = re.sub(_BLOCK.format("[^:]*", "[^:]*"), "", text)
    named = re.findall(r"(?m)^nameserver[ \t]+(\S+)", rest)
    return [server for server in named if _is_address(server)][:MAX_SERVERS]


def _block(network: str, line: str) -> str:
    return f"# ipop {network}: begin\n{line}\n# ipop {network}: end\n"


def _searched(text: str) -> list[str]:
    lines = re.findall(r"(?m)^(?:search|domain)[ \t]+(.*)$", text)
    return lines[-1].split() if lines else []


def _is_address(text: str) -> bool:
    try:
        ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


class ResolvConf:
    """Keeps our lines in the file at `path`, for one network."""

    def __init__(self, path: Path, network: str) -> None:
        self.path = path
        self._network = network

    def read(self) -> str:
        """The file; empty where there is none. Raises `EnvironmentProblem`."""
        try:
            return self.path.read_text(errors="surrogateescape")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise EnvironmentProblem(f"{self.path} cannot be read: {error.strerror}", _MEND) from None

    def upstream(self) -> list[str]:
        """The name servers that were there before us."""
        return servers_of(self.read())

    def names(self, server: str) -> bool:
        """Whether a name server stands in the file, whoever has put it there."""
        return server in re.findall(r"(?m)^nameserver[ \t]+(\S+)", self.read())

    def put(self, server: str, domain: str) -> None:
        """Put our lines in, if they are not there. Raises `EnvironmentProblem`."""
        text = self.read()
        if not is_in(text, self._network, server, domain):
            self._replace(text, with_ours(text, self._network, server, domain))

    def take_back(self) -> bool:
        """Take our lines out; gives whether there were any. Raises `EnvironmentProblem`."""
        text = self.read()
        rest = without_ours(text, self._network)
        self._replace(text, rest)
        return rest != text

    def _replace(self, before: str, after: str) -> None:
        if before == after:
            return
        try:
            _write(Path(os.path.realpath(self.path)), after.encode(errors="surrogateescape"))
        except PermissionError as error:
            raise PermissionProblem(f"{self.path} cannot be written: {error.strerror}", _BY_ROOT) from None
        except OSError as error:
            if error.errno == errno.EROFS:  # so a service manager may have arranged it
                raise PermissionProblem(f"{self.path} cannot be written: {error.strerror}", _BY_ROOT) from None
            raise EnvironmentProblem(f"{self.path} cannot be written: {error.strerror}", _MEND) from None


_BY_ROOT = "have root run 'ipop dns tell', as ipop@.service does"
_MEND = 'name another file in dns.resolv_conf, or set dns.system = "none" and point your resolver at dns.listen by hand'


def _write(path: Path, content: bytes) -> None:
    """Whole, then renamed; in place where the file is a mount of its own, as in containers."""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".resolv.conf.", dir=path.parent)
    except PermissionError:
        path.write_bytes(content)
        return
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        path.write_bytes(content)
