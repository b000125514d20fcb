"""A DHCP server that nobody wants: it offers 10.128.66.x to whoever asks on an interface. Run as a program inside a namespace."""

from __future__ import annotations

import socket
import sys

from ipop_tx.forwarding.dhcp import CLIENT_PORT, SERVER_PORT, read
from ipop_tx.wire import dhcp
from ipop_tx.wire.dhcp import Message

ANSWERS = {dhcp.DISCOVER: dhcp.OFFER, dhcp.REQUEST: dhcp.ACK}


def serve(interface: str, ours: str, targets: list[str]) -> None:
    """Answer for ever: by broadcast, and by unicast to each of `targets`, addresses elsewhere. A word on stdout for each question."""
    port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    port.bind(("", SERVER_PORT))
    say("ready")
    while True:
        question = read(port.recv(2048))
        if question is None or question.kind not in ANSWERS:
            continue
        server = socket.inet_aton(ours)
        if question.options.get(dhcp.SERVER, server) != server:
            continue
        yours = socket.inet_aton(f"10.128.66.{1 + question.mac[-1] % 250}")
        options = {dhcp.SERVER: server, dhcp.LEASE_SECONDS: b"\0\0\x0e\x10", dhcp.SUBNET_MASK: b"\xff\xff\0\0"}
        answer = Message(ANSWERS[question.kind], question.xid, question.mac, options, True, True, 0, dhcp.NOWHERE, yours)
        for target in ("255.255.255.255", *targets):
            port.sendto(dhcp.encode(answer), (target, CLIENT_PORT))
        say("answered")


def say(word: str) -> None:
    """For the test to read."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], sys.argv[3:])
