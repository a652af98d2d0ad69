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
TRAIN_ARGS ?=
CERTIFY_ARGS ?=
WHAT ?= n
# make gpu-paper SIGMA=0.25 DATA=FOLDER MINUTES=8 OUT=FOLDER
MINUTES ?= 8
OUT ?= runs/gpu-paper-$(SIGMA)
# make fuzz FUZZ="results weights" MINUTES=3; make kills KILLS=99
FUZZ ?= results logs audits galleries weights checkpoints settings metrics predictions configs
KILLS ?= 99
# Processes that test side by side, each on a core of its own.
WORKERS ?= 2
# An interpreter that has JAX: the virtual environment's where there is one.
PYTHON_RUN ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
SETTINGS = --config=$(CONFIG):$(SCHEME) --config.noise.sigma=$(SIGMA) --config.data.dir=$(DATA) \
	--config.max_minutes=$(SLICE) --workdir=$(RUN)

.DEFAULT_GOAL := help
.PHONY: help quickstart test evidence test-all lint typecheck reproduce overhead invariance widths certificate-table plans denoising figures \
	fuzz kills throughput training-throughput networks scaling gpu-check gpu-benchmark gpu-paper docs docs-serve clean

help:  ## Show this help.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(VENV)/.quickstart  ## Train and certify a small network on the embedded digits: table, TSV, figure.
	$(BIN)/python train.py --workdir=runs/quickstart
	$(BIN)/python certify.py --workdir=runs/quickstart

test: $(VENV)/.dev  ## Run the tests that need nothing but this checkout, in minutes.
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not evidence and not shared and not peers"

evidence: $(VENV)/.dev  ## Run the long ones: many draws, real kills, other widths, benchmarks.
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "evidence and not shared and not peers"
	XLA_FLAGS= $(BIN)/pytest -k "do_not_depend_on_chunk and l1" tests/sampling/test_votes.py  # by the compiler as users have it

test-all: $(VENV)/.peers  ## Run the tests that need ../shared or PyTorch; a skip is a failure.
	XLA_FLAGS= $(BIN)/pytest -n $(WORKERS) --dist loadfile -m "shared or peers" --forbid-skips

lint: $(VENV)/.dev  ## Check style.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.dev  ## Check types.
	$(BIN)/pyright --pythonpath $(BIN)/python

reproduce: $(VENV)/.quickstart  ## Train by the full recipe, certify 500 images: SIGMA=0.25 SCHEME=gaussian DATA=FOLDER.
	until grep -qs '"finished": true' $(RUN)/train_status.json; do $(BIN)/python train.py $(SETTINGS) $(TRAIN_ARGS) || exit; done
	until grep -qs '"finished": true' $(RUN)/certify_status.json; do $(BIN)/python certify.py $(SETTINGS) $(CERTIFY_ARGS) || exit; done

overhead: $(VENV)/.quickstart  ## Measure what the sampling core adds to the bare forward pass.
	$(BIN)/python benchmarks/overhead.py $(ARGS)

invariance: $(VENV)/.quickstart  ## Count the votes that change with chunk and devices: DATA=FOLDER.
	$(BIN)/python benchmarks/invariance.py $(DATA)

widths: $(VENV)/.quickstart  ## Count the votes that change with the width of a processor's vectors: DATA=FOLDER.
	$(BIN)/python -m benchmarks.widths $(DATA) $(ARGS)

certificate-table: $(VENV)/.quickstart  ## Print the tables of docs/explanation/certificates.md and draw its figure.
	$(BIN)/python benchmarks/certificate_table.py

plans: $(VENV)/.quickstart  ## Replay sampling plans over a published log, draw their power: LOG=FILE.
	$(BIN)/python benchmarks/plans.py $(LOG)

denoising: $(VENV)/.quickstart  ## Measure and draw what the committed denoiser does to noisy images: DATA=FOLDER.
	$(BIN)/python -m benchmarks.denoising $(DATA) $(ARGS)

