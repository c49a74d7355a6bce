# Every target makes what it needs. `make test` is the whole gate; `make demo` is the quick look.
PYTHON ?= python3
ARGS ?=
# Per cent of lines and branches that the tests must reach.
COVERAGE := 98

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help .venv demo test check check-pyright check-others bench kill9 chaos soak docs stress clean

help:
	@echo "make demo    run the example report (ARGS=... are passed on)"
	@echo "make test    everything a change must pass: check, the wheel, all tests with coverage"
	@echo "make check   format, lint, types, layers and structure"
	@echo "make stress  the long randomised tests"
	@echo "make bench   the benchmarks against other libraries (ARGS=... are passed on)"
	@echo "make kill9   what queues over Redis lose when workers or the server are killed, ours and the peers'"
	@echo "make chaos   kill and freeze real workers of a durable queue, and count what was lost (ARGS=... are passed on)"
	@echo "make soak    run everything for a while, and check that nothing leaks (ARGS=... are passed on)"
	@echo "make docs    the documentation, into site/"
	@echo "make clean   remove what was made, the environment too"

# The environment. Dependency groups need pip 25.1, so pip is renewed inside the environment first.
$(BIN)/python:
	$(PYTHON) -m venv .venv
	$(INSTALL) --upgrade "pip>=25.1"

.venv/.installed-demo: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable ".[trio,progress]"
	@touch $@

.venv/.installed-%: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable . --group $*
	@touch $@

.venv: .venv/.installed-dev

# Environments for benchmarks below build/: their pins, of redis-py for one, are not ours, nor each other's.
build/bench/.installed: OURS := --editable .
build/%/.installed: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(OURS) --group $*
	@touch $@

QUEUE_PEERS := build/bench-queues/.installed build/bench-queues-arq/.installed

demo: .venv/.installed-demo
	$(BIN)/python examples/stdlib_report.py $(ARGS)

# The two type checkers take nearly all of the time, so they run side by side.
check: .venv/.installed-dev
	$(MAKE) --no-print-directory -j 2 check-pyright check-others

check-pyright:
	$(BIN)/pyright --warnings

check-others:
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_structure.py
	$(BIN)/python scripts/check_prose.py
	$(BIN)/mypy

# The tests come last, so that their summary is the last line. Four at once, because half of their time they wait for
# processes and servers. CUELIGHT_GATE: each test on one or two of its loops (tests/conftest.py).
test: check
	$(BIN)/python scripts/check_wheel.py
	CUELIGHT_GATE=1 $(BIN)/pytest -n 4 --cov --cov-report=term:skip-covered --cov-fail-under=$(COVERAGE) $(ARGS)

stress: .venv/.installed-dev
	CUELIGHT_STRESS=1 $(BIN)/pytest -m stress --timeout=1200 $(ARGS)

bench: build/bench/.installed $(QUEUE_PEERS)
	build/bench/bin/python -m bench $(ARGS)

kill9: build/bench/.installed $(QUEUE_PEERS)
	build/bench/bin/python -m bench.kill9 $(ARGS)

chaos: .venv/.installed-dev
	PYTHONPATH=tests $(BIN)/python -m chaos $(ARGS)

soak: .venv/.installed-dev
	PYTHONPATH=tests $(BIN)/python -m soak $(ARGS)

docs: .venv/.installed-docs
	$(BIN)/zensical build --clean --strict

clean:
	rm -rf .venv build dist site htmlcov .coverage .coverage.* .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache
