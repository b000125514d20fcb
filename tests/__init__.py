"""The tests of ipop_tx; run them with trial."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A busy machine must not fail a property: no example has a deadline.
settings.register_profile("ipop", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ipop")
