"""The packaged VPNs that ipop_tx is measured beside, as their manuals tell to set them up, otherwise with their defaults."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.x509.oid import NameOID

from benchmarks.dataplane.systems import A_INSIDE, B_INSIDE, NET_INSIDE, Side, System, give_address
from benchmarks.dataplane.underlay import A_ADDRESS, B_ADDRESS, Pair
from ipop_tx.lab import Host, wait_for

ADDRESS: dict[Side, str] = {"a": A_ADDRESS, "b": B_ADDRESS}
INSIDE: dict[Side, str] = {"a": A_INSIDE, "b": B_INSIDE}
SIDES: tuple[Side, Side] = ("b", "a")
"""In the order of their start: B listens."""


def other(side: Side) -> Side:
    """The other end."""
    return "a" if side == "b" else "b"


class OpenVpn(System):
    """Two ends with certificates that know each other's fingerprint; UDP, AES-256-GCM, in user space."""

    name = "openvpn"
    programs = MappingProxyType({"openvpn": "openvpn"})

    def start(self, pair: Pair) -> str:
        """B is the TLS server."""
        prints = {side: certificate(pair.side(side).directory, side) for side in SIDES}
        common = "--dev tun0 --dev-type tun --topology p2p --dh none --keepalive 10 60 --verb 1 --disable-dco --proto udp"
        for side in SIDES:
            role = f"--local {B_ADDRESS} --port 1194 --tls-server" if side == "b" else f"--remote {B_ADDRESS} 1194 --nobind --tls-client"
            argv = ["openvpn", *common.split(), *role.split(), "--data-ciphers", "AES-256-GCM"]
            argv += ["--ifconfig", INSIDE[side], INSIDE[other(side)], "--peer-fingerprint", prints[other(side)]]
            directory = pair.side(side).directory
            pair.side(side).start([*argv, "--cert", str(directory / "own.crt"), "--key", str(directory / "own.key")], "openvpn.log")
        return B_INSIDE


def certificate(directory: Path, name: str) -> str:
    """Write own.crt and own.key, self-signed; gives the SHA-256 fingerprint as OpenVPN writes it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    built = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    signed = built.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=30)).sign(key, hashes.SHA256())
    (directory / "own.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "own.key").write_bytes(private)
    return signed.fingerprint(hashes.SHA256()).hex(":").upper()


class Tinc(System):
    """tinc 1.0 in router mode with its default cipher."""

    name = "tinc"
    programs = MappingProxyType({"tincd": "tinc"})

    def start(self, pair: Pair) -> str:
        """A connects to B."""
        for side in SIDES:
            self._configure(pair, side)
        for side in SIDES:
            mine, theirs = (self._directory(pair, one) / "hosts" for one in (side, other(side)))
            (mine / other(side)).write_bytes((theirs / other(side)).read_bytes())
        for side in SIDES:
            directory = self._directory(pair, side)
            pair.side(side).start(["tincd", "-c", str(directory), "-D", "-d1", f"--pidfile={directory / 'pid'}"], "tinc.log")
        return B_INSIDE

    def _directory(self, pair: Pair, side: Side) -> Path:
        return pair.side(side).directory / "tinc"

    def _configure(self, pair: Pair, side: Side) -> None:
        directory = self._directory(pair, side)
        (directory / "hosts").mkdir(parents=True)
        connect = "ConnectTo=b\n" if side == "a" else ""
        (directory / "tinc.conf").write_text(
            f"Name={side}\nInterface=tun0\nMode=router\nAddressFamily=ipv4\nBindToAddress={ADDRESS[side]}\n{connect}"
        )
        (directory / "hosts" / side).write_text(f"Address={ADDRESS[side]}\nSubnet={INSIDE[side]}/32\n")
        up = directory / "tinc-up"
        up.write_text(f"#!/bin/sh\nip link set $INTERFACE up\nip addr add {INSIDE[side]}/24 dev $INTERFACE\n")
        up.chmod(0o755)
        pair.side(side).run(["tincd", "-c", str(directory), "-K", "2048"])


class WireguardGo(System):
    """wireguard-go, set up over its own control socket."""

    name = "wireguard-go"
    programs = MappingProxyType({"wireguard-go": "wireguard-go"})

    def start(self, pair: Pair) -> str:
        """A knows where B is."""
        keys = {side: X25519PrivateKey.generate() for side in SIDES}
        for side in SIDES:
            place = pair.side(side).directory / "wireguard"
            place.mkdir()
            # Its sockets have one fixed place on a machine; here each end sees a directory of its own there.
            there = f"mkdir -p /run/wireguard && mount --bind {place} /run/wireguard && exec wireguard-go -f wg0"
            pair.side(side).start(["sh", "-c", there], "wireguard.log")
            wait_for(f"the control socket of wireguard-go on {side}", 10, (place / "wg0.sock").exists)
            peer = keys[other(side)].public_key().public_bytes_raw().hex()
            lines = [f"private_key={keys[side].private_bytes_raw().hex()}", "listen_port=51820", f"public_key={peer}"]
            lines += [f"allowed_ip={NET_INSIDE}", *([f"endpoint={B_ADDRESS}:51820"] if side == "a" else [])]
            wireguard_set(place / "wg0.sock", lines)
            give_address(pair.side(side), "wg0", INSIDE[side], 1420)
        return B_INSIDE


def wireguard_set(path: Path, lines: list[str]) -> None:
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(5)
        control.connect(str(path))
        control.sendall(("set=1\n" + "\n".join(lines) + "\n\n").encode())
        answer = control.recv(100)
    if answer != b"errno=0\n\n":
        raise RuntimeError(f"wireguard-go refuses its configuration: {answer!r}")


class Nebula(System):
    """nebula with a static host map instead of a lighthouse, AES."""

    name = "nebula"
    programs = MappingProxyType({"nebula": "nebula", "nebula-cert": "nebula"})

    def start(self, pair: Pair) -> str:
        """One authority signs both."""
        place = pair.b.directory / "nebula"
        place.mkdir()
        tool = ["nebula-cert"]
        pair.b.run([*tool, "ca", "-name", "bench", "-out-crt", str(place / "ca.crt"), "-out-key", str(place / "ca.key")])
        authority = ["-ca-crt", str(place / "ca.crt"), "-ca-key", str(place / "ca.key")]
        for side in SIDES:
            files = ["-out-crt", str(place / f"{side}.crt"), "-out-key", str(place / f"{side}.key")]
            pair.b.run([*tool, "sign", *authority, "-name", side, "-ip", f"{INSIDE[side]}/24", *files])
            (place / f"{side}.yml").write_text(json.dumps(self._configuration(place, side)))  # YAML is a superset
        for side in SIDES:
            pair.side(side).start(["nebula", "-config", str(place / f"{side}.yml")], "nebula.log")
        return B_INSIDE

    def _configuration(self, place: Path, side: Side) -> dict[str, object]:
        everything = [{"port": "any", "proto": "any", "host": "any"}]
        return {
            "pki": {"ca": str(place / "ca.crt"), "cert": str(place / f"{side}.crt"), "key": str(place / f"{side}.key")},
            "static_host_map": {INSIDE[other(side)]: [f"{ADDRESS[other(side)]}:4242"]},
            "lighthouse": {"am_lighthouse": False, "hosts": []},
            "listen": {"host": "0.0.0.0", "port": 4242},
            "cipher": "aes",
            "tun": {"dev": "neb0", "mtu": 1300},
            "logging": {"level": "warning"},
            "firewall": {"outbound": everything, "inbound": everything},
        }


class N2n(System):
    """n2n 1.3 with its supernode on the router; the supernode's CPU time is not counted."""

    name = "n2n"
    programs = MappingProxyType({"edge": "n2n", "supernode": "n2n"})

    def start(self, pair: Pair) -> str:
        """Both edges know the supernode."""
        pair.router.start(["supernode", "-l", "7777"], "supernode.log")
        for side, supernode in (("b", "10.61.2.1"), ("a", "10.61.1.1")):
            words = f"-d n2n0 -s 255.255.255.0 -c bench -k secretkey -a {B_INSIDE if side == 'b' else A_INSIDE} -l {supernode}:7777"
            host = pair.b if side == "b" else pair.a
            host.start(["edge", *words.split()], "n2n.log")
        return B_INSIDE