fuzz: $(VENV)/.fuzz  ## Read damaged files, MINUTES of each kind in FUZZ="results weights ...": what is not refused in a line?
	for one in $(FUZZ); do $(BIN)/python -m benchmarks.fuzzing $$one --minutes $(MINUTES) || failed=1; done; exit $${failed:-0}

kills: $(VENV)/.quickstart  ## Kill training, certification and audit at KILLS=99 random moments: does a row differ in the end?
	$(BIN)/python -m benchmarks.kills --kills $(KILLS) $(ARGS)

FULL = results/cifar10_resnet110_0.25/gaussian
RESNET_110 = "ResNet-110, σ = .12"=results/cifar10_resnet110_0.12/gaussian "ResNet-110, σ = .25"=$(FULL) \
  "ResNet-110, σ = .5"=results/cifar10_resnet110_0.5/gaussian "ResNet-110, σ = 1"=results/cifar10_resnet110_1.0/gaussian
# The paper's columns, as far as they are drawn.
COLUMN_A = $(wildcard results/cifar10_resnet110_*/gaussian)
TABLE_1 = $(foreach one,l1 l2,$(wildcard results/cifar10_resnet110_*/$(one)))
TABLE_2 = $(wildcard results/cifar10_resnet110_*/uniform)
UNDER_05 = $(foreach one,gaussian uniform,\
  $(sort $(wildcard results/cifar10_resnet110_*/$(one)_under_0.5) $(wildcard results/cifar10_resnet110_0.5/$(one))))
PAPER_RADII = .25 .5 .75 1 1.25 1.5
NOISE_025 = results/cifar10_resnet20_0.25
RANGE = results/cifar10_resnet20_0.1-0.45
FIRST_RUNS = $(NOISE_025)/gaussian $(NOISE_025)/l1 $(NOISE_025)/l2 $(NOISE_025)/inverse_sqrt_norm $(NOISE_025)/uniform
SECOND_RUNS = $(RANGE)/gaussian $(RANGE)/stepped_2_bins $(RANGE)/stepped_4_bins
DENOISER = checkpoints/cifar10_denoiser_small.safetensors
BEHIND = results/cifar10_denoised
DENOISED_RUNS = denoised=$(BEHIND)/denoised_0.25 denoised=$(BEHIND)/denoised_0.5 denoised=$(BEHIND)/denoised_1.0 \
  "denoised in 4 steps, σ = 1"=$(BEHIND)/four_steps_1.0 \
  "denoised, fine-tuned"=$(BEHIND)/tuned_0.25 "denoised, fine-tuned"=$(BEHIND)/tuned_0.5 \
  "denoised, fine-tuned"=$(BEHIND)/tuned_1.0 \
  "without denoiser"=$(BEHIND)/plain_0.25 "without denoiser"=$(BEHIND)/plain_0.5 "without denoiser"=$(BEHIND)/plain_1.0
ANEW = build/certificates
define recertify
	$(BIN)/idrc-recertify $(1) --$(2) $(3) --out $(ANEW)/$(4)

endef
PLAN_RUNS = "gaussian, plan fixed"=results/plans/fixed "gaussian, plan to_radius"=results/plans/to_radius
TRAINED = results/cifar10_resnet20_0.5
TRAINED_RUNS = "noise augmentation, σ = .5"=$(TRAINED)/gaussian "consistency, σ = .5"=$(TRAINED)/consistency \
  "consistency, three cycles"=$(TRAINED)/consistency_three_500 "ensemble of three"=$(TRAINED)/ensemble "macer, σ = .5"=$(TRAINED)/macer \
  "smoothadv, σ = .5"=$(TRAINED)/smoothadv "consistency, σ = .25"=$(NOISE_025)/consistency \
  "consistency, σ = 1"=results/cifar10_resnet20_1.0/consistency $(RESNET_110) \
  $(foreach one,l1 l2 uniform inverse_sqrt_norm,"ResNet-110, $(one)"=results/cifar10_resnet110_0.25/$(one))

