# `make` alone prints the targets. Every target that needs the virtual environment makes it first.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=

BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
PYTEST  := $(BIN)/python -m pytest
SOURCES := progressor processors tests scripts
OTHER   := tests/integration/storage tests/integration/cache

.DEFAULT_GOAL := help
.PHONY: help setup fmt lint types layers unit integration acceptance chaos other-postgres test verify check \
        bench dev dev-kafka kafka demo compile dialyzer clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'ARGS="..." is passed on to pytest and to the node; PYTHON=... chooses the interpreter.'

setup: $(STAMP) ## Make .venv and install everything in it; again only when setup.cfg changed

$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Progressor needs Python 3.11 or newer; $(PYTHON) is not. Name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "This Python makes no virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

fmt: setup ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

lint: setup ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## Check the types, strictly
	$(BIN)/mypy

layers: setup ## Check that imports point one way
	$(BIN)/lint-imports

unit: setup ## Tests without a server
	$(PYTEST) tests/unit $(ARGS)

integration: setup ## Tests on a real PostgreSQL; those of storage and cache also on the bundled version 18
	$(PYTEST) tests/integration $(ARGS)
	@$(MAKE) --no-print-directory other-postgres

acceptance: setup ## Tests of a real progressor-node
	$(PYTEST) tests/acceptance $(ARGS)

chaos: setup ## Tests that kill nodes and servers
	$(PYTEST) tests/chaos $(ARGS)

other-postgres: setup
	$(PYTEST) $(OTHER) --postgres-bin bundled:18 $(ARGS)

test: setup ## All tests
	$(PYTEST) $(ARGS)
	@$(MAKE) --no-print-directory other-postgres

verify: ## Check that the generated Thrift code is what the compiler makes
	scripts/generate_thrift.sh --check

check: lint types layers verify test ## All checks and all tests: what CI runs

bench: setup ## Measure the speed: a table, build/bench.json; ARGS="--help" shows what else
	$(BIN)/python scripts/bench $(ARGS)

dev: setup ## Run a node with a PostgreSQL of its own
	$(BIN)/progressor-node --dev $(ARGS)

dev-kafka: setup ## The same with a Kafka of its own, to which it publishes
	$(BIN)/python scripts/kafka --node $(ARGS)

kafka: setup ## Run a Kafka broker of its own; ARGS="events_topic:3 lifecycle_topic:3" makes topics
	$(BIN)/python scripts/kafka $(ARGS)

demo: setup ## Run the demonstration: a payment from its authorisation to its removal
	$(BIN)/python scripts/demo.py $(ARGS)

compile: setup ## Compile the modules and build the wheel
	$(BIN)/python -m compileall -q $(SOURCES)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	@rm -rf build/lib build/bdist.*

dialyzer: types ## The same as types

clean: ## Remove what was built and cached; the virtual environment stays
	rm -rf build dist .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .grimp_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
