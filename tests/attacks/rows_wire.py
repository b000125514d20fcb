"""Attackers outside the network: on the path, off it, and beside a member."""

from __future__ import annotations

import errno
import json
import random
import socket
import sys
import time

from ipop_tx.identity.credentials import GuestCredentials
from ipop_tx.identity.keys import generate_key
from ipop_tx.lab import Host, Nat, wait_for
from ipop_tx.lab.waiting import holds_within
from ipop_tx.session.dtls import DtlsSessionFactory
from tests.attacks.case import AttackCase, ChangedNode, shows
from tests.attacks.wire import Datagram, Eyes, Forger

PORT = 4500
SETTLE = 1.0
"""Seconds in which a daemon has certainly taken what was sent to it."""


def is_sealed(one: Datagram) -> bool:
    """Whether it is a sealed datagram (RFC 7983's range)."""
    return bool(one.payload) and 128 <= one.payload[0] <= 191


class WireAttacks(AttackCase):
    """Each with two real daemons and raw sockets."""

    def traffic(self, eyes: Eyes, one: ChangedNode, other: ChangedNode) -> list[Datagram]:
        """Sealed datagrams of pings from one to the other, as seen on the path."""
        target = other.address
        for _ in range(5):
            self.assertIsNotNone(one.ping(target))
        return [seen for seen in eyes.seen(one.host.address, other.host.address) if is_sealed(seen)]

    def unharmed(self, one: ChangedNode, other: ChangedNode, path: str) -> None:
        """Traffic goes on, by the same path."""
        self.assertTrue(one.reaches(other.address, 5))
        self.assertEqual(one.path_to(other), path)

    @shows(1, "authentication")
    def test_flipped_bits(self) -> None:
        """Real datagrams with one bit changed, from the real address: all are counted as forged, none has an effect."""
        founder, other = self.pair()
        path = founder.path_to(other)
        with Eyes(self.lab.core) as eyes, Forger(self.lab.public_host("attacker")) as forger:
            seen = self.traffic(eyes, other, founder)
            before, rng = founder.counter("in_forged", "datagram_forged"), random.Random(1)
            for number in range(500):
                one = seen[number % len(seen)]
                at = rng.randrange(16, len(one.payload))
                flipped = bytearray(one.payload)
                flipped[at] ^= 1 << rng.randrange(8)
                flipped[8:16] = (1 << 40 | number).to_bytes(8, "big")  # else it would be a replay
                forger.send(one.source, one.target, bytes(flipped))
        counted = holds_within(10, lambda: founder.counter("in_forged", "datagram_forged") - before >= 500)
        self.figures["forged"] = founder.counter("in_forged", "datagram_forged") - before
        self.assertTrue(counted, "every one is counted")
        self.unharmed(founder, other, path)

    @shows(2, "replay_window")
    def test_replayed_data(self) -> None:
        """Pings that were recorded, sent again from their own address and from another: the kernel gets none twice, nobody moves."""
        founder, other = self.pair()
        path = founder.path_to(other)
        attacker = self.lab.public_host("attacker")
        with Eyes(self.lab.core) as eyes, Forger(attacker) as forger:
            seen = self.traffic(eyes, other, founder)
            echoes, before = founder.echoes(), founder.counter("in_forged", "datagram_forged")
            for one in seen:
                forger.again(one)
                forger.again(one, (attacker.address, PORT))
            time.sleep(SETTLE)
            self.assertEqual(founder.echoes(), echoes, "the kernel gets no ping twice")
            self.assertGreaterEqual(founder.counter("in_forged", "datagram_forged") - before, 2 * len(seen))
            self.assertEqual(eyes.seen(founder.host.address, attacker.address), [], "nothing goes to the attacker")
        self.figures["replayed"] = 2 * len(seen)
        self.unharmed(founder, other, path)

    @shows(4, "authentication")
    def test_a_forgery_from_elsewhere(self) -> None:
        """A datagram with a member's index and counter, made up, from a stranger's address: no move, not even a challenge."""
        founder, other = self.pair()
        path = founder.path_to(other)
        attacker = self.lab.public_host("attacker")
        with Eyes(self.lab.core) as eyes, Forger(attacker) as forger:
            seen = self.traffic(eyes, other, founder)
            for number in range(50):
                head = seen[-1].payload[:4] + b"\x01\0\x01\0" + (1 << 40 | number).to_bytes(8, "big")
                forger.send((attacker.address, PORT), seen[-1].target, head + random.Random(number).randbytes(60))
            time.sleep(SETTLE)
            self.assertEqual(eyes.seen(founder.host.address, attacker.address), [])
        self.unharmed(founder, other, path)

    @shows(5, "path_challenge")
    def test_a_race(self) -> None:
        """The real datagrams are held up on the path and arrive from the attacker's address first: it is asked, and not believed."""
        founder, other = self.pair()
        path = founder.path_to(other)
        attacker = self.lab.public_host("attacker")
        rules = f"table ip held {{\n chain c {{\n type filter hook forward priority 0;\n ip saddr {other.host.address} drop\n }}\n}}\n"
        with Eyes(self.lab.core) as eyes, Forger(attacker) as forger:
            self.traffic(eyes, other, founder)
            self.lab.core.run(["nft", "-f", "-"], text=rules)
            known = len(eyes.seen(other.host.address, founder.host.address))
            pings = other.host.start(["ping", "-n", "-i0.2", founder.address], log="pings.log")
            wait_for("datagrams", 10, lambda: len(eyes.seen(other.host.address, founder.host.address)) > known + 2)
            stolen = [one for one in eyes.seen(other.host.address, founder.host.address)[known:] if is_sealed(one)][:4]
            for one in stolen:
                forger.again(one, (attacker.address, PORT))
            time.sleep(SETTLE / 2)
            self.assertNotIn(attacker.address, founder.path_to(other))
            self.lab.core.run(["nft", "delete", "table", "ip", "held"])
            pings.stop()
            told = sum(len(one.payload) for one in eyes.seen(founder.host.address, attacker.address))
            self.assertLessEqual(told, 3 * sum(len(one.payload) for one in stolen))
        self.figures["bytes_to_attacker"] = told
        self.assertTrue(founder.reaches(other.address, 20))
        self.assertEqual(founder.wait_for_path(other, lambda now: now == path), path)

    @shows(6, "cookie")
    def test_a_flood_of_hellos(self) -> None:
        """First words of handshakes from 3000 sources: no answer is longer than its question, memory stays, a newcomer gets in."""
        founder, other = self.pair()
        hello = bytearray(DtlsSessionFactory(GuestCredentials(generate_key(), bytes(16))).initiate(0.0).poll_transmit() or b"")
        rng = random.Random(1)
        assert founder.process is not None
        memory = resident(founder)
        with Eyes(founder.host) as asked, Eyes(self.lab.core) as eyes, Forger(self.lab.public_host("attacker")) as forger:
            for number in range(3000):
                hello[27:59] = rng.randbytes(32)
                forger.send((f"192.88.{number % 250}.{1 + number // 250}", 1024 + number), (founder.host.address, PORT), bytes(hello))
                if not number % 20:
                    time.sleep(0.01)
            time.sleep(SETTLE)
            question = sum(len(one.payload) for one in asked.seen() if one.source[0].startswith("192.88."))
            answers = [one for one in eyes.seen(founder.host.address) if one.target[0].startswith("192.88.")]
        answered = sum(len(one.payload) for one in answers)
        self.figures.update(bytes_in=question, bytes_out=answered, memory_mb=round((resident(founder) - memory) / 1e6, 1))
        self.assertGreater(len(answers), 100, "cookies are given")
        self.assertLessEqual(max(len(one.payload) for one in answers), len(hello))
        self.assertLessEqual(answered, question)
        self.assertLess(resident(founder) - memory, 8e6)
        self.assertIsNotNone(other.ping(founder.address))
        self.admit(founder, self.lab.public_host("newcomer"))

    @shows(24, "fresh_keys")
    def test_old_keys(self) -> None:
        """Both daemons are killed and start again: what was recorded before is worth nothing."""
        founder, other = self.pair()
        with Eyes(self.lab.core) as eyes, Forger(self.lab.public_host("attacker")) as forger:
            target = founder.address
            other.host.run(["ping", "-n", "-q", "-c150", "-i0.01", "-s", "77", target])
            seen = [one for one in eyes.seen(other.host.address, founder.host.address) if is_sealed(one)]
            for node in (founder, other):
                node.kill9()
            for node in (founder, other):
                node.start()
            for node in (founder, other):
                node.wait_until_up(60)
            self.assertTrue(other.reaches(founder.address))
            before = founder.echoes()
            for one in seen:
                forger.again(one)
            time.sleep(SETTLE)
            self.assertEqual(founder.echoes(), before)
            fresh = [one for one in eyes.seen(other.host.address, founder.host.address) if is_sealed(one)][len(seen) :]
        nonces = {one.payload[:16] for one in seen}
        self.assertEqual(
            [one for one in fresh if one.payload[:16] in nonces and one not in seen], [], "no nonce comes again under an index"
        )
        self.figures["replayed"] = len(seen)


