"""The data plane: who is where, whose frame is believed, who answers the kernel's questions for neighbours."""

from __future__ import annotations
