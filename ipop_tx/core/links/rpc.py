"""Requests and replies on links: repeated until answered, carried out once.

A request that takes its time is acknowledged by `Working` when it is repeated, so the asker can tell a slow answer from a dead
node: no sign of life after four sendings is `Unreachable`, and the link comes under suspicion.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ipop_tx import errors
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.linktable import LinkTable
from ipop_tx.core.runtime import Runtime, Timer
from ipop_tx.core.tasks import Future, failed, spawn
from ipop_tx.errors import BadMessage, IpopError, RemoteMisbehaviour, Unreachable
from ipop_tx.values import Ident, short
from ipop_tx.wire import messages as m

FIRST_WAIT = 0.3
"""Least seconds until a request is repeated; thrice the round trip if that is more."""
SENDINGS = 4
REMEMBERED = 30.0
"""Seconds for which a reply is kept, to be repeated to a repeated request."""
DEADLINE = 10.0
OF_THE_LINK = frozenset({m.Hello, m.Offer, m.Links, m.Renew, m.Unneeded, m.Assist, m.Knock, m.Search, m.Whence, m.Newest})
"""Questions about the link itself: they have no sense on another one."""
UPKEEP = OF_THE_LINK | {m.GetNeighbours, m.Notify, m.Suggest, m.Leaving, m.Lookup, m.Closest, m.Seek, m.Broadcast, m.WhereIs}
"""Questions that do not show that a link is needed: the ring's own, which go by whatever links there are."""
REPEATABLE = frozenset({m.Peek, m.WhoKeeps, m.GetNeighbours, m.Notify, m.Suggest, m.Links})
"""Questions that are answered at once and do no more twice than once: repeated, they are answered anew, so no answer is kept."""

Handler = Callable[[Link, Any], "m.Answer | Future[m.Answer] | Coroutine[Any, None, m.Answer]"]


@dataclass(slots=True)
class _Call:
    link: Link
    request: m.Request
    answered: Future[m.Answer]
    deadline: float
    wait: float
    most: int
    sendings: int = 0
    timer: Timer | None = None


