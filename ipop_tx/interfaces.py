"""Every interface of ipop_tx, in the order in which a packet meets them.

Conventions. `now` is a float of seconds from a monotonic clock. A datagram is a bytes-like object. Everything that
`core` is given obeys the sans-IO rule: no method blocks, reads a clock or draws a random number of its own.
"""

# zope interfaces have neither self nor bodies.
# mypy: disable-error-code="empty-body"
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import TYPE_CHECKING, Any

from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from ipop_tx.values import Endpoint, Ident, Peer

    Buffer = bytes | bytearray | memoryview


class IFramePort(Interface):
    """A device that gives and takes Ethernet frames: a TAP, or a test's pair of queues.

    A frame crosses the port behind an *offload head* of 10 bytes (`ipop_tx.forwarding.offload`): it may be a super-frame of up to
    64 KiB, to be cut into segments by whoever is last, and its checksum may be left to them. All zeros: an ordinary frame.
    """

    name: str = Attribute("the interface's name, for logs")
    mtu: int = Attribute("largest IP packet, in bytes")
    offloads: tuple[str, ...] = Attribute("what the kernel does itself, of `ipop_tx.forwarding.offload.OFFLOADS`; empty while closed")

    def start(receiver: IFrameReceiver) -> None:
        """Open the device and tell `receiver` when frames wait. Raises `EnvironmentProblem`."""

    def stop() -> None:
        """Close the device and put back what `start` changed."""

    def readv(buffers: Sequence[bytearray | memoryview]) -> int:
        """Take the next frame: offload head and frame, filled into `buffers` one after another. Gives their bytes; 0 when none waits."""

    def writev(buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Hand one frame to the kernel: the buffers one after another are offload head and frame. A full queue drops it and counts."""

    def pause() -> None:
        """Tell the receiver nothing until `resume`: frames wait in the kernel."""

    def resume() -> None:
        """Go on after `pause`."""


class IFrameReceiver(Interface):
    """Whom an `IFramePort` tells."""

    def frames_waiting() -> None:
        """Take some by `readv`. If any are left, this is called again soon, after others had their turn."""


class ITransport(Interface):
    """One way to carry datagrams: UDP, a relay over TLS, Tor, a simulated net. Unreliable, unordered, unauthenticated."""

    scheme: str = Attribute("the scheme of its endpoints, for instance 'udp'")
    datagram_bytes: int = Attribute("the largest datagram that every path carries; 0 when that depends on the path and is to be found out")

    def start(receiver: IDatagramReceiver) -> None:
        """Bind and begin to deliver. Raises `EnvironmentProblem` naming the address when it is taken."""

    def stop() -> None:
        """Release everything. Idempotent. What waits in the queue is lost; whoever waits for `IDatagramReceiver.drained` hears it."""

    def write(endpoint: Endpoint, datagram: bytes | memoryview) -> None:
        """Send one datagram; errors of the path are silent, as on the wire. When the queue is full, some wait."""

    def layout(buffers: Sequence[memoryview]) -> Sequence[memoryview]:
        """Prepare writable buffers to be sent by `write_run` again and again: one buffer, or head, body, head, body, ... of datagrams."""

    def write_run(endpoint: Endpoint, buffers: Sequence[bytes | memoryview], size: int, total: int) -> bool:
        """Send a *run*: the first `total` bytes of the buffers, cut into datagrams of `size` bytes, of which the last may be shorter.

        A transport with offloads does it in one call; at most 64 datagrams and 65000 bytes. The buffers are free again on return.
        False when the queue is full: this run will still be sent, but no other should follow before `IDatagramReceiver.drained`.
        """

    def local_endpoints() -> list[Endpoint]:
        """The endpoints under which this machine itself knows that it can be reached, the likeliest first."""


class ITransports(ITransport):
    """Several transports as one. Who sends much asks once for the one that carries to an endpoint, and uses that itself."""

    def carrier(endpoint: Endpoint) -> ITransport:
        """The transport that carries datagrams to `endpoint`; for a scheme that nobody has, one that drops them."""


class IDatagramReceiver(Interface):
    """Where an `ITransport` delivers."""

    def datagram_received(endpoint: Endpoint, datagram: bytes | memoryview) -> None:
        """One datagram, from `endpoint`. It is valid only during the call."""

    def run_received(endpoint: Endpoint, heads: bytearray, bodies: memoryview, size: int, total: int) -> None:
        """A run from one endpoint: datagrams of `size` bytes, of which the last may be shorter, `total` bytes in all.

        The first 16 bytes of each stand side by side in `heads`, the rest side by side in `bodies`. Both are valid only during the call,
        in which the receiver may write into them.
        """

    def burst_ended() -> None:
        """Nothing more has arrived for now: what waits for company need not wait any longer. Follows every delivery, of one or of many."""

    def drained() -> None:
        """The transport's queue, which was full, is empty again, or was given up with the transport."""

    def path_lost(endpoint: Endpoint) -> None:
        """The connection by which `endpoint` was reached has ended. Only transports that have connections know."""


class ISealedChannel(Interface):
    """Both directions of an established session, for a data plane that seals and opens records in buffers of its own."""

    send_index: int = Attribute("the peer's receiver index")
    highest: int = Attribute("the greatest counter opened so far, -1 before the first")
    datagrams_opened: int = Attribute("how many records were opened")
    datagrams_sealed: int = Attribute("how many records were sealed")

    def reserve(count: int) -> int:
        """Take `count` counters, each for one record to be sealed; gives the first one."""

    def encrypt(nonce: Buffer, data: Buffer, associated: None, into: Buffer) -> int:
        """Seal `data` into a buffer that is exactly 16 bytes longer."""

    def decrypt(nonce: Buffer, data: Buffer, associated: None, into: Buffer) -> int:
        """Open `data` into a buffer that is exactly 16 bytes shorter. Raises `InvalidTag`; the buffer then holds anything."""

    def fresh(counter: int) -> bool:
        """Whether a record with this counter may still be opened."""

    def accept(counter: int) -> None:
        """Such a record was opened."""

    def accept_run(first: int, count: int) -> None:
        """The `count` records after the greatest counter so far, `first` being the next one, were opened."""


class ISession(Interface):
    """The keys of one link: a handshake, then sealed datagrams. Sans-IO."""

    established: bool = Attribute("whether the handshake is done and the peer verified")
    failure: Any = Attribute("the `IpopError` that ended the handshake, or None")
    initiated: bool = Attribute("whether this side sent the first flight")
    opening: bytes = Attribute("32 bytes in the first flight that both sides see; the greater wins when two handshakes cross")
    peer: Peer | None = Attribute("the peer, once established")
    local_index: int = Attribute("receiver index of the datagrams that we shall get (bit 31 set, bit 30 clear)")
    tag: bytes = Attribute("8 bytes that both ends derive alike once established; orders two sessions of one link")

    renewable: bool = Attribute("whether a session can still be made from this one by `renew`; true once established, until that is done")
    channel: ISealedChannel | None = Attribute("the sealed channel once established; None in sessions that only simulations use")

    def receive(now: float, datagram: bytes | memoryview) -> None:
        """Take a handshake datagram (first byte 20-63). Garbage is ignored; refusal sets `failure`."""

    def poll_transmit() -> bytes | None:
        """The next handshake datagram to send, or None."""

    def poll_timeout() -> float | None:
        """When `handle_timeout` wants to be called, or None."""

    def handle_timeout(now: float) -> None:
        """Retransmit what is due."""

    def protect(kind: int, payload: bytes | memoryview) -> bytes:
        """Seal one datagram for the peer. Raises `LocalMisuse` before the session is established."""

    def unprotect(datagram: bytes | memoryview) -> tuple[int, bytes]:
        """Open one sealed datagram: (kind, payload). Raises `BadDatagram` for a forgery, a replay or one too old."""

    def offer() -> bytes:
        """Our public key (32 bytes) for the renewal of this session; the same at each call. Raises `LocalMisuse` when not `renewable`."""

    def renew(public: bytes) -> ISession:
        """The session that follows this one, made of `offer` and the peer's `public`, established and with the same peer.

        The peer, called with our `offer`, gets its other end. It is possible once: what it takes is erased. Raises `LocalMisuse` when not
        `renewable`, `BadMessage` for a key that is none.
        """

    def close() -> None:
        """Forget the keys."""


class ISessionFactory(Interface):
    """Makes the sessions of one node."""

    def initiate(now: float) -> ISession:
        """Begin a handshake; its first flight waits in `poll_transmit`."""

    def opening(datagram: bytes | memoryview) -> bytes | None:
        """The `opening` of a datagram that begins a handshake, None for any other. Never raises."""

    def accept(now: float, datagram: bytes | memoryview, source: bytes | None) -> tuple[ISession | None, bytes | None]:
        """Answer a datagram that begins a handshake, without keeping state for strangers.

        Returns (session, None) when it carries a valid cookie for `source` or needs none, since members have passed it on and `source` is
        None; (None, reply) when the cookie has to be asked for, (None, None) when it is junk.
        """


class IRecordSigner(Interface):
    """Signs what this node writes to the DHT, and checks what others wrote."""

    ident: Ident = Attribute("the ident of this node")
    signer: bytes = Attribute("what others need to check our signatures: public key and salt")
    assigned: bytes = Attribute("the IPv4 address (4 bytes) that the authority has assigned to this node; empty if none")
    credential: bytes = Attribute("what proves that this node is a member, and which address is assigned to it; may serve as `signer`")

    def sign(data: bytes) -> bytes:
        """A signature by this node's key."""

    def verify(signer: bytes, data: bytes, signature: bytes) -> Ident | None:
        """The ident whose key made `signature` over `data`, or None when it is not good. The same at any time and at every node."""

    def assignment(signer: bytes) -> tuple[bytes, int]:
        """The address (4 bytes) that the authority has assigned by a credential, and when (Unix seconds); else (b"", 0)."""

    def admitted(credential: bytes) -> Peer | None:
        """The member whose credential this is; None if it is not a member's now."""

    def wall() -> float:
        """Seconds since the Unix epoch, by this node's clock."""

    def key(signer: bytes) -> bytes:
        """The digest (`values.key_digest`) of the key that a signer names; empty when it names none."""

    def by_authority(data: bytes, signature: bytes, ever: bool) -> bool:
        """Whether the network's authority made `signature` over `data`: with its keys of today, or with `ever` of any time."""

    def adopt(charter: Any, text: bytes) -> bool:
        """Whether this is the authority's next charter (`m.Charter`; `text` is what is signed); then its keys count from now on."""


class IReplicaStore(Interface):
    """The disk under the DHT: views and registers of the shards that this node keeps.

    Writes are collected; `commit` makes them durable. The driver commits before any datagram leaves, so nothing is
    ever promised that a restart would forget.
    """

    commits: int = Attribute("how many commits there were anything to write for")

    def load() -> Iterable[tuple[int, bytes, bytes]]:
        """All rows: (shard, key, value); the shard's own view has the empty key."""

    def put(shard: int, key: bytes, value: bytes) -> None:
        """Write one row."""

    def delete(shard: int, key: bytes) -> None:
        """Remove one row, if it is there."""

    def commit() -> None:
        """Make all writes since the last commit durable. Raises `EnvironmentProblem` when the disk refuses."""


class INode(Interface):
    """The control plane of one node, sans-IO. Its class docstring is the contract of the driver."""

    def receive_datagram(now: float, endpoint: Endpoint, datagram: bytes | memoryview) -> None:
        """One datagram from a transport."""

    def receive_aside(now: float, number: int, endpoint: Endpoint, datagram: bytes) -> None:
        """One datagram by a socket that `ipop_tx.core.events.SideWanted` has asked for."""

    def submit(now: float, command: object) -> Any:
        """Ask for something: one of the commands of `ipop_tx.core.commands`. Gives a future of the core."""

    def handle_timeout(now: float) -> None:
        """The time of `poll_timeout` has come."""

    def poll_transmit() -> tuple[Endpoint, bytes] | None:
        """The next datagram to send, or None."""

    def poll_event() -> object | None:
        """The next event for the driver, or None."""

    def poll_timeout() -> float | None:
        """When to call `handle_timeout`, or None."""


class IDHT(Interface):
    """Registers: small signed values under a key, kept by a majority of replicas. Every result is a Deferred.

    Errors: `Unavailable` when no majority answers, `Conflict` when the register is not as the caller believed,
    `LocalMisuse` for a value over 1 KiB.
    """

    def get(key: bytes) -> Deferred[Any]:
        """The register's `Record` (value, version, owner), or None when it is empty."""

    def create(key: bytes, value: bytes, ttl: float) -> Deferred[int]:
        """Fill an empty register for `ttl` seconds; gives its version."""

    def compare_and_set(key: bytes, version: int, value: bytes, ttl: float) -> Deferred[int]:
        """Replace version `version`, which must be ours; gives the new version."""

    def delete(key: bytes, version: int) -> Deferred[None]:
        """Empty a register that is ours."""


class IBroadcast(Interface):
    """Short messages to all members on the ring. While the ring heals one may come twice, or miss a member; nothing says who began it."""

    def broadcast(payload: bytes) -> Deferred[None]:
        """Tell everybody else; fires when it is on its way. At most 1024 bytes, and 20 a second for long.

        Errors: `LocalMisuse` for a longer payload, `Unreachable` off the ring, `EnvironmentProblem` for too many.
        """

    def on_broadcast(listener: Callable[[bytes], object]) -> None:
        """Call `listener` with the payload of each that comes from others."""


class IAddressPool(Interface):
    """Leases of the network's IPv4 addresses."""

    network: IPv4Network = Attribute("the pool")

    def claim(wish: IPv4Address | None = None) -> Deferred[IPv4Address]:
        """Lease an address: the one that the authority assigned, the one held before, `wish`, the first free of this node's own order."""

    def renew() -> Deferred[IPv4Address]:
        """Extend the lease. Fails with `Conflict` when somebody else holds the address."""

    def release() -> Deferred[None]:
        """Give the address back."""


class IResolver(Interface):
    """Finds who owns an overlay address or name, believing verified leases only."""

    def resolve(target: str) -> Deferred[Any]:
        """An `Owner` (ident, name, address) for an IPv4 or IPv6 address or a name; None when nobody owns it."""


class IPuncher(Interface):
    """Direct paths: what this node can be reached under, and attempts to reach others."""

    def candidates() -> list[Endpoint]:
        """The endpoints we offer to peers: our own and those that peers saw."""

    def punch(ident: Ident) -> None:
        """Try now to find a direct path to a linked peer."""


class IStatus(Interface):
    """What the node can tell of itself."""

    def status() -> dict[str, Any]:
        """Self, peers, health, as in `ipop status --json`; keys in docs/control.md."""


class IForwardingControl(Interface):
    """What the forwarding plane asks of the control plane: everything that is slow, rare or a decision."""

    def resolve(address: IPv4Address | IPv6Address) -> Deferred[Ident | None]:
        """The node that verifiably owns an overlay address, and the start of a link to it. None when nobody does."""

    def owns(ident: Ident, address: IPv4Address) -> Deferred[bool]:
        """Whether `address` is verifiably leased to `ident`; asked once for each new inner source address."""

    def misdirected(ident: Ident, address: IPv4Address) -> None:
        """A frame for `address`, which is not ours, came from a peer that takes us for its owner. Called a few times a second at most."""

    def connect(ident: Ident) -> Deferred[Any]:
        """Make a link to a node; fires when the FIB knows it."""

    def next_hop(target: Ident, came_by: Ident) -> tuple[Ident, Ident | None] | None:
        """Which linked node to hand relayed traffic for `target` to, and through whom it then reaches it if not by itself."""

    def unsealed(endpoint: Endpoint, session: ISession, kind: int, payload: bytes) -> None:
        """A sealed datagram that the plane has opened and that is no frame."""

    def opened(adjacency: Any) -> None:
        """Records of a peer were opened since this was last called for it: it wants to hear how many."""

    def path_seen(session: ISession, endpoint: Endpoint) -> None:
        """An authentic frame came from an endpoint other than the adjacency's."""
