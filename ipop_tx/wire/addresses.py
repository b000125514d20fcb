"""Messages about who has an address, and about guests that move."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ipop_tx.wire.fields import Body


class NotYours(Body, frozen=True, tag=36):
    """You use this IPv4 address, and its register says that it is another's: look there. Answered by `Done`."""

    address: Annotated[bytes, Meta(min_length=4, max_length=4)]


class NotMine(Body, frozen=True, tag=37):
    """This IPv4 address is not mine any more. `contested`: I used it until now, though it is yours. Answered by `Done`."""

    address: Annotated[bytes, Meta(min_length=4, max_length=4)]
    contested: bool = False


class HandOver(Body, frozen=True, tag=38):
    """The guest to whom you have leased this IPv4 address is behind me now.

    Answered by `Done` once the address is free; by `Failed` when that guest is still with you, or was never.
    """

    address: Annotated[bytes, Meta(min_length=4, max_length=4)]
    holder: Annotated[bytes, Meta(min_length=1, max_length=64)]
