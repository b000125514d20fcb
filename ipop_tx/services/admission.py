"""Admission: making invitations, and letting in whoever holds one.

An invitation is a register under the hash of its public key, signed by a member that may admit. Its use is another register,
created once: whoever creates it first decides which key the invitation was for, so two uses at once have one winner wherever
they happen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from cryptography import x509
from twisted.application.service import Service
from twisted.internet.defer import Deferred

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.core.dht.records import key_of
from ipop_tx.core.links.link import detour
from ipop_tx.core.links.rpc import failure_of
from ipop_tx.errors import Conflict, InvitationRefused, IpopError, LocalMisuse, Unreachable
from ipop_tx.identity.authority import Admitter, checked_groups, checked_name, requested_key
from ipop_tx.identity.credentials import Credentials
from ipop_tx.identity.enrolment import Enrolment, check_enrol, grant
from ipop_tx.identity.invitation import Invitation, InvitationRecord
from ipop_tx.identity.keys import compressed_point_of
from ipop_tx.log import Logger
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.values import Endpoint, short
from ipop_tx.wire import messages as m

KEPT_AFTER_EXPIRY = 30 * 86400
"""Seconds for which an expired or used invitation is remembered, to say so."""


class AdmissionService(Service):
    """Invites and admits, if this node may; else passes requests to a linked member that may."""

    _log = Logger()
    name = "admission"

    def __init__(
        self,
        protocol: ChordProtocol,
        credentials: Credentials,
        admitter: Admitter | None,
        endpoints: Callable[[], list[Endpoint]],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._protocol = protocol
        self._network = credentials.network
        self._root = credentials.root
        self._credentials = credentials
        self._admitter = admitter
        self._endpoints = endpoints
        self._wall = wall
        protocol.on(e.EnrolRequested, self._requested)

    # --- invitations -------------------------------------------------------------------------

    async def invite(
        self, expires_s: float, name: str = "", appoints: bool = False, address: str = "", groups: tuple[str, ...] = ()
    ) -> tuple[Invitation, int]:
        """A new invitation and when it expires (Unix seconds). Raises `LocalMisuse` when this node may not admit.

        `address` is an IPv4 address to assign to whoever joins, `groups` are those that it is to be in.
        """
        admitter = self._admitting()
        if appoints and admitter.authority_key is None:
            raise LocalMisuse("only the node that holds the authority's key can appoint", "invite there, or leave out --appoint")
        if name:
            checked_name(name)
        if address:
            admitter.check_address(address)
        checked_groups(groups)
        expires = int(self._wall() + expires_s)
        invitation = Invitation.make(self._root, expires, tuple(self._bootstrap()))
        record = InvitationRecord.make(invitation, name, appoints, admitter.key, admitter.certificate, address, groups)
        await self._protocol.submit(c.Create(self._invitation_key(invitation.public), record.encode(), expires_s + KEPT_AFTER_EXPIRY))
        self._log.info("invited name={name} appoints={appoints} expires={expires}", name=name, appoints=appoints, expires=expires)
        return invitation, expires

    def _admitting(self) -> Admitter:
        if self._admitter is None:
            raise LocalMisuse("this node may not admit others", "run ipop invite on a member that was appointed, or on the first one")
        return self._admitter

    def _bootstrap(self) -> list[Endpoint]:
        """Where a newcomer finds members: ourselves, somebody who is reached without UDP, then those to whom we have a direct path."""
        node, ours = self._protocol.node, sorted(self._endpoints(), key=lambda endpoint: endpoint.scheme == "onion")
        links = [link.active for link in node.links if isinstance(link.active, Endpoint) and not link.active.passing]
        theirs = [endpoint for link in node.links for endpoint in node.makeshifts(link.ident)]
        named = dict.fromkeys([*ours[:2], *[*filter(detour, ours), *theirs][:1], *links])
        found = [endpoint for endpoint in named if endpoint.scheme != "onion"]
        if named and not found:
            raise LocalMisuse("a newcomer could reach this node by Tor only", "admit it by ipop request, ipop sign and ipop install")
        return found

    def _invitation_key(self, public: bytes) -> bytes:
        return key_of("invitation", self._network.ident, public)

    def _use_key(self, public: bytes) -> bytes:
        return key_of("invitation-use", self._network.ident, public)

    # --- admission ---------------------------------------------------------------------------

    def _requested(self, event: e.EnrolRequested) -> None:
        deferred: Deferred[Any] = Deferred.fromCoroutine(self._admit(event.request, event.by_guest))
        deferred.addErrback(self._refusal)
        deferred.addCallback(lambda answer: self._answer(event, answer))

    def _refusal(self, failure: Any) -> m.Failed:
        error = failure.value
        if not isinstance(error, IpopError):
            self._log.failure("admission_failed", failure)
            error = Unreachable("the member met an error of its own", "try another member")
        self._log.warn("admission_refused reason={reason}", reason=str(error))
        return failure_of(error)

    def _answer(self, event: e.EnrolRequested, answer: m.Answer) -> None:
        event.reply.succeed(answer)
        self._protocol.settle()

    async def _admit(self, request: m.Enrol, by_guest: bool) -> m.Answer:
        found = await self._protocol.submit(c.Get(self._invitation_key(request.invitation)))
        if found is None:
            raise InvitationRefused("this invitation is unknown here", "ask for a new one")
        record = InvitationRecord.decode(found.value)
        enrolment = Enrolment(request.csr, request.admission_csr, request.invitation, request.signature, request.name)
        if record.appoints and not request.admission_csr:
            # The newcomer cannot know what its invitation says; it comes again with a key to be appointed.
            return m.Failed("AppointmentOffered", "this invitation appoints a member that admits others", "send a second key")
        check_enrol(enrolment, request.guest, record, self._root, self._wall())
        if self._credentials.is_revoked(record.inviter):
            raise InvitationRefused("whoever made this invitation may not admit any more", "ask somebody else for one")
        if self._admitter is None or (record.appoints and self._admitter.authority_key is None):
            return await self._pass_on(request, by_guest, record.appoints)
        await self._use_once(request)
        certificates = grant(enrolment, record, self._admitter, self._wall())
        self._log.info("admitted name={name} guest={guest}", name=record.name or request.name, guest=short(request.guest))
        return m.Enrolled(certificates, tuple(str(endpoint) for endpoint in self._bootstrap()[:8]))

    async def _use_once(self, request: m.Enrol) -> None:
        """Note for which key the invitation was used. The same key may come again: its answer may have been lost."""
        public = requested_key(x509.load_der_x509_csr(request.csr))
        key, value = self._use_key(request.invitation), compressed_point_of(public)
        try:
            await self._protocol.submit(c.Create(key, value, KEPT_AFTER_EXPIRY))
        except Conflict:
            used = await self._protocol.submit(c.Get(key))
            if used is None or used.value != value:
                raise InvitationRefused("this invitation has been used already", "ask for a new one") from None

    async def _pass_on(self, request: m.Enrol, by_guest: bool, appoints: bool) -> m.Answer:
        """Ask a linked member that may do it, once: what another member passed on to us goes no further."""
        node = self._protocol.node
        wanted = m.APPOINTS if appoints else m.ADMITS
        able = [ident for ident, hello in node.peer_hellos.items() if hello.flags & wanted]
        if by_guest:
            for ident in able:
                try:
                    answer: m.Answer = await self._protocol.submit(c.Ask(ident, request))
                    return answer
                except Unreachable:
                    continue
        who = "holds the authority's key" if appoints else "may admit others"
        raise Unreachable(f"no member that {who} can be reached from here", "try again later, or through another member")