class Fastd(System):
    """fastd in tun mode with its first recommended method."""

    name = "fastd"
    programs = MappingProxyType({"fastd": "fastd"})

    def start(self, pair: Pair) -> str:
        """A knows where B is."""
        secret: dict[Side, str] = {}
        public: dict[Side, str] = {}
        for side in SIDES:
            secret[side] = pair.b.run(["fastd", "--generate-key", "--machine-readable"]).stdout.strip()
            public[side] = self._public(pair.b, secret[side])
        for side in SIDES:
            remote = f"remote {B_ADDRESS}:10000;" if side == "a" else ""
            configuration = pair.side(side).directory / "fastd.conf"
            configuration.write_text(
                'log level warn; mode tun; interface "fd0"; method "salsa2012+umac"; mtu 1426;\n'
                f'secret "{secret[side]}"; bind {ADDRESS[side]}:10000;\n'
                f'on up "ip addr add {INSIDE[side]}/24 dev fd0; ip link set fd0 up";\n'
                f'peer "{other(side)}" {{ key "{public[other(side)]}"; {remote} }}\n'
            )
            pair.side(side).start(["fastd", "-c", str(configuration)], "fastd.log")
        return B_INSIDE

    def _public(self, host: Host, secret: str) -> str:
        file = host.directory / "fastd.secret"
        file.write_text(f'secret "{secret}";\n')
        return host.run(["fastd", "--show-key", "--machine-readable", "-c", str(file)]).stdout.strip()


class Yggdrasil(System):
    """yggdrasil over one TLS link; its overlay is IPv6 and gives the addresses."""

    name = "yggdrasil"
    programs = MappingProxyType({"yggdrasil": "yggdrasil"})

    def start(self, pair: Pair) -> str:
        """A peers with B."""
        for side in SIDES:
            host = pair.side(side)
            configuration = json.loads(host.run(["yggdrasil", "-genconf", "-json"]).stdout)
            link = [f"tls://{B_ADDRESS}:12345"]
            configuration |= {"MulticastInterfaces": [], "IfName": "ygg0", "AdminListen": "none"}
            configuration |= {"Listen": link if side == "b" else [], "Peers": link if side == "a" else []}
            file = host.directory / "yggdrasil.conf"
            file.write_text(json.dumps(configuration))
            host.start(["yggdrasil", "-useconffile", str(file)], "yggdrasil.log")
        return pair.b.run(["yggdrasil", "-useconffile", str(pair.b.directory / "yggdrasil.conf"), "-address"]).stdout.strip()


PEERS: tuple[type[System], ...] = (OpenVpn, Tinc, WireguardGo, Nebula, N2n, Fastd, Yggdrasil)