class InvitationAttacks(AttackCase):
    """Who may come in."""

    @shows(23, "single_use")
    def test_an_invitation_twice_at_once(self) -> None:
        """Two machines use one invitation at the same moment: exactly one is let in."""
        founder = self.found(self.lab.public_host("founder"))
        token = founder.invite("node")
        takers = [self.node_on(self.lab.public_host(name)) for name in ("one", "two")]
        joins = [
            taker.host.start(
                [ipop(), "join", token, "--state", str(taker.state), "--name", "node", "--config", str(taker.config)], log="join.log"
            )
            for taker in takers
        ]
        ends = sorted(join.wait(60) == 0 for join in joins)
        self.figures["let_in"] = sum(ends)
        self.assertEqual(ends, [False, True], [join.output for join in joins])


class SocketAttacks(AttackCase):
    """The control socket."""

    @shows(19, "control_checks")
    def test_others_at_the_control_socket(self) -> None:
        """Another user, a browser's Origin, a foreign Host, a request of a megabyte: each is refused, and the daemon goes on."""
        founder = self.found(self.lab.public_host("founder"))
        for place in (founder.directory, founder.host.directory, self.lab.scratch):
            place.chmod(0o755)
        self.assertEqual(founder.socket.stat().st_mode & 0o777, 0o600)
        curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", str(founder.socket)]
        url = "http://ipop/status"
        self.assertEqual(founder.host.run([*curl, url]).stdout, "200")
        self.assertEqual(founder.host.run([*curl, "-H", "Origin: http://ipop", url]).stdout, "403")
        self.assertEqual(founder.host.run([*curl, "http://localhost/status"]).stdout, "403")
        large = founder.host.directory / "large"
        large.write_text(json.dumps({"target": "x" * (1 << 20)}))
        self.assertEqual(founder.host.run([*curl, "--data-binary", f"@{large}", "http://ipop/ping"], check=False).stdout, "413")
        founder.host.run([*curl, "-H", "X: " + "y" * 100000, url], check=False)
        founder.socket.chmod(0o666)  # as if an administrator had opened it
        nobody = ["setpriv", "--reuid=65534", "--clear-groups", "--"]
        self.assertEqual(founder.host.run([*nobody, *curl, url]).stdout, "403")
        self.assertEqual(founder.status()["self"]["name"], "founder")


