"""Ways to carry datagrams: UDP, and memory for tests."""

from __future__ import annotations
