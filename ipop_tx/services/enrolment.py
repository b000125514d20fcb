"""Joining a network: what `ipop join` does with an invitation. Blocking, for a command line; needs no reactor.

The newcomer makes its key, shows a certificate over the invitation's key to a member, checks that the member's chain ends at the
authority that the invitation names, and asks for a certificate. Its own key never leaves the machine.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ipop_tx.core.links.fragments import Reassembly, split
from ipop_tx.core.links.rpc import error_of
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import ApprovalAwaited, BadDatagram, BadMessage, IpopError, StateError, Unreachable
from ipop_tx.identity import state as files
from ipop_tx.identity.authority import checked_name, install_enrolled
from ipop_tx.identity.credentials import Credentials, GuestCredentials
from ipop_tx.identity.enrolment import build_enrol
from ipop_tx.identity.invitation import Invitation
from ipop_tx.identity.keys import PrivateKey, ensure_key
from ipop_tx.identity.state import StateDirectory
from ipop_tx.interfaces import ISession
from ipop_tx.session.dtls import DtlsSessionFactory
from ipop_tx.transport.lines import Line, TlsLine, UdpLine
from ipop_tx.values import Endpoint, Proxy
from ipop_tx.wire import messages as m
from ipop_tx.wire.datagram import CONTROL

HANDSHAKE_SECONDS = 5.0
ANSWER_SECONDS = 20.0
ASK_AGAIN = 3.0
"""Seconds after which a machine that waits to be let in asks again."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What came of joining."""

    name: str
    ident: str
    """Hex digits."""
    network: str
    bootstrap: list[str]
    """Endpoints of members, as text."""


def join(
    invitation_text: str,
    state_dir: Path,
    name: str | None,
    proxy_of: Callable[[str], Proxy | None] = lambda host: None,
    patience: float = 0.0,
    told: Callable[[str], object] = lambda sentence: None,
) -> Joined:
    """Become a member by an invitation; keys and certificates go into `state_dir`. `proxy_of` says by which proxy a host is reached by TCP.

    Where somebody has to let this machine in by hand, wait for that for `patience` seconds, and have `told` say so.
    Raises `InvitationRefused`, `Unreachable` when no member of the invitation answers, `ApprovalAwaited` when nobody has let it in yet,
    `StateError`, `LocalMisuse` for a bad name.
    """
    invitation = Invitation.parse(invitation_text)
    invitation.check_expiry(time.time())
    checked = checked_name(name or "node")
    state = StateDirectory(state_dir)
    if state.exists(files.NODE_CHAIN):
        raise StateError(f"{state.path} belongs to a network already", "give another directory with --state, or remove that one")
    node_key = ensure_key(state, files.NODE_KEY)
    ends, said = time.monotonic() + patience, ""
    while True:
        try:
            answer = _ask(invitation, state, node_key, checked, proxy_of)
            break
        except (ApprovalAwaited, Unreachable) as problem:
            if time.monotonic() >= ends or not (said or isinstance(problem, ApprovalAwaited)):
                raise
            if str(problem) != said:
                said = str(problem)
                told(said)
            time.sleep(min(ASK_AGAIN, max(0.0, ends - time.monotonic())))
    bootstrap = list(dict.fromkeys([*map(str, invitation.endpoints), *answer.endpoints]))
    state.write_json(files.PEERS, {"endpoints": bootstrap})  # before the certificate, which is what makes this machine a member
    network = install_enrolled(state, answer.certificates, invitation.fingerprint)
    peer = Credentials.load(state).peer
    return Joined(peer.name, peer.ident.hex(), network.name, bootstrap)


def _ask(
    invitation: Invitation, state: StateDirectory, node_key: PrivateKey, checked: str, proxy_of: Callable[[str], Proxy | None]
) -> m.Enrolled:
    """Ask once for a certificate."""
    guest = GuestCredentials(invitation.key, invitation.fingerprint)
    answer = None
    with closing(_Conversation.open(invitation, guest, proxy_of)) as conversation:
        for appointed in (False, True):
            admission_key = ensure_key(state, files.ADMISSION_KEY) if appointed else None
            enrolment = build_enrol(invitation, node_key, admission_key, checked)
            answer = conversation.ask(
                m.Enrol(enrolment.invitation, enrolment.csr, enrolment.admission_csr, enrolment.signature, enrolment.name, guest.peer.ident)
            )
            if not (isinstance(answer, m.Failed) and answer.code == "AppointmentOffered"):
                break
    if isinstance(answer, m.Failed):
        raise error_of(answer)
    if not isinstance(answer, m.Enrolled):
        raise BadMessage("the member's answer makes no sense", "try another member")
    return answer


