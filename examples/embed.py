"""A node inside another Twisted application: IPOP_CONFIG=node.toml twistd -ny examples/embed.py"""

from __future__ import annotations

import hashlib
import os

from twisted.application.internet import TimerService
from twisted.application.service import Application, MultiService

from ipop_tx import Node, load_config
from ipop_tx.errors import IpopError

GREETING = hashlib.sha256(b"embed.py greeting").digest()[:20]
"""The key of a register: any 20 bytes."""

node = Node(load_config(os.environ.get("IPOP_CONFIG", "node.toml")))


async def look() -> None:
    """Say who is here, and leave a greeting in the DHT that every member can read; the first to come writes it."""
    me = node.status()["self"]
    try:
        record = await node.dht.get(GREETING)
        if record is None:
            await node.dht.create(GREETING, f"hello from {me['name']}".encode(), ttl=3600)
            record = await node.dht.get(GREETING)
        print(f"{me['name']} {me['address']}: {record.value.decode() if record else 'nothing'}", flush=True)
    except IpopError as error:
        print(f"{me['name']}: {error}", flush=True)


ours = MultiService()
node.setServiceParent(ours)
TimerService(5.0, look).setServiceParent(ours)

application = Application("embed")
ours.setServiceParent(application)
