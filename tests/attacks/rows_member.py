"""Attackers inside the network: members gone bad, and certificates that are not good."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from OpenSSL import SSL

from ipop_tx.core.dht.records import key_of
from ipop_tx.core.ident import shard_of
from ipop_tx.forwarding.dhcp import CLIENT_PORT, SERVER_PORT
from ipop_tx.identity import certificates as certs
from ipop_tx.identity.authority import Admitter, create_network, read_certificates
from ipop_tx.identity.keys import PrivateKey, generate_key, point_of, read_key
from ipop_tx.identity.state import NODE_CHAIN, NODE_KEY, StateDirectory
from ipop_tx.lab.waiting import holds_within
from ipop_tx.session.dtls import DtlsSessionFactory
from ipop_tx.values import Peer, key_digest
from ipop_tx.wire import dhcp
from ipop_tx.wire import messages as m
from ipop_tx.wire.datagram import CONTROL, FRAME
from tests.attacks.case import AttackCase, ChangedNode, shows
from tests.attacks.wire import Eyes, cut, echo, udp

SETTLE = 1.0
HEAD = bytes(10)
"""The offload head of a frame that is nothing special."""
Chain = list[x509.Certificate]


class MemberAttacks(AttackCase):
    """A real daemon with a good certificate sends what no honest one does."""

    def dropped(self, founder: ChangedNode, wicked: ChangedNode, counter: str, *frames: bytes) -> None:
        """Packed frames (ethertype and packet) are dropped by the founder, and counted as this."""
        before = founder.counter(counter)
        for frame in frames:
            wicked.do("seal", peer="founder", kind=FRAME, payload=(HEAD + frame).hex())
        found = holds_within(5, lambda: founder.counter(counter) - before >= len(frames))
        self.figures[counter] = founder.counter(counter) - before
        self.assertTrue(found, f"{counter} counts what was dropped")

    @shows(3, "replay_window")
    def test_counters(self) -> None:
        """A jump of 10000, then every edge of the window: exactly the right counters are taken."""
        founder, wicked = self.wicked_pair()
        ours, theirs = founder.address, wicked.address
        top = 10000
        plan = {top: True, top - 8191: True, top - 8192: False, top - 1: True, 1: False, 0: False, top + 8192: True, top + 1: True}
        again = [top + 8192, top, top + 1, top - 1]
        before, forged = founder.echoes(), founder.counter("in_forged", "datagram_forged")
        frame = HEAD + b"\x08\0" + echo(theirs, ours)
        wicked.do("seal", peer="founder", kind=FRAME, payload=frame.hex(), steps=[*plan, *again])
        holds_within(5, lambda: founder.echoes() - before >= sum(plan.values()))
        time.sleep(SETTLE)
        self.figures.update(taken=founder.echoes() - before, of=len(plan) + len(again))
        self.assertEqual(founder.echoes() - before, sum(plan.values()))
        self.assertGreaterEqual(founder.counter("in_forged", "datagram_forged") - forged, len(plan) + len(again) - sum(plan.values()))
        self.assertTrue(wicked.reaches(ours, 10), "the session goes on")

    @shows(11, "source_check")
    def test_a_foreign_source(self) -> None:
        """Packets from an address that is not leased to the sender do not reach the kernel."""
        founder, wicked = self.wicked_pair()
        before = founder.echoes()
        frame = b"\x08\0" + echo("10.128.77.77", founder.address)
        self.dropped(founder, wicked, "in_source_address", frame, frame, frame)
        self.assertEqual(founder.echoes(), before)

    @shows(12, "ethertype_check")
    def test_claims_of_addresses(self) -> None:
        """Gratuitous ARP and neighbour advertisements of a member reach no kernel."""
        founder, wicked = self.wicked_pair()
        claim = b"\x08\x06" + bytes.fromhex("00010800060400020200000000990a804d4d0200000000990a804d4d")
        advertised = bytes([136, 0, 0, 0, 0x20, 0, 0, 0]) + bytes(16)
        head = bytes.fromhex("60000000") + len(advertised).to_bytes(2, "big") + bytes([58, 255])
        claim6 = b"\x86\xdd" + head + bytes(32) + advertised
        self.dropped(founder, wicked, "in_ethertype", claim)
        self.dropped(founder, wicked, "in_neighbour", claim6)

    @shows(13, "dhcp_check")
    def test_a_dhcp_server_elsewhere(self) -> None:
        """Offers and requests of DHCP that come over the network are dropped."""
        founder, wicked = self.wicked_pair()
        ours, theirs = founder.address, wicked.address
        options = {dhcp.SERVER: bytes(4), 121: b"\0\x0a\x80\0\x01"}
        offer = dhcp.encode(dhcp.Message(dhcp.OFFER, bytes(4), bytes(6), options, True, True))
        server = b"\x08\0" + udp((theirs, SERVER_PORT), (ours, CLIENT_PORT), offer)
        self.dropped(founder, wicked, "in_dhcp", server, server)

    @shows(13, "quota")
    def test_exhaustion(self) -> None:
        """One certificate cannot fill the DHT, and with it the pool of addresses."""
        node = self.node_on(self.lab.public_host("founder"))
        node.create("lab")
        node.keys["dht"] = {"member_registers": 64}
        node.start()
        node.wait_until_up()
        kept = 0
        for number in range(0, 120, 20):
            entries = [{"key": f"key{one}", "text": "x"} for one in range(number, number + 20)]
            answers = node.request("POST", "/dht/create", {"entries": entries, "ttl_s": 600}, timeout=60)["answers"]
            kept += sum("error" not in answer for answer in answers)
        self.figures["kept_of_120"] = kept
        self.assertLessEqual(kept, 64)

    @shows(14, "destination_check")
    def test_a_foreign_destination(self) -> None:
        """Packets of a member for addresses outside the network are not forwarded: no default route, no other network."""
        founder, wicked = self.wicked_pair()
        theirs = wicked.address
        frames = [b"\x08\0" + echo(theirs, target) for target in ("8.8.8.8", founder.host.address, "10.128.77.77")]
        self.dropped(founder, wicked, "in_destination_address", *frames)

    @shows(15, "record_signature")
    def test_poison(self) -> None:
        """A record in another's name, put to a replica as an accepted proposal, is refused and counted."""
        founder, wicked = self.wicked_pair()
        self.settle(founder, wicked)
        network = certs.network_of(read_certificates(StateDirectory(wicked.state), NODE_CHAIN)[-1])
        key = key_of("app", network.ident, b"poison")
        signed = wicked.do("record", key=key.hex(), version=1, ttl=60, value="00")
        forged = msgspec.structs.replace(msgspec.msgpack.decode(bytes.fromhex(signed["record"]), type=m.Record), value=b"poison")
        index = shard_of(key, network.shards)
        number = wicked.do("shards")[str(index)][0]
        before = founder.counter("record_forged")
        ballot = m.Ballot(1 << 40, bytes.fromhex(signed["ident"]))
        body = m.encode(m.Request(1, m.Accept(index, number, key, ballot, forged, 0)))
        said = wicked.do("ask", peer="founder", body=body.hex())
        self.figures["said"] = str(said)
        self.assertIn("signature", str(said))
        self.assertEqual(founder.counter("record_forged"), before + 1)

    @shows(21, "overlay_endpoints")
    def test_a_tunnel_in_itself(self) -> None:
        """A member names addresses of the network itself as its own: nothing is sent there."""
        founder, wicked = self.wicked_pair()
        self.admit(founder, self.lab.public_host("relay"))
        inside = wicked.address
        self.lab.core.run(["nft", "-f", "-"], text=cut(founder.host, wicked.host))  # without a direct path, candidates are wanted
        founder.host.start(["ping", "-n", "-q", "-i0.2", inside], log="pings.log")
        founder.wait_for_path(wicked, lambda path: path.startswith("relay"), 60)
        candidates = tuple(f"udp:{inside}:{port}" for port in range(4500, 4508))
        with Eyes(wicked.host) as eyes:
            for number in range(5):
                body = m.encode(m.Request((1 << 50) + number, m.Offer(candidates)))
                wicked.do("seal", peer="founder", kind=CONTROL, payload=body.hex())
                time.sleep(SETTLE)
            tried = [one for one in eyes.seen() if one.target[0] == inside and 4500 <= one.target[1] < 4508]
        self.figures["datagrams_inside"] = len(tried)
        self.assertEqual(tried, [])


