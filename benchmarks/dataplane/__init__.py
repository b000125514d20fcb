"""The data plane beside raw links and packaged VPNs, in one run: `python -m benchmarks.dataplane`. See docs/performance.md."""

from __future__ import annotations