class _Conversation:
    """One session with a member, over a line of its own."""

    def __init__(self, line: Line, factory: DtlsSessionFactory) -> None:
        self._line = line
        self._session: ISession = factory.initiate(time.monotonic())
        self._runtime = Runtime(secrets.SystemRandom())
        self._reassembly = Reassembly(self._runtime)

    @classmethod
    def open(cls, invitation: Invitation, guest: GuestCredentials, proxy_of: Callable[[str], Proxy | None]) -> _Conversation:
        """A session with the first member of the invitation that answers."""
        refusal: IpopError | None = None
        for endpoint in sorted(invitation.endpoints, key=lambda endpoint: endpoint.scheme != "udp"):
            try:
                conversation = cls(_line_to(endpoint, guest, proxy_of), DtlsSessionFactory(guest))
            except OSError:
                continue
            except IpopError as error:
                refusal = error if not isinstance(error, Unreachable) else refusal
                continue
            try:
                conversation._handshake()
                return conversation
            except IpopError as error:
                conversation.close()
                refusal = error if not isinstance(error, Unreachable) else refusal
        named = ", ".join(map(str, invitation.endpoints)) or "no endpoint at all"
        raise refusal or Unreachable(f"no member answers at {named}", "check that one of them runs and that UDP or TLS passes")

    def close(self) -> None:
        """Say goodbye, so that the member has room for the next guest at once, and free the socket."""
        if self._session.established:
            self._send(self._session.protect(CONTROL, m.encode(m.Close("the guest has asked"))))
        self._line.close()

    def _handshake(self) -> None:
        deadline = time.monotonic() + HANDSHAKE_SECONDS
        while not self._session.established:
            now = time.monotonic()
            if self._session.failure is not None:
                raise self._session.failure
            if now > deadline:
                raise Unreachable("no answer")
            while (datagram := self._session.poll_transmit()) is not None:
                self._send(datagram)
            due = min(deadline, self._session.poll_timeout() or deadline)
            for received in self._receive(due - now):
                self._session.receive(time.monotonic(), received)
            if time.monotonic() >= due:
                self._session.handle_timeout(time.monotonic())
        while (datagram := self._session.poll_transmit()) is not None:
            self._send(datagram)

    def ask(self, body: m.Ask) -> m.Answer:
        """Send a request until it is answered."""
        request = m.Request(secrets.randbits(48), body)
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            for part in split(m.encode(request), self._runtime):
                self._send(self._session.protect(CONTROL, part))
            again = time.monotonic() + 1.0
            while (left := again - time.monotonic()) > 0:
                for datagram in self._receive(left):
                    message = self._open(datagram)
                    if isinstance(message, m.Reply) and message.id == request.id and not isinstance(message.body, m.Working):
                        return message.body
        raise Unreachable("the member does not answer any more", "run ipop join again with the same invitation")

    def _open(self, datagram: bytes) -> m.Message | None:
        try:
            kind, payload = self._session.unprotect(datagram)
            message = m.decode(payload) if kind == CONTROL else None
            if isinstance(message, m.Fragment):
                whole = self._reassembly.add(b"member", message)
                return m.decode(whole) if whole is not None else None
        except (BadDatagram, BadMessage):
            self._session.receive(time.monotonic(), datagram)
            return None
        return message

    def _send(self, datagram: bytes) -> None:
        self._line.send(datagram)

    def _receive(self, seconds: float) -> Iterator[bytes]:
        return self._line.receive(seconds)


def _line_to(endpoint: Endpoint, guest: GuestCredentials, proxy_of: Callable[[str], Proxy | None]) -> Line:
    """Raises `OSError`, `IpopError`."""
    if endpoint.scheme == "udp":
        return UdpLine(endpoint)
    if endpoint.scheme == "tls":
        return TlsLine(endpoint, guest, proxy_of(endpoint.host), HANDSHAKE_SECONDS)
    raise Unreachable(f"{endpoint} is not reached from a command line")
