# The few verbs people type. Python 3.11 and a network that reaches package registries are all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := runs/digits
TEACHER_PORT := 18765

# docker, podman or buildah; BUILD_OPTIONS go to its build, as --build-arg BASE=IMAGE@sha256:... does.
BUILDER ?= docker
BUILD_OPTIONS ?=
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.PHONY: demo test test-slow e2e lint format bench cluster lock generate images image-operator image-pipeline sbom clean

# The whole method on real handwritten digits, from nothing to the report.
demo: $(VENV)/.installed
	bench/demo.sh $(RUNS) $(TEACHER_PORT)

# Whole runs start Ray, which gives its processes a fixed time to be there: two at once are too much for two cores.
ALONE := tests/pipeline/test_rl.py tests/test_run.py tests/cluster/test_end_to_end.py

# Lint, types, layers, generated files, and every test but the slow ones, two files at a time, whole runs one by one.
test: $(VENV)/.installed lint
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile $(ALONE:%=--ignore=%) tests
	$(BIN)/pytest -m "not slow" $(ALONE)

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
	$(BIN)/hadolint images/operator.Dockerfile images/pipeline.Dockerfile

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed
	$(BIN)/python bench/selection.py
	$(BIN)/python bench/store.py
	$(BIN)/python bench/overhead.py

# A real control plane with training-operator, and nodes whose pods are processes, until Ctrl-C; built from Go on first use.
cluster: $(VENV)/.installed
	$(BIN)/python tests/cluster/cluster.py up

generate: $(VENV)/.installed
	$(BIN)/egt generate

# Resolve the locks anew; tests/test_locks.py holds them against it.
lock: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" requirements/lock.sh

# Both images; see images/README.md.
images: image-operator image-pipeline

image-operator image-pipeline: image-%:
	$(BUILDER) build -f images/$*.Dockerfile -t egt-$*:$(VERSION) --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$$(git rev-parse HEAD) $(BUILD_OPTIONS) .
	$(BUILDER) images | grep -w egt-$*

# A bill of materials for each image, in build/.
sbom: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" images/sbom.sh build

$(VENV)/.installed: requirements/build.txt requirements/dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements/build.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --build-constraints requirements/build.txt --editable .
	touch $@

clean:
	rm -rf $(VENV) runs build