figures: $(VENV)/.quickstart  ## Make the README's figure and tables from results/; with DATA=FOLDER the report with its pictures.
	$(BIN)/idrc-figures accuracy $(FIRST_RUNS) --title "CIFAR-10, ResNet-20, n = 2,000" \
	  --out docs/images/cifar10_resnet20_0.25.png
	$(BIN)/idrc-figures probabilities $(NOISE_025)/gaussian $(RANGE)/gaussian --out docs/images/probabilities.png
	$(BIN)/idrc-figures accuracy "ResNet-110"=$(FULL) "ResNet-20"=$(NOISE_025)/gaussian --title "CIFAR-10, gaussian, σ = .25" \
	  --out docs/images/cifar10_resnet110_0.25.png
	$(BIN)/idrc-tables runs $(RESNET_110) "ResNet-20, σ = .25"=$(NOISE_025)/gaussian \
	  --kind valid --paper --at $(PAPER_RADII) --out README.md --mark gaussian
	$(BIN)/idrc-tables sigmas $(COLUMN_A) --kind valid --paper --at $(PAPER_RADII) --out docs/paper.md --mark column-a
	$(BIN)/idrc-tables sigmas $(TABLE_1) --paper --at $(PAPER_RADII) --out docs/paper.md --mark table1
	$(BIN)/idrc-tables sigmas $(TABLE_2) --kind published --paper --at $(PAPER_RADII) --out docs/paper.md --mark table2
	$(BIN)/idrc-figures sigmas $(COLUMN_A) $(TABLE_1) $(TABLE_2) --out docs/images/paper_sigmas.png
	$(BIN)/idrc-figures training $(UNDER_05) --out docs/images/paper_training.png
	$(BIN)/idrc-tables runs $(wordlist 2,5,$(FIRST_RUNS)) --at 0 .25 .5 .75 --out docs/reference/results.md --mark schemes
	$(BIN)/idrc-tables runs "gaussian, σ = .3"=$(RANGE)/gaussian \
	  "stepped, 2 bins: σ = .246, .354"=$(RANGE)/stepped_2_bins \
	  "stepped, 4 bins: σ = .216, .275, .317, .392"=$(RANGE)/stepped_4_bins \
	  --kind valid --at 0 .25 .5 .75 1 --out docs/reference/results.md --mark stepped
	$(foreach one,one_sided two_sided runner_up,$(call recertify,$(NOISE_025)/gaussian,certificate,$(one),$(one)))
	$(foreach one,one_sided two_sided runner_up,$(call recertify,$(BEHIND)/tuned_1.0,certificate,$(one),$(one)-1.0))
	$(foreach k,1 2 3 5,$(call recertify,$(NOISE_025)/gaussian,k,$(k),top-$(k)))
	$(BIN)/idrc-tables runs one_sided=$(ANEW)/one_sided two_sided=$(ANEW)/two_sided runner_up=$(ANEW)/runner_up \
	  --kind valid --at 0 .25 .5 --out docs/reference/results.md --mark certificates
	$(BIN)/idrc-tables runs one_sided=$(ANEW)/one_sided-1.0 two_sided=$(ANEW)/two_sided-1.0 \
	  runner_up=$(ANEW)/runner_up-1.0 --kind valid --at 0 .5 1 1.5 --out docs/reference/results.md --mark certificates-1.0
	$(BIN)/idrc-tables runs "k = 1"=$(ANEW)/top-1 "k = 2"=$(ANEW)/top-2 "k = 3"=$(ANEW)/top-3 "k = 5"=$(ANEW)/top-5 \
	  --kind valid --at 0 .25 .5 .75 --out docs/reference/results.md --mark top_k
	$(BIN)/idrc-tables methods $(DENOISED_RUNS) --kind valid --paper --out docs/how_to/denoising.md --mark table3
