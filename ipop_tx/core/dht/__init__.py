"""Registers: replicas with agreed views, and who coordinates a write."""
