# Every target sets itself up from a bare machine (Debian 12: python3, python3-venv, make) and is instant when it can be.
#   make demo [AUDIO=DIR-or-FILE]   the whole line in two minutes, on generated sound or on your recordings
#   make test                       system packages (as root), environment, all tests
#   make rig [PROMISES='P1 P8']     the reliability table in full: kills, unplugs, outages; hours
#   make soak [HOURS=1]             a node for hours with all faults in turn: growth, loss, the ledger
#   make check                      style, types, import rules
#   make bench [BENCHES='live ..']  the figures in README and docs, measured on this machine
#   make micro                      single parts: ring, mel, novelty, alarm, engine, wire, outbox

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
PROMISES ?=
BENCHES ?= live replay peers mel
HOURS ?= 1
STAMPS := $(VENV)/.stamps
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: help demo test check rig soak bench micro clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(STAMPS)/demo
	$(BIN)/python -m deploy.demo.demo $(if $(AUDIO),--audio "$(AUDIO)")

test: $(STAMPS)/dev
	@tools/system-packages
	$(BIN)/python -m pytest $(PYTEST_ARGS) < /dev/null

check: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pre-commit validate-config

rig: $(STAMPS)/dev
	@tools/system-packages
	$(BIN)/python -m tests.rig $(PROMISES)

soak: $(STAMPS)/dev
	@tools/system-packages
	$(BIN)/python -m tests.rig.soak --hours $(HOURS)

bench: $(STAMPS)/dev
	@for name in $(BENCHES); do echo "== bench_$$name"; $(BIN)/python -m benchmarks.bench_$$name; done

micro: $(STAMPS)/dev
	$(BIN)/python -m pytest benchmarks/micro --benchmark-columns=min,median,ops --benchmark-sort=name $(PYTEST_ARGS) \
		< /dev/null

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(STAMPS)/venv:
	@echo "== making the environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11; name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module: apt-get install python3-venv"; exit 1; }
	@mkdir -p $(@D) && touch $@

$(STAMPS)/demo: pyproject.toml constraints.txt $(STAMPS)/venv
	@echo "== installing edgeasd with its workshop (torch: some minutes, once)"
	$(INSTALL) -e '.[train,demo]'
	@touch $@

$(STAMPS)/dev: pyproject.toml constraints.txt $(STAMPS)/venv
	@echo "== installing edgeasd with everything its tests need (torch: some minutes, once)"
	$(INSTALL) -e '.[train,mlflow,demo,dev]'
	@touch $@ $(STAMPS)/demo
