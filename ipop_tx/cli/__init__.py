"""The `ipop` command and what `twistd ipop` calls."""

from __future__ import annotations
