"""What the daemon that holds the authority's key says in the authority's name, and how every daemon keeps such words on disk."""

from __future__ import annotations

import base64
from typing import TypeVar

import msgspec

from ipop_tx.core.dht.records import AuthorityOrder, order_text
from ipop_tx.errors import LocalMisuse
from ipop_tx.identity.keys import PrivateKey, sign

Order = TypeVar("Order", bound=AuthorityOrder)


def authority_key(key: PrivateKey | None, act: str, command: str) -> PrivateKey:
    """The authority's key, if this machine holds it. Raises `LocalMisuse`, which names the act and the command."""
    if key is None:
        raise LocalMisuse(f"only the node that holds the authority's key can {act}", f"run {command} there")
    return key


def signed(key: PrivateKey, unsigned: Order) -> Order:
    """An order with the authority's signature."""
    return msgspec.structs.replace(unsigned, signature=sign(key, order_text(unsigned)))


def to_text(order: AuthorityOrder) -> str:
    """An order as it stands in a JSON file."""
    return base64.b64encode(msgspec.msgpack.encode(order)).decode()


def from_text(text: str, kind: type[Order]) -> Order:
    """Read that. Raises `ValueError`, `TypeError`. No signature is checked."""
    return msgspec.msgpack.decode(base64.b64decode(text), type=kind)
