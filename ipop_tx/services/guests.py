"""The guests behind a node: DHCP on the TAP, their leases in the DHT and on disk, their packets to their MACs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.core.leases.dhcp import Answer, DhcpServer, Guest, Note, Output, Serve, State
from ipop_tx.core.leases.dhcpterms import Terms
from ipop_tx.errors import Conflict, IpopError
from ipop_tx.forwarding import dhcp as frames
from ipop_tx.forwarding.offload import PLAIN
from ipop_tx.forwarding.plane import ForwardingPlane
from ipop_tx.identity import state as files
from ipop_tx.identity.state import StateDirectory
from ipop_tx.log import Logger
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.services.dhcpport import DhcpPort
from ipop_tx.services.presence import Presence
from ipop_tx.services.tap import TapService
from ipop_tx.wire.dhcp import Message

RECENT = 300.0
"""Seconds for which a client that was turned away is worth a sentence."""
TELL_AFTER = 5.0
"""Seconds for which a guest has waited for an address when that is worth a line in the log."""
MOST_SENTENCES = 3
"""About guests in what this node tells of its health."""


class Stored(msgspec.Struct, frozen=True):
    """A guest on disk. `until` is in seconds since the epoch: the machine may have been off meanwhile."""

    holder: str
    mac: str
    name: str
    address: str
    until: float


class GuestService(Service):
    """Drives a `DhcpServer` with what comes from the TAP."""

    _log = Logger()
    name = "guests"

    def __init__(
        self, reactor: Any, protocol: ChordProtocol, state: StateDirectory, terms: Terms, plane: ForwardingPlane, tap: TapService
    ) -> None:
        self.server = DhcpServer(terms, self._lease_until)
        self._reactor = reactor
        self._protocol = protocol
        self._state = state
        self._plane = plane
        self._tap = tap
        self._mac = bytes((tap.mac[0] ^ 4,)) + tap.mac[1:]
        """The server's: a bridge does not like to hear from itself."""
        self._problem = ""
        self._timer: Any = None
        self._waits: dict[bytes, Any] = {}
        """By holder, the call that tells the log."""
        self._settling = False
        self._port = DhcpPort(reactor, self._receive)
        self._presence = Presence(reactor, plane, tap.writev, self._mac)
        plane.dhcp = self._asked
        protocol.on(e.LeaseGained, self._gained)
        protocol.on(e.LeaseLost, self._lost)
        protocol.on(e.HandOverAsked, self._hand_over_asked)

    # --- life --------------------------------------------------------------------------------

    def startService(self) -> None:
        """Go on with the guests that there were."""
        Service.startService(self)
        if self.server.terms.guests:
            now = self._protocol.clock()
            self.server.restore(now, self._stored(now))
            self._settle()

    def stopService(self) -> None:
        """Leave the guests as they are; they come back with us."""
        Service.stopService(self)
        self._port.close()
        for call in (*self._waits.values(), *([self._timer] if self._timer is not None else [])):
            call.cancel()
        self._timer, self._waits = None, {}

    def address_changed(self, address: IPv4Address | None) -> None:
        """This node's address, by which the server is known, is another one now."""
        self.server.own = address.packed if address is not None else None
        if self.server.terms.guests:
            self._port.listen(address, self._tap.addressed)

    def reconfigure(self, terms: Terms) -> None:
        """Tell guests this from now on; those who are here keep what they were promised."""
        self.server.terms = terms
        own = self.server.own
        self._port.listen(IPv4Address(own) if own and terms.guests else None, self._tap.addressed)

    # --- inputs ------------------------------------------------------------------------------

    def _asked(self, question: Message) -> bool:
        """A client's question from the TAP: is it served?"""
        if not self.server.terms.guests and question.mac != self.server.terms.mac:
            return False
        self._receive(question)
        return True

    def _receive(self, question: Message) -> None:
        if self.running:
            self.server.receive(self._protocol.clock(), question)
            self._settle()

    def _gained(self, event: e.LeaseGained) -> None:
        if event.holder and self.running:
            self.server.gained(self._protocol.clock(), event.holder, event.address)
            self._settle()

    def _lost(self, event: e.LeaseLost) -> None:
        if event.holder and self.running:
            self.server.lost(self._protocol.clock(), event.holder, event.address)
            self._settle()

    def _hand_over_asked(self, event: e.HandOverAsked) -> None:
        Deferred.fromCoroutine(self._hand_over(event)).addErrback(self._not_handed_over, event)

    async def _hand_over(self, event: e.HandOverAsked) -> None:
        """A guest has moved to another node, as that one says: unless it answers here, its lease is given up."""
        guest = self.server.guests.get(event.holder)
        if guest is not None and guest.state is State.BOUND and await self._presence.is_here(guest.mac, event.address):
            raise Conflict(f"{IPv4Address(event.address)} is used by that guest here")
        if not self.running:
            raise Conflict("this node stops")
        self.server.hand_over(self._protocol.clock(), event.holder)
        self._settle()
        await self._protocol.submit(c.GiveUpLease(event.holder))
        event.reply.succeed(None)
        self._protocol.settle()

    def _not_handed_over(self, failure: Any, event: e.HandOverAsked) -> None:
        error = failure.value
        if not isinstance(error, IpopError):
            self._log.failure("handover_failed", failure)
            error = Conflict("this node met an error of its own")
        event.reply.fail(error)
        self._protocol.settle()

    def _timed_out(self) -> None:
        self._timer = None
        self.server.handle_timeout(self._protocol.clock())
        self._settle()

    def _lease_until(self, holder: bytes) -> float:
        lease = self._protocol.node.leases.guests.get(holder)
        return lease.until if lease is not None and lease.address is not None else float("-inf")

    # --- outputs -----------------------------------------------------------------------------

    def _settle(self) -> None:
        """Carry out what the server wants. What that leads to may come back here; the outermost call goes on until all is quiet."""
        if self._settling:
            return
        self._settling = True
        try:
            self._save()
            while (output := self.server.poll()) is not None:
                self._carry_out(output)
                self._save()
        finally:
            self._settling = False
        self._arm()

    def _carry_out(self, output: Output) -> None:
        match output:
            case Answer(message) if self.server.own is not None:
                self._tap.writev((PLAIN, frames.frame(message, self._mac, self.server.own)))
            case Serve(address, mac):
                self._plane.serve(address, mac)
            case Note():
                self._note(output)
            case c.HoldLease() | c.GiveUpLease():
                self._watch(output)
                self._protocol.submit(output).addErrback(self._not_given_up)

    def _note(self, note: Note) -> None:
        guest, address = note.guest, note.address
        if guest is None:
            self._log.warn("guests_full guests={guests}", guests=self.server.terms.guests)
        else:
            shown = str(IPv4Address(address or guest.address or bytes(4)))
            self._log.info(
                note.event + " address={address} name={name} mac={mac}", address=shown, name=guest.name or "-", mac=guest.mac.hex(":")
            )

    def _not_given_up(self, failure: Any) -> None:
        """The lease ends by itself."""
        self._log.warn("lease_unreleased reason={reason}", reason=str(failure.value))

    def _save(self) -> None:
        if not self.server.changed:
            return
        self.server.changed = False
        now, wall = self._protocol.clock(), time.time()
        rows = [
            Stored(guest.holder.hex(), guest.mac.hex(), guest.name, str(IPv4Address(guest.address)), round(wall + guest.until - now, 1))
            for guest in self.server.bound
            if guest.address is not None
        ]
        try:
            self._state.write_json(files.GUESTS, {"guests": rows})
            self._problem = ""
        except IpopError as error:
            self._problem = f"guests would be forgotten by a restart: {error}"
            self._log.error("guests_unsaved reason={reason}", reason=str(error))

    def _arm(self) -> None:
        due = self.server.poll_timeout()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None and self.running:
            self._timer = self._reactor.callLater(max(0.0, due - self._protocol.clock()), self._timed_out)

    def _watch(self, output: c.HoldLease | c.GiveUpLease) -> None:
        """A line in the log about each guest that waits for long."""
        call = self._waits.pop(output.holder, None)
        if call is not None:
            call.cancel()
        if isinstance(output, c.HoldLease):
            self._waits[output.holder] = self._reactor.callLater(TELL_AFTER, self._tell_why_waiting, output.holder)

    def _tell_why_waiting(self, holder: bytes) -> None:
        del self._waits[holder]
        lease, guest = self._protocol.node.leases.guests.get(holder), self.server.guests.get(holder)
        if lease is not None and guest is not None and lease.address is None:
            reason = lease.problem or "the DHT has not answered yet"
            self._log.warn("guest_waits mac={mac} reason={reason}", mac=guest.mac.hex(":"), reason=reason)

    # --- disk --------------------------------------------------------------------------------

    def _stored(self, now: float) -> list[Guest]:
        stored = self._state.read_json(files.GUESTS)
        try:
            return [self._guest(now, row) for row in msgspec.convert(stored["guests"], list[Stored])] if stored is not None else []
        except (ValueError, KeyError, TypeError):  # msgspec's errors are ValueErrors
            self._log.warn("guests_unreadable file={file}", file=files.GUESTS)
            return []

    def _guest(self, now: float, stored: Stored) -> Guest:
        left = min(self.server.terms.seconds, max(0.0, stored.until - time.time()))
        holder, mac, address = bytes.fromhex(stored.holder), bytes.fromhex(stored.mac), IPv4Address(stored.address).packed
        return Guest(holder, mac, stored.name, now + left, State.BOUND, address)

    # --- what may be asked -------------------------------------------------------------------

    def status(self) -> list[dict[str, Any]]:
        """A row per guest, in the order of their addresses."""
        now = self._protocol.clock()
        guests = sorted(self.server.guests.values(), key=lambda guest: (guest.address or b"", guest.holder))
        return [
            {
                "address": str(IPv4Address(guest.address)) if guest.address else None,
                "name": guest.name or None,
                "mac": guest.mac.hex(":"),
                "holder": guest.holder.hex(),
                "state": guest.state.value,
                "expires_s": round(guest.until - now),
            }
            for guest in guests
        ]

    def health(self) -> list[str]:
        """What does not work, a sentence each."""
        sentences = list(self._sentences())
        more = len(sentences) - MOST_SENTENCES
        return [*sentences[:MOST_SENTENCES], f"and the like of {more} more guests"] if more > 1 else sentences

    def _sentences(self) -> Iterator[str]:
        terms, now = self.server.terms, self._protocol.clock()
        if self._problem:
            yield self._problem
        if self._port.problem:
            yield self._port.problem
        if terms.guests and now - self.server.refused_at < RECENT:
            yield f"a guest was turned away, since this node serves {terms.guests} and has as many: raise dhcp.guests"
        for guest in self.server.guests.values():
            lease = self._protocol.node.leases.guests.get(guest.holder)
            for problem in (lease.problem, lease.name_problem) if lease is not None else ():
                if problem:
                    yield f"guest {guest.name or guest.mac.hex(':')}: {problem}"
