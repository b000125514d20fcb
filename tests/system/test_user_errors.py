"""What a user does wrong gives one clear sentence, and changes nothing."""

from __future__ import annotations

import time

from ipop_tx.lab import wait_for
from ipop_tx.lab.node import LabNode, Refusal, environment, program
from tests.system.case import LabTestCase


class UserErrorTests(LabTestCase):
    """Each of them with real daemons and the real command."""

    def founded(self) -> LabNode:
        """A node that has made a network and does not run yet."""
        node = LabNode(self.lab.public_host("founder"))
        node.create("lab")
        return node

    def test_a_wrong_configuration(self) -> None:
        """File, key, value and the mend; the system was not touched."""
        node = self.founded()
        node.keys["tap"]["mtu"] = 100
        self.assert_refused(node.refuse(), str(node.config), "tap.mtu", "100", "choose 1280 to 9000 bytes", status=2)
        node.keys["tap"] = {"nmae": "ipop0"}
        self.assert_refused(node.refuse(), str(node.config), "tap.nmae", "ipop0", status=2)
        self.assertFalse(node.socket.exists())

    def test_no_configuration(self) -> None:
        """A file that is not there is named."""
        host, missing = self.lab.public_host("node"), str(self.lab.scratch / "missing.toml")
        argv = [*program("twistd"), "-n", "--pidfile=", "ipop", "--config", missing]
        done = host.run(argv, check=False, environment=environment())
        self.assert_refused(Refusal(done.returncode, done.stdout + done.stderr), missing, "no such file", status=2)

    def test_no_daemon(self) -> None:
        """`ipop status` says that nobody answers, and how to start one."""
        node = self.founded()
        status, out, err = node.ipop("status", "--socket", str(node.socket), check=False)
        self.assert_refused(Refusal(status, out + err), str(node.socket), "twistd ipop")

    def test_no_root_rights(self) -> None:
        """A daemon without CAP_NET_ADMIN says what it lacks."""
        refusal = self.founded().refuse("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")
        self.assert_refused(refusal, "root")

    def test_the_port_is_taken(self) -> None:
        """The address and the port are named, and no interface stays behind."""
        node = self.founded()
        with node.host.socket() as squatter:
            squatter.bind(("0.0.0.0", 4500))
            self.assert_refused(node.refuse(), "UDP port 4500", "taken")
        self.assertIsNone(node.address_on_tap())

    def test_the_name_of_the_tap_is_taken(self) -> None:
        """An interface of that name which is not ours is left alone."""
        node = self.founded()
        node.host.run(["ip", "link", "add", "ipop0", "type", "bridge"])
        self.assert_refused(node.refuse(), "ipop0", "tap.name")
        self.assertIn("bridge", node.host.run(["ip", "-d", "link", "show", "ipop0"]).stdout)

    def test_the_state_is_missing(self) -> None:
        """A node that never joined is told to."""
        node = LabNode(self.lab.public_host("node"))
        self.assert_refused(node.refuse(), "ipop join")

    def test_a_second_daemon(self) -> None:
        """A running daemon's socket is not taken from it."""
        first = self.found(self.lab.public_host("founder"))
        second = LabNode(first.host, "second", port=4501)
        second.create("other", pool="10.129.0.0/16")
        second.keys["control"]["socket"] = str(first.socket)
        second.keys["tap"]["name"] = "ipop1"
        self.assert_refused(second.refuse(), str(first.socket), "control.socket")
        self.assertEqual(first.status()["self"]["name"], "founder")


class InvitationTests(LabTestCase):
    """Invitations that are no good any more, or never were."""

    def test_a_used_invitation(self) -> None:
        """The second taker is told that it is used."""
        founder = self.found(self.lab.public_host("founder"))
        first, second = (LabNode(self.lab.public_host(name)) for name in ("first", "second"))
        token = founder.invite("first")
        first.join(token)
        self.assert_refused(second.refused_join(token), "used")

    def test_an_expired_invitation(self) -> None:
        """After its time it admits nobody."""
        founder = self.found(self.lab.public_host("founder"))
        token = founder.invite("late", expires="1s")
        over = time.time() + 2  # whole seconds are written, and rounded
        wait_for("the invitation's end", 5, lambda: time.time() > over)
        self.assert_refused(LabNode(self.lab.public_host("late")).refused_join(token), "expired")

    def test_a_mangled_invitation(self) -> None:
        """A copying error is told from a refusal."""
        founder = self.found(self.lab.public_host("founder"))
        token = founder.invite("node")
        self.assert_refused(LabNode(self.lab.public_host("node")).refused_join(token[:-4]), "invitation")

    def test_a_certificate_of_another_network(self) -> None:
        """A member of one network that is pointed at another says so in its health, and neither lets the other in."""
        founder = self.found(self.lab.public_host("founder"))
        stranger = LabNode(self.lab.public_host("stranger"))
        stranger.create("other", pool="10.129.0.0/16")
        stranger.keys["node"]["bootstrap"] = [f"udp:{founder.host.address}:4500"]
        stranger.start()
        stranger.wait_until_up()
        sentences = wait_for(
            "a warning", 20, lambda: [s for s in stranger.status()["health"] if "network" in s and founder.host.address in s], every=0.2
        )
        self.assertEqual(len(sentences), 1)
        self.assertEqual([peer["name"] for peer in founder.status()["peers"]], [])
