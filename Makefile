# Each target sets up what it needs in .venv. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py CMakeLists.txt constraints.txt $(wildcard csrc/*)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: help demo test bench lint gpu-check clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

demo: $(VENV)/.train  ## 20 labels: supervised-only against Mean Teacher, on real digits
	$(BIN)/mtkernels demo

test: $(VENV)/.dev  ## the tests
	$(BIN)/python -m pytest

bench: $(VENV)/.dev  ## speed against other libraries; a table, a CSV and a plot under bench/results
	@mkdir -p bench/results/local
	$(BIN)/python -m pytest bench --benchmark-json=bench/results/local/results.json
	$(BIN)/python bench/report.py bench/results/local/results.json

lint: $(VENV)/.dev  ## ruff and clang-format
	$(BIN)/clang-format --dry-run --Werror csrc/*
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

gpu-check:  ## on a GPU machine, with its own Python and torch, no network: build, GPU tests, sanitizer, benches
	PYTHON=$(PYTHON) bash bench/gpu_check.sh

clean:
	rm -rf $(VENV) build dist *.egg-info mtkernels/*.so

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The demo runs on the CPU where there is no GPU: no need to compile CUDA kernels for it then.
$(VENV)/.train: $(SOURCES) | $(BIN)/python
	$$(nvidia-smi -L >/dev/null 2>&1 || echo env MTKERNELS_CUDA=0) $(PIP) -e '.[train]'
	@touch $@

$(VENV)/.dev: $(SOURCES) | $(BIN)/python
	$(PIP) -e '.[dev,bench]'
	@touch $@ $(VENV)/.train
