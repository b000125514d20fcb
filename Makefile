# Two commands need nothing but a Debian machine with make: `make demo` and `make test`.
# Progress goes to stderr; stdout belongs to the command itself.
.PHONY: help setup demo test test-ops attacks faults deb lint bench news
.DEFAULT_GOAL := help

PYTHON := .venv/bin/python

help:
	@printf '%s\n' \
	  'make demo [ARGS="--check --json --keep"]   several real nodes on this machine, in sites behind NATs (as root)' \
	  'make test [ARGS="tests.test_config"]       the tests' \
	  'make attacks [ARGS="--json 5 11"]          attacks on real daemons, with and without each defence (as root; docs/security.md)' \
	  'make faults [ARGS="--json 9 13"]           faults of disks, clocks, machines, networks, row by row (as root; docs/security.md)' \
	  'make test-ops [ARGS="--json dns"]          package and units on machines with a systemd of their own (as root; docs/service.md)' \
	  'make deb                                   dist/ipop-tx_VERSION_ARCH.deb (docs/service.md)' \
	  'make lint                                  ruff and mypy --strict' \
	  'make bench [ARGS="--quick --json"]         throughput, latency, CPU beside packaged VPNs (as root; docs/performance.md)' \
	  'make bench-NAME [ARGS=...]                 another one of benchmarks/, for instance bench-profile' \
	  'make setup                                 only what the others need: Debian packages and .venv' \
	  'make news                                  what the next release would announce'

setup:
	@tools/setup

demo:
	@tools/setup
	@$(PYTHON) -m ipop_tx.lab.demo $(ARGS)

# Words with a dash are options of trial, the others say what to run; without any, everything is run, in parts side by side.
test:
	@tools/setup
	@$(if $(strip $(ARGS)),$(PYTHON) -m twisted.trial $(filter -%,$(ARGS)) $(or $(filter-out -%,$(ARGS)),tests),tools/test)

attacks:
	@tools/setup
	@$(PYTHON) -m tests.attacks $(ARGS)

faults:
	@tools/setup
	@$(PYTHON) -m tests.faults $(ARGS)

test-ops:
	@tools/setup systemd-container debootstrap
	@$(PYTHON) -m tests.ops $(ARGS)

deb:
	@tools/setup
	@tools/deb

lint:
	@tools/setup
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

bench:
	@tools/setup
	@$(PYTHON) -m benchmarks.dataplane $(ARGS)

bench-%:
	@tools/setup
	@$(PYTHON) -m benchmarks.$(subst -,_,$*) $(ARGS)

news:
	@tools/setup
	@.venv/bin/towncrier build --draft
