"""The package and its units on real machines, with a real systemd: `python -m tests.ops`."""
