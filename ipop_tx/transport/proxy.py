"""Through a proxy: the few bytes that make an HTTP proxy (CONNECT, RFC 9110, 9.3.6) or a SOCKS5 one (RFC 1928, 1929) connect us on.

Sans-IO: send `opening`, feed what comes to `receive`, send what it gives, until `done`; then `rest` is the first of what the far end says.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network

from ipop_tx.errors import EnvironmentProblem, LocalMisuse
from ipop_tx.values import ONION, Endpoint, Proxy

ANSWER_BYTES = 16384
"""No answer of an HTTP proxy is longer, headers and all."""

_VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_SOCKS_REPLIES = (
    "general failure",
    "not allowed by its rules",
    "network unreachable",
    "host unreachable",
    "connection refused",
    "TTL expired",
    "command not supported",
    "address type not supported",
)


def proxy_from(environment: Mapping[str, str]) -> Proxy | None:
    """The proxy that the environment names, as curl reads it: https_proxy, then all_proxy. Raises `LocalMisuse` for a bad one."""
    for name in _VARIABLES:
        if text := environment.get(name, "").strip():
            try:
                return Proxy.parse(text if "://" in text else f"http://{text}")
            except LocalMisuse as error:
                raise LocalMisuse(f"the environment variable {name}: {error.sentence}", error.mend) from None
    return None


def bypassed(host: str, environment: Mapping[str, str]) -> bool:
    """Whether no_proxy says that an address is reached without a proxy: `*`, addresses and ranges count; names cannot be asked for."""
    address = ip_address(host)
    for entry in (environment.get("no_proxy") or environment.get("NO_PROXY", "")).replace(" ", ",").split(","):
        if entry == "*":
            return True
        try:
            if entry and address in ip_network(entry.strip("[]"), strict=False):
                return True
        except ValueError:
            continue
    return False


def chooser(wanted: Proxy | bool | None, environment: Mapping[str, str]) -> Callable[[str], Proxy | None]:
    """By which proxy a host is reached: by `wanted`, or by none when that is False; None leaves it to the environment.

    What it gives raises `LocalMisuse` when the environment names a bad one.
    """

    def proxy_of(host: str) -> Proxy | None:
        if isinstance(wanted, Proxy):
            return wanted
        return proxy_from(environment) if wanted is None and not bypassed(host, environment) else None

    return proxy_of


class Tunnel:
    """One connection through a proxy. `opening` is what we say first."""

    def __init__(self, proxy: Proxy, target: Endpoint) -> None:
        self.done = False
        self.rest = b""
        self.opening = b""
        self._proxy = proxy
        self._target = target
        self._received = b""

    def receive(self, data: bytes) -> bytes:
        """What to answer to bytes from the proxy. Raises `EnvironmentProblem` when it refuses or talks nonsense."""
        self._received += data
        return self._advance()

    def _advance(self) -> bytes:
        raise NotImplementedError

    def _end(self, at: int) -> None:
        self.done, self.rest = True, self._received[at:]

    def _refuse(self, why: str, mend: str = "") -> EnvironmentProblem:
        return EnvironmentProblem(f"the proxy {self._proxy} does not connect to {self._target}: {why}", mend)


class HttpTunnel(Tunnel):
    """By CONNECT."""

    def __init__(self, proxy: Proxy, target: Endpoint) -> None:
        super().__init__(proxy, target)
        host = str(target).partition(":")[2]
        lines = [f"CONNECT {host} HTTP/1.1", f"Host: {host}"]
        if proxy.user or proxy.password:
            lines.append("Proxy-Authorization: Basic " + base64.b64encode(f"{proxy.user}:{proxy.password}".encode()).decode())
        self.opening = "\r\n".join([*lines, "", ""]).encode()

    def _advance(self) -> bytes:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            if len(self._received) > ANSWER_BYTES:
                raise self._refuse("its answer has no end")
            return b""
        line = self._received.partition(b"\r\n")[0].decode("latin-1")
        version, _, said = line.partition(" ")
        if not version.startswith("HTTP/"):
            raise self._refuse("it does not speak HTTP", "name it as socks5:// if it is a SOCKS proxy")
        if not said.startswith("2"):
            mend = "put the user and password into its URL" if said.startswith("407") else ""
            raise self._refuse(f"it says {''.join(filter(str.isprintable, said))[:80]!r}", mend)
        self._end(end + 4)
        return b""


class SocksTunnel(Tunnel):
    """By SOCKS5, with user and password where the proxy wants them."""

    def __init__(self, proxy: Proxy, target: Endpoint) -> None:
        super().__init__(proxy, target)
        self.opening = b"\x05\x02\x00\x02" if proxy.user else b"\x05\x01\x00"
        self._step = self._chosen

    def _advance(self) -> bytes:
        answer = b""
        while not self.done:
            step, before = self._step, len(self._received)
            answer += step()
            if self._step == step and len(self._received) == before:
                break
        return answer

    def _chosen(self) -> bytes:
        """Which method of authentication the proxy takes."""
        if len(self._received) < 2:
            return b""
        version, method = self._received[:2]
        if version != 5:
            raise self._refuse("it does not speak SOCKS5", "name it as http:// if it is an HTTP proxy")
        self._received = self._received[2:]
        if method == 2 and self._proxy.user:
            self._step = self._authenticated
            user, password = self._proxy.user.encode(), self._proxy.password.encode()
            return bytes([1, len(user)]) + user + bytes([len(password)]) + password
        if method:
            raise self._refuse("it wants another authentication than we have", "put the user and password into its URL")
        return self._ask()

    def _authenticated(self) -> bytes:
        if len(self._received) < 2:
            return b""
        if self._received[1]:
            raise self._refuse("it does not take the user and password")
        self._received = self._received[2:]
        return self._ask()

    def _ask(self) -> bytes:
        self._step = self._connected
        return b"\x05\x01\x00" + _socks_address(self._target.host) + self._target.port.to_bytes(2, "big")

    def _connected(self) -> bytes:
        received = self._received
        if len(received) < 5:
            return b""
        if received[0] != 5 or received[1]:
            known = received[0] == 5 and received[1] <= len(_SOCKS_REPLIES)
            raise self._refuse(_SOCKS_REPLIES[received[1] - 1] if known else "its answer makes no sense")
        length = {1: 4, 3: 1 + received[4], 4: 16}.get(received[3])
        if length is None:
            raise self._refuse("its answer makes no sense")
        if len(received) >= 6 + length:
            self._end(6 + length)
        return b""


def _socks_address(host: str) -> bytes:
    """Kind and address; a name of Tor's goes to the proxy as it is."""
    if host.endswith(ONION):
        return b"\x03" + bytes([len(host)]) + host.encode()
    address = ip_address(host)
    return (b"\x01" if address.version == 4 else b"\x04") + address.packed


def tunnel(proxy: Proxy, target: Endpoint) -> Tunnel:
    """What to say to a proxy for a connection to `target`."""
    return HttpTunnel(proxy, target) if proxy.kind == "http" else SocksTunnel(proxy, target)
