"""What the authority's daemon makes of a recovery: who may, what is ordered, and that members believe it."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.core import commands as c
from ipop_tx.core.dht.records import RegisterSigner
from ipop_tx.core.dht.recovery import Founded, Loss
from ipop_tx.errors import LocalMisuse
from ipop_tx.identity.authority import Admitter, create_network, install_chain, make_request, sign_request
from ipop_tx.identity.credentials import Credentials
from ipop_tx.identity.state import StateDirectory
from ipop_tx.services.recovery import Recovery
from ipop_tx.wire import messages as m

WALL = 1_800_000_000.0
US, GONE = b"u" * 20, b"g" * 20
LINKED = [bytes([digit]) * 20 for digit in range(1, 7)]


class Links:
    """To everybody of `LINKED`."""

    def __init__(self) -> None:
        self.by_ident = dict.fromkeys(LINKED)


class Protocol:
    """A node that has lost something."""

    ident = US
    is_ordered = staticmethod(lambda order: True)

    def __init__(self, network: Any, losses: list[Loss]) -> None:
        self.network = network
        self.links = Links()
        self.node = self
        self.losses = losses
        self.orders: list[m.Order] = []

    def on(self, kind: type, listener: Any) -> None:
        """Nothing is told."""

    def submit(self, command: object) -> Deferred[Any]:
        """Survey, and carry out."""
        if isinstance(command, c.CarryOut):
            self.orders.append(command.order)
            return succeed([Founded(loss.shard, 1, loss.number, 3, True) for loss in self.losses])
        return succeed(self.losses)


class RecoveryTests(SynchronousTestCase):
    """`POST /recover`."""

    def setUp(self) -> None:
        self.state = StateDirectory(self.mktemp())
        self.network = create_network(self.state, "lab", IPv4Network("10.128.0.0/16"), "first", wall=WALL)
        self.losses = [Loss(4, 7, (US, LINKED[5], GONE), (US, LINKED[5]), (LINKED[5],)), Loss(9, 2, (GONE,), (), ())]
        self.protocol: Any = Protocol(self.network, self.losses)

    def recover(self, confirmed: bool, admitter: Admitter | None = None, wall: float = WALL) -> dict[str, Any]:
        """One request."""
        recovery = Recovery(
            self.protocol, lambda: (admitter or Admitter.load(self.state)).authority_key, lambda ident: ident.hex()[:8], lambda: wall
        )
        return self.successResultOf(Deferred.fromCoroutine(recovery.recover(confirmed)))

    def test_told(self) -> None:
        """Without confirmation nothing is ordered."""
        answer = self.recover(False)
        self.assertEqual(
            [(loss["shard"], loss["missing"], loss["copies"]) for loss in answer["lost"]], [(4, ["67676767"], 1), (9, ["67676767"], 0)]
        )
        self.assertEqual(answer["lost"][0]["members"], ["this node", "06060606", "67676767"])
        self.assertEqual((answer["founded"], self.protocol.orders), ([], []))

    def test_nothing_lost(self) -> None:
        """Then nothing is ordered either, confirmed or not."""
        self.protocol.losses = []
        self.assertEqual(self.recover(True), {"lost": [], "founded": []})
        self.assertEqual(self.protocol.orders, [])

    def test_ordered(self) -> None:
        """The order names us and who has most copies, and every member of the network believes it; nobody else does, and no altered one."""
        answer = self.recover(True)
        (order,) = self.protocol.orders
        self.assertEqual((order.number, order.shards, order.time), (int(WALL), (4, 9), int(WALL)))
        self.assertEqual(order.members, (US, LINKED[5], *LINKED[:3]))
        self.assertEqual(answer["founded"][0], {"shard": 4, "copies": 1, "number": 7, "registers": 3, "works": True})
        state = StateDirectory(self.mktemp())
        install_chain(state, sign_request(self.state, make_request(state, "carol"), wall=WALL), wall=WALL)
        carol = RegisterSigner(self.network, Credentials.load(state, lambda: WALL).signer())
        self.assertTrue(carol.is_ordered(order))
        other = StateDirectory(self.mktemp())
        stranger = create_network(other, "other", IPv4Network("10.128.0.0/16"), "mallory", wall=WALL)
        self.assertFalse(RegisterSigner(stranger, Credentials.load(other, lambda: WALL).signer()).is_ordered(order))
        for change in ({"number": 5}, {"members": (GONE,)}, {"shards": (1,)}, {"time": 5}, {"nonce": bytes(16)}, {"signature": b""}):
            fields = {name: getattr(order, name) for name in order.__struct_fields__} | change
            self.assertFalse(carol.is_ordered(m.Order(**fields)), change)

    def test_later_views(self) -> None:
        """A clock that is far behind does not lead to a number that has been."""
        self.recover(True, wall=1.0)
        self.assertEqual(self.protocol.orders[0].number, 8)

    def test_who_may(self) -> None:
        """Only who holds the authority's key."""
        keeper = Admitter.load(self.state)
        deputy = Admitter(keeper.key, keeper.certificate, keeper.root)
        failure = self.failureResultOf(
            Deferred.fromCoroutine(Recovery(self.protocol, lambda: deputy.authority_key, lambda ident: "").recover(True)), LocalMisuse
        )
        self.assertIn("only the node that holds the authority's key", str(failure.value))
