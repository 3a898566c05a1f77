# Needs Python 3.11 or 3.12, and make. Everything else goes into .venv.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
# Tools that are no part of the project: their packages do not meet ours.
TOOLS := .venv-tools
DEMO_RUN := runs/demo
# A Python of your own choice: make setup PYTHON=/path/to/python3.12
PYTHON ?=
# Tests at the same time: make test TEST_PROCESSES=4
TEST_PROCESSES ?= 2

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup setup-locked tools hashes audit demo test long checkpoints takeover storage cluster-test parity \
	faults mutations walkthrough lint format reference clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

setup: $(STAMP) ## make .venv from requirements.lock, if it is missing or out of date

$(STAMP): requirements.lock pyproject.toml
	@set -e; \
	for python in $(PYTHON) python3.11 python3 python3.12; do \
		if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; \
		then found=$$python; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
		echo "error: Python: 3.11 or 3.12 is needed, got $$(python3 --version 2>&1)." \
			"Install python3.11, or name one: make setup PYTHON=/path/to/python3.11" >&2; exit 2; \
	fi; \
	echo "setup: $$("$$found" --version) -> $(VENV)"; \
	if ! $(BIN)/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; \
	then "$$found" -m venv --clear $(VENV); fi
	@echo "setup: installing requirements.lock (about 2.5 GB; some minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip check
	@touch $@

setup-locked: ## make .venv from locks/ by hashes: every file is the one that was locked; CPU=1 for a CPU torch
	@test -x $(BIN)/python || $(or $(PYTHON),python3.11) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes --only-binary :all: -r locks/build.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes --no-build-isolation \
		-r locks/linux.txt $(if $(CPU),,-r locks/cuda.txt)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip check
	@touch $(STAMP)

tools: $(TOOLS)/.done ## make .venv-tools with bandit, pip-audit and uv

$(TOOLS)/.done: pyproject.toml
	@$(or $(PYTHON),python3.11) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip install -qq --disable-pip-version-check $$(sed -n 's/^audit = \[\(.*\)\]$$/\1/p' \
		pyproject.toml | tr -d '",')
	@touch $@

hashes: tools ## write locks/ with the hashes of requirements.lock
	@$(TOOLS)/bin/python locks/write.py

audit: tools ## look for weak spots in core and tuning, and for known weaknesses of the locked packages
	@$(TOOLS)/bin/bandit -q -c pyproject.toml -ll -r core tuning
	@$(TOOLS)/bin/python locks/audit.py

demo: setup ## sweep the shipped model, or go on where the demo stopped; then best and report
	@if [ -f $(DEMO_RUN)/ledger.db ]; then $(BIN)/unlearn-tune resume $(DEMO_RUN); \
	else $(BIN)/unlearn-tune sweep search_spaces/demo.yaml --name demo; fi
	@$(BIN)/unlearn-tune best $(DEMO_RUN)
	@$(BIN)/unlearn-tune report $(DEMO_RUN)

test: setup ## run the tests, without the model hub
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal

long: setup ## run what the ordinary tests leave out: every combination, and a driver lost with its disk
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "matrix or storage" -n $(TEST_PROCESSES) \
		--dist worksteal --timeout 1800

checkpoints: setup ## interrupt trials of every ZeRO stage, kind, precision and stop rule, and go on with them
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integration/test_checkpoints.py -m matrix -q

takeover: setup ## two drivers of one sweep on a real Ray, with a PostgreSQL server of Debian's
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/integration/takeover.py

cluster-test: setup ## run sweeps on three Ray nodes of this machine, and write docs/cluster/test.md
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/cluster/*scenarios.py --cluster-page

storage: setup ## kill a driver on a cluster of three nodes, disk and all, and go on from the storage
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integration/test_cluster_sweep.py -m storage -q

parity: setup ## compare with the numbers of published code, and print the table
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests -k golden --parity -q

faults: setup ## break everything that can break, once at every place, and print the table
	@mkdir -p runs
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR):$(CURDIR)/tests \
		$(BIN)/python -m faults --ray --processes $(TEST_PROCESSES) --json runs/faults.json

walkthrough: setup ## run what the tutorial and four more pages show, command by command, with less to do (an hour)
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -x tests/integration/walkthrough.py

mutations: setup ## try 10,000 mutated files and 1,000 damaged run folders, and print the table
	@PYTHONPATH=.:tests HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m mutation.campaign \
		--files 10000 --folders 1000

lint: setup ## check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup ## sort imports, fix what can be fixed, format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

reference: setup ## write docs/reference/configuration.md from the configuration classes
	@$(BIN)/python docs/reference/generate.py

clean: ## remove .venv, builds and caches; runs/ stays
	@rm -rf $(VENV) $(TOOLS) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
