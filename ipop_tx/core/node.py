"""The control plane of one node, put together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from zope.interface import implementer

from ipop_tx.core import commands as c
from ipop_tx.core.dht.certificates import Certificates
from ipop_tx.core.dht.coordinator import Coordinator
from ipop_tx.core.dht.dht import Dht
from ipop_tx.core.dht.forgetting import Forgetting
from ipop_tx.core.dht.records import RegisterSigner
from ipop_tx.core.dht.recovery import Recovery
from ipop_tx.core.dht.replica import Replicas
from ipop_tx.core.dht.showing import Showing
from ipop_tx.core.dht.views import Views
from ipop_tx.core.events import EnrolRequested, FlowsAsked, ReadmitRequested, RelationAsked, Reported
from ipop_tx.core.leases.handover import HandOver
from ipop_tx.core.leases.lease import Leases
from ipop_tx.core.leases.renewals import Renewals
from ipop_tx.core.leases.resolver import Resolver
from ipop_tx.core.leases.rivalry import Rivalry
from ipop_tx.core.links.charters import Charters
from ipop_tx.core.links.link import Link, PathKey, detour
from ipop_tx.core.links.links import Links
from ipop_tx.core.links.paths import Paths
from ipop_tx.core.links.relay import Relay
from ipop_tx.core.links.revocation import Revocations
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.links.settings import SettingsExchange
from ipop_tx.core.links.spare import Spare
from ipop_tx.core.nat.nat import Nat
from ipop_tx.core.ring.bootstrap import Bootstrap
from ipop_tx.core.ring.broadcast import Broadcast
from ipop_tx.core.ring.disjoint import Disjoint
from ipop_tx.core.ring.fingers import Fingers
from ipop_tx.core.ring.lookup import Lookups
from ipop_tx.core.ring.merging import Merging
from ipop_tx.core.ring.ring import Ring
from ipop_tx.core.ring.tables import Tables
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future, failed, settled, spawn
from ipop_tx.errors import LocalMisuse, Unreachable
from ipop_tx.interfaces import INode, IRecordSigner, IReplicaStore, ISession, ISessionFactory
from ipop_tx.values import Endpoint, Ident, Network, Peer, Quota
from ipop_tx.wire import messages as m

SLEPT = 6.0
"""Seconds by which the first timer is late after a sleep during which peers may have given this node up."""
REACH_WAIT = 1.5
"""Seconds that a member has to answer when another one asks whether it answers us."""
MET_ANEW = 16
"""Links at most that get fresh sessions then; a machine that is late because it has too much to do shall not get more of it."""


@implementer(INode)
class Node:
    """One node without its sockets, clock and disk.

    The driver's contract. Inputs: `receive_datagram`, `receive_unsealed` (what a forwarding plane opened itself), `receive_aside` (by a
    socket that was asked for), `submit`, `handle_timeout`; each takes `now`, seconds of one monotonic clock that never goes back. After
    every input, in this order:

    1. take events from `poll_event` until it gives None;
    2. commit the replica store;
    3. send what `poll_transmit` gives until it gives None, and tell the outcomes of what was submitted;
    4. arrange for `handle_timeout` at `poll_timeout`, replacing the earlier arrangement, if not before it.

    Datagrams that came together may share all but the first.

    Nothing blocks; nothing happens between inputs. The same inputs and the same generator give the same outputs.
    """

    def __init__(
        self,
        peer: Peer,
        network: Network,
        rng: Random,
        sessions: ISessionFactory,
        signer: IRecordSigner,
        store: IReplicaStore,
        flags: int = 0,
        now: float = 0.0,
        quota: Quota | None = None,
    ) -> None:
        """`now` is the clock's reading at the start; the ages of the registers on disk go on from there."""
        self.peer = peer
        self.ident = peer.ident
        self.network = network
        self.flags = flags
        # Build everything ...
        self.runtime = Runtime(rng, now)
        register_signer = RegisterSigner(network, signer)
        self.links = Links(peer.ident, self.runtime, sessions)
        self.paths = Paths(self.links, self.runtime, network)
        self.relay = Relay(self.links, self.runtime)
        self.rpc = Rpc(self.links, self.runtime)
        self.charters = Charters(self.links, self.rpc, self.runtime, register_signer.adopts)
        self.revocations = Revocations(self.links, self.rpc, self.runtime, register_signer.is_ordered)
        self.is_ordered = register_signer.is_ordered
        register_signer.is_revoked, register_signer.is_out = self.revocations.is_revoked, self.revocations.is_out
        self.settings = SettingsExchange(self.links, self.rpc, self.runtime, register_signer.is_ordered)
        self.renewals = Renewals(self.links, self.rpc, self.runtime)
        self.lookups = Lookups(self.links, self.rpc, self.runtime)
        self.ring = Ring(self.links, self.rpc, self.lookups, self.runtime)
        self.tables = Tables(self.ring, self.links, self.rpc, self.runtime)
        self.fingers = Fingers(self.ring, self.lookups, self.links, self.runtime)
        self.merging = Merging(self.ring, self.lookups, self.links, self.runtime)
        self.broadcast = Broadcast(self.ring, self.lookups, self.links, self.rpc, self.runtime)
        self.disjoint = Disjoint(self.ring, self.lookups, self.links, self.rpc, self.runtime)
        self.bootstrap = Bootstrap(self.links, self.ring, self.runtime)
        self.replicas = Replicas(peer.ident, network.shards, store, self.runtime, register_signer.authentic, quota)
        self.coordinator = Coordinator(self.replicas, self.rpc, self.runtime)
        self.views = Views(self.replicas, self.coordinator, self.ring, self.lookups, self.links, self.runtime)
        self.forgetting = Forgetting(self.replicas, self.coordinator, self.runtime)
        self.certificates = Certificates(network, self.replicas, self.coordinator, self.ring, self.runtime, signer, register_signer)
        parts = (self.replicas, self.coordinator, self.ring, self.lookups, self.links, self.rpc, self.runtime)
        self.dht = Dht(*parts, register_signer, self.certificates)
        self.showing = Showing(self.replicas, self.dht, self.certificates, self.rpc, self.runtime)
        self.recovery = Recovery(self.replicas, self.coordinator, self.dht, self.links, self.rpc, self.runtime, register_signer.is_ordered)
        self.leases = Leases(peer.ident, peer.name, network, self.dht, self.showing, self.runtime)
        self.handover = HandOver(self.leases, self.rpc, self.runtime)
        self.resolver = Resolver(network, self.dht, self.showing, self.lookups, self.links, self.runtime)
        self.rivalry = Rivalry(self.leases, self.resolver, self.ring, self.links, self.rpc, self.runtime)
        self.spare = Spare(self.links, self.rpc, self.runtime)
        self.nat = Nat(self.links, self.rpc, self.paths, self.runtime)
        self.peer_hellos: dict[Ident, m.Hello] = {}
        # ... then wire everything.
        self.resolver.claimants = self._claimants
        self.links.on_control = self._control
        self.links.on_up.append(self._greet_if_ours)
        self.links.on_down.append(self._forget_hello)
        self.charters.on_adopted = self.revocations.reweigh
        self.revocations.on_revoked = self.resolver.forget_all
        self.paths.ask = self.rpc.on_link
        self.paths.watched = lambda ident: ident in self.ring.watched
        self.nat.tell = lambda link: self.runtime.background(self._greet(link))
        self.paths.endpoints_of = self.endpoints_of
        self.leases.own.on_gained = self._greet_all
        self.ring.on_placed = self._greet_all
        self.rpc.suspect = self.paths.suspect
        self.spare.suspect = self.paths.suspect
        self.spare.needs += [self.ring.needs, self.relay.needs, self.views.needs]
        self.relay.across = self.ring.across
        self.rpc.serve(m.Hello, self._greeted)
        self.rpc.serve(m.Offer, self._offered)
        self.rpc.serve(m.Enrol, self._enrol, guests=True)
        self.rpc.serve(m.Relate, partial(self._driver_answers, RelationAsked))
        self.rpc.serve(m.AskFlows, partial(self._driver_answers, FlowsAsked))
        self.rpc.serve(m.Reach, self._reaches)
        self.rpc.serve(m.Readmit, self._readmit, guests=True)
        self._commands: dict[type, Callable[[Any], Future[Any]]] = {
            c.Start: lambda x: spawn(self.bootstrap.run(x.bootstrap, self._is_first())),
            c.Remember: self._remember,
            c.Reachable: self._reachable,
            c.KeepLease: self._keep_lease,
            c.HoldLease: self._hold_lease,
            c.GiveUpLease: lambda x: spawn(self.leases.give_up(x.holder)),
            c.ClaimLease: lambda x: spawn(self.leases.own.claim(x.wish)),
            c.RenewLease: lambda x: spawn(self.leases.own.renew()),
            c.ReleaseLease: lambda x: spawn(self.leases.release()),
            c.Inspect: lambda x: spawn(self.dht.certified(x.key)),
            c.Get: lambda x: spawn(self.dht.get(x.key)),
            c.Create: lambda x: spawn(self.dht.create(x.key, x.value, x.ttl)),
            c.CompareAndSet: lambda x: spawn(self.dht.compare_and_set(x.key, x.version, x.value, x.ttl)),
            c.Delete: lambda x: spawn(self.dht.delete(x.key, x.version)),
            c.Survey: lambda x: spawn(self.recovery.survey()),
            c.CarryOut: lambda x: spawn(self.recovery.carry_out(x.order)),
            c.Revoke: lambda x: spawn(self._revoke(x.order)),
            c.Lookup: lambda x: spawn(self.lookups.find(x.key)),
            c.LookupDisjoint: lambda x: spawn(self.disjoint.find(x.key, x.routes)),
            c.Broadcast: lambda x: spawn(self.broadcast.begin(x.payload)),
            c.Resolve: lambda x: self.resolver.resolve(x.target),
            c.Owns: lambda x: spawn(self.rivalry.owns(x.ident, x.address)),
            c.Disown: self._disown,
            c.Connect: self._connect,
            c.Ping: lambda x: spawn(self._ping(x.ident, x.size)),
            c.Punch: lambda x: spawn(self._punch(x.ident)),
            c.CheckNat: lambda x: self.nat.check_now(),
            c.LearnLifetime: lambda x: self.nat.life.learn(),
            c.AdoptSettings: lambda x: spawn(self.settings.adopt(x.settings)),
            c.AdoptCharter: self._adopt_charter,
            c.Suspect: self._suspect,
            c.PathLost: self._path_lost,
            c.DoubtMtu: self._doubt_mtu,
            c.DoubtRelay: self._doubt_relay,
            c.PathSeen: self._path_seen,
            c.Report: self._report,
            c.Ask: lambda x: self.rpc.call(x.ident, x.body),
            c.Rest: self._rest,
            c.Petition: lambda x: spawn(self.bootstrap.petition(x.endpoints, lambda link: self.rpc.on_link(link, x.body))),
            c.Leave: lambda x: spawn(self._leave()),
        }

    # --- inputs ------------------------------------------------------------------------------

    def receive_datagram(self, now: float, endpoint: Endpoint, datagram: bytes | memoryview) -> None:
        """One datagram from a transport."""
        self.runtime.now = now
        self.links.receive(endpoint, bytes(datagram))

    def receive_unsealed(self, now: float, endpoint: Endpoint, session: ISession, kind: int, payload: bytes) -> None:
        """What a forwarding plane unsealed with a session of ours and did not deliver itself."""
        self.runtime.now = now
        link = self.links.of_session(session)
        if link is not None:
            self.links.unsealed(endpoint, link, session, kind, payload)

    def receive_aside(self, now: float, number: int, endpoint: Endpoint, datagram: bytes) -> None:
        """One datagram by a socket that we had asked for (`events.SideWanted`)."""
        self.runtime.now = now
        self.nat.sides.received(number, endpoint, datagram)

    def submit(self, now: float, command: object) -> Future[Any]:
        """Ask for something: one of `ipop_tx.core.commands`."""
        self.runtime.now = now
        return self._commands[type(command)](command)

    def handle_timeout(self, now: float) -> None:
        """Do what is due at `now`."""
        due = self.runtime.deadline()
        self.runtime.now = now
        if due is not None and now - due > SLEPT:
            self._woke()
        self.runtime.run_due()

    # --- outputs -----------------------------------------------------------------------------

    def poll_transmit(self) -> tuple[Endpoint, bytes] | None:
        """The next datagram to send."""
        return self.runtime.transmissions.popleft() if self.runtime.transmissions else None

    def poll_event(self) -> object | None:
        """The next event: one of `ipop_tx.core.events`."""
        return self.runtime.events.popleft() if self.runtime.events else None

    def poll_timeout(self) -> float | None:
        """When to call `handle_timeout`."""
        return self.runtime.deadline()

    def link(self, ident: Ident) -> Link | None:
        """The link to a member, if it is up."""
        return self.links.by_ident.get(ident)

    # --- messages ----------------------------------------------------------------------------

    def _control(self, link: Link, path: PathKey, message: m.Message) -> None:
        if isinstance(message, m.PathChallenge):
            self.paths.challenged(link, path, message)
        elif isinstance(message, m.PathResponse):
            self.paths.responded(link, path, message)
        elif isinstance(message, m.Probe):
            self.nat.help.probed(link, path, message)
        elif isinstance(message, m.Opened):
            self._note_frames(link)
            self.runtime.emit(Reported(link.ident, message.index, message.highest, message.opened, message.failed))
        elif isinstance(message, m.Request):
            self.rpc.requested(link, message)
        elif isinstance(message, m.Reply):
            self.rpc.replied(link, message)

    def hello(self) -> m.Hello:
        """What we tell of ourselves on a new link."""
        flags = self.flags | (m.PLACED if self.ring.placed else 0)
        offer = self.paths.offer()
        address, known = self.leases.own.address or b"", self.revocations.digest
        nat = offer.mapping, offer.filtering, offer.step, offer.brittle, offer.outer
        return m.Hello(flags, offer.candidates, address, *nat, known, self.charters.number)

    def _greet_if_ours(self, link: Link) -> None:
        if link.initiated:
            self.runtime.background(self._greet(link))

    def _greet_all(self) -> None:
        """Something that our greeting tells has changed."""
        for link in self.links:
            self.runtime.background(self._greet(link))

    async def _greet(self, link: Link) -> None:
        answer = await self.rpc.on_link(link, self.hello())
        if isinstance(answer, m.Hello):
            self._take_hello(link, answer)

    def _woke(self) -> None:
        """This machine was suspended, and peers have given it up: fresh sessions, before anything else goes unanswered."""
        ours = [link for link in self.links if isinstance(link.active, Endpoint) and not link.active.inward]
        ours.sort(key=lambda link: (link.ident not in self.ring.watched, -link.used))
        for link in ours[:MET_ANEW]:
            self.links.greet_anew(link).then(self._met_anew)

    def _met_anew(self, done: Future[Link]) -> None:
        if done.error is None:  # a peer that had forgotten us must be told again who we are
            self.runtime.background(self._greet(done.result()))

    def _greeted(self, link: Link, body: m.Hello) -> m.Hello:
        self._take_hello(link, body, asked=True)
        return self.hello()

    def _take_hello(self, link: Link, body: m.Hello, asked: bool = False) -> None:
        self.peer_hellos[link.ident] = body
        link.placed = bool(body.flags & m.PLACED)
        self.paths.offered(link, body, asked)
        self.charters.compare(link, body.charter)
        self.revocations.compare(link, body.revocations)

    def _claimants(self, address: bytes) -> list[Ident]:
        return [ident for ident, hello in self.peer_hellos.items() if hello.address == address]

    def endpoints_of(self, ident: Ident) -> tuple[str, ...]:
        """The endpoints that a linked member has offered, written out."""
        hello = self.peer_hellos.get(ident)
        return hello.candidates if hello is not None else ()

    def makeshifts(self, ident: Ident) -> list[Endpoint]:
        """Those of them that are reached otherwise than by UDP: for whoever has lost that."""
        named = (self.paths.admissible(text) for text in self.endpoints_of(ident))
        return [endpoint for endpoint in named if endpoint is not None and detour(endpoint)]

    def _forget_hello(self, link: Link) -> None:
        """A member that vanished is knocked for again, at the endpoints that it had."""
        hello = self.peer_hellos.pop(link.ident, None)
        if link.parted:
            return
        named = [endpoint for text in (hello.candidates if hello else ()) if (endpoint := self.paths.admissible(text))]
        wanted = [*(endpoint for endpoint in link.direct if not endpoint.passing), *named[:2], *filter(detour, named)]
        self.bootstrap.lost(link.ident, tuple(dict.fromkeys(wanted)))

    def _offered(self, link: Link, body: m.Offer) -> m.Offer:
        self.paths.offered(link, body, asked=True)
        return self.paths.offer()

    def _enrol(self, link: Link, body: m.Enrol) -> Future[m.Answer]:
        """A guest asks for admission, or a member passes on what a guest asked it. The driver decides."""
        reply: Future[m.Answer] = Future()
        if link.peer.guest and body.guest != link.ident:
            raise LocalMisuse("an invitation is used by whoever proved its key", "run ipop join again")
        self.runtime.emit(EnrolRequested(body, link.peer.guest, reply))
        return reply

    async def _reaches(self, link: Link, body: m.Reach) -> m.Reached:
        """A member asks whether another one, that we have a link to, answers us."""
        about = self.links.by_ident.get(body.ident)
        if about is None or about is link:
            return m.Reached(False)
        try:
            await self.paths.challenge(about, about.active, REACH_WAIT)
        except Unreachable:
            return m.Reached(False, about.peer.not_after)
        return m.Reached(True, about.peer.not_after)

    def _driver_answers(self, kind: type[RelationAsked | FlowsAsked], link: Link, body: m.Relate | m.AskFlows) -> Future[m.Answer]:
        """The driver knows the machine, and has a disk."""
        reply: Future[m.Answer] = Future()
        self.runtime.emit(kind(link.ident, body, reply))
        return reply

    def _readmit(self, link: Link, body: m.Readmit) -> Future[m.Answer]:
        reply: Future[m.Answer] = Future()
        self.runtime.emit(ReadmitRequested(body, link.peer.key, link.peer.guest, reply))
        return reply

    # --- commands ----------------------------------------------------------------------------

    def _is_first(self) -> bool:
        """Whether this node alone keeps the whole DHT: the founder of a network that nobody has joined yet."""
        shards = self.replicas.shards
        return len(shards) == self.network.shards and all(shard.members == (self.ident,) for shard in shards.values())

    def _reachable(self, command: c.Reachable) -> Future[None]:
        facts, told = self.paths.facts, (list(command.endpoints), list(command.mapped))
        changed = (facts.local, facts.mapped) != told
        facts.local, facts.mapped = told
        facts.carries.update(command.carries or {endpoint.scheme: 0 for endpoint in command.endpoints})
        if changed:
            for link in self.links:
                self.runtime.background(self.paths.punch(link))
        return settled(None)

    def _remember(self, command: c.Remember) -> Future[None]:
        self.bootstrap.remember(command.endpoints)
        return settled(None)

    def _keep_lease(self, command: c.KeepLease) -> Future[None]:
        self.leases.own.start(command.held, command.wish, command.ttl)
        return settled(None)

    def _hold_lease(self, command: c.HoldLease) -> Future[None]:
        self.leases.hold(command.holder, command.name, command.wish, command.ttl, command.held, command.avoid)
        return settled(None)

    def _rest(self, command: c.Rest) -> Future[None]:
        self.bootstrap.resting = command.resting
        return settled(None)

    def _disown(self, command: c.Disown) -> Future[None]:
        self.rivalry.disown(command.ident, command.address.packed)
        return settled(None)

    def _adopt_charter(self, command: c.AdoptCharter) -> Future[None]:
        try:
            self.charters.give(command.charter)
        except LocalMisuse as error:
            return failed(error)
        return settled(None)

    def _suspect(self, command: c.Suspect) -> Future[None]:
        self.paths.suspect(command.ident)
        return settled(None)

    def _path_lost(self, command: c.PathLost) -> Future[None]:
        self.paths.lost(command.endpoint)
        return settled(None)

    def _doubt_mtu(self, command: c.DoubtMtu) -> Future[None]:
        link = self.links.by_ident.get(command.ident)
        if link is not None:
            self.paths.mtu.doubt(link)
        return settled(None)

    def _doubt_relay(self, command: c.DoubtRelay) -> Future[None]:
        link = self.links.by_ident.get(command.ident)
        if link is not None and not link.is_direct:
            self.paths.relays.mistrust(link)
        return settled(None)

    def _path_seen(self, command: c.PathSeen) -> Future[None]:
        link = self.links.by_ident.get(command.ident)
        if link is not None:
            self.paths.heard(link, command.endpoint)
        return settled(None)

    def _report(self, command: c.Report) -> Future[None]:
        link = self.links.by_ident.get(command.ident)
        if not self.links.remind(command.index) and link is not None:
            self._note_frames(link)
            self.links.send_message(link, m.Opened(command.index, command.highest, command.opened, command.failed))
        return settled(None)

    def _connect(self, command: c.Connect) -> Future[Link]:
        """Whoever asks for a link will use it."""
        connected = self.links.connect(command.ident)
        connected.then(lambda done: self._note_frames(done.result()) if done.error is None else None)
        return connected

    def _note_frames(self, link: Link) -> None:
        """Frames go over a link, or soon will: it is needed, and its path is worth being measured."""
        link.used = link.frames = self.runtime.now
        self.paths.mtu.tend(link)

    async def _revoke(self, order: m.Revocation) -> int:
        return self.revocations.revoke(order)

    async def _ping(self, ident: Ident, size: int) -> float:
        link = await self.links.connect(ident)
        known = link.direct.get(link.active) if isinstance(link.active, Endpoint) else None
        if size and (known is None or not known.rtt):
            raise LocalMisuse("only a direct path that has answered is challenged by large datagrams")
        return await self.paths.challenge(link, link.active, 2.0, size)

    async def _punch(self, ident: Ident) -> None:
        await self.paths.punch(await self.links.connect(ident))

    async def _leave(self) -> int:
        """First the place on the ring, so that nobody gives us shards any more; then the shards; then the links."""
        heirs = [*self.ring.near(), *sorted(self.links.by_ident)]
        await self.ring.leave()
        kept = await self.views.leave(heirs)
        for link in self.links:
            self.links.drop(link, "the node leaves")
        return kept
