# Each target sets up what it needs in .venv. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py CMakeLists.txt constraints.txt $(wildcard csrc/*)
SANITIZED := $(addprefix tests/test_,ema_update.py ema_errors.py ema_module_errors.py ema_hypothesis.py ema_precision.py \
  ema_options.py ema_library.py weight_ema.py weight_ema_state.py schedules.py slots.py overlap.py errors.py loss_errors.py \
  mean_teacher_loss.py multi_tensor_dot.py temporal_ensemble.py sharpen.py augment.py augment_errors.py)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

# A machine without a GPU needs no CUDA kernels, even where it has a compiler for them (which takes ten minutes).
ifneq ($(shell nvidia-smi -L >/dev/null 2>&1; echo $$?),0)
  export MTKERNELS_CUDA ?= 0
endif

.PHONY: help demo test bench lint sanitize gpu-check clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

demo: $(VENV)/.train  ## 20 labels: supervised-only against Mean Teacher, on real digits
	$(BIN)/mtkernels demo

# Two files at a time; threads that wait must not spin then.
test: $(VENV)/.dev  ## the tests
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: $(VENV)/.dev  ## speed against other libraries; a table, a CSV and a plot under bench/results
	@mkdir -p bench/results/local
	$(BIN)/python -m pytest bench --benchmark-json=bench/results/local/results.json $(BENCH_OPTIONS)
	$(BIN)/python bench/report.py bench/results/local/results.json

lint: $(VENV)/.dev  ## ruff and clang-format
	$(BIN)/clang-format --dry-run --Werror csrc/*
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A build of its own: the installed one stays. `pytest`, not `python -m pytest`, which would import this folder's package.
sanitize: $(VENV)/.dev  ## the tests of weight averages and of refusals under AddressSanitizer and UBSan
	$(PIP) setuptools cmake ninja
	PATH="$(CURDIR)/$(BIN):$$PATH" MTKERNELS_CUDA=0 MTKERNELS_SANITIZE=1 $(BIN)/python setup.py --quiet build \
	  --build-base build/sanitize --build-lib build/sanitize/lib
	PYTHONPATH=build/sanitize/lib PYTHONMALLOC=malloc OMP_NUM_THREADS=2 ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
	  $(BIN)/pytest -q $(SANITIZED)

gpu-check:  ## on a GPU machine, with its own Python and torch, no network: build, GPU tests, sanitizer, benches
	PYTHON=$(PYTHON) bash bench/gpu_check.sh

clean:
	rm -rf $(VENV) build dist *.egg-info mtkernels/*.so

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(SOURCES) | $(BIN)/python
	$(PIP) -e '.[train]'
	@touch $@

$(VENV)/.dev: $(SOURCES) | $(BIN)/python
	$(PIP) -e '.[dev,bench,compat]'
	$(PIP) --no-deps timm  # its model_ema alone: the rest wants torchvision
	@touch $@ $(VENV)/.train
