# The few verbs people type. Python 3.11 and a network that reaches package registries are all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
RUNS := runs/digits
TEACHER_PORT := 18765

.PHONY: demo test test-slow e2e lint format bench cluster lock generate clean

# The whole method on real handwritten digits, from nothing to the report.
demo: $(VENV)/.installed
	bench/demo.sh $(RUNS) $(TEACHER_PORT)

# Lint, types, layers, generated files, and every test but the slow ones, two files at a time.
test: $(VENV)/.installed lint
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile tests

# What takes longer: kill -9 at random moments, the science of the demo, two-process training in full.
test-slow: $(VENV)/.installed
	$(BIN)/pytest -m slow tests

# The example for clusters from helm install to its report, in pods that are processes, beside the same run on this machine.
e2e: $(VENV)/.installed
	$(BIN)/pytest -m slow tests/cluster/test_digits_cluster.py

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/egt generate --check

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed
	$(BIN)/python bench/selection.py
	$(BIN)/python bench/store.py
	$(BIN)/python bench/overhead.py

# A real control plane with training-operator and simulated nodes, until Ctrl-C; built from Go modules on first use.
cluster: $(VENV)/.installed
	$(BIN)/python tests/cluster/cluster.py up

generate: $(VENV)/.installed
	$(BIN)/egt generate

# Resolve the locks anew; they hold versions and hashes, never an address.
lock: $(VENV)/.installed
	cd requirements && ../$(BIN)/uv pip compile -q operator.in --python-version 3.11 --generate-hashes -o operator.txt
	cd requirements && ../$(BIN)/uv pip compile -q cpu.in --override overrides.txt --python-version 3.11 --generate-hashes -o cpu.txt
	cd requirements && ../$(BIN)/uv pip compile -q dev.in --override overrides.txt -c cpu.txt --python-version 3.11 --generate-hashes -o dev.txt
	cd requirements && ../$(BIN)/uv pip compile -q gpu.in --override overrides.txt --python-version 3.12 --python-platform linux --generate-hashes -o gpu.txt

$(VENV)/.installed: requirements/dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) runs
