"""Attacks on real daemons, each with the proof that it can be seen: `python -m tests.attacks` (docs/security.md)."""
