"""What the daemon that holds the authority's key says in the authority's name, and how such words are kept on disk and carried about."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from ipop_tx.core import commands as c
from ipop_tx.core.dht.records import AuthorityOrder, AuthorityWord, order_text
from ipop_tx.errors import LocalMisuse
from ipop_tx.identity.keys import PrivateKey
from ipop_tx.identity.trust import add_signature
from ipop_tx.wire import messages as m

Order = TypeVar("Order", bound=AuthorityOrder)
Word = TypeVar("Word", bound=AuthorityWord)


def authority_key(key: PrivateKey | None, act: str, command: str) -> PrivateKey:
    """The authority's key, if this machine holds it. Raises `LocalMisuse`, which names the act and the command."""
    if key is None:
        raise LocalMisuse(f"only the node that holds the authority's key can {act}", f"run {command} there")
    return key


def signed(key: PrivateKey, order: Word) -> Word:
    """An order with one more signature."""
    return msgspec.structs.replace(order, signature=add_signature(order.signature, key, order_text(order)))


def to_text(order: AuthorityOrder) -> str:
    """An order as it stands in a JSON file."""
    return base64.b64encode(msgspec.msgpack.encode(order)).decode()


def from_text(text: str, kind: type[Order]) -> Order:
    """Read that. Raises `ValueError`, `TypeError`. No signature is checked."""
    return msgspec.msgpack.decode(base64.b64decode(text), type=kind)


def to_file(orders: Sequence[AuthorityOrder]) -> dict[str, Any]:
    """Orders that others have to sign too: what `ipop sign` takes, one after another, and `ipop authority give` at the end."""
    return {"ipop_orders": [to_text(order) for order in orders]}


def from_file(content: Any) -> list[AuthorityOrder]:
    """Read that. Raises `LocalMisuse`."""
    try:
        texts = msgspec.convert(content["ipop_orders"], type=list[str])
        return [msgspec.msgpack.decode(base64.b64decode(text), type=AuthorityOrder) for text in texts]
    except (TypeError, KeyError, ValueError, RecursionError):
        raise LocalMisuse("this is no file of orders", "give what a command with --order has written") from None


def command_of(order: AuthorityOrder) -> object:
    """What carries an order out."""
    if isinstance(order, m.Revocation):
        return c.Revoke(order)
    if isinstance(order, m.Settings):
        return c.AdoptSettings(order)
    return c.AdoptCharter(order) if isinstance(order, m.Charter) else c.CarryOut(order)


def told(order: AuthorityOrder) -> str:
    """What an order does, for whoever is to sign it."""
    if isinstance(order, m.Revocation):
        what = "takes the right to admit from" if order.since else "throws out"
        return f"{what} {order.name or 'the key'} ({order.key.hex()})"
    if isinstance(order, m.Settings):
        names = ", ".join(name for name, _ in order.sections) or "none"
        return f"gives the network settings {order.version} (sections: {names})"
    if isinstance(order, m.Charter):
        keys = ", ".join(key.hex() for key in order.keys)
        lists = f"{len(order.roots)} roots, {len(order.admissions)} admission keys"
        return f"makes charter {order.number}: {order.threshold} of the keys {keys} sign orders; {lists}"
    return f"founds view {order.number} of {len(order.shards)} parts of the DHT anew"
