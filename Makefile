# Everything installs into .venv, once; a later run starts at once. PYTHON=... picks the interpreter.
.DEFAULT_GOAL := help
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
BIN := .venv/bin
READY := .venv/.ready

help:
	@echo "make train      set up, train on the built-in corpus (about two minutes), write text, show the gates"
	@echo "make test       set up, run the tests"
	@echo "make check      lint, format, types, layering, the docs' code"
	@echo "make test-slow  the tests that take minutes"
	@echo "make bench      the benchmarks"
	@echo "make clean      remove .venv and caches; runs/ stays"

$(READY): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer was found; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; fi
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $(READY)

train: $(READY)
	$(BIN)/unrolled train

test: $(READY)
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layering.py tests/test_docs.py

bench: $(READY)
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/recurrence.py

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

.PHONY: help train test test-slow check bench clean