class CertificateAttacks(AttackCase):
    """Handshakes with certificates that are not good; a stranger's own DTLS, over UDP."""

    def lets_in(self, founder: ChangedNode, port: Any, factory: DtlsSessionFactory, seconds: float = 4.0) -> bool:
        """Whether the founder finishes a handshake with what we show."""
        session = factory.initiate(time.monotonic())
        deadline = time.monotonic() + seconds
        port.settimeout(0.3)
        while time.monotonic() < deadline and session.failure is None and not session.established:
            while (datagram := session.poll_transmit()) is not None:
                port.sendto(datagram, (founder.host.address, 4500))
            try:
                session.receive(time.monotonic(), port.recv(4096))
            except TimeoutError:
                session.handle_timeout(time.monotonic())
        return bool(session.established)

    def refused(self, founder: ChangedNode, tries: dict[str, tuple[PrivateKey, Chain]]) -> None:
        """All of `tries` are refused, each with a word in the log."""
        host = self.lab.public_host("attacker")
        let_in = []
        for name, (key, chain) in tries.items():
            with host.socket() as port:
                if self.lets_in(founder, port, DtlsSessionFactory(_Shown(key, chain))):
                    let_in.append(name)
        self.figures.update(tried=len(tries), let_in=let_in)
        self.assertEqual(let_in, [])
        assert founder.process is not None
        self.assertGreaterEqual(founder.process.output.count("peer_rejected"), len(tries))

    @shows(8, "certificate_checks")
    def test_bad_certificates(self) -> None:
        """Another authority, expired, not yet valid, an authority's, a member's signature, the wrong usage: all are refused."""
        founder = self.found(self.lab.public_host("founder"))
        self.refused(founder, dict(bad_chains(founder)))

    @shows(10, "ident_of_key")
    def test_the_ident_of_another(self) -> None:
        """A certificate that names another ident than its key gives is refused, though an admission key has signed it."""
        founder = self.found(self.lab.public_host("founder"))
        admitter, facts = _admitter(founder)
        key = generate_key()
        other = certs.ident_uri(bytes.fromhex(founder.status()["self"]["ident"])[:19] + b"\x01")
        leaf = _leaf(admitter, key, facts, uri=other)
        self.refused(founder, {"another's ident": (key, [leaf, admitter.certificate, admitter.root])})

    @shows(9, "revocation")
    def test_a_revoked_key(self) -> None:
        """Neither its own certificate nor another one for the same key opens the door, whoever has signed that."""
        founder = self.found(self.lab.public_host("founder"))
        key, chain = _good(founder)
        digest = key_digest(point_of(key.public_key())).hex()
        founder.ipop("revoke", "--key", digest, "--yes", "--socket", str(founder.socket))
        admitter, facts = _admitter(founder)
        fresh = _leaf(admitter, key, facts)
        self.refused(founder, {"its own": (key, chain), "made anew": (key, [fresh, admitter.certificate, admitter.root])})

    @shows(16, "ident_of_key")
    def test_many_idents(self) -> None:
        """One key under many idents: none but its own is accepted."""
        founder = self.found(self.lab.public_host("founder"))
        admitter, facts = _admitter(founder)
        key = generate_key()
        leaves = [_leaf(admitter, key, facts, uri=certs.ident_uri(bytes([number]) * 20)) for number in range(1, 4)]
        self.refused(founder, {str(n): (key, [leaf, admitter.certificate, admitter.root]) for n, leaf in enumerate(leaves)})

    @shows(18, "protocol_floor")
    def test_a_downgrade(self) -> None:
        """A member that offers nothing but old versions or weak ciphers gets no session."""
        founder = self.found(self.lab.public_host("founder"))
        key, chain = _good(founder)
        host, let_in = self.lab.public_host("attacker"), []
        for name, change in WEAKER.items():
            factory = DtlsSessionFactory(_Shown(key, chain))
            change(factory._client_context)
            with host.socket() as port:
                if self.lets_in(founder, port, factory, 3.0):
                    let_in.append(name)
        self.figures["let_in"] = let_in
        self.assertEqual(let_in, [])


