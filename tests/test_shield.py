"""The shield before a node's addresses, in the kernel of a namespace; what it keeps off is row 20 of `tests.attacks`."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path

from ipop_tx.services import nftables as nft
from ipop_tx.services.shield import Shield
from ipop_tx.wire.address import ipv6_of
from tests.port import IDENT, NETWORK, Inbox, RealTap

ADDRESS = IPv4Address("10.128.0.5")
IPV6 = ipv6_of(NETWORK.prefix, IDENT)


class ShieldTests(RealTap):
    """Tables as `nft` shows them."""

    def rules(self) -> list[str]:
        return [line.strip() for line in self.namespace.run("nft", "list", "ruleset").splitlines() if "drop" in line]

    def test_a_tap_with_addresses(self) -> None:
        made = self.make()
        self.namespace.call(made.start, Inbox())
        self.assertEqual(self.rules(), [])
        self.namespace.call(made.configure, ADDRESS, IPV6)
        head = 'iifname != "lo" iifname != "tapt0"'
        expected = [f"{head} ip6 daddr {IPV6} drop", f"{head} ip daddr {ADDRESS} drop", f"{head} arp daddr ip {ADDRESS} drop"]
        self.assertEqual(self.rules(), expected)
        self.namespace.call(made.configure, None, IPV6)
        self.assertEqual(self.rules(), expected[:1])
        made.stop()
        self.assertNotIn("ipop", self.namespace.run("nft", "list", "tables"))

    def test_none_is_wanted(self) -> None:
        made = self.make(shielded=False)
        self.namespace.call(made.start, Inbox())
        self.namespace.call(made.configure, ADDRESS, IPV6)
        self.assertEqual((self.rules(), made.health()), ([], []))

    def test_two_daemons(self) -> None:
        """Each has its own tables."""
        one, other = Shield(["a"]), Shield(["b", "br0"])
        for shield in (one, other):
            self.namespace.call(shield.protect, [ADDRESS])
        self.assertEqual(len(self.rules()), 4)
        one.lift()
        one.lift()
        self.assertEqual(len(self.rules()), 2)
        self.assertIn('iifname != "br0"', self.rules()[0])
        other.lift()

    def test_an_old_kernel(self) -> None:
        """Which knows no owner of a table: it stays after a kill, and is replaced at the next start."""
        table = nft.table
        self.patch(nft, "table", lambda family, name, flags: table(family, name, flags and 0x80))
        killed, shield = Shield(["a"]), Shield(["a"])
        self.namespace.call(killed.protect, [ADDRESS])
        killed._batches.close()  # type: ignore[union-attr]
        self.assertEqual(len(self.rules()), 2)
        self.namespace.call(shield.protect, [IPV6])
        self.assertEqual(len(self.rules()), 1)
        shield.lift()
        self.assertEqual(self.namespace.run("nft", "list", "tables"), "")

    def test_the_same_twice(self) -> None:
        """A living daemon's tables are left alone."""
        one, other = Shield(["a"]), Shield(["a"])
        self.namespace.call(one.protect, [ADDRESS])
        self.namespace.call(other.protect, [IPV6])
        self.assertIn("nf_tables refuses rules (Operation not permitted)", other.health()[0])
        self.assertEqual(len(self.rules()), 2)
        one.lift()
        self.namespace.call(other.protect, [IPV6])
        self.assertEqual((other.health(), len(self.rules())), ([], 1))
        other.lift()

    def test_no_rights(self) -> None:
        script = (
            "from ipaddress import IPv4Address; from ipop_tx.services.shield import Shield\n"
            "one = Shield(['a']); one.protect([IPv4Address('10.128.0.5')]); print(one.health()[0]); one.lift()"
        )
        words = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", script]
        here = Path(__file__).parents[1]
        done = subprocess.run(self.namespace.command(*words), check=False, capture_output=True, text=True, cwd=here, timeout=60)
        self.assertIn("tap.shield = false", done.stdout, done.stderr)
