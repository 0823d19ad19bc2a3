# `make train` and `make test` do all the set-up on a machine with only Python and make.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/irnn.py
ARGS ?=
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
CONSTRAINTS := requirements/constraints-$(VERSION).txt
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c $(CONSTRAINTS)

.PHONY: train test test-slow check format docs bench results clean

train: $(VENV)/.installed
	$(BIN)/python -m jaxeff.main --config=$(CONFIG) $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/tables.py --check

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/rnn_speed.py $(ARGS)

results: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/rnn_accuracy.py $(ARGS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) -e .[dev]
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