WEAKER: dict[str, Callable[[SSL.Context], object]] = {
    "CBC": lambda context: context.set_cipher_list(b"ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"),
    "no encryption": lambda context: context.set_cipher_list(b"ECDHE-ECDSA-NULL-SHA:@SECLEVEL=0"),
}


class _Shown:
    """Shows any chain, and takes any."""

    def __init__(self, key: PrivateKey, chain: Chain) -> None:
        self.private_key, self.chain = key, chain

    def verify(self, chain: Chain) -> Peer:
        """Whoever it is."""
        return Peer(bytes(20), "any", public_key=b"", not_after=0)


def _admitter(founder: ChangedNode) -> tuple[Admitter, certs.MemberFacts]:
    admitter = Admitter.load(StateDirectory(founder.state))
    return admitter, certs.MemberFacts(certs.network_of(admitter.root).ident, bytes(16), "wicked")


def _good(founder: ChangedNode) -> tuple[PrivateKey, Chain]:
    """A member's key and chain, with nothing wrong."""
    admitter, facts = _admitter(founder)
    key = generate_key()
    leaf = certs.make_member(admitter.key, admitter.certificate, key.public_key(), facts, time.time())
    return key, [leaf, admitter.certificate, admitter.root]


def _leaf(
    admitter: Admitter, key: PrivateKey, facts: certs.MemberFacts, uri: str = "", purposes: tuple[x509.ObjectIdentifier, ...] = ()
) -> x509.Certificate:
    """A member's certificate with one thing changed."""
    good = certs.make_member(admitter.key, admitter.certificate, key.public_key(), facts, time.time())
    builder = x509.CertificateBuilder(good.issuer, good.subject, key.public_key(), 7, good.not_valid_before_utc, good.not_valid_after_utc)
    for one in good.extensions:
        value: Any = one.value
        if uri and isinstance(value, x509.SubjectAlternativeName):
            value = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        if purposes and isinstance(value, x509.ExtendedKeyUsage):
            value = x509.ExtendedKeyUsage(purposes)
        builder = builder.add_extension(value, one.critical)
    return builder.sign(admitter.key, certs.SHA256())


