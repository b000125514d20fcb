"""Whole networks in virtual time: the real core, with a simulated clock, net and disk. Deterministic by seed."""
