# make demo, make test: a fresh clone needs nothing but Python 3.11+ and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test test-slurm test-slurm-failures test-runtime test-others check clean

setup: $(VENV)/.done

# torch first and by itself: later packages then find it there and bring no other build of it.
$(VENV)/.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: kd-launch needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt hatchling editables
	$(BIN)/pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[runtime,dev]'
	@touch $@

demo: setup
	@$(BIN)/python configs/quickstart/demo.py

# Three at once: most of the time of those on Slurm is Slurm's, in which the others compute; the last begin when what
# ends a run is through. One thread for each process: threads that wait for each other on busy cores take many times as
# long.
test: export OMP_NUM_THREADS := 1
test: setup
	@$(MAKE) --no-print-directory --keep-going --jobs=3 test-slurm-failures test-slurm test-runtime test-others

FAILURES := $(addprefix tests/slurm/test_,failures.py slow_failures.py random_faults.py burst.py)

test-slurm: setup
	$(BIN)/python -m pytest tests/slurm $(addprefix --ignore=,$(FAILURES))

# What ends a run, of which Slurm's own timeouts take ten minutes.
test-slurm-failures: setup
	$(BIN)/python -m pytest $(FAILURES)

# With the demo, which trains too.
test-runtime: setup
	$(BIN)/python -m pytest tests/runtime tests/test_docs.py

test-others: setup
	$(BIN)/python -m pytest --ignore=tests/slurm --ignore=tests/runtime --ignore=tests/test_docs.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
