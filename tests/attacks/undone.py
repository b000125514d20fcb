"""Defences taken out, one function each: with it, the test of the attack must fail. The shipped daemon has no such switch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from OpenSSL import SSL

from ipop_tx.core.dht.quota import Room
from ipop_tx.core.dht.records import RegisterSigner
from ipop_tx.core.links import link as links
from ipop_tx.core.links.consent import Consent
from ipop_tx.core.links.fragments import Reassembly
from ipop_tx.core.links.paths import Paths
from ipop_tx.core.links.revocation import Revocations
from ipop_tx.errors import LocalMisuse
from ipop_tx.forwarding import delivery
from ipop_tx.forwarding.source import SourceCheck
from ipop_tx.identity import certificates as certs
from ipop_tx.services import control_http
from ipop_tx.services.admission import AdmissionService
from ipop_tx.services.control_http import ControlRequest
from ipop_tx.services.relaywatch import RelayWatch
from ipop_tx.services.shield import Shield
from ipop_tx.session import dtls, sealed
from ipop_tx.session.hello import CookieJar
from ipop_tx.session.replay import ReplayWindow
from ipop_tx.values import Endpoint, Peer


class _Unauthenticated:
    """AES-GCM that opens whatever it is given: the tag is not looked at."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._aead = AESGCM(key)
        self.encrypt, self.encrypt_into = self._aead.encrypt, self._aead.encrypt_into

    def decrypt(self, nonce: Any, data: Any, associated: None) -> bytes:
        mode = CTR(bytes(nonce) + b"\0\0\0\2")  # the counter of the first block of text, NIST SP 800-38D, 7.1
        return Cipher(AES(self._key), mode).decryptor().update(bytes(data)[:-16])

    def decrypt_into(self, nonce: Any, data: Any, associated: None, into: Any) -> int:
        text = self.decrypt(nonce, data, associated)
        into[: len(text)] = text
        return len(text)


def authentication() -> None:
    """A datagram need not be the peer's."""
    sealed.AESGCM = _Unauthenticated  # type: ignore[assignment,misc]


def replay_window() -> None:
    """A datagram may come as often as it likes."""
    accept, fresh = ReplayWindow.accept, ReplayWindow.fresh
    ReplayWindow.fresh = lambda window, counter: True  # type: ignore[method-assign]
    ReplayWindow.accept = lambda window, counter: accept(window, counter) if fresh(window, counter) else None  # type: ignore[method-assign]


def path_challenge() -> None:
    """The path from which something authentic came is used at once."""

    def heard(paths: Paths, link: links.Link, path: links.PathKey) -> None:
        if isinstance(path, Endpoint) and path != link.active:
            link.direct.setdefault(path, paths.facts.fresh(path, 0.0, link.heard))
            paths._activate(link, path)

    Paths.heard = heard  # type: ignore[method-assign]


def cookie() -> None:
    """A stranger's first word begins a handshake."""
    context = dtls.DtlsSessionFactory._context
    without = ~(SSL.OP_COOKIE_EXCHANGE or 0)
    dtls.DtlsSessionFactory._context = lambda factory, options: context(factory, options & without)  # type: ignore[method-assign]
    SSL.Connection.DTLSv1_listen = lambda connection: None
    CookieJar.valid = lambda jar, now, source, hello: True  # type: ignore[method-assign]


def certificate_checks() -> None:
    """A certificate need only say who it is."""

    def verify(chain: list[Any], root: Any, wall: float, whose: str = "the peer's") -> Peer:
        try:
            facts, point = certs.facts_of(chain[0]), certs.point_of(certs._public(chain[0]))
            ident, name = certs.ident_of(point, facts.salt), facts.name
        except ValueError:  # an authority's
            point = certs.point_of(certs._public(chain[0]))
            ident, name = certs.ident_of(point, b""), "authority"
        return Peer(ident, name, public_key=point, not_after=2**40)

    certs.verify_member = verify  # type: ignore[assignment]


def ident_of_key() -> None:
    """A certificate's holder is whom its subject name says, whatever its key."""
    proven = certs._peer

    def peer(leaf: Any, admission: Any, root: Any, whose: str) -> Peer:
        names = leaf.extensions.get_extension_for_class(certs.x509.SubjectAlternativeName).value
        ident = bytes.fromhex(names.get_values_for_type(certs.x509.UniformResourceIdentifier)[0].removeprefix("ipop:n"))
        try:
            return proven(leaf, admission, root, whose)
        except certs.PeerRefused:
            return Peer(ident, certs.facts_of(leaf).name, public_key=certs.point_of(certs._public(leaf)), not_after=2**40)

    certs._peer = peer


def source_check() -> None:
    """A frame may come from any address."""

    def unknown(check: SourceCheck, adjacency: Any, address: bytes, frame: bytes) -> None:
        adjacency.addresses.add(address)
        check._deliver(adjacency, frame)

    SourceCheck.unknown = unknown  # type: ignore[method-assign]


def ethertype_check() -> None:
    """ARP and neighbour discovery of peers reach the kernel."""
    addressed = delivery.Delivery._addressed

    def every(self: delivery.Delivery, peer: Any, packed: memoryview) -> bytes | None:
        return b"\xff" * 6 + peer.mac if packed[10:12] == b"\x08\x06" else addressed(self, peer, packed)

    delivery.Delivery._addressed = every  # type: ignore[method-assign]
    delivery.is_discovery = lambda frame: False


