"""Whoever feeds parsers with what was made to hurt: members, guests to be, local users."""

from __future__ import annotations

import time

from tests import bombs
from tests.attacks.case import AttackCase, shows
from tests.attacks.rows_wire import resident

SETTLE = 1.0
GROWTH = 8e6
"""Bytes that a daemon may grow meanwhile."""
LARGEST = 1100
"""Bytes that one control message has in one datagram."""


class ParserAttacks(AttackCase):
    """Each of them against a real daemon; the parsers by themselves are `tests.bombs` and `tests.fuzz`."""

    @shows(22, "fragment_room")
    def test_messages_that_never_end(self) -> None:
        """Fragments of 400 messages without the last one, 28 MB of them; then bombs in every kind of record."""
        founder, wicked = self.wicked_pair()
        before = resident(founder)
        for group in range(400):
            wicked.do("fragments", peer="founder", group=group, count=64)
            time.sleep(0.005)
        sent = 0
        for data in {one[:LARGEST] for one in (*bombs.nested(), *bombs.promising(), *bombs.cut("message"), *bombs.cut("relay"))}:
            for kind in range(1, 5):
                wicked.do("seal", peer="founder", kind=kind, payload=data.hex())
                sent += 1
        time.sleep(SETTLE)
        grown = resident(founder) - before
        self.figures.update(bombs=sent, memory_grown_mb=round(grown / 1e6, 1), message_bad=founder.counter("message_bad"))
        self.assertGreater(founder.counter("message_bad"), 100, "they were looked at")
        self.assertLess(grown, GROWTH)
        self.assertTrue(founder.reaches(wicked.address, 20))
        self.admit(founder, self.lab.public_host("newcomer"))

    @shows(22, "nesting")
    def test_the_control_socket(self) -> None:
        """Bombs as bodies of requests: each is refused in a sentence."""
        founder = self.found(self.lab.public_host("founder"))
        curl = ["curl", "-s", "-m", "5", "-w", "%{http_code}", "--unix-socket", str(founder.socket), "http://ipop/ping", "--data-binary"]
        body = founder.host.directory / "body"
        before, said = resident(founder), []
        for data in {one[: 60 << 10] for one in (*bombs.nested(), *bombs.promising())}:
            body.write_bytes(data)
            said.append(founder.host.run([*curl, f"@{body}"], check=False).stdout[-3:])
        grown = resident(founder) - before
        self.figures.update(bodies=len(said), grown_at_the_socket_mb=round(grown / 1e6, 1))
        self.assertEqual(set(said), {"400"})
        self.assertLess(grown, GROWTH)
        self.assertEqual(founder.status()["self"]["name"], "founder")
