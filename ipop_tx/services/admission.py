"""Admission: making invitations, and letting in whoever holds one.

An invitation is a register under the hash of its public key, signed by a member that may admit. It can be used at any member that
admits; how often, other registers decide (`uses`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any

from cryptography import x509
from twisted.application.service import Service
from twisted.internet.defer import Deferred

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.core.dht.records import key_of
from ipop_tx.core.links.link import detour
from ipop_tx.core.links.rpc import failure_of
from ipop_tx.errors import InvitationRefused, IpopError, LocalMisuse, PeerRefused, Unreachable
from ipop_tx.identity import appointed, readmission
from ipop_tx.identity.authority import Admitter, checked_limits, checked_name, checked_pattern, requested_key
from ipop_tx.identity.certificates import UNLIMITED, Limits, Rights, limits_of
from ipop_tx.identity.credentials import Credentials
from ipop_tx.identity.enrolment import Enrolment, check_enrol, grant
from ipop_tx.identity.invitation import Invitation, InvitationRecord, Wish
from ipop_tx.identity.keys import compressed_point_of
from ipop_tx.identity.readmission import Readmission, check, owner_of
from ipop_tx.identity.state import StateDirectory
from ipop_tx.log import Logger
from ipop_tx.services.approval import Approvals
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.services.rules import Rules
from ipop_tx.services.uses import KEPT_AFTER_EXPIRY, InvitationUses
from ipop_tx.values import Endpoint, short
from ipop_tx.wire import messages as m

Request = e.EnrolRequested | e.ReadmitRequested


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
        state: StateDirectory,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._protocol = protocol
        self._network = credentials.network
        self._credentials = credentials
        self._admitter = admitter
        self._endpoints = endpoints
        self._state = state
        self._wall = wall
        self.on_appointed: Callable[[], object] = lambda: None
        """Called when this node, which holds the authority's key, has appointed somebody."""
        self._uses = InvitationUses(protocol)
        self._approvals = Approvals(protocol, state, credentials.trust, lambda key: credentials.may_admit(key), wall)
        protocol.on(e.EnrolRequested, lambda event: self._carry(event, self._admit(event.request, event.by_guest)))
        protocol.on(e.ReadmitRequested, lambda event: self._carry(event, self._readmit(event)))

    def use(self, admitter: Admitter) -> None:
        """Admit with these files from now on."""
        self._admitter = admitter

    @property
    def rules(self) -> Rules:
        """The network's rules of admission."""
        return Rules.of(self._protocol.node.settings)

    def health(self) -> list[str]:
        """Whether anybody waits to be let in."""
        return self._approvals.health()

    # --- invitations -------------------------------------------------------------------------

    async def invite(self, expires_s: float, wish: Wish) -> tuple[Invitation, int]:
        """A new invitation and when it expires (Unix seconds). Raises `LocalMisuse` when this node may not admit, or not so."""
        admitter = self._admitting()
        if wish.appoints and admitter.authority_key is None:
            raise LocalMisuse("only the node that holds the authority's key can appoint", "invite there, or leave out --appoint")
        if wish.name:
            checked_pattern(wish.name)
        if wish.uses > 1 and (wish.appoints or wish.rights.address or (wish.name and "*" not in wish.name)):
            raise LocalMisuse(
                "an invitation for several machines cannot fix one name or address, nor appoint", "give a pattern such as lab-* as name"
            )
        admitter.check(wish.rights, "" if "*" in wish.name else wish.name)
        checked_limits(wish.limits)
        if wish.limits != UNLIMITED and not wish.appoints:
            raise LocalMisuse("only whoever is to admit others has limits", "add --appoint")
        expires = int(self._wall() + expires_s)
        invitation = Invitation.make(admitter.root, expires, tuple(self._bootstrap()))
        record = InvitationRecord.make(invitation, wish, admitter.key, admitter.certificate)
        await self._protocol.submit(c.Create(self._invitation_key(invitation.public), record.encode(), expires_s + KEPT_AFTER_EXPIRY))
        self._log.info("invited name={name} uses={uses} expires={expires}", name=wish.name, uses=wish.uses, expires=expires)
        return invitation, expires

    def limits(self) -> Limits:
        """Within what this node admits. Raises `LocalMisuse` where it may not."""
        return limits_of(self._admitting().certificate)

    def _admitting(self) -> Admitter:
        if self._admitter is None:
            raise LocalMisuse("this node may not admit others", "run ipop invite on a member that was appointed, or on the first one")
        if not self._credentials.may_admit(self._admitter.digest):
            raise LocalMisuse("the authority has withdrawn this node's right to admit others", "ask another member that admits")
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

    # --- admission ---------------------------------------------------------------------------

    def _carry(self, event: Request, work: Coroutine[Deferred[Any], Any, m.Answer]) -> None:
        deferred: Deferred[Any] = Deferred.fromCoroutine(work)
        deferred.addErrback(self._refusal)
        deferred.addCallback(lambda answer: self._answer(event, answer))

    def _refusal(self, failure: Any) -> m.Failed:
        error = failure.value
        if not isinstance(error, IpopError):
            self._log.failure("admission_failed", failure)
            error = Unreachable("the member met an error of its own", "try another member")
        self._log.warn("admission_refused reason={reason}", reason=str(error))
        return failure_of(error)

    def _answer(self, event: Request, answer: m.Answer) -> None:
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
        check_enrol(enrolment, request.guest, record, self._credentials.trust, self._wall())
        if not self._credentials.may_admit(record.inviter):
            raise InvitationRefused("whoever made this invitation may not admit any more", "ask somebody else for one")
        public, name = compressed_point_of(requested_key(x509.load_der_x509_csr(request.csr))), checked_name(record.named(request.name))
        record.check_limits(name, self._credentials.trust)
        admitter = self._able(record.appoints, name, record.rights)
        if admitter is None:
            return await self._pass_on(request, by_guest, m.APPOINTS if record.appoints else m.ADMITS)
        if record.appoints and record.inviter != admitter.digest:
            raise InvitationRefused("only whoever holds the authority's key can invite somebody to admit others", "ask there for one")
        if record.approval or self.rules.approval:
            await self._approvals.check(public, name)
        await self._use_once(record, public)
        certificates = grant(enrolment, record, admitter, self._wall())
        if record.appoints:
            appointed.note(self._state, name, x509.load_der_x509_certificate(certificates[3]))
            self.on_appointed()
        self._log.info("admitted name={name} guest={guest}", name=name, guest=short(request.guest))
        return m.Enrolled(certificates, tuple(str(endpoint) for endpoint in self._bootstrap()[:8]))

    def _able(self, appoints: bool, name: str, rights: Rights) -> Admitter | None:
        """What this node admits by, if it may grant this; looked at before an invitation is used."""
        try:
            admitter = self._admitting()
            self._credentials.trust.above(admitter.certificate)
            admitter.check(rights, name)
        except (LocalMisuse, PeerRefused):
            return None
        return None if appoints and admitter.authority_key is None else admitter

    async def _use_once(self, record: InvitationRecord, public: bytes) -> None:
        """Note for which key the invitation was used."""
        await self._uses.claim(record, public, self._wall())

    async def decide(self, target: str, admitted: bool) -> dict[str, Any]:
        """Let somebody in who waits here, or refuse it."""
        return await self._approvals.decide(target, admitted, self._admitting())

    def waiting(self) -> list[dict[str, Any]]:
        """Who waits here to be let in."""
        return self._approvals.told()

    async def _pass_on(self, request: m.Enrol | m.Readmit, first_hand: bool, wanted: int) -> m.Answer:
        """Ask a linked member that may do it, once: what another member passed on to us goes no further."""
        node = self._protocol.node
        able = [ident for ident, hello in node.peer_hellos.items() if hello.flags & wanted]
        if first_hand:
            for ident in able:
                try:
                    answer: m.Answer = await self._protocol.submit(c.Ask(ident, request))
                    return answer
                except Unreachable:
                    continue
        who = "holds the authority's key" if wanted == m.APPOINTS else "may admit others"
        raise Unreachable(f"no member that {who} can be reached from here", "try again later, or through another member")

    # --- renewal -----------------------------------------------------------------------------

    async def _readmit(self, event: e.ReadmitRequested) -> m.Answer:
        request: m.Readmit = event.request
        _, peer = owner_of(_asked(request), self._credentials.trust, self._wall())
        if event.guest and event.key != peer.key:
            raise InvitationRefused("a certificate is renewed for whoever proves its key", "ask with that key")
        if self._admitter is not None:
            try:
                return self.readmit(request)
            except LocalMisuse as refusal:  # which may be because this node's right is limited, or withdrawn
                try:
                    return await self._pass_on(request, event.key == peer.key, m.ADMITS)
                except Unreachable:
                    raise refusal from None
        return await self._pass_on(request, event.key == peer.key, m.ADMITS)

    def readmit(self, request: m.Readmit) -> m.Readmitted:
        """Renew a certificate. Raises `InvitationRefused`, `BadMessage`, and `LocalMisuse` where this node may not admit."""
        admitter, wall = self._admitting(), self._wall()
        leaf, peer = check(_asked(request), self._credentials.trust, wall, self.rules.grace_s, self._credentials.is_out)
        certificates = readmission.grant(leaf, admitter, wall)
        self._log.info("readmitted name={name} key={key}", name=peer.name, key=peer.key.hex())
        return m.Readmitted(certificates)


def _asked(request: m.Readmit) -> Readmission:
    return Readmission(request.certificates, request.signature)
