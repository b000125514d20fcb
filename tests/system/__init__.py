"""Tests of real daemons in a lab; they need root."""
