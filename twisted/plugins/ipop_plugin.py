"""Makes `twistd ipop` known: data only, read by every twistd on the machine."""

from __future__ import annotations

from twisted.application.service import ServiceMaker

ipop = ServiceMaker("ipop", "ipop_tx.cli.twistd", "A node of a private IP network that configures itself.", "ipop")
