# `make demo` and `make test` are complete from a bare checkout: they make a virtual environment,
# install into it, and run. Needs Python >= 3.10 with venv; gcc for torch.compile.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
GUARD ?= guard-data

.PHONY: demo test guard lint types contracts unit clean

demo: $(VENV)/.installed-demo
	rm -rf $(DEMO)
	$(BIN)/python examples/digits.py $(DEMO)/images
	$(BIN)/python -m shard build $(DEMO)/images $(DEMO)/dataset
	$(BIN)/python -m shard info $(DEMO)/dataset
	$(BIN)/python -m train --data $(DEMO)/dataset --recipe digits --run-dir $(DEMO)/run
	$(BIN)/python -m bench throughput --data $(DEMO)/dataset --recipe digits --repeats 3 --seconds 1 --out $(DEMO)/bench
	@echo
	@echo "The trained model, its metrics and config: $(DEMO)/run"
	@echo "The throughput table and picture:          $(DEMO)/bench"

test: lint types contracts unit guard

# Seconds on any machine: ratios to the same work by hand, against a baseline with a wide margin (docs/benchmarks.md).
guard: $(VENV)/.installed-dev
	rm -rf $(GUARD)
	$(BIN)/python -m shard synth $(GUARD) --samples 256 --classes 10
	$(BIN)/python -m bench guard --data $(GUARD) --baseline .ci/guard.json --class any --device cpu

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

contracts: $(VENV)/.installed-dev
	$(BIN)/lint-imports

# Two at a time: many tests wait for processes that they started or killed.
unit: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

clean:
	rm -rf $(VENV) $(DEMO) $(GUARD) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# A stamp per set of extras, so that a changed pyproject.toml installs anew.
$(VENV)/.installed-%: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@# An old pip takes more than ten minutes to find versions that go together, a new one seconds.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	touch $@