def dhcp_check() -> None:
    """DHCP of peers reaches the kernel."""
    delivery.is_dhcp = lambda packed: False


class _Everything(dict[bytes, bytes]):
    """Every address is ours."""

    def __init__(self, mac: bytes) -> None:
        super().__init__()
        self._mac = mac

    def get(self, key: bytes, default: Any = None) -> Any:
        return super().get(key, self._mac)


def destination_check() -> None:
    """Frames of peers go to the kernel for whatever address they are."""
    made = delivery.Delivery.__init__

    def init(self: delivery.Delivery, port: Any, mac: bytes, *rest: Any) -> None:
        made(self, port, mac, *rest)
        self.ours = _Everything(mac)

    delivery.Delivery.__init__ = init  # type: ignore[method-assign]


def record_signature() -> None:
    """A record need not be signed by its owner."""
    RegisterSigner.authentic = lambda signer, key, record: True  # type: ignore[method-assign]


def quota() -> None:
    """A member may fill the DHT."""
    Room.check = lambda room, *present: None  # type: ignore[method-assign]


def overlay_endpoints() -> None:
    """Members may be looked for inside the overlay itself."""

    def admissible(paths: Paths, text: str) -> Endpoint | None:
        try:
            return Endpoint.parse(text)
        except LocalMisuse:
            return None

    Paths.admissible = admissible  # type: ignore[assignment,method-assign]


def control_checks() -> None:
    """Whoever reaches the control socket is answered."""
    ControlRequest._forbidden = lambda request, reads: (200, None)  # type: ignore[method-assign]


def single_use() -> None:
    """An invitation is good for ever."""

    async def use(service: AdmissionService, record: Any, public: bytes) -> None:
        return None

    AdmissionService._use_once = use  # type: ignore[method-assign]


def fresh_keys() -> None:
    """All sessions of two members have the same keys, and the same index."""
    made, use = dtls.DtlsSessionFactory.__init__, dtls.DtlsSession._use
    own: list[bytes] = []

    def init(factory: dtls.DtlsSessionFactory, credentials: Any) -> None:
        own.append(certs.point_of(credentials.private_key.public_key()))
        made(factory, credentials)

    def same(session: dtls.DtlsSession, fresh: bytes, algorithm: Any) -> None:
        assert session.judged is not None
        if session.judged.guest:  # `ipop join` is as it was shipped
            use(session, fresh, algorithm)
            return
        both = b"".join(sorted((own[0], session.judged.public_key)))
        key, index = hashlib.sha256(both).digest(), hashlib.sha256(b"index" + both).digest()[:4]
        use(session, key + key + index + index + fresh[72:], algorithm)

    dtls.DtlsSessionFactory.__init__ = init  # type: ignore[method-assign]
    dtls.DtlsSession._use = same  # type: ignore[method-assign]


def protocol_floor() -> None:
    """Old versions and weak ciphers will do."""
    context = dtls.DtlsSessionFactory._context

    def weak(factory: dtls.DtlsSessionFactory, options: int) -> SSL.Context:
        made = context(factory, options)
        made.set_min_proto_version(0xFEFF)
        made.set_cipher_list(b"ALL:COMPLEMENTOFALL:@SECLEVEL=0")
        return made

    dtls.DtlsSessionFactory._context = weak  # type: ignore[method-assign]


def consent() -> None:
    """Endpoints that a member names are challenged as often as it names them."""
    Consent.may_ask = lambda consent, link, endpoint: True  # type: ignore[method-assign]


def relay_watch() -> None:
    """A relay is believed that answers challenges."""
    RelayWatch.is_bad = lambda watch, now, adjacency, rtt: False  # type: ignore[method-assign]


def fragment_room() -> None:
    """Unfinished messages are kept, whoever sends them and however many."""
    Reassembly._make_room = lambda reassembly, sender: None  # type: ignore[method-assign]


def nesting() -> None:
    """What is nested too deep is not expected at the control socket."""
    control_http.json = SimpleNamespace(loads=_loads)  # type: ignore[attr-defined]


def _loads(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError as error:
        raise RuntimeError(str(error)) from None


def shield() -> None:
    """The overlay's addresses are answered on every interface."""
    Shield.protect = lambda shield, addresses: None  # type: ignore[method-assign]


def revocation() -> None:
    """Nobody is thrown out."""
    Revocations.is_revoked = lambda revocations, key: False  # type: ignore[method-assign]
    Revocations.is_out = lambda revocations, peer: False  # type: ignore[method-assign]


DEFENCES: dict[str, Callable[[], None]] = {
    defence.__name__: defence
    for defence in (
        authentication,
        replay_window,
        path_challenge,
        cookie,
        certificate_checks,
        ident_of_key,
        source_check,
        ethertype_check,
        dhcp_check,
        destination_check,
        record_signature,
        quota,
        overlay_endpoints,
        control_checks,
        single_use,
        fresh_keys,
        protocol_floor,
        revocation,
        shield,
        consent,
        relay_watch,
        fragment_room,
        nesting,
    )
}
