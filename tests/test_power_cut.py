"""All nodes go out at once and start again at once: nobody has a ring that the others could join."""

from __future__ import annotations

from ipop_tx.wire import messages as m
from tests.net import NetCase


class PowerCutTests(NetCase):
    """Every node knows the others' endpoints, as from its cache of peers."""

    def test_all_start_at_once(self) -> None:
        """They link, and the least of them begins; one ring within seconds, and without a storm of questions."""
        for seed in range(3):
            net = self.net(seed)
            machines = self.grow(net, 8)
            for machine in machines:
                machine.crash()
            net.run(1.0)
            begun = net.now
            joins = [machine.start(*(other for other in machines if other is not machine)) for machine in net.rng.sample(machines, 8)]
            self.all_done(net, joins, 10.0)
            self.heals(net, 20.0 - (net.now - begun))

    def test_who_looks_for_the_ring_answers_for_itself(self) -> None:
        """A node that is not on the ring refuses a look-up at once instead of asking others in its turn."""
        net = self.net()
        one, other = net.add(), net.add()
        one.start(other)
        other.start(one)
        self.becomes(net, lambda: other.ident in one.running.links.by_ident, 5.0, "a link")
        answer = one.running.rpc.call(other.ident, m.Lookup(bytes(20), 40))
        one.settle()
        net.run(0.5, lambda: answer.done)
        self.assertIn("not on the ring yet", str(answer.error))
