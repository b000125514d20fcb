"""A Tor network of the lab's own: three directory authorities and a relay on one host, which vote every ten seconds."""

from __future__ import annotations

import re
from pathlib import Path

from ipop_tx.lab.topology import Host
from ipop_tx.lab.waiting import wait_for

AUTHORITIES = 3
_KEY_FILES = {"-i": "authority_identity_key", "-s": "authority_signing_key", "-c": "authority_certificate"}
_COMMON = """
TestingTorNetwork 1
SocksPort 0
Address {address}
AssumeReachable 1
ExitRelay 1
ExitPolicy accept *:*
ExitPolicyRejectPrivate 0
ContactInfo nobody
Nickname {name}
DataDirectory {directory}
OrPort {address}:{port}
Log notice stdout
"""
_AUTHORITY = """
AuthoritativeDirectory 1
V3AuthoritativeDirectory 1
DirPort {address}:{dirport}
V3AuthVotingInterval 10
V3AuthVoteDelay 2
V3AuthDistDelay 2
TestingV3AuthInitialVotingInterval 5
TestingV3AuthInitialVoteDelay 2
TestingV3AuthInitialDistDelay 2
TestingDirAuthVoteExit *
TestingDirAuthVoteGuard *
TestingDirAuthVoteHSDir *
"""


class TorNetwork:
    """Runs on `host`. `torrc` names the lines that a tor of somebody else needs to be part of it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.address = host.address
        self._named: list[str] = []
        self.torrc = host.directory / "torrc-clients"

    def start(self, seconds: float = 90.0) -> None:
        """Make the keys, start all, wait for a consensus in which all relays stand. Raises `EnvironmentProblem`."""
        directories = [self._host.directory / f"tor-a{number}" for number in range(AUTHORITIES)]
        for number, directory in enumerate(directories):
            self._make_keys(number, directory)
        relay = self._host.directory / "tor-r0"
        relay.mkdir(mode=0o700)
        for number, directory in enumerate(directories):
            self._run(f"a{number}", directory, 5000 + number, _AUTHORITY.format(address=self.address, dirport=7000 + number))
        self._run("r0", relay, 5100, "")
        self.torrc.write_text("\n".join(["TestingTorNetwork 1", *self._named, ""]))
        consensus = directories[0] / "cached-microdesc-consensus"

        def complete() -> bool:
            return consensus.exists() and len(re.findall(r"(?m)^r ", consensus.read_text(errors="replace"))) == AUTHORITIES + 1

        wait_for("a consensus of the private Tor network", seconds, complete, every=0.2)

    def _make_keys(self, number: int, directory: Path) -> None:
        """The keys of an authority, and the line by which the others know it."""
        keys = directory / "keys"
        keys.mkdir(mode=0o700, parents=True)
        directory.chmod(0o700)
        files = [word for flag, name in _KEY_FILES.items() for word in (flag, str(keys / name))]
        dirport = f"{self.address}:{7000 + number}"
        self._host.run(["tor-gencert", "--create-identity-key", "--passphrase-fd", "0", *files, "-m", "12", "-a", dirport], text="lab\n")
        certificate = (keys / "authority_certificate").read_text()
        identity = re.search(r"(?m)^fingerprint (\w+)", certificate)
        # Tor wants to know some authority before it makes its keys.
        torrc = self._torrc(f"a{number}", directory, 5000 + number) + f"DirAuthority x 127.0.0.1:1 {'F' * 40}\n"
        self._host.run(["tor", "--list-fingerprint", "--quiet", "--defaults-torrc", "/nonexistent", "-f", "-"], text=torrc)
        fingerprint = (directory / "fingerprint").read_text().split()[1]
        assert identity is not None, certificate
        line = f"DirAuthority a{number} orport={5000 + number} no-v2 v3ident={identity[1]} {dirport} {fingerprint}"
        self._named.append(line)

    def _torrc(self, name: str, directory: Path, port: int) -> str:
        return _COMMON.format(address=self.address, name=name, directory=directory, port=port)

    def _run(self, name: str, directory: Path, port: int, more: str) -> None:
        torrc = self._host.directory / f"torrc-{name}"
        torrc.write_text(self._torrc(name, directory, port) + more + "\n".join([*self._named, ""]))
        self._host.start(["tor", "-f", str(torrc), "--defaults-torrc", "/nonexistent", "--ignore-missing-torrc"], log=f"tor-{name}.log")
