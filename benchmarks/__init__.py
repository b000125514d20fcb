"""What ipop_tx does, measured on this machine beside what others do. Run one by `make bench` or `make bench-NAME`."""

from __future__ import annotations
