"""`python -m benchmarks.nat`: every kind of NAT against every other one, with real daemons."""