def bad_chains(founder: ChangedNode) -> Iterator[tuple[str, tuple[PrivateKey, Chain]]]:
    """What nobody may accept, by name."""
    admitter, facts = _admitter(founder)
    above = [admitter.certificate, admitter.root]
    key, now = generate_key(), time.time()

    def member(signer: PrivateKey, issuer: x509.Certificate, wall: float = now) -> x509.Certificate:
        return certs.make_member(signer, issuer, key.public_key(), facts, wall, 10 * certs.DAY)

    yield "expired", (key, [member(admitter.key, above[0], now - 20 * certs.DAY), *above])
    yield "not yet valid", (key, [member(admitter.key, above[0], now + 5 * certs.DAY), *above])
    yield "another signature", (key, [member(generate_key(), above[0]), *above])
    yield "an authority's own", (admitter.key, [admitter.certificate, admitter.root])
    own = StateDirectory(founder.state)
    own_key, own_chain = read_key(own, NODE_KEY), read_certificates(own, NODE_CHAIN)
    yield "signed by a member", (key, [member(own_key, own_chain[0]), own_chain[0], admitter.root])
    usage = (x509.oid.ExtendedKeyUsageOID.EMAIL_PROTECTION,)
    yield "another usage", (key, [_leaf(admitter, key, facts, purposes=usage), *above])
    with tempfile.TemporaryDirectory() as place:
        state = StateDirectory(Path(place))
        create_network(state, "lab", IPv4Network("10.128.0.0/16"), "wicked")
        yield "another authority", (read_key(state, NODE_KEY), read_certificates(state, NODE_CHAIN))
