"""Faults of machines, disks, clocks and networks, row by row: `python -m tests.faults` (docs/security.md)."""
