# Each target does its own set-up in .venv; all that is needed is Python >= 3.11, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_WORKERS ?= auto
# By file, the longest (tests/cluster) first: what a module sets up is set up once. A process of tests that crashes is not
# replaced: xdist 3.8.0 would hand out its finished files again and wait for them forever (pytest-xdist#1378). A test that
# takes half an hour (the first of a cluster may build one) says where it is, and ends.
TEST := $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 \
	-o faulthandler_timeout=1800 -o faulthandler_exit_on_timeout=true -q --durations=15
LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11
DATA ?= ../shared/data
FUZZ_SEED ?= random

.PHONY: help setup demo test retest coverage fuzz chaos cluster check bench docs generate lock clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## make .venv with the locked versions and the ballast command

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Ballast needs Python 3.11 or newer, this is {v[0]}.{v[1]}; try: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed; on Debian: apt install python3-venv"; exit 1; }
	@echo "Installing locked packages into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: setup  ## plan a real hour of LLM traffic and write out/demo.html
	@$(BIN)/ballast demo

test: setup  ## run all tests
	@$(TEST)

retest: setup  ## run once more, alone, the files in which tests of clusters or processes failed last; others stay failed
	@files=$$($(BIN)/python -m pytest --last-failed --last-failed-no-failures none --collect-only -q tests \
		| sed -n 's/::.*//p' | sort -u); echo "Once more, alone:" $${files:-nothing}; test -n "$$files" \
		&& ! echo "$$files" | grep -vE '^tests/(cluster|controller/agent)/' && $(BIN)/python -m pytest -q $$files

coverage: setup  ## run all tests and say which lines none of them runs (half as long again)
	@$(TEST) --cov --cov-report=term:skip-covered

fuzz: setup  ## run the property tests with draws that nobody has seen yet (FUZZ_SEED repeats them)
	@$(BIN)/python -m pytest -m hypothesis -n $(PYTEST_WORKERS) --hypothesis-seed=$(FUZZ_SEED) -q tests

chaos: setup  ## run the long fault tests (hours) and put their figures into docs/reliability.md
	@mkdir -p out && rm -f out/chaos.jsonl
	@BALLAST_REQUIRE_CLUSTER=1 BALLAST_CHAOS_RESULTS=$(CURDIR)/out/chaos.jsonl $(BIN)/python -m pytest -m chaos tests -q
	@$(BIN)/python -m tests.cluster.results out/chaos.jsonl

cluster: setup  ## run a real control plane with fake GPU nodes, the chart and examples/operator until Ctrl-C
	@$(BIN)/python -m tests.cluster.people

check: setup  ## lint, formatting, types, import contracts, generated files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m controller.resources.generate --check
	@$(BIN)/mypy helm/readme.py
	@$(BIN)/python helm/readme.py --check

bench: setup  ## print ratios against peers' methods (BENCH_JSON=file keeps them)
	@$(BIN)/python -m benchmarks.run

docs: setup  ## write docs/accuracy.md and docs/papers.md again from the measured tables and traces in $(DATA)
	@$(BIN)/python -m benchmarks.accuracy --data $(DATA) --out docs/accuracy.md
	@$(BIN)/python -m benchmarks.papers --data $(DATA) --out docs/papers.md

generate: setup  ## write the chart's CustomResourceDefinitions from controller/resources, its README from its values
	@$(BIN)/python -m controller.resources.generate
	@$(BIN)/python helm/readme.py

lock: setup  ## lock the newest allowed versions again
	@$(BIN)/python -m pip install --quiet uv
	@$(LOCK) --all-extras pyproject.toml -o requirements.lock
	@$(LOCK) --no-annotate -c requirements.lock --extra postgresql pyproject.toml -o requirements-image.lock
	@echo hatchling | $(LOCK) --no-annotate -c requirements.lock - -o requirements-build.lock

clean:  ## remove what the targets made
	rm -rf $(VENV) out dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
