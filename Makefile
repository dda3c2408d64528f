# Two commands: `make` does the main job, `make test` tests it. Both set up what they need.
PYTHON ?= python3
BIN := .venv/bin
ENVIRONMENT := .venv/.ready
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
export PYTHONDONTWRITEBYTECODE := 1

EXERCISES := $(wildcard solutions/*/*.py)
GRADER := $(wildcard autograder/*.py autograder/*/*.py autograder/*/*/*.py autograder/templates/*/* lab/*.py) nbgrader_config.py
BOOK := _config.yml _toc.yml $(shell find book -type f -not -path 'book/assets/vendor/*' -not -path '*/__pycache__/*') \
        $(wildcard lab/*.py lab/weights/*.safetensors exercises/*/*.ipynb)

.PHONY: all book exercises class test record lint serve runs bench clean constraints

all: exercises book class
	@$(BIN)/autograder scores _build/sample
	@printf 'book       %s\ngradebook  %s\nfeedback   %s\nreport     %s\n' _build/book/_build/html/index.html \
	  _build/sample/gradebook.db _build/sample/feedback/ _build/sample/report.html

book: _build/book.done
exercises: _build/exercises.done
class: _build/class.done

$(ENVIRONMENT): requirements.txt constraints.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON). Install Python 3.11 or newer, or say which: make PYTHON=…"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	  f"Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is {v[0]}.{v[1]}. Say which to use: make PYTHON=python3.11")'
	@$(PYTHON) -c 'import shutil, sys; free = shutil.disk_usage(".").free >> 30; sys.exit(0 if free >= 4 else \
	  f"The environment and the book need about 4 GB of disk; {free} GB are free here.")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { \
	  echo "The environment could not be made. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "installing the packages of requirements.txt into .venv (some minutes the first time)"
	@$(BIN)/pip install --quiet --progress-bar on --disable-pip-version-check -r requirements.txt -c constraints.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

_build/exercises.done: $(ENVIRONMENT) $(EXERCISES) $(GRADER)
	@echo "exercises/ from solutions/"
	@$(BIN)/autograder build
	@mkdir -p _build && touch $@

_build/vendor.done: $(ENVIRONMENT) book/assets/vendor.toml book/assets/vendor.py
	@$(BIN)/python book/assets/vendor.py
	@mkdir -p _build && touch $@

_build/book.done: _build/vendor.done _build/exercises.done $(BOOK)
	@$(BIN)/python book/extensions/execute.py
	@$(BIN)/jupyter-book build . --path-output _build/book -W -n --keep-going
	@touch $@

_build/class.done: _build/exercises.done $(GRADER)
	@$(BIN)/autograder sample-class _build/sample
	@touch $@

test: $(ENVIRONMENT) lint exercises book class
	@$(BIN)/autograder build --check
	@$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadgroup

# Puts every right and wrong answer of the exercises that changed through the grader; keeps which exercises passed.
record: $(ENVIRONMENT) exercises
	@$(BIN)/python -m pytest --record --numprocesses logical --maxprocesses 4 --dist loadgroup

lint: $(ENVIRONMENT)
	@$(BIN)/ruff format --check --quiet . || { echo "run: .venv/bin/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .

serve: book
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/book/_build/html 8000

runs: $(ENVIRONMENT)
	@$(BIN)/python -m lab.runs $(RUN)

bench: exercises
	@$(BIN)/python -m tests.benchmarks.grading
	@$(BIN)/python -m tests.benchmarks.classes
	@echo "hostile submissions, under stock nbgrader and here: half an hour; what is done is kept"
	@$(BIN)/python -m tests.benchmarks.hostile

# What the packages of requirements.txt depend on, as installed now.
constraints: $(ENVIRONMENT)
	@$(BIN)/pip freeze --exclude-editable --exclude from-attention-to-reasoning | sed 's/+cpu$$//' > constraints.txt

clean:
	@rm -rf _build .pytest_cache .ruff_cache
