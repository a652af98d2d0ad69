# Everything sets itself up: only Python >= 3.11 and make are needed.
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
BIN := $(VENV)/bin

# make reproduce SIGMA=0.25 SCHEME=gaussian DATA=FOLDER
SIGMA ?= 0.25
SCHEME ?= gaussian
DATA ?=
LOG ?=
CONFIG ?= configs/cifar10.py
SLICE ?= 60
RUN ?= runs/$(SCHEME)-$(SIGMA)
ARGS ?=
WHAT ?= n
# An interpreter that has JAX: the virtual environment's where there is one.
PYTHON_RUN ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
SETTINGS = --config=$(CONFIG):$(SCHEME) --config.noise.sigma=$(SIGMA) --config.data.dir=$(DATA) \
	--config.max_minutes=$(SLICE) --workdir=$(RUN) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all lint typecheck reproduce overhead invariance certificate-table plans denoising \
	throughput training-throughput scaling gpu-benchmark clean

help:  ## Show this help.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(VENV)/.quickstart  ## Train and certify a small network on the embedded digits: table, TSV, figure.
	$(BIN)/python train.py --workdir=runs/quickstart
	$(BIN)/python certify.py --workdir=runs/quickstart

test: $(VENV)/.dev  ## Run the tests that need nothing but this checkout.
	$(BIN)/pytest -m "not shared and not peers"

test-all: $(VENV)/.peers  ## Run the tests that need ../shared or PyTorch; a skip is a failure.
	$(BIN)/pytest -m "shared or peers" --forbid-skips

lint: $(VENV)/.dev  ## Check style.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.dev  ## Check types.
	$(BIN)/pyright --pythonpath $(BIN)/python

reproduce: $(VENV)/.quickstart  ## Train by the full recipe, certify 500 images: SIGMA=0.25 SCHEME=gaussian DATA=FOLDER.
	until grep -qs '"finished": true' $(RUN)/train_status.json; do $(BIN)/python train.py $(SETTINGS) || exit; done
	until grep -qs '"finished": true' $(RUN)/certify_status.json; do $(BIN)/python certify.py $(SETTINGS) || exit; done

overhead: $(VENV)/.quickstart  ## Measure what the sampling core adds to the bare forward pass.
	$(BIN)/python benchmarks/overhead.py

invariance: $(VENV)/.quickstart  ## Count the votes that change with chunk and devices: DATA=FOLDER.
	$(BIN)/python benchmarks/invariance.py $(DATA)

certificate-table: $(VENV)/.quickstart  ## Print the tables of docs/certificates.md and draw its figure.
	$(BIN)/python benchmarks/certificate_table.py

plans: $(VENV)/.quickstart  ## Replay sampling plans over a published log, draw their power: LOG=FILE.
	$(BIN)/python benchmarks/plans.py $(LOG)

denoising: $(VENV)/.quickstart  ## Measure and draw what the committed denoiser does to noisy images: DATA=FOLDER.
	$(BIN)/python -m benchmarks.denoising $(DATA) $(ARGS)

throughput: $(VENV)/.benchmarks  ## Time certification beside PyTorch and ART, on an idle machine: DATA=FOLDER.
	$(BIN)/python -m benchmarks.throughput $(if $(DATA),--data $(DATA)) $(ARGS)

training-denoising: $(VENV)/.quickstart  ## Measure and draw what the committed denoiser does to noisy images: DATA=FOLDER.
	$(BIN)/python -m benchmarks.denoising $(DATA) $(ARGS)

throughput: $(VENV)/.benchmarks  ## Time training beside PyTorch, on an idle machine.
	$(BIN)/python -m benchmarks.training $(ARGS)

scaling: $(VENV)/.benchmarks  ## Time certification over WHAT=n, devices or size, on an idle machine.
	$(BIN)/python -m benchmarks.scaling $(WHAT) $(ARGS)

gpu-benchmark:  ## Time all on an NVIDIA GPU with the JAX of PYTHON_RUN, which installs nothing.
	$(PYTHON_RUN) -m benchmarks.gpu $(if $(DATA),--data $(DATA)) $(ARGS)

clean:  ## Remove the virtual environment and caches; runs/ stays.
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@test -n '$(PYTHON)' || { echo "error: Expected Python >= 3.11, found none: make PYTHON=/path/to/python ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.quickstart: $(VENV)/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[quickstart]'
	@touch $@

$(VENV)/.dev: $(VENV)/.quickstart
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(VENV)/.benchmarks: $(VENV)/.quickstart
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[benchmarks]'
	@touch $@

$(VENV)/.peers: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[peers]'
	@touch $@