ifneq ($(DATA),)
	$(BIN)/idrc-gallery $(FIRST_RUNS) $(SECOND_RUNS) results/plans/fixed results/plans/to_radius --data $(DATA)
	$(BIN)/idrc-gallery $(BEHIND)/denoised_0.25 $(BEHIND)/tuned_0.5 --denoiser $(DENOISER) --data $(DATA)
	$(BIN)/idrc-figures noisy $(FIRST_RUNS) $(SECOND_RUNS) --out docs/images/noisy.png
	$(BIN)/idrc-report $(FIRST_RUNS) $(SECOND_RUNS) $(PLAN_RUNS) $(TRAINED_RUNS) \
	  denoised=$(BEHIND)/denoised_0.25 "denoised, fine-tuned"=$(BEHIND)/tuned_0.5 --pictures 1 --out docs/report
endif

throughput: $(VENV)/.benchmarks  ## Time certification beside PyTorch and ART, on an idle machine: DATA=FOLDER.
	$(BIN)/python -m benchmarks.throughput $(if $(DATA),--data $(DATA)) $(ARGS)

training-throughput: $(VENV)/.benchmarks  ## Time training beside PyTorch, on an idle machine.
	$(BIN)/python -m benchmarks.training $(ARGS)

networks: $(VENV)/.benchmarks  ## Time certification of eight kinds of network beside XLA and PyTorch, on an idle machine.
	$(BIN)/python -m benchmarks.any_network $(ARGS)

scaling: $(VENV)/.benchmarks  ## Time certification over WHAT=n, devices or size, on an idle machine.
	$(BIN)/python -m benchmarks.scaling $(WHAT) $(ARGS)

# JAX's CUDA compiler complains in every process on a machine without a GPU: it gets an environment of its own, which
# sees the packages of the other.
gpu-check: $(VENV)/.gpu-check  ## Compile for GPUs that need not be there what the commands run, count it: ARGS=--all for all.
	$(VENV)/gpu-check/bin/python -m benchmarks.gpu_programs $(ARGS)

gpu-benchmark:  ## Time all on an NVIDIA GPU in 6 minutes with the JAX of PYTHON_RUN, which installs nothing.
	$(PYTHON_RUN) -m benchmarks.gpu $(if $(DATA),--data $(DATA)) $(ARGS)

gpu-paper:  ## Train ResNet-110 and certify 500 images on a GPU in MINUTES=8, or go on with it: SIGMA=0.25 DATA=FOLDER.
	$(PYTHON_RUN) -m benchmarks.gpu_paper --sigma $(SIGMA) $(if $(DATA),--data $(DATA)) --minutes $(MINUTES) --out $(OUT) \
	  $(if $(TRAIN_ARGS),--train='$(TRAIN_ARGS)') $(if $(CERTIFY_ARGS),--certify='$(CERTIFY_ARGS)') $(ARGS)

docs: $(VENV)/.docs  ## Build the documentation's site in build/site, notebooks run, links checked.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Site: build/site/index.html"

docs-serve: $(VENV)/.docs  ## Show the site on http://127.0.0.1:8000, rebuilt while you write.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

clean:  ## Remove the virtual environment and caches; runs/ stays.
	rm -rf $(VENV) build dist .cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@test -n '$(PYTHON)' || { echo "error: Expected Python >= 3.11, found none: make PYTHON=/path/to/python ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.quickstart: $(VENV)/.python pyproject.toml
	@echo "Installing JAX and the rest into $(VENV): some minutes, once."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[quickstart]'
	@touch $@

$(VENV)/.dev: $(VENV)/.quickstart
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(VENV)/.benchmarks: $(VENV)/.quickstart
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[benchmarks]'
	@touch $@

$(VENV)/.fuzz: $(VENV)/.quickstart
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@touch $@

$(VENV)/.docs: $(VENV)/.quickstart
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

$(VENV)/.gpu-check: $(VENV)/.quickstart
	$(BIN)/python -m venv $(VENV)/gpu-check
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
	  > "$$($(VENV)/gpu-check/bin/python -c 'import site; print(site.getsitepackages()[0])')/parent.pth"
	$(VENV)/gpu-check/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[gpu-check]'
	@touch $@

$(VENV)/.peers: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[peers]'
	@touch $@
