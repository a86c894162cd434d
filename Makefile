# One verb a target; every target sets up what it needs.
PYTHON ?= python3
BOOTSTRAP := .bootstrap
UV := $(BOOTSTRAP)/bin/uv
BIN := .venv/bin

export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export UV_PYTHON_DOWNLOADS := never

.PHONY: setup demo check test test-slow test-slow-failed test-long clean
setup: .venv/.locked

$(UV):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "capstan needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(BOOTSTRAP)
	$(BOOTSTRAP)/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'

.venv/.locked: pyproject.toml uv.lock | $(UV)
	$(UV) sync --locked --quiet --python $(PYTHON)
	@touch $@

demo: setup
	$(BIN)/capstan demo linkerd

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup
	$(BIN)/python -m pytest -n 2

test-slow: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "slow and not long" --timeout=600 --durations=40

test-slow-failed: setup
	$(BIN)/python -m pytest -n 0 -m "slow and not long" --timeout=600 --last-failed --last-failed-no-failures none

test-long: setup
	$(BIN)/python -m pytest -n 1 -m long --timeout=1200

clean:
	rm -rf .venv $(BOOTSTRAP) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
