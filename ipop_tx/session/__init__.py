"""The keys of one link: a handshake that proves the peer, then sealed datagrams."""

from __future__ import annotations