class LanAttacks(AttackCase):
    """Whoever shares a LAN with a member."""

    @shows(20, "shield")
    def test_the_overlay_from_the_lan(self) -> None:
        """Packets and questions for the overlay's addresses from the LAN get no answer of any kind; nor does a kill leave rules."""
        site = self.lab.site("home", Nat.PORT_RESTRICTED)
        founder = self.found(site.host("founder"))
        lan, ours, ours6 = site.host("lan"), founder.address, founder.ipv6
        server = founder.host.start([sys.executable, "-u", "-m", "http.server", "8000"], log="http.log")
        wait_for("a server", 10, lambda: "Serving" in server.output)
        self.assertTrue(_connects(founder.host, ours), "its own programs reach it")
        answered = [name for name, tried in self.probes(lan, founder, ours, ours6).items() if tried]
        self.figures.update(probes=5, answered=answered)
        self.assertEqual(answered, [])
        other = self.admit(founder, site.host("other"))
        self.assertTrue(_connects(other.host, ours), "members reach it")
        founder.kill9()
        self.assertEqual(founder.host.run(["nft", "list", "tables"]).stdout, "")

    def probes(self, lan: Host, founder: ChangedNode, ours: str, ours6: str) -> dict[str, bool]:
        """What the LAN tries, and whether anything came back."""
        lan.run(["ip", "route", "add", f"{ours}/32", "dev", "eth0"])
        found = {"ARP": _pings(lan, ours) or "lladdr" in lan.run(["ip", "neigh", "show", ours]).stdout}
        lan.run(["ip", "route", "replace", f"{ours}/32", "via", founder.host.address])
        found.update(ping=_pings(lan, ours), tcp=_connects(lan, ours), udp=_is_refused(lan, ours))
        link = json.loads(founder.host.run(["ip", "-j", "link", "show", "eth0"]).stdout)[0]
        lan.run(["ip", "-6", "route", "add", f"{ours6}/128", "dev", "eth0"])
        lan.run(["ip", "-6", "neigh", "add", ours6, "lladdr", link["address"], "dev", "eth0"])
        return {**found, "ping6": _pings(lan, ours6)}


def _pings(host: Host, address: str) -> bool:
    return " 0 received" not in host.run(["ping", "-n", "-c2", "-i0.3", "-W1", address], check=False).stdout


def _connects(host: Host, address: str) -> bool:
    """Whether a TCP connection is taken, or refused: both are answers."""
    with host.socket(socket.SOCK_STREAM) as port:
        port.settimeout(1.5)
        return port.connect_ex((address, 8000)) in (0, errno.ECONNREFUSED)


def _is_refused(host: Host, address: str) -> bool:
    """Whether an ICMP error tells that nobody listens there."""
    with host.socket() as port:
        port.settimeout(1.0)
        port.connect((address, 9))
        port.send(b"?")
        try:
            port.recv(1)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
    return True


def resident(node: ChangedNode) -> int:
    """Bytes of memory that its daemon has."""
    assert node.process is not None
    with open(f"/proc/{node.process.pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


def ipop() -> str:
    """The command."""
    from ipop_tx.lab.node import program

    return program("ipop")[0]
