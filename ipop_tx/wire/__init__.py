"""Bytes to frozen values and back; pure, no state."""