class Rpc:
    """Asks and answers on behalf of all parts of a node."""

    def __init__(self, links: LinkTable, runtime: Runtime) -> None:
        self.suspect: Callable[[Ident], None]
        self._links = links
        self._runtime = runtime
        self._handlers: dict[type, Handler] = {}
        self._for_guests: tuple[type, ...] = ()
        """What guests may ask too."""
        self._calls: dict[int, _Call] = {}
        self._next = runtime.rng.getrandbits(48)
        self._served: dict[tuple[Ident, int], tuple[float, m.Answer | None]] = {}
        """What we were asked, the oldest first, and when; and what we have answered, if we have."""
        links.on_down.append(self._link_down)

    def serve(self, kind: type, handler: Handler, guests: bool = False) -> None:
        """Answer requests of one type; guests may ask only where `guests` is true."""
        self._handlers[kind] = handler
        if guests:
            self._for_guests += (kind,)

    # --- asking ------------------------------------------------------------------------------

    def nearest_first(self, members: Sequence[Ident]) -> list[Ident]:
        """Members in the order of their round trips: ourselves, those that are linked, the others."""
        links, ours = self._links.by_ident, self._links.ident
        return sorted(members, key=lambda member: (member != ours, link.rtt if (link := links.get(member)) is not None else 1e9))

    def slowest(self, members: Sequence[Ident]) -> float:
        """The longest round trip to any of those members that are linked."""
        return max((link.rtt for member in members if (link := self._links.by_ident.get(member)) is not None), default=0.0)

    def call(self, ident: Ident, body: m.Ask, deadline: float = DEADLINE) -> Future[m.Answer]:
        """Ask a member, over a link made for it if need be; the deadline covers both.

        Fails with `Unreachable`, or with the error that the member names.
        """
        link = self._links.by_ident.get(ident)
        if link is not None:
            return self.on_link(link, body, deadline)
        answered = spawn(self._connect_and_call(ident, body, deadline))
        late = self._runtime.after(deadline, lambda: answered.fail(Unreachable(f"{short(ident)} cannot be reached")))
        answered.then(lambda done: late.cancel())
        return answered

    async def _connect_and_call(self, ident: Ident, body: m.Ask, deadline: float) -> m.Answer:
        return await self.on_link(await self._links.connect(ident), body, deadline)

    def on_link(self, link: Link, body: m.Ask, deadline: float = DEADLINE, sendings: int = SENDINGS) -> Future[m.Answer]:
        """Ask the peer of a link; it counts as dead after `sendings` without any sign of life."""
        if not link.up:
            return failed(Unreachable(f"{link.peer.name or short(link.ident)} is not connected"))
        now = self._runtime.now
        _note_use(link, body, now)
        self._next += 1
        wait = max(FIRST_WAIT, 3 * link.rtt)
        call = _Call(link, m.Request(self._next, body), Future(), now + deadline, wait, sendings)
        self._calls[self._next] = call
        self._send(call)
        return call.answered

    def _send(self, call: _Call) -> None:
        if call.sendings >= call.most or self._runtime.now >= call.deadline:
            self._end(call)
            call.answered.fail(Unreachable(f"{call.link.peer.name or short(call.link.ident)} does not answer"))
            if call.sendings >= call.most:
                self.suspect(call.link.ident)
            return
        call.sendings += 1
        self._links.send_message(call.link, call.request)
        call.timer = self._runtime.after(call.wait, partial(self._send, call))
        call.wait *= 2

    def _end(self, call: _Call) -> None:
        self._calls.pop(call.request.id, None)
        if call.timer is not None:
            call.timer.cancel()

    def asking(self, link: Link) -> bool:
        """Whether the peer of a link owes us an answer, other than about the link itself."""
        return any(call.link is link and type(call.request.body) not in OF_THE_LINK for call in self._calls.values())

    def _link_down(self, link: Link) -> None:
        for call in [call for call in self._calls.values() if call.link is link]:
            self._end(call)
            if link.parted and type(call.request.body) not in OF_THE_LINK:
                self._runtime.background(self._ask_anew(call))
                continue
            call.answered.fail(Unreachable(f"the link to {link.peer.name or short(link.ident)} ended"))

    async def _ask_anew(self, call: _Call) -> None:
        """The link ended for want of use just when we used it. The question keeps its number, so it is not carried out twice."""
        try:
            call.link = await self._links.connect(call.link.ident)
        except IpopError as error:
            call.answered.fail(error)
        else:
            call.sendings = 0
            call.link.used = self._runtime.now
            self._calls[call.request.id] = call
            self._send(call)

    def replied(self, link: Link, reply: m.Reply) -> None:
        """A reply came in."""
        call = self._calls.get(reply.id)
        if call is None or call.link is not link:
            self._runtime.count("reply_unexpected")
            return
        if isinstance(reply.body, m.Working):
            call.sendings = 1
            return
        self._end(call)
        if isinstance(reply.body, m.Failed):
            call.answered.fail(error_of(reply.body))
        else:
            call.answered.succeed(reply.body)

    # --- answering ---------------------------------------------------------------------------

    def requested(self, link: Link, request: m.Request) -> None:
        """A request came in: answer it, repeat the answer, or say that it is being worked on."""
        name = (link.ident, request.id)
        if name in self._served:
            self._links.send_message(link, m.Reply(request.id, self._served[name][1] or m.Working()))
            return
        kind = type(request.body)
        handler = self._handlers.get(kind)
        if handler is None or (link.peer.guest and kind not in self._for_guests):
            self._runtime.count("request_refused")
            return
        _note_use(link, request.body, self._runtime.now)
        if kind not in REPEATABLE:
            self._remember(name)
        try:
            answer = handler(link, request.body)
        except IpopError as error:
            answer = failure_of(error)
        if isinstance(answer, Future):
            answer.then(lambda done: self._answered(link, name, done))
        elif inspect.iscoroutine(answer):
            spawn(answer).then(lambda done: self._answered(link, name, done))
        else:
            self._reply(link, name, answer)  # type: ignore[arg-type]

    def _answered(self, link: Link, name: tuple[Ident, int], done: Future[m.Answer]) -> None:
        error = done.error
        if error is None:
            self._reply(link, name, done.result())
        elif isinstance(error, IpopError):
            self._reply(link, name, failure_of(error))
        else:
            self._runtime.background(_raise(error))
            self._reply(link, name, m.Failed("IpopError", "the member met an error of its own", ""))

    def _reply(self, link: Link, name: tuple[Ident, int], answer: m.Answer) -> None:
        if name in self._served:
            self._served[name] = (self._served[name][0], answer)
        if link.up:
            self._links.send_message(link, m.Reply(name[1], answer))

    def _remember(self, name: tuple[Ident, int]) -> None:
        now = self._runtime.now
        self._served[name] = (now, None)
        while now - self._served[oldest := next(iter(self._served))][0] > REMEMBERED:
            del self._served[oldest]


def _note_use(link: Link, body: m.Ask, now: float) -> None:
    if type(body) not in UPKEEP:
        link.used = now


async def _raise(error: BaseException) -> None:
    raise error


def failure_of(error: IpopError) -> m.Failed:
    """An error as a reply."""
    return m.Failed(type(error).__name__, error.sentence[:300], error.mend[:300])


def error_of(failure: m.Failed) -> IpopError:
    """A reply as an error of the class that it names, if that is one of ours."""
    kind = getattr(errors, failure.code, None)
    if isinstance(kind, type) and issubclass(kind, IpopError) and kind is not errors.Unavailable:
        return kind(failure.sentence, failure.mend)
    return RemoteMisbehaviour(failure.sentence, failure.mend)


def unexpected(answer: object) -> BadMessage:
    """The error for a reply of a type that the request does not have."""
    return BadMessage(f"a member answered with {type(answer).__name__}")
