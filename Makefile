# Every target that needs Python sets up .venv by itself; `make setup` is a no-op when nothing changed.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= python3
PROFILE ?= quick
LAUNCH ?=
ONLY ?=
JOBS ?= 0
N ?= 2

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NOTEBOOKS := $(basename $(notdir $(sort $(wildcard notebooks/*.ipynb))))

RUN = $(BIN)/python notebooks/reproduce.py --profile $(PROFILE) --jobs $(JOBS) --launch "$(LAUNCH)" $(ONLY:%=--only "%")

.PHONY: help setup data plan reproduce batch audit test book book-zip book-pdf bench verifier lint lock clean $(NOTEBOOKS)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@for notebook in $(NOTEBOOKS); do printf 'make %-13s %s\n' "$$notebook" 'run this notebook alone, if anything changed'; done

setup: $(READY) ## install the locked dependencies into .venv

$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

data: $(READY) ## download the data sets that are missing (0.6 GB)
	$(BIN)/python -c "from clearstamp.zoo import datasets; datasets.download()"

plan: $(READY) ## list every experiment, its data, its record and its time (PROFILE=quick|paper), run nothing
	$(RUN) --plan

reproduce: $(READY) ## run what is missing of the plan (PROFILE=, JOBS=, LAUNCH="srun --gpus=1"), build the book, print the claims
	$(RUN)
	$(BIN)/python book/build.py --profile $(PROFILE)

batch: ONLY = *-resnet* *-vgg11-* *-vit-*
batch: $(READY) ## run the deep networks alone, or what ONLY="PATTERN ..." names (PROFILE=, JOBS=, LAUNCH=)
	$(RUN)

$(NOTEBOOKS): %: $(READY)
	$(RUN) $*

audit: PROFILE = paper
audit: $(READY) ## run N records again (PROFILE=paper), those verified longest ago first, and compare
	$(BIN)/python notebooks/audit.py --profile $(PROFILE) --count $(N)

test: export MALLOC_MMAP_THRESHOLD_ = 1048576 # memory of large tensors goes back when they do
test: $(READY) ## run every test, and every notebook in the tiny profile, two at a time
	records=$$(mktemp -d) && trap 'rm -rf "$$records"' EXIT && \
	CLEARSTAMP_ARTIFACTS="$$records" $(BIN)/python -m pytest -n 2 --no-loadscope-reorder \
	  --nbmake --nbmake-timeout=600 notebooks tests

book: $(READY) ## build the book from the notebooks that ran, print the claims
	$(BIN)/python book/build.py --profile $(PROFILE)

book-zip: $(READY) book ## the book in one zip file, in dist/
	$(BIN)/python book/archive.py zip --profile $(PROFILE)

book-pdf: $(READY) book ## the book as a PDF, in dist/ (needs Chromium)
	$(BIN)/python book/archive.py pdf --profile $(PROFILE)

bench: $(READY) ## measure hardening steps, the cost of a stamp step and memory
	$(BIN)/python tests/bench.py

verifier: export OMP_NUM_THREADS = 1 # sums in another order have other last bits
verifier: $(READY) ## train the verifier of letters and pictures anew, measure it, write its weights and its card
	$(BIN)/python -m clearstamp.reproduction.verifier

lint: $(READY) ## check style, types and notebook outputs, as the pre-commit hooks do
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/nbstripout --verify --keep-id $(wildcard notebooks/*.ipynb)

lock: $(READY) ## pin the newest dependencies in requirements.lock
	$(BIN)/uv pip compile pyproject.toml --all-extras --upgrade --generate-hashes --universal --python-version 3.11 \
	  --no-emit-index-url --no-header --quiet -o requirements.lock

clean: ## remove what was built, but neither .venv nor artifacts/paper
	rm -rf build dist *.egg-info book/_build book/_generated artifacts/tiny artifacts/quick
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find clearstamp notebooks tests book -name __pycache__ -prune -exec rm -rf {} +
