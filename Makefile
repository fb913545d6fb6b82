# Everything happens in .venv. A stamp file there says what is installed, so a second call installs nothing.

PYTHON ?= python3
PY := .venv/bin/python
# setuptools warns at every editable install, even a good one.
PIP := PYTHONWARNINGS=ignore $(PY) -m pip --quiet --disable-pip-version-check --no-input
# The second constraint is for packages that come as source: what they are built with is pinned as well.
PINNED := --constraint constraints.txt --build-constraint constraints.txt
VENV := .venv/.stamp-venv
DEMO := .venv/.stamp-demo
TEST := .venv/.stamp-test

# A file of tests to each core: tiny models gain nothing from several threads, which would only wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# Modules found through PYTHONPATH would hide the installed ones. What is compiled once is kept, for every start after it.
unexport PYTHONPATH PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow bench lint format clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(DEMO)  ## install, then train and evaluate a tiny model on made-up pictures (a few minutes on a CPU)
	$(PY) train.py experiment=demo

test: lint  ## install, lint, and run the quick tests
	$(PYTEST) -m "not slow"

# In the order of tests/conftest.py. pytest ends with 5 where no test is marked slow.
test-slow: $(TEST)  ## install, and run the tests that train tiny models
	$(PYTEST) --no-loadscope-reorder -m slow || [ $$? -eq 5 ]

bench: $(TEST)  ## measure the speed claims of the README against their opponents
	$(PY) benchmarks/packing.py
	$(PY) benchmarks/evaluation.py
	$(PY) benchmarks/dpo.py

lint: $(TEST)  ## check style (ruff) and types (mypy)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy vlmft

format: $(TEST)  ## rewrite the source in house style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove .venv, caches and build leftovers; runs and data stay
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV):
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo "There is no $(PYTHON) here; name a Python from 3.11 on: make PYTHON=python3.12"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vlmft needs Python 3.11 or newer, and $(PYTHON) is `"$(PYTHON)" --version`;" \
	         "name another: make PYTHON=python3.12"; exit 1; }
	@echo "making .venv with `"$(PYTHON)" --version`"
	@test -x $(PY) || "$(PYTHON)" -m venv .venv || { rm -rf .venv; exit 1; }
	@$(PIP) install --upgrade pip
	@touch $@

$(DEMO): pyproject.toml constraints.txt | $(VENV)
	@echo "installing vlmft (a few minutes, about 7 GB on Linux)"
	@$(PIP) install $(PINNED) --editable .
	@touch $@

$(TEST): pyproject.toml constraints.txt | $(VENV)
	@echo "installing vlmft with its test tools (a few minutes, about 7 GB on Linux)"
	@$(PIP) install $(PINNED) --editable '.[test]'
	@touch $(DEMO) $@
