# One place for every command of this repository. A bare machine needs Python >= 3.11 (with venv), make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A find-links folder or an extra index in the caller's environment could bring a build of torch that does not
# match torchvision: the pins below come from the default index alone.
CLEAN := env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL -u UV_FIND_LINKS -u UV_EXTRA_INDEX_URL
# Where writing byte code is forbidden (images of containers often do), every process compiles torch and all the others
# anew, which takes longer than most tests.
COMPILED := env -u PYTHONDONTWRITEBYTECODE
# A test to a core, one thread each: small networks gain nothing from a second.
PYTEST := $(COMPILED) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

.PHONY: help setup demo screenshots check test test-long lint types layers numbers docs docs-serve wheel-test matrix audit clean

help:
	@echo "make demo       draw scenes, train a teacher, a student alone and a distilled student (about 5 minutes)"
	@echo "make check      lint, types, layers, numbers of the docs, fast tests (about 90 s)"
	@echo "make test       everything of check, the full tests, the site, the wheel in a clean environment (under 12 minutes)"
	@echo "make test-long  the slow tests; leaves benchmarks/results/test-long.json"
	@echo "make matrix     the wheel with every Python, torch 2.11 and newest, with and without extras (30 to 60 minutes)"
	@echo "make screenshots  pictures of a short demo's report for the docs, taken by Chromium (about 5 minutes; STUDY=folder: of that)"
	@echo "make audit      known vulnerabilities of the pinned requirements, where pip-audit can be had"
	@echo "make docs       the documentation as a site, in build/site (seconds); make docs-serve shows it"

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "densekd needs Python 3.11 or newer, found %d.%d; choose one with: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv --clear $(VENV)
	$(CLEAN) $(BIN)/python -m pip install -q --disable-pip-version-check uv
	@# uv does not read pip's settings: a mirror named there is handed on.
	@mirror=$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null)}}; \
	  [ -z "$$mirror" ] || export UV_DEFAULT_INDEX="$$mirror"; export VIRTUAL_ENV="$(CURDIR)/$(VENV)"; \
	  echo "installing the pinned requirements into $(VENV)"; \
	  $(CLEAN) $(BIN)/uv pip install -q -r requirements.txt && \
	  $(CLEAN) $(BIN)/uv pip install -q --no-deps -e .
	@$(COMPILED) $(BIN)/python -c 'import densekd.runs, timm, torchmetrics, hypothesis, pytest'
	@touch $(READY)

demo: $(READY)
	$(BIN)/densekd demo

screenshots: $(READY)
	$(BIN)/python tools/screenshots.py $(if $(STUDY),--study $(STUDY))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

numbers: $(READY)
	$(BIN)/python tools/check_numbers.py

check: $(READY)
	$(MAKE) --no-print-directory -j2 lint types layers numbers
	$(PYTEST) -m "not slow and not long"

test: check
	$(PYTEST) -m "slow and not long"
	$(MAKE) --no-print-directory -j2 docs wheel-test

# The variable silences what the theme says of its own future, nothing of the pages.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

wheel-test: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(CLEAN) $(BIN)/python tools/wheel_test.py

matrix: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(CLEAN) $(BIN)/python tools/matrix.py

# Part of nothing that must pass: it asks a service, and says so where it got no answer.
audit: $(READY)
	$(BIN)/python tools/audit.py

test-long: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tools/test_long.py -n 2 --dist loadfile

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
