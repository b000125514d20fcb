"""Twisted services: what runs in the daemon."""

from __future__ import annotations
