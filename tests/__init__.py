"""The tests of ipop_tx; run them with trial."""

from __future__ import annotations
