# Each target makes .venv when it is missing, and brings it up to date when pyproject.toml or constraints.txt changed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PYTEST := $(BIN)/python -m pytest
# A file's tests stay in one worker, which shares what is slow to set up.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder
# Where nothing compiled is kept, each of the many processes of a run compiles all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test quick check judge gpu bench clean

help: ## show the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 14

demo: $(READY) ## train a small GPT on 1 rank and on 4, and compare the two
	$(BIN)/python examples/demo.py

test: $(READY) ## run all tests
	$(PYTEST) $(PARALLEL)

quick: $(READY) ## run the tests that are not slow
	$(PYTEST) $(PARALLEL) -m "not slow"

check: $(READY) ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

judge: $(READY) ## run what takes long: torch's own suite over our group, killed jobs, a litmus test of memory
	$(PYTEST) tests/judge --timeout 0

# Needs no .venv: it takes the torch that PYTHON has, which knows its GPU.
OUT ?= gpu-results
LIMIT ?= 1200
gpu: ## run all that needs an NVIDIA GPU, with the torch of PYTHON, in LIMIT seconds; results go to the folder OUT
	$(PYTHON) tests/judge/on_a_gpu.py "$(OUT)" "$(LIMIT)"

bench: $(READY) ## run the benchmarks
	@set -e; for benchmark in benchmarks/*.py; do echo "== $$benchmark"; $(BIN)/python $$benchmark; done

clean: ## remove .venv and all that the targets made
	rm -rf .venv build dist out gpu-results .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# hatchling comes first, at its pinned version, so that the build needs no environment of its own.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: there is no '$(PYTHON)'; install Python 3.11 or later, or name yours: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: Python 3.11 or later is needed, and '$(PYTHON)' is $$($(PYTHON) -V); name another: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt hatchling
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[test,dev,examples]'
	@touch $@
