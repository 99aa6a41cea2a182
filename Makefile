# `make run` and `make test` need nothing beforehand: what is missing is set up first.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SETUPTOOLS := setuptools>=77

# Current: installed to the end, here, with a Python that still runs, and later than what it was installed from.
CURRENT = test "$$(cat $(STAMP) 2>/dev/null)" = "$(CURDIR)" \
	&& ! test pyproject.toml -nt $(STAMP) && ! test constraints.txt -nt $(STAMP) && $(BIN)/python -c "" 2>/dev/null

# Some systems have commands of these names that do not run, or run without the modules that a venv needs.
SUITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
CANDIDATES := $(or $(PYTHON),python3.12 python3.11 python3.13 python3)

.DEFAULT_GOAL := help
.PHONY: help setup install run test test-slow check format docs bench bench-losses clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS="	" read -r name text; do \
		printf '  make %-13s %s\n' "$$name" "$$text"; done

setup: ## Make .venv and install the package there, if missing or stale (PYTHON=... picks the Python of a new one)
	@{ $(CURRENT); } || $(MAKE) --no-print-directory install

# The stamp goes first and comes back last, so an interrupted installation is taken up again. A .venv that was moved or
# copied, or lost its Python, is made anew: its scripts name the place where it was made.
install:
	@rm -f $(STAMP)
	@if ! $(BIN)/python -c '$(SUITS)' 2>/dev/null \
		|| ! $(BIN)/pip --version 2>/dev/null | grep -qF "from $(CURDIR)/$(VENV)/"; then \
		for python in $(CANDIDATES); do \
			if "$$python" -c '$(SUITS)' >/dev/null 2>&1; then found=$$python; break; fi; \
		done; \
		if test -z "$$found"; then \
			echo "No suitable Python among: $(CANDIDATES)." >&2; \
			echo "Python 3.11, 3.12 or 3.13 with venv and ensurepip is needed (on Debian: apt-get install python3-venv);" >&2; \
			echo "name one by: make setup PYTHON=/path/to/python" >&2; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $$("$$found" --version). The packages take about 6 GB and some minutes, once."; \
		"$$found" -m venv --clear $(VENV); \
	fi
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt "$(SETUPTOOLS)"
	$(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	@echo "$(CURDIR)" > $(STAMP)

run: setup ## Train a teacher, a student alone and a distilled student on real images; show what came of it
	$(BIN)/python -m kd_lightning.quickstart

test: setup ## Run the tests, but the slow ones, and measure their coverage
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --cov --cov-report=term-missing:skip-covered --cov-fail-under=90 --durations=15

test-slow: setup ## Run the slow tests
	$(BIN)/python -m pytest -m slow --durations=15

check: setup ## Lint, check the format and the types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup ## Put the code into its format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: setup ## Write docs/losses.md from the docstrings, and build the site into docs/_build
	$(BIN)/python docs/losses.py
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build

# KD_LIGHTNING_DATA names the folder that holds cifar100/; BENCH="--rounds 3" gives options.
bench: setup ## Measure the speed beside the student alone, timm and torchdistill (BENCH="--root DATA" for real images)
	@$(BIN)/python -c "import torchdistill" 2>/dev/null \
		|| $(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation --editable ".[bench]"
	$(BIN)/python -m benchmarks.speed $(BENCH)

bench-losses: setup ## Measure what each loss costs, and write it into docs/losses.md
	$(BIN)/python benchmarks/losses.py
	$(BIN)/python docs/losses.py

clean: ## Remove caches and build products; .venv, data and runs stay
	rm -rf build dist docs/_build docs/api *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
