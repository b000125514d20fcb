"""The authority itself: who signs in its name. Charters are kept here, and made where the authority's key is.

A new key is written down before the charter that names it is given; it takes the old one's place when the charter counts, so a machine
that dies between has both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
from cryptography import x509
from twisted.internet.defer import Deferred

from ipop_tx.core import events as e
from ipop_tx.core.dht.records import AuthorityOrder, order_text
from ipop_tx.errors import IpopError, LocalMisuse, PeerRefused, StateError
from ipop_tx.identity import appointed
from ipop_tx.identity import certificates as certs
from ipop_tx.identity import state as files
from ipop_tx.identity.appointed import Appointment
from ipop_tx.identity.authority import Admitter, p256
from ipop_tx.identity.keys import PrivateKey, compressed_point_of, generate_key, key_of_point, read_key, write_key
from ipop_tx.identity.state import StateDirectory
from ipop_tx.identity.trust import Trust, enough
from ipop_tx.log import Logger
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.services.control import Route
from ipop_tx.services.orders import authority_key, command_of, from_file, from_text, signed, to_file, to_text, told
from ipop_tx.wire import messages as m

OVERLAP = 30 * certs.DAY
"""Seconds for which an old root goes on to count for what it has signed, unless told otherwise."""

MOST_LISTED = 64
"""Admission certificates in a charter."""


class AuthorityService:
    """Keeps charters, and makes the next. Construct it first of all that obeys orders. Raises `StateError` for damaged files."""

    _log = Logger()

    def __init__(
        self,
        protocol: ChordProtocol,
        state: StateDirectory,
        trust: Trust,
        key: PrivateKey | None,
        use: Callable[[Admitter], object],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`use` is told when this node admits by another certificate than before."""
        self._protocol = protocol
        self._state = state
        self._trust = trust
        self.key = key
        self._use = use
        self._wall = wall
        self._charters = protocol.node.charters
        self._charters.restore(_read(state))
        protocol.on(e.CharterAdopted, self._adopted)
        self._take_up()

    # --- what counts -------------------------------------------------------------------------

    def _adopted(self, event: e.CharterAdopted) -> None:
        charter: m.Charter = event.charter
        self._log.warn("charter_adopted number={number} threshold={threshold}", number=charter.number, threshold=charter.threshold)
        try:
            self._state.write_json(files.CHARTERS, {"charters": [to_text(one) for one in self._charters.all]})
            self._take_up()
        except IpopError as error:
            self._log.error("charter_not_kept reason={reason}", reason=str(error))

    def _take_up(self) -> None:
        """Use the key and the admission certificate that the newest charter gives to this machine."""
        charter = self._trust.charter
        if charter is None:
            return
        roots = [x509.load_der_x509_certificate(der) for der, until in charter.roots if not until]
        points = [compressed_point_of(p256(root)) for root in roots]
        if self._state.exists(files.NEXT_AUTHORITY_KEY):
            key = read_key(self._state, files.NEXT_AUTHORITY_KEY)
            if compressed_point_of(key.public_key()) in points:
                write_key(self._state, files.AUTHORITY_KEY, key)
                self._state.write(files.AUTHORITY_CERTIFICATE, certs.to_pem(roots))
                self._state.remove(files.NEXT_AUTHORITY_KEY)
                self.key = key
        if self._state.exists(files.ADMISSION_CERTIFICATE):
            admitter = Admitter.load(self._state)
            try:
                above = self._trust.above(admitter.certificate)
            except PeerRefused as refusal:
                self._log.warn("not_listed reason={reason}", reason=str(refusal))
                return
            if above != [admitter.certificate, admitter.root]:
                self._state.write(files.ADMISSION_CERTIFICATE, certs.to_pem(above))
            self._use(Admitter.load(self._state))

    # --- the next charter --------------------------------------------------------------------

    def routes(self) -> dict[str, Route]:
        """What the control socket offers."""
        return {
            "GET /authority": lambda arguments: self.shown(),
            "POST /authority/roll": lambda arguments: Deferred.fromCoroutine(self.roll(arguments.get("overlap_s"))),
            "POST /authority/approvers": lambda arguments: Deferred.fromCoroutine(
                self.approvers(arguments.get("threshold"), arguments.get("keys"))
            ),
            "POST /authority/renew": lambda arguments: Deferred.fromCoroutine(self.renew()),
            "POST /orders": lambda arguments: Deferred.fromCoroutine(self.give(arguments)),
        }

    def shown(self) -> dict[str, Any]:
        """The charter in force."""
        keys, threshold = self._trust.signers
        roots = [{"fingerprint": certs.fingerprint(root).hex(), "until": until or None} for root, until in self._trust.roots]
        return {"number": self._charters.number, "roots": roots, "threshold": threshold, "keys": [key.hex() for key in keys]}

    async def roll(self, overlap_s: Any = None) -> dict[str, Any]:
        """Give the authority another key. Admission certificates are made anew with it. Raises `LocalMisuse`."""
        overlap = OVERLAP if overlap_s is None else overlap_s
        if not isinstance(overlap, (int, float)) or not 0 <= overlap <= 3660 * certs.DAY:
            raise LocalMisuse("overlap_s is not a number of seconds up to ten years", "give for instance 2592000")
        old = authority_key(self.key, "roll its key over", "ipop authority roll")
        now = self._wall()
        pending = self._state.exists(files.NEXT_AUTHORITY_KEY)  # and maybe named by a charter that others are just signing
        new = read_key(self._state, files.NEXT_AUTHORITY_KEY) if pending else generate_key()
        root = certs.next_root(new, self._trust.roots[-1][0], now)
        write_key(self._state, files.NEXT_AUTHORITY_KEY, new)
        keys, threshold = self._trust.signers
        ours = compressed_point_of(old.public_key())
        keys = tuple(compressed_point_of(new.public_key()) if key == ours else key for key in keys)
        leaving = [(certs.to_der(one), until or int(now + overlap)) for one, until in self._trust.roots if not until or until > now][-2:]
        roots = (*((der, until) for der, until in leaving if until > now), (certs.to_der(root), 0))
        return await self._next(roots, keys, threshold, self._appointments(new, root), [old, new])

    async def approvers(self, threshold: Any, keys: Any) -> dict[str, Any]:
        """Let so many of these keys (compressed points in hex) sign orders from now on, and nobody else. Raises `LocalMisuse`."""
        pen = authority_key(self.key, "say who approves", "ipop authority approvers")
        try:
            points = tuple(dict.fromkeys(bytes.fromhex(key) for key in keys))
            for point in points:
                key_of_point(point)
            good = isinstance(threshold, int) and 1 <= threshold <= len(points) <= 16 and all(len(point) == 33 for point in points)
        except (TypeError, ValueError):
            good = False
        if not good:
            mend = "give up to 16 keys as ipop authority key printed them"
            raise LocalMisuse("these are no keys of approvers, or fewer than must sign", mend)
        return await self._next(self._roots(), points, threshold, self._appointments(pen, self._trust.roots[-1][0]), [pen])

    async def renew(self) -> dict[str, Any]:
        """List whoever was appointed meanwhile, and renew the admission certificates that have run for half of their time."""
        pen = authority_key(self.key, "renew rights to admit", "ipop authority renew")
        keys, threshold = self._trust.signers
        return await self._next(self._roots(), keys, threshold, self._appointments(pen, self._trust.roots[-1][0]), [pen])

    def _roots(self) -> tuple[tuple[bytes, int], ...]:
        return tuple((certs.to_der(root), until) for root, until in self._trust.roots if not until or until > self._wall())

    def _appointments(self, pen: PrivateKey, root: x509.Certificate) -> list[Appointment]:
        """Whoever may admit still, with certificates that count for a while."""
        now, fresh = self._wall(), []
        for one in appointed.read(self._state):
            if not self._protocol.node.revocations.may_admit(one.key):
                continue
            begun, ends = certs.issued_at(one.certificate), certs.ends_of(one.certificate)
            if not certs.is_issued_by(one.certificate, root) or now > (begun + ends) / 2:
                made = certs.make_admission(pen, root, p256(one.certificate), now, limits=certs.limits_of(one.certificate))
                one = Appointment(one.name, made)
            fresh.append(one)
        return fresh

    async def _next(
        self,
        roots: tuple[tuple[bytes, int], ...],
        keys: tuple[bytes, ...],
        threshold: int,
        admissions: list[Appointment],
        pens: list[PrivateKey],
    ) -> dict[str, Any]:
        """Sign the next charter, and what earlier keys have ordered; carry both out, if that is enough."""
        if len(admissions) > MOST_LISTED:
            raise LocalMisuse(f"{len(admissions)} nodes may admit members, more than a charter can list", "withdraw some rights first")
        network, number = self._trust.network.ident, self._charters.number + 1
        ders = tuple(certs.to_der(one.certificate) for one in admissions)
        orders: list[AuthorityOrder] = [m.Charter(network, number, roots, keys, threshold, ders, int(self._wall()))]
        if (keys, threshold) != self._trust.signers:
            orders += self._standing()
        for pen in pens:
            orders = [signed(pen, order) for order in orders]
        appointed.write(self._state, admissions)
        ready = self._trust.ordered(order_text(orders[0]), orders[0].signature) and all(
            enough(order_text(order), order.signature, keys, threshold) for order in orders
        )
        if not ready:
            return {"number": number, "complete": False, **to_file(orders)}
        await self._carry_out(orders)
        return {"number": number, "complete": True}

    def _standing(self) -> list[AuthorityOrder]:
        """What the authority has said so far and stays in force: without signatures."""
        node = self._protocol.node
        said: list[AuthorityOrder] = [*node.revocations.by_key.values()]
        if node.settings.current is not None:
            said.append(msgspec.structs.replace(node.settings.current, version=max(int(self._wall()), node.settings.newest.version + 1)))
        return [msgspec.structs.replace(order, signature=b"") for order in said]

    # --- orders that were carried about ------------------------------------------------------

    async def give(self, content: Any) -> dict[str, Any]:
        """Carry orders out that enough keys have signed, in their order. Raises `LocalMisuse`."""
        orders = from_file(content)
        await self._carry_out(orders)
        return {"done": [told(order) for order in orders]}

    async def _carry_out(self, orders: list[AuthorityOrder]) -> None:
        for order in orders:
            await self._protocol.submit(command_of(order))


def _read(state: StateDirectory) -> list[m.Charter]:
    stored = state.read_json(files.CHARTERS)
    try:
        return [from_text(text, m.Charter) for text in stored["charters"]] if stored is not None else []
    except (TypeError, KeyError, ValueError):
        raise StateError(f"{state.path / files.CHARTERS} makes no sense", "remove it; the node hears of charters from the others") from None
