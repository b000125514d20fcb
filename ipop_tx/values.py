"""The values that every floor shares: idents, endpoints, peers, networks. Immutable, no behaviour beyond reading and writing themselves."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from typing import NamedTuple

from ipop_tx.errors import LocalMisuse

Ident = bytes
"""A node's place on the ring: 20 bytes, big-endian, compared as an unsigned integer."""

IDENT_BYTES = 20
IDENT_BITS = 160

ONION = ".onion"
"""The end of the names of Tor's onion services, 56 letters and digits before it (v3; rend-spec-v3, 6)."""

INWARD = "-in"
"""The end of the scheme of a connection that somebody made to us."""
SIDE = "@"
"""Stands in a scheme before the number of a socket beside the transport's own one."""


class Endpoint(NamedTuple):
    """An address that a transport can reach, written `udp:198.51.100.7:4500` or `udp:[2001:db8::7]:4500`."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read the written form.

        Raises `LocalMisuse` when `text` is not `SCHEME:HOST:PORT` with an IP address, or the name of an onion service, as host.
        """
        scheme, _, rest = text.partition(":")
        host, _, port = rest.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        good = scheme.isalnum() and port.isascii() and port.isdigit() and 0 < int(port) < 65536
        if good and (host.endswith(ONION) or scheme == "onion"):
            good = re.fullmatch(r"[a-z2-7]{56}\.onion", host) is not None
        elif good:
            try:
                good = (ipaddress.ip_address(host).version == 6) == bracketed
            except ValueError:
                good = False
        if not good:
            raise LocalMisuse(f"{text!r} is not an endpoint", "write it as udp:198.51.100.7:4500 or udp:[2001:db8::7]:4500")
        return cls(scheme, host, int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}:{host}:{self.port}"

    @property
    def inward(self) -> bool:
        """Whether it names a connection that somebody made to us: nobody can be reached there once that has ended.

        Its scheme ends in `-in`, which no written endpoint can: so it is never offered, remembered or configured.
        """
        return self.scheme.endswith(INWARD)

    @property
    def side(self) -> int:
        """By which socket beside the transport's own one it is reached (`udp@7:...`: number 7); 0 for its own. Never written either."""
        return int(self.scheme.partition(SIDE)[2] or 0)

    def by_side(self, number: int) -> Endpoint:
        """The same place, reached by such a socket; by the transport's own one with 0."""
        return self._replace(scheme=f"{self.carrier}{SIDE}{number}" if number else self.carrier)

    @property
    def passing(self) -> bool:
        """Whether it means something only for as long as a connection or a socket of ours lasts: it is never offered or remembered."""
        return self.inward or SIDE in self.scheme

    @property
    def carrier(self) -> str:
        """The scheme of the transport that carries datagrams to it."""
        return self.scheme.removesuffix(INWARD).partition(SIDE)[0]


class Proxy(NamedTuple):
    """Who makes TCP connections for us, written `http://proxy:3128` or `socks5://user:password@proxy:1080`."""

    kind: str
    """`http` (CONNECT) or `socks5`."""
    host: str
    port: int
    user: str = ""
    password: str = ""

    @classmethod
    def parse(cls, text: str) -> Proxy:
        """Read the written form; `socks5h` is the same as `socks5`. Raises `LocalMisuse`, without repeating a password."""
        from urllib.parse import unquote, urlsplit

        try:
            parts = urlsplit(text)
            kind, host, port = parts.scheme.lower().replace("socks5h", "socks5"), parts.hostname or "", parts.port
        except ValueError:
            kind, host, port = "", "", None
        if kind == "https":
            raise LocalMisuse("a proxy that is itself reached by TLS cannot be used", "name it as http:// if it takes plain CONNECT too")
        if kind not in ("http", "socks5") or not host or not (host.isascii() and host.isprintable()) or parts.path.strip("/"):
            raise LocalMisuse("this is not a proxy", "write it as http://proxy.example.net:3128 or socks5://192.0.2.1:1080")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if max(len(user.encode()), len(password.encode())) > 255:
            raise LocalMisuse("the proxy's user name or password is longer than 255 bytes")
        return cls(kind, host, port or (1080 if kind == "socks5" else 8080), user, password)

    def __str__(self) -> str:
        """Without user and password: for logs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}://{host}:{self.port}"


def key_digest(public: bytes) -> bytes:
    """SHA-256 of a public key as a compressed SEC 1 point: what revocations name it by. Takes it in either form, 33 bytes or 65."""
    if len(public) == 65:
        public = bytes([2 + (public[64] & 1)]) + public[1:33]
    return hashlib.sha256(public).digest()


@dataclass(frozen=True, slots=True)
class Peer:
    """Who stands at the other end of a session, as its certificate proves it.

    `guest` is true for somebody who proved only that it holds an invitation's key: no member yet,
    allowed to ask for admission and nothing else; its `ident` is then the hash of that key.
    """

    ident: Ident
    name: str
    guest: bool = False
    admits: bool = False
    public_key: bytes = b""
    """Uncompressed SEC 1 point of the P-256 key, 65 bytes."""
    not_after: int = 0
    """Seconds since the Unix epoch at which the certificate ends."""
    groups: tuple[str, ...] = ()
    """Groups to which the network's policy gives rights; the certificate says them."""
    admitted_by: bytes = b""
    """The digest of the key that has signed the certificate; empty for a guest."""
    routes: tuple[str, ...] = ()
    """IP networks beyond the overlay to which it may lead; the certificate says them."""
    begun: int = 0
    """When the certificate was made, in seconds since the Unix epoch."""

    @property
    def key(self) -> bytes:
        """The digest of its key. Simulated peers have none but their ident."""
        return key_digest(self.public_key or self.ident)


@dataclass(frozen=True, slots=True)
class Network:
    """What all members know of their network; signed, because it stands in the authority's certificate."""

    name: str
    ident: bytes
    """SHA-256 of the authority's public key, cut to 20 bytes."""
    pool: ipaddress.IPv4Network
    prefix: ipaddress.IPv6Network
    """A /48 of the unique local range (RFC 4193); a node's address is this prefix and the first 80 bits of its ident."""
    shards: int = 32
    """Into how many parts the key space of the DHT is divided; fixed for the life of a network."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What a replica keeps of the DHT, were it to keep all of it: a shard gets its part. See docs/dht.md."""

    registers: int = 16384
    """Registers that one member may have."""
    bytes: int = 8 << 20
    """Bytes that one member may fill."""
    total: int = 256 << 20
    """Bytes of all members together."""


def short(ident: Ident) -> str:
    """The first eight hex digits of an ident, for people."""
    return ident[:4].hex()
